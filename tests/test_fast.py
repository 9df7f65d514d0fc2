"""What is particular to the fast transport; what it has in common with the other one is in test_transport.py.

Servers are real ones on loopback, or, where it matters what is in which read, a stream that hands out given chunks.
"""

import base64
import hashlib
import logging
import random
import struct
import sys
import zlib
from contextlib import asynccontextmanager, suppress
from itertools import pairwise

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Message, Pong, Request, TextMessage
from wsproto.extensions import PerMessageDeflate

from bitmex_streams import Connection
from bitmex_streams.errors import ConnectionFailed
from bitmex_streams.fast import FastTransport
from bitmex_streams.transport import TRANSPORTS, TransportClosed
from tests.servers import ScriptedExchange, open_sockets, receive_head, serve_tcp, serve_websocket, tls


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    """Whatever the environment of the tests says about proxies."""
    for name in ("ws", "wss", "http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)


@asynccontextmanager
async def connected(url="ws://in.memory/realtime", **options):
    transport = FastTransport(url, **options)
    async with trio.open_nursery() as nursery:
        await transport.connect(nursery)
        try:
            yield transport
        finally:
            await transport.aclose()
            nursery.cancel_scope.cancel()


async def failure(url, **options):
    """The ConnectionFailed of connecting; nothing may be left of it."""
    before, failed = open_sockets(), None
    async with trio.open_nursery() as nursery:
        try:
            await FastTransport(url, **options).connect(nursery)
        except ConnectionFailed as exc:
            failed = exc
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert failed is not None, "it connected"
    assert open_sockets() <= before + 1  # the server's end may still be closing
    return failed


async def everything(transport):
    """All messages to the end, and its code."""
    found = []
    while True:
        try:
            found += await transport.receive()
        except TransportClosed as closed:
            return found, closed.code


def frame(payload, opcode=0x81):
    size = len(payload)
    if size < 126:
        return bytes((opcode, size)) + payload
    if size < 1 << 16:
        return bytes((opcode, 126)) + size.to_bytes(2, "big") + payload
    return bytes((opcode, 127)) + size.to_bytes(8, "big") + payload


CLOSE = frame(struct.pack("!H", 1000), 0x88)
DEFLATE = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"


class Speaking(trio.abc.Stream):
    """The client's end of a connection to a server that shakes hands, sends these chunks, one a read, and hangs up:
    at once, or (``waits``) when it gets a close frame, or (``stubborn``) never.
    """

    def __init__(self, *chunks, headers=b"", waits=False, stubborn=False):
        self.chunks = [chunk for chunk in chunks if chunk]
        self.headers = headers
        self.stubborn = stubborn
        self.over = not waits and not stubborn
        self.news = trio.lowlevel.ParkingLot()
        self.answer = b""
        self.head = b""
        self.sent = b""
        self.reads = 0

    async def send_all(self, data):
        await trio.lowlevel.checkpoint()
        if self.head:
            self.sent += data
            if data[:1] == b"\x88" and not self.stubborn:
                self.hang_up()
            return
        self.head = data
        key = data.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0]
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        self.chunks.insert(
            0,
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n" + self.headers + b"\r\n",
        )

    async def receive_some(self, max_bytes=None):
        await trio.lowlevel.checkpoint()
        self.reads += 1
        while not self.chunks:
            if self.over:
                return b""
            await self.news.park()
        chunk = self.chunks.pop(0)
        if len(chunk) > max_bytes:
            self.chunks.insert(0, chunk[max_bytes:])
        return chunk[:max_bytes]

    async def wait_send_all_might_not_block(self):
        await trio.lowlevel.checkpoint()

    async def aclose(self):
        await trio.lowlevel.checkpoint()

    def say(self, chunk):
        self.chunks.append(chunk)
        self.news.unpark_all()

    def hang_up(self):
        self.over = True
        self.news.unpark_all()

    def heard(self):
        """What the server understands of what the client sent after the handshake."""
        server = WSConnection(ConnectionType.SERVER)
        server.receive_data(self.head)
        assert isinstance(next(server.events()), Request)
        server.send(AcceptConnection())
        server.receive_data(self.sent)
        return list(server.events())


# --- what is in a read ---


async def test_all_messages_of_a_read_are_handed_over_at_once_in_order():
    texts = [f"{number} " + "x" * (number % 300) for number in range(300)]
    stream = Speaking(b"".join(frame(text.encode()) for text in texts) + frame(b"half")[:3], frame(b"half")[3:] + CLOSE)
    async with connected(stream=stream) as transport:
        assert await transport.receive() == texts
        assert await transport.receive() == ["half"]
        with pytest.raises(TransportClosed):
            await transport.receive()


async def test_messages_that_come_with_the_answer_to_the_handshake_are_not_lost():
    stream = Speaking(frame(b"one") + frame(b"two")[:2], frame(b"two")[2:] + CLOSE)
    send_all = stream.send_all

    async def answer_in_one_piece(data):
        await send_all(data)
        stream.chunks[:2] = [b"".join(stream.chunks[:2])]
        stream.send_all = send_all

    stream.send_all = answer_in_one_piece
    async with connected(stream=stream) as transport:
        assert await everything(transport) == (["one", "two"], 1000)


class Compressor:
    """Compresses messages as a server does (RFC 7692)."""

    def __init__(self):
        self.compress = zlib.compressobj(wbits=-15)

    def __call__(self, payload):
        return (self.compress.compress(payload) + self.compress.flush(zlib.Z_SYNC_FLUSH))[:-4]


def frames_of(message, how, compress):
    """A message (str or bytes), in one frame or in several with control frames between them, compressed or not."""
    payload = message.encode() if isinstance(message, str) else message
    opcode = 1 if isinstance(message, str) else 2
    kind, cuts = how
    if "compressed" in kind:
        payload, opcode = compress(payload), opcode | 0x40
    if "fragmented" not in kind:
        return frame(payload, 0x80 | opcode)
    edges = [0, *sorted(cut % (len(payload) + 1) for cut in cuts), len(payload)]
    pieces = [payload[begin:end] for begin, end in pairwise(edges)]
    frames = [frame(piece, 0 if place else opcode) for place, piece in enumerate(pieces)]
    last = bytes([frames[-1][0] | 0x80]) + frames[-1][1:]
    return frame(b"between", 0x89).join([*frames[:-1], last])


texts = st.one_of(
    st.text(max_size=140),
    st.builds(lambda text, times: text * times, st.text(min_size=1, max_size=3), st.sampled_from([130, 5000, 40_000])),
)
kinds = st.sampled_from(["plain", "fragmented", "compressed", "compressed fragmented"])
hows = st.tuples(kinds, st.lists(st.integers(0, 1 << 20), min_size=1, max_size=3))
cuts = st.lists(st.integers(0, 1 << 20), max_size=12)


def chopped(data, cuts):
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[begin:end] for begin, end in pairwise(edges)]


@given(st.lists(st.tuples(st.one_of(texts, st.binary(max_size=200)), hows), max_size=8), cuts)
@settings(deadline=None, max_examples=200)
async def test_however_the_bytes_are_chopped_the_messages_are_the_same(messages, cuts):
    compress = Compressor()
    data = b"".join(frames_of(message, how, compress) for message, how in messages) + CLOSE
    async with connected(stream=Speaking(*chopped(data, cuts), headers=DEFLATE)) as transport:
        assert await everything(transport) == ([message for message, _ in messages], 1000)


def judgement_of_websockets(data, limit):
    """What websockets' own parser makes of these bytes: the messages, and the code of the end."""
    from websockets.client import ClientProtocol
    from websockets.protocol import State
    from websockets.uri import parse_uri

    protocol = ClientProtocol(parse_uri("ws://h/"), state=State.OPEN, max_size=limit)
    protocol.receive_data(data)
    protocol.receive_eof()
    messages, fragments, text = [], [], True
    for event in protocol.events_received():
        if event.opcode < 8:
            text = event.opcode == 1 or (text and event.opcode == 0)
            fragments.append(bytes(event.data))
            if event.fin:
                whole, fragments = b"".join(fragments), []
                try:
                    messages.append(whole.decode() if text else whole)
                except UnicodeDecodeError:
                    return messages, 1007
    if protocol.parser_exc is None:
        return messages, int(protocol.close_rcvd.code)
    return messages, int(protocol.close_sent.code) if protocol.close_sent else 1006


pieces_of_traffic = st.one_of(
    st.binary(max_size=12),
    st.builds(frame, st.binary(max_size=320), st.sampled_from([0x81, 0x82, 0x01, 0x00, 0x80, 0x89, 0x8A, 0x88, 0xC1])),
    st.builds(lambda text: frame(text.encode()), st.text(max_size=300)),
)


@given(st.lists(pieces_of_traffic, max_size=6).map(b"".join), cuts, st.sampled_from([300, 1 << 20]))
@settings(deadline=None, max_examples=400)
async def test_whatever_a_server_sends_is_judged_as_websockets_own_parser_does(data, cuts, limit):
    messages, code = judgement_of_websockets(data, limit)
    async with connected(stream=Speaking(*chopped(data, cuts)), max_message_size=limit) as transport:
        found, found_code = await everything(transport)
    # A frame that is wrong and also cut short is here a connection that was cut.
    assert found == messages and found_code in (code, 1006)


@pytest.mark.parametrize("size", [125, 126, 65_535, 65_536, 3_000_000])
async def test_messages_of_every_length_field_arrive_whole(size):
    async with connected(stream=Speaking(frame(b"x" * size) + frame(b"after") + CLOSE)) as transport:
        assert await everything(transport) == (["x" * size, "after"], 1000)


@pytest.mark.parametrize("limit", [125, 200, 70_000])
@pytest.mark.parametrize("kind", ["plain", "fragmented", "compressed", "compressed fragmented"])
async def test_the_size_limit_is_of_the_whole_message_uncompressed(limit, kind):
    def data(size):
        return frames_of("x" * size, (kind, [size // 2, size // 3]), compress)

    compress = Compressor()
    # Of compressed fragments the last ones may be larger than what is in them.
    fits = limit - 100 if kind == "compressed fragmented" else limit
    stream = Speaking(data(fits) + data(limit + 1) + frame(b"after"), headers=DEFLATE)
    async with connected(stream=stream, max_message_size=limit) as transport:
        assert await everything(transport) == (["x" * fits], 1009)
    assert [event.code for event in stream.heard() if isinstance(event, CloseConnection)] == [1009]


@pytest.mark.parametrize("kind", ["plain", "fragmented", "compressed", "compressed fragmented"])
@pytest.mark.parametrize("size", [3, 300])
async def test_text_that_is_no_utf_8_closes_with_1007_after_what_came_before(kind, size):
    compress = Compressor()
    wrong = bytearray(frames_of(b"\xff" * size, (kind, [1]), compress))
    wrong[0] ^= 3  # says that it is text
    stream = Speaking(frame(b"whole") + bytes(wrong) + frame(b"after"), headers=DEFLATE)
    async with connected(stream=stream) as transport:
        assert await everything(transport) == (["whole"], 1007)
    assert [event.code for event in stream.heard() if isinstance(event, CloseConnection)] == [1007]


async def test_what_was_not_compressed_though_it_says_so_closes_with_1002():
    async with connected(stream=Speaking(frame(b"whole") + frame(b"\xff" * 9, 0xC1), headers=DEFLATE)) as transport:
        assert await everything(transport) == (["whole"], 1002)


@pytest.mark.parametrize(
    "wrong",
    [b"\x81\x85masked", frame(b"first of several", 1) + CLOSE, frame(b"first of several", 1) + frame(b"x" * 300)],
    ids=["a masked frame", "a close before the end of a message", "a message before the end of another"],
)
async def test_what_breaks_the_protocol_is_known_at_once_and_told_to_the_server(wrong):
    stream = Speaking(frame(b"whole") + wrong, waits=True)
    async with connected(stream=stream) as transport:
        assert await transport.receive() == ["whole"]
        with trio.fail_after(5), pytest.raises(TransportClosed) as caught:
            await transport.receive()
        assert caught.value.code == 1002 and not caught.value.by_server
    assert [event.code for event in stream.heard()] == [1002]


async def test_a_connection_that_was_reset_says_so():
    async def handle(stream):
        memory = Speaking()
        await memory.send_all(await receive_head(stream))
        await stream.send_all(memory.chunks[0] + frame(b"whole"))
        await stream.receive_some()
        stream.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", 1, 0))

    async with serve_tcp(handle) as port, connected(f"ws://127.0.0.1:{port}/") as transport:
        assert await transport.receive() == ["whole"]
        await transport.send("enough")
        with pytest.raises(TransportClosed) as caught:
            await transport.receive()
    assert caught.value.code == 1006 and not caught.value.by_server
    assert "reset" in caught.value.reason


# --- reading and writing at once ---


async def test_a_ping_is_answered_while_nothing_else_happens():
    answered = trio.Event()

    async def handle(request):
        ws = await request.accept()
        with trio.fail_after(5):
            await ws.ping(b"anybody there?")
        answered.set()
        await ws.get_message()

    async with serve_websocket(handle) as url, connected(url) as transport, trio.open_nursery() as nursery:
        nursery.start_soon(suppressed, transport.receive)
        await answered.wait()
        nursery.cancel_scope.cancel()


async def suppressed(function):
    with suppress(TransportClosed):
        await function()


async def test_pings_do_not_stop_the_reading_and_the_last_is_answered_when_writing_is_possible_again():
    class Stuck(Speaking):
        free = None

        async def send_all(self, data):
            if self.head and self.free is not None:
                await self.free.wait()
            await super().send_all(data)

    pings = [frame(b"%d" % number, 0x89) + frame(b"message %d" % number) for number in range(1000)]
    stream = Stuck(*pings, waits=True)
    async with connected(stream=stream) as transport:
        stream.free = trio.Event()
        for number in range(1000):
            assert await transport.receive() == [f"message {number}"]
        stream.free.set()
        await trio.testing.wait_all_tasks_blocked()
        pongs = [bytes(event.payload) for event in stream.heard() if isinstance(event, Pong)]
        assert len(pongs) < 4 and pongs[-1] == b"999"


async def test_what_is_sent_is_not_mixed_up_with_the_answers_to_pings():
    class Halting(Speaking):
        async def send_all(self, data):
            if not self.head:
                return await super().send_all(data)
            if data[:1] == b"\x88":
                self.hang_up()
            for byte in data:
                await trio.lowlevel.checkpoint()
                self.sent += bytes([byte])

    stream = Halting(*(frame(b"ping %d" % number, 0x89) for number in range(50)), waits=True)
    async with connected(stream=stream) as transport, trio.open_nursery() as nursery:
        nursery.start_soon(suppressed, transport.receive)
        for number in range(50):
            await transport.send(f"message {number}")
        nursery.cancel_scope.cancel()
        events = stream.heard()
        assert [event.data for event in events if isinstance(event, Message)] == [f"message {n}" for n in range(50)]
        assert {type(event) for event in events} == {TextMessage, Pong}


async def test_after_a_send_that_was_cut_short_nothing_is_written_and_closing_takes_no_time(autojump_clock):
    class Cut(Speaking):
        async def send_all(self, data):
            if not self.head:
                return await super().send_all(data)
            self.sent += data[: len(data) // 2]
            await trio.sleep_forever()

    stream = Cut(waits=True)
    async with connected(stream=stream) as transport:
        with trio.move_on_after(1):
            await transport.send("x" * 1000)
        half = stream.sent
        with pytest.raises(TransportClosed):
            await transport.send("y")
        began = trio.current_time()
        await transport.aclose()
        assert trio.current_time() == began and stream.sent == half


async def cancel(nursery):
    nursery.cancel_scope.cancel()


async def test_a_ping_that_is_cancelled_before_it_was_written_does_no_harm():
    stream = Speaking(waits=True)
    async with connected(stream=stream) as transport:
        for _ in range(50):
            async with trio.open_nursery() as nursery:  # in the one or the other order
                nursery.start_soon(transport.ping)
                nursery.start_soon(cancel, nursery)
        await transport.send("all is well")
        assert [event.data for event in stream.heard() if isinstance(event, Message)] == ["all is well"]


async def test_receiving_that_is_cancelled_again_and_again_loses_nothing():
    async def handle(request):
        ws = await request.accept()
        for number in range(500):
            await ws.send_message(f"{number} " + "x" * (number * 7))
            if number % 10 == 0:
                await trio.sleep(0.001)
        await ws.aclose()

    found, cancelled, generator = [], 0, random.Random(3)
    async with serve_websocket(handle) as url, connected(url) as transport:
        with trio.fail_after(20), suppress(TransportClosed):
            while True:
                with trio.move_on_after(generator.random() * 0.0005) as scope:
                    found += await transport.receive()
                cancelled += scope.cancelled_caught
    assert [int(text.partition(" ")[0]) for text in found] == list(range(500))
    assert cancelled > 10


async def test_pings_and_receiving_at_once_get_each_their_own():
    async def handle(request):
        ws = await request.accept()
        for number in range(300):
            await ws.send_message(str(number))
            await trio.sleep(0.0003)
        await ws.get_message()

    found = []
    async with serve_websocket(handle) as url, connected(url) as transport, trio.open_nursery() as nursery:

        async def ping():
            while True:
                await transport.ping()
                await trio.sleep(0.0004)

        for _ in range(3):
            nursery.start_soon(ping)
        with trio.fail_after(20):
            while len(found) < 300:
                found += await transport.receive()
            nursery.cancel_scope.cancel()
    assert found == [str(number) for number in range(300)]


# --- closing ---


async def test_the_close_frame_of_the_server_is_answered():
    stream = Speaking(frame(b"last") + frame(struct.pack("!H", 1011) + b"enough", 0x88))
    async with connected(stream=stream) as transport:
        assert await transport.receive() == ["last"]
        with pytest.raises(TransportClosed) as caught:
            await transport.receive()
    assert (caught.value.code, caught.value.reason, caught.value.by_server) == (1011, "enough", True)
    assert [event.code for event in stream.heard()] == [1011]


async def test_closing_takes_two_seconds_at_most(autojump_clock):
    async with connected(stream=Speaking(stubborn=True)) as transport:
        began = trio.current_time()
        await transport.aclose(1001, "that is all")
        assert trio.current_time() - began == pytest.approx(2)
        with pytest.raises(TransportClosed) as caught:
            await transport.receive()
        assert caught.value.code == 1001 and not caught.value.by_server


async def test_closing_ends_who_waits_for_messages_and_pongs():
    async def handle(request):
        ws = await request.accept()
        await ws.get_message()

    ended = []
    async with serve_websocket(handle) as url, connected(url) as transport, trio.open_nursery() as nursery:

        async def wait(function):
            with pytest.raises(TransportClosed):
                while True:
                    await function()
            ended.append(function)

        nursery.start_soon(wait, transport.receive)
        nursery.start_soon(wait, transport.ping)
        await trio.sleep(0.05)
        with trio.fail_after(5):
            await transport.aclose()
    assert len(ended) == 2


@pytest.mark.parametrize("code, reason", [(1005, None), (1000, "x" * 200), (1000, "\ud800")])
async def test_a_close_that_cannot_be_sent_is_no_error(code, reason):
    async with serve_websocket(lambda request: request.accept()) as url, connected(url) as transport:
        with trio.fail_after(1):
            await transport.aclose(code, reason)


# --- compression ---


@asynccontextmanager
async def compressing_server(*messages):
    """A server of another library, which takes permessage-deflate, sends these messages and then sends back."""
    seen = []

    async def handle(stream):
        server = WSConnection(ConnectionType.SERVER)
        while True:
            data = await stream.receive_some()
            server.receive_data(data or None)
            for event in server.events():
                if isinstance(event, Request):
                    seen.append(event)
                    await stream.send_all(server.send(AcceptConnection(extensions=[PerMessageDeflate()])))
                    for message in messages:
                        await stream.send_all(server.send(Message(data=message)))
                elif isinstance(event, CloseConnection):
                    await stream.send_all(server.send(event.response()))
                    return
                elif isinstance(event, TextMessage | BytesMessage):
                    await stream.send_all(server.send(Message(data=event.data)))
            if not data:
                return

    async with serve_tcp(handle) as port:
        yield f"ws://127.0.0.1:{port}/realtime", seen


async def test_compressed_messages_go_both_ways():
    messages = ["", "x" * 100, "ä" * 1000, bytes(range(256)) * 300, "last"]
    async with compressing_server(*messages) as (url, seen), connected(url) as transport:
        found = []
        while len(found) < len(messages):
            found += await transport.receive()
        assert found == messages
        for text in ("back", "back again " * 500):
            await transport.send(text)
            assert await transport.receive() == [text]
        assert seen[0].extensions


async def test_compression_is_not_offered_when_it_is_not_wanted():
    async with compressing_server("plain") as (url, seen), connected(url, compression=False) as transport:
        assert await transport.receive() == ["plain"]
        assert not seen[0].extensions


# --- TLS ---


async def test_the_messages_of_many_tls_records_are_handed_over_at_once(authority):
    async def handle(request):
        ws = await request.accept()
        for number in range(200):
            await ws.send_message(str(number))
        await ws.send_message("")  # the last one is here, so the others are
        await ws.get_message()

    server, client = tls(authority, "127.0.0.1")
    async with serve_websocket(handle, ssl_context=server) as url, connected(url, ssl_context=client) as transport:
        await trio.sleep(0.2)
        found, batches = [], 0
        while len(found) < 201:
            found += await transport.receive()
            batches += 1
        assert found == [*map(str, range(200)), ""]
        assert batches < 20


async def test_tls_that_is_cut_without_a_farewell_is_an_end_after_what_was_whole(authority):
    async def handle(stream):
        wrapped = trio.SSLStream(stream, server, server_side=True)
        memory = Speaking()
        await memory.send_all(await receive_head(wrapped))
        for data in (memory.chunks[0], *(frame(b"%d" % number) for number in range(50))):
            await wrapped.send_all(data)

    server, client = tls(authority, "127.0.0.1")
    async with serve_tcp(handle) as port:
        async with connected(f"wss://127.0.0.1:{port}/", ssl_context=client) as transport:
            assert await everything(transport) == ([*map(str, range(50))], 1006)


# --- proxies ---


class Proxy:
    """A proxy that connects to the port that is asked for, on loopback, whatever the name: so the name is the proxy's
    to resolve. ``answer``: what it says instead. ``heads``: what it was asked.
    """

    def __init__(self, answer=None, then_hang=False):
        self.answer = answer
        self.then_hang = then_hang
        self.heads = []

    async def __call__(self, stream):
        self.heads.append(await receive_head(stream))
        if not self.heads[-1]:  # a client that wants no more
            return
        if self.answer is not None:
            await stream.send_all(self.answer)
            if self.then_hang:
                await trio.sleep_forever()
            return
        port = int(self.heads[-1].split()[1].rpartition(b":")[2])
        async with await trio.open_tcp_stream("127.0.0.1", port) as goal, trio.open_nursery() as nursery:
            await stream.send_all(b"HTTP/1.1 200 Connection established\r\nVia: tests\r\n\r\n")

            async def pass_on(source, sink):
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    async for data in source:
                        await sink.send_all(data)
                nursery.cancel_scope.cancel()

            nursery.start_soon(pass_on, stream, goal)
            nursery.start_soon(pass_on, goal, stream)

    @asynccontextmanager
    async def open(self, ssl_context=None):
        async def handle(stream):
            if ssl_context is not None:
                stream = trio.SSLStream(stream, ssl_context, server_side=True, https_compatible=True)
            await self(stream)

        async with serve_tcp(handle) as port:
            yield port


async def greet(request):
    ws = await request.accept()
    await ws.send_message("hello")
    with suppress(trio.BrokenResourceError):
        await ws.get_message()


def elsewhere(url):
    """A name in place of the address, which no resolver knows."""
    return url.replace("127.0.0.1", "exchange.invalid")


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ws_proxy", "all_proxy", "ALL_PROXY"])
async def test_a_proxy_of_the_environment_is_gone_through(variable, monkeypatch):
    proxy = Proxy()
    async with serve_websocket(greet) as url, proxy.open() as port:
        monkeypatch.setenv(variable, f"http://127.0.0.1:{port}")
        async with connected(elsewhere(url)) as transport:
            assert await transport.receive() == ["hello"]
        goal = elsewhere(url).split("/")[2].encode()
    assert proxy.heads == [b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (goal, goal)]


@pytest.mark.parametrize("variable", ["https_proxy", "wss_proxy", "all_proxy"])
async def test_tls_goes_through_a_proxy_with_the_certificate_of_the_exchange(variable, monkeypatch, authority):
    server, client = tls(authority, "exchange.invalid")
    async with serve_websocket(greet, ssl_context=server) as url, Proxy().open() as port:
        monkeypatch.setenv(variable, f"127.0.0.1:{port}")  # without a scheme, too
        async with connected(elsewhere(url), ssl_context=client) as transport:
            assert await transport.receive() == ["hello"]
        assert "the server's certificate does not verify" in str(await failure(elsewhere(url)))


async def test_a_proxy_can_speak_tls_itself(monkeypatch, authority, tmp_path):
    (tmp_path / "authority.pem").write_bytes(authority.cert_pem.bytes())
    for_proxy, _ = tls(authority, "127.0.0.1")
    server, client = tls(authority, "exchange.invalid")
    async with serve_websocket(greet, ssl_context=server) as url, Proxy().open(for_proxy) as port:
        monkeypatch.setenv("https_proxy", f"https://127.0.0.1:{port}")
        failed = await failure(elsewhere(url), ssl_context=client)
        assert "the proxy's certificate does not verify" in str(failed)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
        async with connected(elsewhere(url), ssl_context=client) as transport:
            assert await transport.receive() == ["hello"]


async def test_user_name_and_password_of_a_proxy_are_sent_to_it(monkeypatch):
    proxy = Proxy()
    async with serve_websocket(greet) as url, proxy.open() as port:
        monkeypatch.setenv("http_proxy", f"http://user:p%40ss%23%C3%A4@127.0.0.1:{port}/")
        async with connected(elsewhere(url)) as transport:
            await transport.receive()
    login = proxy.heads[0].partition(b"Proxy-Authorization: Basic ")[2].partition(b"\r\n")[0]
    assert base64.b64decode(login).decode() == "user:p@ss#ä"


@pytest.mark.parametrize("url", ["ws://127.0.0.1:{}/", "ws://localhost:{}/"])
async def test_loopback_is_never_gone_to_through_a_proxy(url, monkeypatch):
    async with serve_websocket(greet) as here:
        monkeypatch.setenv("all_proxy", "http://127.0.0.1:9")
        async with connected(url.format(here.split(":")[2].split("/")[0])) as transport:
            assert await transport.receive() == ["hello"]


@pytest.mark.parametrize("no_proxy", ["exchange.invalid", ".invalid", "*", "other.host, exchange.invalid:9"])
async def test_what_no_proxy_names_is_gone_to_without(no_proxy, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", no_proxy)
    assert "the name 'exchange.invalid' cannot be resolved" in str(await failure("ws://exchange.invalid:9/"))


@pytest.mark.parametrize(
    "answer, status, words",
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\nwho are you?", 407, "407: who are you?; its user name"),
        (b"HTTP/1.0 403 Forbidden\r\n\r\n", 403, "the proxy refused it with HTTP status 403"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", 502, "502"),
        (b"SSH-2.0-OpenSSH\r\n", None, "the proxy answered b'SSH-2.0-OpenSSH"),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", None, "the proxy answered b'HTTP/1.1 200 OK"),
        (b"", None, "the proxy hung up"),
    ],
)
async def test_a_proxy_that_refuses_is_a_failure_that_says_so_and_shows_no_password(
    answer, status, words, monkeypatch
):
    async with Proxy(answer).open() as port:
        monkeypatch.setenv("http_proxy", f"http://user:hunter2@127.0.0.1:{port}")
        with trio.fail_after(3):
            failed = await failure("ws://exchange.invalid/realtime")
    assert failed.status == status and words in str(failed)
    assert f"no connection to ws://exchange.invalid/realtime through the proxy http://127.0.0.1:{port}: " in str(failed)
    assert "hunter2" not in str(failed)


async def test_a_server_that_refuses_behind_a_proxy_is_told_from_the_proxy(monkeypatch):
    async def refuse(request):
        await request.reject(401, body=b"Invalid API Key.")

    async with serve_websocket(refuse) as url, Proxy().open() as port:
        monkeypatch.setenv("http_proxy", f"http://user:hunter2@127.0.0.1:{port}")
        failed = await failure(elsewhere(url))
    assert failed.status == 401 and "Invalid API Key." in str(failed) and "the proxy refused" not in str(failed)


async def test_a_proxy_that_is_not_there_or_never_answers_is_named(monkeypatch):
    async with Proxy(b"", then_hang=True).open() as port:
        monkeypatch.setenv("http_proxy", f"http://user:hunter2@127.0.0.1:{port}")
        failed = await failure("ws://exchange.invalid/", connect_timeout=0.2)
        assert f"through the proxy http://127.0.0.1:{port}: no sign of a connection" in str(failed)
        assert "within 0.2 s" in str(failed) and "hunter2" not in str(failed)
    failed = await failure("ws://exchange.invalid/")
    assert f"through the proxy http://127.0.0.1:{port}: nothing listens" in str(failed) and "hunter2" not in str(failed)


@pytest.mark.parametrize(
    "proxy", ["socks5://user:hunter2@127.0.0.1:1080", "socks5h://hunter2:hunter2@127.0.0.1:1080", "ftp://127.0.0.1"]
)
async def test_other_proxies_are_refused_in_clear_words(proxy, monkeypatch):
    monkeypatch.setenv("all_proxy", proxy)
    failed = await failure("wss://exchange.invalid/")
    assert "only HTTP proxies" in str(failed) and "all_proxy" in str(failed) and "hunter2" not in str(failed)


@pytest.mark.parametrize(
    "proxy",
    [
        "http://user:hunter2",
        "http://user:hunter2#x@127.0.0.1:80",
        "http://user:12/hunter2@127.0.0.1:80",
        "http://user:12?hunter2@127.0.0.1:80",
        "http://user:hunter2@127.0.0.1:port",
        "http://user:hunter2@[::1",
        "http://user:hunter2@:80",
    ],
)
async def test_a_proxy_url_that_cannot_be_understood_is_not_shown(proxy, monkeypatch):
    monkeypatch.setenv("https_proxy", proxy)
    failed = await failure("wss://exchange.invalid/")
    assert "what https_proxy says is no URL of a proxy" in str(failed)
    context = failed
    while context is not None:
        assert "hunter2" not in str(context) and "12" not in str(context)
        context = context.__context__ or context.__cause__


async def test_cancelled_while_a_proxy_thinks_it_leaves_nothing(monkeypatch):
    async with Proxy(b"", then_hang=True).open() as port:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        before = open_sockets()
        with trio.move_on_after(0.05) as scope:
            async with connected("ws://exchange.invalid/"):
                pass
        assert scope.cancelled_caught
        await trio.testing.wait_all_tasks_blocked()
        assert open_sockets() <= before + 1


# --- in a Connection ---


async def test_without_its_extra_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "websockets", None)
    monkeypatch.setitem(sys.modules, "websockets.client", None)
    monkeypatch.delitem(sys.modules, "bitmex_streams.fast")
    with pytest.raises(ImportError, match=r"pip install 'bitmex_streams\[fast\]'"):
        TRANSPORTS["fast"]("ws://h/")
    with pytest.raises(ImportError, match=r"pip install 'bitmex_streams\[fast\]'"):
        Connection("ws://127.0.0.1:9/", transport="fast")


async def test_nothing_of_headers_and_messages_is_logged(caplog):
    caplog.set_level(logging.DEBUG)
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        async with connected(url, extra_headers=[(b"api-signature", b"hunter2")]) as transport:
            await transport.receive()
            await transport.send('{"op": "authKeyExpires", "args": ["key", 1, "hunter2"]}')
        assert exchange.headers[0][b"api-signature"] == b"hunter2"
    ours = [record for record in caplog.records if "trio_websocket" not in record.name and "wsproto" not in record.name]
    assert not [record for record in ours if "hunter2" in record.getMessage()]
