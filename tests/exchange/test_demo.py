"""The demo account: what its trader does in the markets, and that clients see it as any account's."""

import json
from collections import Counter

import pytest
import trio

from bitmex_streams import Connection, Decoder, Fills, Margin, Orders, Pipeline, Positions, TableApplier
from bitmex_streams.exchange import Session, Simulation
from bitmex_streams.exchange.demo import BEHIND, DEMO_API_KEY, DEMO_API_SECRET, MAX_LOTS, DemoTrader, open_demo_account

from .clients import paused

SYMBOLS = ("XBTUSD", "ETHUSD", "XBTUSDT", "SOLUSDT")
START = 1_767_225_600_000_000_000  # 2026-01-01T00:00Z


def simulation(symbols=SYMBOLS, rate=100, levels=60, **options):
    return Simulation(symbols, seed=3, start_time=START, rate=rate, levels=levels, **options)


def quotes(account):
    return {row["clOrdID"]: row for row in account.orders.values()}


def test_it_has_orders_and_has_traded_in_each_market_from_the_start():
    account = open_demo_account(simulation())
    assert set(quotes(account)) == {f"{symbol}-{side}" for symbol in SYMBOLS for side in ("bid", "ask")}
    assert {row["symbol"] for row in account.executions if row["execType"] == "Trade"} == set(SYMBOLS)
    assert any(row["currentQty"] for row in account.positions.values())


def test_it_makes_and_takes_in_each_market_and_goes_after_them():
    exchange = simulation()
    account = open_demo_account(exchange)
    exchange.advance(600)
    seen = Counter((row["symbol"], row["execType"], row.get("lastLiquidityInd")) for row in account.executions)
    for symbol in SYMBOLS:
        assert seen[symbol, "Trade", "AddedLiquidity"] > 10
        assert seen[symbol, "Trade", "RemovedLiquidity"] > 3
        assert seen[symbol, "Replaced", None] > 3
        assert seen[symbol, "Canceled", None] > 3


def test_its_quotes_follow_the_market_and_its_positions_stay_small():
    exchange = simulation(["XBTUSD"], rate=50)
    account, market = open_demo_account(exchange), exchange.markets["XBTUSD"]
    most = MAX_LOTS * market.instrument.lot_size
    near, sizes = [], set()
    for _ in range(600):
        exchange.advance(1)
        for name, best in (("XBTUSD-bid", market.engine.best_bid), ("XBTUSD-ask", market.engine.best_ask)):
            if name in quotes(account):
                near.append(abs(market.instrument.ticks(quotes(account)[name]["price"]) - best) <= BEHIND)
        sizes.add(account.positions["XBTUSD"]["currentQty"])
    assert sum(near) > 0.7 * len(near) > 500  # the others are those that it has not looked at since
    assert -most <= min(sizes) < 0 < max(sizes) <= most


def test_it_never_trades_with_itself():
    exchange = simulation(["XBTUSD"], levels=10)
    account = open_demo_account(exchange)
    exchange.advance(400)
    matches = Counter(row["trdMatchID"] for row in account.executions if row["execType"] == "Trade")
    assert len(matches) > 60
    assert set(matches.values()) == {1}


def test_its_orders_are_part_of_the_market():
    exchange, sent = simulation(["XBTUSD"], rate=0, levels=10), []
    Session(exchange.feed, exchange.tables, sent.append).subscribe(["trade:XBTUSD"], None)
    bids, asks = exchange.markets["XBTUSD"].book
    account = open_demo_account(exchange)
    trades = [row for row in account.executions if row["execType"] == "Trade"]
    expected = dict(bids) | dict(asks)
    for trade in trades:
        expected[trade["lastPx"]] -= trade["lastQty"]
    for order in account.orders.values():
        expected[order["price"]] = expected.get(order["price"], 0) + order["leavesQty"]
    after = exchange.markets["XBTUSD"].book
    assert dict(after.bids) | dict(after.asks) == {price: size for price, size in expected.items() if size}
    inserts = [message for message in map(json.loads, sent) if message.get("action") == "insert"]
    published = [row for message in inserts for row in message["data"]]
    assert [(row["trdMatchID"], row["size"]) for row in published] == [
        (row["trdMatchID"], row["lastQty"]) for row in trades
    ] != []


def test_the_same_seed_gives_the_same_executions_however_time_is_cut():
    def executions(seed, steps):
        exchange = simulation()
        account = open_demo_account(exchange, seed=seed)
        for _ in range(steps):
            exchange.advance(60 / steps)
        return account.executions

    once = executions("a", 1)
    assert once == executions("a", 24)
    assert once != executions("b", 1)


def test_it_pays_in_when_half_of_its_money_is_gone():
    exchange = simulation(["XBTUSD"])
    account = open_demo_account(exchange)
    account.withdraw("XBt", 60_000_000)
    exchange.advance(10)
    kinds = [(row["transactType"], row["currency"], row["amount"]) for row in account.transacts]
    assert kinds[-2:] == [("Withdrawal", "XBt", -60_000_000), ("Deposit", "XBt", 50_000_000)]
    exchange.advance(60)
    assert len(account.transacts) == len(kinds)


def test_an_order_that_is_refused_for_want_of_balance_is_sent_when_there_is_more():
    exchange = simulation(["XBTUSD"])
    account = exchange.open_account({"XBt": 1000})
    DemoTrader(exchange, account)
    exchange.advance(60)
    assert not account.executions
    account.deposit("XBt", 1_000_000)
    exchange.advance(10)
    assert {row["clOrdID"] for row in account.executions} >= {"XBTUSD-bid", "XBTUSD-ask"}


def test_a_book_without_orders_is_waited_for():
    exchange = simulation(["XBTUSD"], rate=0, levels=0)
    account = open_demo_account(exchange)
    exchange.advance(10)
    assert not account.orders and not account.executions
    market = exchange.markets["XBTUSD"]
    market.submit("Buy", 1000, 63000)
    market.submit("Sell", 1000, 65000)
    exchange.advance(10)
    assert {row["price"] for row in account.orders.values()} <= {63000, 65000} and account.orders


def test_without_a_trader_nothing_happens_on_it():
    exchange = simulation()
    account = open_demo_account(exchange, trading=False)
    exchange.advance(60)
    assert not account.executions and not account.orders


def test_an_exchange_has_one_demo_account():
    exchange = simulation()
    open_demo_account(exchange)
    with pytest.raises(ValueError, match="api_key is the key of another account"):
        open_demo_account(exchange)


async def test_clients_see_it_with_the_demo_key():
    orders, fills, positions, margin = Orders(), Fills(), Positions(), Margin()
    async with paused(symbols=SYMBOLS, rate=50) as exchange:
        account = open_demo_account(exchange)
        connection = Connection(
            exchange.url,
            subscribe=["order", "execution", "position", "margin"],
            api_key=DEMO_API_KEY,
            api_secret=DEMO_API_SECRET,
        )
        sections = Decoder(), TableApplier(), orders, fills, positions, margin
        async with Pipeline.create(connection, *sections) as pipeline, pipeline.tap() as items:
            await connection.subscribe("order")
            for _ in range(60):
                exchange.advance(1)
                await exchange.settled()
            trades = [row["execID"] for row in account.executions if row["execType"] == "Trade"]
            with trio.fail_after(20):
                async for _ in items:
                    known = [fill.exec_id for fill in fills.recent]
                    if known == trades and margin["XBt"].row == account.margins["XBt"]:
                        break
            left = {key: row["leavesQty"] for key, row in account.orders.items()}
            assert {key: order.leaves for key, order in orders.open.items()} == left
            for symbol, row in account.positions.items():
                assert (positions[symbol].size, positions[symbol].realized) == (row["currentQty"], row["realisedPnl"])
