"""Orders: what is open, what is told of each change, and what a gap leaves unknown."""

import logging
from functools import partial as bound

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bitmex_streams.coverage import CONNECTING
from bitmex_streams.messages import Connected, Disconnected, OrderState, StateLost, TableMessage, is_mark
from bitmex_streams.pipeline import Pipeline
from bitmex_streams.sections.orders import Orders
from bitmex_streams.sections.tables import TableApplier
from tests.sections.test_follower import Line

ACCOUNT = 273093
FIRST, SECOND = "07bb442e-5362-4a01-bd9a-664a1da3d646", "ccff62f6-568e-4941-9d21-a4020a5b8901"


def order(order_id=FIRST, client_id="", symbol="XBTUSD", **fields):
    """A row as the exchange sends it for a new limit order."""
    return {
        "orderID": order_id,
        "clOrdID": client_id,
        "clOrdLinkID": "",
        "account": ACCOUNT,
        "symbol": symbol,
        "side": "Buy",
        "orderQty": 1000,
        "price": 31964.5,
        "displayQty": None,
        "stopPx": None,
        "currency": "USD",
        "settlCurrency": "XBt",
        "ordType": "Limit",
        "timeInForce": "GoodTillCancel",
        "ordStatus": "New",
        "triggered": "",
        "workingIndicator": True,
        "leavesQty": 1000,
        "cumQty": 0,
        "avgPx": None,
        "text": "Submitted via API.",
        "transactTime": "2026-03-14T07:03:58.113Z",
        "timestamp": "2026-03-14T07:03:58.114Z",
    } | fields


def change(order_id=FIRST, symbol="XBTUSD", **fields):
    """The keys and the changed fields, as in an update."""
    return {"orderID": order_id, "account": ACCOUNT, "symbol": symbol} | fields


FILLED_IN_PART = {"ordStatus": "PartiallyFilled", "leavesQty": 600, "cumQty": 400, "avgPx": 31964.5}
FILLED = {"ordStatus": "Filled", "leavesQty": 0, "cumQty": 1000, "avgPx": 31964.5, "workingIndicator": False}
CANCELED = {"ordStatus": "Canceled", "leavesQty": 0, "workingIndicator": False, "text": "Canceled: by the user"}


def message(action, *rows, received=2, source="a", **fields):
    return TableMessage("order", action, rows, received, source, **fields)


def partial(*rows, symbol=None, received=1, source="a"):
    filter = {"account": ACCOUNT} | ({"symbol": symbol} if symbol else {})
    return message("partial", *rows, received=received, source=source, keys=["orderID"], filter=filter)


insert, update, delete = (bound(message, action) for action in ("insert", "update", "delete"))


def disconnected(received=3, source="a"):
    return Disconnected(received, source, 1006, "")


class Account(Line):
    def __init__(self):
        self.orders = Orders()
        super().__init__(self.orders)

    def told(self, *items):
        return [item for item in self.feed(*items) if type(item) is OrderState]


def brief(orders):
    return [(order.order_id, order.status, order.open, order.stale) for order in orders]


# --- one order ---


def test_an_order_is_told_with_all_that_is_known_of_it():
    account = Account()
    row = order(client_id="grid-7", **FILLED_IN_PART)
    [told] = account.told(partial(row, received=5))
    assert told == OrderState(
        order_id=FIRST, client_order_id="grid-7", account=ACCOUNT, symbol="XBTUSD", side="Buy", order_type="Limit",
        price=31964.5, size=1000, leaves=600, filled=400, average_price=31964.5, status="PartiallyFilled", open=True,
        text="Submitted via API.", timestamp="2026-03-14T07:03:58.114Z", received=5, source="a", row=row,
    )
    assert not is_mark(told)


def test_fields_that_are_not_sent_are_not_known():
    [told] = Account().told(partial({"orderID": FIRST, "symbol": "XBTUSD", "ordStatus": "New"}))
    assert (told.client_order_id, told.account, told.price, told.average_price) == ("", None, None, None)
    assert (told.size, told.leaves, told.filled, told.timestamp) == (0, 0, 0, None)


def test_each_change_of_an_order_is_told_and_the_last_one_closes_it():
    account, orders = Account(), []
    account.feed(partial())
    for item in (
        insert(order(client_id="a")),
        update(change(**FILLED_IN_PART)),
        update(change(price=31970, text="Amended price")),
        update(change(**FILLED)),
    ):
        orders += account.told(item)
        if orders[-1].open:
            assert account.orders.open == {FIRST: orders[-1]}
            assert account.orders.by_client_id == {"a": orders[-1]}
    assert [(told.status, told.leaves, told.filled, told.price, told.open) for told in orders] == [
        ("New", 1000, 0, 31964.5, True),
        ("PartiallyFilled", 600, 400, 31964.5, True),
        ("PartiallyFilled", 600, 400, 31970, True),
        ("Filled", 0, 1000, 31970, False),
    ]
    assert account.orders.open == account.orders.by_client_id == {}


def test_an_order_stands_right_behind_the_update_that_it_is_of():
    account = Account()
    out = account.feed(partial(order()), update(change(**FILLED_IN_PART)))
    assert [getattr(item, "action", None) or item.status for item in out] == [
        "partial", "New", "update", "PartiallyFilled",
    ]


@pytest.mark.parametrize("status", ["Filled", "Canceled", "Rejected", "Expired"])
def test_an_order_that_is_closed_leaves(status):
    account = Account()
    account.feed(partial(order()))
    assert brief(account.told(update(change(ordStatus=status)))) == [(FIRST, status, False, False)]
    assert len(account.orders) == 0


@pytest.mark.parametrize(
    "status", ["New", "PartiallyFilled", "PendingNew", "PendingCancel", "PendingReplace", "Untriggered", "Triggered"]
)
def test_an_order_that_may_still_be_filled_stays(status):
    account = Account()
    account.feed(partial())
    assert brief(account.told(insert(order(ordStatus=status)))) == [(FIRST, status, True, False)]
    assert FIRST in account.orders


def test_an_order_that_is_rejected_at_once_is_told_once():
    account = Account()
    rejected = order(ordStatus="Rejected", ordRejReason="Account has insufficient Available Balance")
    assert brief(account.told(partial(), insert(rejected))) == [(FIRST, "Rejected", False, False)]
    assert account.orders.open == {}


def test_what_comes_after_an_order_was_closed_is_not_told_unless_it_lives_again():
    account = Account()
    account.feed(partial(order()), update(change(**FILLED)))
    assert account.told(update(change(text="Booked"))) == []
    amended = change(ordStatus="PartiallyFilled", orderQty=1500, leavesQty=500)
    assert brief(account.told(update(amended))) == [(FIRST, "PartiallyFilled", True, False)]
    assert account.orders[FIRST].leaves == 500


def test_an_update_that_changes_nothing_is_not_told():
    account = Account()
    [told] = account.told(partial(order()))
    assert account.told(update(change(price=31964.5))) == []
    assert account.orders[FIRST] is told


def test_a_delete_closes_too():
    account = Account()
    account.feed(partial(order()))
    assert brief(account.told(delete({"orderID": FIRST}))) == [(FIRST, "New", False, False)]
    assert account.orders.open == {}


# --- reading ---


def test_the_open_orders_are_a_mapping_of_ids():
    account = Account()
    first, second, third = account.told(
        partial(order(), order(SECOND, "grid-1"), order("third", symbol="ETHUSD"))
    )
    orders = account.orders
    assert list(orders) == [FIRST, SECOND, "third"]
    assert len(orders) == 3
    assert orders[SECOND] is second
    assert SECOND in orders
    assert "unknown" not in orders
    assert orders.of("XBTUSD") == [first, second]
    assert orders.of("ETHUSD") == [third]
    assert orders.of("SOLUSDT") == []
    assert orders.by_client_id == {"grid-1": second}
    with pytest.raises(KeyError, match="no open order has the order id 'unknown'"):
        orders["unknown"]


def test_what_was_read_does_not_change_while_orders_do():
    account = Account()
    account.feed(partial(order(client_id="a")))
    before = account.orders.open, account.orders.by_client_id, iter(account.orders)
    account.feed(update(change(**FILLED)))
    assert [len(read) for read in before[:2]] == [1, 1]
    assert list(before[2]) == [FIRST]


def test_a_client_id_is_free_again_once_its_order_is_closed():
    account = Account()
    account.feed(partial(order(client_id="a")), update(change(**CANCELED)), insert(order(SECOND, "a")))
    assert account.orders.by_client_id["a"].order_id == SECOND


OTHER = ACCOUNT + 1


def of_another_account(*rows):
    rows = [row | {"account": OTHER} for row in rows]
    return message("partial", *rows, source="b", keys=["orderID"], filter={"account": OTHER})


def test_orders_of_all_accounts_are_followed_unless_one_is_given():
    account = Account()
    account.feed(partial(order()), of_another_account(order(SECOND)))
    assert {id: found.account for id, found in account.orders.open.items()} == {FIRST: ACCOUNT, SECOND: OTHER}
    account.orders = Orders(account=OTHER)
    account = Line(orders := account.orders)
    items = account.feed(partial(order()), of_another_account(order(SECOND)), update(change(**FILLED)))
    assert [(item.order_id, item.account) for item in items if type(item) is OrderState] == [(SECOND, OTHER)]
    assert list(orders) == [SECOND]
    account.feed(disconnected())
    assert not orders.stale, "it is of the other connection"
    account.feed(disconnected(source="b"))
    assert orders.stale
    with pytest.raises(TypeError, match="an account is an int"):
        Orders(account="273093")


def test_one_client_id_of_two_accounts_is_an_error_in_words():
    account = Account()
    account.feed(partial(order(client_id="a")), of_another_account(order(SECOND, "b")))
    assert {id: found.account for id, found in account.orders.by_client_id.items()} == {"a": ACCOUNT, "b": OTHER}
    account.feed(of_another_account(order(SECOND, "a")))
    with pytest.raises(ValueError, match=r"'a': give each account its own section, as in Orders\(account=273093\)"):
        _ = account.orders.by_client_id
    assert len(account.orders.open) == 2


async def test_orders_without_an_order_can_be_tapped_as_any_section():
    async def source():
        for item in (partial(), insert(order()), update(change(**CANCELED))):
            yield item

    orders = Orders()
    async with (
        Pipeline.create(source(), TableApplier(), orders) as pipeline,
        pipeline.tap(orders) as tap,
    ):
        told = [item async for item in tap if type(item) is OrderState]
    assert brief(told) == [(FIRST, "New", True, False), (FIRST, "Canceled", False, False)]


# --- gaps ---


def test_a_loss_is_told_of_each_open_order_and_the_partial_that_heals_it_of_each_again():
    account = Account()
    account.feed(partial(order(), order(SECOND)))
    lost = account.told(disconnected(received=7))
    assert brief(lost) == [(FIRST, "New", True, True), (SECOND, "New", True, True)]
    assert all(is_mark(told) and told.received == 7 for told in lost)
    assert account.orders.stale
    assert list(account.orders.open.values()) == lost
    assert account.told(StateLost(8, "a", "again")) == []
    assert brief(account.told(partial(order(), order(SECOND)))) == [
        (FIRST, "New", True, False), (SECOND, "New", True, False),
    ]
    assert not account.orders.stale


def test_what_is_read_is_stale_at_once_when_the_connection_is_lost():
    account = Account()
    account.feed(partial(order(client_id="a")))
    account.lose()
    orders = account.orders
    read = [orders[FIRST], orders.open[FIRST], orders.by_client_id["a"], *orders.of("XBTUSD")]
    assert [state.stale for state in read] == [True] * 4
    assert brief(account.told(update(change(**FILLED_IN_PART)))) == [(FIRST, "PartiallyFilled", True, False)]
    assert orders[FIRST].stale
    assert orders[FIRST].filled == 400
    assert brief(account.told(disconnected())) == [(FIRST, "PartiallyFilled", True, True)]
    account.feed(partial(order(**FILLED_IN_PART)))
    assert not orders[FIRST].stale


def test_an_order_that_went_in_a_gap_is_told_as_gone_with_its_end_unseen():
    account = Account()
    account.feed(partial(order(client_id="a"), order(SECOND)), disconnected())
    told = account.told(partial(order(SECOND, **FILLED_IN_PART), order("third"), received=9))
    assert brief(told) == [
        (SECOND, "PartiallyFilled", True, False), ("third", "New", True, False), (FIRST, "New", False, True),
    ]
    assert told[-1].received == 9
    assert is_mark(told[-1])
    assert list(account.orders) == [SECOND, "third"]
    assert account.orders.by_client_id == {}


def test_a_partial_that_says_what_is_known_tells_nothing():
    account = Account()
    account.feed(partial(order()))
    assert account.told(partial(order())) == []
    assert brief(account.told(partial(order(**FILLED_IN_PART)))) == [(FIRST, "PartiallyFilled", True, False)]


def test_closed_orders_in_a_partial_close_what_was_open_and_are_history_else():
    account = Account()
    assert account.told(partial(order(**FILLED))) == []
    account.feed(partial(order(SECOND)), disconnected())
    assert brief(account.told(partial(order(**FILLED), order(SECOND, **CANCELED)))) == [
        (SECOND, "Canceled", False, False),
    ]
    assert account.orders.open == {}


def test_a_partial_of_one_symbol_says_nothing_of_another():
    account = Account()
    account.feed(partial(order(), symbol="XBTUSD"), partial(order(SECOND, symbol="ETHUSD"), symbol="ETHUSD"))
    assert brief(account.told(partial(symbol="ETHUSD"))) == [(SECOND, "New", False, True)]
    assert list(account.orders) == [FIRST]


def test_the_loss_of_one_topic_is_not_the_loss_of_another():
    account = Account()
    account.feed(partial(order(), symbol="XBTUSD"), partial(order(SECOND, symbol="ETHUSD"), symbol="ETHUSD"))
    assert brief(account.told(StateLost(3, "a", "why", "order:ETHUSD"))) == [(SECOND, "New", True, True)]
    assert account.orders.stale
    assert not account.orders[FIRST].stale
    assert brief(account.told(update(change(**FILLED_IN_PART)))) == [(FIRST, "PartiallyFilled", True, False)]


def test_updates_without_the_account_are_of_the_accounts_topic():
    account = Account()
    account.feed(partial())
    row = order()
    del row["account"]
    assert brief(account.told(insert(row))) == [(FIRST, "New", True, False)]
    assert brief(account.told(disconnected())) == [(FIRST, "New", True, True)]


# --- what cannot be an order ---


@pytest.mark.parametrize(
    "bad",
    [
        {"symbol": None}, {"symbol": 7}, {"ordStatus": None}, {"ordStatus": ["New"]}, {"clOrdID": 5},
        {"orderQty": "1000"}, {"leavesQty": 0.5}, {"price": "31964.5"}, {"avgPx": True}, {"text": 1},
    ],
)
def test_a_row_that_cannot_be_an_order_is_a_loss_of_state(bad, caplog):
    account = Account()
    account.feed(partial(order(SECOND)))
    with caplog.at_level(logging.WARNING, "bitmex_streams"):
        told = account.told(insert(order(**bad)))
    assert brief(told) == [(SECOND, "New", True, True)]
    assert account.orders.stale
    assert account.asked == ["order"]
    assert f"state lost: order: its {next(iter(bad))} is no" in caplog.text
    assert brief(account.told(partial(order(), order(SECOND)))) == [
        (FIRST, "New", True, False), (SECOND, "New", True, False),
    ]


def test_a_row_without_order_id_is_refused_by_the_applier_or_here():
    account = Account()
    row = order()
    del row["orderID"]
    account.feed(partial())
    assert account.told(insert(row)) == []
    assert account.orders.stale
    keyless = TableMessage("order", "partial", [row], 1, "a", [], filter={})
    assert account.told(keyless) == []
    assert account.orders.stale
    assert account.asked == ["order", "order"]


def test_a_partial_that_cannot_be_taken_changes_no_order():
    account = Account()
    account.feed(partial(order(), order(SECOND)))
    told = account.told(partial(order(**FILLED_IN_PART), order("third", price="cheap")))
    assert brief(told) == [(FIRST, "New", True, True), (SECOND, "New", True, True)]
    assert account.asked == ["order"]


def test_what_is_stale_already_is_not_told_again():
    account = Account()
    account.feed(partial(order()), disconnected())
    assert account.told(partial(order(price="cheap")), disconnected()) == []
    assert account.orders.stale


# --- against a model ---


class Exchange(RuleBasedStateMachine):
    """An account whose exchange sends what it should, over connections that are lost and made again."""

    def __init__(self):
        super().__init__()
        self.rows = {}
        self.seen = set()  # topics (symbol, None: all) whose partial has come
        self.covered = set()  # and since their last loss
        self.last = {}  # what was last told of each open order
        self.number = 0
        self.account = Account()
        self.feed = self.account.feed

    @initialize(topics=st.sampled_from([(None,), ("XBTUSD", "ETHUSD"), ("XBTUSD",)]))
    def begin(self, topics):
        self.topics = topics

    def covers(self, row):
        return bool({None, row["symbol"]} & self.covered)

    def send(self, item):
        for told in self.feed(item):
            if type(told) is not OrderState:
                continue
            if told.open:
                self.last[told.order_id] = told
            else:  # closed once, and only what was told to be open or comes in that very message
                known = self.last.pop(told.order_id, None)
                assert known is not None or not told.stale

    def emit(self, action, row, delta):
        self.rows[row["orderID"]] = row
        if self.covers(row):
            self.send(message(action, delta))

    @rule(symbol=st.sampled_from(["XBTUSD", "ETHUSD"]), named=st.booleans(), end=st.sampled_from([{}, FILLED]))
    def place(self, symbol, named, end):
        self.number += 1
        row = order(f"order-{self.number}", f"client-{self.number}" if named else "", symbol, **end)
        self.emit("insert", row, row)

    @precondition(lambda self: self.live())
    @rule(data=st.data(), fields=st.sampled_from([FILLED_IN_PART, FILLED, CANCELED, {"price": 32000}, {}]))
    def amend(self, data, fields):
        row = data.draw(st.sampled_from(self.live()))
        self.emit("update", row | fields, change(row["orderID"], row["symbol"], **fields))

    def live(self):
        return [row for row in self.rows.values() if row["ordStatus"] not in ("Filled", "Canceled")]

    @rule(data=st.data())
    def partial(self, data):
        topic = data.draw(st.sampled_from(self.topics))
        self.seen.add(topic)
        self.covered.add(topic)
        self.send(partial(*[row for row in self.live() if topic in (None, row["symbol"])], symbol=topic))

    @rule(ahead=st.booleans())
    def disconnect(self, ahead):
        if ahead:
            self.account.lose(reason="disconnected")
        self.covered.clear()
        self.send(disconnected())
        if ahead:
            self.account.lose(reason=CONNECTING)
            self.send(Connected(4, "a"))

    @rule(data=st.data())
    def lose(self, data):
        topic = data.draw(st.sampled_from(self.topics))
        self.covered.discard(topic)
        self.send(StateLost(3, "a", "why", f"order:{topic}" if topic else "order"))

    @invariant()
    def what_is_trusted_is_what_the_exchange_has(self):
        trusted = {order.order_id: order.row for order in self.account.orders.open.values() if not order.stale}
        assert trusted == {row["orderID"]: row for row in self.live() if self.covers(row)}

    @invariant()
    def what_was_told_is_what_is_known(self):
        assert self.account.orders.open == self.last
        named = {order.client_order_id: order for order in self.last.values() if order.client_order_id}
        assert self.account.orders.by_client_id == named

    @invariant()
    def it_is_stale_where_a_topic_is(self):
        assert self.account.orders.stale == (not self.seen or self.seen != self.covered)


TestExchange = Exchange.TestCase
TestExchange.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
