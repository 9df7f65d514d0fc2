"""Connection: a consumer holds up the reading, and meanwhile the connection is lost.

Over real sockets, for the operating system has a part in it; where only time matters, on a test clock.
"""

import socket
import struct
from contextlib import asynccontextmanager, suppress
from itertools import pairwise

import pytest
import trio
import trio.testing
import trio_websocket

from bitmex_streams import (
    Connected,
    Connection,
    Decoder,
    Disconnected,
    OrderBookMerger,
    Pipeline,
    RawMessage,
    Reconnect,
    StateLost,
    TableApplier,
)
from bitmex_streams.transport import READ_AHEAD, TRANSPORTS, WebsocketTransport
from tests.servers import ScriptedExchange, deafen, in_memory, open_sockets, partial_of, serve_tcp, shake_hands

TOPIC = "orderBookL2:XBTUSD"
QUICKLY = Reconnect(initial=0.01, factor=1)
ROOM = 20  # messages that are read ahead
SIGNED_IN = {"api_key": "aKeyOfAnAccount-1234567", "api_secret": "aSecretOfAnAccount-1234567"}
both_transports = pytest.mark.parametrize("transport", ["default", "fast"])


async def eventually(condition):
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110 - what happens at the server's end has no event here
            await trio.sleep(0.01)


def level(size):
    return {"symbol": "XBTUSD", "id": 5, "side": "Buy", "size": size}


class Held:
    """A pipeline whose last tap takes one item and no more, so that the connection has no room left to read into."""

    def __init__(self, exchange, connection, books, tables, pipeline, tap):
        self.exchange, self.connection, self.pipeline, self.tap = exchange, connection, pipeline, tap
        self.books, self.tables = books, tables
        self.pings = []

    async def fill(self):
        """Send messages until reading has stopped, and count the pings from then on."""
        size = 0
        while self.connection._session.link._held_up_since == float("inf"):
            size += 1
            await self.exchange.send({"table": "orderBookL2", "action": "update", "data": [level(size)]})
            await trio.sleep(0.001)
        transport = self.connection._session.link.transport
        ping = transport.ping

        async def count():
            await ping()
            self.pings.append(trio.current_time())

        transport.ping = count

    @property
    def stale(self):
        return self.books.books["XBTUSD"].stale and bool(self.tables.stale)

    async def read(self):
        """What the tap gives up to the first fresh book behind a stale one."""
        updates = []
        with trio.fail_after(60):
            while not updates or updates[-1].stale or not any(update.stale for update in updates):
                updates.append(await self.tap.receive())
        return updates


@asynccontextmanager
async def held(url, exchange, transport="default", feed=None, **options):
    exchange.partials[TOPIC] = partial_of(TOPIC, [{**level(0), "size": 1_000_000, "price": 5}])
    connection = options.get("connection") or Connection(
        url, transport=transport, subscribe=[TOPIC], heartbeat=0.5, max_lag=1000, buffer_size=ROOM, reconnect=QUICKLY
    )
    tables, books = TableApplier(), OrderBookMerger()
    sections = [connection, Decoder(), tables, books]
    async with Pipeline.create(*([feed, *sections] if feed is not None else sections)) as pipeline:
        async with pipeline.tap(max_buffer_size=1) as tap:
            await books.ready("XBTUSD")
            it = Held(exchange, connection, books, tables, pipeline, tap)
            await it.fill()
            yield it


async def cut(stream, how):
    if how == "reset":
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await stream.aclose()


@both_transports
@pytest.mark.parametrize("how", ["reset", "closed"])
async def test_a_connection_that_is_cut_while_nobody_reads_is_noticed_at_once_and_what_was_read_is_delivered(
    transport, how
):
    exchange = ScriptedExchange()
    async with exchange.open() as url, held(url, exchange, transport) as it:
        await cut(exchange.clients[0]._stream, how)
        await eventually(lambda: it.stale)
        await eventually(lambda: it.connection.stats.connections == 2)
        read = it.connection.stats.messages - 3  # beside the welcome, the acknowledgement and the partial
        assert read >= ROOM - 3 and exchange.commands == [("subscribe", [TOPIC])]

        updates = await it.read()
        assert [update.best_bid.size for update in updates[:-2]] == [1_000_000, *range(1, read + 1)], "all, in order"
        assert [update.stale for update in updates[-2:]] == [True, False], "in stream order, behind it"
        assert not it.stale and exchange.commands == [("subscribe", [TOPIC])] * 2
        assert it.connection.stats.reconnects == 1


@both_transports
async def test_a_server_whose_host_is_gone_is_noticed_while_nobody_reads(transport):
    exchange = ScriptedExchange()
    async with exchange.open() as url, held(url, exchange, transport) as it:
        deafen(exchange.clients[0]._stream.socket)  # nothing is acknowledged any more, as when a cable is pulled
        await eventually(lambda: it.stale)
        await eventually(lambda: it.connection.stats.connections == 2)
        assert (await it.read())[-2].stale
        assert not it.stale


async def nothing(*args):
    await trio.sleep_forever()


@both_transports
async def test_a_server_that_takes_nothing_any_more_is_noticed_while_nobody_reads(transport):
    """So much was sent that the buffers of both ends are full: then a ping cannot even be written."""
    exchange, heard, sockets = ScriptedExchange(), [], open_sockets()
    send, feed = trio.open_memory_channel(100)
    async with exchange.open() as url, held(url, exchange, transport, feed) as it:
        it.connection.watch(lambda source, reason: heard.append(reason))
        exchange.clients[0]._stream.receive_some = nothing
        for _ in range(20):
            await send.send({"op": "x", "args": "x" * 1_000_000})
        await eventually(lambda: it.stale)
        assert "heartbeat lost: a ping could not be written for 0.5 s" in heard[-1]
        await eventually(lambda: it.connection.stats.connections == 2)
    await eventually(lambda: open_sockets() == sockets)


@both_transports
async def test_a_server_that_only_says_that_it_ends_is_noticed_when_reading_goes_on(transport):
    """Its end of the stream stands behind what nobody reads, and its host goes on to take the pings."""
    exchange = ScriptedExchange()
    async with exchange.open() as url, held(url, exchange, transport) as it:
        for number in range(READ_AHEAD * 3):
            await exchange.send({"number": number})
        exchange.clients[0]._send = nothing  # no pong either
        await exchange.clients[0]._stream.send_eof()
        await eventually(lambda: len(it.pings) > 5)
        assert it.connection.connected and not it.stale
        updates = await it.read()
        assert [update.stale for update in updates[-2:]] == [True, False]
        assert it.connection.stats.reconnects == 1


@both_transports
async def test_what_was_read_before_a_loss_that_a_ping_finds_comes_before_it(transport):
    """However far the transport reads ahead of a reading that is held up: nothing of that is lost."""
    exchange = ScriptedExchange()
    async with exchange.open() as url, held(url, exchange, transport) as it:
        for size in range(1001, 1021):
            await exchange.send({"table": "orderBookL2", "action": "update", "data": [level(size)]})
        await trio.sleep(0.2)
        exchange.clients[0]._send = nothing
        await exchange.clients[0]._stream.send_eof()
        await trio.sleep(0.5)
        seen = [update.best_bid.size for update in await it.read() if not update.stale]
        assert [size for size in seen if 1000 < size < 1_000_000] == list(range(1001, 1021))


@both_transports
async def test_what_a_slow_reader_has_still_to_read_of_a_connection_that_was_closed_is_read(transport):
    """A write that fails is not the end, while reading goes on: the reader has more, and the server's last word."""
    exchange, codes = ScriptedExchange(), []
    async with trio.open_nursery() as nursery:

        async def handle(stream):
            request = await trio_websocket.wrap_server_stream(nursery, stream)
            ws = await request.accept()
            exchange.clients.append(ws)
            for number in range(2000):
                await ws.send_message(f'{{"number":{number}}}')
            with suppress(trio_websocket.ConnectionClosed), trio.move_on_after(0.2):
                await ws.aclose(1012, "restart")

        async with serve_tcp(handle) as port:
            connection = Connection(f"ws://127.0.0.1:{port}/realtime", transport=transport, buffer_size=50)
            numbers = []
            async with Pipeline.create(connection) as pipeline, pipeline.tap() as tap:
                async for item in tap:
                    if type(item) is RawMessage:
                        numbers.append(item.data)
                        if len(numbers) % 100 == 0:
                            connection.unsubscribe_soon("trade")
                            await trio.sleep(0.002)
                    elif type(item) is Disconnected:
                        codes.append(item.code)
                        break
            assert numbers == [f'{{"number":{number}}}' for number in range(2000)] and codes == [1012]
        nursery.cancel_scope.cancel()


async def test_what_tcp_gives_up_by_is_the_heartbeat():
    made, exchange = [], ScriptedExchange()

    def make(url, **options):
        made.append(options["user_timeout"])
        return WebsocketTransport(url, **options)

    async with exchange.open() as url:
        connection = Connection(url, transport=make, heartbeat=7)
        async with Pipeline.create(connection) as pipeline:
            pipeline.start()
            await connection.wait_connected()
    assert made == [7]


# --- on a test clock


@asynccontextmanager
async def held_in_memory(exchange, **options):
    async with in_memory(
        exchange, subscribe=[TOPIC], buffer_size=ROOM, max_lag=1000, reconnect=Reconnect(jitter=0), **options
    ) as connection:
        async with held("", exchange, connection=connection) as it:
            yield it


async def test_it_takes_no_longer_than_a_heartbeat(autojump_clock):
    exchange = ScriptedExchange()
    async with held_in_memory(exchange) as it:
        await trio.sleep(100)
        await it.connection._transport.drop()
        began = trio.current_time()
        await eventually(lambda: it.stale and not it.connection.connected)
        assert trio.current_time() - began <= 5


async def test_a_command_that_cannot_be_sent_tells_it_at_once(autojump_clock):
    exchange = ScriptedExchange()
    async with held_in_memory(exchange, heartbeat=1e6) as it:
        await trio.sleep(1)
        await it.connection._transport.drop()
        await trio.sleep(500)
        assert it.connection.connected and not it.stale, "nobody has looked"
        it.connection.unsubscribe_soon(TOPIC)
        began = trio.current_time()
        await eventually(lambda: it.stale and not it.connection.connected)
        assert trio.current_time() - began < 0.1


async def test_the_dead_mans_switch_is_armed_again_while_nobody_reads(autojump_clock):
    exchange = ScriptedExchange()
    async with held_in_memory(exchange, dead_mans_switch=True, **SIGNED_IN) as it:
        await trio.sleep(20)
        await it.connection._transport.drop()
        await trio.sleep(600)
        times = [at for at, _ in exchange.switched]
        assert len(times) > 40 and max(b - a for a, b in pairwise(times)) <= 15 + 5 + 1
        assert it.connection.stats.connections == 2 and it.connection.connected


async def test_a_connection_that_stands_meanwhile_asks_for_nothing_until_there_is_room(autojump_clock):
    exchange = ScriptedExchange()
    async with held_in_memory(exchange) as it:
        await it.connection._transport.drop()
        await trio.sleep(300)
        assert it.connection.connected and len(exchange.commands) == 1, "its partials would be old when they are read"
        updates = await it.read()
        assert updates[-1].changes is None and len(exchange.commands) == 2
        assert it.connection.stats.resyncs == 0


async def test_one_that_is_cut_off_again_and_again_while_nobody_reads_fills_no_memory(autojump_clock):
    exchange = ScriptedExchange()
    async with held_in_memory(exchange, heartbeat=1.0) as it:
        for _ in range(300):
            with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
                await it.connection._transport.drop()
            await trio.sleep(10)
        assert it.connection.stats.waiting <= ROOM + 64 + 2 and it.connection.stats.connections > 10
        marks = []

        async def note(tap):
            async for item in tap:
                if type(item) in (Connected, Disconnected, StateLost):
                    marks.append(type(item))

        it.pipeline.nursery.start_soon(note, it.pipeline.tap(it.connection, overflow="latest"))
        connections = it.connection.stats.connections
        await it.read()
        await eventually(lambda: it.connection.connected and not it.stale)
        assert it.connection.stats.connections >= connections, "it goes on when there is room"


@both_transports
async def test_a_slow_reader_of_a_replay_that_has_played_all_it_had_gets_all_of_it(transport, autojump_clock):
    """Nobody pings it meanwhile: its host would refuse that, and what waits in the socket would be lost."""
    closed = trio.Event()

    async def replay(stream):
        await shake_hands(stream)
        for number in range(1000):
            text = b'{"table":"trade","action":"insert","data":[{"number":%d}]}' % number
            await stream.send_all(bytes([0x81, len(text)]) + text)
        await stream.send_all(b"\x88\x02\x03\xe8")
        closed.set()
        said.append(await stream.receive_some())
        await stream.aclose()

    said = []
    async with trio.open_nursery() as nursery:

        def make(url, **options):
            ours, theirs = trio.testing.memory_stream_pair()
            nursery.start_soon(replay, theirs)
            return TRANSPORTS[transport](url, stream=ours, **options)

        connection = Connection("ws://in.memory/realtime", transport=make, max_lag=10_000, buffer_size=ROOM)
        async with Pipeline.create(connection) as pipeline, pipeline.tap() as tap:
            items = [await tap.receive()]
            await closed.wait()
            await trio.sleep(600)
            assert connection.connected
            async for item in tap:
                items.append(item)
    messages = [item.data for item in items if type(item) is RawMessage]
    assert len(messages) == 1000 and '"number":999' in messages[-1]
    assert [item.code for item in items if type(item) is Disconnected] == [1000]
    assert [words[:1] for words in said] == [b"\x88"], "the answer to its close frame, and no ping"
