"""Fork, export and import: what Claude is sent afterwards is what it would have been sent."""

import json
from typing import Any

import orjson
import pytest

from service.archive import MEDIA_TYPE
from tests.e2e.by_hand import append, assistant, create, unused, user
from tests.e2e.caller import Answer, Caller
from tests.e2e.test_epochs import TOOL, bodies, messages_of, turn
from tests.instruments.processes import Simulator

pytestmark = pytest.mark.anyio

LOOK = {"name": "look", "parameters": {"type": "object"}}
LINES = {"content-type": MEDIA_TYPE}
IMAGE = "iVBORw0KGgo" + "A" * 99_997  # larger than what stays in a message


async def a_conversation(one: Caller, two: Caller, name: str) -> None:
    """With thinking, a tool call, a result, another system prompt, an attachment and a rewind."""
    thinking, source = {"type": "adaptive"}, {"type": "base64", "media_type": "image/png", "data": IMAGE}
    first = await turn(
        one, name, "Hello é \u2028 😀. My name is Ada.", thinking=thinking, tools=[TOOL], system="Be brief."
    )
    assert first.status == 200, first.body
    called = await turn(two, name, "call look")
    result = [{"type": "tool_result", "tool_use_id": called.json["content"][-1]["id"], "content": "A tree."}]
    assert (await turn(one, name, "", messages=[{"role": "user", "content": result}])).status == 200
    assert (await turn(two, name, "Now long.", system="Be long.")).status == 200
    seen = [{"type": "image", "source": source}, {"type": "text", "text": "Look."}]
    assert (await turn(one, name, "", messages=[{"role": "user", "content": seen}])).status == 200
    assert (await two.chat("To be forgotten", name, model="claude-opus-5-5")).status == 200
    transcript = [shown for shown in await two.messages(name) if shown["role"] != "system"]
    edited = [*transcript[:-2], {"role": "user", "content": "Said otherwise"}]
    again = await turn(one, name, "", messages=edited, headers={"x-session-input": "full"})
    assert (again.status, again.headers["x-session-state"]) == (200, "rewound"), again.body


async def export(caller: Caller, session: str) -> bytes:
    answer = await caller.get(f"/v1/sessions/{session}/export")
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == MEDIA_TYPE
    return answer.body


async def import_(caller: Caller, lines: bytes, query: str = "", **headers: str) -> Answer:
    return await caller.request("POST", f"/v1/sessions/import{query}", data=lines, headers={**LINES, **headers})


async def test_after_export_and_import_claude_is_sent_the_same_bytes(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    await a_conversation(one, two, name)
    lines = await export(two, name)
    other = unused()
    made = await import_(one, lines, f"?name={other}")
    assert made.status == 201, made.body
    assert await export(two, other) != lines
    moving = ("id", "name", "session_id", "last_accessed_at", "expires_at")
    was, is_now = [
        {field: value for field, value in (await one.session(session)).items() if field not in moving}
        for session in (name, other)
    ]
    assert was == is_now
    turns = [(await two.get(f"/v1/sessions/{session}/turns")).json["turns"] for session in (name, other)]
    assert turns[0] == turns[1]
    for session in (name, other):
        assert (await turn(two, session, "And now?")).status == 200
    original, copy = await bodies(one.http, simulator, 2)
    assert original == copy
    assert messages_of(copy).count(b'"thinking"') and IMAGE.encode() in copy


async def test_an_import_sent_again_makes_one_session(one: Caller, two: Caller, name: str) -> None:
    await a_conversation(one, two, name)
    lines, key = await export(one, name), {"idempotency-key": unused()}
    first = await import_(one, lines, "?name=", **key)
    again = await import_(two, lines, "?name=", **key)
    assert (first.status, again.status) == (201, 200)
    assert first.json["id"] == again.json["id"]
    assert first.json["name"] is None
    other = await import_(two, lines.replace(b"Be long.", b"Be kind."), "?name=", **key)
    assert (other.status, other.json["error"]["code"]) == (422, "idempotency_key_reused")
    taken = await import_(two, lines)
    assert (taken.status, taken.json["error"]["code"]) == (409, "session_exists"), "its name is taken: by itself"


async def test_a_fork_goes_on_from_a_message(one: Caller, two: Caller, simulator: Simulator, name: str) -> None:
    await a_conversation(one, two, name)
    count = (await one.session(name))["message_count"]
    forked = await one.request("POST", f"/v1/sessions/{name}/fork", json={"message_count": 2, "title": "Else"})
    assert forked.status == 201, forked.body
    made = forked.json
    assert (made["message_count"], made["turn_count"], made["title"], made["name"]) == (2, 1, "Else", None)
    answer = await two.chat("What is my name?", made["id"], model="claude-opus-5-5")
    assert "Ada" in answer.json["choices"][0]["message"]["content"]
    sent = messages_of((await bodies(one.http, simulator, 1))[0])
    assert sent.count(b'"role"') == 4, "two messages, the question, and the system prompt that the source has now"
    assert (await one.session(name))["message_count"] == count
    turns = (await two.get(f"/v1/sessions/{made['id']}/turns")).json["turns"]
    assert [one["dialect"] for one in turns[:2]] == ["chat", "fork"]
    assert [one["rewound"] for one in turns[2:-1]] == [True] * (len(turns) - 3)


async def test_the_whole_fork_sends_the_same_bytes_as_its_source(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    await a_conversation(one, two, name)
    made = (await two.request("POST", f"/v1/sessions/{name}/fork", json={})).json
    for session in (name, made["id"]):
        assert (await turn(one, session, "And now?")).status == 200
    original, copy = await bodies(one.http, simulator, 2)
    assert original == copy


async def test_where_every_field_may_be_absent_so_may_the_body(one: Caller, name: str) -> None:
    await one.chat("One", name)
    forked = await one.request("POST", f"/v1/sessions/{name}/fork")
    assert (forked.status, forked.json["message_count"]) == (201, 2)


async def test_a_fork_ends_with_a_turn_and_is_made_once_by_key(one: Caller, two: Caller, name: str) -> None:
    first = await one.chat("One", name)
    await one.chat("Two", name)
    path, body = f"/v1/sessions/{name}/fork", {"turn_id": first.headers["x-turn-id"]}
    key = {"idempotency-key": unused()}
    made = await one.request("POST", path, json=body, headers=key)
    again = await two.request("POST", path, json=body, headers=key)
    assert (made.status, again.status, made.json["id"]) == (201, 200, again.json["id"])
    assert made.json["message_count"] == 2
    head = (await one.get(f"/v1/sessions/{made.json['id']}/turns?limit=1")).json["turns"][0]
    assert head["dialect"] == "fork"
    of_fork = await two.request("POST", f"/v1/sessions/{made.json['id']}/fork", json={"turn_id": head["id"]})
    assert (of_fork.status, of_fork.json.get("message_count")) == (201, 2)
    stale = await one.request("POST", path, json=body, headers={"x-expect-turn": first.headers["x-turn-id"]})
    assert (stale.status, stale.json["error"]["code"]) == (409, "history_moved")
    # Sent again it is the same fork, though its source has gone on; and it is that one only.
    old = {**key, "x-expect-turn": first.headers["x-turn-id"]}
    late = await one.request("POST", path, json=body, headers=old)
    assert (late.status, late.json["id"]) == (200, made.json["id"])
    other = await one.request("POST", path, json={}, headers=key)
    assert (other.status, other.json["error"]["code"]) == (422, "idempotency_key_reused")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"message_count": 99}, 400, "invalid_value"),
        ({"message_count": -1}, 400, "invalid_value"),
        ({"message_count": 1, "turn_id": "turn_" + "a" * 26}, 400, "invalid_value"),
        ({"turn_id": "turn_" + "a" * 26}, 404, "turn_not_found"),
        ({"turn_id": ""}, 400, "invalid_value"),
        ({"at": 1}, 400, "unknown_field"),
        ([], 400, "invalid_value"),
    ],
)
async def test_what_cannot_be_forked_is_told(one: Caller, name: str, body: Any, status: int, code: str) -> None:
    await one.chat("One", name)
    answer = await one.request("POST", f"/v1/sessions/{name}/fork", json=body)
    assert (answer.status, answer.json["error"]["code"]) == (status, code)
    assert (await one.request("POST", f"/v1/sessions/{unused()}/fork", json={})).status == 404


async def test_messages_of_either_form_become_a_session(one: Caller, two: Caller) -> None:
    openai = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": "Hello Ada.", "tool_calls": [call("call_1")]},
        {"role": "tool", "tool_call_id": "call_1", "content": "A tree."},
        {"role": "assistant", "content": "A tree."},
    ]
    anthropic = [user("My name is Ada."), assistant("Hello Ada.")]
    for dialect, messages, stored in (("chat", openai, 4), ("messages", anthropic, 2)):
        body = {"model": "claude-opus-5-5", "messages": messages, "dialect": dialect, "title": "Moved"}
        made = await one.request("POST", "/v1/sessions/import", json=body)
        assert made.status == 201, made.body
        assert (made.json["message_count"], made.json["turn_count"], made.json["title"]) == (stored, 0, "Moved")
        answer = await two.chat("What is my name?", made.json["id"], tools=[{"type": "function", "function": LOOK}])
        assert "Ada" in answer.json["choices"][0]["message"]["content"]
    assert (await one.request("POST", "/v1/sessions/import", json={"messages": openai})).json["error"][
        "param"
    ] == "model"


def call(call_id: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "look", "arguments": "{}"}}


async def test_a_cut_or_bent_export_is_refused_and_stores_nothing(one: Caller) -> None:
    made = await create(one, title="T")
    await append(one, made["id"], user("One"), assistant("Two"))
    lines = (await export(one, made["id"])).splitlines(keepends=True)
    before = (await one.get("/v1/sessions/stats")).json["total_sessions"]
    for bent in bends(lines):
        answer = await import_(one, bent, "?name=")
        assert answer.status == 400, bent
        assert answer.json["error"]["code"] in ("invalid_value", "invalid_json", "missing_value"), answer.body
    assert (await one.get("/v1/sessions/stats")).json["total_sessions"] == before


def bends(lines: list[bytes]) -> list[bytes]:
    """Files that are cut short, out of order, or hold what no export holds."""
    head = json.loads(lines[0])
    found = [b"".join(lines[:count]) for count in range(len(lines))]
    found += [b"".join([*lines, lines[0]]), b"".join([lines[0], *lines[::-1][:-1]]), b"\xff\n", b"[]\n"]
    for change in (
        {"ttl_ms": -1},
        {"messages": 9},
        {"cuts": [[1, 2, 3]]},
        {"epoch_start": 3},
        {"preamble": "9 9\n"},
        {"metadata": {"k": 1}},
        {"nonce": "x"},
        {"usage": {"input": -1}},
        {"system": [{"type": "image"}]},
    ):
        found.append(b"".join([orjson.dumps({**head, **change}, option=orjson.OPT_APPEND_NEWLINE), *lines[1:]]))
    for line, old, new in (
        (1, b'"verdict":"committed"', b'"verdict":"won"'),
        (1, b'"id":"turn_', b'"id":"turm_'),
        (1, b'"to":2', b'"to":3'),
        (2, b'"role":"user"', b'"role":"assistant"'),
        (3, b'"content":"Two"', b'"content":[]'),
        (3, b'"content":"Two"', b'"content":[{"type":"tool_use","id":"t","name":"n","input":1}]'),
        (3, b'"content":"Two"', b'"content":[{"type":"text"}]'),
    ):
        assert old in lines[line], (old, lines[line])
        found.append(b"".join([*lines[:line], lines[line].replace(old, new), *lines[line + 1 :]]))
    return found
