"""OpenAI chat completions, the request: from its JSON to an `Ask`; pure. Source: OpenAI API reference, "Chat".

Every parameter is mapped, told or refused. Losing tuning is told (``X-Baton-Ignored``); losing meaning is refused by
name; a field that the API does not have is refused too. ``null`` is absent everywhere. What is ignored must still have
its form: a caller who sends something else means something else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

from service import model_name
from service.dialects import chat_tools
from service.errors import BatonError, invalid_value
from service.prefix import Ask

MAPPED: Final = frozenset(
    {
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "model",
        "parallel_tool_calls",
        "session_id",
        "session_input",
        "stop",
        "stream",
        "stream_options",
        "tool_choice",
        "tools",
    }
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
}
"""Ignored; listed in the answer unless it has the value here, which asks for nothing."""

TOLD_WITHIN: Final[dict[str, Any]] = {
    "messages.content.cache_control": None,
    "messages.content.prompt_cache_breakpoint": None,
    "messages.name": None,
    "stream_options.include_obfuscation": False,
}
"""As `TOLD`, for fields of parameters; places in lists are left out."""

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
    "top_logprobs": 0,
    "web_search_options": None,
}
"""Refused unless it has the value here, which asks for nothing."""

_Form = tuple[str, Callable[[Any], bool]]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _between(low: int, high: int) -> _Form:
    return f"a number between {low} and {high}", lambda value: _is_number(value) and low <= value <= high


_TEXT: Final[_Form] = ("a string", lambda value: isinstance(value, str))
_OBJECT: Final[_Form] = ("an object", lambda value: isinstance(value, dict))
_YES_OR_NO: Final[_Form] = ("true or false", lambda value: isinstance(value, bool))
_WHOLE: Final[_Form] = ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool))

FORMS: Final[dict[str, _Form]] = {
    "temperature": _between(0, 2),
    "top_p": _between(0, 1),
    "presence_penalty": _between(-2, 2),
    "frequency_penalty": _between(-2, 2),
    "seed": _WHOLE,
    "verbosity": _TEXT,
    "store": _YES_OR_NO,
    "user": _TEXT,
    "safety_identifier": _TEXT,
    "metadata": _OBJECT,
    "prompt_cache_key": _TEXT,
    "prompt_cache_options": _OBJECT,
    "prompt_cache_retention": _TEXT,
    "reasoning_effort": _TEXT,
    "service_tier": _TEXT,
    "messages.content.cache_control": _OBJECT,
    "messages.content.prompt_cache_breakpoint": _OBJECT,
    "messages.name": _TEXT,
    "stream_options.include_obfuscation": _YES_OR_NO,
}
"""What a value of `TOLD` or `TOLD_WITHIN` must be, in words and as a test."""

_STOP_MAX: Final = 4
_MESSAGES_MAX: Final = 100_000  # Claude's own limit
_PARTS_MAX: Final = 100_000  # in all messages together: looking at more would keep other callers waiting
_MESSAGE_FIELDS: Final = frozenset({"role", "content", "name"})
_OWN_FIELD: Final = {"assistant": "tool_calls", "tool": "tool_call_id"}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat completion as asked for. ``ignored`` names what was left out, in alphabetical order."""

    ask: Ask
    stream: bool
    include_usage: bool
    session: str | None
    session_input: str | None
    ignored: list[str]


def parse(
    body: Any, *, default_model: str, aliases: dict[str, str], max_tokens_default: Callable[[str], int]
) -> ChatRequest:
    """Checks and translates a request body that was JSON.

    Args:
        body: the JSON.
        default_model: for a request that names none.
        aliases: name → model.
        max_tokens_default: of a model, after aliases; asked where the request says nothing.

    Raises:
        BatonError: 400 naming the parameter.
    """
    if not isinstance(body, dict):
        raise BatonError("invalid_value", "The body must be a JSON object.")
    fields: dict[str, Any] = {name: value for name, value in body.items() if value is not None}
    ignored = _sort_out(fields)
    system, messages, ignored_within = _messages(fields)
    named = fields.get("model")
    if named is not None and not model_name.sound(named):
        raise invalid_value("model", model_name.PROBLEM)
    model = default_model if named is None else named
    model = aliases.get(model, model)
    max_tokens = _max_tokens(fields)
    params: dict[str, Any] = {"max_tokens": max_tokens_default(model) if max_tokens is None else max_tokens}
    if stop := _stop(fields):
        params["stop_sequences"] = stop
    tools = chat_tools.definitions(fields.get("tools"))
    choice = chat_tools.choice(fields.get("tool_choice"), fields.get("parallel_tool_calls"), tools)
    include_usage, ignored_options = _stream_options(fields)
    session = fields.get("session_id")
    if session is not None and (not isinstance(session, str) or not session):
        raise BatonError("invalid_session_id", "session_id must be a non-empty string.", param="session_id")
    return ChatRequest(
        ask=Ask(
            model=model,
            messages=messages,
            system=system,
            params=params,
            tools=tools or None,
            tool_choice=choice,
            model_named=named is not None,
        ),
        stream=_flag(fields.get("stream"), "stream"),
        include_usage=include_usage,
        session=session,
        session_input=_session_input(fields.get("session_input")),
        ignored=sorted(ignored + ignored_within + ignored_options),
    )


def _session_input(given: Any) -> str | None:
    if given not in (None, "delta", "full"):
        raise invalid_value("session_input", "must be `delta` or `full`")
    return cast("str | None", given)


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
            _check_form(value, name, name)
            if not _is_neutral(value, TOLD[name]):
                ignored.append(name)
        else:
            raise BatonError("unknown_field", f"There is no parameter `{str(name)[:64]}`.", param=str(name)[:64])
    return ignored


def _is_neutral(value: Any, neutral: Any) -> bool:
    """Whether they are the same JSON; to Python, true is 1."""
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)


def _check_form(value: Any, name: str, place: str) -> None:
    """Refuses a value that a field of `FORMS` cannot have; ``place`` is where it was found."""
    words, is_so = FORMS[name]
    if not is_so(value):
        raise invalid_value(place, f"must be {words}")


def _messages(fields: dict[str, Any]) -> tuple[Any, list[dict[str, Any]], list[str]]:
    """System prompt, the other messages, and what of them is ignored."""
    given = fields.get("messages")
    if given is None:
        raise BatonError("missing_value", "`messages` is required.", param="messages")
    if not isinstance(given, list) or not given:
        raise invalid_value("messages", "must be a list with at least one message")
    _check_size(given)
    system: list[str] = []
    messages: list[dict[str, Any]] = []
    ignored: set[str] = set()
    pairing = chat_tools.Pairing()
    results: list[dict[str, Any]] = []  # of the tool messages right before; they are one message of Claude's
    for index, message in enumerate(given):
        where = f"messages.{index}"
        role = _role(message, where, ignored)
        if role in ("system", "developer"):
            if messages:
                raise BatonError(
                    "unsupported", f"{where}: a {role} message after the first other one is not supported.", param=where
                )
            text = _content(message, where, ignored)
            system.append(text if isinstance(text, str) else "".join(part["text"] for part in text))
            continue
        if role == "tool":
            results.append(pairing.result(message, _content(message, where, ignored, blank=True), where))
            if len(results) == 1:
                messages.append({"role": "user", "content": results})
            continue
        calls = chat_tools.calls(message.get("tool_calls"), f"{where}.tool_calls") if role == "assistant" else []
        results = []
        pairing.said(calls)
        messages.append({"role": role, "content": _said(message, where, ignored, calls)})
    if not messages or messages[-1]["role"] != "user":
        raise invalid_value("messages", "must end with a user or tool message")
    if messages[0]["role"] != "user":
        raise invalid_value("messages", "must begin with a user or tool message, after any system messages")
    prompt = None if not system else system[0] if len(system) == 1 else [{"type": "text", "text": s} for s in system]
    return prompt, messages, list(ignored)


def _said(message: dict[str, Any], where: str, ignored: set[str], calls: list[dict[str, Any]]) -> Any:
    """The content of a message of the user's or the assistant's; with calls it may be calls alone."""
    if not calls:
        return _content(message, where, ignored)
    said = _content(message, where, ignored, blank=True) if message.get("content") is not None else []
    if isinstance(said, str):
        said = [{"type": "text", "text": said}] if said else []
    return [*said, *calls]


def _check_size(given: list[Any]) -> None:
    """Refuses more than can be looked at without keeping other callers waiting."""
    if len(given) > _MESSAGES_MAX:
        raise invalid_value("messages", f"may hold at most {_MESSAGES_MAX} messages")
    parts = [message.get(name) for name in ("content", "tool_calls") for message in given if isinstance(message, dict)]
    if sum(len(content) for content in parts if isinstance(content, list)) > _PARTS_MAX:
        raise invalid_value("messages", f"may hold at most {_PARTS_MAX} parts of content and tool calls")


def _role(message: Any, where: str, ignored: set[str]) -> str:
    """The role of a message whose other fields are in order; adds to what is ignored."""
    if not isinstance(message, dict):
        raise invalid_value(where, "must be an object")
    role = message.get("role")
    own = _OWN_FIELD.get(role) if isinstance(role, str) else None
    for name, value in message.items():
        # SDK objects sent back carry empty fields of an answer; they ask for nothing.
        if name not in _MESSAGE_FIELDS and name != own and value not in (None, [], {}):
            field = f"{where}.{name}"[:128]
            raise BatonError("unsupported", f"`{field}` is not supported.", param=field)
    if message.get("name") is not None:
        _check_form(message["name"], "messages.name", f"{where}.name")
        ignored.add("messages.name")
    if role in ("system", "developer", "user", "assistant", "tool"):
        return str(role)
    if role == "function":
        raise BatonError("unsupported", f"{where}: role `{role}` is not supported.", param=f"{where}.role")
    raise invalid_value(f"{where}.role", "must be one of system, developer, user, assistant, tool")


def _content(message: dict[str, Any], where: str, ignored: set[str], *, blank: bool = False) -> Any:
    """Text, or a list of text blocks. Adds to what is ignored.

    Claude takes no blank text. It is refused, or where ``blank`` is allowed left out: then either may be empty.
    """
    content = message.get("content")
    if isinstance(content, str):
        if not content.strip():
            if not blank:
                raise invalid_value(f"{where}.content", "must not be empty")
            return ""
        return content
    if not isinstance(content, list) or (not content and not blank):
        raise invalid_value(f"{where}.content", "must be a string or a non-empty list of parts")
    blocks = []
    for index, part in enumerate(content):
        place = f"{where}.content.{index}"
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise invalid_value(place, "must be an object with a type")
        if part["type"] != "text":
            raise BatonError(
                "unsupported", f"{place}: parts of type `{part['type'][:64]}` are not supported.", param=place
            )
        if not isinstance(part.get("text"), str) or not (blank or part["text"].strip()):
            raise invalid_value(f"{place}.text", "must be a non-empty string")
        if len(part) > 2:
            _sort_out_part(part, place, ignored)
        if part["text"].strip():
            blocks.append({"type": "text", "text": part["text"]})
    return blocks


def _sort_out_part(part: dict[str, Any], place: str, ignored: set[str]) -> None:
    """Refuses what else a text part says, unless losing it is no loss of meaning."""
    for name, value in part.items():
        if name in ("type", "text") or value is None:
            continue
        field, told = f"{place}.{name}"[:128], f"messages.content.{name}"
        if told not in TOLD_WITHIN:
            raise BatonError("unsupported", f"`{field}` is not supported.", param=field)
        _check_form(value, told, field)
        ignored.add(told)


def _stream_options(fields: dict[str, Any]) -> tuple[bool, list[str]]:
    """Whether usage is asked for, and what is ignored."""
    options = fields.get("stream_options", {})
    if not isinstance(options, dict):
        raise invalid_value("stream_options", "must be an object")
    ignored = []
    for name, value in options.items():
        field = f"stream_options.{name}"[:128]
        if name == "include_usage" or value is None:
            continue
        if field not in TOLD_WITHIN:
            raise BatonError("unknown_field", f"There is no parameter `{field}`.", param=field)
        _check_form(value, field, field)
        if not _is_neutral(value, TOLD_WITHIN[field]):
            ignored.append(field)
    return _flag(options.get("include_usage"), "stream_options.include_usage"), ignored


def _flag(value: Any, name: str) -> bool:
    if value is not None and not isinstance(value, bool):
        raise invalid_value(name, "must be true or false")
    return bool(value)


def _max_tokens(fields: dict[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = fields.get(name)
        if value is not None:
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise invalid_value(name, "must be a positive whole number")
            return value
    return None


def _stop(fields: dict[str, Any]) -> list[str]:
    given = fields.get("stop", [])
    stops = [given] if isinstance(given, str) else given
    if not isinstance(stops, list) or len(stops) > _STOP_MAX:
        raise invalid_value("stop", f"must be a string or a list of at most {_STOP_MAX} strings")
    if any(not isinstance(stop, str) or not stop.strip() for stop in stops):
        raise invalid_value("stop", "must hold something other than white space")
    return stops
