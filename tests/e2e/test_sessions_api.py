"""``/v1/sessions`` over HTTP: what one replica does to a session the other one shows."""

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest

from tests.e2e.by_hand import append, assistant, create, looked_at_after, user
from tests.e2e.caller import Caller
from tests.instruments.processes import Simulator

pytestmark = pytest.mark.anyio

MODEL = "claude-sonnet-5-5"
FIELDS = {
    *("id", "name", "session_id", "object", "created_at", "last_accessed_at", "expires_at", "absolute_expires_at"),
    *(
        "status",
        "message_count",
        "turn_count",
        "model",
        "system_prompt",
        "max_turns",
        "title",
        "metadata",
        "owner",
        "role",
    ),
    *("ttl_seconds", "usage", "context_tokens", "context_tokens_target", "compact_instructions", "checkpoint"),
    "context_policy",
}


async def patch(caller: Caller, session: str, body: Any, **headers: str) -> Any:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return await caller.request("PATCH", f"/v1/sessions/{session}", json=body, headers=names)


# Create and get.


async def test_a_session_is_created_whole_and_seen_by_the_other_replica(one: Caller, two: Caller, name: str) -> None:
    end = datetime.now(UTC) + timedelta(days=1)
    asked = {
        "name": name,
        "model": "claude-opus-5-5",
        "system_prompt": "Be brief. Ünïcode 🎈",
        "max_turns": 4,
        "ttl_seconds": 120,
        "absolute_expires_at": end.isoformat(timespec="milliseconds"),
        "title": "A title",
        "metadata": {"team": "blue"},
    }
    answer = await one.request("POST", "/v1/sessions", json=asked)
    assert answer.status == 201, answer.body
    made = answer.json
    assert made.keys() == FIELDS
    assert made["id"].startswith("sess_")
    assert (made["name"], made["session_id"], made["object"], made["status"]) == (name, name, "session", "active")
    assert {key: made[key] for key in asked if key != "absolute_expires_at"} == {
        key: value for key, value in asked.items() if key != "absolute_expires_at"
    }
    assert (made["message_count"], made["turn_count"], made["usage"]["input_tokens"]) == (0, 0, 0)
    for key in ("created_at", "last_accessed_at", "expires_at", "absolute_expires_at"):
        assert made[key].endswith("Z"), key
        assert datetime.fromisoformat(made[key]).tzinfo is UTC, key
    assert abs(datetime.fromisoformat(made["absolute_expires_at"]) - end) < timedelta(milliseconds=2)
    life = datetime.fromisoformat(made["expires_at"]) - datetime.fromisoformat(made["last_accessed_at"])
    assert life == timedelta(seconds=120)
    for address in (name, made["id"]):
        seen = await two.get(f"/v1/sessions/{address}")
        moving = {"last_accessed_at", "expires_at"}
        assert {k: v for k, v in seen.json.items() if k not in moving} == {
            k: v for k, v in made.items() if k not in moving
        }
        assert seen.headers["etag"] == answer.headers["etag"] == '"1"'
        assert seen.headers["x-session-id"] == made["id"]


async def test_a_minimal_session_has_an_issued_id_and_the_defaults(one: Caller) -> None:
    made = await create(one)
    assert (made["name"], made["session_id"]) == (None, made["id"])
    assert (made["system_prompt"], made["max_turns"], made["title"], made["metadata"]) == (None, None, None, {})
    assert (made["ttl_seconds"], made["absolute_expires_at"]) == (3600, None)
    assert (await create(one))["id"] != made["id"]


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_value", "model"),
        ({"model": MODEL, "colour": "red"}, "unknown_field", "colour"),
        ({"model": MODEL, "id": "x"}, "unknown_field", "id"),
        ({"model": MODEL, "name": "new"}, "invalid_session_id", "name"),
        ({"model": MODEL, "name": "stats"}, "invalid_session_id", "name"),
        ({"model": MODEL, "name": "sess_mine"}, "invalid_session_id", "name"),
        ({"model": MODEL, "name": "n" * 201}, "invalid_session_id", "name"),
        ({"model": MODEL, "name": "a b"}, "invalid_session_id", "name"),
        ({"model": MODEL, "metadata": {str(n): "" for n in range(17)}}, "invalid_value", "metadata"),
        ({"model": MODEL, "metadata": {"k": "v" * 513}}, "invalid_value", "metadata.k"),
        ({"model": MODEL, "ttl_seconds": 0}, "invalid_value", "ttl_seconds"),
        ([], "invalid_value", None),
    ],
)
async def test_a_creation_that_cannot_be_is_refused_by_name(
    one: Caller, body: Any, code: str, param: str | None
) -> None:
    answer = await one.request("POST", "/v1/sessions", json=body)
    assert (answer.status, answer.code, answer.json["error"]["param"]) == (400, code, param)


async def test_a_body_that_is_not_json_is_refused(one: Caller) -> None:
    answer = await one.request("POST", "/v1/sessions", data=b"{'model'}")
    assert (answer.status, answer.code) == (400, "invalid_json")


async def test_a_name_can_be_taken_once(one: Caller, two: Caller, name: str) -> None:
    await create(one, name=name, title="first")
    answer = await two.request("POST", "/v1/sessions", json={"model": MODEL, "name": name, "title": "second"})
    assert (answer.status, answer.code) == (409, "session_exists")
    assert (await two.session(name))["title"] == "first"


async def test_ids_with_unusual_characters(one: Caller, two: Caller, name: str) -> None:
    unusual = f"{name}.a_b:c@d+e"
    await create(one, name=unusual)
    for path in (unusual, quote(unusual, safe="")):
        assert (await two.get(f"/v1/sessions/{path}")).json["name"] == unusual
    for bad in ("a%20b", "%C3%A9", "-a", "n" * 201, "%3Cscript%3E"):
        answer = await one.get(f"/v1/sessions/{bad}")
        assert (answer.status, answer.code) == (400, "invalid_session_id"), bad
    for path in ("/v1/sessions/", "/v1/sessions/a/b/c", f"/v1/sessions/{name}/nothing"):
        answer = await one.get(path)
        assert (answer.status, answer.code) == (404, "route_not_found"), path


async def test_a_wrong_method_is_told_the_right_ones(one: Caller, name: str) -> None:
    for method, path, allowed in (
        ("PUT", "/v1/sessions", "GET, HEAD, POST"),
        ("POST", f"/v1/sessions/{name}", "DELETE, GET, HEAD, PATCH"),
        ("POST", "/v1/sessions/stats", "GET, HEAD"),
        ("DELETE", f"/v1/sessions/{name}/messages", "GET, HEAD, POST"),
        ("POST", f"/v1/sessions/{name}/turns", "GET, HEAD"),
    ):
        answer = await one.request(method, path)
        assert (answer.status, answer.code, answer.headers["allow"]) == (405, "method_not_allowed", allowed)


async def test_get_extends_the_life_of_a_session(one: Caller, two: Caller) -> None:
    made = await create(one)
    again = await looked_at_after(made["last_accessed_at"], two, made["id"])
    assert again["expires_at"] > made["expires_at"]
    assert again["created_at"] == made["created_at"]


# Patch.


async def test_a_patch_persists_and_keeps_what_it_does_not_name(one: Caller, two: Caller, name: str) -> None:
    made = await create(one, name=name, system_prompt="old", max_turns=9, title="T", metadata={"a": "1"})
    answer = await patch(one, name, {"title": "N"})
    assert (answer.status, answer.json["title"], answer.headers["etag"]) == (200, "N", '"2"')
    answer = await patch(two, made["id"], {"system_prompt": "new", "max_turns": 2, "ttl_seconds": 60})
    assert answer.status == 200
    seen = await one.session(name)
    assert (seen["title"], seen["system_prompt"], seen["max_turns"], seen["ttl_seconds"]) == ("N", "new", 2, 60)
    assert (seen["metadata"], seen["model"], seen["created_at"]) == ({"a": "1"}, made["model"], made["created_at"])
    answer = await patch(two, name, {"metadata": {"b": "2"}, "title": None, "max_turns": None})
    seen = await one.session(name)
    assert (seen["metadata"], seen["title"], seen["max_turns"], seen["system_prompt"]) == (
        {"b": "2"},
        None,
        None,
        "new",
    )


async def test_a_patch_that_cannot_be_changes_nothing(one: Caller, name: str) -> None:
    await create(one, name=name, title="T")
    for body, code, param in (
        ({"title": "N", "id": "x"}, "invalid_value", "id"),
        ({"title": "N", "message_count": 7}, "invalid_value", "message_count"),
        ({"title": "N", "absolute_expires_at": None}, "invalid_value", "absolute_expires_at"),
        ({"title": "N", "colour": "red"}, "unknown_field", "colour"),
        ({"title": "N", "max_turns": 0}, "invalid_value", "max_turns"),
        ({"title": "N", "metadata": {"k": 7}}, "invalid_value", "metadata.k"),
    ):
        answer = await patch(one, name, body)
        assert (answer.status, answer.code, answer.json["error"]["param"]) == (400, code, param)
    answer = await one.get(f"/v1/sessions/{name}")
    assert (answer.json["title"], answer.headers["etag"]) == ("T", '"1"')
    answer = await patch(one, name, {})
    assert (answer.status, answer.headers["etag"]) == (200, '"1"')


async def test_a_patch_of_another_revision_loses(one: Caller, two: Caller, name: str) -> None:
    await create(one, name=name)
    seen = (await two.get(f"/v1/sessions/{name}")).headers["etag"]
    assert (await patch(one, name, {"title": "first"}, if_match=seen)).status == 200
    lost = await patch(two, name, {"title": "late"}, if_match=seen)
    assert (lost.status, lost.code, lost.headers["etag"]) == (409, "revision_conflict", '"2"')
    assert (await one.session(name))["title"] == "first"
    assert (await patch(two, name, {"title": "any"}, if_match="*")).status == 200
    for malformed in ("2", 'W/"2"', '""', "x", '"2", "3"'):
        answer = await patch(one, name, {"title": "N"}, if_match=malformed)
        assert (answer.status, answer.code, answer.json["error"]["param"]) == (400, "invalid_value", "If-Match")


async def test_a_patch_holds_from_the_next_turn(one: Caller, two: Caller, simulator: Simulator, name: str) -> None:
    await create(one, name=name, system_prompt="Say yes.", model="claude-opus-5-5")
    assert (await one.chat("Hello.", name)).status == 200
    await patch(two, name, {"system_prompt": "Say no.", "model": "claude-sonnet-5-5"})
    assert (await one.chat("Hello again.", name)).status == 200
    first, second = [request["body"] for request in await simulator.requests(limit=2)]
    assert (first["system"], first["model"]) == ("Say yes.", "claude-opus-5-5")
    assert (second["system"], second["model"]) == ("Say no.", "claude-sonnet-5-5")
    assert len(second["messages"]) == 3


async def test_a_patch_while_a_turn_runs_survives_it(one: Caller, two: Caller, simulator: Simulator, name: str) -> None:
    await create(one, name=name, system_prompt="old")
    await simulator.pace(delta_ms=20)
    async with one.stream("count to 60", name) as stream:
        await stream.words(1)
        assert (await two.session(name))["status"] == "busy"
        assert (await patch(two, name, {"system_prompt": "new", "title": "N"})).status == 200
        await stream.rest()
    seen = await two.session(name)
    assert (seen["system_prompt"], seen["title"], seen["status"]) == ("new", "N", "active")
    assert seen["message_count"] == 2


async def test_a_session_has_no_more_turns_than_it_may(one: Caller, two: Caller, name: str) -> None:
    await create(one, name=name, max_turns=1)
    assert (await append(one, name, user("a"), assistant("b"))).status == 200
    assert (await two.chat("Hello.", name)).status == 200
    answer = await one.chat("Once more.", name)
    assert (answer.status, answer.code) == (400, "max_turns_reached")
    assert (await one.session(name))["message_count"] == 4
    await patch(two, name, {"max_turns": 2})
    assert (await one.chat("Once more.", name)).status == 200


# Append.


async def test_appended_messages_are_history_for_claude(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    await create(one, name=name)
    told = [user("My name is Ada."), assistant("Nice to meet you."), user("I like tea.")]
    first = await append(one, name, *told[:2])
    second = await append(two, name, told[2], {"role": "assistant", "content": [{"type": "text", "text": "So do I."}]})
    assert first.status == second.status == 200
    assert first.json == {"session_id": name, "message_count": 2, "turn_id": first.json["turn_id"]}
    assert second.json["message_count"] == 4
    assert first.json["turn_id"] != second.json["turn_id"]
    assert (await one.messages(name))[:3] == told
    answer = await two.chat("What is my name?", name)
    assert "Ada" in answer.text
    assert len((await simulator.requests(limit=1))[0]["body"]["messages"]) == 5
    seen = await one.session(name)
    assert (seen["message_count"], seen["turn_count"]) == (6, 1)


async def test_an_empty_append_changes_nothing(one: Caller, name: str) -> None:
    made = await create(one, name=name)
    answer = await append(one, name)
    assert (answer.status, answer.json) == (200, {"session_id": name, "message_count": 0, "turn_id": None})
    listed = (await one.get("/v1/sessions?limit=100")).json["sessions"]
    assert made["last_accessed_at"] in {entry["last_accessed_at"] for entry in listed if entry["id"] == made["id"]}


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_value", "messages"),
        ({"messages": "hi"}, "invalid_value", "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "invalid_value", "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "missing_value", "messages.0.content"),
        ({"messages": [{"role": "user", "content": None}]}, "missing_value", "messages.0.content"),
        ({"messages": [{"role": "assistant", "content": "I begin."}]}, "invalid_value", "messages.0.role"),
    ],
)
async def test_an_append_that_cannot_be_history_stores_nothing(
    one: Caller, name: str, body: Any, code: str, param: str
) -> None:
    await create(one, name=name)
    answer = await one.request("POST", f"/v1/sessions/{name}/messages", json=body)
    assert (answer.status, answer.code, answer.json["error"]["param"]) == (400, code, param)
    assert (await one.session(name))["message_count"] == 0


async def test_an_append_to_a_busy_session_waits_or_is_refused(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    await simulator.pace(delta_ms=20)
    async with one.stream("count to 60", name) as stream:
        await stream.words(1)
        refused = await append(two, name, user("a"), headers={"x-session-on-conflict": "reject"})
        assert (refused.status, refused.code) == (409, "turn_in_progress")
        assert refused.headers["x-turn-id"] == stream.headers["x-turn-id"]
        queued = await append(two, name, user("b"))
    assert (queued.status, queued.json["message_count"]) == (200, 3)
    assert [message["content"] for message in await one.messages(name)][-1] == "b"


# Turns.


async def test_turns_tell_what_was_asked_and_what_became_of_it(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    first = await one.chat("Hello.", name)
    await simulator.fault("rate_limit", retry_after_s=30)
    failed = await two.chat("Fail.", name)
    assert failed.status >= 400
    appended = await append(one, name, user("a"), assistant("b"))
    await simulator.pace(delta_ms=20)
    async with two.stream("count to 60", name) as stream:
        await stream.words(1)
        answer = await one.get(f"/v1/sessions/{name}/turns")
        await stream.rest()
    listed = answer.json
    assert (listed["object"], listed["session_id"], listed["total"], listed["has_more"]) == ("list", name, 4, False)
    turns = listed["turns"]
    assert [turn["number"] for turn in turns] == [4, 3, 2, 1]
    assert [turn["verdict"] for turn in turns] == ["pending", "committed", "aborted", "committed"]
    assert [turn["dialect"] for turn in turns] == ["chat", "append", "chat", "chat"]
    assert [turn["message_range"] for turn in turns] == [None, {"from": 2, "to": 4}, None, {"from": 0, "to": 2}]
    assert turns[1]["id"] == appended.json["turn_id"]
    assert turns[3]["id"] == first.headers["x-turn-id"]
    assert turns[3]["usage"]["output_tokens"] > 0
    assert turns[3]["stop_reason"] == "end_turn"
    assert turns[3]["replica"]
    assert turns[3]["started_at"].endswith("Z")
    assert turns[3]["started_at"] <= turns[3]["ended_at"]

    page = (await two.get(f"/v1/sessions/{name}/turns?limit=2&before=4")).json
    assert ([turn["number"] for turn in page["turns"]], page["has_more"]) == ([3, 2], True)
    page = (await two.get(f"/v1/sessions/{name}/turns?before=1")).json
    assert (page["turns"], page["has_more"]) == ([], False)

    for address in ("1", first.headers["x-turn-id"]):
        turn = (await two.get(f"/v1/sessions/{name}/turns/{address}")).json
        assert turn["number"] == 1
        assert [message["role"] for message in turn["messages"]] == ["user", "assistant"]
    assert (await two.get(f"/v1/sessions/{name}/turns/4")).json["verdict"] == "committed"
    assert (await two.get(f"/v1/sessions/{name}/turns/2")).json["messages"] == []
    for absent in ("0", "5", "9" * 30, "turn_x", "turn_" + "a" * 26, "x"):
        answer = await one.get(f"/v1/sessions/{name}/turns/{absent}")
        assert (answer.status, answer.code) == (404, "turn_not_found"), absent
    for query in ("limit=0", "limit=101", "before=0", "before=-1", "before=x"):
        answer = await one.get(f"/v1/sessions/{name}/turns?{query}")
        assert (answer.status, answer.code) == (400, "invalid_value"), query
