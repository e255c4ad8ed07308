"""Sessions and turns as callers see them; pure. Times are ISO 8601 UTC with milliseconds."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from service.context import word
from service.resend import was_rewound
from storage.results import Fate
from storage.sessions import Snapshot
from storage.turns import Cut

_STATES: Final = {"complete": "committed", "incomplete": "incomplete", "refused": "refused"}


def iso(ms: int) -> str | None:
    """Milliseconds since 1970 as text; None for 0."""
    if not ms:
        return None
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def session_object(session_id: str, snapshot: Snapshot) -> dict[str, Any]:
    """A session; ``session_id`` is what the caller calls it, ``id`` the issued id."""
    return {
        "id": session_id,
        "name": snapshot.name or None,
        "session_id": snapshot.name or session_id,
        "object": "session",
        "created_at": iso(snapshot.created_ms),
        "last_accessed_at": iso(snapshot.accessed_ms),
        "expires_at": iso(snapshot.expires_ms),
        "absolute_expires_at": iso(snapshot.absolute_end_ms),
        "status": "busy" if snapshot.running_turn_id else "active",
        "message_count": snapshot.messages,
        "turn_count": snapshot.turns,
        "model": snapshot.model or None,
        "system_prompt": _system_prompt(snapshot.system_json),
        "max_turns": snapshot.max_turns or None,
        "title": snapshot.title or None,
        "metadata": orjson.loads(snapshot.metadata_json),
        "owner": snapshot.owner,
        "role": snapshot.role,
        "ttl_seconds": snapshot.ttl_ms // 1000,
        "usage": {
            "input_tokens": snapshot.input_tokens,
            "output_tokens": snapshot.output_tokens,
            "cache_read_input_tokens": snapshot.cache_read_tokens,
            "cache_creation_input_tokens": snapshot.cache_written_tokens,
            "sent_tokens": snapshot.input_tokens + snapshot.cache_written_tokens + snapshot.cache_read_tokens,
            "full_price_tokens": snapshot.input_tokens + snapshot.cache_written_tokens,
            "saved_tokens": snapshot.cache_read_tokens,
            "checkpoint_input_tokens": snapshot.account.input_tokens,
            "checkpoint_output_tokens": snapshot.account.output_tokens,
        },
        "context_tokens": word.unpacked(snapshot.context).tokens or None,
        "context_tokens_target": snapshot.wishes.tokens_target or None,
        "compact_instructions": snapshot.wishes.instructions or None,
        "checkpoint": checkpoint_object(snapshot),
    }


def checkpoint_object(snapshot: Snapshot) -> dict[str, Any] | None:
    """What stands for the oldest messages; None if nothing does."""
    account = snapshot.account
    if not account.covers:
        return None
    return {
        "version": account.version,
        "covers": account.covers,
        "created_at": iso(account.created_ms),
        "tokens": account.tokens,
    }


def _system_prompt(system_json: bytes) -> str | None:
    if not system_json:
        return None
    system = orjson.loads(system_json)
    return system if isinstance(system, str) else "\n\n".join(block["text"] for block in system)


def turn_object(number: int, record: dict[str, Any], fate: Fate | None, cuts: Sequence[Cut]) -> dict[str, Any]:
    """A turn: its record, and what became of it. Only a turn that is part of the history has a range of messages."""
    verdict = fate.verdict if fate else None
    stored = verdict == "committed"
    rewound = stored and was_rewound(number, record["to"], cuts)
    return {
        "object": "session.turn",
        "number": number,
        "id": record["id"],
        "verdict": _STATES[record["state"]] if stored else verdict or "pending",
        "rewound": rewound,
        "model": record["model"],
        "usage": record.get("usage") if stored else None,
        "stop_reason": record.get("stop_reason"),
        "replica": record["replica"],
        "dialect": record["dialect"],
        "streamed": record.get("framing") is not None,
        "delivered": bool(fate and fate.delivered),
        "started_at": _zulu(record["started_at"]),
        "ended_at": _zulu(record.get("ended_at")),
        "queue_ms": record.get("queue_ms"),
        "first_event_ms": record.get("first_event_ms"),
        "sent": record.get("sent"),
        "cache_miss": record.get("cache_miss"),
        "message_range": {"from": record["from"], "to": record["to"]} if stored and not rewound else None,
    }


def _zulu(instant: str | None) -> str | None:
    return instant.replace("+00:00", "Z") if instant else None
