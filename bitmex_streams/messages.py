"""What flows through a pipeline.

Every item is a frozen `msgspec.Struct`: cheap to make, compared by value, pickleable. Rows are dicts that nobody of
ours changes once they were handed out. ``received`` is always int nanoseconds UTC since the epoch; ``source`` names
where an item came from (the URL of a connection, the path of a recording), so that the loss of one connection is not
the loss of another.

Marks are the items that say what can no longer be trusted: `Connected`, `Disconnected`, `StateLost`, a `TableUpdate`
with action ``stale`` and a `BookUpdate` that is ``stale``. They are never dropped, conflated, throttled or filtered
away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

if TYPE_CHECKING:
    from .orderbook import OrderBook

__all__ = [
    "Action",
    "Authenticated",
    "Bar",
    "BookUpdate",
    "CancelAllAfter",
    "Change",
    "Connected",
    "Disconnected",
    "ErrorMessage",
    "Help",
    "Level",
    "Pong",
    "RawMessage",
    "Row",
    "StateLost",
    "Subscribed",
    "TableMessage",
    "TableUpdate",
    "Unsubscribed",
    "Welcome",
    "conflated",
    "is_mark",
    "stream_key",
]

Row: TypeAlias = dict[str, Any]
"""One row of a table, as on the wire (see `bitmex_streams.rows` for the fields of each table)."""

Action: TypeAlias = Literal["partial", "insert", "update", "delete"]
Side: TypeAlias = Literal["Buy", "Sell"]

Change: TypeAlias = tuple[str, Any, int]
"""One changed level of a book: (side, price, size); side is ``"Buy"`` or ``"Sell"``, size 0 means that the level is
gone.
"""


class Level(NamedTuple):
    """One level of a book: price in the quote currency (float, or Decimal on request), size in contracts (int)."""

    price: Any
    size: int


# --- from the source ---


class RawMessage(Struct, frozen=True, gc=False):
    """One message as it came off the wire or out of a recording.

    ``received``: int, ns UTC since the epoch, the arrival. ``data``: the text (str, or UTF-8 bytes), unparsed.
    ``source``: the URL or the path; ``line``: the line of a recording (from 1), 0 when live.
    """

    received: int
    data: str | bytes
    source: str = ""
    line: int = 0


class Connected(Struct, frozen=True, gc=False):
    """Mark: a connection stands (or a recording begins, or goes on after a gap). What follows is of this connection."""

    received: int
    source: str = ""


class Disconnected(Struct, frozen=True, gc=False):
    """Mark: the connection ended; all state that came from ``source`` is lost. ``code`` and ``reason`` are the
    websocket's.
    """

    received: int
    source: str = ""
    code: int = 1006
    reason: str = ""


class StateLost(Struct, frozen=True, gc=False):
    """Mark: something of ``source`` can no longer be trusted, though the connection stands.

    ``topic``: the topic concerned (``table`` or ``table:symbol``), or None: every table of that source (a message
    that could not be decoded may have been of any). ``reason`` says what happened, in words.
    """

    received: int
    source: str
    reason: str
    topic: str | None = None


# --- from the decoder ---


class TableMessage(Struct, frozen=True, gc=False):
    """One message of a table: ``action`` on ``rows`` of ``table``.

    The last five fields are sent with partials only and None elsewhere: ``keys`` (the columns that identify a row;
    may be empty), ``types``, ``foreign_keys``, ``attributes``, ``filter`` (what the partial covers, ``{}``: the whole
    table).
    """

    table: str
    action: Action
    rows: Sequence[Row]
    received: int
    source: str = ""
    keys: Sequence[str] | None = None
    types: Mapping[str, str] | None = None
    foreign_keys: Mapping[str, str] | None = None
    attributes: Mapping[str, str] | None = None
    filter: Mapping[str, Any] | None = None


class Welcome(Struct, frozen=True, gc=False):
    """The greeting of a server. ``limit`` holds ``remaining``, the connections still allowed, where it was sent."""

    received: int
    source: str = ""
    info: str = ""
    version: str = ""
    timestamp: str = ""
    docs: str = ""
    heartbeat_enabled: bool = False
    limit: Mapping[str, Any] | None = None


class Subscribed(Struct, frozen=True, gc=False):
    """The acknowledgement of one subscribed topic; ``request`` is the command that it answers."""

    topic: str
    received: int
    source: str = ""
    request: Mapping[str, Any] | None = None


class Unsubscribed(Struct, frozen=True, gc=False):
    """The acknowledgement of one topic given up; ``request`` is the command that it answers."""

    topic: str
    received: int
    source: str = ""
    request: Mapping[str, Any] | None = None


class Authenticated(Struct, frozen=True, gc=False):
    """The acknowledgement of ``authKeyExpires``. ``request`` is the command, with key and signature masked."""

    received: int
    source: str = ""
    request: Mapping[str, Any] | None = None


class CancelAllAfter(Struct, frozen=True, gc=False):
    """The answer to ``cancelAllAfter``: ``now`` and ``cancel_time`` are ISO timestamps; ``cancel_time`` is None once
    disarmed.
    """

    received: int
    source: str = ""
    now: str = ""
    cancel_time: str | None = None
    request: Mapping[str, Any] | None = None


class ErrorMessage(Struct, frozen=True, gc=False):
    """The exchange's answer to what it could not do: ``status`` (like HTTP's, None where not sent) and ``error``, its
    words.
    """

    error: str
    received: int
    source: str = ""
    status: int | None = None
    meta: Mapping[str, Any] | None = None
    request: Mapping[str, Any] | None = None


class Pong(Struct, frozen=True, gc=False):
    """The answer to the bare text ``ping``."""

    received: int
    source: str = ""


class Help(Struct, frozen=True, gc=False):
    """The answer to ``help``, and any other JSON object that is not of the tables: ``content``, parsed."""

    received: int
    source: str = ""
    content: Mapping[str, Any] | None = None


# --- from the appliers ---


class TableUpdate(Struct, frozen=True, gc=False):
    """One change of a table, after it was applied.

    ``rows`` are whole: as they are after the change, for a delete as they were. ``delta`` are the rows as sent (for
    an update: keys and changed fields only). ``keys`` are the columns that identify a row. ``filter`` is given for a
    partial and for ``stale``: what is covered (``{"symbol": "XBTUSD"}``; ``{}``: all of the table). Action ``stale``
    is a mark: from here to the next covering partial that part of the table cannot be trusted; it has no rows, and
    ``reason`` says why. ``generation`` numbers the last loss of all state of ``source`` before this (of the losses
    that an operator is told of ahead of the stream, see `Operator.lose_state`); 0: none.
    """

    table: str
    action: Literal["partial", "insert", "update", "delete", "stale"]
    rows: Sequence[Row]
    received: int
    source: str = ""
    delta: Sequence[Row] = ()
    keys: Sequence[str] = ()
    filter: Mapping[str, Any] | None = None
    reason: str = ""
    generation: int = 0


class BookUpdate(Struct, frozen=True, gc=False):
    """One change of one symbol's order book.

    ``best_bid``, ``best_ask``: `Level` (price, size) after the change, None where that side is empty. ``changes``:
    the changed levels as (side, price, size), size 0: gone; None where the whole book may differ (a partial, or after
    a drop or conflation). ``stale``: the book cannot be trusted from here to the next update that is not stale.
    ``timestamp``: the exchange's, an ISO string, where it was sent. ``book`` is the *live* book, which a consumer
    that lags sees ahead of this update; pickling sends a frozen snapshot.
    """

    symbol: str
    best_bid: Level | None
    best_ask: Level | None
    changes: Sequence[Change] | None
    stale: bool
    timestamp: str | None
    received: int
    book: OrderBook
    table: str = "orderBookL2"

    def __reduce__(self) -> tuple[Any, ...]:
        values = {field: getattr(self, field) for field in self.__struct_fields__}
        values["book"] = self.book.snapshot()
        return BookUpdate, tuple(values.values())


class Bar(Struct, frozen=True, gc=False):
    """One bar of trades, bounded and labelled as BitMEX's tradeBin tables are: ``timestamp`` is the bar's *end* (ISO,
    UTC).

    ``open``, ``high``, ``low``, ``close``: prices, None where nothing was ever traded. ``volume``: contracts (int);
    ``trades``: their count; ``vwap``: volume-weighted average price, None without volume. ``complete``: False where
    trades may be missing (the stream began inside the bar, ended inside it, or had a gap).
    """

    symbol: str
    interval: str
    timestamp: str
    open: Any
    high: Any
    low: Any
    close: Any
    volume: int
    trades: int
    vwap: Any
    complete: bool
    received: int


# --- what the sections that drop or conflate need to know ---


def is_mark(item: Any) -> bool:
    """Whether an item says what can no longer be trusted (or that a connection stands again), and so must never be
    lost.
    """
    kind = type(item)
    if kind is BookUpdate:
        return item.stale
    if kind is TableUpdate:
        return item.action == "stale"
    return kind is Connected or kind is Disconnected or kind is StateLost


def symbol_of(row: Mapping[str, Any]) -> str | None:
    """The symbol of a row (or of a filter). None where it has none: what is no str, whatever was sent, is no symbol."""
    symbol = row.get("symbol")
    return symbol if type(symbol) is str else None


def stream_key(item: Any) -> Any:
    """The stream that an item belongs to, for `latest` taps and `Throttle`: (table, symbol) where it has them, else
    its type; for what is said of one topic (`Subscribed`, `Unsubscribed`, `StateLost`), with that topic. Hashable,
    whatever the rows hold.
    """
    kind = type(item)
    if kind is BookUpdate:
        return item.table, item.symbol
    if kind is TableUpdate or kind is TableMessage:
        rows = item.rows
        if rows:
            return item.table, symbol_of(rows[0])
        return item.table, symbol_of(item.filter or {})
    if kind is Bar:
        return item.interval, item.symbol
    if kind is Subscribed or kind is Unsubscribed or kind is StateLost:
        return kind, item.topic
    return kind


def conflated(item: Any) -> Any:
    """The item as it must look when others of its stream were left out before it: a `BookUpdate` loses its
    ``changes``.
    """
    if type(item) is BookUpdate and item.changes is not None:
        return replace(item, changes=None)
    return item
