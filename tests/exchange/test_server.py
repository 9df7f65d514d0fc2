"""The exchange's side of the protocol, over real websockets on loopback."""

# ruff: noqa: ASYNC110 - what is waited for is in a server or another process, and has no event to wait on

import json
import time
from datetime import datetime

import pytest
import trio

from bitmex_streams.exchange import open_exchange
from bitmex_streams.exchange.schemas import PRIVATE_TABLES, SCHEMAS
from tests.exchange.clients import START, handshake, open_client, paused


async def test_a_client_is_welcomed():
    async with paused() as exchange, open_client(exchange, welcome=False) as client:
        assert await client.receive() == {
            "info": "Welcome to the BitMEX Realtime API.", "version": "2.0.0", "timestamp": "2026-01-01T12:00:30.000Z",
            "docs": "https://www.bitmex.com/app/wsAPI", "heartbeatEnabled": False, "limit": {"remaining": 39},
        }  # fmt: skip


async def test_each_topic_is_acknowledged_and_begins_with_its_partial():
    async with paused() as exchange, open_client(exchange) as client:
        await client.send("subscribe", "orderBookL2:XBTUSD", "trade")
        request = {"op": "subscribe", "args": ["orderBookL2:XBTUSD", "trade"]}
        acknowledged, book, also_acknowledged, trades = [await client.receive() for _ in range(4)]
        assert acknowledged == {"success": True, "subscribe": "orderBookL2:XBTUSD", "request": request}
        assert (book["table"], book["action"], book["filter"]) == ("orderBookL2", "partial", {"symbol": "XBTUSD"})
        assert also_acknowledged == {"success": True, "subscribe": "trade", "request": request}
        assert (trades["table"], trades["action"], trades["filter"]) == ("trade", "partial", {})
        assert [row["id"] for row in book["data"]] == sorted(row["id"] for row in book["data"])
        assert exchange.topics == {"orderBookL2:XBTUSD": 1, "trade": 1}


async def test_topics_can_come_with_the_url():
    async with paused() as exchange, open_client(exchange, "?subscribe=instrument,quote:XBTUSD") as client:
        messages = [await client.receive() for _ in range(4)]
        assert [message.get("subscribe") or message["table"] for message in messages] == [
            "instrument",
            "instrument",
            "quote:XBTUSD",
            "quote",
        ]


async def test_a_single_argument_needs_no_list():
    async with paused() as exchange, open_client(exchange) as client:
        answer = await client.ask("", text='{"op": "subscribe", "args": "chat"}')
        assert answer == {"success": True, "subscribe": "chat", "request": {"op": "subscribe", "args": "chat"}}


async def test_deltas_come_only_to_subscribers_and_only_until_they_unsubscribe():
    async with paused() as exchange, open_client(exchange) as reader, open_client(exchange) as other:
        await reader.send("subscribe", "trade:XBTUSD")
        await other.send("subscribe", "trade:SOLUSDT")
        await reader.until_pong()
        await other.until_pong()
        exchange.markets["XBTUSD"].submit("Buy", 100)
        (trade,) = await reader.until_pong()
        assert (trade["table"], trade["action"], trade["data"][0]["size"]) == ("trade", "insert", 100)
        assert await other.until_pong() == []
        answer = await reader.ask("unsubscribe", "trade:XBTUSD")
        assert answer == {
            "success": True,
            "unsubscribe": "trade:XBTUSD",
            "request": {"op": "unsubscribe", "args": ["trade:XBTUSD"]},
        }
        exchange.markets["XBTUSD"].submit("Buy", 100)
        assert await reader.until_pong() == []


@pytest.mark.parametrize(
    ("text", "status", "words"),
    [
        ('{"op": "subscribe", "args": ["candles"]}', 400, "Unknown table: candles"),
        ('{"op": "subscribe", "args": ["trade:DOGE"]}', 400, "Unknown or expired symbol."),
        ('{"op": "subscribe", "args": ["chat:XBTUSD"]}', 400, "Unknown or expired symbol."),
        ('{"op": "subscribe", "args": ["quote"]}', 400, "You are already subscribed to this topic: quote."),
        ('{"op": "unsubscribe", "args": ["trade"]}', 400, "You are not subscribed to this topic: trade."),
        ('{"op": "subscribe", "args": []}', 400, "must be one or more topics"),
        ('{"op": "subscribe", "args": [1]}', 400, "must be one or more topics"),
        (json.dumps({"op": "subscribe", "args": ["trade"] * 21}), 400, "The maximum is 20"),
        ('{"op": "subscribe", "args": ["order"]}', 401, "account-locked"),
        ('{"op": "authKeyExpires", "args": ["key", 1, "00"]}', 401, "Invalid API Key."),
        ('{"op": "cancelAllAfter", "args": 60000}', 401, "Authentication is required"),
        ('{"op": "dance"}', 400, "Unrecognized request."),
        ("[1, 2]", 400, "Unrecognized request."),
        ("{broken", 400, "Unrecognized request."),
    ],
)
async def test_what_cannot_be_done_is_refused_and_the_connection_stays(text, status, words):
    async with paused() as exchange, open_client(exchange, "?subscribe=quote") as client:
        await client.until_pong()
        answer = await client.ask("", text=text)
        assert (answer["status"], answer["meta"]) == (status, {}) and words in answer["error"]
        assert answer["request"] == (text if text == "{broken" else json.loads(text))
        assert await client.until_pong() == []


async def test_one_bad_topic_does_not_keep_the_others_from_being_subscribed():
    async with paused() as exchange, open_client(exchange) as client:
        await client.send("subscribe", "nonsense", "trade", "margin", "quote")
        messages = await client.until_pong()
        assert [message.get("error", message.get("subscribe", message.get("table")))[:13] for message in messages] == [
            "Unknown table",
            "trade",
            "trade",
            "User requeste",
            "quote",
            "quote",
        ]


async def test_bytes_that_are_no_text_are_refused():
    async with paused() as exchange, open_client(exchange) as client:
        await client.websocket.send_message(b"\xff\xfe")
        assert (await client.receive())["status"] == 400


async def test_help_says_what_there_is():
    async with paused() as exchange, open_client(exchange) as client:
        for text in ("help", '{"op": "help"}'):
            answer = await client.ask("", text=text)
            assert answer["subscriptionSubjects"] == {
                "authenticationRequired": list(PRIVATE_TABLES),
                "public": list(SCHEMAS),
            }


async def test_ping_frames_are_answered():
    async with paused() as exchange, open_client(exchange) as client:
        with trio.fail_after(5):
            await client.websocket.ping(b"there?")


async def test_every_public_table_can_be_subscribed_to():
    async with paused() as exchange, open_client(exchange) as client:
        tables = list(SCHEMAS)
        await client.send("subscribe", *tables[:20])
        await client.send("subscribe", *tables[20:])
        partials = [message for message in await client.until_pong() if "table" in message]
        assert [(message["table"], message["action"]) for message in partials] == [
            (table, "partial") for table in tables
        ]


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/other", [], 404),
        ("/", [], 404),
        ("/realtimemd", [], 404),
        ("/realtime", ["api-key: unknown", "api-expires: 1"], 401),
    ],
)
async def test_other_paths_and_unknown_keys_are_refused_at_the_handshake(path, headers, status):
    async with paused() as exchange:
        stream = await handshake(exchange, path, headers)
        with trio.fail_after(5):
            answer = await stream.receive_some()
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        await stream.aclose()


async def test_a_client_that_does_not_read_is_cut_off_and_disturbs_no_other():
    async with paused(max_queue_bytes=200_000) as exchange, open_client(exchange) as reader:
        await reader.send("subscribe", "orderBook10")
        await reader.until_pong()
        lazy = await handshake(exchange, "/realtime?subscribe=orderBook10")
        with trio.fail_after(5):
            while exchange.topics.get("orderBook10") != 2:
                await trio.sleep(0.01)
        sent = 0
        with trio.fail_after(30):
            while exchange.clients == 2:  # what the kernel buffers comes on top of the queue
                exchange.advance(1)
                sent += len(await reader.until_pong())
        assert sent > 100 and exchange.topics == {"orderBook10": 1}
        await lazy.aclose()
        exchange.advance(1)
        assert await reader.until_pong()


async def test_many_clients_get_the_same_messages():
    async with paused() as exchange, trio.open_nursery() as nursery:
        received = []

        async def listen():
            async with open_client(exchange) as client:
                await client.send("subscribe", "orderBookL2", "trade")
                await client.until_pong()
                ready.append(client)
                with trio.fail_after(20):
                    await advanced.wait()
                received.append(await client.until_pong())

        ready, advanced = [], trio.Event()
        for _ in range(10):
            nursery.start_soon(listen)
        with trio.fail_after(10):
            while len(ready) < 10:
                await trio.sleep(0.01)
        assert exchange.clients == 10
        exchange.advance(5)
        advanced.set()
        with trio.fail_after(20):
            while len(received) < 10:
                await trio.sleep(0.01)
        assert len(received[0]) > 20 and all(messages == received[0] for messages in received)
        nursery.cancel_scope.cancel()


async def test_a_partial_of_5_megabytes_arrives():
    async with paused(symbols=("XBTUSD",), levels=26_000, rate=0) as exchange:
        async with open_client(exchange, max_message_size=2**24) as client:
            await client.send("subscribe", "orderBookL2")
            await client.receive()
            with trio.fail_after(30):
                message = await client.websocket.get_message()
            assert len(message) > 5_000_000
            bids, asks = exchange.markets["XBTUSD"].book
            rows = json.loads(message)["data"]
            exact = [(row["price"], row["size"]) for row in rows] == [*asks[::-1], *bids]
            assert exact


async def test_it_lives_by_itself():
    async with open_exchange(symbols=("XBTUSD",), rate=200, levels=30) as exchange, open_client(exchange) as client:
        await client.send("subscribe", "trade", "orderBookL2")
        with trio.fail_after(10):
            messages = [await client.receive() for _ in range(60)]
        assert {"trade", "orderBookL2"} == {
            message["table"] for message in messages if message.get("action") == "insert"
        }


async def test_paused_it_stands_still_and_resumed_it_goes_on():
    async with open_exchange(symbols=("XBTUSD",), rate=500, levels=30) as exchange:
        exchange.speed = 0
        book = exchange.markets["XBTUSD"].book
        await trio.sleep(0.05)
        assert exchange.markets["XBTUSD"].book == book
        exchange.speed = 1
        with trio.fail_after(5):
            while exchange.markets["XBTUSD"].book == book:
                await trio.sleep(0.01)


async def test_speed_is_seconds_of_the_exchange_in_a_second(autojump_clock):
    async with open_exchange(symbols=("XBTUSD",), rate=1, levels=30, speed=60, start_time=START) as exchange:
        began = exchange.now
        await trio.sleep(10)
        assert exchange.time() - began == pytest.approx(600 * 10**9, abs=1000)


async def test_an_order_by_hand_comes_after_all_that_was_due(autojump_clock):
    async with open_exchange(symbols=("XBTUSD",), rate=0, levels=30, start_time=START) as exchange:
        await trio.sleep(7.25)
        events = []
        exchange.markets["XBTUSD"].listeners.append(events.append)
        exchange.markets["XBTUSD"].submit("Buy", 100)
        assert events[0].time == pytest.approx(int(START.timestamp()) * 10**9 + 7_250_000_000, abs=1000)


async def test_leaving_the_context_tells_the_clients_and_frees_the_port():
    async with paused() as exchange:
        stream = await handshake(exchange, "/realtime")
        with trio.fail_after(5):
            while not exchange.clients:
                await trio.sleep(0.01)
        port = int(exchange.url.rpartition(":")[2].partition("/")[0])
    heard = b""
    with trio.fail_after(5):
        while data := await stream.receive_some():
            heard += data
    await stream.aclose()
    reason = b"The exchange is closing."
    assert heard.endswith(bytes([0x88, 2 + len(reason)]) + (1001).to_bytes(2, "big") + reason)
    with pytest.raises(OSError):
        await trio.open_tcp_stream("127.0.0.1", port)
    async with paused(port=port) as exchange:
        assert exchange.url == f"ws://127.0.0.1:{port}/realtime"


async def test_clients_that_vanish_in_any_state_harm_nobody():
    async with paused() as exchange, open_client(exchange) as reader:
        host, port = exchange.url.removeprefix("ws://").removesuffix("/realtime").split(":")
        for beginning in (b"G", b"GET /realtime HTTP/1.1\r\n", b"nonsense\r\n\r\n"):
            stream = await trio.open_tcp_stream(host, int(port))
            await stream.send_all(beginning)
            await stream.aclose()
        stream = await handshake(exchange, "/realtime?subscribe=trade,orderBookL2")
        with trio.fail_after(5):
            while not exchange.topics:
                await trio.sleep(0.01)
        await stream.aclose()
        with trio.fail_after(5):
            while exchange.clients > 1:
                exchange.advance(1)
                await trio.sleep(0.01)
        assert exchange.topics == {}
        assert await reader.until_pong() == []


async def test_a_start_time_without_zone_is_refused():
    with pytest.raises(ValueError, match="no time zone"):
        async with open_exchange(start_time=datetime(2026, 1, 1)):
            pass


# --- an exchange that cannot keep its speed


async def longest_wait(during):
    """The most work (s of this thread's CPU, whatever else the machine does) that was done at once, while a task was
    ready to run and ``during()`` ran."""
    longest = 0.0

    async def watch():
        nonlocal longest
        while True:
            since = time.thread_time()
            await trio.lowlevel.checkpoint()
            longest = max(longest, time.thread_time() - since)
            await trio.sleep(0.005)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await during()
        nursery.cancel_scope.cancel()
    return longest


async def test_an_exchange_that_cannot_keep_its_speed_runs_slower_and_holds_nobody_up(caplog):
    async with open_exchange(speed=100_000, levels=30) as exchange:

        async def use():
            await trio.sleep(1.5)
            with trio.fail_after(20):
                while exchange.lag <= 10_000:
                    await trio.sleep(0.01)
            exchange.markets["XBTUSD"].submit("Buy", 100)
            with trio.fail_after(20):
                async with open_client(exchange):
                    pass
            exchange.speed = 1
            assert exchange.lag < 1_000  # 0, but for what this machine may stand still just now

        assert await longest_wait(use) < 0.5
    told = [record.getMessage() for record in caplog.records if record.name == "bitmex_streams"]
    assert told.count("the exchange cannot keep its speed of 100000: it runs slower (see exchange.lag)") == 1


async def test_an_exchange_that_is_too_fast_for_a_client_that_reads_waits_for_it(monkeypatch):
    monkeypatch.setattr("bitmex_streams.exchange.server.PATIENCE", 30)  # the client may be slow, like its machine
    async with open_exchange(speed=5000, levels=30, max_queue_messages=200) as exchange:
        async with open_client(exchange, "?subscribe=orderBookL2") as client:
            with trio.move_on_after(2):
                while True:
                    await client.websocket.get_message()
            assert exchange.clients == 1
            assert await client.until_pong()


async def test_an_exchange_that_is_too_fast_does_not_wait_for_a_client_that_does_not_read(caplog):
    async with open_exchange(speed=5000, levels=30, max_queue_messages=200) as exchange:
        lazy = await handshake(exchange, "/realtime?subscribe=orderBookL2")
        with trio.fail_after(60):
            while "was cut off" not in caplog.text or exchange.clients:
                await trio.sleep(0.01)
        await lazy.aclose()


async def test_an_exchange_that_keeps_its_speed_has_no_lag(autojump_clock):
    async with open_exchange(symbols=("XBTUSD",), levels=30, speed=600, start_time=START) as exchange:
        for _ in range(10):
            await trio.sleep(0.1)
            assert exchange.lag == 0


async def test_what_the_exchange_is_not_woken_for_yet_is_no_lag(autojump_clock):
    async with open_exchange(symbols=("XBTUSD",), levels=30, rate=0, speed=600, start_time=START) as exchange:
        began, at = trio.current_time(), exchange.now
        for _ in range(10):
            due = began + (exchange.next_time - at) / 10**9 / 600
            await trio.sleep_until(due + 0.9e-6)
            assert exchange.lag == 0
            await trio.sleep(1e-6)


# --- a long time at once


async def test_a_long_time_passes_in_steps_with_all_that_came_of_it_on_its_way_after_each():
    async with paused(rate=100, max_queue_messages=1000) as exchange, open_client(exchange) as client:
        await client.send("subscribe", "orderBookL2:XBTUSD", "trade")
        received = []

        async def read():
            while True:
                received.append(await client.websocket.get_message())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            for _ in range(60):
                exchange.advance(2)
                with trio.fail_after(10):
                    await exchange.settled()
            nursery.cancel_scope.cancel()
        await client.until_pong()
        assert exchange.clients == 1 and len(received) > 5000


async def test_settled_does_not_wait_for_a_client_that_takes_nothing():
    async with paused() as exchange, open_client(exchange) as reader:
        with trio.fail_after(4):  # less than its patience
            await exchange.settled()
        lazy = await handshake(exchange, "/realtime?subscribe=orderBookL2,orderBook10,instrument")
        with trio.fail_after(5):
            while exchange.clients < 2 or not exchange.topics:
                await trio.sleep(0.01)
        for _ in range(10):
            exchange.advance(50)
            with trio.fail_after(30):
                await exchange.settled()
        assert await reader.until_pong() == []
        await lazy.aclose()


async def test_a_client_for_which_too_much_waits_hears_why_it_is_cut_off(caplog, monkeypatch):
    monkeypatch.setattr("bitmex_streams.exchange.server.CLOSE_TIMEOUT", 30)  # a slow machine is still at `advance`
    async with paused(max_queue_messages=100) as exchange:
        stream = await handshake(exchange, "/realtime?subscribe=orderBookL2:XBTUSD")
        with trio.fail_after(5):
            while not exchange.topics:
                await trio.sleep(0.01)
        await exchange.settled()
        exchange.advance(600)
        heard = b""
        with trio.fail_after(5):
            while data := await stream.receive_some():
                heard += data
            while exchange.clients:
                await trio.sleep(0.01)
        await stream.aclose()
    reason = b"You do not read fast enough: too many messages wait for you."
    assert heard.endswith(bytes([0x88, 2 + len(reason)]) + (1008).to_bytes(2, "big") + reason)
    told = [record.getMessage() for record in caplog.records if record.name == "bitmex_streams"]
    assert len(told) == 1 and "100 messages (" in told[0] and told[0].endswith("of its topics orderBookL2:XBTUSD")


# --- arguments


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"speed": -1}, "speed is -1"),
        ({"speed": None}, "speed is None"),
        ({"host": None}, "host is None: it must be a name or an address"),
        ({"host": ""}, "host is ''"),
        ({"port": 70_000}, "port is 70000"),
        ({"port": "http"}, "port is 'http'"),
        ({"max_queue_messages": 0}, "max_queue_messages is 0"),
        ({"max_queue_bytes": -5}, "max_queue_bytes is -5"),
        ({"start_time": 1.0}, "start_time is 1.0: it must be an aware datetime"),
    ],
    ids=str,
)
async def test_arguments_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        async with paused(**options):
            pass


@pytest.mark.parametrize("speed", [-1, float("nan"), float("inf"), None, "x"])
async def test_what_is_no_speed_is_refused_and_the_speed_stays(speed):
    async with paused(speed=2) as exchange:
        with pytest.raises(ValueError, match=f"speed is {speed!r}"):
            exchange.speed = speed
        assert exchange.speed == 2
