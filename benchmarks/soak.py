"""Faults of every kind at random, one after the other, against live pipelines: `python -m benchmarks.soak`.

An embedded exchange trades, with an account on it; a pipeline follows all of it, while the exchange's ``faults`` strike
at its connection. Who is at the exchange itself knows the truth: each message that was published, and the state that it
made. So each item that the pipeline hands out is judged on the way:

* each delta of each topic has to be the very message that follows the one before (nothing lost, doubled or out of
  order), and what it makes of the tables and books what the exchange had then; only where a delta was skipped or
  repeated, which nobody can see, not before the next partial;
* from a loss to the next partial nothing may come but marks, and live objects are stale as soon as the connection is
  lost;
* each fill comes once.

After the faults, tables, books, orders and fills have to be the exchange's own again, in bounded time. At the end of
each round (of `ROUND` faults; the two transports take turns) the pipeline is left, and no task, socket or object of it
may remain.

By default all goes over in-memory streams on a test clock, so that waits cost nothing; with ``--sockets`` over real
ones, in real time. The first thing that is wrong ends it with exit status 1, and what is needed to see it again.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import logging
import random
import resource
import sys
import time
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import trio
import trio.testing

from bitmex_streams import (
    BookUpdate,
    Connected,
    Connection,
    Decoder,
    Disconnected,
    Fill,
    Fills,
    FillsMissing,
    OrderBookMerger,
    Orders,
    Pipeline,
    Reconnect,
    StateLost,
    TableApplier,
    TableUpdate,
)
from bitmex_streams.exchange import OrderRefused, open_exchange
from bitmex_streams.operator import Operator
from bitmex_streams.transport import TRANSPORTS

SYMBOLS = ("XBTUSD", "ETHUSD")
PRIVATE = ("order", "execution", "position")
TOPICS = ("orderBookL2:XBTUSD", "orderBookL2:ETHUSD", "trade", "quote:XBTUSD", "instrument", *PRIVATE)
KEYS = {
    "orderBookL2": ("symbol", "id", "side"), "instrument": ("symbol",), "order": ("orderID",),
    "position": ("account", "symbol"),
    "trade": ("symbol",), "quote": ("symbol",), "execution": ("symbol",),  # that only grow: by their last rows
}  # fmt: skip
CLOSED = frozenset({"Filled", "Canceled", "Rejected", "Expired"})
ROUND = 50
HANGS = 120  # real seconds in which a fault must be over
LEAK = 64 * 2**20  # bytes by which the process may grow after its first quarter

Row = dict[str, Any]


class Wrong(Exception):
    """What the pipeline gave is not what the exchange had."""


# --- the truth, and what is told of it --------------------------------------------------------------------------------


class Mirror:
    """The state of a topic, row by row, with a digest that follows each change at small cost."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.table, _, self.symbol = topic.partition(":")
        self.rows: dict[tuple[Any, ...], Row] = {}
        self.digest = 0

    def load(self, rows: Iterable[Row]) -> None:
        self.rows, self.digest = {}, 0
        self.apply("insert", rows)

    def apply(self, action: str, rows: Iterable[Row]) -> None:
        for row in rows:
            key = tuple(row[column] for column in KEYS[self.table])
            before = self.rows.pop(key, None)
            if before is not None:
                self.digest -= self._hash(before)
            if action == "delete" or row.get("ordStatus") in CLOSED:
                continue
            now = self.rows[key] = {**before, **row} if before is not None and action == "update" else dict(row)
            self.digest += self._hash(now)

    def _hash(self, row: Row) -> int:
        if self.table == "orderBookL2":  # a partial dates its rows anew
            return hash((row["symbol"], row["side"], row["price"], row["size"]))
        return digest_of([row])

    def book(self, symbol: str, side: str) -> list[tuple[float, int]]:
        """A side of a book, best first."""
        levels = [(row["price"], row["size"]) for key, row in self.rows.items() if key[0] == symbol and key[2] == side]
        return sorted(levels, reverse=side == "Buy")


def digest_of(rows: Iterable[Row]) -> int:
    return hash(tuple(frozenset((name, _hashable(value)) for name, value in row.items()) for row in rows))


def _hashable(value: Any) -> Any:
    return value if value.__hash__ is not None else repr(value)


class Truth:
    """All that the exchange published of a topic: the state after each message, and what was in it."""

    def __init__(self, topic: str, partial: str) -> None:
        self.mirror = Mirror(topic)
        self.mirror.load(msgspec.json.decode(partial)["data"])
        self.forget()

    def forget(self) -> None:
        """Everything up to now is known to be delivered."""
        self.history = [(self.mirror.digest, 0)]
        self.found = {self.mirror.digest: [0]}

    def send(self, message: str) -> None:
        """As a subscriber of the exchange's feed: ahead of all clients."""
        decoded = msgspec.json.decode(message)
        self.mirror.apply(decoded["action"], decoded["data"])
        self.found.setdefault(self.mirror.digest, []).append(len(self.history))
        self.history.append((self.mirror.digest, digest_of(decoded["data"])))

    @property
    def last(self) -> int:
        return len(self.history) - 1


class Told:
    """What the pipeline told of a topic. ``at``: the messages of the history that may be the last one told (a state can
    come again). ``blind``: since which message it may be wrong unnoticed, until a later partial; None: it may not.
    """

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self.mirror = Mirror(truth.mirror.topic)
        self.stale = True
        self.at: set[int] = set()
        self.blind: float | None = None

    def take(self, update: TableUpdate) -> str | None:
        """Judge an update; what is wrong with it."""
        if update.action == "stale":
            self.stale = True
            return None
        truth, mirror = self.truth, self.mirror
        if update.action == "partial":
            mirror.load(update.rows)
            earliest = min(self.at, default=0)
            self.stale, self.at = False, {at for at in truth.found.get(mirror.digest, ()) if at >= earliest}
            if self.blind is not None and self.at and max(self.at) >= self.blind:
                self.blind = None
            return None if self.at or self.blind is not None else "a partial that the exchange never was at"
        if self.stale:
            return f"an {update.action} unmarked, from a loss to the next partial: {update.delta}"
        mirror.apply(update.action, update.delta)
        if self.blind is not None:
            return None
        now = mirror.digest, digest_of(update.delta)
        at = {at + 1 for at in self.at if at < truth.last and truth.history[at + 1] == now}
        if not at:
            return f"after message {sorted(self.at)} of {truth.last} comes another than the next: {update.delta}"
        self.at = at
        return None


class Judge:
    """Watches over one pipeline. `before`, `tables` and `end` are its eyes in it: behind the decoder, behind the
    applier, and at the end.
    """

    def __init__(self, truths: Mapping[str, Truth]) -> None:
        self.wrong: list[str] = []
        self.told = {topic: Told(truth) for topic, truth in truths.items()}
        self.before, self.tables, self.end = Eye(self._before), Eye(self._tables), Eye(self._end)
        self.out: list[Any] = []  # what the end has put out, until the consumer has taken it
        self.last: dict[str, BookUpdate] = {}
        self.marks = self.latest_marks = 0
        self.latest: dict[str, BookUpdate] = {}
        self.fills: list[Fill] = []
        self.fills_seen: set[str] = set()
        self.marks_of_fills = 0
        self._due: set[str] = set()  # topics whose mark has to come next
        self._books: dict[str, dict[tuple[str, float], int]] = {}

    def say(self, what: str) -> None:
        if len(self.wrong) < 10:
            self.wrong.append(what[:2000])

    def topic_of(self, table: str, rows: Sequence[Row], filter: Mapping[str, Any] | None) -> Told | None:
        symbol = rows[0].get("symbol") if rows else (filter or {}).get("symbol")
        return self.told.get(f"{table}:{symbol}") or self.told.get(table)

    def _before(self, item: Any) -> None:
        if type(item) is Disconnected or type(item) is Connected or (type(item) is StateLost and item.topic is None):
            self._due.update(topic for topic, told in self.told.items() if not told.stale)

    def _tables(self, item: Any) -> None:
        if type(item) is not TableUpdate:
            return
        told = self.topic_of(item.table, item.rows, item.filter)
        if told is None:
            if item.action != "stale":
                self.say(f"a {item.action} of {item.table}, which nobody subscribed to")
            return
        topic = told.mirror.topic
        if item.action == "stale":
            self._due.discard(topic)
        elif self._due:
            self.say(f"state was lost, and before the marks of {sorted(self._due)} a {item.action} of {topic} comes")
        if wrong := told.take(item):
            self.say(f"{topic}: {wrong}")

    def _end(self, item: Any) -> None:
        self.out.append(item)
        if type(item) is BookUpdate:
            self._book(item)
        elif type(item) is Fill:
            if item.exec_id in self.fills_seen:
                self.say(f"the fill {item.exec_id} comes twice")
            self.fills_seen.add(item.exec_id)
            self.fills.append(item)
        elif type(item) is FillsMissing:
            self.marks_of_fills += 1

    def _book(self, update: BookUpdate) -> None:
        symbol, told = update.symbol, self.told[f"orderBookL2:{update.symbol}"]
        self.last[symbol] = update
        if update.stale:
            self.marks += 1
            return
        if told.stale:
            self.say(f"{symbol}: a BookUpdate unmarked, from a loss to the next partial: {update}")
            return
        bids, asks = told.mirror.book(symbol, "Buy"), told.mirror.book(symbol, "Sell")
        if update.changes is None:
            book = self._books[symbol] = {("Buy", p): s for p, s in bids} | {("Sell", p): s for p, s in asks}
        else:
            book = self._books[symbol]
            for side, price, size in update.changes:
                book[side, price] = size
                if not size:
                    del book[side, price]
        top = bids[0] if bids else None, asks[0] if asks else None
        if (update.best_bid, update.best_ask) != top:
            self.say(f"{symbol}: the top is {update.best_bid}, {update.best_ask}; it should be {top}")
        if update.book.bids[:] != bids or update.book.asks[:] != asks:
            self.say(f"{symbol}: the live book is not what the table has")
        if len(book) != len(bids) + len(asks) or any(book.get(("Buy", price)) != size for price, size in bids):
            self.say(f"{symbol}: the changes do not make the book that the table has")


class Eye(Operator):
    """Shows each item to ``look``, and passes it on."""

    def __init__(self, look: Callable[[Any], None]) -> None:
        self._look = look

    def process(self, item: Any) -> Iterable[Any]:
        self._look(item)
        return (item,)


# --- the faults -------------------------------------------------------------------------------------------------------

GARBAGE: tuple[str | bytes, ...] = (
    "{garbage", "", "null", "[]", "42", b"\xff\xfe", b"{", '{"table":7,"action":"insert","data":[]}',
    '{"table":"trade","action":"insert","data":{}}', '{"table":"orderBookL2","action":"insert","data":[1]}',
    '{"table":"orderBookL2","action":"partial","data":[{}]}', "[" * 5000,
)  # fmt: skip
UNKNOWN = (
    '{"table":"nobodyKnows","action":"insert","data":[{"symbol":"XBTUSD"}]}',
    '{"table":"nobodyKnows","action":"update","data":[{"id":1}]}',
    '{"table":"orderBookL2","action":"upsert","data":[]}', '{"table":"trade","action":"","data":[]}',
    '{"what":"is this"}', '{"error":"Something is wrong with us","status":500}',
)  # fmt: skip
CLOSE_CODES = (0, *range(1000, 1004), *range(1005, 1016), 3000, 4000, None)
CONTRADICTIONS = (
    '{"table":"orderBookL2","action":"update","data":[{"symbol":"XBTUSD","id":7,"side":"Buy","size":1,"price":1}]}',
    '{"table":"orderBookL2","action":"delete","data":[{"symbol":"ETHUSD","id":7,"side":"Sell"}]}',
    '{"table":"instrument","action":"update","data":[{"symbol":"NOSUCH","lastPrice":1}]}',
    '{"table":"order","action":"update","data":[{"orderID":"none","clOrdID":"","account":1,"symbol":"XBTUSD"}]}',
)


class Soak:
    """``faults`` faults, drawn from ``seed``."""

    def __init__(self, seed: int, faults: int, sockets: bool, transports: Sequence[str], say: Callable[..., None]):
        self.seed, self.faults, self.sockets, self.transports, self.say = seed, faults, sockets, transports, say
        self.rng = random.Random(seed)
        self.struck: Counter[str] = Counter()
        self.reconnects = self.resyncs = self.items = 0
        self.number = 0
        self.kind = ""
        self.awake = trio.Event()  # whether the consumer is
        self.awake.set()
        self.known: set[str] | None = None  # the fills that are known to be told
        self.heartbeat = 0.1 if sockets else 2.0
        self.kinds: dict[str, Callable[[], Awaitable[None]]] = {
            name: getattr(self, name)
            for name in (
                "drop", "cut_frame", "close", "stall", "refuse", "slow_handshake", "garbage", "unknown",
                "contradiction", "bad_frame", "big_message", "skip", "duplicate", "delay_partial",
                "sleepy_consumer",
            )
        }  # fmt: skip

    # what is done

    async def drop(self) -> None:
        self.exchange.faults.drop(reset=self.rng.random() < 0.5)

    async def cut_frame(self) -> None:
        self.exchange.faults.cut_frame()

    async def close(self) -> None:
        self.exchange.faults.close(self.rng.choice(CLOSE_CODES))

    async def stall(self) -> None:
        self.exchange.faults.stall()
        await trio.sleep(self.rng.uniform(0.1, 2.5) * self.heartbeat)
        self.look()
        self.exchange.faults.resume()

    async def refuse(self) -> None:
        self.exchange.faults.refuse(
            self.rng.choice([429, 500, 502, 503, 504]),
            times=self.rng.randint(1, 3),
            retry_after=self.rng.choice([None, 0, 0.1]),
            body=self.rng.choice([None, b"", b"<html>no</html>", b'{"error":{"message":"busy","name":"HTTPError"}}']),
        )
        self.exchange.faults.drop()

    async def slow_handshake(self) -> None:
        self.exchange.faults.slow_handshake(self.rng.uniform(0, 1.5) * self.connection.connect_timeout)
        self.exchange.faults.drop()

    async def garbage(self) -> None:
        self.exchange.faults.send(self.rng.choice(GARBAGE))

    async def unknown(self) -> None:
        self.exchange.faults.send(self.rng.choice(UNKNOWN))

    async def contradiction(self) -> None:
        self.exchange.faults.send(self.rng.choice(CONTRADICTIONS))

    async def bad_frame(self) -> None:
        if self.rng.random() < 0.3:
            self.exchange.faults.send_raw(self.rng.randbytes(self.rng.randint(1, 20)))
        else:  # no UTF-8; a control frame that is none; opcodes that there are not
            self.exchange.faults.send_frame(b"\xff\xfe", opcode=self.rng.choice([1, 1, 1, 3, 8, 9, 10, 11]))

    async def big_message(self) -> None:
        self.exchange.faults.big_message(self.rng.randint(100, 500_000))

    async def skip(self) -> None:
        await self._miscount("skip")

    async def duplicate(self) -> None:
        await self._miscount("duplicate")

    async def _miscount(self, name: str) -> None:
        """Nobody can see it, so it is known to be blind from before it strikes to a partial of after that."""
        faults, topic = self.exchange.faults, self.rng.choice(TOPICS)
        told, before = self.judge.told[topic], faults.counts[name]
        was, told.blind = told.blind, float("inf")
        getattr(faults, name)(topic, self.rng.randint(1, 3))
        for _ in range(20):
            self.trade()
            await trio.sleep(0.01 if self.sockets else 0.2)
            if faults.counts[name] > before:
                break
        faults.miscounts.clear()
        struck = faults.counts[name] > before
        told.blind = told.truth.last if struck else was
        if struck and self.rng.random() < 0.7:
            self.connection.resync(topic)

    async def delay_partial(self) -> None:
        faults, topic = self.exchange.faults, self.rng.choice(TOPICS)
        faults.delay_partial(
            self.rng.uniform(0, 1), topic=self.rng.choice([None, topic]), times=self.rng.randint(1, 4),
            deltas_first=self.rng.random() < 0.5,
        )  # fmt: skip
        if self.rng.random() < 0.5:
            faults.drop()
        else:
            self.connection.resync(topic)

    async def sleepy_consumer(self) -> None:
        """The connection is lost while nobody takes the marks of it: live objects have to know."""
        self.awake = trio.Event()
        await trio.sleep(self.rng.uniform(0.5, 1) * (0.2 if self.sockets else 2))
        self.trade()
        self.exchange.faults.drop()
        for _ in range(5):
            await trio.sleep(0.001)
            self.look()
        self.awake.set()

    def trade(self) -> None:
        """The account does something."""
        rng, account = self.rng, self.account
        with suppress(OrderRefused):
            if account.orders and rng.random() < 0.4:
                account.cancel(rng.choice(list(account.orders)))
            else:
                symbol = rng.choice(SYMBOLS)
                market = self.exchange.markets[symbol]
                book, lot = market.book, market.instrument.lot_size
                long = account.positions.get(symbol, {}).get("currentQty", 0) > 0
                side = "Sell" if rng.random() < (0.7 if long else 0.3) else "Buy"
                prices = [level.price for level in (book.bids if side == "Buy" else book.asks)[:5]]
                account.submit(symbol, side, lot * rng.randint(1, 5), rng.choice([None, None, *prices]))

    # how it goes

    async def run(self) -> None:
        """All rounds. Raises `Wrong`, or whatever the pipeline raises."""
        first: int | None = None
        rate = 100 if self.sockets else 20
        async with open_exchange(symbols=SYMBOLS, seed=self.seed, rate=rate, levels=20) as exchange:
            self.exchange = exchange
            account = self.account = exchange.open_account({"XBt": 10**13, "USDt": 10**13})
            account.submit("XBTUSD", "Buy", 100)  # where no execution is known, none can tell that none is missing
            self.truths: dict[str, Truth] = {}
            for topic in TOPICS:
                table, _, symbol = topic.partition(":")
                private = table in PRIVATE
                tables = account.tables if private else exchange.tables
                self.truths[topic] = Truth(topic, tables.partial(table, symbol or None))
                (account.tables.feed if private else exchange.feed).add(self.truths[topic], table, symbol or None)
            await trio.testing.wait_all_tasks_blocked()
            rounds = 0
            while self.number < self.faults:
                await self.round(rounds)
                rounds += 1
                if first is None and self.number >= self.faults / 4:
                    first = resident()
                self.say(
                    f"{self.number:>7,} faults, {self.reconnects:,} reconnects, {self.resyncs:,} topics asked anew, "
                    f"{self.items:,} items, {resident() / 2**20:.0f} MiB"
                )
            assert first is not None
            if resident() > first + LEAK:
                raise Wrong(f"the process had {first:,} bytes, and has {resident():,}")

    def transport(self, made: weakref.WeakSet[Any], nursery: trio.Nursery, name: str, url: str, **options: Any) -> Any:
        """A transport, to the exchange by a socket or by a stream in memory."""
        if not self.sockets:
            options["stream"], theirs = trio.testing.memory_stream_pair()
            nursery.start_soon(self.exchange.serve_stream, theirs)
        transport = TRANSPORTS[name](url, **options)
        made.add(transport)
        return transport

    async def round(self, index: int) -> None:
        """A pipeline from its beginning to its end, and what it leaves behind."""
        exchange, tasks, sockets = self.exchange, living(), open_sockets()
        made: weakref.WeakSet[Any] = weakref.WeakSet()
        key, secret = f"{index:024}", f"{index:048}"  # no signature is taken twice, and a secret makes 600 at a time
        exchange.accounts.keys.add(key, secret, self.account)
        async with trio.open_nursery() as servers:
            self.connection = Connection(
                exchange.url, subscribe=TOPICS, api_key=key, api_secret=secret,
                reconnect=Reconnect(initial=0.01, maximum=0.03 if self.sockets else 2.0, stable=self.heartbeat),
                heartbeat=self.heartbeat, connect_timeout=0.4 if self.sockets else 3.0,
                resync_every=5.0 if self.sockets else 150.0,
                transport=partial(self.transport, made, servers, self.transports[index % len(self.transports)]),
            )  # fmt: skip
            await self.follow(made)
            servers.cancel_scope.deadline = trio.current_time() + 5
        remains = weakref.ref(self.connection), weakref.ref(self.tables), weakref.ref(self.books)
        del self.connection, self.tables, self.books, self.orders, self.judge
        with trio.move_on_after(5):
            while exchange.clients or living() > tasks or open_sockets() > sockets:  # noqa: ASYNC110
                await trio.sleep(0.01)
        gc.collect()
        if left := [*made, *(one for ref in remains if (one := ref()) is not None)]:
            raise Wrong(f"after the pipeline there remain in memory {left}")
        if exchange.clients or living() > tasks or open_sockets() > sockets:
            raise Wrong(
                f"after the pipeline there remain {exchange.clients} clients, {living() - tasks} tasks and "
                f"{open_sockets() - sockets} sockets"
            )

    async def follow(self, made: weakref.WeakSet[Any]) -> None:
        """Strike at a pipeline. ``made``: the transports of its connection that are still in memory."""
        judge = self.judge = Judge(self.truths)
        self.tables, self.books, self.orders = TableApplier(max_rows=1000), OrderBookMerger(), Orders()
        self.exchange.speed, self.known = 0, None
        sections = (
            self.connection, Decoder(), judge.before, self.tables, judge.tables, self.orders, Fills(), self.books,
            judge.end,
        )  # fmt: skip
        async with Pipeline.create(*sections) as pipeline:
            # The one holds up the pipeline as soon as it is not read, the other never.
            all_items, latest = pipeline.tap(max_buffer_size=1), pipeline.tap(overflow="latest")
            async with all_items, latest, trio.open_nursery() as nursery:
                nursery.start_soon(self.consume, all_items)
                nursery.start_soon(self.glance, latest)
                await self.heal()
                for _ in range(min(ROUND, self.faults - self.number)):
                    await self.strike()
                await self.heal()
                gc.collect()
                if len(made) > 1:
                    raise Wrong(f"of connections that are gone, {len(made) - 1} are still in memory")
                self.reconnects += self.connection.stats.reconnects
                self.resyncs += self.connection.stats.resyncs
                nursery.cancel_scope.cancel()

    async def consume(self, tap: Any) -> None:
        """Take all, and see that it is what the end has put out."""
        judge = self.judge
        async for item in tap:
            self.items += 1
            await self.awake.wait()
            if not judge.out or judge.out.pop(0) is not item:
                judge.say(f"the tap hands out another item than the next: {item}")
        judge.say("the stream has ended")

    async def glance(self, tap: Any) -> None:
        """Take the latest, now and then."""
        judge, rng = self.judge, random.Random(self.seed)
        async for item in tap:
            if type(item) is BookUpdate:
                before = judge.latest.get(item.symbol)
                judge.latest_marks += item.stale
                if before is not None and item.received < before.received:
                    judge.say(f"the `latest` tap goes back: {before}, {item}")
                judge.latest[item.symbol] = item
            if rng.random() < 0.1:
                await trio.sleep(rng.random() * 0.05)

    async def strike(self) -> None:
        """One fault; and unless it is to be followed by another at once, its end."""
        faulthandler.dump_traceback_later(HANGS, exit=True)
        self.number += 1
        rng = self.rng = random.Random(f"{self.seed}:{self.number}")  # the same fault, however those before went
        self.kind = rng.choice(list(self.kinds))
        await trio.sleep(rng.random() * (0.02 if self.sockets else 0.5))
        for _ in range(rng.randint(0, 3)):
            self.trade()
        self.struck[self.kind] += 1
        await self.kinds[self.kind]()
        self.look()
        if rng.random() < 0.7:
            await self.heal()
            if not self.sockets and rng.random() < 0.1:  # so that a new partial is asked for at once again
                self.exchange.speed = 0
                await trio.sleep(61)
                self.exchange.speed = 1
        faulthandler.cancel_dump_traceback_later()

    def look(self) -> None:
        """What has to hold at any moment."""
        if self.judge.wrong:
            raise Wrong("\n".join(self.judge.wrong))
        if not self.connection.connected:
            fresh = [topic for topic in TOPICS if topic not in self.tables.stale]
            fresh += [f"the book of {symbol}" for symbol, book in self.books.books.items() if not book.stale]
            fresh += [f"the order {id}" for id, order in self.orders.open.items() if not order.stale]
            if fresh and self.tables.storage.tables:
                raise Wrong(f"the connection is lost, and not stale: {fresh}")

    async def heal(self) -> None:
        """Wait until everything is as the exchange has it."""
        exchange, pause, patience = self.exchange, 0.001, 0.08
        began = trio.current_time()
        exchange.faults.clear()
        with trio.move_on_after(15 if self.sockets else 600):
            while True:
                await trio.sleep(pause)
                self.look()
                if not (differences := self.differences()):
                    break
                for topic, told in self.judge.told.items():
                    if told.blind is not None:
                        self.connection.resync(topic)
                if self.sockets and trio.current_time() > began + patience:
                    exchange.faults.drop()  # asking anew is rationed, and this time is real
                    began, patience = trio.current_time(), 2 * patience
                exchange.speed = 1  # what is delayed comes on the exchange's clock
                await trio.sleep(0.01 if self.sockets else 0.2)
                exchange.speed = 0
                pause = min(0.02 if self.sockets else 10, 2 * pause)
        if differences:
            raise Wrong("it does not heal:\n" + "\n".join(differences)[:4000])
        for truth in self.truths.values():
            truth.forget()
        for told in self.judge.told.values():
            told.at = {0}
        self.judge.fills.clear()
        self.known = set(self.executions())
        exchange.speed = 1

    def executions(self) -> list[str]:
        """The fills of the account, by execID; the last ones."""
        return [row["execID"] for row in self.account.executions[-2000:] if row["execType"] == "Trade"]

    def differences(self) -> list[str]:
        """What is not as the exchange has it, while that stands still."""
        exchange, judge, found = self.exchange, self.judge, []
        for topic, told in judge.told.items():
            if told.stale or told.blind is not None:
                found.append(f"{topic} is {'stale' if told.stale else 'blind'}")
            elif told.mirror.rows.keys() != told.truth.mirror.rows.keys() or told.truth.last not in told.at:
                found.append(f"{topic}: message {told.truth.last} is the last, and {sorted(told.at)[-3:]} was told")
        if stale := self.tables.stale:
            found.append(f"tables are stale: {stale}")
        for symbol in SYMBOLS:
            true, book = exchange.markets[symbol].book, self.books.books.get(symbol)
            if book is None or book.stale or book.bids[:] != true.bids or book.asks[:] != true.asks:
                found.append(f"the book of {symbol} is {'stale' if book is not None and book.stale else 'not right'}")
            elif top_of(judge.latest.get(symbol)) != top_of(judge.last[symbol]):
                found.append(f"the `latest` tap of {symbol} has not come to the end")
        if judge.latest_marks != judge.marks:
            found.append(f"of {judge.marks} marks of books, the `latest` tap has had {judge.latest_marks}")
        if judge.out:
            found.append(f"{len(judge.out)} items were not taken from the `block` tap")
        data = self.tables.storage.data
        theirs = {row["symbol"]: row for row in exchange.tables.rows("instrument", None)}
        if {key[0]: row for key, row in data["instrument"].items()} != theirs:
            found.append("the table instrument is not right")
        if {row["symbol"]: row for row in data["position"].values()} != self.account.positions:
            found.append("the table position is not right")
        orders = self.account.orders
        if {row["orderID"]: row for row in data["order"].values() if row["ordStatus"] not in CLOSED} != orders:
            found.append("the table order is not right")
        if {id: order.row for id, order in self.orders.open.items() if not order.stale} != orders:
            found.append("the open orders are not right")
        if self.connection.subscriptions != set(TOPICS) or any(exchange.topics.get(topic) != 2 for topic in TOPICS):
            found.append(f"subscribed are {sorted(self.connection.subscriptions)} here, {exchange.topics} there")
        found += self.fill_differences()
        return found

    def fill_differences(self) -> list[str]:
        if self.known is None:  # the pipeline has only just begun: what was before is history to it
            return []
        expected = [exec_id for exec_id in self.executions() if exec_id not in self.known]
        told = [fill.exec_id for fill in self.judge.fills]
        if self.judge.marks_of_fills:
            return [f"fills are said to be missing, {self.judge.marks_of_fills} times"]
        in_time = {fill.exec_id for fill in self.judge.fills if not fill.late}
        if sorted(told) != sorted(expected):
            return [f"of {len(expected)} fills, {len(told)} were told; {sorted(set(expected) ^ set(told))[:5]}"]
        if [one for one in told if one in in_time] != [one for one in expected if one in in_time]:
            return ["the fills are out of order"]
        return []


def top_of(update: BookUpdate | None) -> Any:
    return update and (update.stale, update.best_bid, update.best_ask)


def cause_of(error: BaseException) -> BaseException:
    """What is wrong, out of the groups that nurseries make of it."""
    while not isinstance(error, Wrong) and (inner := getattr(error, "exceptions", None)):
        error = next((one for one in inner if isinstance(cause_of(one), Wrong)), inner[0])
    return error


def living() -> int:
    """Tasks of this run."""
    return int(trio.lowlevel.current_statistics().tasks_living)


def open_sockets() -> int:
    """Sockets of this process (0 where that cannot be told)."""
    found = 0
    with suppress(FileNotFoundError):
        for file in Path("/proc/self/fd").iterdir():
            with suppress(OSError):
                found += str(file.readlink()).startswith("socket:")
    return found


def resident() -> int:
    """Bytes of memory that this process has now (at most had, where that cannot be told)."""
    with suppress(FileNotFoundError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def soak(seed: int, faults: int, *, sockets: bool = False, transports: Sequence[str] = (), say: Any = print) -> Soak:
    """Run it. Raises `Wrong` with the number and the kind of the fault, and what differed."""
    if not transports:
        transports = ["default"]
        with suppress(ImportError):
            import_module("bitmex_streams.fast")

            transports.append("fast")
    it = Soak(seed, faults, sockets, transports, say)
    clock = None if sockets else trio.testing.MockClock(autojump_threshold=0)
    try:
        trio.run(it.run, clock=clock)
    except BaseException as error:
        where = f"seed {seed}, fault {it.number} ({it.kind}){', over sockets' if sockets else ''}"
        cause = cause_of(error)
        if isinstance(cause, KeyboardInterrupt):
            raise
        raise Wrong(f"{where}: {cause if isinstance(cause, Wrong) else repr(cause)}") from error
    finally:
        faulthandler.cancel_dump_traceback_later()
    return it


def main() -> None:
    """Soak and report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--faults", type=int, default=10_000, help="how many")
    parser.add_argument("--seed", type=int, default=None, help="of the faults and the exchange (default: any)")
    parser.add_argument("--sockets", action="store_true", help="over real sockets, in real time")
    parser.add_argument("--transport", action="append", default=[], choices=sorted(TRANSPORTS), help="default: both")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    logging.getLogger("bitmex_streams").setLevel(logging.CRITICAL)
    print(f"seed {seed}; Python {sys.version.split()[0]}, trio {trio.__version__}", flush=True)
    began = time.monotonic()
    try:
        it = soak(
            seed, options.faults, sockets=options.sockets, transports=options.transport, say=partial(print, flush=True)
        )
    except Wrong as wrong:
        sys.exit(f"WRONG: {wrong}")
    for kind, times in sorted(it.struck.items()):
        print(f"{kind:<16}{times:>8,}")
    print(
        f"{it.number:,} faults; all was right after each; {it.reconnects:,} reconnects, {it.resyncs:,} topics asked "
        f"anew, {it.items:,} items; {time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
