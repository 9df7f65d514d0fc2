"""The tables: rows by key, and what does not fit is a ValueError in words."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from sortedcontainers import SortedDict

from bitmex_streams.messages import TableMessage
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


def test_what_is_not_there_yet_reads_as_empty_and_reading_keeps_nothing() -> None:
    storage = Storage()
    assert storage.orderbook["XBTUSD"]["Buy"] == storage.data["orderBookL2"]["XBTUSD"]["Sell"] == {}
    assert storage.data["orderBookL2_25"]["XBTUSD"]["Buy"] == {}
    assert type(storage.orderbook["XBTUSD"]["Buy"]) is type(storage.data["instrument"]) is SortedDict
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
