"""Signatures, and what must not be seen of them."""

import json
import pickle
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitmex_streams.auth import SPREAD, VALIDITY, Credentials, mask, refused, signature

# The key and secret of the documentation's examples (https://www.bitmex.com/app/apiKeysUsage).
KEY = "LAqUlngMIQkIUjXMUreyu3qn"
SECRET = "chNOOS4KvNXR_Xq4k4c9qsfoKWvnDecLATCRlcBwyKDYnWgO"
ORDERS = "/api/v1/order"
ORDER = '{"symbol":"XBTM15","price":219.0,"clOrdID":"mm_bitmex_1a/oemUeQ4CAJZgP3fjHsA","orderQty":98}'
FILTERED = "/api/v1/instrument?filter=%7B%22symbol%22%3A+%22XBTM15%22%7D"


@pytest.mark.parametrize(
    ("verb", "path", "expires", "body", "expected"),
    [
        (
            "GET", "/api/v1/instrument", 1518064236, "",
            "c7682d435d0cfe87c16098df34ef2eb5a549d4c5a3c2b1f0f77b8af73423bf00",
        ),
        ("GET", FILTERED, 1518064237, "", "e2f422547eecb5b3cb29ade2127e21b858b235b386bfa45e1c1756eb3383919f"),
        ("POST", ORDERS, 1518064238, ORDER, "1749cd2ccae4aa49048ae09f0b95110cee706e0944e6a14ad0b3a8cb45bd336b"),
    ],
)  # fmt: skip
def test_the_documentations_examples_are_signed_as_it_says(verb, path, expires, body, expected):
    assert signature(SECRET, verb, path, expires, body) == expected


def test_a_handshake_and_a_command_are_signed_for_the_minutes_to_come():
    credentials = Credentials(KEY, SECRET)
    headers = dict(credentials.headers())
    expires = int(headers[b"api-expires"])
    assert VALIDITY - 2 < expires - time.time() < VALIDITY + SPREAD
    assert headers[b"api-key"] == KEY.encode()
    assert headers[b"api-signature"].decode() == signature(SECRET, "GET", "/realtime", expires)
    command = json.loads(credentials.command())
    key, expires, signed = command.pop("args")
    assert command == {"op": "authKeyExpires"} and key == KEY
    assert signed == signature(SECRET, "GET", "/realtime", expires)


def test_what_signs_often_seldom_signs_the_same():
    ends = [Credentials(KEY, SECRET).expires() for _ in range(200)]
    assert len(set(ends)) > 120, "of 600 that are equally likely"


def test_credentials_show_neither_key_nor_secret():
    credentials = Credentials(KEY, SECRET)
    signed = dict(credentials.headers())[b"api-signature"].decode()
    assert not any(secret in f"{credentials!r} {credentials}" for secret in (KEY, SECRET, signed))
    assert credentials.hide(f"{KEY}, {SECRET} and {signed}") == "***, *** and ***"
    with pytest.raises(TypeError, match="secret"):
        pickle.dumps(credentials)


@pytest.mark.parametrize(
    ("key", "secret", "words"),
    [(KEY, None, "api_key without api_secret"), (None, SECRET, "api_secret without api_key"), (KEY, "", "api_secret")],
    ids=["no secret", "no key", "an empty secret"],
)
def test_half_of_the_credentials_is_an_error_that_names_the_other_half(key, secret, words):
    with pytest.raises(ValueError, match=words) as error:
        Credentials.of(key, secret)
    assert KEY not in str(error.value) and SECRET not in str(error.value)
    assert Credentials.of(None, None) is None


@pytest.mark.parametrize("bad", ["with space", "with\nnewline", "snow☃man", 12])
def test_what_cannot_be_a_secret_is_an_error_that_does_not_show_it(bad):
    with pytest.raises(ValueError, match="api_secret") as error:
        Credentials(KEY, bad)
    assert str(bad) not in str(error.value)


@pytest.mark.parametrize(
    ("words", "reason", "said"),
    [
        ("Invalid API Key.", "key", "unknown"),
        ("Signature not valid.", "signature", "api_secret is not this key's"),
        ("This request has expired - `expires` is in the past. Current time: {now}", "clock", "clock is wrong: set it"),
        ("This request has expired - `expires` is in the past. Current time: {later}", "clock", "1000 s (behind)"),
        ("This signature has been used before: sign with another `expires`.", "replay", "used before"),
        ("This key is disabled.", "key", "disabled"),
        ("Your API key has expired.", "key", "unknown there, disabled"),
        ("You are authenticated already, as another account.", "", "another account"),
        ("Forbidden", "", "Forbidden"),
    ],
)
def test_a_refusal_says_what_was_refused(words, reason, said):
    now = int(time.time())
    error = refused("wss://somewhere", words.format(now=now, later=now + 1000), 401)
    assert error.reason == reason and error.status == 401
    assert said in str(error) and "wss://somewhere" in str(error) and "401" in str(error)


SIGNED = signature(SECRET, "GET", "/realtime", 1518064236)
COMMAND = {"op": "authKeyExpires", "args": [KEY, 1518064236, SIGNED]}


@pytest.mark.parametrize(
    "message",
    [
        {"success": True, "request": COMMAND},
        {"status": 401, "error": f"Signature {SIGNED} not valid.", "meta": {}, "request": COMMAND},
        {"error": f"Unknown command {json.dumps(COMMAND)}"},
        {"request": {"op": "AuthKey", "args": KEY}, "echo": [["authKeyExpires", KEY, 1518064236, SIGNED]]},
    ],
)
@pytest.mark.parametrize("form", [str, bytes])
def test_a_message_that_repeats_the_command_is_masked(message, form):
    text = json.dumps(message)
    shown = mask(text if form is str else text.encode())
    assert type(shown) is form
    shown = shown if form is str else shown.decode()
    assert KEY not in shown and SIGNED not in shown and "1518064236" not in shown and "***" in shown
    assert json.loads(shown).keys() == message.keys()


def test_what_speaks_of_the_command_and_is_no_json_is_not_shown():
    assert mask(f'{{"op":"authKeyExpires","args":["{KEY}"') == "***"
    assert mask(b'\xff authKeyExpires "' + KEY.encode()) == b"***"


def test_the_list_of_commands_that_help_gives_stays_readable():
    answer = {"ops": ["authKeyExpires", "cancelAllAfter", "help", "ping", "subscribe", "unsubscribe"]}
    assert json.loads(mask(json.dumps(answer))) == answer


@given(st.text().filter(lambda text: "authkey" not in text.lower()))
def test_everything_else_is_left_as_it_is(text):
    assert mask(text) is text
    assert mask(text.encode("utf-8", "surrogatepass")) == text.encode("utf-8", "surrogatepass")
