"""What each stage and each tap of a pipeline costs, in us of CPU an item: `python -m benchmarks.stages`.

By difference: the same items, already made, pass with and without it. The ratio is to what a bare loop (JSON, and a
SortedDict a side) needs for a message.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import orjson
from slurry.environments import TrioSection

from bitmex_streams import (
    Bars,
    BookGrouping,
    Decoder,
    OrderBookMerger,
    Orders,
    SymbolFilter,
    TableApplier,
    TableFilter,
    Throttle,
)

from . import floor
from .measure import Figure, check, levels_of, run, scaled
from .prepared import batched, cpu, raw, through
from .workload import Workload, partial_of, trade_rows

PASSES = 3  # of each, of which the best counts
MANY = 8  # of a stage that costs little, so that it can be seen


Make = Callable[[], Sequence[Any]]


class Mine(TrioSection):
    """A section of a user's."""

    async def refine(self, input: Any, output: Any) -> None:
        """Pass everything on."""
        async for item in input:
            await output(item)


class Items(NamedTuple):
    """The same workload at every stage."""

    workload: Workload
    raw: Sequence[Any]
    messages: Sequence[Any]
    rows: Sequence[Any]
    books: Sequence[Any]
    trades: Sequence[Any]


@cache
def prepare(deltas: int, levels: int) -> Items:
    """The items, once."""
    workload = Workload(deltas, levels)
    data = raw(workload.messages)
    messages = through(data, Decoder())
    insert = {"table": "trade", "action": "insert"}
    trades = [partial_of("trade", []), *(orjson.dumps({**insert, "data": [row]}) for row in trade_rows(deltas))]
    return Items(
        workload,
        data,
        messages,
        through(messages, TableApplier()),
        through(messages, OrderBookMerger()),
        through(raw(trades), Decoder()),
    )


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Stages, then taps."""
    items = prepare(scaled(options, 20_000), scaled(options, 2_000))
    least = bare(items.workload) * 1e6
    yield Figure("a bare loop", least, "us/message")

    def figure(name: str, of: Sequence[Any], make: Make, count: int = 1, before: Make = list, **tap: Any) -> Figure:
        seconds = difference(name, items.workload, of, before, make, **tap)
        cost = seconds / len(of) / count * 1e6
        return Figure(name, cost, "us/item", cost / least)

    yield figure("stage: Decoder", items.raw, lambda: [Decoder()])
    yield figure("stage: TableApplier", items.messages, lambda: [TableApplier()])
    yield figure("stage: OrderBookMerger", items.messages, lambda: [OrderBookMerger()])
    yield figure("stage: OrderBookMerger, behind tables", items.rows, lambda: [OrderBookMerger()])
    yield figure("stage: SymbolFilter", items.books, many(SymbolFilter, "XBTUSD"), MANY)
    yield figure("stage: SymbolFilter, of rows", items.rows, many(SymbolFilter, "XBTUSD"), MANY)
    yield figure("stage: TableFilter", items.books, many(TableFilter, "orderBookL2"), MANY)
    yield figure("stage: Orders, of which there are none", items.rows, many(Orders), MANY)
    yield figure("stage: BookGrouping", items.messages, lambda: [BookGrouping(10)], before=lambda: [OrderBookMerger()])
    yield figure("stage: Throttle", items.books, lambda: [Throttle(0.1)])
    yield figure("stage: Bars", items.trades, lambda: [Bars("1m")])
    yield figure("stage: a user's TrioSection", items.books, lambda: [Mine()])
    for overflow in ("block", "latest", "drop_oldest", "drop_newest"):
        yield figure(f"tap: {overflow}", items.books, list, overflow=overflow)


def many(section: type, *options: Any) -> Make:
    """Of one kind, one behind the other."""
    return lambda: [section(*options) for _ in range(MANY)]


def bare(workload: Workload) -> float:
    """Seconds of CPU a message."""
    best = float("inf")
    for _ in range(PASSES):
        began = time.process_time()
        book = floor.sorted_dicts(workload.messages)
        best = min(best, time.process_time() - began)
        check("a bare loop", book, workload)
    return best / workload.deltas


def difference(name: str, workload: Workload, items: Sequence[Any], before: Make, make: Make, **tap: Any) -> float:
    """Seconds of CPU that sections, or a tap, add to the sections ``before``."""
    without, with_it = [], []
    for _ in range(PASSES):
        without.append(sum(cpu(batched(items), *before())))
        sections = [*before(), *make()]
        with_it.append(sum(cpu(batched(items), *sections, **tap)))
        for section in sections:
            if isinstance(section, OrderBookMerger):
                check(name, levels_of(section), workload)
    return min(with_it) - min(without)


if __name__ == "__main__":
    run(__doc__, measure)
