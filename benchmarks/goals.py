"""Run every benchmark, and say which goals hold: `python -m benchmarks.goals`.

Each run is every benchmark once, in a process of its own; of each figure the median of all runs counts. The exit status
is 0 unless a book is wrong: figures are not tests. Some five minutes; rivals (see benchmarks.rivals) take one more.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import orjson

from . import rivals
from .loopback import ROOT
from .measure import COLUMNS, Figure, at_least_one, machine, medians, positive, readable, table

BENCHMARKS = ("rivals", "recorded", "stages", "books", "latency", "memory")


class Goal(NamedTuple):
    """A figure's value, or its ratio, is at least or at most a limit."""

    figure: str
    field: str
    sign: str
    limit: float

    def cells(self, figures: dict[str, Figure]) -> tuple[str, str, str, str]:
        """What, the goal, what was measured, and whether it holds."""
        figure = figures.get(self.figure)
        ratio = self.field == "ratio"
        unit = "" if figure is None else f" x {figure.to}" if ratio else f" {figure.unit}"
        goal = f"{self.sign} {readable(self.limit)}"
        value = None if figure is None else figure.ratio if ratio else figure.value
        if value is None:
            return self.figure, goal, "not measured", ""
        holds = value >= self.limit if self.sign == ">=" else value <= self.limit
        return self.figure, f"{goal}{unit}", readable(value), "yes" if holds else "no"


GOALS = (
    Goal("socket to book, fast transport", "ratio", ">=", 0.36),
    Goal("socket to book, fast transport, against cryptofeed", "value", ">=", 1.1),
    Goal("socket to book, default transport", "ratio", ">=", 0.085),
    Goal("socket to book, default transport, against bitmex-trio-websocket", "value", ">=", 5.5),
    Goal("recording to book", "ratio", ">=", 0.50),
    Goal("recording to book, through tables", "ratio", ">=", 0.40),
    Goal("gzip file to book", "ratio", ">=", 0.42),
    Goal("tap: block", "value", "<=", 2),
    Goal("tap: latest", "value", "<=", 1),
    Goal("stage: SymbolFilter", "value", "<=", 0.4),
    Goal("100,000 levels: a delta", "ratio", "<=", 1.5),
    Goal("partial of 100,000 levels", "value", "<=", 0.5),
    Goal("latency at 5,000/s, fast transport, p99", "value", "<=", 1_000),
    Goal("latency at 5,000/s, default transport, p99", "value", "<=", 1_000),
    Goal("memory of a book of 100,000 levels", "value", "<=", 250),
)


def one_run(options: argparse.Namespace, about: str) -> Iterator[Figure]:
    """Every benchmark once."""
    for name in BENCHMARKS:
        print(f"{about}: {name}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", "--rounds=1", f"--scale={options.scale}"]
        if name == "rivals":
            command += rivals.given(options)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{name}: {done.stderr}")
        for line in done.stdout.splitlines():
            yield Figure(**orjson.loads(line))


def report(figures: Sequence[Figure], runs: int, *, markdown: bool) -> str:
    """The goals, and all figures."""
    by_name = {figure.name: figure for figure in figures}
    goals = [("what", "goal", "measured", "holds"), *(goal.cells(by_name) for goal in GOALS)]
    everything = [COLUMNS, *(figure.cells for figure in figures)]
    about = f"{machine()}; median of {runs} runs"
    return "\n\n".join([about, table(goals, markdown=markdown), table(everything, markdown=markdown)])


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=at_least_one, default=5, help="how often all is run; the medians count")
    parser.add_argument("--scale", type=positive, default=1, help="how much work: 1 is what the goals are for")
    parser.add_argument("--markdown", action="store_true", help="print tables as the documentation has them")
    rivals.arguments(parser)
    options = parser.parse_args()
    figures = medians(one_run(options, f"run {number} of {options.runs}") for number in range(1, options.runs + 1))
    print(report(figures, options.runs, markdown=options.markdown))


if __name__ == "__main__":
    main()
