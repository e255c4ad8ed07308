"""A conversation sent again: what of it is new, and where a rewind cuts."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.resend import Plan, Span, plan, was_rewound
from service.transcript import pack
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
