"""The client side of the BitMEX protocol, without I/O.

For every topic this keeps three things apart: what is *wanted*, what the server will hold once it has done all that it
was *sent*, and what it said (or showed) that it *holds*. `ClientProtocol.commands` gives the difference between the
first two as messages to send; `ClientProtocol.receive` learns the third from what arrives. So changes of mind that
were not sent yet cancel out, what is pending is bounded by the number of topics, and nothing depends on which answer
comes first.

Until an ``authKeyExpires`` has been answered, topics of private tables wait, but no longer than its time; one that a
lost connection leaves unanswered is the first that the next one is sent, until `MAX_LOSSES` were lost with it. The dead
man's switch is ``cancelAllAfter`` on a rhythm: `ClientProtocol.switch_due` says when the next is due, on whatever clock
the caller has.

Facts of the protocol are from https://www.bitmex.com/app/wsAPI, and from watching tardis-machine's ``ws-replay``.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from math import inf
from typing import Any, Literal

import msgspec

from .auth import Credentials

__all__ = [
    "MAX_ARGS",
    "MAX_LOSSES",
    "MAX_UNASKED",
    "PRIVATE_TABLES",
    "PUBLIC_TABLES",
    "SWITCH_INTERVAL",
    "SWITCH_TIMEOUT",
    "Acknowledged",
    "Authenticated",
    "ClientProtocol",
    "Complaint",
    "Refused",
    "SignIn",
    "SwitchSet",
    "check_topic",
    "covers",
]

MAX_ARGS = 20
"""The most topics that BitMEX takes in one command."""
SWITCH_TIMEOUT = 60_000
"""Milliseconds after the last ``cancelAllAfter`` at which the exchange cancels all orders."""
MAX_GAP = 60.0
"""Seconds that a topic which is asked for anew again and again may have to wait."""
PARTIAL_TIMEOUT = 30.0
"""Seconds after the acknowledgement of a topic in which its partial has to come."""
MAX_REFUSALS = 1000
"""How many refusals are remembered: more than a single read can bring, before those who wait for theirs have seen it.
"""
MAX_UNASKED = 1000
"""How many topics are taken for wanted that the server acknowledges though this client has not asked for them."""
MAX_RETRIES = 3
"""How often a topic that was in force on an earlier connection is asked for again when a later one refuses it."""
MAX_LOSSES = 3
"""How many connections may be lost with a command that was sent and not answered, before it is taken for the reason."""
SWITCH_INTERVAL = 15.0
"""Seconds between one ``cancelAllAfter`` and the next."""

# fmt: off
PUBLIC_TABLES = frozenset({
    "announcement", "chat", "connected", "funding", "instrument", "insurance", "liquidation", "orderBookL2_25",
    "orderBookL2", "orderBook10", "publicNotifications", "quote", "quoteBin1m", "quoteBin5m", "quoteBin1h",
    "quoteBin1d", "settlement", "trade", "tradeBin1m", "tradeBin5m", "tradeBin1h", "tradeBin1d",
})
PRIVATE_TABLES = frozenset({
    "affiliate", "execution", "order", "margin", "position", "privateNotifications", "transact", "wallet",
})
# fmt: on

Op = Literal["subscribe", "unsubscribe"]

_TOPIC = re.compile(r"[A-Za-z][A-Za-z0-9_]*(:[^\s:,\"]+)?")


class Acknowledged(msgspec.Struct, frozen=True):
    """The server has done ``op`` for ``topic``: it said so, or it sends the topic's data."""

    op: Op
    topic: str
    ignored: bool = False
    """Whether nobody has asked for the topic, and `MAX_UNASKED` of that kind are known already."""


class Refused(msgspec.Struct, frozen=True):
    """The server refused ``op`` for ``topic``: its ``status`` (int, None where not sent) and its words."""

    op: Op
    topic: str
    status: int | None
    error: str
    retried: bool = False
    """Whether it is asked for again by itself, later: the topic was in force before."""
    given_up: bool = False
    """Whether the topic was in force before, and is asked for no more."""


class Authenticated(msgspec.Struct, frozen=True):
    """The server has answered ``authKeyExpires``: ``error`` is None where it accepted, else its words, with its
    ``status`` (int, None where not sent).
    """

    status: int | None = None
    error: str | None = None


class SignIn:
    """An ``authKeyExpires``, from the wish to its answer: the ``credentials`` that sign it are good once they were
    accepted. One that is not answered before the connection is lost is sent again on the next, signed anew, until
    `MAX_LOSSES` connections were lost so. ``timeout``: seconds after it was sent for which others are held back.
    """

    def __init__(self, credentials: Credentials, timeout: float = inf) -> None:
        self.credentials = credentials
        self.timeout = timeout
        self.due = inf
        """When its time is over (s, on the clock of `ClientProtocol.arm`), once it was sent."""
        self.losses = 0
        """How many connections were lost after it was sent, and before its answer."""
        self.answer: Authenticated | None = None
        self.given_up = False
        """Whether its answer is waited for no longer: nothing is held back for it, and it is not sent again."""


class SwitchSet(msgspec.Struct, frozen=True):
    """The server has answered ``cancelAllAfter``: ``cancel_time`` (ISO) is when it cancels all orders unless it hears
    again, None once disarmed. ``error``: its words where it refused, with its ``status``.
    """

    cancel_time: str | None = None
    status: int | None = None
    error: str | None = None
    timeout: int | None = None
    """What was asked for (ms), where the answer repeats it."""


Answer = Acknowledged | Refused | Authenticated | SwitchSet


class Complaint(msgspec.Struct, frozen=True):
    """An error that says not what it is about (a rate limit, say): its ``status`` (int, None where not sent) and its
    words.
    """

    status: int | None
    error: str


class _Message(msgspec.Struct):
    """What of a message matters here; the rest is skipped unparsed."""

    table: str | None = None
    action: str | None = None
    filter: Any = None
    data: msgspec.Raw = msgspec.Raw(b"[]")
    subscribe: str | None = None
    unsubscribe: str | None = None
    success: bool | None = None
    status: Any = None
    error: Any = None
    request: Any = None
    cancelTime: Any = None
    info: Any = None


class _Row(msgspec.Struct):
    symbol: str | None = None


_decode_message = msgspec.json.Decoder(_Message).decode
_decode_rows = msgspec.json.Decoder(list[_Row]).decode


class _Topic:
    """One topic's state; this module's top explains the three."""

    __slots__ = (
        "again", "asked_at", "due", "gap", "held", "losses", "proven", "retries", "sent", "unanswered", "wanted"
    )  # fmt: skip

    def __init__(self) -> None:
        self.wanted = self.sent = self.held = False
        self.again = False  # wanted anew: unsubscribe, then subscribe
        self.due = inf  # when it goes on the wire, where that has to wait (`ClientProtocol.due`)
        self.asked_at = -inf  # when it was last asked for anew
        self.gap = 0.0  # how long to wait before it is asked for anew once more
        self.proven = False  # it was held, on this connection or an earlier one
        self.retries = 0  # how often it was refused since
        self.losses = 0  # how many connections were lost after it was asked for, and before an answer
        self.unanswered: deque[Op] = deque(maxlen=8)  # bounded: some servers never answer


def check_topic(topic: str) -> str:
    """Give back ``topic`` if it has the shape ``table`` or ``table:symbol``; else ValueError.

    Only the shape: which tables and symbols there are is the server's to say, and it does.
    """
    if not isinstance(topic, str) or not _TOPIC.fullmatch(topic):
        raise ValueError(
            f"{topic!r} is not a topic: topics are 'table' or 'table:symbol', such as 'trade' or 'orderBookL2:XBTUSD'"
        )
    return topic


def covers(wide: str, narrow: str) -> bool:
    """Whether topic ``wide`` brings all that topic ``narrow`` does: they are equal, or ``wide`` is the table without a
    symbol.
    """
    return wide == narrow or narrow.startswith(wide + ":")


class ClientProtocol:
    """One client, over one connection after the other: its subscriptions, its authentication, its dead man's switch.
    """

    def __init__(self) -> None:
        self.cancel_time: str | None = None
        """When the server cancels all orders (ISO), as it last said; None: not at all."""
        self._sign_ins: deque[SignIn] = deque()  # those that are still to be sent
        self._signing: deque[SignIn] = deque(maxlen=8)  # those that were, and are not answered
        self.signed_in = False
        """Whether the connection is that of an account: by its handshake, or by an ``authKeyExpires``."""
        self.accepted: Credentials | None = None
        """Those of the ``authKeyExpires`` that was answered last, where it was accepted."""
        self.armed = False
        """Whether the dead man's switch may be armed: it was sent, and its disarming was not confirmed."""
        self._disarming = False
        self._switches: deque[int] = deque(maxlen=64)  # what ``cancelAllAfter`` was sent and not answered, in ms
        self._switch_due = inf
        self.acknowledges = False
        """Whether this server answers commands (tardis-machine does not: there the first message of a topic is the
        answer).
        """
        self.greeted = False
        """Whether this server has sent a welcome (tardis-machine does not)."""
        self.complaint: Complaint | None = None
        """The last error that the server did not tie to a command, nor to anything else."""
        self._mute = False  # data has answered a subscription, and nothing was acknowledged so far
        self._topics: dict[str, _Topic] = {}
        self._refusals: dict[str, Refused] = {}  # by topic, the oldest first
        self._changed: dict[str, None] = {}  # a set that keeps its order
        self._later: dict[str, None] = {}  # those that wait until they are due
        self._partials: dict[str, float] = {}  # topics whose partial has not come, and when it is overdue
        self._unasked: set[str] = set()  # topics that are wanted because the server says that it holds them
        self._awaited: frozenset[str] = frozenset()  # tables whose data may answer a subscription

    # --- what the user wants ---

    @property
    def subscriptions(self) -> frozenset[str]:
        """The topics in force: acknowledged, or sending."""
        return frozenset(name for name, topic in self._topics.items() if topic.held)

    def subscribe(self, topics: Iterable[str]) -> list[str]:
        """Want ``topics``. Returns the topics whose answers are theirs.

        A topic that a wanted one covers (``trade:XBTUSD`` by ``trade``) is answered by that one; a topic that covers
        wanted ones takes their place: they are given up first.
        """
        answering = []
        for name in topics:
            wider = next((other for other, topic in self._topics.items() if topic.wanted and covers(other, name)), None)
            if wider is None:
                for other, topic in self._topics.items():
                    if topic.wanted and covers(name, other):
                        self._want(other, False)
                self._want(name, True)
            answering.append(wider or name)
        return answering

    def unsubscribe(self, topics: Iterable[str]) -> list[str]:
        """Want ``topics`` no longer; what was not wanted as such is left out of what this returns (see `subscribe`)."""
        known = [name for name in topics if name in self._topics]
        for name in known:
            self._want(name, False)
        return known

    def resync(self, topic: str | None = None, now: float = 0.0, *, rationed: bool = False) -> list[str]:
        """Ask anew for what is in force of ``topic`` (None: for all), so that new partials come, at ``now`` (s, on the
        clock of `arm`). The topics for which that is news.

        Also takes a topic that a subscribed one covers, or the other way round. Nothing happens while such a request
        is under way: its partial is still to come. Where it is ``rationed``, a topic that is asked for again and again
        is asked for more and more rarely: each time after twice the wait, up to a minute; after a quiet minute at once.
        What is not rationed goes out at once, also where a rationed one of it was still to come, and does not count
        there.
        """
        asked = []
        for name, state in self._topics.items():
            concerned = topic is None or covers(name, topic) or covers(topic, name)
            if not concerned or not state.wanted or not state.held or state.unanswered:
                continue
            if not state.again:
                asked.append(name)
                state.again = True
                state.due = now
                if rationed:
                    if now - state.asked_at > MAX_GAP:
                        state.gap = 0.0
                    state.due = state.asked_at = max(now, state.asked_at + state.gap)
                    state.gap = min(MAX_GAP, 2 * state.gap or 1.0)
                self._delay(name)
            elif not rationed and state.due > now:
                state.due = state.asked_at = now
        return asked

    def _delay(self, name: str) -> None:
        """A topic goes on the wire when it is due."""
        self._changed.pop(name, None)
        self._later[name] = None

    def _want(self, name: str, wanted: bool) -> None:
        topic = self._topics.setdefault(name, _Topic())
        topic.wanted, topic.retries = wanted, 0
        self._unasked.discard(name)
        self._refusals.pop(name, None)
        topic.proven = topic.proven and wanted
        self._later.pop(name, None)
        self._changed[name] = None

    def authenticate(self, credentials: Credentials, timeout: float = inf) -> SignIn:
        """Authenticate with ``credentials``; ``authKeyExpires`` is signed when its turn comes to be sent. Nothing is
        held back for it longer than ``timeout`` seconds after that.
        """
        sign_in = SignIn(credentials, timeout)
        self._sign_ins.append(sign_in)
        return sign_in

    def arm(self, now: float) -> None:
        """Arm the dead man's switch, from now (s, on any clock) on."""
        self._switch_due = now

    def disarm(self) -> bool:
        """Disarm it, if it was armed (else there is nothing to send: False)."""
        self._switch_due = inf
        self._disarming = self.armed
        return self._disarming

    @property
    def switch_due(self) -> float:
        """When `commands` has to be asked for the next ``cancelAllAfter`` (s, on the clock of `arm`); inf: never, or
        not before an answer has come.
        """
        return inf if self.authenticating and not self.signed_in else self._switch_due

    @property
    def due(self) -> float:
        """When `commands` has something to say by itself (s, on the clock of `arm`); inf: never."""
        return min(
            [
                self.switch_due,
                *(self._topics[name].due for name in self._later),
                *self._partials.values(),
                *(sign_in.due for sign_in in self._signing if not sign_in.given_up),
            ]
        )

    def overdue(self, now: float) -> list[str]:
        """The topics whose partial has not come `PARTIAL_TIMEOUT` seconds after they were acknowledged; each is told
        once, and may be asked for anew.
        """
        late = [name for name, due in self._partials.items() if due <= now]
        for name in late:
            del self._partials[name]
        return late

    @property
    def switch_settled(self) -> bool:
        """Whether every ``cancelAllAfter`` was answered, and none is still to be sent now."""
        return not self._disarming and not self._switches

    @property
    def authenticating(self) -> bool:
        """Whether an ``authKeyExpires`` has yet to be sent or answered."""
        return bool(self._sign_ins) or any(not sign_in.given_up for sign_in in self._signing)

    def give_up(self, sign_in: SignIn) -> None:
        """Wait no longer for its answer: what waited for it goes on the wire. Should it still come, it counts."""
        sign_in.given_up = True
        if sign_in in self._sign_ins:
            self._sign_ins.remove(sign_in)

    # --- what became of it ---

    @property
    def attentive(self) -> bool:
        """Whether there may be something to learn from the message of a table: see `receive`."""
        return bool(self._awaited or self._partials)

    def settled(self, topic: str) -> bool:
        """Whether all that was asked about ``topic`` has been sent and answered (or was taken back before it was
        sent).

        A server that has answered subscriptions by data alone has no way to answer an ``unsubscribe``: there, to have
        sent it is all.
        """
        state = self._topics.get(topic)
        return state is None or (topic not in self._changed and not state.unanswered)

    def losses(self, topic: str) -> int:
        """How many connections were lost after ``topic`` was asked for, and before an answer; only its growth says
        something.
        """
        state = self._topics.get(topic)
        return 0 if state is None else state.losses

    def refusal(self, topic: str) -> Refused | None:
        """The last refusal concerning ``topic``, unless it was asked for again, or a thousand others were refused."""
        return self._refusals.get(topic)

    # --- the wire ---

    def disconnected(self) -> None:
        """The connection is gone: the server holds nothing any more, and what is wanted has to be sent to the next
        one.
        """
        self._topics = {name: topic for name, topic in self._topics.items() if topic.wanted}
        for topic in self._topics.values():
            topic.sent = topic.held = topic.again = False
            topic.losses += bool(topic.unanswered)
            topic.unanswered.clear()
            topic.retries = 0
        self._later.clear()
        self._partials.clear()
        self._changed = dict.fromkeys(self._topics)
        self._awaited = frozenset()
        self.acknowledges = self.greeted = self._mute = False
        for sign_in in self._signing:
            sign_in.losses += 1
            sign_in.given_up = sign_in.given_up or sign_in.losses >= MAX_LOSSES
        self._sign_ins.extendleft(sign_in for sign_in in reversed(self._signing) if not sign_in.given_up)
        self._signing.clear()
        self.signed_in = self.armed = self._disarming = False
        self._switches.clear()
        self._switch_due = inf
        self.cancel_time = None

    def commands(self, now: float = -inf, *, reading: bool = True) -> list[str]:
        """What has to be sent now (s, on the clock of `arm`), in order.

        JSON texts with at most `MAX_ARGS` topics each. Whoever takes them must send them. ``reading``: whether the
        answers are read; while they are not, no topic is asked for: its partial would be old when it is seen.
        """
        leave, join, first, waiting = [], [], [], []
        for name in [name for name in self._later if self._topics[name].due <= now or now == -inf]:
            del self._later[name]
            self._changed[name] = None
        for sign_in in self._signing:
            sign_in.given_up = sign_in.given_up or sign_in.due <= now
        while self._sign_ins:
            sign_in = self._sign_ins.popleft()
            first.append(sign_in.credentials.command())
            sign_in.due = now + sign_in.timeout if now != -inf else inf
            self._signing.append(sign_in)
        waits = self.authenticating and not self.signed_in
        timeout = 0 if self._disarming else SWITCH_TIMEOUT if now >= self._switch_due and not waits else None
        if timeout is not None:
            first.append(_command("cancelAllAfter", timeout))
            self._switches.append(timeout)
            self._disarming = False
        if timeout:
            self.armed, self._switch_due = True, now + SWITCH_INTERVAL
        for name in self._changed:
            topic = self._topics[name]
            if (topic.wanted and not reading) or (waits and name.partition(":")[0] in PRIVATE_TABLES):
                waiting.append(name)
                continue
            if topic.sent and (topic.again or not topic.wanted):
                leave.append(name)
                topic.unanswered.append("unsubscribe")
                self._partials.pop(name, None)
            if topic.wanted and (topic.again or not topic.sent):
                join.append(name)
                topic.unanswered.append("subscribe")
                self._partials[name] = inf  # its time begins with the acknowledgement, which it may be ahead of
            topic.sent, topic.again = topic.wanted, False
        self._changed = dict.fromkeys(waiting)
        self._tidy()
        # What is given up goes first: it may overlap with what is asked for.
        return [*first, *_commands("unsubscribe", leave), *_commands("subscribe", join)]

    def receive(self, data: str | bytes, now: float = 0.0) -> Sequence[Answer]:
        """What a message that arrived at ``now`` (s, on the clock of `arm`) means for the commands: most often nothing.

        Never raises: others judge its content.
        """
        head = data[:64]
        if isinstance(head, bytes):
            head = head.decode("latin-1")
        if head.startswith('{"table"'):  # nearly always so: no second parsing of data for the sake of the odd answer
            if self._partials and '"partial"' in head:
                self._take_partial(data)
            if not self._awaited:
                return ()
            parts = head.split('"', 4)
            if len(parts) > 3 and parts[3] not in self._awaited:
                return ()
        try:
            message = _decode_message(data)
            self.greeted = self.greeted or (message.table is None and isinstance(message.info, str))
            answers = tuple(self._answers(message))
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return ()
        for answer in answers:
            if isinstance(answer, Authenticated):
                self._take_sign_in(answer)
            elif isinstance(answer, SwitchSet):
                self._take_switch(answer)
            elif isinstance(answer, Refused) or not answer.ignored:
                self._take_answer(answer, now, by_data=message.table is not None)
        if answers:
            self.acknowledges = self.acknowledges or message.table is None
            self._mute = not self.acknowledges
            self._tidy()
        return answers

    def _answers(self, message: _Message) -> Iterator[Answer]:
        op = message.request.get("op") if isinstance(message.request, dict) else None
        if message.table is not None:
            if message.table in self._awaited:
                yield from self._answered_by_data(message.table, message)
        elif op == "authKeyExpires" and (message.error is not None or message.success):
            yield Authenticated() if message.error is None else Authenticated(*_words(message))
        elif self._signing and op is None and message.error is not None and message.status in (401, 403):
            yield Authenticated(*_words(message))  # an error that says not what it is about
        elif op == "cancelAllAfter" or (op is None and message.cancelTime is not None):
            args = message.request.get("args") if isinstance(message.request, dict) else None
            timeout = args[0] if isinstance(args, list) and len(args) == 1 else args
            timeout = timeout if type(timeout) is int else None
            if message.error is not None:
                status, error = _words(message)
                yield SwitchSet(None, status, error, timeout)
            else:
                cancel_time = message.cancelTime if isinstance(message.cancelTime, str) else None
                yield SwitchSet(cancel_time, timeout=timeout)
        elif message.subscribe is not None and message.success is not False:
            name = message.subscribe
            yield Acknowledged("subscribe", name, name not in self._topics and len(self._unasked) >= MAX_UNASKED)
        elif message.unsubscribe is not None and message.success is not False:
            yield Acknowledged("unsubscribe", message.unsubscribe)
        elif message.error is not None:
            if isinstance(message.request, dict):
                yield from self._refused(message)
            elif message.request is None:
                status, error = _words(message)
                if "authkey" not in error.lower():  # that is not about subscriptions, and may quote a key
                    self.complaint = Complaint(status, error)

    def _answered_by_data(self, table: str, message: _Message) -> Iterator[Acknowledged]:
        if message.filter:
            symbol = message.filter.get("symbol") if isinstance(message.filter, dict) else None
        else:
            rows = _decode_rows(message.data)
            symbol = rows[0].symbol if rows else None
        for name in (table, f"{table}:{symbol}"):
            topic = self._topics.get(name)
            if topic is not None and "subscribe" in topic.unanswered:
                yield Acknowledged("subscribe", name)

    def _refused(self, message: _Message) -> Iterator[Acknowledged | Refused]:
        op, args = message.request.get("op"), message.request.get("args")
        if op not in ("subscribe", "unsubscribe"):
            return
        names = [name for name in (args if isinstance(args, list) else [args]) if isinstance(name, str)]
        open_names = [
            name for name in names if (topic := self._topics.get(name)) is not None and op in topic.unanswered
        ]
        status, error = _words(message)
        for name in _meant(open_names, error, status):
            if f"{'already' if op == 'subscribe' else 'not'} subscribed" in error.lower():
                yield Acknowledged(op, name)  # it is as we want it
            else:
                topic = self._topics[name]
                lost = op == "subscribe" and topic.proven and topic.wanted
                retried = lost and topic.retries < MAX_RETRIES
                yield Refused(op, name, status, error, retried, lost and not retried)

    def _take_partial(self, data: str | bytes) -> None:
        try:
            message = _decode_message(data)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return
        if message.action == "partial" and message.table is not None:
            symbol = message.filter.get("symbol") if isinstance(message.filter, dict) else None
            covered = message.table if symbol is None else f"{message.table}:{symbol}"
            for name in [name for name in self._partials if covers(covered, name)]:
                topic = self._topics.get(name)
                if topic is None or "unsubscribe" not in topic.unanswered:  # else it is a late one, from before
                    del self._partials[name]

    def _take_sign_in(self, answer: Authenticated) -> None:
        self.signed_in = self.signed_in or answer.error is None
        self.accepted = None
        if self._signing:  # servers answer in order
            sign_in = self._signing.popleft()
            sign_in.answer = answer
            if answer.error is None:
                self.accepted = sign_in.credentials

    def _take_switch(self, answer: SwitchSet) -> None:
        """An answer also settles what was sent before the command that it answers: that one was lost."""
        timeout = answer.timeout
        if timeout is None:
            timeout = self._switches[0] if self._switches else SWITCH_TIMEOUT
        while timeout in self._switches:
            self._switches.popleft()
        if answer.error is None:
            self.cancel_time = answer.cancel_time
            if not timeout:
                self.armed = SWITCH_TIMEOUT in self._switches

    def _take_answer(self, answer: Acknowledged | Refused, now: float, *, by_data: bool = False) -> None:
        name = answer.topic
        topic = self._topics.setdefault(name, _Topic())
        awaited = answer.op in topic.unanswered
        # Servers answer in order: whatever was sent before what they answer now will get no answer any more.
        while awaited and topic.unanswered.popleft() != answer.op:
            pass
        self._await_partial(answer, now, awaited, by_data)
        if isinstance(answer, Refused):
            self._refusals.pop(name, None)
            self._refusals[name] = answer
            if len(self._refusals) > MAX_REFUSALS:
                del self._refusals[next(iter(self._refusals))]
            if topic.unanswered:  # a later command says otherwise: it will be answered too
                return
            topic.sent = topic.held = answer.op == "unsubscribe"
            if answer.retried:
                topic.retries += 1
                topic.due = now + 2.0**topic.retries
                self._delay(name)
            else:
                topic.wanted = topic.wanted and name in self._changed
                topic.proven = False
            return
        self._refusals.pop(name, None)
        topic.held = answer.op == "subscribe"
        if topic.held:
            topic.proven, topic.retries = True, 0
        if not awaited and not topic.unanswered and name not in self._changed:
            if topic.held and not topic.wanted:
                self._unasked.add(name)
            topic.wanted = topic.sent = topic.held  # asked for in the URL, or by a command of the user's own making

    def _await_partial(self, answer: Acknowledged | Refused, now: float, awaited: bool, by_data: bool) -> None:
        """What an answer says of the partial of its topic: from when on it is overdue, or that none will come."""
        name = answer.topic
        if isinstance(answer, Acknowledged) and answer.op == "subscribe" and not by_data:
            if name in self._partials or not (awaited or self._topics[name].held):  # else it has come already
                self._partials[name] = now + PARTIAL_TIMEOUT
        elif answer.op == "subscribe" or not self._topics[name].unanswered:
            self._partials.pop(name, None)

    def _tidy(self) -> None:
        if self._mute:  # nothing will say that a topic was given up
            for topic in self._topics.values():
                if topic.unanswered and topic.unanswered[-1] == "unsubscribe":
                    topic.held = False
                    topic.unanswered.clear()
        self._topics = {
            name: topic
            for name, topic in self._topics.items()
            if topic.wanted or topic.held or topic.unanswered or name in self._changed
        }
        self._later = {name: None for name in self._later if name in self._topics}
        self._unasked &= self._topics.keys()
        # Where commands are acknowledged, data says nothing: it may still be of an earlier, overlapping subscription.
        self._awaited = frozenset(
            name.partition(":")[0]
            for name, topic in self._topics.items()
            if "subscribe" in topic.unanswered and not self.acknowledges
        )


def _words(message: _Message) -> tuple[int | None, str]:
    """The status and the words of an error."""
    error = message.error if isinstance(message.error, str) else msgspec.json.encode(message.error).decode()
    return message.status if isinstance(message.status, int) else None, error


def _commands(op: Op, topics: list[str]) -> Iterator[str]:
    for start in range(0, len(topics), MAX_ARGS):
        yield _command(op, topics[start : start + MAX_ARGS])


def _command(op: str, args: Any) -> str:
    return msgspec.json.encode({"op": op, "args": args}).decode()


def _meant(names: list[str], error: str, status: int | None) -> list[str]:
    """Which of a command's unanswered topics an error is about: it may name the topic, the table or the symbol, or
    nothing. Then it is about the first, for topics are answered in their order, unless it is about the client as such.
    """
    if len(names) <= 1:
        return names
    words = set(re.findall(r"[\w.:]*\w", error))
    for parts in (
        [(name, name) for name in names],
        [(name, name.partition(":")[0]) for name in names],
        [(name, name.partition(":")[2]) for name in names],
    ):
        if named := [name for name, part in parts if part in words]:
            return named
    if status in (401, 403) and (private := [name for name in names if name.partition(":")[0] in PRIVATE_TABLES]):
        return private
    return names[:1] if status == 400 else names
