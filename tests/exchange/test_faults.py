"""Faults on purpose: what a client sees of each, byte by byte, on real sockets."""

# ruff: noqa: ASYNC110 - what is waited for is in a server, and has no event to wait on

import json
import ssl
import struct
import time
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

import pytest
import trio
import trio.testing
from trio_websocket import ConnectionClosed
from wsproto.utilities import LocalProtocolError

from bitmex_streams import Connection, Decoder, OrderBookMerger, Pipeline
from bitmex_streams.errors import ConnectionFailed
from bitmex_streams.exchange import open_exchange
from bitmex_streams.exchange.tables import topic_name
from tests.exchange.clients import handshake, open_client, paused
from tests.servers import open_sockets, receive_head, tls

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA


class EndOfBytes(Exception):
    """The stream has ended (FIN); holds what was there of the next frame."""


class Wire:
    """A websocket client that knows frames only."""

    def __init__(self, stream):
        self.stream = stream
        self.data = b""

    async def read(self, number):
        with trio.fail_after(20):
            while len(self.data) < number:
                data = await self.stream.receive_some()
                if not data:
                    raise EndOfBytes(self.data)
                self.data += data
        found, self.data = self.data[:number], self.data[number:]
        return found

    async def frame(self):
        """(opcode, payload) of the next one."""
        head = await self.read(2)
        assert head[0] & 0x80 and not head[1] & 0x80, "final and unmasked"
        try:
            size = head[1]
            if size >= 126:
                extended = await self.read(2 if size == 126 else 8)
                head += extended
                size = int.from_bytes(extended, "big")
            return head[0] & 0xF, await self.read(size)
        except EndOfBytes as end:
            raise EndOfBytes(head + end.args[0]) from None

    async def text(self):
        opcode, payload = await self.frame()
        assert opcode == TEXT
        return payload.decode()

    async def table(self):
        """The next message of a table."""
        while "table" not in (message := json.loads(await self.text())):
            pass
        return message

    async def send(self, opcode, payload=b""):
        assert len(payload) < 126
        await self.stream.send_all(bytes([0x80 | opcode, 0x80 | len(payload)]) + bytes(4) + payload)

    async def until_pong(self):
        """The texts that were sent so far: the answer to a ping as text comes behind them."""
        await self.send(TEXT, b"ping")
        found = []
        while (text := await self.text()) != "pong":
            found.append(text)
        return found

    async def silent(self, seconds=0.2):
        """Whether nothing comes, not even the end."""
        with trio.move_on_after(seconds):
            self.data += await self.stream.receive_some()
            return False
        return not self.data

    async def ended(self):
        with trio.fail_after(20):
            return not self.data and await self.stream.receive_some() == b""


@asynccontextmanager
async def open_wire(exchange, *topics):
    """A client that is subscribed to topics, and has their partials behind it."""
    stream = await handshake(exchange, "/realtime" + (f"?subscribe={','.join(topics)}" if topics else ""))
    try:
        wire = Wire(stream)
        with trio.fail_after(10):
            while b"\r\n\r\n" not in wire.data:
                wire.data += await stream.receive_some()
        head, _, wire.data = wire.data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert "Welcome" in await wire.text()
        for _ in range(2 * len(topics)):
            await wire.text()
        yield wire
    finally:
        await trio.aclose_forcefully(stream)


async def open_tcp(exchange):
    parts = urlsplit(exchange.url)
    return await trio.open_tcp_stream(parts.hostname, parts.port)


async def until(condition):
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.01)


def quiet(**options):
    """An exchange in which nothing happens by itself."""
    return paused(rate=0, **options)


def trade(exchange, size=100, symbol="XBTUSD"):
    exchange.markets[symbol].submit("Buy", size)


def last_trade(exchange):
    return exchange.tables.rows("trade", "XBTUSD")[-1]["trdMatchID"]


def sizes(texts):
    """What was traded, by message."""
    return [sum(row["size"] for row in json.loads(text)["data"]) for text in texts]


# --- the connection breaks


async def test_drop_resets_the_connection_without_a_close_frame():
    async with quiet() as exchange, open_wire(exchange) as wire:
        assert exchange.faults.drop() == 1
        with pytest.raises(trio.BrokenResourceError) as caught:
            await wire.read(1)
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        await until(lambda: exchange.clients == 0)
        assert exchange.faults.counts == {"drop": 1}


async def test_drop_without_reset_ends_the_stream_without_a_close_frame():
    async with quiet() as exchange, open_wire(exchange, "trade") as wire:
        assert exchange.faults.drop(reset=False) == 1
        assert await wire.ended()
        await until(lambda: exchange.clients == 0 and exchange.topics == {})


async def test_drop_loses_what_waited_for_the_client():
    async with quiet() as exchange, open_wire(exchange, "trade") as wire:
        trade(exchange)
        exchange.faults.drop(reset=False)
        assert await wire.ended()


async def test_drop_can_mean_only_those_who_are_subscribed_to_a_topic():
    async with quiet() as exchange, open_wire(exchange, "trade:XBTUSD") as one, open_wire(exchange, "trade") as other:
        assert exchange.faults.drop(topic="quote") == 0
        assert exchange.faults.drop(topic="trade:XBTUSD", reset=False) == 1
        assert await one.ended()
        trade(exchange, 700)
        assert sizes(await other.until_pong()) == [700]


async def test_drop_also_drops_those_who_are_in_their_handshake():
    async with quiet() as exchange:
        stream = await open_tcp(exchange)
        await stream.send_all(b"GET /realtime HTTP/1.1\r\n")
        await trio.sleep(0.05)
        assert exchange.faults.drop(reset=False) == 1
        with trio.fail_after(5):
            assert await stream.receive_some() == b""
        await stream.aclose()


async def test_drop_may_come_while_the_connection_is_being_closed():
    async with quiet() as exchange, open_wire(exchange, "trade") as wire:
        (line,) = exchange.faults._lines
        line._stream.socket.close()  # what closing begins with
        assert exchange.faults.drop() == 1
        assert await wire.ended()
        await until(lambda: exchange.clients == 0)


async def test_dropped_again_and_again_they_leave_no_socket():
    async with quiet() as exchange:
        before = open_sockets()
        for reset in (True, False) * 5:
            async with open_wire(exchange, "trade") as wire:
                exchange.faults.drop(reset=reset)
                with trio.fail_after(5), pytest.raises((EndOfBytes, trio.BrokenResourceError)):
                    await wire.frame()
        await until(lambda: exchange.clients == 0 and open_sockets() <= before)


async def test_cut_frame_sends_half_of_the_next_message_and_ends_the_stream():
    async with quiet() as exchange, open_wire(exchange, "trade") as wire, open_wire(exchange, "trade") as other:
        exchange.faults.skip("trade:SOLUSDT")
        assert exchange.faults.cut_frame(topic="trade:XBTUSD") == 0
        assert exchange.faults.cut_frame() == 2
        await wire.send(PING, b"first")
        assert await wire.frame() == (PONG, b"first")
        assert exchange.faults.counts == {}
        trade(exchange)
        for client in (wire, other):
            with pytest.raises(EndOfBytes) as caught:
                await client.frame()
            (rest,) = caught.value.args
            assert rest[:2] == bytes([0x80 | TEXT, 126])
            assert len(rest) == (4 + int.from_bytes(rest[2:4], "big")) // 2
            assert rest[4:].startswith(b'{"table":"trade","action":"insert"')
        assert exchange.faults.counts == {"cut_frame": 2}
        await until(lambda: exchange.clients == 0)


async def test_cut_frame_cuts_the_shortest_message_too():
    async with quiet() as exchange, open_wire(exchange) as wire:
        exchange.faults.cut_frame()
        await wire.send(TEXT, b"ping")
        with pytest.raises(EndOfBytes) as caught:
            await wire.frame()
        assert caught.value.args == (b"\x81\x04p",)


@pytest.mark.parametrize("code", [*range(1000, 1016), 3000, 4000, 4999, 0, 999, 65535, None])
async def test_close_sends_a_close_frame_with_each_code(code):
    async with quiet() as exchange, open_wire(exchange) as wire:
        assert exchange.faults.close(code, "as told" if code is not None else "") == 1
        payload = b"" if code is None else struct.pack("!H", code) + b"as told"
        assert await wire.frame() == (CLOSE, payload)
        assert exchange.clients == 1  # it may answer
        await wire.send(CLOSE, struct.pack("!H", 1000))
        assert await wire.ended()
        await until(lambda: exchange.clients == 0)


async def test_close_goes_ahead_of_what_waits_and_behind_what_was_sent():
    async with quiet() as exchange, open_wire(exchange, "trade") as wire:
        trade(exchange, 200)
        await exchange.settled()
        trade(exchange, 300)
        exchange.faults.close(4000)
        trade(exchange, 400)
        assert sizes([await wire.text()]) == [200]
        assert await wire.frame() == (CLOSE, struct.pack("!H", 4000))
        assert exchange.topics == {}


async def test_close_cuts_off_who_does_not_answer_after_a_second():
    async with quiet() as exchange, open_wire(exchange) as wire:
        began = time.monotonic()
        exchange.faults.close(1001, "bye")
        assert await wire.frame() == (CLOSE, struct.pack("!H", 1001) + b"bye")
        assert await wire.ended()
        assert 0.8 < time.monotonic() - began < 5


async def test_close_is_heard_by_a_client_that_speaks_at_the_same_time():
    async with quiet() as exchange, open_client(exchange, "?subscribe=trade") as client:
        await client.until_pong()
        exchange.faults.close(4321, "now")
        with trio.fail_after(5):
            with pytest.raises((ConnectionClosed, LocalProtocolError)):  # the latter: 0.9.2, which has just answered
                while True:
                    await client.send("ping")
                    await trio.sleep(0.001)
            while client.websocket.closed is None:
                await trio.sleep(0.001)
        assert client.websocket.closed.code == 4321


# --- silence


async def test_stall_means_no_data_and_no_pong_until_it_is_resumed():
    async with quiet() as exchange, open_wire(exchange, "trade") as wire:
        assert exchange.faults.stall() == 1
        trade(exchange, 200)
        await wire.send(PING, b"there?")
        await wire.send(TEXT, b"ping")
        assert await wire.silent()
        trade(exchange, 300)
        assert await wire.silent() and exchange.clients == 1
        exchange.faults.resume()
        frames = [await wire.frame() for _ in range(4)]
        assert (PONG, b"there?") in frames
        frames.remove((PONG, b"there?"))
        assert frames[2] == (TEXT, b"pong")
        assert sizes(payload for _, payload in frames[:2]) == [200, 300]
        assert await wire.until_pong() == []


async def test_stall_means_that_tcp_connects_and_no_handshake_is_answered():
    async with quiet() as exchange:
        assert exchange.faults.stall() == 0
        stream = await handshake(exchange, "/realtime")
        with trio.move_on_after(0.3):
            raise AssertionError(await stream.receive_some())
        assert exchange.clients == 0
        exchange.faults.resume()
        with trio.fail_after(5):
            assert (await receive_head(stream)).startswith(b"HTTP/1.1 101 ")
        await trio.aclose_forcefully(stream)


async def test_stall_of_a_topic_leaves_the_others_and_those_to_come():
    async with quiet() as exchange, open_wire(exchange, "trade:XBTUSD") as one, open_wire(exchange, "trade") as other:
        assert exchange.faults.stall(topic="trade:XBTUSD") == 1
        trade(exchange, 200)
        async with open_wire(exchange, "trade"):
            pass
        assert sizes(await other.until_pong()) == [200] and await one.silent()
        exchange.faults.resume()
        assert sizes(await one.until_pong()) == [200]


async def test_the_stalled_can_be_dropped():
    async with quiet() as exchange, open_wire(exchange, "trade") as wire:
        exchange.faults.stall()
        trade(exchange, 200)
        assert await wire.silent(0.05)
        late = await handshake(exchange, "/realtime")
        await trio.sleep(0.05)
        assert exchange.faults.drop(reset=False) == 2
        assert await wire.ended()
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):  # its request was never read
            await late.receive_some()
        await late.aclose()


async def test_the_stalled_hear_it_when_the_exchange_closes():
    async with AsyncExitStack() as client:
        async with quiet() as exchange:
            wire = await client.enter_async_context(open_wire(exchange, "trade"))
            exchange.faults.stall()
            trade(exchange, 200)
            assert await wire.silent(0.05)
            began = time.monotonic()
        assert time.monotonic() - began < 3
        assert sizes([await wire.text()]) == [200]
        assert await wire.frame() == (CLOSE, struct.pack("!H", 1001) + b"The exchange is closing.")
        assert await wire.ended()


async def test_what_waits_for_a_stalled_client_is_bounded(caplog):
    async with quiet(max_queue_messages=5) as exchange, open_wire(exchange, "trade"):
        exchange.faults.stall()
        for _ in range(10):
            trade(exchange)
        await until(lambda: exchange.clients == 0)
        assert "was cut off" in caplog.text


# --- the handshake


async def test_slow_handshake_lets_the_next_client_wait_and_no_other():
    async with quiet() as exchange:
        exchange.faults.slow_handshake(0.4)
        began = time.monotonic()
        stream = await handshake(exchange, "/realtime")
        with trio.move_on_after(0.2):
            raise AssertionError(await stream.receive_some())
        async with open_wire(exchange):
            assert time.monotonic() - began < 0.4
        with trio.fail_after(5):
            assert (await receive_head(stream)).startswith(b"HTTP/1.1 101 ")
        assert time.monotonic() - began >= 0.4 and exchange.faults.counts == {"slow_handshake": 1}
        await trio.aclose_forcefully(stream)


async def test_slow_handshake_may_be_slower_than_the_exchange_waits_for_clients(monkeypatch):
    monkeypatch.setattr("bitmex_streams.exchange.server.HANDSHAKE_TIMEOUT", 0.1)
    async with quiet() as exchange:
        exchange.faults.slow_handshake(0.3, times=2)
        for _ in range(2):
            async with open_wire(exchange):
                pass


async def answer(exchange):
    """What a handshake is answered with, and whether the stream ends behind it."""
    stream = await handshake(exchange, "/realtime")
    data, ended = b"", False
    with trio.move_on_after(0.3):
        while more := await stream.receive_some():
            data += more
        ended = True
    await trio.aclose_forcefully(stream)
    return data, ended


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"status": 401, "body": b"no"},
            b"HTTP/1.1 401 Unauthorized\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\nno",
        ),
        (
            {"status": 429, "retry_after": 30, "body": None},
            b"HTTP/1.1 429 Too Many Requests\r\nConnection: close\r\nRetry-After: 30\r\n\r\n",
        ),
        (
            {"status": 429, "retry_after": "Fri, 31 Dec 1999 23:59:59 GMT", "body": b""},
            b"HTTP/1.1 429 Too Many Requests\r\nConnection: close\r\nRetry-After: Fri, 31 Dec 1999 23:59:59 GMT\r\n"
            b"Content-Type: application/json\r\nContent-Length: 0\r\n\r\n",
        ),
        ({"status": 503, "body": None}, b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\n"),
        ({"status": 599, "body": None}, b"HTTP/1.1 599 \r\nConnection: close\r\n\r\n"),
    ],
    ids=str,
)
@pytest.mark.parametrize("keep_open", [False, True])
async def test_refuse_answers_the_handshake_so(options, expected, keep_open):
    async with quiet() as exchange:
        exchange.faults.refuse(keep_open=keep_open, **options)
        assert await answer(exchange) == (expected, not keep_open)
        assert exchange.faults.counts == {"refuse": 1}
        async with open_wire(exchange):
            pass


async def test_refuse_refuses_as_many_as_it_is_told_to_each_in_its_turn():
    async with quiet() as exchange:
        exchange.faults.refuse(503, times=2)
        exchange.faults.refuse(401)
        answers = [await answer(exchange) for _ in range(4)]
        assert [data[9:12] for data, _ in answers] == [b"503", b"503", b"401", b"101"]
        assert json.loads(answers[0][0].partition(b"\r\n\r\n")[2])["error"]["name"] == "HTTPError"


async def test_refuse_as_a_pipeline_sees_it():
    async with quiet() as exchange:
        exchange.faults.refuse(429, retry_after=30, body=b"slow down")
        with trio.fail_after(10), pytest.raises(ConnectionFailed, match="slow down") as failed:
            async with Pipeline.create(Connection(exchange.url, reconnect=None), Decoder()) as pipeline:
                async with pipeline.tap() as items:
                    await items.receive()
    assert (failed.value.status, failed.value.retry_after) == (429, 30)


async def test_who_leaves_before_the_handshake_is_let_go_at_once():
    async with quiet() as exchange:
        before = open_sockets()
        for data in (b"", b"GET /real"):
            stream = await open_tcp(exchange)
            if data:
                await stream.send_all(data)
            await trio.sleep(0.02)
            await stream.aclose()
        await until(lambda: open_sockets() <= before)


# --- messages that nobody expects


@pytest.mark.parametrize(
    ("message", "frame"),
    [
        ("{broken", (TEXT, b"{broken")),
        ("", (TEXT, b"")),
        ('{"table":"candles","action":"spin","data":[]}', (TEXT, b'{"table":"candles","action":"spin","data":[]}')),
        ("\u20bf", (TEXT, b"\xe2\x82\xbf")),
        (b"\xff\x00", (BINARY, b"\xff\x00")),
        (b"", (BINARY, b"")),
    ],
)
async def test_send_sends_any_message_behind_those_that_wait(message, frame):
    async with quiet() as exchange, open_wire(exchange, "trade") as wire:
        trade(exchange, 200)
        assert exchange.faults.send(message) == 1
        trade(exchange, 300)
        assert sizes([await wire.text()]) == [200]
        assert await wire.frame() == frame
        assert sizes([await wire.text()]) == [300]
        assert exchange.faults.counts == {"send": 1}


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536])
@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING, 0x3])
async def test_send_frame_sends_any_payload_behind_the_messages_that_wait(size, opcode):
    payload = b"\xff\xfe\x80" * (size // 3) + b"\xc3" * (size % 3)
    async with quiet() as exchange, open_wire(exchange, "trade") as wire:
        trade(exchange, 200)
        assert exchange.faults.send_frame(payload, opcode=opcode) == 1
        trade(exchange, 300)
        assert sizes([await wire.text()]) == [200]
        assert await wire.frame() == (opcode, payload)
        assert sizes([await wire.text()]) == [300]


async def test_send_raw_sends_bytes_that_are_no_frame():
    async with quiet() as exchange, open_wire(exchange, "trade") as wire:
        trade(exchange, 200)
        assert exchange.faults.send_raw(b"HTTP/1.1 400 Bad Request\r\n\r\n") == 1
        assert sizes([await wire.text()]) == [200]
        assert await wire.read(28) == b"HTTP/1.1 400 Bad Request\r\n\r\n"
        trade(exchange, 300)
        assert sizes([await wire.text()]) == [300]


async def test_big_message_is_a_single_frame_of_20_megabytes_of_json():
    async with quiet() as exchange, open_client(exchange, max_message_size=2**25) as client:
        assert exchange.faults.big_message(20_000_000) == 1
        with trio.fail_after(30):
            text = await client.websocket.get_message()
        assert len(text) == 20_000_000
        message = json.loads(text)
        assert (message["table"], message["action"], len(message["data"])) == ("announcement", "insert", 1)
        assert await client.until_pong() == []


async def test_big_message_is_too_big_for_a_client_that_takes_no_more_than_one_megabyte():
    async with quiet() as exchange, open_client(exchange) as client:
        exchange.faults.big_message(2_000_000)
        with trio.fail_after(10), pytest.raises(ConnectionClosed):
            await client.websocket.get_message()
        assert client.websocket.closed.code == 1009


@pytest.mark.parametrize("size", [100, 125, 126, 65_536])
async def test_big_message_has_the_size_it_is_told(size):
    async with quiet() as exchange, open_wire(exchange) as wire:
        exchange.faults.big_message(size)
        opcode, payload = await wire.frame()
        assert (opcode, len(payload)) == (TEXT, size) and json.loads(payload)["table"] == "announcement"


# --- topics


async def test_skip_sends_the_next_deltas_to_nobody_and_the_tables_stay_right():
    async with quiet() as exchange, open_wire(exchange, "trade") as one, open_wire(exchange, "trade:XBTUSD") as other:
        exchange.faults.skip("trade", 2)
        for size in (200, 300, 400):
            trade(exchange, size)
        assert sizes(await one.until_pong()) == sizes(await other.until_pong()) == [400]
        assert exchange.faults.counts == {"skip": 2}
        exchange.faults.skip("trade")
        trade(exchange, 500)
        async with open_wire(exchange) as late:
            await late.send(TEXT, b'{"op":"subscribe","args":"trade"}')
            assert (await late.table())["data"][0]["trdMatchID"] == last_trade(exchange)


async def test_skip_waits_for_a_delta_that_somebody_would_get_and_leaves_other_tables():
    async with quiet() as exchange:
        exchange.faults.skip("trade")
        trade(exchange)
        assert exchange.faults.counts == {}
        async with open_wire(exchange, "trade", "orderBookL2:XBTUSD") as wire:
            trade(exchange, 200)
            trade(exchange, 300)
            messages = [json.loads(text) for text in await wire.until_pong()]
            assert [message["table"] for message in messages].count("trade") == 1
            assert len(messages) > 2 and exchange.faults.counts == {"skip": 1}


async def test_skip_of_a_symbol_leaves_the_others():
    async with quiet() as exchange, open_wire(exchange, "trade") as wire:
        exchange.faults.skip("trade:SOLUSDT")
        trade(exchange, 200)
        trade(exchange, 1000, "SOLUSDT")
        trade(exchange, 300)
        trade(exchange, 2000, "SOLUSDT")
        assert sizes(await wire.until_pong()) == [200, 300, 2000]


async def test_duplicate_sends_the_next_deltas_twice_to_all():
    async with quiet() as exchange, open_wire(exchange, "trade") as one, open_wire(exchange, "trade:XBTUSD") as other:
        exchange.faults.duplicate("trade:XBTUSD", 2)
        for size in (200, 300, 400):
            trade(exchange, size)
        texts = await one.until_pong()
        assert sizes(texts) == [200, 200, 300, 300, 400] and texts[0] == texts[1] and texts[2] == texts[3]
        assert await other.until_pong() == texts
        assert exchange.faults.counts == {"duplicate": 2}


async def test_skips_and_duplicates_come_in_the_order_they_were_asked_for():
    async with quiet() as exchange, open_wire(exchange, "trade") as wire:
        exchange.faults.duplicate("trade")
        exchange.faults.skip("trade")
        exchange.faults.duplicate("trade")
        for size in (200, 300, 400, 500):
            trade(exchange, size)
        assert sizes(await wire.until_pong()) == [200, 200, 400, 400, 500]


async def test_skip_of_a_private_table():
    async with quiet() as exchange:
        account = exchange.open_account()
        exchange.faults.skip("order")
        connection = Connection(
            exchange.url, subscribe=["order"], api_key=account.api_key, api_secret=account.api_secret, reconnect=None
        )
        async with Pipeline.create(connection, Decoder()) as pipeline, pipeline.tap() as items:
            with trio.fail_after(10):
                while getattr(await items.receive(), "action", None) != "partial":
                    pass
                for name in ("lost", "seen"):
                    account.submit("XBTUSD", "Buy", 100, 50_000.0, client_order_id=name)
                message = await items.receive()
        assert [row["clOrdID"] for row in message.rows] == ["seen"] and len(account.orders) == 2


@pytest.mark.parametrize("table", ["orderBookL2", "orderBookL2_25", "orderBook10"])
@pytest.mark.parametrize("deltas_first", [True, False])
async def test_a_delayed_partial_shows_the_table_as_it_is_when_it_comes(table, deltas_first):
    async with quiet() as exchange, open_wire(exchange) as wire:
        exchange.faults.delay_partial(2, topic=table, deltas_first=deltas_first)
        await wire.send(TEXT, json.dumps({"op": "subscribe", "args": [f"{table}:XBTUSD"]}).encode())
        assert json.loads(await wire.text())["success"] is True
        market = exchange.markets["XBTUSD"]
        market.submit("Buy", 500, market.book.bids[0].price)
        before = [json.loads(text)["action"] for text in await wire.until_pong()]
        assert before == (["update"] if deltas_first else [])
        exchange.advance(1.9)
        assert await wire.until_pong() == []
        exchange.advance(0.1)
        partial = await wire.table()
        assert partial["action"] == "partial"
        rows = partial["data"]
        bids = rows[0]["bids"] if table == "orderBook10" else [
            [row["price"], row["size"]] for row in rows if row["side"] == "Buy"
        ]  # fmt: skip
        assert bids[0] == list(market.book.bids[0])
        market.submit("Buy", 500, market.book.bids[0].price)
        assert [json.loads(text)["action"] for text in await wire.until_pong()] == ["update"]
        assert exchange.faults.counts == {"delay_partial": 1}


async def test_delay_partial_strikes_as_many_as_it_is_told_and_no_other_topic():
    async with quiet() as exchange, open_wire(exchange) as wire:
        exchange.faults.delay_partial(1, topic="trade:XBTUSD")
        exchange.faults.delay_partial(3, topic="quote", times=2)
        topics = ["trade", "trade:XBTUSD", "quote:XBTUSD", "quote:SOLUSDT", "quote"]
        await wire.send(TEXT, json.dumps({"op": "subscribe", "args": topics}).encode())

        async def partials():
            messages = map(json.loads, await wire.until_pong())
            return [
                topic_name(message["table"], message["filter"].get("symbol"))
                for message in messages
                if message.get("action") == "partial"
            ]

        assert await partials() == ["trade", "quote"]
        exchange.advance(1)
        assert await partials() == ["trade:XBTUSD"]
        exchange.advance(2)
        assert await partials() == ["quote:XBTUSD", "quote:SOLUSDT"]


async def test_a_delayed_partial_of_a_topic_that_was_left_stays_away():
    async with quiet() as exchange, open_wire(exchange) as wire:
        exchange.faults.delay_partial(2, topic="trade")
        for op in ("subscribe", "unsubscribe"):
            await wire.send(TEXT, json.dumps({"op": op, "args": "trade"}).encode())
            assert json.loads(await wire.text())["success"] is True
        await wire.send(TEXT, b'{"op":"subscribe","args":"trade"}')
        assert (await wire.table())["action"] == "partial"
        exchange.advance(1)
        trade(exchange, 200)
        exchange.advance(5)
        assert sizes(text for text in await wire.until_pong() if '"trade"' in text) == [200]


async def test_a_delayed_partial_of_a_client_that_is_gone_harms_nobody():
    async with quiet() as exchange:
        async with open_wire(exchange) as wire:
            exchange.faults.delay_partial(2)
            await wire.send(TEXT, b'{"op":"subscribe","args":"trade"}')
            await wire.text()
        await until(lambda: exchange.clients == 0)
        exchange.advance(3)
        assert exchange.topics == {}


async def test_a_live_exchange_sends_a_delayed_partial_by_itself():
    async with quiet(speed=10) as exchange, open_wire(exchange) as wire:
        exchange.faults.delay_partial(2)
        began = time.monotonic()
        await wire.send(TEXT, b'{"op":"subscribe","args":"trade"}')
        assert (await wire.table())["action"] == "partial"
        assert 0.18 < time.monotonic() - began < 5


async def test_a_book_is_right_after_deltas_that_came_before_its_partial():
    async with paused(symbols=("XBTUSD",), rate=50) as exchange:
        exchange.faults.delay_partial(3)
        connection = Connection(exchange.url, subscribe=["orderBookL2:XBTUSD"], reconnect=None)
        async with Pipeline.create(connection, Decoder(), OrderBookMerger()) as pipeline, pipeline.tap() as updates:
            await until(lambda: exchange.topics)
            exchange.advance(6)
            true = exchange.markets["XBTUSD"].book
            with trio.fail_after(10):
                async for update in updates:
                    if update.book.bids[:] == true.bids and update.book.asks[:] == true.asks:
                        break


# --- all of them


async def test_clear_forgets_what_has_not_struck_yet():
    async with quiet() as exchange, open_wire(exchange, "trade") as wire:
        faults = exchange.faults
        faults.stall()
        faults.cut_frame()
        faults.refuse(503, times=5)
        faults.slow_handshake(60)
        faults.skip("trade")
        faults.duplicate("trade")
        faults.delay_partial(60)
        faults.clear()
        trade(exchange, 200)
        assert sizes(await wire.until_pong()) == [200]
        async with open_wire(exchange, "trade"):
            pass
        assert faults.counts == {"stall": 1}


async def test_faults_over_a_stream_that_is_no_socket(autojump_clock):
    async with quiet() as exchange, trio.open_nursery() as nursery:
        for fault in (exchange.faults.drop, exchange.faults.cut_frame):
            ours, theirs = trio.testing.memory_stream_pair()
            nursery.start_soon(exchange.serve_stream, theirs)
            await ours.send_all(
                b"GET /realtime HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            wire = Wire(ours)
            while b"Welcome" not in wire.data:
                wire.data += await ours.receive_some()
            wire.data = b""
            assert fault() == 1
            exchange.faults.send("{}")
            with pytest.raises(EndOfBytes):
                await wire.frame()
            await ours.aclose()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda faults: faults.close(70_000), "code is 70000"),
        (lambda faults: faults.close("1000"), "code is '1000'"),
        (lambda faults: faults.close(1000, "x" * 124), "reason has 124 bytes"),
        (lambda faults: faults.close(None, "why"), "cannot have a reason"),
        (lambda faults: faults.refuse(101), "status is 101"),
        (lambda faults: faults.refuse(503, times=0), "times is 0"),
        (lambda faults: faults.refuse(503, retry_after=-1), "retry_after is -1"),
        (lambda faults: faults.refuse(503, retry_after="1\r\nx: y"), "retry_after is '1"),
        (lambda faults: faults.slow_handshake(float("nan")), "seconds is nan"),
        (lambda faults: faults.slow_handshake(1, times=1.5), "times is 1.5"),
        (lambda faults: faults.send(None), "message is NoneType"),
        (lambda faults: faults.send("\ud800"), "surrogates not allowed"),
        (lambda faults: faults.send_frame(b"", opcode=16), "opcode is 16"),
        (lambda faults: faults.send_raw(b""), "data is empty"),
        (lambda faults: faults.big_message(99), "size is 99"),
        (lambda faults: faults.skip("candles"), "topic is 'candles'"),
        (lambda faults: faults.skip("trade", 0), "count is 0"),
        (lambda faults: faults.duplicate(None), "topic is None"),
        (lambda faults: faults.delay_partial(-1), "seconds is -1"),
        (lambda faults: faults.delay_partial(1, topic=""), "topic is ''"),
        (lambda faults: faults.drop(topic="tarde"), "topic is 'tarde'"),
    ],
)
async def test_arguments_that_make_no_sense_are_refused(call, words):
    async with quiet() as exchange:
        with pytest.raises(ValueError, match=words):
            call(exchange.faults)
        assert exchange.faults.counts == {}


# --- TLS


async def test_over_tls_all_is_as_without(authority):
    server, client = tls(authority, "127.0.0.1")
    async with quiet(ssl_context=server) as exchange:
        assert exchange.url.startswith("wss://127.0.0.1:")
        async with open_client(exchange, "?subscribe=trade", ssl_context=client) as websocket:
            await websocket.until_pong()
            trade(exchange, 200)
            (message,) = await websocket.until_pong()
            assert message["data"][0]["size"] == 200
            exchange.faults.drop()
            with trio.fail_after(5), pytest.raises(ConnectionClosed):
                await websocket.websocket.get_message()
        exchange.faults.slow_handshake(0.2)
        began = time.monotonic()
        async with open_client(exchange, ssl_context=client):
            assert time.monotonic() - began > 0.2
        exchange.faults.refuse(503)
        connection = Connection(exchange.url, ssl_context=client, reconnect=None)
        with trio.fail_after(5), pytest.raises(ConnectionFailed, match="Refused on purpose"):
            async with Pipeline.create(connection, Decoder()) as pipeline, pipeline.tap() as items:
                await items.receive()


async def test_a_certificate_for_another_host_is_served_as_it_is(authority):
    server, client = tls(authority, "another.host")
    async with quiet(ssl_context=server) as exchange:
        before = open_sockets()
        stream = trio.SSLStream(await open_tcp(exchange), client, server_hostname="127.0.0.1")
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError) as caught:
            await stream.do_handshake()
        assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
        await trio.aclose_forcefully(stream)
        connection = Connection(exchange.url, ssl_context=client, reconnect=None)
        with trio.fail_after(5), pytest.raises(ConnectionFailed, match="certificate does not verify"):
            async with Pipeline.create(connection, Decoder()) as pipeline, pipeline.tap() as items:
                await items.receive()
        await until(lambda: exchange.clients == 0 and open_sockets() <= before)


async def test_what_is_no_ssl_context_is_refused():
    with pytest.raises(ValueError, match="ssl_context is True"):
        async with quiet(ssl_context=True):
            pass


async def test_stalling_twice_is_stalling():
    async with open_exchange(symbols=["XBTUSD"], rate=0) as exchange:
        exchange.faults.stall()
        exchange.faults.stall()
        exchange.faults.resume()
        connection = Connection(exchange.url, reconnect=None)
        async with Pipeline.create(connection) as pipeline:
            pipeline.start()
            with trio.fail_after(5):
                await connection.wait_connected()
                exchange.faults.stall()
                exchange.faults.stall()
                exchange.faults.resume()
                await connection.subscribe("trade")
