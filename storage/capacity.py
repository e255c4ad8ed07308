"""Room for sessions: caps kept by evicting, and the sweep of what has expired.

Caps are checked by create.lua before it inserts: it answers FULL, room is made, it is asked again; after a few times
there is no room (everything that could go is busy). First goes what has expired, then the creator's own session that
was not accessed for longest; at the global cap another owner's only if the creator has none, so nobody can push others
out by creating. A session with a running turn is never taken: evict.lua looks.

With one bucket the caps are exact. With more, a bucket's script sees its own count only; the others' are sums that may
be a second old, so the overshoot is at most what was created in that second.

Sweeping: every replica tries every bucket each interval, one gets the lock of the bucket. Whatever a sweeper leaves
undone when it dies is found by the next.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Literal, TypeVar

from redis.asyncio import Redis

from storage.index import Index, Listed
from storage.keys import Keyspace, SessionRef
from storage.replies import Reply, read_evict, read_sweep, read_sweep_lock
from storage.results import Full, Stale, StoreUnavailable
from storage.scripts import OnCall, ScriptRunner, nobody, together
from storage.shares import with_grantees

SWEEP_BATCH: Final = 50
_SUMS_FRESH_S: Final = 1.0
_ATTEMPTS: Final = 8  # to place one session
_CANDIDATES: Final = (4, 64)  # asked for first, and if every one of those is busy

End = Literal["expired", "evicted"]
_T = TypeVar("_T")


class Capacity:
    """Caps and sweeping of one namespace.

    Args:
        redis: see connect.py.
        index: who is there.
        keyspace: the namespace.
        per_owner_max: sessions of one owner.
        total_max: sessions of everybody.
        budget_s: how long one script may take in all, and the placing of a session.
        on_end: told of every session that was taken out here, and why.
        evicts: whether sessions that live may go to make room.
        on_call: see scripts.py.
    """

    def __init__(
        self,
        redis: Redis,
        index: Index,
        keyspace: Keyspace,
        *,
        per_owner_max: int,
        total_max: int,
        budget_s: float,
        on_end: Callable[[End], None],
        evicts: bool = True,
        on_call: OnCall = nobody,
    ) -> None:
        self._index = index
        self._evicts = evicts
        self._redis = redis
        self._scripts = ScriptRunner(redis, on_call=on_call)
        self._keyspace = keyspace
        self._per_owner_max = per_owner_max
        self._total_max = total_max
        self._budget_s = budget_s
        self._on_end = on_end
        self._sums: dict[str | None, tuple[float, list[int]]] = {}

    async def allowance(self, ref: SessionRef) -> tuple[int, int]:
        """How many sessions the bucket of ``ref`` may hold before the owner's and the global cap are reached."""
        if self._keyspace.buckets == 1:
            return self._per_owner_max, self._total_max
        bucket = int(ref.id[5:7], 16)
        own, everybody = await self._counted(ref.principal), await self._counted(None)
        return self._per_owner_max - sum(own) + own[bucket], self._total_max - sum(everybody) + everybody[bucket]

    async def placed(
        self, ref: SessionRef, attempt: Callable[[tuple[int, int]], Awaitable[_T | Stale | Full]]
    ) -> _T | Full:
        """Places a new session, sweeping an expired one of the same id first and making room.

        Args:
            ref: of the new session.
            attempt: to create it, given what the bucket may hold (see `allowance`); may be called several times.

        Returns:
            Full: a cap is reached and nothing could be removed.
        """
        result: _T | Stale | Full = Stale()
        with together(self._budget_s):
            for _ in range(_ATTEMPTS):
                result = await attempt(await self.allowance(ref))
                if isinstance(result, Stale):
                    await self.sweep(ref)
                elif isinstance(result, Full):
                    if not await self.make_room(ref, result):
                        return result
                else:
                    return result
        if isinstance(result, Full):
            return result
        raise StoreUnavailable("the expired session could not be swept", outcome_unknown=False)

    async def _counted(self, owner: str | None, *, anew: bool = False) -> list[int]:
        """Sessions in each bucket, of one owner or everybody's; up to a second old unless asked for ``anew``."""
        now = time.monotonic()
        counted_at, sizes = self._sums.get(owner, (float("-inf"), []))
        if anew or now - counted_at > _SUMS_FRESH_S:
            self._sums = {one: sums for one, sums in self._sums.items() if now - sums[0] <= _SUMS_FRESH_S}
            sizes = await self._index.sizes(owner)
            self._sums[owner] = (now, sizes)
        return sizes

    async def make_room(self, ref: SessionRef, full: Full) -> bool:
        """Removes one session so that another can be created; False if none could go.

        Sums that were a second old may have said FULL wrongly, so they are taken anew before anybody has to go.
        """
        own, everybody = [await self._counted(one, anew=True) for one in (ref.principal, None)]
        if sum(own) < self._per_owner_max and sum(everybody) < self._total_max:
            return True
        # What is removed below is in nobody's sums: the next look is a fresh one.
        self._sums.clear()
        owner = ref.principal if full.cap == "owner" or sum(own) > 0 else None
        expired = await self._index.expired(_CANDIDATES[0], owner=ref.principal if full.cap == "owner" else None)
        for gone in await self._index.refs(expired):
            if await self.sweep(gone):
                return True
        for count in _CANDIDATES if self._evicts else ():
            for candidate in await self._index.oldest(owner, count):
                if await self._evict(candidate):
                    return True
        return False

    async def _evict(self, candidate: Listed) -> bool:
        for ref in await self._index.refs([candidate.session_id]):
            end = read_evict(await self._removed("evict", ref, candidate.score))
            if end is not None:
                self._on_end(end)
                return True
        return False

    async def sweep(self, ref: SessionRef) -> bool:
        """Takes one expired session out of indexes and counters; False if it lives, or belongs to another owner."""
        swept = read_sweep(await self._removed("sweep", ref))
        if swept == "swept":
            self._on_end("expired")
        return swept != "live"

    async def _removed(self, verb: str, ref: SessionRef, *args: int) -> Reply:

        async def remove(grantees: Sequence[str], lists: Sequence[str]) -> Reply:
            said = (ref.id, ref.owner_tag, *args, *grantees)
            return await self._scripts.run(verb, (*ref.keys, *lists), said, budget_s=self._budget_s)

        return await with_grantees(self._redis, ref, remove, budget_s=self._budget_s)

    async def sweep_bucket(self, bucket: int, *, interval_ms: int) -> int | None:
        """Sweeps a bucket if nobody did within the interval; how many sessions went, None if it was not our turn.

        The lock is the schedule too: it lives one interval and is not released.
        """
        keys = self._keyspace.index(bucket, "")
        reply = await self._scripts.run(
            "sweep_lock", (keys.sweep_lock, keys.counters), (interval_ms,), budget_s=self._budget_s
        )
        if not read_sweep_lock(reply):
            return None
        swept = 0
        while expired := await self._index.expired(SWEEP_BATCH, bucket=bucket):
            gone = [await self.sweep(ref) for ref in await self._index.refs(expired)]
            swept += sum(gone)
            if not any(gone):
                # All live again, and have been given their places in the index: the next interval's business.
                return swept
        return swept
