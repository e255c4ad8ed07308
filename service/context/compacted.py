"""What of a session's messages Claude is sent, where a checkpoint stands for the oldest; pure.

    messages   0 … covers-1          covers … n-1     new
    sent       the summary, user's   as stored        as stored

A cut falls in front of a user's own words, where the answer before it is whole: never between a tool call and its
result, never within a turn. So what is sent begins with the user, as Claude wants it, and a summary and the words
behind it are neighbours of one role, which Claude takes for one message. What is sent is a function of what is stored:
the summary is the same bytes from turn to turn, and the prompt cache goes on working behind it.

A stored checkpoint changes what was sent before every message behind it, so it begins a new epoch (epoch.py): thinking
of before is left out.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Final, NamedTuple

import orjson

from service.context.size import media_of
from storage import elements
from storage.checkpoints import Checkpoint

KEPT_TURNS_MIN: Final = 2
"""So many of the last turns are never covered."""

_INTRODUCTION: Final = (
    "This conversation is longer than what follows. Its earlier part is summarized here; take it for what was said, "
    "and do not mention the summary.\n\n"
)
_END: Final = "</conversation_summary>"
_RESULT: Final = b'"tool_result"'


def in_effect(checkpoint: Checkpoint | None, messages: int) -> Checkpoint | None:
    """The checkpoint, if all that it covers is there; of a rewound history it may not be.

    Args:
        checkpoint: as it was read with the history.
        messages: of the history that a turn goes on from.
    """
    return checkpoint if checkpoint is not None and checkpoint.covers <= messages else None


def summary_message(checkpoint: Checkpoint) -> bytes:
    """The message that is sent instead of those that are covered."""
    quoted = checkpoint.summary.decode().replace(_END, _END.replace("<", "&lt;"))  # what is in it does not end it
    text = f"<conversation_summary>\n{quoted}\n{_END}"
    return orjson.dumps({"role": "user", "content": [{"type": "text", "text": _INTRODUCTION + text}]})


def shortened(sent: Sequence[bytes | memoryview], checkpoint: Checkpoint | None) -> Sequence[bytes | memoryview]:
    """The messages as they are sent, with the summary in the place of the last that is covered.

    Args:
        sent: as JSON, one for each message; empty ones are not sent. So is what is covered, afterwards.
        checkpoint: in effect; None for all of them.
    """
    if checkpoint is None:
        return sent
    covers = checkpoint.covers
    return [*[b""] * (covers - 1), summary_message(checkpoint), *sent[covers:]]


def may_cut(stored: Sequence[bytes], at: int) -> bool:
    """Whether what is sent may begin with message ``at`` of these elements.

    Cost: parses two messages.
    """
    if not 0 < at < len(stored):
        return False
    first, before = stored[at], stored[at - 1]
    if first[0] & elements.SYSTEM or elements.unpack(first).synthetic or (_RESULT in first and _holds_result(first)):
        return False
    if _role(first) != "user":
        return False
    # Behind an answer; or behind the results that Baton gave for it, when it went on without any.
    return _role(before) == "assistant" or (elements.unpack(before).synthetic and not before[0] & elements.SYSTEM)


class Plan(NamedTuple):
    """How a session is to be compacted.

    Attributes:
        begins: index of the first message that is summarized; the checkpoint before stands for those in front of it.
        covers: and it ends in front of this one.
    """

    begins: int
    covers: int


def plan(stored: Sequence[bytes], covered: int, *, keep_bytes: int, cover_bytes_max: int) -> Plan | None:
    """Which messages the next checkpoint covers; None if there are none.

    Args:
        stored: all elements of the session.
        covered: how many the last checkpoint covers.
        keep_bytes: of text; so much of the end is kept, in whole turns, and `KEPT_TURNS_MIN` in any case.
        cover_bytes_max: of text; no more than this is covered at once, if a cut allows it.

    Cost: O(messages); parses those behind what is covered, for their roles.
    """
    cuts = [at for at in range(covered + 1, len(stored)) if may_cut(stored, at)]
    possible = cuts[: 1 - KEPT_TURNS_MIN]
    if not possible:
        return None
    ends = list(accumulate((text_bytes((element,)) for element in stored[covered:]), initial=0))
    cover = next((cut for cut in possible if ends[-1] - ends[cut - covered] <= keep_bytes), possible[-1])
    fits = [cut for cut in possible if cut <= cover and ends[cut - covered] <= cover_bytes_max]
    return Plan(covered, fits[-1] if fits else possible[0])


def text_bytes(stored: Sequence[bytes]) -> int:
    """How large these elements are without their images and documents, of which no summary holds more than a word."""
    return sum(map(len, stored)) - media_of(stored).size_bytes


def _role(element: bytes) -> str:
    role: str = orjson.loads(elements.json_of(element))["role"]
    return role


def _holds_result(element: bytes) -> bool:
    content = orjson.loads(elements.json_of(element))["content"]
    return not isinstance(content, str) and any(block.get("type") == "tool_result" for block in content)
