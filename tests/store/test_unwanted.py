"""What nobody wants any more when it could be sent is not sent, wherever it had to wait.

A client library that has waited long enough hangs up and sends its request again. Would the begin of the first attempt
still be sent then, behind that of the second, the store would take it for a request of its own: the question would be
asked, answered and stored twice.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from storage.connect import Deadlines, connect
from storage.keys import new_turn_id
from storage.results import Begun, StoreUnavailable
from tests.instruments.redis_servers import Cluster
from tests.store.harness import Store

pytestmark = pytest.mark.anyio

BUCKETS = 64


class Caller:
    """Wants it the first ``times`` that it is asked, or until it leaves; it is asked twice for what is sent once."""

    def __init__(self, times: int = 1_000) -> None:
        self._times = times

    def __call__(self) -> bool:
        self._times -= 1
        return self._times >= 0

    def leaves(self) -> None:
        self._times = 0


@contextmanager
def standing_still(cluster: Cluster) -> Iterator[None]:
    """Every node, for less than it takes any of them to mind."""
    for node in cluster.nodes:
        node.freeze()
    try:
        yield
    finally:
        for node in cluster.nodes:
            node.thaw()


async def clustered(cluster: Cluster, name: str) -> Store:
    redis = connect(cluster.url, connections_max=2, deadlines=Deadlines(connect_s=5.0))
    return Store.of(redis, name, buckets=BUCKETS)


async def test_a_begin_is_not_sent_if_its_caller_left_while_the_primary_was_looked_up(six_nodes: Cluster) -> None:
    store, caller = await clustered(six_nodes, "lookup"), Caller()
    ref = await store.created()
    topology = store.redis.topology
    with standing_still(six_nodes):
        topology.doubt(await topology.primary(0))
        for primary in await store.primaries():
            topology.doubt(primary)
        beginning = asyncio.create_task(store.begin(ref, new_turn_id(), wanted=caller))
        waiting = asyncio.create_task(store.begin(ref, new_turn_id()))  # for the same look-up
        await asyncio.sleep(0.05)
        assert not beginning.done()
        caller.leaves()
    with pytest.raises(StoreUnavailable, match="Unwanted") as caught:
        await beginning
    assert caught.value.outcome_unknown is False
    assert isinstance(await waiting, Begun)
    assert await store.turns.count(ref) == 1
    await store.redis.aclose()


async def test_a_begin_is_not_sent_on_to_where_its_slot_has_moved(six_nodes: Cluster) -> None:
    store = await clustered(six_nodes, "moved")
    ref = await store.created()
    topology = store.redis.topology
    slot = next(iter(six_nodes.nodes)).command("CLUSTER KEYSLOT", ref.keys[0])
    home = await topology.primary(slot)
    other = next(one for one in await store.primaries() if one is not home)
    topology.moved(slot, *(other.connection_pool.connection_kwargs[name] for name in ("host", "port")))
    for primary in await store.primaries():
        await primary.ping()  # making a connection asks, too
    caller = Caller(times=2)
    with pytest.raises(StoreUnavailable, match="Unwanted") as caught:
        await store.begin(ref, new_turn_id(), wanted=caller)
    assert caught.value.outcome_unknown is False
    assert await store.turns.count(ref) == 0
    await store.redis.aclose()


@pytest.fixture
def few(valkey_url: str) -> Callable[[str], Store]:
    def made(name: str) -> Store:
        return Store.of(connect(valkey_url, connections_max=1, deadlines=Deadlines()), name)

    return made


async def test_a_begin_is_not_sent_if_its_caller_left_while_it_waited_for_a_connection(
    few: Callable[[str], Store],
) -> None:
    store, caller = few("pool"), Caller()
    ref = await store.created()
    pool = store.redis.connection_pool
    taken = await pool.get_connection()
    beginning = asyncio.create_task(store.begin(ref, new_turn_id(), wanted=caller))
    await asyncio.sleep(0.05)
    caller.leaves()
    await pool.release(taken)
    with pytest.raises(StoreUnavailable, match="Unwanted") as caught:
        await beginning
    assert caught.value.outcome_unknown is False
    assert await store.turns.count(ref) == 0  # and the connection has come back
    await store.redis.aclose()


async def test_a_begin_is_not_sent_if_its_caller_left_just_before_the_first_byte(few: Callable[[str], Store]) -> None:
    """The connection is there, and the task that writes has not run yet."""
    store = few("byte")
    ref = await store.created()
    with pytest.raises(StoreUnavailable, match="Unwanted") as caught:
        await store.begin(ref, new_turn_id(), wanted=Caller(times=1))
    assert caught.value.outcome_unknown is False
    assert await store.turns.count(ref) == 0
    await store.redis.aclose()


async def test_a_begin_is_not_sent_again_with_its_source(few: Callable[[str], Store]) -> None:
    """A server that was restarted, or has become the primary, does not know the script."""
    store = few("source")
    ref = await store.created()
    await store.redis.script_flush()
    with pytest.raises(StoreUnavailable, match="Unwanted") as caught:
        await store.begin(ref, new_turn_id(), wanted=Caller(times=2))
    assert caught.value.outcome_unknown is False
    assert await store.turns.count(ref) == 0
    await store.redis.aclose()
