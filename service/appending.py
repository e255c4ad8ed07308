"""Messages made history by hand: a turn without Claude.

The digest chain goes on from the last stored message, which is read before; the compare-and-set on the head makes sure
that it still is the last. What a crash leaves is either the whole turn or nothing: there is only one script.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from service import telemetry, tool_calls
from service.conflict import OnConflict, Patience
from service.errors import BatonError, session_corrupt, session_not_found, store_unavailable
from storage import elements
from storage.keys import SessionRef, new_turn_id
from storage.results import Busy, Corrupt, Fenced, Gone, Settled, StoreUnavailable, TurnsFull
from storage.sessions import Sessions, Snapshot
from storage.turns import Turns

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
    """

    def __init__(self, sessions: Sessions, turns: Turns, *, replica: str, turns_max: int, queue_wait_s: float) -> None:
        self._sessions = sessions
        self._turns = turns
        self._replica = replica
        self._turns_max = turns_max
        self._queue_wait_s = queue_wait_s

    async def append(self, ref: SessionRef, messages: list[dict[str, Any]], on_conflict: OnConflict) -> Appended:
        """Stores messages after the last one; an empty list changes nothing.

        Raises:
            BatonError: why nothing was stored, or that it is not known.
        """
        patience = Patience(on_conflict, self._queue_wait_s)
        turn_id, started = new_turn_id(), datetime.now(UTC)
        overtaken = 0
        while overtaken < _ATTEMPTS:
            snapshot, stored = await self._end_of(ref, messages)
            if not messages:
                return Appended(snapshot, snapshot.messages, "")
            if not snapshot.messages and messages[0]["role"] != "user":
                raise BatonError(
                    "invalid_value", "The first message of a session must be a user's.", param="messages.0.role"
                )
            digest = stored[-1][1 : elements.HEADER_BYTES] if stored else elements.FIRST_DIGEST
            packed = tool_calls.pack(stored, messages, digest)
            record = self._record(turn_id, started, snapshot.messages, len(packed))
            match await self._ask(ref, turn_id, snapshot.head, record, packed):
                case Settled("committed"):
                    telemetry.TURNS.labels("appended").inc()
                    return Appended(snapshot, snapshot.messages + len(packed), turn_id)
                case Settled():
                    raise BatonError("session_not_saved", "The messages could not be stored; nothing has changed.")
                case Busy() as busy:
                    await patience.wait(busy)
                case Fenced():
                    overtaken += 1
                case TurnsFull():
                    raise BatonError("max_turns_reached", "The session has had all the turns it may have.")
                case Corrupt():
                    raise session_corrupt()
                case Gone():
                    raise session_not_found()
        raise BatonError("turn_in_progress", "Other turns of this session keep coming first.", retry_after_s=1)

    async def _end_of(self, ref: SessionRef, messages: list[dict[str, Any]]) -> tuple[Snapshot, list[bytes]]:
        """The session and its last element; all of them where these messages have to do with tool calls."""
        try:
            snapshot = await self._sessions.get(ref)
            if isinstance(snapshot, Gone):
                raise session_not_found()
            stored = await self._sessions.messages(ref, snapshot.messages - 1, 1) if snapshot.messages else []
            if stored and tool_calls.concerns(stored[-1], messages):
                stored = await self._sessions.messages(ref, 0, snapshot.messages)
        except StoreUnavailable as error:
            raise store_unavailable() from error
        return snapshot, stored

    async def _ask(
        self, ref: SessionRef, turn_id: str, head: str, record: bytes, packed: list[bytes]
    ) -> Settled | Busy | Fenced | TurnsFull | Corrupt | Gone:
        try:
            return await self._turns.append(
                ref, turn_id, head=head, record=record, turns_max=self._turns_max, elements=packed
            )
        except StoreUnavailable as error:
            if not error.outcome_unknown:
                raise store_unavailable() from error
        try:
            settled = await self._turns.abort(ref, turn_id, "holder")
        except StoreUnavailable as error:
            raise BatonError("session_save_unknown", f"Whether turn {turn_id} was stored is not known.") from error
        return settled if isinstance(settled, Settled) else Gone()

    def _record(self, turn_id: str, started: datetime, first: int, count: int) -> bytes:
        return orjson.dumps(
            {
                "id": turn_id,
                "state": "complete",
                "started_at": started.isoformat(timespec="milliseconds"),
                "ended_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "dialect": "append",
                "replica": self._replica,
                "model": None,
                "stop_reason": None,
                "usage": {},
                "from": first,
                "to": first + count,
            }
        )
