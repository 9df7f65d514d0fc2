"""What flows through a pipeline.

Every item is a frozen `msgspec.Struct`: cheap to make, compared by value, pickleable. Rows are dicts that nobody of
ours changes once they were handed out. ``received`` is always int nanoseconds UTC since the epoch; ``source`` names
where an item came from (the URL of a connection, the path of a recording), so that the loss of one connection is not
the loss of another.

Marks are the items that say what can no longer be trusted: `Connected`, `Disconnected`, `StateLost`, `FillsMissing`, a
`TableUpdate` with action ``stale``, and a `BookUpdate`, `OrderState`, `Position`, `Ticker` or `MarginState` that is
``stale``. They are never dropped, conflated, throttled or filtered away.
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
    "Fill",
    "FillsMissing",
    "Help",
    "Level",
    "MarginState",
    "OrderState",
    "Pong",
    "Position",
    "RawMessage",
    "Row",
    "StateLost",
    "Subscribed",
    "TableMessage",
    "TableUpdate",
    "Ticker",
    "Unsubscribed",
    "Welcome",
    "conflated",
    "is_mark",
    "is_partial",
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
    ``source``: the URL or the path; ``line``: the line of a recording (from 1), 0 when live; ``file``: the path, where
    the source is a recording in several files.
    """

    received: int
    data: str | bytes
    source: str = ""
    line: int = 0
    file: str = ""


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


# --- from the sections of an account, and of the instruments ---


class OrderState(Struct, frozen=True, gc=False):
    """One order of an account as it is after a change, or as it was found by a partial.

    ``order_id`` is the exchange's, ``client_order_id`` the user's (clOrdID, "" where none was given). ``size``,
    ``leaves``, ``filled``: contracts (int): of the whole order, still to be filled, filled. ``price``: the limit, None
    for a market order; ``average_price``: of what was filled, None before. ``status`` is the exchange's (``New``,
    ``PartiallyFilled``, ``Filled``, ``Canceled``, ``Rejected``, ...). ``open``: whether it can still be filled; one
    that is not open has left the books with this. ``stale``: a mark: this is the last that is known, and what
    happened since is not; with ``open`` False: it went while nobody looked, so its last state was not seen. ``row`` is
    the whole row of the table ``order``.
    """

    order_id: str
    client_order_id: str
    account: int | None
    symbol: str
    side: str
    order_type: str
    price: Any
    size: int
    leaves: int
    filled: int
    average_price: Any
    status: str
    open: bool
    text: str
    timestamp: str | None
    received: int
    source: str
    row: Row
    stale: bool = False


class Fill(Struct, frozen=True, gc=False):
    """One execution of type ``Trade``: a fill of one of the account's orders. Each comes once, by its ``exec_id``.

    ``size``: contracts (int), ``price`` in the quote currency. ``is_maker``: True for a fill that added liquidity,
    False for one that removed it, None where the exchange does not say. ``fee``: int, the smallest unit of
    ``currency`` (XBt: satoshi), negative for a rebate; ``fee_rate``: its ratio. ``late``: it happened while the stream
    was interrupted, and was learnt of by the partial that followed. ``row`` is the whole row of the table
    ``execution``.
    """

    exec_id: str
    order_id: str
    client_order_id: str
    account: int | None
    symbol: str
    side: str
    size: int
    price: Any
    is_maker: bool | None
    fee: int
    fee_rate: Any
    currency: str
    timestamp: str | None
    received: int
    source: str
    row: Row
    late: bool = False


class FillsMissing(Struct, frozen=True, gc=False):
    """Mark: between the `Fill` before and the next one, some may be missing; ``reason`` says why, in words.

    ``since``: the timestamp of the last fill known before the gap (ISO), None where none was. ``symbol``: the only
    symbol concerned, None: any.
    """

    received: int
    source: str
    reason: str
    since: str | None = None
    symbol: str | None = None


class Position(Struct, frozen=True, gc=False):
    """The position of an account in one contract.

    ``size``: contracts (int), negative for a short one. ``average_entry_price``, ``mark_price``,
    ``liquidation_price``: in the quote currency, None where there is none. ``realized`` (fees and funding included),
    ``unrealized`` (against ``mark_price``) and ``net``, their sum: int, the smallest unit of ``currency`` (XBt:
    satoshi; USDt: 1e-6 USDT). ``stale``: a mark: this is the last that is known.
    """

    symbol: str
    account: int | None
    currency: str
    size: int
    average_entry_price: Any
    mark_price: Any
    liquidation_price: Any
    realized: int
    unrealized: int
    net: int
    timestamp: str | None
    received: int
    source: str
    stale: bool = False


class Ticker(Struct, frozen=True, gc=False):
    """What an instrument costs now: one row per symbol, of the tables ``instrument`` and ``quote``. None: not known.

    Prices are in the quote currency, sizes, ``open_interest`` and ``volume_24h`` in contracts; ``funding_rate`` (to be
    paid at ``funding_timestamp``, ISO) and ``predicted_funding_rate`` (of the interval after it) are ratios of the
    position's value. ``stale``: a mark: this is the last that is known.
    """

    symbol: str
    bid: Any
    bid_size: int | None
    ask: Any
    ask_size: int | None
    last: Any
    mark_price: Any
    index_price: Any
    funding_rate: Any
    predicted_funding_rate: Any
    funding_timestamp: str | None
    open_interest: int | None
    volume_24h: int | None
    timestamp: str | None
    received: int
    source: str
    stale: bool = False


class MarginState(Struct, frozen=True, gc=False):
    """The margin of an account in one currency. Amounts are int, its smallest unit (XBt: satoshi; USDt: 1e-6 USDT).

    ``wallet_balance``: deposits and realized P&L; ``margin_balance``: with unrealized P&L; ``available_margin``: what
    is left for new orders; ``initial_margin``, ``maintenance_margin``: what orders and positions bind; ``leverage``: a
    ratio. ``stale``: a mark: this is the last that is known. ``row`` is the whole row of the table ``margin``.
    """

    account: int | None
    currency: str
    wallet_balance: int
    margin_balance: int
    available_margin: int
    withdrawable_margin: int
    initial_margin: int
    maintenance_margin: int
    realized: int
    unrealized: int
    leverage: Any
    timestamp: str | None
    received: int
    source: str
    row: Row
    stale: bool = False


# --- what the sections that drop or conflate need to know ---

_MARKS = frozenset({Connected, Disconnected, StateLost, FillsMissing})
_STALE_OR_NOT = frozenset({BookUpdate, OrderState, Position, Ticker, MarginState})


def is_mark(item: Any) -> bool:
    """Whether an item says what can no longer be trusted (or that a connection stands again), and so must never be
    lost.
    """
    kind = type(item)
    if kind in _STALE_OR_NOT:
        return item.stale
    if kind is TableUpdate:
        return item.action == "stale"
    return kind in _MARKS


def is_partial(item: Any) -> bool:
    """Whether an item is the state of a table (or of a part of it) anew, with which what was stale is fresh again.

    Whoever drops to the latest lets nothing overtake it, and lets it give way to nothing but a partial of the same:
    deltas behind it tell of some of its rows only.
    """
    kind = type(item)
    return (kind is TableUpdate or kind is TableMessage) and item.action == "partial"


def symbol_of(row: Mapping[str, Any]) -> str | None:
    """The symbol of a row (or of a filter). None where it has none: what is no str, whatever was sent, is no symbol."""
    symbol = row.get("symbol")
    return symbol if type(symbol) is str else None


def of_one_symbol(rows: Sequence[Row]) -> bool:
    """Whether all rows (one at least) have the same symbol, or none."""
    symbol = rows[0].get("symbol")
    for row in rows:  # noqa: SIM110 - all() of a generator takes three times as long
        if row.get("symbol") != symbol:
            return False
    return True


def stream_key(item: Any) -> Any:
    """The stream that an item belongs to, for `latest` taps and `Throttle`: (table, symbol) where it has them, else
    its type; with the topic for what is said of one (`Subscribed`, `Unsubscribed`, `StateLost`), with the symbol for a
    `Position`, `Ticker` or `Fill`, the order for an `OrderState`, the currency for a `MarginState`. The symbol of a
    partial is that of its filter (None: it is of several), that of a delta its first row's. Hashable, whatever the
    rows hold.
    """
    kind = type(item)
    if kind is BookUpdate:
        return item.table, item.symbol
    if kind is TableUpdate or kind is TableMessage:
        rows = item.rows
        if rows and item.action != "partial":
            return item.table, symbol_of(rows[0])
        return item.table, symbol_of(item.filter or {})
    if kind is Bar:
        return item.interval, item.symbol
    if kind is Subscribed or kind is Unsubscribed or kind is StateLost:
        return kind, item.topic
    if kind is OrderState:
        return kind, item.order_id
    if kind is Position or kind is Ticker or kind is Fill or kind is FillsMissing:
        return kind, item.symbol
    if kind is MarginState:
        return kind, item.currency
    return kind


def conflated(item: Any) -> Any:
    """The item as it must look when others of its stream were left out before it: a `BookUpdate` loses its
    ``changes``.
    """
    if type(item) is BookUpdate and item.changes is not None:
        return replace(item, changes=None)
    return item
