"""Bars: what is in a bar, when it comes, and when it is complete."""

import io
import json
from decimal import Decimal
from functools import partial as bound
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitmex_streams.messages import (
    Disconnected,
    Pong,
    StateLost,
    TableMessage,
    TableUpdate,
    Unsubscribed,
)
from bitmex_streams.pipeline import Pipeline
from bitmex_streams.sections.bars import Bars
from bitmex_streams.sections.connection import Connection
from bitmex_streams.sections.decoder import Decoder
from bitmex_streams.sections.replay import Replay
from bitmex_streams.timestamps import to_iso, to_nanoseconds
from tests.servers import partial_of, serve_websocket, tardis_replay

SECOND = 1_000_000_000
MINUTE = 60 * SECOND
NOON = to_nanoseconds("2021-07-22T12:00:00.000Z")


def at(seconds):
    return NOON + round(seconds * SECOND)


def trade(seconds, price, size=1, symbol="XBTUSD"):
    return {"timestamp": to_iso(at(seconds)), "symbol": symbol, "side": "Buy", "size": size, "price": price}


def partial(seconds, *rows, filter=None, source="a"):
    return TableMessage("trade", "partial", rows, at(seconds), source, (), filter={} if filter is None else filter)


def insert(*rows, received=None, source="a"):
    time = to_nanoseconds(rows[-1]["timestamp"]) if received is None else at(received)
    return TableMessage("trade", "insert", rows, time, source)


def run(bars, *items, until=None, finish=True):
    """What comes out for the items, with the timers of a replay."""
    out = []

    def tick(now):
        bars.now = max(now, bars.now)
        while bars.deadline is not None and bars.deadline <= bars.now:
            deadline = bars.deadline
            out.extend(bars.on_time(bars.now))
            assert bars.deadline is None or bars.deadline > deadline

    for item in items:
        tick(item.received)
        out.extend(bars.process(item))
    if until is not None:
        tick(at(until))
    if finish:
        out.extend(bars.finish())
    return out


def prices(bar):
    return bar.open, bar.high, bar.low, bar.close


# --- what is in a bar ---


def test_a_bar_holds_the_trades_from_its_start_up_to_its_end_and_is_labelled_with_its_end():
    first, second = insert(trade(0, 100, 1), trade(10, 103, 2)), insert(trade(59.999, 101, 3))
    out = run(Bars("1m"), partial(0), first, second, insert(trade(60, 7)))
    bar = out[0]
    assert (bar.symbol, bar.interval, bar.timestamp) == ("XBTUSD", "1m", "2021-07-22T12:01:00.000Z")
    assert prices(bar) == (100, 103, 100, 101)
    assert (bar.volume, bar.trades, bar.vwap) == (6, 3, (100 + 206 + 303) / 6)
    assert bar.complete
    assert prices(out[1]) == (7, 7, 7, 7)


@pytest.mark.parametrize(
    ("interval", "end"),
    [("1m", "12:35:00"), ("5m", "12:35:00"), ("1h", "13:00:00"), ("1d", "24")],
)
def test_bars_end_at_whole_intervals_of_utc(interval, end):
    [bar] = run(Bars(interval), partial(0), insert(trade(34 * 60 + 56, 100)))[-1:]
    assert bar.timestamp == ("2021-07-23T00:00:00.000Z" if end == "24" else f"2021-07-22T{end}.000Z")


def test_an_interval_without_trades_has_a_bar_of_the_last_price():
    out = run(Bars(), partial(0), insert(trade(1, 100)), insert(trade(181, 105)))
    assert [prices(bar) for bar in out] == [(100,) * 4, (100,) * 4, (100,) * 4, (105,) * 4]
    assert [(bar.trades, bar.volume, bar.vwap) for bar in out[1:3]] == [(0, 0, None)] * 2
    assert [bar.complete for bar in out] == [True, True, True, False]


def test_a_symbol_that_never_traded_has_bars_without_prices():
    begin = [partial(0, filter={"symbol": symbol}) for symbol in ("XBTUSD", "ETHUSD")]
    out = run(Bars(), *begin, insert(trade(1, 5, symbol="ETHUSD")), until=122)
    [first, second] = [bar for bar in out if bar.symbol == "XBTUSD"]
    assert prices(first) == prices(second) == (None,) * 4
    assert first.complete


def test_each_symbol_has_bars_of_its_own():
    out = run(Bars(), partial(0), insert(trade(1, 100), trade(1, 5, symbol="ETHUSD")), insert(trade(61, 101)), until=62)
    assert [(bar.symbol, bar.close) for bar in out] == [("XBTUSD", 100), ("ETHUSD", 5), ("XBTUSD", 101)]


def test_rows_of_a_partial_give_the_last_price_and_are_not_counted():
    out = run(Bars(), partial(0, trade(-30, 99, 50)), insert(trade(61, 100)))
    assert [(bar.close, bar.trades, bar.volume) for bar in out] == [(99, 0, 0), (100, 1, 1)]


def test_trades_before_the_first_partial_that_covers_their_symbol_are_ignored():
    bars = Bars()
    out = run(bars, insert(trade(0, 1)), partial(1, filter={"symbol": "ETHUSD"}), insert(trade(2, 1)), until=3)
    assert out == []


def test_prints_of_an_index_are_trades_without_volume():
    [bar] = run(Bars(), partial(0), insert(trade(1, 0.027, 0, ".BPENGUT_NEXT")))
    assert (bar.close, bar.trades, bar.volume, bar.vwap) == (0.027, 1, 0, None)


def test_decimal_prices_stay_decimals():
    [bar] = run(Bars(), partial(0), insert(trade(1, Decimal("0.1"), 3), trade(2, Decimal("0.2"), 1)))
    assert (bar.close, bar.vwap) == (Decimal("0.2"), Decimal("0.125"))


# --- when it comes ---


def test_a_bar_comes_with_the_first_trade_of_a_later_one():
    bars = Bars()
    run(bars, partial(0), insert(trade(1, 100)), finish=False)
    assert [bar.received for bar in bars.process(insert(trade(60, 100), received=60.2))] == [at(60.2)]


def test_a_bar_comes_a_second_after_its_end_when_nothing_is_traded():
    bars = Bars()
    assert run(bars, partial(0), insert(trade(1, 100)), until=60.999, finish=False) == []
    [bar] = run(bars, until=61.5, finish=False)
    assert (bar.complete, bar.received) == (True, at(61))


def test_a_local_clock_that_is_ahead_cuts_no_bar_short():
    bars = Bars()
    begin = partial(0, filter={"symbol": "XBTUSD"})
    ahead = [insert(trade(time, 100), received=time + 30) for time in (1, 59, 70)]
    out = run(bars, begin, *ahead)
    assert [(bar.trades, bar.complete) for bar in out] == [(2, True), (1, False)]
    assert bars.late == 0


@pytest.mark.parametrize("rows", [[trade(-1, 99)], []])
@pytest.mark.parametrize("ahead", [5, 90])
def test_a_local_clock_that_is_ahead_closes_no_bar_before_its_first_trades_have_come(ahead, rows):
    bars = Bars()
    begin = partial(ahead - 0.5, *rows, filter={"symbol": "XBTUSD"})
    trades = [insert(trade(second, 100), received=second + ahead + 0.1) for second in (117, 118, 130)]
    out = run(bars, begin, *trades)
    assert [(bar.timestamp, bar.trades, bar.complete) for bar in out][-2:] == [
        (to_iso(at(120)), 2, True), (to_iso(at(180)), 1, False),
    ]
    assert all(bar.trades == 0 for bar in out[:-2])
    assert bars.late == 0


def test_before_the_first_trade_bars_come_later_by_the_age_of_the_partials_newest_row():
    begin = partial(5, trade(-30, 98), trade(-2, 99))
    bars = Bars()
    assert run(bars, begin, until=67.9, finish=False) == []
    assert [bar.received for bar in run(bars, until=68, finish=False)] == [at(68)]


def test_where_no_delay_is_known_no_bar_is_closed_before_the_first_trade_tells():
    bars = Bars()
    assert run(bars, partial(0, filter={"symbol": "XBTUSD"}), until=3600, finish=False) == []
    out = run(bars, insert(trade(3590, 100), received=3600), until=3700, finish=False)
    assert [(bar.timestamp, bar.trades, bar.received) for bar in out] == [
        (to_iso(at(3600)), 1, at(3611)), (to_iso(at(3660)), 0, at(3671)),
    ]


def test_bars_of_several_symbols_come_in_the_order_of_their_ends():
    out = run(Bars(), partial(0), insert(trade(1, 1, symbol="A"), trade(1, 1, symbol="B")), until=200, finish=False)
    assert [(bar.symbol, bar.timestamp[14:16]) for bar in out] == [
        ("A", "01"), ("B", "01"), ("A", "02"), ("B", "02"), ("A", "03"), ("B", "03"),
    ]


def test_a_trade_that_comes_when_its_bar_is_out_is_counted_as_late_and_leaves_no_complete_bar_behind():
    bars = Bars()
    out = run(bars, partial(0), insert(trade(1, 100)), insert(trade(59, 90), received=62), insert(trade(121, 101)))
    assert bars.late == 1
    assert [(bar.trades, bar.complete) for bar in out] == [(1, True), (0, False), (1, False)]


# --- when it is complete ---


def test_the_bar_in_which_the_partial_came_is_not_complete_and_the_next_one_is():
    out = run(Bars(), partial(0.001), insert(trade(1, 100)), insert(trade(61, 100)), insert(trade(121, 100)))
    assert [bar.complete for bar in out] == [False, True, False]


@pytest.mark.parametrize(
    "gap",
    [
        Disconnected(at(70), "a"),
        StateLost(at(70), "a", "a message that cannot be decoded"),
        StateLost(at(70), "a", "why", "trade"),
        StateLost(at(70), "a", "why", "trade:XBTUSD"),
        TableUpdate("trade", "stale", (), at(70), "a", filter={}, reason="why"),
        Unsubscribed("trade", at(70), "a"),
    ],
)
def test_bars_are_not_complete_from_a_loss_of_state_to_the_partial_that_ends_it(gap):
    out = run(
        Bars(), partial(0), insert(trade(1, 100)), insert(trade(61, 101)), gap,
        insert(trade(80, 500)),  # not to be trusted
        insert(trade(130, 500)),
        partial(185, trade(184, 103)), insert(trade(186, 104)), insert(trade(241, 105)), insert(trade(301, 106)),
    )
    assert [bar.complete for bar in out] == [True, False, False, False, True, False]
    assert [bar.close for bar in out] == [100, 101, 101, 104, 105, 106]


def test_the_loss_of_another_connection_or_symbol_is_none():
    out = run(
        Bars(), partial(0, filter={"symbol": "XBTUSD"}),
        partial(0, trade(0, 5, symbol="ETHUSD"), filter={"symbol": "ETHUSD"}, source="b"),
        insert(trade(1, 100)), Disconnected(at(2), "b"), StateLost(at(3), "a", "why", "quote"),
        Unsubscribed("trade:ETHUSD", at(4), "a"), Unsubscribed("trade", at(4), "a"), until=61,
    )
    assert [(bar.symbol, bar.complete) for bar in out] == [("XBTUSD", True), ("ETHUSD", False)]


def test_a_partial_repeated_without_a_loss_breaks_nothing():
    out = run(Bars(), partial(0), insert(trade(1, 100)), partial(30, trade(1, 100)), insert(trade(31, 101)), until=61)
    assert [(bar.trades, bar.complete) for bar in out] == [(2, True)]


def test_the_bar_in_which_the_input_ends_is_not_complete():
    assert [bar.complete for bar in run(Bars(), partial(0), insert(trade(1, 100)))] == [False]


# --- the rest ---


def test_only_bars_and_foreign_items_come_out():
    bars = Bars()
    items = [Pong(1), Disconnected(1), TableMessage("quote", "insert", [{"symbol": "XBTUSD"}], 1), partial(0)]
    assert [out for item in items for out in bars.process(item)] == []
    assert list(bars.process("text")) == ["text"]


def test_table_updates_give_the_same_bars_as_table_messages():
    rows = [trade(1, 100), trade(61, 101)]
    updates = [
        TableUpdate("trade", "partial", [], at(0), "a", filter={}),
        TableUpdate("trade", "insert", rows, at(61), "a", rows),
    ]
    assert run(Bars(), *updates) == run(Bars(), partial(0), insert(*rows))


def test_an_unknown_interval_is_an_error_that_lists_them():
    with pytest.raises(ValueError, match="1m, 5m, 1h, 1d"):
        Bars("15m")


@pytest.mark.parametrize(
    "wrong",
    [
        {"timestamp": "soon"}, {"timestamp": None}, {"timestamp": 5}, {"timestamp": []}, {"timestamp": "2021-07-22"},
        {"timestamp": "0001-01-01T00:00:00.000Z"}, {"timestamp": "9999-12-31T23:59:59.999Z"}, {"price": "100"},
        {"price": [1]}, {"price": True}, {"price": 10**400}, {"size": "1"}, {"size": 1.5}, {"size": {}}, {"size": -1},
        {"size": 10**400}, {"symbol": None}, {"symbol": []}, {"symbol": {}},
    ],
)
def test_a_row_that_is_no_trade_is_a_loss_of_state(wrong, caplog):
    bars, asked = Bars(), []
    bars.resync = asked.append
    good = [partial(0), insert(trade(1, 100)), insert(trade(61, 101))]
    bad = insert(trade(62, 102) | wrong, trade(63, 500), received=63)
    later = [partial(130), insert(trade(131, 104)), insert(trade(185, 105)), insert(trade(245, 106))]
    out = run(bars, *good, bad, insert(trade(64, 500)), *later)
    assert [(bar.close, bar.complete) for bar in out] == [
        (100, True), (101, False), (104, False), (105, True), (106, False),
    ]
    assert asked == ["trade"]
    assert "a row from a is no trade" in caplog.text


@pytest.mark.parametrize("wrong", [{"timestamp": []}, {"price": "100"}, {"size": []}, {"symbol": {}}])
def test_an_old_trade_that_is_none_says_nothing_about_the_last_price(wrong):
    out = run(Bars(), partial(0, trade(-2, 99), trade(-1, 50) | wrong), insert(trade(61, 101)))
    assert [(bar.close, bar.complete) for bar in out] == [(99, True), (101, False)]


def test_a_message_that_cannot_be_decoded_makes_bars_ask_for_a_new_partial():
    bars, asked = Bars(), []
    bars.resync = asked.append
    run(bars, partial(0, filter={"symbol": "XBTUSD"}), StateLost(at(1), "a", "why"), StateLost(at(1), "b", "why"))
    assert asked == ["trade:XBTUSD"]


# --- the exchange's time, and ours ---

YEARS = 7 * 365 * 86400


@pytest.mark.parametrize("offset", [YEARS, -YEARS, 90, -90, 0])
@pytest.mark.parametrize("duration", [0.01, 600])
@pytest.mark.parametrize("rows", [[trade(-1, 99)], []])
def test_bars_follow_the_time_of_the_exchange_whatever_ours_is(offset, duration, rows):
    def received(seconds):  # 10 minutes of trades come within ``duration``
        return offset + seconds * duration / 600

    trades = [insert(trade(second, second + 1), received=received(second)) for second in range(0, 601, 10)]
    begin = partial(received(-0.001), *rows)
    begin = TableMessage("trade", "partial", begin.rows, begin.received, "a", (), filter={"symbol": "XBTUSD"})
    bars = Bars()
    out = run(bars, begin, *trades, until=received(600) + 2, finish=False)
    assert [(bar.timestamp, bar.trades, bar.complete) for bar in out[-10:]] == [
        (to_iso(at(60 * minute)), 6, True) for minute in range(1, 11)
    ]
    assert len(out) in (10, 11)  # also the one in which the partial came
    assert bars.late == 0


def test_bars_without_trades_come_in_the_time_of_a_server_that_plays_old_data():
    begin = partial(YEARS, trade(-20, 99), trade(-10, 5, symbol="ETHUSD"))
    out = run(Bars(), begin, insert(trade(3, 100), received=YEARS + 1), until=YEARS + 130, finish=False)
    assert [(bar.symbol, bar.timestamp, bar.close) for bar in out] == [
        ("XBTUSD", to_iso(at(60)), 100), ("ETHUSD", to_iso(at(60)), 5),
        ("XBTUSD", to_iso(at(120)), 100), ("ETHUSD", to_iso(at(120)), 5),
    ]


def test_where_the_rows_are_of_another_time_there_are_no_bars_before_the_first_trade():
    assert run(Bars(), partial(YEARS, trade(-20, 99)), until=YEARS + 3600) == []


def test_a_long_silence_is_not_filled_in_at_once():
    years = 5 * 365 * 86400
    out = run(Bars(), partial(0), insert(trade(1, 100)), insert(trade(years + 30, 101)), insert(trade(years + 61, 102)))
    assert [(bar.timestamp, bar.close, bar.complete) for bar in out] == [
        (to_iso(at(60)), 100, True), (to_iso(at(years + 60)), 101, False), (to_iso(at(years + 120)), 102, False),
    ]


def test_time_that_begins_at_zero_gives_no_bars_of_1970():
    begin = TableMessage("trade", "partial", (), 0, "a", (), filter={"symbol": "XBTUSD"})
    out = run(Bars(), begin, insert(trade(1, 100)), insert(trade(61, 101)))
    assert [(bar.timestamp, bar.close) for bar in out] == [(to_iso(at(60)), 100), (to_iso(at(120)), 101)]


@pytest.mark.parametrize("when", ["2999-01-01T00:00:00.000Z", "9998-12-31T23:59:59.999Z", "1970-01-01T00:00:00.000Z"])
def test_one_trade_of_another_age_is_not_believed(when, caplog):
    bars = Bars()
    bogus = insert(trade(2, 500) | {"timestamp": when}, received=2)
    out = run(bars, partial(0), insert(trade(1, 100)), bogus, insert(trade(3, 101)), insert(trade(61, 102)), bogus,
              insert(trade(121, 103)))
    assert [(bar.close, bar.trades, bar.complete) for bar in out] == [(101, 2, False), (102, 1, False), (103, 1, False)]
    assert bars.late == 2
    assert caplog.text.count("a trade of XBTUSD at") == 1


@pytest.mark.parametrize("when", ["2999-01-01T00:00:00.000Z", "1970-01-01T00:00:00.000Z"])
def test_a_first_trade_of_another_age_does_not_hold_the_bars_there(when):
    bogus = insert(trade(2, 500) | {"timestamp": when}, received=0.5)
    trades = [insert(trade(second, 100)) for second in (1, 2, 61, 121)]
    out = run(Bars(), partial(0), bogus, *trades, until=182, finish=False)
    assert [(bar.timestamp, bar.complete) for bar in out][-3:] == [
        (to_iso(at(60)), False), (to_iso(at(120)), True), (to_iso(at(180)), True),
    ]
    assert len(out) == 4


def test_two_trades_of_another_age_in_a_row_begin_anew_there():
    bars = Bars()
    rows = [trade(second, 100) for second in (1, 7 * 86400, 7 * 86400 + 1, 7 * 86400 + 61)]
    out = run(bars, partial(0), *(insert(row, received=1) for row in rows))
    assert [(bar.timestamp, bar.trades, bar.complete) for bar in out] == [
        (to_iso(at(60)), 1, False), (to_iso(at(7 * 86400 + 60)), 1, False), (to_iso(at(7 * 86400 + 120)), 1, False),
    ]
    assert bars.late == 1


def test_late_trades_are_warned_of_once_for_each_symbol(caplog):
    late = [insert(trade(second, 1, symbol=symbol), received=70) for symbol in "AB" for second in (1, 2)]
    bars = Bars()
    run(bars, partial(0), insert(trade(61, 1, symbol="A"), trade(61, 1, symbol="B")), *late)
    assert bars.late == 4
    assert [record.args[0] for record in caplog.records] == ["A", "B"]


def test_a_clock_that_was_set_makes_no_more_than_one_trade_late():
    bars = Bars()
    behind = [insert(trade(second, 1), received=second + 0.1) for second in range(0, 110, 10)]
    ahead = [insert(trade(second, 1), received=second + 40) for second in range(110, 600, 5)]
    run(bars, partial(0), *behind, *ahead)
    assert bars.late <= 2


trades = st.tuples(
    st.integers(0, 600_000), st.sampled_from([0.5, 1.0, 1.5, 100.25]), st.integers(1, 100), st.sampled_from(["A", "B"]),
)


@given(st.lists(trades, min_size=1, max_size=80))
def test_bars_equal_a_naive_model(sequence):
    sequence.sort(key=lambda item: item[0])
    rows = [trade(milliseconds / 1000, price, size, symbol) for milliseconds, price, size, symbol in sequence]
    in_one_message = [insert(*group) for _, group in groupby(rows, key=lambda row: row["timestamp"][:19])]
    bars = run(Bars("1m"), partial(0), *in_one_message, until=700, finish=False)

    for symbol in {item[3] for item in sequence}:
        mine = [item for item in sequence if item[3] == symbol]
        last = None
        model = []
        for minute in range(mine[0][0] // 60_000, 11):
            inside = [(price, size) for time, price, size, _ in mine if time // 60_000 == minute]
            volume = sum(size for _, size in inside)
            traded = [price for price, _ in inside] or [last]
            last = traded[-1]
            vwap = sum(price * size for price, size in inside) / volume if volume else None
            model.append((to_iso(NOON + (minute + 1) * MINUTE), traded[0], max(traded), min(traded), last, volume,
                          len(inside), vwap, True))
        made = [bar for bar in bars if bar.symbol == symbol]
        assert [
            (bar.timestamp, *prices(bar), bar.volume, bar.trades, bar.vwap, bar.complete) for bar in made
        ] == [(*row[:7], pytest.approx(row[7]) if row[7] is not None else None, row[8]) for row in model]


async def test_a_replayed_recording_gives_bars_by_its_own_time():
    lines = [
        ("12:00:00.0", {"table": "trade", "action": "partial", "keys": [], "types": {}, "filter": {}, "data": []}),
        ("12:00:01.0", {"table": "trade", "action": "insert", "data": [trade(1, 100.5, 3)]}),
        ("12:02:30.0", {"info": "nothing was traded for more than a minute"}),
        ("12:02:31.0", {"table": "trade", "action": "insert", "data": [trade(151, 101.0)]}),
    ]
    recording = "".join(f"2021-07-22T{time}000000Z {json.dumps(message)}\n" for time, message in lines)
    replay = Replay(io.BytesIO(recording.encode()))
    async with Pipeline.create(replay, Decoder(), Bars()) as pipeline, pipeline.tap() as tap:
        bars = [bar async for bar in tap]
    assert [(bar.timestamp[11:19], bar.close, bar.trades, bar.complete) for bar in bars] == [
        ("12:01:00", 100.5, 1, True), ("12:02:00", 100.5, 0, True), ("12:03:00", 101.0, 1, False),
    ]
    assert [bar.received - NOON for bar in bars] == [61 * SECOND, 121 * SECOND, 151 * SECOND]


async def test_a_server_that_plays_old_data_gives_the_same_bars_as_the_recording():
    messages = [partial_of("trade:XBTUSD", [trade(-1, 99)])]
    for second in range(0, 600, 10):
        messages.append({"table": "trade", "action": "insert", "data": [trade(second, second)]})
    lines = [json.dumps(message) for message in messages]

    async def made(source):
        async with Pipeline.create(source, Decoder(), Bars()) as pipeline, pipeline.tap() as tap:
            return [(bar.timestamp, *prices(bar), bar.trades, bar.complete) async for bar in tap]

    recorded = await made(Replay(io.BytesIO("\n".join(lines).encode())))
    async with serve_websocket(bound(tardis_replay, lines)) as url:
        assert await made(Connection(url, subscribe=["trade:XBTUSD"])) == recorded
    assert [complete for *_, complete in recorded] == [False, *[True] * 9, False]
