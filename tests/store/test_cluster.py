"""A cluster of several primaries: what changes under the client is followed, within seconds and without a restart."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from storage.connect import Deadlines, connect
from storage.index import Listed
from storage.keys import SessionRef, new_turn_id
from storage.results import Begun, Settled, StoreUnavailable
from storage.topology import ClusterTopology
from tests.instruments.ports import reserved_port
from tests.instruments.redis_servers import Cluster, Server, until
from tests.store.harness import OWNER, Store, elements

pytestmark = pytest.mark.anyio

BUCKETS = 64
NOT_OURS = ("info", "ping", "replconf", "psync", "publish")
_namespaces = itertools.count()
PATIENT = {"connect_s": 5.0}  # on a busy machine; what hangs must not cost as much
BUDGET_S = 5.0
LISTING_S = 30.0  # hundreds of calls at once share eight connections; their deadlines are not what is tested
FAILOVER_S = 15.0  # a node timeout of 1.5 s, an election, and a machine that does other things too


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """For tests that change it; the last one breaks it."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture
def primaries_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Nobody takes over here."""
    with Cluster(tmp_path_factory.mktemp("primaries"), replicas=0) as made:
        yield made


@asynccontextmanager
async def opened(
    url: str, *, connections_max: int = 8, budget_s: float = 5.0, **deadlines: float
) -> AsyncIterator[Store]:
    redis = connect(url, connections_max=connections_max, deadlines=Deadlines(**PATIENT | deadlines))
    try:
        yield Store.of(redis, f"test{next(_namespaces)}", buckets=BUCKETS, budget_s=budget_s)
    finally:
        await redis.aclose()


def with_budget(store: Store, budget_s: float) -> Store:
    return Store.of(store.redis, store.keyspace.namespace, buckets=BUCKETS, budget_s=budget_s)


async def of_every_primary(store: Store, cluster: Cluster) -> dict[Server, SessionRef]:
    """One session on each."""
    found: dict[Server, SessionRef] = {}
    while len(found) < 3:
        ref = await store.created()
        found.setdefault(cluster.primary_of(ref.keys[0]), ref)
    return found


async def test_a_killed_primary_that_nobody_replaces_is_told_and_its_return_is_noticed(primaries_only: Cluster) -> None:
    async with opened(primaries_only.url, budget_s=BUDGET_S) as store:
        sessions = await of_every_primary(store, primaries_only)
        killed, ref = sessions.popitem()
        primaries = await store.primaries()
        killed.kill9()
        for primary in primaries:  # or what is sent next goes out on a connection of which nobody knows that it is dead
            await primary.connection_pool.disconnect()
        with pytest.raises(StoreUnavailable) as caught:
            await store.begin(ref, "turn_" + "a" * 26)
        assert caught.value.outcome_unknown is False
        until(lambda: _state(next(iter(sessions))) == "fail", "the others to notice")
        started = time.monotonic()
        for other in sessions.values():  # these refuse, too: nobody is kept waiting for what may last
            with pytest.raises(StoreUnavailable, match="ClusterDownError") as caught:
                await store.begin(other, "turn_" + "a" * 26)
            assert caught.value.outcome_unknown is False
        assert time.monotonic() - started < 0.8 * BUDGET_S
        patient = with_budget(store, FAILOVER_S)
        turn, other = "turn_" + "b" * 26, next(iter(sessions.values()))
        settling = asyncio.create_task(patient.abort(other, turn))  # who has to know waits
        killed.start()
        assert await settling == Settled("aborted", 0)
        assert isinstance(await store.begin(other, new_turn_id()), Begun)


def _state(node: Server) -> str:
    return str(node.command("CLUSTER INFO")["cluster_state"])


async def test_dead_and_hanging_addresses_in_the_url_do_no_harm(cluster: Cluster) -> None:
    hanging, alive = cluster.nodes[5], cluster.nodes[1]
    hanging.freeze()
    with reserved_port() as dead:
        async with opened(f"redis+cluster://127.0.0.1:{dead},{hanging.address},{alive.address}") as store:
            started = time.monotonic()
            await store.created()
            assert time.monotonic() - started < 0.8 * PATIENT["connect_s"]
        async with opened(f"redis+cluster://127.0.0.1:{dead},{hanging.address}", connect_s=0.3) as store:
            started = time.monotonic()
            with pytest.raises(StoreUnavailable) as caught:
                await store.created()
            assert time.monotonic() - started < 0.8 * PATIENT["connect_s"]
            assert caught.value.outcome_unknown is False
    hanging.thaw()


class Moving:
    """A slot on its way from one primary to another, key by key as before Valkey 9."""

    def __init__(self, cluster: Cluster, key: str) -> None:
        self.source = cluster.primary_of(key)
        self.target = next(node for node in cluster.nodes[:3] if node is not self.source)
        self.heads = cluster.nodes[:3]
        self.slot = self.source.command("CLUSTER KEYSLOT", key)

    def begin(self) -> None:
        source, target = (node.command("CLUSTER MYID").decode() for node in (self.source, self.target))
        self.target.command("CLUSTER SETSLOT", self.slot, "IMPORTING", source)
        self.source.command("CLUSTER SETSLOT", self.slot, "MIGRATING", target)

    def keys(self) -> list[bytes]:
        return list(self.source.command("CLUSTER GETKEYSINSLOT", self.slot, 1000))

    def move(self, keys: list[bytes]) -> None:
        self.source.command("MIGRATE", "127.0.0.1", self.target.port, "", 0, 5000, "KEYS", *keys)

    def end(self) -> None:
        target = self.target.command("CLUSTER MYID").decode()
        for node in (self.target, *self.heads):
            node.command("CLUSTER SETSLOT", self.slot, "NODE", target)


async def test_a_slot_that_moves_key_by_key_is_waited_for_and_followed(cluster: Cluster) -> None:
    """A session that is partly here and partly there is refused on both sides: TRYAGAIN."""
    async with opened(cluster.url) as store:
        ref = await store.created()
        await store.committed(ref, elements(2))
        moving = Moving(cluster, ref.keys[0])
        moving.begin()
        moving.move(moving.keys()[:3])
        brief = with_budget(store, 0.5)
        with pytest.raises(StoreUnavailable) as caught:
            await brief.begin(ref, "turn_" + "a" * 26)
        assert caught.value.outcome_unknown is False
        beginning = asyncio.create_task(store.begun(ref))
        moving.move(moving.keys())
        assert (await store.turns.history(ref, 2)).elements == elements(2)  # by ASK, all keys there by now
        moving.end()
        turn, begun = await beginning
        assert await store.commit(ref, turn, begun.head, elements(1)) == Settled("committed", 2)
        assert len((await store.turns.ledger(ref)).records) == 2
        assert len(await store.index.page(OWNER, None, 10)) == 1


async def test_a_slot_that_moves_at_once_is_followed_without_a_failed_turn(cluster: Cluster) -> None:
    """Valkey 9 moves a slot whole."""
    async with opened(cluster.url) as store:
        ref = await store.created()
        moving = Moving(cluster, ref.keys[0])
        target = moving.target.command("CLUSTER MYID").decode()
        moving.source.command("CLUSTER MIGRATESLOTS", "SLOTSRANGE", moving.slot, moving.slot, "NODE", target)
        turns = 0
        while cluster.primary_of(ref.keys[0]) is not moving.target:
            await store.committed(ref, elements(2))
            turns += 1
        await store.committed(ref, elements(2))
        assert len((await store.turns.history(ref, 1_000)).elements) == 2 * (turns + 1)


async def test_slots_of_one_pipeline_that_have_moved_are_asked_elsewhere(cluster: Cluster) -> None:
    """Reads of many buckets at once, of which one is not where it was."""
    async with opened(cluster.url) as store:
        refs = [await store.created() for _ in range(100)]
        moving = Moving(cluster, refs[0].keys[0])
        moving.begin()
        moving.move(moving.keys())
        assert sorted(one.session_id for one in await store.index.page(OWNER, None, 100)) == sorted(r.id for r in refs)
        moving.end()
        assert sorted(one.session_id for one in await store.index.page(OWNER, None, 100)) == sorted(r.id for r in refs)
        assert (await store.index.counts(OWNER)).total == 100


async def test_more_calls_than_connections_wait_for_their_turn(six_nodes: Cluster) -> None:
    redis: Any = connect(six_nodes.url, connections_max=2, deadlines=Deadlines())
    store = Store.of(redis, "pooled", buckets=BUCKETS)
    refs = [await store.created() for _ in range(10)]
    snapshots = await asyncio.gather(*(store.sessions.get(refs[n % 10]) for n in range(200)))
    assert len(snapshots) == 200
    connected = [int(node.command("INFO", "clients")["connected_clients"]) for node in six_nodes.nodes]
    assert redis.topology is not None and max(connected) > 0
    for primary in await redis.primaries():
        pool = primary.connection_pool
        assert len(pool._available_connections) + len(pool._in_use_connections) <= 2
    await redis.aclose()


async def test_a_full_pool_is_not_taken_for_a_dead_server(six_nodes: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    redis: Any = connect(six_nodes.url, connections_max=2, deadlines=Deadlines(pool_wait_s=0.1))
    store = Store.of(redis, "pooled", buckets=BUCKETS)
    ref = await store.created()
    lookups = []
    monkeypatch.setattr(ClusterTopology, "_look_up", lambda _: lookups.append(1))
    pools = [primary.connection_pool for primary in await redis.primaries()]
    taken = [(pool, await pool.get_connection()) for pool in pools for _ in range(2)]
    with pytest.raises(StoreUnavailable) as caught:
        await store.begin(ref, "turn_" + "a" * 26)
    assert caught.value.outcome_unknown is False
    for pool, connection in taken:
        await pool.release(connection)
    assert isinstance(await store.begin(ref, "turn_" + "a" * 26), Begun)
    assert lookups == []
    await redis.aclose()


# What lists and stats cost


async def commands(store: Store) -> int:
    """How many the primaries have executed in all, but for what is asked here and what replicas do by themselves."""
    total = 0
    for primary in await store.primaries():
        stats = await primary.info("commandstats")
        total += sum(row["calls"] for name, row in stats.items() if name.removeprefix("cmdstat_") not in NOT_OURS)
    return total


async def test_a_page_and_the_stats_cost_a_few_commands_a_bucket_however_much_is_stored(six_nodes: Cluster) -> None:
    async with opened(six_nodes.url, budget_s=LISTING_S, pool_wait_s=LISTING_S) as store:
        refs = [await store.created() for _ in range(400)]
        before = await commands(store)
        page = await store.index.page(OWNER, None, 100)
        assert await commands(store) - before <= 2 * BUCKETS
        before = await commands(store)
        await store.index.counts(OWNER)
        assert await commands(store) - before <= 4 * BUCKETS + 1
        before = await commands(store)
        snapshots = await store.sessions.snapshots([store.keyspace.session(one.session_id, OWNER) for one in page])
        assert await commands(store) - before <= 4 * 100 + 1
        assert None not in snapshots
        assert len(refs) == 400


@pytest.mark.parametrize("limit", [1, 7, 50, 100])
async def test_pages_merge_all_buckets_in_order(six_nodes: Cluster, limit: int) -> None:
    """Sessions of equal times among them, and one bucket that has far more than its share."""
    async with opened(six_nodes.url, budget_s=LISTING_S, pool_wait_s=LISTING_S) as store:
        crowded = [store.keyspace.session("sess_2a" + store.keyspace.issue()[7:], OWNER) for _ in range(120)]
        spread = [store.ref() for _ in range(60)]
        await asyncio.gather(*(store.create(ref) for ref in crowded + spread))
        everything = await store.index.page(OWNER, None, 1_000)
        assert sorted(one.session_id for one in everything) == sorted(ref.id for ref in crowded + spread)
        assert everything == sorted(everything, reverse=True)
        paged: list[Listed] = []
        last = None
        while page := await store.index.page(OWNER, last, limit):
            assert len(page) == min(limit, len(everything) - len(paged))
            paged += page
            last = page[-1]
        assert paged == everything


async def test_caps_hold_over_all_buckets(six_nodes: Cluster) -> None:
    async with opened(six_nodes.url) as opened_store:
        store = Store.of(opened_store.redis, "caps", buckets=BUCKETS, per_owner_max=20)
        for _ in range(50):
            # What another replica has created is counted anew each second: here nobody waits that long.
            store.capacity._sums.clear()
            await store.created()
        assert (await store.index.counts(OWNER)).total == 20
        assert store.ends == ["evicted"] * 30


# The end of the cluster


async def test_a_primary_that_hangs_is_noticed_also_by_who_only_lists(cluster: Cluster) -> None:
    async with opened(cluster.url, command_s=0.3) as store:
        refs = [await store.created() for _ in range(20)]
        hanging = cluster.primary_of(refs[0].keys[0])
        until(lambda: _replica_is_in_step(hanging), "the replica of what hangs")
        hanging.freeze()
        deadline = time.monotonic() + FAILOVER_S
        page: list[Listed] = []
        while not page and time.monotonic() < deadline:
            with contextlib.suppress(StoreUnavailable):
                page = await store.index.page(OWNER, None, 100)
        hanging.thaw()
        assert sorted(one.session_id for one in page) == sorted(ref.id for ref in refs)


async def test_a_killed_primary_is_followed_and_nothing_is_lost(cluster: Cluster) -> None:
    async with opened(cluster.url, budget_s=FAILOVER_S) as store:
        sessions = await of_every_primary(store, cluster)
        for ref in sessions.values():
            await store.committed(ref, elements(2))
        killed, ref = sessions.popitem()
        turn, begun = await store.begun(ref)
        until(lambda: _replica_is_in_step(killed), "the replica of what is killed")
        killed.kill9()
        for other in sessions.values():  # their primaries live: nobody waits for the look-up
            started = time.monotonic()
            await store.committed(other, elements(1))
            assert time.monotonic() - started < 0.8 * PATIENT["connect_s"]
        assert await store.commit(ref, turn, begun.head, elements(3)) == Settled("committed", 2)
        assert (await store.turns.history(ref, 5)).elements == elements(2) + elements(3)
        counts = await store.index.counts(OWNER)
        assert (counts.total, counts.messages) == (len(await store.index.page(OWNER, None, 100)), 3 * 2 + 2 + 3)


def _replica_is_in_step(primary: Server) -> bool:
    """Whether a replica has all that the primary was told."""
    _, offset, replicas = primary.command("ROLE")
    return any(int(replica[2]) == int(offset) for replica in replicas)
