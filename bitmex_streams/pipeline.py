"""The Pipeline: slurry's, with ordered, bounded taps on any stage.

How it runs. The sections are cut into *runs*: a head (the source, or a section that is not ours) and the operators
behind it. Each run is one task. It takes a batch from its head and pushes it, item by item and depth first, through
its operators: a chain of plain function calls that is put together anew whenever a tap opens or closes, so that a
stage without taps costs nothing. Where nobody can look in between, neither a tap nor an operator of a user's, a part
of the batch goes through stage by stage instead, which is faster (`BatchOperator`). A foreign section has a task of its
own, between the buffer that the run before it fills and the `Inbox` that its own run empties.

How it ends. A run that comes to the end of its head finishes its operators, and then ends its taps and the input of
the next section: the end travels downstream behind the last item, and so does an error: what stands before the
failure is cancelled, what stands behind it finishes its work; when every `block` tap was read to the end, the body of
the context is cancelled and the error raised from there.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import trio
from slurry.sections import Chain, Merge, Zip, ZipLatest
from slurry.sections.abc import Section

from .nurseries import background, one_error, real_error
from .operator import Operator, Source
from .run import GRACE, Resync, Run, Stage, name_of
from .sections.connection import Connection, ConnectionStatistics
from .sections.decoder import Decoder
from .tap import BUFFER, Block, DropNewest, DropOldest, Latest, OverflowPolicy, Tap

__all__ = ["Overflow", "Pipeline", "PipelineStatistics", "TapSummary"]

log = logging.getLogger("bitmex_streams")

Overflow: TypeAlias = Literal["block", "drop_oldest", "drop_newest", "latest"]

PATIENCE = 5.0
"""Seconds after which a tap that an error waits for is worth a warning."""


class TapSummary(NamedTuple):
    """One open tap, as `Pipeline.stats` tells of it: on which ``stage`` (its number, from 0, and ``section``, its
    name), with which ``overflow`` policy, how many items wait, how many it has dropped or conflated away, and its
    ``lag``: seconds since the item that waits longest was received, by the clock of this computer; 0 where none waits
    (of a recording, years).
    """

    stage: int
    section: str
    overflow: str
    waiting: int
    dropped: int
    lag: float


class PipelineStatistics(NamedTuple):
    """What `Pipeline.stats` says, as of now.

    ``sources``: a `ConnectionStatistics` for each `Connection`, in order. ``messages``, ``rows``, ``undecodable``: what
    the `Decoder` stages have decoded, and could not. ``taps``: those that are open. ``dropped``: items that were
    dropped or conflated away, by the closed ones too. ``lag``: the greatest of the sources and taps, in seconds.
    """

    sources: Sequence[ConnectionStatistics]
    messages: int
    rows: int
    undecodable: int
    taps: Sequence[TapSummary]
    dropped: int
    lag: float


_POLICIES = {Block: "block", DropOldest: "drop_oldest", DropNewest: "drop_newest", Latest: "latest"}


class Pipeline:
    """A chain of sections. Use `create`, which returns an async context manager.

    ``sections``: the sections as given. ``nursery``: the trio.Nursery in which it runs; what is started there ends
    with the pipeline.
    """

    def __init__(
        self,
        *sections: Any,
        nursery: trio.Nursery,
        enabled: trio.Event,
        family: _Family | None = None,
        parent: Pipeline | None = None,
    ) -> None:
        self.sections = sections
        self.nursery = nursery
        self._stages = [Stage(section) for section in _checked(sections)]
        self._runs = _cut_into_runs(self, self._stages)
        self._enabled = enabled
        self._parent = parent
        self._family = family or _Family()
        self._family.members.append(self)
        self._started = any(source.keeps_running for source in _all_sources(sections))
        self._open_taps = 0
        self._dropped = 0  # by taps that are closed
        self._ended = trio.Event()
        self._wired_up = trio.Event()
        self._tasks: trio.Nursery | None = None  # while it runs
        self._hurried: int | None = None  # the first run that was told to end in time
        self._stop = trio.CancelScope()

    @classmethod
    def create(cls, *sections: Any) -> contextlib.AbstractAsyncContextManager[Pipeline]:
        """A pipeline of ``sections``, as an async context manager.

        Each is a `slurry.sections.abc.Section` (ours, slurry's, yours), or a tuple of them, nested at will; the first
        may be any async iterable instead. It starts with its first tap, or with `start`; leaving the context cancels
        what still runs and waits for it.

        Raises ValueError for what is no section, for an async iterable that is not first, for the same object twice,
        and for an operator that needs all (`Operator.needs_all`) behind a tap that drops. Leaving the context raises
        the error that ended the pipeline: one as itself, several as an ExceptionGroup, after every item before it has
        been through every stage and was taken from every `block` tap. What its body raises passes untouched.
        """
        _checked(sections)
        return cls._open(sections)

    @classmethod
    @contextlib.asynccontextmanager
    async def _open(cls, sections: Sequence[Any]) -> AsyncIterator[Pipeline]:
        family = _Family()

        async def leave() -> None:
            family.leaving = True

        try:
            async with background(leave, family.errors) as nursery:
                family.body = nursery.cancel_scope
                pipeline = cls(*sections, nursery=nursery, enabled=trio.Event(), family=family)
                nursery.start_soon(pipeline._main)
                yield pipeline
                if not family.errors:
                    for source in _all_sources(part for member in family.members for part in member.sections):
                        await source.farewell()
        finally:
            for member in family.members:
                member._end_all_taps()
                member._ended.set()

    # --- the public face ------------------------------------------------------------------------------------------

    def tap(
        self,
        section: Any = None,
        *,
        max_buffer_size: float | None = None,
        timeout: float = math.inf,
        retrys: int = 0,
        start: bool = True,
        overflow: Overflow = "block",
        key: Callable[[Any], Hashable] | None = None,
    ) -> Tap:
        """Open a tap: a channel that receives every item which comes out of a stage, from now on, in order.

        ``section``: the section whose output is tapped; None: the last one. ``start``: start the pipeline, if it was
        not yet.

        ``overflow`` says what happens when the consumer is slower than the stream:

        * ``"block"``: the pipeline waits: nothing is lost, and everybody waits with it, so never leave such a tap
          open unread. ``max_buffer_size`` items may wait (default 256; 0 hands over item by item; math.inf:
          unbounded). With a ``timeout`` (seconds; the default buffer is then 0), a consumer that takes nothing for
          that long, ``retrys`` + 1 times, ends the pipeline with trio.BusyResourceError.
        * ``"drop_oldest"``, ``"drop_newest"``: of more than ``max_buffer_size`` (default 256) waiting items, the
          oldest or the newest go.
        * ``"latest"``: only the newest item for each ``key(item)`` is kept (default: by table and symbol), and the
          newest partial: the items behind it do not take its place.

        The last three delay nobody; ``tap.dropped`` counts, marks are never dropped, and a `BookUpdate` behind a gap
        has ``changes`` None.

        Items are handed out by reference. When the pipeline has ended, a new tap ends at once.
        Raises ValueError when the section is no stage of this pipeline, or options contradict each other.
        """
        stage = self._stages[-1] if section is None else self._stage_of(section)
        buffer = self._buffer(stage, overflow, max_buffer_size, timeout, retrys, key)
        tap = Tap(buffer)
        if stage.ended or self._family.leaving:
            buffer.end()
        else:
            stage.buffers.append(buffer)
            self._open_taps += 1
            buffer.on_close = lambda: self._close_tap(stage, buffer)
            stage.run.compile()
            if start:
                self._enabled.set()
        return tap

    def start(self) -> None:
        """Start now, and go on whether or not anybody listens, until the source ends."""
        self._started = True
        self._enabled.set()

    async def wait(self) -> None:
        """Wait until the pipeline has ended: its source, or its work, for want of a tap. An error is raised by the
        context, not here.
        """
        await self._ended.wait()

    def extend(self, *sections: Any, start: bool = False) -> Pipeline:
        """A new pipeline of ``sections`` behind this one, which it taps (`block`). It runs in this one's context and
        ends with it.

        Can be called while the pipeline runs; the new one begins with the next item.
        """
        tap = self.tap(start=start)
        try:
            pipeline = Pipeline(
                tap, *sections, nursery=self.nursery, enabled=self._enabled, family=self._family, parent=self
            )
        except BaseException:
            tap.close()
            raise
        tap._buffer.internal = True
        if self._family.errors:
            tap._buffer.end()
        self.nursery.start_soon(pipeline._main)
        return pipeline

    def stats(self) -> PipelineStatistics:
        """Counters and gauges of this pipeline (not of its extensions), read at any time; reading costs, counting does
        not.
        """
        now = time.time_ns()
        sources = [source.stats for source in _all_sources(self.sections) if isinstance(source, Connection)]
        decoders = [stage.section for stage in self._stages if isinstance(stage.section, Decoder)]
        taps = [
            TapSummary(
                number, str(stage), _POLICIES[type(buffer)], len(buffer), buffer.dropped, buffer.age(now) / 1e9
            )
            for number, stage in enumerate(self._stages)
            for buffer in stage.buffers
        ]
        return PipelineStatistics(
            sources=sources,
            messages=sum(decoder.messages for decoder in decoders),
            rows=sum(decoder.rows for decoder in decoders),
            undecodable=sum(decoder.undecodable for decoder in decoders),
            taps=taps,
            dropped=self._dropped + sum(tap.dropped for tap in taps),
            lag=max([0.0, *(source.lag for source in sources), *(tap.lag for tap in taps)]),
        )

    # --- taps -------------------------------------------------------------------------------------------------------

    def _buffer(
        self, stage: Stage, overflow: str, size: float | None, timeout: float, retrys: int,
        key: Callable[[Any], Hashable] | None,
    ) -> OverflowPolicy:
        if overflow not in ("block", "drop_oldest", "drop_newest", "latest"):
            raise ValueError(f'overflow is "block", "drop_oldest", "drop_newest" or "latest", not {overflow!r}')
        if size is not None and (size < 0 or size != size):
            raise ValueError(f"max_buffer_size is a number of items, 0 or more, not {size!r}")
        if key is not None and overflow != "latest":
            raise ValueError(f'key goes with overflow="latest", not with {overflow!r}')
        if overflow == "block":
            if timeout <= 0 or retrys < 0:
                raise ValueError(f"timeout is in seconds, above 0, and retrys 0 or more; not {timeout!r}, {retrys!r}")
            if size is None:
                size = BUFFER if timeout == math.inf else 0
            return Block(size, timeout, retrys, stage.run.pressed)
        if timeout != math.inf or retrys:
            raise ValueError(f'timeout and retrys go with overflow="block", not with {overflow!r}: it never waits')
        if overflow == "latest":
            if size is not None:
                raise ValueError('overflow="latest" keeps one item for each key: it takes no max_buffer_size')
            return Latest(key)
        size = BUFFER if size is None else size
        if size < 1:
            raise ValueError(f"overflow={overflow!r} needs room for one item at least: max_buffer_size is {size!r}")
        return DropOldest(size) if overflow == "drop_oldest" else DropNewest(size)

    def _stage_of(self, section: Any) -> Stage:
        for stage in self._stages:
            if stage.section is section:
                return stage
        stages = ", ".join(f"{number}: {stage}" for number, stage in enumerate(self._stages))
        raise ValueError(f"{name_of(section)} is not a stage of this pipeline, whose stages are {stages}")

    def _close_tap(self, stage: Stage, buffer: OverflowPolicy) -> None:
        if buffer in stage.buffers:
            stage.buffers.remove(buffer)
            self._dropped += buffer.dropped
            self._open_taps -= 1
            stage.run.compile()

    def _end_all_taps(self) -> None:
        errors = self._family.errors
        for stage in self._stages:
            stage.end_taps(one_error(errors) if errors else None)

    # --- running ----------------------------------------------------------------------------------------------------

    @property
    def _wanted(self) -> bool:
        return self._open_taps > 0 or self._started

    async def _main(self) -> None:
        await self._enabled.wait()
        if self._parent is not None:  # connected in order: a section hears of a loss before those behind it
            await self._parent._wired_up.wait()
        family = self._family
        family.active += 1
        try:
            with self._stop, self._wired():
                async with trio.open_nursery() as tasks:
                    self._tasks = tasks
                    for run in self._runs:
                        run.start(tasks)
        except BaseException as error:
            if isinstance(error, GeneratorExit):
                raise
            family.record(error)
        # Everything has passed every stage, as far as it will. (If we were cancelled from outside, this is as good as
        # nothing.)
        self._tasks = None
        self._ended.set()
        if family.errors and not family.leaving:
            await self._until_taken()
        else:
            self._end_all_taps()
        family.active -= 1
        family.settle()

    async def _until_taken(self) -> None:
        """Wait, after a failure, until every `block` tap was read to its end."""
        for member in self._family.members:
            if member._parent is self:
                member._hurry(1)
        for stage in self._stages:
            for buffer in list(stage.buffers):
                if buffer.internal:
                    buffer.end()  # an extension goes on with what it has, and waits for its own taps
                elif isinstance(buffer, Block):
                    with trio.move_on_after(PATIENCE) as scope:
                        await buffer.taken(GRACE)
                    if scope.cancelled_caught:
                        log.warning(
                            "%s ended the pipeline, and is raised when a `block` tap on %s, in which %d items wait, is "
                            "read or closed",
                            type(self._family.errors[0]).__name__,
                            stage,
                            len(buffer),
                        )
                        await buffer.taken(GRACE)

    def _fail(self, error: BaseException, run: Run, *, head_too: bool) -> None:
        """Record what ended ``run`` (or its head), and stop all that stands before it."""
        self._family.record(error)
        place = self._runs.index(run)
        for earlier in self._runs[:place]:
            earlier.stop()
        self._hurry(place + 1)
        if head_too:
            run.head_scope.cancel()
        parent = self._parent
        while parent is not None:
            parent._stop.cancel()
            parent = parent._parent

    def _hurry(self, first: int) -> None:
        """After a failure: from the run ``first`` on, no section may outlive its input for long."""
        if self._tasks is not None and (self._hurried is None or first < self._hurried):
            for run in self._runs[first : self._hurried]:
                self._tasks.start_soon(run.end_in_time)
            self._hurried = first

    @contextlib.contextmanager
    def _wired(self) -> Iterator[None]:
        """While it runs, connect operators with the sources before them that can lose state and give it anew."""
        with contextlib.ExitStack() as stack:
            sources = self._parent._sources() if self._parent is not None else []
            for stage in self._stages:
                operator = stage.section
                sources = _sources_behind(sources, operator)
                if isinstance(operator, Operator) and sources:
                    for source in sources:
                        stack.callback(source.watch(operator.lose_state))
                    if operator.resync is None:
                        operator.resync = Resync(sources)
                        stack.callback(setattr, operator, "resync", None)
            self._wired_up.set()
            yield

    def _sources(self) -> list[Any]:
        """The connections whose messages come out at the end."""
        sources = self._parent._sources() if self._parent is not None else []
        for stage in self._stages:
            sources = _sources_behind(sources, stage.section)
        return sources

    def __repr__(self) -> str:
        return f"<Pipeline {' | '.join(map(str, self._stages))}>"


class _Family:
    """A pipeline and its extensions: they share a nursery, fail together, and are settled together."""

    def __init__(self) -> None:
        self.members: list[Pipeline] = []
        self.errors: list[BaseException] = []
        self.body: trio.CancelScope | None = None
        self.active = 0
        self.leaving = False

    def record(self, error: BaseException) -> bool:
        """Keep what is an error in ``error``; whether there was one."""
        left = real_error(error)
        if left is None:
            return False
        if not any(left is known for known in self.errors):
            self.errors.append(left)
        if not isinstance(left, Exception):  # KeyboardInterrupt, SystemExit: at once
            self.cancel_body()
        return True

    def settle(self) -> None:
        """Raise what there is to raise, once every pipeline that ran has delivered what it had."""
        if self.errors and self.active == 0:
            self.cancel_body()

    def cancel_body(self) -> None:
        if self.body is not None:
            self.body.cancel()


# --- the sections of a pipeline ---


def _sources_behind(sources: list[Any], section: Any) -> list[Any]:
    """Behind ``section``, when ``sources`` are those before it: a `Connection` takes their place, a combiner adds its
    own.
    """
    if isinstance(section, Source):
        return [section] if hasattr(section, "resync") and hasattr(section, "watch") else []
    if isinstance(section, Chain | Merge | Zip | ZipLatest):
        for inner in _flatten(section.sources):
            sources = sources + _sources_behind([], inner)
    return sources


def _all_sources(sections: Iterable[Any]) -> Iterator[Source]:
    """Every source in ``sections``, also within combiners."""
    for section in _flatten(sections):
        if isinstance(section, Source):
            yield section
        elif isinstance(section, Chain | Merge | Zip | ZipLatest):
            yield from _all_sources(section.sources)


def _cut_into_runs(pipeline: Pipeline, stages: list[Stage]) -> list[Run]:
    heads = [index for index, stage in enumerate(stages) if not isinstance(stage.section, Operator)]
    runs: list[Run] = []
    for head, end in zip(heads, [*heads[1:], len(stages)], strict=True):
        runs.append(Run(pipeline, stages[head:end], runs[-1] if runs else None))
    return runs


def _checked(sections: Iterable[Any]) -> list[Any]:
    """The sections in one flat list. Raises ValueError for what cannot be a pipeline."""
    flat = list(_flatten(sections))
    if not flat:
        raise ValueError("a pipeline needs a section at least: a source, such as Connection(...), or an async iterable")
    seen: set[int] = set()
    for number, section in enumerate(flat):
        if isinstance(section, type):
            raise ValueError(f"section {number} is the class {section.__name__}: make an instance of it")
        if not isinstance(section, Section) and (number or not hasattr(section, "__aiter__")):
            kind = "an async iterable, which only the first may be" if hasattr(section, "__aiter__") else "no section"
            raise ValueError(f"section {number} of the pipeline, {name_of(section)}, is {kind}")
        if not number and isinstance(section, Operator):
            raise ValueError(f"{name_of(section)} works on items: it cannot be the first section of a pipeline")
        if id(section) in seen:
            raise ValueError(f"{name_of(section)} stands twice in the pipeline, again as number {number}: make two")
        seen.add(id(section))
    _refuse_losses(flat)
    return flat


def _refuse_losses(sections: Iterable[Any], lossy: Tap | None = None) -> Tap | None:
    """Raise ValueError where an operator that needs all stands behind a tap that drops; ``lossy``: one before all of
    ``sections``. Returns such a tap, if what comes out at the end comes from one.
    """
    for section in _flatten(sections):
        if isinstance(section, Tap):
            lossy = lossy if isinstance(section._buffer, Block) else section
        elif isinstance(section, Chain | Merge | Zip | ZipLatest):
            for inner in section.sources:
                lossy = _refuse_losses([inner]) or lossy
        elif lossy is not None and isinstance(section, Operator) and section.needs_all:
            policy = _POLICIES[type(lossy._buffer)]
            raise ValueError(
                f"{name_of(section)} needs all items, and a tap with overflow={policy!r} leaves some out: its output "
                'would be wrong. Feed it by a tap with overflow="block", or by `extend`, and let a tap behind it drop'
            )
    return lossy


def _flatten(sections: Iterable[Any]) -> Iterator[Any]:
    for section in sections:
        if isinstance(section, tuple):
            yield from _flatten(section)
        else:
            yield section
