"""What `Pipeline.tap` returns, and the buffers behind it.

A pipeline's task puts items in, synchronously; a consumer takes them out. Four buffers, one for each ``overflow``
policy, share one face: ``put``, ``pop``, ``len``. Only the `block` buffer can hold the pipeline up: after an item
that leaves it over its capacity, the pipeline waits until a consumer has brought it back. A consumer takes what is
there without a pass through the scheduler for each item (that pass is most of what a memory channel costs), but makes
one at least every 64 items or every millisecond.

Marks (`messages.is_mark`) are never dropped: they may take a buffer over its size, by `MARKS` and one for each stream:
beyond `MARKS`, a mark replaces an older one of the same kind and stream, which tells a consumer no less.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import trio
from trio.lowlevel import current_task

from .messages import BookUpdate, conflated, is_mark, is_partial, stream_key

__all__ = ["Block", "DropNewest", "DropOldest", "Latest", "OverflowPolicy", "Tap", "TapStatistics"]

MARKS = 64
BATCH = 64
"""How many items pass, at most, before other tasks get their turn."""
BUFFER = 4 * BATCH
"""The default size of a buffer: so that producer and consumer need not wait for each other within each batch. (With
room for one batch only, an item costs 0.3 us more.)
"""
BATCH_SECONDS = 0.001


class TapStatistics(NamedTuple):
    """The fields of trio's memory channels, and ``dropped``: how many items this tap has dropped or conflated away so
    far.
    """

    current_buffer_used: int
    max_buffer_size: float
    open_send_channels: int
    open_receive_channels: int
    tasks_waiting_send: int
    tasks_waiting_receive: int
    dropped: int


class OverflowPolicy(ABC):
    """The buffer of a tap: what its policies have in common. One producer; any number of `Tap` ends take from it."""

    capacity: float
    patience = math.inf
    """Seconds that a consumer may take nothing while it holds something up."""
    abandoned = False
    """Whether that patience has run out."""
    dropped = 0
    ends = 0
    internal = False
    """Whether the consumer is another pipeline."""
    receivers = 0
    """How many tasks are in ``receive`` with nothing to take; each makes room for one item, as in trio's channels."""

    def __init__(self, items: deque[Any] | OrderedDict[Any, Any]) -> None:
        self.items = items
        self.ended = False
        self.closed = False
        self.error: BaseException | None = None
        self.on_close: Callable[[], None] | None = None
        self.hungry = False
        """Whether a consumer sleeps until there is an item. (To ask a parking lot is a call, for each item.)"""
        self.watched = False
        """Whether somebody sleeps until an item was taken, or a consumer has come."""
        self._news = trio.lowlevel.ParkingLot()
        self._changed = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        return len(self.items)

    def age(self, now: int) -> int:
        """How long (ns) before ``now`` the item that waits longest was received; 0 where none waits, or it does not
        say.
        """
        items = self.items.values() if isinstance(self.items, OrderedDict) else self.items
        received = getattr(next(iter(items), None), "received", now)
        return max(0, now - received) if isinstance(received, int) else 0

    def count(self, receivers: int) -> None:
        """So many more tasks are in ``receive`` with nothing to take."""
        self.receivers += receivers

    @abstractmethod
    def put(self, item: Any) -> None:
        """Take an item in, or drop one, at once."""

    def put_all(self, items: Sequence[Any]) -> None:
        """`put` each of them."""
        for item in items:
            self.put(item)

    @abstractmethod
    def pop(self) -> Any:
        """The next item. Only called where there is one."""

    async def wait(self) -> None:
        """Sleep until there is news for a consumer: an item, the end, that it was closed."""
        self.hungry = True
        await self._news.park()

    def feed(self) -> None:
        """There is an item for a consumer that sleeps."""
        self._news.unpark()
        self.hungry = bool(self._news)

    async def change(self) -> None:
        """Sleep until an item was taken, a consumer has come, or the last one has gone."""
        self.watched = True
        await self._changed.park()

    def tell(self) -> None:
        """That has happened."""
        self.watched = False
        self._changed.unpark_all()

    def wake_all(self) -> None:
        """Wake whoever sleeps."""
        self.hungry = False
        self._news.unpark_all()
        self.tell()

    def clear(self) -> None:
        """Forget what is there."""
        self.items.clear()

    def end(self, error: BaseException | None = None) -> None:
        """The producer is done: consumers get what is left, then the end (after an ``error``: that it failed)."""
        if not self.ended:
            self.ended = True
            self.error = error
        self.wake_all()

    def close(self) -> None:
        """The last consumer is gone."""
        self.closed = True
        self.clear()
        self.wake_all()
        if self.on_close is not None:
            self.on_close()

    async def taken(self, grace: float) -> None:
        """Wait until all was taken and the consumer has come back for more (given ``grace`` seconds for that), or is
        gone.
        """
        while len(self) and not (self.closed or self.ended or self.abandoned):
            with trio.CancelScope(deadline=trio.current_time() + self.patience):
                await self.change()
                continue
            self.abandoned = True
        with trio.move_on_after(grace):
            while not (self.receivers or self.closed or self.ended or self.abandoned):
                await self.change()


class Block(OverflowPolicy):
    """Lossless: the producer waits. ``timeout`` seconds, ``retrys`` + 1 times, then trio.BusyResourceError."""

    def __init__(self, capacity: float, timeout: float, retrys: int, pressed: set[Block]) -> None:
        self._items: deque[Any] = deque()
        super().__init__(self._items)
        self.capacity = self._limit = capacity
        self.patience = timeout * (retrys + 1)
        self._pressed = pressed  # the producer looks here after each item

    def count(self, receivers: int) -> None:
        super().count(receivers)
        self._limit = self.capacity + self.receivers

    @property
    def over(self) -> bool:
        """Whether the producer has to wait."""
        return len(self._items) > self._limit and not (self.closed or self.abandoned)

    def put(self, item: Any) -> None:
        items = self._items
        items.append(item)
        if self.hungry:
            self.feed()
        if len(items) > self._limit:
            self._pressed.add(self)

    def put_all(self, items: Sequence[Any]) -> None:  # 0.15 us an item less
        self._items.extend(items)
        for _ in items:
            if not self.hungry:
                break
            self.feed()
        if len(self._items) > self._limit:
            self._pressed.add(self)

    @property
    def room_left(self) -> float:
        """How many more items may wait, until the producer has to; below 0 where it has to already."""
        return self.capacity - len(self._items)

    def pop(self) -> Any:
        item = self._items.popleft()
        if self.watched:
            self.tell()
        return item

    async def room(self) -> None:
        """Wait until the buffer is no longer over its capacity, or closed. Raises trio.BusyResourceError when
        patience runs out.
        """
        while self.over:
            with trio.CancelScope(deadline=trio.current_time() + self.patience):
                await self.change()
                continue
            self.abandoned = True
            raise trio.BusyResourceError(
                f"Unable to send item: a tap's consumer took nothing for {self.patience:g} s. "
                "Read the tap faster, give it a larger max_buffer_size or timeout, or another overflow policy."
            )


class _Dropping(OverflowPolicy):
    """What the two drop policies share: a deque, and the streams that have a gap."""

    def __init__(self, capacity: float) -> None:
        self._items: deque[Any] = deque()
        super().__init__(self._items)
        self.capacity = capacity
        self._gaps: set[Any] = set()

    def clear(self) -> None:
        super().clear()
        self._gaps.clear()

    def _append(self, item: Any) -> None:
        self._items.append(item)
        if self.hungry:
            self.feed()

    def _drop(self, item: Any) -> None:
        self.dropped += 1
        self._gaps.add(stream_key(item))

    def _mend(self, item: Any) -> Any:
        """The item as it must look behind a gap of its stream."""
        if self._gaps:
            key = stream_key(item)
            if key in self._gaps:
                self._gaps.discard(key)
                return conflated(item)
        return item

    def _fold(self, mark: Any) -> None:
        """Make way for a mark where marks alone fill the buffer: an older one that says the same goes."""
        if len(self._items) >= self.capacity + MARKS:
            for index, item in enumerate(self._items):
                if _same_mark(item, mark):
                    del self._items[index]
                    self.dropped += 1
                    break


class DropOldest(_Dropping):
    """When full, the oldest item that is no mark makes way."""

    def put(self, item: Any) -> None:
        items = self._items
        if len(items) >= self.capacity:
            for index, old in enumerate(items):
                if not is_mark(old):
                    del items[index]
                    self._drop(old)
                    break
            else:
                if not is_mark(item):
                    self._drop(item)
                    return
                self._fold(item)
        self._append(item)

    def pop(self) -> Any:
        item = self._items.popleft()
        if self.watched:
            self.tell()
        return item if is_mark(item) else self._mend(item)  # the gap may be behind the mark


class DropNewest(_Dropping):
    """When full, what arrives is dropped, unless it is a mark."""

    def put(self, item: Any) -> None:
        if len(self._items) >= self.capacity:
            if not is_mark(item):
                self._drop(item)
                return
            self._fold(item)
        self._append(self._mend(item))

    def pop(self) -> Any:
        item = self._items.popleft()
        if self.watched:
            self.tell()
        return item


class Latest(OverflowPolicy):
    """Only the newest item per key. It waits at the place of the one that it replaces, so that no busy key starves
    another; but never before a mark or a partial that had come by then. Partials have keys of their own.
    """

    capacity = math.inf

    def __init__(self, key: Callable[[Any], Hashable] | None) -> None:
        self._items: OrderedDict[Any, Any] = OrderedDict()
        super().__init__(self._items)
        self._key = key or stream_key
        self.keyed = key is not None  # by a function of the user's
        self._marked: dict[Any, int] = {}  # key -> how many marks and partials had come when its item was put
        self._marks = 0  # of both
        self._replaced: set[Any] = set()  # the keys of items that have taken the place of others

    def put(self, item: Any) -> None:
        items = self._items
        if is_mark(item):
            self._marks += 1
            self._fold(item)
            items[_Mark(self._marks)] = item
        else:
            key = self._key(item)
            if type(item) is not BookUpdate and is_partial(item):  # of books, many come; to call costs
                self._marks += 1
                key = _PARTIAL, key, f"{item.table} {item.filter or {}}"  # and what it covers
            if key not in items:
                self._marked[key] = self._marks
            else:
                self.dropped += 1
                self._replaced.add(key)
                if self._marked[key] != self._marks:  # nothing may overtake a mark, or a partial
                    del items[key]
                    self._marked[key] = self._marks
            items[key] = item
        if self.hungry:
            self.feed()

    def pop(self) -> Any:
        key, item = self._items.popitem(last=False)
        self._marked.pop(key, None)
        if key in self._replaced:
            self._replaced.remove(key)
            item = conflated(item)
        if self.watched:
            self.tell()
        return item

    def clear(self) -> None:
        super().clear()
        self._marked.clear()
        self._replaced.clear()

    def _fold(self, mark: Any) -> None:
        if len(self._items) - len(self._marked) >= MARKS:
            for key, item in self._items.items():
                if type(key) is _Mark and _same_mark(item, mark):
                    del self._items[key]
                    self.dropped += 1
                    break


class _Mark(NamedTuple):
    """The key of a mark in a `Latest` buffer; equal to no other."""

    number: int

    def __hash__(self) -> int:
        return id(type(self)) ^ self.number

    def __eq__(self, other: object) -> bool:
        return type(other) is _Mark and other.number == self.number


_PARTIAL = object()
"""Makes the key of a partial in a `Latest` buffer: equal to none that a user's function gives."""


def _same_mark(one: Any, other: Any) -> bool:
    return (
        type(one) is type(other)
        and is_mark(one)
        and stream_key(one) == stream_key(other)
        and getattr(one, "source", None) == getattr(other, "source", None)
    )


class Tap(trio.abc.ReceiveChannel[Any]):
    """The consumer's end of a tap: a trio receive channel.

    Iterate it, or `receive`. Close it (``async with``, ``with``, `close`, `aclose`) when done: an open `block` tap
    that nobody reads holds the whole pipeline up. Cancelling `receive` loses nothing.
    """

    def __init__(self, buffer: OverflowPolicy) -> None:
        self._buffer = buffer
        self._pop = buffer.pop
        self._items = buffer.items
        self._closed = False
        self._left = BATCH  # how many items may still be taken without a pass through the scheduler; 0 when closed
        self._until = 0.0  # and until when (s, on time.perf_counter)
        self._task: Any = None  # which did that
        buffer.ends += 1

    async def receive(self) -> Any:
        """The next item; waits for it.

        Raises trio.EndOfChannel when the pipeline has ended and all was taken, trio.ClosedResourceError when this tap
        was closed, and trio.BrokenResourceError when the pipeline has failed (its context raises the error; consumers
        within that are cancelled instead).
        """
        try:
            return await self.__anext__()
        except StopAsyncIteration:
            raise trio.EndOfChannel from None

    async def __anext__(self) -> Any:
        # Within a batch nobody else runs: only the consumer itself can have cancelled its scope since the last pass.
        # To look at that here, not by `trio.lowlevel.checkpoint_if_cancelled`, saves 0.3 us of 1 us an item. (A task
        # that has ended has no status: then another one goes on.)
        if (
            self._items
            and self._left > 0
            and perf_counter() < self._until
            and (status := self._task._cancel_status) is not None
            and not status.effectively_cancelled
        ):
            self._left -= 1
            return self._pop()
        buffer = self._buffer
        if not buffer.items or self._closed:
            await trio.lowlevel.checkpoint_if_cancelled()
            return await self._wait()
        await trio.lowlevel.checkpoint()
        if not buffer.items or self._closed:  # a clone, or a close, was faster
            return await self._wait()
        self._begin_batch()
        return buffer.pop()

    def _begin_batch(self) -> None:
        self._left = BATCH - 1
        self._task = current_task()
        self._until = perf_counter() + BATCH_SECONDS

    async def _wait(self) -> Any:
        buffer = self._buffer
        buffer.count(1)
        buffer.tell()
        waited = False
        try:
            while True:
                if self._closed:
                    raise trio.ClosedResourceError
                if buffer.items:
                    break
                if buffer.ended:
                    if not waited:
                        await trio.lowlevel.checkpoint()
                    raise StopAsyncIteration if buffer.error is None else self._broken(buffer.error)
                waited = True
                await buffer.wait()
        finally:
            buffer.count(-1)
        self._begin_batch()
        return buffer.pop()

    def _broken(self, error: BaseException) -> trio.BrokenResourceError:
        broken = trio.BrokenResourceError(f"the pipeline failed, with {type(error).__name__}, which its context raises")
        broken.__cause__ = error
        return broken

    def receive_nowait(self) -> Any:
        """The next item, or trio.WouldBlock where there is none. Other errors as `receive`."""
        if self._closed:
            raise trio.ClosedResourceError
        if self._buffer.items:
            return self._buffer.pop()
        if self._buffer.ended:
            raise trio.EndOfChannel if self._buffer.error is None else self._broken(self._buffer.error)
        raise trio.WouldBlock

    def _drain(self) -> list[Any]:
        """All that is there, perhaps nothing."""
        return [self._buffer.pop() for _ in range(len(self._buffer))]

    def _end(self) -> None:
        """As if the pipeline had ended with nothing left, for consumers that cannot be cancelled."""
        self._buffer.clear()
        self._buffer.end()

    def clone(self) -> Tap:
        """Another end of the same tap: each item goes to one of them; the tap closes with the last."""
        if self._closed:
            raise trio.ClosedResourceError
        return Tap(self._buffer)

    def close(self) -> None:
        """Close this end, at once. Tasks that wait in `receive` on it get trio.ClosedResourceError."""
        if not self._closed:
            self._closed = True
            self._left = 0
            self._buffer.ends -= 1
            if self._buffer.ends == 0:
                self._buffer.close()
            else:
                self._buffer.wake_all()

    async def aclose(self) -> None:
        """`close`, and a checkpoint."""
        self.close()
        await trio.lowlevel.checkpoint()

    async def __aenter__(self) -> Tap:
        return self

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def dropped(self) -> int:
        """How many items this tap has dropped, or replaced by newer ones, so far."""
        return self._buffer.dropped

    def statistics(self) -> TapStatistics:
        """How full the buffer is and who waits, as of trio's memory channels, and what was dropped."""
        buffer = self._buffer
        return TapStatistics(
            current_buffer_used=len(buffer),
            max_buffer_size=buffer.capacity,
            open_send_channels=0 if buffer.ended else 1,
            open_receive_channels=buffer.ends,
            tasks_waiting_send=int(isinstance(buffer, Block) and buffer.over),
            tasks_waiting_receive=buffer.receivers,
            dropped=buffer.dropped,
        )

    def __repr__(self) -> str:
        buffer = self._buffer
        state = "closed" if self._closed else "ended" if buffer.ended else "open"
        return f"<Tap {type(buffer).__name__} {state}, {len(buffer)} waiting, {buffer.dropped} dropped>"
