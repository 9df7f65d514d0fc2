"""Faults at random against live pipelines (`benchmarks.soak`): all is right after each; and what is wrong is found.

In processes of their own: trio's clock, the watch over hanging and the leaks are those of a whole process.
"""

import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from benchmarks.strikes import ENDINGS, KINDS, TAKES_LONG

ROOT = Path(__file__).parent.parent


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=240)


def test_200_faults_over_real_sockets():
    done = run("-m", "benchmarks.soak", "--faults", "200", "--seed", "1", "--sockets")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("seed 1; ")
    struck = {name: int(times) for name, times in re.findall(r"^(\w+) +(\d+)$", done.stdout, re.MULTILINE)}
    assert set(KINDS) - TAKES_LONG <= set(struck) <= {*KINDS, *ENDINGS}
    assert sum(struck.values()) == 200
    assert "200 faults; all was right after each" in done.stdout


@pytest.mark.parametrize("transport", ["default", "fast"])
def test_150_faults_on_a_test_clock(transport):
    if transport == "fast":
        pytest.importorskip("websockets")
    done = run("-m", "benchmarks.soak", "--faults", "150", "--seed", "2", "--transport", transport)
    assert done.returncode == 0, done.stdout + done.stderr


BROKEN = {
    "tables that are kept through the loss of the connection": (
        """
        process = TableApplier.process
        TableApplier.process = lambda self, item: process(self, item) if type(item) is not Disconnected else ()
        """,
        "state was lost, and before the marks of",
    ),
    "live objects that are not stale at once": (
        """
        lose_state = Connection._lose_state
        def hushed(self, reason):
            watchers, self._watchers = self._watchers, self._watchers[:1]  # whoever watches from outside
            lose_state(self, reason)
            self._watchers = watchers
        Connection._lose_state = hushed
        """,
        "the connection is lost, and not stale",
    ),
    "a connection that does not subscribe again": (
        """
        disconnected = ClientProtocol.disconnected
        ClientProtocol.disconnected = lambda self: (disconnected(self), self._changed.clear())
        """,
        "it does not heal",
    ),
    "a message that is lost on the way": (
        """
        process, passed = Decoder.process, iter(range(10**9))
        def lossy(self, item):
            is_insert = type(item) is RawMessage and '"action":"insert"' in str(item.data)
            return () if is_insert and next(passed) % 50 == 49 else process(self, item)
        Decoder.process = lossy
        """,
        "comes another than the next|nothing came out of the decoder",  # whichever is seen first
    ),
    "a trade that is told twice": (
        """
        process, passed = TableApplier.process, iter(range(10**9))
        def twice(self, item):
            told = list(process(self, item))
            again = told and told[0].table == "trade" and told[0].action == "insert" and next(passed) == 20
            return told * 2 if again else told
        TableApplier.process = twice
        """,
        "comes another than the next",
    ),
    "a book that keeps what was deleted": (
        """
        apply = OrderBook.apply
        OrderBook.apply = lambda self, action, rows: apply(self, action, rows) if action != "delete" else []
        """,
        "the live book is not what the table has",
    ),
    "fills that come again with each partial": (
        "Fills._remember = lambda self, row, fill=None: None",
        "fill",
    ),
    "connections that are given up and not closed": (
        """
        async def aclose(self, code=1000, reason=None):
            pass
        WebsocketTransport.aclose = aclose
        """,
        "the stream of the one before is open",
    ),
}
BROKEN_OF_KIND = {  # found by faults of one kind
    "connections that stay in memory": (
        "drop",
        """
        kept, connect = [], WebsocketTransport.connect
        WebsocketTransport.connect = lambda self, nursery: (kept.append(self), connect(self, nursery))[1]
        """,
        "still in memory",
    ),
    "a heartbeat that does not beat": (
        "silence",
        "Link._watch = lambda self, nursery: trio.sleep_forever()",
        "the line is dead for 10.",
    ),
    "a heartbeat without patience": (
        "silence",
        """
        quiet_since = Link._quiet_since.fget
        Link._quiet_since = property(lambda self: quiet_since(self) - self.connection.heartbeat)
        """,
        "given up for dead",
    ),
    "a heartbeat that asks nobody": (
        "quiet",
        "Link._ping = lambda self: trio.lowlevel.checkpoint()",
        "an exchange that is quiet, and answers, is taken for dead",
    ),
    "a partial that is waited for without end": (
        "lost_partial",
        "bitmex_streams.protocol.PARTIAL_TIMEOUT = 1e6",
        "has not come, and was not asked for anew in 30 s",
    ),
    "a partial that is waited for too short a time": (
        "lost_partial",
        "bitmex_streams.protocol.PARTIAL_TIMEOUT = 20.0",
        "was asked for anew after",
    ),
    "attempts without a wait": (
        "refused_again",
        "Backoff.next = lambda self, retry_after=None: retry_after or 0.01",
        "were to be waited",
    ),
    "waits that grow and grow": (
        "refused_again",
        "Backoff.stood = lambda self, seconds: None",
        "no other attempt in",
    ),
    "a Retry-After that is not read": (
        "refused_again",
        "Wire.retry_after = property(lambda self: None)",
        "were to be waited",
    ),
    "messages that overtake each other": (
        "drop",
        """
        take = Inbox.take
        async def shuffled(self):
            items = await take(self)
            for at in range(1, len(items)):
                one, other = items[at - 1], items[at]
                if type(one) is type(other) is RawMessage and one.data[:20] != other.data[:20]:
                    items[at - 1], items[at] = other, one
            return items
        Inbox.take = shuffled
        """,
        "is handed out, and arrived has",
    ),
    "updates that overtake each other in the applier": (
        "drop",
        """
        process, held = TableApplier.process, []
        def late(self, item):
            told = [*process(self, item)]
            if told and not held and told[0].table == "trade" and told[0].action == "insert":
                held.extend(told)
                return ()
            if told and held and told[0].table != "trade":
                told += held
                held.clear()
            return told
        TableApplier.process = late
        """,
        "nothing came out of the applier",
    ),
    "topics that come back, given up while the connection was lost": (
        "changes",
        """
        want = ClientProtocol._want
        ClientProtocol._want = lambda self, name, wanted: want(self, name, wanted or not self.greeted)
        """,
        "was given up before this connection stood",
    ),
    "commands that are taken back when nobody waits for them": (
        "changes",
        """
        settle = Connection._settle
        async def fickle(self, ask, topics):
            try:
                await settle(self, ask, topics)
            except trio.Cancelled:
                self._protocol.unsubscribe(topics)
                raise
        Connection._settle = fickle
        """,
        "it does not heal",
    ),
    "any certificate is good enough": (
        "wrong_certificate",
        """
        start_tls = Dialer._start_tls
        def trusting(self, stream, host, context, whose=""):
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            return start_tls(self, stream, host, context)
        Dialer._start_tls = trusting
        """,
        "the pipeline goes on",
    ),
    "a key that is refused and tried again": (
        "refused_key",
        "connections.is_final = lambda error, **how: False",
        "the pipeline goes on",
    ),
    "a message that is too large, and no end": (
        "too_large",
        "connections.is_final = lambda error, **how: False",
        "the pipeline goes on",
    ),
    "state that is fresh however long reading is held up": (
        "blocked",
        "Connection.max_lag = property(lambda self: 1e6, lambda self, seconds: None)",
        "reading is held up for",
    ),
    "marks that are dropped": (
        "drop",
        "bitmex_streams.tap.is_mark = lambda item: False",
        "a sleeper with `",
    ),
    "items that are left out without a word": (
        "quiet",
        "bitmex_streams.tap.conflated = lambda item: item",
        "is not told that something was left out",
    ),
    "a `latest` tap that keeps the first": (
        "quiet",
        """
        put = Latest.put
        def keep(self, item):
            if bitmex_streams.tap.is_mark(item) or self._key(item) not in self.items:
                put(self, item)
        Latest.put = keep
        """,
        "a sleeper with `latest` finds",
    ),
}
PREPARE = """
import ssl
import trio
import bitmex_streams.protocol, bitmex_streams.tap
import bitmex_streams.sections.connection as connections
from bitmex_streams import *
from bitmex_streams.inbox import Inbox
from bitmex_streams.protocol import ClientProtocol
from bitmex_streams.reconnect import Backoff
from bitmex_streams.tap import Latest
from bitmex_streams.transport import Dialer, WebsocketTransport, Wire
Link = connections._Link
{}
from benchmarks.soak import main
main()
"""


@pytest.mark.parametrize("what", BROKEN)
def test_the_soak_finds(what):
    code, said = BROKEN[what]
    done = run("-c", PREPARE.format(dedent(code)), "--faults", "100", "--seed", "3", "--transport", "default")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "WRONG: seed 3, fault " in done.stderr
    assert any(words in done.stderr for words in said.split("|"))


@pytest.mark.parametrize("what", BROKEN_OF_KIND)
def test_the_soak_finds_by_its_kind(what):
    kind, code, said = BROKEN_OF_KIND[what]
    options = ["--faults", "1" if kind in ENDINGS else "20", "--seed", "3", "--transport", "default", "--kind", kind]
    if kind == "wrong_certificate":
        pytest.importorskip("trustme")
    done = run("-c", PREPARE.format(dedent(code)), *options)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "WRONG: seed 3, fault " in done.stderr
    assert said in done.stderr
