"""How a replica ends: SIGTERM while turns run, wait in the queue, or arrive."""

import asyncio
import os
import re
import signal
import time
from typing import Any

import aiohttp
import pytest

from tests.e2e.caller import Caller, Stream, chunks_of, eventually, text_of
from tests.instruments.processes import Fleet, Replica, Simulator
from tests.instruments.proxy import Trap
from tests.instruments.stall import HttpRequest

pytestmark = pytest.mark.anyio

REJECT = {"X-Session-On-Conflict": "reject"}
SOON_S = 10.0


async def is_draining(caller: Caller) -> None:
    async def look() -> bool:
        ready = await caller.get("/readyz")
        return ready.status == 503 and ready.json["status"] == "draining"

    await eventually(look, "readiness red")


def held_at_its_end(replica: Replica) -> Trap[HttpRequest]:
    """Claude's next answer to this replica stands still before its last events, until it is released."""
    assert replica.http_stall is not None
    return replica.http_stall.arm(lambda request: request.method == "POST", at="event", event="message_delta")


def ended_in_error(frames: list[bytes]) -> Any:
    """The error that ends a stream without success."""
    assert b"[DONE]" not in b"".join(frames)
    return chunks_of(frames)[-1]["error"]


async def test_running_turns_finish_and_others_are_sent_away(
    fleet: Fleet, http: aiohttp.ClientSession, one: Caller, name: str
) -> None:
    replica = await fleet.add_replica(http_stall=True, env={"BATON_DRAIN_S": "30", "BATON_DRAIN_NOTICE_S": "0"})
    leaving = Caller(http, replica.url)
    held = held_at_its_end(replica)
    async with leaving.stream(f"Count to 60 {name}", name) as stream:
        await stream.words(2)
        queued = asyncio.create_task(leaving.chat("Hi", name))
        await eventually(lambda: waiting_on(leaving), "the queued turn")
        replica.terminate()
        await is_draining(leaving)
        refused = await queued
        assert refused.status == 503
        assert refused.headers["x-should-retry"] == "true"
        for session in (None, "new", name):
            late = await leaving.chat("Hi", session)
            assert (late.status, late.code) == (503, "draining")
            assert late.headers["retry-after"] == "1"
            assert late.headers["connection"] == "close"
            assert late.headers["x-should-retry"] == "true"
        assert (await leaving.get("/livez")).status == 200
        held.release()
        frames = await stream.rest()
    assert frames[-1] == b"data: [DONE]"
    assert await replica.wait() == 0
    assert [message["role"] for message in await one.messages(name)] == ["user", "assistant"]
    assert (await one.chat("How many messages?", name, headers=REJECT)).text.endswith("holds 3 messages.")


async def waiting_on(caller: Caller) -> bool:
    metrics = (await caller.get("/metrics")).body.decode()
    found = re.search(r"^baton_turns_waiting (\S+)$", metrics, re.MULTILINE)
    return found is not None and float(found[1]) >= 1


async def incomplete(one: Caller, simulator: Simulator, stream: Stream, name: str) -> None:
    """The stream ended in an error, what it showed is stored, and the session goes on at once elsewhere."""
    error = ended_in_error(stream.frames)
    assert error["code"] == "turn_interrupted"
    next_turn = await one.chat("How many messages?", name, headers=REJECT)
    assert next_turn.text == "This conversation holds 3 messages."
    asked, answered, *_ = await one.messages(name)
    assert asked["content"].startswith("Count to 500")
    assert answered["content"][0]["text"] == text_of(stream.frames)
    assert [request["outcome"] for request in await simulator.asked(name)] == ["disconnected"]


async def test_what_takes_longer_than_the_drain_ends_incomplete(
    fleet: Fleet, http: aiohttp.ClientSession, one: Caller, simulator: Simulator, name: str
) -> None:
    replica = await fleet.add_replica(
        env={"BATON_DRAIN_S": "0.3", "BATON_DRAIN_NOTICE_S": "0", "BATON_LEASE_MS": "60000"}
    )
    leaving = Caller(http, replica.url)
    await simulator.fault("slow_deltas", delay_ms=30, times=2, match=name[2:])
    async with leaving.stream(f"Count to 500 {name}", name) as stream:
        whole = asyncio.create_task(leaving.chat(f"Count to 400 whole-{name[2:]}", f"whole-{name}"))
        await stream.words(2)
        await eventually(lambda: simulator.asked(f"whole-{name[2:]}"), "the turn that is not streamed")
        replica.terminate()
        await stream.rest()
        aborted = await whole
    assert (aborted.status, aborted.code) == (503, "turn_interrupted")
    assert await replica.wait() == 0
    assert (await one.get(f"/v1/sessions/whole-{name}")).status == 404
    await incomplete(one, simulator, stream, name)


async def test_a_second_signal_ends_the_wait(
    fleet: Fleet, http: aiohttp.ClientSession, one: Caller, simulator: Simulator, name: str
) -> None:
    replica = await fleet.add_replica(env={"BATON_DRAIN_S": "3600"})
    leaving = Caller(http, replica.url)
    await simulator.fault("slow_deltas", delay_ms=30, match=name)
    async with leaving.stream(f"Count to 500 {name}", name) as stream:
        await stream.words(2)
        replica.terminate()
        await is_draining(leaving)
        await stream.words(2)
        os.kill(replica.pid, signal.SIGINT)
        await stream.rest()
    assert await replica.wait() == 0
    await incomplete(one, simulator, stream, name)


async def test_an_idle_replica_ends_at_once(fleet: Fleet, http: aiohttp.ClientSession) -> None:
    replica = await fleet.add_replica(env={"BATON_DRAIN_S": "3600"})
    assert (await Caller(http, replica.url).get("/livez")).status == 200
    started = time.monotonic()
    os.kill(replica.pid, signal.SIGINT)
    assert await replica.wait() == 0
    assert time.monotonic() - started < SOON_S
    assert [event["event"] for event in replica.events()][-2:] == ["draining", "stopped"]
    assert "Traceback" not in replica.log()
