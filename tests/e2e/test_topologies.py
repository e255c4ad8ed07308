"""A primary goes in mid-conversation: the turn that is running is stored, and the next ones succeed within seconds.

Replicas are not restarted and not told. A caller who is refused meanwhile (503, told that it may try again) does so.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest

from storage.keys import Keyspace
from tests.e2e.caller import Caller, text_of
from tests.instruments.processes import SECRET, Fleet
from tests.instruments.redis_servers import Cluster, SentinelSet, Server, until

pytestmark = pytest.mark.anyio

FOLLOWED_S = 20.0  # the servers here take one to three seconds, on a machine that does nothing else


async def answered(caller: Caller, text: str, name: str) -> str:
    """The answer of a turn that is asked for until it is there."""
    deadline = time.monotonic() + FOLLOWED_S
    while True:
        answer = await caller.chat(text, name)
        if answer.status == 200:
            return answer.text
        assert (answer.status, answer.code) == (503, "store_unavailable")
        assert answer.headers["x-should-retry"] == "true"
        assert time.monotonic() < deadline, f"not within {FOLLOWED_S:g} s"
        await asyncio.sleep(0.1)


async def a_conversation(fleet: Fleet, name: str, harm: Callable[[str], Awaitable[None]]) -> None:
    """Over two replicas, with harm done to the store while the first of them streams an answer."""
    async with aiohttp.ClientSession() as http:
        one, two = (Caller(http, replica.url) for replica in fleet.replicas)
        assert (await one.chat("My name is Ada.", name)).status == 200
        session = (await one.session(name))["id"]
        await fleet.simulator.pace(delta_ms=50)
        async with one.stream("Count to 20", name) as stream:
            await stream.words(3)
            await harm(session)
            frames = await stream.rest()
        await fleet.simulator.pace(delta_ms=0)
        assert frames[-1] == b"data: [DONE]"
        assert text_of(frames).endswith("19 20")
        for caller in (two, one, two):
            assert await answered(caller, "What is my name?", name) == "Your name is Ada."
        said = [message["content"] for message in await two.messages(name) if message["role"] == "user"]
        assert said == ["My name is Ada.", "Count to 20", *["What is my name?"] * 3]
        assert len(await one.messages(name)) == 10


async def test_sentinel_promotes_another_primary(tmp_path: Path, name: str) -> None:
    with SentinelSet(tmp_path) as sentinels:
        sentinels.wait_for_quorum()

        async def promote(session: str) -> None:
            await asyncio.to_thread(sentinels.failover)

        async with Fleet(tmp_path, replicas=2, env={"BATON_REDIS_URL": sentinels.url}) as fleet:
            await a_conversation(fleet, name, promote)
        assert sentinels.servers[1].command("ROLE")[0] == b"master"


async def test_a_primary_of_a_cluster_is_killed(tmp_path: Path, name: str) -> None:
    with Cluster(tmp_path) as cluster:
        killed: list[tuple[str, Server]] = []

        async def kill(session: str) -> None:
            key = Keyspace("baton", 64, SECRET.encode()).session(session, "").keys[0]
            primary = cluster.primary_of(key)
            assert primary.command("EXISTS", key) == 1, "this is where the session lives"
            await asyncio.to_thread(until, lambda: a_replica_is_in_step(primary), "a replica in step")
            primary.kill9()
            killed.append((key, primary))

        async with Fleet(tmp_path, replicas=2, env={"BATON_REDIS_URL": cluster.url}) as fleet:
            await a_conversation(fleet, name, kill)
        ((key, primary),) = killed
        assert cluster.primary_of(key) is not primary


def a_replica_is_in_step(primary: Server) -> bool:
    _, offset, replicas = primary.command("ROLE")
    return any(int(replica[2]) == int(offset) for replica in replicas)
