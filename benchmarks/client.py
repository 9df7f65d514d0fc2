"""One client of the feed, in a process of its own: `python -m benchmarks.client KIND [arrivals] PORT DELTAS`.

KIND is ``floor``, or a transport of ours (``default``, ``fast``). It follows the workload to its end, and prints, as
JSON: ``ended``, when it had the last delta (time.monotonic); ``cpu``, the seconds of its CPU from connecting to then;
``book``, side -> [[price, size], ...]; and, where asked for, ``arrivals``: [the timestamp in a delta, when it was
there], one for each.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import orjson
import trio

from bitmex_streams import Connection, Decoder, OrderBookMerger, Pipeline, Tap

from . import floor
from .measure import levels_of
from .workload import Book

Arrivals = list[tuple[str, float]]


def report(book: Book, cpu: float, ended: float, arrivals: Any = None) -> None:
    """Print what came of it."""
    levels = {side: list(of_side.items()) for side, of_side in book.items()}
    print(orjson.dumps({"ended": ended, "cpu": cpu, "book": levels, "arrivals": arrivals}).decode())


def bare(port: int, arrivals: Arrivals | None) -> None:
    """Without a library."""
    began = time.process_time()
    rows = floor.nested_dicts(floor.from_socket(port), arrivals)
    ended, cpu = time.monotonic(), time.process_time() - began
    report(floor.sizes(rows), cpu, ended, arrivals)


async def count(updates: Tap, deltas: int) -> None:
    """Read so many."""
    async for _ in updates:
        deltas -= 1
        if not deltas:
            break


async def note(updates: Tap, deltas: int, arrivals: Arrivals) -> None:
    """Read so many, and note when each came."""
    async for update in updates:
        arrivals.append((update.timestamp, time.monotonic()))
        if len(arrivals) == deltas:
            break


async def ours(transport: str, port: int, deltas: int, arrivals: Arrivals | None) -> None:
    """Connection, Decoder, OrderBookMerger; and one tap at the end, of which every update is read."""
    began = time.process_time()
    merger = OrderBookMerger()
    topics = ["orderBookL2:XBTUSD", "trade:XBTUSD"]
    connection = Connection(f"ws://127.0.0.1:{port}/realtime", subscribe=topics, transport=transport)
    async with Pipeline.create(connection, Decoder(), merger) as pipeline, pipeline.tap() as updates:
        partial = await updates.receive()
        assert partial.changes is None
        await (count(updates, deltas) if arrivals is None else note(updates, deltas, arrivals))
        ended, cpu = time.monotonic(), time.process_time() - began
        report(levels_of(merger), cpu, ended, arrivals)


def main() -> None:
    """Follow the feed once."""
    kind, *asked, port, deltas = sys.argv[1:]
    arrivals: Arrivals | None = [] if asked else None
    if kind == "floor":
        bare(int(port), arrivals)
    else:
        trio.run(ours, kind, int(port), int(deltas), arrivals)


if __name__ == "__main__":
    main()
