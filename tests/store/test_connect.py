"""First contact: a server that would lose or tear conversations is refused in words that say what to do."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from storage.connect import StoreRefused, first_contact, health
from storage.embedded import EmbeddedValkey
from storage.keys import Keyspace
from storage.results import StoreUnavailable
from tests.store.harness import SECRET, real_redis

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
