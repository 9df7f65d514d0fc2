"""A run: operators of ours work through a batch stage by stage where they can, and nobody can tell."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from bitmex_streams.errors import DecodeError
from bitmex_streams.messages import BookUpdate, RawMessage, StateLost, TableMessage
from bitmex_streams.operator import BatchOperator, Operator
from bitmex_streams.pipeline import Pipeline
from bitmex_streams.sections.decoder import Decoder
from bitmex_streams.sections.filters import SymbolFilter
from bitmex_streams.sections.orderbook import OrderBookMerger
from bitmex_streams.sections.tables import TableApplier
from tests.support import Messages, collect

GOOD = '{"table":"trade","action":"insert","data":[{"symbol":"XBTUSD","size":%d}]}'


def messages(number, *, bad=()):
    return [RawMessage(n, "no JSON" if n in bad else GOOD % n, "source", n + 1) for n in range(number)]


class Fails(Operator):
    def __init__(self, at):
        self.at = at

    def process(self, item):
        if item.received == self.at:
            raise ZeroDivisionError
        return (item,)


class FailsInABatch(BatchOperator):
    def __init__(self, at):
        self.at = at

    def process_all(self, items, out):
        for item in items:
            if item.received == self.at:
                raise ZeroDivisionError
            out.append(item)


ROW = '{"symbol":"XBTUSD","id":%d,"side":"%s","size":%d,"price":%d}'


def a_book(number):
    """The size of one level grows by one with each message."""
    rows = ",".join([ROW % (1, "Buy", 1, 100), ROW % (2, "Sell", 1, 101)])
    partial = '{"table":"orderBookL2","action":"partial","keys":["symbol","id","side"],"data":[' + rows + "]}"
    update = '{"table":"orderBookL2","action":"update","data":[' + ROW + "]}"
    texts = [partial, *(update % (1, "Buy", size, 100) for size in range(2, number + 1))]
    return [RawMessage(n, text, "source") for n, text in enumerate(texts)]


@pytest.mark.parametrize("number", [1, 63, 64, 65, 300])
async def test_a_tap_on_the_source_changes_nothing_of_what_comes_behind_the_decoder(number):
    got = []
    for listened_to in (False, True):
        decoder = Decoder()
        async with Pipeline.create(source := Messages(messages(number, bad=[2, 70])), decoder) as pipeline:
            raw = pipeline.tap(source, max_buffer_size=1000, start=False) if listened_to else None
            got.append(await collect(pipeline.tap(max_buffer_size=1000)))
            if raw is not None:
                assert await collect(raw) == messages(number, bad=[2, 70])
        assert decoder.messages == number
    assert got[0] == got[1]
    assert [item.received for item in got[0]] == list(range(number))
    assert [type(item) for item in got[0][:3]] == [TableMessage, TableMessage, StateLost][:number]


async def test_a_tap_on_the_source_that_comes_and_goes_in_the_middle_of_a_batch_gets_raw_messages_alone():
    source, decoder = Messages(messages(1000)), Decoder()
    raw, got = [], []
    async with Pipeline.create(source, decoder) as pipeline:
        async with pipeline.tap(max_buffer_size=0) as tap:
            while len(got) < 1000:
                got.append(await tap.receive())
                if len(got) % 50 == 10:
                    listening = pipeline.tap(source, overflow="drop_oldest", max_buffer_size=1000)
                if len(got) % 50 == 40:
                    while listening.statistics().current_buffer_used:
                        raw.append(listening.receive_nowait())
                    listening.close()
    assert [item.received for item in got] == list(range(1000))
    assert {type(item) for item in got} == {TableMessage}
    assert {type(item) for item in raw} == {RawMessage} and len(raw) > 100
    assert [item.received for item in raw] == sorted({item.received for item in raw})
    assert decoder.messages == 1000


@pytest.mark.parametrize("bad", [0, 5, 64, 130])
async def test_what_cannot_be_decoded_is_raised_after_all_before_it_was_delivered(bad):
    got = []
    with pytest.raises(DecodeError, match=f"line {bad + 1}:") as caught:
        async with Pipeline.create(Messages(messages(200, bad=[bad])), Decoder(on_error="raise")) as pipeline:
            async for item in pipeline.tap():
                got.append(item.received)
    assert got == list(range(bad))
    assert caught.value.__notes__ == ["raised in Decoder, a section of the pipeline"]


@pytest.mark.parametrize("kind", [Fails, FailsInABatch])
@pytest.mark.parametrize("at", [0, 20, 29, 30, 31])
async def test_of_two_errors_in_a_batch_the_first_in_the_stream_counts(kind, at):
    got = []
    with pytest.raises((ZeroDivisionError, DecodeError)) as caught:
        async with Pipeline.create(
            Messages(messages(60, bad=[30])), Decoder(on_error="raise"), SymbolFilter("XBTUSD"), kind(at)
        ) as pipeline:
            async for item in pipeline.tap():
                got.append(item.received)
    assert got == list(range(min(at, 30)))
    assert caught.value.__notes__ == [
        f"raised in {kind.__name__ if at < 30 else 'Decoder'}, a section of the pipeline"
    ]


async def test_a_section_of_a_users_sees_tables_and_books_as_they_are_at_the_item_in_hand():
    tables, books, seen = TableApplier(), OrderBookMerger(), []

    class Looks(Operator):
        def __init__(self, told):
            self.told = told

        def process(self, item):
            seen.append((self.told(item), tables.storage.orderbook["XBTUSD"]["Buy"][1]["size"]))
            if type(item) is BookUpdate:
                seen.append((self.told(item), item.book.best_bid.size))
            return (item,)

    in_tables, in_books = Looks(lambda update: update.rows[0]["size"]), Looks(lambda update: update.best_bid.size)
    async with Pipeline.create(Messages(a_book(200)), Decoder(), tables, in_tables, books, in_books) as pipeline:
        await collect(pipeline.tap())
    assert len(seen) == 600 and all(told == found for told, found in seen)


@pytest.mark.parametrize("room", [0, 3])
async def test_who_reads_a_tap_with_little_room_is_close_to_the_live_book(room):
    books = OrderBookMerger()
    async with Pipeline.create(Messages(a_book(200)), Decoder(), TableApplier(), books) as pipeline:
        async with pipeline.tap(max_buffer_size=room) as tap:
            async for update in tap:
                assert 0 <= books.books["XBTUSD"].best_bid.size - update.best_bid.size <= room + 1


async def test_a_tap_in_the_middle_changes_nothing_of_what_comes_at_the_end():
    ends = []
    for tapped in (None, 1, 2):
        sections = [Decoder(), TableApplier(), OrderBookMerger()]
        async with Pipeline.create(Messages(a_book(200)), *sections) as pipeline:
            middle = pipeline.tap(sections[tapped - 1], max_buffer_size=1000, start=False) if tapped else None
            ends.append([(item.received, item.best_bid) for item in await collect(pipeline.tap())])
            if middle is not None:
                assert [item.received for item in await collect(middle)] == list(range(200))
    assert ends[0] == ends[1] == ends[2] and len(ends[0]) == 200


async def test_a_decoder_that_was_made_anew_by_overriding_process_works_item_by_item():
    class Counting(Decoder):
        calls = 0

        def process(self, item):
            self.calls += 1
            return [item, *super().process(item)]

    decoder = Counting()
    async with Pipeline.create(Messages(messages(100)), decoder) as pipeline:
        got = await collect(pipeline.tap())
    assert decoder.calls == 100
    assert [type(item) for item in got] == [RawMessage, TableMessage] * 100


async def test_timers_behind_the_decoder_see_each_items_time():
    class Clock(Operator):
        seen = ()

        def process(self, item):
            self.seen = *self.seen, (item.received, self.now)
            return ()

        def on_time(self, now):
            return ()

    clock = Clock()
    async with Pipeline.create(Messages(messages(100, bad=[3])), Decoder(), clock) as pipeline:
        await collect(pipeline.tap())
    assert all(received == now for received, now in clock.seen) and len(clock.seen) == 100


async def test_timers_go_by_what_a_filter_before_them_leaves_out_too():
    times = []

    class Alarm(Operator):
        def process(self, item):
            self.deadline = item.received + 1
            return ()

        def on_time(self, now):
            times.append(now)
            self.deadline = None
            return ()

    trades = [
        TableMessage("trade", "insert", [{"symbol": symbol}], received)
        for received, symbol in ((10, "XBTUSD"), (15, "ETHUSD"), (20, "XBTUSD"), (30, "ETHUSD"))
    ]
    async with Pipeline.create(Messages(trades), SymbolFilter("XBTUSD"), Alarm()) as pipeline:
        await collect(pipeline.tap())
    assert times == [15, 30]


async def test_a_batch_feeds_every_consumer_that_waits():
    got = []

    async def take_one(tap):
        async with tap:
            got.append((await tap.receive()).received)

    async with Pipeline.create(Messages(messages(3)), Decoder()) as pipeline, trio.open_nursery() as nursery:
        tap = pipeline.tap(start=False)
        for _ in range(3):
            nursery.start_soon(take_one, tap.clone())
        tap.close()
        await trio.testing.wait_all_tasks_blocked()
        pipeline.start()
    assert sorted(got) == [0, 1, 2]


@pytest.mark.parametrize("room", [64, 70, 1000])
async def test_no_more_waits_in_a_tap_than_there_is_room_for(room):
    most = 0
    async with Pipeline.create(Messages(messages(1000)), Decoder()) as pipeline:
        async with pipeline.tap(max_buffer_size=room) as tap:
            async for _ in tap:
                most = max(most, tap.statistics().current_buffer_used)
    assert 60 <= most <= room + 1  # the one with which the producer waits


async def test_a_section_of_ours_with_a_timer_of_a_users_is_called_in_time():
    class Sampled(OrderBookMerger):
        deadline = 10

        def on_time(self, now):
            self.deadline += 10
            return [("at", now, self.books["XBTUSD"].best_bid.size)]

    async with Pipeline.create(Messages(a_book(25)), Decoder(), Sampled()) as pipeline:
        got = [item for item in await collect(pipeline.tap()) if type(item) is tuple]
    assert got == [("at", 10, 10), ("at", 20, 20)]


async def test_timers_see_the_time_of_what_cannot_be_decoded_before_it_is_raised():
    class Alarm(Operator):
        deadline = 5

        def process(self, item):
            return ()

        def on_time(self, now):
            self.deadline = None
            return ("alarm",)

    got = []
    with pytest.raises(DecodeError):
        async with Pipeline.create(Messages(messages(10, bad=[5])), Decoder(on_error="raise"), Alarm()) as pipeline:
            async for item in pipeline.tap():
                got.append(item)
    assert got == ["alarm"]


async def test_taps_that_are_opened_together_begin_with_the_same_message_and_snapshots_fit_them():
    source, decoder, tables, books = Messages(a_book(1000)), Decoder(), TableApplier(), OrderBookMerger()
    begun = []
    async with Pipeline.create(source, decoder, tables, books) as pipeline:
        async with pipeline.tap(max_buffer_size=100) as slow:
            async for update in slow:
                if update.received % 50 == 20 and update.received < 800:
                    known = books.books["XBTUSD"].best_bid.size
                    taps = [pipeline.tap(at, overflow="drop_newest") for at in (source, decoder, tables, books)]
                    await trio.testing.wait_all_tasks_blocked()
                    begun.append([tap.receive_nowait().received for tap in taps])
                    assert begun[-1] == [known] * 4, "each message raises the size by one: what is new begins there"
                    for tap in taps:
                        tap.close()
    assert len(begun) > 10


async def test_functions_of_a_users_that_are_called_in_the_middle_see_what_is_there_at_that_item():
    seen = []
    books = OrderBookMerger()
    async with Pipeline.create(Messages(a_book(100)), Decoder(), books) as pipeline:
        tap = pipeline.tap(
            overflow="latest", key=lambda update: seen.append((update.best_bid.size, update.book.best_bid.size))
        )
        await collect(tap)
    assert len(seen) == 100 and all(told == found for told, found in seen)

    asked = []
    books = OrderBookMerger()
    tables = TableApplier(resync=lambda topic: asked.append(books.books["XBTUSD"].best_bid.size))
    wrong = '{"table":"orderBookL2","action":"delete","data":[' + ROW % (9, "Buy", 1, 1) + "]}"
    items = [*a_book(50), RawMessage(50, wrong, "source"), *a_book(50)]
    async with Pipeline.create(Messages(items), Decoder(), tables, books) as pipeline:
        await collect(pipeline.tap())
    assert asked == [50]


async def test_a_process_that_was_set_on_one_decoder_alone_is_called():
    decoder, calls = Decoder(), []
    process = decoder.process
    decoder.process = lambda item: calls.append(item) or process(item)
    async with Pipeline.create(Messages(messages(100)), decoder) as pipeline:
        assert len(await collect(pipeline.tap())) == len(calls) == 100
