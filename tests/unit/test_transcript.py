"""From Claude's events to what is stored: kept exactly, or left out whole."""

from dataclasses import astuple
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.dialects.chat_out import ChatAnswer, Envelope
from service.errors import BatonError
from service.transcript import Answer, pack, visible
from storage import elements
from storage.turns import Usage
from tests.unit.claude_events import (
    Json,
    answer_events,
    as_events,
    block,
    message_start,
    stop_events,
    text_block,
)

THINKING = block(
    0,
    {"type": "thinking", "thinking": "", "signature": ""},
    {"type": "thinking_delta", "thinking": "Let me "},
    {"type": "thinking_delta", "thinking": "see."},
    {"type": "signature_delta", "signature": "c2lnbmVk"},
)
TOOL_START = {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {}}
DEEP = '{"a": ' + "[" * 300 + "]" * 300 + "}"


def json_delta(text: str) -> Json:
    return {"type": "input_json_delta", "partial_json": text}


def fed(*parts: list[Json]) -> Answer:
    answer = Answer()
    answer.feed(as_events([event for events in parts for event in events]))
    return answer


def content_of(*blocks: list[Json]) -> list[Json]:
    return fed(answer_events(*blocks)).content()


def broken_off(*blocks: list[Json]) -> list[Json]:
    """What is kept of an answer without an end."""
    return fed([message_start()], *blocks).content()


def test_a_whole_answer() -> None:
    answer = fed(answer_events(text_block(0, "Hel", "lo"), usage={"output_tokens": 9}))
    assert answer.content() == [{"type": "text", "text": "Hello"}]
    assert answer.text() == "Hello"
    assert answer.message["id"] == "msg_1"
    assert (answer.stop_reason, answer.complete) == ("end_turn", True)
    assert answer.tokens() == Usage(input=3, output=9)


def test_blocks_are_kept_as_they_came() -> None:
    citation = {"type": "char_location", "cited_text": "x", "document_index": 0}
    cited = block(
        2,
        {"type": "text", "text": "", "citations": None},
        {"type": "text_delta", "text": "As said"},
        {"type": "citations_delta", "citation": citation},
        {"type": "citations_delta", "citation": {**citation, "document_index": 1}},
    )
    redacted = block(1, {"type": "redacted_thinking", "data": "c2VjcmV0"})
    tool = block(3, TOOL_START, json_delta(""), json_delta('{"b": [1, '), json_delta('2.50], "a": "é"}'))
    assert content_of(THINKING, redacted, cited, tool) == [
        {"type": "thinking", "thinking": "Let me see.", "signature": "c2lnbmVk"},
        {"type": "redacted_thinking", "data": "c2VjcmV0"},
        {"type": "text", "text": "As said", "citations": [citation, {**citation, "document_index": 1}]},
        {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"b": [1, 2.5], "a": "é"}},
    ]


def test_a_tool_call_without_input_has_an_empty_one() -> None:
    assert content_of(block(0, TOOL_START))[0]["input"] == {}
    assert content_of(block(0, TOOL_START, json_delta("")))[0]["input"] == {}


def test_unknown_blocks_and_fields_are_kept_verbatim() -> None:
    unknown = {"type": "hologram", "beam": {"z": 1, "a": [None, 0.5]}, "encrypted": "eHh4"}
    known = {"type": "text", "text": "Hi", "from_the_future": True}
    kept = content_of(block(0, unknown), block(1, known, {"type": "text_delta", "text": "!"}))
    assert kept == [unknown, {**known, "text": "Hi!"}]
    assert list(kept[0]) == list(unknown)


@pytest.mark.parametrize("pieces", [(), ("",), (" ", "\n")])
def test_empty_text_is_dropped(pieces: tuple[str, ...]) -> None:
    assert content_of(text_block(0, *pieces), text_block(1, "Hi")) == [{"type": "text", "text": "Hi"}]


def test_blocks_are_ordered_by_their_index() -> None:
    assert [kept["text"] for kept in content_of(text_block(1, "b"), text_block(0, "a"))] == ["a", "b"]


def test_of_a_broken_answer_text_is_kept_as_far_as_it_came() -> None:
    assert broken_off(text_block(0, "Hel", "lo", whole=False)) == [{"type": "text", "text": "Hello"}]
    assert broken_off(text_block(0, "Hel"), text_block(1, "lo", whole=False)) == [
        {"type": "text", "text": "Hel"},
        {"type": "text", "text": "lo"},
    ]
    assert broken_off(text_block(0, " ", whole=False)) == []
    assert broken_off(text_block(0, whole=False)) == []


def test_of_a_broken_answer_signed_thinking_is_kept_whole_or_not_at_all() -> None:
    assert [kept["type"] for kept in broken_off(THINKING)] == ["thinking"]
    for events in range(1, len(THINKING)):
        assert broken_off(THINKING[:events]) == []


def test_thinking_without_a_signature_is_dropped() -> None:
    unsigned = block(
        0, {"type": "thinking", "thinking": "", "signature": ""}, {"type": "thinking_delta", "thinking": "x"}
    )
    assert broken_off(unsigned) == []


def test_of_a_broken_answer_tool_calls_are_kept_whole_or_not_at_all() -> None:
    call = block(0, TOOL_START, json_delta('{"a": 1'), json_delta("}"))
    assert [kept["input"] for kept in broken_off(call)] == [{"a": 1}]
    for events in range(1, len(call)):
        assert broken_off(call[:events]) == []


@pytest.mark.parametrize("reason", ["max_tokens", "model_context_window_exceeded", "refusal"])
def test_a_call_that_claude_cut_short_is_dropped(reason: str) -> None:
    call = block(1, TOOL_START, json_delta('{"a": 1'))
    answer = fed(answer_events(text_block(0, "Hi"), call, stop_reason=reason))
    assert answer.complete
    assert answer.content() == [{"type": "text", "text": "Hi"}]
    assert answer.tool_calls() == []
    assert broken_off(text_block(0, "Hi"), call) == [{"type": "text", "text": "Hi"}]


def test_the_tool_calls_of_an_answer() -> None:
    calls = [block(1, TOOL_START, json_delta('{"a": 1}')), block(2, {**TOOL_START, "id": "toolu_2"})]
    answer = fed(answer_events(text_block(0, "Hi"), *calls, stop_reason="tool_use"))
    assert [(call["id"], call["input"]) for call in answer.tool_calls()] == [("toolu_1", {"a": 1}), ("toolu_2", {})]


def test_a_broken_unknown_block_is_dropped() -> None:
    assert broken_off(block(0, {"type": "hologram"}, whole=False)) == []
    assert broken_off(block(0, {"type": "redacted_thinking", "data": "x"}, whole=False)) == []


def test_events_from_the_stop_reason_on_are_held() -> None:
    events = as_events(answer_events(text_block(0, "Hi")))
    answer = Answer()
    shown = answer.feed(events)
    assert [event.type for event in shown] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
    ]
    assert [event.type for event in answer.held] == ["message_delta", "message_stop"]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=10))
def test_what_is_shown_does_not_depend_on_the_batches(sizes: list[int]) -> None:
    events = as_events(answer_events(THINKING, text_block(1, "a", "b", "c")))
    answer = Answer()
    shown = []
    rest = events
    for size in [*sizes, len(events)]:
        shown += answer.feed(rest[:size])
        rest = rest[size:]
    assert shown + answer.held == events
    assert [event.type for event in answer.held] == ["message_delta", "message_stop"]
    assert answer.complete


def test_a_message_delta_without_a_stop_reason_ends_nothing() -> None:
    answer = Answer()
    usage_only = stop_events(None, usage={"output_tokens": 5})[:1]
    shown = answer.feed(as_events([message_start(), *usage_only]))
    assert len(shown) == 2
    assert not answer.held
    assert answer.tokens().output == 5


def test_usage_is_cumulative_and_a_null_takes_nothing_back() -> None:
    answer = fed([message_start()], stop_events(usage={"output_tokens": 8, "input_tokens": None}))
    assert answer.usage == {"input_tokens": 3, "output_tokens": 8}
    counted = {"cache_read_input_tokens": 5, "cache_creation_input_tokens": 6, "output_tokens": 1}
    assert fed(answer_events(usage=counted)).tokens() == Usage(3, 1, 5, 6)


def test_stop_details_and_sequence_are_kept() -> None:
    delta = {"stop_reason": "stop_sequence", "stop_sequence": "END", "stop_details": {"type": "x"}}
    answer = fed([message_start(), {"type": "message_delta", "delta": delta}, {"type": "message_stop"}])
    assert (answer.stop_reason, answer.stop_sequence, answer.stop_details) == ("stop_sequence", "END", {"type": "x"})


def test_unknown_kinds_of_events_are_passed_on() -> None:
    assert fed([message_start(), {"type": "weather"}], stop_events()).complete


WRONG: dict[str, list[Json]] = {
    "block before the message": text_block(0, "Hi"),
    "delta before its block": [message_start(), text_block(0, "Hi")[1]],
    "stop before its block": [message_start(), {"type": "content_block_stop", "index": 0}],
    "delta after its block": [message_start(), *text_block(0, "Hi"), text_block(0, "Hi")[1]],
    "block twice": [message_start(), *text_block(0, "Hi"), *text_block(0, "Hi")],
    "message twice": [message_start(), message_start()],
    "end without a stop reason": [message_start(), *text_block(0, "Hi"), {"type": "message_stop"}],
    "end without a message": [{"type": "message_stop"}],
    "delta without a type": [message_start(), *block(0, {"type": "text", "text": ""}, {"text": "x"})],
    "delta without its field": [message_start(), *block(0, {"type": "text", "text": ""}, {"type": "text_delta"})],
    "delta that is no text": [
        message_start(),
        *block(0, {"type": "text", "text": ""}, {"type": "text_delta", "text": 5}, whole=False),
    ],
    "delta that is no object": [
        message_start(),
        *block(0, {"type": "text", "text": ""})[:1],
        {"type": "content_block_delta", "index": 0, "delta": "x"},
    ],
    "delta without an index": [message_start(), {"type": "content_block_delta", "delta": {}}],
    "index that is a list": [message_start(), {"type": "content_block_stop", "index": []}],
    "block without a type": [message_start(), *block(0, {"text": ""})],
    "block that is no object": [message_start(), {"type": "content_block_start", "index": 0, "content_block": 5}],
    "block whose text is none": [message_start(), *block(0, {"type": "text", "text": None})],
    "tool input that is not JSON": answer_events(block(0, TOOL_START, json_delta('{"a": ')), stop_reason="tool_use"),
    "tool input that is no object": [message_start(), *block(0, TOOL_START, json_delta("[1]"))],
    "tool input that nests too deeply": [message_start(), *block(0, TOOL_START, json_delta(DEEP))],
    "tool call without an id": [message_start(), *block(0, {"type": "tool_use", "name": "add", "input": {}})],
    "tool call whose name is none": [message_start(), *block(0, {**TOOL_START, "name": None})],
    "delta after a call that was cut": [
        message_start(),
        *block(0, TOOL_START, json_delta('{"a": ')),
        {"type": "content_block_delta", "index": 0, "delta": json_delta("1}")},
    ],
    "input of a text": [message_start(), *block(0, {"type": "text", "text": ""}, json_delta("{}"))],
    "message that is no object": [{"type": "message_start", "message": "x"}],
    "message_start without a message": [{"type": "message_start"}],
    "usage that is text": [{"type": "message_start", "message": {"id": "msg_1", "usage": "much"}}],
    "message_delta without a delta": [message_start(), {"type": "message_delta"}],
    "message_delta that is no object": [message_start(), {"type": "message_delta", "delta": "x"}],
}


@pytest.mark.parametrize("case", WRONG)
def test_what_breaks_the_documented_order_or_form_is_nonsense(case: str) -> None:
    with pytest.raises(BatonError) as caught:
        fed(WRONG[case])
    assert caught.value.code == "upstream_nonsense"


@pytest.mark.parametrize(
    ("place", "values"),
    [
        *(
            (f"{event}.usage.{count}", (-1, 1.5, "five", True, [], {}, 2**53, 1e30))
            for event in ("0.message", "1")
            for count in ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
        ),
        ("0.message.usage", (7, "x", [["output_tokens", 1]], True)),
        ("1.usage", (7, "x", [["output_tokens", 1]], True)),
        ("1.usage.output_tokens_details", (7, "text", [])),
        ("1.usage.output_tokens_details", tuple({"thinking_tokens": odd} for odd in (-1, "x", 0.5))),
        ("1.delta.stop_details", (7, "text", [], {"explanation": 7})),
        ("1.delta.stop_reason", (7, ["end_turn"], {})),
        ("1.delta.stop_sequence", (7, [], {})),
        ("0.message.id", (7, None, [])),
        ("0.message.model", (7, None, {})),
        ("0.message", (7, "x", [], None)),
    ],
)
def test_a_value_of_another_form_is_nonsense_before_the_turn_is_stored(place: str, values: tuple[Any, ...]) -> None:
    *path, last = place.split(".")[1:]
    for odd in values:
        events = orjson.loads(orjson.dumps([message_start(), *stop_events()]))
        target = events[int(place[0])]
        for name in path:
            target = target[name]
        target[last] = odd
        with pytest.raises(BatonError) as caught:
            fed(events)
        assert caught.value.code == "upstream_nonsense", odd


def test_null_counts_and_details_are_nothing() -> None:
    nothing: Json = {"output_tokens": None, "cache_read_input_tokens": None, "output_tokens_details": None}
    answer = fed(answer_events(text_block(0, "Hi"), usage={**nothing, "service_tier": "standard", "new": [1]}))
    assert answer.tokens() == Usage(input=3, output=1)
    assert answer.usage["new"] == [1]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@st.composite
def damaged_answers(draw: st.DrawFn) -> list[Any]:
    """An answer with one field of one event, or of an object in it, replaced or gone, or two events swapped."""
    tool = block(2, TOOL_START, json_delta('{"a": 1}'))
    cited = {"type": "citations_delta", "citation": {"type": "web_search_result_location", "url": "u", "title": "t"}}
    text = block(1, {"type": "text", "text": "", "citations": []}, {"type": "text_delta", "text": "Hi"}, cited)
    events = orjson.loads(orjson.dumps(answer_events(THINKING, text, tool)))
    target: Any = draw(st.sampled_from(events))
    for _ in range(draw(st.integers(0, 2))):
        if inner := [value for value in target.values() if isinstance(value, dict) and value]:
            target = draw(st.sampled_from(inner))
    name = draw(st.sampled_from(list(target)))
    if draw(st.booleans()):
        target[name] = draw(VALUES)
    else:
        del target[name]
    i, j = draw(st.integers(0, len(events) - 1)), draw(st.integers(0, len(events) - 1))
    if draw(st.booleans()):
        events[i], events[j] = events[j], events[i]
    return [event for event in events if isinstance(event.get("type"), str)]


@given(damaged_answers())
def test_whatever_claude_sends_is_kept_or_nonsense_and_never_a_fault_of_ours(events: list[Any]) -> None:
    answer = Answer()
    try:
        answer.feed(as_events(events))
    except BatonError as error:
        assert error.code in ("upstream_nonsense", "upstream_unknown")
    for kept in pack([{"role": "assistant", "content": answer.content()}], elements.FIRST_DIGEST):
        elements.unpack(kept)
    assert isinstance(answer.text(), str)
    assert all(isinstance(count, int) and count >= 0 for count in astuple(answer.tokens()))
    orjson.loads(ChatAnswer(Envelope("chatcmpl-1", 0, None), answer, include_usage=False, reasoning=True).whole())


# What a caller can see, and the digests made of it.


def user(content: Any) -> Json:
    return {"role": "user", "content": content}


def assistant(*content: Json) -> Json:
    return {"role": "assistant", "content": list(content)}


def text(said: str, **fields: Any) -> Json:
    return {"type": "text", "text": said, **fields}


THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "s"}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 1, "b": {"c": 2, "d": 3}}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "five"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (user("Hi"), user([text("Hi")])),
        (user("Hi"), user([text("H"), text("i")])),
        (user("Hi"), user([text("Hi", cache_control={"type": "ephemeral"})])),
        (assistant(text("Hi")), assistant(THOUGHT, text("Hi"))),
        (assistant(text("Hi")), assistant({"type": "redacted_thinking", "data": "x"}, text("Hi"))),
        (assistant(CALL), assistant({**CALL, "input": {"b": {"d": 3, "c": 2}, "a": 1}})),
        (assistant(CALL), assistant({**CALL, "caller": {"type": "direct"}, "cache_control": {"type": "ephemeral"}})),
        (assistant(text("a"), CALL, text("b")), assistant(text("ab"), CALL)),
        (user([RESULT]), user([{**RESULT, "is_error": True}])),
        (user([RESULT]), user([{**RESULT, "content": [text("fi"), text("ve")]}])),
        (user([{**RESULT, "content": ""}]), user([{"type": "tool_result", "tool_use_id": "toolu_1"}])),
        (user([{**RESULT, "content": []}]), user([{"type": "tool_result", "tool_use_id": "toolu_1", "content": None}])),
    ],
)
def test_what_looks_the_same_to_a_caller_has_the_same_digest(one: Json, other: Json) -> None:
    assert visible(one) == visible(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (user("Hi"), assistant(text("Hi"))),
        (user("Hi"), user("Hi ")),
        (user("Hi"), user("hi")),
        (assistant(CALL), assistant({**CALL, "input": {"a": 2}})),
        (assistant(CALL), assistant({**CALL, "id": "toolu_2"})),
        (assistant(CALL), assistant({**CALL, "name": "sub"})),
        (assistant(text("Hi")), assistant(text("Hi"), CALL)),
        (assistant(CALL, {**CALL, "id": "toolu_2"}), assistant({**CALL, "id": "toolu_2"}, CALL)),
        (user([RESULT]), user([{**RESULT, "tool_use_id": "toolu_2"}])),
        (user([RESULT]), user([{**RESULT, "content": "six"}])),
        (user([RESULT]), user("five")),
        (user([RESULT]), user([{**RESULT, "content": [text("five"), {"type": "image", "source": {}}]}])),
        (user([{"type": "image", "source": {"data": "a"}}]), user([{"type": "image", "source": {"data": "b"}}])),
    ],
)
def test_what_looks_different_to_a_caller_has_another_digest(one: Json, other: Json) -> None:
    assert visible(one) != visible(other)


def test_packed_messages_hold_the_json_the_flag_and_a_rolling_digest() -> None:
    messages = [user("Hi"), assistant(THOUGHT, text("Hello")), user("Bye")]
    packed = [elements.unpack(element) for element in pack(messages, elements.FIRST_DIGEST)]
    assert [orjson.loads(element.json) for element in packed] == messages
    assert [element.holds_thinking for element in packed] == [False, True, False]
    assert not any(element.synthetic for element in packed)
    digest = elements.FIRST_DIGEST
    for message, element in zip(messages, packed, strict=True):
        digest = elements.roll(digest, visible(message))
        assert element.digest == digest


def test_a_history_packed_in_pieces_has_the_digests_of_the_whole() -> None:
    messages = [user("a"), assistant(text("b")), user("c"), assistant(text("d"))]
    whole = pack(messages, elements.FIRST_DIGEST)
    first = pack(messages[:2], elements.FIRST_DIGEST)
    assert first + pack(messages[2:], first[-1][1 : elements.HEADER_BYTES]) == whole
    assert len({element[1 : elements.HEADER_BYTES] for element in whole}) == 4


def test_a_kind_of_content_that_cannot_be_kept_is_not_worth_another_attempt() -> None:
    smell = block(0, {"type": "text", "text": ""}, {"type": "smell_delta", "smell": "x"})
    with pytest.raises(BatonError) as caught:
        fed([message_start(), *smell])
    assert caught.value.code == "upstream_unknown"
    assert caught.value.response_headers()["x-should-retry"] == "false"


def test_what_an_answer_tells_beyond_the_known_is_kept_for_replays() -> None:
    start = message_start()
    start["message"] |= {"input_transformations": [{"type": "x"}], "stop_details": None}
    answer = fed([start, *text_block(0, "Hi"), *stop_events()])
    assert answer.more() == {"start": {"input_transformations": [{"type": "x"}]}}
