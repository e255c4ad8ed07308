"""What the operations on sessions cost with a few sessions in the store and with many.

Two stores on a server each (one server would hold the keys of both), filled by the create script that production runs.
All sessions are of one owner, so that every index is as large as it can get, and were last accessed at even steps over
the past hour. Operations go through the classes that a replica uses: a slice in one store, the same in the other, again
and again. Each leaves its store as large as it was.

Server time is that of the commands as Valkey counts it, without sockets; the client's is the CPU time of this process,
in which every further round trip shows.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, NamedTuple

from bench.store import capacity
from service.routes import listing
from storage.capacity import SWEEP_BATCH
from storage.connect import Deadlines, connect
from storage.first_contact import first_contact
from storage.index import Index, Listed
from storage.keys import Keyspace, SessionRef, new_nonce
from storage.results import Created
from storage.sessions import NewSession, Sessions

_OWNER: Final = "owner"
_TTL_MS: Final = 86_400_000  # none ends during a run
_PAGE: Final = listing.Query(limit=20, cursor=None, filters={}, title_prefix="", metadata={})
_FILL_BATCH: Final = 500
_LAST_HOUR_MS: Final = 3_600_000
_WAIT_S: Final = 30.0
_POLL_S: Final = 0.01


class Cost(NamedTuple):
    """Of one operation."""

    server_us: float
    client_us: float


class _Pipelined:
    """A client for many at once: what they ask waits until it is sent, as one pipeline."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self._waiting: list[tuple[tuple[Any, ...], asyncio.Future[Any]]] = []

    async def evalsha(self, *args: Any) -> Any:
        reply = asyncio.get_running_loop().create_future()
        self._waiting.append((args, reply))
        return await reply

    async def send(self) -> None:
        waiting, self._waiting = self._waiting, []
        async with self._redis.pipeline(transaction=False) as batch:
            for args, _ in waiting:
                batch.evalsha(*args)
            replies = await batch.execute()
        for (_, reply), value in zip(waiting, replies, strict=True):
            reply.set_result(value)


class FilledStore:
    """A store that holds ``size`` empty sessions.

    Attributes:
        bytes_per_session: memory of the server that one of them takes, indexes and all.
    """

    def __init__(self, url: str, size: int) -> None:
        self.redis: Any = connect(url, connections_max=4, deadlines=Deadlines(command_s=10))
        self.size = size
        self.keyspace = Keyspace("bench", 1, b"secret of a bench")
        self.indexes = self.keyspace.index(0, self.keyspace.owner_tag(_OWNER))
        self.index = Index(self.redis, self.keyspace, budget_s=10)
        self.capacity = capacity(self.redis, self.keyspace)
        self.sessions = Sessions(self.redis, self.keyspace, self.capacity, budget_s=10)
        self.bytes_per_session = 0.0

    async def aclose(self) -> None:
        await self.redis.aclose()

    def refs(self, count: int, owner: str = _OWNER) -> list[SessionRef]:
        """Sessions that are not there yet."""
        return [self.keyspace.session(self.keyspace.issue(), owner) for _ in range(count)]

    async def create(self, ref: SessionRef, *, sessions: Sessions | None = None, ttl_ms: int = _TTL_MS) -> None:
        assert await (sessions or self.sessions).create(ref, NewSession(new_nonce(), ttl_ms)) == Created()

    async def fill(self) -> None:
        await first_contact(self.redis, self.keyspace, eviction_allowed=False, deadline_s=10)
        refs = self.refs(self.size)
        await self.create(refs[0])  # from here on the server knows the script
        before = await self._memory_bytes()
        pipelined: Any = _Pipelined(self.redis)
        sessions = Sessions(pipelined, self.keyspace, self.capacity, budget_s=10)
        for at in range(1, self.size, _FILL_BATCH):
            async with asyncio.TaskGroup() as batch:
                for ref in refs[at : at + _FILL_BATCH]:
                    batch.create_task(self.create(ref, sessions=sessions))
                await asyncio.sleep(0)  # each runs as far as its command
                await pipelined.send()
        await self._spread(refs)
        await self._settled()
        self.bytes_per_session = (await self._memory_bytes() - before) / (self.size - 1)

    async def _spread(self, refs: list[SessionRef]) -> None:
        """Last accesses at even steps: created in bulk, dozens share a millisecond, which they hardly do otherwise."""
        start = int(time.time() * 1000) - _LAST_HOUR_MS
        accessed = {ref.id: start + _LAST_HOUR_MS * at // self.size for at, ref in enumerate(refs)}
        for at in range(0, self.size, _FILL_BATCH):
            part = refs[at : at + _FILL_BATCH]
            scores = {ref.id: accessed[ref.id] for ref in part}
            async with self.redis.pipeline(transaction=False) as batch:
                for key in (self.indexes.by_access, self.indexes.owner_by_access):
                    batch.zadd(key, scores)
                for ref in part:
                    batch.hset(ref.keys[0], "la", accessed[ref.id])
                await batch.execute()

    async def _settled(self) -> None:
        """Waits until the server is no longer rewriting its file: the fork makes its next writes dearer."""

        async def settled() -> bool:
            state = await self.redis.info("persistence")
            return not (state["aof_rewrite_in_progress"] or state["aof_rewrite_scheduled"])

        await _until(settled)

    async def _memory_bytes(self) -> int:
        return int((await self.redis.info("memory"))["used_memory"])

    async def middle(self, count: int) -> list[Listed]:
        """The sessions in the middle of the owner's list."""
        key, start = self.indexes.owner_by_access, self.size // 2
        found = await self.redis.zrange(key, start, start + count - 1, desc=True, withscores=True)
        return [Listed(int(score), session_id.decode()) for session_id, score in found]

    async def until_let_go(self, refs: list[SessionRef]) -> None:
        """Waits for sessions to expire. The last look makes the server delete their keys; the indexes keep them."""

        async def let_go() -> bool:
            return not any(await self.sessions.snapshots(refs))

        await _until(let_go)

    async def times_us(self) -> dict[str, int]:
        stats: dict[str, dict[str, int]] = await self.redis.info("commandstats")
        return {name.removeprefix("cmdstat_"): spent["usec"] for name, spent in stats.items()}


async def _until(reached: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    async with asyncio.timeout(_WAIT_S):
        while not await reached():  # noqa: ASYNC110  # nothing in this process could tell
            await asyncio.sleep(_POLL_S)


_Calls = list[Coroutine[Any, Any, None]]
_Operation = Callable[[FilledStore], AbstractAsyncContextManager[_Calls]]


@asynccontextmanager
async def _create(store: FilledStore) -> AsyncIterator[_Calls]:
    refs = store.refs(20)
    yield [store.create(ref) for ref in refs]
    for ref in refs:
        await store.sessions.delete(ref)


@asynccontextmanager
async def _touch(store: FilledStore) -> AsyncIterator[_Calls]:
    async def touch(listed: Listed) -> None:
        assert await store.sessions.touch(store.keyspace.session(listed.session_id, _OWNER))

    yield [touch(listed) for listed in await store.middle(10)]


async def _page(store: FilledStore, after: Listed | None) -> None:
    page = await listing.page(store.index, store.sessions, _OWNER, _PAGE, after)
    assert len(page.sessions) == _PAGE.limit
    assert page.last is not None


@asynccontextmanager
async def _first_page(store: FilledStore) -> AsyncIterator[_Calls]:
    yield [_page(store, None) for _ in range(5)]


@asynccontextmanager
async def _deep_page(store: FilledStore) -> AsyncIterator[_Calls]:
    [middle] = await store.middle(1)
    yield [_page(store, middle) for _ in range(5)]


@asynccontextmanager
async def _stats(store: FilledStore) -> AsyncIterator[_Calls]:
    async def stats() -> None:
        assert (await store.index.counts(_OWNER)).total == store.size

    yield [stats() for _ in range(20)]


@asynccontextmanager
async def _sweep(store: FilledStore) -> AsyncIterator[_Calls]:
    refs = store.refs(SWEEP_BATCH)
    for ref in refs:
        await store.create(ref, ttl_ms=1)
    await store.until_let_go(refs)

    async def sweep() -> None:
        assert await store.capacity.sweep_bucket(0, interval_ms=1) == SWEEP_BATCH

    yield [sweep()]


@asynccontextmanager
async def _evict_own(store: FilledStore) -> AsyncIterator[_Calls]:
    full = capacity(store.redis, store.keyspace, per_owner_max=store.size)
    sessions = Sessions(store.redis, store.keyspace, full, budget_s=10)
    yield [store.create(ref, sessions=sessions) for ref in store.refs(5)]


@asynccontextmanager
async def _evict_anothers(store: FilledStore) -> AsyncIterator[_Calls]:
    full = capacity(store.redis, store.keyspace, total_max=store.size)
    sessions = Sessions(store.redis, store.keyspace, full, budget_s=10)
    refs = [store.refs(1, f"newcomer {new_nonce()}")[0] for _ in range(5)]
    yield [store.create(ref, sessions=sessions) for ref in refs]
    for ref, instead in zip(refs, store.refs(len(refs)), strict=True):
        await store.sessions.delete(ref)
        await store.create(instead)


_OPERATIONS: Final[dict[str, _Operation]] = {
    "create": _create,
    "touch": _touch,
    "list, first page of 20": _first_page,
    "list, page of 20 from the middle": _deep_page,
    "stats": _stats,
    f"sweep of {SWEEP_BATCH} expired": _sweep,
    "create at the owner's cap": _evict_own,
    "create at the global cap": _evict_anothers,
}


async def measured(stores: Sequence[FilledStore], *, rounds: int) -> dict[str, list[list[Cost]]]:
    """Operation → store → what it cost there, round by round."""
    samples: dict[str, list[list[Cost]]] = {name: [[] for _ in stores] for name in _OPERATIONS}
    for number in range(rounds + 1):
        for name, of in samples.items():
            for store, costs in list(zip(stores, of, strict=True))[:: -1 if number % 2 else 1]:
                cost = await _slice(store, name)
                if number > 0:  # the first makes connections and loads scripts
                    costs.append(cost)
    return samples


async def _slice(store: FilledStore, name: str) -> Cost:
    async with _OPERATIONS[name](store) as calls:
        before = await store.times_us()
        client_ns = time.process_time_ns()
        for call in calls:
            await call
        client_ns = time.process_time_ns() - client_ns
        after = await store.times_us()
    assert (await store.index.counts(None)).total == store.size
    return Cost(_spent_us(before, after) / len(calls), client_ns / 1000 / len(calls))


def _spent_us(before: dict[str, int], after: dict[str, int]) -> int:
    """The time of commands between two looks.

    A command inside a script is counted like one that a client sent, and its time again in the script's. So where
    scripts ran, only they count, and ZRANGE, which none of them uses; what else was sent is a few reads of less than
    a microsecond.
    """
    spent = {name: us - before.get(name, 0) for name, us in after.items() if name != "info"}
    if spent.get("evalsha"):
        return spent["evalsha"] + spent.get("zrange", 0)
    return sum(spent.values())
