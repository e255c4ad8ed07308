"""Pure: what to say → a reply, and a reply → the JSON message or the frames of a stream.

A stream's frames, in the order the API documents:

    message_start         the message, empty, with the input side of its usage
    ping
    per block             content_block_start, content_block_delta …, content_block_stop
    message_delta         stop reason, and the usage of the whole message
    message_stop

A thinking block, where there is thinking, comes first, and with `think between` (thinking.py) one more ahead of each
block behind it; its signature is the last of its deltas. Tool calls come last, a block each. One delta is a word, or a
piece of a call's input, and counts as one token, so `max_tokens` cuts exactly where a test expects it: a call may be
cut in the middle of its input, which then is no JSON. Thinking counts whether it is shown or not.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import orjson

from service.simulator.answers import split_words
from service.simulator.cache import InputUsage
from service.simulator.calls import Call
from service.simulator.prompt import Prompt
from service.simulator.seals import Sealer
from service.simulator.thinking import Thinking


@dataclass(frozen=True, slots=True)
class Thought:
    """A thinking block.

    Attributes:
        pieces: deltas of its text, shown or not; a token each.
        withheld: whether the text is left out.
        redacted: whether the whole block is.
        seal: its signature, or what is in its place.
    """

    pieces: tuple[str, ...]
    withheld: bool
    redacted: bool
    seal: str = ""

    @property
    def shown(self) -> tuple[str, ...]:
        """The deltas that are in the answer."""
        return () if self.withheld or self.redacted else self.pieces


@dataclass(frozen=True, slots=True)
class Text:
    """A text block: its deltas."""

    pieces: tuple[str, ...]


Block = Thought | Text | Call


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of the assistant, whole.

    Attributes:
        blocks: in order; the pieces of the last one possibly cut short.
        usage: the input side.
        diagnostics: why the prompt cache missed; `None` if it did not, or nobody asked.
    """

    id: str
    model: str
    blocks: tuple[Block, ...]
    stop_reason: str
    stop_sequence: str | None
    stop_details: dict[str, Any] | None
    usage: InputUsage
    output_tokens: int
    diagnostics: dict[str, Any] | None = None

    @property
    def text(self) -> tuple[str, ...]:
        """The deltas of the answer's text."""
        return tuple(piece for block in self.blocks if isinstance(block, Text) for piece in block.pieces)

    @property
    def calls(self) -> tuple[Call, ...]:
        """The tool calls."""
        return tuple(block for block in self.blocks if isinstance(block, Call))

    @property
    def thoughts(self) -> tuple[Thought, ...]:
        """The thinking blocks."""
        return tuple(block for block in self.blocks if isinstance(block, Thought))

    @property
    def delta_count(self) -> int:
        """How many deltas show something, signatures not counted."""
        return sum(len(block.shown if isinstance(block, Thought) else block.pieces) for block in self.blocks)


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
    body: dict[str, Any],
    answer: str,
    *,
    message_id: str,
    usage: InputUsage,
    prompt: Prompt,
    diagnostics: dict[str, Any] | None = None,
    thinking: Thinking | None = None,
    calls: tuple[Call, ...] = (),
) -> Reply:
    """Turn an answer into a reply within the limits of its request.

    Args:
        body: an accepted request; `max_tokens` and `stop_sequences` are obeyed.
        answer: the whole text, without limits.
        message_id: the id of the message.
        usage: the input side.
        prompt: what thinking blocks are bound to.
        diagnostics: as in `Reply`.
        thinking: how it is thought about; `None` if it is not.
        calls: the tool calls behind the text; none are made where a stop sequence ends it.
    """
    text, stop_sequence = _stop(answer, body.get("stop_sequences") or ())
    planned = _plan(split_words(text), () if stop_sequence else calls, thinking)
    made, cut = _within(planned, body["max_tokens"])
    cut = cut or body["max_tokens"] == 0  # only the prompt cache is warmed then
    called = any(isinstance(block, Call) for block in made)
    return Reply(
        id=message_id,
        model=body["model"],
        blocks=tuple(made if thinking is None else _sealed(made, Sealer(prompt))),
        stop_reason="max_tokens" if cut else "stop_sequence" if stop_sequence else "tool_use" if called else "end_turn",
        stop_sequence=None if cut else stop_sequence,
        stop_details=None,
        usage=usage,
        diagnostics=diagnostics,
        output_tokens=sum(len(block.pieces) for block in made),
    )


def refuse(
    body: dict[str, Any], *, message_id: str, usage: InputUsage, diagnostics: dict[str, Any] | None = None
) -> Reply:
    """Make the reply of a model that declines: HTTP 200, no content, the reason in `stop_details`."""
    return Reply(
        id=message_id,
        model=body["model"],
        blocks=(),
        stop_reason="refusal",
        stop_sequence=None,
        stop_details={
            "type": "refusal",
            "category": "general_harms",
            "explanation": "The simulator was told to refuse this request.",
        },
        usage=usage,
        diagnostics=diagnostics,
        output_tokens=1,
    )


def _stop(text: str, sequences: list[str] | tuple[str, ...]) -> tuple[str, str | None]:
    """Cut a text in front of the stop sequence that comes first; of two at one place the longer wins."""
    found = [(text.find(sequence), -len(sequence), sequence) for sequence in sequences if sequence in text]
    if not found:
        return text, None
    place, _, sequence = min(found)
    return text[:place], sequence


def _plan(words: tuple[str, ...], calls: tuple[Call, ...], thinking: Thinking | None) -> list[Block]:
    """Put the blocks of an answer in order, without limits."""
    said: list[Block] = [Text(words)] if words else []
    said += calls
    if thinking is None:
        return said
    thought = Thought(thinking.words, thinking.withheld, thinking.redacted)
    if thinking.between and said:
        return [block for one in said for block in (thought, one)]
    return [thought, *said]


def _within(planned: list[Block], budget: int) -> tuple[list[Block], bool]:
    """The blocks as far as their pieces are within the budget, and whether anything had to be cut."""
    made: list[Block] = []
    for block in planned:
        if budget <= 0:
            return made, True
        made.append(replace(block, pieces=block.pieces[:budget]))
        budget -= len(block.pieces)
    return made, budget < 0


def _sealed(blocks: list[Block], sealer: Sealer) -> Iterator[Block]:
    for block in blocks:
        if isinstance(block, Thought):
            yield replace(block, seal=sealer.seal("".join(block.shown), redacted=block.redacted))
        else:
            sealer.pass_over(_whole(block))
            yield block


def message(reply: Reply) -> dict[str, Any]:
    """Render a reply as the JSON body of a request without `stream`."""
    return {
        **_envelope(reply),
        "content": [_whole(block) for block in reply.blocks],
        "stop_reason": reply.stop_reason,
        "stop_sequence": reply.stop_sequence,
        "stop_details": reply.stop_details,
        "usage": {**_input_usage(reply), **_output_usage(reply)},
    }


def _whole(block: Block) -> dict[str, Any]:
    """A block as it is in a message, and as the caller sends it back."""
    match block:
        case Thought(redacted=True):
            return {"type": "redacted_thinking", "data": block.seal}
        case Thought():
            return {"type": "thinking", "thinking": "".join(block.shown), "signature": block.seal}
        case Text():
            return {"type": "text", "text": "".join(block.pieces)}
        case Call():
            return {**_empty(block), "input": block.input}


def _empty(block: Block) -> dict[str, Any]:
    """A block as its `content_block_start` has it."""
    match block:
        case Thought(redacted=True):
            return {"type": "redacted_thinking", "data": block.seal}
        case Thought():
            return {"type": "thinking", "thinking": "", "signature": ""}
        case Text():
            return {"type": "text", "text": ""}
        case Call():
            return {
                "type": "tool_use",
                "id": block.id,
                "name": block.name,
                "input": {},
                "caller": {"type": "direct"},
            }


def _deltas(block: Block) -> list[dict[str, str]]:
    match block:
        case Thought(redacted=True):
            return []
        case Thought():
            deltas = [{"type": "thinking_delta", "thinking": word} for word in block.shown]
            return [*deltas, {"type": "signature_delta", "signature": block.seal}]
        case Text():
            return [{"type": "text_delta", "text": word} for word in block.pieces]
        case Call():
            return [{"type": "input_json_delta", "partial_json": piece} for piece in block.pieces]


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
    for index, block in enumerate(reply.blocks):
        yield from _block(index, _empty(block), _deltas(block))
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


def _block(index: int, empty: dict[str, Any], deltas: list[dict[str, str]]) -> Iterator[Frame]:
    yield Frame(sse({"type": "content_block_start", "index": index, "content_block": empty}))
    for delta in deltas:
        event = {"type": "content_block_delta", "index": index, "delta": delta}
        yield Frame(sse(event), is_delta=True, text=delta.get("text", ""))
    yield Frame(sse({"type": "content_block_stop", "index": index}))


def _envelope(reply: Reply) -> dict[str, Any]:
    envelope = {"id": reply.id, "type": "message", "role": "assistant", "model": reply.model}
    return {**envelope, "diagnostics": reply.diagnostics}


def _input_usage(reply: Reply, *, detailed: bool = True) -> dict[str, Any]:
    """The input side of the usage: `input_tokens` is the part that the cache had nothing to do with."""
    used = reply.usage
    usage: dict[str, Any] = {
        "input_tokens": used.uncached,
        "cache_creation_input_tokens": used.written_5m + used.written_1h,
        "cache_read_input_tokens": used.read,
    }
    if detailed:
        usage["cache_creation"] = {
            "ephemeral_5m_input_tokens": used.written_5m,
            "ephemeral_1h_input_tokens": used.written_1h,
        }
        usage["service_tier"] = "standard"
    return usage


def _output_usage(reply: Reply) -> dict[str, Any]:
    thinking = sum(len(thought.pieces) for thought in reply.thoughts)
    return {
        "output_tokens": reply.output_tokens,
        "output_tokens_details": {"thinking_tokens": thinking},
    }
