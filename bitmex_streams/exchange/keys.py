"""API keys: which account a signed request is of, and why one is refused.

The rules are those of https://www.bitmex.com/app/apiKeysUsage: a request is signed for a time until which it is valid,
and is not taken twice. That time is of the world's clock, also where the exchange's own runs at another speed.
"""

from __future__ import annotations

import hmac
import re
import time
from typing import Any, Generic, TypeVar

from ..auth import WEBSOCKET_PATH, Credentials, signature

__all__ = ["MAX_VALIDITY", "InvalidKey", "Keys"]

MAX_VALIDITY = 86_400
"""Seconds that a request may be signed ahead, at most."""

Owner = TypeVar("Owner")


class InvalidKey(Exception):
    """A signed request is refused: the text says why, in the exchange's words. Neither key nor secret are in it."""


class Keys(Generic[Owner]):
    """API keys, with their secrets and whose they are."""

    def __init__(self) -> None:
        self._keys: dict[str, tuple[str, Owner]] = {}
        self._seen: dict[str, int] = {}  # signatures, until they expire

    def __repr__(self) -> str:
        return f"<Keys: {len(self._keys)}>"

    def add(self, api_key: str, api_secret: str, owner: Owner) -> None:
        """Raises ValueError for what cannot be a key or a secret, and for a key that there is; it shows neither."""
        Credentials(api_key, api_secret)
        if api_key in self._keys:
            raise ValueError("api_key is the key of another account")
        self._keys[api_key] = api_secret, owner

    def check(self, api_key: Any, expires: Any, signed: Any) -> Owner:
        """Whose a signed websocket request is. ``expires``: s since the epoch, a number or its digits.

        Raises InvalidKey for an unknown key, a signature that is not of its secret, has expired, is valid for longer
        than `MAX_VALIDITY`, or was seen before.
        """
        if not isinstance(api_key, str) or api_key not in self._keys:
            raise InvalidKey("Invalid API Key.")
        secret, owner = self._keys[api_key]
        now = int(time.time())
        if isinstance(expires, bool) or not re.fullmatch(r"[0-9]{1,15}", str(expires), re.ASCII):
            raise InvalidKey("`expires` must be a time, in seconds since 1970-01-01T00:00:00Z.")
        until = int(expires)
        if until <= now:
            raise InvalidKey(f"This request has expired - `expires` is in the past. Current time: {now}")
        if until > now + MAX_VALIDITY:
            raise InvalidKey(f"`expires` is too far in the future. Current time: {now}")
        right = signature(secret, "GET", WEBSOCKET_PATH, until)
        if not isinstance(signed, str) or not hmac.compare_digest(right.encode(), signed.encode(errors="replace")):
            raise InvalidKey("Signature not valid.")
        self._seen = {seen: end for seen, end in self._seen.items() if end > now}
        if right in self._seen:
            raise InvalidKey("This signature has been used before: sign each request anew, with another `expires`.")
        self._seen[right] = until
        return owner
