"""A primary goes in mid-conversation: the turn that is running is stored, and the next ones succeed within seconds.

So do the keys of callers: one that was made before is known after, and a change of it reaches the other replica.
Replicas are not restarted and not told. A caller who is refused meanwhile (503, told that it may try again) does so.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from storage.keys import Keyspace
from tests.e2e.caller import Caller, eventually, text_of
from tests.instruments.processes import SECRET, Fleet
from tests.instruments.redis_servers import Cluster, SentinelSet, Server, until

pytestmark = pytest.mark.anyio

ADMIN = {"x-api-key": "admin-key-of-the-tests-0123456789"}
KEYED = {"BATON_ADMIN_KEY": ADMIN["x-api-key"]}
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
    async with aiohttp.ClientSession(headers=ADMIN) as http:
        one, two = (Caller(http, replica.url) for replica in fleet.replicas)
        keys = [(await one.request("POST", "/v1/admin/keys", json={"principal": who})).json for who in ("ada", "bob")]
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
        await keys_of_before(one, two, *keys)


async def keys_of_before(one: Caller, two: Caller, ada: Any, bob: Any) -> None:
    """Keys that were made before the harm are good, found in their list, and changed for every replica."""

    async def sees(key: Any) -> int:
        return (await two.request("GET", "/v1/sessions", headers={"x-api-key": key["key"]})).status

    assert [await sees(ada), await sees(bob)] == [200, 200]
    listed = (await two.get("/v1/admin/keys?limit=1")).json
    rest = (await one.get(f"/v1/admin/keys?limit=1&cursor={listed['next_cursor']}")).json
    assert {one["id"] for page in (listed, rest) for one in page["keys"]} == {ada["id"], bob["id"]}
    assert (await one.request("PATCH", f"/v1/admin/keys/{ada['id']}", json={"disabled": True})).status == 200
    assert (await one.request("DELETE", f"/v1/admin/keys/{bob['id']}")).status == 200

    async def refused() -> bool:
        return [await sees(ada), await sees(bob)] == [401, 401]

    await eventually(refused, "401")


async def test_sentinel_promotes_another_primary(tmp_path: Path, name: str) -> None:
    with SentinelSet(tmp_path) as sentinels:
        sentinels.wait_for_quorum()

        async def promote(session: str) -> None:
            await asyncio.to_thread(sentinels.failover)

        async with Fleet(tmp_path, replicas=2, env={"BATON_REDIS_URL": sentinels.url, **KEYED}) as fleet:
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

        async with Fleet(tmp_path, replicas=2, env={"BATON_REDIS_URL": cluster.url, **KEYED}) as fleet:
            await a_conversation(fleet, name, kill)
        ((key, primary),) = killed
        assert cluster.primary_of(key) is not primary


def a_replica_is_in_step(primary: Server) -> bool:
    _, offset, replicas = primary.command("ROLE")
    return any(int(replica[2]) == int(offset) for replica in replicas)
