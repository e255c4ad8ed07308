"""The content of a chat message: OpenAI's parts as Claude's blocks, in their order; pure.

Source: OpenAI API reference, "Chat"; Anthropic API reference, "Messages".

    text                          text
    refusal      (assistant's)    text
    image_url    (user's)         image, of base64 or of a URL that Claude fetches
    file         (user's)         document: a PDF as base64, files of text and JSON as text

What is sent inline is a base64 data URL. Its kind must be one that Claude takes, and its base64 sound, so that what is
stored can be sent again with every later turn.
"""

import base64
import re
from typing import Any, Final

from service import media
from service.dialects import chat_fields
from service.errors import BatonError, invalid_value

PART_TYPES: Final = {
    "system": ("text",),
    "developer": ("text",),
    "user": ("text", "image_url", "file"),
    "assistant": ("text", "refusal"),
    "tool": ("text",),
}
"""Which parts the messages of a role may have."""

_HEAD_CHARS_MAX: Final = 512
_IMAGES: Final = {kind: kind for kind in media.IMAGES} | {"image/jpg": "image/jpeg"}  # many clients say the shorter
_TEXT_CHARSETS: Final = ("utf-8", "utf8", "us-ascii")

_DATA: Final = re.compile(r"data:([\w.+-]+/[\w.+-]+)((?:;[\w.+-]+=[^;,]*)*);base64", re.ASCII | re.IGNORECASE)

Block = dict[str, Any]


def translated(message: dict[str, Any], role: str, where: str, ignored: set[str], *, blank: bool = False) -> Any:
    """Text as it is, or a list of blocks. Adds to what is ignored.

    Claude takes no blank text. It is refused, or where ``blank`` is allowed left out: then either may be empty.

    Args:
        message: as the caller sent it.
        role: of it, in OpenAI's words.
        where: its place.
        ignored: added to.
        blank: whether blank text is left out.

    Raises:
        BatonError: 400 naming the place.
    """
    content = message.get("content")
    if isinstance(content, str):
        if content.strip():
            return content
        if not blank:
            raise invalid_value(f"{where}.content", "must not be empty")
        return ""
    if not isinstance(content, list) or (not content and not blank):
        raise invalid_value(f"{where}.content", "must be a string or a non-empty list of parts")
    blocks = (_block(part, role, f"{where}.content.{index}", ignored, blank) for index, part in enumerate(content))
    return [block for block in blocks if block is not None]


def _block(part: Any, role: str, place: str, ignored: set[str], blank: bool) -> Block | None:
    """One part; None for blank text that is left out."""
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise invalid_value(place, "must be an object with a type")
    kind = part["type"]
    if kind not in PART_TYPES[role]:
        raise BatonError(
            "unsupported",
            f"{place}: parts of type `{kind[:64]}` are not supported in messages of role `{role}`.",
            param=place,
        )
    if len(part) > 2:
        chat_fields.sort_out(part, "messages.content", place, ignored, own=("type", kind))
    if kind == "image_url":
        return _image(part.get(kind), f"{place}.{kind}", ignored)
    if kind == "file":
        return _document(part.get(kind), f"{place}.{kind}", ignored)
    text = part.get(kind)
    if not isinstance(text, str) or not (blank or text.strip()):
        raise invalid_value(f"{place}.{kind}", "must be a non-empty string")
    return {"type": "text", "text": text} if text.strip() else None


def _image(image: Any, where: str, ignored: set[str]) -> Block:
    if not isinstance(image, dict):
        raise invalid_value(where, "must be an object")
    chat_fields.sort_out(image, "messages.content.image_url", where, ignored)
    url = image.get("url")
    if media.is_web_address(url):
        return {"type": "image", "source": {"type": "url", "url": url}}
    kind, data = _inline(
        url, f"{where}.url", f"a data URL, or an http(s) URL of at most {media.URL_CHARS_MAX} characters"
    )
    if kind not in _IMAGES:
        raise invalid_value(f"{where}.url", "must hold a JPEG, PNG, GIF or WebP")
    return {"type": "image", "source": {"type": "base64", "media_type": _IMAGES[kind], "data": data}}


def _document(file: Any, where: str, ignored: set[str]) -> Block:
    if not isinstance(file, dict):
        raise invalid_value(where, "must be an object")
    chat_fields.sort_out(file, "messages.content.file", where, ignored)
    kind, data = _inline(file.get("file_data"), f"{where}.file_data", "a data URL")
    source = {"type": "base64", "media_type": media.PDF, "data": data}
    if kind.startswith("text/") or kind == "application/json":
        source = {"type": "text", "media_type": media.TEXT, "data": _text(data, f"{where}.file_data")}
    elif kind != media.PDF:
        raise invalid_value(f"{where}.file_data", "must hold a PDF, or a file of type text/* or application/json")
    name = file.get("filename")
    if name is None:
        return {"type": "document", "source": source}
    if not isinstance(name, str) or not name.strip() or len(name) > media.TITLE_CHARS_MAX:
        raise invalid_value(f"{where}.filename", f"must be a string of 1 to {media.TITLE_CHARS_MAX} characters")
    return {"type": "document", "source": source, "title": name}


def _inline(url: Any, where: str, wanted: str) -> tuple[str, str]:
    """The media type of a data URL, in lower case, and its base64."""
    head, comma, data = url.partition(",") if isinstance(url, str) else ("", "", "")
    found = _DATA.fullmatch(head) if comma and len(head) <= _HEAD_CHARS_MAX else None
    if found is None:
        raise invalid_value(where, f"must be {wanted}; a data URL is `data:<media type>;base64,<data>`")
    charset = re.search(r";charset=\"?([^;\"]*)", found[2], re.IGNORECASE)
    if charset is not None and charset[1].lower() not in _TEXT_CHARSETS:
        raise invalid_value(where, "must hold text in UTF-8")
    if not media.is_base64(data):
        raise invalid_value(where, "must hold base64 that is sound, with its padding and without line breaks")
    return found[1].lower(), data


def _text(data: str, where: str) -> str:
    try:
        text = base64.b64decode(data).decode("utf-8")
    except UnicodeDecodeError as error:
        raise invalid_value(where, "must hold text in UTF-8") from error
    if not text.strip():
        raise invalid_value(where, "must hold something other than white space")
    return text
