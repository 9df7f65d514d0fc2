"""Put a section of your own between two of ours: micro-prices, made of book updates, then throttled.

    python examples/user_section.py [--count 8]
"""

import argparse
from typing import NamedTuple

import trio

from bitmex_streams import BookUpdate, Connection, Decoder, Operator, OrderBookMerger, Pipeline, Throttle
from bitmex_streams.exchange import open_exchange


class Microprice(NamedTuple):
    """The mid-price, weighted towards the side with less on offer. ``received``: ns, so that timers know the time."""

    symbol: str
    price: float
    received: int


class Microprices(Operator):
    """`BookUpdate` in, `Microprice` out. Stale updates pass: what comes after must know that the book was lost."""

    def process(self, item):
        if type(item) is not BookUpdate or item.stale:
            return (item,)
        bid, ask = item.best_bid, item.best_ask
        if bid is None or ask is None:
            return ()
        price = (bid.price * ask.size + ask.price * bid.size) / (bid.size + ask.size)
        return (Microprice(item.symbol, price, item.received),)


async def main(count):
    async with open_exchange() as exchange, Pipeline.create(
        Connection(exchange.url, subscribe=["orderBookL2:XBTUSD", "orderBookL2:ETHUSD"]),
        Decoder(),
        OrderBookMerger(),
        Microprices(),
        Throttle(0.3, key=lambda item: item.symbol),
    ) as pipeline:
        async with pipeline.tap() as prices:
            async for item in prices:
                if isinstance(item, Microprice):
                    print(f"{item.symbol}  {item.price:.4f}")
                    count -= 1
                if count == 0:
                    break


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print throttled micro-prices of two markets.")
    parser.add_argument("--count", type=int, default=8, help="how many (default: 8)")
    trio.run(main, parser.parse_args().count)
