"""What passes between a client and its exchange, seen from outside: the eyes of the soak at the socket.

A `Witness` is the stream under a transport. It reads along, by itself, what the server sends (the answer to the
handshake, and each frame), and notes when something came, went, and ended. From that `Attempts` tells whether the
client kept to what it promises: not sooner, and not later, than its `Reconnect` and the server's ``Retry-After`` say
does it try again; and it gives up a silent server neither too soon nor too late.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any

import trio

from bitmex_streams import Reconnect

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA  # opcodes (RFC 6455, 5.2)
TOO_SOON = 1e-6  # s: a rounding
STABLE_OR_NOT = 0.05  # s by which the age of a connection may be taken for another


class Attempt:
    """One attempt of the client to connect, and what came of it; all times are trio's."""

    def __init__(self, began: float, max_message_size: int) -> None:
        self.began = self.heard = began
        """When it began, and when something last came."""
        self.up = self.lost = self.closed = inf
        """When it stood, when the client took it for lost, and when the client let go of its stream."""
        self.pinged = -inf
        """When the client last sent a ping."""
        self.messages: deque[str | bytes] = deque()
        """The messages that have arrived, and were not handed out."""
        self.spoiled = False
        """Whether bytes were sent on it whose meaning is not for us to say."""
        self.unread = False
        """Whether the client did not read on: what waits for that may be lost with the connection."""
        self.given_up = trio.Event()
        self.away: set[str] = set()
        """The topics that nobody wanted when it stood, nor since."""
        self.bounds: tuple[float, float] | None = None
        """The least and the most that is to be waited after it, once known."""
        self.head = b""
        self._max_size = max_message_size
        self._buffer = bytearray()
        self._fragments: tuple[int, bytearray] | None = None
        self._shaken = self._deaf = False

    def __repr__(self) -> str:
        return (
            f"<an attempt at {self.began:.3f}, up {self.up:.3f}, lost {self.lost:.3f}, closed {self.closed:.3f}, "
            f"answered {self.head[:200]!r}>"
        )

    @property
    def status(self) -> int | None:
        """The HTTP status of the answer to the handshake."""
        found = re.match(rb"HTTP/1\.1 (\d{3}) ", self.head)
        return int(found[1]) if found else None

    @property
    def retry_after(self) -> float:
        """The seconds that a refusal asked to wait; 0 where it did not, or says a date that has passed."""
        found = re.search(rb"\r\nRetry-After: ([\d.]+)\r\n", self.head)
        return float(found[1]) if found else 0.0

    def hear(self, data: bytes) -> None:
        """Take what the server sent apart, up to the first that is no traffic of a websocket, or closes it."""
        self.heard = trio.current_time()
        if self._deaf:
            return
        self._buffer += data
        if not self._shaken:
            end = self._buffer.find(b"\r\n\r\n") + 4
            self.head = bytes(self._buffer[:end] if end > 3 else self._buffer[:2000])
            if end < 4:
                return
            self._shaken, self._deaf = True, self.status != 101
            del self._buffer[:end]
        while not self._deaf and (frame := self._frame()) is not None:
            self._take(*frame)

    def _frame(self) -> tuple[int, bytes] | None:
        """The next whole frame, as its first byte and its payload."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        size, begin = buffer[1], 2
        if size in (126, 127):
            begin = 4 if size == 126 else 10
            if len(buffer) < begin:
                return None
            size = int.from_bytes(buffer[2:begin], "big")
        if buffer[1] > 127 or size > self._max_size:  # masked, or too large
            self._deaf = True
            return None
        if len(buffer) < begin + size:
            return None
        frame = buffer[0], bytes(buffer[begin : begin + size])
        del buffer[: begin + size]
        return frame

    def _take(self, first: int, payload: bytes) -> None:
        opcode, whole = first & 0xF, first & 0x80
        if opcode in (PING, PONG) and first & 0xF0 == 0x80 and len(payload) < 126:
            return
        if opcode == CONTINUATION and self._fragments is not None:
            opcode, pieces = self._fragments
            pieces += payload
            payload = bytes(pieces)
            self._fragments = None
        elif self._fragments is not None:
            opcode = CLOSE
        if first & 0x70 or opcode not in (TEXT, BINARY) or len(payload) > self._max_size:
            self._deaf = True
        elif not whole:
            self._fragments = opcode, bytearray(payload)
        elif opcode == BINARY:
            self.messages.append(payload)
        else:
            try:
                self.messages.append(payload.decode())
            except UnicodeDecodeError:
                self._deaf = True


class Witness(trio.abc.Stream):
    """The stream under a transport (above TLS), which shows an `Attempt` all that passes."""

    def __init__(self, stream: trio.abc.Stream, attempt: Attempt, attempts: Attempts) -> None:
        self._stream, self._attempt, self._attempts, self._sends = stream, attempt, attempts, 0

    async def send_all(self, data: bytes) -> None:
        attempt, now = self._attempt, trio.current_time()
        self._sends += 1
        if self._sends > 1:  # whoever says more than the handshake takes it for made
            self._attempts.stand(attempt)
        if data and data[0] & 0xF == PING:
            attempt.pinged = now
        await self._stream.send_all(data)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data: bytes = await self._stream.receive_some(max_bytes)
        if data:
            self._attempt.hear(data)
        return data

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        self._attempt.closed = min(self._attempt.closed, trio.current_time())
        await self._stream.aclose()


class Attempts:
    """All attempts of one connection, each judged by those before it.

    ``slack``: s that the client may be late; ``heartbeat``, ``reconnect``: its own. ``on_up`` is called with each that
    stands. What is wrong goes to ``say``.
    """

    def __init__(
        self,
        reconnect: Reconnect,
        heartbeat: float,
        slack: float,
        on_up: Callable[[Attempt], None],
        say: Callable[[str], None],
    ) -> None:
        self.last: Attempt | None = None
        self.ups: deque[Attempt] = deque()
        """Those that stood, until whoever follows the stream has met their `Connected`."""
        self._on_up = on_up
        self._reconnect, self._heartbeat, self._slack, self._say = reconnect, heartbeat, slack, say
        self._failures = {0}  # how many there may have been in a row

    def begin(self, max_message_size: int) -> Attempt:
        """Another attempt begins."""
        now = trio.current_time()
        if (last := self.last) is not None:
            if last.closed == inf:
                self._say("another attempt begins, and the stream of the one before is open")
            low, high = self._bounds(last)
            waited, most = now - min(last.lost, last.closed), now - self._ended(last)
            if waited < low - TOO_SOON:
                self._say(f"another attempt {waited:.3f} s after {last}, and {low:.3f} s were to be waited")
            if most > high + self._slack:
                self._say(f"another attempt not before {most:.3f} s after {last}, and {high:.3f} s were to be waited")
        self.last = Attempt(now, max_message_size)
        return self.last

    def stand(self, attempt: Attempt) -> None:
        """The client takes the connection for made. Idempotent."""
        if attempt.up == inf and attempt.status == 101:
            attempt.up = trio.current_time()
            self.ups.append(attempt)
            self._on_up(attempt)

    def next_up(self) -> Attempt | None:
        """The next that stood, for whoever follows the stream."""
        if not self.ups and self.last is not None:
            self.stand(self.last)
        return self.ups.popleft() if self.ups else None

    def lost(self, reason: str) -> None:
        """The client takes the connection for lost."""
        attempt, now = self.last, trio.current_time()
        if attempt is None or attempt.up == inf or attempt.lost < inf:
            return
        attempt.lost = now
        attempt.given_up.set()
        if "heartbeat lost" in reason and self._slack > self._heartbeat:  # something may have come in this very moment
            attempt.unread = True
        elif "heartbeat lost" in reason:
            if now < attempt.heard + 2 * self._heartbeat - TOO_SOON:
                self._say(f"given up for dead {now - attempt.heard:.3f} s after something came")
            if attempt.pinged < attempt.heard + self._heartbeat - TOO_SOON:
                self._say("given up for dead, and it was not asked for a sign of life")

    def look(self, quiet_since: float) -> None:
        """What has to hold at any moment. ``quiet_since``: when the client may last have had reasons not to read."""
        attempt, now = self.last, trio.current_time()
        if attempt is None:
            return
        if attempt.up < inf and attempt.lost == inf:
            silence = now - max(attempt.heard, quiet_since)
            if silence > 2 * self._heartbeat + self._slack:
                self._say(f"for {silence:.3f} s nothing has come, and that is taken for a connection")
        elif attempt.closed < inf:
            waited, (_, high) = now - self._ended(attempt), self._bounds(attempt)
            if waited > high + self._slack:
                self._say(f"no other attempt in {waited:.3f} s after {attempt}, and {high:.3f} s were to be waited")

    @staticmethod
    def _ended(attempt: Attempt) -> float:
        """When the wait for the next one began."""
        return max(attempt.closed, attempt.lost) if attempt.lost < inf else attempt.closed

    def _bounds(self, last: Attempt) -> tuple[float, float]:
        """The least and the most that is waited after an attempt."""
        if last.bounds is None and last.status == 401:  # the signature was used before: at once with another
            last.bounds = 0.0, 0.0
        if last.bounds is None:
            policy = self._reconnect
            stood = last.lost - last.up if last.up < inf else 0.0
            failures = {0} if stood > policy.stable + STABLE_OR_NOT else set(self._failures)
            if abs(stood - policy.stable) <= STABLE_OR_NOT:
                failures.add(0)
            self._failures = {failed + 1 for failed in failures}
            waits = [min(policy.maximum, policy.initial * policy.factor**failed) for failed in failures]
            low, high = min(waits) * (1 - policy.jitter), max(waits) * (1 + policy.jitter)
            asked = last.retry_after if last.up == inf else 0.0
            last.bounds = max(low, asked), max(high, asked + max(waits) * policy.jitter)
        return last.bounds


def witnessed(transport: Any, attempts: Attempts, max_message_size: int) -> None:
    """Have a transport of ours, which is about to connect, put a `Witness` on the stream that it opens."""
    open_stream, attempt = transport._open_stream, attempts.begin(max_message_size)

    async def open_witnessed() -> Witness:
        try:
            return Witness(await open_stream(), attempt, attempts)
        except BaseException:
            attempt.closed = trio.current_time()
            raise

    transport._open_stream = open_witnessed
