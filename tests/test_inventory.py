"""Inventories, against cases computed by hand, and against what must hold for any fills."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitmex_streams.inventory import Contract, Inventory

XBTUSD = Contract("XBTUSD", "XBt", -100_000_000, 100, is_inverse=True)
XBTUSDT = Contract("XBTUSDT", "USDt", 1, 1000)
ETHUSD = Contract("ETHUSD", "XBt", 100, 1, is_quanto=True)


# --- what contracts are worth ---


def test_an_inverse_contract_is_worth_less_at_a_higher_price_and_is_rounded_by_the_lot() -> None:
    # Of real trades: grossValue of 100 at 32180.5 was 310747, of 900 it was 2796723.
    # 100 * 1e8 / 32180.5 = 310747.19 -> 310747; 9 * 310747 = 2796723, where 900 * 1e8 / 32180.5 = 2796724.72
    assert XBTUSD.value(100, 32180.5) == -310_747
    assert XBTUSD.value(-900, 32180.5) == 2_796_723
    assert XBTUSD.value(1, 32180.5) == -3107  # no whole lot: 1e8 / 32180.5 = 3107.47
    assert XBTUSD.value(0, 32180.5) == 0


def test_linear_and_quanto_contracts_are_worth_size_times_multiplier_times_price() -> None:
    assert XBTUSDT.value(2000, 32122) == 64_244_000  # 0.002 XBT: 64.244 USDT
    assert ETHUSD.value(-30, 3200.05) == -9_600_150  # 30 * 100 * 3200.05
    # 30 * 100 * 3100.0255 = 9300076.5: half away from zero, for long and short alike
    assert ETHUSD.value(30, 3100.0255) == 9_300_077
    assert ETHUSD.value(-30, 3100.0255) == -9_300_077


def test_a_price_is_the_decimal_number_that_was_written() -> None:
    contract = Contract("T", "USDt", 1, 1)
    # As floats 2.675 and 1.005 are a little less than they say; as they are written, they are halves.
    assert contract.value(100, 2.675) == contract.value(100, Decimal("2.675")) == 268  # 267.5
    assert contract.value(100, 1.005) == 101  # 100.5
    assert contract.value(10, 3) == 30


@pytest.mark.parametrize("price", [0, -1, 0.0, float("nan"), float("inf"), Decimal("NaN"), None, "1", True, 10**40])
def test_what_is_no_price_is_refused(price: Any) -> None:
    for contract in (XBTUSD, XBTUSDT):
        with pytest.raises(ValueError, match="a price must be a positive number"):
            contract.value(100, price)


def test_a_price_of_a_million_digits_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="XBTUSD: a price must be"):
        XBTUSD.value(100, Decimal("1e999999"))


def test_a_size_that_is_no_int_is_refused() -> None:
    with pytest.raises(ValueError, match=r"XBTUSD: a size must be an int, not 1\.5"):
        XBTUSD.value(1.5, 30000)  # type: ignore[arg-type]


ROW = {
    "symbol": "XBTUSD",
    "settlCurrency": "XBt",
    "multiplier": -100_000_000,
    "lotSize": 100,
    "isInverse": True,
    "isQuanto": False,
}


def test_a_contract_is_read_from_its_row_of_the_table_instrument() -> None:
    assert Contract.from_row({**ROW, "markPrice": 1}) == XBTUSD
    quanto = {"symbol": "ETHUSD", "settlCurrency": "XBt", "multiplier": 100, "lotSize": 1, "isQuanto": True}
    assert Contract.from_row(quanto) == ETHUSD


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"multiplier": None}, "'XBTUSD' is no contract: its row has no multiplier"),
        ({"symbol": None, "lotSize": None}, "None is no contract: its row has no symbol, lotSize"),
        ({"settlCurrency": 5}, "the currency of a contract must be a text, not 5"),
        ({"symbol": ""}, "the symbol of a contract must be a text, not ''"),
        ({"multiplier": 0}, "XBTUSD: the multiplier must be an int other than 0, not 0"),
        ({"multiplier": "1"}, "XBTUSD: the multiplier must be an int other than 0, not '1'"),
        ({"lotSize": 0}, "XBTUSD: the lot size must be a positive int, not 0"),
        ({"lotSize": 1.5}, r"XBTUSD: the lot size must be a positive int, not 1\.5"),
    ],
)
def test_a_row_that_is_no_contract_is_refused_in_words(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Contract.from_row({**ROW, **change})


# --- cases by hand ---


def test_inverse_the_example_of_the_exchange() -> None:
    # https://support.bitmex.com/hc/en-gb/articles/6205277211037 computes the realised P&L of a day of XBTUSD:
    # what was bought at 42292.5 is sold, 500 at 42303 and 1500 at 42107.5; commission 2954 and 1780; 12685 of funding
    # received. Values of a lot: 1e10 / 42292.5 = 236449, 1e10 / 42303 = 236390, 1e10 / 42107.5 = 237487.
    inventory = Inventory(XBTUSD)
    inventory.fill("Buy", 2000, 42292.5)
    assert inventory.cost == -20 * 236_449
    inventory.fill("Sell", 500, 42303, fee=2954)
    assert inventory.realized == 5 * (236_449 - 236_390) - 2954 == -2659
    assert inventory.average_entry_price == 42292.4182  # 1e10 / 236449 = 42292.41824...
    inventory.fill("Sell", 1500, 42107.5, fee=1780)
    assert inventory.realized == -2659 + 15 * (236_449 - 237_487) - 1780 == -2659 - 17_350
    inventory.funding(-12_685)
    assert inventory.realized == -7324
    assert (inventory.size, inventory.cost, inventory.average_entry_price) == (0, 0, None)
    assert inventory.unrealized(50_000) == 0


def test_inverse_add_and_close_a_part() -> None:
    inventory = Inventory(XBTUSD)
    inventory.fill("Buy", 100, 32180.5, fee=155)
    inventory.fill("Buy", 200, 32000, fee=-31)  # a maker's: a rebate
    # The lots are worth 310747, and 1e10 / 32000 = 312500 each.
    assert inventory.cost == -310_747 - 2 * 312_500 == -935_747
    assert inventory.average_entry_price == 32059.9478  # 300 * 1e8 / 935747 = 32059.94783...
    assert inventory.realized == -155 + 31
    inventory.fill("Sell", 100, 33000)
    # A third of the cost goes: 935747 / 3 = 311915.67 -> 311916. The lot is sold for 1e10 / 33000 = 303030.3 -> 303030.
    assert (inventory.size, inventory.cost) == (200, -623_831)
    assert inventory.realized == 311_916 - 303_030 - 124 == 8762
    # A mark of 32500.1234: 1e10 / that = 307691.14 -> 307691 a lot
    assert inventory.unrealized(32500.1234) == -2 * 307_691 + 623_831 == 8449
    assert inventory.net(32500.1234) == 8762 + 8449


def test_inverse_short_and_flip() -> None:
    inventory = Inventory(XBTUSD)
    inventory.fill("Sell", 300, 40000)  # 1e10 / 40000 = 250000 a lot
    assert (inventory.size, inventory.cost, inventory.average_entry_price) == (-300, 750_000, 40000)
    inventory.fill("Buy", 500, 50000)  # 200000 a lot: 300 close at 600000, 200 open at 400000
    assert (inventory.size, inventory.cost, inventory.average_entry_price) == (200, -400_000, 50000)
    assert inventory.realized == 600_000 - 750_000
    assert inventory.unrealized(62500) == 400_000 - 2 * 160_000  # 1e10 / 62500 = 160000


def test_linear_open_add_close_a_part_and_flip() -> None:
    inventory = Inventory(XBTUSDT)
    inventory.fill("Buy", 2000, 32122)  # 64.244 USDT
    inventory.fill("Buy", 1000, 32000.5)  # 32.0005 USDT
    assert (inventory.cost, inventory.average_entry_price) == (96_244_500, 32081.5)
    inventory.fill("Sell", 1000, 33000)
    assert inventory.cost == 96_244_500 - 32_081_500
    assert inventory.realized == 33_000_000 - 32_081_500 == 918_500
    inventory.fill("Sell", 3000, 33000, fee=49_500)  # closes 2000, opens 1000 short
    assert (inventory.size, inventory.cost, inventory.average_entry_price) == (-1000, -33_000_000, 33000)
    assert inventory.realized == 918_500 + (66_000_000 - 64_163_000) - 49_500
    # -1000 * 32900.1234 = -32900123.4 -> -32900123
    assert inventory.unrealized(32900.1234) == 33_000_000 - 32_900_123


def test_quanto_with_funding_and_rebate() -> None:
    inventory = Inventory(ETHUSD)
    inventory.fill("Sell", 30, 3200.05, fee=-960)  # 9600150, of which 0.01 % are given back
    # Funding of 0.0103 % at a mark of 3150.55: 30 * 100 * 3150.55 = 9451650, of that 973.52; a short one receives it
    inventory.funding(-974)
    assert (inventory.size, inventory.cost, inventory.realized) == (-30, -9_600_150, 960 + 974)
    assert inventory.unrealized(3100.0255) == 9_600_150 - 9_300_077  # rounded: see above
    inventory.fill("Buy", 10, 3000.1, fee=1500)
    # A third of the cost: 3200050. Bought back for 10 * 100 * 3000.1 = 3000100.
    assert (inventory.size, inventory.cost) == (-20, -6_400_100)
    assert inventory.realized == 1934 + (3_200_050 - 3_000_100) - 1500
    assert inventory.average_entry_price == 3200.05


def test_the_cost_that_the_exchange_says_counts() -> None:
    inventory = Inventory(XBTUSD)
    inventory.fill("Buy", 100, 32180.5, cost=-310_750)
    assert inventory.cost == -310_750
    inventory.fill("Sell", 100, 32180.5, cost=310_740)
    assert (inventory.cost, inventory.realized) == (0, 10)


def test_an_average_entry_price_is_rounded_as_prices_of_its_size_are() -> None:
    inventory = Inventory(Contract("PENGUUSDT", "USDt", 1000, 100))
    inventory.fill("Buy", 100, 0.02781)
    inventory.fill("Buy", 200, 0.02785)
    assert inventory.average_entry_price == 0.02783667  # (100 * 0.02781 + 200 * 0.02785) / 300 = 0.027836666...
    halfway = Inventory(XBTUSDT)
    halfway.fill("Buy", 1000, 64000.5)
    halfway.fill("Buy", 19000, 64000.503)
    assert halfway.average_entry_price == 64000.5028  # 64000.50285
    decimal = Inventory(XBTUSD)
    decimal.fill("Buy", 100, Decimal("32180.5"))
    average = decimal.average_entry_price
    assert (type(average), average) == (Decimal, Decimal("32180.5198"))  # 1e10 / 310747 = 32180.51984...


@pytest.mark.parametrize(
    ("fill", "words"),
    [
        (("buy", 100, 1), "XBTUSD: the side of a fill is Buy or Sell, not 'buy'"),
        ((None, 100, 1), "the side of a fill is Buy or Sell, not None"),
        (("Buy", 0, 1), "the size of a fill must be a positive int, not 0"),
        (("Buy", -100, 1), "the size of a fill must be a positive int, not -100"),
        (("Buy", 1.5, 1), "the size of a fill must be a positive int, not 1.5"),
        (("Buy", 100, None), "a price must be a positive number, not None"),
        (("Buy", 100, 1, "x"), "a cost must be an int, in the smallest unit of its currency, not 'x'"),
        (("Buy", 100, 1, None, 0.5), "a fee must be an int, in the smallest unit of its currency, not 0.5"),
    ],
)
def test_what_cannot_be_a_fill_is_refused_and_changes_nothing(fill: tuple[Any, ...], words: str) -> None:
    inventory = Inventory(XBTUSD)
    side, size, price, cost, fee = (*fill, *(None, 0)[len(fill) - 3 :])
    with pytest.raises(ValueError, match=words):
        inventory.fill(side, size, price, cost=cost, fee=fee)
    assert (inventory.size, inventory.cost, inventory.fees, inventory.realized) == (0, 0, 0, 0)


def test_a_funding_that_is_no_amount_is_refused() -> None:
    with pytest.raises(ValueError, match="XBTUSD: a funding must be an int"):
        Inventory(XBTUSD).funding(0.1)  # type: ignore[arg-type]


# --- what holds for any fills ---

contracts = st.sampled_from([XBTUSD, XBTUSDT, ETHUSD])
sides = st.sampled_from(["Buy", "Sell"])
prices = st.integers(1, 2_000_000).map(lambda ticks: ticks / 20)
fills = st.lists(st.tuples(sides, st.integers(1, 50), prices, st.integers(-500, 500)), max_size=20)


Fills = list[tuple[str, int, Any, int]]


def taken(contract: Contract, fills: Fills) -> Inventory:
    inventory = Inventory(contract)
    for side, lots, price, fee in fills:
        inventory.fill(side, lots * contract.lot_size, price, fee=fee)
    return inventory


def opposite(side: str) -> str:
    return "Sell" if side == "Buy" else "Buy"


@given(contracts, fills, prices)
def test_once_all_is_closed_what_was_realized_is_what_was_received_less_what_was_paid(
    contract: Contract, fills: Fills, last: float
) -> None:
    inventory = taken(contract, fills)
    signed = [(lots * contract.lot_size * (1 if side == "Buy" else -1), price) for side, lots, price, _ in fills]
    paid = sum(contract.value(size, price) for size, price in signed)
    open_size = inventory.size
    assert open_size == sum(size for size, _ in signed)
    if open_size:
        inventory.fill("Sell" if open_size > 0 else "Buy", abs(open_size), last)
    paid -= contract.value(open_size, last)
    assert (inventory.size, inventory.cost) == (0, 0)
    assert inventory.realized == -paid - sum(fee for *_, fee in fills)


@given(contracts, fills, prices)
def test_closing_at_the_mark_turns_unrealized_into_realized(
    contract: Contract, fills: Fills, mark: float
) -> None:
    inventory = taken(contract, fills)
    net = inventory.net(mark)
    if inventory.size:
        inventory.fill("Sell" if inventory.size > 0 else "Buy", abs(inventory.size), mark)
    assert (inventory.realized, inventory.unrealized(mark)) == (net, 0)


@given(contracts, sides, st.data())
def test_the_order_of_fills_in_one_direction_does_not_matter(
    contract: Contract, side: str, data: st.DataObject
) -> None:
    bought = data.draw(st.lists(st.tuples(st.just(side), st.integers(1, 50), prices, st.integers(-5, 5)), max_size=8))
    one, other = taken(contract, bought), taken(contract, data.draw(st.permutations(bought)))
    assert (one.size, one.cost, one.fees, one.average_entry_price) == (
        other.size,
        other.cost,
        other.fees,
        other.average_entry_price,
    )


@given(contracts, fills, prices)
def test_who_sells_what_the_other_buys_earns_what_the_other_loses(
    contract: Contract, fills: Fills, mark: float
) -> None:
    one = taken(contract, fills)
    other = taken(contract, [(opposite(side), lots, price, -fee) for side, lots, price, fee in fills])
    assert (other.size, other.cost, other.realized) == (-one.size, -one.cost, -one.realized)
    assert other.unrealized(mark) == -one.unrealized(mark)
    assert other.average_entry_price == one.average_entry_price


@given(contracts, fills)
def test_decimals_give_what_floats_give(contract: Contract, fills: Fills) -> None:
    one = taken(contract, fills)
    other = taken(contract, [(side, lots, Decimal(repr(price)), fee) for side, lots, price, fee in fills])
    assert (one.size, one.cost, one.realized) == (other.size, other.cost, other.realized)


@given(contracts, sides, st.integers(1, 50), prices)
def test_what_was_bought_at_one_price_has_that_average(contract: Contract, side: str, lots: int, price: float) -> None:
    inventory = taken(contract, [(side, lots, price, 0)])
    average = inventory.average_entry_price
    assert contract.value(inventory.size, average) == pytest.approx(inventory.cost, rel=1e-3, abs=lots)
