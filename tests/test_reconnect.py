"""How long to wait before the next attempt, and when there is none."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitmex_streams import AuthenticationError, ConnectionClosed, ConnectionFailed, Reconnect, SubscriptionError
from bitmex_streams.reconnect import Backoff, is_final


def exactly(a, b):
    return 0.0


def test_each_wait_is_longer_up_to_the_maximum():
    backoff = Backoff(Reconnect(), exactly)
    assert [backoff.next() for _ in range(8)] == [1, 2, 4, 8, 16, 30, 30, 30]


def test_a_stable_connection_starts_it_over_and_a_short_one_does_not():
    backoff = Backoff(Reconnect(), exactly)
    assert [backoff.next() for _ in range(3)] == [1, 2, 4]
    backoff.stood(29)
    assert backoff.next() == 8
    backoff.stood(30)
    assert backoff.next() == 1


def test_so_many_attempts_and_no_more():
    backoff = Backoff(Reconnect(attempts=2), exactly)
    assert [backoff.next() for _ in range(3)] == [1, 2, None]


def test_a_server_that_says_how_long_to_wait_is_obeyed():
    backoff = Backoff(Reconnect(), exactly)
    assert backoff.next(retry_after=120) == 120
    assert backoff.next(retry_after=1) == 2, "it only ever lengthens the wait"


@given(
    st.floats(0.01, 100), st.floats(1, 10), st.floats(0, 1000), st.floats(0, 1), st.floats(0, 1), st.integers(1, 3000)
)
def test_no_wait_is_negative_or_beyond_the_maximum_and_its_jitter(initial, factor, more, jitter, drawn, failures):
    policy = Reconnect(initial=initial, factor=factor, maximum=initial + more, jitter=jitter)
    backoff = Backoff(policy, lambda a, b: a + (b - a) * drawn)
    backoff.failures = failures - 1
    wait = backoff.next()
    assert wait is not None and 0 <= wait <= (initial + more) * (1 + jitter) + 1e-9


@pytest.mark.parametrize(
    "wrong",
    [
        {"initial": -1}, {"factor": 0.5}, {"maximum": math.inf}, {"jitter": 2}, {"attempts": 0}, {"attempts": 1.5},
        {"initial": 40}, {"stable": math.nan}, {"initial": "1"}, {"initial": 0},
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_a_value_error(wrong):
    with pytest.raises(ValueError):
        Reconnect(**wrong)


@pytest.mark.parametrize(
    "error, final",
    [
        (ConnectionFailed("refused by nobody"), False),
        (ConnectionFailed("too many", status=429), False),
        (ConnectionFailed("overloaded", status=503), False),
        (ConnectionFailed("forbidden", status=403), True),
        (ConnectionFailed("not found", status=404), True),
        (ConnectionFailed("the certificate does not verify", final=True), True),
        (ConnectionClosed("broken", code=1006), False),
        (ConnectionClosed("too large", code=1009, final=True), True),
        (AuthenticationError("unknown", reason="key", status=401), True),
        (AuthenticationError("used before", reason="replay", status=401), False),
        (SubscriptionError("refused"), True),
        (TypeError("cannot send that"), True),
    ],
)
def test_what_trying_again_cannot_mend_is_final(error, final):
    assert is_final(error) is final


@pytest.mark.parametrize("status", [200, 302, 400, 404, 405, 429, 503])
def test_where_a_connection_stood_before_a_page_passes(status):
    assert not is_final(ConnectionFailed("a page", status=status), stood=True)


@pytest.mark.parametrize(
    "error",
    [
        *(ConnectionFailed("not let in", status=status) for status in (401, 403, 407)),
        ConnectionFailed("the certificate does not verify", final=True),
        ConnectionClosed("too large", code=1009, final=True),
        AuthenticationError("unknown", reason="key", status=401),
    ],
)
def test_and_who_is_not_let_in_or_not_to_be_trusted_is_not_asked_again(error):
    assert is_final(error, stood=True)
