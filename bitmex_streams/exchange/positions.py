"""What fills and funding make of a position, and what positions and orders bind: the arithmetic of an account.

All amounts are whole numbers of the smallest unit of the settlement currency (XBt: satoshi; USDt: millionths).

Margin: everything is cross margin at the full leverage of the contract. A position binds, of its cost, the initial
margin and the taker's fee twice (for coming in and for going out); so do the open orders of one side or of the other,
whichever bind more: they cannot all be filled and leave the account with both. What an order would only close of the
position binds nothing. Nothing is ever liquidated: who loses more than the account holds goes on with less than
nothing, and can open no more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from .instruments import Instrument, round_half_up

__all__ = ["Position", "fee", "margin", "opening_value", "order_margin_rate"]


def fee(cost: int, rate: float) -> int:
    """What a fee of ``rate`` is of a cost, of whatever sign; negative where the rate is: a rebate."""
    return round_half_up(abs(cost) * Fraction(str(rate)))


@dataclass(slots=True, eq=False)
class Position:
    """The position of one account in one contract, since the account was opened.

    ``size``: contracts, negative for a short position. ``cost``: of all trades. ``fees``: of all trades, and the
    funding; negative: received. ``open_cost``: the part of ``cost`` that is of the contracts still held. (In the table
    ``position``: currentQty, currentCost, currentComm, unrealisedCost.)
    """

    instrument: Instrument
    size: int = 0
    cost: int = 0
    fees: int = 0
    open_cost: int = 0

    def trade(self, size: int, price: Any) -> int:
        """Buy (or sell: negative) contracts at a price. Returns what they cost, with the sign of `Instrument.cost`."""
        cost = self.instrument.cost(size, price)
        self.cost += cost
        rest = self.size + size
        if self.size * size >= 0:
            self.open_cost += cost
        elif rest * size < 0:
            self.open_cost -= round_half_up(Fraction(self.open_cost * abs(size), abs(self.size)))
        else:
            self.open_cost = self.instrument.cost(rest, price)
        self.size = rest
        return cost

    @property
    def realised_cost(self) -> int:
        """The part of ``cost`` that is of contracts no longer held."""
        return self.cost - self.open_cost

    @property
    def realised_pnl(self) -> int:
        """What was made of all trades so far, fees and funding included."""
        return -self.realised_cost - self.fees

    def mark_value(self, mark_price: Any) -> int:
        """What the contracts are worth at the mark price, with the sign of `Instrument.cost`."""
        return self.instrument.cost(self.size, mark_price)

    @property
    def average_entry_price(self) -> int | float | None:
        """What the contracts held were bought (or sold) at, to four places; None without any."""
        if not self.size or not self.open_cost:
            return None
        price = Fraction(self.size * self.instrument.multiplier, self.open_cost)
        price = round(price if self.instrument.is_inverse else 1 / price, 4)
        return price.numerator if price.denominator == 1 else float(price)


def margin(value: int, rate: Fraction) -> int:
    """What ``rate`` of a value of any sign is, as margin: never less, so rounded up."""
    amount = abs(value) * rate
    return -(-amount.numerator // amount.denominator)


def order_margin_rate(instrument: Instrument) -> Fraction:
    """What an order binds of its value: the initial margin, and the fee for coming in and for going out."""
    return Fraction(str(instrument.initial_margin)) + 2 * Fraction(str(instrument.taker_fee))


def opening_value(instrument: Instrument, orders: Iterable[tuple[int, int]], closing: int) -> int:
    """The value of what orders of one side would open: (contracts, ticks) in the order in which they would be filled,
    of which the first ``closing`` contracts close a position.
    """
    value = 0
    for quantity, ticks in orders:
        closed = min(closing, quantity)
        closing -= closed
        if quantity > closed:
            value += instrument.value(quantity - closed, ticks)
    return value
