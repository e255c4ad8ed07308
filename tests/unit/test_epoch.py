"""Epochs: what begins one, what is told instead, and what is left out of what is sent."""

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.epoch import Preamble, unpacked
from service.model_table import NEWEST, ModelTable
from service.prefix import stateless
from storage import elements
from tests.unit.test_prefix import ADD, LOOK, THOUGHT, Session, asking, messages_bytes, text, user

MARK = {"type": "ephemeral"}
TAKES_SYSTEM = ModelTable().traits("claude-opus-5-5")
ADAPTIVE = {"type": "adaptive"}


def messages_of(body: bytes) -> list[Any]:
    sent: list[Any] = orjson.loads(body)["messages"]
    return sent


@given(st.tuples(st.binary(), st.binary(), st.binary()))
def test_a_preamble_is_read_as_it_was_stored(parts: tuple[bytes, bytes, bytes]) -> None:
    assert unpacked(Preamble(*parts).packed()) == parts
    assert unpacked(b"") == (b"", b"", b"")


def test_another_system_prompt_is_told_where_the_model_takes_that() -> None:
    session = Session(TAKES_SYSTEM)
    session.turn(asking("a", system="S"), THOUGHT, text("b"))
    body = session.turn(asking("c", system="T"), THOUGHT, text("d"))
    assert orjson.loads(body)["system"] == "S"
    assert messages_of(body)[2:] == [user("c"), {"role": "system", "content": "T"}]
    assert b"thinking" in messages_bytes(body)
    assert session.begun.epoch_start == 0
    assert session.history.system_json == b'"T"'
    assert elements.tells_system(session.history.elements[3])
    # It is in effect now: asked for again, or not mentioned, it is not told again.
    for again in (asking("e", system="T"), asking("g")):
        later = session.turn(again, text("f"))
        assert messages_bytes(later).startswith(messages_bytes(body) + b",")
        assert [message["role"] for message in messages_of(later)].count("system") == 1
    back = session.turn(asking("i", system="S"), text("j"))
    assert messages_of(back)[-1] == {"role": "system", "content": "S"}


def test_what_was_told_has_the_digest_of_the_message_before_it() -> None:
    session = Session(TAKES_SYSTEM)
    session.turn(asking("a", system="S"), text("b"))
    session.turn(asking("c", system="T"), text("d"))
    asked, told = (elements.unpack(element) for element in session.history.elements[2:4])
    assert told.digest == asked.digest


def test_a_rewind_takes_back_what_its_turn_told() -> None:
    session = Session(TAKES_SYSTEM)
    session.turn(asking("a", system="S"), text("b"))
    session.turn(asking("c", system="T"), text("d"))
    rewound = Session(TAKES_SYSTEM)
    rewound.history = replace(session.history, elements=session.history.elements[:2])
    rewound.begun = replace(session.begun, messages=2)
    assert messages_of(rewound.prepare(asking("c")).body)[-1] == {"role": "system", "content": "T"}
    assert len(messages_of(rewound.prepare(asking("c", system="S")).body)) == 3


def test_a_new_epoch_says_on_top_what_was_told_in_the_older_one() -> None:
    session = Session(TAKES_SYSTEM)
    session.turn(asking("a", system="S"), THOUGHT, text("b"))
    session.turn(asking("c", system="T"), THOUGHT, text("d"))
    body = session.turn(asking("e", tools=[ADD]), text("f"))
    assert orjson.loads(body)["system"] == "T"
    assert [message["role"] for message in messages_of(body)] == ["user", "assistant", "user", "assistant", "user"]
    assert b"thinking" not in messages_bytes(body)


def test_a_patched_system_prompt_is_the_one_that_a_turn_goes_by() -> None:
    for model, expected in ((TAKES_SYSTEM, "S"), (NEWEST, "P")):
        session = Session(model)
        session.turn(asking("a", system="S"), text("b"))
        session.history = replace(session.history, system_json=b'"P"')
        assert orjson.loads(session.prepare(asking("c")).body)["system"] == expected
        assert (session.prepare(asking("c")).epoch.told != b"") == (model is TAKES_SYSTEM)


@pytest.mark.parametrize("nothing", ["", []])
def test_no_system_prompt_any_more_begins_an_epoch(nothing: Any) -> None:
    session = Session(TAKES_SYSTEM)
    session.turn(asking("a", system="S"), text("b"))
    body = session.turn(asking("c", system=nothing), text("d"))
    assert "system" not in orjson.loads(body)
    assert session.begun.epoch_start == 2
    session.turn(asking("e", system=nothing), text("f"))
    assert session.begun.epoch_start == 2


def test_markers_for_the_cache_are_no_other_system_prompt_and_are_not_told() -> None:
    session = Session(TAKES_SYSTEM)
    marked = [{**text("S"), "cache_control": {"type": "ephemeral"}}]
    session.turn(asking("a", system=marked), text("b"))
    assert session.prepare(asking("c", system=[text("S")])).epoch.told == b""
    other = [{**text("T"), "cache_control": {"type": "ephemeral"}}]
    assert b"cache_control" not in session.prepare(asking("c", system=other)).epoch.told
    session.turn(asking("c", system=other), text("d"))
    assert session.prepare(asking("e", system=other)).epoch.told == b""


def test_no_marker_is_added_where_there_is_no_room_for_one() -> None:
    marked = [{**text(str(number)), "cache_control": {"type": "ephemeral"}} for number in range(4)]
    assert "cache_control" not in orjson.loads(Session().prepare(asking("a", system=marked)).body)
    assert "cache_control" in orjson.loads(Session().prepare(asking("a", system=marked[:3])).body)
    own = {"type": "ephemeral", "ttl": "1h"}
    assert orjson.loads(Session().prepare(asking("a", cache_control=own)).body)["cache_control"] == own


def test_thinking_rules_stay_with_the_session_while_the_model_does() -> None:
    session = Session()
    session.turn(asking("a", thinking=ADAPTIVE), THOUGHT, text("b"))
    body = session.turn(asking("c"), THOUGHT, text("d"))
    assert orjson.loads(body)["thinking"] == ADAPTIVE
    assert session.begun.epoch_start == 0
    assert "thinking" not in orjson.loads(session.prepare(asking("e", model="m-2")).body)


def test_other_thinking_rules_begin_an_epoch_but_another_display_does_not() -> None:
    session = Session()
    session.turn(asking("a", thinking=ADAPTIVE), THOUGHT, text("b"))
    assert session.prepare(asking("c", thinking={**ADAPTIVE, "display": "summarized"})).epoch.reasons == ()
    assert session.prepare(asking("c", thinking={"type": "disabled"})).epoch.reasons == ("thinking",)


def test_what_means_the_same_is_no_change_and_is_sent_as_it_was() -> None:
    session = Session()
    tool = {"name": "add", "description": "Adds.", "input_schema": {"type": "object", "properties": {}}}
    session.turn(asking("a", system="S", tools=[tool]), THOUGHT, text("b"))
    turned = {name: tool[name] for name in reversed(tool)}
    same = asking("c", system=[{**text("S"), "cache_control": MARK}], tools=[{**turned, "cache_control": MARK}])
    prepared = session.prepare(same)
    assert (prepared.epoch.reasons, prepared.preamble, prepared.system_json) == ((), b"", b"")
    assert orjson.loads(prepared.body)["system"] == "S"
    assert orjson.dumps([tool]) in prepared.body


def test_a_model_that_does_not_bind_its_thinking_keeps_it_unless_it_is_another_model() -> None:
    for model in ("claude-opus-5", "claude-sonnet-5"):
        session = Session(ModelTable().traits(model))
        session.turn(asking("a", model=model, system="S"), THOUGHT, text("b"))
        body = session.turn(asking("c", model=model, system="T", tools=[ADD]), text("d"))
        assert b'"thinking"' in messages_bytes(body)
        assert session.prepare(asking("e", model=model, tools=[LOOK])).epoch.reasons == ("tools",)
        assert b'"thinking"' not in messages_bytes(session.prepare(asking("e", model="m-2")).body)


def test_what_was_told_does_not_contradict_the_prompt_on_top() -> None:
    session = Session(ModelTable().traits("claude-opus-5"))
    session.turn(asking("a", system="S"), text("b"))
    session.turn(asking("c", system="T"), text("d"))
    body = session.prepare(asking("e", system="")).body
    assert "system" not in orjson.loads(body)
    assert all(message["role"] != "system" for message in messages_of(body))


def test_many_system_messages_are_placed_in_one_go() -> None:
    """Looked for anew each time, the answer behind them would keep a replica busy for minutes."""
    ask = asking("a")
    ask.messages.extend({"role": "system", "content": "s"} for _ in range(20_000))
    assert messages_of(stateless(ask, TAKES_SYSTEM))[-1]["role"] == "system"
    ask.messages.append(user("b"))
    assert {message["role"] for message in messages_of(stateless(ask, TAKES_SYSTEM))} == {"user"}


def test_a_system_message_of_more_than_text_stays_what_it_is() -> None:
    for message in (
        {"role": "system", "content": [{"type": "tool_removal"}]},
        {"role": "system", "content": "s", "clear_at": 1},
    ):
        ask = asking("a")
        ask.messages.append(message)
        assert messages_of(stateless(ask, NEWEST))[-1] == message


def test_the_reasons_of_an_epoch_are_named() -> None:
    session = Session()
    assert session.prepare(asking("a", system="S")).epoch.reasons == ()
    session.turn(asking("a", system="S"), text("b"))
    assert session.prepare(asking("c", model="m-2", system="T", tools=[ADD])).epoch.reasons == (
        "model",
        "tools",
        "system",
    )


def test_a_refused_signature_begins_an_epoch_for_good() -> None:
    session = Session()
    session.turn(asking("a"), THOUGHT, text("b"))
    body = session.turn(asking("c"), THOUGHT, text("d"), refused=True)
    assert b"thinking" not in messages_bytes(body)
    assert session.begun.epoch_start == 2
    later = session.turn(asking("e"), text("f"))
    assert messages_bytes(later).startswith(messages_bytes(body) + b",")
    assert b"thinking" in messages_bytes(later)


def test_a_system_message_is_a_users_where_no_answer_follows_it() -> None:
    """Claude said nothing, or what it said is left out: the role would be refused there."""
    session = Session(TAKES_SYSTEM)
    session.turn(asking("a", system="S"), text("b"))
    told = session.turn(asking("c", system="T"), THOUGHT)
    assert messages_of(told)[-1] == {"role": "system", "content": "T"}
    mid = {"role": "system", "content": "Now."}
    ask = asking("e", tools=[ADD])
    ask.messages.append(mid)
    session.turn(ask, THOUGHT)
    sent = messages_of(session.prepare(asking("g", tools=[LOOK])).body)
    assert [message["role"] for message in sent] == ["user", "assistant", "user", "user", "user", "user"]
    assert sent[4] == user([text("<system>\nNow.\n</system>")])


def test_a_system_message_is_a_users_for_a_model_that_does_not_take_the_role() -> None:
    mid = {"role": "system", "content": [text("Now"), text("louder.")]}
    marked = user([text("<system>\nNow\nlouder.\n</system>")])
    for model, expected in ((TAKES_SYSTEM, mid), (NEWEST, marked)):
        ask = asking("a")
        ask.messages.append(mid)
        session = Session(model)
        first = session.turn(ask, text("b"))
        assert messages_of(first) == [user("a"), expected]
        assert messages_bytes(session.turn(asking("c"), text("d"))).startswith(messages_bytes(first) + b",")
        assert messages_of(stateless(ask, model)) == [user("a"), expected]
