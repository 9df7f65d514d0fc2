"""A day of trading on the embedded exchange, over its websocket: what the account's sections know in the end is what
the exchange has in its own books, to the satoshi.
"""

from datetime import UTC, datetime
from functools import partial
from random import Random

import pytest
import trio

from bitmex_streams import (
    Connection,
    Decoder,
    Fill,
    Fills,
    FillsMissing,
    Margin,
    MarginState,
    Orders,
    OrderState,
    Pipeline,
    Position,
    Positions,
    TableApplier,
    TableUpdate,
    Tickers,
)
from bitmex_streams.exchange import OrderRefused, open_exchange

START = datetime(2024, 3, 1, 3, 20, tzinfo=UTC)  # fundings are at 4, 12 and 20 o'clock
SYMBOLS = ("XBTUSD", "ETHUSD", "XBTUSDT")  # inverse, quanto, linear
PRIVATE = ["order", "execution", "position", "margin"]


async def eventually(condition):
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - what is waited for has several parts
            await trio.sleep(0.01)


def trade_a_little(account, exchange, random):
    """Something that a trader may do; what the exchange refuses is refused."""
    symbol = random.choice(SYMBOLS)
    market = exchange.markets[symbol]
    instrument, bids, asks = market.instrument, market.book.bids, market.book.asks
    side = random.choice(("Buy", "Sell"))
    size = instrument.lot_size * random.randint(1, 40)
    near = random.choice(bids[:8] if side == "Buy" else asks[:8]).price
    mine = [row["orderID"] for row in account.orders.values() if row["symbol"] == symbol]
    try:
        match random.choice(("limit", "limit", "limit", "cross", "market", "post", "immediate", "amend", "cancel")):
            case "limit":
                account.submit(symbol, side, size, near, client_order_id=f"id-{random.getrandbits(64):x}")
            case "cross":
                account.submit(symbol, side, size, (asks if side == "Buy" else bids)[3].price)
            case "market":
                account.submit(symbol, side, size)
            case "post":
                account.submit(symbol, side, size, near, post_only=True)
            case "immediate":
                account.submit(symbol, side, size, near, time_in_force="ImmediateOrCancel")
            case "amend" if mine:
                order_id = random.choice(mine)
                if random.random() < 0.5:
                    account.amend(order_id, size=size)
                else:
                    own = account.orders[order_id]["side"]
                    account.amend(order_id, price=random.choice(bids if own == "Buy" else asks).price)
            case "cancel" if mine:
                account.cancel(random.choice(mine))
    except OrderRefused:
        return False
    return True


async def test_an_hour_of_trading_ends_with_what_the_exchange_has_in_its_books():
    random = Random(1)
    async with open_exchange(symbols=SYMBOLS, seed=1, start_time=START, speed=0, rate=0.5, levels=40) as exchange:
        account = exchange.open_account({"XBt": 300_000_000, "USDt": 500_000_000_000})
        stranger = exchange.open_account()
        signed_in = {"api_key": account.api_key, "api_secret": account.api_secret}
        orders, fills, positions, margin, tickers = Orders(), Fills(), Positions(), Margin(), Tickers()
        connection = Connection(exchange.url, subscribe=[*PRIVATE, "instrument"], **signed_in)
        inventories = Positions()  # of the executions alone
        second = Connection(exchange.url, subscribe=["execution", "instrument"], **signed_in)
        items = []
        async with (
            Pipeline.create(
                connection, Decoder(), TableApplier(), tickers, positions, margin, orders, fills
            ) as pipeline,
            Pipeline.create(second, Decoder(), TableApplier(), inventories) as other,
            trio.open_nursery() as nursery,
        ):

            async def read(tap):
                async for item in tap:
                    items.append(item)

            nursery.start_soon(read, pipeline.tap())
            other.start()
            await eventually(lambda: not any(part.stale for part in (orders, fills, positions, margin, inventories)))
            await eventually(lambda: len(tickers) == len(SYMBOLS))

            done = 0
            for step in range(400):
                done += trade_a_little(account, exchange, random)
                if step % 7 == 0:
                    trade_a_little(stranger, exchange, random)
                if step == 200:
                    account.deposit("XBt", 12_345_678)
                    account.withdraw("USDt", 1_234_567)
                exchange.advance(12)  # 400 times: an hour and a bit, and a funding
                await exchange.settled()
            account.cancel_all(symbol="ETHUSD")
            exchange.advance(5)
            assert done > 230
            kinds = {row["execType"] for row in account.executions}
            assert {"New", "Trade", "Canceled", "Replaced", "Funding"} <= kinds
            assert len({row["timestamp"] for row in account.executions if row["execType"] == "Funding"}) == 1
            assert {row["ordStatus"] for row in account.executions} >= {"PartiallyFilled", "Filled", "Canceled"}

            # the last thing that was published has come
            trades = [row for row in account.executions if row["execType"] == "Trade"]
            last_of_all = account.submit("XBTUSD", "Buy", 100, 1000, client_order_id="the last")["orderID"]
            await eventually(lambda: last_of_all in orders.open)
            margins = account.margins
            await eventually(
                lambda: all(margin[currency].timestamp == row["timestamp"] for currency, row in margins.items())
            )
            await eventually(
                lambda: inventories.keys() >= account.positions.keys()
                and all(inventories[symbol].size == row["currentQty"] for symbol, row in account.positions.items())
            )
            nursery.cancel_scope.cancel()

        # orders
        rows = account.orders
        assert orders.open.keys() == rows.keys()
        for order_id, row in rows.items():
            state = orders.open[order_id]
            assert (state.status, state.size, state.leaves, state.filled, state.price, state.average_price) == (
                row["ordStatus"], row["orderQty"], row["leavesQty"], row["cumQty"], row["price"], row["avgPx"],
            )  # fmt: skip
            assert state.client_order_id == row["clOrdID"]
        assert orders.by_client_id["the last"].order_id == last_of_all
        last = {item.order_id: item for item in items if type(item) is OrderState}
        submitted = {row["orderID"]: row for row in account.executions if row["execType"] != "Funding"}
        assert last.keys() == submitted.keys(), "every order was seen"
        for order_id, row in submitted.items():  # the last execution of each
            assert (last[order_id].status, last[order_id].filled) == (row["ordStatus"], row["cumQty"])
            assert last[order_id].open == (order_id in rows)

        # fills
        seen = [item for item in items if type(item) is Fill]
        assert [fill.exec_id for fill in seen] == [row["execID"] for row in trades]
        assert [(fill.symbol, fill.side, fill.size, fill.price, fill.fee, fill.account) for fill in seen] == [
            (row["symbol"], row["side"], row["lastQty"], row["lastPx"], row["execComm"], account.id) for row in trades
        ]
        assert [fill.is_maker for fill in seen] == [row["lastLiquidityInd"] == "AddedLiquidity" for row in trades]
        assert {fill.is_maker for fill in seen} == {True, False}
        assert not any(fill.late for fill in seen) and not any(type(item) is FillsMissing for item in items)

        # positions: as the exchange says, and as the executions say
        assert positions.keys() == account.positions.keys() == set(SYMBOLS)
        for symbol, row in account.positions.items():
            position, inventory = positions[symbol], inventories[symbol]
            assert position.size == inventory.size == row["currentQty"]
            assert position.realized == inventory.realized == row["realisedPnl"] != 0
            assert position.unrealized == inventory.unrealized == row["unrealisedPnl"]
            assert position.net == row["realisedPnl"] + row["unrealisedPnl"]
            assert position.average_entry_price == row["avgEntryPrice"]
            if row["currentQty"]:
                assert inventory.average_entry_price == pytest.approx(row["avgEntryPrice"], abs=1e-4)
                assert position.mark_price == row["markPrice"] == tickers[symbol].mark_price
        assert any(row["currentQty"] for row in account.positions.values())

        # margin
        assert margin.keys() == margins.keys() == {"XBt", "USDt"}
        for currency, row in margins.items():
            state = margin[currency]
            assert state.wallet_balance == row["walletBalance"] and state.margin_balance == row["marginBalance"]
            assert state.available_margin == row["availableMargin"] and state.initial_margin == row["initMargin"]
            assert (state.realized, state.unrealized) == (row["realisedPnl"], row["unrealisedPnl"])
            assert state.maintenance_margin == row["maintMargin"] > 0
            assert state.withdrawable_margin == row["withdrawableMargin"] and state.leverage == row["marginLeverage"]
            assert (state.account, state.currency, state.row) == (account.id, currency, row)
            assert positions.net(currency) == row["realisedPnl"] + row["unrealisedPnl"]
        deposits = {"XBt": 300_000_000 + 12_345_678, "USDt": 500_000_000_000 - 1_234_567}
        for currency, deposited in deposits.items():
            realized = sum(p.realized for p in positions.values() if p.currency == currency)
            assert margin[currency].wallet_balance == deposited + realized
        assert {type(item) for item in items} >= {OrderState, Fill, Position, MarginState}


async def test_an_hour_with_a_topic_for_each_symbol_and_trading_in_the_dark_ends_in_the_same():
    """The same sections, in a second pipeline: what was filled between the two is told late, and once."""
    random = Random(3)
    async with open_exchange(symbols=SYMBOLS, seed=3, start_time=START, speed=0, rate=0.5, levels=40) as exchange:
        account = exchange.open_account({"XBt": 300_000_000, "USDt": 500_000_000_000})
        by_symbol = [f"{table}:{symbol}" for table in ("execution", "instrument") for symbol in SYMBOLS]
        topics = [*by_symbol, *(f"{table}:{symbol}" for table in ("order", "position") for symbol in SYMBOLS), "margin"]
        orders, positions, margin = Orders(), Positions(), Margin()
        sections = orders, Fills(), positions, margin
        inventories = Positions()  # of the executions alone
        items = []

        def trades():
            return [row["execID"] for row in account.executions if row["execType"] == "Trade"]

        def seen():
            return [item for item in items if type(item) is Fill]

        def differences():
            """What the sections know otherwise than the exchange."""
            found = list(orders.open.keys() ^ account.orders.keys())
            found += [order_id for order_id, order in orders.open.items() if order.row != account.orders.get(order_id)]
            for symbol, row in account.positions.items():
                for position in (positions.get(symbol), inventories.get(symbol)):
                    told = position and (position.size, position.realized, position.unrealized, position.stale)
                    if told != (row["currentQty"], row["realisedPnl"], row["unrealisedPnl"], False):
                        found.append(symbol)
            found += [currency for currency, row in account.margins.items() if margin[currency].row != row]
            return found + list(set(trades()) ^ {fill.exec_id for fill in seen()})

        async def live(steps):
            async with trio.open_nursery() as nursery:

                async def follow(topics, sections, items, task_status):
                    """Run a pipeline; it is begun when the partials of all topics have come."""
                    partials = 0
                    connection = Connection(
                        exchange.url, subscribe=topics, api_key=account.api_key, api_secret=account.api_secret
                    )
                    async with Pipeline.create(connection, Decoder(), TableApplier(), *sections) as pipeline:
                        async for item in pipeline.tap():
                            items.append(item)
                            if type(item) is TableUpdate and item.action == "partial":
                                partials += 1
                            if partials == len(topics):
                                partials = 0
                                task_status.started()

                with trio.fail_after(30):
                    await nursery.start(partial(follow, topics, sections, items))
                    await nursery.start(partial(follow, by_symbol, [inventories], []))
                for _ in range(steps):
                    trade_a_little(account, exchange, random)
                    exchange.advance(25)
                    await exchange.settled()
                await eventually(lambda: not differences())
                nursery.cancel_scope.cancel()

        await live(120)
        assert all(section.stale for section in (*sections, inventories))
        known = trades()
        assert len(known) > 20 and not any(fill.late for fill in seen())
        while len(trades()) < len(known) + 8:  # in the dark
            trade_a_little(account, exchange, random)
            exchange.advance(25)
        in_the_dark = set(trades()[len(known) :])
        await live(60)
        assert len(trades()) > len(known) + len(in_the_dark) + 5
        assert sorted(fill.exec_id for fill in seen()) == sorted(trades()), "each once"
        assert {fill.exec_id for fill in seen() if fill.late} == in_the_dark
        assert not any(type(item) is FillsMissing for item in items)
