"""A store under test: verbs with defaults, what a test may look at, and waiting by the server's own clock."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from storage.capacity import Capacity
from storage.checkpoints import Checkpoints
from storage.connect import Deadlines, connect
from storage.elements import FIRST_DIGEST, pack
from storage.index import Index
from storage.keys import Keyspace, SessionRef, new_nonce, new_turn_id
from storage.log import Log
from storage.results import (
    BeginResult,
    Begun,
    Corrupt,
    Created,
    Denied,
    Exists,
    Fenced,
    Full,
    Gone,
    Live,
    Lost,
    Removed,
    Renewed,
    Settled,
    UnknownTurn,
    Verdict,
)
from storage.routing import Routed
from storage.sessions import NewSession, Sessions
from storage.shares import Shares
from storage.transfer import Transfer
from storage.turns import NOTHING_SHOWN, Commit, Request, Shown, Turns, Usage

OWNER = "alice"
SECRET = b"0123456789abcdef"
PLAIN = Request("print")
TTL_MS = 600_000
LEASE_MS = 120_000
WAIT_S = 5.0

Everything = dict[str, tuple[Any, int]]


def elements(count: int, text: str = "m") -> list[bytes]:
    """Distinct small elements."""
    return [pack(b'{"role":"user","content":"%s%d"}' % (text.encode(), i), FIRST_DIGEST) for i in range(count)]


def attached(*data: str) -> bytes:
    """An element with these attachments."""
    sources = b",".join(b'{"type":"document","source":{"type":"text","data":"%s"}}' % one.encode() for one in data)
    return pack(b'{"role":"user","content":[%s]}' % sources, FIRST_DIGEST)


def frames(first: int, last: int) -> bytes:
    """Frames of these ordinals, as the caller of a streamed turn is shown them."""
    return b"".join(b'id: %d\ndata: {"delta":"%d"}\n\n' % (n, n) for n in range(first, last + 1))


def shown(first: int, last: int) -> Shown:
    return Shown(last, frames(first, last))


def real_redis(url: str, deadlines: Deadlines | None = None) -> Any:
    return connect(url, connections_max=8, deadlines=deadlines or Deadlines())


@dataclass(frozen=True)
class Store:
    """One namespace of one server. ``redis`` is untyped: tests look at keys by any command.

    ``ends`` grows by one word for every session that made room or was swept.
    """

    redis: Any
    keyspace: Keyspace
    index: Index
    capacity: Capacity
    sessions: Sessions
    turns: Turns
    log: Log
    shares: Shares
    transfer: Transfer
    checkpoints: Checkpoints
    ends: list[str]

    @classmethod
    def of(
        cls,
        redis: Any,
        namespace: str,
        *,
        buckets: int = 1,
        secret: bytes = SECRET,
        budget_s: float = 5.0,
        per_owner_max: int = 1_000_000,
        total_max: int = 1_000_000,
    ) -> "Store":
        keyspace = Keyspace(namespace, buckets, secret)
        index = Index(redis, keyspace, budget_s=budget_s)
        ends: list[str] = []
        capacity = Capacity(
            redis,
            index,
            keyspace,
            per_owner_max=per_owner_max,
            total_max=total_max,
            budget_s=budget_s,
            on_end=ends.append,
        )
        sessions = Sessions(redis, keyspace, capacity, budget_s=budget_s)
        turns = Turns(redis, begin_budget_s=budget_s, settle_budget_s=budget_s)
        return cls(
            redis,
            keyspace,
            index,
            capacity,
            sessions,
            turns,
            Log(redis, budget_s=budget_s),
            Shares(redis, budget_s=budget_s),
            Transfer(redis, capacity, budget_s=budget_s),
            Checkpoints(redis, budget_s=budget_s),
            ends,
        )

    def capped(self, *, per_owner_max: int = 1_000_000, total_max: int = 1_000_000) -> "Store":
        """The same namespace as a replica with caps sees it."""
        return Store.of(
            self.redis,
            self.keyspace.namespace,
            buckets=self.keyspace.buckets,
            per_owner_max=per_owner_max,
            total_max=total_max,
        )

    def ref(self, owner: str = OWNER) -> SessionRef:
        """A new id that nobody has created."""
        return self.keyspace.session(self.keyspace.issue(), owner)

    async def create(
        self, ref: SessionRef, nonce: str = "", ttl_ms: int = TTL_MS, **fixed: Any
    ) -> Created | Exists | Full:
        return await self.sessions.create(ref, NewSession(nonce or new_nonce(), ttl_ms, **fixed))

    async def created(self, **fixed: Any) -> SessionRef:
        """A session that has just been created."""
        ref = self.ref()
        assert await self.create(ref, **fixed) == Created()
        return ref

    async def begin(
        self, ref: SessionRef, turn: str, *, lease_ms: int = LEASE_MS, turns_max: int = 1_000, **asked: Any
    ) -> BeginResult:
        record = f"pending {turn}".encode()
        fields = {"request": PLAIN} | asked
        return await self.turns.begin(
            ref, turn, replica="r1", lease_ms=lease_ms, record=record, turns_max=turns_max, **fields
        )

    async def begun(
        self, ref: SessionRef, turn: str = "", *, lease_ms: int = LEASE_MS, **asked: Any
    ) -> tuple[str, Begun]:
        """A turn that has just begun: its id and the answer."""
        turn = turn or new_turn_id()
        begun = await self.begin(ref, turn, lease_ms=lease_ms, **asked)
        assert isinstance(begun, Begun)
        return turn, begun

    async def renew(
        self, ref: SessionRef, turn: str, shown: Shown = NOTHING_SHOWN, *, lease_ms: int = LEASE_MS
    ) -> Renewed | Settled | Lost | Denied | Gone:
        return await self.turns.renew(ref, turn, lease_ms=lease_ms, usage=Usage(output=1), shown=shown)

    async def commit(
        self, ref: SessionRef, turn: str, head: str, messages: list[bytes], **changes: Any
    ) -> Settled | Fenced | Corrupt | Denied | Gone:
        fields: dict[str, Any] = {
            "record": f"record {turn}".encode(),
            "model": "claude-x",
            "epoch_hash": "e1",
            "epoch_start": 0,
            "revision": 1,
            "system_json": b"",
            "preamble": b"",
            "usage": Usage(),
        }
        return await self.turns.commit(ref, turn, Commit(head=head, elements=messages, **(fields | changes)))

    async def committed(self, ref: SessionRef, messages: list[bytes], **changes: Any) -> str:
        """A whole turn; its id."""
        turn, begun = await self.begun(ref)
        changes = {"revision": begun.revision} | changes
        assert await self.commit(ref, turn, begun.head, messages, **changes) == Settled("committed", begun.number)
        return turn

    async def settled(
        self, ref: SessionRef, verdict: Verdict, request: Request = PLAIN, messages: Sequence[bytes] = ()
    ) -> tuple[str, Begun]:
        """A turn that has this verdict: its id and what its begin was answered."""
        turn, begun = await self.begun(ref, request=request, lease_ms=1 if verdict == "dead" else LEASE_MS)
        result: Any
        match verdict:
            case "committed":
                result = await self.commit(ref, turn, begun.head, list(messages), revision=begun.revision)
            case "aborted":
                result = await self.abort(ref, turn)
            case "dead":
                await self.until_lease_is_over(ref)
                result = await self.abort(ref, turn, "finder")
        assert result == Settled(verdict, begun.number)
        return turn, begun

    async def abort(
        self, ref: SessionRef, turn: str, mode: Literal["holder", "finder"] = "holder", end: Shown = NOTHING_SHOWN
    ) -> Settled | Removed | Live | UnknownTurn | Gone:
        return await self.turns.abort(ref, turn, mode, end=end)

    async def field(self, ref: SessionRef, name: str) -> str:
        """One field of the session's hash."""
        value = await self.redis.hget(ref.keys[0], name)
        assert value is not None, f"no field {name}"
        return str(value.decode())

    async def counters(self, ref: SessionRef) -> dict[str, int]:
        """The bucket's counters that are not zero, after checking that the owner's are the same."""
        whole, own = [await self.redis.hgetall(key) for key in ref.keys[14:16]]
        assert whole == own
        return {name.decode(): int(value) for name, value in whole.items() if int(value)}

    async def primaries(self) -> list[Any]:
        """A client of each server that keeps something."""
        return await self.redis.primaries() if isinstance(self.redis, Routed) else [self.redis]

    async def everything(self) -> Everything:
        """Every key of the namespace with its value and end of life; not one that ends while it is looked at."""
        read = {
            b"string": self.redis.get,
            b"hash": self.redis.hgetall,
            b"list": lambda key: self.redis.lrange(key, 0, -1),
            b"zset": lambda key: self.redis.zrange(key, 0, -1, withscores=True),
            b"stream": self.redis.xrange,
        }
        found: Everything = {}
        keys = [
            key
            for server in await self.primaries()
            async for key in server.scan_iter(match="{" + self.keyspace.namespace + ":*", count=1_000)
        ]
        for key in keys:
            kind = await self.redis.type(key)
            value = await read[kind](key) if kind != b"none" else None
            if (end := await self.redis.pexpiretime(key)) != -2:  # asked last: -2 means that it has gone by now
                found[key.decode()] = (value, end)
        return found

    async def now_ms(self) -> int:
        seconds, micros = await self.redis.time()
        return int(seconds) * 1_000 + int(micros) // 1_000

    async def until_ms(self, instant_ms: int) -> None:
        """Waits for the server's clock."""

        async def reached() -> bool:
            return await self.now_ms() >= instant_ms

        await until(reached)

    async def until_lease_is_over(self, ref: SessionRef) -> None:
        await self.until_ms(int(await self.field(ref, "lx")))

    async def until_expired(self, ref: SessionRef) -> None:
        """Waits for the server to let every key of the session go."""

        async def expired() -> bool:
            return [await self.redis.pttl(key) for key in ref.keys[:8]] == [-2] * 8

        await until(expired)

    async def assert_consistent(self, ref: SessionRef) -> None:
        """One end of life, one time of access, one size: in the session's keys, the indexes and the size record."""
        ends = [await self.redis.pexpiretime(key) for key in ref.keys[:8]]
        scores = [int(await self.redis.zscore(key, ref.id)) for key in (ref.keys[9], ref.keys[12])]
        assert {end for end in ends if end != -2} == set(scores)
        accessed = [int(await self.redis.zscore(key, ref.id)) for key in ref.keys[10:12]]
        assert set(accessed) == {int(await self.field(ref, "la"))}
        stored = await self.redis.lrange(ref.keys[1], 0, -1)
        blobs = await self.redis.hvals(ref.keys[7])
        record = (await self.redis.hget(ref.keys[13], ref.id)).decode().split(" ")
        assert record[:3] == [ref.owner_tag, str(sum(map(len, stored + blobs))), str(len(stored))]
        assert (await self.field(ref, "b"), await self.field(ref, "n")) == (record[1], record[2])


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Polls; fails after ``WAIT_S``."""
    async with asyncio.timeout(WAIT_S):
        while not await condition():  # noqa: ASYNC110  # what is waited for happens in another process
            await asyncio.sleep(0.005)
