"""cryptofeed as a client of the feed: `PYTHON rival_cryptofeed.py PORT DELTAS` (see benchmarks.rivals)."""

import asyncio
import json
import sys
import time

import cryptofeed.connection
import uvloop
from cryptofeed import FeedHandler
from cryptofeed.defines import L2_BOOK, TRADES
from cryptofeed.exchanges import Bitmex
from cryptofeed.symbols import Symbols

PORT, DELTAS = map(int, sys.argv[1:])
SYMBOL = "BTC-USD-PERP"

connect = cryptofeed.connection.connect
left = DELTAS
began = time.process_time()


def connect_here(address, **options):
    """To the feed, whatever the address: it takes none but wss://, which would cost it TLS."""
    return connect(f"ws://127.0.0.1:{PORT}/realtime", **options)


async def on_book(book, received):
    global left
    if book.delta is None:  # the partial
        return
    left -= 1
    if not left:
        ended, cpu = time.monotonic(), time.process_time() - began
        sides = {"Buy": book.book.bids, "Sell": book.book.asks}
        levels = {side: [(float(p), int(q)) for p, q in of_side.to_dict().items()] for side, of_side in sides.items()}
        print(json.dumps({"ended": ended, "cpu": cpu, "book": levels}), flush=True)
        asyncio.get_running_loop().stop()


async def on_trade(trade, received):
    pass


def main():
    asyncio.set_event_loop(uvloop.new_event_loop())
    cryptofeed.connection.connect = connect_here
    Symbols.set("BITMEX", {SYMBOL: "XBTUSD"}, {"tick_size": {SYMBOL: 0.5}, "instrument_type": {SYMBOL: "perpetual"}})
    handler = FeedHandler(config={"log": {"disabled": True}, "uvloop": False})
    callbacks = {L2_BOOK: on_book, TRADES: on_trade}
    handler.add_feed(Bitmex(symbols=[SYMBOL], channels=[L2_BOOK, TRADES], callbacks=callbacks))
    handler.run(install_signal_handlers=False)


main()
