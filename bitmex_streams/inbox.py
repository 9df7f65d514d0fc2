"""A bounded buffer between tasks: many may put, one takes, and takes all that is there in one go.

Why not `trio.open_memory_channel`: each receive is a pass through the scheduler (about 6 us an item); a batch costs
one. An `Inbox` is closed by its producer (`close`, perhaps with the error that ends the stream, which then waits its
turn behind the items) or by its consumer (`shut`: nothing more is wanted).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import trio

__all__ = ["Inbox", "OutputClosed"]


class OutputClosed(trio.BrokenResourceError):
    """Nobody wants what a section still puts out. As in slurry, that ends the section, and is no error."""


class Inbox:
    """``max_items`` (int, or math.inf) and ``max_bytes`` (of the sizes given to `put`) bound what waits in it.

    One item always fits, however large it is, so that a limit is no deadlock.
    """

    def __init__(self, max_items: float, max_bytes: float = math.inf) -> None:
        self.max_items = max_items
        self.max_bytes = max_bytes
        self.bytes = 0
        self.count = 0
        """How many items were ever put in."""
        self.closed = False
        self.wanted = True
        self.told = False
        """Whether a producer was told that nothing more is wanted."""
        self._error: BaseException | None = None
        self._items: deque[Any] = deque()
        self._room = trio.lowlevel.ParkingLot()
        self._news = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        return len(self._items)

    def __bool__(self) -> bool:
        return True

    def age(self, now: int) -> int:
        """How long (ns) before ``now`` the item that waits longest was ``received``; 0 where none waits."""
        return max(0, now - self._items[0].received) if self._items else 0

    @property
    def full(self) -> bool:
        """Whether the next `put` has to wait."""
        return len(self._items) >= self.max_items or (self.bytes >= self.max_bytes and bool(self._items))

    def has_room(self, items: int, size: int) -> bool:
        """Whether so many items, of ``size`` together, can be put without going over a limit."""
        return len(self._items) + items <= self.max_items and self.bytes + size <= self.max_bytes

    @property
    def waiting(self) -> int:
        """How many `put` wait for room."""
        return len(self._room)

    async def put(self, item: Any, size: int = 0) -> None:
        """Put one item in, waiting for room. Always a checkpoint; when cancelled, the item was not put.

        Raises `OutputClosed` when the consumer has shut the inbox.
        """
        await trio.lowlevel.checkpoint()
        await self.wait_for_room()
        self.put_nowait(item, size)

    async def wait_for_room(self) -> None:
        """Wait until there is room, or nothing more is wanted (no checkpoint where that is so already)."""
        while self.wanted and self.full:
            await self._room.park()

    def put_nowait(self, item: Any, size: int = 0) -> None:
        """Put one item in at once, whether or not there is room. For producers that wait by other means."""
        self.extend_nowait((item,), size)

    def extend_nowait(self, items: Sequence[Any], size: int = 0) -> None:
        """Put items in at once, whether or not there is room; ``size`` is that of all together."""
        if not self.wanted:
            self.told = True
            raise OutputClosed("nobody wants this: its taps are closed, or the next section has ended")
        self._items.extend(items)
        self.bytes += size
        self.count += len(items)
        if self._news:
            self._news.unpark()

    def close(self, error: BaseException | None = None) -> None:
        """The producer is done: after what is there, `take` raises ``error``, or trio.EndOfChannel. Only the first
        call counts.
        """
        if not self.closed:
            self.closed = True
            self._error = error
            self._news.unpark_all()

    def shut(self) -> None:
        """The consumer is done: what is there is discarded, and every `put` raises `OutputClosed`."""
        self.wanted = False
        self._items.clear()
        self.bytes = 0
        self._room.unpark_all()

    async def take(self) -> Sequence[Any]:
        """All that is there, at least one item; waits for it. Always a checkpoint (one pass through the scheduler,
        not a second to fall asleep); when cancelled, nothing was taken.

        Raises what the inbox was closed with, or trio.EndOfChannel, once it is empty.
        """
        if self._items or self.closed:
            await trio.lowlevel.checkpoint()
        while not self._items:
            if self.closed:
                if self._error is not None:
                    raise self._error
                raise trio.EndOfChannel
            await self._news.park()
        return self.take_nowait()

    def take_nowait(self) -> Sequence[Any]:
        """All that is there, perhaps nothing."""
        items = self._items
        self._items = deque()
        self.bytes = 0
        self._room.unpark_all()
        return items
