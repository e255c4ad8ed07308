"""What a namespace holds, read from its indexes: pages, counts, and who might be removed. Nothing is scanned.

Every bucket has its own indexes (they change in the scripts of the sessions); pages, counts and caps are the merge of
all buckets: one pipeline, of which a cluster's primaries get their parts at the same time. Everything here only reads,
so what it tells may have changed by the time it is used: whoever acts on it lets the script check again.
"""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from heapq import nlargest, nsmallest
from typing import Any, Literal, NamedTuple, TypeVar

from redis.asyncio import Redis

from storage.keys import IndexRef, Keyspace, SessionRef
from storage.scripts import answered

SERVICE_EPOCH_S = 1_767_225_600  # as in scripts/shared/size.lua
_SPARE = 4  # asked of each bucket for a page, over twice its share
_T = TypeVar("_T")


class Listed(NamedTuple):
    """A session in an index: when it was last accessed (or ends), ms, and its id."""

    score: int
    session_id: str


@dataclass(frozen=True, slots=True)
class Counts:
    """What the counters say, over all buckets.

    Attributes:
        total: sessions, expired ones included until they are swept.
        expired_unswept: of those.
        messages, size_bytes: that the total holds.
        age_s: sum of the ages of the total.
        expired, evicted, deleted: how many ended so, ever.
        sweeps: how often a bucket was swept, whoever owns what is in it.
    """

    total: int
    expired_unswept: int
    messages: int
    size_bytes: int
    age_s: int
    expired: int
    evicted: int
    deleted: int
    sweeps: int


def _batched(flat: list[Any], size: int) -> Iterator[list[Any]]:
    """The items of a list, ``size`` at a time."""
    for at in range(0, len(flat), size):
        yield flat[at : at + size]


class Index:
    """The indexes of one namespace.

    Args:
        redis: see connect.py.
        keyspace: the namespace.
        budget_s: how long one operation may take in all.
    """

    def __init__(self, redis: Redis, keyspace: Keyspace, *, budget_s: float) -> None:
        self._redis = redis
        self._keyspace = keyspace
        self._budget_s = budget_s

    def _buckets(self, owner: str | None) -> list[IndexRef]:
        tag = self._keyspace.owner_tag(owner) if owner is not None else ""
        return [self._keyspace.index(bucket, tag) for bucket in range(self._keyspace.buckets)]

    async def _asked(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        return await answered(ask, budget_s=self._budget_s)

    async def page(self, owner: str, before: Listed | None, limit: int) -> list[Listed]:
        """The owner's sessions and those shared with it, last accessed first, after ``before``.

        Equal times by id, greatest first.

        A session that is accessed while somebody pages moves to the front, and later pages do not show it again.

        Cost: two commands for each bucket and mostly two round trips, to all primaries at once; with many buckets they
        send about three times the page, and everything that is shared with the owner, for which there is a third.
        """

        async def ask() -> list[Listed]:
            shared = await self._shared(owner, "by_access")
            found = [listed for listed in shared if before is None or listed < before]
            refs, offset = self._buckets(owner), 0
            # Ids spread evenly, so a bucket rarely has more than twice its share of a page.
            num = limit if len(refs) == 1 else min(limit, 2 * limit // len(refs) + _SPARE)
            highest: Any = before.score if before else "+inf"
            while refs:
                pages = await self._ranges(
                    [ref.owner_by_access for ref in refs], highest, "-inf", desc=True, offset=offset, num=num
                )
                # Several sessions may share a millisecond; those that an earlier page showed are passed over.
                found += [listed for page in pages for listed in page if before is None or listed < before]
                found = nlargest(limit, found)
                # A bucket is asked again if it has more, and they may still be among the first.
                complete = len(found) == limit
                refs = [
                    ref
                    for ref, page in zip(refs, pages, strict=True)
                    if len(page) == num and not (complete and page[-1] <= found[-1])
                ]
                offset += num
            return found

        return await self._asked(ask)

    async def _shared(self, principal: str, index: Literal["by_access", "by_expiry"]) -> list[Listed]:
        """All that is shared with a principal, with its scores in an index of all sessions.

        Cost: one round trip, and another if there is any. Each command names one key: while a slot moves key by key,
        one that names several is refused if the slot does not hold all of them, and a list of nothing is never there.
        """
        refs = self._buckets(principal)
        async with self._redis.pipeline(transaction=False) as batch:
            for ref in refs:
                batch.zrange(ref.shared, 0, -1)
            found: list[Any] = await batch.execute()
        shared = [(getattr(ref, index), ids) for ref, ids in zip(refs, found, strict=True) if ids]
        if not shared:
            return []
        async with self._redis.pipeline(transaction=False) as batch:
            for key, ids in shared:
                batch.zmscore(key, ids)
            replies: list[Any] = await batch.execute()
        scored = (
            pair for (_, ids), scores in zip(shared, replies, strict=True) for pair in zip(ids, scores, strict=True)
        )
        return [Listed(int(score), session.decode()) for session, score in scored if score is not None]

    async def shared_active(self, principal: str) -> int:
        """How many sessions that have not expired are shared with a principal. Cost: up to three round trips."""

        async def ask() -> int:
            seconds, micros = await self._redis.time()
            now_ms = seconds * 1000 + micros // 1000
            return sum(listed.score > now_ms for listed in await self._shared(principal, "by_expiry"))

        return await self._asked(ask)

    async def _ranges(self, keys: list[str], start: Any, end: Any, **options: Any) -> list[list[Listed]]:
        """A range by score of each of several indexes, in one round trip."""
        async with self._redis.pipeline(transaction=False) as batch:
            for key in keys:
                batch.zrange(key, start, end, byscore=True, withscores=True, **options)
            replies: list[Any] = await batch.execute()
        return [[Listed(int(score), session.decode()) for session, score in rows] for rows in replies]

    async def counts(self, owner: str | None) -> Counts:
        """Exact counts of one owner, or of everybody (None). Cost: two round trips."""

        async def ask() -> Counts:
            seconds, micros = await self._redis.time()
            now_ms = seconds * 1000 + micros // 1000
            sums = dict.fromkeys(("messages", "bytes", "age_s", "expired", "evicted", "deleted"), 0)
            sweeps = 0
            total = unswept = 0
            async with self._redis.pipeline(transaction=False) as batch:
                for ref in self._buckets(owner):
                    by_expiry = ref.by_expiry if owner is None else ref.owner_by_expiry
                    batch.zcard(by_expiry)
                    batch.zcount(by_expiry, "-inf", now_ms)
                    batch.hget(ref.counters, "sweeps")
                    batch.hgetall(ref.counters if owner is None else ref.owner_counters)
                replies: list[Any] = await batch.execute()
            for bucket_total, bucket_unswept, bucket_sweeps, counters in _batched(replies, 4):
                total += bucket_total
                unswept += bucket_unswept
                sweeps += int(bucket_sweeps or 0)
                for field in sums:
                    sums[field] += int(counters.get(field.encode(), 0))
            age_s = total * (seconds - SERVICE_EPOCH_S) - sums["age_s"]
            return Counts(
                total=total,
                expired_unswept=unswept,
                messages=sums["messages"],
                size_bytes=sums["bytes"],
                age_s=age_s,
                expired=sums["expired"],
                evicted=sums["evicted"],
                deleted=sums["deleted"],
                sweeps=sweeps,
            )

        return await self._asked(ask)

    async def sizes(self, owner: str | None) -> list[int]:
        """Sessions in each bucket, of one owner or everybody's. Cost: a command for each."""

        async def ask() -> list[int]:
            async with self._redis.pipeline(transaction=False) as batch:
                for ref in self._buckets(owner):
                    batch.zcard(ref.by_access if owner is None else ref.owner_by_access)
                return await batch.execute()

        return await self._asked(ask)

    async def oldest(self, owner: str | None, count: int) -> list[Listed]:
        """Those not accessed for longest, of one owner or of everybody."""

        async def ask() -> list[Listed]:
            keys = [ref.by_access if owner is None else ref.owner_by_access for ref in self._buckets(owner)]
            pages = await self._ranges(keys, "-inf", "+inf", offset=0, num=count)
            return nsmallest(count, [listed for page in pages for listed in page])

        return await self._asked(ask)

    async def expired(self, count: int, *, owner: str | None = None, bucket: int | None = None) -> list[str]:
        """Ids whose end of life has come by the server's clock, of one owner, one bucket, or all; longest gone first.

        Cost: two round trips.
        """

        async def ask() -> list[str]:
            seconds, micros = await self._redis.time()
            now_ms = seconds * 1000 + micros // 1000
            refs = self._buckets(owner) if bucket is None else [self._keyspace.index(bucket, "")]
            keys = [ref.by_expiry if owner is None else ref.owner_by_expiry for ref in refs]
            pages = await self._ranges(keys, "-inf", now_ms, offset=0, num=count)
            return [listed.session_id for listed in nsmallest(count, [one for page in pages for one in page])]

        return await self._asked(ask)

    async def refs(self, session_ids: list[str]) -> list[SessionRef]:
        """The sessions with the keys of their owners, whoever they are; those without a size record are left out."""

        async def ask() -> list[SessionRef]:
            async with self._redis.pipeline(transaction=False) as batch:
                for session_id in session_ids:
                    batch.hget(self._keyspace.index(int(session_id[5:7], 16), "").sizes, session_id)
                records = await batch.execute()
            return [
                self._keyspace.of_tag(session_id, record.split()[0].decode())
                for session_id, record in zip(session_ids, records, strict=True)
                if record
            ]

        return await self._asked(ask)
