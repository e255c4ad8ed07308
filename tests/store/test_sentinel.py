"""Behind Sentinel: the primary is looked up, a promotion is followed, and the Sentinels' credential is their own."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from storage.connect import Credential, Deadlines, connect
from storage.failures import Unreached
from storage.first_contact import first_contact
from storage.health import health
from storage.keys import Keyspace, SessionRef, new_turn_id
from storage.results import Begun, Settled, StoreUnavailable
from storage.topology import require_primary
from tests.instruments.ports import reserved_port
from tests.instruments.redis_servers import SERVICE, SentinelSet, Server, until
from tests.store.harness import Store, elements

pytestmark = pytest.mark.anyio

PATIENT = {"connect_s": 5.0}  # on a busy machine; what hangs must not cost as much
FAILOVER_S = 20.0  # a second to notice, a vote, and a machine that does other things too
PASSWORD = "data-PASSWORD"
OF_SENTINELS = Credential("watcher", "sentinel-PASSWORD")
USERS = (
    "user default off",
    f"user watcher on >{OF_SENTINELS.password} -@all +sentinel|master",
    "user peer on >peer-PASSWORD allcommands allchannels",
    "sentinel sentinel-user peer",
    "sentinel sentinel-pass peer-PASSWORD",
)
AS_PEER = {"username": "peer", "password": "peer-PASSWORD"}


@pytest.fixture(scope="module")
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelSet]:
    """With passwords everywhere; the last test breaks it."""
    with SentinelSet(tmp_path_factory.mktemp("sentinels"), sentinel_lines=USERS, password=PASSWORD) as made:
        made.wait_for_quorum(**AS_PEER)
        yield made


def url(sentinels: SentinelSet, password: str = PASSWORD) -> str:
    return sentinels.url.replace("//", f"//:{password}@")


@asynccontextmanager
async def opened(
    url: str, *, credential: Credential | None = OF_SENTINELS, budget_s: float = 5.0, **deadlines: float
) -> AsyncIterator[Store]:
    redis = connect(url, connections_max=8, deadlines=Deadlines(**PATIENT | deadlines), sentinel=credential)
    try:
        yield Store.of(redis, "test", budget_s=budget_s)
    finally:
        await redis.aclose()


def primary(sentinels: SentinelSet) -> Server:
    """As a Sentinel sees it."""
    with sentinels.sentinels[-1].client(**AS_PEER) as client:
        port = int(client.execute_command("SENTINEL MASTER", SERVICE)["port"])
    return next(server for server in sentinels.servers if server.port == port)


def all_are_in_step(sentinels: SentinelSet) -> bool:
    with primary(sentinels).client(password=PASSWORD) as client:
        role = client.execute_command("ROLE")
    return [int(replica[2]) for replica in role[2]] == [int(role[1])] * (len(sentinels.servers) - 1)


async def test_the_primary_is_found_and_used(sentinels: SentinelSet) -> None:
    async with opened(url(sentinels)) as store:
        warnings = await first_contact(store.redis, store.keyspace, eviction_allowed=False, deadline_s=5.0)
        assert ["append-only file" in warnings[0], "min-replicas-to-write is 0" in warnings[1]] == [True, True]
        assert len(warnings) == 2
        primary(sentinels).client(password=PASSWORD).config_set("min-replicas-to-write", "1")
        warnings = await first_contact(store.redis, store.keyspace, eviction_allowed=False, deadline_s=5.0)
        assert len(warnings) == 1
        primary(sentinels).client(password=PASSWORD).config_set("min-replicas-to-write", "0")
        ref = await store.created()
        await store.committed(ref, elements(3))
        assert (await store.turns.history(ref, 3)).elements == elements(3)
        assert primary(sentinels).client(password=PASSWORD).exists(ref.keys[0]) == 1


@pytest.mark.parametrize(
    ("data", "credential", "words"),
    [
        (PASSWORD, Credential("watcher", "wrong-PASSWORD"), "No Sentinel names a primary 'conversations'"),
        (PASSWORD, None, "No Sentinel names a primary 'conversations'"),
        ("wrong-PASSWORD", OF_SENTINELS, "refuses the user name or the password"),
    ],
)
async def test_a_wrong_credential_is_told_and_not_shown(
    sentinels: SentinelSet, data: str, credential: Credential | None, words: str
) -> None:
    async with opened(url(sentinels, data), credential=credential) as store:
        with pytest.raises(StoreUnavailable, match=words) as caught:
            await first_contact(store.redis, store.keyspace, eviction_allowed=False, deadline_s=5.0)
        assert "PASSWORD" not in str(caught.value)


async def test_a_service_that_sentinels_do_not_know_is_told(sentinels: SentinelSet) -> None:
    async with opened(url(sentinels).replace(SERVICE, "other")) as store:
        with pytest.raises(StoreUnavailable, match="No Sentinel names a primary 'other'"):
            await first_contact(store.redis, store.keyspace, eviction_allowed=False, deadline_s=5.0)


async def test_dead_and_hanging_sentinels_do_no_harm(sentinels: SentinelSet) -> None:
    hanging, alive = sentinels.sentinels[0], sentinels.sentinels[1]
    hanging.freeze()
    with reserved_port() as dead:
        at = f"redis+sentinel://:{PASSWORD}@127.0.0.1:{dead},{hanging.address},{alive.address}/{SERVICE}"
        async with opened(at) as store:
            started = time.monotonic()
            await store.created()
            assert time.monotonic() - started < 0.8 * PATIENT["connect_s"]
        async with opened(at.replace(f",{alive.address}", ""), connect_s=0.3) as store:
            started = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await store.created()
            assert time.monotonic() - started < 0.8 * PATIENT["connect_s"]
    hanging.thaw()


async def test_looking_up_again_and_again_keeps_no_connection(sentinels: SentinelSet) -> None:
    """Each look-up asks on new ones, also one that does not answer; and they are gone with it."""
    hanging = sentinels.sentinels[0]
    async with opened(url(sentinels)) as store:
        topology = store.redis.topology

        async def look_up() -> None:
            topology.doubt(await topology.primary(0))
            await topology.primary(0)

        await look_up()
        before = len(os.listdir("/proc/self/fd"))
        hanging.freeze()
        try:
            for _ in range(10):
                await look_up()
        finally:
            hanging.thaw()
        pools = [sentinel.connection_pool for sentinel in topology._sentinels]
        assert [len(pool._in_use_connections) for pool in pools] == [0, 0, 0]
        assert max(len(pool._available_connections) for pool in pools) <= 2
        assert not any(one.is_connected for pool in pools for one in pool._available_connections)
        assert len(os.listdir("/proc/self/fd")) <= before


async def running(store: Store, ref: SessionRef, until_it_moved: asyncio.Event) -> tuple[int, list[float]]:
    """Turns one after the other until some succeeded after the move; how many did, and how long each waited."""
    done, waits, after = 0, [], 0
    while after < 3:
        started = time.monotonic()
        await store.committed(ref, elements(1))
        done += 1
        waits.append(time.monotonic() - started)
        after += until_it_moved.is_set()
    return done, waits


async def test_a_failover_that_was_asked_for_fails_no_turn(sentinels: SentinelSet) -> None:
    async with opened(url(sentinels), budget_s=FAILOVER_S) as store:
        ref = await store.created()
        moved = asyncio.Event()
        turning = asyncio.create_task(running(store, ref, moved))
        old = primary(sentinels)
        await asyncio.to_thread(sentinels.failover, **AS_PEER)
        await asyncio.to_thread(until, lambda: primary(sentinels) is not old, "a new primary")
        moved.set()
        done, waits = await turning
        assert len((await store.turns.history(ref, 10_000)).elements) == done
        assert max(waits) < FAILOVER_S / 2


async def test_no_connection_is_made_to_a_primary_that_has_stepped_down(sentinels: SentinelSet) -> None:
    """It would answer reads, with what was once true."""
    (replica,) = [server for server in sentinels.servers if server is not primary(sentinels)]
    redis = Redis(port=replica.port, password=PASSWORD, redis_connect_func=require_primary)
    with pytest.raises(Unreached):
        await redis.get("x")
    await redis.aclose()


async def test_a_primary_is_used_though_no_sentinel_is_there_to_name_it(sentinels: SentinelSet) -> None:
    """Not for long: a Sentinel that has stood still for two seconds does nothing for half a minute."""
    async with opened(url(sentinels), connect_s=0.3) as store:
        ref = await store.created()
        for sentinel in sentinels.sentinels:
            sentinel.freeze()
        try:
            store.redis.topology.doubt(await store.redis.topology.primary(0))
            assert (await store.turns.history(ref, 0)).elements == []
        finally:
            for sentinel in sentinels.sentinels:
                sentinel.thaw()


async def test_a_primary_that_was_replaced_behind_its_back_is_left_within_seconds(tmp_path: Path) -> None:
    """Cut off from its Sentinels it would go on taking writes, and nothing that it says would tell."""
    with SentinelSet(tmp_path) as made:
        cut_off, successor = made.servers
        redis = connect(made.url, connections_max=4, deadlines=Deadlines())
        store = Store.of(redis, "cut")
        ref = await store.created()
        for sentinel in made.sentinels:
            sentinel.command("SENTINEL REMOVE", SERVICE)
        successor.command("REPLICAOF", "NO", "ONE")
        for sentinel in made.sentinels:
            sentinel.command("SENTINEL MONITOR", SERVICE, "127.0.0.1", successor.port, 2)
        assert cut_off.command("ROLE")[0] == b"master"
        deadline = time.monotonic() + 10.0
        while not successor.command("HGET", ref.keys[0], "lt"):
            assert time.monotonic() < deadline, "it is written to without end"
            await store.begin(ref, new_turn_id(), lease_ms=1)
            await asyncio.sleep(0.1)
        await redis.aclose()


async def test_a_look_notices_that_a_frozen_primary_was_replaced(sentinels: SentinelSet) -> None:
    """With the deadlines as shipped: a look must not end before the command that tells it."""
    await asyncio.to_thread(until, lambda: all_are_in_step(sentinels), "replicas in step")
    deadlines = Deadlines()
    look_s = deadlines.command_s + deadlines.connect_s
    redis = connect(url(sentinels), connections_max=1, deadlines=deadlines, sentinel=OF_SENTINELS)
    keyspace = Keyspace("look", 1, b"sixteen bytes or more")
    assert await health(redis, keyspace, deadline_s=look_s) == "up"
    frozen = primary(sentinels)
    frozen.freeze()
    try:
        deadline = time.monotonic() + FAILOVER_S
        while await health(redis, keyspace, deadline_s=look_s) != "up":
            assert time.monotonic() < deadline, "the breaker would never close"
    finally:
        frozen.thaw()
        await redis.aclose()


async def test_a_killed_primary_is_followed_and_nothing_is_lost(sentinels: SentinelSet) -> None:
    await asyncio.to_thread(sentinels.wait_for_quorum, **AS_PEER)
    async with opened(url(sentinels), budget_s=FAILOVER_S) as store:
        ref = await store.created()
        await store.committed(ref, elements(2))
        turn, begun = await store.begun(ref)
        until(lambda: all_are_in_step(sentinels), "replicas in step")
        primary(sentinels).kill9()
        hasty = Store.of(store.redis, "test", budget_s=0.5)
        with pytest.raises(StoreUnavailable):
            await hasty.begin(ref, new_turn_id())
        assert await store.commit(ref, turn, begun.head, elements(3)) == Settled("committed", 2)
        assert (await store.turns.history(ref, 5)).elements == elements(2) + elements(3)
        assert isinstance(await store.begin(ref, new_turn_id()), Begun)
