"""Messages that are appended by hand, as Anthropic's API has them: from JSON to what is stored; pure.

Claude does not see them before the next turn, so what it would refuse is refused here: a session that holds it could
never have another turn. Fields that say nothing, as the SDKs write them, are left out.
"""

import re
from typing import Any, Final

from service import media, tool_calls
from service.errors import BatonError, invalid_value
from service.transcript import is_input

APPENDED_MAX: Final = 100_000
"""Messages at once, and blocks in them; Claude's own limit of messages."""


def parse(body: Any) -> list[dict[str, Any]]:
    """The body of an append: ``{"messages": […]}``, as Anthropic's messages; the list may be empty.

    Raises:
        BatonError: 400 naming the place.
    """
    if not isinstance(body, dict):
        raise BatonError("invalid_value", "The body must be a JSON object.")
    fields: dict[str, Any] = body
    for name in fields:
        if name != "messages":
            raise _unknown(name)
    if fields.get("messages") is None:
        raise BatonError("missing_value", "`messages` is required.", param="messages")
    if not isinstance(fields["messages"], list):
        raise invalid_value("messages", "must be a list")
    _check_size(fields["messages"])
    return [_message(message, f"messages.{index}") for index, message in enumerate(fields["messages"])]


def _check_size(given: list[Any]) -> None:
    """Refuses more than Claude would read, and more than can be looked at without keeping other callers waiting."""
    if len(given) > APPENDED_MAX:
        raise invalid_value("messages", f"may hold at most {APPENDED_MAX} messages")
    contents = [message.get("content") for message in given if isinstance(message, dict)]
    if sum(len(content) for content in contents if isinstance(content, list)) > APPENDED_MAX:
        raise invalid_value("messages", f"may hold at most {APPENDED_MAX} blocks of content")


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise invalid_value(where, "must be an object")
    for name in message:
        if name not in ("role", "content"):
            raise _unknown(f"{where}.{name}")
    role = message.get("role")
    if role not in ("user", "assistant"):
        raise invalid_value(f"{where}.role", "must be user or assistant")
    return {"role": role, "content": _content(message.get("content"), f"{where}.content", role)}


def _content(content: Any, where: str, role: str) -> Any:
    """Text, or a list of blocks; never empty, for Claude would refuse the session from then on."""
    if content is None:
        raise BatonError("missing_value", f"`{where}` is required.", param=where)
    if isinstance(content, str):
        return _text(content, where)
    if not isinstance(content, list) or not content:
        raise invalid_value(where, "must be a string or a non-empty list of blocks")
    return [_block(block, f"{where}.{index}", role) for index, block in enumerate(content)]


def _block(block: Any, where: str, role: str) -> dict[str, Any]:
    """A block that a message of this role may hold."""
    kind = block.get("type") if isinstance(block, dict) else None
    if kind == "tool_use" and role == "assistant":
        return _tool_use(block, where)
    if kind == "tool_result" and role == "user":
        return _tool_result(block, where)
    if kind in ("image", "document") and role == "user":
        return _attachment(block, kind, where)
    if kind != "text":
        others = "tool_use" if role == "assistant" else "tool_result, image or document"
        raise invalid_value(where, f"must be {{type: text, text}} or a block of type {others}")
    return _text_block(block, where)


def _attachment(block: dict[str, Any], kind: str, where: str) -> dict[str, Any]:
    """An image or a document. A document may have a title."""
    titled = kind == "document" and block.get("title") is not None
    _refuse_others(block, {"type", "source", *(("title",) if titled else ())}, where)
    made = {"type": kind, "source": _source(block.get("source"), kind, f"{where}.source")}
    if titled:
        title = block["title"]
        if not isinstance(title, str) or not title.strip() or len(title) > media.TITLE_CHARS_MAX:
            raise invalid_value(f"{where}.title", f"must be a string of 1 to {media.TITLE_CHARS_MAX} characters")
        made["title"] = title
    return made


def _source(source: Any, kind: str, where: str) -> dict[str, Any]:
    of = source.get("type") if isinstance(source, dict) else None
    if not isinstance(of, str):
        raise invalid_value(where, "must be an object with a type")
    if of == "url":
        _refuse_others(source, {"type", "url"}, where)
        if not media.is_web_address(source.get("url")):
            raise invalid_value(f"{where}.url", f"must be an http(s) URL of at most {media.URL_CHARS_MAX} characters")
        return {"type": "url", "url": source["url"]}
    types = {"base64": media.IMAGES if kind == "image" else (media.PDF,), "text": (media.TEXT,)}
    if not isinstance(of, str) or of not in types or (of == "text" and kind == "image"):
        raise invalid_value(where, "must be of type base64 or url" + (", or text" if kind == "document" else ""))
    _refuse_others(source, {"type", "media_type", "data"}, where)
    if source.get("media_type") not in types[of]:
        raise invalid_value(f"{where}.media_type", f"must be {' or '.join(types[of])}")
    if of == "text":
        return {"type": of, "media_type": media.TEXT, "data": _text(source.get("data"), f"{where}.data")}
    if not media.is_base64(source.get("data")):
        raise invalid_value(f"{where}.data", "must be sound base64, with its padding and without line breaks")
    return {"type": of, "media_type": source["media_type"], "data": source["data"]}


def _tool_use(block: dict[str, Any], where: str) -> dict[str, Any]:
    if block.keys() != {"type", "id", "name", "input"}:
        raise invalid_value(where, "must be {type: tool_use, id, name, input}")
    if not is_input(block["input"]):
        raise invalid_value(f"{where}.input", "must be an object that nests less than 240 levels")
    return {
        "type": "tool_use",
        "id": _token(block["id"], f"{where}.id", tool_calls.CALL_ID),
        "name": _token(block["name"], f"{where}.name", tool_calls.TOOL_NAME),
        "input": block["input"],
    }


def _tool_result(block: dict[str, Any], where: str) -> dict[str, Any]:
    """A result; it may say nothing."""
    if not {"type", "tool_use_id"} <= block.keys() <= {"type", "tool_use_id", "content", "is_error"}:
        raise invalid_value(
            where, "must be {type: tool_result, tool_use_id, content, is_error}; the last two if wanted"
        )
    call = _token(block["tool_use_id"], f"{where}.tool_use_id", tool_calls.CALL_ID)
    result: dict[str, Any] = {"type": "tool_result", "tool_use_id": call}
    content = block.get("content")
    if content not in (None, "", []):
        result["content"] = _result_content(content, f"{where}.content")
    if "is_error" in block:
        if not isinstance(block["is_error"], bool):
            raise invalid_value(f"{where}.is_error", "must be true or false")
        result["is_error"] = block["is_error"]
    return result


def _result_content(content: Any, where: str) -> Any:
    if isinstance(content, str):
        return _text(content, where)
    if not isinstance(content, list):
        raise invalid_value(where, "must be a string or a list of text blocks")
    return [_text_block(part, f"{where}.{index}") for index, part in enumerate(content)]


def _token(value: Any, where: str, pattern: re.Pattern[str]) -> str:
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise invalid_value(where, f"must match {pattern.pattern}")
    return value


def _text_block(block: Any, where: str) -> dict[str, Any]:
    """A text block. As Claude's API and its SDKs have it, it may carry fields that say nothing: they are left out."""
    if not isinstance(block, dict) or block.get("type") != "text":
        raise invalid_value(where, "must be {type: text, text}")
    _refuse_others(block, {"type", "text"}, where)
    return {"type": "text", "text": _text(block.get("text"), f"{where}.text")}


def _refuse_others(holder: dict[str, Any], known: set[str], where: str) -> None:
    for name, value in holder.items():
        if name not in known and value not in (None, [], {}):
            field = f"{where}.{name}"[:128]
            raise BatonError("unsupported", f"`{field}` is not supported.", param=field)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise invalid_value(where, "must be a string that is not blank")
    return value


def _unknown(name: str) -> BatonError:
    return BatonError("unknown_field", f"There is no field `{name[:64]}`.", param=name[:64])
