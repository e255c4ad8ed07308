"""A request that holds the whole conversation again: what of it is new. Pure, but for `recognise`, which reads.

Most chat clients keep the history themselves and send all of it with every request. Compared with what is stored,
message by message, by what a caller can see of it (the rolling digest, storage/elements.py), a request is one of:

    a continuation   all stored messages are there, in order: the rest is new
    a regeneration   it ends before the transcript does: the last answer is wanted anew
    an edit          a later message differs: the conversation takes another course from there
    a mismatch       the first message differs: a window that moved, or another conversation

Regeneration and edit rewind. A cut falls on a turn's boundary: the turn that holds the first difference goes whole, and
its messages that did not change are stored again with the new ones.

Two things match though they differ. An answer that was cut short by its caller may be stored longer than that caller
saw it, or shorter: as long as one begins with the other it is the same answer. A question that Claude refused is not
stored, but callers send it again with whatever they showed as its answer: the pair is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from service.errors import history_mismatch
from service.transcript import visible
from storage import elements
from storage.keys import SessionRef
from storage.turns import Cut, Ledger, Rewind, Turns


@dataclass(frozen=True, slots=True)
class Span:
    """A turn as it lies in the history: ``messages[start:end]`` are its own.

    Attributes:
        incomplete: its answer was cut short.
        by_hand: its messages were appended; it does not count as a turn.
        refused: digests of the messages that Claude refused to answer, if it did; then start equals end.
    """

    start: int
    end: int
    incomplete: bool = False
    by_hand: bool = False
    refused: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with a resent conversation.

    Attributes:
        kept: so many stored messages stay; all of them unless this is a rewind.
        new: the messages to store and to send behind them; ends with a user's.
    """

    kept: int
    new: list[dict[str, Any]]


def was_rewound(number: int, end: int, cuts: Sequence[Cut]) -> bool:
    """Whether a turn is no longer part of the history: a later cut kept fewer messages than its end."""
    return any(cut.number > number and cut.messages < end for cut in cuts)


def live(ledger: Ledger) -> list[Span]:
    """The turns that are part of the history as it stands, by start."""
    spans = []
    for number, raw in enumerate(ledger.records, start=1):
        record = orjson.loads(raw)
        if ledger.verdicts.get(record["id"]) == "committed" and not was_rewound(number, record["to"], ledger.cuts):
            refused = tuple(bytes.fromhex(digest) for digest in record.get("refused", ()))
            kind = {"incomplete": record["state"] == "incomplete", "by_hand": record["dialect"] == "append"}
            spans.append(Span(record["from"], record["to"], **kind, refused=refused))
    return spans


def plan(stored: Sequence[bytes], spans: Sequence[Span], messages: Sequence[dict[str, Any]]) -> Plan | None:
    """Compares a resent conversation with the stored one.

    Args:
        stored: all elements, oldest first.
        spans: the turns that are part of the history (not rewound), by start; refused ones among them.
        messages: the request's, without system prompts; the last one is a user's.

    Returns:
        None for a mismatch: nothing of it can be recognised.
    """
    matched, used = _match(stored, spans, messages)
    if not stored:
        return Plan(0, list(messages[used:]))
    if matched == 0:
        return None
    if matched == len(stored) and used < len(messages):
        return Plan(matched, list(messages[used:]))
    # The first difference: a stored message that the request does not have, or has otherwise.
    first = min(matched, len(stored) - 1)
    cut = next((span.start for span in spans if span.start <= first < span.end), 0)
    return Plan(cut, list(messages[used - (matched - cut) :]))


def _match(stored: Sequence[bytes], spans: Sequence[Span], messages: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """How many stored messages the request begins with, and how many of its own that took (refused pairs included)."""
    refused = {(span.start, digest): len(span.refused) for span in spans if span.refused for digest in span.refused[:1]}
    cut_short = {span.end - 1 for span in spans if span.incomplete}
    matched = used = 0
    digest = elements.FIRST_DIGEST
    while used < len(messages):
        message = messages[used]
        seen = elements.roll(digest, visible(message))
        pair = refused.get((matched, seen))
        if matched < len(stored):
            element = elements.unpack(stored[matched])
            if seen == element.digest or (matched in cut_short and _one_begins_with_the_other(message, element.json)):
                digest = element.digest
                matched, used = matched + 1, used + 1
                continue
        if pair is None or used + pair >= len(messages) or messages[used + pair]["role"] != "assistant":
            break
        used += pair + 1
    return matched, used


def _one_begins_with_the_other(message: dict[str, Any], stored_json: bytes) -> bool:
    stored = orjson.loads(stored_json)
    if message["role"] != stored["role"]:
        return False
    mine, theirs = _text(message["content"]), _text(stored["content"])
    return mine.startswith(theirs) or theirs.startswith(mine)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(block["text"] for block in content if block.get("type") == "text")


async def recognise(
    turns: Turns, ref: SessionRef, stored: Sequence[bytes], messages: Sequence[dict[str, Any]]
) -> tuple[Plan, Rewind | None]:
    """What to do with a resent conversation, and what a rewind must record.

    Cost: nothing for a plain continuation; one round trip, O(turns), if it matters of which turns the history is made.

    Raises:
        BatonError: history_mismatch.
        StoreUnavailable: the turns could not be read.
    """
    planned = plan(stored, (), messages)
    if planned is not None and planned.kept == len(stored) and all(one["role"] == "user" for one in planned.new):
        return planned, None
    spans = live(await turns.ledger(ref))
    planned = plan(stored, spans, messages)
    if planned is None:
        raise history_mismatch()
    if planned.kept == len(stored):
        return planned, None
    dropped = sum(span.end > planned.kept and not span.by_hand for span in spans)
    return planned, back_to(planned.kept, stored, turns_dropped=dropped)


def back_to(kept: int, stored: Sequence[bytes], *, turns_dropped: int) -> Rewind:
    """A rewind after which so many of the stored messages are left."""
    return Rewind(kept, sum(map(len, stored[:kept])), turns_dropped)
