"""Who the primaries are: whose word counts, who waits for a look-up, and how often one is made."""

import asyncio
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError

from storage.failures import Unreached
from storage.topology import ClusterTopology, Host, SentinelTopology

pytestmark = pytest.mark.leaping

A, B, C = ("a", 1), ("b", 2), ("c", 3)
DEADLINE_S = 1.0


class Node:
    """One that is asked: it answers, fails, or never does either."""

    def __init__(self, host: Host, answer: Any = None) -> None:
        self.host = host
        self.answer = answer
        self.asked = 0
        self.closed_idle = 0
        self.connection_pool = self

    async def execute_command(self, *_: str) -> Any:
        self.asked += 1
        if self.answer is None:
            await asyncio.Event().wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def disconnect(self, *, inuse_connections: bool) -> None:
        assert not inuse_connections, "calls may still be on them"
        self.closed_idle += 1


def table(*owners: tuple[int, int, Host]) -> list[Any]:
    """As CLUSTER SLOTS tells it."""
    return [[first, last, [host.encode(), port, b"id", []]] for first, last, (host, port) in owners]


HALVES = table((0, 8191, A), (8192, 16383, B))
FAILED_OVER = table((0, 8191, C), (8192, 16383, B))


class Cluster:
    """A topology over nodes that are made up."""

    def __init__(self, given: list[Host], **answers: Any) -> None:
        self.nodes = {host: Node(host, answers.get(host[0])) for host in (A, B, C)}
        self.topology = ClusterTopology(given, open_node=self._open, deadline_s=DEADLINE_S)

    def _open(self, host: Host) -> Any:
        return self.nodes.setdefault(host, Node(host))

    async def primary(self, slot: int) -> Host:
        node: Any = await self.topology.primary(slot)
        found: Host = node.host
        return found

    def asked(self) -> list[int]:
        return [node.asked for node in self.nodes.values()]


async def test_one_address_is_enough_and_all_are_learned() -> None:
    cluster = Cluster([A], a=HALVES)
    assert [await cluster.primary(slot) for slot in (0, 8191, 8192, 16383)] == [A, A, B, B]
    assert cluster.asked() == [1, 0, 0]
    nodes: Any = await cluster.topology.primaries()
    assert [node.host for node in nodes] == [A, B]


async def test_most_nodes_are_believed_and_the_rest_is_not_waited_for() -> None:
    cluster = Cluster([A, B, C], a=HALVES, b=FAILED_OVER, c=FAILED_OVER)
    assert await cluster.primary(0) == C
    hanging = Cluster([A, B, C], b=FAILED_OVER, c=RedisConnectionError("no"))
    started = asyncio.get_running_loop().time()
    assert await hanging.primary(0) == C
    assert asyncio.get_running_loop().time() - started < 0.5 * DEADLINE_S


async def test_a_node_that_was_not_told_of_the_cluster_yet_is_not_believed() -> None:
    cluster = Cluster([A, B, C], a=[], b=[], c=HALVES)
    assert await cluster.primary(0) == A


async def test_nobody_answers() -> None:
    cluster = Cluster([A, B], a=RedisConnectionError("refused"))
    started = asyncio.get_running_loop().time()
    with pytest.raises(Unreached, match="No node of the cluster tells its slots: refused"):
        await cluster.primary(0)
    assert asyncio.get_running_loop().time() - started == pytest.approx(DEADLINE_S, abs=0.1)
    with pytest.raises(NoPermissionError):
        await Cluster([A], a=NoPermissionError("no right")).primary(0)


async def test_a_slot_without_a_node_is_asked_for_again() -> None:
    cluster = Cluster([A], a=table((0, 99, A)))
    assert await cluster.primary(99) == A
    with pytest.raises(Unreached, match="slot 100"):
        await cluster.primary(100)
    cluster.nodes[A].answer = HALVES
    assert await cluster.primary(100) == A


async def test_a_doubt_is_looked_into_by_one_and_bothers_no_other_primary() -> None:
    cluster = Cluster([A, B], a=HALVES, b=HALVES)
    old: Any = await cluster.topology.primary(0)
    for node in cluster.nodes.values():
        node.asked = 0
    cluster.nodes[A].answer = None  # it hangs
    cluster.nodes[B].answer = None
    cluster.topology.doubt(old)
    waiting = [asyncio.create_task(cluster.primary(0)) for _ in range(5)]
    await asyncio.sleep(0.2)
    assert await cluster.primary(16383) == B, "known, and not in doubt"
    assert cluster.asked() == [1, 1, 0]
    assert await asyncio.gather(*waiting) == [A] * 5, "nobody could tell: the last one known"
    assert cluster.asked() == [1, 1, 0], "one look-up served all, though it failed"
    cluster.nodes[B].answer = FAILED_OVER
    assert await cluster.primary(0) == C
    assert old.closed_idle >= 1


async def test_a_doubt_about_who_is_no_primary_any_more_asks_nobody() -> None:
    cluster = Cluster([A, B], a=HALVES, b=FAILED_OVER)
    cluster.nodes[C].answer = FAILED_OVER
    cluster.nodes[A].answer = FAILED_OVER
    old = cluster.topology.node(*A)
    assert await cluster.primary(0) == C
    asked = cluster.asked()
    cluster.topology.doubt(old)
    assert await cluster.primary(0) == C
    assert cluster.asked() == asked


async def test_look_ups_are_twenty_a_second_at_most() -> None:
    cluster = Cluster([A], a=HALVES)
    started = asyncio.get_running_loop().time()
    for _ in range(20):
        cluster.topology.doubt(await cluster.topology.primary(0))
    assert asyncio.get_running_loop().time() - started >= 19 * 0.05 - 0.001


async def test_a_slot_that_has_moved_is_there_at_once() -> None:
    cluster = Cluster([A], a=HALVES)
    assert await cluster.primary(5) == A
    cluster.topology.moved(5, *C)
    assert [await cluster.primary(slot) for slot in (4, 5, 6)] == [A, C, A]
    assert cluster.asked() == [1, 0, 0]


@pytest.mark.parametrize("name", [None, b"", b"?"])
async def test_a_node_that_does_not_know_its_name_is_where_it_was_asked(name: bytes | None) -> None:
    cluster = Cluster([A], a=[[0, 16383, [name, 7, b"id", []]]])
    assert await cluster.primary(0) == ("a", 7)


def sentinels(**answers: Any) -> tuple[SentinelTopology, dict[Host, Node]]:
    """A topology of three Sentinels that are made up."""
    made = {host: Node(host, answers.get(host[0])) for host in (A, B, C)}
    opened: Any = made.__getitem__
    data: Any = Node
    return SentinelTopology([A, B, C], "s", open_sentinel=opened, open_node=data, deadline_s=DEADLINE_S), made


def names(port: int, epoch: int) -> dict[str, Any]:
    """As SENTINEL MASTER tells it."""
    return {"ip": "data", "port": str(port), "config-epoch": str(epoch)}


async def test_the_sentinel_that_knows_of_the_latest_failover_is_believed() -> None:
    topology, asked = sentinels(a=names(1, 4), b=names(2, 11), c=names(1, 4))
    node: Any = await topology.primary(77)
    assert node.host == ("data", 2)
    assert [one.asked for one in asked.values()] == [1, 1, 1]


async def test_sentinels_that_hang_or_know_nothing_are_done_without() -> None:
    topology, _ = sentinels(b=RedisConnectionError("refused"), c=names(1, 4))
    started = asyncio.get_running_loop().time()
    node: Any = await topology.primary(0)
    assert node.host == ("data", 1)
    assert asyncio.get_running_loop().time() - started < 0.5 * DEADLINE_S
