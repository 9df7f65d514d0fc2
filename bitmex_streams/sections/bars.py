"""Trades to bars.

Two clocks are at work. A trade is of the bar in which its *exchange timestamp* lies, and bars open and follow each
other by those timestamps. `received` is of another clock: a little ahead or behind, or years away, where a server
plays old data. The least delay of a trade so far maps one to the other, source by source. `received` serves for two
things only: to close a bar in which nothing more is traded, a second of grace after its end; and to tell when a
partial came, so which bars are complete. Before the first trade, the age of a partial's newest row stands for the
delay, which is no more than that; without a row, nothing is known, and no bar is closed by ``received``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from numbers import Number
from typing import Any, Literal

from ..coverage import Coverage, Topic
from ..messages import Bar, Disconnected, Row, StateLost, TableMessage, TableUpdate, Unsubscribed, symbol_of
from ..operator import Operator
from ..timestamps import to_iso, to_nanoseconds

__all__ = ["Bars"]

log = logging.getLogger("bitmex_streams")

_SECOND = 1_000_000_000
_DAY = 86400 * _SECOND
_INTERVALS = {"1m": 60 * _SECOND, "5m": 300 * _SECOND, "1h": 3600 * _SECOND, "1d": _DAY}
_GRACE = _SECOND
_FILLED = 1440
"""How many bars without trades are filled in at once, at most."""
_LAST_TIME = to_nanoseconds("9999-01-01T00:00:00Z")  # the bars of later ones have ends that no date has


class _Partial:
    """When a partial came, by the exchange's clock (ns).

    It was no earlier than its newest row (``row``), and no later than the first trade behind it (``first``). Between
    these, it was ``lag`` before it was received.
    """

    __slots__ = ("first", "received", "row", "time")

    def __init__(self, received: int, row: int, lag: int) -> None:
        self.received = received
        self.row = row
        self.first: int | None = None
        self.time = max(row, received - lag)

    def refine(self, lag: int) -> None:
        """A lesser delay was seen: the partial may have come later than was thought."""
        if self.first is not None:
            self.time = min(max(self.time, self.received - lag), self.first)

    def followed_by(self, first: int, lag: int, limit: int) -> None:
        """The first trade behind it. What is further from it than ``limit`` is not of the same clock."""
        self.first = first
        self.time = min(max(self.row, self.received - lag), first)
        if self.time < first - limit:
            self.time = first


class _Symbol:
    """One symbol: the bar in the making, which ends at ``end`` (ns; None: not before a trade tells when), and the
    last price known.

    ``fresh``: no trade was added and no bar put out so far, so that ``end`` can still be corrected. ``astray``: the
    last trade was too far from the bar in the making to be believed.
    """

    __slots__ = (
        "astray", "end", "fresh", "high", "last", "late", "low", "notional", "open", "source", "trades", "volume",
        "warned",
    )

    def __init__(self, source: str, end: int | None) -> None:
        self.source = source
        self.last: Any = None
        self.fresh = True
        self.astray = False
        self.warned = False
        self.begin(end)

    def begin(self, end: int | None) -> None:
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
    state (`Disconnected`, `StateLost`, `Unsubscribed`, a stale `TableUpdate`), or in which the input ended; and in one
    during which a trade came for a bar already put out, which is then counted in `late` (and logged as a warning, once
    for each symbol). A trade that cannot be one (no symbol, timestamp, price or size, or of a wrong type) is a loss of
    the state of its topic: logged, and a new partial is asked for by `resync`.

    Time: bars follow the exchange's timestamps, also where ``received`` is of another time, as with a server that
    plays old data. Where a topic's first partial is more than a day from ``received``, or no partial of its source had
    any rows, there are no bars before the first trade has told how both clocks go together; else, until then, bars
    come later by the age that the newest row had in the partial. At most 1440 bars without trades are filled in at
    once; after a longer silence the bars begin anew with the next one, which is not complete. One trade more than
    1440 bars away from the bar in the making (a timestamp of the year 2999) is taken for an error, and counted in
    `late`; a second one in a row is believed, and begins anew there.

    Marks, other tables and the exchange's answers are taken in; items of kinds that are not ours pass.
    """

    needs_all = True

    late: int
    """How many trades came when their bar was out, or with a time that was not believed, and so are in no bar."""

    def __init__(self, interval: Literal["1m", "5m", "1h", "1d"] = "1m") -> None:
        if interval not in _INTERVALS:
            raise ValueError(f"the interval of Bars is one of {', '.join(_INTERVALS)}, not {interval!r}")
        self.interval = interval
        self.late = 0
        self._length = _INTERVALS[interval]
        self._limit = _FILLED * self._length
        self._symbols: dict[str, _Symbol] = {}
        self._coverage = Coverage()
        self._lag: dict[str, int] = {}  # by source: the least delay of a trade so far (ns)
        self._age: dict[str, int] = {}  # by source: the least age of a partial's newest row (ns); the delay is no more
        self._partials: dict[Any, _Partial] = {}  # by the scope of a topic

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
        if kind is Disconnected or kind is StateLost or kind is Unsubscribed:
            self._coverage.lose_by(item)
            if kind is StateLost and self.resync is not None:  # by the others, nothing is to be asked for
                for topic in self._coverage.concerned(item.source, item.topic):
                    self.resync(topic.name)
            return ()
        return () if kind.__module__ == TableMessage.__module__ else (item,)

    def on_time(self, now: int) -> Iterator[Bar]:
        while (due := self._next_due()) is not None and due <= now:
            for symbol, state in self._symbols.items():
                if self._due(state) != due:
                    continue
                assert state.end is not None
                if now - due <= self._limit:
                    yield self._close(symbol, state, due)
                    continue
                time = state.end + now - due
                if state.trades:
                    yield self._close(symbol, state, due)
                self._begin_anew(state, time)
        self.deadline = due

    def finish(self) -> Iterator[Bar]:
        for symbol, state in self._symbols.items():
            if state.trades:
                yield self._close(symbol, state, self.now, ended=True)
        self._symbols.clear()
        self.deadline = None

    def _load(self, partial: TableMessage | TableUpdate) -> None:
        topic, received, source = Topic("trade", partial.filter, partial.source), partial.received, partial.source
        prices: dict[str, Any] = {}
        times = []
        for row in partial.rows:
            try:
                symbol, time, price, _ = _trade(row)
            except (ValueError, ArithmeticError):
                continue  # an old trade: nothing is lost without it
            if price is not None:
                prices[symbol] = price
                times.append(time)
        newest = max(times, default=0)
        if times:
            self._age[source] = min(received - newest, self._age.get(source, received - newest))
        lag = self._lag.get(source)
        before = self._coverage.find("trade", dict(topic.filter))
        if before is not None and not before.stale and before.source == source:
            begun = self._partials[before.scope]  # repeated, or narrowed, without a loss
        else:
            begun = _Partial(received, newest, lag or 0)
        self._coverage.cover(topic)
        self._partials[topic.scope] = begun
        agreed = lag is not None or not times or abs(received - newest) <= _DAY
        if isinstance(topic.scope, str):
            prices.setdefault(topic.scope, None)
        for symbol, price in prices.items():
            state = self._symbols.get(symbol)
            if state is None:
                state = self._symbols[symbol] = _Symbol(source, self._end(begun.time) if agreed else None)
            state.source = source
            if price is not None:
                state.last = price
        self.deadline = self._next_due()

    def _insert(self, item: TableMessage | TableUpdate) -> Iterator[Bar]:
        for row in item.rows:
            topic = self._coverage.find("trade", row)
            if topic is None or topic.stale or topic.source != item.source:
                continue  # no partial yet, or none since the last loss of state
            try:
                symbol, time, price, size = _trade(row)
            except (ValueError, ArithmeticError) as error:
                topic.stale = f"{topic.name}: a row from {item.source or 'its source'} is no trade, {error}"
                log.warning("state lost: %s", topic.stale)
                if self.resync is not None:
                    self.resync(topic.name)
                continue
            if price is not None:
                yield from self._add(topic, symbol, time, price, size, item.received)

    def _add(self, topic: Topic, symbol: str, time: int, price: Any, size: int, received: int) -> Iterator[Bar]:
        length, limit, partial = self._length, self._limit, self._partials[topic.scope]
        state = self._symbols.get(symbol)
        if state is not None and not state.fresh and not time - limit <= self._started(state) <= time + limit:
            if not state.astray:
                state.astray = True
                self._miss(symbol, state, time, "is too far from the one before")
                return
            if state.trades:
                yield self._close(symbol, state, received)
            self._begin_anew(state, time)
            self._lag[topic.source] = received - time
            self.deadline = self._next_due()
            partial.first = time if partial.first is None else min(partial.first, time)
        self._observe(topic.source, received - time)
        if partial.first is None:
            partial.followed_by(time, self._lag[topic.source], limit)
            for name, other in self._symbols.items():
                if other.fresh and self._coverage.find("trade", {"symbol": name}) is topic:
                    other.begin(self._end(partial.time))
                    self._schedule(other)
        else:
            partial.refine(self._lag[topic.source])
        if state is None:
            state = self._symbols[symbol] = _Symbol(topic.source, self._end(time))
            self._schedule(state)
        elif state.fresh and (state.end is None or state.last is None or not time - limit < state.end - length <= time):
            # Nothing is known before it: no bars to fill in.
            state.begin(self._end(time))
            self._schedule(state)
        state.astray = False
        if state.source != topic.source:
            state.source = topic.source
            self._schedule(state)
        assert state.end is not None
        while time >= state.end:
            yield self._close(symbol, state, received)
        if time < state.end - length:
            self._miss(symbol, state, time, "came when its bar was out")
            self._lag[topic.source] = received - time  # so was the least delay too small, when the clock was set, say
        else:
            state.fresh = False
            state.add(price, size)

    def _miss(self, symbol: str, state: _Symbol, time: int, why: str) -> None:
        self.late += 1
        state.late = True
        if not state.warned:
            state.warned = True
            log.warning("a trade of %s at %s %s: it is in no bar of %s (told once; see `late`)",
                        symbol, to_iso(time), why, self.interval)

    # --- time ---

    def _observe(self, source: str, delay: int) -> None:
        least = self._lag.get(source)
        if least is None or delay < least:
            self._lag[source] = delay
            if least is None:
                self.deadline = self._next_due()
            elif self.deadline is not None:
                self.deadline -= max(0, least) - max(0, delay)

    def _due(self, state: _Symbol) -> int | None:
        """When (by ``received``) the bar in the making ends for want of trades; None: that is not known yet. A clock
        that is behind, and an exchange that runs faster than the clock, close no bar early."""
        lag = self._lag.get(state.source, self._age.get(state.source))
        if state.end is None or lag is None:
            return None
        return state.end + _GRACE + max(0, lag)

    def _next_due(self) -> int | None:
        return min((due for state in self._symbols.values() if (due := self._due(state)) is not None), default=None)

    def _schedule(self, state: _Symbol) -> None:
        due = self._due(state)
        if due is not None and (self.deadline is None or due < self.deadline):
            self.deadline = due

    def _end(self, time: int) -> int:
        return time - time % self._length + self._length

    def _started(self, state: _Symbol) -> int:
        assert state.end is not None
        return state.end - self._length

    def _begin_anew(self, state: _Symbol, time: int) -> None:
        state.begin(self._end(time))
        state.late = True  # not complete: what was before is not known
        self._schedule(state)

    def _close(self, symbol: str, state: _Symbol, received: int, *, ended: bool = False) -> Bar:
        """The bar in the making, put out; the next one begins."""
        assert state.end is not None
        end = state.end
        topic = self._coverage.find("trade", {"symbol": symbol})
        trusted = topic is not None and not topic.stale and self._partials[topic.scope].time <= end - self._length
        complete = trusted and not state.late and not ended
        if state.trades:
            open, high, low = state.open, state.high, state.low
        else:
            open = high = low = state.last
        bar = Bar(
            symbol, self.interval, to_iso(end), open, high, low, state.last, state.volume, state.trades, state.vwap,
            complete, received,
        )
        state.fresh = False
        state.begin(end + self._length)
        return bar


def _trade(row: Row) -> tuple[str, int, Any, int]:
    """The (symbol, time, price, size) of a row of the table; price None: there is none. ValueError says what is wrong
    with it (ArithmeticError: a number that cannot be compared).
    """
    symbol, price, size = symbol_of(row), row.get("price"), row.get("size")
    if symbol is None:
        raise ValueError(f"it has no symbol: {row!r:.200}")
    try:
        time = to_nanoseconds(row.get("timestamp"))  # type: ignore[arg-type]
    except ValueError:
        time = -1
    if not 0 <= time < _LAST_TIME:
        raise ValueError(f"it has no valid timestamp: {row!r:.200}")
    if price is not None and not (_is_number(price) and -1e100 < price < 1e100):
        raise ValueError(f"its price is no number: {row!r:.200}")
    if size is not None and not (type(size) is int and 0 <= size < 1 << 63):
        raise ValueError(f"its size is no number of contracts: {row!r:.200}")
    return symbol, time, price, size or 0


def _is_number(value: Any) -> bool:
    return isinstance(value, Number) and not isinstance(value, bool)
