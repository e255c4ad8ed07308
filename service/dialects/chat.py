"""OpenAI chat completions, the request: from its JSON to an `Ask`; pure. Source: OpenAI API reference, "Chat".

Every parameter is mapped, told or refused. Losing tuning is told (``X-Baton-Ignored``); losing meaning is refused by
name; a field that the API does not have is refused too. ``null`` is absent everywhere.
"""

from dataclasses import dataclass
from typing import Any, Final

from service.errors import BatonError
from service.prefix import Ask

MAPPED: Final = frozenset(
    {"model", "messages", "stream", "stream_options", "stop", "max_tokens", "max_completion_tokens", "session_id"}
)

TOLD: Final[dict[str, Any]] = {
    "temperature": 1,
    "top_p": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "seed": None,
    "verbosity": "medium",
    "store": False,
    "user": None,
    "safety_identifier": None,
    "metadata": None,
    "prompt_cache_key": None,
    "prompt_cache_options": None,
    "prompt_cache_retention": None,
    "reasoning_effort": None,
    "service_tier": "auto",
    "parallel_tool_calls": True,
}
"""Ignored; listed in the answer unless it has the value here, which asks for nothing."""

REFUSED: Final[dict[str, Any]] = {
    "audio": None,
    "function_call": "none",
    "functions": [],
    "logit_bias": {},
    "logprobs": False,
    "modalities": ["text"],
    "moderation": None,
    "n": 1,
    "prediction": None,
    "response_format": {"type": "text"},
    "tool_choice": "none",
    "tools": [],
    "top_logprobs": 0,
    "web_search_options": None,
}
"""Refused unless it has the value here, which asks for nothing."""

_RANGES: Final = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}
_STOP_MAX: Final = 4
_MESSAGE_FIELDS: Final = frozenset({"role", "content", "name"})


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat completion as asked for. ``ignored`` names what was left out, in alphabetical order."""

    ask: Ask
    stream: bool
    include_usage: bool
    session: str | None
    ignored: list[str]


def parse(body: Any, *, default_model: str, aliases: dict[str, str], max_tokens_default: int) -> ChatRequest:
    """Checks and translates a request body that was JSON.

    Raises:
        BatonError: 400 naming the parameter.
    """
    if not isinstance(body, dict):
        raise BatonError("invalid_value", "The body must be a JSON object.")
    fields: dict[str, Any] = {name: value for name, value in body.items() if value is not None}
    ignored = _sort_out(fields)
    system, messages, names = _messages(fields)
    named = _text(fields, "model")
    model = named or default_model
    params: dict[str, Any] = {"max_tokens": _max_tokens(fields, max_tokens_default)}
    if stop := _stop(fields):
        params["stop_sequences"] = stop
    options = fields.get("stream_options", {})
    if not isinstance(options, dict):
        raise _invalid("stream_options", "must be an object")
    session = fields.get("session_id")
    if session is not None and (not isinstance(session, str) or not session):
        raise BatonError("invalid_session_id", "session_id must be a non-empty string.", param="session_id")
    return ChatRequest(
        ask=Ask(aliases.get(model, model), messages, system, params, model_named=bool(named)),
        stream=_flag(fields.get("stream"), "stream"),
        include_usage=_flag(options.get("include_usage"), "stream_options.include_usage"),
        session=session,
        ignored=sorted(ignored + names),
    )


def _sort_out(fields: dict[str, Any]) -> list[str]:
    """Refuses what must be, returns what will be ignored and is worth telling."""
    ignored = []
    for name, value in fields.items():
        if name in MAPPED:
            continue
        if name in REFUSED:
            if not _is_neutral(value, REFUSED[name]):
                raise BatonError("unsupported", f"`{name}` is not supported.", param=name)
        elif name in TOLD:
            low, high = _RANGES.get(name, (None, None))
            if low is not None and (not _is_number(value) or not low <= value <= high):
                raise _invalid(name, f"must be a number between {low} and {high}")
            if not _is_neutral(value, TOLD[name]):
                ignored.append(name)
        else:
            raise BatonError("unknown_field", f"There is no parameter `{str(name)[:64]}`.", param=str(name)[:64])
    return ignored


def _is_neutral(value: Any, neutral: Any) -> bool:
    """Whether they are the same JSON; to Python, true is 1."""
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _messages(fields: dict[str, Any]) -> tuple[Any, list[dict[str, Any]], list[str]]:
    """System prompt, the other messages, and what of them is ignored."""
    given = fields.get("messages")
    if given is None:
        raise BatonError("missing_value", "`messages` is required.", param="messages")
    if not isinstance(given, list) or not given:
        raise _invalid("messages", "must be a list with at least one message")
    system: list[str] = []
    messages: list[dict[str, Any]] = []
    named = False
    for index, message in enumerate(given):
        where = f"messages.{index}"
        role = _role(message, where)
        named = named or message.get("name") is not None
        text = _content(message, where)
        if role in ("system", "developer"):
            if messages:
                raise BatonError(
                    "unsupported", f"{where}: a {role} message after the first other one is not supported.", param=where
                )
            system.append(text if isinstance(text, str) else "".join(part["text"] for part in text))
        else:
            messages.append({"role": role, "content": text})
    if not messages or messages[-1]["role"] != "user":
        raise _invalid("messages", "must end with a user message")
    if messages[0]["role"] != "user":
        raise _invalid("messages", "must begin with a user message, after any system messages")
    prompt = None if not system else system[0] if len(system) == 1 else [{"type": "text", "text": s} for s in system]
    return prompt, messages, ["messages.name"] if named else []


def _role(message: Any, where: str) -> str:
    if not isinstance(message, dict):
        raise _invalid(where, "must be an object")
    for name, value in message.items():
        # SDK objects sent back carry empty fields of an answer; they ask for nothing.
        if name not in _MESSAGE_FIELDS and value not in (None, [], {}):
            field = f"{where}.{name}"[:128]
            raise BatonError("unsupported", f"`{field}` is not supported.", param=field)
    role = message.get("role")
    if role in ("system", "developer", "user", "assistant"):
        return str(role)
    if role in ("tool", "function"):
        raise BatonError("unsupported", f"{where}: role `{role}` is not supported.", param=f"{where}.role")
    raise _invalid(f"{where}.role", "must be one of system, developer, user, assistant")


def _content(message: dict[str, Any], where: str) -> Any:
    """Text, or a list of text blocks; never empty."""
    content = message.get("content")
    if isinstance(content, str):
        if not content.strip():
            raise _invalid(f"{where}.content", "must not be empty")
        return content
    if not isinstance(content, list) or not content:
        raise _invalid(f"{where}.content", "must be a string or a non-empty list of parts")
    blocks = []
    for index, part in enumerate(content):
        place = f"{where}.content.{index}"
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise _invalid(place, "must be an object with a type")
        if part["type"] != "text":
            raise BatonError(
                "unsupported", f"{place}: parts of type `{part['type'][:64]}` are not supported.", param=place
            )
        if not isinstance(part.get("text"), str) or not part["text"].strip():
            raise _invalid(f"{place}.text", "must be a non-empty string")
        blocks.append({"type": "text", "text": part["text"]})
    return blocks


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name, "")
    if not isinstance(value, str):
        raise _invalid(name, "must be a string")
    return value


def _flag(value: Any, name: str) -> bool:
    if value is not None and not isinstance(value, bool):
        raise _invalid(name, "must be true or false")
    return bool(value)


def _max_tokens(fields: dict[str, Any], default: int) -> int:
    for name in ("max_completion_tokens", "max_tokens"):
        value = fields.get(name)
        if value is not None:
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise _invalid(name, "must be a positive whole number")
            return value
    return default


def _stop(fields: dict[str, Any]) -> list[str]:
    given = fields.get("stop", [])
    stops = [given] if isinstance(given, str) else given
    if not isinstance(stops, list) or len(stops) > _STOP_MAX:
        raise _invalid("stop", f"must be a string or a list of at most {_STOP_MAX} strings")
    if any(not isinstance(stop, str) or not stop.strip() for stop in stops):
        raise _invalid("stop", "must hold something other than white space")
    return stops


def _invalid(param: str, problem: str) -> BatonError:
    return BatonError("invalid_value", f"`{param}` {problem}.", param=param)
