"""From a recording to exact order books and tables: `python -m benchmarks.recorded`.

In messages per second, and in us of CPU a message; from the first line to the last, the partial among them, with a tap
at the end of which every update is read. The floor is a bare loop over the same messages, already cut into lines: JSON,
and a SortedDict a side.
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

Cost = tuple[float, float]
"""Seconds, and seconds of CPU (of all threads)."""
Way = Callable[[], tuple[Book, Cost]]
FLOOR = "recording to book, floor"


def clocks() -> Cost:
    """Both, now."""
    return time.perf_counter(), time.process_time()


def since(began: Cost) -> Cost:
    """Both, since then."""
    seconds, cpu = clocks()
    return seconds - began[0], cpu - began[1]


def bare(workload: Workload) -> tuple[Book, Cost]:
    """The floor."""
    began = clocks()
    book = floor.sorted_dicts(workload.messages)
    return book, since(began)


async def replay(workload: Workload, recording: Any, *sections: Any) -> Cost:
    """Read every update of the last section."""
    began, count = clocks(), 0
    async with Pipeline.create(Replay(recording), Decoder(), *sections) as pipeline, pipeline.tap() as updates:
        async for _ in updates:
            count += 1
    cost = since(began)
    assert count == workload.deltas + 1
    return cost


def to_book(workload: Workload, recording: Any, *before: Any) -> tuple[Book, Cost]:
    """Through Replay, Decoder, perhaps something ``before``, OrderBookMerger."""
    merger = OrderBookMerger()
    cost = trio.run(replay, workload, recording, *before, merger)
    return levels_of(merger), cost


def to_tables(workload: Workload, recording: Any) -> tuple[Book, Cost]:
    """Through Replay, Decoder, TableApplier."""
    tables = TableApplier()
    cost = trio.run(replay, workload, recording, tables)
    return floor.sizes(tables.storage.data["orderBookL2"]["XBTUSD"]), cost


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Each beside a floor of its own."""
    workload = workload_of(scaled(options, 40_000), scaled(options, 2_000))
    lines = b"".join(b"2026-01-01T00:00:00.0000000Z " + message + b"\n" for message in workload.messages)
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "recording.gz")
        file.write_bytes(gzip.compress(lines, 6))
        ways: dict[str, Way] = {
            "recording to book": lambda: to_book(workload, io.BytesIO(lines)),
            "recording to tables": lambda: to_tables(workload, io.BytesIO(lines)),
            "recording to book, through tables": lambda: to_book(workload, io.BytesIO(lines), TableApplier()),
            "gzip file to book": lambda: to_book(workload, file),
        }
        for name, way in ways.items():
            least, least_cpu = cost_of(FLOOR, workload, lambda: bare(workload))
            yield Figure(FLOOR, least, "messages/s")
            yield Figure(f"{FLOOR}, CPU", least_cpu, "us/message")
            rate, cpu = cost_of(name, workload, way)
            yield Figure(name, rate, "messages/s", rate / least)
            yield Figure(f"{name}, CPU", cpu, "us/message", cpu / least_cpu)


def cost_of(name: str, workload: Workload, way: Way) -> tuple[float, float]:
    """Messages per second, and us of CPU a message; the book is checked."""
    gc.collect()
    book, (seconds, cpu) = way()
    check(name, book, workload)
    return workload.deltas / seconds, cpu / workload.deltas * 1e6


if __name__ == "__main__":
    run(__doc__, measure)
