"""What a terminal shows of a pipeline: a ladder for each book, an account, the newest rows of each table, a line of
status.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import trio
from rich import box
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
COLUMNS: dict[str, tuple[str, ...]] = {  # of tables with more than fit
    "trade": ("timestamp", "symbol", "side", "size", "price", "tickDirection"),
    "instrument": ("symbol", "state", "bidPrice", "askPrice", "lastPrice", "markPrice", "volume24h", "openInterest"),
    "order": ("timestamp", "symbol", "side", "orderQty", "price", "leavesQty", "ordStatus"),
    "execution": ("timestamp", "symbol", "execType", "side", "lastQty", "lastPx", "ordStatus"),
    "position": ("symbol", "currentQty", "avgEntryPrice", "markPrice", "unrealisedPnl", "realisedPnl", "currency"),
    "margin": ("currency", "walletBalance", "marginBalance", "availableMargin", "initMargin", "maintMargin"),
    "wallet": ("currency", "amount", "deposited", "withdrawn", "timestamp"),
    "transact": ("transactTime", "transactType", "currency", "amount", "transactStatus"),
}
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

    ``source``: what is shown, in words. ``tables``, ``books``, ``account``: the sections of a running pipeline that
    keep them; of the tables, those that are ``hidden`` are not shown.
    """

    def __init__(
        self,
        source: str,
        tables: TableApplier,
        books: Sequence[OrderBookMerger],
        account: AccountView | None = None,
        hidden: Collection[str] = (),
    ) -> None:
        self._source = source
        self._tables = tables
        self._books = books
        self._account = account
        self._hidden = {*BOOK_TABLES, *hidden}
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
        others = [name for name in storage.tables if name not in self._hidden]
        watched = {book.symbol for book in books}
        parts: list[Any] = [self._status()]
        drawn: dict[str, list[Any]] = {}
        lines = height - 2  # the status may take two; each table: a blank line, title, head, rule, and its rows
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
            keys = reversed(rows) if "timestamp" in storage.keys[name] else iter(rows)
            share = max(1, lines // left - 4)
            if hidden := 0 if "timestamp" in storage.keys[name] else max(0, len(rows) - share):
                share, hidden = max(1, share - 1), len(rows) - max(1, share - 1)
            shown = [rows[key] for key in islice(keys, share)]
            drawn[name] = [latest(name, shown, width), *([Text(f"... {hidden:,} more", "dim")] if hidden else [])]
            lines -= len(shown) + 4 if shown else 2
        for name in others:
            parts += "", *drawn[name]
        if below:
            parts += "", *below.draw(width, below_lines, watched)
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

        A title tells where some rows have no room.
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
        gap = height >= 2 * ACCOUNT_LINES
        lines = height - len(shown) - (len(shown) - 1) * gap
        shares: dict[str, int] = {}
        for index, name in enumerate(sorted(shown, key=lambda name: len(shown[name][1]))):  # as for the other tables
            shares[name] = min(len(shown[name][1]), max(1, lines // (len(shown) - index)))
            lines -= shares[name]
        drawn: list[Any] = []
        for name, (section, items) in shown.items():
            title = Text(name if items else f"{name}: none", "bold")
            if len(items) > shares[name] and name != "fills":
                title.append(f" {shares[name]}/{len(items)}")
            if section is self.fills and self.fills.incomplete:
                title.append(" (some may be missing)", "yellow")
            if section.stale:
                title.append(" STALE", "yellow")
            drawn += [""] * (gap and bool(drawn)) + compact(
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
