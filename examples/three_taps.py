"""Tap three stages of one pipeline at once: raw messages, changes of tables, order books.

    python examples/three_taps.py [--seconds 3]
"""

import argparse

import trio

from bitmex_streams import Connection, Decoder, OrderBookMerger, Pipeline, RawMessage, TableApplier
from bitmex_streams.exchange import open_exchange


async def count_messages(tap):
    messages = characters = 0
    async for item in tap:
        if isinstance(item, RawMessage):
            messages += 1
            characters += len(item.data)
            if messages % 50 == 0:
                print(f"raw:    {messages} messages, {characters} characters")


async def print_trades(tap):
    async for update in tap:
        if update.table == "trade" and update.action == "insert":
            for row in update.rows:
                print(f"trade:  {row['side']} {row['size']} at {row['price']}")


async def print_tops(tap):
    async for update in tap:
        if not update.stale and update.best_bid and update.best_ask:
            print(f"book:   {update.best_bid.price} / {update.best_ask.price}")
        await trio.sleep(0.5)  # a slow consumer, who holds nobody up: its tap keeps the latest


async def main(seconds):
    async with open_exchange(symbols=["XBTUSD"], rate=50) as exchange:
        connection = Connection(exchange.url, subscribe=["orderBookL2:XBTUSD", "trade:XBTUSD"])
        tables = TableApplier()
        async with Pipeline.create(connection, Decoder(), tables, OrderBookMerger()) as pipeline:
            with trio.move_on_after(seconds):
                # All taps before any task: a pipeline starts with its first tap, and waits for nobody.
                taps = pipeline.tap(connection), pipeline.tap(tables), pipeline.tap(overflow="latest")
                async with trio.open_nursery() as nursery:
                    for consumer, tap in zip((count_messages, print_trades, print_tops), taps, strict=True):
                        nursery.start_soon(consumer, tap)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Tap three stages of one pipeline at once.")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long (default: 3)")
    trio.run(main, parser.parse_args().seconds)
