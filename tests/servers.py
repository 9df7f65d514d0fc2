"""Servers for the tests, on real loopback sockets: a scripted BitMEX, a look-alike of tardis-machine's ``ws-replay``,
and raw TCP.
"""

from __future__ import annotations

import ctypes
import json
import ssl
import struct
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from socket import SOL_SOCKET
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
import trio_websocket
from wsproto.utilities import LocalProtocolError

from bitmex_streams import Connection
from bitmex_streams.transport import WebsocketTransport

WELCOME = {
    "info": "Welcome to the BitMEX Realtime API.",
    "version": "2.0.0",
    "timestamp": "2026-01-01T00:00:00.000Z",
    "docs": "https://www.bitmex.com/app/wsAPI",
    "heartbeatEnabled": False,
    "limit": {"remaining": 39},
}


def partial_of(topic: str, rows: Iterable[dict[str, Any]] = ()) -> dict[str, Any]:
    """The partial of a topic, as the exchange sends it."""
    table, _, symbol = topic.partition(":")
    return {
        "table": table,
        "action": "partial",
        "keys": [],
        "types": {"symbol": "symbol"},
        "foreignKeys": {},
        "attributes": {},
        "filter": {"symbol": symbol} if symbol else {},
        "data": list(rows),
    }


@asynccontextmanager
async def serve_tcp(
    handler: Callable[[trio.SocketStream], Awaitable[None]], host: str = "127.0.0.1"
) -> AsyncIterator[int]:
    """Serve raw TCP connections; gives the port."""

    async def handle(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with stream:
                await handler(stream)

    async with trio.open_nursery() as nursery:
        (listener, *_) = await nursery.start(partial(trio.serve_tcp, handle, 0, host=host))
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def serve_websocket(
    handler: Callable[[trio_websocket.WebSocketRequest], Awaitable[None]],
    ssl_context: ssl.SSLContext | None = None,
    host: str = "127.0.0.1",
) -> AsyncIterator[str]:
    """Serve websockets; ``handler`` gets the requests. Gives the URL."""
    scheme = "wss" if ssl_context else "ws"
    name = f"[{host}]" if ":" in host else host

    async def handle(request: trio_websocket.WebSocketRequest) -> None:
        with suppress(
            trio_websocket.ConnectionClosed, LocalProtocolError
        ):  # the latter: 0.9.2, where the client has just closed
            await handler(request)

    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            partial(
                trio_websocket.serve_websocket, handle, host, 0, ssl_context, connect_timeout=1, disconnect_timeout=1
            )
        )
        yield f"{scheme}://{name}:{server.listeners[0].port}/realtime"
        nursery.cancel_scope.cancel()


def tls(authority: Any, *names: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The contexts of a server with a certificate for these names, and of a client that trusts the authority."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert(*names).configure_cert(server)
    authority.configure_trust(client)
    return server, client


def open_sockets() -> int:
    """How many sockets this process has open."""
    found = 0
    for file in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found += str(file.readlink()).startswith("socket:")
    return found


def deafen(socket: Any) -> None:
    """From now on nothing reaches this socket: what comes is dropped before TCP sees it, and so not acknowledged, as if
    its host were gone. Linux only: a packet filter (see socket(7), SO_ATTACH_FILTER) that lets nothing pass.
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("there is no way to make a host unreachable here")
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF_RET: 0 bytes of it
    program = struct.pack("HP", 1, ctypes.addressof(drop_all))
    socket.setsockopt(SOL_SOCKET, 26, program)


async def receive_head(stream: trio.abc.Stream) -> bytes:
    """The head of an HTTP request."""
    head = b""
    while b"\r\n\r\n" not in head:
        data = await stream.receive_some()
        if not data:
            break
        head += data
    return head


class ScriptedExchange:
    """Speaks the protocol as BitMEX does: welcome, acknowledgements, refusals, a partial for each subscription.

    ``clients``: the websockets that are open; ``commands``: (op, args) of all that was received, in order; ``refuse``:
    the answers to topics that are refused, as (status, text). ``switched``: when (on trio's clock) each
    ``cancelAllAfter`` came, and its milliseconds; ``answers``: what is answered to an ``op`` in place of a success,
    None: nothing.
    """

    def __init__(self) -> None:
        self.clients: list[trio_websocket.WebSocketConnection] = []
        self.commands: list[tuple[str, list[str]]] = []
        self.texts: list[str] = []
        self.refuse: dict[str, tuple[int, str]] = {}
        self.partials: dict[str, dict[str, Any]] = {}
        self.headers: list[dict[bytes, bytes]] = []
        self.paths: list[str] = []
        self.held: set[str] = set()
        self.switched: list[tuple[float, int]] = []
        self.answers: dict[str, dict[str, Any] | None] = {}

    async def __call__(self, request: trio_websocket.WebSocketRequest) -> None:
        self.headers.append(dict(request.headers))
        self.paths.append(request.path)
        ws = await request.accept()
        self.clients.append(ws)
        try:
            await self.send(WELCOME, ws)
            while True:
                text = await ws.get_message()
                self.texts.append(text)
                if text == "ping":
                    await ws.send_message("pong")
                    continue
                command = json.loads(text)
                op = command.get("op") if isinstance(command, dict) else None
                if op in ("subscribe", "unsubscribe"):
                    await self.answer(ws, command)
                elif op == "authKeyExpires":
                    self.commands.append((op, command["args"]))
                    await self.reply(ws, command, {"success": True})
                elif op == "cancelAllAfter":
                    self.switched.append((trio.current_time(), command["args"]))
                    until = f"2026-01-01T00:{len(self.switched):02}:00.000Z" if command["args"] else 0
                    await self.reply(ws, command, {"now": "2026-01-01T00:00:00.000Z", "cancelTime": until})
        finally:
            self.clients.remove(ws)

    async def reply(self, ws: trio_websocket.WebSocketConnection, command: Any, answer: dict[str, Any]) -> None:
        answer = self.answers.get(command["op"], answer)
        if answer is not None:
            await self.send({"request": command, **answer}, ws)

    async def answer(self, ws: trio_websocket.WebSocketConnection, command: dict[str, Any]) -> None:
        op, args = command["op"], command["args"]
        args = args if isinstance(args, list) else [args]
        self.commands.append((op, args))
        for topic in args:
            if topic in self.refuse and op == "subscribe":
                status, error = self.refuse[topic]
                await self.send({"status": status, "error": error, "meta": {}, "request": command}, ws)
                continue
            await self.send({"success": True, op: topic, "request": command}, ws)
            if op == "subscribe":
                self.held.add(topic)
                await self.send(self.partials.get(topic) or partial_of(topic), ws)
            else:
                self.held.discard(topic)

    async def send(self, message: Any, ws: trio_websocket.WebSocketConnection | None = None) -> None:
        text = message if isinstance(message, str | bytes) else json.dumps(message, separators=(",", ":"))
        for client in [ws] if ws else list(self.clients):
            await client.send_message(text)

    @asynccontextmanager
    async def open(self, **options: Any) -> AsyncIterator[str]:
        async with serve_websocket(self, **options) as url:
            yield url


class InMemory:
    """A transport factory: each connection goes over an in-memory stream to ``exchange``, so that a test clock can
    drive it.

    ``failures``: what the next attempts to connect fail with. ``streams``: the server's ends, in order. ``attempts``:
    when each was made, on trio's clock.
    """

    def __init__(self, exchange: Callable[[Any], Awaitable[None]], nursery: trio.Nursery) -> None:
        self.exchange = exchange
        self.failures: deque[Exception] = deque()
        self.streams: list[trio.StapledStream] = []
        self.attempts: list[float] = []
        self._nursery = nursery

    def __call__(self, url: str, **options: Any) -> WebsocketTransport:
        self.attempts.append(trio.current_time())
        ours, theirs = trio.testing.memory_stream_pair()
        transport = WebsocketTransport(url, stream=ours, **options)
        if self.failures:
            failure = self.failures.popleft()

            async def fail(nursery: trio.Nursery) -> None:
                await trio.lowlevel.checkpoint()
                raise failure

            transport.connect = fail  # type: ignore[method-assign]
        else:
            self.streams.append(theirs)
            self._nursery.start_soon(self._serve, theirs)
        return transport

    async def _serve(self, stream: trio.StapledStream) -> None:
        async def read(reader: Callable[[], Awaitable[None]]) -> None:
            with suppress(LocalProtocolError):  # a ping that meets its close
                await reader()

        async with trio.open_nursery() as inner:
            readers: Any = SimpleNamespace(start_soon=partial(inner.start_soon, read))
            with suppress(trio_websocket.ConnectionClosed, trio.BrokenResourceError):
                await self.exchange(await trio_websocket.wrap_server_stream(readers, stream))
            inner.cancel_scope.cancel()

    async def drop(self) -> None:
        """Break the last connection, without a close frame."""
        await self.streams[-1].aclose()


@asynccontextmanager
async def in_memory(exchange: ScriptedExchange, **options: Any) -> AsyncIterator[Connection]:
    """A connection to the exchange over in-memory streams; its ``_transport`` is the `InMemory`."""
    async with trio.open_nursery() as nursery:
        server = InMemory(exchange, nursery)
        yield Connection("ws://in.memory/realtime", transport=server, **{"reconnect": None, **options})
        for stream in server.streams:
            await stream.aclose()
        nursery.cancel_scope.cancel()


async def tardis_replay(
    messages: Iterable[str], request: trio_websocket.WebSocketRequest, *, window: float = 0.2
) -> None:
    """What tardis-machine's ``ws-replay`` does with a client, as observed: no welcome, no acknowledgements;
    subscriptions that come soon (there: 2 s) after the connection are taken, then all their messages as fast as they
    go, then close 1000.
    """
    ws = await request.accept()
    topics: set[str] = set()
    with trio.move_on_after(window):
        while True:
            command = json.loads(await ws.get_message())
            topics.update(command["args"])
    if not topics:
        await ws.aclose(1011, "no subscriptions")
        return
    for text in messages:
        message = json.loads(text)
        if "table" not in message:
            continue
        symbol = message["data"][0].get("symbol") if message["data"] else message.get("filter", {}).get("symbol")
        if message["table"] in topics or f"{message['table']}:{symbol}" in topics:
            await ws.send_message(text)
    await ws.aclose(1000, "WS replay finished")
