"""What all benchmarks share: figures, rounds, command lines."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import orjson
import trio

from bitmex_streams import OrderBookMerger

from .workload import Book, Workload

COLUMNS = ("what", "measured", "ratio")


class Figure(NamedTuple):
    """``value`` is in ``unit``; ``ratio``: to the floor (or what else ``to`` says), where there is one, of the same
    round.
    """

    name: str
    value: float
    unit: str
    ratio: float | None = None
    to: str = "the floor"

    @property
    def cells(self) -> tuple[str, str, str]:
        """What it is, how much, and its ratio, in words."""
        ratio = "" if self.ratio is None else f"{readable(self.ratio)} x {self.to}"
        return self.name, f"{readable(self.value)} {self.unit}", ratio


def readable(value: float) -> str:
    """Three digits, or all of them before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(rows: Sequence[Sequence[str]], *, markdown: bool = False) -> str:
    """Rows of cells, the first of them the names of the columns, as text or in Markdown."""
    if markdown:
        head, *body = (f"| {' | '.join(row)} |" for row in rows)
        return "\n".join([head, "|---" * len(rows[0]) + "|", *body])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def levels_of(merger: OrderBookMerger) -> Book:
    """What it has made of a workload."""
    book = merger.books["XBTUSD"]
    return {"Buy": dict(book.bids), "Sell": dict(book.asks)}


def check(name: str, book: Book, workload: Workload) -> None:
    """End the program where a book is not exact, level by level."""
    if book != workload.book:
        sys.exit(f"{name}: the book is wrong")


def scaled(options: argparse.Namespace, size: int) -> int:
    """How many messages, levels or rows; enough of them that no book runs empty."""
    return max(200, int(size * options.scale))


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


def at_least_one(text: str) -> int:
    """How often something is to be done, on a command line."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"it is at least 1, not {number}")
    return number


def positive(text: str) -> float:
    """How much of something, on a command line."""
    if not (number := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"it is more than 0, not {text}")
    return number


def run(
    about: str | None,
    measure: Callable[[argparse.Namespace], Iterator[Figure]],
    arguments: Callable[[argparse.ArgumentParser], Any] = lambda parser: None,
) -> None:
    """The command line of a benchmark: ``measure`` does one round."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least_one, default=5, help="how often all is measured; the medians count")
    parser.add_argument("--scale", type=positive, default=1, help="how much work: 1 is what the documentation shows")
    parser.add_argument("--json", action="store_true", help="print one line of JSON for each figure")
    arguments(parser)
    options = parser.parse_args()
    figures = medians(measure(options) for _ in range(options.rounds))
    if options.json:
        for figure in figures:
            print(orjson.dumps(figure._asdict()).decode())
        return
    print(f"{machine()}; median of {options.rounds}")
    print(table([COLUMNS, *(figure.cells for figure in figures)]))
