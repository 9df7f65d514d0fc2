"""Listen to two tables at once with the classic client: one object, an async generator for each table.

    python examples/classic.py [--seconds 3]
"""

import argparse
from contextlib import aclosing

import trio

from bitmex_streams import open_bitmex_websocket
from bitmex_streams.exchange import open_exchange


async def print_trades(bws, symbol):
    async with aclosing(bws.listen("trade", symbol)) as rows:
        async for row in rows:
            print(f"{row['symbol']}  {row['side']:<4} {row['size']:>8} @ {row['price']}")


async def print_marks(bws):
    async with aclosing(bws.listen("instrument")) as rows:
        marks = {}
        async for row in rows:  # whole rows, of every symbol, whenever anything in one has changed
            symbol, mark = row["symbol"], row["markPrice"]
            if marks.get(symbol) != mark:
                marks[symbol] = mark
                print(f"{symbol}  mark price {mark}")


async def main(seconds):
    async with open_exchange(rate=40) as exchange:  # give it "testnet" or a URL instead, where there is one
        async with open_bitmex_websocket(exchange.url) as bws:
            with trio.move_on_after(seconds):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(print_trades, bws, "XBTUSD")
                    nursery.start_soon(print_marks, bws)
            tables = ", ".join(sorted(bws.storage.keys))
            print(f"tables in the storage: {tables}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Listen to trades and mark prices with the classic client.")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long (default: 3)")
    trio.run(main, parser.parse_args().seconds)
