"""What a level of an order book and a row of a table take, in bytes: `python -m benchmarks.memory`.

By tracemalloc: it counts what Python has allocated for the book or the table and all that it holds, the decoded numbers
and texts too, once the messages are gone. (The growth of the process, as the system shows it, has besides what the
allocator keeps of what decoding freed; that depends on what ran before, and is used again by what runs next.) The floor
is what the bare loops keep.
"""

from __future__ import annotations

import argparse
import gc
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import orjson

from bitmex_streams import Decoder, OrderBookMerger, TableApplier

from . import floor
from .measure import Figure, check, levels_of, run, scaled
from .prepared import batched, cpu, raw
from .workload import order_rows, partial_of, trade_rows, workload_of


def taken(make: Callable[[], Any]) -> tuple[Any, int]:
    """What was made, and the bytes that it takes."""
    gc.collect()
    tracemalloc.start()
    try:
        made = make()
        gc.collect()
        return made, tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def by_pipeline(messages: Sequence[bytes], section: Any) -> tuple[Any, int]:
    """The section, after the messages have passed a Decoder and it, and the bytes that it takes."""
    batches = batched(raw(messages))

    def make() -> Any:
        cpu(batches, Decoder(), section)
        return section

    return taken(make)


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Books, then tables."""
    workload = workload_of(scaled(options, 10_000), scaled(options, 50_000))
    levels = sum(map(len, workload.book.values()))

    book, least = taken(lambda: floor.sorted_dicts(workload.messages))
    check("the floor", book, workload)
    yield Figure("memory of a book, floor (prices and sizes)", least / levels, "bytes/level")
    merger, size = by_pipeline(workload.messages, OrderBookMerger())
    check("a book", levels_of(merger), workload)
    yield Figure("memory of a book of 100,000 levels", size / levels, "bytes/level", size / least)

    _, least = taken(lambda: floor.nested_dicts(workload.messages))
    yield Figure("memory of table orderBookL2, floor (rows)", least / levels, "bytes/row")
    tables, size = by_pipeline(workload.messages, TableApplier())
    check("a table", floor.sizes(tables.storage.data["orderBookL2"]["XBTUSD"]), workload)
    yield Figure("memory of table orderBookL2", size / levels, "bytes/row", size / least)

    count = scaled(options, 10_000)
    for table, rows in (("trade", trade_rows(count)), ("order", order_rows(count))):
        yield from of_table(table, partial_of(table, rows), rows)


def of_table(table: str, message: bytes, rows: Sequence[Any]) -> Iterator[Figure]:
    """A table of one partial."""
    bare, least = taken(lambda: orjson.loads(message)["data"])
    yield Figure(f"memory of table {table}, floor (rows)", least / len(bare), "bytes/row")
    tables, size = by_pipeline([message], TableApplier(max_rows=None))
    kept = list(tables.storage.data[table].values())
    if kept != rows:
        raise SystemExit(f"the table {table} is wrong")
    yield Figure(f"memory of table {table}", size / len(kept), "bytes/row", size / least)


if __name__ == "__main__":
    run(__doc__, measure)
