"""`Decoder`: raw messages become table messages and control messages.

A message is decoded in one go into an envelope whose ``data`` must be a list of objects; what has no ``table`` is
decoded once more as what it is, a control message. Those are rare, so only the first decoding has to be fast."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from math import isfinite
from typing import Any, Literal

import msgspec

from ..auth import masked, may_hold_key
from ..errors import DecodeError
from ..messages import (
    Action,
    Authenticated,
    CancelAllAfter,
    ErrorMessage,
    Help,
    Pong,
    RawMessage,
    Row,
    StateLost,
    Subscribed,
    TableMessage,
    Unsubscribed,
    Welcome,
)
from ..operator import BatchOperator

__all__ = ["Decoder"]

log = logging.getLogger("bitmex_streams")

EXCERPT = 80
"""How many characters of a message that cannot be decoded are shown."""

# What bad input makes msgspec (and the constructor of the numbers) raise: no JSON or a wrong shape; bytes that are no
# UTF-8 and surrogates; nesting without end; a Decimal beyond all bounds.
UNDECODABLE = (msgspec.DecodeError, UnicodeError, RecursionError, ArithmeticError)

DEEPEST = 256
"""How many levels deep a message may be nested. Much deeper, and what was decoded can be neither shown nor compared."""
LONG = 2 * DEEPEST
"""How many characters a message has at least that is nested so deep."""
TOO_DEEP = f"it is nested more than {DEEPEST} levels deep"


class _Envelope(msgspec.Struct, gc=False):
    """A table message on the wire."""

    table: str | None = None
    action: Action | None = None
    data: list[dict[str, Any]] | None = None
    keys: list[str] | None = None
    types: dict[str, Any] | None = None
    foreignKeys: dict[str, Any] | None = None
    attributes: dict[str, Any] | None = None
    filter: dict[str, Any] | None = None


class Decoder(BatchOperator):
    """`RawMessage` in; `TableMessage` or a control message (`Welcome`, `Subscribed`, `ErrorMessage`, ...) out, one
    for one.

    ``number``: makes a number of the digits of a JSON number with a fraction or exponent (``decimal.Decimal``, say);
    whole numbers in ``price`` and in every column that the partial's ``types`` call ``float`` go through it too. (In
    the nested levels of orderBook10 whole numbers stay int.) None: floats, and whole prices as int, as on the wire.

    ``on_error``: what becomes of a message that cannot be decoded (no JSON, or of a shape that the protocol does not
    have; nested more than 256 levels deep; with a fraction or exponent beyond what a float holds): ``"stale"`` puts
    out a `StateLost` mark in its place and logs a warning on the logger ``bitmex_streams``; its ``topic`` is the table
    where that can still be told, else None (every table of that source). ``"raise"`` raises `DecodeError`. Both name
    the source (of several files, the file) and the line, what was wrong, and the beginning of the message.

    The text ``pong`` becomes `Pong`; a JSON object of no known kind becomes `Help`. Where a message echoes an
    ``authKeyExpires`` command, in whatever place, its arguments are masked (``***``) everywhere in that message; only
    the `RawMessage` itself holds them. Of a key that stands twice in an object, the last counts. Marks and
    items of other kinds pass.

    ``messages``, ``rows``, ``undecodable``: how many messages came, rows of tables were in them, and messages could not
    be decoded, so far (int). They count what was read in one go before those behind see any of it."""

    one_for_one = True

    def __init__(
        self, number: Callable[[str], Any] | None = None, *, on_error: Literal["stale", "raise"] = "stale"
    ) -> None:
        if on_error not in ("stale", "raise"):
            raise ValueError(f'on_error must be "stale" or "raise", not {on_error!r}')
        self.number = number
        self.on_error = on_error
        self.messages = 0
        self.rows = 0
        self.undecodable = 0
        self._decode = msgspec.json.Decoder(_Envelope, float_hook=None if number is None else _bounded(number)).decode
        self._decode_any = msgspec.json.Decoder().decode
        self._float_columns: dict[tuple[str, str], tuple[str, ...]] = {}  # by source and table

    def process_all(self, items: Iterable[Any], out: list[Any]) -> None:
        decode, number = self._decode, self.number
        messages = count = 0
        try:
            for item in items:
                if type(item) is not RawMessage:
                    out.append(item)
                    continue
                data = item.data
                messages += 1
                try:
                    message = decode(data)
                except UNDECODABLE as error:
                    out.append(self._not_a_table(item, error))
                    continue
                table, action, rows = message.table, message.action, message.data
                if (
                    table is None
                    or rows is None
                    or action is None
                    or (len(data) > LONG and _is_too_deep(data, message))
                ):
                    out.append(self._odd(item, message))
                    continue
                count += len(rows)
                if number is not None:
                    self._convert_whole_numbers((item.source, table), rows, message.types)
                if action != "partial":
                    out.append(TableMessage(table, action, rows, item.received, item.source))
                    continue
                out.append(
                    TableMessage(
                        table,
                        action,
                        rows,
                        item.received,
                        item.source,
                        message.keys,
                        message.types,
                        message.foreignKeys,
                        message.attributes,
                        message.filter,
                    )
                )
        finally:
            self.messages += messages
            self.rows += count

    def _odd(self, item: RawMessage, message: _Envelope) -> Any:
        """What was decoded, and is no message of a table."""
        if message.table is None:
            return self._not_a_table(item, None)
        if len(item.data) > LONG and _is_too_deep(item.data, message):
            return self._undecodable(item, TOO_DEEP, message.table)
        wrong = "there is no list of rows in `data`" if message.data is None else "there is no `action`"
        return self._undecodable(item, wrong, message.table)

    def _convert_whole_numbers(
        self, table: tuple[str, str], rows: list[Row], types: dict[str, Any] | None
    ) -> None:
        """A price can arrive as 31964: the number it has to be can only be told from the column."""
        assert self.number is not None
        if types is not None:
            floats = {column for column, kind in types.items() if kind == "float"}
            self._float_columns[table] = tuple(floats | {"price"})
        columns = self._float_columns.get(table, ("price",))
        for row in rows:
            for column in columns:
                value = row.get(column)
                if type(value) is int:
                    row[column] = self.number(str(value))

    def _not_a_table(self, item: RawMessage, error: BaseException | None) -> Any:
        """What is no table message is a control message, or nothing at all."""
        if item.data in ("pong", b"pong"):
            return Pong(item.received, item.source)
        try:
            content = self._decode_any(item.data)
            if len(item.data) > LONG and _is_too_deep(item.data, content):
                return self._undecodable(item, TOO_DEEP, _table_of(content))
            if may_hold_key(_text(item.data)):
                content = masked(content)
        except UNDECODABLE as no_json:
            return self._undecodable(item, _first_line(no_json))
        if not isinstance(content, dict):
            return self._undecodable(item, f"a JSON object was expected, not {type(content).__name__}")
        table = content.get("table")
        if error is not None and table is not None:
            wrong, action = _first_line(error), content.get("action")
            if "$.action" in wrong:  # as msgspec says where it is
                wrong = f"the action {repr(action)[:EXCERPT]} is unknown"
            return self._undecodable(item, wrong, table if isinstance(table, str) else None)
        return _control(content, item.received, item.source)

    def _undecodable(self, item: RawMessage, wrong: str, topic: str | None = None) -> StateLost:
        self.undecodable += 1
        place = item.file or item.source or "a message"
        if item.line:
            place = f"{place}, line {item.line}"
        reason = f"{place}: cannot be decoded: {wrong}; it begins {_excerpt(item.data)}"
        if self.on_error == "raise":
            raise DecodeError(reason)
        log.warning("%s", reason)
        return StateLost(item.received, item.source, reason, topic)


def _control(content: dict[str, Any], received: int, source: str) -> Any:
    request = content.get("request")
    if not isinstance(request, dict):
        request = None
    if "error" in content:
        error, status, meta = content["error"], content.get("status"), content.get("meta")
        if isinstance(error, dict):  # {"error": {"message": ..., "name": ...}}, as the REST API words it
            error = error.get("message", error)
        return ErrorMessage(
            str(error),
            received,
            source,
            status if isinstance(status, int) else None,
            meta if isinstance(meta, dict) else None,
            request,
        )
    if content.get("success") is True:
        if isinstance(topic := content.get("subscribe"), str):
            return Subscribed(topic, received, source, request)
        if isinstance(topic := content.get("unsubscribe"), str):
            return Unsubscribed(topic, received, source, request)
        if request is not None and str(request.get("op")).lower().startswith("authkey"):
            return Authenticated(received, source, request)
    if "cancelTime" in content:
        cancel_time = content["cancelTime"]
        return CancelAllAfter(
            received,
            source,
            str(content.get("now", "")),
            cancel_time if isinstance(cancel_time, str) else None,
            request,
        )
    if "info" in content and ("version" in content or "docs" in content or "limit" in content):
        limit = content.get("limit")
        return Welcome(
            received,
            source,
            str(content["info"]),
            str(content.get("version", "")),
            str(content.get("timestamp", "")),
            str(content.get("docs", "")),
            content.get("heartbeatEnabled") is True,
            limit if isinstance(limit, dict) else None,
        )
    return Help(received, source, content)


def _bounded(number: Callable[[str], Any]) -> Callable[[str], Any]:
    """``number`` of what floats can be as large as: a Decimal of 1e9999999 could not be reckoned with."""

    def bounded(digits: str) -> Any:
        if not isfinite(float(digits)):
            raise OverflowError(f"a number out of range: {digits:.80}")
        return number(digits)

    return bounded


def _is_too_deep(data: str | bytes, content: Any) -> bool:
    """Whether what was decoded is nested too deep, told without nesting."""
    rows = len(content.data or ()) if isinstance(content, _Envelope) else 0
    brackets = data.count("[") + data.count("{") if isinstance(data, str) else data.count(b"[") + data.count(b"{")
    if brackets - rows <= DEEPEST:
        return False
    if isinstance(content, _Envelope):
        content = [getattr(content, field) for field in content.__struct_fields__]
    level = [content]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) is dict or type(inner) is list
        ]
        if not level:
            return False
    return True


def _table_of(content: Any) -> str | None:
    table = content.get("table") if isinstance(content, dict) else None
    return table if isinstance(table, str) else None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


def _text(data: str | bytes) -> str:
    return data if isinstance(data, str) else data.decode("utf-8", "replace")


def _excerpt(data: str | bytes) -> str:
    if may_hold_key(text := _text(data)):
        return "(not shown: it may hold a key)"
    return repr(text[:EXCERPT]) + ("..." if len(text) > EXCERPT else "")
