"""A deterministic order book workload: a partial, then deltas in the proportions of a real day of XBTUSD.

A 2021 capture had 55 % updates, 22 % inserts, 23 % deletes, and 1.3 rows a message.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from typing import Any

import orjson

TIMESTAMP = "2026-01-01T00:00:00.000Z"
TICK = 0.5
MIDDLE = 128_000  # ticks
LAST_SIZE = 424_242
"""The size of the trade that marks the end."""

BOOK_TYPES = {
    "symbol": "symbol", "id": "long", "side": "symbol", "size": "long", "price": "float",
    "timestamp": "timestamp", "transactTime": "timestamp",
}  # fmt: skip

Book = dict[str, dict[float, int]]


def partial(
    table: str, keys: list[str], types: dict[str, str], attributes: dict[str, str], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """A partial of one symbol."""
    about = {"keys": keys, "types": types, "foreignKeys": {"symbol": "instrument"}, "attributes": attributes}
    return {"table": table, "action": "partial", **about, "filter": {"symbol": "XBTUSD"}, "data": rows}


def stamp(message: bytes, time: float) -> bytes:
    """The message with other timestamps: ``time`` (s, time.monotonic), to the microsecond, as if counted since 1970."""
    seconds, fraction = divmod(time, 1)
    return message.replace(TIMESTAMP.encode(), b"%s.%06dZ" % (_iso(int(seconds)), int(fraction * 1e6)))


@lru_cache(1)
def _iso(seconds: int) -> bytes:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()


def stamped(timestamp: str) -> float:
    """The time (s, time.monotonic) that `stamp` has written."""
    return datetime.fromisoformat(timestamp).timestamp()


class Workload:
    """``messages``: list of encoded JSON (bytes): a partial of ``levels`` levels a side, ``deltas`` deltas, and a last
    trade.

    ``book``: side -> {price: size}, as it must be at the end.
    """

    def __init__(self, deltas: int, levels: int, seed: int = 1) -> None:
        self._random = random.Random(seed)
        self._live: dict[str, dict[int, int]] = {
            "Buy": {MIDDLE - 1 - level: self._size() for level in range(levels)},
            "Sell": {MIDDLE + level: self._size() for level in range(levels)},
        }
        self._order = {side: list(ticks) for side, ticks in self._live.items()}
        self._gone: dict[str, list[int]] = {"Buy": [], "Sell": []}
        rows = [self._row(side, ticks) for side in ("Sell", "Buy") for ticks in sorted(self._live[side], reverse=True)]
        self.deltas = deltas
        self.levels = levels
        self.messages = [
            orjson.dumps(
                partial("orderBookL2", ["symbol", "id", "side"], BOOK_TYPES, {"id": "sorted", "symbol": "parted"}, rows)
            ),
            *(orjson.dumps(self._delta()) for _ in range(deltas)),
            orjson.dumps(
                {
                    "table": "trade",
                    "action": "insert",
                    "data": [{"timestamp": TIMESTAMP, "symbol": "XBTUSD", "size": LAST_SIZE, "price": 64000}],
                }
            ),
        ]
        self.book: Book = {
            side: {ticks * TICK: size for ticks, size in level.items()} for side, level in self._live.items()
        }

    def _size(self) -> int:
        return self._random.randrange(1, 10_000) * 100

    def _row(self, side: str, ticks: int) -> dict[str, Any]:
        return {
            "symbol": "XBTUSD",
            "id": 8_800_000_000 - ticks,
            "side": side,
            "size": self._live[side][ticks],
            "price": ticks * TICK,
            "timestamp": TIMESTAMP,
            "transactTime": TIMESTAMP,
        }

    def _delta(self) -> dict[str, Any]:
        rng = self._random
        side = rng.choice(("Buy", "Sell"))
        count = 1 if rng.random() < 0.75 else rng.randrange(2, 4)
        action = rng.choices(("update", "insert", "delete"), (55, 22, 23))[0]
        if action == "insert" and len(self._gone[side]) < count:
            action = "update"
        live, order, gone = self._live[side], self._order[side], self._gone[side]
        rows = []
        for _ in range(count):
            if action == "insert":
                ticks = gone.pop(rng.randrange(len(gone)))
                order.append(ticks)
            else:
                # Most of what happens, happens near the top.
                near = rng.random() < 0.8 and action == "update"
                place = min(int(rng.expovariate(1 / 40)), len(order) - 1) if near else rng.randrange(len(order))
                ticks = order[place]
            if action == "delete":
                order[place] = order[-1]
                order.pop()
                gone.append(ticks)
                row = self._row(side, ticks)
                del live[ticks], row["size"]
            else:
                live[ticks] = self._size()
                row = self._row(side, ticks)
            rows.append(row)
        return {"table": "orderBookL2", "action": action, "data": rows}


workload_of = cache(Workload)
"""The workload of so many deltas and levels a side, made once."""


def trade_rows(count: int) -> list[dict[str, Any]]:
    """Rows of trade, as of 2026; a fifth of a second apart."""
    began = datetime(2026, 1, 1, tzinfo=UTC)
    return [
        {
            "timestamp": f"{began + timedelta(milliseconds=200 * number):%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z",
            "symbol": "XBTUSD", "side": "Buy", "size": 100 + number, "price": 64000.5, "tickDirection": "ZeroPlusTick",
            "trdMatchID": f"00000000-0000-0000-0000-{number:012}", "grossValue": 156_250 + number,
            "homeNotional": 0.0015625, "foreignNotional": 100 + number, "trdType": "Regular",
        }
        for number in range(count)
    ]  # fmt: skip


def order_rows(count: int) -> list[dict[str, Any]]:
    """Rows of order, as of 2026."""
    return [
        {
            "orderID": f"00000000-0000-0000-0000-{number:012}", "clOrdID": f"mine-{number}", "account": 1_000_000,
            "symbol": "XBTUSD", "strategy": "OneWay", "side": "Buy", "orderQty": 100 + number, "price": 64000.5,
            "currency": "USD", "settlCurrency": "XBt", "ordType": "Limit", "timeInForce": "GoodTillCancel",
            "execInst": "", "ordStatus": "New", "workingIndicator": True, "leavesQty": 100 + number, "cumQty": 0,
            "avgPx": None, "text": "Submitted via API.", "transactTime": TIMESTAMP, "timestamp": TIMESTAMP,
        }
        for number in range(count)
    ]  # fmt: skip


def partial_of(table: str, rows: list[dict[str, Any]]) -> bytes:
    """A partial of trade or order, encoded."""
    keys, attributes = ([], {"timestamp": "sorted"}) if table == "trade" else (["orderID"], {"orderID": "grouped"})
    types = {"timestamp": "timestamp", "symbol": "symbol", "price": "float"}
    return orjson.dumps(partial(table, keys, types, attributes, rows))
