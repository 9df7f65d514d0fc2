"""`Tickers`: what each instrument costs now, from the tables ``instrument`` and ``quote``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..coverage import Topic
from ..messages import Row, TableUpdate, Ticker
from .follower import number_in, text_in, whole_in
from .latest import Latest

__all__ = ["Tickers"]

Values = tuple[Any, ...]


def _whole_or_none(row: Mapping[str, Any], field: str) -> int | None:
    return None if row.get(field) is None else whole_in(row, field)


def _text_or_none(row: Mapping[str, Any], field: str) -> str | None:
    return text_in(row, field, "") or None


class _Columns:
    """The columns of a table that a ticker is made of, and how they are read."""

    def __init__(self, **readers: Callable[[Mapping[str, Any], str], Any]) -> None:
        self.readers = tuple(readers.items())
        self.names = tuple(readers)

    def read(self, row: Row) -> Values:
        """The values of a row. ValueError for one of a wrong type."""
        return tuple([read(row, name) for name, read in self.readers])

    def unchanged(self, row: Row, known: Values | None) -> bool:
        """Whether the values of a row are as known: the fast way out, as most updates are of other columns."""
        return known == tuple(map(row.get, self.names))


INSTRUMENT = _Columns(
    bidPrice=number_in,
    askPrice=number_in,
    lastPrice=number_in,
    markPrice=number_in,
    indicativeSettlePrice=number_in,
    fundingRate=number_in,
    indicativeFundingRate=number_in,
    fundingTimestamp=_text_or_none,
    openInterest=_whole_or_none,
    volume24h=_whole_or_none,
)
QUOTE = _Columns(bidPrice=number_in, bidSize=_whole_or_none, askPrice=number_in, askSize=_whole_or_none)
COLUMNS = {"instrument": INSTRUMENT, "quote": QUOTE}
UNKNOWN: Values = (None,) * len(INSTRUMENT.names)


class Tickers(Latest[Ticker]):
    """A mapping of symbol (str; indexes too, as ``".BXBT"``) to its latest `Ticker`, which is put out behind the
    `TableUpdate` of the tables ``instrument`` and ``quote`` that changed a field of it.

    It stands behind a `TableApplier` (else TypeError). Everything that comes in passes unchanged. One of the two tables
    is enough: of the other's fields nothing is known (None). Where both are there, ``quote``, which is fresher, gives
    bid and ask. ``timestamp`` is of the row that brought the last change.

    ``tickers["XBTUSD"]`` raises KeyError for a symbol that nothing was told of; ``get``, ``in``, ``len``, ``items()``
    and so on are a mapping's. A ticker is `stale` from a loss of state of either table to the partial that heals it:
    at once when read, ahead of the stream; in the stream one item with ``stale`` says so, and the next one of that
    symbol comes when it is fresh again. A symbol that a new partial of ``instrument`` does not list any more, and of
    which there is no quote, leaves with such a mark, too.

    A row that cannot be one (no symbol, a field of a wrong type) is a loss of state: it is logged, and a new partial
    is asked for by ``resync``.
    """

    tables = frozenset(COLUMNS)
    noun = "ticker"

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[str, dict[str, Values]] = {table: {} for table in COLUMNS}

    def topics_of(self, symbol: str) -> Iterable[Topic]:
        row, find = {"symbol": symbol}, self._coverage.find
        return [topic for table in COLUMNS if (topic := find(table, row)) is not None]

    def load(self, update: TableUpdate, topic: Topic) -> Iterable[Ticker]:
        columns, known = COLUMNS[update.table], self._known[update.table]
        latest: dict[str, Row] = {}
        for row in update.rows:  # a partial of quotes may hold several of a symbol
            symbol = text_in(row, "symbol")
            before = latest.get(symbol)
            if before is None or text_in(row, "timestamp", "") >= text_in(before, "timestamp", ""):
                latest[symbol] = row
        fresh = {symbol: columns.read(row) for symbol, row in latest.items()}
        covered = [symbol for symbol in self if topic.covers({"symbol": symbol})]
        for symbol in covered:
            known.pop(symbol, None)
        known.update(fresh)
        for symbol in dict.fromkeys([*covered, *fresh]):
            yield from self._show(symbol, update, latest.get(symbol))

    def change(self, update: TableUpdate, row: Row, topic: Topic) -> Iterable[Ticker]:
        symbol, columns, known = text_in(row, "symbol"), COLUMNS[update.table], self._known[update.table]
        if update.action == "delete":
            known.pop(symbol, None)
        elif columns.unchanged(row, known.get(symbol)):
            return ()
        else:
            known[symbol] = columns.read(row)
        return self._show(symbol, update, row)

    def _show(self, symbol: str, update: TableUpdate, row: Row | None) -> Iterable[Ticker]:
        """The ticker, after the change that ``row`` brought."""
        instrument, quote = self._known["instrument"].get(symbol), self._known["quote"].get(symbol)
        if instrument is None and quote is None:
            return self.tell_gone(symbol, update.received)
        bid, ask, last, mark, index, funding, predicted, funding_at, interest, volume = instrument or UNKNOWN
        bid, bid_size, ask, ask_size = quote or (bid, None, ask, None)
        timestamp = row.get("timestamp") if row is not None else None
        if type(timestamp) is not str:
            before = self._latest.get(symbol)
            timestamp = before.timestamp if before is not None else None
        return self.tell(
            symbol,
            Ticker(
                symbol,
                bid,
                bid_size,
                ask,
                ask_size,
                last,
                mark,
                index,
                funding,
                predicted,
                funding_at,
                interest,
                volume,
                timestamp,
                update.received,
                update.source,
            ),
        )
