"""Nothing acknowledged is lost, doubled or interleaved, whatever happens to the replicas."""

import os
import secrets
from pathlib import Path

import pytest

from tests.faults.storm import LEASE_MS, Plan, Storm
from tests.instruments.history import Received, check
from tests.instruments.processes import Fleet

pytestmark = pytest.mark.anyio


@pytest.mark.storm
@pytest.mark.timeout(3600)
async def test_storm_of_killed_and_frozen_replicas_loses_and_doubles_nothing(tmp_path: Path) -> None:
    seed = int(os.environ.get("STORM_SEED") or secrets.randbelow(10**9))
    turns = int(os.environ.get("STORM_TURNS") or 500)
    plan = Plan(turns, seed, kills=turns // 250, freezes=turns // 125)
    print(f"\nstorm of {plan.turns} turns, STORM_SEED={seed}")
    env = {"BATON_LEASE_MS": str(LEASE_MS), "BATON_QUEUE_WAIT_S": "10"}
    async with Fleet(tmp_path, 3, env=env, redis_stalls=(0, 1, 2), simulator_args=("--delta-ms", "3")) as fleet:
        storm = Storm(fleet, plan)
        await storm.run()
        async with storm.store() as store:
            stored = {session: await store.messages(session) for session in storm.sessions}
            records = {session: await store.records(session) for session in storm.sessions}
            broken = [line for session in storm.sessions for line in await store.invariants(session)]
        received = [Received.from_record(record) for record in fleet.simulator.records()]
        log = storm.log
        print(f"{log.outcomes()}, {log.kills} kills, {log.freezes} freezes, {log.lost_replies} replies lost")

        assert check(log.turns, received, stored, records) == []
        assert broken == []
        assert len(log.turns) >= plan.turns
        # A storm in which little happened proves little.
        assert log.outcomes()["complete"] > len(log.turns) / 2
        assert log.kills >= plan.kills
        assert log.freezes >= plan.freezes
        assert log.lost_replies >= 3
        assert any(record.state == "dead" for session in records.values() for record in session)
