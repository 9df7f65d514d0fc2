"""A matching engine: limit and market orders, price-time priority, prices in whole ticks. No I/O; time is handed in.

`MatchingEngine` keeps the orders: a sorted map of prices a side, and at each price the orders in the order of their
arrival (a dict keeps it, and finds an order to cancel at once). `Market` is the engine of one instrument with prices
as on the wire; each thing that happens in it is one `MarketEvent`, from which all the tables are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

from sortedcontainers import SortedDict

from ..messages import Level, Side
from .instruments import Instrument

__all__ = [
    "BookState",
    "LevelChange",
    "Market",
    "MarketEvent",
    "Match",
    "MatchingEngine",
    "Order",
    "OrderLevel",
    "new_guid",
]


@dataclass(slots=True, eq=False)
class Order:
    """An order.

    ``ticks``: the limit, None for a market order; ``leaves``: what is still to be filled (0 once it is done).
    ``immediate``: what it finds no match for at once lapses, as it does with a market order.
    """

    id: str
    side: Side
    quantity: int
    ticks: int | None
    leaves: int
    account: Any = None
    """Whose it is: anything that the submitter wants to find again in fills; None for the background flow. (An
    `Account` knows those orders alone that it submits itself.)
    """
    immediate: bool = False

    @property
    def filled(self) -> int:
        """Contracts filled so far."""
        return self.quantity - self.leaves


class Match(NamedTuple):
    """One match: at the maker's price."""

    maker: Order
    taker: Order
    ticks: int
    quantity: int


class LevelChange(NamedTuple):
    """A level whose size changed: 0 before is a new level, 0 after one that is gone."""

    side: Side
    ticks: int
    before: int
    after: int


def new_guid(rng: Random) -> str:
    """A random guid, as the exchange writes it."""
    digits = f"{rng.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


class BookState(NamedTuple):
    """A book at a moment: both sides best first."""

    bids: list[Level]
    asks: list[Level]


@dataclass(slots=True, eq=False)
class OrderLevel:
    """The orders at one price, first come first; ``size`` is their sum, ``time`` (ns) when that last changed."""

    orders: dict[str, Order] = field(default_factory=dict)
    size: int = 0
    time: int = 0


class MatchingEngine:
    """The orders of one market. Prices are ticks (int, from 1), quantities contracts (int, from 1)."""

    def __init__(self) -> None:
        self.bids: SortedDict = SortedDict()
        self.asks: SortedDict = SortedDict()
        self.orders: dict[str, Order] = {}
        self._before: dict[tuple[Side, int], int] = {}

    @property
    def best_bid(self) -> int | None:
        """The highest price bid, in ticks."""
        return self.bids.peekitem(-1)[0] if self.bids else None

    @property
    def best_ask(self) -> int | None:
        """The lowest price asked, in ticks."""
        return self.asks.peekitem(0)[0] if self.asks else None

    def side(self, side: Side) -> SortedDict:
        """The levels of a side, by price ascending."""
        return self.bids if side == "Buy" else self.asks

    def best_first(self, side: Side) -> Iterator[tuple[int, OrderLevel]]:
        """The levels of a side, best first."""
        levels = self.side(side)
        return ((ticks, levels[ticks]) for ticks in (reversed(levels) if side == "Buy" else iter(levels)))

    def meets(self, side: Side, ticks: int | None) -> Iterator[tuple[int, int]]:
        """(ticks, contracts) that an order of a side and limit (None: at any price) would meet now, best first."""
        for at, level in self.best_first("Sell" if side == "Buy" else "Buy"):
            if ticks is not None and (at > ticks if side == "Buy" else at < ticks):
                return
            yield at, level.size

    def would_take(self, side: Side, ticks: int | None) -> bool:
        """Whether an order of a side and limit would meet anything."""
        return next(self.meets(side, ticks), None) is not None

    def can_fill(self, side: Side, ticks: int | None, quantity: int) -> bool:
        """Whether an order of a side and limit would be filled at once, in whole."""
        for _, size in self.meets(side, ticks):
            quantity -= size
            if quantity <= 0:
                return True
        return False

    def submit(self, order: Order, time: int) -> list[Match]:
        """Match an order; what a limit order has left then rests. What a market order, or one that is ``immediate``,
        finds no match for lapses.
        """
        fills: list[Match] = []
        buy = order.side == "Buy"
        levels = self.asks if buy else self.bids
        maker_side: Side = "Sell" if buy else "Buy"
        while order.leaves and levels:
            ticks, level = levels.peekitem(0 if buy else -1)
            if order.ticks is not None and (ticks > order.ticks if buy else ticks < order.ticks):
                break
            self._touch(maker_side, ticks, level, time)
            while order.leaves and level.orders:
                maker = next(iter(level.orders.values()))
                quantity = min(order.leaves, maker.leaves)
                order.leaves -= quantity
                maker.leaves -= quantity
                level.size -= quantity
                fills.append(Match(maker, order, ticks, quantity))
                if not maker.leaves:
                    del level.orders[maker.id]
                    del self.orders[maker.id]
            if not level.orders:
                del levels[ticks]
        if order.leaves and order.ticks is not None and not order.immediate:
            self._rest(order, time)
        return fills

    def cancel(self, order: Order, time: int) -> None:
        """Take a resting order out of the book."""
        assert order.ticks is not None
        levels = self.side(order.side)
        level = levels[order.ticks]
        self._touch(order.side, order.ticks, level, time)
        level.size -= order.leaves
        del level.orders[order.id]
        del self.orders[order.id]
        if not level.orders:
            del levels[order.ticks]

    def amend(self, order: Order, quantity: int, ticks: int, time: int) -> list[Match]:
        """Change a resting order. Its place in the queue is kept only if the price stays and the quantity does not
        grow.

        ``quantity`` is the whole order's, with what was filled; not above that, the rest of the order is cancelled.
        """
        leaves = max(0, quantity - order.filled)
        if ticks == order.ticks and 0 < leaves <= order.leaves:
            level = self.side(order.side)[ticks]
            self._touch(order.side, ticks, level, time)
            level.size += leaves - order.leaves
            order.quantity, order.leaves = order.filled + leaves, leaves
            return []
        self.cancel(order, time)
        order.quantity, order.leaves, order.ticks = order.filled + leaves, leaves, ticks
        return self.submit(order, time) if leaves else []

    def take_changes(self) -> list[LevelChange]:
        """The levels whose size differs from what it was at the last call."""
        changes = []
        for (side, ticks), before in self._before.items():
            level = self.side(side).get(ticks)
            after = level.size if level is not None else 0
            if after != before:
                changes.append(LevelChange(side, ticks, before, after))
        self._before.clear()
        return changes

    def _rest(self, order: Order, time: int) -> None:
        assert order.ticks is not None
        levels = self.side(order.side)
        level = levels.get(order.ticks)
        if level is None:
            level = levels[order.ticks] = OrderLevel()
        self._touch(order.side, order.ticks, level, time)
        level.orders[order.id] = order
        level.size += order.leaves
        self.orders[order.id] = order

    def _touch(self, side: Side, ticks: int, level: OrderLevel, time: int) -> None:
        self._before.setdefault((side, ticks), level.size)
        level.time = time


class MarketEvent(NamedTuple):
    """One thing that happened in a market: an order came, was amended or cancelled. ``time`` is ns since the epoch."""

    market: Market
    time: int
    order: Order
    fills: list[Match]
    changes: list[LevelChange]


class Market:
    """The market of one instrument.

    ``clock`` gives the time (ns); each event is handed to all of ``listeners`` before a method returns.
    """

    def __init__(self, instrument: Instrument, clock: Callable[[], int], rng: Random) -> None:
        self.instrument = instrument
        self.engine = MatchingEngine()
        self.listeners: list[Callable[[MarketEvent], None]] = []
        self._clock = clock
        self._rng = rng

    @property
    def symbol(self) -> str:
        """The instrument's symbol."""
        return self.instrument.symbol

    @property
    def book(self) -> BookState:
        """The true book now: (price, size) by price, best first."""
        price = self.instrument.price
        return BookState(
            [Level(price(ticks), level.size) for ticks, level in self.engine.best_first("Buy")],
            [Level(price(ticks), level.size) for ticks, level in self.engine.best_first("Sell")],
        )

    def new_id(self) -> str:
        """A new guid, for an order or a match."""
        return new_guid(self._rng)

    def submit(self, side: Side, quantity: int, price: Any = None, *, account: Any = None) -> Order:
        """Send an order: a limit order at ``price``, a market order without. Returns it as it is after matching.

        ``quantity``: contracts (int), a multiple of the lot size. Raises ValueError where side, quantity or price is
        none that the instrument knows.
        """
        if side not in ("Buy", "Sell"):
            raise ValueError(f"side is {side!r}: it must be 'Buy' or 'Sell'")
        self._check_quantity(quantity)
        return self.submit_ticks(side, quantity, None if price is None else self.instrument.ticks(price), account)

    def submit_ticks(self, side: Side, quantity: int, ticks: int | None, account: Any = None) -> Order:
        """`submit` for those who count in ticks and need no checks."""
        return self.submit_order(Order(self.new_id(), side, quantity, ticks, quantity, account))

    def submit_order(self, order: Order) -> Order:
        """`submit` for those who have made the order, without checks. Returns the same."""
        time = self._clock()
        self._happened(time, order, self.engine.submit(order, time))
        return order

    def cancel(self, order_id: str) -> Order:
        """Cancel a resting order. Raises KeyError, with the market's name, where there is none of that id."""
        order = self._resting(order_id)
        time = self._clock()
        self.engine.cancel(order, time)
        self._happened(time, order, [])
        return order

    def amend(self, order_id: str, *, quantity: int | None = None, price: Any = None) -> Order:
        """Change quantity (the whole order's) or price of a resting order. It keeps its place only if it shrinks in
        place.

        Raises like `submit` and `cancel`.
        """
        order = self._resting(order_id)
        assert order.ticks is not None
        if quantity is None:
            quantity = order.quantity
        self._check_quantity(quantity)
        ticks = order.ticks if price is None else self.instrument.ticks(price)
        time = self._clock()
        self._happened(time, order, self.engine.amend(order, quantity, ticks, time))
        return order

    def _check_quantity(self, quantity: int) -> None:
        instrument = self.instrument
        if not isinstance(quantity, int):
            raise ValueError(f"{self.symbol}: quantity {quantity!r} is not a whole number of contracts (int)")
        if quantity <= 0 or quantity > instrument.max_order_quantity or quantity % instrument.lot_size:
            raise ValueError(
                f"{self.symbol}: quantity {quantity} is not a multiple of the lot size {instrument.lot_size} "
                f"up to {instrument.max_order_quantity}"
            )

    def _resting(self, order_id: str) -> Order:
        try:
            return self.engine.orders[order_id]
        except KeyError:
            raise KeyError(
                f"{self.symbol}: no resting order has the id {order_id!r} (it may be filled or cancelled)"
            ) from None

    def _happened(self, time: int, order: Order, fills: list[Match]) -> None:
        event = MarketEvent(self, time, order, fills, self.engine.take_changes())
        for listener in self.listeners:
            listener(event)
