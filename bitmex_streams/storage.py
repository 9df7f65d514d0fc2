"""The tables: the rows of every table as they are now, by key.

Three kinds of tables, each with the same four operations. A row that was handed out is never changed: an update puts
a fresh dict in the place of the old. What does not fit what is there (an update of a row that is not, an insert of
one that is, a row without its key columns) is a ValueError in words, before anything was changed by that row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, Protocol

from sortedcontainers import SortedDict

from .messages import Row

__all__ = ["Storage"]

BOOK_TABLES = frozenset({"orderBookL2", "orderBookL2_25"})
BOOK_KEYS = ("symbol", "id", "side")

Key = tuple[Any, ...]


class _Table(Protocol):
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


class _Orderbook(dict[str, dict[str, Any]]):
    def __missing__(self, symbol: str) -> dict[str, Any]:
        return {"Buy": SortedDict(), "Sell": SortedDict()}  # not kept: reading changes nothing


class _Data(dict[str, Any]):
    def __missing__(self, table: str) -> Any:
        return _Orderbook() if table in BOOK_TABLES else SortedDict()


class Storage:
    """The state of all tables of a stream. Read it at any time; only `TableApplier` writes.

    ``data[table]`` is a SortedDict of rows by key tuple (the values of the columns in ``keys[table]``). Tables
    without keys (trade, quote) are kept by the columns that their partial's ``attributes`` call sorted (the
    timestamp) and a running number at the end of the key, so that equal timestamps are all kept.
    ``data["orderBookL2"]`` (the same as ``orderbook``) and ``data["orderBookL2_25"]`` are ``[symbol][side][id]``:
    dicts with a SortedDict of rows by id for each of ``"Buy"`` and ``"Sell"``.

    ``keys[table]``: tuple of column names. A table is there from its first partial on; ``data["orderBookL2"]`` always.
    Reading ``data[table]`` before, or the book of an unknown symbol, gives an empty one, which is not kept.

    ``max_rows``: int, or None for no limit. The most rows that are kept of a table that only ever grows (no keys, or
    keys with a timestamp: trade, quote, execution, the bins, funding, settlement, insurance); the oldest leave first.
    """

    def __init__(self, max_rows: int | None = 10_000) -> None:
        if max_rows is not None and max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, or None for no limit, not {max_rows!r}")
        self.max_rows = max_rows
        self.orderbook: dict[str, dict[str, Any]] = _Orderbook()
        self.data: dict[str, Any] = _Data(orderBookL2=self.orderbook)
        self.keys: dict[str, tuple[str, ...]] = {}
        self.tables: dict[str, _Table] = {}

    def open(
        self, table: str, keys: Sequence[str] | None, attributes: Mapping[str, Any], types: Mapping[str, Any]
    ) -> _Table:
        """The table, made anew where it is not there yet or had other keys. ``keys``: as sent with a partial; None:
        as before."""
        found = self.tables.get(table)
        if found is not None and (keys is None or tuple(keys) == found.keys or table in BOOK_TABLES):
            return found
        made: _Table
        columns = tuple(keys or ())
        if table in BOOK_TABLES:
            made, columns = _Books(self.data.setdefault(table, _Orderbook())), BOOK_KEYS
        elif columns:
            made = _Keyed(columns, self.max_rows if "timestamp" in columns else None)
        else:
            columns = tuple(column for column, kind in attributes.items() if kind == "sorted")
            columns = columns or (("timestamp",) if "timestamp" in types else ())
            made = _Log(columns, self.max_rows)
        self.data[table] = made.rows
        self.keys[table] = columns
        self.tables[table] = made
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

    def key_of(row: Mapping[str, Any]) -> Key:
        try:
            key: Any = (pick(row),) if single else pick(row)
            hash(key)
        except KeyError as error:
            raise ValueError(f"a row without its key column {error.args[0]!r}") from None
        except TypeError:
            raise ValueError(f"a row whose key ({', '.join(columns)}) is no plain value") from None
        return key

    return key_of


def _brief(key: Any) -> str:
    text = repr(key)
    return text if len(text) <= 120 else text[:120] + "..."


class _Keyed:
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
                if self.trimmed is None or key > self.trimmed:
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
        row = {**old, **delta}
        dict.__setitem__(self.rows, key, row)  # the key is there: its place in the order stays
        return row

    def delete(self, delta: Row) -> Row | None:
        key = self.key_of(delta)
        if key not in self.rows:
            self._trimmed(key, "a delete")
            return None
        return self.rows.pop(key)


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


class _Books:
    """orderBookL2 and orderBookL2_25: ``[symbol][side][id]``."""

    keys: tuple[str, ...] = BOOK_KEYS

    def __init__(self, rows: dict[str, dict[str, Any]]) -> None:
        self.rows = rows

    def replace(self, rows: Sequence[Row], filter: Mapping[str, Any]) -> None:
        fresh: dict[Any, dict[str, dict[int, Row]]] = {}
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
        covered = filter.get("symbol")
        for gone in [covered] if type(covered) is str else list(self.rows):
            fresh.setdefault(gone, {"Buy": {}, "Sell": {}})  # what has become empty stays known
        for symbol, sides in fresh.items():
            self.rows[symbol] = {side: SortedDict(levels) for side, levels in sides.items()}

    def insert(self, row: Row) -> Row | None:
        levels, level = self._levels(row, new=True), row["id"]
        if level in levels:
            raise ValueError(f"an insert of a row that is already there: {_brief(row)}")
        levels[level] = row
        return row

    def update(self, delta: Row) -> Row | None:
        levels, level = self._levels(delta), delta["id"]
        old = levels.get(level)
        if old is None:
            raise ValueError(f"an update of a row that is not there: {_brief(delta)}")
        row = {**old, **delta}
        dict.__setitem__(levels, level, row)  # the id is there: its place in the order stays
        return row

    def delete(self, delta: Row) -> Row | None:
        levels, level = self._levels(delta), delta["id"]
        if level not in levels:
            raise ValueError(f"a delete of a row that is not there: {_brief(delta)}")
        return levels.pop(level)

    def _levels(self, row: Row, new: bool = False) -> Any:
        """The levels of the row's symbol and side; a symbol that the table does not know yet can come by an insert."""
        try:
            symbol = row["symbol"]
            if type(symbol) is str and type(row["id"]) is int:
                sides = self.rows.get(symbol)
                if sides is None and new and row["side"] in ("Buy", "Sell"):
                    sides = self.rows[symbol] = {"Buy": SortedDict(), "Sell": SortedDict()}
                if sides is not None:
                    return sides[row["side"]]
                raise ValueError(f"a row of a symbol that is not there: {_brief(row)}")
        except (KeyError, TypeError):  # a key column is missing, or a side that is none
            pass
        raise ValueError(f"a row without its key columns 'symbol', 'id' and 'side': {_brief(row)}")
