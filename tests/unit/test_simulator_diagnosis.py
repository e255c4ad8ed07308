"""The stand-in's cache diagnostics: why the prefix of an earlier request was not found."""

from typing import Any

import pytest

from service.simulator import diagnosis, events
from service.simulator.diagnosis import Diagnoses
from tests.unit.simulated import LOOK, Json, assistant, message_to, read_events, reply_to, request, stream_text, user

TALK = [user("a"), assistant("b"), user("c")]
BASE: Json = {"system": "S", "tools": [LOOK], "thinking": {"type": "adaptive"}}


def asking(previous: str | None, *messages: Any, **fields: Any) -> Json:
    return request(*(messages or TALK), **{**BASE, **fields}, diagnostics={"previous_message_id": previous})


def told(diagnoses: Diagnoses, body: Json) -> Json:
    return events.message(reply_to(body, diagnoses=diagnoses))


CHANGES: list[tuple[Json, str]] = [
    (asking("", model="claude-opus-5-5"), "model_changed"),
    (asking("", speed="fast"), "model_changed"),
    (asking("", system="T"), "system_changed"),
    (asking("", tools=[LOOK, {**LOOK, "name": "see"}]), "tools_changed"),
    (asking("", user("A"), *TALK[1:]), "messages_changed"),
    (asking("", *TALK[:1]), "messages_changed"),
    (asking("", system="T", tools=[LOOK, {**LOOK, "name": "see"}]), "system_changed"),
]


@pytest.mark.parametrize(("changed", "reason"), CHANGES)
def test_what_differs_from_the_request_before_is_named(changed: Json, reason: str) -> None:
    diagnoses = Diagnoses()
    first = told(diagnoses, asking(None))
    changed = {**changed, "diagnostics": {"previous_message_id": first["id"]}}
    tokens = sum(first["usage"][f"{kind}input_tokens"] for kind in ("", "cache_read_", "cache_creation_"))
    missed = {"type": reason, "cache_missed_input_tokens": tokens}
    assert told(diagnoses, changed)["diagnostics"] == {"cache_miss_reason": missed}


def test_what_only_goes_on_misses_nothing() -> None:
    diagnoses = Diagnoses()
    first = told(diagnoses, asking(None))
    assert first["diagnostics"] is None
    on = asking(first["id"], *TALK, assistant("d"), user([{"type": "text", "text": "e", "cache_control": None}]))
    assert told(diagnoses, on)["diagnostics"] is None


def test_other_rules_and_requests_nobody_remembers_are_told_without_a_number() -> None:
    diagnoses = Diagnoses()
    first = told(diagnoses, asking(None))
    other = told(diagnoses, asking(first["id"], tool_choice={"type": "none"}))
    assert other["diagnostics"] == {"cache_miss_reason": {"type": "unavailable"}}
    unknown = told(diagnoses, asking("msg_x"))
    assert unknown["diagnostics"] == {"cache_miss_reason": {"type": "previous_message_not_found"}}
    unasked = told(diagnoses, request(*TALK))
    assert unasked["diagnostics"] is None
    assert told(diagnoses, asking(unasked["id"]))["diagnostics"] == unknown["diagnostics"]


def test_a_stream_tells_it_in_its_first_event() -> None:
    start = read_events(stream_text(reply_to(asking("msg_x"))))[0]
    assert start["message"]["diagnostics"] == {"cache_miss_reason": {"type": "previous_message_not_found"}}
    assert message_to(request())["diagnostics"] is None


def test_it_forgets_what_was_asked_longest_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "KEPT", 2)
    diagnoses = Diagnoses()
    asked = [told(diagnoses, asking(None))["id"] for _ in range(3)]
    assert told(diagnoses, asking(asked[-1]))["diagnostics"] is None
    gone = told(diagnoses, asking(asked[0]))["diagnostics"]
    assert gone == {"cache_miss_reason": {"type": "previous_message_not_found"}}
