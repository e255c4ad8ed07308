"""A primary of a cluster that stands still or is gone, and that nobody replaces: the sessions of the others go on."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
from redis.crc import key_slot
from redis.exceptions import TimeoutError as RedisTimeoutError

from storage.connect import Deadlines, connect
from storage.first_contact import first_contact
from storage.health import Health, health
from storage.keys import SessionRef, new_turn_id
from storage.results import Begun, StoreUnavailable
from storage.sessions import Snapshot
from tests.instruments.proxy import BLACK_HOLE, FINE
from tests.instruments.redis_servers import Cluster, Server, until
from tests.instruments.stall import RedisStall
from tests.store.harness import OWNER, Store

pytestmark = pytest.mark.anyio

BUCKETS = 64
COMMAND_S = 1.0
PINGED_S = 0.3
A_MOMENT_S = 0.2
AT_ONCE_S = 0.7  # a look-up or two that wait a tenth of a second for who has not answered, on a busy machine


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Without replicas; who lives goes on without the others, and nobody minds one that stands still for seconds."""
    settings = ("--cluster-require-full-coverage", "no", "--cluster-node-timeout", "30000")
    with Cluster(tmp_path_factory.mktemp("shards"), replicas=0, arguments=settings) as made:
        yield made


async def until_up(look: Callable[[], Awaitable[Health]]) -> None:
    give_up = time.monotonic() + 3.0
    while await look() != "up":
        assert time.monotonic() < give_up
        await asyncio.sleep(0.05)


async def until_silent(store: Store) -> None:
    give_up = time.monotonic() + 3.0
    while not store.redis._silent:
        assert time.monotonic() < give_up
        await asyncio.sleep(0.005)


@asynccontextmanager
async def opened(cluster: Cluster, name: str) -> AsyncIterator[Store]:
    async with opened_at(cluster.url, name) as store:
        yield store


@asynccontextmanager
async def opened_at(url: str, name: str) -> AsyncIterator[Store]:
    redis = connect(url, connections_max=4, deadlines=Deadlines(command_s=COMMAND_S))
    try:
        yield Store.of(redis, name, buckets=BUCKETS, budget_s=2.0)
    finally:
        await redis.aclose()


async def of_every_primary(store: Store, cluster: Cluster) -> dict[Server, SessionRef]:
    found: dict[Server, SessionRef] = {}
    while len(found) < 3:
        ref = await store.created()
        found.setdefault(cluster.primary_of(ref.keys[0]), ref)
    return found


async def refused(beginning: object) -> float:
    """How long it took to be refused, for sure."""
    started = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        await beginning  # type: ignore[misc]
    assert caught.value.outcome_unknown is False
    return time.monotonic() - started


async def test_a_shard_that_stands_still_is_refused_at_once_and_the_others_go_on(cluster: Cluster) -> None:
    async with opened(cluster, "frozen") as store:
        sessions = await of_every_primary(store, cluster)
        frozen, ref = sessions.popitem()
        frozen.freeze()
        try:
            with pytest.raises(StoreUnavailable) as caught:  # it waits: nobody knew
                await store.begin(ref, new_turn_id())
            assert caught.value.outcome_unknown is True
            for _ in range(3):
                assert await refused(store.begin(ref, new_turn_id())) < AT_ONCE_S
            for other in sessions.values():
                assert isinstance(await store.begin(other, new_turn_id()), Begun)
            # What needs all of them is refused, too.
            assert await refused(store.index.page(OWNER, None, 10)) < AT_ONCE_S
            assert await refused(store.index.counts(OWNER)) < AT_ONCE_S
            store.capacity._sums.clear()
            assert await refused(store.create(store.ref())) < AT_ONCE_S
        finally:
            frozen.thaw()
        await asyncio.sleep(0.2)
        assert isinstance(await store.begin(ref, new_turn_id(), lease_ms=1), Begun)


async def test_who_hears_of_all_primaries_refuses_nobody_for_what_was(cluster: Cluster) -> None:
    """A call that waited in vain, and the PING after it, were swallowed; meanwhile others are answered."""
    async with (
        RedisStall(*(node.port for node in cluster.nodes)) as line,
        opened_at(line.url_through(cluster.url), "hole") as store,
        opened(cluster, "hole") as beside,
    ):
        ref = await store.created()
        line.weather = BLACK_HOLE
        for _ in range(2):  # it is told, and the PING is on its way
            with pytest.raises(StoreUnavailable):
                await store.begin(ref, new_turn_id())
        await asyncio.sleep(PINGED_S)
        line.weather = FINE
        (silent,) = store.redis._silent
        swallowed_at = time.monotonic()
        assert await health(beside.redis, store.keyspace, deadline_s=3.0, others=[store.redis]) == "up"
        assert isinstance(await store.begin(ref, new_turn_id(), lease_ms=1), Begun)
        store.redis.note(silent, RedisTimeoutError(), swallowed_at)
        assert store.redis._silent == {}, "a call that is older than what was heard since says nothing"
        store.redis.note(silent, RedisTimeoutError(), time.monotonic())
        assert set(store.redis._silent) == {silent}


async def test_nobody_is_refused_before_the_first_ping_had_time_to_be_answered(cluster: Cluster) -> None:
    """One connection led nowhere, and so a call waited in vain; the node itself is there, and a moment away."""
    async with (
        RedisStall(*(node.port for node in cluster.nodes)) as line,
        opened_at(line.url_through(cluster.url), "nowhere") as store,
    ):
        ref = await store.created()
        store.redis.topology.doubt = lambda node: None  # or a look-up may hear from it
        line.forget()
        ping = line.arm(lambda argv: argv[0] == b"PING")
        waits_in_vain = asyncio.create_task(store.begin(ref, new_turn_id()))
        await until_silent(store)
        asked = asyncio.create_task(store.sessions.get(ref))
        await ping.reached()
        await asyncio.sleep(A_MOMENT_S)
        assert not asked.done()
        ping.release()
        assert isinstance(await asked, Snapshot)
        assert store.redis._silent == {}
        assert isinstance(await waits_in_vain, Begun)


async def test_a_silent_node_is_silent_no_more_with_any_answer(cluster: Cluster) -> None:
    """Its PING may wait for a connection itself, or have been swallowed."""
    async with (
        RedisStall(*(node.port for node in cluster.nodes)) as line,
        opened_at(line.url_through(cluster.url), "heard") as store,
    ):
        ref = await store.created()
        node = await store.redis.primary(key_slot(ref.keys[0].encode()))
        slow = line.arm(lambda argv: argv[0] == b"EVALSHA", at="reply")
        answered_late = asyncio.create_task(store.sessions.get(ref))
        await slow.reached()
        ping = line.arm(lambda argv: argv[0] == b"PING")
        store.redis.note(node, RedisTimeoutError(), time.monotonic())
        await ping.reached()
        slow.release()
        await answered_late
        assert isinstance(await store.begin(ref, new_turn_id(), lease_ms=1), Begun)
        assert store.redis._silent == {}


async def test_one_primary_that_takes_no_writes_or_stands_still_is_told(cluster: Cluster) -> None:
    """Whichever it is; not only the one with the namespace's record."""
    async with opened(cluster, "told") as store:

        async def told(wanted: Health) -> None:
            found = await health(store.redis, store.keyspace, deadline_s=3.0)
            assert found == wanted

        await told("up")
        for node in cluster.nodes:
            for name, value, as_it_was in (("maxmemory", "1", "0"), ("min-replicas-to-write", "1", "0")):
                node.command("CONFIG", "SET", name, value)
                await told("refusing")
                node.command("CONFIG", "SET", name, as_it_was)
                await told("up")
        cluster.nodes[-1].freeze()
        try:
            await told("refusing")
        finally:
            cluster.nodes[-1].thaw()
        await until_up(lambda: health(store.redis, store.keyspace, deadline_s=3.0))


async def test_the_clock_is_read_elsewhere_if_its_primary_stands_still(cluster: Cluster) -> None:
    async with opened(cluster, "clock") as store:
        await store.now_ms()
        frozen = cluster.nodes[0]  # slot 0 is its
        frozen.freeze()
        try:
            await store.now_ms()
            started = time.monotonic()
            await store.now_ms()
            assert time.monotonic() - started < AT_ONCE_S
        finally:
            frozen.thaw()


async def test_who_starts_while_a_shard_is_away_serves_the_others(cluster: Cluster) -> None:
    async with opened(cluster, "start") as store:
        sessions = await of_every_primary(store, cluster)
        home = cluster.primary_of(store.keyspace.config())
        frozen = next(one for one in sessions if one is not home)
    frozen.freeze()
    try:
        async with opened(cluster, "start") as store:
            warnings = await first_contact(store.redis, store.keyspace, eviction_allowed=False, deadline_s=3.0)
            assert [one for one in warnings if f"{frozen.address} does not answer" in one]
            for primary, ref in sessions.items():
                if primary is not frozen:
                    assert isinstance(await store.begin(ref, new_turn_id()), Begun)
    finally:
        frozen.thaw()


async def test_what_waited_in_vain_for_a_connection_or_a_look_up_was_not_sent(cluster: Cluster) -> None:
    async with opened(cluster, "unsent") as store:
        ref = await store.created()
        brief = Store.of(store.redis, "unsent", buckets=BUCKETS, budget_s=0.2)
        topology = store.redis.topology
        pools = [primary.connection_pool for primary in await store.primaries()]
        taken = [(pool, await pool.get_connection()) for pool in pools for _ in range(4)]
        assert await refused(brief.begin(ref, new_turn_id())) < 1.0
        for pool, connection in taken:
            await pool.release(connection)
        for node in cluster.nodes:
            node.freeze()
        try:
            for primary in await store.primaries():
                topology.doubt(primary)
            assert await refused(brief.begin(ref, new_turn_id())) < 1.0
        finally:
            for node in cluster.nodes:
                node.thaw()


async def test_nodes_that_do_not_know_their_address_and_those_that_are_no_primaries_any_more(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """MOVED names no host then: it is the one that was asked at."""
    # Nobody is replaced but by the failover below, however long a busy machine lets somebody wait.
    settings = ("--cluster-preferred-endpoint-type", "unknown-endpoint", "--cluster-node-timeout", "30000")
    with Cluster(tmp_path_factory.mktemp("nameless"), primaries=2, arguments=settings) as cluster:
        given = cluster.nodes[0]
        redis = connect(f"redis+cluster://{given.address}", connections_max=4, deadlines=Deadlines(connect_s=5.0))
        store = Store.of(redis, "nameless", buckets=BUCKETS)
        refs = [await store.created() for _ in range(40)]
        key, ref = next((one.keys[0], one) for one in refs if cluster.primary_of(one.keys[0]) is not given)
        old, slot = cluster.primary_of(key), given.command("CLUSTER KEYSLOT", key)
        topology = store.redis.topology
        topology._slots[slot] = topology.node("127.0.0.1", given.port)
        assert isinstance(await store.begin(ref, new_turn_id()), Begun)  # by MOVED, before any look-up
        assert ("", old.port) not in topology._nodes
        successor = next(one for one in cluster.nodes if ("replica", old.port) == _follows(one))
        cluster.failover(successor)
        until(lambda: cluster.primary_of(key) is successor, "the failover known")
        for primary in await store.primaries():
            topology.doubt(primary)
        await store.primaries()
        assert set(topology._nodes) == {("127.0.0.1", given.port), ("127.0.0.1", successor.port)}
        await redis.aclose()


def _follows(node: Server) -> tuple[str, int]:
    role = node.command("ROLE")
    return ("replica", int(role[2])) if role[0] == b"slave" else ("primary", 0)
