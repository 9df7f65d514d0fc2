"""Running sections that are not ours: slurry's, and users'. Here stand the cures for what slurry's sections do on
their own.

* A ``ThreadSection`` that waits for input when it is cancelled hangs on trio 0.21, where `trio.from_thread.run` is
  not cancelled with its host: its channels are closed under it instead.
* A ``ProcessSection`` gets a pump of our own: bounded, its exceptions and its death are raised, its process ends with
  the section.
* Combiners raise (on current trio: nested groups of) BrokenResourceError once nobody wants their output: that is an
  end, no error.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import signal
import traceback
import warnings
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from multiprocessing.connection import Connection as Pipe
from typing import Any

import trio
from slurry.environments import ProcessSection, ThreadSection
from slurry.sections.abc import Section

from .errors import ProcessDied
from .inbox import Inbox
from .tap import Tap

__all__ = ["pump_iterable", "pump_section"]


async def pump_iterable(iterable: AsyncIterable[Any], output: Inbox) -> None:
    """Run an async iterable, and close it. Putting is a checkpoint, also where the iterable never awaits."""
    try:
        async for item in iterable:
            await output.put(item)
    finally:
        if isinstance(iterable, Tap):
            iterable.close()
        elif hasattr(iterable, "aclose"):
            await iterable.aclose()


async def pump_section(section: Section, input: Tap | None, output: Inbox) -> None:
    """Run a section from its input to ``output``, until it returns, raises, or is cancelled."""
    if isinstance(section, ProcessSection) and type(section).pump is ProcessSection.pump:
        await _pump_process(section, input, output)
    elif isinstance(section, ThreadSection):
        async with _closed_on_cancel(input, output):
            await section.pump(input, output.put)
    else:
        await section.pump(input, output.put)


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


# --- processes ---


async def _pump_process(section: ProcessSection, input: Tap | None, output: Inbox) -> None:
    context = multiprocessing.get_context()
    child_input, to_child = context.Pipe(duplex=False)
    from_child, child_output = context.Pipe(duplex=False)
    process = context.Process(
        target=_refine_in_child, args=(section, child_input if input is not None else None, child_output)
    )
    with warnings.catch_warnings():
        # "multi-threaded, use of fork() may lead to deadlocks": trio's idle worker threads hold no locks.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    child_input.close()
    child_output.close()

    async def feed() -> None:
        assert input is not None
        # The child may have ended without reading on: its last word, or its silence, says why.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            async for item in input:
                batch = [item, *input._drain()]
                await trio.to_thread.run_sync(to_child.send_bytes, pickle.dumps(batch))
            await trio.to_thread.run_sync(to_child.send_bytes, pickle.dumps(None))

    async def end_with_scope() -> None:
        try:
            await trio.sleep_forever()
        finally:
            process.kill()  # which frees the threads that wait for it

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end_with_scope)
            if input is not None:
                nursery.start_soon(feed)
            while True:
                try:
                    kind, value = pickle.loads(await trio.to_thread.run_sync(from_child.recv_bytes))
                except (EOFError, ConnectionResetError):
                    await trio.lowlevel.checkpoint_if_cancelled()  # killed with our scope
                    kind, value = "died", None
                if kind != "item":
                    break
                await output.put(value)
            if kind != "died":
                await trio.to_thread.run_sync(process.join, 5)  # it has nothing left to do but exit
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(process.join)
        exitcode = process.exitcode
        process.close()
        to_child.close()
        from_child.close()
    if kind == "error":
        raise _error_of_child(section, *value)
    if kind == "died":
        raise ProcessDied(_how_it_died(section, exitcode), exitcode=exitcode)


def _how_it_died(section: Section, exitcode: int | None) -> str:
    how = f"exit code {exitcode}"
    if exitcode is not None and exitcode < 0:
        with contextlib.suppress(ValueError):
            how = signal.Signals(-exitcode).name
    return f"the process of {type(section).__name__} ended ({how}) before its work did; what it put out was delivered"


def _error_of_child(section: Section, pickled: bytes | None, text: str) -> BaseException:
    if pickled is None:
        return ProcessDied(f"{type(section).__name__} raised, in its process, an error that cannot be pickled:\n{text}")
    error: BaseException = pickle.loads(pickled)
    error.add_note(f"Raised in the process of {type(section).__name__}:\n{text}")
    return error


def _refine_in_child(section: ProcessSection, receiver: Pipe | None, sender: Pipe) -> None:
    # Ctrl-C goes to every process of the terminal; the parent decides what becomes of this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)  # a fork shares trio's

    def put(kind: str, value: Any) -> None:
        # Pickled here, not by the connection: when that fails to send, it leaves buffers behind that complain when
        # collected.
        sender.send_bytes(pickle.dumps((kind, value)))

    def items(receiver: Pipe) -> Iterator[Any]:
        while (batch := pickle.loads(receiver.recv_bytes())) is not None:
            yield from batch

    try:
        section.refine(None if receiver is None else items(receiver), lambda item: put("item", item))
    except BaseException as error:
        text = "".join(traceback.format_exception(error))
        pickled: bytes | None = None
        with contextlib.suppress(Exception):
            pickled = pickle.dumps(error)
            pickle.loads(pickled)  # some can be pickled, but not be made again
            put("error", (pickled, text))
            return
        put("error", (None, text))
    else:
        put("end", None)
