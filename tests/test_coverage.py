"""Which part of which table can be trusted, where the tables are an account's."""

from bitmex_streams.coverage import Coverage, Topic


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
