"""A conversation sent again: what of it is new, and where a rewind cuts."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import tool_calls
from service.errors import BatonError
from service.resend import Plan, Span, _going_on, plan, was_rewound
from service.simulator.rules import check_create
from service.transcript import pack
from storage import elements
from storage.elements import FIRST_DIGEST
from storage.turns import Cut


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


TALK = [user("a"), assistant("A"), user("b"), assistant("B"), user("c"), assistant("C")]
STORED = pack(TALK, FIRST_DIGEST)
SPANS = [Span(0, 2), Span(2, 4), Span(4, 6)]


@pytest.mark.parametrize(
    ("sent", "paused", "goes_on"),
    [
        (TALK, True, True),
        (TALK, False, False),
        (TALK[:4], True, False),
        ([*TALK[:5], assistant("other")], True, False),
        ([*TALK, user("d"), assistant("D")], True, False),
    ],
)
def test_only_the_last_answer_goes_on_and_only_if_it_paused(sent: Any, paused: bool, goes_on: bool) -> None:
    spans = [*SPANS[:2], Span(4, 6, paused=paused)]
    if goes_on:
        assert _going_on(STORED, spans, sent) == Plan(6, [])
    else:
        with pytest.raises(BatonError, match="must not end with an assistant message"):
            _going_on(STORED, spans, sent)


@pytest.mark.parametrize(
    ("sent", "kept", "new"),
    [
        ([*TALK, user("d")], 6, [user("d")]),
        ([*TALK, user("d"), user("e")], 6, [user("d"), user("e")]),
        (TALK[:5], 4, [user("c")]),
        (TALK[:3], 2, [user("b")]),
        (TALK[:1], 0, [user("a")]),
        ([*TALK[:4], user("other")], 4, [user("other")]),
        ([*TALK[:2], user("other")], 2, [user("other")]),
        ([*TALK[:3], assistant("edited"), user("d")], 2, [user("b"), assistant("edited"), user("d")]),
        ([*TALK[:5], assistant("edited"), user("d")], 4, [user("c"), assistant("edited"), user("d")]),
    ],
    ids=[
        "continued",
        "continued-by-two",
        "regenerate-the-last",
        "regenerate-an-earlier-one",
        "regenerate-the-first",
        "last-question-edited",
        "earlier-question-edited",
        "earlier-answer-edited",
        "last-answer-edited",
    ],
)
def test_what_is_new(sent: list[dict[str, Any]], kept: int, new: list[dict[str, Any]]) -> None:
    assert plan(STORED, SPANS, sent) == Plan(kept, new)


def test_messages_by_hand_that_a_request_ends_with_are_asked_anew() -> None:
    talk = [user("a"), assistant("A"), user("by hand"), user("q"), assistant("Q")]
    spans = [Span(0, 2), Span(2, 3, by_hand=True), Span(3, 5)]
    assert plan(pack(talk, FIRST_DIGEST), spans, talk[:3]) == Plan(2, [user("by hand")])


def test_an_empty_session_takes_everything() -> None:
    assert plan([], [], [*TALK, user("d")]) == Plan(0, [*TALK, user("d")])


@pytest.mark.parametrize(
    "sent", [TALK[2:5], [user("x")], [user("x"), *TALK[1:5]]], ids=["window", "other", "first-edited"]
)
def test_a_first_message_that_differs_is_a_mismatch(sent: list[dict[str, Any]]) -> None:
    assert plan(STORED, SPANS, sent) is None


def test_a_turn_of_two_questions_goes_whole_and_keeps_what_did_not_change() -> None:
    talk = [user("a"), user("b"), assistant("B")]
    stored = pack(talk, FIRST_DIGEST)
    before = [user("z"), assistant("Z")]
    assert plan(stored, [Span(0, 3)], [user("a"), user("b2")]) == Plan(0, [user("a"), user("b2")])
    both = pack([*before, *talk], FIRST_DIGEST)
    sent = [*before, user("a"), user("b2")]
    assert plan(both, [Span(0, 2), Span(2, 5)], sent) == Plan(2, [user("a"), user("b2")])


@pytest.mark.parametrize("seen", ["Hel", "Hello", "Hello wor", "Hello world and more"])
def test_an_answer_that_was_cut_short_matches_whatever_its_caller_saw_of_it(seen: str) -> None:
    stored = pack([user("a"), assistant("Hello wor")], FIRST_DIGEST)
    sent = [user("a"), assistant(seen), user("go on")]
    assert plan(stored, [Span(0, 2, incomplete=True)], sent) == Plan(2, [user("go on")])


def test_a_whole_answer_matches_itself_only() -> None:
    stored = pack([user("a"), assistant("Hello world")], FIRST_DIGEST)
    sent = [user("a"), assistant("Hello"), user("go on")]
    assert plan(stored, [Span(0, 2)], sent) == Plan(0, sent)


def test_what_comes_behind_a_cut_answer_is_compared_with_what_is_stored() -> None:
    talk = [user("a"), assistant("Hello wor"), user("b"), assistant("B")]
    stored = pack(talk, FIRST_DIGEST)
    spans = [Span(0, 2, incomplete=True), Span(2, 4)]
    sent = [user("a"), assistant("Hello"), user("b"), assistant("B"), user("c")]
    assert plan(stored, spans, sent) == Plan(4, [user("c")])


@pytest.mark.parametrize("position", [0, 2, 6])
def test_a_refused_question_is_left_out_with_whatever_was_shown_for_it(position: int) -> None:
    before = FIRST_DIGEST if position == 0 else STORED[position - 1][1:9]
    refused = pack([user("how to…")], before)[0][1:9]
    spans = sorted([*SPANS, Span(position, position, refused=(refused,))], key=lambda span: (span.start, span.end))
    sent = [*TALK[:position], user("how to…"), assistant("I cannot help."), *TALK[position:], user("d")]
    assert plan(STORED, spans, sent) == Plan(6, [user("d")])


def test_a_refused_question_that_is_asked_again_is_asked_again() -> None:
    refused = pack([user("how to…")], STORED[-1][1:9])[0][1:9]
    spans = [*SPANS, Span(6, 6, refused=(refused,))]
    assert plan(STORED, spans, [*TALK, user("how to…")]) == Plan(6, [user("how to…")])


def test_which_turns_are_rewound() -> None:
    cuts = [Cut(4, 2), Cut(6, 4)]
    assert [was_rewound(number, end, cuts) for number, end in [(1, 2), (2, 4), (3, 6), (4, 4), (5, 6), (6, 6)]] == [
        False,
        True,
        True,
        False,
        True,
        False,
    ]


@given(st.lists(st.text("ab", min_size=1, max_size=2), min_size=1, max_size=6), st.data())
def test_whatever_is_planned_the_history_becomes_what_was_sent(words: list[str], data: st.DataObject) -> None:
    """Kept messages and new ones together are the conversation as it was sent."""
    talk = [message for word in words for message in (user(word), assistant(word.upper()))]
    stored = pack(talk, FIRST_DIGEST)
    spans = [Span(start, start + 2) for start in range(0, len(talk), 2)]
    common = data.draw(st.integers(1, len(talk)))
    rest = [user(text) for text in data.draw(st.lists(st.sampled_from(["a", "x", "y"]), min_size=1, max_size=2))]
    sent = [*talk[:common], *rest]
    planned = plan(stored, spans, sent)
    assert planned is not None
    assert planned.kept in {0, len(talk), *(span.start for span in spans)}
    assert [*talk[: planned.kept], *planned.new] == sent


# Tool loops: each round is a turn.


def calling(*ids: str, text: str = "", given: int = 0) -> dict[str, Any]:
    calls = [{"type": "tool_use", "id": call, "name": "add", "input": {"a": given}} for call in ids]
    return {"role": "assistant", "content": [*([{"type": "text", "text": text}] if text else []), *calls]}


def results(*ids: str, said: str = "seen") -> dict[str, Any]:
    return user_of([{"type": "tool_result", "tool_use_id": call, "content": said} for call in ids])


def user_of(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def stored_of(*turns: list[dict[str, Any]]) -> tuple[list[bytes], list[Span]]:
    """A history of these turns, closed calls and all, and where each turn lies in it."""
    stored: list[bytes] = []
    spans = []
    for turn in turns:
        start = len(stored)
        for message in turn:
            stored += tool_calls.pack(stored, [message], stored[-1][1:9] if stored else FIRST_DIGEST)
        spans.append(Span(start, len(stored)))
    return stored, spans


LOOP = [[user("q"), calling("x", "y")], [results("x", "y"), calling("z")], [results("z"), assistant("A")]]
ROUNDS = [message for turn in LOOP for message in turn]


@pytest.mark.parametrize(
    ("sent", "kept", "new"),
    [
        ([*ROUNDS, user("r")], 6, [user("r")]),
        (ROUNDS[:5], 4, [results("z")]),
        (ROUNDS[:3], 2, [results("x", "y")]),
        (ROUNDS[:1], 0, [user("q")]),
        ([*ROUNDS[:4], results("z", said="other")], 4, [results("z", said="other")]),
        ([*ROUNDS[:2], results("y", "x")], 2, [results("y", "x")]),
        ([*ROUNDS[:2], results("x"), user("go on")], 2, [results("x"), user("go on")]),
        ([*ROUNDS[:4], user("never mind")], 4, [user("never mind")]),
        ([*ROUNDS[:3], calling("z", given=1), results("z")], 2, [ROUNDS[2], calling("z", given=1), results("z")]),
        ([ROUNDS[0], calling("x"), results("x")], 0, [user("q"), calling("x"), results("x")]),
    ],
    ids=[
        "continued",
        "the-last-answer-anew",
        "an-earlier-answer-anew",
        "from-the-question-anew",
        "another-result",
        "results-in-another-order",
        "one-result-less",
        "no-results",
        "another-input",
        "one-call-less",
    ],
)
def test_a_cut_between_calls_and_results_leaves_no_call_unanswered(
    sent: list[dict[str, Any]], kept: int, new: list[dict[str, Any]]
) -> None:
    stored, spans = stored_of(*LOOP)
    planned = plan(stored, spans, sent)
    assert planned == Plan(kept, new)
    sent_on = stored[:kept] + tool_calls.pack(stored[:kept], new, stored[kept - 1][1:9] if kept else FIRST_DIGEST)
    messages = [orjson.loads(element[9:]) for element in sent_on]
    tools = [{"name": "add", "input_schema": {"type": "object"}}]
    check_create({"model": "claude-sonnet-5-5", "max_tokens": 9, "messages": messages, "tools": tools})


def test_what_baton_put_in_is_passed_over() -> None:
    turns = [[user("q"), calling("x")], [user("never mind"), assistant("A")], [user("r"), assistant("B")]]
    stored, spans = stored_of(*turns)
    assert [elements.unpack(element).synthetic for element in stored] == [False, False, True, *[False] * 4]
    assert spans[1] == Span(2, 5)
    seen = [message for turn in turns for message in turn]
    assert plan(stored, spans, [*seen, user("s")]) == Plan(7, [user("s")])
    assert plan(stored, spans, seen[:5]) == Plan(5, [user("r")])
    assert plan(stored, spans, seen[:3]) == Plan(2, [user("never mind")])
    assert plan(stored, spans, [*seen[:2], user("well")]) == Plan(2, [user("well")])
    assert plan(stored, spans, [*seen[:3], assistant("other"), user("r")]) == Plan(
        2, [user("never mind"), assistant("other"), user("r")]
    )
    # The result has come after all: the client's conversation never went on without it.
    assert plan(stored, spans, [*seen[:2], results("x")]) == Plan(2, [results("x")])


def test_a_refused_question_between_calls_and_what_closed_them() -> None:
    turns = [[user("q"), calling("x")], [user("never mind"), assistant("A")]]
    stored, spans = stored_of(*turns)
    refused = tuple(pack([user(text)], stored[1][1:9])[0][1:9] for text in ("how to…", "how about…"))
    spans[1:1] = [Span(2, 2, refused=(refused[0],)), Span(2, 2, refused=(refused[1],))]
    pairs = [user("how to…"), assistant("No."), user("how about…"), assistant("No.")]
    sent = [*turns[0], *pairs, *turns[1], user("r")]
    assert plan(stored, spans, sent) == Plan(5, [user("r")])
    assert plan(stored, spans, [*turns[0], *pairs, user("other")]) == Plan(2, [user("other")])
    assert plan(stored, spans, [*turns[0], *pairs, user("never mind")]) == Plan(2, [user("never mind")])


CUT = calling("x", "y", text="Let me see.")


@pytest.mark.parametrize(
    "seen",
    [
        CUT,
        calling("x", text="Let me see."),
        assistant("Let me see."),
        assistant("Let me"),
        calling("x", text="Let"),
        calling("x"),
    ],
    ids=["all", "one-call", "no-call", "some-text", "some-text-and-a-call", "a-call-alone"],
)
def test_of_an_answer_that_was_cut_short_its_caller_may_have_seen_fewer_calls(seen: dict[str, Any]) -> None:
    stored, spans = pack([user("a"), CUT], FIRST_DIGEST), [Span(0, 2, incomplete=True)]
    for behind in ([user("go on")], [results("x"), user("go on")]):
        assert plan(stored, spans, [user("a"), seen, *behind]) == Plan(2, behind)


@pytest.mark.parametrize(
    "seen",
    [
        calling("x", "y", "z", text="Let me see."),
        calling("y", text="Let me see."),
        calling("x", text="Let me see.", given=1),
        calling("x", text="Well."),
    ],
    ids=["more", "the-second", "another-input", "another-text"],
)
def test_but_not_others(seen: dict[str, Any]) -> None:
    stored = pack([user("a"), CUT], FIRST_DIGEST)
    sent = [user("a"), seen, user("go on")]
    assert plan(stored, [Span(0, 2, incomplete=True)], sent) == Plan(0, sent)
