"""Which part of which table can be trusted: the rules that `TableApplier` and `OrderBookMerger` share.

A partial says what it covers by its ``filter``: from then on that *topic* (``{}``: ``trade``, ``{"symbol":
"XBTUSD"}``: ``trade:XBTUSD``) is kept up to date by the deltas of the same source, until its state is lost. Then its
deltas count for nothing until the next partial that covers it. A partial takes over what it covers, from whatever
source that came before.

A connection knows that it was lost before the mark that says so has made its way through the stream. What was
announced so is counted per source, and so are the marks that came; a partial from before the last of them is no
reason to trust a live object again."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from .messages import Disconnected, Row, StateLost

__all__ = ["Coverage", "Topic"]


class Topic:
    """What one partial covered. ``stale`` is why it can no longer be trusted (in stream order), "" while it can."""

    __slots__ = ("filter", "name", "scope", "source", "stale", "table")

    def __init__(self, table: str, filter: Mapping[str, Any] | None, source: str) -> None:
        self.table = table
        self.filter = filter or {}
        self.source = source
        self.stale = ""
        symbol = self.filter.get("symbol")
        self.scope: Any = None
        if len(self.filter) == 1 and type(symbol) is str:
            self.scope = symbol
        elif self.filter:
            self.scope = repr(sorted(self.filter.items(), key=lambda pair: pair[0])), "other"
        self.name = f"{table}:{symbol}" if type(symbol) is str else table

    def covers(self, row: Mapping[str, Any]) -> bool:
        """Whether a row (or the filter of a narrower topic) is of this topic."""
        return self.filter.items() <= row.items()


class Coverage:
    """The topics that partials have come for, by table and scope: a symbol, None (all of it), or any other filter."""

    def __init__(self) -> None:
        self.topics: dict[str, dict[Any, Topic]] = {}
        self.generation: dict[str, int] = {}  # of a source: how many announced losses have come in stream order
        self._announced: dict[str, deque[str]] = {}  # of a source: the reasons of those that have yet to come

    def __iter__(self) -> Iterator[Topic]:
        for scopes in self.topics.values():
            yield from scopes.values()

    def cover(self, topic: Topic) -> None:
        """A partial has come: its topic takes the place of all topics that it covers."""
        scopes = self.topics.setdefault(topic.table, {})
        for scope in [scope for scope, other in scopes.items() if topic.covers(other.filter)]:
            del scopes[scope]
        scopes[topic.scope] = topic

    def find(self, table: str, row: Row) -> Topic | None:
        """The topic that a row is of: the one of its symbol, else the whole table's. None: no partial has covered
        it."""
        scopes = self.topics.get(table)
        if scopes is None:
            return None
        symbol = row.get("symbol")
        topic = scopes.get(symbol) if type(symbol) is str else None
        if topic is None:
            topic = scopes.get(None)
            if topic is None:
                for topic in scopes.values():
                    if type(topic.scope) is tuple and topic.covers(row):
                        return topic
                return None
        return topic

    def concerned(self, source: str, topic_name: str | None) -> list[Topic]:
        """The topics of a source that the loss of a topic by that name (None: of everything) concerns, stale or not."""
        table, _, symbol = (topic_name or "").partition(":")
        return [
            topic
            for topic in self
            if topic.source == source
            and (not table or (topic.table == table and (not symbol or topic.filter.get("symbol", symbol) == symbol)))
        ]

    def lose_by(self, mark: Disconnected | StateLost) -> list[Topic]:
        """State is lost as a mark says: the topics that went stale by that. An announced loss has thereby come."""
        announced = self._announced.get(mark.source)
        if type(mark) is StateLost:
            reason, name = mark.reason, mark.topic
            # A Decoder makes such marks too, which nobody announced.
            has_come = announced and name is None and announced[0] == reason
        else:
            assert type(mark) is Disconnected
            reason, name, has_come = f"{mark.source} disconnected: {mark.code} {mark.reason}".strip(), None, announced
        if has_come:
            self.advance(mark.source, self.generation.get(mark.source, 0) + 1)
        lost = [topic for topic in self.concerned(mark.source, name) if not topic.stale]
        for topic in lost:
            topic.stale = reason
        return lost

    def lose_scope(self, table: str, filter: Mapping[str, Any] | None, source: str, reason: str) -> list[Topic]:
        """Exactly the topic of that filter is lost, as a `TableUpdate` with action ``stale`` says."""
        topic = self.topics.get(table, {}).get(Topic(table, filter, source).scope)
        if topic is None or topic.source != source or topic.stale:
            return []
        topic.stale = reason
        return [topic]

    def announce(self, source: str, reason: str) -> None:
        """All state of a source is lost, ahead of the stream; the mark follows."""
        self._announced.setdefault(source, deque()).append(reason)

    def advance(self, source: str, generation: int) -> None:
        """What came through the stream tells the generation itself (behind a section that takes the marks out)."""
        announced = self._announced.get(source)
        for _ in range(self.generation.get(source, 0), generation):
            if announced:
                announced.popleft()
            self.generation[source] = self.generation.get(source, 0) + 1

    def announced(self, source: str) -> str | None:
        """Why all of a source will be stale, once the mark has come; None: nothing was announced that has not."""
        announced = self._announced.get(source)
        return announced[-1] if announced else None
