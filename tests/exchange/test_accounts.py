"""Accounts trade, and hear of it as from the real exchange."""

import json
import math
from collections import Counter, defaultdict
from contextlib import suppress
from datetime import UTC, datetime
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitmex_streams.exchange import OrderRefused, Session, Simulation
from bitmex_streams.exchange.accounts import NO_ID
from bitmex_streams.exchange.schemas import PRIVATE_SCHEMAS, PRIVATE_TABLES

START = int(datetime(2026, 1, 1, 11, 58, 30, tzinfo=UTC).timestamp()) * 10**9
NOW = "2026-01-01T11:58:30.000Z"
KEYS = {table: tuple(schema.keys) for table, schema in PRIVATE_SCHEMAS.items()}


def open_simulation(symbols=("XBTUSD", "ETHUSD", "XBTUSDT"), *, seed=1, rate=0.0, levels=0):
    """Empty books, unless asked for; the mark price of XBTUSD is 64000.02."""
    return Simulation(symbols, seed=seed, start_time=START, rate=rate, levels=levels)


class Reader:
    """Subscribed to topics, it holds what the rules of the protocol make of the messages, and nothing else."""

    def __init__(self, exchange, account, *topics):
        self.messages, self.tables = [], {}
        self.session = Session(exchange.feed, exchange.tables, self.receive, exchange.accounts, account)
        self.session.subscribe(topics, None)

    def receive(self, text):
        message = json.loads(text)
        assert "error" not in message, text
        if "table" not in message:
            return
        name, action, rows = message["table"], message["action"], message["data"]
        keys = KEYS[name]
        self.messages.append(message)
        if action == "partial":
            assert all(set(row) <= set(message["types"]) for row in rows)
            self.tables[name] = {} if keys else []
        else:
            assert rows and set().union(*rows) <= set(PRIVATE_SCHEMAS[name].types)
        table = self.tables[name]
        for row in rows:
            key = tuple(row[column] for column in keys)
            if not keys:
                assert action in ("partial", "insert")
                table.append(row)
            elif action == "update":
                table[key] = table[key] | row
            else:
                assert action in ("partial", "insert") and key not in table
                table[key] = row

    def take(self):
        """The messages since the last time."""
        taken, self.messages = self.messages, []
        return taken

    def open_orders(self):
        rows = self.tables["order"].values()
        return {row["orderID"]: row for row in rows if row["ordStatus"] in ("New", "PartiallyFilled")}


def shapes(messages):
    return [(message["table"], message["action"], len(message["data"])) for message in messages]


# --- orders


def test_an_order_that_rests_is_announced_with_what_it_binds():
    exchange = open_simulation()
    account = exchange.open_account()
    reader = Reader(exchange, account, "order", "execution", "position", "margin")
    reader.take()
    row = account.submit("XBTUSD", "Buy", 300, 63000.5, client_order_id="mine")
    assert row == {
        "orderID": row["orderID"], "clOrdID": "mine", "account": account.id, "symbol": "XBTUSD", "strategy": "OneWay",
        "side": "Buy", "orderQty": 300, "price": 63000.5, "currency": "USD", "settlCurrency": "XBt",
        "ordType": "Limit", "timeInForce": "GoodTillCancel", "execInst": "", "ordStatus": "New",
        "workingIndicator": True, "leavesQty": 300, "cumQty": 0, "avgPx": None, "text": "Submitted via API.",
        "transactTime": NOW, "timestamp": NOW,
    }  # fmt: skip
    messages = reader.take()
    assert shapes(messages) == [
        ("order", "insert", 1), ("execution", "insert", 1), ("position", "insert", 1), ("margin", "update", 1)
    ]  # fmt: skip
    order, execution, position, margin = (message["data"][0] for message in messages)
    assert order == row
    assert execution == {**row, "execID": execution["execID"], "execType": "New", "trdMatchID": NO_ID}
    # Three lots of 10**10 / 63000.5 = 158729; 1 % of the 476187 satoshi and twice 0.075 % are 5476.1505.
    assert (position["openOrderBuyQty"], position["openOrderBuyCost"], position["initMargin"]) == (300, -476_187, 5477)
    assert margin == {
        "account": account.id, "currency": "XBt", "grossOpenCost": 476_187, "initMargin": 5477,
        "marginUsedPcnt": 0.0001, "excessMargin": 99_994_523, "availableMargin": 99_994_523,
        "withdrawableMargin": 99_994_523, "timestamp": NOW,
    }  # fmt: skip
    assert exchange.markets["XBTUSD"].book.bids == [(63000.5, 300)]
    assert account.orders == {row["orderID"]: row}


def test_both_sides_of_a_trade_hear_of_it():
    exchange = open_simulation()
    maker, taker = exchange.open_account(), exchange.open_account()
    first = maker.submit("XBTUSD", "Sell", 200, 64000)
    second = maker.submit("XBTUSD", "Sell", 200, 64000.5)
    readers = [Reader(exchange, account, *KEYS) for account in (maker, taker)]
    for reader in readers:
        reader.take()
    row = taker.submit("XBTUSD", "Buy", 500, 64001)
    # 400 contracts for 200 / 64000 + 200 / 64000.5 bitcoins: at 64000.25 each.
    assert (row["ordStatus"], row["leavesQty"], row["cumQty"], row["avgPx"]) == ("PartiallyFilled", 100, 400, 64000.25)
    of_maker, of_taker = (reader.take() for reader in readers)
    assert shapes(of_maker) == [
        ("order", "update", 2), ("execution", "insert", 2), ("position", "update", 1), ("margin", "update", 1)
    ]  # fmt: skip
    assert shapes(of_taker) == [
        ("order", "insert", 1), ("order", "update", 1), ("execution", "insert", 3), ("position", "insert", 1),
        ("margin", "update", 1),
    ]  # fmt: skip
    assert of_taker[0]["data"][0]["ordStatus"] == "New" and of_taker[0]["data"][0]["leavesQty"] == 500
    assert of_taker[1]["data"][0] == {
        "orderID": row["orderID"], "clOrdID": "", "account": taker.id, "symbol": "XBTUSD",
        "ordStatus": "PartiallyFilled", "leavesQty": 100, "cumQty": 400, "avgPx": 64000.25, "transactTime": NOW,
        "timestamp": NOW,
    }  # fmt: skip
    assert [change["orderID"] for change in of_maker[0]["data"]] == [first["orderID"], second["orderID"]]
    assert all(change["ordStatus"] == "Filled" and not change["workingIndicator"] for change in of_maker[0]["data"])
    new, *taken = of_taker[2]["data"]
    made = of_maker[1]["data"]
    assert new["execType"] == "New"
    assert [row["trdMatchID"] for row in taken] == [row["trdMatchID"] for row in made]
    # 0.075 % of two lots of 156250 and of 156249 are 234.375 and 234.3735, 0.02 % are 62.5 and 62.4996.
    for side, rows, role, rate, sign, fees in (
        ("Buy", taken, "RemovedLiquidity", 0.00075, 1, (234, 234)),
        ("Sell", made, "AddedLiquidity", 0.0002, -1, (63, 62)),
    ):
        for row, price, cost, fee in zip(rows, (64000, 64000.5), (312_500, 312_498), fees, strict=True):
            assert (row["execType"], row["side"], row["lastQty"], row["lastPx"]) == ("Trade", side, 200, price)
            assert (row["lastLiquidityInd"], row["commission"]) == (role, rate)
            assert row["tradePublishIndicator"] == ("PublishTrade" if side == "Buy" else "DoNotPublishTrade")
            assert (row["execCost"], row["execComm"]) == (-sign * cost, fee)
            assert (row["homeNotional"], row["foreignNotional"]) == (sign * cost / 1e8, -sign * 200)
    assert [(row["ordStatus"], row["leavesQty"], row["cumQty"]) for row in taken] == [
        ("PartiallyFilled", 300, 200),
        ("PartiallyFilled", 100, 400),
    ]
    assert [taker.positions["XBTUSD"]["currentQty"], maker.positions["XBTUSD"]["currentQty"]] == [400, -400]


def test_the_match_ids_are_those_of_the_public_trades():
    exchange = open_simulation(rate=20, levels=20)
    account = exchange.open_account()
    texts = []
    Session(exchange.feed, exchange.tables, texts.append).subscribe(["trade:XBTUSD"], None)
    account.submit("XBTUSD", "Buy", 5000)
    account.submit("XBTUSD", "Sell", 1000, exchange.markets["XBTUSD"].book.asks[0].price, post_only=True)
    exchange.advance(60)
    public = {row["trdMatchID"]: row for text in texts for row in json.loads(text).get("data", ())}
    fills = [row for row in account.executions if row["execType"] == "Trade"]
    assert {row["lastLiquidityInd"] for row in fills} == {"AddedLiquidity", "RemovedLiquidity"}
    for row in fills:
        trade = public[row["trdMatchID"]]
        assert (trade["price"], trade["timestamp"]) == (row["lastPx"], row["transactTime"])
        assert trade["grossValue"] == abs(row["execCost"]) and trade["size"] == row["lastQty"]


def test_an_amended_order_keeps_its_id_and_can_take():
    exchange = open_simulation()
    account, other = exchange.open_account(), exchange.open_account()
    reader = Reader(exchange, account, "order", "execution")
    id = account.submit("XBTUSD", "Buy", 300, 63000, client_order_id="a")["orderID"]
    reader.take()
    row = account.amend(id, size=500)
    assert (row["orderQty"], row["leavesQty"], row["ordStatus"]) == (500, 500, "New")
    order, execution = (message["data"][0] for message in reader.take())
    assert order == {
        "orderID": id, "clOrdID": "a", "account": account.id, "symbol": "XBTUSD", "orderQty": 500, "leavesQty": 500,
        "text": "Amended orderQty: Amended via API.\nSubmitted via API.", "transactTime": NOW, "timestamp": NOW,
    }  # fmt: skip
    assert (execution["execType"], execution["orderQty"], execution["text"]) == ("Replaced", 500, order["text"])
    other.submit("XBTUSD", "Sell", 200, 63500)
    row = account.amend(client_order_id="a", leaves=400, price=63500)
    assert (row["orderQty"], row["leavesQty"], row["cumQty"], row["ordStatus"]) == (400, 200, 200, "PartiallyFilled")
    assert [row["execType"] for row in account.executions] == ["New", "Replaced", "Replaced", "Trade"]
    row = account.amend(id, leaves=100)
    assert (row["orderQty"], row["leavesQty"], row["cumQty"]) == (300, 100, 200)
    assert exchange.markets["XBTUSD"].book.bids == [(63500, 100)]


def test_a_canceled_order_says_why():
    exchange = open_simulation()
    account = exchange.open_account()
    id = account.submit("XBTUSD", "Buy", 300, 63000)["orderID"]
    reader = Reader(exchange, account, "order", "execution", "position", "margin")
    reader.take()
    row = account.cancel(id)
    assert (row["ordStatus"], row["leavesQty"], row["workingIndicator"]) == ("Canceled", 0, False)
    assert row["text"] == "Canceled: Canceled via API.\nSubmitted via API."
    messages = reader.take()
    assert [(message["table"], message["action"]) for message in messages] == [
        ("order", "update"), ("execution", "insert"), ("position", "update"), ("margin", "update")
    ]  # fmt: skip
    assert messages[1]["data"][0]["execType"] == "Canceled" and messages[1]["data"][0]["ordStatus"] == "Canceled"
    assert account.orders == {} and account.margins["XBt"]["availableMargin"] == 100_000_000
    assert exchange.markets["XBTUSD"].book.bids == []
    assert Reader(exchange, account, "order").tables["order"] == {}  # a partial holds open orders only


def test_canceling_all_makes_one_message_of_each_table():
    exchange = open_simulation()
    account = exchange.open_account()
    for price in (60000, 61000):
        account.submit("XBTUSD", "Buy", 100, price)
        account.submit("XBTUSDT", "Sell", 1000, price + 5000)
    everything, of_one = Reader(exchange, account, "order", "execution"), Reader(exchange, account, "order:XBTUSD")
    everything.take(), of_one.take()
    assert account.cancel_all(side="Sell", symbol="XBTUSD") == []
    rows = account.cancel_all()
    assert [row["symbol"] for row in rows] == ["XBTUSD", "XBTUSDT"] * 2
    assert {row["ordStatus"] for row in rows} == {"Canceled"}
    assert shapes(everything.take()) == [("order", "update", 4), ("execution", "insert", 4)]
    assert shapes(of_one.take()) == [("order", "update", 2)]
    assert [account.cancel_all(), account.orders] == [[], {}]


def test_orders_are_canceled_by_side_and_symbol():
    exchange = open_simulation()
    account = exchange.open_account()
    account.submit("XBTUSD", "Buy", 100, 60000)
    account.submit("XBTUSD", "Sell", 100, 65000)
    account.submit("XBTUSDT", "Sell", 1000, 65000)
    assert [row["symbol"] for row in account.cancel_all(side="Sell", symbol="XBTUSD")] == ["XBTUSD"]
    assert [row["side"] for row in account.cancel_all("XBTUSD")] == ["Buy"]
    assert [row["symbol"] for row in account.orders.values()] == ["XBTUSDT"]


def test_a_post_only_order_that_would_take_is_canceled():
    exchange = open_simulation()
    account = exchange.open_account()
    exchange.markets["XBTUSD"].submit("Sell", 100, 64000)
    row = account.submit("XBTUSD", "Buy", 100, 64000, post_only=True)
    assert (row["ordStatus"], row["execInst"]) == ("Canceled", "ParticipateDoNotInitiate")
    assert row["text"].startswith("Canceled: Order had execInst of ParticipateDoNotInitiate\n")
    assert [row["execType"] for row in account.executions] == ["New", "Canceled"]
    row = account.submit("XBTUSD", "Buy", 100, 63999.5, post_only=True)
    assert row["ordStatus"] == "New"
    row = account.amend(row["orderID"], price=64000)
    assert row["ordStatus"] == "Canceled" and "ParticipateDoNotInitiate" in row["text"]
    assert exchange.markets["XBTUSD"].book == ([], [(64000, 100)])


def test_what_has_not_changed_is_not_published():
    exchange = open_simulation()
    account = exchange.open_account()
    exchange.markets["XBTUSD"].submit("Sell", 100, 64000)
    account.submit("XBTUSD", "Buy", 100, 60000)
    reader = Reader(exchange, account, "order", "execution", "position", "margin")
    exchange.advance(1)
    reader.take()
    account.submit("XBTUSD", "Buy", 100, 64000, post_only=True)
    assert shapes(reader.take()) == [("order", "insert", 1), ("order", "update", 1), ("execution", "insert", 2)]


def test_what_is_immediate_never_rests():
    exchange = open_simulation()
    account = exchange.open_account()
    exchange.markets["XBTUSD"].submit("Sell", 100, 64000)
    texts = []
    Session(exchange.feed, exchange.tables, texts.append).subscribe(["orderBookL2"], None)
    texts.clear()
    row = account.submit("XBTUSD", "Buy", 300, 64000, time_in_force="FillOrKill")
    assert (row["ordStatus"], row["cumQty"]) == ("Canceled", 0)
    assert row["text"].splitlines()[0] == "Canceled: Order had timeInForce of FillOrKill"
    row = account.submit("XBTUSD", "Buy", 300, 64000, time_in_force="ImmediateOrCancel")
    assert (row["ordStatus"], row["cumQty"], row["leavesQty"], row["avgPx"]) == ("Canceled", 100, 0, 64000)
    assert row["text"].splitlines()[0] == "Canceled: Order had timeInForce of ImmediateOrCancel"
    assert exchange.markets["XBTUSD"].book == ([], [])
    assert [json.loads(text)["action"] for text in texts] == ["delete"]
    exchange.markets["XBTUSD"].submit("Sell", 100, 64000)
    row = account.submit("XBTUSD", "Buy", 100, 64000, time_in_force="FillOrKill")
    assert row["ordStatus"] == "Filled"
    row = account.submit("XBTUSD", "Buy", 100)
    assert (row["ordType"], row["price"], row["ordStatus"]) == ("Market", None, "Canceled")


def test_an_order_that_may_only_reduce_follows_the_position():
    exchange = open_simulation()
    account, market = exchange.open_account(), exchange.markets["XBTUSD"]
    row = account.submit("XBTUSD", "Sell", 100, 65000, reduce_only=True)
    assert row["ordStatus"] == "Canceled"
    assert "Order had execInst of ReduceOnly and side of Sell but current position is 0" in row["text"]
    market.submit("Sell", 500, 64000)
    account.submit("XBTUSD", "Buy", 500)
    before = account.margins["XBt"]["initMargin"]
    far = account.submit("XBTUSD", "Sell", 800, 66000, reduce_only=True)["orderID"]
    assert account.orders[far]["orderQty"] == 500  # no larger than the position
    near = account.submit("XBTUSD", "Sell", 300, 65000, reduce_only=True)["orderID"]
    assert account.orders[far]["leavesQty"] == 200  # the less aggressive one gives way
    assert account.margins["XBt"]["initMargin"] == before
    market.submit("Buy", 100, 65000)
    assert [account.orders[id]["leavesQty"] for id in (near, far)] == [200, 200]
    market.submit("Buy", 300, 64000)
    account.submit("XBTUSD", "Sell", 300)
    assert account.orders[near]["leavesQty"] == 100 and far not in account.orders
    assert account.executions[-1]["text"].startswith("Canceled: Order had execInst of ReduceOnly")
    market.submit("Buy", 1000, 65000)
    assert account.orders == {} and account.positions["XBTUSD"]["currentQty"] == 0


def test_an_accounts_own_orders_match_each_other():
    exchange = open_simulation()
    account = exchange.open_account()
    account.submit("XBTUSD", "Buy", 100, 64000)
    account.submit("XBTUSD", "Sell", 100, 64000)
    made, taken = (row for row in account.executions if row["execType"] == "Trade")
    assert made["trdMatchID"] == taken["trdMatchID"] and made["execCost"] == -taken["execCost"] == -156_250
    # 0.02 % and 0.075 % of 156250: 31.25 and 117.1875
    assert account.positions["XBTUSD"]["currentQty"] == 0 and account.positions["XBTUSD"]["realisedPnl"] == -148
    assert account.margins["XBt"]["walletBalance"] == 100_000_000 - 148


def test_an_order_that_is_canceled_or_amended_in_the_market_itself_is_heard_of():
    exchange = open_simulation()
    account, market = exchange.open_account(), exchange.markets["XBTUSD"]
    id = account.submit("XBTUSD", "Buy", 300, 63000)["orderID"]
    market.amend(id, quantity=200)
    assert account.orders[id]["orderQty"] == 200
    market.cancel(id)
    assert account.orders == {} and account.executions[-1]["execType"] == "Canceled"


# --- refusals


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (("DOGE", "Buy", 100, 1), "Invalid symbol"),
        (("XBTUSD", "buy", 100, 1), "Invalid side"),
        (("XBTUSD", "Buy", 0, 64000), "Invalid orderQty"),
        (("XBTUSD", "Buy", -100, 64000), "Invalid orderQty"),
        (("XBTUSD", "Buy", 100.0, 64000), "Invalid orderQty"),
        (("XBTUSD", "Buy", True, 64000), "Invalid orderQty"),
        (("XBTUSD", "Buy", 10**9, 64000), "Invalid orderQty"),
        (("XBTUSD", "Buy", 150, 64000), "Order quantity must be a multiple of lot size: 100"),
        (("XBTUSD", "Buy", 100, 64000.3), "Invalid price tickSize"),
        (("XBTUSD", "Buy", 100, 0), "Invalid price"),
        (("XBTUSD", "Buy", 100, -5), "Invalid price"),
        (("XBTUSD", "Buy", 100, 1e9), "Invalid price"),
        (("XBTUSD", "Buy", 100, "64000"), "Invalid price"),
        (("XBTUSD", "Buy", 100, float("nan")), "Invalid price"),
        (("XBTUSD", "Buy", 100, True), "Invalid price"),
        # 10 million dollars at 64000 are 15625000000 satoshi: 1.15 % of it
        (("XBTUSD", "Buy", 10_000_000, 64000), "Account has insufficient Available Balance, 179687500 XBt required"),
        (("XBTUSDT", "Sell", 10**9, 64000), "Account has insufficient Available Balance, 736000000000 USDt required"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_in_the_exchanges_words(order, words):
    exchange = open_simulation()
    account = exchange.open_account()
    before = account.margins
    with pytest.raises(OrderRefused) as refused:
        account.submit(*order)
    assert (str(refused.value), refused.value.status) == (words, 400)
    assert (account.orders, account.executions, account.positions) == ({}, [], {}) and account.margins == before
    assert isinstance(refused.value, ValueError)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"time_in_force": "Day"}, "Unsupported timeInForce"),
        ({"post_only": True, "price": None}, "Invalid ordType or timeInForce for execInst"),
        ({"post_only": True, "time_in_force": "FillOrKill"}, "Invalid ordType or timeInForce for execInst"),
        ({"client_order_id": "x" * 37}, "Invalid clOrdID"),
        ({"client_order_id": None}, "Invalid clOrdID"),
        ({"client_order_id": "there"}, "Duplicate clOrdID"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together_are_refused(options, words):
    account = open_simulation().open_account()
    account.submit("XBTUSD", "Buy", 100, 60000, client_order_id="there")
    with pytest.raises(OrderRefused, match=f"^{words}$"):
        account.submit("XBTUSD", "Buy", 100, **{"price": 64000, **options})


def test_orders_that_are_not_there_cannot_be_changed():
    exchange = open_simulation()
    account = exchange.open_account()
    id = account.submit("XBTUSD", "Buy", 100, 60000, client_order_id="a")["orderID"]
    for arguments, words in [
        ({}, "Invalid amend: orderQty, leavesQty, price, stopPx unchanged"),
        ({"size": 100}, "Invalid amend"),
        ({"price": 60000}, "Invalid amend"),
        ({"size": 100, "leaves": 100}, "Invalid orderQty"),
        ({"leaves": 0}, "Invalid leavesQty"),
        ({"size": 150}, "multiple of lot size"),
        ({"price": 0.3}, "Invalid price tickSize"),
        ({"size": 10_000_000}, "insufficient Available Balance"),
    ]:
        with pytest.raises(OrderRefused, match=words):
            account.amend(id, **arguments)
    assert account.orders[id]["orderQty"] == 100
    exchange.open_account().submit("XBTUSD", "Sell", 100, 60000)
    for call, words in [
        (lambda: account.amend(id, size=200), "Invalid ordStatus"),
        (lambda: account.amend("nonsense", size=200), "Invalid orderID"),
        (lambda: account.amend(client_order_id="b", size=200), "Invalid origClOrdID"),
        (lambda: account.cancel(client_order_id="a"), "Unable to cancel order due to existing state: Filled"),
        (lambda: account.cancel("nonsense"), "Invalid orderID"),
        (account.cancel, "orderID or origClOrdID must be sent."),
        (account.amend, "orderID or origClOrdID must be sent."),
        (lambda: account.cancel_all("DOGE"), "Invalid symbol"),
        (lambda: account.cancel_all(side="both"), "Invalid side"),
    ]:
        with pytest.raises(OrderRefused, match=words):
            call()


def test_an_order_binds_what_it_would_cost_and_not_what_its_limit_says():
    exchange = open_simulation()
    account = exchange.open_account({"XBt": 1_000_000})
    exchange.markets["XBTUSD"].submit("Sell", 100_000, 64000)
    # A limit far above makes an inverse contract look cheap; at 64000 it costs 156250000 satoshi.
    with pytest.raises(OrderRefused, match="Available Balance, 1796875 XBt required"):
        account.submit("XBTUSD", "Buy", 100_000, 900_000)
    assert account.submit("XBTUSD", "Buy", 50_000, 900_000)["ordStatus"] == "Filled"


def test_only_what_an_order_binds_besides_the_others_must_be_there():
    account = open_simulation().open_account({"XBt": 1_000_000})
    id = account.submit("XBTUSD", "Buy", 30_000, 64000)["orderID"]  # 46875000 * 1.15 % = 539062.5
    with pytest.raises(OrderRefused, match="Available Balance, 539062 XBt required"):
        account.submit("XBTUSD", "Buy", 30_000, 64000)
    assert account.amend(id, size=50_000)["orderQty"] == 50_000  # 898437.5, in the place of the other
    assert account.margins["XBt"]["initMargin"] == 898_438
    with pytest.raises(OrderRefused, match="Available Balance, 179687 XBt required"):
        account.amend(id, size=60_000)


def test_the_orders_that_would_be_filled_first_are_those_that_close():
    exchange = open_simulation()
    account = exchange.open_account()
    exchange.markets["XBTUSD"].submit("Buy", 100, 64000)
    account.submit("XBTUSD", "Sell", 100)
    for price in (60000, 63000):
        account.submit("XBTUSD", "Buy", 100, price)
    # The one at 63000 closes; 10**10 / 60000 = 166667, and 1.15 % of it are 1916.67.
    assert account.positions["XBTUSD"]["initMargin"] == 1917
    account.submit("XBTUSD", "Buy", 100, 59000, reduce_only=True)
    assert account.positions["XBTUSD"]["initMargin"] == 1917


def test_what_closes_a_position_binds_nothing_and_the_dearer_side_binds():
    exchange = open_simulation()
    account = exchange.open_account({"XBt": 12_000_000})
    exchange.markets["XBTUSD"].submit("Sell", 600_000, 64000)
    account.submit("XBTUSD", "Buy", 600_000)  # 9375000 * 1.15 % of 937500000, and fees of 703125
    assert account.margins["XBt"]["initMargin"] == 9_375_000 + 1_406_250
    assert account.margins["XBt"]["availableMargin"] == 12_000_000 - 703_125 - 10_781_250
    with pytest.raises(OrderRefused, match="insufficient"):
        account.submit("XBTUSD", "Buy", 100_000, 64000)
    account.submit("XBTUSD", "Sell", 600_000, 64000)
    assert account.margins["XBt"]["initMargin"] == 10_781_250
    with pytest.raises(OrderRefused, match="insufficient"):
        account.submit("XBTUSD", "Sell", 100_000, 64000)
    account.submit("XBTUSD", "Sell", 10_000, 64000)
    one_side = account.margins["XBt"]["initMargin"]
    account.submit("XBTUSD", "Buy", 10_000, 64000 - 0.5)  # a little dearer, in satoshi
    assert 0 < account.margins["XBt"]["initMargin"] - one_side < 5


def test_an_order_that_is_filled_in_part_binds_what_is_left_of_it():
    exchange = open_simulation()
    account = exchange.open_account()
    account.submit("XBTUSD", "Sell", 300, 64000)
    exchange.markets["XBTUSD"].submit("Buy", 100, 64000)
    assert_consistent(exchange, account)
    row = account.positions["XBTUSD"]
    assert (row["currentQty"], row["openOrderSellQty"]) == (-100, 200)
    account.amend(next(iter(account.orders)), price=64010)
    assert_consistent(exchange, account)


# --- positions and money


def test_a_position_follows_its_fills_and_the_mark_price():
    exchange = open_simulation()
    account, market = exchange.open_account(), exchange.markets["XBTUSD"]
    reader = Reader(exchange, account, "position", "margin", "wallet", "transact")
    market.submit("Sell", 300, 64000)
    account.submit("XBTUSD", "Buy", 300)
    position = account.positions["XBTUSD"]
    mark = exchange.tables.rows("instrument", "XBTUSD")[0]["markPrice"]
    assert position["markPrice"] == mark
    # 3 * 156250, and 0.075 % of it: 351.5625
    assert {name: position[name] for name in ("currentQty", "currentCost", "unrealisedCost", "currentComm")} == {
        "currentQty": 300, "currentCost": -468_750, "unrealisedCost": -468_750, "currentComm": 352
    }  # fmt: skip
    assert (position["realisedPnl"], position["avgEntryPrice"], position["isOpen"]) == (-352, 64000, True)
    # Who is long owns bitcoins (of 468750 satoshi at the mark price, too), and owes dollars.
    assert (position["homeNotional"], position["foreignNotional"]) == (0.0046875, -300)
    market.submit("Buy", 100, 60000)
    market.submit("Sell", 100, 60002)
    exchange.advance(85)
    position = account.positions["XBTUSD"]
    mark = exchange.tables.rows("instrument", "XBTUSD")[0]["markPrice"]
    assert position["markPrice"] == mark < 63200
    value = -3 * int(Fraction(10**10) / Fraction(str(mark)) + Fraction(1, 2))
    assert position["markValue"] == value and position["unrealisedPnl"] == value + 468_750 < -5000
    assert account.margins["XBt"]["unrealisedPnl"] == position["unrealisedPnl"]
    assert account.margins["XBt"]["marginBalance"] == 100_000_000 - 352 + position["unrealisedPnl"]
    assert reader.tables["position"][account.id, "XBTUSD", "OneWay"] == account.positions["XBTUSD"]
    assert list(reader.tables["margin"].values()) == list(account.margins.values())


def test_a_short_position_owes_what_it_sold_and_must_be_maintained():
    exchange = open_simulation()
    account = exchange.open_account()
    exchange.markets["XBTUSD"].submit("Buy", 300, 64000)
    account.submit("XBTUSD", "Sell", 300)
    position = account.positions["XBTUSD"]
    assert (position["currentQty"], position["unrealisedCost"]) == (-300, 468_750)
    assert (position["homeNotional"], position["foreignNotional"]) == (-0.0046875, 300)
    # Of 468750 satoshi, rounded up: 1 %; 0.075 % twice; 0.5 % and 0.075 %.
    assert {name: position[name] for name in ("posInit", "posComm", "posMargin", "posMaint", "maintMargin")} == {
        "posInit": 4688, "posComm": 704, "posMargin": 5392, "posMaint": 2696, "maintMargin": 2696
    }  # fmt: skip
    assert account.margins["XBt"]["maintMargin"] == 2696
    exchange.markets["ETHUSD"].submit("Sell", 70, 3200)
    account.submit("ETHUSD", "Buy", 70)
    assert account.positions["ETHUSD"]["maintMargin"] == 128_800  # of 70 * 3200 * 100
    assert account.margins["XBt"]["maintMargin"] == 2696 + 128_800


@pytest.mark.parametrize(("side", "sign"), [("Buy", 1), ("Sell", -1)])
def test_funding_is_paid_by_the_one_side_to_the_other(side, sign):
    exchange = open_simulation()
    account = exchange.open_account()
    exchange.markets["ETHUSD"].submit("Sell" if side == "Buy" else "Buy", 70, 3200)
    account.submit("ETHUSD", side, 70)
    reader = Reader(exchange, account, "execution", "position", "margin")
    exchange.advance(85)
    reader.take()
    (announced,) = exchange.tables.rows("instrument", "ETHUSD")
    exchange.advance(5)
    # The mark price of the moment is that of five seconds before: it moves after the funding.
    price, rate = announced["markPrice"], announced["fundingRate"]
    execution = account.executions[-1]
    cost = sign * int(70 * 100 * Fraction(str(price)) + Fraction(1, 2))
    paid = sign * int(abs(cost) * Fraction(str(rate)) + Fraction(1, 2))
    assert {name: execution[name] for name in ("execType", "symbol", "lastQty", "lastPx", "commission")} == {
        "execType": "Funding", "symbol": "ETHUSD", "lastQty": 70, "lastPx": price, "commission": sign * rate
    }  # fmt: skip
    assert (execution["execCost"], execution["execComm"]) == (cost, paid)
    assert abs(paid) == 2240 and execution["timestamp"] == "2026-01-01T12:00:00.000Z"
    trade = next(row for row in account.executions if row["execType"] == "Trade")
    position = account.positions["ETHUSD"]
    assert (position["currentQty"], position["currentCost"]) == (sign * 70, trade["execCost"])
    assert position["currentComm"] == trade["execComm"] + paid == -position["realisedPnl"]
    assert account.margins["XBt"]["walletBalance"] == 100_000_000 - position["currentComm"]
    assert [message["table"] for message in reader.take()][:3] == ["execution", "position", "margin"]


def test_money_comes_and_goes():
    exchange = open_simulation()
    account = exchange.open_account({"XBt": 1_000_000})
    reader = Reader(exchange, account, "transact", "wallet", "margin")
    reader.take()
    account.deposit("USDt", 5_000_000)
    assert shapes(reader.take()) == [("transact", "insert", 1), ("wallet", "insert", 1), ("margin", "insert", 1)]
    account.submit("XBTUSD", "Buy", 10_000, 64000)  # binds 15625000 * 1.15 % = 179687.5
    reader.take()
    with pytest.raises(OrderRefused, match="insufficient Available Balance, 820313 XBt required"):
        account.withdraw("XBt", 820_313)
    row = account.withdraw("XBt", 820_312)
    assert (row["transactType"], row["amount"], row["transactStatus"]) == ("Withdrawal", -820_312, "Completed")
    assert shapes(reader.take()) == [("transact", "insert", 1), ("wallet", "update", 1), ("margin", "update", 1)]
    assert [(row["currency"], row["amount"]) for row in account.transacts] == [
        ("XBt", 1_000_000), ("USDt", 5_000_000), ("XBt", -820_312)
    ]  # fmt: skip
    wallet = account.wallets["XBt"]
    assert (wallet["deposited"], wallet["withdrawn"], wallet["amount"]) == (1_000_000, 820_312, 179_688)
    assert account.margins["XBt"]["availableMargin"] == 0 and account.margins["XBt"]["walletBalance"] == 179_688
    for call in (account.deposit, account.withdraw):
        for currency, amount in (("DOGE", 5), ("XBt", 0), ("XBt", -5), ("XBt", 1.5), ("XBt", True)):
            with pytest.raises(ValueError, match=r"(currency|amount) is "):
                call(currency, amount)


def test_a_profit_on_paper_can_be_traded_with_and_not_withdrawn():
    exchange = open_simulation(("XBTUSDT",))
    account = exchange.open_account({"USDt": 10_000_000})
    exchange.markets["XBTUSDT"].submit("Sell", 1000, 60000)
    account.submit("XBTUSDT", "Buy", 1000)  # 60 USDT for what is worth 64
    margin, position = account.margins["USDt"], account.positions["XBTUSDT"]
    assert position["unrealisedPnl"] > 3_990_000 and margin["walletBalance"] == 10_000_000 - 45_000
    assert margin["availableMargin"] == margin["marginBalance"] - 690_000
    assert margin["withdrawableMargin"] == margin["walletBalance"] - 690_000


def test_who_has_no_money_in_a_currency_cannot_trade_in_it():
    account = open_simulation().open_account({})
    assert (account.wallets, account.margins, account.transacts) == ({}, {}, [])
    with pytest.raises(OrderRefused, match="insufficient Available Balance"):
        account.submit("XBTUSD", "Buy", 100, 64000)


def test_notifications_appear():
    exchange = open_simulation()
    account = exchange.open_account()
    reader = Reader(exchange, account, "privateNotifications", "affiliate")
    row = account.notify("Hello", "An <i>important</i> message.")
    assert reader.tables == {"privateNotifications": {(1,): row}, "affiliate": {}}
    assert (row["title"], account.notify("Again", "")["id"], len(account.notifications)) == ("Hello", 2, 2)


# --- the dead man's switch


def test_all_orders_are_canceled_unless_the_switch_is_armed_anew():
    exchange = open_simulation()
    account, other = exchange.open_account(), exchange.open_account()
    for who in (account, other):
        who.submit("XBTUSD", "Buy", 100, 60000)
        who.submit("XBTUSDT", "Buy", 1000, 60000)
    reader = Reader(exchange, account, "order", "execution")
    reader.take()
    assert account.cancel_all_after(60_000) == {"now": NOW, "cancelTime": "2026-01-01T11:59:30.000Z"}
    exchange.advance(59)
    account.cancel_all_after(60_000)
    exchange.advance(59)
    assert len(account.orders) == 2 and reader.take() == []
    exchange.advance(2)
    assert account.orders == {} and len(other.orders) == 2
    order, execution = reader.take()
    assert shapes([order, execution]) == [("order", "update", 2), ("execution", "insert", 2)]
    assert {row["timestamp"] for row in order["data"]} == {"2026-01-01T12:00:29.000Z"}
    assert {row["text"].splitlines()[0] for row in order["data"]} == {"Canceled: Cancel all after"}
    account.submit("XBTUSD", "Buy", 100, 60000)
    exchange.advance(600)
    assert len(account.orders) == 1  # it fires once


def test_the_switch_can_be_disarmed_and_is_one_however_often_it_is_armed():
    exchange = open_simulation()
    account = exchange.open_account()
    account.submit("XBTUSD", "Buy", 100, 60000)
    scheduled = len(exchange._due)
    for timeout in (10_000, 5_000, 2**31 - 1, 1, 1500.5):
        account.cancel_all_after(timeout)
    assert len(exchange._due) == scheduled + 1
    assert account.cancel_all_after(0) == {"now": NOW, "cancelTime": 0}
    assert account.cancel_all_after(0)["cancelTime"] == 0 and len(exchange._due) == scheduled
    exchange.advance(60)
    assert len(account.orders) == 1


@pytest.mark.parametrize("timeout", [-1, None, "60000", True, float("nan"), float("inf"), 2**31, [5]])
def test_what_is_no_timeout_is_refused_and_the_switch_stays(timeout):
    exchange = open_simulation()
    account = exchange.open_account()
    account.submit("XBTUSD", "Buy", 100, 60000)
    account.cancel_all_after(1000)
    with pytest.raises(ValueError, match="is not a number of milliseconds"):
        account.cancel_all_after(timeout)
    exchange.advance(1)
    assert account.orders == {}


# --- accounts


def test_accounts_are_drawn_from_the_seed_and_tell_no_secrets():
    first, second = (open_simulation(seed="s").open_account() for _ in range(2))
    assert (first.id, first.api_key, first.api_secret) == (second.id, second.api_key, second.api_secret)
    assert (len(first.api_key), len(first.api_secret)) == (24, 48) and 100_000 <= first.id <= 999_999
    assert open_simulation(seed="t").open_account().api_key != first.api_key
    assert first.api_secret not in repr(first) and first.api_secret not in repr(vars(first)["_accounts"].keys)
    assert {currency: row["amount"] for currency, row in first.wallets.items()} == {
        "XBt": 100_000_000, "USDt": 100_000_000_000
    }  # fmt: skip


def test_accounts_can_have_keys_of_ones_own():
    exchange = open_simulation()
    account = exchange.open_account({"XBt": 5}, api_key="key", api_secret="secret")
    assert (account.api_key, account.api_secret) == ("key", "secret")
    with pytest.raises(ValueError, match="api_key is the key of another account"):
        exchange.open_account(api_key="key")
    with pytest.raises(ValueError, match="currency is 'ETH'"):
        exchange.open_account({"ETH": 5})
    for deposits in (5, "XBt", ["XBt"]):
        with pytest.raises(ValueError, match=r"deposits is .*: it must be amounts by currency"):
            exchange.open_account(deposits)
    assert list(exchange.accounts) == [account] and exchange.accounts[0] is account and len(exchange.accounts) == 1


def test_what_can_be_read_is_fresh():
    exchange = open_simulation()
    account = exchange.open_account()
    row = account.submit("XBTUSD", "Buy", 100, 64000)
    row["leavesQty"] = 7
    exchange.open_account().submit("XBTUSD", "Sell", 100, 64000)
    books = ("orders", "executions", "positions", "margins", "wallets", "transacts")
    before = {name: json.dumps(getattr(account, name)) for name in books}
    for name in books:
        book = getattr(account, name)
        for row in book.values() if isinstance(book, dict) else book:
            row.clear()
        book.clear()
    assert {name: json.dumps(getattr(account, name)) for name in books} == before


@pytest.mark.parametrize("table", PRIVATE_TABLES)
def test_every_private_table_begins_with_a_partial_of_the_account(table):
    exchange = open_simulation()
    account = exchange.open_account()
    account.submit("XBTUSD", "Buy", 200, 64000)
    account.submit("XBTUSD", "Sell", 100, 64000)
    account.submit("XBTUSDT", "Buy", 1000, 64000)
    message = json.loads(account.tables.partial(table))
    assert message["filter"] == {"account": account.id} and set(message["keys"]) <= set(message["types"])
    assert all(set(row) <= set(message["types"]) for row in message["data"])
    assert (table in ("affiliate", "privateNotifications")) == (message["data"] == [])
    if table in ("order", "execution", "position"):
        of_one = json.loads(account.tables.partial(table, "XBTUSD"))
        assert of_one["filter"] == {"account": account.id, "symbol": "XBTUSD"}
        assert of_one["data"] == [row for row in message["data"] if row["symbol"] == "XBTUSD"]


def test_the_partial_of_executions_holds_the_last_hundred():
    account = open_simulation().open_account()
    for _ in range(60):
        account.cancel(account.submit("XBTUSD", "Buy", 100, 60000)["orderID"])
    assert json.loads(account.tables.partial("execution"))["data"] == json.loads(json.dumps(account.executions[-100:]))
    assert len(account.executions) == 120


def test_an_account_keeps_its_last_ten_thousand_executions():
    exchange = open_simulation()
    account = exchange.open_account()
    for number in range(5_002):  # each with two executions, but for the last
        account.cancel_all()
        account.submit("XBTUSD", "Buy", 100, 60000, client_order_id=str(number))
    rows = [(row["clOrdID"], row["execType"]) for row in account.executions]
    assert len(rows) == 10_000
    assert (rows[0], rows[1], rows[-1]) == (("1", "Canceled"), ("2", "New"), ("5001", "New"))


def test_the_market_is_the_same_while_no_account_trades():
    def stream(accounts):
        exchange = open_simulation(("XBTUSD", "ETHUSD"), rate=40, levels=30)
        messages = []
        Session(exchange.feed, exchange.tables, messages.append).subscribe(["trade", "orderBookL2", "instrument"], None)
        for _ in range(accounts):
            exchange.open_account().cancel_all_after(30_000)
        for _ in range(10):
            exchange.advance(12)
        return messages

    assert stream(0) == stream(3)


def test_the_same_orders_on_the_same_seed_give_the_same_messages():
    def stream(seed):
        exchange = open_simulation(("XBTUSD",), rate=40, levels=30, seed=seed)
        messages = []
        account = exchange.open_account()
        session = Session(exchange.feed, exchange.tables, messages.append, exchange.accounts, account)
        session.subscribe(["trade", "order", "execution", "position", "margin"], None)
        for level in range(20):
            account.submit("XBTUSD", "Buy", 1000, near(exchange, "XBTUSD", level % 3))
            exchange.advance(7)
        return messages

    assert stream(1) == stream(1) and len(stream(1)) > 100
    assert stream(1) != stream(2)


# --- everything at once

lots, levels = st.integers(1, 30), st.integers(-8, 8)
who, sides = st.integers(0, 1), st.sampled_from(["Buy", "Sell"])
symbols = st.sampled_from(["XBTUSD", "ETHUSD", "XBTUSDT"])
orders = st.tuples(
    st.just("submit"), who, symbols, sides, lots, st.one_of(st.none(), levels, levels),
    st.fixed_dictionaries({}, optional={
        "time_in_force": st.sampled_from(["GoodTillCancel", "ImmediateOrCancel", "FillOrKill"]),
        "post_only": st.booleans(), "reduce_only": st.booleans(),
    }),
)  # fmt: skip
commands = st.one_of(
    orders, orders, orders,
    st.tuples(st.just("amend"), who, st.integers(0, 99), lots, levels),
    st.tuples(st.just("cancel"), who, st.integers(0, 99)),
    st.tuples(st.just("cancel_all"), who, st.sampled_from([None, "XBTUSD"]), st.sampled_from([None, "Buy"])),
    st.tuples(st.just("switch"), who, st.integers(0, 20_000)),
    st.tuples(st.just("deposit"), who, st.integers(1, 10**6)),
    st.tuples(st.just("withdraw"), who, st.integers(1, 10**6)),
    st.tuples(st.just("advance"), st.floats(0, 30)),
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.lists(commands, max_size=40), st.integers(0, 5))
def test_whatever_is_traded_the_books_agree(script, seed):
    exchange = open_simulation(rate=8, levels=10, seed=seed)
    accounts = [exchange.open_account({"XBt": 20_000_000, "USDt": 50_000_000}) for _ in range(2)]
    readers = [Reader(exchange, account, *PRIVATE_TABLES) for account in accounts]
    flow = Counter()

    def watch(event):
        for fill in event.fills:
            for order in (fill.maker, fill.taker):
                if order.account is None:
                    flow[event.market.symbol] += fill.quantity if order.side == "Buy" else -fill.quantity

    for market in exchange.markets.values():
        market.listeners.append(watch)
    for name, *arguments in script:
        if name == "advance":
            exchange.advance(arguments[0])
        else:
            account, *arguments = arguments
            with suppress(OrderRefused):
                act(exchange, accounts[account], name, *arguments)
        for account, reader in zip(accounts, readers, strict=True):
            assert_told(account, reader)
            assert_consistent(exchange, account)
        for symbol in exchange.markets:
            held = sum(account.positions.get(symbol, {"currentQty": 0})["currentQty"] for account in accounts)
            assert held == -flow[symbol]


def act(exchange, account, name, *arguments):
    if name == "submit":
        symbol, side, lots, level, options = arguments
        instrument = exchange.markets[symbol].instrument
        price = None if level is None else near(exchange, symbol, level)
        account.submit(symbol, side, lots * instrument.lot_size, price, **options)
    elif name in ("amend", "cancel"):
        if account.orders:
            id = sorted(account.orders)[arguments[0] % len(account.orders)]
            if name == "cancel":
                account.cancel(id)
            else:
                symbol = account.orders[id]["symbol"]
                lot = exchange.markets[symbol].instrument.lot_size
                account.amend(id, size=arguments[1] * lot, price=near(exchange, symbol, arguments[2]))
    elif name == "cancel_all":
        account.cancel_all(*arguments)
    elif name == "switch":
        account.cancel_all_after(*arguments)
    else:
        getattr(account, name)("XBt", *arguments)


def near(exchange, symbol, level):
    """A price about the best bid."""
    market = exchange.markets[symbol]
    return market.instrument.price(market.engine.best_bid + level)


def assert_told(account, reader):
    """Who listens has the account's books."""
    assert reader.open_orders() == account.orders
    assert reader.tables["execution"] == account.executions
    assert {row["symbol"]: row for row in reader.tables["position"].values()} == account.positions
    assert {row["currency"]: row for row in reader.tables["margin"].values()} == account.margins
    assert {row["currency"]: row for row in reader.tables["wallet"].values()} == account.wallets
    assert list(reader.tables["transact"].values()) == account.transacts


def assert_consistent(exchange, account):
    """Orders are as in the markets; positions and margins are what executions, deposits and mark prices make them."""
    for symbol, market in exchange.markets.items():
        resting = {order.id: order for order in market.engine.orders.values() if order.account is account}
        rows = {id: row for id, row in account.orders.items() if row["symbol"] == symbol}
        assert resting.keys() == rows.keys()
        for id, order in resting.items():
            row = rows[id]
            assert (order.leaves, order.quantity, order.filled) == (row["leavesQty"], row["orderQty"], row["cumQty"])
            assert market.instrument.price(order.ticks) == row["price"] and row["workingIndicator"]
    filled = Counter()
    recomputed = defaultdict(lambda: [0, 0, 0, Fraction(0)])  # size, cost, fees, cost of what is open
    for row in account.executions:
        sums = recomputed[row["symbol"]]
        if row["execType"] == "Trade":
            filled[row["orderID"]] += row["lastQty"]
            assert filled[row["orderID"]] == row["cumQty"] and row["leavesQty"] == row["orderQty"] - row["cumQty"]
            trade(sums, row, exchange.markets[row["symbol"]].instrument)
        if row["execType"] in ("Trade", "Funding"):
            sums[2] += row["execComm"]
    totals = defaultdict(lambda: [0, 0])
    for symbol, row in account.positions.items():
        size, cost, fees, open_cost = recomputed[symbol]
        instrument = exchange.markets[symbol].instrument
        assert (row["currentQty"], row["currentCost"], row["currentComm"]) == (size, cost, fees)
        assert row["unrealisedCost"] == open_cost and row["realisedPnl"] == open_cost - cost - fees
        assert row["markPrice"] == exchange.tables.rows("instrument", symbol)[0]["markPrice"]
        assert row["unrealisedPnl"] == worth(instrument, size, row["markPrice"]) - open_cost
        assert (row["openOrderBuyQty"], row["openOrderBuyCost"]) == ordered(account, instrument, "Buy")
        assert (row["openOrderSellQty"], row["openOrderSellCost"]) == ordered(account, instrument, "Sell")
        opened = max(would_open(account, instrument, side, size) for side in ("Buy", "Sell"))
        assert row["initMargin"] == math.ceil(opened * (Fraction("0.01") + 2 * Fraction("0.00075")))
        totals[row["currency"]][0] += row["realisedPnl"]
        totals[row["currency"]][1] += row["unrealisedPnl"]
    for currency, margin in account.margins.items():
        deposits = sum(row["amount"] for row in account.transacts if row["currency"] == currency)
        realised, unrealised = totals[currency]
        bound = sum(
            row["initMargin"] + row["posMargin"] for row in account.positions.values() if row["currency"] == currency
        )
        assert margin["walletBalance"] == deposits + realised
        assert margin["marginBalance"] == deposits + realised + unrealised
        assert margin["initMargin"] == bound
        assert margin["availableMargin"] == max(0, margin["marginBalance"] - bound)


def ordered(account, instrument, side):
    rows = [row for row in account.orders.values() if (row["symbol"], row["side"]) == (instrument.symbol, side)]
    return sum(row["leavesQty"] for row in rows), sum(instrument.cost(row["leavesQty"], row["price"]) for row in rows)


def would_open(account, instrument, side, held):
    """What the open orders of one side would open, were they filled: in the order of their prices."""
    rows = [
        row
        for row in account.orders.values()
        if (row["symbol"], row["side"]) == (instrument.symbol, side) and "ReduceOnly" not in row["execInst"]
    ]
    rows.sort(key=lambda row: row["price"] * (-1 if side == "Buy" else 1))
    closing, value = max(0, -held if side == "Buy" else held), 0
    for row in rows:
        opens = max(0, row["leavesQty"] - closing)
        closing -= row["leavesQty"] - opens
        value += instrument.value(opens, instrument.ticks(row["price"]))
    return value


def half_up(number):
    return int(abs(number) + Fraction(1, 2)) * (1 if number >= 0 else -1)


def worth(instrument, size, price):
    price = Fraction(str(price))
    if instrument.is_inverse:
        return -size // instrument.lot_size * half_up(10**8 * instrument.lot_size / price)
    return half_up(size * instrument.multiplier * price)


def trade(sums, row, instrument):
    sign = 1 if row["side"] == "Buy" else -1
    size, change = sums[0], sign * row["lastQty"]
    assert row["execCost"] == worth(instrument, change, row["lastPx"])
    sums[0] += change
    sums[1] += row["execCost"]
    if size * change >= 0:
        sums[3] += row["execCost"]
    elif abs(change) < abs(size):
        sums[3] -= half_up(Fraction(sums[3] * abs(change), abs(size)))
    else:
        sums[3] = worth(instrument, size + change, row["lastPx"])
