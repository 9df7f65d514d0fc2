"""Which part of which table can be trusted: the rules that `TableApplier` and `OrderBookMerger` share.

A partial says what it covers by its ``filter``: from then on that *topic* (``{}``: ``trade``, ``{"symbol":
"XBTUSD"}``: ``trade:XBTUSD``) is kept up to date by the deltas of the same source, until its state is lost. Then its
deltas count for nothing until the next partial that covers it. A partial takes over what it covers, from whatever
source that came before.

A connection knows that it was lost before the mark that says so has made its way through the stream. What was
announced so waits, per source, for its mark; a partial from before the last of them is no reason to trust a live
object again. A consumer that leaves never sees the marks that were still on their way. So a connection that is opened
announces that, too (`CONNECTING`), and its `Connected` is the mark of everything announced until then.

Announcements are numbered in the order in which they were made, by all who keep a `Coverage`, so that one behind
another (a merger behind an applier, which takes the marks out) is told by number what has come, even when one of the
two is older than the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from .messages import Connected, Disconnected, Row, StateLost, Unsubscribed

__all__ = ["CONNECTING", "UNSUBSCRIBED", "Coverage", "Topic"]

CONNECTING = "not connected yet"
"""The reason by which a connection announces that it is opened: nothing that came before is of its new life."""

UNSUBSCRIBED = "unsubscribed"
"""The reason by which a topic that was given up is stale: it moves on, and nobody tells."""

_numbers = count(1)


class Topic:
    """What one partial covered. ``stale`` is why it can no longer be trusted (in stream order), "" while it can."""

    __slots__ = ("filter", "name", "replaced", "scope", "source", "stale", "table")

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
        self.replaced: dict[Any, Topic] = {}  # where it is the whole table: what it took the place of, by scope

    def covers(self, row: Mapping[str, Any]) -> bool:
        """Whether a row (or the filter of a narrower topic) is of this topic.

        Partials of an account's tables name it in their filter; not all of their deltas do.
        """
        if "account" in self.filter and "account" not in row:
            row = {"account": self.filter["account"], **row}
        return self.filter.items() <= row.items()


class Coverage:
    """The topics that partials have come for, by table and scope: a symbol, None (all of it), or any other filter."""

    def __init__(self) -> None:
        self.topics: dict[str, dict[Any, Topic]] = {}
        self.generation: dict[str, int] = {}  # of a source: the number of the last announced loss that has come
        self.opening: set[str] = set()  # the sources whose connection opens, while nothing of it has come
        self._announced: dict[str, deque[tuple[int, str]]] = {}  # of a source: those that have yet to come, and why

    def __iter__(self) -> Iterator[Topic]:
        for scopes in self.topics.values():
            yield from scopes.values()

    def cover(self, topic: Topic) -> bool:
        """A partial has come: its topic takes the place of all topics that it covers.

        A source that answers the loss of a whole table by the partial of a part of it was never subscribed to the
        whole: a partial without a filter had only said so (or was given up while disconnected). Then the parts that
        the whole had taken the place of are back, stale until their own partials come, and the rest is nobody's:
        True, and who keeps its rows forgets those that `find` finds no topic for.
        """
        scopes = self.topics.setdefault(topic.table, {})
        whole = scopes.get(None)
        dissolved = (
            topic.scope is not None
            and whole is not None
            and whole.source == topic.source
            and whole.stale not in ("", UNSUBSCRIBED)
        )
        if dissolved:
            assert whole is not None
            del scopes[None]
            for scope, part in whole.replaced.items():
                if scope not in scopes:  # else it has come back already
                    part.stale = whole.stale
                    scopes[scope] = part
        for scope in [scope for scope, other in scopes.items() if topic.covers(other.filter)]:
            other = scopes.pop(scope)
            if topic.scope is None:
                parts = {scope: other} if scope is not None else other.replaced
                topic.replaced.update(
                    (scope, part)
                    for scope, part in parts.items()
                    if part.source == topic.source and part.stale != UNSUBSCRIBED
                )
        scopes[topic.scope] = topic
        return dissolved

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

    def lose_by(self, mark: Connected | Disconnected | StateLost | Unsubscribed) -> list[Topic]:
        """State is lost as a mark says: the topics that went stale by that. An announced loss has thereby come.

        `Unsubscribed` is of the topic of exactly that name: a wider one, or a narrower one, goes on.
        """
        announced = self._announced.get(mark.source)
        if type(mark) is Connected:
            return self.opened(mark.source)
        if type(mark) is Unsubscribed:
            given_up = [topic for topic in self if topic.source == mark.source and topic.name == mark.topic]
            return self._lose_topics(given_up, UNSUBSCRIBED)
        if type(mark) is StateLost:
            reason, name = mark.reason, mark.topic
            # A Decoder makes such marks too, which nobody announced.
            has_come = announced and name is None and announced[0][1] == reason
        else:
            assert type(mark) is Disconnected
            reason, name, has_come = f"{mark.source} disconnected: {mark.code} {mark.reason}".strip(), None, announced
        if has_come and announced:
            self.generation[mark.source], _ = announced.popleft()
        return self._lose(mark.source, name, reason)

    def _lose(self, source: str, name: str | None, reason: str) -> list[Topic]:
        return self._lose_topics(self.concerned(source, name), reason)

    @staticmethod
    def _lose_topics(topics: list[Topic], reason: str) -> list[Topic]:
        lost = [topic for topic in topics if not topic.stale]
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
        self._announced.setdefault(source, deque()).append((next(_numbers), reason))
        if reason == CONNECTING:
            self.opening.add(source)

    def opened(self, source: str) -> list[Topic]:
        """A connection that was announced stands: what was announced before is of earlier ones. The topics that went
        stale by that.

        Its `Connected` says so, or, where a section before ours takes the marks out, the first message of it.
        """
        numbers = [number for number, why in self._announced.get(source, ()) if why == CONNECTING]
        return self.advance(source, numbers[-1]) if numbers else []

    def advance(self, source: str, generation: int) -> list[Topic]:
        """What was announced has come, up to number ``generation``: the topics that went stale by that.

        The number may be of another `Coverage` (of a section before ours, which takes the marks out). That one was
        told of each loss just before we were: so the same loss is our first with a number that is not below.
        """
        if not generation or generation == self.generation.get(source, 0):
            return []
        self.generation[source] = generation
        announced = self._announced.get(source)
        reason = ""
        while announced:
            number, why = announced.popleft()
            reason = reason if reason and why == CONNECTING else why
            if number >= generation:
                break
        if not any(why == CONNECTING for _, why in announced or ()):
            self.opening.discard(source)
        return self._lose(source, None, reason) if reason else []

    def announced(self, source: str) -> str | None:
        """Why all of a source will be stale, once the mark has come; None: nothing was announced that has not."""
        announced = self._announced.get(source)
        return announced[-1][1] if announced else None
