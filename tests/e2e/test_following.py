"""A running turn seen and stopped from anywhere: followed, resumed where a connection broke, cancelled."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from tests.e2e.by_hand import append, create, unused, user
from tests.e2e.caller import Caller, Stream, eventually, text_of
from tests.instruments.processes import Fleet, Simulator

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def followed(caller: Caller, session: str, turn: str, after: int | None = None) -> AsyncIterator[Stream]:
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    url = f"{caller.url}/v1/sessions/{session}/turns/{turn}/events"
    async with caller.http.get(url, headers=headers) as response:
        assert response.status == 200, await response.read()
        assert response.content_type == "text/event-stream"
        yield Stream(response, last_id=after or 0)


async def cancel(caller: Caller, session: str, turn: str) -> tuple[int, dict[str, object]]:
    answer = await caller.request("POST", f"/v1/sessions/{session}/turns/{turn}/cancel")
    return answer.status, answer.json


def without_comments(frames: list[bytes]) -> list[bytes]:
    return [frame for frame in frames if not frame.startswith(b":")]


async def test_a_running_turn_is_followed_from_the_other_replica(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    await simulator.fault("slow_deltas", delay_ms=25, match=name)
    async with one.stream(f"count to 60 {name}", name) as first:
        await first.words(3)
        turn = first.headers["x-turn-id"]
        async with followed(two, name, turn) as follower:
            await follower.words(3)
            assert (await one.session(name))["status"] == "busy", "it is shown before it is over"
            assert await follower.rest() == await first.rest()
    assert (follower.headers["x-turn-id"], follower.headers["x-session-id"]) == (turn, first.headers["x-session-id"])
    assert follower.frames[-1] == b"data: [DONE]"
    assert follower.last_id == first.last_id


async def test_a_broken_stream_goes_on_where_it_broke(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    await simulator.fault("slow_deltas", delay_ms=10, match=name)
    headers = {"X-Session-On-Disconnect": "continue"}
    async with one.stream(f"count to 100 {name}", name, headers=headers) as first:
        await first.words(20)
        first.hang_up()
    turn, seen = first.headers["x-turn-id"], first.last_id
    async with followed(two, name, turn, after=seen) as follower:
        await follower.rest()
    text = text_of(first.frames) + text_of(follower.frames)
    assert text.startswith(" ".join(map(str, range(1, 101))))
    assert follower.frames[-1] == b"data: [DONE]"


async def test_a_turn_that_is_over_is_shown_from_any_event_on(one: Caller, two: Caller, name: str) -> None:
    async with one.stream("count to 30", name) as first:
        whole = await first.rest()
    turn = first.headers["x-turn-id"]
    for after in (0, 1, 7, len(whole) - 1, len(whole), len(whole) + 100):
        async with followed(two, name, turn, after=after) as follower:
            assert await follower.rest() == whole[after:]
    async with followed(one, name, "1") as follower:
        assert await follower.rest() == whole


async def test_a_last_event_beyond_the_log_waits_for_the_end(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    await simulator.fault("slow_deltas", delay_ms=25, match=name)
    async with one.stream(f"count to 60 {name}", name) as first:
        await first.words(1)
        async with followed(two, name, first.headers["x-turn-id"], after=9_999) as follower:
            assert without_comments(await follower.rest()) == []
        assert (await one.session(name))["status"] == "active"
        await first.rest()


async def test_the_events_of_the_last_two_turns_are_kept(one: Caller, two: Caller, name: str) -> None:
    turns = []
    for _ in range(3):
        async with one.stream("count to 3", name) as stream:
            await stream.rest()
        turns.append(stream.headers["x-turn-id"])
    forgotten = await two.get(f"/v1/sessions/{name}/turns/{turns[0]}/events")
    assert (forgotten.status, forgotten.code) == (404, "events_not_found")
    for turn in turns[1:]:
        async with followed(two, name, turn) as follower:
            assert text_of(await follower.rest()).startswith("1 2 3")


async def test_what_cannot_be_followed(one: Caller, two: Caller, name: str) -> None:
    answer = await one.chat("Hi", name)
    turn = answer.headers["x-turn-id"]
    path = f"/v1/sessions/{name}/turns"
    for missing in (f"{path}/{turn}/events", f"{path}/1/events"):
        refused = await two.get(missing)
        assert (refused.status, refused.code) == (404, "events_not_found")
    for missing in ("turn_" + 26 * "a", "9", "x"):
        refused = await two.get(f"{path}/{missing}/events")
        assert (refused.status, refused.code) == (404, "turn_not_found")
    refused = await two.get(f"/v1/sessions/{unused()}/turns/{turn}/events")
    assert (refused.status, refused.code) == (404, "session_not_found")
    for bad in ("-1", "x", "1.5", "1" * 16):
        refused = await two.request("GET", f"{path}/{turn}/events", headers={"Last-Event-ID": bad})
        assert (refused.status, refused.code) == (400, "invalid_value")
    refused = await two.request("POST", f"{path}/{turn}/events")
    assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")


async def test_a_failed_stream_fails_for_its_followers_too(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    await one.chat("Hi", name)
    await simulator.pace(delta_ms=50)  # so that something was shown before it fails
    await simulator.fault("error_mid_stream", error_type="overloaded_error", after_deltas=5, match=name)
    async with one.stream(f"count to 30 {name}", name) as first:
        await first.rest()
    async with followed(two, name, first.headers["x-turn-id"]) as follower:
        assert await follower.rest() == first.frames
    assert b'"code":"upstream_overloaded"' in first.frames[-1]


async def test_many_follow_one_turn_and_some_leave(one: Caller, two: Caller, simulator: Simulator, name: str) -> None:
    await simulator.fault("slow_deltas", delay_ms=20, match=name)
    async with one.stream(f"count to 60 {name}", name) as first:
        await first.words(2)
        turn = first.headers["x-turn-id"]

        async def follow(caller: Caller, leaves: bool) -> list[bytes]:
            async with followed(caller, name, turn) as follower:
                if leaves:
                    await follower.words(4)
                    follower.hang_up()
                    return []
                return await follower.rest()

        following = [follow(caller, leaves) for caller in (one, two) for leaves in (False, True, False)]
        whole, *seen = await asyncio.gather(first.rest(), *following)
    assert [frames for frames in seen if frames] == [whole] * 4

    async def all_gone() -> bool:
        return "baton_followers 0.0" in (await two.get("/metrics")).body.decode()

    await eventually(all_gone, "no followers")


# Cancelling.


async def test_a_stream_is_cancelled_from_the_other_replica(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    await simulator.fault("slow_deltas", delay_ms=25, match=name)
    async with one.stream(f"count to 400 {name}", name) as first:
        await first.words(3)
        turn = first.headers["x-turn-id"]
        status, told = await cancel(two, name, turn)
        assert (status, told["id"], told["verdict"], told["cancel_requested"]) == (202, turn, "pending", True)
        await first.rest()
    assert b'"code":"turn_interrupted"' in first.frames[-1]
    found = (await two.get(f"/v1/sessions/{name}/turns/{turn}")).json
    assert found["verdict"] == "incomplete"
    assert found["messages"][1]["content"][0]["text"] == text_of(first.frames)
    status, told = await cancel(one, name, turn)
    assert (status, told["verdict"], told["cancel_requested"]) == (200, "incomplete", False)

    async def is_quiet() -> bool:
        return bool((await simulator.stats())["running"] == 0)

    await eventually(is_quiet, "the end of the request to Claude")
    async with followed(two, name, turn) as follower:
        assert await follower.rest() == first.frames


@pytest.fixture
async def short_leases(fleet: Fleet, http: aiohttp.ClientSession) -> tuple[Caller, Caller]:
    """Two more replicas, whose turns learn soon that they are cancelled."""
    replicas = [await fleet.add_replica(env={"BATON_LEASE_MS": "1500"}) for _ in range(2)]
    return Caller(http, replicas[0].url), Caller(http, replicas[1].url)


async def test_an_answer_that_is_not_streamed_is_cancelled_and_not_stored(
    short_leases: tuple[Caller, Caller], simulator: Simulator, name: str
) -> None:
    one, two = short_leases
    await one.chat("Hi", name)
    await simulator.fault("hang", match=name)
    running = asyncio.create_task(one.chat(f"Never {name}", name))

    async def busy() -> str | None:
        turns = (await two.get(f"/v1/sessions/{name}/turns")).json["turns"]
        return str(turns[0]["id"]) if turns[0]["verdict"] == "pending" else None

    turn = await eventually(busy, "a running turn")
    assert (await cancel(two, name, turn))[0] == 202
    answer = await running
    assert (answer.status, answer.code, answer.headers["x-should-retry"]) == (503, "turn_interrupted", "true")
    assert (await two.get(f"/v1/sessions/{name}/turns/{turn}")).json["verdict"] == "aborted"
    assert (await one.session(name))["message_count"] == 2


async def test_what_cannot_be_cancelled(one: Caller, two: Caller, name: str) -> None:
    turn = (await one.chat("Hi", name)).headers["x-turn-id"]
    status, told = await cancel(two, name, turn)
    assert (status, told["verdict"], told["cancel_requested"]) == (200, "committed", False)
    appended = (await append(one, name, user("Hi"))).json["turn_id"]
    assert (await cancel(two, name, appended))[0] == 200
    for missing in ("turn_" + 26 * "a", "9"):
        answer = await two.request("POST", f"/v1/sessions/{name}/turns/{missing}/cancel")
        assert (answer.status, answer.code) == (404, "turn_not_found")
    answer = await two.request("POST", f"/v1/sessions/{unused()}/turns/{turn}/cancel")
    assert (answer.status, answer.code) == (404, "session_not_found")
    await create(one, name=unused())
    assert (await two.get(f"/v1/sessions/{name}/turns/{turn}/cancel")).status == 405
