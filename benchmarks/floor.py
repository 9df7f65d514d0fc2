"""What the same work costs without a library: the floors that everything is compared with, in the same run."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Iterator
from typing import Any

import orjson
from sortedcontainers import SortedDict

from .workload import Book

Rows = dict[str, dict[int, dict[str, Any]]]  # side -> id -> row


def nested_dicts(messages: Iterable[bytes], arrivals: list[tuple[str, float]] | None = None) -> Rows:
    """The floor of a socket: decode each message, and keep its rows in a dictionary a side, until a trade.

    ``arrivals`` takes the timestamp of each delta, and the time at which the book has it.
    """
    rows: Rows = {"Buy": {}, "Sell": {}}
    for data in messages:
        message = orjson.loads(data)
        action = message.get("action")
        if action is None:
            continue
        if message["table"] == "trade":
            if action == "insert":
                break
            continue
        if action == "update":
            for row in message["data"]:
                rows[row["side"]][row["id"]].update(row)
        elif action == "delete":
            for row in message["data"]:
                del rows[row["side"]][row["id"]]
        else:
            for row in message["data"]:
                rows[row["side"]][row["id"]] = row
        if arrivals is not None and action != "partial":
            arrivals.append((row["timestamp"], time.monotonic()))
    return rows


def sizes(rows: Rows) -> Book:
    """The book of those rows."""
    return {side: {row["price"]: row["size"] for row in of_side.values()} for side, of_side in rows.items()}


def sorted_dicts(messages: Iterable[bytes]) -> Book:
    """The floor of a recording: decode each message, and keep a SortedDict from price to size a side."""
    book: Book = {"Buy": SortedDict(), "Sell": SortedDict()}
    for data in messages:
        message = orjson.loads(data)
        if message["table"] != "orderBookL2":
            continue
        action = message["action"]
        if action == "delete":
            for row in message["data"]:
                del book[row["side"]][row["price"]]
        elif action == "partial":
            for side, of_side in book.items():
                of_side.update({row["price"]: row["size"] for row in message["data"] if row["side"] == side})
        else:
            for row in message["data"]:
                book[row["side"]][row["price"]] = row["size"]
    return book


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
                    length, begin = data[place + 2] << 8 | data[place + 3], begin + 2
                elif length == 127:
                    length, begin = int.from_bytes(data[begin : begin + 8], "big"), begin + 8
                if size - begin < length:
                    break
                place = begin + length
                yield data[begin:place]
            data = data[place:] + client.recv(1 << 18)
