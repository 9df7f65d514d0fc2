"""The websocket under a `Connection`, and what a `Connection` asks of one.

`WebsocketTransport` is slurry-websocket's section on a stream of our own: it opens TCP and TLS itself, so that a
certificate that does not verify is an error at once, reads in large chunks, keeps the first bytes of the answer, so
that the status of a refusal is known however the refusal is made, and always closes the stream. trio-websocket's
reader may end without telling anybody who waits for it (0.9.2: after protocol errors, or a connection lost while
closing; all versions: at a close before the handshake is complete), so every wait for it here ends with it.
"""

from __future__ import annotations

import contextlib
import math
import re
import socket
import ssl
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from types import SimpleNamespace
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlsplit

import msgspec
import trio
import trio_websocket
from slurry_websocket import Websocket
from wsproto.connection import ConnectionState
from wsproto.events import Ping
from wsproto.utilities import LocalProtocolError

from .errors import ConnectionFailed
from .inbox import Inbox

__all__ = ["TRANSPORTS", "Transport", "TransportClosed", "TransportFactory", "WebsocketTransport", "check_url"]

CONNECT_TIMEOUT = 10.0
CLOSE_TIMEOUT = 2.0
MAX_MESSAGE_SIZE = 64 * 2**20  # partials of every symbol are some 5 MB
READ_AHEAD = 64
"""How many messages trio-websocket's reader may be ahead. They take it a millisecond, in which nobody else runs."""
CHUNK = 2**16
MAX_RETRY_AFTER = 3600.0  # a server that asks for more than an hour is asked again after one
USER_TIMEOUT = 5.0
LEAST_USER_TIMEOUT, MOST_USER_TIMEOUT = 1.0, 3600.0  # a delayed acknowledgement and a retransmission fit into a second
REFUSAL_GRACE = 0.5  # seconds that the text of a refusal has to arrive: some have no length, and no end


class TransportClosed(Exception):
    """The websocket is closed. ``code`` (int; 1006: without a close frame; 1005: by one without a code) and ``reason``
    (str) are the websocket's. ``by_server``: whether they are what the server's close frame says; else it is what this
    side says of the server's traffic.
    """

    def __init__(self, code: int = 1006, reason: str = "", *, by_server: bool = True) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason
        self.by_server = by_server


class Transport(Protocol):
    """What a `Connection` needs of a websocket client; each instance is used for one connection.

    One task receives and one sends (a send that is cancelled half-way corrupts a websocket), at the same time.
    """

    async def connect(self, nursery: trio.Nursery) -> None:
        """Connect and shake hands; tasks it needs live in ``nursery``.

        Raises `ConnectionFailed`; leaves nothing open then, or when cancelled.
        """

    async def receive(self) -> Sequence[str | bytes]:
        """The next messages, at least one, in order. Safe to cancel. Raises `TransportClosed` after the last one."""

    async def send(self, message: str) -> None:
        """Send one text message. Not safe to cancel. Raises `TransportClosed`."""

    async def ping(self) -> None:
        """Send a ping frame; its pong shows in `heard`. Not safe to cancel. Raises `TransportClosed`."""

    @property
    def heard(self) -> float:
        """When (on trio's clock) something last came from the server, be it half a message."""

    async def aclose(self, code: int = 1000, reason: str | None = None) -> None:
        """Close with a close handshake; when cancelled (already), without one.

        No socket is left open. Never raises on its own account.
        """


TransportFactory = Callable[..., Transport]
"""Called as ``factory(url, ssl_context=, extra_headers=, max_message_size=, connect_timeout=, user_timeout=)``: see
`WebsocketTransport`.
"""


def check_url(url: str) -> str:
    """Give back ``url`` if a websocket can be opened with it; else ValueError that says what is wrong."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError as exc:  # a bad port, or half of the brackets of an IPv6 address
        raise ValueError(f"{url!r} is not a websocket URL: {exc}") from None
    if not usable:
        raise ValueError(
            f"{url!r} is not a websocket URL: it has to look like wss://host/realtime or ws://host:port/realtime"
        )
    if parts.username is not None or parts.password is not None:
        raise ValueError("a websocket URL must not hold a user name or password: URLs are logged and recorded")
    if any(name.lower() in ("api-key", "api-signature") for name, _ in parse_qsl(parts.query)):
        raise ValueError(
            "a websocket URL must not hold an API key or signature: URLs are logged and recorded; give api_key and "
            "api_secret to sign the handshake"
        )
    return url


class Wire(trio.abc.Stream):
    """The stream that hands are shaken over: it remembers the answer, and calls ``on_refusal`` when that is no consent.

    trio-websocket also stays on it, for it would read 4 KiB at a time. ``sent``: values of headers, which are not shown
    where the server repeats them.
    """

    def __init__(
        self, stream: trio.abc.Stream, on_refusal: Callable[[], None], sent: Iterable[bytes] = ()
    ) -> None:
        self.stream = stream
        self._sent = [value for value in sent if len(value) >= 8]
        self._on_refusal = on_refusal
        self._shaking_hands = True
        self.heard = trio.current_time()
        """When (on trio's clock) something last came from the server."""
        self.head = b""
        """The first bytes that the server sent: the answer to the handshake. The libraries tell of a refusal only when
        it is complete.
        """

    @property
    def status(self) -> int | None:
        """The HTTP status of that answer, once it is there."""
        found = re.match(rb"HTTP/1\.[01] (\d{3})\b", self.head)
        return int(found[1]) if found else None

    @property
    def retry_after(self) -> float | None:
        """The seconds that the answer asks to wait (``Retry-After``, as a number or a date), None where it does not."""
        found = re.search(rb"\r\nretry-after: *([^\r\n]+)", self.head.partition(b"\r\n\r\n")[0], re.IGNORECASE)
        if found is None:
            return None
        value = found[1].decode("latin-1").strip()
        if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value):
            return min(float(value), MAX_RETRY_AFTER)
        try:
            until = parsedate_to_datetime(value).timestamp()
        except (TypeError, ValueError, OverflowError):
            return None
        return min(max(0.0, until - time.time()), MAX_RETRY_AFTER)

    @property
    def shown(self) -> bytes:
        """`head` without what was sent."""
        return self.hide(self.head.decode("latin-1")).encode("latin-1")

    def hide(self, text: str) -> str:
        """``text`` without what was sent."""
        for value in self._sent:
            text = text.replace(value.decode("latin-1"), "***")
        return text

    @property
    def words(self) -> str:
        """What a refusal says in its body, shortened, where that is text."""
        body = self.shown.partition(b"\r\n\r\n")[2][:500].decode("utf-8", "replace")
        return " ".join("".join(char if char.isprintable() else " " for char in body).split())[:200]

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data: bytes = await self.stream.receive_some(CHUNK)
        self.heard = trio.current_time()
        if self._shaking_hands:
            self.head += data[:CHUNK]
            if not b"HTTP/".startswith(self.head[:5]):
                self._on_refusal()
            elif b"\r\n\r\n" in self.head or len(self.head) > CHUNK:
                if self.status == 101:
                    self._shaking_hands = False
                elif self.status is not None:
                    self._on_refusal()
        return data

    async def send_all(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self.stream.aclose()


class Dialer(ABC):
    """The way from a URL to a stream with a websocket on it, and what to say where it ends early: the same for every
    transport. A subclass shakes hands.
    """

    url: str
    ssl_context: ssl.SSLContext | None
    extra_headers: Sequence[tuple[bytes, bytes]]
    connect_timeout: float
    user_timeout: float

    def _aim(self, stream: trio.abc.Stream | None) -> None:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        self.use_ssl = parts.scheme == "wss"
        self.host = parts.hostname
        self.port = parts.port or (443 if self.use_ssl else 80)
        self.resource = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._stream = stream
        self._wire: Wire | None = None
        self._via = ""  # what the connection goes through, for errors
        self._refused_at = math.inf

    @property
    def host_header(self) -> str:
        """The Host header: brackets around an IPv6 address, the port unless it is the scheme's own (RFC 7230, 5.4)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.use_ssl else 80) else f"{host}:{self.port}"

    async def connect(self, nursery: trio.Nursery) -> None:
        """See `Transport.connect`. Raises `ConnectionFailed`, with the HTTP status where the server refused."""
        try:
            with trio.move_on_after(self.connect_timeout) as patience:
                stream = self._stream or await self._open_stream()

                def refused() -> None:  # its words have their time, also where that for connecting is over first
                    self._refused_at = min(self._refused_at, trio.current_time())
                    patience.deadline = max(patience.deadline, self._refused_at + 2 * REFUSAL_GRACE)
                    self._expect_refusal()

                self._wire = Wire(stream, refused, (value for _, value in self.extra_headers))
                await self._shake_hands(nursery, self._wire)
                return
            if self._wire is None:
                what = f"no sign of a connection to {self.host} port {self.port}"
            elif not self._wire.head:
                what = "no sign of an answer to the handshake"
            elif self._wire.status not in (None, 101):  # words without end
                raise self._refused(self._wire, None)
            else:
                what = f"the answer to the handshake, which begins {self._wire.shown[:60]!r}, was not complete"
            raise ConnectionFailed(
                f"no connection to {self.url}{self._via}: {what} within {self.connect_timeout:g} s; "
                "check the address and the network, or raise connect_timeout"
            )
        except BaseException:
            if self._wire is not None:
                await trio.aclose_forcefully(self._wire)
            raise

    async def _open_stream(self) -> trio.abc.Stream:
        stream = await self._open_tcp(self.host, self.port)
        return await self._start_tls(stream, self.host, self.ssl_context) if self.use_ssl else stream

    async def _open_tcp(self, host: str, port: int) -> trio.abc.Stream:
        try:
            stream = await trio.open_tcp_stream(host, port)
            if (option := getattr(socket, "TCP_USER_TIMEOUT", None)) is not None:  # Linux
                seconds = min(max(self.user_timeout, LEAST_USER_TIMEOUT), MOST_USER_TIMEOUT)
                stream.setsockopt(socket.IPPROTO_TCP, option, int(1000 * seconds))
            return stream
        except OSError as exc:
            raise ConnectionFailed(f"no connection to {self.url}{self._via}: {_explain(exc, host, port)}") from exc

    async def _start_tls(
        self, stream: trio.abc.Stream, host: str, context: ssl.SSLContext | None, whose: str = "the server"
    ) -> trio.abc.Stream:
        tls: trio.abc.Stream = trio.SSLStream(
            stream, context or ssl.create_default_context(), server_hostname=host, https_compatible=True
        )
        try:
            await tls.do_handshake()
        except BaseException as exc:
            await trio.aclose_forcefully(stream)
            if not isinstance(exc, trio.BrokenResourceError | ssl.SSLError | OSError):
                raise
            cause = exc if isinstance(exc, ssl.SSLError) else exc.__cause__ or exc
            if isinstance(cause, ssl.SSLCertVerificationError):
                why = (
                    f"{whose}'s certificate does not verify: {cause.verify_message or cause}; check the host name "
                    "and the clock, or pass an ssl_context that trusts it"
                )
            else:
                why = f"the TLS handshake with {whose} failed ({cause}); does it speak it? (ws:// is without)"
            final = isinstance(cause, ssl.SSLCertVerificationError)
            raise ConnectionFailed(f"no connection to {self.url}{self._via}: {why}", final=final) from cause
        return tls

    @abstractmethod
    async def _shake_hands(self, nursery: trio.Nursery, wire: Wire) -> None:
        """Make a websocket of it, or raise what `_refused` says."""

    @abstractmethod
    def _expect_refusal(self) -> None:
        """The server says no: its words have `REFUSAL_GRACE` seconds to arrive."""

    def _refused(self, wire: Wire, error: BaseException | None) -> ConnectionFailed:
        """What became of the handshake that is no websocket now; ``error`` is the library's."""
        status = wire.status
        if status is not None and status != 101:
            said = f": {wire.words}" if wire.words else ""
            return ConnectionFailed(
                f"{self.url} refused the connection with HTTP status {status}{said}{_ADVICE.get(status, '')}",
                status=status,
                retry_after=wire.retry_after,
            )
        how = "closed the connection during the handshake"
        if wire.head:
            why = wire.hide(f": {error}" if error else "")
            how = f"answered what is no websocket handshake (it begins {wire.shown[:60]!r}{why})"
        return ConnectionFailed(f"no connection to {self.url}{self._via}: the server {how}; is it a websocket server?")


class _Messages:
    """Stands in for both ends of the channel between trio-websocket's reader and whoever wants its messages.

    Through that channel each message costs two passes through the scheduler, and one that is larger than allowed
    discards those before it.
    """

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    async def send(self, message: str | bytes) -> None:
        await self._inbox.wait_for_room()
        if self._inbox.closed:  # by a message that was too large: what follows it must not pass for what follows
            raise trio.BrokenResourceError
        self._inbox.put_nowait(message, len(message))

    async def aclose(self) -> None:
        self._inbox.close()

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *exc_info: object) -> None:
        self._inbox.close()


class WebsocketTransport(Dialer, Websocket):
    """slurry-websocket's section as a `Transport`; it still works as a section of its own, too.

    ``url``: ``ws://`` or ``wss://``. ``ssl_context``: for ``wss://``; default: the system's certificates.
    ``extra_headers``: (name, value) pairs of bytes for the handshake. ``max_message_size``: in characters or bytes; a
    larger message closes the connection with 1009.
    ``connect_timeout``, ``disconnect_timeout``: seconds. ``user_timeout``: seconds (1 at least) that what was sent may
    stay unacknowledged by the other host until TCP gives the connection up, where the platform has that
    (``TCP_USER_TIMEOUT``: Linux). ``stream``: a stream that stands already and is used in place
    of a new TCP connection (TLS is then its maker's business).
    """

    def __init__(
        self,
        url: str,
        *,
        ssl_context: ssl.SSLContext | None = None,
        extra_headers: Sequence[tuple[bytes, bytes]] = (),
        max_message_size: int = MAX_MESSAGE_SIZE,
        connect_timeout: float = CONNECT_TIMEOUT,
        disconnect_timeout: float = CLOSE_TIMEOUT,
        user_timeout: float = USER_TIMEOUT,
        stream: trio.abc.Stream | None = None,
        parse_json: bool = True,
    ) -> None:
        super().__init__(
            check_url(url),
            ssl_context,
            extra_headers=list(extra_headers),
            max_message_size=max_message_size,
            connect_timeout=connect_timeout,
            disconnect_timeout=disconnect_timeout,
            parse_json=parse_json,
        )
        self.user_timeout = user_timeout
        self._aim(stream)
        self._inbox = Inbox(READ_AHEAD, CHUNK)
        self._reader_ended = False
        self._reader_error: Exception | None = None
        self._waits: set[trio.CancelScope] = set()

    @property
    def websocket(self) -> trio_websocket.WebSocketConnection | None:
        """trio-websocket's connection, once it is made."""
        return self._connection

    # --- connecting ---

    async def _shake_hands(self, nursery: trio.Nursery, wire: Wire) -> None:
        # trio-websocket starts its reader in the nursery it is given, and that is all it wants of it: so we see how
        # the reader ends.
        def start_soon(reader: Callable[[], Awaitable[None]]) -> None:
            connection: Any = reader.__self__  # type: ignore[attr-defined]
            connection._send_channel = connection._recv_channel = _Messages(self._inbox)
            nursery.start_soon(self._run_reader, reader)

        watched = SimpleNamespace(start_soon=start_soon)
        with self._ending_with_reader():
            self._connection = await trio_websocket.wrap_client_stream(
                watched,
                wire,
                self.host_header,
                self.resource,
                extra_headers=list(self.extra_headers),
                max_message_size=self.max_message_size,
            )
            return
        raise self._refused(wire, self._reader_error) from self._reader_error

    async def _run_reader(self, reader: Callable[[], Awaitable[None]]) -> None:
        try:
            await reader()
        except Exception as exc:  # a refusal, or what leaks while closing: those who wait say what it means
            self._reader_error = exc
        finally:
            self._reader_ended = True
            for scope in self._waits:
                scope.cancel()

    def _expect_refusal(self) -> None:
        for scope in self._waits:
            scope.deadline = trio.current_time() + REFUSAL_GRACE

    @contextlib.contextmanager
    def _ending_with_reader(self) -> Iterator[None]:
        """Leave the block when trio-websocket's reader has ended: it has handed over all it had, and whoever still
        waits would for ever.
        """
        with trio.CancelScope() as scope:
            self._waits.add(scope)
            if self._reader_ended:
                scope.cancel()
            try:
                yield
            finally:
                self._waits.discard(scope)

    # --- connected ---

    async def receive(self) -> Sequence[str | bytes]:
        """See `Transport.receive`."""
        with self._ending_with_reader(), contextlib.suppress(trio.EndOfChannel):
            return await self._inbox.take()
        if len(self._inbox):
            return await self._inbox.take()
        raise self._closed()

    def leftovers(self) -> Sequence[str | bytes]:
        """What was read, and is not handed over yet, for whoever will not `receive` any more."""
        return self._inbox.take_nowait()

    async def send(self, message: str) -> None:
        """See `Transport.send`."""
        with self._telling_closed():
            await self._connection.send_message(message)

    async def ping(self) -> None:
        """See `Transport.ping`."""
        if self._connection.closed is not None or self._reader_ended:
            raise self._closed()
        with self._telling_closed():
            await self._connection._send(Ping())  # `ping` would wait for the pong, and be cancelled half-way

    @contextlib.contextmanager
    def _telling_closed(self) -> Iterator[None]:
        try:
            yield
        except (
            trio_websocket.ConnectionClosed,
            LocalProtocolError,
            trio.BrokenResourceError,
            trio.ClosedResourceError,
        ) as exc:
            closed = self._closed()
            closed.reason = closed.reason or why_broken(exc)
            raise closed from exc

    @property
    def heard(self) -> float:
        """See `Transport.heard`."""
        return self._wire.heard if self._wire is not None else trio.current_time()

    def _closed(self) -> TransportClosed:
        closed = self._connection.closed
        if closed is None:
            return TransportClosed(1006, str(self._reader_error or ""))
        # wsproto knows of a close frame that came; where it (or trio-websocket) objects to what came, it does not.
        by_server = self._connection._wsproto.state in (ConnectionState.REMOTE_CLOSING, ConnectionState.CLOSED)
        return TransportClosed(int(closed.code), closed.reason or "", by_server=by_server and closed.code != 1006)

    async def aclose(self, code: int = 1000, reason: str | None = None) -> None:
        """See `Transport.aclose`."""
        self._inbox.shut()
        try:
            if self._connection is not None and not self._reader_ended:
                with self._ending_with_reader():
                    await self._connection.aclose(code, reason)
        except Exception:  # trio-websocket leaks wsproto's errors here; what is closed anyway needs no explanation
            pass
        finally:
            if self._wire is not None:
                with contextlib.suppress(trio.BrokenResourceError):
                    await trio.aclose_forcefully(self._wire)

    async def pump(self, input: AsyncIterable[Any] | None, output: Callable[[Any], Awaitable[None]]) -> None:
        """Run as a section: received messages come out, items that come in are sent.

        JSON both ways with ``parse_json``.
        """

        async def send_all() -> None:
            assert input is not None
            with contextlib.suppress(TransportClosed):
                async for item in input:
                    await self.send(msgspec.json.encode(item).decode() if self.parse_json else item)

        error: Exception | None = None
        async with trio.open_nursery() as nursery:
            try:
                await self.connect(nursery)
                if input is not None:
                    nursery.start_soon(send_all)
                while True:
                    for message in await self.receive():
                        await output(msgspec.json.decode(message) if self.parse_json else message)
            except TransportClosed as closed:
                error = None if closed.code == 1000 else trio_websocket.ConnectionClosed(self._connection.closed)
            except Exception as exc:  # raised below: a nursery would make a group of it
                error = exc
            finally:
                with trio.move_on_after(self.disconnect_timeout):
                    await self.aclose()
                nursery.cancel_scope.cancel()
        if error is not None:
            raise error


def _fast(url: str, **options: Any) -> Transport:
    from .fast import FastTransport  # not before it is wanted: it needs an extra, and says so

    return FastTransport(url, **options)


TRANSPORTS: dict[str, TransportFactory] = {"default": WebsocketTransport, "fast": _fast}
"""The transports that `Connection` knows by name. ``"fast"`` needs the extra ``fast``; ImportError without."""

_ADVICE = {
    401: "; the API key or its signature is not accepted",
    403: "; this client is not let in",
    404: "; check the path of the URL: BitMEX's is /realtime",
    429: "; too many connections or requests: wait before the next one",
    503: "; the server is overloaded or down: try again later",
}


def why_broken(error: BaseException | None) -> str:
    """What the operating system said of a connection that broke, where it is behind ``error``; else ""."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return str(error or "")


def _explain(error: OSError, host: str, port: int) -> str:
    """Why a TCP connection could not be opened, and what to do. trio groups the errors of several addresses."""
    if isinstance(error, socket.gaierror):
        return f"the name {host!r} cannot be resolved ({error.strerror}); check the name and the network"
    cause: BaseException = error
    while getattr(cause, "errno", None) is None:
        inner = getattr(cause, "exceptions", None) or [cause.__cause__]
        if inner[0] is None:
            break
        cause = inner[0]
    if isinstance(cause, ConnectionRefusedError):
        return f"nothing listens on {host} port {port} (connection refused); is the server running?"
    return f"{getattr(cause, 'strerror', None) or cause}; check the address and the network"
