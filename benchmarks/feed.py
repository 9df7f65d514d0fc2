"""Serve a workload over a websocket on loopback, as fast as the client reads: `python -m benchmarks.feed DELTAS
LEVELS`.

A process of its own, so that a client has a core to itself. It prints its port, welcomes each client, waits for its
subscription, sends the acknowledgement and the partial, half a second later everything else in large writes, and then
waits for the client to go.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import time

import orjson
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Message, Request, TextMessage

from .workload import TIMESTAMP, Workload

WELCOME = {
    "info": "Welcome to the BitMEX Realtime API.",
    "version": "2026-01-01",
    "timestamp": TIMESTAMP,
    "docs": "https://www.bitmex.com/app/wsAPI",
    "heartbeatEnabled": False,
    "limit": {"remaining": 39},
}
NO_TRADES = {"table": "trade", "action": "partial", "keys": [], "types": {}, "filter": {"symbol": "XBTUSD"}, "data": []}


def frame(payload: bytes) -> bytes:
    """A whole text frame of a server (RFC 6455, 5.2)."""
    size = len(payload)
    if size < 126:
        return bytes((0x81, size)) + payload
    if size < 1 << 16:
        return b"\x81\x7e" + size.to_bytes(2, "big") + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload


def serve_one(client: socket.socket, first: bytes, rest: list[bytes]) -> None:
    """From handshake to the end of the workload."""
    connection = WSConnection(ConnectionType.SERVER)
    subscribed = False
    while not subscribed:
        data = client.recv(65536)
        if not data:
            return
        connection.receive_data(data)
        for event in connection.events():
            if isinstance(event, Request):
                client.sendall(connection.send(AcceptConnection()) + frame(orjson.dumps(WELCOME)))
            elif isinstance(event, Message):
                request = orjson.loads(event.data) if isinstance(event, TextMessage) else {}
                for topic in request.get("args", ()):
                    client.sendall(frame(orjson.dumps({"success": True, "subscribe": topic, "request": request})))
                subscribed = bool(request)
    client.sendall(first)
    time.sleep(0.5)
    for chunk in rest:
        client.sendall(chunk)
    while client.recv(65536):  # its close frame, or just the end
        pass


def main() -> None:
    """Serve one client after the other, for ever."""
    workload = Workload(int(sys.argv[1]), int(sys.argv[2]))
    partial, *rest = map(frame, workload.messages)
    first = frame(orjson.dumps(NO_TRADES)) + partial
    chunks = [b"".join(rest[begin : begin + 500]) for begin in range(0, len(rest), 500)]
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            client, _ = server.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with client:
                with contextlib.suppress(OSError):  # a client that has seen enough just goes
                    serve_one(client, first, chunks)


if __name__ == "__main__":
    main()
