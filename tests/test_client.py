"""The classic client, over real websockets: against the embedded exchange, and a scripted one where that would not do
what is needed.
"""

# ruff: noqa: ASYNC110 - what is waited for is in a server or another process, and has no event to wait on

import gc
import json
import os
import random
import subprocess
import sys
import threading
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path

import async_generator
import pytest
import trio

from bitmex_streams.client import BOOK, TURN, BitMEXWebsocket, Listener, open_bitmex_websocket
from bitmex_streams.errors import (
    AuthenticationError,
    BitMEXWebsocketApiError,
    ConnectionClosed,
    ConnectionFailed,
    ListenerTooSlow,
)
from bitmex_streams.exchange import open_exchange
from tests.servers import ScriptedExchange, partial_of, serve_websocket, tardis_replay

ROOT = Path(__file__).parent.parent
KEY, SECRET = "LAqUlngMIQkIUjXMUreyu3qn", "chNOOS4KvNXR_Xq4k4c9qsfoKWvnDecLATCRlcBwyKDYnWgO"


START = datetime(2026, 1, 1, 12, tzinfo=UTC)
PRICES = {"XBTUSD": 64000, "ETHUSD": 3200, "SOLUSDT": 150}


@asynccontextmanager
async def paused(symbols=("XBTUSD", "ETHUSD")):
    """An exchange where nothing happens by itself: each book has one bid and one ask, far from each other."""
    async with open_exchange(symbols=symbols, rate=0, levels=0, speed=0, start_time=START) as exchange:
        for symbol in symbols:
            exchange.markets[symbol].submit("Buy", 10_000, PRICES[symbol] * 0.75)
            exchange.markets[symbol].submit("Sell", 10_000, PRICES[symbol] * 1.25)
            trade(exchange, symbol, 1000)
        yield exchange


async def take(listener, number):
    with trio.fail_after(10):
        return [await listener.__anext__() for _ in range(number)]


async def take_all(listener):
    """What waits for a listener, when all is quiet."""
    await trio.sleep(0.05)
    return await take(listener, len(listener._backlog.rows))


async def until(condition):
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.005)


async def topics_become(exchange, *topics):
    await until(lambda: exchange.topics == dict.fromkeys(topics, 1))


def trade(exchange, symbol, quantity):
    """One trade of that size."""
    exchange.markets[symbol].submit("Sell", quantity, PRICES[symbol])
    assert exchange.markets[symbol].submit("Buy", quantity).leaves == 0


def delta(table, action, *rows):
    return {"table": table, "action": action, "data": list(rows)}


# --- what a listener gives ---


async def test_a_listener_gives_the_rows_of_the_partial_then_whole_rows_of_each_change():
    async with paused() as exchange, open_bitmex_websocket(exchange.url) as bws:
        async with aclosing(bws.listen("instrument", "XBTUSD")) as rows:
            (first,) = await take(rows, 1)
            assert first["symbol"] == "XBTUSD" and first["tickSize"] == 0.5
            trade(exchange, "XBTUSD", 700)
            second = (await take_all(rows))[-1]
        assert second["volume"] == first["volume"] + 700
        assert set(second) == set(first)
        assert bws.storage.data["instrument"]["XBTUSD",] == second


async def test_of_a_book_the_partial_is_the_whole_book_and_deletes_give_nothing():
    async with paused() as exchange, open_bitmex_websocket(exchange.url) as bws:
        async with aclosing(bws.listen("orderBookL2", "XBTUSD")) as rows:
            (book,) = await take(rows, 1)
            assert set(book) == {"Buy", "Sell"}
            assert book == bws.storage.orderbook["XBTUSD"] and book is not bws.storage.orderbook["XBTUSD"]
            assert all(row["id"] == level for side in book.values() for level, row in side.items())
            before = {side: dict(levels) for side, levels in book.items()}
            order = exchange.markets["XBTUSD"].submit("Buy", 100, 60000)
            exchange.markets["XBTUSD"].cancel(order.id)
            exchange.markets["XBTUSD"].submit("Buy", 200, 60000)
            inserted, again = await take(rows, 2)
        assert (inserted["size"], again["size"]) == (100, 200) and inserted["id"] == again["id"]
        assert book == before, "what was handed out has changed"
        assert bws.storage.data["orderBookL2"]["XBTUSD"]["Buy"][again["id"]] == again


async def test_a_second_listener_begins_with_the_state_and_both_hear_the_same_from_there():
    async with paused() as exchange, open_bitmex_websocket(exchange.url) as bws:
        first, second = bws.listen("instrument"), bws.listen("instrument", "ETHUSD")
        books, second_books = bws.listen("orderBookL2", "ETHUSD"), bws.listen("orderBookL2", "ETHUSD")
        trades, second_trades = bws.listen("trade", "ETHUSD"), bws.listen("trade", "ETHUSD")
        assert [row["symbol"] for row in await take(first, 2)] == ["XBTUSD", "ETHUSD"]
        await take(books, 1)
        await take(trades, 1)
        trade(exchange, "ETHUSD", 3)
        changed = await take_all(first)
        assert await take(second, 1) == changed[-1:]
        assert len(await take_all(books)) == 1
        assert await take(second_books, 1) == [bws.storage.orderbook["ETHUSD"]]
        assert [row["size"] for row in await take_all(trades)] == [3]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take, second_trades, 1)  # nothing of what was before
            await trio.testing.wait_all_tasks_blocked(0.05)
            trade(exchange, "ETHUSD", 4)
            assert [row["size"] for row in await take_all(trades)] == [4]
        assert await take_all(first) == await take_all(second) != []
        assert await take_all(books) == await take_all(second_books) != []
        for listener in (first, second, books, second_books, trades, second_trades):
            await listener.aclose()
        await topics_become(exchange)


async def test_what_a_listener_changes_in_its_rows_nobody_else_sees():
    async with paused() as exchange, open_bitmex_websocket(exchange.url) as bws:
        for table in ("instrument", "orderBookL2"):
            one, other = bws.listen(table, "XBTUSD"), bws.listen(table, "XBTUSD")
            for round in range(2):  # the partial, then a change
                mine, theirs = await take(one, 1), await take(other, 1)
                assert mine == theirs != []
                kept = repr(theirs), repr(bws.storage.data)
                for row in mine:
                    for level in [level for side in row.values() for level in side.values()] if "Buy" in row else [row]:
                        level.clear()
                    row.clear()
                assert kept == (repr(theirs), repr(bws.storage.data))
                if round == 0:
                    trade(exchange, "XBTUSD", 100)
                    await until(lambda one=one: one._backlog.rows)
                    await trio.sleep(0.05)
            late = bws.listen(table, "XBTUSD")
            (begun,) = await take(late, 1)
            assert begun == (bws.storage.orderbook["XBTUSD"] if table == BOOK else bws.storage.data[table]["XBTUSD",])
            for listener in (one, other, late):
                await listener.aclose()


async def test_many_rows_may_wait_and_the_storage_keeps_as_many_as_it_is_told():
    async with paused() as exchange, open_bitmex_websocket(exchange.url, max_rows=5) as bws:
        listener, other = bws.listen("trade", "ETHUSD"), bws.listen("trade", "ETHUSD")
        await take(listener, 1)
        with trio.move_on_after(0.01):
            await take(other, 1)
        for number in range(1, 201):
            trade(exchange, "ETHUSD", number)
        await until(lambda: len(listener._backlog.rows) == 200)
        assert [row["size"] for row in await take(listener, 200)] == list(range(1, 201))
        assert [row["size"] for row in bws.storage.data["trade"].values()] == list(range(196, 201))
    with pytest.raises(ValueError, match="max_rows"):
        BitMEXWebsocket.connect("testnet", max_rows=0)


async def test_a_listener_with_many_rows_lets_other_tasks_run_in_between():
    async with paused() as exchange, open_bitmex_websocket(exchange.url) as bws:
        listener, turns = bws.listen("trade", "ETHUSD"), 0
        await take(listener, 1)
        for _ in range(20 * TURN):
            trade(exchange, "ETHUSD", 1)
        await until(lambda: len(listener._backlog.rows) == 20 * TURN)

        async def count():
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            for _ in range(20 * TURN):
                await listener.__anext__()
            nursery.cancel_scope.cancel()
        assert turns >= 15


@pytest.mark.trio_websocket
async def test_several_symbols_in_one_listener_and_the_older_spellings():
    async with paused(symbols=("XBTUSD", "ETHUSD", "SOLUSDT")) as exchange:
        async with BitMEXWebsocket.connect(exchange.url, None, None, False) as bws:
            async with aclosing(bws.listen("instrument", "XBTUSD", "SOLUSDT")) as rows:
                assert {row["symbol"] for row in await take(rows, 2)} == {"XBTUSD", "SOLUSDT"}
                await topics_become(exchange, "instrument:XBTUSD", "instrument:SOLUSDT")
                trade(exchange, "ETHUSD", 1)
                trade(exchange, "SOLUSDT", 1000)
                assert {row["symbol"] for row in await take_all(rows)} == {"SOLUSDT"}
            async with async_generator.aclosing(bws.listen("funding", symbol="ETHUSD")) as rows:
                assert {row["symbol"] for row in await take(rows, 1)} == {"ETHUSD"}
            async with aclosing(bws.listen("instrument", None)) as rows:
                assert len(await take(rows, 3)) == 3
            assert bws.ws is bws.connection.websocket and bws.ws.closed is None
            assert bws.storage is bws.tables.storage
            assert bws.storage.keys["instrument"] == ("symbol",)
        assert bws.ws is None


@pytest.mark.parametrize("arguments", [("trade:XBTUSD",), ("",), ("trade", ""), ("trade", "XBT USD"), (None,)])
async def test_what_is_no_table_or_symbol_is_refused_at_once(arguments):
    async with paused() as exchange, open_bitmex_websocket(exchange.url) as bws:
        with pytest.raises(ValueError, match="topic"):
            bws.listen(*arguments)


async def test_symbols_in_a_list_are_refused_in_words():
    with pytest.raises(ValueError, match=r"\['XBTUSD', 'ETHUSD'\] is no symbol; several are given one by one"):
        BitMEXWebsocket("testnet").listen("trade", ["XBTUSD", "ETHUSD"])
    with pytest.raises(ValueError, match="is no symbol"):
        BitMEXWebsocket("testnet").listen("trade", symbol=["XBTUSD"])


async def test_the_class_itself_can_be_entered_once_and_says_so_where_it_was_not():
    async with paused() as exchange:
        bws = BitMEXWebsocket(exchange.url)
        with pytest.raises(RuntimeError, match=r"use: async with BitMEXWebsocket.connect\(...\)"):
            await bws.listen("trade").__anext__()
        assert bws.ws is None and bws.storage.data["trade"] == {}
        async with bws as entered:
            assert entered is bws
            assert len(await take(bws.listen("trade"), 2)) == 2
            with pytest.raises(RuntimeError, match="opened before"):
                await bws.__aenter__()
        with pytest.raises(RuntimeError, match="opened before"):
            await bws.__aenter__()


# --- how a listener ends ---


async def test_the_subscription_is_given_up_with_the_last_listener_and_can_be_had_again():
    async with paused() as exchange, open_bitmex_websocket(exchange.url) as bws:
        assert exchange.topics == {}
        for number in range(3):
            one, other = bws.listen("quote", "XBTUSD"), bws.listen("quote", "XBTUSD")
            assert exchange.topics == {}
            (begun,) = await take(one, 1)
            with trio.move_on_after(0.02):
                await other.__anext__()
            assert other not in (None, one)
            await topics_become(exchange, "quote:XBTUSD")
            await one.aclose()
            await topics_become(exchange)
            assert begun["symbol"] == "XBTUSD", number


async def test_the_first_can_leave_while_the_second_goes_on():
    async with paused() as exchange, open_bitmex_websocket(exchange.url) as bws:
        first, second = bws.listen("instrument", "XBTUSD"), bws.listen("instrument", "XBTUSD")
        assert await take(first, 1) == await take(second, 1)
        await first.aclose()
        trade(exchange, "XBTUSD", 100)
        await take(second, 1)
        assert exchange.topics == {"instrument:XBTUSD": 1}
        with pytest.raises(StopAsyncIteration):
            await first.__anext__()
        await first.aclose()


async def test_a_break_without_closing_gives_the_subscription_back():
    async with paused() as exchange, open_bitmex_websocket(exchange.url) as bws:
        async for _ in bws.listen("instrument"):
            break
        await topics_become(exchange)


async def test_garbage_collected_in_another_thread_gives_the_subscription_back():
    async with paused() as exchange, open_bitmex_websocket(exchange.url) as bws:
        cycle = [bws.listen("instrument")]
        cycle.append(cycle)
        await take(cycle[0], 1)
        gc.disable()
        try:
            del cycle
            thread = threading.Thread(target=gc.collect)
            thread.start()
            thread.join()
        finally:
            gc.enable()
        await topics_become(exchange)


async def test_a_cancelled_listener_is_over_and_gives_the_subscription_back():
    async with paused() as exchange, open_bitmex_websocket(exchange.url) as bws:
        listener, other = bws.listen("trade"), bws.listen("trade")
        await take(listener, 2)
        with trio.move_on_after(0.02):
            await take(other, 1)
        with trio.move_on_after(0.02) as scope:
            await listener.__anext__()
        assert scope.cancelled_caught
        await topics_become(exchange)
        with pytest.raises(StopAsyncIteration):
            await listener.__anext__()


async def test_one_that_is_cancelled_before_its_subscription_was_answered_leaves_nothing_behind():
    async with paused() as exchange, open_bitmex_websocket(exchange.url) as bws:
        for _ in range(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(take, bws.listen("trade"), 1)
                for _ in range(random.randrange(4)):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        assert len(await take(bws.listen("trade"), 1)) == 1
        await topics_become(exchange)


async def test_it_behaves_as_an_async_generator():
    async with paused() as exchange, open_bitmex_websocket(exchange.url) as bws:
        listener = bws.listen("instrument")
        assert isinstance(listener, Listener) and aiter(listener) is listener
        assert (await listener.asend(None))["symbol"] == "XBTUSD"
        with pytest.raises(KeyError, match="mine"):
            await listener.athrow(KeyError("mine"))
        with pytest.raises(StopAsyncIteration):
            await listener.asend(None)
        never_begun = bws.listen("instrument")
        await never_begun.aclose()
        with pytest.raises(StopAsyncIteration):
            await never_begun.__anext__()
        await topics_become(exchange)


async def test_two_tasks_in_one_listener_are_an_error_in_the_second_only():
    async with paused() as exchange, open_bitmex_websocket(exchange.url) as bws:
        listener = bws.listen("trade", "XBTUSD")
        await take(listener, 1)
        found = []

        async def wait():
            found.extend(await take(listener, 1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked(0.01)
            for use in (listener.__anext__, listener.aclose, lambda: listener.athrow(KeyError)):
                with pytest.raises(RuntimeError, match="already running"):
                    await use()
            trade(exchange, "XBTUSD", 300)
        assert [row["size"] for row in found] == [300]
        await listener.aclose()


async def test_a_listener_that_is_too_slow_gets_what_waits_and_an_error_and_disturbs_no_other():
    async with paused() as exchange, open_bitmex_websocket(exchange.url, max_backlog=10) as bws:
        slow, fast = bws.listen("trade", "ETHUSD"), bws.listen("trade", "ETHUSD")
        await take(slow, 1)
        got = []

        async def read_fast():
            async for row in fast:
                got.append(row)
                if len(got) == 30:
                    break

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_fast)
            await trio.testing.wait_all_tasks_blocked(0.01)
            for number in range(1, 31):
                trade(exchange, "ETHUSD", number)
                await until(lambda number=number: len(got) == number)
        assert [row["size"] for row in got] == list(range(1, 31))
        assert await take(slow, 10) == got[:10]
        with pytest.raises(ListenerTooSlow, match=r"trade:ETHUSD was too slow: 10 rows waited"):
            await slow.__anext__()
        with pytest.raises(StopAsyncIteration):
            await slow.__anext__()
        await fast.aclose()
        await topics_become(exchange)
        assert await take(bws.listen("trade", "ETHUSD"), 1) == got[-1:]
    with pytest.raises(ValueError, match="max_backlog"):
        open_bitmex_websocket("testnet", max_backlog=0)


async def test_one_that_comes_while_the_stream_is_behind_begins_with_its_own_subscription():
    def row(number):
        return {"timestamp": f"2026-01-01T00:00:0{number}.000Z", "symbol": "XBTUSD", "size": number}

    exchange = ScriptedExchange()
    exchange.partials["trade"] = partial_of("trade", [row(1)])
    async with exchange.open() as url, open_bitmex_websocket(url) as bws:
        async with bws.pipeline.tap(bws.tables, max_buffer_size=0) as tap:  # the pipeline waits for it
            first, second = bws.listen("trade"), bws.listen("trade")
            assert await take(first, 1) == [row(1)]
            await exchange.send(delta("trade", "insert", row(2)))
            await first.aclose()
            exchange.partials["trade"] = partial_of("trade", [row(9)])
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def read():
                    assert await take(second, 1) == [row(9)]

                await until(lambda: not exchange.held)
                await trio.sleep(0.05)
                found = []
                with trio.fail_after(5):
                    while len(found) < 4:
                        found.append(await tap.receive())
                assert [update.action for update in found] == ["partial", "insert", "stale", "partial"]
                assert [update.rows for update in found if update.rows] == [[row(1)], [row(2)], [row(9)]]


# --- topics that overlap ---


async def test_listeners_to_a_table_and_to_a_symbol_of_it_share_one_subscription():
    async with paused() as exchange, open_bitmex_websocket(exchange.url) as bws:
        wide, narrow = bws.listen("trade"), bws.listen("trade", "ETHUSD")
        await take(wide, 2)
        sizes = []

        async def read():
            async for row in narrow:
                sizes.append((row["symbol"], row["size"]))
                if len(sizes) == 3:
                    break

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked(0.01)
            trade(exchange, "ETHUSD", 1)
            trade(exchange, "XBTUSD", 100)
            assert [row["size"] for row in await take(wide, 2)] == [1, 100]
            await wide.aclose()
            trade(exchange, "ETHUSD", 2)
            await until(lambda: len(sizes) == 2)
            await trio.sleep(0.02)
            assert exchange.topics == {"trade": 1}  # kept: to narrow it could lose rows
            trade(exchange, "ETHUSD", 3)
        assert sizes == [("ETHUSD", 1), ("ETHUSD", 2), ("ETHUSD", 3)]
        await narrow.aclose()
        await topics_become(exchange)
        assert [row["size"] for row in await take(bws.listen("trade", "ETHUSD"), 1)] == [3]


@pytest.mark.parametrize("table", ["trade", "instrument", "orderBookL2"])
async def test_widening_a_subscription_gives_the_narrow_listener_nothing_twice(table):
    async with paused() as exchange, open_bitmex_websocket(exchange.url) as bws:
        narrow, wide = bws.listen(table, "ETHUSD"), bws.listen(table)
        await take(narrow, 1)
        assert exchange.topics == {f"{table}:ETHUSD": 1}
        trade(exchange, "ETHUSD", 5)
        assert await take_all(narrow)
        assert len(await take(wide, 2)) == 2
        assert exchange.topics == {table: 1}
        assert await take_all(narrow) == await take_all(wide) == []
        trade(exchange, "XBTUSD", 100)
        trade(exchange, "ETHUSD", 6)
        of_wide, of_narrow = await take_all(wide), await take_all(narrow)
        assert of_narrow == [row for row in of_wide if row["symbol"] == "ETHUSD"]
        assert len(of_wide) > len(of_narrow) > 0
        await narrow.aclose()
        await wide.aclose()
        await topics_become(exchange)


async def test_rows_between_giving_up_the_symbol_and_the_partial_of_the_table_are_not_lost_where_it_holds_them(caplog):
    exchange = ScriptedExchange()

    def row(number, symbol="ETHUSD"):
        return {"timestamp": f"2026-01-01T00:00:0{number}.000Z", "symbol": symbol, "size": number}

    exchange.partials["trade:ETHUSD"] = partial_of("trade:ETHUSD", [row(1)])
    exchange.partials["trade"] = partial_of("trade", [row(2), row(3), row(9, "XBTUSD")])
    async with exchange.open() as url, open_bitmex_websocket(url) as bws:
        narrow, wide = bws.listen("trade", "ETHUSD"), bws.listen("trade")
        assert await take(narrow, 1) == [row(1)]
        await exchange.send(delta("trade", "insert", row(2)))
        assert await take(narrow, 1) == [row(2)]
        assert await take(wide, 3) == [row(2), row(3), row(9, "XBTUSD")]
        assert await take(narrow, 1) == [row(3)]
        assert "may be missing" not in caplog.text
        # Once more, by a new subscription that shows a gap.
        exchange.partials["trade"] = partial_of("trade", [row(5)])
        bws.connection.resync("trade")
        assert await take(narrow, 1) == await take(wide, 1) == [row(5)]
        assert "trade:ETHUSD was interrupted" in caplog.text
        assert exchange.held == {"trade"}


async def test_a_refused_table_leaves_listeners_to_its_symbols_alone():
    exchange = ScriptedExchange()
    exchange.refuse["instrument"] = (403, "Not for you.")
    first, second = ({"symbol": "XBTUSD", "lastPrice": price} for price in (1, 2))
    exchange.partials["instrument:XBTUSD"] = {**partial_of("instrument:XBTUSD", [first]), "keys": ["symbol"]}
    async with exchange.open() as url, open_bitmex_websocket(url) as bws:
        narrow = bws.listen("instrument", "XBTUSD")
        assert await take(narrow, 1) == [first]
        with pytest.raises(BitMEXWebsocketApiError) as caught:
            await take(bws.listen("instrument"), 1)
        assert (caught.value.status, caught.value.message) == (403, "Not for you.")
        await until(lambda: exchange.held == {"instrument:XBTUSD"})
        await exchange.send(delta("instrument", "update", second))
        assert await take(narrow, 1) == [second]


async def test_a_refused_table_gives_listeners_to_its_symbols_nothing_twice_where_the_server_confirms_no_end():
    class SilentAboutEnds(ScriptedExchange):
        async def answer(self, ws, command):
            if command["op"] == "unsubscribe":
                self.commands.append(("unsubscribe", command["args"]))
            else:
                await super().answer(ws, command)

    exchange = SilentAboutEnds()
    exchange.refuse["instrument"] = (403, "Not for you.")
    first, second = ({"symbol": "XBTUSD", "lastPrice": price} for price in (1, 2))
    exchange.partials["instrument:XBTUSD"] = {**partial_of("instrument:XBTUSD", [first]), "keys": ["symbol"]}
    async with exchange.open() as url, open_bitmex_websocket(url) as bws:
        narrow = bws.listen("instrument", "XBTUSD")
        assert await take(narrow, 1) == [first]
        with pytest.raises(BitMEXWebsocketApiError):
            await take(bws.listen("instrument"), 1)
        await until(lambda: exchange.commands[-1] == ("subscribe", ["instrument:XBTUSD"]))
        await exchange.send(delta("instrument", "update", second))
        assert await take(narrow, 1) == [second]


# --- errors ---


async def test_a_refused_subscription_is_an_error_in_its_listener_alone():
    async with paused() as exchange, open_bitmex_websocket(exchange.url) as bws:
        good = bws.listen("instrument", "XBTUSD")
        await take(good, 1)
        for topic, status in ((("orderBookL3",), 400), (("trade", "FOOBAR"), 400), (("margin",), 401)):
            bad = bws.listen(*topic)
            with pytest.raises(BitMEXWebsocketApiError) as caught:
                await take(bad, 1)
            assert caught.value.status == status
            assert not caught.value.message.startswith("the exchange refused")  # its own words
        both, beside = bws.listen("trade", "FOOBAR", "XBTUSD"), bws.listen("quote", "XBTUSD")
        async with trio.open_nursery() as nursery:  # three topics in one command, of which one is refused
            nursery.start_soon(take, beside, 1)
            with pytest.raises(BitMEXWebsocketApiError, match="Unknown or expired symbol"):
                await take(both, 3)
        await beside.aclose()
        trade(exchange, "XBTUSD", 100)
        assert await take_all(good)
        await topics_become(exchange, "instrument:XBTUSD")


async def test_no_answer_in_time_is_an_error_without_a_status():
    async def silent(request):
        websocket = await request.accept()
        while True:
            await websocket.get_message()

    async with serve_websocket(silent) as url, open_bitmex_websocket(url, subscribe_timeout=0.1) as bws:
        with pytest.raises(BitMEXWebsocketApiError, match=r"no answer about trade from") as caught:
            await take(bws.listen("trade"), 1)
        assert caught.value.status is None


async def test_an_error_that_is_about_no_subscription_is_raised_in_every_listener(caplog):
    exchange = ScriptedExchange()
    async with exchange.open() as url, open_bitmex_websocket(url) as bws:
        await exchange.send({"status": 429, "error": "Rate limit exceeded, retry in 1 seconds."})
        await until(lambda: "Rate limit exceeded" in caplog.text)  # nobody listens
        caught = []

        async def listen(table):
            with pytest.raises(BitMEXWebsocketApiError) as error:
                async for _ in bws.listen(table):
                    pass
            caught.append((error.value.status, error.value.message))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, "trade")
            nursery.start_soon(listen, "quote")
            await until(lambda: exchange.held == {"trade", "quote"})
            await exchange.send({"status": 503, "error": "Overloaded."})
        assert caught == [(503, "Overloaded.")] * 2
        await until(lambda: not exchange.held)


@pytest.mark.parametrize("code", [1000, 1001, 1011])
async def test_a_remote_close_raises_in_every_listener_behind_its_rows_and_not_again(code):
    exchange = ScriptedExchange()
    async with exchange.open() as url, open_bitmex_websocket(url) as bws:
        one, other, late = bws.listen("trade"), bws.listen("trade"), bws.listen("trade")
        rows = [{"timestamp": f"2026-01-01T00:00:0{number}.000Z", "size": number} for number in range(5)]
        exchange.partials["trade"] = partial_of("trade", rows[:1])
        await take(one, 1)
        with trio.move_on_after(0.01):
            await take(late, 1)
        other_rows = []

        async def read():
            with pytest.raises(ConnectionClosed) as caught:
                async for row in other:
                    other_rows.append(row)
            assert (caught.value.code, caught.value.reason) == (code, "that is all")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked(0.01)
            await exchange.send(delta("trade", "insert", *rows[1:]))
            await exchange.clients[0].aclose(code, "that is all")
        assert other_rows == rows[1:]
        assert await take(one, 4) == rows[1:]
        with pytest.raises(ConnectionClosed, match="that is all") as caught:
            await one.__anext__()
        assert caught.value.code == code
        with pytest.raises(ConnectionClosed):  # begun after the end
            await bws.listen("quote").__anext__()
        await trio.sleep(0.05)  # the body goes on


async def test_each_listener_raises_an_error_of_its_own_and_the_context_none():
    exchange, caught = ScriptedExchange(), []
    async with exchange.open() as url, open_bitmex_websocket(url) as bws:

        async def listen():
            with pytest.raises(ConnectionClosed) as error:
                await bws.listen("trade").__anext__()
            caught.append(error.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            nursery.start_soon(listen)
            await exchange_closes(exchange, 1011)
    one, other = caught
    assert one is not other and one.code == other.code == 1011
    assert one.__cause__ is other.__cause__ is not None


@pytest.mark.trio_websocket
@pytest.mark.parametrize("listening", [True, False])
async def test_closing_ws_is_a_normal_close_by_this_side(listening):
    caught = []
    async with paused() as exchange:
        async with open_bitmex_websocket(exchange.url) as bws:

            async def listen():
                with pytest.raises(ConnectionClosed, match=r"this side closed it, by ws.aclose\(\)") as error:
                    async for _ in bws.listen("trade"):
                        pass
                caught.append((error.value.code, error.value.reason))

            async with trio.open_nursery() as nursery:
                if listening:
                    nursery.start_soon(listen)
                    await topics_become(exchange, "trade")
                with trio.fail_after(5):
                    await bws.ws.aclose()
                await until(lambda: bws.ws is None)
                nursery.start_soon(listen)  # begun after the end
            assert caught == [(1000, "")] * (1 + listening)
        await until(lambda: exchange.clients == 0)


@pytest.mark.trio_websocket
async def test_closing_ws_with_the_switch_armed_is_no_error_and_leaves_it_armed():
    exchange = ScriptedExchange()
    async with exchange.open() as url, open_bitmex_websocket(url, KEY, SECRET, True) as bws:
        await until(lambda: exchange.switched)
        await bws.ws.aclose()
        await until(lambda: bws.ws is None)
        await trio.sleep(0.05)
    assert [timeout for _, timeout in exchange.switched] == [60000]


@pytest.mark.trio_websocket
async def test_what_the_server_closed_before_ws_was_closed_is_the_servers_close():
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        with pytest.raises(ConnectionClosed, match="the server closed it") as caught:
            async with open_bitmex_websocket(url) as bws:
                websocket = bws.ws
                await exchange.clients[0].aclose(1011, "out of order")
                await until(lambda: bws.ws is None)
                await websocket.aclose()
    assert caught.value.code == 1011


async def test_what_the_body_lets_through_is_raised_once_and_as_itself():
    exchange = ScriptedExchange()
    async with exchange.open() as url, trio.open_nursery() as nursery:
        nursery.start_soon(partial(exchange_closes, exchange, 1001))
        with pytest.raises(ConnectionClosed) as caught:
            async with open_bitmex_websocket(url) as bws:
                async for _ in bws.listen("trade"):
                    pass
    assert caught.value.code == 1001


async def exchange_closes(exchange, code):
    await until(lambda: exchange.held)
    await exchange.clients[0].aclose(code)


async def test_an_error_that_no_listener_has_raised_is_raised_by_the_context_a_normal_close_is_not():
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        with pytest.raises(ConnectionClosed) as caught:
            async with open_bitmex_websocket(url) as bws:
                await exchange.clients[0].aclose(1011, "out of order")
                await until(lambda: not bws.connection.connected)
                body_went_on = True
        assert caught.value.code == 1011 and body_went_on
        async with open_bitmex_websocket(url) as bws:
            await exchange.clients[-1].aclose(1000)
            await until(lambda: not bws.connection.connected)


async def test_a_listener_outside_of_the_context_is_told_and_never_hangs():
    async with paused() as exchange, trio.open_nursery() as nursery:
        async with open_bitmex_websocket(exchange.url) as bws:
            waiting, has_rows = bws.listen("trade", "XBTUSD"), bws.listen("instrument")
            await take(waiting, 1)
            await take(has_rows, 1)
            caught = []

            async def wait():
                with pytest.raises(ConnectionClosed) as error:
                    await waiting.__anext__()
                caught.append(error.value)

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert (await take(has_rows, 1))[0]["symbol"] == "ETHUSD"  # the second of the partial
        for listener in (has_rows, bws.listen("instrument")):
            with pytest.raises(ConnectionClosed, match="client was closed"):
                await listener.__anext__()
    assert caught[0].code == 1000


async def test_what_the_body_raises_passes_untouched():
    async with paused() as exchange:
        with pytest.raises(KeyError, match="mine"):
            async with open_bitmex_websocket(exchange.url) as bws:
                await take(bws.listen("trade"), 1)
                raise KeyError("mine")
        with trio.move_on_after(0.05) as scope:
            async with open_bitmex_websocket(exchange.url) as bws:
                async for _ in bws.listen("trade"):
                    pass
        assert scope.cancelled_caught
        await until(lambda: exchange.clients == 0)


async def test_a_refused_key_is_caught_as_either_error():
    async with paused() as exchange:
        for kind in (BitMEXWebsocketApiError, AuthenticationError):
            with pytest.raises(kind) as caught:
                async with open_bitmex_websocket(exchange.url, KEY, SECRET):
                    raise AssertionError("not reached")
            assert caught.value.status == 401
            assert "Invalid API Key" in caught.value.message
            assert KEY not in str(caught.value) and SECRET not in str(caught.value)


async def test_no_connection_is_an_error_on_entering():
    with pytest.raises(ConnectionFailed, match="nothing listens"):
        async with open_bitmex_websocket("ws://127.0.0.1:9/realtime"):
            raise AssertionError("not reached")
    with pytest.raises(ValueError, match="network"):
        open_bitmex_websocket("moonnet")
    with pytest.raises(ValueError, match="secret"):
        open_bitmex_websocket("testnet", KEY)


# --- accounts, other servers, lost state ---


async def test_the_tables_of_an_account_are_listened_to_as_any_other():
    async with paused() as exchange:
        account = exchange.open_account()
        async with open_bitmex_websocket(exchange.url, account.api_key, account.api_secret) as bws:
            orders, executions = bws.listen("order"), bws.listen("execution", "XBTUSD")
            margins = bws.listen("margin")
            assert {row["currency"] for row in await take(margins, 2)} == {"XBt", "USDt"}
            got = {}

            async def read(listener, name):
                got[name] = []
                async for row in listener:
                    got[name].append(row)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read, orders, "orders")
                nursery.start_soon(read, executions, "executions")
                await until(lambda: set(exchange.topics) == {"margin", "order", "execution:XBTUSD"})
                await trio.sleep(0.05)
                order = account.submit("XBTUSD", "Buy", 100, 60000)
                account.cancel(order["orderID"])
                await until(lambda: len(got["executions"]) == 2)
                account.submit("XBTUSD", "Buy", 200, 61000)
                await until(lambda: len(got["orders"]) == 3)
                for _ in range(5):
                    account.cancel(account.submit("XBTUSD", "Buy", 100, 60000)["orderID"])
                await until(lambda: len(got["orders"]) == 13)
                late = bws.listen("order", "XBTUSD")
                assert await take(late, 1) == [got["orders"][2]]  # of those that are open
                assert not late._backlog.rows
                await late.aclose()
                nursery.cancel_scope.cancel()
            assert [row["ordStatus"] for row in got["orders"]] == ["New", "Canceled", "New"] + ["New", "Canceled"] * 5
            assert [row["execType"] for row in got["executions"]][:3] == ["New", "Canceled", "New"]
            assert bws.storage.data["order"][order["orderID"],]["ordStatus"] == "Canceled"
            await margins.aclose()
            await topics_become(exchange)


async def test_the_dead_mans_switch_is_armed_and_disarmed_when_the_body_ended_well():
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        async with open_bitmex_websocket(url, KEY, SECRET, True):
            await until(lambda: exchange.switched)
        assert [timeout for _, timeout in exchange.switched] == [60000, 0]
        assert exchange.headers[0][b"api-key"] == KEY.encode()
        exchange.switched.clear()
        with pytest.raises(KeyError):
            async with open_bitmex_websocket(url, KEY, SECRET, dead_mans_switch=True):
                await until(lambda: exchange.switched)
                raise KeyError
        assert [timeout for _, timeout in exchange.switched] == [60000]


async def test_with_the_switch_an_end_while_nobody_listens_is_raised_at_once():
    exchange = ScriptedExchange()
    async with exchange.open() as url:
        with pytest.raises(ConnectionClosed):
            async with open_bitmex_websocket(url, KEY, SECRET, dead_mans_switch=True):
                await until(lambda: exchange.switched)
                await exchange.clients[0].aclose(1000)
                await trio.sleep(5)
                raise AssertionError("the body went on")


async def test_lost_state_is_asked_for_anew_and_what_is_new_in_it_is_given():
    exchange = ScriptedExchange()
    rows = [{"symbol": symbol, "lastPrice": price} for symbol, price in (("A", 1), ("B", 1), ("B", 2))]
    exchange.partials["instrument"] = {**partial_of("instrument", rows[:2]), "keys": ["symbol"]}
    async with exchange.open() as url, open_bitmex_websocket(url) as bws:
        listener = bws.listen("instrument")
        assert await take(listener, 2) == rows[:2]
        exchange.partials["instrument"]["data"] = [rows[0], rows[2]]
        await exchange.send(delta("instrument", "update", {"symbol": "C", "lastPrice": 3}))  # there is no C
        assert await take(listener, 1) == [rows[2]]
        assert bws.tables.stale == {}
        assert [op for op, _ in exchange.commands] == ["subscribe", "unsubscribe", "subscribe"]
        await listener.aclose()
        await until(lambda: not exchange.held)


async def test_rows_that_no_exchange_should_send_end_nothing():
    exchange = ScriptedExchange()
    exchange.partials["trade:A"] = partial_of("trade:A", [{"symbol": ["A"]}, {"symbol": "A", "size": 1}])
    async with exchange.open() as url, open_bitmex_websocket(url) as bws:
        one, other = bws.listen("trade", "A"), bws.listen("trade", "B")
        assert await take(one, 1) == [{"symbol": "A", "size": 1}]
        with trio.move_on_after(0.05):
            await take(other, 1)
        await exchange.send(delta("trade", "insert", {"symbol": {}}, {"symbol": "A", "size": 2}, {}))
        assert await take(one, 1) == [{"symbol": "A", "size": 2}]


async def test_a_server_that_acknowledges_nothing_can_be_listened_to_until_its_normal_close():
    rows = [{"timestamp": f"2026-01-01T00:00:0{n}.000Z", "symbol": "XBTUSD", "size": n} for n in range(4)]
    messages = [json.dumps(partial_of("trade", rows[:1]))]
    messages += [json.dumps(delta("trade", "insert", row)) for row in rows[1:]]
    async with serve_websocket(partial(tardis_replay, messages)) as url, open_bitmex_websocket(url) as bws:
        got = []
        with pytest.raises(ConnectionClosed) as caught:
            async for row in bws.listen("trade"):
                got.append(row)
        assert got == rows
        assert (caught.value.code, caught.value.reason) == (1000, "WS replay finished")


# --- two hundred listeners ---


class Reference:
    """All that the exchange sends of some tables, recorded on its side: whole rows, in order.

    ``rows``: for each table, (action, whole row); ``start``: the rows that were there before.
    """

    def __init__(self, exchange, tables):
        self.exchange = exchange
        self.tables = tables
        self.start, self.rows, self._keys, self._state, self._places = {}, {}, {}, {}, {}
        for table in tables:
            begin = json.loads(exchange.tables.partial(table, None))
            self._keys[table] = begin["keys"]
            self.start[table] = begin["data"]
            self.rows[table] = []
            self._state[table] = {self._key(table, row): row for row in begin["data"]}
            exchange.feed.add(self, table, None)

    def _key(self, table, row):
        return tuple(row[column] for column in self._keys[table])

    def send(self, text):
        message = json.loads(text)
        table, action = message["table"], message["action"]
        state = self._state[table]
        for row in message["data"]:
            if self._keys[table]:
                key = self._key(table, row)
                row = state.pop(key) if action == "delete" else {**state.get(key, {}), **row}
                if action != "delete":
                    state[key] = row
            self.rows[table].append((action, row))

    def topics(self):
        """What clients are subscribed to."""
        counts = {topic: count - (topic in self.tables) for topic, count in self.exchange.topics.items()}
        return {topic: count for topic, count in counts.items() if count}

    def check(self, table, symbols, got, interrupted=False):
        """``got`` is, for each symbol, the state at some time, and every change from there, in order.

        ``interrupted``: rows may be missing, and a book may come again. Gives how many are missing.
        """
        missing = 0
        for symbol in symbols:
            of_symbol = [row for row in got if symbol_of(row) == symbol]
            changes = [(action, row) for action, row in self.rows[table] if row["symbol"] == symbol]
            if table == "orderBookL2":
                self._check_book(symbol, of_symbol, changes, interrupted)
                continue
            told = [row for row in self.start[table] if row["symbol"] == symbol]
            told += [row for action, row in changes if action != "delete"]
            if not is_run(of_symbol, told):
                assert interrupted, (table, symbol, len(of_symbol))
                missing += missing_of(of_symbol, told)
        if table != "orderBookL2" and not interrupted:  # and over all symbols, behind the states
            if table not in self._places:
                self._places[table] = {canonical(row): place for place, (_, row) in enumerate(self.rows[table])}
            states = [id(row) for row in first_of_symbols(got)]
            changes = [self._places[table][canonical(row)] for row in got if id(row) not in states]
            assert changes == sorted(changes)
        return missing

    def _check_book(self, symbol, got, changes, interrupted):
        parts = []  # books, and the rows behind each
        for row in got:
            if "symbol" in row:
                parts[-1][1].append(row)
            else:
                parts.append((row, []))
        assert len(parts) <= 1 or interrupted
        levels = {"Buy": {}, "Sell": {}}
        for row in self.start["orderBookL2"]:
            if row["symbol"] == symbol:
                levels[row["side"]][row["id"]] = row
        told = [row for action, row in changes if action != "delete"]
        place = 0  # in `told`
        for action, row in [*changes, ("end", None)]:
            while parts:
                book, rows = parts[0]
                if told[place : place + len(rows)] != rows or untimed(levels) != untimed(book):
                    break
                del parts[0]
            if action == "delete":
                del levels[row["side"]][row["id"]]
            elif action != "end":
                levels[row["side"]][row["id"]] = row
                place += 1
        assert not parts, f"the book of {symbol}, and {len(parts[0][1])} rows after it, were never so"


def symbol_of(row):
    if "symbol" in row:
        return row["symbol"]
    return next(level["symbol"] for levels in row.values() for level in levels.values())


def untimed(book):
    """A book without the timestamps of its rows: those of a partial are newer than those of the deltas before it."""
    return {
        side: {level: row["price"] * row["size"] for level, row in levels.items()} for side, levels in book.items()
    }


def first_of_symbols(rows):
    return list({row["symbol"]: row for row in reversed(rows)}.values())


def canonical(row):
    return json.dumps(row, sort_keys=True)


def is_run(rows, all_rows):
    """Whether ``rows`` stand in ``all_rows`` one behind the other."""
    starts = range(len(all_rows) - len(rows) + 1)
    return not rows or any(all_rows[at] == rows[0] and all_rows[at : at + len(rows)] == rows for at in starts)


def missing_of(rows, all_rows):
    """How many of ``all_rows`` are left out in ``rows``, which stand there in order, between the first and the last."""
    place = first = all_rows.index(rows[0])
    for row in rows[1:]:
        place = all_rows.index(row, place + 1)  # ValueError: not in order, doubled, or never sent
    return place - first + 1 - len(rows)


WANTS = [
    ("trade", "XBTUSD"), ("trade", "ETHUSD"), ("trade", "SOLUSDT"), ("trade", "XBTUSD", "ETHUSD"),
    ("instrument", "XBTUSD"), ("instrument", "ETHUSD", "SOLUSDT"), ("instrument", "SOLUSDT"),
    ("quote",), ("orderBookL2", "XBTUSD"), ("orderBookL2", "ETHUSD"),
]  # fmt: skip
OVERLAPPING = [
    (table, *symbol)
    for table in ("trade", "instrument", "quote", "orderBookL2")
    for symbol in ((), ("XBTUSD",), ("ETHUSD",), ("SOLUSDT",), ("XBTUSD", "SOLUSDT"), ("ETHUSD", "SOLUSDT"))
]
"""Where one is widened, what comes between the two subscriptions is not seen."""


@pytest.mark.trio_websocket
@pytest.mark.parametrize(
    "seed, wants, lasting, closes", [(1, WANTS, 2, False), (2, WANTS, 2, True), (4, OVERLAPPING, 0.4, False)]
)
async def test_two_hundred_listeners_come_and_go_at_random(seed, wants, lasting, closes):
    draw = random.Random(seed)
    symbols = ("XBTUSD", "ETHUSD", "SOLUSDT")
    client, listening = None, {}  # the client, and its topics: by how many listeners
    found = []  # for each listener that has left: what it listened to, how it left, its rows

    async def listen():
        await trio.sleep(draw.uniform(0, 3))
        while client is None:
            await trio.sleep(0.01)
        bws, mine = client, listening
        want, how = draw.choice(wants), draw.choice(["break", "aclose", "cancel", "slow"])
        rows, seconds, pause = draw.randrange(1, 60), draw.uniform(0, lasting), draw.uniform(0, 0.05)
        topics, got = [":".join(topic) for topic in product(want[:1], want[1:])] or list(want), []
        for topic in topics:
            mine[topic] = mine.get(topic, 0) + 1
        try:
            with trio.move_on_after(lasting if how == "break" else seconds):
                if how == "break":
                    async for row in bws.listen(*want):
                        got.append(row)
                        if len(got) == rows:
                            break
                elif how == "cancel":
                    listener = bws.listen(*want)
                    async for row in listener:
                        got.append(row)
                else:
                    async with aclosing(bws.listen(*want)) as listener:
                        async for row in listener:
                            got.append(row)
                            if how == "slow":
                                await trio.sleep(pause)
                            if len(got) == rows:
                                break
        except ConnectionClosed as closed:
            assert closes
            how = closed.code
        for topic in topics:
            mine[topic] -= 1
        found.append((want, how, got))

    async with open_exchange(symbols=symbols, rate=300, levels=40, seed=seed) as exchange:
        reference = Reference(exchange, ["trade", "instrument", "quote", "orderBookL2"])
        agreed, widened, held = 0, 0, set()

        async def watch():
            """Again and again, the exchange sees what is listened to, and no more."""
            nonlocal agreed, widened, held
            while True:
                with trio.fail_after(5):
                    while client is None or not serves(set(reference.topics()), wanted(listening)):
                        await trio.sleep(0.001)
                        assert set(reference.topics().values()) <= {1}
                now = set(reference.topics())
                widened += sum(any(topic.startswith(f"{table}:") for topic in held) for table in now - held)
                agreed, held = agreed + 1, now
                await trio.sleep(0.005)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            async with trio.open_nursery() as listeners:
                for _ in range(200):
                    listeners.start_soon(listen)
                for life in range(5 if closes else 1):
                    try:
                        async with open_bitmex_websocket(exchange.url) as bws:
                            client, listening = bws, {}
                            if life < 4 and closes:
                                await trio.sleep(draw.uniform(0.3, 0.9))
                                client = None
                                await (bws.ws.aclose() if life % 2 else exchange.say_goodbye())
                                await until(lambda bws=bws: bws.ws is None and not exchange.clients)
                            else:
                                await until(lambda: len(found) == 200)
                                await until(lambda bws=bws: reference.topics() == bws._tables.subscriptions == {})
                    except ConnectionClosed as closed:  # left before a listener has raised it
                        assert (closes, closed.code, life % 2) == (True, 1001, 0)
                    assert not any(bws._tables.backlogs.values())
            nursery.cancel_scope.cancel()
        assert agreed > 20
        missing = 0
        for want, _, got in found:
            interrupted = wants is OVERLAPPING and len(want) > 1
            missing += reference.check(want[0], want[1:] or symbols, got, interrupted)
    total = sum(len(got) for _, _, got in found)
    ways = {how for _, how, _ in found}
    assert ways - {1000, 1001} == {"break", "aclose", "cancel", "slow"}
    assert bool(ways & {1000, 1001}) is closes  # which of the two is the machine's to say
    assert total > 1000 and missing <= total // 20
    assert (widened > 0) == (wants is OVERLAPPING)


def wanted(listening):
    return {topic for topic, count in listening.items() if count}


def serves(held, wanted):
    """Whether what is subscribed is what is listened to: each topic by itself, or by that of its whole table, which
    stays for the sake of those to its symbols.
    """
    return (
        all((topic in held) != (":" in topic and topic.partition(":")[0] in held) for topic in wanted)
        and all(topic in wanted or any(other.startswith(f"{topic}:") for other in wanted) for topic in held)
    )  # fmt: skip


# --- programs written for the predecessor ---

OPENED_BY_FUNCTION = """
import trio
from async_generator import aclosing

from bitmex_streams import open_bitmex_websocket

async def main():
    async with open_bitmex_websocket('{network}') as bws:
        async with aclosing(bws.listen('instrument')) as agen:
            async for msg in agen:
                print(f'Received message, symbol: \\'{{msg["symbol"]}}\\', timestamp: \\'{{msg["timestamp"]}}\\'')

trio.run(main)
"""
OPENED_BY_CLASS = """
import trio

from bitmex_streams import BitMEXWebsocket

async def main():
    async with BitMEXWebsocket.connect('{network}') as bws:
        async for msg in bws.listen('instrument'):
            print(f'Received message, symbol: \\'{{msg["symbol"]}}\\', timestamp: \\'{{msg["timestamp"]}}\\'')

trio.run(main)
"""
OF_AN_ACCOUNT = """
import trio
from async_generator import aclosing

from bitmex_streams import BitMEXWebsocketApiError, open_bitmex_websocket

async def main():
    async with open_bitmex_websocket('{network}', None, None, dead_mans_switch=False) as bws:
        try:
            async with aclosing(bws.listen('order')) as agen:
                async for msg in agen:
                    print(msg)
        except BitMEXWebsocketApiError as error:
            print(f'Refused: {{error.status}}')
        assert bws.ws.closed is None
        async with aclosing(bws.listen('orderBookL2', 'XBTUSD')) as agen:
            async for msg in agen:
                bids = bws.storage.data['orderBookL2']['XBTUSD']['Buy']
                best = max(row['price'] for row in bids.values())
                print(f'Best bid: {{best}}')

trio.run(main)
"""


@pytest.mark.parametrize(
    "program, first, next",
    [
        (OPENED_BY_FUNCTION, "Received message, symbol: 'ETHUSD', timestamp: '2", "Received message, symbol: '"),
        (OPENED_BY_CLASS, "Received message, symbol: 'ETHUSD', timestamp: '2", "Received message, symbol: '"),
        (OF_AN_ACCOUNT, "Refused: 401", "Best bid: "),
    ],
)
async def test_a_program_for_the_predecessor_runs(program, first, next):
    async with open_exchange(symbols=("ETHUSD", "XBTUSD"), rate=50) as exchange:
        lines = await trio.to_thread.run_sync(lines_of, program.format(network=exchange.url), 20)
    assert lines[0].startswith(first)
    assert all(line.startswith(next) for line in lines[1:])
    assert len(lines) == 20


def lines_of(program, number):
    """The first lines that a program prints; then it is killed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    ) as process:  # fmt: skip
        timer = threading.Timer(20, process.kill)
        timer.start()
        try:
            lines = [line.strip() for _, line in zip(range(number), process.stdout, strict=False)]
        finally:
            timer.cancel()
            process.kill()
        errors = process.stderr.read()
    assert not errors, errors
    return lines
