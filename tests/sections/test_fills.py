"""Fills: each once, what a partial adds to them, and where some may be missing."""

import json
import logging
import os
from collections import Counter
from contextlib import suppress
from functools import partial as bound
from pathlib import Path
from random import Random

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from bitmex_streams.coverage import CONNECTING
from bitmex_streams.exchange import OrderRefused, open_exchange
from bitmex_streams.messages import (
    Connected,
    Disconnected,
    Fill,
    FillsMissing,
    OrderState,
    RawMessage,
    StateLost,
    TableMessage,
    Unsubscribed,
    is_mark,
)
from bitmex_streams.pipeline import Pipeline
from bitmex_streams.sections.connection import Connection
from bitmex_streams.sections.decoder import Decoder
from bitmex_streams.sections.fills import Fills
from bitmex_streams.sections.orders import Orders
from bitmex_streams.sections.tables import TableApplier
from bitmex_streams.timestamps import to_iso, to_nanoseconds
from tests.sections.test_follower import Line

ACCOUNT = 273093
NOON = to_nanoseconds("2026-03-14T12:00:00.000Z")
DATA = Path(os.environ.get("BITMEX_STREAMS_DATA") or Path(__file__).parents[3] / "shared" / "data")
REAL = DATA / "messages" / "execution-1.json"


def time(number):
    return to_iso(NOON + number * 1_000_000_000)


def execution(number, symbol="XBTUSD", **fields):
    """A row as the exchange sends it for a fill: the one of that number, that many seconds after noon."""
    return {
        "execID": f"exec-{number}",
        "orderID": f"order-{number}",
        "clOrdID": "",
        "account": ACCOUNT,
        "symbol": symbol,
        "side": "Sell",
        "lastQty": 100 * (number + 1),
        "lastPx": 31964.5,
        "lastLiquidityInd": "AddedLiquidity",
        "orderQty": 1000,
        "price": 31964.5,
        "currency": "USD",
        "settlCurrency": "XBt",
        "execType": "Trade",
        "ordType": "Limit",
        "ordStatus": "PartiallyFilled",
        "leavesQty": 600,
        "cumQty": 400,
        "avgPx": 31964.5,
        "commission": -0.0001,
        "tradePublishIndicator": "PublishTrade",
        "trdMatchID": f"match-{number}",
        "execCost": 312847,
        "execComm": -31,
        "transactTime": time(number),
        "timestamp": time(number),
    } | fields


def canceled(number, symbol="XBTUSD"):
    return execution(number, symbol, execType="Canceled", lastQty=None, lastPx=None, execComm=None)


def message(action, *rows, received=2, source="a", **fields):
    return TableMessage("execution", action, rows, received, source, **fields)


def partial(*rows, symbol=None, received=1, source="a", keys=(), account=ACCOUNT):
    filter = {"account": account} | ({"symbol": symbol} if symbol else {})
    return message("partial", *rows, received=received, source=source, keys=keys, attributes={}, types={
        "timestamp": "timestamp"}, filter=filter)


insert, update, delete = (bound(message, action) for action in ("insert", "update", "delete"))


def disconnected(received=3, source="a"):
    return Disconnected(received, source, 1006, "")


class Account(Line):
    def __init__(self, keep=10_000):
        self.fills = Fills(keep)
        super().__init__(self.fills)

    def told(self, *items):
        return [item for item in self.feed(*items) if type(item) in (Fill, FillsMissing)]


def brief(told):
    """exec-7: 7; one that came late: -7; a mark: what it says of when and where."""
    return [
        (item.since, item.symbol) if type(item) is FillsMissing
        else int(item.exec_id.removeprefix("exec-")) * (-1 if item.late else 1)
        for item in told
    ]


# --- one fill ---


def test_a_fill_is_told_with_all_that_is_known_of_it():
    account, row = Account(), execution(3, clOrdID="grid-7")
    account.feed(partial())
    [told] = account.told(insert(row, received=5))
    assert told == Fill(
        exec_id="exec-3", order_id="order-3", client_order_id="grid-7", account=ACCOUNT, symbol="XBTUSD", side="Sell",
        size=400, price=31964.5, is_maker=True, fee=-31, fee_rate=-0.0001, currency="XBt",
        timestamp="2026-03-14T12:00:03.000Z", received=5, source="a", row=row,
    )
    assert not is_mark(told)


@pytest.mark.parametrize(
    ("sent", "is_maker"),
    [
        ("AddedLiquidity", True), ("RemovedLiquidity", False), ("Added", True), ("Removed", False), ("", None),
        (None, None),
    ],
)
def test_a_fill_says_who_was_maker_where_the_exchange_does(sent, is_maker):
    [told] = Account().told(partial(), insert(execution(1, lastLiquidityInd=sent)))
    assert told.is_maker is is_maker


def test_a_fill_without_a_fee_costs_nothing():
    account = Account()
    [told] = account.told(partial(), insert(execution(1, execComm=None, commission=None, settlCurrency=None)))
    assert (told.fee, told.fee_rate, told.currency) == (0, None, "")


@pytest.mark.parametrize("kind", ["New", "Canceled", "Replaced", "Rejected", "Funding", "Settlement", "Restated", ""])
def test_executions_of_other_types_are_no_fills(kind):
    account = Account()
    assert brief(account.told(partial(), insert(execution(1, execType=kind), execution(2)))) == [2]
    assert brief(account.fills.recent) == [2]


def test_several_fills_of_a_message_stand_behind_it_in_order():
    account = Account()
    out = account.feed(partial(), insert(execution(1), canceled(2), execution(3)), insert(execution(4)))
    assert [getattr(item, "exec_id", None) or item.action for item in out] == [
        "partial", "insert", "exec-1", "exec-3", "insert", "exec-4",
    ]


def test_a_fill_that_is_sent_again_is_told_once():
    account = Account()
    account.feed(partial())
    assert brief(account.told(insert(execution(1), execution(1)), insert(execution(1)), insert(execution(2)))) == [1, 2]
    assert brief(account.fills.recent) == [1, 2]


def test_updates_and_deletes_of_executions_tell_nothing():
    account = Account(keep=1)
    account.feed(partial(keys=["execID"]), insert(execution(1)), insert(execution(2)))  # forgotten here, not there
    assert account.told(update({"execID": "exec-1", "text": "Booked"}), delete({"execID": "exec-1"})) == []
    assert not account.fills.stale


# --- what partials add ---


def test_the_rows_of_the_first_partial_are_history():
    account = Account()
    assert account.told(partial(execution(1), canceled(2), execution(3))) == []
    assert brief(account.fills.recent) == [1, 3]
    assert not account.fills.stale
    assert brief(account.told(insert(execution(3)), insert(execution(4)))) == [4]
    assert brief(account.fills.recent) == [1, 3, 4]


def test_what_a_gap_held_comes_late_once_and_in_order():
    account = Account()
    account.feed(partial(execution(1)), insert(execution(2)), disconnected())
    assert account.fills.stale
    rows = [*map(execution, (1, 2, 3)), canceled(4), execution(5)]
    told = account.told(partial(*rows, received=9), insert(execution(6)))
    assert brief(told) == [-3, -5, 6]
    assert [item.received for item in told] == [9, 9, 2]
    assert not account.fills.stale
    assert brief(account.fills.recent) == [1, 2, -3, -5, 6]
    assert account.told(partial(*rows, execution(6))) == []


def test_what_was_filled_while_nothing_was_subscribed_comes_late():
    account = Account()
    account.feed(partial(execution(1)), Unsubscribed("execution", 3, "a"))
    assert account.fills.stale
    assert account.told(insert(execution(2))) == [], "which is told by the next partial, if there is one"
    assert brief(account.told(partial(*map(execution, (1, 2, 3))))) == [-2, -3]
    assert not account.fills.stale
    account.feed(Unsubscribed("execution", 4, "a"))
    [missing] = account.fills.finish()
    assert "unsubscribed" in missing.reason


def test_of_two_accounts_the_given_one_is_followed():
    fills = Fills(account=5)
    line = Line(fills)
    first = partial(execution(1)), partial(execution(2, account=5), source="b", account=5)
    then = insert(execution(3)), insert(execution(4, account=5), source="b"), disconnected()
    told = [item for item in line.feed(*first, *then) if type(item) in (Fill, FillsMissing)]
    assert brief(told) == [4] and brief(fills.recent) == [2, 4]
    assert not fills.stale and list(fills.finish()) == []
    with pytest.raises(TypeError, match="an account is an int"):
        Fills(account="273093")


def test_rows_of_a_partial_are_put_in_the_order_of_time():
    account = Account()
    account.feed(partial(execution(1)))
    assert brief(account.told(partial(*map(execution, (4, 3, 2, 1))))) == [-2, -3, -4]


def test_fills_of_one_time_keep_the_order_in_which_they_were_sent():
    account = Account()
    same = {"timestamp": time(7)}
    account.feed(partial(execution(1, **same)))
    assert brief(account.told(partial(*[execution(number, **same) for number in (1, 3, 2)]))) == [-3, -2]


def test_what_is_repeated_in_one_partial_counts_once():
    account = Account()
    account.feed(partial(execution(1)))
    assert brief(account.told(partial(execution(1), execution(2), execution(2)))) == [-2]


def test_a_partial_that_does_not_reach_back_says_that_fills_may_be_missing_before_its_own():
    account = Account()
    account.feed(partial(execution(1)), insert(execution(2)), insert(canceled(3)), disconnected())
    out = account.feed(partial(execution(7), execution(8), received=9))
    missing = out[1]
    assert type(missing) is FillsMissing
    assert is_mark(missing)
    assert (missing.since, missing.symbol, missing.received, missing.source) == (time(2), None, 9, "a")
    assert "no execution of the new partial was known before" in missing.reason
    assert brief(out[2:]) == [-7, -8]


def test_an_execution_that_is_no_fill_tells_as_well_that_nothing_is_missing():
    account = Account()
    account.feed(partial(canceled(1)), disconnected())
    assert brief(account.told(partial(canceled(1), execution(2)))) == [-2]


def test_an_empty_partial_says_that_fills_may_be_missing_unless_none_was_ever_known():
    account = Account()
    assert account.told(partial(), disconnected(), partial(), disconnected(), partial()) == []
    account.feed(insert(canceled(1)))
    assert brief(account.told(disconnected(), partial())) == [(None, None)]
    assert not account.fills.stale


def test_an_empty_partial_of_a_symbol_is_judged_by_what_was_known_of_that_symbol():
    account = Account()
    account.feed(partial(execution(1), symbol="XBTUSD"), partial(symbol="ETHUSD"))
    assert account.told(disconnected(), partial(symbol="ETHUSD")) == []
    assert brief(account.told(partial(symbol="XBTUSD"))) == [(time(1), "XBTUSD")]


def test_fills_that_were_the_first_of_all_and_came_in_a_gap_may_not_be_all():
    account = Account()
    assert brief(account.told(partial(), disconnected(), partial(execution(1), execution(2)))) == [
        (None, None), -1, -2,
    ]


def test_what_is_older_than_what_was_known_is_no_news():
    account = Account()
    account.feed(partial(execution(5), execution(6)))
    assert brief(account.told(partial(*map(execution, range(3, 8))))) == [-7]


def test_a_gap_in_one_symbol_is_told_of_that_symbol():
    account = Account()
    eth = bound(execution, symbol="ETHUSD")
    account.feed(partial(execution(1), symbol="XBTUSD"), partial(eth(2), symbol="ETHUSD"), insert(execution(3)))
    account.feed(StateLost(4, "a", "why", "execution:ETHUSD"))
    assert account.fills.stale
    assert brief(account.told(insert(execution(5)), insert(eth(6)), partial(eth(8), symbol="ETHUSD"))) == [
        5, (time(2), "ETHUSD"), -8,
    ]
    assert not account.fills.stale


def test_the_first_partial_of_another_symbol_is_history():
    account = Account()
    account.feed(partial(execution(1), symbol="XBTUSD"))
    assert account.told(partial(execution(2, "ETHUSD"), symbol="ETHUSD")) == []
    assert brief(account.told(insert(execution(3, "ETHUSD")))) == [3]


def test_a_partial_of_all_is_history_but_for_the_symbols_that_were_followed():
    account = Account()
    account.feed(partial(execution(1), symbol="XBTUSD"))
    told = account.told(partial(execution(1), execution(2, "ETHUSD"), execution(3), execution(4, "ETHUSD")))
    assert brief(told) == [-3]
    assert brief(account.told(partial(*[execution(number, "ETHUSD") for number in (2, 4, 5)], symbol="ETHUSD"))) == [-5]


def test_over_another_connection_the_same_fills_are_told_once():
    account = Account()
    account.feed(partial(execution(1)), insert(execution(2)))
    told = account.told(partial(execution(1), execution(2), execution(3), source="b"), insert(execution(4), source="b"))
    assert brief(told) == [-3, 4]
    assert told[-1].source == "b"


def test_fills_without_the_account_are_of_the_accounts_topic():
    account = Account()
    row, second = execution(1), execution(2)
    del row["account"], second["account"]
    assert [told.account for told in account.told(partial(), insert(row))] == [None]
    assert brief(account.told(disconnected(), partial(row, second))) == [-2]
    assert brief(account.told(disconnected(), partial())) == [(time(2), None)]


# --- when it ends ---


def test_a_loss_that_no_partial_healed_before_the_end_is_told_there():
    account = Account()
    account.feed(partial(execution(1)))
    assert list(account.fills.finish()) == []
    account.feed(disconnected(received=7))
    [missing] = account.fills.finish()
    assert (missing.received, missing.source, missing.since, missing.symbol) == (7, "a", time(1), None)
    assert "the stream ended" in missing.reason
    assert "a disconnected: 1006" in missing.reason


def test_a_loss_that_was_announced_and_never_came_through_is_told_at_the_end():
    account = Account()
    account.feed(partial(execution(1)))
    account.lose(reason="the connection broke")
    [missing] = account.fills.finish()
    assert "the connection broke" in missing.reason


async def test_a_pipeline_puts_fills_out_and_at_its_end_says_what_may_be_missing():
    async def source():
        for item in (partial(), insert(execution(1)), disconnected(), insert(execution(2))):
            yield item

    fills = Fills()
    async with Pipeline.create(source(), TableApplier(), fills) as pipeline, pipeline.tap() as tap:
        told = [item async for item in tap if type(item) in (Fill, FillsMissing)]
    assert brief(told) == [1, (time(1), None)]


def test_an_end_before_any_partial_says_nothing():
    account = Account()
    account.feed(disconnected())
    assert account.fills.stale
    assert list(account.fills.finish()) == []


def test_one_that_serves_a_second_pipeline_goes_on_where_it_was():
    account = Account()
    account.lose(reason=CONNECTING)
    account.feed(Connected(1, "a"), partial(execution(1)))
    account.lose(reason="left")  # the consumer left, and the mark never came
    account.lose(reason=CONNECTING)
    assert account.fills.stale
    assert brief(account.told(Connected(5, "a"), partial(execution(1), execution(2)))) == [-2]
    assert not account.fills.stale


# --- memory ---


@pytest.mark.parametrize("keep", [0, -1, 1.5, None, "10", True])
def test_how_many_to_keep_is_a_number(keep):
    with pytest.raises(ValueError, match="Fills keeps a number of executions"):
        Fills(keep)


def test_memory_is_bounded_and_what_is_forgotten_is_not_told_again():
    account = Account(keep=3)
    account.feed(partial(*map(execution, range(5))))
    assert brief(account.fills.recent) == [2, 3, 4]
    account.feed(insert(*map(execution, range(5, 9))))
    assert brief(account.fills.recent) == [6, 7, 8]
    assert len(account.fills._known) == 3
    assert brief(account.told(partial(*map(execution, range(10))))) == [-9]
    for _ in range(3):
        account.feed(partial(*map(execution, range(10))), partial(execution(9), symbol="XBTUSD"))
    assert (len(account.fills._known), len(account.fills._followed)) == (3, 1)


def test_what_is_forgotten_is_not_told_again_where_all_of_it_has_one_time():
    account = Account(keep=1)
    same = [execution(number, timestamp=time(0)) for number in range(4)]
    account.feed(partial(*same[:3]))
    assert brief(account.told(partial(*same))) == [-3]


def test_what_is_forgotten_altogether_is_not_told_again_either():
    account = Account(keep=2)
    account.feed(partial(execution(1), execution(2), symbol="XBTUSD"), partial(symbol="ETHUSD"))
    account.feed(insert(*[execution(number, "ETHUSD") for number in (3, 4, 5)]))
    told = account.told(partial(execution(1), execution(2), execution(6), symbol="XBTUSD"))
    assert [type(item) for item in told] == [FillsMissing, Fill]
    assert told[-1].exec_id == "exec-6"


def test_an_empty_partial_where_all_is_forgotten_says_that_fills_may_be_missing():
    account = Account(keep=1)
    account.feed(partial(execution(1), symbol="XBTUSD"), partial(execution(2, "ETHUSD"), symbol="ETHUSD"))
    assert brief(account.told(partial(symbol="XBTUSD"))) == [(None, "XBTUSD")]


# --- what cannot be an execution ---

BAD = [
    {"execID": None}, {"execID": 7}, {"execID": ["exec-2"]}, {"orderID": None}, {"symbol": 5}, {"lastQty": None},
    {"lastQty": "100"}, {"lastPx": None}, {"lastPx": "dear"}, {"execComm": 0.5}, {"execType": 7},
]


@pytest.mark.parametrize("bad", BAD)
def test_an_insert_that_cannot_be_an_execution_is_a_loss_of_state(bad, caplog):
    account = Account()
    account.feed(partial(execution(1)))
    with caplog.at_level(logging.WARNING, "bitmex_streams"):
        assert account.told(insert(execution(2, **bad)), insert(execution(3))) == []
    assert account.fills.stale
    assert account.asked == ["execution"]
    assert "state lost: execution: it" in caplog.text
    assert brief(account.told(partial(*map(execution, (1, 2, 3))))) == [-2, -3]


@pytest.mark.parametrize("bad", BAD)
def test_an_execution_in_a_partial_that_cannot_be_read_may_be_a_fill_that_is_missing(bad, caplog):
    account = Account()
    account.feed(partial(execution(1)), disconnected())
    rows = [execution(1), execution(2, **bad), execution(3)]
    told = account.told(partial(*rows))
    assert [type(item) for item in told] == [FillsMissing, Fill]
    assert "an execution cannot be read, its" in told[0].reason or "it has no lastPx" in told[0].reason
    assert (told[0].since, told[1].exec_id) == (time(1), "exec-3")
    assert account.asked == []
    assert not account.fills.stale
    if type(bad.get("execID", "")) is str:
        assert account.told(partial(*rows)) == []  # it was told


def test_history_that_cannot_be_read_is_no_matter(caplog):
    account = Account()
    assert account.told(partial(*[execution(1, **bad) for bad in BAD], execution(2))) == []
    assert caplog.text == ""
    assert brief(account.fills.recent) == [2]
    assert account.asked == []


@pytest.mark.parametrize("timestamp", [None, "yesterday"])
def test_rows_of_no_time_are_fills_still_and_stay_where_they_were(timestamp):
    account = Account()
    account.feed(partial(execution(1), keys=["execID"]))
    rows = [execution(1), execution(2, timestamp=timestamp), execution(3)]
    out = [partial(*rows, keys=["execID"]), insert(execution(4, timestamp=timestamp)), disconnected(), partial(*rows)]
    told = account.told(*out)
    assert brief(told) == [-2, -3, 4]
    assert told[0].timestamp == timestamp


# --- against a model ---


class Exchange(RuleBasedStateMachine):
    """An account whose exchange tells each execution once, and the last ones in a partial."""

    @initialize(
        topics=st.sampled_from([(None,), ("XBTUSD", "ETHUSD")]),
        limit=st.sampled_from([1, 2, 4, 100]),
        keep=st.sampled_from([1, 2, 4, 1000]),
        history=st.integers(0, 3),
    )
    def begin(self, topics, limit, keep, history):
        self.topics, self.limit, self.keep = topics, limit, keep
        self.account = Account(keep)
        self.rows = []  # all that was ever executed
        self.clock = 0
        self.covered = set()  # topics (symbol, None: all) whose partial has come since the last loss
        self.sent = {}  # what of a topic was ever sent, by its ids
        self.expected = {}  # the fills of a topic that are news, by their ids, in order
        self.told = {topic: [] for topic in topics}  # those that were told
        self.excused = set()  # those that were not, and a mark said so
        for _ in range(history):
            self.execute("XBTUSD", "Trade", 1)

    def topic_of(self, row):
        return None if None in self.topics else row["symbol"]

    def send(self, item, *, late):
        told = self.account.told(item)
        for fill in told:
            if type(fill) is Fill:
                assert fill.late is late
                topic = self.topic_of(fill.row)
                assert fill.exec_id in self.expected[topic], "it is of the history"
                assert fill.exec_id not in self.told[topic], "it was told before"
                self.told[topic].append(fill.exec_id)
        assert len(self.account.fills.recent) <= self.keep
        return told

    @rule(symbol=st.sampled_from(["XBTUSD", "ETHUSD"]), kind=st.sampled_from(["Trade", "Trade", "Canceled"]),
          seconds=st.integers(0, 1))
    def execute(self, symbol, kind, seconds):
        self.clock += seconds
        made = execution if kind == "Trade" else canceled
        row = made(len(self.rows), symbol) | {"timestamp": time(self.clock)}
        self.rows.append(row)
        topic = self.topic_of(row)
        if kind == "Trade" and topic in self.expected:
            self.expected[topic].append(row["execID"])
        if topic in self.covered:
            self.sent[topic].add(row["execID"])
            told = self.send(insert(row), late=False)
            assert len(told) == (kind == "Trade")

    @rule(data=st.data())
    def partial(self, data):
        topic = data.draw(st.sampled_from(self.topics))
        rows = [row for row in self.rows if topic in (None, row["symbol"])][-self.limit:]
        ids = {row["execID"] for row in rows}
        first = topic not in self.expected
        sent = self.sent.setdefault(topic, set())
        self.expected.setdefault(topic, [])
        self.covered.add(topic)
        told = self.send(partial(*rows, symbol=topic), late=True)
        marks = [item for item in told if type(item) is FillsMissing]
        assert marks == told[:len(marks)]
        assert all(mark.symbol == topic for mark in marks)
        if first:
            assert told == []
        elif self.keep == 1000:
            assert len(marks) == (not ids & sent and bool(ids or sent))
        missing = set(self.expected[topic]) - set(self.told[topic]) - self.excused
        assert not missing or len(marks) == 1
        self.excused |= missing
        sent |= ids
        order = [exec_id for exec_id in self.expected[topic] if exec_id in self.told[topic]]
        assert self.told[topic] == order

    @rule()
    def disconnect(self):
        self.covered.clear()
        assert self.account.told(disconnected()) == []

    @precondition(lambda self: self.covered)
    @rule(data=st.data())
    def lose(self, data):
        topic = data.draw(st.sampled_from(sorted(self.covered, key=str)))
        self.covered.discard(topic)
        assert self.account.told(StateLost(3, "a", "why", f"execution:{topic}" if topic else "execution")) == []

    @precondition(lambda self: self.expected)
    @rule()
    def end(self):
        marks = list(self.account.fills.finish())
        stale = self.expected.keys() - self.covered
        assert {mark.symbol for mark in marks} == stale
        assert len(marks) == len(stale)
        assert self.account.fills.stale == bool(stale)


TestExchange = Exchange.TestCase
TestExchange.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


# --- on the embedded exchange, over a real websocket ---


def trade_at_random(rng, account, times):
    for _ in range(times):
        open_orders = list(account.orders)
        with suppress(OrderRefused):
            if open_orders and rng.random() < 0.3:
                account.cancel(rng.choice(open_orders))
            elif open_orders and rng.random() < 0.2:
                account.amend(rng.choice(open_orders), size=100 * rng.randint(1, 9))
            else:
                price = 64000 + rng.randint(-4, 4)  # its own orders match each other
                account.submit("XBTUSD", rng.choice(["Buy", "Sell"]), 100 * rng.randint(1, 5), price)


@pytest.mark.parametrize("topics", [["order", "execution"], ["order:XBTUSD", "execution:XBTUSD"]])
async def test_orders_and_fills_are_the_exchanges_own_whatever_was_traded_between_connections(topics):
    rng, told = Random(3), []
    sections = _, fills, orders = TableApplier(), Fills(), Orders()

    def trades():
        return [row for row in account.executions[history:] if row["execType"] == "Trade"]

    def filled():
        return [item for item in told if type(item) is Fill]

    def as_at_the_exchange():
        ours = {order.order_id: order.row for order in orders.open.values()}
        return not orders.stale and not fills.stale and ours == account.orders and len(filled()) >= len(trades())

    async with open_exchange(speed=0, rate=0, symbols=["XBTUSD"], levels=0) as exchange:
        account = exchange.open_account({"XBt": 10**10})
        trade_at_random(rng, account, 20)
        history = len(account.executions)
        with trio.fail_after(30):
            for _run in range(3):
                connection = Connection(
                    exchange.url, subscribe=topics, api_key=account.api_key, api_secret=account.api_secret
                )
                async with Pipeline.create(connection, Decoder(), *sections) as pipeline, pipeline.tap() as tap:
                    while not as_at_the_exchange():
                        told.append(await tap.receive())
                    connection.resync(topics[1])
                    trade_at_random(rng, account, 30)
                    while not as_at_the_exchange():
                        told.append(await tap.receive())
                assert [fill.row for fill in filled()] == trades()
                trade_at_random(rng, account, 20)
    assert {fill.late for fill in filled()} == {True, False}
    assert not [item for item in told if type(item) is FillsMissing]
    ends = Counter(item.order_id for item in told if type(item) is OrderState and not item.open)
    assert ends.total() > 50
    assert fills.stale
    assert orders.stale


# --- real messages ---


@pytest.mark.skipif(not REAL.exists(), reason="the exchange's real messages are not here")
def test_the_exchanges_own_partial_of_an_account_without_executions():
    account = Account()
    raw = RawMessage(1, REAL.read_text())
    [message] = Decoder().process(raw)
    assert json.loads(raw.data)["data"] == []
    assert account.told(message) == []
    assert not account.fills.stale
    assert brief(account.told(TableMessage("execution", "insert", [execution(1)], 2))) == [1]
