"""A source that hands over what was prepared, so that only what stands behind it is measured."""

from __future__ import annotations

import gc
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import trio

from bitmex_streams import Pipeline, RawMessage, Source

BATCH = 250  # about what one read of a busy socket gives
BEGAN = 1_767_225_600_000_000_000  # ns; 2026-01-01
STEP = 200_000  # ns between messages


class Prepared(Source):
    """Batches, one after the other. ``times``: the CPU time (s) of the process when each was asked for, and the end;
    so the work on a batch lies between two of them.
    """

    rate = 0.0

    def __init__(self, batches: Iterable[Sequence[Any]]) -> None:
        self.times: list[float] = []
        self._batches = iter(batches)

    @asynccontextmanager
    async def batches(self, input: Any) -> AsyncIterator[Prepared]:
        yield self

    async def receive(self) -> Sequence[Any]:
        """The next batch."""
        await trio.lowlevel.checkpoint()
        self.times.append(time.process_time())
        for batch in self._batches:
            return batch
        raise trio.EndOfChannel


def raw(messages: Iterable[bytes]) -> list[RawMessage]:
    """As a connection would put them out."""
    return [RawMessage(BEGAN + number * STEP, message.decode()) for number, message in enumerate(messages)]


def through(items: Iterable[Any], *operators: Any) -> list[Any]:
    """What operators make of them."""
    for operator in operators:
        items = [out for item in items for out in operator.process(item)]
    return list(items)


def batched(items: Sequence[Any]) -> list[Sequence[Any]]:
    """Cut into batches."""
    return [items[begin : begin + BATCH] for begin in range(0, len(items), BATCH)]


def cpu(batches: Iterable[Sequence[Any]], *sections: Any, overflow: Any = None) -> list[float]:
    """The seconds of CPU that each batch took to pass through sections; with a tap at the end of that policy, of which
    all is read, or with none.
    """
    source = Prepared(batches)
    gc.collect()
    gc.freeze()  # what was prepared is no garbage, and would only be looked through again and again
    try:
        trio.run(_pass, source, sections, overflow)
    finally:
        gc.unfreeze()
    return [end - begin for begin, end in pairwise(source.times)]


async def _pass(source: Prepared, sections: Iterable[Any], overflow: Any) -> None:
    async with Pipeline.create(source, *sections) as pipeline:
        if overflow is None:
            pipeline.start()
            await pipeline.wait()
        else:
            async with pipeline.tap(overflow=overflow) as items:
                async for _ in items:
                    pass
