"""At most one item per stream and interval, and always the latest in the end.

Each key has at most one open interval, in which one item was already put out; what comes in it waits, the newest
only. All intervals are equally long, so in the order in which they were opened they also end: one ordered dict is the
whole schedule.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from operator import attrgetter
from typing import Any

from ..messages import BookUpdate, conflated, is_mark, is_partial, stream_key
from ..operator import Operator

__all__ = ["Throttle"]

_NOTHING: Any = object()


class _Interval:
    """An interval of one key: its end (ns), the item that waits for it, when that came (a count), and if others gave
    way to it.
    """

    __slots__ = ("dropped", "end", "item", "key", "order")

    def __init__(self, key: Hashable, end: int) -> None:
        self.key = key
        self.end = end
        self.item = _NOTHING
        self.order = 0
        self.dropped = False

    def take(self) -> Any:
        item = conflated(self.item) if self.dropped else self.item
        self.item = _NOTHING
        self.dropped = False
        return item


class Throttle(Operator):
    """Put out at most one item per key and interval: the first at once, and the latest when the interval ends.

    ``interval``: seconds (> 0) of ``received``. ``key``: a function from item to stream (hashable); the default is
    (table, symbol), or the type of what has neither (see `bitmex_streams.messages.stream_key`).

    An item that waits gives way to the next of its key; a `BookUpdate` before which others were left out has
    ``changes`` None. Changes of tables are left out just the same, so throttle states (books, instrument, position),
    and count trades before. When the input ends, what waits is put out. Marks are never delayed or left out: what
    waits is put out before them, of the same key for a stale book, of all keys for the others. So it is with the
    partials of tables: what was stale is fresh again with them, all at once. Memory: one item per key that was active
    in the last interval.

    Raises ValueError for an interval that is not a positive, finite number of seconds.
    """

    def __init__(self, interval: float, key: Callable[[Any], Hashable] | None = None) -> None:
        if not (0 < interval < math.inf):
            raise ValueError(f"the interval of Throttle is a positive number of seconds, not {interval!r}")
        self.interval = interval
        self._length = max(1, round(interval * 1_000_000_000))
        self._key = stream_key if key is None else key
        self._open: OrderedDict[Hashable, _Interval] = OrderedDict()
        self._count = 0

    def process(self, item: Any) -> Iterable[Any]:
        if is_mark(item) or is_partial(item):
            return self._pass(item)
        key = self._key(item)
        interval = self._open.get(key)
        if interval is None:
            self._begin(key, self.now)
            return (item,)
        if interval.item is not _NOTHING:
            interval.dropped = True
        self._count += 1
        interval.item = item
        interval.order = self._count
        return ()

    def on_time(self, now: int) -> Iterable[Any]:
        ended = []
        while self._open and (first := next(iter(self._open.values()))).end <= now:
            del self._open[first.key]
            if first.item is not _NOTHING:
                ended.append(first)
        ended.sort(key=attrgetter("end", "order"))  # those that end together: in the order in which their items came
        out = []
        for interval in ended:
            out.append(interval.take())
            # The next one is counted from the end, not from now: a timer may be late, or a replay ahead.
            if interval.end + self._length > now:
                self._begin(interval.key, interval.end)
        self._schedule()
        return out

    def finish(self) -> Iterable[Any]:
        out = self._flush(list(self._open.values()))
        self._open.clear()
        self.deadline = None
        return out

    def _pass(self, item: Any) -> list[Any]:
        """A mark or a partial, behind what waited before it."""
        if type(item) is BookUpdate:
            own = self._open.get(self._key(item))
            return [*self._flush([] if own is None else [own]), item]
        return [*self._flush(list(self._open.values())), item]

    def _flush(self, intervals: list[_Interval]) -> list[Any]:
        waiting = sorted((interval for interval in intervals if interval.item is not _NOTHING), key=attrgetter("order"))
        out = []
        for interval in waiting:
            out.append(interval.take())
            del self._open[interval.key]
            self._begin(interval.key, self.now)
        self._schedule()
        return out

    def _begin(self, key: Hashable, now: int) -> None:
        self._open[key] = _Interval(key, now + self._length)
        if self.deadline is None:
            self.deadline = now + self._length

    def _schedule(self) -> None:
        self.deadline = next(iter(self._open.values())).end if self._open else None
