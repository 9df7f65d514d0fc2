"""Random exchanges of partials, deltas and losses: tables and books equal a naive model after every message.

The model is as simple as the rule: a row is of the latest partial that covers it; its source keeps it up to date until
its state is lost. Where a part answers for a whole that was lost, there was no whole: the other parts that its source
had are back, stale.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bitmex_streams.messages import BookUpdate, Disconnected, Row, StateLost, TableMessage, TableUpdate
from bitmex_streams.sections.orderbook import OrderBookMerger
from bitmex_streams.sections.tables import TableApplier

SYMBOLS = ("XBTUSD", "ETHUSD", "SOLUSDT")
SOURCES = ("ws://one", "ws://two")
KEYS = {"orderBookL2": ("symbol", "id", "side"), "order": ("orderID",), "trade": ()}


def a_day(random: Random, length: int) -> Iterator[tuple[Any, ...]]:
    """Mostly sound deltas, many partials, some contradictions and losses."""
    for _ in range(length):
        source = random.choice((*SOURCES, *SOURCES[:1] * 4))
        table = random.choice(("orderBookL2", "orderBookL2", "order", "trade"))
        fields = [
            (random.choice(SYMBOLS), random.randint(1, 3), random.choice(("Buy", "Sell")), random.randint(1, 99))
            for _ in range(9)
        ]
        kind = random.choices(
            ("partial", "sound", "unsound", "disconnected", "lost", "announced"), (20, 70, 3, 2, 3, 2)
        )[0]
        if kind == "partial":
            yield "partial", source, table, random.choice((None, *SYMBOLS)), fields[: random.choice((0, 3, 9))]
        elif kind in ("sound", "unsound"):
            action = random.choice(("insert", "update", "delete"))
            yield "delta", source, table, action, fields[: random.randint(1, 4)], kind == "sound"
        elif kind == "lost":
            yield "lost", source, random.choice((None, table, f"orderBookL2:{random.choice(SYMBOLS)}"))
        else:
            yield kind, source


def a_row(table: str, symbol: str, number: int, side: str, size: int) -> Row:
    if table == "orderBookL2":  # bids below 100, asks above: never crossed
        price = 100 - number if side == "Buy" else 100 + number
        return {"symbol": symbol, "id": 1000 - number, "side": side, "size": size, "price": price}
    if table == "order":
        return {"orderID": f"{symbol}-{number}", "symbol": symbol, "side": side, "orderQty": size}
    return {"timestamp": f"2026-01-01T00:00:0{number}.000Z", "symbol": symbol, "side": side, "size": size}


class Partial:
    def __init__(self, table: str, symbol: str | None, source: str) -> None:
        self.table, self.symbol, self.source, self.fresh = table, symbol, source, True
        self.topic = f"{table}:{symbol}" if symbol else table
        self.parts: list[Partial] = []  # of the same source, that a whole took the place of


class Model:
    """Lists, searched from end to end."""

    def __init__(self) -> None:
        self.partials: list[Partial] = []
        self.rows: dict[str, list[Row]] = {table: [] for table in KEYS}
        self.pending = dict.fromkeys(SOURCES, 0)
        self.symbols: list[str] = []

    def of(self, table: str, symbol: str) -> Partial | None:
        found = [p for p in self.partials if p.table == table and p.symbol in (None, symbol)]
        return found[-1] if found else None

    def find(self, table: str, row: Row) -> Row | None:
        if not KEYS[table]:
            return None
        return next((r for r in self.rows[table] if all(r[key] == row[key] for key in KEYS[table])), None)

    def partial(self, source: str, table: str, symbol: str | None, rows: list[Row]) -> None:
        new = Partial(table, symbol, source)
        here = [p for p in self.partials if p.table == table]
        if symbol is None:
            new.parts = [q for p in here for q in (p, *p.parts) if q.symbol is not None and q.source == source]
        for whole in [p for p in here if symbol and p.symbol is None and p.source == source and not p.fresh]:
            for part in whole.parts:
                part.fresh = False
            still = {p.symbol for p in here}
            self.partials[:0] = [p for p in {p.symbol: p for p in whole.parts}.values() if p.symbol not in still]
            self.partials.remove(whole)
            self.rows[table] = [row for row in self.rows[table] if self.of(table, row["symbol"])]
        self.partials = [p for p in self.partials if p.table != table or (symbol is not None and p.symbol != symbol)]
        self.partials.append(new)
        self.rows[table] = [row for row in self.rows[table] if symbol not in (None, row["symbol"])] + rows
        if table == "orderBookL2":
            self.symbols += [symbol] if symbol else [row["symbol"] for row in rows]

    def lose(self, source: str, topic: str | None) -> list[str]:
        table, _, symbol = (topic or "").partition(":")
        lost = [
            p
            for p in self.partials
            if p.source == source
            and p.fresh
            and (not table or p.table == table)
            and (not symbol or p.symbol in (None, symbol))
        ]
        for p in lost:
            p.fresh = False
        return [p.topic for p in lost]

    def delta(self, source: str, table: str, action: str, rows: list[Row]) -> list[str]:
        lost: list[str] = []
        new: list[str] = []
        for row in rows:
            partial = self.of(table, row["symbol"])
            if partial is None or not partial.fresh or partial.source != source:
                continue
            old = self.find(table, row)
            if (action == "insert") == (old is None) and (KEYS[table] or action == "insert"):
                if old is not None:
                    at = self.rows[table].index(old)
                    self.rows[table][at : at + 1] = [{**old, **row}] if action == "update" else []
                else:
                    self.rows[table].append(row)
                    if table == "orderBookL2":
                        new.append(row["symbol"])
            else:
                partial.fresh = False
                lost.append(partial.topic)
        self.symbols += [] if lost else new  # what a contradicted message brought is not told
        return lost

    def stale(self) -> set[str]:
        return {p.topic for p in self.partials if not p.fresh or self.pending[p.source]}

    def levels(self, symbol: str, side: str) -> list[tuple[float, int]]:
        found = [
            (r["price"], r["size"]) for r in self.rows["orderBookL2"] if r["symbol"] == symbol and r["side"] == side
        ]
        return sorted(found, reverse=side == "Buy")


def stored(applier: TableApplier, table: str, symbol: str) -> list[Row]:
    data = applier.storage.data.get(table, {})
    if table == "orderBookL2":
        return [row for levels in data.get(symbol, {}).values() for row in levels.values()]
    return [row for row in data.values() if row["symbol"] == symbol]


def in_order(rows: list[Row]) -> list[str]:
    return sorted(repr(sorted(row.items())) for row in rows)


def told(update: BookUpdate) -> tuple[Any, ...]:
    return tuple(getattr(update, field) for field in UPDATE_FIELDS)


UPDATE_FIELDS = [field for field in BookUpdate.__struct_fields__ if field != "book"]


class Run:
    def __init__(self) -> None:
        self.model = Model()
        self.asked: list[str] = []
        self.applier = TableApplier(resync=self.asked.append)
        self.behind, self.direct = OrderBookMerger(), OrderBookMerger()
        self.handed_out: list[tuple[Any, Any]] = []
        self.consumer: dict[str, dict[tuple[str, float], int] | None] = {}  # None: stale
        self.received = 0

    def step(self, step: tuple[Any, ...]) -> None:
        kind, source, *rest = step
        model, lost = self.model, None
        self.received += 1
        item: Any
        if kind == "announced":
            model.pending[source] += 1
            for operator in (self.applier, self.behind, self.direct):
                operator.lose_state(source, "the line is dead")
            return
        if kind == "partial":
            table, symbol, drawn = rest
            distinct = {
                (number, side): a_row(table, symbol or s, number, side, size) for s, number, side, size in drawn
            }
            if table == "order":
                distinct = {(number, ""): row for (number, _), row in distinct.items()}
            filter = {"symbol": symbol} if symbol else {}
            item = TableMessage(
                table,
                "partial",
                list(distinct.values()),
                self.received,
                source,
                KEYS[table],
                {},
                {},
                {"timestamp": "sorted"} if table == "trade" else {},
                filter,
            )
            model.partial(source, table, symbol, list(distinct.values()))
        elif kind == "delta":
            table, action, drawn, legal = rest
            wanted = [a_row(table, *fields) for fields in drawn]
            if legal:  # of what is there, or is not
                there = [row for row in wanted if (model.find(table, row) is None) == (action == "insert")]
                wanted = list({repr([row[key] for key in KEYS[table] or row]): row for row in there}.values())
            if action != "insert" and table == "orderBookL2" and self.received % 2:  # as in 2021
                wanted = [{key: row[key] for key in row if key != "price"} for row in wanted]
            item = TableMessage(table, action, wanted, self.received, source)
            lost = model.delta(source, table, action, wanted)
        elif kind == "disconnected":
            item = Disconnected(self.received, source, 1006, "gone")
            model.pending[source] = max(0, model.pending[source] - 1)
            lost = model.lose(source, None)
        else:
            item = StateLost(self.received, source, "a message that cannot be decoded", rest[0])
            lost = model.lose(source, rest[0])
        self.feed(item, lost or [])

    def feed(self, item: Any, lost: list[str]) -> None:
        updates = list(self.applier.process(item))
        direct = list(self.direct.process(item))
        behind = [out for update in updates for out in self.behind.process(update)]
        for out in (item, *updates):
            if not isinstance(out, Disconnected | StateLost):
                self.handed_out.append((out, copy.deepcopy(out)))
        self.handed_out += [(told(out), copy.deepcopy(told(out))) for out in direct]

        marks = [update for update in updates if update.action == "stale"]
        assert sorted(f"{m.table}:{m.filter['symbol']}" if m.filter else m.table for m in marks) == sorted(lost)
        assert all(isinstance(update, TableUpdate) for update in updates)
        # The order among the symbols of one message is not promised.
        assert sorted(map(told, behind), key=repr) == sorted(map(told, direct), key=repr)
        self.check_tables()
        for merger in (self.direct, self.behind):
            self.check_books(merger)
        self.consume(direct)

    def check_tables(self) -> None:
        assert set(self.applier.stale) == self.model.stale()
        for table in KEYS:
            for symbol in SYMBOLS:
                partial = self.model.of(table, symbol)
                if partial is not None and partial.fresh:
                    expected = [row for row in self.model.rows[table] if row["symbol"] == symbol]
                    assert in_order(stored(self.applier, table, symbol)) == in_order(expected)

    def check_books(self, merger: OrderBookMerger) -> None:
        model = self.model
        for symbol, book in merger.books.items():
            partial = model.of("orderBookL2", symbol)
            assert partial is not None
            assert book.stale == (not partial.fresh or model.pending[partial.source] > 0)
            if partial.fresh:
                assert list(book.bids) == model.levels(symbol, "Buy")
                assert list(book.asks) == model.levels(symbol, "Sell")
                assert book.best_bid == (model.levels(symbol, "Buy") or [None])[0]
                assert book.best_ask == (model.levels(symbol, "Sell") or [None])[0]
                assert all(type(level.price) is float for level in [*book.bids, *book.asks])
        for symbol in model.symbols:
            partial = model.of("orderBookL2", symbol)
            assert partial is None or not partial.fresh or symbol in merger.books

    def consume(self, updates: list[BookUpdate]) -> None:
        """Who only adds up what the updates say has the same book, or knows that it is stale."""
        for update in updates:
            symbol = update.symbol
            if update.stale:
                assert self.consumer[symbol] is not None, "stale is said once"
                self.consumer[symbol] = None
                continue
            if update.changes is None:
                sides = (("Buy", update.book.bids), ("Sell", update.book.asks))
                self.consumer[symbol] = {(side, level.price): level.size for side, levels in sides for level in levels}
                continue
            book = self.consumer.setdefault(symbol, {})
            assert book is not None
            for side, price, size in update.changes:
                if size:
                    book[side, price] = size
                else:
                    del book[side, price]
        for symbol, held in self.consumer.items():
            if held is not None:
                book = self.direct.books[symbol]
                levels = {("Buy", p): s for p, s in book.bids} | {("Sell", p): s for p, s in book.asks}
                assert held == levels


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_tables_and_books_equal_a_naive_model_after_every_message_and_what_was_handed_out_never_changes(
    seed: int,
) -> None:
    run = Run()
    for step in a_day(Random(seed), 60):
        run.step(step)
    for item, as_it_was in run.handed_out:
        assert item == as_it_was
