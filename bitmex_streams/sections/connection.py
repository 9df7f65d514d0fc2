"""`Connection`: the live source, over a websocket.

Three tasks. The *reader* reads ahead into a bounded inbox, stamps what arrives, and shows it to the sans-IO protocol,
so that answers are seen while the consumer is busy. The *writer* alone writes, for a send that is cancelled half-way
corrupts a websocket; everybody else queues. The *feeder*, in the middle of a pipeline, queues what comes in. They run
shielded from the consumer's cancellation and end when the consumer leaves, so that there is always a close handshake,
and never a long one.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from math import inf
from typing import Any

import msgspec
import trio

from ..auth import Credentials, mask, refused
from ..coverage import CONNECTING
from ..errors import AuthenticationError, ConnectionClosed, ConnectionFailed, SubscriptionError
from ..inbox import Inbox, OutputClosed
from ..messages import Connected, Disconnected, RawMessage, StateLost
from ..nurseries import background
from ..operator import Source
from ..protocol import (
    MAX_LOSSES,
    MAX_UNASKED,
    PRIVATE_TABLES,
    PUBLIC_TABLES,
    Acknowledged,
    Answer,
    Authenticated,
    ClientProtocol,
    Complaint,
    Refused,
    check_topic,
)
from ..reconnect import Backoff, Reconnect, is_final
from ..transport import (
    CLOSE_TIMEOUT,
    CONNECT_TIMEOUT,
    MAX_MESSAGE_SIZE,
    TRANSPORTS,
    TransportClosed,
    TransportFactory,
    check_url,
)

__all__ = ["NETWORKS", "Connection", "ConnectionStatistics"]

NETWORKS = {"mainnet": "wss://ws.bitmex.com/realtime", "testnet": "wss://ws.testnet.bitmex.com/realtime"}
"""The networks that have a name, and their URLs (https://www.bitmex.com/app/wsAPI). BitMEX closed on 2026-09-23."""

log = logging.getLogger("bitmex_streams")
wire = logging.getLogger("bitmex_streams.wire")

MAX_MARKS = 64
"""How many marks may wait for the consumer before a full buffer keeps the next connection waiting."""
MAX_REPLAYS = 8
"""How often a handshake that was refused as signed before is signed anew."""
FAREWELL = 2.0
"""Seconds that disarming the dead man's switch may take, when the work has ended well."""

_RECONNECT = Reconnect()

_OF_TABLE = frozenset({'{"table":"', b'{"table":"'})

LostCallback = Callable[[str, str], None]
_COMMANDS = None  # in the outbox: what the protocol has to say, as it is when its turn comes


class ConnectionStatistics(msgspec.Struct, frozen=True):
    """What `Connection.stats` says, as of now. Counters begin with the `Connection` and never go back.

    ``connected``: whether it stands; ``connections``: how often it was made; ``reconnects``: how often it was made
    again. ``messages``, ``bytes``: received, and how long they were (UTF-8, as sent,
    without frames and compression). ``resyncs``: topics that were asked for anew. ``lag``:
    seconds from the arrival of a message to when the pipeline took it, of the batch taken last, or, where that is
    longer, of what waits. ``waiting``,
    ``waiting_bytes``: messages read ahead, and their size. ``subscriptions``: topics in force.
    """

    connected: bool
    connections: int
    reconnects: int
    messages: int
    bytes: int
    resyncs: int
    lag: float
    waiting: int
    waiting_bytes: int
    subscriptions: int


class _Counters:
    def __init__(self) -> None:
        self.connections = self.messages = self.bytes = self.resyncs = 0
        self.lag = 0.0


class Connection(Source):
    """The realtime feed of a server that speaks BitMEX's protocol.

    Gives `Connected`, then a `RawMessage` for every message, in order, and when the connection is lost `Disconnected`;
    `StateLost` where messages became too old to be trusted (topic None), or a topic had to be given up. ``received`` is
    the arrival at this program (ns UTC), whenever it is consumed; it never goes back and always runs on, so that it is
    ahead of a wall clock that is set back. In the middle of a pipeline, the items that come in are sent, at most once
    each: str as it is, anything else as JSON; while the connection is lost they wait. One Connection can be open once
    at a time.

    ``network``: ``"mainnet"``, ``"testnet"``, or a ``ws://`` or ``wss://`` URL.
    ``subscribe``: topics (``table`` or ``table:symbol``) to subscribe to right after the handshake. One that is
    refused at the start ends the stream.
    ``api_key``, ``api_secret``: to be signed in as an account, with which the handshake is signed; both or neither.
    ``dead_mans_switch``: have the exchange cancel all orders of the account a minute after it last heard of us
    (``cancelAllAfter`` 60000 at once and every 15 s, whatever the consumers do; the answers are `CancelAllAfter`
    items, and `cancel_time`). It is disarmed when the body of the pipeline's context has ended without an exception,
    which takes at most 2 s; after an error, a cancellation, Ctrl-C or the end of the process it strikes. Where it
    cannot be disarmed, the log warns. In a plain slurry pipeline it is never disarmed. A pipeline whose Connection has
    a switch goes on when its last tap is closed.
    ``source``: what the items say where they are from (default: the URL). State is lost and healed by source: so
    Connections to one URL, of two accounts, need two names.
    ``reconnect``: see `Reconnect`; None: not at all.
    ``heartbeat``: seconds of silence after which the server is pinged, and after as many more of nothing at all the
    connection is given up. Silence does not count while the consumer holds up reading; but pings go on, and where one
    cannot be written (the connection was reset or closed, or, on Linux, nothing was acknowledged for as many seconds,
    and one at least), it is given up all the same.
    ``resync_every``: seconds after which all topics are asked for anew, again and again, against what cannot be
    detected (BitMEX numbers no messages); each is stale for that moment. None: never.
    ``connect_timeout``: seconds for TCP, TLS and the handshake together.
    ``subscribe_timeout``: seconds that `subscribe` and `unsubscribe` wait for the server's answer, from when the
    connection stands.
    ``max_lag``: seconds that a full buffer may stop the reading before what waits in the socket counts as too old:
    then all state is lost (a `StateLost` mark, and the callbacks of `watch`), and when reading goes on, all topics are
    asked for anew.
    ``buffer_size``, ``buffer_bytes``: how many messages, and how many bytes of them (UTF-8), are read ahead of the
    consumer; when the connection is lost, the rest of what was read last goes in as well.
    ``max_message_size``: bytes; the connection is closed (1009) by a larger message. Partials of all symbols have some
    5 MB.
    ``ssl_context``: for ``wss://`` URLs; default: the system's certificates.
    ``transport``: ``"default"`` (slurry-websocket's), ``"fast"`` (`bitmex_streams.fast.FastTransport`, of the extra
    ``fast``: ImportError without it), or a factory like those in `bitmex_streams.transport.TRANSPORTS`.

    How it comes back: after a connection that was lost, or could not be made for a reason that may pass, it connects
    again as ``reconnect`` says; all topics in force are subscribed again (those that were asked for or given up
    meanwhile taken into account), the handshake is signed anew, and the switch is armed at once. While a consumer holds
    up the reading, it connects and arms, and subscribes when reading goes on. A topic that was in force and is refused
    now is asked for three times more, then given up with a `StateLost`.

    How the stream ends: by what trying again cannot mend: `AuthenticationError` (a key that is refused, a clock that is
    wrong), `ConnectionFailed` that is ``final`` (a certificate that does not verify, a status such as 403 or 404; once
    a connection has stood, 401, 403 and 407 alone of all statuses: the others may be a page of what stands before the
    exchange, and are tried again), `SubscriptionError` (a topic of ``subscribe`` is refused at the start),
    `ConnectionClosed` by a message that is too large; by the last failure, where ``reconnect`` bounds the attempts;
    and, quietly, by a normal close (1000) of a server that has neither greeted nor acknowledged anything: a replay
    server, such as tardis-machine's, that has played all it had. Without ``reconnect``: by any normal close quietly, by
    any other (also one without a code, which is 1005: it does not say that all is well) with `ConnectionClosed`, by a
    failure to connect with `ConnectionFailed`. In each case after everything that arrived before. Leaving it (also by
    cancellation) closes the websocket, which takes at most 2 seconds.

    The logger ``bitmex_streams.wire`` shows every message in and out at DEBUG. Keys and signatures are shown nowhere:
    where the server repeats them, `RawMessage.data` has ``***`` in their place.

    Raises ValueError for a bad URL, network or topic, for a key without a secret (or the other way round), and for a
    switch without a key.
    """

    rate = 1.0

    def __init__(
        self,
        network: str,
        *,
        subscribe: Iterable[str] = (),
        api_key: str | None = None,
        api_secret: str | None = None,
        dead_mans_switch: bool = False,
        source: str | None = None,
        connect_timeout: float = CONNECT_TIMEOUT,
        subscribe_timeout: float = 10.0,
        reconnect: Reconnect | None = _RECONNECT,
        heartbeat: float = 5.0,
        resync_every: float | None = None,
        max_lag: float = 10.0,
        buffer_size: int = 10_000,
        buffer_bytes: int = 2**26,
        max_message_size: int = MAX_MESSAGE_SIZE,
        ssl_context: ssl.SSLContext | None = None,
        transport: str | TransportFactory = "default",
    ) -> None:
        self.url = _url_of(network)
        """The URL connected to."""
        self.source = self.url if source is None else source
        """What the items say where they are from: by default the URL."""
        for name, number in (
            ("connect_timeout", connect_timeout),
            ("subscribe_timeout", subscribe_timeout),
            ("max_lag", max_lag),
            ("heartbeat", heartbeat),
            ("resync_every", inf if resync_every is None else resync_every),
            ("buffer_size", buffer_size),
            ("buffer_bytes", buffer_bytes),
            ("max_message_size", max_message_size),
        ):
            if not number > 0:
                raise ValueError(f"{name} has to be greater than 0, not {number!r}")
        if ssl_context is not None and not self.url.startswith("wss:"):
            raise ValueError(f"ssl_context is for wss:// URLs, and {self.url} is none")
        if isinstance(transport, str):
            if transport not in TRANSPORTS:
                raise ValueError(f"there is no transport {transport!r}; there are: {', '.join(sorted(TRANSPORTS))}")
            if transport == "fast":
                import_module("bitmex_streams.fast")  # to say at once what is missing
            transport = TRANSPORTS[transport]
        self._credentials = Credentials.of(api_key, api_secret)
        if dead_mans_switch and self._credentials is None:
            raise ValueError("the dead man's switch is for the orders of an account: give api_key and api_secret too")
        self._hidden: deque[Credentials] = deque([self._credentials] if self._credentials else (), maxlen=8)
        self._left_armed = False  # the switch was, when the last connection was lost
        self.dead_mans_switch = dead_mans_switch
        self.keeps_running = dead_mans_switch
        self.connect_timeout = connect_timeout
        self.subscribe_timeout = subscribe_timeout
        if reconnect is not None and not isinstance(reconnect, Reconnect):
            raise ValueError(f"reconnect is a Reconnect, or None for not at all, not {reconnect!r}")
        self.reconnect = reconnect
        self.heartbeat = heartbeat
        self.resync_every = resync_every
        self.max_lag = max_lag
        self.buffer_size = buffer_size
        self.buffer_bytes = buffer_bytes
        self.max_message_size = max_message_size
        self._ssl_context = ssl_context
        self._transport = transport
        self._protocol = ClientProtocol()
        self._counters = _Counters()
        self._session: _Session | None = None
        self._ended = False
        self._failure: Exception | None = None  # what ended the last session
        self._told_of_unasked = False  # the log was, that topics are ignored which nobody has asked for
        self._watchers: list[LostCallback] = []
        self._news = trio.lowlevel.ParkingLot()  # something that `_settle` waits for may have come about
        topics = [check_topic(topic) for topic in ([subscribe] if isinstance(subscribe, str) else subscribe)]
        self._required = set(self._protocol.subscribe(topics))

    def __repr__(self) -> str:
        state = "connected" if self.connected else "ended" if self._ended else "not connected"
        return f"<Connection to {self.url}: {state}>"

    @property
    def connected(self) -> bool:
        """Whether the connection stands."""
        return self._session is not None and self._session.connected

    @property
    def subscriptions(self) -> frozenset[str]:
        """The topics in force: acknowledged by the server, or sent by one that does not acknowledge."""
        return self._protocol.subscriptions if self.connected else frozenset()

    @property
    def stats(self) -> ConnectionStatistics:
        """Counters and gauges of this connection, read at any time."""
        counters, inbox = self._counters, self._session.inbox if self._session is not None else None
        return ConnectionStatistics(
            connected=self.connected,
            connections=counters.connections,
            reconnects=max(0, counters.connections - 1),
            messages=counters.messages,
            bytes=counters.bytes,
            resyncs=counters.resyncs,
            lag=self._lag(),
            waiting=0 if inbox is None else len(inbox),
            waiting_bytes=0 if inbox is None else inbox.bytes,
            subscriptions=len(self.subscriptions),
        )

    @property
    def websocket(self) -> Any:
        """The `trio_websocket.WebSocketConnection` underneath, while the connection stands and the transport has one,
        else None. Sending on it is not safe while the Connection works: it is there to be looked at.
        """
        link = self._session.link if self._session is not None else None
        return getattr(link.transport, "websocket", None) if link is not None and link.up else None

    @property
    def cancel_time(self) -> str | None:
        """When the exchange cancels all orders unless it hears of the dead man's switch again (ISO, the exchange's
        clock), as its last answer said; None where it is not armed.
        """
        return self._protocol.cancel_time

    async def wait_connected(self) -> None:
        """Wait until the connection stands (it is made when the pipeline starts).

        When it cannot be made, raises why: the same error that ends the stream. `ConnectionClosed` when it has ended.
        """
        await trio.lowlevel.checkpoint()
        while not self.connected:
            if self._failure is not None:
                raise self._failure
            self._check_open()
            await self._news.park()

    async def authenticate(self, api_key: str, api_secret: str) -> None:
        """Sign in on a connection that stands (``authKeyExpires``), and wait for the answer; before it was opened, sign
        the handshake.

        Topics of private tables that are subscribed meanwhile are sent behind the answer. The handshakes of later
        connections are signed so once it was accepted, and until then as before; where the connection is lost before
        the answer has come, the next one is asked, up to three in all. Cancelling the wait leaves the command in force,
        which holds private topics back for ``subscribe_timeout`` after it was sent, and no longer.

        Raises `AuthenticationError` where it is refused, or not answered within ``subscribe_timeout`` on a connection
        that stands, or where the connection was lost each of the three times that it was sent: then the stream goes on
        as before. `ConnectionClosed` when the connection has ended, ValueError for what cannot be a key.
        """
        credentials = Credentials(api_key, api_secret)
        self._hidden.append(credentials)  # from now on, wherever it is repeated
        if self._session is None and not self._ended:
            self._credentials = credentials
            await trio.lowlevel.checkpoint()
            return
        self._check_open()
        since = trio.current_time()
        await trio.lowlevel.checkpoint()
        for attempt in range(MAX_REPLAYS):
            answer = await self._sign_in(credentials, since)
            if answer.error is None:
                return
            error = refused(self.url, answer.error, answer.status)
            if error.reason != "replay" or attempt == MAX_REPLAYS - 1:
                raise error

    async def _sign_in(self, credentials: Credentials, since: float) -> Authenticated:
        sign_in = self._protocol.authenticate(credentials, self.subscribe_timeout)
        self._wake_writer()
        while sign_in.answer is None and not sign_in.given_up:
            try:
                self._check_open()
            except ConnectionClosed:
                self._protocol.give_up(sign_in)
                raise
            with trio.CancelScope(deadline=self._answer_deadline(since)):
                await self._news.park()
                continue
            self._protocol.give_up(sign_in)
            self._wake_writer()
        if sign_in.answer is not None:
            return sign_in.answer
        if sign_in.losses >= MAX_LOSSES:
            raise AuthenticationError(
                f"the connection to {self.url} was lost each of the {MAX_LOSSES} times that authKeyExpires was sent"
            )
        raise AuthenticationError(f"{self.url} has not answered authKeyExpires in {self.subscribe_timeout:g} s")

    async def subscribe(self, *topics: str) -> None:
        """Subscribe to topics (``table`` or ``table:symbol``) and wait until the server has answered for each.

        The answer is its acknowledgement or, from servers that send none, the first message of the topic. Before the
        connection stands the topics are remembered, and sent then. Subscribing again is no error. A topic that a
        subscribed one covers (``trade:XBTUSD`` by
        ``trade``) is satisfied by that one, and not remembered beside it; subscribing to ``trade`` first gives up
        ``trade:XBTUSD``.

        Cancelling the wait leaves the command in force, and so does a timeout, or a connection that is lost. Raises
        `SubscriptionError` when the server refuses, or does not answer within ``subscribe_timeout`` on a connection
        that stands, or where the connection was lost each of the three times that a topic was sent; `ConnectionClosed`
        when the connection has ended, ValueError for what is no topic.
        """
        await self._settle(self._protocol.subscribe, topics)

    async def unsubscribe(self, *topics: str) -> None:
        """Give topics up, and wait until the server has answered. For topics that are not subscribed, nothing happens.

        The topics have to be named as they were subscribed: giving up ``trade:XBTUSD`` while ``trade`` is subscribed
        does nothing. What was known of a topic is stale from the server's answer on, until it is subscribed again. A
        server that acknowledges nothing, but has sent data of something that was subscribed, is taken
        at once to have done it, though its data may go on (tardis-machine's does). Cancellation and errors: as for
        `subscribe`.
        """
        self._required.difference_update(topics)
        await self._settle(self._protocol.unsubscribe, topics)

    def unsubscribe_soon(self, *topics: str) -> None:
        """Give topics up, as `unsubscribe` does, but without waiting for the answer: synchronous, it is queued.

        Raises ValueError for what is no topic.
        """
        for topic in topics:
            check_topic(topic)
        self._required.difference_update(topics)
        self._protocol.unsubscribe(topics)
        self._wake_writer()

    def resync(self, topic: str) -> None:
        """Ask for ``topic`` anew (unsubscribe, then subscribe), so that a new partial comes; synchronous: it is
        queued, and goes out at once.

        A topic that a subscribed one covers, or that covers subscribed ones, stands for those. Nothing happens for
        what is not subscribed, or while such a request is under way.
        """
        self._ask_anew(topic)

    def resync_lost(self, topic: str) -> None:
        """The state of ``topic`` is lost: as `resync`, but a topic that is lost again and again is asked for more and
        more rarely (at once, then after 1, 2, 4, ... up to 60 s). What a Pipeline sets the ``resync`` of operators to.
        """
        self._ask_anew(topic, rationed=True)

    def watch(self, callback: LostCallback) -> Callable[[], None]:
        """Have ``callback(source, reason)`` called, at once and ahead of the stream, when all state of this connection
        is lost: also when it is opened, for what is known by then is of an earlier life (the mark of that one is
        `Connected`).

        It is called synchronously, from the reader, and must not raise; here, at once, where the connection is open
        already (and once more where it has ended meanwhile). Returns a function that ends this; calling it again does
        nothing.
        """
        self._watchers.append(callback)
        if self._session is not None:
            callback(self.source, CONNECTING)
            if self._ended:
                callback(self.source, self._session.lost_by)

        def unwatch() -> None:
            if callback in self._watchers:
                self._watchers.remove(callback)

        return unwatch

    @asynccontextmanager
    async def batches(self, input: AsyncIterable[Any] | None) -> AsyncIterator[_Session]:
        """Open the connection for as long as the context lasts: see `Source.batches`. It is made in the background."""
        if self._session is not None:
            raise RuntimeError(f"{self!r} is open already: a Connection can be opened once at a time; make another one")
        session = self._session = _Session(self)
        self._ended = False
        self._failure = None
        self._lose_state(CONNECTING)  # `Connected` is the mark that follows
        try:
            async with background(session.leave) as nursery:
                nursery.start_soon(session.run, input)
                yield session
        finally:
            self._session = None

    async def farewell(self) -> None:
        """The body of the pipeline's context has ended without an exception: see `Source.farewell`."""
        if not self.dead_mans_switch:
            return
        session, protocol = self._session, self._protocol
        why = "the connection is lost"
        if session is not None and session.connected:
            why = "that was not confirmed"
            if session.inbox.full:
                why += ", for a `block` tap is open that nobody reads"
            with trio.CancelScope(deadline=trio.current_time() + FAREWELL, shield=True):
                while session.connected and protocol.disarm():
                    session.wake_writer()
                    while session.connected and not protocol.switch_settled:
                        await self._news.park()
                    if protocol.armed and session.connected:  # it was refused
                        await trio.sleep(FAREWELL / 8)
            self._left_armed = protocol.armed
        if self._left_armed:
            log.warning(
                "%s: the dead man's switch could not be disarmed: %s; it may cancel the orders within the minute",
                self.url, why,
            )  # fmt: skip

    # --- between the user's calls and the session ---

    def _wake_writer(self) -> None:
        if self._session is not None:
            self._session.wake_writer()

    def _ask_anew(self, topic: str | None, *, rationed: bool = False) -> None:
        if asked := self._protocol.resync(topic, trio.current_time(), rationed=rationed):
            self._counters.resyncs += len(asked)
            log.info("%s is asked anew for %s", self.url, ", ".join(asked))
        self._wake_writer()  # also where it is no news: it may be due earlier now

    def _lag(self) -> float:
        """That of the batch taken last, or, where it is longer already, of what waits."""
        session = self._session
        if session is None or not len(session.inbox):
            return self._counters.lag
        return max(self._counters.lag, session.inbox.age(session.now()) / 1e9)

    def _delivered(self, received: int, now: int) -> None:
        """A batch was taken, whose oldest item was received then (ns)."""
        self._counters.lag = (now - received) / 1e9

    def _lose_state(self, reason: str) -> None:
        for callback in list(self._watchers):
            callback(self.source, reason)

    async def _settle(self, ask: Callable[[Sequence[str]], list[str]], topics: tuple[str, ...]) -> None:
        for topic in topics:
            check_topic(topic)
        self._check_open()
        complaint = self._protocol.complaint
        asked = ask(topics)
        losses = {topic: self._protocol.losses(topic) for topic in asked}
        self._wake_writer()
        since = trio.current_time()
        await trio.lowlevel.checkpoint()
        while waiting := [topic for topic in asked if not self._protocol.settled(topic)]:
            self._check_open()
            if lost := [topic for topic in waiting if self._protocol.losses(topic) >= losses[topic] + MAX_LOSSES]:
                raise SubscriptionError(
                    f"the connection to {self.url} was lost each of the {MAX_LOSSES} times that it was asked for "
                    f"{', '.join(lost)}; the command stays in force",
                    topic=lost[0],
                )
            with trio.CancelScope(deadline=self._answer_deadline(since)):
                await self._news.park()
                continue
            raise self._unanswered(waiting, complaint)
        for topic in asked:
            if refused := self._protocol.refusal(topic):
                raise _subscription_error(refused)
        self._check_open()

    def _check_open(self) -> None:
        if self._ended:
            raise ConnectionClosed(f"the connection to {self.url} has ended")

    def _answer_deadline(self, since: float) -> float:
        session = self._session
        if session is None:
            return since + self.subscribe_timeout
        if session.link is None or not session.link.up:  # connecting has a timeout of its own, or none
            return inf
        return max(since, session.link.up_at) + self.subscribe_timeout

    def _unanswered(self, topics: list[str], earlier: Complaint | None) -> SubscriptionError:
        session, complaint, status = self._session, self._protocol.complaint, None
        if session is None:
            why = "the connection is not open: a pipeline starts with its first tap, or with start()"
        elif session.inbox.full:
            why = (
                "the buffer of the connection is full, so its answer cannot be read: a section is stuck, or a `block` "
                "tap is open that nobody reads (close it, read it, or open it with another overflow policy)"
            )
        elif complaint is not None and complaint is not earlier:
            status = complaint.status
            why = (
                f"meanwhile the server said, without saying about what: {complaint.error[:200]}"
                f"{'' if status is None else f' (status {status})'}; the command stays in force"
            )
        elif unknown := [topic for topic in topics if topic.partition(":")[0] not in PUBLIC_TABLES | PRIVATE_TABLES]:
            why = f"the server may have no such table as {unknown[0].partition(':')[0]!r}"
        else:
            why = "the server may not acknowledge commands, and have no data of it; the command stays in force"
        return SubscriptionError(
            f"no answer about {', '.join(topics)} from {self.url} within {self.subscribe_timeout:g} s: {why}",
            topic=topics[0],
            status=status,
        )


class _Session:
    """One use of a `Connection`, from its opening until the consumer leaves or no further attempt is made; what
    `Connection.batches` gives. It has one `_Link` after the other.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.protocol = connection._protocol
        self.inbox = Inbox(connection.buffer_size, connection.buffer_bytes)
        self.outbox = Inbox(16)
        self.unsent: deque[Any] = deque()  # what was taken out of it
        self.link: _Link | None = None
        self.over = trio.Event()
        self.stopping = False
        self.live = False  # the server has greeted us, or acknowledged a command, be it on an earlier connection
        self.lost_by = ""  # what was last said to the watchers, while it holds
        self.stood_before = False  # a connection of it has
        self._stopped = trio.Event()  # no further attempt is wanted
        self._backoff = Backoff(connection.reconnect) if connection.reconnect is not None else None
        self._wait: float | None = None  # s before the next attempt; None: there is none
        self._replays = 0
        self._marks = 0  # that went into the inbox since the consumer took what was there
        self._error: Exception | None = None
        self._epoch = 0
        self._last = 0

    @property
    def connected(self) -> bool:
        return self.link is not None and self.link.up

    async def receive(self) -> Sequence[Any]:
        """See `Batches.receive`."""
        batch = await self.inbox.take()
        self._marks = 0
        self.connection._delivered(batch[0].received, self.now())
        return batch

    async def leave(self) -> None:
        """The consumer has left."""
        self.stopping = True
        self.inbox.shut()
        self._stop()
        with trio.CancelScope(shield=True):
            await self.over.wait()

    def wake_writer(self) -> None:
        """Have the writer look at what the protocol has to say."""
        if self.link is not None and self.outbox.wanted:
            self.link.wake_writer()

    async def run(self, input: AsyncIterable[Any] | None) -> None:
        try:
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as nursery:
                    if input is not None:
                        nursery.start_soon(self._feed, input)
                    await self._live()
                    nursery.cancel_scope.cancel()
        finally:
            self.over.set()

    async def _live(self) -> None:
        """One connection after the other. Errors go to the inbox, not into a nursery, which would make a group of
        them.
        """
        while True:
            # Marks go in whatever the room; so where too many wait, the next connection waits for the consumer.
            while self._marks >= MAX_MARKS and self.inbox.full and self.inbox.wanted and not self._stopped.is_set():
                with trio.move_on_after(1):
                    await self.inbox.wait_for_room()
            link = self.link = _Link(self)
            if self._stopped.is_set():
                link.work.cancel()
            await link.run()
            if self._wait is None:
                return
            with trio.move_on_after(self._wait):
                await self._stopped.wait()
                self._end()
                return

    def judge(self, link: _Link) -> None:
        """A link has gone down: whether there will be another, and after what wait. If not, that is the end."""
        connection, backoff, error = self.connection, self._backoff, link.error
        if backoff is not None and link.up_at < inf:
            backoff.stood(link.stood)
        self._wait = None
        if isinstance(error, AuthenticationError) and error.reason == "replay" and self._replays < MAX_REPLAYS:
            self._replays += 1  # somebody else has drawn the same number: at once with another
            self._wait = 0.0
        elif self._stopped.is_set() or backoff is None or (error and is_final(error, stood=self.stood_before)):
            pass
        elif error is not None or self.live:
            # A clean close is the end where nothing was ever greeted or acknowledged: of a server that has played all
            # it had.
            self._wait = backoff.next(error.retry_after if isinstance(error, ConnectionFailed) else None)
        if self._wait is None:
            self._error = self._error or error
            self._end()
        elif self._wait:
            said = error or f"{connection.url} closed the connection"
            log.warning("%s; connecting again in %.1f s", said, self._wait)
        if link.up_at < inf:
            self._replays = 0

    def fail(self, error: Exception) -> None:
        """What feeds us has failed: that is the end."""
        if self._error is None:
            self._error = error
        self._stop()

    def _stop(self) -> None:
        self._stopped.set()
        if self.link is not None:
            self.link.work.cancel()

    def put_mark(self, mark: Connected | Disconnected | StateLost) -> None:
        """Marks go in whatever the room."""
        self.inbox.put_nowait(mark)
        self._marks += 1

    def lose_state(self, reason: str) -> None:
        """Tell those who watch, at once, that all state is lost; whoever calls puts the mark into the inbox."""
        self.lost_by = reason
        self.connection._lose_state(reason)

    def _end(self) -> None:
        """Nothing will come any more: tell everybody."""
        connection = self.connection
        connection._ended, connection._failure = True, self._error
        self.outbox.shut()
        self.inbox.close(self._error)
        connection._news.unpark_all()

    async def _feed(self, input: AsyncIterable[Any]) -> None:
        try:
            async for item in input:
                try:
                    text = item if isinstance(item, str) else msgspec.json.encode(item).decode()
                    text.encode()  # a lone surrogate would fail where nobody knows the item any more
                except (TypeError, ValueError) as exc:
                    raise TypeError(
                        f"cannot send {item!r} to {self.connection.url}: send str that UTF-8 can hold, or what JSON can"
                    ) from exc
                try:
                    await self.outbox.put(text)
                except OutputClosed:
                    return
        except Exception as exc:
            self.fail(exc)

    def set_clock(self) -> None:
        """Read the wall clock, once a connection; in between it is trio's, for a step of the one is no step of
        `received`. Where it was set back meanwhile, time goes on from what was stamped last: were it to wait for the
        wall clock, every timer that runs on `received` would stand still as long.
        """
        self._epoch = max(time.time_ns(), self._last) - int(trio.current_time() * 1e9)

    def now(self) -> int:
        """The time (ns), which never goes back, and always runs on."""
        self._last = max(self._last, self._epoch + int(trio.current_time() * 1e9))
        return self._last


class _Link:
    """One websocket of a `_Session`, from the attempt to connect to its end."""

    def __init__(self, session: _Session) -> None:
        connection = session.connection
        credentials = connection._credentials
        self.session = session
        self.connection = connection
        self.protocol = session.protocol
        self.up = False
        self.up_at = inf  # on trio's clock
        self.stood = 0.0  # s that it was up
        self.error: Exception | None = None
        self._signed = credentials is not None
        self.transport = connection._transport(
            connection.url,
            ssl_context=connection._ssl_context,
            extra_headers=credentials.headers() if credentials else (),
            max_message_size=connection.max_message_size,
            connect_timeout=connection.connect_timeout,
            user_timeout=connection.heartbeat,
        )
        self._closed = TransportClosed(1000, "closed by this side")
        self._broken = self._dead = False
        self._ping_since = inf  # when a ping began to be written that is not yet
        self._read_since = inf  # when reading began, or went on
        self._held_up_since = inf  # when it began to wait for the consumer
        self._hold = trio.CancelScope()  # that wait, or the next
        self._abandoned = False  # nothing more is read, for the consumer takes nothing and the connection is lost
        self._unwritable: TransportClosed | None = None  # why nothing can be written any more
        self.work = trio.CancelScope()
        self._idle = trio.CancelScope()
        self._written = trio.Event()
        self._writer_woken = False

    async def run(self) -> None:
        """Connect, and live until the connection is lost, or `work` cancelled; `error` says how. Closing the websocket
        takes at most `CLOSE_TIMEOUT` seconds, and no socket is left open.
        """
        async with trio.open_nursery() as nursery:
            with self.work:
                try:
                    wire.debug("%s: connecting", self.connection.url)
                    await self._shake_hands(nursery)
                    self._go_up(nursery)
                    await self._read()
                except TransportClosed as closed:
                    self._break(closed)
                except Exception as exc:
                    self.error = self.error or exc
            self._go_down()
            with trio.move_on_after(0 if self._dead else CLOSE_TIMEOUT):
                try:
                    await self._written.wait()  # a send that is cancelled half-way corrupts a websocket
                finally:
                    await self.transport.aclose()
            self.protocol.disconnected()  # not before: the writer has just sent the last of what was queued
            self.connection._news.unpark_all()  # those who wait for an answer that was lost too often
            nursery.cancel_scope.cancel()

    def wake_writer(self) -> None:
        if self.up and not self._writer_woken:
            self._writer_woken = True
            self.session.outbox.put_nowait(_COMMANDS)

    async def _shake_hands(self, nursery: trio.Nursery) -> None:
        try:
            await self.transport.connect(nursery)
        except ConnectionFailed as failed:
            if not self._signed:
                raise
            # What the server repeats of the handshake may be in the text, and in the libraries' errors behind it.
            words, status = self._hide_text(str(failed)), failed.status
            if status in (401, 403):
                said = words.partition(f"HTTP status {status}: ")[2].rpartition("; ")[0]
                error = refused(self.connection.url, said, status)
                if status == 401 or error.reason:
                    raise error from None
            cause = failed.__cause__
            raise ConnectionFailed(
                words, status=status, retry_after=failed.retry_after, final=failed.final
            ) from (cause if isinstance(cause, OSError) else None)

    def _go_up(self, nursery: trio.Nursery) -> None:
        session, connection = self.session, self.connection
        self.protocol.signed_in = self._signed
        connection._left_armed = False
        self.up = True
        self.up_at = self._read_since = trio.current_time()
        if session.inbox.full:
            self._held_up_since = self.up_at
        session.set_clock()
        connection._counters.connections += 1
        wire.debug("%s: connected", connection.url)
        # First the writer, before anything that fails when the consumer has just left: it is waited for.
        nursery.start_soon(self._guarded, self._write)
        nursery.start_soon(self._guarded, self._watch, nursery)
        if connection.resync_every is not None:
            nursery.start_soon(self._guarded, self._resync_now_and_then, connection.resync_every)
        if connection.dead_mans_switch:
            self.protocol.arm(self.up_at)
        self._writer_woken = False
        self.wake_writer()
        connection._news.unpark_all()
        session.put_mark(Connected(session.now(), connection.source))
        session.lost_by = ""
        session.stood_before = True

    def _go_down(self) -> None:
        """Nothing will be read any more."""
        session, connection = self.session, self.connection
        if self._unwritable is not None and not self._broken and not session.stopping:
            self._dead = True
            self._break(self._unwritable)
        closed = self._closed
        wire.debug("%s: closed: %s %s", connection.url, closed.code, closed.reason)
        session.live = self._live
        connection._left_armed = connection._left_armed or self.protocol.armed
        if self.up:
            self.up = False
            self.stood = trio.current_time() - self.up_at
            session.lose_state(f"disconnected ({closed.code}{': ' if closed.reason else ''}{closed.reason})")
            if session.inbox.wanted:
                session.put_mark(Disconnected(session.now(), connection.source, closed.code, closed.reason))
            if session.stopping:
                session.outbox.close()  # what is in it is still sent
            else:
                self._idle.cancel()
        else:
            self._written.set()
        session.judge(self)
        connection._news.unpark_all()

    # --- the tasks ---

    async def _read(self) -> None:
        session, connection, protocol, inbox = self.session, self.connection, self.protocol, self.session.inbox
        receive, source, counters = self.transport.receive, connection.source, connection._counters
        if self._held_up_since != inf:  # a connection that was lost has left no room: nothing is asked for meanwhile
            await self._wait_for_room(inf)
            if self._abandoned:
                return
        while True:
            # What trio-websocket has read already comes all the same: the fast transport reads no further ahead.
            messages = getattr(self.transport, "leftovers", list)() if self._abandoned else await receive()
            if not messages:
                return
            received = session.now()
            traced = wire.isEnabledFor(logging.DEBUG)
            counters.messages += len(messages)
            if not traced and not protocol.attentive and _all_plain(messages):
                # Nothing to be learned: as nearly always. A message costs a third of what it does below.
                size = sum(map(len, messages))
                if inbox.has_room(len(messages), size):
                    counters.bytes += size
                    inbox.extend_nowait([RawMessage(received, data, source) for data in messages], size)
                    continue
            for data in messages:
                size = len(data) if data.isascii() else _bytes_of(data)  # nearly always so, and known without a look
                counters.bytes += size
                if data[:10] not in _OF_TABLE:
                    data = self._hide(data)
                answers = protocol.receive(data, trio.current_time())
                if traced:
                    wire.debug("%s < %s", connection.url, data)
                if answers:
                    connection._news.unpark_all()
                    self._idle.deadline = protocol.due  # of the writer's wait
                if inbox.full and not self._abandoned:
                    await self._wait_for_room(connection.max_lag)
                inbox.put_nowait(RawMessage(received, data, source), size)
                for answer in answers:
                    self._take_answer(answer)

    def _hide(self, data: str | bytes) -> str | bytes:
        """A message that is not of a table, without keys and signatures: it may repeat a command of ours."""
        data = mask(data)
        if not self.connection._hidden:
            return data
        if isinstance(data, str):
            return self._hide_text(data)
        return self._hide_text(data.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")

    def _hide_text(self, text: str) -> str:
        for credentials in self.connection._hidden:
            text = credentials.hide(text)
        return text

    def _take_answer(self, answer: Answer) -> None:
        """What an answer means beyond the protocol; raises what ends the stream."""
        session, connection = self.session, self.connection
        if isinstance(answer, Refused):
            if answer.op != "subscribe":
                return
            if answer.retried:
                log.warning("%s: it was in force before, and is asked for again", _refusal(answer))
                self.wake_writer()
            elif answer.topic in connection._required:
                raise _subscription_error(answer)
            elif answer.given_up:
                reason = f"{_refusal(answer)}: it was in force before, and is given up"
                log.error("%s", reason)
                session.put_mark(StateLost(session.now(), connection.source, reason, answer.topic))
        elif isinstance(answer, Acknowledged):
            if answer.ignored:
                if not connection._told_of_unasked:
                    connection._told_of_unasked = True
                    log.warning(
                        "%s acknowledges topics that nobody has asked for: %d of them are kept, %.80r and all later "
                        "ones are ignored",
                        connection.url, MAX_UNASKED, answer.topic,
                    )  # fmt: skip
            elif answer.op == "subscribe":
                connection._required.discard(answer.topic)
        elif isinstance(answer, Authenticated):
            connection._credentials = self.protocol.accepted or connection._credentials
            self.wake_writer()  # private topics have waited for it
        elif answer.error is not None:
            error = answer.error
            if connection.dead_mans_switch and answer.status in (401, 403):
                raise AuthenticationError(
                    f"{connection.url} refused the dead man's switch with status {answer.status}: {error}; may this "
                    "key handle orders?",
                    reason="key",
                    status=answer.status,
                )
            log.warning("%s refused cancelAllAfter: %s; it is tried again", connection.url, error)

    async def _wait_for_room(self, max_lag: float) -> None:
        """Wait for the consumer; no longer where the connection is lost: then what was read goes in whatever the room.
        """
        session, connection = self.session, self.connection
        self._held_up_since = trio.current_time()
        try:
            with self._hold:
                with trio.move_on_after(max_lag) as patience:
                    await session.inbox.wait_for_room()
                if patience.cancelled_caught:
                    reason = (
                        f"the consumer held up reading for more than {max_lag:g} s: what waits in the "
                        "socket is too old"
                    )
                    log.warning("%s: %s", connection.url, reason)
                    session.lose_state(reason)
                    session.put_mark(StateLost(session.now(), connection.source, reason))
                    await session.inbox.wait_for_room()
        finally:
            self._held_up_since, self._read_since = inf, trio.current_time()
        if self._hold.cancel_called:  # also where there was room at the same moment: there will be no other
            self._abandoned = True
            return
        self._hold = trio.CancelScope()
        if patience.cancelled_caught:
            connection._ask_anew(None, rationed=True)
        self.wake_writer()  # what was asked for meanwhile goes out now

    async def _write(self) -> None:
        protocol, connection, session = self.protocol, self.connection, self.session
        try:
            while self.up or session.stopping:  # else what is unsent is for the next one
                if not session.unsent:
                    self._idle = trio.CancelScope(deadline=protocol.due)
                    with self._idle:
                        session.unsent.extend(await session.outbox.take())
                    if not (self.up or session.stopping):
                        break
                now = trio.current_time()
                for topic in protocol.overdue(now):
                    log.warning("%s: the partial of %s has not come: it is asked for anew", connection.url, topic)
                    connection._ask_anew(topic, rationed=True)
                if now >= protocol.switch_due and not protocol.switch_settled:
                    log.warning("%s has not answered the dead man's switch for 15 s", connection.url)
                item = session.unsent.popleft() if session.unsent else _COMMANDS  # the latter: something is due
                if item is _COMMANDS:
                    self._writer_woken = False
                    messages = protocol.commands(now, reading=self._held_up_since == inf)
                    connection._news.unpark_all()  # what was taken back before it was sent is settled
                else:
                    messages = [item]
                for message in messages:
                    if wire.isEnabledFor(logging.DEBUG):
                        wire.debug("%s > %s", connection.url, self._hide(message))
                    await self.transport.send(message)
        except trio.EndOfChannel:
            pass
        except TransportClosed as closed:
            self._cannot_write(closed)
        finally:
            self._written.set()

    def _cannot_write(self, closed: TransportClosed) -> None:
        """The connection is lost, as a ping or a command has found. Whoever reads knows better why, and has what came
        before that: so it has a moment to come to the end. But it does not wait for the consumer any more.
        """
        self._unwritable = self._unwritable or closed
        self._hold.cancel()
        self.work.deadline = min(self.work.deadline, trio.current_time() + CLOSE_TIMEOUT)

    async def _watch(self, nursery: trio.Nursery) -> None:
        """Ask after a server that is silent, and give up one that does not answer.

        Silence says nothing while nobody reads. Pings are written then, too, twice as often. Those that do not reach
        the server any more make TCP give it up, and the next one finds that. One that cannot be written, for the server
        takes nothing, is as good as unanswered. A replay is not pinged then: it may have sent all it had and closed,
        and a slow reader is to get all of that.
        """
        heartbeat = self.connection.heartbeat
        while True:
            quiet_since = self._quiet_since
            if quiet_since != inf and trio.current_time() < quiet_since + heartbeat:
                await trio.sleep_until(quiet_since + heartbeat)
                continue
            if self._ping_since == inf and (quiet_since != inf or self._live):
                nursery.start_soon(self._guarded, self._ping)
            await trio.sleep(heartbeat if quiet_since != inf else heartbeat / 2)
            now = trio.current_time()
            if quiet_since != inf and self._quiet_since == quiet_since:
                self._dead = True
                reason = f"heartbeat lost: nothing came for {now - quiet_since:.0f} s"
                self._break(TransportClosed(1006, reason))
                self.work.cancel()
                return
            if max(self._held_up_since, self._ping_since) + heartbeat <= now:
                reason = f"heartbeat lost: a ping could not be written for {heartbeat:g} s"
                self._cannot_write(TransportClosed(1006, reason))
                return

    @property
    def _live(self) -> bool:
        """Whether the server is an exchange: it greets, or acknowledges, or did so before. Else it is a replay."""
        return self.session.live or self.protocol.acknowledges or self.protocol.greeted

    @property
    def _quiet_since(self) -> float:
        """Since when nothing has come from the server; inf: reading waits for the consumer."""
        return inf if self._held_up_since != inf else max(self.transport.heard, self._read_since)

    async def _ping(self) -> None:
        self._ping_since = trio.current_time()
        wire.debug("%s > (ping frame)", self.connection.url)
        try:
            await self.transport.ping()
        except TransportClosed as closed:
            self._cannot_write(closed)
        finally:
            self._ping_since = inf

    async def _resync_now_and_then(self, interval: float) -> None:
        while True:
            await trio.sleep(interval)
            self.connection._ask_anew(None)

    async def _guarded(self, task: Callable[..., Awaitable[None]], *args: Any) -> None:
        try:
            await task(*args)
        except Exception as exc:
            self.error = self.error or exc
            self.work.cancel()

    def _break(self, closed: TransportClosed) -> None:
        """How the connection was lost: the first word counts."""
        if not self._broken:
            closed.reason = self._hide_text(closed.reason)
            self._broken, self._closed = True, closed
            if closed.code != 1000:
                self.error = self.error or self._closed_error(closed)

    def _closed_error(self, closed: TransportClosed) -> ConnectionClosed:
        url, code, reason = self.connection.url, closed.code, closed.reason
        if code == 1006:
            what = f"the connection broke without a close frame{f' ({reason})' if reason else ''}"
        elif closed.by_server:
            said = "without saying why (1005)" if code == 1005 else f"with code {code}"
            what = f"the server closed it {said}{f': {reason}' if reason else ''}"
        elif code == 1009:
            what = f"a message was larger than max_message_size={self.connection.max_message_size} bytes: raise it"
        else:
            what = f"what the server sent is no valid websocket traffic (code {code}{f': {reason}' if reason else ''})"
        final = code == 1009 and not closed.by_server
        return ConnectionClosed(f"the connection to {url} ended: {what}", code=code, reason=reason, final=final)


def _all_plain(messages: Sequence[str | bytes]) -> bool:
    """Whether all are messages of tables (which answer and repeat no command), with as many bytes as characters."""
    # A list, for it is quicker than all() of a generator.
    return not [data for data in messages if data[:10] not in _OF_TABLE or not data.isascii()]


def _url_of(network: str) -> str:
    if network in NETWORKS:
        return NETWORKS[network]
    if "://" not in network:
        raise ValueError(
            f"{network!r} is no network: say {' or '.join(map(repr, NETWORKS))}, or give a ws:// or wss:// URL"
        )
    return check_url(network)


def _bytes_of(data: str | bytes) -> int:
    return len(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)


def _refusal(refused: Refused) -> str:
    status = "" if refused.status is None else f" with status {refused.status}"
    return f"the exchange refused to {refused.op} {refused.topic!r}{status}: {refused.error}"


def _subscription_error(refused: Refused) -> SubscriptionError:
    return SubscriptionError(_refusal(refused), topic=refused.topic, status=refused.status)
