"""Redis stands still (SIGSTOP): connections can be made and nothing is ever answered.

No request waits longer than docs/operations.md says, whatever it asks for; once the store is known to be away nothing
waits at all; after the thaw the first turn is served, by the same process, and nothing acknowledged is gone.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.faults.call import assert_told
from tests.faults.places import Place
from tests.faults.stage import Stage, metric, stage, until
from tests.faults.traffic import (
    ABORT_S,
    BEGIN_S,
    COMPLETE,
    ENV,
    SETTLE_S,
    SLACK_S,
    TURNS,
    UNAVAILABLE,
    Traffic,
    traffic,
)

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

BREAKER, OPENINGS, BUSY = "baton_store_breaker_open", "baton_store_breaker_openings_total", "baton_store_busy_total"
MODEL = "claude-sonnet-5-5"
FAST_S = 1.0
# More at once than a replica has connections to Redis.
CROWD = 100
APPENDED = {"messages": [{"role": "user", "content": "Hello."}]}
REQUESTS: dict[str, tuple[str, str, Any]] = {
    "look at a session": ("GET", "/v1/sessions/there", None),
    "list": ("GET", "/v1/sessions", None),
    "count": ("GET", "/v1/sessions/stats", None),
    "read messages": ("GET", "/v1/sessions/there/messages", None),
    "read turns": ("GET", "/v1/sessions/there/turns", None),
    "create": ("POST", "/v1/sessions", {"model": MODEL}),
    "append": ("POST", "/v1/sessions/there/messages", APPENDED),
    "append with a key": ("POST", "/v1/sessions/there/messages", APPENDED),
    "change": ("PATCH", "/v1/sessions/there", {"title": "x"}),
    "delete": ("DELETE", "/v1/sessions/there", None),
    "follow": ("GET", "/v1/sessions/there/turns/turn_0000000000000000000000/events", None),
    "cancel": ("POST", "/v1/sessions/there/turns/turn_0000000000000000000000/cancel", None),
    "a turn": ("POST", "/v1/chat/completions", {"session_id": "there"}),
    "a first turn": ("POST", "/v1/chat/completions", {"session_id": "not-there"}),
    "a turn of a new session": ("POST", "/v1/chat/completions", {"session_id": "new", "stream": True}),
    "a turn of Anthropic's": ("POST", "/v1/messages", {"max_tokens": 100}),
    "how long it would be": ("POST", "/v1/messages/count_tokens", {}),
}


@pytest.fixture(scope="module")
async def ground(
    anyio_backend: str, tmp_path_factory: pytest.TempPathFactory, ground_store: Place
) -> AsyncIterator[Stage]:
    async with stage(tmp_path_factory.mktemp("stage"), ground_store, env=ENV) as one:
        yield one


@pytest.fixture
async def clients(ground: Stage) -> AsyncIterator[Traffic]:
    async with traffic(ground.fleet, ground.survivor) as one:
        assert one.outcomes(await one.turns(6)) == COMPLETE
        yield one


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


async def asked(http: aiohttp.ClientSession, ground: Stage, what: str) -> tuple[int, str, float]:
    """Status, code, and how long it took."""
    method, path, body = REQUESTS[what]
    if body is not None and path not in ("/v1/sessions", "/v1/sessions/there", "/v1/sessions/there/messages"):
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], **body}
    headers = {"x-session-id": "there"} if path.startswith("/v1/messages") else {}
    if what.endswith("with a key"):
        headers["idempotency-key"] = "sent-before-perhaps"
    started = time.monotonic()
    async with http.request(method, f"{ground.survivor.url}{path}", json=body, headers=headers) as answer:
        told = await answer.json()
    error = told["error"]
    code = error["details"]["error_code"] if path.startswith("/v1/messages") else error["code"]
    return answer.status, code, time.monotonic() - started


async def warmed(http: aiohttp.ClientSession, ground: Stage) -> None:
    """Has connections made for all that is asked at once: what has to make one is refused before it is sent."""

    async def listed() -> None:
        async with http.get(f"{ground.survivor.url}/v1/sessions") as answer:
            assert answer.status == 200

    await asyncio.gather(*(listed() for _ in range(3 * len(REQUESTS))))


async def breaker_is(ground: Stage, state: int) -> bool:
    return await metric(ground.survivor, BREAKER) == state


@pytest.mark.representative
async def test_no_request_waits_longer_than_it_may_and_soon_none_waits_at_all(
    ground: Stage, clients: Traffic, http: aiohttp.ClientSession
) -> None:
    openings = await metric(ground.survivor, OPENINGS)
    await warmed(http, ground)
    with ground.place.frozen():
        found = await asyncio.gather(*(asked(http, ground, what) for what in REQUESTS))
        first = dict(zip(REQUESTS, found, strict=True))
        assert {what: one[:2] for what, one in first.items()} == dict.fromkeys(REQUESTS, (503, "store_unavailable"))
        assert max(took_s for _, _, took_s in first.values()) < BEGIN_S + ABORT_S + SLACK_S, first
        await until(lambda: breaker_is(ground, 1))
        then = {what: await asked(http, ground, what) for what in REQUESTS}
        assert {what: one[:2] for what, one in then.items()} == dict.fromkeys(REQUESTS, (503, "store_unavailable"))
        assert max(took_s for _, _, took_s in then.values()) < FAST_S, then
    assert clients.outcomes([await clients.turn()]) == COMPLETE, "the first one is served"
    assert await metric(ground.survivor, OPENINGS) == openings + 1
    assert await breaker_is(ground, 0)
    await clients.assert_kept()


async def test_a_crowd_waits_no_longer_for_a_connection_and_is_told_that_the_store_is_away(
    ground: Stage, clients: Traffic
) -> None:
    busy = await metric(ground.survivor, BUSY)
    with ground.place.frozen():
        crowd = await clients.turns(CROWD, clients=CROWD)
        assert clients.outcomes(crowd) == UNAVAILABLE
        assert max(one.took_s for one in crowd) < BEGIN_S + ABORT_S + 2 * SLACK_S
        assert await metric(ground.survivor, BUSY) == busy, "its pool was full, and not busy"
    assert clients.outcomes([await clients.turn(clients.another())]) == COMPLETE
    await clients.assert_kept()


async def test_a_frozen_commit_is_told_within_its_budget(ground: Stage, clients: Traffic) -> None:
    scene, victim = await ground.scene(), await ground.victim()
    trap = scene.at_claude(victim, "message_delta")
    call = scene.ask(victim, "victim")
    await trap.reached()
    with ground.place.frozen():
        started = time.monotonic()
        trap.release()
        seen = await call.ended(timeout_s=3 * SETTLE_S)
        assert time.monotonic() - started < 2 * SETTLE_S + SLACK_S
    # A commit on a connection that was there has been sent, and arrives; one that waited for a connection has not.
    assert_told(seen, "session_save_unknown" if seen.error == "session_save_unknown" else "session_not_saved", 503)
    after = await scene.ask(ground.survivor, "next").ended()
    assert after.finish == "stop"
    books = await scene.books()
    saved = books.story == "CCC"
    assert books.story in ("CCC", "CAC", "CDC")
    assert not (saved and seen.error == "session_not_saved")
    books.assert_holds("first", *(["victim"] if saved else []), "next")


@pytest.mark.at_length
async def test_traffic_over_a_store_that_stands_still_again_and_again_keeps_all(
    ground: Stage, clients: Traffic
) -> None:
    async with clients.flowing():
        for _ in range(max(2, TURNS // 24)):
            await clients.until_told(4)
            with ground.place.frozen():
                await clients.until_told(6, "error")
            assert clients.outcomes([await clients.turn(clients.sessions[0])]) == COMPLETE
    await clients.assert_kept()


@pytest.mark.only("cluster")
async def test_one_frozen_primary_is_told_within_the_deadlines_and_the_others_go_on(
    ground: Stage, clients: Traffic
) -> None:
    scene, elsewhere = await ground.scene(), ground.scene_elsewhere()
    await elsewhere.told(ground.survivor, "first", after="none")
    ground.server.freeze()
    try:
        waiting = asyncio.create_task(scene.ask(ground.survivor, "victim").ended())
        before = "first"
        for mark in ("one", "two", "three"):
            started = time.monotonic()
            await elsewhere.told(ground.survivor, mark, after=before)
            assert time.monotonic() - started < FAST_S
            before = mark
        assert not waiting.done(), "they went on while this one waited"
        started = time.monotonic()
        assert clients.outcomes(told := await clients.turns(6)) == UNAVAILABLE
        assert max(one.took_s for one in told) < BEGIN_S + ABORT_S + SLACK_S
        assert_told(await waiting, "store_unavailable", 503)
        assert await breaker_is(ground, 0), "most of the store is there"
    finally:
        ground.server.thaw()
    await scene.told(ground.survivor, "next", after="first")
    await elsewhere.told(ground.survivor, "next", after="three")
    await clients.assert_kept()
