"""When to try again: how long to wait before each attempt, and what trying again cannot mend."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import msgspec

from .errors import AuthenticationError, ConnectionClosed, ConnectionFailed

__all__ = ["Backoff", "Reconnect", "is_final"]


class Reconnect(msgspec.Struct, frozen=True, kw_only=True):
    """How a `Connection` connects again. All times are in seconds.

    The wait before the first attempt is ``initial``; each further one is ``factor`` times longer, up to ``maximum``.
    Each is shortened or lengthened at random by up to ``jitter`` of itself, so that many clients that lost a server
    together do not come back together. A server that says how long to wait (``Retry-After``, with HTTP 429 or 503) is
    obeyed. ``attempts``: how many in a row may fail before the last failure ends the stream; None: any number. A
    connection that has stood for ``stable`` seconds starts it all over. ``initial`` is at least a hundredth.

    Raises ValueError where that makes no sense.
    """

    initial: float = 1.0
    factor: float = 2.0
    maximum: float = 30.0
    jitter: float = 0.1
    attempts: int | None = None
    stable: float = 30.0

    def __post_init__(self) -> None:
        for name in ("initial", "factor", "maximum", "jitter", "stable"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} of Reconnect is {value!r}: it has to be a number, and not negative")
        if self.initial < 0.01 or self.factor < 1 or self.jitter > 1 or self.maximum < self.initial:
            raise ValueError(
                f"{self!r}: initial has to be at least 0.01, factor at least 1, jitter at most 1, and maximum at least "
                "initial"
            )
        if self.attempts is not None and (type(self.attempts) is not int or self.attempts < 1):
            raise ValueError(f"attempts of Reconnect is {self.attempts!r}: it has to be at least 1, or None (no limit)")


class Backoff:
    """The waits of one `Reconnect`, one after the other. ``uniform(a, b)`` draws the jitter."""

    def __init__(self, policy: Reconnect, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self.policy = policy
        self.failures = 0
        """How many attempts (or short lives) there were in a row."""
        self._uniform = uniform

    def stood(self, seconds: float) -> None:
        """A connection has stood for so long, before it was lost."""
        if seconds >= self.policy.stable:
            self.failures = 0

    def next(self, retry_after: float | None = None) -> float | None:
        """How long to wait before the next attempt; None: there is none.

        ``retry_after``: what the server asked for; it is only ever lengthened.
        """
        policy = self.policy
        self.failures += 1
        if policy.attempts is not None and self.failures > policy.attempts:
            return None
        steps = min(self.failures - 1, 1000)  # enough for any factor above 1.01 to reach any maximum
        try:
            wait = min(policy.maximum, policy.initial * policy.factor**steps)
        except OverflowError:
            wait = policy.maximum
        spread = wait * policy.jitter
        wait += self._uniform(-spread, spread)
        if retry_after is not None:
            wait = max(wait, retry_after + self._uniform(0, spread))
        return wait


WHO_ASKS = frozenset({401, 403, 407})
"""The HTTP statuses by which a server (407: a proxy) refuses not the request but who makes it."""


def is_final(error: Exception, *, stood: bool = False) -> bool:
    """Whether trying again cannot help: the key is refused, the address is wrong, the certificate does not verify.

    ``stood``: whether a connection stood before. Then the address is right, and a page, a redirection or a 404 in place
    of the exchange is that of a load balancer, a maintenance or a portal, and passes like a 503.
    """
    if isinstance(error, AuthenticationError):
        return error.reason != "replay"  # the next signature is another one
    if stood and isinstance(error, ConnectionFailed) and error.status is not None:
        return error.status in WHO_ASKS
    return error.final if isinstance(error, ConnectionFailed | ConnectionClosed) else True
