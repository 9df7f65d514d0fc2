"""The tables: rows by key, and what does not fit is a ValueError in words."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from sortedcontainers import SortedDict

from bitmex_streams.messages import Row, TableMessage
from bitmex_streams.sections.tables import TableApplier
from bitmex_streams.storage import Storage


def trade(second: int, price: float = 1.0) -> dict[str, object]:
    return {"timestamp": f"2026-01-01T00:00:0{second}.000Z", "symbol": "XBTUSD", "price": price}


def trades(rows: list[dict[str, object]], action: str = "insert") -> TableMessage:
    if action == "partial":
        return TableMessage("trade", "partial", rows, 0, "", [], {}, {}, {"timestamp": "sorted"}, {})
    return TableMessage("trade", action, rows, 0)  # type: ignore[arg-type]


def test_trades_of_the_same_time_are_all_kept_in_order_of_time_and_arrival() -> None:
    tables = TableApplier()
    tables.process(trades([trade(2, 1.0)], "partial"))
    tables.process(trades([trade(2, 2.0), trade(1, 3.0), trade(2, 4.0)]))
    assert [row["price"] for row in tables.storage.data["trade"].values()] == [3.0, 1.0, 2.0, 4.0]
    assert tables.storage.keys["trade"] == ("timestamp",)
    first = tables.storage.make_key("trade", trade(1))
    assert tables.storage.data["trade"].peekitem(0)[0][:-1] == first


def test_only_the_newest_rows_of_a_table_that_grows_are_kept() -> None:
    tables = TableApplier(max_rows=3)
    tables.process(trades([trade(n) for n in range(5)], "partial"))
    for n in range(5, 8):
        tables.process(trades([trade(n)]))
    assert [row["timestamp"][18] for row in tables.storage.data["trade"].values()] == ["5", "6", "7"]


def test_an_update_of_a_trimmed_row_is_no_loss_of_state() -> None:
    tables = TableApplier(max_rows=2)
    keys = ["timestamp", "symbol"]
    tables.process(TableMessage("funding", "partial", [trade(n) for n in range(4)], 0, "", keys, {}, {}, {}, {}))
    assert list(tables.process(TableMessage("funding", "update", [trade(1, 9.0)], 0))) == []
    assert tables.stale == {}
    (stale,) = tables.process(TableMessage("funding", "update", [trade(9, 9.0)], 0))
    assert stale.action == "stale"


def test_order_books_are_kept_by_symbol_side_and_id_and_have_no_key_tuples() -> None:
    tables = TableApplier()
    row = {"symbol": "XBTUSD", "id": 7, "side": "Buy", "size": 1, "price": 10.0}
    tables.process(TableMessage("orderBookL2", "partial", [row], 0, "", ["symbol", "id", "side"], {}, {}, {}, {}))
    assert tables.storage.orderbook is tables.storage.data["orderBookL2"]
    assert tables.storage.orderbook["XBTUSD"]["Buy"][7] == row
    assert list(tables.storage.orderbook["XBTUSD"]["Sell"]) == []
    with pytest.raises(ValueError, match="symbol"):
        tables.storage.make_key("orderBookL2", row)


@pytest.mark.parametrize("filter", [{"account": 5}, {"symbol": "XBTUSD", "side": "Buy"}, {"symbol": 5}, {"symbol": {}}])
def test_a_partial_of_books_whose_filter_is_of_no_symbol_is_refused_and_empties_no_book(filter: dict[str, Any]) -> None:
    tables = TableApplier()
    row = {"symbol": "ETHUSD", "id": 7, "side": "Buy", "size": 1, "price": 10.0}
    tables.process(TableMessage("orderBookL2", "partial", [row], 0, "ws://one", filter={"symbol": "ETHUSD"}))
    (mark,) = tables.process(TableMessage("orderBookL2", "partial", [], 0, "ws://two", filter=filter))
    assert (mark.action, mark.source) == ("stale", "ws://two")
    assert tables.storage.orderbook["ETHUSD"]["Buy"] == {7: row}


def test_what_is_not_there_yet_reads_as_empty_and_reading_keeps_nothing() -> None:
    storage = Storage()
    assert storage.orderbook["XBTUSD"]["Buy"] == storage.data["orderBookL2"]["XBTUSD"]["Sell"] == {}
    assert storage.data["orderBookL2_25"]["XBTUSD"]["Buy"] == {}
    assert isinstance(storage.orderbook["XBTUSD"]["Buy"], SortedDict)
    assert isinstance(storage.data["instrument"], SortedDict)
    storage.data["instrument"]["XBTUSD",] = {}
    storage.orderbook["XBTUSD"]["Buy"][7] = {}
    assert storage.data == {"orderBookL2": {}}
    tables = TableApplier()
    row = {"symbol": "XBTUSD", "id": 7, "side": "Buy", "size": 1, "price": 10.0}
    tables.process(TableMessage("orderBookL2_25", "partial", [row], 0, "", ["symbol", "id", "side"], {}, {}, {}, {}))
    assert tables.storage.data["orderBookL2_25"]["ETHUSD"]["Buy"] == {}
    assert list(tables.storage.data["orderBookL2_25"]) == ["XBTUSD"]


def test_a_key_that_cannot_be_made_is_an_error_in_words() -> None:
    tables = TableApplier()
    with pytest.raises(ValueError, match="no partial of it"):
        tables.storage.make_key("instrument", {})
    tables.process(TableMessage("instrument", "partial", [], 0, "", ["symbol"], {}, {}, {}, {}))
    assert tables.storage.make_key("instrument", {"symbol": "XBTUSD", "lastPrice": 1}) == ("XBTUSD",)
    with pytest.raises(ValueError, match="'symbol'"):
        tables.storage.make_key("instrument", {"lastPrice": 1})


@pytest.mark.parametrize("digits", ["", ".5", ".123", ".123456", ".1234567"])
def test_timestamps_become_aware_datetimes_whatever_their_precision(digits: str) -> None:
    parsed = Storage.parse_timestamp(f"2019-06-01T00:00:28{digits}Z")
    assert parsed.tzinfo is UTC
    assert parsed == datetime(2019, 6, 1, 0, 0, 28, int(digits[1:7].ljust(6, "0")), tzinfo=UTC)


def test_what_is_no_timestamp_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="yesterday"):
        Storage.parse_timestamp("yesterday")


def test_a_limit_below_one_row_is_refused() -> None:
    with pytest.raises(ValueError, match="max_rows"):
        Storage(0)


# --- the table order


MINUTE = 60_000_000_000
START = 1_767_225_600_000_000_000


def orders(action: Any, *rows: Row, at: float = 0) -> TableMessage:
    """A message of the table ``order``, received ``at`` minutes after the start."""
    received = START + int(at * MINUTE)
    if action == "partial":
        return TableMessage("order", "partial", rows, received, "", ["orderID"], {}, {}, {}, {"account": 5})
    return TableMessage("order", action, rows, received)


def order(number: int, status: str = "New", **more: Any) -> Row:
    return {"orderID": f"id-{number}", "account": 5, "symbol": "XBTUSD", "ordStatus": status, **more}


def open_orders(*rows: Row) -> TableApplier:
    tables = TableApplier()
    tables.process(orders("partial", *rows))
    return tables


def kept(tables: TableApplier) -> list[str]:
    return [order_id for (order_id,) in tables.storage.data["order"]]


@pytest.mark.parametrize("status", ["Filled", "Canceled", "Rejected", "Expired"])
def test_a_closed_order_leaves_after_its_minute_with_the_next_message_of_whatever_table(status: str) -> None:
    tables = open_orders(order(1), order(2))
    tables.process(orders("update", order(1, status), at=1))
    tables.process(TableMessage("trade", "insert", [trade(1)], START + 2 * MINUTE - 1))
    assert kept(tables) == ["id-1", "id-2"]
    tables.process(TableMessage("trade", "insert", [trade(1)], START + 2 * MINUTE))
    assert kept(tables) == ["id-2"], "an open one stays, however old"


def test_closed_orders_of_a_partial_and_of_an_insert_leave_too() -> None:
    tables = open_orders(order(1, "Filled"), order(2))
    tables.process(orders("insert", order(3, "Rejected"), at=0.5))
    assert kept(tables) == ["id-1", "id-2", "id-3"]
    tables.process(orders("insert", order(4), at=1))
    assert kept(tables) == ["id-2", "id-3", "id-4"]
    tables.process(orders("insert", order(5), at=1.5))
    assert kept(tables) == ["id-2", "id-4", "id-5"]


def test_a_closed_order_that_is_amended_within_its_minute_lives_again() -> None:
    tables = open_orders(order(1))
    tables.process(orders("update", order(1, "Filled"), at=1))
    tables.process(orders("update", order(1, "New", leavesQty=5), at=1.9))
    tables.process(orders("insert", order(2), at=9))
    assert kept(tables) == ["id-1", "id-2"]
    tables.process(orders("update", order(1, "Canceled"), at=10))
    tables.process(orders("update", order(1, "Canceled", text="again"), at=10.9))  # its minute begins anew
    tables.process(orders("insert", order(3), at=11.8))
    assert kept(tables) == ["id-1", "id-2", "id-3"]
    tables.process(orders("insert", order(4), at=11.9))
    assert kept(tables) == ["id-2", "id-3", "id-4"]


def test_what_is_said_of_an_order_that_has_left_is_no_loss_of_state_unless_it_lives_again() -> None:
    asked: list[str] = []
    tables = open_orders(order(1, "Filled"), order(2, "Canceled"), order(3, "Filled"), order(4, "Filled"))
    tables.resync = asked.append
    for item in (
        orders("update", {"orderID": "id-1", "workingIndicator": False}, at=2),
        orders("update", order(1, "Canceled"), at=3),
        orders("delete", {"orderID": "id-2"}, at=4),
    ):
        assert list(tables.process(item)) == []
    assert [update.action for update in tables.process(orders("insert", order(3), at=5))] == ["insert"]
    assert (kept(tables), tables.stale, asked) == (["id-3"], {}, [])
    (mark,) = tables.process(orders("update", {"orderID": "id-4", "account": 5, "ordStatus": "New"}, at=6))
    assert (mark.action, asked) == ("stale", ["order"])
    assert "opens an order again" in mark.reason
    tables.process(orders("partial", order(4), at=7))
    assert (kept(tables), tables.stale) == (["id-4"], {})


def test_an_update_or_delete_of_an_order_that_never_was_is_a_loss_of_state() -> None:
    for action in ("update", "delete"):
        tables = open_orders(order(1, "Filled"))
        tables.process(orders("insert", order(2), at=2))
        assert [update.action for update in tables.process(orders(action, order(9)))] == ["stale"]


def test_a_deleted_order_and_one_that_a_partial_no_longer_lists_are_forgotten_at_once() -> None:
    tables = open_orders(order(1, "Filled"), order(2, "Filled"), order(3))
    tables.process(orders("delete", {"orderID": "id-1"}))
    tables.process(orders("partial", order(3)))
    assert kept(tables) == ["id-3"]
    tables.process(orders("insert", order(1), order(2), at=0.5))
    tables.process(orders("insert", order(4), at=9))
    assert kept(tables) == ["id-1", "id-2", "id-3", "id-4"]


def test_a_hundred_thousand_orders_leave_nothing_behind() -> None:
    tables = open_orders()
    held = tables.storage.orders
    assert held is not None
    for second in range(10_000):  # ten a second: 600 within the minute
        numbers = range(10 * second, 10 * second + 10)
        tables.process(orders("insert", *map(order, numbers), at=second / 60))
        tables.process(orders("update", *(order(number, "Filled") for number in numbers), at=second / 60))
        assert len(held.rows) <= 610
        assert len(held.closed) <= 610
        assert len(held.left) <= 10_000
    assert tables.stale == {}
    assert list(tables.process(orders("update", order(90_000, "Filled"), at=999))) == []


def test_more_closed_orders_than_max_rows_are_not_kept_even_within_the_minute() -> None:
    tables = TableApplier(max_rows=3)
    tables.process(orders("partial"))
    for number in range(9):
        tables.process(orders("insert", order(number, "Filled" if number else "New")))
    tables.process(TableMessage("trade", "insert", [], START))
    assert kept(tables) == ["id-0", "id-6", "id-7", "id-8"]


def test_a_key_of_a_type_that_its_column_never_has_is_refused_before_it_spoils_the_order_of_the_rows() -> None:
    tables = TableApplier()
    tables.process(trades([], "partial"))
    for timestamp in (5, None, True, ["2026"]):
        (mark,) = tables.process(trades([{"symbol": "XBTUSD", "timestamp": timestamp}]))
        assert mark.action == "stale"
        tables.process(trades([], "partial"))
    assert len(list(tables.process(trades([trade(1)])))) == 1
    assert tables.stale == {}


def test_whatever_is_in_a_row_that_does_not_fit_the_reason_is_short() -> None:
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    for row in ({"orderID": "id-1", "x": deep}, {"orderID": deep}, {"orderID": "x" * 9999}, {"orderID": 10**4000}):
        tables = open_orders(order(1))
        (mark,) = tables.process(orders("insert", {**order(1), **row, "account": 5}, row))
        assert mark.action == "stale"
        assert len(mark.reason) < 500
