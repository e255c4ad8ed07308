"""Anthropic's messages: what Baton reads of a request, what it leaves alone, and answers as Claude gave them."""

import copy
from typing import Any

import orjson
import pytest
from anthropic.types import Message
from hypothesis import given
from hypothesis import strategies as st

from service.dialects import messages_out
from service.dialects.messages import MessagesRequest, parse
from service.errors import BatonError
from service.events import Event
from service.passage import with_model
from service.transcript import Answer
from tests.unit.claude_events import answer_events, as_events, text_block

Json = dict[str, Any]
USER: Json = {"role": "user", "content": "Hi"}
MARK: Json = {"type": "ephemeral"}


def read(body: Any, version: str | None = None) -> MessagesRequest:
    return parse(
        body,
        version=version,
        default_model="claude-default",
        aliases={"short": "claude-long"},
    )


def refused(body: Any) -> BatonError:
    with pytest.raises(BatonError) as caught:
        read(body)
    assert caught.value.status == 400
    return caught.value


def holding(block: Json) -> Json:
    return {"messages": [{"role": "user", "content": [block]}]}


def test_what_baton_does_not_read_goes_to_claude_as_it_is() -> None:
    params = {"max_tokens": 5, "thinking": {"type": "adaptive"}, "new_field": {"a": [1.5]}, "output_config": {}}
    request = read({"model": "m", "messages": [USER], "stream": True, **params, "metadata": None})
    assert request.ask.params == params
    assert (request.ask.model, request.stream, request.ignored) == ("m", True, [])
    assert (request.ask.system, request.ask.tools, request.ask.tool_choice) == (None, None, None)


def test_defaults_and_aliases() -> None:
    request = read({"messages": [USER]})
    assert (request.ask.model, request.ask.model_named, request.ask.params) == (
        "claude-default",
        False,
        {},
    )
    assert read({"messages": [USER], "model": "short"}).ask.model == "claude-long"


def test_an_empty_list_of_tools_means_none_this_time() -> None:
    assert refused({"messages": [USER], "tools": [], "tool_choice": {"type": "any"}}).param == "tool_choice"
    ask = read({"messages": [USER], "tools": [], "tool_choice": {"type": "auto"}}).ask
    assert (ask.tools, ask.tool_choice) == (None, {"type": "none"})


def test_sampling_is_left_out_of_the_older_version_only() -> None:
    body = {"messages": [USER], "temperature": 0.5, "top_k": 1}
    older = read(body, "2023-06-01")
    assert older.ignored == ["temperature", "top_k"]
    assert older.ask.params == {}
    assert read(body, "2026-10-21").ask.params == {"temperature": 0.5, "top_k": 1}


def test_markers_for_the_cache_are_left_out_of_messages_wherever_they_are() -> None:
    text: Json = {"type": "text", "text": "a"}
    result: Json = {"type": "tool_result", "tool_use_id": "t", "content": [{**text, "cache_control": MARK}]}
    body = {
        "messages": [{"role": "user", "content": [{**text, "cache_control": MARK}, {**result, "cache_control": MARK}]}]
    }
    before = copy.deepcopy(body)
    request = read(body)
    assert request.ask.messages == [{"role": "user", "content": [text, {**result, "content": [text]}]}]
    assert request.ignored == ["messages.content.cache_control"]
    assert body == before, "the caller's own body was changed"


def test_messages_without_markers_are_not_copied() -> None:
    message: Json = {"role": "user", "content": [{"type": "text", "text": "a", "odd": 1}]}
    assert read({"messages": [message]}).ask.messages[0] is message


def test_deep_content_is_left_alone() -> None:
    deep: Any = "x"
    for _ in range(100):
        deep = [deep]
    block = {"type": "future_block", "data": deep}
    assert read({"messages": [{"role": "user", "content": [block]}]}).ask.messages[0]["content"] == [block]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ([], None),
        ({}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{**USER, "role": ["user"]}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": ["Hi"]}]}, "messages.0.content.0"),
        (holding({"type": "thinking", "thinking": "a"}), "messages.0.content.0.signature"),
        (holding({"type": "tool_use", "id": "a", "name": "b"}), "messages.0.content.0.input"),
        (holding({"type": "tool_result", "tool_use_id": "a", "content": {}}), "messages.0.content.0.content"),
        (holding({"type": "tool_result", "tool_use_id": "a", "content": ["b"]}), "messages.0.content.0.content.0"),
        ({"messages": [USER], "model": 1}, "model"),
        ({"messages": [USER], "system": [{"type": "image"}]}, "system"),
        ({"messages": [USER], "tools": {}}, "tools"),
        ({"messages": [USER], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"messages": [USER], "stream": 1}, "stream"),
        ({"messages": [USER], "thinking": ["display"]}, "thinking"),
        ({"messages": [USER], "thread": {}}, "thread"),
    ],
)
def test_what_could_not_be_read_later_is_refused_by_its_place(body: Any, param: str | None) -> None:
    assert refused(body).param == param


def test_a_thread_is_refused_with_the_code_that_has_tool_runners_go_on_without_one() -> None:
    error = refused({"messages": [USER], "thread": {"type": "create"}})
    assert (error.status, error.code) == (400, "thread_unsupported_request")


def test_an_answer_is_claudes_own_whole_and_event_by_event() -> None:
    events = as_events(answer_events(text_block(0, "Hi")))
    answer = Answer()
    rendering = messages_out.rendering("turn_x", 0, answer)
    shown = rendering.frames(answer.feed(events)) + rendering.frames(answer.held)
    assert shown == [messages_out.frame(event) for event in events]
    assert shown[0].startswith(b'event: message_start\ndata: {"type":"message_start"')
    message = Message.model_validate_json(rendering.whole())
    assert [block.type for block in message.content] == ["text"]
    assert (message.stop_reason, message.usage.output_tokens) == ("end_turn", answer.usage["output_tokens"])


def test_what_the_last_event_tells_beyond_the_known_is_in_the_message() -> None:
    told = answer_events(text_block(0, "Hi"))
    delta = next(one for one in told if one["type"] == "message_delta")
    delta["delta"]["container"] = {"id": "c"}
    delta["context_management"] = {"applied_edits": []}
    answer = Answer()
    answer.feed(as_events(told))
    whole = orjson.loads(messages_out.rendering("turn_x", 0, answer).whole())
    assert (whole["container"], whole["context_management"]) == ({"id": "c"}, {"applied_edits": []})


def test_a_stream_that_fails_ends_in_an_error_event() -> None:
    frame = messages_out.failed(BatonError("turn_interrupted", "Stopped."))
    assert frame.startswith(b"event: error\ndata: {") and frame.endswith(b"}\n\n")
    event = Event("error", b"", orjson.loads(frame.partition(b"data: ")[2]))
    assert event.data["error"]["details"]["error_code"] == "turn_interrupted"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["model", "short", '"model":"short"', "é"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["model", "a", '"model"']), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(before=_JSON, after=_JSON, spaces=st.sampled_from([b"", b" ", b"\n\t"]))
def test_nothing_but_the_requests_own_model_is_replaced(before: Any, after: Any, spaces: bytes) -> None:
    parts = [
        b'"x":' + orjson.dumps(before),
        b'"model"' + spaces + b":" + spaces + b'"short"',
        b'"y":' + orjson.dumps(after),
    ]
    raw = b"{ " + b" ,".join(parts) + b" }"
    changed = with_model(raw, "claude-long")
    parts[1] = parts[1].replace(b'"short"', b'"claude-long"')
    assert changed == b"{ " + b" ,".join(parts) + b" }"


@pytest.mark.parametrize(
    ("raw", "changed"),
    [
        (rb'{"model":"sh\u006frt","n":1.10}', rb'{"model":"long","n":1.10}'),
        (rb'{"m\u006fdel":"short"}', rb'{"m\u006fdel":"long"}'),
        (b'{"model":1,"model":"short"}', b'{"model":1,"model":"long"}'),
        (b'{"model":{"model":"a"},"model":"short"}', b'{"model":{"model":"a"},"model":"long"}'),
        (b'{"model":"a","model":"short"}', b'{"model":"a","model":"long"}'),
        (rb'{"a":"\"model\":\"short\"","model":"short"}', rb'{"a":"\"model\":\"short\"","model":"long"}'),
        (b'{"t":[' + b'{"model":"short"},' * 9 + b'1],"model":"short"}', None),
    ],
)
def test_the_model_is_replaced_however_it_is_written(raw: bytes, changed: bytes | None) -> None:
    assert with_model(raw, "long") == (changed or raw[: -len(b'"short"}')] + b'"long"}')
