"""Which of a session's messages are sent, where not all of them fit; pure.

The oldest *exchanges* leave the view, never the store: a view begins with a message of the user's that answers no tool
call, so that no call is parted from its result, and is whole from there to the end. It moves in steps: once it has to
move it is made much smaller than the window, for every move is another prefix, which no cache has and no thinking is
bound to.
"""

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, get_args

import orjson

from service.context.size import Size, media_of
from service.context.word import Context
from service.errors import CLAUDE_BYTES_MAX
from storage import elements

Policy = Literal["compact", "truncate", "clear_tool_results", "error"]
POLICIES: Final[tuple[Policy, ...]] = get_args(Policy)
"""What is done about a conversation that would not fit: sum its oldest part up; leave that out; clear the results of
old tool calls, and leave the oldest part out only if that is not enough; or refuse the turn."""
SHORTENING: Final[tuple[Policy, ...]] = ("truncate", "clear_tool_results")
"""Those that make the request smaller."""

KEPT_SHARE: Final = 0.6
"""Of the window, and of the bytes that Claude takes, that a view which has moved may take."""
SHORTENED_SHARE: Final = (KEPT_SHARE, 0.8)
"""The same, and what is small enough where only results of tool calls are cleared for it."""

_RESULT: Final = b'"tool_result"'


def policy(wanted: str, default: Policy) -> Policy:
    """That of a session, by its own word; the deployment's if it has none, or one of another version's."""
    return next((known for known in POLICIES if known == wanted), default)


class View(NamedTuple):
    """What is sent of a session's messages.

    Attributes:
        begins: the first of them.
        moved: whether the turn before was sent more of what this one is sent, too.
        cleared: of the results in so many of the first messages only a note is sent (clearing.py).
    """

    begins: int = 0
    moved: bool = False
    cleared: int = 0

    def told(self, covers: int) -> list[str]:
        """What callers are told is not sent, behind what a checkpoint covers."""
        cleared = [f"clear_tool_results; cleared={self.cleared}"] if self.cleared > max(self.begins, covers) else []
        return cleared + ([f"truncate; left_out={self.begins}"] if self.begins > covers else [])


WHOLE: Final = View()
"""All of them."""


def standing(before: Context) -> View:
    """As the last turn left it."""
    return View(before.begins, cleared=before.cleared)


class Limit(NamedTuple):
    """What a view may take.

    Attributes:
        tokens: at most; infinite where nobody knows.
        rate: tokens a byte of text.
        head_bytes: of what stands in front of every view.
        size_bytes: at most, text and media.
    """

    tokens: float
    rate: float
    head_bytes: int
    size_bytes: int = CLAUDE_BYTES_MAX

    def takes(self, size: Size) -> bool:
        """Whether messages of this size fit."""
        text_bytes = size.text_bytes + self.head_bytes
        fits = text_bytes + size.media.size_bytes <= self.size_bytes
        return fits and self.rate * text_bytes + size.media.tokens <= self.tokens


def later(history: Sequence[bytes], new: Sequence[bytes], begins: int, limit: Limit) -> int:
    """Where the view begins from now on; where it does already, if nothing can leave it.

    Args:
        history: the stored messages.
        new: those of the turn, which stay.
        begins: where it began until now.
        limit: what it may take, if there is a place that leaves so little; else the last place there is.
    """
    everything = [*history, *new]
    places = [at for at in _beginnings(everything) if begins < at <= len(history)]
    if not places:
        return begins
    fitting, size, end = [], Size(0, media_of(())), len(everything)
    for at in reversed(places):
        size = _larger(size, everything[at:end])
        end = at
        if not limit.takes(size):
            break
        fitting.append(at)
    return fitting[-1] if fitting else places[-1]


def can_begin(messages: Sequence[bytes], at: int) -> bool:
    """Whether a view of these stored messages can begin there."""
    return at == 0 or at in _beginnings(messages)


def _larger(size: Size, messages: Sequence[bytes]) -> Size:
    media = media_of(messages)
    text_bytes = sum(len(message) - elements.HEADER_BYTES for message in messages) - media.size_bytes
    return Size(size.text_bytes + text_bytes, size.media + media)


def _beginnings(messages: Sequence[bytes]) -> list[int]:
    """Where a view may begin: at the first of the user's messages behind an answer, unless that holds results."""
    places, before = [], "assistant"
    for at, message in enumerate(messages):
        role = orjson.loads(elements.json_of(message))["role"]
        if role == "user" and before == "assistant" and _RESULT not in message:
            places.append(at)
        before = role
    return places
