"""The prompt cache: where a request is marked, for how long its prefix is kept, and why it was not found; pure.

Claude keeps what it has read up to a *marker*, for five minutes or an hour, and bills what it finds again at a tenth. A
session's turn is marked at its end (``cache_control`` of the request itself); the next one finds that place by itself
as long as it is among the last 20 blocks. A turn that adds more gets an *anchor*: a marker of its own where the last
request ended. It is set in what is sent, never in what is stored.

A caller's own markers come first. A request has room for four, and what is kept for an hour must stand in front of what
is kept for five minutes, so ours say five minutes where one of theirs does.

The *life* is five minutes, or an hour for a session whose turns come further apart than five minutes and not further
than an hour: to keep for an hour costs more to write (2 × instead of 1.25 ×), and saves only where the five minutes are
over. What is found is kept anew, for as long as it was.

Source: Anthropic API reference, "Create a Message" (``cache_control``, ``diagnostics``), version 2026-10-21.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import orjson

from service.context.word import Context

Life = Literal["5m", "1h"]
Setting = Literal["auto", "5m", "1h"]
SETTINGS: Final[tuple[Setting, ...]] = get_args(Setting)
"""How long prefixes are kept: always the same, or by the session's rhythm."""

_LIFE_MS: Final[dict[Life, int]] = {"5m": 300_000, "1h": 3_600_000}
_MARKERS_MAX: Final = 4  # that Claude takes in one request
_LOOKBACK_BLOCKS: Final = 20  # a marker's own block and those in front of it where Claude looks for a kept prefix
_UNMARKABLE: Final = ("thinking", "redacted_thinking")
_MARKED: Final = b'"cache_control"'
_BLOCK: Final = re.compile(rb'"type":')  # at least once in each block of a message
_REASONS: Final = frozenset(
    {
        *("model_changed", "system_changed", "tools_changed", "messages_changed"),
        *("previous_message_not_found", "unavailable"),
    }
)


@dataclass(frozen=True, slots=True)
class Caching:
    """How the next turn of a session uses the cache.

    Attributes:
        life: of what the turn writes.
        asked: so many messages of the history were in the last request; 0 if that is not known.
        message_id: of its answer; "" if there is none.
        diagnosed: whether Claude is asked why a prefix was not found.
    """

    life: Life = "5m"
    asked: int = 0
    message_id: str = ""
    diagnosed: bool = False

    def diagnostics(self) -> dict[str, Any]:
        """The field that asks why; of a first request it says that the next one will be compared with it."""
        return {"diagnostics": {"previous_message_id": self.message_id or None}} if self.diagnosed else {}


PLAINLY: Final = Caching()
"""For five minutes, with nothing known of the turn before."""


def next_use(setting: Setting, idle_ms: int | None, before: Context, messages: int, *, diagnosed: bool) -> Caching:
    """How a session's next turn uses the cache.

    Args:
        setting: of the deployment.
        idle_ms: see `life`.
        before: what the last turn left.
        messages: how many of the history stay; what a rewind takes away was never asked.
        diagnosed: whether Claude is asked why a prefix was not found.
    """
    asked = before.asked if before.asked <= messages else 0
    return Caching(life(setting, idle_ms), asked, before.message_id, diagnosed)


def life(setting: Setting, idle_ms: int | None) -> Life:
    """For how long a turn's prefix is kept.

    Args:
        setting: of the deployment.
        idle_ms: how long ago the session's last turn ended; None before the first.
    """
    if setting != "auto":
        return setting
    return "1h" if idle_ms is not None and _LIFE_MS["5m"] <= idle_ms < _LIFE_MS["1h"] else "5m"


@dataclass(frozen=True, slots=True)
class Markers:
    """The markers of one request beside the caller's.

    Attributes:
        end: ``cache_control`` of the request; None if it has one of its own, or has no room.
        anchor: the same where the last request ended; None without room.
    """

    end: dict[str, str] | None
    anchor: dict[str, str] | None


NO_MARKERS: Final = Markers(None, None)


def markers(system: bytes, tools: bytes, params: dict[str, Any], wanted: Life) -> Markers:
    """Which markers a request gets.

    Args:
        system: of the request, as JSON; may hold markers of the caller's.
        tools: the same.
        params: its other fields; ``cache_control``, even null, is the caller's word about the end.
        wanted: the life that ours would have.
    """
    theirs = [*_lives(system), *_lives(tools)]
    if "cache_control" in params:
        given = params["cache_control"]
        has_room = isinstance(given, dict) and len(theirs) + 2 <= _MARKERS_MAX
        return Markers(None, given if has_room else None)
    if len(theirs) + 1 > _MARKERS_MAX:
        return NO_MARKERS
    control = _control("5m" if "5m" in theirs else wanted)
    return Markers(control, control if len(theirs) + 2 <= _MARKERS_MAX else None)


def _control(kept: Life) -> dict[str, str]:
    return {"type": "ephemeral"} if kept == "5m" else {"type": "ephemeral", "ttl": kept}


def _lives(blocks: bytes) -> Iterator[str]:
    """For how long each marker on these blocks keeps."""
    if _MARKED not in blocks:
        return
    parsed = orjson.loads(blocks)
    for block in parsed if isinstance(parsed, list) else ():
        if isinstance(block, dict) and isinstance(control := block.get("cache_control"), dict):
            yield control.get("ttl", "5m")


def needs_anchor(added: Sequence[bytes | memoryview]) -> bool:
    """Whether the last request's end may be too far back to be found; never False where it is.

    Args:
        added: the messages behind it, as JSON.
    """
    return sum(max(1, len(_BLOCK.findall(message))) for message in added) >= _LOOKBACK_BLOCKS


def anchored(message: bytes | memoryview, control: dict[str, str]) -> bytes | memoryview:
    """A message with a marker on its last block that can have one; itself if none can, or if it has one."""
    parsed = orjson.loads(message)
    content = parsed["content"]
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    at = next((at for at in reversed(range(len(blocks))) if blocks[at]["type"] not in _UNMARKABLE), None)
    if at is None or "cache_control" in blocks[at]:
        return message
    marked = [*blocks[:at], {**blocks[at], "cache_control": control}, *blocks[at + 1 :]]
    return orjson.dumps({**parsed, "content": marked})


def with_anchor(
    sent: Sequence[bytes | memoryview], asked: int, control: dict[str, str] | None
) -> Sequence[bytes | memoryview]:
    """The messages of a request with an anchor, where that is needed and there is room for it.

    Args:
        sent: as JSON, one for each message of the history and each new one; empty ones are not sent.
        asked: how many of them were in the last request; 0 if that is not known.
        control: of the anchor; None for no room.
    """
    if control is None or not 0 < asked <= len(sent) or not sent[asked - 1] or not needs_anchor(sent[asked:]):
        return sent
    return [*sent[: asked - 1], anchored(sent[asked - 1], control), *sent[asked:]]


def miss(diagnostics: Any) -> dict[str, Any] | None:
    """Why the prefix of the last request was not found, as a turn record says it; None if it was, or was not asked.

    Args:
        diagnostics: as Claude's answer has it.
    """
    if not isinstance(diagnostics, dict):
        return None
    reason = diagnostics.get("cache_miss_reason")
    if not isinstance(reason, dict):
        return {"reason": "pending", "tokens": None}  # the answer was faster than the comparison
    kind, tokens = reason.get("type"), reason.get("cache_missed_input_tokens")
    return {"reason": kind if kind in _REASONS else "other", "tokens": tokens if type(tokens) is int else None}
