"""How large a session's next request is, in tokens, without asking; pure.

Known is what Claude counted of the last turn, request and answer. New is the difference between the bytes of that and
of what is sent now, at the rate at which this very session's bytes have become tokens so far: prose, code and
languages differ by a factor of three. Images and documents do not cost by their bytes; they are taken out of these and
have a price of their own. So an estimate is right where it matters, in long conversations, of which little is new.

How wrong it may be is its *margin*. Only where that reaches the model's window is Claude asked to count.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import orjson

from service.context.word import Context
from storage import elements

_CAUTIOUS: Final = 0.4  # tokens a byte, of whatever was not counted yet: code in a small alphabet, or Chinese
_RATE_MIN: Final = 0.1
_RATE_MAX: Final = 1.0
_CALIBRATED_BYTES_MIN: Final = 1_000  # less has more frame than text
_IMAGE_TOKENS: Final = 1_600  # that of the largest that Claude does not scale down
_DOCUMENT_TOKENS: Final = 3_000  # of a page, text and picture
_DOCUMENT_PAGE_BYTES: Final = 60_000  # of base64
_OF_COUNTED: Final = 0.02  # what Claude reads for what was its own answer is not quite what it had counted
_OF_NEW: Final = 0.25
_SOURCE: Final = b'"source"'


class Media(NamedTuple):
    """Images and documents of messages: the bytes that stand for them, and what they cost."""

    size_bytes: int = 0
    tokens: int = 0

    def __add__(self, other: "Media") -> "Media":  # type: ignore[override]
        return Media(self.size_bytes + other.size_bytes, self.tokens + other.tokens)


class Size(NamedTuple):
    """Of a request: bytes of text, and its media."""

    text_bytes: int
    media: Media


class Estimate(NamedTuple):
    """Tokens of a request, and by how many it may be wrong."""

    tokens: int
    margin: int


def media_of(messages: Iterable[bytes]) -> Media:
    """The media of stored messages.

    Args:
        messages: elements. Only those that may hold some are parsed.
    """
    return sum((_media(element) for element in messages if _SOURCE in element), Media())


def size_of(body: bytes, media: Media) -> Size:
    """Of a request, by what is known of its media."""
    return Size(max(0, len(body) - media.size_bytes), media)


def estimated(size: Size, before: Context, *, anew: bool = False) -> Estimate:
    """What a request takes of the window.

    Args:
        size: of the request.
        before: what the session's last turn left; tokens of 0 if they are no help, as those of another model.
        anew: whether the turn begins an epoch. Thinking of before is left out then, and has more bytes than tokens, for
            its signatures cost nothing: what was counted says less.
    """
    rate = rate_of(before)
    if not before.tokens:
        tokens = size.media.tokens + math.ceil(rate * size.text_bytes)
        return Estimate(tokens, math.ceil(_OF_NEW * tokens))
    text = rate * (size.text_bytes - before.text_bytes)
    media = size.media.tokens - before.media_tokens
    tokens = max(0, before.tokens + media + math.ceil(text))
    margin = _OF_COUNTED * before.tokens + _OF_NEW * (abs(text) + abs(media))
    return Estimate(tokens, math.ceil(max(margin, _OF_NEW * tokens) if anew else margin))


def rate(tokens: int, size: Size) -> float:
    """Tokens a byte of the text of a request that has so many."""
    return max(tokens - size.media.tokens, 1) / max(size.text_bytes, 1)


def size_of_messages(messages: Sequence[bytes]) -> Size:
    """Of stored messages."""
    media = media_of(messages)
    return Size(sum(map(len, messages)) - media.size_bytes, media)


def rate_of(before: Context) -> float:
    """Tokens a byte of the session's text."""
    if not before.tokens or before.text_bytes < _CALIBRATED_BYTES_MIN:
        return _CAUTIOUS
    return min(max((before.tokens - before.media_tokens) / before.text_bytes, _RATE_MIN), _RATE_MAX)


def _media(element: bytes) -> Media:
    content = orjson.loads(elements.json_of(element))["content"]
    if isinstance(content, str):
        return Media()
    return sum((_media_of_block(block) for block in content), Media())


def _media_of_block(block: dict[str, Any]) -> Media:
    """Of one block, or of the blocks in a result."""
    source, within = block.get("source"), block.get("content")
    if block.get("type") == "tool_result" and isinstance(within, list):
        return sum((_media_of_block(inner) for inner in within), Media())
    if block.get("type") not in ("image", "document") or not isinstance(source, dict):
        return Media()
    data = source.get("data")
    size_bytes = len(data) if source.get("type") == "base64" and isinstance(data, str) else 0
    if block["type"] == "image":
        return Media(size_bytes, _IMAGE_TOKENS)
    if source.get("type") in ("text", "content"):
        return Media()  # it is text, and costs by its bytes
    return Media(size_bytes, _DOCUMENT_TOKENS * max(1, math.ceil(size_bytes / _DOCUMENT_PAGE_BYTES)))
