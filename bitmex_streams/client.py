"""The classic client: one object, `BitMEXWebsocket`, from which rows are listened to.

It is built on a pipeline: `Connection`, `Decoder`, and a `TableApplier` that also hands the rows to the listeners,
synchronously, so that what a listener is given first and what changes after it fit without a gap. The pipeline runs in
a task of its own, not around the user's body: so its end can wait for each listener, behind the rows it still has.

Topics and listeners are apart. For each topic that is asked for one task keeps the subscription, through one life
after the other: ask, hold while somebody listens, give up. Every life is carried to its end, and the next begins when
the stream has shown that end; so a partial can always be told to belong to the life that it begins. Of ``trade`` and
``trade:XBTUSD``, the exchange would send each row twice; so a topic without a symbol takes over those with one.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from types import TracebackType
from typing import Any

import trio
from sortedcontainers import SortedDict

from .errors import (
    AuthenticationError,
    BitMEXStreamsError,
    BitMEXWebsocketApiError,
    ConnectionClosed,
    ListenerTooSlow,
    SubscriptionError,
)
from .messages import Disconnected, ErrorMessage, Row, Subscribed, TableMessage, TableUpdate, Unsubscribed, symbol_of
from .nurseries import background
from .pipeline import Pipeline
from .protocol import check_topic, covers
from .sections import Connection, Decoder, TableApplier
from .storage import Storage

__all__ = ["BitMEXWebsocket", "Listener", "open_bitmex_websocket"]

log = logging.getLogger("bitmex_streams")

MAX_BACKLOG = 100_000
MAX_ROWS = 10_000
BOOK = "orderBookL2"
CLOSED = ("Filled", "Canceled", "Rejected", "Expired")
TURN = 64  # rows that a listener takes, at most, before other tasks get their turn
TURN_SECONDS = 0.001


def open_bitmex_websocket(
    network: str,
    api_key: str | None = None,
    api_secret: str | None = None,
    dead_mans_switch: bool = False,
    *,
    max_backlog: int = MAX_BACKLOG,
    max_rows: int | None = MAX_ROWS,
    **options: Any,
) -> AbstractAsyncContextManager[BitMEXWebsocket]:
    """Open a connection, for as long as the context lasts, and give the `BitMEXWebsocket`. Entering it waits until the
    connection stands.

    ``network``: ``"mainnet"``, ``"testnet"``, or a ``ws://`` or ``wss://`` URL. ``api_key``, ``api_secret``: for the
    private tables; both or neither. ``dead_mans_switch``: have the exchange cancel all orders of the account a minute
    after it last heard of us; it is disarmed when the body of the context ends without an exception.
    ``max_backlog``: how many rows may wait for one listener (see `ListenerTooSlow`). ``max_rows``: how many rows the
    storage keeps of a table that only ever grows, such as trade (see `Storage`); None: all. ``options``: any other of
    `Connection`, such as ``ssl_context``.

    Raises ValueError for arguments that make no sense. Entering raises `ConnectionFailed` where no connection can be
    made, and where the key is refused an error that is both a `BitMEXWebsocketApiError` and an `AuthenticationError`.

    When the connection ends, by a normal close (1000) too, and by ``ws.aclose()``, every listener raises
    `ConnectionClosed`, behind the rows that it still has. An error that no listener has raised in the body is raised
    when the context is left (a normal close is not: nobody missed anything). With the dead man's switch, an end that
    this side did not make cancels the body while nobody listens, and is raised at once: the orders are about to be
    canceled.

    What the body raises passes untouched. Leaving closes the connection, which takes at most a few seconds; listeners
    that are still waited on elsewhere raise `ConnectionClosed`.
    """
    return BitMEXWebsocket(
        network, api_key, api_secret, dead_mans_switch, max_backlog=max_backlog, max_rows=max_rows, **options
    )


class AuthenticationRefused(BitMEXWebsocketApiError, AuthenticationError):
    """The exchange refused the API key. Old programs catch it as `BitMEXWebsocketApiError`."""

    def __init__(self, status: int | None, message: str) -> None:
        Exception.__init__(self, status, message)
        self.status = status
        self.message = message
        self.reason = ""

    @classmethod
    def of(cls, error: AuthenticationError) -> AuthenticationRefused:
        refused = cls(error.status, str(error))
        refused.reason = error.reason
        return refused


class Listener(AsyncGenerator[Any, None]):
    """The rows of one table, or of some of its symbols: what `BitMEXWebsocket.listen` returns, an async generator.

    It subscribes with its first ``__anext__``. It gives:

    * rows (dicts, whole) as they are after each insert and update, and those of the partial. Deletes are applied, and
      give nothing.
    * for a partial of ``orderBookL2``, the whole book of the symbol: a dict with ``"Buy"`` and ``"Sell"``, each a
      SortedDict of rows by id; then rows.

    Each row is a dict of this listener's own, and may be changed: neither the storage nor other listeners see it.

    Where the topic is in force already, it begins with what a partial would hold now: of a table with keys, the rows
    (of ``order``, those of open orders); of one without (trade, quote), nothing. From there it gives every change, in
    order and once. A partial that comes again (after a loss of state, or because another listener wants the whole
    table) gives what is new in it. Of a table without keys, rows may be lost just then, which the log
    ``bitmex_streams`` says.

    It ends, like any async generator, with `aclose`, with whatever it raises, and when a task is cancelled in it; also
    when nobody has it any more (after a ``break``, say). Thereby it gives its subscription back, without awaiting;
    the last listener of a topic gives it up. Then it raises StopAsyncIteration.

    Raises `BitMEXWebsocketApiError` (status, message) where the exchange refuses the subscription or does not answer
    (status None), and for an error of the exchange that is not about any subscription; `ListenerTooSlow` when too
    many rows waited; `ConnectionClosed` when the connection has ended; each after the rows before it. RuntimeError
    when two tasks use it at once.
    """

    def __init__(self, client: BitMEXWebsocket, backlog: _Backlog) -> None:
        self._client = client
        self._backlog = backlog
        self._begun = self._ended = self._running = False
        self._token: trio.lowlevel.TrioToken | None = None
        self._taken = 0
        self._turn_ends = 0.0

    def __repr__(self) -> str:
        state = "ended" if self._ended else "listening" if self._begun else "not begun"
        return f"<Listener to {', '.join(self._backlog.topics)}: {state}>"

    async def __anext__(self) -> Any:
        self._check_idle("")
        self._running = True
        try:
            return await self._next()
        except BaseException:
            self._leave()
            raise
        finally:
            self._running = False

    async def asend(self, value: None) -> Any:
        """The next row; ``value`` is of no use."""
        return await self.__anext__()

    async def athrow(
        self, typ: Any, val: BaseException | object | None = None, tb: TracebackType | None = None, /
    ) -> Any:
        """End, and raise the exception."""
        self._check_idle("athrow(): ")
        self._leave()
        error = typ if isinstance(typ, BaseException) else val if isinstance(val, BaseException) else typ()
        raise error if tb is None else error.with_traceback(tb)

    async def aclose(self) -> None:
        """End, and give the subscription back. It does not wait for anything."""
        self._check_idle("aclose(): ")
        self._leave()

    async def _next(self) -> Any:
        rows = self._backlog.rows
        if not (rows and self._in_turn()):
            await trio.lowlevel.checkpoint()
            if self._ended:
                raise StopAsyncIteration
            if not self._begun:
                self._begun = True
                self._token = trio.lowlevel.current_trio_token()
                self._client._listen(self._backlog)
            while not rows:
                if self._backlog.error is not None:
                    raise self._client._told(self._backlog.error)
                await self._backlog.news.park()
        return dict(rows.popleft())

    def _in_turn(self) -> bool:
        """Whether this is not yet the time to let other tasks run."""
        now = time.perf_counter()
        if self._taken < TURN and now < self._turn_ends:
            self._taken += 1
            return True
        self._taken, self._turn_ends = 0, now + TURN_SECONDS
        return False

    def _check_idle(self, where: str) -> None:
        if self._running:
            raise RuntimeError(f"{where}asynchronous generator is already running: a listener is for one task")

    def _leave(self) -> None:
        if self._begun and not self._ended:
            self._client._leave(self._backlog)
        self._ended = True
        self._backlog.rows.clear()

    def __del__(self) -> None:
        if self._token is not None and not self._ended:  # wherever the garbage is collected: in any task, or any thread
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._client._leave, self._backlog)


class BitMEXWebsocket:
    """A connection to BitMEX from which tables are listened to. It is an async context manager, to be entered once;
    `open_bitmex_websocket` and `connect` make it, and tell of the arguments.

    ``connection``, ``tables``, ``pipeline``: the `Connection`, the `TableApplier` and the `Pipeline` it is built on;
    ``tables.stale`` says what of the tables cannot be trusted right now (while the connection stands, nothing of
    a topic that nobody listens to any more: its rows are as they were), and ``pipeline`` can be tapped and extended.
    """

    pipeline: Pipeline

    def __init__(
        self,
        network: str,
        api_key: str | None = None,
        api_secret: str | None = None,
        dead_mans_switch: bool = False,
        *,
        max_backlog: int = MAX_BACKLOG,
        max_rows: int | None = MAX_ROWS,
        **options: Any,
    ) -> None:
        if max_backlog < 1:
            raise ValueError(f"max_backlog is a number of rows, at least 1, not {max_backlog!r}")
        self.max_backlog = max_backlog
        self.connection = Connection(
            network,
            api_key=api_key,
            api_secret=api_secret,
            dead_mans_switch=dead_mans_switch,
            **{"reconnect": None, **options},  # as in its predecessor, a lost connection is an error
        )
        self.tables: TableApplier
        self.tables = self._tables = _Tables(max_rows)
        self._context: AbstractAsyncContextManager[Any] | None = None
        self._nursery: trio.Nursery | None = None  # from the opening on
        self._scope = trio.CancelScope()  # of the pipeline
        self._leaving = trio.Event()
        self._over = trio.Event()
        self._left = False  # the body has ended
        self._closed_here: ConnectionClosed | None = None  # by ``ws.aclose()``
        self._error: Exception | None = None  # what the context has to raise, unless a listener did
        self._was_told = False
        self._asked = self._asking = 0  # subscriptions: that were ever asked for, and whose answer is waited for
        self._once_more = trio.Lock()

    @classmethod
    def connect(
        cls,
        network: str,
        api_key: str | None = None,
        api_secret: str | None = None,
        dead_mans_switch: bool = False,
        **options: Any,
    ) -> AbstractAsyncContextManager[BitMEXWebsocket]:
        """The same as `open_bitmex_websocket`, under its older name."""
        return cls(network, api_key, api_secret, dead_mans_switch, **options)

    async def __aenter__(self) -> BitMEXWebsocket:
        if self._context is not None:
            raise RuntimeError(f"{self!r} has been opened before: make another one")
        self._context = self._open()
        await self._context.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        assert self._context is not None
        return await self._context.__aexit__(kind, error, traceback)

    def __repr__(self) -> str:
        return f"<BitMEXWebsocket on {self.connection!r}>"

    @property
    def storage(self) -> Storage:
        """The tables as they are now: ``data``, ``orderbook``, ``keys``, ``make_key``, ``parse_timestamp``.

        A table is kept up to date while somebody listens to it, and left as it was afterwards.
        """
        return self.tables.storage

    @property
    def ws(self) -> Any:
        """The `trio_websocket.WebSocketConnection` underneath while the connection stands, else None; None, too, with
        another transport than the default. To be looked at, or closed (``await ws.aclose()``), which is a normal
        close for the listeners and the context, but does not disarm the dead man's switch. Sending on it is not safe
        while the client works.
        """
        return self.connection.websocket

    def listen(self, table: str, *symbols: str | None, symbol: str | None = None) -> Listener:
        """An async generator of the rows of ``table``: of all of it, or of the symbols given.

        See `Listener` for what it gives and raises. Any number of listeners share one subscription. Raises ValueError
        for what is no table or no symbol.
        """
        for name in (*symbols, symbol):
            if name is not None and not isinstance(name, str):
                raise ValueError(f"{name!r} is no symbol; several are given one by one: listen({table!r}, 'A', 'B')")
        names = tuple(dict.fromkeys(name for name in (*symbols, symbol) if name is not None))
        for topic in (table, *(f"{table}:{name}" for name in names)):
            check_topic(topic)
        if ":" in table:
            raise ValueError(f"{table!r} is a topic: say listen({', '.join(map(repr, table.split(':')))})")
        return Listener(self, _Backlog(table, names, self.max_backlog))

    # --- the life of the connection ---

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        errors: list[BaseException] = []

        async def leave() -> None:
            self._left = True
            self._leaving.set()
            try:
                await self._over.wait()
            finally:
                if self._error is not None and not self._was_told:
                    errors.append(self._error)

        async with background(leave, errors) as nursery:
            self._nursery = nursery
            nursery.start_soon(self._run)
            try:
                await self._wait_connected()
                self._watch_websocket()
                yield
            except BaseException:
                self._scope.cancel()  # so that the dead man's switch is not disarmed
                raise

    async def _wait_connected(self) -> None:
        with suppress(BitMEXStreamsError):
            await self.connection.wait_connected()
            return
        await self._over.wait()  # the pipeline raises the reason
        assert self._tables.end is not None
        self._was_told = True
        raise self._tables.end

    def _watch_websocket(self) -> None:
        """Know whether it was this side that closed it: trio-websocket itself does not tell."""
        websocket = self.ws
        if websocket is None:
            return
        close = websocket.aclose

        async def aclose(code: int = 1000, reason: str | None = None) -> None:
            if self.ws is websocket and websocket.closed is None and self._closed_here is None:
                words = f"the connection to {self.connection.url} ended: this side closed it, by ws.aclose()"
                self._closed_here = ConnectionClosed(words, code=code, reason=reason or "")
            await close(code, reason)

        websocket.aclose = aclose

    async def _run(self) -> None:
        """The pipeline, from beginning to end."""
        error: Exception | None = None
        try:
            with self._scope:
                async with Pipeline.create(self.connection, Decoder(), self._tables) as self.pipeline:
                    self.pipeline.start()
                    self.pipeline.nursery.start_soon(self._watch, self.pipeline)
                    await self._leaving.wait()
        except AuthenticationError as refused:
            error = AuthenticationRefused.of(refused)
            error.__cause__ = refused
        except Exception as other:
            error = other
        finally:
            self._finish(error)

    async def _watch(self, pipeline: Pipeline) -> None:
        try:
            await pipeline.wait()
        finally:
            self._leaving.set()

    def _finish(self, error: Exception | None) -> None:
        disconnected = self._tables.disconnected
        if self._closed_here is not None and (error is None or isinstance(error, ConnectionClosed)):
            end: Exception = self._closed_here
            error = None
        elif error is None and (self._left or disconnected is None):
            end = ConnectionClosed("the client was closed: its context has been left", code=1000)
        elif error is None:
            assert disconnected is not None
            words = f"the connection to {self.connection.url} ended: the server closed it normally (1000)"
            reason = disconnected.reason
            end = ConnectionClosed(f"{words}: {reason}" if reason else words, code=1000, reason=reason)
        else:
            end = error
        self._error = error
        alone = self._tables.finish_with(end)
        if alone and self.connection.dead_mans_switch and not self._left and self._closed_here is None:
            assert self._nursery is not None
            self._error = end
            self._nursery.cancel_scope.cancel()
        self._over.set()

    def _told(self, error: Exception) -> Exception:
        """``error`` is raised by a listener, in the user's code."""
        if error.__cause__ is not None and error.__cause__ is self._tables.end:
            self._was_told = True
        return error

    # --- listeners and subscriptions ---

    def _listen(self, backlog: _Backlog) -> None:
        tables = self._tables
        if self._nursery is None:
            raise RuntimeError(
                "the client is not open; use: async with BitMEXWebsocket.connect(...) as bws, or open_bitmex_websocket"
            )
        if tables.end is not None:
            backlog.finish(_copy(tables.end))
            return
        tables.backlogs.setdefault(backlog.table, {})[backlog] = None
        for symbol in backlog.symbols:
            self._seat(backlog, symbol)

    def _leave(self, backlog: _Backlog) -> None:
        self._tables.drop(backlog)

    def _seat(self, backlog: _Backlog, symbol: str | None) -> None:
        """Find or make the subscription that serves a listener's symbol."""
        subscriptions, topic = self._tables.subscriptions, topic_of(backlog.table, symbol)
        wide = subscriptions.get(backlog.table)
        subscription = wide if wide is not None and wide.asked else subscriptions.get(topic)
        if subscription is None:
            assert self._nursery is not None
            subscription = subscriptions[topic] = _Subscription(backlog.table, symbol)
            self._nursery.start_soon(self._keep, subscription)
        subscription.seats[backlog, symbol] = None
        if not subscription.leaving and subscription.topic in self._tables.live:
            self._tables.begin(backlog, symbol)

    async def _keep(self, subscription: _Subscription) -> None:
        """One topic, through all its lives, while somebody listens."""
        tables, topic = self._tables, subscription.topic
        try:
            while subscription.seats:
                if self._merge(subscription):
                    return
                subscription.asked, subscription.leaving = True, False
                tables.asked.add(topic)
                try:
                    await self._ask(topic)
                except SubscriptionError as error:
                    self._refused(subscription, error)
                    return
                while tables.subscriptions.get(topic) is subscription:
                    if tables.shown(topic) and not subscription.seats:
                        break
                    await tables.news.park()
                else:
                    return  # that of the whole table has taken over
                subscription.asked, subscription.leaving = False, True
                await self._give_up(topic)
        except ConnectionClosed:
            pass  # the listeners are told by the end of the pipeline
        finally:
            if tables.subscriptions.get(topic) is subscription:
                del tables.subscriptions[topic]

    async def _ask(self, topic: str) -> None:
        """Subscribe. Topics that are asked for together go in one command, and a refusal may not say which of them it
        means: then it is asked for once more, by itself.
        """
        number, others = self._asked, self._asking
        self._asked += 1
        self._asking += 1
        try:
            await self.connection.subscribe(topic)
        except SubscriptionError as error:
            if error.status in (None, 429) or (not others and self._asked == number + 1):
                raise
            async with self._once_more:
                if topic not in self.connection.subscriptions:  # else it has been acknowledged meanwhile
                    await self.connection.subscribe(topic)
        finally:
            self._asking -= 1

    async def _give_up(self, topic: str) -> None:
        """Give a topic up, and wait until the stream has shown it: no partial of this life comes any more."""
        tables = self._tables
        try:
            await self.connection.unsubscribe(topic)
        except SubscriptionError as error:
            log.warning("nobody listens to %s, but it could not be given up: %s", topic, error)
            return
        with trio.move_on_after(self.connection.subscribe_timeout):
            while topic in tables.acknowledged:
                await tables.news.park()

    def _merge(self, subscription: _Subscription) -> bool:
        """Before asking: hand over to the subscription of the whole table, or take over those of its symbols. True:
        handed over.
        """
        tables, subscriptions = self._tables, self._tables.subscriptions
        if subscriptions.get(subscription.topic) is not subscription:
            return True
        wide = subscriptions.get(subscription.table)
        if wide is not None and wide is not subscription and wide.asked:
            del subscriptions[subscription.topic]
            for backlog, symbol in subscription.seats:
                self._seat(backlog, symbol)
            return True
        for topic, other in tuple(subscriptions.items()):
            if other is not subscription and covers(subscription.topic, topic) and not other.leaving:
                subscription.seats.update(other.seats)
                del subscriptions[topic]
                other.seats.clear()
        if subscription.topic in tables.live:  # of a server that sends on what was given up
            for backlog, symbol in tuple(subscription.seats):
                tables.begin(backlog, symbol)
        tables.news.unpark_all()
        return False

    def _refused(self, subscription: _Subscription, error: SubscriptionError) -> None:
        tables, topic = self._tables, subscription.topic
        if tables.subscriptions.get(topic) is not subscription:
            return
        refusal = self.connection._protocol.refusal(topic)
        del tables.subscriptions[topic]
        self.connection.unsubscribe_soon(topic)  # it stays in force where there was no answer in time
        for backlog, symbol in tuple(subscription.seats):
            if symbol != subscription.symbol:
                self._seat(backlog, symbol)  # was taken over, and goes its own way again
                continue
            told = BitMEXWebsocketApiError(error.status, refusal.error if refusal is not None else str(error))
            told.__cause__ = error
            backlog.finish(told)
            tables.drop(backlog)


class _Backlog:
    """What one listener wants, and what waits for it."""

    def __init__(self, table: str, symbols: tuple[str, ...], limit: int) -> None:
        self.table = table
        self.symbols: tuple[str | None, ...] = symbols or (None,)  # None: all
        self.limit = limit
        self.hears: set[str | None] = set()  # the symbols whose beginning it has had
        self.rows: deque[Any] = deque()
        self.error: Exception | None = None
        self.news = trio.lowlevel.ParkingLot()

    @property
    def topics(self) -> list[str]:
        return [topic_of(self.table, symbol) for symbol in self.symbols]

    def put(self, rows: Iterable[Any]) -> bool:
        """Add rows, unless too many wait; False: that is so, and was the end."""
        if len(self.rows) >= self.limit:
            self.finish(
                ListenerTooSlow(
                    f"a listener to {', '.join(self.topics)} was too slow: {len(self.rows)} rows waited for it; take "
                    "them faster, listen to less, or raise max_backlog"
                )
            )
            return False
        self.rows.extend(rows)
        self.news.unpark_all()
        return True

    def finish(self, error: Exception) -> None:
        """No more rows; behind those that wait, ``error``."""
        if self.error is None:
            self.error = error
        self.news.unpark_all()


class _Subscription:
    """A topic that somebody wants. ``seats``: for whom: the backlogs, and which of their symbols."""

    def __init__(self, table: str, symbol: str | None) -> None:
        self.table = table
        self.symbol = symbol
        self.topic = topic_of(table, symbol)
        self.seats: dict[tuple[_Backlog, str | None], None] = {}
        self.asked = False  # the exchange was asked for it, in this life, and it was not given up again
        self.leaving = False


class _Tables(TableApplier):
    """The tables; each change goes to the listeners, too.

    In stream order: ``acknowledged`` are the topics that the exchange said it sends, ``live`` those of which a partial
    has come and counts. ``news`` wakes whoever waits for a change of these, or of the seats.
    """

    def __init__(self, max_rows: int | None) -> None:
        super().__init__(max_rows=max_rows)
        self.acknowledged: set[str] = set()
        self.live: set[str] = set()
        self.asked: set[str] = set()  # ever, by a listener
        self.subscriptions: dict[str, _Subscription] = {}
        self.backlogs: dict[str, dict[_Backlog, None]] = {}  # by table
        self.news = trio.lowlevel.ParkingLot()
        self.disconnected: Disconnected | None = None
        self.end: Exception | None = None

    def process(self, item: Any) -> Sequence[Any]:
        kind = type(item)
        before: _Before | None = None
        if kind is TableMessage:
            if item.action == "partial":
                before = _Before(self.storage, item.table, self._heard(item.table))
        elif kind is Subscribed:
            self.acknowledged.add(item.topic)
            self.news.unpark_all()
        elif kind is Unsubscribed:
            self.acknowledged.discard(item.topic)
            self.live.discard(item.topic)
            self.news.unpark_all()
        elif kind is ErrorMessage:
            self._complain(item)
        elif kind is Disconnected:
            self.disconnected = item
        updates = tuple(super().process(item))
        for update in updates:
            if type(update) is TableUpdate:
                if update.action == "partial":
                    assert before is not None
                    self._tell_partial(update, before)
                elif update.action == "stale":
                    self.live.discard(_topic_of(update))
                elif update.action != "delete":
                    self._tell(update)
        return updates

    def shown(self, topic: str) -> bool:
        """Whether the stream has shown that a topic is in force."""
        return topic in self.acknowledged or topic in self.live

    def drop(self, backlog: _Backlog) -> None:
        """A listener has ended: its seats are free."""
        self.backlogs.get(backlog.table, {}).pop(backlog, None)
        for subscription in self.subscriptions.values():
            for symbol in backlog.symbols:
                subscription.seats.pop((backlog, symbol), None)
        self.news.unpark_all()

    def finish_with(self, end: Exception) -> bool:
        """The stream has ended: tell every listener. True: there was none."""
        self.end = end
        found = [backlog for backlogs in self.backlogs.values() for backlog in backlogs]
        for backlog in found:
            backlog.finish(_copy(end))
            self.drop(backlog)
        return not found

    # --- what a listener gets ---

    def begin(self, backlog: _Backlog, symbol: str | None) -> None:
        """A listener joins a topic that is in force: what a partial would hold now, then every change."""
        if symbol in backlog.hears:
            return
        backlog.hears.add(symbol)
        table = backlog.table
        rows: list[Any] = []
        if table == BOOK:
            rows = [_book(self.storage, name) for name in self._books(symbol)]
        elif table in self.storage.tables and self.storage.tables[table].keys:
            rows = [row for row in _rows(self.storage, table) if symbol is None or symbol_of(row) == symbol]
            if table == "order":  # the exchange lists open ones
                rows = [row for row in rows if row.get("ordStatus") not in CLOSED]
        if rows:
            self._put(backlog, rows)

    def _tell(self, update: TableUpdate) -> None:
        for backlog in tuple(self.backlogs.get(update.table, ())):
            hears = backlog.hears
            if None in hears:
                self._put(backlog, update.rows)
            elif hears and (rows := [row for row in update.rows if symbol_of(row) in hears]):
                self._put(backlog, rows)

    def _tell_partial(self, update: TableUpdate, before: _Before) -> None:
        table, topic = update.table, _topic_of(update)
        self.live = {name for name in self.live if not covers(topic, name)} | {topic}
        self.news.unpark_all()
        subscription = self.subscriptions.get(topic)
        if not self.backlogs.get(table):
            return
        parts = self._book_parts(update, before) if table == BOOK else before.parts(update)
        for backlog in tuple(self.backlogs[table]):
            hears, begins = set(backlog.hears), set()
            if subscription is not None and subscription.asked:
                begins = {symbol for symbol in backlog.symbols if (backlog, symbol) in subscription.seats} - hears
                backlog.hears |= begins
            rows = []
            for row, symbol, new in parts:
                if symbol in begins or None in begins or (new and (symbol in hears or None in hears)):
                    rows.append(_book(self.storage, symbol) if table == BOOK else row)
            if rows:
                self._put(backlog, rows)

    def _book_parts(self, update: TableUpdate, before: _Before) -> list[tuple[Any, Any, bool]]:
        symbol = _topic_of(update).partition(":")[2] or None
        return [(None, name, before.books.get(name) != _levels(self.storage, name)) for name in self._books(symbol)]

    def _books(self, symbol: str | None) -> list[str]:
        return list(self.storage.orderbook) if symbol is None else [symbol]

    def _put(self, backlog: _Backlog, rows: Sequence[Any]) -> None:
        if not backlog.put(rows):
            self.drop(backlog)

    def _heard(self, table: str) -> set[str | None]:
        heard: set[str | None] = set()
        return heard.union(*(backlog.hears for backlog in self.backlogs.get(table, ())))

    def _complain(self, item: ErrorMessage) -> None:
        """What the exchange could not do: raised in every listener, unless the connection takes care of it."""
        request = item.request or {}
        op, args = request.get("op"), request.get("args")
        topics = [topic for topic in (args if isinstance(args, list) else [args]) if isinstance(topic, str)]
        if op in ("cancelAllAfter", "authKeyExpires") or (
            op in ("subscribe", "unsubscribe") and not self.asked.isdisjoint(topics)
        ):
            return
        found = [backlog for backlogs in self.backlogs.values() for backlog in backlogs]
        if not found:
            log.warning("an error of the exchange, while nobody listens: %s (status %s)", item.error, item.status)
        for backlog in found:
            backlog.finish(BitMEXWebsocketApiError(item.status, item.error))
            self.drop(backlog)


class _Before:
    """What was there before a partial: only what is new in it is news to those who have listened before.

    ``heard``: the symbols for whose sake it is kept (None: all); without any, nothing is.
    """

    def __init__(self, storage: Storage, table: str, heard: set[str | None]) -> None:
        self.books: dict[str, Any] = {}
        self._heard = heard
        self._keys: tuple[str, ...] = ()
        self._rows: dict[Any, Row] = {}
        self._by_symbol: dict[Any, list[Row]] = {}
        known = storage.tables.get(table)
        if not heard or known is None:
            return
        if table == BOOK:
            self.books = {symbol: _levels(storage, symbol) for symbol in storage.orderbook if _in(symbol, heard)}
            return
        self._keys = tuple(known.keys)
        for row in _rows(storage, table):
            if _in(symbol := symbol_of(row), heard):
                if self._keys:
                    self._rows[self._key(row)] = row
                else:
                    self._by_symbol.setdefault(symbol, []).append(row)

    def _key(self, row: Row) -> Any:
        return tuple(row.get(column) for column in self._keys)

    def parts(self, update: TableUpdate) -> list[tuple[Any, Any, bool]]:
        """The rows of the partial, their symbols, and whether each is new."""
        if self._keys and self._keys == tuple(update.keys):
            return [(row, symbol_of(row), self._rows.get(self._key(row)) != row) for row in update.rows]
        by_symbol: dict[Any, list[Row]] = {}
        for row in update.rows:
            by_symbol.setdefault(symbol_of(row), []).append(row)
        new = {id(row) for symbol, rows in by_symbol.items() for row in self._unseen(update.table, symbol, rows)}
        return [(row, symbol_of(row), id(row) in new) for row in update.rows]

    def _unseen(self, table: str, symbol: Any, rows: list[Row]) -> Sequence[Row]:
        """Of a table that only grows: what comes behind the last row that was there before."""
        seen = self._by_symbol.get(symbol, [])
        if not seen:
            return rows
        for end in range(len(rows), 0, -1):
            count = min(end, len(seen))
            if rows[end - count : end] == seen[len(seen) - count :]:
                return rows[end:]
        log.warning(
            "%s was interrupted by a new subscription: rows after %s may be missing for who listened before",
            topic_of(table, symbol), seen[-1].get("timestamp"),
        )  # fmt: skip
        last = str(seen[-1].get("timestamp"))
        return [row for row in rows if str(row.get("timestamp")) > last]


def topic_of(table: str, symbol: str | None) -> str:
    """The topic of a symbol's part of a table; None: of all of it."""
    return table if symbol is None else f"{table}:{symbol}"


def _topic_of(update: TableUpdate) -> str:
    """The topic that a partial covers (a private table's filter also holds the account)."""
    symbol = (update.filter or {}).get("symbol")
    return topic_of(update.table, symbol if isinstance(symbol, str) else None)


def _in(symbol: str | None, symbols: set[str | None]) -> bool:
    return None in symbols or symbol in symbols


def _rows(storage: Storage, table: str) -> Iterator[Row]:
    """The rows of a table, in their order."""
    rows: Mapping[Any, Any] = storage.data[table]
    if table != "orderBookL2_25":
        yield from rows.values()
        return
    for sides in rows.values():
        for levels in sides.values():
            yield from levels.values()


def _book(storage: Storage, symbol: str) -> dict[str, Any]:
    """A copy of the book of a symbol, and of its rows; an empty one where there is none."""
    levels = storage.orderbook[symbol]
    return {side: SortedDict({level: dict(row) for level, row in rows.items()}) for side, rows in levels.items()}


def _levels(storage: Storage, symbol: str) -> Any:
    """What makes one book differ from another: the same levels can come with other timestamps."""
    return [
        (side, level, row.get("price"), row.get("size"))
        for side, rows in storage.orderbook.get(symbol, {}).items()
        for level, row in rows.items()
    ]


def _copy(error: Exception) -> Exception:
    """An error of its own for each listener, so that none adds to another's traceback."""
    made: Exception
    if isinstance(error, ConnectionClosed):
        made = ConnectionClosed(str(error), code=error.code, reason=error.reason)
    elif isinstance(error, AuthenticationRefused):
        made = AuthenticationRefused.of(error)
    else:
        made = ConnectionClosed(f"the pipeline of the client has failed: {error!r}")
    made.__cause__ = error
    return made
