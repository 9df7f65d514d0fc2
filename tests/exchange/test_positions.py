"""The arithmetic of an account, by hand: inverse, linear and quanto contracts, to the satoshi."""

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitmex_streams.exchange import INSTRUMENTS
from bitmex_streams.exchange.instruments import round_half_up
from bitmex_streams.exchange.positions import Position, fee, margin, opening_value

XBTUSD, XBTUSDT, ETHUSD = (INSTRUMENTS[symbol] for symbol in ("XBTUSD", "XBTUSDT", "ETHUSD"))


def state(position):
    return position.size, position.cost, position.open_cost, position.realised_cost, position.realised_pnl


def test_an_inverse_position_is_opened_added_to_reduced_and_turned_round():
    position = Position(XBTUSD)
    # A lot of 100 dollars at 64000 is 10**10 / 64000 = 156250 satoshi; a long position costs less than nothing.
    assert position.trade(300, 64000) == -468_750
    # At 32000 it is 312500. Together 400 dollars for 781250 satoshi: 400 * 10**8 / 781250 = 51200.
    assert position.trade(100, 32000) == -312_500
    assert state(position) == (400, -781_250, -781_250, 0, 0) and position.average_entry_price == 51200
    # At 50000 it is 200000. A quarter of 781250 is 195312.5, and goes as 195313: sold below what was paid, a loss.
    assert position.trade(-100, 50000) == 200_000
    assert state(position) == (300, -581_250, -585_937, 4_687, -4_687)
    # At 40000 it is 250000; of 500 dollars sold, 300 close, 200 open a short position of 500000 satoshi.
    assert position.trade(-500, 40000) == 1_250_000
    assert state(position) == (-200, 668_750, 500_000, 168_750, -168_750) and position.average_entry_price == 40000
    # Worth 400000 at 50000: for who is short, the rise is a loss.
    assert position.mark_value(50000) - position.open_cost == -100_000
    assert position.trade(200, 50000) == -400_000
    assert state(position) == (0, 268_750, 0, 268_750, -268_750) and position.average_entry_price is None


def test_the_value_of_an_inverse_contract_is_rounded_per_lot():
    # 10**10 / 64000.5 = 156248.78 for 100; 15 of these are 2343735, and not 2343732, the value of 1500 rounded.
    assert XBTUSD.cost(100, 64000.5) == -156_249 and XBTUSD.cost(-1500, 64000.5) == 2_343_735
    assert XBTUSD.cost(150, 64000.5) == -234_373  # no whole number of lots: 234373.17
    assert XBTUSD.cost(0, 64000) == 0


def test_a_linear_position_is_turned_round():
    position = Position(XBTUSDT)
    # A contract is a millionth of an XBT, and worth as many millionths of a USDT as the price says.
    assert position.trade(2000, 50000) == 100_000_000
    assert position.trade(-3000, 50000.5) == -150_001_500
    # 0.002 XBT were sold for 0.5 USDT more than they cost: 0.001 USDT. 1000 contracts remain, at 50000.5.
    assert state(position) == (-1000, -50_001_500, -50_000_500, -1_000, 1_000)
    assert position.average_entry_price == 50000.5
    # -1000 * 49999.1234 = -49999123.4
    assert position.mark_value(49999.1234) == -49_999_123
    assert position.mark_value(49999.1234) - position.open_cost == 1_377


def test_a_quanto_position_is_reduced():
    position = Position(ETHUSD)
    # 100 satoshi for each contract and dollar: 7 * 100 * 3000.05
    assert position.trade(-7, 3000.05) == -2_100_035
    # Two sevenths of it, 600010, are closed for 2 * 100 * 2999.95 = 599990.
    assert position.trade(2, 2999.95) == 599_990
    assert state(position) == (-5, -1_500_045, -1_500_025, -20, 20) and position.average_entry_price == 3000.05
    # -5 * 100 * 2999.9999 = -1499999.95
    assert position.mark_value(2999.9999) - position.open_cost == 25


def test_fees_are_of_the_cost_whatever_its_sign_and_rebates_are_negative():
    assert fee(-468_750, 0.00075) == fee(468_750, 0.00075) == 352  # 351.5625
    assert fee(468_750, 0.0002) == 94  # 93.75
    assert fee(468_750, -0.00025) == -117  # -117.1875
    assert (fee(1000, 0.0005), fee(1000, -0.0005)) == (1, -1)  # halves: away from zero


def test_fees_and_funding_are_realised():
    position = Position(XBTUSD)
    position.trade(-200, 50000)
    position.fees += fee(400_000, 0.00075)  # paid: 300
    position.fees += fee(position.mark_value(40000), -0.0001)  # got, being short: 2 * 250000 * 0.0001 = 50
    assert position.realised_pnl == -250


def test_margin_is_rounded_up_and_only_what_opens_binds():
    rate = Fraction("0.0115")
    assert margin(468_750, rate) == margin(-468_750, rate) == 5391  # 5390.625
    bids = [(300, 64000 * 2), (100, 32000 * 2)]
    assert opening_value(XBTUSD, bids, 0) == 781_250
    assert opening_value(XBTUSD, bids, 200) == 156_250 + 312_500
    assert opening_value(XBTUSD, bids, 300) == 312_500
    assert opening_value(XBTUSD, bids, 1000) == 0


@pytest.mark.parametrize("number", ["0.5", "1.5", "2.4999", "-0.5", "-1.49", "7"])
def test_halves_are_rounded_away_from_zero(number):
    exact = Decimal(number)
    assert round_half_up(Fraction(number)) == int(exact.quantize(Decimal(1), rounding="ROUND_HALF_UP"))


instruments = st.sampled_from([XBTUSD, XBTUSDT, ETHUSD, replace(XBTUSD, lot_size=1)])
trades = st.lists(st.tuples(st.integers(-20, 20).filter(bool), st.integers(1000, 200_000)), min_size=1, max_size=12)


@given(instruments, trades)
def test_what_is_short_is_what_is_long_with_another_sign(instrument, trades):
    long, short = Position(instrument), Position(instrument)
    for lots, ticks in trades:
        price = instrument.price(ticks)
        assert long.trade(lots * instrument.lot_size, price) == -short.trade(-lots * instrument.lot_size, price)
        assert [-value for value in state(short)] == list(state(long))


@given(instruments, trades)
def test_a_position_that_was_closed_has_realised_all(instrument, trades):
    position = Position(instrument)
    paid = sum(position.trade(lots * instrument.lot_size, instrument.price(ticks)) for lots, ticks in trades)
    if position.size:
        paid += position.trade(-position.size, instrument.price(5000))
    assert (position.size, position.open_cost, position.realised_pnl) == (0, 0, -paid)


@given(instruments, trades)
def test_the_value_in_ticks_and_the_cost_at_a_price_are_the_same(instrument, trades):
    for lots, ticks in trades:
        size = lots * instrument.lot_size
        value = instrument.value(abs(size), ticks)
        signed = -value if (size > 0) == instrument.is_inverse else value
        assert instrument.cost(size, instrument.price(ticks)) == signed
