"""From a socket to an exact order book, in messages per second: `python -m benchmarks.live`.

The feed is a process, and each client is one: the floor (a blocking socket, JSON, dictionaries), and ours with both
transports (Connection, Decoder, OrderBookMerger, and a tap at the end of which every update is read).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence

from .loopback import Feed, open_feed
from .measure import Figure, run, scaled
from .workload import workload_of

FLOOR = "socket to book, floor"
CLIENTS = {
    f"socket to book, {transport} transport": [sys.executable, "-m", "benchmarks.client", transport]
    for transport in ("fast", "default")
}


def measure(options: argparse.Namespace, clients: Mapping[str, Sequence[str]] = CLIENTS) -> Iterator[Figure]:
    """One after the other, each behind a floor of its own."""
    workload = workload_of(scaled(options, 40_000), scaled(options, 2_000))
    with open_feed(workload) as feed:
        for name, command in clients.items():
            least, least_cpu = cost_of(feed, FLOOR, [sys.executable, "-m", "benchmarks.client", "floor"])
            yield Figure(FLOOR, least, "messages/s")
            yield Figure(f"{FLOOR}, CPU", least_cpu, "us/message")
            rate, cpu = cost_of(feed, name, command)
            yield Figure(name, rate, "messages/s", rate / least)
            yield Figure(f"{name}, CPU", cpu, "us/message", cpu / least_cpu)


def cost_of(feed: Feed, name: str, command: Sequence[str]) -> tuple[float, float]:
    """Messages per second, and us of the client's CPU a message (connecting and the partial included)."""
    report = feed.run(name, command)
    return feed.workload.deltas / report["seconds"], report["cpu"] / feed.workload.deltas * 1e6


if __name__ == "__main__":
    run(__doc__, measure)
