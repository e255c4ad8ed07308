"""Nothing is stored: what the store holds is the same before and after, but for what had to end by itself meanwhile.

The files of this folder share a store, and some leave sessions behind that live for a minute. Replicas sweep it, each
first at a moment of its own: the lock of the sweep, and the counters it counts in, come without a request; so does what
they write to see whether the store takes writes.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import redis.asyncio

from tests.instruments.processes import Fleet

_GONE, _FOR_EVER = -2, -1  # what PEXPIRETIME says of a key that is not there, or has no end


@asynccontextmanager
async def unchanged(fleet: Fleet, *, claude: bool = True) -> AsyncIterator[None]:
    """No key comes or goes within the block; with ``claude``, nothing is asked of Claude either."""
    store: Any
    async with redis.asyncio.from_url(fleet.valkey.url) as store:
        asked = await fleet.simulator.total()
        ends = {key: await store.pexpiretime(key) for key in await _keys(store)}
        yield
        found = await _keys(store)
        seconds, micros = await store.time()
        now_ms = seconds * 1_000 + micros // 1_000
        ended = {key for key, end in ends.items() if end == _GONE or _FOR_EVER < end <= now_ms}
        assert found - ended == ends.keys() - ended
        assert not claude or await fleet.simulator.total() == asked


async def _keys(store: Any) -> set[bytes]:
    return {key for key in await store.keys("*") if not key.endswith((b"}:swl", b"}:cnt", b"}:p"))}
