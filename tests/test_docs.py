"""The documentation tells the truth: every Python block of README and docs runs, and prints what the page says.

The rule: a ```` ```python ```` block is a whole script. The blocks of a page run in the order of the page, in a
directory that they share, so that one can read the file that another has written. A ```` ```text ```` block that comes
right behind one is what it prints; numbers may differ, for markets move.
"""

import importlib
import os
import re
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

import bitmex_streams.exchange
import bitmex_streams.rows

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
SECONDS = 30  # that one block may take; a second or two is usual


class Block(NamedTuple):
    page: Path
    line: int
    code: str
    printed: str | None


def blocks_of(page):
    text = page.read_text()
    fences = list(FENCE.finditer(text))
    for fence, follower in pairwise([*fences, None]):
        if fence[1] == "python":
            printed = None
            if follower is not None and follower[1] == "text" and not text[fence.end() : follower.start()].strip():
                printed = follower[2]
            yield Block(page, text.count("\n", 0, fence.start()) + 2, fence[2], printed)


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def name_of(block):
    return f"{block.page.relative_to(ROOT)}:{block.line}"


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """What a block printed, run once, after those before it on its page."""
    directory = cache(lambda page: tmp_path_factory.mktemp(page.stem))

    @cache
    def output(number):
        block = BLOCKS[number]
        if number and BLOCKS[number - 1].page == block.page:
            output(number - 1)
        script = directory(block.page) / f"line_{block.line}.py"
        script.write_text(block.code)
        process = subprocess.run(
            [sys.executable, script],
            capture_output=True, text=True, timeout=SECONDS, cwd=script.parent, env=ENVIRONMENT,
        )
        assert process.returncode == 0, process.stderr
        assert process.stderr == ""
        return process.stdout

    return output


@pytest.mark.parametrize("number", range(len(BLOCKS)), ids=[name_of(block) for block in BLOCKS])
def test_the_block_runs_and_prints_what_the_page_says(number, output):
    printed = output(number)
    if BLOCKS[number].printed is not None:
        assert without_numbers(printed) == without_numbers(BLOCKS[number].printed)


def without_numbers(text):
    return [re.sub(r"\d+(\.\d+)?", "0", line) for line in text.splitlines()]


def test_there_are_blocks_to_run():
    assert len(BLOCKS) >= 10


def test_the_readme_has_one_line_that_runs_the_tests():
    readme = (ROOT / "README.md").read_text()
    (block,) = re.findall(r"^<!-- ci: tests -->\n```console\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    (line,) = block.splitlines()
    assert line.startswith("$ ") and line.endswith("-m pytest")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_to_files_that_are_there(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", FENCE.sub("", page.read_text())):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_public_name_is_in_the_reference():
    documented = set()
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        for identifier in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE):
            try:
                documented.update(importlib.import_module(identifier).__all__)
            except ModuleNotFoundError:
                documented.add(identifier.rpartition(".")[2])
    for public in (bitmex_streams, bitmex_streams.exchange, bitmex_streams.rows):
        assert set(public.__all__) <= documented, public.__name__
