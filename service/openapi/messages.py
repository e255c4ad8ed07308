"""The objects of Anthropic's messages. Claude judges and makes most of them; here is what Baton reads of them.

The request is one for both uses of the endpoint: with a session Baton reads what is described here, without one it
reads nothing. Answers are Claude's own, with whatever fields it has.
"""

from typing import Any, Final

from service.dialects import messages
from service.openapi.schemas import (
    CALL_ID,
    COUNT,
    MODEL_NAME,
    NOT_BLANK,
    TEXT,
    YES_OR_NO,
    Schema,
    listed,
    maybe,
    one_of,
)

_ANY: Final[Schema] = {"type": "object", "additionalProperties": True}


def _open(properties: dict[str, Any], required: tuple[str, ...] = ()) -> Schema:
    """An object of Claude's, which may have other fields."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": True}


_BLOCK: Final = _open({"type": NOT_BLANK}, ("type",))


def _read_block(kind: str, properties: dict[str, Any], optional: tuple[str, ...] = ()) -> Schema:
    required = tuple(name for name in properties if name not in optional)
    return _open({"type": one_of(kind), **properties}, ("type", *required))


def _other_block(*kinds: str) -> Schema:
    """A block of none of these types, which Claude alone judges."""
    return _open({"type": {**TEXT, "not": {"enum": list(kinds)}}}, ("type",))


_TEXT_BLOCK: Final = _read_block("text", {"text": TEXT})
_RESULT: Final[Schema] = {"anyOf": [TEXT, listed({"anyOf": [_TEXT_BLOCK, _other_block("text")]}), {"type": "null"}]}
_NEW_BLOCK: Final[Schema] = {
    "anyOf": [
        _TEXT_BLOCK,
        _read_block("thinking", {"thinking": TEXT, "signature": TEXT}),
        _read_block("tool_use", {"id": CALL_ID, "name": TEXT, "input": _ANY}),
        _read_block("tool_result", {"tool_use_id": CALL_ID, "content": _RESULT}, ("content",)),
        _other_block("text", "thinking", "tool_use", "tool_result"),
    ]
}
_CHOICE: Final[Schema] = {
    "anyOf": [_read_block("tool", {"name": TEXT}), _other_block("tool"), {"type": "null"}],
}
_CONTENT: Final[Schema] = {"anyOf": [TEXT, listed(_NEW_BLOCK, minItems=1)]}
_MESSAGE: Final = _open({"role": one_of("user", "assistant", "system"), "content": _CONTENT}, ("role", "content"))
_ASKED: Final[dict[str, Schema]] = {
    "model": {**maybe(MODEL_NAME), "description": "in a session it may be absent: the session's, else the default"},
    "messages": {**listed(_MESSAGE, minItems=1), "description": "in a session only what is new, or all of it"},
    "system": {"anyOf": [TEXT, listed(_TEXT_BLOCK), {"type": "null"}], "description": "absent: the session's"},
    "tools": {**maybe(listed(_ANY)), "description": "absent: the session's; an empty list: none this time"},
    "tool_choice": _CHOICE,
    "thinking": {**maybe(_ANY), "description": "absent: the session's, as long as the model is the same"},
}
_SAMPLING: Final[Schema] = {
    "description": f"in a session left out and named in `X-Baton-Ignored`, if `anthropic-version` is "
    f"{messages.OLDER_VERSION}; the present version has none"
}


def _request() -> Schema:
    asked: dict[str, Schema] = {
        **_ASKED,
        "max_tokens": {"description": "in a session it may be absent: the default"},
        "stream": maybe(YES_OR_NO),
        **dict.fromkeys(messages.TOLD_OF_OLDER, _SAMPLING),
        **{name: {"description": f"not in a session: {why}"} for name, why in messages.REFUSED.items()},
    }
    described = _open(asked, ("messages",))
    return {**described, "description": "any further field goes to Claude as it is"}


_USAGE: Final = _open({"input_tokens": maybe(COUNT), "output_tokens": maybe(COUNT)})

SCHEMAS: Final[dict[str, Schema]] = {
    "MessagesRequest": _request(),
    "CountTokensRequest": {
        **_open(_ASKED, ("messages",)),
        "description": "any further field goes to Claude as it is",
    },
    "TokenCount": _open({"input_tokens": COUNT}, ("input_tokens",)),
    "AnthropicMessage": _open(
        {
            "id": TEXT,
            "type": {"const": "message"},
            "role": {"const": "assistant"},
            "model": TEXT,
            "content": listed(_BLOCK),
            "stop_reason": TEXT,
            "usage": _USAGE,
        },
        ("id", "type", "role", "model", "content", "stop_reason", "usage"),
    ),
    "AnthropicEvent": _open({"type": TEXT}, ("type",)),
    "AnthropicError": _open(
        {
            "type": {"const": "error"},
            "error": _open(
                {
                    "type": TEXT,
                    "message": {**TEXT, "description": "for people"},
                    "details": {
                        "anyOf": [_open({"error_code": {**TEXT, "description": "the code"}}), {"type": "null"}],
                        "description": "absent where it is Claude who refused",
                    },
                },
                ("type", "message"),
            ),
            "request_id": maybe(TEXT),
        },
        ("type", "error"),
    ),
}
"""By name, in the order of the document."""
