"""A run: one task of a pipeline, from a head through the operators behind it (the whole is told in pipeline.py)."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import trio
from slurry.sections import Chain, Merge, Zip, ZipLatest
from slurry.sections.abc import Section

from .foreign import SECTION_BUFFER, pump_iterable, pump_section
from .inbox import Inbox
from .nurseries import GROUPS, real_error
from .operator import BatchOperator, Operator, Source, StreamClock
from .tap import BATCH, Block, Latest, OverflowPolicy, Tap

if TYPE_CHECKING:
    from .pipeline import Pipeline

__all__ = ["GRACE", "Resync", "Run", "Stage", "name_of"]

log = logging.getLogger("bitmex_streams")

GRACE = 1.0
"""Seconds that whoever has had the last item before an error still has, until it is cancelled."""
QUIET = 30.0
"""Seconds after which a section counts as stuck that puts nothing out and does not end, though its input has."""

def name_of(section: Any) -> str:
    """What errors call a section."""
    return type(section).__name__


class Stage:
    """One section of a pipeline, and the taps on its output."""

    run: Run

    def __init__(self, section: Any) -> None:
        self.section = section
        self.buffers: list[OverflowPolicy] = []
        self.ended = False

    def end_taps(self, error: BaseException | None = None) -> None:
        self.ended = True
        for buffer in self.buffers:
            buffer.end(error)

    def __str__(self) -> str:
        return name_of(self.section)


class Resync:
    """What a Pipeline gives its operators as `Operator.resync`: it asks all sources for a topic anew. To those that are
    not subscribed to it, that is nothing.
    """

    def __init__(self, sources: Sequence[Any]) -> None:
        self._sources = sources

    def __call__(self, topic: str) -> None:
        for source in self._sources:
            # One that tells a loss of state from the wish of a user does not let a loss that recurs flood the exchange.
            getattr(source, "resync_lost", source.resync)(topic)


class Unwanted(Exception):
    """Nobody wants what comes next."""


class Run:
    """A head and the operators behind it: one task."""

    def __init__(self, pipeline: Pipeline, stages: list[Stage], previous: Run | None) -> None:
        self.pipeline = pipeline
        self.stages = stages
        self.previous = previous
        self.next_input: Block | None = None
        self.input: Tap | None = None
        self.pressed: set[Block] = set()  # the taps and the input that are over their capacity
        self.head_scope = trio.CancelScope()
        self.head_ended = trio.Event()
        self.inbox = Inbox(SECTION_BUFFER)
        self._scope = trio.CancelScope()
        self._clock: StreamClock
        self._failed: int | None = None  # the index of the stage that failed
        self._push: tuple[Callable[[Any], None], ...]  # where an item goes that is past so many operators
        self._ahead: list[BatchOperator] = []  # the operators behind the head that work through a batch stage by stage
        self._waits: list[Block] = []  # what can make this run wait
        self._after: list[Callable[[Any], None]]  # for each operator, where its output goes
        for stage in stages:
            stage.run = self
        self.compile()
        if previous is not None:
            previous.next_input = Block(SECTION_BUFFER, math.inf, 0, previous.pressed)
            previous.next_input.on_close = previous.compile
            previous.compile()
            self.input = Tap(previous.next_input)

    def compile(self) -> None:
        """Put the chain of calls together, from the end to the head."""
        targets = self._puts(len(self.stages) - 1)
        if self.next_input is not None and not self.next_input.closed:
            targets.append(self.next_input.put)
        push = fan_out(targets)
        after = []
        for index in range(len(self.stages) - 1, 0, -1):
            after.append(push)
            push = fan_out([*self._puts(index - 1), self._step(index, push)])
        self._after = after[::-1]
        self._push = push, *self._after
        self._ahead = self._find_ahead()
        self._waits = [buffer for stage in self.stages for buffer in stage.buffers if isinstance(buffer, Block)]
        if self.next_input is not None and not self.next_input.closed:
            self._waits.append(self.next_input)

    def _find_ahead(self) -> list[BatchOperator]:
        """Which operators can work through a batch stage by stage, because nobody can look at them in between.

        All of them, or the first alone where another's work goes item by item. Nobody: a function of a user's that
        is called in the middle (the key of a tap, a `resync`) might.
        """
        if any(isinstance(buffer, Latest) and buffer.keyed for stage in self.stages for buffer in stage.buffers):
            return []
        ahead = []
        for stage in self.stages[1:]:
            operator = stage.section
            if (
                not isinstance(operator, BatchOperator)
                or getattr(operator.process, "__func__", None) is not BatchOperator.process  # a user made it anew
                or operator.timed
                or not isinstance(operator.resync, Resync | None)
            ):
                break
            ahead.append(operator)
        return ahead if len(ahead) == len(self.stages) - 1 else [first for first in ahead[:1] if first.one_for_one]

    def _puts(self, index: int) -> list[Callable[[Any], None]]:
        """What takes an item into each tap of a stage."""
        return [
            self._keyed_put(index, buffer) if isinstance(buffer, Latest) else buffer.put
            for buffer in self.stages[index].buffers
        ]

    def _keyed_put(self, index: int, buffer: Latest) -> Callable[[Any], None]:
        def put(item: Any) -> None:
            try:
                buffer.put(item)
            except BaseException as error:
                self._blame(index, error, "the key of a `latest` tap on")
                raise

        return put

    def _step(self, index: int, emit: Callable[[Any], None]) -> Callable[[Any], None]:
        process = self.stages[index].section.process

        def step(item: Any) -> None:
            try:
                for out in process(item):
                    emit(out)
            except BaseException as error:
                self._blame(index, error)
                raise

        return step

    def _blame(self, index: int, error: BaseException, what: str = "") -> None:
        """Remember where an error came from: it passes the operators before as well."""
        if self._failed is None:
            self._failed = index
            error.add_note(f"raised in {what}{' ' if what else ''}{self.stages[index]}, a section of the pipeline")

    @property
    def _wanted(self) -> bool:
        """Whether anybody wants what this run puts out: a tap here or further up, or a next section that still takes.
        """
        if not self.pipeline._wanted:
            return False
        if self.next_input is None or not self.next_input.closed:
            return True
        run: Run | None = self
        while run is not None:
            if any(stage.buffers for stage in run.stages):
                return True
            run = run.previous
        return False

    # --- the tasks --------------------------------------------------------------------------------------------------

    def start(self, nursery: trio.Nursery) -> None:
        """Start the run, and the head's own task where it needs one."""
        if not isinstance(self.stages[0].section, Source):
            nursery.start_soon(self._run_head, self.stages[0].section)
        nursery.start_soon(self._run)

    def stop(self) -> None:
        """End without finishing: something behind has failed."""
        self.head_scope.cancel()
        self._scope.cancel()

    async def end_in_time(self) -> None:
        """After a failure before it: a head that goes on without its input must not keep the error waiting for ever.

        A combiner has other sources, and a connection its own life: it gets `GRACE` seconds once it has taken all of
        its input. Any other section ends by itself sooner or later (`Delay` has items to hold back), unless it is
        stuck: it gets `QUIET` seconds in which it puts nothing out.
        """
        assert self.input is not None
        head = self.stages[0].section
        forever = isinstance(head, Source | Chain | Merge | Zip | ZipLatest)
        if not forever and type(head).__module__.startswith("slurry."):
            return  # all of slurry's others end, however long they hold items back
        limit = GRACE if forever else QUIET
        buffer = self.input._buffer
        while not (buffer.closed or (buffer.ended and not buffer.items)):
            with trio.move_on_after(limit):
                await buffer.change()
                continue
            if not len(self.inbox):  # else it waits for those behind it
                break
        seen, in_hand = -1, math.inf
        while True:
            with trio.move_on_after(limit):
                await self.head_ended.wait()
                return
            count = self.inbox.count
            if forever:  # what it has in its hands, while those behind it are slow, is of before the failure
                in_hand = min(in_hand, count + self.inbox.waiting)
                if count >= in_hand:
                    break
            elif count == seen and not self.inbox.full:
                break
            seen = count
        log.warning("%s goes on though what stands before it has failed: it is cancelled", name_of(head))
        self.head_scope.cancel()

    async def _run_head(self, head: Any) -> None:
        """The task of a section that is not ours, or of an async iterable."""
        try:
            with self.head_scope:
                if isinstance(head, Section):
                    await pump_section(head, self.input, self.inbox)
                else:
                    await pump_iterable(head, self.inbox)
        except BaseException as error:
            if isinstance(error, GeneratorExit):
                raise
            left = real_error(error, output_closed=self.inbox.told)
            if left is not None:
                self.pipeline._fail(left, self, head_too=False)
        finally:
            if self.input is not None:
                self.input.close()
            self.inbox.close()
            self.head_ended.set()

    async def _run(self) -> None:
        pipeline = self.pipeline
        came_to_an_end = False
        try:
            with self._scope:
                try:
                    await self._drive()
                except Unwanted:
                    if not pipeline._wanted:
                        pipeline._stop.cancel()
                        await trio.lowlevel.checkpoint_if_cancelled()
                except BaseException as error:
                    left = real_error(error)
                    if left is None or isinstance(error, GeneratorExit):
                        raise
                    pipeline._fail(left, self, head_too=True)
                self.inbox.shut()
                await self._finish(self._failed or 0)
                came_to_an_end = True
        except BaseException as error:
            if isinstance(error, GeneratorExit):
                raise
            left = real_error(error)
            if left is not None:
                pipeline._fail(left, self, head_too=True)
                came_to_an_end = True
        finally:
            self.inbox.shut()
            if isinstance(self.stages[0].section, Source):
                self.head_ended.set()
                if self.input is not None:
                    self.input.close()
        if came_to_an_end:
            if self.next_input is not None:
                self.next_input.end()
            if not pipeline._family.errors:  # else nobody may take the failure for a good end
                for stage in self.stages:
                    stage.end_taps()

    @contextlib.asynccontextmanager
    async def _open_head(self) -> AsyncIterator[Callable[[], Awaitable[Sequence[Any]]]]:
        head = self.stages[0].section
        if isinstance(head, Source):
            async with head.batches(self.input) as batches:
                yield batches.receive
        else:
            yield self.inbox.take

    async def _drive(self) -> None:
        """Take from the head until its end."""
        first = self.pipeline._stages[0].section
        clock = self._clock = StreamClock(first.rate if isinstance(first, Source) else None)
        operators = [(stage.section, index) for index, stage in enumerate(self.stages) if index]
        timed = [(operator, index) for operator, index in operators if operator.timed]
        failure: BaseException | None = None
        async with self._open_head() as receive:
            # What is raised in here must not pass the source's context, which could take it for its own.
            try:
                if isinstance(self.stages[0].section, Source):
                    with self.head_scope:
                        await self._push_all(receive, clock, timed)
                else:
                    await self._push_all(receive, clock, timed)
            except trio.EndOfChannel:
                pass
            except BaseException as error:
                if not isinstance(error, (Exception, GROUPS)) or real_error(error) is None:  # a cancellation, Ctrl-C
                    raise
                failure = error
        if failure is not None:
            raise failure
        await trio.lowlevel.checkpoint_if_cancelled()

    async def _push_all(
        self, receive: Callable[[], Awaitable[Sequence[Any]]], clock: StreamClock, timed: list[tuple[Operator, int]]
    ) -> None:
        pressed = self.pressed
        while True:
            batch: Sequence[Any] = ()  # stays so when a timer ends the wait
            deadline = min((clock.trio_time(operator.deadline) for operator, _ in timed), default=math.inf)
            if deadline == math.inf:
                batch = await receive()
            else:
                with trio.CancelScope(deadline=deadline):
                    batch = await receive()
            if not self._wanted:
                raise Unwanted
            if batch:
                clock.wake()
            rest, left = iter(batch), len(batch)
            while left:
                if self._ahead:  # nobody waits in the middle of these: so no more of them than there is room for
                    room = min((buffer.room_left for buffer in self._waits), default=BATCH)
                    chunk = list(islice(rest, int(min(BATCH, max(1, room)))))
                    self._push_by_stages(chunk, clock, timed)
                    left -= len(chunk)
                else:
                    for item in islice(rest, BATCH):
                        if timed:
                            clock.see(item)
                            self._tick(timed, clock.now)
                        self._push[0](item)
                        left -= 1
                        if pressed:
                            break
                if pressed:
                    await self._relieve()
                elif left:
                    await trio.lowlevel.checkpoint()
                else:
                    break
                if not self._wanted:
                    raise Unwanted
                clock.wake()
            if not batch:
                self._tick(timed, clock.estimate())
                await self._relieve()

    def _push_by_stages(self, chunk: list[Any], clock: StreamClock, timed: list[tuple[Operator, int]]) -> None:
        """Through the operators that work ahead, all items of the chunk at each, then item by item through the others.

        An error comes behind what was good before it. One that is raised further down is of an item before that by
        which an operator has failed further up, and so counts in its stead.
        """
        error: Exception | None = None
        failed, last = 0, None
        for index, operator in enumerate(self._ahead, 1):
            taken, chunk = chunk, []
            try:
                operator.process_all(taken, chunk)
            except Exception as raised:
                error, failed = raised, index
                if operator.one_for_one:
                    taken = taken[: len(chunk) + 1]
                    last = taken[-1]
            for buffer in self.stages[index - 1].buffers:
                buffer.put_all(taken)
            past = index
        if past == len(self.stages) - 1:
            for buffer in self.stages[past].buffers:
                buffer.put_all(chunk)
            if self.next_input is not None and not self.next_input.closed:
                self.next_input.put_all(chunk)
        else:
            for item in chunk:
                if timed:
                    clock.see(item)
                    self._tick(timed, clock.now)
                self._push[past](item)
        if error is not None:
            if timed and last is not None:
                clock.see(last)
                self._tick(timed, clock.now)
            self._blame(failed, error)
            raise error

    def _tick(self, timed: list[tuple[Operator, int]], now: int) -> None:
        """Bring the operators that have timers up to ``now``, those before others first."""
        for operator, index in timed:
            operator.now = now
            if operator.deadline is None or operator.deadline > now:
                continue  # as nearly always: a generator costs 0.3 us
            try:
                for out in operator.tick(now):
                    self._after[index - 1](out)
            except BaseException as error:
                self._blame(index, error)
                raise

    async def _finish(self, behind: int) -> None:
        """Let the operators behind a stage put out what they still have, those before others first."""
        for index in range(behind + 1, len(self.stages)):
            self._failed = None
            try:
                for out in self.stages[index].section.finish():
                    self._after[index - 1](out)
                await self._relieve()
            except Exception as error:  # those behind have their say all the same
                self._blame(index, error)
                self.pipeline._fail(error, self, head_too=True)

    async def _relieve(self) -> None:
        """Wait until every tap that is over its capacity was read (or closed)."""
        while self.pressed:
            await self.pressed.pop().room()


def fan_out(targets: list[Callable[[Any], None]]) -> Callable[[Any], None]:
    """One call for several."""
    if not targets:
        return discard
    if len(targets) == 1:
        return targets[0]

    def put(item: Any) -> None:
        for target in targets:
            target(item)

    return put


def discard(item: Any) -> None:
    """Where a stream goes that nobody wants."""
