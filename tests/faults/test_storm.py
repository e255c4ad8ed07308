"""Nothing acknowledged is lost, doubled or interleaved, whatever happens to the replicas and however clients retry."""

import os
import secrets
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.store_view import store_view
from tests.faults.stores import TOPOLOGIES, Topology, upsets
from tests.faults.storm import LEASE_MS, Plan, Storm
from tests.instruments.history import Received, TurnRecord, check
from tests.instruments.processes import Fleet

SEED = int(os.environ.get("STORM_SEED") or secrets.randbelow(10**9))
TURNS = int(os.environ.get("STORM_TURNS") or 0)
MINUTES = float(os.environ.get("STORM_MINUTES") or 0)
CHOSEN = os.environ.get("STORM_TOPOLOGY") or "all"
TOPOLOGY = [one for one in TOPOLOGIES if CHOSEN in (one, "all")]
assert TOPOLOGY, f"STORM_TOPOLOGY is one of {', '.join(TOPOLOGIES)}, all; not {CHOSEN}"

pytestmark = [pytest.mark.anyio, pytest.mark.storm, pytest.mark.timeout(3600 + 60 * MINUTES)]


def least(topology: Topology, turns: int) -> dict[str, int]:
    """How many troubles of each kind make so many turns a storm."""
    counts = {"kills": max(1, turns // 100), "freezes": max(1, turns // 100)}
    match topology:
        case "standalone":
            return counts | {"lost_replies": 3}
        case "sentinel":
            return counts | {"cuts": 2, "failovers": max(1, turns // 100)}
        case "cluster":
            return counts | {"cuts": 2, "failovers": max(1, turns // 100), "migrations": max(1, turns // 100)}


async def blown(
    directory: Path, topology: Topology, plan: Plan
) -> tuple[Storm, list[Received], dict[str, list[TurnRecord]]]:
    """A storm that is over, judged."""
    print(f"\nSTORM_TOPOLOGY={topology} STORM_TURNS={plan.turns} STORM_MINUTES={plan.minutes:g} STORM_SEED={plan.seed}")
    env = {"BATON_LEASE_MS": str(LEASE_MS), "BATON_QUEUE_WAIT_S": "10"}
    with upsets(topology, directory) as upset:
        stalls = (0, 1, 2) if upset is None else ()
        env |= {} if upset is None else {"BATON_REDIS_URL": upset.url}
        async with Fleet(directory, 3, env=env, redis_stalls=stalls, simulator_args=("--delta-ms", "3")) as fleet:
            storm = Storm(fleet, plan, upset)
            await storm.run()
            async with store_view(fleet.store_url) as store:
                stored = {session: await store.messages(session) for session in storm.sessions}
                records = {session: await store.records(session) for session in storm.sessions}
                broken = [line for session in storm.sessions for line in await store.invariants(session)]
            received = [Received.from_record(record) for record in fleet.simulator.records()]
    log = storm.log
    violations = check(log.turns, received, stored, records)
    print(f"{len(log.turns)} turns: {dict(log.outcomes())}, {dict(+log.codes)}")
    print(f"{dict(log.done)}, {len(violations) + len(broken)} violations")

    assert violations == []
    assert broken == []
    # A storm in which little happened proves little.
    if not plan.minutes:
        assert len(log.turns) >= plan.turns
        assert log.done >= Counter(plan.least)
    return storm, received, records


@pytest.mark.representative
@pytest.mark.parametrize("topology", TOPOLOGY)
async def test_storm_of_killed_and_frozen_replicas_loses_and_doubles_nothing(
    tmp_path: Path, topology: Topology
) -> None:
    """And of a store that is failed over, whose slots move and whose connections break."""
    turns = TURNS or (200 if topology == "standalone" else 60)
    plan = Plan(turns, SEED, least(topology, turns), MINUTES)
    storm, _, records = await blown(tmp_path, topology, plan)
    # For a second of each failover Sentinels name the old primary: how many are refused then is how often they ask.
    taken = len(storm.log.turns) - storm.log.codes["store_unavailable"]
    assert storm.log.outcomes()["complete"] > taken / 2
    if topology == "standalone":  # where a primary is just moving when a replica is killed, no turn may run
        assert any(record.state == "dead" for session in records.values() for record in session)


# What `make test` has no time for.
LONG = [one if one == "standalone" else pytest.param(one, marks=pytest.mark.at_length) for one in TOPOLOGY]


@pytest.mark.parametrize("topology", LONG)
@pytest.mark.parametrize("on_disconnect", ["continue", pytest.param("cancel", marks=pytest.mark.at_length)])
async def test_storm_of_impatient_sdks_asks_claude_again_only_where_it_must(
    tmp_path: Path, topology: Topology, on_disconnect: str
) -> None:
    """Stock clients that wait half a second and retry by themselves, in the same storm."""
    turns = (TURNS or 200) // 2
    plan = Plan(turns, SEED, least(topology, turns), MINUTES, sdk=True, on_disconnect=on_disconnect)
    storm, received, records = await blown(tmp_path, topology, plan)
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
