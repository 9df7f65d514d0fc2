"""The order book merger: one update per symbol and message; stale is said once, at the tap in its turn."""

from __future__ import annotations

import pickle
from itertools import pairwise
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from bitmex_streams.coverage import CONNECTING
from bitmex_streams.exchange import open_exchange
from bitmex_streams.messages import (
    BookUpdate,
    Connected,
    Disconnected,
    Pong,
    Row,
    StateLost,
    TableMessage,
    TableUpdate,
    Unsubscribed,
)
from bitmex_streams.orderbook import BookSnapshot
from bitmex_streams.pipeline import Pipeline
from bitmex_streams.sections.connection import Connection
from bitmex_streams.sections.decoder import Decoder
from bitmex_streams.sections.orderbook import OrderBookMerger
from bitmex_streams.sections.tables import TableApplier
from tests.servers import ScriptedExchange, in_memory, partial_of

SOURCE = "ws://one"
SECOND = 1_000_000_000


def level(price: float, side: str, size: int, symbol: str = "XBTUSD", **more: Any) -> Row:
    return {"symbol": symbol, "id": int(10_000 - price * 10), "side": side, "size": size, "price": price, **more}


def partial(
    *rows: Row, filter: dict[str, Any] | None = None, table: str = "orderBookL2", received: int = 1
) -> TableMessage:
    return TableMessage(table, "partial", rows, received, SOURCE, ["symbol", "id", "side"], {}, {}, {}, filter or {})


def delta(action: Any, *rows: Row, received: int = 2, source: str = SOURCE) -> TableMessage:
    return TableMessage("orderBookL2", action, rows, received, source)


def apply(books: OrderBookMerger, item: Any) -> list[BookUpdate]:
    return list(books.process(item))


BID, ASK = level(99, "Buy", 10), level(101, "Sell", 20)


def test_a_partial_and_deltas_become_updates_with_their_own_top() -> None:
    books = OrderBookMerger()
    assert apply(books, delta("insert", BID)) == []
    (first,) = apply(books, partial(BID, ASK, filter={"symbol": "XBTUSD"}))
    assert (first.symbol, first.best_bid, first.best_ask, first.changes, first.stale) == (
        "XBTUSD",
        (99, 10),
        (101, 20),
        None,
        False,
    )
    (update,) = apply(books, delta("update", level(99, "Buy", 11, timestamp="2026-01-01T00:00:00.000Z"), received=7))
    assert (update.best_bid, update.changes, update.received) == ((99, 11), (("Buy", 99.0, 11),), 7)
    assert update.timestamp == "2026-01-01T00:00:00.000Z"
    assert first.best_bid == (99, 10)
    assert update.book is books.books["XBTUSD"]
    sent = pickle.loads(pickle.dumps(update))
    assert isinstance(sent.book, BookSnapshot)
    assert sent.book.best_bid == (99, 11)


def test_a_partial_of_the_whole_table_announces_the_books_that_have_become_empty() -> None:
    books = OrderBookMerger()
    apply(books, partial(BID, level(5, "Buy", 1, "ETHUSD")))
    updates = apply(books, partial(level(6, "Buy", 2, "ETHUSD"), level(7, "Sell", 2, "SOLUSDT")))
    assert [(u.symbol, u.best_bid, u.best_ask, u.changes) for u in updates] == [
        ("ETHUSD", (6, 2), None, None),
        ("SOLUSDT", None, (7, 2), None),
        ("XBTUSD", None, None, None),
    ]


@pytest.mark.parametrize("with_tables", [False, True])
def test_a_contradiction_makes_every_book_of_the_topic_stale_once_with_the_last_top(with_tables: bool) -> None:
    asked: list[str] = []
    tables, books = TableApplier(resync=asked.append), OrderBookMerger(resync=asked.append)

    def feed(item: Any) -> list[BookUpdate]:
        return [out for update in (tables.process(item) if with_tables else [item]) for out in books.process(update)]

    feed(partial(BID, ASK, level(5, "Buy", 1, "ETHUSD")))
    stale = feed(delta("insert", level(100, "Buy", 5), BID, received=9))
    assert [(u.symbol, u.best_bid, u.best_ask, u.changes, u.stale, u.received) for u in stale] == [
        ("XBTUSD", (99, 10), (101, 20), None, True, 9),
        ("ETHUSD", (5, 1), None, None, True, 9),
    ]
    assert asked == ["orderBookL2"]
    assert all(book.stale for book in books.books.values())
    assert (
        feed(delta("update", BID)) == feed(delta("delete", level(3, "Buy", 1))) == feed(Disconnected(10, SOURCE)) == []
    )
    (fresh, _) = feed(partial(BID, ASK))
    assert (fresh.stale, fresh.book.stale, fresh.best_bid) == (False, False, (99, 10))


def test_marks_of_the_connection_become_stale_books() -> None:
    for mark in (
        Disconnected(5, SOURCE),
        StateLost(5, SOURCE, "garbage"),
        StateLost(5, SOURCE, "?", "orderBookL2:XBTUSD"),
        Unsubscribed("orderBookL2:XBTUSD", 5, SOURCE),
    ):
        books = OrderBookMerger()
        apply(books, partial(BID, ASK, filter={"symbol": "XBTUSD"}))
        assert [(u.symbol, u.stale, u.best_ask, u.received) for u in apply(books, mark)] == [
            ("XBTUSD", True, (101, 20), 5)
        ]
        assert apply(books, mark) == []


def test_marks_of_others_concern_no_book() -> None:
    books = OrderBookMerger()
    apply(books, partial(BID, ASK, filter={"symbol": "XBTUSD"}))
    for mark in (
        Disconnected(5, "ws://two"),
        StateLost(5, SOURCE, "?", "trade"),
        StateLost(5, SOURCE, "?", "orderBookL2:ETHUSD"),
        Unsubscribed("orderBookL2:XBTUSD", 5, "ws://two"),
        Unsubscribed("orderBookL2", 5, SOURCE),
        Unsubscribed("orderBookL2_25:XBTUSD", 5, SOURCE),
    ):
        assert apply(books, mark) == []
    assert apply(books, TableUpdate("trade", "stale", (), 5, SOURCE)) == []
    assert apply(books, delta("update", BID, source="ws://two")) == []
    assert not books.books["XBTUSD"].stale


@pytest.mark.parametrize("with_tables", [False, True])
def test_an_announced_loss_shows_at_once_on_the_book_and_in_its_turn_in_the_stream(with_tables: bool) -> None:
    tables, books = TableApplier(), OrderBookMerger()

    def feed(item: Any) -> list[BookUpdate]:
        return [out for update in (tables.process(item) if with_tables else [item]) for out in books.process(update)]

    def lose(reason: str) -> None:
        tables.lose_state(SOURCE, reason)
        books.lose_state(SOURCE, reason)

    lose("before anything came")
    assert feed(Disconnected(0, SOURCE)) == []
    feed(partial(BID, ASK))
    book = books.books["XBTUSD"]
    assert not book.stale
    lose("first")
    lose("second")
    assert book.stale
    (update,) = feed(delta("update", level(99, "Buy", 5)))
    assert (update.stale, update.best_bid, book.stale) == (False, (99, 5), True)
    for announced in (True, False):
        (mark,) = feed(Disconnected(3, SOURCE))
        assert mark.stale
        (fresh,) = feed(partial(BID, ASK))
        assert (fresh.stale, book.stale) == (False, announced)


def test_a_book_crossed_for_more_than_a_burst_is_stale() -> None:
    asked: list[str] = []
    books = OrderBookMerger(resync=asked.append, crossed_messages=3, crossed_seconds=1.0)
    apply(books, partial(BID, ASK))
    high = level(102, "Buy", 1)
    told = apply(books, delta("insert", high, received=0))
    for n in range(5):  # a burst of many messages, in less than a second
        told += apply(books, delta("update", {**high, "size": n + 2}, received=n))
    assert not any(update.stale for update in told)
    (stale,) = apply(books, delta("update", high, received=SECOND))
    assert (stale.stale, asked) == (True, ["orderBookL2"])
    assert apply(books, delta("delete", high)) == []


def test_a_book_that_is_crossed_now_and_then_is_none_of_that() -> None:
    books = OrderBookMerger(crossed_messages=1, crossed_seconds=1.0)
    apply(books, partial(BID, ASK))
    high = level(102, "Buy", 1)
    for n in range(5):
        for action in ("insert", "delete"):
            (update,) = apply(books, delta(action, high, received=n * SECOND))
            assert not update.stale


def test_the_25_levels_table_has_a_merger_of_its_own() -> None:
    books = OrderBookMerger(table="orderBookL2_25")
    assert apply(books, partial(BID)) == []
    (update,) = apply(books, partial(BID, table="orderBookL2_25"))
    assert (update.table, update.best_bid) == ("orderBookL2_25", (99, 10))


def test_other_tables_and_control_messages_end_here_and_foreign_items_pass() -> None:
    books = OrderBookMerger()
    assert (
        apply(books, TableMessage("trade", "insert", [{}], 1))
        == apply(books, Pong(1))
        == apply(books, Connected(1))
        == []
    )
    foreign: Any = object()
    assert apply(books, foreign) == [foreign]


@pytest.mark.parametrize("with_tables", ["none", "the same", "new ones"])
@pytest.mark.parametrize("unheard", [["disconnected"], ["lag", "disconnected"]])
def test_what_a_consumer_that_left_never_heard_of_is_said_when_the_next_connection_stands(
    with_tables: str, unheard: list[str]
) -> None:
    tables, books = TableApplier(), OrderBookMerger()

    def feed(item: Any) -> list[BookUpdate]:
        before = [item] if with_tables == "none" else tables.process(item)
        return [out for update in before for out in books.process(update)]

    def lose(reason: str) -> None:
        tables.lose_state(SOURCE, reason)
        books.lose_state(SOURCE, reason)

    lose(CONNECTING)
    feed(Connected(0, SOURCE))
    feed(partial(BID, ASK))
    book = books.books["XBTUSD"]
    assert not book.stale and not tables.stale
    for reason in unheard:
        lose(reason)
    if with_tables == "new ones":
        tables = TableApplier()
    lose(CONNECTING)
    lose("the new life has ended again, which has yet to come")
    assert book.stale
    marks = feed(Connected(2, SOURCE))
    assert feed(delta("update", level(99, "Buy", 5))) == []
    updates = [*marks, *feed(partial(BID, ASK))]
    assert [update.stale for update in updates] == [True, False], "said once"
    assert book.stale, "the new life has ended, too"
    assert [update.stale for update in feed(Disconnected(3, SOURCE))] == [True]
    lose(CONNECTING)
    assert feed(Connected(4, SOURCE)) == []
    assert [update.stale for update in feed(partial(BID, ASK))] == [False]
    assert not book.stale and not tables.stale


def test_a_life_of_which_nothing_was_heard_leaves_nothing_behind() -> None:
    tables, books = TableApplier(), OrderBookMerger()
    for reason in (CONNECTING, "disconnected", CONNECTING, "lag", "disconnected", CONNECTING):
        tables.lose_state(SOURCE, reason)
        books.lose_state(SOURCE, reason)
    for item in (Connected(1, SOURCE), partial(BID, ASK)):
        for update in tables.process(item):
            apply(books, update)
    assert not books.books["XBTUSD"].stale and not tables.stale


@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from(["send", "send", "lag", "hear", "hear"]), max_size=12), st.booleans()),
        min_size=1,
        max_size=5,
    )
)
def test_in_whatever_moment_consumers_leave_no_book_is_fresh_that_is_stale_or_stale_for_ever(
    lives: list[tuple[list[str], bool]],
) -> None:
    tables, behind, direct = TableApplier(), OrderBookMerger(), OrderBookMerger()
    told: dict[OrderBookMerger, list[bool]] = {behind: [], direct: []}

    def lose(reason: str) -> None:
        for operator in (tables, behind, direct):
            operator.lose_state(SOURCE, reason)

    def hear(item: Any) -> None:
        told[direct] += [update.stale for update in apply(direct, item)]
        for update in tables.process(item):
            told[behind] += [update.stale for update in apply(behind, update)]

    for moves, anew in [*lives, (["send", "hear", "hear"], False)]:
        if anew:
            tables = TableApplier()
        sent: list[Any] = [Connected(1, SOURCE)]
        heard, last_loss = 0, 0
        lose(CONNECTING)
        for move in moves:
            if move == "send":
                sent += [partial(BID, ASK)]
            elif move == "lag":
                lose(f"lag {len(sent)}")
                sent += [StateLost(2, SOURCE, f"lag {len(sent)}")]
                last_loss = len(sent) - 1
            elif heard < len(sent):
                hear(sent[heard])
                heard += 1
            fresh = any(type(item) is TableMessage for item in sent[last_loss:heard])
            for merger in (behind, direct):
                assert (merger.books["XBTUSD"].stale if merger.books else True) is not fresh
            assert not fresh or not tables.stale
        lose("disconnected")  # and nothing more is heard
        for merger in (behind, direct):
            assert not merger.books or merger.books["XBTUSD"].stale
    assert told[direct][-1:] == told[behind][-1:] == [False]
    for marks in told.values():
        assert (True, True) not in pairwise(marks), "each loss is said once"


@pytest.mark.parametrize("with_tables", [False, True])
async def test_one_merger_serves_a_loop_of_pipelines(with_tables: bool) -> None:
    tables, books = TableApplier(), OrderBookMerger()
    async with open_exchange() as exchange:
        for _ in range(3):
            connection = Connection(exchange.url, subscribe=["orderBookL2:XBTUSD"])
            sections = [connection, Decoder(), *([tables] if with_tables else []), books]
            async with Pipeline.create(*sections) as pipeline, pipeline.tap(overflow="latest") as tap:
                with trio.fail_after(10):
                    while (await tap.receive()).stale:
                        pass
                    assert not (await books.ready("XBTUSD")).stale
                    assert not tables.stale
            assert books.books["XBTUSD"].stale


async def test_a_merger_whose_stream_has_ended_can_be_waited_for_in_the_next_pipeline() -> None:
    books = OrderBookMerger()
    books.finish()
    async with open_exchange() as exchange:
        connection = Connection(exchange.url, subscribe=["orderBookL2:XBTUSD"])
        async with Pipeline.create(connection, Decoder(), books) as pipeline, pipeline.tap(overflow="latest"):
            with trio.fail_after(10):
                assert not (await books.ready("XBTUSD")).stale


async def test_ready_waits_for_a_book_that_is_not_stale(autojump_clock: Any) -> None:
    books = OrderBookMerger()

    async def feed() -> None:
        for item in (partial(filter={"symbol": "ETHUSD"}), partial(BID), Disconnected(1, SOURCE), partial(BID, ASK)):
            await trio.sleep(1)
            apply(books, item)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed)
        assert (await books.ready("XBTUSD")).best_ask is None
        await trio.sleep(1.5)
        assert books.books["XBTUSD"].stale
        assert (await books.ready("XBTUSD")).best_ask == (101, 20)
        assert trio.current_time() >= 4


async def test_ready_ends_with_the_stream(autojump_clock: Any) -> None:
    books = OrderBookMerger()

    async def finish() -> None:
        await trio.sleep(1)
        books.finish()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(finish)
        with pytest.raises(trio.EndOfChannel, match="XBTUSD"):
            await books.ready("XBTUSD")
        with pytest.raises(trio.EndOfChannel):
            await books.ready("XBTUSD")


# --- partials that cannot be what they say


def test_a_partial_whose_filter_is_of_no_symbol_is_refused_and_touches_no_book() -> None:
    """Which books it covers cannot be told; those of its rows may be another connection's."""
    asked: list[str] = []
    books = OrderBookMerger(resync=asked.append)
    apply(books, partial(BID, ASK, filter={"symbol": "XBTUSD"}))
    forged = TableMessage("orderBookL2", "partial", [level(98, "Buy", 1)], 2, "ws://two", filter={"account": 5})
    assert apply(books, forged) == []
    assert (list(books.books["XBTUSD"].bids), books.books["XBTUSD"].stale) == ([(99, 10)], False)
    assert asked == ["orderBookL2"]


def test_where_a_refused_partial_is_of_no_known_topic_its_table_is_asked_for() -> None:
    asked: list[str] = []
    books = OrderBookMerger(resync=asked.append)
    assert apply(books, partial(BID, filter={"symbol": "XBTUSE"})) == []
    assert asked == ["orderBookL2"]


async def test_a_book_that_came_by_a_partial_without_a_filter_and_is_nobodys_does_not_stay_stale_for_ever(
    autojump_clock: Any,
) -> None:
    exchange = ScriptedExchange()
    topics = ["orderBookL2:XBTUSD", "orderBookL2:SOLUSDT"]
    for topic in topics:
        exchange.partials[topic] = partial_of(topic, [level(99, "Buy", 10, topic.partition(":")[2])])
    tables, books = TableApplier(), OrderBookMerger()
    async with in_memory(exchange, subscribe=topics) as connection:
        async with Pipeline.create(connection, Decoder(), tables, books) as pipeline:
            pipeline.start()
            with trio.fail_after(10):
                mine = [await books.ready(symbol) for symbol in ("XBTUSD", "SOLUSDT")]
            everything = [level(99, "Buy", 10, symbol) for symbol in ("XBTUSD", "ETHUSD")]
            await exchange.send(partial_of("orderBookL2", everything))
            with trio.fail_after(10):
                phantom = await books.ready("ETHUSD")
            assert not mine[1].bids and not tables.stale, "it says that it is all of the table"

            bad = {"symbol": "SOLUSDT", "id": 1, "side": "Buy", "size": 1}
            await exchange.send({"table": "orderBookL2", "action": "update", "data": [bad]})
            await trio.sleep(5)
            assert set(books.books) == {"XBTUSD", "SOLUSDT"} and phantom.stale and tables.stale == {}
            assert [books.books[symbol] for symbol in ("XBTUSD", "SOLUSDT")] == mine, "the live books stay the same"
            assert not any(book.stale for book in mine) and [book.best_bid for book in mine] == [(99.0, 10)] * 2
            assert not tables.storage.orderbook["ETHUSD"]["Buy"] and tables.storage.orderbook["SOLUSDT"]["Buy"]

            exchange.partials["orderBookL2:ETHUSD"] = partial_of("orderBookL2:ETHUSD", [level(98, "Buy", 7, "ETHUSD")])
            await connection.subscribe("orderBookL2:ETHUSD")
            assert await books.ready("ETHUSD") is phantom and phantom.best_bid == (98.0, 7)


def test_the_last_top_of_a_stale_book_is_the_one_told_also_by_a_delta_of_several_symbols() -> None:
    def row(symbol: str, size: int, id: int = 1) -> Row:
        return {"symbol": symbol, "side": "Buy", "id": id, "size": size, "price": 5.0}

    books = OrderBookMerger()
    apply(books, TableMessage("orderBookL2", "partial", [row("A", 1), row("B", 1)], 1, SOURCE, filter={}))
    apply(books, delta("update", row("A", 6)))
    apply(books, delta("update", row("A", 7), row("B", 8)))
    told = apply(books, delta("update", row("A", 9, id=99)))
    assert [(update.symbol, update.best_bid and update.best_bid.size, update.stale) for update in told] == [
        ("A", 7, True), ("B", 8, True)
    ]  # fmt: skip
