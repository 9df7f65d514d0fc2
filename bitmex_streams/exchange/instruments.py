"""The contracts that the embedded exchange lists, as BitMEX specified them.

Prices are integers of ticks inside the exchange; `Instrument.price` turns them into what goes over the wire. The
quotient of two ints is correctly rounded in Python, so that no price ever drifts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from typing import Any

__all__ = ["INSTRUMENTS", "Instrument", "round_half_up"]


def round_half_up(amount: Fraction) -> int:
    """The nearest whole number; halves are rounded away from zero, so that a sign changes nothing but the sign."""
    whole = (2 * abs(amount.numerator) + amount.denominator) // (2 * amount.denominator)
    return -whole if amount < 0 else whole


@dataclass(frozen=True)
class Instrument:
    """One contract. ``tick_size`` and ``id_tick`` are decimal strings; the rest is named as in the table
    ``instrument``.

    ``multiplier`` is in units of the settlement currency (satoshi, or millionths of a USDt): per contract and unit of
    price; for an inverse contract negative, per contract divided by the price. ``id_index`` and ``id_tick`` give the
    ids of orderBookL2: ``100000000 * id_index - price / id_tick``, unique for each price of each symbol. Fees and
    margins are rates of the value; a negative fee is a rebate.
    """

    symbol: str
    underlying: str
    quote_currency: str
    settlement_currency: str
    reference: str
    tick_size: str
    lot_size: int
    multiplier: int
    id_index: int
    id_tick: str
    initial_price: float
    levels: int
    activity: float
    max_price: int = 1_000_000
    max_order_quantity: int = 10_000_000
    is_quanto: bool = False
    open_interest: int = 0
    maker_fee: float = 0.0002
    taker_fee: float = 0.00075
    initial_margin: float = 0.01
    maintenance_margin: float = 0.005

    @property
    def is_inverse(self) -> bool:
        """Whether the contract is worth a fixed amount of the quote currency, settled in the underlying."""
        return self.multiplier < 0

    @cached_property
    def _tick(self) -> tuple[int, int]:
        return Fraction(self.tick_size).as_integer_ratio()

    @cached_property
    def _id_ticks(self) -> int:
        return int(Fraction(self.tick_size) / Fraction(self.id_tick))

    @property
    def max_ticks(self) -> int:
        """The highest price that an order may have, in ticks."""
        return int(self.max_price / Fraction(self.tick_size))

    def price(self, ticks: int) -> int | float:
        """The price of a number of ticks, as the exchange writes it: 31964 or 31964.5."""
        numerator, denominator = self._tick
        value = ticks * numerator
        return value / denominator if value % denominator else value // denominator

    def mid_price(self, bid: int, ask: int) -> int | float:
        """The middle of two prices given in ticks."""
        numerator, denominator = self._tick
        value, denominator = (bid + ask) * numerator, 2 * denominator
        return value / denominator if value % denominator else value // denominator

    def ticks(self, price: Any) -> int:
        """The number of ticks of a price (int, float or Decimal).

        Raises ValueError where the price is not a number, not a multiple of the tick size, not positive or above
        ``max_price``.
        """
        if isinstance(price, bool) or not isinstance(price, int | float | Decimal) or not math.isfinite(price):
            raise ValueError(f"{self.symbol}: price {price!r} is not a number")
        ticks = Fraction(Decimal(str(price))) / Fraction(self.tick_size)
        if ticks.denominator != 1:
            raise ValueError(f"{self.symbol}: price {price} is not a multiple of the tick size {self.tick_size}")
        if not 0 < ticks <= self.max_ticks:
            raise ValueError(f"{self.symbol}: price {price} is not between {self.tick_size} and {self.max_price}")
        return int(ticks)

    def nearest_ticks(self, price: float) -> int:
        """The number of ticks nearest to any positive price."""
        numerator, denominator = self._tick
        return max(1, min(self.max_ticks, round(price * denominator / numerator)))

    def order_id(self, ticks: int) -> int:
        """The ``id`` in orderBookL2 of the level at a price."""
        return 100_000_000 * self.id_index - ticks * self._id_ticks

    def value(self, quantity: int, ticks: int) -> int:
        """What contracts are worth at a price, in units of the settlement currency (``grossValue``).

        Of an inverse contract, a lot's value is rounded (checked on real trades: 100 XBTUSD at 32180.5 are 310747
        satoshi, 900 are 2796723); of the others the value is exact, but for a rounding to whole units.
        """
        numerator, denominator = self._tick
        if self.is_inverse:
            lot = -self.multiplier * self.lot_size * denominator
            return quantity * ((2 * lot + ticks * numerator) // (2 * ticks * numerator)) // self.lot_size
        return (2 * quantity * self.multiplier * ticks * numerator + denominator) // (2 * denominator)

    def cost(self, size: int, price: Any) -> int:
        """The value of a position of ``size`` contracts (negative: short) at any price, in units of the settlement
        currency, with the sign that BitMEX gives it (``execCost``, ``markValue``): negative for a long one in an
        inverse contract, positive for a long one in the others.

        Of an inverse contract the value of a lot is rounded, as in `value`; a size that is no multiple of the lot has
        its exact value, rounded. Halves are rounded away from zero.
        """
        exact = Fraction(str(price))
        quantity = abs(size)
        if self.is_inverse:
            unit = self.lot_size if quantity % self.lot_size == 0 else quantity
            amount = quantity // unit * round_half_up(-self.multiplier * unit / exact) if quantity else 0
        else:
            amount = round_half_up(quantity * self.multiplier * exact)
        return -amount if (size > 0) == self.is_inverse else amount

    def notional(self, quantity: int, price: float, value: int, settlement_price: float) -> tuple[float, float]:
        """(``homeNotional``, ``foreignNotional``) of contracts worth ``value`` at a price: the amounts of the
        underlying and of the quote currency.

        ``settlement_price`` is what one XBT is worth in the quote currency; only quanto contracts need it (as in real
        trades: the value in XBT is turned into dollars, and these into the underlying).
        """
        if self.is_inverse:
            return value / 100_000_000, quantity
        if self.is_quanto:
            foreign = value / 100_000_000 * settlement_price
            return foreign / price, foreign
        return quantity * self.multiplier / 1_000_000, value / 1_000_000

    def vwap(self, volume: int, turnover: int) -> float | None:
        """The volume-weighted average price of contracts worth ``turnover``, to four places as BitMEX gives it."""
        if not volume or not turnover:
            return None
        if self.is_inverse:
            return round(-self.multiplier * volume / turnover, 4)
        return round(turnover / (volume * self.multiplier), 4)


# Specifications: https://www.bitmex.com/app/perpetualContractsGuide and the table `instrument`. The ids of XBTUSD and
# XBTUSDT follow those of real messages (8796794450 is XBTUSD at 32055.5, 73199935756 is XBTUSDT at 32122).
INSTRUMENTS = {
    instrument.symbol: instrument
    for instrument in (
        Instrument(
            "XBTUSD",
            "XBT",
            "USD",
            "XBt",
            ".BXBT",
            "0.5",
            100,
            -100_000_000,
            88,
            "0.01",
            64000.0,
            400,
            10.0,
            open_interest=512_000_000,
        ),
        Instrument(
            "ETHUSD",
            "ETH",
            "USD",
            "XBt",
            ".BETH",
            "0.05",
            1,
            100,
            297,
            "0.05",
            3200.0,
            200,
            5.0,
            is_quanto=True,
            open_interest=41_000_000,
        ),
        Instrument(
            "XBTUSDT",
            "XBT",
            "USDT",
            "USDt",
            ".BXBTT",
            "0.5",
            1000,
            1,
            732,
            "0.5",
            64000.0,
            200,
            3.0,
            max_order_quantity=1_000_000_000,
            open_interest=900_000_000,
        ),
        Instrument(
            "SOLUSDT",
            "SOL",
            "USDT",
            "USDt",
            ".BSOLT",
            "0.01",
            100,
            100,
            549,
            "0.01",
            150.0,
            150,
            2.0,
            max_price=100_000,
            max_order_quantity=1_000_000_000,
            open_interest=70_000_000,
        ),
    )
}
