"""Calls and their results over the turns of a session: who answers what, what is closed, and what Baton puts in."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import transcript
from service.errors import BatonError
from service.simulator.rules import check_create
from service.tool_calls import check_whole, concerns, pack
from storage import elements

Json = dict[str, Any]


def user(content: Any) -> Json:
    return {"role": "user", "content": content}


def said(text: str) -> Json:
    return {"role": "assistant", "content": text}


def text(words: str) -> Json:
    return {"type": "text", "text": words}


def calling(*ids: str) -> Json:
    calls = [{"type": "tool_use", "id": call, "name": "look", "input": {}} for call in ids]
    return {"role": "assistant", "content": [text("Hm."), *calls]}


def result(call: str, words: str = "seen") -> Json:
    return {"type": "tool_result", "tool_use_id": call, "content": words}


def results(*ids: str) -> Json:
    return user([result(call) for call in ids])


def stored(*messages: Json) -> list[bytes]:
    """A history that came message by message."""
    packed: list[bytes] = []
    for message in messages:
        packed += pack(packed, [message], last_digest(packed))
    return packed


def last_digest(packed: list[bytes]) -> bytes:
    return packed[-1][1 : elements.HEADER_BYTES] if packed else elements.FIRST_DIGEST


def behind(history: list[bytes], *messages: Json) -> list[elements.Element]:
    return [elements.unpack(element) for element in pack(history, list(messages), last_digest(history))]


def told(packed: list[elements.Element]) -> list[Any]:
    """The messages of elements; of one that Baton made, the calls it closes."""
    found: list[Any] = []
    for element in packed:
        message = orjson.loads(element.json)
        if not element.synthetic:
            found.append(message)
            continue
        assert message["role"] == "user"
        assert all(block["is_error"] and block["content"].strip() for block in message["content"])
        assert {block["type"] for block in message["content"]} == {"tool_result"}
        found.append([block["tool_use_id"] for block in message["content"]])
    return found


def test_what_has_nothing_to_do_with_tools_is_packed_as_ever() -> None:
    messages = [user("a"), said("b"), user([text("c")])]
    assert pack([], messages, elements.FIRST_DIGEST) == transcript.pack(messages, elements.FIRST_DIGEST)
    assert stored(*messages) == transcript.pack(messages, elements.FIRST_DIGEST)


def test_results_answer_the_calls_of_the_last_stored_message() -> None:
    history = stored(user("a"), calling("x", "y"))
    for messages in ([results("x", "y")], [results("y", "x"), user("b")], [results("x"), results("y")]):
        assert told(behind(history, *messages)) == messages
    both = user([result("x"), result("y"), text("and now?")])
    assert told(behind(history, both)) == [both]


@pytest.mark.parametrize(
    ("messages", "closed"),
    [
        ([user("never mind")], ["x", "y"]),
        ([results("y")], ["x"]),
        ([results("x"), user("go on")], ["y"]),
        ([user([result("y"), text("go on")])], ["x"]),
    ],
)
def test_calls_without_a_result_are_closed_in_front_of_what_is_said(messages: list[Json], closed: list[str]) -> None:
    history = stored(user("a"), calling("x", "y"))
    packed = behind(history, *messages)
    assert told(packed) == [closed, *messages]
    assert packed[0].synthetic
    assert not packed[0].holds_thinking


def test_the_digests_are_those_of_what_callers_see() -> None:
    seen = [user("a"), calling("x"), user("never mind"), said("b"), user("c")]
    packed = stored(*seen)
    made = [elements.unpack(element) for element in packed]
    assert [element.synthetic for element in made] == [False, False, True, False, False, False]
    plain = [elements.unpack(element) for element in transcript.pack(seen, elements.FIRST_DIGEST)]
    assert [element.digest for element in made if not element.synthetic] == [element.digest for element in plain]
    assert made[2].digest == made[1].digest


def test_calls_among_new_messages_are_closed_too() -> None:
    messages = [user("a"), calling("x"), user("b"), calling("y", "z"), results("z"), said("c"), user("d")]
    assert told(behind([], *messages)) == [*messages[:2], ["x"], messages[2], messages[3], ["y"], *messages[4:]]


def test_the_last_message_may_leave_its_calls_open() -> None:
    messages = [user("a"), calling("x")]
    assert told(behind([], *messages)) == messages
    assert told(behind(stored(*messages), results("x"))) == [results("x")]


def refusal(history: list[bytes], *messages: Json) -> str:
    with pytest.raises(BatonError) as caught:
        behind(history, *messages)
    assert caught.value.param == "messages"
    assert caught.value.status == (409 if caught.value.code == "tool_call_closed" else 400)
    return caught.value.code


def test_a_second_or_late_result_is_refused_as_closed() -> None:
    answered = stored(user("a"), calling("x"), results("x"), said("b"))
    went_on = stored(user("a"), calling("x"), user("never mind"), said("b"))
    in_part = stored(user("a"), calling("x", "y"), results("y"), said("b"))
    for history in (answered, went_on, in_part):
        assert refusal(history, results("x")) == "tool_call_closed"
        assert refusal([*history, *stored(user("c"))], results("x")) == "tool_call_closed"
    assert refusal(answered, user("c"), said("d"), results("x")) == "tool_call_closed"


def test_a_result_of_a_call_that_never_was_is_another_thing() -> None:
    for history in ([], stored(user("a")), stored(user("a"), calling("x")), stored(user("the call z"), said("z"))):
        assert refusal(history, results("z")) == "invalid_value"
    assert refusal(stored(user("a"), calling("x")), results("x", "z")) == "invalid_value"


def test_results_are_one_for_each_call_and_come_first() -> None:
    history = stored(user("a"), calling("x", "y"))
    assert refusal(history, results("x", "x")) == "invalid_value"
    assert refusal(history, results("x"), results("x")) == "invalid_value"
    assert refusal(history, user("well"), results("x")) == "invalid_value"
    assert refusal(history, user([text("well"), result("x")])) == "invalid_value"


def test_the_assistant_cannot_go_on_before_the_results() -> None:
    assert refusal(stored(user("a"), calling("x")), said("b"), user("c")) == "invalid_value"
    assert refusal([], user("a"), calling("x"), calling("y"), user("c")) == "invalid_value"


def test_a_call_has_an_id_of_its_own() -> None:
    history = stored(user("a"), calling("x"), results("x"), said("b"))
    assert refusal(history, user("c"), calling("x"), results("x")) == "invalid_value"
    assert refusal([], user("a"), calling("x", "x"), results("x")) == "invalid_value"
    assert refusal([], user("a"), calling("x"), results("x"), calling("x"), results("x")) == "invalid_value"


@pytest.mark.parametrize("kept", [2, 3, 4, 5])
def test_a_history_that_was_cut_between_results_goes_on(kept: int) -> None:
    """As that of a fork may be."""
    asked = stored(user("a"), calling("x", "y", "z"))
    whole = [*asked, *pack(asked, [results("y"), results("z"), user("b")], last_digest(asked))]
    assert told([elements.unpack(whole[2])]) == [["x"]]
    history = whole[:kept]
    closed = {2: ["x", "y", "z"], 3: ["y", "z"], 4: ["z"], 5: []}[kept]
    expected = [*([closed] if closed else []), user("go on")]
    assert told(behind(history, user("go on"))) == expected
    if closed:
        assert told(behind(history, results(*closed))) == [results(*closed)]
        assert refusal(history, results("w")) == "invalid_value"


def test_when_the_whole_history_must_be_known() -> None:
    plain, open_call = stored(user("a"))[-1], stored(user("a"), calling("x"))[-1]
    assert not concerns(plain, [user("b"), said("c"), user([text('the "tool_use" of tools')])])
    assert concerns(open_call, [user("b")])
    assert concerns(stored(user("a"), calling("x"), results("x"))[-1], [user("b")])
    assert concerns(plain, [user("b"), calling("y")])
    assert concerns(plain, [results("x")])


def test_a_conversation_that_is_not_stored_must_be_whole() -> None:
    check_whole([user("a"), calling("x", "y"), results("x"), results("y"), user("b")])
    check_whole([user("a"), said("b"), user("c")])
    for messages in (
        [user("a"), calling("x"), user("b")],
        [user("a"), calling("x", "y"), results("x")],
        [results("x")],
        [user("a"), calling("x"), results("x", "x")],
        [user("a"), calling("x"), results("x"), calling("x"), results("x")],
    ):
        with pytest.raises(BatonError) as caught:
            check_whole(messages)
        assert caught.value.code == "invalid_value"


TURNS = st.lists(
    st.tuples(st.sampled_from(["ask", "answer all", "answer some", "go on"]), st.integers(0, 3)), min_size=1, max_size=8
)


@given(TURNS)
def test_whatever_callers_answer_claude_takes_the_conversation(turns: list[tuple[str, int]]) -> None:
    """Each turn: something is asked or answered, in part or not at all, and Claude makes so many calls."""
    history: list[bytes] = []
    waiting: list[str] = []
    for number, (kind, calls) in enumerate(turns):
        asked = [user(f"question {number}")]
        if waiting and kind.startswith("answer"):
            asked = [results(*(waiting if kind == "answer all" else waiting[:1]))]
            asked += [user("go on")] if number % 2 else []
        history += pack(history, asked, last_digest(history))
        tools = [{"name": "look", "input_schema": {"type": "object"}}]
        sent = [orjson.loads(elements.unpack(element).json) for element in history]
        check_create({"model": "claude-sonnet-5-5", "max_tokens": 9, "messages": sent, "tools": tools})
        waiting = [f"call_{number}_{index}" for index in range(calls)]
        history += pack(history, [calling(*waiting) if waiting else said("Well.")], last_digest(history))
