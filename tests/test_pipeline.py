"""Pipeline: stages, taps, order, ends and errors. How sections that are not ours fare in it is in test_foreign.py."""

import contextlib
import math
import tracemalloc

import pytest
import trio
import trio.testing
from slurry.environments import TrioSection
from slurry.sections import Merge

from bitmex_streams import (
    Bars,
    Connection,
    Decoder,
    Fills,
    Margin,
    OrderBookMerger,
    Orders,
    Positions,
    TableApplier,
    Throttle,
    Tickers,
)
from bitmex_streams.exchange import open_exchange
from bitmex_streams.operator import Operator
from bitmex_streams.pipeline import Pipeline
from tests.support import (
    Add,
    Burst,
    Hold,
    NeverAwaits,
    Pass,
    RaiseAt,
    TrioPass,
    Twice,
    collect,
    count,
    until_cancelled,
)

# --- stages and their taps ---


async def test_the_default_tap_receives_what_comes_out_of_the_last_stage():
    async with Pipeline.create(count(5), Add(10), Twice()) as pipeline:
        assert await collect(pipeline.tap()) == [10, 10, 11, 11, 12, 12, 13, 13, 14, 14]


async def test_every_stage_can_be_tapped_also_the_source():
    source, add, twice = count(3), Add(10), Twice()
    async with Pipeline.create(source, add, twice) as pipeline, trio.open_nursery() as nursery:
        received = {}

        async def read(name, tap):
            received[name] = await collect(tap)

        nursery.start_soon(read, "source", pipeline.tap(source, start=False))
        nursery.start_soon(read, "add", pipeline.tap(add, start=False))
        nursery.start_soon(read, "twice", pipeline.tap(twice))
    assert received == {"source": [0, 1, 2], "add": [10, 11, 12], "twice": [10, 10, 11, 11, 12, 12]}


async def test_nested_tuples_are_flattened_and_their_sections_are_stages():
    add = Add(1)
    async with Pipeline.create((count(3), (add,)), (Twice(), (Pass(),))) as pipeline:
        pipeline.tap(add).close()
        assert await collect(pipeline.tap()) == [1, 1, 2, 2, 3, 3]


async def test_a_section_that_is_no_stage_is_refused_with_the_list_of_stages():
    async with Pipeline.create(count(3), Add(1)) as pipeline:
        with pytest.raises(ValueError, match=r"Twice is not a stage of this pipeline.* 0: async_generator, 1: Add"):
            pipeline.tap(Twice())


@pytest.mark.parametrize(
    ("sections", "complaint"),
    [
        ((), "needs a section at least"),
        ((Add(1),), "Add works on items: it cannot be the first"),
        ((3,), "int, is no section"),
        ((NeverAwaits(3), NeverAwaits(3)), "is an async iterable, which only the first may be"),
        ((NeverAwaits(3), Add), "is the class Add: make an instance"),
        ((NeverAwaits(3), (same := Add(1)), Twice(), same), "Add stands twice"),
    ],
)
def test_what_cannot_be_a_pipeline_is_refused_before_anything_runs(sections, complaint):
    with pytest.raises(ValueError, match=complaint):
        Pipeline.create(*sections)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"overflow": "newest"}, "overflow is"),
        ({"max_buffer_size": -1}, "max_buffer_size"),
        ({"overflow": "drop_oldest", "max_buffer_size": 0}, "room for one item"),
        ({"overflow": "latest", "max_buffer_size": 3}, "takes no max_buffer_size"),
        ({"overflow": "latest", "timeout": 3}, "timeout and retrys go with"),
        ({"key": len}, "key goes with"),
        ({"timeout": 0}, "timeout is in seconds"),
    ],
)
async def test_tap_options_that_contradict_each_other_are_refused(options, complaint):
    async with Pipeline.create(count(3)) as pipeline:
        with pytest.raises(ValueError, match=complaint):
            pipeline.tap(**options)


# --- start and end ---


async def test_it_starts_with_its_first_tap_unless_that_says_not_to(autojump_clock):
    began = []

    async def source():
        began.append(trio.current_time())
        yield 1

    async with Pipeline.create(source()) as pipeline:
        quiet = pipeline.tap(start=False)
        await trio.sleep(1)
        assert not began
        assert await collect(pipeline.tap()) == [1]
        assert await collect(quiet) == [1]


async def test_without_a_tap_it_ends_at_the_next_item(autojump_clock):
    got = []

    async def source():
        for number in range(100):
            got.append(number)
            yield number
            await trio.sleep(1)

    async with Pipeline.create(source()) as pipeline:
        async with pipeline.tap() as tap:
            await tap.receive()
        await pipeline.wait()
        assert len(got) <= 3


async def test_a_tap_in_the_middle_is_enough_to_keep_it_going():
    middle, last = Add(1), Hold()
    async with Pipeline.create(count(100), middle, last) as pipeline:
        assert len(await collect(pipeline.tap(middle))) == 100
        assert len(last.held) == 100


async def test_after_start_it_runs_to_its_end_whether_or_not_anybody_listens():
    held = Hold()
    async with Pipeline.create(count(1000), held) as pipeline:
        pipeline.start()
        await pipeline.wait()
        assert held.held == list(range(1000))


async def test_a_tap_opened_after_the_end_ends_at_once():
    async with Pipeline.create(count(3)) as pipeline:
        await collect(pipeline.tap())
        await pipeline.wait()
        assert await collect(pipeline.tap()) == []
    assert await collect(pipeline.tap()) == []


async def test_a_tap_opened_later_receives_from_there_on():
    async with Pipeline.create(count(200)) as pipeline:
        early = pipeline.tap(max_buffer_size=0)
        for expected in range(100):
            assert await early.receive() == expected
        late = pipeline.tap()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect, early)
            rest = await collect(late)
        assert rest == list(range(rest[0], 200))
        assert rest[0] in (100, 101)


async def test_leaving_the_context_ends_taps_that_are_still_open():
    async with Pipeline.create(until_cancelled()) as pipeline:
        tap = pipeline.tap()
    assert await collect(tap) == []


async def test_cancelling_the_context_leaves_it_at_once(autojump_clock):
    with trio.move_on_after(5) as scope:
        async with Pipeline.create(until_cancelled(), Add(1), Pass()) as pipeline, pipeline.tap() as tap:
            async for _ in tap:
                pass
    assert scope.cancelled_caught
    assert trio.current_time() == pytest.approx(5)


async def test_a_source_that_never_awaits_lets_others_run():
    async with Pipeline.create(NeverAwaits(math.inf), Pass()) as pipeline:
        pipeline.tap(overflow="latest", key=lambda _: None)
        with trio.move_on_after(0.05) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught


async def test_operators_put_out_what_they_still_have_at_the_end():
    async with Pipeline.create(count(3), Hold(put_out_at_the_end=True), Twice()) as pipeline:
        assert await collect(pipeline.tap()) == [0, 0, 1, 1, 2, 2]


# --- order and backpressure ---


async def test_a_burst_arrives_in_order_at_five_taps_on_different_stages():
    stages = [Burst(10_000), Pass(), Add(0), Pass(), Add(0)]
    async with Pipeline.create(*stages) as pipeline, trio.open_nursery() as nursery:
        received = {}

        async def read(number, tap):
            received[number] = await collect(tap)

        for number, (stage, size) in enumerate(zip(stages, [64, 0, 1, 5000, math.inf], strict=True)):
            nursery.start_soon(read, number, pipeline.tap(stage, start=number == 4, max_buffer_size=size))
    assert received == {number: list(range(10_000)) for number in range(5)}


@pytest.mark.parametrize("size", [0, 1, 7])
async def test_a_block_tap_holds_the_pipeline_at_its_buffer(size):
    passed = Hold()
    async with Pipeline.create(Burst(100), passed) as pipeline:
        tap = pipeline.tap(max_buffer_size=size)
        await trio.testing.wait_all_tasks_blocked()
        assert len(passed.held) == size + 1  # as with trio's channels, one is in the sender's hand
        await tap.receive()
        await trio.testing.wait_all_tasks_blocked()
        assert len(passed.held) == size + 2
        assert tap.statistics().tasks_waiting_send == 1


async def test_one_blocked_tap_holds_the_others_too_and_closing_it_frees_them():
    async with Pipeline.create(Burst(1000)) as pipeline:
        blocked, free = pipeline.tap(), pipeline.tap()
        with trio.move_on_after(0.05):
            await collect(free.clone())
        blocked.close()
        assert len(await collect(free)) > 0
        await pipeline.wait()


async def test_a_consumer_that_takes_nothing_for_its_timeout_ends_the_pipeline(autojump_clock):
    with pytest.raises(trio.BusyResourceError, match="took nothing for 6 s"):
        async with Pipeline.create(count(5)) as pipeline:
            pipeline.tap(timeout=3, retrys=1)
            await trio.sleep_forever()
    assert trio.current_time() == pytest.approx(6)


async def test_a_consumer_that_is_slower_than_its_first_try_but_not_than_its_retries_is_served(autojump_clock):
    async with Pipeline.create(count(5)) as pipeline, pipeline.tap(timeout=1, retrys=2) as tap:
        received = []
        async for item in tap:
            await trio.sleep(2)
            received.append(item)
    assert received == [0, 1, 2, 3, 4]


# --- overflow ---


async def test_a_consumer_that_never_reads_costs_no_more_than_its_buffer_and_delays_nobody():
    class Fresh(Operator):
        def process(self, item):
            return ((item % 10, b"x" * 1000),)

    latest_of = {"overflow": "latest", "key": lambda item: item[0]}
    async with Pipeline.create(Burst(200_000), Fresh(), (counted := Hold(keep=0))) as pipeline:
        taps = [
            pipeline.tap(**latest_of, start=False),
            pipeline.tap(overflow="drop_oldest", max_buffer_size=100, start=False),
            pipeline.tap(overflow="drop_newest", max_buffer_size=100, start=False),
        ]
        tracemalloc.start()
        try:
            pipeline.start()
            await pipeline.wait()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert counted.seen == 200_000
        assert peak < 10_000_000
        assert [len(await collect(tap)) for tap in taps] == [10, 100, 100]
        assert [tap.dropped for tap in taps] == [199_990, 199_900, 199_900]


async def test_the_drop_policies_keep_what_they_say():
    async with Pipeline.create(Burst(10)) as pipeline:
        oldest_go = pipeline.tap(overflow="drop_oldest", max_buffer_size=3, start=False)
        newest_go = pipeline.tap(overflow="drop_newest", max_buffer_size=3, start=False)
        by_parity = pipeline.tap(overflow="latest", key=lambda item: item % 2, start=False)
        pipeline.start()
        await pipeline.wait()
        assert await collect(oldest_go) == [7, 8, 9]
        assert await collect(newest_go) == [0, 1, 2]
        assert await collect(by_parity) == [8, 9]


NEED_ALL = [TableApplier, OrderBookMerger, Bars, Orders, Fills, Positions, Margin]


@pytest.mark.parametrize("overflow", ["latest", "drop_oldest", "drop_newest"])
@pytest.mark.parametrize("needy", NEED_ALL)
async def test_what_adds_up_all_items_is_not_fed_by_a_tap_that_drops(needy, overflow):
    async with Pipeline.create(count(0)) as pipeline:
        tap = pipeline.tap(overflow=overflow)
        with pytest.raises(ValueError, match=f"{needy.__name__} needs all items, .*{overflow}.* by `extend`"):
            Pipeline.create(tap, Decoder(), needy())


async def test_it_is_noticed_within_combiners_too():
    async with Pipeline.create(count(0)) as pipeline:
        tap = pipeline.tap(overflow="latest")
        for sections in [
            (Merge(count(0), (tap, Pass())), TableApplier()),
            (count(0), Merge((tap, TableApplier()))),
            (tap, Merge(count(0)), TableApplier()),
        ]:
            with pytest.raises(ValueError, match="TableApplier needs all items"):
                Pipeline.create(*sections)


async def test_whole_rows_and_what_needs_no_others_may_come_from_a_tap_that_drops():
    async with Pipeline.create(count(3)) as pipeline:
        latest = pipeline.tap(overflow="latest", key=lambda item: item)
        async with Pipeline.create(latest, Pass(), Tickers(), Throttle(1, key=hash)) as behind:
            assert await collect(behind.tap()) == [0, 1, 2]
    async with Pipeline.create(count(3)) as pipeline:
        beside = Merge((pipeline.tap(), TableApplier()), pipeline.tap(overflow="latest"))
        async with Pipeline.create(beside) as behind:
            assert set(await collect(behind.tap())) == {0, 1, 2}


# --- errors ---


async def test_an_error_comes_after_every_item_before_it_also_to_a_slow_consumer(autojump_clock):
    received = []
    with pytest.raises(ZeroDivisionError) as caught:
        async with Pipeline.create(count(100), RaiseAt(10, ZeroDivisionError("ten")), Pass()) as pipeline:
            async for item in pipeline.tap():
                await trio.sleep(0.5)
                received.append(item)
            received.append("a clean end")
    assert received == list(range(10))
    assert str(caught.value) == "ten"
    assert "RaiseAt" in caught.value.__notes__[0]
    assert caught.value.__context__ is None


async def test_a_consumer_that_never_comes_back_for_more_does_not_hold_an_error_for_ever(autojump_clock):
    with pytest.raises(ZeroDivisionError):
        async with Pipeline.create(count(100), RaiseAt(3, ZeroDivisionError())) as pipeline, pipeline.tap() as tap:
            for expected in range(3):
                assert await tap.receive() == expected
            await trio.sleep_forever()
    assert trio.current_time() < 10


async def test_the_operators_behind_a_failure_put_out_what_they_have():
    received = []
    with pytest.raises(ZeroDivisionError):
        async with Pipeline.create(
            count(100), RaiseAt(3, ZeroDivisionError()), Hold(put_out_at_the_end=True), Pass()
        ) as pipeline:
            async for item in pipeline.tap():
                received.append(item)
    assert received == [0, 1, 2]


async def test_what_a_failing_operator_put_out_before_is_delivered():
    class Partly(Operator):
        def process(self, item):
            yield "before"
            raise ZeroDivisionError

    received = []
    with pytest.raises(ZeroDivisionError):
        async with Pipeline.create(count(1), Partly()) as pipeline:
            async for item in pipeline.tap():
                received.append(item)
    assert received == ["before"]


async def test_an_error_waits_for_every_block_tap_on_every_stage(autojump_clock):
    received = []
    first = Pass()

    async def slowly(tap):
        async for item in tap:
            await trio.sleep(0.1)
            received.append(item)

    with pytest.raises(ZeroDivisionError):
        async with Pipeline.create(count(100), first, RaiseAt(20, ZeroDivisionError())) as pipeline:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(slowly, pipeline.tap(first, start=False))
                nursery.start_soon(slowly, pipeline.tap())
    # The stage before the failing one had also put out the item that failed (and the source may have been ahead).
    assert sorted(received)[:40] == sorted([*range(20), *range(20)])


async def test_what_the_body_raises_passes_untouched():
    error = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        async with Pipeline.create(until_cancelled()) as pipeline, pipeline.tap():
            raise error
    assert caught.value is error
    assert error.__cause__ is None
    assert error.__context__ is None


async def test_a_group_that_the_body_raises_passes_untouched():
    group = ExceptionGroup("mine", [KeyError("only one")])
    with pytest.raises(ExceptionGroup) as caught:
        async with Pipeline.create(until_cancelled()) as pipeline, pipeline.tap():
            raise group
    assert caught.value is group


async def test_several_errors_come_as_a_builtin_group():
    class Stubborn(TrioSection):
        async def refine(self, input, output):
            try:
                async for item in input:
                    await output(item)
            finally:
                raise KeyError("upstream")

    with pytest.raises(ExceptionGroup) as caught:
        async with Pipeline.create(count(100), Stubborn(), RaiseAt(3, ZeroDivisionError())) as pipeline:
            await collect(pipeline.tap())
    assert type(caught.value) is ExceptionGroup
    assert {type(error) for error in caught.value.exceptions} == {KeyError, ZeroDivisionError}


async def test_the_bodys_error_and_the_pipelines_are_both_raised():
    with pytest.raises(ExceptionGroup) as caught:
        async with Pipeline.create(count(100), RaiseAt(3, ZeroDivisionError())) as pipeline:
            try:
                await collect(pipeline.tap())
            finally:
                raise KeyError("clean-up")
    assert [type(error) for error in caught.value.exceptions] == [KeyError, ZeroDivisionError]


async def test_an_error_in_a_task_that_the_user_started_in_the_pipelines_nursery_comes_out_as_itself():
    async def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async with Pipeline.create(until_cancelled()) as pipeline:
            pipeline.nursery.start_soon(fail)
            await collect(pipeline.tap())


async def test_a_cancellation_from_outside_is_not_mistaken_for_an_end():
    after = []
    with trio.CancelScope() as scope:
        async with Pipeline.create(until_cancelled()) as pipeline, pipeline.tap() as tap:
            await tap.receive()
            scope.cancel()
            await tap.receive()
        after.append("reached")
    assert scope.cancelled_caught
    assert not after


async def test_an_operator_that_does_not_move_its_deadline_on_is_an_error_not_a_busy_loop():
    class Stuck(Operator):
        deadline = 1

        def process(self, item):
            return (item,)

        def on_time(self, now):
            return ()

    with pytest.raises(RuntimeError, match=r"Stuck\.on_time did not move its deadline on"):
        async with Pipeline.create(count(3), Stuck()) as pipeline:
            await collect(pipeline.tap())


# --- extensions ---


async def test_an_extension_is_a_pipeline_behind_the_pipeline():
    async with Pipeline.create(count(5), Add(1)) as pipeline:
        extension = pipeline.extend(Twice())
        assert extension.sections[1:] and extension.nursery is pipeline.nursery
        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect, pipeline.tap(start=False))
            assert await collect(extension.tap()) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


async def test_an_error_in_the_pipeline_reaches_the_user_after_the_extensions_have_delivered(autojump_clock):
    received = []
    with pytest.raises(ZeroDivisionError):
        async with Pipeline.create(count(100), RaiseAt(10, ZeroDivisionError())) as pipeline:
            async for item in pipeline.extend(Twice()).tap():
                await trio.sleep(0.1)
                received.append(item)
    assert received == sorted([*range(10), *range(10)])


async def test_an_error_in_an_extension_comes_out_of_the_context_as_itself(autojump_clock):
    received = []
    with pytest.raises(ZeroDivisionError):
        async with Pipeline.create(until_cancelled()) as pipeline:
            async for item in pipeline.extend(Pass(), RaiseAt(10, ZeroDivisionError())).tap():
                received.append(item)
    assert received == list(range(10))


async def test_an_extension_that_nobody_reads_any_more_lets_the_pipeline_end():
    async with Pipeline.create(count(100_000)) as pipeline:
        async with pipeline.extend(Pass()).tap() as tap:
            await tap.receive()
        await pipeline.wait()


# --- a failure, and taps that nobody reads just then ---


async def test_wait_returns_after_a_failure_too_and_what_was_not_read_yet_can_be(autojump_clock):
    with pytest.raises(ZeroDivisionError):
        async with Pipeline.create(count(100), RaiseAt(10, ZeroDivisionError())) as pipeline:
            tap = pipeline.tap()
            await pipeline.wait()
            assert [await tap.receive() for _ in range(10)] == list(range(10))
            await tap.receive()


async def test_a_task_outside_the_context_that_waits_for_the_end_hears_of_it_however_it_comes():
    for source in count(5), failing(), until_cancelled():
        async with trio.open_nursery() as nursery:
            with contextlib.suppress(ZeroDivisionError):
                async with Pipeline.create(source) as pipeline:
                    nursery.start_soon(pipeline.wait)
                    async with pipeline.tap() as tap:
                        await tap.receive()


async def failing():
    yield 1
    raise ZeroDivisionError


async def test_a_consumer_outside_the_context_does_not_take_a_failure_for_a_good_end():
    async def consume(tap):
        assert await tap.receive() == 1
        with pytest.raises(trio.BrokenResourceError, match="ZeroDivisionError") as caught:
            await tap.receive()
        assert isinstance(caught.value.__cause__, ZeroDivisionError)

    async with trio.open_nursery() as nursery:
        with pytest.raises(ZeroDivisionError):
            async with Pipeline.create(failing()) as pipeline:
                nursery.start_soon(consume, pipeline.tap())
                await trio.sleep_forever()


async def test_an_error_waits_for_an_unread_tap_no_longer_than_its_timeout(autojump_clock):
    with pytest.raises(ZeroDivisionError):
        async with Pipeline.create(count(100), RaiseAt(10, ZeroDivisionError())) as pipeline:
            pipeline.tap(timeout=3, max_buffer_size=64)
            await trio.sleep_forever()
    assert trio.current_time() == pytest.approx(3)


async def test_an_error_that_waits_for_an_unread_tap_is_told_in_the_log(autojump_clock, caplog):
    with pytest.raises(ZeroDivisionError):
        async with Pipeline.create(count(100), RaiseAt(10, ZeroDivisionError())) as pipeline:
            tap = pipeline.tap()
            await trio.sleep(60)
            assert "ZeroDivisionError ended the pipeline" in caplog.text
            assert "`block` tap on RaiseAt, in which 10 items wait" in caplog.text
            tap.close()
            await trio.sleep_forever()


async def test_an_extension_of_a_failed_pipeline_ends_at_once(autojump_clock):
    with pytest.raises(ZeroDivisionError):
        async with Pipeline.create(count(100), RaiseAt(10, ZeroDivisionError())) as pipeline:
            tap = pipeline.tap()
            await pipeline.wait()
            extended = pipeline.extend(Pass(), start=True).tap()
            await collect(tap)
            await collect(extended)


async def test_a_slow_consumer_is_not_one_that_takes_nothing(autojump_clock):
    class Many(Operator):
        def process(self, item):
            return range(20)

    async with Pipeline.create(count(1), Many()) as pipeline, pipeline.tap(timeout=1) as tap:
        received = []
        async for item in tap:
            await trio.sleep(0.5)
            received.append(item)
    assert received == list(range(20))


async def test_an_error_in_a_taps_key_names_the_tap_and_stops_no_operator_from_finishing(autojump_clock):
    first = Pass()
    with pytest.raises(ZeroDivisionError) as caught:
        async with Pipeline.create(count(5), first, Hold(put_out_at_the_end=True)) as pipeline:
            tap = pipeline.tap(start=False)
            pipeline.tap(first, overflow="latest", key=lambda item: 1 // (3 - item))
            received = []
            async for item in tap:
                received.append(item)
    assert received == [0, 1, 2]
    assert caught.value.__notes__ == ["raised in the key of a `latest` tap on Pass, a section of the pipeline"]


async def test_all_operators_behind_a_failure_finish_even_if_one_of_them_cannot():
    class CannotFinish(Pass):
        def finish(self):
            raise KeyError

    received = []
    with pytest.raises(ExceptionGroup) as caught:
        async with Pipeline.create(
            count(9), RaiseAt(3, ZeroDivisionError()), CannotFinish(), Hold(put_out_at_the_end=True)
        ) as pipeline:
            async for item in pipeline.tap():
                received.append(item)
    assert received == [0, 1, 2]
    assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError, KeyError]


async def test_an_iterable_whose_iterator_is_another_object_is_closed(autojump_clock):
    closed = []

    class Iterable:
        async def __aiter__(self):
            try:
                yield 1
                await trio.sleep_forever()
            finally:
                closed.append(True)

    async with Pipeline.create(Iterable()) as pipeline, pipeline.tap() as tap:
        await tap.receive()
    assert closed == [True]


# --- connections and the operators behind them ---


class Live(Burst):
    """A source that can lose state and give it anew, as a Connection can."""

    def __init__(self):
        super().__init__(3)
        self.asked = []
        self.watchers = []

    def resync(self, topic):
        self.asked.append(topic)

    def watch(self, callback):
        self.watchers.append(callback)
        return lambda: self.watchers.remove(callback)


class Watches(Pass):
    lost = ""

    def lose_state(self, source, reason):
        self.lost = source


@pytest.mark.parametrize("how", ["directly", "in a combiner", "in an extension"])
async def test_operators_are_connected_with_the_sources_before_them_while_the_pipeline_runs(how):
    live, operator, foreign = Live(), Watches(), TrioPass()
    sections = {
        "directly": [live, foreign, operator],
        "in a combiner": [Merge((live, Pass()), until_cancelled()), foreign, operator],
        "in an extension": [live, foreign],
    }[how]
    async with Pipeline.create(*sections) as pipeline:
        end = pipeline.extend(Pass()).extend(operator) if how == "in an extension" else pipeline
        async with end.tap() as tap:
            await tap.receive()
            operator.resync("trade:XBTUSD")
            for callback in live.watchers:
                callback("ws://one", "gone")
            assert live.asked == ["trade:XBTUSD"]
            assert operator.lost == "ws://one"
    assert operator.resync is None
    assert not live.watchers


async def test_a_resync_that_was_given_by_hand_is_left_alone():
    asked = []
    operator = Pass()
    operator.resync = asked.append
    async with Pipeline.create(Live(), operator) as pipeline:
        await collect(pipeline.tap())
        operator.resync("trade")
    assert asked == ["trade"]


async def test_statistics_tell_of_sources_decoders_and_taps():
    async with open_exchange(symbols=["XBTUSD"], rate=200, seed=5) as exchange:
        connection, decoder, tables = Connection(exchange.url, subscribe=["trade", "quote"]), Decoder(), TableApplier()
        async with Pipeline.create(connection, decoder, tables) as pipeline:
            stats = pipeline.stats()
            assert (stats.messages, stats.rows, stats.undecodable, stats.dropped, stats.taps) == (0, 0, 0, 0, [])
            assert not stats.sources[0].connected
            read, latest = pipeline.tap(tables, max_buffer_size=1000), pipeline.tap(decoder, overflow="latest")
            rows = 0
            for _ in range(50):
                rows += len((await read.receive()).rows)
            exchange.faults.send("no JSON")
            with trio.fail_after(5):
                while pipeline.stats().undecodable == 0:
                    rows += len((await read.receive()).rows)
            stats = pipeline.stats()
            assert stats.rows >= rows >= 50 and stats.messages >= 50 and stats.undecodable == 1
            first, second = sorted(stats.taps)
            assert first == (1, "Decoder", "latest", len(latest._buffer), latest.dropped, first.lag)
            assert first.dropped >= 30 and 0 < first.waiting < 10 and 0 < first.lag < 10
            assert second[:3] == (2, "TableApplier", "block") and second.dropped == 0
            (source,) = stats.sources
            assert source.connected and source.messages >= stats.messages and source.bytes > 10_000
            assert stats.lag >= first.lag and stats.dropped == first.dropped
            latest.close()
            read.close()
            assert pipeline.stats().taps == [] and pipeline.stats().dropped >= first.dropped
