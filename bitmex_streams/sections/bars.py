"""Trades to bars.

A trade is of the bar in which its exchange timestamp lies. A bar ends when a trade of its symbol comes from a later
one, or when its end, and a second of grace (and the least delay of a trade so far) for what is still on its way, has
passed by ``received``. What makes a bar complete is that the partial that began (or last restored) the trust in its
symbol came no later than the bar's start.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

from ..coverage import Coverage, Topic
from ..messages import Bar, Disconnected, StateLost, TableMessage, TableUpdate
from ..operator import Operator
from ..timestamps import to_iso, to_nanoseconds

__all__ = ["Bars"]

_SECOND = 1_000_000_000
_INTERVALS = {"1m": 60 * _SECOND, "5m": 300 * _SECOND, "1h": 3600 * _SECOND, "1d": 86400 * _SECOND}
_GRACE = _SECOND


class _Symbol:
    """One symbol: the bar in the making, which ends at ``end`` (ns), and the last price known."""

    __slots__ = ("end", "high", "last", "late", "low", "notional", "open", "trades", "volume")

    def __init__(self, end: int) -> None:
        self.last: Any = None
        self.begin(end)

    def begin(self, end: int) -> None:
        self.end = end
        self.open: Any = None
        self.high: Any = None
        self.low: Any = None
        self.volume = 0
        self.notional: Any = 0
        self.trades = 0
        self.late = False

    def add(self, price: Any, size: int) -> None:
        if not self.trades:
            self.open = self.high = self.low = price
        elif price > self.high:
            self.high = price
        elif price < self.low:
            self.low = price
        self.last = price
        self.trades += 1
        self.volume += size
        self.notional += price * size

    @property
    def vwap(self) -> Any:
        if not self.volume:
            return None
        return min(max(self.notional / self.volume, self.low), self.high)  # rounding may have left the range by an ulp


class Bars(Operator):
    """Make `Bar` items of the trades in `TableMessage` or `TableUpdate` items of the table ``trade``, for each
    symbol.

    ``interval``: ``"1m"``, ``"5m"``, ``"1h"`` or ``"1d"`` (else ValueError). As in BitMEX's tradeBin tables, a bar is
    labelled with its *end* and holds the trades from its start up to, not including, that end; and there is one for
    every interval, with the last price as all four prices where nothing was traded (None where no trade was ever
    seen). Other than there, ``open`` is the price of the bar's first trade, where BitMEX repeats the close before;
    and ``vwap`` is weighted by contracts and not rounded.

    Trades begin to count with the first partial that covers their symbol. The rows of a partial are old trades: they
    give the last price, and are not counted. Prints of an index (trdType ``Referential``, size 0) count as trades
    without volume.

    ``complete`` is False where trades may be missing: in a bar that began before the partial did, that saw a loss of
    state (`Disconnected`, `StateLost`, a stale `TableUpdate`), or in which the input ended; and in one during which a
    trade came for a bar already put out, which is then counted in `late`. Marks, other tables and the exchange's
    answers are taken in; items of kinds that are not ours pass.
    """

    late: int
    """How many trades came when their bar was out, and so are in no bar."""

    def __init__(self, interval: Literal["1m", "5m", "1h", "1d"] = "1m") -> None:
        if interval not in _INTERVALS:
            raise ValueError(f"the interval of Bars is one of {', '.join(_INTERVALS)}, not {interval!r}")
        self.interval = interval
        self.late = 0
        self._length = _INTERVALS[interval]
        self._symbols: dict[str, _Symbol] = {}
        self._coverage = Coverage()
        self._lag: int | None = None  # the least delay of a trade so far: large where the local clock is ahead
        self._since: dict[Any, int] = {}  # by the scope of a topic: the time from which its trades are all there

    def process(self, item: Any) -> Iterable[Any]:
        kind = type(item)
        if kind is TableMessage or kind is TableUpdate:
            if item.table == "trade":
                if item.action == "insert":
                    return self._insert(item)
                if item.action == "partial":
                    self._load(item)
                elif item.action == "stale":
                    self._coverage.lose_scope("trade", item.filter, item.source, item.reason)
            return ()
        if kind is Disconnected or kind is StateLost:
            self._coverage.lose_by(item)
            return ()
        return () if kind.__module__ == TableMessage.__module__ else (item,)

    def on_time(self, now: int) -> Iterator[Bar]:
        grace = self._grace
        while (end := min(state.end for state in self._symbols.values())) + grace <= now:
            for symbol, state in self._symbols.items():
                if state.end == end:
                    yield self._close(symbol, state, end + grace)
        self.deadline = end + grace

    def finish(self) -> Iterator[Bar]:
        for symbol, state in self._symbols.items():
            if state.trades:
                yield self._close(symbol, state, self.now, ended=True)
        self._symbols.clear()
        self.deadline = None

    def _load(self, partial: TableMessage | TableUpdate) -> None:
        topic = Topic("trade", partial.filter, partial.source)
        rows = [row for row in partial.rows if row.get("symbol") and row.get("price") is not None]
        begin = max([partial.received, *(to_nanoseconds(row["timestamp"]) for row in rows if row.get("timestamp"))])
        before = self._coverage.find("trade", dict(topic.filter))
        if before is not None and not before.stale and before.source == topic.source:
            begin = self._since[before.scope]  # repeated, or narrowed, without a loss
        self._coverage.cover(topic)
        self._since[topic.scope] = begin
        for row in rows:
            self._state(row["symbol"], begin).last = row["price"]
        if isinstance(topic.scope, str):
            self._state(topic.scope, begin)

    def _insert(self, item: TableMessage | TableUpdate) -> Iterator[Bar]:
        for row in item.rows:
            topic = self._coverage.find("trade", row)
            if topic is None or topic.stale or topic.source != item.source:
                continue  # no partial yet, or none since the last loss of state
            symbol, price = row.get("symbol"), row.get("price")
            if symbol is None or price is None:
                continue
            try:
                time = to_nanoseconds(row["timestamp"])
            except (KeyError, TypeError, ValueError):
                where = item.source or "its source"
                raise ValueError(f"a trade without a valid timestamp came from {where}: {row!r}") from None
            if self._lag is None or item.received - time < self._lag:
                self._lag = item.received - time
            state = self._state(symbol, time)
            if state.last is None and not state.trades and time >= state.end:
                state.begin(self._end(time))  # nothing known before it: no bars to fill in
            while time >= state.end:
                yield self._close(symbol, state, item.received)
            if time < state.end - self._length:
                self.late += 1
                state.late = True
            else:
                state.add(price, row.get("size") or 0)

    @property
    def _grace(self) -> int:
        return _GRACE + max(0, self._lag or 0)

    def _end(self, time: int) -> int:
        return time - time % self._length + self._length

    def _state(self, symbol: str, time: int) -> _Symbol:
        state = self._symbols.get(symbol)
        if state is None:
            state = self._symbols[symbol] = _Symbol(self._end(time))
            if self.deadline is None or state.end + self._grace < self.deadline:
                self.deadline = state.end + self._grace
        return state

    def _close(self, symbol: str, state: _Symbol, received: int, *, ended: bool = False) -> Bar:
        """The bar in the making, put out; the next one begins."""
        end = state.end
        topic = self._coverage.find("trade", {"symbol": symbol})
        trusted = topic is not None and not topic.stale and self._since[topic.scope] <= end - self._length
        complete = trusted and not state.late and not ended
        if state.trades:
            open, high, low = state.open, state.high, state.low
        else:
            open = high = low = state.last
        bar = Bar(
            symbol, self.interval, to_iso(end), open, high, low, state.last, state.volume, state.trades, state.vwap,
            complete, received,
        )
        state.begin(end + self._length)
        return bar
