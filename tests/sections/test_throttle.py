"""Throttle: at most one item per key and interval, and always the latest in the end."""

import contextlib
import math
from itertools import pairwise

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from bitmex_streams.messages import (
    BookUpdate,
    Connected,
    Disconnected,
    Level,
    Pong,
    StateLost,
    Subscribed,
    TableMessage,
    TableUpdate,
    Unsubscribed,
    is_mark,
    stream_key,
)
from bitmex_streams.operator import Source
from bitmex_streams.pipeline import Pipeline
from bitmex_streams.sections.throttle import Throttle
from tests.support import change, changes_of_a_table, partial, stale, state_after

SECOND = 1_000_000_000


def book(received, symbol="XBTUSD", stale=False, bid=1.0):
    return BookUpdate(symbol, Level(bid, 1), None, (("Buy", bid, 1),), stale, None, received, None)


def run(throttle, *items, finish=True, punctual=True):
    """The items, with the timers of a live stream (or late, as in a replay): (time, item) for each that comes out."""
    out = []

    def tick(now):
        while throttle.deadline is not None and throttle.deadline <= now:
            deadline = throttle.deadline
            throttle.now = deadline if punctual else now
            out.extend((deadline, item) for item in throttle.on_time(throttle.now))
            assert throttle.deadline is None or throttle.deadline > deadline

    now = 0
    for item in items:
        now = max(now, item.received)
        tick(now)
        throttle.now = now
        out.extend((now, item) for item in throttle.process(item))
    if finish:
        out.extend((now, item) for item in throttle.finish())
    return out


def test_the_first_passes_at_once_and_the_latest_when_the_interval_ends():
    first, dropped, latest = book(0), book(1), book(2, bid=7.0)
    out = run(Throttle(1), first, dropped, latest, book(3 * SECOND, "OTHER"), finish=False)
    assert [(time, item.received) for time, item in out] == [(0, 0), (SECOND, 2), (3 * SECOND, 3 * SECOND)]
    assert out[1][1].best_bid == Level(7.0, 1)


def test_changes_are_unknown_only_where_something_was_left_out():
    assert [item.changes is None for _, item in run(Throttle(1), book(0), book(1))] == [False, False]
    assert [item.changes is None for _, item in run(Throttle(1), book(0), book(1), book(2))] == [False, True]


def test_what_waits_at_the_end_of_the_input_is_put_out_in_the_order_of_arrival():
    out = run(Throttle(1), book(0, "A"), book(0, "B"), book(1, "B"), book(2, "A"), book(3, "B"))
    assert [(item.symbol, item.received) for _, item in out] == [("A", 0), ("B", 0), ("A", 2), ("B", 3)]


def test_keys_whose_intervals_end_together_come_in_the_order_of_arrival():
    throttle = Throttle(1)
    out = run(throttle, book(0, "A"), book(0, "B"), book(1, "B"), book(2, "A"), book(SECOND, "C"), finish=False)
    assert [item.symbol for _, item in out] == ["A", "B", "B", "A", "C"]


def test_a_mark_comes_after_what_waited_before_it_and_before_all_that_follows():
    gap = Disconnected(3)
    out = run(Throttle(1), book(0, "A"), book(0, "B"), book(1, "B"), book(2, "A"), gap, book(4, "A"))
    assert [(getattr(item, "symbol", "gap"), item.received) for _, item in out] == [
        ("A", 0), ("B", 0), ("B", 1), ("A", 2), ("gap", 3), ("A", 4),
    ]


def test_a_stale_book_leaves_the_books_of_others_waiting():
    out = run(Throttle(1), book(0, "A"), book(0, "B"), book(1, "B"), book(2, "A"), book(3, "A", stale=True))
    assert [(item.symbol, item.received) for _, item in out] == [("A", 0), ("B", 0), ("A", 2), ("A", 3), ("B", 1)]


@pytest.mark.parametrize("symbol", [None, "A"])
def test_the_partial_with_which_a_table_is_fresh_again_passes_at_once_and_no_update_takes_its_place(symbol):
    everything = [stale(1, symbol), partial(2, symbol or "AB", symbol), change(3, "A"), change(4, "A")]
    out = run(Throttle(0.3), *everything)
    assert out[:3] == [(item.received, item) for item in everything[:3]]
    assert [item for _, item in out] == everything


def test_a_partial_comes_after_what_waited_before_it_and_before_all_that_follows():
    items = [change(1, "A"), change(2, "B"), change(3, "A"), change(4, "B"), partial(5, "AB"), change(6, "A")]
    assert [item for _, item in run(Throttle(1), *items)] == items
    everything_is_one = Throttle(1, key=lambda item: "all")
    assert [item.received for _, item in run(everything_is_one, *items)] == [1, 4, 5, 6]


def test_marks_are_never_throttled():
    one_of_each = [
        Connected(0), StateLost(0, "a", "why"), Disconnected(0), TableUpdate("t", "stale", (), 0), book(0, stale=True),
    ]
    assert [item for _, item in run(Throttle(1), *one_of_each * 3)] == one_of_each * 3


def test_keys_that_went_quiet_are_forgotten():
    throttle = Throttle(1)
    run(throttle, *(book(number * SECOND // 10, f"S{number}") for number in range(1000)), finish=False)
    assert len(throttle._open) <= 11


def test_time_that_goes_back_breaks_nothing():
    received = [10 * SECOND, 3, 10 * SECOND + 1, 0, 11 * SECOND, 5, 12 * SECOND]
    out = run(Throttle(1), *(book(time) for time in received))
    assert out[-1][1].received == received[-1]


def test_a_key_of_ones_own():
    out = run(Throttle(1, key=lambda item: "all"), book(0, "A"), book(1, "B"), book(2, "C"))
    assert [item.symbol for _, item in out] == ["A", "C"]


@pytest.mark.parametrize("interval", [0, -1, math.inf, math.nan])
def test_an_interval_that_is_none_is_an_error(interval):
    with pytest.raises(ValueError, match="positive number of seconds"):
        Throttle(interval)


symbols = st.sampled_from("ABC")
times = st.integers(0, 5 * SECOND)


@given(st.lists(st.builds(book, times, symbols), max_size=60), st.sampled_from([0.1, 0.5, 1.0]))
def test_no_two_of_a_key_come_in_one_interval_and_its_last_comes_always(sequence, interval):
    sequence.sort(key=lambda item: item.received)
    throttle = Throttle(interval)
    timely = run(throttle, *sequence, finish=False)
    out = [*timely, *((None, item) for item in throttle.finish())]
    for symbol in "ABC":
        received = [item.received for item in sequence if item.symbol == symbol]
        left = [item.received for _, item in out if item.symbol == symbol]
        assert left == sorted(left)
        assert left[-1:] == received[-1:]
        assert left[:1] == received[:1]
        when = [time for time, item in timely if item.symbol == symbol]
        assert all(later - earlier >= interval * SECOND for earlier, later in pairwise(when))


@given(st.lists(st.builds(book, times, symbols), max_size=60))
def test_a_replay_at_full_speed_gives_what_the_live_stream_gave(sequence):
    sequence.sort(key=lambda item: item.received)
    live = [item for _, item in run(Throttle(0.5), *sequence)]
    assert [item for _, item in run(Throttle(0.5), *sequence, punctual=False)] == live


marks = st.builds(Disconnected, times) | st.builds(book, times, symbols, st.just(True))


@given(st.lists(st.builds(book, times, symbols) | marks, max_size=60))
def test_every_mark_stands_between_the_last_item_before_it_and_all_items_after_it(sequence):
    sequence.sort(key=lambda item: item.received)
    out = [item for _, item in run(Throttle(1), *sequence)]
    assert [item for item in out if is_mark(item)] == [item for item in sequence if is_mark(item)]
    for symbol in "ABC":
        def between_marks(items, symbol=symbol):
            parts = [[]]
            for item in items:
                if getattr(item, "symbol", symbol) == symbol:
                    parts.append([]) if is_mark(item) else parts[-1].append(item.received)
            return parts

        for before, after in zip(between_marks(sequence), between_marks(out), strict=True):
            assert after == sorted(after)
            assert set(after) <= set(before)
            assert after[-1:] == before[-1:]


@given(changes_of_a_table, st.sampled_from([2, 5, 1000]))
def test_who_reads_the_changes_of_a_table_behind_a_throttle_knows_in_the_end_what_the_whole_stream_tells(updates, pace):
    out = [item for _, item in run(Throttle(pace / SECOND), *updates)]
    assert state_after(out) == state_after(updates)


class Live(Source):
    """Items at times of trio's clock."""

    rate = 1.0

    def __init__(self, *times):
        self.times = times

    def batches(self, input):
        times = self.times

        class Batches:
            def __init__(self):
                self.waiting = list(times)

            async def receive(self):
                if not self.waiting:
                    await trio.sleep(10)
                    raise trio.EndOfChannel
                await trio.sleep_until(self.waiting[0])
                return [book(int(self.waiting.pop(0) * SECOND))]

        @contextlib.asynccontextmanager
        async def opened():
            yield Batches()

        return opened()


async def test_while_nothing_arrives_the_clock_puts_out_what_waits(autojump_clock):
    began = trio.current_time()
    out = []
    async with Pipeline.create(Live(began, began + 0.25, began + 0.5), Throttle(1)) as pipeline, pipeline.tap() as tap:
        async for _ in tap:
            out.append(trio.current_time() - began)
    assert out == pytest.approx([0, 1])


def test_the_default_key_is_table_and_symbol():
    assert Throttle(1)._key is stream_key


@pytest.mark.parametrize("symbol", [[], {}, ["XBTUSD"]])
def test_rows_whose_symbol_is_none_are_a_stream_of_their_table(symbol):
    odd = {"symbol": symbol}
    assert stream_key(TableMessage("trade", "insert", [odd], 1)) == ("trade", None)
    assert stream_key(TableMessage("trade", "partial", [], 1, filter=odd)) == ("trade", None)
    throttle = Throttle(1)
    assert list(throttle.process(TableMessage("trade", "insert", [odd], 1))) != []


def test_what_is_said_of_different_topics_is_of_different_streams():
    trade, quote = Subscribed("trade", 1), Subscribed("quote", 1)
    losses = [StateLost(1, "a", "why", "trade"), StateLost(1, "a", "why")]
    items = [trade, quote, Unsubscribed("trade", 1), *losses, Pong(1)]
    assert len({stream_key(item) for item in items}) == len(items)
    throttle = Throttle(1)
    assert [*throttle.process(trade), *throttle.process(quote)] == [trade, quote]
