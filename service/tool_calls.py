"""Tool calls and their results, across the turns of a session; pure.

Claude takes a conversation only if every call of an answer has its one result in the user's messages right behind it,
before anything else they say. A caller may go on without one: because the answer was cut short and it never saw the
call, or because it has changed its mind. The call is then closed: a result that tells an error is stored in its place.

That result is a message of Baton's own, in front of the messages of the turn that went on, and its element says so
(`synthetic`, storage/elements.py). The prefix stays byte-stable, because what is sent is what is stored. The digests of
what callers see stay as they are, because the element has the digest of the one before it: whoever compares a resent
conversation passes it over. Claude takes neighbouring messages of the user for one, so the real results of other calls
may stand in the message behind it.

A call is open as long as it is in the last stored message, or nothing is behind it but results of the calls beside it:
a fork may end between the results of one answer's calls. Behind that every call has a result; another one for it is
refused as `tool_call_closed`.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, Final

import orjson

from service import transcript
from service.errors import BatonError, invalid_value
from storage import elements

TOOL_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,128}")
"""What Claude takes as a tool's name."""
CALL_ID: Final = re.compile(r"[a-zA-Z0-9_-]{1,256}")
"""What Claude takes as a call's id; the length is Baton's own bound."""

_NO_RESULT: Final = "There is no result: the conversation went on without it."
_CALL: Final = b'"tool_use"'
_RESULT: Final = b'"tool_result"'

Message = dict[str, Any]


def pack(stored: Sequence[bytes], messages: Sequence[Message], digest: bytes) -> list[bytes]:
    """New messages as elements, with results for the calls that are left without one.

    Args:
        stored: the elements before them; the last one is enough if `concerns` does not say otherwise.
        messages: the new ones, oldest first.
        digest: of the last stored one.

    Raises:
        BatonError: tool_call_closed; invalid_value for a result without a call, one behind other content, a second one
            of the same call, or a call that is not the only one of its id.
    """
    _check_new_calls(stored, messages)
    packed: list[bytes] = []
    for missing, run in _runs(stored, messages):
        if missing:
            packed.append(elements.pack(orjson.dumps(_closing(missing)), digest, synthetic=True))
        packed += transcript.pack(run, digest)
        digest = packed[-1][1 : elements.HEADER_BYTES]
    return packed


def concerns(last: bytes, messages: Sequence[Message]) -> bool:
    """Whether the whole history must be known to `pack` these messages behind the last stored element."""
    return _CALL in last or _RESULT in last or any(_holds(message, "tool_use", "tool_result") for message in messages)


def check_whole(messages: Sequence[Message]) -> None:
    """Checks a conversation that is not stored: nothing is added to it.

    Raises:
        BatonError: as `pack`, and for a call without a result.
    """
    _check_new_calls((), messages)
    for missing, _ in _runs((), messages):
        if missing:
            raise _unanswered(missing)


def _runs(stored: Sequence[bytes], messages: Sequence[Message]) -> Iterator[tuple[list[str], list[Message]]]:
    """Neighbouring messages of one role, and the calls before them that they leave without a result."""
    waiting = dict.fromkeys(_open_calls(stored))
    for role, neighbours in groupby(messages, key=lambda message: message["role"]):
        run = list(neighbours)
        missing: list[str] = []
        if role == "user":
            missing, waiting = _without_result(waiting, run, stored), {}
        for message in run:
            if waiting:
                raise _unanswered(list(waiting))
            waiting = dict.fromkeys(_calls(message))
        yield missing, run


def _without_result(waiting: Collection[str], run: Sequence[Message], stored: Sequence[bytes]) -> list[str]:
    """Those of the waiting calls that neighbouring messages of the user do not answer."""
    answered: set[str] = set()
    leading = True
    for message in run:
        if isinstance(message["content"], str):
            leading = False
            continue
        for block in message["content"]:
            if block.get("type") != "tool_result":
                leading = False
                continue
            call = block["tool_use_id"]
            if call not in waiting:
                raise _no_such_call(call, stored)
            if call in answered:
                raise invalid_value("messages", f"hold two results of the tool call `{call}`")
            if not leading:
                raise invalid_value("messages", "hold a tool result behind something else: results come first")
            answered.add(call)
    return [call for call in waiting if call not in answered]


def _open_calls(stored: Sequence[bytes]) -> list[str]:
    """Of the last calls those without a result. Cost: parses what is behind them, if that begins with results."""
    answered: set[str] = set()
    for element in reversed(stored):
        if _CALL in element:
            message = orjson.loads(element[elements.HEADER_BYTES :])
            if message["role"] == "assistant":
                return [call for call in _calls(message) if call not in answered]
        if _RESULT not in element:
            return []
        blocks = orjson.loads(element[elements.HEADER_BYTES :])["content"]
        if isinstance(blocks, str):
            return []
        answered |= {block["tool_use_id"] for block in blocks if block.get("type") == "tool_result"}
    return []


def _calls(message: Message) -> list[str]:
    """The ids of the calls that a message makes."""
    if message["role"] != "assistant" or isinstance(message["content"], str):
        return []
    return [block["id"] for block in message["content"] if block.get("type") == "tool_use"]


def _holds(message: Message, *kinds: str) -> bool:
    return not isinstance(message["content"], str) and any(block.get("type") in kinds for block in message["content"])


def _check_new_calls(stored: Sequence[bytes], messages: Iterable[Message]) -> None:
    """Ids of calls are unique in a conversation."""
    made = [call for message in messages for call in _calls(message)]
    if not made:
        return
    known = _stored_calls(stored)
    for call in made:
        if call in known:
            raise invalid_value("messages", f"hold a second tool call with the id `{call}`")
        known.add(call)


def _stored_calls(stored: Sequence[bytes]) -> set[str]:
    """The ids of all calls of a history. Cost: parses each message that makes one."""
    holding = (orjson.loads(element[elements.HEADER_BYTES :]) for element in stored if _CALL in element)
    return {call for message in holding for call in _calls(message)}


def _closing(calls: Sequence[str]) -> Message:
    results = [{"type": "tool_result", "tool_use_id": call, "content": _NO_RESULT, "is_error": True} for call in calls]
    return {"role": "user", "content": results}


def _unanswered(calls: Sequence[str]) -> BatonError:
    return invalid_value("messages", f"must answer every tool call before anything else; `{calls[0]}` has no result")


def _no_such_call(call: str, stored: Sequence[bytes]) -> BatonError:
    if call in _stored_calls(stored):
        return BatonError(
            "tool_call_closed",
            f"The tool call `{call}` is closed: it has a result, or the turn after it went on without one.",
            param="messages",
        )
    return invalid_value("messages", f"hold a result of `{call}`, which is no tool call that waits for one")
