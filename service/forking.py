"""A fork: a session that goes on from a message of another one.

The copy holds all that the source holds, and one turn more, its own, which rewinds it to the message asked for; so what
a turn of the past said, and where it began, is as well known there as in the source. Copied is by one script, which
compares the head with the one seen here: whoever commits in between makes us look again.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from service import session_fields, turn_record
from service.context import word
from service.errors import (
    BatonError,
    history_moved,
    invalid_value,
    session_corrupt,
    session_not_found,
    sessions_full,
)
from service.resend import live, was_rewound
from service.stored import stored
from storage.keys import TURN_ID, SessionRef, new_turn_id
from storage.results import Corrupt, Created, Exists, Full, Gone, Moved, TurnsFull
from storage.sessions import Sessions, Snapshot
from storage.transfer import Fork, Transfer
from storage.turns import Ledger, Turns

_ATTEMPTS: Final = 8
_FIELDS: Final = ("message_count", "turn_id", "title", "metadata", "ttl_seconds")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a fork is asked to be.

    Attributes:
        messages: that it keeps; None for all.
        turn_id: of the last turn that it keeps; "" for none in particular.
        title, metadata_json, ttl_ms: empty and 0 for the source's.
    """

    messages: int | None
    turn_id: str
    title: str
    metadata_json: bytes
    ttl_ms: int


def asked(body: Any) -> Asked:
    """The body of a fork.

    Raises:
        BatonError: 400 naming the field.
    """
    if not isinstance(body, dict):
        raise BatonError("invalid_value", "The body must be a JSON object.")
    for name in body:
        if name not in _FIELDS:
            raise BatonError("unknown_field", f"There is no field `{name[:64]}`.", param=name[:64])
    given = {name: value for name, value in body.items() if value is not None}
    messages, turn_id = given.get("message_count"), given.get("turn_id", "")
    if messages is not None and "turn_id" in given:
        raise invalid_value("turn_id", "and `message_count` both say where to fork: send one of them")
    if messages is not None and (type(messages) is not int or messages < 0):
        raise invalid_value("message_count", "must be a whole number, 0 or more")
    if "turn_id" in given and not (isinstance(turn_id, str) and TURN_ID.fullmatch(turn_id)):
        raise invalid_value("turn_id", "must be the id of a turn")
    return Asked(
        messages,
        turn_id,
        session_fields.title(given.get("title", "")),
        session_fields.metadata(given["metadata"]) if "metadata" in given else b"",
        session_fields.ttl_ms(given["ttl_seconds"]) if "ttl_seconds" in given else 0,
    )


@dataclass(frozen=True, slots=True)
class Forking:
    """Forks.

    Attributes:
        sessions, turns, transfer: the store.
        replica: for the turn record.
        turns_max: that a session may have.
    """

    sessions: Sessions
    turns: Turns
    transfer: Transfer
    replica: str
    turns_max: int

    async def fork(self, source: SessionRef, target: SessionRef, nonce: str, asked: Asked, expected: str) -> Created:
        """Makes the fork. One that was made before, by the same request, is there whatever became of its source since.

        Args:
            source: the session.
            target: the new one.
            nonce: of the new one; the same for a request sent again.
            asked: what it is to be.
            expected: the head that the source must have; "" for any.

        Raises:
            BatonError: why there is none.
        """
        try:
            return await self._made(source, target, nonce, asked, expected)
        except BatonError as refusal:
            if refusal.status < 500 and await stored(self.transfer.is_made(target, nonce)):
                return Created(repeated=True)
            raise

    async def _made(self, source: SessionRef, target: SessionRef, nonce: str, asked: Asked, expected: str) -> Created:
        for _ in range(_ATTEMPTS):
            snapshot = await stored(self.sessions.get(source))
            if isinstance(snapshot, Gone):
                raise session_not_found()
            if expected and expected != snapshot.head:
                raise history_moved(snapshot.head)
            ledger = await stored(self.turns.ledger(source))
            fork = self._fork(source, snapshot, ledger, nonce, asked)
            match await stored(self.transfer.fork(source, target, fork)):
                case Created() as created:
                    return created
                case Exists():
                    other = "This Idempotency-Key made another fork."
                    raise BatonError("idempotency_key_reused", other, param="Idempotency-Key")
                case Full():
                    raise sessions_full()
                case Gone():
                    raise session_not_found()
                case TurnsFull():
                    raise BatonError("max_turns_reached", "The session has had all the turns it may have.")
                case Corrupt():
                    raise session_corrupt()
                case Moved():
                    continue
        raise BatonError("turn_in_progress", "Other turns of this session keep coming first.", retry_after_s=1)

    def _fork(self, source: SessionRef, snapshot: Snapshot, ledger: Ledger, nonce: str, asked: Asked) -> Fork:
        spans = live(ledger)
        kept = snapshot.messages if asked.messages is None else asked.messages
        if asked.turn_id:
            kept = _end_of(asked.turn_id, ledger)
        if kept > snapshot.messages:
            raise invalid_value("message_count", f"must not be more than the session has: {snapshot.messages}")
        turn_id = new_turn_id()
        record = turn_record.without_claude(
            turn_id,
            "fork",
            self.replica,
            (kept, kept),
            started=datetime.now(UTC),
            forked_from={"session_id": source.id, "turn_id": snapshot.head, "message_count": kept},
        )
        return Fork(
            nonce=nonce,
            ttl_ms=asked.ttl_ms or snapshot.ttl_ms,
            absolute_end_ms=snapshot.absolute_end_ms,
            head=snapshot.head,
            messages=kept,
            turns=sum(span.end <= kept and not span.by_hand for span in spans),
            turn_id=turn_id,
            record=record,
            turns_max=self.turns_max,
            title=asked.title,
            metadata_json=asked.metadata_json,
            context=_context(snapshot, kept),
        )


def _context(source: Snapshot, kept: int) -> str:
    """What is known of the context: what was left out of the source's requests is left out of the fork's."""
    left = word.behind_cut(word.unpacked(source.context), kept, source.epoch_start)
    return "" if left == word.UNKNOWN else left.packed()


def _end_of(turn_id: str, ledger: Ledger) -> int:
    """How many messages there were when this turn was stored.

    Raises:
        BatonError: turn_not_found; turn_rewound, if it is no part of the history.
    """
    for number, raw in enumerate(ledger.records, start=1):
        record = orjson.loads(raw)
        if record["id"] != turn_id or ledger.verdicts.get(turn_id) != "committed":
            continue
        if was_rewound(number, record["to"], ledger.cuts):
            raise BatonError(
                "turn_rewound", "This turn is no longer part of the history: it was rewound.", param="turn_id"
            )
        return int(record["to"])
    raise BatonError("turn_not_found", "The session has no such turn, or it was not stored.", param="turn_id")
