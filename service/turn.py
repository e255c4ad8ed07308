"""A turn of conversation: begin → history → Claude → commit, and only then the end is told.

The answer's last events (from the one that carries the stop reason) are held back until the commit succeeded, so what
a caller saw complete is stored. Correctness is the compare-and-set on the session's head in commit.lua; the lease,
renewed every third of its length, only keeps others from paying for a second answer meanwhile.

What a crash of this replica leaves, line by line (killed, or frozen beyond its lease and thawed later):

| line                              | in the store            | the caller sees         | cleaned up by        |
|-----------------------------------|-------------------------|-------------------------|----------------------|
| 1 begin not yet sent              | nothing                 | connection lost         | nobody               |
| 2 begin executed, reply not read  | pending record, lease   | connection lost         | next begin, as below |
| 3 history read, Claude not asked  | the same                | connection lost         | next begin           |
| 4 Claude asked, nothing shown     | the same; tokens spent  | connection lost         | next begin           |
| 5 answer partly shown             | the same                | a stream without an end | next begin           |
| 6 answer whole, commit not sent   | the same                | a stream without an end | next begin           |
| 7 commit executed, reply not read | the turn, committed     | a stream without an end | nobody: it is stored |
| 8 commit known, end not told      | the turn, committed     | a stream without an end | nobody: it is stored |
| 9 abort executed, error not told  | verdict aborted         | connection lost         | nobody               |

In lines 2-6 the history is what it was before; the next begin that finds the lease over declares the turn dead, in
the same script. A frozen replica that thaws at lines 2-6 finds, at its next renew or at
its commit, either its lease still unclaimed (and goes on: nobody else began) or the verdict `dead`: it stops Claude,
writes nothing and tells its caller ``turn_superseded``. Thawed at 7-9 it reads the verdict that is already written.

If the store does not answer: a begin is tried within its budget, then aborted so that it cannot take effect later, and
nothing was asked of Claude. A commit of unknown outcome is sent again; then the turn is aborted. An answered abort says
for sure what became of the turn; without an answer the caller is told that it is not known, with the turn's id.
"""

import asyncio
import contextlib
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Literal

import orjson

from service import resend, telemetry, tool_calls
from service.addressing import Address
from service.claude import Claude
from service.conflict import OnConflict, Patience
from service.errors import (
    BatonError,
    session_corrupt,
    session_not_found,
    sessions_full,
    store_unavailable,
)
from service.exchange import Exchange, Interrupt, OnDisconnect, Render
from service.lease import Lease
from service.prefix import Ask, Prepared, continued, last_digest
from service.transcript import pack
from storage.elements import HEADER_BYTES, unpack
from storage.keys import new_nonce
from storage.results import (
    Begun,
    Busy,
    Corrupt,
    Created,
    Fenced,
    Full,
    Gone,
    Removed,
    Settled,
    StoreUnavailable,
    TurnsFull,
)
from storage.sessions import NewSession, Sessions
from storage.turns import Commit, History, Rewind, Turns

_BEGIN_ATTEMPTS: Final = 8
_ABORT_WAIT_S: Final = 1.5
_ABORTING: Final[set[asyncio.Task[None]]] = set()  # what goes on after its exchange; a lost one costs one lease

Status = Literal["complete", "incomplete", "refused"]


@dataclass(frozen=True, slots=True)
class Rules:
    """What a replica's settings say about turns."""

    replica: str
    lease_ms: int
    turns_max: int
    session_ttl_ms: int
    queue_wait_s: float
    deadline_s: float


class Turn(Exchange):
    """An exchange that becomes part of a session, or leaves it as it was.

    Args:
        claude: where it goes.
        sessions: the store.
        turns: the store's verbs of a turn.
        rules: of this replica.
        address: the session.
        ask: what the caller asks.
        dialect: the caller's, for the turn record.
        render: the same, for the answer.
        resent: the request holds the whole conversation, not only what is new.
        on_conflict: what to do if another turn of the session is running.
        streamed: whether the caller sees events as they come.
        on_disconnect: what the caller's hanging up means.
    """

    def __init__(
        self,
        claude: Claude,
        sessions: Sessions,
        turns: Turns,
        rules: Rules,
        *,
        address: Address,
        ask: Ask,
        dialect: str,
        render: Render,
        resent: bool,
        on_conflict: OnConflict,
        streamed: bool,
        on_disconnect: OnDisconnect,
    ) -> None:
        super().__init__(
            claude, b"", render=render, streamed=streamed, on_disconnect=on_disconnect, deadline_s=rules.deadline_s
        )
        self._sessions = sessions
        self._turns = turns
        self._rules = rules
        self._address = address
        self._ref = address.ref
        self._ask = ask
        self._dialect = dialect
        self._on_conflict = on_conflict
        self._resent = resent
        self._started = datetime.now(UTC)
        self._unsettled = False  # the store may know this turn, and it has no verdict that we know of
        self._created = False  # this turn made the session, or may have
        self._new: list[bytes] = []
        self._rewind: Rewind | None = None
        self._begun: Begun | None = None
        self._prepared: Prepared | None = None
        self._lease = Lease(
            turns,
            self._ref,
            self.id,
            lease_ms=rules.lease_ms,
            usage=self.answer.tokens,
            interrupt=self.interrupt,
        )
        self.headers["x-turn-id"] = self.id

    # Opening: the lease, the history, the request.

    async def _open(self) -> bytes:
        began = time.perf_counter()
        self._begun = begun = await self._begin()
        if not self._ask.model_named and begun.model:
            self._ask = replace(self._ask, model=begun.model)
        self._lease.keep()
        self.headers["x-session-id"] = self._ref.id
        self.headers["x-session-state"] = "continued" if begun.messages or begun.turns else "new"
        read = time.perf_counter()
        try:
            history = await self._turns.history(self._ref, begun.messages)
        except StoreUnavailable as error:
            raise store_unavailable() from error
        if self._resent:
            begun, history = await self._recognised(begun, history)
            self._begun = begun
        self._new = tool_calls.pack(history.elements, self._ask.messages, last_digest(history))
        self._prepared = continued(self._ask, begun, history, self._new)
        telemetry.BEGIN_SECONDS.observe(read - began)
        telemetry.HISTORY_SECONDS.observe(time.perf_counter() - read)
        return self._prepared.body

    async def _recognised(self, begun: Begun, history: History) -> tuple[Begun, History]:
        """A whole conversation sent again: the history as far as it stays, with only what is new left to ask."""
        try:
            plan, self._rewind = await resend.recognise(self._turns, self._ref, history.elements, self._ask.messages)
        except StoreUnavailable as error:
            raise store_unavailable() from error
        if self._rewind is not None:
            self.headers["x-session-state"] = "rewound"
        self._ask = replace(self._ask, messages=plan.new)
        begun = replace(begun, messages=plan.kept, epoch_start=min(begun.epoch_start, plan.kept))
        return begun, replace(history, elements=history.elements[: plan.kept])

    async def _begin(self) -> Begun:
        """Takes the lease, creating the session or waiting for another turn where that is wanted."""
        patience = Patience(self._on_conflict, self._rules.queue_wait_s)
        if self._address.mode == "create":
            await self._create(or_error=True)
        creations = 0
        while True:
            match await self._ask_to_begin():
                case Begun() as begun:
                    if begun.dead_turn_id:
                        telemetry.DEAD_TURNS_FOUND.inc()
                        telemetry.log.warning("dead_turn_found", session=self._ref.id, turn=begun.dead_turn_id)
                    return begun
                case Busy() as busy:
                    await patience.wait(busy)
                case Gone() if self._address.mode == "any" and creations < _BEGIN_ATTEMPTS:
                    await self._create(or_error=False)
                    creations += 1
                case Gone():
                    raise session_not_found()
                case Corrupt():
                    telemetry.log.error("session_corrupt", session=self._ref.id)
                    raise session_corrupt()
                case TurnsFull():
                    raise BatonError("max_turns_reached", "The session has had all the turns it may have.")
                case Settled():
                    raise Interrupt.LEASE_LOST.told()

    async def _ask_to_begin(self) -> Begun | Busy | Settled | TurnsFull | Gone | Corrupt:
        record = orjson.dumps({"id": self.id, "state": "pending", **self._provenance()})
        self._unsettled = True
        try:
            result = await self._turns.begin(
                self._ref,
                self.id,
                replica=self._rules.replica,
                lease_ms=self._rules.lease_ms,
                record=record,
                turns_max=self._rules.turns_max,
            )
        except StoreUnavailable as error:
            self._unsettled = error.outcome_unknown or self._created
            raise store_unavailable() from error
        self._unsettled = isinstance(result, Begun) or self._created
        return result

    async def _create(self, *, or_error: bool) -> None:
        new = NewSession(
            nonce=new_nonce(),
            ttl_ms=self._rules.session_ttl_ms,
            name=self._address.name,
            creating_turn_id=self.id,
            model=self._ask.model,
        )
        self._unsettled = self._created = True
        try:
            result = await self._sessions.create(self._ref, new)
        except StoreUnavailable as error:
            raise store_unavailable() from error
        if isinstance(result, Created):
            telemetry.SESSIONS_CREATED.inc()
            return
        self._unsettled = self._created = False
        if isinstance(result, Full):
            raise sessions_full()
        if or_error:
            raise BatonError("session_exists", "There is a session of this name already.", param="X-Session-Mode")

    # Settling: exactly one verdict, then the caller is told.

    async def _settle(self, failure: BatonError | None) -> BatonError | None:
        try:
            return await self._verdict(failure)
        except Exception:
            await self._abort()  # a fault of ours must not leave the session busy until the lease ends
            raise
        finally:
            await self._lease.stop()

    async def _verdict(self, failure: BatonError | None) -> BatonError | None:
        if failure is None:
            refused = self.answer.stop_reason == "refusal"
            return await self._commit("refused" if refused else "complete")
        if not self._unsettled:
            return failure
        if self._interrupt in (Interrupt.LEASE_LOST, Interrupt.SESSION_GONE):
            _count("superseded" if self._interrupt is Interrupt.LEASE_LOST else "session_gone")
            return failure
        kept = self._interrupt in (Interrupt.HUNG_UP, Interrupt.CANCELLED, Interrupt.DRAINING)
        if kept and self._streamed and self._prepared is not None and self.answer.content():
            return await self._commit("incomplete") or failure
        await self._abort()
        return failure

    async def _commit(self, status: Status) -> BatonError | None:
        """None if the turn is stored, else what became of it."""
        commit = self._as_commit(status)
        started = time.perf_counter()
        try:
            result = await self._turns.commit(self._ref, self.id, commit)
        except StoreUnavailable as error:
            return await self._unsaved(error, status)
        finally:
            telemetry.COMMIT_SECONDS.observe(time.perf_counter() - started)
        match result:
            case Settled("committed"):
                self._count_stored(status)
                return None
            case Fenced():
                await self._abort()
                _count("superseded")
                return Interrupt.LEASE_LOST.told()
            case Settled():
                _count("superseded")
                return Interrupt.LEASE_LOST.told()
            case Corrupt():
                await self._abort()
                telemetry.log.error("session_corrupt", session=self._ref.id)
                return session_corrupt()
            case Gone():
                _count("session_gone")
                return session_not_found()

    async def _unsaved(self, cause: StoreUnavailable, status: Status) -> BatonError | None:
        """The commit was not answered: an answered abort tells what became of the turn."""
        telemetry.log.warning("commit_unanswered", session=self._ref.id, turn=self.id, unknown=cause.outcome_unknown)
        try:
            result = await self._turns.abort(self._ref, self.id, "holder")
        except StoreUnavailable:
            if cause.outcome_unknown:
                _count("unknown")
                return BatonError("session_save_unknown", f"Whether turn {self.id} was stored is not known.")
        else:
            match result:
                case Settled("committed"):
                    self._count_stored(status)
                    return None
                case Gone():
                    _count("session_gone")
                    return session_not_found()
        _count("not_saved")
        return BatonError("session_not_saved", "The answer could not be stored; the session is as it was before.")

    def _count_stored(self, status: Status) -> None:
        _count(status)
        usage = self.answer.tokens()
        for kind, counter in telemetry.TOKENS_BY_KIND.items():
            counter.inc(getattr(usage, kind))

    async def _abort(self) -> None:
        """Tries to settle the turn before its caller is told; if the store is silent, goes on trying behind its back.

        A silent store must not keep the caller waiting: nothing was promised, and the lease is the last resort.
        """
        try:
            result = await self._turns.abort(self._ref, self.id, "holder", budget_s=_ABORT_WAIT_S)
        except StoreUnavailable:
            telemetry.log.warning("abort_unanswered", session=self._ref.id, turn=self.id)
            task = asyncio.create_task(self._abort_later())
            _ABORTING.add(task)
            task.add_done_callback(_ABORTING.discard)
        else:
            _count("removed" if isinstance(result, Removed) else "aborted")

    async def _abort_later(self) -> None:
        with contextlib.suppress(StoreUnavailable):
            await self._turns.abort(self._ref, self.id, "holder", budget_s=self._rules.lease_ms / 1000)
            telemetry.log.info("aborted_late", session=self._ref.id, turn=self.id)

    def _as_commit(self, status: Status) -> Commit:
        assert self._begun is not None
        assert self._prepared is not None
        content = self.answer.content()
        elements: list[bytes] = []
        if status != "refused":
            reply = [{"role": "assistant", "content": content}] if content else []
            elements = [*self._new, *pack(reply, self._new[-1][1:HEADER_BYTES])]
        first = self._begun.messages
        record = {
            "id": self.id,
            "state": status,
            **self._provenance(),
            "ended_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "message_id": self.answer.message.get("id"),
            "stop_reason": self.answer.stop_reason,
            "stop_sequence": self.answer.stop_sequence,
            "usage": self.answer.usage,
            "from": first,
            "to": first + len(elements),
        }
        if status == "refused":
            asked = [unpack(element) for element in self._new]
            record["refused"] = [element.digest.hex() for element in asked if not element.synthetic]
        return Commit(
            head=self._begun.head,
            record=orjson.dumps(record),
            model=self._ask.model,
            epoch_hash=self._prepared.epoch_hash,
            epoch_start=self._prepared.epoch_start,
            revision=self._begun.revision,
            system_json=self._prepared.system_json,
            tools_json=self._prepared.tools_json,
            usage=self.answer.tokens(),
            elements=elements,
            # A refusal leaves the history as it was, even where it would have rewound it.
            rewind=self._rewind if status != "refused" else None,
        )

    def _provenance(self) -> dict[str, Any]:
        return {
            "started_at": self._started.isoformat(timespec="milliseconds"),
            "dialect": self._dialect,
            "replica": self._rules.replica,
            "model": self._ask.model,
        }


def _count(outcome: str) -> None:
    telemetry.TURNS.labels(outcome).inc()
