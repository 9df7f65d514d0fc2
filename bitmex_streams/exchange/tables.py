"""The public tables: what a partial holds, and which deltas each event of a market makes of them.

`Feed` knows who is subscribed to what, and encodes each message once for all of them. `MarketTables` keeps the tables
of one symbol and turns its `MarketEvent`s into messages, at most one for each table and action, in this order: trades,
then the books (first what goes, then what changes, then what comes, so that a book built of them is never crossed),
then quote and instrument. What nobody is subscribed to is neither built nor encoded. `Tables` puts the symbols
together and adds the tables that have none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from random import Random
from typing import Any, Literal, Protocol

import msgspec

from ..messages import Row, Side
from .instruments import Instrument
from .market import LevelChange, Market, MarketEvent, Match
from .schemas import BIN_MINUTES, SCHEMAS

__all__ = [
    "Feed",
    "MarketTables",
    "Subscriber",
    "Tables",
    "iso",
    "topic_name",
]

MINUTE = 60_000_000_000
DAY = 1440 * MINUTE
FUNDING_INTERVAL = 480 * MINUTE  # at 04:00, 12:00 and 20:00 UTC
FUNDING_OFFSET = 240 * MINUTE
RECENT_FUNDINGS = 3


def iso(time: int) -> str:
    """ns since the epoch as the exchange writes a timestamp: 2026-01-01T00:00:00.000Z."""
    seconds, rest = divmod(time, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest // 1_000_000:03}Z"


def topic_name(table: str, symbol: str | None) -> str:
    """A topic as clients write it."""
    return table if symbol is None else f"{table}:{symbol}"


# --- subscriptions ----------------------------------------------------------------------------------------------------


class Subscriber(Protocol):
    """Who takes messages: never blocks, and may be gone from the feed after it."""

    def send(self, message: str) -> None:
        """Take one encoded message."""


class Feed:
    """Who is subscribed to which topic: (table, symbol), symbol None for the whole table."""

    def __init__(self) -> None:
        self.topics: dict[
            tuple[str, str | None], dict[Subscriber, None]
        ] = {}  # dicts, to have an order that does not vary

    def add(self, subscriber: Subscriber, table: str, symbol: str | None) -> None:
        """Send all deltas of a topic to ``subscriber`` from now on."""
        self.topics.setdefault((table, symbol), {})[subscriber] = None

    def remove(self, subscriber: Subscriber, table: str, symbol: str | None) -> None:
        """Stop that."""
        subscribers = self.topics[table, symbol]
        del subscribers[subscriber]
        if not subscribers:
            del self.topics[table, symbol]

    def wanted(self, table: str, symbol: str | None) -> bool:
        """Whether anybody would get a delta of that symbol."""
        return (table, symbol) in self.topics or (table, None) in self.topics

    def publish(
        self, table: str, symbol: str | None, action: Literal["insert", "update", "delete"], rows: Sequence[Row]
    ) -> None:
        """Send one delta, of rows of one symbol, to all that are subscribed to the symbol or the whole table."""
        if not rows or not self.wanted(table, symbol):
            return
        message = msgspec.json.encode({"table": table, "action": action, "data": rows}).decode()
        for topic in ((table, symbol), (table, None)) if symbol is not None else ((table, None),):
            self._send(topic, message)

    def publish_mixed(self, table: str, action: Literal["insert", "update", "delete"], rows: Sequence[Row]) -> None:
        """Send one delta, of rows of any symbols: who is subscribed to a symbol gets the rows of that one."""
        symbols = {row.get("symbol") for row in rows}
        if len(symbols) < 2:
            self.publish(table, next(iter(symbols), None), action, rows)
            return
        for of_table, symbol in tuple(self.topics):
            if of_table == table:
                some = rows if symbol is None else [row for row in rows if row["symbol"] == symbol]
                if some:
                    message = msgspec.json.encode({"table": table, "action": action, "data": some}).decode()
                    self._send((table, symbol), message)

    def _send(self, topic: tuple[str, str | None], message: str) -> None:
        for subscriber in tuple(self.topics.get(topic, ())):
            subscriber.send(message)


# --- the tables of one symbol -----------------------------------------------------------------------------------------


class _TradeBin:
    """A bar in the making. Its open is the close of the bar before, a peculiarity of BitMEX's tradeBin tables."""

    def __init__(self, open: Any) -> None:
        self.open = self.close = open
        self.high: Any = None
        self.low: Any = None
        self.trades = self.volume = self.turnover = 0
        self.home = self.foreign = 0.0
        self.last_size: int | None = None

    def add(self, trade: Row) -> None:
        price = self.close = trade["price"]
        self.high = price if self.high is None else max(self.high, price)
        self.low = price if self.low is None else min(self.low, price)
        self.trades += 1
        self.volume += trade["size"]
        self.turnover += trade["grossValue"]
        self.home += trade["homeNotional"]
        self.foreign += trade["foreignNotional"]
        self.last_size = trade["size"]

    def merge(self, later: _TradeBin) -> None:
        if not later.trades:
            return
        self.high = later.high if self.high is None else max(self.high, later.high)
        self.low = later.low if self.low is None else min(self.low, later.low)
        self.close = later.close
        self.trades += later.trades
        self.volume += later.volume
        self.turnover += later.turnover
        self.home += later.home
        self.foreign += later.foreign
        self.last_size = later.last_size

    def notional(self, instrument: Instrument) -> tuple[float, float]:
        """``homeNotional`` and ``foreignNotional``, exact: sums of floats would gather dust."""
        if instrument.is_quanto:
            return round(self.home, 8), round(self.foreign, 8)
        return instrument.notional(self.volume, 0, self.turnover, 0)

    def row(self, instrument: Instrument, timestamp: str) -> Row:
        home, foreign = self.notional(instrument)
        return {
            "timestamp": timestamp, "symbol": instrument.symbol, "open": self.open,
            "high": self.close if self.high is None else self.high, "low": self.close if self.low is None else self.low,
            "close": self.close, "trades": self.trades, "volume": self.volume,
            "vwap": instrument.vwap(self.volume, self.turnover), "lastSize": self.last_size, "turnover": self.turnover,
            "homeNotional": home, "foreignNotional": foreign,
        }  # fmt: skip


class MarketTables:
    """The tables of one symbol.

    ``settlement_price`` gives what one XBT is worth, for the notional values of quanto contracts.
    """

    def __init__(
        self, market: Market, feed: Feed, rng: Random, settlement_price: Callable[[], float], time: int
    ) -> None:
        self.market = market
        self._feed = feed
        self._rng = rng
        self._settlement_price = settlement_price
        instrument = self._instrument = market.instrument
        self._symbol = instrument.symbol
        self._timestamp = iso(time)
        self._last_ticks: int | None = None
        self._last_direction = "PlusTick"
        self.event_trades: list[Row] = []
        """The rows of the trades of the last event that had any, one for each of its fills."""
        self.trades: deque[Row] = deque(maxlen=1)
        self.quotes: deque[Row] = deque(maxlen=1)
        self.fundings: deque[Row] = deque(maxlen=RECENT_FUNDINGS)
        self._bins = {size: _TradeBin(instrument.initial_price) for size in BIN_MINUTES}
        self._bin_rows: dict[str, list[Row]] = {
            f"{kind}Bin{size}": [] for kind in ("trade", "quote") for size in BIN_MINUTES
        }
        self._last_day: deque[_TradeBin] = deque(maxlen=1440)  # its minutes
        self._day = _TradeBin(instrument.initial_price)  # the sum of these
        self._windows: dict[Side, dict[int, int]] | None = (
            None  # what subscribers of orderBookL2_25 see, while there are any
        )
        self._tops: dict[Side, list[tuple[Any, int]]] = {"Buy": [], "Sell": []}  # what those of orderBook10 see
        self._index = self._premium = 0.0
        self._row = self._first_row(time)
        self._publish_quote()
        self._invent_bins(time)
        self.on_mark(time)
        market.listeners.append(self.on_event)

    @property
    def mark_price(self) -> int | float:
        """The mark price, in the quote currency."""
        price: int | float = self._row["markPrice"]
        return price

    def notional(self, quantity: int, price: float, value: int) -> tuple[float, float]:
        """See `Instrument.notional`."""
        return self._instrument.notional(quantity, price, value, self._settlement_price())

    # partials

    def rows(self, table: str) -> list[Row]:
        """The rows of a partial of this symbol, as things stand."""
        if table == "orderBookL2":
            return self._book_rows(None)
        if table == "orderBookL2_25":
            return self._book_rows(25)
        if table == "orderBook10":
            return [self._book10()]
        if table == "instrument":
            return [dict(self._row)]
        if table == "trade":
            return list(self.trades)
        if table == "quote":
            return list(self.quotes)
        if table == "funding":
            return list(self.fundings)
        return list(self._bin_rows.get(table, ()))  # liquidation and settlement: nothing ever happens in them

    def _book_rows(self, depth: int | None) -> list[Row]:
        """Sorted by id, as the exchange does: asks from the highest price down, then bids from the highest down."""
        timestamp = self._timestamp
        asks = [
            self._level_row("Sell", ticks, level.size, iso(level.time), timestamp)
            for ticks, level in islice(self.market.engine.best_first("Sell"), depth)
        ]
        bids = [
            self._level_row("Buy", ticks, level.size, iso(level.time), timestamp)
            for ticks, level in islice(self.market.engine.best_first("Buy"), depth)
        ]
        return asks[::-1] + bids

    def _level_row(self, side: Side, ticks: int, size: int | None, transact_time: str, timestamp: str) -> Row:
        instrument = self._instrument
        row: Row = {"symbol": self._symbol, "id": instrument.order_id(ticks), "side": side}
        if size is not None:
            row["size"] = size
        row["price"] = instrument.price(ticks)
        row["timestamp"] = timestamp
        row["transactTime"] = transact_time
        return row

    def _top(self, side: Side, depth: int) -> list[tuple[Any, int]]:
        price = self._instrument.price
        return [(price(ticks), level.size) for ticks, level in islice(self.market.engine.best_first(side), depth)]

    def _book10(self) -> Row:
        return {
            "symbol": self._symbol,
            "bids": self._top("Buy", 10),
            "asks": self._top("Sell", 10),
            "timestamp": self._timestamp,
        }

    # what happens in the market

    def on_event(self, event: MarketEvent) -> None:
        """Bring all tables up to date and publish what changed."""
        self._timestamp = iso(event.time)
        if event.fills:
            self._publish_trades(event.fills)
        if event.changes:
            self._publish_books(event.changes)
            self._publish_quote()
        if event.fills or event.changes:
            self._publish_instrument(self._traded() if event.fills else {})

    def _publish_trades(self, fills: Sequence[Match]) -> None:
        rows = self.event_trades = [self._trade_row(fill) for fill in fills]
        for row in rows:
            for trade_bin in self._bins.values():
                trade_bin.add(row)
        self.trades.append(rows[-1])
        self._feed.publish("trade", self._symbol, "insert", rows)

    def _trade_row(self, fill: Match) -> Row:
        instrument, ticks, last = self._instrument, fill.ticks, self._last_ticks
        if last is None or ticks > last:
            direction = "PlusTick"
        elif ticks < last:
            direction = "MinusTick"
        else:
            direction = "Zero" + self._last_direction.removeprefix("Zero")
        self._last_ticks, self._last_direction = ticks, direction
        value = instrument.value(fill.quantity, ticks)
        price = instrument.price(ticks)
        home, foreign = self.notional(fill.quantity, price, value)
        return {
            "timestamp": self._timestamp, "symbol": self._symbol, "side": fill.taker.side, "size": fill.quantity,
            "price": price, "tickDirection": direction, "trdMatchID": self.market.new_id(),
            "grossValue": value, "homeNotional": home, "foreignNotional": foreign, "trdType": "Regular",
        }  # fmt: skip

    def _publish_books(self, changes: Sequence[LevelChange]) -> None:
        feed, symbol = self._feed, self._symbol
        if feed.wanted("orderBookL2", symbol):
            self._publish_levels("orderBookL2", changes)
        if not feed.wanted("orderBookL2_25", symbol):
            self._windows = None
        elif self._windows is not None:
            before, after = self._windows, self._window()
            self._windows = after
            self._publish_levels(
                "orderBookL2_25",
                [
                    LevelChange(side, ticks, before[side].get(ticks, 0), after[side].get(ticks, 0))
                    for side in after
                    for ticks in {**before[side], **after[side]}
                    if before[side].get(ticks) != after[side].get(ticks)
                ],
            )
        if feed.wanted("orderBook10", symbol):
            row = self._book10()
            tops: dict[Side, list[tuple[Any, int]]] = {"Buy": row["bids"], "Sell": row["asks"]}
            if tops != self._tops:
                self._tops = tops
                feed.publish("orderBook10", symbol, "update", [row])

    def _publish_levels(self, table: str, changes: Sequence[LevelChange]) -> None:
        timestamp = self._timestamp
        deletes: list[Row] = []
        updates: list[Row] = []
        inserts: list[Row] = []
        for side, ticks, before, after in changes:
            row = self._level_row(side, ticks, after or None, timestamp, timestamp)
            (deletes if not after else updates if before else inserts).append(row)
        self._feed.publish(table, self._symbol, "delete", deletes)
        self._feed.publish(table, self._symbol, "update", updates)
        self._feed.publish(table, self._symbol, "insert", inserts)

    def _window(self) -> dict[Side, dict[int, int]]:
        engine = self.market.engine
        return {
            "Buy": {ticks: level.size for ticks, level in islice(engine.best_first("Buy"), 25)},
            "Sell": {ticks: level.size for ticks, level in islice(engine.best_first("Sell"), 25)},
        }

    def begin(self, table: str) -> None:
        """A partial of ``table`` was made: deltas are from here on (others have been kept up to here already)."""
        if table == "orderBookL2_25" and self._windows is None:
            self._windows = self._window()
        elif table == "orderBook10":
            self._tops = {"Buy": self._top("Buy", 10), "Sell": self._top("Sell", 10)}

    def _publish_quote(self) -> None:
        bid, ask = self._best("Buy"), self._best("Sell")
        last = self.quotes[-1] if self.quotes else {}
        if (bid, ask) == ((last.get("bidPrice"), last.get("bidSize")), (last.get("askPrice"), last.get("askSize"))):
            return
        row = {
            "timestamp": self._timestamp,
            "symbol": self._symbol,
            "bidSize": bid[1],
            "bidPrice": bid[0],
            "askPrice": ask[0],
            "askSize": ask[1],
        }
        self.quotes.append(row)
        self._feed.publish("quote", self._symbol, "insert", [row])

    def _best(self, side: Side) -> tuple[Any, int | None]:
        levels = self.market.engine.side(side)
        if not levels:
            return None, None
        ticks, level = levels.peekitem(-1 if side == "Buy" else 0)
        return self._instrument.price(ticks), level.size

    # the row of the table instrument

    def _first_row(self, time: int) -> Row:
        instrument = self._instrument
        self._index = float(instrument.initial_price)
        price = instrument.price(instrument.nearest_ticks(instrument.initial_price))
        scale = {"XBt": 100_000_000, "USDt": 1_000_000}[instrument.settlement_currency]
        row: Row = {
            "symbol": instrument.symbol, "rootSymbol": instrument.underlying, "state": "Open",
            "typ": "FFWCSX", "listing": "2016-05-04T12:00:00.000Z", "front": "2016-05-04T12:00:00.000Z",
            "positionCurrency": instrument.quote_currency if instrument.is_inverse else instrument.underlying,
            "underlying": instrument.underlying, "quoteCurrency": instrument.quote_currency,
            "underlyingSymbol": f"{instrument.reference.removeprefix('.B')}=", "reference": "BMEX",
            "referenceSymbol": instrument.reference, "maxOrderQty": instrument.max_order_quantity,
            "maxPrice": instrument.max_price, "lotSize": instrument.lot_size, "tickSize": instrument.price(1),
            "multiplier": instrument.multiplier, "settlCurrency": instrument.settlement_currency,
            "isQuanto": instrument.is_quanto, "isInverse": instrument.is_inverse,
            "initMargin": instrument.initial_margin, "maintMargin": instrument.maintenance_margin,
            "riskLimit": 200 * scale, "riskStep": 100 * scale, "taxed": True, "deleverage": True,
            "makerFee": instrument.maker_fee, "takerFee": instrument.taker_fee, "settlementFee": 0,
            "fundingBaseSymbol": f".{instrument.underlying}BON8H",
            "fundingQuoteSymbol": f".{instrument.quote_currency}BON8H",
            "fundingPremiumSymbol": f".{instrument.symbol}PI8H",
            "fundingTimestamp": iso(next_funding(time)), "fundingInterval": "2000-01-01T08:00:00.000Z",
            "fundingRate": 0.0001, "indicativeFundingRate": 0.0001, "prevClosePrice": price, "prevTotalVolume": 0,
            "totalVolume": 0,
            "volume": 0, "volume24h": 0, "prevTotalTurnover": 0, "totalTurnover": 0, "turnover": 0, "turnover24h": 0,
            "homeNotional24h": 0, "foreignNotional24h": 0, "prevPrice24h": price, "vwap": price, "highPrice": price,
            "lowPrice": price, "lastPrice": price, "lastPriceProtected": price, "lastTickDirection": "PlusTick",
            "lastChangePcnt": 0, "bidPrice": None, "midPrice": None, "askPrice": None, "impactBidPrice": None,
            "impactMidPrice": None, "impactAskPrice": None, "hasLiquidity": False,
            "openInterest": instrument.open_interest,
            "openValue": 0, "fairMethod": "FundingRate", "fairBasisRate": 0.1095, "fairBasis": 0, "fairPrice": price,
            "markMethod": "FairPrice", "markPrice": price, "indicativeSettlePrice": price, "instantPnl": True,
            "minTick": instrument.price(1), "fundingBaseRate": 0.0003, "fundingQuoteRate": 0.0006,
            "timestamp": iso(time),
        }  # fmt: skip
        if instrument.is_inverse:
            row["underlyingToSettleMultiplier"] = instrument.multiplier
        elif not instrument.is_quanto:
            row["underlyingToPositionMultiplier"] = scale // instrument.multiplier
            row["quoteToSettleMultiplier"] = scale
        funding = previous_funding(time)
        for age in reversed(range(RECENT_FUNDINGS)):
            self.fundings.append(self._funding_row(funding - age * FUNDING_INTERVAL, 0.0001))
        return row

    def _publish_instrument(self, changes: Row) -> None:
        """Publish those of ``changes``, and of the best prices, that differ from what the row had."""
        engine, instrument = self.market.engine, self._instrument
        bid, ask = engine.best_bid, engine.best_ask
        changes["bidPrice"] = None if bid is None else instrument.price(bid)
        changes["askPrice"] = None if ask is None else instrument.price(ask)
        changes["midPrice"] = None if bid is None or ask is None else instrument.mid_price(bid, ask)
        changes["hasLiquidity"] = bid is not None and ask is not None
        row = self._row
        changed = {name: value for name, value in changes.items() if row.get(name) != value}
        if changed:
            changed["timestamp"] = self._timestamp
            row.update(changed)
            self._feed.publish("instrument", self._symbol, "update", [{"symbol": self._symbol, **changed}])

    def _traded(self) -> Row:
        """What the trades so far make of the row."""
        row, today, minute = self._row, self._bins["1d"], self._bins["1m"]
        price = today.close
        day = _TradeBin(self._day.open)
        day.merge(self._day)
        day.merge(minute)
        volume, turnover = day.volume, day.turnover
        home, foreign = day.notional(self._instrument)
        # Nobody's positions are known here: as in reality, a trade opens interest, closes some, or hands it over.
        interest = row["openInterest"] + self._rng.choice((-1, 0, 1)) * self.trades[-1]["size"]
        return {
            "lastPrice": price, "lastPriceProtected": price, "lastTickDirection": self._last_direction,
            "lastChangePcnt": round(price / row["prevPrice24h"] - 1, 4),
            "highPrice": max(row["highPrice"], minute.high), "lowPrice": min(row["lowPrice"], minute.low),
            "totalVolume": row["prevTotalVolume"] + today.volume, "volume": today.volume, "volume24h": volume,
            "totalTurnover": row["prevTotalTurnover"] + today.turnover, "turnover": today.turnover,
            "turnover24h": turnover,
            "homeNotional24h": home, "foreignNotional24h": foreign,
            "vwap": self._instrument.vwap(volume, turnover), "openInterest": max(0, interest),
        }  # fmt: skip

    # what time brings

    def on_mark(self, time: int) -> None:
        """Move index, mark and impact prices.

        There is no outside market: the index follows the middle of the book, slowly.
        """
        self._timestamp = iso(time)
        engine, instrument, row = self.market.engine, self._instrument, self._row
        bid, ask = engine.best_bid, engine.best_ask
        if bid is not None and ask is not None:
            middle = instrument.mid_price(bid, ask)
            self._index += (middle - self._index) * 0.02
            self._premium += (middle / self._index - 1 - self._premium) * 0.02
        # The premium, with the interest rate of 0.01 % as far as 0.05 % around it: BitMEX's funding formula.
        funding = round(self._premium + min(0.0005, max(-0.0005, 0.0001 - self._premium)), 6)
        index = round(self._index, 4)
        basis = round(index * row["fundingRate"] * (parse_iso(row["fundingTimestamp"]) - time) / FUNDING_INTERVAL, 4)
        mark = round(index + basis, 4)
        impact_bid, impact_ask = self._impact_price("Buy"), self._impact_price("Sell")
        self._publish_instrument({
            "indicativeSettlePrice": index, "fairBasis": basis, "fairPrice": mark, "markPrice": mark,
            "fairBasisRate": round(row["fundingRate"] * 3 * 365, 6), "indicativeFundingRate": funding,
            "openValue": instrument.value(row["openInterest"], instrument.nearest_ticks(mark)),
            "impactBidPrice": impact_bid, "impactAskPrice": impact_ask,
            "impactMidPrice": round((impact_bid + impact_ask) / 2, 4) if impact_bid and impact_ask else None,
        })  # fmt: skip

    def _impact_price(self, side: Side) -> float | None:
        """The average price that an order of 1000 lots would get."""
        wanted = left = 1000 * self._instrument.lot_size
        paid = 0
        for ticks, level in self.market.engine.best_first(side):
            taken = min(left, level.size)
            paid += taken * ticks
            left -= taken
            if not left:
                return round(self._instrument.price(1) * paid / wanted, 4)
        return None

    def on_minute(self, time: int) -> None:
        """Close the bins that end now."""
        self._timestamp = iso(time)
        for size, minutes in BIN_MINUTES.items():
            if time % (minutes * MINUTE) == 0:
                trade_bin = self._bins[size]
                if size == "1m":
                    self._last_day.append(trade_bin)
                self._bins[size] = _TradeBin(trade_bin.close)
                self._publish_bin(f"tradeBin{size}", trade_bin.row(self._instrument, self._timestamp))
                if self.quotes:
                    self._publish_bin(f"quoteBin{size}", {**self.quotes[-1], "timestamp": self._timestamp})
        self._roll_day(time)

    def _invent_bins(self, time: int) -> None:
        """The last bin of each size, in which nothing was traded: a partial is never without one."""
        for size, minutes in BIN_MINUTES.items():
            timestamp = iso(time // (minutes * MINUTE) * minutes * MINUTE)
            self._bin_rows[f"tradeBin{size}"] = [self._bins[size].row(self._instrument, timestamp)]
            if self.quotes:
                self._bin_rows[f"quoteBin{size}"] = [{**self.quotes[-1], "timestamp": timestamp}]

    def _publish_bin(self, table: str, row: Row) -> None:
        self._bin_rows[table] = [row]
        self._feed.publish(table, self._symbol, "insert", [row])

    def _roll_day(self, time: int) -> None:
        """The figures of the last 24 hours, summed afresh (so that no rounding error grows) when a minute has left
        them.
        """
        row, minutes = self._row, self._last_day
        day = self._day = _TradeBin(minutes[0].open)
        for minute in minutes:
            day.merge(minute)
        home, foreign = day.notional(self._instrument)
        changes = {
            "volume24h": day.volume, "turnover24h": day.turnover, "homeNotional24h": home,
            "foreignNotional24h": foreign, "vwap": self._instrument.vwap(day.volume, day.turnover),
            "prevPrice24h": day.open,
            "lastChangePcnt": round(row["lastPrice"] / day.open - 1, 4),
        }  # fmt: skip
        if day.trades:
            changes |= {"highPrice": day.high, "lowPrice": day.low}
        if time % DAY == 0:
            changes |= {
                "prevClosePrice": row["lastPrice"],
                "prevTotalVolume": row["totalVolume"],
                "volume": 0,
                "prevTotalTurnover": row["totalTurnover"],
                "turnover": 0,
            }
        self._publish_instrument(changes)

    def on_funding(self, time: int) -> None:
        """The funding interval has passed: the rate that was announced is paid."""
        self._timestamp = iso(time)
        funding = self._funding_row(time, self._row["fundingRate"])
        self.fundings.append(funding)
        self._feed.publish("funding", self._symbol, "insert", [funding])
        self._publish_instrument(
            {"fundingRate": self._row["indicativeFundingRate"], "fundingTimestamp": iso(next_funding(time))}
        )

    def _funding_row(self, time: int, rate: float) -> Row:
        return {
            "timestamp": iso(time),
            "symbol": self._symbol,
            "fundingInterval": "2000-01-01T08:00:00.000Z",
            "fundingRate": rate,
            "fundingRateDaily": 3 * rate,
        }


def previous_funding(time: int) -> int:
    """The last funding at or before ``time`` (ns)."""
    return (time - FUNDING_OFFSET) // FUNDING_INTERVAL * FUNDING_INTERVAL + FUNDING_OFFSET


def next_funding(time: int) -> int:
    """The first funding after ``time`` (ns)."""
    return previous_funding(time) + FUNDING_INTERVAL


def parse_iso(timestamp: str) -> int:
    """ns since the epoch of a timestamp of `iso`."""
    return round(datetime.fromisoformat(timestamp).timestamp()) * 1_000_000_000


# --- all of them ------------------------------------------------------------------------------------------------------


class Tables:
    """All tables of all symbols. ``connections`` gives the number of clients, for the table ``connected``."""

    def __init__(
        self, feed: Feed, markets: Mapping[str, MarketTables], connections: Callable[[], int], time: int
    ) -> None:
        self.markets = markets
        self._feed = feed
        self._connections = connections
        self._connected = [{"id": 1, "users": 0, "bots": 0}]
        # The fund is valued daily at noon; nothing is liquidated here, so that it stays what it is.
        noon = (time - DAY // 2) // DAY * DAY + DAY // 2
        self._insurance = [
            {"currency": currency, "timestamp": iso(noon), "walletBalance": balance}
            for currency, balance in (("USDt", 56_000_000_000_000), ("XBt", 3_840_000_000_000))
        ]

    def rows(self, table: str, symbol: str | None) -> list[Row]:
        """The rows of a partial."""
        if table == "connected":
            return [dict(row) for row in self._connected]
        if table == "insurance":
            return self._insurance
        if symbol is not None:
            return self.markets[symbol].rows(table)
        if not SCHEMAS[table].by_symbol:
            return []  # announcement, chat, publicNotifications: nobody says anything
        return [row for market in self.markets.values() for row in market.rows(table)]

    def partial(self, table: str, symbol: str | None) -> str:
        """The message that begins a subscription: the whole table, or what it holds of one symbol."""
        for tables in self.markets.values() if symbol is None else (self.markets[symbol],):
            tables.begin(table)
        schema = SCHEMAS[table]
        return msgspec.json.encode({
            "table": table, "action": "partial", "keys": schema.keys, "types": schema.types,
            "foreignKeys": schema.foreign_keys,
            "attributes": schema.attributes, "filter": {} if symbol is None else {"symbol": symbol},
            "data": self.rows(table, symbol),
        }).decode()  # fmt: skip

    def on_minute(self, time: int) -> None:
        """What happens on the minute."""
        connected = {"id": 1, "users": 0, "bots": self._connections()}
        if [connected] != self._connected:
            self._connected = [connected]
            self._feed.publish("connected", None, "update", [connected])
        for tables in self.markets.values():
            tables.on_minute(time)
            if time == previous_funding(time):
                tables.on_funding(time)

    def on_mark(self, time: int) -> None:
        """What happens every few seconds."""
        for tables in self.markets.values():
            tables.on_mark(time)
