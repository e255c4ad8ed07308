"""OpenAI chat completions, the request: from its JSON to an `Ask`; pure. Source: OpenAI API reference, "Chat".

What becomes of each parameter is decided by the tables of chat_fields.py; what those that are mapped become is in
chat_messages.py, chat_content.py, chat_tools.py and chat_options.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from service import model_name
from service.dialects import chat_fields, chat_messages, chat_options, chat_tools
from service.errors import BatonError, invalid_value
from service.model_table import Model, Traits
from service.prefix import Ask


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat completion as asked for.

    Attributes:
        reasoning: the answer shows Claude's thinking, as far as it is told.
        ignored: what was left out, in alphabetical order.
    """

    ask: Ask
    stream: bool
    include_usage: bool
    reasoning: bool
    session: str | None
    session_input: str | None
    ignored: list[str]


def parse(body: Any, *, default_model: str, aliases: dict[str, str], model_of: Callable[[str], Model]) -> ChatRequest:
    """Checks and translates a request body that was JSON.

    Args:
        body: the JSON.
        default_model: for a request that names none.
        aliases: name → model.
        model_of: what is known of a model, by its name after aliases.

    Raises:
        BatonError: 400 naming the parameter.
    """
    if not isinstance(body, dict):
        raise BatonError("invalid_value", "The body must be a JSON object.")
    fields: dict[str, Any] = {name: value for name, value in body.items() if value is not None}
    ignored: set[str] = set()
    chat_fields.sort_out(fields, "", "", ignored)
    conversation = chat_messages.translated(fields.get("messages"), ignored)
    named = fields.get("model")
    if named is not None and not model_name.sound(named):
        raise invalid_value("model", model_name.PROBLEM)
    model = default_model if named is None else named
    model = aliases.get(model, model)
    params = chat_options.params(fields, model_of(model), ignored)
    tools = chat_tools.definitions(fields.get("tools"), ignored)
    choice = chat_tools.choice(fields.get("tool_choice"), fields.get("parallel_tool_calls"), tools)
    ask = Ask(
        model=model,
        messages=conversation.messages,
        system=conversation.system,
        params=params,
        tools=tools or None,
        tool_choice=choice,
        model_named=named is not None,
    )
    _check_forced(ask, model_of(model).traits)
    session = fields.get("session_id")
    if session is not None and (not isinstance(session, str) or not session):
        raise BatonError("invalid_session_id", "session_id must be a non-empty string.", param="session_id")
    return ChatRequest(
        ask=ask,
        stream=_flag(fields.get("stream"), "stream"),
        include_usage=_include_usage(fields.get("stream_options", {}), ignored),
        reasoning=params.get("thinking", {}).get("display") == "summarized",
        session=session,
        session_input=_session_input(fields.get("session_input"), conversation),
        ignored=sorted(ignored),
    )


def _check_forced(ask: Ask, traits: Traits) -> None:
    """Refuses to force a call of a model that cannot be forced.

    A request that names no model may get that of its session, which is not known here.
    """
    forced = ask.tool_choice is not None and ask.tool_choice["type"] in ("any", "tool")
    if forced and ask.model_named and not traits.forced_tools:
        raise BatonError(
            "unsupported",
            f"`tool_choice` cannot force the model `{ask.model}` to call a tool: send `auto`, or take another model.",
            param="tool_choice",
        )


def _session_input(given: Any, conversation: chat_messages.Conversation) -> str | None:
    if given is not None:
        if given not in ("delta", "full"):
            raise invalid_value("session_input", "must be `delta` or `full`")
        return str(given)
    # Where the only answers were left out as empty, nothing else shows that this is the whole conversation.
    seen = any(message["role"] == "assistant" for message in conversation.messages)
    return "full" if conversation.answered and not seen else None


def _include_usage(options: Any, ignored: set[str]) -> bool:
    """Whether a stream tells its usage; adds to what is ignored."""
    if not isinstance(options, dict):
        raise invalid_value("stream_options", "must be an object")
    chat_fields.sort_out(options, "stream_options", "stream_options", ignored)
    return _flag(options.get("include_usage"), "stream_options.include_usage")


def _flag(value: Any, name: str) -> bool:
    if value is not None and not isinstance(value, bool):
        raise invalid_value(name, "must be true or false")
    return bool(value)
