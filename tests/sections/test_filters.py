"""SymbolFilter and TableFilter: what passes, what is narrowed, and that nothing handed in is changed."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitmex_streams.messages import (
    Bar,
    BookUpdate,
    Connected,
    Disconnected,
    Fill,
    FillsMissing,
    MarginState,
    OrderState,
    Pong,
    Position,
    StateLost,
    Subscribed,
    TableMessage,
    TableUpdate,
    Ticker,
)
from bitmex_streams.sections.filters import SymbolFilter, TableFilter

MIXED = [{"symbol": "XBTUSD", "id": 1}, {"symbol": "ETHUSD", "id": 2}, {"symbol": "XBTUSD", "id": 3}]


def book(symbol, stale=False, table="orderBookL2"):
    return BookUpdate(symbol, None, None, None, stale, None, 0, None, table)


def of_an_account(symbol, stale=False):
    """One item of each kind that is of one symbol of an account, and a ticker."""
    numbers = dict.fromkeys(["size", "leaves", "filled", "realized", "unrealized", "net"], 0)
    values = numbers | {"symbol": symbol, "stale": stale}
    return [
        kind(**{field: values.get(field) for field in kind.__struct_fields__})
        for kind in (OrderState, Fill, Position, Ticker)
    ]


def margin_state(currency):
    return MarginState(**dict.fromkeys(MarginState.__struct_fields__) | {"currency": currency})


def through(section, *items):
    return [out for item in items for out in section.process(item)]


# --- SymbolFilter ---


def test_rows_of_other_symbols_are_taken_out_of_a_fresh_message():
    message = TableMessage("orderBookL2", "insert", MIXED, 5, "a")
    before = copy.deepcopy(message)
    [narrowed] = through(SymbolFilter("XBTUSD"), message)
    assert narrowed.rows == [MIXED[0], MIXED[2]]
    assert (narrowed.table, narrowed.action, narrowed.received, narrowed.source) == ("orderBookL2", "insert", 5, "a")
    assert message == before


def test_a_message_of_wanted_symbols_only_passes_as_the_same_object():
    message = TableMessage("trade", "insert", MIXED, 5)
    assert through(SymbolFilter("XBTUSD", "ETHUSD"), message)[0] is message


def test_a_delta_of_other_symbols_only_is_left_out():
    assert through(SymbolFilter("SOLUSDT"), TableMessage("trade", "insert", MIXED, 5)) == []


def test_a_partial_of_the_whole_table_passes_without_rows_and_still_covers_the_symbol():
    partial = TableMessage("orderBookL2", "partial", MIXED, 5, keys=["symbol", "id", "side"], filter={})
    [narrowed] = through(SymbolFilter("SOLUSDT"), partial)
    assert (narrowed.rows, narrowed.filter, narrowed.keys) == ([], {}, ["symbol", "id", "side"])


def test_a_partial_of_another_symbol_is_left_out_even_when_it_is_empty():
    partial = TableMessage("trade", "partial", [], 5, filter={"symbol": "ETHUSD"})
    assert through(SymbolFilter("XBTUSD"), partial) == []
    assert through(SymbolFilter("ETHUSD"), partial) == [partial]


def test_an_update_is_narrowed_with_the_delta_that_led_to_it():
    update = TableUpdate("instrument", "update", MIXED, 5, "a", MIXED, ("symbol",), generation=3)
    [narrowed] = through(SymbolFilter("ETHUSD"), update)
    assert narrowed.rows == narrowed.delta == [MIXED[1]]
    assert (narrowed.keys, narrowed.generation) == (("symbol",), 3)


def test_books_and_bars_pass_by_their_symbol():
    bar = Bar("XBTUSD", "1m", "", 1, 1, 1, 1, 1, 1, 1, True, 0)
    mine, other = book("XBTUSD"), book("ETHUSD")
    assert through(SymbolFilter("XBTUSD"), mine, other, bar) == [mine, bar]
    assert through(SymbolFilter("ETHUSD"), bar) == []


def test_what_is_of_an_account_passes_by_its_symbol_marks_among_it():
    mine = [*of_an_account("XBTUSD"), *of_an_account("XBTUSD", stale=True)]
    others = [*of_an_account("ETHUSD"), *of_an_account("ETHUSD", stale=True)]
    assert through(SymbolFilter("XBTUSD"), *mine, *others) == mine
    assert through(SymbolFilter("ETHUSD"), *mine, *others) == others
    assert through(SymbolFilter("XBTUSD", "ETHUSD"), *mine, *others) == [*mine, *others]


def test_missing_fills_of_any_symbol_concern_all():
    any_symbol, mine = FillsMissing(1, "a", "why"), FillsMissing(1, "a", "why", symbol="XBTUSD")
    other = FillsMissing(1, "a", "why", symbol="ETHUSD")
    assert through(SymbolFilter("XBTUSD"), any_symbol, mine, other) == [any_symbol, mine]


def test_marks_of_other_symbols_are_narrowed_away_and_all_others_pass():
    gone = [
        book("ETHUSD", stale=True),
        TableUpdate("trade", "stale", (), 1, filter={"symbol": "ETHUSD"}),
        StateLost(1, "a", "why", "trade:ETHUSD"),
    ]
    kept = [
        book("XBTUSD", stale=True),
        TableUpdate("trade", "stale", (), 1, filter={"symbol": "XBTUSD"}),
        TableUpdate("trade", "stale", (), 1, filter={}),
        StateLost(1, "a", "why", "trade:XBTUSD"),
        StateLost(1, "a", "why", "trade"),
        StateLost(1, "a", "why"),
        Connected(1),
        Disconnected(2),
    ]
    assert through(SymbolFilter("XBTUSD"), *gone, *kept) == kept


def test_what_has_no_symbol_passes():
    margin = [TableMessage("margin", "update", [{"account": 1}], 1), margin_state("XBt")]
    items = [*margin, Pong(1), Subscribed("trade", 1), 7, "text", None]
    assert through(SymbolFilter("XBTUSD"), *items) == items


@pytest.mark.parametrize("symbol", [[], {}, ["XBTUSD"], 1, None])
def test_what_is_no_symbol_is_none_whatever_was_sent(symbol):
    odd = {"symbol": symbol}
    items = [
        TableMessage("trade", "insert", [odd], 1),
        TableMessage("trade", "partial", [odd], 1, filter=odd),
        TableUpdate("trade", "insert", [odd], 1, "a", [odd]),
    ]
    assert through(SymbolFilter("XBTUSD"), *items) == items
    [narrowed] = through(SymbolFilter("XBTUSD"), TableMessage("trade", "insert", [odd, *MIXED], 1))
    assert narrowed.rows == [odd, MIXED[0], MIXED[2]]


@given(st.lists(st.sampled_from(["A", "B", "C", None])), st.sets(st.sampled_from("ABC"), min_size=1))
def test_narrowing_by_symbol_is_a_filter_on_the_rows(symbols, wanted):
    rows = [{"id": number} | ({"symbol": symbol} if symbol else {}) for number, symbol in enumerate(symbols)]
    expected = [row for row in rows if "symbol" not in row or row["symbol"] in wanted]
    out = through(SymbolFilter(*wanted), TableMessage("t", "insert", rows, 1))
    assert [row for message in out for row in message.rows] == expected


# --- TableFilter ---


def test_messages_updates_and_books_pass_by_their_table():
    kept = [
        TableMessage("trade", "insert", MIXED, 1),
        TableUpdate("trade", "stale", (), 1, filter={}),
        book("X", table="trade"),
    ]
    gone = [
        TableMessage("quote", "insert", MIXED, 1), TableUpdate("quote", "stale", (), 1, filter={}), book("X"),
    ]
    assert through(TableFilter("trade"), *kept, *gone) == kept
    assert through(TableFilter("quote", "orderBookL2"), *kept, *gone) == gone


def test_marks_of_other_tables_are_narrowed_away_and_all_others_pass():
    kept = [StateLost(1, "a", "why", "trade:XBTUSD"), StateLost(1, "a", "why", "trade"), StateLost(1, "a", "why"),
            Connected(1), Disconnected(1), Pong(1), 7]
    assert through(TableFilter("trade"), StateLost(1, "a", "why", "quote"), *kept) == kept


def test_what_is_of_an_account_is_of_no_table_and_passes():
    items = [*of_an_account("XBTUSD"), margin_state("XBt"), FillsMissing(1, "a", "why")]
    assert through(TableFilter("trade"), *items) == items


# --- both ---


@pytest.mark.parametrize("section", [SymbolFilter, TableFilter])
def test_nothing_to_let_through_is_an_error(section):
    with pytest.raises(ValueError, match="at least one"):
        section()


@pytest.mark.parametrize("section", [SymbolFilter, TableFilter])
def test_a_topic_in_place_of_a_name_is_an_error_that_shows_the_way(section):
    with pytest.raises(ValueError, match=r"trade:XBTUSD.*give \w+ the bare"):
        section("trade:XBTUSD")


@pytest.mark.parametrize("section", [SymbolFilter, TableFilter])
def test_a_list_of_names_is_an_error_that_shows_the_way(section):
    with pytest.raises(TypeError, match="as a str"):
        section(["XBTUSD"])
