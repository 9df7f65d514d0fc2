"""Clients of the embedded exchange for its tests: they speak the protocol, and are no part of the library."""

import json
from datetime import UTC, datetime

import trio
from trio_websocket import open_websocket_url

from bitmex_streams.exchange import open_exchange

START = datetime(2026, 1, 1, 12, 0, 30, tzinfo=UTC)


def paused(**options):
    return open_exchange(**{"speed": 0, "symbols": ("XBTUSD", "SOLUSDT"), "levels": 30, "start_time": START, **options})


class Client:
    def __init__(self, websocket):
        self.websocket = websocket

    async def receive(self):
        with trio.fail_after(10):
            return json.loads(await self.websocket.get_message())

    async def send(self, op, *args, text=None):
        await self.websocket.send_message(json.dumps({"op": op, "args": list(args)}) if text is None else text)

    async def ask(self, op, *args, text=None):
        await self.send(op, *args, text=text)
        return await self.receive()

    async def until_pong(self):
        """All that was sent so far: the answer to a ping comes behind it."""
        await self.websocket.send_message("ping")
        messages = []
        with trio.fail_after(20):
            while (message := await self.websocket.get_message()) != "pong":
                messages.append(json.loads(message))
        return messages


class open_client:
    def __init__(self, exchange, query="", *, welcome=True, **options):
        self._context = open_websocket_url(exchange.url + query, **options)
        self._welcome = welcome

    async def __aenter__(self):
        self._websocket = await self._context.__aenter__()
        client = Client(self._websocket)
        if self._welcome:
            try:
                assert "Welcome" in (await client.receive())["info"]
            except BaseException as error:
                await self.__aexit__(type(error), error, error.__traceback__)
                raise
        return client

    async def __aexit__(self, *error):
        try:
            return await self._context.__aexit__(*error)
        finally:  # which leaves the socket open where the other side has closed first, or is gone
            await trio.aclose_forcefully(self._websocket._stream)


async def handshake(exchange, path, headers=()):
    """A bare TCP stream on which the opening handshake was sent."""
    host, port = exchange.url.removeprefix("ws://").removesuffix("/realtime").split(":")
    stream = await trio.open_tcp_stream(host, int(port))
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *headers,
    ]
    await stream.send_all("\r\n".join([*lines, "", ""]).encode())
    return stream
