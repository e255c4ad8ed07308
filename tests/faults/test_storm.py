"""Nothing acknowledged is lost, doubled or interleaved, whatever happens to the replicas and however clients retry."""

import os
import secrets
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.storm import LEASE_MS, Plan, Storm
from tests.instruments.history import Received, TurnRecord, check
from tests.instruments.processes import Fleet

pytestmark = [pytest.mark.anyio, pytest.mark.storm, pytest.mark.timeout(3600)]

SEED = int(os.environ.get("STORM_SEED") or secrets.randbelow(10**9))


async def blown(directory: Path, plan: Plan) -> tuple[Storm, list[Received], dict[str, list[TurnRecord]]]:
    """A storm that is over, judged."""
    print(f"\nstorm of {plan.turns} turns, STORM_SEED={plan.seed}")
    env = {"BATON_LEASE_MS": str(LEASE_MS), "BATON_QUEUE_WAIT_S": "10"}
    async with Fleet(directory, 3, env=env, redis_stalls=(0, 1, 2), simulator_args=("--delta-ms", "3")) as fleet:
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
        # A storm in which little happened proves little.
        assert len(log.turns) >= plan.turns
        assert log.kills >= plan.kills
        assert log.freezes >= plan.freezes
        return storm, received, records


async def test_storm_of_killed_and_frozen_replicas_loses_and_doubles_nothing(tmp_path: Path) -> None:
    turns = int(os.environ.get("STORM_TURNS") or 200)
    plan = Plan(turns, SEED, kills=max(2, turns // 250), freezes=max(4, turns // 125))
    storm, _, records = await blown(tmp_path, plan)
    assert storm.log.outcomes()["complete"] > len(storm.log.turns) / 2
    assert storm.log.lost_replies >= 3
    assert any(record.state == "dead" for session in records.values() for record in session)


@pytest.mark.parametrize("on_disconnect", ["continue", "cancel"])
async def test_storm_of_impatient_sdks_asks_claude_again_only_where_it_must(tmp_path: Path, on_disconnect: str) -> None:
    """Stock clients that wait half a second and retry by themselves, in a storm of kills and freezes."""
    turns = int(os.environ.get("STORM_TURNS") or 200) // 2
    plan = Plan(
        turns, SEED, kills=max(1, turns // 250), freezes=max(2, turns // 125), sdk=True, on_disconnect=on_disconnect
    )
    storm, received, records = await blown(tmp_path, plan)
    asked = Counter(request.marks[-1] for request in received)
    became = Counter(record.state for session in records.values() for record in session)
    repeated = asked.total() - len(asked)
    print(f"Claude was asked {asked.total()} times for {len(asked)} turns; turns begun: {dict(became)}")
    # Whoever is asked again was asked before by a turn that has not become history: its holder died (pending: nobody
    # has found it yet), or could not store it, or its caller left.
    holder_lost = became["dead"] + became["pending"] + became["aborted"]
    if on_disconnect == "continue":
        assert became["rewound"] == 0
        assert repeated <= holder_lost
    else:
        assert repeated <= holder_lost + became["rewound"]
    assert storm.log.outcomes()["complete"] > 0
