"""Run by the interpreter of an environment that has bitmex-ws, the official client (see test_official_client.py).

usage: official_client.py URL SYMBOL. Prints what the client holds as one JSON line whenever it reads a line, and ends
with its input.
"""

import json
import logging
import sys

from bitmex_websocket import BitMEXWebsocket

logging.basicConfig(level=logging.WARNING)  # the client logs what it could not apply, and goes on
url, symbol = sys.argv[1:]
tables = ["instrument", "orderBookL2", "orderBookL2_25", "quote", "trade"]
client = BitMEXWebsocket(endpoint=url, symbol=symbol, subscriptions=tables)
for _ in sys.stdin:
    books = {}
    for table in ("orderBookL2", "orderBookL2_25"):
        rows = list(client.data.get(table, ()))
        books[table] = [
            sorted(([row["price"], row["size"]] for row in rows if row["side"] == side), reverse=side == "Buy")
            for side in ("Buy", "Sell")
        ]
    instrument = client.get_instrument()  # before the ticker, which rounds by what this sets
    state = {"books": books, "ticker": client.get_ticker(), "instrument": instrument, "trades": client.recent_trades()}
    print(json.dumps(state), flush=True)
client.exit()
