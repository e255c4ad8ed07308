"""From stored bytes to a request; pure.

A history is sent as it is stored: the JSON of each message is spliced into the body without being parsed, so the prefix
is byte-identical from turn to turn. That keeps Claude's prompt cache warm, and on models that bind thinking to its
prefix it is a condition.

An *epoch* is a span of turns with the same system prompt, tools, thinking rules and model. Where one of them changes, a
new epoch begins, and the thinking blocks of older ones are left out whole from what is sent (Claude would refuse their
signatures); the stored originals stay. Only messages whose format bit says that they hold thinking are parsed for that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import orjson

from service import tool_calls
from service.errors import invalid_value
from storage import elements
from storage.results import Begun
from storage.turns import History

_THINKING: Final = ("thinking", "redacted_thinking")
_CACHED: Final = b'"cache_control":{"type":"ephemeral"},'


@dataclass(frozen=True, slots=True)
class Ask:
    """What a caller asks, in Anthropic's terms; a dialect makes it, nothing below knows the dialect.

    Attributes:
        model: after aliases.
        messages: the new ones, oldest first.
        system: the system prompt (string or blocks), None where the request has none.
        params: further fields of the Messages request (max_tokens, stop_sequences, …).
        tools: to be used from now on, at least one; None where the request has none: then those of the session.
        tool_choice: sent only where there are tools; None for Claude's own default.
        model_named: whether the request named the model; where it did not, a session's own model goes first.
    """

    model: str
    messages: list[dict[str, Any]]
    system: Any
    params: dict[str, Any]
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    model_named: bool = True


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request ready to be sent, and what committing its answer must record.

    ``summary`` says for the turn record what was sent, in numbers and plain parameters.
    """

    body: bytes
    epoch_hash: str
    epoch_start: int
    system_json: bytes
    tools_json: bytes
    summary: dict[str, Any]


def stateless(ask: Ask) -> bytes:
    """The request body of a conversation that is not stored.

    Raises:
        BatonError: a tool call without its result, or the other way round; a choice among no tools.
    """
    tool_calls.check_whole(ask.messages)
    system, tools = _or_stored(ask.system, b""), _or_stored(ask.tools, b"")
    return _body(ask, system, tools, [orjson.dumps(message) for message in ask.messages], cached=False)


def continued(ask: Ask, begun: Begun, history: History, new: list[bytes]) -> Prepared:
    """The request body of a session's next turn.

    Args:
        ask: of this turn.
        begun: the session as it stands.
        history: its messages, system prompt and tools.
        new: the ask's messages as elements.

    Raises:
        BatonError: a choice of a tool that there is not.
    """
    system, tools = _or_stored(ask.system, history.system_json), _or_stored(ask.tools, history.tools_json)
    prefix = (ask.model.encode(), system, tools) if tools else (ask.model.encode(), system)
    epoch_hash = blake2b(b"\0".join(prefix), digest_size=8).hexdigest()
    epoch_start = begun.epoch_start if begun.epoch_hash in ("", epoch_hash) else begun.messages
    old = [_sendable(element, index < epoch_start) for index, element in enumerate(history.elements)]
    messages = [json for json in old if json] + [elements.json_of(element) for element in new]
    body = _body(ask, system, tools, messages, cached=True)
    return Prepared(
        body=body,
        epoch_hash=epoch_hash,
        epoch_start=epoch_start,
        system_json=b"" if system == history.system_json else system,
        tools_json=b"" if tools == history.tools_json else tools,
        summary={**ask.params, "messages": len(messages), "body_bytes": len(body), "epoch": epoch_hash},
    )


def last_digest(history: History) -> bytes:
    """The rolling digest of the stored history, where new messages go on."""
    if not history.elements:
        return elements.FIRST_DIGEST
    return history.elements[-1][1 : elements.HEADER_BYTES]


def _sendable(element: bytes, older_epoch: bool) -> bytes | memoryview:
    """The JSON of a stored message; without thinking if its epoch is over; empty if nothing is left."""
    if not older_epoch:
        return elements.json_of(element)
    stored = elements.unpack(element)
    if not stored.holds_thinking:
        return stored.json
    message = orjson.loads(stored.json)
    content = [block for block in message["content"] if block.get("type") not in _THINKING]
    return orjson.dumps({**message, "content": content}) if content else b""


def _or_stored(given: Any, stored: bytes) -> bytes:
    """What the request has, as JSON; else what is stored."""
    return stored if given is None else orjson.dumps(given)


def _choice(ask: Ask, tools: bytes) -> dict[str, Any] | None:
    """The choice among the tools in effect, checked against those that the request itself does not hold."""
    if ask.tool_choice is None or ask.tools is not None:
        return ask.tool_choice
    kind = ask.tool_choice["type"]
    if kind == "any" and not tools:
        raise invalid_value("tool_choice", "asks for a call, and there are no tools")
    names = [tool.get("name") for tool in orjson.loads(tools)] if kind == "tool" and tools else []
    if kind == "tool" and ask.tool_choice["name"] not in names:
        raise invalid_value("tool_choice", "must name one of the tools")
    return ask.tool_choice if tools else None


def _body(ask: Ask, system: bytes, tools: bytes, messages: Sequence[bytes | memoryview], *, cached: bool) -> bytes:
    choice = _choice(ask, tools)
    params = ask.params if choice is None else {**ask.params, "tool_choice": choice}
    fields = orjson.dumps({"model": ask.model, **params, "stream": True})[1:-1]
    parts = [b"{", fields, b","]
    if system:
        parts += [b'"system":', system, b","]
    if tools:
        parts += [b'"tools":', tools, b","]
    if cached:
        parts.append(_CACHED)
    listed: list[bytes | memoryview] = [b","] * (2 * len(messages) - 1)
    listed[::2] = messages
    return b"".join((*parts, b'"messages":[', *listed, b"]}"))  # the only copy: attachments may be large
