"""The fast transport: the sans-IO protocol of the `websockets` library on a trio stream.

Each read takes what is there, up to 64 KiB, and all its messages are handed over at once. Nearly all of them are whole
text messages that are not compressed: those are cut out here, in a tenth of the time that websockets' own parser
takes. Every other frame goes to websockets' protocol, whole, one at a time, so it is the judge of all that is not
plain.

Whoever waits for something (a message, the end) reads, one task at a time, while the others wait for its news;
so there is no reader task and no queue, and a wait that is cancelled loses nothing. Everything is written under one
lock. What is to be answered while reading (pings, a close) is written by a task of its own: reading never waits for
writing.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import logging
import ssl
import struct
from collections.abc import Callable, Sequence
from urllib.parse import unquote, urldefrag, urlsplit
from urllib.request import getproxies, proxy_bypass

import trio

from .errors import ConnectionFailed
from .transport import (
    CHUNK,
    CLOSE_TIMEOUT,
    CONNECT_TIMEOUT,
    MAX_MESSAGE_SIZE,
    REFUSAL_GRACE,
    USER_TIMEOUT,
    Dialer,
    TransportClosed,
    Wire,
    check_url,
    why_broken,
)

try:
    from websockets.client import ClientProtocol
    from websockets.exceptions import InvalidState, PayloadTooBig, ProtocolError
    from websockets.extensions import Extension
    from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
    from websockets.frames import Frame, Opcode
    from websockets.protocol import State
    from websockets.uri import parse_uri
except ImportError as exc:
    raise ImportError(
        "the fast transport needs the websockets library, 13 or newer: pip install 'bitmex_streams[fast]'"
    ) from exc

__all__ = ["FastTransport"]

_unpack_head = struct.Struct(">HH").unpack_from
_TEXT = 0x81  # the first byte of a whole text message (RFC 6455, 5.2)
_COMPRESSED_TEXT = 0xC1  # the same, compressed (RFC 7692, 6)
_MEDIUM_TEXT = 0x817E  # the first two, where the length (126 to 65535) stands in the next two
_NOTHING = -1
# websockets logs whole frames and headers, which may hold keys and signatures.
_silent = logging.Logger("bitmex_streams.fast", logging.CRITICAL + 1)


class FastTransport(Dialer):
    """The `Transport` for many messages a second; ``transport="fast"`` of a `Connection`. Needs the extra ``fast``.

    ``url``: ``ws://`` or ``wss://``. ``ssl_context``: for ``wss://``; default: the system's certificates.
    ``extra_headers``: (name, value) pairs of bytes for the handshake. ``max_message_size``: in bytes (uncompressed); a
    larger message closes the connection with 1009. ``connect_timeout``: seconds. ``compression``: whether to offer
    permessage-deflate (RFC 7692); it costs nothing where the server declines. ``user_timeout``: seconds (1 at least)
    that what was sent may stay unacknowledged by the other host until TCP gives the connection up, where the platform
    has that (``TCP_USER_TIMEOUT``: Linux). ``stream``: a stream that stands already
    and is used in place of a new TCP connection (TLS is then its maker's business).

    Text messages are str, binary ones bytes. HTTP proxies are taken from the environment (and from the system's
    settings on macOS and Windows) as `urllib.request.getproxies` finds them: ``wss_proxy``, ``https_proxy`` and
    ``all_proxy`` for ``wss://``, ``ws_proxy``, ``http_proxy`` and ``all_proxy`` for ``ws://``, in this order; not for
    loopback addresses, nor for what ``no_proxy`` names. SOCKS proxies are refused with `ConnectionFailed`.

    Raises ValueError for a bad URL.
    """

    def __init__(
        self,
        url: str,
        *,
        ssl_context: ssl.SSLContext | None = None,
        extra_headers: Sequence[tuple[bytes, bytes]] = (),
        max_message_size: int = MAX_MESSAGE_SIZE,
        connect_timeout: float = CONNECT_TIMEOUT,
        compression: bool = True,
        user_timeout: float = USER_TIMEOUT,
        stream: trio.abc.Stream | None = None,
    ) -> None:
        self.url = check_url(url)
        self.ssl_context = ssl_context
        self.extra_headers = list(extra_headers)
        self.max_message_size = max_message_size
        self.connect_timeout = connect_timeout
        self.user_timeout = user_timeout
        self._aim(stream)
        self._uri = parse_uri(urldefrag(url).url)
        self._protocol = ClientProtocol(
            self._uri,
            extensions=[ClientPerMessageDeflateFactory(compress_settings={"memLevel": 5})] if compression else None,
            max_size=max_message_size,
            logger=_silent,
        )
        self._nursery: trio.Nursery | None = None
        self._handshake = trio.CancelScope()
        # reading
        self._tls: ssl.SSLObject | None = None
        self._ready: list[str | bytes] = []  # messages to hand over
        self._pieces: list[bytes] = []  # of a frame that is not complete
        self._missing = 0  # bytes until it is, or until its length can be told
        self._deflate: Extension | None = None
        self._fragments: list[bytes] = []  # of a message that is not complete
        self._text = True  # whether that is text
        self._plain = _MEDIUM_TEXT if max_message_size >= 2**16 else _NOTHING  # the frames that need no judge
        self._reading = False
        self._heard = trio.current_time()
        self._news = trio.lowlevel.ParkingLot()  # something was read, or taken, or the reader left
        self._ended: tuple[int, str, bool] | None = None  # what `TransportClosed` will say
        self._at_eof = False
        # writing
        self._writing = trio.Lock()
        self._torn = False  # a write was not completed: no other may follow
        self._answers: dict[bytes, bytes] = {}  # to be written: the last of each kind of control frame

    # --- connecting ---

    async def _shake_hands(self, nursery: trio.Nursery, wire: Wire) -> None:
        protocol = self._protocol
        request = protocol.connect()
        for name, value in self.extra_headers:
            request.headers[name.decode("latin-1")] = value.decode("latin-1")
        protocol.send_request(request)
        frames = b""
        broken: Exception | None = None
        with self._handshake:
            try:
                await wire.send_all(b"".join(protocol.data_to_send()))
                while protocol.state is State.CONNECTING and protocol.handshake_exc is None:
                    data = await wire.receive_some()
                    if not data:
                        protocol.receive_eof()
                        break
                    if wire.status == 101:
                        frames = wire.head.partition(b"\r\n\r\n")[2]
                    protocol.receive_data(data[: len(data) - len(frames)])
            except trio.BrokenResourceError as exc:
                broken = exc
        if protocol.state is not State.OPEN or b"\r\n\r\n" not in wire.head:
            objection = protocol.handshake_exc
            error = broken or (objection and objection.__cause__) or objection
            raise self._refused(wire, error) from error
        protocol.events_received()
        self._nursery = nursery
        self._stream = wire.stream
        self._tls = getattr(wire.stream, "_ssl_object", None)  # trio's SSLStream has no name for it
        self._deflate = protocol.extensions[0] if protocol.extensions else None
        if frames:
            self._take(frames)

    def _expect_refusal(self) -> None:
        self._handshake.deadline = trio.current_time() + REFUSAL_GRACE

    async def _open_tcp(self, host: str, port: int) -> trio.abc.Stream:
        found = _find_proxy("wss" if self.use_ssl else "ws", host, port)
        if found is None:
            return await super()._open_tcp(host, port)
        variable, url = found
        usable = False
        with contextlib.suppress(ValueError):  # a bad port: the words quote what may be of the password
            proxy = urlsplit(url if "://" in url else f"http://{url}")
            proxy_host, proxy_port = proxy.hostname, proxy.port or (443 if proxy.scheme == "https" else 80)
            usable = bool(proxy_host) and proxy.path in ("", "/") and not proxy.query and not proxy.fragment
        if not usable or proxy_host is None:
            raise ConnectionFailed(
                f"no connection to {self.url}: what {variable} says is no URL of a proxy; it has to look like "
                "http://host:port or http://user:password@host:port (with %23 for # and the like)"
            )
        shown = f"{proxy.scheme}://{_address(proxy_host, proxy_port)}"
        if proxy.scheme not in ("http", "https"):
            raise ConnectionFailed(
                f"no connection to {self.url}: {variable} names the proxy {shown}, and only HTTP proxies are spoken "
                f"to; name an http:// one in {variable}, or {host} in no_proxy"
            )
        self._via = f" through the proxy {shown}"
        stream = await super()._open_tcp(proxy_host, proxy_port)
        if proxy.scheme == "https":
            stream = await self._start_tls(stream, proxy_host, None, "the proxy")
        login = b""
        if proxy.username is not None:
            pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
            login = b"Proxy-Authorization: Basic " + base64.b64encode(pair.encode()) + b"\r\n"
        try:
            await self._open_tunnel(stream, _address(self._uri.host, port).encode(), login, variable)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return stream

    async def _open_tunnel(self, proxy: trio.abc.Stream, goal: bytes, login: bytes, variable: str) -> None:
        """Have the proxy connect us to ``goal`` (RFC 9110, 9.3.6)."""
        answer = Wire(proxy, lambda: None)
        with contextlib.suppress(trio.BrokenResourceError):
            await answer.send_all(b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (goal, goal, login))
            while b"\r\n\r\n" not in answer.head and len(answer.head) < CHUNK and await answer.receive_some():
                pass
        status = answer.status
        if status is not None and 200 <= status < 300 and answer.head.endswith(b"\r\n\r\n"):
            return
        if status is None or 200 <= status < 300:
            did = f"answered {answer.head[:100]!r}" if answer.head else "hung up"
            raise ConnectionFailed(f"no connection to {self.url}{self._via}: the proxy {did}; is it an HTTP proxy?")
        said = f": {answer.words}" if answer.words else ""
        advice = f"; its user name and password belong into {variable}" if status == 407 else ""
        raise ConnectionFailed(
            f"no connection to {self.url}{self._via}: the proxy refused it with HTTP status {status}{said}{advice}",
            status=status,
        )

    # --- reading ---

    async def receive(self) -> Sequence[str | bytes]:
        """See `Transport.receive`."""
        while not self._ready:
            if self._ended is not None:
                raise self._closed()
            await self._read()
        messages, self._ready = self._ready, []
        if self._news:
            self._news.unpark_all()
        return messages

    async def _read(self) -> None:
        """Read once and see what it is, or wait until another task has."""
        if self._reading:
            await self._news.park()
            return
        assert self._stream is not None
        self._reading = True
        why = ""
        try:
            data = await self._stream.receive_some(CHUNK)
            if data and self._tls is not None:
                data += self._other_records(self._tls)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            data, why = b"", str(exc.__cause__ or "")
        finally:
            self._reading = False
            if self._news:
                self._news.unpark_all()
        if data:
            self._heard = trio.current_time()
            self._take(data)
        else:
            self._at_eof = True
            self._protocol.receive_eof()
            self._settle(why)

    def _other_records(self, tls: ssl.SSLObject) -> bytes:
        """What else can be decrypted. A read gives one TLS record, and a server may send each message in its own."""
        records = []
        try:
            while record := tls.read(CHUNK):
                records.append(record)
        except ssl.SSLError:  # there is no more, or what there is is wrong: then the next read says so
            pass
        return b"".join(records)

    def _take(self, data: bytes) -> None:
        """Take what was read apart: messages go to ``_ready``."""
        if self._ended is not None:
            return
        if self._pieces:
            self._pieces.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data = b"".join(self._pieces)
            self._pieces.clear()
        append, plain = self._ready.append, _NOTHING if self._fragments else self._plain
        place, size = 0, len(data)
        try:
            while place < size:
                head, length = _unpack_head(data, place) if size - place > 3 else (0, 0)
                if head == plain:
                    begin = place + 4
                    end = begin + length
                    if end > size:
                        self._missing = end - size
                        break
                    append(data[begin:end].decode())
                else:
                    end = self._take_frame(data, place)
                    if self._ended is not None:
                        return
                    if not end:
                        break
                    plain = _NOTHING if self._fragments else self._plain
                place = end
        except UnicodeDecodeError as exc:
            self._fail(1007, f"{exc.reason} at position {exc.start}")
        except PayloadTooBig as exc:
            self._fail(1009, str(exc))
        except ProtocolError as exc:
            self._fail(1002, str(exc))
        if place < size and self._ended is None:
            self._pieces.append(data[place:])

    def _take_frame(self, data: bytes, place: int) -> int:
        """Take any frame. Returns its end; 0 where it is not complete (then ``_missing`` says how much)."""
        size = len(data)
        begin = place + 2
        length = data[begin - 1] if begin <= size else 0
        if length > 127:  # masked: as wrong as too large, and known as soon
            length = self.max_message_size + 1
        elif length > 125:
            begin += 2 if length == 126 else 8
            length = int.from_bytes(data[place + 2 : begin], "big") if begin <= size else 0
        end = begin + length
        if length <= self.max_message_size:
            if end > size:
                self._missing = end - size
                return 0
            if not self._fragments:
                if data[place] == _TEXT:
                    self._ready.append(data[begin:end].decode())
                    return end
                if data[place] == _COMPRESSED_TEXT and self._deflate is not None:
                    frame = Frame(Opcode.TEXT, data[begin:end], rsv1=True)
                    frame = self._deflate.decode(frame, max_size=self.max_message_size)
                    self._ready.append(bytes(frame.data).decode())
                    return end
        protocol = self._protocol
        protocol.receive_data(data[place:end])
        for event in protocol.events_received():
            if not isinstance(event, Frame):
                continue
            opcode, content = event.opcode, bytes(event.data)
            if opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                if opcode is not Opcode.CONT:
                    self._text = opcode is Opcode.TEXT
                self._fragments.append(content)
                if event.fin:
                    whole = b"".join(self._fragments)
                    self._fragments.clear()
                    self._ready.append(whole.decode() if self._text else whole)
        self._settle()
        return end

    def _fail(self, code: int, reason: str) -> None:
        self._protocol.fail(code, reason)
        self._settle()

    def _settle(self, why: str = "") -> None:
        """After the protocol was shown something: what it wants written, and whether that was the end (``why``, where
        the connection broke).
        """
        protocol = self._protocol
        idle = not self._answers
        self._collect_answers()
        if self._answers and idle and self._nursery is not None:
            self._nursery.start_soon(self._answer)
        if self._ended is not None or protocol.state is State.OPEN:
            return
        received, sent = protocol.close_rcvd, protocol.close_sent
        if received is not None and protocol.parser_exc is None:
            self._ended = int(received.code), received.reason, True
        elif sent is not None:
            self._ended = int(sent.code), sent.reason, False
        else:
            self._ended = 1006, why, False

    def _closed(self) -> TransportClosed:
        code, reason, by_server = self._ended or (1006, "", False)
        return TransportClosed(code, reason, by_server=by_server)

    # --- writing ---

    async def send(self, message: str) -> None:
        """See `Transport.send`."""
        await self._send(self._protocol.send_text, message.encode())

    async def ping(self) -> None:
        """See `Transport.ping`."""
        await self._send(self._protocol.send_ping, b"")

    @property
    def heard(self) -> float:
        """See `Transport.heard`."""
        return self._heard

    async def _send(self, make_frame: Callable[[bytes], None], payload: bytes) -> None:
        try:
            async with self._writing:
                await trio.lowlevel.checkpoint_if_cancelled()  # from here on it is as good as sent
                if self._ended is not None:
                    raise self._closed()
                make_frame(payload)
                await self._write(b"".join(self._protocol.data_to_send()))
        except (InvalidState, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            closed = self._closed()
            closed.reason = closed.reason or why_broken(exc)
            raise closed from exc

    def _collect_answers(self) -> None:
        for data in self._protocol.data_to_send():
            if data:  # else the end of what this side sends: `aclose` says so
                self._answers[data[:1]] = data

    async def _answer(self) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # whoever reads sees it, too
            await self._write_answers()

    async def _write_answers(self) -> None:
        async with self._writing:
            await trio.lowlevel.checkpoint_if_cancelled()
            data = b"".join(self._answers.values())
            self._answers.clear()
            await self._write(data)

    async def _write(self, data: bytes) -> None:
        assert self._stream is not None
        if self._torn:
            raise trio.BrokenResourceError("an earlier write was cut short")
        self._torn = True
        await self._stream.send_all(data)
        self._torn = False

    # --- closing ---

    async def aclose(self, code: int = 1000, reason: str | None = None) -> None:
        """See `Transport.aclose`; takes at most 2 seconds."""
        try:
            if self._nursery is not None and not self._at_eof:
                with trio.move_on_after(CLOSE_TIMEOUT):
                    await self._close(code, reason or "")
        except (ProtocolError, ValueError):
            pass  # a code or reason that no close frame can have
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # nobody is there to take one
        finally:
            if self._wire is not None:
                with contextlib.suppress(trio.BrokenResourceError):
                    await trio.aclose_forcefully(self._wire)

    async def _close(self, code: int, reason: str) -> None:
        if self._ended is None:
            self._ended = code, reason, False
            self._protocol.send_close(code, reason)
            self._collect_answers()
        await self._write_answers()
        while not self._at_eof:  # it is the server that hangs up (RFC 6455, 7.1.1)
            await self._read()


def _find_proxy(scheme: str, host: str, port: int) -> tuple[str, str] | None:
    """The environment variable that names the proxy for this address, and what it says; None: there is none."""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if local or proxy_bypass(host if ":" in host else f"{host}:{port}"):
        return None
    proxies = getproxies()
    for name in (scheme, "https" if scheme == "wss" else "http", "all"):
        if proxies.get(name):
            return f"{name}_proxy", proxies[name]
    return None


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
