"""The client side of the protocol: what is sent, and what answers mean."""

import json
import pickle
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitmex_streams.protocol import (
    MAX_ARGS,
    MAX_REFUSALS,
    MAX_UNASKED,
    PRIVATE_TABLES,
    PUBLIC_TABLES,
    SWITCH_INTERVAL,
    Acknowledged,
    Authenticated,
    ClientProtocol,
    Complaint,
    Refused,
    SwitchSet,
    check_topic,
    covers,
)
from tests.servers import partial_of


def commands(protocol):
    return [(command["op"], command["args"]) for command in map(json.loads, protocol.commands())]


def acknowledge(protocol, op, topic):
    return protocol.receive(json.dumps({"success": True, op: topic, "request": {"op": op, "args": [topic]}}))


def refuse(protocol, error, *topics, status=400, op="subscribe"):
    answer = {"status": status, "error": error, "meta": {}, "request": {"op": op, "args": list(topics)}}
    return protocol.receive(json.dumps(answer))


def send_data(protocol, table, symbol, action="insert"):
    row = {"timestamp": "2026-01-01T00:00:00.000Z", "symbol": symbol, "size": 1}
    return protocol.receive(json.dumps({"table": table, "action": action, "data": [row]}, separators=(",", ":")))


@pytest.fixture
def protocol():
    return ClientProtocol()


def test_an_error_that_names_nothing_is_about_the_first_topic_that_is_not_answered_yet(protocol):
    protocol.subscribe(["trade:A", "trade:NONE", "trade:B"])
    protocol.commands()
    acknowledge(protocol, "subscribe", "trade:A")
    answers = refuse(protocol, "Unknown or expired symbol.", "trade:A", "trade:NONE", "trade:B")
    assert [answer.topic for answer in answers] == ["trade:NONE"]
    acknowledge(protocol, "subscribe", "trade:B")
    assert protocol.subscriptions == {"trade:A", "trade:B"} and protocol.refusal("trade:B") is None


def test_an_error_about_the_client_is_about_every_topic_of_the_command(protocol):
    protocol.subscribe(["trade:A", "trade:B"])
    protocol.commands()
    assert len(refuse(protocol, "Rate limit exceeded.", "trade:A", "trade:B", status=429)) == 2


def test_a_topic_that_is_acknowledged_after_all_is_not_refused(protocol):
    protocol.subscribe(["trade"])
    protocol.commands()
    refuse(protocol, "Unknown table", "trade")
    acknowledge(protocol, "subscribe", "trade")
    assert protocol.refusal("trade") is None and protocol.subscriptions == {"trade"}


def test_a_partial_that_does_not_come_is_overdue_once(protocol):
    protocol.subscribe(["trade", "quote:XBTUSD"])
    protocol.commands(0.0)
    for topic in ("trade", "quote:XBTUSD"):
        protocol.receive(json.dumps({"success": True, "subscribe": topic}), 5.0)
    assert protocol.due == 35.0 and protocol.overdue(34.9) == []
    protocol.receive(json.dumps(partial_of("quote:XBTUSD"), separators=(",", ":")), 6.0)
    assert protocol.overdue(35.0) == ["trade"]
    assert protocol.overdue(99.0) == [] and protocol.due == inf


def send_partial(protocol, topic, now, **changes):
    protocol.receive(json.dumps({**partial_of(topic), **changes}, separators=(",", ":")), now)


def test_a_partial_that_comes_before_its_acknowledgement_is_not_overdue(protocol):
    protocol.subscribe(["trade", "quote:XBTUSD"])
    protocol.commands(0.0)
    send_partial(protocol, "trade", 1.0)
    assert protocol.overdue(1e9) == [], "its time begins with the acknowledgement"
    for topic in ("trade", "quote:XBTUSD"):
        protocol.receive(json.dumps({"success": True, "subscribe": topic}), 5.0)
    assert protocol.overdue(35.0) == ["quote:XBTUSD"]


@pytest.mark.parametrize("filter", [{}, None, {"account": 7}])
def test_a_partial_of_the_whole_table_is_one_of_each_of_its_symbols(protocol, filter):
    protocol.subscribe(["order:XBTUSD", "order:ETHUSD", "orderBookL2:XBTUSD"])
    protocol.commands(0.0)
    for topic in ("order:XBTUSD", "order:ETHUSD", "orderBookL2:XBTUSD"):
        acknowledge(protocol, "subscribe", topic)
    send_partial(protocol, "order", 1.0, filter=filter)
    assert protocol.overdue(1e9) == ["orderBookL2:XBTUSD"]


def test_a_partial_of_one_symbol_is_none_of_the_whole_table(protocol):
    protocol.subscribe(["trade"])
    protocol.commands(0.0)
    acknowledge(protocol, "subscribe", "trade")
    send_partial(protocol, "trade:XBTUSD", 1.0)
    assert protocol.overdue(1e9) == ["trade"]


def test_a_late_partial_of_before_a_resync_is_not_the_new_one(protocol):
    protocol.subscribe(["trade"])
    protocol.commands(0.0)
    acknowledge(protocol, "subscribe", "trade")
    protocol.resync("trade")
    protocol.commands(1.0)
    send_partial(protocol, "trade", 2.0)
    acknowledge(protocol, "unsubscribe", "trade")
    acknowledge(protocol, "subscribe", "trade")
    assert protocol.overdue(1e9) == ["trade"]


def test_no_partial_is_waited_for_of_a_topic_that_is_refused(protocol):
    protocol.subscribe(["trade"])
    protocol.commands(0.0)
    refuse(protocol, "Unknown table", "trade")
    assert protocol.overdue(inf) == [] and protocol.due == inf


def test_no_partial_is_waited_for_of_what_was_given_up_or_is_of_another_connection(protocol):
    protocol.subscribe(["trade", "quote"])
    protocol.commands(0.0)
    acknowledge(protocol, "subscribe", "trade")
    acknowledge(protocol, "subscribe", "quote")
    protocol.unsubscribe(["trade"])
    protocol.commands(0.0)
    acknowledge(protocol, "unsubscribe", "trade")
    assert protocol.overdue(1e9) == ["quote"]
    protocol.subscribe(["trade"])
    protocol.commands(0.0)
    acknowledge(protocol, "subscribe", "trade")
    protocol.disconnected()
    assert protocol.overdue(1e9) == []


# --- signing in ---

SIGN_IN = '{"op":"authKeyExpires","args":["key",1,"signature"]}'


class Signs:
    """Credentials whose signature is always the same."""

    def command(self):
        return SIGN_IN


SIGNS = Signs()


def answer_sign_in(protocol, **answer):
    return protocol.receive(json.dumps({"request": json.loads(SIGN_IN), **answer}))


def test_a_sign_in_goes_first_and_private_topics_wait_for_its_answer(protocol):
    protocol.subscribe(["order", "trade", "execution:XBTUSD"])
    protocol.authenticate(SIGNS)
    assert protocol.authenticating
    assert protocol.commands() == [SIGN_IN, '{"op":"subscribe","args":["trade"]}']
    protocol.subscribe(["margin"])
    assert protocol.commands() == [] and not protocol.settled("margin")
    assert answer_sign_in(protocol, success=True) == (Authenticated(),)
    assert not protocol.authenticating
    assert commands(protocol) == [("subscribe", ["order", "execution:XBTUSD", "margin"])]


def test_a_private_topic_that_is_given_up_while_it_waits_is_never_sent(protocol):
    protocol.authenticate(SIGNS)
    protocol.commands()
    protocol.subscribe(["order"])
    protocol.commands()
    protocol.unsubscribe(["order"])
    answer_sign_in(protocol, success=True)
    assert commands(protocol) == [] and protocol.settled("order")


def test_a_sign_in_that_is_refused_lets_the_exchange_say_what_it_thinks_of_private_topics(protocol):
    protocol.authenticate(SIGNS)
    protocol.subscribe(["order"])
    protocol.commands()
    assert answer_sign_in(protocol, status=401, error="Invalid API Key.") == (Authenticated(401, "Invalid API Key."),)
    assert commands(protocol) == [("subscribe", ["order"])]


def test_a_refusal_that_does_not_repeat_the_command_is_its_answer_while_it_is_waited_for(protocol):
    assert protocol.receive('{"status":401,"error":"Signature not valid.","meta":{}}') == ()
    protocol.authenticate(SIGNS)
    protocol.commands()
    answer = protocol.receive('{"status":401,"error":"Signature not valid.","meta":{}}')
    assert answer == (Authenticated(401, "Signature not valid."),)


def test_a_sign_in_that_a_lost_connection_left_unanswered_is_the_first_that_the_next_one_is_sent(protocol):
    sign_in = protocol.authenticate(SIGNS)
    protocol.subscribe(["order"])
    assert protocol.commands() == [SIGN_IN]
    protocol.disconnected()
    assert protocol.authenticating and sign_in.answer is None
    assert protocol.commands() == [SIGN_IN], "and private topics wait"
    protocol.disconnected()
    assert protocol.commands() == [SIGN_IN], "again"
    answer_sign_in(protocol, success=True)
    assert sign_in.answer == Authenticated() and protocol.accepted is SIGNS
    assert commands(protocol) == [("subscribe", ["order"])]


def test_a_sign_in_that_was_answered_or_given_up_is_of_one_connection(protocol):
    protocol.authenticate(SIGNS)
    protocol.commands()
    answer_sign_in(protocol, success=True)
    given_up = protocol.authenticate(SIGNS)
    protocol.commands()
    protocol.give_up(given_up)
    protocol.give_up(protocol.authenticate(SIGNS))
    assert not protocol.authenticating
    protocol.disconnected()
    assert protocol.commands() == [] and not protocol.authenticating


def test_a_sign_in_is_withdrawn_when_three_connections_were_lost_with_it(protocol):
    sign_in, later = protocol.authenticate(SIGNS), None
    protocol.subscribe(["order"])
    for attempt in range(3):
        assert not sign_in.given_up
        later = later or (protocol.authenticate(SIGNS) if attempt else None)
        assert protocol.commands() == [SIGN_IN] * (1 + bool(later)), "and the private topic waits"
        protocol.disconnected()
    assert sign_in.given_up and sign_in.answer is None
    assert not later.given_up and protocol.commands() == [SIGN_IN], "each is counted for itself"
    protocol.disconnected()
    assert later.given_up and not protocol.authenticating and commands(protocol) == [("subscribe", ["order"])]


def test_connections_that_are_lost_before_a_sign_in_was_sent_do_not_count_for_it(protocol):
    sign_in = protocol.authenticate(SIGNS)
    for _ in range(5):
        protocol.disconnected()
    assert not sign_in.given_up and protocol.commands() == [SIGN_IN]


def test_a_sign_in_holds_nothing_back_when_its_time_is_over(protocol):
    protocol.authenticate(SIGNS, 10.0)
    protocol.subscribe(["order"])
    protocol.arm(0.0)
    assert protocol.due == inf and protocol.commands(5.0) == [SIGN_IN]
    assert protocol.due == 15.0 and protocol.commands(14.9) == []
    protocol.disconnected()
    protocol.arm(20.0)
    assert protocol.due == inf and protocol.commands(20.0) == [SIGN_IN], "it is given as long once more"
    assert protocol.due == 30.0
    switch, *rest = protocol.commands(30.0)
    assert switch == '{"op":"cancelAllAfter","args":60000}' and rest == ['{"op":"subscribe","args":["order"]}']
    assert not protocol.authenticating and protocol.due == 45.0
    answer_sign_in(protocol, success=True)
    assert protocol.signed_in and protocol.accepted is SIGNS, "should it still come, it counts"


def test_a_sign_in_that_was_answered_is_due_no_more(protocol):
    protocol.authenticate(SIGNS, 10.0)
    protocol.commands(0.0)
    answer_sign_in(protocol, success=True)
    assert protocol.due == inf


def test_of_a_topic_is_known_how_many_connections_were_lost_with_it_unanswered(protocol):
    protocol.subscribe(["trade", "quote"])
    protocol.disconnected()
    assert protocol.losses("trade") == 0, "it was not sent"
    for _ in range(2):
        protocol.commands()
        acknowledge(protocol, "subscribe", "trade")
        protocol.disconnected()
    assert protocol.losses("trade") == 0 and protocol.losses("quote") == 2 and protocol.losses("funding") == 0


def test_of_several_sign_ins_each_gets_its_own_answer(protocol):
    class Others(Signs):
        pass

    mine, others = protocol.authenticate(SIGNS), protocol.authenticate(Others())
    assert protocol.commands() == [SIGN_IN, SIGN_IN]
    answer_sign_in(protocol, status=401, error="Invalid API Key.")
    assert mine.answer == Authenticated(401, "Invalid API Key.") and others.answer is None and protocol.authenticating
    assert protocol.accepted is None
    answer_sign_in(protocol, success=True)
    assert others.answer == Authenticated() and protocol.accepted is others.credentials


def test_an_answer_that_comes_after_all_counts(protocol):
    sign_in = protocol.authenticate(SIGNS)
    protocol.commands()
    protocol.give_up(sign_in)
    answer_sign_in(protocol, success=True)
    assert protocol.signed_in and protocol.accepted is SIGNS


# --- the dead man's switch ---


def answer_switch(protocol, cancel_time, args=60000, **answer):
    request = {"op": "cancelAllAfter", "args": args}
    return protocol.receive(json.dumps({"now": "x", "cancelTime": cancel_time, "request": request, **answer}))


def test_the_switch_is_set_at_once_and_then_on_its_rhythm(protocol):
    assert protocol.commands(100.0) == [] and protocol.switch_due == inf
    protocol.arm(100.0)
    assert protocol.switch_due == 100.0
    assert protocol.commands(100.0) == ['{"op":"cancelAllAfter","args":60000}']
    assert protocol.switch_due == 100.0 + SWITCH_INTERVAL == 115.0
    assert protocol.commands(114.9) == []
    assert commands(protocol) == [], "where no time is given, nothing is due"
    assert protocol.commands(115.0) == ['{"op":"cancelAllAfter","args":60000}']
    assert protocol.switch_due == 130.0


def test_its_answers_say_until_when(protocol):
    protocol.arm(0.0)
    protocol.commands(0.0)
    assert protocol.cancel_time is None and not protocol.switch_settled
    (answer,) = answer_switch(protocol, "2026-01-01T00:01:00.000Z")
    assert answer == SwitchSet("2026-01-01T00:01:00.000Z", timeout=60000)
    assert protocol.cancel_time == "2026-01-01T00:01:00.000Z" and protocol.switch_settled
    refused = answer_switch(protocol, None, error="Rate limit exceeded.", status=429)
    assert refused == (SwitchSet(None, 429, "Rate limit exceeded.", 60000),)
    assert protocol.cancel_time == "2026-01-01T00:01:00.000Z", "it is still the last that was set"


def test_disarming_is_sent_once_and_settled_by_its_answer(protocol):
    assert not protocol.disarm() and protocol.switch_settled, "there was nothing to disarm"
    protocol.arm(0.0)
    protocol.commands(0.0)
    answer_switch(protocol, "2026-01-01T00:01:00.000Z")
    assert protocol.disarm() and not protocol.switch_settled
    assert protocol.commands(15.0) == ['{"op":"cancelAllAfter","args":0}']
    assert protocol.commands(30.0) == [] and not protocol.switch_settled
    answer_switch(protocol, 0, args=0)
    assert protocol.switch_settled and protocol.cancel_time is None


def test_a_beat_that_was_never_answered_is_forgotten_with_the_next_answer(protocol):
    protocol.arm(0.0)
    protocol.commands(0.0)
    protocol.commands(15.0)
    assert not protocol.switch_settled
    answer_switch(protocol, "2026-01-01T00:01:15.000Z")
    assert protocol.switch_settled and protocol.armed


def test_a_disarming_that_is_refused_leaves_it_armed_and_can_be_repeated(protocol):
    protocol.arm(0.0)
    protocol.commands(0.0)
    answer_switch(protocol, "2026-01-01T00:01:00.000Z")
    for _ in range(2):
        assert protocol.disarm()
        assert protocol.commands(1.0) == ['{"op":"cancelAllAfter","args":0}']
        answer_switch(protocol, None, args=0, error="Rate limit exceeded.", status=429)
        assert protocol.armed and protocol.switch_settled
    assert protocol.disarm()
    protocol.commands(2.0)
    answer_switch(protocol, 0, args=0)
    assert not protocol.armed and not protocol.disarm()


def test_an_answer_to_a_beat_is_none_to_the_disarming_behind_it(protocol):
    protocol.arm(0.0)
    protocol.commands(0.0)
    protocol.disarm()
    protocol.commands(1.0)
    answer_switch(protocol, "2026-01-01T00:01:00.000Z")
    assert protocol.armed and not protocol.switch_settled
    answer_switch(protocol, 0, args=0)
    assert not protocol.armed and protocol.switch_settled


def test_a_sign_in_over_one_that_stands_holds_nothing_back(protocol):
    protocol.signed_in = True
    protocol.arm(0.0)
    protocol.authenticate(SIGNS)
    protocol.subscribe(["order"])
    assert protocol.switch_due == 0.0
    sent = protocol.commands(0.0)
    assert sent == [SIGN_IN, '{"op":"cancelAllAfter","args":60000}', '{"op":"subscribe","args":["order"]}']


def test_what_waited_for_a_sign_in_that_nobody_answers_goes_on_the_wire_in_the_end(protocol):
    sign_in = protocol.authenticate(SIGNS)
    protocol.subscribe(["order"])
    assert protocol.commands() == [SIGN_IN]
    protocol.give_up(sign_in)
    assert commands(protocol) == [("subscribe", ["order"])]


def test_the_switch_waits_for_a_sign_in(protocol):
    protocol.authenticate(SIGNS)
    protocol.arm(0.0)
    assert protocol.switch_due == inf
    assert protocol.commands(0.0) == [SIGN_IN]
    answer_sign_in(protocol, success=True)
    assert protocol.switch_due == 0.0
    assert protocol.commands(1.0) == ['{"op":"cancelAllAfter","args":60000}']


# --- topics ---


@pytest.mark.parametrize(
    "topic", ["trade", "orderBookL2_25:XBTUSD", "instrument:.BXBT", "quote:XBT_USDT", "tradeBin1m:XBTZ26"]
)
def test_a_table_or_a_table_and_a_symbol_is_a_topic(topic):
    assert check_topic(topic) == topic


@pytest.mark.parametrize(
    "topic", ["", "trade:", ":XBTUSD", "trade:A:B", "trade XBTUSD", "trade,quote", "2trade", None, 3, "trade\n"]
)
def test_anything_else_is_a_value_error_that_shows_how_topics_look(topic):
    with pytest.raises(ValueError, match="orderBookL2:XBTUSD"):
        check_topic(topic)


def test_a_table_covers_its_symbols_and_not_another_table_that_begins_alike():
    assert covers("trade", "trade:XBTUSD") and covers("trade", "trade")
    assert not covers("orderBookL2", "orderBookL2_25:XBTUSD")
    assert not covers("trade:XBTUSD", "trade")


def test_no_table_is_both_public_and_private():
    assert not PUBLIC_TABLES & PRIVATE_TABLES


# --- subscribing ---


def test_what_is_wanted_is_sent_once_and_in_force_once_acknowledged(protocol):
    protocol.subscribe(["trade:XBTUSD"])
    assert commands(protocol) == [("subscribe", ["trade:XBTUSD"])]
    assert commands(protocol) == []
    assert protocol.subscriptions == frozenset() and not protocol.settled("trade:XBTUSD")
    assert acknowledge(protocol, "subscribe", "trade:XBTUSD") == (Acknowledged("subscribe", "trade:XBTUSD"),)
    assert protocol.subscriptions == {"trade:XBTUSD"} and protocol.settled("trade:XBTUSD")


def test_subscribing_twice_sends_nothing_more(protocol):
    protocol.subscribe(["trade"])
    commands(protocol)
    protocol.subscribe(["trade"])
    assert commands(protocol) == []
    acknowledge(protocol, "subscribe", "trade")
    protocol.subscribe(["trade"])
    assert commands(protocol) == [] and protocol.settled("trade")


def test_no_command_has_more_topics_than_the_exchange_takes(protocol):
    topics = [f"trade:S{number}" for number in range(50)]
    protocol.subscribe(topics)
    sent = commands(protocol)
    assert [len(args) for _, args in sent] == [MAX_ARGS, MAX_ARGS, 10]
    assert [topic for _, args in sent for topic in args] == topics


def test_what_was_taken_back_before_it_was_sent_is_never_sent(protocol):
    protocol.subscribe(["trade"])
    protocol.unsubscribe(["trade"])
    assert commands(protocol) == [] and protocol.settled("trade")


def test_an_unsubscribe_before_the_answer_is_sent_behind_the_subscribe(protocol):
    protocol.subscribe(["trade"])
    commands(protocol)
    protocol.unsubscribe(["trade"])
    assert commands(protocol) == [("unsubscribe", ["trade"])]
    acknowledge(protocol, "subscribe", "trade")
    assert not protocol.settled("trade")
    acknowledge(protocol, "unsubscribe", "trade")
    assert protocol.settled("trade") and protocol.subscriptions == frozenset()


def test_unsubscribing_what_is_not_subscribed_sends_nothing(protocol):
    assert protocol.unsubscribe(["trade"]) == []
    assert commands(protocol) == []


def test_a_symbol_of_a_table_that_is_subscribed_is_satisfied_by_the_table(protocol):
    protocol.subscribe(["trade"])
    commands(protocol)
    assert protocol.subscribe(["trade:XBTUSD"]) == ["trade"]
    assert commands(protocol) == []


def test_a_table_takes_the_place_of_its_symbols_which_are_given_up_first(protocol):
    protocol.subscribe(["trade:XBTUSD", "trade:ETHUSD", "quote:XBTUSD"])
    commands(protocol)
    protocol.subscribe(["trade"])
    assert commands(protocol) == [("unsubscribe", ["trade:XBTUSD", "trade:ETHUSD"]), ("subscribe", ["trade"])]


def test_a_subscription_in_the_url_is_known_from_its_acknowledgement(protocol):
    acknowledge(protocol, "subscribe", "trade:XBTUSD")
    assert protocol.subscriptions == {"trade:XBTUSD"}
    protocol.unsubscribe(["trade:XBTUSD"])
    assert commands(protocol) == [("unsubscribe", ["trade:XBTUSD"])]


def test_acknowledgements_that_nobody_asked_for_are_wanted_up_to_a_bound(protocol):
    for number in range(3 * MAX_UNASKED):
        (answer,) = acknowledge(protocol, "subscribe", f"trade:S{number}")
        assert answer.ignored == (number >= MAX_UNASKED)
    kept = {f"trade:S{number}" for number in range(MAX_UNASKED)}
    assert protocol.subscriptions == kept
    for _ in range(2):  # also when they are acknowledged as asked for
        protocol.disconnected()
        assert {topic for _, topics in commands(protocol) for topic in topics} == kept
        for topic in kept:
            acknowledge(protocol, "subscribe", topic)
        assert acknowledge(protocol, "subscribe", "trade:one-more")[0].ignored and protocol.subscriptions == kept


def test_what_was_asked_for_is_wanted_however_many_were_not(protocol):
    for number in range(MAX_UNASKED):
        acknowledge(protocol, "subscribe", f"trade:S{number}")
    protocol.subscribe(["quote"])
    commands(protocol)
    assert not acknowledge(protocol, "subscribe", "quote")[0].ignored and "quote" in protocol.subscriptions
    assert acknowledge(protocol, "subscribe", "funding")[0].ignored


@pytest.mark.parametrize("way", ["by the client", "by the server", "by a topic that covers all"])
def test_an_unasked_topic_that_is_given_up_makes_room_for_another(protocol, way):
    for number in range(MAX_UNASKED):
        acknowledge(protocol, "subscribe", f"trade:S{number}")
    if way == "by the client":
        protocol.unsubscribe(["trade:S7"])
    elif way == "by a topic that covers all":
        protocol.subscribe(["trade"])
    commands(protocol)
    acknowledge(protocol, "unsubscribe", "trade:S7")
    assert not acknowledge(protocol, "subscribe", "quote")[0].ignored and "quote" in protocol.subscriptions


def test_after_a_disconnect_what_is_wanted_is_sent_again_and_nothing_is_in_force(protocol):
    protocol.subscribe(["trade", "quote"])
    commands(protocol)
    acknowledge(protocol, "subscribe", "trade")
    protocol.disconnected()
    assert protocol.subscriptions == frozenset()
    protocol.unsubscribe(["quote"])
    assert commands(protocol) == [("subscribe", ["trade"])]


# --- servers that send no acknowledgements ---


@pytest.mark.parametrize("topic", ["trade", "trade:XBTUSD"])
def test_the_first_message_of_a_topic_answers_where_no_acknowledgement_comes(protocol, topic):
    protocol.subscribe([topic, "quote:XBTUSD"])
    commands(protocol)
    assert send_data(protocol, "trade", "XBTUSD") == (Acknowledged("subscribe", topic),)
    assert protocol.subscriptions == {topic} and not protocol.acknowledges


def test_a_message_of_another_symbol_or_table_is_no_answer(protocol):
    protocol.subscribe(["trade:XBTUSD"])
    commands(protocol)
    assert send_data(protocol, "trade", "ETHUSD") == () and send_data(protocol, "quote", "XBTUSD") == ()


def test_a_server_that_has_answered_by_data_alone_is_not_waited_for_when_topics_are_given_up(protocol):
    protocol.subscribe(["trade", "quote"])
    commands(protocol)
    protocol.unsubscribe(["quote"])
    assert not protocol.settled("quote")
    assert commands(protocol) == [("unsubscribe", ["quote"])]
    assert not protocol.settled("quote"), "it may be one that acknowledges"
    send_data(protocol, "trade", "XBTUSD")
    assert protocol.settled("quote")
    protocol.unsubscribe(["trade"])
    assert not protocol.settled("trade"), "not sent yet"
    assert commands(protocol) == [("unsubscribe", ["trade"])]
    assert protocol.settled("trade") and protocol.subscriptions == frozenset()
    protocol.subscribe(["trade"])
    commands(protocol)
    assert not protocol.settled("trade")
    send_data(protocol, "trade", "XBTUSD")
    assert protocol.settled("trade") and protocol.subscriptions == {"trade"}
    assert protocol.resync("trade") and commands(protocol) == [("unsubscribe", ["trade"]), ("subscribe", ["trade"])]
    assert not protocol.settled("trade")
    send_data(protocol, "trade", "XBTUSD")
    assert protocol.settled("trade") and protocol.subscriptions == {"trade"}


def test_an_empty_partial_answers_by_its_filter(protocol):
    protocol.subscribe(["liquidation:XBTUSD"])
    commands(protocol)
    answers = protocol.receive(json.dumps(partial_of("liquidation:XBTUSD")).encode())
    assert answers == (Acknowledged("subscribe", "liquidation:XBTUSD"),)


# --- refusals ---


def test_a_refused_topic_is_no_longer_wanted_and_its_refusal_is_known_until_it_is_asked_for_again(protocol):
    protocol.subscribe(["foo"])
    commands(protocol)
    refusal = Refused("subscribe", "foo", 400, "Unknown table: foo")
    assert refuse(protocol, "Unknown table: foo", "foo") == (refusal,)
    assert protocol.settled("foo") and protocol.refusal("foo") == refusal
    protocol.subscribe(["foo"])
    assert protocol.refusal("foo") is None and commands(protocol) == [("subscribe", ["foo"])]


def test_weeks_of_topics_that_are_refused_grow_nothing(protocol):
    for number in range(MAX_REFUSALS + 1000):
        protocol.subscribe([f"foo:S{number}"])
        protocol.commands()
        refuse(protocol, "Unknown table: foo", f"foo:S{number}")
        assert protocol.settled(f"foo:S{number}") and protocol.refusal(f"foo:S{number}") is not None
    assert len(protocol._topics) == 0 and len(protocol._refusals) == MAX_REFUSALS
    protocol.disconnected()
    assert protocol.commands() == [], "none of them is asked for again"


@pytest.mark.parametrize(
    "error, status, refused",
    [
        ("Unknown table: foo.", 400, ["foo:A"]),
        ("Unknown symbol: A", 400, ["foo:A"]),
        ("You may not see trade:B", 400, ["trade:B"]),
        ("User requested an account-locked subscription but no authorization was provided.", 401, ["order"]),
        ("Rate limit exceeded, retry in 1 seconds.", 429, ["foo:A", "trade:B", "order"]),
    ],
)
def test_a_refusal_concerns_the_topics_that_it_names_or_else_all_that_are_unanswered(protocol, error, status, refused):
    topics = ["quote", "foo:A", "trade:B", "order"]
    protocol.subscribe(topics)
    commands(protocol)
    acknowledge(protocol, "subscribe", "quote")
    answers = refuse(protocol, error, *topics, status=status)
    assert [(answer.topic, answer.status) for answer in answers] == [(topic, status) for topic in refused]
    assert "quote" in protocol.subscriptions


def test_that_it_is_already_subscribed_is_no_refusal(protocol):
    protocol.subscribe(["trade"])
    commands(protocol)
    assert refuse(protocol, "You are already subscribed to this topic: trade", "trade") == (
        Acknowledged("subscribe", "trade"),
    )
    protocol.unsubscribe(["trade"])
    commands(protocol)
    refuse(protocol, "You are not subscribed to this topic: trade", "trade", op="unsubscribe")
    assert protocol.subscriptions == frozenset() and protocol.refusal("trade") is None


def test_an_error_without_a_request_refuses_nothing_and_is_known(protocol):
    protocol.subscribe(["trade"])
    commands(protocol)
    assert protocol.receive('{"status":429,"error":"Rate limit exceeded","meta":{"retryAfter":1}}') == ()
    assert protocol.complaint == Complaint(429, "Rate limit exceeded")
    assert not protocol.settled("trade") and protocol.refusal("trade") is None
    acknowledge(protocol, "subscribe", "trade")
    assert protocol.subscriptions == {"trade"}


def test_an_error_that_answers_no_command_of_ours_changes_nothing(protocol):
    assert refuse(protocol, "Unknown table: foo", "foo") == ()
    assert protocol.receive('{"status":400,"error":"Unrecognized request","request":"x"}') == ()


# --- resync ---


def subscribed(*topics):
    protocol = ClientProtocol()
    protocol.subscribe(topics)
    commands(protocol)
    for topic in topics:
        acknowledge(protocol, "subscribe", topic)
    return protocol


def test_a_resync_unsubscribes_and_subscribes_once_while_it_is_under_way():
    protocol = subscribed("trade:XBTUSD", "quote")
    assert protocol.resync("trade:XBTUSD") and not protocol.resync("trade:XBTUSD")
    assert commands(protocol) == [("unsubscribe", ["trade:XBTUSD"]), ("subscribe", ["trade:XBTUSD"])]
    assert not protocol.resync("trade:XBTUSD")
    acknowledge(protocol, "unsubscribe", "trade:XBTUSD")
    assert not protocol.resync("trade:XBTUSD")
    acknowledge(protocol, "subscribe", "trade:XBTUSD")
    assert protocol.resync("trade:XBTUSD")


@pytest.mark.parametrize(
    "topic, sent",
    [("orderBookL2:XBTUSD", ["orderBookL2"]), ("trade", ["trade:A", "trade:B"]), ("quote", []), ("orderBookL2_25", [])],
)
def test_a_resync_takes_the_topics_that_cover_or_are_covered(topic, sent):
    protocol = subscribed("orderBookL2", "trade:A", "trade:B")
    assert bool(protocol.resync(topic)) is bool(sent)
    assert [args for _, args in commands(protocol)] == ([sent, sent] if sent else [])


def test_a_resync_that_is_rationed_is_rarer_each_time_and_one_that_is_not_goes_out_at_once():
    protocol = subscribed("trade")

    def resync(now, **how):
        asked = protocol.resync("trade", now, **how)
        sent = protocol.commands(now)
        if sent:
            acknowledge(protocol, "unsubscribe", "trade")
            acknowledge(protocol, "subscribe", "trade")
        return asked, len(sent)

    assert resync(0.0, rationed=True) == (["trade"], 2)
    assert resync(0.1, rationed=True) == (["trade"], 0) and protocol.due == 1.0
    assert resync(0.2, rationed=True) == ([], 0)
    assert resync(0.3) == ([], 2), "it is no news, but now it is due"
    for now in (0.4, 0.5, 0.6):
        assert resync(now) == (["trade"], 2)
    assert resync(0.7, rationed=True) == (["trade"], 0), "what a user asks for lifts no ration"


def test_while_nobody_reads_no_topic_is_asked_for_and_what_has_no_partial_goes_out():
    protocol = subscribed("trade", "quote")
    protocol.subscribe(["funding"])
    protocol.unsubscribe(["quote"])
    protocol.resync("trade")
    protocol.arm(0.0)
    sent = [(command["op"], command["args"]) for command in map(json.loads, protocol.commands(0.0, reading=False))]
    assert sent == [("cancelAllAfter", 60000), ("unsubscribe", ["quote"])]
    sent = [(command["op"], command["args"]) for command in map(json.loads, protocol.commands(1.0))]
    assert sent == [("unsubscribe", ["trade"]), ("subscribe", ["funding", "trade"])]


def test_a_resync_of_everything_takes_every_topic():
    protocol = subscribed("trade", "quote")
    protocol.resync()
    assert commands(protocol) == [("unsubscribe", ["trade", "quote"]), ("subscribe", ["trade", "quote"])]


def test_where_commands_are_acknowledged_data_is_no_answer():
    protocol = subscribed("trade:XBTUSD")
    protocol.subscribe(["trade"])
    commands(protocol)
    assert send_data(protocol, "trade", "XBTUSD") == () == send_data(protocol, "trade", "XBTUSD", "partial")
    assert not protocol.settled("trade")


# --- whatever arrives ---


@given(
    st.one_of(
        st.text(),
        st.binary(),
        st.sampled_from(['{"table"', '{"table":', b'{"table":"trade', '{"table":"trade","data":3}', "["]),
    )
)
def test_what_cannot_be_understood_is_left_to_others(data):
    protocol = ClientProtocol()
    protocol.subscribe(["trade"])
    commands(protocol)
    assert protocol.receive(data) == ()


def test_answers_can_be_pickled():
    answer = Refused("subscribe", "foo", 400, "no")
    assert pickle.loads(pickle.dumps(answer)) == answer


TOPICS = ["trade", "trade:A", "trade:B", "quote:A", "order"]
STEPS = st.lists(
    st.tuples(st.sampled_from(["subscribe", "unsubscribe", "resync", "write", "answer"]), st.sampled_from(TOPICS))
)


@settings(max_examples=300, deadline=None)
@given(STEPS, st.booleans())
def test_whatever_the_order_of_wishes_and_answers_the_server_ends_up_holding_what_is_wanted(steps, refuses_order):
    protocol, wire, held, wanted = ClientProtocol(), [], set(), set()

    def answer():
        op, topic = wire.pop(0)
        if topic == "order" and refuses_order and op == "subscribe":
            refuse(protocol, "order is refused", topic)
            return
        assert (topic in held) == (op == "unsubscribe"), (
            "the server is never asked for what it holds, or to drop what it does not"
        )
        (held.add if op == "subscribe" else held.discard)(topic)
        assert not any(one != other and covers(one, other) for one in held for other in held)
        acknowledge(protocol, op, topic)

    def write():
        for op, topics in commands(protocol):
            wire.extend((op, topic) for topic in topics)

    for step, topic in steps:
        if topic == "order" and refuses_order and step in ("unsubscribe", "resync"):
            continue  # what a refusal means for later wishes has tests of its own
        if step == "subscribe":
            protocol.subscribe([topic])
            if not any(covers(other, topic) for other in wanted):
                wanted -= {other for other in wanted if covers(topic, other)}
                wanted.add(topic)
        elif step == "unsubscribe":
            protocol.unsubscribe([topic])
            wanted.discard(topic)
        elif step == "resync":
            protocol.resync(topic)
        elif step == "write":
            write()
        elif wire:
            answer()
    write()
    while wire:
        answer()
    if refuses_order:
        wanted.discard("order")
    assert held == wanted == protocol.subscriptions
    assert all(map(protocol.settled, TOPICS))
    assert commands(protocol) == []
