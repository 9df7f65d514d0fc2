"""`Latest`: what is known now, by symbol or currency, and an item for each change of it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from msgspec.structs import replace

from ..coverage import Topic
from ..messages import MarginState, Position, TableUpdate, Ticker
from .follower import Follower, checked_account, narrowed

__all__ = ["Latest", "OfAccount"]

Item = TypeVar("Item", bound=Position | Ticker | MarginState)


class Latest(Follower, Mapping[str, Item]):
    """A `Follower` that is a mapping to the latest item of each key, which it puts out when it has changed.

    An item is stale from the loss of a topic that it is drawn from to the last partial that heals it. It is put out
    with ``stale`` once, then no more until it is fresh again, but what can be read goes on. What is read is ahead of
    the stream where a connection was lost, as `stale` is.
    """

    noun: ClassVar[str]
    """What the items are, in words."""

    def __init__(self) -> None:
        super().__init__()
        self._latest: dict[str, Item] = {}

    # As a section of a pipeline it is itself and nothing else, whatever it holds.
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def __getitem__(self, key: str) -> Item:
        item = self._latest.get(key)
        if item is None:
            raise KeyError(f"no {self.noun} of {key!r:.80} is known")
        if not item.stale and any(self.is_stale(topic) for topic in self.topics_of(key)):
            return replace(item, stale=True)
        return item

    def __iter__(self) -> Iterator[str]:
        return iter(self._latest)

    def __len__(self) -> int:
        return len(self._latest)

    @abstractmethod
    def topics_of(self, key: str) -> Iterable[Topic]:
        """The topics that the item of ``key`` is drawn from, of those that partials have come for."""

    def is_lost(self, key: str) -> bool:
        """Whether the item of ``key`` is stale, in the order of the stream."""
        return any(topic.stale for topic in self.topics_of(key))

    def lose(self, topic: Topic, received: int) -> Iterable[Item]:
        symbol = topic.filter.get("symbol")
        for key in list(self._latest) if type(symbol) is not str else (symbol,):
            item = self._latest.get(key)
            if item is not None and not item.stale and self.is_lost(key):
                self._latest[key] = item = replace(item, stale=True, received=received)
                yield item

    def tell(self, key: str, item: Item) -> Iterable[Item]:
        """``item`` is the latest of ``key`` now (and made as a fresh one). What comes out."""
        known = self._latest.get(key)
        if self.is_lost(key):
            self._latest[key] = item = replace(item, stale=True)
            return (item,) if known is None or not known.stale else ()
        if known is not None:
            unchanged = replace(item, timestamp=known.timestamp, received=known.received, source=known.source)
            if unchanged == known:
                return ()
        self._latest[key] = item
        return (item,)

    def tell_gone(self, key: str, received: int, **changes: Any) -> Iterable[Item]:
        """The exchange does not list ``key`` any more. What comes out: a mark, the last that is known with
        ``changes``."""
        known = self._latest.pop(key, None)
        return () if known is None else (replace(known, received=received, stale=True, **changes),)


class OfAccount(Latest[Item]):
    """A `Latest` of one account: the given one, or else the first that is told of.

    ``account``: int or None. What is told of others passes unread where an account was given. Where none was, it is a
    ValueError that ends the pipeline: the amounts of two accounts under one key would be wrong.
    """

    private: ClassVar[frozenset[str]]
    """Those of `tables` that tell of accounts."""

    def __init__(self, account: int | None = None) -> None:
        super().__init__()
        self.account = checked_account(account)
        self._given = account is not None

    def _follow(self, update: TableUpdate) -> list[Any]:
        mine = self._mine(update) if update.table in self.private else update
        return [] if mine is None else super()._follow(mine)

    def _mine(self, update: TableUpdate) -> TableUpdate | None:
        """What an update tells of the account; None: nothing."""
        covered = update.filter or {}
        account = self.account
        others = [
            told
            for row in (covered, *update.rows)
            if (told := row.get("account")) != account and type(told) is int  # what is no int is for the reader
        ]
        if not others:
            return update
        if not self._given:
            if account is None and len(set(others)) == 1:
                self.account = others[0]
                return update
            told_of = sorted({*others, *(() if account is None else (account,))})
            raise ValueError(
                f"{type(self).__name__} is of one account, and {update.table!r} tells of {told_of}: give each its own "
                f"section, as in {type(self).__name__}(account={told_of[0]})"
            )
        assert account is not None
        return narrowed(update, account)
