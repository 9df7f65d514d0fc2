"""What the size of an order book costs: `python -m benchmarks.books`.

Books of 1,000, 10,000 and 100,000 levels (both sides together): a delta, the top of the book, ten levels of it; and a
partial of 100,000 levels, from the raw message to the book. Ratios are to the smallest book, that of the partial is to
a bare loop (JSON, and a SortedDict a side).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

from bitmex_streams import Decoder, OrderBook, OrderBookMerger

from . import floor
from .measure import Figure, check, levels_of, run, scaled
from .prepared import batched, cpu, raw, through
from .workload import Workload

LEVELS = (1_000, 10_000, 100_000)
READS: dict[str, Callable[[OrderBook], Any]] = {
    "best bid and ask": lambda book: (book.best_bid, book.best_ask),
    "depth(10)": lambda book: book.depth(10),
    "snapshot(10)": lambda book: book.snapshot(10),
}


@cache
def prepare(deltas: int, levels: int) -> tuple[Workload, Sequence[Any], Sequence[Any]]:
    """A workload, its messages as they come, and decoded."""
    workload = Workload(deltas, levels // 2)
    data = raw(workload.messages)
    return workload, data, through(data, Decoder())


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Deltas and reads of each size, then the partial."""
    smallest: dict[str, float] = {}
    for levels in LEVELS:
        workload, data, (partial, *deltas) = prepare(scaled(options, 10_000), scaled(options, levels))
        merger = OrderBookMerger()
        seconds = cpu([[partial], *batched(deltas)], merger)
        check(f"a book of {levels:,} levels", levels_of(merger), workload)
        costs = {"a delta": sum(seconds[1:]) / len(deltas)}
        costs |= {name: cost_of(read, merger.books["XBTUSD"], scaled(options, 20_000)) for name, read in READS.items()}
        for name, cost in costs.items():
            ratio = cost / smallest[name] if smallest else None
            yield Figure(f"{levels:,} levels: {name}", cost * 1e6, "us", ratio, f"{LEVELS[0]:,} levels")
        smallest = smallest or costs
    yield from measure_partial(workload, data)


def cost_of(read: Callable[[OrderBook], Any], book: OrderBook, times: int) -> float:
    """Seconds of CPU."""
    began = time.process_time()
    for _ in range(times):
        read(book)
    return (time.process_time() - began) / times


def measure_partial(workload: Workload, data: Sequence[Any]) -> Iterator[Figure]:
    """Of the largest book."""
    name = f"partial of {LEVELS[-1]:,} levels"
    began = time.process_time()
    floor.sorted_dicts(workload.messages[:1])
    least = time.process_time() - began
    yield Figure(f"{name}, floor", least, "s")
    merger = OrderBookMerger()
    (seconds,) = cpu([data[:1]], Decoder(), merger)
    assert len(merger.books["XBTUSD"].bids) == workload.levels
    yield Figure(name, seconds, "s", seconds / least)


if __name__ == "__main__":
    run(__doc__, measure)
