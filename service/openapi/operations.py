"""The table of operations: every method of every path, and what may be sent to it and come back.

The order is that of the documents. What every operation has is added in document.py: ``X-Request-Id``, the errors of
`ANYWHERE`, the headers of every error. ``GET`` answers HEAD too, which is not listed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from service import archive
from service.openapi.schemas import IMPORTED_NAME, METADATA, PRINCIPAL, TEXT, Schema, one_or_another, ref, whole

Content = Mapping[str, Schema]


@dataclass(frozen=True, slots=True)
class Answer:
    """What an operation answers unless it fails with an error.

    Attributes:
        status, what: the status, and half a sentence about it.
        content: the body by media type.
        headers: of ours, always or where they apply.
    """

    status: int
    what: str
    content: Content
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Query:
    """A parameter of the query string."""

    name: str
    schema: Schema
    meaning: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path.

    Attributes:
        id: for programs that are generated from the document.
        method, path: as the route has them.
        summary, details: half a sentence, and what else there is to say.
        answers: at least one.
        errors: codes of `errors.CODES`.
        body: name of the schema of the request's body, "" if it has none.
        lines: media type of JSON lines that the body may be instead, "" if it may not.
        headers: of ours, in a request.
        query: parameters of the query string.
        error_headers: of ours, where they apply, in an error.
        error_shapes: names of the schemas of an error, one for each dialect that the operation is spoken in.
    """

    id: str
    method: str
    path: str
    summary: str
    details: str = ""
    answers: tuple[Answer, ...] = ()
    errors: tuple[str, ...] = ()
    body: str = ""
    lines: str = ""
    headers: tuple[str, ...] = ()
    query: tuple[Query, ...] = ()
    error_headers: tuple[str, ...] = ()
    error_shapes: tuple[str, ...] = ("Error",)


def _json(*schemas: str) -> Content:
    """A body of one of these schemas."""
    return {"application/json": one_or_another([ref(name) for name in schemas])}


def _events(*kinds: Schema) -> Content:
    """A stream of server-sent events; ``x-events`` is what is in their data."""
    return {"text/event-stream": {"type": "string", "x-events": {"oneOf": list(kinds)}}}


_CHAT_EVENTS: Final = (ref("ChatCompletionChunk"), ref("Error"), {"const": "[DONE]"})
_ANTHROPIC_EVENT: Final = ref("AnthropicEvent")


ANYWHERE: Final = ("invalid_http", "headers_too_large", "body_timeout", "internal_error")
"""Codes of any operation."""

_BODY: Final = ("invalid_json", "invalid_value", "unknown_field", "request_too_large", "overloaded", "draining")
_STORE: Final = ("store_unavailable", "overloaded", "draining")
_SESSION: Final = ("invalid_session_id", "session_not_found", *_STORE)
_APPENDED: Final = (
    *(
        "history_moved",
        "idempotency_key_reused",
        "max_turns_reached",
        "session_corrupt",
        "session_not_saved",
        "session_save_unknown",
        "tool_call_closed",
        "turn_in_progress",
    ),
)
_CLAUDE: Final = (
    *(
        "model_not_found",
        "thinking_refused",
        "upstream_invalid_request",
        "upstream_overloaded",
        "upstream_rate_limited",
    ),
    *("upstream_refused", "upstream_timeout", "upstream_unavailable", "draining"),
)
_TURN: Final = (
    *_APPENDED,
    "role_too_small",
    *(
        "history_mismatch",
        "prefix_changed",
        "turn_cut_short",
        "turn_rewound",
        "session_exists",
        "session_id_conflict",
        "sessions_full",
        "turn_superseded",
    ),
)
_ASKED: Final = ("context_length_exceeded", "turn_interrupted", "turn_timeout", "unsupported")
_ANSWERED: Final = ("upstream_nonsense", "upstream_unknown")

_TAKEN: Final = (
    *("X-Session-Id", "X-Session-Mode", "X-Session-Input", "X-Session-Prefix"),
    *("X-Session-On-Conflict", "X-Session-On-Disconnect", "X-Expect-Turn", "Idempotency-Key"),
    "X-Stainless-Retry-Count",
)
_TURN_HEADERS: Final = ("X-Session-Id", "X-Session-State", "X-Turn-Id", "X-Baton-Context", "X-Baton-Ignored")
_AS_SEEN: Final = ("X-Session-Id", "ETag")

CHAT: Final = (
    Operation(
        "createChatCompletion",
        "POST",
        "/v1/chat/completions",
        "a turn, in OpenAI's shapes",
        "with or without a session, streamed or not",
        body="ChatCompletionRequest",
        headers=_TAKEN,
        answers=(
            Answer(
                200,
                "the answer; as chunks if `stream` is true",
                {**_json("ChatCompletion"), **_events(*_CHAT_EVENTS)},
                _TURN_HEADERS,
            ),
        ),
        errors=(*_BODY, "missing_value", *_SESSION, *_TURN, *_ASKED, *_ANSWERED, *_CLAUDE),
        error_headers=_TURN_HEADERS,
    ),
)

MESSAGES: Final = (
    Operation(
        "createMessage",
        "POST",
        "/v1/messages",
        "a turn, in Anthropic's shapes",
        "with or without a session, streamed or not; without one the request is passed on to Claude as it is",
        body="MessagesRequest",
        headers=(*_TAKEN, "anthropic-version", "anthropic-beta"),
        answers=(
            Answer(
                200,
                "the answer; as events if `stream` is true",
                {
                    **_json("AnthropicMessage"),
                    "text/event-stream": {"type": "string", "x-events": ref("AnthropicEvent")},
                },
                (*_TURN_HEADERS, "request-id"),
            ),
        ),
        errors=(
            *_BODY,
            "missing_value",
            "thread_unsupported_request",
            *_SESSION,
            *_TURN,
            *_ASKED,
            *_ANSWERED,
            *_CLAUDE,
        ),
        error_headers=(*_TURN_HEADERS, "request-id"),
        error_shapes=("AnthropicError",),
    ),
    Operation(
        "countTokens",
        "POST",
        "/v1/messages/count_tokens",
        "how many tokens a request would have",
        "with a session, how many its next turn would have; nothing is begun or changed",
        body="CountTokensRequest",
        headers=("X-Session-Id", "X-Session-Mode", "X-Session-Input", "anthropic-version", "anthropic-beta"),
        answers=(Answer(200, "the number", _json("TokenCount"), ("X-Baton-Ignored", "request-id")),),
        errors=(
            *(*_BODY, "missing_value", *_SESSION, *_CLAUDE, "context_length_exceeded", "thread_unsupported_request"),
            *("history_mismatch", "session_exists", "tool_call_closed", "turn_interrupted", "turn_timeout"),
            "upstream_nonsense",
        ),
        error_headers=("request-id",),
        error_shapes=("AnthropicError",),
    ),
)

SESSIONS: Final = (
    Operation(
        "createSession",
        "POST",
        "/v1/sessions",
        "makes a session",
        body="NewSession",
        headers=("Idempotency-Key",),
        answers=(
            Answer(201, "the session", _json("Session"), _AS_SEEN),
            Answer(200, "the session, which the same request has made before", _json("Session"), _AS_SEEN),
        ),
        errors=(
            *(*_BODY, "missing_value", *_STORE),
            *("idempotency_key_reused", "invalid_session_id", "session_exists", "sessions_full"),
        ),
    ),
    Operation(
        "listSessions",
        "GET",
        "/v1/sessions",
        "the caller's sessions and those shared with it, last accessed first",
        "a filtered page may be short, or empty, and still have a next one",
        query=(
            Query("limit", whole(1, 100, 20), "how many at most"),
            Query("cursor", TEXT, "`next_cursor` of the page before, with the same filters, within a day"),
            Query("title_prefix", TEXT, "sessions whose title begins so"),
            Query("metadata", METADATA, "sessions whose metadata have all of these: `metadata[key]=value`"),
        ),
        answers=(Answer(200, "a page of them", _json("SessionList")),),
        errors=(*_STORE, "invalid_value", "unknown_field"),
    ),
    Operation(
        "getSessionStats",
        "GET",
        "/v1/sessions/stats",
        "exact counts of the caller's own sessions; of everybody's for an administrator who acts for nobody",
        answers=(Answer(200, "the counts", _json("Stats")),),
        errors=_STORE,
    ),
    Operation(
        "getSession",
        "GET",
        "/v1/sessions/{session}",
        "a session",
        "its time to live starts anew",
        answers=(Answer(200, "the session", _json("Session"), _AS_SEEN),),
        errors=_SESSION,
    ),
    Operation(
        "updateSession",
        "PATCH",
        "/v1/sessions/{session}",
        "changes a session",
        "holds from the next turn",
        body="SessionChanges",
        headers=("If-Match",),
        answers=(Answer(200, "the session as it is now", _json("Session"), _AS_SEEN),),
        errors=(*_BODY, *_SESSION, "revision_conflict", "role_too_small"),
        error_headers=("ETag",),
    ),
    Operation(
        "deleteSession",
        "DELETE",
        "/v1/sessions/{session}",
        "deletes a session",
        "with all it holds; a running turn of it ends",
        answers=(Answer(200, "it is gone", _json("Deleted")),),
        errors=(*_SESSION, "role_too_small"),
    ),
    Operation(
        "listMessages",
        "GET",
        "/v1/sessions/{session}/messages",
        "the messages of a session as Claude's API has them, oldest first",
        "a page ends at 8 MiB, so page on by what came",
        query=(
            Query("offset", whole(0, 10_000_000, 0), "how many to pass over"),
            Query("limit", whole(1, 100, 20), "how many at most"),
        ),
        answers=(Answer(200, "a page of them", _json("MessageList")),),
        errors=(*_SESSION, "session_corrupt", "invalid_value"),
    ),
    Operation(
        "appendMessages",
        "POST",
        "/v1/sessions/{session}/messages",
        "appends messages to a session without asking Claude",
        body="NewMessages",
        headers=("X-Session-On-Conflict", "X-Expect-Turn", "Idempotency-Key"),
        answers=(Answer(200, "they are part of the history", _json("Appended")),),
        errors=(*_BODY, "missing_value", "unsupported", *_SESSION, *_APPENDED, "role_too_small"),
        error_headers=("X-Turn-Id",),
    ),
    Operation(
        "compactSession",
        "POST",
        "/v1/sessions/{session}/compact",
        "has all but the last two turns summarized, or as much of them as one summary can be made of",
        "off the request path: the session's `checkpoint` tells when it is there. Nothing is lost, the messages stay "
        "readable; Claude is sent the summary in their place",
        answers=(
            Answer(202, "a checkpoint is being made", _json("Compaction"), ("X-Session-Id",)),
            Answer(200, "the checkpoint covers all that it may", _json("Compaction"), ("X-Session-Id",)),
        ),
        errors=(*_SESSION, "overloaded", "request_too_large", "role_too_small", "session_corrupt", "turn_in_progress"),
    ),
)

TRANSFERS: Final = (
    Operation(
        "forkSession",
        "POST",
        "/v1/sessions/{session}/fork",
        "makes a new session that goes on from a message of this one",
        "a copy of all messages, unless `message_count` or `turn_id` say where it ends; it has no name",
        body="Fork",
        headers=("X-Expect-Turn", "Idempotency-Key"),
        answers=(
            Answer(201, "the new session", _json("Session"), _AS_SEEN),
            Answer(200, "the new session, which the same request has made before", _json("Session"), _AS_SEEN),
        ),
        errors=(
            *(*_BODY, *_SESSION, "history_moved", "max_turns_reached", "session_corrupt", "idempotency_key_reused"),
            *("sessions_full", "turn_in_progress", "turn_not_found", "turn_rewound"),
        ),
        error_headers=("X-Turn-Id",),
    ),
    Operation(
        "exportSession",
        "GET",
        "/v1/sessions/{session}/export",
        "the whole session as JSON lines",
        "its last line is `end`; without that it is not whole",
        answers=(
            Answer(200, "session, turns and messages", {archive.MEDIA_TYPE: {"type": "string"}}, ("X-Session-Id",)),
        ),
        errors=(*_SESSION, "session_corrupt"),
    ),
    Operation(
        "importSession",
        "POST",
        "/v1/sessions/import",
        "makes a session out of an exported one, or out of a list of messages",
        "JSON lines as they were exported, or a JSON object with messages as chat completions (`dialect`: `chat`) or "
        "Anthropic's API (`messages`) have them; it gets a new id, and its name unless the query says another",
        body="Import",
        lines=archive.MEDIA_TYPE,
        headers=("Idempotency-Key",),
        query=(Query("name", IMPORTED_NAME, "the session's name; empty for none"),),
        answers=(
            Answer(201, "the session", _json("Session"), (*_AS_SEEN, "X-Baton-Ignored")),
            Answer(
                200,
                "the session, which the same request has made before",
                _json("Session"),
                (*_AS_SEEN, "X-Baton-Ignored"),
            ),
        ),
        errors=(
            *(*_BODY, "missing_value", "unsupported", *_STORE, "tool_call_closed"),
            *("idempotency_key_reused", "invalid_session_id", "session_exists", "sessions_full"),
        ),
    ),
)

TURNS: Final = (
    Operation(
        "listTurns",
        "GET",
        "/v1/sessions/{session}/turns",
        "the turns of a session, newest first",
        query=(
            Query("limit", whole(1, 100, 20), "how many at most"),
            Query("before", whole(1, 999_999_999_999), "turns with lower numbers than this"),
        ),
        answers=(Answer(200, "a page of them", _json("TurnList")),),
        errors=(*_SESSION, "invalid_value"),
    ),
    Operation(
        "getTurn",
        "GET",
        "/v1/sessions/{session}/turns/{turn}",
        "a turn of a session by number or id, with its messages",
        answers=(Answer(200, "the turn", _json("TurnDetail")),),
        errors=(*_SESSION, "session_corrupt", "turn_not_found"),
    ),
    Operation(
        "cancelTurn",
        "POST",
        "/v1/sessions/{session}/turns/{turn}/cancel",
        "stops a turn, whichever replica runs it",
        "of a streamed one, what was shown is kept",
        answers=(
            Answer(202, "the turn, which was asked to stop", _json("TurnCancel")),
            Answer(200, "the turn, which has ended", _json("TurnCancel")),
        ),
        errors=(*_SESSION, "turn_not_found", "role_too_small"),
    ),
    Operation(
        "followTurn",
        "GET",
        "/v1/sessions/{session}/turns/{turn}/events",
        "the events of a streamed turn as its caller is shown them",
        "from the first, or from where a connection broke; kept for five minutes after its end",
        headers=("Last-Event-ID",),
        answers=(Answer(200, "its events", _events(*_CHAT_EVENTS, _ANTHROPIC_EVENT), ("X-Session-Id", "X-Turn-Id")),),
        errors=(
            *(*_SESSION, "turn_not_found", "events_not_found", "invalid_value"),
            *("overloaded", "turn_interrupted"),
        ),
    ),
)

_BOTH: Final = "in OpenAI's shape; in Anthropic's, if there is an `anthropic-version`"

MODELS: Final = (
    Operation(
        "listModels",
        "GET",
        "/v1/models",
        "Claude's models, and this deployment's aliases",
        f"{_BOTH}; only there are pages",
        headers=("anthropic-version",),
        query=(
            Query("limit", whole(1, 1000, 20), "how many at most"),
            Query("after_id", TEXT, "models behind this one"),
            Query("before_id", TEXT, "models ahead of this one"),
        ),
        answers=(Answer(200, "a page of them", _json("ModelList", "ModelInfoList"), ("request-id",)),),
        errors=(*_CLAUDE, "upstream_nonsense", "invalid_value", "unsupported"),
        error_headers=("request-id",),
        error_shapes=("Error", "AnthropicError"),
    ),
    Operation(
        "getModel",
        "GET",
        "/v1/models/{model}",
        "one of the models",
        _BOTH,
        headers=("anthropic-version",),
        answers=(Answer(200, "the model", _json("Model", "ModelInfo"), ("request-id",)),),
        errors=(*_CLAUDE, "upstream_nonsense"),
        error_headers=("request-id",),
        error_shapes=("Error", "AnthropicError"),
    ),
)

_KEY: Final = ("key_not_found", *_STORE)

ADMIN: Final = (
    Operation(
        "listKeys",
        "GET",
        "/v1/admin/keys",
        "the keys of callers, those of one principal together",
        query=(
            Query("limit", whole(1, 100, 20), "how many at most"),
            Query("cursor", TEXT, "`next_cursor` of the page before"),
            Query("principal", PRINCIPAL, "keys of this one only"),
        ),
        answers=(Answer(200, "a page of them", _json("KeyList")),),
        errors=(*_STORE, "invalid_value"),
    ),
    Operation(
        "createKey",
        "POST",
        "/v1/admin/keys",
        "makes a key",
        "its text is in this answer and nowhere else",
        body="NewKey",
        answers=(Answer(201, "the key", _json("KeyWithText")),),
        errors=(*_BODY, "missing_value", *_STORE),
    ),
    Operation(
        "getKey",
        "GET",
        "/v1/admin/keys/{key}",
        "a key, without its text",
        answers=(Answer(200, "the key", _json("Key")),),
        errors=_KEY,
    ),
    Operation(
        "updateKey",
        "PATCH",
        "/v1/admin/keys/{key}",
        "changes what a key may do, or stops it",
        "holds everywhere within seconds, for what runs already, too",
        body="KeyChanges",
        answers=(Answer(200, "the key as it is now", _json("Key")),),
        errors=(*_BODY, *_KEY),
    ),
    Operation(
        "deleteKey",
        "DELETE",
        "/v1/admin/keys/{key}",
        "deletes a key",
        "the sessions of its principal stay",
        answers=(Answer(200, "it is gone", _json("DeletedKey")),),
        errors=_KEY,
    ),
    Operation(
        "rotateKey",
        "POST",
        "/v1/admin/keys/{key}/rotate",
        "gives a key another text",
        "the one before stays good for the overlap; the one before that ends at once",
        body="Rotation",
        answers=(Answer(200, "the key, with its new text", _json("KeyWithText")),),
        errors=(*_BODY, *_KEY),
    ),
)

OPERATION: Final = (
    Operation(
        "showPage",
        "GET",
        "/",
        "a page for people",
        "what this is, its state, a curl to try",
        answers=(Answer(200, "the page", {"text/html": TEXT}),),
    ),
    Operation(
        "getHealth",
        "GET",
        "/health",
        "the state of this replica, for people",
        answers=(Answer(200, "its state, healthy or not", _json("Health")),),
    ),
    Operation(
        "isAlive",
        "GET",
        "/livez",
        "whether the process answers",
        answers=(Answer(200, "it does", _json("Alive")),),
    ),
    Operation(
        "isReady",
        "GET",
        "/readyz",
        "whether this replica should get work",
        answers=(Answer(200, "it should", _json("Readiness")), Answer(503, "it should not", _json("Readiness"))),
    ),
    Operation(
        "getMetrics",
        "GET",
        "/metrics",
        "numbers for Prometheus",
        answers=(Answer(200, "its text format", {"text/plain": TEXT}),),
    ),
    Operation(
        "getVersion",
        "GET",
        "/version",
        "which version this is",
        answers=(Answer(200, "the version", _json("Version")),),
    ),
    Operation(
        "getDocument",
        "GET",
        "/openapi.json",
        "this interface as an OpenAPI document",
        answers=(Answer(200, "the document", {"application/json": {"type": "object", "additionalProperties": True}}),),
    ),
)

SHARES: Final = (
    Operation(
        "listShares",
        "GET",
        "/v1/sessions/{session}/shares",
        "who a session is shared with",
        "for its owner and admins",
        answers=(Answer(200, "all shares, by principal", _json("ShareList")),),
        errors=(*_SESSION, "role_too_small"),
    ),
    Operation(
        "getShare",
        "GET",
        "/v1/sessions/{session}/shares/{principal}",
        "what a session is shared with one principal for",
        "for its owner and admins; anybody may ask for its own",
        answers=(Answer(200, "the share", _json("Share")),),
        errors=(*_SESSION, "invalid_value", "role_too_small", "share_not_found"),
    ),
    Operation(
        "putShare",
        "PUT",
        "/v1/sessions/{session}/shares/{principal}",
        "shares a session, or changes the role that it is shared in",
        "for its owner and admins. A viewer reads and follows; a writer also asks for turns, appends and cancels; an "
        "admin also patches, shares and deletes. Any well-formed principal will do, known or not",
        body="NewShare",
        answers=(
            Answer(200, "the share, changed or as it was", _json("Share")),
            Answer(201, "the new share", _json("Share")),
        ),
        errors=(*_BODY, *_SESSION, "missing_value", "role_too_small", "shares_full"),
    ),
    Operation(
        "deleteShare",
        "DELETE",
        "/v1/sessions/{session}/shares/{principal}",
        "shares a session no more",
        "for its owner and admins; anybody may give up its own. Holds from the next request, and for streams at once",
        answers=(Answer(200, "it is gone", _json("ShareDeleted")),),
        errors=(*_SESSION, "invalid_value", "role_too_small", "share_not_found"),
    ),
)

OPERATIONS: Final[dict[str, tuple[Operation, ...]]] = {
    "chat": CHAT,
    "messages": MESSAGES,
    "sessions": (*SESSIONS, *TRANSFERS),
    "shares": SHARES,
    "turns": TURNS,
    "models": MODELS,
    "admin": ADMIN,
    "operation": OPERATION,
}
"""All of them, by the tag that documents group them under."""
