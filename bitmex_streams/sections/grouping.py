"""`BookGrouping`: order books at a coarser price step.

A group is a level of an `OrderBook` whose id is its price, and its size the sum of the exact levels in it. Which they
are is kept beside it, price by price, from the ``changes`` of the updates; so a delta costs its own levels and no
others.

The exact book itself is live. Behind a section that is not ours it may be ahead of the update in hand, and then what
is read of it (once there are no ``changes``) is ahead, too. Three things set that right. Changes say what a level is,
not by how much it moved, so it does no harm that those come which the book already had. A level that the book had
and the update has not, or the other way round, is one that later updates bring. And each update has its own top: what
is better than that is taken out again, and the top itself put in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Context, Decimal
from typing import Any

from ..messages import BookUpdate, Change, Level, Side
from ..operator import Operator
from ..orderbook import BookView, Ladder, OrderBook

__all__ = ["BookGrouping"]

_EXACT = Context(prec=700)  # more digits than the quotient of any two floats has before the point


class GroupedLadder(Ladder):
    """One side of a `GroupedBook`."""

    __slots__ = ("_exact", "_moved", "_side", "_tick")

    def __init__(self, side: Side, tick: Decimal) -> None:
        super().__init__(side)
        self._side = side
        self._tick = tick
        self._exact: dict[Any, tuple[int, Any]] = {}  # of a price: the size there, and the group's price
        self._moved: dict[Any, int] = {}  # of a group: by how much its size is to change

    def load_exact(self, levels: Iterable[Level]) -> None:
        """Replace all levels."""
        known = self._exact
        self._exact = {
            price: (size, known[price][1] if price in known else self._group(price)) for price, size in levels
        }
        sums: dict[Any, int] = {}
        for size, group in self._exact.values():
            sums[group] = sums.get(group, 0) + size
        self._load({group: group for group in sums}, sums)

    def set_exact(self, price: Any, size: int) -> None:
        """The size at one price, 0: gone. It shows with the next `settle`."""
        known = self._exact.get(price)
        if known is None and not size:
            return
        old, group = known or (0, self._group(price))
        if size:
            self._exact[price] = size, group
        else:
            del self._exact[price]
        self._moved[group] = self._moved.get(group, 0) + size - old

    def settle(self, top: Level | None) -> list[Change]:
        """Take over what was set, and ``top``, the exact book's; the groups that changed by that."""
        if top is None:
            for price in tuple(self._exact):
                self.set_exact(price, 0)
            return self._sum_up()
        price, size = top
        known = self._exact.get(price)
        if known is None or known[0] != size:
            self.set_exact(price, size)
        changes = self._sum_up() if self._moved else []
        best = self.best
        if best is not None and best[0] != self._exact[price][1]:  # of a book that was ahead
            for ahead in [other for other in self._exact if (other > price if self._highest_first else other < price)]:
                self.set_exact(ahead, 0)
            changes += self._sum_up()
        return changes

    def _sum_up(self) -> list[Change]:
        changes: list[Change] = []
        for group, moved in self._moved.items():
            if moved:
                old = self._sizes.get(group, 0)
                size = old + moved
                if not size:
                    self._delete(group)
                elif not old:
                    self._insert(group, group, size)
                else:
                    self._sizes[group] = size
                    if group == self._best_id:
                        self._best_id = None
                changes.append((self._side, group, size))
        self._moved.clear()
        return changes

    def _group(self, price: Any) -> Any:
        """The price of the group that an exact price is in: a whole number of ticks, exact as a decimal."""
        exact = price if isinstance(price, Decimal) else Decimal(repr(float(price)))
        if not exact.is_finite() or exact.adjusted() - self._tick.adjusted() >= _EXACT.prec:
            return price  # beyond all markets
        ticks, rest = _EXACT.divmod(exact, self._tick)  # towards 0
        if self._highest_first:
            if rest < 0:
                ticks = _EXACT.subtract(ticks, 1)
        elif rest > 0:
            ticks = _EXACT.add(ticks, 1)
        group = _EXACT.multiply(ticks, self._tick)
        return group if exact is price else float(group)


class GroupedBook(OrderBook):
    """A live book of groups, kept by `BookGrouping`.

    ``exact``: the book that the last update came with. ``marked``: whether, in stream order, it cannot be trusted."""

    __slots__ = ("_stale", "exact", "marked")

    bids: GroupedLadder
    asks: GroupedLadder

    def __init__(self, symbol: str, tick: Decimal, exact: BookView) -> None:
        self.exact = exact
        self.marked = True
        super().__init__(symbol)
        self.bids = GroupedLadder("Buy", tick)
        self.asks = GroupedLadder("Sell", tick)

    @property
    def stale(self) -> bool:
        """Whether the book cannot be trusted: at once when the exact book cannot, and until an update has come of
        when it could again."""
        return self._stale or self.exact.stale

    @stale.setter
    def stale(self, stale: bool) -> None:
        self._stale = stale

    def take(self, update: BookUpdate) -> Iterable[Change]:
        """The groups that an update with ``changes`` changes."""
        for side, price, size in update.changes or ():
            (self.bids if side == "Buy" else self.asks).set_exact(price, size)
        return self.bids.settle(update.best_bid) + self.asks.settle(update.best_ask)

    def load_exact(self, update: BookUpdate) -> None:
        """Replace all levels by those of the exact book."""
        self.bids.load_exact(update.book.bids)
        self.asks.load_exact(update.book.asks)
        self.bids.settle(update.best_bid)
        self.asks.settle(update.best_ask)


class BookGrouping(Operator):
    """`BookUpdate` of an `OrderBookMerger` in, `BookUpdate` of the books at a coarser price step out: what other
    venues call the precision of a book.

    ``tick``: the step, in the quote currency: an int, float or Decimal above 0 for all symbols, or a mapping of symbol
    to such a number. Updates of symbols that are not in the mapping pass as they are. A float means the decimal that
    it is written as (0.1 is a tenth), and the prices that come out are exact multiples of it, of the type of those
    that come in.

    Bids are rounded down to the step and asks up, their sizes (contracts) summed. So a grouped book is never better
    than the exact one, and crossed only where that is. ``tick`` should be a multiple of the instrument's tick size;
    where it is not, prices are rounded all the same, and some groups hold more of the exact levels than others.

    One update that changes groups gives one update. ``changes`` are those of the groups, each with its new size; None
    where they were None, or where the stream of changes begins anew. An update by which no group changes, as when a
    size moves within one, goes no further: ``timestamp`` and ``received`` are those of the last that did. Stale
    updates always come out. Items of other kinds pass.

    ``books``: dict of symbol to live grouped `OrderBook`, from the first update on. It is stale as soon as the exact
    book is, ahead of the stream; behind a section in another process, which sends copies, in stream order. One symbol
    has one book: where updates of several mergers come with the same symbol, each begins it anew.

    Place it directly behind the merger, or behind operators, then every update is exact; and before a `Throttle`,
    whose updates without changes make it read the whole book. Behind a section that is not ours the exact book may be
    ahead of an update: then after one without changes (a partial) the best prices are still exact, while sizes can be
    those of a later moment, until the updates have come to it.

    Two levels of one side at one price, which the exchange does not have, count as one.

    Raises TypeError for a tick that is no number, and ValueError for one that is not above 0 and finite.
    """

    books: dict[str, OrderBook]

    def __init__(self, tick: float | Decimal | Mapping[str, float | Decimal]) -> None:
        self._ticks: dict[str, Decimal] = {}
        self._tick: Decimal | None = None
        if isinstance(tick, Mapping):
            self._ticks = {symbol: _decimal(value, f" of {symbol}") for symbol, value in tick.items()}
        else:
            self._tick = _decimal(tick)
        self.books = {}

    def lose_state(self, source: str, reason: str) -> None:
        """Books whose exact book is stale stay so until an update of its next life has come, also where the exact one
        is ahead of the stream. (The merger, which knows what is of ``source``, has heard of it before.)"""
        for book in self.books.values():
            if book.stale:
                book.stale = True

    def process(self, item: Any) -> Iterable[Any]:
        if type(item) is not BookUpdate:
            return (item,)
        symbol, exact = item.symbol, item.book
        book: Any = self.books.get(symbol)
        changes: tuple[Change, ...] | None = None
        if book is None:
            tick = self._ticks.get(symbol, self._tick)
            if tick is None:
                return (item,)
            book = self.books[symbol] = GroupedBook(symbol, tick, exact)
            book.load_exact(item)
            anew = True
        else:
            # A pickled update has a snapshot of its own; but another live book is another's: of a new merger, say.
            other = exact is not book.exact and isinstance(exact, OrderBook)
            anew = item.changes is None or book.marked or other
            book.exact = exact
            if not item.stale and anew:
                book.load_exact(item)
            elif not item.stale:
                changes = tuple(book.take(item))
                if not changes:
                    return ()
        book.timestamp = item.timestamp
        if item.stale or anew:
            book.marked = item.stale
            book.stale = item.stale or exact.stale
        return (
            BookUpdate(
                symbol, book.best_bid, book.best_ask, changes, item.stale, item.timestamp, item.received, book,
                item.table,
            ),
        )


def _decimal(tick: Any, of: str = "") -> Decimal:
    if isinstance(tick, bool) or not isinstance(tick, int | float | Decimal):
        raise TypeError(f"the tick{of} of BookGrouping is an int, a float or a Decimal, not {tick!r}")
    exact = Decimal(repr(float(tick))) if isinstance(tick, float) else Decimal(tick)
    if not exact.is_finite() or exact <= 0:
        raise ValueError(f"the tick{of} of BookGrouping is a number above 0, not {tick!r}")
    return exact
