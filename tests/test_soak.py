"""Faults at random against live pipelines (`benchmarks.soak`): all is right after each; and what is wrong is found.

In processes of their own: trio's clock, the watch over hanging and the leaks are those of a whole process.
"""

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parent.parent


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=240)


def test_200_faults_over_real_sockets():
    done = run("-m", "benchmarks.soak", "--faults", "200", "--seed", "1", "--sockets")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("seed 1; ")
    struck = dict(line.rsplit(maxsplit=1) for line in done.stdout.splitlines()[-16:-1])
    assert len(struck) == 15
    assert sum(map(int, struck.values())) == 200
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
        "Connection._lose_state = lambda self, reason: None",
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
        "comes another than the next",
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
    "connections that stay in memory": (
        """
        kept, connect = [], WebsocketTransport.connect
        WebsocketTransport.connect = lambda self, nursery: (kept.append(self), connect(self, nursery))[1]
        """,
        "still in memory",
    ),
    "connections that are given up and not closed": (
        """
        async def aclose(self, code=1000, reason=None):
            pass
        WebsocketTransport.aclose = aclose
        """,
        "subscribed are",
    ),
}
PREPARE = """
import sys
from bitmex_streams import *
from bitmex_streams.protocol import ClientProtocol
from bitmex_streams.transport import WebsocketTransport
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
    assert said in done.stderr
