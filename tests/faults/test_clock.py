"""Redis's clock has stepped, back or on, by years: what is stored then lies far in the future, or in the past.

The clock itself steps in test_clock_steps.py. Here the test moves what is stored instead, so that nothing hangs on when
that was: a time in the future is what a clock leaves that steps back, a time in the past what one leaves that steps on.
No time of a client's counts anywhere, so those need no test.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from storage.keys import Keyspace
from tests.faults.call import Call, assert_complete, assert_told
from tests.faults.places import Place
from tests.faults.stage import Scene, Stage, answer, stage, until
from tests.instruments.processes import SECRET, Replica
from tests.instruments.proxy import Trap

pytestmark = [pytest.mark.anyio, pytest.mark.faults, pytest.mark.only("standalone")]

YEARS_MS = 10 * 365 * 86_400_000
# So long that nothing here goes on because a lease has run out in the ordinary way.
LEASE_MS = 60_000
_POLL_S = 0.05
steps = pytest.mark.parametrize("by_ms", [YEARS_MS, -YEARS_MS], ids=["back", "on"])


@pytest.fixture(scope="module")
async def ground(
    anyio_backend: str, tmp_path_factory: pytest.TempPathFactory, ground_store: Place
) -> AsyncIterator[Stage]:
    async with stage(
        tmp_path_factory.mktemp("stage"), ground_store, LEASE_MS, env={"BATON_SWEEP_INTERVAL_S": "1"}
    ) as one:
        yield one


async def running(ground: Stage) -> tuple[Scene, Replica, Call, Trap[Any]]:
    """A turn that holds its session, and stands before its end."""
    scene, victim = await ground.scene(), await ground.victim()
    trap = scene.at_claude(victim, "message_delta")
    call = scene.ask(victim, "victim")
    await trap.reached()
    return scene, victim, call, trap


async def move_lease(scene: Scene, by_ms: int) -> None:
    """As if the server's clock had stepped the other way since the lease was given."""
    await scene.stage.store.hset(scene.ref.keys[0], "lx", str(await scene.stage.now_ms() + by_ms))


@steps
async def test_a_lease_far_from_now_is_over_for_others(ground: Stage, by_ms: int) -> None:
    scene, victim, call, trap = await running(ground)
    victim.freeze()  # it would renew its lease, and so tell the store that it lives
    executed = -1
    while executed != (executed := await ground.scripts_executed()):  # noqa: ASYNC110  # what it had sent has arrived
        await asyncio.sleep(_POLL_S)
    await move_lease(scene, by_ms)
    await scene.told(ground.survivor, "other", after="first")
    victim.thaw()
    trap.release()
    assert_told(await call.ended(), "turn_superseded", 409)
    books = await scene.books()
    books.assert_holds("first", "other")
    assert books.story == "CDC"


@steps
async def test_a_turn_whose_lease_is_far_from_now_is_stored_if_nobody_took_over(ground: Stage, by_ms: int) -> None:
    scene, _, call, trap = await running(ground)
    await move_lease(scene, by_ms)
    trap.release()
    assert_complete(await call.ended(), answer("victim", "first"))
    await scene.told(ground.survivor, "next", after="victim")
    (await scene.books()).assert_holds("first", "victim", "next")


async def test_a_session_whose_end_has_come_meanwhile_is_gone_as_a_whole(ground: Stage) -> None:
    """A clock that steps on ends sessions; a turn that runs is told, and the next one begins anew."""
    scene, _, call, trap = await running(ground)
    async with ground.store.pipeline(transaction=True) as batch:
        for key in scene.ref.keys[:8]:
            batch.pexpireat(key, 1)
        await batch.execute()
    trap.release()
    assert_told(await call.ended(), "session_not_found", 404)
    await scene.told(ground.survivor, "first", after="none")
    (await scene.books()).assert_holds("first")


async def test_a_session_that_was_made_in_the_future_counts_and_lives_as_others_do(ground: Stage) -> None:
    scene = await ground.scene()
    ahead = await ground.now_ms() + YEARS_MS
    keys, session = scene.ref.keys, scene.ref.id
    tag, size_bytes, messages, created_s = (await ground.store.hget(keys[13], session)).split()
    moved = int(created_s) + YEARS_MS // 1000
    await ground.store.hset(keys[13], session, b"%b %b %b %d" % (tag, size_bytes, messages, moved))
    for counters in keys[14:16]:
        await ground.store.hincrby(counters, "age_s", YEARS_MS // 1000)
    await ground.store.hset(keys[0], mapping={"cr": str(ahead), "la": str(ahead)})
    for index in (keys[10], keys[11]):
        await ground.store.zadd(index, {session: ahead})
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{ground.survivor.url}/v1/sessions/stats") as stats:
            assert (await stats.json())["average_session_age_minutes"] >= 0
        await scene.told(ground.survivor, "next", after="first")
        assert float(await ground.store.zscore(keys[10], session)) < ahead, "accessed now, by the clock of now"
        async with http.delete(f"{ground.survivor.url}/v1/sessions/{scene.name}") as deleted:
            assert deleted.status < 300
    assert await ground.store.hexists(keys[13], session) == 0


async def test_a_sweep_is_not_put_off_by_a_lock_from_the_future(ground: Stage) -> None:
    index = Keyspace("baton", 1, SECRET.encode()).index(0, "")
    await ground.store.set(index.sweep_lock, "1", px=YEARS_MS)
    swept = await ground.store.hget(index.counters, "sweeps")

    async def swept_again() -> bool:
        return bool(await ground.store.hget(index.counters, "sweeps") != swept)

    await until(swept_again)
