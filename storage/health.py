"""How the store is now, told by writes: a full or read-only Redis would still answer PING.

Every primary that keeps sessions is written to, at a key of one of its buckets: any of them may be full or a replica,
and one that is lost takes its own sessions with it, and no others. The key ends by itself.
"""

import asyncio
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, Literal

from redis.asyncio import Redis
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,
    RedisError,
    ResponseError,
)

from storage.keys import Keyspace
from storage.routing import Routed

Health = Literal["up", "refusing", "away"]
"""Of the store. ``up``: it takes writes. ``refusing``: it answers and takes none (it is full, or a replica), or only a
part of it takes them. ``away``: it does not answer."""

_KEPT_S: Final = 60


async def health(redis: Redis, keyspace: Keyspace, *, deadline_s: float, others: Sequence[Redis] = ()) -> Health:
    """How the store is now.

    A connection that turns out to be broken is told from a store that is away by asking once more, on another one.
    Cost: one write to each primary, side by side.

    Args:
        redis: a client of its own.
        keyspace: where is written.
        deadline_s: of all of it; longer than one command may take, whose end tells that a primary is silent.
        others: clients of the same store, which hear of it if all of it is up.
    """
    asked_at = time.monotonic()
    keys: Sequence[str] = _probes(keyspace)
    if isinstance(redis, Routed):
        try:
            async with asyncio.timeout(deadline_s):
                keys = await redis.one_of_each_primary(keys)
        except (RedisError, TimeoutError):
            return "away"
    found = set(await asyncio.gather(*(_written(redis, key, deadline_s) for key in keys)))
    if len(found) > 1:
        return "refusing"
    (told,) = found
    for other in others if told == "up" else ():
        if isinstance(other, Routed):
            other.trust(asked_at)
    return told


@lru_cache(maxsize=16)
def _probes(keyspace: Keyspace) -> tuple[str, ...]:
    return tuple(keyspace.probe(bucket) for bucket in range(keyspace.buckets))


async def _written(redis: Redis, key: str, deadline_s: float) -> Health:
    try:
        async with asyncio.timeout(deadline_s):
            try:
                await redis.set(key, "1", ex=_KEPT_S)
            except ConnectionError:
                await redis.set(key, "1", ex=_KEPT_S)
    except (ResponseError, BusyLoadingError, AuthenticationError):
        return "refusing"
    except (RedisError, TimeoutError):
        return "away"
    return "up"
