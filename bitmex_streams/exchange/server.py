"""The exchange's side of the protocol: `Session` is what one client says and hears, `open_exchange` serves it over
websockets.

A `Session` does no I/O: text goes in by `receive`, comes out by ``send`` into a bounded queue. The markets never wait
for a client: one whose queue is full is cut off.

Protocol: https://www.bitmex.com/app/wsAPI; the words of errors are those that were received from the exchange, as far
as known.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from functools import partial
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import trio
from trio_websocket import ConnectionClosed, wrap_server_stream
from wsproto.utilities import LocalProtocolError

from ..nurseries import background
from .accounts import Account, Accounts
from .faults import Faults, Frame, Line
from .keys import InvalidKey
from .schemas import PRIVATE_SCHEMAS, PRIVATE_TABLES, SCHEMAS
from .simulation import SECOND, Due, Simulation
from .tables import Feed, Tables, iso, topic_name

__all__ = ["DEFAULT_SYMBOLS", "MAX_ARGUMENTS", "Exchange", "Session", "open_exchange"]

DEFAULT_SYMBOLS = ("XBTUSD", "ETHUSD", "XBTUSDT", "SOLUSDT")
MAX_ARGUMENTS = 20
HANDSHAKE_TIMEOUT = 10.0
CLOSE_TIMEOUT = 1.0
MAX_COMMAND_SIZE = 65_536
TURN = 0.002  # s that the markets may work before everybody else may run
LATE = 1e-6  # s after something is due that the exchange wakes for it: never, for a rounding, before
MAX_LAG = 1.0  # s that the markets may be behind the clock; beyond it, the clock waits for them
PATIENCE = 0.5  # s without a message taken, after which the markets do not wait for a client any more
SETTLE_PATIENCE = 5.0  # the same, of `Exchange.settled`
TOO_SLOW = "You do not read fast enough: too many messages wait for you."
# What tells that a client is gone; the second leaks from trio-websocket 0.9.2 while a connection closes.
GONE: tuple[type[BaseException], ...] = (
    ConnectionClosed, LocalProtocolError, trio.BrokenResourceError, trio.ClosedResourceError,
)  # fmt: skip
DOCS = "https://www.bitmex.com/app/wsAPI"

HELP = {
    "info": f"See {DOCS} and https://www.bitmex.com/explorer for more documentation.",
    "usage": 'To issue a command, send a JSON message: {"op": command, "args": [arg1, arg2, ...]}.',
    "ops": ["authKeyExpires", "cancelAllAfter", "help", "ping", "subscribe", "unsubscribe"],
    "subscribe": 'To subscribe, send: {"op": "subscribe", "args": [subscriptionTopic, ...]}.',
    "subscriptionSubjects": {"authenticationRequired": list(PRIVATE_TABLES), "public": list(SCHEMAS)},
}


log = logging.getLogger("bitmex_streams")


class Refused(Exception):
    """What a client asked for cannot be done; ``status`` is like HTTP's."""

    def __init__(self, error: str, status: int = 400) -> None:
        super().__init__(error)
        self.status = status


class Subscription:
    """A topic of a client: what the feed sends its deltas to. ``muted``: whether they go nowhere."""

    def __init__(self, session: Session, table: str, symbol: str | None, faults: Faults | None) -> None:
        self.table = table
        self.symbol = symbol
        self.muted = False
        self._session = session
        self._faults = faults

    def send(self, message: str) -> None:
        """Take a delta."""
        if not self.muted:
            faults = self._faults
            for _ in range(faults.copies_of(self.table, message) if faults is not None and faults.miscounts else 1):
                self._session.send(message)

    def begin(self, now: int) -> None:
        """Send the partial that was put off, unless the client has left the topic."""
        if self._session.topics.get((self.table, self.symbol)) is self:
            self.muted = False
            self._session.send(self._session.partial(self.table, self.symbol))


class Session:
    """One client: its subscriptions, and the answers to what it says.

    Messages for it go to ``send``, one at a time, as text. ``accounts``: those that it can sign in to; ``account``:
    the one that it is signed in to from the start, as by the headers of its handshake. ``faults``: what befalls its
    partials and deltas.
    """

    def __init__(
        self,
        feed: Feed,
        tables: Tables,
        send: Callable[[str], None],
        accounts: Accounts | None = None,
        account: Account | None = None,
        faults: Faults | None = None,
    ) -> None:
        self.topics: dict[tuple[str, str | None], Subscription] = {}
        self.send = send
        self.account = account
        self._accounts = accounts
        self._faults = faults
        self._feed = feed
        self._tables = tables

    def welcome(self, now: int, remaining: int) -> None:
        """Greet, as the first message. ``remaining``: the connections still allowed."""
        self._answer({
            "info": "Welcome to the BitMEX Realtime API.", "version": "2.0.0", "timestamp": iso(now), "docs": DOCS,
            "heartbeatEnabled": False, "limit": {"remaining": remaining},
        })  # fmt: skip

    def receive(self, message: str | bytes) -> None:
        """Answer one message of the client."""
        if message in ("ping", b"ping"):
            self.send("pong")
            return
        if message in ("help", b"help"):
            self._answer(HELP)
            return
        try:
            request = msgspec.json.decode(message)
        except (msgspec.DecodeError, UnicodeDecodeError):
            request = message if isinstance(message, str) else message.decode(errors="replace")
        try:
            self._command(request)
        except Refused as refused:
            self._refuse(refused, request)

    def subscribe(self, topics: Iterable[str], request: Any) -> None:
        """Subscribe to topics: for each an acknowledgement and the partial, or an error. ``request`` is echoed."""
        for topic in topics:
            try:
                table, symbol = self._parse_topic(topic)
                if (table, symbol) in self.topics:
                    raise Refused(f"You are already subscribed to this topic: {topic}.")
            except Refused as refused:
                self._refuse(refused, request)
                continue
            self._answer({"success": True, "subscribe": topic, "request": request})
            subscription = Subscription(self, table, symbol, self._faults)
            postponed = self._faults is not None and self._faults.postpone(subscription)
            # No await from here to the feed: the deltas that follow are of exactly what the partial shows.
            partial = self.partial(table, symbol)  # it also has the table's deltas begin
            if not postponed:
                self.send(partial)
            self.topics[table, symbol] = subscription
            self._feed_of(table).add(subscription, table, symbol)

    def partial(self, table: str, symbol: str | None) -> str:
        """The message that begins the subscription of a topic, as things stand."""
        if table not in PRIVATE_SCHEMAS:
            return self._tables.partial(table, symbol)
        assert self.account is not None
        return self.account.tables.partial(table, symbol)

    def unsubscribe(self, topics: Iterable[str], request: Any) -> None:
        """Give topics up: for each an acknowledgement, or an error."""
        for topic in topics:
            try:
                table, symbol = self._parse_topic(topic)
                if (table, symbol) not in self.topics:
                    raise Refused(f"You are not subscribed to this topic: {topic}.")
            except Refused as refused:
                self._refuse(refused, request)
                continue
            self._leave(table, symbol)
            self._answer({"success": True, "unsubscribe": topic, "request": request})

    def close(self) -> None:
        """The client is gone. Idempotent."""
        for table, symbol in tuple(self.topics):
            self._leave(table, symbol)

    def _leave(self, table: str, symbol: str | None) -> None:
        subscription = self.topics.pop((table, symbol))
        self._feed_of(table).remove(subscription, table, symbol)

    def _feed_of(self, table: str) -> Feed:
        return self._feed if self.account is None or table not in PRIVATE_SCHEMAS else self.account.tables.feed

    def _command(self, request: Any) -> None:
        op = request.get("op") if isinstance(request, dict) else None
        if op in ("subscribe", "unsubscribe"):
            args = request.get("args", [])
            topics = args if isinstance(args, list) else [args]
            if not topics or not all(isinstance(topic, str) for topic in topics):
                raise Refused(f"The args of {op} must be one or more topics.")
            if len(topics) > MAX_ARGUMENTS:
                raise Refused(f"Too many args: {len(topics)}. The maximum is {MAX_ARGUMENTS}.")
            (self.subscribe if op == "subscribe" else self.unsubscribe)(topics, request)
        elif op == "ping":
            self.send("pong")
        elif op == "help":
            self._answer(HELP)
        elif op == "authKeyExpires":
            self._sign_in(request.get("args"))
            self._answer({"success": True, "request": request})
        elif op == "cancelAllAfter":
            if self.account is None:
                raise Refused("Authentication is required to use cancelAllAfter.", 401)
            args = request.get("args")
            try:
                times = self.account.cancel_all_after(args[0] if isinstance(args, list) and len(args) == 1 else args)
            except ValueError as error:
                raise Refused(f"The args of cancelAllAfter must be a timeout in ms, 0 for none: {error}.") from error
            self._answer({**times, "request": request})
        else:
            raise Refused("Unrecognized request. See the documentation or send 'help' for more info.")

    def _sign_in(self, args: Any) -> None:
        if not isinstance(args, list) or len(args) != 3:
            raise Refused("The args of authKeyExpires must be an API key, expires and a signature.")
        if self._accounts is None:
            raise Refused("Invalid API Key.", 401)
        try:
            account = self._accounts.keys.check(*args)
        except InvalidKey as invalid:
            raise Refused(str(invalid), 401) from None
        if self.account is not None and self.account is not account:
            raise Refused("This connection is authenticated already, as another account.")
        self.account = account

    def _parse_topic(self, topic: str) -> tuple[str, str | None]:
        table, colon, symbol = topic.partition(":")
        if table in PRIVATE_SCHEMAS and self.account is None:
            raise Refused("User requested an account-locked subscription but no authorization was provided.", 401)
        schema = SCHEMAS.get(table) or PRIVATE_SCHEMAS.get(table)
        if schema is None:
            raise Refused(f"Unknown table: {table}")
        if not colon:
            return table, None
        if not schema.by_symbol or symbol not in self._tables.markets:
            raise Refused("Unknown or expired symbol.")
        return table, symbol

    def _answer(self, answer: Any) -> None:
        self.send(msgspec.json.encode(answer).decode())

    def _refuse(self, refused: Refused, request: Any) -> None:
        self._answer({"status": refused.status, "error": str(refused), "meta": {}, "request": request})


class Outbox:
    """The messages that wait for one client, until its connection has taken them."""

    def __init__(self, connection: Any, line: Line, max_messages: int, max_bytes: int) -> None:
        self.connection = connection
        self._line = line
        self._max = max_messages, max_bytes
        self._messages: deque[str | bytes] = deque()
        self._bytes = 0
        self._progress = 0.0  # when the client last took one, or had nothing to take
        self._ended: tuple[int, str] | None = None
        self._news = trio.lowlevel.ParkingLot()
        self._taken = trio.lowlevel.ParkingLot()

    def __str__(self) -> str:
        return f"{len(self._messages):,} messages ({self._bytes:,} characters)"

    @property
    def load(self) -> float:
        """What of its bounds is in use. One message always fits, however large it is."""
        messages, size = self._max
        return max(len(self._messages) / messages, self._bytes / size)

    @property
    def ended(self) -> bool:
        """Whether nothing more goes in."""
        return self._ended is not None

    def put(self, message: str | bytes) -> None:
        """Put a message behind the others, whatever the load. Discarded after `end`."""
        if self._ended is not None:
            return
        if not self._messages:
            self._progress = trio.current_time()
            self._news.unpark_all()
        self._messages.append(message)
        self._bytes += len(message)

    def end(self, code: int, reason: str) -> None:
        """Discard what waits, and close the connection behind the message that is just being sent."""
        self._ended = code, reason
        self._messages.clear()
        self._bytes = 0
        self._news.unpark_all()
        self._taken.unpark_all()

    async def send(self) -> None:
        """Send what is put in, in order, to the end. The one task that sends."""
        while self._ended is None:
            if not self._messages:
                await self._news.park()
                continue
            message = self._messages[0]
            await self.connection.send_message(
                self._line.stand_in(message) if isinstance(message, Frame) else message
            )
            if self._messages:
                self._messages.popleft()
                self._bytes -= len(message)
            self._progress = trio.current_time()
            self._taken.unpark_all()
        await self.connection.aclose(*self._ended)

    async def drained(self, load: float, patience: float) -> None:
        """Wait until no more than ``load`` is in use, or the client has taken nothing for ``patience`` seconds."""
        while self.load > load and trio.current_time() < (deadline := self._progress + patience):
            with trio.move_on_at(deadline):
                await self._taken.park()


class Exchange(Simulation):
    """The embedded exchange as `open_exchange` gives it. Besides what `Simulation` has:

    ``url`` (str): where it is served. ``speed`` (float): seconds of the exchange's time in a second of trio's clock; 0
    while it is paused. ``lag`` (float): how far it is behind that. ``clients`` (int): how many are connected.
    ``faults`` (`Faults`): what can be done to them on purpose.

    Accounts are opened with `open_account`; clients sign in to them with their keys.

    An exchange that cannot keep its speed (too many events for the machine, or more messages than its clients read)
    runs slower, and holds nobody up.
    """

    def __init__(
        self,
        symbols: Iterable[str],
        *,
        seed: int | str,
        start_time: int,
        rate: float,
        levels: int | None,
        speed: float,
        max_queue_messages: int,
        max_queue_bytes: int,
    ) -> None:
        self._check_speed(speed)
        for name, bound in (("max_queue_messages", max_queue_messages), ("max_queue_bytes", max_queue_bytes)):
            if not isinstance(bound, int) or bound < 1:
                raise ValueError(f"{name} is {bound!r}: it must be a whole number, at least 1")
        self.url = ""
        self.faults = Faults(self)
        self._outboxes: dict[Session, Outbox] = {}
        self._max_queue = max_queue_messages, max_queue_bytes
        self._speed = 0.0
        self._began = 0.0, 0
        self._slipped = 0
        self._speed_changed = trio.Event()
        super().__init__(
            symbols, seed=seed, start_time=start_time, rate=rate, levels=levels, connections=lambda: self.clients
        )
        self.speed = speed

    @property
    def clients(self) -> int:
        """How many clients are connected."""
        return len(self._outboxes)

    @property
    def topics(self) -> dict[str, int]:
        """How many clients are subscribed to each topic; to a private one, of all accounts together."""
        found: dict[str, int] = {}
        for feed in (self.feed, *(account.tables.feed for account in self.accounts)):
            for topic, subscribers in feed.topics.items():
                name = topic_name(*topic)
                found[name] = found.get(name, 0) + len(subscribers)
        return found

    @property
    def speed(self) -> float:
        """Seconds of the exchange's time in a second of trio's clock; 0: time stands, and only `advance` moves it.

        Can be set. Raises ValueError for what is no speed; then it stays as it was.
        """
        return self._speed

    @speed.setter
    def speed(self, speed: float) -> None:
        self._check_speed(speed)
        self.time()
        self._speed = speed
        self._began = trio.current_time(), self.now
        self._slipped = 0
        self._speed_changed.set()
        self._speed_changed = trio.Event()

    @staticmethod
    def _check_speed(speed: float) -> None:
        if not isinstance(speed, int | float) or not 0 <= speed < float("inf"):
            raise ValueError(f"speed is {speed!r}: it must be 1 for real time, more for faster, 0 for paused")

    @property
    def lag(self) -> float:
        """Seconds of the exchange's time that it is behind ``speed``, since that was last set; 0 while it keeps up."""
        if not self._speed:
            return 0.0
        overdue = self._live_time() - self.next_time
        if overdue <= 2 * LATE * self._speed * SECOND:  # it was not even woken for that
            overdue = 0
        return (self._slipped + overdue) / SECOND

    def time(self) -> int:
        """The time (ns) of what happens now: what was due before an order of the user's comes before it, as far as the
        exchange keeps up.
        """
        if not self._advancing and self._speed:
            self.advance_to(self._live_time(), TURN)
        return self.now

    def advance_to(self, time: int, seconds: float = float("inf")) -> bool:
        """See `Simulation.advance_to`. While the exchange runs live, its clock is set forward."""
        arrived = super().advance_to(time, seconds)
        if self._speed and self.now > self._live_time():
            self._began = trio.current_time(), self.now
        return arrived

    def schedule(self, time: int, happen: Callable[[int], int | None]) -> Due:
        """See `Simulation.schedule`."""
        due = super().schedule(time, happen)
        self._speed_changed.set()  # it may be the next thing to wake for
        self._speed_changed = trio.Event()
        return due

    def _live_time(self) -> int:
        began, at = self._began
        return at + int((trio.current_time() - began) * self._speed * SECOND)

    async def run(self) -> None:
        """Let the exchange's time pass, for as long as it is not cancelled."""
        while True:
            if self._speed and not (
                self.advance_to(self._live_time(), TURN) and self._live_time() < self.next_time
            ):
                await self._catch_breath()
                continue
            began, at = self._began
            deadline = began + (self.next_time - at) / SECOND / self._speed + LATE if self._speed else float("inf")
            changed = self._speed_changed
            with trio.move_on_at(deadline):
                await changed.wait()

    async def _catch_breath(self) -> None:
        """Behind the clock: let everybody else run and clients that read take what waits; then set the clock back."""
        await trio.lowlevel.checkpoint()
        for outbox in tuple(self._outboxes.values()):
            await outbox.drained(0.5, PATIENCE)
        slipped = self._live_time() - self.now - int(MAX_LAG * self._speed * SECOND)
        if slipped > 0:
            if not self._slipped:
                log.warning("the exchange cannot keep its speed of %g: it runs slower (see exchange.lag)", self._speed)
            self._slipped += slipped
            self._began = trio.current_time() - MAX_LAG, self.now

    async def settled(self) -> None:
        """Wait until everything that was published has gone out to the clients, for instance after `advance`.

        It is on its way to them then: a client may still have to read it. One that takes nothing for 5 s is not waited
        for. Cancelling it changes nothing.
        """
        await trio.lowlevel.checkpoint()
        for outbox in tuple(self._outboxes.values()):
            await outbox.drained(0, SETTLE_PATIENCE)

    async def serve_stream(self, stream: trio.abc.Stream) -> None:
        """Serve one client over any stream, from its handshake to its end. Closes the stream."""
        try:
            with self.faults.line(stream) as line:
                async with trio.open_nursery() as nursery:
                    connection = None
                    await line.opened()
                    with trio.move_on_after(HANDSHAKE_TIMEOUT):
                        if not await line.refused():
                            request = await wrap_server_stream(nursery, line, max_message_size=MAX_COMMAND_SIZE)
                            connection, account = await self._handshake(request)
                    if connection is not None:
                        await self._converse(connection, line, request.path, account)
                    nursery.cancel_scope.cancel()
        except* GONE:
            pass  # nobody else has to know
        finally:
            await trio.aclose_forcefully(stream)

    async def _handshake(self, request: Any) -> tuple[Any, Account | None]:
        """Accept the client, or refuse it as the real exchange does. Returns its connection, None where it was refused,
        and the account that its headers sign it in to, if any.
        """
        if urlsplit(request.path).path != "/realtime":
            await self._reject(request, 404, "Not Found")
            return None, None
        signed = {name.lower().decode(): value.decode("latin-1") for name, value in request.headers}
        account = None
        if any(name in signed for name in ("api-key", "api-expires", "api-signature")):
            try:
                account = self.accounts.keys.check(*map(signed.get, ("api-key", "api-expires", "api-signature")))
            except InvalidKey as invalid:
                await self._reject(request, 401, str(invalid))
                return None, None
        return await request.accept(), account

    @staticmethod
    async def _reject(request: Any, status: int, error: str) -> None:
        body = msgspec.json.encode({"error": {"message": error, "name": "HTTPError"}})
        await request.reject(status, extra_headers=[(b"content-type", b"application/json")], body=body)

    async def _converse(self, connection: Any, line: Line, path: str, account: Account | None) -> None:
        outbox = Outbox(connection, line, *self._max_queue)
        with trio.CancelScope() as scope:

            def send(message: str | bytes) -> None:
                if outbox.load >= 1:
                    log.warning(
                        "a client that does not read fast enough was cut off: %s waited for it, of its topics %s",
                        str(outbox), ", ".join(topic_name(*topic) for topic in session.topics),
                    )  # fmt: skip
                    end(1008, TOO_SLOW)
                else:
                    outbox.put(message)

            def end(code: int, reason: str) -> None:
                session.close()
                outbox.end(code, reason)
                scope.deadline = trio.current_time() + CLOSE_TIMEOUT

            async def write() -> None:
                with suppress(*GONE):
                    await outbox.send()
                scope.cancel()

            session = Session(self.feed, self.tables, send, self.accounts, account, self.faults)
            line.topics, line.send, line.end = session.topics, send, end
            self._outboxes[session] = outbox
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(write)
                    session.welcome(self.time(), 40 - min(39, self.clients))
                    topics = [
                        topic
                        for part in parse_qs(urlsplit(path).query).get("subscribe", [])
                        for topic in part.split(",")
                    ]
                    if topics:
                        session.subscribe(topics, {"op": "subscribe", "args": topics if len(topics) > 1 else topics[0]})
                    try:
                        while True:
                            message = await connection.get_message()
                            if not outbox.ended:
                                session.receive(message)
                    except GONE:
                        if not line.closing:
                            scope.cancel()
            finally:
                session.close()
                del self._outboxes[session]

    async def say_goodbye(self) -> None:
        """Close all connections with the code 1001, waiting for no client longer than a second. Ends all faults."""
        self.faults.clear()
        with trio.CancelScope(deadline=trio.current_time() + CLOSE_TIMEOUT, shield=True):
            async with trio.open_nursery() as nursery:
                for outbox in self._outboxes.values():
                    nursery.start_soon(outbox.connection.aclose, 1001, "The exchange is closing.")


@asynccontextmanager
async def open_exchange(
    *,
    symbols: Iterable[str] = DEFAULT_SYMBOLS,
    seed: int | str = 0,
    host: str = "127.0.0.1",
    port: int = 0,
    rate: float = 20.0,
    levels: int | None = None,
    speed: float = 1.0,
    start_time: datetime | None = None,
    max_queue_messages: int = 20_000,
    max_queue_bytes: int = 64 * 2**20,
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncIterator[Exchange]:
    """Open the embedded exchange, serving BitMEX's realtime protocol at ``exchange.url``, for as long as the context
    lasts.

    ``symbols``: what is traded, out of `INSTRUMENTS`. ``seed``: of the order flow; the same seed and ``start_time``
    give the same market. ``host``, ``port``: where to listen; port 0: any free one. ``rate``: events a second over all
    symbols, 0 for none but those submitted by hand. ``levels``: about so many price levels a side (default: as the
    instrument has them). ``speed``: see `Exchange.speed`. ``start_time``: an aware datetime, the exchange's clock at
    the start (default: now). ``max_queue_messages``, ``max_queue_bytes``: what may wait for one client before it is
    cut off, with the close code 1008 and a warning in the log ``bitmex_streams``. ``ssl_context``: a server's, with its
    certificate, to serve over TLS; ``exchange.url`` is then ``wss://`` (default: no TLS).

    Raises ValueError for arguments that make no sense and OSError where it cannot listen. When the context is left, or
    cancelled, clients are told (close code 1001; for at most a second), and connections and listener are closed. What
    the body raises passes untouched.
    """
    if not isinstance(host, str) or not host:
        raise ValueError(f"host is {host!r}: it must be a name or an address, such as '127.0.0.1'")
    if not isinstance(port, int) or not 0 <= port <= 65535:
        raise ValueError(f"port is {port!r}: it must be a number up to 65535, 0 for any free one")
    if ssl_context is not None and not isinstance(ssl_context, ssl.SSLContext):
        raise ValueError(f"ssl_context is {ssl_context!r}: it must be an ssl.SSLContext for the server's side")
    if start_time is not None and not isinstance(start_time, datetime):
        raise ValueError(f"start_time is {start_time!r}: it must be an aware datetime")
    if start_time is not None and start_time.tzinfo is None:
        raise ValueError(
            "start_time has no time zone: use an aware datetime, such as datetime(..., tzinfo=timezone.utc)"
        )
    start = time.time_ns() if start_time is None else round(start_time.timestamp() * 1000) * 1_000_000
    exchange = Exchange(
        symbols,
        seed=seed,
        start_time=start,
        rate=rate,
        levels=levels,
        speed=speed,
        max_queue_messages=max_queue_messages,
        max_queue_bytes=max_queue_bytes,
    )
    listeners = await trio.open_tcp_listeners(port, host=host)
    address = listeners[0].socket.getsockname()
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # of all addresses, one to connect to
    scheme = "ws" if ssl_context is None else "wss"
    exchange.url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{address[1]}/realtime"
    async with background(exchange.say_goodbye) as nursery:
        nursery.start_soon(exchange.run)
        if ssl_context is not None:
            listeners = [trio.SSLListener(listener, ssl_context, https_compatible=True) for listener in listeners]
        nursery.start_soon(partial(trio.serve_listeners, exchange.serve_stream, listeners))
        yield exchange
