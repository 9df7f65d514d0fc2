"""Who knows the truth, and judges what a pipeline tells: `Truth` is what an exchange published, `Judge` compares.

A judge has eyes (`Eye`) behind the connection, the decoder, the applier and at the end. A pipeline hands each item
through all of its sections before the next, so what the eyes see is in one order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec
import trio

from benchmarks.witness import Attempt, Attempts
from bitmex_streams import (
    BookUpdate,
    Connected,
    Disconnected,
    Fill,
    FillsMissing,
    RawMessage,
    StateLost,
    TableMessage,
    TableUpdate,
)
from bitmex_streams.messages import is_mark, is_partial, stream_key
from bitmex_streams.operator import Operator
from bitmex_streams.tap import MARKS

KEYS = {
    "orderBookL2": ("symbol", "id", "side"), "instrument": ("symbol",), "order": ("orderID",),
    "position": ("account", "symbol"), "margin": ("account", "currency"),
    "trade": ("symbol",), "quote": ("symbol",), "execution": ("symbol",),  # that only grow: by their last rows
}  # fmt: skip
CLOSED = frozenset({"Filled", "Canceled", "Rejected", "Expired"})

Row = dict[str, Any]


class Wrong(Exception):
    """What the pipeline gave is not what the exchange had."""


class Mirror:
    """The state of a topic, row by row, with a digest that follows each change at small cost."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.table, _, self.symbol = topic.partition(":")
        self.rows: dict[tuple[Any, ...], Row] = {}
        self.digest = 0

    def load(self, rows: Iterable[Row]) -> None:
        self.rows, self.digest = {}, 0
        self.apply("insert", rows)

    def apply(self, action: str, rows: Iterable[Row]) -> None:
        for row in rows:
            key = tuple(row[column] for column in KEYS[self.table])
            before = self.rows.pop(key, None)
            if before is not None:
                self.digest -= self._hash(before)
            if action == "delete" or (self.table == "order" and row.get("ordStatus") in CLOSED):
                continue
            now = self.rows[key] = {**before, **row} if before is not None and action == "update" else dict(row)
            self.digest += self._hash(now)

    def knows(self, rows: Iterable[Row]) -> bool:
        """Whether all of these rows are there."""
        return all(tuple(map(row.get, KEYS[self.table])) in self.rows for row in rows)

    def _hash(self, row: Row) -> int:
        if self.table == "orderBookL2":  # a partial dates its rows anew
            return hash((row["symbol"], row["side"], row["price"], row["size"]))
        return digest_of([row])

    def book(self, symbol: str, side: str) -> list[tuple[float, int]]:
        """A side of a book, best first."""
        levels = [(row["price"], row["size"]) for key, row in self.rows.items() if key[0] == symbol and key[2] == side]
        return sorted(levels, reverse=side == "Buy")


def digest_of(rows: Iterable[Row]) -> int:
    try:
        return hash(tuple(frozenset(row.items()) for row in rows))
    except TypeError:  # a list, or an object
        return hash(tuple(frozenset((name, _hashable(value)) for name, value in row.items()) for row in rows))


def _hashable(value: Any) -> Any:
    return value if value.__hash__ is not None else repr(value)


class Truth:
    """All that the exchange published of a topic: the state after each message, and what was in it."""

    def __init__(self, topic: str, partial: str) -> None:
        self.mirror = Mirror(topic)
        self.mirror.load(msgspec.json.decode(partial)["data"])
        self.forget()

    def forget(self) -> None:
        """Everything up to now is known to be delivered."""
        self.history = [(self.mirror.digest, 0)]
        self.words: deque[str] = deque(maxlen=5)  # the last messages
        self.found = {self.mirror.digest: [0]}

    def send(self, message: str) -> None:
        """As a subscriber of the exchange's feed: ahead of all clients."""
        self.words.append(message)
        decoded = msgspec.json.decode(message)
        self.mirror.apply(decoded["action"], decoded["data"])
        self.found.setdefault(self.mirror.digest, []).append(len(self.history))
        self.history.append((self.mirror.digest, digest_of(decoded["data"])))

    @property
    def last(self) -> int:
        return len(self.history) - 1


class Told:
    """What the pipeline told of a topic. ``at``: the messages of the history that may be the last one told (a state can
    come again). ``blind``: since which message it may be wrong unnoticed, until a later partial; None: it may not.
    ``wanted``: whether it is asked for. ``known``: whether a partial has come.
    """

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self.mirror = Mirror(truth.mirror.topic)
        self.stale = True
        self.at: set[int] = set()
        self.blind: float | None = None
        self.wanted = self.known = False
        self.fresh = trio.Event()
        """Set with the next partial."""

    def take(self, update: TableUpdate) -> str | None:
        """Judge an update; what is wrong with it."""
        if update.action == "stale":
            self.stale = True
            return None
        truth, mirror = self.truth, self.mirror
        if update.action == "partial":
            mirror.load(update.rows)
            earliest = min(self.at, default=0)
            self.known, self.stale = True, False
            self.at = {at for at in truth.found.get(mirror.digest, ()) if at >= earliest}
            self.fresh.set()
            self.fresh = trio.Event()
            if self.blind is not None and self.at and max(self.at) >= self.blind:
                self.blind = None
            return None if self.at or self.blind is not None else "a partial that the exchange never was at"
        if self.stale:
            return f"an {update.action} unmarked, from a loss to the next partial: {update.delta}"
        mirror.apply(update.action, update.delta)
        if self.blind is not None:
            return None
        now = mirror.digest, digest_of(update.delta)
        at = {at + 1 for at in self.at if at < truth.last and truth.history[at + 1] == now}
        if not at:
            return (
                f"after message {sorted(self.at)} of {truth.last} comes another than the next: {update.delta}; "
                f"the last were {list(truth.words)}"
            )
        self.at = at
        return None


class Judge:
    """Watches over one pipeline. `raw`, `before`, `tables` and `end` are its eyes in it: behind the connection, the
    decoder and the applier, and at the end.
    """

    def __init__(self, truths: Mapping[str, Truth], wanted: Iterable[str]) -> None:
        self.wrong: list[str] = []
        self.told = {topic: Told(truth) for topic, truth in truths.items()}
        for topic in wanted:
            self.told[topic].wanted = True
        self.raw, self.before = Eye(self._raw), Eye(self._before)
        self.tables, self.end = Eye(self._tables), Eye(self._end)
        self.attempts: Attempts
        self.sleepers: list[Sleeper] = []
        self.out: list[Any] = []  # what the end has put out, until the consumer has taken it
        self.last: dict[str, BookUpdate] = {}
        self.marks = self.latest_marks = 0
        self.latest: dict[str, BookUpdate] = {}
        self.fills: list[Fill] = []
        self.fills_seen: set[str] = set()
        self.marks_of_fills = 0
        self.connections = self.messages = 0  # that came
        self.stands = False  # whether a connection does, as told in the stream
        self._attempt: Attempt | None = None  # whose messages come
        self._message: RawMessage | None = None  # the one that is being handed through
        self._decoded = True  # whether it has come out of the decoder,
        self._applied: bool | None = True  # and of the applier; None: it may, or may not
        self._due: set[str] = set()  # topics whose mark has to come next
        self._books: dict[str, dict[tuple[str, float], int]] = {}

    def say(self, what: str) -> None:
        if len(self.wrong) < 10:
            self.wrong.append(what[:9000])

    @property
    def wanted(self) -> list[str]:
        """The topics that are asked for."""
        return [topic for topic, told in self.told.items() if told.wanted]

    def want(self, topics: Iterable[str], wanted: bool) -> None:
        """Topics are asked for, or given up, from here on."""
        for topic in topics:
            self.told[topic].wanted = wanted
            if wanted:
                for attempt in (self._attempt, *self.attempts.ups):
                    if attempt is not None:
                        attempt.away.discard(topic)

    def up(self, attempt: Attempt) -> None:
        """A connection stands: what is not wanted now has to stay away from it."""
        attempt.away.update(topic for topic, told in self.told.items() if not told.wanted)

    def topic_of(self, table: str, rows: Sequence[Row], filter: Mapping[str, Any] | None) -> Told | None:
        symbol = rows[0].get("symbol") if rows else (filter or {}).get("symbol")
        return self.told.get(f"{table}:{symbol}") or self.told.get(table)

    def _raw(self, item: Any) -> None:
        """All that arrived, once, in the order in which it did, whatever the topic."""
        self._all_through()
        if type(item) is Connected:
            self._attempt = self.attempts.next_up()
            self.connections += 1
            self.stands = True
        elif self._attempt is None:
            self.say(f"before any connection stands there comes {item}")
        elif type(item) is Disconnected:
            self.stands = False
            if (left := self._attempt.messages) and not (self._attempt.spoiled or self._attempt.unread):
                self.say(f"{len(left)} messages arrived before {item}, and were not handed out: {list(left)[:3]}")
        elif type(item) is RawMessage:
            expected = self._attempt.messages.popleft() if self._attempt.messages else None
            if item.data != expected and not self._attempt.spoiled:
                self.say(f"{item.data[:300]!r} is handed out, and arrived has {expected and expected[:300]!r}")
            self._message, self._decoded = item, False
            self.messages += 1

    def _all_through(self) -> None:
        """A message has been through all sections."""
        if not self._decoded or self._applied is False:
            where = "applier" if self._decoded else "decoder"
            self.say(f"of a message nothing came out of the {where}: {self._message}")
        self._message, self._decoded, self._applied = None, True, True

    def _before(self, item: Any) -> None:
        if type(item) is Disconnected or type(item) is Connected or (type(item) is StateLost and item.topic is None):
            self._due.update(topic for topic, told in self.told.items() if not told.stale)
        if self._message is None:
            return
        if self._decoded or item.received != self._message.received:
            self.say(f"out of the decoder comes {item}, and the message is {self._message}")
        self._decoded = True
        if type(item) is TableMessage:
            if not self._message.data.startswith(f'{{"table":"{item.table}","action":"{item.action}"'):
                self.say(f"out of the decoder comes {item}, and the message is {self._message}")
            told = self.topic_of(item.table, item.rows, item.filter)
            self._applied = told is None or (told.stale and item.action != "partial")
            update = told is not None and item.table == "order" and item.action == "update"
            if update and told is not None and not told.mirror.knows(item.rows):
                self._applied = None  # closed orders are forgotten

    def _tables(self, item: Any) -> None:
        if type(item) is not TableUpdate:
            return
        told = self.topic_of(item.table, item.rows, item.filter)
        if told is None:
            if item.action != "stale":
                self.say(f"a {item.action} of {item.table}, which nobody subscribed to")
            return
        topic = told.mirror.topic
        if item.action == "stale":
            self._due.discard(topic)
            self._applied = True
        elif self._due:
            self.say(f"state was lost, and before the marks of {sorted(self._due)} a {item.action} of {topic} comes")
        elif self._message is None or self._applied or item.received != self._message.received:
            self.say(f"{topic}: {item} comes twice, or of itself; the message is {self._message}")
        elif self._attempt is not None and topic in self._attempt.away:
            self.say(f"{topic} was given up before this connection stood, and there comes {item}")
        else:
            self._applied = True
        if wrong := told.take(item):
            self.say(f"{topic}: {wrong}")

    def _end(self, item: Any) -> None:
        self.out.append(item)
        for sleeper in self.sleepers:
            sleeper.log.append(item)
        if type(item) is BookUpdate:
            self._book(item)
        elif type(item) is Fill:
            if item.exec_id in self.fills_seen:
                self.say(f"the fill {item.exec_id} comes twice")
            self.fills_seen.add(item.exec_id)
            self.fills.append(item)
        elif type(item) is FillsMissing:
            self.marks_of_fills += 1

    def _book(self, update: BookUpdate) -> None:
        symbol, told = update.symbol, self.told[f"orderBookL2:{update.symbol}"]
        self.last[symbol] = update
        if update.stale:
            self.marks += 1
            return
        if told.stale:
            self.say(f"{symbol}: a BookUpdate unmarked, from a loss to the next partial: {update}")
            return
        bids, asks = told.mirror.book(symbol, "Buy"), told.mirror.book(symbol, "Sell")
        if update.changes is None:
            book = self._books[symbol] = {("Buy", p): s for p, s in bids} | {("Sell", p): s for p, s in asks}
        else:
            book = self._books[symbol]
            for side, price, size in update.changes:
                book[side, price] = size
                if not size:
                    del book[side, price]
        top = bids[0] if bids else None, asks[0] if asks else None
        if (update.best_bid, update.best_ask) != top:
            self.say(f"{symbol}: the top is {update.best_bid}, {update.best_ask}; it should be {top}")
        if update.book.bids[:] != bids or update.book.asks[:] != asks:
            self.say(f"{symbol}: the live book is not what the table has")
        if len(book) != len(bids) + len(asks) or any(book.get(("Buy", price)) != size for price, size in bids):
            self.say(f"{symbol}: the changes do not make the book that the table has")


class Eye(Operator):
    """Shows each item to ``look``, and passes it on."""

    def __init__(self, look: Callable[[Any], None]) -> None:
        self._look = look

    def process(self, item: Any) -> Iterable[Any]:
        self._look(item)
        return (item,)


class Sleeper:
    """A consumer that sleeps, and when it wakes takes all that its tap has, which has to be what the policy of the tap
    promises of ``log``: all that was put since it fell asleep.
    """

    def __init__(self, policy: str, tap: Any, capacity: int) -> None:
        self.policy, self.tap, self.capacity = policy, tap, capacity
        self.log: list[Any] = []
        self._gaps: dict[Any, bool] = {}  # streams of which something was left out last, and whether that is sure

    def wake(self) -> str | None:
        """Take what is there, and judge it; what is wrong with it."""
        log, self.log = self.log, []
        found = []
        with suppress(trio.WouldBlock):
            while True:
                found.append(self.tap.receive_nowait())
        who, marks = f"a sleeper with `{self.policy}`", [item for item in log if is_mark(item)]
        if len(found) > self.capacity + MARKS + len(set(map(stream_key, marks))):  # a mark of each stream is kept
            return f"for {who} {len(found)} items wait"
        if len(marks) > min(MARKS, self.capacity):  # they may be folded, and there may be room for nothing else
            newest = {(type(mark), stream_key(mark)): id(mark) for mark in marks}
            if not set(map(id, found)).issuperset(newest.values()):
                return f"{who} does not find the last mark of each stream"
            self._gaps.update((stream_key(item), False) for item in log)
            return None
        if [item for item in found if is_mark(item)] != marks:
            return f"{who} finds {sum(map(is_mark, found))} of {len(marks)} marks"
        kept = self._kept(log)
        gaps = {}
        for item in log:
            if id(item) not in kept:
                self._gaps[stream_key(item)] = True
            elif not is_mark(item):
                gaps[id(item)] = self._gaps.pop(stream_key(item), None)
        expected = [item for item in log if id(item) in kept]
        if len(found) != len(expected):
            return f"{who} finds {len(found)} of {len(log)} items, and it should be {len(expected)}"
        if self.policy == "latest":  # between two marks, the order is its own
            found, expected = _arranged(found), _arranged(expected)
        for one, item in zip(found, expected, strict=True):
            gap = gaps.get(id(item))
            if one is not item and (gap is None or not _is_conflated(one, item)):
                return f"{who} finds {one}, where it should be {item}"
            if gap and type(one) is BookUpdate and one.changes is not None:
                return f"{who} is not told that something was left out before {one}"
        return None

    def _kept(self, log: Sequence[Any]) -> set[int]:
        """What may not be left out, by the ids of the items."""
        kept = {id(item) for item in log if is_mark(item)}
        rest = [item for item in log if not is_mark(item)]
        if self.policy == "latest":
            return kept | {id(item) for item in {_latest_key(item): item for item in rest}.values()}
        if self.policy == "drop_oldest":
            return kept | {id(item) for item in rest[max(0, len(log) - self.capacity) :]}
        there = 0
        for item in log:
            if there < self.capacity or is_mark(item):
                kept.add(id(item))
                there += 1
        return kept


def _is_conflated(one: Any, item: Any) -> bool:
    fields = ("symbol", "best_bid", "best_ask", "stale", "timestamp", "received", "book")
    return type(one) is type(item) is BookUpdate and all(getattr(one, name) == getattr(item, name) for name in fields)


def _latest_key(item: Any) -> Any:
    """What a `latest` tap keeps one item of: partials have keys of their own."""
    return stream_key(item), str(item.filter or {}) if is_partial(item) else None


def _arranged(items: Iterable[Any]) -> list[Any]:
    """By streams, but not across marks and partials."""
    place, keyed = 0, []
    for item in items:
        if is_mark(item) or is_partial(item):
            keyed.append((place + 1, "", item))
            place += 2
        else:
            keyed.append((place, str(stream_key(item)), item))
    return [item for *_, item in sorted(keyed, key=lambda entry: entry[:2])]
