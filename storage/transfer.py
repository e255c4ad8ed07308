"""Whole sessions: copied to go on from one of their messages, read out, and put back elsewhere.

A fork is one script, within the server: what is copied is of one instant, or nothing is (scripts/fork.lua). A session
is read in two steps: all but its messages, of one instant, and then the messages, a page at a time. They only grow,
unless somebody rewinds or deletes meanwhile: `unchanged` tells, and who does not ask it behind a page has read nothing.
Putting back is one script again (scripts/restore.lua): a session is there whole or not at all, and a restore sent again
with its nonce writes nothing.

What a crash leaves: nothing, or the whole session.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

from redis.asyncio import Redis

from storage.attachments import take_out_all
from storage.capacity import Capacity
from storage.checkpoints import NO_ACCOUNT, UNSAID, Account, Checkpoint, Wishes, read_checkpoint_text
from storage.keys import SessionRef
from storage.replies import read_create, read_fate, read_fork
from storage.results import Corrupt, Created, Exists, Fate, Full, Gone, Moved, SessionTorn, Stale, TurnsFull
from storage.scripts import OnCall, ScriptRunner, nobody
from storage.sessions import Snapshot, read_fields
from storage.shares import OWNER, SHARED_WITH_ONE_MAX
from storage.turns import Cut, Usage


class Told(NamedTuple):
    """A turn as it is read and restored: its record, and what became of it; None while it runs."""

    record: bytes
    fate: Fate | None


@dataclass(frozen=True, slots=True)
class Whole:
    """All of a session but its messages, at one instant. The turns are by number, the first is turn 1."""

    snapshot: Snapshot
    nonce: str
    preamble: bytes
    turns: Sequence[Told]
    cuts: Sequence[Cut]
    shares: Mapping[str, str]
    checkpoint: Checkpoint | None


@dataclass(frozen=True, slots=True)
class Fork:
    """What a fork fixes.

    Attributes:
        nonce: of the new session.
        ttl_ms, absolute_end_ms: of the new session; 0 none.
        head: of the source, as the caller saw it.
        messages, turns: that are kept of the source's.
        turn_id, record: of the turn that forks.
        turns_max: that a session may have.
        title, metadata_json: empty for the source's.
        context: what is known of the context, opaque.
    """

    nonce: str
    ttl_ms: int
    absolute_end_ms: int
    head: str
    messages: int
    turns: int
    turn_id: str
    record: bytes
    turns_max: int
    title: str = ""
    metadata_json: bytes = b""
    context: str = ""


@dataclass(frozen=True, slots=True)
class Restored:
    """A session to be put back. ``0`` and empty mean none, as in `NewSession`; texts are JSON or plain as named.

    Attributes:
        nonce: so that it is put back once.
        created_ms: 0 for now.
        head: id of the last committed turn; "" where there is none.
        turn_count: committed turns that are part of the history.
        context: what is known of the context, opaque.
        turns: id, record and fate of every turn, by number; none may be open.
        elements: the messages, oldest first (see elements.py).
        account: of its checkpoints, the summary of which is given where it covers any.
        wishes: about them.
    """

    nonce: str
    ttl_ms: int
    absolute_end_ms: int
    name: str
    created_ms: int
    head: str
    model: str
    max_turns: int
    turn_count: int
    epoch_hash: str
    epoch_start: int
    context: str
    usage: Usage
    system_json: bytes
    title: str
    metadata_json: bytes
    preamble: bytes
    cuts: Sequence[Cut]
    turns: Sequence[tuple[str, bytes, Fate]]
    elements: Sequence[bytes]
    account: Account = NO_ACCOUNT
    summary: bytes = b""
    wishes: Wishes = UNSAID


_LETTERS = {"committed": "C", "aborted": "A", "dead": "D"}


class Transfer:
    """Forks, reads and restores sessions of one namespace.

    Args:
        redis: see connect.py.
        capacity: makes room for new ones.
        budget_s: how long one operation may take in all.
        on_call: see scripts.py.
    """

    def __init__(self, redis: Redis, capacity: Capacity, *, budget_s: float, on_call: OnCall = nobody) -> None:
        self._redis = redis
        self._scripts = ScriptRunner(redis, on_call=on_call)
        self._capacity = capacity
        self._budget_s = budget_s

    async def fork(
        self, source: SessionRef, target: SessionRef, fork: Fork
    ) -> Created | Exists | Full | Gone | Moved | TurnsFull | Corrupt:
        """Copies a session, to go on from one of its messages; see scripts/fork.lua.

        Args:
            source: the session.
            target: the new one's id, in the same bucket, as its owner addresses it, who must have a role in the source.
            fork: what is fixed.
        """
        keys = (*target.keys, *(source.keys[index] for index in (0, 1, 2, 3, 4, 5, 7, 16)))
        args = (
            *(target.id, target.principal, target.owner_tag, fork.nonce, fork.ttl_ms, fork.absolute_end_ms),
            *(fork.head, fork.messages, fork.turns, fork.turn_id, fork.record, fork.turns_max),
            *(fork.title, fork.metadata_json, fork.context),
        )

        async def attempt(
            allowed: tuple[int, int],
        ) -> Created | Exists | Stale | Full | Gone | Moved | TurnsFull | Corrupt:
            return read_fork(await self._scripts.run("fork", keys, (*args, *allowed), budget_s=self._budget_s))

        return await self._capacity.placed(target, attempt)

    async def read(self, ref: SessionRef) -> Whole | Gone:
        """All of a session but its messages. Cost: one round trip, O(turns).

        Raises:
            SessionTorn: a part of it is missing.
        """

        async def ask() -> list[Any]:
            async with self._redis.pipeline(transaction=True) as batch:
                batch.hgetall(ref.keys[0])
                batch.hgetall(ref.keys[4])
                batch.pexpiretime(ref.keys[0])
                batch.lrange(ref.keys[2], 0, -1)
                batch.hgetall(ref.keys[3])
                batch.lrange(ref.keys[5], 0, -1)
                batch.hgetall(ref.keys[16])
                return await batch.execute()

        fields, texts, expires, records, verdicts, cuts, shares = await self._scripts.read(ask, budget_s=self._budget_s)
        s, j = ({name.decode(): value for name, value in part.items()} for part in (fields, texts))
        role = OWNER if s and s["own"] == ref.principal.encode() else shares.get(ref.principal.encode(), b"").decode()
        if not s or not role:
            return Gone()
        if not j.keys() >= {"system", "title", "metadata"} or len(records) != int(s["ln"]):
            raise SessionTorn("texts or turns")
        fates = {fate.number: fate for fate in map(read_fate, verdicts.values())}
        return Whole(
            read_fields(role, expires, 0, s, j),
            s["nonce"].decode(),
            j.get("preamble", b""),
            [Told(record, fates.get(number)) for number, record in enumerate(records, start=1)],
            [Cut(*map(int, cut.split())) for cut in cuts],
            {principal.decode(): share.decode() for principal, share in shares.items()},
            read_checkpoint_text(j.get("checkpoint", b"")),
        )

    async def unchanged(self, ref: SessionRef, whole: Whole) -> bool:
        """Whether who read it may still, and the messages that it had then are its first ones. Cost: one round trip."""

        async def ask() -> list[Any]:
            async with self._redis.pipeline(transaction=True) as batch:
                batch.hmget(ref.keys[0], ["nonce", "own"])
                batch.llen(ref.keys[5])
                batch.hget(ref.keys[16], ref.principal)
                return await batch.execute()

        (nonce, own), cuts, share = await self._scripts.read(ask, budget_s=self._budget_s)
        may = own == ref.principal.encode() or share is not None
        return may and (nonce, cuts) == (whole.nonce.encode(), len(whole.cuts))

    async def is_made(self, ref: SessionRef, nonce: str) -> bool:
        """Whether the session is there, of this owner and with this nonce. Cost: one round trip."""

        async def ask() -> list[Any]:
            async with self._redis.pipeline(transaction=False) as batch:
                batch.hmget(ref.keys[0], ["nonce", "own"])
                return await batch.execute()

        [[made, own]] = await self._scripts.read(ask, budget_s=self._budget_s)
        return (made, own) == (nonce.encode(), ref.principal.encode())

    async def restore(self, ref: SessionRef, restored: Restored, shares: Mapping[str, str]) -> Created | Exists | Full:
        """Puts a session back under an id that is free; see scripts/restore.lua. Repeatable by nonce.

        Args:
            ref: the id, as its owner addresses it.
            restored: the session.
            shares: role by principal. One with whom as many are shared as may be is left out, and told; the owner, too,
                and not told.
        """
        usage, account = restored.usage, restored.account
        shared = {principal: role for principal, role in shares.items() if principal != ref.principal}
        keys = (*ref.keys, *ref.shared_with(shared))
        stored, taken = take_out_all(restored.elements, ())
        fixed = (
            *(ref.id, ref.principal, ref.owner_tag, restored.nonce, restored.ttl_ms, restored.absolute_end_ms),
            *(restored.name, restored.head, restored.created_ms, restored.model, restored.max_turns),
            *(restored.turn_count, restored.epoch_hash, restored.epoch_start),
            *(usage.input, usage.output, usage.cache_read, usage.cache_written),
            *(restored.system_json, restored.title, restored.metadata_json, restored.preamble),
            *(restored.wishes.tokens_target, restored.wishes.instructions),
            *(account.version, account.covers, account.created_ms, account.tokens, restored.summary),
            *(account.input_tokens, account.output_tokens),
        )
        counts = (len(restored.cuts), len(restored.turns), sum(map(len, stored)), len(taken), SHARED_WITH_ONE_MAX)
        parts = (
            restored.context,
            restored.wishes.context_policy,
            *chain.from_iterable(shared.items()),
            *(f"{cut.number} {cut.messages}" for cut in restored.cuts),
            *chain.from_iterable((turn_id, _verdict(fate), record) for turn_id, record, fate in restored.turns),
            *chain.from_iterable(taken.items()),
            *stored,
        )

        async def attempt(allowed: tuple[int, int]) -> Created | Exists | Stale | Full:
            args = (*fixed, *allowed, *counts, *parts)
            return read_create(await self._scripts.run("restore", keys, args, budget_s=self._budget_s))

        return await self._capacity.placed(ref, attempt)


def _verdict(fate: Fate) -> str:
    return f"{_LETTERS[fate.verdict]}{fate.number}{'d' if fate.delivered else ''}"
