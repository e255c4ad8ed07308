"""Sessions as they are stored: create, look, touch, read messages; and the sweep of one expired id.

Turns, the only way that a history grows, are in turns.py.
"""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from storage.keys import Keyspace, SessionRef
from storage.results import (
    Created,
    Exists,
    Gone,
    Stale,
    StoreUnavailable,
    UnknownReply,
    read_create,
    read_sweep,
    read_touch,
)
from storage.scripts import ScriptRunner

_CREATE_ATTEMPTS = 8


@dataclass(frozen=True, slots=True)
class NewSession:
    """What a creation fixes. ``0`` and ``""`` mean none; texts are JSON or plain as their names say."""

    nonce: str
    ttl_ms: int
    absolute_end_ms: int = 0
    name: str = ""
    creating_turn_id: str = ""
    model: str = ""
    max_turns: int = 0
    system_json: bytes = b""
    title: str = ""
    metadata_json: bytes = b"{}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A session at one instant of the server's clock. Times are milliseconds since 1970, 0 for none."""

    name: str
    owner: str
    created_ms: int
    accessed_ms: int
    expires_ms: int
    absolute_end_ms: int
    ttl_ms: int
    running_turn_id: str
    lease_remaining_ms: int
    head: str
    messages: int
    size_bytes: int
    turns: int
    max_turns: int
    model: str
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_written_tokens: int
    system_json: bytes
    title: str
    metadata_json: bytes


def _pairs(flat: list[bytes]) -> dict[str, bytes]:
    return {flat[i].decode(): flat[i + 1] for i in range(0, len(flat), 2)}


def _snapshot(expires: bytes, remaining: bytes, fields: list[bytes], texts: list[bytes]) -> Snapshot:
    s, j = _pairs(fields), _pairs(texts)
    return Snapshot(
        name=s["nm"].decode(),
        owner=s["own"].decode(),
        created_ms=int(s["cr"]),
        accessed_ms=int(s["la"]),
        expires_ms=int(expires),
        absolute_end_ms=int(s["ax"]),
        ttl_ms=int(s["ttl"]),
        running_turn_id=s["lt"].decode() if int(remaining) > 0 else "",
        lease_remaining_ms=int(remaining),
        head=s["head"].decode(),
        messages=int(s["n"]),
        size_bytes=int(s["b"]),
        turns=int(s["tn"]),
        max_turns=int(s["mt"]),
        model=s["md"].decode(),
        input_tokens=int(s["it"]),
        output_tokens=int(s["ot"]),
        cache_read_tokens=int(s["rt"]),
        cache_written_tokens=int(s["wt"]),
        system_json=j["system"],
        title=j["title"].decode(),
        metadata_json=j["metadata"],
    )


class Sessions:
    """The sessions of one namespace.

    Args:
        redis: see connect.py.
        keyspace: the namespace.
        budget_s: how long one operation may take in all.
    """

    def __init__(self, redis: Redis, keyspace: Keyspace, *, budget_s: float) -> None:
        self._redis = redis
        self._scripts = ScriptRunner(redis)
        self._budget_s = budget_s
        self.keyspace = keyspace

    async def create(self, ref: SessionRef, new: NewSession) -> Created | Exists:
        """Creates a session, sweeping an expired one of the same id first. Repeatable by nonce."""
        args = (
            ref.id,
            ref.owner,
            ref.owner_tag,
            new.nonce,
            new.ttl_ms,
            new.absolute_end_ms,
            new.name,
            new.creating_turn_id,
            new.model,
            new.max_turns,
            new.system_json,
            new.title,
            new.metadata_json,
        )
        for _ in range(_CREATE_ATTEMPTS):
            result = read_create(await self._scripts.run("create", ref.keys, args, budget_s=self._budget_s))
            if not isinstance(result, Stale):
                return result
            await self.sweep(ref)
        raise StoreUnavailable("the expired session could not be swept", outcome_unknown=False)

    async def sweep(self, ref: SessionRef) -> bool:
        """Takes an expired session out of indexes and counters; False if it lives."""
        args = (ref.id, ref.owner_tag)
        return read_sweep(await self._scripts.run("sweep", ref.keys, args, budget_s=self._budget_s))

    async def touch(self, ref: SessionRef) -> bool:
        """Starts the session's TTL anew; False if it is not there for this owner."""
        args = (ref.id, ref.owner)
        return read_touch(await self._scripts.run("touch", ref.keys, args, budget_s=self._budget_s))

    async def get(self, ref: SessionRef) -> Snapshot | Gone:
        """The session at one instant; changes nothing."""
        reply: Any = await self._scripts.run("get", ref.keys, (ref.id, ref.owner), budget_s=self._budget_s)
        match reply:
            case [b"FOUND", _now, expires, remaining, fields, texts]:
                return _snapshot(expires, remaining, fields, texts)
            case [b"GONE"]:
                return Gone()
        raise UnknownReply(reply)

    async def messages(self, ref: SessionRef, start: int, count: int) -> list[bytes]:
        """Elements ``start`` … ``start + count - 1``, oldest first (see elements.py). Ask `get` for permission first.

        Cost: one LRANGE, O(start + count).
        """
        try:
            async with asyncio.timeout(self._budget_s):
                reply = self._redis.lrange(ref.keys[1], start, start + count - 1)
                return cast("list[bytes]", await cast("Awaitable[Any]", reply))
        except (RedisError, TimeoutError) as error:
            raise StoreUnavailable(type(error).__name__, outcome_unknown=False) from error
