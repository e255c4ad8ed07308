"""Lists, numbers and ends of sessions, in a store of its own: expiry, deletion, eviction, sweeping."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import redis.asyncio

from tests.e2e.by_hand import append, assistant, create, looked_at_after, unused, user
from tests.e2e.caller import Caller, chunks_of, eventually
from tests.instruments.processes import Fleet, Replica, Simulator

pytestmark = pytest.mark.anyio


ENV = {"BATON_LEASE_MS": "900", "BATON_SWEEP_INTERVAL_S": "0.3"}
SMALL = {"BATON_NAMESPACE": "small", "BATON_SESSIONS_PER_OWNER_MAX": "3"}


@pytest.fixture(scope="module")
async def apart(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """A store of its own: these tests count what there is, and sweeping would show in those of others."""
    async with Fleet(tmp_path_factory.mktemp("apart"), replicas=2, env=ENV) as fleet:
        yield fleet


@pytest.fixture(scope="module")
async def small(anyio_backend: str, apart: Fleet) -> Replica:
    """A replica of a namespace with room for three sessions."""
    return await apart.add_replica(env=SMALL)


@pytest.fixture
async def simulator(apart: Fleet) -> AsyncIterator[Simulator]:
    yield apart.simulator
    await apart.simulator.pace(first_byte_ms=0, delta_ms=0)


async def emptied(fleet: Fleet, namespace: str) -> None:
    """Nothing is left in a namespace but its number of buckets."""
    async with redis.asyncio.from_url(fleet.valkey.url) as client:
        async for key in client.scan_iter(match="{" + namespace + ":*", count=1_000):
            await client.delete(key)


@pytest.fixture
async def pair(apart: Fleet, http: aiohttp.ClientSession) -> list[Caller]:
    """Both replicas of a store without sessions."""
    await emptied(apart, "baton")
    return [Caller(http, replica.url) for replica in apart.replicas[:2]]


@pytest.fixture
async def crowded(apart: Fleet, small: Replica, http: aiohttp.ClientSession) -> Caller:
    await emptied(apart, "small")
    return Caller(http, small.url)


async def listed(caller: Caller, query: str = "") -> Any:
    answer = await caller.get(f"/v1/sessions{query}")
    assert answer.status == 200, answer.body
    return answer.json


async def stats(caller: Caller) -> Any:
    return (await caller.get("/v1/sessions/stats")).json


async def assert_absent(caller: Caller, session: str) -> bytes:
    """Nothing of it can be seen or changed; what is told is always the same."""
    told = set()
    for method, path, body in (
        ("GET", "", None),
        ("GET", "/messages", None),
        ("GET", "/turns", None),
        ("GET", "/turns/1", None),
        ("PATCH", "", {"title": "N"}),
        ("DELETE", "", None),
        ("POST", "/messages", {"messages": []}),
        ("POST", "/messages", {"messages": [user("a")]}),
    ):
        answer = await caller.request(method, f"/v1/sessions/{session}{path}", json=body)
        assert (answer.status, answer.code) == (404, "session_not_found"), (method, path)
        told.add(answer.body)
    assert len(told) == 1
    return told.pop()


async def test_a_session_from_its_creation_to_its_end(pair: list[Caller]) -> None:
    one, two = pair
    name = unused()
    assert await listed(one) == {"object": "list", "sessions": [], "has_more": False, "next_cursor": None, "total": 0}
    made = await create(one, name=name)
    page = await listed(two)
    assert ([entry["id"] for entry in page["sessions"]], page["total"]) == ([made["id"]], 1)
    assert (await two.session(name))["message_count"] == 0
    assert (await append(one, name, user("a"), assistant("b"), user("c"))).json["message_count"] == 3
    assert (await two.session(name))["message_count"] == 3
    found = await stats(two)
    assert (found["total_sessions"], found["active_sessions"], found["total_messages"]) == (1, 1, 3)
    gone = await two.request("DELETE", f"/v1/sessions/{name}")
    assert (gone.status, gone.json) == (200, {"id": made["id"], "object": "session.deleted", "deleted": True})
    await assert_absent(one, name)
    assert (await listed(one))["total"] == 0
    found = await stats(one)
    assert (found["total_sessions"], found["total_messages"], found["memory_usage_mb"]) == (0, 0, 0)


async def test_a_session_outlives_the_replicas_that_made_it(pair: list[Caller], apart: Fleet) -> None:
    made = await create(pair[0], title="T")
    await append(pair[1], made["id"], user("My name is Ada."), assistant("Hello."))
    later = Caller(pair[0].http, (await apart.add_replica()).url)
    assert ((await later.session(made["id"]))["title"], (await stats(later))["total_messages"]) == ("T", 2)
    assert "Ada" in (await later.chat("What is my name?", made["id"])).text


async def test_stats_of_nobody_and_of_some(pair: list[Caller]) -> None:
    one, two = pair
    empty = await stats(one)
    assert empty.keys() == {
        *("total_sessions", "active_sessions", "expired_sessions", "evicted_sessions", "total_messages"),
        *("memory_usage_mb", "cleanup_runs", "average_session_age_minutes", "cleanup_interval_minutes"),
        "default_ttl_hours",
    }
    counted = ("total_sessions", "active_sessions", "expired_sessions", "evicted_sessions", "total_messages")
    assert [empty[key] for key in counted] == [0] * 5
    assert (empty["average_session_age_minutes"], empty["cleanup_interval_minutes"]) == (0, 0.005)
    assert empty["default_ttl_hours"] == 1
    for _ in range(3):
        session = (await create(one))["id"]
        assert (await two.chat("Hello. " * 3000, session)).status == 200
    found = await stats(two)
    assert [found[key] for key in counted] == [3, 3, 0, 0, 6]
    assert 0.05 < found["memory_usage_mb"] < 0.2
    assert found["average_session_age_minutes"] < 1


async def test_a_list_shows_every_session_once_last_accessed_first(pair: list[Caller]) -> None:
    one, two = pair
    made = [await create(pair[n % 2]) for n in range(100)]
    touched = await one.session(made[0]["id"])
    accessed = {session["id"]: session["last_accessed_at"] for session in (*made, touched)}
    assert touched["last_accessed_at"] == max(accessed.values())
    # Some share a millisecond: then the greatest id goes first.
    expected = sorted(accessed, key=lambda session: (accessed[session], session), reverse=True)
    shown: list[str] = []
    query, pages = "?limit=30", 0
    while True:
        page = await listed(pair[pages % 2], query)
        shown += [entry["id"] for entry in page["sessions"]]
        assert page["total"] == 100
        pages += 1
        if not page["has_more"]:
            assert page["next_cursor"] is None
            break
        query = f"?limit=30&cursor={page['next_cursor']}"
    assert (shown, pages) == (expected, 4)
    whole = await listed(two, "?limit=100")
    assert (len(whole["sessions"]), whole["has_more"]) == (100, False)
    assert len((await listed(two))["sessions"]) == 20


async def test_a_list_does_not_extend_the_life_of_what_it_shows(pair: list[Caller]) -> None:
    made = await create(pair[0])
    assert (await listed(pair[1]))["sessions"] == [made]
    await stats(pair[0])
    assert (await listed(pair[1]))["sessions"] == [made]


async def test_lists_are_filtered_by_title_and_metadata(pair: list[Caller]) -> None:
    one, two = pair
    made = [
        await create(
            one,
            name=f"s{number}",
            title=f"{'Plan' if number % 2 else 'Note'} {number}",
            metadata={"n": str(number % 3)},
        )
        for number in range(12)
    ]
    made.sort(key=lambda session: (session["last_accessed_at"], session["id"]), reverse=True)
    plans = [session["name"] for session in made if session["title"].startswith("Plan")]
    assert sorted(plans) == ["s1", "s11", "s3", "s5", "s7", "s9"]
    assert [e["name"] for e in (await listed(two, "?title_prefix=Plan"))["sessions"]] == plans
    first, second = [name for name in plans if name in ("s3", "s9")]
    both = await listed(two, "?title_prefix=Plan&metadata[n]=0&limit=1")
    assert ([e["name"] for e in both["sessions"]], both["has_more"], both["total"]) == ([first], True, None)
    rest = await listed(one, f"?title_prefix=Plan&metadata[n]=0&limit=1&cursor={both['next_cursor']}")
    assert ([e["name"] for e in rest["sessions"]], rest["has_more"]) == ([second], False)
    assert (await listed(one, "?metadata[n]=0&metadata[m]=1"))["sessions"] == []
    assert (await listed(one, "?title_prefix=plan"))["sessions"] == []


async def test_cursors_and_limits_that_cannot_be(pair: list[Caller]) -> None:
    one, two = pair
    for _ in range(3):
        await create(one, title="T")
    cursor = (await listed(one, "?limit=1"))["next_cursor"]
    forged = cursor[:-2] + ("AA" if cursor[-2:] != "AA" else "BB")
    for query, param in (
        (f"cursor={forged}", "cursor"),
        (f"cursor={cursor}&title_prefix=T", "cursor"),
        ("cursor=", "cursor"),
        ("cursor=sess_1", "cursor"),
        *((f"limit={bad}", "limit") for bad in ("0", "101", "-1", "x", "1.5", "", "9" * 40)),
        ("metadata[]=x", "metadata."),
        (f"metadata[k]={'v' * 513}", "metadata.k"),
        ("limit=1&limit=2", None),
    ):
        answer = await two.get(f"/v1/sessions?{query}")
        assert (answer.status, answer.code, answer.json["error"]["param"]) == (400, "invalid_value", param), query
    answer = await two.get("/v1/sessions?tilte_prefix=T")
    assert (answer.status, answer.code, answer.json["error"]["param"]) == (400, "unknown_field", "tilte_prefix")
    assert len((await listed(two, f"?cursor={cursor}"))["sessions"]) == 2


# Ends.


async def test_expired_deleted_and_unknown_sessions_look_alike(pair: list[Caller]) -> None:
    one, two = pair
    expired, deleted = unused(), unused()
    await create(one, name=expired, ttl_seconds=1)
    gone_id = (await create(one, name=deleted))["id"]
    assert (await one.request("DELETE", f"/v1/sessions/{deleted}")).status == 200

    async def is_gone() -> bool:
        return not (await listed(two))["sessions"]

    await eventually(is_gone, "the session's end")
    told = {
        await assert_absent(two, session) for session in (expired, deleted, unused(), gone_id, "sess_00" + "a" * 26)
    }
    assert len(told) == 1


async def test_an_expired_name_starts_anew_and_every_number_stays_right(pair: list[Caller]) -> None:
    one, two = pair
    name = unused()
    made = await create(one, name=name, ttl_seconds=1, title="old")
    await append(one, name, user("My name is Ada."), assistant("Hello."))

    async def is_counted() -> bool:
        return bool((await stats(two))["expired_sessions"] == 1)

    await eventually(is_counted, "the session's end in the stats")
    answer = await two.chat("What is my name?", name)
    assert answer.headers["x-session-state"] == "new"
    assert answer.headers["x-session-id"] == made["id"]
    assert "Ada" not in answer.text
    seen = await one.session(name)
    assert (seen["message_count"], seen["title"]) == (2, None)
    found = await stats(one)
    assert (found["total_sessions"], found["expired_sessions"], found["total_messages"]) == (1, 1, 2)


async def test_the_sweep_takes_what_expired_out_of_the_numbers(pair: list[Caller]) -> None:
    one, two = pair
    for _ in range(5):
        await create(one, ttl_seconds=1)
    kept = await create(one)
    runs = (await stats(one))["cleanup_runs"]

    async def is_swept() -> bool:
        found = await stats(two)
        return [found[key] for key in ("total_sessions", "expired_sessions", "active_sessions")] == [1, 5, 1]

    await eventually(is_swept, "the sweep")
    assert (await stats(one))["cleanup_runs"] > runs
    assert (await listed(one))["sessions"] == [kept]
    metrics = "".join([(await caller.get("/metrics")).body.decode() for caller in pair])
    for metric in (
        'baton_sessions_ended_total{reason="expired"}',
        "baton_sessions_created_total",
        "baton_buckets_swept_total",
        "baton_sessions_indexed",
    ):
        assert metric in metrics


async def test_a_session_ends_at_its_absolute_end_whatever_its_use(pair: list[Caller]) -> None:
    one, two = pair
    made = await create(one, ttl_seconds=1)
    end = made["expires_at"]
    limited = await create(one, absolute_expires_at=end)
    assert limited["expires_at"] == limited["absolute_expires_at"] == end

    async def is_gone() -> bool:
        return (await two.get(f"/v1/sessions/{limited['id']}")).status == 404

    await eventually(is_gone, "the absolute end")


async def test_the_running_turn_of_a_deleted_session_ends_in_an_error(pair: list[Caller], simulator: Simulator) -> None:
    one, two = pair
    name = unused()
    await simulator.pace(delta_ms=100)
    async with one.stream("count to 30", name) as stream:
        await stream.words(1)
        assert (await two.request("DELETE", f"/v1/sessions/{name}")).status == 200
        frames = await stream.rest()
    assert chunks_of(frames)[-1]["error"]["code"] == "session_not_found"
    assert b"data: [DONE]" not in frames
    await assert_absent(two, name)

    async def is_quiet() -> bool:
        return bool((await simulator.stats())["running"] == 0)

    await eventually(is_quiet, "the end of the request to Claude")
    assert (await stats(one))["total_sessions"] == 0


# Caps.


async def test_at_the_cap_the_session_not_accessed_for_longest_goes(crowded: Caller) -> None:
    first, *others = [await create(crowded, name=unused()) for _ in range(3)]
    last = max(session["last_accessed_at"] for session in others)
    await looked_at_after(last, crowded, first["name"])
    # Two that share a millisecond: the smallest id goes first.
    gone, stays = sorted(others, key=lambda session: (session["last_accessed_at"], session["id"]))
    kept = [first, stays, await create(crowded, name=unused())]
    assert {entry["id"] for entry in (await listed(crowded))["sessions"]} == {session["id"] for session in kept}
    await assert_absent(crowded, gone["name"])
    found = await stats(crowded)
    assert (found["total_sessions"], found["evicted_sessions"], found["expired_sessions"]) == (3, 1, 0)
    assert (await crowded.chat("Hello.", unused())).status == 200
    assert (await stats(crowded))["evicted_sessions"] == 2


async def test_a_session_with_a_running_turn_is_never_evicted(crowded: Caller, simulator: Simulator) -> None:
    await simulator.pace(delta_ms=100)
    names = [unused() for _ in range(3)]

    async def turn(name: str) -> int:
        return (await crowded.chat("count to 12", name)).status

    turns = [asyncio.create_task(turn(name)) for name in names]

    async def all_run() -> bool:
        return [entry["status"] for entry in (await listed(crowded))["sessions"]] == ["busy"] * 3

    await eventually(all_run, "three running turns")
    for refused in (
        await crowded.request("POST", "/v1/sessions", json={"model": "claude-sonnet-5-5"}),
        await crowded.chat("Hello.", unused()),
    ):
        assert (refused.status, refused.code) == (429, "sessions_full")
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["x-should-retry"] == "true"
    assert await asyncio.gather(*turns) == [200] * 3
    assert {entry["name"] for entry in (await listed(crowded))["sessions"]} == set(names)
    assert (await create(crowded))["status"] == "active"
