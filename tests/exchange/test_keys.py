"""Who signs in to what, and who is refused."""

import time

import pytest

from bitmex_streams.auth import signature
from bitmex_streams.exchange.keys import MAX_VALIDITY, InvalidKey, Keys

KEY, SECRET = "LAqUlngMIQkIUjXMUreyu3qn", "chNOOS4KvNXR_Xq4k4c9qsfoKWvnDecLATCRlcBwyKDYnWgO"


def some_keys():
    keys = Keys()
    keys.add(KEY, SECRET, "mine")
    return keys


def signed(expires, secret=SECRET):
    return signature(secret, "GET", "/realtime", expires)


@pytest.mark.parametrize("of", [int, str])
def test_a_signed_request_is_of_the_owner_of_the_key(of):
    expires = int(time.time()) + 60
    assert some_keys().check(KEY, of(expires), signed(expires)) == "mine"


@pytest.mark.parametrize(
    ("key", "ahead", "sign", "words"),
    [
        ("other", 60, signed, "Invalid API Key."),
        (None, 60, signed, "Invalid API Key."),
        (["x"], 60, signed, "Invalid API Key."),
        (KEY, -1, signed, r"This request has expired - `expires` is in the past. Current time: 1518064236"),
        (KEY, 0, signed, "has expired"),
        (KEY, MAX_VALIDITY + 1, signed, "too far in the future"),
        (KEY, 60, lambda expires: signed(expires, SECRET[::-1]), "Signature not valid."),
        (KEY, 60, lambda expires: signed(expires + 1), "Signature not valid."),
        (KEY, 60, lambda expires: signature(SECRET, "GET", "/api/v1/order", expires), "Signature not valid."),
        (KEY, 60, lambda expires: "ü", "Signature not valid."),
        (KEY, 60, lambda expires: None, "Signature not valid."),
        (KEY, 60, lambda expires: 5, "Signature not valid."),
    ],
)
def test_what_is_not_signed_right_is_refused(monkeypatch, key, ahead, sign, words):
    monkeypatch.setattr(time, "time", lambda: 1518064236.9)
    expires = 1518064236 + ahead
    with pytest.raises(InvalidKey, match=words) as refused:
        some_keys().check(key, expires, sign(expires))
    assert SECRET not in str(refused.value) and KEY not in str(refused.value)


@pytest.mark.parametrize("expires", [None, "", "soon", 1.5e9, "1518064296.5", True, [1], "9" * 40, "-5", "\u0661"])
def test_what_is_no_time_is_refused(expires):
    with pytest.raises(InvalidKey, match="`expires` must be a time, in seconds"):
        some_keys().check(KEY, expires, "00")


def test_a_request_is_taken_once_and_forgotten_when_it_has_expired(monkeypatch):
    now = 1518064236
    monkeypatch.setattr(time, "time", lambda: now)
    keys = some_keys()
    for expires in range(now + 1, now + 50):
        keys.check(KEY, expires, signed(expires))
        with pytest.raises(InvalidKey, match="used before"):
            keys.check(KEY, str(expires), signed(expires))
    now += 45
    keys.check(KEY, now + 60, signed(now + 60))
    assert len(keys._seen) == 5  # four are valid still
    with pytest.raises(InvalidKey, match="used before"):
        keys.check(KEY, now + 4, signed(now + 4))


def test_a_wrong_signature_does_not_use_up_the_right_one():
    keys, expires = some_keys(), int(time.time()) + 60
    for wrong in ("00", signed(expires)[:-1], signed(expires).upper()):
        with pytest.raises(InvalidKey, match="not valid"):
            keys.check(KEY, expires, wrong)
    assert keys.check(KEY, expires, signed(expires)) == "mine"


@pytest.mark.parametrize(
    ("key", "secret"),
    [(KEY, "other"), ("", SECRET), ("a key", SECRET), ("key", "")],
    ids=["a key that is there", "no key", "a key with a space", "no secret"],
)
def test_what_cannot_be_a_key_is_refused_and_not_shown(key, secret):
    with pytest.raises(ValueError, match=r"api_(key|secret)") as refused:
        some_keys().add(key, secret, "yours")
    assert SECRET not in str(refused.value)


def test_neither_keys_nor_secrets_are_in_a_repr():
    assert repr(some_keys()) == "<Keys: 1>"
