"""The verbs of a turn on the store: begin, history, renew, commit, abort, append, cancel, delivered.

States of a turn id, each change one script: unknown → pending (begin) → committed (commit), aborted (abort by its
holder) or dead (declared by whoever found its lease over: the next begin, or abort as finder). A verdict is written
once, in the hash of verdicts, and every verb that meets it answers it and writes nothing. An unknown id can be aborted
too, so that a begin that is still on its way is refused when it arrives.

A request may be an earlier one sent again. begin recognises it, by idempotency key or by fingerprint, and answers with
the earlier turn instead of beginning another (scripts/shared/ring.lua).

What a crash leaves: between begin and a verdict, a lease that runs out; nothing else.
"""

from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final, Literal, NamedTuple, TypeVar, cast

from redis.asyncio import Redis

from storage import attachments
from storage.checkpoints import TEXTS, UNSAID, Checkpoint, Wishes, read_texts
from storage.keys import SessionRef
from storage.pool import Rank
from storage.replies import (
    read_abort,
    read_append,
    read_begin,
    read_cancel,
    read_commit,
    read_delivered,
    read_fate,
    read_renew,
)
from storage.results import (
    AppendResult,
    BeginResult,
    Cancelling,
    Corrupt,
    Denied,
    Fate,
    Fenced,
    Gone,
    HistoryTooLarge,
    Live,
    Lost,
    Over,
    Removed,
    Renewed,
    Settled,
    UnknownTurn,
    Verdict,
)
from storage.scripts import OnCall, ScriptRunner, nobody, together

_T = TypeVar("_T")
HISTORY_BYTES_MAX: Final = 64 * 1_048_576
"""Of those messages of a session that are read whole, with all attachments: twice what Claude takes, so that a
conversation that has become too large for it can still be rewound or shortened."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one turn, as Claude counts them: ``input`` is the uncached part only."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_written: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """What tells one request from another, and what is known of its being sent before.

    Attributes:
        fingerprint: of who asks and what is asked; no white space.
        key: digest of its idempotency key and of who chose it; "" without one.
        retried: a client library says that it sent the same before, and it has no key.
        replaces: an earlier turn that this one takes the place of: that one is not recognised any more.
    """

    fingerprint: str
    key: str = ""
    retried: bool = False
    replaces: str = ""


@dataclass(frozen=True, slots=True)
class Shown:
    """What the caller of a streamed turn was shown and the log may not have yet.

    Attributes:
        ordinal: of the last of these frames; 0 for a turn that is not streamed.
        frames: whole, one after the other, each with its ordinal; may begin with some that are logged already.
    """

    ordinal: int = 0
    frames: bytes = b""

    def args(self) -> tuple[int | str, bytes]:
        """As the scripts take it."""
        return self.ordinal or "", self.frames


NOTHING_SHOWN = Shown()


@dataclass(frozen=True, slots=True)
class Rewind:
    """How much of the history a commit keeps.

    Attributes:
        messages: the first so many stay; ends on a turn's boundary.
        bytes_dropped: of the messages that go, as `History.sizes` tells them.
        turns_dropped: committed turns that go.
    """

    messages: int
    bytes_dropped: int
    turns_dropped: int


@dataclass(frozen=True, slots=True)
class Commit:
    """What a turn adds.

    Attributes:
        head: as `Begun` told it.
        record: the turn record, opaque to the store.
        model, epoch_hash, epoch_start: what the turn was sent with.
        revision: as `Begun` told it; the model and system prompt of a later patch stand.
        system_json, preamble: the system prompt, and what requests begin with (opaque), from now on; empty to leave
            them as stored.
        elements: the new messages, oldest first (see elements.py); may be none.
        rewind: how much of the history stays; None for all.
        end: the last frames of a streamed answer.
        known: attachments that the session is known to hold: they are not sent again.
        context: what begin answers about the session's context from now on; opaque.
    """

    head: str
    record: bytes
    model: str
    epoch_hash: str
    epoch_start: int
    revision: int
    system_json: bytes
    preamble: bytes
    usage: Usage
    elements: Sequence[bytes]
    rewind: Rewind | None = None
    end: Shown = NOTHING_SHOWN
    known: Collection[str] = ()
    context: str = ""


@dataclass(frozen=True, slots=True)
class History:
    """The stored messages, oldest first, the stored system prompt (JSON) and preamble; these empty if none.

    Attributes:
        elements: with their attachments, but for those of users in front of ``whole_from``; there are empty strings.
        sizes: bytes of each element as it is stored, without attachments.
        attachments: the names of all that the elements hold.
        checkpoint: what stands for the oldest of them.
        wishes: of the session, about the next one.
        whole_from: the first message of which nothing was left out.
    """

    elements: list[bytes]
    system_json: bytes
    preamble: bytes
    sizes: Sequence[int] = field(default=(), compare=False)
    attachments: Collection[str] = field(default=(), compare=False)
    checkpoint: Checkpoint | None = None
    wishes: Wishes = UNSAID
    whole_from: int = field(default=0, compare=False)


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
        on_call: see scripts.py.
    """

    def __init__(
        self, redis: Redis, *, begin_budget_s: float, settle_budget_s: float, on_call: OnCall = nobody
    ) -> None:
        self._redis = redis
        self._scripts = ScriptRunner(redis, on_call=on_call)
        self._begin_budget_s = begin_budget_s
        self._settle_budget_s = settle_budget_s

    def beginning(self) -> AbstractContextManager[None]:
        """Whatever is asked of the store inside, so that a turn begins, has the time of one begin."""
        return together(self._begin_budget_s)

    def running(self) -> AbstractContextManager[None]:
        """Whatever a turn that has begun reads inside has the time of one read, and goes before what others want."""
        return together(self._begin_budget_s, Rank.RUNS_A_TURN)

    async def begin(
        self,
        ref: SessionRef,
        turn_id: str,
        *,
        replica: str,
        lease_ms: int,
        record: bytes,
        turns_max: int,
        request: Request,
        streamed: bool = False,
        expected: str = "",
        wanted: Callable[[], bool] = lambda: True,
    ) -> BeginResult:
        """Takes the lease and numbers the turn, or tells which earlier turn the request is; see scripts/begin.lua.

        Args:
            ref: the session.
            turn_id: new.
            replica: who runs it.
            lease_ms: how long it is ours without a renewal.
            record: of the pending turn; opaque.
            turns_max: that the session may have.
            request: which one it is.
            streamed: whether its answer will be logged as it comes.
            expected: the head that the session must have; ``unused`` for one that was created by a turn and holds none.
            wanted: asked each time before it is sent, see `scripts.answered`.
        """
        of = (request.fingerprint, request.key, "1" if request.retried else "", request.replaces, expected)
        args = (turn_id, replica, lease_ms, record, turns_max, "1" if streamed else "", *of)
        reply = await self._scripts.act("begin", ref, args, budget_s=self._begin_budget_s, wanted=wanted)
        return read_begin(reply)

    async def history(self, ref: SessionRef, messages: int, *, begins: int = 0) -> History:
        """The first ``messages`` elements, system prompt, preamble and checkpoint, in one round trip.

        Attachments take more. Those of users' messages are not read in front of ``begins``, nor where the checkpoint
        stands for the messages; what answers hold is always read, for it may have to be compared.

        A turn that lost its lease meanwhile may read what another one wrote; its commit is fenced.

        Raises:
            AttachmentLost: a part of the history is missing.
            HistoryTooLarge: what is to be read whole is more than `HISTORY_BYTES_MAX`; no attachments were read.
        """

        async def ask() -> list[Any]:
            async with self._redis.pipeline(transaction=False) as batch:
                if messages:
                    batch.lrange(ref.keys[1], 0, messages - 1)
                batch.hmget(ref.keys[4], ["system", "preamble", *TEXTS])
                return await batch.execute()

        replies = await self._read(ask)
        system, preamble, *texts = replies[-1]
        stored: list[bytes] = replies[0] if messages else []
        checkpoint, wishes = read_texts(texts)
        names = attachments.sizes(stored).keys()
        covers = checkpoint.covers if checkpoint is not None and checkpoint.covers <= messages else 0
        whole_from = max(begins, covers) if names else 0
        wanted = [attachments.outline_of_users(element) for element in stored[:whole_from]] + stored[whole_from:]
        if names and (size_bytes := attachments.read_bytes(wanted, whole_from)) > HISTORY_BYTES_MAX:
            raise HistoryTooLarge(size_bytes)
        elements = await attachments.filled(self._redis, ref.keys[7], wanted, budget_s=self._begin_budget_s)
        sizes = list(map(len, stored))
        return History(elements, system or b"", preamble or b"", sizes, names, checkpoint, wishes, whole_from)

    async def renew(
        self, ref: SessionRef, turn_id: str, *, lease_ms: int, usage: Usage, shown: Shown = NOTHING_SHOWN
    ) -> Renewed | Settled | Lost | Denied | Gone:
        """Keeps the lease, logs what was shown since and tells whether to cancel; see scripts/renew.lua."""
        numbers = f"{usage.input} {usage.output} {usage.cache_read} {usage.cache_written}"
        args = (turn_id, lease_ms, numbers, *shown.args())
        reply = await self._scripts.act("renew", ref, args, budget_s=self._begin_budget_s, rank=Rank.RUNS_A_TURN)
        return read_renew(reply)

    async def commit(self, ref: SessionRef, turn_id: str, commit: Commit) -> Settled | Fenced | Corrupt | Denied | Gone:
        """Makes the turn history, or says why not; see scripts/commit.lua."""
        usage, rewind = commit.usage, commit.rewind
        args = (
            turn_id,
            commit.head,
            commit.record,
            commit.model,
            commit.epoch_hash,
            commit.epoch_start,
            commit.system_json,
            commit.preamble,
            commit.revision,
            usage.input,
            usage.output,
            usage.cache_read,
            usage.cache_written,
            *((rewind.messages, rewind.bytes_dropped, rewind.turns_dropped) if rewind else ("", 0, 0)),
            *commit.end.args(),
            commit.context,
            *_messages(commit.elements, commit.known),
        )
        reply = await self._scripts.act(
            "commit", ref, args, budget_s=self._settle_budget_s, wait_for_server=True, rank=Rank.ENDS_A_TURN
        )
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
            return read_fate(verdict).number or None
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

    async def fates(self, ref: SessionRef, turn_ids: Sequence[str]) -> list[Fate | None]:
        """What became of these turns; None while it is open."""

        async def ask() -> list[bytes | None]:
            return await cast("Awaitable[list[bytes | None]]", self._redis.hmget(ref.keys[3], list(turn_ids)))

        return [read_fate(value) if value else None for value in await self._read(ask)] if turn_ids else []

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
            {turn_id.decode(): read_fate(value).verdict for turn_id, value in verdicts.items()},
            [Cut(*map(int, cut.split())) for cut in cuts],
        )

    async def cuts(self, ref: SessionRef) -> list[Cut]:
        """The rewinds of a session, in order. Ask `Sessions.get` for permission first."""

        async def ask() -> list[bytes]:
            return await cast("Awaitable[list[bytes]]", self._redis.lrange(ref.keys[5], 0, -1))

        return [Cut(*map(int, cut.split())) for cut in await self._read(ask)]

    async def _read(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        return await self._scripts.read(ask, budget_s=self._begin_budget_s)

    async def append(
        self,
        ref: SessionRef,
        turn_id: str,
        *,
        head: str,
        record: bytes,
        turns_max: int,
        request: Request,
        elements: Sequence[bytes],
    ) -> AppendResult:
        """Makes messages history without asking Claude; see scripts/append.lua."""
        args = (turn_id, head, record, turns_max, request.fingerprint, request.key)
        args = (*args, *_messages(elements))
        return read_append(await self._scripts.act("append", ref, args, budget_s=self._begin_budget_s))

    async def cancel(self, ref: SessionRef, turn_id: str) -> Cancelling | Over | Settled | UnknownTurn | Denied | Gone:
        """Asks whoever runs a turn to stop; see scripts/cancel.lua."""
        args = (turn_id,)
        return read_cancel(await self._scripts.act("cancel", ref, args, budget_s=self._begin_budget_s))

    async def delivered(self, ref: SessionRef, turn_id: str) -> bool:
        """Notes that the turn's answer has reached its caller; False if it is not committed."""
        args = (ref.id, turn_id)
        return read_delivered(await self._scripts.run("delivered", ref.keys, args, budget_s=self._begin_budget_s))

    async def abort(
        self,
        ref: SessionRef,
        turn_id: str,
        mode: Literal["holder", "finder"],
        *,
        end: Shown = NOTHING_SHOWN,
        budget_s: float | None = None,
    ) -> Settled | Removed | Live | UnknownTurn | Gone:
        """Settles a turn that will not become history; see scripts/abort.lua.

        Args:
            ref: the session.
            turn_id: the turn.
            mode: who asks.
            end: the last frames of a streamed answer: what the caller is told.
            budget_s: how long it is tried while no server can be reached, too; by default as a commit's outcome is
                looked for, and only while a server can be reached. One that takes no writes for now is waited for.
        """
        args = (turn_id, mode, *end.args())
        patient = budget_s is not None
        budget_s = self._settle_budget_s if budget_s is None else budget_s
        reply = await self._scripts.act(
            "abort",
            ref,
            args,
            budget_s=budget_s,
            wait_for_server=patient,
            wait_for_writes=True,
            rank=Rank.ENDS_A_TURN,
        )
        return read_abort(reply)


def _messages(elements: Iterable[bytes], known: Collection[str] = ()) -> tuple[Any, ...]:
    """New messages as the scripts take them: their bytes, how many attachments, these, and the messages."""
    stored, taken = attachments.take_out_all(elements, known)
    return sum(map(len, stored)), len(taken), *chain.from_iterable(taken.items()), *stored
