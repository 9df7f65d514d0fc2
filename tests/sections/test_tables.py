"""The table applier: what is sent becomes tables, and what cannot be trusted is said, once, by topic."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import trio

from bitmex_streams.messages import (
    Connected,
    Disconnected,
    Pong,
    Row,
    StateLost,
    Subscribed,
    TableMessage,
    TableUpdate,
    Unsubscribed,
    Welcome,
)
from bitmex_streams.pipeline import Pipeline
from bitmex_streams.sections.decoder import Decoder
from bitmex_streams.sections.orderbook import OrderBookMerger
from bitmex_streams.sections.tables import TableApplier
from bitmex_streams.sections.tickers import Tickers
from tests.servers import ScriptedExchange, in_memory, partial_of

ONE, TWO = "ws://one", "ws://two"
XBT, ETH = {"symbol": "XBTUSD", "lastPrice": 1.0}, {"symbol": "ETHUSD", "lastPrice": 2.0}


def partial(
    rows: list[Row], filter: dict[str, Any] | None = None, source: str = ONE, table: str = "instrument"
) -> TableMessage:
    return TableMessage(table, "partial", rows, 1, source, ["symbol"], {}, {}, {}, filter or {})


def delta(action: Any, *rows: Row, source: str = ONE, table: str = "instrument") -> TableMessage:
    return TableMessage(table, action, rows, 2, source)


def apply(tables: TableApplier, item: Any) -> list[TableUpdate]:
    return list(tables.process(item))


def brief(updates: list[TableUpdate]) -> list[tuple[Any, ...]]:
    return [(update.action, update.filter, list(update.rows)) for update in updates]


def test_updates_are_told_whole_and_as_they_were_sent_and_deletes_as_the_rows_were() -> None:
    tables = TableApplier()
    apply(tables, partial([XBT]))
    (update,) = apply(tables, delta("update", {"symbol": "XBTUSD", "mark": 3}))
    assert update == TableUpdate(
        "instrument", "update", [{**XBT, "mark": 3}], 2, ONE, [{"symbol": "XBTUSD", "mark": 3}], ("symbol",)
    )
    (deleted,) = apply(tables, delta("delete", {"symbol": "XBTUSD"}))
    assert deleted.rows == [{**XBT, "mark": 3}]
    assert dict(tables.storage.data["instrument"]) == {}
    assert XBT == {"symbol": "XBTUSD", "lastPrice": 1.0}


def test_deltas_before_the_partial_are_dropped() -> None:
    tables = TableApplier()
    assert apply(tables, delta("insert", XBT)) == []
    apply(tables, partial([ETH], {"symbol": "ETHUSD"}))
    assert apply(tables, delta("insert", XBT)) == []
    assert apply(tables, delta("update", {"symbol": "ETHUSD", "mark": 1}))[0].rows == [{**ETH, "mark": 1}]


def test_a_partial_replaces_what_its_filter_covers_and_nothing_else() -> None:
    tables = TableApplier()
    apply(tables, partial([XBT, ETH]))
    apply(tables, partial([], {"symbol": "XBTUSD"}))
    assert list(tables.storage.data["instrument"].values()) == [ETH]
    apply(tables, partial([XBT]))
    assert list(tables.storage.data["instrument"].values()) == [XBT]


def test_two_accounts_of_two_connections_live_side_by_side_in_one_table() -> None:
    tables = TableApplier()
    rows = [{"account": number, "symbol": "XBTUSD", "currentQty": number} for number in (1, 2)]
    for row, source in zip(rows, (ONE, TWO), strict=True):
        keys = ["account", "symbol"]
        apply(
            tables, TableMessage("position", "partial", [row], 1, source, keys, {}, {}, {}, {"account": row["account"]})
        )
    assert list(tables.storage.data["position"].values()) == rows
    (update,) = apply(tables, delta("update", {**rows[1], "currentQty": 5}, source=TWO, table="position"))
    assert update.rows == [{**rows[1], "currentQty": 5}]
    (mark,) = apply(tables, Disconnected(3, ONE))
    assert mark.filter == {"account": 1}
    assert apply(tables, delta("update", rows[0], source=ONE, table="position")) == []
    assert apply(tables, delta("update", rows[1], source=TWO, table="position"))


@pytest.mark.parametrize(
    ("action", "row"),
    [
        ("update", {"symbol": "SOLUSDT"}),
        ("delete", {"symbol": "SOLUSDT"}),
        ("insert", XBT),
        ("insert", {"lastPrice": 1}),
        ("insert", {"symbol": ["XBTUSD"]}),
        ("insert", {"symbol": 5}),
    ],
)
def test_what_contradicts_a_topic_makes_it_stale_once_and_asks_for_a_partial_once(action: str, row: Row) -> None:
    asked: list[str] = []
    tables = TableApplier(resync=asked.append)
    apply(tables, partial([XBT]))
    assert brief(apply(tables, delta(action, row))) == [("stale", {}, [])]
    assert apply(tables, delta(action, row)) == apply(tables, delta("update", XBT)) == []
    assert asked == ["instrument"]
    assert "instrument" in tables.stale["instrument"]
    assert brief(apply(tables, partial([XBT]))) == [("partial", {}, [XBT])]
    assert tables.stale == {}


def test_a_message_is_told_whole_or_not_at_all() -> None:
    tables = TableApplier()
    apply(tables, partial([XBT]))
    assert brief(apply(tables, delta("insert", ETH, XBT))) == [("stale", {}, [])]


def test_topics_of_one_table_go_stale_by_themselves() -> None:
    asked: list[str] = []
    tables = TableApplier(resync=asked.append)
    for row in (XBT, ETH):
        apply(tables, partial([row], {"symbol": row["symbol"]}))
    assert brief(apply(tables, delta("insert", XBT))) == [("stale", {"symbol": "XBTUSD"}, [])]
    assert (asked, set(tables.stale)) == (["instrument:XBTUSD"], {"instrument:XBTUSD"})
    assert brief(apply(tables, delta("update", ETH))) == [("update", None, [ETH])]


def test_a_disconnect_makes_all_of_its_source_stale_and_nothing_of_another() -> None:
    tables = TableApplier()
    apply(tables, partial([XBT], {"symbol": "XBTUSD"}))
    apply(tables, partial([ETH], {"symbol": "ETHUSD"}, TWO))
    (mark,) = apply(tables, Disconnected(9, ONE, 1006, "gone"))
    assert (mark.action, mark.filter, mark.received, mark.source) == ("stale", {"symbol": "XBTUSD"}, 9, ONE)
    assert "1006" in mark.reason
    assert apply(tables, Disconnected(10, ONE)) == []
    assert apply(tables, delta("update", ETH, source=TWO))


def test_a_topic_that_is_given_up_is_stale_until_it_is_subscribed_again_and_is_not_asked_for() -> None:
    asked: list[str] = []
    tables = TableApplier(resync=asked.append)
    for row in (XBT, ETH):
        apply(tables, partial([row], {"symbol": row["symbol"]}))
    for other in (Unsubscribed("instrument:XBTUSD", 3, TWO), Unsubscribed("trade", 3, ONE)):
        assert apply(tables, other) == []
    given_up = Unsubscribed("instrument:XBTUSD", 3, ONE)
    (mark,) = apply(tables, given_up)
    assert (mark.action, mark.filter, mark.reason, mark.received) == (
        "stale", {"symbol": "XBTUSD"}, "unsubscribed", 3,
    )  # fmt: skip
    assert apply(tables, given_up) == apply(tables, delta("update", XBT)) == []
    assert (tables.stale, asked) == ({"instrument:XBTUSD": "unsubscribed"}, [])
    assert brief(apply(tables, delta("update", ETH))) == [("update", None, [ETH])]
    assert brief(apply(tables, partial([XBT], {"symbol": "XBTUSD"}))) == [("partial", {"symbol": "XBTUSD"}, [XBT])]
    assert tables.stale == {}


def test_giving_up_a_topic_that_a_wider_one_has_taken_over_loses_nothing() -> None:
    tables = TableApplier()
    apply(tables, partial([XBT], {"symbol": "XBTUSD"}))
    apply(tables, partial([XBT, ETH]))
    assert apply(tables, Unsubscribed("instrument:XBTUSD", 3, ONE)) == []
    assert brief(apply(tables, delta("update", XBT))) == [("update", None, [XBT])]
    assert brief(apply(tables, Unsubscribed("instrument", 3, ONE))) == [("stale", {}, [])]


def test_a_lost_topic_is_asked_for_again_even_while_it_is_stale() -> None:
    asked: list[str] = []
    tables = TableApplier(resync=asked.append)
    apply(tables, partial([XBT]))
    assert len(apply(tables, StateLost(1, ONE, "garbage"))) == 1
    assert apply(tables, StateLost(1, ONE, "more garbage, perhaps the new partial")) == []
    assert asked == ["instrument", "instrument"]


def test_a_partial_that_cannot_be_taken_is_a_loss_of_what_it_would_have_covered() -> None:
    asked: list[str] = []
    tables = TableApplier(resync=asked.append)
    apply(tables, partial([XBT]))
    assert brief(apply(tables, partial([{"lastPrice": 1}]))) == [("stale", {}, [])]
    assert brief(apply(tables, partial([{"symbol": 1}, {"symbol": "XBTUSD"}]))) == []
    assert asked == ["instrument"] * 2
    assert list(tables.storage.data["instrument"].values()) == [XBT]


def test_a_table_with_other_keys_than_before_starts_anew() -> None:
    tables = TableApplier()
    apply(tables, partial([ETH], {"symbol": "ETHUSD"}))
    message = TableMessage(
        "instrument", "partial", [XBT], 1, ONE, ["symbol", "lastPrice"], {}, {}, {}, {"symbol": "XBTUSD"}
    )
    assert [(update.action, update.filter) for update in apply(tables, message)] == [
        ("stale", {"symbol": "ETHUSD"}),
        ("partial", {"symbol": "XBTUSD"}),
    ]
    assert dict(tables.storage.data["instrument"]) == {("XBTUSD", 1.0): XBT}


def test_a_partial_with_other_keys_that_cannot_be_taken_leaves_the_table_as_it_was() -> None:
    tables = TableApplier()
    apply(tables, partial([ETH], {"symbol": "ETHUSD"}))
    message = TableMessage("instrument", "partial", [XBT], 1, ONE, ["symbol", "x"], {}, {}, {}, {"symbol": "XBTUSD"})
    assert [(update.action, update.filter) for update in apply(tables, message)] == [("stale", {"symbol": "XBTUSD"})]
    assert dict(tables.storage.data["instrument"]) == {("ETHUSD",): ETH}
    assert apply(tables, delta("update", {"symbol": "ETHUSD", "mark": 1}))[0].rows == [{**ETH, "mark": 1}]


def test_a_loss_that_is_announced_shows_at_once_and_in_the_stream_in_its_turn() -> None:
    tables = TableApplier()
    apply(tables, partial([XBT]))
    tables.lose_state(ONE, "the line is dead")
    assert tables.stale == {"instrument": "the line is dead"}
    assert brief(apply(tables, delta("update", XBT))) == [("update", None, [XBT])]  # it came before the loss
    apply(tables, partial([XBT]))
    assert tables.stale == {"instrument": "the line is dead"}
    (mark,) = apply(tables, Disconnected(3, ONE))
    assert mark.action == "stale"
    apply(tables, partial([XBT]))
    assert tables.stale == {}


def test_with_two_losses_announced_only_a_partial_after_the_second_is_fresh() -> None:
    tables = TableApplier()
    apply(tables, partial([XBT]))
    tables.lose_state(ONE, "first")
    tables.lose_state(ONE, "second")
    for last in (False, True):
        apply(tables, StateLost(2, ONE, "a message that cannot be decoded"))  # nobody announced this one
        apply(tables, Disconnected(3, ONE))
        apply(tables, partial([XBT]))
        assert bool(tables.stale) is not last


def test_control_messages_end_here_and_foreign_items_pass() -> None:
    tables = TableApplier()
    for item in (Welcome(1), Subscribed("trade", 1), Unsubscribed("trade", 1), Pong(1), Connected(1)):
        assert apply(tables, item) == []
    foreign = object()
    assert apply(tables, foreign) == [foreign]


# --- of one table, several sources


def test_a_partial_with_other_keys_is_refused_while_another_source_keeps_rows_by_the_old_ones() -> None:
    asked: list[str] = []
    tables = TableApplier(resync=asked.append)
    apply(tables, partial([ETH], {"symbol": "ETHUSD"}, TWO))
    keys = ["symbol", "lastPrice"]
    other = TableMessage("instrument", "partial", [XBT], 1, ONE, keys, {}, {}, {}, {"symbol": "XBTUSD"})
    (mark,) = apply(tables, other)
    assert (mark.action, mark.source, mark.filter) == ("stale", ONE, {"symbol": "XBTUSD"})
    assert "its keys are ('symbol', 'lastPrice')" in mark.reason
    assert (tables.stale, asked) == ({}, ["instrument"])
    assert apply(tables, delta("update", {"symbol": "ETHUSD", "mark": 1}, source=TWO))[0].rows == [{**ETH, "mark": 1}]
    apply(tables, Disconnected(3, TWO))  # what it had is lost anyway
    assert brief(apply(tables, other)) == [("partial", {"symbol": "XBTUSD"}, [XBT])]


def test_a_partial_with_rows_that_it_does_not_cover_is_refused_and_changes_nothing() -> None:
    tables = TableApplier()
    apply(tables, partial([ETH], {"symbol": "ETHUSD"}, TWO))
    forged = {"symbol": "ETHUSD", "lastPrice": 9.0}
    (mark,) = apply(tables, partial([XBT, forged], {"symbol": "XBTUSD"}))
    assert (mark.action, mark.source) == ("stale", ONE)
    assert list(tables.storage.data["instrument"].values()) == [ETH]
    assert tables.stale == {}


def test_a_public_partial_of_an_account_does_not_take_over_what_names_no_account() -> None:
    tables = TableApplier()
    apply(tables, partial([ETH], {"symbol": "ETHUSD"}, TWO))
    (mark,) = apply(tables, partial([], {"account": 5}))
    assert (mark.action, mark.source) == ("stale", ONE)
    assert brief(apply(tables, delta("update", ETH, source=TWO))) == [("update", None, [ETH])]


def test_where_a_refused_partial_is_of_no_known_topic_its_table_is_asked_for() -> None:
    """Its filter may be what is wrong with it; a Connection takes a table to mean all its topics."""
    asked: list[str] = []
    tables = TableApplier(resync=asked.append)
    apply(tables, partial([XBT], {"symbol": "XBTUSE"}))
    assert asked == ["instrument"]


def test_rows_of_a_partial_without_a_filter_that_nobody_asked_for_leave_when_it_is_healed() -> None:
    asked: list[str] = []
    tables = TableApplier(resync=asked.append)
    apply(tables, partial([XBT], {"symbol": "XBTUSD"}))
    apply(tables, partial([XBT, ETH]))
    (mark,) = apply(tables, delta("insert", XBT))
    assert mark.action == "stale" and asked == ["instrument"] and set(tables.stale) == {"instrument"}
    (update,) = apply(tables, partial([{**XBT, "lastPrice": 3.0}], {"symbol": "XBTUSD"}))
    assert update.action == "partial" and tables.stale == {}
    assert list(tables.storage.data["instrument"]) == [("XBTUSD",)], "what nobody keeps up to date is not kept"


# --- partials that are refused again and again


async def test_partials_that_are_refused_again_and_again_are_asked_for_ever_more_rarely(autojump_clock: Any) -> None:
    topics = ["instrument:XBTUSD", "orderBookL2:XBTUSD"]
    exchange = ScriptedExchange()
    for topic in topics:
        exchange.partials[topic] = {**partial_of(topic, [{"symbol": "ETHUSD"}]), "keys": ["symbol"]}
    tables, updates = TableApplier(), []
    async with in_memory(exchange, subscribe=topics) as connection:
        async with Pipeline.create(connection, Decoder(), tables, OrderBookMerger(), Tickers()) as pipeline:
            async with pipeline.tap(tables) as tap:
                with trio.move_on_after(600):
                    while True:
                        updates.append(await tap.receive())
                assert {update.action for update in updates} == {"stale"}
                asked = Counter(topic for op, args in exchange.commands if op == "unsubscribe" for topic in args)
                assert set(asked) == set(topics)
                assert all(13 <= times <= 17 for times in asked.values()), "0, 1, 3, 7, ... s, then once a minute"
                exchange.partials.clear()  # the next one can be taken
                healed = set()
                with trio.fail_after(61):
                    while len(healed) < 2:
                        update = await tap.receive()
                        if update.action == "partial":
                            healed.add(update.table)
    assert tables.storage.keys["instrument"] == ()


async def test_a_topic_that_contradicts_each_of_its_partials_stays_marked_and_is_asked_for_ever_more_rarely(
    autojump_clock: Any,
) -> None:
    exchange = ScriptedExchange()
    exchange.partials["instrument"] = {**partial_of("instrument", [XBT]), "keys": ["symbol"]}
    tables = TableApplier()
    actions: list[str] = []
    async with in_memory(exchange, subscribe=["instrument"]) as connection:
        async with Pipeline.create(connection, Decoder(), tables) as pipeline:
            async with pipeline.tap() as tap:
                with trio.move_on_after(600):
                    while True:
                        update = await tap.receive()
                        actions.append(update.action)
                        if update.action == "partial":
                            await exchange.send({"table": "instrument", "action": "delete", "data": [ETH]})
                        assert set(tables.stale) <= {"instrument"}
    asked = sum(op == "unsubscribe" for op, _ in exchange.commands)
    assert 13 <= asked <= 17
    assert actions == ["partial", "stale"] * (len(actions) // 2), "each loss is marked once, until the next partial"
