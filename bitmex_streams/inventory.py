"""What a contract is worth, and what a position in it has cost and earned, to the smallest unit.

All amounts are int, the smallest unit of the contract's settlement currency (XBt: satoshi; USDt: 1e-6 USDT). All
arithmetic is exact: a price is taken as the decimal number that was written (the float 31964.1 as 31964.1), and an
amount is rounded once, half away from zero. No I/O, no time, nothing of the stream.

The rules are those of BitMEX's position rows: its cost is the value of what was bought, less the value of what was
sold, at the prices of the fills; so of an inverse contract, whose value is negative, a long position has a negative
cost. https://www.bitmex.com/app/perpetualContractsGuide (values),
https://support.bitmex.com/hc/en-gb/articles/6205277211037 (an example of profit, with its rounding).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from fractions import Fraction
from typing import Any

__all__ = ["Contract", "Inventory"]

EXACT = Context(prec=60, rounding=ROUND_HALF_EVEN)


@dataclass(frozen=True, slots=True)
class Contract:
    """How an instrument is valued, in the terms of the table ``instrument``.

    ``currency``: what it is settled in (settlCurrency, ``"XBt"``, ``"USDt"``). ``multiplier``: int, the value of one
    contract per unit of price, in the smallest unit of ``currency``; of an inverse contract (``is_inverse``), whose
    value is the multiplier *divided* by the price, it is negative. ``lot_size``: int, contracts; the value of an
    inverse contract is rounded by the lot. ``is_quanto``: settled in a currency that is neither its underlying nor its
    quote; valued as a linear one.

    Raises ValueError for what cannot be such a contract.
    """

    symbol: str
    currency: str
    multiplier: int
    lot_size: int = 1
    is_inverse: bool = False
    is_quanto: bool = False

    def __post_init__(self) -> None:
        for field in ("symbol", "currency"):
            if type(getattr(self, field)) is not str or not getattr(self, field):
                raise ValueError(f"the {field} of a contract must be a text, not {getattr(self, field)!r:.80}")
        if type(self.multiplier) is not int or not self.multiplier:
            raise ValueError(f"{self.symbol}: the multiplier must be an int other than 0, not {self.multiplier!r:.80}")
        if type(self.lot_size) is not int or self.lot_size < 1:
            raise ValueError(f"{self.symbol}: the lot size must be a positive int, not {self.lot_size!r:.80}")

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Contract:
        """The contract of a row of the table ``instrument``.

        Raises ValueError, in words, where it has none (an index is an instrument, but no contract), or is incomplete.
        """
        missing = [field for field in ("symbol", "settlCurrency", "multiplier", "lotSize") if row.get(field) is None]
        if missing:
            raise ValueError(f"{row.get('symbol')!r:.80} is no contract: its row has no {', '.join(missing)}")
        return cls(
            row["symbol"],
            row["settlCurrency"],
            row["multiplier"],
            row["lotSize"],
            row.get("isInverse") is True,
            row.get("isQuanto") is True,
        )

    def value(self, size: int, price: Any) -> int:
        """What ``size`` contracts (int, negative: short) are worth at ``price`` (int, float or Decimal, in the quote
        currency).

        Raises ValueError where the size is no int, or the price no positive, finite number.
        """
        if type(size) is not int:
            raise ValueError(f"{self.symbol}: a size must be an int, not {size!r:.80}")
        numerator, denominator = _ratio(price, self.symbol)
        if not self.is_inverse:
            return _rounded(size * self.multiplier * numerator, denominator)
        lots, rest = divmod(abs(size), self.lot_size)
        if rest:
            return _rounded(size * self.multiplier * denominator, numerator)
        value = lots * _rounded(abs(self.multiplier) * self.lot_size * denominator, numerator)
        return value if (size > 0) == (self.multiplier > 0) else -value


class Inventory:
    """What an account holds of one contract, and what that has cost and earned, from its fills and funding.

    It begins empty. Amounts are int, in the smallest unit of ``contract.currency``; ``size`` is int, contracts,
    negative: short. ``cost`` (the exchange's unrealisedCost) is the value of what is open, at the prices it was
    opened at: a fill in the same direction adds its own, one that reduces takes out of it in proportion, one that goes
    through zero closes all and opens the rest. ``fees`` are what was paid in commission and funding, less rebates.
    """

    __slots__ = ("_decimal", "_traded", "contract", "cost", "fees", "size")

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.size = 0
        self.cost = 0
        self.fees = 0
        self._traded = 0  # the cost of all fills, closed ones too: the exchange's currentCost
        self._decimal = False  # whether prices come as Decimal

    def __repr__(self) -> str:
        return f"<Inventory {self.contract.symbol}: {self.size} cost {self.cost}, realized {self.realized}>"

    def fill(self, side: str, size: int, price: Any, *, cost: int | None = None, fee: int = 0) -> None:
        """Take a fill: ``size`` contracts (int, positive) bought (``side`` ``"Buy"``) or sold (``"Sell"``) at
        ``price``.

        ``cost``: int, its value as the exchange says (execCost: negative for what is bought of an inverse contract);
        None: computed. ``fee``: int (execComm), negative for a rebate.

        Raises ValueError, and changes nothing, for what cannot be a fill.
        """
        contract = self.contract
        if side not in ("Buy", "Sell"):
            raise ValueError(f"{contract.symbol}: the side of a fill is Buy or Sell, not {side!r:.80}")
        if type(size) is not int or size < 1:
            raise ValueError(f"{contract.symbol}: the size of a fill must be a positive int, not {size!r:.80}")
        fee, signed = _amount(fee, "fee", contract.symbol), size if side == "Buy" else -size
        value = contract.value(signed, price)  # also where the cost is given: it checks the price
        cost = value if cost is None else _amount(cost, "cost", contract.symbol)
        before, after = self.size, self.size + signed
        if before * signed >= 0:
            self.cost += cost
        elif before * after > 0:
            self.cost -= _rounded(self.cost * size, abs(before))
        else:
            self.cost = contract.value(after, price)
        self.size = after
        self.fees += fee
        self._traded += cost
        self._decimal = type(price) is Decimal

    def funding(self, fee: int) -> None:
        """Take a funding: ``fee`` (int, execComm) was paid, or, where it is negative, received. ValueError for
        another type."""
        self.fees += _amount(fee, "funding", self.contract.symbol)

    @property
    def realized(self) -> int:
        """The profit of what was closed, less all fees and funding (the exchange's realisedPnl)."""
        return self.cost - self._traded - self.fees

    def unrealized(self, mark_price: Any) -> int:
        """The profit of what is open, were it closed at ``mark_price``. ValueError for what is no price."""
        return self.contract.value(self.size, mark_price) - self.cost

    def net(self, mark_price: Any) -> int:
        """Realized and unrealized profit together. ValueError for what is no price."""
        return self.realized + self.unrealized(mark_price)

    @property
    def average_entry_price(self) -> Any:
        """The price at which what is open has just this cost; None where nothing is open.

        A Decimal where prices come as such, else a float. Rounded (half to even) to four places, as the exchange does;
        below 1 to seven significant digits.
        """
        value = self.size * self.contract.multiplier
        if not value or not self.cost:
            return None
        exact = Fraction(value, self.cost) if self.contract.is_inverse else Fraction(self.cost, value)
        with localcontext(EXACT):
            price = Decimal(exact.numerator) / exact.denominator
            places = 4 if price >= 1 else 6 - price.adjusted()
            price = round(price, places)
        return price if self._decimal else float(price)


def _ratio(price: Any, symbol: str) -> tuple[int, int]:
    """A price as numerator and denominator of the decimal number that was written."""
    if type(price) is int:
        exact = Decimal(price)
    elif isinstance(price, float):
        exact = Decimal(repr(float(price)))
    else:
        exact = price if isinstance(price, Decimal) else Decimal("NaN")
    # One of a million digits is no price either, and would take its time.
    if not exact.is_finite() or exact <= 0 or abs(exact.adjusted()) > 30:
        raise ValueError(f"{symbol}: a price must be a positive number, not {price!r:.80}")
    return exact.as_integer_ratio()


def _rounded(numerator: int, denominator: int) -> int:
    """A quotient, rounded half away from zero; the denominator is positive."""
    rounded = (2 * abs(numerator) + denominator) // (2 * denominator)
    return rounded if numerator > 0 else -rounded


def _amount(amount: Any, what: str, symbol: str) -> int:
    if type(amount) is not int:
        raise ValueError(f"{symbol}: a {what} must be an int, in the smallest unit of its currency, not {amount!r:.80}")
    return amount
