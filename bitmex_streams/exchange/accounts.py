"""Accounts: who trades on the exchange, what is theirs, and what they are told of it.

An `Account` sends, amends and cancels orders by its methods, keeps the rows of its private tables, and publishes what
becomes of them as the real exchange does. Whatever one method does, or one event of a market does to an account, comes
as at most one message for each table and action, in this order: order (first what comes, then what changes),
execution, position, margin. They follow the public messages of the same event.

Not here: liquidation (see `positions`), stop and pegged orders, hidden size, isolated margin and risk limits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from random import Random
from string import ascii_letters, digits
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from ..messages import Row, Side
from .account_rows import funding_row, margin_row, order_row, position_row, wallet_row
from .account_tables import AccountTables
from .instruments import INSTRUMENTS, Instrument
from .keys import Keys
from .market import Market, MarketEvent, Match, Order, new_guid
from .positions import Position, fee, margin, order_margin_rate
from .resting import RestingSide
from .tables import MarketTables, iso

if TYPE_CHECKING:
    from .simulation import Due, Simulation

__all__ = ["Account", "Accounts", "OrderRefused"]

TimeInForce: TypeAlias = Literal["GoodTillCancel", "ImmediateOrCancel", "FillOrKill"]

DEPOSITS = {"XBt": 100_000_000, "USDt": 100_000_000_000}
CURRENCIES = {instrument.settlement_currency for instrument in INSTRUMENTS.values()}
KEY_CHARACTERS = ascii_letters + digits + "-_"
CLOSED_ORDERS = 1000  # of which it is known that they were there
MAX_TIMEOUT = 2**31 - 1  # ms
MAX_CLIENT_ID = 36
MILLISECOND = 1_000_000
SIDES: tuple[Side, Side] = ("Buy", "Sell")
REMOVED = "RemovedLiquidity"
ROLES = ("AddedLiquidity", REMOVED)
NO_ID = "00000000-0000-0000-0000-000000000000"

SUBMITTED = "Submitted via API."
CANCELED = "Canceled: Canceled via API."
CANCELED_ALL_AFTER = "Canceled: Cancel all after"
WOULD_TAKE = "Canceled: Order had execInst of ParticipateDoNotInitiate"


class OrderRefused(ValueError):
    """The exchange refuses an order, an amendment, a cancellation or a withdrawal; nothing has changed. The text is in
    the exchange's words, ``status`` (int) as in HTTP: 400.
    """

    status = 400


@dataclass(slots=True, eq=False)
class OpenOrder:
    """An order of an account that is not done: its row in the table ``order``, and what is not in that."""

    row: Row
    order: Order
    market: Market
    reduce_only: bool
    post_only: bool
    number: int  # orders of one account are counted
    value: Fraction = Fraction(0)  # of what was filled, for the average price
    reason: str = ""  # why it is being canceled, or how it is being amended

    @property
    def id(self) -> str:
        return self.order.id


class Account:
    """One account. Everything in it can be read at any time, and is fresh: changing it changes nothing here.

    ``id``: int, six digits. ``api_key``, ``api_secret``: str, what clients sign in with. All methods are synchronous,
    and happen at the exchange's time; clients get what came of them when the caller next awaits. All amounts are int,
    in the smallest unit of their currency. An account's orders can match each other.
    """

    def __init__(self, accounts: Accounts, id: int, api_key: str, api_secret: str) -> None:
        self.id = id
        self.api_key = api_key
        self.api_secret = api_secret
        self.tables = AccountTables(id)
        self._accounts = accounts
        self._exchange = accounts.exchange
        self._markets = accounts.exchange.tables.markets
        self._open: dict[str, OpenOrder] = {}
        self._by_client_id: dict[str, OpenOrder] = {}  # of those that have one
        self._reducing: dict[str, OpenOrder] = {}  # those that may only reduce, by orderID
        self._resting: dict[tuple[str, Side], RestingSide] = {}
        self._numbers = count()
        self._closed: OrderedDict[str, Row] = OrderedDict()
        self._holdings: dict[str, Position] = {}
        self._notified = 0
        self._switch: Due | None = None  # of cancelAllAfter
        # What is to be published when the method or event that is at work is done.
        self._depth = 0
        self._symbols: dict[str, None] = {}
        self._currencies: dict[str, None] = {}

    def __repr__(self) -> str:
        return f"<Account {self.id}: {len(self._open)} open orders>"

    # --- what is there ---

    @property
    def orders(self) -> dict[str, Row]:
        """The open orders, by orderID."""
        return {id: dict(row) for id, row in self.tables.orders.items()}

    @property
    def executions(self) -> list[Row]:
        """The executions, oldest first: the last 10,000."""
        return [dict(row) for row in self.tables.executions]

    @property
    def positions(self) -> dict[str, Row]:
        """The positions, by symbol: of every contract that the account ever had an order in."""
        return {symbol: dict(row) for symbol, row in self.tables.positions.items()}

    @property
    def margins(self) -> dict[str, Row]:
        """The margin, by currency."""
        return {currency: dict(row) for currency, row in self.tables.margins.items()}

    @property
    def wallets(self) -> dict[str, Row]:
        """The wallets, by currency: what was deposited and withdrawn."""
        return {currency: dict(row) for currency, row in self.tables.wallets.items()}

    @property
    def transacts(self) -> list[Row]:
        """All deposits and withdrawals, oldest first."""
        return [dict(row) for row in self.tables.transacts]

    @property
    def notifications(self) -> list[Row]:
        """The last private notifications, oldest first."""
        return [dict(row) for row in self.tables.notifications]

    # --- trading ---

    def submit(
        self,
        symbol: str,
        side: Side,
        size: int,
        price: Any = None,
        *,
        client_order_id: str = "",
        time_in_force: TimeInForce = "GoodTillCancel",
        post_only: bool = False,
        reduce_only: bool = False,
    ) -> Row:
        """Send an order: a limit order at ``price``, a market order without. Returns its row as it is after matching.

        ``size``: contracts. ``client_order_id``: unique among the open orders. ``time_in_force``: whether what is not
        filled at once rests, or is canceled (all of a FillOrKill that cannot be filled at once in whole). A
        ``post_only`` order that would take is canceled. A ``reduce_only`` order is no larger than the position, gives
        way when that gets smaller, and is canceled without one; but only from one event of the market to the next: an
        order of another that sweeps through it and through what else the account offers at once fills them all. What a
        market order finds no match for is canceled.

        Raises OrderRefused for an order that makes no sense, and where the available balance does not suffice.
        """
        with self._moment() as now:
            market = self._market(symbol)
            if side not in SIDES:
                raise OrderRefused("Invalid side")
            self._check_size(market.instrument, size)
            ticks = None if price is None else self._ticks(market.instrument, price)
            self._check_options(ticks, client_order_id, time_in_force, post_only)
            room = self._room(symbol, side)
            if reduce_only:
                size = min(size, room) or size
            else:
                self._check_margin(market, side, size, ticks)

            if ticks is None and time_in_force == "GoodTillCancel":
                time_in_force = "ImmediateOrCancel"
            immediate = time_in_force != "GoodTillCancel"
            order = Order(self._accounts.new_id(), side, size, ticks, size, self, immediate)
            flags = {"ParticipateDoNotInitiate": post_only, "ReduceOnly": reduce_only}
            row = order_row(
                self.id, market.instrument, order, client_order_id, time_in_force,
                ",".join(name for name, given in flags.items() if given), SUBMITTED, iso(now),
            )  # fmt: skip
            found = OpenOrder(row, order, market, reduce_only, post_only, next(self._numbers))
            self._open[order.id] = found
            if reduce_only:
                self._reducing[order.id] = found
            self._count(found)
            if client_order_id:
                self._by_client_id[client_order_id] = found
            self.tables.insert_order(row)
            self._execute(found, "New")
            self._symbols[symbol] = None
            if reduce_only and not room:
                self._close(found, self._not_reducing(found))
            elif post_only and market.engine.would_take(side, ticks):
                self._close(found, WOULD_TAKE)
            elif time_in_force == "FillOrKill" and not market.engine.can_fill(side, ticks, size):
                self._close(found, f"Canceled: Order had timeInForce of {time_in_force}")
            else:
                market.submit_order(order)
            return dict(row)

    def amend(
        self,
        order_id: str | None = None,
        *,
        client_order_id: str | None = None,
        size: int | None = None,
        leaves: int | None = None,
        price: Any = None,
    ) -> Row:
        """Change an open order, named by either id. Returns its row as it is after matching.

        ``size``: of the whole order, with what was filled; or ``leaves``: of what is to be left of it. It keeps its
        place in the queue only if it shrinks in place. A post-only order that would take now is canceled.

        Raises OrderRefused where there is no such order, it is done, or what is asked for makes no sense.
        """
        with self._moment():
            found = self._find(order_id, client_order_id, "Invalid ordStatus")
            order, instrument = found.order, found.market.instrument
            if size is not None and leaves is not None:
                raise OrderRefused("Invalid orderQty")
            quantity, ticks = order.quantity, order.ticks
            for name, given in (("leavesQty", leaves), ("orderQty", size)):
                if given is not None:
                    self._check_size(instrument, given, name)
                    quantity = given + order.filled if name == "leavesQty" else given
            if quantity <= order.filled or quantity > instrument.max_order_quantity:
                raise OrderRefused("Invalid orderQty" if leaves is None else "Invalid leavesQty")
            if price is not None:
                ticks = self._ticks(instrument, price)
            if (quantity, ticks) == (order.quantity, order.ticks):
                raise OrderRefused("Invalid amend: orderQty, leavesQty, price, stopPx unchanged")
            if not found.reduce_only:
                self._check_margin(found.market, order.side, quantity - order.filled, ticks, instead_of=found)
            if found.post_only and ticks != order.ticks and found.market.engine.would_take(order.side, ticks):
                found.reason = WOULD_TAKE
                found.market.cancel(order.id)
            else:
                fields = [
                    name
                    for name, given in (("orderQty", size), ("leavesQty", leaves), ("price", price))
                    if given is not None
                ]
                found.reason = f"Amended {' '.join(fields)}: Amended via API."
                assert ticks is not None
                found.market.amend(order.id, quantity=quantity, price=instrument.price(ticks))
            return dict(found.row)

    def cancel(
        self, order_id: str | None = None, *, client_order_id: str | None = None, text: str = CANCELED
    ) -> Row:
        """Cancel an open order, named by either id. Returns its last row. ``text``: the reason, for that row.

        Raises OrderRefused where there is no such order, or it is done.
        """
        with self._moment():
            found = self._find(order_id, client_order_id, "Unable to cancel order due to existing state: {}")
            return self._cancel([found], text)[0]

    def cancel_all(self, symbol: str | None = None, side: Side | None = None, *, text: str = CANCELED) -> list[Row]:
        """Cancel all open orders (of a symbol, of a side). Returns their last rows, in the order of their submission.

        Raises OrderRefused for an unknown symbol or side.
        """
        if symbol is not None:
            self._market(symbol)
        if side not in (*SIDES, None):
            raise OrderRefused("Invalid side")
        with self._moment():
            concerned = [
                found
                for found in self._open.values()
                if symbol in (None, found.market.symbol) and side in (None, found.order.side)
            ]
            return self._cancel(concerned, text)

    def cancel_all_after(self, milliseconds: int) -> Row:
        """Arm the dead man's switch: unless it is armed anew before, all open orders are canceled after that time (of
        the exchange's clock). 0 disarms it. There is one for the account, whoever arms it.

        Returns ``now`` and ``cancelTime`` (str; 0 where it was disarmed). Raises ValueError for what is no time of up
        to 24 days.
        """
        if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float):
            raise ValueError(f"{milliseconds!r} is not a number of milliseconds")
        if not 0 <= milliseconds <= MAX_TIMEOUT:
            raise ValueError(f"{milliseconds!r} is not a number of milliseconds from 0 to {MAX_TIMEOUT}")
        now = self._exchange.time()
        if self._switch is not None:
            self._exchange.unschedule(self._switch)
            self._switch = None
        if not milliseconds:
            return {"now": iso(now), "cancelTime": 0}
        time = now + int(milliseconds * MILLISECOND)
        self._switch = self._exchange.schedule(time, self._switch_off)
        return {"now": iso(now), "cancelTime": iso(time)}

    def _switch_off(self, now: int) -> None:
        self._switch = None
        self.cancel_all(text=CANCELED_ALL_AFTER)

    # --- money and mail ---

    def deposit(self, currency: str, amount: int) -> Row:
        """Pay in. Returns the row of the table ``transact``. Raises ValueError for a currency in which nothing is
        settled, and an amount that is not a positive int.
        """
        return self._transact("Deposit", currency, amount)

    def withdraw(self, currency: str, amount: int) -> Row:
        """Pay out, at once and without a fee. Returns the row of the table ``transact``. Raises like `deposit`, and
        OrderRefused where the balance that is not bound, and not merely a profit on paper, does not suffice.
        """
        return self._transact("Withdrawal", currency, amount)

    def notify(self, title: str, body: str) -> Row:
        """Have a private notification appear. Returns its row."""
        self._notified += 1
        row: Row = {
            "id": self._notified, "date": iso(self._exchange.time()), "title": title, "body": body, "ttl": 60,
            "type": "info", "closable": True, "persist": False, "waitForVisibility": False, "sound": "",
        }  # fmt: skip
        self.tables.append("privateNotifications", row)
        return dict(row)

    def _transact(self, kind: str, currency: str, amount: int) -> Row:
        if not isinstance(currency, str) or currency not in CURRENCIES:
            raise ValueError(f"currency is {currency!r}: it must be one of {', '.join(sorted(CURRENCIES))}")
        if not isinstance(amount, int) or isinstance(amount, bool) or amount <= 0:
            raise ValueError(f"amount is {amount!r}: it must be a positive whole number of {currency} (int)")
        with self._moment() as now:
            timestamp = iso(now)
            if kind == "Withdrawal" and amount > self.tables.margins.get(currency, {}).get("withdrawableMargin", 0):
                raise OrderRefused(f"Account has insufficient Available Balance, {amount} {currency} required")
            row: Row = {
                "transactID": self._accounts.new_id(), "account": self.id, "currency": currency,
                "transactType": kind, "amount": amount if kind == "Deposit" else -amount, "fee": 0,
                "transactStatus": "Completed", "address": "", "tx": "", "text": "",
                "transactTime": timestamp, "timestamp": timestamp,
            }  # fmt: skip
            self.tables.append("transact", row)
            self.tables.put("wallet", [wallet_row(self.tables.wallets.get(currency), row)])
            self._currencies[currency] = None
        return dict(row)

    # --- what is asked of an order ---

    def _market(self, symbol: str) -> Market:
        if not isinstance(symbol, str) or symbol not in self._markets:
            raise OrderRefused("Invalid symbol")
        return self._markets[symbol].market

    def _check_options(self, ticks: int | None, client_order_id: Any, time_in_force: Any, post_only: bool) -> None:
        if time_in_force not in ("GoodTillCancel", "ImmediateOrCancel", "FillOrKill"):
            raise OrderRefused("Unsupported timeInForce")
        if post_only and (ticks is None or time_in_force != "GoodTillCancel"):
            raise OrderRefused("Invalid ordType or timeInForce for execInst")
        if not isinstance(client_order_id, str) or len(client_order_id) > MAX_CLIENT_ID:
            raise OrderRefused("Invalid clOrdID")
        if client_order_id in self._by_client_id:
            raise OrderRefused("Duplicate clOrdID")

    @staticmethod
    def _check_size(instrument: Instrument, size: Any, name: str = "orderQty") -> None:
        if isinstance(size, bool) or not isinstance(size, int) or not 0 < size <= instrument.max_order_quantity:
            raise OrderRefused(f"Invalid {name}")
        if size % instrument.lot_size:
            raise OrderRefused(f"Order quantity must be a multiple of lot size: {instrument.lot_size}")

    @staticmethod
    def _ticks(instrument: Instrument, price: Any) -> int:
        try:
            return instrument.ticks(price)
        except ValueError as error:
            words = "Invalid price tickSize" if "multiple" in str(error) else "Invalid price"
            raise OrderRefused(words) from error

    def _find(self, order_id: str | None, client_order_id: str | None, closed: str) -> OpenOrder:
        if order_id is None and not client_order_id:
            raise OrderRefused("orderID or origClOrdID must be sent.")
        column, id = ("orderID", order_id) if order_id is not None else ("clOrdID", client_order_id)
        found = (self._open if column == "orderID" else self._by_client_id).get(id)  # type: ignore[arg-type]
        if found is not None:
            return found
        for row in reversed(self._closed.values()):
            if row[column] == id:
                raise OrderRefused(closed.format(row["ordStatus"]))
        raise OrderRefused("Invalid orderID" if column == "orderID" else "Invalid origClOrdID")

    def _room(self, symbol: str, side: Side) -> int:
        """How many contracts an order of that side can close."""
        holding = self._holdings.get(symbol)
        size = holding.size if holding is not None else 0
        return max(0, -size if side == "Buy" else size)

    def _not_reducing(self, found: OpenOrder) -> str:
        holding = self._holdings.get(found.market.symbol)
        size = holding.size if holding is not None else 0
        side = found.order.side
        return f"Canceled: Order had execInst of ReduceOnly and side of {side} but current position is {size}"

    def _check_margin(
        self, market: Market, side: Side, size: int, ticks: int | None, instead_of: OpenOrder | None = None
    ) -> None:
        """Raise OrderRefused where what an order would bind, at the prices that it would get now, is not there."""
        pieces, left = [], size
        for at, met in market.engine.meets(side, ticks):
            pieces.append((min(left, met), at))
            left -= pieces[-1][0]
            if not left:
                break
        if left and ticks is not None:
            pieces.append((left, ticks))
        instrument = market.instrument
        required = self._order_margin(instrument, {side: pieces}, instead_of) - self._order_margin(instrument)
        currency = instrument.settlement_currency
        row = self.tables.margins.get(currency, {"marginBalance": 0, "initMargin": 0})
        if required > 0 and required > row["marginBalance"] - row["initMargin"]:
            raise OrderRefused(f"Account has insufficient Available Balance, {required} {currency} required")

    def _order_margin(
        self,
        instrument: Instrument,
        more: Mapping[str, Sequence[tuple[int, int]]] | None = None,
        without: OpenOrder | None = None,
    ) -> int:
        """What the open orders in one contract bind: with some more, without one."""
        value = max(
            self._side(instrument, side).opening_value(
                self._room(instrument.symbol, side),
                (more or {}).get(side, ()),
                None if without is None else without.id,
            )
            for side in SIDES
        )
        return margin(value, order_margin_rate(instrument))

    def _side(self, instrument: Instrument, side: Side) -> RestingSide:
        resting = self._resting.get((instrument.symbol, side))
        if resting is None:
            resting = self._resting[instrument.symbol, side] = RestingSide(instrument, side)
        return resting

    def _count(self, found: OpenOrder) -> None:
        """Whenever an order has changed."""
        self._side(found.market.instrument, found.order.side).put(found.order, found.number, found.reduce_only)

    # --- what becomes of orders ---

    @contextmanager
    def _moment(self) -> Iterator[int]:
        """All that is done within happens at one moment, which is given (ns), and is published as one thing."""
        now = self._exchange.time()
        with self._exchange.standing_still(), self._together(now):
            yield now

    @contextmanager
    def _together(self, now: int) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._publish(now)

    def follow(self, event: MarketEvent, trades: Sequence[Row]) -> None:
        """Take note of what an event did to the account's orders. ``trades``: the public rows of its fills."""
        symbol = event.market.symbol
        with self._together(event.time):
            own = self._open.get(event.order.id)
            if own is not None:
                self._follow_terms(own)
            rates = event.market.instrument.maker_fee, event.market.instrument.taker_fee
            for fill, trade in zip(event.fills, trades, strict=True):
                for order, rate, role in zip((fill.maker, fill.taker), rates, ROLES, strict=True):
                    found = self._open.get(order.id)
                    if found is not None:
                        self._fill(found, fill, trade, rate, role)
            if own is not None and own.id in self._open and own.id not in event.market.engine.orders:
                lapsed = own.order.immediate or own.order.ticks is None
                words = f"Canceled: Order had timeInForce of {own.row['timeInForce']}" if lapsed else CANCELED
                self._close(own, own.reason or words)
            self._symbols[symbol] = None
            self._limit_reducing(symbol)

    def _follow_terms(self, found: OpenOrder) -> None:
        """The order was amended, if it was: what was asked for is not as it stands in the row."""
        order, row = found.order, found.row
        price = None if order.ticks is None else found.market.instrument.price(order.ticks)
        if (order.quantity, price) == (row["orderQty"], row["price"]):
            return
        text = found.reason or "Amended"
        found.reason = ""
        self._update(
            found,
            orderQty=order.quantity,
            price=price,
            leavesQty=order.quantity - row["cumQty"],
            text=f"{text}\n{SUBMITTED}",
        )
        self._count(found)
        self._execute(found, "Replaced")

    def _fill(self, found: OpenOrder, fill: Match, trade: Row, rate: float, role: str) -> None:
        instrument, row, side = found.market.instrument, found.row, found.order.side
        sign = 1 if side == "Buy" else -1
        price = trade["price"]
        exact = Fraction(str(price))
        found.value += fill.quantity / exact if instrument.is_inverse else fill.quantity * exact
        filled = row["cumQty"] + fill.quantity
        leaves = row["leavesQty"] - fill.quantity
        average = round(filled / found.value if instrument.is_inverse else found.value / filled, 4)
        self._update(
            found,
            ordStatus="PartiallyFilled" if leaves else "Filled",
            leavesQty=leaves,
            cumQty=filled,
            avgPx=average.numerator if average.denominator == 1 else float(average),
            workingIndicator=leaves > 0,
        )
        holding = self._holdings.setdefault(row["symbol"], Position(instrument))
        cost = holding.trade(sign * fill.quantity, price)
        paid = fee(cost, rate)
        holding.fees += paid
        self._execute(
            found, "Trade", lastQty=fill.quantity, lastPx=price, lastLiquidityInd=role, commission=rate,
            feeType="Commission", tradePublishIndicator="PublishTrade" if role == REMOVED else "DoNotPublishTrade",
            trdMatchID=trade["trdMatchID"], execCost=cost, execComm=paid, homeNotional=sign * trade["homeNotional"],
            foreignNotional=-sign * trade["foreignNotional"], trdType=trade["trdType"],
        )  # fmt: skip
        if leaves:
            self._count(found)
        else:
            self._leave(found)

    def _limit_reducing(self, symbol: str) -> None:
        """Orders that may only reduce must not be more than there is to reduce; the least aggressive ones give way."""
        reducing = [found for found in self._reducing.values() if found.market.symbol == symbol]
        reducing.sort(key=lambda found: (found.order.ticks or 0) * (-1 if found.order.side == "Buy" else 1))
        room = {side: self._room(symbol, side) for side in SIDES}
        for found in reducing:
            order = found.order
            allowed = room[order.side]
            room[order.side] -= min(allowed, order.leaves)
            if order.id not in found.market.engine.orders or order.leaves <= allowed:
                continue
            if allowed:
                found.reason = "Amended orderQty: Order had execInst of ReduceOnly"
                found.market.amend(order.id, quantity=order.filled + allowed)
            else:
                found.reason = self._not_reducing(found)
                found.market.cancel(order.id)

    def _cancel(self, concerned: Sequence[OpenOrder], text: str) -> list[Row]:
        for found in concerned:
            if found.id in self._open:
                found.reason = text
                found.market.cancel(found.id)
        return [dict(found.row) for found in concerned]

    def _close(self, found: OpenOrder, text: str) -> None:
        """The order is canceled, and in no book any more."""
        self._update(found, ordStatus="Canceled", leavesQty=0, workingIndicator=False, text=f"{text}\n{SUBMITTED}")
        self._execute(found, "Canceled")
        self._leave(found)

    def _leave(self, found: OpenOrder) -> None:
        del self._open[found.id]
        self._by_client_id.pop(found.row["clOrdID"], None)
        self._reducing.pop(found.id, None)
        self._side(found.market.instrument, found.order.side).remove(found.id)
        self.tables.close_order(found.row)
        self._closed[found.id] = found.row
        if len(self._closed) > CLOSED_ORDERS:
            self._closed.popitem(last=False)

    # --- what time brings ---

    def on_mark(self, now: int) -> None:
        """The mark prices have moved."""
        with self._together(now):
            self._symbols.update(dict.fromkeys(self.tables.positions))

    def on_funding(self, now: int) -> None:
        """Pay funding, or get it, for each position, at the mark price and the rate that was announced."""
        with self._together(now):
            for symbol, holding in self._holdings.items():
                if not holding.size:
                    continue
                tables = self._markets[symbol]
                rate = tables.fundings[-1]["fundingRate"] * (1 if holding.size > 0 else -1)
                price = tables.mark_price
                cost = holding.mark_value(price)
                paid = fee(cost, rate)
                holding.fees += paid
                notional = self._notional(tables, holding.size, cost)
                row = funding_row(self.id, holding, price, rate, cost, paid, notional, iso(now))
                ids = {"execID": self._accounts.new_id(), "orderID": NO_ID, "trdMatchID": self._accounts.new_id()}
                self.tables.insert_execution({**ids, **row})
                self._symbols[symbol] = None

    # --- what is told of it ---

    def _update(self, found: OpenOrder, **changes: Any) -> None:
        self.tables.update_order(found.row, changes, iso(self._exchange.now))

    def _execute(self, found: OpenOrder, kind: str, **fields: Any) -> None:
        times = dict.fromkeys(("transactTime", "timestamp"), iso(self._exchange.now))
        id = self._accounts.new_id()
        self.tables.insert_execution(
            {"execID": id, **found.row, "execType": kind, "trdMatchID": NO_ID, **fields, **times}
        )

    def _publish(self, now: int) -> None:
        """Publish what has come together, with what it makes of positions and margins."""
        symbols, self._symbols = self._symbols, {}
        currencies, self._currencies = self._currencies, {}
        timestamp = iso(now)
        self.tables.publish_orders()
        self.tables.put("position", [self._position_row(symbol, timestamp) for symbol in symbols])
        currencies.update({self._markets[symbol].market.instrument.settlement_currency: None for symbol in symbols})
        self.tables.put("margin", [
            margin_row(
                self.id, currency, self.tables.wallets.get(currency), self.tables.positions.values(), timestamp
            )
            for currency in currencies
        ])  # fmt: skip

    def _position_row(self, symbol: str, timestamp: str) -> Row:
        tables = self._markets[symbol]
        instrument = tables.market.instrument
        holding = self._holdings.get(symbol) or Position(instrument)
        return position_row(
            self.id,
            holding,
            tables.mark_price,
            self._notional(tables, holding.size, holding.mark_value(tables.mark_price)),
            self._side(instrument, "Buy"),
            self._side(instrument, "Sell"),
            self._order_margin(instrument),
            timestamp,
        )

    def _notional(self, tables: MarketTables, size: int, value: int) -> tuple[float, float]:
        """``homeNotional`` and ``foreignNotional`` of a position: of a long one, the home currency is owned."""
        if not size:
            return 0, 0
        sign = 1 if size > 0 else -1
        home, foreign = tables.notional(abs(size), tables.mark_price, abs(value))
        return sign * home, -sign * foreign


class Accounts(Sequence[Account]):
    """The accounts of an exchange, in the order in which they were opened; ``keys``: how clients sign in to them.

    It hears of the markets only once there is an account.
    """

    def __init__(self, exchange: Simulation, rng: Random) -> None:
        self.exchange = exchange
        self.keys: Keys[Account] = Keys()
        self._rng = rng
        self._accounts: list[Account] = []

    def __len__(self) -> int:
        return len(self._accounts)

    @overload
    def __getitem__(self, index: int) -> Account: ...
    @overload
    def __getitem__(self, index: slice) -> list[Account]: ...
    def __getitem__(self, index: int | slice) -> Account | list[Account]:
        return self._accounts[index]

    def open(self, deposits: Mapping[str, int] | None, api_key: str | None, api_secret: str | None) -> Account:
        """See `Simulation.open_account`."""
        deposits = DEPOSITS if deposits is None else deposits
        if not isinstance(deposits, Mapping):
            raise ValueError(f"deposits is {deposits!r:.80}: it must be amounts by currency, such as {DEPOSITS}")
        taken = {account.id for account in self._accounts}
        id = self._rng.randrange(100_000, 1_000_000)
        while id in taken:
            id = self._rng.randrange(100_000, 1_000_000)
        drawn = ["".join(self._rng.choices(KEY_CHARACTERS, k=length)) for length in (24, 48)]
        account = Account(
            self, id, drawn[0] if api_key is None else api_key, drawn[1] if api_secret is None else api_secret
        )
        for currency, amount in deposits.items():
            account.deposit(currency, amount)
        self.keys.add(account.api_key, account.api_secret, account)
        if not self._accounts:
            for tables in self.exchange.tables.markets.values():
                # Right behind the public tables: they give the trades their ids.
                tables.market.listeners.insert(tables.market.listeners.index(tables.on_event) + 1, self.on_event)
        self._accounts.append(account)
        return account

    def new_id(self) -> str:
        """A new guid, for what no market gives one."""
        return new_guid(self._rng)

    def on_event(self, event: MarketEvent) -> None:
        """Let those whose orders an event is about take note of it."""
        order, fills = event.order, event.fills
        if order.account is None and all(fill.maker.account is None for fill in fills):
            return
        owners = (order.account, *(fill.maker.account for fill in fills))
        trades = self.exchange.tables.markets[event.market.symbol].event_trades if fills else ()
        with self.exchange.standing_still():
            for account in dict.fromkeys(owner for owner in owners if isinstance(owner, Account)):
                account.follow(event, trades)

    def on_mark(self, now: int) -> None:
        """The mark prices have moved."""
        for account in self._accounts:
            account.on_mark(now)

    def on_funding(self, now: int) -> None:
        """It is time for funding."""
        for account in self._accounts:
            account.on_funding(now)
