"""`TableApplier`: table messages become the state of the tables, and say what changed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from ..coverage import Coverage, Topic
from ..messages import (
    Authenticated,
    CancelAllAfter,
    Connected,
    Disconnected,
    ErrorMessage,
    Help,
    Pong,
    Row,
    StateLost,
    Subscribed,
    TableMessage,
    TableUpdate,
    Unsubscribed,
    Welcome,
    of_one_symbol,
)
from ..operator import BatchOperator
from ..protocol import PUBLIC_TABLES
from ..storage import BOOK_TABLES, Storage, Table

__all__ = ["TableApplier"]

log = logging.getLogger("bitmex_streams")

# What says nothing about the state of a table goes no further; items of kinds that are not of this package pass.
CONSUMED = frozenset(
    {Authenticated, CancelAllAfter, Connected, ErrorMessage, Help, Pong, Subscribed, Welcome}
)


class _Trusted:
    """A topic whose state is known, and what its deltas change and are told with."""

    __slots__ = ("generation", "source", "store", "topic")

    def __init__(self, topic: Topic, store: Table, generation: int) -> None:
        self.topic = topic
        self.source = topic.source
        self.store = store
        self.generation = generation


class TableApplier(BatchOperator):
    """`TableMessage` and marks in, `TableUpdate` out: at most one for a message, one per topic for a loss of state.

    ``storage`` (`Storage`) holds the tables; ``max_rows`` bounds those that only grow. Deltas before the first
    partial that covers them, and from a loss of state to the next one, are dropped. State is lost by `Disconnected`
    (all of that source), by `StateLost`, by `Unsubscribed` (of that topic; also for the moment between the two halves
    of a resync), and by what contradicts it: an update or delete of a row that is not there (other than a trimmed
    one), an insert of one that is, a row without its key columns. The unit is the topic as subscribed, as the
    partial's ``filter`` tells it (``trade`` for ``{}``, ``trade:XBTUSD``); each source has its own, and what a partial
    covers is its source's from then on. In a loop of pipelines one `TableApplier` can serve them all: what a consumer
    that left did not hear of any more is said at the next `Connected`.

    A loss puts out one `TableUpdate` with action ``stale`` per topic, in place of the message that contradicts, and
    asks for a new partial by ``resync(topic)``; not after `Disconnected` (the connection subscribes again of itself)
    and `Unsubscribed` (nobody wants it).

    Control messages are taken out of the stream; items of foreign kinds pass.
    """

    needs_all = True

    def __init__(self, *, max_rows: int | None = 10_000, resync: Callable[[str], None] | None = None) -> None:
        self.storage = Storage(max_rows)
        self.resync = resync
        self._coverage = Coverage()
        # What deltas count for, by table and symbol: found once, and forgotten with whatever could change that. To find
        # it anew for each message took 0.4 us.
        self._trusted: dict[str, dict[str, _Trusted]] = {}

    @property
    def stale(self) -> dict[str, str]:
        """What cannot be trusted right now: the reason by topic (``table`` or ``table:symbol``). A fresh dict.

        It is ahead of the stream where a connection was lost; a topic leaves it with a partial that came after the
        loss."""
        found: dict[str, str] = {}
        for topic in self._coverage:
            reason = self._coverage.announced(topic.source) or topic.stale
            if reason:
                found[topic.name] = reason
        return found

    def lose_state(self, source: str, reason: str) -> None:
        """All state of ``source`` is `stale` at once; the mark that follows (once per call) says so in the stream."""
        self._coverage.announce(source, reason)
        self._trusted.clear()

    def process_all(self, items: Iterable[Any], out: list[Any]) -> None:
        storage, trusted_by = self.storage, self._trusted
        for item in items:
            if type(item) is not TableMessage:
                self._trusted.clear()
                out += self._process_other(item)
                continue
            if (orders := storage.orders) is not None:
                orders.advance(item.received)
            action, rows = item.action, item.rows
            try:
                trusted = trusted_by[item.table][rows[0]["symbol"]]
            except (LookupError, TypeError):  # nothing is known of it, or it is no row
                out += self._change(item)
                continue
            if item.source != trusted.source or action == "partial" or not (len(rows) == 1 or of_one_symbol(rows)):
                out += self._change(item)
                continue
            store = trusted.store
            try:
                whole, delta = store.apply(action, rows)
            except ValueError as error:
                out += self._contradicted([trusted.topic], str(error), item.received)
                continue
            if whole:
                out.append(
                    TableUpdate(
                        item.table,
                        action,
                        whole,
                        item.received,
                        trusted.source,
                        delta,
                        store.keys,
                        None,
                        "",
                        trusted.generation,
                    )
                )

    def _process_other(self, item: Any) -> Iterable[Any]:
        """What is no message of a table."""
        kind = type(item)
        if kind is Disconnected or kind is Connected or kind is Unsubscribed:  # nothing is to be asked for
            return [self._stale(topic, item.received) for topic in self._coverage.lose_by(item)]
        if kind is StateLost:
            lost = self._coverage.lose_by(item)
            concerned = self._coverage.concerned(item.source, item.topic)
            # Also of what is stale already: the undecodable message may have been the new partial.
            self._ask([topic.name for topic in concerned] or ([item.topic] if item.topic else []))
            return [self._stale(topic, item.received) for topic in lost]
        return () if kind in CONSUMED else (item,)

    def _change(self, message: TableMessage) -> Iterable[TableUpdate]:
        """A partial, or a delta of what is not known to be trusted."""
        stale: list[TableUpdate] = []
        if message.source in self._coverage.opening:
            stale = [self._stale(topic, message.received) for topic in self._coverage.opened(message.source)]
        told = self._load(message) if message.action == "partial" else self._apply(message)
        return [*stale, *told] if stale else told

    def _apply(self, message: TableMessage) -> Iterable[TableUpdate]:
        """Rows that may be of several topics, each of which is applied whole or not at all."""
        table, source, received, find = message.table, message.source, message.received, self._coverage.find
        store = self.storage.tables.get(table)
        if store is None:
            return ()
        operate, generation = store.operation(message.action), self._coverage.generation.get(source, 0)
        rows: list[Row] = []
        delta: list[Row] = []
        stale: list[TableUpdate] = []
        lost: list[Topic] = []
        for row in message.rows:
            topic = find(table, row)
            if topic is None or topic.stale or topic.source != source:
                continue
            try:
                whole = operate(row)
            except ValueError as error:
                lost.append(topic)
                stale += self._contradicted([topic], str(error), received)
                continue
            if whole is not None:
                rows.append(whole)
                delta.append(row)
            if type(symbol := row.get("symbol")) is str and type(topic.scope) is not tuple and not lost:
                self._trusted.setdefault(table, {})[symbol] = _Trusted(topic, store, generation)
        if lost:  # what the message brought to a topic before the contradiction is not told
            told = [index for index, row in enumerate(delta) if find(table, row) not in lost]
            rows, delta = [rows[index] for index in told], [delta[index] for index in told]
        if not rows:
            return stale
        return [
            TableUpdate(table, message.action, rows, received, source, delta, store.keys, None, "", generation),
            *stale,
        ]

    def _load(self, message: TableMessage) -> Iterable[TableUpdate]:
        self._trusted.clear()
        table, rows, filter, source = message.table, message.rows, message.filter or {}, message.source
        topic = Topic(table, filter, source)
        before = self.storage.tables.get(table)
        try:
            self._check(message, topic)
            opened = self.storage.load(
                table, rows, filter, message.keys, message.attributes or {}, message.types or {}, message.received
            )
        except ValueError as error:
            concerned = self._coverage.concerned(source, topic.name)
            reason = f"a partial cannot be taken: {error}"
            if concerned:
                return self._contradicted(concerned, reason, message.received)
            # Of a topic that nobody knows of: which one it was to be is not known, but its table.
            return self._contradicted([topic], reason, message.received, ask=table)
        if self._coverage.cover(topic):
            self._forget_what_is_nobodys(table)
        update = TableUpdate(
            table,
            "partial",
            rows,
            message.received,
            source,
            rows,
            opened.keys,
            filter,
            "",
            self._coverage.generation.get(source, 0),
        )
        if before is None or opened is before:
            return (update,)
        others = [other for other in self._coverage.topics[table].values() if other is not topic]
        return [*self._contradicted(others, f"the table has other keys now: {opened.keys}", message.received), update]

    def _forget_what_is_nobodys(self, table: str) -> None:
        """The rows of ``table`` that no topic covers any more leave."""
        store = self.storage.tables[table]
        rows = (row for sides in store.rows.values() for levels in sides.values() for row in levels.values())
        kept = rows if table in BOOK_TABLES else store.rows.values()
        store.replace([row for row in kept if self._coverage.find(table, row) is not None], {})

    def _check(self, message: TableMessage, topic: Topic) -> None:
        """What a partial would do to what others hold in its table; ValueError where it cannot mean that."""
        if "account" in topic.filter and message.table in PUBLIC_TABLES:  # which covers what names no account, too
            raise ValueError("its filter is of an account, in a public table")
        # With other keys a table starts anew: one source does not do that to what others hold in it.
        known = self.storage.tables.get(message.table)
        if known is None or message.keys is None or tuple(message.keys) == known.keys or message.table in BOOK_TABLES:
            return
        for other in self._coverage.topics.get(message.table, {}).values():
            if other.source != topic.source and not other.stale and not topic.covers(other.filter):
                raise ValueError(f"its keys are {tuple(message.keys)}, where {other.name} is kept by {known.keys}")

    def _contradicted(
        self, topics: list[Topic], reason: str, received: int, *, ask: str | None = None
    ) -> list[TableUpdate]:
        """What was sent does not fit what is there: the topics are stale, and a new partial is asked for (of ``ask``,
        where that is not known by the topics' names)."""
        self._trusted.clear()
        lost = [topic for topic in topics if not topic.stale]
        for topic in lost:
            topic.stale = f"{topic.name}: {reason}"
            log.warning("state lost: %s", topic.stale)
        self._ask([ask] if ask else [topic.name for topic in topics])
        return [self._stale(topic, received) for topic in lost]

    def _ask(self, topics: list[str]) -> None:
        if self.resync is not None:
            for topic in topics:
                self.resync(topic)

    def _stale(self, topic: Topic, received: int) -> TableUpdate:
        store = self.storage.tables.get(topic.table)
        return TableUpdate(
            topic.table,
            "stale",
            (),
            received,
            topic.source,
            (),
            store.keys if store else (),
            topic.filter,
            topic.stale,
            self._coverage.generation.get(topic.source, 0),
        )
