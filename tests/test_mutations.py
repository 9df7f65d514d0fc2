"""Messages that are wrong in every way: each is applied, dropped or marked, and harms nothing of another connection.

A client of the embedded exchange records what it is sent. One connection gets that as it is, another gets it mutated.
Whatever that does, the first has the state that it would have alone; and the second has the right one again with the
next sound partials.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from random import Random
from typing import Any

import msgspec
import pytest

from bitmex_streams import messages
from bitmex_streams.errors import DecodeError
from bitmex_streams.exchange import OrderRefused, Session, Simulation
from bitmex_streams.messages import (
    BookUpdate,
    Connected,
    Disconnected,
    RawMessage,
    StateLost,
    TableMessage,
    TableUpdate,
)
from bitmex_streams.operator import Operator
from bitmex_streams.pipeline import Pipeline
from bitmex_streams.sections.bars import Bars
from bitmex_streams.sections.decoder import Decoder
from bitmex_streams.sections.fills import Fills
from bitmex_streams.sections.grouping import BookGrouping
from bitmex_streams.sections.margin import Margin
from bitmex_streams.sections.orderbook import OrderBookMerger
from bitmex_streams.sections.orders import Orders
from bitmex_streams.sections.positions import Positions
from bitmex_streams.sections.tables import TableApplier
from bitmex_streams.sections.tickers import Tickers
from tests.support import Messages, Pass, collect

START = 1_767_225_590_000_000_000
GOOD, BAD = "ws://good", "ws://bad"
PUBLIC = ("orderBookL2", "orderBook10", "trade", "quote", "instrument", "funding")
PRIVATE = ("order", "execution", "position", "margin")
CONTROL = {
    "Authenticated", "CancelAllAfter", "ErrorMessage", "Help", "Pong", "StateLost", "Subscribed", "TableMessage",
    "Unsubscribed", "Welcome",
}  # fmt: skip
SEED = 4


# --- what one client is sent ---


class Recording:
    """What a client of an exchange of its own is sent, in parts that begin with a new partial of each topic."""

    def __init__(self, symbol: str, seed: int, parts: int = 30, length: int = 70) -> None:
        random = Random(seed)
        exchange = Simulation([symbol], seed=seed, start_time=START, rate=40, levels=6)
        account = exchange.open_account()
        self.symbol, self.account = symbol, account.id
        self.texts: list[str] = []
        session = Session(exchange.feed, exchange.tables, self.texts.append, exchange.accounts, account)
        session.welcome(START, 39)
        topics = [f"{table}:{symbol}" for table in PUBLIC] + list(PRIVATE)
        self.parts: list[tuple[list[str], list[str]]] = []
        for _ in range(parts):
            begin = len(self.texts)
            session.unsubscribe(list(session.topics and topics), {"op": "unsubscribe", "args": topics})
            del self.texts[begin:]  # who has two sources is told by `Run`
            session.subscribe(topics, {"op": "subscribe", "args": topics})
            partials = self.texts[begin:]
            del self.texts[begin:]
            session.receive(random.choice(('{"op": "subscribe", "args": ["no:such"]}', "help", "ping", "{", "[]")))
            while len(self.texts) < length:
                exchange.advance(random.choice((0.01, 0.1, 1.0)))
                try:
                    if random.random() < 0.3:
                        account.submit(symbol, random.choice(("Buy", "Sell")), 100)
                    elif (bid := exchange.markets[symbol].engine.best_bid) and random.random() < 0.5:
                        price = exchange.markets[symbol].instrument.price(bid - random.randint(1, 9))
                        account.submit(symbol, "Buy", 100, price)
                    elif account.orders:
                        account.cancel(random.choice(list(account.orders)))
                except OrderRefused:
                    pass
            self.parts.append((partials, self.texts[:]))
            self.texts.clear()


# --- what goes wrong with messages ---

VALUES = (
    None, True, False, 0, 1, -1, 0.5, -1e308, 1e308, 2**63, 2**64, -(2**63) - 1, 10**300, "", "x", "XBTUSD", "Buy",
    "2999-01-01T00:00:00.000Z", "9999-12-31T23:59:59.999Z", "0001-01-01T00:00:00+23:59", "²026-01-01T00:00:00.000Z",
    [], [1], {}, {"symbol": "XBTUSD"}, [[]], [None], {"": None},
)  # fmt: skip
NUMBERS = (
    "1e999", "-1e999", "1E+9999999", "1e-9999999", "-0", "0.0", "1.5", "9" * 25, "9" * 400, "9" * 4300, "9" * 5000,
)  # fmt: skip
ACTIONS = ("partial", "insert", "update", "delete", "upsert", "", "stale", None, 5, ["insert"], {"insert": 1})
NUMBER = re.compile(r"(?<=:)-?\d[\d.eE+-]*")
FIELD = re.compile(r'"\w+":(?:"[^"]*"|-?[\d.]+|null|true|false)')


def places(content: Any) -> list[tuple[Any, Any]]:
    """Everything that can be replaced: (where it is, by which key or index)."""
    found = []
    left = [content]
    while left:
        outer = left.pop()
        inner = outer.items() if isinstance(outer, dict) else enumerate(outer)
        for key, value in inner:
            found.append((outer, key))
            if isinstance(value, dict | list):
                left.append(value)
    return found


def flip_bits(text: str, random: Random) -> bytes:
    data = bytearray(text.encode())
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(data)


def truncate(text: str, random: Random) -> str:
    begin = random.randrange(len(text))
    return random.choice((text[:begin], text[begin:], text[:begin] + text[random.randint(begin, len(text)) :]))


def change(text: str, random: Random, new: Callable[[Any, Any], None]) -> bytes | str:
    """Something done to a place in the message that was drawn."""
    try:
        content = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text + text
    found = places(content) if isinstance(content, dict | list) else []
    if not found:
        return text + text
    # the shape of the message half of the time, else what is in it
    new(*random.choice(found[:10] if random.random() < 0.5 else found))
    return msgspec.json.encode(content)


def swap_type(text: str, random: Random) -> bytes | str:
    return change(text, random, lambda outer, key: outer.__setitem__(key, random.choice(VALUES)))


def drop(text: str, random: Random) -> bytes | str:
    return change(text, random, lambda outer, key: outer.__delitem__(key))


def rename(text: str, random: Random) -> bytes | str:
    def new(outer: Any, key: Any) -> None:
        value = outer.pop(key)
        if isinstance(outer, dict):
            outer[random.choice((key.upper(), "symbol", "table", "data", "id", "side", "account", "x"))] = value

    return change(text, random, new)


def nest(text: str, random: Random) -> bytes | str:
    depth = random.choice((1, 2, 10, 200, 300, random.randint(930, 1000), random.randint(9900, 10_000), 20_000))
    opening, closing = random.choice((("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")))
    deep = opening * depth + "1" + closing * depth
    changed = change(text, random, lambda outer, key: outer.__setitem__(key, "@deep"))
    shown = changed if isinstance(changed, str) else changed.decode()
    return shown.replace('"@deep"', deep)


def enlarge(text: str, random: Random) -> str:
    found = list(NUMBER.finditer(text))
    if not found:
        return text + random.choice(NUMBERS)
    number = random.choice(found)
    return text[: number.start()] + random.choice(NUMBERS) + text[number.end() :]


def double_key(text: str, random: Random) -> str:
    fields = FIELD.findall(text)
    begins = [match.end() for match in re.finditer(r"{", text)]
    if not fields or not begins:
        return text[:1] + text
    begin = random.choice(begins)
    field = random.choice(fields)
    if random.random() < 0.5:  # the one that counts is the last: here the old one
        return f"{text[:begin]}{field},{text[begin:]}"
    ends = [match.start() for match in re.finditer(r"}", text)]
    end = random.choice(ends)
    return f"{text[:end]},{field.partition(':')[0]}:{json.dumps(random.choice(VALUES))}{text[end:]}"


def other_action(text: str, random: Random) -> bytes | str:
    try:
        content = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return ""
    if not isinstance(content, dict):
        return ""
    name = random.choice(("action", "action", "action", "table"))
    content[name] = random.choice(ACTIONS if name == "action" else (*PUBLIC, *PRIVATE, "orderBookL2_25", "chat", "", 5))
    return msgspec.json.encode(content)


def shuffle_rows(text: str, random: Random) -> bytes | str:
    """Rows twice, none, in another order."""
    try:
        content = msgspec.json.decode(text)
        rows = content["data"]
        content["data"] = random.choice((rows + rows, rows[::-1], [], rows[1:], random.choices(rows, k=3)))
    except (msgspec.DecodeError, KeyError, TypeError, IndexError):
        return text[::-1]
    return msgspec.json.encode(content)


def repeat(text: str, random: Random) -> str:
    """The message once more, as it is."""
    return text


MUTATORS = (
    flip_bits, truncate, swap_type, drop, rename, nest, enlarge, double_key, other_action, shuffle_rows, repeat,
)  # fmt: skip


# --- what is behind the decoder ---


class Chain:
    """Decoder, applier, merger and the rest, fed by hand as a pipeline feeds them."""

    def __init__(self, number: Any, account: int, asked: list[str] | None = None) -> None:
        self.asked: list[str] = [] if asked is None else asked
        self.decoder, self.strict = Decoder(number), Decoder(number, on_error="raise")
        self.tables = TableApplier(max_rows=20, resync=self.asked.append)
        self.books, self.direct = (OrderBookMerger(resync=self.asked.append) for _ in range(2))
        self.positions, self.margin = Positions(account), Margin(account)
        self.followers: list[Operator] = [
            Orders(), Fills(keep=100), self.positions, self.margin, Tickers(), Positions(account, keep=1),
        ]  # fmt: skip
        for follower in self.followers:
            follower.resync = self.asked.append
        self.bars = [Bars(), Bars()]
        self.groupings = BookGrouping(10), BookGrouping(Decimal("0.5"))

    def decode(self, item: Any) -> Any:
        (out,) = self.decoder.process(item)
        return out

    def apply(self, item: Any) -> tuple[list[Any], list[Any]]:
        """What comes out of the applier for a decoded item, and of the merger behind it."""
        updates = list(self.tables.process(item))
        told = [update for item in updates for update in self.books.process(item)]
        direct = list(self.direct.process(item))
        for bars, items in zip(self.bars, ([item], updates), strict=True):
            for each in items:
                for bar in (*bars.tick(each.received), *bars.process(each)):
                    assert type(bar) is messages.Bar
        for grouping, books in zip(self.groupings, (told, direct), strict=True):
            for update in books:
                for grouped in grouping.process(update):
                    check_book(grouped)
        for update in updates:
            through = [update]
            for follower in self.followers:
                through = [out for item in through for out in follower.process(item)]
            assert update in through
        return updates, direct


def check_book(update: Any) -> None:
    assert type(update) is BookUpdate
    book = update.book
    assert update.stale or not book.stale
    if update.stale:
        return
    assert update.best_bid == (book.bids[0] if book.bids else None)
    assert update.best_ask == (book.asks[0] if book.asks else None)
    bids, asks = list(book.bids), list(book.asks)
    assert bids == sorted(bids, key=lambda level: -level.price)
    assert asks == sorted(asks, key=lambda level: level.price)
    for price, size in (*bids, *asks):
        assert type(size) is int
        assert size > 0
        assert type(price) in (float, Decimal)
    assert {("Buy", *level) for level in bids} | {("Sell", *level) for level in asks} >= {
        change for change in update.changes or () if change[2] and change == last_of(update.changes, change)
    }


def last_of(changes: Any, change: Any) -> Any:
    """The last of the changes of that side and price."""
    return [other for other in changes if other[:2] == change[:2]][-1]


def state_of(chain: Chain, recording: Recording) -> dict[str, Any]:
    """All that is known of what one client is sent, in a form that compares."""
    data, symbol, account = chain.tables.storage.data, recording.symbol, recording.account
    state: dict[str, Any] = {"orderBookL2": data["orderBookL2"].get(symbol)}
    for table in PUBLIC[1:]:
        state[table] = [row for row in data.get(table, {}).values() if row.get("symbol") == symbol]
    for table in PRIVATE:
        state[table] = [row for row in data.get(table, {}).values() if row.get("account") == account]
    for name, merger in (("books", chain.books), ("direct", chain.direct)):
        book = merger.books.get(symbol)
        state[name] = book and (list(book.bids), list(book.asks), book.stale)
    return state


def known_of(chain: Chain) -> list[tuple[Any, ...]]:
    """The positions and the margin of one account."""
    positions = [(p.symbol, p.size, p.mark_price, p.realized, p.net, p.stale) for p in chain.positions.values()]
    return positions + [(m.currency, m.row, m.stale) for m in chain.margin.values()]


def check_state(state: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in state.items():
        if name in ("trade", "quote", "funding", "execution"):  # of two sources in one table, the newest are kept
            assert value == expected[name][len(expected[name]) - len(value) :], name
        else:
            assert value == expected[name], name


class Run:
    def __init__(self, good: Recording, bad: Recording, *, number: Any, shared: bool, seed: int) -> None:
        self.good, self.bad, self.number = good, bad, number
        self.random = Random(seed)
        self.now = START
        self.alone = Chain(number, good.account)
        self.sane = Chain(number, good.account)  # of the good source, with the bad one where they share it
        self.other = self.sane if shared else Chain(number, bad.account)
        self.sound = self.play(good)
        self.expected: tuple[dict[str, Any], list[tuple[Any, ...]]] | None = None  # None: to be found anew
        self.mutated = 0
        self.text: str | bytes = ""

    def raw(self, text: str | bytes, source: str) -> RawMessage:
        self.now += 10_000_000
        return RawMessage(self.now, text, source)

    def play(self, recording: Recording) -> Iterator[list[str]]:
        """The messages of the good source, in steps: a part's partials are one."""
        while True:
            for partials, deltas in recording.parts:
                yield partials
                yield from ([delta] for delta in deltas)

    def good_step(self, partials: bool = False) -> None:
        step = next(self.sound)
        while partials and len(step) == 1:
            step = next(self.sound)
        self.expected = None
        for text in step:
            item = self.raw(text, GOOD)
            decoded = self.sane.decode(item)
            # Encoded, for there a Decimal is another thing than an int of the same value.
            assert msgspec.json.encode(decoded) == msgspec.json.encode(self.alone.decode(item))
            one, two = self.sane.apply(decoded), self.alone.apply(decoded)
            assert [update for update in one[0] if update.source == GOOD] == two[0]
            for told, alone in zip(one[1], two[1], strict=True):
                assert [getattr(told, name) for name in TOLD] == [getattr(alone, name) for name in TOLD]

    def bad_step(self, text: str | bytes) -> None:
        chain, self.text = self.other, text
        item = self.raw(text, BAD)
        out = chain.decode(item)
        assert type(out).__name__ in CONTROL
        assert type(out).__module__ == messages.__name__
        try:
            (strict,) = chain.strict.process(item)
        except DecodeError:
            assert type(out) is StateLost
        else:
            assert type(strict) is type(out) is not StateLost
        updates, books = chain.apply(out)
        for update in updates:
            assert type(update) is TableUpdate
            assert update.source == BAD
        for update in books:
            check_book(update)
        if type(out) is TableMessage and out.action == "partial" and chain is self.sane and self.takes_over(out):
            self.good_step(partials=True)

    def takes_over(self, message: TableMessage) -> bool:
        """Whether a partial says that it covers what the good source has: then that is its source's from now on."""
        theirs = {"account": self.good.account} if message.table in PRIVATE else {"symbol": self.good.symbol}
        return (message.filter or {}).items() <= theirs.items()

    def compare(self) -> None:
        if self.expected is None:
            self.expected = state_of(self.alone, self.good), known_of(self.alone)
        state, known = self.expected
        check_state(state_of(self.sane, self.good), state)
        assert {topic: why for topic, why in self.sane.tables.stale.items() if self.good.symbol in topic} == {}
        assert known_of(self.sane) == known

    def run(self, number: int, deadline: float) -> None:
        random, expected = self.random, [self.fresh(partials) for partials, _ in self.bad.parts]
        self.good_step(partials=True)
        while self.mutated < number:
            for (partials, deltas), state in zip(self.bad.parts, expected, strict=True):
                for text in partials:
                    self.bad_step(text)
                check_state(state_of(self.other, self.bad), state)  # right again with the next partials
                for text in deltas:
                    if random.random() < 0.3:
                        self.good_step()
                    if random.random() < 0.2:
                        self.bad_step(text)
                        continue
                    self.mutate(random.choice(partials) if random.random() < 0.05 else text)
                    if random.random() < 0.001:
                        self.other.apply(Disconnected(self.now, BAD))
                    if random.random() < 0.001:
                        topic = random.choice((f"orderBookL2:{self.bad.symbol}", f"trade:{self.bad.symbol}", "order"))
                        self.bad_step(f'{{"success":true,"unsubscribe":"{topic}"}}')
                if self.mutated >= number:
                    return
                assert time.monotonic() < deadline, "too slow"

    def mutate(self, text: str) -> None:
        self.mutated += 1
        self.bad_step(self.random.choice(MUTATORS)(text, self.random))
        self.compare()

    def fresh(self, partials: list[str]) -> dict[str, Any]:
        """The state after these partials, and nothing else."""
        chain = Chain(self.number, self.bad.account)
        for text in partials:
            chain.apply(chain.decode(RawMessage(START, text, BAD)))
        return state_of(chain, self.bad)


@pytest.mark.parametrize("behind", [[TableApplier], [TableApplier, OrderBookMerger]], ids=["tables", "books"])
async def test_stage_by_stage_comes_out_what_comes_out_item_by_item(
    recordings: tuple[Recording, Recording], caplog: pytest.LogCaptureFixture, behind: list[Any]
) -> None:
    caplog.set_level(logging.CRITICAL, logger="bitmex_streams")
    random, items = Random(SEED), []
    for partials, texts in recordings[0].parts * 3:
        items.append(Connected(START, BAD))
        for text in [*partials, *texts]:
            again = [] if random.random() > 0.05 else [random.choice(MUTATORS)(text, random), *partials]
            items += [RawMessage(START, data, BAD) for data in (text, *again)]
        if random.random() < 0.5:
            items.append(Disconnected(START, BAD))
    told = []
    for seen_by_another in (False, True):  # behind whom all has to be as it is at the item in hand
        sections = [Decoder(), *(section() for section in behind), *([Pass()] if seen_by_another else [])]
        async with Pipeline.create(Messages(items), *sections) as pipeline:
            found = await collect(pipeline.tap())
        told.append(
            [[getattr(item, field) for field in item.__struct_fields__ if field != "book"] for item in found]
        )
    assert told[0] == told[1] and len(told[0]) > 1000
    assert sum("stale" in update or True in update for update in told[0]) > 20


TOLD = [field for field in BookUpdate.__struct_fields__ if field != "book"]


@pytest.fixture(scope="module")
def recordings() -> tuple[Recording, Recording]:
    return Recording("ETHUSD", 1), Recording("XBTUSD", 2)


@pytest.mark.parametrize(
    ("count", "number", "shared"), [(20_000, None, True), (10_000, Decimal, True), (10_000, None, False)]
)
def test_whatever_a_connection_sends_is_applied_dropped_or_marked_and_harms_no_other(
    recordings: tuple[Recording, Recording], caplog: pytest.LogCaptureFixture, count: int, number: Any, shared: bool
) -> None:
    caplog.set_level(logging.CRITICAL, logger="bitmex_streams")
    run = Run(*recordings, number=number, shared=shared, seed=SEED)
    try:
        run.run(count, time.monotonic() + 500)
    except Exception as error:
        text = run.text if len(run.text) < 2000 else [run.text[:1000], run.text[-200:]]
        raise AssertionError(f"seed {SEED}, message {run.mutated} of {count}: {text!r}") from error
