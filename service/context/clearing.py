"""Results of old tool calls, of which only a note is sent; pure.

What tools have answered is the greater part of long work with them, and the first to be stale: the file was changed
since, the page was read. So under the policy `clear_tool_results` it goes before whole exchanges do. A view says up to
which message results are *cleared*: of these the content is sent as a note, always the same. The call, its id, whether
it was an error, and whatever else stands in the message stay as they are; so does all that is stored.

Results of the last `KEPT_ROUNDS` answers with calls stay, and those that the turn itself brings. So does a result that
is not longer than the note, and one that has loaded tools (``tool_reference``): later calls may be of them.

It moves in steps, as views do: a step clears no more than is needed to make the request much smaller than it may be.
Where all that may be cleared frees too little for that, the oldest exchanges leave the view with it.

What is sent is a function of what is stored and of the view, the same bytes from turn to turn. It costs that with every
turn each message whose results are cleared is parsed and written again, about a millisecond for each MB; no other is.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import orjson

from service.context.size import Size, media_of
from service.context.view import SHORTENED_SHARE, Limit, View, later
from storage import elements

NOTE: Final = "[Result cleared: it was too old to be sent again.]"
KEPT_ROUNDS: Final = 3
"""So many of the last answers with calls keep their results."""

_RESULT: Final = b'"tool_result"'
_LOADS_TOOLS: Final = b'"tool_reference"'

Json = bytes | memoryview


class Room(NamedTuple):
    """What a request that is made smaller may take.

    Attributes:
        kept: what it is to come to, so that it is long until the next time.
        enough: what is small enough if only results have to be cleared for it.
    """

    kept: Limit
    enough: Limit


def room(tokens: float, rate: float, size_bytes: int) -> Room:
    """Of a request.

    Args:
        tokens: that it may have; infinite where nobody knows.
        rate: tokens a byte of text.
        size_bytes: that it may have.
    """
    kept, enough = (Limit(share * tokens, rate, 0, int(share * size_bytes)) for share in SHORTENED_SHARE)
    return Room(kept, enough)


def noted(sent: Sequence[Json], stored: Sequence[bytes], view: View, begins: int) -> Sequence[Json]:
    """The messages of a request, with notes where results are cleared.

    Args:
        sent: as JSON, one for each message; empty ones are not sent.
        stored: their elements.
        view: of the conversation.
        begins: what is in front of this is not looked at.
    """
    if view.cleared <= begins:
        return sent
    ends = min(view.cleared, len(sent))
    notes = ((sent[at] and _noted(stored[at])) or sent[at] for at in range(begins, ends))
    return [*sent[:begins], *notes, *sent[ends:]]


def as_sent(stored: Sequence[bytes], begins: int, cleared: int) -> list[bytes]:
    """The elements from ``begins`` on, with notes in front of ``cleared``."""
    return [_with_note(element) if at < cleared else element for at, element in enumerate(stored[begins:], begins)]


def narrowed(
    history: Sequence[bytes],
    new: Sequence[bytes],
    view: View,
    space: Room,
    *,
    size: Size,
    head_bytes: int,
    covers: int,
    clears: bool,
) -> View:
    """What is sent from now on of a conversation that is too large; the view as it is, if nothing can be done.

    Args:
        history: the stored messages.
        new: those of the turn, which stay as they are.
        view: until now.
        space: for the request.
        size: of it, as it would be.
        head_bytes: of what stands in front of every view.
        covers: for so many messages a summary is sent.
        clears: whether results may be cleared before exchanges are left out.

    Cost: parses each message with results that were not cleared yet.
    """
    cleared, begins = view.cleared, view.begins
    for step in _steps(history, new, view, max(begins, covers), size) if clears else ():
        cleared, size = step.cleared, step.size
        if space.kept.takes(size):
            break
    if cleared == view.cleared or not space.enough.takes(size):
        shown, first = as_sent(history, 0, cleared), max(begins, covers)
        at = later(shown, new, first, space.kept._replace(head_bytes=head_bytes))
        begins = at if at > first else begins
    return View(begins, begins > view.begins or cleared > view.cleared, cleared)


class _Step(NamedTuple):
    """Up to where results are cleared, and how large the request is then."""

    cleared: int
    size: Size


def _steps(history: Sequence[bytes], new: Sequence[bytes], view: View, begins: int, size: Size) -> Iterator[_Step]:
    """The places up to which more can be cleared, oldest first; only those that free something."""
    for first, end in _rounds([*history, *new])[:-KEPT_ROUNDS]:
        if end > len(history):
            return
        before = [element for element in history[max(first, begins, view.cleared) : end] if _RESULT in element]
        after = [_with_note(element) for element in before]
        freed = sum(map(len, before)) - sum(map(len, after))
        if freed:
            was, is_now = media_of(before), media_of(after)
            media_bytes, media_tokens = was.size_bytes - is_now.size_bytes, was.tokens - is_now.tokens
            text_bytes = size.text_bytes - (freed - media_bytes)
            media = size.media._replace(
                size_bytes=size.media.size_bytes - media_bytes, tokens=size.media.tokens - media_tokens
            )
            size = Size(text_bytes, media)
            yield _Step(end, size)


def _rounds(messages: Sequence[bytes]) -> list[tuple[int, int]]:
    """Neighbouring messages with results, from and to: those of one answer's calls may be in more than one."""
    rounds: list[tuple[int, int]] = []
    for at, message in enumerate(messages):
        if _RESULT not in message or not _holds_results(orjson.loads(elements.json_of(message))):
            continue
        first = rounds.pop()[0] if rounds and rounds[-1][1] == at else at
        rounds.append((first, at + 1))
    return rounds


def _with_note(element: bytes) -> bytes:
    json = _noted(element)
    return element if json is None else element[: elements.HEADER_BYTES] + json


def _noted(element: bytes) -> bytes | None:
    """The JSON of a message with notes instead of results; None if there is nothing to clear."""
    if _RESULT not in element:
        return None
    message = orjson.loads(elements.json_of(element))
    if not _holds_results(message):
        return None
    content = [_cleared(block) for block in message["content"]]
    changed = any(new is not old for new, old in zip(content, message["content"], strict=True))
    return orjson.dumps({**message, "content": content}) if changed else None


def _holds_results(message: dict[str, Any]) -> bool:
    content = message["content"]
    return (
        message["role"] == "user"
        and not isinstance(content, str)
        and any(block.get("type") == "tool_result" for block in content)
    )


def _cleared(block: dict[str, Any]) -> dict[str, Any]:
    if block.get("type") != "tool_result":
        return block
    content = block.get("content")
    if isinstance(content, str):
        return block if len(content) <= len(NOTE) else {**block, "content": NOTE}
    said = orjson.dumps(content)
    return block if len(said) <= len(NOTE) or _LOADS_TOOLS in said else {**block, "content": NOTE}
