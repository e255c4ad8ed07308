"""What callers may say about a session, and messages appended by hand: from JSON to what the store takes; pure.

One table says which fields there are, who may set them and what they must be. ``null`` is absent when a session is
created and clears a field when it is changed, where a session can do without the field.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from service import model_name, tool_calls
from service.errors import BatonError
from service.transcript import is_input

METADATA_PAIRS_MAX: Final = 16
METADATA_KEY_CHARS_MAX: Final = 64
METADATA_VALUE_CHARS_MAX: Final = 512
TITLE_CHARS_MAX: Final = 512
TTL_S_MAX: Final = 31_536_000
TURNS_MAX: Final = 1_000_000
APPENDED_MAX: Final = 100_000  # messages at once, and blocks in them; Claude's own limit of messages

_PATCHABLE: Final = ("system_prompt", "model", "max_turns", "title", "metadata", "ttl_seconds")
_CREATABLE: Final = frozenset({*_PATCHABLE, "name", "absolute_expires_at"})
_READ_ONLY: Final = frozenset(
    {
        *("id", "name", "session_id", "object", "created_at", "last_accessed_at", "expires_at", "absolute_expires_at"),
        *("status", "message_count", "turn_count", "owner", "usage", "checkpoint"),
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


def creation(body: Any, *, aliases: dict[str, str], ttl_default_s: int, now_ms: int) -> Creation:
    """The body of a creation. The name is checked by addressing.

    Raises:
        BatonError: 400 naming the field.
    """
    fields = {name: value for name, value in _object(body).items() if value is not None}
    for name in fields:
        if name not in _CREATABLE:
            raise _unknown(name)
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
        ttl_ms=1000 * _whole(fields.get("ttl_seconds", ttl_default_s), "ttl_seconds", 1, TTL_S_MAX),
        absolute_end_ms=_instant_ms(fields["absolute_expires_at"], now_ms) if "absolute_expires_at" in fields else 0,
        title=_title(fields["title"]) if "title" in fields else "",
        metadata_json=_metadata(fields.get("metadata", {})),
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
                changed["title"] = "" if value is None else _title(value)
            case "metadata":
                changed["metadata"] = _metadata({} if value is None else value)
            case "ttl_seconds":
                changed["ttl"] = 1000 * _whole(value, name, 1, TTL_S_MAX)
            case _ if name in _READ_ONLY:
                raise _invalid(name, f"cannot be changed; these can: {', '.join(_PATCHABLE)}")
            case _:
                raise _unknown(name)
    return changed


def messages(body: Any) -> list[dict[str, Any]]:
    """The body of an append: ``{"messages": […]}``, as Anthropic's messages; the list may be empty.

    Raises:
        BatonError: 400 naming the place.
    """
    fields = _object(body)
    for name in fields:
        if name != "messages":
            raise _unknown(name)
    if fields.get("messages") is None:
        raise BatonError("missing_value", "`messages` is required.", param="messages")
    if not isinstance(fields["messages"], list):
        raise _invalid("messages", "must be a list")
    _check_size(fields["messages"])
    return [_message(message, f"messages.{index}") for index, message in enumerate(fields["messages"])]


def _check_size(given: list[Any]) -> None:
    """Refuses more than Claude would read, and more than can be looked at without keeping other callers waiting."""
    if len(given) > APPENDED_MAX:
        raise _invalid("messages", f"may hold at most {APPENDED_MAX} messages")
    contents = [message.get("content") for message in given if isinstance(message, dict)]
    if sum(len(content) for content in contents if isinstance(content, list)) > APPENDED_MAX:
        raise _invalid("messages", f"may hold at most {APPENDED_MAX} blocks of content")


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise _invalid(where, "must be an object")
    for name in message:
        if name not in ("role", "content"):
            raise _unknown(f"{where}.{name}")
    role = message.get("role")
    if role not in ("user", "assistant"):
        raise _invalid(f"{where}.role", "must be user or assistant")
    return {"role": role, "content": _content(message.get("content"), f"{where}.content", role)}


def _content(content: Any, where: str, role: str) -> Any:
    """Text, or a list of blocks; never empty, for Claude would refuse the session from then on."""
    if content is None:
        raise BatonError("missing_value", f"`{where}` is required.", param=where)
    if isinstance(content, str):
        return _text(content, where)
    if not isinstance(content, list) or not content:
        raise _invalid(where, "must be a string or a non-empty list of blocks")
    return [_block(block, f"{where}.{index}", role) for index, block in enumerate(content)]


def _block(block: Any, where: str, role: str) -> dict[str, Any]:
    """A block that a message of this role may hold."""
    kind = block.get("type") if isinstance(block, dict) else None
    if kind == "tool_use" and role == "assistant":
        return _tool_use(block, where)
    if kind == "tool_result" and role == "user":
        return _tool_result(block, where)
    if kind != "text":
        other = "tool_use" if role == "assistant" else "tool_result"
        raise _invalid(where, f"must be {{type: text, text}} or a block of type {other}")
    return _text_block(block, where)


def _tool_use(block: dict[str, Any], where: str) -> dict[str, Any]:
    if block.keys() != {"type", "id", "name", "input"}:
        raise _invalid(where, "must be {type: tool_use, id, name, input}")
    if not is_input(block["input"]):
        raise _invalid(f"{where}.input", "must be an object that nests less than 240 levels")
    return {
        "type": "tool_use",
        "id": _token(block["id"], f"{where}.id", tool_calls.CALL_ID),
        "name": _token(block["name"], f"{where}.name", tool_calls.TOOL_NAME),
        "input": block["input"],
    }


def _tool_result(block: dict[str, Any], where: str) -> dict[str, Any]:
    """A result; it may say nothing."""
    if not {"type", "tool_use_id"} <= block.keys() <= {"type", "tool_use_id", "content", "is_error"}:
        raise _invalid(where, "must be {type: tool_result, tool_use_id, content, is_error}; the last two may be absent")
    call = _token(block["tool_use_id"], f"{where}.tool_use_id", tool_calls.CALL_ID)
    result: dict[str, Any] = {"type": "tool_result", "tool_use_id": call}
    content = block.get("content")
    if content not in (None, "", []):
        result["content"] = _result_content(content, f"{where}.content")
    if "is_error" in block:
        if not isinstance(block["is_error"], bool):
            raise _invalid(f"{where}.is_error", "must be true or false")
        result["is_error"] = block["is_error"]
    return result


def _result_content(content: Any, where: str) -> Any:
    if isinstance(content, str):
        return _text(content, where)
    if not isinstance(content, list):
        raise _invalid(where, "must be a string or a list of text blocks")
    return [_text_block(part, f"{where}.{index}") for index, part in enumerate(content)]


def _token(value: Any, where: str, pattern: re.Pattern[str]) -> str:
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise _invalid(where, f"must match {pattern.pattern}")
    return value


def _text_block(block: Any, where: str) -> dict[str, Any]:
    """A text block. As Claude's API and its SDKs have it, it may carry fields that say nothing: they are left out."""
    if not isinstance(block, dict) or block.get("type") != "text":
        raise _invalid(where, "must be {type: text, text}")
    for name, value in block.items():
        if name not in ("type", "text") and value not in (None, [], {}):
            field = f"{where}.{name}"[:128]
            raise BatonError("unsupported", f"`{field}` is not supported.", param=field)
    return {"type": "text", "text": _text(block.get("text"), f"{where}.text")}


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


def _title(value: Any) -> str:
    if not isinstance(value, str) or len(value) > TITLE_CHARS_MAX:
        raise _invalid("title", f"must be a string of at most {TITLE_CHARS_MAX} characters")
    return value


def _metadata(value: Any) -> bytes:
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
