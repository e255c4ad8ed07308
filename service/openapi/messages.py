"""The objects of Anthropic's messages. Claude judges and makes most of them; here is what Baton reads of them.

The request is one for both uses of the endpoint: with a session Baton reads what is described here, without one it
reads nothing. Answers are Claude's own, with whatever fields it has.
"""

from typing import Any, Final

from service.dialects import messages
from service.openapi.schemas import COUNT, MODEL_NAME, NOT_BLANK, TEXT, YES_OR_NO, Schema, listed, maybe, one_of

_ANY: Final[Schema] = {"type": "object", "additionalProperties": True}


def _open(properties: dict[str, Any], required: tuple[str, ...] = ()) -> Schema:
    """An object of Claude's, which may have other fields."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": True}


_BLOCK: Final = _open({"type": NOT_BLANK}, ("type",))
_CONTENT: Final[Schema] = {"anyOf": [TEXT, listed(_BLOCK, minItems=1)]}
_MESSAGE: Final = _open({"role": one_of("user", "assistant", "system"), "content": _CONTENT}, ("role", "content"))
_ASKED: Final[dict[str, Schema]] = {
    "model": {**maybe(MODEL_NAME), "description": "in a session it may be absent: the session's, else the default"},
    "messages": {**listed(_MESSAGE, minItems=1), "description": "in a session only what is new, or all of it"},
    "system": {"anyOf": [TEXT, listed(_BLOCK), {"type": "null"}], "description": "absent: the session's"},
    "tools": {**maybe(listed(_ANY)), "description": "absent: the session's; an empty list: none this time"},
    "tool_choice": maybe(_open({"type": TEXT}, ("type",))),
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
