"""Claude's events as tests write them: a whole answer from its blocks."""

from typing import Any

import orjson

from service.events import Event

Json = dict[str, Any]


def as_events(events: list[Json]) -> list[Event]:
    """What an `EventReader` makes of them."""
    return [Event(event["type"], orjson.dumps(event), event) for event in events]


def message_start(model: str = "claude-sonnet-5-5") -> Json:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": []}
    return {"type": "message_start", "message": {**message, "usage": {"input_tokens": 3, "output_tokens": 1}}}


def block(index: int, content_block: Json, *deltas: Json, whole: bool = True) -> list[Json]:
    """The events of one block; not ``whole`` leaves its end out."""
    events: list[Json] = [{"type": "content_block_start", "index": index, "content_block": content_block}]
    events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
    return [*events, {"type": "content_block_stop", "index": index}] if whole else events


def text_block(index: int, *pieces: str, whole: bool = True) -> list[Json]:
    deltas = [{"type": "text_delta", "text": piece} for piece in pieces]
    return block(index, {"type": "text", "text": ""}, *deltas, whole=whole)


def stop_events(
    stop_reason: str | None = "end_turn", stop_details: Json | None = None, usage: Json | None = None
) -> list[Json]:
    delta = {"stop_reason": stop_reason, "stop_sequence": None, "stop_details": stop_details}
    counted = {"output_tokens": 2} if usage is None else usage
    return [{"type": "message_delta", "delta": delta, "usage": counted}, {"type": "message_stop"}]


def answer_events(
    *blocks: list[Json],
    stop_reason: str | None = "end_turn",
    stop_details: Json | None = None,
    usage: Json | None = None,
) -> list[Json]:
    """All events of an answer."""
    inner = [event for events in blocks for event in events]
    return [message_start(), *inner, *stop_events(stop_reason, stop_details, usage)]
