"""Pure: which tools the stand-in calls, computed from the messages of one request and nothing else.

The last user turn decides, by its own words: what the results in it say asks for nothing, or a loop would never end.
Only a tool of the request is called; case does not matter, but in its name:

    call NAME with {…}      NAME with this input
    call NAME               NAME with an empty input

Several are parallel calls, in that order. `tool_choice` is obeyed: `none` calls nothing, `tool` that tool only, and it
and `any` call something even where nothing was asked for (the tool named, or the first), with an empty input.
`disable_parallel_tool_use` leaves the first call.

The id of a call is a digest of what it is, of where in the conversation it is made and of the calls before it, so it is
unique there, also if the oldest messages have been left out, and the same for the same request.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import orjson

PIECE_CHARS = 8

_CALL = re.compile(r"\b(?i:call) (?P<name>[a-zA-Z0-9_-]{1,128})(?:(?i: with) (?=\{))?")
_INPUT = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Call:
    """One call.

    Attributes:
        pieces: deltas of the input's JSON, one a token; one empty piece if the input is empty.
    """

    id: str
    name: str
    input: dict[str, Any]
    pieces: tuple[str, ...]


def decide(body: dict[str, Any]) -> tuple[Call, ...]:
    """Return the calls that an accepted request is answered with; without any it is answered in words."""
    choice = body.get("tool_choice") or {"type": "auto"}
    names = [tool["name"] for tool in body.get("tools") or () if tool.get("type") in (None, "custom")]
    if choice["type"] == "none" or not names:
        return ()
    wanted = [(name, given) for name, given in _wanted(own_words(body["messages"])) if name in names]
    if choice["type"] == "tool":
        wanted = [(name, given) for name, given in wanted if name == choice["name"]] or [(choice["name"], {})]
    elif choice["type"] == "any":
        wanted = wanted or [(names[0], {})]
    if choice.get("disable_parallel_tool_use"):
        wanted = wanted[:1]
    place = " ".join((str(len(body["messages"])), *_made(body["messages"])))
    return tuple(_call(place, index, name, given) for index, (name, given) in enumerate(wanted))


def own_words(messages: list[dict[str, Any]]) -> str:
    """Return the text of the last user turn, without that of results."""
    turn = list(takewhile(lambda message: message["role"] == "user", reversed(messages)))
    texts: list[str] = []
    for message in reversed(turn):
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        texts.extend(block["text"] for block in blocks if block["type"] == "text")
    return "\n".join(texts)


def _wanted(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    place = 0
    while (found := _CALL.search(text, place)) is not None:
        place = found.end()
        given: dict[str, Any] = {}
        if text.startswith("{", place):
            try:
                given, place = _INPUT.raw_decode(text, place)
            except (ValueError, RecursionError):
                continue
        yield found["name"], given


def _made(messages: list[dict[str, Any]]) -> Iterator[str]:
    for message in messages:
        if message["role"] == "assistant" and not isinstance(message["content"], str):
            yield from (block["id"] for block in message["content"] if block["type"] == "tool_use")


def _call(place: str, index: int, name: str, given: dict[str, Any]) -> Call:
    said = orjson.dumps(given).decode() if given else ""
    digest = hashlib.sha256(f"{place} {index} {name} {said}".encode()).hexdigest()
    pieces = tuple(said[at : at + PIECE_CHARS] for at in range(0, len(said), PIECE_CHARS)) or ("",)
    return Call(f"toolu_{digest[:24]}", name, given, pieces)
