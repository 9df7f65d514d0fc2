"""What the same work costs without a library: the floor that everything is compared with, in the same run."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from .workload import Book


def apply(messages: Iterable[bytes]) -> tuple[Book, float]:
    """Decode each message and keep the book in a dictionary a side; the book, and the seconds from the first delta to
    the end.
    """
    rows: dict[str, dict[int, dict[str, Any]]] = {"Buy": {}, "Sell": {}}
    began = 0.0
    for data in messages:
        message = orjson.loads(data)
        table, action = message.get("table"), message.get("action")
        if table == "trade" and action == "insert":
            break
        if table != "orderBookL2":
            continue
        if action != "partial":
            began = began or time.perf_counter()
        if action == "update":
            for row in message["data"]:
                rows[row["side"]][row["id"]].update(row)
        elif action == "delete":
            for row in message["data"]:
                del rows[row["side"]][row["id"]]
        else:
            for row in message["data"]:
                rows[row["side"]][row["id"]] = row
    seconds = time.perf_counter() - began
    return {side: {row["price"]: row["size"] for row in of_side.values()} for side, of_side in rows.items()}, seconds


def from_socket(port: int) -> Iterator[bytes]:
    """The messages of the feed at ``port``: a blocking socket, and the least of the websocket protocol."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(
            b"GET /realtime HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        data = b""
        while b"\r\n\r\n" not in data:
            data += client.recv(65536)
        command = orjson.dumps({"op": "subscribe", "args": ["orderBookL2:XBTUSD", "trade:XBTUSD"]})
        client.sendall(bytes((0x81, 0x80 | len(command), 0, 0, 0, 0)) + command)  # masked with zeros
        data = data.partition(b"\r\n\r\n")[2]
        while True:
            place, size = 0, len(data)
            while size - place >= 10:
                length, begin = data[place + 1], place + 2
                if length == 126:
                    length, begin = int.from_bytes(data[begin : begin + 2], "big"), begin + 2
                elif length == 127:
                    length, begin = int.from_bytes(data[begin : begin + 8], "big"), begin + 8
                if size - begin < length:
                    break
                place = begin + length
                yield data[begin:place]
            data = data[place:] + client.recv(1 << 18)
