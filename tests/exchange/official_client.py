"""Run by the interpreter of an environment that has bitmex-ws, the official client (see test_official_client.py).

usage: official_client.py URL SYMBOL [KEY SECRET]. Prints what the client holds as one JSON line whenever it reads a
line, and ends with its input. With a key and its secret, it has the tables of the account, too.
"""

import json
import logging
import sys

from bitmex_websocket import BitMEXWebsocket

logging.basicConfig(level=logging.WARNING)  # the client logs what it could not apply, and goes on
url, symbol, *credentials = sys.argv[1:]
tables = ["instrument", "orderBookL2", "orderBookL2_25", "quote", "trade"]
options = {}
if credentials:
    tables += ["execution", "order", "margin", "position"]
    options = dict(zip(("api_key", "api_secret"), credentials, strict=True))
client = BitMEXWebsocket(endpoint=url, symbol=symbol, subscriptions=tables, **options)
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
    if credentials:
        state |= {"orders": client.open_orders(""), "funds": client.funds(), "positions": client.positions()}
        state["executions"] = client.data["execution"]
    print(json.dumps(state), flush=True)
client.exit()
