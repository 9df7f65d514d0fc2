"""Zero-intelligence order flow, after Smith, Farmer, Gillemot and Krishnamurthy (2003): Poisson arrivals of limit
orders, market orders and cancellations, which alone give a book a realistic shape, spread and diffusion.

Limit orders arrive at a random distance from the opposite best price, so that they never cross; every resting order is
cancelled at the same rate, chosen so that the book keeps its depth. One pull is added that the model lacks: market
orders lean towards the initial price, in proportion to the logarithm of how far the price has gone, so that it wanders
for weeks and stays bounded.
"""

from __future__ import annotations

import math
from random import Random

from ..messages import Side
from .market import Market, Order

__all__ = ["OrderFlow"]

MARKET_SHARE = 0.12  # of all events; on BitMEX trades are a tenth of book changes, or less
MIN_ORDERS = 10  # below so many resting orders a side gets no market orders: it must not run empty


class OrderFlow:
    """Drives one market with about ``rate`` events a second and about ``levels`` price levels a side.

    Seeded, hence deterministic.
    """

    def __init__(self, market: Market, rng: Random, *, rate: float, levels: int) -> None:
        self.market = market
        self.rate = rate
        self._rng = rng
        instrument = market.instrument
        self._anchor = instrument.nearest_ticks(instrument.initial_price)
        # Half of the orders come near the best price, half deep in the book: with twice as many orders as levels,
        # these distances (means of exponentials, in ticks) make about that many levels.
        deep = max(1.0, min(1.2 * levels, self._anchor / 8))
        self._distances = deep / 20, deep
        self._target = 4 * levels
        # Resting orders of the flow, for a random one to be cancelled in constant time; filled ones are dropped when
        # met.
        self._resting: list[Order] = []

    def fill_book(self) -> None:
        """Place the book that the market opens with."""
        for index in range(self._target):
            self._limit_order("Buy" if index % 2 else "Sell", self._anchor)

    def next_time(self, now: int) -> int:
        """When (ns) the next event comes, after one at ``now``."""
        return now + 1 + int(self._rng.expovariate(self.rate) * 1e9)

    def step(self, now: int) -> int:
        """Let one event happen, and say when the next one comes."""
        engine = self.market.engine
        chance = self._rng.random()
        if chance < MARKET_SHARE:
            self._market_order()
        # Cancellations in proportion to the orders that rest: at the target, as many leave as come.
        elif chance < MARKET_SHARE + (1 - MARKET_SHARE) * min(0.95, 0.43 * len(engine.orders) / self._target):
            self._cancel()
        else:
            self._limit_order("Buy" if self._rng.random() < 0.5 else "Sell")
        return self.next_time(now)

    def _quantity(self) -> int:
        """Mostly small, now and then large."""
        instrument = self.market.instrument
        lots = min(int(self._rng.lognormvariate(1.5, 1.3)) + 1, 2000)
        return min(lots * instrument.lot_size, instrument.max_order_quantity)

    def _limit_order(self, side: Side, opposite: int | None = None) -> None:
        engine = self.market.engine
        distance = 1 + int(self._rng.expovariate(1 / self._distances[self._rng.random() < 0.5]))
        if side == "Buy":
            ticks = (opposite or engine.best_ask or self._anchor) - distance
        else:
            ticks = (opposite or engine.best_bid or self._anchor) + distance
        if not 1 <= ticks <= self.market.instrument.max_ticks:
            return
        order = self.market.submit_ticks(side, self._quantity(), ticks)
        if order.leaves:
            self._resting.append(order)

    def _market_order(self) -> None:
        engine = self.market.engine
        bid, ask = engine.best_bid or self._anchor, engine.best_ask or self._anchor
        pull = math.log((bid + ask) / 2 / self._anchor)
        side: Side = "Buy" if self._rng.random() < min(0.9, max(0.1, 0.5 - pull)) else "Sell"
        if len(engine.asks if side == "Buy" else engine.bids) < MIN_ORDERS:
            self._limit_order("Sell" if side == "Buy" else "Buy")
        else:
            self.market.submit_ticks(side, self._quantity(), None)

    def _cancel(self) -> None:
        resting = self._resting
        while resting:
            index = int(self._rng.random() * len(resting))
            order = resting[index]
            resting[index] = resting[-1]
            resting.pop()
            if order.id in self.market.engine.orders:
                self.market.cancel(order.id)
                return
