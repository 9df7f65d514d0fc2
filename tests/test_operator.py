"""Operators: their timers run on the time of the items, carried on by trio's clock where the source is live."""

import time
from types import SimpleNamespace

import pytest
import slurry
import trio

from bitmex_streams.messages import RawMessage
from bitmex_streams.operator import Operator, StreamClock
from bitmex_streams.pipeline import Pipeline
from tests.support import Burst, Pass

SECOND = 1_000_000_000


class Every(Operator):
    """Passes items, and puts out the time (in seconds) each full second after the first item."""

    def process(self, item):
        if self.deadline is None:
            self.deadline = self.now + SECOND
        return (item,)

    def on_time(self, now):
        assert now >= self.deadline
        self.deadline += SECOND
        return ("tick",)


class At(Burst):
    """A source of messages received at given seconds, all at once."""

    def __init__(self, rate, *seconds, base=1_600_000_000 * SECOND, silence=0.0):
        super().__init__(0)
        self.rate = rate
        self.messages = [RawMessage(base + int(second * SECOND), str(second)) for second in seconds]
        self.silence = silence

    async def receive(self):
        await trio.lowlevel.checkpoint()
        if not self.messages:
            await trio.sleep_until(self.end)
            raise trio.EndOfChannel
        self.end = trio.current_time() + self.silence
        messages, self.messages = self.messages, []
        return messages


async def run(library, *sections):
    async with library.create(*sections) as pipeline, pipeline.tap(max_buffer_size=100) as tap:
        return [item if isinstance(item, str) else item.data async for item in tap]


@pytest.mark.parametrize("library", [Pipeline, slurry.Pipeline])
async def test_in_a_replay_only_the_items_move_time(library, autojump_clock):
    source = At(0.0, 0, 0.5, 2.2, 2.5, 3, silence=1000)
    assert await run(library, source, Every()) == ["0", "0.5", "tick", "tick", "2.2", "2.5", "tick", "3"]


async def test_live_time_goes_on_while_nothing_arrives(autojump_clock):
    assert await run(Pipeline, At(1.0, 0, 0.5, silence=2), Every()) == ["0", "0.5", "tick", "tick"]


async def test_at_twice_the_speed_time_goes_on_twice_as_fast(autojump_clock):
    assert await run(Pipeline, At(2.0, 0, 0.5, silence=2), Every()) == ["0", "0.5", "tick", "tick", "tick", "tick"]


@pytest.mark.parametrize("library", [Pipeline, slurry.Pipeline])
async def test_where_the_rate_is_unknown_items_of_this_minute_are_live(library, autojump_clock):
    source = At(None, 0, 0.5, base=time.time_ns() - SECOND, silence=2)
    assert await run(library, source, Every()) == ["0", "0.5", "tick", "tick"]


async def test_items_that_are_filtered_out_before_an_operator_still_move_its_time(autojump_clock):
    class Only(Operator):
        def process(self, item):
            return (item,) if item.data == "0" else ()

    assert await run(Pipeline, At(0.0, 0, 1.5, 3.5), Only(), Every()) == ["0", "tick", "tick", "tick"]


async def test_time_never_goes_back_where_received_does(autojump_clock):
    assert await run(Pipeline, At(0.0, 0, 2.5, 1, 3.5), Every()) == ["0", "tick", "tick", "2.5", "1", "tick", "3.5"]


@pytest.mark.parametrize("item", ["foreign", SimpleNamespace(received="2026-01-01T00:00:00Z")])
async def test_an_item_without_received_in_nanoseconds_has_the_clocks_time(item, autojump_clock):
    clock = StreamClock()
    await trio.sleep(5)
    before = clock.now
    clock.see(item)
    assert clock.now - before == pytest.approx(5 * SECOND, rel=0.01)


async def test_an_operator_without_timers_costs_no_clock():
    assert not Pass().timed
    assert Every().timed
