"""Sections that let a part of the stream through.

Both keep two promises of the stream. A partial stays what it is, a statement on all that its ``filter`` covers, so
one that has no row of ours still passes when it covers ours: it says that there are none. And a mark that concerns
ours passes always; a mark of another symbol or table goes the way of the items it is about.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec.structs import replace

from ..messages import (
    Bar,
    BookUpdate,
    Fill,
    FillsMissing,
    OrderState,
    Position,
    StateLost,
    TableMessage,
    TableUpdate,
    Ticker,
    symbol_of,
)
from ..operator import BatchOperator

__all__ = ["SymbolFilter", "TableFilter"]

_OF_A_SYMBOL = frozenset({Bar, BookUpdate, Fill, FillsMissing, OrderState, Position, Ticker})


def _bare(names: tuple[str, ...], section: str, what: str, example: str) -> None:
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{section} takes each {what} as a str, as in {section}({example!r}), not {name!r}")
        if not name or ":" in name:
            raise ValueError(f"{name!r} is no {what}: give {section} the bare {what}, as in {section}({example!r})")
    if not names:
        raise ValueError(f"{section} needs at least one {what}, as in {section}({example!r})")


class SymbolFilter(BatchOperator):
    """Let through what is of the given symbols (str, as ``"XBTUSD"``).

    A `TableMessage` or `TableUpdate` with rows of several symbols is narrowed to a new one; where all rows match, the
    same object passes. `BookUpdate`, `Bar`, `OrderState`, `Fill`, `FillsMissing`, `Position` and `Ticker` pass by their
    symbol. Rows without a symbol (margin, wallet, chat, ...; also those whose symbol is no str), a `FillsMissing` that
    concerns any, and everything else pass: `MarginState`, connections, answers of the exchange, items of other kinds.

    Raises ValueError without a symbol, or for a topic (``"trade:XBTUSD"``) in place of one.
    """

    def __init__(self, *symbols: str) -> None:
        _bare(symbols, "SymbolFilter", "symbol", "XBTUSD")
        self.symbols = frozenset(symbols)
        self._wanted: frozenset[str | None] = self.symbols | {None}  # None: a row, or a filter, of no symbol

    def process_all(self, items: Iterable[Any], out: list[Any]) -> None:
        symbols, wanted = self.symbols, self._wanted
        for item in items:
            kind = type(item)
            if kind is TableMessage or kind is TableUpdate:
                covered = item.filter  # given for a partial and for stale
                if covered and symbol_of(covered) not in wanted:
                    continue
                for row in item.rows:  # `symbol_of`, without a call for each row
                    symbol = row.get("symbol")
                    if type(symbol) is str and symbol not in symbols:
                        out += self._narrow(item)
                        break
                else:
                    out.append(item)
            elif kind in _OF_A_SYMBOL:
                if item.symbol in wanted:
                    out.append(item)
            elif kind is StateLost and item.topic is not None:
                _, _, symbol = item.topic.partition(":")
                if (symbol or None) in wanted:
                    out.append(item)
            else:
                out.append(item)

    def _narrow(self, item: Any) -> Iterable[Any]:
        wanted = self._wanted
        rows = [row for row in item.rows if symbol_of(row) in wanted]
        if not rows and item.action != "partial":
            return ()
        if type(item) is TableUpdate:
            return (replace(item, rows=rows, delta=[row for row in item.delta if symbol_of(row) in wanted]),)
        return (replace(item, rows=rows),)


class TableFilter(BatchOperator):
    """Let through what is of the given tables (str, as ``"trade"``).

    `TableMessage`, `TableUpdate` and `BookUpdate` pass by their table; everything else passes, the items of an account
    (`OrderState`, `Fill`, ...) among it.

    Raises ValueError without a table, or for a topic (``"trade:XBTUSD"``) in place of one.
    """

    def __init__(self, *tables: str) -> None:
        _bare(tables, "TableFilter", "table", "trade")
        self.tables = frozenset(tables)

    def process_all(self, items: Iterable[Any], out: list[Any]) -> None:
        tables = self.tables
        for item in items:
            kind = type(item)
            if kind is TableMessage or kind is TableUpdate or kind is BookUpdate:
                if item.table in tables:
                    out.append(item)
            elif kind is StateLost and item.topic is not None:
                if item.topic.partition(":")[0] in tables:
                    out.append(item)
            else:
                out.append(item)
