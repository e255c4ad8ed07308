"""Messages made history by hand: a turn without Claude.

The digest chain goes on from the last stored message, which is read before; the compare-and-set on the head makes sure
that it still is the last. What a crash leaves is either the whole turn or nothing: there is only one script.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from service import telemetry, tool_calls, turn_record
from service.conflict import OnConflict, Patience
from service.context import word
from service.errors import (
    CLAUDE_BYTES_MAX,
    BatonError,
    conversation_too_large,
    history_moved,
    key_reused,
    role_too_small,
    session_corrupt,
    session_not_found,
    store_unavailable,
)
from service.interrupt import Interrupt, draining
from service.stored import stored as stored_answer
from storage import elements
from storage.keys import SessionRef, new_turn_id
from storage.results import (
    Answered,
    AppendResult,
    Busy,
    Corrupt,
    Denied,
    Fenced,
    Gone,
    KeyReused,
    SessionTorn,
    Settled,
    StoreUnavailable,
    TurnsFull,
)
from storage.sessions import Sessions, Snapshot
from storage.shares import VIEWER
from storage.turns import Request, Turns

_ATTEMPTS: Final = 64  # each means that somebody else's turn was stored in between


@dataclass(frozen=True, slots=True)
class Appended:
    """What an append came to; ``turn_id`` is "" if there was nothing to append."""

    snapshot: Snapshot
    messages: int
    turn_id: str


class Appending:
    """Appends to sessions.

    Args:
        sessions: the store.
        turns: its verbs of a turn.
        replica: for the turn record.
        turns_max: of a session.
        queue_wait_s: how long to wait for a running turn.
        draining: whether nothing is begun any more.
    """

    def __init__(
        self,
        sessions: Sessions,
        turns: Turns,
        *,
        replica: str,
        turns_max: int,
        queue_wait_s: float,
        draining: Callable[[], bool],
    ) -> None:
        self._sessions = sessions
        self._turns = turns
        self._replica = replica
        self._turns_max = turns_max
        self._queue_wait_s = queue_wait_s
        self._draining = draining

    async def append(
        self,
        ref: SessionRef,
        messages: list[dict[str, Any]],
        on_conflict: OnConflict,
        *,
        request: Request,
        expected: str = "",
        revoked: Callable[[], bool] = lambda: False,
    ) -> Appended:
        """Stores messages after the last one; an empty list changes nothing.

        Args:
            ref: the session.
            messages: in Claude's form.
            on_conflict: what to do while a turn runs.
            request: which one it is; sent again with the same key, it is answered as the first time.
            expected: the head that the session must have; "" for any.
            revoked: whether the caller's key may not append any more; asked before each attempt.

        Raises:
            BatonError: why nothing was stored, or that it is not known.
        """
        if request.key and messages and (answered := await self._sent_before(ref, request)) is not None:
            return answered
        patience = Patience(on_conflict, self._queue_wait_s)
        turn_id, started = new_turn_id(), datetime.now(UTC)
        overtaken = 0
        while overtaken < _ATTEMPTS:
            if self._draining():
                raise draining()
            if revoked():
                raise Interrupt.REVOKED.told()
            snapshot, stored = await self._end_of(ref, messages)
            if not messages:
                return Appended(snapshot, snapshot.messages, "")
            if not snapshot.messages and messages[0]["role"] != "user":
                raise BatonError(
                    "invalid_value", "The first message of a session must be a user's.", param="messages.0.role"
                )
            digest = stored[-1][1 : elements.HEADER_BYTES] if stored else elements.FIRST_DIGEST
            packed = tool_calls.pack(stored, messages, digest)
            await self._check_size(ref, snapshot, sum(map(len, packed)))
            span = (snapshot.messages, snapshot.messages + len(packed))
            record = turn_record.without_claude(turn_id, "append", self._replica, span, started=started)
            match await self._ask(ref, turn_id, expected or snapshot.head, record, request, packed):
                case Settled("committed"):
                    telemetry.TURNS["appended"].inc()
                    return Appended(snapshot, snapshot.messages + len(packed), turn_id)
                case Answered(earlier, number):
                    return Appended(snapshot, await self._end_of_turn(ref, number), earlier)
                case Busy() as busy:
                    await patience.wait(busy)
                case Fenced() if not expected:
                    overtaken += 1
                case refused:
                    raise _refusal(refused, snapshot)
        raise BatonError("turn_in_progress", "Other turns of this session keep coming first.", retry_after_s=1)

    async def _end_of(self, ref: SessionRef, messages: list[dict[str, Any]]) -> tuple[Snapshot, list[bytes]]:
        """The session and its last element; all of them where these messages have to do with tool calls.

        Their attachments are not read: nothing here depends on them.
        """
        try:
            snapshot = await self._sessions.get(ref)
            if isinstance(snapshot, Gone):
                raise session_not_found()
            if snapshot.role == VIEWER:  # so that nothing is told of what it could not do; append.lua decides
                raise role_too_small(snapshot.role, "writer")
            stored = await self._sessions.outlines(ref, snapshot.messages - 1, 1) if snapshot.messages else []
            if stored and tool_calls.concerns(stored[-1], messages):
                stored = await self._sessions.outlines(ref, 0, snapshot.messages)
        except StoreUnavailable as error:
            raise store_unavailable(error) from error
        except SessionTorn as error:
            raise session_corrupt() from error
        return snapshot, stored

    async def _check_size(self, ref: SessionRef, snapshot: Snapshot, added_bytes: int) -> None:
        """Nothing is stored that no turn could be asked with. Cost: a read, only of a session larger than Claude takes.

        Raises:
            BatonError: request_too_large, if what would be sent of the session, and this, is more than Claude takes.
        """
        size_bytes = snapshot.size_bytes + added_bytes
        if size_bytes <= CLAUDE_BYTES_MAX:
            return
        before = word.behind_cut(word.unpacked(snapshot.context), snapshot.messages, snapshot.epoch_start)
        if before.begins:
            sent = self._sessions.filled_bytes(ref, before.begins, snapshot.messages - before.begins)
            size_bytes = await stored_answer(sent) + added_bytes
        if size_bytes > CLAUDE_BYTES_MAX:
            raise conversation_too_large(size_bytes)

    async def _sent_before(self, ref: SessionRef, request: Request) -> Appended | None:
        """What the same request was answered; asked first, because what it appended may not be appendable twice."""
        asked = self._turns.append(
            ref, new_turn_id(), head="", record=b"", turns_max=self._turns_max, request=request, elements=[]
        )
        match await stored_answer(asked):  # no session has such a head: whatever becomes of this, nothing is stored
            case Answered(turn_id, number):
                snapshot, _ = await self._end_of(ref, [])
                return Appended(snapshot, await self._end_of_turn(ref, number), turn_id)
            case KeyReused(turn_id):
                raise key_reused(turn_id)
        return None

    async def _end_of_turn(self, ref: SessionRef, number: int) -> int:
        """How many messages the session had when the turn of this number was stored."""
        found = await stored_answer(self._turns.records(ref, number, number))
        if not found:
            raise session_not_found()
        return int(orjson.loads(found[0])["to"])

    async def _ask(
        self, ref: SessionRef, turn_id: str, head: str, record: bytes, request: Request, packed: list[bytes]
    ) -> AppendResult:
        try:
            return await self._turns.append(
                ref, turn_id, head=head, record=record, turns_max=self._turns_max, request=request, elements=packed
            )
        except StoreUnavailable as error:
            if not error.outcome_unknown:
                raise store_unavailable(error) from error
        try:
            settled = await self._turns.abort(ref, turn_id, "holder")
        except StoreUnavailable as error:
            raise BatonError("session_save_unknown", f"Whether turn {turn_id} was stored is not known.") from error
        return settled if isinstance(settled, Settled) else Gone()


def _refusal(
    refused: Settled | KeyReused | Fenced | TurnsFull | Corrupt | Denied | Gone, snapshot: Snapshot
) -> BatonError:
    match refused:
        case Settled():
            return BatonError("session_not_saved", "The messages could not be stored; nothing has changed.")
        case KeyReused(turn_id):
            return key_reused(turn_id)
        case Fenced():
            return history_moved(snapshot.head)
        case TurnsFull():
            return BatonError("max_turns_reached", "The session has had all the turns it may have.")
        case Corrupt():
            return session_corrupt()
        case Denied(role):
            return role_too_small(role, "writer")
        case Gone():
            return session_not_found()
