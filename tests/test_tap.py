"""Taps: what a consumer may rely on, and what each overflow policy keeps."""

import math

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from bitmex_streams import Connection, Decoder, TableApplier
from bitmex_streams.exchange import open_exchange
from bitmex_streams.messages import (
    BookUpdate,
    Connected,
    Disconnected,
    StateLost,
    TableMessage,
    TableUpdate,
    conflated,
    is_mark,
)
from bitmex_streams.orderbook import OrderBook
from bitmex_streams.pipeline import Pipeline
from bitmex_streams.tap import MARKS, Block, DropNewest, DropOldest, Latest, Tap
from tests.support import (
    Burst,
    Pass,
    change,
    changes_of_a_table,
    count,
    partial,
    stale,
    state_after,
    until_cancelled,
)

BOOK = OrderBook("XBTUSD")


def book_update(symbol="XBTUSD", received=0, stale=False):
    return BookUpdate(symbol, None, None, (("Buy", 1.0, received),), stale, None, received, BOOK)


def block(capacity=math.inf):
    return Block(capacity, math.inf, 0, set())


# --- the channel ---


async def test_a_tap_is_a_trio_receive_channel():
    async with Pipeline.create(Burst(10)) as pipeline:
        tap = pipeline.tap()
        assert isinstance(tap, trio.abc.ReceiveChannel)
        assert await tap.receive() == 0
        assert [item async for item in tap] == list(range(1, 10))
        with pytest.raises(trio.EndOfChannel):
            await tap.receive()
        await tap.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await tap.receive()


async def test_receive_nowait_takes_what_is_there_or_says_why_not():
    buffer = block()
    tap = Tap(buffer)
    with pytest.raises(trio.WouldBlock):
        tap.receive_nowait()
    buffer.put(1)
    buffer.end()
    assert tap.receive_nowait() == 1
    with pytest.raises(trio.EndOfChannel):
        tap.receive_nowait()
    tap.close()
    with pytest.raises(trio.ClosedResourceError):
        tap.receive_nowait()


async def test_it_can_be_used_as_a_context_manager_both_ways():
    async with Pipeline.create(until_cancelled()) as pipeline:
        with pipeline.tap() as first:
            await first.receive()
        async with pipeline.tap() as second:
            await second.receive()
        for tap in first, second:
            with pytest.raises(trio.ClosedResourceError):
                await tap.receive()


async def test_clones_share_the_items_and_the_last_one_closes_the_tap():
    async with Pipeline.create(until_cancelled()) as pipeline:
        one = pipeline.tap()
        other = one.clone()
        assert one.statistics().open_receive_channels == 2
        assert [await one.receive(), await other.receive(), await one.receive()] == [0, 1, 2]
        one.close()
        assert await other.receive() == 3
        other.close()
        with pytest.raises(trio.ClosedResourceError):
            other.clone()
        await pipeline.wait()


async def test_closing_a_tap_wakes_a_task_that_waits_on_it():
    tap = Tap(block())

    async def wait():
        with pytest.raises(trio.ClosedResourceError):
            await tap.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        tap.close()


async def test_cancelling_receive_loses_nothing(autojump_clock):
    async with Pipeline.create(count(50), Pass()) as pipeline, pipeline.tap(max_buffer_size=0) as tap:
        received = []
        while len(received) < 50:
            with trio.CancelScope() as scope:
                if len(received) % 2:
                    scope.cancel()
                received.append(await tap.receive())
            if scope.cancelled_caught:
                received.append(await tap.receive())
        assert received == list(range(50))


async def test_a_cancelled_scope_is_noticed_at_the_next_receive_even_in_the_middle_of_a_batch():
    async with Pipeline.create(Burst(1000)) as pipeline, pipeline.tap(max_buffer_size=1000) as tap:
        received = []
        with trio.CancelScope() as scope:
            async for item in tap:
                received.append(item)
                if item == 20:
                    scope.cancel()
        assert received == list(range(21))


async def test_a_consumer_with_a_full_buffer_lets_other_tasks_run_at_least_every_64_items():
    buffer = block()
    for item in range(10_000):
        buffer.put(item)
    tap = Tap(buffer)
    longest = since = 0
    done = False

    async def other():
        nonlocal longest, since
        while not done:
            longest, since = max(longest, since), 0
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(10_000):
            await tap.receive()
            since += 1
        done = True
    assert longest <= 130  # trio runs the tasks of one pass in any order, so twice in a row may happen


async def test_statistics_say_how_full_it_is_and_who_waits():
    async with Pipeline.create(Burst(100)) as pipeline:
        tap = pipeline.tap(max_buffer_size=5)
        await trio.testing.wait_all_tasks_blocked()
        statistics = tap.statistics()
        assert statistics.current_buffer_used == 6  # one of them in the pipeline's hand
        assert statistics.max_buffer_size == 5
        assert statistics.tasks_waiting_send == 1
        assert statistics.open_send_channels == 1
        assert "Block open" in repr(tap)


# --- what the policies keep ---


def test_a_book_update_behind_a_gap_has_no_changes():
    for buffer, expected in [
        (DropOldest(2), [(2, None), (3, True)]),
        (DropNewest(2), [(0, True), (1, True)]),
        (Latest(None), [(3, None)]),
    ]:
        for received in range(4):
            buffer.put(book_update(received=received))
        got = [buffer.pop() for _ in range(len(buffer))]
        assert [(item.received, item.changes and True) for item in got] == expected
    newest = DropNewest(1)
    for received in range(3):
        newest.put(book_update(received=received))
    newest.put(book_update("ETHUSD", 3))
    newest.pop()
    for received in (4, 5):
        newest.put(book_update(received=received))
        item = newest.pop()
        assert (item.changes is None) == (received == 4)


def test_an_update_of_another_symbol_than_the_dropped_one_keeps_its_changes():
    buffer = DropOldest(2)
    buffer.put(book_update("ETHUSD"))
    buffer.put(book_update("XBTUSD"))
    buffer.put(book_update("XBTUSD"))
    assert buffer.pop().changes is not None


def test_latest_keeps_the_place_of_what_it_replaces_so_that_nothing_starves():
    buffer = Latest(lambda item: item[0])
    for item in ["a1", "b1", "a2", "c1", "a3", "b2"]:
        buffer.put(item)
    assert [buffer.pop() for _ in range(len(buffer))] == ["a3", "b2", "c1"]
    assert buffer.dropped == 3


def test_latest_never_lets_an_item_overtake_a_mark():
    buffer = Latest(None)
    gone = Disconnected(2, "ws://one")
    for item in [book_update(received=1), gone, book_update("ETHUSD", 3), book_update(received=4)]:
        buffer.put(item)
    assert [item.received for item in iter_pop(buffer)] == [2, 3, 4]


def iter_pop(buffer):
    while len(buffer):
        yield buffer.pop()


MARK = st.sampled_from(
    [
        Connected(0, "ws://one"),
        Disconnected(0, "ws://one"),
        StateLost(0, "ws://two", "why"),
        TableUpdate("trade", "stale", (), 0, filter={}),
        book_update(stale=True),
    ]
)
UPDATE = st.builds(book_update, st.sampled_from(["XBTUSD", "ETHUSD"]), st.integers(1, 99))


@given(
    st.sampled_from([lambda: DropOldest(3), lambda: DropNewest(3), lambda: Latest(None)]),
    st.lists(st.one_of(MARK, UPDATE, st.none()), max_size=60),
)
def test_no_policy_drops_or_reorders_a_mark(policy, events):
    """None stands for a consumer that takes one item."""
    buffer = policy()
    got = []
    for event in events:
        if event is not None:
            buffer.put(event)
        elif len(buffer):
            got.append(buffer.pop())
    got += iter_pop(buffer)
    put = [event for event in events if event is not None]
    marks = [conflated(item) for item in got if is_mark(item)]
    assert marks == [conflated(item) for item in put if is_mark(item)]
    assert len(got) + buffer.dropped == len(put)


@pytest.mark.parametrize("policy", [lambda: DropOldest(5), lambda: DropNewest(5), lambda: Latest(None)])
def test_marks_alone_do_not_grow_a_buffer_for_ever(policy):
    buffer = policy()
    for received in range(10_000):
        buffer.put(Disconnected(received, "ws://one"))
        buffer.put(book_update(received=received))
    assert len(buffer) <= 5 + MARKS + 1
    assert [item.received for item in iter_pop(buffer) if is_mark(item)][-1] == 9999


def test_a_gap_behind_a_mark_is_not_mended_by_the_mark():
    buffer = DropOldest(1)
    buffer.put(book_update(received=1, stale=True))
    buffer.put(book_update(received=2))  # a partial, say: dropped
    assert buffer.pop().stale
    buffer.put(book_update(received=3))
    assert buffer.pop().changes is None


# --- partials in a `latest` tap ---


def through_latest(*items, key=None):
    """What a consumer finds that has slept while these came."""
    buffer = Latest(key)
    for item in items:
        buffer.put(item)
    return list(iter_pop(buffer))


def of_first_row(item):
    return item.rows[0]["symbol"] if item.rows else None


@pytest.mark.parametrize("key", [None, of_first_row, lambda item: item.table])
@pytest.mark.parametrize("lost", [None, "A"])
def test_an_update_does_not_take_the_place_of_the_partial_with_which_its_table_is_fresh_again(key, lost):
    everything = [stale(1, lost), partial(2, lost or "AB", lost), change(3, "A")]
    assert through_latest(*everything, key=key) == everything


def test_it_is_so_with_what_a_decoder_puts_out_too():
    whole = TableMessage("instrument", "partial", [{"symbol": "A"}, {"symbol": "B"}], 1, filter={})
    update = TableMessage("instrument", "update", [{"symbol": "A", "lastPrice": 2}], 2)
    assert through_latest(whole, update) == [whole, update]


def test_a_table_without_symbols_keeps_its_partial_too():
    whole = TableUpdate("margin", "partial", [{"currency": "XBt"}, {"currency": "USDt"}], 1, filter={})
    update = TableUpdate("margin", "update", [{"currency": "XBt", "amount": 2}], 2)
    assert through_latest(whole, update) == [whole, update]


@pytest.mark.parametrize("key", [None, of_first_row])
def test_an_update_behind_a_partial_does_not_take_a_place_before_it(key):
    before, of_b, whole, after = change(1, "A"), change(2, "B"), partial(3, "AB"), change(4, "A")
    assert through_latest(before, of_b, whole, after, key=key) == [of_b, whole, after]


def test_a_partial_does_not_take_the_place_of_an_older_one_before_what_came_between_them():
    lost = stale(3)
    assert through_latest(partial(1, "AB"), change(2, "A"), lost, partial(4, "BC")) == [
        change(2, "A"), lost, partial(4, "BC"),
    ]
    assert through_latest(partial(1, "AB"), change(2, "C"), partial(3, "AB")) == [change(2, "C"), partial(3, "AB")]


def test_a_partial_of_one_symbol_does_not_take_the_place_of_one_of_all():
    whole, part = partial(1, "AB"), partial(2, "A", "A")
    assert through_latest(whole, part) == [whole, part]


def test_partials_do_not_grow_a_latest_tap_that_nobody_reads():
    buffer = Latest(None)
    for at in range(0, 10_000, 4):
        for item in partial(at, "ABC"), change(at + 1, "A"), partial(at + 2, "B", "B"), change(at + 3, "B"):
            buffer.put(item)
    assert len(buffer) == 4
    assert buffer.dropped == 9_996
    assert [item.received for item in iter_pop(buffer)] == [9_996, 9_997, 9_998, 9_999]
    assert not buffer._marked


@given(changes_of_a_table, st.sets(st.integers(0, 60)), st.sampled_from([None, of_first_row]))
def test_who_reads_a_latest_tap_now_and_then_knows_in_the_end_what_the_whole_stream_tells(updates, moments, key):
    buffer = Latest(key)
    got = []
    for number, update in enumerate(updates):
        buffer.put(update)
        if number in moments:
            got += [buffer.pop() for _ in range(1 + len(buffer) // 2)]
    got += iter_pop(buffer)
    assert state_after(got) == state_after(updates)
    assert len(got) + buffer.dropped == len(updates)


async def test_a_latest_tap_that_slept_through_a_resync_of_instrument_finds_the_partial_of_both_symbols():
    async with open_exchange(symbols=["XBTUSD", "ETHUSD"], rate=200, seed=5) as exchange:
        connection, tables = Connection(exchange.url, subscribe=["instrument"]), TableApplier()
        async with Pipeline.create(connection, Decoder(), tables) as pipeline:
            everything, latest = pipeline.tap(), pipeline.tap(overflow="latest")
            partials = 0
            with trio.fail_after(10):
                while partials < 2:
                    update = await everything.receive()
                    if update.action == "partial":
                        partials += 1
                        moved = set()
                        while moved != {"XBTUSD", "ETHUSD"}:
                            moved |= {row["symbol"] for row in (await everything.receive()).rows}
                        connection.resync("instrument")
            found = latest._drain()
            [lost] = [number for number, item in enumerate(found) if item.action == "stale"][:1]
            healing = found[lost + 1]
            assert healing.action == "partial" and healing.filter == {}
            assert {row["symbol"] for row in healing.rows} == {"XBTUSD", "ETHUSD"}
            assert {row["symbol"] for item in found[lost + 2 :] for row in item.rows} == {"XBTUSD", "ETHUSD"}


async def test_a_tap_can_pass_from_a_task_that_ends_to_another_in_the_middle_of_a_batch():
    async with Pipeline.create(count(100)) as pipeline, pipeline.tap() as tap:
        items = []

        async def take(number):
            for _ in range(number):
                items.append(await tap.receive())

        for number in (1, 5, 1, 10, 83):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(take, number)
        assert items == list(range(100))


async def test_an_end_that_is_closed_while_it_looks_for_an_item_leaves_it_to_its_clone():
    buffer = block()
    for item in range(200):
        buffer.put(item)
    tap = Tap(buffer)
    clone = tap.clone()
    received = []

    async def consume():
        with pytest.raises(trio.ClosedResourceError):
            while True:
                received.append(await tap.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume)
        for _ in range(3):  # so that it lets others run in the middle of a batch
            await trio.lowlevel.checkpoint()
        tap.close()
        count = len(received)
    assert received == list(range(count))
    assert [clone.receive_nowait() for _ in range(200 - count)] == list(range(count, 200))
