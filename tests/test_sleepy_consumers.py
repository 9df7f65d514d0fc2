"""A consumer sleeps for ten minutes, while two books move: what becomes of memory, of the others, of the connection,
and what it finds when it wakes.

On a test clock, over in-memory streams that hold one write of the server at a time, so that a client that does not read
holds it up, as TCP does. For the little that the client says there is always room, as there.
"""

import gc
import logging
import tracemalloc
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing
import trio_websocket

from bitmex_streams import Connection, Decoder, OrderBookMerger, Pipeline, Reconnect
from bitmex_streams.tap import MARKS
from bitmex_streams.transport import WebsocketTransport
from tests.servers import InMemory, ScriptedExchange, partial_of

MINUTE = 60
SLEEP = 10 * MINUTE
INTERVAL = 0.4  # seconds between two messages
SYMBOLS = ("XBTUSD", "ETHUSD")
KEPT = 100  # by the taps that drop
GROWTH = 50_000  # bytes that both ends together may grow by while 1200 messages pass, of a hundred bytes and more each


@pytest.fixture(autouse=True)
def quiet():
    """Whoever captures what is logged of each message keeps it in memory."""
    logging.disable(logging.DEBUG)
    yield
    logging.disable(logging.NOTSET)


class Narrow(InMemory):
    """An `InMemory` whose streams take no more of the server until what they hold was read."""

    def __call__(self, url, **options):
        self.attempts.append(trio.current_time())
        to_client, from_server = trio.testing.lockstep_stream_one_way_pair()
        to_server, from_client = trio.testing.memory_stream_one_way_pair()
        ours, theirs = trio.StapledStream(to_server, from_server), trio.StapledStream(to_client, from_client)
        self.streams.append(theirs)
        self._nursery.start_soon(self._serve, theirs)
        return WebsocketTransport(url, stream=ours, **options)


class Market(ScriptedExchange):
    """Two books of one level each, which move in turn: its size is the number of the message that set it."""

    def __init__(self):
        super().__init__()
        self.number = 0
        for _ in SYMBOLS:
            self.move()

    def move(self):
        """The next message."""
        symbol = SYMBOLS[self.number % len(SYMBOLS)]
        self.number += 1
        row = {"symbol": symbol, "id": 1, "side": "Buy", "size": self.number}
        topic = f"orderBookL2:{symbol}"
        self.partials[topic] = {**partial_of(topic, [{**row, "price": 100}]), "keys": ["symbol", "id", "side"]}
        return {"table": "orderBookL2", "action": "update", "data": [row]}

    async def run(self):
        """Say something at each `INTERVAL`, or once the client reads again."""
        due = trio.current_time()
        while True:
            due = max(due + INTERVAL, trio.current_time())
            await trio.sleep_until(due)
            message = self.move()
            with suppress(trio_websocket.ConnectionClosed):
                await self.send(message)


class World:
    """A market, a pipeline that follows it, and what a consumer that does not sleep has got."""

    def __init__(self, market, connection, merger, pipeline):
        self.market, self.connection, self.merger, self.pipeline = market, connection, merger, pipeline
        self.heard = 0  # updates
        self.behind = 0  # by how many messages it was behind the market, at most
        self.got = {}  # symbol: the size last told
        self.marks = 0

    async def listen(self, tap):
        async for update in tap:
            size = update.best_bid.size
            self.heard += 1
            if update.stale:
                self.marks += 1
            elif update.changes is not None:
                assert size == self.got[update.symbol] + len(SYMBOLS), "in order, and none left out"
                self.behind = max(self.behind, self.market.number - size)
            self.got[update.symbol] = size

    async def sleep(self, minutes=SLEEP // MINUTE):
        """Let the time pass; gives the memory in use after each minute (bytes)."""
        memory = []
        for _ in range(minutes):
            await trio.sleep(MINUTE)
            gc.collect()
            memory.append(tracemalloc.get_traced_memory()[0])
        return memory


@asynccontextmanager
async def world(**options):
    market, merger = Market(), OrderBookMerger()
    async with trio.open_nursery() as nursery:
        server = Narrow(market, nursery)
        connection = Connection(
            "ws://in.memory/realtime",
            subscribe=[f"orderBookL2:{symbol}" for symbol in SYMBOLS],
            transport=server,
            **{"reconnect": Reconnect(jitter=0), **options},
        )
        async with Pipeline.create(connection, Decoder(), merger) as pipeline:
            tracemalloc.start()
            try:
                yield World(market, connection, merger, pipeline)
            finally:
                tracemalloc.stop()
        for stream in server.streams:
            await stream.aclose()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def two_consumers(world, **policy):
    """The one that will sleep, and one that reads all the time."""
    async with world.pipeline.tap(start=False, **policy) as sleeper, world.pipeline.tap(start=False) as awake:
        world.pipeline.start()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.listen, awake)
            for symbol in SYMBOLS:
                await world.merger.ready(symbol)
            nursery.start_soon(world.market.run)
            yield sleeper
            nursery.cancel_scope.cancel()


def drain(tap):
    """What is there."""
    found = []
    with suppress(trio.WouldBlock):
        while True:
            found.append(tap.receive_nowait())
    return found


def sizes(updates):
    return [update.best_bid.size for update in updates]


async def take(tap, seconds):
    """What comes within so many seconds."""
    found = []
    with trio.move_on_after(seconds):
        async for update in tap:
            found.append(update)
    return found


DROPPING = [
    {"overflow": "drop_oldest", "max_buffer_size": KEPT},
    {"overflow": "drop_newest", "max_buffer_size": KEPT},
    {"overflow": "latest"},
]
dropping = pytest.mark.parametrize("policy", DROPPING, ids=lambda policy: policy["overflow"])


@dropping
async def test_with_a_policy_that_drops_nobody_else_notices_and_it_finds_what_the_policy_promises(
    policy, autojump_clock
):
    async with world() as it, two_consumers(it, **policy) as sleeper:
        memory = await it.sleep()
        assert max(memory[2:]) - memory[1] < GROWTH, memory
        last = it.market.number
        assert last >= SLEEP / INTERVAL
        assert it.heard == last and it.behind <= 1 and it.marks == 0, "the other has got each at once"
        stats = it.connection.stats
        assert (stats.connected, stats.reconnects, stats.resyncs) == (True, 0, 0) and stats.waiting <= 1

        waiting = sleeper.statistics().current_buffer_used
        found = drain(sleeper)
        assert len(found) == waiting
        assert sleeper.dropped == last - waiting
        behind_the_gap, rest = found[:2], found[2:]
        if policy["overflow"] == "drop_oldest":
            assert sizes(found) == list(range(last - KEPT + 1, last + 1)), "the newest"
        elif policy["overflow"] == "drop_newest":
            assert sizes(found) == list(range(1, KEPT + 1)), "the oldest"
            behind_the_gap, rest = [], found[2:]  # the gap is behind them
        else:
            assert sizes(found) == [last - 1, last], "the newest of each book"
        assert all(update.changes is None for update in behind_the_gap)
        assert all(update.changes for update in rest)

        then = await take(sleeper, 10)
        assert sizes(then) == list(range(last + 1, it.market.number + 1)), "and from then on it is there"
        in_a_gap = 2 if policy["overflow"] == "drop_newest" else 0
        assert [update.changes is None for update in then] == [n < in_a_gap for n in range(len(then))]


@dropping
async def test_the_loss_of_a_connection_is_there_when_it_wakes_and_at_its_place(policy, autojump_clock):
    async with world() as it, two_consumers(it, **policy) as sleeper:
        await it.sleep(5)
        before = it.market.number
        await it.connection._transport.drop()
        memory = await it.sleep(5)
        assert max(memory) - memory[0] < GROWTH, memory
        assert it.connection.stats.reconnects == 1 and it.connection.connected
        assert it.marks == len(SYMBOLS), "the other was told as well"

        last = it.market.number
        found = drain(sleeper)
        stale = [index for index, update in enumerate(found) if update.stale]
        assert {found[index].symbol for index in stale} == set(SYMBOLS)
        assert all(before - 1 <= found[index].best_bid.size <= before + 1 for index in stale), "the last known"
        old, new = found[: stale[0]], found[stale[-1] + 1 :]
        if policy["overflow"] == "drop_newest":
            assert sizes(old) == list(range(1, KEPT + 1)) and new == []
        elif policy["overflow"] == "drop_oldest":
            assert old == [] and sizes(new) == list(range(last - len(new) + 1, last + 1)) and len(found) == KEPT
        else:
            assert sizes(new) == [last - 1, last]
            assert all(update.changes is None for update in new)


@dropping
async def test_a_connection_that_comes_and_goes_fills_no_buffer_with_marks(policy, autojump_clock):
    async with world(reconnect=Reconnect(maximum=1)) as it, two_consumers(it, **policy) as sleeper:
        for _ in range(SLEEP // 4):
            await it.connection._transport.drop()
            await trio.sleep(4)
        assert it.marks > 2 * MARKS
        assert sleeper.statistics().current_buffer_used <= KEPT + MARKS
        found = drain(sleeper)
        assert {update.symbol for update in found if update.stale} == set(SYMBOLS)


async def test_block_with_room_enough_ahead_loses_nothing_but_everybody_waits(autojump_clock):
    async with world() as it, two_consumers(it, max_buffer_size=64) as sleeper:
        await it.sleep(1)
        heard, told = it.heard, sizes([it.merger.books[symbol] for symbol in SYMBOLS])
        await it.sleep(9)
        last = it.market.number
        assert last >= SLEEP / INTERVAL
        assert it.heard == heard < last / 10, "the other waits with it, as documented"
        assert sizes([it.merger.books[symbol] for symbol in SYMBOLS]) == told
        stats = it.connection.stats
        assert (stats.connected, stats.reconnects, stats.resyncs) == (True, 0, 0)
        assert last - 2 * KEPT < stats.waiting <= last, "all is read ahead"

        found = await take(sleeper, 10)
        assert sizes(found) == list(range(1, it.market.number + 1)), "all, in order, once each"
        assert not any(update.stale for update in found)
        assert it.heard == it.market.number and it.connection.stats.waiting == 0
        assert it.connection.stats.lag < 1


async def test_block_without_that_room_stops_the_reading_and_is_asked_anew_when_it_wakes(autojump_clock):
    async with world(buffer_size=KEPT) as it, two_consumers(it, max_buffer_size=64) as sleeper:
        memory = await it.sleep(2)
        heard = it.heard
        assert all(book.stale for book in it.merger.books.values()), "the live objects say so, though nobody reads"
        memory += await it.sleep(8)
        assert max(memory[2:]) - memory[1] < GROWTH, memory
        assert it.heard == heard, "the other waits with it, as documented"
        assert it.market.number < 3 * KEPT, "and so does the server"
        stats = it.connection.stats
        assert stats.connected and stats.reconnects == 0, "who holds up the reading is not taken for a dead server"
        assert KEPT <= stats.waiting <= KEPT + 2

        held = it.market.number
        found = await take(sleeper, 10)
        stale = [index for index, update in enumerate(found) if update.stale]
        old, new = found[: stale[0]], found[stale[-1] + 1 :]
        assert len(stale) == len(SYMBOLS)
        assert sizes(old) == list(range(1, len(old) + 1)) and KEPT < len(old) <= held, "what was read in time, in order"
        assert [update.changes is None for update in new[:2]] == [True, True], "then the partials"
        assert new[0].best_bid.size >= held - 1
        assert sizes(new[2:]) == list(range(new[2].best_bid.size, it.market.number + 1)), "and then what happens"
        assert not any(book.stale for book in it.merger.books.values())
        assert it.connection.stats.reconnects == 0 and it.connection.stats.resyncs == len(SYMBOLS)


async def test_block_that_is_cut_off_meanwhile_connects_again_while_it_sleeps_and_subscribes_when_it_wakes(
    autojump_clock,
):
    async with world(buffer_size=KEPT) as it, two_consumers(it, max_buffer_size=64) as sleeper:
        await it.sleep(5)
        await it.connection._transport.drop()
        memory = await it.sleep(5)
        assert max(memory) - memory[0] < GROWTH, memory
        assert it.connection.stats.connected and it.connection.stats.reconnects == 1
        assert len(it.market.commands) == 1, "a partial that is not read would be an old one"

        found = await take(sleeper, 20)
        stale = [index for index, update in enumerate(found) if update.stale]
        old, new = found[: stale[0]], found[stale[-1] + 1 :]
        assert sizes(old) == list(range(1, len(old) + 1)) and len(old) > KEPT
        assert [update.changes is None for update in new[:2]] == [True, True]
        assert sizes(new[2:]) == list(range(new[2].best_bid.size, it.market.number + 1))
        assert it.connection.stats.reconnects == 1 and it.connection.stats.resyncs == 0
        assert not any(book.stale for book in it.merger.books.values())
