"""``baton check``: what a replica would find, told to a person, and an exit code for a script."""

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.instruments.child import Child
from tests.instruments.ports import reserved_port
from tests.instruments.processes import SECRET, Fleet, Valkey
from tests.instruments.redis_servers import Cluster

pytestmark = pytest.mark.anyio

SOUND = {"ANTHROPIC_API_KEY": "sk-ant-TOPSECRET", "BATON_SECRET": SECRET}


_numbers = itertools.count()


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    with Valkey(tmp_path / "valkey") as server:
        yield server


async def checked(tmp_path: Path, **env: str) -> tuple[int, list[str]]:
    """The exit code, and what was said; nothing of it gives a secret away."""
    name = f"check-{next(_numbers)}"
    async with Child(name, (sys.executable, "-m", "service.cli", "check"), tmp_path, SOUND | env) as child:
        code = await child.wait(30.0)
        said = child.log()
    for secret in ("TOPSECRET", SECRET, "hidden-password"):
        assert secret not in said
    assert "Traceback" not in said
    return code, said.splitlines()


async def test_a_store_that_can_be_used(tmp_path: Path, valkey: Valkey) -> None:
    code, said = await checked(tmp_path, BATON_REDIS_URL=valkey.url)
    assert code == 0
    assert said == ["ok: the settings can be used.", "ok: the store can be used; namespace 'baton' has 1 bucket."]


async def test_nothing_is_claimed_by_a_check(tmp_path: Path, valkey: Valkey) -> None:
    assert (await checked(tmp_path, BATON_REDIS_URL=valkey.url, BATON_BUCKETS="7"))[0] == 0
    (tmp_path / "fleet").mkdir()
    async with Fleet(tmp_path / "fleet", replicas=0) as fleet:
        await fleet.add_replica(env={"BATON_REDIS_URL": valkey.url})
    code, said = await checked(tmp_path, BATON_REDIS_URL=valkey.url, BATON_BUCKETS="7")
    assert code == 78
    assert "BATON_BUCKETS=1, this replica has 7" in said[-1]


async def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    with reserved_port() as port:
        code, said = await checked(tmp_path, BATON_REDIS_URL=f"rediss+cluster://:hidden-password@127.0.0.1:{port}")
    assert code == 69
    assert said[-1].startswith("error: No connection to Redis: No node of the cluster tells its slots: ")


async def test_settings_that_cannot_be(tmp_path: Path) -> None:
    code, said = await checked(tmp_path, BATON_REDIS_URL="redis+sentinel://:hidden-password@h", BATON_LEASE_MS="x")
    assert code == 78
    assert len(said) == 2
    assert "Sentinel's service" in " ".join(said)


async def test_the_embedded_store_is_started_by_serving_only(tmp_path: Path) -> None:
    code, said = await checked(tmp_path)
    assert code == 0
    assert "embedded" in said[-1]
    assert not (tmp_path / ".baton").exists()


async def test_every_primary_of_a_cluster_is_looked_at(tmp_path: Path) -> None:
    with Cluster(tmp_path, replicas=0) as cluster:
        code, said = await checked(tmp_path, BATON_REDIS_URL=cluster.url)
        assert code == 0
        assert sum("append-only file" in line for line in said) == 3
        assert said[-1] == "ok: the store can be used; namespace 'baton' has 64 buckets."
        cluster.nodes[2].command("CONFIG SET", "maxmemory-policy", "allkeys-lfu")
        code, said = await checked(tmp_path, BATON_REDIS_URL=cluster.url)
        assert code == 78
        assert said[-1].startswith(f"error: {cluster.nodes[2].address}: Redis evicts by allkeys-lfu")
