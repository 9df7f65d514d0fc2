"""The faults of the soak, and what each has to show by itself: one method a kind.

After each `benchmarks.soak.Soak` waits until all is as the exchange has it. `ENDINGS` are those that no trying again
can mend.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import inf
from typing import Any

import trio

from benchmarks.judge import Judge, Wrong
from benchmarks.witness import Attempts
from bitmex_streams import (
    AuthenticationError,
    Connection,
    ConnectionClosed,
    ConnectionFailed,
    SubscriptionError,
)
from bitmex_streams.exchange import OrderRefused

SYMBOLS = ("XBTUSD", "ETHUSD")
KEPT = ("orderBookL2:XBTUSD", "trade", "order", "execution", "position")  # subscribed from the first to the last
CHANGING = ("orderBookL2:ETHUSD", "quote:XBTUSD", "quote:ETHUSD", "instrument", "margin")
LARGE = 20_000_000  # bytes of the largest messages
BUFFER = 100  # messages that are read ahead
PATIENCE = 30.0  # s after which a partial that has not come is to be asked for anew

DEEP = '{"table":"trade","action":"insert","data":[{"symbol":"XBTUSD","deep":%s}]}'
GARBAGE: tuple[str | bytes, ...] = (
    "{garbage", "", "null", "[]", "42", "NaN", b"\xff\xfe", b"{", '{"table":7,"action":"insert","data":[]}',
    '{"table":"trade","action":"insert","data":{}}', '{"table":"orderBookL2","action":"insert","data":[1]}',
    '{"table":"orderBookL2","action":"partial","data":[{}]}', '{"table":"trade","action":"partial","data":null}',
    "[" * 5000, "[" * 100_000, '{"a":' * 3000 + "1" + "}" * 3000, DEEP % ("[" * 300 + "]" * 300),
    DEEP % ('{"a":' * 5000 + "1" + "}" * 5000), DEEP % "1e999", DEEP % '"\\ud800"', DEEP % ("9" * 5000),
    '{"table":"nobodyKnows","table":"instrument","action":"upsert","data":[]}',
    '\ufeff{"info":"with a mark before it"}',
)  # fmt: skip
UNKNOWN = (
    '{"table":"nobodyKnows","action":"insert","data":[{"symbol":"XBTUSD"}]}',
    '{"table":"nobodyKnows","action":"update","data":[{"id":1}]}',
    '{"table":"orderBookL2","action":"upsert","data":[]}', '{"table":"trade","action":"","data":[]}',
    '{"what":"is this"}', '{"error":"Something is wrong with us","status":500}', '{"error":"Slow down","status":429}',
)  # fmt: skip
CLOSE_CODES = (0, 999, *range(1000, 1016), 2999, 3000, 4000, 4999, 5000, 65535, None)
CONTRADICTIONS = (
    '{"table":"orderBookL2","action":"update","data":[{"symbol":"XBTUSD","id":7,"side":"Buy","size":1,"price":1}]}',
    '{"table":"orderBookL2","action":"delete","data":[{"symbol":"ETHUSD","id":7,"side":"Sell"}]}',
    '{"table":"instrument","action":"update","data":[{"symbol":"NOSUCH","lastPrice":1}]}',
    '{"table":"order","action":"update","data":[{"orderID":"none","clOrdID":"","account":1,"symbol":"XBTUSD"}]}',
)
MAY_PASS = (200, 302, 400, 404, 408, 425, 429, 429, 500, 502, 503, 503, 504, 520)  # HTTP statuses, on a reconnect
BODIES = (None, b"", b"<html>no</html>", b'{"error":{"message":"busy","name":"HTTPError"}}')
NO_WEBSOCKET = (
    b"", b"\0\xff\xfe\x01", b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 101 Sw", b"HTTP/1.1 503 Serv", b"HTTP/1.1 ",
    b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: d3Jvbmc=\r\n\r\n",
)  # fmt: skip

Ends = Callable[[BaseException], bool]
"""Whether a pipeline has ended by the very error that it should end by."""


class Strikes:
    """What is done. What it is done to, a `benchmarks.soak.Soak` has."""

    rng: random.Random
    sockets: bool
    exchange: Any
    account: Any
    certificates: Any
    judge: Judge
    attempts: Attempts
    connection: Connection
    chores: trio.Nursery
    heartbeat: float
    slack: float
    max_lag: float
    rubbish: deque[tuple[bytes, bool]]
    awake: trio.Event
    """Whether the consumer is."""
    woke: float
    held_up: trio.Event
    """Set when the connection says that reading is held up for too long."""
    unread: bool
    struck: Counter[str]
    asked: Counter[str]
    heal: Callable[[], Awaitable[None]]
    look: Callable[[], None]
    fresh: Callable[[], list[str]]
    rest: Callable[[float], Awaitable[None]]

    def pick(self) -> str:
        """A topic that is subscribed."""
        return self.rng.choice(self.judge.wanted)

    # --- the connection breaks ---

    async def drop(self) -> None:
        self.exchange.faults.drop(reset=self.rng.random() < 0.5)

    async def cut_frame(self) -> None:
        self.exchange.faults.cut_frame()

    async def close(self) -> None:
        code = self.rng.choice(CLOSE_CODES)
        self.exchange.faults.close(code, "" if code is None else self.rng.choice(["", "so it is", "ü" * 61]))

    async def bad_frame(self) -> None:
        if self.rng.random() < 0.3:
            if self.attempts.last is not None:
                self.attempts.last.spoiled = True
            self.exchange.faults.send_raw(self.rng.randbytes(self.rng.randint(1, 20)))
        else:  # no UTF-8; a control frame that is none; opcodes that there are not
            self.exchange.faults.send_frame(b"\xff\xfe", opcode=self.rng.choice([0, 1, 1, 1, 3, 7, 8, 9, 10, 11, 15]))

    # --- silence ---

    async def stall(self) -> None:
        """The line is dead for a while, for that and for new connections."""
        self.exchange.faults.stall()
        await self.idle(self.rng.uniform(0.1, 2.5) * self.heartbeat)
        self.look()
        self.exchange.faults.resume()

    async def silence(self) -> None:
        """The line is dead for good: the client has to find out by itself."""
        await self.heal()
        attempt = self.attempts.last
        assert attempt is not None
        self.exchange.faults.stall(topic=KEPT[0])
        with trio.move_on_after(2 * self.heartbeat + 2 * self.slack):
            await self.idle(0.2 * self.heartbeat)
            self.exchange.speed = 0
            await attempt.given_up.wait()
        self.exchange.speed = 1
        if not attempt.given_up.is_set():
            raise Wrong(f"the line is dead for {trio.current_time() - attempt.heard:.3f} s, and is not given up")

    async def quiet(self) -> None:
        """Nothing happens at the exchange, for long: but it answers, so it is not to be taken for dead."""
        await self.heal()
        attempt = self.attempts.last
        assert attempt is not None
        self.exchange.speed = 0
        await trio.sleep(self.rng.uniform(1, 5) * self.heartbeat)
        if attempt.given_up.is_set():
            raise Wrong("an exchange that is quiet, and answers, is taken for dead")
        self.exchange.speed = 1

    async def idle(self, seconds: float) -> None:
        """Let time pass, most of it while little happens at the exchange."""
        await trio.sleep(min(1.0, seconds))
        if seconds > 1:
            speed, self.exchange.speed = self.exchange.speed, 0.1
            await trio.sleep(seconds - 1)
            self.exchange.speed = speed

    # --- the handshake ---

    async def refuse(self) -> None:
        self._refuse(self.rng.randint(1, 3))
        self.exchange.faults.drop()

    async def refused_again(self) -> None:
        """So often that the waits grow."""
        faults, times = self.exchange.faults, self.rng.randint(2, 6)
        before = faults.counts["refuse"]
        self._refuse(times)
        faults.drop()
        self.exchange.speed = 0.1
        for _ in range(500):
            if faults.counts["refuse"] >= before + times:
                break
            await trio.sleep(0.01 if self.sockets else 0.2)
            self.look()
        self.exchange.speed = 1

    def _refuse(self, times: int) -> None:
        rng, past = self.rng, "Wed, 21 Oct 2015 07:28:00 GMT"
        self.exchange.faults.refuse(
            rng.choice(MAY_PASS),
            times=times,
            retry_after=rng.choice([None, 0, 0.1, past, "soon", *(() if self.sockets else (3, 7.5))]),
            body=rng.choice(BODIES),
            keep_open=rng.random() < 0.3,
        )

    async def no_websocket(self) -> None:
        """What answers is none, or goes away in the middle."""
        for _ in range(self.rng.randint(1, 3)):
            self.rubbish.append((self.rng.choice(NO_WEBSOCKET), self.rng.random() < 0.5))
        self.exchange.faults.drop()

    async def slow_handshake(self) -> None:
        self.exchange.faults.slow_handshake(self.rng.uniform(0, 1.5) * self.connection.connect_timeout)
        self.exchange.faults.drop()

    # --- messages that nobody expects ---

    async def garbage(self) -> None:
        self.exchange.faults.send(self.rng.choice(GARBAGE))

    async def unknown(self) -> None:
        self.exchange.faults.send(self.rng.choice(UNKNOWN))

    async def contradiction(self) -> None:
        self.exchange.faults.send(self.rng.choice(CONTRADICTIONS))

    async def big_message(self) -> None:
        """Now and then as big as may be."""
        most = self.connection.max_message_size
        self.exchange.faults.big_message(most if self.rng.random() < 0.3 else self.rng.randint(100, min(most, 500_000)))

    # --- topics ---

    async def skip(self) -> None:
        await self._miscount("skip")

    async def duplicate(self) -> None:
        await self._miscount("duplicate")

    async def _miscount(self, name: str) -> None:
        """Nobody can see it, so it is known to be blind from before it strikes to a partial of after that."""
        faults, topic = self.exchange.faults, self.pick()
        told, before = self.judge.told[topic], faults.counts[name]
        was, told.blind = told.blind, inf
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
        faults, topic = self.exchange.faults, self.pick()
        faults.delay_partial(
            self.rng.uniform(0, 1), topic=self.rng.choice([None, topic]), times=self.rng.randint(1, 4),
            deltas_first=self.rng.random() < 0.5,
        )  # fmt: skip
        if self.rng.random() < 0.5:
            faults.drop()
        else:
            self.connection.resync(topic)

    async def lost_partial(self) -> None:
        """A partial never comes: it has to be asked for anew, when its time is over."""
        await self.heal()
        await self.rest(125)  # what is asked for again and again may have to wait twice a minute
        faults, topic = self.exchange.faults, self.pick()
        told, before = self.judge.told[topic], faults.counts["delay_partial"]
        faults.delay_partial(10**7, topic=topic, deltas_first=self.rng.random() < 0.5)
        if self.rng.random() < 0.5:
            faults.drop()
        else:
            self.connection.resync(topic)
        for _ in range(200):
            await trio.sleep(0.5)
            if faults.counts["delay_partial"] > before:
                break
        else:
            raise Wrong(f"{topic} was not asked for anew, within 100 s after it should have been")
        fresh, began = told.fresh, trio.current_time()
        with trio.move_on_after(PATIENCE + 0.5 + self.slack):
            await self.idle(PATIENCE - 1)
            if fresh.is_set() and self.connection.resync_every is None:
                raise Wrong(f"the partial of {topic} was asked for anew after {trio.current_time() - began:.1f} s")
            await fresh.wait()
        if not fresh.is_set():
            raise Wrong(f"the partial of {topic} has not come, and was not asked for anew in {PATIENCE:g} s")

    async def changes(self) -> None:
        """Topics are subscribed and given up, half of the time while there is no connection."""
        if self.rng.random() < 0.6:
            self.exchange.faults.refuse(503, times=self.rng.randint(1, 3), body=self.rng.choice(BODIES))
            self.exchange.faults.drop()
            while self.connection.connected:  # noqa: ASYNC110
                await trio.sleep(0.001)
        for _ in range(self.rng.randint(1, 6)):
            self.change()
            if self.rng.random() < 0.5:
                await trio.sleep(self.rng.choice([0, 0.001, 0.05]))

    def change(self) -> None:
        """The user changes his mind, and may lose patience."""
        rng = self.rng
        topics = rng.sample(CHANGING, rng.randint(1, 3))
        name = rng.choice(["subscribe", "subscribe", "unsubscribe", "unsubscribe_soon", "resync"])
        self.asked[name] += 1
        if name == "resync":
            for topic in (*topics, self.pick()):
                self.connection.resync(topic)
            return
        if name == "unsubscribe_soon":
            self.judge.want(topics, False)
            self.connection.unsubscribe_soon(*topics)
            return
        self.chores.start_soon(self._change, name, topics, rng.choice([0, 0, 0.001, 0.05, inf]))

    async def _change(self, name: str, topics: list[str], patience: float) -> None:
        self.judge.want(topics, name == "subscribe")
        with trio.move_on_after(patience):
            try:
                await getattr(self.connection, name)(*topics)
            except SubscriptionError as error:
                if not str(error).startswith("no answer about"):  # that may be, where a fault is in its way
                    self.judge.say(f"to {name} {topics}: {error}")

    # --- consumers ---

    async def sleepy_consumer(self) -> None:
        """The connection is lost while nobody takes the marks of it: live objects have to know."""
        self.awake = trio.Event()
        await trio.sleep(self.rng.uniform(0.5, 1) * (0.2 if self.sockets else 2))
        self.trade()
        self.exchange.faults.drop()
        for _ in range(5):
            await trio.sleep(0.001)
            self.look()
        self.wake()

    async def blocked(self) -> None:
        """A `block` tap is not read, until what waits in the socket is too old."""
        await self.heal()
        self.awake = trio.Event()
        self.exchange.speed, free, held_up = 10, trio.current_time(), self.held_up
        for _ in range(1000):
            await trio.sleep(0.02)
            if self.connection.stats.waiting >= BUFFER:
                break
            free = trio.current_time()
        self.exchange.speed = 1
        if self.attempts.last is not None:
            self.attempts.last.unread = self.unread = True
        with trio.move_on_after(self.max_lag + self.slack + 1):
            await held_up.wait()
        waited = trio.current_time() - free
        if not held_up.is_set() or self.fresh():
            fresh = self.fresh() or "what comes then"
            raise Wrong(f"reading is held up for {waited:.3f} s, and still fresh is {fresh}")
        if waited < self.max_lag - 1e-6:
            raise Wrong(f"reading is held up for {waited:.3f} s, and that is too long")
        if self.rng.random() < 0.5:
            await self.drop()
        if self.rng.random() < 0.5:
            await self.idle(self.rng.uniform(0.5, 5) * self.heartbeat)
        self.look()
        self.wake()

    def wake(self) -> None:
        """The consumer takes items again."""
        self.woke = trio.current_time()
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

    # --- the end ---

    def leave(self) -> None:
        """The pipeline is left, and nothing ends it."""

    def refused_key(self) -> Ends:
        """The key is taken away while the connection is lost."""
        body = self.rng.choice([None, b"", b'{"error":{"message":"Invalid API Key.","name":"HTTPError"}}'])
        self.exchange.faults.refuse(401, body=body, keep_open=self.rng.random() < 0.3)
        self.exchange.faults.drop()
        return lambda error: type(error) is AuthenticationError and error.status == 401

    def forbidden(self) -> Ends:
        status = self.rng.choice([403, 407])
        self.exchange.faults.refuse(status, body=self.rng.choice(BODIES))
        self.exchange.faults.drop()
        return lambda error: (
            error.final if type(error) is ConnectionFailed else type(error) is AuthenticationError
        ) and error.status == status

    def too_large(self) -> Ends:
        self.exchange.faults.big_message(self.connection.max_message_size + self.rng.choice([1, 1, 1000]))
        return lambda error: type(error) is ConnectionClosed and error.code == 1009 and error.final

    def wrong_certificate(self) -> Ends:
        self.certificates.be_wrong(self.rng)
        self.exchange.faults.drop()
        return lambda error: (
            type(error) is ConnectionFailed and error.final and "certificate does not verify" in str(error)
        )


KINDS = (
    "drop", "cut_frame", "close", "bad_frame", "stall", "silence", "quiet", "refuse", "refused_again", "no_websocket",
    "slow_handshake", "garbage", "unknown", "contradiction", "big_message", "skip", "duplicate", "delay_partial",
    "lost_partial", "changes", "sleepy_consumer", "blocked",
)  # fmt: skip
COSTLY = frozenset({"blocked", "lost_partial"})  # much passes meanwhile, so they are a third as frequent as others
TAKES_LONG = frozenset({"lost_partial"})  # half a minute, which is too long where time is real
ENDINGS = ("leave", "refused_key", "forbidden", "too_large", "wrong_certificate")
