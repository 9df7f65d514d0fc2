"""Reading ahead: what blocks (a disk, a pipe, a decompressor) runs in a worker thread, while those who need it work on
what came before.

One trip into the thread brings `CHUNK` bytes, and the next begins when these are taken: so at most two chunks are in
memory, however slow the consumer is. A trip costs 0.1 ms, and a chunk of a recording is worth 20 ms of work, so it
has mostly returned before it is waited for. How the thread fares depends on how often it needs the interpreter's
lock, which a busy consumer gives away only at its checkpoints: hence large blocks.
"""

from __future__ import annotations

import inspect
import threading
from collections import deque
from collections.abc import Generator
from contextlib import suppress
from typing import Any

import trio

__all__ = ["ABANDON", "CHUNK", "PATIENCE", "ReadAhead"]

CHUNK = 1 << 20
"""Bytes of one trip into the thread, about."""
PATIENCE = 1.0
"""Seconds that a thread has to come back when nobody wants it any more. Then it is left to itself: no cancellation
waits longer for a pipe that nobody writes to.
"""

# The same parameter, before and after trio 0.23.
_MODERN = "abandon_on_cancel" in inspect.signature(trio.to_thread.run_sync).parameters
ABANDON: dict[str, Any] = {"abandon_on_cancel" if _MODERN else "cancellable": True}


class ReadAhead:
    """An iterator of ``blocks`` that never waits for them: `ready` does, before each `next`.

    ``nursery``: where its task runs, when it needs one. ``at_once``: how many bytes are not read ahead, but by `next`
    itself (math.inf: all of them; there is no thread then).

    An error of ``blocks`` waits its turn. Whoever is done calls `close`, which does not wait: ``blocks`` are closed
    at once, or by the thread on its way out, and the task in the nursery ends with it.
    """

    def __init__(self, blocks: Generator[bytes, None, None], nursery: trio.Nursery, *, at_once: float = 0) -> None:
        self._blocks = blocks
        self._nursery = nursery
        self._at_once = at_once
        self._here: deque[bytes | Exception] = deque()
        self._chunks: trio.MemoryReceiveChannel[list[bytes | Exception]] | None = None
        self._trip = trio.CancelScope(shield=True)
        self._limiter = trio.CapacityLimiter(1)  # what was left to itself must not use up trio's
        self._in_use = threading.Lock()  # held by who reads `blocks`, or closes them
        self._ended = False
        self._closed = False

    def __iter__(self) -> ReadAhead:
        return self

    def __next__(self) -> bytes:
        """The next block. May only be called when `ready` has returned."""
        if not self._here:
            block = next(self._blocks)
            self._at_once -= len(block)
            return block
        here = self._here.popleft()
        if isinstance(here, Exception):
            self._ended = True
            raise here
        return here

    async def ready(self) -> None:
        """Wait until the next block (the end, an error) is there. Safe to cancel. No checkpoint where it is there
        already, or nothing more comes.
        """
        if self._here or self._at_once > 0 or self._ended or self._closed:
            return
        if self._chunks is None:
            send, self._chunks = trio.open_memory_channel[Any](0)
            self._nursery.start_soon(self._run, send)
        self._here.extend(await self._chunks.receive())

    def close(self) -> None:
        """Nothing more is wanted."""
        self._closed = True
        self._here.clear()
        if self._chunks is not None:
            self._chunks.close()
            self._trip.deadline = trio.current_time() + PATIENCE
        self._close_blocks()

    def _close_blocks(self) -> None:
        if self._in_use.acquire(blocking=False):  # else the thread sees on its way out that it has to
            try:
                self._blocks.close()
            finally:
                self._in_use.release()

    async def _run(self, send: trio.MemorySendChannel[list[bytes | Exception]]) -> None:
        with send, suppress(trio.BrokenResourceError):
            more = True
            while more:
                chunk: list[bytes | Exception] = []
                with self._trip:  # shielded: when this is cancelled, the thread has time to come back
                    chunk = await trio.to_thread.run_sync(self._take, limiter=self._limiter, **ABANDON)
                self._trip = trio.CancelScope(shield=True)
                more = bool(chunk) and not isinstance(chunk[-1], Exception)
                await send.send(chunk)

    def _take(self) -> list[bytes | Exception]:
        """In the thread: the next blocks. The end (StopIteration) or an error is the last of them."""
        chunk: list[bytes | Exception] = []
        size = 0
        with self._in_use:
            while size < CHUNK and not self._closed:
                try:
                    block = next(self._blocks)
                except Exception as error:
                    chunk.append(error)
                    break
                chunk.append(block)
                size += len(block)
        if self._closed:
            self._close_blocks()
        return chunk
