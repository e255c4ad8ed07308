"""What callers may say about a session: from JSON to what the store takes; pure.

One table says which fields there are, who may set them and what they must be. ``null`` is absent when a session is
created and clears a field when it is changed, where a session can do without the field.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from service import model_name
from service.errors import BatonError
from storage.checkpoints import UNSAID, Wishes

METADATA_PAIRS_MAX: Final = 16
METADATA_KEY_CHARS_MAX: Final = 64
METADATA_VALUE_CHARS_MAX: Final = 512
TITLE_CHARS_MAX: Final = 512
TTL_S_MAX: Final = 31_536_000
TURNS_MAX: Final = 1_000_000

TOKENS_TARGET_MIN: Final = 1_000
TOKENS_TARGET_MAX: Final = 100_000_000
INSTRUCTIONS_CHARS_MAX: Final = 4_000

_PATCHABLE: Final = (
    *("system_prompt", "model", "max_turns", "title", "metadata", "ttl_seconds"),
    *("context_tokens_target", "compact_instructions"),
)
_CREATABLE: Final = frozenset({*_PATCHABLE, "name", "absolute_expires_at"})
_READ_ONLY: Final = frozenset(
    {
        *("id", "name", "session_id", "object", "created_at", "last_accessed_at", "expires_at", "absolute_expires_at"),
        *("status", "message_count", "turn_count", "owner", "role", "usage", "context_tokens", "checkpoint"),
    }
)


@dataclass(frozen=True, slots=True)
class Creation:
    """A session as asked for; empty strings and 0 mean none. ``system_json`` and ``metadata_json`` are JSON."""

    name: str
    model: str
    system_json: bytes
    max_turns: int
    ttl_ms: int
    absolute_end_ms: int
    title: str
    metadata_json: bytes
    wishes: Wishes = UNSAID


def creation(body: Any, *, aliases: dict[str, str], ttl_default_s: int, now_ms: int) -> Creation:
    """The body of a creation. The name is checked by addressing.

    Raises:
        BatonError: 400 naming the field.
    """
    for name in _object(body):
        if name not in _CREATABLE:
            raise _unknown(name)
    fields = {name: value for name, value in body.items() if value is not None}
    if "model" not in fields:
        raise BatonError("missing_value", "`model` is required.", param="model")
    name = fields.get("name", "")
    if not isinstance(name, str) or (not name and "name" in fields):
        raise _invalid("name", "must be a non-empty string")
    return Creation(
        name=name,
        model=_model(fields["model"], aliases),
        system_json=_system(fields["system_prompt"]) if "system_prompt" in fields else b"",
        max_turns=_whole(fields.get("max_turns", 0), "max_turns", 1, TURNS_MAX) if "max_turns" in fields else 0,
        ttl_ms=ttl_ms(fields.get("ttl_seconds", ttl_default_s)),
        absolute_end_ms=_instant_ms(fields["absolute_expires_at"], now_ms) if "absolute_expires_at" in fields else 0,
        title=title(fields["title"]) if "title" in fields else "",
        metadata_json=metadata(fields.get("metadata", {})),
        wishes=wishes(fields.get("context_tokens_target"), fields.get("compact_instructions")),
    )


def changes(body: Any, *, aliases: dict[str, str]) -> dict[str, Any]:
    """The body of a PATCH as the fields of patch.lua; a field that is not named keeps its value.

    Raises:
        BatonError: 400 naming the field.
    """
    changed: dict[str, Any] = {}
    for name, value in _object(body).items():
        match name:
            case "system_prompt":
                changed["system"] = b"" if value is None else _system(value)
            case "model":
                changed["model"] = "" if value is None else _model(value, aliases)
            case "max_turns":
                changed["max_turns"] = 0 if value is None else _whole(value, name, 1, TURNS_MAX)
            case "title":
                changed["title"] = "" if value is None else title(value)
            case "metadata":
                changed["metadata"] = metadata({} if value is None else value)
            case "ttl_seconds":
                changed["ttl"] = ttl_ms(value)
            case "context_tokens_target":
                changed["tokens_target"] = wishes(value, None).tokens_target
            case "compact_instructions":
                changed["instructions"] = wishes(None, value).instructions
            case _ if name in _READ_ONLY:
                raise _invalid(name, f"cannot be changed; these can: {', '.join(_PATCHABLE)}")
            case _:
                raise _unknown(name)
    return changed


def _object(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise BatonError("invalid_value", "The body must be a JSON object.")
    return body


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _invalid(where, "must be a string that is not blank")
    return value


def _model(value: Any, aliases: dict[str, str]) -> str:
    if not model_name.sound(value):
        raise _invalid("model", model_name.PROBLEM)
    return aliases.get(value, value)


def _system(value: Any) -> bytes:
    return orjson.dumps(_text(value, "system_prompt"))


def title(value: Any) -> str:
    """A title.

    Raises:
        BatonError: invalid_value.
    """
    if not isinstance(value, str) or len(value) > TITLE_CHARS_MAX:
        raise _invalid("title", f"must be a string of at most {TITLE_CHARS_MAX} characters")
    return value


def wishes(tokens_target: Any, instructions: Any) -> Wishes:
    """What is said about checkpoints; None says nothing.

    Raises:
        BatonError: invalid_value.
    """
    low, high = TOKENS_TARGET_MIN, TOKENS_TARGET_MAX
    target = 0 if tokens_target is None else _whole(tokens_target, "context_tokens_target", low, high)
    if instructions is not None and not (isinstance(instructions, str) and len(instructions) <= INSTRUCTIONS_CHARS_MAX):
        raise _invalid("compact_instructions", f"must be a string of at most {INSTRUCTIONS_CHARS_MAX} characters")
    return Wishes(target, instructions or "")


def metadata(value: Any) -> bytes:
    """Metadata as JSON.

    Raises:
        BatonError: invalid_value.
    """
    if not isinstance(value, dict):
        raise _invalid("metadata", "must be an object of strings")
    if len(value) > METADATA_PAIRS_MAX:
        raise _invalid("metadata", f"may have at most {METADATA_PAIRS_MAX} pairs")
    for key, text in value.items():
        check_pair(key, text)
    return orjson.dumps(value)


def check_pair(key: str, value: Any) -> None:
    """One pair of metadata, in a session or a filter.

    Raises:
        BatonError: invalid_value.
    """
    shown = f"metadata.{key[:METADATA_KEY_CHARS_MAX]}"
    if not 1 <= len(key) <= METADATA_KEY_CHARS_MAX:
        raise _invalid(shown, f"must have a key of 1 to {METADATA_KEY_CHARS_MAX} characters")
    if not isinstance(value, str) or len(value) > METADATA_VALUE_CHARS_MAX:
        raise _invalid(shown, f"must be a string of at most {METADATA_VALUE_CHARS_MAX} characters")


def ttl_ms(value: Any) -> int:
    """How long a session lives without being used, given in seconds.

    Raises:
        BatonError: invalid_value.
    """
    return 1000 * _whole(value, "ttl_seconds", 1, TTL_S_MAX)


def _whole(value: Any, name: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _invalid(name, f"must be a whole number from {low} to {high}")
    return value


def _instant_ms(value: Any, now_ms: int) -> int:
    try:
        instant = datetime.fromisoformat(value)
        at_ms = int(instant.astimezone(UTC).timestamp() * 1000)
    except (TypeError, ValueError, OverflowError):
        instant, at_ms = None, 0
    if instant is None or instant.tzinfo is None:
        raise _invalid("absolute_expires_at", "must be an ISO 8601 instant with its zone, like 2030-01-31T12:00:00Z")
    if at_ms <= now_ms:
        raise _invalid("absolute_expires_at", "must be in the future")
    return at_ms


def _invalid(param: str, problem: str) -> BatonError:
    return BatonError("invalid_value", f"`{param}` {problem}.", param=param)


def _unknown(name: str) -> BatonError:
    return BatonError("unknown_field", f"There is no field `{name[:64]}`.", param=name[:64])
