"""The official Python client (bitmex-ws 1.5.0, from PyPI) cannot tell the embedded exchange from the real one.

It runs in an environment of its own: the interpreter named by BITMEX_STREAMS_OFFICIAL_CLIENT_PYTHON, else a virtual
environment that is made here, if pip can get the client.
"""

# ruff: noqa: ASYNC110, ASYNC220 - what is waited for is in a server or another process, and has no event to wait on

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from bitmex_streams.exchange import open_exchange

SCRIPT = Path(__file__).with_name("official_client.py")


@pytest.fixture(scope="session")
def official_python(tmp_path_factory):
    python = os.environ.get("BITMEX_STREAMS_OFFICIAL_CLIENT_PYTHON")
    if python:
        return python
    environment = tmp_path_factory.mktemp("official")
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--retries", "1", "--timeout", "10", "bitmex-ws==1.5.0"]
    for command in ([sys.executable, "-m", "venv", environment], install):
        made = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        if made.returncode:
            reason = (made.stderr.strip() or made.stdout.strip() or "no reason given").splitlines()[-1]
            pytest.skip(f"no environment for the official client (BITMEX_STREAMS_OFFICIAL_CLIENT_PYTHON): {reason}")
    return python


class OfficialClient:
    """The client's process; `state` asks it what it holds."""

    def __init__(self, process):
        self.process = process

    async def state(self):
        await trio.to_thread.run_sync(self._ask)
        line = await trio.to_thread.run_sync(self.process.stdout.readline)
        assert line, "the client ended"
        return json.loads(line)

    def _ask(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    async def state_with(self, book):
        """What it holds once it has read on to a book; it is given time, since it searches its rows one by one."""
        bids, asks = ([list(level) for level in side] for side in book)
        books = {"orderBookL2": [bids, asks], "orderBookL2_25": [bids[:25], asks[:25]]}
        with trio.fail_after(20):
            while (state := await self.state())["books"] != books:
                await trio.sleep(0.05)
        return state


async def test_the_official_client_gets_its_partials_and_keeps_the_exchanges_book(official_python):
    async with open_exchange(symbols=("XBTUSD", "ETHUSD"), rate=100, levels=60) as exchange:
        market = exchange.markets["XBTUSD"]
        command = [str(official_python), str(SCRIPT), exchange.url, "XBTUSD"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                client = OfficialClient(process)
                state = await client.state()
                assert all(state["books"]["orderBookL2"]) and all(state["books"]["orderBookL2_25"])
                assert (state["instrument"]["symbol"], state["instrument"]["lotSize"]) == ("XBTUSD", 100)
                for _ in range(3):
                    begun = market.book
                    await trio.sleep(1)
                    exchange.speed = 0
                    assert market.book != begun
                    await client.state_with(market.book)
                    exchange.speed = 1
                exchange.speed = 0
                market.submit("Buy", 100)
                market.submit("Sell", 700)
                state = await client.state_with(market.book)
                trade, row = exchange.tables.rows("trade", "XBTUSD")[0], exchange.tables.rows("instrument", "XBTUSD")[0]
                with trio.fail_after(20):
                    while {name: state["instrument"].get(name) for name in row} != row or state["trades"][-1] != trade:
                        state = await client.state()
                assert state["ticker"]["last"] == round(float(trade["price"]), 0)
            finally:
                process.kill()
            assert "Traceback" not in process.stderr.read()


async def test_the_official_client_has_the_orders_position_and_margin_of_its_account(official_python):
    async with open_exchange(symbols=("XBTUSD",), rate=20, levels=30, speed=0) as exchange:
        account = exchange.open_account({"XBt": 100_000_000})
        account.submit("XBTUSD", "Buy", 2000)
        account.submit("XBTUSD", "Buy", 100, 50_000)
        command = [str(official_python), str(SCRIPT), exchange.url, "XBTUSD", account.api_key, account.api_secret]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                client = OfficialClient(process)
                await client.state()  # it is connected
                amended = account.submit("XBTUSD", "Sell", 300, 70_000, client_order_id="amended")["orderID"]
                account.submit("XBTUSD", "Sell", 500)
                account.amend(amended, size=200)
                account.cancel_all(side="Buy")
                books = {
                    "orders": [account.orders[amended]],
                    "executions": account.executions,
                    "positions": [account.positions["XBTUSD"]],
                    "funds": account.margins["XBt"],
                }
                with trio.fail_after(20):
                    while {name: rows for name, rows in (await client.state()).items() if name in books} != books:
                        await trio.sleep(0.05)
            finally:
                process.kill()
            assert "Traceback" not in process.stderr.read()
