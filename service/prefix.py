"""From stored bytes to a request; pure.

A history is sent as it is stored: the JSON of each message is spliced into the body without being parsed, so the prefix
is byte-identical from turn to turn. What stands in front of the messages, and what of them is left out because its
epoch is over, is decided in epoch.py. Only messages whose format bits say that they hold thinking, or have the role
``system``, are ever parsed for that.

A message of role ``system`` inside a conversation is sent as a user's text, marked as what it is, to a model that does
not take the role, and where it is not in front of an answer: that one was empty, or is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

import orjson

from service import epoch, tool_calls
from service.context import caching, clearing, compacted
from service.context.caching import NO_MARKERS, PLAINLY, Caching, Markers
from service.context.view import WHOLE, View
from service.epoch import NOTHING, Epoch, Preamble, Standing, Wanted
from service.errors import invalid_value
from service.model_table import Traits
from storage import elements
from storage.turns import History

_THINKING: Final = ("thinking", "redacted_thinking")
_PLAIN: Final = ("inference_geo", "max_tokens", "service_tier", "speed")
_PLAIN_CHARS_MAX: Final = 64

# What Claude does not take where it only counts: it says how an answer is made, not how large the question is.
_OF_ANSWERS: Final = frozenset(
    {"container", "diagnostics", "inference_geo", "max_tokens", "metadata", "service_tier", "stop_sequences"}
)

Prefix = Literal["adapt", "strict"]
PREFIXES: Final[tuple[Prefix, ...]] = get_args(Prefix)
"""What to do about a request whose prefix would be another than the session's."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a caller asks, in Anthropic's terms; a dialect makes it, nothing below knows the dialect.

    Attributes:
        model: after aliases.
        messages: the new ones, oldest first.
        system: the system prompt (string or blocks), None where the request has none.
        params: further fields of the Messages request (max_tokens, stop_sequences, thinking, …).
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

    @property
    def answer_tokens(self) -> int:
        """How long the answer may be; 0 if that is no length, which is for Claude to judge."""
        given = self.params.get("max_tokens")
        return max(0, given) if type(given) is int else 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request ready to be sent, and what committing its answer must record.

    Attributes:
        body: JSON.
        epoch: that the turn belongs to.
        elements: the new messages, as they are stored.
        digest: of the last message that is sent, behind which the answer goes.
        system_json, preamble: to be stored; empty where they are already.
        summary: for the turn record, what was sent, in numbers and plain parameters.
    """

    body: bytes
    epoch: Epoch
    elements: list[bytes]
    digest: bytes
    system_json: bytes
    preamble: bytes
    summary: dict[str, Any]


def with_length(ask: Ask, max_tokens: int) -> Ask:
    """The same, with a length of the answer if it has none."""
    return ask if "max_tokens" in ask.params else replace(ask, params={"max_tokens": max_tokens, **ask.params})


def stateless(ask: Ask, traits: Traits) -> bytes:
    """The request body of a conversation that is not stored.

    Raises:
        BatonError: a tool call without its result, or the other way round; a choice among no tools.
    """
    tool_calls.check_whole(ask.messages)
    preamble = Preamble(_json(ask.system), _json(ask.tools), b"")
    messages = [orjson.dumps(message) for message in ask.messages]
    system = [at for at, message in enumerate(ask.messages) if message["role"] == "system"]
    return _body(ask, preamble, _where_taken(messages, system, traits), {"stream": True}, NO_MARKERS)


def continued(
    ask: Ask,
    standing: Standing,
    history: History,
    new: list[bytes],
    traits: Traits,
    use: Caching = PLAINLY,
    view: View = WHOLE,
    *,
    refused: bool = False,
) -> Prepared:
    """The request body of a session's next turn.

    Args:
        ask: of this turn.
        standing: the session as it stands.
        history: its messages, system prompt and preamble.
        new: the ask's messages as elements; none where the last answer goes on.
        traits: of the model.
        use: of the prompt cache.
        view: which of the messages are sent.
        refused: Claude has refused this request before, for a signature in it.

    Raises:
        BatonError: a choice of a tool that there is not.
    """
    this, new, sent = _placed(ask, standing, history, new, traits, view, refused=refused)
    marked = caching.markers(this.preamble.system, this.preamble.tools, ask.params, use.life)
    messages = [json for json in caching.with_anchor(sent, use.asked, marked.anchor) if json]
    more = {"stream": True} if "diagnostics" in ask.params else {"stream": True, **use.diagnostics()}
    body = _body(ask, this.preamble, messages, more, marked)
    preamble = this.preamble.packed()
    return Prepared(
        body=body,
        epoch=this,
        elements=new,
        digest=_digest(history, new),
        system_json=b"" if this.system == history.system_json else this.system,
        preamble=b"" if preamble == history.preamble else preamble,
        summary={
            **_plain(ask.params),
            "messages": len(messages),
            "left_out": view.begins,
            "cleared": view.cleared,
            "body_bytes": len(body),
            "cached_for": (marked.end or {}).get("ttl", "5m") if marked.end else None,
            "epoch": this.hash,
            "epoch_began": list(this.reasons),
        },
    )


def _plain(params: dict[str, Any]) -> dict[str, Any]:
    """What a turn record says of parameters: numbers and words, never a caller's own text."""
    thinking, output, stops = (params.get(name) for name in ("thinking", "output_config", "stop_sequences"))
    said = {name: params.get(name) for name in _PLAIN}
    if isinstance(thinking, dict):
        said |= {"thinking": thinking.get("type"), "thinking_budget_tokens": thinking.get("budget_tokens")}
    if isinstance(output, dict):
        said["effort"] = output.get("effort")
    if isinstance(stops, list):
        said["stop_sequences"] = len(stops)
    return {name: value for name, value in said.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and len(value) <= _PLAIN_CHARS_MAX)


def counted(
    ask: Ask, standing: Standing, history: History, new: list[bytes], traits: Traits, view: View = WHOLE
) -> bytes:
    """The body of a request that asks how large a session's next turn would be; arguments and errors of `continued`."""
    asked = replace(ask, params={name: value for name, value in ask.params.items() if name not in _OF_ANSWERS})
    this, _, sent = _placed(asked, standing, history, new, traits, view)
    return _body(asked, this.preamble, [json for json in sent if json], {}, NO_MARKERS)


def _placed(
    ask: Ask,
    standing: Standing,
    history: History,
    new: list[bytes],
    traits: Traits,
    view: View,
    *,
    refused: bool = False,
) -> tuple[Epoch, list[bytes], Sequence[bytes | memoryview]]:
    """The turn's epoch, its new messages as elements, and all messages as they are sent, empty where they are not."""
    wanted = Wanted(ask.model, _json(ask.system), _json(ask.tools), _json(ask.params.get("thinking")))
    checkpoint = compacted.in_effect(history.checkpoint, len(history.elements))
    because = epoch.REFUSED if refused else epoch.CONTEXT if view.moved else ""
    this = epoch.decide(wanted, standing, history, traits, checkpoint, because=because)
    if this.told:
        new = [*new, elements.pack(this.told, _digest(history, new), synthetic=True, system=True)]
    everything = [*history.elements, *new]
    sent = [_sendable(element, index < this.start) for index, element in enumerate(everything)]
    sent[: view.begins] = [b""] * view.begins
    covers = checkpoint.covers if checkpoint is not None else 0
    noted = clearing.noted(sent, everything, view, max(view.begins, covers))
    shown = compacted.shortened(noted, checkpoint)
    system = [at for at, one in enumerate(everything) if at >= covers and one[0] & elements.SYSTEM and shown[at]]
    return this, new, _where_taken(shown, system, traits)


def last_digest(history: History) -> bytes:
    """The rolling digest of the stored history, where new messages go on."""
    return _digest(history, ())


def _digest(history: History, new: Sequence[bytes]) -> bytes:
    last = new[-1] if new else history.elements[-1] if history.elements else None
    return elements.FIRST_DIGEST if last is None else last[1 : elements.HEADER_BYTES]


def _sendable(element: bytes, older_epoch: bool) -> bytes | memoryview:
    """The JSON of a stored message; of an older epoch without what is left out; empty if that is all of it."""
    if not older_epoch or not element[0] & elements.LOOKED_AT:
        return elements.json_of(element)
    if elements.tells_system(element):
        return b""
    stored = elements.unpack(element)
    if not stored.holds_thinking:
        return stored.json
    message = orjson.loads(stored.json)
    content = [block for block in message["content"] if block.get("type") not in _THINKING]
    return orjson.dumps({**message, "content": content}) if content else b""


def _where_taken(
    messages: Sequence[bytes | memoryview], system: Sequence[int], traits: Traits
) -> Sequence[bytes | memoryview]:
    """Messages with the role ``system`` only where Claude takes it: at the end, or in front of an answer.

    Args:
        messages: as JSON; empty ones are not sent.
        system: the places of those of that role.
        traits: of the model.
    """
    if not system:
        return messages
    made = list(messages)
    places = set(system)
    behind: bytes | memoryview | None = None  # the next message that is sent and has another role
    taken = traits.system_messages  # whether Claude takes the role in front of that one
    for at in range(len(messages) - 1, system[0] - 1, -1):
        if at in places:
            if behind is not None:
                taken = traits.system_messages and orjson.loads(behind)["role"] == "assistant"
                behind = None
            made[at] = messages[at] if taken else _as_users(messages[at])
        elif messages[at]:
            behind = messages[at]
    return made


def _as_users(json: bytes | memoryview) -> bytes:
    """A message of role ``system`` as a user's; of more than text, it stays what it is, for Claude to judge."""
    message = orjson.loads(json)
    content = message["content"]
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if message.keys() != {"role", "content"} or any(block["type"] != "text" for block in blocks):
        return bytes(json)
    text = "\n".join(block["text"] for block in blocks)
    return orjson.dumps({"role": "user", "content": [{"type": "text", "text": f"<system>\n{text}\n</system>"}]})


def _json(given: Any) -> bytes:
    return b"" if given is None else orjson.dumps(given)


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


def _body(
    ask: Ask, preamble: Preamble, messages: Sequence[bytes | memoryview], more: dict[str, Any], marked: Markers
) -> bytes:
    choice = _choice(ask, preamble.tools)
    params = ask.params if choice is None else {**ask.params, "tool_choice": choice}
    fields = orjson.dumps({"model": ask.model, **params, **more})[1:-1]
    parts = [b"{", fields, b","]
    if preamble.thinking and "thinking" not in params:
        parts += [b'"thinking":', preamble.thinking, b","]
    if preamble.system not in NOTHING:
        parts += [b'"system":', preamble.system, b","]
    if preamble.tools:
        parts += [b'"tools":', preamble.tools, b","]
    if marked.end is not None:
        parts.append(b'"cache_control":%b,' % orjson.dumps(marked.end))
    listed: list[bytes | memoryview] = [b","] * (2 * len(messages) - 1)
    listed[::2] = messages
    return b"".join((*parts, b'"messages":[', *listed, b"]}"))  # the only copy: attachments may be large
