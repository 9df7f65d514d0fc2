"""`Margin`: the margin of an account, by currency."""

from __future__ import annotations

from collections.abc import Iterable

from ..coverage import Topic
from ..messages import MarginState, Row, TableUpdate
from .follower import account_in, number_in, text_in, whole_in
from .latest import OfAccount

__all__ = ["Margin"]


class Margin(OfAccount[MarginState]):
    """The margin of an account: a mapping of currency (str, ``"XBt"``, ``"USDt"``) to its latest `MarginState`, which
    is put out behind the `TableUpdate` of the table ``margin`` that changed it.

    It stands behind a `TableApplier` (else TypeError). Everything that comes in passes unchanged. ``margin["XBt"]``
    raises KeyError for a currency that the exchange has not told of; ``get``, ``in``, ``len``, ``items()`` and so on
    are a mapping's. What is read is `stale` from the loss of the state to the next partial, at once, ahead of the
    stream; in the stream one item per currency says so with ``stale``. A currency that a new partial does not list any
    more leaves with such a mark, too.

    ``account``: int, the only one that is followed; None: the first that is told of, and a second one is a ValueError.

    Amounts are as the exchange says. walletBalance, marginBalance and availableMargin must be there; others that it
    leaves out are 0. A row that cannot be one (also: without currency, or with a wrong type) is a loss of state: it is
    logged, and a new partial is asked for by ``resync``.
    """

    tables = frozenset({"margin"})
    needs_all = True
    private = tables
    noun = "margin"

    def topics_of(self, currency: str) -> Iterable[Topic]:
        topic = self._coverage.find("margin", {"currency": currency})
        return () if topic is None else (topic,)

    def load(self, update: TableUpdate, topic: Topic) -> Iterable[MarginState]:
        states = [_state(row, update) for row in update.rows]
        listed = {state.currency for state in states}
        for currency in [key for key in self if key not in listed and topic.covers({"currency": key})]:
            yield from self.tell_gone(currency, update.received)
        for state in states:
            yield from self.tell(state.currency, state)

    def change(self, update: TableUpdate, row: Row, topic: Topic) -> Iterable[MarginState]:
        if update.action == "delete":
            return self.tell_gone(text_in(row, "currency"), update.received)
        state = _state(row, update)
        return self.tell(state.currency, state)


def _state(row: Row, update: TableUpdate) -> MarginState:
    return MarginState(
        account=account_in(row),
        currency=text_in(row, "currency"),
        wallet_balance=whole_in(row, "walletBalance"),
        margin_balance=whole_in(row, "marginBalance"),
        available_margin=whole_in(row, "availableMargin"),
        withdrawable_margin=whole_in(row, "withdrawableMargin", 0),
        initial_margin=whole_in(row, "initMargin", 0),
        maintenance_margin=whole_in(row, "maintMargin", 0),
        realized=whole_in(row, "realisedPnl", 0),
        unrealized=whole_in(row, "unrealisedPnl", 0),
        leverage=number_in(row, "marginLeverage"),
        timestamp=text_in(row, "timestamp", "") or None,
        received=update.received,
        source=update.source,
        row=row,
    )
