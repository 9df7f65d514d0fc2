"""The dead man's switch, from a program of its own to the orders on the embedded exchange."""

import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from bitmex_streams.exchange import open_exchange

PROGRAM = """
import sys

import trio

from bitmex_streams import CancelAllAfter, Connection, Decoder, Pipeline


async def main():
    url, key, secret, how, transport = sys.argv[1:]
    connection = Connection(url, api_key=key, api_secret=secret, dead_mans_switch=True, transport=transport)
    async with Pipeline.create(connection, Decoder()) as pipeline:
        async with pipeline.tap() as messages:
            async for message in messages:
                if isinstance(message, CancelAllAfter):
                    print(message.cancel_time, flush=True)
                    break
        if how == "ends well":
            return
        if how == "fails":
            raise ValueError("a bug")
        await trio.sleep_forever()


trio.run(main)
"""
ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


@asynccontextmanager
async def a_trader(how, transport):
    """An account with two orders in the book, and a program of its owner's that has set its switch."""
    async with open_exchange(symbols=["XBTUSD"], rate=0) as exchange:
        account = exchange.open_account()
        bid = exchange.markets["XBTUSD"].book.bids[0].price
        account.submit("XBTUSD", "Buy", 100, bid - 100)
        account.submit("XBTUSD", "Buy", 200, bid - 200)
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", PROGRAM, exchange.url, account.api_key, account.api_secret, how, transport],
            stdout=subprocess.PIPE, env=ENVIRONMENT, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            with trio.fail_after(30):
                assert (await process.stdout.receive_some()).startswith(b"20")
                yield exchange, account, process
                await process.wait()
        finally:
            process.kill()
            await process.wait()
            await process.stdout.aclose()


async def gone(exchange):
    with trio.fail_after(20):
        while exchange.clients:  # noqa: ASYNC110 - the exchange has no event for it
            await trio.sleep(0.01)


@pytest.mark.parametrize("transport", ["default", "fast"])
@pytest.mark.parametrize("how", ["is killed", "is interrupted", "fails"])
async def test_when_the_program_dies_its_orders_are_cancelled_within_the_minute(how, transport):
    async with a_trader(how, transport) as (exchange, account, process):
        if how != "fails":
            process.send_signal(signal.SIGKILL if how == "is killed" else signal.SIGINT)
        await gone(exchange)
        assert len(account.orders) == 2
        exchange.advance(61)
        assert not account.orders
        texts = [row["text"].splitlines()[0] for row in account.executions if row["execType"] == "Canceled"]
        assert texts == ["Canceled: Cancel all after"] * 2


@pytest.mark.parametrize("transport", ["default", "fast"])
async def test_when_the_program_ends_well_its_orders_stay(transport):
    async with a_trader("ends well", transport) as (exchange, account, _):
        await gone(exchange)
        exchange.advance(3600)
        assert len(account.orders) == 2
