"""What a terminal shows of a pipeline: a ladder for each book, the newest rows of each table, a line of status."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import trio
from rich import box
from rich.columns import Columns
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from .messages import Connected, Disconnected, ErrorMessage, Row, StateLost
from .orderbook import OrderBook
from .sections.orderbook import OrderBookMerger
from .sections.tables import TableApplier
from .storage import BOOK_TABLES
from .tap import Tap
from .timestamps import to_iso

__all__ = ["Terminal", "View", "table", "tops"]

LADDER_WIDTH = 40
TOPS_WIDTH = 96
MAX_DEPTH = 15
COLUMNS: dict[str, tuple[str, ...]] = {  # of tables with more than fit
    "trade": ("timestamp", "symbol", "side", "size", "price", "tickDirection"),
    "instrument": ("symbol", "state", "bidPrice", "askPrice", "lastPrice", "markPrice", "volume24h", "openInterest"),
}
COLORS = {"Buy": "green", "Sell": "red"}


class Terminal(Console):
    """A console that is wide where it is a file or a pipe, and leaves it to its user what a closed pipe means."""

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False)
        if not self.is_terminal:
            self.width = 200

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class View:
    """Read from the live books and tables whenever it is drawn, however much came in between.

    ``source``: what is shown, in words. ``tables``, ``books``: the sections of a running pipeline that keep them.
    """

    def __init__(self, source: str, tables: TableApplier, books: Sequence[OrderBookMerger]) -> None:
        self._source = source
        self._tables = tables
        self._books = books
        self._state = "waiting for"
        self._trouble = ""
        self._received = 0
        self._taken = 0
        self._counts: deque[tuple[float, int]] = deque(maxlen=20)  # (time, messages so far)

    def take(self, news: Tap) -> bool:
        """Learn what a `latest` tap on the decoder has; False when the stream has ended."""
        try:
            while True:
                item = news.receive_nowait()
                self._taken += 1
                self._received = max(self._received, item.received)
                match item:
                    case Connected():
                        self._state = "connected to"
                    case Disconnected():
                        self._state = f"disconnected ({item.code}) from"
                    case StateLost():
                        self._trouble = item.reason
                    case ErrorMessage():
                        self._trouble = item.error
        except trio.EndOfChannel:
            return False
        except trio.WouldBlock:  # what the tap conflated away was a message too
            self._counts.append((trio.current_time(), self._taken + news.dropped))
            return True

    def draw(self, width: int, height: int) -> Group:
        """All of it, for a terminal of so many columns and lines."""
        storage = self._tables.storage
        books = [book for merger in self._books for book in merger.books.values()]
        others = [name for name in storage.tables if name not in BOOK_TABLES]
        parts: list[Any] = [self._status()]
        drawn: dict[str, list[Any]] = {}
        lines = height - 2  # the status may take two; each table: a blank line, title, head, rule, and its rows
        if books and len(books) * LADDER_WIDTH <= width:
            room = max(lines // 2, lines - 9 * len(others))
            depth = max(1, min(MAX_DEPTH, (room - 5) // 2))
            parts += "", Columns([ladder(book, depth) for book in books])
            lines -= 2 * depth + 5
        elif books:
            books = books[: max(1, lines // 2)]
            parts += "", tops(books, width)
            lines -= len(books) + 4
        # The shortest first: what an empty or short table leaves of its share, the others have.
        for index, name in enumerate(sorted(others, key=lambda name: len(storage.data[name]))):
            rows, left = storage.data[name], len(others) - index
            keys = reversed(rows) if "timestamp" in storage.keys[name] else iter(rows)
            share = max(1, lines // left - 4)
            if hidden := 0 if "timestamp" in storage.keys[name] else max(0, len(rows) - share):
                share, hidden = max(1, share - 1), len(rows) - max(1, share - 1)
            shown = [rows[key] for key in islice(keys, share)]
            drawn[name] = [latest(name, shown, width), *([Text(f"... {hidden:,} more", "dim")] if hidden else [])]
            lines -= len(shown) + 4 if shown else 2
        for name in others:
            parts += "", *drawn[name]
        return Group(*parts)

    def _status(self) -> Text:
        style = "bold green" if self._state == "connected to" else "bold yellow"
        text = Text.assemble((self._state, style), f" {self._source}", no_wrap=True, overflow="ellipsis")
        if self._received:
            text.append(f"   {to_iso(self._received)}")
        if len(self._counts) > 1:
            (since, before), (now, count) = self._counts[0], self._counts[-1]
            text.append(f"   {(count - before) / (now - since):,.0f} messages/s")
        stale = self._tables.stale
        trouble = f"stale: {', '.join(stale)} ({next(iter(stale.values()))})" if stale else self._trouble
        return text.append(f"\n{trouble}", "red") if trouble else text


def table(title: str, *columns: str, right: Iterable[str] = ()) -> Table:
    """An empty table; the columns in ``right`` are numbers."""
    made = Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", no_wrap=True)
    return made


def ladder(book: OrderBook, depth: int) -> Table:
    """The ``depth`` best levels of both sides, the highest price on top."""
    bids, asks = book.depth(depth)
    places = max((decimals(level.price) for level in (*bids, *asks)), default=0)
    large = max((level.size for level in (*bids, *asks)), default=0) / 2
    title = f"{book.symbol}  {'' if book.mid_price is None else f'mid {number(book.mid_price)}'}"
    made = table(title + ("  STALE" if book.stale else ""), "bids", "price", "asks", right=("bids", "price"))
    for column in made.columns:
        column.min_width = 11
    for price, size in reversed(asks):
        made.add_row("", Text(number(price, places), "red"), Text(f"{size:,}", "bold" if size > large else ""))
    made.add_row("", Text("" if book.spread is None else f"spread {number(book.spread)}", "dim"), "")
    for price, size in bids:
        made.add_row(Text(f"{size:,}", "bold" if size > large else ""), Text(number(price, places), "green"), "")
    return made


def tops(books: Iterable[OrderBook], width: int) -> Table:
    """The best bid and ask of each book, a line each; where there is room, how many levels it has, and its time."""
    numbers = ("bids", "bid size", "bid", "ask", "ask size", "asks")
    wide = width >= TOPS_WIDTH
    columns = (*numbers, "timestamp") if wide else (*numbers[1:5], "")
    made = table("order books", "symbol", *columns, right=numbers)
    for book in books:
        bid, ask = book.best_bid, book.best_ask
        places = max((decimals(top.price) for top in (bid, ask) if top), default=0)
        bid_cells: tuple[str, ...] = (f"{bid.size:,}", number(bid.price, places)) if bid else ("-", "-")
        ask_cells: tuple[str, ...] = (number(ask.price, places), f"{ask.size:,}") if ask else ("-", "-")
        if wide:
            bid_cells, ask_cells = (f"{len(book.bids):,}", *bid_cells), (*ask_cells, f"{len(book.asks):,}")
        state = "stale" if book.stale else book.timestamp if wide else ""
        made.add_row(book.symbol, *bid_cells, *ask_cells, state)
    return made


def latest(name: str, rows: Sequence[Row], width: int) -> Table | Text:
    """Rows of a table, and of their columns those that fit."""
    if not rows:
        return Text(f"{name}: no rows", "bold")
    plain = (column for column, value in rows[0].items() if isinstance(value, str | int | float))
    columns = (COLUMNS.get(name) or tuple(plain))[: max(1, width // 14)]
    numeric = {column for row in rows for column in columns if isinstance(row.get(column), int | float)}
    made = table(name, *columns, right=numeric)
    prices = [column for column in columns if column.lower().endswith("price")]
    places = {column: max(decimals(row.get(column)) for row in rows) for column in prices}
    for row in rows:
        cells = (number(row.get(column), places.get(column, 0)) for column in columns)
        made.add_row(*map(Text, cells), style=COLORS.get(row.get("side", "")))
    return made


def decimals(value: Any) -> int:
    """How many decimals a number needs."""
    return len(number(value).partition(".")[2]) if isinstance(value, int | float) else 0


def number(value: Any, places: int = 0) -> str:
    """A number as traders write it, without an exponent or zeros at the end; what is none as it is.

    ``places``: decimals to fill up to, for the numbers of a column to stand below each other.
    """
    if places and isinstance(value, int | float):
        return f"{value:,.{places}f}"
    if isinstance(value, float):
        return f"{value:,.10f}".rstrip("0").rstrip(".")
    return "" if value is None else f"{value:,}" if type(value) is int else str(value)
