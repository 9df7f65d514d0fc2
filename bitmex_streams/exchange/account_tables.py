"""The private tables of one account: what a partial holds, and the deltas of what changes in them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from ..messages import Row
from .schemas import PRIVATE_SCHEMAS
from .tables import Feed

__all__ = ["AccountTables"]

KEPT_EXECUTIONS = 10_000
RECENT_EXECUTIONS = 100  # of them, in a partial
RECENT_NOTIFICATIONS = 100
NAMES = ("orderID", "clOrdID", "account", "symbol")  # what a delta of an order holds besides what changed


class AccountTables:
    """``feed``: who is subscribed to which of the account's topics.

    The rows, oldest first: ``orders`` (open ones, by orderID), ``executions`` (the last 10,000), ``positions`` (by
    symbol), ``margins`` and ``wallets`` (by currency), ``transacts``, ``notifications``. What happens to orders is kept
    back until `publish_orders`, the rest is published at once.
    """

    def __init__(self, account: int) -> None:
        self.feed = Feed()
        self.orders: dict[str, Row] = {}
        self.executions: deque[Row] = deque(maxlen=KEPT_EXECUTIONS)
        self.positions: dict[str, Row] = {}
        self.margins: dict[str, Row] = {}
        self.wallets: dict[str, Row] = {}
        self.transacts: list[Row] = []
        self.notifications: deque[Row] = deque(maxlen=RECENT_NOTIFICATIONS)
        self._account = account
        self._inserted: list[Row] = []
        self._updated: dict[str, tuple[Row, Row]] = {}  # by orderID: the row, what changed in it
        self._executed: list[Row] = []

    def rows(self, table: str, symbol: str | None = None) -> list[Row]:
        """The rows of a partial: open orders only, and the last executions."""
        tables: Mapping[str, Iterable[Row]] = {
            "order": self.orders.values(), "execution": self.executions, "position": self.positions.values(),
            "margin": self.margins.values(), "wallet": self.wallets.values(), "transact": self.transacts,
            "privateNotifications": self.notifications, "affiliate": (),  # nobody was ever referred
        }  # fmt: skip
        rows = [row for row in tables[table] if symbol is None or row["symbol"] == symbol]
        return rows[-RECENT_EXECUTIONS:] if table == "execution" else rows

    def partial(self, table: str, symbol: str | None = None) -> str:
        """The message that begins the subscription of a topic."""
        schema = PRIVATE_SCHEMAS[table]
        filter: Row = {"account": self._account} if symbol is None else {"account": self._account, "symbol": symbol}
        return msgspec.json.encode({
            "table": table, "action": "partial", "keys": schema.keys, "types": schema.types,
            "foreignKeys": schema.foreign_keys, "attributes": schema.attributes, "filter": filter,
            "data": self.rows(table, symbol),
        }).decode()  # fmt: skip

    def insert_order(self, row: Row) -> None:
        """A new order. Its row changes by `update_order` alone from here on."""
        self.orders[row["orderID"]] = row
        self._inserted.append(dict(row))

    def update_order(self, row: Row, changes: Row, timestamp: str) -> None:
        """Change the row of an order."""
        changes = {name: value for name, value in changes.items() if row[name] != value}
        changes["transactTime"] = changes["timestamp"] = timestamp
        row.update(changes)
        self._updated.setdefault(row["orderID"], (row, {}))[1].update(changes)

    def close_order(self, row: Row) -> None:
        """The order is done: it leaves the table, of which nobody is told by more than its last state."""
        del self.orders[row["orderID"]]

    def insert_execution(self, row: Row) -> None:
        """Something became of an order, or of a position by funding."""
        self.executions.append(row)
        self._executed.append(row)

    def publish_orders(self) -> None:
        """Publish what became of orders since the last time, at most one message for each table and action."""
        inserted, self._inserted = self._inserted, []
        updated, self._updated = self._updated, {}
        executed, self._executed = self._executed, []
        self.feed.publish_mixed("order", "insert", inserted)
        changed = [{**{name: row[name] for name in NAMES}, **changes} for row, changes in updated.values()]
        self.feed.publish_mixed("order", "update", changed)
        self.feed.publish_mixed("execution", "insert", executed)

    def put(self, table: str, rows: Sequence[Row]) -> None:
        """Put rows as they are now into ``position``, ``margin`` or ``wallet``, and publish what is new in them: whole
        rows first, then what changed of others.
        """
        kept = {"position": self.positions, "margin": self.margins, "wallet": self.wallets}[table]
        column, keys = "symbol" if table == "position" else "currency", PRIVATE_SCHEMAS[table].keys
        inserts: list[Row] = []
        updates: list[Row] = []
        for row in rows:
            before = kept.get(row[column])
            if before is None:
                inserts.append(row)
            else:
                changed = {name: value for name, value in row.items() if before[name] != value}
                if changed.keys() <= {"timestamp"}:
                    continue
                updates.append({**{name: row[name] for name in keys}, **changed, "timestamp": row["timestamp"]})
            kept[row[column]] = row
        self.feed.publish_mixed(table, "insert", inserts)
        self.feed.publish_mixed(table, "update", updates)

    def append(self, table: str, row: Row) -> None:
        """Add a row to ``transact`` or ``privateNotifications``."""
        (self.transacts if table == "transact" else self.notifications).append(row)
        self.feed.publish(table, None, "insert", [row])
