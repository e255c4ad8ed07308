"""Pure: what to say → a reply, and a reply → the JSON message or the frames of a stream.

A stream's frames, in the order the API documents:

    message_start         the message, empty, with the input side of its usage
    ping
    per block             content_block_start, content_block_delta …, content_block_stop
    message_delta         stop reason, and the usage of the whole message
    message_stop

A thinking block, where thinking is on, comes first; its signature is the last of its deltas. Tool calls come last, a
block each. One delta is a word, or a piece of a call's input, and counts as one token, so `max_tokens` cuts exactly
where a test expects it: a call may be cut in the middle of its input, which then is no JSON.
"""

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import orjson

from service.simulator.answers import split_words
from service.simulator.calls import Call

THINKING_ON = ("adaptive", "enabled")


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of the assistant, whole.

    Attributes:
        thinking: deltas of the thinking block; `None` without thinking, empty when its text is withheld.
        text: deltas of the text block; without any there is no such block.
        calls: the tool calls, the input of the last one possibly cut short.
        thinking_tokens: tokens spent on thinking, shown or not; part of `output_tokens`.
    """

    id: str
    model: str
    thinking: tuple[str, ...] | None
    text: tuple[str, ...]
    calls: tuple[Call, ...]
    stop_reason: str
    stop_sequence: str | None
    stop_details: dict[str, Any] | None
    input_tokens: int
    output_tokens: int
    thinking_tokens: int

    @property
    def signature(self) -> str:
        """The thinking block's seal: a digest of what was said, so that any change of it shows."""
        called = "".join(call.id for call in self.calls)
        said = "\0".join((self.model, "".join(self.thinking or ()), "".join(self.text), called))
        return base64.b64encode(hashlib.sha256(said.encode()).digest()).decode()


class Frame(NamedTuple):
    """One server-sent event, ready for the socket.

    Attributes:
        payload: the `event:` and `data:` lines and the blank line behind them.
        is_delta: whether it is a `content_block_delta`; pacing and faults count these.
        is_end: whether it is one of the two events that end a message, `message_delta` and `message_stop`.
        text: what it adds to the answer's text.
    """

    payload: bytes
    is_delta: bool = False
    is_end: bool = False
    text: str = ""


def compose(
    body: dict[str, Any], answer: str, *, message_id: str, input_tokens: int, calls: tuple[Call, ...] = ()
) -> Reply:
    """Turn an answer into a reply within the limits of its request.

    Args:
        body: an accepted request; `max_tokens`, `stop_sequences` and `thinking` are obeyed.
        answer: the whole text, without limits.
        message_id: the id of the message.
        input_tokens: as estimated for the request.
        calls: the tool calls behind the text; none are made where a stop sequence ends it.
    """
    text, stop_sequence = _stop(answer, body.get("stop_sequences") or ())
    thinking = _think(body)
    budget: int = body["max_tokens"]
    words = split_words(text)
    thinking_words = (thinking or ())[:budget]
    shown = words[: budget - len(thinking_words)]
    made = _within(() if stop_sequence else calls, budget - len(thinking_words) - len(shown))
    called = sum(len(call.pieces) for call in made)
    asked = sum(len(call.pieces) for call in calls) if not stop_sequence else 0
    cut = len(shown) < len(words) or called < asked or budget == 0
    if budget == 0:
        thinking = None  # only the prompt cache is warmed: no content of any kind
    elif thinking is not None:
        thinking = () if body["thinking"].get("display") == "omitted" else thinking_words
    return Reply(
        id=message_id,
        model=body["model"],
        thinking=thinking,
        text=shown,
        calls=made,
        stop_reason="max_tokens" if cut else "stop_sequence" if stop_sequence else "tool_use" if made else "end_turn",
        stop_sequence=None if cut else stop_sequence,
        stop_details=None,
        input_tokens=input_tokens,
        output_tokens=len(thinking_words) + len(shown) + called,
        thinking_tokens=len(thinking_words),
    )


def refuse(body: dict[str, Any], *, message_id: str, input_tokens: int) -> Reply:
    """Make the reply of a model that declines: HTTP 200, no content, the reason in `stop_details`."""
    return Reply(
        id=message_id,
        model=body["model"],
        thinking=None,
        text=(),
        calls=(),
        stop_reason="refusal",
        stop_sequence=None,
        stop_details={
            "type": "refusal",
            "category": "general_harms",
            "explanation": "The simulator was told to refuse this request.",
        },
        input_tokens=input_tokens,
        output_tokens=1,
        thinking_tokens=0,
    )


def _stop(text: str, sequences: list[str] | tuple[str, ...]) -> tuple[str, str | None]:
    """Cut a text in front of the stop sequence that comes first; of two at one place the longer wins."""
    found = [(text.find(sequence), -len(sequence), sequence) for sequence in sequences if sequence in text]
    if not found:
        return text, None
    place, _, sequence = min(found)
    return text[:place], sequence


def _within(calls: tuple[Call, ...], budget: int) -> tuple[Call, ...]:
    """The calls as far as their pieces are within the budget."""
    made: list[Call] = []
    for call in calls:
        if budget <= 0:
            break
        made.append(replace(call, pieces=call.pieces[:budget]))
        budget -= len(call.pieces)
    return tuple(made)


def _think(body: dict[str, Any]) -> tuple[str, ...] | None:
    config = body.get("thinking")
    if not config or config["type"] not in THINKING_ON:
        return None
    return split_words(f"The caller sent {len(body['messages'])} messages; the answer follows from the last.")


def message(reply: Reply) -> dict[str, Any]:
    """Render a reply as the JSON body of a request without `stream`."""
    content: list[dict[str, Any]] = []
    if reply.thinking is not None:
        content.append({"type": "thinking", "thinking": "".join(reply.thinking), "signature": reply.signature})
    if reply.text:
        content.append({"type": "text", "text": "".join(reply.text)})
    content.extend({**_empty_call(call), "input": call.input} for call in reply.calls)
    return {
        **_envelope(reply),
        "content": content,
        "stop_reason": reply.stop_reason,
        "stop_sequence": reply.stop_sequence,
        "stop_details": reply.stop_details,
        "usage": {**_input_usage(reply), **_output_usage(reply)},
    }


def frames(reply: Reply) -> Iterator[Frame]:
    """Yield the events of a reply in order."""
    start = {
        **_envelope(reply),
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "stop_details": None,
        "usage": {**_input_usage(reply), "output_tokens": min(1, reply.output_tokens)},
    }
    yield Frame(sse({"type": "message_start", "message": start}))
    yield Frame(sse({"type": "ping"}))
    index = 0
    if reply.thinking is not None:
        deltas = [{"type": "thinking_delta", "thinking": word} for word in reply.thinking]
        deltas.append({"type": "signature_delta", "signature": reply.signature})
        yield from _block(index, {"type": "thinking", "thinking": "", "signature": ""}, deltas)
        index += 1
    if reply.text:
        deltas = [{"type": "text_delta", "text": word} for word in reply.text]
        yield from _block(index, {"type": "text", "text": ""}, deltas)
        index += 1
    for call in reply.calls:
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in call.pieces]
        yield from _block(index, _empty_call(call), deltas)
        index += 1
    delta = {
        "stop_reason": reply.stop_reason,
        "stop_sequence": reply.stop_sequence,
        "stop_details": reply.stop_details,
    }
    usage = {**_input_usage(reply, detailed=False), **_output_usage(reply)}
    yield Frame(sse({"type": "message_delta", "delta": delta, "usage": usage}), is_end=True)
    yield Frame(sse({"type": "message_stop"}), is_end=True)


def sse(event: dict[str, Any]) -> bytes:
    """Render one server-sent event; `event:` repeats the object's `type`."""
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event))


def _empty_call(call: Call) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": {}, "caller": {"type": "direct"}}


def _block(index: int, empty: dict[str, Any], deltas: list[dict[str, str]]) -> Iterator[Frame]:
    yield Frame(sse({"type": "content_block_start", "index": index, "content_block": empty}))
    for delta in deltas:
        event = {"type": "content_block_delta", "index": index, "delta": delta}
        yield Frame(sse(event), is_delta=True, text=delta.get("text", ""))
    yield Frame(sse({"type": "content_block_stop", "index": index}))


def _envelope(reply: Reply) -> dict[str, Any]:
    return {"id": reply.id, "type": "message", "role": "assistant", "model": reply.model}


def _input_usage(reply: Reply, *, detailed: bool = True) -> dict[str, Any]:
    """The input side of the usage: `input_tokens` is the uncached part, and nothing is cached here."""
    usage: dict[str, Any] = {
        "input_tokens": reply.input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
    }
    if detailed:
        usage["cache_creation"] = {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0}
        usage["service_tier"] = "standard"
    return usage


def _output_usage(reply: Reply) -> dict[str, Any]:
    return {
        "output_tokens": reply.output_tokens,
        "output_tokens_details": {"thinking_tokens": reply.thinking_tokens},
    }
