"""A turn that does not fit has the conversation summarized first, on whatever replica, and is answered."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.caller import Answer, Caller, eventually
from tests.instruments.processes import Fleet

pytestmark = pytest.mark.anyio

PADDING = "And what else was said is of no importance. " * 14  # 154 tokens
TOLD = "My name is Ada. Remember: the door code is 4711."


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Fleet]:
    """Two replicas whose Claude has a small window; a claim holds for 2.5 s."""
    env = {"BATON_COMPACT_DEADLINE_S": "2", "BATON_LEASE_MS": "1000", "BATON_STATUS_WAIT_S": "0.2"}
    windows = ["--window-tokens", "claude-sonnet-5-5=1500"]
    async with Fleet(tmp_path, replicas=2, env=env, simulator_args=windows) as fleet:
        yield fleet


async def filled(fleet: Fleet, http: aiohttp.ClientSession, name: str) -> tuple[Caller, Caller]:
    """A conversation that is just below where it would be summarized beside its turns."""
    one, two = (Caller(http, replica.url) for replica in fleet.replicas)
    for caller in (one, two):
        await caller.get("/v1/models")
    for said in (TOLD, *[PADDING] * 4):
        assert (await one.chat(said, name, max_tokens=50)).status == 200
    assert (await one.session(name))["checkpoint"] is None
    return one, two


async def large(caller: Caller, name: str) -> Answer:
    """A turn that does not fit behind the others."""
    return await caller.chat(PADDING * 5 + "What is my name?", name, max_tokens=50)


async def summarizing(fleet: Fleet) -> None:
    async def running() -> bool:
        return int((await fleet.simulator.stats())["running"]) > 0

    await eventually(running, "the summary is asked for")


async def test_a_turn_that_does_not_fit_is_summarized_for(small: Fleet, http: aiohttp.ClientSession, name: str) -> None:
    one, two = await filled(small, http, name)
    said = await large(two, name)
    assert (said.status, said.text) == (200, "Your name is Ada.")
    made = (await one.session(name))["checkpoint"]
    assert said.headers["x-baton-context"] == f"compact; covers={made['covers']}"
    after = await one.chat("What should you remember?", name, max_tokens=50)
    assert after.text == "I remember:\nthe door code is 4711."
    assert after.headers["x-baton-context"].startswith("checkpoint; covers=")
    session = await two.session(name)
    assert session["message_count"] == 14
    assert session["usage"]["checkpoint_input_tokens"] > 0


async def test_what_is_too_large_alone_is_not_summarized_for(
    small: Fleet, http: aiohttp.ClientSession, name: str
) -> None:
    one, _ = await filled(small, http, name)
    refused = await one.chat(PADDING * 20, name)
    assert refused.code == "context_length_exceeded"
    assert (await one.session(name))["checkpoint"] is None


async def test_another_replica_goes_on_where_one_dies_and_waits_for_its_claim(
    small: Fleet, http: aiohttp.ClientSession, name: str
) -> None:
    one, two = await filled(small, http, name)
    await small.simulator.pace(first_byte_ms=60_000)
    dying = asyncio.create_task(large(one, name))
    await summarizing(small)
    small.replicas[0].kill9()
    with pytest.raises(aiohttp.ClientError):
        await dying
    await small.simulator.pace(first_byte_ms=0)
    said = await large(two, name)
    assert (said.status, said.text) == (200, "Your name is Ada.")
    assert (await two.session(name))["message_count"] == 12


async def test_a_claim_that_is_held_is_waited_for(small: Fleet, http: aiohttp.ClientSession, name: str) -> None:
    one, two = await filled(small, http, name)
    await small.simulator.pace(first_byte_ms=700)
    assert (await one.request("POST", f"/v1/sessions/{name}/compact")).status == 202
    await summarizing(small)
    said = await large(two, name)
    assert (said.status, said.text) == (200, "Your name is Ada.")
    assert (await one.session(name))["checkpoint"]["version"] == 1
