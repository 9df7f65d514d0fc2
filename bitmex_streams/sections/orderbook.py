"""`OrderBookMerger`: the rows of orderBookL2 become live order books, and say what changed."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import trio

from ..coverage import Coverage, Topic
from ..messages import (
    BookUpdate,
    Connected,
    Disconnected,
    Level,
    Row,
    StateLost,
    TableMessage,
    TableUpdate,
    Unsubscribed,
    of_one_symbol,
)
from ..operator import BatchOperator
from ..orderbook import Levels, OrderBook
from .tables import CONSUMED

__all__ = ["OrderBookMerger"]

log = logging.getLogger("bitmex_streams")

Top = tuple[Level | None, Level | None]

DELTAS = frozenset({"update", "insert", "delete"})

GRACE = 1.0
"""Seconds that a new pipeline over a merger whose stream has ended has to begin, until `ready` gives up."""


class _Trusted:
    """A book whose state is known: ``topic`` keeps it up to date, and ``top`` was told last."""

    __slots__ = ("book", "source", "top", "topic")

    def __init__(self, book: OrderBook, topic: Topic) -> None:
        self.book = book
        self.topic = topic
        self.source = topic.source
        self.top: Top = book.bids.best, book.asks.best


class OrderBookMerger(BatchOperator):
    """`TableMessage` (of a `Decoder`) or `TableUpdate` (of a `TableApplier`) in, `BookUpdate` out: one per symbol of
    a message.

    Both ways give the same. ``table``: ``"orderBookL2"`` (the default) or ``"orderBookL2_25"``; messages of other
    tables, control messages and marks go no further (what the marks mean for a book is said by its `BookUpdate` with
    ``stale``); foreign items pass.

    ``books``: dict of symbol to live `OrderBook`, from the first partial on. A partial covers what its ``filter``
    says: with ``{}``, a book that it has no rows of is empty from then on, and that is announced like any change.
    Deltas before the first partial are dropped.

    State is lost as in `TableApplier`, and by a book that is crossed for more than a burst: for more than
    ``crossed_messages`` messages of that book and at least ``crossed_seconds`` (on ``received``). Then each book of
    the topic puts out one `BookUpdate` with ``stale`` and the last known top, ``resync(topic)`` is asked for a new
    partial, and deltas are dropped until it has come. When a connection is lost, ``book.stale`` is set at once, ahead
    of the stream. In a loop of pipelines one merger can serve them all, as one `TableApplier` can.

    A partial without a filter where only symbols are subscribed to brings books of others, which nobody keeps up to
    date. They leave ``books`` with the first partial of a symbol after the state of that one was lost; should they be
    subscribed to later, they are back as the same objects.

    A crossed book is seen by nobody else: a `TableApplier` before the merger does not look at prices, so its
    ``stale`` and its updates go on as fresh until the new partial, which heals both."""

    needs_all = True

    def __init__(
        self,
        *,
        table: str = "orderBookL2",
        resync: Callable[[str], None] | None = None,
        crossed_messages: int = 10,
        crossed_seconds: float = 1.0,
    ) -> None:
        self.table = table
        self.resync = resync
        self.crossed_messages = crossed_messages
        self.crossed_ns = int(crossed_seconds * 1e9)
        self.books: dict[str, OrderBook] = {}
        self._coverage = Coverage()
        self._nobodys: dict[str, OrderBook] = {}  # books that no topic covers any more, should one do so again
        self._crossed: dict[str, tuple[int, int]] = {}  # symbol: since when (received), messages since
        self._awaited: dict[str, trio.Event] = {}
        self._finished = False
        # What deltas count for, by symbol: found once, and forgotten with whatever could change that. To find it anew
        # for each message took a third of its time.
        self._trusted: dict[str, _Trusted] = {}

    async def ready(self, symbol: str) -> OrderBook:
        """Wait until the book of ``symbol`` is there and not stale; a checkpoint in any case.

        Raises trio.EndOfChannel when the stream ended without it; where it had ended before, a second later, for the
        next pipeline over this merger may be about to begin. When the pipeline is cancelled, so must be the wait.
        """
        await trio.lowlevel.checkpoint()
        waited = False
        while (book := self.books.get(symbol)) is None or book.stale:
            if self._finished and waited:
                raise trio.EndOfChannel(f"the stream ended without a partial of {self.table}:{symbol}")
            with trio.move_on_after(GRACE if self._finished else math.inf):
                await self._awaited.setdefault(symbol, trio.Event()).wait()
            waited = True
        return book

    def finish(self) -> Iterable[Any]:
        self._finished = True
        self._trusted.clear()
        self._wake(*self._awaited)
        return ()

    def _wake(self, *symbols: str) -> None:
        for symbol in symbols:
            if (event := self._awaited.pop(symbol, None)) is not None:
                event.set()

    def lose_state(self, source: str, reason: str) -> None:
        """All books of ``source`` are stale at once; the mark that follows (once per call) says so in the stream."""
        self._finished = False  # whoever reports a loss is alive: perhaps the next pipeline over this merger
        self._coverage.announce(source, reason)
        self._trusted.clear()
        for symbol, book in self.books.items():
            topic = self._topic(symbol)
            if topic is not None and topic.source == source:
                book.stale = True

    def _topic(self, symbol: str) -> Topic | None:
        return self._coverage.find(self.table, {"symbol": symbol})

    def process_all(self, items: Iterable[Any], out: list[Any]) -> None:
        table, trusted_by = self.table, self._trusted
        for item in items:
            kind = type(item)
            if kind is not TableMessage and kind is not TableUpdate:
                out += self._process_other(item)
                continue
            if item.table != table:
                continue
            if item.action not in DELTAS:
                out += self._process_state(item)
                continue
            rows = item.rows if kind is TableMessage else item.delta or item.rows
            try:
                trusted = trusted_by[rows[0]["symbol"]]
            except (LookupError, TypeError):  # nothing is known of it, or it is no row
                out += self._process_delta(item, rows)
                continue
            if item.source == trusted.source and (len(rows) == 1 or of_one_symbol(rows)):
                self._apply_to_book(trusted, item, rows, out)
            else:
                out += self._process_delta(item, rows)

    def _process_other(self, item: Any) -> Iterable[Any]:
        """What is no message of a table."""
        kind = type(item)
        self._finished = False
        if kind is Disconnected or kind is Connected or kind is Unsubscribed:  # nothing is to be asked for
            self._trusted.clear()
            return self._stale(self._coverage.lose_by(item), item.received)
        if kind is StateLost:
            self._trusted.clear()
            lost = self._coverage.lose_by(item)
            concerned = self._coverage.concerned(item.source, item.topic)
            # Also of what is stale already: the undecodable message may have been the new partial.
            table = (item.topic or "").partition(":")[0]
            self._ask(
                [topic.name for topic in concerned] or ([item.topic] if item.topic and table == self.table else [])
            )
            return self._stale(lost, item.received)
        return () if kind in CONSUMED else (item,)

    def _process_delta(self, item: TableMessage | TableUpdate, rows: Sequence[Row]) -> Iterable[BookUpdate]:
        """A delta of a book that is not known to be trusted."""
        self._finished = False
        stale: list[BookUpdate] = []
        if item.source in self._coverage.opening:
            self._trusted.clear()
            stale = self._stale(self._coverage.opened(item.source), item.received)
        if self.table not in self._coverage.topics or not rows:
            return stale
        if not of_one_symbol(rows):
            self._trusted.clear()  # what was told last of each is seen to here
            return [*stale, *self._apply_to_several(item, rows)]
        symbol = rows[0].get("symbol")
        told = self._apply_to(symbol, item, rows)
        topic = self._coverage.find(self.table, rows[0])
        if told and symbol is not None and topic is not None and not topic.stale:
            self._trusted[symbol] = _Trusted(self.books[symbol], topic)
        return [*stale, *told] if stale else told

    def _process_state(self, item: TableMessage | TableUpdate) -> Iterable[BookUpdate]:
        """A partial, or what says that one is needed."""
        self._finished = False
        self._trusted.clear()
        lost = self._coverage.advance(item.source, item.generation) if type(item) is TableUpdate else []
        if item.source in self._coverage.opening:
            lost += self._coverage.opened(item.source)
        if item.action == "stale":
            lost += self._coverage.lose_scope(item.table, item.filter, item.source, item.reason)
            return self._stale(lost, item.received)
        stale = self._stale(lost, item.received)  # before the partial takes the topic's place
        told = self._load(item)
        return [*stale, *told] if stale else told

    def _load(self, item: TableMessage | TableUpdate) -> Iterable[BookUpdate]:
        source, received = item.source, item.received
        topic = Topic(self.table, item.filter, source)
        by_symbol: dict[str, list[Row]] = {}
        symbol = None
        try:
            if topic.filter and type(topic.scope) is not str:  # which books that covers cannot be told
                raise ValueError(f"its filter is not of a symbol: {dict(topic.filter)!r:.80}")
            for row in item.rows:
                if row.get("symbol") != symbol or symbol is None:
                    symbol = row.get("symbol")
                    if type(symbol) is not str or topic.filter.get("symbol", symbol) != symbol:
                        raise ValueError(f"a row of the symbol {repr(symbol)[:80]}, which it does not cover")
                    rows = by_symbol.setdefault(symbol, [])
                rows.append(row)
            levels = {symbol: Levels(rows) for symbol, rows in by_symbol.items()}
        except ValueError as error:
            concerned = self._coverage.concerned(source, topic.name)
            reason = f"a partial cannot be taken: {error}"
            if concerned:
                return self._contradicted(concerned, reason, received)
            # Of a topic that nobody knows of: which one it was to be is not known, but its table.
            return self._contradicted([topic], reason, received, ask=self.table)
        if self._coverage.cover(topic):
            for nobodys in [symbol for symbol in self.books if self._topic(symbol) is None]:
                self._nobodys[nobodys] = self.books.pop(nobodys)
        # What it covers and has no rows of is empty.
        for covered in [*self.books, *self._nobodys] if topic.scope is None else [topic.scope]:
            if covered not in levels:
                levels[covered] = Levels(())
        ahead = self._coverage.announced(source) is not None
        updates = []
        for symbol, fresh in levels.items():
            book = self.books.get(symbol)
            if book is None:
                book = self._nobodys.pop(symbol) if symbol in self._nobodys else OrderBook(symbol)
                self.books[symbol] = book
            book._take(fresh)
            book.stale = ahead
            self._crossed.pop(symbol, None)
            updates.append(
                BookUpdate(
                    symbol, book.best_bid, book.best_ask, None, False, book.timestamp, received, book, self.table
                )
            )
            if not ahead:
                self._wake(symbol)
        return updates

    def _apply_to(
        self, symbol: Any, item: TableMessage | TableUpdate, rows: Sequence[Row], tops: dict[str, Top] | None = None
    ) -> Iterable[BookUpdate]:
        """Rows of one symbol. ``tops``: what the tops of the books were before the message, where it has other
        symbols too."""
        received = item.received
        topic = self._coverage.find(self.table, rows[0])
        if topic is None or topic.stale or topic.source != item.source:
            return ()
        book = self.books.get(symbol) if type(symbol) is str else None
        if book is None:
            if type(symbol) is not str or item.action != "insert":
                reason = f"a row of a symbol that is not there: {symbol!r:.80}"
                return self._contradicted([topic], reason, received, tops)
            book = OrderBook(symbol)  # of a table that is covered as a whole: so these rows are all of it
        updates: list[BookUpdate] = []
        self._apply_to_book(_Trusted(book, topic), item, rows, updates, tops)
        if symbol not in self.books and not topic.stale:
            self.books[symbol] = book
            book.stale = self._coverage.announced(item.source) is not None
            self._wake(symbol)
        return updates

    def _apply_to_book(
        self,
        trusted: _Trusted,
        item: TableMessage | TableUpdate,
        rows: Sequence[Row],
        out: list[Any],
        tops: dict[str, Top] | None = None,
    ) -> None:
        book, received = trusted.book, item.received
        symbol, bids, asks = book.symbol, book.bids, book.asks
        try:
            changes = book.apply(item.action, rows)  # type: ignore[arg-type]
        except ValueError as error:
            out += self._contradicted([trusted.topic], str(error), received, tops or {symbol: trusted.top})
            return
        # What `best` says, without the two calls where it is known.
        bid = bids._best if bids._best_id is not None else bids.best
        ask = asks._best if asks._best_id is not None else asks.best
        if bid is not None and ask is not None and bid[0] >= ask[0]:
            since, messages = self._crossed.get(symbol, (received, 0))
            self._crossed[symbol] = since, messages + 1
            if messages >= self.crossed_messages and received - since >= self.crossed_ns:
                crossed = f"{symbol} has been crossed for {messages + 1} messages: bid {bid[0]}, ask {ask[0]}"
                out += self._contradicted([trusted.topic], crossed, received, tops)
                return
        elif self._crossed:
            self._crossed.pop(symbol, None)
        trusted.top = bid, ask
        out.append(BookUpdate(symbol, bid, ask, tuple(changes), False, book.timestamp, received, book, self.table))

    def _apply_to_several(self, item: TableMessage | TableUpdate, rows: Sequence[Row]) -> Iterable[BookUpdate]:
        """Rows of several symbols, which only partials are known to have; allowed all the same."""
        by_symbol: dict[Any, list[Row]] = {}
        for row in rows:
            symbol = row.get("symbol")
            by_symbol.setdefault(symbol if type(symbol) is str else None, []).append(row)
        tops = {symbol: (book.best_bid, book.best_ask) for symbol, book in self.books.items()}
        told: list[BookUpdate] = []
        stale: list[BookUpdate] = []
        for symbol, of_symbol in by_symbol.items():
            for update in self._apply_to(symbol, item, of_symbol, tops):
                (stale if update.stale else told).append(update)
        if (
            stale
        ):  # a message is applied whole or not at all: what it brought to a topic before the contradiction is not told
            lost = {update.symbol for update in stale}
            for update in told:
                if update.symbol not in tops and update.symbol in lost:
                    del self.books[update.symbol]
            told = [update for update in told if update.symbol not in lost]
            stale = [update for update in stale if update.symbol in self.books]
        return [*told, *stale]

    def _contradicted(
        self,
        topics: list[Topic],
        reason: str,
        received: int,
        tops: dict[str, Top] | None = None,
        *,
        ask: str | None = None,
    ) -> list[BookUpdate]:
        """What was sent does not fit what is there: the topics are stale, and a new partial is asked for (of ``ask``,
        where that is not known by the topics' names)."""
        self._trusted.clear()
        lost = [topic for topic in topics if not topic.stale]
        for topic in lost:
            topic.stale = f"{topic.name}: {reason}"
            log.warning("state lost: %s", topic.stale)
        self._ask([ask] if ask else [topic.name for topic in topics])
        return self._stale(lost, received, tops or {})

    def _ask(self, topics: list[str]) -> None:
        if self.resync is not None:
            for topic in topics:
                self.resync(topic)

    def _stale(self, lost: list[Topic], received: int, tops: dict[str, Top] | None = None) -> list[BookUpdate]:
        """The marks of all books of topics that went stale; ``tops``: what was last told, where the books are ahead
        of that."""
        of_topic: dict[Topic | None, list[OrderBook]] = {topic: [] for topic in lost}
        for symbol, book in self.books.items() if lost else ():
            of_topic.get(self._topic(symbol), []).append(book)
        updates = []
        for book in chain.from_iterable(of_topic.values()):
            book.stale = True
            self._crossed.pop(book.symbol, None)
            bid, ask = (tops or {}).get(book.symbol) or (book.best_bid, book.best_ask)
            updates.append(BookUpdate(book.symbol, bid, ask, None, True, book.timestamp, received, book, self.table))
        return updates
