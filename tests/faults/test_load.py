"""More work than a replica may have, and callers who do not take what they asked for.

What is too much is refused at once, before Claude is asked; what was admitted keeps its pace; memory stays flat. A
caller who stops reading holds up nobody else, costs a bounded amount of memory, and is cut off after a while.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.call import Call
from tests.faults.places import Place
from tests.faults.stage import metric, until
from tests.faults.traffic import COMPLETE, ENV, SLACK_S, TURNS, Told, Traffic, traffic
from tests.instruments.processes import Fleet, Replica

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

RUNNING_MAX = 8
READERS = 16
WRITE_WAIT_S = 6
TURNS_MEANWHILE = 20  # so few that they are over long before that
FAST_S = 1.0
MEGABYTE = 1_000_000
# For a caller who does not read: twice a quarter of a MiB of frames, as much of Claude's answer as was read with them,
# and the answer so far.
READER_BYTES_MAX = 2 * MEGABYTE
RUNNING = "baton_turns_running"


@pytest.fixture(scope="module")
async def fleet(
    anyio_backend: str, tmp_path_factory: pytest.TempPathFactory, ground_store: Place
) -> AsyncIterator[Fleet]:
    async with Fleet(tmp_path_factory.mktemp("fleet"), 0, store=ground_store, env=ENV) as one:
        yield one


def resident_bytes(replica: Replica) -> int:
    pages = Path(f"/proc/{replica.pid}/statm").read_text("ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


async def runs(replica: Replica, turns: int) -> bool:
    return await metric(replica, RUNNING) == turns


async def at_pace(clients: Traffic, count: int) -> float:
    """So many turns at once, each of a second or so; how long the slowest took."""
    names = clients.sessions[:count]
    told = await asyncio.gather(*(clients.turn(name, text="Count to 60.") for name in names))
    assert clients.outcomes(told) == COMPLETE
    return max(one.took_s for one in told)


async def test_what_is_too_much_is_refused_at_once_and_what_runs_keeps_its_pace(fleet: Fleet) -> None:
    replica = await fleet.add_replica(env={"BATON_TURNS_RUNNING_MAX": str(RUNNING_MAX)})
    await fleet.simulator.pace(delta_ms=20)
    async with traffic(fleet, replica, sessions=RUNNING_MAX + 1) as clients:
        alone_s = await at_pace(clients, RUNNING_MAX)
        asked, resident = await fleet.simulator.total(), resident_bytes(replica)
        admitted = asyncio.create_task(at_pace(clients, RUNNING_MAX))
        await until(lambda: runs(replica, RUNNING_MAX))
        await assert_refused_at_once(replica)
        refused: list[Told] = []
        while not admitted.done() and len(refused) < 20 * TURNS:
            refused += await asyncio.gather(*(clients.turn(clients.sessions[-1]) for _ in range(20)))
        assert await admitted < alone_s + SLACK_S
        told = [one for one in refused if one.turn.outcome != "complete"]  # a late one may have found room
        assert len(told) >= 20
        assert clients.outcomes(told) == {("error", "overloaded")}
        assert max(one.took_s for one in told) < FAST_S
        served = len(refused) - len(told)
        assert await fleet.simulator.total() == asked + RUNNING_MAX + served
        assert resident_bytes(replica) - resident < 16 * MEGABYTE
        await clients.assert_kept()
    await fleet.simulator.pace(delta_ms=0)


async def assert_refused_at_once(replica: Replica) -> None:
    """With the time after which to come again."""
    body = {"model": "claude-sonnet-5-5", "messages": [{"role": "user", "content": "Hi"}], "session_id": "too-much"}
    started = time.monotonic()
    seen = await Call(replica.url, body, {}).ended()
    assert (seen.status, seen.error) == (503, "overloaded")
    assert int(seen.headers["retry-after"]) >= 1
    assert seen.headers["x-should-retry"] == "true"
    assert time.monotonic() - started < FAST_S


async def test_who_waits_for_a_busy_session_counts_as_running(fleet: Fleet) -> None:
    """So the queues of all sessions together are no longer than what a replica may run."""
    replica = await fleet.add_replica(env={"BATON_TURNS_RUNNING_MAX": str(RUNNING_MAX)})
    await fleet.simulator.pace(delta_ms=20)
    async with traffic(fleet, replica, sessions=1) as clients:
        told = [asyncio.create_task(clients.turn(text="Count to 20.")) for _ in range(RUNNING_MAX)]
        await until(lambda: runs(replica, RUNNING_MAX))
        await assert_refused_at_once(replica)
        outcomes = clients.outcomes([await one for one in told])
        assert outcomes <= {*COMPLETE, ("error", "turn_in_progress")}, "told when its wait was over"
        await clients.assert_kept()
    await fleet.simulator.pace(delta_ms=0)


@pytest.mark.at_length
async def test_who_does_not_read_holds_up_nobody_and_is_cut_off(fleet: Fleet) -> None:
    replica = await fleet.add_replica(env={"BATON_WRITE_WAIT_S": str(WRITE_WAIT_S)})
    async with traffic(fleet, replica) as clients:
        usual_s = max(one.took_s for one in await clients.turns(TURNS))
        read = unread(replica, "read")  # so that the process is as large as this work makes it in any case
        for call in read:
            call.read_on()
        assert all([(await call.ended(WRITE_WAIT_S + 2 * SLACK_S)).done for call in read])
        resident = resident_bytes(replica)
        calls = unread(replica, "unread")
        await until(lambda: some_run(replica))
        begun = time.monotonic()
        meanwhile = await clients.turns(TURNS_MEANWHILE)
        assert await some_run(replica), "they still stand"
        assert clients.outcomes(meanwhile) == COMPLETE
        assert max(one.took_s for one in meanwhile) < usual_s + SLACK_S
        assert resident_bytes(replica) - resident < READERS * READER_BYTES_MAX
        await until(lambda: runs(replica, 0))
        assert time.monotonic() - begun < WRITE_WAIT_S + 2 * SLACK_S
        ended = []
        for call in calls:
            call.read_on()
            ended.append(await call.ended())
        cut_off = [seen for seen in ended if not seen.whole]
        assert cut_off, "the kernel has taken all answers whole"
        assert not any(seen.done for seen in cut_off)
        told = [await clients.turn(f"unread-{number}") for number in range(READERS)]
        assert clients.outcomes(told) == COMPLETE, "their sessions are free"


def unread(replica: Replica, name: str) -> list[Call]:
    """Long answers, asked for by callers who take nothing yet."""
    message = [{"role": "user", "content": "Count to 5000."}]
    body = {"model": "claude-sonnet-5-5", "messages": message, "stream": True}
    return [Call(replica.url, {**body, "session_id": f"{name}-{number}"}, {}, reads=False) for number in range(READERS)]


async def some_run(replica: Replica) -> bool:
    return await metric(replica, RUNNING) > 0
