"""The verbs of a turn on the store: begin, history, renew, commit, abort.

States of a turn id, each change one script: unknown → pending (begin) → committed (commit), aborted (abort by its
holder) or dead (declared by whoever found its lease over: the next begin, or abort as finder). A verdict is written
once, in the hash of verdicts, and every verb that meets it answers it and writes nothing. An unknown id can be aborted
too, so that a begin that is still on its way is refused when it arrives.

What a crash leaves: between begin and a verdict, a lease that runs out; nothing else.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
    read_abort,
    read_begin,
    read_commit,
    read_renew,
)
from storage.scripts import ScriptRunner

LEASE_MS_MAX = 300_000
"""No lease may be longer: an end further away than this counts as over (scripts/shared/lease.lua)."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one turn, as Claude counts them: ``input`` is the uncached part only."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_written: int = 0


@dataclass(frozen=True, slots=True)
class Commit:
    """What a turn adds.

    Attributes:
        head: as `Begun` told it.
        record: the turn record, opaque to the store.
        model, epoch_hash, epoch_start: what the turn was sent with.
        system_json: the system prompt to keep from now on; empty to leave it as stored.
        elements: the new messages, oldest first (see elements.py); may be none.
    """

    head: str
    record: bytes
    model: str
    epoch_hash: str
    epoch_start: int
    system_json: bytes
    usage: Usage
    elements: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class History:
    """The stored messages, oldest first, and the stored system prompt (JSON, empty if none)."""

    elements: list[bytes]
    system_json: bytes


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
        """The first ``messages`` elements and the system prompt, in one round trip.

        A turn that lost its lease meanwhile may read what another one wrote; its commit is fenced.
        """
        try:
            async with asyncio.timeout(self._begin_budget_s), self._redis.pipeline(transaction=False) as batch:
                if messages:
                    batch.lrange(ref.keys[1], 0, messages - 1)
                batch.hget(ref.keys[4], "system")
                replies: list[Any] = await batch.execute()
        except (RedisError, TimeoutError) as error:
            raise StoreUnavailable(type(error).__name__, outcome_unknown=False) from error
        return History(replies[0] if messages else [], replies[-1] or b"")

    async def renew(
        self, ref: SessionRef, turn_id: str, *, lease_ms: int, usage: Usage
    ) -> Renewed | Settled | Lost | Gone:
        """Keeps the lease and tells whether to cancel; see scripts/renew.lua."""
        numbers = f"{usage.input} {usage.output} {usage.cache_read} {usage.cache_written}"
        args = (ref.id, turn_id, lease_ms, numbers)
        return read_renew(await self._scripts.run("renew", ref.keys, args, budget_s=self._begin_budget_s))

    async def commit(self, ref: SessionRef, turn_id: str, commit: Commit) -> Settled | Fenced | Corrupt | Gone:
        """Makes the turn history, or says why not; see scripts/commit.lua."""
        usage = commit.usage
        args = (
            ref.id,
            turn_id,
            commit.head,
            commit.record,
            commit.model,
            commit.epoch_hash,
            commit.epoch_start,
            commit.system_json,
            usage.input,
            usage.output,
            usage.cache_read,
            usage.cache_written,
            sum(map(len, commit.elements)),
            *commit.elements,
        )
        reply = await self._scripts.run("commit", ref.keys, args, budget_s=self._settle_budget_s, wait_for_server=True)
        return read_commit(reply)

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
