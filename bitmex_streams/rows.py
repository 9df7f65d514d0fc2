"""The rows of every table: field, type, unit.

The fields are those of the ``types`` that BitMEX sends with its partials, and where no partial of a table is public,
those of its API specification (``swagger.json`` of its api-connectors). The types of the fields name their units:

=================  ======  =====================================================================================
`Timestamp`        str     ISO 8601, UTC, milliseconds: ``"2021-07-22T22:36:10.014Z"``
`Timespan`         str     a duration, as the time since 2000-01-01: ``"2000-01-01T08:00:00.000Z"`` is eight hours
`Price`            float   in the quote currency of the instrument; may arrive as int (``31964``), as Decimal on request
`Contracts`        int     contracts
`Amount`           int     the smallest unit of the row's or the settlement currency (XBt: satoshi; USDt: 1e-6 USDT)
`Notional`         float   whole units of the home (underlying) or foreign (quote) currency
`Ratio`            float   dimensionless, 0.01 is one per cent
`Guid`             str     a UUID in its text form
`Symbol`           str     the symbol of an instrument, a currency, or one word of a fixed vocabulary
=================  ======  =====================================================================================

Only the fields that identify a row are always there: a delta holds these and what changed, and BitMEX leaves out or
sends None for what does not apply. These are types for type checkers and readers; the rows themselves are plain dicts.
"""

from __future__ import annotations

from typing import Literal, Required, TypeAlias, TypedDict

__all__ = [
    "ROWS",
    "AffiliateRow",
    "AnnouncementRow",
    "ChatRow",
    "ConnectedRow",
    "ExecutionRow",
    "FundingRow",
    "InstrumentRow",
    "InsuranceRow",
    "LiquidationRow",
    "MarginRow",
    "NotificationRow",
    "OrderBook10Row",
    "OrderBookL2Row",
    "OrderRow",
    "PositionRow",
    "QuoteRow",
    "SettlementRow",
    "TradeBinRow",
    "TradeRow",
    "TransactRow",
    "WalletRow",
]

Timestamp: TypeAlias = str
Timespan: TypeAlias = str
Price: TypeAlias = float
Contracts: TypeAlias = int
Amount: TypeAlias = int
Notional: TypeAlias = float
Ratio: TypeAlias = float
Guid: TypeAlias = str
Symbol: TypeAlias = str

Side: TypeAlias = Literal["Buy", "Sell"]

# --- public ---


class AnnouncementRow(TypedDict, total=False):
    """announcement: keys id."""

    id: Required[int]
    link: str  # URL
    title: str
    content: str  # HTML
    date: Timestamp


class ChatRow(TypedDict, total=False):
    """chat: keys id."""

    id: Required[int]
    date: Timestamp
    user: str
    message: str
    html: str
    fromBot: bool
    channelID: float  # a whole number, typed as float by the exchange


class ConnectedRow(TypedDict, total=False):
    """connected: keys id; one row."""

    id: int
    users: int  # connected users
    bots: int  # connected bots


class FundingRow(TypedDict, total=False):
    """funding: keys timestamp, symbol."""

    timestamp: Required[Timestamp]
    symbol: Required[Symbol]
    fundingInterval: Timespan
    fundingRate: Ratio  # per interval; positive: longs pay shorts
    fundingRateDaily: Ratio  # per day


class InstrumentRow(TypedDict, total=False):
    """instrument: keys symbol."""

    symbol: Required[Symbol]
    rootSymbol: Symbol
    state: Symbol  # Open, Closed, Settled, Unlisted
    typ: Symbol  # CFI-like code: FFWCSX perpetual, FFCCSX future, MRCXXX index, ...
    listing: Timestamp
    front: Timestamp
    expiry: Timestamp
    settle: Timestamp
    listedSettle: Timestamp
    relistInterval: Timespan
    inverseLeg: Symbol
    sellLeg: Symbol
    buyLeg: Symbol
    positionCurrency: Symbol
    underlying: Symbol
    quoteCurrency: Symbol
    underlyingSymbol: Symbol
    reference: Symbol
    referenceSymbol: Symbol
    calcInterval: Timespan
    publishInterval: Timespan
    publishTime: Timespan
    maxOrderQty: Contracts
    maxPrice: Price
    lotSize: Contracts
    tickSize: Price
    minTick: Price
    multiplier: Amount  # value of a contract per unit of price (negative: inverse)
    settlCurrency: Symbol  # the currency of all Amounts of this symbol
    underlyingToPositionMultiplier: int  # contracts per unit of the underlying
    underlyingToSettleMultiplier: Amount  # per unit of the underlying
    quoteToSettleMultiplier: Amount  # per unit of the quote currency
    isQuanto: bool
    isInverse: bool
    initMargin: Ratio
    maintMargin: Ratio
    riskLimit: Amount
    riskStep: Amount
    limit: Ratio
    capped: bool
    taxed: bool
    deleverage: bool
    makerFee: Ratio  # negative: a rebate
    takerFee: Ratio
    settlementFee: Ratio
    insuranceFee: Ratio
    fundingBaseSymbol: Symbol
    fundingQuoteSymbol: Symbol
    fundingPremiumSymbol: Symbol
    fundingTimestamp: Timestamp  # of the next funding
    fundingInterval: Timespan
    fundingRate: Ratio  # of the next funding, per interval
    fundingBaseRate: Ratio
    fundingQuoteRate: Ratio
    indicativeFundingRate: Ratio
    rebalanceTimestamp: Timestamp
    rebalanceInterval: Timespan
    openingTimestamp: Timestamp
    closingTimestamp: Timestamp
    sessionInterval: Timespan
    prevClosePrice: Price
    limitDownPrice: Price
    limitUpPrice: Price
    bankruptLimitDownPrice: Price
    bankruptLimitUpPrice: Price
    prevTotalVolume: Contracts
    totalVolume: Contracts
    volume: Contracts  # since the session opened
    volume24h: Contracts
    prevTotalTurnover: Amount
    totalTurnover: Amount
    turnover: Amount
    turnover24h: Amount
    homeNotional24h: Notional
    foreignNotional24h: Notional
    prevPrice24h: Price
    vwap: Price
    highPrice: Price
    lowPrice: Price
    lastPrice: Price
    lastPriceProtected: Price
    lastTickDirection: Symbol
    lastChangePcnt: Ratio
    bidPrice: Price
    midPrice: Price
    askPrice: Price
    impactBidPrice: Price
    impactMidPrice: Price
    impactAskPrice: Price
    hasLiquidity: bool
    openInterest: Contracts
    openValue: Amount
    fairMethod: Symbol
    fairBasisRate: Ratio  # annualised
    fairBasis: Price
    fairPrice: Price
    markMethod: Symbol
    markPrice: Price
    indicativeTaxRate: Ratio
    indicativeSettlePrice: Price
    settledPriceAdjustmentRate: Ratio
    settledPrice: Price
    instantPnl: bool
    timestamp: Timestamp


class InsuranceRow(TypedDict, total=False):
    """insurance: keys currency, timestamp; the insurance fund, once a day."""

    currency: Required[Symbol]
    timestamp: Required[Timestamp]
    walletBalance: Amount


class LiquidationRow(TypedDict, total=False):
    """liquidation: keys orderID; the liquidation orders that are in the book."""

    orderID: Required[Guid]
    symbol: Symbol
    side: Side
    price: Price
    leavesQty: Contracts


class OrderBookL2Row(TypedDict, total=False):
    """orderBookL2, orderBookL2_25: keys symbol, id, side (2021: updates had these and size, deletes these only)."""

    symbol: Required[Symbol]
    id: Required[int]  # identifies a price level of a symbol
    side: Required[Side]
    size: Contracts
    price: Price
    timestamp: Timestamp  # since 2022
    transactTime: Timestamp  # since 2022


class OrderBook10Row(TypedDict, total=False):
    """orderBook10: keys symbol; the ten best levels, whole each time."""

    symbol: Required[Symbol]
    bids: list[list[float]]  # [price, contracts], best first
    asks: list[list[float]]
    timestamp: Timestamp
    transactTime: Timestamp


class NotificationRow(TypedDict, total=False):
    """publicNotifications and privateNotifications: keys id."""

    id: Required[int]
    date: Timestamp
    title: str
    body: str
    ttl: int  # seconds
    type: Symbol  # success, error, info
    closable: bool
    persist: bool
    waitForVisibility: bool
    sound: str


class QuoteRow(TypedDict, total=False):
    """quote (no keys: every top of the book is an insert) and quoteBin1m/5m/1h/1d (keys timestamp, symbol; timestamp is
    the end of the bin).
    """

    timestamp: Required[Timestamp]
    symbol: Required[Symbol]
    bidSize: Contracts
    bidPrice: Price
    askPrice: Price
    askSize: Contracts


class SettlementRow(TypedDict, total=False):
    """settlement: keys timestamp, symbol."""

    timestamp: Required[Timestamp]
    symbol: Required[Symbol]
    settlementType: Symbol
    settledPrice: Price
    optionStrikePrice: Price
    optionUnderlyingPrice: Price
    bankrupt: Amount
    taxBase: Amount
    taxRate: Ratio


class TradeRow(TypedDict, total=False):
    """trade: no keys; every trade is an insert. Prints of an index have trdType Referential and size 0."""

    timestamp: Required[Timestamp]
    symbol: Required[Symbol]
    side: Side  # of the taker
    size: Contracts
    price: Price
    tickDirection: Symbol  # PlusTick, MinusTick, ZeroPlusTick, ZeroMinusTick
    trdMatchID: Guid
    grossValue: Amount
    homeNotional: Notional
    foreignNotional: Notional
    trdType: Symbol  # Regular, Referential, ...
    pool: Symbol


class TradeBinRow(TypedDict, total=False):
    """tradeBin1m/5m/1h/1d: keys timestamp, symbol; timestamp is the end of the bin.

    ``open`` is the close of the bin before, so it can lie outside of low..high, which are of the bin's own trades;
    without trades all four are the close of the bin before, and vwap and lastSize are None.
    """

    timestamp: Required[Timestamp]
    symbol: Required[Symbol]
    open: Price
    high: Price
    low: Price
    close: Price
    trades: int  # their number
    volume: Contracts
    vwap: Price
    lastSize: Contracts
    turnover: Amount
    homeNotional: Notional
    foreignNotional: Notional


# --- private ---


class AffiliateRow(TypedDict, total=False):
    """affiliate: keys account, currency."""

    account: Required[int]
    currency: Required[Symbol]
    prevPayout: Amount
    prevTurnover: Amount
    prevComm: Amount
    prevTimestamp: Timestamp
    execTurnover: Amount
    execComm: Amount
    totalReferrals: int
    totalTurnover: Amount
    totalComm: Amount
    payoutPcnt: Ratio
    pendingPayout: Amount
    timestamp: Timestamp


class ExecutionRow(TypedDict, total=False):
    """execution: keys execID (none since 2024); a fill has execType Trade."""

    execID: Required[Guid]
    orderID: Guid
    clOrdID: str
    clOrdLinkID: str
    account: int
    symbol: Symbol
    strategy: Symbol
    side: Side
    lastQty: Contracts
    lastPx: Price
    underlyingLastPx: Price
    lastMkt: Symbol
    lastLiquidityInd: Symbol  # AddedLiquidity, RemovedLiquidity
    simpleOrderQty: Notional
    orderQty: Contracts
    price: Price
    displayQty: Contracts
    stopPx: Price
    pegOffsetValue: Price
    pegPriceType: Symbol
    currency: Symbol
    settlCurrency: Symbol  # the currency of the Amounts
    execType: Symbol  # New, Trade, Canceled, Replaced, Funding, Settlement, ...
    ordType: Symbol
    timeInForce: Symbol
    execInst: Symbol
    contingencyType: Symbol
    exDestination: Symbol
    ordStatus: Symbol
    triggered: Symbol
    workingIndicator: bool
    ordRejReason: str
    simpleLeavesQty: Notional
    leavesQty: Contracts
    simpleCumQty: Notional
    cumQty: Contracts
    avgPx: Price
    commission: Ratio
    brokerCommission: Ratio
    feeType: Symbol
    tradePublishIndicator: Symbol
    multiLegReportingType: Symbol
    text: str
    trdMatchID: Guid
    execCost: Amount
    execComm: Amount
    brokerExecComm: Amount
    homeNotional: Notional
    foreignNotional: Notional
    transactTime: Timestamp
    timestamp: Timestamp
    realisedPnl: Amount
    trdType: Symbol
    pool: Symbol


class OrderRow(TypedDict, total=False):
    """order: keys orderID."""

    orderID: Required[Guid]
    clOrdID: str
    clOrdLinkID: str
    account: int
    symbol: Symbol
    strategy: Symbol
    side: Side
    simpleOrderQty: Notional
    orderQty: Contracts
    price: Price
    displayQty: Contracts
    stopPx: Price
    pegOffsetValue: Price
    pegPriceType: Symbol
    currency: Symbol
    settlCurrency: Symbol
    ordType: Symbol
    timeInForce: Symbol
    execInst: Symbol
    contingencyType: Symbol
    exDestination: Symbol
    ordStatus: Symbol  # New, PartiallyFilled, Filled, Canceled, Rejected
    triggered: Symbol
    workingIndicator: bool  # whether it is in the book
    ordRejReason: str
    simpleLeavesQty: Notional
    leavesQty: Contracts
    simpleCumQty: Notional
    cumQty: Contracts
    avgPx: Price
    multiLegReportingType: Symbol
    text: str
    pool: Symbol
    transactTime: Timestamp
    timestamp: Timestamp


class MarginRow(TypedDict, total=False):
    """margin: keys account, currency (until 2021: account)."""

    account: Required[int]
    currency: Symbol  # of the Amounts
    riskLimit: Amount
    prevState: Symbol
    state: Symbol
    action: Symbol
    amount: Amount
    pendingCredit: Amount
    pendingDebit: Amount
    confirmedDebit: Amount
    prevRealisedPnl: Amount
    prevUnrealisedPnl: Amount
    grossComm: Amount
    grossOpenCost: Amount
    grossOpenPremium: Amount
    grossExecCost: Amount
    grossMarkValue: Amount
    grossLastValue: Amount
    riskValue: Amount
    taxableMargin: Amount
    initMargin: Amount
    maintMargin: Amount
    sessionMargin: Amount
    targetExcessMargin: Amount
    varMargin: Amount
    realisedPnl: Amount
    unrealisedPnl: Amount
    indicativeTax: Amount
    unrealisedProfit: Amount
    syntheticMargin: Amount
    walletBalance: Amount
    marginBalance: Amount
    marginBalancePcnt: Ratio
    marginLeverage: Ratio
    marginUsedPcnt: Ratio
    excessMargin: Amount
    excessMarginPcnt: Ratio
    availableMargin: Amount
    withdrawableMargin: Amount
    systemWithdrawableMargin: Amount
    makerFeeDiscount: Ratio
    takerFeeDiscount: Ratio
    commission: Ratio
    foreignMarginBalance: Amount
    foreignRequirement: Amount
    timestamp: Timestamp


class PositionRow(TypedDict, total=False):
    """position: keys account, symbol, strategy (until 2023: account, symbol, currency)."""

    account: Required[int]
    symbol: Required[Symbol]
    strategy: Symbol
    currency: Symbol  # of the Amounts
    underlying: Symbol
    quoteCurrency: Symbol
    commission: Ratio
    initMarginReq: Ratio
    maintMarginReq: Ratio
    riskLimit: Amount
    leverage: Ratio
    crossMargin: bool
    deleveragePercentile: Ratio
    rebalancedPnl: Amount
    prevRealisedPnl: Amount
    prevUnrealisedPnl: Amount
    prevClosePrice: Price
    openingTimestamp: Timestamp
    openingQty: Contracts
    openingCost: Amount
    openingComm: Amount
    openOrderBuyQty: Contracts
    openOrderBuyCost: Amount
    openOrderBuyPremium: Amount
    openOrderSellQty: Contracts
    openOrderSellCost: Amount
    openOrderSellPremium: Amount
    execBuyQty: Contracts
    execBuyCost: Amount
    execSellQty: Contracts
    execSellCost: Amount
    execQty: Contracts
    execCost: Amount
    execComm: Amount
    currentTimestamp: Timestamp
    currentQty: Contracts  # negative: short
    currentCost: Amount
    currentComm: Amount
    realisedCost: Amount
    unrealisedCost: Amount
    grossOpenCost: Amount
    grossOpenPremium: Amount
    grossExecCost: Amount
    isOpen: bool
    markPrice: Price
    markValue: Amount
    riskValue: Amount
    homeNotional: Notional
    foreignNotional: Notional
    posState: Symbol
    posCost: Amount
    posCost2: Amount
    posCross: Amount
    posInit: Amount
    posComm: Amount
    posLoss: Amount
    posMargin: Amount
    posMaint: Amount
    posAllowance: Amount
    taxableMargin: Amount
    initMargin: Amount
    maintMargin: Amount
    sessionMargin: Amount
    targetExcessMargin: Amount
    varMargin: Amount
    realisedGrossPnl: Amount
    realisedTax: Amount
    realisedPnl: Amount
    unrealisedGrossPnl: Amount
    longBankrupt: Amount
    shortBankrupt: Amount
    taxBase: Amount
    indicativeTaxRate: Ratio
    indicativeTax: Amount
    unrealisedTax: Amount
    unrealisedPnl: Amount
    unrealisedPnlPcnt: Ratio
    unrealisedRoePcnt: Ratio
    simpleQty: Notional
    simpleCost: Notional
    simpleValue: Notional
    simplePnl: Notional
    simplePnlPcnt: Ratio
    avgCostPrice: Price
    avgEntryPrice: Price
    breakEvenPrice: Price
    marginCallPrice: Price
    liquidationPrice: Price
    bankruptPrice: Price
    lastPrice: Price
    lastValue: Amount
    timestamp: Timestamp


class TransactRow(TypedDict, total=False):
    """transact: keys transactID; deposits, withdrawals and transfers."""

    transactID: Required[Guid]
    account: int
    currency: Symbol  # of the Amounts
    network: Symbol
    transactType: Symbol  # Deposit, Withdrawal, RealisedPNL, Transfer, ...
    amount: Amount
    fee: Amount
    transactStatus: Symbol
    address: str
    tx: str
    orderID: str
    text: str
    transactTime: Timestamp
    timestamp: Timestamp


class WalletRow(TypedDict, total=False):
    """wallet: keys account, currency."""

    account: Required[int]
    currency: Required[Symbol]  # of the Amounts
    prevDeposited: Amount
    prevWithdrawn: Amount
    prevTransferIn: Amount
    prevTransferOut: Amount
    prevAmount: Amount
    prevTimestamp: Timestamp
    deltaDeposited: Amount
    deltaWithdrawn: Amount
    deltaTransferIn: Amount
    deltaTransferOut: Amount
    deltaAmount: Amount
    deposited: Amount
    withdrawn: Amount
    transferIn: Amount
    transferOut: Amount
    amount: Amount
    pendingCredit: Amount
    pendingDebit: Amount
    confirmedDebit: Amount
    timestamp: Timestamp
    addr: str
    script: str
    withdrawalLock: list[str]


ROWS: dict[str, type] = {
    "announcement": AnnouncementRow,
    "chat": ChatRow,
    "connected": ConnectedRow,
    "funding": FundingRow,
    "instrument": InstrumentRow,
    "insurance": InsuranceRow,
    "liquidation": LiquidationRow,
    "orderBookL2_25": OrderBookL2Row,
    "orderBookL2": OrderBookL2Row,
    "orderBook10": OrderBook10Row,
    "publicNotifications": NotificationRow,
    "quote": QuoteRow,
    "quoteBin1m": QuoteRow,
    "quoteBin5m": QuoteRow,
    "quoteBin1h": QuoteRow,
    "quoteBin1d": QuoteRow,
    "settlement": SettlementRow,
    "trade": TradeRow,
    "tradeBin1m": TradeBinRow,
    "tradeBin5m": TradeBinRow,
    "tradeBin1h": TradeBinRow,
    "tradeBin1d": TradeBinRow,
    "affiliate": AffiliateRow,
    "execution": ExecutionRow,
    "order": OrderRow,
    "margin": MarginRow,
    "position": PositionRow,
    "privateNotifications": NotificationRow,
    "transact": TransactRow,
    "wallet": WalletRow,
}
"""Table name → the TypedDict of its rows, for every table of the realtime API."""
