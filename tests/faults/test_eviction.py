"""A Redis that may evict (``maxmemory-policy volatile-lru``) and is full: it takes sessions apart, key by key.

Refused at start unless that was asked for. Here it was: what is torn is noticed and told, nothing is answered on a
history with a hole in it, and what is torn can be deleted and begun anew.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import pytest
import redis.asyncio

from service.simulator.journal import KEPT
from tests.faults.traffic import COMPLETE, ENV, TURNS, Told, Traffic, traffic
from tests.instruments.history import marks_in, text_of
from tests.instruments.processes import Fleet

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

MODEL = "claude-sonnet-5-5"
SESSIONS = max(160, 5 * TURNS)
PADDING = "x" * 4_000
READS = ("", "/messages", "/turns")


@pytest.fixture(scope="module")
async def fleet(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    env = {**ENV, "BATON_REDIS_EVICTION_ALLOWED": "true"}
    async with Fleet(tmp_path_factory.mktemp("fleet"), 1, env=env) as one:
        yield one


@pytest.fixture
async def store(fleet: Fleet) -> AsyncIterator[Any]:
    client: Any = redis.asyncio.from_url(fleet.valkey.url)
    yield client
    await client.aclose()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_a_torn_session_is_told_and_never_answered_on(
    fleet: Fleet, store: Any, http: aiohttp.ClientSession
) -> None:
    async with traffic(fleet, sessions=SESSIONS) as clients:
        url = f"{fleet.replicas[0].url}/v1/sessions"
        for name in clients.sessions:
            new = {"name": name, "model": MODEL, "system_prompt": f"You are {name}."}
            async with http.post(url, json=new) as made:
                assert made.status == 201
        first = await in_each(clients)
        assert clients.outcomes(first) == COMPLETE
        await evict(store)

        told = await in_each(clients, {"x-session-mode": "continue"})
        assert clients.outcomes(told) == {*COMPLETE, ("error", "session_corrupt"), ("error", "session_not_found")}
        by_code: dict[str | None, list[str]] = {}
        for one in told:
            by_code.setdefault(one.code, []).append(one.turn.session)
        print({code: len(names) for code, names in by_code.items()})
        assert await told_who_they_are(fleet) >= min(len(by_code[None]), KEPT)
        whole = set(by_code[None])
        clients.told = [one for one in clients.told if one.turn.session in whole]
        lost, clients.sessions = [name for name in clients.sessions if name not in whole], sorted(whole)
        await clients.assert_kept()

        for name in by_code["session_corrupt"]:
            for path in READS:
                async with http.get(f"{url}/{name}{path}") as read:
                    assert read.status in (200, 404, 409), (path, await read.text())
            async with http.delete(f"{url}/{name}") as deleted:
                assert deleted.status < 300
        clients.sessions = lost
        assert clients.outcomes(await in_each(clients)) == COMPLETE
        clients.told = [one for one in clients.told if one.turn.session in lost]
        await clients.assert_kept()


async def in_each(clients: Traffic, headers: Mapping[str, str] = {}) -> list[Told]:
    """One turn in every session, some at once."""
    at_once = asyncio.Semaphore(8)

    async def ask(name: str) -> Told:
        async with at_once:
            return await clients.turn(name, text=f"Count to 3. {PADDING}", headers=headers)

    return list(await asyncio.gather(*map(ask, clients.sessions)))


async def evict(store: Any) -> None:
    """Fills the server until keys have been evicted, then gives it room again."""
    used = (await store.info("memory"))["used_memory"]
    await store.config_set("maxmemory-policy", "volatile-lru")
    await store.config_set("maxmemory", str(used - 300_000))
    while (await store.info("stats"))["evicted_keys"] < SESSIONS:
        await store.set("filler", "x" * 20_000)
        await store.append("filler-2", "x" * 20_000)
    await store.config_set("maxmemory", "0")


async def told_who_they_are(fleet: Fleet) -> int:
    """How many of the last requests Claude got; each with the system prompt of its session."""
    requests = await fleet.simulator.requests()
    for request in requests:
        (mark,) = marks_in(text_of(request["body"]["messages"][-1]["content"]))
        assert f"You are {mark.partition('/')[0]}." in text_of(request["body"]["system"])
    return len(requests)
