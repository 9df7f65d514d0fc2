"""Serve a workload over a websocket on loopback: `python -m benchmarks.feed DELTAS LEVELS [RATE]`.

A process of its own, so that a client has a core to itself. It prints its port, and serves one client after the other:
it answers subscriptions, and when the book has been asked for and a moment has passed, it prints the time
(time.monotonic, which the processes of a machine share) and sends all deltas: in large writes, as fast as the client
reads; or, with a RATE, so many a second, each with the time at which it was sent in the place of its timestamps.
"""

from __future__ import annotations

import contextlib
import math
import socket
import sys
import time

import orjson
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import AcceptConnection, CloseConnection, Ping, Request, TextMessage

from .workload import TIMESTAMP, Workload, partial_of, stamp

PAUSE = 0.2  # seconds in which a client takes the partial, and has its other subscriptions answered
WELCOME = {
    "info": "Welcome to the BitMEX Realtime API.",
    "version": "2026-01-01",
    "timestamp": TIMESTAMP,
    "docs": "https://www.bitmex.com/app/wsAPI",
    "heartbeatEnabled": False,
    "limit": {"remaining": 39},
}


def frame(payload: bytes) -> bytes:
    """A whole text frame of a server (RFC 6455, 5.2)."""
    size = len(payload)
    if size < 126:
        return bytes((0x81, size)) + payload
    if size < 1 << 16:
        return b"\x81\x7e" + size.to_bytes(2, "big") + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload


class Feed:
    """The workload, and how it is served."""

    def __init__(self, workload: Workload, rate: float | None) -> None:
        book, *deltas = workload.messages
        self.partials = {"orderBookL2": frame(book), "trade": frame(partial_of("trade", []))}
        self.rate = rate
        self.deltas = deltas
        frames = list(map(frame, deltas))
        self.chunks = [b"".join(frames[begin : begin + 500]) for begin in range(0, len(frames), 500)]

    def serve(self, client: socket.socket) -> None:
        """One client, from handshake to close."""
        connection = WSConnection(ConnectionType.SERVER)
        deadline = math.inf
        while (left := deadline - time.monotonic()) > 0:
            client.settimeout(None if deadline == math.inf else left)
            try:
                topics = hear(connection, client)
            except TimeoutError:
                break
            for topic in topics:
                table = topic.partition(":")[0]
                acknowledged = frame(orjson.dumps({"success": True, "subscribe": topic, "request": {}}))
                client.sendall(acknowledged + self.partials[table])
                if table == "orderBookL2":
                    deadline = time.monotonic() + PAUSE
        client.settimeout(None)
        print(time.monotonic(), flush=True)
        if self.rate is None:
            for chunk in self.chunks:
                client.sendall(chunk)
        else:
            self.pace(client, self.rate)
        while connection.state is not ConnectionState.CLOSED:
            hear(connection, client)

    def pace(self, client: socket.socket, rate: float) -> None:
        """So many a second; what a sleep that was too long has left behind goes at once, each in a write of its own."""
        began = time.monotonic()
        for number, message in enumerate(self.deltas):
            if (early := began + number / rate - time.monotonic()) > 0:
                time.sleep(early)
            client.sendall(frame(stamp(message, time.monotonic())))


def hear(connection: WSConnection, client: socket.socket) -> list[str]:
    """Take what a client says, and give the answers of the websocket protocol; the topics that it asks for."""
    data = client.recv(65536)
    if not data:
        raise ConnectionError("the client has gone")
    connection.receive_data(data)
    topics: list[str] = []
    for event in connection.events():
        if isinstance(event, Request):
            client.sendall(connection.send(AcceptConnection()) + frame(orjson.dumps(WELCOME)))
        elif isinstance(event, Ping | CloseConnection):
            client.sendall(connection.send(event.response()))
        elif isinstance(event, TextMessage):
            command = orjson.loads(event.data)
            if command["op"] == "subscribe":
                topics += command["args"]
    return topics


def main() -> None:
    """Serve one client after the other, for ever."""
    deltas, levels, *rate = sys.argv[1:]
    feed = Feed(Workload(int(deltas), int(levels)), float(rate[0]) if rate else None)
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            client, _ = server.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with client, contextlib.suppress(OSError):  # a client that has seen enough may just go
                feed.serve(client)


if __name__ == "__main__":
    main()
