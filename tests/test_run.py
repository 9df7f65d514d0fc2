"""A run: its decoder works through a batch before those behind it begin, and nobody can tell."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio

from bitmex_streams.errors import DecodeError
from bitmex_streams.messages import RawMessage, StateLost, TableMessage
from bitmex_streams.operator import Operator, Source
from bitmex_streams.pipeline import Pipeline
from bitmex_streams.sections.decoder import Decoder
from tests.support import collect

GOOD = '{"table":"trade","action":"insert","data":[{"symbol":"XBTUSD","size":%d}]}'


class Messages(Source):
    """All in one batch."""

    def __init__(self, messages):
        self.messages = messages

    @asynccontextmanager
    async def batches(self, input):
        yield self

    async def receive(self):
        await trio.lowlevel.checkpoint()
        if not self.messages:
            raise trio.EndOfChannel
        messages, self.messages = self.messages, []
        return messages


def messages(number, *, bad=()):
    return [RawMessage(n, "no JSON" if n in bad else GOOD % n, "source", n + 1) for n in range(number)]


class Fails(Operator):
    def __init__(self, at):
        self.at = at

    def process(self, item):
        if item.received == self.at:
            raise ZeroDivisionError
        return (item,)


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


async def test_of_two_errors_in_a_batch_the_first_in_the_stream_counts():
    got = []
    with pytest.raises(ZeroDivisionError) as caught:
        async with Pipeline.create(
            Messages(messages(60, bad=[30])), Decoder(on_error="raise"), Fails(20)
        ) as pipeline:
            async for item in pipeline.tap():
                got.append(item.received)
    assert got == list(range(20))
    assert caught.value.__notes__ == ["raised in Fails, a section of the pipeline"]


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
