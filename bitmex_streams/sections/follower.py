"""What the sections of an account, and of the instruments, have in common.

Each follows some tables. It stands behind a `TableApplier`, lets every item pass unchanged and in order, and puts its
own typed items right behind the one that caused them. So any of them can stand behind any other, in any order. What it
knows can be read from it at any time, and it knows when that cannot be trusted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any, ClassVar

from msgspec.structs import replace

from ..coverage import Coverage, Topic
from ..messages import Row, TableMessage, TableUpdate
from ..operator import Operator
from ..timestamps import to_nanoseconds

__all__ = [
    "AccountFollower",
    "Follower",
    "account_in",
    "checked_account",
    "narrowed",
    "number_in",
    "text_in",
    "time_in",
    "whole_in",
]

log = logging.getLogger("bitmex_streams")


class Follower(Operator):
    """Keeps a state of its own by the `TableUpdate` items of its `tables`. Override `load`, `change` and `lose`.

    Deltas of a topic count from its first partial on, and from a loss of state not before the next one. State is lost
    as the `TableApplier` says (action ``stale``), and by what a hook refuses with a ValueError: that is logged, and a
    new partial is asked for by ``resync(topic)``. Where that is refused as well, none is asked for again: the next one
    would be no better, and the exchange would be asked without end.

    Raises TypeError for a `TableMessage` of its tables: there is no `TableApplier` before it.
    """

    tables: ClassVar[frozenset[str]] = frozenset()
    """The names of the tables that are followed."""

    def __init__(self, *, resync: Callable[[str], None] | None = None) -> None:
        self.resync = resync
        self._coverage = Coverage()
        self._refused: set[tuple[str, str]] = set()  # source and name of the topics whose last partial was refused

    def load(self, update: TableUpdate, topic: Topic) -> Iterable[Any]:
        """A partial: its rows are all that there is of ``topic`` (`Topic.covers` tells whether a row known before is
        of it). What comes out for it.

        Raises ValueError, in words, where it cannot be taken; what came out, and was changed, before that counts.
        """
        return ()

    def change(self, update: TableUpdate, row: Row, topic: Topic) -> Iterable[Any]:
        """One row of an insert, update or delete (``update.action``), whole as in ``update.rows``. What comes out.

        Raises ValueError, in words, where the row cannot be one.
        """
        return ()

    def lose(self, topic: Topic, received: int) -> Iterable[Any]:
        """The state of ``topic`` is lost; ``topic.stale`` says why. What comes out: the marks of what is stale now.

        It can be called for what is stale already. ``received``: of the item by which it was lost.
        """
        return ()

    @property
    def stale(self) -> bool:
        """Whether something of this state cannot be trusted right now: before the first partial, and from a loss to
        the partial that heals it. It is ahead of the stream where a connection was lost.
        """
        return not self._coverage.topics or any(self.is_stale(topic) for topic in self._coverage)

    def is_stale(self, topic: Topic) -> bool:
        """Whether a topic cannot be trusted right now; like `stale`, ahead of the stream."""
        return bool(topic.stale) or self._coverage.announced(topic.source) is not None

    def lose_state(self, source: str, reason: str) -> None:
        """All state of ``source`` is `stale` at once; what follows in the stream (once per call) says so there."""
        self._coverage.announce(source, reason)

    def process(self, item: Any) -> Iterable[Any]:
        kind = type(item)
        if kind is TableUpdate:
            if item.table in self.tables:
                return [item, *self._follow(item)]
        elif kind is TableMessage and item.table in self.tables:
            raise TypeError(
                f"{type(self).__name__} works on the TableUpdate items of a TableApplier, and got a TableMessage of "
                f"{item.table!r}: put a TableApplier before it"
            )
        return (item,)

    def _follow(self, update: TableUpdate) -> list[Any]:
        coverage, action, source = self._coverage, update.action, update.source
        lost: list[Topic] = []
        if action == "partial" or action == "stale":
            lost = coverage.advance(source, update.generation)
        if source in coverage.opening:
            lost += coverage.opened(source)
        if action == "stale":
            lost += coverage.lose_scope(update.table, update.filter, source, update.reason)
        out = [told for topic in lost for told in self.lose(topic, update.received)]
        if action == "partial":
            topic = Topic(update.table, update.filter, source)
            coverage.cover(topic)
            name = source, topic.name
            try:
                for told in self.load(update, topic):
                    out.append(told)  # one by one: what came before an error counts
                self._refused.discard(name)
            except ValueError as error:
                ask = name not in self._refused
                self._refused.add(name)
                out += self._contradicted(topic, f"a partial cannot be taken: {error}", update.received, ask=ask)
        else:
            for row in update.rows:  # none where the action is stale
                found = coverage.find(update.table, row)
                if found is None or found.stale or found.source != source:
                    continue
                try:
                    for told in self.change(update, row, found):
                        out.append(told)
                except ValueError as error:
                    out += self._contradicted(found, str(error), update.received)
        return out

    def _contradicted(self, topic: Topic, reason: str, received: int, *, ask: bool = True) -> Iterable[Any]:
        """What was sent cannot be: the topic is stale, and a new partial is asked for."""
        topic.stale = f"{topic.name}: {reason}"
        log.warning("state lost: %s", topic.stale)
        if ask and self.resync is not None:
            self.resync(topic.name)
        return self.lose(topic, received)


class AccountFollower(Follower):
    """A `Follower` of private tables: of one account, or of all that are told of.

    ``account``: int, the only one that is followed (what is told of others passes unread); None: every account.
    """

    def __init__(self, account: int | None = None) -> None:
        super().__init__()
        self.account = checked_account(account)

    def _follow(self, update: TableUpdate) -> list[Any]:
        mine = update if self.account is None else narrowed(update, self.account)
        return [] if mine is None else super()._follow(mine)


def checked_account(account: int | None) -> int | None:
    """Raises TypeError for what cannot be an account."""
    if account is not None and type(account) is not int:
        raise TypeError(f"an account is an int (as in the rows of the exchange) or None, not {account!r:.80}")
    return account


def narrowed(update: TableUpdate, account: int) -> TableUpdate | None:
    """What an update tells of one account; None: nothing. What names no account is of each."""
    covered = (update.filter or {}).get("account", account)
    if type(covered) is int and covered != account:  # what is no int is for the reader
        return None
    rows = [row for row in update.rows if type(told := row.get("account", account)) is not int or told == account]
    if len(rows) == len(update.rows):
        return update
    return replace(update, rows=rows, delta=()) if rows or update.action == "partial" else None


# --- reading what the exchange sent ---


def text_in(row: Mapping[str, Any], field: str, default: str | None = None) -> str:
    """The text of a field. ``default``: where it is missing or null. ValueError where there is neither."""
    value = row.get(field)
    if type(value) is str:
        return value
    if value is None and default is not None:
        return default
    raise ValueError(f"its {field} is no text: {_brief(row)}")


def whole_in(row: Mapping[str, Any], field: str, default: int | None = None) -> int:
    """The whole number (int) of a field: contracts, amounts, accounts. As `text_in` in the rest."""
    value = row.get(field)
    if type(value) is int:
        return value
    if value is None and default is not None:
        return default
    if value is not None and _is_number(value) and value == int(value):
        return int(value)
    raise ValueError(f"its {field} is no whole number: {_brief(row)}")


def account_in(row: Mapping[str, Any]) -> int | None:
    """The account of a row; None where it names none. ValueError where it is no number."""
    return None if row.get("account") is None else whole_in(row, "account")


def time_in(row: Mapping[str, Any]) -> int | None:
    """The timestamp of a row in ns since the epoch; None where it has none that is valid."""
    timestamp = row.get("timestamp")
    try:
        return to_nanoseconds(timestamp) if type(timestamp) is str else None
    except ValueError:
        return None


def number_in(row: Mapping[str, Any], field: str) -> Any:
    """The number of a field as it was decoded (int, float or Decimal): prices, ratios. None where it is missing or
    null. ValueError where it is none.
    """
    value = row.get(field)
    if value is None or _is_number(value):
        return value
    raise ValueError(f"its {field} is no number: {_brief(row)}")


def _is_number(value: Any) -> bool:
    kind = type(value)
    return kind is int or ((kind is float or kind is Decimal) and math.isfinite(value))


def _brief(row: Mapping[str, Any]) -> str:
    return f"{row!r:.200}"
