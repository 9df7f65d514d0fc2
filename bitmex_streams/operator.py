"""The two bases of our sections: `Operator`, whose work is synchronous, and `Source`, which hands over batches.

Both are slurry sections and work in a plain `slurry.Pipeline` through ``pump``. Our own Pipeline knows them better:
it runs a source and the operators behind it in one task, item by item, depth first, with no channel in between (and
stage by stage where nobody can tell, see `BatchOperator`).

Time: an operator's timers run on ``received`` (ns), the time of the items themselves, so that a recording replayed at
full speed gives what the live run gave. While nothing arrives, ``received`` is carried on by trio's clock, at the
``rate`` of the source: 1 for a live one, the speed of a paced replay, 0 for a replay that is as fast as it can
(there, only the items move time). Where the rate is unknown (a foreign source, a plain slurry pipeline), items of the
last minute count as live, older ones as a replay.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Protocol

import trio
from slurry.sections.abc import Section

from .inbox import Inbox
from .nurseries import background

__all__ = ["BatchOperator", "Batches", "Operator", "Source", "StreamClock"]

Output = Callable[[Any], Awaitable[None]]


class Operator(Section):
    """A section whose work is synchronous: override `process`, and where needed `finish`, `deadline` and `on_time`.

    None of them may await or do I/O, and none may change an item or a row that was handed in. What they return is
    iterated to its end, once, before the next call. An exception ends the pipeline, after everything that was put out
    before it was delivered.
    """

    deadline: int | None = None
    """The time (ns, on ``received``) at which `on_time` wants to be called; None: not at all."""

    now: int = 0
    """The time (ns): ``received`` of the item in hand, or the clock where the item has none. Kept only where
    `on_time` is overridden.
    """

    resync: Callable[[str], None] | None = None
    """Asks the source for a new partial of a topic (``table`` or ``table:symbol``); synchronous, idempotent, queued.

    A Pipeline sets it to ``connection.resync_lost`` where it is None; in a plain slurry pipeline it can be set by hand.
    """

    needs_all: ClassVar[bool] = False
    """Whether what it puts out is wrong, and nothing says so, where something was left out of what it takes: as what
    adds up deltas, or counts. A Pipeline refuses to feed it by a tap that drops.
    """

    @abstractmethod
    def process(self, item: Any) -> Iterable[Any]:
        """What comes out for one item, in order. Items of kinds that the operator does not know are passed on."""

    def finish(self) -> Iterable[Any]:
        """What still comes out when the input has ended (also by an error). Not called on cancellation."""
        return ()

    def on_time(self, now: int) -> Iterable[Any]:
        """What comes out because `deadline` has come; ``now`` (ns) is at or after it. Must move `deadline` on, or set
        it to None.
        """
        return ()

    def lose_state(self, source: str, reason: str) -> None:
        """Called at once, ahead of the stream, when all state of ``source`` is lost: mark live objects stale.

        It is called once for each mark that follows in stream order: a `Disconnected`, a `StateLost`, and also the
        `Connected` of a connection that opens (what an earlier one left behind is of no use any more). Nothing is put
        out here. Must be cheap, and must not raise.
        """

    def tick(self, now: int) -> Iterator[Any]:
        """Bring `now` forward, and put out what is due by then. For whoever runs the operator; do not override."""
        self.now = now
        while (deadline := self.deadline) is not None and deadline <= now:
            yield from self.on_time(now)
            if self.deadline is not None and self.deadline <= deadline:
                raise RuntimeError(f"{type(self).__name__}.on_time did not move its deadline on")

    @property
    def timed(self) -> bool:
        """Whether this operator has timers."""
        return type(self).on_time is not Operator.on_time

    async def pump(self, input: Any, output: Output) -> None:
        """Run in a plain slurry pipeline (or inside one of slurry's combiners)."""
        if input is None:
            raise RuntimeError(f"{type(self).__name__} works on items: it cannot be the first section of a pipeline")
        if not self.timed:
            async for item in input:
                for out in self.process(item):
                    await output(out)
        else:
            await self._pump_timed(input, output)
        for out in self.finish():
            await output(out)

    async def _pump_timed(self, input: Any, output: Output) -> None:
        inbox = Inbox(1)
        clock = StreamClock()

        async def feed() -> None:  # a task of its own: a timer must never cancel the input half-way
            async for item in input:
                await inbox.put(item)
            inbox.close()

        async def leave() -> None:
            inbox.shut()

        async with background(leave) as nursery:
            nursery.start_soon(feed)
            while True:
                items: Sequence[Any] = ()  # stays so when the timer ends the wait
                try:
                    with trio.CancelScope(deadline=clock.trio_time(self.deadline)):
                        items = await inbox.take()
                except trio.EndOfChannel:
                    break
                for item in items:
                    clock.wake()
                    clock.see(item)
                    await self._run_timers(clock.now, output)
                    for out in self.process(item):
                        await output(out)
                await self._run_timers(clock.estimate(), output)

    async def _run_timers(self, now: int, output: Output) -> None:
        for out in self.tick(now):
            await output(out)


class BatchOperator(Operator):
    """An operator that works through many items in one go: override `process_all` in place of `process`.

    A Pipeline lets a run of such operators, and of no others, work through a part of a batch stage by stage. Nobody can
    look at what they keep in between: no other task runs until that is done, and where a function of a user's would be
    called on the way, all goes item by item. (From another thread, what is live is ahead in any case.) It is worth 0.3
    to 0.6 us an item of each.
    """

    one_for_one: ClassVar[bool] = False
    """Whether it puts out one item for each, ``received`` at the same time, and keeps nothing but counts. Right behind
    a source it goes ahead of operators of any kind, then.
    """

    @abstractmethod
    def process_all(self, items: Iterable[Any], out: list[Any]) -> None:
        """Append what comes out of all items. An exception comes after all that is good before it."""

    def process(self, item: Any) -> Iterable[Any]:
        out: list[Any] = []
        self.process_all((item,), out)
        return out


class StreamClock:
    """Carries the time of the stream (ns, ``received``) on while nothing arrives."""

    def __init__(self, rate: float | None = None) -> None:
        self.rate = rate
        self.now = time.time_ns()
        self._seen_at = trio.current_time()
        self._anchored = False

    def see(self, item: Any) -> None:
        """Take over the time of an item (or the clock's, where it has none). Time never goes back."""
        received = getattr(item, "received", None)
        if type(received) is not int:  # not of ours
            received = self.estimate()
        if received > self.now or not self._anchored:
            self.now = received
            self._anchored = True

    def wake(self) -> None:
        """Take note of when it is that items are seen: once they have come, and again after each wait among them."""
        self._seen_at = trio.current_time()

    def _effective_rate(self) -> float:
        if self.rate is not None:
            return self.rate
        return 1.0 if abs(time.time_ns() - self.now) < 60_000_000_000 else 0.0

    def estimate(self) -> int:
        """The time now: of the last item, carried on at the source's rate."""
        return self.now + int((trio.current_time() - self._seen_at) * 1e9 * self._effective_rate())

    def trio_time(self, deadline: int | None) -> float:
        """When, on trio's clock, ``deadline`` will come if nothing arrives; math.inf for never."""
        rate = self._effective_rate()
        if deadline is None or rate <= 0:
            return float("inf")
        return self._seen_at + (deadline - self.now) / 1e9 / rate


class Batches(Protocol):
    """What an open `Source` gives: batches of items."""

    async def receive(self) -> Sequence[Any]:
        """At least one item. Safe to cancel: nothing is lost. Always a checkpoint.

        Raises trio.EndOfChannel at the end, or the error that ended the stream, after everything before it was
        received.
        """


class Source(Section):
    """A section that other sections' work comes from: `Connection`, `Replay`. Override `batches`."""

    rate: float | None = None
    """How many seconds of ``received`` pass in one second of trio's clock; 0: unrelated; None: unknown. See this
    module's top.
    """

    keeps_running: bool = False
    """Whether a Pipeline goes on with this source when its last tap is closed, as after `Pipeline.start`."""

    async def farewell(self) -> None:
        """Called by a Pipeline when the body of its context has ended without an exception, before all is cancelled:
        what a source has to say only after work that went well. It must be shielded from cancellation, and short.
        """

    @abstractmethod
    def batches(self, input: Any) -> AbstractAsyncContextManager[Batches]:
        """Open the source, for as long as the context lasts. ``input`` is an async iterable of what to send, or None.
        """

    async def pump(self, input: Any, output: Output) -> None:
        """Run in a plain slurry pipeline (or inside one of slurry's combiners)."""
        async with self.batches(input) as batches:
            while True:
                try:
                    batch = await batches.receive()
                except trio.EndOfChannel:
                    return
                for item in batch:
                    await output(item)
