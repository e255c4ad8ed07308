"""The stand-in on answers that are JSON by a schema."""

import json
from typing import Any

import pytest

from service.simulator import rules
from service.simulator.errors import ApiError
from tests.instruments.json_schema import Checker
from tests.unit.simulated import (
    LOOK,
    Json,
    message_to,
    request,
    user,
)


def refused(body: Json) -> str:
    with pytest.raises(ApiError) as caught:
        rules.check_create(body)
    assert (caught.value.status, caught.value.kind) == (400, "invalid_request_error")
    return caught.value.message


def closed(properties: Json, required: list[str] | None = None) -> Json:
    named = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": named, "additionalProperties": False}


def by(schema: Any, **fields: Any) -> Json:
    return request(output_config={"format": {"type": "json_schema", "schema": schema}}, **fields)


SCHEMAS: list[tuple[Json, Any]] = [
    (closed({}), {}),
    (closed({"name": {"type": "string"}}), {"name": 'You said: "hello". I received 1 message.'}),
    (closed({"a": {"type": "integer"}, "b": {"type": "number"}}, ["b"]), {"b": 1.5}),
    (closed({"a": {"enum": ["red", "blue"]}, "b": {"const": 7}}), {"a": "red", "b": 7}),
    (closed({"a": {"type": ["null", "string"]}, "b": {"type": "boolean"}}), {"a": None, "b": True}),
    (closed({"a": {"type": "array", "items": {"type": "integer"}}}), {"a": []}),
    (closed({"a": {"type": "array", "items": closed({"b": {"type": "null"}}), "minItems": 1}}), {"a": [{"b": None}]}),
    (closed({"a": {"type": "string", "format": "date-time"}}), {"a": "2026-10-21T00:00:00Z"}),
    (closed({"a": {"anyOf": [closed({"b": {"type": "integer"}}), {"type": "null"}]}}), {"a": {"b": 1}}),
    ({**closed({"a": {"$ref": "#/$defs/b"}}), "$defs": {"b": {"enum": [3]}}}, {"a": 3}),
    ({"type": "array", "items": {"type": "integer"}, "minItems": 1}, [1]),
]


@pytest.mark.parametrize(("schema", "value"), SCHEMAS, ids=str)
def test_the_answer_is_json_that_satisfies_the_schema(schema: Json, value: Any) -> None:
    content = message_to(by(schema))["content"]
    assert [block["type"] for block in content] == ["text"]
    assert json.loads(content[0]["text"]) == value
    shape = {keyword: wanted for keyword, wanted in schema.items() if keyword != "$defs"}
    assert Checker(schema).problems(value, shape) == []


BAD_SCHEMAS: list[tuple[Any, str]] = [
    ("object", "Input should be an object"),
    ({"type": "object"}, "For 'object' type, 'additionalProperties' must be explicitly set to false"),
    (closed({"a": {"properties": {}}}), "For 'object' type, 'additionalProperties' must be"),
    (closed({"a": {"type": "integer", "minimum": 1}}), "For 'integer' type, property 'minimum' is not supported"),
    (closed({"a": {"type": "string", "maxLength": 1}}), "For 'string' type, property 'maxLength' is not supported"),
    (closed({"a": {"type": "array", "minItems": 2}}), "For 'array' type, 'minItems' values other than"),
    (closed({"a": {"type": "text"}}), "'text' is not a type"),
    (closed({"a": True}), "each schema should be an object"),
    (closed({}, ["a"]), "required names 'a', which is not in properties"),
    (closed({"a": {"enum": []}}), "enum should be a non-empty list"),
    (closed({"a": {"enum": [{}]}}), "enum values should be"),
    (closed({"a": {"anyOf": []}}), "anyOf should be a non-empty list"),
    (closed({"a": {"allOf": [{}]}}), "allOf is more than"),
    (closed({"a": {"$ref": "#/$defs/a"}}), "the reference '#/$defs/a' leads nowhere"),
    (closed({"a": {"$ref": "https://example.com"}}), "the reference 'https://example.com' leads nowhere"),
    (
        {**closed({"a": {"$ref": "#/$defs/a"}}), "$defs": {"a": closed({"b": {"$ref": "#/$defs/a"}})}},
        "Circular reference detected: #/$defs/a",
    ),
]


@pytest.mark.parametrize(("schema", "message"), BAD_SCHEMAS, ids=str)
def test_a_schema_claude_does_not_take_is_refused(schema: Any, message: str) -> None:
    assert refused(by(schema)).startswith(f"output_config.format.schema: {message}")


def test_a_schema_as_deep_as_json_goes_is_refused() -> None:
    deep: Json = {"type": "integer"}
    for _ in range(200):
        deep = {"type": "array", "items": deep}
    assert "nested deeper" in refused(by(deep))


def test_json_is_cut_and_stopped_like_any_text_and_calls_have_none_ahead() -> None:
    body = by(closed({"a": {"type": "string"}}))
    cut = message_to({**body, "max_tokens": 1})
    assert (cut["content"][0]["text"], cut["stop_reason"]) == ('{"a":"You', "max_tokens")
    called = by(closed({}), tools=[LOOK], messages=[user("count to 3, call look")])
    assert [block["type"] for block in message_to(called)["content"]] == ["tool_use"]
