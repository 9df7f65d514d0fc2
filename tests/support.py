"""Small sections and sources that several tests build pipelines of."""

from collections import deque
from contextlib import asynccontextmanager

import trio
from hypothesis import strategies as st
from slurry.environments import ProcessSection, ThreadSection, TrioSection

from bitmex_streams.messages import TableUpdate
from bitmex_streams.operator import Operator, Source


async def count(number):
    """0, 1, 2, ...: ``number`` of them."""
    for item in range(number):
        yield item
        await trio.lowlevel.checkpoint()


async def until_cancelled():
    """0, 1, 2, ... for ever."""
    item = 0
    while True:
        yield item
        item += 1
        await trio.sleep(0.001)


async def collect(tap):
    """All that comes out of a tap, which is closed then."""
    async with tap:
        return [item async for item in tap]


class NeverAwaits:
    """An async iterable that is none at heart."""

    def __init__(self, number):
        self.number = number
        self.item = -1

    def __aiter__(self):
        return self

    async def __anext__(self):
        self.item += 1
        if self.item >= self.number:
            raise StopAsyncIteration
        return self.item

    async def aclose(self):
        pass


class Burst(Source):
    """``number`` items in batches of a thousand; then the end, or ``error``."""

    def __init__(self, number, error=None):
        self.number = number
        self.error = error
        self.item = 0

    @asynccontextmanager
    async def batches(self, input):
        yield self

    async def receive(self):
        await trio.lowlevel.checkpoint()
        if self.item == self.number:
            if self.error is not None:
                raise self.error
            raise trio.EndOfChannel
        begin, self.item = self.item, min(self.item + 1000, self.number)
        return range(begin, self.item)


class Messages(Source):
    """All in one batch, as of a recording."""

    rate = 0.0

    def __init__(self, messages):
        self.messages = messages

    @asynccontextmanager
    async def batches(self, input):
        yield self

    async def receive(self):
        await trio.lowlevel.checkpoint()
        if not self.messages:
            raise trio.EndOfChannel
        messages, self.messages = self.messages, []
        return messages


class Pass(Operator):
    def process(self, item):
        return (item,)


class Add(Operator):
    def __init__(self, number):
        self.number = number

    def process(self, item):
        return (item + self.number,)


class Twice(Operator):
    def process(self, item):
        yield item
        yield item


class RaiseAt(Operator):
    def __init__(self, at, error):
        self.at = at
        self.error = error

    def process(self, item):
        if item == self.at:
            raise self.error
        return (item,)


class Hold(Operator):
    """Remembers what came (the last ``keep`` items), and passes it on at once or at the end."""

    def __init__(self, put_out_at_the_end=False, keep=None):
        self.held = deque(maxlen=keep) if keep is not None else []
        self.seen = 0
        self.put_out_at_the_end = put_out_at_the_end

    def process(self, item):
        self.held.append(item)
        self.seen += 1
        return () if self.put_out_at_the_end else (item,)

    def finish(self):
        return self.held if self.put_out_at_the_end else ()


class TrioPass(TrioSection):
    def __init__(self, error=None, at=None):
        self.error = error
        self.at = at

    async def refine(self, input, output):
        async for item in input:
            if self.error is not None and item == self.at:
                raise self.error
            await output(item)


class _BlockingPass:
    def __init__(self, error=None, at=None):
        self.error = error
        self.at = at

    def refine(self, input, output):
        for item in input:
            if self.error is not None and item == self.at:
                raise self.error
            output(item)


class ThreadPass(_BlockingPass, ThreadSection):
    pass


class ProcessPass(_BlockingPass, ProcessSection):
    pass


INSTRUMENTS = "ABC"


def partial(received, symbols, symbol=None):
    """Of instruments: of all of them, which are ``symbols``, or of one."""
    rows = [{"symbol": name, "lastPrice": received} for name in symbols]
    return TableUpdate("instrument", "partial", rows, received, filter={"symbol": symbol} if symbol else {})


def change(received, symbol, action="update"):
    return TableUpdate("instrument", action, [{"symbol": symbol, "lastPrice": received}], received)


def stale(received, symbol=None):
    return TableUpdate("instrument", "stale", (), received, filter={"symbol": symbol} if symbol else {})


_symbol = st.sampled_from(INSTRUMENTS)
_symbol_or_all = st.none() | _symbol
changes_of_a_table = st.lists(
    st.one_of(
        st.builds(lambda symbols: lambda at: partial(at, symbols), st.lists(_symbol, unique=True)),
        st.builds(lambda symbol, there: lambda at: partial(at, symbol * there, symbol), _symbol, st.booleans()),
        st.builds(lambda *what: lambda at: change(at, *what), _symbol, st.sampled_from(["insert", "update", "delete"])),
        st.builds(lambda symbol: lambda at: stale(at, symbol), _symbol_or_all),
    ),
    max_size=60,
).map(lambda steps: [step(at) for at, step in enumerate(steps, 1)])


def state_after(updates):
    """What somebody knows who has applied these, in order: the rows by symbol, and the symbols that are stale."""
    rows, lost = {}, set()
    for update in updates:
        if update.action in ("partial", "stale"):
            covered = set(update.filter.values()) or set(INSTRUMENTS)
            lost = lost - covered if update.action == "partial" else lost | covered
        if update.action == "partial":
            rows = {symbol: row for symbol, row in rows.items() if symbol not in covered}
        for row in update.rows:
            if update.action == "delete":
                rows.pop(row["symbol"], None)
            else:
                rows[row["symbol"]] = row
    return rows, lost
