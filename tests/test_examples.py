"""Each example runs as a user would run it, ends by itself, and prints what it promises."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


def run(name, *arguments):
    process = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments], capture_output=True, text=True, timeout=30, env=ENVIRONMENT
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    return process.stdout.splitlines()


def test_top_of_book_prints_tops_that_are_not_crossed():
    lines = run("top_of_book.py", "--seconds", "1.5")
    assert len(lines) >= 2
    for line in lines:
        top = re.fullmatch(r"XBTUSD +\d+ @ ([\d.]+) +\| +([\d.]+) @ \d+ *", line)
        assert top is not None, line
        assert float(top[1]) < float(top[2])


def test_trades_to_bars_prints_one_bar_for_each_minute():
    lines = run("trades_to_bars.py", "--bars", "3")
    minutes = []
    price = r"([\d.]+)"
    for line in lines:
        bar = re.match(
            rf".{{10}}T..:(..):00.000Z  open {price}  high {price}  low {price}  close {price}  volume \d+  trades \d+",
            line,
        )
        assert bar is not None, line
        minutes.append(int(bar[1]))
        opened, high, low, closed = map(float, bar.group(2, 3, 4, 5))
        assert low <= min(opened, closed) <= max(opened, closed) <= high
    assert [minute - minutes[0] for minute in minutes] in ([0, 1, 2], [0, 1, -58], [0, -59, -58])
    assert ["incomplete" in line for line in lines] == [True, False, False]


def test_user_section_prints_the_microprices_of_both_markets():
    lines = run("user_section.py", "--count", "8")
    assert len(lines) == 8
    assert all(re.fullmatch(r"(XBTUSD|ETHUSD)  \d+\.\d{4}", line) for line in lines)
    assert {line.split()[0] for line in lines} == {"XBTUSD", "ETHUSD"}


def test_three_taps_hear_all_three_stages():
    lines = run("three_taps.py", "--seconds", "2.5")
    kinds = {"raw:": r"raw: +\d+ messages, \d+ characters", "trade:": r"trade: +(Buy|Sell) \d+ at [\d.]+",
             "book:": r"book: +[\d.]+ / [\d.]+"}  # fmt: skip
    assert {line.split()[0] for line in lines} == set(kinds)
    assert all(re.fullmatch(kinds[line.split()[0]], line) for line in lines)


def test_the_classic_client_listens_to_two_tables_at_once():
    lines = run("classic.py", "--seconds", "3")
    kinds = r"\w+  (Buy |Sell) +\d+ @ [\d.]+", r"\w+  mark price [\d.]+"
    assert all(any(re.fullmatch(kind, line) for kind in kinds) for line in lines[:-1])
    assert {line.split()[1] for line in lines[:-1]} >= {"mark"}
    assert lines[-1] == "tables in the storage: instrument, trade"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_every_example_is_short_and_tested_here(path):
    source = path.read_text()
    assert len(source.splitlines()) < 60
    assert f'"{path.name}"' in Path(__file__).read_text()
