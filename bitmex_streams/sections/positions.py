"""`Positions`: what an account holds of each contract, what that has earned, and what it is worth at the mark price.

The exchange says so itself, in the table ``position``. Where that is not subscribed, the executions tell: what was
bought and sold since the stream began, at what cost, and what was paid for it, is an `Inventory`. Executions can be
missed while the stream is interrupted. The partial that ends the interruption tells them all, where it reaches back
to one that was known before; where it does not, the inventory can be wrong for good, and says so by being stale.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ..coverage import Topic
from ..inventory import Contract, Inventory
from ..messages import Position, Row, TableUpdate
from .follower import account_in, number_in, text_in, time_in, whole_in
from .latest import OfAccount

__all__ = ["Positions"]

log = logging.getLogger("bitmex_streams")

SPOT = "IFXXXP"
"""The type (``typ``) of instruments whose trades change the wallet, and no position."""


class Positions(OfAccount[Position]):
    """The positions of an account: a mapping of symbol (str) to its latest `Position`, which is put out behind the
    `TableUpdate` that changed it.

    It stands behind a `TableApplier` (else TypeError). Everything that comes in passes unchanged. Subscribe to either
    of two:

    * ``position`` (best): positions are as the exchange says, and what they have realized is as it counts that. With
      ``instrument`` too, the mark price is followed live.
    * ``execution`` and ``instrument``: positions are inventories of what was executed *since the stream began*: each
      begins empty, whatever the account held before, and realizes from there. Trades, funding and settlements count,
      each once by its execID. ``liquidation_price`` is not known. Executions wait for the row of their instrument
      (``keep`` of a symbol at the most).

    Where both tell of a symbol, the table ``position`` counts. Unrealized P&L is the value at the mark price of
    ``instrument`` (in want of it, of the row of the position) less the cost of what is open; without a mark price
    (``mark_price`` None) it is what the exchange says, else 0. A position of size 0 has no mark price.

    ``positions["XBTUSD"]`` raises KeyError for a symbol that nothing was told of; ``get``, ``in``, ``len``,
    ``items()`` and so on are a mapping's. A position is `stale` from a loss of state of a table it is drawn from to the
    partial that heals it: at once when read, ahead of the stream; in the stream one item with ``stale`` says so, and
    the next one of that symbol comes when it is fresh again. An inventory that may have missed executions, or of which
    one could not be read, stays stale. A position that a new partial does not list any more leaves with such a mark, of
    size 0.

    ``account``: int, the only one that is followed; None: the first that is told of, and a second one is a ValueError.
    ``keep`` (int, at least 1, else ValueError): how many executions are remembered by their execID.

    A row that cannot be one (no symbol, no currentQty, a wrong type) is a loss of state: it is logged, and a new
    partial is asked for by ``resync``. So are rows of two open positions in one symbol (hedge mode, strategies Long and
    Short): one position of each symbol is followed.
    """

    tables = frozenset({"position", "execution", "instrument"})
    needs_all = True
    private = frozenset({"position", "execution"})
    noun = "position"

    def __init__(self, account: int | None = None, *, keep: int = 10_000) -> None:
        if type(keep) is not int or keep < 1:
            raise ValueError(f"Positions keeps a number of executions that is an int of at least 1, not {keep!r}")
        super().__init__(account)
        self.keep = keep
        self._told: dict[str, _Told] = {}  # by symbol, as the table position says
        self._inventories: dict[str, Inventory] = {}
        self._executions = _Executions(keep)
        self._waiting: dict[str, list[_Execution]] = {}  # by symbol, for its contract
        self._incomplete: set[str | None] = set()  # symbols of which executions may be missing; None: any
        self._instruments: dict[str, Row] = {}
        self._contracts: dict[str, Contract] = {}

    def net(self, currency: str) -> int:
        """Realized and unrealized P&L of all positions that are settled in ``currency`` (``"XBt"``), in its smallest
        unit. 0 where there are none.
        """
        return sum(position.net for position in self._latest.values() if position.currency == currency)

    @property
    def stale(self) -> bool:
        """Whether some position cannot be trusted right now: before the first partial of ``position`` or
        ``execution``, and from a loss to the partial that heals it. It is ahead of the stream where a connection was
        lost.
        """
        topics = list(self._coverage)
        if not any(topic.table in self.private for topic in topics):
            return True
        return any(map(self.is_stale, topics)) or any(not self._is_told(symbol) for symbol in self._incomplete)

    def _is_told(self, symbol: str | None) -> bool:
        """Whether the table position tells of a symbol (None: of all)."""
        return self._coverage.find("position", {} if symbol is None else {"symbol": symbol}) is not None

    def topics_of(self, symbol: str) -> Iterable[Topic]:
        row, find = {"symbol": symbol}, self._coverage.find
        own = find("position", row) or find("execution", row)
        return [topic for topic in (own, find("instrument", row)) if topic is not None]

    def is_lost(self, symbol: str) -> bool:
        if not self._incomplete.isdisjoint((None, symbol)) and not self._is_told(symbol):
            return True
        return super().is_lost(symbol)

    # --- the tables ---

    def load(self, update: TableUpdate, topic: Topic) -> Iterable[Position]:
        if update.table == "position":
            return self._load_positions(update, [symbol for symbol in self if topic.covers({"symbol": symbol})])
        if update.table == "execution":
            self._load_executions(update, topic)
        else:
            self._load_instruments(update, topic)
        return [told for symbol in {**self._latest, **self._inventories} for told in self._show(symbol, update)]

    def change(self, update: TableUpdate, row: Row, topic: Topic) -> Iterable[Position]:
        if update.table == "execution":
            execution = _Execution.read(row)
            if update.action != "insert" or not self._executions.add(execution):
                return ()
            self._take(execution)
            return self._show(execution.symbol, update, row)
        symbol = text_in(row, "symbol")
        if update.table == "position":
            if update.action == "delete":
                return self._leave(symbol, update)
            self._tell_of(_Told.read(row))
        elif update.action == "delete":
            self._instruments.pop(symbol, None)
            self._contracts.pop(symbol, None)
        else:
            mark_price, before = number_in(row, "markPrice"), self._instruments.get(symbol)
            self._instruments[symbol] = row
            if before is None:
                self._take_waiting(symbol)
            elif before.get("markPrice") == mark_price:
                return ()  # most updates are of other columns
        return self._show(symbol, update, row)

    def _load_positions(self, update: TableUpdate, known: list[str]) -> Iterable[Position]:
        """All positions of a topic; ``known``: the symbols known before, of that topic."""
        listed: dict[str, list[_Told]] = {}
        for row in update.rows:
            told = _Told.read(row)
            listed.setdefault(told.symbol, []).append(told)
        of_topic = dict.fromkeys([*known, *listed])
        for symbol in of_topic:
            self._told.pop(symbol, None)
        for rows in listed.values():
            for told in rows:
                self._tell_of(told)
        # From now on they are told of; so what was found out of the executions is of no use any more.
        for symbol in [symbol for symbol in (*self._inventories, *self._waiting) if self._is_told(symbol)]:
            self._inventories.pop(symbol, None)
            self._waiting.pop(symbol, None)
        for symbol in of_topic:
            yield from self._show(symbol, update) if symbol in listed else self._leave(symbol, update)

    def _tell_of(self, told: _Told) -> None:
        other = self._told.get(told.symbol)
        if other is not None and other.strategy != told.strategy and other.size:
            if told.size:
                raise ValueError(
                    f"two positions in {told.symbol}, of the strategies {other.strategy!r:.40} and "
                    f"{told.strategy!r:.40} (hedge mode), where one position of each symbol is followed"
                )
            return
        self._told[told.symbol] = told

    def _leave(self, symbol: str, update: TableUpdate) -> Iterable[Position]:
        """The exchange has no position in a symbol any more."""
        self._told.pop(symbol, None)
        known = self._latest.get(symbol)
        if known is None:
            return ()
        return self.tell_gone(
            symbol,
            update.received,
            size=0,
            average_entry_price=None,
            mark_price=None,
            liquidation_price=None,
            unrealized=0,
            net=known.realized,
        )

    def _load_instruments(self, update: TableUpdate, topic: Topic) -> None:
        rows = {}
        for row in update.rows:
            number_in(row, "markPrice")
            rows[text_in(row, "symbol")] = row
        for symbol in [symbol for symbol, row in self._instruments.items() if topic.covers(row)]:
            del self._instruments[symbol]
        self._instruments.update(rows)
        self._contracts.clear()
        for symbol in list(self._waiting):
            self._take_waiting(symbol)

    # --- inventories of executions ---

    def _load_executions(self, update: TableUpdate, topic: Topic) -> None:
        rows, missing = self._executions.news(update.rows, topic)
        for symbol in missing:
            log.warning(
                "positions may be wrong: no execution of the new partial of %s was known before, so it may not reach "
                "back to the interruption",
                topic.name if symbol is None else f"{topic.name.partition(':')[0]}:{symbol}",
            )
        self._incomplete.update(missing)
        for row in rows:
            try:
                execution = _Execution.read(row)
            except ValueError as error:
                symbol = row.get("symbol")
                self._incomplete.add(symbol if type(symbol) is str else None)
                log.warning("positions may be wrong: an execution cannot be read: %s", error)
                continue
            if self._executions.add(execution):
                self._take(execution)

    def _take(self, execution: _Execution) -> None:
        """An execution that is news."""
        symbol = execution.symbol
        if execution.kind not in _TAKEN or self._is_told(symbol):
            return
        contract = self._contract(symbol)
        if contract is not None:
            inventory = self._inventories.get(symbol)
            if inventory is None:
                inventory = self._inventories[symbol] = Inventory(contract)
            execution.put_into(inventory)
        elif self._instruments.get(symbol, {}).get("typ") != SPOT:
            waiting = self._waiting.setdefault(symbol, [])
            waiting.append(execution)
            if len(waiting) > self.keep:
                waiting.clear()
                self._incomplete.add(symbol)
                log.warning("positions may be wrong: %s has no row in the table instrument; subscribe to it", symbol)

    def _take_waiting(self, symbol: str) -> None:
        if symbol in self._waiting and symbol in self._instruments:
            for execution in self._waiting.pop(symbol):
                self._take(execution)

    def _contract(self, symbol: str) -> Contract | None:
        contract = self._contracts.get(symbol)
        row = self._instruments.get(symbol)
        if contract is None and row is not None and row.get("typ") != SPOT:
            try:
                contract = self._contracts[symbol] = Contract.from_row(row)
            except ValueError:
                return None
        return contract

    # --- what comes out ---

    def _show(self, symbol: str, update: TableUpdate, row: Row | None = None) -> Iterable[Position]:
        """The position in ``symbol``, after the change that ``row`` brought."""
        told, inventory = self._told.get(symbol), self._inventories.get(symbol)
        if told is not None:
            account, currency, size, realized, cost = told.account, told.currency, told.size, told.realized, told.cost
            average, liquidation, mark, unrealized = told.average, told.liquidation, told.mark, told.unrealized
        elif inventory is not None:
            account, currency, size = self.account, inventory.contract.currency, inventory.size
            realized, cost, average = inventory.realized, inventory.cost, inventory.average_entry_price
            liquidation, mark, unrealized = None, None, 0
        else:
            return ()
        live, contract = self._instruments.get(symbol, {}).get("markPrice"), self._contract(symbol)
        if not size:
            average, mark, liquidation, unrealized = None, None, None, 0
        elif _is_price(live) and live != mark and contract is not None and cost is not None:
            mark, unrealized = live, contract.value(size, live) - cost
        known = self._latest.get(symbol)
        timestamp = (row or {}).get("timestamp") or (told.timestamp if told is not None else None)
        if type(timestamp) is not str:
            timestamp = known.timestamp if known is not None else None
        return self.tell(
            symbol,
            Position(
                symbol,
                account,
                currency,
                size,
                average,
                mark,
                liquidation,
                realized,
                unrealized,
                realized + unrealized,
                timestamp,
                update.received,
                update.source,
            ),
        )


class _Told(NamedTuple):
    """A row of the table position, read."""

    symbol: str
    account: int | None
    strategy: str
    currency: str
    size: int
    average: Any
    mark: Any
    liquidation: Any
    realized: int
    unrealized: int
    cost: int | None
    timestamp: str

    @classmethod
    def read(cls, row: Row) -> _Told:
        """ValueError says what is wrong with it."""
        return cls(
            symbol=text_in(row, "symbol"),
            account=account_in(row),
            strategy=text_in(row, "strategy", ""),
            currency=text_in(row, "currency"),
            size=whole_in(row, "currentQty"),
            average=number_in(row, "avgEntryPrice"),
            mark=number_in(row, "markPrice"),
            liquidation=number_in(row, "liquidationPrice"),
            realized=whole_in(row, "realisedPnl", 0),
            unrealized=whole_in(row, "unrealisedPnl", 0),
            cost=None if row.get("unrealisedCost") is None else whole_in(row, "unrealisedCost"),
            timestamp=text_in(row, "timestamp", ""),
        )


def _is_price(number: Any) -> bool:
    """Whether a number (or None) can be a price; what is not marked yet has 0."""
    return number is not None and 1e-30 < number < 1e30


_TAKEN = frozenset({"Trade", "Funding", "Settlement"})


class _Execution(NamedTuple):
    """A row of the table execution, read. Of kinds that change no position, what identifies it."""

    exec_id: str
    symbol: str
    kind: str
    side: str = ""
    size: int = 0
    price: Any = None
    cost: int | None = None
    fee: int = 0

    @classmethod
    def read(cls, row: Row) -> _Execution:
        """ValueError says what is wrong with it."""
        exec_id, kind = text_in(row, "execID"), text_in(row, "execType", "")
        if kind not in _TAKEN:
            return cls(exec_id, text_in(row, "symbol", ""), kind)
        symbol, fee = text_in(row, "symbol"), whole_in(row, "execComm", 0)
        if kind == "Funding":
            return cls(exec_id, symbol, kind, fee=fee)
        price = number_in(row, "lastPx")
        if not _is_price(price):
            raise ValueError(f"its lastPx is no price: {row!r:.200}")
        if kind == "Settlement":
            return cls(exec_id, symbol, kind, price=price, fee=fee)
        side, size = text_in(row, "side"), whole_in(row, "lastQty")
        if side not in ("Buy", "Sell") or size < 1:
            raise ValueError(f"its side or lastQty is none of a trade: {row!r:.200}")
        cost = None if row.get("execCost") is None else whole_in(row, "execCost")
        return cls(exec_id, symbol, kind, side, size, price, cost, fee)

    def put_into(self, inventory: Inventory) -> None:
        if self.kind == "Trade":
            inventory.fill(self.side, self.size, self.price, cost=self.cost, fee=self.fee)
            return
        inventory.funding(self.fee)
        if self.kind == "Settlement" and inventory.size:  # closes all that is open
            inventory.fill("Sell" if inventory.size > 0 else "Buy", abs(inventory.size), self.price)


class _Executions:
    """Which executions are known, by execID: the last ``keep`` of them, and what partials have told of since when."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self._known: dict[str, str] = {}  # execID: symbol, in the order they came
        self._any: set[str] = set()  # the symbols of which any was ever known
        self._followed: list[Topic] = []  # what partials have come for

    def add(self, execution: _Execution) -> bool:
        """Whether it is a new one."""
        if execution.exec_id in self._known:
            return False
        self._remember(execution.exec_id, execution.symbol)
        return True

    def _remember(self, exec_id: str, symbol: str) -> None:
        self._known[exec_id] = symbol
        self._any.add(symbol)
        if len(self._known) > self.keep:
            del self._known[next(iter(self._known))]

    def news(self, rows: Iterable[Row], topic: Topic) -> tuple[list[Row], list[str | None]]:
        """The rows of a partial that are news, in the order of time; and the symbols (None: any) of which others may
        be missing.

        What comes for the first time is history. Where a partial has an execution that is known, it has all that
        followed, and what is before that was known and is forgotten; where it has none, it may not reach back.
        """
        ordered = sorted(rows, key=lambda row: time_in(row) or 0)
        if any(followed.covers(topic.filter) for followed in self._followed):
            scopes = [topic]
        else:
            scopes = [followed for followed in self._followed if topic.covers(followed.filter)]
        news: list[Row] = []
        missing: list[str | None] = []
        for scope in scopes:
            of_scope = [row for row in ordered if scope.covers(row)]
            first = next((index for index, row in enumerate(of_scope) if self._knows(row)), None)
            if first is None and (of_scope or any(scope.covers({"symbol": symbol}) for symbol in self._any)):
                symbol = scope.filter.get("symbol")
                missing.append(symbol if type(symbol) is str else None)
            news += [row for row in of_scope[first or 0 :] if not self._knows(row)]
        for row in ordered:
            exec_id, symbol = row.get("execID"), row.get("symbol")
            if type(exec_id) is str and exec_id not in self._known and not any(scope.covers(row) for scope in scopes):
                self._remember(exec_id, symbol if type(symbol) is str else "")
        self._followed = [*(followed for followed in self._followed if not topic.covers(followed.filter)), topic]
        return news, missing

    def _knows(self, row: Mapping[str, Any]) -> bool:
        exec_id = row.get("execID")
        return type(exec_id) is str and exec_id in self._known
