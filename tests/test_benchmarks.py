"""The benchmarks run, and every book in them is exact (they check that themselves).

What they measure is nobody's test.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("websockets")  # of the extra `fast`: both transports are measured

ROOT = Path(__file__).parent.parent
WRONG = """
from benchmarks import measure, {name}
from benchmarks.workload import Workload

init = Workload.__init__
def one_level_more(self, *sizes):
    init(self, *sizes)
    self.book["Buy"][0.5] = 100
Workload.__init__ = one_level_more
measure.run("", {name}.measure)
"""


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def tables():
    """The two tables of one small run of everything: of each, rows of cells."""
    done = run("-m", "benchmarks.goals", "--runs=1", "--scale=0.001", "--markdown")
    assert done.returncode == 0, done.stderr
    machine, goals, figures = done.stdout.split("\n\n")
    assert machine.startswith("Python 3")
    return [[re.split(r" *\| *", line)[1:-1] for line in table.splitlines()[2:]] for table in (goals, figures)]


def test_each_goal_is_measured_but_for_those_against_rivals_that_are_not_there(tables):
    goals = {what: (measured, holds) for what, _, measured, holds in tables[0]}
    assert len(goals) == 15
    missing = [what for what, (measured, holds) in goals.items() if measured == "not measured" or not holds]
    assert len(missing) == 2
    assert all("against" in what for what in missing)


def test_each_figure_of_ours_stands_beside_a_floor(tables):
    without = [what for what, _, ratio in tables[1] if not ratio]
    assert len(tables[1]) > 60
    assert all("floor" in what or "bare loop" in what or what.startswith("1,000 levels") for what in without)


@pytest.mark.parametrize("name", ["live", "recorded", "books", "memory"])
def test_a_book_that_is_not_exact_ends_it(name):
    done = run("-c", WRONG.format(name=name), "--rounds=1", "--scale=0.001")
    assert done.returncode == 1
    assert done.stderr.endswith("the book is wrong\n") or done.stderr.endswith("the table is wrong\n")
    assert done.stdout == ""
