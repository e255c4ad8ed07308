"""A failover that loses acknowledged turns: to prevent it is for operators, to notice it for us.

A replica is cut off, goes on without what it has not heard, and is promoted when its primary is killed: what
asynchronous replication allows, made to happen.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.faults.places import Place, place
from tests.faults.stores import Topology
from tests.faults.traffic import COMPLETE, ENV, Told, Traffic, traffic
from tests.instruments.processes import Fleet
from tests.instruments.redis_servers import Server, until

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

SESSIONS = 3
DOWN_AFTER_MS = 1_500
FOLLOWED_S = 20.0


def cut_off(primary: Server, replica: Server) -> None:
    """From now on the replica hears nothing: it stands still with all that was sent, and its connection is closed."""
    sent = int(primary.command("ROLE")[1])
    until(lambda: int(replica.command("ROLE")[4]) >= sent, "all that was sent so far at the replica")
    replica.freeze()
    primary.command("CLIENT KILL", "TYPE", "REPLICA")


def promote(losing: Place, primary: Server, replica: Server) -> None:
    """Has the replica promoted that was cut off, since its primary is gone."""
    primary.kill9()
    replica.thaw()
    until(lambda: replica.command("ROLE")[0] == b"master" and losing.primary() is replica, "another primary")


async def served(ask: Callable[[], Coroutine[Any, Any, Told]]) -> Told:
    """What is told as soon as the store is there again."""
    deadline = time.monotonic() + FOLLOWED_S
    while (told := await ask()).code == "store_unavailable":
        assert time.monotonic() < deadline, f"not within {FOLLOWED_S:g} s"
        await asyncio.sleep(0.1)
    return told


def last_of(told: list[Told]) -> dict[str, str]:
    """The last turn of each session, by its id."""
    return {one.turn.session: one.turn.turn_id for one in told if one.turn.turn_id is not None}


@pytest.mark.only("sentinel", "cluster")
@pytest.mark.representative
async def test_a_lossy_failover_is_noticed_and_never_mixed(tmp_path: Path, topology: Topology) -> None:
    with place(topology, tmp_path / "store", patience_ms=DOWN_AFTER_MS) as losing:
        primary = losing.primary()
        replica = losing.replica_of(primary)
        async with (
            Fleet(tmp_path, 2, store=losing, env=ENV, http_stalls=(0,)) as fleet,
            traffic(fleet, sessions=SESSIONS) as clients,
        ):
            kept = await clients.turns(4 * SESSIONS, clients=1)
            await asyncio.to_thread(cut_off, primary, replica)
            lost = await clients.turns(4 * SESSIONS, clients=1)
            assert clients.outcomes() == COMPLETE
            await a_turn_runs_into_it(clients, partial(promote, losing, primary, replica))

            for session in clients.sessions:
                noticed = await served(partial(expecting, clients, session, last_of(lost)))
                assert (noticed.turn.http_status, noticed.code) == (409, "history_moved")
                went_on = await expecting(clients, session, last_of(kept))
                assert went_on.turn.outcome == "complete"
            # As many as were lost: whatever a replica remembers of them has the same length now.
            assert clients.outcomes(await clients.turns(4 * SESSIONS, clients=1)) == COMPLETE
            await clients.assert_kept(lost=[one.turn.mark for one in lost])


async def a_turn_runs_into_it(clients: Traffic, promoted: Callable[[], None]) -> None:
    """It began behind turns that are lost by the time at which it ends."""
    replica = clients.fleet.replicas[0]
    assert replica.http_stall is not None
    trap = replica.http_stall.arm(lambda request: request.method == "POST", at="event", event="message_delta")
    running = asyncio.create_task(clients.turn(clients.sessions[0], replica=replica))
    await trap.reached()
    await asyncio.to_thread(promoted)
    trap.release()
    told = await running
    assert (told.turn.outcome, told.code) == ("error", "turn_superseded")


async def expecting(clients: Traffic, session: str, expected: dict[str, str]) -> Told:
    """A turn that is to follow the last one that its caller knows of."""
    return await clients.turn(session, headers={"x-expect-turn": expected[session]})
