"""From Claude's events to whole messages; pure.

An answer is gathered block by block, exactly as it came: unknown fields and unknown block types are kept, nothing is
re-modelled, and what is stored is what Claude will read again. Two things are decided once, here, because a stored
prefix never changes afterwards: empty text blocks are dropped (Claude sends some and refuses all), and an answer that
did not reach its end keeps text as far as it came, whole signed thinking and whole tool calls. So does one that Claude
itself cut short: of a call in the middle of its input, which then is no JSON, nothing is kept.

Whatever of an answer is read later, by whoever shows or counts it, has its form checked here as it comes: what is not
as documented is found before the turn is stored, never after.

The events from the one that carries the stop reason onward are *terminal*: whoever shows them says that the answer is
complete, so they are held back until the turn is stored.
"""

import contextlib
from hashlib import sha256
from typing import Any, Final

import orjson

from service.errors import BatonError
from service.events import Event
from storage import elements
from storage.turns import Usage

_DELTAS: Final = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "signature_delta": "signature",
    "input_json_delta": "partial_json",
}
_THINKING: Final = ("thinking", "redacted_thinking")
_OF_STOP: Final = frozenset({"stop_reason", "stop_sequence", "stop_details"})
_OF_START: Final = frozenset({"id", "type", "role", "model", "content", "usage", *_OF_STOP})
_OF_DELTA: Final = frozenset({"type", "delta", "usage"})
_CUT_SHORT: Final = ("max_tokens", "model_context_window_exceeded", "refusal")
_COUNTS: Final = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_COUNT_MAX: Final = 2**53 - 1  # the largest that every reader of JSON, and the store's Lua, keeps exactly


class _Block:
    """A content block under way."""

    __slots__ = ("block", "ended", "parts", "whole")

    def __init__(self, block: dict[str, Any]) -> None:
        if not all(isinstance(block.get(field, ""), str) for field in ("text", "thinking", "signature")):
            raise TypeError("a block's text is not text")
        if block["type"] == "tool_use" and not all(isinstance(block[field], str) for field in ("id", "name")):
            raise TypeError("a tool call's id or name is not text")
        _check_citations(block.get("citations") or [])
        self.block = block
        self.parts: dict[str, list[str]] = {}
        self.ended = False
        self.whole = False

    def add(self, delta: dict[str, Any]) -> None:
        if self.ended:
            raise ValueError("a delta of a block that has ended")
        kind = delta["type"]
        if kind == "citations_delta":
            _check_citations([delta["citation"]])
            self.block["citations"] = [*(self.block.get("citations") or ()), delta["citation"]]
            return
        field = _DELTAS.get(kind)
        if field is None:
            raise BatonError("upstream_unknown", "Claude's answer holds a kind of content that a session cannot keep.")
        if not isinstance(delta[field], str):
            raise TypeError("a delta's text is not text")
        if field == "partial_json" and self.block["type"] in ("text", *_THINKING):
            raise ValueError("input of a block that takes none")
        self.parts.setdefault(field, []).append(delta[field])

    def end(self) -> None:
        """No further delta comes. Joined now; an input that is no JSON leaves the block not whole."""
        self.ended = True
        with contextlib.suppress(orjson.JSONDecodeError):
            self.block, self.parts, self.whole = self.finished(), {}, True
        if self.whole and self.block["type"] == "tool_use" and not is_input(self.block["input"]):
            raise TypeError("a tool call's input is not an object, or nests too deeply")

    def finished(self) -> dict[str, Any]:
        """The block with its deltas joined in."""
        block = dict(self.block)
        for field, parts in self.parts.items():
            if field == "partial_json":
                block["input"] = orjson.loads("".join(parts) or "{}")
            else:
                block[field] = block.get(field, "") + "".join(parts)
        return block


class Answer:
    """One answer of Claude's, as far as it came.

    Attributes:
        message: the ``message`` of message_start (id, model, role, …).
        stop_reason, stop_sequence, stop_details: of message_delta; None before it.
        delta, beside: all that message_delta changes of the message, and what else it tells but the usage.
        complete: message_stop came.
        held: terminal events, in order.
    """

    def __init__(self) -> None:
        self.message: dict[str, Any] = {}
        self.stop_reason: str | None = None
        self.stop_sequence: str | None = None
        self.stop_details: dict[str, Any] | None = None
        self.delta: dict[str, Any] = {}
        self.beside: dict[str, Any] = {}
        self.complete = False
        self.held: list[Event] = []
        self._blocks: dict[int, _Block] = {}
        self._usage: dict[str, Any] = {}

    def feed(self, batch: list[Event]) -> list[Event]:
        """Takes events in order; returns those that may be shown at once.

        Raises:
            BatonError: upstream_nonsense, if they break the documented order.
        """
        shown = 0
        try:
            for event in batch:
                self._take(event.type, event.data)
                if self.stop_reason is None:
                    shown += 1
                else:
                    self.held.append(event)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise BatonError("upstream_nonsense", "Claude's stream is not in its documented form.") from error
        return batch[:shown]

    def _take(self, kind: str, data: dict[str, Any]) -> None:
        if kind == "content_block_delta":
            self._blocks[data["index"]].add(data["delta"])
        elif kind == "content_block_start":
            self._start_block(data["index"], dict(data["content_block"]))
        elif kind == "content_block_stop":
            self._blocks[data["index"]].end()
        elif kind == "message_start":
            if self.message:
                raise ValueError("a second message_start")
            self._start(data["message"])
        elif kind == "message_delta":
            delta = data["delta"]
            self.delta.update(delta)
            self.beside.update({name: value for name, value in data.items() if name not in _OF_DELTA})
            self.stop_reason = _text_or_none(delta, "stop_reason") or self.stop_reason
            self._check_cut()
            self.stop_sequence = _text_or_none(delta, "stop_sequence")
            self.stop_details = _object_or_none(delta, "stop_details")
            _text_or_none(self.stop_details or {}, "explanation")
            self._count(data)
        elif kind == "message_stop":
            if self.stop_reason is None:
                raise KeyError("stop_reason")
            self.complete = True

    def _check_cut(self) -> None:
        torn = any(block.ended and not block.whole for block in self._blocks.values())
        if torn and self.stop_reason not in (None, *_CUT_SHORT):
            raise ValueError("an input that is no JSON")

    def _start(self, message: dict[str, Any]) -> None:
        if not all(isinstance(message.get(field, ""), str) for field in ("id", "model")):
            raise TypeError("a message's id or model is not text")
        self.message = message
        self._count(message)

    def _count(self, holder: dict[str, Any]) -> None:
        """Takes over the usage of an event; what it does not count, or counts as null, stands."""
        usage = _object_or_none(holder, "usage") or {}
        for field in _COUNTS:
            _check_count(usage, field)
        _check_count(_object_or_none(usage, "output_tokens_details") or {}, "thinking_tokens")
        _text_or_none(usage, "service_tier")
        self._usage.update({field: value for field, value in usage.items() if value is not None})

    def _start_block(self, index: int, block: dict[str, Any]) -> None:
        if not self.message or not isinstance(index, int) or index in self._blocks or "type" not in block:
            raise ValueError("a block outside a message, without a place, twice, or without a type")
        self._blocks[index] = _Block(block)

    @property
    def usage(self) -> dict[str, Any]:
        """Claude's usage so far, as it counts it (cumulative)."""
        return self._usage

    def tokens(self) -> Usage:
        """The usage that is added up per session."""
        usage = self._usage
        return Usage(
            input=usage.get("input_tokens") or 0,
            output=usage.get("output_tokens") or 0,
            cache_read=usage.get("cache_read_input_tokens") or 0,
            cache_written=usage.get("cache_creation_input_tokens") or 0,
        )

    def more(self) -> dict[str, dict[str, Any]]:
        """What message_start and message_delta told beyond what has a name here; empty where it was nothing."""
        delta = {name: value for name, value in self.delta.items() if name not in _OF_STOP}
        start = {name: value for name, value in self.message.items() if name not in _OF_START}
        return {name: part for name, part in (("start", start), ("delta", delta), ("beside", self.beside)) if part}

    def content(self) -> list[dict[str, Any]]:
        """The blocks to keep: all of a complete answer but empty text, the sound ones of a broken one."""
        kept = []
        for _, block in sorted(self._blocks.items()):
            kind = block.block.get("type")
            if not block.whole and kind != "text":
                continue
            finished = block.finished()
            if kind == "text" and not finished.get("text", "").strip():
                continue
            if kind == "thinking" and not finished.get("signature"):
                continue
            kept.append(finished)
        return kept

    def text(self) -> str:
        """The visible text of all text blocks."""
        return "".join(block["text"] for block in self.content() if block.get("type") == "text")

    def thinking(self) -> str:
        """What it thought, as far as Claude told it; also of a block that is not kept."""
        blocks = (block.finished() for _, block in sorted(self._blocks.items()) if block.block["type"] == "thinking")
        return "".join(block.get("thinking", "") for block in blocks)

    def tool_calls(self) -> list[dict[str, Any]]:
        """The ``tool_use`` blocks, whole ones only: each has ``id``, ``name`` and an ``input`` that is an object."""
        return [block for block in self.content() if block.get("type") == "tool_use"]


def _text_or_none(holder: dict[str, Any], field: str) -> str | None:
    value = holder.get(field)
    if value is None or isinstance(value, str):
        return value
    raise TypeError(f"{field} is not text")


def _check_citations(citations: list[dict[str, Any]]) -> None:
    """Checks what is read of them; those of documents have no URL."""
    for citation in citations:
        _text_or_none(citation, "url")
        _text_or_none(citation, "title")


def _object_or_none(holder: dict[str, Any], field: str) -> dict[str, Any] | None:
    value = holder.get(field)
    if value is None or isinstance(value, dict):
        return value
    raise TypeError(f"{field} is not an object")


def _check_count(usage: dict[str, Any], field: str) -> None:
    count = usage.get(field)
    if count is None:
        return
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= _COUNT_MAX:
        raise ValueError(f"{field} is not a count")


def is_input(value: Any) -> bool:
    """Whether parsed JSON can be the input of a tool call: an object, and one that can be written again.

    What is read may nest deeper (1,024) than what is written (254, orjson), in which it lies a few levels down.
    """
    try:
        orjson.dumps([[[[[[[[value]]]]]]]])
    except TypeError:
        return False
    return isinstance(value, dict)


def visible(message: dict[str, Any]) -> bytes:
    """What a caller can see of a message, in one form whatever the dialect: the input of the rolling digest.

    Text is joined; tool calls keep id, name and input (keys sorted), results the call's id and their text; anything
    large counts by its hash. Thinking is not visible, nor is whether a result told an error: not every dialect says it.
    """
    content = message["content"]
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    text = "".join(block["text"] for block in blocks if block.get("type") == "text")
    others = [
        [block["type"], sha256(orjson.dumps(_plain(block), option=orjson.OPT_SORT_KEYS)).hexdigest()]
        for block in blocks
        if block.get("type") not in ("text", *_THINKING)
    ]
    return orjson.dumps([message["role"], text, others])


def _plain(block: dict[str, Any]) -> dict[str, Any]:
    if block["type"] == "tool_use":
        return {key: block.get(key) for key in ("id", "name", "input")}
    if block["type"] == "tool_result":
        return {"tool_use_id": block.get("tool_use_id"), "content": _result_text(block.get("content") or "")}
    return {key: value for key, value in block.items() if key != "cache_control"}


def _result_text(content: Any) -> Any:
    """What a result says, if that is text; else its blocks."""
    if isinstance(content, list) and all(block.get("type") == "text" for block in content):
        return "".join(block["text"] for block in content)
    return content


def pack(messages: list[dict[str, Any]], digest: bytes) -> list[bytes]:
    """Messages as list elements, continuing the history whose last digest is given (see storage/elements.py)."""
    packed = []
    for message in messages:
        digest = elements.roll(digest, visible(message))
        content = message["content"]
        thinking = isinstance(content, list) and any(block.get("type") in _THINKING for block in content)
        system = message["role"] == "system"
        packed.append(elements.pack(orjson.dumps(message), digest, holds_thinking=thinking, system=system))
    return packed
