"""What the requests to the stand-in share: the faults that wait, the pace, the journal, the list of models."""

import json
from pathlib import Path
from typing import Any

import pytest
from anthropic.types import ModelInfo

from service.simulator.faults import Fault, FaultQueue, Pace, parse_fault, parse_pace
from service.simulator.journal import BODY_BYTES_KEPT_MAX, KEPT, Journal
from service.simulator.models import MODELS, list_models
from tests.unit.simulated import MODEL, request, user


def test_faults_are_taken_in_order_and_as_often_as_asked() -> None:
    waiting = FaultQueue()
    waiting.push(Fault("error", times=2))
    waiting.push(Fault("hang"))
    taken = [waiting.take(request()) for _ in range(4)]
    assert [fault and fault.kind for fault in taken] == ["error", "error", "hang", None]


def test_a_fault_waits_for_the_request_it_matches() -> None:
    waiting = FaultQueue()
    waiting.push(Fault("hang", match='say "hé"\n'))
    waiting.push(Fault("error"))
    other, meant = waiting.take(request()), waiting.take(request(user('say "hé"\nplease')))
    assert other is not None and other.kind == "error"
    assert meant is not None and meant.kind == "hang"
    waiting.push(Fault("cut", match='"stream":true'))
    assert waiting.take(request()) is None
    assert waiting.take(request(stream=True)) is not None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([], "a fault is a JSON object"),
        ({"times": 1}, "unknown kind None"),
        ({"kind": "fire"}, "unknown kind 'fire'"),
        ({"kind": "hang", "delay_ms": 1}, "hang takes no field 'delay_ms'"),
        ({"kind": "cut", "times": 0}, "times must be"),
        ({"kind": "cut", "times": 10_001}, "times must be"),
        ({"kind": "cut", "times": True}, "times must be"),
        ({"kind": "cut", "after_deltas": -1}, "after_deltas must be"),
        ({"kind": "cut", "match": ""}, "match must be"),
        ({"kind": "slow_deltas", "delay_ms": "1"}, "delay_ms must be"),
        ({"kind": "rate_limit", "retry_after_s": -1}, "retry_after_s must be"),
        ({"kind": "error_mid_stream", "error_type": []}, "unknown error_type"),
        ({"kind": "error_mid_stream", "error_type": "oops"}, "unknown error_type 'oops'"),
    ],
)
def test_a_wrong_fault_is_refused(fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_fault(fields)


@pytest.mark.parametrize("fields", [[], {"delta": 1}, {"delta_ms": -1}, {"first_byte_ms": True}])
def test_a_wrong_pace_is_refused(fields: Any) -> None:
    with pytest.raises(ValueError, match=r"pace|unknown field|must be"):
        parse_pace(fields, Pace())


def test_a_pace_changes_what_it_names() -> None:
    assert parse_pace({"delta_ms": 5}, Pace(3, 4)) == Pace(3, 5)


def test_the_journal_is_bounded() -> None:
    journal = Journal(None)
    for _ in range(KEPT + 2):
        entry = journal.begin("/v1/messages", {"x-api-key": "secret", "a": "b"})
        entry.read(b'"' + b"x" * BODY_BYTES_KEPT_MAX + b'"', {})
        journal.finish(entry, "complete")
        journal.finish(entry, "error")
    kept = journal.last(KEPT)
    assert (journal.total, journal.running, len(kept)) == (KEPT + 2, 0, KEPT)
    assert (kept[-1]["n"], kept[-1]["outcome"], kept[-1]["headers"]) == (KEPT + 2, "complete", {"a": "b"})
    assert len(entry.body) < 100


def test_the_log_is_of_messages_only(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log")
    journal.finish(journal.begin("/v1/messages/count_tokens", {}), "complete")
    entry = journal.begin("/v1/messages", {})
    entry.read(b"{}", request())
    entry.sent += ["a", " b"]
    journal.finish(entry, "cut")
    line = {"n": 2, "model": MODEL, "messages": [user("hello")], "answer": "a b", "outcome": "cut"}
    assert [json.loads(text) for text in (tmp_path / "log").read_text().splitlines()] == [line]


@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
def test_a_model_is_one_the_sdk_knows(model: Any) -> None:
    info = model.info()
    assert ModelInfo.model_validate(info).to_dict(mode="json", exclude_unset=True) == info


def test_models_come_in_pages() -> None:
    ids = list(MODELS)
    page = list_models(limit=2, after_id=ids[0], before_id=None, lifecycles=())
    assert [model["id"] for model in page["data"]] == ids[1:3]
    assert (page["has_more"], page["first_id"], page["last_id"]) == (True, ids[1], ids[2])
    back = list_models(limit=2, after_id=None, before_id=ids[3], lifecycles=())
    assert ([model["id"] for model in back["data"]], back["has_more"]) == (ids[1:3], True)
    none = list_models(limit=2, after_id=None, before_id=None, lifecycles=["retired"])
    assert (none["data"], none["has_more"], none["first_id"]) == ([], False, None)
