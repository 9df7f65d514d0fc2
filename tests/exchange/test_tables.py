"""The tables say what happens in the markets: a partial and its deltas always give the exchange's true state."""

import json
from collections import Counter
from datetime import UTC, datetime
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitmex_streams.exchange import Session, Simulation
from bitmex_streams.exchange.schemas import SCHEMAS

START = int(datetime(2026, 1, 1, 11, 58, 30, tzinfo=UTC).timestamp()) * 10**9
KEYED = {
    "orderBookL2": ("symbol", "id", "side"),
    "orderBookL2_25": ("symbol", "id", "side"),
    "orderBook10": ("symbol",),
    "instrument": ("symbol",),
    "funding": ("timestamp", "symbol"),
    "connected": ("id",),
}


class NaiveClient:
    """Applies what it gets, by the rules of the protocol and nothing else."""

    def __init__(self, exchange, *topics):
        self.tables, self.messages = {}, []
        self.session = Session(exchange.feed, exchange.tables, self.receive)
        self.session.subscribe(topics, None)

    def receive(self, text):
        message = json.loads(text)
        self.messages.append(message)
        if "table" not in message:
            return
        name, rows = message["table"], [dict(row) for row in message["data"]]
        keys = KEYED.get(name)
        assert message["action"] == "partial" or rows, "a delta without rows"
        if message["action"] == "partial":
            assert tuple(message["keys"]) == (keys or ())
            assert all(set(row) <= set(message["types"]) for row in rows)
            self.tables[name] = {tuple(row[key] for key in keys): row for row in rows} if keys else rows
            assert len(self.tables[name]) == len(rows)
            return
        table = self.tables[name]
        if not keys:
            assert message["action"] == "insert"
            table.extend(rows)
            return
        for row in rows:
            key = tuple(row[column] for column in keys)
            if message["action"] == "insert":
                assert key not in table
                table[key] = row
            elif message["action"] == "update":
                table[key].update(row)
            else:
                assert message["action"] == "delete"
                del table[key]
        book = self.book(name)
        assert not book or not all(book) or book[0][0][0] < book[1][0][0], "crossed between two messages"

    def book(self, name, symbol="XBTUSD"):
        """Bids and asks, best first, as `Market.book` has them."""
        if not name.startswith("orderBookL2"):
            return None
        rows = [row for row in self.tables[name].values() if row["symbol"] == symbol]
        bids, asks = ([(row["price"], row["size"]) for row in rows if row["side"] == side] for side in ("Buy", "Sell"))
        return sorted(bids, reverse=True), sorted(asks)


def open_simulation(symbols=("XBTUSD",), *, seed=1, rate=0.0, levels=0, start=START):
    return Simulation(symbols, seed=seed, start_time=start, rate=rate, levels=levels)


def assert_true(client, market, exchange):
    """Everything that the client has is as it is in the market."""
    symbol = market.symbol
    bids, asks = market.book
    assert client.book("orderBookL2", symbol) == (bids, asks)
    assert client.book("orderBookL2_25", symbol) == (bids[:25], asks[:25])
    ten = client.tables["orderBook10"][symbol,]
    assert (ten["bids"], ten["asks"]) == ([list(level) for level in bids[:10]], [list(level) for level in asks[:10]])
    quotes = [row for row in client.tables["quote"] if row["symbol"] == symbol]
    if bids or asks or quotes:
        top = quotes[-1]
        assert (top["bidPrice"], top["bidSize"]) == (bids[0] if bids else (None, None))
        assert (top["askPrice"], top["askSize"]) == (asks[0] if asks else (None, None))
    assert [client.tables["instrument"][symbol,]] == exchange.tables.rows("instrument", symbol)
    row = client.tables["instrument"][symbol,]
    assert row["bidPrice"] == (bids[0].price if bids else None) and row["askPrice"] == (asks[0].price if asks else None)


TOPICS = ("trade", "orderBookL2", "orderBookL2_25", "orderBook10", "quote", "instrument")
sides = st.sampled_from(["Buy", "Sell"])
lots = st.integers(1, 30)
prices = st.integers(1, 120)
commands = st.one_of(
    st.tuples(st.just("submit"), sides, lots, st.one_of(st.none(), prices)),
    st.tuples(st.just("submit"), sides, lots, prices),
    st.tuples(st.just("cancel"), st.integers(0, 999)),
    st.tuples(st.just("amend"), st.integers(0, 999), lots, prices),
    st.tuples(st.just("advance"), st.floats(0, 70)),
    st.tuples(st.just("subscribe")),
)


@settings(deadline=None)
@given(st.lists(commands, max_size=80), st.booleans())
def test_a_naive_client_has_the_true_state_after_any_orders(script, of_one_symbol):
    exchange = open_simulation(("XBTUSD", "SOLUSDT"))
    market = exchange.markets["XBTUSD"]
    market.submit("Buy", 100, 10)
    clients = []
    traded = 0

    def subscribe():
        clients.append(NaiveClient(exchange, *(f"{topic}:XBTUSD" if of_one_symbol else topic for topic in TOPICS)))

    subscribe()
    for price in range(1, 50):  # deep enough for levels to enter and leave the 25
        market.submit("Buy", 100, price / 2)
        market.submit("Sell", 100, 35 + price / 2)
    for command, *arguments in script:
        if command == "subscribe":
            if len(clients) < 4:
                subscribe()
        elif command == "submit":
            side, quantity, price = arguments
            traded += market.submit(side, quantity * 100, None if price is None else price / 2).filled
        elif command == "advance":
            exchange.advance(arguments[0])
        elif market.engine.orders:
            order_id = sorted(market.engine.orders)[arguments[0] % len(market.engine.orders)]
            if command == "cancel":
                market.cancel(order_id)
            else:
                before = market.engine.orders[order_id]
                filled = before.filled
                traded += market.amend(order_id, quantity=arguments[1] * 100, price=arguments[2] / 2).filled - filled
        for client in clients:
            assert_true(client, market, exchange)
    assert sum(row["size"] for row in clients[0].tables["trade"] if row["symbol"] == "XBTUSD") == traded


def test_a_client_of_a_live_market_has_the_true_state_of_every_symbol():
    exchange = open_simulation(("XBTUSD", "ETHUSD", "XBTUSDT", "SOLUSDT"), rate=50, levels=None)
    client = NaiveClient(exchange, *TOPICS)
    for _ in range(120):
        exchange.advance(0.5)
        for market in exchange.markets.values():
            assert_true(client, market, exchange)
    messages = Counter(message.get("table") for message in client.messages)
    assert messages["trade"] > 100 and messages["orderBookL2_25"] > 100


def test_the_same_seed_gives_the_same_messages_however_time_is_cut():
    def stream(steps, seed):
        exchange = open_simulation(("XBTUSD", "ETHUSD"), seed=seed, rate=40, levels=30)
        messages = []
        session = Session(exchange.feed, exchange.tables, messages.append)
        session.subscribe([*TOPICS, "tradeBin1m", "quoteBin1m", "funding"], None)
        for _ in range(steps):
            exchange.advance(120 / steps)
        return messages

    assert stream(1, "a") == stream(480, "a")
    assert stream(1, "a") != stream(1, "b")


def test_one_event_makes_at_most_one_message_of_each_table_and_action():
    exchange = open_simulation(rate=0)
    market = exchange.markets["XBTUSD"]
    for price in (100, 101, 102):
        market.submit("Sell", 100, price)
        market.submit("Buy", 100, price - 50)
    client = NaiveClient(exchange, *TOPICS)
    client.messages.clear()
    market.submit("Buy", 500, 101)
    assert [(message["table"], message["action"]) for message in client.messages] == [
        ("trade", "insert"), ("orderBookL2", "delete"), ("orderBookL2", "insert"), ("orderBookL2_25", "delete"),
        ("orderBookL2_25", "insert"), ("orderBook10", "update"), ("quote", "insert"), ("instrument", "update"),
    ]  # fmt: skip
    trades = client.messages[0]["data"]
    assert [(row["side"], row["price"], row["size"], row["tickDirection"]) for row in trades] == [
        ("Buy", 100, 100, "PlusTick"),
        ("Buy", 101, 100, "PlusTick"),
    ]
    assert len({row["trdMatchID"] for row in trades}) == 2


def test_tick_directions_follow_the_last_different_price():
    exchange = open_simulation()
    market = exchange.markets["XBTUSD"]
    client = NaiveClient(exchange, "trade")
    for price in (100, 100, 99, 99, 101):
        market.submit("Sell", 100, price)
        market.submit("Buy", 100)
    assert [row["tickDirection"] for row in client.tables["trade"]] == [
        "PlusTick",
        "ZeroPlusTick",
        "MinusTick",
        "ZeroMinusTick",
        "PlusTick",
    ]


def test_rows_of_the_book_are_as_they_have_been_since_2022():
    exchange = open_simulation()
    market = exchange.markets["XBTUSD"]
    client = NaiveClient(exchange, "orderBookL2:XBTUSD")
    market.submit("Buy", 100, 31964)
    market.submit("Buy", 200, 31964)
    market.submit("Sell", 300)
    insert, update, delete = (message["data"][0] for message in client.messages[-3:])
    stamps = {"timestamp": "2026-01-01T11:58:30.000Z", "transactTime": "2026-01-01T11:58:30.000Z"}
    level = {"symbol": "XBTUSD", "id": 8796803600, "side": "Buy"}
    assert insert == {**level, "size": 100, "price": 31964, **stamps}
    assert update == {**level, "size": 300, "price": 31964, **stamps}
    assert delete == {**level, "price": 31964, **stamps}


def test_bars_are_labelled_with_their_end_and_open_where_the_last_one_closed():
    exchange = open_simulation()
    market = exchange.markets["XBTUSD"]
    client = NaiveClient(exchange, "tradeBin1m:XBTUSD", "tradeBin5m", "quoteBin1m", "trade")
    del client.tables["tradeBin1m"][:]
    for quantity, price in ((100, 50000), (300, 40000), (200, 45000)):
        market.submit("Sell", quantity, price)
        market.submit("Buy", quantity)
    exchange.advance(29)
    assert not client.tables["tradeBin1m"]
    exchange.advance(61)
    first, second = client.tables["tradeBin1m"]
    value = sum(row["grossValue"] for row in client.tables["trade"])
    assert first == {
        "timestamp": "2026-01-01T11:59:00.000Z", "symbol": "XBTUSD", "open": 64000, "high": 50000, "low": 40000,
        "close": 45000,
        "trades": 3, "volume": 600, "vwap": round(600e8 / value, 4), "lastSize": 200, "turnover": value,
        "homeNotional": pytest.approx(value / 1e8), "foreignNotional": 600,
    }  # fmt: skip
    assert second == {
        "timestamp": "2026-01-01T12:00:00.000Z", "symbol": "XBTUSD", "open": 45000, "high": 45000, "low": 45000,
        "close": 45000,
        "trades": 0, "volume": 0, "vwap": None, "lastSize": None, "turnover": 0, "homeNotional": 0,
        "foreignNotional": 0,
    }  # fmt: skip
    five = client.tables["tradeBin5m"][-1]
    assert (five["timestamp"], five["volume"], five["close"]) == ("2026-01-01T12:00:00.000Z", 600, 45000)


@pytest.mark.parametrize("rate", [5, 20, 2000])
def test_a_fresh_exchange_has_the_last_bin_of_each_size(rate):
    exchange = open_simulation(rate=rate, levels=20)
    ends = {"1m": "11:58", "5m": "11:55", "1h": "11:00", "1d": "00:00"}
    for size, end in ends.items():
        for kind in ("trade", "quote"):
            (row,) = exchange.tables.rows(f"{kind}Bin{size}", "XBTUSD")
            assert row["timestamp"] <= f"2026-01-01T{end}:00.000Z"
            assert set(row) <= set(SCHEMAS[f"{kind}Bin{size}"].types)
    bin_, row = exchange.tables.rows("tradeBin1d", "XBTUSD")[0], exchange.tables.rows("instrument", "XBTUSD")[0]
    assert bin_["open"] == bin_["close"] == row["prevClosePrice"]


@pytest.mark.parametrize("symbol", ["XBTUSD", "ETHUSD", "XBTUSDT", "SOLUSDT"])
def test_notional_sums_gather_no_dust(symbol):
    exchange = open_simulation((symbol,), rate=100, levels=20)
    exchange.advance(300)
    (bar,), (row,) = (exchange.tables.rows(table, symbol) for table in ("tradeBin5m", "instrument"))
    for value in (bar["homeNotional"], bar["foreignNotional"], row["homeNotional24h"], row["foreignNotional24h"]):
        assert value > 0 and value == round(value, 8)


def test_a_trade_on_the_minute_belongs_to_the_next_bar():
    exchange = open_simulation()
    market = exchange.markets["XBTUSD"]
    client = NaiveClient(exchange, "tradeBin1m")
    exchange.advance(30)
    market.submit("Sell", 100, 50000)
    market.submit("Buy", 100)
    assert client.tables["tradeBin1m"][-1]["volume"] == 0
    exchange.advance(60)
    assert client.tables["tradeBin1m"][-1]["volume"] == 100


def test_bars_of_an_hour_sum_up_its_trades():
    exchange = open_simulation(("SOLUSDT",), rate=2, levels=20)
    exchange.advance(90)
    client = NaiveClient(exchange, "tradeBin1m", "tradeBin5m", "tradeBin1h", "trade")
    for name in ("tradeBin1m", "tradeBin5m", "tradeBin1h", "trade"):
        del client.tables[name][:]
    exchange.advance(3600)
    trades = [row for row in client.tables["trade"] if row["timestamp"] < "2026-01-01T13:00"]
    (hour,) = client.tables["tradeBin1h"]
    assert hour["timestamp"] == "2026-01-01T13:00:00.000Z"
    assert hour["volume"] == sum(row["size"] for row in trades)
    assert hour["trades"] == len(trades) and hour["high"] == max(row["price"] for row in trades)
    for bars in (client.tables["tradeBin1m"], client.tables["tradeBin5m"]):
        bars = [bar for bar in bars if bar["timestamp"] <= "2026-01-01T13:00:00.000Z"]
        assert sum(bar["volume"] for bar in bars) == hour["volume"] and bars[-1]["close"] == hour["close"]
        assert all(later["open"] == earlier["close"] for earlier, later in pairwise(bars))


def test_funding_is_paid_every_eight_hours_at_the_rate_that_was_announced():
    exchange = open_simulation(rate=5, levels=20)
    client = NaiveClient(exchange, "funding:XBTUSD", "instrument:XBTUSD")
    assert [row["timestamp"][:13] for row in client.tables["funding"].values()] == [
        "2025-12-31T12",
        "2025-12-31T20",
        "2026-01-01T04",
    ]
    announced = client.tables["instrument"]["XBTUSD",]
    assert announced["fundingTimestamp"] == "2026-01-01T12:00:00.000Z"
    rate = announced["fundingRate"]
    exchange.advance(120)
    paid = client.tables["funding"]["2026-01-01T12:00:00.000Z", "XBTUSD"]
    assert (paid["fundingRate"], paid["fundingRateDaily"]) == (rate, 3 * rate)
    assert client.tables["instrument"]["XBTUSD",]["fundingTimestamp"] == "2026-01-01T20:00:00.000Z"


def test_the_days_volume_forgets_what_is_older_than_a_day():
    exchange = open_simulation()
    market = exchange.markets["XBTUSD"]
    market.submit("Sell", 100, 50000)
    market.submit("Buy", 100)
    client = NaiveClient(exchange, "instrument")
    row = client.tables["instrument"]["XBTUSD",]
    assert row["volume24h"] == 100
    exchange.advance(86400)
    assert row["volume24h"] == 100
    exchange.advance(120)
    assert row["volume24h"] == 0 and row["totalVolume"] == 100 and row["prevTotalVolume"] == 100


@pytest.mark.parametrize("table", SCHEMAS)
def test_every_table_answers_with_a_partial_in_the_exchanges_format(table):
    exchange = open_simulation(("XBTUSD", "ETHUSD"), rate=20, levels=20)
    message = msgspec.json.decode(exchange.tables.partial(table, None))
    assert list(message) == ["table", "action", "keys", "types", "foreignKeys", "attributes", "filter", "data"]
    assert message["filter"] == {} and set(message["keys"]) <= set(message["types"])
    assert all(set(row) <= set(message["types"]) for row in message["data"])
    if SCHEMAS[table].by_symbol:
        of_one = msgspec.json.decode(exchange.tables.partial(table, "ETHUSD"))
        assert of_one["filter"] == {"symbol": "ETHUSD"}
        assert of_one["data"] == [row for row in message["data"] if row["symbol"] == "ETHUSD"]


def test_a_market_wanders_and_never_runs_empty():
    exchange = open_simulation(("SOLUSDT",), rate=20, levels=30)
    market = exchange.markets["SOLUSDT"]
    tops = set()
    for _ in range(60):
        exchange.advance(20)
        bids, asks = market.book
        assert 10 <= len(bids) < 100 and 10 <= len(asks) < 100
        assert 100 < bids[0].price < asks[0].price < 200
        tops.add(bids[0].price)
    assert len(tops) > 10


def test_the_book_opens_as_deep_as_was_asked():
    for levels in (20, 400):
        bids, asks = open_simulation(rate=0, levels=levels).markets["XBTUSD"].book
        assert 0.6 * levels < len(bids) < 1.6 * levels and 0.6 * levels < len(asks) < 1.6 * levels
    assert open_simulation(levels=0).markets["XBTUSD"].book == ([], [])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"symbols": ("DOGE",)}, "DOGE; the exchange lists XBTUSD"),
        ({"symbols": ()}, "none"),
        ({"rate": -1}, "rate is -1"),
        ({"levels": -1}, "levels is -1"),
        ({"levels": 2.5}, "levels is 2.5"),
        ({"levels": 0, "rate": 20}, "levels is 0 and rate is 20"),
        ({"rate": None}, "rate is None"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"symbols": "XBTUSD"}, r"symbols is 'XBTUSD': it must be a list"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        open_simulation(**arguments)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_time_goes_forward_by_a_number_of_seconds(seconds):
    exchange = open_simulation()
    with pytest.raises(ValueError, match="only goes forward"):
        exchange.advance(seconds)
    exchange.advance(1)
