"""Print the best bid and ask of a market, five times a second.

    python examples/top_of_book.py [--seconds 3]
"""

import argparse

import trio

from bitmex_streams import Connection, Decoder, OrderBookMerger, Pipeline, Throttle
from bitmex_streams.exchange import open_exchange


async def print_tops(url, symbol):
    async with Pipeline.create(
        Connection(url, subscribe=[f"orderBookL2:{symbol}"]),
        Decoder(),
        OrderBookMerger(),
        Throttle(0.2),
    ) as pipeline:
        # Only the newest top matters: "latest" never makes the pipeline wait for the terminal.
        async with pipeline.tap(overflow="latest") as updates:
            async for update in updates:
                if update.stale:
                    print(f"{update.symbol}  the book cannot be trusted, a new one is on its way")
                elif update.best_bid and update.best_ask:  # the update's own top; update.book may be ahead of it
                    bid, ask = update.best_bid, update.best_ask
                    print(f"{update.symbol}  {bid.size:>8} @ {bid.price:<10} | {ask.price:>10} @ {ask.size:<8}")


async def main(seconds):
    async with open_exchange() as exchange:  # give print_tops a URL or "testnet" instead, where there is one
        with trio.move_on_after(seconds):
            await print_tops(exchange.url, "XBTUSD")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print the best bid and ask of a market, five times a second.")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long (default: 3)")
    trio.run(main, parser.parse_args().seconds)
