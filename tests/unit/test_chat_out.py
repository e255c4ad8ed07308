"""Chat completions, the answer: what the openai SDK's own types make of completions, chunks and errors."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from service.dialects.chat_out import ChatAnswer, Envelope, finish_reason, framing
from service.errors import BatonError
from service.transcript import Answer
from tests.unit.claude_events import answer_events, as_events, block, message_start, text_block

SESSION = Envelope("chatcmpl-1", 1_700_000_000, "my-chat")
STATELESS = Envelope("chatcmpl-1", 1_700_000_000, None)


def streamed(
    events: list[dict[str, Any]], *, envelope: Envelope = SESSION, include_usage: bool = False, batch: int = 1
) -> bytes:
    """What a caller gets of an answer whose events come ``batch`` at a time, the held ones last."""
    answer = Answer()
    chat = ChatAnswer(envelope, answer, include_usage=include_usage)
    frames: list[bytes] = []
    for start in range(0, len(events), batch):
        frames += chat.frames(answer.feed(as_events(events[start : start + batch])))
    assert answer.complete
    frames += chat.frames(answer.held)
    assert all(frame.endswith(b"\n\n") and frame.count(b"\n\n") == 1 for frame in frames)
    return b"".join(frames)


def payloads(stream: bytes) -> list[Any]:
    """The JSON of each frame; every frame is one ``data:`` line and an empty one."""
    frames = stream.decode().split("\n\n")
    assert frames.pop() == ""
    assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames)
    return [frame[6:] if frame == "data: [DONE]" else json.loads(frame[6:]) for frame in frames]


def chunks_of(stream: bytes) -> list[ChatCompletionChunk]:
    *found, done = payloads(stream)
    assert done == "[DONE]"
    return [ChatCompletionChunk.model_validate(payload, strict=True) for payload in found]


def whole(events: list[dict[str, Any]], envelope: Envelope = SESSION) -> ChatCompletion:
    answer = Answer()
    answer.feed(as_events(events))
    return ChatCompletion.model_validate_json(ChatAnswer(envelope, answer, include_usage=False).whole(), strict=True)


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
def test_a_stream_is_what_the_sdk_expects(batch: int) -> None:
    chunks = chunks_of(streamed(answer_events(text_block(0, "Hel", "lo ", "there")), batch=batch))
    assert {(c.id, c.object, c.created, c.model) for c in chunks} == {
        ("chatcmpl-1", "chat.completion.chunk", 1_700_000_000, "claude-sonnet-5-5")
    }
    assert chunks[0].choices[0].delta.role == "assistant"
    assert text_of(chunks) == "Hello there"
    assert [c.choices[0].finish_reason for c in chunks] == [None] * 4 + ["stop"]
    last = chunks[-1].choices[0].delta
    assert (last.content, last.role, last.refusal, last.tool_calls) == (None, None, None, None)


def test_the_session_is_named_in_every_chunk_and_in_the_body() -> None:
    events = answer_events(text_block(0, "Hi"))
    *found, _ = payloads(streamed(events, include_usage=True))
    assert {payload["session_id"] for payload in found} == {"my-chat"}
    assert whole(events).model_extra == {"session_id": "my-chat"}
    *found, _ = payloads(streamed(events, envelope=STATELESS))
    assert not any("session_id" in payload for payload in found)
    assert not whole(events, STATELESS).model_extra


def test_a_whole_completion() -> None:
    body = whole(answer_events(text_block(0, "Hel", "lo"), text_block(1, " you")))
    (choice,) = body.choices
    assert (body.id, body.object, body.model) == ("chatcmpl-1", "chat.completion", "claude-sonnet-5-5")
    assert (choice.index, choice.message.role, choice.message.content) == (0, "assistant", "Hello you")
    assert (choice.message.refusal, choice.logprobs, choice.finish_reason) == (None, None, "stop")


def test_usage_adds_up_what_claude_counts_apart() -> None:
    usage = {
        "input_tokens": 10,
        "cache_read_input_tokens": 200,
        "cache_creation_input_tokens": 3000,
        "output_tokens": 7,
        "output_tokens_details": {"thinking_tokens": 4},
    }
    events = answer_events(text_block(0, "Hi"), usage=usage)
    counted = whole(events).usage
    assert counted is not None
    assert (counted.prompt_tokens, counted.completion_tokens, counted.total_tokens) == (3210, 7, 3217)
    assert counted.prompt_tokens_details is not None
    assert counted.prompt_tokens_details.cached_tokens == 200
    assert counted.prompt_tokens_details.cache_write_tokens == 3000
    assert counted.completion_tokens_details is not None
    assert counted.completion_tokens_details.reasoning_tokens == 4
    chunks = chunks_of(streamed(events, include_usage=True))
    assert chunks[-1].choices == []
    assert chunks[-1].usage == counted
    *before, _, _ = payloads(streamed(events, include_usage=True))
    assert all(payload["usage"] is None for payload in before)


def test_usage_is_left_out_of_a_stream_that_does_not_ask_for_it() -> None:
    *found, _ = payloads(streamed(answer_events(text_block(0, "Hi"))))
    assert not any("usage" in payload for payload in found)
    assert all(payload["choices"] for payload in found)


def test_usage_that_claude_leaves_out_counts_as_none() -> None:
    events = answer_events(text_block(0, "Hi"), usage={"input_tokens": 5, "cache_read_input_tokens": None})
    counted = whole(events).usage
    assert counted is not None
    assert (counted.prompt_tokens, counted.total_tokens) == (5, 5 + counted.completion_tokens)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("a_reason_of_the_future", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
    ],
)
def test_finish_reasons(reason: str, expected: str) -> None:
    assert finish_reason(reason) == expected
    events = answer_events(text_block(0, "Hi"), stop_reason=reason)
    assert whole(events).choices[0].finish_reason == expected
    assert chunks_of(streamed(events))[-1].choices[0].finish_reason == expected


def test_a_refusal_is_told_with_its_explanation() -> None:
    details = {"type": "refusal", "explanation": "Not this."}
    events = answer_events(stop_reason="refusal", stop_details=details)
    message = whole(events).choices[0].message
    assert (message.content, message.refusal) == (None, "Not this.")
    chunks = chunks_of(streamed(events))
    assert [c.choices[0].delta.refusal for c in chunks] == [None, "Not this.", None]
    assert chunks[-1].choices[0].finish_reason == "content_filter"


def test_a_refusal_without_an_explanation_still_says_so() -> None:
    message = whole(answer_events(text_block(0, "I was "), stop_reason="refusal")).choices[0].message
    assert message.content == "I was "
    assert message.refusal


def test_an_empty_answer_has_empty_content() -> None:
    assert whole(answer_events()).choices[0].message.content == ""
    assert text_of(chunks_of(streamed(answer_events()))) == ""


@pytest.mark.parametrize(
    ("tier", "told"), [("standard", "default"), ("priority", "priority"), ("batch", None), ("new", None), (None, None)]
)
def test_the_service_tier_is_told_as_openai_names_it(tier: str | None, told: str | None) -> None:
    events = answer_events(text_block(0, "Hi"))
    events[0]["message"]["usage"]["service_tier"] = tier
    assert whole(events).service_tier == told
    chunks = chunks_of(streamed(events, include_usage=True))
    assert {chunk.service_tier for chunk in chunks} == {told}
    if told is None:
        assert b"service_tier" not in streamed(events)


def citing(index: int, text: str, *citations: dict[str, Any]) -> list[dict[str, Any]]:
    deltas = [{"type": "citations_delta", "citation": citation} for citation in citations]
    return block(index, {"type": "text", "text": "", "citations": []}, {"type": "text_delta", "text": text}, *deltas)


def test_citations_with_a_url_are_annotations_at_the_text_of_their_block() -> None:
    web = {
        "type": "web_search_result_location",
        "url": "https://a",
        "title": "A",
        "cited_text": "",
        "encrypted_index": "",
    }
    page = {"type": "char_location", "cited_text": "x", "document_index": 0}
    blocks = [text_block(0, "é🙂 "), text_block(1, " \n"), citing(2, "sunny", web, page, {**web, "title": None})]
    events = answer_events(*blocks, text_block(3, "."))
    message = whole(events).choices[0].message
    assert message.content == "é🙂 sunny."
    found = [one.url_citation for one in message.annotations or ()]
    assert [(message.content[one.start_index : one.end_index], one.url, one.title) for one in found] == [
        ("sunny", "https://a", "A"),
        ("sunny", "https://a", "https://a"),
    ]
    *before, cited, last = chunks_of(streamed(events))
    assert cited.choices[0].delta.model_extra == {"annotations": [one.to_dict() for one in message.annotations or ()]}
    assert last.choices[0].finish_reason == "stop"
    assert not any(chunk.choices[0].delta.model_extra for chunk in before)


def test_an_answer_without_urls_has_no_annotations() -> None:
    events = answer_events(citing(0, "Hi", {"type": "char_location", "cited_text": "x", "document_index": 0}))
    assert "annotations" not in whole(events).choices[0].message.model_fields_set
    assert b"annotations" not in streamed(events)


def test_thinking_is_shown_if_it_is_asked_for() -> None:
    begun = {"type": "thinking", "thinking": "", "signature": ""}
    deltas = [{"type": "thinking_delta", "thinking": piece} for piece in ("Let me ", "", "see.")]
    signed = {"type": "signature_delta", "signature": "c2ln"}
    events = answer_events(block(0, begun, *deltas, signed), text_block(1, "Hi"), block(2, begun, deltas[0], signed))
    answer = Answer()
    chat = ChatAnswer(SESSION, answer, include_usage=False, reasoning=True)
    frames = chat.frames(answer.feed(as_events(events)))
    deltas_shown = [chunk["choices"][0]["delta"] for chunk in payloads(b"".join(frames))]
    assert [delta["reasoning_content"] for delta in deltas_shown if "reasoning_content" in delta] == [
        "Let me ",
        "see.",
        "Let me ",
    ]
    body = ChatCompletion.model_validate_json(chat.whole(), strict=True)
    assert body.choices[0].message.model_extra == {"reasoning_content": "Let me see.Let me "}
    assert (body.choices[0].message.content, "reasoning_content" in str(whole(events))) == ("Hi", False)


def test_thinking_that_claude_does_not_tell_is_not_shown() -> None:
    signed = {"type": "signature_delta", "signature": "c2ln"}
    events = answer_events(block(0, {"type": "thinking", "thinking": "", "signature": ""}, signed), text_block(1, "Hi"))
    answer = Answer()
    chat = ChatAnswer(SESSION, answer, include_usage=False, reasoning=True)
    assert b"reasoning" not in b"".join(chat.frames(answer.feed(as_events(events))))
    assert "reasoning_content" not in orjson.loads(chat.whole())["choices"][0]["message"]


@pytest.mark.parametrize("batch", [1, 100])
def test_a_stream_shows_no_white_space_that_is_not_kept(batch: int) -> None:
    events = answer_events(
        text_block(0, "\n", " "), text_block(1, " ", "\nHi", " "), text_block(2, "  "), call_block(3, "toolu_1")
    )
    assert text_of(chunks_of(streamed(events, batch=batch))) == whole(events).choices[0].message.content == " \nHi "


def test_text_that_came_whole_at_the_start_is_told() -> None:
    events = answer_events(block(0, {"type": "text", "text": "Hi"}, {"type": "text_delta", "text": " you"}))
    assert text_of(chunks_of(streamed(events))) == whole(events).choices[0].message.content == "Hi you"


@pytest.mark.parametrize("include_usage", [True, False])
def test_streams_that_show_other_frames_are_framed_otherwise(include_usage: bool) -> None:
    shown, hidden = (framing(include_usage=include_usage, reasoning=reasoning) for reasoning in (True, False))
    assert len({shown, hidden, framing(include_usage=not include_usage, reasoning=False)}) == 3


def test_thinking_is_not_shown_as_text() -> None:
    thinking: list[dict[str, Any]] = [
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "thinking", "thinking": "", "signature": ""},
        },
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "secret"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "c2ln"}},
        {"type": "content_block_stop", "index": 0},
    ]
    events = answer_events(thinking, text_block(1, "Hi"))
    assert b"secret" not in streamed(events)
    assert whole(events).choices[0].message.content == "Hi"


def call_block(index: int, call_id: str, *pieces: str, name: str = "weather", **more: Any) -> list[dict[str, Any]]:
    begun = {"type": "tool_use", "id": call_id, "name": name, "input": {}, **more}
    return block(index, begun, *({"type": "input_json_delta", "partial_json": piece} for piece in pieces))


def calls_of(chunks: list[ChatCompletionChunk]) -> list[tuple[str, str, str]]:
    """Id, name and arguments of the streamed calls, put together as a client does."""
    found: list[list[str]] = []
    for delta in (one for chunk in chunks for choice in chunk.choices for one in choice.delta.tool_calls or ()):
        assert delta.function is not None
        if delta.id is not None:
            assert (delta.index, delta.type) == (len(found), "function")
            found.append([delta.id, delta.function.name or "", ""])
        else:
            assert (delta.type, delta.function.name) == (None, None)
        found[delta.index][2] += delta.function.arguments or ""
    return [(call_id, name, arguments) for call_id, name, arguments in found]


CALLS = [
    text_block(0, "Let me ", "see."),
    call_block(1, "toolu_1", "", '{"city": "Z', 'ürich", "days": [1,', " 2]}", caller={"type": "direct"}),
    call_block(2, "toolu_2", name="look"),
]


def test_tool_calls_are_told_as_openai_tells_them() -> None:
    (choice,) = whole(answer_events(*CALLS, stop_reason="tool_use")).choices
    assert (choice.message.content, choice.finish_reason) == ("Let me see.", "tool_calls")
    assert choice.message.tool_calls is not None
    told = [one.to_dict() for one in choice.message.tool_calls]
    arguments = '{"city":"Zürich","days":[1,2]}'
    assert told == [
        {"id": "toolu_1", "type": "function", "function": {"name": "weather", "arguments": arguments}},
        {"id": "toolu_2", "type": "function", "function": {"name": "look", "arguments": "{}"}},
    ]


def test_an_answer_of_calls_alone_has_no_content() -> None:
    for blocks in ([CALLS[1]], [text_block(0, ""), CALLS[1]]):
        message = whole(answer_events(*blocks, stop_reason="tool_use")).choices[0].message
        assert message.content is None
        assert message.tool_calls is not None


def test_an_answer_without_calls_does_not_name_them() -> None:
    assert whole(answer_events(text_block(0, "Hi"))).choices[0].message.tool_calls is None
    assert b"tool_calls" not in streamed(answer_events(text_block(0, "Hi")))


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_streamed_calls_are_what_the_sdk_expects(batch: int) -> None:
    chunks = chunks_of(streamed(answer_events(*CALLS, stop_reason="tool_use"), batch=batch, include_usage=True))
    assert text_of(chunks) == "Let me see."
    assert calls_of(chunks) == [
        ("toolu_1", "weather", '{"city": "Zürich", "days": [1, 2]}'),
        ("toolu_2", "look", "{}"),
    ]
    deltas = [one for chunk in chunks if chunk.choices for one in chunk.choices[0].delta.tool_calls or ()]
    first = {"index": 0, "id": "toolu_1", "type": "function", "function": {"name": "weather", "arguments": ""}}
    assert deltas[0].to_dict() == first
    assert deltas[1].to_dict() == {"index": 0, "function": {"arguments": '{"city": "Z'}}
    assert [delta.index for delta in deltas] == [0, 0, 0, 0, 1, 1]
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["tool_calls"]


def test_an_input_that_came_whole_at_the_start_is_told() -> None:
    events = answer_events(call_block(0, "toolu_1", input={"city": "Bern"}), stop_reason="tool_use")
    assert calls_of(chunks_of(streamed(events))) == [("toolu_1", "weather", '{"city":"Bern"}')]


def test_calls_of_claudes_own_tools_are_not_the_callers() -> None:
    own = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}
    events = answer_events(block(0, own, {"type": "input_json_delta", "partial_json": '{"q": 1}'}), CALLS[2])
    assert [call for call, _, _ in calls_of(chunks_of(streamed(events)))] == ["toolu_2"]
    assert [call.id for call in whole(events).choices[0].message.tool_calls or ()] == ["toolu_2"]


def test_of_a_call_that_max_tokens_cut_a_stream_shows_what_came_and_a_body_nothing() -> None:
    events = answer_events(text_block(0, "Hm"), call_block(1, "toolu_1", '{"city": "Z'), stop_reason="max_tokens")
    chunks = chunks_of(streamed(events))
    assert calls_of(chunks) == [("toolu_1", "weather", '{"city": "Z')]
    assert chunks[-1].choices[0].finish_reason == "length"
    (choice,) = whole(events).choices
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == ("Hm", None, "length")


def test_a_refusal_makes_no_calls() -> None:
    message = whole(answer_events(*CALLS, stop_reason="refusal")).choices[0].message
    assert (message.content, message.tool_calls) == ("Let me see.", None)
    assert message.refusal


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=6,
)
INPUTS = st.dictionaries(st.text("abc", min_size=1, max_size=3), JSON, max_size=3)


@given(st.lists(st.tuples(INPUTS, st.integers(1, 9)), min_size=1, max_size=4), st.integers(1, 7), st.booleans())
def test_any_calls_survive_however_they_are_cut(
    inputs: list[tuple[dict[str, Any], int]], batch: int, with_text: bool
) -> None:
    """Cut into any deltas, and these into any batches, the same calls come out; whole and streamed alike."""
    blocks = [text_block(0, "Hi")] if with_text else []
    for number, (given_input, size) in enumerate(inputs):
        said = json.dumps(given_input) if given_input else ""
        pieces = [said[at : at + size] for at in range(0, len(said), size)]
        blocks.append(call_block(len(blocks), f"toolu_{number}", *pieces))
    events = answer_events(*blocks, stop_reason="tool_use")
    one_by_one = streamed(events)
    assert streamed(events, batch=batch) == one_by_one
    found = calls_of(chunks_of(one_by_one))
    told = [call for call in whole(events).choices[0].message.tool_calls or () if call.type == "function"]
    assert [call for call, _, _ in found] == [call.id for call in told] == [f"toolu_{n}" for n in range(len(inputs))]
    assert [json.loads(arguments) for _, _, arguments in found] == [given for given, _ in inputs]
    assert [json.loads(call.function.arguments) for call in told] == [given for given, _ in inputs]


AWKWARD = 'é 🙂 \u2028\u2029\x85 "quoted" \\ \x00\x1f </script> data: [DONE]\n\nevent: x\r\n'


def test_awkward_text_survives() -> None:
    events = answer_events(text_block(0, AWKWARD, "\n", AWKWARD))
    assert text_of(chunks_of(streamed(events))) == AWKWARD + "\n" + AWKWARD
    assert whole(events).choices[0].message.content == AWKWARD + "\n" + AWKWARD


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=8), st.integers(1, 5))
@example(["\r"], 1)
def test_any_text_survives(pieces: list[str], batch: int) -> None:
    events = answer_events(text_block(0, *pieces))
    text = "".join(pieces)
    shown = text if text.strip() else ""  # what is blank as a whole is not kept, and not shown
    assert text_of(chunks_of(streamed(events, batch=batch))) == shown
    assert whole(events).choices[0].message.content == shown


def test_a_session_or_model_of_any_name_does_not_confuse_the_frames() -> None:
    envelope = Envelope("chatcmpl-1", 1, 'text "content":"\\u0000text')
    events = [message_start(model='"content":""'), *answer_events(text_block(0, "Hi"))[1:]]
    assert text_of(chunks_of(streamed(events, envelope=envelope))) == "Hi"


def test_an_error_is_the_last_word_of_a_stream_and_no_success_follows() -> None:
    answer = Answer()
    chat = ChatAnswer(SESSION, answer, include_usage=True)
    events = answer_events(text_block(0, "Hel", "lo"))
    out = b"".join(chat.frames(answer.feed(as_events(events[:3]))))
    out += chat.failed(BatonError("upstream_nonsense", "Claude's answer stopped before its end."))
    *before, last = payloads(out)
    assert b"[DONE]" not in out
    assert last == {
        "error": {
            "message": "Claude's answer stopped before its end.",
            "type": "server_error",
            "param": None,
            "code": "upstream_nonsense",
        }
    }
    assert all(payload["choices"][0]["finish_reason"] is None for payload in before)
