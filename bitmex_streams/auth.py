"""Signatures, and what must be masked of them.

A request is signed with the hex HMAC-SHA256 of ``verb + path + expires + body``, keyed with the API secret; for the
websocket that is ``GET/realtime`` and the expiry (https://www.bitmex.com/app/apiKeysUsage,
https://www.bitmex.com/app/wsAPI#Authentication). The signature goes into the handshake as the headers ``api-key``,
``api-expires`` and ``api-signature``, or over a connection that stands as the command ``authKeyExpires``.
"""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Iterator
from typing import Any

import msgspec

__all__ = ["Credentials", "mask", "masked", "may_hold_key", "signature"]

WEBSOCKET_PATH = "/realtime"
VALIDITY = 60
"""Seconds that a signature is valid for: so far may the clocks be apart."""


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
        self._last = 0

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
        """When the next signature expires (s since the epoch): a minute from now, and never twice the same, for the
        exchange may refuse a signature that it has seen.
        """
        self._last = max(int(time.time()) + VALIDITY, self._last + 1)
        return self._last

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers that sign a websocket handshake."""
        expires = self.expires()
        return [
            (b"api-expires", str(expires).encode()),
            (b"api-key", self.key.encode()),
            (b"api-signature", signature(self._secret, "GET", WEBSOCKET_PATH, expires).encode()),
        ]

    def command(self) -> str:
        """The command ``authKeyExpires``, signed, as the text to send."""
        expires = self.expires()
        signed = signature(self._secret, "GET", WEBSOCKET_PATH, expires)
        return msgspec.json.encode({"op": "authKeyExpires", "args": [self.key, expires, signed]}).decode()


# --- what must not be seen: rare, so thorough ---

_COMMAND = "authkey"


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
    elif len(text := str(content)) >= 4 and not isinstance(content, bool | None) and not _is_auth(content):
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
