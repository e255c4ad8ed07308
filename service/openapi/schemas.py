"""The objects of the interface as JSON Schemas (2020-12), but for those of chat completions (completions.py).

What Baton says is exact: every field is always there unless it is listed as optional; ``null`` where it is unknown.
What callers say is closed: a field that is not here is refused.
"""

from collections.abc import Collection
from typing import Any, Final

from service import access, addressing, key_fields, media, model_name, tool_calls
from service import session_fields as limits
from service.addressing import MODES, RESERVED
from service.appended_messages import APPENDED_MAX
from service.conflict import ON_CONFLICT
from service.errors import CODES
from service.exchange import ON_DISCONNECT
from service.prefix import PREFIXES
from storage.keys import KEY_ID, SESSION_ID, TURN_ID
from storage.shares import OWNER, ROLES

Schema = dict[str, Any]


def said(properties: Schema, *, optional: Collection[str] = ()) -> Schema:
    """An object that Baton says."""
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
    }


def asked(properties: Schema, *, required: Collection[str] = ()) -> Schema:
    """An object that callers say; with ``required`` empty any part of it."""
    schema: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, "required": list(required)} if required else schema


def maybe(schema: Schema) -> Schema:
    """The same, or null."""
    nullable = {**schema, "type": [schema["type"], "null"]}
    return {**nullable, "enum": [*schema["enum"], None]} if "enum" in schema else nullable


def ref(name: str) -> Schema:
    """One of the document's schemas."""
    return {"$ref": f"#/components/schemas/{name}"}


def one_or_another(schemas: list[Schema]) -> Schema:
    """Any of these schemas."""
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def listed(schema: Schema, **bounds: int) -> Schema:
    """A list of such."""
    return {"type": "array", "items": schema, **bounds}


def one_of(*words: str) -> Schema:
    """One of these words."""
    return {"type": "string", "enum": list(words)}


def whole(low: int, high: int, default: int | None = None) -> Schema:
    """A whole number within bounds, both included."""
    schema = {"type": "integer", "minimum": low, "maximum": high}
    return schema if default is None else {**schema, "default": default}


TEXT: Final = {"type": "string"}
NOT_BLANK: Final = {"type": "string", "pattern": r"\S"}
YES_OR_NO: Final = {"type": "boolean"}
COUNT: Final = {"type": "integer", "minimum": 0}
AMOUNT: Final = {"type": "number", "minimum": 0}
INSTANT: Final = {"type": "string", "format": "date-time"}
NOTHING: Final = {"type": "null"}
SESSION_NAME: Final = {"type": "string", "pattern": f"^{addressing.NAME.pattern}$"}


def _but(names: Collection[str], prefix: str = "") -> Schema:
    """A keyword that forbids these strings, and with ``prefix`` all that begin so."""
    begun = f"{prefix}|" if prefix else ""
    return {"not": {"type": "string", "pattern": f"^({begun}({'|'.join(sorted(names))})$)"}}


ADDRESS: Final = SESSION_NAME | _but(RESERVED)
"""A session that may be there."""
ADDRESS_OR_NEW: Final = SESSION_NAME | _but(RESERVED - {"new"})
TOOL_NAME: Final = {"type": "string", "pattern": f"^{tool_calls.TOOL_NAME.pattern}$"}
CALL_ID: Final = {"type": "string", "pattern": f"^{tool_calls.CALL_ID.pattern}$"}
MODEL_NAME: Final = {"type": "string", "pattern": "^[!-~]+$", "maxLength": model_name.CHARS_MAX}
_ISSUED: Final = {"type": "string", "pattern": f"^{SESSION_ID.pattern}$"}
_TURN_ID: Final = {"type": "string", "pattern": f"^{TURN_ID.pattern}$"}

_PRINCIPAL: Final[Schema] = {"type": "string", "pattern": f"^{access.ANY_PRINCIPAL.pattern}$"}
_ROLE: Final[Schema] = one_of(*ROLES)

PATH_PARAMETERS: Final[dict[str, tuple[Schema, str]]] = {
    "session": (ADDRESS, "a session: its issued id, or the caller's own name for it"),
    "principal": (_PRINCIPAL, "who a session is shared with"),
    "turn": (TEXT, "a turn of the session: its number, or its id"),
    "model": (TEXT, "a model of Claude's, or an alias"),
    "key": ({"type": "string", "pattern": f"^{KEY_ID.pattern}$"}, "the id of a key"),
}

REQUEST_HEADERS: Final[dict[str, Schema]] = {
    "X-Session-Id": ADDRESS_OR_NEW,
    "X-Session-Mode": one_of(*MODES),
    "X-Session-On-Conflict": one_of(*ON_CONFLICT),
    "X-Session-On-Disconnect": one_of(*ON_DISCONNECT),
    "X-Session-Input": one_of("delta", "full"),
    "X-Session-Prefix": one_of(*PREFIXES),
    "Idempotency-Key": {"type": "string", "pattern": "^[ -~]{1,255}$"},
    "X-Expect-Turn": _TURN_ID,
    "X-Baton-User": {"type": "string", "pattern": f"^{access.USER.pattern}$"},
    "X-Stainless-Retry-Count": {"type": "string", "pattern": "^[0-9]{1,4}$"},
    "Last-Event-ID": {"type": "string", "pattern": "^[0-9]{0,15}$"},
    "If-Match": {"type": "string", "pattern": r'^(\*|"[0-9]{1,15}")$'},
}
"""What the value of a header in a request must be; of one that is not here, any text."""

RESPONSE_HEADERS: Final[dict[str, Schema]] = {
    "X-Session-Id": _ISSUED,
    "X-Session-State": one_of("new", "continued", "rewound"),
    "X-Turn-Id": _TURN_ID,
    "ETag": {"type": "string", "pattern": '^"[0-9]+"$'},
    "Retry-After": {"type": "integer", "minimum": 1},
    "x-should-retry": one_of("true", "false"),
}
"""The same of a header in a response."""

METADATA: Final[Schema] = {
    "type": "object",
    "maxProperties": limits.METADATA_PAIRS_MAX,
    "propertyNames": {"minLength": 1, "maxLength": limits.METADATA_KEY_CHARS_MAX},
    "additionalProperties": {"type": "string", "maxLength": limits.METADATA_VALUE_CHARS_MAX},
}

_TTL: Final = whole(1, limits.TTL_S_MAX)
_SETTABLE: Final[dict[str, Schema]] = {
    "model": maybe(MODEL_NAME),
    "system_prompt": maybe(NOT_BLANK),
    "max_turns": maybe(whole(1, limits.TURNS_MAX)),
    "title": maybe({"type": "string", "maxLength": limits.TITLE_CHARS_MAX}),
    "metadata": maybe(METADATA),
    "context_tokens_target": maybe(whole(limits.TOKENS_TARGET_MIN, limits.TOKENS_TARGET_MAX)),
    "compact_instructions": maybe({"type": "string", "maxLength": limits.INSTRUCTIONS_CHARS_MAX}),
}
_CREATED: Final = {
    "name": maybe(SESSION_NAME) | _but(RESERVED, "sess_"),
    **_SETTABLE,
    "model": MODEL_NAME,  # not null
    "ttl_seconds": maybe(_TTL),
    "absolute_expires_at": maybe(INSTANT),
}

_SAYING_NOTHING: Final[Schema] = {"enum": [None, [], {}], "description": "fields that say nothing are left out"}


def _block(properties: Schema, *, optional: Collection[str] = ()) -> Schema:
    """A block of content that callers say, or a part of one; it may have other fields that say nothing."""
    required = [name for name in properties if name not in optional]
    return {**asked(properties, required=required), "additionalProperties": _SAYING_NOTHING}


_TEXT_PART: Final = _block({"type": one_of("text"), "text": NOT_BLANK})
_CALL_INPUT: Final = {"type": "object", "additionalProperties": True}
_CALL_PART: Final = asked(
    {"type": one_of("tool_use"), "id": CALL_ID, "name": TOOL_NAME, "input": _CALL_INPUT},
    required=("type", "id", "name", "input"),
)
_RESULT_PART: Final = asked(
    {
        "type": one_of("tool_result"),
        "tool_use_id": CALL_ID,
        "content": {"anyOf": [NOT_BLANK, listed(_TEXT_PART), {"enum": ["", None]}]},
        "is_error": YES_OR_NO,
    },
    required=("type", "tool_use_id"),
)
_BY_URL: Final = _block({"type": one_of("url"), "url": {**TEXT, "maxLength": media.URL_CHARS_MAX}})


def _inline(kind: str, *media_types: str) -> Schema:
    return _block({"type": one_of(kind), "media_type": one_of(*media_types), "data": NOT_BLANK})


_IMAGE_PART: Final = _block({"type": one_of("image"), "source": {"anyOf": [_BY_URL, _inline("base64", *media.IMAGES)]}})
_DOCUMENT_PART: Final = _block(
    {
        "type": one_of("document"),
        "source": {"anyOf": [_BY_URL, _inline("base64", media.PDF), _inline("text", media.TEXT)]},
        "title": maybe({**NOT_BLANK, "maxLength": media.TITLE_CHARS_MAX}),
    },
    optional=("title",),
)


def _new_message(role: str, *parts: Schema) -> Schema:
    content = {"anyOf": [NOT_BLANK, listed({"anyOf": list(parts)}, minItems=1)]}
    return asked({"role": one_of(role), "content": content}, required=("role", "content"))


_ANY_OBJECT: Final[Schema] = {"type": "object", "additionalProperties": True}
_NEW_MESSAGE: Final[Schema] = {
    "anyOf": [
        _new_message("user", _TEXT_PART, _RESULT_PART, _IMAGE_PART, _DOCUMENT_PART),
        _new_message("assistant", _TEXT_PART, _CALL_PART),
    ]
}

_MESSAGE: Final = said(
    {
        "role": one_of("user", "assistant", "system"),
        "content": {
            "anyOf": [TEXT, listed({"type": "object", "properties": {"type": TEXT}, "additionalProperties": True})],
            "description": "text, or content blocks, as Claude's API has them",
        },
    }
)

_SHARE: Final = {
    "object": {"const": "session.share"},
    "session_id": _ISSUED,
    "principal": _PRINCIPAL,
    "role": _ROLE,
}

_TOKENS_TARGET: Final = whole(limits.TOKENS_TARGET_MIN, limits.TOKENS_TARGET_MAX)
_CHECKPOINT: Final = said(
    {
        "version": {"type": "integer", "minimum": 1},
        "covers": {"type": "integer", "minimum": 1, "description": "for so many of the first messages it stands"},
        "created_at": INSTANT,
        "tokens": {**COUNT, "description": "of its summary"},
    }
)

_SESSION: Final = said(
    {
        "id": _ISSUED,
        "name": maybe(SESSION_NAME),
        "session_id": {**SESSION_NAME, "description": "the name, if it is the caller's own and has one, else the id"},
        "object": {"const": "session"},
        "created_at": INSTANT,
        "last_accessed_at": INSTANT,
        "expires_at": INSTANT,
        "absolute_expires_at": maybe(INSTANT),
        "status": one_of("active", "busy"),
        "message_count": COUNT,
        "turn_count": COUNT,
        "model": maybe(MODEL_NAME),
        "system_prompt": maybe(TEXT),
        "max_turns": maybe(whole(1, limits.TURNS_MAX)),
        "title": maybe(TEXT),
        "metadata": METADATA,
        "owner": TEXT,
        "role": {**one_of(OWNER, *ROLES), "description": "of the caller; what is not its own is shared with it"},
        "ttl_seconds": _TTL,
        "usage": said(
            {
                "input_tokens": COUNT,
                "output_tokens": COUNT,
                "cache_read_input_tokens": COUNT,
                "cache_creation_input_tokens": COUNT,
                "sent_tokens": {**COUNT, "description": "read by Claude: the three above but the output"},
                "full_price_tokens": {**COUNT, "description": "of those sent, what was not in the prompt cache"},
                "saved_tokens": {**COUNT, "description": "of those sent, what was: billed at a tenth"},
                "checkpoint_input_tokens": {**COUNT, "description": "what summaries have cost, beside the turns"},
                "checkpoint_output_tokens": COUNT,
            }
        ),
        "context_tokens": {
            **maybe(COUNT),
            "description": "what the last turn and its answer take of the model's window, as Claude counted it",
        },
        "context_tokens_target": maybe(_TOKENS_TARGET),
        "compact_instructions": maybe(TEXT),
        "checkpoint": maybe(_CHECKPOINT),
    }
)

_TURN: Final = {
    "object": {"const": "session.turn"},
    "number": {"type": "integer", "minimum": 1},
    "id": _TURN_ID,
    "verdict": {
        **one_of("pending", "committed", "incomplete", "refused", "aborted", "dead"),
        "description": "what became of it; `refused`: by Claude, so nothing is stored; `dead`: its replica vanished",
    },
    "rewound": {**YES_OR_NO, "description": "no longer part of the history"},
    "model": maybe(MODEL_NAME),
    "usage": {
        "type": ["object", "null"],
        "additionalProperties": True,
        "description": "as Claude counted it; of a turn that was stored",
    },
    "stop_reason": maybe({**TEXT, "description": "in Claude's words"}),
    "replica": TEXT,
    "dialect": one_of("append", "chat", "fork", "import", "messages"),
    "streamed": YES_OR_NO,
    "delivered": {**YES_OR_NO, "description": "its whole answer was handed to an open connection"},
    "started_at": INSTANT,
    "ended_at": maybe(INSTANT),
    "queue_ms": {**maybe(COUNT), "description": "how long it waited for other turns"},
    "first_event_ms": maybe(COUNT),
    "sent": {
        "type": ["object", "null"],
        "additionalProperties": True,
        "description": "what Claude was sent, in numbers and plain parameters",
    },
    "cache_miss": {
        **maybe(said({"reason": TEXT, "tokens": maybe(COUNT)})),
        "description": "why Claude's prompt cache had not what the turn before left, and about how much; null: it had",
    },
    "message_range": maybe(said({"from": COUNT, "to": COUNT})),
}

_PAGED: Final = {"total": COUNT, "has_more": YES_OR_NO}
_STATE: Final = {
    "store": one_of("up", "refusing", "down"),
    "replica": TEXT,
    "auth": {**one_of("keys", "open", "unknown"), "description": "whether callers need a key; unknown: not known yet"},
    "warnings": listed(TEXT),
}
_LABELS: Final = {
    "type": "object",
    "maxProperties": key_fields.LABELS_MAX,
    "propertyNames": {"minLength": 1, "maxLength": key_fields.LABEL_KEY_CHARS_MAX},
    "additionalProperties": {"type": "string", "maxLength": key_fields.LABEL_VALUE_CHARS_MAX},
}
PRINCIPAL: Final = {"type": "string", "pattern": f"^{access.PRINCIPAL.pattern}$"}
_SCOPES: Final = listed(one_of(*access.SCOPES), minItems=1)
_KEY: Final = {
    "id": {"type": "string", "pattern": f"^{KEY_ID.pattern}$"},
    "object": {"const": "api_key"},
    "principal": PRINCIPAL,
    "scopes": _SCOPES,
    "disabled": YES_OR_NO,
    "expires_at": {**maybe(INSTANT), "description": "null: never"},
    "labels": _LABELS,
    "created_at": INSTANT,
    "rotated_at": maybe(INSTANT),
    "overlap_ends_at": {**maybe(INSTANT), "description": "until then the text before the last rotation is good, too"},
}
_STATES: Final = ("ready", "starting", "draining")

SCHEMAS: Final[dict[str, Schema]] = {
    "NewSession": asked(_CREATED, required=("model",)),
    "SessionChanges": asked({**_SETTABLE, "ttl_seconds": _TTL}),
    "NewMessages": asked({"messages": listed(_NEW_MESSAGE, maxItems=APPENDED_MAX)}, required=("messages",)),
    "Fork": asked(
        {
            "message_count": {**maybe(COUNT), "description": "how many messages it keeps"},
            "turn_id": {**maybe(_TURN_ID), "description": "or the last turn that it keeps"},
            "title": _SETTABLE["title"],
            "metadata": _SETTABLE["metadata"],
            "ttl_seconds": maybe(_TTL),
        }
    ),
    "Import": asked(
        {
            **_CREATED,
            "messages": {
                **one_or_another(
                    [listed(one, minItems=1, maxItems=APPENDED_MAX) for one in (_NEW_MESSAGE, _ANY_OBJECT)]
                ),
                "description": "as Anthropic's API has them, or as those of a chat completion",
            },
            "dialect": {**maybe(one_of("chat", "messages")), "description": "whose form the messages have"},
        },
        required=("model", "messages"),
    ),
    "Session": _SESSION,
    "SessionList": said(
        {
            "object": {"const": "list"},
            "sessions": listed(ref("Session")),
            "has_more": YES_OR_NO,
            "next_cursor": maybe(TEXT),
            "total": {**maybe(COUNT), "description": "null if there is a filter"},
        }
    ),
    "Stats": said(
        {
            "total_sessions": COUNT,
            "active_sessions": COUNT,
            "expired_sessions": COUNT,
            "evicted_sessions": COUNT,
            "total_messages": COUNT,
            "memory_usage_mb": AMOUNT,
            "cleanup_runs": COUNT,
            "average_session_age_minutes": AMOUNT,
            "cleanup_interval_minutes": AMOUNT,
            "default_ttl_hours": AMOUNT,
        }
    ),
    "Message": _MESSAGE,
    "MessageList": said(
        {
            "object": {"const": "list"},
            "session_id": SESSION_NAME,
            "messages": listed(ref("Message")),
            "covered": {**COUNT, "description": "for so many of the session's first messages the checkpoint stands"},
            **_PAGED,
        }
    ),
    "Compaction": said(
        {
            "object": {"const": "session.compaction"},
            "session_id": SESSION_NAME,
            "status": one_of("running", "done"),
            "checkpoint": maybe(_CHECKPOINT),
        }
    ),
    "Appended": said(
        {
            "session_id": SESSION_NAME,
            "message_count": COUNT,
            "turn_id": {**maybe(_TURN_ID), "description": "null if there was nothing to append"},
        }
    ),
    "Deleted": said({"id": _ISSUED, "object": {"const": "session.deleted"}, "deleted": {"const": True}}),
    "NewShare": asked({"role": _ROLE}, required=["role"]),
    "Share": said(_SHARE),
    "ShareList": said({"object": {"const": "list"}, "session_id": _ISSUED, "shares": listed(ref("Share"))}),
    "ShareDeleted": said(
        {
            "object": {"const": "session.share.deleted"},
            "session_id": _ISSUED,
            "principal": _PRINCIPAL,
            "deleted": {"const": True},
        }
    ),
    "Turn": said(_TURN),
    "TurnDetail": said({**_TURN, "session_id": SESSION_NAME, "messages": listed(ref("Message"))}),
    "TurnCancel": said({**_TURN, "cancel_requested": {**YES_OR_NO, "description": "it ran, and was asked to stop"}}),
    "TurnList": said({"object": {"const": "list"}, "session_id": SESSION_NAME, "turns": listed(ref("Turn")), **_PAGED}),
    "Model": said({"id": TEXT, "object": {"const": "model"}, "created": COUNT, "owned_by": TEXT}),
    "ModelList": said({"object": {"const": "list"}, "data": listed(ref("Model"))}),
    "ModelInfo": {
        **said({"id": TEXT, "type": {"const": "model"}, "display_name": TEXT, "created_at": TEXT, "lifecycle": TEXT}),
        "additionalProperties": True,
        "description": "as Claude's Models API tells it, with whatever else that does",
    },
    "ModelInfoList": said(
        {"data": listed(ref("ModelInfo")), "has_more": YES_OR_NO, "first_id": maybe(TEXT), "last_id": maybe(TEXT)}
    ),
    "NewKey": asked(
        {
            "principal": PRINCIPAL,
            "scopes": maybe(_SCOPES),
            "expires_at": maybe(INSTANT),
            "labels": maybe(_LABELS),
        },
        required=("principal",),
    ),
    "KeyChanges": asked({"scopes": _SCOPES, "expires_at": maybe(INSTANT), "disabled": YES_OR_NO, "labels": _LABELS}),
    "Rotation": asked({"overlap_seconds": whole(0, key_fields.OVERLAP_S_MAX, key_fields.OVERLAP_S_DEFAULT)}),
    "Key": said(_KEY),
    "KeyWithText": said({**_KEY, "key": {**TEXT, "description": "the key itself; it is shown this once"}}),
    "KeyList": said(
        {
            "object": {"const": "list"},
            "keys": listed(ref("Key")),
            "has_more": YES_OR_NO,
            "next_cursor": maybe(TEXT),
        }
    ),
    "DeletedKey": said({"id": _KEY["id"], "object": {"const": "api_key.deleted"}, "deleted": {"const": True}}),
    "Alive": said({"status": {"const": "alive"}}),
    "Readiness": said({"status": one_of(*_STATES), **_STATE}),
    "Health": said(
        {"status": one_of("healthy", "degraded"), **_STATE, "service": {"const": "baton"}, "state": one_of(*_STATES)}
    ),
    "Version": said({"service": {"const": "baton"}, "version": TEXT, "api_version": {"const": "v1"}}),
    "Error": said(
        {
            "error": said(
                {
                    "message": {**TEXT, "description": "for people"},
                    "type": one_of(
                        *("invalid_request_error", "authentication_error", "permission_error", "not_found_error"),
                        *("conflict_error", "rate_limit_error", "server_error"),
                    ),
                    "param": maybe({**TEXT, "description": "the field, parameter or header at fault"}),
                    "code": {**one_of(*sorted(CODES)), "description": "for programs; stable"},
                }
            )
        }
    ),
}
"""By name, in the order of the document."""
