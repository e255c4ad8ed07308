"""The record of a turn: what is kept of it beside its messages; pure.

Opaque to the store; read by session_view.py and, where a turn is told again, by replay.py and resend.py. A pending
record is written as the turn begins, and says who asks for what; it is replaced when the turn is committed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from service.context import caching
from service.transcript import Answer

BY_HAND: Final = ("append", "import")
"""Dialects of turns whose messages Claude did not write; they do not count as turns."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a turn comes from.

    Attributes:
        turn_id: of the turn.
        started: when it was asked for.
        dialect, framing: the caller's; ``framing`` is None if it is not streamed.
        replica: who runs it.
    """

    turn_id: str
    started: datetime
    dialect: str
    framing: str | None
    replica: str

    def fields(self, state: str, model: str) -> dict[str, Any]:
        """What every record begins with."""
        return {
            "id": self.turn_id,
            "state": state,
            "started_at": self.started.isoformat(timespec="milliseconds"),
            "dialect": self.dialect,
            "framing": self.framing,
            "replica": self.replica,
            "model": model,
        }


def pending(provenance: Provenance, model: str) -> bytes:
    """Of a turn that begins."""
    return orjson.dumps(provenance.fields("pending", model))


def settled(
    provenance: Provenance,
    model: str,
    state: str,
    answer: Answer,
    *,
    sent: dict[str, Any],
    queue_s: float,
    first_event_s: float | None,
    span: tuple[int, int],
    refused: Sequence[bytes],
) -> bytes:
    """Of a turn that is committed.

    Args:
        provenance: of the turn.
        model: that was asked.
        state: complete, incomplete or refused.
        answer: Claude's.
        sent: what was sent, in numbers and plain parameters.
        queue_s: how long it waited for its lease.
        first_event_s: and then for Claude; None if Claude never began.
        span: its messages in the history, from and to.
        refused: digests of the messages that Claude refused to answer.
    """
    record = {
        **provenance.fields(state, model),
        "ended_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "queue_ms": round(queue_s * 1000),
        "first_event_ms": round(first_event_s * 1000) if first_event_s is not None else None,
        "sent": sent,
        "message_id": answer.message.get("id"),
        "answered_by": answer.message.get("model"),
        "stop_reason": answer.stop_reason,
        "stop_sequence": answer.stop_sequence,
        "stop_details": answer.stop_details,
        "usage": answer.usage,
        "cache_miss": caching.miss(answer.message.get("diagnostics")),
        "from": span[0],
        "to": span[1],
    }
    if more := answer.more():
        record["more"] = more
    if refused:
        record["refused"] = [digest.hex() for digest in refused]
    return orjson.dumps(record)


def without_claude(
    turn_id: str, dialect: str, replica: str, span: tuple[int, int], *, started: datetime, **more: Any
) -> bytes:
    """Of a turn in which nobody asked Claude: messages by hand, a fork, an import.

    Args:
        turn_id: of the turn.
        dialect: what was done.
        replica: who did it.
        span: its messages in the history, from and to.
        started: when it was asked for.
        more: fields of this dialect's own.
    """
    return orjson.dumps(
        {
            "id": turn_id,
            "state": "complete",
            "started_at": started.isoformat(timespec="milliseconds"),
            "ended_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "dialect": dialect,
            "replica": replica,
            "model": None,
            "stop_reason": None,
            "usage": {},
            "from": span[0],
            "to": span[1],
            **more,
        }
    )
