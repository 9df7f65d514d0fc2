"""`Fills`: the executions of an account by which its orders were filled, each once.

The exchange sends an execution once, and begins a subscription with a partial of the last ones. So after an
interruption the partial tells what was missed, where it reaches back far enough: where it has an execution that was
known before. What is older than that one is no news: it was known and is forgotten, or was told to be missing.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any

from ..coverage import Topic
from ..messages import Fill, FillsMissing, Row, TableUpdate, symbol_of
from .follower import AccountFollower, account_in, number_in, text_in, time_in, whole_in

__all__ = ["Fills"]

log = logging.getLogger("bitmex_streams")

# "AddedLiquidity" and "RemovedLiquidity" in the stream; the REST interface has them shorter.
_MAKER = {"AddedLiquidity": True, "Added": True, "RemovedLiquidity": False, "Removed": False}


class Fills(AccountFollower):
    """The fills of an account: `Fill` items, behind the `TableUpdate` items of the table ``execution``.

    It stands behind a `TableApplier` (else TypeError). Everything that comes in passes unchanged. Each execution of
    execType ``Trade`` is put out once, by its execID, right behind what brought it, also where it is sent again or
    comes over another connection. Executions of other types (New, Canceled, Replaced, Funding, Settlement, ...) are no
    fills. BitMEX is not known to have sent cancellations or corrections of trades; a `Fill` is never taken back.

    The rows of the first partial of a topic are history: they are in `recent`, and not put out. A later partial ends an
    interruption (a lost connection, or a new partial asked for): those of its trades that are news are put out with
    ``late``, in the order of their timestamps. Where none of its rows was known before, it may not reach back to the
    interruption, and a `FillsMissing` is put out before them; also where it has no rows, unless none was ever known.
    Another one says that an execution in it could not be read, or that the input ended before such a partial came.

    ``keep`` (int, at least 1, else ValueError): how many executions, of any type, are remembered by their execID; those
    that are forgotten are told from news by their timestamps. `recent` holds the last ``keep`` fills. So memory is
    bounded. ``account``: int, the only one that is followed (a TypeError for what is no int); None: all that are told
    of, where each `Fill` names its own.

    An inserted row that cannot be an execution (no execID; a trade without symbol, orderID, lastQty or lastPx, or with
    a field of a wrong type) is a loss of the state of its topic: logged, and a new partial is asked for by ``resync``.
    """

    tables = frozenset({"execution"})
    needs_all = True

    recent: Sequence[Fill]
    """The last fills, oldest known first; those of the first partial among them. It is live: only read it."""

    def __init__(self, keep: int = 10_000, *, account: int | None = None) -> None:
        if type(keep) is not int or keep < 1:
            raise ValueError(f"Fills keeps a number of executions that is an int of at least 1, not {keep!r}")
        super().__init__(account)
        self.keep = keep
        self._recent: deque[Fill] = deque(maxlen=keep)
        self.recent = self._recent
        self._known: OrderedDict[str, dict[str, Any]] = OrderedDict()  # by execID: time (ns), account and symbol
        self._forgotten = -1  # the latest time of an execution that was known and is no more
        self._followed: list[Topic] = []  # what partials have come for, each scope once
        self._received = 0

    def load(self, update: TableUpdate, topic: Topic) -> Iterable[Fill | FillsMissing]:
        self._received = update.received
        rows = {_exec_id(row) or f"row {index}": row for index, row in enumerate(_in_order(update.rows))}  # each once
        known = rows.keys() & self._known.keys()
        forgotten = self._forgotten
        scopes = self._followed_before(topic)
        overlapping: set[Topic] = set()
        for scope in scopes:
            of_scope = {exec_id for exec_id, row in rows.items() if scope.covers(row)}
            if of_scope & known:
                overlapping.add(scope)
            elif of_scope or self._knew(scope):
                yield self._missing(scope, "no execution of the new partial was known before: it may not reach back")
        reached: set[Topic | None] = set()  # the topics in which what was known has come: what follows is news
        for exec_id, row in rows.items():
            of = next((scope for scope in scopes if scope.covers(row)), None)
            if exec_id in known:
                reached.add(of)
            elif of is None:
                self._add_from_partial(row, update, topic, late=False)
            elif of in reached or (of not in overlapping and (time_in(row) or forgotten + 1) > forgotten):
                yield from self._add_from_partial(row, update, of, late=True)
        if not any(followed.covers(topic.filter) for followed in self._followed):
            self._followed.append(topic)

    def change(self, update: TableUpdate, row: Row, topic: Topic) -> Iterable[Fill]:
        self._received = update.received
        if update.action != "insert" or _exec_id(row) in self._known:
            return ()
        fill = _fill(row, update)
        self._remember(row, fill)
        return (fill,) if fill is not None else ()

    def lose(self, topic: Topic, received: int) -> Iterable[Any]:
        self._received = received
        return ()  # what was missed is told by the partial that follows

    def finish(self) -> Iterable[FillsMissing]:
        for topic in self._coverage:
            if self.is_stale(topic):
                reason = self._coverage.announced(topic.source) or topic.stale
                yield self._missing(topic, f"the stream ended before a partial ended an interruption: {reason}")

    def _followed_before(self, topic: Topic) -> list[Topic]:
        """What of a topic was followed before, as topics."""
        if any(followed.covers(topic.filter) for followed in self._followed):
            return [topic]
        return [followed for followed in self._followed if topic.covers(followed.filter)]

    def _knew(self, scope: Topic) -> bool:
        """Whether any execution of a topic was ever known (or may have been, and is forgotten)."""
        return self._forgotten >= 0 or any(scope.covers(known) for known in self._known.values())

    def _add_from_partial(
        self, row: Row, update: TableUpdate, topic: Topic, *, late: bool
    ) -> Iterable[Fill | FillsMissing]:
        try:
            fill = _fill(row, update, late=late)
        except ValueError as error:
            self._remember(row)  # so that it is told once
            if not late:
                return ()
            log.warning("fills may be missing: an execution of %s cannot be read, %s", topic.name, error)
            return (self._missing(topic, f"an execution cannot be read, {error}"),)
        self._remember(row, fill)
        return (fill,) if fill is not None else ()

    def _remember(self, row: Row, fill: Fill | None = None) -> None:
        if fill is not None:
            self._recent.append(fill)
        exec_id = _exec_id(row)
        if exec_id is not None:
            of = {key: row[key] for key in ("account", "symbol") if key in row}
            self._known[exec_id] = {"time": time_in(row)} | of
            if len(self._known) > self.keep:
                _, oldest = self._known.popitem(last=False)
                self._forgotten = max(self._forgotten, oldest["time"] or 0)

    def _missing(self, topic: Topic, reason: str) -> FillsMissing:
        since = next((fill.timestamp for fill in reversed(self._recent) if topic.covers(fill.row)), None)
        return FillsMissing(self._received, topic.source, reason, since, symbol_of(topic.filter))


def _in_order(rows: Iterable[Row]) -> list[Row]:
    """Rows in the order of their timestamps; those of one, and those without, stay where they were sent."""
    timed, latest = [], 0
    for row in rows:
        time = time_in(row)
        latest = latest if time is None else time
        timed.append((latest, row))
    return [row for _, row in sorted(timed, key=itemgetter(0))]


def _exec_id(row: Row) -> str | None:
    exec_id = row.get("execID")
    return exec_id if type(exec_id) is str else None


def _fill(row: Row, update: TableUpdate, *, late: bool = False) -> Fill | None:
    """A row of the table as a fill; None where it is an execution of another type. ValueError says what is wrong with
    it.
    """
    exec_id = text_in(row, "execID")
    if text_in(row, "execType", "") != "Trade":
        return None
    price = number_in(row, "lastPx")
    if price is None:
        raise ValueError(f"it has no lastPx: {row!r:.200}")
    return Fill(
        exec_id=exec_id,
        order_id=text_in(row, "orderID"),
        client_order_id=text_in(row, "clOrdID", ""),
        account=account_in(row),
        symbol=text_in(row, "symbol"),
        side=text_in(row, "side", ""),
        size=whole_in(row, "lastQty"),
        price=price,
        is_maker=_MAKER.get(text_in(row, "lastLiquidityInd", "")),
        fee=whole_in(row, "execComm", 0),
        fee_rate=number_in(row, "commission"),
        currency=text_in(row, "settlCurrency", ""),
        timestamp=text_in(row, "timestamp", "") or None,
        received=update.received,
        source=update.source,
        row=row,
        late=late,
    )
