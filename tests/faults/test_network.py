"""The network between a replica and Redis: slow, trickling, breaking, swallowing, forgetting.

Traffic goes on while it happens, on a replica behind a proxy and on one with a straight line, in the same sessions. The
history checker judges; beside it, nothing waits longer than docs/operations.md says, and what comes after is served.
"""

import time
from collections.abc import AsyncIterator

import pytest

from storage.connect import Deadlines
from tests.faults.places import Place
from tests.faults.stage import metric, until
from tests.faults.traffic import (
    ABORT_S,
    BEGIN_S,
    COMPLETE,
    ENV,
    SETTLE_S,
    SLACK_S,
    TURNS,
    UNAVAILABLE,
    Traffic,
    traffic,
)
from tests.instruments.processes import Fleet, Replica
from tests.instruments.proxy import BLACK_HOLE, FINE, Weather
from tests.instruments.stall import RedisStall

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

BREAKER, OPENINGS, BUSY = "baton_store_breaker_open", "baton_store_breaker_openings_total", "baton_store_busy_total"
FAST_S = 1.0
# A session is waited for in no order, and where every answer of the store is late, for long.
SLOWLY = {**ENV, "BATON_QUEUE_WAIT_S": "20"}


@pytest.fixture(scope="module")
async def fleet(
    anyio_backend: str, tmp_path_factory: pytest.TempPathFactory, ground_store: Place
) -> AsyncIterator[Fleet]:
    async with Fleet(tmp_path_factory.mktemp("fleet"), 2, store=ground_store, env=SLOWLY, redis_stalls=(0,)) as one:
        yield one


@pytest.fixture
async def clients(fleet: Fleet) -> AsyncIterator[Traffic]:
    async with traffic(fleet) as one:
        assert one.outcomes(await one.turns(6)) == COMPLETE
        yield one


@pytest.fixture
async def line(fleet: Fleet) -> AsyncIterator[RedisStall]:
    """The proxy; fine again after each test."""
    proxy = proxy_of(fleet.replicas[0])
    yield proxy
    proxy.weather = FINE
    proxy.thaw()


def proxy_of(replica: Replica) -> RedisStall:
    assert replica.redis_stall is not None
    return replica.redis_stall


async def test_latency_makes_turns_slow_and_nothing_else(clients: Traffic, line: RedisStall) -> None:
    line.weather = Weather(delay_s=0.15)
    opened = await metric(clients.fleet.replicas[0], OPENINGS)
    assert clients.outcomes(await clients.turns(TURNS)) == COMPLETE
    slow = await clients.turn(replica=clients.fleet.replicas[0])
    assert slow.took_s >= 3 * 2 * 0.15, "begin, history and commit, there and back"
    assert await metric(clients.fleet.replicas[0], OPENINGS) == opened
    await clients.assert_kept()


async def test_a_trickle_makes_turns_slow_and_nothing_else(clients: Traffic, line: RedisStall) -> None:
    line.weather = Weather(trickle=(256, 0.01))
    assert clients.outcomes(await clients.turns(TURNS)) == COMPLETE
    await clients.assert_kept()


async def test_connections_that_break_again_and_again_cost_no_turn(clients: Traffic, line: RedisStall) -> None:
    async with clients.flowing():
        for _ in range(max(4, TURNS // 6)):
            await clients.until_told(3)
            line.reset()
    assert clients.outcomes() == COMPLETE
    await clients.assert_kept()


async def test_connections_that_lead_nowhere_are_given_up_and_cost_no_turn(clients: Traffic, line: RedisStall) -> None:
    """As after a firewall has forgotten them: no answer, no end. What was sent on them is sent again on others."""
    for _ in range(2):
        line.forget()
        told = await clients.turns(6)
        assert clients.outcomes(told) == COMPLETE
    await clients.assert_kept()


async def test_a_black_hole_is_told_within_the_deadlines_and_then_at_once(clients: Traffic, line: RedisStall) -> None:
    cut_off, straight = clients.fleet.replicas
    async with clients.flowing():
        await clients.until_told(3)
        line.weather = BLACK_HOLE
        await clients.until_told(3, "error")
        assert clients.outcomes([await clients.turn(replica=straight)]) == COMPLETE

        async def opened() -> bool:
            return await metric(cut_off, BREAKER) == 1

        await until(opened)  # the look that falls into the hole may have begun a second after the turns that did
        refused = await clients.turn(replica=cut_off)
        assert (refused.code, refused.turn.http_status) == ("store_unavailable", 503)
        assert refused.took_s < FAST_S
        line.weather = FINE
        lifted = time.monotonic()

        async def closed() -> bool:
            return await metric(cut_off, BREAKER) == 0

        await until(closed)  # a look that fell into the hole ends when its time is over
        assert time.monotonic() - lifted < Deadlines().command_s + SLACK_S
        assert clients.outcomes([await clients.turn(replica=cut_off)]) == COMPLETE
    assert max(one.took_s for one in clients.told) < 2 * SETTLE_S + SLACK_S
    refusals = [one for one in clients.told if one.code == "store_unavailable"]
    assert max(one.took_s for one in refusals) < BEGIN_S + ABORT_S + SLACK_S
    assert clients.outcomes(refusals) == UNAVAILABLE
    await clients.assert_kept()


async def test_what_is_held_and_comes_late_counts_once_or_not_at_all(clients: Traffic, line: RedisStall) -> None:
    """A partition that heals: everything that was sent arrives, after it was given up and aborted."""
    cut_off, _ = clients.fleet.replicas
    async with clients.flowing():
        for _ in range(2):
            await clients.until_told(3)
            line.freeze()
            await clients.until_told(3, "error")
            line.thaw()
            assert clients.outcomes([await clients.turn(replica=cut_off)]) == COMPLETE, "the first one is served"
    await clients.assert_kept()


@pytest.mark.at_length
async def test_a_pool_that_is_too_small_is_told_from_a_store_that_is_away(fleet: Fleet) -> None:
    """Two connections, and every answer takes a while: the store is fine, and this replica is overloaded."""
    few = await fleet.add_replica(redis_stall=True, env={"BATON_REDIS_CONNECTIONS_MAX": "2"})
    async with traffic(fleet, few, sessions=40) as clients:
        opened = await metric(few, OPENINGS)
        assert clients.outcomes([await clients.turn()]) == COMPLETE
        proxy_of(few).weather = Weather(delay_s=0.1)
        told = await clients.turns(40, clients=40)
        assert clients.outcomes(told) == {*COMPLETE, ("error", "overloaded")}
        # It may have waited for its begin and, in vain, for its history.
        assert max(one.took_s for one in told if one.code) < 2 * BEGIN_S + ABORT_S + SLACK_S
        assert await metric(few, BUSY) > 0
        assert await metric(few, OPENINGS) == opened
        proxy_of(few).weather = FINE
        assert clients.outcomes(await clients.turns(6)) == COMPLETE
        await clients.assert_kept()
