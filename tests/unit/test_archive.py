"""Sessions that leave and come back: whatever happened in them, the next request is the same bytes.

And a fork at any message: the next request is one that Claude takes. And whatever stands in a file: what was not
refused can be read by all that reads sessions.
"""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service import archive, restoring, tool_calls, turn_record
from service.archive import Archived, Reader
from service.context.summary import BYTES_MAX
from service.errors import BatonError
from service.model_table import ModelTable, Traits
from service.prefix import Ask, continued, last_digest
from service.resend import live
from service.session_view import session_object, turn_object
from service.simulator.rules import check_create
from service.transcript import Answer, pack
from service.turn_record import Provenance
from storage import elements
from storage.keys import new_nonce, new_turn_id
from storage.results import Begun, Fate
from storage.sessions import Snapshot
from storage.transfer import Told, Whole
from storage.turns import Cut, History, Ledger
from tests.unit.claude_events import answer_events, as_events, block, text_block
from tests.unit.test_prefix import EMPTY, LOOK

Json = dict[str, Any]

MODELS = ("claude-opus-5-5", "claude-sonnet-5-5")
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).map(lambda text: "." + text)
NUMBERS = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
INPUTS = st.dictionaries(TEXTS, TEXTS | NUMBERS | st.none() | st.lists(st.booleans(), max_size=2), max_size=3)
TURNS = st.fixed_dictionaries(
    {
        "said": TEXTS,
        "image": st.booleans(),
        "answers": st.sampled_from(["all", "apart", "first", "none"]),
        "system": st.sampled_from([None, "Be brief.", "Be long.", [{"type": "text", "text": "Be kind."}]]),
        "model": st.sampled_from([MODELS[0], MODELS[0], MODELS[1]]),
        "calls": st.lists(INPUTS, max_size=3),
        "thinks": st.sampled_from([None, "", "Hm."]),
        "end": st.sampled_from(["complete", "complete", "complete", "incomplete", "refused", "aborted", "by hand"]),
        "back": st.sampled_from([0, 0, 0, 1, 2]),
    }
)
HISTORIES = st.lists(TURNS, min_size=1, max_size=7)


SNAPSHOT = Snapshot(
    role="owner",
    name="chat",
    owner="ada",
    created_ms=1,
    accessed_ms=2,
    expires_ms=3,
    absolute_end_ms=0,
    ttl_ms=9,
    running_turn_id="",
    lease_remaining_ms=0,
    head="",
    messages=0,
    size_bytes=0,
    turns=0,
    max_turns=0,
    model="m",
    epoch_hash="",
    epoch_start=0,
    revision=1,
    input_tokens=1,
    output_tokens=2,
    cache_read_tokens=3,
    cache_written_tokens=4,
    system_json=b"",
    title="é",
    metadata_json=b'{"k":"v"}',
)


class Session:
    """What the store would keep of turns, as turn.py stores them."""

    def __init__(self, turns: list[Json]) -> None:
        self.history = History([], b"", b"")
        self.begun: Begun = EMPTY
        self.head = self.nonce = new_nonce()
        self.records: list[bytes] = []
        self.fates: list[Fate] = []
        self.ids: list[str] = []
        self.cuts: list[Cut] = []
        for number, turn in enumerate(turns, start=1):
            self.turn(number, turn)

    def ledger(self) -> Ledger:
        fates = zip(self.ids, self.fates, strict=True)
        return Ledger(self.records, {turn_id: fate.verdict for turn_id, fate in fates}, self.cuts)

    def turn(self, number: int, turn: Json) -> None:
        """One turn, with its verdict."""
        begun, history = self.begun, self.history
        spans = [span for span in live(self.ledger()) if span.end > span.start]
        if turn["back"] and len(spans) >= turn["back"]:
            kept = spans[-turn["back"]].start
            begun = replace(begun, messages=kept, epoch_start=min(begun.epoch_start, kept))
            history = replace(history, elements=history.elements[:kept])
        rewound = begun.messages < self.begun.messages
        turn_id = new_turn_id()
        came = Provenance(turn_id, datetime.now(UTC), "messages", None, "r1")
        messages = asked(turn, history.elements)
        fate = Fate("aborted" if turn["end"] == "aborted" else "committed", number, delivered=False)
        self.ids.append(turn_id)
        self.fates.append(fate)
        new = tool_calls.pack(history.elements, messages, last_digest(history))
        if fate.verdict == "aborted":
            self.records.append(turn_record.pending(came, turn["model"]))
            return
        if turn["end"] == "by hand":
            added, prepared = new, None
            span = (begun.messages, begun.messages + len(new))
            record = turn_record.without_claude(turn_id, "append", "r1", span, started=came.started)
        else:
            ask = Ask(turn["model"], messages, turn["system"], {"max_tokens": 9}, [LOOK])
            prepared = continued(ask, begun, history, new, traits(turn["model"]))
            answer = answered(number, turn)
            content = [] if turn["end"] == "refused" else answer.content()
            reply = pack([{"role": "assistant", "content": content}], prepared.digest) if content else []
            added = [*prepared.elements, *reply] if content else []
            span = (begun.messages, begun.messages + len(added))
            refused = [new[-1][1:9]] if turn["end"] == "refused" else []
            record = turn_record.settled(
                came,
                turn["model"],
                turn["end"],
                answer,
                sent=prepared.summary,
                queue_s=0,
                first_event_s=None,
                span=span,
                refused=refused,
            )
        self.records.append(record)
        if rewound:
            self.cuts.append(Cut(number, begun.messages))
        self.head = turn_id
        self.history = History([*history.elements, *added], history.system_json, history.preamble)
        self.begun = replace(begun, messages=len(self.history.elements), turns=number)
        if prepared is not None and added:
            self.history = replace(
                self.history,
                system_json=prepared.system_json or history.system_json,
                preamble=prepared.preamble or history.preamble,
            )
            self.begun = replace(self.begun, epoch_hash=prepared.epoch.hash, epoch_start=prepared.epoch.start)

    def whole(self) -> Whole:
        """As the store reads it."""
        snapshot = replace(
            SNAPSHOT,
            head=self.head,
            messages=len(self.history.elements),
            epoch_hash=self.begun.epoch_hash,
            epoch_start=self.begun.epoch_start,
            system_json=self.history.system_json,
        )
        told = [Told(record, fate) for record, fate in zip(self.records, self.fates, strict=True)]
        return Whole(snapshot, self.nonce, self.history.preamble, told, self.cuts, {"bob": "viewer"}, None)

    def lines(self) -> list[bytes]:
        first = archive.first_lines("sess_00" + "a" * 26, self.whole())
        return [*first, *map(archive.message_line, self.history.elements), archive.END_LINE]


def asked(turn: Json, stored: list[bytes]) -> list[Json]:
    """What the caller says: results of the open calls, all or some, in one message or several; and something more."""
    waiting = tool_calls._open_calls(stored)
    results: list[Json] = [{"type": "tool_result", "tool_use_id": call, "content": turn["said"]} for call in waiting]
    if turn["answers"] == "first":
        results = results[:1]
    elif turn["answers"] == "none":
        results = []
    said: Json = {"role": "user", "content": [{"type": "text", "text": turn["said"]}, *([IMAGE] * turn["image"])]}
    if not results:
        return [said]
    if turn["answers"] == "apart":
        return [*({"role": "user", "content": [result]} for result in results), said]
    return [{"role": "user", "content": results}, said]


def answered(number: int, turn: Json) -> Answer:
    """Claude's answer; of an incomplete one the end is missing."""
    thinks: list[list[Json]] = []
    if turn["thinks"] is not None:
        deltas = [{"type": "thinking_delta", "thinking": turn["thinks"]}]
        seal = {"type": "signature_delta", "signature": "c2ln"}
        thinks = [block(0, {"type": "thinking", "thinking": "", "signature": ""}, *deltas, seal)]
    calls = [
        block(
            2 + index,
            {"type": "tool_use", "id": f"call_{number}_{index}", "name": "look", "input": {}},
            {"type": "input_json_delta", "partial_json": orjson.dumps(wanted, default=str).decode()}
            if all(abs(value) < 2**63 for value in wanted.values() if isinstance(value, int))
            else {"type": "input_json_delta", "partial_json": "{}"},
        )
        for index, wanted in enumerate(turn["calls"])
    ]
    answer = Answer()
    events = answer_events(*thinks, text_block(1, f"Answer {number}."), *calls)
    answer.feed(as_events(events[:-2] if turn["end"] == "incomplete" else events))
    return answer


def traits(model: str) -> Traits:
    return ModelTable().traits(model)


def read(lines: list[bytes]) -> Archived:
    reader, found = Reader(), None
    for line in lines:
        found = reader.feed(line)
    reader.close()
    assert found is not None
    return found


def next_body(begun: Begun, history: History, model: str, **fields: Any) -> bytes:
    """Of the turn in which somebody goes on; no result comes for what is open."""
    ask = Ask(model, [{"role": "user", "content": "Go on"}], fields.get("system"), {"max_tokens": 9})
    new = tool_calls.pack(history.elements, ask.messages, last_digest(history))
    return continued(ask, begun, history, new, traits(model)).body


@given(HISTORIES, st.sampled_from(MODELS), st.sampled_from([None, "Be brief.", "Be else."]))
def test_the_next_request_of_what_came_back_is_the_same_bytes(turns: list[Json], model: str, system: Any) -> None:
    session = Session(turns)
    lines = session.lines()
    archived = read(lines)
    restored = archived.restored
    history = History(list(restored.elements), restored.system_json, restored.preamble)
    assert history.elements == session.history.elements
    assert restored.cuts == session.cuts
    assert [(one, fate) for one, _, fate in restored.turns] == list(zip(session.ids, session.fates, strict=True))
    assert [record for _, record, _ in restored.turns] == session.records
    assert (restored.head or restored.nonce, restored.nonce) == (session.head, session.nonce)
    assert archived.shares == {"bob": "viewer"}
    begun = replace(
        EMPTY,
        messages=len(history.elements),
        epoch_hash=restored.epoch_hash,
        epoch_start=restored.epoch_start,
    )
    original = next_body(session.begun, session.history, model, system=system)
    assert next_body(begun, history, model, system=system) == original


@settings(max_examples=40)
@given(HISTORIES, st.sampled_from(MODELS), st.data())
def test_claude_takes_the_next_request_of_a_fork_at_any_message(
    turns: list[Json], model: str, data: st.DataObject
) -> None:
    """Thinking is left out: the strict stand-in knows what it has sealed itself."""
    session = Session([{**turn, "thinks": None} for turn in turns])
    kept = data.draw(st.integers(0, len(session.history.elements)))
    begun = replace(session.begun, messages=kept, epoch_start=min(session.begun.epoch_start, kept))
    forked = replace(session.history, elements=session.history.elements[:kept])
    check_create(orjson.loads(next_body(begun, forked, model)))


LEAVES = (
    st.none() | st.booleans() | st.integers(-2, 2**64 - 1) | st.floats() | st.sampled_from(["", "x", "turn_", "9 9\n"])
)
BENT = LEAVES | st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in inner for place in places(one, (*path, key)))]


def bent(value: Any, path: tuple[Any, ...], other: Any, *, gone: bool) -> Any:
    """The same with something else in one place, or nothing."""
    if not path:
        return other
    key, *rest = path
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    if gone and not rest:
        del copy[key]
    else:
        copy[key] = bent(value[key], tuple(rest), other, gone=gone)
    return copy


@settings(max_examples=150)
@given(HISTORIES, st.data())
def test_a_bent_line_is_refused_or_can_be_read_ever_after(turns: list[Json], data: st.DataObject) -> None:
    lines = Session(turns[:3]).lines()
    at = data.draw(st.integers(0, len(lines) - 1))
    line = orjson.loads(lines[at])
    path = data.draw(st.sampled_from(places(line)))
    other = data.draw(BENT)
    made = bent(line, path, other, gone=data.draw(st.booleans()))
    lines[at] = orjson.dumps(made) + b"\n"
    try:
        archived = read(lines)
    except BatonError as error:
        assert error.status == 400
        return
    except AssertionError:
        assert at == len(lines) - 1 or path == () or path == ("type",)
        return
    seen(archived)


def seen(archived: Archived) -> None:
    """All that reads a session reads it."""
    one = archived.restored
    history = History(list(one.elements), one.system_json, one.preamble)
    begun = replace(EMPTY, messages=len(one.elements), epoch_hash=one.epoch_hash, epoch_start=one.epoch_start)
    for model in MODELS:
        next_body(begun, history, model)
        next_body(begun, history, model, system="Be else.")
    live(Ledger([record for _, record, _ in one.turns], {i: fate.verdict for i, _, fate in one.turns}, list(one.cuts)))
    for number, (_, record, fate) in enumerate(one.turns, start=1):
        orjson.dumps(turn_object(number, orjson.loads(record), fate, one.cuts))
    snapshot = replace(
        SNAPSHOT,
        created_ms=one.created_ms,
        absolute_end_ms=one.absolute_end_ms,
        system_json=one.system_json,
        metadata_json=one.metadata_json,
    )
    orjson.dumps(session_object(archived.session_id, snapshot))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("preamble", "1 0\n5"),
        ("preamble", "0 3\n[1]"),
        ("preamble", '0 0\n"x"'),
        ("preamble", f"{len(orjson.dumps('x'))} 0\n"),
        ("format", 2),
        ("epoch_start", 99),
        ("shares", 0),
    ],
)
def test_what_no_export_holds_is_refused(field: str, value: Any) -> None:
    lines = Session([]).lines()
    assert read(lines).restored.ttl_ms == 9, "as it is, it is taken"
    lines[0] = orjson.dumps({**orjson.loads(lines[0]), field: value}) + b"\n"
    with pytest.raises(BatonError):
        read(lines)


@pytest.mark.parametrize("field", ["system", "preamble", "metadata"])
def test_what_nests_deeper_than_can_be_written_is_refused(field: str) -> None:
    lines = Session([]).lines()
    deep = b"[" * 300 + b"]" * 300
    block = b'[{"type":"text","text":"x","more":%s}]' % deep
    values = {
        "system": block,
        "preamble": orjson.dumps(f"{len(block)} 0\n{block.decode()}"),
        "metadata": b'{"k":%s}' % deep,
    }
    was = {"system": b'"system":null', "preamble": b'"preamble":""', "metadata": b'"metadata":{"k":"v"}'}[field]
    assert was in lines[0]
    lines[0] = lines[0].replace(was, b'"%s":%s' % (field.encode(), values[field]))
    with pytest.raises(BatonError):
        read(lines)


def test_markers_of_the_cache_are_left_out_as_they_are_of_turns() -> None:
    """More than four in a session would be refused at each of its turns."""
    mark = {"cache_control": {"type": "ephemeral"}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "a", **mark}], **mark}
    call = {"type": "tool_use", "id": "t", "name": "n", "input": {"cache_control": 1}}
    messages = restoring.Messages()
    for role, one in (("user", {"type": "text", "text": "a", **mark}), ("assistant", call), ("user", result)):
        messages.add({"message": {"role": role, "content": [one]}})
    kept = [orjson.loads(elements.unpack(element).json)["content"][0] for element in messages.whole()]
    assert kept[:2] == [{"type": "text", "text": "a"}, call]
    assert kept[2] == {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "a"}]}


def test_no_answer_is_of_batons_own() -> None:
    messages = restoring.Messages()
    messages.add({"message": {"role": "user", "content": "a"}})
    with pytest.raises(BatonError):
        messages.add({"message": {"role": "assistant", "content": "a"}, "by_baton": True})


@pytest.mark.parametrize(
    ("context", "kept"),
    [
        ("1 3 4 2 100 400 0 0 msg_1", True),
        ("1 7 8 2 100 400 0 0 msg_1", True),  # of a fork: the source has more
        ("1 3 4 1 100 400 0 0 msg_1", False),  # an answer
        ("1 7 8 6 100 400 0 0 msg_1", False),  # behind all that there is
        ("1 2 4 3 100 400 0 0 msg_1", False),
        (f"1 3 4 2 {2**53} 400 0 0 msg_1", False),
        (f"1 3 4 2 {'9' * 5_000} 400 0 0 msg_1", False),
        ('1 3 4 2 100 400 0 0 a"b', False),
        (7, False),
    ],
)
def test_a_context_that_cannot_be_of_the_history_is_left_out(context: Any, kept: bool) -> None:
    said = [{"role": role, "content": "a"} for role in ("user", "assistant")] * 2
    messages = restoring.Messages()
    for message in said:
        messages.add({"message": message})
    assert restoring._context(context, messages.whole()) == (context if kept else "")


def test_a_summary_is_no_larger_than_one_that_is_made() -> None:
    assert restoring._summary({"summary": "ä" * (BYTES_MAX // 2)}) == "ä".encode() * (BYTES_MAX // 2)
    with pytest.raises(BatonError, match=r"checkpoints\.summary"):
        restoring._summary({"summary": "ä" * (BYTES_MAX // 2) + "x"})


def test_more_than_a_session_may_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = Session([]).lines()
    monkeypatch.setattr("service.archive.SESSION_BYTES_MAX", sum(map(len, lines)))
    reader = Reader()
    for line in (*lines, *lines):
        reader.feed(line)
    reader.feed(lines[0])
    with pytest.raises(BatonError):
        reader.feed(b'{"type":"turn","record":"%s"}' % (b"x" * len(lines[0])))


def test_messages_stay_as_they_are_whatever_claude_knows_of_them() -> None:
    """Fields and blocks that Baton does not know, results that say nothing: turns store them."""
    said: list[Json] = [
        {"role": "user", "content": "a", "clear_at": 1},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "t", "name": "n", "input": {}, "caller": {"a": 1}}],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": None}]},
        {"role": "assistant", "content": [{"type": "odd", "of": []}, {"type": "redacted_thinking"}]},
    ]
    packed = pack(said, elements.FIRST_DIGEST)
    messages = restoring.Messages()
    for element in packed:
        messages.add(orjson.loads(archive.message_line(element)))
    assert messages.whole() == packed
