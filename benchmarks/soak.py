"""Faults of every kind at random, one after the other, against live pipelines: `python -m benchmarks.soak`.

An embedded exchange trades, with an account on it; a pipeline follows all of it, while the exchange's ``faults`` strike
at its connection, and topics are subscribed and given up. Who is at the exchange itself knows the truth (`judge`): each
message that was published, and the state that it made; and who is at the socket (`witness`) knows what has arrived,
and when. So each item that the pipeline hands out is judged on the way:

* what arrived is handed out once, in the order of its arrival, over all topics, up to the loss of the connection; and
  so it comes out of the decoder and of the applier;
* each delta of each topic has to be the very message that follows the one before (nothing lost, doubled or out of
  order), and what it makes of the tables and books what the exchange had then; only where a delta was skipped or
  repeated, which nobody can see, not before the next partial;
* from a loss to the next partial nothing may come but marks, and live objects are stale as soon as the connection is
  lost;
* each fill comes once;
* a consumer that sleeps finds what the policy of its tap promises.

And so is what the client does, and when: it gives up a server that is silent after the heartbeat and as much again,
and none that answers; it tries again no sooner than its `Reconnect` and the server's ``Retry-After`` allow, and no
later; it asks anew for a partial that does not come.

After the faults, subscriptions have to be those that are wanted, and tables, books, orders and fills the exchange's own
again, in bounded time. At the end of each round (of `ROUND` faults; the two transports take turns, and every third is
over TLS) the pipeline is left, or a fault ends it that no trying again can mend; and no task, socket or object of it
may remain.

By default all goes over in-memory streams on a test clock, so that waits cost nothing; with ``--sockets`` over real
ones, in real time. The first thing that is wrong ends it with exit status 1, and what is needed to see it again.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import logging
import random
import resource
import ssl
import sys
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import trio
import trio.testing

from benchmarks.judge import CLOSED, Judge, Sleeper, Truth, Wrong
from benchmarks.strikes import BUFFER, CHANGING, COSTLY, ENDINGS, KEPT, KINDS, LARGE, SYMBOLS, TAKES_LONG, Ends, Strikes
from benchmarks.witness import Attempts, witnessed
from bitmex_streams import (
    BookUpdate,
    Connection,
    Decoder,
    Fills,
    OrderBookMerger,
    Orders,
    Pipeline,
    Reconnect,
    TableApplier,
)
from bitmex_streams.exchange import open_exchange
from bitmex_streams.transport import TRANSPORTS

PRIVATE = ("order", "execution", "position", "margin")
TOPICS = (*KEPT, *CHANGING)
ROUND = 50
HANGS = 120  # real seconds in which a fault must be over
LEAK = 64 * 2**20  # bytes by which the process may grow after its first quarter
DOZED = 50  # items that are kept for a consumer that sleeps


class Certificates:
    """Those of a server on loopback, and what its clients trust. ImportError without trustme."""

    def __init__(self) -> None:
        trustme = import_module("trustme")
        authority, stranger = trustme.CA(), trustme.CA()
        self.client = ssl.create_default_context()
        authority.configure_trust(self.client)
        self._right = authority.issue_cert("127.0.0.1")
        self._wrong = [authority.issue_cert("other.host"), stranger.issue_cert("127.0.0.1")]
        self.be_right()

    def be_right(self) -> None:
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._right.configure_cert(self.server)

    def be_wrong(self, rng: random.Random) -> None:
        """From here on new clients see a certificate for another host, or of an authority that they do not know."""
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        rng.choice(self._wrong).configure_cert(self.server)


class Soak(Strikes):
    """``faults`` faults, drawn from ``seed``. ``kinds``: only those; default: all."""

    def __init__(
        self,
        seed: int,
        faults: int,
        sockets: bool,
        transports: Sequence[str],
        say: Callable[..., None],
        kinds: Sequence[str] = (),
    ) -> None:
        self.seed, self.faults, self.sockets, self.transports, self.say = seed, faults, sockets, transports, say
        self.rng = random.Random(seed)
        self.kinds = [kind for kind in KINDS if kind in kinds or not kinds]
        self.kinds = [kind for kind in self.kinds if not (sockets and kind in TAKES_LONG)] or ["drop"]
        self.endings = [kind for kind in ENDINGS if kind in kinds or not kinds] or ["leave"]
        self.struck, self.asked = Counter(), Counter()
        self.reconnects = self.resyncs = self.items = 0
        self.number = 0
        self.kind = ""
        self.awake = trio.Event()
        self.rubbish = deque()
        self.known: set[str] | None = None  # the fills that are known to be told
        self.heartbeat, self.slack, self.max_lag = (0.1, 5.0, 0.3) if sockets else (5.0, 0.05, 10.0)
        self.certificates = None
        with suppress(ImportError):
            self.certificates = Certificates()

    # how it goes

    async def run(self) -> None:
        """All rounds. Raises `Wrong`, or whatever the pipeline raises."""
        first: int | None = None
        rate = 100 if self.sockets else 20
        async with (
            open_exchange(symbols=SYMBOLS, seed=self.seed, rate=rate, levels=20) as exchange,
            trio.open_nursery() as listening,
        ):
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
            self.address = "127.0.0.1:1"
            if self.sockets:
                listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
                self.address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
                listening.start_soon(partial(trio.serve_listeners, self.serve, listeners))
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
            listening.cancel_scope.cancel()

    async def serve(self, stream: trio.abc.Stream) -> None:
        """One client: the exchange, or what answers in its place."""
        rubbish, in_clear = self.rubbish.popleft() if self.rubbish else (None, False)
        if self.tls and not in_clear:
            stream = trio.SSLStream(stream, self.certificates.server, server_side=True, https_compatible=True)
        if rubbish is None:
            await self.exchange.serve_stream(stream)
            return
        try:
            await stream.receive_some()
            await stream.send_all(rubbish)
        except trio.BrokenResourceError:
            pass
        finally:
            await trio.aclose_forcefully(stream)

    def transport(self, made: weakref.WeakSet[Any], nursery: trio.Nursery, name: str, url: str, **options: Any) -> Any:
        """A transport, to the exchange by a socket or by a stream in memory, and watched."""
        transport: Any = TRANSPORTS[name](url, **options)

        async def open_in_memory(host: str, port: int) -> trio.abc.Stream:
            ours, theirs = trio.testing.memory_stream_pair()
            nursery.start_soon(self.serve, theirs)
            return ours

        if not self.sockets:
            transport._open_tcp = open_in_memory
        witnessed(transport, self.attempts, options["max_message_size"])
        made.add(transport)
        return transport

    async def round(self, index: int) -> None:
        """A pipeline from its beginning to its end, and what it leaves behind."""
        exchange, tasks, sockets = self.exchange, living(), open_sockets()
        made: weakref.WeakSet[Any] = weakref.WeakSet()
        key, secret = f"{index:024}", f"{index:048}"  # no signature is taken twice, and a secret makes 600 at a time
        exchange.accounts.keys.add(key, secret, self.account)
        self.tls = self.certificates is not None and (index % 3 == 2 or self.endings == ["wrong_certificate"])
        reconnect = Reconnect(
            initial=0.01 if self.sockets else 0.1, maximum=0.03 if self.sockets else 2.0, stable=0.6 * self.heartbeat
        )
        self.judge = judge = Judge(self.truths, TOPICS[:-2])
        self.attempts = judge.attempts = Attempts(reconnect, self.heartbeat, self.slack, judge.up, judge.say)
        self.held_up, self.woke, self.unread = trio.Event(), 0.0, False
        self.awake.set()
        async with trio.open_nursery() as servers:
            self.connection = Connection(
                f"{'wss' if self.tls else 'ws'}://{self.address}/realtime", subscribe=judge.wanted,
                api_key=key, api_secret=secret, reconnect=reconnect, heartbeat=self.heartbeat, max_lag=self.max_lag,
                connect_timeout=0.4 if self.sockets else 3.0, buffer_size=BUFFER,
                resync_every=None if index % 4 < 2 else 5.0 if self.sockets else 150.0,
                max_message_size=LARGE if index % 7 == 0 else 1_000_000,
                ssl_context=self.certificates.client if self.tls else None,
                transport=partial(self.transport, made, servers, self.transports[index % len(self.transports)]),
            )  # fmt: skip
            self.connection.watch(self.lost)
            await self.follow(made)
            servers.cancel_scope.deadline = trio.current_time() + 5
        self.rubbish.clear()
        if self.certificates is not None:
            self.certificates.be_right()
        remains = weakref.ref(self.connection), weakref.ref(self.tables), weakref.ref(self.books)
        del self.connection, self.tables, self.books, self.orders, self.judge, self.attempts, judge
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

    def lost(self, source: str, reason: str) -> None:
        """The connection says that state is lost, and why."""
        if self.connection.connected:
            self.held_up.set()
            self.held_up = trio.Event()
        else:
            self.attempts.lost(reason)

    async def follow(self, made: weakref.WeakSet[Any]) -> None:
        """Strike at a pipeline, and at last end it. ``made``: the transports of its connection that are in memory."""
        judge = self.judge
        self.tables, self.books, self.orders = TableApplier(max_rows=1000), OrderBookMerger(), Orders()
        self.exchange.speed, self.known = 0, None
        ends: Ends | None = None
        sections = (
            self.connection, judge.raw, Decoder(), judge.before, self.tables, judge.tables, self.orders, Fills(),
            self.books, judge.end,
        )  # fmt: skip
        try:
            async with Pipeline.create(*sections) as pipeline:
                # The one holds up the pipeline as soon as it is not read, the others never.
                all_items, latest = pipeline.tap(max_buffer_size=1), pipeline.tap(overflow="latest")
                judge.sleepers = [
                    Sleeper("latest", pipeline.tap(overflow="latest"), BUFFER),
                    *(
                        Sleeper(policy, pipeline.tap(overflow=policy, max_buffer_size=DOZED), DOZED)
                        for policy in ("drop_oldest", "drop_newest")
                    ),
                ]
                async with all_items, latest, trio.open_nursery() as nursery:
                    self.chores = nursery
                    nursery.start_soon(self.consume, all_items)
                    nursery.start_soon(self.glance, latest)
                    await self.heal()
                    for _ in range(min(ROUND - 1, self.faults - self.number - 1)):
                        await self.strike()
                    await self.heal()
                    self.rouse()
                    gc.collect()
                    if len(made) > 1:
                        raise Wrong(f"of connections that are gone, {len(made) - 1} are still in memory")
                    self.reconnects += self.connection.stats.reconnects
                    self.resyncs += self.connection.stats.resyncs
                    self.choose_ending()
                    # Where time is real, a line may be lost at any moment, and takes along what was just sent.
                    for _ in range(3 if self.sockets and self.kind == "too_large" else 1):
                        ends = getattr(self, self.kind)()
                        if ends is not None:
                            await trio.sleep(5 + self.slack)
                    if ends is not None:
                        raise Wrong("the pipeline goes on")
                    nursery.cancel_scope.cancel()
        except Exception as error:
            if ends is None or isinstance(cause_of(error), Wrong):
                raise
            if not ends(cause_of(error)):
                raise Wrong(f"the pipeline ends by {error!r}") from error
        self.look()
        if ends is not None and (judge.out or judge.stands or self.attempts.ups):
            loss = " the loss of the connection was not told, and" if judge.stands or self.attempts.ups else ""
            raise Wrong(f"before the end,{loss} {len(judge.out)} items were not taken from the `block` tap")

    def choose_ending(self) -> None:
        """The last fault: one that no trying again can mend; or none, and the pipeline is left."""
        self.number += 1
        rng = self.rng = random.Random(f"{self.seed}:{self.number}")
        self.kind = rng.choice([one for one in self.endings if one != "wrong_certificate" or self.tls])
        self.struck[self.kind] += 1

    async def consume(self, tap: Any) -> None:
        """Take all, and see that it is what the end has put out."""
        judge = self.judge
        with suppress(trio.BrokenResourceError):  # the end, which is judged elsewhere
            async for item in tap:
                self.items += 1
                await self.awake.wait()
                if not judge.out or judge.out.pop(0) is not item:
                    judge.say(f"the tap hands out another item than the next: {item}")
            judge.say("the stream has ended")

    async def glance(self, tap: Any) -> None:
        """Take the latest, now and then."""
        judge, rng = self.judge, random.Random(self.seed)
        with suppress(trio.BrokenResourceError):
            async for item in tap:
                if type(item) is BookUpdate:
                    before = judge.latest.get(item.symbol)
                    judge.latest_marks += item.stale
                    if before is not None and item.received < before.received:
                        judge.say(f"the `latest` tap goes back: {before}, {item}")
                    judge.latest[item.symbol] = item
                if rng.random() < 0.1:
                    await trio.sleep(rng.random() * 0.05)

    def rouse(self) -> None:
        """Those who sleep look at what they have got."""
        for sleeper in self.judge.sleepers:
            if wrong := sleeper.wake():
                raise Wrong(wrong)

    async def strike(self) -> None:
        """One fault; and unless it is to be followed by another at once, its end."""
        faulthandler.dump_traceback_later(HANGS, exit=True)
        self.number += 1
        rng = self.rng = random.Random(f"{self.seed}:{self.number}")  # the same fault, however those before went
        self.kind = rng.choices(self.kinds, [1 if kind in COSTLY else 3 for kind in self.kinds])[0]
        await trio.sleep(rng.random() * (0.02 if self.sockets else 0.5))
        for _ in range(rng.randint(0, 3)):
            self.trade()
        if rng.random() < 0.15:
            self.change()
        self.struck[self.kind] += 1
        await getattr(self, self.kind)()
        self.look()
        if rng.random() < 0.3:
            self.rouse()
        if rng.random() < 0.7:
            await self.heal()
            if not self.sockets and rng.random() < 0.1:
                await self.rest(61)
        faulthandler.cancel_dump_traceback_later()

    async def rest(self, seconds: float) -> None:
        """Nothing happens; for so long that a new partial is asked for at once again."""
        self.exchange.speed = 0
        await trio.sleep(seconds)
        self.exchange.speed = 1

    def look(self) -> None:
        """What has to hold at any moment."""
        if self.awake.is_set():
            self.attempts.look(self.woke)
        if self.judge.wrong:
            raise Wrong("\n".join(self.judge.wrong))
        if not self.connection.connected and self.tables.storage.tables and (fresh := self.fresh()):
            raise Wrong(f"the connection is lost, and not stale: {fresh}")

    def fresh(self) -> list[str]:
        """What is said to be as the exchange has it."""
        fresh = [topic for topic, told in self.judge.told.items() if told.known and topic not in self.tables.stale]
        fresh += [f"the book of {symbol}" for symbol, book in self.books.books.items() if not book.stale]
        fresh += [f"the order {id}" for id, order in self.orders.open.items() if not order.stale]
        return fresh

    async def heal(self) -> None:
        """Wait until everything is as the exchange has it."""
        exchange, pause, patience = self.exchange, 0.001, 0.08
        began = trio.current_time()
        exchange.faults.clear()
        with trio.move_on_after(15 if self.sockets else 600):
            while True:
                await trio.sleep(pause)
                self.look()
                if (difference := next(self.differences(), None)) is None:
                    break
                for topic in self.judge.wanted:
                    if self.judge.told[topic].blind is not None:
                        self.connection.resync(topic)
                if self.sockets and trio.current_time() > began + patience:
                    exchange.faults.drop()  # asking anew is rationed, and this time is real
                    began, patience = trio.current_time(), 2 * patience
                exchange.speed = 1  # what is delayed comes on the exchange's clock
                await trio.sleep(0.01 if self.sockets else 0.2)
                exchange.speed = 0
                pause = min(0.02 if self.sockets else 10, 2 * pause)
        if difference is not None:
            raise Wrong("it does not heal:\n" + "\n".join([difference, *self.differences()])[:4000])
        for truth in self.truths.values():
            truth.forget()
        for told in self.judge.told.values():
            told.at = {0}
            if told.blind is not None:  # as what is not wanted may be: until the next partial, whichever
                told.blind = 0
        self.judge.fills.clear()
        self.known = set(self.executions())
        exchange.speed = 1

    def executions(self) -> list[str]:
        """The fills of the account, by execID; the last ones."""
        return [row["execID"] for row in self.account.executions[-2000:] if row["execType"] == "Trade"]

    def differences(self) -> Iterator[str]:
        """What is not as the exchange has it, while that stands still."""
        exchange, judge = self.exchange, self.judge
        wanted = judge.wanted
        for topic, told in judge.told.items():
            if not told.wanted:
                if not told.stale or (topic not in self.tables.stale and told.known):
                    yield f"{topic} is not wanted, and not stale"
            elif told.stale or told.blind is not None:
                yield f"{topic} is {'stale' if told.stale else 'blind'}"
            elif told.mirror.rows.keys() != told.truth.mirror.rows.keys() or told.truth.last not in told.at:
                yield f"{topic}: message {told.truth.last} is the last, and {sorted(told.at)[-3:]} was told"
        if stale := [topic for topic in self.tables.stale if topic in wanted]:
            yield f"tables are stale: {stale}"
        for symbol in SYMBOLS:
            true, book = exchange.markets[symbol].book, self.books.books.get(symbol)
            if f"orderBookL2:{symbol}" not in wanted:
                if book is not None and not book.stale:
                    yield f"the book of {symbol} is not wanted, and not stale"
            elif book is None or book.stale or book.bids[:] != true.bids or book.asks[:] != true.asks:
                yield f"the book of {symbol} is {'stale' if book is not None and book.stale else 'not right'}"
            elif top_of(judge.latest.get(symbol)) != top_of(judge.last[symbol]):
                yield f"the `latest` tap of {symbol} has not come to the end"
        if judge.latest_marks != judge.marks:
            yield f"of {judge.marks} marks of books, the `latest` tap has had {judge.latest_marks}"
        if judge.out:
            yield f"{len(judge.out)} items were not taken from the `block` tap"
        data = self.tables.storage.data
        theirs = {row["symbol"]: row for row in exchange.tables.rows("instrument", None)}
        if "instrument" in wanted and {key[0]: row for key, row in data["instrument"].items()} != theirs:
            yield "the table instrument is not right"
        if {row["symbol"]: row for row in data["position"].values()} != self.account.positions:
            yield "the table position is not right"
        orders = self.account.orders
        if {row["orderID"]: row for row in data["order"].values() if row["ordStatus"] not in CLOSED} != orders:
            yield "the table order is not right"
        if {id: order.row for id, order in self.orders.open.items() if not order.stale} != orders:
            yield "the open orders are not right"
        there = {topic for topic in TOPICS if exchange.topics.get(topic) != 1}  # by whoever knows the truth, at least
        if not self.connection.subscriptions == set(wanted) == there:
            here = sorted(self.connection.subscriptions)
            yield f"subscribed are {here} here, {exchange.topics} there, and wanted {wanted}"
        stats = self.connection.stats
        said, came = (stats.connections, stats.messages), (judge.connections, judge.messages)
        if said != came and not self.unread:
            yield f"the connection says that it had {said} connections and messages, and there came {came}"
        yield from self.fill_differences()

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
    """Bytes of memory that this process has now (at most had, where that cannot be told). What was freed does not
    count, where it can be given back: the largest messages leave much of it.
    """
    with suppress(OSError, TypeError, AttributeError):  # glibc alone has that
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(FileNotFoundError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def soak(
    seed: int,
    faults: int,
    *,
    sockets: bool = False,
    transports: Sequence[str] = (),
    kinds: Sequence[str] = (),
    say: Any = print,
) -> Soak:
    """Run it. Raises `Wrong` with the number and the kind of the fault, and what differed."""
    if not transports:
        transports = ["default"]
        with suppress(ImportError):
            import_module("bitmex_streams.fast")

            transports.append("fast")
    it = Soak(seed, faults, sockets, transports, say, kinds)
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
    parser.add_argument("--kind", action="append", default=[], choices=(*KINDS, *ENDINGS), help="default: all")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    logging.getLogger("bitmex_streams").setLevel(logging.CRITICAL)
    print(f"seed {seed}; Python {sys.version.split()[0]}, trio {trio.__version__}", flush=True)
    began = time.monotonic()
    try:
        it = soak(
            seed, options.faults, sockets=options.sockets, transports=options.transport, kinds=options.kind,
            say=partial(print, flush=True),
        )  # fmt: skip
    except Wrong as wrong:
        sys.exit(f"WRONG: {wrong}")
    for kind, times in sorted(it.struck.items()):
        print(f"{kind:<16}{times:>8,}")
    print("meanwhile:", ", ".join(f"{times:,} times {name}" for name, times in sorted(it.asked.items())))
    print(
        f"{it.number:,} faults; all was right after each; {it.reconnects:,} reconnects, {it.resyncs:,} topics asked "
        f"anew, {it.items:,} items; {time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
