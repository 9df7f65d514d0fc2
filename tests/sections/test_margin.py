"""Margin: each currency's state, each change once, and stale from a loss to the next partial."""

import json
import logging
import os
from pathlib import Path

import pytest

from bitmex_streams.messages import Connected, Disconnected, MarginState, TableMessage, is_mark
from bitmex_streams.sections.margin import Margin
from bitmex_streams.sections.tables import TableApplier
from tests.sections.test_follower import Line

ACCOUNT = 273093
DATA = Path(os.environ.get("BITMEX_STREAMS_DATA") or Path(__file__).parents[3] / "shared" / "data")


def row(currency="XBt", account=ACCOUNT, **fields):
    return {
        "account": account,
        "currency": currency,
        "riskLimit": 1_000_000_000_000,
        "amount": 10_000_000,
        "initMargin": 61_000,
        "maintMargin": 31_000,
        "realisedPnl": -155,
        "unrealisedPnl": 310,
        "walletBalance": 9_999_845,
        "marginBalance": 10_000_155,
        "marginLeverage": 0.0311,
        "availableMargin": 9_939_155,
        "withdrawableMargin": 9_938_845,
        "timestamp": "2026-03-14T07:03:58.114Z",
    } | fields


def message(action, *rows, received=2, source="a", **fields):
    return TableMessage("margin", action, rows, received, source, **fields)


def partial(*rows, received=1, source="a", account=ACCOUNT):
    keys = ["account", "currency"]
    return message("partial", *rows, received=received, source=source, keys=keys, filter={"account": account})


def change(currency="XBt", account=ACCOUNT, received=2, source="a", **fields):
    return message("update", {"account": account, "currency": currency} | fields, received=received, source=source)


def told(line, *items):
    return [out for out in line.feed(*items) if type(out) is MarginState]


def test_each_row_of_a_partial_is_told_and_can_be_read():
    margin = Margin()
    line = Line(margin)
    assert margin.stale
    states = told(line, partial(row(), row("USDt", walletBalance=5, leverage=None)))
    assert [state.currency for state in states] == ["XBt", "USDt"]
    assert states[0] == MarginState(
        account=ACCOUNT,
        currency="XBt",
        wallet_balance=9_999_845,
        margin_balance=10_000_155,
        available_margin=9_939_155,
        withdrawable_margin=9_938_845,
        initial_margin=61_000,
        maintenance_margin=31_000,
        realized=-155,
        unrealized=310,
        leverage=0.0311,
        timestamp="2026-03-14T07:03:58.114Z",
        received=1,
        source="a",
        row=row(),
    )
    assert not margin.stale
    assert margin["XBt"] is states[0]
    assert (list(margin), len(margin), "USDt" in margin, margin.get("ETH")) == (["XBt", "USDt"], 2, True, None)
    with pytest.raises(KeyError, match="no margin of 'ETH' is known"):
        margin["ETH"]


def test_an_update_is_told_right_behind_what_brought_it_and_as_a_whole():
    margin = Margin()
    line = Line(margin)
    line.feed(partial(row()))
    update, state = line.feed(change(marginBalance=10_000_200, timestamp="2026-03-14T07:03:59.000Z"))
    assert update.table == "margin"
    assert (state.margin_balance, state.wallet_balance, state.received) == (10_000_200, 9_999_845, 2)
    assert state.row["walletBalance"] == 9_999_845
    assert margin["XBt"] is state


def test_a_repeated_partial_tells_what_is_different_only():
    line = Line(Margin())
    line.feed(partial(row(), row("USDt")))
    [state] = told(line, partial(row(), row("USDt", walletBalance=1), received=5))
    assert (state.currency, state.wallet_balance) == ("USDt", 1)


def test_a_loss_is_seen_at_once_and_told_once_until_the_next_partial():
    margin = Margin()
    line = Line(margin)
    line.feed(partial(row(), row("USDt")))
    line.lose()
    assert margin.stale
    assert margin["XBt"].stale
    assert margin["XBt"].wallet_balance == 9_999_845
    assert all(state.stale for state in margin.values())
    marks = told(line, Disconnected(3, "a", 1006, ""))
    assert [(mark.currency, mark.stale, mark.received) for mark in marks] == [("XBt", True, 3), ("USDt", True, 3)]
    assert all(map(is_mark, marks))
    assert told(line, Connected(4, "a"), change(walletBalance=1)) == []
    assert margin.stale
    healed = told(line, partial(row(), row("USDt"), received=5))
    assert [(state.currency, state.stale) for state in healed] == [("XBt", False), ("USDt", False)]
    assert not margin.stale
    assert not margin["XBt"].stale


def test_a_currency_that_is_not_listed_any_more_leaves_with_a_mark():
    margin = Margin()
    line = Line(margin)
    line.feed(partial(row(), row("USDt")))
    [gone] = told(line, partial(row(), received=5))
    assert (gone.currency, gone.stale, gone.received) == ("USDt", True, 5)
    assert list(margin) == ["XBt"]
    [gone] = told(line, message("delete", {"account": ACCOUNT, "currency": "XBt"}))
    assert (gone.currency, gone.stale, len(margin)) == ("XBt", True, 0)


@pytest.mark.parametrize(
    "wrong",
    [{"walletBalance": None}, {"marginBalance": "12"}, {"availableMargin": 0.5}, {"timestamp": 5}],
)
def test_a_row_that_cannot_be_one_is_a_loss_of_state(wrong, caplog):
    margin = Margin()
    line = Line(margin)
    line.feed(partial(row("USDt")))
    with caplog.at_level(logging.WARNING, "bitmex_streams"):
        [mark] = told(line, message("insert", row() | wrong))
    assert (mark.currency, mark.stale) == ("USDt", True)
    assert line.asked == ["margin"]
    assert next(iter(wrong)) in caplog.text
    assert margin.stale
    told(line, partial(row("USDt")))
    assert not margin.stale


@pytest.mark.parametrize("wrong", [{"account": "me"}, {"currency": None}])
def test_a_partial_without_what_identifies_a_row_cannot_be_taken(wrong):
    margin = Margin()
    line = Line(margin)
    assert told(line, partial(row() | wrong)) == []
    assert margin.stale
    assert line.asked == ["margin"]


def test_a_partial_that_cannot_be_taken_leaves_what_was_known_stale():
    margin = Margin()
    line = Line(margin)
    line.feed(partial(row()))
    [mark] = told(line, partial(row(walletBalance=7), row("USDt", walletBalance=[])))
    assert (mark.wallet_balance, mark.stale) == (9_999_845, True)
    assert list(margin) == ["XBt"]


def test_a_second_account_is_an_error_in_words():
    line = Line(Margin())
    line.feed(partial(row()))
    with pytest.raises(ValueError, match=r"Margin is of one account, and 'margin' tells of \[5, 273093\]"):
        line.feed(partial(row(account=5), source="b", account=5))
    with pytest.raises(TypeError, match="an account is an int"):
        Margin("273093")


def test_of_two_accounts_the_given_one_is_followed():
    margin = Margin(account=5)
    line = Line(margin)
    items = line.feed(partial(row()), partial(row(account=5, walletBalance=1), source="b", account=5))
    assert [type(item).__name__ for item in items] == ["TableUpdate", "TableUpdate", "MarginState"]
    assert (margin["XBt"].account, margin["XBt"].wallet_balance) == (5, 1)
    assert told(line, change(walletBalance=3), Disconnected(3, "a", 1006, "")) == []
    assert not margin.stale


def test_a_message_that_no_applier_has_seen_is_an_error_in_words():
    with pytest.raises(TypeError, match="Margin works on the TableUpdate items of a TableApplier"):
        Margin().process(partial(row()))


def test_a_section_is_itself_whatever_it_holds():
    one, other = Margin(), Margin()
    assert one == one
    assert one != other
    assert len({one, other}) == 2


def test_a_partial_of_the_real_exchange():
    path = DATA / "messages" / "margin-1.json"
    if not path.exists():
        pytest.skip(f"no recorded message at {path} (set BITMEX_STREAMS_DATA)")
    sent = json.loads(path.read_text())
    margin = Margin()
    [update] = TableApplier().process(
        TableMessage("margin", "partial", sent["data"], 1, "a", sent["keys"], sent["types"], filter=sent["filter"])
    )
    _, state = margin.process(update)
    assert (state.currency, state.wallet_balance, state.available_margin, state.leverage) == ("XBt", 2, 2, 0)
    assert (margin.account, state.account) == (273093, 273093)
