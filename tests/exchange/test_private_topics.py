"""Clients sign in, and get what is their account's, over real websockets."""

# ruff: noqa: ASYNC110 - what is waited for is in the server, and has no event to wait on

import json
import time

import pytest
import trio

from bitmex_streams.auth import signature
from bitmex_streams.exchange.schemas import PRIVATE_TABLES
from tests.exchange.clients import handshake, open_client, paused

WORDS = "User requested an account-locked subscription but no authorization was provided."


def soon(seconds=60):
    return int(time.time()) + seconds


def credentials(account, expires=None, secret=None):
    """[key, expires, signature]"""
    expires = soon() if expires is None else expires
    return [account.api_key, expires, signature(secret or account.api_secret, "GET", "/realtime", expires)]


def headers(account, **options):
    key, expires, signed = credentials(account, **options)
    return [("api-key", key), ("api-expires", str(expires)), ("api-signature", signed)]


async def refusal(exchange, headers, path="/realtime"):
    """Status and body of the answer to a handshake."""
    stream = await handshake(exchange, path, [f"{name}: {value}" for name, value in headers])
    answer = b""
    with trio.fail_after(5):
        while not answer.endswith(b"}"):
            answer += await stream.receive_some()
    await stream.aclose()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body[body.index(b"{") :])


async def test_a_handshake_signs_in_and_private_topics_can_ride_in_its_url():
    async with paused() as exchange:
        account = exchange.open_account()
        signed = headers(account)
        named = [("API-Key", signed[0][1]), ("Api-Expires", signed[1][1]), ("aPI-signature", signed[2][1])]
        async with open_client(exchange, "?subscribe=order:XBTUSD,margin", extra_headers=named) as client:
            acknowledged, orders, also_acknowledged, margins = [await client.receive() for _ in range(4)]
            assert (acknowledged["subscribe"], also_acknowledged["subscribe"]) == ("order:XBTUSD", "margin")
            assert (orders["action"], orders["filter"]) == ("partial", {"account": account.id, "symbol": "XBTUSD"})
            assert margins["filter"] == {"account": account.id} and len(margins["data"]) == 2
            assert exchange.topics == {"order:XBTUSD": 1, "margin": 1}
        with trio.fail_after(5):
            while exchange.topics:
                await trio.sleep(0.01)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"api-key": "unknown"}, "Invalid API Key."),
        ({"api-key": None}, "Invalid API Key."),
        ({"api-signature": "00"}, "Signature not valid."),
        ({"api-signature": None}, "Signature not valid."),
        ({"api-expires": str(soon(-10))}, "This request has expired - `expires` is in the past. Current time: "),
        ({"api-expires": str(soon(10**6))}, "`expires` is too far in the future."),
        ({"api-expires": "soon"}, "`expires` must be a time"),
        ({"api-expires": None}, "`expires` must be a time"),
    ],
    ids=str,
)
async def test_who_is_not_signed_in_right_is_refused_at_the_handshake(change, words):
    async with paused() as exchange:
        signed = {**dict(headers(exchange.open_account())), **change}
        status, body = await refusal(exchange, [(name, value) for name, value in signed.items() if value is not None])
        assert status == 401 and set(body["error"]) == {"message", "name"} and body["error"]["name"] == "HTTPError"
        assert body["error"]["message"].startswith(words)
        assert exchange.clients == 0


async def test_a_handshake_is_taken_once():
    async with paused() as exchange:
        signed = headers(exchange.open_account())
        async with open_client(exchange, extra_headers=signed):
            status, body = await refusal(exchange, signed)
        assert status == 401 and "used before" in body["error"]["message"]
        assert (await refusal(exchange, signed))[0] == 401


async def test_the_query_is_not_signed():
    async with paused() as exchange:
        account = exchange.open_account()
        expires = soon()
        wrong = signature(account.api_secret, "GET", "/realtime?subscribe=margin", expires)
        signed = [("api-key", account.api_key), ("api-expires", str(expires)), ("api-signature", wrong)]
        status, _ = await refusal(exchange, signed, "/realtime?subscribe=margin")
        assert status == 401


async def test_a_client_signs_in_on_a_connection_that_stands():
    async with paused() as exchange, open_client(exchange) as client:
        account, other = exchange.open_account(), exchange.open_account()
        answer = await client.ask("subscribe", "order")
        assert (answer["status"], answer["error"]) == (401, WORDS)
        args = credentials(account)
        request = {"op": "authKeyExpires", "args": args}
        assert await client.ask("authKeyExpires", *args) == {"success": True, "request": request}
        assert (await client.ask("subscribe", "order"))["success"] and (await client.receive())["action"] == "partial"
        for wrong, status, words in (
            (args, 401, "used before"),
            (credentials(other, secret="x"), 401, "Signature not valid."),
            (credentials(other), 400, "authenticated already, as another account"),
            ([account.api_key], 400, "must be an API key, expires and a signature"),
        ):
            answer = await client.ask("authKeyExpires", *wrong)
            assert answer["status"] == status and words in answer["error"]
        assert (await client.ask("authKeyExpires", *credentials(account, soon(70))))["success"]
        account.submit("XBTUSD", "Buy", 100, 1000)
        other.submit("XBTUSD", "Buy", 100, 1000)
        (message,) = await client.until_pong()
        assert message["data"][0]["account"] == account.id


async def test_every_private_table_can_be_subscribed_to_and_some_for_a_symbol():
    async with paused() as exchange:
        account = exchange.open_account()
        async with open_client(exchange, extra_headers=headers(account)) as client:
            await client.send("subscribe", *PRIVATE_TABLES)
            partials = [message for message in await client.until_pong() if "table" in message]
            assert [message["table"] for message in partials] == list(PRIVATE_TABLES)
            await client.send("subscribe", *(f"{table}:XBTUSD" for table in PRIVATE_TABLES))
            messages = await client.until_pong()
            assert [message["table"] for message in messages if "table" in message] == [
                "execution", "order", "position"
            ]  # fmt: skip
            refused = [message for message in messages if "error" in message]
            assert len(refused) == 5 and {message["error"] for message in refused} == {"Unknown or expired symbol."}
            assert (await client.ask("subscribe", "order:DOGE"))["status"] == 400
            assert (await client.ask("unsubscribe", "order"))["success"]
            account.submit("XBTUSD", "Buy", 100, 1000)
            tables = [message["table"] for message in await client.until_pong()]
            assert tables.count("order") == 1 and tables.count("execution") == 2  # for the symbol, and for all


async def test_all_sessions_of_an_account_hear_the_same_and_no_other_hears_anything():
    async with paused() as exchange:
        account, other = exchange.open_account(), exchange.open_account()
        topics = "?subscribe=order,execution,position,margin"
        async with (
            open_client(exchange, topics, extra_headers=headers(account)) as first,
            open_client(exchange, topics, extra_headers=headers(account, expires=soon(61))) as second,
            open_client(exchange, topics, extra_headers=headers(other)) as stranger,
        ):
            for client in (first, second, stranger):
                await client.until_pong()
            assert exchange.topics == dict.fromkeys(("order", "execution", "position", "margin"), 3)
            account.submit("XBTUSD", "Buy", 1000)
            heard = [await client.until_pong() for client in (first, second)]
            assert heard[0] == heard[1] and {message["table"] for message in heard[0]} == {
                "order", "execution", "position", "margin"
            }  # fmt: skip
            assert await stranger.until_pong() == []


async def test_the_switch_outlives_the_connection_that_armed_it():
    async with paused() as exchange:
        account = exchange.open_account()
        account.submit("XBTUSD", "Buy", 100, 1000)
        async with open_client(exchange, extra_headers=headers(account)) as client:
            answer = await client.ask("cancelAllAfter", 60_000)
            assert answer == {
                "now": "2026-01-01T12:00:30.000Z", "cancelTime": "2026-01-01T12:01:30.000Z",
                "request": {"op": "cancelAllAfter", "args": [60_000]},
            }  # fmt: skip
        async with open_client(exchange, extra_headers=headers(account, expires=soon(61))) as client:
            exchange.advance(30)
            await client.ask("", text='{"op": "cancelAllAfter", "args": 60000}')
            exchange.advance(45)
            assert len(account.orders) == 1
            answer = await client.ask("cancelAllAfter", 0)
            assert answer["cancelTime"] == 0 and answer["now"] == "2026-01-01T12:01:45.000Z"
            exchange.advance(100)
            assert len(account.orders) == 1
            await client.ask("cancelAllAfter", 1000)
        exchange.advance(1)
        assert account.orders == {}


@pytest.mark.parametrize("args", ['"soon"', "[]", "null", "-1", "[1, 2]", "true", "1e300", "[[5]]", '{"a": 1}'])
async def test_what_is_no_timeout_is_refused(args):
    async with paused() as exchange:
        account = exchange.open_account()
        async with open_client(exchange, extra_headers=headers(account)) as client:
            answer = await client.ask("", text=f'{{"op": "cancelAllAfter", "args": {args}}}')
            assert answer["status"] == 400 and "must be a timeout in ms" in answer["error"]


async def test_the_switch_fires_in_time_where_nothing_else_happens():
    async with paused(rate=0, speed=1) as exchange:
        account = exchange.open_account()
        account.submit("XBTUSD", "Buy", 100, 1000)
        async with open_client(exchange, "?subscribe=order", extra_headers=headers(account)) as client:
            await client.until_pong()
            begun = trio.current_time()
            await client.ask("cancelAllAfter", 300)
            message = await client.receive()
            # What marks the prices wakes the exchange only every five seconds.
            assert message["data"][0]["ordStatus"] == "Canceled" and 0.2 < trio.current_time() - begun < 3


async def test_an_account_trades_while_the_exchange_runs():
    async with paused(rate=200, speed=5) as exchange:
        account = exchange.open_account()
        async with open_client(exchange, extra_headers=headers(account)) as client:
            await client.send("subscribe", "order", "execution", "position", "margin", "trade:XBTUSD")
            messages = await client.until_pong()
            for size in (1000, 3000, 2000):
                account.submit("XBTUSD", "Buy", size)
                account.submit("XBTUSD", "Sell", size, 66_000)
                await trio.sleep(0.05)
            account.cancel_all()
            exchange.speed = 0
            messages += await client.until_pong()
        rows = {table: [] for table in ("trade", "execution", "order", "position", "margin")}
        for message in messages:
            if "table" in message:
                rows[message["table"]] += message["data"]
        trades = {row["trdMatchID"] for row in rows["trade"]}
        fills = [row for row in rows["execution"] if row["execType"] == "Trade"]
        assert rows["execution"] == account.executions and len(fills) >= 3
        assert {row["trdMatchID"] for row in fills} <= trades


async def test_what_follows_from_a_fill_happens_with_it():
    async with paused(rate=2000, speed=500, symbols=("XBTUSD",)) as exchange:
        account, market = exchange.open_account(), exchange.markets["XBTUSD"]
        account.submit("XBTUSD", "Buy", 1000)
        account.submit("XBTUSD", "Sell", 1000, 200_000, reduce_only=True)
        market.submit("Sell", 10_000_000, 100_000)  # before which the market stops
        price = market.instrument.price(market.engine.best_bid + 2000)
        quote = account.submit("XBTUSD", "Sell", 1000, price)["orderID"]
        heard = []
        market.listeners.insert(0, lambda event: time.sleep(0.01 if event.order.side == "Buy" and event.fills else 0))
        market.listeners.append(lambda event: heard.append(event.time))
        while quote in account.orders:  # the last fill of it cancels what may only reduce
            heard.clear()
            market.submit("Buy", 100_000)
        assert account.orders == {} and account.positions["XBTUSD"]["currentQty"] == 0
        assert account.executions[-1]["execType"] == "Canceled"
        assert account.executions[-1]["timestamp"] == account.executions[-2]["timestamp"]
        assert heard == sorted(heard)


async def test_no_time_passes_while_the_exchange_takes_an_order():
    async with paused(rate=2000, speed=500, symbols=("XBTUSD",)) as exchange:
        account, market = exchange.open_account(), exchange.markets["XBTUSD"]
        rested = 0
        for _ in range(100):
            exchange.time()
            # The best bid may be gone when the order comes; but then it is not sent, and never takes.
            best = market.engine.best_bid
            price = market.instrument.price(best if best is not None else 1)  # on a slow machine a side can run empty
            row = account.submit("XBTUSD", "Buy", 100, price, post_only=True)
            assert row["cumQty"] == 0 and row["ordStatus"] in ("New", "Canceled")
            rested += row["ordStatus"] == "New"
            account.cancel_all()
            await trio.lowlevel.checkpoint()
        assert rested
        assert "RemovedLiquidity" not in {row.get("lastLiquidityInd") for row in account.executions}
