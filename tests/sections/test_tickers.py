"""Tickers: one row per symbol of two tables, each change once, and stale where either table is."""

import json
import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bitmex_streams.messages import Connected, Disconnected, StateLost, TableMessage, Ticker, is_mark
from bitmex_streams.sections.tables import TableApplier
from bitmex_streams.sections.tickers import Tickers
from tests.sections.test_follower import Line

DATA = Path(os.environ.get("BITMEX_STREAMS_DATA") or Path(__file__).parents[3] / "shared" / "data")
AT = "2026-03-14T07:03:58.114Z"


def instrument(symbol="XBTUSD", **fields):
    return {
        "symbol": symbol,
        "state": "Open",
        "typ": "FFWCSX",
        "lotSize": 100,
        "multiplier": -100_000_000,
        "settlCurrency": "XBt",
        "isInverse": True,
        "fundingTimestamp": "2026-03-14T12:00:00.000Z",
        "fundingRate": 0.0001,
        "indicativeFundingRate": 0.00015,
        "volume24h": 51_000_000,
        "turnover24h": 159_000_000_000,
        "lastPrice": 31964.5,
        "bidPrice": 31964,
        "askPrice": 31964.5,
        "openInterest": 512_000_000,
        "markPrice": 31963.1234,
        "indicativeSettlePrice": 31962.87,
        "timestamp": AT,
    } | fields


def quote(symbol="XBTUSD", bid=31965, ask=31965.5, timestamp=AT, **fields):
    return {
        "timestamp": timestamp,
        "symbol": symbol,
        "bidSize": 100,
        "bidPrice": bid,
        "askPrice": ask,
        "askSize": 200,
    } | fields


def instruments(*rows, symbol=None, received=1, source="a"):
    filter = {"symbol": symbol} if symbol else {}
    return TableMessage("instrument", "partial", rows, received, source, ["symbol"], filter=filter)


def quotes(*rows, symbol=None, received=1, source="a"):
    filter = {"symbol": symbol} if symbol else {}
    attributes = {"timestamp": "sorted"}
    return TableMessage("quote", "partial", rows, received, source, [], attributes=attributes, filter=filter)


def change(symbol="XBTUSD", received=2, source="a", **fields):
    return TableMessage("instrument", "update", [{"symbol": symbol} | fields], received, source)


def quoted(*rows, received=2, source="a"):
    return TableMessage("quote", "insert", rows, received, source)


def told(line, *items):
    return [out for out in line.feed(*items) if type(out) is Ticker]


def test_of_the_table_instrument_all_but_sizes_is_known():
    tickers = Tickers()
    line = Line(tickers)
    assert tickers.stale
    [ticker] = told(line, instruments(instrument()))
    assert ticker == Ticker(
        symbol="XBTUSD",
        bid=31964,
        bid_size=None,
        ask=31964.5,
        ask_size=None,
        last=31964.5,
        mark_price=31963.1234,
        index_price=31962.87,
        funding_rate=0.0001,
        predicted_funding_rate=0.00015,
        funding_timestamp="2026-03-14T12:00:00.000Z",
        open_interest=512_000_000,
        volume_24h=51_000_000,
        timestamp=AT,
        received=1,
        source="a",
    )
    assert tickers["XBTUSD"] is ticker
    assert not tickers.stale
    with pytest.raises(KeyError, match="no ticker of 'ETHUSD' is known"):
        tickers["ETHUSD"]


def test_of_the_table_quote_alone_bid_and_ask_are_known():
    tickers = Tickers()
    line = Line(tickers)
    [ticker] = told(line, quotes(quote()))
    assert (ticker.bid, ticker.bid_size, ticker.ask, ticker.ask_size) == (31965, 100, 31965.5, 200)
    assert (ticker.last, ticker.mark_price, ticker.open_interest) == (None, None, None)


def test_quotes_give_bid_and_ask_and_the_instrument_the_rest():
    tickers = Tickers()
    line = Line(tickers)
    line.feed(instruments(instrument()), quotes(quote(bid=None, bidSize=None)))
    ticker = tickers["XBTUSD"]
    assert (ticker.bid, ticker.bid_size, ticker.ask, ticker.mark_price) == (None, None, 31965.5, 31963.1234)
    assert told(line, change(bidPrice=1, askPrice=2)) == []
    update, ticker = line.feed(change(markPrice=31963.5, timestamp="2026-03-14T07:03:59.000Z"))
    assert update.table == "instrument"
    assert (ticker.mark_price, ticker.ask, ticker.timestamp) == (31963.5, 31965.5, "2026-03-14T07:03:59.000Z")
    [ticker] = told(line, quoted(quote(bid=31966, timestamp="2026-03-14T07:04:00.000Z"), received=7))
    assert (ticker.bid, ticker.mark_price, ticker.received) == (31966, 31963.5, 7)
    assert ticker.timestamp == "2026-03-14T07:04:00.000Z"
    assert told(line, quoted(quote(bid=31966, timestamp="2026-03-14T07:05:00.000Z"))) == []  # the same


def test_each_changed_symbol_of_a_message_is_told():
    line = Line(Tickers())
    line.feed(instruments(instrument(), instrument("ETHUSD"), instrument(".BXBT")))
    rows = [
        {"symbol": "XBTUSD", "lastPrice": 1},
        {"symbol": "ETHUSD", "turnover24h": 5},
        {"symbol": ".BXBT", "lastPrice": 3},
    ]
    tickers = told(line, TableMessage("instrument", "update", rows, 2, "a"))
    assert [(ticker.symbol, ticker.last) for ticker in tickers] == [("XBTUSD", 1), (".BXBT", 3)]


def test_a_partial_of_quotes_gives_the_latest_of_each_symbol():
    tickers = Tickers()
    late, early = quote(bid=2, timestamp="2026-03-14T07:04:00.000Z"), quote(bid=1, timestamp="2026-03-14T07:03:00.000Z")
    assert [ticker.bid for ticker in told(Line(tickers), quotes(late, early, quote("ETHUSD", bid=3)))] == [2, 3]


def test_a_ticker_is_stale_while_either_of_its_tables_is():
    tickers = Tickers()
    line = Line(tickers)
    line.feed(instruments(instrument(), instrument("ETHUSD")), quotes(quote(), symbol="XBTUSD"))
    line.lose()
    assert tickers.stale
    assert tickers["XBTUSD"].stale
    marks = told(line, Disconnected(3, "a", 1006, ""))
    assert [(mark.symbol, mark.stale, mark.bid, mark.received) for mark in marks] == [
        ("XBTUSD", True, 31965, 3),
        ("ETHUSD", True, 31964, 3),
    ]
    assert all(map(is_mark, marks))
    assert told(line, Connected(4, "a"), change(lastPrice=1), quoted(quote(bid=1))) == []
    healed = told(line, instruments(instrument(lastPrice=7), instrument("ETHUSD"), received=5))
    assert [(ticker.symbol, ticker.stale) for ticker in healed] == [("ETHUSD", False)]  # the quotes have yet to come
    assert (tickers["XBTUSD"].stale, tickers["XBTUSD"].last, tickers["ETHUSD"].stale) == (True, 7, False)
    assert tickers.stale
    [healed] = told(line, quotes(quote(bid=9), symbol="XBTUSD", received=6))
    assert (healed.symbol, healed.stale, healed.last, healed.bid) == ("XBTUSD", False, 7, 9)
    assert not tickers.stale


def test_the_loss_of_one_topic_is_not_the_loss_of_another():
    tickers = Tickers()
    line = Line(tickers)
    line.feed(instruments(instrument()), quotes(quote(), symbol="XBTUSD"), quotes(quote("ETHUSD"), symbol="ETHUSD"))
    [mark] = told(line, StateLost(3, "a", "why", "quote:ETHUSD"))
    assert (mark.symbol, mark.stale) == ("ETHUSD", True)
    assert (tickers["XBTUSD"].stale, tickers.stale, line.asked) == (False, True, ["quote:ETHUSD"])


def test_a_partial_without_a_quote_of_a_symbol_heals_it_too():
    tickers = Tickers()
    line = Line(tickers)
    line.feed(instruments(instrument()), quotes(quote(), quote("ETHUSD")))
    line.feed(StateLost(3, "a", "why", "quote"))
    ticker, gone = told(line, quotes(received=4))
    assert (ticker.symbol, ticker.stale, ticker.bid, ticker.bid_size) == ("XBTUSD", False, 31964, None)
    assert (gone.symbol, gone.stale, "ETHUSD" in tickers) == ("ETHUSD", True, False)


def test_a_symbol_that_is_not_listed_any_more_leaves_with_a_mark():
    tickers = Tickers()
    line = Line(tickers)
    line.feed(instruments(instrument(), instrument("XBTH26")))
    [gone] = told(line, instruments(instrument(), received=5))
    assert (gone.symbol, gone.stale, gone.received, list(tickers)) == ("XBTH26", True, 5, ["XBTUSD"])
    [gone] = told(line, TableMessage("instrument", "delete", [{"symbol": "XBTUSD"}], 6, "a"))
    assert (gone.symbol, gone.stale, len(tickers)) == ("XBTUSD", True, 0)


@pytest.mark.parametrize(
    "wrong", [{"markPrice": "31964"}, {"openInterest": 0.5}, {"fundingTimestamp": 7}, {"lastPrice": []}]
)
def test_a_field_of_a_wrong_type_is_a_loss_of_state(wrong, caplog):
    tickers = Tickers()
    line = Line(tickers)
    line.feed(instruments(instrument(), instrument("ETHUSD")))
    with caplog.at_level(logging.WARNING, "bitmex_streams"):
        marks = told(line, change(**wrong))
    assert [(mark.symbol, mark.stale) for mark in marks] == [("XBTUSD", True), ("ETHUSD", True)]
    assert marks[0].mark_price == 31963.1234
    assert line.asked == ["instrument"]
    assert next(iter(wrong)) in caplog.text
    assert len(told(line, instruments(instrument(), instrument("ETHUSD")))) == 2
    assert not tickers.stale


def test_a_row_without_a_symbol_is_a_loss_of_state():
    tickers = Tickers()
    line = Line(tickers)
    line.feed(quotes(quote()))
    [mark] = told(line, quoted(quote() | {"symbol": None}))
    assert (mark.symbol, mark.stale, line.asked) == ("XBTUSD", True, ["quote"])


def test_partials_of_the_real_exchange():
    tickers = Tickers()
    applier = TableApplier()
    for name in ("instrument", "quote"):
        path = DATA / "messages" / f"{name}-1.json"
        if not path.exists():
            pytest.skip(f"no recorded message at {path} (set BITMEX_STREAMS_DATA)")
        sent = json.loads(path.read_text())
        message = TableMessage(
            name, "partial", sent["data"], 1, "a", sent["keys"], sent["types"], filter=sent["filter"]
        )
        for update in applier.process(message):
            tickers.process(update)
    tron, axie, index = tickers["TRXUSDT"], tickers["AXSUSD"], tickers[".BPENGUT_NEXT"]
    assert (tron.bid, tron.ask, tron.last, tron.mark_price, tron.index_price) == (
        0.33591,
        0.3363,
        0.33647,
        0.336456,
        0.33643,
    )
    assert (tron.funding_rate, tron.open_interest, tron.volume_24h) == (0.0001, 23527900, 4949200)
    assert (axie.bid, axie.bid_size, axie.ask, axie.ask_size, axie.last) == (2.06, 126397, 2.07, 125941, None)
    assert (index.last, index.mark_price, index.bid, index.funding_rate) == (0.02781, 0.02781, None, None)


# --- whatever comes ---

symbols = st.sampled_from(["XBTUSD", "ETHUSD", ".BXBT"])
price = st.none() | st.integers(1, 3)
events = st.lists(
    st.one_of(
        st.tuples(st.just("instrument"), symbols, st.sampled_from(["lastPrice", "markPrice", "bidPrice"]), price),
        st.tuples(st.just("quote"), symbols, price, price),
        st.tuples(st.just("partial"), st.sampled_from(["instrument", "quote"]), st.lists(symbols, unique=True), price),
        st.tuples(st.just("lost"), st.sampled_from(["instrument", "quote"]), st.none(), st.none()),
    ),
    max_size=30,
)


@given(events)
def test_what_was_told_last_is_what_can_be_read_and_what_the_tables_hold(events):
    tickers, applier = Tickers(), TableApplier()
    last = {}
    stale = {"instrument": True, "quote": True}
    covered = set()
    quoted_now = {}
    for received, (kind, of, *values) in enumerate(events):
        if kind == "instrument":
            message = change(of, received, **{values[0]: values[1]})
        elif kind == "quote":
            message = quoted(quote(of, *values), received=received)
            if not stale["quote"]:
                quoted_now[of] = tuple(values)
        elif kind == "partial":
            listed, number = values
            if of == "instrument":
                message = instruments(*(instrument(symbol, markPrice=number) for symbol in listed), received=received)
            else:
                message = quotes(*(quote(symbol, number) for symbol in listed), received=received)
                quoted_now = dict.fromkeys(listed, (number, 31965.5))
            stale[of] = False
            covered.add(of)
        else:
            message = StateLost(received, "a", "why", of)
            stale[of] = True
        for update in applier.process(message):
            if update.action == "stale":
                stale[update.table] = True
            _, *out = tickers.process(update)
            for ticker in out:
                before = last.get(ticker.symbol)
                assert ticker.stale or before is None or replace(before, received=received, timestamp=AT) != ticker
                last[ticker.symbol] = ticker
        any_stale = any(stale[table] for table in covered)
        assert tickers.stale == (any_stale or not covered)
        rows = applier.storage.data.get("instrument", {})
        assert set(tickers) == {key[0] for key in rows} | set(quoted_now)
        for symbol, ticker in tickers.items():
            assert ticker.stale == any_stale
            if not any_stale:
                assert ticker == last[symbol]
                row = rows.get((symbol,), {})
                bid = quoted_now[symbol][0] if symbol in quoted_now else row.get("bidPrice")
                assert (ticker.bid, ticker.last, ticker.mark_price) == (bid, row.get("lastPrice"), row.get("markPrice"))
            elif symbol in last:
                assert last[symbol].stale
