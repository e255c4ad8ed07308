"""How the store is: memory, durability, replicas, clock. For metrics; nothing depends on it.

INFO and TIME of every primary, which first contact reads too (first_contact.py). Of several primaries the worst is
told: a cluster is as full as its fullest part.
"""

import asyncio
import re
import time
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from storage.failures import in_words
from storage.results import StoreUnavailable
from storage.routing import Routed


@dataclass(frozen=True, slots=True)
class Vitals:
    """The store at one moment.

    Attributes:
        memory_bytes, memory_max_bytes: of the fullest primary; 0 is no limit.
        append_only: whether every primary has an append-only file.
        replicas: of all primaries.
        replicas_behind: those that are not in step.
        clock_ahead_s: how far the clock that differs most is ahead of ours; negative if it is behind.
    """

    memory_bytes: int
    memory_max_bytes: int
    append_only: bool
    replicas: int
    replicas_behind: int
    clock_ahead_s: float


async def vitals(redis: Redis, *, deadline_s: float) -> Vitals:
    """Asks every primary.

    Raises:
        StoreUnavailable: one of them did not answer within the deadline.
    """
    try:
        async with asyncio.timeout(deadline_s):
            servers = await primaries(redis)
            infos = await asyncio.gather(*(server.info() for server in servers))
            clocks = await asyncio.gather(*map(clock_ahead_s, servers))
    except (RedisError, TimeoutError) as error:
        raise StoreUnavailable(in_words(error), outcome_unknown=False) from error
    replicas = [one for info in infos for one in replicas_of(info)]
    memory = [(int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))) for info in infos]
    used_bytes, max_bytes = max(memory, key=lambda pair: (pair[0] / pair[1] if pair[1] else 0, pair[0]))
    return Vitals(
        memory_bytes=used_bytes,
        memory_max_bytes=max_bytes,
        append_only=all(int(info.get("aof_enabled", 0)) for info in infos),
        replicas=len(replicas),
        replicas_behind=sum(one["state"] != "online" for one in replicas),
        clock_ahead_s=max(clocks, key=abs),
    )


async def primaries(redis: Redis) -> list[Redis]:
    """A client for each primary."""
    return await redis.primaries() if isinstance(redis, Routed) else [redis]


async def clock_ahead_s(server: Redis) -> float:
    """How far a server's clock is ahead of ours, seconds."""
    before = time.time()
    seconds, micros = await server.time()
    return float(seconds + micros / 1_000_000 - (before + time.time()) / 2)


def replicas_of(info: dict[str, Any]) -> list[dict[str, Any]]:
    """The replicas of a primary, as its INFO tells them."""
    return [value for key, value in info.items() if re.fullmatch(r"slave\d+", key)]
