"""The rows of an account's tables, made of what an account knows: fields, signs and units are those of `rows`.

What does not apply here (stop and pegged orders, isolated margin, liquidation) is not in them, as in rows of the real
exchange since 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction

from ..messages import Row
from .instruments import Instrument
from .market import Order
from .positions import Position, margin
from .resting import RestingSide

__all__ = ["funding_row", "margin_row", "order_row", "position_row", "wallet_row"]

LEVERAGE = 100


def order_row(
    account: int,
    instrument: Instrument,
    order: Order,
    client_order_id: str,
    time_in_force: str,
    instructions: str,
    text: str,
    timestamp: str,
) -> Row:
    """The row of an order that has just come."""
    return {
        "orderID": order.id, "clOrdID": client_order_id, "account": account, "symbol": instrument.symbol,
        "strategy": "OneWay", "side": order.side, "orderQty": order.quantity,
        "price": None if order.ticks is None else instrument.price(order.ticks),
        "currency": instrument.quote_currency, "settlCurrency": instrument.settlement_currency,
        "ordType": "Market" if order.ticks is None else "Limit", "timeInForce": time_in_force,
        "execInst": instructions, "ordStatus": "New", "workingIndicator": True, "leavesQty": order.leaves,
        "cumQty": 0, "avgPx": None, "text": text, "transactTime": timestamp, "timestamp": timestamp,
    }  # fmt: skip


def funding_row(
    account: int,
    holding: Position,
    price: float,
    rate: float,
    cost: int,
    paid: int,
    notional: tuple[float, float],
    timestamp: str,
) -> Row:
    """The execution (but for its ids) by which a position pays ``paid``, or gets it where that is negative."""
    instrument, quantity = holding.instrument, abs(holding.size)
    return {
        "clOrdID": "", "account": account, "symbol": instrument.symbol, "strategy": "OneWay", "side": "",
        "lastQty": quantity, "lastPx": price, "orderQty": quantity, "price": price,
        "currency": instrument.quote_currency, "settlCurrency": instrument.settlement_currency,
        "execType": "Funding", "ordType": "Limit", "timeInForce": "AtTheClose", "ordStatus": "Filled",
        "workingIndicator": False, "leavesQty": 0, "cumQty": quantity, "avgPx": price, "commission": rate,
        "feeType": "Funding", "text": "Funding", "execCost": cost, "execComm": paid, "homeNotional": notional[0],
        "foreignNotional": notional[1], "transactTime": timestamp, "timestamp": timestamp,
    }  # fmt: skip


def position_row(
    account: int,
    holding: Position,
    mark_price: float,
    notional: tuple[float, float],
    buys: RestingSide,
    sells: RestingSide,
    order_margin: int,
    timestamp: str,
) -> Row:
    """A position and the open orders of its contract. ``initMargin`` is what the orders bind, ``posMargin`` what the
    position does.
    """
    instrument, cost = holding.instrument, holding.open_cost
    mark_value = holding.mark_value(mark_price)
    unrealised = mark_value - cost
    taker = Fraction(str(instrument.taker_fee))
    initial = margin(cost, Fraction(str(instrument.initial_margin)))
    fees = margin(cost, 2 * taker)
    maintenance = margin(cost, Fraction(str(instrument.maintenance_margin)) + taker)
    return {
        "account": account, "symbol": instrument.symbol, "strategy": "OneWay",
        "currency": instrument.settlement_currency,
        "underlying": instrument.underlying, "quoteCurrency": instrument.quote_currency,
        "commission": instrument.taker_fee, "initMarginReq": instrument.initial_margin,
        "maintMarginReq": instrument.maintenance_margin, "leverage": LEVERAGE, "crossMargin": True,
        "rebalancedPnl": 0, "prevRealisedPnl": 0, "prevUnrealisedPnl": 0, "openingQty": 0,
        "openOrderBuyQty": buys.quantity, "openOrderBuyCost": buys.cost, "openOrderBuyPremium": 0,
        "openOrderSellQty": sells.quantity, "openOrderSellCost": sells.cost, "openOrderSellPremium": 0,
        "currentQty": holding.size, "currentCost": holding.cost, "currentComm": holding.fees,
        "realisedCost": holding.realised_cost, "unrealisedCost": cost, "grossOpenPremium": 0,
        "isOpen": holding.size != 0, "markPrice": mark_price, "markValue": mark_value, "riskValue": abs(mark_value),
        "homeNotional": notional[0], "foreignNotional": notional[1], "posCost": cost, "posCross": 0, "posComm": fees,
        "posLoss": 0, "posMargin": initial + fees, "posMaint": maintenance, "posInit": initial,
        "initMargin": order_margin, "maintMargin": maintenance,
        "realisedPnl": holding.realised_pnl, "unrealisedPnl": unrealised,
        "unrealisedPnlPcnt": round(unrealised / abs(cost), 4) if cost else 0,
        "unrealisedRoePcnt": round(unrealised / abs(cost) * LEVERAGE, 4) if cost else 0,
        "avgCostPrice": holding.average_entry_price, "avgEntryPrice": holding.average_entry_price,
        "timestamp": timestamp,
    }  # fmt: skip


def margin_row(account: int, currency: str, wallet: Row | None, positions: Iterable[Row], timestamp: str) -> Row:
    """The margin in one currency, of its wallet and of the rows of all positions."""
    positions = [row for row in positions if row["currency"] == currency]

    def total(column: str, of: Callable[[int], int] = int) -> int:
        return sum(of(row[column]) for row in positions)

    amount = wallet["amount"] if wallet is not None else 0
    realised, unrealised, value = total("realisedPnl"), total("unrealisedPnl"), total("riskValue")
    bound = total("posMargin") + total("initMargin")
    balance = amount + realised + unrealised
    return {
        "account": account, "currency": currency, "amount": amount, "grossComm": total("currentComm"),
        "grossOpenCost": total("openOrderBuyCost", abs) + total("openOrderSellCost", abs), "grossOpenPremium": 0,
        "grossMarkValue": value, "riskValue": value, "initMargin": bound, "maintMargin": total("maintMargin"),
        "targetExcessMargin": 0, "realisedPnl": realised, "unrealisedPnl": unrealised,
        "walletBalance": amount + realised, "marginBalance": balance,
        "marginLeverage": round(value / balance, 8) if balance > 0 else 0,
        "marginUsedPcnt": round(bound / balance, 4) if balance > 0 else 0,
        "excessMargin": max(0, balance - bound), "availableMargin": max(0, balance - bound),
        "withdrawableMargin": max(0, min(balance, amount + realised) - bound), "timestamp": timestamp,
        "foreignMarginBalance": 0, "foreignRequirement": 0,
    }  # fmt: skip


def wallet_row(before: Row | None, transact: Row) -> Row:
    """A wallet after a deposit, or a withdrawal (whose amount is negative)."""
    deposited, withdrawn = (before["deposited"], before["withdrawn"]) if before is not None else (0, 0)
    deposited += max(0, transact["amount"])
    withdrawn += max(0, -transact["amount"])
    return {
        "account": transact["account"], "currency": transact["currency"], "prevDeposited": 0, "prevWithdrawn": 0,
        "prevTransferIn": 0, "prevTransferOut": 0, "prevAmount": 0, "deltaDeposited": deposited,
        "deltaWithdrawn": withdrawn, "deltaTransferIn": 0, "deltaTransferOut": 0,
        "deltaAmount": deposited - withdrawn, "deposited": deposited, "withdrawn": withdrawn, "transferIn": 0,
        "transferOut": 0, "amount": deposited - withdrawn, "pendingCredit": 0, "pendingDebit": 0,
        "confirmedDebit": 0, "timestamp": transact["timestamp"],
    }  # fmt: skip
