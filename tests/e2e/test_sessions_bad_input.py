"""Sessions asked for what cannot be: told precisely, by either replica, and nothing changed.

Cursors forged or stale, limits out of range, metadata too large, changes of what cannot be changed, changes that lost;
and sessions that are not there, or not for this caller: nobody learns which.
"""

import asyncio
import base64
import time
from typing import Any

import pytest
import redis.asyncio

from service.cursor import CURSOR_LIFE_S, Cursors
from storage.index import Listed
from tests.e2e.by_hand import create, user
from tests.e2e.caller import CHAT, Answer, Caller, eventually
from tests.e2e.test_ancestors import MODEL, error
from tests.e2e.test_ancestors_sessions import still, whole
from tests.instruments.processes import SECRET, Fleet, Simulator
from tests.store.harness import OWNER, Store

pytestmark = pytest.mark.anyio

PATCHABLE = (
    "system_prompt, model, max_turns, title, metadata, ttl_seconds, context_tokens_target, compact_instructions, "
    "context_policy"
)
READ_ONLY = (
    *("id", "name", "session_id", "object", "created_at", "last_accessed_at", "expires_at", "absolute_expires_at"),
    *("status", "message_count", "turn_count", "owner", "usage", "checkpoint"),
)
LARGEST = {f"{n:064}": "é" * 512 for n in range(16)}
TOO_LARGE: list[tuple[Any, str, str]] = [
    ({**LARGEST, "one more": ""}, "`metadata` may have at most 16 pairs.", "metadata"),
    ({"k": "v" * 513}, "`metadata.k` must be a string of at most 512 characters.", "metadata.k"),
    ({"k" * 65: "v"}, f"`metadata.{'k' * 64}` must have a key of 1 to 64 characters.", f"metadata.{'k' * 64}"),
    ({"": "v"}, "`metadata.` must have a key of 1 to 64 characters.", "metadata."),
    ({"k": {"v": "w"}}, "`metadata.k` must be a string of at most 512 characters.", "metadata.k"),
    ({"k": None}, "`metadata.k` must be a string of at most 512 characters.", "metadata.k"),
    (["k"], "`metadata` must be an object of strings.", "metadata"),
]
UNCHANGEABLE: list[tuple[str, Any, str, str]] = [
    *((field, None, f"`{field}` cannot be changed; these can: {PATCHABLE}.", "invalid_value") for field in READ_ONLY),
    ("colour", "red", "There is no field `colour`.", "unknown_field"),
    ("Title", "N", "There is no field `Title`.", "unknown_field"),
    *(
        ("max_turns", value, "`max_turns` must be a whole number from 1 to 1000000.", "invalid_value")
        for value in (0, -1, 1.5, "3", True, 1_000_001)
    ),
    *(
        ("ttl_seconds", value, "`ttl_seconds` must be a whole number from 1 to 31536000.", "invalid_value")
        for value in (0, None, "60", 31_536_001)
    ),
    *(
        ("system_prompt", value, "`system_prompt` must be a string that is not blank.", "invalid_value")
        for value in ("", 7)
    ),
    *(
        (
            "context_tokens_target",
            value,
            "`context_tokens_target` must be a whole number from 1000 to 100000000.",
            "invalid_value",
        )
        for value in (0, 999, "1000", True)
    ),
    *(
        (
            "compact_instructions",
            value,
            "`compact_instructions` must be a string of at most 4000 characters.",
            "invalid_value",
        )
        for value in (7, "i" * 4_001)
    ),
    *(
        ("title", value, "`title` must be a string of at most 512 characters.", "invalid_value")
        for value in (7, "t" * 513)
    ),
    *(
        ("model", value, "`model` must be 1 to 200 printable ASCII characters without spaces.", "invalid_value")
        for value in ("", 7, "a b", "m" * 201)
    ),
]


async def patch(caller: Caller, session: str, body: Any, if_match: str | None = None) -> Answer:
    headers = {} if if_match is None else {"If-Match": if_match}
    return await caller.request("PATCH", f"/v1/sessions/{session}", json=body, headers=headers)


# Changes.


async def test_what_cannot_be_changed_is_refused_by_name_and_nothing_else_is_changed_either(
    one: Caller, two: Caller, name: str
) -> None:
    await create(one, name=name, title=name, metadata={"a": "1"}, max_turns=5)
    before = await whole(one, name)
    refusals = [
        *(({field: value}, message, field, code) for field, value, message, code in UNCHANGEABLE),
        *(({"metadata": value}, message, param, "invalid_value") for value, message, param in TOO_LARGE),
    ]
    for number, (fields, message, param, code) in enumerate(refusals):
        for body in ({"system_prompt": "N", **fields}, {**fields, "max_turns": 9} | fields):
            answer = await patch((one, two)[number % 2], name, body)
            assert (answer.status, answer.json) == (400, error(message, param, code)), fields
    for raw in (b"[]", b'"title"', b"null", b"7"):
        answer = await two.request("PATCH", f"/v1/sessions/{name}", data=raw)
        assert (answer.status, answer.json) == (400, error("The body must be a JSON object.", None, "invalid_value"))
    assert await whole(two, name) == before
    assert (await two.get(f"/v1/sessions/{name}")).headers["etag"] == '"1"'


async def test_metadata_is_kept_up_to_its_limits_and_not_beyond(one: Caller, two: Caller, name: str) -> None:
    for number, (metadata, message, param) in enumerate(TOO_LARGE):
        body = {"model": MODEL, "name": name, "title": name, "metadata": metadata}
        answer = await (one, two)[number % 2].request("POST", "/v1/sessions", json=body)
        assert (answer.status, answer.json) == (400, error(message, param, "invalid_value"))
    assert (await one.get(f"/v1/sessions/{name}")).status == 404
    assert (await two.get(f"/v1/sessions?title_prefix={name}")).json["sessions"] == []
    await create(one, name=name, metadata=LARGEST)
    assert (await two.session(name))["metadata"] == LARGEST
    assert (await patch(two, name, {"metadata": {"k": "v"}})).json["metadata"] == {"k": "v"}
    assert (await patch(one, name, {"metadata": LARGEST})).status == 200
    assert (await two.session(name))["metadata"] == LARGEST


async def test_a_change_of_another_revision_loses_and_changes_nothing(one: Caller, two: Caller, name: str) -> None:
    await create(one, name=name, title=name)
    assert (await patch(two, name, {"max_turns": 5}, '"1"')).headers["etag"] == '"2"'
    before = await whole(one, name)
    for caller, stale in ((one, '"1"'), (two, '"3"'), (one, '"0"'), (two, '"999999999999999"')):
        lost = await patch(caller, name, {"max_turns": 6, "metadata": {"a": "1"}}, stale)
        message = "The session was changed since; get it again, and decide again."
        assert (lost.status, lost.json) == (409, error(message, "If-Match", "revision_conflict", "conflict_error"))
        assert (lost.headers["etag"], lost.headers["x-should-retry"]) == ('"2"', "false")
    for caller, nonsense in ((two, "2"), (one, 'W/"2"'), (two, '"two"'), (one, '"2", "3"'), (two, "")):
        answer = await patch(caller, name, {"max_turns": 6}, nonsense)
        message = 'If-Match is the ETag of the session as it was read, like "3".'
        assert (answer.status, answer.json) == (400, error(message, "If-Match", "invalid_value"))
    assert await whole(two, name) == before


async def test_of_many_changes_at_once_of_one_revision_one_wins(one: Caller, two: Caller, name: str) -> None:
    await create(one, name=name)
    for revision in range(1, 6):
        answers = await asyncio.gather(
            *(patch((one, two)[n % 2], name, {"title": f"{revision}-{n}"}, f'"{revision}"') for n in range(8))
        )
        winner = [answer for answer in answers if answer.status == 200]
        assert sorted(answer.status for answer in answers) == [200, *[409] * 7]
        assert {answer.headers["etag"] for answer in answers} == {f'"{revision + 1}"'}
        assert still(await two.session(name)) == still(winner[0].json)


# Pages.

NOT_OF_THIS_LIST = error(
    "The cursor is not one of this list: take it as `next_cursor` from a page with the same filters, within a day.",
    "cursor",
    "invalid_value",
)


async def page(caller: Caller, name: str, cursor: str | None = None, limit: int = 1) -> Answer:
    """A page of those whose title begins with the name."""
    went_on = "" if cursor is None else f"&cursor={cursor}"
    return await caller.get(f"/v1/sessions?title_prefix={name}&limit={limit}{went_on}")


async def test_a_cursor_forged_in_any_place_is_refused(one: Caller, two: Caller, name: str) -> None:
    made = [await create(one, title=name) for _ in range(2)]
    cursor = (await page(one, name)).json["next_cursor"]
    raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    forged = [raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :] for at in range(len(raw))]
    forged += [raw[:-1], raw + b"\0", raw[1:], b""]
    encoded = [base64.urlsafe_b64encode(one).decode().rstrip("=") for one in forged]
    for number, wrong in enumerate([*encoded, cursor + "%3D%20", "null", "%00", "%C3%A9", "a" * 5_000, made[0]["id"]]):
        answer = await page((one, two)[number % 2], name, wrong)
        assert (answer.status, answer.json) == (400, NOT_OF_THIS_LIST), wrong
    assert len((await page(two, name, cursor)).json["sessions"]) == 1


async def test_a_cursor_that_is_stale_or_of_another_list_is_refused(one: Caller, two: Caller, name: str) -> None:
    made = [await create(one, title=name) for _ in range(2)]
    filters = {"title_prefix": name}
    there = Listed(4_000_000_000_000, made[0]["id"])
    ours, others = Cursors(SECRET.encode()), Cursors(b"another secret of enough length")
    now = int(time.time())
    for wrong in (
        ours.issue(there, "open", filters, now_s=now - CURSOR_LIFE_S - 60),
        ours.issue(there, "open", filters, now_s=now + CURSOR_LIFE_S + 60),
        ours.issue(there, OWNER, filters, now_s=now),
        ours.issue(there, "open", {}, now_s=now),
        ours.issue(there, "open", {**filters, "metadata[a]": "1"}, now_s=now),
        others.issue(there, "open", filters, now_s=now),
    ):
        for caller in (one, two):
            answer = await page(caller, name, wrong)
            assert (answer.status, answer.json) == (400, NOT_OF_THIS_LIST)
    for young in (now, now - CURSOR_LIFE_S + 60):
        went_on = await page(two, name, ours.issue(there, "open", filters, now_s=young), limit=5)
        assert {session["id"] for session in went_on.json["sessions"]} == {session["id"] for session in made}


async def test_a_cursor_goes_on_though_the_session_it_stands_at_was_deleted_or_used(
    one: Caller, two: Caller, name: str
) -> None:
    made = [await create((one, two)[n % 2], title=name) for n in range(4)]
    made.sort(key=lambda session: (session["last_accessed_at"], session["id"]), reverse=True)
    first = (await page(one, name)).json
    assert [session["id"] for session in first["sessions"]] == [made[0]["id"]]
    await one.request("DELETE", f"/v1/sessions/{made[0]['id']}")
    second = (await page(two, name, first["next_cursor"])).json
    assert [session["id"] for session in second["sessions"]] == [made[1]["id"]]
    await two.session(made[1]["id"])
    rest = (await page(one, name, second["next_cursor"], limit=5)).json
    assert rest["sessions"] == made[2:]
    assert (rest["has_more"], rest["next_cursor"]) == (False, None)


NOT_WHOLE = ["0", "-1", "101", "x", "", "1.5", "1e1", "+1", "%D9%A1", "9" * 400, "null", "0x1"]


async def test_a_limit_or_place_out_of_range_is_refused_by_name_in_every_list(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    await create(one, name=name, title=name)
    before, asked = await whole(one, name), await simulator.total()
    places = [
        *(("/v1/sessions", "limit", 1, 100, value) for value in NOT_WHOLE),
        *((f"/v1/sessions/{name}/messages", "limit", 1, 100, value) for value in NOT_WHOLE),
        *((f"/v1/sessions/{name}/turns", "limit", 1, 100, value) for value in NOT_WHOLE),
        *((f"/v1/sessions/{name}/messages", "offset", 0, 10_000_000, value) for value in ("-1", "10000001", "x", "")),
        *((f"/v1/sessions/{name}/turns", "before", 1, 999_999_999_999, value) for value in ("0", "-1", "1" * 13, "")),
    ]
    for number, (path, param, low, high, value) in enumerate(places):
        answer = await (one, two)[number % 2].get(f"{path}?{param}={value}")
        told = error(f"`{param}` must be a whole number from {low} to {high}.", param, "invalid_value")
        assert (answer.status, answer.json) == (400, told), (path, value)
    assert await whole(two, name) == before
    assert await simulator.total() == asked


# Sessions that are not there, or not for this caller.


def requests_of(session: str) -> list[tuple[str, str, Any]]:
    """Everything that can be asked of a session: method, path, body."""
    path = f"/v1/sessions/{session}"
    turn = "turn_" + "a" * 26
    return [
        ("GET", path, None),
        ("PATCH", path, {"title": "N"}),
        ("PATCH", path, {}),
        ("DELETE", path, None),
        ("GET", f"{path}/messages", None),
        ("POST", f"{path}/messages", {"messages": []}),
        ("POST", f"{path}/messages", {"messages": [user("a")]}),
        ("GET", f"{path}/turns", None),
        ("GET", f"{path}/turns/1", None),
        ("GET", f"{path}/turns/{turn}", None),
        ("GET", f"{path}/turns/1/events", None),
        ("POST", f"{path}/turns/1/cancel", None),
        ("POST", CHAT, {"messages": [user("Hi")], "session_id": session}),
        ("POST", CHAT, {"messages": [user("Hi")], "session_id": session, "stream": True}),
    ]


async def test_expired_deleted_foreign_and_unknown_ids_look_alike_whatever_is_asked_of_them(
    fleet: Fleet, one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    expired = await create(one, title=name, ttl_seconds=1)
    deleted = await create(two)
    for session in (expired, deleted):
        await one.chat("My name is Ada.", session["id"])
    assert (await one.request("DELETE", f"/v1/sessions/{deleted['id']}")).status == 200

    async def gone() -> bool:
        return not (await page(two, name)).json["sessions"]

    await eventually(gone, "the session's end")
    async with redis.asyncio.from_url(fleet.valkey.url) as client:
        store = Store.of(client, "baton", secret=SECRET.encode())
        foreign = await store.created(title=name)
        await store.committed(foreign, [b"0" * 64])
        before = await store.sessions.get(foreign), await simulator.total()
        told = error(
            "There is no such session, or it has expired.", "session_id", "session_not_found", "not_found_error"
        )
        unknown = "sess_00" + "a" * 26
        for session in (expired["id"], deleted["id"], foreign.id, unknown, "sess_of-mine", "sess_ff" + "a" * 26):
            for number, (method, path, body) in enumerate(requests_of(session)):
                answer = await (one, two)[number % 2].request(method, path, json=body)
                assert (answer.status, answer.json) == (404, told), (method, path)
                assert answer.headers["x-should-retry"] == "false"
                assert not {"x-session-id", "x-session-state", "etag"} & {key.lower() for key in answer.headers}
        assert (await page(one, name)).json["sessions"] == []
        assert (await store.sessions.get(foreign), await simulator.total()) == before
