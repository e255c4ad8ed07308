"""The verbs of a turn on the store: begin, history, renew, commit, abort.

States of a turn id, each change one script: unknown → pending (begin) → committed (commit), aborted (abort by its
holder) or dead (declared by whoever found its lease over: the next begin, or abort as finder). A verdict is written
once, in the hash of verdicts, and every verb that meets it answers it and writes nothing. An unknown id can be aborted
too, so that a begin that is still on its way is refused when it arrives.

What a crash leaves: between begin and a verdict, a lease that runs out; nothing else.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from storage.keys import SessionRef
from storage.results import (
    Begun,
    Busy,
    Corrupt,
    Fenced,
    Gone,
    Live,
    Lost,
    Removed,
    Renewed,
    Settled,
    StoreUnavailable,
    TurnsFull,
    UnknownTurn,
    Verdict,
    read_abort,
    read_append,
    read_begin,
    read_commit,
    read_renew,
    read_verdict,
)
from storage.scripts import ScriptRunner

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one turn, as Claude counts them: ``input`` is the uncached part only."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_written: int = 0


@dataclass(frozen=True, slots=True)
class Rewind:
    """How much of the history a commit keeps.

    Attributes:
        messages: the first so many stay; ends on a turn's boundary.
        size_bytes: of those.
        turns_dropped: committed turns that go.
    """

    messages: int
    size_bytes: int
    turns_dropped: int


@dataclass(frozen=True, slots=True)
class Commit:
    """What a turn adds.

    Attributes:
        head: as `Begun` told it.
        record: the turn record, opaque to the store.
        model, epoch_hash, epoch_start: what the turn was sent with.
        revision: as `Begun` told it; the model and system prompt of a later patch stand.
        system_json, tools_json: the system prompt and the tools to keep from now on; empty to leave them as stored.
        elements: the new messages, oldest first (see elements.py); may be none.
    """

    head: str
    record: bytes
    model: str
    epoch_hash: str
    epoch_start: int
    revision: int
    system_json: bytes
    tools_json: bytes
    usage: Usage
    elements: Sequence[bytes]
    rewind: "Rewind | None" = None


@dataclass(frozen=True, slots=True)
class History:
    """The stored messages, oldest first, and the stored system prompt and tools (JSON, empty if none)."""

    elements: list[bytes]
    system_json: bytes
    tools_json: bytes


class Cut(NamedTuple):
    """A rewind: the turn of this number kept so many messages of the history before it added its own."""

    number: int
    messages: int


@dataclass(frozen=True, slots=True)
class Ledger:
    """All turns of a session: records by number (the first is turn 1), verdicts by turn id, cuts in order."""

    records: list[bytes]
    verdicts: dict[str, Verdict]
    cuts: list[Cut]


class Turns:
    """Turns of one namespace.

    Args:
        redis: see connect.py.
        begin_budget_s: how long a begin, renew or read may take in all; its caller has been promised nothing yet.
        settle_budget_s: how long a commit or abort is sent again while its outcome is unknown. A commit also waits
            that long for a server that restarts: the caller has already read the answer.
    """

    def __init__(self, redis: Redis, *, begin_budget_s: float, settle_budget_s: float) -> None:
        self._redis = redis
        self._scripts = ScriptRunner(redis)
        self._begin_budget_s = begin_budget_s
        self._settle_budget_s = settle_budget_s

    async def begin(
        self, ref: SessionRef, turn_id: str, *, replica: str, lease_ms: int, record: bytes, turns_max: int
    ) -> Begun | Busy | Settled | TurnsFull | Gone | Corrupt:
        """Takes the lease and numbers the turn; see scripts/begin.lua."""
        args = (ref.id, ref.owner, turn_id, replica, lease_ms, record, turns_max)
        return read_begin(await self._scripts.run("begin", ref.keys, args, budget_s=self._begin_budget_s))

    async def history(self, ref: SessionRef, messages: int) -> History:
        """The first ``messages`` elements, the system prompt and the tools, in one round trip.

        A turn that lost its lease meanwhile may read what another one wrote; its commit is fenced.
        """

        async def ask() -> list[Any]:
            async with self._redis.pipeline(transaction=False) as batch:
                if messages:
                    batch.lrange(ref.keys[1], 0, messages - 1)
                batch.hmget(ref.keys[4], ["system", "tools"])
                return await batch.execute()

        replies = await self._read(ask)
        system, tools = replies[-1]
        return History(replies[0] if messages else [], system or b"", tools or b"")

    async def renew(
        self, ref: SessionRef, turn_id: str, *, lease_ms: int, usage: Usage
    ) -> Renewed | Settled | Lost | Gone:
        """Keeps the lease and tells whether to cancel; see scripts/renew.lua."""
        numbers = f"{usage.input} {usage.output} {usage.cache_read} {usage.cache_written}"
        args = (ref.id, turn_id, lease_ms, numbers)
        return read_renew(await self._scripts.run("renew", ref.keys, args, budget_s=self._begin_budget_s))

    async def commit(self, ref: SessionRef, turn_id: str, commit: Commit) -> Settled | Fenced | Corrupt | Gone:
        """Makes the turn history, or says why not; see scripts/commit.lua."""
        usage, rewind = commit.usage, commit.rewind
        args = (
            ref.id,
            turn_id,
            commit.head,
            commit.record,
            commit.model,
            commit.epoch_hash,
            commit.epoch_start,
            commit.system_json,
            commit.tools_json,
            commit.revision,
            usage.input,
            usage.output,
            usage.cache_read,
            usage.cache_written,
            *((rewind.messages, rewind.size_bytes, rewind.turns_dropped) if rewind else ("", 0, 0)),
            sum(map(len, commit.elements)),
            *commit.elements,
        )
        reply = await self._scripts.run("commit", ref.keys, args, budget_s=self._settle_budget_s, wait_for_server=True)
        return read_commit(reply)

    async def number(self, ref: SessionRef, turn_id: str) -> int | None:
        """The number of a turn of this session; None if it never began. Ask `Sessions.get` for permission first."""

        async def ask() -> tuple[Any, Any]:
            async with self._redis.pipeline(transaction=False) as batch:
                batch.hget(ref.keys[3], turn_id)
                batch.hmget(ref.keys[0], ["lt", "ln"])
                verdict, running = await batch.execute()
            return verdict, running

        verdict, (running, number) = await self._read(ask)
        if verdict:
            return int(verdict[1:]) or None
        return int(number) if running == turn_id.encode() else None

    async def records(self, ref: SessionRef, first: int, last: int) -> list[bytes]:
        """Turn records of numbers ``first`` … ``last``, in that order. Ask `Sessions.get` for permission first."""

        async def ask() -> list[bytes]:
            return await cast("Awaitable[list[bytes]]", self._redis.lrange(ref.keys[2], first - 1, last - 1))

        return await self._read(ask) if last >= first else []

    async def count(self, ref: SessionRef) -> int:
        """How many turns have begun, whatever became of them."""

        async def ask() -> int:
            return await self._redis.llen(ref.keys[2])

        return await self._read(ask)

    async def verdicts(self, ref: SessionRef, turn_ids: Sequence[str]) -> list[Verdict | None]:
        """What became of these turns; None while it is open."""

        async def ask() -> list[bytes | None]:
            return await cast("Awaitable[list[bytes | None]]", self._redis.hmget(ref.keys[3], list(turn_ids)))

        return [read_verdict(value) if value else None for value in await self._read(ask)] if turn_ids else []

    async def ledger(self, ref: SessionRef) -> Ledger:
        """Everything about the session's turns. Cost: one round trip, O(turns): for rewinds, not for every turn."""

        async def ask() -> list[Any]:
            async with self._redis.pipeline(transaction=True) as batch:
                batch.lrange(ref.keys[2], 0, -1)
                batch.hgetall(ref.keys[3])
                batch.lrange(ref.keys[5], 0, -1)
                return await batch.execute()

        records, verdicts, cuts = await self._read(ask)
        return Ledger(
            records,
            {turn_id.decode(): read_verdict(value) for turn_id, value in verdicts.items()},
            [Cut(*map(int, cut.split())) for cut in cuts],
        )

    async def cuts(self, ref: SessionRef) -> list[Cut]:
        """The rewinds of a session, in order. Ask `Sessions.get` for permission first."""

        async def ask() -> list[bytes]:
            return await cast("Awaitable[list[bytes]]", self._redis.lrange(ref.keys[5], 0, -1))

        return [Cut(*map(int, cut.split())) for cut in await self._read(ask)]

    async def _read(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        try:
            async with asyncio.timeout(self._begin_budget_s):
                return await ask()
        except (RedisError, TimeoutError) as error:
            raise StoreUnavailable(type(error).__name__, outcome_unknown=False) from error

    async def append(
        self, ref: SessionRef, turn_id: str, *, head: str, record: bytes, turns_max: int, elements: Sequence[bytes]
    ) -> Settled | Busy | Fenced | TurnsFull | Corrupt | Gone:
        """Makes messages history without asking Claude; see scripts/append.lua."""
        size_bytes = sum(map(len, elements))
        args = (ref.id, ref.owner, turn_id, head, record, turns_max, size_bytes, *elements)
        return read_append(await self._scripts.run("append", ref.keys, args, budget_s=self._begin_budget_s))

    async def abort(
        self, ref: SessionRef, turn_id: str, mode: Literal["holder", "finder"], *, budget_s: float | None = None
    ) -> Settled | Removed | Live | UnknownTurn | Gone:
        """Settles a turn that will not become history; see scripts/abort.lua.

        Args:
            ref: the session.
            turn_id: the turn.
            mode: who asks.
            budget_s: how long it is tried while no server can be reached, too; by default as a commit's outcome is
                looked for, and only while a server can be reached.
        """
        args = (ref.id, turn_id, mode)
        patient = budget_s is not None
        budget_s = self._settle_budget_s if budget_s is None else budget_s
        reply = await self._scripts.run("abort", ref.keys, args, budget_s=budget_s, wait_for_server=patient)
        return read_abort(reply)
