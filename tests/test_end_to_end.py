"""Whole pipelines: every way to the same books, and nothing left over however one ends."""

import gzip
import json
import threading
from contextlib import suppress
from functools import partial

import pytest
import slurry
import trio
from slurry.sections import Chain, Filter, Map, Merge
from trio_websocket import ConnectionClosed
from wsproto.utilities import LocalProtocolError

from bitmex_streams import (
    Connection,
    Decoder,
    OrderBookMerger,
    Pipeline,
    RawMessage,
    Replay,
    SymbolFilter,
    TableApplier,
    TableMessage,
    Throttle,
)
from bitmex_streams.exchange import open_exchange
from bitmex_streams.timestamps import to_iso
from bitmex_streams.transport import TRANSPORTS
from tests.servers import ScriptedExchange, open_sockets, serve_websocket, tardis_replay
from tests.support import ProcessPass, RaiseAt, ThreadPass, TrioPass
from tests.test_captures import CAPTURES, books_of, count

needs_captures = pytest.mark.skipif(
    not CAPTURES.is_dir(), reason="no captures: BITMEX_STREAMS_DATA says where they are"
)
TOPICS = ["orderBookL2", "quote", "trade"]
over_each_transport = pytest.mark.parametrize("transport", TRANSPORTS)


# --- the known books, by every way ---


async def run_capture(source, library=Pipeline):
    """The messages and rows per table and action, and the final books."""
    tables, books = TableApplier(), OrderBookMerger()
    counts = {}
    final = {}
    sections = Decoder(on_error="raise"), tables, Map(partial(counted, counts)), books
    async with library.create(source, *sections) as pipeline:
        async with pipeline.tap() as updates:
            async for update in updates:
                if not update.stale:  # the server's close makes them so in the end
                    final[update.symbol] = update
    assert {symbol: (update.best_bid, update.best_ask) for symbol, update in final.items()} == {
        symbol: (book.best_bid, book.best_ask) for symbol, book in books.books.items()
    }
    return counts, books_of(books)


def counted(counts, update):
    if update.action != "stale":
        count(counts, update)
    return update


@pytest.fixture
def expected():
    return json.loads((CAPTURES / "bitmex-2021-07-22.expected.json").read_text())


@pytest.fixture
def messages():
    with gzip.open(CAPTURES / "bitmex-2021-07-22.ndjson.gz", "rt", encoding="utf-8") as lines:
        return [line.strip().partition(" ")[2] for line in lines if line.strip()]


@needs_captures
@pytest.mark.parametrize("name", ["bitmex-2021-07-22.ws.gz", "bitmex-2021-07-22.ndjson.gz"])
@pytest.mark.parametrize("library", [Pipeline, slurry.Pipeline])
async def test_replaying_a_recording_gives_the_known_books_and_counts(name, library, expected):
    with trio.fail_after(60):
        counts, books = await run_capture(Replay(CAPTURES / name), library)
    assert books == expected["books"]
    assert counts == expected["messages"]


@needs_captures
@over_each_transport
async def test_serving_it_over_a_websocket_gives_the_known_books_and_counts(transport, expected, messages):
    async def serve(request):
        websocket = await request.accept()
        await websocket.get_message()  # what is subscribed
        for message in messages:
            await websocket.send_message(message)
        await websocket.aclose(1000)

    with trio.fail_after(60):
        async with serve_websocket(serve) as url:
            counts, books = await run_capture(Connection(url, subscribe=TOPICS, transport=transport, reconnect=None))
    assert books == expected["books"]
    assert counts == expected["messages"]


@needs_captures
@over_each_transport
async def test_a_server_like_tardis_machines_gives_the_known_books_and_counts(transport, expected, messages):
    with trio.fail_after(60):
        async with serve_websocket(partial(tardis_replay, messages)) as url:
            counts, books = await run_capture(Connection(url, subscribe=TOPICS, transport=transport, reconnect=None))
    assert books == expected["books"]
    assert counts == expected["messages"]


@over_each_transport
async def test_a_recording_of_a_live_run_replays_to_the_same_updates(transport, tmp_path):
    """All stages, live and recorded: the same items, but for where they come from."""
    raw, live = [], []
    with trio.fail_after(30):
        async with open_exchange(rate=2000, seed=5) as exchange:
            connection = Connection(exchange.url, subscribe=["orderBookL2", "trade:XBTUSD"], transport=transport)
            sections = Decoder(), TableApplier(), OrderBookMerger(), SymbolFilter("XBTUSD", "SOLUSDT"), Throttle(0.05)
            async with Pipeline.create(connection, *sections) as pipeline, trio.open_nursery() as nursery:

                async def keep(tap):
                    async for item in tap:
                        raw.append(item)

                nursery.start_soon(keep, pipeline.tap(connection, start=False))
                async with pipeline.tap() as updates:
                    while len(live) < 60:
                        live.append(await updates.receive())
                nursery.cancel_scope.cancel()
    path = tmp_path / "run.ndjson.gz"
    with gzip.open(path, "wt") as file:
        for item in raw:
            if isinstance(item, RawMessage):
                second = to_iso(item.received)[:19]
                file.write(f"{second}.{item.received % 10**9 // 100:07d}Z {item.data}\n")
    sections = Decoder(), TableApplier(), OrderBookMerger(), SymbolFilter("XBTUSD", "SOLUSDT"), Throttle(0.05)
    async with Pipeline.create(Replay(path), *sections) as pipeline, pipeline.tap() as updates:
        replayed = [update async for update in updates][: len(live)]

    def comparable(updates):
        # An archive has 100 ns; the live run, nanoseconds.
        return [(u.symbol, u.best_bid, u.best_ask, u.changes, u.stale, u.timestamp) for u in updates]

    # The end of the live run cut its last intervals short; what came well before is the same.
    assert comparable(replayed[:40]) == comparable(live[:40])


@over_each_transport
async def test_our_books_are_the_exchanges_at_a_quiet_moment(transport):
    with trio.fail_after(30):
        async with open_exchange(rate=3000) as exchange:
            books = OrderBookMerger()
            connection = Connection(exchange.url, subscribe=["orderBookL2"], transport=transport)
            async with Pipeline.create(connection, Decoder(), TableApplier(), books) as pipeline:
                pipeline.start()
                for symbol in exchange.markets:
                    await books.ready(symbol)
                await trio.sleep(0.5)
                exchange.speed = 0
                quiet = {symbol: tuple(map(list, market.book)) for symbol, market in exchange.markets.items()}

                def ours():
                    return {symbol: (list(book.bids), list(book.asks)) for symbol, book in books.books.items()}

                while ours() != quiet:  # noqa: ASYNC110  until the last message has come; never, and the test fails, if one is wrong
                    await trio.sleep(0.02)


SHAPES = {
    "a filter takes the marks out": lambda c, t, b: [c, Decoder(), Filter(lambda i: isinstance(i, TableMessage)), t, b],
    "a filter, without tables": lambda c, t, b: [c, Decoder(), Filter(lambda i: isinstance(i, TableMessage)), b],
    "inside Merge up to the decoder": lambda c, t, b: [Merge((c, Decoder())), t, b],
    "inside Merge up to the tables": lambda c, t, b: [Merge((c, Decoder(), t)), b],
    "inside Chain up to the tables": lambda c, t, b: [Chain((c, Decoder(), t)), b],
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_book_is_fresh_live_and_at_the_tap_whatever_stands_before_the_merger(shape):
    tables, books = TableApplier(), OrderBookMerger()
    with trio.fail_after(20):
        async with open_exchange(rate=500) as exchange:
            connection = Connection(exchange.url, subscribe=["orderBookL2:XBTUSD"])
            async with Pipeline.create(*SHAPES[shape](connection, tables, books)) as pipeline:
                async with pipeline.tap() as updates:
                    for _ in range(5):
                        assert not (await updates.receive()).stale
                    await books.ready("XBTUSD")
                    assert not books.books["XBTUSD"].stale
                    assert not tables.stale
                    assert books.resync is not None or "filter" in shape


async def test_behind_a_slow_extension_a_book_is_stale_at_once_when_the_connection_ends():
    class Slow(TrioPass):
        async def refine(self, input, output):
            await trio.sleep(0.2)
            await super().refine(input, output)

    exchange = ScriptedExchange()
    books = OrderBookMerger()
    exchange.partials["orderBookL2:XBTUSD"] = {
        "table": "orderBookL2",
        "action": "partial",
        "keys": ["symbol", "id", "side"],
        "types": {},
        "filter": {"symbol": "XBTUSD"},
        "data": [{"symbol": "XBTUSD", "id": 1, "side": "Buy", "size": 1, "price": 1.0}],
    }
    with trio.fail_after(20):
        async with exchange.open() as url:
            connection = Connection(url, subscribe=["orderBookL2:XBTUSD"], reconnect=None)
            async with Pipeline.create(connection, Decoder(), TableApplier()) as pipeline:
                pipeline.nursery.start_soon(close_soon, exchange, 0.1)
                seen = []
                async with pipeline.extend(Slow(), books).tap() as updates:
                    async for update in updates:
                        seen.append((update.stale, books.books["XBTUSD"].stale))
    assert seen == [(False, True), (True, True)]


# --- every end ---


class Ends(Exception):
    pass


async def sleep(tap):
    await trio.sleep(0.2)


async def read(tap):
    async for _ in tap:
        pass


async def read_a_few(tap):
    for _ in range(5):
        await tap.receive()


async def fail(tap):
    await tap.receive()
    raise Ends


ENDS = {
    "the body ends": (sleep, None),
    "the body ends with a tap just read": (read_a_few, None),
    "the body fails": (fail, Ends),
    "a section fails": (read, ZeroDivisionError),
    "the context is cancelled": (read, None),
    "the server closes": (read, None),
}


@pytest.mark.parametrize("way", ENDS)
@pytest.mark.parametrize("foreign", [None, TrioPass, ThreadPass, ProcessPass])
@over_each_transport
async def test_nothing_is_left_however_a_pipeline_ends(way, foreign, transport):
    body, error = ENDS[way]
    exchange = ScriptedExchange()
    row = {"symbol": "XBTUSD", "id": 1, "side": "Buy", "size": 1, "price": 1.0}

    async def chatter():
        while True:
            with suppress(ConnectionClosed, LocalProtocolError):  # a client that is just leaving
                await exchange.send({"table": "orderBookL2", "action": "update", "data": [row]})
            await trio.sleep(0.001)

    class FailLate(RaiseAt):
        """Fails at the fiftieth item."""

        def process(self, item):
            self.seen = getattr(self, "seen", 0) + 1
            return super().process(self.seen) and (item,)

    sockets = open_sockets()
    with trio.fail_after(20):
        async with exchange.open() as url, trio.open_nursery() as nursery:
            nursery.start_soon(chatter)
            listening = open_sockets()
            tasks = trio.lowlevel.current_statistics().tasks_living
            connection = Connection(url, subscribe=["orderBookL2:XBTUSD"], transport=transport, reconnect=None)
            first = Merge(connection) if way == "the body ends with a tap just read" else connection
            sections = [Decoder(), *([foreign()] if foreign else [])]
            if way == "a section fails":
                sections.append(FailLate(50, ZeroDivisionError()))
            if way == "the server closes":
                nursery.start_soon(close_soon, exchange)
            try:
                with trio.CancelScope(
                    deadline=trio.current_time() + (0.3 if way == "the context is cancelled" else 30)
                ) as scope:
                    async with Pipeline.create(first, *sections) as pipeline, pipeline.tap() as tap:
                        await body(tap)
            except (Ends, ZeroDivisionError) as raised:
                assert type(raised) is error
            else:
                assert error is None
            assert scope.cancelled_caught == (way == "the context is cancelled")
            while open_sockets() > listening or trio.lowlevel.current_statistics().tasks_living > tasks:  # noqa: ASYNC110
                await trio.sleep(0.005)  # the server's end of it, which is in this process too
            nursery.cancel_scope.cancel()
    assert open_sockets() == sockets
    assert all(thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread())


async def close_soon(exchange, delay=0.2):
    await trio.sleep(delay)
    for client in list(exchange.clients):
        await client.aclose(1000)
