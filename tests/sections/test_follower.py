"""Follower: what the sections of an account have in common, by one that keeps the rows of margin."""

import logging
import math
from decimal import Decimal
from itertools import permutations

import pytest

from bitmex_streams.coverage import CONNECTING
from bitmex_streams.messages import Connected, Disconnected, StateLost, TableMessage, TableUpdate
from bitmex_streams.sections.follower import Follower, number_in, text_in, whole_in
from bitmex_streams.sections.tables import TableApplier

ACCOUNT = 273093


class Balances(Follower):
    """margin: the amount by currency. It puts out (currency, amount, stale)."""

    tables = frozenset({"margin"})

    def __init__(self, resync=None):
        super().__init__(resync=resync)
        self.amounts = {}

    def load(self, update, topic):
        for row in update.rows:
            yield from self.change(update, row, topic)

    def change(self, update, row, topic):
        currency = text_in(row, "currency")
        self.amounts[currency] = None if update.action == "delete" else whole_in(row, "amount")
        yield currency, self.amounts[currency], False

    def lose(self, topic, received):
        return [(currency, amount, True) for currency, amount in self.amounts.items()]


def margin(amount, currency="XBt"):
    return {"account": ACCOUNT, "currency": currency, "amount": amount}


def partial(*rows, received=1, source="a", table="margin"):
    keys = ["account", "currency"]
    return TableMessage(table, "partial", rows, received, source, keys, {}, {}, {}, {"account": ACCOUNT})


def delta(action, *rows, received=2, source="a", table="margin"):
    return TableMessage(table, action, rows, received, source)


class Line:
    """An applier and followers one behind the other, as in a pipeline."""

    def __init__(self, *followers):
        self.asked = []
        self.sections = [TableApplier(resync=self.asked.append), *followers]
        for follower in followers:
            follower.resync = self.asked.append

    def lose(self, source="a", reason="lost"):
        for section in self.sections:
            section.lose_state(source, reason)

    def feed(self, *items):
        for section in self.sections:
            items = [out for item in items for out in section.process(item)]
        return items


def told(items):
    return [item for item in items if type(item) is tuple]


# --- what passes ---


def test_every_item_passes_unchanged_with_what_it_caused_right_behind_it():
    balances = Balances()
    applier = TableApplier()
    [update] = applier.process(partial(margin(5), margin(7, "USDt")))
    other = TableUpdate("wallet", "insert", [{}], 1)
    foreign = object()
    items = [out for item in (other, update, foreign, None, 7) for out in balances.process(item)]
    assert items == [other, update, ("XBt", 5, False), ("USDt", 7, False), foreign, None, 7]
    assert items[1] is update


def test_followers_stand_behind_each_other_in_any_order():
    class Wallets(Balances):
        tables = frozenset({"wallet"})

    both = [partial(margin(5)), partial(margin(6, "USDt"), table="wallet"), delta("update", margin(8)), StateLost(
        9, "a", "why")]
    outs = []
    for order in permutations([Balances, Wallets]):
        line = Line(*(section() for section in order))
        outs.append(line.feed(*both))
    assert outs[0] == outs[1]
    assert told(outs[0]) == [
        ("XBt", 5, False), ("USDt", 6, False), ("XBt", 8, False), ("XBt", 8, True), ("USDt", 6, True),
    ]


def test_a_table_message_of_its_tables_is_an_error_that_shows_the_way():
    balances = Balances()
    other = partial(table="wallet")
    assert list(balances.process(other)) == [other]
    with pytest.raises(TypeError, match=r"Balances works on .* 'margin': put a TableApplier before it"):
        balances.process(partial(margin(5)))


# --- when it can be trusted ---


def test_it_is_stale_until_its_first_partial():
    balances = Balances()
    line = Line(balances)
    assert balances.stale
    assert told(line.feed(delta("insert", margin(5)), partial(margin(5), table="wallet"))) == []
    assert balances.stale
    line.feed(partial())
    assert not balances.stale


def test_a_loss_is_seen_at_once_and_told_in_its_turn():
    balances = Balances()
    line = Line(balances)
    line.feed(partial(margin(5)))
    line.lose()
    assert balances.stale
    update, item = line.feed(delta("update", margin(6)))  # from before the loss, in stream order
    assert (update.action, item) == ("update", ("XBt", 6, False))
    assert balances.stale
    assert told(line.feed(Disconnected(3, "a", 1006, ""))) == [("XBt", 6, True)]
    assert told(line.feed(delta("update", margin(7)))) == []
    assert balances.stale
    assert told(line.feed(partial(margin(8)))) == [("XBt", 8, False)]
    assert not balances.stale


def test_a_partial_that_was_on_its_way_when_the_connection_was_lost_heals_nothing():
    balances = Balances()
    line = Line(balances)
    line.lose()
    line.feed(partial(margin(5)))
    assert balances.stale
    line.feed(Disconnected(3, "a", 1006, ""))
    assert balances.stale
    line.lose(reason=CONNECTING)
    line.feed(Connected(4, "a"))
    assert balances.stale
    line.feed(partial(margin(5)))
    assert not balances.stale


def test_a_loss_before_the_first_partial_is_healed_by_it():
    balances = Balances()
    line = Line(balances)
    line.lose(reason=CONNECTING)
    assert balances.stale
    assert line.feed(Connected(1, "a")) == []
    line.feed(partial(margin(5)))
    assert not balances.stale


def test_the_loss_of_another_source_is_not_its_own():
    balances = Balances()
    line = Line(balances)
    line.feed(partial(margin(5)))
    line.lose("b")
    assert not balances.stale
    assert told(line.feed(Disconnected(3, "b", 1006, ""))) == []


def test_a_partial_of_another_source_takes_over():
    balances = Balances()
    line = Line(balances)
    line.feed(partial(margin(5)))
    line.feed(partial(margin(6), source="b"))
    assert told(line.feed(delta("update", margin(7)))) == []
    assert told(line.feed(delta("update", margin(7), source="b"))) == [("XBt", 7, False)]
    line.lose("a")
    assert not balances.stale


def test_a_follower_that_is_younger_than_its_applier_hears_of_losses_by_number():
    old = TableApplier()
    for _ in range(3):
        old.lose_state("a", "lost before")
        old.process(Disconnected(1, "a", 1006, ""))
    balances = Balances()
    for section in (old, balances):
        section.lose_state("a", CONNECTING)
    items = [*old.process(Connected(2, "a")), *old.process(partial(margin(5)))]
    out = [told for item in items for told in balances.process(item)]
    assert told(out) == [("XBt", 5, False)]
    assert not balances.stale


def test_behind_an_applier_that_hears_of_no_loss_a_connection_that_opens_is_told_by_what_comes_of_it():
    applier, balances = TableApplier(), Balances()  # as where the applier is in a Merge, and the follower behind it
    balances.lose_state("a", CONNECTING)
    for item in (Connected(1, "a"), partial(margin(5))):
        for update in applier.process(item):
            balances.process(update)
    assert not balances.stale


def test_what_another_source_says_of_a_topic_that_is_not_its_own_does_not_count():
    balances = Balances()
    line = Line(balances)
    line.feed(partial(margin(5)))
    foreign = TableUpdate("margin", "update", [margin(6)], 2, "b")
    assert balances.process(foreign) == [foreign]
    lost = TableUpdate("margin", "stale", (), 3, "b", filter={"account": ACCOUNT}, reason="why")
    assert balances.process(lost) == [lost]
    assert not balances.stale


# --- what the exchange cannot mean ---


@pytest.mark.parametrize("bad", [{"amount": "much"}, {"amount": None}, {"amount": 1.5}, {"amount": True}])
def test_a_row_that_cannot_be_one_is_a_loss_of_state(bad, caplog):
    balances = Balances()
    line = Line(balances)
    line.feed(partial(margin(5), margin(7, "USDt")))
    with caplog.at_level(logging.WARNING, "bitmex_streams"):
        out = line.feed(delta("update", margin(8, "USDt"), margin(5) | bad, margin(9, "USDt")))
    assert told(out) == [("USDt", 8, False), ("XBt", 5, True), ("USDt", 8, True)]
    assert balances.stale
    assert line.asked == ["margin"]
    assert "state lost: margin: its amount is no whole number" in caplog.text
    assert told(line.feed(delta("update", margin(6)))) == []
    line.feed(partial(margin(6)))
    assert not balances.stale


def test_a_partial_that_cannot_be_taken_is_a_loss_of_state_and_what_came_before_counts(caplog):
    balances = Balances()
    line = Line(balances)
    out = line.feed(partial(margin(5), margin("much", "EUR"), margin(9, "USDt")))
    assert told(out) == [("XBt", 5, False), ("XBt", 5, True)]
    assert balances.stale
    assert line.asked == ["margin"]
    assert "a partial cannot be taken: its amount is no whole number" in caplog.text


def test_a_partial_that_is_refused_again_and_again_is_not_asked_for_without_end():
    balances = Balances()
    line = Line(balances)
    for _ in range(5):
        line.feed(partial(margin("much")))
    assert line.asked == ["margin"]
    line.feed(partial(margin(5)), delta("update", margin("much")), partial(margin("much")), partial(margin("much")))
    assert line.asked == ["margin"] * 3  # for the update, and for the partial that came then
    assert balances.stale
    line.feed(partial(margin(5)))
    assert not balances.stale


# --- reading fields ---


def test_fields_are_read_as_what_they_are():
    row = {"text": "a", "whole": 5, "float": 5.0, "price": 31964.5, "decimal": Decimal("0.5"), "null": None}
    assert text_in(row, "text") == "a"
    assert (text_in(row, "null", ""), text_in(row, "missing", "")) == ("", "")
    assert [whole_in(row, field) for field in ("whole", "float")] == [5, 5]
    assert type(whole_in(row, "float")) is int
    assert (whole_in(row, "null", 0), whole_in(row, "missing", 0)) == (0, 0)
    assert [number_in(row, field) for field in ("price", "decimal", "whole")] == [31964.5, Decimal("0.5"), 5]
    assert (number_in(row, "null"), number_in(row, "missing")) == (None, None)


@pytest.mark.parametrize("value", ["5", True, [], {}, math.nan, math.inf, Decimal("NaN"), Decimal("-Infinity")])
def test_what_is_no_number_is_a_value_error_in_words(value):
    for read in (whole_in, number_in):
        with pytest.raises(ValueError, match=r"its price is no .*number: \{'price': "):
            read({"price": value}, "price")


@pytest.mark.parametrize("value", [5, None, b"text", ["text"]])
def test_what_is_no_text_is_a_value_error_in_words(value):
    with pytest.raises(ValueError, match="its symbol is no text"):
        text_in({"symbol": value}, "symbol")
