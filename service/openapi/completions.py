"""The objects of chat completions: what becomes of a parameter is read from the tables of `dialects/chat_fields.py`."""

import json
import re
from typing import Any, Final

from service import media
from service.dialects import chat_content, chat_fields, chat_options, chat_tools
from service.openapi.schemas import (
    ADDRESS_OR_NEW,
    CALL_ID,
    COUNT,
    METADATA,
    MODEL_NAME,
    NOT_BLANK,
    NOTHING,
    SESSION_NAME,
    TEXT,
    TOOL_NAME,
    YES_OR_NO,
    Schema,
    asked,
    listed,
    maybe,
    one_of,
    ref,
    said,
)

_ANYTHING: Final[Schema] = {"type": "object", "additionalProperties": True}
_FORMS: Final[dict[str, Schema]] = {
    "a string": TEXT,
    "an object": _ANYTHING,
    "a list of objects": listed(_ANYTHING),
    "true or false": YES_OR_NO,
    "a whole number": {"type": "integer"},
    chat_fields.FORMS["metadata"][0]: METADATA,
}
_BETWEEN: Final = re.compile(r"a number between (\S+) and (\S+)")


def told(name: str) -> Schema:
    """A parameter that is left out and named in the answer, by its name in `chat_fields.FORMS`."""
    words, _ = chat_fields.FORMS[name]
    if bounds := _BETWEEN.fullmatch(words):
        form: Schema = {"type": "number", "minimum": float(bounds[1]), "maximum": float(bounds[2])}
    else:
        form = _FORMS[words]
    neutral = chat_fields.TOLD[name]
    passing = "" if neutral is None else f", unless it is `{json.dumps(neutral)}`"
    return {**maybe(form), "description": f"left out, and named in `X-Baton-Ignored`{passing}; {words}"}


def _refused(neutral: Any) -> Schema:
    values = [None] if neutral is None else [neutral, None]
    return {"enum": values, "description": "not supported: only what asks for nothing passes"}


def _told_within(place: str) -> Schema:
    """The fields of one place that are told."""
    return {field: told(name) for field, name in chat_fields.inside(chat_fields.TOLD, place).items()}


def _part(kind: str, value: Schema) -> Schema:
    return asked({"type": one_of(kind), kind: value, **_told_within("messages.content")}, required=("type", kind))


_PARTS: Final[dict[str, Schema]] = {
    "text": _part("text", NOT_BLANK),
    "refusal": _part("refusal", NOT_BLANK),
    "image_url": _part(
        "image_url",
        asked(
            {
                "url": {**TEXT, "description": "a data URL of a JPEG, PNG, GIF or WebP, or an http(s) URL"},
                **_told_within("messages.content.image_url"),
            },
            required=("url",),
        ),
    ),
    "file": _part(
        "file",
        asked(
            {
                "file_data": {**TEXT, "description": "a data URL of a PDF, or of text or JSON in UTF-8"},
                "filename": maybe({**NOT_BLANK, "maxLength": media.TITLE_CHARS_MAX}),
            },
            required=("file_data",),
        ),
    ),
}
_CALL: Final = asked(
    {
        "id": CALL_ID,
        "type": one_of("function"),
        "function": asked(
            {"name": TOOL_NAME, "arguments": {**TEXT, "description": "a JSON object"}}, required=("name", "arguments")
        ),
    },
    required=("id", "type", "function"),
)


def _content(role: str, **bounds: int) -> Schema:
    """A list of the parts that a role may have."""
    return listed({"anyOf": [_PARTS[kind] for kind in chat_content.PART_TYPES[role]]}, **bounds)


_EMPTY: Final[Schema] = {
    "enum": [None, [], {}],
    "description": "an answer sent back may have empty fields of any other name",
}


def _message(role: Schema, required: tuple[str, ...], **fields: Schema) -> Schema:
    told = {field: {"anyOf": [form, _EMPTY]} for field, form in _told_within("messages").items()}
    return {**asked({"role": role, **fields, **told}, required=("role", *required)), "additionalProperties": _EMPTY}


_SENT_BACK: Final[Schema] = {
    "content": {"anyOf": [TEXT, _content("assistant"), NOTHING]},
    "refusal": maybe(TEXT),
    "tool_calls": {"anyOf": [listed(_CALL), NOTHING]},
    "reasoning_content": {"description": "as an answer has it; passed over"},
    "parsed": {"description": "as OpenAI's SDKs have it; passed over"},
}
_SAID: Final[dict[str, Schema]] = {
    "content": {"anyOf": [TEXT, _content("assistant", minItems=1)]},
    "refusal": NOT_BLANK,
    "tool_calls": listed(_CALL, minItems=1),
}
"""An answer that is sent back has one of these at least."""
_MESSAGE: Final[Schema] = {
    "anyOf": [
        _message(
            one_of("system", "developer"),
            ("content",),
            content={"anyOf": [NOT_BLANK, _content("system", minItems=1)]},
        ),
        _message(one_of("user"), ("content",), content={"anyOf": [NOT_BLANK, _content("user", minItems=1)]}),
        *(_message(one_of("assistant"), (name,), **{**_SENT_BACK, name: spoken}) for name, spoken in _SAID.items()),
        _message(
            one_of("tool"),
            ("content", "tool_call_id"),
            content={"anyOf": [TEXT, _content("tool")]},
            tool_call_id=CALL_ID,
        ),
    ]
}
_FUNCTION: Final = asked(
    {
        "name": TOOL_NAME,
        "description": maybe(TEXT),
        "parameters": maybe({"type": "object", "additionalProperties": True}),
        "strict": maybe(YES_OR_NO),
    },
    required=("name",),
)
_TOOL: Final = asked({"type": one_of("function"), "function": _FUNCTION}, required=("type", "function"))
_NAMED_CHOICE: Final = asked(
    {"type": one_of("function"), "function": asked({"name": TOOL_NAME}, required=("name",))},
    required=("type", "function"),
)
_LENGTH: Final = {"type": "integer", "minimum": 1, "description": "of the answer at most, in tokens"}

_TEXT_FORMAT: Final = asked({"type": one_of("text")}, required=("type",))
_JSON_SCHEMA: Final = asked(
    {
        "name": {"type": "string", "pattern": f"^{chat_options.FORMAT_NAME.pattern}$"},
        "description": maybe(TEXT),
        "schema": _ANYTHING,
        "strict": maybe(YES_OR_NO),
    },
    required=("name", "schema"),
)
_JSON_FORMAT: Final = asked(
    {"type": one_of("json_schema"), "json_schema": _JSON_SCHEMA}, required=("type", "json_schema")
)
_THINKING_FIELDS: Final[Schema] = {
    "budget_tokens": {"type": "integer", "minimum": chat_options.BUDGET_TOKENS_MIN},
    "display": maybe(one_of(*chat_options.DISPLAYS)),
}


def _thinking(kind: str) -> Schema:
    own = {name: _THINKING_FIELDS[name] for name in chat_options.THINKING[kind] if name != "type"}
    return asked({"type": one_of(kind), **own}, required=("type", *(own.keys() & {"budget_tokens"})))


MAPPED: Final[dict[str, Schema]] = {
    "max_completion_tokens": maybe(_LENGTH),
    "max_tokens": maybe({**_LENGTH, "description": "the older name of `max_completion_tokens`, which counts"}),
    "messages": {
        **listed(_MESSAGE, minItems=1),
        "description": "system and developer messages at the front are the system prompt; of the others the first is a "
        "user's, and the last a user's or a tool's, but for system and developer messages behind it",
    },
    "model": {**maybe(MODEL_NAME), "description": "absent: the session's, else this deployment's default"},
    "parallel_tool_calls": {**maybe(YES_OR_NO), "description": "false: one call at a time"},
    "reasoning_effort": {
        **maybe(one_of("none", *chat_options.EFFORTS)),
        "description": "`minimal` is Claude's `low`; `none`: no thinking, where the model can do without",
    },
    "response_format": {"anyOf": [_TEXT_FORMAT, _JSON_FORMAT, NOTHING]},
    "safety_identifier": {**maybe(TEXT), "description": "goes to Claude hashed, as does `user`; this one goes first"},
    "service_tier": maybe(one_of(*chat_options.TIERS)),
    "session_id": {
        **maybe(ADDRESS_OR_NEW),
        "description": "`new`, an issued id, or a name of the caller's own; absent: nothing is stored",
    },
    "session_input": {
        **maybe(one_of("delta", "full")),
        "description": "whether the messages are new or the whole conversation; absent: the whole if there is an "
        "assistant message among them",
    },
    "stop": {"anyOf": [NOT_BLANK, listed(NOT_BLANK, maxItems=chat_options.STOPS_MAX), NOTHING]},
    "stream": maybe(YES_OR_NO),
    "stream_options": maybe(asked({"include_usage": maybe(YES_OR_NO), **_told_within("stream_options")})),
    "thinking": {
        "anyOf": [*map(_thinking, chat_options.THINKING), NOTHING],
        "description": "Claude's own field; with `display` `summarized` the answer has `reasoning_content`",
    },
    "tool_choice": {"anyOf": [one_of("none", "auto", "required"), _NAMED_CHOICE, NOTHING]},
    "tools": {
        **maybe(listed(_TOOL, maxItems=chat_tools.TOOLS_MAX)),
        "description": "absent: the session's; an empty list: none this time",
    },
    "user": maybe(TEXT),
}
"""The parameters of `chat_fields.MAPPED`."""

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
        "service_tier": {**one_of("default", "priority"), "description": "there if Claude tells it"},
        "session_id": {**SESSION_NAME, "description": "what the caller calls the session; absent when stateless"},
        "choices": choices,
        "usage": usage,
    }
    return said(properties, optional=("service_tier", "session_id", *optional))


def _choices(field: str, spoken: Schema, finish: Schema, **bounds: int) -> Schema:
    return listed(said({"index": {"const": 0}, field: spoken, "logprobs": NOTHING, "finish_reason": finish}), **bounds)


def _request() -> Schema:
    properties = {name: MAPPED[name] for name in chat_fields.inside(chat_fields.MAPPED, "")}
    properties |= _told_within("")
    properties |= {name: _refused(chat_fields.REFUSED[name]) for name in chat_fields.inside(chat_fields.REFUSED, "")}
    described = asked({name: properties[name] for name in sorted(properties)}, required=("messages",))
    return {**described, "additionalProperties": {**NOTHING, "description": "null is absent, whatever its name"}}


_CITED: Final = said(
    {
        "type": {"const": "url_citation"},
        "url_citation": said({"start_index": COUNT, "end_index": COUNT, "url": TEXT, "title": TEXT}),
    }
)
_REASONING: Final[Schema] = {**TEXT, "description": "Claude's thinking; there if `thinking` asks to see it"}


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
        "reasoning_content": _REASONING,
        "annotations": listed(_CITED, minItems=1),
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
        "reasoning_content": _REASONING,
        "annotations": listed(_CITED, minItems=1),
        "tool_calls": listed(
            said({"id": TEXT, "type": {"const": "function"}, "function": said({"name": TEXT, "arguments": TEXT})}),
            minItems=1,
        ),
    },
    optional=("reasoning_content", "annotations", "tool_calls"),
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
