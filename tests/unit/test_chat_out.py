"""Chat completions, the answer: what the openai SDK's own types make of completions, chunks and errors."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from service.dialects.chat_out import ChatAnswer, Envelope, finish_reason
from service.errors import BatonError
from service.transcript import Answer
from tests.unit.claude_events import answer_events, as_events, message_start, text_block

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


def test_thinking_and_tool_calls_are_not_shown_as_text() -> None:
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


AWKWARD = 'é 🙂 \u2028\u2029\x85 "quoted" \\ \x00\x1f </script> data: [DONE]\n\nevent: x\r\n'


def test_awkward_text_survives() -> None:
    events = answer_events(text_block(0, AWKWARD, "\n", AWKWARD))
    assert text_of(chunks_of(streamed(events))) == AWKWARD + "\n" + AWKWARD
    assert whole(events).choices[0].message.content == AWKWARD + "\n" + AWKWARD


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=8), st.integers(1, 5))
def test_any_text_survives(pieces: list[str], batch: int) -> None:
    events = answer_events(text_block(0, *pieces))
    assert text_of(chunks_of(streamed(events, batch=batch))) == "".join(pieces)


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
