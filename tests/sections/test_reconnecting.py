"""Connection: what happens when the connection is lost, and how it comes back.

On a test clock, over in-memory streams; where the operating system has a part in it, over real sockets.
"""

import errno
import socket
from contextlib import suppress
from functools import partial

import pytest
import trio
import trio.testing
import trio_websocket

from bitmex_streams import (
    AuthenticationError,
    BookUpdate,
    Connected,
    Connection,
    ConnectionClosed,
    ConnectionFailed,
    DecodeError,
    Decoder,
    Disconnected,
    OrderBookMerger,
    Pipeline,
    RawMessage,
    Reconnect,
    StateLost,
    SubscriptionError,
    TableApplier,
    TableUpdate,
)
from bitmex_streams.coverage import CONNECTING
from bitmex_streams.transport import TransportClosed, WebsocketTransport
from tests.servers import (
    InMemory,
    ScriptedExchange,
    in_memory,
    open_sockets,
    partial_of,
    serve_tcp,
    serve_websocket,
    shake_hands,
)

STEADY = Reconnect(jitter=0)
SIGNED_IN = {"api_key": "aKeyOfAnAccount-1234567", "api_secret": "aSecretOfAnAccount-1234567"}


async def eventually(condition):
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110 - what happens at the server's end has no event here
            await trio.sleep(0.01)


async def lose(connection):
    """Break the connection at the server's end, without a close frame, and wait until that has been noticed."""
    await connection._transport.drop()
    await eventually(lambda: not connection.connected)


class Taken(list):
    """What a tap gave so far."""

    def kinds(self):
        return [type(item).__name__ for item in self]

    def marks(self):
        return [item for item in self if type(item) in (Connected, Disconnected, StateLost)]


async def take_all(tap, taken):
    async for item in tap:
        taken.append(item)


class running:
    """A pipeline of a connection and ``sections`` whose end is read into a `Taken`."""

    def __init__(self, connection, *sections):
        self.sections = connection, *sections

    async def __aenter__(self):
        self.context = Pipeline.create(*self.sections)
        self.pipeline = await self.context.__aenter__()
        self.taken = Taken()
        self.pipeline.nursery.start_soon(take_all, self.pipeline.tap(max_buffer_size=10_000), self.taken)
        return self.taken

    async def __aexit__(self, *exc):
        return await self.context.__aexit__(*exc)


def in_memory_steady(exchange, **options):
    return in_memory(exchange, **{"reconnect": STEADY, **options})


# --- coming back


async def test_subscriptions_are_restored_after_a_reconnect(autojump_clock):
    exchange = ScriptedExchange()
    topics = [f"trade:S{number}" for number in range(45)]
    async with in_memory_steady(exchange, subscribe=topics) as connection, running(connection) as taken:
        await eventually(lambda: len(connection.subscriptions) == 45)
        await connection.subscribe("quote")
        exchange.commands.clear()
        await lose(connection)
        await eventually(lambda: len(connection.subscriptions) == 46)
        assert [len(args) for op, args in exchange.commands] == [20, 20, 6], "twenty a command"
        assert {topic for _, args in exchange.commands for topic in args} == {*topics, "quote"}
        assert [type(mark) for mark in taken.marks()] == [Connected, Disconnected, Connected]
        assert taken.marks()[1].code == 1006


async def test_the_waits_grow_and_start_over_once_it_has_stood_for_a_while(autojump_clock):
    exchange = ScriptedExchange()
    async with in_memory_steady(exchange) as connection, running(connection):
        server = connection._transport
        await connection.wait_connected()
        server.failures.extend(ConnectionFailed("no answer") for _ in range(5))
        await lose(connection)
        began = trio.current_time()
        await connection.wait_connected()
        waits = [b - a for a, b in zip([began, *server.attempts[1:]], server.attempts[1:], strict=False)]
        assert waits == pytest.approx([1, 2, 4, 8, 16, 30], abs=0.1)
        await trio.sleep(60)
        await lose(connection)
        began = trio.current_time()
        await connection.wait_connected()
        assert trio.current_time() - began == pytest.approx(1, abs=0.1)


async def test_a_server_that_says_when_to_come_back_is_obeyed(autojump_clock):
    exchange = ScriptedExchange()
    async with in_memory_steady(exchange) as connection, running(connection):
        server = connection._transport
        await connection.wait_connected()
        server.failures.append(ConnectionFailed("too many requests", status=429, retry_after=77))
        await lose(connection)
        await connection.wait_connected()
        assert server.attempts[2] - server.attempts[1] == pytest.approx(77, abs=0.1)


@pytest.mark.parametrize("words", [b"120", b"1.5", b"not a number"])
async def test_retry_after_is_read_from_the_refusal(words):
    async def refuse(stream):
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 429 Too Many\r\nretry-AFTER: " + words + b"\r\nContent-Length: 0\r\n\r\n")

    async with serve_tcp(refuse) as port:
        with pytest.raises(ConnectionFailed) as error:
            async with Pipeline.create(Connection(f"ws://127.0.0.1:{port}/realtime", reconnect=None)) as pipeline:
                pipeline.start()
                await trio.sleep_forever()
    assert error.value.status == 429 and not error.value.final
    assert error.value.retry_after == {b"120": 120, b"1.5": 1.5}.get(words)


async def test_a_refusal_whose_status_cannot_be_read_is_tried_again():
    exchange, refusals = ScriptedExchange(), []

    async def handle(stream):
        refusals.append(stream)
        await stream.receive_some()
        await stream.send_all(b"no web here\r\n\r\n")  # and never closes
        await trio.sleep_forever()

    async with serve_tcp(handle) as port:
        connection = Connection(
            f"ws://127.0.0.1:{port}/realtime", reconnect=Reconnect(initial=0.01, attempts=2), connect_timeout=60
        )
        with trio.fail_after(20), pytest.raises(ConnectionFailed, match="no web here"):
            async with Pipeline.create(connection) as pipeline:
                pipeline.start()
                await trio.sleep_forever()
    assert len(refusals) == 3 and not exchange.clients


@pytest.mark.parametrize("status", [200, 302, 400, 401, 403, 404])
async def test_a_refusal_that_will_not_change_is_final(status):
    async def refuse(request):
        refused.append(status)
        await request.reject(status, body=b"no")

    refused = []
    async with serve_websocket(refuse) as url:
        with trio.fail_after(5), pytest.raises(ConnectionFailed) as error:
            async with Pipeline.create(Connection(url)) as pipeline:
                pipeline.start()
                await trio.sleep_forever()
    assert error.value.status == status and refused == [status]


async def reconnecting_into(status):
    """A connection that is lost, and then answered twice with this status; gives it, and the error that ended it."""
    exchange, refused = ScriptedExchange(), []

    async def handle(request):
        if exchange.headers and len(refused) < 2:
            refused.append(status)
            await request.reject(status, extra_headers=[("Location", "https://portal/")], body=b"<h1>maintenance</h1>")
        else:
            await exchange(request)

    async with serve_websocket(handle) as url:
        connection = Connection(url, subscribe=["trade"], reconnect=Reconnect(initial=0.01))
        try:
            async with running(connection) as taken:
                await eventually(lambda: connection.subscriptions)
                await exchange.clients[0]._stream.aclose()
                await eventually(lambda: connection.stats.connections == 2 and connection.subscriptions)
        except ConnectionFailed as failed:
            return refused, failed, taken
    return refused, None, taken


@pytest.mark.parametrize("status", [200, 301, 302, 400, 404, 410])
async def test_a_page_in_front_of_an_exchange_that_stood_before_passes(status, caplog):
    refused, failed, taken = await reconnecting_into(status)
    assert failed is None and refused == [status] * 2
    assert [type(mark) for mark in taken.marks()] == [Connected, Disconnected, Connected]
    assert f"refused the connection with HTTP status {status}: <h1>maintenance</h1>" in caplog.text


@pytest.mark.parametrize("status", [401, 403])
async def test_who_is_not_let_in_any_more_is_told_at_the_first_attempt(status):
    refused, failed, taken = await reconnecting_into(status)
    assert failed.status == status and refused == [status]
    assert [type(mark) for mark in taken.marks()] == [Connected, Disconnected]


@pytest.mark.parametrize("status", [500, 502, 503, 429])
async def test_a_server_in_trouble_is_tried_again(status):
    exchange, refused = ScriptedExchange(), []

    async def refuse_twice(request):
        if len(refused) < 2:
            refused.append(status)
            await request.reject(status, body=b"later")
        else:
            await exchange(request)

    async with serve_websocket(refuse_twice) as url:
        connection = Connection(url, reconnect=Reconnect(initial=0.01))
        async with Pipeline.create(connection) as pipeline:
            pipeline.start()
            with trio.fail_after(5):
                await connection.wait_connected()
    assert len(refused) == 2


async def nothing_answers(*args, **options):
    await trio.sleep_forever()


def failing_with(error):
    async def fail(*args, **options):
        await trio.lowlevel.checkpoint()
        raise error

    return fail


@pytest.mark.parametrize("transport", ["default", "fast"])
@pytest.mark.parametrize(
    "open_tcp, words",
    [
        (failing_with(OSError(errno.EHOSTUNREACH, "No route to host")), "No route to host"),
        (failing_with(OSError(errno.ENETUNREACH, "Network is unreachable")), "Network is unreachable"),
        (failing_with(socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")), "cannot be resolved"),
        (failing_with(socket.gaierror(socket.EAI_NONAME, "Name or service not known")), "cannot be resolved"),
        (nothing_answers, "no sign of a connection"),
    ],
    ids=["host unreachable", "network unreachable", "name server away", "name unknown", "no answer"],
)
async def test_a_network_that_is_away_for_a_while_is_waited_for(transport, open_tcp, words, caplog, monkeypatch):
    exchange, attempts = ScriptedExchange(), []
    there = trio.open_tcp_stream

    async def away_at_first(*args, **options):
        attempts.append(args)
        return await (open_tcp if len(attempts) < 3 else there)(*args, **options)

    monkeypatch.setattr(trio, "open_tcp_stream", away_at_first)
    async with exchange.open() as url:
        connection = Connection(url, transport=transport, connect_timeout=0.2, reconnect=Reconnect(initial=0.01))
        async with Pipeline.create(connection) as pipeline:
            pipeline.start()
            with trio.fail_after(10):
                await connection.wait_connected()
    assert len(attempts) == 3 and caplog.text.count(words) == 2


@pytest.mark.parametrize("code", [1001, 1002, 1003, 1007, 1008, 1009, 1011, 1012, 1013, 4000])
async def test_whatever_the_code_it_is_closed_with_it_connects_again(code, autojump_clock):
    exchange = ScriptedExchange()
    async with in_memory_steady(exchange, subscribe=["trade"]) as connection, running(connection) as taken:
        await eventually(lambda: connection.subscriptions)
        with trio.move_on_after(1):
            await exchange.clients[0].aclose(code, "bye")
        await eventually(lambda: connection.stats.connections == 2 and connection.subscriptions)
        assert [mark.code for mark in taken.marks() if type(mark) is Disconnected] == [code]


async def test_where_nothing_listens_it_is_tried_again_until_something_does():
    exchange = ScriptedExchange()
    async with serve_tcp(lambda stream: stream.aclose()) as port:
        pass
    connection = Connection(f"ws://127.0.0.1:{port}/realtime", reconnect=Reconnect(initial=0.05, factor=1))
    async with Pipeline.create(connection) as pipeline, trio.open_nursery() as nursery:
        pipeline.start()
        await trio.sleep(0.2)
        assert not connection.connected

        async def handle(request):
            await exchange(request)

        nursery.start_soon(partial(trio_websocket.serve_websocket, handle, "127.0.0.1", port, None))
        with trio.fail_after(10):
            await connection.wait_connected()
        nursery.cancel_scope.cancel()


async def test_the_last_of_so_many_attempts_ends_the_stream(autojump_clock):
    exchange = ScriptedExchange()
    async with in_memory_steady(exchange, reconnect=Reconnect(attempts=2)) as connection:
        connection._transport.failures.extend(map(ConnectionFailed, ("the first", "the second", "the third")))
        with pytest.raises(ConnectionFailed, match="the third"):
            async with running(connection):
                await trio.sleep_forever()


async def test_attempts_are_counted_whatever_counts_as_stable(autojump_clock):
    exchange = ScriptedExchange()
    async with in_memory_steady(exchange, reconnect=Reconnect(attempts=2, stable=0)) as connection:
        connection._transport.failures.extend(ConnectionFailed(f"number {number}") for number in range(9))
        with pytest.raises(ConnectionFailed, match="number 2"):
            async with running(connection):
                await trio.sleep_forever()


@pytest.mark.parametrize("wrong", [True, 5, "always"])
def test_what_is_no_reconnect_is_refused_at_once(wrong):
    with pytest.raises(ValueError, match="reconnect is a Reconnect"):
        Connection("testnet", reconnect=wrong)


async def test_a_clean_close_is_no_reason_to_stay_away_from_a_server_that_answers(autojump_clock):
    exchange = ScriptedExchange()
    async with in_memory_steady(exchange, subscribe=["trade"]) as connection, running(connection) as taken:
        await eventually(lambda: connection.subscriptions)
        with trio.move_on_after(1):
            await exchange.clients[0].aclose(1000, "maintenance")
        await eventually(lambda: len(taken.marks()) == 3)
        assert [mark.code for mark in taken.marks() if type(mark) is Disconnected] == [1000]


async def test_a_clean_close_of_a_server_that_played_all_it_had_is_the_end():
    async def replay(request):
        ws = await request.accept()
        await ws.send_message('{"table":"trade","action":"insert","data":[]}')
        await ws.aclose(1000, "WS replay finished")

    async with serve_websocket(replay) as url, running(Connection(url, subscribe=["trade"])) as taken:
        await eventually(lambda: len(taken) == 3)
    assert taken.kinds() == ["Connected", "RawMessage", "Disconnected"]


async def test_a_server_that_answered_once_is_no_replay_however_early_it_closes_later(autojump_clock):
    exchange, closes = ScriptedExchange(), []

    async def handle(request):
        if len(exchange.headers) in (1, 2) and len(closes) < 2:  # as one that is just starting
            closes.append(await (await request.accept()).aclose(1000))
        else:
            await exchange(request)

    async with trio.open_nursery() as nursery:
        server = InMemory(exchange, nursery)
        connection = Connection("ws://in.memory/realtime", transport=server, reconnect=STEADY, subscribe=["trade"])
        async with running(connection) as taken:
            await eventually(lambda: connection.subscriptions)
            server.exchange = handle
            await lose(connection)
            await eventually(lambda: len(closes) == 2 and connection.subscriptions)
            assert len(taken.marks()) == 7 and connection.stats.connections == 4
        nursery.cancel_scope.cancel()


async def test_a_server_that_greets_is_no_replay(autojump_clock):
    closes = []

    async def greet(request):
        ws = await request.accept()
        await ws.send_message('{"info":"Welcome to the BitMEX Realtime API.","version":"2.0.0"}')
        closes.append(await ws.aclose(1000))

    async with trio.open_nursery() as nursery:
        server = InMemory(greet, nursery)
        connection = Connection("ws://in.memory/realtime", transport=server, reconnect=STEADY)
        async with running(connection):
            await eventually(lambda: len(closes) > 2)
        nursery.cancel_scope.cancel()


async def test_a_periodic_resync_does_not_make_others_rare(autojump_clock):
    exchange = ScriptedExchange()
    async with in_memory_steady(exchange, subscribe=["trade"], resync_every=10) as connection, running(connection):
        await trio.sleep(605)
        exchange.commands.clear()
        connection.resync("trade")
        await trio.sleep(0.5)
        assert [op for op, _ in exchange.commands] == ["unsubscribe", "subscribe"]


@pytest.mark.parametrize("code", [1000, 1001, 1006, 1012])
async def test_without_reconnecting_a_clean_close_ends_the_stream_and_any_other_raises(code, autojump_clock):
    exchange = ScriptedExchange()
    async with in_memory(exchange, subscribe=["trade"]) as connection:

        async def run():
            async with Pipeline.create(connection) as pipeline, pipeline.tap() as tap:
                async for item in tap:
                    if type(item) is RawMessage and "partial" in item.data:
                        if code == 1006:
                            await connection._transport.drop()
                        else:
                            with trio.move_on_after(1):
                                await exchange.clients[0].aclose(code, "bye")

        if code == 1000:
            await run()
        else:
            with pytest.raises(ConnectionClosed) as error:
                await run()
            assert error.value.code == code


# --- subscriptions, signing in, the switch


async def test_a_topic_unsubscribed_while_disconnected_stays_away(autojump_clock):
    exchange = ScriptedExchange()
    async with in_memory_steady(exchange, subscribe=["trade", "quote"]) as connection, running(connection):
        await eventually(lambda: len(connection.subscriptions) == 2)
        exchange.commands.clear()
        await lose(connection)
        connection.unsubscribe_soon("quote")
        await eventually(lambda: connection.subscriptions)
        await trio.sleep(5)
        assert connection.subscriptions == {"trade"} and exchange.commands == [("subscribe", ["trade"])]


async def test_a_topic_subscribed_while_disconnected_is_there_afterwards(autojump_clock):
    exchange = ScriptedExchange()
    async with in_memory_steady(exchange, subscribe=["trade"]) as connection, running(connection):
        await eventually(lambda: connection.subscriptions)
        connection._transport.failures.extend(ConnectionFailed("not yet") for _ in range(4))
        await lose(connection)
        began = trio.current_time()
        await connection.subscribe("quote")
        assert trio.current_time() - began > connection.subscribe_timeout, "it waits for the connection"
        assert connection.subscriptions == {"trade", "quote"}


async def test_subscribing_twice_and_giving_up_in_flight_race_neither(autojump_clock):
    exchange = ScriptedExchange()
    async with in_memory_steady(exchange) as connection, running(connection), trio.open_nursery() as nursery:
        await connection.wait_connected()
        answer, exchange.answer = exchange.answer, unanswered
        for _ in range(3):
            nursery.start_soon(connection.subscribe, "trade")
        nursery.start_soon(connection.subscribe, "quote")
        await trio.testing.wait_all_tasks_blocked()
        exchange.answer = answer
        connection.unsubscribe_soon("quote")
        await lose(connection)
        await trio.sleep(10)
        assert connection.subscriptions == exchange.held == {"trade"}


async def test_a_topic_refused_on_reconnect_is_retried_and_then_reported(autojump_clock, caplog):
    exchange = ScriptedExchange()
    async with in_memory_steady(exchange, subscribe=["trade", "orderBookL2:XBTH24"]) as connection:
        async with running(connection) as taken:
            await eventually(lambda: len(connection.subscriptions) == 2)
            exchange.refuse["orderBookL2:XBTH24"] = 400, "Unknown or expired symbol."
            exchange.commands.clear()
            await lose(connection)
            await trio.sleep(60)
            asked = [args for op, args in exchange.commands if "orderBookL2:XBTH24" in args]
            assert len(asked) == 4, "with the others, and three times more"
            (mark,) = [item for item in taken if type(item) is StateLost]
            assert mark.topic == "orderBookL2:XBTH24" and "Unknown or expired symbol" in mark.reason
            assert connection.subscriptions == {"trade"} and connection.connected
    assert "is given up" in caplog.text


async def test_a_topic_that_is_refused_for_a_moment_only_comes_back(autojump_clock):
    exchange = ScriptedExchange()
    async with in_memory_steady(exchange, subscribe=["trade"]) as connection, running(connection) as taken:
        await eventually(lambda: connection.subscriptions)
        exchange.refuse["trade"] = 503, "The system is currently overloaded."
        await lose(connection)
        await trio.sleep(3.5)
        del exchange.refuse["trade"]
        await trio.sleep(10)
        assert connection.subscriptions == {"trade"}
        assert not [item for item in taken if type(item) is StateLost]


async def test_each_of_many_who_ask_for_bad_topics_at_once_gets_its_own_refusal(autojump_clock):
    exchange, refused = ScriptedExchange(), set()
    topics = [f"trade:S{number}" for number in range(500)]
    exchange.refuse.update((topic, (400, f"Unknown symbol {topic}")) for topic in topics)

    async def ask(topic):
        with pytest.raises(SubscriptionError, match=f"Unknown symbol {topic}$") as error:
            await connection.subscribe(topic)
        refused.add(error.value.topic)

    async with in_memory_steady(exchange) as connection, running(connection):
        await connection.wait_connected()
        async with trio.open_nursery() as nursery:
            for topic in topics:
                nursery.start_soon(ask, topic)
        await connection.subscribe("quote")
    assert refused == set(topics)


async def test_a_topic_refused_at_the_start_is_final(autojump_clock):
    exchange = ScriptedExchange()
    exchange.refuse["nonsense"] = 400, "Unknown table: nonsense"
    async with in_memory_steady(exchange, subscribe=["trade", "nonsense"]) as connection:
        with pytest.raises(SubscriptionError, match="Unknown table"):
            async with running(connection):
                await trio.sleep_forever()


async def test_each_handshake_is_signed_anew_and_before_private_topics(autojump_clock):
    exchange = ScriptedExchange()
    async with in_memory_steady(exchange, subscribe=["order"], **SIGNED_IN) as connection, running(connection):
        await eventually(lambda: connection.subscriptions)
        await lose(connection)
        await trio.sleep(5)
        assert connection.subscriptions == {"order"}
    signed = [dict(headers)[b"api-signature"] for headers in exchange.headers]
    assert len(signed) == 2 and signed[0] != signed[1]


async def test_a_key_that_is_refused_on_reconnect_is_final(autojump_clock):
    exchange = ScriptedExchange()
    async with in_memory_steady(exchange, **SIGNED_IN) as connection:
        refused = ConnectionFailed("refused with HTTP status 401: Invalid API Key.", status=401)
        with pytest.raises(AuthenticationError):
            async with running(connection):
                await connection.wait_connected()
                connection._transport.failures.append(refused)
                await lose(connection)
                await trio.sleep_forever()


async def test_the_dead_mans_switch_is_armed_again_at_once(autojump_clock):
    exchange = ScriptedExchange()
    async with in_memory_steady(exchange, dead_mans_switch=True, **SIGNED_IN) as connection, running(connection):
        await trio.sleep(7)
        await lose(connection)
        await trio.sleep(20)
        began = exchange.switched[0][0]
        assert [round(at - began) for at, _ in exchange.switched] == [0, 8, 23]


# --- disconnects at bad moments


async def test_ten_disconnects_in_a_row(autojump_clock):
    exchange = ScriptedExchange()
    async with in_memory_steady(exchange, subscribe=["trade"]) as connection, running(connection) as taken:
        for number in range(10):
            await eventually(lambda: connection.subscriptions)
            await exchange.send({"table": "trade", "action": "insert", "data": [{"number": number}]})
            await lose(connection)
        await eventually(lambda: connection.subscriptions)
        assert [type(mark) for mark in taken.marks()] == [Connected, *[Disconnected, Connected] * 10]
        assert connection.stats.connections == 11 and connection.stats.reconnects == 10
        inserts = [item.data for item in taken if type(item) is RawMessage and '"number"' in item.data]
        assert len(inserts) == 10, "what came before the end was delivered"


async def test_disconnect_during_the_handshake():
    exchange, halves = ScriptedExchange(), []

    async def handle(stream):
        if len(halves) < 3:
            halves.append(await stream.receive_some())
            if len(halves) > 1:
                await stream.send_all(b"HTTP/1.1 101 Switch" if len(halves) == 2 else b"HTTP/1.1 101 Switching\r\n\r\n")
            await stream.aclose()
            return
        async with trio.open_nursery() as nursery:
            with suppress(trio_websocket.ConnectionClosed):
                await exchange(await trio_websocket.wrap_server_stream(nursery, stream))

    async with serve_tcp(handle) as port:
        connection = Connection(f"ws://127.0.0.1:{port}/realtime", reconnect=Reconnect(initial=0.01))
        async with Pipeline.create(connection) as pipeline:
            pipeline.start()
            with trio.fail_after(10):
                await connection.wait_connected()
    assert len(halves) == 3


async def test_disconnect_during_a_partial(autojump_clock):
    exchange = ScriptedExchange()
    rows = [{"symbol": "XBTUSD", "id": number, "side": "Buy", "size": 1, "price": number} for number in range(1, 2000)]
    whole = partial_of("orderBookL2:XBTUSD", rows)
    merger = OrderBookMerger()
    async with in_memory_steady(exchange) as connection, running(connection, Decoder(), merger) as taken:
        await connection.wait_connected()
        half = {**whole, "data": rows[:1000]}
        wire = connection._transport.streams[-1]
        exchange.partials["orderBookL2:XBTUSD"] = whole
        text = str(half).encode()
        await trio.testing.wait_all_tasks_blocked()
        # the first half of a frame of 126 bytes or more, and then nothing
        await wire.send_all(b"\x81\x7e" + len(text[:60000]).to_bytes(2, "big") + text[:30000])
        await trio.sleep(0.1)
        await wire.aclose()
        await trio.sleep(3)
        await connection.subscribe("orderBookL2:XBTUSD")
        await eventually(lambda: taken)
        assert [len(update.book.bids) for update in taken if type(update) is BookUpdate] == [1999]
        assert not merger.books["XBTUSD"].stale


async def unanswered(ws, command):
    await trio.lowlevel.checkpoint()


async def test_disconnect_during_subscribe(autojump_clock):
    exchange = ScriptedExchange()
    async with in_memory_steady(exchange) as connection, running(connection), trio.open_nursery() as nursery:
        await connection.wait_connected()
        answer, exchange.answer = exchange.answer, unanswered
        nursery.start_soon(connection.subscribe, "trade")
        await trio.sleep(1)
        exchange.answer = answer
        await lose(connection)
        await trio.sleep(5)
        assert connection.subscriptions == {"trade"}


async def test_disconnect_during_close():
    async def handle(stream):
        async with trio.open_nursery() as nursery:
            request = await trio_websocket.wrap_server_stream(nursery, stream)
            ws = await request.accept()
            with pytest.raises(trio_websocket.ConnectionClosed):
                await ws.get_message()
            await trio.aclose_forcefully(stream)
            nursery.cancel_scope.cancel()

    before = open_sockets()
    async with serve_tcp(handle) as port:
        connection = Connection(f"ws://127.0.0.1:{port}/realtime")
        with trio.fail_after(5):
            async with Pipeline.create(connection) as pipeline:
                pipeline.start()
                await connection.wait_connected()
    assert open_sockets() == before


# --- the heartbeat


async def test_a_silent_server_is_pinged_and_one_that_answers_stays(autojump_clock):
    exchange, pings = ScriptedExchange(), []
    async with in_memory_steady(exchange) as connection, running(connection) as taken:
        await connection.wait_connected()
        connection._session.link.transport.ping = counted(connection._session.link.transport.ping, pings)
        await trio.sleep(600)
        assert len(pings) == pytest.approx(120, abs=65) and connection.stats.connections == 1
        assert [type(mark) for mark in taken.marks()] == [Connected]


def counted(call, calls):
    async def count():
        calls.append(trio.current_time())
        await call()

    return count


async def test_a_server_that_does_not_answer_is_given_up_after_ten_seconds(autojump_clock, caplog):
    ends = []

    def deaf(url, **options):
        client, server = trio.testing.memory_stream_pair()
        ends.append(server)
        return WebsocketTransport(url, stream=client, **options)

    connection = Connection("ws://in.memory/realtime", transport=deaf, reconnect=STEADY)
    async with running(connection) as taken:
        await trio.sleep(0.1)
        await shake_hands(ends[0])  # and then never again a word, nor a pong
        await connection.wait_connected()
        began = trio.current_time()
        await eventually(lambda: not connection.connected)
        assert trio.current_time() - began == pytest.approx(10, abs=0.1)
        await trio.sleep(0.1)
        lost = taken.marks()[-1]
        assert type(lost) is Disconnected and "heartbeat lost" in lost.reason
        await trio.sleep(2)
        assert len(ends) == 2, "it is tried again"
    assert "heartbeat lost" in caplog.text


async def test_half_a_message_is_a_sign_of_life(autojump_clock):
    ours = []

    def slow(url, **options):
        client, server = trio.testing.memory_stream_pair()
        ours.append(server)
        return WebsocketTransport(url, stream=client, **options)

    connection = Connection("ws://in.memory/realtime", transport=slow, reconnect=STEADY)
    async with running(connection) as taken:
        await trio.sleep(0.1)
        await shake_hands(ours[0])
        await connection.wait_connected()
        await ours[0].send_all(b"\x81\x7e\x01\x00")
        for _ in range(64):  # a message that takes four minutes to come
            await trio.sleep(4)
            await ours[0].send_all(b"....")
        await eventually(lambda: len(taken) == 2)
        assert taken[-1].data == "." * 256 and connection.stats.connections == 1


async def test_a_consumer_that_blocks_for_minutes_is_no_dead_exchange_and_pings_go_on(autojump_clock):
    exchange, pings = ScriptedExchange(), []
    async with in_memory_steady(exchange, buffer_size=3, max_lag=10_000) as connection:
        async with Pipeline.create(connection) as pipeline, pipeline.tap(max_buffer_size=0):  # never read
            await connection.wait_connected()
            for number in range(20):
                await exchange.send({"number": number})
            link = connection._session.link
            link.transport.ping = counted(link.transport.ping, pings)
            began = trio.current_time()
            await trio.sleep(600)
            assert connection.stats.connections == 1 and connection.connected
            assert len(pings) >= 100 and pings[-1] - began > 590


async def test_text_ping_and_control_ping_are_answered():
    exchange = ScriptedExchange()

    async def questions():
        yield "ping"
        await trio.sleep_forever()

    async with exchange.open() as url:
        connection = Connection(url)
        async with Pipeline.create(questions(), connection) as pipeline, pipeline.tap() as tap:
            with trio.fail_after(5):
                async for item in tap:
                    if getattr(item, "data", "") == "pong":
                        break
                await exchange.clients[0].ping()  # of the server's: waits for our pong


# --- staleness


async def book_server(exchange):
    exchange.partials["orderBookL2:XBTUSD"] = partial_of(
        "orderBookL2:XBTUSD", [{"symbol": "XBTUSD", "id": 5, "side": "Buy", "size": 1, "price": 5}]
    )


async def test_deltas_between_unsubscribe_and_the_new_partial_are_dropped(autojump_clock):
    exchange = ScriptedExchange()
    await book_server(exchange)
    tables = TableApplier()
    topic = "orderBookL2:XBTUSD"
    async with in_memory_steady(exchange, subscribe=[topic]) as connection, running(
        connection, Decoder(), tables
    ) as taken:
        await eventually(lambda: taken)
        answer = exchange.answer
        asked = trio.Event()

        async def slowly(ws, command):
            asked.set()
            await trio.sleep(5)
            await answer(ws, command)

        exchange.answer = slowly
        bad = {"symbol": "XBTUSD", "id": 77, "side": "Buy", "size": 1}  # of a row that is not there
        await exchange.send({"table": "orderBookL2", "action": "update", "data": [bad]})
        await asked.wait()
        assert tables.stale
        for size in (2, 3):
            row = {"symbol": "XBTUSD", "id": 5, "side": "Buy", "size": size}
            await exchange.send({"table": "orderBookL2", "action": "update", "data": [row]})
        await trio.sleep(30)
        assert [update.action for update in taken if type(update) is TableUpdate] == ["partial", "stale", "partial"]
        assert tables.storage.orderbook["XBTUSD"]["Buy"][5]["size"] == 1 and not tables.stale
        assert connection.stats.resyncs == 1


@pytest.mark.parametrize(
    "bad",
    [
        "no JSON",
        "[1]",
        '{"table":"orderBookL2","action":"upsert","data":[]}',
        '{"table":"orderBookL2","action":"update"}',
    ],
)
async def test_one_bad_message_costs_a_resync_and_not_the_program(bad, autojump_clock, caplog):
    exchange = ScriptedExchange()
    await book_server(exchange)
    topic, tables, merger = "orderBookL2:XBTUSD", TableApplier(), OrderBookMerger()
    async with in_memory_steady(exchange, subscribe=[topic]) as connection, running(
        connection, Decoder(), tables, merger
    ) as updates:
        await eventually(lambda: updates)
        answer, exchange.answer = exchange.answer, unanswered
        await exchange.send(bad)
        await trio.sleep(0.1)
        assert merger.books["XBTUSD"].stale and list(tables.stale) == [topic]
        assert [update.stale for update in updates] == [False, True], "in stream order, once"
        exchange.answer = answer
        await answer(exchange.clients[0], {"op": "unsubscribe", "args": [topic]})
        await answer(exchange.clients[0], {"op": "subscribe", "args": [topic]})
        await eventually(lambda: not merger.books["XBTUSD"].stale)
        assert [update.stale for update in updates] == [False, True, False] and not tables.stale
        assert updates[-1].changes is None and updates[-1].best_bid == (5.0, 1)
        assert connection.stats.resyncs == 1 and connection.stats.reconnects == 0
    assert "cannot be decoded" in caplog.text


async def test_who_prefers_it_gets_one_bad_message_as_an_error(autojump_clock):
    exchange = ScriptedExchange()
    async with in_memory_steady(exchange, subscribe=["trade"]) as connection:
        with pytest.raises(DecodeError):
            async with running(connection, Decoder(on_error="raise")):
                await eventually(lambda: connection.subscriptions)
                await exchange.send("no JSON")
                await trio.sleep_forever()


async def test_a_partial_that_does_not_come_is_asked_for_anew(autojump_clock, caplog):
    exchange = ScriptedExchange()
    exchange.partials["trade"] = {"info": "no partial"}
    async with in_memory_steady(exchange, subscribe=["trade"]) as connection:
        async with running(connection, Decoder(), TableApplier()) as taken:
            await trio.sleep(29)
            assert [op for op, _ in exchange.commands] == ["subscribe"]
            exchange.partials.clear()
            await trio.sleep(2)
            assert [op for op, _ in exchange.commands] == ["subscribe", "unsubscribe", "subscribe"]
            assert [update.action for update in taken] == ["partial"] and connection.stats.resyncs == 1
            await trio.sleep(300)
            assert len(exchange.commands) == 3
    assert "the partial of trade has not come" in caplog.text


async def test_resyncs_of_a_topic_that_never_heals_become_rare(autojump_clock):
    exchange = ScriptedExchange()
    await book_server(exchange)
    topic = "orderBookL2:XBTUSD"
    async with in_memory_steady(exchange, subscribe=[topic]) as connection, running(
        connection, Decoder(), TableApplier()
    ):
        await eventually(lambda: connection.subscriptions)
        bad = {"symbol": "XBTUSD", "id": 77, "side": "Buy", "size": 1}
        for _ in range(3000):
            await trio.sleep(0.1)
            await exchange.send({"table": "orderBookL2", "action": "update", "data": [bad]})
        asked = [op for op, args in exchange.commands].count("unsubscribe")
        assert 5 <= asked <= 12, "1, 2, 4, ... 60 s apart, for five minutes"
        assert connection.stats.resyncs in (asked, asked + 1)


async def test_what_a_user_asks_for_anew_goes_out_at_once_however_often_state_was_lost(autojump_clock):
    exchange = ScriptedExchange()
    await book_server(exchange)
    topic = "orderBookL2:XBTUSD"
    async with in_memory_steady(exchange, subscribe=[topic]) as connection, running(
        connection, Decoder(), TableApplier()
    ) as taken:
        await eventually(lambda: taken)
        bad = {"symbol": "XBTUSD", "id": 77, "side": "Buy", "size": 1}
        for _ in range(6):
            await exchange.send({"table": "orderBookL2", "action": "update", "data": [bad]})
            await trio.sleep(10)
        await exchange.send({"table": "orderBookL2", "action": "update", "data": [bad]})
        await trio.sleep(1)
        assert taken[-1].action == "stale", "the library has to wait its turn"
        for _ in range(5):
            exchange.commands.clear()
            connection.resync(topic)
            connection.resync(topic)
            await trio.sleep(0.1)
            assert [op for op, _ in exchange.commands] == ["unsubscribe", "subscribe"], "once while it is under way"
            assert taken[-1].action == "partial"


async def test_a_blocked_tap_does_not_hide_a_disconnect_from_the_live_objects_of_others(autojump_clock):
    exchange = ScriptedExchange()
    await book_server(exchange)
    tables, books = TableApplier(), OrderBookMerger()
    async with in_memory_steady(exchange, subscribe=["orderBookL2:XBTUSD"]) as connection:
        async with Pipeline.create(connection, Decoder(), tables, books) as pipeline:
            async with pipeline.tap(overflow="latest") as latest, pipeline.tap(max_buffer_size=1):  # never read
                await latest.receive()
                book = books.books["XBTUSD"]
                assert not book.stale and not tables.stale
                for number in range(50):
                    row = {"symbol": "XBTUSD", "id": 5, "side": "Buy", "size": number}
                    await exchange.send({"table": "orderBookL2", "action": "update", "data": [row]})
                await trio.sleep(1)
                await lose(connection)
                await trio.sleep(0.1)
                assert book.stale and tables.stale, "while the stream stands still"


class AllAtOnce:
    """A transport that gives three messages in one go, and through which nothing can be written; there is no other."""

    attempts = 0
    messages = ('{"info": "Welcome"}', "two", "three")

    def __init__(self, url, **options):
        self.heard = trio.current_time()

    async def connect(self, nursery):
        AllAtOnce.attempts += 1
        if AllAtOnce.attempts > 1:
            await trio.sleep_forever()

    async def receive(self):
        await trio.lowlevel.checkpoint()
        return self.messages

    async def send(self, message):
        await trio.lowlevel.checkpoint()

    async def ping(self):
        raise TransportClosed(1006, "nothing goes out")

    async def aclose(self, code=1000, reason=None):
        await trio.lowlevel.checkpoint()


async def test_all_that_was_read_in_one_go_is_handed_out_after_a_loss_that_was_noticed_in_the_middle_of_it(
    autojump_clock, monkeypatch
):
    monkeypatch.setattr(AllAtOnce, "attempts", 0)
    connection = Connection("ws://in.memory/realtime", transport=AllAtOnce, buffer_size=1, connect_timeout=600)
    async with Pipeline.create(connection) as pipeline, pipeline.tap(max_buffer_size=0) as items:
        pipeline.start()
        await trio.sleep(60)
        assert not connection.connected
        with trio.fail_after(10):
            taken = [await items.receive()]
            while type(taken[-1]) is not Disconnected:
                taken.append(await items.receive())
    data = [item.data for item in taken if type(item) is RawMessage]
    assert len(data) >= 3 and len(data) % 3 == 0
    assert data == [*AllAtOnce.messages] * (len(data) // 3)


async def test_a_server_that_comes_and_goes_fills_no_buffer_that_nobody_reads(autojump_clock):
    async def hang_up(request):
        ws = await request.accept()
        with trio.move_on_after(0.1):
            await ws.aclose(1012)

    async with trio.open_nursery() as nursery:
        server = InMemory(hang_up, nursery)
        policy = Reconnect(initial=0.1, factor=1, jitter=0)
        connection = Connection("ws://in.memory/realtime", transport=server, reconnect=policy, buffer_size=10)
        async with Pipeline.create(connection) as pipeline, pipeline.tap(max_buffer_size=1) as tap:
            await trio.sleep(300)
            assert connection.stats.waiting <= 10 + 64 + 2
            began = len(server.attempts)
            for _ in range(50):
                await tap.receive()
            await trio.sleep(5)
            assert len(server.attempts) > began, "it goes on when there is room"
        nursery.cancel_scope.cancel()


async def test_stats_are_right_through_all_of_it(autojump_clock):
    exchange = ScriptedExchange()
    async with in_memory_steady(exchange, subscribe=["trade"]) as connection:
        assert connection.stats.connections == connection.stats.messages == 0 and not connection.stats.connected
        async with running(connection) as taken:
            for number in range(4):
                await eventually(lambda: connection.subscriptions)
                stats = connection.stats
                assert stats.connected and stats.connections == number + 1 and stats.reconnects == number
                assert stats.subscriptions == 1
                connection.resync("trade")
                await eventually(lambda: connection._protocol.settled("trade"))
                await trio.sleep(0.1)
                await lose(connection)
                assert not connection.stats.connected
                await trio.sleep(1000)
        raw = [item for item in taken if type(item) is RawMessage]
        stats = connection.stats
        assert stats.messages == len(raw) and stats.bytes == sum(len(item.data) for item in raw)
        assert stats.resyncs == 4 and stats.waiting == stats.waiting_bytes == 0 and stats.lag < 1


@pytest.mark.parametrize("step", [-3600, 3600])
async def test_received_never_goes_back_and_runs_on_when_the_wall_clock_is_set(step, autojump_clock, monkeypatch):
    began, wall = trio.current_time(), 1_700_000_000

    def clock():
        return int((wall + trio.current_time() - began) * 1e9)

    monkeypatch.setattr("bitmex_streams.sections.connection.time.time_ns", clock)
    exchange = ScriptedExchange()
    async with in_memory_steady(exchange) as connection, running(connection) as taken:
        await connection.wait_connected()
        await trio.sleep(60)
        wall += step  # by NTP, say, or when a virtual machine is resumed
        await exchange.send("{}")
        await eventually(lambda: taken and getattr(taken[-1], "data", "") == "{}")
        assert taken[-1].received == pytest.approx(clock() - step * 10**9, abs=1e9), "no step within a connection"
        last = taken[-1].received
        await lose(connection)
        await connection.wait_connected()
        for seconds in range(1, 4):
            await trio.sleep(10)
            await exchange.send("{}")
            await trio.sleep(1)
            runs_on = last + seconds * 11 * 10**9 + max(0, step) * 10**9
            assert taken[-1].data == "{}" and taken[-1].received == pytest.approx(runs_on, abs=3e9)
        times = [item.received for item in taken]
        assert times == sorted(times)

        wall += max(0, -step)  # it is not behind any more
        await lose(connection)
        await connection.wait_connected()
        await exchange.send("{}")
        await trio.sleep(1)
        assert taken[-1].received == pytest.approx(clock(), abs=2e9), "and is obeyed again"


async def test_a_periodic_resync_brings_new_partials(autojump_clock):
    exchange = ScriptedExchange()
    async with in_memory_steady(exchange, subscribe=["trade", "quote"], resync_every=100) as connection:
        async with running(connection, Decoder(), TableApplier()) as taken:
            await trio.sleep(350)
            told = [(update.table, update.action, update.reason) for update in taken]
            assert told[:2] == [("trade", "partial", ""), ("quote", "partial", "")]
            assert len(told) == 2 + 3 * 4
            for number in range(2, len(told), 4):  # stale between the two halves, when no deltas are sent
                assert told[number : number + 4] == [
                    *((table, "stale", "unsubscribed") for table in ("trade", "quote")),
                    *((table, "partial", "") for table in ("trade", "quote")),
                ]


async def test_watchers_hear_of_each_loss_once(autojump_clock):
    exchange, heard = ScriptedExchange(), []
    async with in_memory_steady(exchange) as connection:
        connection.watch(lambda source, reason: heard.append(reason))
        async with running(connection):
            for _ in range(3):
                await connection.wait_connected()
                await lose(connection)
    assert heard[0] == CONNECTING and len(heard) == 4 and all("1006" in reason for reason in heard[1:])


# --- leaving


@pytest.mark.parametrize("transport", ["default", "fast"])
@pytest.mark.parametrize("passes", range(0, 60, 3))
async def test_cancelling_at_any_await_leaves_nothing_behind_and_never_half_a_frame(passes, transport):
    frames, sockets = [], open_sockets()
    tasks = trio.lowlevel.current_statistics().tasks_living

    async def handle(request):
        ws = await request.accept()
        await ws.send_message('{"info":"welcome"}')
        try:
            while True:
                frames.append(await ws.get_message())
        except trio_websocket.ConnectionClosed as closed:
            frames.append(closed.reason.code)

    async with serve_websocket(handle) as url:
        connection = Connection(url, transport=transport, subscribe=["trade"], dead_mans_switch=True, **SIGNED_IN)
        with trio.CancelScope() as scope:
            async with Pipeline.create(connection, Decoder()) as pipeline, trio.open_nursery() as nursery:
                pipeline.start()
                nursery.start_soon(connection.subscribe, "quote", "order")
                for _ in range(passes):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        await trio.sleep(0.05)
    assert not [code for code in frames if type(code) is int and code != 1000], "no frame was cut"
    await eventually(lambda: open_sockets() == sockets and trio.lowlevel.current_statistics().tasks_living == tasks)


@pytest.mark.parametrize("moment", [0.0, 0.5, 1.0, 1.5, 2.5, 4.9, 5.0, 5.1, 9.0])
async def test_cancelling_at_any_moment_of_a_reconnect_ends_at_once(moment, autojump_clock):
    exchange = ScriptedExchange()
    tasks = trio.lowlevel.current_statistics().tasks_living
    async with in_memory_steady(exchange, subscribe=["trade", "order"], **SIGNED_IN) as connection:
        with trio.CancelScope() as scope:
            async with running(connection), trio.open_nursery() as nursery:
                await eventually(lambda: len(connection.subscriptions) == 2)
                connection._transport.failures.append(ConnectionFailed("not yet"))
                await connection._transport.drop()
                nursery.start_soon(connection.subscribe, "quote")
                nursery.start_soon(connection.authenticate, "anotherKey-1234567", "anotherSecret-1234567")
                scope.deadline = began = trio.current_time() + moment
                await trio.sleep_forever()
        assert trio.current_time() - began <= 2 and not connection.connected
    assert trio.lowlevel.current_statistics().tasks_living == tasks


async def test_leaving_while_it_waits_for_the_next_attempt_ends_at_once(autojump_clock):
    exchange = ScriptedExchange()
    async with in_memory_steady(exchange) as connection:
        connection._transport.failures.extend(ConnectionFailed("no") for _ in range(100))
        async with running(connection):
            await trio.sleep(200)
            left = trio.current_time()
        assert trio.current_time() - left < 0.1


async def test_what_is_fed_while_disconnected_is_sent_afterwards(autojump_clock):
    exchange = ScriptedExchange()
    send, feed = trio.open_memory_channel(100)
    async with in_memory_steady(exchange) as connection:
        async with Pipeline.create(feed, connection) as pipeline:
            pipeline.start()
            await connection.wait_connected()
            await send.send('{"op":"x","args":"1"}')
            await eventually(lambda: exchange.texts)
            await lose(connection)
            await send.send('{"op":"x","args":"2"}')
            await send.send('{"op":"x","args":"3"}')
            await trio.sleep(5)
            assert exchange.texts[-2:] == ['{"op":"x","args":"2"}', '{"op":"x","args":"3"}']
