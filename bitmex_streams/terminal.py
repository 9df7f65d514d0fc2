"""What a terminal shows of a pipeline: a ladder for each book, an account, the newest rows of each table, a line of
status.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from heapq import nlargest
from itertools import islice
from typing import Any, NamedTuple

import trio
from rich import box
from rich.cells import cell_len
from rich.columns import Columns
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from .messages import (
    Connected,
    Disconnected,
    ErrorMessage,
    Fill,
    FillsMissing,
    MarginState,
    OrderState,
    Position,
    Row,
    StateLost,
)
from .orderbook import OrderBook
from .sections.connection import Connection
from .sections.fills import Fills
from .sections.margin import Margin
from .sections.orderbook import OrderBookMerger
from .sections.orders import Orders
from .sections.positions import Positions
from .sections.tables import TableApplier
from .storage import BOOK_TABLES
from .tap import Tap
from .timestamps import to_iso

__all__ = ["AccountView", "Terminal", "View", "table", "tops"]

LADDER_WIDTH = 42
ACCOUNT_WIDTH = 38
ACCOUNT_LINES = 8  # at least: a head and a row of each of its tables
TOPS_WIDTH = 96
MAX_DEPTH = 15
LONG_TEXT, SHORT_TEXT = 40, 14  # columns: a text that may be cut, and to how few
SLOW = 1.0  # s that a message waits before its lag is worth a warning
COLUMNS: dict[str, tuple[str, ...]] = {  # of tables with more than fit
    "trade": ("timestamp", "symbol", "side", "size", "price", "tickDirection"),
    "instrument": ("symbol", "state", "bidPrice", "askPrice", "lastPrice", "markPrice", "volume24h", "openInterest"),
    "order": ("ordStatus", "symbol", "side", "price", "orderQty", "leavesQty", "timestamp", "clOrdID"),
    "execution": ("execType", "symbol", "side", "lastQty", "lastPx", "ordStatus", "timestamp", "clOrdID"),
    "position": ("symbol", "currentQty", "avgEntryPrice", "markPrice", "unrealisedPnl", "realisedPnl", "currency"),
    "margin": ("currency", "walletBalance", "marginBalance", "availableMargin", "initMargin", "maintMargin"),
    "wallet": ("currency", "amount", "deposited", "withdrawn", "timestamp"),
    "transact": ("transactTime", "transactType", "currency", "amount", "transactStatus"),
}
TIMES = {"order": "timestamp", "execution": "timestamp", "transact": "transactTime"}
"""Of tables that are not in the order of their time: by what their newest rows are found."""
AMOUNTS = {
    "position": {"unrealisedPnl", "realisedPnl"},
    "margin": {"walletBalance", "marginBalance", "availableMargin", "initMargin", "maintMargin"},
    "wallet": {"amount", "deposited", "withdrawn"},
    "transact": {"amount"},
}
"""Columns in the smallest unit of their row's currency."""
COLORS = {"Buy": "green", "Sell": "red"}
UNITS = {"XBt": ("XBT", 8), "USDt": ("USDT", 6)}
"""The currencies that amounts are shown in, and how many decimals their smallest unit is."""


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

    ``feed``, ``tables``, ``books``, ``account``: the source of a running pipeline, and the sections that keep what is
    shown; of the tables, those that are ``hidden`` are not. ``drawn``: what was drawn last.
    """

    def __init__(
        self,
        feed: Any,
        tables: TableApplier,
        books: Sequence[OrderBookMerger],
        account: AccountView | None = None,
        hidden: Collection[str] = (),
    ) -> None:
        self._connection = feed if isinstance(feed, Connection) else None
        self._source = getattr(feed, "source", "")
        self._tables = tables
        self._books = books
        self._account = account
        self._hidden = {*BOOK_TABLES, *hidden}
        self._state = "waiting for"
        self._style = "bold yellow"
        self._trouble = ""
        self.drawn: Group | None = None
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
                        self._state, self._style, self._trouble = "connected to", "bold green", ""
                    case Disconnected():
                        again = ", connecting again:" if self._connection else f" ({item.code}) from"
                        self._state, self._style = f"disconnected{again}", "bold red"
                    case StateLost() if item.topic is not None:  # it was given up; the others are stale, or fresh again
                        self._trouble = item.reason
                    case ErrorMessage():
                        self._trouble = item.error
        except trio.EndOfChannel:
            return False
        except trio.WouldBlock:  # what the tap conflated away was a message too
            count = self._connection.stats.messages if self._connection else self._taken + news.dropped
            self._counts.append((trio.current_time(), count))
            return True

    def end(self) -> None:
        """The stream has ended, of itself or by an error."""
        self._counts.clear()
        if self._connection:
            self._state, self._style = "disconnected from", "bold yellow"
        else:
            self._state, self._style = "the end of", "bold"

    @property
    def begun(self) -> bool:
        """Whether there was anything to show yet."""
        return bool(self._received or (self._connection and self._connection.stats.connections))

    def draw(self, width: int, height: int) -> Group:
        """All of it, for a terminal of so many columns and lines."""
        self.drawn = Group(*self._parts(width, height))
        return self.drawn

    def _parts(self, width: int, height: int) -> list[Any]:
        storage = self._tables.storage
        books = [book for merger in self._books for book in merger.books.values()]
        others = [name for name in storage.tables if name not in self._hidden]
        watched = {book.symbol for book in books}
        parts: list[Any] = self._status()
        drawn: dict[str, list[Any]] = {}
        lines = height - len(parts)  # each table takes a blank line, title, head, rule, and its rows
        ladders = len(books) * LADDER_WIDTH if len(books) * LADDER_WIDTH <= width + 1 else 0
        beside = self._account if ladders and width - ladders >= ACCOUNT_WIDTH else None
        below = self._account if beside is None else None
        below_lines = max(ACCOUNT_LINES, lines // 3) if below else 0
        lines -= below_lines + 1 if below else 0
        if ladders:
            room = max(lines // 2, lines - (7 if beside else 9) * len(others))
            depth = max(1, min(MAX_DEPTH, (room - 5) // 2))
            drawing: Any = Columns([ladder(book, depth) for book in books])
            if beside:
                grid = Table.grid(padding=0)
                grid.add_column(width=ladders)
                grid.add_column(width=width - ladders)
                grid.add_row(drawing, Group(*beside.draw(width - ladders, 2 * depth + 4, watched)))
                drawing = grid
            parts += "", drawing
            lines -= 2 * depth + 5
        elif books:
            books = books[: max(1, lines // 2)]
            parts += "", tops(books, width)
            lines -= len(books) + 4
        # The shortest first: what an empty or short table leaves of its share, the others have.
        for index, name in enumerate(sorted(others, key=lambda name: len(storage.data[name]))):
            rows, left = storage.data[name], len(others) - index
            timed = "timestamp" in storage.keys[name]
            share = max(1, lines // left - 4)
            if hidden := 0 if timed else max(0, len(rows) - share):
                share, hidden = max(1, share - 1), len(rows) - max(1, share - 1)
            if timed:
                shown = [rows[key] for key in islice(reversed(rows), share)]
            elif time := TIMES.get(name):
                shown = nlargest(share, rows.values(), key=partial(text_in, column=time))
            else:
                shown = list(islice(rows.values(), share))
            drawn[name] = [latest(name, shown, width), *([Text(f"... {hidden:,} more", "dim")] if hidden else [])]
            lines -= len(shown) + 4 if shown else 2
        for name in others:
            parts += "", *drawn[name]
        if below:
            parts += "", *below.draw(width, below_lines, watched)
        return parts

    def _status(self) -> list[Any]:
        """The lines on top: what is watched, how it does, and what is wrong with it."""
        first = Text.assemble((self._state, self._style), f" {self._source}")
        if self._received:
            first.append(f"   {to_iso(self._received)}")
        lines = [first]
        health: list[str | tuple[str, str]] = []
        if len(self._counts) > 1:
            (since, before), (now, count) = self._counts[0], self._counts[-1]
            health.append(f"{(count - before) / (now - since):,.0f} messages/s")
        if self._connection:
            stats = self._connection.stats
            slow = "red" if stats.lag >= SLOW else ""
            health.append((f"lag {stats.lag * 1000:,.0f} ms" if stats.lag < 1 else f"lag {stats.lag:,.1f} s", slow))
            health.append((f"waiting {stats.waiting:,}", slow))
            health += f"reconnects {stats.reconnects:,}", f"resyncs {stats.resyncs:,}"
        if health:
            lines.append(Text("   ").join(Text.assemble(part) for part in health))
        stale = self._tables.stale
        why = next(iter(stale.values()), "").removeprefix(f"{self._source} ")
        if trouble := f"stale: {', '.join(stale)} ({why})" if stale else self._trouble:
            lines.append(Text(trouble, "red"))
        for line in lines:
            line.no_wrap, line.overflow = True, "ellipsis"
        return [*lines]


class Column(NamedTuple):
    """A column of a compact table: what it shows of an item. ``rank``: of those that are left out where there is no
    room, the highest first; 0: it stays.
    """

    name: str
    shows: Callable[[Any], str | Text]
    rank: int = 0
    right: bool = True


class LastFills(Fills):
    """Fills that remember whether some may be missing."""

    incomplete = False

    def process(self, item: Any) -> Iterable[Any]:
        told = super().process(item)
        self.incomplete = self.incomplete or any(type(item) is FillsMissing for item in told)
        return told


class AccountView:
    """The sections that follow an account, and how they are shown: positions, margin, open orders, the last fills."""

    def __init__(self) -> None:
        self.orders = Orders()
        self.fills = LastFills(keep=1000)
        self.positions = Positions()
        self.margin = Margin()
        self.sections = self.orders, self.fills, self.positions, self.margin

    def draw(self, width: int, height: int, watched: Collection[str]) -> list[Any]:
        """Compact tables, of so many columns and lines together; the symbols that are ``watched`` come first.

        A title tells where some rows have no room; what cannot be trusted is told above them.
        """
        positions = sorted(self.positions.values(), key=lambda item: (item.symbol not in watched, item.size == 0))
        orders = list(self.orders.open.values())
        orders.sort(key=lambda order: (order.symbol not in watched, order.symbol, -(order.price or 0)))
        shown: dict[str, tuple[Any, Sequence[Any]]] = {
            "positions": (self.positions, positions),
            "margin": (self.margin, list(self.margin.values())),
            "orders": (self.orders, orders),
            "fills": (self.fills, list(islice(reversed(self.fills.recent), height))),
        }
        stale = [name for name, (section, items) in shown.items() if section.stale and items]
        drawn: list[Any] = []
        if stale:
            drawn.append(Text(f"STALE {', '.join(stale)}", "yellow"))
        if self.fills.incomplete:
            drawn.append(Text("some fills may be missing", "yellow"))
        gap = height >= 2 * ACCOUNT_LINES
        lines = height - len(drawn) - len(shown) - (len(shown) - 1) * gap
        shares: dict[str, int] = {}
        for index, name in enumerate(sorted(shown, key=lambda name: len(shown[name][1]))):  # as for the other tables
            shares[name] = min(len(shown[name][1]), max(0, lines // (len(shown) - index)))
            lines -= shares[name]
        for index, (name, (section, items)) in enumerate(shown.items()):
            title = Text(name if items else f"{name}: {'not known' if section.stale else 'none'}", "bold")
            if len(items) > shares[name] and name != "fills":
                title.append(f" {shares[name]}/{len(items)}")
            drawn += [""] * (gap and index > 0) + compact(
                title, ACCOUNT_COLUMNS[name], items[: shares[name]], width
            )
        return drawn


def compact(title: Text, columns: Sequence[Column], items: Sequence[Any], width: int) -> list[Any]:
    """A table with its title in place of the name of its first column; of all names where there is no room for it."""
    if not items:
        return [title]
    names = [title, *(Text(column.name) for column in columns[1:])]
    cells = [[column.shows(item) for item in items] for column in columns]
    widths = [1 + max(map(len, (name, *shown))) for name, shown in zip(names, cells, strict=True)]
    chosen = sorted(range(len(columns)), key=lambda index: columns[index].rank)
    while sum(widths[index] for index in chosen) > width + 1 and columns[chosen[-1]].rank:
        chosen.pop()
    fits = sum(widths[index] for index in chosen) <= width + 1
    made = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim", show_header=fits)
    chosen.sort()
    for index in chosen:
        made.add_column(names[index], justify="right" if columns[index].right else "left", no_wrap=True)
    for row, item in enumerate(items):
        made.add_row(*(cells[index][row] for index in chosen), style="dim" if getattr(item, "stale", False) else "")
    return [made] if fits else [title, made]


def amount(value: int, currency: str) -> str:
    """An amount of the smallest unit of a currency, in the unit that people count in."""
    _, places = UNITS.get(currency, ("", 0))
    return f"{value / 10**places:,.{places}f}"


def profit(value: int, currency: str) -> Text:
    """A profit or loss, with its sign and unit."""
    unit, _ = UNITS.get(currency, (currency, 0))
    color = "green" if value > 0 else "red" if value else ""
    return Text(f"{'+' * (value > 0)}{amount(value, currency)} {unit}", color)


def side(item: OrderState | Fill) -> Text:
    return Text(item.side, COLORS.get(item.side, ""))


def role(fill: Fill) -> str:
    return "" if fill.is_maker is None else "maker" if fill.is_maker else "taker"


def position_column(name: str, field: str, rank: int = 0) -> Column:
    def shows(position: Position) -> Text:
        return profit(getattr(position, field), position.currency)

    return Column(name, shows, rank)


def margin_column(name: str, field: str, rank: int = 0) -> Column:
    def shows(margin: MarginState) -> str:
        return amount(getattr(margin, field), margin.currency)

    return Column(name, shows, rank)


ACCOUNT_COLUMNS: dict[str, Sequence[Column]] = {
    "positions": (
        Column("symbol", lambda position: position.symbol, right=False),
        Column("size", lambda position: number(position.size)),
        Column("entry", lambda position: number(position.average_entry_price), 1),
        Column("mark", lambda position: number(position.mark_price), 2),
        position_column("unrealized", "unrealized", 3),
        position_column("realized", "realized", 4),
        position_column("P&L", "net"),
    ),
    "margin": (
        Column("currency", lambda margin: UNITS.get(margin.currency, (margin.currency, 0))[0], right=False),
        margin_column("wallet", "wallet_balance"),
        margin_column("balance", "margin_balance", 1),
        margin_column("available", "available_margin"),
    ),
    "orders": (
        Column("symbol", lambda order: order.symbol, right=False),
        Column("side", side, right=False),
        Column("price", lambda order: "market" if order.price is None else number(order.price)),
        Column("size", lambda order: number(order.size)),
        Column("filled", lambda order: number(order.filled)),
        Column("status", lambda order: order.status, 1, right=False),
        Column("client order id", lambda order: order.client_order_id, 2, right=False),
    ),
    "fills": (
        Column("time", lambda fill: (fill.timestamp or "")[11:19], right=False),
        Column("symbol", lambda fill: fill.symbol, right=False),
        Column("side", side, right=False),
        Column("size", lambda fill: number(fill.size)),
        Column("price", lambda fill: number(fill.price)),
        Column("", role, 1, right=False),
        Column("fee", lambda fill: amount(fill.fee, fill.currency), 2),
    ),
}  # fmt: skip


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
    plain = [column for column, value in rows[0].items() if isinstance(value, str | int | float)]
    shown: dict[str, list[str]] = {}
    room, cut = width + 1, 0
    for column in COLUMNS.get(name) or plain:
        cells = cells_of(name, column, rows)
        wide = max(map(cell_len, (column, *cells))) + 3  # with what is between columns
        if not shown or wide <= room:
            shown[column] = cells
            room -= wide
        elif wide >= LONG_TEXT and room >= SHORT_TEXT:
            shown[column] = cells
            cut = room - 3
            break
    numeric = {column for row in rows for column in shown if isinstance(row.get(column), int | float)}
    made = table(name, *shown, right=numeric)
    if cut:
        made.columns[-1].max_width = cut
    for index, row in enumerate(rows):
        made.add_row(*(Text(cells[index]) for cells in shown.values()), style=COLORS.get(row.get("side", "")))
    return made


def cells_of(name: str, column: str, rows: Sequence[Row]) -> list[str]:
    """A column of a table, as it is shown: amounts in the unit that people count in, prices below each other."""
    if column in AMOUNTS.get(name, ()):
        return [amount_in(row, column) for row in rows]
    if column == "currency" and name in AMOUNTS:
        names = [text_in(row, column) for row in rows]
        return [UNITS.get(name, (name, 0))[0] for name in names]
    values = [row.get(column) for row in rows]
    places = max(map(decimals, values)) if column.lower().endswith("price") else 0
    return [number(value, places) for value in values]


def text_in(row: Row, column: str) -> str:
    return str(row.get(column) or "")


def amount_in(row: Row, column: str) -> str:
    value, currency = row.get(column), text_in(row, "currency")
    return amount(value, currency) if type(value) is int and currency in UNITS else number(value)


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
