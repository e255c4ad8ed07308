"""The servers that the store's suite runs on.

fakeredis     plumbing only: it cannot load the first line of the scripts, which is taken off here and nowhere else,
              and it vouches for nothing that Lua does
valkey        a real server
cluster       one node that owns all slots: the scripts' first line makes it refuse keys of two slots
sixteen       the real server again, with sessions spread over sixteen buckets
six           a cluster of three primaries with a replica each, and 64 buckets; elsewhere there is one
redis         the Redis of this machine, where `redis-server` is on the path (test_connect.py tells if it is not)

Servers last for the whole run; every test has a namespace of its own.
"""

import itertools
from collections.abc import AsyncIterator, Iterator
from hashlib import sha1
from pathlib import Path
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis, FakeServer

from storage.embedded import EmbeddedValkey
from storage.scripts import SCRIPTS, Script
from tests.instruments.ports import reserved_port
from tests.instruments.redis_servers import Cluster, Server, redis_server
from tests.store.harness import Store, real_redis

ON_SIX_NODES_ALWAYS = ("test_turn_store.py", "test_capacity.py")
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
    with Cluster(tmp_path_factory.mktemp("cluster"), primaries=1, replicas=0) as cluster:
        yield f"redis://{cluster.nodes[0].address}/0"


@pytest.fixture(scope="session")
def six_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three primaries with a replica each; for tests that do them no harm."""
    with Cluster(tmp_path_factory.mktemp("six")) as cluster:
        yield cluster


def _without_first_line(script: Script) -> Script:
    source = script.source.partition("\n")[2]
    return Script(script.verb, source, sha1(source.encode(), usedforsecurity=False).hexdigest())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On six nodes, most of the suite runs with `make test-faults` only."""
    for item in items:
        on_six = isinstance(item, pytest.Function) and "six" in item.name.partition("[")[2].rstrip("]").split("-")
        if on_six and item.path.name not in ON_SIX_NODES_ALWAYS:
            item.add_marker(pytest.mark.at_length)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of this machine."""
    binary = redis_server()
    assert binary is not None
    server = Server("redis", tmp_path_factory.mktemp("redis"), ["--save", ""], binary=binary)
    try:
        server.answers()
        yield f"redis://{server.address}/0"
    finally:
        server.close()


@pytest.fixture(params=["fakeredis", "valkey", "cluster", "sixteen", "six", *(["redis"] if redis_server() else [])])
def server_url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a server; empty for fakeredis."""
    if request.param == "fakeredis":
        for verb, script in SCRIPTS.items():
            monkeypatch.setitem(SCRIPTS, verb, _without_first_line(script))
        return ""
    if request.param == "six":
        return str(request.getfixturevalue("six_nodes").url)
    urls = {"cluster": "cluster_url", "redis": "redis_url"}
    return str(request.getfixturevalue(urls.get(request.param, "valkey_url")))


@pytest.fixture
def buckets(request: pytest.FixtureRequest) -> int:
    return {"sixteen": 16, "six": 64}.get(request.node.callspec.params["server_url"], 1)


@pytest.fixture
async def store(server_url: str, buckets: int) -> AsyncIterator[Store]:
    redis: Any = real_redis(server_url) if server_url else FakeAsyncRedis(server=FakeServer())
    yield Store.of(redis, f"test{next(_namespaces)}", buckets=buckets)
    await redis.aclose()
