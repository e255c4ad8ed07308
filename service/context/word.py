"""What a turn leaves about the session's context for the next one: one word in the session's hash; pure.

Opaque to the store. Commit writes it, begin answers it. A word that is not understood, of an older or a newer version,
is as none: it makes requests cheaper and estimates better, and no request depends on it.
"""

import re
from typing import Final, NamedTuple

_SOUND_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,100}")
_VERSION: Final = "2"
_CHARS_MAX: Final = 256  # of those that are written; a longer one is somebody else's


class Context(NamedTuple):
    """The context after a turn.

    Attributes:
        asked: so many messages of the history were in the turn's request, or in front of it.
        messages: the same with its answer.
        begins: the first of them that was sent.
        cleared: of the results in so many of the first of them a note was sent.
        tokens: of request and answer, as Claude counted them; 0 if it did not.
        text_bytes: of the same, without media.
        media_bytes, media_tokens: of its images and documents (size.py).
        message_id: of Claude's answer; "" if it named none.
    """

    asked: int = 0
    messages: int = 0
    begins: int = 0
    cleared: int = 0
    tokens: int = 0
    text_bytes: int = 0
    media_bytes: int = 0
    media_tokens: int = 0
    message_id: str = ""

    def packed(self) -> str:
        """As it is stored."""
        return " ".join((_VERSION, *map(str, self)))


UNKNOWN: Final = Context()
"""Before the first turn."""


def unpacked(word: str) -> Context:
    """A stored word; `UNKNOWN` if it is none."""
    version, *parts = word.split(" ") if len(word) <= _CHARS_MAX else ("",)
    numbers = parts[:-1]
    if version != _VERSION or len(parts) != len(UNKNOWN) or not all(part.isdecimal() for part in numbers):
        return UNKNOWN
    asked, messages, begins, cleared, tokens, text_bytes, media_bytes, media_tokens = map(int, numbers)
    return Context(asked, messages, begins, cleared, tokens, text_bytes, media_bytes, media_tokens, parts[-1])


def behind_cut(context: Context, messages: int, epoch_start: int) -> Context:
    """What is left of it where a history goes on from one of its messages.

    What was left out or cleared is sent again if the view began behind the cut, or results were cleared there, or if
    nothing is left of the epoch: the view may have moved in what is gone, and no thinking is bound to it any more.

    Args:
        context: before.
        messages: that are left.
        epoch_start: see `Standing`.
    """
    stays = context.begins < messages and context.cleared <= messages and epoch_start < messages
    return context if stays else context._replace(begins=0, cleared=0)


def sound_id(message_id: str | None) -> str:
    """The id of an answer, if it can be kept; Claude's can."""
    return message_id if message_id and _SOUND_ID.fullmatch(message_id) else ""
