"""What the store tells of itself, for metrics."""

import pytest

from storage.results import StoreUnavailable
from storage.vitals import vitals
from tests.store.harness import Store

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("server_url", ["valkey"], indirect=True)]


async def test_a_store_tells_its_memory_durability_replicas_and_clock(store: Store) -> None:
    await store.redis.config_set("maxmemory", "1gb")
    try:
        told = await vitals(store.redis, deadline_s=5)
    finally:
        await store.redis.config_set("maxmemory", "0")
    assert 0 < told.memory_bytes < told.memory_max_bytes == 1 << 30
    assert told.append_only == bool((await store.redis.info("persistence"))["aof_enabled"])
    assert (told.replicas, told.replicas_behind) == (0, 0)
    assert abs(told.clock_ahead_s) < 1


async def test_a_store_that_does_not_answer_is_told_as_that(store: Store) -> None:
    with pytest.raises(StoreUnavailable):
        await vitals(store.redis, deadline_s=0)
