"""Sections that are not ours, between ours; ours in slurry's own Pipeline; and that every one of them always exits."""

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import slurry
import trio
import trio.testing
from slurry.environments import ProcessSection, ThreadSection, TrioSection
from slurry.sections import (
    Chain,
    Changes,
    Delay,
    Filter,
    Group,
    InsertValue,
    Map,
    Merge,
    Metronome,
    RateLimit,
    Repeat,
    Skip,
    SkipWhile,
    Window,
    Zip,
    ZipLatest,
)

from bitmex_streams.errors import ProcessDied
from bitmex_streams.operator import Operator
from bitmex_streams.pipeline import Pipeline
from tests.support import (
    Add,
    Burst,
    Hold,
    Pass,
    ProcessPass,
    RaiseAt,
    ThreadPass,
    TrioPass,
    Twice,
    collect,
    count,
    until_cancelled,
)

KINDS = [TrioPass, ThreadPass, ProcessPass]


@pytest.fixture(autouse=True)
def nothing_is_left():
    """No thread at work, no child process and no open file remains, however a test ended."""
    open_files = Path("/proc/self/fd")
    before = len(list(open_files.iterdir())) if open_files.is_dir() else math.inf
    yield
    assert not multiprocessing.active_children()
    if open_files.is_dir():
        assert len(list(open_files.iterdir())) <= before


# --- they work between ours ---


@pytest.mark.parametrize("kind", KINDS)
async def test_a_users_section_works_between_ours(kind):
    first, last = Add(1), Twice()
    with trio.fail_after(20):
        async with Pipeline.create(Burst(1000), first, kind(), last) as pipeline:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(collect, pipeline.tap(first, start=False))
                assert await collect(pipeline.tap()) == sorted([*range(1, 1001)] * 2)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_users_section_can_be_the_source(kind):
    class TrioSource(TrioSection):
        async def refine(self, input, output):
            assert input is None
            for item in range(100):
                await output(item)

    class ThreadSource(ThreadSection):
        def refine(self, input, output):
            for item in range(100):
                output(item)

    source = {TrioPass: TrioSource, ThreadPass: ThreadSource, ProcessPass: ProcessSource}[kind]()
    with trio.fail_after(20):
        async with Pipeline.create(source, Pass()) as pipeline:
            assert await collect(pipeline.tap()) == list(range(100))


class ProcessSource(ProcessSection):
    def refine(self, input, output):
        assert input is None
        for item in range(100):
            output(item)


SLURRY = {
    "Map": (lambda: Map(lambda item: item + 1), [1, 2, 3, 4, 5]),
    "Filter": (lambda: Filter(lambda item: item % 2), [1, 3]),
    "Skip": (lambda: Skip(3), [3, 4]),
    "SkipWhile": (lambda: SkipWhile(lambda item: item < 3), [3, 4]),
    "Changes": (lambda: Changes(), [0, 1, 2, 3, 4]),
    "RateLimit": (lambda: RateLimit(0.0, subject=lambda item: item), [0, 1, 2, 3, 4]),
    "Group": (lambda: Group(100, max_size=2), [(0, 1), (2, 3), (4,)]),
    "Window": (lambda: Window(2, min_size=2), [(0, 1), (1, 2), (2, 3), (3, 4)]),
    "Delay": (lambda: Delay(0.5), [0, 1, 2, 3, 4]),
    "Zip": (lambda: Zip(count(4)), [(0, 0), (1, 1), (2, 2), (3, 3)]),
    "Chain": (lambda: Chain(count(2)), [0, 1, 2, 3, 4, 0, 1]),
    "InsertValue": (lambda: InsertValue(-1), [-1, 0, 1, 2, 3, 4]),
}


@pytest.mark.parametrize("name", SLURRY)
async def test_slurrys_sections_work_between_ours_and_end_with_the_source(name, autojump_clock):
    make, expected = SLURRY[name]
    with trio.fail_after(1000):
        async with Pipeline.create(count(5), Pass(), make(), Pass()) as pipeline:
            assert await collect(pipeline.tap()) == expected
            await pipeline.wait()


async def test_merge_works_with_sections_of_ours_inside(autojump_clock):
    with trio.fail_after(1000):
        async with Pipeline.create(Merge(count(50), (Burst(50), Add(100))), Pass(), Merge(count(7))) as pipeline:
            received = await collect(pipeline.tap())
    assert sorted(received) == sorted([*range(50), *range(100, 150), *range(7)])


async def test_zip_latest_works_between_ours(autojump_clock):
    async with Pipeline.create(count(5), Pass(), ZipLatest(count(5)), Pass()) as pipeline:
        assert (await collect(pipeline.tap()))[-1] is not None


# --- they exit ---

ENDLESS = {
    "TrioSection": lambda: TrioPass(),
    "Map": lambda: Map(lambda item: item),
    "Filter": lambda: Filter(lambda item: True),
    "Group": lambda: Group(0.01),
    "Delay": lambda: Delay(0.01),
    "Merge": lambda: Merge(until_cancelled(), until_cancelled()),
    "Zip": lambda: Zip(until_cancelled()),
    "ZipLatest": lambda: ZipLatest(until_cancelled()),
    "Chain": lambda: Chain(until_cancelled()),
    "Repeat": lambda: Repeat(0.01),
    "Metronome": lambda: Metronome(0.01),
    "ThreadSection": ThreadPass,
    "ProcessSection": ProcessPass,
}


@pytest.mark.parametrize("name", ENDLESS)
async def test_it_exits_when_its_taps_close(name):
    with trio.fail_after(20):
        async with Pipeline.create(until_cancelled(), Pass(), ENDLESS[name](), Pass()) as pipeline:
            async with pipeline.tap() as tap:
                for _ in range(3):
                    await tap.receive()
            await pipeline.wait()


@pytest.mark.parametrize("name", ENDLESS)
async def test_it_exits_when_the_section_behind_it_has_had_enough(name):
    class TakeThree(TrioSection):
        async def refine(self, input, output):
            for _ in range(3):
                await output(await input.__anext__())

    with trio.fail_after(20):
        async with Pipeline.create(until_cancelled(), Pass(), ENDLESS[name](), Pass(), TakeThree(), Pass()) as pipeline:
            assert len(await collect(pipeline.tap())) == 3
            await pipeline.wait()


@pytest.mark.parametrize("name", ENDLESS)
@pytest.mark.parametrize("busy", [True, False])
async def test_it_exits_when_the_context_is_cancelled(name, busy):
    async def silence():
        await trio.sleep_forever()
        yield

    with trio.fail_after(20):
        with trio.move_on_after(0.2) as scope:
            async with Pipeline.create(until_cancelled() if busy else silence(), ENDLESS[name](), Pass()) as pipeline:
                pipeline.tap(start=True)
                await trio.sleep_forever()
        assert scope.cancelled_caught


@pytest.mark.parametrize("name", ENDLESS)
async def test_it_exits_when_the_body_ends(name):
    with trio.fail_after(20):
        async with Pipeline.create(until_cancelled(), ENDLESS[name](), Pass()) as pipeline, pipeline.tap() as tap:
            await tap.receive()


async def test_a_section_that_ends_early_ends_what_only_it_wanted_and_leaves_other_taps_alone():
    class TakeThree(TrioSection):
        async def refine(self, input, output):
            for _ in range(3):
                await output(await input.__anext__())

    early = Pass()
    async with Pipeline.create(count(100), early, TakeThree(), Pass()) as pipeline, trio.open_nursery() as nursery:
        seen = []

        async def read_early(tap):
            seen.extend(await collect(tap))

        nursery.start_soon(read_early, pipeline.tap(early, start=False))
        assert await collect(pipeline.tap()) == [0, 1, 2]
    assert seen == list(range(100))


# --- their errors ---


@pytest.mark.parametrize("kind", [*KINDS, RaiseAt])
@pytest.mark.parametrize("behind", [(), (Pass,), (TrioPass, Pass)], ids=["last", "before ours", "before theirs"])
async def test_an_error_reaches_the_user_after_the_ten_items_before_it_as_itself(kind, behind):
    error = OSError(5, "ten")
    failing = RaiseAt(10, error) if kind is RaiseAt else kind(error, at=10)
    received = []
    with trio.fail_after(20), pytest.raises(OSError) as caught:
        async with Pipeline.create(Burst(5000), Pass(), failing, *(section() for section in behind)) as pipeline:
            async for item in pipeline.tap():
                received.append(item)
    assert received == list(range(10))
    assert type(caught.value) is OSError
    assert caught.value.args == (5, "ten")
    if kind is not ProcessPass:
        assert caught.value is error


async def failing_generator():
    for item in range(10):
        yield item
    raise OSError(5, "ten")


class FailingTrioSource(TrioSection):
    async def refine(self, input, output):
        for item in range(10):
            await output(item)
        raise OSError(5, "ten")


class FailingThreadSource(ThreadSection):
    def refine(self, input, output):
        for item in range(10):
            output(item)
        raise OSError(5, "ten")


class FailingProcessSource(ProcessSection):
    def refine(self, input, output):
        for item in range(10):
            output(item)
        raise OSError(5, "ten")


@pytest.mark.parametrize(
    "source",
    [
        failing_generator,
        FailingTrioSource,
        FailingThreadSource,
        FailingProcessSource,
        lambda: Burst(10, OSError(5, "ten")),
    ],
    ids=["async iterable", "TrioSection", "ThreadSection", "ProcessSection", "Source"],
)
async def test_an_error_of_the_source_reaches_the_user_after_the_ten_items_before_it_as_itself(source):
    received = []
    with trio.fail_after(20), pytest.raises(OSError) as caught:
        async with Pipeline.create(source(), Pass(), TrioPass(), Pass()) as pipeline:
            async for item in pipeline.tap():
                await trio.sleep(0.002)
                received.append(item)
    assert received == list(range(10))
    assert type(caught.value) is OSError


@pytest.mark.parametrize("make", [lambda f: Map(f), lambda f: Filter(f), lambda f: Group(1, max_size=1, mapper=f)])
async def test_an_error_in_slurrys_sections_comes_out_as_itself(make):
    received = []
    with trio.fail_after(20), pytest.raises(ZeroDivisionError):
        async with Pipeline.create(count(100), make(lambda item: 1 / (10 - item)), Pass()) as pipeline:
            async for item in pipeline.tap():
                received.append(item)
    assert len(received) == 10


async def test_a_sections_own_broken_resource_error_is_an_error_and_not_an_end():
    class Broken(TrioSection):
        async def refine(self, input, output):
            async for item in input:
                await output(item)
                send, receive = trio.open_memory_channel(0)
                receive.close()
                await send.send(item)

    with pytest.raises(trio.BrokenResourceError):
        async with Pipeline.create(count(100), Broken()) as pipeline:
            assert await collect(pipeline.tap()) == [0]


async def test_a_process_that_dies_is_reported_after_what_it_put_out():
    received = []
    with trio.fail_after(20), pytest.raises(ProcessDied, match=r"Suicidal ended \(SIGKILL\)") as caught:
        async with Pipeline.create(count(100), Suicidal(), Pass()) as pipeline:
            async for item in pipeline.tap():
                received.append(item)
    assert received == list(range(10))
    assert caught.value.exitcode == -signal.SIGKILL


class Suicidal(ProcessSection):
    def refine(self, input, output):
        for item in input:
            if item == 10:
                os.kill(os.getpid(), signal.SIGKILL)
            output(item)


async def test_an_error_that_cannot_be_pickled_is_reported_in_words():
    with trio.fail_after(20), pytest.raises(ProcessDied, match="Unpicklable: so it was"):
        async with Pipeline.create(count(100), RaisesUnpicklable()) as pipeline:
            await collect(pipeline.tap())


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(one)


class RaisesUnpicklable(ProcessSection):
    def refine(self, input, output):
        raise Unpicklable("so it was", lambda: None)


# --- what they may count on ---


async def test_input_is_truthy_and_can_be_closed_and_output_is_a_checkpoint():
    seen = {}

    class Curious(TrioSection):
        async def refine(self, input, output):
            seen["truthy"] = bool(input)
            async for item in input:
                with trio.testing.assert_checkpoints():
                    await output(item)
                if item == 5:
                    break
            await input.aclose()
            await output("closed")

    with trio.fail_after(5):
        async with Pipeline.create(count(100), Pass(), Curious(), Pass()) as pipeline:
            assert await collect(pipeline.tap()) == [0, 1, 2, 3, 4, 5, "closed"]
    assert seen["truthy"]


async def test_output_called_from_many_tasks_at_once_loses_nothing():
    class Parallel(TrioSection):
        async def refine(self, input, output):
            async def put(begin):
                for item in range(begin, begin + 100):
                    await output(item)

            async with trio.open_nursery() as nursery:
                for begin in range(0, 1000, 100):
                    nursery.start_soon(put, begin)

    async with Pipeline.create(Parallel(), Pass()) as pipeline:
        assert sorted(await collect(pipeline.tap(max_buffer_size=0))) == list(range(1000))


async def test_a_cancelled_output_put_out_nothing(autojump_clock):
    class Impatient(TrioSection):
        async def refine(self, input, output):
            self.put_out = []
            for item in range(60):
                with trio.move_on_after(1):
                    await output(item)
                    self.put_out.append(item)

    section = Impatient()
    async with Pipeline.create(section) as pipeline:
        tap = pipeline.tap(max_buffer_size=0)
        await trio.sleep(1000)
        assert await collect(tap) == section.put_out
    assert len(section.put_out) < 60


async def test_a_users_section_in_the_middle_costs_a_bounded_number_of_items():
    before = Hold()
    async with Pipeline.create(Burst(10_000), before, TrioPass(), Pass()) as pipeline:
        pipeline.tap(max_buffer_size=0)
        await trio.testing.wait_all_tasks_blocked()
        assert len(before.held) < 100


# --- ours in slurry's ---


class Late(Operator):
    """Puts out a timer's word 50 ms after each item, on received time."""

    def process(self, item):
        self.deadline = self.now + 50_000_000
        return (item,)

    def on_time(self, now):
        self.deadline = None
        return ("late",)

    def finish(self):
        return ("end",)


@pytest.mark.parametrize("library", [Pipeline, slurry.Pipeline])
async def test_our_sections_work_in_both_pipelines(library, autojump_clock):
    async def source():
        yield 1
        await trio.sleep(1)
        yield 2

    async with library.create(source(), Add(1), Map(lambda item: item * 10), Late()) as pipeline:
        received = []
        async with pipeline.tap(max_buffer_size=10) as tap:
            async for item in tap:
                received.append(item)
    assert received == [20, "late", 30, "end"]


async def test_our_sources_work_in_slurrys_pipeline():
    async with slurry.Pipeline.create(Burst(20), Twice()) as pipeline, pipeline.tap() as tap:
        assert sorted([item async for item in tap]) == sorted([*range(20)] * 2)


async def test_an_operator_first_in_slurrys_pipeline_says_that_it_cannot_be():
    with pytest.raises(BaseException) as caught:
        async with slurry.Pipeline.create(Add(1)) as pipeline, pipeline.tap() as tap:
            await tap.receive()
    assert "Add works on items: it cannot be the first section" in "".join(traceback.format_exception(caught.value))


# --- processes and threads that misbehave ---


async def test_an_item_that_cannot_be_pickled_is_an_error_behind_the_good_ones():
    async def source():
        for item in range(10):
            yield item
        yield lambda: None

    received = []
    with trio.fail_after(20), pytest.raises(Exception, match="pickle") as caught:
        async with Pipeline.create(source(), ProcessPass()) as pipeline:
            async for item in pipeline.tap():
                received.append(item)
    assert received == list(range(10))
    assert "an item for the process of ProcessPass" in caught.value.__notes__[0]


class Exits(ProcessSection):
    def refine(self, input, output):
        for item in range(10):
            output(item)
        sys.exit(0)


async def test_a_process_that_calls_exit_does_not_end_ours():
    received = []
    with trio.fail_after(20), pytest.raises(ProcessDied, match="exit code 0"):
        async with Pipeline.create(Exits()) as pipeline:
            async for item in pipeline.tap():
                received.append(item)
    assert received == list(range(10))


class StartsAnother(ProcessSection):
    """Its own process holds the pipes open, as a pool of workers would."""

    def refine(self, input, output):
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        output(pid)
        for item in input:
            output(item)


async def test_a_process_that_started_another_does_not_hold_the_exit_up():
    with trio.fail_after(20):
        async with Pipeline.create(until_cancelled(), StartsAnother()) as pipeline, pipeline.tap() as tap:
            other = await tap.receive()
            await tap.receive()
    os.kill(other, signal.SIGKILL)


ORPHAN = """
import os, sys, time, trio
from slurry.environments import ProcessSection
from bitmex_streams import Pipeline

class Child(ProcessSection):
    def refine(self, input, output):
        output(os.getpid())
        for item in input:
            output(item)

async def silence():
    await trio.sleep_forever()
    yield

async def main():
    async with Pipeline.create(silence(), Child()) as pipeline, pipeline.tap() as tap:
        print(await tap.receive(), flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


def test_a_process_does_not_outlive_a_parent_that_is_killed():
    with subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(child, 0)
            if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return  # nobody has collected it yet
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the child lives on")


async def test_many_process_sections_leave_threads_for_others():
    received = []

    async def one():
        async with Pipeline.create(count(1), ProcessPass()) as pipeline, pipeline.tap() as tap:
            received.append(await tap.receive())
            if len(received) == 45:
                everybody.set()
            await everybody.wait()

    everybody = trio.Event()
    with trio.fail_after(50):
        async with trio.open_nursery() as nursery:
            for _ in range(45):
                nursery.start_soon(one)
            await everybody.wait()


def silence():
    async def generator():
        await trio.sleep_forever()
        yield

    return generator()


@pytest.mark.parametrize("kind", [ThreadPass, ProcessPass])
@pytest.mark.parametrize("combine", [Merge, Chain, Zip, ZipLatest])
async def test_thread_and_process_sections_inside_a_combiner_work_and_exit(kind, combine):
    with trio.fail_after(20):
        async with Pipeline.create(combine((count(5), kind())), Pass()) as pipeline:
            received = await collect(pipeline.tap())
        flat = [item[0] if isinstance(item, tuple) else item for item in received]
        assert flat == list(range(5))
        with trio.move_on_after(0.3) as scope:
            async with Pipeline.create(combine((silence(), kind())), Pass()) as pipeline:
                await collect(pipeline.tap())
        assert scope.cancelled_caught
        with pytest.raises(OSError, match="three"):
            async with Pipeline.create(combine((count(5), kind(OSError(5, "three"), at=3))), Pass()) as pipeline:
                await collect(pipeline.tap())


async def test_a_timed_operator_in_slurrys_pipeline_ends_cleanly_when_its_tap_closes():
    with trio.fail_after(5):
        async with slurry.Pipeline.create(until_cancelled(), Late()) as pipeline:
            async with pipeline.tap() as tap:
                await tap.receive()
            await trio.sleep(0.05)


# --- failures, and sections that go on without their input ---


async def forever():
    while True:
        yield "other"
        await trio.sleep(0.1)


@pytest.mark.parametrize(
    "behind",
    [lambda: Merge(silence()), lambda: Merge(forever()), lambda: Chain(forever()), lambda: Zip(silence())],
    ids=["Merge with silence", "Merge with another feed", "Chain with another feed", "Zip with silence"],
)
@pytest.mark.parametrize("extended", [False, True])
async def test_an_error_is_not_kept_by_a_combiner_that_has_other_sources(behind, extended, autojump_clock):
    received = []
    with trio.fail_after(60), pytest.raises(ZeroDivisionError):
        async with Pipeline.create(count(100), RaiseAt(10, ZeroDivisionError())) as pipeline:
            end = pipeline.extend(behind()) if extended else pipeline
            if not extended:
                end = pipeline.extend(Pass(), behind(), Pass())
            async for item in end.tap():
                received.append(item)
    if not isinstance(behind(), Zip):
        assert [item for item in received if item != "other"] == list(range(10))


@pytest.mark.parametrize("behind", [lambda: Merge(silence()), lambda: Merge(forever())])
async def test_an_error_is_not_kept_by_a_combiner_in_the_same_pipeline(behind, autojump_clock):
    received = []
    with trio.fail_after(60), pytest.raises(ZeroDivisionError):
        async with Pipeline.create(count(100), RaiseAt(10, ZeroDivisionError()), behind(), Pass()) as pipeline:
            async for item in pipeline.tap():
                received.append(item)
    assert [item for item in received if item != "other"] == list(range(10))


async def test_an_error_waits_for_what_a_section_holds_back(autojump_clock):
    received = []
    with pytest.raises(ZeroDivisionError):
        async with Pipeline.create(count(100), RaiseAt(10, ZeroDivisionError()), Delay(200)) as pipeline:
            async for item in pipeline.tap():
                received.append(item)
    assert received == list(range(10))


async def test_an_error_is_not_kept_for_ever_by_a_section_that_does_not_end(autojump_clock):
    class Stuck(TrioPass):
        async def refine(self, input, output):
            await super().refine(input, output)
            await trio.sleep_forever()

    received = []
    with trio.fail_after(100), pytest.raises(ZeroDivisionError):
        async with Pipeline.create(count(100), RaiseAt(10, ZeroDivisionError()), Stuck(), Pass()) as pipeline:
            async for item in pipeline.tap():
                received.append(item)
    assert received == list(range(10))


@pytest.mark.parametrize("combine", [Merge, Chain])
@pytest.mark.parametrize("failing", [RaiseAt, TrioPass, ThreadPass, ProcessPass, "source"])
async def test_inside_a_combiner_too_an_error_comes_after_the_ten_items_before_it(combine, failing):
    if failing == "source":
        source = failing_generator(), Pass(), ThreadPass()
    else:
        error = OSError(5, "ten")
        source = count(100), RaiseAt(10, error) if failing is RaiseAt else failing(error, at=10), Pass()
    received = []
    with trio.fail_after(20), pytest.raises(OSError):
        async with Pipeline.create(combine(source), Pass()) as pipeline:
            async for item in pipeline.tap():
                received.append(item)
    assert received == list(range(10))


@pytest.mark.parametrize("source", [silence, forever])
async def test_what_a_combiner_has_in_hand_while_its_consumer_is_slow_is_not_lost_with_it(source, autojump_clock):
    for number in range(20, 60):  # some of them end with one in hand, and its way full
        received = []
        with trio.fail_after(10_000), pytest.raises(ZeroDivisionError):
            failing = RaiseAt(number, ZeroDivisionError())
            async with Pipeline.create(count(100), failing, Merge(source())) as pipeline:
                async for item in pipeline.tap(max_buffer_size=0):
                    received.append(item)
                    await trio.sleep(5)
        assert [item for item in received if item != "other"] == list(range(number))
