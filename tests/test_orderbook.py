"""Books: best first, frozen where they say so, and equal to a naive model whatever happens to them."""

from __future__ import annotations

import pickle
import sys
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitmex_streams.messages import Level
from bitmex_streams.orderbook import BookSnapshot, OrderBook


def level(id: int, side: str, price: Any, size: int) -> dict[str, Any]:
    return {"symbol": "XBTUSD", "id": id, "side": side, "price": price, "size": size}


@pytest.fixture
def book() -> OrderBook:
    made = OrderBook("XBTUSD")
    made.load(
        [level(1, "Buy", 99, 10), level(2, "Buy", 98.5, 30), level(3, "Sell", 101, 20), level(4, "Sell", 102.0, 5)]
    )
    return made


def test_both_sides_are_best_first_with_float_prices(book: OrderBook) -> None:
    assert list(book.bids) == [(99.0, 10), (98.5, 30)]
    assert book.asks[:1] == [Level(101.0, 20)]
    assert book.asks[-1] == (102.0, 5)
    assert (book.best_bid, book.best_ask) == ((99.0, 10), (101.0, 20))
    assert type(book.best_bid.price) is float if book.best_bid else False
    assert (book.mid_price, book.spread, book.crossed, len(book)) == (100.0, 2.0, False, 4)


def test_deltas_need_no_price_and_say_what_changed(book: OrderBook) -> None:
    assert book.apply("update", [{"symbol": "XBTUSD", "id": 1, "side": "Buy", "size": 11}]) == [("Buy", 99.0, 11)]
    assert book.best_bid == (99.0, 11)
    assert book.apply("delete", [{"symbol": "XBTUSD", "id": 1, "side": "Buy"}]) == [("Buy", 99.0, 0)]
    assert book.best_bid == (98.5, 30)
    assert book.apply("insert", [level(1, "Sell", 99, 7)]) == [("Sell", 99.0, 7)]
    assert book.best_ask == (99.0, 7)


def test_a_price_that_changes_moves_its_level(book: OrderBook) -> None:
    assert book.apply("update", [level(2, "Buy", 100, 3)]) == [("Buy", 98.5, 0), ("Buy", 100.0, 3)]
    assert list(book.bids) == [(100.0, 3), (99.0, 10)]


@pytest.mark.parametrize(
    ("action", "row"),
    [
        ("update", level(9, "Buy", 1.0, 1)),
        ("delete", level(1, "Sell", 1.0, 1)),
        ("insert", level(1, "Buy", 99.0, 1)),
        ("insert", level(9, "Up", 99.0, 1)),
        ("insert", level(9, "Buy", "99", 1)),
        ("insert", level(9, "Buy", 99.0, 0)),
        ("insert", level(9, "Buy", 10**400, 1)),
        ("insert", {"symbol": "XBTUSD"}),
        ("update", {"id": [], "side": "Buy"}),
        ("update", {"id": 1, "side": "Buy", "size": "many"}),
    ],
)
def test_what_contradicts_the_book_or_is_no_level_is_a_value_error(
    book: OrderBook, action: Any, row: dict[str, Any]
) -> None:
    before = book.snapshot()
    with pytest.raises(ValueError, match="level"):
        book.apply(action, [row])
    assert book.snapshot() == before


def test_a_partial_with_a_bad_row_changes_nothing(book: OrderBook) -> None:
    before = book.snapshot()
    with pytest.raises(ValueError, match="no level"):
        book.load([level(1, "Buy", 5.0, 1), level(2, "Buy", None, 1)])
    assert book.snapshot() == before


def test_a_snapshot_cannot_be_changed_and_pickles(book: OrderBook) -> None:
    top = book.snapshot(1)
    assert (top.bids, top.asks) == (((99.0, 10),), ((101.0, 20),))
    book.apply("delete", [level(1, "Buy", 99.0, 0)])
    assert top.best_bid == (99.0, 10)
    with pytest.raises(AttributeError, match="frozen"):
        top.stale = True
    with pytest.raises(AttributeError, match="frozen"):
        del top.bids
    assert pickle.loads(pickle.dumps(top)) == top
    sent = pickle.loads(pickle.dumps(book))
    assert isinstance(sent, BookSnapshot)
    assert sent == book.snapshot()
    assert repr(sent) == "<BookSnapshot XBTUSD: bid 30 @ 98.5, ask 20 @ 101.0, 3 levels>"


def test_measures_of_the_top_of_the_book(book: OrderBook) -> None:
    assert book.imbalance() == (10 - 20) / 30
    assert book.imbalance(2) == (40 - 25) / 65
    assert book.vwap("Buy", 25) == (101 * 20 + 102 * 5) / 25
    assert book.vwap("Sell", 10) == 99.0
    assert book.vwap("Sell", 41) is None
    assert book.depth(1) == ([(99.0, 10)], [(101.0, 20)])
    assert OrderBook("XBTUSD").imbalance() is None
    for wrong in (lambda: book.vwap("Up", 1), lambda: book.vwap("Buy", 0), lambda: book.depth(-1)):  # type: ignore[arg-type]
        with pytest.raises(ValueError):
            wrong()


def test_an_empty_book_has_no_top() -> None:
    empty = OrderBook("XBTUSD")
    assert (empty.best_bid, empty.best_ask, empty.mid_price, empty.spread, empty.crossed) == (
        None,
        None,
        None,
        None,
        False,
    )
    assert empty.stale
    assert bool(empty)


def test_decimal_prices_stay_decimal() -> None:
    book = OrderBook("XBTUSD")
    book.load([level(1, "Buy", Decimal("99.5"), 10), level(2, "Sell", Decimal("100.5"), 10)])
    assert book.mid_price == Decimal(100)
    assert book.vwap("Buy", 5) == Decimal("100.5")


changes = st.lists(
    st.tuples(st.integers(1, 9), st.sampled_from(("Buy", "Sell")), st.integers(1, 5), st.integers(1, 9)), max_size=60
)


@given(changes)
def test_a_book_equals_a_naive_model_also_where_levels_share_a_price(drawn: list[tuple[int, str, int, int]]) -> None:
    book, model = OrderBook("XBTUSD"), dict[tuple[str, int], tuple[float, int]]()
    for id, side, price, size in drawn:
        action: Any = "insert" if (side, id) not in model else "delete" if size > 6 else "update"
        book.apply(action, [level(id, side, price, size)])
        if action == "delete":
            del model[side, id]
        else:
            model[side, id] = float(price), size
        for name, ladder in (("Buy", book.bids), ("Sell", book.asks)):
            expected = [lvl for (of, _), lvl in model.items() if of == name]
            assert sorted(ladder) == sorted(expected)
            prices = [lvl.price for lvl in ladder]
            assert prices == sorted(prices, reverse=name == "Buy")
            assert ladder.best == (ladder[0] if ladder else None)
            assert ladder[:3] == list(ladder)[:3]
            assert len(ladder) == len(expected)


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["insert", "update", "delete", "best", "depth"]), st.integers(0, 11), st.integers(1, 9)
        ),
        max_size=60,
    ),
    begin=st.integers(0, 12),
    side=st.sampled_from(["Buy", "Sell"]),
    moved=st.booleans(),
)
def test_whenever_it_is_looked_at_each_side_is_in_order_and_its_best_is_the_first(
    steps: list[tuple[str, int, int]], begin: int, side: Any, moved: bool
) -> None:
    """What was inserted and deleted is put in order when somebody looks: when that is must make no difference."""
    book = OrderBook("XBTUSD")
    # Levels in the middle, at whose ids others may come later (with ``moved``: some of them at other prices).
    levels = {id: (float(id // (1 + moved)), 1) for id in range(12)[:begin]}
    book.load([{"side": side, "id": id, "price": price, "size": size} for id, (price, size) in levels.items()])
    ladder = book.bids if side == "Buy" else book.asks
    for what, id, size in steps:
        row: dict[str, Any] = {"side": side, "id": id}
        if what == "insert" and id not in levels:
            levels[id] = float(id + moved * (size % 2)), size
            book.apply("insert", [row | {"price": levels[id][0], "size": size}])
        elif what == "update" and id in levels:
            levels[id] = levels[id][0], size
            book.apply("update", [row | {"size": size}])
        elif what == "delete" and id in levels:
            del levels[id]
            book.apply("delete", [row])
        prices = sorted((price for price, _ in levels.values()), reverse=side == "Buy")
        if what == "best":
            assert (None if ladder.best is None else ladder.best.price) == (prices[0] if prices else None)
        elif what == "depth":
            assert [level.price for level in ladder[:3]] == prices[:3]
            assert ladder.best == (ladder[0] if levels else None)
    assert sorted(ladder) == sorted(levels.values())
    assert [price for price, _ in ladder] == sorted((price for price, _ in levels.values()), reverse=side == "Buy")
    assert ladder.best == (ladder[0] if levels else None)


def test_levels_that_come_and_go_unseen_take_no_room() -> None:
    book = OrderBook("XBTUSD")
    deep = [level(id, "Buy", float(id), 1) for id in range(100)]  # none of them is the best: nobody has to look there
    book.load([*deep, level(-1, "Buy", 1e6, 1)])
    tracemalloc.start()
    for id in range(100, 50_000):
        book.apply("delete", [level(id - 100, "Buy", None, 0)])
        book.apply("insert", [level(id, "Buy", float(id), 1)])
        assert book.best_bid == (1e6, 1)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 100_000
    assert [price for price, _ in book.bids[:3]] == [1e6, 49_999.0, 49_998.0]
    assert len(book.bids) == 101


def test_who_looks_from_another_thread_sees_the_same_and_changes_nothing() -> None:
    looks: list[Callable[[OrderBook], Any]] = [
        lambda book: book.best_bid,
        lambda book: book.best_ask,
        lambda book: book.depth(2),
        lambda book: list(book.bids) + list(book.asks),
        lambda book: book.asks[-1],
        lambda book: book.snapshot(),
        lambda book: book.vwap("Buy", 3),
        repr,
    ]
    book = OrderBook("XBTUSD")
    book.load([level(id, "Buy" if id < 10 else "Sell", 100.0 + id, id) for id in range(1, 20)])
    book.apply("delete", [{"id": id, "side": side} for id, side in ((9, "Buy"), (10, "Sell"))])
    book.apply("insert", [{"id": 30, "side": "Sell", "price": 115.5, "size": 1}])
    with ThreadPoolExecutor(1) as pool:
        seen = [pool.submit(look, book).result() for look in looks]
    assert [(ladder._fresh, set(ladder._gone)) for ladder in (book.bids, book.asks)] == [(set(), {9}), ({30}, {10})]
    assert seen == [look(book) for look in looks]


def test_a_book_that_is_looked_at_from_another_thread_all_the_time_stays_right() -> None:
    random, ended = Random(1), False
    book, model = OrderBook("XBTUSD"), dict.fromkeys(range(500), 1)
    book.load([{"id": id, "side": "Buy", "price": 100.0 + id, "size": 1} for id in model])

    def look() -> int:
        looks = 0
        while not ended:
            levels = [level.price for level in book.bids]
            assert levels == sorted(levels, reverse=True)
            assert book.best_bid is not None and book.depth(10)[0]
            looks += 1
        return looks

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(1) as pool:
            looking = pool.submit(look)
            for size in range(1, 20_000):
                id = random.randrange(500)
                if id in model:
                    book.apply("delete", [{"id": id, "side": "Buy"}])
                    del model[id]
                else:
                    book.apply("insert", [{"id": id, "side": "Buy", "price": 100.0 + id, "size": size}])
                    model[id] = size
            ended = True
            assert looking.result() > 10
    finally:
        sys.setswitchinterval(interval)
    assert list(book.bids) == [(100.0 + id, model[id]) for id in sorted(model, reverse=True)]
