"""The decoder: every message becomes what it is, and nothing but documented outcomes comes of what is none."""

from __future__ import annotations

import json
import logging
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitmex_streams.errors import DecodeError
from bitmex_streams.messages import (
    Authenticated,
    CancelAllAfter,
    Connected,
    Disconnected,
    ErrorMessage,
    Help,
    Pong,
    RawMessage,
    StateLost,
    Subscribed,
    TableMessage,
    Unsubscribed,
    Welcome,
)
from bitmex_streams.sections.decoder import Decoder

SOURCE = "ws://exchange"
KEY, SIGNATURE = "LAqUlngMIQkIUjXMUreyu3qn", "c7682d435d0cfe87c16098df34ef2eb5a549d4c5a3c2b1f0f77b8af73423bf00"


def decode(data: Any, decoder: Decoder | None = None) -> Any:
    text = data if isinstance(data, str | bytes) else json.dumps(data)
    (item,) = (decoder or Decoder()).process(RawMessage(7, text, SOURCE, 3))
    return item


def test_a_delta_and_a_partial_become_table_messages() -> None:
    delta = {
        "table": "trade",
        "action": "insert",
        "data": [{"symbol": "XBTUSD", "price": 31964, "homeNotional": 0.5}],
        "new": 1,
    }
    assert decode(delta) == TableMessage("trade", "insert", delta["data"], 7, SOURCE)  # type: ignore[arg-type]
    partial = {
        "table": "trade",
        "action": "partial",
        "keys": [],
        "types": {"price": "float"},
        "foreignKeys": {"symbol": "instrument"},
        "attributes": {"timestamp": "sorted"},
        "filter": {"symbol": "XBTUSD"},
        "data": [],
    }
    assert decode(json.dumps(partial).encode()) == TableMessage(
        "trade",
        "partial",
        [],
        7,
        SOURCE,
        [],
        {"price": "float"},
        {"symbol": "instrument"},
        {"timestamp": "sorted"},
        {"symbol": "XBTUSD"},
    )


def test_control_messages_become_what_they_are() -> None:
    request = {"op": "subscribe", "args": ["trade"]}
    welcome = {
        "info": "Welcome",
        "version": "2",
        "timestamp": "t",
        "docs": "d",
        "heartbeatEnabled": False,
        "limit": {"remaining": 3},
    }
    assert decode(welcome) == Welcome(7, SOURCE, "Welcome", "2", "t", "d", False, {"remaining": 3})
    assert decode({"success": True, "subscribe": "trade", "request": request}) == Subscribed(
        "trade", 7, SOURCE, request
    )
    assert decode({"success": True, "unsubscribe": "trade", "request": request}) == Unsubscribed(
        "trade", 7, SOURCE, request
    )
    assert decode({"status": 400, "error": "No.", "meta": {}, "request": request}) == ErrorMessage(
        "No.", 7, SOURCE, 400, {}, request
    )
    assert decode({"success": False, "error": "No."}) == ErrorMessage("No.", 7, SOURCE)
    assert decode({"error": {"message": "Invalid leavesQty", "name": "HTTPError"}}).error == "Invalid leavesQty"
    answer = decode({"now": "a", "cancelTime": "b", "request": {"op": "cancelAllAfter", "args": 60000}})
    assert (type(answer), answer.now, answer.cancel_time) == (CancelAllAfter, "a", "b")
    assert decode({"now": "a", "cancelTime": 0}).cancel_time is None
    assert decode("pong") == decode(b"pong") == Pong(7, SOURCE)
    assert decode({"info": "See the docs", "usage": "..."}) == Help(7, SOURCE, {"info": "See the docs", "usage": "..."})


def test_keys_and_signatures_are_masked_wherever_they_are_echoed(caplog: pytest.LogCaptureFixture) -> None:
    command = {"op": "authKeyExpires", "args": [KEY, 1518064236, SIGNATURE]}
    answers: list[Any] = [
        {"success": True, "request": command},
        {"status": 401, "error": "Invalid", "request": command},
        {"request": command},
        command,
        json.dumps({"success": True, "request": command})[:-2],
        {"success": True, "subscribe": "order", "request": command},
    ]
    items = [decode(answer) for answer in answers]
    assert [type(item) for item in items] == [Authenticated, ErrorMessage, Help, Help, StateLost, Subscribed]
    assert items[0].request == {"op": "authKeyExpires", "args": ["***", "***", "***"]}
    odd: list[Any] = [
        {"status": 401, "error": f"{SIGNATURE} is not the signature of {KEY}", "request": command},
        {"status": 401, "error": "no", "meta": {"args": [KEY], KEY: {"is": SIGNATURE}}, "request": command},
        {"request": [command]},
        {"request": ["authKeyExpires", KEY, 1518064236, SIGNATURE]},
        {"request": {"op": "authKeyExpires", "args": {"key": KEY, "signature": [SIGNATURE]}}},
        {"status": 400, "error": "bad", "request": json.dumps(command)},
        {"status": 400, "error": f"cannot do {json.dumps(command)}"},
        {"error": {"request": command}},
        {"error": {"message": f"not {KEY}", "request": command}},
        {"info": "echo", "version": SIGNATURE, "request": command},
        [command],
    ]
    for answer in odd:
        items += [decode(answer), decode(json.dumps(answer).encode())]
    assert items[6].error == "*** is not the signature of ***"
    assert decode({"error": "Invalid authKeyExpires signature.", "request": command}).error.startswith("Invalid auth")
    short = {"success": True, "request": {"op": "authKeyExpires", "args": ["k", 1, "e"]}}
    assert type(decode(short)) is Authenticated, "what is masked is no part of other words"
    for depth in range(100, 1000, 100):
        answer = '{"request":' * depth + json.dumps(command) + "}" * depth
        assert type(decode(answer)) in (Help, StateLost), "nested without end"
    shown = repr(items) + caplog.text
    assert KEY not in shown
    assert SIGNATURE not in shown


@pytest.mark.parametrize(
    ("data", "wrong", "topic"),
    [
        ('{"table":"trade","acti', "truncated", None),
        ("hello", "malformed", None),
        (b'{"table":"trade","action":"insert","data":[{"symbol":"\xff"}]}', "UTF-8", None),
        ("[1]", "a JSON object was expected, not list", None),
        ("[" * 100_000, "", None),
        ('{"table":7,"action":"insert","data":[]}', "`$.table`", None),
        ('{"table":"trade","action":"replace","data":[]}', "the action 'replace' is unknown", "trade"),
        ('{"table":"trade","action":["insert"],"data":[]}', "is unknown", "trade"),
        ('{"table":"trade","action":"insert"}', "no list of rows", "trade"),
        ('{"table":"trade","action":"insert","data":[1]}', "`$.data[0]`", "trade"),
        ('{"table":"trade","action":"insert","data":{}}', "`$.data`", "trade"),
        ('{"table":"trade","action":"insert","data":[{"size":' + "9" * 5000 + "}]}", "out of range", None),
    ],
)
def test_what_cannot_be_decoded_is_a_loss_of_state_that_names_the_place(
    data: str | bytes, wrong: str, topic: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "bitmex_streams"):
        item = decode(data)
    assert (type(item), item.received, item.source, item.topic) == (StateLost, 7, SOURCE, topic)
    assert item.reason.startswith("ws://exchange, line 3: cannot be decoded: ")
    assert wrong.lower() in item.reason.lower()  # msgspec and the codec write it differently
    assert len(item.reason) < 500
    assert caplog.messages == [item.reason]
    with pytest.raises(DecodeError) as raised:
        decode(data, Decoder(on_error="raise"))
    assert str(raised.value) == item.reason


def test_numbers_can_be_decimals_also_where_a_price_is_whole() -> None:
    decoder = Decoder(Decimal)
    rows = [{"symbol": "XBTUSD", "price": 31964, "size": 100}, {"symbol": "XBTUSD", "price": 31964.5, "avgPx": 2}]
    partial = {"table": "order", "action": "partial", "types": {"avgPx": "float", "size": "long"}, "data": rows}
    first, second = decode(partial, decoder).rows
    assert [(type(value), value) for value in (first["price"], second["price"], second["avgPx"])] == [
        (Decimal, Decimal(31964)),
        (Decimal, Decimal("31964.5")),
        (Decimal, Decimal(2)),
    ]
    assert type(first["size"]) is int
    (row,) = decode({"table": "order", "action": "update", "data": [{"avgPx": 3}]}, decoder).rows
    assert type(row["avgPx"]) is Decimal


def test_marks_and_foreign_items_pass() -> None:
    for item in (Connected(1), Disconnected(2), StateLost(3, "", "x"), "anything", None, {"table": "trade"}):
        (out,) = Decoder().process(item)
        assert out is item


def test_an_unknown_way_to_treat_errors_is_refused() -> None:
    with pytest.raises(ValueError, match="on_error"):
        Decoder(on_error="ignore")  # type: ignore[arg-type]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from(
    (
        "table",
        "action",
        "data",
        "keys",
        "types",
        "filter",
        "info",
        "docs",
        "success",
        "error",
        "subscribe",
        "request",
        "cancelTime",
        "op",
    )
)
words = st.sampled_from(("trade", "insert", "partial", True, "authKeyExpires", [], [{}], {}))


@given(st.dictionaries(names, words | json_values) | json_values, st.sampled_from((None, Decimal)))
def test_whatever_json_comes_nothing_but_documented_items_come_out(data: Any, number: Any) -> None:
    item = decode(json.dumps(data, ensure_ascii=False).encode("utf-8", "replace"), Decoder(number))
    assert isinstance(
        item,
        TableMessage
        | Welcome
        | Subscribed
        | Unsubscribed
        | Authenticated
        | CancelAllAfter
        | ErrorMessage
        | Help
        | StateLost,
    )


@given(st.binary() | st.text())
def test_whatever_comes_nothing_but_documented_items_come_out(data: str | bytes) -> None:
    assert isinstance(decode(data), StateLost | Help | Pong)


DEPTHS = (300, 900, 960, *range(970, 1000), 5000, 9000, 100_000)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"a" : ', "}]")])
def test_what_is_nested_too_deep_cannot_be_decoded_and_what_can_be_is_shown_and_compared(
    depth: int, opening: str, closing: str
) -> None:
    deep = opening * depth + "1" + closing * depth
    for text, topic in (
        (f'{{"table":"trade","action":"insert","data":[{{"symbol":{deep}}}]}}', "trade"),
        (f'{{"table":"trade","action":{deep},"data":[]}}', "trade"),
        (f'{{"table":"trade","action":"partial","data":[],"filter":{{"x":{deep}}}}}', "trade"),
        (f'{{"error":{deep}}}', None),
        (f'{{"success":true,"subscribe":"trade","request":{{"op":"authKeyExpires","args":{deep}}}}}', None),
        (deep, None),
    ):
        for data in (text, text.encode()):
            out = decode(data)
            assert type(out) is StateLost
            assert out.topic in (topic, None)
            assert len(out.reason) < 500


def test_many_rows_and_many_levels_side_by_side_are_not_deep() -> None:
    rows = [{"symbol": "XBTUSD", "bids": [[1, 2]] * 10, "asks": [[3, 4]] * 10, "x": {"y": {}}} for _ in range(1000)]
    message = {"table": "orderBook10", "action": "insert", "data": rows}
    assert decode(message).rows == rows
    assert decode(json.dumps(message).encode()).rows == rows
    assert type(decode({"channels": [[{}]] * 1000})) is Help


def test_the_types_of_one_connections_partial_are_nothing_to_another() -> None:
    decoder = Decoder(Decimal)
    for source, kind in (("ws://one", "float"), ("ws://two", "long")):
        partial = {"table": "margin", "action": "partial", "types": {"leverage": kind}, "data": []}
        list(decoder.process(RawMessage(1, json.dumps(partial), source)))
    delta = json.dumps({"table": "margin", "action": "update", "data": [{"leverage": 2}]})
    for source, kind in (("ws://one", Decimal), ("ws://two", int)):
        (message,) = decoder.process(RawMessage(2, delta, source))
        assert type(message.rows[0]["leverage"]) is kind


@pytest.mark.parametrize("number", [None, Decimal])
def test_a_number_that_is_larger_than_any_float_cannot_be_decoded(number: Any) -> None:
    for digits in ("1e999", "-1E+9999999"):
        text = f'{{"table":"trade","action":"insert","data":[{{"price":{digits}}}]}}'
        assert type(decode(text, Decoder(number))) is StateLost
    text = '{"table":"trade","action":"insert","data":[{"price":1e300}]}'
    assert decode(text, Decoder(number)).rows == [{"price": (number or float)("1e300")}]
