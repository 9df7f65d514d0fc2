"""The matching engine keeps price-time priority and loses no contract, whatever is done to it."""

from collections import Counter
from decimal import Decimal
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitmex_streams.exchange import INSTRUMENTS, LevelChange, Market, Match, MatchingEngine, Order

XBTUSD = INSTRUMENTS["XBTUSD"]


def open_market(symbol="XBTUSD"):
    market = Market(INSTRUMENTS[symbol], lambda: 0, Random(0))
    events = []
    market.listeners.append(events.append)
    return market, events


def test_a_limit_order_that_meets_nobody_rests():
    market, _ = open_market()
    order = market.submit("Buy", 300, 31964.5)
    assert order.leaves == 300 and market.engine.orders[order.id] is order
    assert market.book == ([(31964.5, 300)], [])


def test_an_order_takes_the_best_price_first_and_then_the_older_order():
    market, events = open_market()
    late_but_better = [market.submit("Sell", 100, price) for price in (101, 100.5, 100.5)]
    dear, first, second = late_but_better
    taker = market.submit("Buy", 250 * 100, 101.5)
    assert [(fill.maker, fill.quantity) for fill in events[-1].fills] == [(first, 100), (second, 100), (dear, 100)]
    assert taker.leaves == 24_700 and market.book == ([(101.5, 24_700)], [])


def test_a_partly_filled_maker_keeps_its_place_and_what_is_left():
    market, _ = open_market()
    first, second = market.submit("Sell", 300, 100), market.submit("Sell", 300, 100)
    market.submit("Buy", 100)
    market.submit("Buy", 300)
    assert (first.leaves, second.leaves) == (0, 200)


def test_a_limit_order_never_trades_beyond_its_price():
    market, events = open_market()
    market.submit("Sell", 100, 100)
    market.submit("Sell", 100, 101)
    market.submit("Buy", 200, 100.5)
    assert [fill.ticks for fill in events[-1].fills] == [200]
    assert market.book == ([(100.5, 100)], [(101, 100)])


def test_what_a_market_order_finds_no_match_for_lapses():
    market, _ = open_market()
    market.submit("Buy", 100, 99)
    order = market.submit("Sell", 500)
    assert order.leaves == 400 and market.book == ([], [])


def test_a_cancelled_order_leaves_and_the_others_stay():
    market, _ = open_market()
    orders = [market.submit("Buy", 100, 99) for _ in range(3)]
    market.cancel(orders[1].id)
    assert market.book.bids == [(99, 200)]
    market.submit("Sell", 200)
    assert [order.leaves for order in orders] == [0, 100, 0]


def test_an_order_that_shrinks_keeps_its_place():
    market, _ = open_market()
    first, second = market.submit("Buy", 300, 99), market.submit("Buy", 300, 99)
    market.amend(first.id, quantity=100)
    market.submit("Sell", 100)
    assert (first.leaves, second.leaves) == (0, 300)


def test_an_order_that_grows_or_moves_goes_to_the_end_of_the_queue():
    market, _ = open_market()
    first, second = market.submit("Buy", 100, 99), market.submit("Buy", 100, 99)
    market.amend(first.id, quantity=200)
    market.submit("Sell", 100)
    assert (first.leaves, second.leaves) == (200, 0)
    third = market.submit("Buy", 100, 98)
    market.amend(third.id, price=99)
    market.submit("Sell", 200)
    assert (first.leaves, third.leaves) == (0, 100)


def test_an_order_amended_across_the_spread_trades():
    market, events = open_market()
    market.submit("Sell", 100, 101)
    order = market.submit("Buy", 200, 99)
    market.amend(order.id, price=101)
    assert order.leaves == 100 and len(events[-1].fills) == 1
    assert market.book == ([(101, 100)], [])


def test_an_order_amended_below_what_was_filled_is_done():
    market, _ = open_market()
    order = market.submit("Buy", 300, 99)
    market.submit("Sell", 200)
    market.amend(order.id, quantity=100)
    assert (order.leaves, order.filled) == (0, 200) and market.book == ([], [])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("Buy", 100, 100.3), "tick size 0.5"),
        (("Buy", 100, -1), "not between"),
        (("Buy", 100, 2_000_000), "not between"),
        (("Buy", 150, 100), "lot size 100"),
        (("Buy", 0, 100), "lot size 100"),
        (("Bid", 100, 100), "'Buy' or 'Sell'"),
        (("Buy", 100.0, 100), "quantity 100.0 is not a whole number"),
        (("Buy", "100", 100), "quantity '100' is not a whole number"),
        (("Buy", 100, float("nan")), "price nan is not a number"),
        (("Buy", 100, float("inf")), "price inf is not a number"),
        (("Buy", 100, Decimal("nan")), "is not a number"),
        (("Buy", 100, "100"), "price '100' is not a number"),
        (("Buy", 100, True), "price True is not a number"),
    ],
)
def test_an_order_that_the_contract_does_not_allow_is_refused_and_changes_nothing(arguments, words):
    market, events = open_market()
    with pytest.raises(ValueError, match=words):
        market.submit(*arguments)
    assert not events and not market.engine.orders


def test_an_unknown_order_cannot_be_cancelled():
    market, _ = open_market()
    with pytest.raises(KeyError, match="XBTUSD: no resting order"):
        market.cancel("nonsense")


# --- contracts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symbol", INSTRUMENTS)
@given(ticks=st.integers(1, 2_000_000))
def test_prices_are_exact(symbol, ticks):
    instrument = INSTRUMENTS[symbol]
    ticks = min(ticks, instrument.max_ticks)
    price = instrument.price(ticks)
    assert Decimal(str(price)) == ticks * Decimal(instrument.tick_size)
    assert instrument.ticks(price) == ticks
    assert isinstance(price, int) == (price == int(price))


@pytest.mark.parametrize(
    ("quantity", "price", "value"),
    [(1000, 32175, 3108000), (100, 32180.5, 310747), (900, 32180.5, 2796723), (200, 32182.5, 621456)],
)
def test_an_inverse_contract_is_worth_what_it_was_in_real_trades(quantity, price, value):
    assert XBTUSD.value(quantity, XBTUSD.ticks(price)) == value
    assert XBTUSD.notional(quantity, price, value, 0) == (value / 1e8, quantity)


def test_a_quanto_contract_is_worth_a_number_of_satoshi_per_dollar_of_its_price():
    instrument = INSTRUMENTS["ETHUSD"]
    ticks = instrument.ticks(2000)
    assert instrument.value(10, ticks) == 10 * 2000 * 100
    # 0.02 XBT, hence 1000 dollars, hence half an ether
    assert instrument.notional(10, 2000, 2_000_000, 50_000) == (0.5, 1000)


def test_a_linear_contract_is_worth_its_underlying():
    assert INSTRUMENTS["XBTUSDT"].value(1_000_000, INSTRUMENTS["XBTUSDT"].ticks(31592.5)) == 31_592_500_000
    instrument = INSTRUMENTS["SOLUSDT"]
    value = instrument.value(10_000, instrument.ticks(150.25))
    assert value == 150_250_000 and instrument.notional(10_000, 150.25, value, 0) == (1, 150.25)


@pytest.mark.parametrize(
    ("symbol", "price", "id"),
    [("XBTUSD", 32055.5, 8796794450), ("XBTUSD", 1000000, 8700000000), ("XBTUSDT", 32122, 73199935756)],
)
def test_levels_have_the_ids_that_the_real_exchange_gave_them(symbol, price, id):
    instrument = INSTRUMENTS[symbol]
    assert instrument.order_id(instrument.ticks(price)) == id


# --- invariants -------------------------------------------------------------------------------------------------------


class NaiveExchange:
    """Orders in one list, searched from the front for the best price: what the engine has to equal."""

    def __init__(self):
        self.resting = []  # [order number, side, ticks, leaves], oldest first

    def submit(self, number, side, quantity, ticks):
        fills = []
        sign = 1 if side == "Buy" else -1
        while quantity:
            others = [
                row for row in self.resting if row[1] != side and (ticks is None or sign * row[2] <= sign * ticks)
            ]
            if not others:
                break
            maker = min(others, key=lambda row: sign * row[2])
            traded = min(quantity, maker[3])
            fills.append((maker[0], number, maker[2], traded))
            quantity -= traded
            maker[3] -= traded
            if not maker[3]:
                self.resting.remove(maker)
        if quantity and ticks is not None:
            self.resting.append([number, side, ticks, quantity])
        return fills

    def amend(self, number, quantity, ticks, filled):
        row = next(row for row in self.resting if row[0] == number)
        leaves = max(0, quantity - filled)
        if ticks == row[2] and 0 < leaves <= row[3]:
            row[3] = leaves
            return []
        self.resting.remove(row)
        return self.submit(number, row[1], leaves, ticks) if leaves else []

    def levels(self):
        levels = Counter()
        for _, side, ticks, leaves in self.resting:
            levels[side, ticks] += leaves
        return levels


sides = st.sampled_from(["Buy", "Sell"])
quantities = st.integers(1, 9)
limits = st.integers(1, 12)
commands = st.one_of(
    st.tuples(st.just("submit"), sides, quantities, st.none() | limits),
    st.tuples(st.just("submit"), sides, quantities, limits),
    st.tuples(st.just("cancel"), st.integers(0, 99)),
    st.tuples(st.just("amend"), st.integers(0, 99), quantities, limits),
)


@given(st.lists(commands, max_size=60))
def test_any_orders_match_as_in_a_naive_exchange_and_no_contract_is_lost(script):
    engine, naive, orders = MatchingEngine(), NaiveExchange(), []
    known: Counter = Counter()
    for time, (command, *arguments) in enumerate(script):
        if command == "submit":
            side, quantity, ticks = arguments
            order = Order(str(len(orders)), side, quantity, ticks, quantity)
            orders.append(order)
            fills, expected = engine.submit(order, time), naive.submit(order.id, side, quantity, ticks)
        else:
            resting = list(engine.orders.values())
            if not resting:
                continue
            order = resting[arguments[0] % len(resting)]
            if command == "cancel":
                engine.cancel(order, time)
                naive.resting = [row for row in naive.resting if row[0] != order.id]
                fills, expected = [], []
            else:
                expected = naive.amend(order.id, arguments[1], arguments[2], order.filled)
                fills = engine.amend(order, arguments[1], arguments[2], time)
        assert [(fill.maker.id, fill.taker.id, fill.ticks, fill.quantity) for fill in fills] == expected
        assert all(isinstance(fill, Match) for fill in fills)

        levels = Counter(
            {(side, ticks): level.size for side in ("Buy", "Sell") for ticks, level in engine.best_first(side)}
        )
        assert levels == naive.levels()
        assert engine.best_bid is None or engine.best_ask is None or engine.best_bid < engine.best_ask
        for side in ("Buy", "Sell"):
            for _, level in engine.best_first(side):
                assert level.size == sum(order.leaves for order in level.orders.values()) > 0
        assert {row[0]: row[3] for row in naive.resting} == {order.id: order.leaves for order in engine.orders.values()}

        changes = engine.take_changes()
        assert all(isinstance(change, LevelChange) and change.before != change.after for change in changes)
        for side, ticks, before, after in changes:
            assert known[side, ticks] == before
            known[side, ticks] = after
        assert +known == levels
