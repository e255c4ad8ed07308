"""The stand-in's tools: what it refuses, what it calls, and how it tells a call."""

import json
from typing import Any

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from service.simulator import calls, events, rules
from service.simulator.errors import ApiError
from tests.unit.simulated import Json, read_events, reply_to, stream_text, user

NEWEST = "claude-sonnet-5-5"  # lets itself not be forced
FORCEABLE = "claude-sonnet-5"
ADD: Json = {"name": "add", "description": "Adds.", "input_schema": {"type": "object", "properties": {}}}
LOOK: Json = {"name": "look", "input_schema": {"type": "object"}, "strict": True}


def called(*ids: str) -> Json:
    return {
        "role": "assistant",
        "content": [{"type": "tool_use", "id": call, "name": "look", "input": {}} for call in ids],
    }


def results(*ids: str, text: str = "seen") -> Json:
    return user([{"type": "tool_result", "tool_use_id": call, "content": text} for call in ids])


def request(*messages: Json, model: str = FORCEABLE, **fields: Any) -> Json:
    asked = list(messages) or [user("hello")]
    return {"model": model, "max_tokens": 1000, "tools": [ADD, LOOK], "messages": asked, **fields}


def without_tools(*messages: Json, **fields: Any) -> Json:
    return {name: value for name, value in request(*messages, **fields).items() if name != "tools"}


def tool(**changes: Any) -> Json:
    return request(tools=[{**ADD, **changes}])


REFUSED: list[tuple[str, Json, str]] = [
    ("a tool without a name", request(tools=[{"input_schema": {"type": "object"}}]), "tools.0.custom.name: Field"),
    ("a name with a dot", tool(name="a.b"), "tools.0.custom.name: String should match pattern"),
    ("a name too long", tool(name="a" * 129), "tools.0.custom.name: String should match pattern"),
    ("a name of another type", tool(name=5), "tools.0.custom.name: Input should be a valid string"),
    ("an array as schema", tool(input_schema={"type": "array"}), "tools.0.custom.input_schema.type: "),
    ("a schema without a type", tool(input_schema={}), "tools.0.custom.input_schema.type: "),
    ("OpenAI's form", request(tools=[{"type": "function", "function": {}}]), "tools.0: Input tag"),
    ("OpenAI's field", tool(parameters={}), "tools.0.custom.parameters: Extra inputs"),
    ("a word as strict", tool(strict="yes"), "tools.0.custom.strict: Input should be a valid boolean"),
    ("a choice of a wrong type", request(tool_choice="auto"), "tool_choice: Input should be an object"),
    ("an unknown choice", request(tool_choice={"type": "required"}), "tool_choice.type: "),
    ("a choice without a type", request(tool_choice={}), "tool_choice.type: "),
    ("a choice that says more", request(tool_choice={"type": "auto", "name": "add"}), "tool_choice.auto.name: Extra"),
    (
        "none in parallel",
        request(tool_choice={"type": "none", "disable_parallel_tool_use": True}),
        "tool_choice.none.disable_parallel_tool_use: Extra inputs",
    ),
    (
        "parallel of a wrong type",
        request(tool_choice={"type": "auto", "disable_parallel_tool_use": 1}),
        "tool_choice.auto.disable_parallel_tool_use: ",
    ),
    ("a choice among none", without_tools(tool_choice={"type": "none"}), "tool_choice.none may only be specified"),
    ("a choice among an empty list", request(tools=[], tool_choice={"type": "any"}), "tool_choice.any may only be"),
    ("a tool that is not there", request(tool_choice={"type": "tool", "name": "sub"}), "Tool 'sub' not found"),
    ("a tool without a name", request(tool_choice={"type": "tool"}), "tool_choice.tool.name: Field required"),
    ("any of a model that refuses", request(model=NEWEST, tool_choice={"type": "any"}), 'tool_choice: type "tool"'),
    (
        "a tool of a model that refuses",
        request(model=NEWEST, tool_choice={"type": "tool", "name": "add"}),
        'tool_choice: type "tool"',
    ),
    (
        "calls in the history without tools",
        without_tools(user("x"), called("a"), results("a")),
        "Requests which include `tool_use` or `tool_result` blocks must define tools.",
    ),
    ("an empty list for these", request(user("x"), called("a"), results("a"), tools=[]), "Requests which include"),
    ("a call id with a colon", request(user("x"), called("a:1"), results("a:1")), "messages.1.content.0.tool_use.id: "),
    ("a result's id with a dot", request(user("x"), called("a"), results("a.b")), "messages.2.content.0.tool_result."),
    ("one of two results", request(user("x"), called("a", "b"), results("a")), "messages.1.content.1: `tool_use` ids"),
    ("a result twice", request(user("x"), called("a"), results("a", "a")), "messages.2.content.1: unexpected"),
    ("a result of another", request(user("x"), called("a"), results("a", "b")), "messages.2.content.1: unexpected"),
]


@pytest.mark.parametrize(("body", "message"), [pytest.param(b, m, id=i) for i, b, m in REFUSED])
def test_refuses(body: Json, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        rules.check_create(body)
    assert (caught.value.status, caught.value.message[: len(message)]) == (400, message)


ACCEPTED: list[tuple[str, Json]] = [
    (
        "tools of all forms",
        request(tools=[ADD, {**LOOK, "type": "custom", "cache_control": None}, {"type": "web_search_20260101"}]),
    ),
    ("any", request(tool_choice={"type": "any", "disable_parallel_tool_use": False})),
    ("a tool", request(tool_choice={"type": "tool", "name": "add", "disable_parallel_tool_use": True})),
    ("auto of the newest", request(model=NEWEST, tool_choice={"type": "auto", "disable_parallel_tool_use": True})),
    ("none of the newest", request(model=NEWEST, tool_choice={"type": "none"})),
    ("two results in one message", request(user("x"), called("a", "b"), results("b", "a"))),
    ("two results in two messages", request(user("x"), called("a", "b"), results("b"), results("a"), user("y"))),
]


@pytest.mark.parametrize("body", [pytest.param(b, id=i) for i, b in ACCEPTED])
def test_accepts(body: Json) -> None:
    assert rules.check_create(body).prompt.tokens > 0


def decided(body: Json) -> list[tuple[str, Json]]:
    rules.check_create(body)
    return [(call.name, call.input) for call in calls.decide(body)]


DECIDED: list[tuple[str, Json, list[tuple[str, Json]]]] = [
    ("nothing", request(user("add one and two")), []),
    (
        "one",
        request(user('Please call add with {"a": 1, "b": {"c": [2, "}"]}} now')),
        [("add", {"a": 1, "b": {"c": [2, "}"]}})],
    ),
    ("without input", request(user("Call look.")), [("look", {})]),
    (
        "two",
        request(user('call add with {"a": 1} and call look, then call add')),
        [("add", {"a": 1}), ("look", {}), ("add", {})],
    ),
    ("a broken input", request(user('call add with {"a": and call look')), [("look", {})]),
    ("an unknown tool", request(user("call sub, call Add")), []),
    ("no tools", without_tools(user("call add")), []),
    ("over two messages", request(user("call add"), user("and call look")), [("add", {}), ("look", {})]),
    ("only the last turn", request(user("call add"), {"role": "assistant", "content": "no"}, user("why?")), []),
    ("not what a result says", request(user("x"), called("a"), results("a", text="call add")), []),
    ("beside a result", request(user("x"), called("a"), results("a"), user("call add")), [("add", {})]),
    ("none", request(user("call add"), tool_choice={"type": "none"}), []),
    ("forced", request(tool_choice={"type": "any"}), [("add", {})]),
    ("forced and asked", request(user("call look"), tool_choice={"type": "any"}), [("look", {})]),
    ("one tool", request(user("call add"), tool_choice={"type": "tool", "name": "look"}), [("look", {})]),
    (
        "one tool, asked",
        request(user('call add, call look with {"x": 1}'), tool_choice={"type": "tool", "name": "look"}),
        [("look", {"x": 1})],
    ),
    (
        "one at a time",
        request(user("call look, call add"), tool_choice={"type": "auto", "disable_parallel_tool_use": True}),
        [("look", {})],
    ),
]


@pytest.mark.parametrize(("body", "expected"), [pytest.param(b, e, id=i) for i, b, e in DECIDED])
def test_decides(body: Json, expected: list[tuple[str, Json]]) -> None:
    assert decided(body) == expected


def test_ids_are_unique_in_a_conversation_and_the_same_for_the_same_request() -> None:
    first = request(user("call add, call add"))
    ids = [call.id for call in calls.decide(first)]
    assert len(set(ids)) == 2
    assert [call.id for call in calls.decide(first)] == ids
    later = request(user("call add, call add"), called(*ids), results(*ids), user("call add, call add"))
    assert len({*ids, *(call.id for call in calls.decide(later))}) == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("call add", ""),
        ("count to 3, then call add", "1 2 3"),
        ("my name is Ada. What is my name? Then call add", "Your name is Ada."),
        ("call add [mark:a]", "[seen:a] [after:none]"),
        ("count to 2 and call add [mark:a]", "1 2 [seen:a] [after:none]"),
    ],
)
def test_words_ahead_of_calls(text: str, said: str) -> None:
    reply = reply_to(request(user(text)))
    assert ("".join(reply.text), len(reply.calls), reply.stop_reason) == (said, 1, "tool_use")


def inputs(parsed: list[Json]) -> dict[int, str]:
    """The input of each block as it was streamed."""
    joined: dict[int, str] = {}
    for event in parsed:
        if event["type"] == "content_block_start" and event["content_block"]["type"] == "tool_use":
            joined[event["index"]] = ""
        elif event["type"] == "content_block_delta" and event["delta"]["type"] == "input_json_delta":
            joined[event["index"]] += event["delta"]["partial_json"]
    return joined


def test_the_events_of_calls_are_those_the_sdk_knows() -> None:
    reply = reply_to(request(user('count to 2, call add with {"numbers": [1, 2], "é": "ü"}, call look')))
    adapter: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)
    parsed = read_events(stream_text(reply))
    for event in parsed:
        if event["type"] != "ping":
            assert adapter.validate_python(event).to_dict(mode="json", exclude_unset=True) == event
    assert [e["index"] for e in parsed if e["type"] == "content_block_start"] == [0, 1, 2]
    assert {index: json.loads(said or "{}") for index, said in inputs(parsed).items()} == {
        1: {"numbers": [1, 2], "é": "ü"},
        2: {},
    }
    assert parsed[-2]["delta"]["stop_reason"] == "tool_use"
    whole = events.message(reply)
    assert Message.model_validate(whole).to_dict(mode="json", exclude_unset=True) == whole
    assert [block["type"] for block in whole["content"]] == ["text", "tool_use", "tool_use"]


@given(st.integers(1, 40))
def test_max_tokens_cuts_at_a_piece_wherever_it_falls(budget: int) -> None:
    asked = user('count to 3, call add with {"a": "some words"}, call look with {"b": 12345678}')
    whole, cut = reply_to(request(asked)), reply_to(request(asked, max_tokens=budget))
    deltas = len(whole.text) + sum(len(call.pieces) for call in whole.calls)
    assert cut.output_tokens == min(budget, deltas)
    assert cut.stop_reason == ("tool_use" if budget >= deltas else "max_tokens")
    for mine, theirs in zip(cut.calls, whole.calls, strict=False):
        assert theirs.pieces[: len(mine.pieces)] == mine.pieces
    assert sum(len(call.pieces) for call in cut.calls) == max(0, min(budget, deltas) - len(whole.text))


def test_a_stop_sequence_in_the_words_ahead_leaves_the_calls_out() -> None:
    reply = reply_to(request(user("count to 5, then call add"), stop_sequences=["3"]))
    assert (reply.calls, reply.stop_reason) == ((), "stop_sequence")
