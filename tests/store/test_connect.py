"""First contact: a server that would lose or tear conversations is refused in words that say what to do."""

import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from storage.connect import Deadlines
from storage.embedded import EmbeddedValkey
from storage.first_contact import StoreRefused, first_contact
from storage.health import health
from storage.keys import Keyspace
from storage.results import StoreUnavailable
from tests.instruments.redis_servers import Cluster, Server, redis_server
from tests.store.harness import SECRET, real_redis, until

pytestmark = pytest.mark.anyio

DEADLINE_S = 10.0
KEYSPACE = Keyspace("baton", 1, SECRET)


@pytest.fixture
async def redis(own_valkey: EmbeddedValkey) -> AsyncIterator[Any]:
    client = real_redis(own_valkey.url)
    yield client
    await client.aclose()


async def meet(redis: Any, keyspace: Keyspace = KEYSPACE, *, eviction_allowed: bool = False) -> list[str]:
    return await first_contact(redis, keyspace, eviction_allowed=eviction_allowed, deadline_s=DEADLINE_S)


async def test_the_namespace_is_claimed_once_and_for_all(redis: Any) -> None:
    assert await meet(redis) == []
    record = {b"buckets": b"1", b"secret": KEYSPACE.fingerprint().encode()}
    assert await redis.hgetall("{baton}:cfg") == record
    assert await meet(redis) == []
    with pytest.raises(StoreRefused, match="BATON_BUCKETS=1, this replica has 2; the number is permanent") as caught:
        await meet(redis, Keyspace("baton", 2, SECRET))
    assert len(caught.value.problems) == 1
    with pytest.raises(StoreRefused, match="another BATON_SECRET; the secret is permanent"):
        await meet(redis, Keyspace("baton", 1, b"another secret 16"))
    with pytest.raises(StoreRefused) as caught:
        await meet(redis, Keyspace("baton", 2, b"another secret 16"))
    assert len(caught.value.problems) == 2
    assert await redis.hgetall("{baton}:cfg") == record
    assert await meet(redis, Keyspace("other", 2, b"another secret 16")) == []


async def test_a_server_that_evicts_is_refused_unless_that_was_asked_for(redis: Any) -> None:
    await redis.config_set("maxmemory-policy", "volatile-lru")
    with pytest.raises(StoreRefused, match="BATON_REDIS_EVICTION_ALLOWED=true"):
        await meet(redis)
    assert await redis.exists("{baton}:cfg") == 0, "a refused replica claims nothing"
    assert await meet(redis, eviction_allowed=True) == []
    with pytest.raises(StoreRefused) as caught:
        await meet(redis, Keyspace("baton", 2, SECRET))
    assert len(caught.value.problems) == 2, "all problems are told at once"


async def test_a_server_that_is_too_old_is_refused(redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    info: dict[str, Any] = await redis.info() | {"redis_version": "6.2.14"}

    async def old_info() -> dict[str, Any]:
        return info

    monkeypatch.setattr(redis, "info", old_info)
    with pytest.raises(StoreRefused, match=r"Redis 6\.2\.14 is too old: 7\.0 or newer"):
        await meet(redis)


async def test_a_server_that_forgets_is_warned_about(redis: Any) -> None:
    await redis.config_set("appendonly", "no")
    (warning,) = await meet(redis)
    assert "append-only file" in warning


async def test_a_replica_that_is_not_in_step_is_warned_about(redis: Any, tmp_path: Path) -> None:
    """It has been told of its primary, and hangs before it has the data."""
    await redis.config_set("repl-diskless-sync-delay", "60")
    port, password = (redis.connection_pool.connection_kwargs[name] for name in ("port", "password"))
    replica = Server("replica", tmp_path, ["--replicaof", f"127.0.0.1 {port}", "--primaryauth", password])
    replica.answers()

    async def known() -> bool:
        return int((await redis.info("replication"))["connected_slaves"]) == 1

    await until(known)
    (warning,) = await meet(redis)
    assert f"127.0.0.1:{replica.port} (wait_bgsave)" in warning
    assert "Promoted now, it would be empty" in warning
    await redis.config_set("repl-diskless-sync-delay", "0")

    async def in_step() -> bool:
        return bool((await redis.info("replication"))["slave0"]["state"] == "online")

    await until(in_step)
    assert await meet(redis) == []
    replica.close()


@pytest.mark.parametrize(
    ("ahead_s", "words"), [(7.2, "7 s behind ours"), (-7.2, "7 s before ours"), (4.0, ""), (-4.0, "")]
)
async def test_a_clock_far_from_ours_is_warned_about(
    redis: Any, monkeypatch: pytest.MonkeyPatch, ahead_s: float, words: str
) -> None:
    real = time.time
    monkeypatch.setattr("storage.vitals.time.time", lambda: real() + ahead_s)
    warnings = await meet(redis)
    assert [words in warning for warning in warnings] == ([True] if words else [])


async def test_a_check_claims_nothing(redis: Any) -> None:
    assert await first_contact(redis, KEYSPACE, eviction_allowed=False, deadline_s=DEADLINE_S, claim=False) == []
    assert await redis.exists("{baton}:cfg") == 0
    await meet(redis)
    other = Keyspace("baton", 2, SECRET)
    with pytest.raises(StoreRefused, match="BATON_BUCKETS=1"):
        await first_contact(redis, other, eviction_allowed=False, deadline_s=DEADLINE_S, claim=False)


async def test_a_node_of_a_cluster_is_to_be_asked_as_one(cluster_url: str) -> None:
    for url, refused in ((cluster_url, True), (cluster_url.replace("redis://", "redis+cluster://"), False)):
        redis = real_redis(url)
        with pytest.raises(StoreRefused, match=r"write redis\+cluster://") if refused else contextlib.nullcontext():
            await meet(redis, Keyspace("asked", 1, SECRET))
        await redis.aclose()


async def test_a_server_alone_is_no_cluster(own_valkey: EmbeddedValkey) -> None:
    redis = real_redis(own_valkey.url.replace("redis://", "redis+cluster://"))
    with pytest.raises(StoreRefused, match="no cluster, as the URL says"):
        await meet(redis)
    await redis.aclose()


async def test_every_primary_is_looked_at(six_nodes: Cluster) -> None:
    redis = real_redis(six_nodes.url)
    keyspace = Keyspace("looked-at", 64, SECRET)
    bad = six_nodes.nodes[1]
    bad.command("CONFIG SET", "maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(StoreRefused) as caught:
            await meet(redis, keyspace)
        (problem,) = caught.value.problems
        assert problem.startswith(f"{bad.address}: Redis evicts by allkeys-lru")
    finally:
        bad.command("CONFIG SET", "maxmemory-policy", "noeviction")
    warnings = await meet(redis, keyspace)
    for words in ("no append-only file", "min-replicas-to-write is 0"):
        assert sum(words in one for one in warnings) == 3
    assert len(warnings) == 6
    await redis.aclose()


async def test_a_primary_that_hangs_is_a_part_of_a_cluster_and_no_more(six_nodes: Cluster) -> None:
    """Also one that does not answer for the namespace's record."""
    deadlines = Deadlines()
    redis = real_redis(six_nodes.url, deadlines)
    keyspace = Keyspace("hanging", 64, SECRET)
    look_s = deadlines.command_s + deadlines.connect_s
    assert await health(redis, keyspace, deadline_s=look_s) == "up"
    record = six_nodes.primary_of(keyspace.config())
    other = next(node for node in six_nodes.nodes[:3] if node is not record)
    other.freeze()
    try:
        assert await health(redis, keyspace, deadline_s=look_s) == "refusing"
    finally:
        other.thaw()
    assert await health(redis, keyspace, deadline_s=look_s) == "up"
    await redis.aclose()


async def test_no_server_is_unavailable_not_refused(redis: Any, own_valkey: EmbeddedValkey) -> None:
    own_valkey.stop()
    with pytest.raises(StoreUnavailable) as caught:
        await meet(redis)
    assert caught.value.outcome_unknown is False


async def test_healthy_means_that_writes_are_taken(redis: Any, own_valkey: EmbeddedValkey) -> None:
    assert await health(redis, KEYSPACE, deadline_s=DEADLINE_S) == "up"
    await redis.config_set("maxmemory", "1")
    assert await redis.ping()
    assert await health(redis, KEYSPACE, deadline_s=DEADLINE_S) == "refusing"
    own_valkey.stop()
    assert await health(redis, KEYSPACE, deadline_s=DEADLINE_S) == "away"


async def test_the_suite_runs_on_redis_too(request: pytest.FixtureRequest) -> None:
    if redis_server() is None:
        pytest.skip("no redis-server on this machine: everything here ran on Valkey only")
    redis = real_redis(request.getfixturevalue("redis_url"))
    (warning,) = await meet(redis)
    assert "append-only file" in warning
    await redis.aclose()
