"""A request that holds the whole conversation again: what of it is new. Pure, but for `recognise`, which reads.

Most chat clients keep the history themselves and send all of it with every request. Compared with what is stored,
message by message, by what a caller can see of it (the rolling digest, storage/elements.py), a request is one of:

    a continuation   all stored messages are there, in order: the rest is new
    a regeneration   it ends before the transcript does: the last answer is wanted anew
    an edit          a later message differs: the conversation takes another course from there
    a mismatch       the first message differs: a window that moved, or another conversation
    a pause          it ends with the last answer, in which Claude has paused among its own tools: it goes on

Regeneration and edit rewind. A cut falls on a turn's boundary: the turn that holds the first difference goes whole, and
its messages that did not change are stored again with the new ones.

Two things match though they differ. An answer that was cut short by its caller may be stored longer than that caller
saw it, or shorter: as long as one begins with the other it is the same answer. Of its tool calls the caller may have
seen the first few only, or none. A question that Claude refused is not stored, but callers send it again with whatever
they showed as its answer: the pair is left out. What Baton itself has put in (tool_calls.py) no caller has seen, and it
is passed over.

A tool loop is several turns: the calls end one, the results begin the next. A cut between them leaves a history that
ends in open calls, and that is right: either the results were sent again, and then they are the first of the new
messages (a changed result, an answer wanted anew), or the conversation now goes on without them, and then the calls are
closed like all others that are left without a result (tool_calls.py). Both are stored by the one commit that cuts, so
the store never holds a call whose result was cut off.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from service import turn_record
from service.errors import BatonError, history_mismatch, invalid_value
from service.transcript import visible
from storage import elements
from storage.keys import SessionRef
from storage.turns import Cut, History, Ledger, Rewind, Turns


@dataclass(frozen=True, slots=True)
class Span:
    """A turn as it lies in the history: ``messages[start:end]`` are its own.

    Attributes:
        incomplete: its answer was cut short.
        by_hand: its messages were appended; it does not count as a turn.
        refused: digests of the messages that Claude refused to answer, if it did; then start equals end.
        paused: Claude wants its answer back, to go on with it.
    """

    start: int
    end: int
    incomplete: bool = False
    by_hand: bool = False
    refused: tuple[bytes, ...] = ()
    paused: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with a resent conversation.

    Attributes:
        kept: so many stored messages stay; all of them unless this is a rewind.
        new: the messages to store and to send behind them; ends with a user's, or a system message behind that.
            None where an answer goes on.
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
        if record["dialect"] == "fork":  # it has no messages, and only says where the others come from
            continue
        if ledger.verdicts.get(record["id"]) == "committed" and not was_rewound(number, record["to"], ledger.cuts):
            refused = tuple(bytes.fromhex(digest) for digest in record.get("refused", ()))
            kind = {"incomplete": record["state"] == "incomplete", "by_hand": record["dialect"] in turn_record.BY_HAND}
            kind["paused"] = record.get("stop_reason") == "pause_turn"
            spans.append(Span(record["from"], record["to"], **kind, refused=refused))
    return spans


def plan(stored: Sequence[bytes], spans: Sequence[Span], messages: Sequence[dict[str, Any]]) -> Plan | None:
    """Compares a resent conversation with the stored one.

    Args:
        stored: all elements, oldest first.
        spans: the turns that are part of the history (not rewound), by start; refused ones among them.
        messages: the request's, without system prompts; the last one is a user's, or a system message behind that.

    Returns:
        None for a mismatch: nothing of it can be recognised.
    """
    places, used = _match(stored, spans, messages)
    matched = len(places)
    if not stored:
        return Plan(0, list(messages[used:]))
    if matched == 0:
        return None
    if used < len(messages) and _next_visible(stored, matched) == len(stored):
        return Plan(len(stored), list(messages[used:]))
    # The first difference: a stored message that the request does not have, or has otherwise.
    first = min(matched, len(stored) - 1)
    cut = next((span.start for span in spans if span.start <= first < span.end), 0)
    if cut == matched and used == len(messages):  # it ends where messages by hand end: these are asked anew
        cut = next((span.start for span in spans if span.start <= cut - 1 < span.end), 0)
    return Plan(cut, list(messages[places[cut] if cut < matched else used :]))


def _match(stored: Sequence[bytes], spans: Sequence[Span], messages: Sequence[dict[str, Any]]) -> tuple[list[int], int]:
    """Where in the request the stored messages are that it begins with, and how much of it that took.

    What is passed over is where the message behind it is, and only counts with that one. What was taken includes
    refused pairs.
    """
    refused = {(span.start, digest): len(span.refused) for span in spans if span.refused for digest in span.refused[:1]}
    cut_short = {span.end - 1 for span in spans if span.incomplete}
    places: list[int] = []
    used = 0
    digest = elements.FIRST_DIGEST
    while used < len(messages):
        message = messages[used]
        seen = elements.roll(digest, visible(message))
        pair = refused.get((len(places), seen))
        at = _next_visible(stored, len(places))
        if at < len(stored):
            element = elements.unpack(stored[at])
            if seen == element.digest or (at in cut_short and _one_begins_with_the_other(message, element.json)):
                digest = element.digest
                places += [used] * (at + 1 - len(places))
                used += 1
                continue
        if pair is None or used + pair >= len(messages) or messages[used + pair]["role"] != "assistant":
            break
        used += pair + 1
    return places, used


def _next_visible(stored: Sequence[bytes], at: int) -> int:
    """The index of the first stored message from ``at`` on that a caller has seen."""
    while at < len(stored) and elements.unpack(stored[at]).synthetic:
        at += 1
    return at


def _one_begins_with_the_other(message: dict[str, Any], stored_json: bytes) -> bool:
    stored = orjson.loads(stored_json)
    if message["role"] != stored["role"]:
        return False
    mine, theirs = _text(message["content"]), _text(stored["content"])
    seen, made = _calls(message["content"]), _calls(stored["content"])
    return (mine.startswith(theirs) or theirs.startswith(mine)) and made[: len(seen)] == seen


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(block["text"] for block in content if block.get("type") == "text")


def _calls(content: Any) -> list[tuple[str, str, Any]]:
    if isinstance(content, str):
        return []
    return [(block["id"], block["name"], block["input"]) for block in content if block.get("type") == "tool_use"]


async def cut(turns: Turns, ref: SessionRef, history: History, kept: int) -> History:
    """The history of which so many messages are kept.

    Cost: nothing, unless the cut is in what a checkpoint covers, of which the attachments were not read: a round trip.

    Raises:
        StoreUnavailable, SessionTorn, HistoryTooLarge: as `Turns.history`.
    """
    if history.attachments and history.checkpoint is not None and kept < history.checkpoint.covers:
        return await turns.history(ref, kept)
    return replace(history, elements=history.elements[:kept])


async def recognise(
    turns: Turns, ref: SessionRef, history: History, messages: Sequence[dict[str, Any]]
) -> tuple[Plan, Rewind | None]:
    """What to do with a resent conversation, and what a rewind must record.

    Cost: nothing for a plain continuation; one round trip, O(turns), if it matters of which turns the history is made.

    Raises:
        BatonError: history_mismatch; invalid_value if it ends with an answer that does not go on.
        StoreUnavailable: the turns could not be read.
    """
    stored = history.elements
    if messages[-1]["role"] == "assistant":
        return _going_on(stored, live(await turns.ledger(ref)), messages), None
    planned = plan(stored, (), messages)
    if planned is not None and planned.kept == len(stored) and all(one["role"] != "assistant" for one in planned.new):
        return planned, None
    spans = live(await turns.ledger(ref))
    planned = plan(stored, spans, messages)
    if planned is None:
        raise history_mismatch()
    if planned.kept == len(stored):
        return planned, None
    dropped = sum(span.end > planned.kept and not span.by_hand for span in spans)
    return planned, back_to(planned.kept, history, turns_dropped=dropped)


def _going_on(stored: Sequence[bytes], spans: Sequence[Span], messages: Sequence[dict[str, Any]]) -> Plan:
    places, used = _match(stored, spans, messages)
    paused = bool(spans) and spans[-1].paused and spans[-1].end == len(stored)
    if not paused or len(places) < len(stored) or used < len(messages):
        raise ends_with_answer()
    return Plan(len(stored), [])


def ends_with_answer() -> BatonError:
    """A request whose last message is the assistant's: a session's answers are Claude's own."""
    return invalid_value(
        "messages", "must not end with an assistant message, unless that is the session's last answer and has paused"
    )


def back_to(kept: int, history: History, *, turns_dropped: int) -> Rewind:
    """A rewind after which so many of the stored messages are left."""
    return Rewind(kept, sum(history.sizes[kept:]), turns_dropped)
