"""What was really received in 2021 gives exactly the books, and the counts, that are known of it."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitmex_streams.messages import BookUpdate, RawMessage, TableMessage, TableUpdate
from bitmex_streams.operator import Operator
from bitmex_streams.sections.decoder import Decoder
from bitmex_streams.sections.orderbook import OrderBookMerger
from bitmex_streams.sections.tables import TableApplier

DATA = Path(os.environ.get("BITMEX_STREAMS_DATA") or Path(__file__).parents[2] / "shared" / "data")
CAPTURES = DATA / "captures"
pytestmark = pytest.mark.skipif(not CAPTURES.is_dir(), reason="no captures: BITMEX_STREAMS_DATA says where they are")


def recorded() -> Iterator[RawMessage]:
    with gzip.open(CAPTURES / "bitmex-2021-07-22.ndjson.gz", "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            _, _, message = line.strip().partition(" ")
            yield RawMessage(number, message, "capture", number)


def through(item: Any, operators: list[Operator]) -> Iterator[Any]:
    if not operators:
        yield item
        return
    for out in operators[0].process(item):
        yield from through(out, operators[1:])


def books_of(merger: OrderBookMerger) -> dict[str, Any]:
    found = {}
    for symbol, book in merger.books.items():
        sides = [[[level.price, level.size] for level in side] for side in (book.bids, book.asks)]
        assert book.best_bid is not None and book.best_ask is not None
        found[symbol] = {
            "bids": len(book.bids),
            "asks": len(book.asks),
            "best_bid": list(book.best_bid),
            "best_ask": list(book.best_ask),
            "sha256": hashlib.sha256(json.dumps(sides).encode()).hexdigest(),
        }
    return found


def count(counts: dict[str, Any], item: TableMessage | TableUpdate) -> None:
    of_action = counts.setdefault(item.table, {}).setdefault(item.action, [0, 0])
    of_action[0] += 1
    of_action[1] += len(item.rows)


@pytest.mark.parametrize("with_tables", [False, True])
def test_a_recorded_half_minute_gives_the_known_books_and_counts(with_tables: bool) -> None:
    expected = json.loads((CAPTURES / "bitmex-2021-07-22.expected.json").read_text())
    decoder, merger = Decoder(on_error="raise"), OrderBookMerger()
    tables: list[Operator] = [TableApplier()] if with_tables else []
    counts: dict[str, Any] = {}
    updates: list[BookUpdate] = []
    for raw in recorded():
        for item in through(raw, [decoder, *tables]):
            if isinstance(item, TableMessage | TableUpdate):
                count(counts, item)
            updates += merger.process(item)
    assert books_of(merger) == expected["books"]
    assert counts == expected["messages"]
    assert len(updates) == sum(messages for messages, _ in expected["messages"]["orderBookL2"].values())
    assert not any(update.stale for update in updates)


@pytest.mark.parametrize(
    "path", sorted((DATA / "messages").glob("*.json")) or ["none"], ids=lambda path: Path(path).stem
)
def test_single_messages_of_later_years_are_understood(path: Path) -> None:
    (item,) = Decoder().process(RawMessage(0, path.read_bytes(), str(path)))
    if isinstance(item, TableMessage):
        tables = TableApplier()
        (update,) = tables.process(item)
        assert (update.action, update.rows) == ("partial", item.rows)
        assert tables.stale == {}
