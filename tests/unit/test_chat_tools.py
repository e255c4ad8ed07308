"""Tools in a chat request: the openai SDK's own types in, the anthropic SDK's own types out, and every place named."""

import json
from typing import Any

import pytest
from anthropic.types import MessageParam, ToolChoiceParam, ToolParam
from openai.types.chat import (
    ChatCompletionMessageParam,
    ChatCompletionToolChoiceOptionParam,
    ChatCompletionToolUnionParam,
)
from pydantic import TypeAdapter

from service.dialects import chat
from service.dialects.chat import ChatRequest
from service.errors import BatonError
from service.model_table import ModelTable

Json = dict[str, Any]
HELLO: Json = {"role": "user", "content": "Hello"}
NO_YES_OR_NO: list[Any] = [0, 1, "no", []]
SCHEMA: Json = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
NAMED: Json = {"type": "function", "function": {"name": "weather"}}


def parse(**fields: Any) -> ChatRequest:
    return chat.parse(
        {"messages": [HELLO], **fields}, default_model="claude-default", aliases={}, model_of=ModelTable().model
    )


def refused(**fields: Any) -> tuple[str, str | None]:
    with pytest.raises(BatonError) as caught:
        parse(**fields)
    assert caught.value.status == 400
    assert len(caught.value.message) < 300
    return caught.value.code, caught.value.param


def tool(name: str = "weather", **function: Any) -> Json:
    return {"type": "function", "function": {"name": name, **function}}


def call(call_id: str = "call_1", name: str = "weather", arguments: Any = "{}", **more: Any) -> Json:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}, **more}


def calling(*calls: Any, content: Any = None, **more: Any) -> Json:
    return {"role": "assistant", "content": content, "tool_calls": list(calls), **more}


def result(content: Any = "sunny", call_id: Any = "call_1", **more: Any) -> Json:
    return {"role": "tool", "tool_call_id": call_id, "content": content, **more}


def messages_of(*messages: Json) -> list[Json]:
    """The messages as Claude gets them; both sides are what their SDKs know."""
    TypeAdapter(list[ChatCompletionMessageParam]).validate_python(list(messages))
    parsed = parse(messages=list(messages)).ask.messages
    TypeAdapter(list[MessageParam]).validate_python(parsed)
    return parsed


# Tools and the choice among them.

DEFINITIONS: list[tuple[Json, Json]] = [
    (tool(), {"name": "weather", "input_schema": {"type": "object", "properties": {}}}),
    (
        tool(description="Tells it.", parameters=SCHEMA, strict=True),
        {"name": "weather", "description": "Tells it.", "input_schema": SCHEMA, "strict": True},
    ),
    (tool(strict=False, parameters={}), {"name": "weather", "input_schema": {"type": "object"}, "strict": False}),
    (
        tool(description=None, parameters=None, strict=None),
        {"name": "weather", "input_schema": {"type": "object", "properties": {}}},
    ),
    (
        tool(description="", parameters={"properties": {}, "additionalProperties": False}),
        {
            "name": "weather",
            "description": "",
            "input_schema": {"type": "object", "properties": {}, "additionalProperties": False},
        },
    ),
    (tool("a-Z_09" * 21), {"name": "a-Z_09" * 21, "input_schema": {"type": "object", "properties": {}}}),
]


@pytest.mark.parametrize(("given", "expected"), DEFINITIONS)
def test_tools(given: Json, expected: Json) -> None:
    if None not in given["function"].values():
        TypeAdapter(ChatCompletionToolUnionParam).validate_python(given)
    request = parse(tools=[given])
    assert request.ask.tools == [expected]
    assert (request.ask.tool_choice, request.ignored) == (None, [])
    TypeAdapter(ToolParam).validate_python(expected)


def test_tools_keep_their_order_and_there_may_be_128() -> None:
    names = [f"tool_{n}" for n in range(128)]
    tools = parse(tools=[tool(name) for name in names]).ask.tools
    assert [one["name"] for one in tools or ()] == names


@pytest.mark.parametrize(
    ("tools", "code", "param"),
    [
        ({}, "invalid_value", "tools"),
        ("weather", "invalid_value", "tools"),
        ([tool(f"tool_{n}") for n in range(129)], "invalid_value", "tools"),
        (["weather"], "invalid_value", "tools.0"),
        ([None], "invalid_value", "tools.0"),
        ([{}], "invalid_value", "tools.0.type"),
        ([{"type": ["function"]}], "invalid_value", "tools.0.type"),
        ([{"type": "custom", "custom": {"name": "weather"}}], "unsupported", "tools.0.type"),
        ([tool(), {"type": "web_search"}], "unsupported", "tools.1.type"),
        ([{"type": "function"}], "invalid_value", "tools.0.function"),
        ([{"type": "function", "function": "weather"}], "invalid_value", "tools.0.function"),
        ([{**tool(), "cache_control": {"type": "ephemeral"}}], "unknown_field", "tools.0.cache_control"),
        ([tool(returns={})], "unknown_field", "tools.0.function.returns"),
        *(([tool(name)], "invalid_value", "tools.0.function.name") for name in ("", "a b", "a.b", "ä", "a" * 129)),
        *(
            ([{"type": "function", "function": {"name": name}}], "invalid_value", "tools.0.function.name")
            for name in (None, 5)
        ),
        ([tool(), tool("other"), tool()], "invalid_value", "tools.2.function.name"),
        ([tool(description=5)], "invalid_value", "tools.0.function.description"),
        ([tool(strict="yes")], "invalid_value", "tools.0.function.strict"),
        ([tool(parameters=[])], "invalid_value", "tools.0.function.parameters"),
        ([tool(parameters={"type": "array"})], "invalid_value", "tools.0.function.parameters"),
        ([tool(parameters={"type": None})], "invalid_value", "tools.0.function.parameters"),
    ],
    ids=str,
)
def test_bad_tools(tools: Any, code: str, param: str) -> None:
    assert refused(tools=tools) == (code, param)


CHOICES: list[tuple[Json, Json | None]] = [
    ({"tool_choice": "auto"}, None),
    ({"tool_choice": "none"}, {"type": "none"}),
    ({"tool_choice": "required"}, {"type": "any"}),
    ({"tool_choice": NAMED}, {"type": "tool", "name": "weather"}),
    ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
    ({"parallel_tool_calls": True}, None),
    ({"tool_choice": "none", "parallel_tool_calls": False}, {"type": "none"}),
    ({"tool_choice": "required", "parallel_tool_calls": False}, {"type": "any", "disable_parallel_tool_use": True}),
    (
        {"tool_choice": NAMED, "parallel_tool_calls": False},
        {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
    ),
    ({"tool_choice": None, "parallel_tool_calls": None}, None),
]


@pytest.mark.parametrize(("fields", "expected"), CHOICES)
@pytest.mark.parametrize("tools", [None, [tool()]], ids=["as-stored", "given"])
def test_choices(fields: Json, expected: Json | None, tools: Any) -> None:
    if fields.get("tool_choice") is not None:
        TypeAdapter(ChatCompletionToolChoiceOptionParam).validate_python(fields["tool_choice"])
    request = parse(tools=tools, **fields)
    assert request.ask.tool_choice == expected
    assert "tool_choice" not in request.ask.params
    if expected is not None:
        TypeAdapter(ToolChoiceParam).validate_python(expected)


@pytest.mark.parametrize("choice", [None, "auto", "none"])
def test_an_empty_list_of_tools_means_none_this_time(choice: str | None) -> None:
    request = parse(tools=[], tool_choice=choice, parallel_tool_calls=False)
    assert (request.ask.tools, request.ask.tool_choice) == (None, {"type": "none"})


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"tool_choice": "any"}, "invalid_value", "tool_choice"),
        ({"tool_choice": ""}, "invalid_value", "tool_choice"),
        ({"tool_choice": ["none"]}, "invalid_value", "tool_choice"),
        ({"tool_choice": {}}, "invalid_value", "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "invalid_value", "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "weather"}}, "invalid_value", "tool_choice"),
        ({"tool_choice": {**NAMED, "mode": "auto"}}, "invalid_value", "tool_choice"),
        ({"tool_choice": {"type": "function", "function": "weather"}}, "invalid_value", "tool_choice.function"),
        ({"tool_choice": {"type": "function", "function": {}}}, "invalid_value", "tool_choice.function"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "a b"}}},
            "invalid_value",
            "tool_choice.function.name",
        ),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "unsupported", "tool_choice"),
        ({"tool_choice": {"type": "custom", "custom": {"name": "weather"}}}, "unsupported", "tool_choice"),
        ({"tools": [tool("other")], "tool_choice": NAMED}, "invalid_value", "tool_choice"),
        ({"tools": [], "tool_choice": NAMED}, "invalid_value", "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "invalid_value", "tool_choice"),
        *(({"parallel_tool_calls": value}, "invalid_value", "parallel_tool_calls") for value in NO_YES_OR_NO),
    ],
    ids=str,
)
def test_bad_choices(fields: Json, code: str, param: str) -> None:
    assert refused(**fields) == (code, param)


# Calls and results among the messages.


def test_calls_become_blocks_behind_the_text() -> None:
    arguments = json.dumps({"city": "Zürich", "days": [1, {"a": None}]})
    said = calling(call("call_1", arguments=arguments), call("call-2"), content="Let me see.")
    assert messages_of(HELLO, said, result(), result("rain", "call-2"), HELLO) == [
        HELLO,
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Let me see."},
                {
                    "type": "tool_use",
                    "id": "call_1",
                    "name": "weather",
                    "input": {"city": "Zürich", "days": [1, {"a": None}]},
                },
                {"type": "tool_use", "id": "call-2", "name": "weather", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": "sunny"},
                {"type": "tool_result", "tool_use_id": "call-2", "content": "rain"},
            ],
        },
        HELLO,
    ]


@pytest.mark.parametrize("content", [None, "", " \n", [], [{"type": "text", "text": ""}]])
def test_calls_without_text_are_calls_alone(content: Any) -> None:
    parsed = parse(messages=[HELLO, calling(call(), content=content), result()]).ask.messages
    assert [block["type"] for block in parsed[1]["content"]] == ["tool_use"]


def test_content_may_be_absent_beside_calls_and_parts_stay_parts() -> None:
    absent = {"role": "assistant", "tool_calls": [call()]}
    assert messages_of(HELLO, absent, result())[1]["content"][0]["type"] == "tool_use"
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert messages_of(HELLO, calling(call(), content=parts), result())[1]["content"][:2] == parts


def test_each_round_of_a_loop_has_its_results() -> None:
    parsed = messages_of(HELLO, calling(call("a")), result("1", "a"), calling(call("b")), result("2", "b"))
    assert [message["role"] for message in parsed] == ["user", "assistant", "user", "assistant", "user"]
    assert [block["tool_use_id"] for message in parsed[2::2] for block in message["content"]] == ["a", "b"]


def test_a_request_may_be_results_alone_whose_calls_the_session_has() -> None:
    system = {"role": "system", "content": "Be brief."}
    request = parse(messages=[system, result("1", "a"), result("2", "b"), HELLO])
    assert request.ask.system == "Be brief."
    assert request.ask.messages[0]["content"] == [
        {"type": "tool_result", "tool_use_id": "a", "content": "1"},
        {"type": "tool_result", "tool_use_id": "b", "content": "2"},
    ]
    assert request.ask.messages[1:] == [HELLO]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("sunny", "sunny"),
        (" kept as it is\n", " kept as it is\n"),
        (
            [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        ),
        ([{"type": "text", "text": ""}, {"type": "text", "text": "b"}], [{"type": "text", "text": "b"}]),
        ("", None),
        (" \n", None),
        ([], None),
        ([{"type": "text", "text": ""}], None),
    ],
)
def test_what_a_result_says(content: Any, expected: Any) -> None:
    (block,) = messages_of(HELLO, calling(call()), result(content))[2]["content"]
    assert block.get("content") == expected
    assert ("content" in block) == (expected is not None)


def test_what_sdk_helpers_leave_in_a_call_is_passed_over() -> None:
    made = {**call(), "index": 0}
    made["function"] = {**made["function"], "parsed_arguments": {"city": "Bern"}}
    said = {"role": "assistant", "content": None, "refusal": None, "parsed": None, "tool_calls": [made]}
    request = parse(messages=[HELLO, said, result(name="weather")])
    assert request.ask.messages[1]["content"] == [{"type": "tool_use", "id": "call_1", "name": "weather", "input": {}}]
    assert request.ignored == ["messages.name"]


DEEP = '{"a": ' + "[" * 300 + "]" * 300 + "}"
NO_ARGUMENTS: list[Any] = [None, {}, "", "{", "[]", "null", '"x"', "{'a': 1}", '{"a": NaN}', DEEP]


@pytest.mark.parametrize(
    ("calls", "param"),
    [
        ({}, "messages.1.tool_calls"),
        ("weather", "messages.1.tool_calls"),
        ([call(), call()], "messages.1.tool_calls"),
        (["weather"], "messages.1.tool_calls.0"),
        ([{**call(), "type": None}], "messages.1.tool_calls.0.type"),
        ([call(), call("")], "messages.1.tool_calls.1.id"),
        *(([call(call_id)], "messages.1.tool_calls.0.id") for call_id in ("a:1", "a b", "a\n", "a" * 257)),
        ([{"type": "function", "function": {"name": "f", "arguments": "{}"}}], "messages.1.tool_calls.0.id"),
        ([{**call(), "function": None}], "messages.1.tool_calls.0.function"),
        ([call(name="a b")], "messages.1.tool_calls.0.function.name"),
        ([{"id": "a", "type": "function", "function": {"arguments": "{}"}}], "messages.1.tool_calls.0.function.name"),
        *(([call(arguments=arguments)], "messages.1.tool_calls.0.function.arguments") for arguments in NO_ARGUMENTS),
    ],
    ids=lambda value: str(value)[:60],
)
def test_bad_calls(calls: Any, param: str) -> None:
    said = {"role": "assistant", "content": "x", "tool_calls": calls}
    assert refused(messages=[HELLO, said, HELLO]) == ("invalid_value", param)


@pytest.mark.parametrize(
    ("one", "code", "param"),
    [
        ({**call(), "type": "custom", "custom": {"name": "f", "input": "x"}}, "unsupported", "type"),
        ({**call(), "custom": {"name": "f", "input": "x"}}, "unsupported", "custom"),
        ({**call(), "caller": {"type": "direct"}}, "unknown_field", "caller"),
        (
            {**call(), "function": {"name": "f", "arguments": "{}", "output": "x"}},
            "unknown_field",
            "function.output",
        ),
    ],
)
def test_calls_that_say_more_are_refused(one: Any, code: str, param: str) -> None:
    assert refused(messages=[HELLO, calling(one), HELLO]) == (code, f"messages.1.tool_calls.0.{param}")


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([HELLO, result()], "messages.1.tool_call_id"),
        ([HELLO, {"role": "assistant", "content": "x"}, result()], "messages.2.tool_call_id"),
        ([HELLO, calling(call()), HELLO, result()], "messages.3.tool_call_id"),
        ([HELLO, calling(call()), result(call_id="call_2")], "messages.2.tool_call_id"),
        ([HELLO, calling(call()), result(), result()], "messages.3.tool_call_id"),
        (
            [HELLO, calling(call("a")), result(call_id="a"), calling(call("b")), result(call_id="a")],
            "messages.4.tool_call_id",
        ),
        ([result(call_id="a"), result(call_id="a")], "messages.1.tool_call_id"),
        ([result(call_id="a"), HELLO, result(call_id="b")], "messages.2.tool_call_id"),
        *(([result(call_id=call_id)], "messages.0.tool_call_id") for call_id in (None, 5, "", "a.b", "a" * 257)),
        ([{"role": "tool", "content": "x"}], "messages.0.tool_call_id"),
        ([result(None)], "messages.0.content"),
        ([result(5)], "messages.0.content"),
        ([result({"temperature": 20})], "messages.0.content"),
        ([result(["sunny"])], "messages.0.content.0"),
        ([result([{"type": "text", "text": 5}])], "messages.0.content.0.text"),
        ([HELLO, calling(call())], "messages"),
        ([calling(call()), result()], "messages"),
        ([HELLO, calling()], "messages.1.content"),
        ([HELLO, calling(call(), content=5), result()], "messages.1.content"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_bad_messages(messages: Any, param: str) -> None:
    assert refused(messages=messages) == ("invalid_value", param)


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([result([{"type": "image_url", "image_url": {"url": "x"}}])], "messages.0.content.0"),
        ([result(tool_calls=[call()])], "messages.0.tool_calls"),
        ([HELLO, calling(call(), tool_call_id="a"), result()], "messages.1.tool_call_id"),
        ([{**HELLO, "tool_call_id": "a"}], "messages.0.tool_call_id"),
        ([result(refusal="no")], "messages.0.refusal"),
        ([result(reasoning_content="hm")], "messages.0.reasoning_content"),
        ([result([{"type": "refusal", "refusal": "no"}])], "messages.0.content.0"),
        (
            [HELLO, calling(call(), function_call={"name": "f", "arguments": "{}"}), result()],
            "messages.1.function_call",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_unsupported_messages(messages: Any, param: str) -> None:
    assert refused(messages=messages) == ("unsupported", param)


def test_a_result_does_not_say_whether_it_is_an_error() -> None:
    assert refused(messages=[result(is_error=True)]) == ("unknown_field", "messages.0.is_error")


def test_a_refusal_stands_between_what_was_said_and_the_calls() -> None:
    request = parse(messages=[HELLO, calling(call(), content="So", refusal="no"), result()])
    said = request.ask.messages[1]["content"]
    assert [block.get("text", block["type"]) for block in said] == ["So", "no", "tool_use"]


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_model_that_cannot_be_forced_is_not_asked_to(choice: Any) -> None:
    with pytest.raises(BatonError) as caught:
        parse(tools=[tool()], tool_choice=choice, model="claude-sonnet-5-5")
    assert (caught.value.code, caught.value.param) == ("unsupported", "tool_choice")
    assert "claude-sonnet-5-5" in caught.value.message
    assert parse(tools=[tool()], tool_choice=choice, model="claude-sonnet-5").ask.tool_choice is not None
    for free in ("auto", "none"):
        parse(tools=[tool()], tool_choice=free, model="claude-sonnet-5-5")


def test_an_alias_is_judged_by_the_model_that_it_stands_for() -> None:
    def ask(alias: str) -> ChatRequest:
        body = {"messages": [HELLO], "model": "gpt", "tools": [tool()], "tool_choice": "required"}
        return chat.parse(body, default_model="claude-opus-5-5", aliases={"gpt": alias}, model_of=ModelTable().model)

    assert ask("claude-opus-4-8").ask.tool_choice == {"type": "any"}
    with pytest.raises(BatonError, match="claude-opus-5-5"):
        ask("claude-opus-5-5")


def test_a_request_that_names_no_model_may_get_one_that_can_be_forced() -> None:
    assert parse(tools=[tool()], tool_choice="required").ask.tool_choice == {"type": "any"}


def test_more_calls_than_can_be_looked_at_are_refused() -> None:
    said = calling(*[7] * 60_000)
    assert refused(messages=[HELLO, said, said, HELLO]) == ("invalid_value", "messages")
