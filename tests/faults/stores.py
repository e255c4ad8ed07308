"""Stores that a storm can blow over, each with what may be done to it that must lose nothing.

    standalone  one server, which only loses replies
    sentinel    a primary with two replicas, one of which must be in sync, and three Sentinels: coordinated failovers
    cluster     three primaries with a replica each: failovers that a replica is asked for, and slots that move whole

Nobody is promoted because he stood still for a moment, as anybody may on a busy machine: such a failover may lose what
was acknowledged, and is no part of this (see test_lossy_failover.py).
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

from tests.instruments.redis_servers import SERVICE, Cluster, SentinelSet, Server, until

Topology = Literal["standalone", "sentinel", "cluster"]
TOPOLOGIES: tuple[Topology, ...] = get_args(Topology)
_DOWN_AFTER_MS = 30_000


class Upsets(ABC):
    """What can be done to a store while it is used.

    Attributes:
        url: of the store.
        kinds: of upsets there are: ``failovers``, ``migrations``.
    """

    url: str
    kinds: tuple[str, ...]

    @abstractmethod
    def upset(self, kind: str, chance: random.Random, keys: Sequence[str]) -> None:
        """Does it, and returns when the store has come to rest. ``keys`` live in slots that are used."""

    @abstractmethod
    def primaries(self) -> list[Server]:
        """Those that there are now."""

    def cut(self, chance: random.Random) -> None:
        """Closes the clients' connections to one primary: requests and replies that are on their way are lost."""
        chance.choice(self.primaries()).command("CLIENT KILL", "TYPE", "NORMAL")


class _SentinelUpsets(Upsets):
    kinds = ("failovers",)

    def __init__(self, sentinels: SentinelSet) -> None:
        self._set = sentinels
        self.url = sentinels.url

    def upset(self, kind: str, chance: random.Random, keys: Sequence[str]) -> None:
        before = self._set.primary()
        self._set.failover()
        until(lambda: self._set.primary() is not before and self._set.in_step(), "another primary, and all in step")

    def primaries(self) -> list[Server]:
        return [self._set.primary()]


class _ClusterUpsets(Upsets):
    kinds = ("failovers", "migrations")

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.url = cluster.url

    def upset(self, kind: str, chance: random.Random, keys: Sequence[str]) -> None:
        primaries = self.primaries()
        if kind == "failovers":
            self._cluster.failover(chance.choice([node for node in self._cluster.nodes if node not in primaries]))
        else:
            key = chance.choice(keys)
            source = self._cluster.primary_of(key)
            self._cluster.migrate(key, chance.choice([node for node in primaries if node is not source]))

    def primaries(self) -> list[Server]:
        return self._cluster.primaries()


@contextmanager
def upsets(topology: Topology, directory: Path) -> Iterator[Upsets | None]:
    """A store of this kind; None for the one that every fleet has, behind proxies that lose replies."""
    match topology:
        case "standalone":
            yield None
        case "sentinel":
            patient = f"sentinel down-after-milliseconds {SERVICE} {_DOWN_AFTER_MS}"
            with SentinelSet(directory, 2, ("--min-replicas-to-write", "1"), (patient,)) as sentinels:
                sentinels.wait_for_quorum()
                yield _SentinelUpsets(sentinels)
        case "cluster":
            with Cluster(directory, arguments=("--cluster-node-timeout", str(_DOWN_AFTER_MS))) as cluster:
                yield _ClusterUpsets(cluster)
