"""Grouped books: the sums of the exact one, never better than it, whoever is ahead of whom."""

from __future__ import annotations

import math
import pickle
from collections import deque
from collections.abc import Iterable
from decimal import Decimal, localcontext
from fractions import Fraction
from random import Random
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from slurry.sections import Map, Merge

from bitmex_streams.exchange import open_exchange
from bitmex_streams.messages import BookUpdate, Disconnected, Level, Row, TableMessage
from bitmex_streams.operator import Operator
from bitmex_streams.orderbook import BookSnapshot, BookView, OrderBook
from bitmex_streams.pipeline import Pipeline
from bitmex_streams.sections.connection import Connection
from bitmex_streams.sections.decoder import Decoder
from bitmex_streams.sections.grouping import BookGrouping
from bitmex_streams.sections.orderbook import OrderBookMerger
from bitmex_streams.sections.throttle import Throttle
from tests.servers import ScriptedExchange, partial_of
from tests.support import ProcessPass, TrioPass

SOURCE = "ws://one"


def level(price: Any, side: str, size: int, symbol: str = "XBTUSD") -> Row:
    return {"symbol": symbol, "id": int(100_000 - price * 100), "side": side, "size": size, "price": price}


def partial(*rows: Row, filter: dict[str, Any] | None = None, source: str = SOURCE) -> TableMessage:
    return TableMessage("orderBookL2", "partial", rows, 1, source, ["symbol", "id", "side"], {}, {}, {}, filter or {})


def delta(action: Any, *rows: Row, received: int = 2, source: str = SOURCE) -> TableMessage:
    return TableMessage("orderBookL2", action, rows, received, source)


class Chain:
    """A merger and a grouping behind it, item by item, as a pipeline runs them."""

    def __init__(self, tick: Any) -> None:
        self.books, self.grouping = OrderBookMerger(), BookGrouping(tick)

    def __call__(self, *items: Any) -> list[Any]:
        return [out for item in items for update in self.books.process(item) for out in self.grouping.process(update)]

    def lose(self, reason: str) -> None:
        for operator in (self.books, self.grouping):
            operator.lose_state(SOURCE, reason)


def grouped(levels: Iterable[Level], side: str, tick: Any) -> list[tuple[Fraction, int]]:
    """The groups of exact levels, best first, the slow and simple way."""
    step, sums = Fraction(str(tick)), dict[Fraction, int]()
    for price, size in levels:
        steps = Fraction(str(price)) / step
        group = (math.floor(steps) if side == "Buy" else math.ceil(steps)) * step
        sums[group] = sums.get(group, 0) + size
    return sorted(sums.items(), reverse=side == "Buy")


def sides(book: BookView) -> tuple[list[tuple[Fraction, int]], list[tuple[Fraction, int]]]:
    bids, asks = ([(Fraction(str(price)), size) for price, size in side] for side in (book.bids, book.asks))
    return bids, asks


def grouped_sides(book: BookView, tick: Any) -> Any:
    return grouped(book.bids, "Buy", tick), grouped(book.asks, "Sell", tick)


BIDS = [level(99.5, "Buy", 1), level(99, "Buy", 2), level(98.5, "Buy", 4)]
ROWS = [*BIDS, level(100.5, "Sell", 8), level(101, "Sell", 3)]


# --- what comes out ---


def test_bids_go_down_and_asks_up_and_sizes_are_summed() -> None:
    chain = Chain(1)
    (first,) = chain(partial(*ROWS))
    assert (first.symbol, first.best_bid, first.best_ask, first.changes, first.stale) == (
        "XBTUSD", (99.0, 3), (101.0, 11), None, False,
    )
    book = chain.grouping.books["XBTUSD"]
    assert first.book is book
    assert (list(book.bids), list(book.asks)) == ([(99.0, 3), (98.0, 4)], [(101.0, 11)])
    assert (book.mid_price, book.spread, book.stale, len(book)) == (100.0, 2.0, False, 3)


def test_changes_are_those_of_the_groups_once_each() -> None:
    chain = Chain(1)
    chain(partial(*ROWS))
    row = {**level(99.5, "Buy", 5), "timestamp": "2026-01-01T00:00:00.000Z"}
    (update,) = chain(delta("update", level(99, "Buy", 9), row, received=7))
    assert (update.changes, update.best_bid, update.received) == ((("Buy", 99.0, 14),), (99.0, 14), 7)
    assert update.timestamp == update.book.timestamp == "2026-01-01T00:00:00.000Z"
    (update,) = chain(delta("delete", level(99, "Buy", 9), level(99.5, "Buy", 5), level(101, "Sell", 3)))
    assert update.changes == (("Buy", 99.0, 0), ("Sell", 101.0, 8))
    assert (update.best_bid, update.best_ask) == ((98.0, 4), (101.0, 8))
    (update,) = chain(delta("insert", level(102.5, "Sell", 1), level(100, "Buy", 6)))
    assert update.changes == (("Buy", 100.0, 6), ("Sell", 103.0, 1))
    (update,) = chain(delta("delete", level(100, "Buy", 6), level(98.5, "Buy", 4)))
    assert (update.best_bid, update.changes) == (None, (("Buy", 100.0, 0), ("Buy", 98.0, 0)))


def test_an_update_by_which_no_group_changes_goes_no_further() -> None:
    chain = Chain(1)
    chain(partial(*ROWS))
    assert chain(delta("update", level(99.5, "Buy", 1), received=3)) == []
    assert chain(delta("update", level(99.5, "Buy", 2), level(99, "Buy", 1), received=4)) == []
    (update,) = chain(delta("update", level(99.5, "Buy", 3), received=5))
    assert (update.changes, update.received) == ((("Buy", 99.0, 4),), 5)


def test_a_partial_replaces_all_groups_and_one_without_rows_empties_them() -> None:
    chain = Chain(1)
    chain(partial(*ROWS))
    (update,) = chain(partial(level(98, "Buy", 7)))
    assert (update.changes, update.best_bid, update.best_ask) == (None, (98.0, 7), None)
    (update,) = chain(partial())
    assert (update.changes, update.best_bid, update.best_ask, len(update.book)) == (None, None, None, 0)


@pytest.mark.parametrize(
    ("tick", "price", "bid", "ask"),
    [
        (0.1, 0.3, "0.3", "0.3"),
        (0.1, 0.35, "0.3", "0.4"),
        (0.1, 1.7, "1.7", "1.7"),
        (Decimal("0.05"), 1.15, "1.15", "1.15"),
        (0.3, 1.0, "0.9", "1.2"),
        (1e-05, 0.00012, "0.00012", "0.00012"),
        (1000, 31964.5, "31000.0", "32000.0"),
        (10**6, 5.0, "0.0", "1000000.0"),
        (2, -3.0, "-4.0", "-2.0"),
        (1e-300, 1e300, "1e+300", "1e+300"),
    ],
)
def test_prices_are_exact_multiples_of_the_step(tick: Any, price: float, bid: str, ask: str) -> None:
    chain = Chain(tick)
    for side, expected in (("Buy", bid), ("Sell", ask)):
        (update,) = chain(partial({"symbol": "XBTUSD", "id": 1, "side": side, "size": 1, "price": price}))
        best = update.best_bid or update.best_ask
        assert type(best.price) is float
        assert repr(best.price) == expected


@pytest.mark.parametrize("tick", [0.1, Decimal("0.1")])
def test_decimals_stay_decimals_and_exact_whatever_the_context(tick: Any) -> None:
    chain = Chain(tick)
    message = partial(level(Decimal("31964.55"), "Buy", 1), level(Decimal("31964.50"), "Buy", 2))
    with localcontext() as context:
        context.prec = 2
        (update,) = chain(message)
    assert type(update.best_bid.price) is Decimal
    assert update.best_bid == (Decimal("31964.5"), 3)
    (update,) = chain(delta("insert", level(Decimal("31964.61"), "Sell", 5)))
    assert update.changes == (("Sell", Decimal("31964.7"), 5),)


@pytest.mark.parametrize("price", [Decimal("1e5000"), Decimal("Infinity"), Decimal("1e-5000")])
def test_a_price_beyond_all_markets_is_no_error(price: Decimal) -> None:
    chain = Chain(Decimal("0.5"))
    row = {"symbol": "XBTUSD", "id": 1, "side": "Sell", "size": 1, "price": price}
    (update,) = chain(partial(row))
    assert update.best_ask.price in (price, Decimal("0.5"))
    (update,) = chain(delta("delete", row))
    assert update.best_ask is None


def test_each_symbol_can_have_a_step_and_those_without_pass() -> None:
    chain = Chain({"XBTUSD": 10, "ETHUSD": Decimal("0.5")})
    updates = chain(partial(level(99, "Buy", 1), level(9.7, "Buy", 2, "ETHUSD"), level(7, "Buy", 3, "SOLUSDT")))
    assert [(update.symbol, update.best_bid) for update in updates] == [
        ("XBTUSD", (90.0, 1)), ("ETHUSD", (9.5, 2)), ("SOLUSDT", (7.0, 3)),
    ]
    assert updates[2].book is chain.books.books["SOLUSDT"]
    assert list(chain.grouping.books) == ["XBTUSD", "ETHUSD"]


@pytest.mark.parametrize("tick", [0, -1, 0.0, float("nan"), float("inf"), Decimal("NaN"), Decimal(0), {"XBTUSD": 0}])
def test_a_step_that_is_none_is_refused(tick: Any) -> None:
    with pytest.raises(ValueError, match="of BookGrouping is a number above 0"):
        BookGrouping(tick)


@pytest.mark.parametrize("tick", ["0.5", True, None, {"XBTUSD": None}])
def test_a_step_that_is_no_number_is_refused(tick: Any) -> None:
    with pytest.raises(TypeError, match="tick"):
        BookGrouping(tick)


def test_other_items_pass() -> None:
    foreign: Any = object()
    mark = Disconnected(1, SOURCE)
    assert [list(BookGrouping(1).process(item)) for item in (foreign, mark)] == [[foreign], [mark]]


def test_a_grouped_book_is_grouped_once_more() -> None:
    chain, coarser = Chain(1), BookGrouping(10)
    items = partial(*ROWS), delta("insert", level(91, "Buy", 7))
    told = [out for item in items for update in chain(item) for out in coarser.process(update)]
    assert told[-1].changes == (("Buy", 90.0, 14),)
    assert sides(coarser.books["XBTUSD"]) == grouped_sides(chain.books.books["XBTUSD"], 10)


# --- stale ---


def test_every_loss_is_said_once_with_the_last_top_and_a_partial_heals() -> None:
    chain = Chain(1)
    chain(partial(*ROWS, level(5.5, "Buy", 1, "ETHUSD")))
    marks = chain(delta("insert", level(97, "Buy", 5), level(99, "Buy", 5), received=9))
    assert [(u.symbol, u.best_bid, u.best_ask, u.changes, u.stale, u.received, u.book.stale) for u in marks] == [
        ("XBTUSD", (99.0, 3), (101.0, 11), None, True, 9, True),
        ("ETHUSD", (5.0, 1), None, None, True, 9, True),
    ]
    assert chain(delta("update", level(99, "Buy", 1))) == []
    fresh = chain(partial(level(98, "Buy", 1), filter={"symbol": "XBTUSD"}))
    assert [(u.best_bid, u.changes, u.stale, u.book.stale) for u in fresh] == [((98.0, 1), None, False, False)]
    assert chain.grouping.books["ETHUSD"].stale


def test_an_announced_loss_shows_at_once_on_the_live_book_and_in_its_turn_in_the_stream() -> None:
    chain = Chain(1)
    chain(partial(*ROWS))
    book = chain.grouping.books["XBTUSD"]
    chain.lose("first")
    chain.lose("second")
    assert book.stale
    (update,) = chain(delta("update", level(99, "Buy", 5)))
    assert (update.stale, update.best_bid, update.changes, book.stale) == (False, (99.0, 6), (("Buy", 99.0, 6),), True)
    for announced in (True, False):
        assert [mark.stale for mark in chain(Disconnected(3, SOURCE))] == [True]
        assert [fresh.stale for fresh in chain(partial(*ROWS))] == [False]
        assert book.stale is announced
    chain.grouping.lose_state("ws://two", "another's")
    assert not book.stale


def test_the_live_book_is_stale_until_its_own_partial_when_the_merger_is_ahead() -> None:
    chain = Chain(1)
    chain(partial(*ROWS))
    book = chain.grouping.books["XBTUSD"]
    chain.lose("disconnected")
    updates = [*chain.books.process(Disconnected(3, SOURCE)), *chain.books.process(partial(*ROWS))]
    assert not chain.books.books["XBTUSD"].stale
    seen = [book.stale]
    for update in updates:
        chain.grouping.process(update)
        seen.append(book.stale)
    assert seen == [True, True, False]


def test_a_partial_from_before_an_announced_loss_is_no_reason_to_trust_the_live_book() -> None:
    chain = Chain(1)
    chain(partial(*ROWS))
    book = chain.grouping.books["XBTUSD"]
    updates = list(chain.books.process(partial(*ROWS)))
    chain.lose("disconnected")
    list(chain.grouping.process(updates.pop()))
    updates += [*chain.books.process(Disconnected(3, SOURCE)), *chain.books.process(partial(*ROWS))]
    seen = [book.stale]
    for update in updates:
        chain.grouping.process(update)
        seen.append(book.stale)
    assert seen == [True, True, False]


def test_one_that_is_told_of_a_loss_before_the_merger_shows_it_all_the_same() -> None:
    chain = Chain(1)
    chain(partial(*ROWS))
    chain.grouping.lose_state(SOURCE, "disconnected")
    chain.books.lose_state(SOURCE, "disconnected")
    assert chain.grouping.books["XBTUSD"].stale
    assert [update.stale for update in chain(Disconnected(3, SOURCE), partial(*ROWS))] == [True, False]
    assert not chain.grouping.books["XBTUSD"].stale


def test_one_that_comes_late_begins_with_the_book_as_it_is() -> None:
    books = OrderBookMerger()
    list(books.process(partial(*ROWS)))
    (update,) = books.process(delta("insert", level(98, "Buy", 1)))
    (told,) = BookGrouping(1).process(update)
    assert (told.changes, told.stale, told.best_bid) == (None, False, (99.0, 3))
    assert sides(told.book) == grouped_sides(update.book, 1)
    (mark,) = books.process(Disconnected(3, SOURCE))
    (told,) = BookGrouping(1).process(mark)
    assert (told.stale, told.book.stale, told.best_bid) == (True, True, (99.0, 3))


def test_fresh_deltas_behind_a_mark_begin_anew_where_the_partial_was_left_out() -> None:
    chain = Chain(1)
    chain(partial(*ROWS), Disconnected(3, SOURCE))
    list(chain.books.process(partial(level(50, "Buy", 1))))
    (update,) = chain(delta("insert", level(51.5, "Buy", 2)))
    assert (update.changes, list(update.book.bids)) == (None, [(51.0, 2), (50.0, 1)])


def test_books_of_two_mergers_are_not_mixed() -> None:
    one, two, grouping = OrderBookMerger(), OrderBookMerger(), BookGrouping(1)
    for merger, message in (
        (one, partial(*ROWS)),
        (two, partial(level(50, "Buy", 1))),
        (one, delta("insert", level(97, "Buy", 5))),
        (two, delta("insert", level(51, "Buy", 2))),
    ):
        (update,) = merger.process(message)
        (told,) = grouping.process(update)
        assert sides(told.book) == grouped_sides(update.book, 1)


def test_pickling_sends_a_snapshot_of_the_groups() -> None:
    chain = Chain(1)
    (update,) = chain(partial(*ROWS))
    sent = pickle.loads(pickle.dumps(update))
    assert type(sent.book) is BookSnapshot
    assert (sent.best_bid, sent.book) == (update.best_bid, update.book.snapshot())
    chain.lose("disconnected")
    assert update.book.snapshot().stale


# --- whatever happens ---

TICKS = st.sampled_from([0.5, 1, 2.5, 10, 0.3, 0.1, Decimal("7"), 1000])


def a_day(random: Random, length: int, crossed: bool = False) -> list[Any]:
    """Partials, sound deltas of several rows, a disconnect now and then."""
    known: dict[int, str] = {}
    messages: list[Any] = []

    def row(number: int, side: str) -> Row:
        size = random.randint(1, 9)
        return {"symbol": "XBTUSD", "id": 1000 - number, "side": side, "size": size, "price": 90 + number / 2}

    def sides_of(number: int) -> str:
        return random.choice(("Buy", "Sell")) if crossed else "Buy" if number < middle else "Sell"

    for _ in range(length):
        kind = random.choices(("partial", "insert", "update", "delete", "lost"), (4, 36, 36, 20, 4))[0]
        if not messages or kind == "partial" or (messages and type(messages[-1]) is Disconnected):
            middle = random.randint(1, 40)
            known = {number: sides_of(number) for number in random.sample(range(40), random.randint(0, 30))}
            messages.append(partial(*(row(number, side) for number, side in known.items())))
        elif kind == "lost":
            messages.append(Disconnected(3, SOURCE))
        elif kind == "insert":
            free = [number for number in range(40) if number not in known]
            new = {number: sides_of(number) for number in random.sample(free, min(len(free), random.randint(1, 4)))}
            known |= new
            messages.append(delta("insert", *(row(number, side) for number, side in new.items())))
        else:
            some = random.sample(sorted(known), min(len(known), random.randint(1, 4)))
            messages.append(delta(kind, *(row(number, known[number]) for number in some)))
            if kind == "delete":
                for number in some:
                    del known[number]
    return messages


@given(st.randoms(use_true_random=False), TICKS, st.booleans())
@settings(max_examples=50)
def test_the_grouped_book_is_the_grouping_of_the_exact_one_after_every_update(
    random: Random, tick: Any, crossed: bool
) -> None:
    books, grouping = OrderBookMerger(crossed_messages=10**6), BookGrouping(tick)
    followed: dict[tuple[str, Any], int] = {}
    for message in a_day(random, 40, crossed):
        for update in books.process(message):
            anew = update.changes is None or not grouping.books
            told = list(grouping.process(update))
            book, exact = grouping.books["XBTUSD"], update.book
            assert book.stale == exact.stale == update.stale
            assert sides(book) == grouped_sides(exact, tick)
            assert [sum(size for _, size in side) for side in sides(book)] == [
                sum(size for _, size in side) for side in sides(exact)
            ]
            assert exact.crossed or not book.crossed
            assert told or not anew
            for out in told:
                assert (out.best_bid, out.best_ask) == (book.best_bid, book.best_ask) == (
                    next(iter(book.bids), None), next(iter(book.asks), None),
                )
                assert (out.stale, out.changes is None) == (update.stale, anew)
                if out.changes is None:
                    followed = {("Buy", p): s for p, s in book.bids} | {("Sell", p): s for p, s in book.asks}
                for side, price, size in out.changes or ():
                    assert followed.get((side, price), 0) != size, "a change that is none"
                    followed[side, price] = size
                assert len({change[:2] for change in out.changes or ()}) == len(out.changes or ())
            shown = {("Buy", p): s for p, s in book.bids} | {("Sell", p): s for p, s in book.asks}
            assert {key: size for key, size in followed.items() if size} == shown


@given(st.randoms(use_true_random=False), TICKS, st.integers(1, 60))
@settings(max_examples=50)  # days of 60 messages each
def test_behind_a_merger_that_is_ahead_best_prices_are_exact_and_all_is_once_the_updates_have_come(
    random: Random, tick: Any, most_ahead: int
) -> None:
    books, grouping = OrderBookMerger(), BookGrouping(tick)
    on_the_way: deque[BookUpdate] = deque()
    followed: dict[tuple[str, Any], int] = {}

    def hear() -> None:
        update = on_the_way.popleft()
        for out in grouping.process(update):
            book = out.book
            bid = grouped([update.best_bid], "Buy", tick)[0][0] if update.best_bid else None
            ask = grouped([update.best_ask], "Sell", tick)[0][0] if update.best_ask else None
            if not update.stale:  # a mark has the last known top, where its update was left out here
                assert [side[0][0] if side else None for side in sides(book)] == [bid, ask]
            assert not book.crossed
            if out.changes is None:
                followed.clear()
                followed.update({("Buy", p): s for p, s in book.bids} | {("Sell", p): s for p, s in book.asks})
            for side, price, size in out.changes or ():
                followed[side, price] = size
            shown = {("Buy", p): s for p, s in book.bids} | {("Sell", p): s for p, s in book.asks}
            assert {key: size for key, size in followed.items() if size} == shown

    for message in a_day(random, 60):
        on_the_way.extend(books.process(message))  # type: ignore[arg-type]
        if len(on_the_way) > most_ahead or random.random() < 0.1:
            for _ in range(random.randint(1, len(on_the_way)) if on_the_way else 0):
                hear()
    while on_the_way:
        hear()
    if books.books:
        book, exact = grouping.books["XBTUSD"], books.books["XBTUSD"]
        assert (sides(book), book.stale) == (grouped_sides(exact, tick), exact.stale)


# --- in pipelines, over websockets ---

STEPS = {"XBTUSD": 5, "ETHUSD": 0.5, "XBTUSDT": Decimal("2.5"), "SOLUSDT": 0.1}


class Compare(Operator):
    """Directly behind the grouping: compares each grouped book with the exact one."""

    def __init__(self, books: OrderBookMerger) -> None:
        self.books = books
        self.compared = 0

    def process(self, item: Any) -> Iterable[Any]:
        if not item.stale:
            assert sides(item.book) == grouped_sides(self.books.books[item.symbol], STEPS[item.symbol])
            self.compared += 1
        return (item,)


@pytest.mark.parametrize("number", [None, Decimal])
async def test_every_update_of_a_live_market_is_exact_directly_behind_the_merger(number: Any) -> None:
    books, grouping = OrderBookMerger(), BookGrouping(STEPS)
    compare = Compare(books)
    with trio.fail_after(30):
        async with open_exchange(rate=500, levels=30) as exchange:
            connection = Connection(exchange.url, subscribe=["orderBookL2"])
            sections = connection, Decoder(number=number), books, grouping, compare
            async with Pipeline.create(*sections) as pipeline, pipeline.tap() as updates:
                seen = [await updates.receive() for _ in range(200)]
    assert compare.compared >= 200
    assert {update.symbol for update in seen} == set(STEPS)
    assert any(update.changes for update in seen)
    assert {type(update.best_bid.price) for update in seen} == {number or float}
    assert all(update.best_bid.price < update.best_ask.price for update in seen)
    assert all(book.stale for book in grouping.books.values())


BETWEEN = {
    "slurry's Map": lambda: Map(lambda update: update),
    "a trio section": TrioPass,
    "a process": ProcessPass,
    "a throttle": lambda: Throttle(0.05),
}


@pytest.mark.parametrize("between", BETWEEN)
async def test_whatever_stands_between_the_book_is_the_exchanges_at_a_quiet_moment(between: str) -> None:
    books, grouping = OrderBookMerger(), BookGrouping(STEPS)
    with trio.fail_after(30):
        async with open_exchange(rate=1000, levels=30) as exchange:
            connection = Connection(exchange.url, subscribe=["orderBookL2"])
            sections = connection, Decoder(), books, BETWEEN[between](), grouping
            async with Pipeline.create(*sections) as pipeline, pipeline.tap() as updates:
                number = 0
                async for update in updates:
                    assert update.best_bid.price < update.best_ask.price
                    number += 1
                    if number == (40 if between == "a throttle" else 300):
                        break
                exchange.speed = 0
                quiet = {
                    symbol: (grouped(bids, "Buy", STEPS[symbol]), grouped(asks, "Sell", STEPS[symbol]))
                    for symbol, (bids, asks) in (
                        (symbol, map(list, market.book)) for symbol, market in exchange.markets.items()
                    )
                }
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(read, updates)
                    # Until the last message has come; never, and the test fails, if one is wrong.
                    while {symbol: sides(book) for symbol, book in grouping.books.items()} != quiet:  # noqa: ASYNC110
                        await trio.sleep(0.02)
                    nursery.cancel_scope.cancel()
                assert not any(book.stale for book in grouping.books.values())


async def read(updates: Any) -> None:
    async for _ in updates:
        pass


class Slow(TrioPass):
    """Holds every item back for as long as `gate` is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = trio.Event()

    async def refine(self, input: Any, output: Any) -> None:
        async for item in input:
            await self.gate.wait()
            await output(item)


@pytest.mark.parametrize("inside_merge", [False, True])
async def test_a_lost_connection_shows_at_once_behind_a_slow_section_and_in_its_turn_at_the_tap(
    inside_merge: bool,
) -> None:
    exchange, slow = ScriptedExchange(), Slow()
    exchange.partials["orderBookL2:XBTUSD"] = partial_of("orderBookL2:XBTUSD", ROWS)
    books, grouping = OrderBookMerger(), BookGrouping(1)
    with trio.fail_after(20):
        async with exchange.open() as url:
            connection = Connection(url, subscribe=["orderBookL2:XBTUSD"])
            first: Any = [connection, Decoder(), books]
            sections = [Merge(tuple(first))] if inside_merge else first
            async with Pipeline.create(*sections, slow, grouping) as pipeline, pipeline.tap() as updates:
                slow.gate.set()
                assert not (await updates.receive()).stale
                book: OrderBook = grouping.books["XBTUSD"]
                assert not book.stale
                slow.gate = trio.Event()
                for client in list(exchange.clients):
                    await client.aclose(1000)
                while not books.books["XBTUSD"].stale:  # noqa: ASYNC110
                    await trio.sleep(0.01)
                assert book.stale
                slow.gate.set()
                mark = await updates.receive()
                assert (mark.stale, mark.best_bid, mark.changes) == (True, (99.0, 3), None)
