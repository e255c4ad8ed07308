"""Judges a finished run of many turns: was every acknowledged turn kept, once, whole, and in order?

Pure: three accounts of the same run go in, violations come out. The accounts are independent of each other, and none
comes from the code that is judged:

    what clients saw         one ``ClientTurn`` per request sent
    what Claude received     one ``Received`` per request of the simulator's log
    what the store holds     the messages of every session, in order; optionally its turn records

The traffic carries the proof. Every user message holds exactly one mark, ``[mark:ID]``, unique in the run. The
simulator ends its answer with ``[seen:ID] [after:PREV]``: the mark it was asked with, and the mark of the user
message before that one in the history it was sent, or ``none``. A stored answer thus names its own question and
its predecessor, and a turn that ran on another history than the one it was stored behind gives itself away.

What must hold, by what the client was told about a mark (the best of its attempts counts, in this order):

    complete     stored once, with the very answer shown, which is a whole one
    incomplete   stored once or not at all; the answer is a beginning of Claude's, no shorter than what was shown
    unknown      stored once and whole, or not at all: the connection broke, or the outcome was not known
    error        not stored: the client was told for sure that the turn failed

Whatever the outcome: a stored question is followed by its own answer, the answer was given to exactly the history
stored before it, and a turn that was sent after another one had been acknowledged stands behind it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Outcome = Literal["complete", "incomplete", "error", "unknown"]
Kind = Literal["lost", "duplicated", "interleaved", "phantom", "altered", "disordered", "wrong_verdict"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_MARK = re.compile(r"\[mark:([^\[\]\s]+)\]")
_TAIL = re.compile(r"\[seen:([^\[\]\s]+)\] \[after:([^\[\]\s]+)\]\s*\Z")
_NONE = "none"
_SHOWN_CHARS = 80


@dataclass(frozen=True, slots=True)
class ClientTurn:
    """One request as its client saw it.

    Attributes:
        client: who sent it.
        session: the same name as in the store's account.
        mark: of its user message.
        sent_at, finished_at: seconds of one clock shared by all clients; None if it never finished.
        outcome: ``error`` only if the answer said for sure that nothing was stored; a broken connection, a
            timeout and ``session_save_unknown`` are ``unknown``; ``incomplete`` is a stream that said so, or one
            that the client left by itself.
        answer_text: the answer's text as far as it was shown.
        turn_id, http_status: as answered, if anything was.
        duplicate_of: the mark of the turn that this request repeats (a retry, or an idempotent replay); equal to
            ``mark``. None for the first attempt.
    """

    client: str
    session: str
    mark: str
    sent_at: float
    finished_at: float | None
    outcome: Outcome
    answer_text: str = ""
    turn_id: str | None = None
    http_status: int | None = None
    duplicate_of: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One message, in the store or in a request: its role and its text."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Received:
    """One request that Claude received: the history in order, and the text sent back so far."""

    n: int
    messages: tuple[Message, ...]
    answer: str
    outcome: str

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Received":
        """From a line of the simulator's log: ``{n, messages | body.messages, answer, outcome}``."""
        messages = (record if "messages" in record else record["body"])["messages"] or ()
        return cls(
            n=record["n"],
            messages=tuple(Message(one["role"], text_of(one["content"])) for one in messages),
            answer=record.get("answer") or "",
            outcome=record["outcome"],
        )

    @property
    def marks(self) -> tuple[str, ...]:
        """The marks of its user messages, in order; the last one is the question it answers."""
        return tuple(mark for message in self.messages if message.role == "user" for mark in marks_in(message.text))


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """What the store says became of a turn.

    ``messages[start:end]`` of the session are its own; 0 and 0 mean none. An incomplete turn that was kept is
    ``committed`` too; every other state holds no messages. ``number`` counts the turns begun, so gaps are fine.
    """

    turn_id: str
    number: int
    state: str
    start: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise."""

    kind: Kind
    session: str
    detail: str


def marked(mark: str, text: str = "") -> str:
    """A user message that carries ``mark``."""
    return f"{text} [mark:{mark}]".lstrip()


def marks_in(text: str) -> list[str]:
    """The marks in a user message; in a storm, exactly one."""
    return _MARK.findall(text)


def text_of(content: str | Iterable[Mapping[str, Any]]) -> str:
    """The text of a message's content: a string, or blocks of which only the text counts."""
    if isinstance(content, str):
        return content
    return "".join(block["text"] for block in content if block.get("type") == "text")


def check(
    turns: Sequence[ClientTurn],
    received: Sequence[Received],
    stored: Mapping[str, Sequence[Message]],
    records: Mapping[str, Sequence[TurnRecord]] | None = None,
) -> list[Violation]:
    """Compare the three accounts of a run that has come to rest.

    Args:
        turns: every request of every client, in any order; a mark's first attempt has no ``duplicate_of``.
        received: the simulator's whole log, in any order.
        stored: the messages of every session, oldest first.
        records: the turn records of every session, in any order; None leaves verdicts unjudged.

    Returns:
        Violations, none if all promises were kept. Kinds:
        ``lost``: acknowledged as complete, not stored. ``duplicated``: a question or an answer stored twice.
        ``interleaved``: a question without its own answer behind it, or an answer given to another history.
        ``phantom``: stored, though nobody sent it or its client was told that it failed.
        ``altered``: the stored answer is not the one shown, or none that Claude gave.
        ``disordered``: stored before a turn that had been acknowledged before it was sent.
        ``wrong_verdict``: turn records and messages contradict each other, or a turn has two verdicts.

    Raises:
        ValueError: the run itself was no proof: a mark used for two different turns.
    """
    asked = _by_mark(turns)
    answers: dict[str, list[Received]] = {}
    for request in received:
        if request.marks:
            answers.setdefault(request.marks[-1], []).append(request)
    violations: list[Violation] = []
    for session in sorted({*stored, *(turn.session for turn in turns), *(records or {})}):
        account = _SessionCheck(session, stored.get(session, ()), asked, answers)
        violations += account.messages_and_order()
        if records is not None:
            violations += account.verdicts(records.get(session, ()))
    return violations + _duplicates(stored)


@dataclass(frozen=True, slots=True)
class _Asked:
    """All attempts at one mark, taken together."""

    mark: str
    session: str
    attempts: tuple[ClientTurn, ...]

    @property
    def outcome(self) -> Outcome:
        told = {attempt.outcome for attempt in self.attempts}
        if "complete" in told:
            return "complete"
        if "incomplete" in told:
            return "incomplete"
        return "unknown" if "unknown" in told else "error"

    @property
    def sent_at(self) -> float:
        return min(attempt.sent_at for attempt in self.attempts)

    @property
    def acknowledged_at(self) -> float:
        """When a client first knew it to be complete; infinity if none ever did."""
        known = (one.finished_at for one in self.attempts if one.outcome == "complete")
        return min((at for at in known if at is not None), default=float("inf"))

    def shown(self, outcome: Outcome) -> list[str]:
        return [attempt.answer_text for attempt in self.attempts if attempt.outcome == outcome]


def _by_mark(turns: Sequence[ClientTurn]) -> dict[str, _Asked]:
    grouped: dict[str, list[ClientTurn]] = {}
    for turn in turns:
        grouped.setdefault(turn.mark, []).append(turn)
    for mark, attempts in grouped.items():
        firsts = sum(1 for attempt in attempts if attempt.duplicate_of is None)
        sessions = {attempt.session for attempt in attempts}
        strays = [attempt for attempt in attempts if attempt.duplicate_of not in (None, mark)]
        if firsts > 1 or len(sessions) > 1 or strays:
            raise ValueError(f"mark {mark} was used for different turns")
    return {mark: _Asked(mark, attempts[0].session, tuple(attempts)) for mark, attempts in grouped.items()}


def _duplicates(stored: Mapping[str, Sequence[Message]]) -> list[Violation]:
    """Marks and answers stored more than once, in one session or in several."""
    questions: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    home: dict[str, str] = {}
    for session, messages in stored.items():
        for message in messages:
            if message.role == "user":
                found, counter = marks_in(message.text), questions
            else:
                found, counter = [tail[1] for tail in _TAIL.finditer(message.text)], answers
            counter.update(found)
            home.update(dict.fromkeys(found, session))
    return [
        Violation("duplicated", home[mark], f"the {what} of {mark} is stored {count} times")
        for what, counter in (("question", questions), ("answer", answers))
        for mark, count in counter.items()
        if count > 1
    ]


class _SessionCheck:
    """One session's stored messages against what its clients saw and what Claude was sent."""

    def __init__(
        self,
        session: str,
        messages: Sequence[Message],
        asked: Mapping[str, _Asked],
        answers: Mapping[str, Sequence[Received]],
    ) -> None:
        self.session = session
        self.messages = messages
        self.asked = asked
        self.answers = answers
        self.found: list[Violation] = []
        self.place: dict[str, int] = {}  # mark → index of its user message; the first, if there are more

    def report(self, kind: Kind, detail: str) -> None:
        self.found.append(Violation(kind, self.session, detail))

    def messages_and_order(self) -> list[Violation]:
        """Everything but verdicts."""
        marks: list[str] = []
        for index, message in enumerate(self.messages):
            if message.role != "user":
                if index == 0 or self.messages[index - 1].role != "user":
                    self.report("interleaved", f"message {index} answers no question: {_shown(message.text)}")
                continue
            own = marks_in(message.text)
            if len(own) != 1:
                kind: Kind = "interleaved" if own else "phantom"
                self.report(kind, f"message {index} carries {len(own)} marks: {_shown(message.text)}")
                continue
            marks.append(own[0])
            self.place.setdefault(own[0], index)
            self._question(own[0])
            self._answer(index, marks)
        for asked in self.asked.values():
            if asked.session == self.session and asked.outcome == "complete" and asked.mark not in self.place:
                self.report("lost", f"{asked.mark} was acknowledged and is not stored")
        self._order(marks)
        return self.found

    def _question(self, mark: str) -> None:
        asked = self.asked.get(mark)
        if asked is None:
            self.report("phantom", f"nobody sent {mark}")
        elif asked.session != self.session:
            self.report("phantom", f"{mark} was sent to {asked.session}")
        elif asked.outcome == "error":
            status = [attempt.http_status for attempt in asked.attempts]
            self.report("phantom", f"{mark} is stored, but its client was told that it failed: {status}")

    def _answer(self, index: int, marks: Sequence[str]) -> None:
        """The message behind question ``index``, the last of ``marks``."""
        mark = marks[-1]
        if index + 1 == len(self.messages) or self.messages[index + 1].role != "assistant":
            self.report("interleaved", f"{mark} has no answer behind it")
            return
        text = self.messages[index + 1].text
        before = marks[-2] if len(marks) > 1 else _NONE
        tail = _TAIL.search(text)
        if tail is not None and tail.groups() != (mark, before):
            seen, after = tail.groups()
            self.report("interleaved", f"{mark} after {before} is answered as {seen} after {after}")
            return
        given = [request for request in self.answers.get(mark, ()) if request.answer.startswith(text)]
        if not given:
            self.report("altered", f"Claude never gave {mark} the stored answer {_shown(text)}")
        elif all(request.marks != tuple(marks) for request in given):
            self.report("interleaved", f"{mark}'s answer was given to {given[0].marks}, stored behind {marks}")
        asked = self.asked.get(mark)
        if asked is not None:
            self._as_told(asked, text, whole=tail is not None)

    def _as_told(self, asked: _Asked, text: str, *, whole: bool) -> None:
        for shown in asked.shown("complete"):
            if shown != text:
                self.report("altered", f"{asked.mark} was shown {_shown(shown)}, stored is {_shown(text)}")
        if asked.outcome == "incomplete" and not any(map(text.startswith, asked.shown("incomplete"))):
            self.report("altered", f"of {asked.mark} less is kept than was shown: {_shown(text)}")
        if not whole and asked.outcome in ("complete", "unknown"):
            self.report("altered", f"of {asked.mark}, {asked.outcome}, only a part is stored: {_shown(text)}")

    def _order(self, marks: Sequence[str]) -> None:
        """Real time: whatever was sent after an acknowledgement stands behind the acknowledged turn."""
        earliest, by = float("inf"), ""
        for mark in reversed(marks):
            asked = self.asked.get(mark)
            if asked is None:
                continue
            if earliest < asked.sent_at:
                self.report("disordered", f"{mark} was sent after {by} was acknowledged, and stands before it")
            if asked.acknowledged_at < earliest:
                earliest, by = asked.acknowledged_at, mark

    def verdicts(self, records: Sequence[TurnRecord]) -> list[Violation]:
        """Turn records against the messages and against what clients were told. After ``messages_and_order``."""
        self.found = []
        for what, values in (
            ("turn id", [record.turn_id for record in records]),
            ("number", [str(record.number) for record in records]),
        ):
            for value, count in Counter(values).items():
                if count > 1:
                    self.report("wrong_verdict", f"{what} {value} has {count} records")
        position = 0
        for record in sorted(records, key=lambda one: one.number):
            held = record.end - record.start
            if (record.state == "committed") != (held > 0):
                self.report("wrong_verdict", f"turn {record.turn_id} is {record.state} with {held} messages")
            elif held > 0:
                if record.start != position:
                    self.report("wrong_verdict", f"turn {record.turn_id} begins at {record.start}, not {position}")
                position = record.end
        if position != len(self.messages):
            self.report("wrong_verdict", f"committed are {position} messages, stored {len(self.messages)}")
        self._as_recorded({record.turn_id: record for record in records})
        return self.found

    def _as_recorded(self, records: Mapping[str, TurnRecord]) -> None:
        for asked in self.asked.values():
            if asked.session != self.session:
                continue
            for attempt in asked.attempts:
                if attempt.turn_id is None:
                    continue
                record = records.get(attempt.turn_id)
                committed = record is not None and record.state == "committed"
                if attempt.outcome == "complete":
                    place = self.place.get(asked.mark, -1)
                    if not committed or record is None or not record.start <= place < record.end:
                        self.report("wrong_verdict", f"{asked.mark} was complete, its turn's record is {record}")
                elif asked.outcome == "error" and committed:
                    self.report("wrong_verdict", f"{asked.mark} failed, its turn's record is {record}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARS else f"{text[:30]}…{text[-45:]}")
