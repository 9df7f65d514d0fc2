"""What open orders come to is kept as they change, and is what it is when it is reckoned anew."""

from hypothesis import given
from hypothesis import strategies as st

from bitmex_streams.exchange import INSTRUMENTS, Order
from bitmex_streams.exchange.positions import opening_value
from bitmex_streams.exchange.resting import RestingSide

pieces = st.tuples(st.integers(1, 9), st.integers(100, 104))  # lots, ticks: several at one price
steps = st.lists(st.tuples(st.integers(0, 5), st.one_of(st.none(), pieces), st.booleans()), max_size=12)


@given(
    st.sampled_from(("XBTUSD", "ETHUSD")), st.sampled_from(("Buy", "Sell")), steps, st.integers(0, 40),
    st.lists(pieces, max_size=2), st.one_of(st.none(), st.integers(0, 5)),
)  # fmt: skip
def test_sums_and_what_would_open_are_those_of_the_orders(symbol, side, steps, closing, more, without):
    instrument = INSTRUMENTS[symbol]
    lot, best_first = instrument.lot_size, -1 if side == "Buy" else 1
    resting, orders = RestingSide(instrument, side), {}
    for number, piece, reduce_only in steps:
        if piece is None:
            orders.pop(number, None)
            resting.remove(str(number))
        else:
            size, ticks = piece
            order = Order(str(number), side, size * lot, ticks, size * lot)
            orders[number] = order, reduce_only
            resting.put(order, number, reduce_only)
    found = [order for order, _ in orders.values()]
    assert resting.quantity == sum(order.leaves for order in found)
    assert resting.cost == sum(instrument.cost(order.leaves, instrument.price(order.ticks)) for order in found)
    of_all = [(order.leaves, order.ticks) for number, (order, reduce_only) in sorted(orders.items())
              if not reduce_only and number != without]
    more = [(size * lot, ticks) for size, ticks in more]
    naive = opening_value(instrument, sorted([*of_all, *more], key=lambda piece: piece[1] * best_first), closing * lot)
    assert resting.opening_value(closing * lot, more, None if without is None else str(without)) == naive


def test_a_market_order_is_not_counted():
    resting = RestingSide(INSTRUMENTS["XBTUSD"], "Buy")
    resting.put(Order("a", "Buy", 100, None, 100), 1, False)
    resting.remove("a")
    assert (resting.quantity, resting.cost, resting.opening_value(0)) == (0, 0, 0)
