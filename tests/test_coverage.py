"""Which part of which table can be trusted, where the tables are an account's, and where a partial says too much."""

from bitmex_streams.coverage import UNSUBSCRIBED, Coverage, Topic


def covered(*filters):
    coverage = Coverage()
    for filter in filters:
        coverage.cover(Topic("order", filter, "here"))
    return coverage


def test_the_filter_of_an_account_covers_its_rows_and_those_that_name_none():
    coverage = covered({"account": 7})
    topic = coverage.find("order", {"orderID": "a", "account": 7, "symbol": "XBTUSD"})
    assert topic is not None and topic.name == "order"
    assert coverage.find("order", {"orderID": "a", "symbol": "XBTUSD"}) is topic, "a delta may leave the account out"
    assert coverage.find("order", {"orderID": "a", "account": 8}) is None


def test_the_filter_of_an_account_and_a_symbol_covers_that_symbol_alone():
    coverage = covered({"account": 7, "symbol": "XBTUSD"}, {"account": 7, "symbol": "ETHUSD"})
    topic = coverage.find("order", {"orderID": "a", "symbol": "XBTUSD"})
    assert topic is not None and topic.name == "order:XBTUSD"
    assert coverage.find("order", {"orderID": "a", "symbol": "SOLUSDT"}) is None
    assert {topic.name for topic in coverage.concerned("here", "order:ETHUSD")} == {"order:ETHUSD"}
    coverage.cover(Topic("order", {"account": 7}, "here"))
    assert [topic.name for topic in coverage] == ["order"], "the wider one takes the place of both"


XBT, ETH = {"symbol": "XBTUSD"}, {"symbol": "ETHUSD"}


def names(coverage):
    return {topic.name: topic.stale for topic in coverage}


def test_a_part_that_answers_for_a_whole_that_was_lost_brings_back_the_other_parts_stale():
    coverage = covered(XBT, ETH, {})
    assert names(coverage) == {"order": ""}
    coverage.lose_scope("order", {}, "here", "lost")
    assert coverage.cover(Topic("order", XBT, "here"))
    assert names(coverage) == {"order:ETHUSD": "lost", "order:XBTUSD": ""}
    assert coverage.find("order", {"symbol": "SOLUSDT"}) is None


def test_a_part_beside_a_whole_that_holds_or_was_given_up_or_is_anothers_leaves_that_as_it_is():
    for stale, source in (("", "here"), (UNSUBSCRIBED, "here"), ("lost", "there")):
        coverage = covered({})
        coverage.lose_scope("order", {}, "here", stale)
        assert not coverage.cover(Topic("order", XBT, source))
        assert names(coverage) == {"order": stale, "order:XBTUSD": ""}


def test_a_whole_that_comes_again_and_again_still_knows_its_parts_but_not_those_that_were_given_up():
    coverage = covered(XBT, ETH)
    coverage.lose_scope("order", ETH, "here", UNSUBSCRIBED)
    for _ in range(3):
        coverage.cover(Topic("order", {}, "here"))
    coverage.lose_scope("order", {}, "here", "lost")
    coverage.cover(Topic("order", {"symbol": "SOLUSDT"}, "here"))
    assert names(coverage) == {"order:XBTUSD": "lost", "order:SOLUSDT": ""}
