"""What all benchmarks share: figures, rounds, command lines."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import orjson
import trio

from .workload import Book, Workload


class Figure(NamedTuple):
    """``value`` is in ``unit``; ``ratio``: to the floor, where there is one, of the same round."""

    name: str
    value: float
    unit: str
    ratio: float | None = None

    def __str__(self) -> str:
        ratio = "" if self.ratio is None else f"{self.ratio:>10.3f} of the floor"
        return f"{self.name:<58}{readable(self.value):>12} {self.unit:<12}{ratio}".rstrip()


def readable(value: float) -> str:
    """Three digits, or all of them before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def check(name: str, book: Book, workload: Workload) -> None:
    """End the program where a book is not exact, level by level."""
    if book != workload.book:
        sys.exit(f"{name}: the book is wrong")


def medians(rounds: Iterable[Iterable[Figure]]) -> list[Figure]:
    """Of each figure the median of all rounds, its ratio's likewise, in the order of the first round."""
    by_name: dict[str, list[Figure]] = {}
    for figures in rounds:
        for figure in figures:
            by_name.setdefault(figure.name, []).append(figure)
    return [median(figures) for figures in by_name.values()]


def median(figures: list[Figure]) -> Figure:
    """Of one figure."""
    ratios = [figure.ratio for figure in figures if figure.ratio is not None]
    return figures[0]._replace(
        value=statistics.median(figure.value for figure in figures),
        ratio=statistics.median(ratios) if ratios else None,
    )


def machine() -> str:
    """What the figures are of."""
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return f"Python {platform.python_version()}, trio {trio.__version__}, {system}"


def run(
    about: str | None,
    measure: Callable[[argparse.Namespace], Iterator[Figure]],
    arguments: Callable[[argparse.ArgumentParser], Any] = lambda parser: None,
) -> None:
    """The command line of a benchmark: ``measure`` does one round."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often all is measured; the medians count")
    parser.add_argument("--scale", type=float, default=1, help="how much work: 1 is what the documentation shows")
    parser.add_argument("--json", action="store_true", help="print one line of JSON for each figure")
    arguments(parser)
    options = parser.parse_args()
    figures = medians(measure(options) for _ in range(options.rounds))
    if options.json:
        for figure in figures:
            print(orjson.dumps(figure._asdict()).decode())
        return
    print(f"{machine()}; median of {options.rounds}")
    for figure in figures:
        print(figure)
