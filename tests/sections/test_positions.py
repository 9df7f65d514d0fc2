"""Positions: as the exchange says, or else as the executions since the stream began make them."""

import json
import logging
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bitmex_streams.exchange import open_exchange
from bitmex_streams.inventory import Contract, Inventory
from bitmex_streams.messages import Connected, Disconnected, Position, StateLost, TableMessage, TableUpdate, is_mark
from bitmex_streams.pipeline import Pipeline
from bitmex_streams.sections.connection import Connection
from bitmex_streams.sections.decoder import Decoder
from bitmex_streams.sections.filters import TableFilter
from bitmex_streams.sections.margin import Margin
from bitmex_streams.sections.positions import Positions
from bitmex_streams.sections.tables import TableApplier
from bitmex_streams.sections.tickers import Tickers
from bitmex_streams.timestamps import to_iso
from tests.sections.test_follower import Line

ACCOUNT = 273093
DATA = Path(os.environ.get("BITMEX_STREAMS_DATA") or Path(__file__).parents[3] / "shared" / "data")
AT = "2026-03-14T07:03:58.114Z"


# --- rows and messages as the exchange sends them ---


def position(symbol="XBTUSD", account=ACCOUNT, **fields):
    """Long 300, bought at 40000: lots of 1e10 / 40000 = 250000 satoshi; marked at 50000: 200000."""
    return {
        "account": account,
        "symbol": symbol,
        "strategy": "OneWay",
        "currency": "XBt",
        "underlying": "XBT",
        "quoteCurrency": "USD",
        "currentQty": 300,
        "currentCost": -750_000,
        "currentComm": 375,
        "realisedCost": 0,
        "unrealisedCost": -750_000,
        "isOpen": True,
        "markPrice": 50000,
        "markValue": -600_000,
        "realisedPnl": -375,
        "unrealisedPnl": 150_000,
        "avgEntryPrice": 40000,
        "liquidationPrice": 20202.5,
        "timestamp": AT,
    } | fields


FLAT = {
    "currentQty": 0,
    "unrealisedCost": 0,
    "markPrice": None,
    "markValue": 0,
    "unrealisedPnl": 0,
    "avgEntryPrice": None,
    "liquidationPrice": None,
    "isOpen": False,
}


def positions_partial(*rows, received=1, source="a", account=ACCOUNT, symbol=None):
    filter = {"account": account} | ({"symbol": symbol} if symbol else {})
    keys = ["account", "symbol", "strategy"]
    return TableMessage("position", "partial", rows, received, source, keys, filter=filter)


def position_change(symbol="XBTUSD", received=2, source="a", **fields):
    row = {"account": ACCOUNT, "symbol": symbol, "strategy": "OneWay"} | fields
    return TableMessage("position", "update", [row], received, source)


CONTRACTS = {
    "XBTUSD": {"settlCurrency": "XBt", "multiplier": -100_000_000, "lotSize": 100, "isInverse": True},
    "ETHUSD": {"settlCurrency": "XBt", "multiplier": 100, "lotSize": 1, "isInverse": False, "isQuanto": True},
    "XBTUSDT": {"settlCurrency": "USDt", "multiplier": 1, "lotSize": 1000, "isInverse": False},
}


def instrument(symbol="XBTUSD", mark=50000, **fields):
    return {"symbol": symbol, "typ": "FFWCSX", "markPrice": mark, "timestamp": AT} | CONTRACTS.get(symbol, {}) | fields


def instruments(*rows, received=1, source="a"):
    return TableMessage("instrument", "partial", rows, received, source, ["symbol"], filter={})


def marked(mark, symbol="XBTUSD", received=2, source="a", **fields):
    return TableMessage("instrument", "update", [{"symbol": symbol, "markPrice": mark} | fields], received, source)


def trade(exec_id, side="Buy", size=100, price=40000, symbol="XBTUSD", fee=0, **fields):
    signed = size if side == "Buy" else -size
    return {
        "execID": exec_id,
        "account": ACCOUNT,
        "symbol": symbol,
        "side": side,
        "lastQty": size,
        "lastPx": price,
        "execType": "Trade",
        "execCost": Contract.from_row(instrument(symbol)).value(signed, price),
        "execComm": fee,
        "settlCurrency": CONTRACTS[symbol]["settlCurrency"],
        "timestamp": AT,
    } | fields


def funding(exec_id, fee, symbol="XBTUSD"):
    return trade(exec_id, None, fee=fee, symbol=symbol, lastQty=300) | {"execType": "Funding", "side": ""}


def executions(*rows, received=1, source="a", symbol=None):
    filter = {"account": ACCOUNT} | ({"symbol": symbol} if symbol else {})
    return TableMessage(
        "execution", "partial", rows, received, source, [], attributes={"timestamp": "sorted"}, filter=filter
    )


def executed(*rows, received=2, source="a"):
    return TableMessage("execution", "insert", rows, received, source)


def told(line, *items):
    return [out for out in line.feed(*items) if type(out) is Position]


def money(position):
    return position.size, position.realized, position.unrealized, position.net


# --- as the exchange says ---


def test_a_row_of_the_table_position_is_a_position():
    positions = Positions()
    line = Line(positions)
    assert positions.stale
    [long] = told(line, positions_partial(position()))
    assert long == Position(
        symbol="XBTUSD",
        account=ACCOUNT,
        currency="XBt",
        size=300,
        average_entry_price=40000,
        mark_price=50000,
        liquidation_price=20202.5,
        realized=-375,
        unrealized=150_000,
        net=149_625,
        timestamp=AT,
        received=1,
        source="a",
    )
    assert positions["XBTUSD"] is long
    assert not positions.stale
    assert (list(positions), "ETHUSD" in positions, positions.get("ETHUSD")) == (["XBTUSD"], False, None)
    with pytest.raises(KeyError, match="no position of 'ETHUSD' is known"):
        positions["ETHUSD"]


def test_an_empty_partial_says_that_there_is_none():
    positions = Positions()
    assert told(Line(positions), positions_partial()) == []
    assert (positions.stale, len(positions)) == (False, 0)


def test_only_what_changes_the_position_is_told():
    line = Line(Positions())
    line.feed(positions_partial(position()))
    assert told(line, position_change(openOrderBuyQty=100, timestamp="2026-03-14T07:04:00.000Z")) == []
    update, closed = line.feed(position_change(**FLAT, realisedPnl=149_000, received=7))
    assert update.table == "position"
    assert money(closed) == (0, 149_000, 0, 149_000)
    assert (closed.average_entry_price, closed.mark_price, closed.liquidation_price) == (None, None, None)
    assert closed.received == 7


def test_the_mark_price_of_the_instrument_is_followed():
    positions = Positions()
    line = Line(positions)
    line.feed(positions_partial(position()), instruments(instrument()))
    assert money(positions["XBTUSD"]) == (300, -375, 150_000, 149_625)
    update, moved = line.feed(marked(62500, timestamp="2026-03-14T07:04:00.000Z"))
    assert update.table == "instrument"
    # 1e10 / 62500 = 160000 a lot: -480000 + 750000
    assert (moved.mark_price, *money(moved)) == (62500, 300, -375, 270_000, 269_625)
    assert moved.timestamp == "2026-03-14T07:04:00.000Z"
    assert told(line, marked(62500, lastPrice=1)) == []
    # The row has its own mark price, which is not fresher.
    [filled] = told(line, position_change(currentQty=200, unrealisedCost=-500_000, unrealisedPnl=100_000))
    assert (filled.mark_price, filled.unrealized) == (62500, 500_000 - 320_000)
    assert told(line, position_change(markPrice=62500, unrealisedPnl=180_000)) == []


def test_without_a_row_of_its_instrument_the_mark_price_is_the_row_s():
    line = Line(Positions())
    line.feed(instruments(instrument("ETHUSD"), instrument("XBTUSD", multiplier=None)), positions_partial(position()))
    assert told(line, marked(62500)) == []  # what the contract is worth is not known
    [moved] = told(line, position_change(markPrice=51000, unrealisedPnl=161_760))
    assert (moved.mark_price, moved.unrealized) == (51000, 161_760)


def test_an_instrument_that_is_not_marked_yet_has_no_mark_price():
    positions = Positions()
    line = Line(positions)
    line.feed(positions_partial(position()))
    assert told(line, instruments(instrument(mark=0)), marked(None)) == []
    assert (positions["XBTUSD"].stale, positions["XBTUSD"].mark_price, line.asked) == (False, 50000, [])


def test_what_is_said_last_of_an_instrument_counts():
    positions = Positions()
    line = Line(positions)
    line.feed(positions_partial(position()), instruments(instrument(mark=62500)))
    assert (positions["XBTUSD"].mark_price, positions["XBTUSD"].unrealized) == (62500, 270_000)
    [unmarked] = told(line, instruments())  # not listed any more: the row's own mark price is left
    assert (unmarked.mark_price, unmarked.unrealized) == (50000, 150_000)
    halved = instrument(mark=62500, multiplier=-50_000_000)
    [listed] = told(line, instruments(halved))
    assert listed.unrealized == 750_000 - 3 * 80_000
    [unmarked] = told(line, TableMessage("instrument", "delete", [{"symbol": "XBTUSD"}], 3, "a"))
    assert unmarked.mark_price == 50000
    [listed] = told(line, TableMessage("instrument", "insert", [instrument(mark=62500)], 4, "a"))
    assert listed.unrealized == 270_000
    [listed] = told(line, instruments(halved))
    assert listed.unrealized == 510_000


def test_net_sums_by_currency():
    positions = Positions()
    dollars = position("XBTUSDT", currency="USDt", realisedPnl=5, unrealisedPnl=6)
    line = Line(positions)
    line.feed(positions_partial(position(), position("ETHUSD", realisedPnl=-5, unrealisedPnl=0), dollars))
    assert (positions.net("XBt"), positions.net("USDt"), positions.net("ETH")) == (149_620, 11, 0)


def test_a_loss_is_seen_at_once_and_told_once_until_the_last_partial_heals_it():
    positions = Positions()
    line = Line(positions)
    line.feed(positions_partial(position()), instruments(instrument()))
    line.lose()
    assert (positions.stale, positions["XBTUSD"].stale) == (True, True)
    [mark] = told(line, Disconnected(3, "a", 1006, ""))
    assert (mark.stale, mark.received, *money(mark)) == (True, 3, 300, -375, 150_000, 149_625)
    assert is_mark(mark)
    assert told(line, Connected(4, "a"), marked(1), position_change(currentQty=1)) == []
    assert told(line, positions_partial(position(currentQty=400), received=5)) == []  # the mark price is yet to come
    assert (positions["XBTUSD"].size, positions["XBTUSD"].stale) == (400, True)
    [healed] = told(line, instruments(instrument(), received=6))
    assert (healed.stale, healed.size, healed.received, positions.stale) == (False, 400, 6, False)


def test_a_position_that_is_not_listed_any_more_leaves_with_a_mark_of_size_0():
    positions = Positions()
    line = Line(positions)
    line.feed(positions_partial(position(), position("ETHUSD")))
    [gone] = told(line, positions_partial(position("ETHUSD"), received=5))
    assert (gone.symbol, gone.stale, gone.received, *money(gone)) == ("XBTUSD", True, 5, 0, -375, 0, -375)
    assert (gone.average_entry_price, gone.mark_price, "XBTUSD" in positions) == (None, None, False)
    key = {"account": ACCOUNT, "symbol": "ETHUSD", "strategy": "OneWay"}
    [gone] = told(line, TableMessage("position", "delete", [key], 6, "a"))
    assert (gone.symbol, gone.size, gone.stale, len(positions)) == ("ETHUSD", 0, True, 0)


@pytest.mark.parametrize("wrong", [{"currentQty": None}, {"currentQty": "5"}, {"realisedPnl": 0.5}, {"markPrice": []}])
def test_a_row_that_cannot_be_one_is_a_loss_of_state(wrong, caplog):
    positions = Positions()
    line = Line(positions)
    line.feed(positions_partial(position(), position("ETHUSD")), instruments(instrument()))
    with caplog.at_level(logging.WARNING, "bitmex_streams"):
        marks = told(line, position_change(**wrong))
    assert [(mark.symbol, mark.size, mark.stale) for mark in marks] == [("XBTUSD", 300, True), ("ETHUSD", 300, True)]
    assert line.asked == ["position"]
    assert next(iter(wrong)) in caplog.text
    assert told(line, marked(60000)) == []
    assert len(told(line, positions_partial(position(), position("ETHUSD")))) == 2


def test_a_mark_price_of_a_wrong_type_is_a_loss_of_the_instrument():
    line = Line(Positions())
    line.feed(positions_partial(position()), instruments(instrument()))
    [mark] = told(line, marked("60000"))
    assert (mark.stale, mark.mark_price, line.asked) == (True, 50000, ["instrument"])


def test_two_open_positions_in_one_symbol_are_refused_in_words(caplog):
    positions = Positions()
    line = Line(positions)
    with caplog.at_level(logging.WARNING, "bitmex_streams"):
        line.feed(positions_partial(position(strategy="Long"), position(strategy="Short", currentQty=-5)))
    assert "two positions in XBTUSD, of the strategies 'Long' and 'Short'" in caplog.text
    assert positions.stale
    assert len(told(line, positions_partial(position(strategy="Long"), position(strategy="OneWay") | FLAT))) == 1
    assert (positions.stale, positions["XBTUSD"].size) == (False, 300)


def test_a_second_account_is_an_error_in_words_unless_one_was_given():
    line = Line(Positions())
    line.feed(positions_partial(position()))
    with pytest.raises(ValueError, match=r"Positions is of one account, and 'position' tells of \[5, 273093\]"):
        line.feed(positions_partial(position(account=5), account=5, source="b"))
    positions = Positions(account=5)
    line = Line(positions)
    line.feed(positions_partial(position()))
    line.feed(positions_partial(position(account=5, currentQty=7), account=5, source="b"))
    assert positions["XBTUSD"].size == 7
    assert told(line, position_change(currentQty=6)) == []
    both = TableUpdate("position", "update", [position(account=5, currentQty=8), position(currentQty=6)], 3, "b")
    same, mine = positions.process(both)
    assert (same is both, mine.account, mine.size) == (True, 5, 8)


# --- as the executions since the stream began make them ---


def test_executions_make_positions_of_every_kind_of_contract():
    positions = Positions()
    line = Line(positions)
    line.feed(instruments(*map(instrument, CONTRACTS)), executions(trade("old", size=700)))
    assert (positions.stale, len(positions)) == (False, 0)  # what was before the stream began does not count
    update, bought = line.feed(executed(trade("1", "Buy", 300, 40000, fee=375)))
    assert update.table == "execution"
    assert bought == Position(
        "XBTUSD", ACCOUNT, "XBt", 300, 40000, 50000, None, -375, 150_000, 149_625, AT, 2, "a"
    )
    # Sold for 200000 what cost 250000, and 52 paid back for making the market: 49948 less than nothing
    [sold] = told(line, executed(trade("2", "Sell", 100, 50000, fee=-52)))
    assert money(sold) == (200, 250_000 - 200_000 - 375 + 52, 100_000, 149_677)
    # Quanto: -30 * 100 * 3200.05 = -9600150, marked at 50000
    [short] = told(line, executed(trade("3", "Sell", 30, 3200.05, "ETHUSD", fee=100)))
    assert (short.currency, *money(short)[:3]) == ("XBt", -30, -100, 9_600_150 - 150_000_000)
    # Linear, through zero: 2000 bought at 32122 for 64244000, 3000 sold at 33000
    line.feed(executed(trade("4", "Buy", 2000, 32122, "XBTUSDT")))
    [short] = told(line, executed(trade("5", "Sell", 3000, 33000, "XBTUSDT")))
    assert (short.currency, short.average_entry_price) == ("USDt", 33000)
    assert money(short)[:3] == (-1000, 66_000_000 - 64_244_000, 33_000_000 - 50_000_000)
    assert positions.net("USDt") == 1_756_000 - 17_000_000


def test_funding_is_realized_and_the_mark_price_is_followed():
    line = Line(Positions())
    line.feed(instruments(instrument()), executions(), executed(trade("1", size=300)))
    [funded] = told(line, executed(funding("2", 61)))
    assert money(funded) == (300, -61, 150_000, 149_939)
    [moved] = told(line, marked(62500))
    assert money(moved) == (300, -61, 270_000, 269_939)


def test_a_settlement_closes_what_is_open_at_its_price():
    line = Line(Positions())
    line.feed(instruments(instrument()), executions(), executed(trade("1", size=300)))
    [settled] = told(line, executed(trade("2", size=500, price=50000, fee=30) | {"execType": "Settlement", "side": ""}))
    assert money(settled) == (0, 150_000 - 30, 0, 149_970)


def test_an_execution_counts_once_and_others_than_trades_change_nothing():
    line = Line(Positions())
    line.feed(instruments(instrument()), executions(), executed(trade("1"), trade("1")))
    others = [trade(kind, execType=kind) for kind in ("New", "Canceled", "Replaced", "Rejected")]
    assert told(line, executed(trade("1"), *others)) == []


def test_executions_wait_for_their_instrument():
    positions = Positions()
    line = Line(positions)
    assert told(line, executions(), executed(trade("1"), trade("2", "Sell", 300)), executed(funding("3", 7))) == []
    [short] = told(line, instruments(instrument("ETHUSD"), instrument()))
    assert (short.symbol, *money(short)) == ("XBTUSD", -200, -7, -100_000, -100_007)


def test_executions_wait_for_an_instrument_that_is_listed_later():
    positions = Positions()
    line = Line(positions)
    line.feed(executions(), instruments(instrument("ETHUSD")), executed(trade("a", size=300)), executed(trade("b")))
    assert "XBTUSD" not in positions
    listed = TableMessage("instrument", "insert", [instrument()], 3, "a")
    [shown] = told(line, listed)
    assert (shown.size, shown.mark_price, shown.received) == (400, 50000, 3)
    assert told(line, marked(60000))[0].mark_price == 60000


def test_executions_do_not_wait_without_end(caplog):
    positions = Positions(keep=3)
    line = Line(positions)
    with caplog.at_level(logging.WARNING, "bitmex_streams"):
        line.feed(executions(), executed(*(trade(str(number)) for number in range(4))))
    assert "XBTUSD has no row in the table instrument; subscribe to it" in caplog.text
    assert positions.stale
    with pytest.raises(ValueError, match="an int of at least 1, not 0"):
        Positions(keep=0)


def test_spot_trades_make_no_position():
    positions = Positions()
    line = Line(positions)
    spot = instrument("XBT_USDT", typ="IFXXXP", settlCurrency="USDt", multiplier=1, lotSize=1000)
    bought = trade("1") | {"symbol": "XBT_USDT"}
    assert told(line, instruments(spot), executions(), executed(bought)) == []
    assert (len(positions), positions.stale) == (0, False)


def test_without_a_mark_price_nothing_is_unrealized():
    line = Line(Positions())
    [bought] = told(line, instruments(instrument(mark=None)), executions(), executed(trade("1")))
    assert (bought.mark_price, *money(bought)) == (None, 100, 0, 0, 0)


def test_where_the_exchange_tells_of_positions_it_is_believed():
    positions = Positions()
    line = Line(positions)
    line.feed(instruments(instrument(), instrument("ETHUSD")), executions())
    line.feed(executed(trade("1"), trade("2", "Buy", 5, 3000, "ETHUSD")))
    told_of, gone = told(line, positions_partial(position()))
    assert (told_of.symbol, told_of.size) == ("XBTUSD", 300)
    assert (gone.symbol, gone.size, gone.stale) == ("ETHUSD", 0, True)
    assert told(line, executed(trade("3")), marked(7, "ETHUSD")) == []
    assert (positions["XBTUSD"].size, len(positions)) == (300, 1)


def test_of_symbols_that_the_exchange_does_not_tell_of_the_executions_tell():
    positions = Positions()
    line = Line(positions)
    line.feed(instruments(instrument(), instrument("ETHUSD")), executions())
    line.feed(positions_partial(position(), symbol="XBTUSD"))
    line.feed(executed(trade("1"), trade("2", "Buy", 5, 3000, "ETHUSD")))
    assert (positions["XBTUSD"].size, positions["ETHUSD"].size) == (300, 5)
    [mark] = told(line, StateLost(3, "a", "why", "execution"))
    assert (mark.symbol, positions["XBTUSD"].stale) == ("ETHUSD", False)


# --- executions and gaps ---


def later(number):
    return to_iso(1_773_472_000_000_000_000 + number * 1_000_000_000)


def test_a_partial_that_reaches_back_to_what_was_known_tells_what_was_missed():
    positions = Positions()
    line = Line(positions)
    line.feed(instruments(instrument()), executions(trade("0", timestamp=later(0))))
    line.feed(executed(trade("1", timestamp=later(1))))
    line.lose()
    [mark] = told(line, Disconnected(3, "a", 1006, ""))
    assert (mark.stale, mark.size, positions["XBTUSD"].stale) == (True, 100, True)
    line.feed(Connected(4, "a"), instruments(instrument()))
    rows = [trade(str(number), timestamp=later(number)) for number in (3, -1, 1, 2, 0)]  # in no order
    [healed] = told(line, executions(*rows, received=5))
    assert (healed.stale, healed.size, positions.stale) == (False, 300, False)  # 2 and 3; -1 was before 0


def test_a_partial_that_does_not_reach_back_leaves_inventories_stale_for_good(caplog):
    positions = Positions()
    line = Line(positions)
    line.feed(instruments(instrument(), instrument("ETHUSD")), executions(trade("0")))
    line.feed(executed(trade("1")), StateLost(3, "a", "why", "execution"))
    with caplog.at_level(logging.WARNING, "bitmex_streams"):
        assert told(line, executions(trade("9"), received=5)) == []
    assert "no execution of the new partial of execution was known before" in caplog.text
    [first] = told(line, executed(trade("10"), trade("11", "Buy", 1, 3000, "ETHUSD")))
    assert (first.symbol, first.size, first.stale) == ("ETHUSD", 1, True)
    assert (positions["XBTUSD"].size, positions["XBTUSD"].stale) == (300, True)
    assert (positions["ETHUSD"].stale, positions.stale) == (True, True)
    # The exchange knows.
    [told_of] = [item for item in told(line, positions_partial(position())) if item.symbol == "XBTUSD"]
    assert (told_of.size, told_of.stale, positions.stale) == (300, False, False)


def test_an_empty_partial_after_a_gap_misses_nothing_where_nothing_was_ever_known():
    positions = Positions()
    line = Line(positions)
    line.feed(instruments(instrument()), executions(), StateLost(3, "a", "why", "execution"), executions())
    assert not positions.stale
    [bought] = told(line, executed(trade("1")))
    assert (bought.size, bought.stale) == (100, False)
    line.feed(StateLost(3, "a", "why", "execution"), executions())
    assert positions.stale


def test_topics_of_symbols_have_gaps_of_their_own():
    positions = Positions()
    line = Line(positions)
    line.feed(instruments(instrument(), instrument("ETHUSD")))
    line.feed(executions(symbol="XBTUSD"), executions(trade("e0", "Buy", 9, 1, "ETHUSD"), symbol="ETHUSD"))
    line.feed(executed(trade("1")), executed(trade("e1", "Buy", 5, 3000, "ETHUSD")))
    [mark] = told(line, StateLost(3, "a", "why", "execution:ETHUSD"))
    assert (mark.symbol, positions["XBTUSD"].stale) == ("ETHUSD", False)
    line.feed(executions(trade("e9", "Buy", 1, 3000, "ETHUSD"), symbol="ETHUSD"))
    assert (positions["ETHUSD"].stale, positions["XBTUSD"].stale) == (True, False)


def test_a_trade_that_cannot_be_read_is_asked_for_again_and_counts_once_it_can():
    positions = Positions()
    line = Line(positions)
    line.feed(instruments(instrument()), executions(), executed(trade("1", timestamp=later(1))))
    [mark] = told(line, executed(trade("2", lastQty=None)))
    assert (mark.stale, mark.size, line.asked) == (True, 100, ["execution"])
    rows = [trade("1", timestamp=later(1)), trade("2", size=200, timestamp=later(2))]
    [healed] = told(line, executions(*rows))
    assert (healed.stale, healed.size, positions.stale) == (False, 300, False)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lastQty": None},
        {"side": "up"},
        {"lastPx": 0},
        {"execComm": "1"},
        {"execCost": 0.5},
        {"symbol": 5},
        {"execID": 1},
    ],
)
def test_a_trade_that_can_never_be_read_leaves_the_inventory_stale(wrong, caplog):
    positions = Positions()
    line = Line(positions)
    line.feed(instruments(instrument()), executions(), executed(trade("1", timestamp=later(1))))
    line.feed(StateLost(3, "a", "why", "execution"))
    bad = trade("2", timestamp=later(2)) | wrong
    with caplog.at_level(logging.WARNING, "bitmex_streams"):
        line.feed(executions(trade("1", timestamp=later(1)), bad, trade("3", timestamp=later(3))))
    assert "positions may be wrong: an execution cannot be read" in caplog.text
    assert (positions["XBTUSD"].stale, positions["XBTUSD"].size, positions.stale) == (True, 200, True)


def test_executions_are_forgotten_in_the_order_they_came():
    positions = Positions(keep=2)
    line = Line(positions)
    line.feed(instruments(instrument()), executions())
    rows = [trade(str(number), timestamp=later(number)) for number in range(5)]
    line.feed(executed(*rows[:4]))
    line.feed(StateLost(3, "a", "why", "execution"), executions(*rows))
    assert (positions["XBTUSD"].size, positions.stale) == (500, False)
    assert len(positions._executions._known) == 2


def test_partials_of_the_real_exchange():
    positions, applier = Positions(), TableApplier()
    for name in ("position", "execution"):
        path = DATA / "messages" / f"{name}-1.json"
        if not path.exists():
            pytest.skip(f"no recorded message at {path} (set BITMEX_STREAMS_DATA)")
        sent = json.loads(path.read_text())
        message = TableMessage(
            name, "partial", sent["data"], 1, "a", sent["keys"], sent["types"], filter=sent["filter"]
        )
        for update in applier.process(message):
            assert positions.process(update) == [update]
    assert (positions.account, positions.stale, len(positions)) == (273093, False, 0)


# --- on the embedded exchange ---


def books_of(account):
    """What the exchange's own books say of an account, as `money` and average entry price tell it."""
    return {
        symbol: (
            row["currentQty"],
            row["realisedPnl"],
            row["unrealisedPnl"],
            row["realisedPnl"] + row["unrealisedPnl"],
            row["avgEntryPrice"],
        )
        for symbol, row in account.positions.items()
        if row["currentQty"] or row["realisedPnl"]
    }


def found_in(positions):
    return {
        symbol: (*money(found), found.average_entry_price)
        for symbol, found in positions.items()
        if (found.size or found.realized) and not found.stale
    }


async def eventually(condition):
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - what a connection has yet to read has no event here
            await trio.sleep(0.01)


@pytest.mark.parametrize("connections", [1, 3])
async def test_a_day_of_trading_ends_with_the_books_of_the_exchange_to_the_satoshi(connections):
    """Told of by the exchange, and found out of executions alone, with funding in between; and with a connection lost
    now and then, while the account trades on.
    """
    told_of, found_out, margin, tickers = followers = Positions(), Positions(), Margin(), Tickers()
    narrowed = TableFilter("execution", "instrument")  # behind it nothing is known of the table position
    sections = Decoder(), TableApplier(), told_of, margin, tickers, narrowed, found_out
    topics = ["execution", "position", "margin", "instrument", "quote"]
    start = datetime(2026, 3, 14, 3, 30, tzinfo=UTC)
    dice = Random(7)
    async with open_exchange(speed=0, rate=1, levels=30, symbols=tuple(CONTRACTS), start_time=start) as exchange:
        account = exchange.open_account()

        def trade_on():
            symbol = dice.choice(list(CONTRACTS))
            account.submit(symbol, dice.choice(["Buy", "Sell"]), CONTRACTS[symbol]["lotSize"] * dice.randint(1, 40))
            exchange.advance(dice.randint(1, 90))

        for number in range(connections):
            connection = Connection(
                exchange.url, subscribe=topics, api_key=account.api_key, api_secret=account.api_secret
            )
            async with Pipeline.create(connection, *sections) as pipeline:
                pipeline.start()
                await eventually(lambda: not any(follower.stale for follower in followers))
                for _ in range(60 // connections):
                    trade_on()
                    await exchange.settled()
                expected = books_of(account)
                with suppress(trio.TooSlowError):  # the comparisons say what is different
                    await eventually(
                        lambda: found_in(told_of) == found_in(found_out) == expected  # noqa: B023
                        and {currency: state.row for currency, state in margin.items()} == account.margins
                    )
                assert found_in(told_of) == expected
                assert found_in(found_out) == expected
                assert {currency: state.row for currency, state in margin.items()} == account.margins
                for currency, state in margin.items():
                    in_currency = [found for found in told_of.values() if found.currency == currency]
                    assert state.unrealized == sum(found.unrealized for found in in_currency)
                    assert told_of.net(currency) == state.unrealized + sum(found.realized for found in in_currency)
                for symbol, found in told_of.items():
                    if found.size:
                        assert tickers[symbol].mark_price == found.mark_price
                assert not any(follower.stale for follower in followers)
            if number < connections - 1:
                for _ in range(5):
                    trade_on()
        assert len(expected) == 3
        assert any(row["execType"] == "Funding" for row in account.executions)


# --- whatever comes ---

symbols = st.sampled_from(sorted(CONTRACTS))
fills = st.tuples(symbols, st.sampled_from(["Buy", "Sell"]), st.integers(1, 9), st.integers(1, 9), st.integers(-9, 9))
events = st.lists(
    st.one_of(
        st.tuples(st.just("fill"), fills),
        st.tuples(st.just("funding"), st.tuples(symbols, st.integers(-9, 9))),
        st.tuples(st.just("mark"), st.tuples(symbols, st.integers(1, 9))),
        st.tuples(st.just("lost"), st.just(())),
        st.tuples(st.just("partial"), st.integers(1, 12)),
    ),
    max_size=40,
)


@given(events)
def test_inventories_are_those_of_all_executions_whatever_was_missed_meanwhile_or_stale(events):
    """The stream is lost and found again; executions happen all the time, and a partial tells the last of them."""
    positions = Positions()
    line = Line(positions)
    happened = []
    books = {symbol: Inventory(Contract.from_row(instrument(symbol))) for symbol in CONTRACTS}
    marks = dict.fromkeys(CONTRACTS, 5000)
    live, missed = True, False
    seen = 0  # how many of what happened were told
    last = {}
    line.feed(instruments(*(instrument(symbol, 5000) for symbol in CONTRACTS)), executions())
    for number, (kind, values) in enumerate(events):
        messages = []
        if kind == "fill":
            symbol, side, lots, price, fee = values
            size = lots * CONTRACTS[symbol]["lotSize"]
            row = trade(str(number), side, size, price * 1000, symbol, fee, timestamp=later(number))
            books[symbol].fill(side, size, price * 1000, fee=fee)
            happened.append(row)
            messages = [executed(row, received=number)]
        elif kind == "funding":
            symbol, fee = values
            happened.append(funding(str(number), fee, symbol) | {"timestamp": later(number)})
            books[symbol].funding(fee)
            messages = [executed(happened[-1], received=number)]
        elif kind == "mark":
            symbol, price = values
            marks[symbol] = price * 1000
            messages = [marked(price * 1000, symbol, number)]
        elif kind == "lost":
            messages = [StateLost(number, "a", "why", "execution")]
            live = False
        else:
            rows = happened[-values:]
            missed = missed or bool(happened and (not seen or len(happened) - seen >= len(rows)))
            messages = [executions(*rows, received=number)]
            live, seen = True, len(happened)
        if live:
            seen = len(happened)
        for told_of in told(line, *messages):
            last[told_of.symbol] = told_of
        assert positions.stale == (missed or not live)
        for symbol, found in positions.items():
            assert found.stale == (missed or not live)
            if not found.stale:
                book = books[symbol]
                assert (found.size, found.realized) == (book.size, book.realized)
                assert found.unrealized == (book.unrealized(marks[symbol]) if book.size else 0)
                assert found.average_entry_price == book.average_entry_price
            assert replace(found, received=0, timestamp=None) == replace(last[symbol], received=0, timestamp=None) or (
                found.stale and last[symbol].stale
            )
