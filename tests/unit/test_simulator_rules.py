"""What the stand-in refuses and accepts: fields, roles, blocks, the order of messages."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.simulator import events, fields, prompt, rules
from service.simulator.errors import ApiError
from tests.unit.simulated import (
    CALL,
    DOCUMENT,
    IMAGE,
    LOOK,
    MODEL,
    PREFILL_MODEL,
    RESULT,
    SYSTEM_MODEL,
    TEXT,
    assistant,
    read_events,
    reply_to,
    request,
    stream_text,
    system,
    user,
    without,
)

CITED = {"type": "text", "text": "x", "citations": [{"type": "char_location"}]}

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("unknown field", request(mood="good"), "mood: Extra inputs are not permitted"),
    ("beta field", request(context_management={}), "context_management: Extra inputs are not permitted"),
    ("temperature", request(temperature=1.0), "temperature: "),
    ("top_p", request(top_p=1), "top_p: "),
    ("top_k", request(top_k=1), "top_k: "),
    ("no model", without("model"), "model: Field required"),
    ("model of a wrong type", request(model=5), "model: Input should be a valid string"),
    ("no max_tokens", without("max_tokens"), "max_tokens: Field required"),
    ("max_tokens as a string", request(max_tokens="5"), "max_tokens: Input should be a valid integer"),
    ("max_tokens as a truth value", request(max_tokens=True), "max_tokens: Input should be a valid integer"),
    ("max_tokens below 0", request(max_tokens=-1), "max_tokens: Input should be greater"),
    ("max_tokens above the model's", request(max_tokens=128_001), "max_tokens: 128001 > 128000"),
    ("stream as a string", request(stream="yes"), "stream: "),
    ("stop_sequences as a string", request(stop_sequences="x"), "stop_sequences: "),
    ("a stop sequence of a wrong type", request(stop_sequences=["x", 1]), "stop_sequences.1: "),
    ("a blank stop sequence", request(stop_sequences=[" \n"]), "stop_sequences.0: "),
    ("service_tier", request(service_tier="best"), "service_tier: "),
    ("speed", request(speed="ludicrous"), "speed: "),
    ("metadata", request(metadata="me"), "metadata: "),
    ("thinking", request(thinking={"type": "deep"}), "thinking.type: "),
    ("thinking display", request(thinking={"type": "adaptive", "display": "all"}), "thinking.display: "),
    ("tools", request(tools={}), "tools: "),
    ("a tool of a wrong type", request(tools=["look"]), "tools.0: "),
    ("a tool without schema", request(tools=[{"name": "look"}]), "tools.0.custom.input_schema: "),
    ("two tools of a name", request(tools=[LOOK, LOOK]), "tools: Tool names"),
    ("system", request(system=5), "system: "),
    ("an empty system block", request(system=[{"type": "text", "text": ""}]), "system.0.text: "),
    ("an image as system", request(system=[IMAGE]), "system.0.type: "),
    ("no messages", without("messages"), "messages: Field required"),
    ("messages of a wrong type", request(messages="hello"), "messages: Input should be a valid list"),
    ("no message", request(messages=[]), "messages: at least one message is required"),
    ("a message of a wrong type", request("hello"), "messages.0: "),
    ("a message without role", request({"content": "x"}), "messages.0.role: Field required"),
    ("a message without content", request({"role": "user"}), "messages.0.content: Field required"),
    ("a field too many in a message", request({**user("x"), "id": "m"}), "messages.0.id: Extra inputs"),
    ("an unknown role", request(user("x"), {"role": "tool", "content": "x"}), "messages.1.role: Input should be"),
    ("assistant first", request(assistant("x"), user("x")), "messages.0.role: first message must"),
    ("system first", request(system("x"), user("x"), model=SYSTEM_MODEL), "messages.0.role: first message must"),
    ("system on other models", request(user("x"), system("y")), "messages.1.role: role 'system' is not supported"),
    (
        "system behind an answer",
        request(user("x"), assistant("y"), system("z"), user("x"), model=SYSTEM_MODEL),
        "messages.2.role: a system message must follow",
    ),
    (
        "system ahead of the user",
        request(user("x"), system("z"), user("x"), model=SYSTEM_MODEL),
        "messages.1.role: a system message must be last",
    ),
    (
        "a block other than text in a system message",
        request(user("x"), system([IMAGE]), model=SYSTEM_MODEL),
        "messages.1.content.0.type: ",
    ),
    ("a prefill", request(user("x"), assistant("I")), "messages.1.role: This model does not support assistant"),
    (
        "a prefill with space at its end",
        request(user("x"), assistant("I "), model=PREFILL_MODEL),
        "messages.1: final assistant content",
    ),
    ("an empty text", request(user("")), "messages.0.content: text content blocks must be non-empty"),
    ("a blank text", request(user(" \n")), "messages.0.content: text content blocks must contain"),
    ("no blocks", request(user([])), "messages.0.content: all messages"),
    ("content of a wrong type", request(user(5)), "messages.0.content: Input should be"),
    ("an empty text block", request(user([{"type": "text", "text": ""}])), "messages.0.content.0.text: "),
    ("a blank text block", request(user([TEXT, {"type": "text", "text": "\t"}])), "messages.0.content.1.text: "),
    ("a block of a wrong type", request(user(["x"])), "messages.0.content.0: "),
    ("an unknown block", request(user([{"type": "input_text", "text": "x"}])), "messages.0.content.0.type: "),
    ("a text block without text", request(user([{"type": "text"}])), "messages.0.content.0.text.text: Field"),
    ("a number as text", request(user([{"type": "text", "text": 1}])), "messages.0.content.0.text.text: Input"),
    ("a field too many in a block", request(user([{**TEXT, "id": 1}])), "messages.0.content.0.text.id: Extra"),
    ("citations of the user", request(user([CITED])), "messages.0.content.0.text.citations: "),
    ("a document of the assistant", request(user("x"), assistant([DOCUMENT])), "messages.1.content.0.type: "),
    ("a call of the user", request(user([CALL])), "messages.0.content.0.type: `tool_use` blocks"),
    (
        "tool input of a wrong type",
        request(user("x"), assistant([{**CALL, "input": "{}"}]), user([RESULT])),
        "messages.1.content.0.tool_use.input: ",
    ),
    ("a call without result", request(user("x"), assistant([CALL]), user("y")), "messages.1.content.0: `tool_use`"),
    ("a late result", request(user("x"), assistant([CALL]), user([TEXT, RESULT])), "messages.1.content.0: `tool_use`"),
    ("a result without call", request(user([RESULT])), "messages.0.content.0: unexpected `tool_use_id`"),
    (
        "a result twice",
        request(user("x"), assistant([CALL]), user([RESULT, RESULT])),
        "messages.2.content.1: unexpected `tool_use_id`",
    ),
    (
        "one id for two calls",
        request(user("x"), assistant([CALL, CALL]), user([RESULT])),
        "messages.1.content.1: `tool_use` ids must be unique",
    ),
    ("a result of a wrong type", request(user([{**RESULT, "content": 5}])), "messages.0.content.0.tool_result.content"),
    (
        "an empty text in a result",
        request(user("x"), assistant([CALL]), user([{**RESULT, "content": [{"type": "text", "text": ""}]}])),
        "messages.2.content.0.tool_result.content.0.text: ",
    ),
    (
        "a result's block of a wrong type",
        request(user("x"), assistant([CALL]), user([{**RESULT, "content": [{"type": []}]}])),
        "messages.2.content.0.tool_result.content.0.type: ",
    ),
    ("too long a prompt", request(user("x" * 800_001), model=PREFILL_MODEL), "prompt is too long: 200001 tokens"),
]


@pytest.mark.parametrize(("body", "message"), [pytest.param(b, m, id=i) for i, b, m in REFUSED])
def test_refuses(body: dict[str, Any], message: str) -> None:
    with pytest.raises(ApiError) as caught:
        rules.check_create(body)
    assert caught.value.kind == "invalid_request_error"
    assert caught.value.status == 400
    assert caught.value.message.startswith(message)


ACCEPTED: list[tuple[str, dict[str, Any]]] = [
    ("neighbours of one role", request(user("x"), user("y"), assistant("a"), assistant("b"), user("z"))),
    ("system behind the user", request(user("x"), system("s"), assistant("y"), user("z"), model=SYSTEM_MODEL)),
    ("system at the end", request(user("x"), system([TEXT]), system("t"), model="claude-opus-4-8")),
    (
        "system behind Anthropic's own tool",
        request(
            user("x"),
            assistant([{"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}]),
            system("s"),
            model=SYSTEM_MODEL,
        ),
    ),
    ("a prefill on an old model", request(user("x"), assistant("I"), model=PREFILL_MODEL)),
    (
        "calls and results",
        request(
            user("x"),
            assistant([TEXT, {**CALL, "caller": None}]),
            user([{**RESULT, "content": [TEXT]}, TEXT]),
            tools=[LOOK, {"type": "web_search_20260101"}],
        ),
    ),
    ("results in two messages", request(user("x"), assistant([CALL]), user([RESULT]), user("y"), tools=[LOOK])),
    ("an answer with citations null", request(user("x"), assistant([{**TEXT, "citations": None}]), user("y"))),
    ("a document", request(user([DOCUMENT, IMAGE, TEXT]))),
    ("max_tokens 0", request(max_tokens=0)),
    ("nulls", request(stream=None, stop_sequences=None, system=None, cache_control=None, thinking=None)),
    ("a container's id", request(container="container_1", metadata={"user_id": "u"}, system=[TEXT])),
]


@pytest.mark.parametrize("body", [pytest.param(b, id=i) for i, b in ACCEPTED])
def test_accepts(body: dict[str, Any]) -> None:
    assert rules.check_create(body).prompt.tokens > 0


def test_an_unknown_model_is_not_found() -> None:
    with pytest.raises(ApiError, match="model: claude-2") as caught:
        rules.check_create(request(model="claude-2"))
    assert (caught.value.status, caught.value.kind) == (404, "not_found_error")


def test_count_tokens_takes_fewer_fields() -> None:
    assert rules.check_count({"model": MODEL, "messages": [user("x" * 9)]}) == 3
    with pytest.raises(ApiError, match="max_tokens: Extra inputs"):
        rules.check_count(request())


def test_input_tokens_do_not_depend_on_the_form_of_the_text() -> None:
    as_string = prompt.read(request(user("é" * 10), system="s" * 4))
    as_blocks = prompt.read(request(user([{"type": "text", "text": "é" * 10}]), system=[{"text": "s" * 4}]))
    assert as_string.tokens == as_blocks.tokens == 6


def test_the_size_of_a_block_survives_deep_nesting() -> None:
    deep: Any = "xxxx"
    for _ in range(5000):
        deep = {"a": [deep]}
    assert prompt.size(deep) == 4


def test_what_nests_too_deeply_to_be_kept_apart_is_refused() -> None:
    deep: Any = "xxxx"
    for _ in range(500):
        deep = {"a": deep}
    call = {**CALL, "input": deep}
    body = request(user("x"), assistant([call]), user([RESULT]), tools=[LOOK], thinking={"type": "adaptive"})
    with pytest.raises(ApiError, match="nested too deeply"):
        reply_to(body)


SCALARS = st.sampled_from([None, True, 0, 1, 1.5, "", " ", "text", "user", "assistant", "system", MODEL, PREFILL_MODEL])
NAMES = st.sampled_from(
    [
        "type",
        "text",
        "content",
        "role",
        "id",
        "tool_use_id",
        "input",
        "name",
        "thinking",
        "data",
        "source",
        "cache_control",
        "ttl",
        "signature",
        "url",
        "title",
        "is_error",
    ]
)
ANY_JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3))
BLOCK_LIKE = st.builds(
    lambda kind, fields: {**fields, "type": kind},
    st.sampled_from(
        [
            "text",
            "tool_use",
            "tool_result",
            "thinking",
            "redacted_thinking",
            "image",
            "document",
            "search_result",
            "server_tool_use",
            None,
            [],
        ]
    ),
    st.dictionaries(NAMES, ANY_JSON, max_size=4),
)
MESSAGE_LIKE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", None, []]), "content": st.lists(BLOCK_LIKE) | ANY_JSON}
)
REQUEST_LIKE = st.builds(
    lambda fields, messages, model: {**request(), **fields, "messages": messages, "model": model},
    st.dictionaries(st.sampled_from(sorted(fields.CREATE_FIELDS - {"messages", "model"})), ANY_JSON, max_size=2),
    st.lists(MESSAGE_LIKE | st.just(user("x")), max_size=4) | ANY_JSON,
    st.sampled_from([MODEL, SYSTEM_MODEL, PREFILL_MODEL]),
)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(REQUEST_LIKE)
def test_whatever_is_sent_is_refused_or_answered(body: dict[str, Any]) -> None:
    try:
        reply = reply_to(body)
    except ApiError as error:
        assert error.status in (400, 404)
        return
    assert events.message(reply) and read_events(stream_text(reply))
