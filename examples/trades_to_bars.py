"""Make one-minute bars of trades. The exchange's clock runs a hundred times as fast as ours, so that we need not wait.

    python examples/trades_to_bars.py [--bars 5]
"""

import argparse

import trio

from bitmex_streams import Bars, Connection, Decoder, Pipeline
from bitmex_streams.exchange import open_exchange


async def print_bars(url, number):
    async with Pipeline.create(
        Connection(url, subscribe=["trade:XBTUSD"]),
        Decoder(),
        Bars("1m"),
    ) as pipeline:
        async with pipeline.tap() as bars:  # "block", the default: no bar is lost
            async for bar in bars:
                incomplete = "" if bar.complete else "  (incomplete: we were not there when it began)"
                print(
                    f"{bar.timestamp}  open {bar.open}  high {bar.high}  low {bar.low}  close {bar.close}  "
                    f"volume {bar.volume}  trades {bar.trades}{incomplete}"
                )
                number -= 1
                if number == 0:
                    break


async def main(number):
    async with open_exchange(symbols=["XBTUSD"], rate=5, speed=100) as exchange:
        await print_bars(exchange.url, number)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make one-minute bars of trades.")
    parser.add_argument("--bars", type=int, default=5, help="how many (default: 5)")
    trio.run(main, parser.parse_args().bars)
