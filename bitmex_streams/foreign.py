"""Running sections that are not ours: slurry's, and users'. Here stand the cures for what slurry's sections do on
their own.

* A ``ThreadSection`` that waits for input when it is cancelled hangs on trio 0.21, where `trio.from_thread.run` is not
cancelled with its host: its channels are closed under it instead. * A ``ProcessSection`` gets a pump of our own:
bounded, its exceptions and its death are raised, its process ends with the section. * Combiners run the sections they
are given by themselves, uncured: they get them wrapped. * Combiners raise (on current trio: nested groups of)
BrokenResourceError once nobody wants their output: that is an end, no error (see nurseries.py).
"""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
import warnings
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection as Pipe
from typing import Any

import trio
from slurry.environments import ProcessSection, ThreadSection
from slurry.sections import Chain, Merge, Zip, ZipLatest
from slurry.sections.abc import Section

from .errors import ProcessDied
from .inbox import Inbox
from .nurseries import background
from .tap import Tap

__all__ = ["SECTION_BUFFER", "pump_iterable", "pump_section"]

SECTION_BUFFER = 16
"""How many items wait before and behind a section that is not ours."""


async def pump_iterable(iterable: AsyncIterable[Any], output: Inbox) -> None:
    """Run an async iterable, and close it. Putting is a checkpoint, also where the iterable never awaits."""
    iterator = aiter(iterable)
    try:
        async for item in iterator:
            await output.put(item)
    finally:
        if isinstance(iterable, Tap):
            iterable.close()
        else:
            for closable in [iterator] if iterable is iterator else [iterator, iterable]:
                if hasattr(closable, "aclose"):
                    await closable.aclose()


async def pump_section(section: Section, input: Tap | None, output: Inbox) -> None:
    """Run a section from its input to ``output``, until it returns, raises, or is cancelled."""
    if isinstance(section, ProcessSection) and type(section).pump is ProcessSection.pump:
        await _Child(section).pump(input, output)
    elif isinstance(section, ThreadSection):
        async with _closed_on_cancel(input, output):
            await section.pump(input, output.put)
    elif type(section) is Merge:
        await _pump_sources(section.sources, input, output, at_once=True)
    elif type(section) is Chain and (input is None or section.place_input == "first"):
        await _pump_sources(section.sources, input, output, at_once=False)
    else:
        await _with_cured_sources(section).pump(input, output.put)


@contextlib.asynccontextmanager
async def _closed_on_cancel(input: Tap | None, output: Inbox) -> AsyncIterator[None]:
    """End ``input`` and shut ``output`` as soon as this scope is cancelled, and not only after its body has ended."""

    async def watch() -> None:
        try:
            await trio.sleep_forever()
        finally:
            if input is not None:
                input._end()
            output.shut()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        yield
        nursery.cancel_scope.cancel()


# --- combiners ---


async def _pump_sources(sources: Sequence[Any], input: Tap | None, output: Inbox, *, at_once: bool) -> None:
    """What `Merge` and `Chain` do, with every source a pipeline of ours: cured, and errors behind what came before
    them.
    """

    async def pull(source: Any) -> None:
        await _run_source(source, None, output.put)

    async def pull_input() -> None:
        assert input is not None
        async for item in input:
            await output.put(item)

    pulls: list[Callable[[], Awaitable[None]]] = [partial(pull, source) for source in sources]
    if input is not None:
        pulls.insert(0, pull_input)
    if at_once:
        async with trio.open_nursery() as nursery:
            for pull_one in pulls:
                nursery.start_soon(pull_one)
    else:
        for pull_one in pulls:
            await pull_one()


async def _run_source(source: Any, input: Any, output: Callable[[Any], Awaitable[None]]) -> None:
    from .pipeline import Pipeline  # which runs sections by this module

    async with Pipeline.create(*([] if input is None else [input]), source) as pipeline, pipeline.tap() as tap:
        async for item in tap:
            await output(item)


class _Cured(Section):
    """A source of one of the other combiners, run as a pipeline of ours."""

    def __init__(self, source: Any) -> None:
        self.source = source

    async def pump(self, input: Any, output: Callable[[Any], Awaitable[None]]) -> None:
        await _run_source(self.source, input, output)


def _with_cured_sources(section: Section) -> Section:
    """A combiner with its sources cured; any other section as it is."""
    if not isinstance(section, Chain | Zip | ZipLatest):
        return section
    combiner = copy.copy(section)
    combiner.sources = tuple(map(_cured, section.sources))
    if isinstance(section, ZipLatest):
        monitor = section.monitor
        combiner.monitor = tuple(map(_cured, monitor if isinstance(monitor, tuple | list) else (monitor,)))
    return combiner


def _cured(source: Any) -> Any:
    return _Cured(source) if isinstance(source, Section | tuple) else source


# --- processes ---


class _Child:
    """A ``ProcessSection`` at work in its process.

    Items go there in batches and come back one by one, pickled, over two pipes. Reading waits for the pipe on trio's
    side and not in a thread, so that neither a process that outlives its use nor one of many takes a thread from the
    others.
    """

    def __init__(self, section: ProcessSection) -> None:
        self.section = section
        self.name = type(section).__name__
        self._threads = trio.CapacityLimiter(2)  # one that sends, one that receives
        self._bad_input: Exception | None = None
        self._exited = trio.Event()

    async def pump(self, input: Tap | None, output: Inbox) -> None:
        """Run it."""
        context = multiprocessing.get_context()
        child_input, self._to_child = context.Pipe(duplex=False)
        self._from_child, child_output = context.Pipe(duplex=False)
        ours, theirs = (self._to_child, self._from_child), (child_input, child_output)
        process = context.Process(target=_refine_in_child, args=(self.section, input is not None, theirs, ours))
        with warnings.catch_warnings():
            # "multi-threaded, use of fork() may lead to deadlocks": trio's idle worker threads hold no locks.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        for pipe in theirs:
            pipe.close()

        async def leave() -> None:
            process.kill()  # which also frees a thread that sends

        self._reading = trio.CancelScope()
        try:
            async with background(leave) as nursery:
                nursery.start_soon(self._watch, process)
                if input is not None:
                    nursery.start_soon(self._feed, input)
                while True:
                    kind, value = await self._receive()
                    if kind != "item":
                        break
                    await output.put(value)
                if kind != "died":
                    with trio.move_on_after(5):  # it has nothing left to do but exit
                        await self._exited.wait()
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(process.join, limiter=self._threads)
            exitcode = process.exitcode
            process.close()
            for pipe in ours:
                pipe.close()
        if self._bad_input is not None:
            raise self._bad_input
        if kind == "error":
            raise self._error(*value)
        if kind == "died":
            raise ProcessDied(self._how_it_died(exitcode), exitcode=exitcode)

    async def _feed(self, input: Tap) -> None:
        # The child may have ended without reading on: its last word, or its silence, says why.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            async for item in input:
                batch = []
                for each in [item, *input._drain()]:
                    try:
                        batch.append(pickle.dumps(each))
                    except Exception as error:
                        error.add_note(f"an item for the process of {self.name} cannot be pickled")
                        self._bad_input = error
                        break
                await self._send(batch)
                if self._bad_input is not None:  # raised when the child has finished what was good
                    break
            await self._send(None)

    async def _send(self, batch: list[bytes] | None) -> None:
        await trio.to_thread.run_sync(self._to_child.send_bytes, pickle.dumps(batch), limiter=self._threads)

    async def _watch(self, process: Any) -> None:
        """Notice the end of the process, also where a process of its own keeps the pipe open."""
        if sys.platform == "win32":
            await trio.lowlevel.WaitForSingleObject(process.sentinel)
        else:
            with contextlib.ExitStack() as stack:
                ended = process.sentinel  # which processes of its own may keep open too
                if hasattr(os, "pidfd_open"):
                    with contextlib.suppress(OSError):
                        ended = os.pidfd_open(process.pid)
                        stack.callback(os.close, ended)
                await trio.lowlevel.wait_readable(ended)
        self._exited.set()
        self._reading.cancel()

    async def _receive(self) -> tuple[str, Any]:
        """The next message of the child; ``died`` where there is none, and will be none."""
        if sys.platform != "win32" and not self._exited.is_set():
            with self._reading:
                await trio.lowlevel.wait_readable(self._from_child.fileno())
            self._reading = trio.CancelScope()
        if self._exited.is_set() and not self._from_child.poll():
            return "died", None
        try:
            data = await trio.to_thread.run_sync(self._from_child.recv_bytes, limiter=self._threads)
        except (EOFError, ConnectionResetError):
            return "died", None
        return pickle.loads(data)

    def _how_it_died(self, exitcode: int | None) -> str:
        how = f"exit code {exitcode}"
        if exitcode is not None and exitcode < 0:
            with contextlib.suppress(ValueError):
                how = signal.Signals(-exitcode).name
        return f"the process of {self.name} ended ({how}) before its work did; what it put out was delivered"

    def _error(self, pickled: bytes | None, text: str) -> BaseException:
        if pickled is None:
            return ProcessDied(f"{self.name} raised, in its process, what cannot be pickled and made again:\n{text}")
        error: BaseException = pickle.loads(pickled)
        error.add_note(f"raised in the process of {self.name}:\n{text}")
        return error


def _refine_in_child(
    section: ProcessSection, has_input: bool, ours: tuple[Pipe, Pipe], parents: tuple[Pipe, Pipe]
) -> None:
    # Ctrl-C goes to every process of the terminal; the parent decides what becomes of this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)  # a fork shares trio's
    for pipe in parents:  # and the parent's ends: only without them it is told when the parent is gone
        pipe.close()
    receiver, sender = ours

    def put(kind: str, value: Any) -> None:
        # Pickled here, not by the connection: when that fails to send, it leaves buffers behind that complain when
        # collected.
        data = pickle.dumps((kind, value))
        try:
            sender.send_bytes(data)
        except (BrokenPipeError, ConnectionResetError):
            raise SystemExit(1) from None  # the parent is gone

    def items() -> Iterator[Any]:
        while True:
            try:
                batch = pickle.loads(receiver.recv_bytes())
            except (EOFError, ConnectionResetError):
                raise SystemExit(1) from None
            if batch is None:
                return
            yield from map(pickle.loads, batch)

    try:
        section.refine(items() if has_input else None, lambda item: put("item", item))
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        try:
            pickled = pickle.dumps(error)
            pickle.loads(pickled)  # some can be pickled, but not be made again
        except Exception:
            put("error", (None, text))
        else:
            put("error", (pickled, text))
    else:
        put("end", None)
