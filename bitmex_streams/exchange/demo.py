"""A demo account: one on which something happens, for those who have none and want to see what an account's is like.

Its trader makes a market, with little means and little wit. In each symbol it bids and asks at the best prices, goes
after them when they have gone away, does not bid (or ask) while it holds too much, and now and then takes the best
price of the other side. It knows no more than any client could, its orders are as anybody's, and its fees are more
than it earns: when half of its money is gone, it pays in again.

Deterministic: the same seed in the same market gives the same orders. All its times are the exchange's.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from random import Random
from typing import Any

from ..messages import Row, Side
from .accounts import Account, OrderRefused
from .market import Market
from .simulation import SECOND, Simulation

__all__ = ["DEMO_API_KEY", "DEMO_API_SECRET", "DemoTrader", "open_demo_account"]

DEMO_API_KEY = "demo-of-bitmex-streams"
"""The API key of the demo account. It is no secret: it opens nothing but accounts of embedded exchanges."""
DEMO_API_SECRET = "the-secret-of-the-demo-account-is-none"
"""What requests with `DEMO_API_KEY` are signed with; no secret, either."""

LOTS = 5  # of each order
MAX_LOTS = 25  # of a position: an order that could make it larger is not sent
BEHIND = 2  # ticks that an order may be behind the best price until it goes after that
TAKES = 0.05  # of the looks at a market
INTERVAL = 1.0  # s between two looks at a market, in the mean
OTHER: dict[Side, Side] = {"Buy": "Sell", "Sell": "Buy"}


def open_demo_account(exchange: Simulation, *, seed: int | str = 0, trading: bool = True) -> Account:
    """Open the demo account of an exchange, to which clients sign in with `DEMO_API_KEY` and `DEMO_API_SECRET`.

    ``seed``: of what its trader does. ``trading``: whether it has one; without, nothing happens on it by itself. Raises
    ValueError where the exchange has its demo account already.
    """
    account = exchange.open_account(api_key=DEMO_API_KEY, api_secret=DEMO_API_SECRET)
    if trading:
        DemoTrader(exchange, account, seed=seed)
    return account


class DemoTrader:
    """Trades on ``account`` in all markets of ``exchange``: at once, and from then on by the exchange's clock."""

    def __init__(self, exchange: Simulation, account: Account, *, seed: int | str = 0) -> None:
        self.account = account
        self._rng = Random(f"{seed}:demo")
        self._deposits = {currency: row["amount"] for currency, row in account.wallets.items()}
        for market in exchange.markets.values():
            self._look(market, take=True)
            exchange.schedule(self._next_time(exchange.now), partial(self._step, market))

    def _next_time(self, now: int) -> int:
        return now + 1 + int(self._rng.expovariate(1 / INTERVAL) * SECOND)

    def _step(self, market: Market, now: int) -> int:
        self._look(market, take=self._rng.random() < TAKES)
        return self._next_time(now)

    def _look(self, market: Market, *, take: bool) -> None:
        """See where the market is, and send, amend and cancel orders accordingly."""
        with suppress(OrderRefused):  # for want of balance: the next look may find more
            self._pay_in(market.instrument.settlement_currency)
            if take:
                self._take(market)
            self._quote(market, "Buy")
            self._quote(market, "Sell")

    def _pay_in(self, currency: str) -> None:
        half = self._deposits[currency] // 2
        if self.account.margins[currency]["marginBalance"] < half:
            self.account.deposit(currency, half)

    def _quote(self, market: Market, side: Side) -> None:
        """Have an order at the best price of a side, or little behind it, unless too much is held."""
        price, quote = self._best(market, side), self._order(market, side)
        if price is None or self._held(market, side) + self._size(market) > MAX_LOTS * market.instrument.lot_size:
            if quote is not None:
                self.account.cancel(quote["orderID"])
        elif quote is None:
            self.account.submit(
                market.symbol, side, self._size(market), price, client_order_id=_name(market, side), post_only=True
            )
        elif abs(market.instrument.ticks(price) - market.instrument.ticks(quote["price"])) > BEHIND:
            self.account.amend(quote["orderID"], price=price)

    def _take(self, market: Market) -> None:
        """Take what there is at the best price, of the side that makes the position smaller; without one, of either."""
        side: Side = "Buy" if self._rng.random() < 0.5 else "Sell"
        if self._held(market, side) > 0:
            side = OTHER[side]
        own = self._order(market, OTHER[side])
        if own is not None:  # it shall not be what is taken
            self.account.cancel(own["orderID"])
        price = self._best(market, OTHER[side])
        if price is not None:
            self.account.submit(market.symbol, side, self._size(market), price, time_in_force="ImmediateOrCancel")

    @staticmethod
    def _size(market: Market) -> int:
        return LOTS * market.instrument.lot_size

    @staticmethod
    def _best(market: Market, side: Side) -> Any:
        ticks = market.engine.best_bid if side == "Buy" else market.engine.best_ask
        return None if ticks is None else market.instrument.price(ticks)

    def _order(self, market: Market, side: Side) -> Row | None:
        """Its quote on a side."""
        name = _name(market, side)
        return next((row for row in self.account.orders.values() if row["clOrdID"] == name), None)

    def _held(self, market: Market, side: Side) -> int:
        """Contracts of its position, negative where that is on the other side."""
        size: int = self.account.positions.get(market.symbol, {"currentQty": 0})["currentQty"]
        return size if side == "Buy" else -size


def _name(market: Market, side: Side) -> str:
    return f"{market.symbol}-{'bid' if side == 'Buy' else 'ask'}"
