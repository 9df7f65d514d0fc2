"""Faults on purpose: what networks and exchanges do to their clients, to be done to those of the embedded exchange.

Two seams. A `Line` is the stream of one client, with the websocket on top of it and TLS below: it stalls, cuts frames
and breaks. `Faults.copies_of` and `Faults.postpone` decide over each delta and each partial before it goes to a
client. The exchange's own tables know nothing of it, and stay right.
"""

from __future__ import annotations

import math
import os
import socket
import struct
from collections import Counter, deque
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec
import trio

from .schemas import PRIVATE_SCHEMAS, SCHEMAS

if TYPE_CHECKING:
    from .server import Subscription
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
        self.topics: Container[tuple[str, str | None]] = ()
        self.send: Callable[[str | bytes], None] | None = None
        self.end: Callable[[int, str], None] | None = None
        self.stalled: trio.Event | None = None
        self.cut = False
        self.closing = False
        """Whether the client is being closed on purpose, and has a moment to answer."""
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

    async def opened(self) -> None:
        """Wait until the client may be served, as long as that takes."""
        if (delay := self._faults.next_handshake_delay()) is not None:
            await trio.sleep(delay)
        while self.stalled is not None:
            await self.stalled.wait()

    async def refused(self) -> bool:
        """Whether the client is one to refuse: then its request was read and answered."""
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

    # --- what is done to it ---

    def stall(self) -> None:
        self.stalled = trio.Event() if self.stalled is None else self.stalled

    def resume(self) -> None:
        if self.stalled is not None:
            self.stalled.set()
            self.stalled = None

    def stand_in(self, frame: Frame) -> str:
        """A message that has ``frame`` go out when it is sent next."""
        self.substitutes[TEXT] = frame
        return ""

    def drop(self, reset: bool) -> None:
        stream = self._stream
        while isinstance(stream, trio.SSLStream):
            stream = stream.transport_stream
        if reset and isinstance(stream, trio.SocketStream):
            with suppress(OSError):  # it is being closed already
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
        self.scope.cancel()


@dataclass
class Refusal:
    """What the next handshakes are answered with."""

    times: int
    answer: bytes
    keep_open: bool


@dataclass
class Miscount:
    """How many times the next deltas of a topic go out: never, or twice."""

    name: str
    topic: tuple[str, str | None]
    count: int
    copies: int
    message: str | None = None
    """The delta that it last struck. It goes to one subscriber after the other."""

    def covers(self, table: str, message: str) -> bool:
        of_table, symbol = self.topic
        if table != of_table or symbol is None:
            return table == of_table
        return any(row.get("symbol") == symbol for row in msgspec.json.decode(message)["data"])


@dataclass
class Delay:
    """How much later (ns) the next partials of a topic come."""

    topic: tuple[str, str | None] | None
    times: int
    time: int
    deltas_first: bool


class Faults:
    """``exchange.faults``: faults that the clients of an embedded exchange have to live with.

    Nothing here awaits, and all of it is to be called in the thread of the exchange. What a method does to clients
    that are connected is done when the caller next awaits. ``topic``: only to clients that are subscribed to that topic
    (as they have written it: ``"trade"`` or ``"trade:XBTUSD"``); default: all clients. These methods return how many
    clients it is done to. The others strike what comes next: handshakes, partials, deltas.

    The exchange itself goes on as if nothing was: its markets, tables and accounts stay right, to compare with. Bad
    arguments raise ValueError.
    """

    def __init__(self, simulation: Simulation) -> None:
        self.counts: Counter[str] = Counter()
        """How often each fault has struck, by the name of its method: a client, a handshake, a partial or a delta."""
        self.stalls = False
        """Whether new clients are stalled."""
        self.miscounts: list[Miscount] = []
        self._simulation = simulation
        self._lines: dict[Line, None] = {}
        self._handshake_delays: deque[float] = deque()
        self._refusals: deque[Refusal] = deque()
        self._delays: deque[Delay] = deque()

    # --- the connection breaks ---

    def drop(self, *, reset: bool = True, topic: str | None = None) -> int:
        """Break the TCP connection, without a close frame. What waited for the client is lost.

        The client sees a reset (RST); with ``reset=False`` an orderly end of the stream (FIN), unless there are bytes
        of the client that nobody has read. Clients that are still in their handshake are dropped, too.
        """
        lines = self._of(topic)
        for line in lines:
            line.drop(reset)
        return self._count("drop", lines)

    def cut_frame(self, *, topic: str | None = None) -> int:
        """Cut the next message in the middle of its frame: the first half is sent, then the TCP connection ends (FIN).

        The client sees a frame that ends early, without a close frame. Control frames before it pass.
        """
        lines = self._of(topic, in_session=True)
        for line in lines:
            line.cut = True
        return len(lines)

    def close(self, code: int | None = 1000, reason: str = "", *, topic: str | None = None) -> int:
        """Close the websocket with a close frame of this code and reason, ahead of what waits for the client.

        The client sees the code as it is, be it one that must never be sent (1005, 1006, 1015); with ``code=None``, a
        close frame with neither. One that does not answer within a second is cut off. ``code``: 0 to 65535. ``reason``:
        up to 123 bytes of UTF-8.
        """
        if code is None and reason:
            raise ValueError("a close frame without a code cannot have a reason")
        if code is not None and not _is_whole(code, 0, 65535):
            raise ValueError(f"code is {code!r}: it must be a number up to 65535, or None for none")
        payload = b"" if code is None else struct.pack("!H", code) + reason.encode()
        if len(payload) > 125:
            raise ValueError(f"reason has {len(payload) - 2} bytes: a close frame holds 123")
        lines = self._of(topic, in_session=True)
        for line in lines:
            line.closing = True
            line.substitutes[CLOSE] = Frame.of(CLOSE, payload)
            assert line.end is not None
            line.end(1000, "")
        return self._count("close", lines)

    # --- silence ---

    def stall(self, *, topic: str | None = None) -> int:
        """Send nothing and hear nothing any more, until `resume`.

        The client sees a TCP connection that stands, and no message, no pong and no answer to a close frame on it. With
        ``topic=None`` that also goes for clients to come: TCP connects, then nothing is answered, TLS included. What
        is published meanwhile waits, and is bounded as ever: in the end the client is cut off. What the kernel had
        already taken may still arrive.
        """
        lines = self._of(topic)
        for line in lines:
            line.stall()
        self.stalls = self.stalls or topic is None
        return self._count("stall", lines)

    def resume(self) -> None:
        """End all stalls. Clients get what waited for them, and what they sent is answered."""
        self.stalls = False
        for line in self._lines:
            line.resume()

    # --- the handshake ---

    def slow_handshake(self, seconds: float, *, times: int = 1) -> None:
        """Let the next ``times`` clients wait for the answer to their handshake.

        The client sees a TCP connection on which nothing is answered for ``seconds`` (of trio's clock), TLS included;
        then all is as usual.
        """
        _check_seconds(seconds)
        _check_count("times", times)
        self._handshake_delays.extend([seconds] * times)

    def refuse(
        self,
        status: int,
        *,
        times: int = 1,
        retry_after: float | str | None = None,
        body: bytes | None = b'{"error":{"message":"Refused on purpose","name":"HTTPError"}}',
        keep_open: bool = False,
    ) -> None:
        """Refuse the next ``times`` clients with an HTTP status instead of a websocket.

        ``status``: 200 to 599, for instance 401, 429 or 503. ``retry_after``: what the header ``Retry-After`` says, in
        seconds or as an HTTP date; default: no such header. ``body``: None for an answer with neither body nor
        ``Content-Length``, which only ends with the connection. ``keep_open``: leave it to the client to end that
        (for at most ten seconds).
        """
        if not _is_whole(status, 200, 599):
            raise ValueError(f"status is {status!r}: it must be an HTTP status from 200 to 599")
        _check_count("times", times)
        if isinstance(retry_after, str) and not (retry_after.isascii() and retry_after.isprintable()):
            raise ValueError(f"retry_after is {retry_after!r}: it must be seconds or an HTTP date")
        if retry_after is not None and not isinstance(retry_after, str):
            _check_seconds(retry_after, "retry_after")
        try:
            phrase = HTTPStatus(status).phrase
        except ValueError:
            phrase = ""
        head = [f"HTTP/1.1 {status} {phrase}", "Connection: close"]
        if retry_after is not None:
            head.append(f"Retry-After: {retry_after}")
        if body is not None:
            head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        answer = "\r\n".join([*head, "", ""]).encode() + (body or b"")
        self._refusals.append(Refusal(times, answer, keep_open))

    # --- messages that nobody expects ---

    def send(self, message: str | bytes, *, topic: str | None = None) -> int:
        """Send any message, behind those that wait: garbage, unknown tables or actions, deltas that contradict.

        The client sees a well-formed text message (of a str) or binary message (of bytes) with this content.
        """
        if not isinstance(message, str | bytes):
            raise ValueError(f"message is {type(message).__name__}: it must be text or bytes")
        if isinstance(message, str):
            message.encode()  # UnicodeEncodeError, which is a ValueError: such text can go by `send_frame` alone
        return self._send("send", bytes(message) if isinstance(message, bytes) else message, topic)

    def big_message(self, size: int, *, topic: str | None = None) -> int:
        """Send one text message of ``size`` bytes (at least 100): an insert into ``announcement``, in well-formed JSON.

        The client sees a single frame of that length; 20_000_000 is more than many clients take.
        """
        if not _is_whole(size, 100):
            raise ValueError(f"size is {size!r}: it must be a number of bytes, at least 100")
        head, tail = '{"table":"announcement","action":"insert","data":[{"id":1,"content":"', '"}]}'
        return self._send("big_message", head + "." * (size - len(head) - len(tail)) + tail, topic)

    def send_frame(self, payload: bytes, *, opcode: int = TEXT, topic: str | None = None) -> int:
        """Send one whole frame with this payload, behind the messages that wait.

        The client sees a final frame of that ``opcode`` (0 to 15; default: text), whatever it holds: bytes that are no
        UTF-8, for instance.
        """
        if not _is_whole(opcode, 0, 15):
            raise ValueError(f"opcode is {opcode!r}: it must be a number up to 15")
        return self._send("send_frame", Frame.of(opcode, payload), topic)

    def send_raw(self, data: bytes, *, topic: str | None = None) -> int:
        """Send bytes that need be no frame at all, behind the messages that wait.

        The client sees them where it looks for the beginning of a frame.
        """
        if not data:
            raise ValueError("data is empty: there is nothing to send")
        return self._send("send_raw", Frame(data), topic)

    # --- topics ---

    def skip(self, topic: str, count: int = 1) -> None:
        """Send the next ``count`` deltas of a topic to nobody.

        ``topic``: a table, or a table and a symbol; then deltas with rows of that symbol. Only deltas that somebody is
        subscribed to count. Clients see nothing: what they know of the table is wrong from there on.
        """
        self._miscount("skip", topic, count, 0)

    def duplicate(self, topic: str, count: int = 1) -> None:
        """Send the next ``count`` deltas of a topic twice, to all that are subscribed; see `skip`.

        Clients see the same message again, right behind itself.
        """
        self._miscount("duplicate", topic, count, 2)

    def delay_partial(
        self, seconds: float, *, topic: str | None = None, times: int = 1, deltas_first: bool = True
    ) -> None:
        """Let the next ``times`` partials come later than the acknowledgements of their subscriptions.

        ``seconds``: on the exchange's clock, so that `advance` brings the partial, too. ``topic``: a table (with or
        without symbol), or a table and a symbol; default: whatever is subscribed to next. The partial shows the table
        as it is when it is sent. ``deltas_first``: whether deltas that happen until then are sent before it, for the
        client to ignore; else it gets nothing of the topic.
        """
        _check_seconds(seconds)
        _check_count("times", times)
        wanted = None if topic is None else _parse(topic)
        self._delays.append(Delay(wanted, times, round(seconds * SECOND), deltas_first))

    def clear(self) -> None:
        """End all stalls, and forget whatever has not struck yet. What was sent or broken stays so."""
        self.resume()
        self._handshake_delays.clear()
        self._refusals.clear()
        self._delays.clear()
        self.miscounts.clear()
        for line in self._lines:
            line.cut = False

    # --- for the server ---

    @contextmanager
    def line(self, stream: trio.abc.Stream) -> Iterator[Line]:
        """The stream of a new client, as it is to be used from here on."""
        with trio.CancelScope() as scope:
            line = Line(self, stream, scope)
            if self.stalls:
                line.stall()
            self._lines[line] = None
            try:
                yield line
            finally:
                del self._lines[line]

    def next_handshake_delay(self) -> float | None:
        """How long a new client has to wait, None where not at all."""
        if not self._handshake_delays:
            return None
        self.counts["slow_handshake"] += 1
        return self._handshake_delays.popleft()

    def next_refusal(self) -> Refusal | None:
        """What a new client is refused with, None where it is not."""
        if not self._refusals:
            return None
        refusal = self._refusals[0]
        refusal.times -= 1
        if not refusal.times:
            self._refusals.popleft()
        return refusal

    def copies_of(self, table: str, message: str) -> int:
        """How many times a delta goes to a subscriber."""
        for miscount in tuple(self.miscounts):
            if miscount.message is message:
                return miscount.copies
            if not miscount.count:
                self.miscounts.remove(miscount)
        for miscount in self.miscounts:
            if miscount.covers(table, message):
                miscount.count -= 1
                miscount.message = message
                self.counts[miscount.name] += 1
                return miscount.copies
        return 1

    def postpone(self, subscription: Subscription) -> bool:
        """Whether the partial of a new subscription comes later: then its ``begin`` will be called."""
        for delay in self._delays:
            of_table, symbol = delay.topic or (subscription.table, None)
            if subscription.table == of_table and symbol in (None, subscription.symbol):
                delay.times -= 1
                if not delay.times:
                    self._delays.remove(delay)
                self.counts["delay_partial"] += 1
                subscription.muted = not delay.deltas_first
                self._simulation.schedule(self._simulation.time() + delay.time, subscription.begin)
                return True
        return False

    def _of(self, topic: str | None, in_session: bool = False) -> list[Line]:
        """The clients that are meant."""
        if topic is not None:
            wanted = _parse(topic)
            return [line for line in self._lines if wanted in line.topics]
        return [line for line in self._lines if line.send is not None or not in_session]

    def _count(self, name: str, lines: list[Line]) -> int:
        self.counts[name] += len(lines)
        return len(lines)

    def _send(self, name: str, message: str | bytes, topic: str | None) -> int:
        lines = self._of(topic, in_session=True)
        for line in lines:
            assert line.send is not None
            line.send(message)
        return self._count(name, lines)

    def _miscount(self, name: str, topic: str, count: int, copies: int) -> None:
        _check_count("count", count)
        self.miscounts.append(Miscount(name, _parse(topic), count, copies))


def _parse(topic: str) -> tuple[str, str | None]:
    table, colon, symbol = topic.partition(":") if isinstance(topic, str) else ("", "", "")
    if table not in SCHEMAS and table not in PRIVATE_SCHEMAS:
        raise ValueError(f"topic is {topic!r}: it must be a table, or a table and a symbol, such as 'trade:XBTUSD'")
    return table, symbol if colon else None


def _check_seconds(seconds: float, name: str = "seconds") -> None:
    if not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise ValueError(f"{name} is {seconds!r}: it must be a number of seconds, not negative")


def _check_count(name: str, count: int) -> None:
    if not _is_whole(count, 1):
        raise ValueError(f"{name} is {count!r}: it must be a whole number, at least 1")


def _is_whole(number: object, least: int, most: float = math.inf) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and least <= number <= most
