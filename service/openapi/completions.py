"""The objects of chat completions: what becomes of a parameter is read from the tables of `dialects/chat.py`."""

import json
import re
from typing import Any, Final

from service import tool_calls
from service.dialects import chat, chat_tools
from service.openapi.schemas import (
    COUNT,
    MODEL_NAME,
    NOT_BLANK,
    NOTHING,
    SESSION_NAME,
    TEXT,
    YES_OR_NO,
    Schema,
    asked,
    listed,
    maybe,
    one_of,
    ref,
    said,
)

_FORMS: Final[dict[str, Schema]] = {
    "a string": TEXT,
    "an object": {"type": "object", "additionalProperties": True},
    "true or false": YES_OR_NO,
    "a whole number": {"type": "integer"},
}
_BETWEEN: Final = re.compile(r"a number between (\S+) and (\S+)")


def told(name: str) -> Schema:
    """A parameter that is left out and named in the answer, by its name in `chat.FORMS`."""
    words, _ = chat.FORMS[name]
    if bounds := _BETWEEN.fullmatch(words):
        form: Schema = {"type": "number", "minimum": float(bounds[1]), "maximum": float(bounds[2])}
    else:
        form = _FORMS[words]
    neutral = (chat.TOLD | chat.TOLD_WITHIN)[name]
    passing = "" if neutral is None else f", unless it is `{json.dumps(neutral)}`"
    return {**maybe(form), "description": f"left out, and named in `X-Baton-Ignored`{passing}; {words}"}


def _refused(neutral: Any) -> Schema:
    values = [None] if neutral is None else [neutral, None]
    return {"enum": values, "description": "not supported: only what asks for nothing passes"}


def _told_within(place: str) -> Schema:
    """The fields of `chat.TOLD_WITHIN` that belong to one place."""
    inside = {name: name.removeprefix(f"{place}.") for name in chat.TOLD_WITHIN if name.startswith(f"{place}.")}
    return {field: told(name) for name, field in inside.items() if "." not in field}


_PART: Final = asked(
    {"type": one_of("text"), "text": NOT_BLANK, **_told_within("messages.content")},
    required=("type", "text"),
)
_CALL: Final = asked(
    {
        "id": TEXT,
        "type": one_of("function"),
        "function": asked(
            {"name": TEXT, "arguments": {**TEXT, "description": "a JSON object"}}, required=("name", "arguments")
        ),
    },
    required=("id", "type", "function"),
)
_CONTENT: Final[Schema] = {"anyOf": [NOT_BLANK, listed(_PART, minItems=1)]}
_RESULT: Final[Schema] = {"anyOf": [TEXT, listed(_PART)]}


def _message(role: Schema, required: tuple[str, ...], **fields: Schema) -> Schema:
    return {
        **asked({"role": role, **fields, **_told_within("messages")}, required=("role", *required)),
        "additionalProperties": {
            "enum": [None, [], {}],
            "description": "an answer sent back may have empty fields of any other name",
        },
    }


_MESSAGE: Final[Schema] = {
    "anyOf": [
        _message(one_of("system", "developer", "user", "assistant"), ("content",), content=_CONTENT),
        _message(
            one_of("assistant"),
            ("tool_calls",),
            content={"anyOf": [TEXT, listed(_PART), NOTHING]},
            tool_calls=listed(_CALL, minItems=1),
        ),
        _message(one_of("tool"), ("content", "tool_call_id"), content=_RESULT, tool_call_id=TEXT),
    ]
}
_FUNCTION: Final = asked(
    {
        "name": {"type": "string", "pattern": tool_calls.TOOL_NAME.pattern},
        "description": maybe(TEXT),
        "parameters": maybe({"type": "object", "additionalProperties": True}),
        "strict": maybe(YES_OR_NO),
    },
    required=("name",),
)
_TOOL: Final = asked({"type": one_of("function"), "function": _FUNCTION}, required=("type", "function"))
_NAMED_CHOICE: Final = asked(
    {"type": one_of("function"), "function": asked({"name": TEXT}, required=("name",))}, required=("type", "function")
)
_LENGTH: Final = {"type": "integer", "minimum": 1, "description": "of the answer at most, in tokens"}

MAPPED: Final[dict[str, Schema]] = {
    "max_completion_tokens": maybe(_LENGTH),
    "max_tokens": maybe({**_LENGTH, "description": "the older name of `max_completion_tokens`, which counts"}),
    "messages": {
        **listed(_MESSAGE, minItems=1),
        "description": "system and developer messages first; then the first is a user's, and the last a user's or a "
        "tool's",
    },
    "model": {**maybe(MODEL_NAME), "description": "absent: the session's, else this deployment's default"},
    "parallel_tool_calls": {**maybe(YES_OR_NO), "description": "false: one call at a time"},
    "session_id": {
        **maybe(SESSION_NAME),
        "description": "`new`, an issued id, or a name of the caller's own; absent: nothing is stored",
    },
    "session_input": {
        **maybe(one_of("delta", "full")),
        "description": "whether the messages are new or the whole conversation; absent: the whole if there is an "
        "assistant message among them",
    },
    "stop": {"anyOf": [NOT_BLANK, listed(NOT_BLANK, maxItems=4), NOTHING]},
    "stream": maybe(YES_OR_NO),
    "tool_choice": {"anyOf": [one_of("none", "auto", "required"), _NAMED_CHOICE, NOTHING]},
    "tools": {
        **maybe(listed(_TOOL, maxItems=chat_tools.TOOLS_MAX)),
        "description": "absent: the session's; an empty list: none this time",
    },
    "stream_options": maybe(asked({"include_usage": maybe(YES_OR_NO), **_told_within("stream_options")})),
}
"""The parameters of `chat.MAPPED`."""

_USAGE: Final = said(
    {
        "prompt_tokens": COUNT,
        "completion_tokens": COUNT,
        "total_tokens": COUNT,
        "prompt_tokens_details": said({"cached_tokens": COUNT, "cache_write_tokens": COUNT}),
        "completion_tokens_details": said({"reasoning_tokens": COUNT}),
    }
)
_FINISH: Final = one_of("stop", "length", "tool_calls", "content_filter")


def _answer(kind: str, choices: Schema, usage: Schema, *, optional: tuple[str, ...] = ()) -> Schema:
    properties = {
        "id": TEXT,
        "object": {"const": kind},
        "created": COUNT,
        "model": TEXT,
        "session_id": {**SESSION_NAME, "description": "what the caller calls the session; absent when stateless"},
        "choices": choices,
        "usage": usage,
    }
    return said(properties, optional=("session_id", *optional))


def _choices(field: str, spoken: Schema, finish: Schema, **bounds: int) -> Schema:
    return listed(said({"index": {"const": 0}, field: spoken, "logprobs": NOTHING, "finish_reason": finish}), **bounds)


def _request() -> Schema:
    properties = {name: MAPPED[name] for name in chat.MAPPED}
    properties |= {name: told(name) for name in chat.TOLD}
    properties |= {name: _refused(neutral) for name, neutral in chat.REFUSED.items()}
    return asked({name: properties[name] for name in sorted(properties)}, required=("messages",))


def _chunk() -> Schema:
    call = said(
        {
            "index": COUNT,
            "id": TEXT,
            "type": {"const": "function"},
            "function": said({"name": TEXT, "arguments": TEXT}, optional=("name",)),
        },
        optional=("id", "type"),
    )
    delta = {
        "role": {"const": "assistant"},
        "content": TEXT,
        "refusal": maybe(TEXT),
        "tool_calls": listed(call, minItems=1),
    }
    choices = _choices("delta", said(delta, optional=delta), maybe(_FINISH), maxItems=1)
    usage = {
        "anyOf": [ref("ChatUsage"), NOTHING],
        "description": "there if asked for; null in all chunks but the last, which has no choices",
    }
    return _answer("chat.completion.chunk", choices, usage, optional=("usage",))


_SPOKEN: Final = said(
    {
        "role": {"const": "assistant"},
        "content": maybe(TEXT),
        "refusal": maybe(TEXT),
        "tool_calls": listed(
            said({"id": TEXT, "type": {"const": "function"}, "function": said({"name": TEXT, "arguments": TEXT})}),
            minItems=1,
        ),
    },
    optional=("tool_calls",),
)

SCHEMAS: Final[dict[str, Schema]] = {
    "ChatCompletionRequest": _request(),
    "ChatCompletion": _answer(
        "chat.completion",
        _choices("message", _SPOKEN, _FINISH, minItems=1, maxItems=1),
        ref("ChatUsage"),
    ),
    "ChatCompletionChunk": _chunk(),
    "ChatUsage": _USAGE,
}
"""By name, in the order of the document."""
