"""Connection: signing in, the dead man's switch, and what is shown of it."""

import json
import logging
import os
import re
import signal
import time
import traceback
from contextlib import asynccontextmanager

import pytest
import slurry
import trio

from bitmex_streams import (
    AuthenticationError,
    ConnectionClosed,
    ConnectionFailed,
    Decoder,
    Pipeline,
    Reconnect,
    SubscriptionError,
)
from bitmex_streams.auth import Credentials, signature
from bitmex_streams.exchange import open_exchange
from bitmex_streams.messages import Authenticated, CancelAllAfter, Connected, RawMessage
from bitmex_streams.sections.connection import Connection
from tests.servers import ScriptedExchange, in_memory, receive_head, serve_tcp, serve_websocket

KEY = "k3yOfAnAccount-0123456789"
SECRET = "s3cretOfAnAccount-0123456789-abcdefghijklmnop"
SIGNED_IN = {"api_key": KEY, "api_secret": SECRET}


async def eventually(condition):
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110 - what happens at the server's end has no event here
            await trio.sleep(0.005)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"api_key": KEY}, "api_key without api_secret"),
        ({"api_secret": SECRET}, "api_secret without api_key"),
        ({"dead_mans_switch": True}, "give api_key and api_secret"),
        ({"api_key": KEY, "api_secret": "two words"}, "api_secret must be"),
    ],
)
def test_half_of_an_account_is_an_error_at_construction(options, words):
    with pytest.raises(ValueError, match=words) as error:
        Connection("testnet", **options)
    assert KEY not in str(error.value) and "two words" not in str(error.value)


async def test_the_handshake_is_signed():
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        connection = Connection(url, **SIGNED_IN, subscribe=["order"])
        async with Pipeline.create(connection) as pipeline, pipeline.tap() as tap:
            assert type(await tap.receive()) is Connected
    headers = {name.lower(): value.decode() for name, value in exchange.headers[0].items()}
    expires = int(headers[b"api-expires"])
    assert headers[b"api-key"] == KEY and 58 < expires - time.time() < 700
    assert headers[b"api-signature"] == signature(SECRET, "GET", "/realtime", expires)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("Invalid API Key.", "key"),
        ("Signature not valid.", "signature"),
        ("This request has expired - `expires` is in the past. Current time: 1518064236", "clock"),
        (f"I do not know the key {KEY}.", "key"),
    ],
)
async def test_a_handshake_that_is_refused_says_whether_key_signature_or_clock_is_wrong(words, reason):
    async def refuse(request):
        await request.reject(401, body=json.dumps({"error": {"message": words, "name": "HTTPError"}}).encode())

    async with serve_websocket(refuse) as url:
        with pytest.raises(AuthenticationError) as error:
            async with Pipeline.create(Connection(url, **SIGNED_IN)) as pipeline, pipeline.tap() as tap:
                await tap.receive()
    assert error.value.reason == reason and error.value.status == 401
    assert KEY not in str(error.value)
    assert error.value.__cause__ is None, "which would show what the server said"


@pytest.mark.parametrize("transport", ["default", "fast"])
@pytest.mark.parametrize("status", ["200 OK", "400 Bad", "401 Unauthorized", "403 Forbidden", "503 Overloaded", None])
@pytest.mark.parametrize("padding", [0, 30, 150, 180])
async def test_a_server_that_repeats_the_handshake_shows_no_secret_in_any_traceback(transport, status, padding):
    heads = []

    async def repeat(stream):
        head = await receive_head(stream)
        heads.append(head)
        body = b"." * padding + head + head
        if status is not None:
            length = b"Content-Length: %d" % len(body)
            body = b"HTTP/1.1 " + status.encode() + b"\r\nX-You-Said: " + head.replace(b"\r\n", b" ") + b"\r\n" + (
                length + b"\r\n\r\n" + body
            )
        await stream.send_all(body)

    async with serve_tcp(repeat) as port:
        connection = Connection(f"ws://127.0.0.1:{port}/realtime", transport=transport, reconnect=None, **SIGNED_IN)
        with pytest.raises((ConnectionFailed, AuthenticationError)) as error:
            async with Pipeline.create(connection) as pipeline, pipeline.tap() as tap:
                await tap.receive()
    shown = "".join(traceback.format_exception(error.value))
    (signed,) = re.findall(rb"(?i)api-signature: ([0-9a-f]{64})", heads[0])
    for secret in (KEY, SECRET, signed.decode()):
        for start in range(len(secret) - 12):
            assert secret[start : start + 12] not in shown


@pytest.mark.parametrize("transport", ["default", "fast"])
async def test_what_the_server_says_later_is_hidden_wherever_it_turns_up(transport, caplog):
    caplog.set_level(logging.DEBUG)
    exchange = ScriptedExchange()
    exchange.refuse["trade:NONE"] = 400, f"{KEY} may not have trade:NONE"
    heard, items = [], []
    async with exchange.open() as url:
        connection = Connection(url, transport=transport, reconnect=None, **SIGNED_IN)
        connection.watch(lambda source, reason: heard.append(reason))
        with pytest.raises(ConnectionClosed) as error:
            async with Pipeline.create(connection) as pipeline, pipeline.tap(max_buffer_size=100) as tap:
                await connection.wait_connected()
                with pytest.raises(SubscriptionError) as refused:
                    await connection.subscribe("trade:NONE")
                with trio.move_on_after(1):
                    await exchange.clients[0].aclose(4000, f"go away, {KEY}")
                async for item in tap:
                    items.append(item)
    logged = [record.getMessage() for record in caplog.records if record.name.startswith("bitmex_streams")]
    said = [str(error.value), error.value.reason, str(refused.value), *heard, *map(repr, items), *logged]
    assert KEY not in "".join(said)
    assert "go away, ***" in str(error.value) and "*** may not" in str(refused.value)


def test_a_url_with_a_signature_is_refused_without_showing_it():
    with pytest.raises(ValueError, match="give api_key and api_secret") as error:
        Connection(f"wss://host/realtime?api-expires=1&api-signature={'a' * 64}&api-key={KEY}")
    assert KEY not in str(error.value)


async def test_a_401_without_a_key_is_no_authentication_error():
    async def refuse(request):
        await request.reject(401, body=b"who are you?")

    async with serve_websocket(refuse) as url:
        with pytest.raises(ConnectionFailed, match="who are you"):
            async with Pipeline.create(Connection(url)) as pipeline, pipeline.tap() as tap:
                await tap.receive()


# --- on a connection that stands ---


async def test_signing_in_later_is_answered_and_masked_in_what_flows():
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        connection = Connection(url)
        async with Pipeline.create(connection, Decoder()) as pipeline:
            async with pipeline.tap(connection, max_buffer_size=100) as raw, pipeline.tap(max_buffer_size=100) as tap:
                await connection.wait_connected()
                await connection.authenticate(KEY, SECRET)
                while type(item := await tap.receive()) is not Authenticated:
                    pass
                assert item.request == {"op": "authKeyExpires", "args": ["***", "***", "***"]}
                while "authKeyExpires" not in getattr(item := await raw.receive(), "data", ""):
                    pass
                assert KEY not in item.data and "***" in item.data
    (op, args), *_ = exchange.commands
    assert (op, args[0]) == ("authKeyExpires", KEY)
    assert args[2] == signature(SECRET, "GET", "/realtime", args[1])


async def test_private_topics_wait_for_the_answer_to_a_sign_in_and_public_ones_do_not():
    exchange = ScriptedExchange()
    exchange.answers["authKeyExpires"] = None
    async with exchange.open() as url:
        connection = Connection(url)
        async with Pipeline.create(connection) as pipeline, trio.open_nursery() as nursery:
            pipeline.start()
            await connection.wait_connected()
            nursery.start_soon(connection.authenticate, KEY, SECRET)
            await eventually(lambda: exchange.commands)
            nursery.start_soon(connection.subscribe, "order", "trade", "position:XBTUSD")
            await eventually(lambda: "trade" in connection.subscriptions)
            await trio.sleep(0.1)
            assert exchange.commands[1:] == [("subscribe", ["trade"])]
            await exchange.send({"success": True, "request": {"op": "authKeyExpires", "args": []}})
    assert exchange.commands[2:] == [("subscribe", ["order", "position:XBTUSD"])]


async def test_a_sign_in_that_is_refused_says_why_and_the_connection_goes_on():
    exchange = ScriptedExchange()
    exchange.answers["authKeyExpires"] = {"status": 401, "error": "Signature not valid."}
    async with exchange.open() as url:
        connection = Connection(url)
        async with Pipeline.create(connection) as pipeline:
            pipeline.start()
            await connection.wait_connected()
            with pytest.raises(AuthenticationError, match="api_secret is not this key's") as error:
                await connection.authenticate(KEY, SECRET)
            assert error.value.reason == "signature" and error.value.status == 401
            await connection.subscribe("trade")
            assert connection.connected


async def test_a_sign_in_without_an_answer_is_an_error_in_time(autojump_clock):
    exchange = ScriptedExchange()
    exchange.answers["authKeyExpires"] = None
    async with in_memory(exchange) as connection, Pipeline.create(connection) as pipeline:
        pipeline.start()
        await connection.wait_connected()
        began = trio.current_time()
        with pytest.raises(AuthenticationError, match="not answered authKeyExpires"):
            await connection.authenticate(KEY, SECRET)
        assert trio.current_time() - began == pytest.approx(10)


STEADY = Reconnect(jitter=0)
OTHER_KEY, OTHER_SECRET = "an0therKey-0123456789", "an0therSecret-0123456789-abcdefghijklmnop"


@asynccontextmanager
async def signing_in(exchange, key, secret, subscribe=("order", "trade"), **options):
    """A connection whose ``authKeyExpires`` is under way, and unanswered; gives it, and what will be its outcome."""
    exchange.answers["authKeyExpires"] = None
    outcome = []

    async def sign_in():
        try:
            await connection.authenticate(key, secret)
            outcome.append("accepted")
        except AuthenticationError as error:
            outcome.append(error)

    async with in_memory(exchange, reconnect=STEADY, **options) as connection:
        async with Pipeline.create(connection) as pipeline:
            pipeline.start()
            await connection.wait_connected()
            pipeline.nursery.start_soon(sign_in)
            await eventually(lambda: exchange.commands)
            with trio.move_on_after(1):
                await connection.subscribe(*subscribe)
            yield connection, outcome


async def lose(connection):
    await connection._transport.drop()
    await eventually(lambda: not connection.connected)


def key_of(headers):
    return dict(headers).get(b"api-key", b"").decode()


async def test_a_sign_in_whose_connection_is_lost_is_asked_of_the_next_one_before_private_topics(autojump_clock):
    exchange = ScriptedExchange()
    async with signing_in(exchange, KEY, SECRET) as (connection, outcome):
        assert exchange.held == {"trade"}, "the private topic waits"
        await lose(connection)
        exchange.commands.clear()
        await trio.sleep(5)
        assert outcome == [] and [op for op, _ in exchange.commands] == ["authKeyExpires", "subscribe"]
        assert exchange.commands[1] == ("subscribe", ["trade"]), "also when its answer is late"
        await exchange.send({"success": True, "request": {"op": "authKeyExpires", "args": []}})
        await trio.sleep(1)
        assert outcome == ["accepted"] and exchange.commands[2:] == [("subscribe", ["order"])]
        assert [key_of(headers) for headers in exchange.headers] == ["", ""], "it was not accepted yet"

        await lose(connection)
        await trio.sleep(5)
        assert key_of(exchange.headers[2]) == KEY and connection.subscriptions == {"order", "trade"}


async def test_each_time_it_is_asked_it_is_signed_anew(autojump_clock):
    exchange = ScriptedExchange()
    async with signing_in(exchange, KEY, SECRET) as (connection, outcome):
        await lose(connection)
        await trio.sleep(5)
        exchange.answers.clear()
        await lose(connection)
        await eventually(lambda: outcome == ["accepted"])
    signatures = [args[2] for op, args in exchange.commands if op == "authKeyExpires"]
    assert len(signatures) == len(set(signatures)) == 3


async def test_a_wrong_key_whose_connection_is_lost_is_the_callers_error_alone(autojump_clock):
    exchange = ScriptedExchange()
    async with signing_in(exchange, OTHER_KEY, OTHER_SECRET, **SIGNED_IN) as (connection, outcome):
        await lose(connection)
        exchange.answers["authKeyExpires"] = {"status": 401, "error": "Invalid API Key."}
        await eventually(lambda: outcome)
        assert type(outcome[0]) is AuthenticationError and outcome[0].reason == "key"
        await lose(connection)
        await trio.sleep(5)
        assert connection.connected and connection.subscriptions == {"order", "trade"}
    assert [key_of(headers) for headers in exchange.headers] == [KEY] * 3, "as before"


async def test_the_time_for_its_answer_counts_from_when_the_connection_stands(autojump_clock):
    exchange = ScriptedExchange()
    async with signing_in(exchange, KEY, SECRET) as (connection, outcome):
        connection._transport.failures.extend(ConnectionFailed("not yet") for _ in range(6))
        await lose(connection)
        await trio.sleep(60)
        assert outcome == [] and connection.stats.connections == 1
        await connection.wait_connected()
        await trio.sleep(connection.subscribe_timeout - 1)
        assert outcome == []
        await trio.sleep(2)
        assert "not answered authKeyExpires" in str(outcome[0])
        await connection.subscribe("order"), "which waits for it no longer"


class HangsUp(ScriptedExchange):
    """Closes the connection as soon as it gets one of the commands ``at`` (an op, or a topic)."""

    def __init__(self, *at):
        super().__init__()
        self.at = set(at)

    async def reply(self, ws, command, answer):
        if command["op"] in self.at:
            await ws.aclose(1011)
        else:
            await super().reply(ws, command, answer)

    async def answer(self, ws, command):
        if self.at.isdisjoint(command["args"]):
            await super().answer(ws, command)
        else:
            self.commands.append((command["op"], command["args"]))
            await ws.aclose(1011)

    @property
    def ops(self):
        return [op for op, _ in self.commands]


@pytest.mark.parametrize("options", [{}, SIGNED_IN], ids=["of no account", "over another account"])
async def test_a_sign_in_whose_connection_was_lost_each_of_three_times_is_withdrawn_and_the_stream_goes_on(
    options, autojump_clock
):
    exchange = HangsUp("authKeyExpires")
    async with in_memory(exchange, reconnect=STEADY, subscribe=["trade"], subscribe_timeout=1, **options) as connection:
        async with Pipeline.create(connection) as pipeline:
            pipeline.start()
            await connection.wait_connected()
            with trio.fail_after(60), pytest.raises(AuthenticationError, match="lost each of the 3 times") as error:
                await connection.authenticate(OTHER_KEY, OTHER_SECRET)
            assert error.value.reason == "" and error.value.status is None
            await trio.sleep(120)
            assert exchange.ops.count("authKeyExpires") == 3 and connection.stats.connections == 4
            assert connection.subscriptions == {"trade"}
            await connection.subscribe("order"), "which waits for no answer"
    assert {key_of(headers) for headers in exchange.headers} == {options.get("api_key", "")}, "as before"


async def test_a_sign_in_that_was_cancelled_does_not_cost_more_than_three_connections(autojump_clock):
    exchange = HangsUp("authKeyExpires")
    async with in_memory(exchange, reconnect=STEADY) as connection, Pipeline.create(connection) as pipeline:
        pipeline.start()
        await connection.wait_connected()
        with trio.move_on_after(0.5) as wait:
            await connection.authenticate(KEY, SECRET)
        assert wait.cancelled_caught
        await trio.sleep(120)
        assert exchange.ops == ["authKeyExpires"] * 3 and connection.stats.connections == 4 and connection.connected
        await connection.subscribe("order"), "which waits for no answer"


async def test_a_topic_whose_connection_was_lost_each_of_three_times_is_an_error_and_stays_in_force(autojump_clock):
    exchange = HangsUp("quote")
    async with in_memory(exchange, reconnect=STEADY, subscribe=["trade"], subscribe_timeout=1) as connection:
        async with Pipeline.create(connection) as pipeline:
            pipeline.start()
            await connection.wait_connected()
            with trio.fail_after(60), pytest.raises(SubscriptionError, match="lost each of the 3 times") as error:
                await connection.subscribe("quote")
            assert error.value.topic == "quote" and "asked for quote; the command stays" in str(error.value)
            assert sum("quote" in topics for _, topics in exchange.commands) == 3
            with trio.fail_after(120), pytest.raises(SubscriptionError, match="lost each of the 3 times"):
                await connection.subscribe("quote")
            assert sum("quote" in topics for _, topics in exchange.commands) == 6, "it was given as many times again"
            exchange.at.clear()
            await trio.sleep(60)
            assert connection.subscriptions == {"quote", "trade"}


async def test_a_sign_in_that_was_cancelled_holds_nothing_back_longer_than_its_time(autojump_clock):
    exchange = ScriptedExchange()
    exchange.answers["authKeyExpires"] = None
    async with in_memory(exchange, reconnect=STEADY, subscribe_timeout=7) as connection:
        async with Pipeline.create(connection) as pipeline:
            pipeline.start()
            await connection.wait_connected()
            began = trio.current_time()
            with trio.move_on_after(1) as wait:
                await connection.authenticate(KEY, SECRET)
            assert wait.cancelled_caught
            with trio.move_on_after(1):
                await connection.subscribe("order", "trade")
            assert exchange.held == {"trade"}
            await trio.sleep_until(began + 6.9)
            assert exchange.held == {"trade"}, "the command is in force"
            await trio.sleep_until(began + 7.1)
            assert connection.subscriptions == exchange.held == {"order", "trade"}

            await exchange.send({"success": True, "request": {"op": "authKeyExpires", "args": []}})
            await eventually(lambda: connection._credentials is not None), "should it still come, it counts"
            await lose(connection)
            await trio.sleep(5)
    assert [key_of(headers) for headers in exchange.headers] == ["", KEY]


async def test_a_sign_in_that_a_lost_connection_delays_ends_with_the_stream(autojump_clock):
    exchange = ScriptedExchange()
    exchange.answers["authKeyExpires"] = None
    async with in_memory(exchange, reconnect=Reconnect(attempts=1)) as connection:
        with pytest.raises(ConnectionFailed, match="never again"):
            async with Pipeline.create(connection) as pipeline:
                pipeline.start()
                await connection.wait_connected()

                async def sign_in():
                    with pytest.raises(ConnectionClosed, match="has ended"):
                        await connection.authenticate(KEY, SECRET)

                pipeline.nursery.start_soon(sign_in)
                await trio.sleep(1)
                connection._transport.failures.extend(ConnectionFailed("never again") for _ in range(2))
                await connection._transport.drop()
                await trio.sleep_forever()
        assert not connection._protocol.authenticating


async def test_new_credentials_sign_the_next_handshake_only_when_they_were_accepted(autojump_clock):
    exchange = ScriptedExchange()
    async with in_memory(exchange, reconnect=STEADY, **SIGNED_IN) as connection:
        async with Pipeline.create(connection) as pipeline:
            pipeline.start()
            await connection.wait_connected()
            exchange.answers["authKeyExpires"] = {"status": 401, "error": "Invalid API Key."}
            with pytest.raises(AuthenticationError):
                await connection.authenticate(OTHER_KEY, OTHER_SECRET)
            await lose(connection)
            await connection.wait_connected()
            exchange.answers.clear()
            await connection.authenticate(OTHER_KEY, OTHER_SECRET)
            await lose(connection)
            await connection.wait_connected()
    assert [key_of(headers) for headers in exchange.headers] == [KEY, KEY, OTHER_KEY]


async def test_two_who_sign_in_at_once_get_each_their_own_answer(autojump_clock):
    exchange = ScriptedExchange()
    async with signing_in(exchange, KEY, SECRET) as (connection, outcome):
        others = []

        async def sign_in():
            await connection.authenticate(OTHER_KEY, OTHER_SECRET)
            others.append("accepted")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sign_in)
            await trio.sleep(1)
            await exchange.send({"status": 401, "error": "Invalid API Key.", "request": {"op": "authKeyExpires"}})
            await trio.sleep(1)
            assert type(outcome[0]) is AuthenticationError and others == []
            await exchange.send({"success": True, "request": {"op": "authKeyExpires"}})
        assert others == ["accepted"] and connection._credentials.key == OTHER_KEY


async def test_a_signature_that_was_seen_before_is_made_anew_at_once():
    async with open_exchange(symbols=["XBTUSD"], rate=0) as exchange:
        account = exchange.open_account()
        ends = [7, 7, 7, 8, 7, 8, 9]  # as others draw them
        credentials = Credentials(account.api_key, account.api_secret)
        credentials.expires = lambda: int(time.time()) // 100 * 100 + 200 + ends.pop(0)
        for _ in range(2):
            connection = Connection(
                exchange.url, api_key=account.api_key, api_secret=account.api_secret, reconnect=None
            )
            connection._credentials = credentials
            async with Pipeline.create(connection) as pipeline:
                pipeline.start()
                with trio.fail_after(5):
                    await connection.wait_connected()
        assert ends == [7, 8, 9]
        connection = Connection(exchange.url, reconnect=None)
        async with Pipeline.create(connection) as pipeline:
            pipeline.start()
            await connection.wait_connected()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Credentials, "expires", lambda self: credentials.expires())
                await connection.authenticate(account.api_key, account.api_secret)
        assert ends == []


async def test_a_sign_in_before_the_connection_is_opened_signs_the_handshake():
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        connection = Connection(url)
        await connection.authenticate(KEY, SECRET)
        async with Pipeline.create(connection) as pipeline:
            pipeline.start()
            await connection.wait_connected()
    assert KEY.encode() in exchange.headers[0].values()


async def test_waiting_for_a_connection_that_fails_raises_why():
    connection = Connection("ws://127.0.0.1:1/realtime", reconnect=None)
    with pytest.raises(ConnectionFailed, match="port 1"):
        async with Pipeline.create(connection) as pipeline:
            pipeline.start()
            await connection.wait_connected()


async def test_topics_can_be_given_up_without_waiting():
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        connection = Connection(url, subscribe=["trade", "quote"])
        async with Pipeline.create(connection) as pipeline:
            pipeline.start()
            await eventually(lambda: len(connection.subscriptions) == 2)
            connection.unsubscribe_soon("trade")
            await eventually(lambda: exchange.held == {"quote"})
            assert connection.subscriptions == {"quote"}
            with pytest.raises(ValueError, match="not a topic"):
                connection.unsubscribe_soon("a b")


@pytest.mark.trio_websocket
async def test_the_websocket_underneath_is_there_while_the_connection_stands():
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        connection = Connection(url)
        assert connection.websocket is None
        async with Pipeline.create(connection) as pipeline:
            pipeline.start()
            await connection.wait_connected()
            assert connection.websocket.closed is None and connection.websocket.path == "/realtime"
        assert connection.websocket is None


# --- the dead man's switch ---


async def test_the_switch_is_set_at_once_and_every_fifteen_seconds_whatever_the_consumer_does(autojump_clock):
    exchange = ScriptedExchange()
    async with in_memory(exchange, **SIGNED_IN, dead_mans_switch=True, buffer_size=3) as connection:
        async with Pipeline.create(connection) as pipeline:
            async with pipeline.tap(max_buffer_size=0):  # opened, and never read
                began = trio.current_time()
                await trio.sleep(1)
                for number in range(50):
                    await exchange.send(f'{{"number":{number}}}')
                await trio.sleep(60)
                beats = [(round(at - began), ms) for at, ms in exchange.switched]
                assert beats == [(0, 60000), (15, 60000), (30, 60000), (45, 60000), (60, 60000)]


async def test_a_sign_in_that_nobody_answers_does_not_stop_it(autojump_clock):
    exchange = ScriptedExchange()
    exchange.answers["authKeyExpires"] = None
    async with in_memory(exchange, **SIGNED_IN, dead_mans_switch=True) as connection:
        async with Pipeline.create(connection) as pipeline:
            pipeline.start()
            await connection.wait_connected()
            with pytest.raises(AuthenticationError):
                await connection.authenticate(KEY, SECRET)
            await trio.sleep(25)
            await connection.subscribe("order")
        assert [ms for _, ms in exchange.switched] == [60000, 60000, 60000, 0]


async def test_its_answers_are_items_and_an_attribute():
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        connection = Connection(url, **SIGNED_IN, dead_mans_switch=True)
        assert connection.cancel_time is None
        async with Pipeline.create(connection, Decoder()) as pipeline, pipeline.tap() as tap:
            while type(item := await tap.receive()) is not CancelAllAfter:
                pass
            assert item.cancel_time == connection.cancel_time == "2026-01-01T00:01:00.000Z"
        assert connection.cancel_time is None


async def test_it_is_disarmed_when_the_body_ends_well():
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        connection = Connection(url, **SIGNED_IN, dead_mans_switch=True)
        async with Pipeline.create(connection) as pipeline, pipeline.tap() as tap:
            await tap.receive()
            await eventually(lambda: exchange.switched)
    assert [ms for _, ms in exchange.switched] == [60000, 0]


async def test_a_pipeline_with_a_switch_goes_on_without_taps_so_that_it_can_be_disarmed():
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        connection = Connection(url, **SIGNED_IN, dead_mans_switch=True)
        async with Pipeline.create(connection) as pipeline:
            async with pipeline.tap() as tap:
                await tap.receive()
            for _ in range(10):
                await eventually(lambda: exchange.clients)
                await exchange.send("{}")
            await trio.sleep(0.1)
            assert connection.connected
    assert [ms for _, ms in exchange.switched] == [60000, 0]


async def test_it_stays_armed_after_an_error_of_the_body():
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        connection = Connection(url, **SIGNED_IN, dead_mans_switch=True)
        with pytest.raises(ZeroDivisionError):
            async with Pipeline.create(connection) as pipeline:
                pipeline.start()
                await eventually(lambda: exchange.switched)
                raise ZeroDivisionError
        await eventually(lambda: not exchange.clients)
    assert [ms for _, ms in exchange.switched] == [60000]


async def test_it_stays_armed_after_a_cancellation():
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        connection = Connection(url, **SIGNED_IN, dead_mans_switch=True)
        with trio.CancelScope() as scope:
            async with Pipeline.create(connection) as pipeline:
                pipeline.start()
                await eventually(lambda: exchange.switched)
                scope.cancel()
                await trio.sleep_forever()
        await eventually(lambda: not exchange.clients)
    assert [ms for _, ms in exchange.switched] == [60000]


async def test_it_stays_armed_after_an_error_of_a_section():
    exchange = ScriptedExchange()

    async with exchange.open() as url:
        connection = Connection(url, **SIGNED_IN, dead_mans_switch=True)
        with pytest.raises(ZeroDivisionError):
            async with Pipeline.create(connection, slurry.sections.Map(lambda item: 1 / 0)) as pipeline:
                pipeline.start()
                await trio.sleep_forever()
        await eventually(lambda: not exchange.clients)
    assert 0 not in [ms for _, ms in exchange.switched]


async def test_it_stays_armed_after_ctrl_c():
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        connection = Connection(url, **SIGNED_IN, dead_mans_switch=True)
        with pytest.raises(KeyboardInterrupt):
            async with Pipeline.create(connection) as pipeline:
                pipeline.start()
                await eventually(lambda: exchange.switched)
                os.kill(os.getpid(), signal.SIGINT)
                await trio.sleep_forever()
        await eventually(lambda: not exchange.clients)
    assert [ms for _, ms in exchange.switched] == [60000]


async def test_disarming_takes_two_seconds_at_most_and_says_when_it_was_not_answered(autojump_clock, caplog):
    exchange = ScriptedExchange()
    async with in_memory(exchange, **SIGNED_IN, dead_mans_switch=True) as connection:
        async with Pipeline.create(connection) as pipeline:
            pipeline.start()
            await trio.sleep(1)
            exchange.answers["cancelAllAfter"] = None
            ended = trio.current_time()
        assert trio.current_time() - ended == pytest.approx(2, abs=0.1)
    assert [ms for _, ms in exchange.switched] == [60000, 0]
    assert "could not be disarmed: that was not confirmed" in caplog.text


async def test_a_disarming_that_is_refused_is_tried_again(autojump_clock, caplog):
    exchange = ScriptedExchange()
    async with in_memory(exchange, **SIGNED_IN, dead_mans_switch=True) as connection:
        async with Pipeline.create(connection) as pipeline, trio.open_nursery() as nursery:
            pipeline.start()
            await trio.sleep(1)
            exchange.answers["cancelAllAfter"] = {"status": 429, "error": "Rate limit exceeded."}

            async def relent():
                await trio.sleep(0.6)
                exchange.answers.clear()

            pipeline.nursery.start_soon(relent)
            nursery.cancel_scope.cancel()
    assert [ms for _, ms in exchange.switched] == [60000, 0, 0, 0, 0]
    assert "could not be disarmed" not in caplog.text


@pytest.mark.parametrize("code", [1000, 1011])
async def test_a_connection_that_ended_before_it_could_be_disarmed_is_warned_of(code, autojump_clock, caplog):
    exchange = ScriptedExchange()
    async with in_memory(exchange, **SIGNED_IN, dead_mans_switch=True, reconnect=Reconnect()) as connection:
        async with Pipeline.create(connection) as pipeline:
            pipeline.start()
            await trio.sleep(1)
            with trio.move_on_after(0.5):
                await exchange.clients[0].aclose(code)
            assert not connection.connected
    assert "could not be disarmed: the connection is lost" in caplog.text


async def test_disarming_is_shielded(autojump_clock):
    exchange = ScriptedExchange()
    async with in_memory(exchange, **SIGNED_IN, dead_mans_switch=True) as connection:
        with trio.CancelScope() as scope:
            async with Pipeline.create(connection) as pipeline:
                pipeline.start()
                await trio.sleep(1)
                scope.cancel()  # and no checkpoint behind it: the body has ended well
        assert [ms for _, ms in exchange.switched] == [60000, 0]


async def test_a_switch_that_is_refused_ends_the_stream():
    exchange = ScriptedExchange()
    exchange.answers["cancelAllAfter"] = {"status": 403, "error": "This key cannot manage orders."}
    async with exchange.open() as url:
        with pytest.raises(AuthenticationError, match=r"dead man's switch.*403.*cannot manage orders"):
            connection = Connection(url, **SIGNED_IN, dead_mans_switch=True)
            async with Pipeline.create(connection) as pipeline:
                pipeline.start()
                await trio.sleep_forever()


async def test_a_switch_that_is_refused_for_the_moment_is_tried_again(autojump_clock, caplog):
    exchange = ScriptedExchange()
    exchange.answers["cancelAllAfter"] = {"status": 429, "error": "Rate limit exceeded."}
    async with in_memory(exchange, **SIGNED_IN, dead_mans_switch=True) as connection:
        async with Pipeline.create(connection) as pipeline:
            pipeline.start()
            await trio.sleep(20)
            assert connection.connected and connection.cancel_time is None
    assert "Rate limit exceeded" in caplog.text
    assert [ms for _, ms in exchange.switched][:2] == [60000, 60000]


async def test_a_switch_without_answers_is_warned_of(autojump_clock, caplog):
    exchange = ScriptedExchange()
    exchange.answers["cancelAllAfter"] = None
    async with in_memory(exchange, **SIGNED_IN, dead_mans_switch=True) as connection:
        async with Pipeline.create(connection) as pipeline:
            pipeline.start()
            await trio.sleep(16)
            assert "has not answered the dead man's switch" in caplog.text


async def test_in_a_plain_slurry_pipeline_it_is_never_disarmed():
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        connection = Connection(url, **SIGNED_IN, dead_mans_switch=True)
        async with slurry.Pipeline.create(connection) as pipeline, pipeline.tap() as tap:
            async for _ in tap:
                if exchange.switched:
                    break
        await eventually(lambda: not exchange.clients)
    assert [ms for _, ms in exchange.switched] == [60000]


# --- tracing ---


async def test_every_message_in_and_out_is_traced_with_secrets_masked(caplog):
    caplog.set_level(logging.DEBUG)
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        connection = Connection(url, **SIGNED_IN, dead_mans_switch=True, subscribe=["trade"])
        async with Pipeline.create(connection) as pipeline, pipeline.tap(max_buffer_size=1000) as tap:
            await connection.wait_connected()
            await connection.authenticate(KEY, SECRET)
            # what is repeated of a command of somebody else's, or of long ago, is known by the command it stands in
            old = {"op": "authKeyExpires", "args": ["an-older-key", 1, "f" * 64]}
            await exchange.send({"error": "that was too late", "status": 400, "request": old})
            await exchange.send({"table": None, "request": old})  # which is of no table, though it begins so
            await exchange.send({"error": f"{KEY} has no rights", "status": 400, "request": {"op": "x"}})
            items = []
            with trio.fail_after(10):
                while "has no rights" not in getattr(items[-1] if items else None, "data", ""):
                    items.append(await tap.receive())
    lines = [record.getMessage() for record in caplog.records if record.name == "bitmex_streams.wire"]
    assert any("> " in line and '"subscribe"' in line for line in lines)
    assert any("< " in line and "Welcome" in line for line in lines)
    assert any("> " in line and "authKeyExpires" in line and "***" in line for line in lines)
    assert any("< " in line and '"partial"' in line for line in lines)
    shown = caplog.text + repr(items) + repr(connection) + repr(pipeline)
    signed = [args[2] for op, args in exchange.commands if op == "authKeyExpires"]
    signed += [value.decode() for value in exchange.headers[0].values() if len(value) == 64]
    assert len(signed) == 2
    assert not [secret for secret in (KEY, SECRET, *signed, "an-older-key", "f" * 64) if secret in shown]
    assert sum(type(item) is RawMessage for item in items) >= 4


async def test_nothing_is_traced_where_nobody_asked(caplog):
    caplog.set_level(logging.INFO)
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        async with Pipeline.create(Connection(url, subscribe=["trade"])) as pipeline, pipeline.tap() as tap:
            await tap.receive()
    assert not [record for record in caplog.records if record.name == "bitmex_streams.wire"]
