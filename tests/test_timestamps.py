"""Times are exact to the nanosecond, in both directions."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitmex_streams.timestamps import to_iso, to_nanoseconds

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
moments = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1))


@given(moments, st.integers(0, 9), st.integers(0, 999_999_999))
def test_every_number_of_decimals_is_read_exactly(moment, digits, nanoseconds):
    decimals = f"{nanoseconds:09d}"[:digits]
    text = f"{moment:%Y-%m-%dT%H:%M:%S}" + (f".{decimals}" if digits else "") + "Z"
    seconds = (moment.replace(microsecond=0, tzinfo=UTC) - EPOCH) // timedelta(seconds=1)
    assert to_nanoseconds(text) == seconds * 10**9 + int(decimals.ljust(9, "0"))


@given(st.integers(0, 7_000_000_000_000))
def test_what_is_written_is_read_again(milliseconds):
    assert to_nanoseconds(to_iso(milliseconds * 1_000_000)) == milliseconds * 1_000_000


def test_other_time_zones_are_understood():
    assert to_nanoseconds("1970-01-01T02:00:00.5+02:00") == 500_000_000
    assert to_nanoseconds(datetime(1970, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))) == 0


@pytest.mark.parametrize(
    "text",
    [None, 1, [], {}, "", "soon", "2021-07-22", "2021-07-22T22:36:10", "2021-13-22T22:36:10.014Z", "2021-07-22T22:36"],
)
def test_what_is_no_moment_is_an_error(text):
    with pytest.raises(ValueError, match=r"time zone|no ISO timestamp|does not begin"):
        to_nanoseconds(text)
