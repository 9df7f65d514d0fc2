"""`Orders`: the open orders of an account, and each change of one.

The exchange lists the open orders in a partial, and sends each change of one, the last of which closes it. So an open
order that a later partial does not list was closed meanwhile, and nothing more will be said of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from ..coverage import Topic
from ..messages import OrderState, Row, TableUpdate
from .follower import AccountFollower, account_in, number_in, text_in, whole_in

__all__ = ["Orders"]

# Whatever else an order may be (New, PartiallyFilled, PendingCancel, Triggered, ...), it can still be filled.
_CLOSED = frozenset({"Filled", "Canceled", "Rejected", "Expired"})


class Orders(AccountFollower):
    """The open orders of an account: `OrderState` items, behind the `TableUpdate` items of the table ``order``.

    It stands behind a `TableApplier` (else TypeError). Everything that comes in passes unchanged, and each change of an
    order is put out right behind what brought it:

    * an insert or update that changes something: the order as it is then. One that closes it (``ordStatus`` Filled,
      Canceled, Rejected or Expired; a delete) is put out once with ``open`` False, and the order leaves. An order that
      was filled or cancelled and is amended so that it lives again is open again;
    * a partial: each open order that was not known, or is not as it was known (or was stale). Each that was known to be
      open and is not listed is put out with ``open`` False and ``stale``: it was closed while nobody looked, and how is
      not known (`Fills` may tell). Closed orders that were not known to be open are history, and nothing is said of
      them;
    * a loss of state: each open order of the topic, as it was last known, with ``stale``.

    ``orders.open`` and ``orders.by_client_id`` are fresh dicts of the open orders; ``orders[order_id]``,
    ``order_id in orders``, ``len(orders)`` and iteration (over order ids) are of the same. When a connection is lost,
    what is read is stale at once, ahead of the stream. Memory: the open orders.

    ``account``: int, the only one that is followed (a TypeError for what is no int); None: all that are told of.

    A row that cannot be an order (no orderID, symbol or ordStatus, a field of a wrong type) is a loss of the state of
    its topic: logged, and a new partial is asked for by ``resync``.
    """

    tables = frozenset({"order"})
    needs_all = True

    def __init__(self, account: int | None = None) -> None:
        super().__init__(account)
        self._open: dict[str, OrderState] = {}

    @property
    def open(self) -> dict[str, OrderState]:
        """The open orders by order id (orderID), oldest known first. A fresh dict."""
        return {order_id: self._now(order) for order_id, order in self._open.items()}

    @property
    def by_client_id(self) -> dict[str, OrderState]:
        """The open orders that have one by client order id (clOrdID), oldest known first. A fresh dict.

        The ids are unique within an account. Raises ValueError where open orders of two accounts have the same.
        """
        found: dict[str, OrderState] = {}
        for order in self._open.values():
            if order.client_order_id:
                other = found.get(order.client_order_id)
                if other is not None and other.account != order.account:
                    raise ValueError(
                        f"open orders of the accounts {other.account} and {order.account} both have the client order "
                        f"id {order.client_order_id!r:.80}: give each account its own section, as in "
                        f"Orders(account={other.account})"
                    )
                found[order.client_order_id] = self._now(order)
        return found

    def of(self, symbol: str) -> list[OrderState]:
        """The open orders of a symbol, oldest known first."""
        return [self._now(order) for order in self._open.values() if order.symbol == symbol]

    def __getitem__(self, order_id: str) -> OrderState:
        """An open order. Raises KeyError where there is none of that id."""
        try:
            return self._now(self._open[order_id])
        except KeyError:
            raise KeyError(f"no open order has the order id {order_id!r}") from None

    def __contains__(self, order_id: object) -> bool:
        return order_id in self._open

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._open))

    def __len__(self) -> int:
        return len(self._open)

    def _now(self, order: OrderState) -> OrderState:
        """An order as it is to be read: stale also where its loss has not come through the stream yet."""
        topic = None if order.stale else self._coverage.find("order", order.row)
        return order if topic is None or not self.is_stale(topic) else replace(order, stale=True)

    def load(self, update: TableUpdate, topic: Topic) -> Iterable[OrderState]:
        listed = {order.order_id: order for order in [_order(row, update) for row in update.rows]}
        gone = [
            replace(order, open=False, stale=True, received=update.received, source=update.source)
            for order_id, order in self._open.items()
            if order_id not in listed and topic.covers(order.row)
        ]
        for order in listed.values():
            if order.open or order.order_id in self._open:
                yield from self._take(order)
        for order in gone:
            del self._open[order.order_id]
            yield order

    def change(self, update: TableUpdate, row: Row, topic: Topic) -> Iterable[OrderState]:
        order = _order(row, update)
        if update.action == "delete":
            order = replace(order, open=False)
        if update.action == "insert" or order.open or order.order_id in self._open:
            return self._take(order)
        return ()  # closed before, and told

    def lose(self, topic: Topic, received: int) -> Iterable[OrderState]:
        lost = [
            replace(order, stale=True, received=received)
            for order in self._open.values()
            if not order.stale and self._coverage.find("order", order.row) is topic
        ]
        self._open.update((order.order_id, order) for order in lost)
        return lost

    def _take(self, order: OrderState) -> Iterable[OrderState]:
        """An order as it is now: put out where that is news."""
        before = self._open.get(order.order_id)
        if not order.open:
            self._open.pop(order.order_id, None)
        elif before is not None and before.row == order.row and not before.stale:
            return ()
        else:
            self._open[order.order_id] = order
        return (order,)


def _order(row: Row, update: TableUpdate) -> OrderState:
    """A row of the table; ValueError says what is wrong with it."""
    status = text_in(row, "ordStatus")
    return OrderState(
        order_id=text_in(row, "orderID"),
        client_order_id=text_in(row, "clOrdID", ""),
        account=account_in(row),
        symbol=text_in(row, "symbol"),
        side=text_in(row, "side", ""),
        order_type=text_in(row, "ordType", ""),
        price=number_in(row, "price"),
        size=whole_in(row, "orderQty", 0),
        leaves=whole_in(row, "leavesQty", 0),
        filled=whole_in(row, "cumQty", 0),
        average_price=number_in(row, "avgPx"),
        status=status,
        open=status not in _CLOSED,
        text=text_in(row, "text", ""),
        timestamp=text_in(row, "timestamp", "") or None,
        received=update.received,
        source=update.source,
        row=row,
    )
