"""From a socket to a tap, in us: `python -m benchmarks.latency`.

A feed sends 1,000, 5,000 and 20,000 messages a second, each with the time at which it was sent; a client notes when its
consumer has the update (for the floor: when the dictionaries have it). All are processes of their own on one machine,
and read the same clock. The first tenth is not counted. Where a client cannot keep up, the figures only show how long
the feed went on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from .loopback import Feed, open_feed
from .measure import Figure, run, scaled
from .workload import stamped, workload_of

RATES = (1_000, 5_000, 20_000)  # messages a second
SECONDS = 3
PERCENTILES = (50, 99, 99.9)
CLIENTS = {"floor": "floor", "fast transport": "fast", "default transport": "default"}


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Each client at each rate."""
    for rate in RATES:
        workload = workload_of(scaled(options, rate * SECONDS), scaled(options, 2_000))
        floor: dict[float, float] = {}
        with open_feed(workload, rate) as feed:
            for name, kind in CLIENTS.items():
                found = latencies(feed, kind)
                for percentile, latency in found.items():
                    ratio = latency / floor[percentile] if floor else None
                    yield Figure(f"latency at {rate:,}/s, {name}, p{percentile}", latency, "us", ratio)
                floor = floor or found


def latencies(feed: Feed, kind: str) -> dict[float, float]:
    """The percentiles (us) of one client."""
    arrivals = feed.run_client(kind, "arrivals")["arrivals"]
    assert len(arrivals) == feed.workload.deltas
    late = [at - stamped(timestamp) for timestamp, at in arrivals[len(arrivals) // 10 :]]
    late.sort()
    return {percentile: late[int(len(late) * percentile / 100)] * 1e6 for percentile in PERCENTILES}


if __name__ == "__main__":
    run(__doc__, measure)
