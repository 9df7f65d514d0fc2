"""The websocket under a connection: how it is opened, how it ends, and what each failure says.

Real sockets on loopback; every test for each transport, unless it is of one alone.
"""

import socket
import ssl
import time
from contextlib import asynccontextmanager, suppress
from unittest.mock import ANY

import pytest
import slurry
import trio
import trio.testing
import trio_websocket

from bitmex_streams.errors import ConnectionFailed
from bitmex_streams.transport import TRANSPORTS, TransportClosed, WebsocketTransport, check_url
from tests.servers import ScriptedExchange, open_sockets, receive_head, serve_tcp, serve_websocket, shake_hands, tls

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\n"


@pytest.fixture(params=TRANSPORTS)
def make(request, monkeypatch):
    """What makes a transport; it goes through no proxy that the environment of the tests may name."""
    monkeypatch.setenv("no_proxy", "*")
    return TRANSPORTS[request.param]


@asynccontextmanager
async def connected(make, url, **options):
    transport = make(url, **options)
    async with trio.open_nursery() as nursery:
        await transport.connect(nursery)
        try:
            yield transport
        finally:
            with trio.move_on_after(2):
                await transport.aclose()
            nursery.cancel_scope.cancel()


async def take(transport, *messages):
    """Receive exactly these, in however many batches."""
    found = []
    while len(found) < len(messages):
        batch = await transport.receive()
        assert batch
        found += batch
    assert found == list(messages)


async def failure(make, url, **options):
    """The ConnectionFailed of connecting; nothing may be left of it."""
    transport = make(url, **options)
    failed = None
    before = open_sockets()
    async with trio.open_nursery() as nursery:
        try:
            await transport.connect(nursery)
        except ConnectionFailed as exc:
            failed = exc
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert failed is not None, "it connected"
    assert open_sockets() <= before + 1  # the server's end may still be closing
    return failed


@asynccontextmanager
async def answering(answer, *, then_hang=False):
    """A server that answers any request with these bytes."""

    async def handle(stream):
        await receive_head(stream)
        await stream.send_all(answer)
        if then_hang:
            await trio.sleep_forever()

    async with serve_tcp(handle) as port:
        yield f"ws://127.0.0.1:{port}/realtime"


# --- URLs
# -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["ws://h/realtime", "wss://h:444/realtime?subscribe=trade", "ws://[::1]:80/"])
def test_a_websocket_url_is_taken(url):
    assert check_url(url) == url


@pytest.mark.parametrize(
    "url", ["http://h/", "ws://", "ws://h:99999/", "ws://h:0/", "ws://[::1/", "h:80", "ws://h:port/"]
)
def test_anything_else_is_a_value_error(url):
    with pytest.raises(ValueError, match="is not a websocket URL"):
        check_url(url)


def test_a_url_with_a_password_is_refused_without_showing_it():
    with pytest.raises(ValueError) as caught:
        check_url("wss://user:hunter2@h/realtime")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url, host",
    [
        ("ws://h/", "h"),
        ("ws://h:80/", "h"),
        ("ws://h:443/", "h:443"),
        ("wss://h/", "h"),
        ("wss://h:443/", "h"),
        ("wss://h:80/", "h:80"),
        ("ws://[::1]/", "[::1]"),
        ("ws://[::1]:8000/", "[::1]:8000"),
    ],
)
async def test_the_host_header_names_the_port_unless_it_is_the_schemes_own(make, url, host):
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(make(url, stream=ours).connect, nursery)
        head = await receive_head(theirs)
        nursery.cancel_scope.cancel()
    assert f"\r\nHost: {host}\r\n" in head.decode()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the platform has no such thing")
@pytest.mark.parametrize("seconds, milliseconds", [(7.5, 7500), (0.1, 1000), (float("inf"), 3_600_000)])
async def test_tcp_gives_up_what_the_other_host_does_not_acknowledge_in_time(make, seconds, milliseconds):
    async with serve_websocket(echo) as url, connected(make, url, user_timeout=seconds) as transport:
        assert transport._wire.stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == milliseconds


# --- the good case
# ------------------------------------------------------------------------------------------------------------


async def echo(request):
    ws = await request.accept()
    while True:
        await ws.send_message(await ws.get_message())


async def test_messages_go_both_ways(make):
    async with serve_websocket(echo) as url, connected(make, url) as transport:
        for text in ("one", "two ä", "x" * 100_000):
            await transport.send(text)
            await take(transport, text)


async def test_a_ping_is_answered_with_a_pong_both_ways(make):
    async def handle(request):
        ws = await request.accept()
        await ws.ping()
        await ws.send_message("ponged")
        await ws.get_message()

    async with serve_websocket(handle) as url, connected(make, url) as transport:
        await take(transport, "ponged")
        heard = transport.heard
        await transport.ping()
        with trio.move_on_after(0.5):  # the pong is no message
            await transport.receive()
        assert transport.heard > heard


async def test_extra_headers_path_and_query_reach_the_server(make):
    exchange = ScriptedExchange()
    headers = [(b"api-expires", b"1")]
    async with exchange.open() as url, connected(make, url + "?subscribe=trade", extra_headers=headers):
        assert exchange.paths == ["/realtime?subscribe=trade"]
        assert exchange.headers[0][b"api-expires"] == b"1"


async def test_ipv6_works(make):
    try:
        async with serve_websocket(echo, host="::1") as url, connected(make, url) as transport:
            await transport.send("six")
            await take(transport, "six")
    except OSError as exc:
        pytest.skip(f"no IPv6 loopback here: {exc}")


async def test_a_stream_that_stands_already_is_used(make):
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:

        async def serve():
            async with trio.open_nursery() as inner:
                request = await trio_websocket.wrap_server_stream(inner, theirs)
                ws = await request.accept()
                await ws.send_message("hello")
                with pytest.raises(trio_websocket.ConnectionClosed):
                    await ws.get_message()

        nursery.start_soon(serve)
        async with connected(make, "ws://in.memory/realtime", stream=ours) as transport:
            await take(transport, "hello")


async def test_it_is_still_a_section_of_slurry():
    async with serve_websocket(echo) as url:

        async def questions():
            yield {"op": "help"}
            await trio.sleep_forever()

        async with slurry.Pipeline.create(questions(), WebsocketTransport(url)) as pipeline, pipeline.tap() as tap:
            assert await tap.receive() == {"op": "help"}


# --- closes
# ---------------------------------------------------------------------------------------------------------------------


async def closed_after(transport, *messages):
    await take(transport, *messages)
    with trio.fail_after(5), pytest.raises(TransportClosed) as caught:
        await transport.receive()
    with pytest.raises(TransportClosed):  # and it stays so
        await transport.receive()
    with pytest.raises(TransportClosed):
        await transport.send("anybody there?")
    with pytest.raises(TransportClosed):
        await transport.ping()
    return caught.value.code, caught.value.reason


@pytest.mark.parametrize("code, reason", [(1000, "bye"), (1001, "going away"), (1011, "no subscriptions"), (4000, "")])
async def test_the_close_code_and_reason_of_the_server_are_known_after_all_messages(make, code, reason):
    async def handle(request):
        ws = await request.accept()
        for number in range(100):
            await ws.send_message(str(number))
        await ws.aclose(code, reason or None)

    async with serve_websocket(handle) as url, connected(make, url) as transport:
        assert await closed_after(transport, *map(str, range(100))) == (code, reason)


def frame(payload, *, length=None, opcode=0x81):
    return bytes([opcode, len(payload) if length is None else length]) + payload


@asynccontextmanager
async def speaking(*data):
    """A server that completes the handshake, sends these bytes, and hangs up."""

    async def handle(stream):
        await shake_hands(stream)
        for piece in data:
            await stream.send_all(piece)

    async with serve_tcp(handle) as port:
        yield f"ws://127.0.0.1:{port}/realtime"


@pytest.mark.parametrize(
    "cut",
    [b"", frame(b"half a message", length=100), b"\x81", frame(b"first of several", opcode=0x01)],
    ids=["between frames", "in a frame", "in a frame's head", "between the frames of a message"],
)
async def test_a_connection_cut_anywhere_is_an_abnormal_close_after_what_was_whole(make, cut):
    async with speaking(frame(b"whole"), cut) as url, connected(make, url) as transport:
        code, _ = await closed_after(transport, "whole")
        assert code == 1006


@pytest.mark.parametrize(
    "garbage, code",
    [(frame(b"\xff\xfe"), 1007), (b"\x83\x01x", 1002), (b"\xff\xff\xff\xff", 1002), (b"\x88\x01\x03", 1002)],
    ids=["no UTF-8", "reserved opcode", "reserved bits", "bad close frame"],
)
async def test_what_breaks_the_protocol_ends_the_connection_after_what_was_whole(make, garbage, code):
    async with speaking(frame(b"whole"), garbage) as url, connected(make, url) as transport:
        found, _ = await closed_after(transport, "whole")
        assert found in (code, 1006)
    async with speaking(garbage) as url, connected(make, url) as transport:
        with pytest.raises(TransportClosed) as caught:
            await transport.receive()
        assert not caught.value.by_server


async def test_a_connection_lost_while_it_is_closing_does_not_hang(make):
    async with speaking(frame(b"whole"), b"\x88\x02\x03\xe8" + frame(b"after the close")) as url:
        with trio.fail_after(5):
            async with connected(make, url) as transport:
                await take(transport, "whole")
                await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def in_hand(make, **options):
    """A transport, and the server's end of its stream, where a test says each byte."""
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shake_hands, theirs)
        transport = make("ws://in.memory/realtime", stream=ours, **options)
        await transport.connect(nursery)
        yield transport, theirs
        nursery.cancel_scope.cancel()


async def test_a_connection_lost_just_as_it_is_closed_for_a_message_that_is_too_large_does_not_hang(make):
    """trio-websocket 0.9.2: its reader ends, and whoever waits for a message would wait for ever."""
    async with in_hand(make, max_message_size=1000) as (transport, server):
        await server.send_all(frame(b"whole") + b"\x81\x7e\x07\xd0" + b"x" * 2000)
        await server.aclose()  # so that no close frame can be sent
        with trio.fail_after(5):
            assert await closed_after(transport, "whole") in [(1009, ANY), (1006, ANY)]


async def test_a_ping_that_meets_our_close_does_not_hang_it(make):
    """trio-websocket: its reader ends by an error of wsproto's, and nobody waits for the server's answer any more."""
    async with in_hand(make) as (transport, server), trio.open_nursery() as nursery:

        async def ping_and_close():
            while not (await server.receive_some()).startswith(b"\x88"):
                pass
            with suppress(trio.BrokenResourceError):  # where it is gone as soon as it was pinged
                await server.send_all(b"\x89\x00")
                await trio.sleep(0.1)
                await server.send_all(b"\x88\x02\x03\xe8")
            await server.aclose()

        nursery.start_soon(ping_and_close)
        with trio.fail_after(1):
            await transport.aclose()


async def test_a_message_larger_than_allowed_closes_with_1009_after_what_came_before_and_before_what_comes_after(make):
    async def handle(request):
        ws = await request.accept()
        for message in "small", "x" * 2000, "after", "after":
            await ws.send_message(message)
        await ws.get_message()

    async with serve_websocket(handle) as url, connected(make, url, max_message_size=1000) as transport:
        await trio.sleep(0.05)  # all have arrived, and are read in one go
        code, _ = await closed_after(transport, "small")
        assert code == 1009


async def test_closing_towards_a_server_that_never_answers_takes_no_longer_than_it_is_given(make):
    async def handle(stream):
        pass

    async with speaking() as url:
        async with trio.open_nursery() as nursery:
            transport = make(url)
            await transport.connect(nursery)
            began = trio.current_time()
            with trio.move_on_after(0.2):
                await transport.aclose()
            await transport.aclose()  # again is no error
            assert trio.current_time() - began < 1
            nursery.cancel_scope.cancel()


# --- refusals
# ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 503])
@pytest.mark.parametrize(
    "rest, hang, words",
    [
        (b"Content-Length: 12\r\n\r\nnot for you!", False, "not for you!"),
        (b"Content-Length: 12\r\n\r\nnot for you!", True, "not for you!"),
        (b"Content-Length: 0\r\n\r\n", True, ""),
        (b"\r\n", False, ""),
        (b"\r\n", True, ""),
        (b"\r\nno length", True, "no length"),
        (b"Content-Length: 100\r\n\r\ntoo short", True, "too short"),
    ],
)
async def test_a_refusal_tells_its_status_and_words_however_it_is_made(make, status, rest, hang, words):
    async with answering(b"HTTP/1.1 %d Some Words\r\n" % status + rest, then_hang=hang) as url:
        with trio.fail_after(3):
            failed = await failure(make, url)
    assert failed.status == status and f"HTTP status {status}" in str(failed) and words in str(failed)


async def test_the_words_of_a_refusal_have_their_time_also_where_that_for_connecting_is_over_first(
    make, autojump_clock
):
    ours, theirs = trio.testing.memory_stream_pair()

    async def refuse():
        await trio.sleep(0.2)
        await theirs.send_all(b"HTTP/1.1 401 Unauthorized\r\nRetry-After: 7\r\n\r\n")
        await trio.sleep(0.3)
        await theirs.send_all(b"slow")

    transport = make("ws://in.memory/realtime", stream=ours, connect_timeout=0.3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refuse)
        with pytest.raises(ConnectionFailed, match="HTTP status 401: slow") as error:
            await transport.connect(nursery)
        nursery.cancel_scope.cancel()
    assert error.value.status == 401 and error.value.retry_after == 7


async def test_a_refusal_with_words_without_end_is_told_by_its_status_in_time(make, autojump_clock):
    ours, theirs = trio.testing.memory_stream_pair()

    async def refuse():
        await theirs.send_all(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")
        while True:
            await theirs.send_all(b".")
            await trio.sleep(0.1)

    transport = make("ws://in.memory/realtime", stream=ours, connect_timeout=3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refuse)
        with trio.fail_after(4), pytest.raises(ConnectionFailed, match="HTTP status 503: ") as error:
            await transport.connect(nursery)
        nursery.cancel_scope.cancel()
    assert error.value.status == 503


async def test_trio_websockets_own_refusals_are_understood(make):
    async def handle(request):
        await request.reject(401, body=b"Invalid API Key.")

    async with serve_websocket(handle) as url:
        failed = await failure(make, url)
    assert failed.status == 401 and "Invalid API Key." in str(failed)


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 101 Switching", SWITCH + b"\r\n", b"\x00" * 100]
)
async def test_a_server_that_hangs_up_or_speaks_something_else_is_a_failure_that_says_so(make, answer):
    async with answering(answer) as url:
        with trio.fail_after(3):
            failed = await failure(make, url)
    assert failed.status is None and "is it a websocket server?" in str(failed)


async def test_what_is_no_http_is_a_failure_at_once_that_shows_it_also_when_the_server_waits(make):
    async with answering(b"SSH-2.0-OpenSSH\r\n", then_hang=True) as url:
        with trio.fail_after(3):
            failed = await failure(make, url)
    assert "it begins b'SSH-2.0-OpenSSH" in str(failed)


async def test_an_answer_that_stops_half_way_is_a_failure_that_shows_it(make):
    async with answering(b"HTTP/1.1 101 Switching", then_hang=True) as url:
        failed = await failure(make, url, connect_timeout=0.2)
    assert "begins b'HTTP/1.1 101 Switching'" in str(failed) and "not complete within 0.2 s" in str(failed)


async def test_a_server_that_does_not_answer_the_handshake_is_a_failure_after_connect_timeout(make):
    async with answering(b"", then_hang=True) as url:
        failed = await failure(make, url, connect_timeout=0.2)
    assert "answer to the handshake within 0.2 s" in str(failed)


async def test_a_port_where_nobody_listens_is_named(make):
    async with serve_tcp(trio.sleep_forever) as port:
        pass
    failed = await failure(make, f"ws://127.0.0.1:{port}/realtime")
    assert f"nothing listens on 127.0.0.1 port {port}" in str(failed) and isinstance(failed.__cause__, OSError)


async def test_a_name_that_does_not_resolve_is_named(make):
    failed = await failure(make, "ws://nonexistent.invalid/realtime")
    assert "the name 'nonexistent.invalid' cannot be resolved" in str(failed)


@pytest.mark.parametrize("at", [0.0, 0.001, 0.05])
async def test_cancelled_while_connecting_it_leaves_nothing(make, at):
    async with answering(b"", then_hang=True) as url:
        before = open_sockets()
        with trio.move_on_after(at):
            async with connected(make, url):
                raise AssertionError("it connected")
        await trio.testing.wait_all_tasks_blocked()
        assert open_sockets() <= before + 1


# --- TLS -------------------------------------------------------------------------------------------------------------
# ------------


async def test_tls_with_a_certificate_that_verifies(make, authority):
    server, client = tls(authority, "127.0.0.1")
    async with serve_websocket(echo, ssl_context=server) as url, connected(make, url, ssl_context=client) as transport:
        await transport.send("secret")
        await take(transport, "secret")


@pytest.mark.parametrize("name, trusted", [("127.0.0.1", False), ("another.host", True)])
async def test_a_certificate_that_does_not_verify_fails_at_once_and_says_so(make, authority, name, trusted):
    server, client = tls(authority, name)
    began = time.monotonic()
    async with serve_websocket(echo, ssl_context=server) as url:
        failed = await failure(make, url, ssl_context=client if trusted else None)
    assert time.monotonic() - began < 2
    assert "certificate does not verify" in str(failed) and isinstance(failed.__cause__, ssl.SSLCertVerificationError)


async def test_a_server_without_tls_under_a_wss_url_is_a_failure_that_names_the_scheme(make):
    async with serve_websocket(echo) as url:
        failed = await failure(make, url.replace("ws:", "wss:"), connect_timeout=3)
    assert "TLS" in str(failed) or "handshake" in str(failed)


async def test_many_connections_one_after_the_other_leave_no_socket(make):
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        before = open_sockets()
        for _ in range(30):
            async with connected(make, url) as transport:
                await transport.receive()
        await trio.sleep(0.05)
        assert open_sockets() <= before
        assert exchange.clients == []
