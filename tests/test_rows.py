"""The row types name every field that the exchange really sends, with its type."""

import gzip
import json
import os
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import pytest

from bitmex_streams.rows import ROWS

DATA = Path(os.environ.get("BITMEX_STREAMS_DATA") or Path(__file__).parents[2] / "shared" / "data")

COMPATIBLE = {
    "timestamp": str,
    "timespan": str,
    "symbol": str,
    "guid": str,
    "": str,
    "long": int,
    "float": float,
    "boolean": bool,
}


def plain(hint):
    """``str`` for ``Required[str]`` and for ``Literal["Buy", "Sell"]``."""
    if get_origin(hint) is None:
        return hint
    arguments = get_args(hint)
    return type(arguments[0]) if isinstance(arguments[0], str) else plain(arguments[0])


def real_partials():
    if not DATA.is_dir():
        pytest.skip(f"no recorded messages at {DATA} (set BITMEX_STREAMS_DATA)")
    messages = [json.loads(path.read_text()) for path in sorted(DATA.glob("messages/*.json"))]
    with gzip.open(DATA / "captures" / "bitmex-2021-07-22.ndjson.gz", "rt") as lines:
        messages += [json.loads(line.split(" ", 1)[1]) for line in lines if '"action":"partial"' in line]
    return [message for message in messages if isinstance(message, dict) and "types" in message]


def test_every_field_of_the_real_partials_is_typed_as_the_exchange_types_it():
    partials = real_partials()
    assert {"trade", "quote", "orderBookL2", "instrument", "execution"} <= {partial["table"] for partial in partials}
    for partial in partials:
        hints = get_type_hints(ROWS[partial["table"]])
        for field, kind in partial["types"].items():
            assert field in hints, f"{partial['table']}.{field}"
            assert plain(hints[field]) is COMPATIBLE[kind], f"{partial['table']}.{field}"


def test_every_value_of_the_real_rows_is_of_the_type_that_is_promised():
    for partial in real_partials():
        hints = get_type_hints(ROWS[partial["table"]])
        for row in partial["data"]:
            for field, value in row.items():
                promised = plain(hints[field])
                allowed = (int, float) if promised is float else promised
                assert value is None or isinstance(value, allowed), field


def test_every_table_of_the_protocol_has_a_row_type():
    bins = {f"{kind}Bin{interval}" for kind in ("quote", "trade") for interval in ("1m", "5m", "1h", "1d")}
    public = {
        "announcement", "chat", "connected", "funding", "instrument", "insurance", "liquidation", "orderBookL2_25",
        "orderBookL2", "orderBook10", "publicNotifications", "quote", "settlement", "trade",
    }
    private = {"affiliate", "execution", "order", "margin", "position", "privateNotifications", "transact", "wallet"}
    assert set(ROWS) == bins | public | private
