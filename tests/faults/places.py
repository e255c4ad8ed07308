"""Stores of each topology to which the failure matrix does harm, and who of their servers it is done to.

    standalone  one server
    sentinel    a primary with one replica, and three Sentinels
    cluster     three primaries with a replica each

All keep an append-only file. The harm is done to one primary, `Place.primary`: whatever the tests say in a session said
by `Place.names` lives there. On a cluster there are others, whose sessions (`Place.elsewhere`) must go on meanwhile.
Nobody is promoted because a primary is away for some seconds: that a failover helps is shown by rows of its own.
"""

import asyncio
import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redis.crc import key_slot

from service.access import OPEN_PRINCIPAL
from storage.address import BUCKETS
from storage.keys import Keyspace, SessionRef
from tests.faults.stores import Topology
from tests.instruments.processes import SECRET
from tests.instruments.redis_servers import SERVICE, Cluster, SentinelSet, Server, until

PATIENCE_MS = 30_000
NAMESPACE = "baton"
APPEND_ONLY = ("--appendonly", "yes", "--appendfsync", "everysec")
# What tests may have set, and how it was.
_SETTINGS = {"maxmemory": "0", "min-replicas-to-write": "0", "appendfsync": "everysec"}


class Place(ABC):
    """One store.

    Attributes:
        topology: its kind.
        url: its address.
        servers: that hold data.
        keyspace: how sessions are named there.
    """

    topology: Topology
    url: str
    servers: list[Server]
    _sentinels: Sequence[Server] = ()

    def __init__(self) -> None:
        self.keyspace = Keyspace(NAMESPACE, BUCKETS[self.topology], SECRET.encode())

    @property
    def ports(self) -> Sequence[int]:
        """Of all servers, Sentinels too."""
        return [server.port for server in (*self._sentinels, *self.servers)]

    @abstractmethod
    def primary(self) -> Server:
        """Who is harmed; asks those who answer."""

    @abstractmethod
    def in_step(self) -> bool:
        """Whether all is as it should be: everybody has a role, and replicas have what their primaries have."""

    def is_here(self, key: str) -> bool:
        """Whether `primary` answers for a key."""
        return True

    def ref(self, name: str) -> SessionRef:
        """The session of this name."""
        return self.keyspace.session(self.keyspace.named(OPEN_PRINCIPAL, name), OPEN_PRINCIPAL)

    def names(self, prefix: str, *, here: bool = True) -> Iterator[str]:
        """Names of sessions that live where harm is done, or, if not ``here``, elsewhere."""
        names = (f"{prefix}-{number}" for number in itertools.count(1))
        return (name for name in names if self.is_here(self.ref(name).keys[0]) == here)

    def replica_of(self, primary: Server) -> Server:
        """Who follows it."""
        following = (b"slave", b"127.0.0.1", primary.port)
        return next(one for one in self.servers if one is not primary and tuple(one.command("ROLE")[:3]) == following)

    async def restart(self, server: Server, cut_to: Callable[[int], int] = lambda length: length) -> None:
        """Kills a server and starts it again, with what is left of its file; returns when it takes writes."""
        server.kill9()
        os.truncate(server.log_file, cut_to(server.log_file.stat().st_size))
        server.start()
        await self.settled()

    async def settled(self) -> None:
        """Waits until all is as it should be."""
        for server in self.servers:
            await asyncio.to_thread(server.answers)
        await asyncio.to_thread(until, self.in_step, "all in step")

    async def mended(self) -> None:
        """Makes everything as it was, whatever a test has done."""
        for server in (*self._sentinels, *self.servers):
            server.thaw()
        for server in self.servers:
            for name, value in _SETTINGS.items():
                server.command("CONFIG", "SET", name, value)
        await self.settled()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The whole store stands still meanwhile, Sentinels too: connections can be made and get no word."""
        everybody = (*self._sentinels, *self.servers)
        for server in everybody:
            server.freeze()
        try:
            yield
        finally:
            for server in everybody:
                server.thaw()


class _Standalone(Place):
    topology = "standalone"

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.servers = [server]
        self.url = f"redis://{server.address}/0"

    def primary(self) -> Server:
        return self.servers[0]

    def in_step(self) -> bool:
        return bool(self.servers[0].command("ROLE")[0] == b"master")


class SentinelPlace(Place):
    topology = "sentinel"

    def __init__(self, sentinels: SentinelSet) -> None:
        super().__init__()
        self.set = sentinels
        self.servers, self._sentinels = sentinels.servers, sentinels.sentinels
        self.url = sentinels.url

    def primary(self) -> Server:
        return self.set.primary()

    def in_step(self) -> bool:
        return self.set.in_step() and self.primary().command("ROLE")[0] == b"master"


class ClusterPlace(Place):
    topology = "cluster"

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self.cluster = cluster
        self.servers = cluster.nodes
        self.url = cluster.url
        # Where the namespace's record is, which replicas write to see how the store is.
        self._range = cluster.range_of(self.keyspace.config())

    def primary(self) -> Server:
        return self.cluster.primary_of(self.keyspace.config())

    def is_here(self, key: str) -> bool:
        return key_slot(key.encode()) in self._range

    def in_step(self) -> bool:
        return all(self.cluster.is_complete(node) for node in self.servers)


@contextmanager
def place(
    topology: Topology, directory: Path, patience_ms: int = PATIENCE_MS, env: Mapping[str, str] | None = None
) -> Iterator[Place]:
    """A store.

    Args:
        topology: its kind.
        directory: for its files.
        patience_ms: how long a primary may be away before another is promoted.
        env: of its servers.
    """
    match topology:
        case "standalone":
            server = Server("redis", directory, (*APPEND_ONLY, "--save", ""), env=env)
            try:
                server.answers()
                yield _Standalone(server)
            finally:
                server.close()
        case "sentinel":
            patient = f"sentinel down-after-milliseconds {SERVICE} {patience_ms}"
            with SentinelSet(directory, 1, APPEND_ONLY, (patient,), env=env) as sentinels:
                sentinels.wait_for_quorum()
                yield SentinelPlace(sentinels)
        case "cluster":
            options = (
                *APPEND_ONLY,
                *("--cluster-node-timeout", str(patience_ms), "--cluster-require-full-coverage", "no"),
            )
            with Cluster(directory, arguments=options, env=env) as cluster:
                yield ClusterPlace(cluster)


def now_ms(server: Server) -> int:
    """A server's clock."""
    seconds, micros = server.command("TIME")
    return int(seconds) * 1_000 + int(micros) // 1_000


def scripts_executed(server: Server) -> int:
    """How many a server has executed."""
    counted: Any = server.command("INFO", "commandstats")
    return int(counted.get("cmdstat_evalsha", {"calls": 0})["calls"])
