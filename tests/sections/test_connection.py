"""Connection: the live source.

Against real servers on loopback; where time matters, over in-memory streams on a test clock.
"""

import gzip
import json
import os
import ssl
import time
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import slurry
import slurry.sections
import trio
import trio_websocket

from bitmex_streams.coverage import CONNECTING
from bitmex_streams.errors import ConnectionClosed, ConnectionFailed, SubscriptionError
from bitmex_streams.messages import Connected, Disconnected, RawMessage, StateLost
from bitmex_streams.pipeline import Pipeline
from bitmex_streams.protocol import MAX_UNASKED
from bitmex_streams.sections.connection import NETWORKS
from bitmex_streams.sections.connection import Connection as _Connection
from tests.servers import (
    ScriptedExchange,
    in_memory,
    open_sockets,
    partial_of,
    receive_head,
    serve_tcp,
    serve_websocket,
    tardis_replay,
)

Connection = partial(_Connection, reconnect=None)  # one life: what comes of more is in test_reconnecting.py
DATA = Path(os.environ.get("BITMEX_STREAMS_DATA") or Path(__file__).parents[3] / "shared" / "data")


async def drain(batches):
    """Everything to the end, and the error that ended it (or None)."""
    items = []
    while True:
        try:
            items.extend(await batches.receive())
        except trio.EndOfChannel:
            return items, None
        except Exception as exc:
            return items, exc


async def run(connection):
    with trio.fail_after(20):
        async with connection.batches(None) as batches:
            return await drain(batches)


def texts(items):
    return [item.data for item in items if type(item) is RawMessage]


def read_in_background(nursery, batches):
    items = []

    async def read():
        while True:
            try:
                items.extend(await batches.receive())
            except trio.EndOfChannel:
                return

    nursery.start_soon(read)
    return items


async def eventually(condition):
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - what happens at the server's end has no event here
            await trio.sleep(0.005)


@asynccontextmanager
async def reading(connection, input=None):
    """The connection, open, with a consumer that keeps up; gives the list that it fills."""
    async with connection.batches(input) as batches:
        async with trio.open_nursery() as nursery:
            items = read_in_background(nursery, batches)
            await eventually(lambda: connection.connected)
            yield items
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def sending(*messages, code=1000, reason="done"):
    """A server that sends these messages and closes."""

    async def handle(request):
        ws = await request.accept()
        for message in messages:
            await ws.send_message(message)
        if code:
            await ws.aclose(code, reason)
        while True:
            await ws.get_message()

    async with serve_websocket(handle) as url:
        yield url


# --- construction
# ---------------------------------------------------------------------------------------------------------


def test_the_networks_have_names_and_any_websocket_url_is_one():
    assert Connection("mainnet").url == NETWORKS["mainnet"] == "wss://ws.bitmex.com/realtime"
    assert Connection("testnet").url == NETWORKS["testnet"] == "wss://ws.testnet.bitmex.com/realtime"
    assert Connection("ws://127.0.0.1:8000/ws-replay?exchange=bitmex").url.startswith("ws://127")


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"network": "livenet"}, "'mainnet' or 'testnet'"),
        ({"network": "http://h/"}, "is not a websocket URL"),
        ({"network": "testnet", "subscribe": ["trade:"]}, "is not a topic"),
        ({"network": "testnet", "transport": "fax"}, "there are: default"),
        ({"network": "testnet", "buffer_size": 0}, "buffer_size has to be greater than 0"),
        ({"network": "testnet", "max_lag": -1}, "max_lag has to be greater than 0"),
    ],
)
def test_what_cannot_work_is_a_value_error_that_says_what_can(arguments, words):
    with pytest.raises(ValueError, match=words):
        Connection(**arguments)


def test_an_ssl_context_for_a_url_without_tls_is_a_value_error():
    with pytest.raises(ValueError, match="wss://"):
        Connection("ws://h/", ssl_context=ssl.create_default_context())


# --- the stream
# -------------------------------------------------------------------------------------------------------------


async def test_it_gives_connected_the_messages_in_order_and_disconnected():
    async with sending("one", "two") as url:
        items, error = await run(Connection(url))
    assert error is None
    assert items[0] == Connected(items[0].received, url)
    assert texts(items) == ["one", "two"] and {item.source for item in items} == {url}
    assert items[-1] == Disconnected(items[-1].received, url, 1000, "done")
    assert [item.received for item in items] == sorted(item.received for item in items)
    assert abs(items[0].received - time.time_ns()) < 10e9


async def test_received_is_the_arrival_however_late_the_consumer_is():
    async with sending("one") as url:
        async with Connection(url).batches(None) as batches:
            await trio.sleep(0.3)
            late = time.time_ns()
            items, _ = await drain(batches)
    assert texts(items) == ["one"] and all(item.received < late - 100e6 for item in items)


async def test_ten_thousand_messages_in_a_burst_arrive_in_order():
    messages = [f'{{"table":"trade","action":"insert","data":[{number}]}}' for number in range(10_000)]
    async with sending(*messages) as url:
        items, error = await run(Connection(url, buffer_size=1000))
    assert error is None and texts(items) == messages


async def test_a_partial_of_five_megabytes_passes():
    rows = [{"symbol": "XBTUSD", "id": number, "side": "Buy", "size": 100, "price": 1.5} for number in range(90_000)]
    big = json.dumps(partial_of("orderBookL2", rows))
    assert len(big) > 5_000_000
    async with sending(big) as url:
        items, error = await run(Connection(url))
    assert error is None and texts(items) == [big]


@pytest.mark.parametrize("code", [1001, 1008, 1011, 4001])
async def test_any_close_but_a_normal_one_is_raised_after_everything_before(code):
    async with sending("one", "two", code=code, reason="because") as url:
        items, error = await run(Connection(url))
    assert texts(items) == ["one", "two"] and items[-1] == Disconnected(items[-1].received, url, code, "because")
    assert (
        type(error) is ConnectionClosed and (error.code, error.reason) == (code, "because") and "because" in str(error)
    )


async def test_a_connection_that_breaks_is_raised_after_everything_before():
    async def handle(request):
        ws = await request.accept()
        await ws.send_message("one")
        await ws._stream.aclose()

    async with serve_websocket(handle) as url:
        items, error = await run(Connection(url))
    assert texts(items) == ["one"] and items[-1].code == 1006
    assert type(error) is ConnectionClosed and error.code == 1006


async def test_a_message_that_is_too_large_names_the_parameter():
    async with sending("small", "x" * 5000, code=None) as url:
        items, error = await run(Connection(url, max_message_size=1000))
    assert texts(items) == ["small"] and items[-1].code == 1009
    assert type(error) is ConnectionClosed and error.code == 1009 and "max_message_size=1000" in str(error)


@pytest.mark.parametrize("code", [1002, 1007, 1009])
async def test_what_the_server_says_is_told_apart_from_what_this_side_says_of_it(code):
    async with sending("one", code=code, reason="because") as url:
        _, error = await run(Connection(url))
    assert error.code == code and f"the server closed it with code {code}: because" in str(error)


@pytest.mark.parametrize("garbage, code", [(b"\xff\xff\xff\xff\xff", 1002), (b"\x81\x02\xff\xfe", 1007)])
async def test_what_is_no_websocket_traffic_is_not_blamed_on_a_close_of_the_server(garbage, code):
    async def handle(request):
        ws = await request.accept()
        await ws._stream.send_all(garbage)
        await trio.sleep_forever()

    async with serve_websocket(handle) as url:
        _, error = await run(Connection(url))
    assert error.code == code and f"what the server sent is no valid websocket traffic (code {code}" in str(error)


async def test_a_close_without_a_code_is_an_error_that_says_so():
    async def handle(request):
        ws = await request.accept()
        await ws._stream.send_all(b"\x88\x00")
        with suppress(trio_websocket.ConnectionClosed):
            await ws.get_message()

    async with serve_websocket(handle) as url:
        items, error = await run(Connection(url))
    assert items[-1].code == error.code == 1005 and "the server closed it without saying why" in str(error)


async def test_a_failure_to_connect_comes_out_as_itself():
    async with serve_tcp(receive_head) as port:
        items, error = await run(Connection(f"ws://127.0.0.1:{port}/realtime"))
    assert items == [] and type(error) is ConnectionFailed


async def test_the_error_is_raised_again_for_who_asks_again():
    async with sending(code=1011, reason="no") as url, Connection(url).batches(None) as batches:
        await drain(batches)
        for _ in range(2):
            with pytest.raises(ConnectionClosed):
                await batches.receive()


async def test_receiving_can_be_cancelled_without_loss():
    messages = [str(number) for number in range(200)]

    async def handle(request):
        ws = await request.accept()
        for message in messages:
            await ws.send_message(message)
            await trio.sleep(0.0005)
        await ws.aclose()

    items = []
    async with serve_websocket(handle) as url, Connection(url).batches(None) as batches:
        with pytest.raises(trio.EndOfChannel):
            while True:
                with trio.move_on_after(0.0003):
                    items.extend(await batches.receive())
    assert texts(items) == messages


async def test_it_can_be_opened_once_at_a_time_and_again_afterwards():
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        connection = Connection(url, subscribe=["trade"])
        for _ in range(2):
            async with reading(connection):
                await eventually(lambda: connection.subscriptions == {"trade"})
                with pytest.raises(RuntimeError, match="open already"):
                    async with connection.batches(None):
                        pass
            assert not connection.connected and connection.subscriptions == frozenset()
    assert exchange.commands == [("subscribe", ["trade"])] * 2


async def test_errors_of_the_body_come_out_as_themselves():
    class OwnError(Exception):
        pass

    async with ScriptedExchange().open() as url:
        with pytest.raises(OwnError):
            async with Connection(url).batches(None) as batches:
                await batches.receive()
                raise OwnError


# --- subscriptions
# ------------------------------------------------------------------------------------------------------------


async def test_subscriptions_at_the_start_are_sent_before_any_welcome():
    got = []

    async def handle(request):
        ws = await request.accept()
        got.append(json.loads(await ws.get_message()))
        await ws.aclose()

    async with serve_websocket(handle) as url:
        await run(Connection(url, subscribe=["trade:XBTUSD", "quote"]))
    assert got == [{"op": "subscribe", "args": ["trade:XBTUSD", "quote"]}]


async def test_a_single_topic_may_be_given_as_a_string():
    exchange = ScriptedExchange()
    async with exchange.open() as url, reading(Connection(url, subscribe="trade")):
        await eventually(lambda: exchange.commands == [("subscribe", ["trade"])])


async def test_subscribe_returns_when_the_exchange_has_acknowledged():
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        connection = Connection(url)
        async with reading(connection):
            await connection.subscribe("trade:XBTUSD", "quote")
            assert connection.subscriptions == {"trade:XBTUSD", "quote"} == exchange.held
            await connection.unsubscribe("quote")
            assert connection.subscriptions == {"trade:XBTUSD"} == exchange.held
            await connection.subscribe("trade:XBTUSD")
            await connection.unsubscribe("quote")
            assert len(exchange.commands) == 2, "what is so already is not asked for"


async def test_more_topics_than_a_command_takes_are_split():
    exchange = ScriptedExchange()
    topics = [f"trade:S{number}" for number in range(45)]
    async with exchange.open() as url:
        connection = Connection(url)
        async with reading(connection):
            await connection.subscribe(*topics)
    assert [len(args) for _, args in exchange.commands] == [20, 20, 5]


async def test_a_refusal_is_raised_where_it_was_asked_and_the_stream_goes_on():
    exchange = ScriptedExchange()
    exchange.refuse["foo"] = (400, "Unknown table: foo")
    async with exchange.open() as url:
        connection = Connection(url)
        async with reading(connection) as items:
            with pytest.raises(SubscriptionError, match="Unknown table: foo") as caught:
                await connection.subscribe("trade", "foo")
            assert (caught.value.topic, caught.value.status) == ("foo", 400)
            assert connection.subscriptions == {"trade"} and connection.connected
            await connection.subscribe("quote")
            await eventually(lambda: len(texts(items)) == 6)


async def test_a_refused_topic_of_the_constructor_ends_the_stream_after_everything_before():
    exchange = ScriptedExchange()
    exchange.refuse["order"] = (401, "User requested an account-locked subscription but no authorization was provided.")
    async with exchange.open() as url:
        items, error = await run(Connection(url, subscribe=["trade", "order"]))
    assert type(error) is SubscriptionError and error.topic == "order" and error.status == 401
    kinds = [json.loads(text) for text in texts(items)]
    assert [next(iter(kind)) for kind in kinds] == ["info", "success", "table", "status"]
    assert type(items[-1]) is Disconnected


async def test_what_is_subscribed_before_the_connection_stands_is_sent_when_it_does():
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        connection = Connection(url)
        with trio.move_on_after(0):
            await connection.subscribe("trade")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.subscribe, "quote")
            await trio.testing.wait_all_tasks_blocked()
            async with reading(connection):
                await eventually(lambda: exchange.held == {"trade", "quote"})


async def test_cancelling_the_wait_leaves_the_command_in_force():
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        connection = Connection(url)
        async with reading(connection):
            with trio.CancelScope() as scope:
                scope.cancel()
                await connection.subscribe("trade")
            await eventually(lambda: connection.subscriptions == {"trade"})


async def test_a_symbol_is_satisfied_by_its_table_and_gives_way_to_it():
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        connection = Connection(url)
        async with reading(connection):
            await connection.subscribe("trade:XBTUSD", "trade:ETHUSD")
            await connection.subscribe("trade")
            assert exchange.held == {"trade"} == connection.subscriptions
            await connection.subscribe("trade:XBTUSD")
            assert exchange.held == {"trade"}


async def test_many_tasks_may_subscribe_and_unsubscribe_at_once():
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        connection = Connection(url)
        async with reading(connection):

            async def come_and_go(number):
                for turn in range(5):
                    await connection.subscribe(f"trade:S{number % 7}")
                    await trio.sleep(0.001 * ((number * 7 + turn) % 5))
                    await connection.unsubscribe(f"trade:S{number % 7}")
                await connection.subscribe(f"quote:S{number}")

            with trio.fail_after(10):
                async with trio.open_nursery() as nursery:
                    for number in range(20):
                        nursery.start_soon(come_and_go, number)
            assert exchange.held == connection.subscriptions == {f"quote:S{number}" for number in range(20)}


async def test_subscribing_on_an_ended_connection_is_an_error_and_no_hang():
    async with sending() as url:
        connection = Connection(url)
        async with connection.batches(None) as batches:
            await drain(batches)
            with pytest.raises(ConnectionClosed, match="has ended"):
                await connection.subscribe("trade")
        with pytest.raises(ConnectionClosed, match="has ended"):
            await connection.unsubscribe("trade")


async def test_who_waits_for_an_answer_is_told_that_the_connection_ended():
    async def handle(request):
        ws = await request.accept()
        await ws.get_message()
        await ws.aclose(1001)

    async with serve_websocket(handle) as url:
        connection = Connection(url)
        async with connection.batches(None):
            with trio.fail_after(5), pytest.raises(ConnectionClosed):
                await connection.subscribe("trade")


# --- subscribing from within the stream
# -----------------------------------------------------------------------------------------


async def test_subscribing_in_the_loop_of_a_tap_without_buffer_works():
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        connection = Connection(url)
        async with Pipeline.create(connection) as pipeline, pipeline.tap() as tap:
            with trio.fail_after(5):
                async for item in tap:
                    if type(item) is RawMessage and "Welcome" in item.data:
                        await connection.subscribe("trade:XBTUSD")
                        await exchange.send(partial_of("trade:XBTUSD"))
                        await connection.subscribe("quote:XBTUSD")
                        await connection.unsubscribe("trade:XBTUSD")
                        break
            assert connection.subscriptions == {"quote:XBTUSD"}


async def test_it_works_in_a_plain_slurry_pipeline():
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        connection = Connection(url, subscribe=["trade"])
        async with slurry.Pipeline.create(connection) as pipeline, pipeline.tap() as tap:
            with trio.fail_after(5):
                kinds = [type(await tap.receive()) for _ in range(4)]
                await connection.subscribe("quote")
    assert kinds == [Connected, RawMessage, RawMessage, RawMessage] and exchange.clients == []


async def test_several_can_be_merged():
    async with sending("a", "b") as one, sending("c", "d") as two:
        merge = slurry.sections.Merge(Connection(one), Connection(two))
        async with Pipeline.create(merge) as pipeline, pipeline.tap() as tap:
            with trio.fail_after(5):
                items = [item async for item in tap]
    for url, expected in ((one, ["a", "b"]), (two, ["c", "d"])):
        mine = [item for item in items if item.source == url]
        assert texts(mine) == expected and type(mine[0]) is Connected and type(mine[-1]) is Disconnected


async def test_in_the_middle_of_a_pipeline_what_comes_in_is_sent():
    exchange = ScriptedExchange()

    async def commands():
        yield "ping"
        yield {"op": "subscribe", "args": "trade:XBTUSD"}
        yield ["a", "list"]

    async with exchange.open() as url:
        connection = Connection(url)
        async with Pipeline.create(commands(), connection) as pipeline, pipeline.tap() as tap:
            with trio.fail_after(5):
                async for item in tap:
                    if type(item) is RawMessage and '"partial"' in item.data:
                        break
                await eventually(lambda: len(exchange.texts) == 3)
            assert connection.subscriptions == {"trade:XBTUSD"}
    assert exchange.texts == ["ping", '{"op":"subscribe","args":"trade:XBTUSD"}', '["a","list"]']


async def test_acknowledgements_that_nobody_asked_for_are_ignored_beyond_a_bound_and_told_once(autojump_clock, caplog):
    exchange = ScriptedExchange()
    async with in_memory(exchange, subscribe=["quote"]) as connection, reading(connection) as items:
        for number in range(MAX_UNASKED + 50):
            await exchange.send({"success": True, "subscribe": f"trade:S{number}"})
        await eventually(lambda: items and f"S{MAX_UNASKED + 49}" in getattr(items[-1], "data", ""))
        assert connection.stats.subscriptions == MAX_UNASKED + 1 and connection.connected
        await connection.subscribe("funding"), "what is asked for is not ignored"
        assert {"quote", "funding", f"trade:S{MAX_UNASKED - 1}"} < connection.subscriptions
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert f"{MAX_UNASKED} of them are kept, 'trade:S{MAX_UNASKED}' and all later ones" in warning.getMessage()


@pytest.mark.parametrize(
    "item, named",
    [
        (object(), "<object object"),
        ("half a pair: \ud83d", r"'half a pair: \ud83d'"),
        (["half a pair: \ud83d"], r"['half a pair: \ud83d']"),
    ],
    ids=["no JSON", "no UTF-8", "no UTF-8 in JSON"],
)
@pytest.mark.parametrize("transport", ["default", "fast"])
async def test_what_cannot_be_sent_ends_the_stream_with_an_error_that_names_it(transport, item, named):
    async def commands():
        yield item
        await trio.sleep_forever()

    async with ScriptedExchange().open() as url:
        async with Connection(url, transport=transport).batches(commands()) as batches:
            with trio.fail_after(5):
                _, error = await drain(batches)
    assert type(error) is TypeError and f"cannot send {named}" in str(error) and f"to {url}" in str(error)


# --- resync and the loss of state
# -----------------------------------------------------------------------------------------------


async def test_a_resync_brings_one_new_partial_however_often_it_is_asked_for():
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        connection = Connection(url, subscribe=["orderBookL2", "trade:XBTUSD"])
        connection.resync("orderBookL2")  # not connected: nothing to do
        async with reading(connection) as items:
            await eventually(lambda: len(connection.subscriptions) == 2)
            for _ in range(5):
                connection.resync("orderBookL2:XBTUSD")
            await eventually(lambda: sum('"partial"' in text for text in texts(items)) == 3)
    assert exchange.commands[1:] == [("unsubscribe", ["orderBookL2"]), ("subscribe", ["orderBookL2"])]


async def test_watchers_are_told_of_a_disconnect_ahead_of_the_stream_until_they_leave():
    calls, others = [], []
    async with sending("one", code=1011, reason="oops") as url:
        connection = Connection(url)
        connection.watch(lambda source, reason: calls.append((source, reason)))
        unwatch = connection.watch(lambda source, reason: others.append(reason))
        unwatch()
        unwatch()
        async with connection.batches(None) as batches:
            await eventually(lambda: len(calls) == 2)
            items, _ = await drain(batches)
    assert calls == [(url, CONNECTING), (url, "disconnected (1011: oops)")] and others == []
    assert texts(items) == ["one"]


# --- consumers that do not keep up
# ----------------------------------------------------------------------------------------------


async def test_a_slow_consumer_with_a_full_buffer_gets_everything_in_the_end():
    messages = [f"{number:04}" + "x" * 500 for number in range(3000)]
    async with sending(*messages) as url:
        async with Connection(url, buffer_size=10).batches(None) as batches:
            await trio.sleep(0.2)
            items, error = await drain(batches)
    assert error is None and texts(items) == messages


@pytest.mark.parametrize("bound", [{"buffer_size": 10}, {"buffer_bytes": 10_000}])
async def test_what_is_read_ahead_is_bounded_in_messages_and_in_bytes(bound):
    messages = ["x" * 1000] * 500
    async with sending(*messages) as url, Connection(url, **bound).batches(None) as batches:
        await trio.sleep(0.2)
        assert len(await batches.receive()) <= 11


@pytest.mark.parametrize("transport", ["default", "fast"])
async def test_bytes_are_those_of_the_text_as_it_is_sent(transport):
    messages = ["x" * 1000, "\u4e2d" * 1000, "\U0001f389" * 1000, "\xe4" * 500]
    async with sending(*messages, code=None) as url:
        connection = Connection(url, transport=transport)
        async with connection.batches(None) as batches:
            await eventually(lambda: connection.stats.messages == len(messages))
            assert connection.stats.bytes == connection.stats.waiting_bytes == 1000 + 3000 + 4000 + 1000
            await batches.receive()
            assert connection.stats.waiting_bytes == 0


async def test_an_unanswered_subscription_names_the_full_buffer():
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        connection = Connection(url, buffer_size=1, subscribe_timeout=0.2)
        async with connection.batches(None):
            await eventually(lambda: connection.connected)
            with pytest.raises(SubscriptionError, match="`block` tap is open that nobody reads") as caught:
                await connection.subscribe("trade")
            assert caught.value.status is None and caught.value.topic == "trade"


@pytest.mark.parametrize("topic, words", [("trade", "may not acknowledge"), ("trad", "no such table as 'trad'")])
async def test_an_unanswered_subscription_says_what_else_may_be_wrong(topic, words):
    async with sending(code=None) as url:
        connection = Connection(url, subscribe_timeout=0.1)
        async with reading(connection):
            with pytest.raises(SubscriptionError, match=words):
                await connection.subscribe(topic)


async def test_an_error_that_says_not_what_it_is_about_is_in_the_timeout_of_who_waits():
    async def handle(request):
        ws = await request.accept()
        while True:
            await ws.get_message()
            await ws.send_message('{"status":429,"error":"Rate limit exceeded, retry in 1 seconds."}')

    async with serve_websocket(handle) as url:
        connection = Connection(url, subscribe_timeout=0.2)
        async with reading(connection):
            with pytest.raises(SubscriptionError, match="Rate limit exceeded, retry in 1 seconds") as caught:
                await connection.subscribe("trade")
            assert (caught.value.status, caught.value.topic) == (429, "trade")


async def test_unsubscribing_from_a_server_that_only_sends_data_does_not_wait_for_what_never_comes():
    async def handle(request):
        ws = await request.accept()
        await ws.get_message()
        await ws.send_message(json.dumps(partial_of("trade")))
        await ws.get_message()
        await trio.sleep_forever()

    async with serve_websocket(handle) as url:
        connection = Connection(url)
        async with reading(connection):
            with trio.fail_after(3):
                await connection.subscribe("trade")
                await connection.unsubscribe("trade")
            assert connection.subscriptions == frozenset()


async def test_subscribing_on_a_connection_that_nobody_opens_times_out(autojump_clock):
    with pytest.raises(SubscriptionError, match="a pipeline starts with its first tap"):
        await Connection("testnet").subscribe("trade")


async def test_reading_that_stood_still_for_too_long_loses_all_state_and_asks_for_it_anew(autojump_clock):
    exchange, calls = ScriptedExchange(), []
    async with in_memory(exchange, buffer_size=5, subscribe=["trade", "quote"], max_lag=10) as connection:
        connection.watch(lambda source, reason: calls.append((trio.current_time(), reason)))
        async with connection.batches(None) as batches:
            await trio.sleep(1)
            for number in range(20):
                await exchange.send(f'{{"number":{number}}}')
            began = trio.current_time() - 1
            await trio.sleep(60)
            assert len(calls) == 2 and calls.pop(0)[1] == CONNECTING, "told once, at once"
            assert calls[0][0] - began == pytest.approx(10, abs=0.1) and "10 s" in calls[0][1]
            items = []
            with trio.move_on_after(5):
                while True:
                    items.extend(await batches.receive())
        marks = [index for index, item in enumerate(items) if type(item) is StateLost]
        assert len(marks) == 1 and marks[0] == 5, "in stream order, behind what was read before"
        assert items[5].topic is None and items[5].source == connection.url
        assert [text for text in texts(items) if "number" in text] == [f'{{"number":{number}}}' for number in range(20)]
        assert exchange.commands == [
            ("subscribe", ["trade", "quote"]),
            ("unsubscribe", ["trade", "quote"]),
            ("subscribe", ["trade", "quote"]),
        ]
        assert items[6].received - items[0].received < 2e9, "it had arrived before reading stopped"
        assert items[-1].received - items[0].received > 60e9


async def test_a_pause_shorter_than_max_lag_loses_nothing(autojump_clock):
    exchange = ScriptedExchange()
    async with in_memory(exchange, buffer_size=3, subscribe=["trade"], max_lag=10) as connection:
        async with connection.batches(None) as batches:
            await trio.sleep(9)
            items = []
            with trio.move_on_after(1):
                while True:
                    items.extend(await batches.receive())
    assert [type(item) for item in items] == [Connected, RawMessage, RawMessage, RawMessage]
    assert len(exchange.commands) == 1


async def test_received_follows_the_clock_of_trio(autojump_clock):
    exchange = ScriptedExchange()
    async with in_memory(exchange) as connection, reading(connection) as items:
        await trio.sleep(3600)
        await exchange.send("{}")
        await trio.sleep(1)
    assert items[-1].received - items[0].received == pytest.approx(3600e9, rel=1e-3)


# --- leaving
# --------------------------------------------------------------------------------------------------------------------


async def test_leaving_closes_the_websocket_properly():
    codes = []

    async def handle(request):
        ws = await request.accept()
        try:
            await ws.get_message()
        finally:
            codes.append(ws.closed.code)

    async with serve_websocket(handle) as url:
        async with Connection(url).batches(None) as batches:
            await batches.receive()
        await eventually(lambda: codes)
    assert codes == [1000]


async def test_what_was_queued_is_still_sent_when_leaving():
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        connection = Connection(url)
        async with connection.batches(None) as batches:
            await batches.receive()
            with trio.move_on_after(0):
                await connection.subscribe("trade")
        await eventually(lambda: exchange.commands)
        async with reading(connection):
            await eventually(lambda: connection.subscriptions == {"trade"})
    assert exchange.commands == [("subscribe", ["trade"])] * 2, "once for each connection"


async def test_who_leaves_in_the_moment_of_connecting_does_not_wait():
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        for delay in range(40):
            began = time.monotonic()
            with trio.move_on_after(0.0005 + delay * 0.0001):
                async with Connection(url, subscribe=["trade"]).batches(None):
                    await trio.sleep_forever()
            assert time.monotonic() - began < 1


async def test_a_server_that_neither_reads_nor_answers_delays_leaving_by_two_seconds_at_most():
    async def handle(request):
        ws = await request.accept()
        ws._reader_running = False
        await trio.sleep_forever()

    async def endless():
        while True:
            yield "x" * 1_000_000

    async with serve_websocket(handle) as url:
        async with aclosing(endless()) as texts:
            async with Connection(url).batches(texts):
                await trio.sleep(0.3)
                began = time.monotonic()
            assert time.monotonic() - began < 3


async def test_cancelling_at_any_moment_leaves_nothing_behind():
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        before = open_sockets()
        tasks = trio.lowlevel.current_statistics().tasks_living
        for delay in range(40):
            connection = Connection(url, subscribe=["trade", "quote"])
            with trio.move_on_after(delay * 0.0003):
                async with Pipeline.create(connection) as pipeline, pipeline.tap() as tap:
                    async for _ in tap:
                        await connection.subscribe("orderBookL2:XBTUSD")
            assert not connection.connected
        await eventually(lambda: not exchange.clients and open_sockets() <= before)
        await eventually(lambda: trio.lowlevel.current_statistics().tasks_living <= tasks)


# --- a server like tardis-machine's ws-replay
# -------------------------------------------------------------------------------------


async def test_a_replay_server_without_acknowledgements_gives_the_recording_and_ends():
    path = DATA / "captures" / "bitmex-2021-07-22.ndjson.gz"
    if not path.exists():
        pytest.skip(f"no recording at {path}: set BITMEX_STREAMS_DATA to where the captures are")
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    messages = [line.partition(" ")[2] for line in lines if line]
    expected = json.loads((path.parent / "bitmex-2021-07-22.expected.json").read_text())
    async with serve_websocket(partial(tardis_replay, messages)) as url:
        items, error = await run(Connection(url, subscribe=["orderBookL2", "quote", "trade"]))
    assert error is None and items[-1].reason == "WS replay finished"
    found = {}
    for message in map(json.loads, texts(items)):
        count = found.setdefault(message["table"], {}).setdefault(message["action"], [0, 0])
        count[0] += 1
        count[1] += len(message["data"])
    assert found == expected["messages"]


async def test_a_replay_server_takes_a_subscription_made_in_time_and_answers_with_data():
    row = {"symbol": "XBTUSD", "size": 1}
    messages = [json.dumps({"table": "trade", "action": "insert", "data": [row]})] * 3
    async with serve_websocket(partial(tardis_replay, messages)) as url:
        connection = Connection(url)
        async with connection.batches(None) as batches:
            with trio.fail_after(5):
                await connection.subscribe("trade:XBTUSD")
                items, error = await drain(batches)
    assert error is None and texts(items) == messages


async def test_a_replay_server_without_any_subscription_says_so():
    async with serve_websocket(partial(tardis_replay, [])) as url:
        _, error = await run(Connection(url))
    assert type(error) is ConnectionClosed and error.code == 1011 and "no subscriptions" in str(error)
