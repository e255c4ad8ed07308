"""The rules on what images and documents are made from, and pure: a word on those that were received.

    image      base64 of a JPEG, PNG, GIF or WebP · url · file
    document   base64 of a PDF · text · content (a string, or text and image blocks) · url · file

What is sent as base64 has to be that, not empty, and what its `media_type` says as far as the first bytes tell; an
image's base64 may have 5 MB. A URL has to be of HTTPS, and is not fetched; a file's id is not looked up.
"""

import base64
import binascii
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from service.simulator.errors import invalid

IMAGE_BASE64_BYTES_MAX = 5 * 1024 * 1024
# How the bytes of each type begin.
MAGIC = {
    "image/jpeg": b"\xff\xd8\xff",
    "image/png": b"\x89PNG\r\n\x1a\n",
    "image/gif": b"GIF8",
    "image/webp": b"RIFF",
    "application/pdf": b"%PDF",
}
IMAGE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")
MEDIA_TYPES: dict[str, tuple[str, ...]] = {"image": IMAGE_TYPES, "document": ("application/pdf",)}
# The fields of each source behind its type, all of them strings but `content`.
SOURCES: dict[str, dict[str, tuple[str, ...]]] = {
    "image": {"base64": ("media_type", "data"), "url": ("url",), "file": ("file_id",)},
    "document": {
        "base64": ("media_type", "data"),
        "text": ("media_type", "data"),
        "content": ("content",),
        "url": ("url",),
        "file": ("file_id",),
    },
}


def check_source(block: dict[str, Any], path: str) -> None:
    """Judge the source of an `image` or `document` block.

    Raises:
        ApiError: 400 naming what is wrong.
    """
    kind, source = block["type"], block["source"]
    path = f"{path}.{kind}.source"
    form = source.get("type")
    if not isinstance(form, str) or form not in SOURCES[kind]:
        raise invalid(f"{path}.type: Input tag {form!r} does not match any of the expected tags")
    path = f"{path}.{form}"
    fields = SOURCES[kind][form]
    for name in fields:
        if name not in source:
            raise invalid(f"{path}.{name}: Field required")
        if name != "content" and not isinstance(source[name], str):
            raise invalid(f"{path}.{name}: Input should be a valid string")
    for name in source:
        if name != "type" and name not in fields:
            raise invalid(f"{path}.{name}: Extra inputs are not permitted")
    if form == "base64":
        _check_base64(kind, source["media_type"], source["data"], path)
    elif form == "text":
        _check_plain(source, path)
    elif form == "url" and not source["url"].startswith("https://"):
        raise invalid(f"{path}.url: Only HTTPS URLs are supported.")
    elif form == "file" and not source["file_id"]:
        raise invalid(f"{path}.file_id: String should have at least 1 character")


def _check_base64(kind: str, media_type: str, data: str, path: str) -> None:
    if media_type not in MEDIA_TYPES[kind]:
        raise invalid(f"{path}.media_type: Input should be {' or '.join(map(repr, MEDIA_TYPES[kind]))}")
    if not data:
        raise invalid(f"{path}.data: {kind} cannot be empty")
    if kind == "image" and len(data) > IMAGE_BASE64_BYTES_MAX:
        raise invalid(f"{path}: image exceeds 5 MB maximum: {len(data)} bytes > {IMAGE_BASE64_BYTES_MAX} bytes")
    try:
        raw = base64.b64decode(data, validate=True)
    except ValueError as exc:
        raise invalid(f"{path}.data: invalid base64 data") from exc
    if kind == "document" and not raw.startswith(MAGIC[media_type]):
        raise invalid(f"{path}.data: The PDF specified was not valid.")
    seen = next((known for known in IMAGE_TYPES if raw.startswith(MAGIC[known])), media_type)
    if kind == "image" and seen != media_type:
        raise invalid(
            f"{path}: The image was specified using the {media_type} media type, but the image appears to be a "
            f"{seen} image"
        )


def _check_plain(source: dict[str, Any], path: str) -> None:
    if source["media_type"] != "text/plain":
        raise invalid(f"{path}.media_type: Input should be 'text/plain'")
    if not source["data"]:
        raise invalid(f"{path}.data: text document cannot be empty")


def describe(messages: list[dict[str, Any]]) -> str:
    """Return a sentence on the images and documents of accepted messages, those in results too; empty without any.

    Of what came as base64 or text it tells media type and size: `I received 1 image (image/png, 95 bytes).`
    """
    seen: dict[str, list[str]] = defaultdict(list)
    for message in messages:
        for block in _attached(message["content"]):
            seen[block["type"]].append(_describe_source(block["source"]))
    told = [
        f"{len(seen[kind])} {kind}{'s' if len(seen[kind]) > 1 else ''} ({'; '.join(seen[kind])})"
        for kind in ("image", "document")
        if kind in seen
    ]
    return f"I received {' and '.join(told)}." if told else ""


def _attached(content: Any) -> Iterator[dict[str, Any]]:
    for block in content if isinstance(content, list) else ():
        if block["type"] in SOURCES:
            yield block
        elif block["type"] == "tool_result":
            yield from _attached(block.get("content"))


def _describe_source(source: dict[str, Any]) -> str:
    match source["type"]:
        case "base64":
            return f"{source['media_type']}, {len(binascii.a2b_base64(source['data']))} bytes"
        case "text":
            return f"{source['media_type']}, {len(source['data'].encode())} bytes"
        case form:
            return str(form)
