"""Signatures, and what must be masked of them.

A request is signed with the hex HMAC-SHA256 of ``verb + path + expires + body``, keyed with the API secret; for the
websocket that is ``GET/realtime`` and the expiry (https://www.bitmex.com/app/apiKeysUsage,
https://www.bitmex.com/app/wsAPI#Authentication). The signature goes into the handshake as the headers ``api-key``,
``api-expires`` and ``api-signature``, or over a connection that stands as the command ``authKeyExpires``.
"""

from __future__ import annotations

import hmac
import random
import re
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from .errors import AuthenticationError

__all__ = ["Credentials", "mask", "masked", "may_hold_key", "refused", "signature"]

WEBSOCKET_PATH = "/realtime"
VALIDITY = 60
"""Seconds that a signature is valid for at least: so far may the clocks be apart."""
SPREAD = 600
"""Seconds over which the ends are spread, at random: what has signed before is not known to a program that starts, and
a signature is good for one use.
"""
_random = random.SystemRandom()  # no state that a fork could copy


def signature(secret: str, verb: str, path: str, expires: int, body: str = "") -> str:
    """The signature (64 hex digits) of a request that is valid until ``expires`` (s since the epoch, UTC).

    ``path`` is the part of the URL from the first slash behind the host on, with the query; ``verb`` is in capitals.
    """
    return hmac.new(secret.encode(), f"{verb}{path}{expires}{body}".encode(), "sha256").hexdigest()


class Credentials:
    """An API key and its secret. Neither is in its repr.

    Raises ValueError where one of them is missing or not a plain text, without showing it.
    """

    def __init__(self, key: str, secret: str) -> None:
        for name, value in (("api_key", key), ("api_secret", secret)):
            if not isinstance(value, str) or not re.fullmatch(r"[!-~]+", value):
                raise ValueError(f"{name} must be a text of printable ASCII characters, without spaces")
        self.key = key
        self._secret = secret
        self._signed: deque[str] = deque(maxlen=8)  # the last signatures

    @classmethod
    def of(cls, key: str | None, secret: str | None) -> Credentials | None:
        """Credentials, or None where neither is given. Raises ValueError where only one is."""
        if not key and not secret:
            return None
        if not key or not secret:
            given, missing = ("api_key", "api_secret") if key else ("api_secret", "api_key")
            raise ValueError(f"{given} without {missing}: give both, or neither for public data alone")
        return cls(key, secret)

    def __repr__(self) -> str:
        return "<Credentials: not shown>"

    def __reduce__(self) -> Any:
        raise TypeError("Credentials are not pickled: a secret does not belong into what leaves the process")

    def expires(self) -> int:
        """When the next signature expires (s since the epoch): a minute to eleven from now, drawn at random, for the
        exchange may refuse a signature that it has seen, and several programs may use the key.
        """
        return int(time.time()) + VALIDITY + _random.randrange(SPREAD)

    def _sign(self) -> tuple[int, str]:
        expires = self.expires()
        signed = signature(self._secret, "GET", WEBSOCKET_PATH, expires)
        self._signed.append(signed)
        return expires, signed

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers that sign a websocket handshake."""
        expires, signed = self._sign()
        return [
            (b"api-expires", str(expires).encode()),
            (b"api-key", self.key.encode()),
            (b"api-signature", signed.encode()),
        ]

    def command(self) -> str:
        """The command ``authKeyExpires``, signed, as the text to send."""
        return msgspec.json.encode({"op": "authKeyExpires", "args": [self.key, *self._sign()]}).decode()

    def hide(self, text: str) -> str:
        """``text`` without the key, the secret and the last signatures, should they be in it."""
        for hidden in (self._secret, *self._signed, self.key):
            if hidden in text:
                text = text.replace(hidden, "***")
        return text


def refused(url: str, words: str, status: int | None) -> AuthenticationError:
    """The error for a key, signature or clock that a server refused in ``words``, which hold no secret any more."""
    said = words.lower()
    reason: Literal["key", "signature", "clock", "replay", ""] = ""
    why = ""
    if re.search(r"(signature|request|expires|nonce)\b.*\b(already|before)|replay", said):
        reason, why = "replay", ": this signature was used before, by another program with this key; connect again"
    elif "expire" in said and not re.search(r"key (has |is )?expired|expired (api )?key", said):
        reason = "clock"
        why = f": the signature is out of its time, so this computer's clock is wrong{_apart(said)}: set it"
    elif "signature" in said:
        reason, why = "signature", ": its signature is wrong, so api_secret is not this key's"
    elif "key" in said:
        reason = "key"
        why = ": it is unknown there, disabled, or not allowed from this address (each network has its own keys)"
    with_status = "" if status is None else f" with status {status}"
    return AuthenticationError(
        f"{url} refused the API key{with_status}{why}{f'. It said: {words}' if words else ''}",
        reason=reason,
        status=status,
    )


def _apart(said: str) -> str:
    """How far the clocks are apart, where the server has told its own."""
    theirs = re.search(r"current time: *(\d{9,11})\b", said)
    apart = int(time.time()) - int(theirs[1]) if theirs else 0
    return f" by {abs(apart)} s ({'ahead' if apart > 0 else 'behind'})" if apart else ""


# --- what must not be seen: rare, so thorough ---

_COMMAND = "authkey"
_OPS = frozenset({"cancelAllAfter", "getCurrentUser", "help", "login", "logout", "ping", "subscribe", "unsubscribe"})
"""Words that can stand beside that command without being its arguments (in the answer to ``help``)."""


def may_hold_key(text: str) -> bool:
    """Whether a message has to be looked at by `masked`: it speaks of a command that holds a key."""
    return _COMMAND in text.lower()


def mask(data: str | bytes) -> str | bytes:
    """A message with the arguments of every ``authKeyExpires`` command in it as ``***``; unchanged where there is
    none. What speaks of that command and is no JSON is not shown at all.
    """
    text = data if isinstance(data, str) else data.decode("utf-8", "replace")
    if not may_hold_key(text):
        return data
    try:
        shown = msgspec.json.encode(masked(msgspec.json.decode(data))).decode()
    except (msgspec.DecodeError, UnicodeError, RecursionError, ArithmeticError):
        shown = "***"
    return shown if isinstance(data, str) else shown.encode()


def masked(content: Any) -> Any:
    """Parsed JSON with the arguments of every ``authKeyExpires`` command, wherever they stand in it, as ``***``."""
    return _without(content, set(_secrets(content)))


def _is_auth(word: Any) -> bool:
    return isinstance(word, str) and word.lower().startswith(_COMMAND)


def _scalars(content: Any) -> Iterator[str]:
    """Every text and number in ``content``, as text, but for the name of the command and what is too short to be
    secret (it would be found in half of all words).
    """
    if isinstance(content, dict | list):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _scalars(value)
    elif not isinstance(content, bool | None):
        text = str(content)
        if len(text) >= 4 and not _is_auth(text) and text not in _OPS:
            yield text


def _secrets(content: Any) -> Iterator[str]:
    """The arguments of every ``authKeyExpires`` command in ``content``: of an object whose ``op`` it is, or of a list
    that it stands in.
    """
    if isinstance(content, dict):
        if _is_auth(content.get("op")):
            yield from _scalars(content.get("args"))
        for value in content.values():
            yield from _secrets(value)
    elif isinstance(content, list):
        if any(map(_is_auth, content)):
            yield from _scalars(content)
        for value in content:
            yield from _secrets(value)


def _without(content: Any, secrets: set[str]) -> Any:
    """``content`` without ``secrets``. A text that quotes the whole command is not shown at all."""
    if isinstance(content, dict):
        if _is_auth(content.get("op")) and "args" in content:
            arguments = content["args"]
            content = {**content, "args": ["***"] * len(arguments) if isinstance(arguments, list) else "***"}
        return {_without(key, secrets): _without(value, secrets) for key, value in content.items()}
    if isinstance(content, list):
        return [_without(value, secrets) for value in content]
    if isinstance(content, str):
        if may_hold_key(content) and "args" in content:
            return "***"
        for secret in sorted(secrets, key=len, reverse=True):  # one may be a part of another
            content = content.replace(secret, "***")
        return content
    return "***" if str(content) in secrets else content
