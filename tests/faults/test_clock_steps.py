"""Redis's clock steps while it is used, back and on, by an hour and by two days: a library before it tells it the time.

A lease that such a step ends, or puts off, is over: its holder renews it before long, and if somebody was faster he is
refused. A session lives for a day here: a step of an hour ends none, one of two days on ends all that there are, whole,
because that much time has passed by the one clock that counts; one back ends none (but a clock that is put right again
steps on: what was used meanwhile is as old as it says). On Sentinel and in a cluster one
primary's clock steps and nobody else's.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.faults.call import Call, assert_complete, assert_told
from tests.faults.places import Place, place
from tests.faults.stage import LEASE_MS, Scene, Stage, answer, stage
from tests.faults.stores import Topology
from tests.faults.traffic import COMPLETE, ENV, SLACK_S, TURNS, traffic
from tests.instruments.processes import Replica
from tests.instruments.proxy import Trap
from tests.instruments.stall import HttpRequest
from tests.instruments.stepping_clock import NoClock, environment, library, set_offset, step

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

HOUR_S, DAY_S = 3_600, 86_400
STEPS = {"hour-on": HOUR_S, "hour-back": -HOUR_S, "two-days-on": 2 * DAY_S, "two-days-back": -2 * DAY_S}
steps = pytest.mark.parametrize("by_s", STEPS.values(), ids=STEPS)
SETTINGS = {**ENV, "BATON_SESSION_TTL_S": str(DAY_S), "BATON_SWEEP_INTERVAL_S": "1"}


@pytest.fixture(scope="module")
def stepping(topology: Topology, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    try:
        made = library(tmp_path_factory.mktemp("clock"))
    except NoClock as missing:
        pytest.skip(str(missing))
    with place(topology, tmp_path_factory.mktemp("store"), env=environment(made)) as one:
        yield one


@pytest.fixture(scope="module")
async def ground(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory, stepping: Place) -> AsyncIterator[Stage]:
    async with stage(tmp_path_factory.mktemp("stage"), stepping, env=SETTINGS) as one:
        yield one


@pytest.fixture(autouse=True)
async def right_again(ground: Stage) -> AsyncIterator[None]:
    yield
    set_offset(ground.server, 0)
    await ground.place.settled()


def ends_sessions(by_s: int) -> bool:
    return by_s > DAY_S


async def running(scene: Scene, victim: Replica) -> tuple[Call, Trap[HttpRequest]]:
    """A turn that holds its session, and stands before its end."""
    trap = scene.at_claude(victim, "message_delta")
    call = scene.ask(victim, "victim")
    await trap.reached()
    return call, trap


@steps
async def test_between_turns_nothing_is_lost_but_what_has_reached_its_end(ground: Stage, by_s: int) -> None:
    scene = await ground.scene()
    step(ground.server, by_s)
    ended = ends_sessions(by_s)
    started = time.monotonic()
    if ended:
        gone = await scene.ask(ground.survivor, "next", X_Session_Mode="continue").ended()
        assert_told(gone, "session_not_found", 404)
    stored = [] if ended else ["first"]
    await scene.told(ground.survivor, "again", after=stored[-1] if stored else "none")
    assert time.monotonic() - started < LEASE_MS / 1000 + SLACK_S
    (await scene.books()).assert_holds(*stored, "again")


@steps
async def test_in_the_middle_of_a_turn_it_is_stored_or_told_that_its_session_has_ended(
    ground: Stage, by_s: int
) -> None:
    scene, victim = await ground.scene(), await ground.victim()
    call, trap = await running(scene, victim)
    step(ground.server, by_s)
    trap.release()
    seen, ended = await call.ended(), ends_sessions(by_s)
    if ended:
        assert_told(seen, "session_not_found", 404)
    else:
        assert_complete(seen, answer("victim", "first"))
    stored = [] if ended else ["first", "victim"]
    await scene.told(ground.survivor, "again", after=stored[-1] if stored else "none")
    (await scene.books()).assert_holds(*stored, "again")


@steps
async def test_a_holder_that_stands_still_is_replaced_within_a_lease_and_then_refused(ground: Stage, by_s: int) -> None:
    scene, victim = await ground.scene(), await ground.victim()
    call, trap = await running(scene, victim)
    victim.freeze()
    step(ground.server, by_s)
    stored, started = [] if ends_sessions(by_s) else ["first"], time.monotonic()
    await scene.told(ground.survivor, "other", after=stored[-1] if stored else "none")
    assert time.monotonic() - started < LEASE_MS / 1000 + SLACK_S
    trap.release()
    victim.thaw()
    seen = await call.ended()
    if not stored and seen.error == "session_not_found":
        assert_told(seen, "session_not_found", 404)
    else:
        assert_told(seen, "turn_superseded", 409)
    await scene.told(ground.survivor, "again", after="other")
    (await scene.books()).assert_holds(*stored, "other", "again")


@steps
async def test_who_waits_for_a_turn_is_served_after_it_or_in_its_place(ground: Stage, by_s: int) -> None:
    scene, victim = await ground.scene(), await ground.victim()
    call, trap = await running(scene, victim)
    holder = (await scene.books()).holder
    waiting = scene.ask(ground.survivor, "other")
    busy = await scene.ask(ground.survivor, "next", X_Session_On_Conflict="reject").ended()
    assert_told(busy, "turn_in_progress", 409)
    step(ground.server, by_s)
    books = await scene.until(lambda books: books.holder != holder or books.lease_ends_ms != 0)
    trap.release()
    first, second = await asyncio.gather(call.ended(), waiting.ended())
    stored = [] if ends_sessions(by_s) else ["first"]
    if first.error is None:
        assert_complete(first, answer("victim", "first"))
        stored.append("victim")
    else:
        assert first.error in ("turn_superseded", "session_not_found"), books
    assert_complete(second, answer("other", stored[-1] if stored else "none"))
    await scene.told(ground.survivor, "again", after="other")
    (await scene.books()).assert_holds(*stored, "other", "again")


async def test_traffic_over_a_clock_that_steps_to_and_fro_keeps_all(ground: Stage) -> None:
    async with traffic(ground.fleet) as clients:
        async with clients.flowing():
            for by_s in (HOUR_S, -2 * HOUR_S, -3 * HOUR_S, 4 * HOUR_S) * max(1, TURNS // 48):
                await clients.until_told(4)
                step(ground.server, by_s)
            await clients.until_told(4)
        set_offset(ground.server, 0)
        assert {code for _, code in clients.outcomes()} <= {None, "turn_superseded", "store_unavailable"}
        assert clients.outcomes([await clients.turn()]) == COMPLETE
        await clients.assert_kept()
