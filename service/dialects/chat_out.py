"""OpenAI chat completions, the answer: from Claude's events to a completion or its chunks; pure.

Source: OpenAI API reference, "Chat", objects `chat.completion` and `chat.completion.chunk`. Ours: ``session_id`` in
the body and in every chunk, and ``reasoning_content`` in message and delta where it is asked for. Usage adds up what
Claude counts apart: prompt tokens are uncached, cache-read and cache-written input together.

A tool call is told in a stream by a first delta with its id and name, and then by its arguments as they come. Claude
sends none for a call without input; a caller must be able to parse what it puts together, so ``{}`` is sent then.

A stream, put together, is the whole answer. So white space at the beginning of a block of text waits until something
else comes: blocks of nothing else are not kept (transcript.py), and a caller who sends back what it was shown must be
recognised. Two things cannot be taken back once they are shown: calls that a refusal revokes, and one that is cut.
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
_TIERS: Final = {"standard": "default", "priority": "priority"}
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

    def fields(self, kind: str, answer: Answer) -> dict[str, Any]:
        """The common fields, in OpenAI's order; the tier of the service is told if Claude has told it."""
        model, tier = answer.message.get("model", ""), _TIERS.get(answer.usage.get("service_tier", ""))
        own = {"id": self.id, "object": kind, "created": self.created, "model": model}
        if tier is not None:
            own["service_tier"] = tier
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


def annotations(answer: Answer) -> list[dict[str, Any]]:
    """The citations that have a URL, each with the place of its block's text in the content."""
    found, start = [], 0
    for block in answer.content():
        if block.get("type") != "text":
            continue
        end = start + len(block["text"])
        for citation in block.get("citations") or ():
            if url := citation.get("url"):
                place = {"start_index": start, "end_index": end}
                cited = {**place, "url": url, "title": citation.get("title") or url}
                found.append({"type": "url_citation", "url_citation": cited})
        start = end
    return found


def _told_call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def rendering(
    turn_id: str, created_s: int, answer: Answer, *, session: str | None, include_usage: bool, reasoning: bool
) -> "ChatAnswer":
    """The answer of a turn; the completion's id is the turn's."""
    envelope = Envelope("chatcmpl-" + turn_id.removeprefix("turn_"), created_s, session)
    return ChatAnswer(envelope, answer, include_usage=include_usage, reasoning=reasoning)


def framing(*, include_usage: bool, reasoning: bool) -> str:
    """How a stream is framed: whoever follows one must want the same."""
    return ", ".join(["chat", *["usage"] * include_usage, *["reasoning"] * reasoning])


def failed(error: BatonError) -> bytes:
    """The last frame of a stream that fails: without ``[DONE]``, nobody may take it for complete."""
    return data(openai_error(error))


class ChatAnswer:
    """One answer as a completion, or as the chunks of one.

    Args:
        envelope: of the answer.
        answer: what Claude said, as far as it came.
        include_usage: whether a last chunk carries the usage.
        reasoning: whether thinking is shown.
    """

    def __init__(self, envelope: Envelope, answer: Answer, *, include_usage: bool, reasoning: bool = False) -> None:
        self._envelope = envelope
        self._answer = answer
        self._include_usage = include_usage
        self._reasoning = reasoning
        self._text_frame = (b"", b"")
        self._blank: str | None = None  # of the block of text under way, as long as there is nothing else
        self._calls: dict[int, _Call] = {}  # by index of the block

    def whole(self) -> bytes:
        """The whole answer as one JSON body."""
        answer, refusal = self._answer, _refusal(self._answer)
        text, calls = answer.text(), answer.tool_calls() if refusal is None else []
        bare = refusal is not None or calls
        message: dict[str, Any] = {"role": "assistant", "content": text or (None if bare else ""), "refusal": refusal}
        if self._reasoning and (thinking := answer.thinking()):
            message["reasoning_content"] = thinking
        if cited := annotations(answer):
            message["annotations"] = cited
        if calls:
            message["tool_calls"] = [_told_call(call["id"], call["name"], _json(call["input"])) for call in calls]
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": finish_reason(answer.stop_reason),
        }
        body = self._envelope.fields("chat.completion", answer)
        return orjson.dumps({**body, "choices": [choice], "usage": usage(answer)})

    def frames(self, events: Sequence[Event]) -> list[bytes]:
        """The chunks that show these events, each a whole server-sent event; possibly none."""
        shown: list[bytes] = []
        for event in events:
            if event.type == "content_block_delta":
                shown += self._delta(event.data["index"], event.data["delta"])
            elif event.type == "content_block_start":
                shown += self._begin(event.data["index"], event.data["content_block"])
            elif event.type == "content_block_stop":
                shown += self._end_call(event.data["index"])
            elif event.type == "message_start":
                self._text_frame = self._around_text()
                shown.append(self._chunk({"role": "assistant", "content": "", "refusal": None}, None))
            elif event.type == "message_stop":
                shown += self._last()
        return shown

    def _delta(self, block_index: int, delta: dict[str, Any]) -> list[bytes]:
        match delta["type"]:
            case "text_delta":
                return self._text(delta["text"])
            case "input_json_delta":
                return self._arguments(block_index, delta["partial_json"])
            case "thinking_delta":
                return self._thought(delta["thinking"])
        return []

    def _text(self, text: str) -> list[bytes]:
        if self._blank is not None:
            text = self._blank + text
            self._blank = None if text.strip() else text
            if self._blank is not None:
                return []
        # The chunk around the text is the same every time: it was rendered once, at the start.
        before, after = self._text_frame
        return [before + orjson.dumps(text) + after]

    def _thought(self, thinking: str) -> list[bytes]:
        return [self._chunk({"reasoning_content": thinking}, None)] if self._reasoning and thinking else []

    def _begin(self, block_index: int, block: dict[str, Any]) -> list[bytes]:
        match block["type"]:
            case "text":
                self._blank = ""
                return self._text(block.get("text", ""))
            case "thinking":
                return self._thought(block.get("thinking", ""))
            case "tool_use":
                return self._begin_call(block_index, block)
        return []

    def _begin_call(self, block_index: int, block: dict[str, Any]) -> list[bytes]:
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
        body = self._envelope.fields("chat.completion.chunk", self._answer)
        body["choices"] = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
        if self._include_usage:
            body["usage"] = None
        return data(orjson.dumps(body))

    def _last(self) -> list[bytes]:
        refusal = _refusal(self._answer)
        frames = [self._chunk({"refusal": refusal}, None)] if refusal is not None else []
        if cited := annotations(self._answer):
            frames.append(self._chunk({"annotations": cited}, None))
        frames.append(self._chunk({}, finish_reason(self._answer.stop_reason)))
        if self._include_usage:
            body = self._envelope.fields("chat.completion.chunk", self._answer)
            frames.append(data(orjson.dumps({**body, "choices": [], "usage": usage(self._answer)})))
        frames.append(_DONE)
        return frames

    def failed(self, error: BatonError) -> bytes:
        """The last frame of a stream that fails."""
        return failed(error)
