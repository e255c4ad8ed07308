"""Anthropic's Messages API, the request: from its JSON to an `Ask`, for a turn of a session; pure.

Baton's canonical form is this API's own, so there is next to nothing to translate: every field that is not named here
goes to Claude as it came, known or not, and Claude judges it. Looked at is only what Baton itself reads later, because
what is stored must be readable. A stateless request is not even looked at: its bytes are passed on (passage.py).

What a session changes: the messages are only what is new, `system`, `tools` and `thinking` that are absent are the
session's, and `max_tokens` may be left out. Markers for the prompt cache in messages are left out and told: they would
become a part of the history, and soon be more than Claude takes; Baton sets one of its own on every turn.

Source: Anthropic API reference, "Create a Message", version 2026-10-21. A request that says 2023-06-01 is taken too; it
may hold sampling parameters, which the newer version does not have: they are left out and told.
"""

from dataclasses import dataclass
from typing import Any, Final

from service import model_name
from service.errors import BatonError, invalid_value
from service.prefix import Ask
from service.tool_calls import CALL_ID
from service.transcript import is_input

VERSION: Final = "2026-10-21"
"""Of the API that session turns use."""
OLDER_VERSION: Final = "2023-06-01"
"""Accepted from callers, too."""
TOLD_OF_OLDER: Final = ("temperature", "top_k", "top_p")
"""Left out of a request of the older version."""
REFUSED: Final = {"thread": "Baton keeps the conversation itself"}
"""Fields that contradict a session, and why."""
TOLD_WITHIN: Final = "messages.content.cache_control"

_MESSAGES_MAX: Final = 100_000  # Claude's own limit
_BLOCKS_MAX: Final = 100_000  # in all messages together: looking at more would keep other callers waiting
_TOOLS_MAX: Final = 1000
_ROLES: Final = ("user", "assistant", "system")
_READ: Final = frozenset({"model", "messages", "system", "tools", "tool_choice", "stream"})


@dataclass(frozen=True, slots=True)
class MessagesRequest:
    """A message as asked for. ``ignored`` names what was left out, in alphabetical order."""

    ask: Ask
    stream: bool
    ignored: list[str]


def parse(body: Any, *, version: str | None, default_model: str, aliases: dict[str, str]) -> MessagesRequest:
    """Checks a request body that was JSON, as far as it is read.

    Args:
        body: parsed.
        version: the request's ``anthropic-version``; None is the present one.
        default_model: where none is named.
        aliases: name → model.

    Raises:
        BatonError: 400 naming the parameter.
    """
    check_version(version)
    if not isinstance(body, dict):
        raise BatonError("invalid_value", "The body must be a JSON object.")
    fields: dict[str, Any] = {name: value for name, value in body.items() if value is not None}
    for name, why in REFUSED.items():
        if name in fields:
            # Claude's own code for it: the SDKs' tool runners, which begin with a thread, go on without one then.
            raise BatonError(
                "thread_unsupported_request", f"`{name}` is not supported in a session: {why}.", param=name
            )
    ignored = [name for name in TOLD_OF_OLDER if version == OLDER_VERSION and name in fields]
    messages, marked = _messages(fields.get("messages"))
    named = fields.get("model")
    if named is not None and not model_name.sound(named):
        raise invalid_value("model", model_name.PROBLEM)
    model = default_model if named is None else named
    params = {name: value for name, value in fields.items() if name not in _READ and name not in ignored}
    tools = _tools(fields.get("tools"))
    choice = _choice(fields.get("tool_choice"))
    if tools == []:
        if choice is not None and choice["type"] in ("any", "tool"):
            raise invalid_value("tool_choice", "asks for a call, and there are no tools")
        choice = {"type": "none"}
    if not isinstance(fields.get("thinking", {}), dict):
        raise invalid_value("thinking", "must be an object")
    return MessagesRequest(
        ask=Ask(
            model=aliases.get(model, model),
            messages=messages,
            system=_system(fields.get("system")),
            params=params,
            tools=tools or None,
            tool_choice=choice,
            model_named=named is not None,
        ),
        stream=is_streamed(fields),
        ignored=sorted([*ignored, *([TOLD_WITHIN] if marked else [])]),
    )


def check_version(version: str | None) -> None:
    """Refuses a version of the API that session turns do not understand.

    Raises:
        BatonError: invalid_value.
    """
    if version not in (None, VERSION, OLDER_VERSION):
        raise BatonError(
            "invalid_value",
            f"anthropic-version: sessions speak {VERSION}, and understand {OLDER_VERSION}.",
            param="anthropic-version",
        )


def is_streamed(body: dict[str, Any]) -> bool:
    """Whether a body asks for a stream.

    Raises:
        BatonError: invalid_value.
    """
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise invalid_value("stream", "must be true or false")
    return bool(stream)


def _system(given: Any) -> Any:
    if given is None or isinstance(given, str):
        return given
    if not isinstance(given, list) or not all(
        isinstance(block, dict) and block.get("type") == "text" and isinstance(block.get("text"), str)
        for block in given
    ):
        raise invalid_value("system", "must be a string or a list of text blocks")
    return given


def _tools(given: Any) -> list[dict[str, Any]] | None:
    if given is None:
        return None
    if not isinstance(given, list) or len(given) > _TOOLS_MAX or not all(isinstance(tool, dict) for tool in given):
        raise invalid_value("tools", f"must be a list of at most {_TOOLS_MAX} tools")
    return given


def _choice(given: Any) -> dict[str, Any] | None:
    if given is None:
        return None
    if not isinstance(given, dict) or not isinstance(given.get("type"), str):
        raise invalid_value("tool_choice", "must be an object with a type")
    if given["type"] == "tool" and not isinstance(given.get("name"), str):
        raise invalid_value("tool_choice.name", "must be the name of a tool")
    return given


def _messages(given: Any) -> tuple[list[dict[str, Any]], bool]:
    """The messages without markers for the prompt cache, and whether there were any."""
    if given is None:
        raise BatonError("missing_value", "`messages` is required.", param="messages")
    if not isinstance(given, list) or not 0 < len(given) <= _MESSAGES_MAX:
        raise invalid_value("messages", f"must be a list of 1 to {_MESSAGES_MAX} messages")
    contents = [message.get("content") for message in given if isinstance(message, dict)]
    if sum(len(content) for content in contents if isinstance(content, list)) > _BLOCKS_MAX:
        raise invalid_value("messages", f"may hold at most {_BLOCKS_MAX} content blocks")
    marked = False
    messages = []
    for index, message in enumerate(given):
        _check_message(message, f"messages.{index}")
        bare = unmarked(message)
        marked = marked or bare is not message
        messages.append(bare)
    return messages, marked


def _check_message(message: Any, where: str) -> None:
    if not isinstance(message, dict):
        raise invalid_value(where, "must be an object")
    if message.get("role") not in _ROLES:
        raise invalid_value(f"{where}.role", "must be one of user, assistant, system")
    content = message.get("content")
    if isinstance(content, str):
        return
    if not isinstance(content, list) or not content:
        raise invalid_value(f"{where}.content", "must be a string or a non-empty list of content blocks")
    for index, block in enumerate(content):
        check_block(block, f"{where}.content.{index}")


def check_block(block: Any, where: str) -> None:
    """What Baton reads of a block: its type, and of some types their own fields.

    Raises:
        BatonError: invalid_value, naming the place.
    """
    if not isinstance(block, dict) or not isinstance(block.get("type"), str):
        raise invalid_value(where, "must be an object with a type")
    match block["type"]:
        case "text":
            _require_text(block, "text", where)
        case "thinking":
            _require_text(block, "thinking", where)
            _require_text(block, "signature", where)
        case "tool_use":
            _require_call(block.get("id"), f"{where}.id")
            _require_text(block, "name", where)
            if not is_input(block.get("input")):
                raise invalid_value(f"{where}.input", "must be an object that nests less than 240 levels")
        case "tool_result":
            _require_call(block.get("tool_use_id"), f"{where}.tool_use_id")
            _check_result(block.get("content"), f"{where}.content")


def _check_result(content: Any, where: str) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise invalid_value(where, "must be a string or a list of content blocks")
    for index, block in enumerate(content):
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise invalid_value(f"{where}.{index}", "must be an object with a type")
        if block["type"] == "text":
            _require_text(block, "text", f"{where}.{index}")


def _require_text(block: dict[str, Any], field: str, where: str) -> None:
    if not isinstance(block.get(field), str):
        raise invalid_value(f"{where}.{field}", "must be a string")


def _require_call(call: Any, where: str) -> None:
    if not isinstance(call, str) or CALL_ID.fullmatch(call) is None:
        raise invalid_value(where, "must be 1 to 256 letters, digits, `_` or `-`")


def unmarked(message: dict[str, Any]) -> dict[str, Any]:
    """A message without ``cache_control`` in its blocks; itself, if it has none."""
    content = message["content"]
    if isinstance(content, str):
        return message
    blocks = [_unmarked_block(block) for block in content]
    if all(bare is block for bare, block in zip(blocks, content, strict=True)):
        return message
    return {**message, "content": blocks}


def _unmarked_block(block: dict[str, Any]) -> dict[str, Any]:
    bare = {name: value for name, value in block.items() if name != "cache_control"}
    within = block.get("content") if block["type"] == "tool_result" else None
    if isinstance(within, list) and any("cache_control" in inner for inner in within):
        bare["content"] = [
            {name: value for name, value in inner.items() if name != "cache_control"} for inner in within
        ]
    elif len(bare) == len(block):
        return block
    return bare
