"""Sessions as they are stored: create, look, touch, patch, delete, read messages.

Turns, the only way that a history grows, are in turns.py.
"""

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis

from storage import attachments
from storage.capacity import Capacity
from storage.checkpoints import NO_ACCOUNT, UNSAID, WISHES, Account, Wishes, read_account, read_wishes
from storage.keys import Keyspace, SessionRef
from storage.replies import Reply, UnknownReply, read_create, read_delete, read_patch, read_touch
from storage.results import (
    LEASE_MS_MAX,
    Created,
    Denied,
    Exists,
    Full,
    Gone,
    Patched,
    Retry,
    RevisionConflict,
    SessionTorn,
    Stale,
    StoreUnavailable,
)
from storage.scripts import OnCall, ScriptRunner, nobody
from storage.shares import OWNER, with_grantees

_TEXTS = ("system", "title", "metadata")  # of a snapshot; the preamble, which may be large, is for turns only


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
    wishes: Wishes = UNSAID


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A session at one instant of the server's clock. Times are milliseconds since 1970, 0 for none.

    ``role`` is what the principal is in it that asked. The name is the owner's own, and "" for anybody else.
    """

    role: str
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
    epoch_hash: str
    epoch_start: int
    revision: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_written_tokens: int
    system_json: bytes
    title: str
    metadata_json: bytes
    context: str = ""
    account: Account = NO_ACCOUNT
    wishes: Wishes = UNSAID


def _pairs(flat: list[bytes]) -> dict[str, bytes]:
    return {flat[i].decode(): flat[i + 1] for i in range(0, len(flat), 2)}


def read_fields(role: str, expires: int, remaining: int, s: Mapping[str, bytes], j: Mapping[str, bytes]) -> Snapshot:
    """The snapshot that the fields of a session and its texts make.

    Args:
        role: of who reads.
        expires: end of life, ms.
        remaining: of the lease, ms; 0 if no turn runs.
        s: the fields, key 1 of storage/README.md.
        j: the texts, key 5.
    """
    return Snapshot(
        role=role,
        name=s["nm"].decode() if role == OWNER else "",
        owner=s["own"].decode(),
        created_ms=int(s["cr"]),
        accessed_ms=int(s["la"]),
        expires_ms=expires,
        absolute_end_ms=int(s["ax"]),
        ttl_ms=int(s["ttl"]),
        running_turn_id=s["lt"].decode() if remaining > 0 else "",
        lease_remaining_ms=remaining,
        head=s["head"].decode(),
        messages=int(s["n"]),
        size_bytes=int(s["b"]),
        turns=int(s["tn"]),
        max_turns=int(s["mt"]),
        model=s["md"].decode(),
        epoch_hash=s["eh"].decode(),
        epoch_start=int(s["es"]),
        revision=int(s["rev"]),
        input_tokens=int(s["it"]),
        output_tokens=int(s["ot"]),
        cache_read_tokens=int(s["rt"]),
        cache_written_tokens=int(s["wt"]),
        system_json=j["system"],
        title=j["title"].decode(),
        metadata_json=j["metadata"],
        context=s.get("ctx", b"").decode(),
        account=read_account(s),
        wishes=read_wishes(j),
    )


def _lease_remaining_ms(s: dict[str, bytes], now_ms: int) -> int:
    """As shared/lease.lua counts it."""
    remaining = int(s["lx"]) - now_ms if s["lt"] else 0
    return remaining if 0 < remaining <= LEASE_MS_MAX else 0


class Sessions:
    """The sessions of one namespace.

    Args:
        redis: see connect.py.
        keyspace: the namespace.
        capacity: makes room for new ones.
        budget_s: how long one operation may take in all.
    """

    def __init__(
        self, redis: Redis, keyspace: Keyspace, capacity: Capacity, *, budget_s: float, on_call: OnCall = nobody
    ) -> None:
        self._redis = redis
        self._scripts = ScriptRunner(redis, on_call=on_call)
        self._capacity = capacity
        self._budget_s = budget_s
        self.keyspace = keyspace

    async def create(self, ref: SessionRef, new: NewSession) -> Created | Exists | Full:
        """Creates a session, sweeping an expired one of the same id first and making room. Repeatable by nonce.

        Returns:
            Full: a cap is reached and nothing could be removed.
        """
        args = (
            ref.id,
            ref.principal,
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
            new.wishes.tokens_target,
            new.wishes.instructions,
            new.wishes.context_policy,
        )

        async def attempt(allowed: tuple[int, int]) -> Created | Exists | Stale | Full:
            reply = await self._scripts.run("create", ref.keys, (*args, *allowed), budget_s=self._budget_s)
            return read_create(reply)

        return await self._capacity.placed(ref, attempt)

    async def delete(self, ref: SessionRef) -> bool | Denied:
        """Removes a session with all that it holds; False if it is not there for this principal."""

        async def remove(grantees: Sequence[str], lists: Sequence[str]) -> Reply:
            return await self._scripts.act("delete", ref, grantees, more_keys=lists, budget_s=self._budget_s)

        result = read_delete(await with_grantees(self._redis, ref, remove, budget_s=self._budget_s))
        if isinstance(result, Retry):
            raise StoreUnavailable("its shares keep changing", outcome_unknown=False)
        return result

    async def patch(
        self, ref: SessionRef, changes: dict[str, Any], *, expected_revision: int | None
    ) -> Patched | RevisionConflict | Denied | Gone:
        """Changes fields: model, max_turns, ttl (ms), system, title, metadata, tokens_target, instructions, policy.

        Texts as in `NewSession`.
        """
        expected = "" if expected_revision is None else expected_revision
        args = (expected, *(item for pair in changes.items() for item in pair))
        return read_patch(await self._scripts.act("patch", ref, args, budget_s=self._budget_s))

    async def touch(self, ref: SessionRef) -> bool:
        """Starts the session's TTL anew; False if it is not there for this principal."""
        return read_touch(await self._scripts.act("touch", ref, (), budget_s=self._budget_s))

    async def get(self, ref: SessionRef) -> Snapshot | Gone:
        """The session at one instant; changes nothing.

        Raises:
            SessionTorn: a part of it is missing.
        """
        reply: Any = await self._scripts.act("get", ref, (), budget_s=self._budget_s)
        match reply:
            case [b"FOUND", role, _now, expires, remaining, fields, flat]:
                texts = _pairs(flat)
                if not texts.keys() >= set(_TEXTS):
                    raise SessionTorn("texts")
                return read_fields(role.decode(), int(expires), int(remaining), _pairs(fields), texts)
            case [b"GONE"] | [b"DENIED", _]:
                return Gone()
        raise UnknownReply(reply)

    async def snapshots(self, refs: list[SessionRef]) -> list[Snapshot | None]:
        """Many sessions, as `get` tells them; None for one that is not there for its ref's principal any more.

        Each session's fields are of one instant, different sessions of different ones. Cost: two round trips.
        """

        async def ask() -> tuple[int, int, list[Any]]:
            seconds, micros = await self._redis.time()
            async with self._redis.pipeline(transaction=False) as batch:
                for ref in refs:
                    batch.hgetall(ref.keys[0])
                    batch.hmget(ref.keys[4], [*_TEXTS, *WISHES])
                    batch.pexpiretime(ref.keys[0])
                    batch.hget(ref.keys[16], ref.principal)
                return seconds, micros, await batch.execute()

        seconds, micros, replies = await self._scripts.read(ask, budget_s=self._budget_s)
        now_ms = seconds * 1000 + micros // 1000
        found: list[Snapshot | None] = []
        for at, ref in enumerate(refs):
            fields, texts, expires, share = replies[4 * at : 4 * at + 4]
            s = {key.decode(): value for key, value in fields.items()}
            j = {name: text for name, text in zip((*_TEXTS, *WISHES), texts, strict=True) if text is not None}
            there = s and j.keys() >= set(_TEXTS) and expires > 0
            role = OWNER if there and s["own"] == ref.principal.encode() else (share or b"").decode()
            found.append(read_fields(role, expires, _lease_remaining_ms(s, now_ms), s, j) if there and role else None)
        return found

    async def labels(self, refs: list[SessionRef]) -> list[tuple[str, bytes]]:
        """Title and metadata (JSON) of many sessions, for filters; both empty for one that is not there any more."""

        async def ask() -> list[Any]:
            async with self._redis.pipeline(transaction=False) as batch:
                for ref in refs:
                    batch.hmget(ref.keys[4], ["title", "metadata"])
                return await batch.execute()

        replies = await self._scripts.read(ask, budget_s=self._budget_s)
        return [((title or b"").decode(), metadata or b"") for title, metadata in replies]

    async def messages(self, ref: SessionRef, start: int, count: int, *, bytes_max: int | None = None) -> list[bytes]:
        """Elements ``start`` … ``start + count - 1``, oldest first (see elements.py). Ask `get` for permission first.

        Args:
            ref: the session.
            start: index of the first.
            count: how many.
            bytes_max: fewer, if more would be larger together; never none for that.

        Raises:
            AttachmentLost: a part of one is missing.

        Cost: one LRANGE, O(start + count), and a round trip or more where there are attachments.
        """
        stored = await self._stored(ref, start, count)
        if bytes_max is not None:
            stored = stored[: attachments.fitting(stored, bytes_max)]
        return await attachments.filled(self._redis, ref.keys[7], stored, budget_s=self._budget_s)

    async def outlines(self, ref: SessionRef, start: int, count: int) -> list[bytes]:
        """The same elements with an empty string for every attachment; these are not read."""
        return list(map(attachments.outline, await self._stored(ref, start, count)))

    async def _stored(self, ref: SessionRef, start: int, count: int) -> list[bytes]:

        async def ask() -> list[bytes]:
            reply = self._redis.lrange(ref.keys[1], start, start + count - 1)
            return await cast("Awaitable[list[bytes]]", reply)

        return await self._scripts.read(ask, budget_s=self._budget_s)
