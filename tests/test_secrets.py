"""No key, secret or signature is in anything that leaves the library: items, recordings, logs, errors, reprs."""

import logging
import os
import pickle
import subprocess
import sys
import traceback
from pathlib import Path

import msgspec
import pytest
import trio

from bitmex_streams import (
    AuthenticationError,
    BitMEXStreamsError,
    Connection,
    Decoder,
    Fills,
    Margin,
    Orders,
    Pipeline,
    Positions,
    RawMessage,
    Replay,
    TableApplier,
    open_bitmex_websocket,
)
from bitmex_streams.auth import Credentials
from bitmex_streams.exchange import open_exchange
from bitmex_streams.timestamps import to_iso

ROOT = Path(__file__).parent.parent
PRIVATE = ["order", "execution", "position", "margin", "wallet", "transact"]


@pytest.fixture
def signatures(monkeypatch):
    """Every signature that is made, as it is made."""
    made, sign = [], Credentials._sign

    def remember(self):
        signed = sign(self)
        made.append(signed[1])
        return signed

    monkeypatch.setattr(Credentials, "_sign", remember)
    return made


def everything_of(items):
    for item in items:
        yield repr(item)
        yield msgspec.json.encode(item, enc_hook=repr).decode()
        yield pickle.dumps(item).decode("latin-1")


@pytest.mark.parametrize("transport", ["default", "fast"])
async def test_a_whole_session_shows_no_secret(transport, signatures, caplog, capfd, tmp_path):
    caplog.set_level(logging.DEBUG)  # of every logger, those of the libraries underneath too
    async with open_exchange(symbols=["XBTUSD"], rate=50, seed=3) as exchange:
        account = exchange.open_account()
        key, secret = account.api_key, account.api_secret
        sections = [Decoder(), TableApplier(), Orders(), Fills(), Positions(), Margin()]
        connection = Connection(
            exchange.url, subscribe=PRIVATE, api_key=key, api_secret=secret, dead_mans_switch=True, transport=transport
        )
        items, shown, recording = [], [], tmp_path / "session"
        async with Pipeline.create(connection, *sections) as pipeline, trio.open_nursery() as nursery:

            async def read(tap):
                async for item in tap:
                    items.append(item)

            for section in (connection, *sections):
                nursery.start_soon(read, pipeline.tap(section))
            await connection.wait_connected()
            await connection.authenticate(key, secret)
            await connection.subscribe("trade", "privateNotifications")
            account.submit("XBTUSD", "Buy", 100)
            account.submit("XBTUSD", "Buy", 200, 1000)
            account.cancel_all()
            with trio.fail_after(10):
                while not any("Canceled" in repr(item) for item in items):  # noqa: ASYNC110 - read by several tasks
                    await trio.sleep(0.01)
            with pytest.raises(AuthenticationError) as error:
                await connection.authenticate(key, secret + "x")
            shown.append("".join(traceback.format_exception(error.value)))
            with pytest.raises(AuthenticationError) as error:
                await connection.authenticate("n" + key, secret)
            shown += map(repr, (error.value, connection, pipeline, vars(connection), vars(connection._protocol)))
            nursery.cancel_scope.cancel()
        for wrong in ({"api_key": key, "api_secret": secret + "y"}, {"api_key": "n" + key, "api_secret": secret}):
            with pytest.raises(AuthenticationError) as error:
                async with Pipeline.create(Connection(exchange.url, transport=transport, **wrong)) as pipeline:
                    pipeline.start()
                    await trio.sleep_forever()
            shown.append("".join(traceback.format_exception(error.value)))
        with pytest.raises(BitMEXStreamsError) as error:
            async with open_bitmex_websocket(exchange.url, key, secret + "z"):
                pass
        shown.append("".join(traceback.format_exception(error.value)))
        shown += map(repr, (exchange, account, exchange.accounts))

    raw = [item for item in items if type(item) is RawMessage]
    assert any("authKeyExpires" in text for text in map(str, raw)), "there was something to hide"
    recording.write_text("".join(f"{to_iso(item.received)} {_text(item.data)}\n" for item in raw))
    async with Pipeline.create(Replay(recording), Decoder()) as pipeline, pipeline.tap() as tap:
        shown += [repr(item) async for item in tap]
    shown += everything_of(items)
    shown += [recording.read_text(), caplog.text, *capfd.readouterr()]
    shown += [repr(vars(record)) for record in caplog.records]
    assert len(signatures) >= 6 and len(items) > 50 and len(caplog.records) > 50
    text = "\n".join(shown)
    for hidden in (key, secret, *signatures):
        assert hidden not in text


def _text(data):
    return data if isinstance(data, str) else data.decode()


async def test_an_error_that_ends_a_program_shows_no_secret():
    program = """
import sys
import trio
from bitmex_streams import Connection, Pipeline

async def main():
    url, key, secret = sys.argv[1:]
    async with Pipeline.create(Connection(url, api_key=key, api_secret=secret)) as pipeline, pipeline.tap() as tap:
        await tap.receive()

trio.run(main)
"""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    async with open_exchange(symbols=["XBTUSD"], rate=0) as exchange:
        account = exchange.open_account()
        ended = await trio.run_process(
            [sys.executable, "-c", program, exchange.url, account.api_key, account.api_secret + "x"],
            capture_stdout=True, capture_stderr=True, check=False, env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
    said = ended.stdout + ended.stderr
    assert ended.returncode == 1 and b"api_secret is not this key's" in said
    assert account.api_key.encode() not in said and account.api_secret.encode() not in said


def test_the_suite_itself_is_watched(tmp_path):
    (tmp_path / "test_leak.py").write_text(
        "from bitmex_streams.auth import Credentials\n"
        "def test_that_prints_a_secret():\n"
        "    Credentials('a-key-that-is-long', 'a-secret-that-is-longer')\n"
        "    print('my secret is', 'a-secret-that-is-longer')\n"
        "def test_that_traces_a_secret():\n"
        "    import logging\n"
        "    Credentials('a-key-that-is-long', 'a-secret-that-is-longest')\n"
        "    logging.getLogger('of.whatever').debug('sent %s', 'a-secret-that-is-longest')\n"
        "def test_that_keeps_it():\n"
        "    Credentials('a-key-that-is-long', 'a-secret-that-is-the-longest')\n"
    )
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."]
    ended = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert ended.returncode == 1
    for test, shown in (("prints_a_secret", True), ("traces_a_secret", True), ("keeps_it", False)):
        assert (f"SECRET SHOWN in the output of test_leak.py::test_that_{test}" in ended.stdout) is shown
