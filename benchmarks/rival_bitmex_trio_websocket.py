"""bitmex-trio-websocket as a client of the feed: `PYTHON rival_bitmex_trio_websocket.py PORT DELTAS` (see
benchmarks.rivals).
"""

import json
import sys
import time

import bitmex_trio_websocket.websocket
import trio
from bitmex_trio_websocket import open_bitmex_websocket
from slurry_websocket import Websocket

PORT, DELTAS = map(int, sys.argv[1:])


class Here(Websocket):
    """To the feed, whatever the address; and with room for the partial."""

    def __init__(self, address, **options):
        super().__init__(f"ws://127.0.0.1:{PORT}/realtime", max_message_size=2**26, **options)


async def main():
    began = time.process_time()
    bitmex_trio_websocket.websocket.Websocket = Here
    async with open_bitmex_websocket("testnet") as exchange, trio.open_nursery() as nursery:

        async def read_book():
            async for _ in exchange.listen("orderBookL2", "XBTUSD"):
                pass

        nursery.start_soon(read_book)
        async for _ in exchange.listen("trade", "XBTUSD"):
            ended, cpu = time.monotonic(), time.process_time() - began
            book = exchange.storage.data["orderBookL2"]["XBTUSD"]
            levels = {side: [(row["price"], row["size"]) for row in of_side.values()] for side, of_side in book.items()}
            print(json.dumps({"ended": ended, "cpu": cpu, "book": levels}), flush=True)
            nursery.cancel_scope.cancel()


trio.run(main)
