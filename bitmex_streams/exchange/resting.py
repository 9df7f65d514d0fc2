"""What the open orders of an account come to, kept as they change: with thousands of them, no order is slow."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from math import inf
from operator import itemgetter

from sortedcontainers import SortedDict

from ..messages import Side
from .instruments import Instrument
from .market import Order
from .positions import opening_value

__all__ = ["RestingSide"]


class RestingSide:
    """The open limit orders of an account on one side of a contract.

    ``quantity``: contracts, ``cost``: their cost at the limits (with the sign of a long position), of all of them.
    """

    def __init__(self, instrument: Instrument, side: Side) -> None:
        self.quantity = 0
        self.cost = 0
        self._instrument = instrument
        self._best_first = -1 if side == "Buy" else 1
        self._counted: dict[str, tuple[int, int, tuple[int, int] | None]] = {}  # by id: contracts, cost, its key below
        self._opening = SortedDict()  # of those that may open a position, as they would be filled: contracts, ticks
        self._value = 0  # of these

    def put(self, order: Order, number: int, reduce_only: bool) -> None:
        """Count an order, as it is now. Of equal prices, the one with the lower ``number`` comes first."""
        self.remove(order.id)
        if order.ticks is None:
            return
        leaves, ticks, instrument = order.leaves, order.ticks, self._instrument
        cost = instrument.cost(leaves, instrument.price(ticks))
        key = None if reduce_only else (ticks * self._best_first, number)
        if key is not None:
            self._opening[key] = leaves, ticks
            self._value += instrument.value(leaves, ticks)
        self._counted[order.id] = leaves, cost, key
        self.quantity += leaves
        self.cost += cost

    def remove(self, order_id: str) -> None:
        """Count an order no longer; nothing where it is not counted."""
        leaves, cost, key = self._counted.pop(order_id, (0, 0, None))
        self.quantity -= leaves
        self.cost -= cost
        if key is not None:
            self._value -= self._instrument.value(*self._opening.pop(key))

    def opening_value(self, closing: int, more: Sequence[tuple[int, int]] = (), without: str | None = None) -> int:
        """The value of what they would open, where the first ``closing`` contracts close a position: with some more
        (contracts, ticks), without the order of an id.
        """
        value_of = self._instrument.value
        value = self._value + sum(value_of(*piece) for piece in more)
        _, _, skipped = self._counted.get(without or "", (0, 0, None))
        if skipped is not None:
            value -= value_of(*self._opening[skipped])
        if not closing:
            return value
        pieces = sorted((((piece[1] * self._best_first, inf), piece) for piece in more), key=itemgetter(0))
        first: list[tuple[int, int]] = []  # those that close
        left = closing
        for key, piece in heapq.merge(self._opening.items(), pieces, key=itemgetter(0)):
            if key == skipped:
                continue
            first.append(piece)
            left -= piece[0]
            if left <= 0:
                break
        return value - sum(value_of(*piece) for piece in first) + opening_value(self._instrument, first, closing)
