"""A stored turn told again, as if Claude said it just now; pure, but for `read`.

The answer is made anew from the turn's record and its stored message: the same events go into an `Answer` that
Claude's own would, so a replay is rendered by the same code, as JSON or as a stream, whatever the first time was. What
it lacks is the pace, and blocks that are not kept (empty text).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from service.errors import BatonError, session_not_found
from service.events import Event
from service.resend import was_rewound
from storage.elements import unpack
from storage.keys import SessionRef
from storage.sessions import Sessions
from storage.turns import Turns


@dataclass(frozen=True, slots=True)
class Stored:
    """A committed turn.

    Attributes:
        record: its record.
        content: the blocks of its answer; none of a refused one.
    """

    record: dict[str, Any]
    content: list[dict[str, Any]]

    @property
    def incomplete(self) -> bool:
        """Whether its answer was cut short."""
        return bool(self.record["state"] == "incomplete")


async def read(turns: Turns, sessions: Sessions, ref: SessionRef, number: int) -> Stored:
    """The turn of this number, which is committed. Cost: up to three round trips.

    Raises:
        BatonError: turn_rewound; session_not_found if it went away meanwhile.
        StoreUnavailable: it could not be read.
    """
    found = await turns.records(ref, number, number)
    if not found:
        raise session_not_found()
    record = orjson.loads(found[0])
    messages = await sessions.messages(ref, record["to"] - 1, 1) if record["to"] > record["from"] else []
    # Asked for after the message: if it was not rewound by now, the message was its own.
    if was_rewound(number, record["to"], await turns.cuts(ref)):
        raise BatonError("turn_rewound", "This turn was answered, and the history was rewound since.", param="turn")
    if not messages:
        return Stored(record, [])
    message = orjson.loads(unpack(messages[0]).json)
    return Stored(record, message["content"] if message["role"] == "assistant" else [])


def events(stored: Stored) -> list[Event]:
    """The events of Claude's that tell this answer."""
    return [Event(data["type"], orjson.dumps(data), data) for data in _events(stored.record, stored.content)]


def _events(record: dict[str, Any], content: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    message = {"id": record["message_id"], "type": "message", "role": "assistant", "model": record["answered_by"]}
    more = record.get("more", {})
    unsaid = {"stop_reason": None, "stop_sequence": None, "stop_details": None, **more.get("start", {})}
    yield {"type": "message_start", "message": {**message, "content": [], **unsaid, "usage": record["usage"]}}
    for index, block in enumerate(content):
        begun, deltas = _block(block)
        yield {"type": "content_block_start", "index": index, "content_block": begun}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    stop = {name: record.get(name) for name in ("stop_reason", "stop_sequence", "stop_details")}
    yield {
        "type": "message_delta",
        "delta": {**stop, **more.get("delta", {})},
        "usage": record["usage"],
        **more.get("beside", {}),
    }
    yield {"type": "message_stop"}


def _block(block: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A block as it begins, and its deltas; a kind that has none begins whole."""
    match block["type"]:
        case "text":
            return {**block, "text": ""}, [{"type": "text_delta", "text": block["text"]}]
        case "thinking":
            thinking = {"type": "thinking_delta", "thinking": block["thinking"]}
            signature = {"type": "signature_delta", "signature": block["signature"]}
            return {**block, "thinking": "", "signature": ""}, [thinking, signature]
        case "tool_use" | "server_tool_use":
            json = orjson.dumps(block["input"]).decode()
            return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": json}]
    return block, []
