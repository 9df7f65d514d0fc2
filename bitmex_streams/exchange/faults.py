"""Faults on purpose: what networks and exchanges do to their clients, to be done to those of the embedded exchange.

Two seams. A `Line` is the stream of one client, with the websocket on top of it and TLS below: it stalls, cuts frames
and breaks. `Faults.copies_of` and `Faults.delay` decide over each delta and each partial, before it goes to a client.
The exchange's own tables know nothing of it, and stay right.
"""

from __future__ import annotations

import math
import os
import socket
import struct
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from .tables import topic_name

if TYPE_CHECKING:
    from .simulation import Simulation

__all__ = ["Faults", "Frame", "Line"]

TEXT, CLOSE = 0x1, 0x8  # opcodes (RFC 6455, 5.2)
DATA = 0x1, 0x2
MAX_REQUEST_SIZE = 2**16
LINGER = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)  # close at once, discarding what was not sent: RST
SECOND = 1_000_000_000


class Frame(bytes):
    """A whole websocket frame, to be sent as it is."""

    @classmethod
    def of(cls, opcode: int, payload: bytes) -> Frame:
        """The frame, final and unmasked, with any payload."""
        size = len(payload)
        if size < 126:
            length = bytes([size])
        elif size < 2**16:
            length = struct.pack("!BH", 126, size)
        else:
            length = struct.pack("!BQ", 127, size)
        return cls(bytes([0x80 | opcode]) + length + payload)


class Line(trio.abc.Stream):
    """The stream of one client, and what is done to it.

    ``topics``, ``send``, ``end``: of its session, once there is one: what it is subscribed to; puts a message behind
    those that wait; discards these and closes. ``scope``: cancelling it ends the connection.
    """

    def __init__(self, faults: Faults, stream: trio.abc.Stream, scope: trio.CancelScope) -> None:
        self.scope = scope
        self.topics: Iterable[tuple[str, str | None]] = ()
        self.send: Callable[[str | bytes], None] | None = None
        self.end: Callable[[int, str], None] | None = None
        self.stalled: trio.Event | None = None
        self.cut = False
        self.substitutes: dict[int, Frame] = {}
        """What goes out in place of the next frame of an opcode: for frames that trio-websocket would not make."""
        self._faults = faults
        self._stream = stream

    # --- the stream ---

    async def send_all(self, data: bytes) -> None:
        if self.stalled is not None or self.cut or self.substitutes:
            data = await self._spoil(data)
        await self._stream.send_all(data)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data: bytes = await self._stream.receive_some(max_bytes)
        while self.stalled is not None:
            await self.stalled.wait()
        if not data and self.send is None:  # nobody is left to shake hands with: trio-websocket would wait on
            self.scope.cancel()
        return data

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def _spoil(self, data: bytes) -> bytes:
        """What goes out in place of the bytes of one frame, when it may."""
        while self.stalled is not None:
            await self.stalled.wait()
        if self.send is None:  # no frames yet
            return data
        opcode = data[0] & 0xF
        data = self.substitutes.pop(opcode, data)
        if self.cut and opcode in DATA:
            self._faults.counts["cut_frame"] += 1
            await self._stream.send_all(data[: len(data) // 2])
            self.scope.cancel()
            await trio.sleep_forever()
        return data

    # --- what the server does with it ---

    async def open(self) -> bool:
        """Wait until the client may be served, as long as that takes. False where it was refused instead."""
        if self._faults.stalls:
            self.stall()
        if (delay := self._faults.next_handshake_delay()) is not None:
            await trio.sleep(delay)
        while self.stalled is not None:
            await self.stalled.wait()

    async def refused(self) -> bool:
        """Whether the client was refused: then its request was read and answered."""
        if isinstance(self._stream, trio.SSLStream):
            await self._stream.do_handshake()
        refusal = self._faults.next_refusal()
        if refusal is None:
            return False
        request = b""
        while b"\r\n\r\n" not in request and len(request) < MAX_REQUEST_SIZE:
            request += await self.receive_some()
        await self.send_all(refusal.answer)
        self._faults.counts["refuse"] += 1
        if refusal.keep_open:
            while await self.receive_some():
                pass
        return True

    def stall(self) -> None:
        self.stalled = self.stalled or trio.Event()

    def resume(self) -> None:
        if self.stalled is not None:
            self.stalled.set()
            self.stalled = None

    def drop(self, reset: bool) -> None:
        stream = self._stream
        while isinstance(stream, trio.SSLStream):
            stream = stream.transport_stream
        if reset and isinstance(stream, trio.SocketStream):
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
        self.scope.cancel()
