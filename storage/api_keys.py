"""The keys of callers as they are stored: create, patch, rotate, delete, read, list.

A key is a hash in the slot of its principal; the list of all keys and the count of their changes are in a slot of their
own. So a change is two scripts, in this order, and each may be sent again:

1. what is done to the key;
2. ``note_key``, which counts it. Every replica asks for the count each second and reads its keys again when it moved.

A creation is listed before it is done, so that there is no key that is not listed; a listed id without a key is passed
over. Whoever is told that a change succeeded can rely on both. If the second script was never executed, replicas learn
of the change when they read their keys again anyway (service/known_keys.py).

Of the text of a key only a keyed digest is here.
"""

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis

from storage.keys import Keyspace
from storage.replies import read_create_key, read_delete_key, read_note_key, read_patch_key, read_rotate_key
from storage.scripts import ScriptRunner, answered


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it is stored.

    Attributes:
        id: see keys.py.
        principal: whom it names.
        scopes: what it may do.
        expires_ms: 0 for never.
        disabled: whether it is refused for now.
        labels_json: an object of strings.
        created_ms, rotated_ms: by the server's clock; 0 for never.
        digest: of its text.
        previous: of its text before the last rotation, good until ``previous_until_ms``; empty without one.
    """

    id: str
    principal: str
    scopes: frozenset[str]
    expires_ms: int
    disabled: bool
    labels_json: bytes
    created_ms: int
    rotated_ms: int
    digest: bytes
    previous: bytes
    previous_until_ms: int


class ApiKeys:
    """The keys of one namespace.

    Args:
        redis: of `connect`.
        keyspace: the namespace.
        budget_s: of every call.
    """

    def __init__(self, redis: Redis, keyspace: Keyspace, *, budget_s: float) -> None:
        self._redis = redis
        self._runner = ScriptRunner(redis)
        self._budget_s = budget_s
        self.keyspace = keyspace

    async def create(
        self, key_id: str, digest: bytes, *, principal: str, scopes: Sequence[str], expires_ms: int, labels_json: bytes
    ) -> bool:
        """Writes a new key; False if there is one of this id.

        Raises:
            StoreUnavailable: whether it is there is not known; its text is lost, so make another.
        """
        await self._note(key_id, "add")
        args = (digest, principal, " ".join(scopes), expires_ms, labels_json)
        created = read_create_key(await self._run("create_key", key_id, args))
        await self._note(key_id, "")
        return created

    async def patch(
        self,
        key_id: str,
        *,
        scopes: Sequence[str] = (),
        expires_ms: int | None = None,
        disabled: bool | None = None,
        labels_json: bytes = b"",
    ) -> bool:
        """Changes what is given; False if there is no such key.

        Raises:
            StoreUnavailable: send it again.
        """
        expiry = "" if expires_ms is None else expires_ms
        off = "" if disabled is None else int(disabled)
        done = read_patch_key(await self._run("patch_key", key_id, (" ".join(scopes), expiry, off, labels_json)))
        await self._note(key_id, "")
        return done

    async def rotate(self, key_id: str, digest: bytes, *, overlap_ms: int) -> bool:
        """Another secret, beside the present one for ``overlap_ms``; False if there is no such key.

        Raises:
            StoreUnavailable: whether it holds is not known; rotate again.
        """
        done = read_rotate_key(await self._run("rotate_key", key_id, (digest, overlap_ms)))
        await self._note(key_id, "")
        return done

    async def delete(self, key_id: str) -> bool:
        """Takes a key away; False if there was none.

        Raises:
            StoreUnavailable: send it again.
        """
        done = read_delete_key(await self._run("delete_key", key_id, ()))
        await self._note(key_id, "remove")
        return done

    async def changes(self) -> int:
        """How many changes there were ever; 0: there was never a key. One command."""
        name = self.keyspace.api_key_list()[1]
        found: bytes | None = await self._answer(lambda: cast("Awaitable[Any]", self._redis.hget(name, "changes")))
        return int(found or 0)

    async def read(self, key_ids: Sequence[str]) -> list[ApiKey | None]:
        """Keys by id, in one round trip for each of Redis's servers; None for what is not there."""

        async def ask() -> list[Any]:
            async with self._redis.pipeline(transaction=False) as batch:
                for key_id in key_ids:
                    batch.hgetall(self.keyspace.api_key(key_id))
                return await batch.execute()

        found = await self._answer(ask) if key_ids else []
        return [_read(key_id, fields) for key_id, fields in zip(key_ids, found, strict=True)]

    async def page(self, *, after: str, limit: int, principal: str = "") -> list[str]:
        """Ids of at most ``limit`` keys in their order, those behind ``after``; of one principal if that is named."""
        first, end = self.keyspace.key_ids_of(principal) if principal else ("key_", "key_~")
        low = f"({after}" if after > first else f"[{first}"
        name = self.keyspace.api_key_list()[0]
        found: list[bytes] = await self._answer(
            lambda: self._redis.zrange(name, low, f"[{end}", bylex=True, offset=0, num=limit)
        )
        return [one.decode() for one in found]

    async def _note(self, key_id: str, change: str) -> None:
        keys = self.keyspace.api_key_list()
        reply = await self._runner.run("note_key", keys, (key_id, change), budget_s=self._budget_s)
        read_note_key(reply)

    async def _run(self, verb: str, key_id: str, args: Sequence[Any]) -> list[bytes]:
        return await self._runner.run(verb, (self.keyspace.api_key(key_id),), args, budget_s=self._budget_s)

    async def _answer(self, ask: Any) -> Any:
        return await answered(ask, budget_s=self._budget_s)


def _read(key_id: str, fields: dict[bytes, bytes]) -> ApiKey | None:
    if not fields:
        return None
    return ApiKey(
        id=key_id,
        principal=fields[b"pr"].decode(),
        scopes=frozenset(fields[b"sc"].decode().split()),
        expires_ms=int(fields[b"ex"]),
        disabled=fields[b"off"] == b"1",
        labels_json=fields[b"lb"],
        created_ms=int(fields[b"cr"]),
        rotated_ms=int(fields[b"ro"]),
        digest=fields[b"h"],
        previous=fields[b"ph"],
        previous_until_ms=int(fields[b"pu"]),
    )
