"""OpenAI chat completions, the answer: from Claude's events to a completion or its chunks; pure.

Source: OpenAI API reference, "Chat", objects `chat.completion` and `chat.completion.chunk`. Ours: ``session_id`` in
the body and in every chunk. Usage adds up what Claude counts apart: prompt tokens are uncached, cache-read and
cache-written input together.

A tool call is told in a stream by a first delta with its id and name, and then by its arguments as they come. Claude
sends none for a call without input; a caller must be able to parse what it puts together, so ``{}`` is sent then.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from service.dialects.errors import openai_error
from service.errors import BatonError
from service.events import Event
from service.sse import data
from service.transcript import Answer

_FINISH: Final = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_DONE: Final = data(b"[DONE]")


@dataclass(slots=True)
class _Call:
    """A tool call that is being streamed.

    Attributes:
        index: among the answer's calls.
        whole_input: as it stood at the beginning; it stays that if nothing comes.
        begun: whether something of the arguments was shown.
    """

    index: int
    whole_input: str
    begun: bool = False


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every completion and chunk of one answer has in common.

    Attributes:
        id: ``chatcmpl-…``.
        created: seconds since 1970.
        session: what the caller calls the session; None when stateless.
    """

    id: str
    created: int
    session: str | None

    def fields(self, kind: str, model: str) -> dict[str, Any]:
        """The common fields, in OpenAI's order."""
        own = {"id": self.id, "object": kind, "created": self.created, "model": model}
        return own if self.session is None else {**own, "session_id": self.session}


def finish_reason(stop_reason: str | None) -> str:
    """Claude's reason in OpenAI's words; what has no word of its own is ``stop``."""
    return _FINISH.get(stop_reason or "", "stop")


def usage(answer: Answer) -> dict[str, Any]:
    """Usage as OpenAI counts it."""
    counted = answer.tokens()
    prompt = counted.input + counted.cache_read + counted.cache_written
    thinking = (answer.usage.get("output_tokens_details") or {}).get("thinking_tokens") or 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": counted.output,
        "total_tokens": prompt + counted.output,
        "prompt_tokens_details": {"cached_tokens": counted.cache_read, "cache_write_tokens": counted.cache_written},
        "completion_tokens_details": {"reasoning_tokens": thinking},
    }


def _refusal(answer: Answer) -> str | None:
    if answer.stop_reason != "refusal":
        return None
    return (answer.stop_details or {}).get("explanation") or "Claude declined to answer."


def _told_call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def rendering(
    turn_id: str, created_s: int, answer: Answer, *, session: str | None, include_usage: bool
) -> "ChatAnswer":
    """The answer of a turn; the completion's id is the turn's."""
    envelope = Envelope("chatcmpl-" + turn_id.removeprefix("turn_"), created_s, session)
    return ChatAnswer(envelope, answer, include_usage=include_usage)


def framing(*, include_usage: bool) -> str:
    """How a stream is framed: whoever follows one must want the same."""
    return "chat, usage" if include_usage else "chat"


def failed(error: BatonError) -> bytes:
    """The last frame of a stream that fails: without ``[DONE]``, nobody may take it for complete."""
    return data(openai_error(error))


class ChatAnswer:
    """One answer as a completion, or as the chunks of one.

    Args:
        envelope: of the answer.
        answer: what Claude said, as far as it came.
        include_usage: whether a last chunk carries the usage.
    """

    def __init__(self, envelope: Envelope, answer: Answer, *, include_usage: bool) -> None:
        self._envelope = envelope
        self._answer = answer
        self._include_usage = include_usage
        self._text_frame = (b"", b"")
        self._calls: dict[int, _Call] = {}  # by index of the block

    def whole(self) -> bytes:
        """The whole answer as one JSON body."""
        answer, refusal = self._answer, _refusal(self._answer)
        text, calls = answer.text(), answer.tool_calls() if refusal is None else []
        bare = refusal is not None or calls
        message: dict[str, Any] = {"role": "assistant", "content": text or (None if bare else ""), "refusal": refusal}
        if calls:
            message["tool_calls"] = [_told_call(call["id"], call["name"], _json(call["input"])) for call in calls]
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": finish_reason(answer.stop_reason),
        }
        body = self._envelope.fields("chat.completion", answer.message.get("model", ""))
        return orjson.dumps({**body, "choices": [choice], "usage": usage(answer)})

    def frames(self, events: Sequence[Event]) -> list[bytes]:
        """The chunks that show these events, each a whole server-sent event; possibly none."""
        shown: list[bytes] = []
        for event in events:
            if event.type == "content_block_delta":
                delta = event.data["delta"]
                if delta["type"] == "text_delta":
                    # The chunk around the text is the same every time: it was rendered once, at the start.
                    before, after = self._text_frame
                    shown.append(before + orjson.dumps(delta["text"]) + after)
                elif delta["type"] == "input_json_delta":
                    shown += self._arguments(event.data["index"], delta["partial_json"])
            elif event.type == "content_block_start":
                shown += self._begin_call(event.data["index"], event.data["content_block"])
            elif event.type == "content_block_stop":
                shown += self._end_call(event.data["index"])
            elif event.type == "message_start":
                self._text_frame = self._around_text()
                shown.append(self._chunk({"role": "assistant", "content": "", "refusal": None}, None))
            elif event.type == "message_stop":
                shown += self._last()
        return shown

    def _begin_call(self, block_index: int, block: dict[str, Any]) -> list[bytes]:
        if block["type"] != "tool_use":
            return []
        call = self._calls[block_index] = _Call(len(self._calls), _json(block.get("input") or {}))
        return [
            self._chunk({"tool_calls": [{"index": call.index, **_told_call(block["id"], block["name"], "")}]}, None)
        ]

    def _arguments(self, block_index: int, json: str) -> list[bytes]:
        call = self._calls.get(block_index)
        if call is None or not json:
            return []
        call.begun = True
        return [self._chunk({"tool_calls": [{"index": call.index, "function": {"arguments": json}}]}, None)]

    def _end_call(self, block_index: int) -> list[bytes]:
        call = self._calls.get(block_index)
        return [] if call is None or call.begun else self._arguments(block_index, call.whole_input)

    def _around_text(self) -> tuple[bytes, bytes]:
        mark = "\x00text\x00"
        before, _, after = self._chunk({"content": mark}, None).partition(orjson.dumps(mark))
        return before, after

    def _chunk(self, delta: dict[str, Any], finish: str | None) -> bytes:
        body = self._envelope.fields("chat.completion.chunk", self._answer.message.get("model", ""))
        body["choices"] = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
        if self._include_usage:
            body["usage"] = None
        return data(orjson.dumps(body))

    def _last(self) -> list[bytes]:
        refusal = _refusal(self._answer)
        frames = [self._chunk({"refusal": refusal}, None)] if refusal is not None else []
        frames.append(self._chunk({}, finish_reason(self._answer.stop_reason)))
        if self._include_usage:
            body = self._envelope.fields("chat.completion.chunk", self._answer.message.get("model", ""))
            frames.append(data(orjson.dumps({**body, "choices": [], "usage": usage(self._answer)})))
        frames.append(_DONE)
        return frames

    def failed(self, error: BatonError) -> bytes:
        """The last frame of a stream that fails."""
        return failed(error)
