"""ReadAhead: blocks come in order, at once or by way of a thread; memory is bounded, and no thread is left behind."""

import math
import os
import threading

import pytest
import trio

from bitmex_streams import ahead
from bitmex_streams.ahead import ReadAhead


class Blocks:
    """A generator of ``count`` blocks of one byte, and who ran it."""

    def __init__(self, count, error=None):
        self.given = 0
        self.threads = set()
        self.closed_by = None
        self.generator = self._generate(count, error)

    def _generate(self, count, error):
        try:
            for _ in range(count):
                self.threads.add(threading.current_thread())
                self.given += 1
                yield bytes((self.given % 256,))
            if error is not None:
                raise error
        finally:
            self.closed_by = threading.current_thread()


async def read(blocks):
    """All blocks, and the error that ended them (or None)."""
    taken = []
    try:
        while True:
            await blocks.ready()
            taken.append(next(blocks))
    except StopIteration:
        return taken, None
    except ValueError as error:
        return taken, error


async def until(condition):
    while not condition():  # noqa: ASYNC110 - what threads do has no event
        await trio.sleep(0.001)


@pytest.mark.parametrize("at_once", [0, 1, 5, 9, 10, math.inf])
@pytest.mark.parametrize("error", [None, ValueError("damaged")])
async def test_blocks_come_in_order_and_an_error_waits_its_turn(at_once, error, monkeypatch):
    monkeypatch.setattr(ahead, "CHUNK", 3)
    blocks = Blocks(9, error=error)
    async with trio.open_nursery() as nursery:
        reading = ReadAhead(blocks.generator, nursery, at_once=at_once)
        assert await read(reading) == ([bytes((number,)) for number in range(1, 10)], error)
        await reading.ready()  # for what never comes, nobody waits
        reading.close()


async def test_what_is_read_at_once_needs_no_thread(monkeypatch):
    monkeypatch.setattr(trio.to_thread, "run_sync", None)
    blocks = Blocks(9)
    async with trio.open_nursery() as nursery:
        reading = ReadAhead(blocks.generator, nursery, at_once=math.inf)
        assert len((await read(reading))[0]) == 9
    assert blocks.threads == {threading.current_thread()}


async def test_only_what_lies_beyond_is_read_in_a_thread():
    blocks = Blocks(9)
    async with trio.open_nursery() as nursery:
        reading = ReadAhead(blocks.generator, nursery, at_once=4)
        for _ in range(4):
            await reading.ready()
            next(reading)
        assert blocks.threads == {threading.current_thread()}
        await reading.ready()
        assert len(blocks.threads) == 2
        reading.close()


async def test_a_slow_consumer_has_two_chunks_in_memory_at_most(monkeypatch):
    monkeypatch.setattr(ahead, "CHUNK", 5)
    blocks = Blocks(1000)
    async with trio.open_nursery() as nursery:
        reading = ReadAhead(blocks.generator, nursery)
        for taken in range(1, 30):
            await reading.ready()
            next(reading)
            await until(lambda: reading._chunks.statistics().tasks_waiting_send)  # the thread has nothing to do now
            assert blocks.given == (taken + 4) // 5 * 5 + 5
        reading.close()


async def test_a_cancelled_wait_loses_nothing(autojump_clock, monkeypatch):
    monkeypatch.setattr(ahead, "CHUNK", 1)
    blocks = Blocks(50)
    taken = []
    async with trio.open_nursery() as nursery:
        reading = ReadAhead(blocks.generator, nursery)
        while len(taken) < 50:
            with trio.move_on_after(1):  # the clock jumps there as soon as only the thread works
                await reading.ready()
                taken.append(next(reading))
        reading.close()
    assert taken == [bytes((number,)) for number in range(1, 51)]


async def test_when_it_is_left_the_thread_has_come_back_and_the_blocks_are_closed(monkeypatch):
    monkeypatch.setattr(ahead, "PATIENCE", 600)
    monkeypatch.setattr(ahead, "CHUNK", math.inf)  # it would never come back with a chunk
    blocks = Blocks(10**9)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            reading = ReadAhead(blocks.generator, nursery)
            with trio.CancelScope() as waiting:
                async with trio.open_nursery() as others:
                    others.start_soon(reading.ready)
                    await until(lambda: blocks.threads)
                    waiting.cancel()
            assert blocks.closed_by is None
            reading.close()
    assert {blocks.closed_by} == blocks.threads
    assert reading._limiter.borrowed_tokens == 0


async def test_a_read_that_never_returns_holds_up_no_cancellation_and_is_cleaned_up_when_it_does(autojump_clock):
    receiving, sending = os.pipe()
    began, closed = threading.Event(), threading.Event()

    def blocks():
        try:
            began.set()
            yield os.read(receiving, 1)
        finally:
            os.close(receiving)
            closed.set()

    try:
        async with trio.open_nursery() as nursery:
            reading = ReadAhead(blocks(), nursery)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as others:
                    others.start_soon(reading.ready)
                    await until(began.is_set)
                    scope.cancel()
            reading.close()
            left = trio.current_time()
        assert trio.current_time() == pytest.approx(left + ahead.PATIENCE)
        assert not closed.is_set()
    finally:
        os.close(sending)
    assert closed.wait(60)


async def test_closed_before_it_began_it_reads_nothing():
    blocks = Blocks(9)
    async with trio.open_nursery() as nursery:
        reading = ReadAhead(blocks.generator, nursery)
        reading.close()
        await reading.ready()
        assert await read(reading) == ([], None)
    assert blocks.given == 0
