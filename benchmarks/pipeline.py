"""Messages per second from a recording, and from a socket, to an exact order book: `python -m benchmarks.pipeline`.

Each figure stands beside a floor measured in the same run: a bare loop of JSON decoding and a dictionary a side.
Compare the ratios; the numbers are those of your machine and its mood. Every book is checked level by level.
"""

from __future__ import annotations

import argparse
import io
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import trio

from bitmex_streams import Connection, Decoder, OrderBookMerger, Pipeline, Replay, TableApplier

from . import floor
from .workload import Book, Workload


async def run_pipeline(deltas: int, source: Any, *between: Any) -> tuple[Book, float]:
    """Read every update from one tap on the last stage; the book, and the seconds from the first delta to the last."""
    merger = OrderBookMerger()
    async with Pipeline.create(source, Decoder(), *between, merger) as pipeline, pipeline.tap() as updates:
        assert (await updates.receive()).changes is None  # the partial
        began, left = 0.0, deltas
        async for _ in updates:
            began = began or time.perf_counter()
            left -= 1
            if not left:
                break
        seconds = time.perf_counter() - began
        book = merger.books["XBTUSD"]
        return {"Buy": dict(book.bids), "Sell": dict(book.asks)}, seconds


@contextmanager
def feed(deltas: int, levels: int) -> Any:
    """The port of a feed in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.feed", str(deltas), str(levels)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


def measure(
    name: str, workload: Workload, run: Callable[[], tuple[Book, float]], rounds: int, base: float = 0
) -> float:
    """Run it some times; print and return the median of messages per second."""
    rates = []
    for _ in range(rounds):
        book, seconds = run()
        if book != workload.book:
            sys.exit(f"{name}: the book is wrong")
        rates.append(workload.deltas / seconds)
    rate = statistics.median(rates)
    ratio = f"{rate / base:8.3f} of the floor" if base else "          the floor"
    print(f"{name:<58}{rate:>12,.0f} messages/s{ratio}, book exact", flush=True)
    return rate


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=40_000, help="deltas in the workload")
    parser.add_argument("--levels", type=int, default=2_000, help="levels a side")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, of which the median counts")
    options = parser.parse_args()
    workload = Workload(options.messages, options.levels)
    lines = b"".join(b"2026-01-01T00:00:00.0000000Z " + message + b"\n" for message in workload.messages)
    print(f"Python {sys.version.split()[0]}, trio {trio.__version__}; ", end="")
    print(f"{options.messages:,} messages, {options.levels:,} levels a side")

    def replay(*between: Any) -> tuple[Book, float]:
        return trio.run(run_pipeline, options.messages, Replay(io.BytesIO(lines)), *between)

    def bare() -> tuple[Book, float]:
        return floor.apply(line[29:] for line in lines.splitlines())

    base = measure("recording: bare loop (orjson, dict)", workload, bare, options.rounds)
    measure("recording: Replay, Decoder, OrderBookMerger", workload, replay, options.rounds, base)
    with_tables = "recording: Replay, Decoder, TableApplier, OrderBookMerger"
    measure(with_tables, workload, lambda: replay(TableApplier()), options.rounds, base)
    with feed(options.messages, options.levels) as port:

        def bare_socket() -> tuple[Book, float]:
            return floor.apply(floor.from_socket(port))

        def connect() -> tuple[Book, float]:
            topics = ["orderBookL2:XBTUSD", "trade:XBTUSD"]
            source = Connection(f"ws://127.0.0.1:{port}/realtime", subscribe=topics)
            return trio.run(run_pipeline, options.messages, source)

        base = measure("socket: bare loop (socket, orjson, dict)", workload, bare_socket, options.rounds)
        measure("socket: Connection, Decoder, OrderBookMerger", workload, connect, options.rounds, base)


if __name__ == "__main__":
    main()
