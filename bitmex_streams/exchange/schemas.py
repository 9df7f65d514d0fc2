"""The schemas of all tables: what a partial says of its table besides the rows.

Those of the public tables are of https://www.bitmex.com/api/v1/schema and of partials that were received from the
exchange. Keys and types of the private tables are those of partials of 2024 (order: of its rows); where none is public
(wallet, transact, affiliate), those of the API specification. Their attributes are of older partials.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["BIN_MINUTES", "PRIVATE_SCHEMAS", "PRIVATE_TABLES", "SCHEMAS", "Schema"]

BIN_MINUTES = {"1m": 1, "5m": 5, "1h": 60, "1d": 1440}


@dataclass(frozen=True)
class Schema:
    """What a partial says of its table. ``by_symbol``: whether it can be subscribed to for one symbol."""

    keys: Sequence[str]
    types: Mapping[str, str]
    foreign_keys: Mapping[str, str]
    attributes: Mapping[str, str]
    by_symbol: bool = True


def _types(text: str) -> dict[str, str]:
    """Column types from ``type: column column ...`` lines, as columns of the same type come in runs."""
    types = {}
    for line in text.strip().splitlines():
        kind, _, columns = line.partition(":")
        types.update(dict.fromkeys(columns.split(), kind.strip().replace("list", "")))
    return types


_OF_INSTRUMENT = {"symbol": "instrument"}
_SIDED = {"symbol": "instrument", "side": "side"}
_SERIES = {"timestamp": "sorted", "symbol": "grouped"}

_BOOK = Schema(
    ["symbol", "id", "side"],
    _types("""symbol: symbol
              long: id
              symbol: side
              long: size
              float: price
              timestamp: timestamp transactTime"""),
    _SIDED,
    {"symbol": "parted", "id": "sorted"},
)
_QUOTE = Schema(
    [],
    _types("""timestamp: timestamp
              symbol: symbol
              long: bidSize
              float: bidPrice askPrice
              long: askSize"""),
    _OF_INSTRUMENT,
    _SERIES,
)
_TRADE_BIN = Schema(
    [],
    _types("""timestamp: timestamp
              symbol: symbol
              float: open high low close
              long: trades volume
              float: vwap
              long: lastSize turnover
              float: homeNotional foreignNotional"""),
    _OF_INSTRUMENT,
    _SERIES,
)
_NOTIFICATION = Schema(
    ["id"],
    _types("""long: id
              timestamp: date
              list: title body
              long: ttl
              symbol: type
              boolean: closable persist waitForVisibility
              symbol: sound"""),
    {},
    {"id": "sorted"},
    by_symbol=False,
)

SCHEMAS: dict[str, Schema] = {
    "announcement": Schema(
        ["id"],
        _types("""long: id
                  list: link title content
                  timestamp: date"""),
        {},
        {"id": "sorted"},
        by_symbol=False,
    ),
    "chat": Schema(
        ["id"],
        _types("""long: id
                  timestamp: date
                  list: user message html
                  boolean: fromBot
                  double: channelID"""),
        {},
        {"id": "sorted"},
        by_symbol=False,
    ),
    "connected": Schema(["id"], _types("long: id users bots"), {}, {"id": "sorted"}, by_symbol=False),
    "funding": Schema(
        ["timestamp", "symbol"],
        _types("""timestamp: timestamp
                  symbol: symbol
                  timespan: fundingInterval
                  float: fundingRate fundingRateDaily"""),
        _OF_INSTRUMENT,
        _SERIES,
    ),
    "instrument": Schema(
        ["symbol"],
        _types("""symbol: symbol rootSymbol state typ
                  timestamp: listing front expiry settle listedSettle
                  timespan: relistInterval
                  symbol: positionCurrency underlying quoteCurrency underlyingSymbol reference referenceSymbol
                  timespan: calcInterval publishInterval publishTime
                  long: maxOrderQty
                  float: maxPrice
                  long: lotSize
                  float: tickSize
                  long: multiplier
                  symbol: settlCurrency
                  long: underlyingToPositionMultiplier underlyingToSettleMultiplier quoteToSettleMultiplier
                  boolean: isQuanto isInverse
                  float: initMargin maintMargin
                  long: riskLimit riskStep
                  float: limit
                  boolean: taxed deleverage
                  float: makerFee takerFee settlementFee
                  symbol: fundingBaseSymbol fundingQuoteSymbol fundingPremiumSymbol
                  timestamp: fundingTimestamp
                  timespan: fundingInterval
                  float: fundingRate indicativeFundingRate
                  timestamp: rebalanceTimestamp
                  timespan: rebalanceInterval
                  float: prevClosePrice limitDownPrice limitUpPrice
                  long: prevTotalVolume totalVolume volume volume24h
                  long: prevTotalTurnover totalTurnover turnover turnover24h
                  float: homeNotional24h foreignNotional24h prevPrice24h vwap highPrice lowPrice
                  float: lastPrice lastPriceProtected
                  symbol: lastTickDirection
                  float: lastChangePcnt bidPrice midPrice askPrice impactBidPrice impactMidPrice impactAskPrice
                  boolean: hasLiquidity
                  long: openInterest openValue
                  symbol: fairMethod
                  float: fairBasisRate fairBasis fairPrice
                  symbol: markMethod
                  float: markPrice indicativeSettlePrice settledPriceAdjustmentRate settledPrice
                  boolean: instantPnl
                  float: minTick fundingBaseRate fundingQuoteRate
                  timestamp: timestamp"""),
        {},
        {"symbol": "unique"},
    ),
    "insurance": Schema(
        ["currency", "timestamp"],
        _types("""symbol: currency
                  timestamp: timestamp
                  long: walletBalance"""),
        {},
        {"timestamp": "sorted", "currency": "grouped"},
        by_symbol=False,
    ),
    "liquidation": Schema(
        ["orderID"],
        _types("""guid: orderID
                  symbol: symbol side
                  float: price
                  long: leavesQty"""),
        _SIDED,
        {"orderID": "unique"},
    ),
    "orderBookL2_25": _BOOK,
    "orderBookL2": _BOOK,
    "orderBook10": Schema(
        ["symbol"],
        _types("""symbol: symbol
                  list: bids asks
                  timestamp: timestamp"""),
        _OF_INSTRUMENT,
        {"symbol": "sorted"},
    ),
    "publicNotifications": _NOTIFICATION,
    "quote": _QUOTE,
    **{f"quoteBin{size}": _QUOTE for size in BIN_MINUTES},
    "settlement": Schema(
        ["timestamp", "symbol"],
        _types("""timestamp: timestamp
                  symbol: symbol settlementType
                  float: settledPrice optionStrikePrice optionUnderlyingPrice
                  long: bankrupt taxBase
                  float: taxRate"""),
        _OF_INSTRUMENT,
        _SERIES,
    ),
    "trade": Schema(
        [],
        _types("""timestamp: timestamp
                  symbol: symbol side
                  long: size
                  float: price
                  symbol: tickDirection
                  guid: trdMatchID
                  long: grossValue
                  float: homeNotional foreignNotional
                  symbol: trdType"""),
        _SIDED,
        _SERIES,
    ),
    **{f"tradeBin{size}": _TRADE_BIN for size in BIN_MINUTES},
}


# --- private ----------------------------------------------------------------------------------------------------------

_ORDER = """guid: orderID
            list: clOrdID clOrdLinkID
            long: account
            symbol: symbol strategy side
            long: orderQty
            float: price
            long: displayQty
            float: stopPx pegOffsetValue
            symbol: pegPriceType currency settlCurrency ordType timeInForce execInst contingencyType ordStatus triggered
            boolean: workingIndicator
            list: ordRejReason
            long: leavesQty cumQty
            float: avgPx
            list: text
            timestamp: transactTime timestamp"""
_OF_ACCOUNT = {"account": "sorted", "currency": "grouped"}

PRIVATE_SCHEMAS: dict[str, Schema] = {
    "affiliate": Schema(
        ["account", "currency"],
        _types("""long: account
                  symbol: currency
                  long: prevPayout prevTurnover prevComm
                  timestamp: prevTimestamp
                  long: execTurnover execComm totalReferrals totalTurnover totalComm
                  float: payoutPcnt
                  long: pendingPayout
                  timestamp: timestamp"""),
        {},
        _OF_ACCOUNT,
        by_symbol=False,
    ),
    "execution": Schema(
        [],
        {
            **_types("""guid: execID
                        guid: orderID
                        list: clOrdID clOrdLinkID
                        long: account
                        symbol: symbol strategy side
                        long: lastQty
                        float: lastPx
                        symbol: lastLiquidityInd"""),
            **_types(_ORDER),
            **_types("""symbol: execType
                        float: commission brokerCommission
                        symbol: feeType tradePublishIndicator
                        guid: trdMatchID
                        long: execCost execComm brokerExecComm
                        float: homeNotional foreignNotional
                        long: realisedPnl
                        symbol: trdType"""),
        },
        {"symbol": "instrument", "side": "side", "ordStatus": "ordStatus"},
        {"execID": "grouped", "account": "grouped", "execType": "grouped", "transactTime": "sorted"},
    ),
    "margin": Schema(
        ["account", "currency"],
        _types("""long: account
                  symbol: currency
                  long: riskLimit
                  symbol: state
                  long: amount prevRealisedPnl grossComm grossOpenCost grossOpenPremium grossExecCost grossMarkValue
                  long: riskValue initMargin maintMargin targetExcessMargin realisedPnl unrealisedPnl walletBalance
                  long: marginBalance
                  float: marginLeverage marginUsedPcnt
                  long: excessMargin availableMargin withdrawableMargin systemWithdrawableMargin
                  float: makerFeeDiscount takerFeeDiscount
                  timestamp: timestamp
                  long: foreignMarginBalance foreignRequirement"""),
        {},
        _OF_ACCOUNT,
        by_symbol=False,
    ),
    "order": Schema(
        ["orderID"],
        _types(_ORDER),
        {"symbol": "instrument", "side": "side", "ordStatus": "ordStatus"},
        {"orderID": "grouped", "account": "grouped", "ordStatus": "grouped", "workingIndicator": "grouped"},
    ),
    "position": Schema(
        ["account", "symbol", "strategy"],
        _types("""long: account
                  symbol: symbol strategy currency underlying quoteCurrency
                  float: commission initMarginReq maintMarginReq
                  long: riskLimit
                  float: leverage
                  boolean: crossMargin
                  float: deleveragePercentile
                  long: rebalancedPnl prevRealisedPnl prevUnrealisedPnl openingQty
                  long: openOrderBuyQty openOrderBuyCost openOrderBuyPremium
                  long: openOrderSellQty openOrderSellCost openOrderSellPremium
                  long: currentQty currentCost currentComm realisedCost unrealisedCost grossOpenPremium
                  boolean: isOpen
                  float: markPrice
                  long: markValue riskValue
                  float: homeNotional foreignNotional
                  symbol: posState
                  long: posCost posCross posComm posLoss posMargin posMaint posInit initMargin maintMargin
                  long: realisedPnl unrealisedPnl
                  float: unrealisedPnlPcnt unrealisedRoePcnt avgCostPrice avgEntryPrice breakEvenPrice
                  float: marginCallPrice liquidationPrice bankruptPrice
                  timestamp: timestamp"""),
        {"symbol": "instrument"},
        {"account": "sorted", "symbol": "grouped", "currency": "grouped"},
    ),
    "privateNotifications": _NOTIFICATION,
    "transact": Schema(
        ["transactID"],
        _types("""guid: transactID
                  long: account
                  symbol: currency network transactType
                  long: amount fee
                  symbol: transactStatus address tx orderID
                  list: text
                  timestamp: transactTime timestamp"""),
        {},
        {"transactID": "grouped", "account": "grouped", "transactTime": "sorted"},
        by_symbol=False,
    ),
    "wallet": Schema(
        ["account", "currency"],
        _types("""long: account
                  symbol: currency
                  long: prevDeposited prevWithdrawn prevTransferIn prevTransferOut prevAmount
                  timestamp: prevTimestamp
                  long: deltaDeposited deltaWithdrawn deltaTransferIn deltaTransferOut deltaAmount
                  long: deposited withdrawn transferIn transferOut amount
                  long: pendingCredit pendingDebit confirmedDebit
                  timestamp: timestamp"""),
        {},
        _OF_ACCOUNT,
        by_symbol=False,
    ),
}

PRIVATE_TABLES = tuple(PRIVATE_SCHEMAS)
