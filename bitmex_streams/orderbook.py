"""`OrderBook`: the levels of one symbol, best first on both sides.

Levels are kept by the exchange's id, because an update or a delete need not say the price. Each side is two dicts, id
to price and id to size, and the ids in the order of their prices. So an update is one store into a dict. What was
inserted or deleted is put into the order when somebody looks beyond the best level, or when that one is gone: a level
that comes and goes in between costs the order nothing, which is most of what a delta costs otherwise.

So to look can change the order; but only in the thread that keeps the book. Whoever looks from another (a section that
is a thread) gets what is there at that moment, put in order for him, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from itertools import islice
from numbers import Real
from threading import get_ident
from typing import Any, Literal, NoReturn, overload

from sortedcontainers import SortedKeyList

from .messages import Change, Level, Row, Side

__all__ = ["BookSnapshot", "BookView", "Ladder", "OrderBook"]


class Ladder(Sequence[Level]):
    """One side of an `OrderBook`, live: a sequence of `Level` (price, size), best first. ``ladder[:n]`` costs n, not
    the side."""

    __slots__ = ("_best", "_best_id", "_fresh", "_gone", "_highest_first", "_keeper", "_order", "_prices", "_sizes")

    def __init__(self, side: Side) -> None:
        self._highest_first = side == "Buy"
        self._load({}, {})

    def _load(self, prices: dict[int, Any], sizes: dict[int, int]) -> None:
        """Take over all levels at once."""
        self._keeper = get_ident()  # the thread
        self._prices = prices
        self._sizes = sizes
        self._sort()
        self._best: Level | None = None  # no level is better than this, though it may be gone
        self._best_id: int | None = None  # of the level in _best; None: it is to be found anew

    def _sort(self) -> None:
        prices = self._prices
        self._order = SortedKeyList(prices, key=prices.__getitem__)  # ids, from the lowest price to the highest
        self._fresh: set[int] = set()  # ids that are not yet in the order
        self._gone: dict[int, Any] = {}  # ids that are still in the order, and their prices there

    @property
    def best(self) -> Level | None:
        """The first level, or None; O(1)."""
        if self._best_id is None:
            if not self._sizes:
                return None
            if get_ident() != self._keeper:
                return next(iter(self._seen_from_outside()), None)
            best = self._ordered()[-1 if self._highest_first else 0]
            self._best, self._best_id = Level(self._prices[best], self._sizes[best]), best
        return self._best

    def _seen_from_outside(self) -> list[Level]:
        """All levels, best first, for another thread. (Each copy of a dict is whole; between two, something may go.)"""
        sizes, prices = self._sizes.copy(), self._prices.copy()
        ids = sorted((id for id in sizes if id in prices), key=prices.__getitem__, reverse=self._highest_first)
        return [Level(prices[id], sizes[id]) for id in ids]

    def _ordered(self) -> Any:
        """The ids in their order, brought up to date."""
        fresh, gone = self._fresh, self._gone
        if fresh or gone:
            if 4 * (len(fresh) + len(gone)) > len(self._sizes):  # then to sort is cheaper
                self._sort()
            else:
                prices, order = self._prices, self._order
                prices.update(gone)  # the order asks for them
                for id in gone:
                    order.remove(id)
                    del prices[id]
                order.update(fresh)
                fresh.clear()
                gone.clear()
            self._best_id = None  # two levels of one price may have changed places
        return self._order

    def _insert(self, id: int, price: Any, size: int) -> None:
        """Add a level, which is not there."""
        gone = self._gone
        if id not in gone:
            self._fresh.add(id)
        elif gone[id] == price:
            del gone[id]  # it is back where it was
        else:
            self._ordered()
            self._fresh.add(id)
        self._prices[id] = price
        self._sizes[id] = size
        best = self._best
        if best is not None and (price > best[0] if self._highest_first else price < best[0]):
            self._best, self._best_id = Level(price, size), id

    def _delete(self, id: int) -> Any:
        """The price of the level, which is there (else KeyError), and is gone then."""
        price = self._prices.pop(id)
        del self._sizes[id]
        if id == self._best_id:
            self._best_id = None
        if id in self._fresh:
            self._fresh.remove(id)  # the order has not heard of it
        else:
            gone = self._gone
            gone[id] = price
            if len(gone) > len(self._sizes):  # what is gone takes no more room than what is there
                self._ordered()
        return price

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[Level]:
        if get_ident() != self._keeper:
            yield from self._seen_from_outside()
            return
        prices, sizes = self._prices, self._sizes
        order = self._ordered()
        for id in reversed(order) if self._highest_first else order:
            yield Level(prices[id], sizes[id])

    @overload
    def __getitem__(self, index: int) -> Level: ...
    @overload
    def __getitem__(self, index: slice) -> list[Level]: ...
    def __getitem__(self, index: int | slice) -> Level | list[Level]:
        if isinstance(index, slice):
            if index.start in (None, 0) and index.step in (None, 1) and index.stop is not None and index.stop >= 0:
                return list(islice(self, index.stop))
            return list(self)[index]
        if get_ident() != self._keeper:
            return self._seen_from_outside()[index]
        try:
            id = self._ordered()[-1 - index if self._highest_first else index]
        except IndexError:
            raise IndexError(f"there are {len(self)} levels, no level {index}") from None
        return Level(self._prices[id], self._sizes[id])

    def __repr__(self) -> str:
        return f"<{'bids' if self._highest_first else 'asks'}: {len(self)} levels, best {self.best}>"


class BookView:
    """What can be read of an order book, live (`OrderBook`) or frozen (`BookSnapshot`).

    Prices are float, in the quote currency (Decimal with ``Decoder(number=Decimal)``), sizes int, in contracts.

    ``symbol``: str. ``bids``, ``asks``: sequences of `Level` (price, size), best first. ``stale``: bool, whether the
    book cannot be trusted; its levels are then the last known ones. ``timestamp``: the exchange's of the last change,
    an ISO string, None where it sends none."""

    __slots__ = ()

    symbol: str
    bids: Sequence[Level]
    asks: Sequence[Level]
    stale: bool
    timestamp: str | None

    @property
    def best_bid(self) -> Level | None:
        """The highest bid (price, size), None where there is no bid."""
        return self.bids[0] if self.bids else None

    @property
    def best_ask(self) -> Level | None:
        """The lowest ask (price, size), None where there is no ask."""
        return self.asks[0] if self.asks else None

    @property
    def mid_price(self) -> Any:
        """Half-way between the best bid and the best ask, None where one of them is missing."""
        bid, ask = self.best_bid, self.best_ask
        return None if bid is None or ask is None else (bid.price + ask.price) / 2

    @property
    def spread(self) -> Any:
        """The best ask's price less the best bid's, None where one of them is missing."""
        bid, ask = self.best_bid, self.best_ask
        return None if bid is None or ask is None else ask.price - bid.price

    @property
    def crossed(self) -> bool:
        """Whether the best bid is at or above the best ask, which a market cannot rest at."""
        bid, ask = self.best_bid, self.best_ask
        return bid is not None and ask is not None and bool(bid.price >= ask.price)

    def depth(self, n: int) -> tuple[list[Level], list[Level]]:
        """The best ``n`` (>= 0) bids and the best ``n`` asks, best first; fewer where there are fewer. Costs n."""
        if n < 0:
            raise ValueError(f"the number of levels cannot be negative: {n}")
        return list(self.bids[:n]), list(self.asks[:n])

    def snapshot(self, n: int | None = None) -> BookSnapshot:
        """A frozen copy of the best ``n`` levels of each side (None: of all). Costs n."""
        bids, asks = (list(self.bids), list(self.asks)) if n is None else self.depth(n)
        return BookSnapshot(self.symbol, tuple(bids), tuple(asks), self.stale, self.timestamp)

    def imbalance(self, n: int = 1) -> float | None:
        """(bid size - ask size) / (bid size + ask size) over the best ``n`` levels: from -1 (only asks) to 1; None
        for an empty book."""
        bids, asks = self.depth(n)
        bid_size, ask_size = sum(level.size for level in bids), sum(level.size for level in asks)
        total = bid_size + ask_size
        return (bid_size - ask_size) / total if total else None

    def vwap(self, side: Side, size: int) -> Any:
        """The average price at which an order of ``size`` contracts would be filled at once, weighted by contracts.

        ``side`` is the order's: ``"Buy"`` takes asks, ``"Sell"`` takes bids. None where the book has fewer contracts
        than that."""
        if side not in ("Buy", "Sell"):
            raise ValueError(f'side must be "Buy" or "Sell", not {side!r}')
        if size <= 0:
            raise ValueError(f"size must be positive, not {size!r}")
        left, cost = size, 0
        for level in self.asks if side == "Buy" else self.bids:
            filled = min(left, level.size)
            cost += level.price * filled
            left -= filled
            if not left:
                return cost / size
        return None

    def __len__(self) -> int:
        """The number of levels of both sides."""
        return len(self.bids) + len(self.asks)

    def __bool__(self) -> bool:
        return True  # an empty book is a book

    def __repr__(self) -> str:
        tops = [f"{level.size} @ {level.price}" if level else "-" for level in (self.best_bid, self.best_ask)]
        stale = ", stale" if self.stale else ""
        return f"<{type(self).__name__} {self.symbol}: bid {tops[0]}, ask {tops[1]}, {len(self)} levels{stale}>"


class BookSnapshot(BookView):
    """A frozen order book: ``bids`` and ``asks`` are tuples. Compared by value, hashable, pickleable; setting
    anything raises AttributeError."""

    __slots__ = ("asks", "bids", "stale", "symbol", "timestamp")

    def __init__(
        self,
        symbol: str,
        bids: tuple[Level, ...],
        asks: tuple[Level, ...],
        stale: bool = False,
        timestamp: str | None = None,
    ) -> None:
        for name, value in zip(
            ("symbol", "bids", "asks", "stale", "timestamp"), (symbol, bids, asks, stale, timestamp), strict=True
        ):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"a snapshot is frozen: {name} cannot be set")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a snapshot is frozen: {name} cannot be deleted")

    def _values(self) -> tuple[Any, ...]:
        return self.symbol, self.bids, self.asks, self.stale, self.timestamp

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if isinstance(other, BookSnapshot) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._values())

    def __reduce__(self) -> tuple[Any, ...]:
        return BookSnapshot, self._values()


class Levels:
    """The levels of a partial's rows, checked, and not yet in order: by side and id. Raises ValueError like
    `OrderBook.load`."""

    __slots__ = ("prices", "sizes", "timestamp")

    def __init__(self, rows: Iterable[Row]) -> None:
        self.prices: dict[str, dict[int, Any]] = {"Buy": {}, "Sell": {}}
        self.sizes: dict[str, dict[int, int]] = {"Buy": {}, "Sell": {}}
        self.timestamp: str | None = None
        row: Row = {}
        try:
            for row in rows:
                side, id, price, size = row["side"], row["id"], row["price"], row["size"]
                if type(id) is not int:
                    raise _no_level(row)
                self.prices[side][id] = price if type(price) is float else _price(price, row)
                self.sizes[side][id] = size if type(size) is int and size > 0 else _size(size, row)
                timestamp = row.get("timestamp")
                if type(timestamp) is str and (self.timestamp is None or timestamp > self.timestamp):
                    self.timestamp = timestamp
        except (KeyError, TypeError):  # of the row: a field is missing, or a side that is none
            raise _no_level(row) from None


class OrderBook(BookView):
    """A live order book, kept by `OrderBookMerger`, or by hand with `load` and `apply`.

    It is stale until the first `load`. Pickling sends a `BookSnapshot` of it.
    """

    __slots__ = ("asks", "bids", "stale", "symbol", "timestamp")

    bids: Ladder
    asks: Ladder

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol
        self.bids = Ladder("Buy")
        self.asks = Ladder("Sell")
        self.stale = True
        self.timestamp = None

    @property
    def best_bid(self) -> Level | None:
        """The highest bid (price, size), None where there is no bid; O(1)."""
        return self.bids.best

    @property
    def best_ask(self) -> Level | None:
        """The lowest ask (price, size), None where there is no ask; O(1)."""
        return self.asks.best

    def load(self, rows: Iterable[Row]) -> None:
        """Replace all levels by the rows of a partial; the book is not stale then.

        Raises ValueError, and changes nothing, for a row that is no level (id int, side Buy or Sell, price a number,
        size an int above 0)."""
        self._take(Levels(rows))

    def _take(self, levels: Levels) -> None:
        self.bids._load(levels.prices["Buy"], levels.sizes["Buy"])
        self.asks._load(levels.prices["Sell"], levels.sizes["Sell"])
        self.timestamp = levels.timestamp
        self.stale = False

    def apply(self, action: Literal["insert", "update", "delete"], rows: Iterable[Row]) -> list[Change]:
        """Apply the rows of a delta; the changed levels, as (side, price, size), size 0: gone.

        Raises ValueError for a row that contradicts the book (an update or delete of a level that is not there, an
        insert of one that is) or is no level. What came before that row has been applied then: the book is to be
        loaded anew."""
        bids, asks = self.bids, self.asks
        changes: list[Change] = []
        row: Row = {}
        try:
            for row in rows:
                side, id = row["side"], row["id"]
                ladder = bids if side == "Buy" else asks
                old = ladder._prices.get(id)
                if action == "update":
                    if old is None or (ladder is asks and side != "Sell"):
                        raise ValueError(f"an update of a level that is not there: {row}")
                    size, price = row.get("size"), row.get("price")
                    if type(size) is not int or size <= 0:
                        size = ladder._sizes[id] if size is None else _size(size, row)
                    if price is None or price == old:
                        price = old
                        ladder._sizes[id] = size
                        if id == ladder._best_id:
                            ladder._best = Level(price, size)
                    else:  # never seen of BitMEX, whose ids stand for prices
                        price = _price(price, row)
                        ladder._delete(id)
                        ladder._insert(id, price, size)
                        changes.append((side, old, 0))
                elif side != "Sell" and ladder is asks:
                    raise _no_level(row)
                elif action == "insert":
                    if old is not None:
                        raise ValueError(f"an insert of a level that is already there: {row}")
                    price, size = row["price"], row["size"]
                    if type(id) is not int:
                        raise _no_level(row)
                    if type(price) is not float:
                        price = _price(price, row)
                    if type(size) is not int or size <= 0:
                        size = _size(size, row)
                    ladder._insert(id, price, size)
                else:
                    if old is None:
                        raise ValueError(f"a delete of a level that is not there: {row}")
                    price, size = ladder._delete(id), 0
                changes.append((side, price, size))
        except (KeyError, TypeError):  # of the row: a field is missing, or an id that is none
            raise _no_level(row) from None
        timestamp = row.get("timestamp")
        if type(timestamp) is str:
            self.timestamp = timestamp
        return changes

    def __reduce__(self) -> tuple[Any, ...]:
        return self.snapshot().__reduce__()


def _no_level(row: Row) -> ValueError:
    return ValueError(f"a row that is no level of a book: {repr(row)[:200]}")


def _price(price: Any, row: Row) -> Any:
    """A price that did not come as a float."""
    if type(price) is int:
        try:
            return float(price)
        except OverflowError:
            raise _no_level(row) from None
    if isinstance(price, (Decimal, Real)) and not isinstance(price, bool):
        return price
    raise _no_level(row)


def _size(size: Any, row: Row) -> int:
    """A size that did not come as a positive int."""
    if type(size) is float and size.is_integer() and size > 0:
        return int(size)
    raise _no_level(row)
