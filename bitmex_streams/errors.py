"""The exceptions of this package.

All derive from `BitMEXStreamsError`. Each message names what failed, where, and what to do; none holds a secret.
"""

from __future__ import annotations

from typing import Literal

__all__ = [
    "AuthenticationError",
    "BitMEXStreamsError",
    "BitMEXWebsocketApiError",
    "ConnectionClosed",
    "ConnectionFailed",
    "DecodeError",
    "ListenerTooSlow",
    "ProcessDied",
    "RecordingError",
    "SubscriptionError",
]


class BitMEXStreamsError(Exception):
    """The base of every error that this package raises on its own account."""


class ConnectionFailed(BitMEXStreamsError):
    """A connection could not be made.

    ``status`` is the HTTP status (int) of a server that refused the handshake, else None; ``retry_after`` the seconds
    that it asked to wait, where it did. ``final``: whether trying again cannot help (a certificate that does not
    verify; a refusal with status 401, 403, 404 or another of the client's own; a page or a redirection in place of a
    websocket). A `Connection` that has stood before takes 401, 403 and 407 alone of these statuses for final. The cause
    (an OSError, an ssl.SSLError, ...) is chained as ``__cause__``.
    """

    def __init__(
        self, message: str, *, status: int | None = None, retry_after: float | None = None, final: bool | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        if final is None:
            final = status is not None and 200 <= status < 500 and status not in (408, 425, 429)
        self.final = final


class ConnectionClosed(BitMEXStreamsError):
    """An established connection ended otherwise than by a normal close (1000); in the classic client, by any close.

    ``code`` is the websocket close code (int; 1006 where the connection broke without one, 1005 where the server's
    close gave none, 1009 or 1002, 1003, 1007 also where this side could not take what the server sent: the message
    says which), ``reason`` its text. ``final``: whether connecting again cannot help (a message was larger than
    allowed).
    """

    def __init__(self, message: str, *, code: int = 1006, reason: str = "", final: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.final = final


class AuthenticationError(BitMEXStreamsError):
    """The exchange refused the API key, its signature, or the clock by which it was signed; or it has not answered.

    ``reason`` says which: ``"key"`` (unknown, disabled, or not allowed from this address), ``"signature"`` (the
    secret is not the key's), ``"clock"`` (this computer's clock is wrong, or the request was too long under way),
    ``"replay"`` (the same signature was used before), ``""`` where it cannot be told. ``status`` is the exchange's
    status (int), None where there was none.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: Literal["key", "signature", "clock", "replay", ""] = "",
        status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.status = status


class SubscriptionError(BitMEXStreamsError):
    """The exchange refused a subscription, did not answer it in time, or was lost each time before it had answered.

    ``topic`` (str) is the topic in question; ``status`` (int) the exchange's status code, None where there was no
    answer. An error that came while the answer was waited for, and did not say what it was about (a rate limit,
    say), refuses nothing; but when no answer has come in time, its status and words are in this.
    """

    def __init__(self, message: str, *, topic: str = "", status: int | None = None) -> None:
        super().__init__(message)
        self.topic = topic
        self.status = status


class DecodeError(BitMEXStreamsError):
    """A message is not what the protocol allows: no JSON, or JSON of a shape that no table message has."""


class RecordingError(BitMEXStreamsError):
    """A recording cannot be read: the file is missing, cut short, or a line of it is not a recorded message.

    ``path`` (str) is the file, ``line`` (int, from 1) the line, 0 where the file as a whole is meant.
    """

    def __init__(self, message: str, *, path: str = "", line: int = 0) -> None:
        super().__init__(message)
        self.path = path
        self.line = line


class ProcessDied(BitMEXStreamsError):
    """The process of a ``ProcessSection`` ended before its work did. ``exitcode`` is negative for a signal."""

    def __init__(self, message: str, *, exitcode: int | None = None) -> None:
        super().__init__(message)
        self.exitcode = exitcode


class BitMEXWebsocketApiError(BitMEXStreamsError):
    """The classic client: the exchange answered with an error. ``status`` (int, None where not sent) is like HTTP's,
    ``message`` (str) its words.
    """

    def __init__(self, status: int | None, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message

    def __str__(self) -> str:
        return self.message if self.status is None else f"{self.message} (status {self.status})"


class ListenerTooSlow(BitMEXStreamsError):
    """The classic client: a listener took its rows more slowly than they came, until too many waited for it. Those
    that waited have been delivered; it has ended, and no other listener was disturbed.
    """
