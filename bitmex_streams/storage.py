"""The tables: the rows of every table as they are now, by key.

Three kinds of tables, each with the same four operations. A row that was handed out is never changed: an update puts
a fresh dict in the place of the old. What does not fit what is there (an update of a row that is not, an insert of
one that is, a row without its key columns) is a ValueError in words, before anything was changed by that row."""

from __future__ import annotations

import reprlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, Protocol

from sortedcontainers import SortedDict

from .lazy import LazySortedDict
from .messages import Row

__all__ = ["Storage"]

BOOK_TABLES = frozenset({"orderBookL2", "orderBookL2_25"})
BOOK_KEYS = ("symbol", "id", "side")
# Rows of several connections stand in one order: one of them must not put in what does not compare with the others'.
KEY_TYPES: dict[str, type] = {
    "timestamp": str, "symbol": str, "currency": str, "orderID": str, "execID": str, "account": int,
}  # fmt: skip
CLOSED = frozenset({"Filled", "Canceled", "Rejected", "Expired"})
CLOSED_NS = 60_000_000_000
"""How long a closed order stays: until then it can still be amended, and so live again."""
REMEMBERED = 10_000
"""How many orders that left are remembered by their keys."""

Key = tuple[Any, ...]

replace = dict.__setitem__
"""``replace(rows, key, row)``, where the key is there: its place in the order stays."""


class Table(Protocol):
    """What keeps the rows of one table."""

    rows: Any
    keys: tuple[str, ...]  # as sent

    def replace(self, rows: Sequence[Row], filter: Mapping[str, Any]) -> None:
        """Put rows in the place of all that match the filter."""

    def insert(self, row: Row) -> Row | None:
        """Add a row."""

    def update(self, delta: Row) -> Row | None:
        """The whole row after the change; None where the row had been trimmed, and nothing is to be done."""

    def delete(self, delta: Row) -> Row | None:
        """The row as it was; None where it had been trimmed."""

    def operation(self, action: str) -> Callable[[Row], Row | None]:
        """What does that with a row: insert, update or delete."""

    def apply(self, action: str, rows: Sequence[Row]) -> tuple[Sequence[Row], Sequence[Row]]:
        """Do it with rows of one symbol: what each gives, and the rows themselves, but for those that give None."""


class _Orderbook(dict[str, dict[str, Any]]):
    def __missing__(self, symbol: str) -> dict[str, Any]:
        return {"Buy": LazySortedDict(), "Sell": LazySortedDict()}  # not kept: reading changes nothing


class _Data(dict[str, Any]):
    def __missing__(self, table: str) -> Any:
        return _Orderbook() if table in BOOK_TABLES else SortedDict()


class Storage:
    """The state of all tables of a stream. Read it at any time, in the pipeline's thread; only `TableApplier` writes.

    ``data[table]`` is a SortedDict of rows by key tuple (the values of the columns in ``keys[table]``). Tables
    without keys (trade, quote) are kept by the columns that their partial's ``attributes`` call sorted (the
    timestamp) and a running number at the end of the key, so that equal timestamps are all kept.
    ``data["orderBookL2"]`` (the same as ``orderbook``) and ``data["orderBookL2_25"]`` are ``[symbol][side][id]``:
    dicts with a SortedDict of rows by id for each of ``"Buy"`` and ``"Sell"``.

    ``keys[table]``: tuple of column names. A table is there from its first partial on; ``data["orderBookL2"]`` always.
    Reading ``data[table]`` before, or the book of an unknown symbol, gives an empty one, which is not kept.

    ``max_rows``: int, or None for no limit. The most rows that are kept of a table that only ever grows (no keys, or
    keys with a timestamp: trade, quote, execution, the bins, funding, settlement, insurance); the oldest leave first.

    An order that is closed (``ordStatus`` Filled, Canceled, Rejected or Expired) leaves ``data["order"]`` with the
    first message that is received a minute or more after it was closed; sooner where more than ``max_rows`` are closed.
    """

    def __init__(self, max_rows: int | None = 10_000) -> None:
        if max_rows is not None and max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, or None for no limit, not {max_rows!r}")
        self.max_rows = max_rows
        self.orderbook: dict[str, dict[str, Any]] = _Orderbook()
        self.data: dict[str, Any] = _Data(orderBookL2=self.orderbook)
        self.keys: dict[str, tuple[str, ...]] = {}
        self.tables: dict[str, Table] = {}
        self.orders: _Orders | None = None  # the table order, where there is one

    def load(
        self,
        table: str,
        rows: Sequence[Row],
        filter: Mapping[str, Any],
        keys: Sequence[str] | None,
        attributes: Mapping[str, Any],
        types: Mapping[str, Any],
        received: int,
    ) -> Table:
        """Take a partial; the table that has its rows then, which is a new one where there was none, or one with other
        keys. ``keys``: as sent; None: as before. Raises ValueError, and changes nothing, where it cannot be taken."""
        found = self.tables.get(table)
        if found is not None and (keys is None or tuple(keys) == found.keys or table in BOOK_TABLES):
            found.replace(rows, filter)
            return found
        made: Table
        columns = tuple(keys or ())
        if table in BOOK_TABLES:
            made, columns = _Books(self.orderbook if table == "orderBookL2" else _Orderbook()), BOOK_KEYS
        elif columns and table == "order":
            made = _Orders(columns, self.max_rows, received)
        elif columns:
            made = _Keyed(columns, self.max_rows if "timestamp" in columns else None)
        else:
            columns = tuple(column for column, kind in attributes.items() if kind == "sorted")
            columns = columns or (("timestamp",) if "timestamp" in types else ())
            made = _Log(columns, self.max_rows)
        made.replace(rows, filter)
        self.data[table] = made.rows
        self.keys[table] = columns
        self.tables[table] = made
        if table == "order":
            self.orders = made if isinstance(made, _Orders) else None
        return made

    def make_key(self, table: str, row: Mapping[str, Any]) -> Key:
        """The key of a row in ``data[table]``: a tuple of the values of ``keys[table]`` (for trade and quote: without
        the running number).

        Raises ValueError for orderBookL2 (which is kept by symbol, side and id), for a table that no partial has come
        for, and for a row that lacks a key column."""
        if table in BOOK_TABLES:
            raise ValueError(f"{table} has no key tuples: its rows are data[{table!r}][symbol][side][id]")
        if table not in self.keys:
            raise ValueError(f"the keys of {table!r} are not known: no partial of it has come yet")
        return _key_of(self.keys[table])(row)

    @staticmethod
    def parse_timestamp(timestamp: str) -> datetime:
        """An ISO timestamp of the exchange as an aware datetime (UTC). Digits beyond microseconds are cut off.

        Raises ValueError for what is no ISO timestamp.
        """
        try:
            parsed = datetime.fromisoformat(timestamp)
        except (TypeError, ValueError):
            raise ValueError(f"not an ISO timestamp: {timestamp!r}") from None
        return parsed.astimezone(UTC) if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)


def _key_of(columns: Sequence[str]) -> Callable[[Mapping[str, Any]], Key]:
    """What makes the key tuple of a row; raises ValueError where a column is missing."""
    if not columns:
        return lambda row: ()
    pick = itemgetter(*columns)
    single = len(columns) == 1
    types = [(index, KEY_TYPES[column]) for index, column in enumerate(columns) if column in KEY_TYPES]

    def key_of(row: Mapping[str, Any]) -> Key:
        try:
            key: Any = (pick(row),) if single else pick(row)
            hash(key)
        except KeyError as error:
            raise ValueError(f"a row without its key column {error.args[0]!r}") from None
        except TypeError:
            raise ValueError(f"a row whose key ({', '.join(columns)}) is no plain value") from None
        for index, kind in types:
            if type(key[index]) is not kind:
                raise ValueError(f"a row whose {columns[index]} is no {kind.__name__}: {_brief(key)}")
        return key

    return key_of


_excerpt = reprlib.Repr()  # of anything, however large or deep
_excerpt.maxdict = _excerpt.maxtuple = 10
_excerpt.maxstring = 60


def _brief(key: Any) -> str:
    return _excerpt.repr(key)[:300]


class _Operations:
    """What all tables share."""

    def operation(self: Table, action: str) -> Callable[[Row], Row | None]:
        return self.update if action == "update" else self.insert if action == "insert" else self.delete

    def apply(self: Table, action: str, rows: Sequence[Row]) -> tuple[Sequence[Row], Sequence[Row]]:
        operate = self.operation(action)
        whole: list[Row] = []
        delta: list[Row] = []
        for row in rows:
            changed = operate(row)
            if changed is not None:
                whole.append(changed)
                delta.append(row)
        return whole, delta


class _Keyed(_Operations):
    """A table with keys."""

    def __init__(self, columns: tuple[str, ...], max_rows: int | None) -> None:
        self.rows: Any = SortedDict()
        self.keys = columns
        self.key_of = _key_of(columns)
        self.max_rows = max_rows
        self.trimmed: Key | None = None  # the newest key that was trimmed

    def replace(self, rows: Sequence[Row], filter: Mapping[str, Any]) -> None:
        fresh = self._keyed(rows)
        if filter:
            covered = filter.items()
            for row in rows:
                for column, value in covered:
                    given = row.get(column, value)
                    if given != value and type(given) is type(value):  # so it may be another connection's
                        raise ValueError(f"a row that it does not cover: its {column} is {_brief(given)}")
            fresh = {key: row for key, row in self.rows.items() if not covered <= row.items()} | fresh
        try:
            ordered = sorted(fresh)
        except TypeError:
            raise ValueError("rows whose keys cannot be put in order") from None
        self.rows.clear()
        self.rows.update((key, fresh[key]) for key in ordered)  # what is in order already is sorted in no time
        self._trim()

    def _keyed(self, rows: Iterable[Row]) -> dict[Key, Row]:
        key_of = self.key_of
        return {key_of(row): row for row in rows}

    def insert(self, row: Row) -> Row | None:
        key = self.key_of(row)
        if key in self.rows:
            raise ValueError(f"an insert of a row that is already there: {_brief(key)}")
        self._add(key, row)
        return row

    def _add(self, key: Key, row: Row) -> None:
        try:
            self.rows[key] = row
        except TypeError:
            raise ValueError(f"a row whose key does not compare with the others: {_brief(key)}") from None
        if self.max_rows is not None:
            self._trim()

    def _trim(self) -> None:
        if self.max_rows is not None:
            while len(self.rows) > self.max_rows:
                key, _ = self.rows.popitem(0)
                try:
                    if self.trimmed is None or key > self.trimmed:
                        self.trimmed = key
                except TypeError:  # of another kind than those before
                    self.trimmed = key

    def _trimmed(self, key: Key, what: str) -> None:
        """No loss of state where the row is one of those that were trimmed."""
        try:
            if self.trimmed is not None and key <= self.trimmed:
                return
        except TypeError:
            pass
        raise ValueError(f"{what} of a row that is not there: {_brief(key)}")

    def update(self, delta: Row) -> Row | None:
        key = self.key_of(delta)
        old = self.rows.get(key)
        if old is None:
            self._trimmed(key, "an update")
            return None
        row: Row = old | delta
        dict.__setitem__(self.rows, key, row)  # the key is there: its place in the order stays
        return row

    def delete(self, delta: Row) -> Row | None:
        key = self.key_of(delta)
        if key not in self.rows:
            self._trimmed(key, "a delete")
            return None
        return self.rows.pop(key)


class _Orders(_Keyed):
    """The table order, whose closed rows leave after a minute, by the time of what is received.

    What is said of them later is no contradiction, unless it is that one lives again: then it is missing here.
    """

    def __init__(self, columns: tuple[str, ...], max_closed: int | None, now: int) -> None:
        super().__init__(columns, None)
        self.now = now
        self.max_closed = max_closed
        self.closed: OrderedDict[Key, int] = OrderedDict()  # when (received) the row was closed, or last said to be
        self.left: OrderedDict[Key, None] = OrderedDict()  # the last that left, oldest first

    def advance(self, received: int) -> None:
        """A message was received (ns): those leave that were closed long enough before."""
        self.now = received
        closed = self.closed
        while closed:
            key = next(iter(closed))
            if received - closed[key] < CLOSED_NS and (self.max_closed is None or len(closed) <= self.max_closed):
                break
            del closed[key]
            del self.rows[key]
            self.left[key] = None
            if len(self.left) > REMEMBERED:
                self.left.popitem(last=False)

    def _note(self, key: Key, row: Row) -> None:
        if _is_closed(row):
            self.closed[key] = self.now
            self.closed.move_to_end(key)
        else:
            self.closed.pop(key, None)
            self.left.pop(key, None)

    def replace(self, rows: Sequence[Row], filter: Mapping[str, Any]) -> None:
        super().replace(rows, filter)
        for key in [key for key in self.closed if key not in self.rows]:
            del self.closed[key]
        for row in rows:
            self._note(self.key_of(row), row)

    def insert(self, row: Row) -> Row | None:
        super().insert(row)
        self._note(self.key_of(row), row)
        return row

    def update(self, delta: Row) -> Row | None:
        key = self.key_of(delta)
        if key in self.left and key not in self.rows:
            if "ordStatus" not in delta or _is_closed(delta):
                return None
            raise ValueError(f"an update that opens an order again which had left: {_brief(key)}")
        row = super().update(delta)
        if row is not None and (key in self.closed or "ordStatus" in delta):
            self._note(key, row)
        return row

    def delete(self, delta: Row) -> Row | None:
        key = self.key_of(delta)
        if key in self.left and key not in self.rows:
            return None
        row = super().delete(delta)
        self.closed.pop(key, None)
        return row


def _is_closed(order: Mapping[str, Any]) -> bool:
    status = order.get("ordStatus")
    return type(status) is str and status in CLOSED


class _Log(_Keyed):
    """A table without keys: it only grows."""

    def __init__(self, columns: tuple[str, ...], max_rows: int | None) -> None:
        super().__init__(columns, max_rows)
        self.keys = ()
        self.count = 0

    def _keyed(self, rows: Iterable[Row]) -> dict[Key, Row]:
        return {self._number(row): row for row in rows}

    def _number(self, row: Row) -> Key:
        key = (*self.key_of(row), self.count)
        self.count += 1
        return key

    def insert(self, row: Row) -> Row | None:
        self._add(self._number(row), row)
        return row

    def update(self, delta: Row) -> Row | None:
        raise ValueError("an update in a table without keys, which only grows")

    def delete(self, delta: Row) -> Row | None:
        raise ValueError("a delete in a table without keys, which only grows")


class _Books(_Operations):
    """orderBookL2 and orderBookL2_25: ``[symbol][side][id]``."""

    keys: tuple[str, ...] = BOOK_KEYS

    def __init__(self, rows: dict[str, dict[str, Any]]) -> None:
        self.rows = rows

    def replace(self, rows: Sequence[Row], filter: Mapping[str, Any]) -> None:
        fresh: dict[Any, dict[str, dict[int, Row]]] = {}
        covered = filter.get("symbol")
        if filter and (len(filter) > 1 or type(covered) is not str):  # which books that covers cannot be told
            raise ValueError(f"its filter is not of a symbol: {_brief(filter)}")
        symbol = None
        for row in rows:
            if row.get("symbol") != symbol or symbol is None:
                symbol = row.get("symbol")
                if type(symbol) is not str or filter.get("symbol", symbol) != symbol:
                    raise ValueError(f"a row of the symbol {_brief(symbol)}, which it does not cover")
                sides = fresh.setdefault(symbol, {"Buy": {}, "Sell": {}})
            side, level = row.get("side"), row.get("id")
            if type(level) is not int or (side != "Buy" and side != "Sell"):
                raise ValueError(f"a row without its key columns 'id' and 'side': {_brief(row)}")
            sides[side][level] = row
        for gone in [covered] if filter else list(self.rows):
            fresh.setdefault(gone, {"Buy": {}, "Sell": {}})  # what has become empty stays known
        for symbol, sides in fresh.items():
            self.rows[symbol] = {side: LazySortedDict(levels) for side, levels in sides.items()}

    def apply(self, action: str, rows: Sequence[Row]) -> tuple[Sequence[Row], Sequence[Row]]:
        """In one go, as long as nothing is wrong with a row: else the operation says what."""
        symbol = rows[0].get("symbol")
        sides = self.rows.get(symbol, {}) if type(symbol) is str else {}
        whole: list[Any] = []
        for row in rows:
            try:
                level, levels = row["id"], sides[row["side"]]
                if action == "update":
                    if type(level) is int:
                        fresh = levels[level] | row
                        replace(levels, level, fresh)  # the id is there: its place in the order stays
                        whole.append(fresh)
                        continue
                elif type(level) is int and (level in levels) is (action == "delete"):
                    if action == "delete":
                        whole.append(levels.remove(level))
                    else:
                        levels.insert(level, row)
                        whole.append(row)
                    continue
            except (KeyError, TypeError):
                pass
            whole.append(self.operation(action)(row))
        return whole, rows

    def insert(self, row: Row) -> Row | None:
        levels, level = self._levels(row, new=True), row["id"]
        if level in levels:
            raise ValueError(f"an insert of a row that is already there: {_brief(row)}")
        levels.insert(level, row)
        return row

    def update(self, delta: Row) -> Row | None:
        levels, level = self._levels(delta), delta["id"]
        if level not in levels:
            raise ValueError(f"an update of a row that is not there: {_brief(delta)}")
        row: Row = levels[level] | delta
        dict.__setitem__(levels, level, row)
        return row

    def delete(self, delta: Row) -> Row | None:
        levels, level = self._levels(delta), delta["id"]
        if level not in levels:
            raise ValueError(f"a delete of a row that is not there: {_brief(delta)}")
        return levels.remove(level)

    def _levels(self, row: Row, new: bool = False) -> Any:
        """The levels of the row's symbol and side; a symbol that the table does not know yet can come by an insert."""
        try:
            symbol = row["symbol"]
            if type(symbol) is str and type(row["id"]) is int:
                sides = self.rows.get(symbol)
                if sides is None and new and row["side"] in ("Buy", "Sell"):
                    sides = self.rows[symbol] = {"Buy": LazySortedDict(), "Sell": LazySortedDict()}
                if sides is not None:
                    return sides[row["side"]]
                raise ValueError(f"a row of a symbol that is not there: {_brief(row)}")
        except (KeyError, TypeError):  # a key column is missing, or a side that is none
            pass
        raise ValueError(f"a row without its key columns 'symbol', 'id' and 'side': {_brief(row)}")
