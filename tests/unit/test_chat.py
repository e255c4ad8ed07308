"""Chat completions, the request: every parameter is mapped, told or refused, and every bad input is named."""

from hashlib import sha256
from typing import Any

import pytest

from service.dialects import chat, chat_fields
from service.dialects.chat import ChatRequest
from service.dialects.chat_fields import FORMS
from service.errors import BatonError
from service.model_table import NEWEST, Model, ModelTable

HELLO = {"role": "user", "content": "Hello"}
ALIASES = {"gpt-4o": "claude-sonnet-5-5"}
MAPPED, TOLD, REFUSED = (
    {field: table[name] for field, name in chat_fields.inside(table, "").items()}
    for table in (chat_fields.MAPPED, chat_fields.TOLD, chat_fields.REFUSED)
)
"""Of each table the parameters that are not nested."""
TOOL = {"name": "f", "input_schema": {"type": "object", "properties": {}}}


def parse(body: Any) -> ChatRequest:
    return chat.parse(body, default_model="claude-default", aliases=ALIASES, model_of=ModelTable().model)


@pytest.mark.parametrize(
    ("types", "thinking"),
    [
        (None, {"type": "disabled"}),
        ({"adaptive", "disabled"}, {"type": "disabled"}),
        ({"adaptive", "between_tools"}, {"type": "between_tools"}),
    ],
)
def test_no_effort_at_all_is_what_the_model_can_make_of_it(types: Any, thinking: Any) -> None:
    known = Model(NEWEST, thinking_types=types if types is None else frozenset(types))
    body = {"messages": [HELLO], "reasoning_effort": "none"}
    request = chat.parse(body, default_model="m", aliases={}, model_of=lambda _: known)
    assert request.ask.params == {"thinking": thinking}


def test_a_model_that_always_thinks_cannot_do_without() -> None:
    error = refused(model="claude-opus-5-5", reasoning_effort="none")
    assert (error.code, error.param) == ("unsupported", "reasoning_effort")


def ask(**fields: Any) -> ChatRequest:
    """A request that is sound but for the fields given."""
    return parse({"messages": [HELLO], **fields})


def refusal(body: Any) -> BatonError:
    with pytest.raises(BatonError) as caught:
        parse(body)
    assert caught.value.status == 400
    return caught.value


def refused(**fields: Any) -> BatonError:
    return refusal({"messages": [HELLO], **fields})


def test_the_least_request_gets_the_defaults() -> None:
    request = ask()
    assert request.ask.model == "claude-default"
    assert request.ask.messages == [HELLO]
    assert request.ask.system is None
    assert request.ask.params == {}
    assert (request.stream, request.include_usage, request.session, request.ignored) == (False, False, None, [])


@pytest.mark.parametrize("name", sorted({*MAPPED, *TOLD, *REFUSED} - {"messages"}))
def test_null_is_absent(name: str) -> None:
    assert ask(**{name: None}) == ask()


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "additionalProperties": False}


def any_of(*values: Any) -> tuple[Any, ...]:
    """Values of different types."""
    return values


def json_schema(**described: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, **described}}


def hashed(user: str) -> dict[str, str]:
    return {"user_id": sha256(user.encode()).hexdigest()}


MAPPED_TO: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"model": "claude-opus-5-5"}, {"model": "claude-opus-5-5"}),
    ({"model": "gpt-4o"}, {"model": "claude-sonnet-5-5"}),
    ({"stream": True}, {"stream": True}),
    ({"stream": False}, {"stream": False}),
    ({"stream_options": {"include_usage": True}}, {"include_usage": True}),
    ({"stream_options": {"include_usage": False, "include_obfuscation": False}}, {"include_usage": False}),
    ({"stop": "END"}, {"params": {"stop_sequences": ["END"]}}),
    ({"stop": ["a", "b", "c", "d"]}, {"params": {"stop_sequences": ["a", "b", "c", "d"]}}),
    ({"stop": []}, {"params": {}}),
    ({"max_tokens": 7}, {"params": {"max_tokens": 7}}),
    ({"max_completion_tokens": 8}, {"params": {"max_tokens": 8}}),
    ({"max_tokens": 7, "max_completion_tokens": 8}, {"params": {"max_tokens": 8}}),
    ({"max_tokens": 7, "max_completion_tokens": None}, {"params": {"max_tokens": 7}}),
    ({"session_id": "my-chat"}, {"session": "my-chat"}),
    ({"session_input": "delta"}, {"session_input": "delta"}),
    ({"session_input": "full"}, {"session_input": "full"}),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, {"tools": [TOOL], "tool_choice": None}),
    ({"tool_choice": "none"}, {"tools": None, "tool_choice": {"type": "none"}}),
    (
        {"parallel_tool_calls": False},
        {"tools": None, "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
    ),
    ({"parallel_tool_calls": True}, {"tool_choice": None}),
    ({"response_format": {"type": "text"}}, {"params": {}}),
    (
        {"response_format": json_schema(strict=True)},
        {"output_config": {"format": {"type": "json_schema", "schema": {"title": "place", **SCHEMA}}}},
    ),
    (
        {"response_format": json_schema(description="Where.", strict=False)},
        {
            "output_config": {
                "format": {"type": "json_schema", "schema": {"title": "place", "description": "Where.", **SCHEMA}}
            }
        },
    ),
    (
        {"response_format": json_schema(description="Where.", schema={"title": "T", "description": "D", **SCHEMA})},
        {"output_config": {"format": {"type": "json_schema", "schema": {"title": "T", "description": "D", **SCHEMA}}}},
    ),
    ({"reasoning_effort": "minimal"}, {"output_config": {"effort": "low"}}),
    *(
        ({"reasoning_effort": effort}, {"output_config": {"effort": effort}, "thinking": None})
        for effort in ("low", "medium", "high", "xhigh", "max")
    ),
    ({"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}, "output_config": None}),
    (
        {"reasoning_effort": "high", "response_format": json_schema(schema={"title": "T"})},
        {"output_config": {"effort": "high", "format": {"type": "json_schema", "schema": {"title": "T"}}}},
    ),
    ({"thinking": {"type": "adaptive"}}, {"thinking": {"type": "adaptive"}, "reasoning": False}),
    (
        {"thinking": {"type": "adaptive", "display": "summarized"}, "reasoning_effort": "low"},
        {"thinking": {"type": "adaptive", "display": "summarized"}, "reasoning": True},
    ),
    (
        {"thinking": {"type": "enabled", "budget_tokens": 1024, "display": "omitted"}, "max_tokens": 1025},
        {"thinking": {"type": "enabled", "budget_tokens": 1024, "display": "omitted"}, "reasoning": False},
    ),
    ({"thinking": {"type": "disabled", "display": None}}, {"thinking": {"type": "disabled"}}),
    ({"thinking": {"type": "between_tools"}}, {"thinking": {"type": "between_tools"}}),
    ({"service_tier": "auto"}, {"service_tier": "auto"}),
    ({"service_tier": "default"}, {"service_tier": "standard_only"}),
    ({"user": "ada"}, {"metadata": hashed("ada")}),
    ({"safety_identifier": "é"}, {"metadata": hashed("é")}),
    ({"safety_identifier": "s", "user": "ada"}, {"metadata": hashed("s")}),
    ({"user": ""}, {"metadata": None}),
]


@pytest.mark.parametrize(("fields", "expected"), MAPPED_TO, ids=str)
def test_mapped(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    request = ask(**fields)
    seen = {
        "model": request.ask.model,
        "params": request.ask.params,
        "stream": request.stream,
        "include_usage": request.include_usage,
        "session": request.session,
        "session_input": request.session_input,
        "tools": request.ask.tools,
        "tool_choice": request.ask.tool_choice,
        "reasoning": request.reasoning,
        **{name: request.ask.params.get(name) for name in ("output_config", "thinking", "service_tier", "metadata")},
    }
    assert {name: seen[name] for name in expected} == expected
    assert request.ignored == []


def test_every_mapped_parameter_has_a_case_above() -> None:
    assert MAPPED.keys() - {"messages"} == {name for fields, _ in MAPPED_TO for name in fields}


MEANING_SOMETHING: dict[str, Any] = {
    "temperature": 0.7,
    "top_p": 0.9,
    "presence_penalty": -2,
    "frequency_penalty": 1.5,
    "seed": 7,
    "verbosity": "high",
    "store": True,
    "metadata": {"team": "blue"},
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
}


@pytest.mark.parametrize("name", sorted(TOLD))
def test_lost_tuning_is_told(name: str) -> None:
    request = ask(**{name: MEANING_SOMETHING[name]})
    assert request.ignored == [name]
    assert request.ask == ask().ask


@pytest.mark.parametrize("name", sorted(name for name, value in TOLD.items() if value is not None))
def test_a_value_that_asks_for_nothing_is_not_told(name: str) -> None:
    assert ask(**{name: TOLD[name]}).ignored == []


def test_what_is_ignored_is_told_in_alphabetical_order() -> None:
    named = [{**HELLO, "name": "Ada"}]
    request = parse({"messages": named, "top_p": 0.5, "temperature": 0.5, "seed": 1})
    assert request.ignored == ["messages.name", "seed", "temperature", "top_p"]
    assert request.ask.messages == [HELLO]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "warm"),
        ("temperature", True),
        ("top_p", -0.1),
        ("top_p", 1.1),
        ("top_p", [1]),
        ("presence_penalty", -2.1),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -3),
        ("frequency_penalty", {}),
    ],
)
def test_even_ignored_numbers_have_their_bounds(name: str, value: Any) -> None:
    error = refused(**{name: value})
    assert (error.code, error.param) == ("invalid_value", name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("metadata", "blue"),
        ("metadata", []),
        ("metadata", {"a": 1}),
        ("metadata", {"": "b"}),
        ("metadata", {"k" * 65: "b"}),
        ("metadata", {"a": "v" * 513}),
        ("metadata", {str(n): "b" for n in range(17)}),
        ("prompt_cache_options", "explicit"),
        *((name, 5) for name in ("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")),
        ("verbosity", True),
        *(("seed", value) for value in (1.5, "1", True)),
        *((name, value) for name in ("store", "parallel_tool_calls") for value in (0, "false", 1)),
    ],
)
def test_what_is_ignored_must_have_its_form(name: str, value: Any) -> None:
    error = refused(**{name: value})
    assert (error.code, error.param) == ("invalid_value", name)


def test_metadata_may_be_as_large_as_openai_allows() -> None:
    assert ask(metadata={f"{n:064}": "v" * 512 for n in range(16)}).ignored == ["metadata"]


def test_everything_that_is_ignored_has_a_form_and_passes_it_with_the_value_that_asks_for_nothing() -> None:
    assert FORMS.keys() == chat_fields.TOLD.keys()
    assert all(value is None or FORMS[name][1](value) for name, value in chat_fields.TOLD.items())


def test_a_streams_obfuscation_is_told_and_null_is_absent() -> None:
    assert ask(stream_options={"include_obfuscation": True}).ignored == ["stream_options.include_obfuscation"]
    assert ask(stream_options={"include_obfuscation": None, "include_all": None}).ignored == []


@pytest.mark.parametrize("role", ["user", "system"])
@pytest.mark.parametrize("name", ["cache_control", "prompt_cache_breakpoint"])
def test_caching_of_a_part_is_told(name: str, role: str) -> None:
    part = {"type": "text", "text": "a", name: {"type": "ephemeral"}}
    request = parse({"messages": [{"role": role, "content": [part, part]}, HELLO]})
    assert request.ignored == [f"messages.content.{name}"]
    assert "ephemeral" not in str(request.ask)
    error = refusal({"messages": [{"role": role, "content": [{**part, name: "yes"}]}, HELLO]})
    assert (error.code, error.param) == ("invalid_value", f"messages.0.content.0.{name}")


@pytest.mark.parametrize("value", [[], {}, "", 0, False, [{"type": "url_citation"}]])
def test_a_part_that_says_more_than_its_text_is_refused(value: Any) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "annotations": value}]
    error = refusal({"messages": [HELLO, {"role": "user", "content": parts}]})
    assert (error.code, error.param) == ("unknown_field", "messages.1.content.1.annotations")


def test_more_messages_or_parts_than_claude_takes_are_refused_before_they_are_looked_at() -> None:
    for messages in ([7] * 100_001, [{"content": [7] * 60_000}] * 2):
        error = refusal({"messages": messages})
        assert (error.code, error.param) == ("invalid_value", "messages")
        assert "100000" in error.message
    assert len(parse({"messages": [HELLO] * 100_000}).ask.messages) == 100_000
    parts = [{"type": "text", "text": "a"}] * 50_000
    assert len(parse({"messages": [{"role": "user", "content": parts}] * 2}).ask.messages) == 2


def test_the_longest_name_of_a_model() -> None:
    assert ask(model="m" * 200).ask.model == "m" * 200
    assert ask(model="~vendor/model:tag@1").ask.model_named


REFUSED_VALUES: dict[str, list[Any]] = {
    "audio": [{"voice": "alloy", "format": "wav"}],
    "function_call": ["auto", {"name": "f"}],
    "functions": [[{"name": "f"}]],
    "logit_bias": [{"50256": -100}],
    "logprobs": [True, 0],
    "modalities": [["audio"], ["text", "audio"]],
    "moderation": [{"model": "m"}],
    "n": [2, 0, "1", True],
    "prediction": [{"type": "content", "content": "x"}],
    "top_logprobs": [5, False],
    "web_search_options": [{}],
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_lost_meaning_is_refused_by_name(name: str) -> None:
    for value in REFUSED_VALUES[name]:
        error = refused(**{name: value})
        assert (error.code, error.param) == ("unsupported", name), value
        assert name in error.message


@pytest.mark.parametrize("name", sorted(name for name, value in REFUSED.items() if value is not None))
def test_a_value_that_asks_for_nothing_is_not_refused(name: str) -> None:
    assert ask(**{name: REFUSED[name]}) == ask()


@pytest.mark.parametrize("name", ["sesion_id", "best_of", "", "X" * 100_000, "session_inputs"])
def test_a_field_that_the_api_does_not_have_is_refused(name: str) -> None:
    error = refused(**{name: 1})
    assert error.code == "unknown_field"
    assert error.param == name[:64]
    assert len(error.message) < 200


@pytest.mark.parametrize("body", [[], "x", 1, True, None, [HELLO]])
def test_a_body_that_is_no_object(body: Any) -> None:
    assert refusal(body).code == "invalid_value"


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        *(
            ({"model": model}, "invalid_value", "model")
            for model in (5, ["claude"], "", " ", "m" * 201, "a b", "claude\n", "modèle", "a\0", False)
        ),
        ({"stream": "true"}, "invalid_value", "stream"),
        ({"stream": 1}, "invalid_value", "stream"),
        ({"stream_options": []}, "invalid_value", "stream_options"),
        ({"stream_options": {"include_usage": "yes"}}, "invalid_value", "stream_options.include_usage"),
        ({"stream_options": {"include_obfuscation": 1}}, "invalid_value", "stream_options.include_obfuscation"),
        ({"stream_options": {"include_all": True}}, "unknown_field", "stream_options.include_all"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"max_tokens": -1}, "invalid_value", "max_tokens"),
        ({"max_tokens": 1.5}, "invalid_value", "max_tokens"),
        ({"max_tokens": "9"}, "invalid_value", "max_tokens"),
        ({"max_tokens": True}, "invalid_value", "max_tokens"),
        ({"max_completion_tokens": 0, "max_tokens": 9}, "invalid_value", "max_completion_tokens"),
        ({"stop": ""}, "invalid_value", "stop"),
        ({"stop": " \n"}, "invalid_value", "stop"),
        ({"stop": ["ok", "\t"]}, "invalid_value", "stop"),
        ({"stop": ["ok", 5]}, "invalid_value", "stop"),
        ({"stop": [None]}, "invalid_value", "stop"),
        ({"stop": {"a": 1}}, "invalid_value", "stop"),
        ({"stop": 5}, "invalid_value", "stop"),
        ({"stop": list("abcde")}, "invalid_value", "stop"),
        ({"session_input": "most"}, "invalid_value", "session_input"),
        ({"session_input": ["full"]}, "invalid_value", "session_input"),
        ({"session_id": ""}, "invalid_session_id", "session_id"),
        ({"session_id": 5}, "invalid_session_id", "session_id"),
        ({"session_id": ["a"]}, "invalid_session_id", "session_id"),
        ({"session_id": False}, "invalid_session_id", "session_id"),
        ({"response_format": {"type": "json_object"}}, "unsupported", "response_format"),
        *(
            ({"response_format": value}, "invalid_value", "response_format")
            for value in any_of("text", [], {}, {"type": "grammar"}, {"type": ["text"]})
        ),
        ({"response_format": {"type": "text", "colour": "red"}}, "unknown_field", "response_format.colour"),
        (
            {"response_format": {**json_schema(), "type": "text"}},
            "unsupported",
            "response_format.json_schema",
        ),
        *(
            ({"response_format": {"type": "json_schema", "json_schema": value}}, code, f"response_format.{param}")
            for value, code, param in (
                (None, "invalid_value", "json_schema"),
                ("place", "invalid_value", "json_schema"),
                ({"schema": SCHEMA}, "invalid_value", "json_schema.name"),
                ({"schema": SCHEMA, "name": "a b"}, "invalid_value", "json_schema.name"),
                ({"schema": SCHEMA, "name": "a" * 65}, "invalid_value", "json_schema.name"),
                ({"name": "place"}, "missing_value", "json_schema.schema"),
                ({"name": "place", "schema": "object"}, "invalid_value", "json_schema.schema"),
                ({"name": "place", "schema": SCHEMA, "strict": "yes"}, "invalid_value", "json_schema.strict"),
                ({"name": "place", "schema": SCHEMA, "description": 5}, "invalid_value", "json_schema.description"),
                ({"name": "place", "schema": SCHEMA, "colour": 5}, "unknown_field", "json_schema.colour"),
            )
        ),
        *(
            ({"reasoning_effort": value}, "invalid_value", "reasoning_effort")
            for value in any_of("", "highest", True, 3, ["low"], {})
        ),
        ({"reasoning_effort": "none", "thinking": {"type": "adaptive"}}, "invalid_value", "reasoning_effort"),
        *(
            ({"thinking": value}, "invalid_value", "thinking")
            for value in any_of("adaptive", True, [], {}, {"type": "deep"}, {"type": ["adaptive"]}, {"display": "a"})
        ),
        *(
            ({"thinking": {"type": "adaptive", "display": value}}, "invalid_value", "thinking.display")
            for value in ("", "whole", True, ["omitted"])
        ),
        *(
            (
                {"thinking": {"type": "enabled", "budget_tokens": value}, "max_tokens": 2000},
                "invalid_value",
                "thinking.budget_tokens",
            )
            for value in (None, 1023, 2000, 1500.5, "1500", True)
        ),
        ({"thinking": {"type": "adaptive", "budget_tokens": 1024}}, "unsupported", "thinking.budget_tokens"),
        ({"thinking": {"type": "disabled", "display": "omitted"}}, "unsupported", "thinking.display"),
        ({"thinking": {"type": "adaptive", "colour": "red"}}, "unknown_field", "thinking.colour"),
        *(({"service_tier": value}, "unsupported", "service_tier") for value in ("flex", "scale", "priority", "fast")),
        *(({"service_tier": value}, "invalid_value", "service_tier") for value in ("", "best", True, ["auto"])),
        ({"user": 5}, "invalid_value", "user"),
        ({"safety_identifier": "s", "user": ["ada"]}, "invalid_value", "user"),
        ({"safety_identifier": {}}, "invalid_value", "safety_identifier"),
    ],
    ids=str,
)
def test_wrong_values(fields: dict[str, Any], code: str, param: str) -> None:
    error = refused(**fields)
    assert (error.code, error.param) == (code, param)


@pytest.mark.parametrize(
    ("messages", "code", "param"),
    [
        (None, "missing_value", "messages"),
        ([], "invalid_value", "messages"),
        ({}, "invalid_value", "messages"),
        ("Hello", "invalid_value", "messages"),
        ([5], "invalid_value", "messages.0"),
        ([None], "invalid_value", "messages.0"),
        (["Hello"], "invalid_value", "messages.0"),
        ([HELLO, []], "invalid_value", "messages.1"),
        ([{}], "invalid_value", "messages.0.role"),
        ([{"content": "x"}], "invalid_value", "messages.0.role"),
        ([{"role": None, "content": "x"}], "invalid_value", "messages.0.role"),
        ([{"role": "robot", "content": "x"}], "invalid_value", "messages.0.role"),
        ([{"role": ["user"], "content": "x"}], "invalid_value", "messages.0.role"),
        ([{"role": {}, "content": "x"}], "invalid_value", "messages.0.role"),
        ([{"role": "USER", "content": "x"}], "invalid_value", "messages.0.role"),
        ([{"role": "function", "name": "f", "content": "x"}], "unsupported", "messages.0.role"),
        ([{"role": "user"}], "invalid_value", "messages.0.content"),
        ([{"role": "user", "content": None}], "invalid_value", "messages.0.content"),
        ([{"role": "user", "content": ""}], "invalid_value", "messages.0.content"),
        ([{"role": "user", "content": " \n\t"}], "invalid_value", "messages.0.content"),
        ([{"role": "system", "content": ""}, HELLO], "invalid_value", "messages.0.content"),
        ([{"role": "user", "content": 5}], "invalid_value", "messages.0.content"),
        ([{"role": "user", "content": {}}], "invalid_value", "messages.0.content"),
        ([{"role": "user", "content": []}], "invalid_value", "messages.0.content"),
        ([{"role": "user", "content": ["Hello"]}], "invalid_value", "messages.0.content.0"),
        ([{"role": "user", "content": [{}]}], "invalid_value", "messages.0.content.0"),
        ([{"role": "user", "content": [{"type": 5}]}], "invalid_value", "messages.0.content.0"),
        ([{"role": "user", "content": [{"type": "text"}]}], "invalid_value", "messages.0.content.0.text"),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "invalid_value", "messages.0.content.0.text"),
        ([{"role": "user", "content": [{"type": "text", "text": " "}]}], "invalid_value", "messages.0.content.0.text"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {}}]}],
            "invalid_value",
            "messages.0.content.1.image_url.url",
        ),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "unsupported", "messages.0.content.0"),
        ([{"role": "assistant", "content": "x"}], "invalid_value", "messages"),
        ([HELLO, {"role": "assistant", "content": "x"}], "invalid_value", "messages"),
        ([{"role": "assistant", "content": "x"}, HELLO], "invalid_value", "messages"),
        ([{"role": "system", "content": "x"}], "invalid_value", "messages"),
        (
            [HELLO, {"role": "assistant", "content": "x"}, {"role": "system", "content": "x"}],
            "invalid_value",
            "messages",
        ),
        ([HELLO, {"role": "developer", "content": " "}], "invalid_value", "messages.1.content"),
        (
            [HELLO, {"role": "user", "content": "x", "tool_calls": [{"id": "t"}]}],
            "unsupported",
            "messages.1.tool_calls",
        ),
        ([HELLO, {"role": "assistant", "content": "x", "refusal": 5}, HELLO], "invalid_value", "messages.1.refusal"),
        ([HELLO, {"role": "assistant"}, HELLO], "invalid_value", "messages.1.content"),
        ([HELLO, {"role": "assistant", "content": []}, HELLO], "invalid_value", "messages.1.content"),
        (
            [HELLO, {"role": "assistant", "content": "x", "audio": {"id": "a"}}, HELLO],
            "unsupported",
            "messages.1.audio",
        ),
        ([{**HELLO, "refusal": "no"}], "unsupported", "messages.0.refusal"),
        ([{**HELLO, "reasoning_content": "hm"}], "unsupported", "messages.0.reasoning_content"),
        ([{**HELLO, "annotations": "none"}], "invalid_value", "messages.0.annotations"),
        ([{**HELLO, "weight": 0}], "unknown_field", "messages.0.weight"),
        ([HELLO, {**HELLO, "name": 5}], "invalid_value", "messages.1.name"),
    ],
    ids=str,
)
def test_bad_messages(messages: Any, code: str, param: str) -> None:
    error = refusal({"messages": messages})
    assert (error.code, error.param) == (code, param)


def test_missing_messages() -> None:
    assert refusal({}).code == "missing_value"


def test_an_answer_of_the_sdk_can_be_sent_back_as_it_is() -> None:
    answered: dict[str, Any] = {
        "role": "assistant",
        "content": "Hi",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }
    request = parse({"messages": [HELLO, answered, HELLO]})
    assert request.ask.messages == [HELLO, {"role": "assistant", "content": "Hi"}, HELLO]
    assert request.ignored == []


def test_text_parts_become_text_blocks() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "prompt_cache_breakpoint": None}]
    request = parse({"messages": [{"role": "user", "content": parts}]})
    assert request.ask.messages[0]["content"] == [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ([], None),
        ([{"role": "system", "content": "Be brief."}], "Be brief."),
        ([{"role": "developer", "content": "Be brief."}], "Be brief."),
        (
            [{"role": "system", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]}],
            "Be brief.",
        ),
        (
            [{"role": "system", "content": "One."}, {"role": "developer", "content": "Two."}],
            [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}],
        ),
    ],
    ids=str,
)
def test_leading_system_messages_become_the_system_prompt(system: list[Any], expected: Any) -> None:
    request = parse({"messages": [*system, HELLO]})
    assert request.ask.system == expected
    assert request.ask.messages == [HELLO]


def test_roles_and_order_of_the_others_are_kept() -> None:
    said = [HELLO, HELLO, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": " é\n🙂 "}]
    assert parse({"messages": said}).ask.messages == said


def test_messages_about_errors_quote_little_of_what_was_sent() -> None:
    part = {"type": "x" * 10_000}
    error = refusal({"messages": [{"role": "user", "content": [part]}]})
    assert len(error.message) < 200
    error = refusal({"messages": [{**HELLO, "y" * 10_000: 1}]})
    assert len(error.param or "") <= 128
    assert len(error.message) < 300
