"""Another primary, and slots that move, under load: on purpose, which loses nothing, and because one was killed.

Who is killed may have acknowledged something in its last instant that its replica has not heard: asynchronous
replication cannot promise more. What is lost so must be the newest of its session, and everything else is judged as
ever.
"""

import asyncio
import random
import secrets
import time
from pathlib import Path

import pytest

from tests.faults.places import place
from tests.faults.stores import Topology, upsets
from tests.faults.test_lossy_failover import DOWN_AFTER_MS, FOLLOWED_S
from tests.faults.traffic import COMPLETE, ENV, TURNS, traffic
from tests.instruments.processes import Fleet
from tests.instruments.redis_servers import until

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

SEED = secrets.randbelow(10**9)
LAST_INSTANT_S = 0.1
# Above what a failover takes, so that what runs is stored, and by whom it was begun.
PATIENT = {**ENV, "BATON_STORE_SETTLE_S": "20", "BATON_LEASE_MS": "20000"}


@pytest.mark.only("sentinel", "cluster")
@pytest.mark.parametrize("kind", ["failovers", pytest.param("migrations", marks=pytest.mark.only("cluster"))])
async def test_what_is_moved_on_purpose_under_load_loses_nothing(tmp_path: Path, topology: Topology, kind: str) -> None:
    print(f"\nseed {SEED}")
    chance = random.Random(SEED)
    with upsets(topology, tmp_path) as moving:
        assert moving is not None
        env = {**PATIENT, "BATON_REDIS_URL": moving.url}
        async with Fleet(tmp_path, 2, env=env) as fleet, traffic(fleet) as clients:
            assert clients.outcomes(await clients.turns(6)) == COMPLETE
            keys = await clients.keys()
            async with clients.flowing():
                for _ in range(max(2, TURNS // 24)):
                    await clients.until_told(4)
                    await asyncio.to_thread(moving.upset, kind, chance, keys)
                await clients.until_told(4)
            allowed = COMPLETE if kind == "migrations" else {*COMPLETE, ("error", "store_unavailable")}
            assert clients.outcomes() - allowed == set()
            assert clients.outcomes(await clients.turns(6)) == COMPLETE
            await clients.assert_kept()


@pytest.mark.only("sentinel", "cluster")
async def test_a_primary_that_is_killed_under_load_is_followed_and_nothing_is_mixed(
    tmp_path: Path, topology: Topology
) -> None:
    with place(topology, tmp_path / "store", patience_ms=DOWN_AFTER_MS) as losing:
        async with Fleet(tmp_path, 2, store=losing, env=PATIENT) as fleet, traffic(fleet) as clients:
            assert clients.outcomes(await clients.turns(6)) == COMPLETE
            primary = losing.primary()
            replica = losing.replica_of(primary)
            async with clients.flowing():
                await clients.until_told(10)
                primary.kill9()
                killed_at = time.monotonic()
                await asyncio.to_thread(until, lambda: losing.primary() is replica, "another primary")
                await clients.until_told(10)
            assert time.monotonic() - killed_at < FOLLOWED_S
            assert {code for _, code in clients.outcomes()} <= {
                None,
                "store_unavailable",
                "turn_superseded",
                "turn_in_progress",
            }
            stored = [message.text for one in (await clients.stored()).messages.values() for message in one]
            lost = [
                one.turn
                for one in clients.told
                if one.turn.outcome == "complete" and not any(f"[mark:{one.turn.mark}]" in text for text in stored)
            ]
            assert all(-LAST_INSTANT_S < (turn.finished_at or 0.0) - killed_at < LAST_INSTANT_S for turn in lost)
            await clients.assert_kept(lost=[turn.mark for turn in lost])
