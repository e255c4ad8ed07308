"""The document of the interface, held against the routes, the parsers, the tables and the specification."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import orjson
import pytest
from starlette.routing import Route

from service import appended_messages, headers, session_fields, settings
from service.app import build
from service.dialects import chat, chat_fields, chat_out
from service.dialects.errors import anthropic_error, openai_error
from service.errors import CODES, BatonError
from service.model_table import ModelTable
from service.openapi import completions, messages, schemas
from service.openapi.document import document
from service.openapi.operations import OPERATIONS
from tests.instruments.interface import PLAIN, STRUCTURE, Interface
from tests.instruments.json_schema import Checker, references, resolve, unknown_keywords
from tests.unit.test_errors import SERVICE, sources

pytestmark = pytest.mark.anyio

API = Path(__file__).resolve().parents[2] / "docs" / "api.md"
DOCUMENT = document()
SCHEMAS = DOCUMENT["components"]["schemas"]
INTERFACE = Interface(DOCUMENT)
NOT_OF_AN_OPERATION = {"route_not_found", "method_not_allowed"}


def problems(value: Any, name: str) -> list[str]:
    return Checker(DOCUMENT).problems(value, SCHEMAS[name])


# The document by itself.


def test_it_is_an_openapi_document() -> None:
    assert Checker({}).problems(DOCUMENT, STRUCTURE) == []
    ids = Counter(one["operationId"] for one in INTERFACE.operations().values())
    assert ids.most_common(1)[0][1] == 1
    tags = {tag["name"] for tag in DOCUMENT["tags"]}
    assert {tag for one in INTERFACE.operations().values() for tag in one["tags"]} == tags


def test_every_reference_leads_somewhere_and_every_component_is_referred_to() -> None:
    for reference in set(references(DOCUMENT)):
        assert resolve(DOCUMENT, reference)
    components = DOCUMENT["components"].items()
    # Security schemes are referred to by their names.
    everything = {f"#/components/{kind}/{name}" for kind, named in components for name in named} - {
        f"#/components/securitySchemes/{name}" for name in DOCUMENT["components"]["securitySchemes"]
    }
    schemes = {name for one in INTERFACE.operations().values() for asked in one["security"] for name in asked}
    assert schemes == DOCUMENT["components"]["securitySchemes"].keys()
    assert set(references(DOCUMENT)) == everything


def test_every_path_parameter_is_described() -> None:
    for (method, path), operation in INTERFACE.operations().items():
        refs = [one["$ref"] for one in operation["parameters"] if "$ref" in one]
        described = {one.rpartition("/")[2] for one in refs if resolve(DOCUMENT, one)["in"] == "path"}
        assert described == set(re.findall(r"{(\w+)}", path)), f"{method} {path}"


def test_no_schema_says_what_the_tests_cannot_check() -> None:
    schemas = [*SCHEMAS.values(), *(one["schema"] for one in DOCUMENT["components"]["headers"].values())]
    schemas += [one["schema"] for one in DOCUMENT["components"]["parameters"].values()]
    for operation in INTERFACE.operations().values():
        schemas += [one["schema"] for one in operation["parameters"] if "schema" in one]
        schemas += [one["schema"] for answer in operation["responses"].values() for one in answer["content"].values()]
    assert set().union(*map(unknown_keywords, schemas)) == set()


# The document and the service.


async def test_it_has_the_routes_of_the_application_and_no_others() -> None:
    application = build(
        settings.read(anthropic_api_key="none"), "redis://127.0.0.1:1", "s" * 16, on_refused=lambda _: None
    )
    routes = application.asgi._app.routes  # type: ignore[attr-defined]
    assert all(isinstance(route, Route) for route in routes)
    served = {(method, route.path_format) for route in routes for method in route.methods or ()}
    assert {(method, path) for method, path in served if method != "HEAD"} == INTERFACE.operations().keys()
    assert {path for method, path in served if method == "HEAD"} == {path for method, path in served if method == "GET"}


def test_no_schema_hides_another_of_its_name() -> None:
    parts = (completions.SCHEMAS, messages.SCHEMAS, schemas.SCHEMAS)
    assert sum(map(len, parts)) == len(DOCUMENT["components"]["schemas"])


def test_every_code_belongs_to_an_operation() -> None:
    operations = [one for group in OPERATIONS.values() for one in group]
    used = {code for one in operations for code in one.errors}
    assert used - CODES.keys() == set()
    in_openais_shape = {code for one in operations if "Error" in one.error_shapes for code in one.errors}
    documented = set()
    for operation in INTERFACE.operations().values():
        for status, answer in operation["responses"].items():
            schema = answer["content"].get("application/json", {}).get("schema", {})
            for coded in (one for one in schema.get("anyOf", [schema]) if "allOf" in one):
                codes = coded["allOf"][1]["properties"]["error"]["properties"]["code"]["enum"]
                assert {CODES[code].status for code in codes} == {int(status)}
                documented |= set(codes)
    # Errors in Anthropic's shape are not listed by their codes.
    assert documented == CODES.keys() - NOT_OF_AN_OPERATION - (used - in_openais_shape)


def test_no_answer_is_hidden_by_an_error_of_its_status() -> None:
    for operations in OPERATIONS.values():
        for operation in operations:
            answered = {answer.status for answer in operation.answers}
            assert answered, operation.id
            assert not answered & {CODES[code].status for code in operation.errors}, operation.id


@pytest.mark.parametrize("code", CODES)
def test_every_error_is_as_described(code: str) -> None:
    for param in (None, "messages"):
        error = BatonError(code, "What to do.", param=param)
        assert problems(orjson.loads(openai_error(error)), "Error") == []
        assert problems(orjson.loads(anthropic_error(error, "req_1")), "AnthropicError") == []


# Headers.


def test_every_header_has_one_meaning_in_one_place() -> None:
    rows = Counter((one.name.lower(), place) for one in headers.HEADERS for place in one.on)
    assert rows.most_common(1)[0][1] == 1
    in_responses = [one for one in headers.HEADERS if {"answer", "error"} & set(one.on)]
    assert len(in_responses) == len(headers.at("answer", "error"))


def test_every_header_is_in_the_document_where_it_is_found() -> None:
    found: dict[str, set[str]] = {place: set() for place in get_args(headers.Place)}
    for operation in INTERFACE.operations().values():
        names = [resolve(DOCUMENT, one["$ref"]) for one in operation["parameters"] if "$ref" in one]
        found["request"] |= {one["name"] for one in names if one["in"] == "header"}
        for status, answer in operation["responses"].items():
            found["answer" if int(status) < 400 else "error"] |= answer["headers"].keys()
    for place in get_args(headers.Place):
        assert found[place] == headers.at(place).keys(), place


def test_every_header_that_the_guide_names_is_in_the_document() -> None:
    known = {one.name.lower() for one in headers.HEADERS}
    named = re.findall(r"`((?:X|x|If|Idempotency|Last)-[A-Za-z-]+)", API.read_text("utf-8"))
    assert len(set(named)) > 8
    assert {name for name in named if name.lower() not in known | PLAIN} == set()


def test_every_header_that_is_read_is_in_the_table() -> None:
    read = set()
    for _, tree in sources():
        for node in ast.walk(tree):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Name) and called.id in ("header", "header_list"):
                assert isinstance(node, ast.Call)
                name = node.args[1]
                assert isinstance(name, ast.Constant) and isinstance(name.value, bytes)
                read.add(name.value.decode())
    asked = {name.lower() for name in headers.at("request")}
    assert read - PLAIN == asked - {"x-request-id"}
    assert b"x-request-id" in (SERVICE / "asgi.py").read_bytes()
    assert b"anthropic-version" in (SERVICE / "dialects" / "errors.py").read_bytes()


# Requests: what the document lets pass, the parser takes, and the other way round.


USER = {"role": "user", "content": "Hi"}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def image(*, detail: str | None = None, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": detail}, **more}


def file(**fields: Any) -> dict[str, Any]:
    return {"type": "file", "file": {"file_data": "data:text/plain;base64,SGk=", **fields}}


def schema(**described: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, **described}}


CHATS: list[dict[str, Any]] = [
    {},
    {"colour": None},
    {"messages": [{**USER, "name": [], "annotations": {}}]},
    {"model": None, "stop": None, "stream": None, "temperature": None, "n": None, "session_id": None},
    {"model": "claude-opus-5-5", "max_tokens": 1, "max_completion_tokens": 2, "stop": ["a", "b"], "stream": True},
    {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
    {"stream_options": {}, "session_id": "new", "session_input": "delta", "stop": "x"},
    {"messages": [{"role": "system", "content": "s"}, {"role": "developer", "content": "d"}, USER]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {}}], "name": "Ada"}]},
    {"messages": [USER, {"role": "assistant", "content": "a", "refusal": None, "annotations": [], "audio": {}}, USER]},
    {"temperature": 2, "top_p": 0, "presence_penalty": -2, "frequency_penalty": 0.5, "seed": 7, "user": "u"},
    {
        "tools": [],
        "tool_choice": "none",
        "logprobs": False,
        "modalities": ["text"],
        "response_format": {"type": "text"},
    },
    {"messages": [user(image(detail="low", cache_control={"type": "ephemeral"}), file(filename="a.txt"))]},
    {"messages": [user(image()), {"role": "system", "content": "s"}]},
    {"messages": [USER, {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, USER]},
    {"messages": [USER, {"role": "assistant", "content": None, "refusal": "no", "parsed": {"a": 1}}, USER]},
    {"messages": [USER, {"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": None}, USER]},
    {"response_format": schema(strict=True, description="d"), "reasoning_effort": "minimal", "user": "u"},
    {"thinking": {"type": "adaptive", "display": "summarized"}, "service_tier": "default"},
    {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2000, "safety_identifier": "s"},
    {"thinking": {"type": "between_tools"}, "metadata": {"a": "b"}, "service_tier": "auto"},
    {"thinking": None, "reasoning_effort": "none", "response_format": None},
]
NO_CHATS: list[dict[str, Any]] = [
    {"messages": None},
    {"messages": []},
    {"messages": "Hi"},
    {"messages": [{"role": "user"}]},
    {"messages": [{"role": "user", "content": " "}]},
    {"messages": [{"role": "user", "content": []}]},
    {"messages": [{"role": "tool", "content": "x"}]},
    {"messages": [{**USER, "name": 5}]},
    {"messages": [{**USER, "tool_calls": [{}]}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi", "colour": "red"}]}]},
    {"messages": [user(file(file_id="f"))]},
    {"messages": [user({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}})]},
    {"messages": [{"role": "system", "content": [image()]}, USER]},
    {"messages": [USER, {"role": "assistant"}, USER]},
    {"messages": [USER, {"role": "assistant", "content": "a", "refusal": 5}, USER]},
    {"messages": [{**USER, "refusal": "no"}]},
    {"messages": [{**USER, "annotations": "none"}]},
    {"response_format": {"type": "json_object"}},
    {"response_format": schema(name="a b")},
    {"response_format": schema(schema=None)},
    {"response_format": schema(colour="red")},
    {"response_format": {**schema(), "type": "text"}},
    {"reasoning_effort": "most"},
    {"service_tier": "flex"},
    {"user": 5},
    {"metadata": {"a": 1}},
    {"thinking": {"type": "deep"}},
    {"thinking": {"type": "enabled"}},
    {"thinking": {"type": "adaptive", "display": "whole"}},
    {"thinking": {"type": "disabled", "display": "omitted"}},
    {"thinking": {"type": "adaptive", "budget_tokens": 2000}},
    {"model": ""},
    {"model": "m" * 201},
    {"model": "a b"},
    {"max_tokens": 0},
    {"max_tokens": True},
    {"max_completion_tokens": 1.5},
    {"stop": ["a"] * 5},
    {"stop": " "},
    {"stop": 1},
    {"stream": "yes"},
    {"stream_options": {"include_usage": 1}},
    {"stream_options": {"colour": "red"}},
    {"stream_options": []},
    {"session_id": ""},
    {"session_id": 5},
    {"session_input": "both"},
    {"temperature": 2.1},
    {"temperature": "1"},
    {"seed": 1.5},
    {"store": 1},
    {"metadata": []},
    {"n": 2},
    {"n": True},
    {"tools": [{}]},
    {"logprobs": True},
    {"audio": {}},
    {"modalities": ["text", "audio"]},
    {"colour": "red"},
]


def takes_chat(body: Any) -> bool:
    try:
        chat.parse(body, default_model="m", aliases={}, model_of=ModelTable().model)
    except BatonError:
        return False
    return True


@pytest.mark.parametrize(("fields", "fits"), [(f, True) for f in CHATS] + [(f, False) for f in NO_CHATS], ids=str)
def test_a_chat_is_described_as_it_is_parsed(fields: dict[str, Any], fits: bool) -> None:
    body = {"messages": [USER], **fields}
    assert takes_chat(body) is fits
    assert (problems(body, "ChatCompletionRequest") == []) is fits


@pytest.mark.parametrize("name", chat_fields.FORMS)
def test_what_is_told_is_described_in_its_form(name: str) -> None:
    _, is_so = chat_fields.FORMS[name]
    values: tuple[Any, ...] = (
        True,
        False,
        0,
        1,
        -1,
        0.5,
        2,
        2.5,
        -2,
        -2.5,
        3,
        "",
        "text",
        [],
        ["x"],
        [{}],
        {},
        {"a": 1},
        {"a": "b"},
    )
    for value in (*values, {"": "b"}, {"k" * 65: "b"}, {"a": "v" * 513}, {str(n): "b" for n in range(17)}):
        assert (Checker(DOCUMENT).problems(value, completions.told(name)) == []) is is_so(value), value


def test_every_parameter_of_a_chat_is_described() -> None:
    """What the tables name at a place is what the schemas of that place have, and nothing else."""
    tables = (chat_fields.MAPPED, chat_fields.TOLD, chat_fields.REFUSED, chat_fields.PASSED_OVER)
    request = SCHEMAS["ChatCompletionRequest"]
    assert completions.MAPPED.keys() == chat_fields.inside(chat_fields.MAPPED, "").keys()
    assert request["properties"].keys() == {name for table in tables for name in chat_fields.inside(table, "")}
    described = set(_places(request, ""))
    known = {name for table in tables for name in table if "." in name}
    # A nested field that is refused, or left by an SDK deep inside, has no schema: what has none is not taken.
    assert {name for name in described if "." in name} - known == set()
    assert known - described <= chat_fields.REFUSED.keys() | chat_fields.PASSED_OVER


def _places(schema: Any, name: str) -> Iterator[str]:
    """The names of all fields that a schema describes, places in lists left out."""
    for one in schema.get("anyOf", ()):
        yield from _places(one, name)
    yield from _places(schema["items"], name) if "items" in schema else ()
    if name in ("metadata", "tools.function.parameters", "response_format.json_schema.schema"):
        return
    for field, inner in schema.get("properties", {}).items():
        path = f"{name}.{field}" if name else field
        yield path
        yield from _places(inner, path)


def test_every_reason_to_finish_is_described() -> None:
    choice = SCHEMAS["ChatCompletion"]["properties"]["choices"]["items"]
    described = set(choice["properties"]["finish_reason"]["enum"])
    assert described == {"stop", *chat_out._FINISH.values()}


def takes(parse: Any, body: Any, **options: Any) -> bool:
    try:
        parse(body, aliases={}, **options)
    except BatonError:
        return False
    return True


FIELDS: list[tuple[dict[str, Any], bool, bool]] = [
    # fields, whether a new session may have them, whether a session may be changed to them
    ({}, True, True),
    ({"title": None, "metadata": None, "max_turns": None, "system_prompt": None}, True, True),
    ({"title": "t" * 512, "max_turns": 1_000_000, "ttl_seconds": 31_536_000}, True, True),
    ({"metadata": {str(n): "v" * 512 for n in range(16)}, "system_prompt": "s"}, True, True),
    ({"model": None}, False, True),
    ({"ttl_seconds": None}, True, False),
    ({"name": None, "absolute_expires_at": None}, True, False),
    ({"name": "n", "absolute_expires_at": "2999-01-31T12:00:00Z"}, True, False),
    ({"context_policy": None}, True, True),
    ({"context_policy": "truncate"}, True, True),
    ({"context_policy": "forget"}, False, False),
    ({"model": "a b"}, False, False),
    ({"title": "t" * 513}, False, False),
    ({"title": 5}, False, False),
    ({"max_turns": 0}, False, False),
    ({"max_turns": 1_000_001}, False, False),
    ({"max_turns": "1"}, False, False),
    ({"ttl_seconds": 0}, False, False),
    ({"ttl_seconds": 31_536_001}, False, False),
    ({"metadata": {str(n): "" for n in range(17)}}, False, False),
    ({"metadata": {"k": "v" * 513}}, False, False),
    ({"metadata": {"k" * 65: "v"}}, False, False),
    ({"metadata": {"": "v"}}, False, False),
    ({"metadata": {"k": None}}, False, False),
    ({"system_prompt": " "}, False, False),
    ({"absolute_expires_at": "tomorrow"}, False, False),
    ({"name": ""}, False, False),
    ({"name": 5}, False, False),
    ({"id": "x"}, False, False),
    ({"colour": "red"}, False, False),
    ({"colour": None}, False, False),
]


@pytest.mark.parametrize(("fields", "new", "changed"), FIELDS, ids=str)
def test_a_session_is_described_as_it_is_parsed(fields: dict[str, Any], new: bool, changed: bool) -> None:
    body = {"model": "m", **fields}
    assert takes(session_fields.creation, body, ttl_default_s=60, now_ms=0) is new
    assert (problems(body, "NewSession") == []) is new
    assert takes(session_fields.changes, fields) is changed
    assert (problems(fields, "SessionChanges") == []) is changed


@pytest.mark.parametrize("name", ["new", "stats", "import", "sess_mine", "a b", "-a", "n" * 201, "a\n"])
def test_a_name_that_may_not_be_is_not_described(name: str) -> None:
    assert problems({"model": "m", "name": name}, "NewSession")
    assert problems({"model": "m", "name": f"x{name}"[:200].strip().replace(" ", "")}, "NewSession") == []


def test_every_field_of_a_session_is_described() -> None:
    assert SCHEMAS["NewSession"]["properties"].keys() == session_fields._CREATABLE
    assert SCHEMAS["SessionChanges"]["properties"].keys() == set(session_fields._PATCHABLE)
    settable = {*session_fields._PATCHABLE, *session_fields._READ_ONLY}
    assert SCHEMAS["Session"]["properties"].keys() == settable


@pytest.mark.parametrize(
    ("body", "fits"),
    [
        ({"messages": []}, True),
        ({"messages": [USER] * 100_001}, False),
        ({"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]}, True),
        ({"messages": None}, False),
        ({}, False),
        ({"messages": [USER], "model": "m"}, False),
        ({"messages": [{"role": "system", "content": "s"}]}, False),
        ({"messages": [{**USER, "name": "n"}]}, False),
        ({"messages": [{"role": "user", "content": []}]}, False),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": " "}]}]}, False),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "citations": None}]}]}, True),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "citations": [1]}]}]}, False),
    ],
    ids=lambda value: str(value)[:120],
)
def test_messages_by_hand_are_described_as_they_are_parsed(body: Any, fits: bool) -> None:
    try:
        appended_messages.parse(body)
    except BatonError:
        assert not fits
    else:
        assert fits
    assert (problems(body, "NewMessages") == []) is fits
