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
from .workload import LAST_SIZE, Book, Workload


async def run_pipeline(source: Any, *between: Any) -> tuple[Book, float]:
    """Everything up to the trade that marks the end, read from a tap on the last stage; the book, and the seconds from
    the first delta.
    """
    decoder, merger = Decoder(), OrderBookMerger()
    async with Pipeline.create(source, decoder, *between, merger) as pipeline, trio.open_nursery() as nursery:

        async def until_the_last_trade(trades: Any) -> None:
            async for message in trades:
                if getattr(message, "table", "") == "trade" and message.rows and message.rows[0]["size"] == LAST_SIZE:
                    break
            updates.close()

        updates = pipeline.tap(start=False)
        if isinstance(source, Connection):
            nursery.start_soon(until_the_last_trade, pipeline.tap(decoder, overflow="latest", start=False))
        pipeline.start()
        began = 0.0
        try:
            async for update in updates:
                if not began and update.changes is not None:  # the partial has none
                    began = time.perf_counter()
        except trio.ClosedResourceError:
            pass
        seconds = time.perf_counter() - began
        nursery.cancel_scope.cancel()
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
        return trio.run(run_pipeline, Replay(io.BytesIO(lines)), *between)

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
            return trio.run(run_pipeline, Connection(f"ws://127.0.0.1:{port}/realtime", subscribe=topics))

        base = measure("socket: bare loop (socket, orjson, dict)", workload, bare_socket, options.rounds)
        measure("socket: Connection, Decoder, OrderBookMerger", workload, connect, options.rounds, base)


if __name__ == "__main__":
    main()
