"""The checker of histories accepts every good run and finds every kind of damage."""

import copy
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.instruments.history import (
    ClientTurn,
    Kind,
    Message,
    Outcome,
    Received,
    TurnRecord,
    Violation,
    check,
    marked,
    text_of,
)

# How a turn of a generated run ends: what its client was told, and whether the store kept it.
FATES: dict[str, tuple[Outcome, bool]] = {
    "complete": ("complete", True),
    "unknown but stored": ("unknown", True),
    "unknown and gone": ("unknown", False),
    "incomplete, kept": ("incomplete", True),
    "incomplete, aborted": ("incomplete", False),
    "failed": ("error", False),
    "retried": ("complete", True),
}


@dataclass
class Run:
    """The three accounts of a run, built turn by turn as a faultless service would have left them."""

    turns: list[ClientTurn] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    stored: dict[str, list[Message]] = field(default_factory=dict)
    records: dict[str, list[TurnRecord]] = field(default_factory=dict)

    def violations(self, *, verdicts: bool = True) -> list[Violation]:
        return check(self.turns, self.received, self.stored, self.records if verdicts else None)

    def kinds(self) -> set[Kind]:
        return {violation.kind for violation in self.violations()}

    def turn(self, session: str, fate: str, *, early: float = 0.4, late: float = 0.4, kept: float = 0.5) -> str:
        """Run one turn; commits happen at whole seconds, sent ``early`` before and finished ``late`` after."""
        outcome, is_stored = FATES[fate]
        now = float(len(self.turns) + 1)
        mark = f"m{len(self.turns)}"
        messages = self.stored.setdefault(session, [])
        question = Message("user", marked(mark, "Hello"))
        before = [one.text.partition("[mark:")[2].rstrip("]") for one in messages if one.role == "user"]
        answer = f"{mark}: hello to you. [seen:{mark}] [after:{before[-1] if before else 'none'}]"
        whole = outcome in ("complete", "unknown")
        cut = len(answer) if whole else len(mark) + 1 + int(kept * 10)
        shown = answer if outcome == "complete" else answer[:cut] if outcome == "incomplete" else ""
        told = "complete" if outcome == "complete" else "disconnected"
        self.received.append(Received(len(self.received), (*messages, question), answer[: cut + 3], told))
        first = ClientTurn("c", session, mark, now - early, now + late, outcome, shown, f"turn-{mark}", 200)
        if fate == "retried":
            lost = replace(first, outcome="unknown", finished_at=now - early, answer_text="", turn_id=None)
            self.turns += [lost, replace(first, duplicate_of=mark)]
        else:
            self.turns.append(first)
        start = len(messages)
        if is_stored:
            messages += [question, Message("assistant", answer[:cut])]
        records = self.records.setdefault(session, [])
        bounds = (start, start + 2) if is_stored else (0, 0)
        records.append(TurnRecord(f"turn-{mark}", len(records) + 1, "committed" if is_stored else "aborted", *bounds))
        return mark


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """A good run: up to three sessions, any mix of fates, turns of different clients overlapping in time."""
    run = Run()
    slack = st.floats(0, 3)
    for _ in range(draw(st.integers(1, 12))):
        session, fate = draw(st.sampled_from("abc")), draw(st.sampled_from(sorted(FATES)))
        run.turn(session, fate, early=draw(slack), late=draw(slack), kept=draw(st.floats(0, 1)))
    return run


def pairs(run: Run) -> list[tuple[str, int]]:
    return [(session, index) for session, messages in run.stored.items() for index in range(0, len(messages), 2)]


def good_run() -> Run:
    """One session, three acknowledged turns, one failed."""
    run = Run()
    for fate in ("complete", "complete", "failed", "complete"):
        run.turn("s", fate)
    return run


@given(runs())
def test_a_good_history_has_no_violation(run: Run) -> None:
    assert run.violations() == []
    assert run.violations(verdicts=False) == []


@pytest.mark.parametrize("fate", sorted(FATES))
def test_every_fate_is_acceptable_between_two_complete_turns(fate: str) -> None:
    run = Run()
    for each in ("complete", fate, "complete"):
        run.turn("s", each)
    assert run.violations() == []


def test_a_run_without_turns_is_good() -> None:
    assert check([], [], {}) == []


# --- damage of every kind


def test_an_acknowledged_turn_that_is_not_stored_is_lost() -> None:
    run = good_run()
    del run.stored["s"][-2:]
    assert [(one.kind, "m3" in one.detail) for one in run.violations(verdicts=False)] == [("lost", True)]
    assert Run(turns=run.turns[:1]).kinds() == {"lost"} | ({"wrong_verdict"})


def test_a_turn_stored_twice_is_duplicated() -> None:
    run = good_run()
    run.stored["s"] += run.stored["s"][-2:]
    assert "duplicated" in run.kinds()


def test_a_turn_stored_in_two_sessions_is_duplicated() -> None:
    run = good_run()
    run.stored["t"] = run.stored["s"][:2]
    assert {"duplicated", "phantom"} <= run.kinds()


def test_an_answer_stored_under_two_questions_is_duplicated() -> None:
    run = good_run()
    run.stored["s"][3] = run.stored["s"][1]
    assert {"duplicated", "interleaved"} <= run.kinds()


def test_two_questions_in_a_row_are_interleaved() -> None:
    run = good_run()
    messages = run.stored["s"]
    messages[1], messages[2] = messages[2], messages[1]
    assert "interleaved" in run.kinds()


def test_two_questions_in_one_message_are_interleaved() -> None:
    run = good_run()
    run.stored["s"][0] = Message("user", marked("m0") + marked("m1"))
    assert "interleaved" in run.kinds()


def test_an_answer_without_a_question_is_interleaved() -> None:
    run = good_run()
    run.stored["s"].insert(2, Message("assistant", "And another thing."))
    assert [one.kind for one in run.violations(verdicts=False)] == ["interleaved"]
    run = Run()
    run.turn("s", "unknown but stored")
    del run.stored["s"][0]
    assert [one.kind for one in run.violations(verdicts=False)] == ["interleaved"]


def test_a_question_without_an_answer_is_interleaved() -> None:
    run = Run()
    run.turn("s", "unknown but stored")
    del run.stored["s"][1]
    assert [one.kind for one in run.violations(verdicts=False)] == ["interleaved"]


def test_a_turn_that_ran_on_an_older_history_is_interleaved() -> None:
    run = good_run()
    old, new = "[after:m1]", "[after:m0]"
    run.stored["s"][5] = Message("assistant", run.stored["s"][5].text.replace(old, new))
    run.turns[3] = replace(run.turns[3], answer_text=run.turns[3].answer_text.replace(old, new))
    run.received[3] = replace(
        run.received[3],
        answer=run.received[3].answer.replace(old, new),
        messages=(*run.received[3].messages[:2], run.received[3].messages[-1]),
    )
    assert run.kinds() == {"interleaved"}


def test_a_kept_beginning_that_was_given_to_an_older_history_is_interleaved() -> None:
    run = Run()
    for fate in ("complete", "complete", "incomplete, kept"):
        run.turn("s", fate)
    run.received[2] = replace(run.received[2], messages=run.received[2].messages[2:])
    assert run.kinds() == {"interleaved"}


def test_what_nobody_sent_is_a_phantom() -> None:
    run = good_run()
    run.stored["s"] += [Message("user", marked("never")), Message("assistant", "Hm. [seen:never] [after:m3]")]
    assert "phantom" in run.kinds()
    run = good_run()
    run.stored["s"] += [Message("user", "no mark at all"), Message("assistant", "Hm.")]
    assert "phantom" in run.kinds()


def test_a_turn_whose_client_was_told_that_it_failed_is_a_phantom() -> None:
    run = good_run()
    run.turns[-1] = replace(run.turns[-1], outcome="error", http_status=503)
    assert run.kinds() == {"phantom", "wrong_verdict"}


def test_an_answer_other_than_the_one_shown_is_altered() -> None:
    run = good_run()
    run.turns[0] = replace(run.turns[0], answer_text="m0: what? [seen:m0] [after:none]")
    assert run.kinds() == {"altered"}


def test_a_cut_answer_passed_off_as_complete_is_altered() -> None:
    run = good_run()
    run.stored["s"][5] = Message("assistant", "m3: hel")
    run.turns[3] = replace(run.turns[3], answer_text="m3: hel")
    assert run.kinds() == {"altered"}


def test_half_a_turn_of_unknown_outcome_is_altered() -> None:
    run = Run()
    run.turn("s", "unknown but stored")
    run.stored["s"][1] = Message("assistant", run.stored["s"][1].text[:10])
    assert run.kinds() == {"altered"}


def test_less_than_was_shown_of_an_incomplete_answer_is_altered() -> None:
    run = Run()
    run.turn("s", "incomplete, kept")
    run.stored["s"][1] = Message("assistant", run.stored["s"][1].text[:-1])
    assert run.kinds() == {"altered"}


def test_an_answer_that_claude_never_gave_is_altered() -> None:
    run = Run()
    run.turn("s", "unknown but stored")
    run.received.clear()
    assert run.kinds() == {"altered"}


def test_a_turn_stored_before_one_acknowledged_earlier_is_disordered() -> None:
    run = good_run()
    run.turns[0] = replace(run.turns[0], sent_at=10.0, finished_at=11.0)
    violations = run.violations()
    assert [one.kind for one in violations] == ["disordered"]
    assert "m0 was sent after" in violations[0].detail


@pytest.mark.parametrize(
    "damaged",
    [
        lambda records: [replace(records[0], state="aborted"), *records[1:]],
        lambda records: [*records[:2], replace(records[2], state="committed"), *records[3:]],
        lambda records: records[1:],
        lambda records: [*records, records[0]],
        lambda records: [*records, replace(records[0], state="dead", start=0, end=0)],
        lambda records: [replace(records[0], number=2), *records[1:]],
        lambda records: [replace(records[0], end=4), *records[1:]],
        lambda records: [*records[:3], replace(records[3], state="dead", start=0, end=0)],
    ],
)
def test_a_record_that_contradicts_the_messages_is_a_wrong_verdict(damaged: object) -> None:
    run = good_run()
    assert callable(damaged)
    run.records["s"] = damaged(run.records["s"])
    assert run.kinds() == {"wrong_verdict"}


def test_messages_without_a_verdict_are_a_wrong_verdict() -> None:
    run = Run()
    run.turn("s", "unknown but stored")
    run.records.clear()
    assert run.kinds() == {"wrong_verdict"}


@pytest.mark.parametrize(("state", "end"), [("committed", 0), ("dead", 2), ("pending", 2)])
def test_a_verdict_that_its_messages_belie_is_a_wrong_verdict(state: str, end: int) -> None:
    run = Run()
    run.turn("s", "unknown but stored" if end else "unknown and gone")
    run.records["s"] = [replace(run.records["s"][0], state=state, end=end)]
    assert "wrong_verdict" in run.kinds()


def test_a_turn_that_failed_for_its_client_must_not_be_committed_under_its_id() -> None:
    run = good_run()
    run.turns[2] = replace(run.turns[2], turn_id="turn-m0")
    assert run.kinds() == {"wrong_verdict"}


MUTATIONS = ("drop", "drop question", "drop answer", "duplicate", "swap", "cross-wire", "alter", "invent", "revive")


@pytest.mark.parametrize("mutation", MUTATIONS)
@given(run=runs(), data=st.data())
def test_any_damage_to_a_good_history_is_found(mutation: str, run: Run, data: st.DataObject) -> None:
    damaged = copy.deepcopy(run)
    mutate(damaged, mutation, data)
    assert damaged.violations(verdicts=False), mutation


def mutate(run: Run, mutation: str, data: st.DataObject) -> None:
    """Damage the store's account in a way that no faultless service can have left."""
    acknowledged = {turn.mark for turn in run.turns if turn.outcome == "complete"}
    places = pairs(run)
    if mutation.startswith("drop"):  # only what was acknowledged must be there
        places = [
            (session, index)
            for session, index in places
            if run.stored[session][index].text.partition("[mark:")[2].rstrip("]") in acknowledged
        ]
    if mutation == "revive":
        failed = [turn for turn in run.turns if turn.outcome == "error"]
        assume(failed)
        turn = data.draw(st.sampled_from(failed))
        request = next(one for one in run.received if one.marks[-1] == turn.mark)
        run.stored[turn.session] += [request.messages[-1], Message("assistant", request.answer)]
        return
    assume(places)
    session, index = data.draw(st.sampled_from(places))
    messages = run.stored[session]
    boundary = 2 * data.draw(st.integers(0, len(messages) // 2))
    if mutation == "drop":
        del messages[index : index + 2]
    elif mutation == "drop question":
        del messages[index]
    elif mutation == "drop answer":
        del messages[index + 1]
    elif mutation == "duplicate":
        messages[boundary:boundary] = messages[index : index + 2]
    elif mutation == "invent":
        messages[boundary:boundary] = [Message("user", marked("x")), Message("assistant", "Well. [seen:x] [after:m0]")]
    elif mutation == "alter":
        text = messages[index + 1].text
        at = data.draw(st.integers(0, len(text)))
        messages[index + 1] = Message("assistant", f"{text[:at]}~{text[at:]}")
    else:
        assume(len(places) > 1)
        other, place = data.draw(st.sampled_from([one for one in places if one != (session, index)]))
        if mutation == "swap":  # whole turns change places
            theirs = run.stored[other]
            mine = messages[index : index + 2]
            messages[index : index + 2], theirs[place : place + 2] = theirs[place : place + 2], mine
        else:  # cross-wire: answers change places
            theirs = run.stored[other]
            messages[index + 1], theirs[place + 1] = theirs[place + 1], messages[index + 1]


# --- input


def test_a_mark_used_for_two_turns_is_no_proof() -> None:
    run = good_run()
    with pytest.raises(ValueError, match="m0"):
        check([*run.turns, run.turns[0]], run.received, run.stored)
    with pytest.raises(ValueError, match="m0"):
        check([*run.turns, replace(run.turns[0], duplicate_of="m0", session="t")], run.received, run.stored)
    with pytest.raises(ValueError, match="m0"):
        check([*run.turns, replace(run.turns[0], duplicate_of="m1")], run.received, run.stored)


def test_a_log_record_is_read_from_either_form() -> None:
    blocks = [{"type": "thinking", "thinking": "…"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "user", "content": "[mark:1]"}, {"role": "assistant", "content": blocks}]
    flat = Received.from_record({"n": 1, "messages": messages, "answer": None, "outcome": "cut"})
    nested = Received.from_record({"n": 1, "body": {"messages": messages}, "answer": None, "outcome": "cut"})
    assert flat == nested
    assert (flat.marks, flat.messages[1].text, flat.answer) == (("1",), "ab", "")
    assert text_of("plain") == "plain"
