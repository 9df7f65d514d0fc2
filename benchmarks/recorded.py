"""From a recording to exact order books and tables, in messages per second: `python -m benchmarks.recorded`.

From the first line to the last, the partial among them, with a tap at the end of which every update is read. The floor
is a bare loop over the same messages, already cut into lines: JSON, and a SortedDict a side.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import trio

from bitmex_streams import Decoder, OrderBookMerger, Pipeline, Replay, TableApplier

from . import floor
from .measure import Figure, check, levels_of, run, scaled
from .workload import Book, Workload, workload_of

Result = tuple[Book, float]


def bare(workload: Workload) -> Result:
    """The floor: the book, and the seconds."""
    began = time.perf_counter()
    book = floor.sorted_dicts(workload.messages)
    return book, time.perf_counter() - began


async def replay(workload: Workload, recording: Any, *sections: Any) -> float:
    """Read every update of the last section; the seconds."""
    began, count = time.perf_counter(), 0
    async with Pipeline.create(Replay(recording), Decoder(), *sections) as pipeline, pipeline.tap() as updates:
        async for _ in updates:
            count += 1
    seconds = time.perf_counter() - began
    assert count == workload.deltas + 1
    return seconds


def to_book(workload: Workload, recording: Any, *before: Any) -> Result:
    """Through Replay, Decoder, perhaps something ``before``, OrderBookMerger."""
    merger = OrderBookMerger()
    seconds = trio.run(replay, workload, recording, *before, merger)
    return levels_of(merger), seconds


def to_tables(workload: Workload, recording: Any) -> Result:
    """Through Replay, Decoder, TableApplier."""
    tables = TableApplier()
    seconds = trio.run(replay, workload, recording, tables)
    return floor.sizes(tables.storage.data["orderBookL2"]["XBTUSD"]), seconds


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Each beside a floor of its own."""
    workload = workload_of(scaled(options, 40_000), scaled(options, 2_000))
    lines = b"".join(b"2026-01-01T00:00:00.0000000Z " + message + b"\n" for message in workload.messages)
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "recording.gz")
        file.write_bytes(gzip.compress(lines, 6))
        ways: dict[str, Callable[[], Result]] = {
            "recording to book": lambda: to_book(workload, io.BytesIO(lines)),
            "recording to tables": lambda: to_tables(workload, io.BytesIO(lines)),
            "recording to book, through tables": lambda: to_book(workload, io.BytesIO(lines), TableApplier()),
            "gzip file to book": lambda: to_book(workload, file),
        }
        for name, way in ways.items():
            least = rate_of("recording to book, floor", workload, lambda: bare(workload))
            yield Figure("recording to book, floor", least, "messages/s")
            rate = rate_of(name, workload, way)
            yield Figure(name, rate, "messages/s", rate / least)


def rate_of(name: str, workload: Workload, way: Callable[[], Result]) -> float:
    """Messages per second; the book is checked."""
    gc.collect()
    book, seconds = way()
    check(name, book, workload)
    return workload.deltas / seconds


if __name__ == "__main__":
    run(__doc__, measure)
