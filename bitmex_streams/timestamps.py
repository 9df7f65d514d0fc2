"""ISO timestamps as int nanoseconds since the epoch, and back: exactly, never by way of a float."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache

__all__ = ["to_iso", "to_nanoseconds"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = 1_000_000_000


def to_nanoseconds(time: str | datetime) -> int:
    """Nanoseconds UTC since the epoch of an aware datetime or of an ISO string (``"2021-07-22T22:36:10.014Z"``; up to
    nine decimals).

    Raises ValueError for what is no timestamp, or has no time zone.
    """
    if isinstance(time, str):
        decimals = time[20:-1]
        if time[16:17] == ":" and time[17:19].isdigit() and time[-1:] == "Z" and len(decimals) <= 9:
            if len(time) == 20 and time[19] == "Z":
                return _minute(time[:16]) + int(time[17:19]) * _SECOND
            if time[19:20] == "." and decimals.isdigit():
                return _minute(time[:16]) + int(time[17:19] + decimals.ljust(9, "0"))
        try:
            time = datetime.fromisoformat(time)
        except ValueError:
            raise ValueError(f"{time!r} is no ISO timestamp, as '2021-07-22T22:36:10.014Z' is") from None
    elif not isinstance(time, datetime):
        raise ValueError(f"{time!r} is no ISO timestamp, as '2021-07-22T22:36:10.014Z' is")
    if time.tzinfo is None:
        raise ValueError(f"{time.isoformat()!r} has no time zone: append Z to a string, or give a datetime tzinfo=UTC")
    return (time - _EPOCH) // timedelta(microseconds=1) * 1000


@lru_cache(maxsize=256)
def _minute(text: str) -> int:
    try:
        return (datetime.fromisoformat(text + "+00:00") - _EPOCH) // timedelta(seconds=1) * _SECOND
    except ValueError:
        raise ValueError(f"{text!r} does not begin an ISO timestamp, as '2021-07-22T22:36' does") from None


def to_iso(nanoseconds: int) -> str:
    """The exchange's form of a time: ISO, UTC, milliseconds (``"2021-07-22T22:36:10.014Z"``)."""
    time = _EPOCH + timedelta(milliseconds=nanoseconds // 1_000_000)
    return f"{time:%Y-%m-%dT%H:%M:%S}.{time.microsecond // 1000:03d}Z"
