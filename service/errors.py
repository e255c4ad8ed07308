"""The one error that callers are told, and the table of its codes.

    400  what the caller can fix            invalid_json, invalid_value, missing_value, unknown_field, unsupported, …
    401  the caller's credential            missing_api_key, invalid_api_key, …
    403  the caller's scope or role         insufficient_scope, role_too_small, origin_refused
    404  not there, or not theirs           session_not_found, share_not_found, model_not_found, route_not_found
    405  method_not_allowed
    408  body_timeout
    409  conflict with another turn         turn_in_progress, turn_superseded, history_moved, session_exists, …
    410  turn_rewound
    413  request_too_large
    422  idempotency_key_reused
    429  limits                             upstream_rate_limited
    431  headers_too_large
    500  internal_error
    502  Claude refused us or made no sense upstream_refused, upstream_nonsense
    503  try again                          store_unavailable, session_not_saved, session_save_unknown, upstream_…, …
    504  deadline                           upstream_timeout, turn_timeout

Raised anywhere, rendered in one place (dialects/errors.py). Messages are written for the caller: they name the
parameter and what to do, and never hold a cause, a key or another's content. The cause is chained and logged.
``x-should-retry`` tells the SDKs what the status alone cannot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from storage.results import StoreBusy, StoreUnavailable

Choice = TypeVar("Choice", bound=str)


@dataclass(frozen=True, slots=True)
class Code:
    """What a code means everywhere: HTTP status, whether the same request may be sent again, a sentence."""

    status: int
    retry: bool
    meaning: str


CODES: Final[Mapping[str, Code]] = {
    "invalid_http": Code(400, False, "The request is not valid HTTP/1.1; the connection is closed."),
    "invalid_json": Code(400, False, "The body is not JSON, or not UTF-8."),
    "invalid_value": Code(400, False, "A field or header has a value it cannot have."),
    "missing_value": Code(400, False, "A required field is absent."),
    "unknown_field": Code(400, False, "A field that this API does not have."),
    "unsupported": Code(400, False, "A parameter whose loss would change the answer's meaning; Baton refuses it."),
    "thread_unsupported_request": Code(
        400, False, "A session takes no `thread`. Claude's own code: Anthropic's tool runners send everything instead."
    ),
    "invalid_session_id": Code(400, False, "Neither an issued id nor a permitted name."),
    "session_id_conflict": Code(400, False, "Body and header name different sessions."),
    "max_turns_reached": Code(400, False, "The session may have no further turn."),
    "context_length_exceeded": Code(400, False, "The conversation no longer fits the model's window."),
    "thinking_refused": Code(400, False, "Claude refused the signature of a thinking block."),
    "upstream_invalid_request": Code(400, False, "Claude refused the request as it stands."),
    "role_too_small": Code(403, False, "The session is shared with you, but in a role that may not do this."),
    "session_not_found": Code(
        404, False, "Unknown, expired, or another owner's session that is not shared with you: they look alike."
    ),
    "share_not_found": Code(404, False, "The session is not shared with that principal."),
    "missing_api_key": Code(401, False, "No key was shown, and one is needed."),
    "malformed_api_key": Code(401, False, "What was shown cannot be a key: cut, mistyped, or somebody else's."),
    "invalid_api_key": Code(401, False, "The key is not known."),
    "expired_api_key": Code(401, False, "The key has expired."),
    "disabled_api_key": Code(401, False, "The key is disabled."),
    "revoked_api_key": Code(
        401, False, "The key was disabled, deleted or changed, or has expired, while the request ran."
    ),
    "insufficient_scope": Code(403, False, "The key has not the scope that this needs; the message names it."),
    "origin_refused": Code(
        403, False, "Without keys: the request comes from another site's page, or is addressed to another host."
    ),
    "key_not_found": Code(404, False, "There is no such key."),
    "turn_not_found": Code(404, False, "The session has no such turn."),
    "events_not_found": Code(
        404, False, "The turn's events are not kept: it was not streamed, ended over five minutes ago, or was too long."
    ),
    "model_not_found": Code(404, False, "Claude knows no such model."),
    "route_not_found": Code(404, False, "No such path."),
    "method_not_allowed": Code(405, False, "The path exists, the method does not."),
    "body_timeout": Code(408, True, "The body, or the headers, did not arrive in time."),
    "session_corrupt": Code(409, False, "Redis has lost a part of the session; it can only be deleted."),
    "turn_in_progress": Code(409, True, "Another turn of this session is running."),
    "turn_superseded": Code(409, False, "Another turn of this session went ahead; this one was not stored."),
    "turn_cut_short": Code(409, False, "The request was sent before, stored incomplete, and other turns followed."),
    "history_mismatch": Code(409, False, "The resent conversation does not begin as the stored one does."),
    "history_moved": Code(409, False, "The session's last turn is not the one that X-Expect-Turn names."),
    "tool_call_closed": Code(
        409, False, "The tool call has a result already, or the turn after it went on without one."
    ),
    "prefix_changed": Code(409, False, "The turn would begin a new epoch, and `X-Session-Prefix: strict` wants none."),
    "shares_full": Code(
        409, False, "A bound on shares is reached: 100 principals a session, 1,000 sessions of a bucket a principal."
    ),
    "session_exists": Code(409, False, "The session exists already."),
    "revision_conflict": Code(409, False, "The session was changed since the revision that If-Match names."),
    "turn_rewound": Code(410, False, "The turn was stored and is no longer part of the history: it was rewound."),
    "request_too_large": Code(
        413, False, "The body is larger than BATON_BODY_BYTES_MAX, or than Claude accepts, or holds a million values."
    ),
    "headers_too_large": Code(431, False, "Request line and headers are larger than BATON_HEADER_BYTES_MAX."),
    "idempotency_key_reused": Code(422, False, "The Idempotency-Key belongs to another request of this session."),
    "sessions_full": Code(429, True, "A cap on sessions is reached and every session that could go is busy."),
    "upstream_rate_limited": Code(429, True, "Claude's rate limit."),
    "internal_error": Code(500, False, "A fault of Baton's; the request id finds it in the log."),
    "upstream_refused": Code(502, False, "Claude refused Baton's own credential or account."),
    "upstream_unknown": Code(
        502, False, "Claude's answer holds a kind of content (of a beta, perhaps) that a session cannot keep."
    ),
    "upstream_nonsense": Code(502, True, "Claude's answer was not what its API promises, or stopped short."),
    "store_unavailable": Code(503, True, "Redis is not available; nothing was begun and Claude was not called."),
    "session_not_saved": Code(503, True, "The answer could not be stored; the session is as it was before."),
    "session_save_unknown": Code(503, False, "Whether the answer was stored is not known; ask about the turn id."),
    "turn_interrupted": Code(503, True, "The turn was cancelled or the replica is shutting down."),
    "overloaded": Code(
        503, True, "This replica has all the turns, request bodies or connections to Redis in use that it may have."
    ),
    "draining": Code(503, True, "This replica is shutting down; another will answer."),
    "upstream_overloaded": Code(503, True, "Claude is overloaded."),
    "upstream_unavailable": Code(503, True, "Claude failed or could not be reached."),
    "upstream_timeout": Code(504, True, "Claude did not answer in time."),
    "turn_timeout": Code(504, False, "The turn did not end within BATON_TURN_DEADLINE_S."),
}


class BatonError(Exception):
    """An error as a caller is told it.

    Args:
        code: a key of `CODES`; decides status and retryability.
        message: for the caller; safe.
        param: the field or header at fault.
        retry_after_s: sent as ``Retry-After``.
        headers: further response headers (ids of the turn, for example).
        claude_said: where Claude itself refused the request: its status and body, for who speaks its language.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        claude_said: tuple[int, bytes] | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.headers: dict[str, str] = dict(headers or {})
        self.claude_said = claude_said

    @property
    def status(self) -> int:
        """HTTP status, if the response has not begun."""
        return CODES[self.code].status

    def response_headers(self) -> dict[str, str]:
        """Headers of the error response, ``x-should-retry`` and ``Retry-After`` included."""
        headers = {"x-should-retry": "true" if CODES[self.code].retry else "false", **self.headers}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(max(1, round(self.retry_after_s)))
        return headers


def chosen(header: str, given: str | None, choices: Sequence[Choice], default: Choice) -> Choice:
    """The value of a header that offers a choice; ``default`` if it is absent.

    Raises:
        BatonError: invalid_value, naming the header and the choices.
    """
    if given is None:
        return default
    for choice in choices:
        if choice == given:
            return choice
    offered = " or ".join(f"`{choice}`" for choice in choices)
    raise BatonError("invalid_value", f"{header} is {offered}.", param=header)


def internal_error() -> BatonError:
    """A fault of ours; what it was stands in the log."""
    return BatonError("internal_error", "Something went wrong in Baton; its log has the cause under this request id.")


def invalid_value(param: str, problem: str) -> BatonError:
    """A field has a value it cannot have; ``problem`` goes on from its name."""
    return BatonError("invalid_value", f"`{param}` {problem}.", param=param)


def sessions_full() -> BatonError:
    """A session could not be created: the cap is reached, and nothing may go."""
    return BatonError(
        "sessions_full", "There is no room for another session, and all that could go are busy.", retry_after_s=1
    )


def session_exists(*, param: str = "X-Session-Mode") -> BatonError:
    """A session that must be new is there; ``param`` says who wanted it to be new."""
    return BatonError("session_exists", "There is a session of this name already.", param=param)


def key_reused(turn_id: str) -> BatonError:
    """The key of an earlier turn came with another request."""
    return BatonError(
        "idempotency_key_reused",
        f"This Idempotency-Key belongs to turn {turn_id}, which another request asked for.",
        param="Idempotency-Key",
        headers={"x-turn-id": turn_id},
    )


def history_moved(head: str) -> BatonError:
    """The session's head is another than the caller expects; a new session's is no turn's."""
    if not head.startswith("turn_"):
        return BatonError("history_moved", "The session has no turn.", param="X-Expect-Turn")
    return BatonError(
        "history_moved", f"The session's last turn is {head}.", param="X-Expect-Turn", headers={"x-turn-id": head}
    )


def events_not_found() -> BatonError:
    """The log of a turn does not hold its events any more, or never held them."""
    return BatonError(
        "events_not_found",
        "The events of this turn are not kept: it was not streamed, ended over five minutes ago, or was too long. The "
        "turn itself tells its answer.",
        param="turn",
    )


def session_not_found() -> BatonError:
    """Unknown, expired, deleted or another's: nothing tells them apart."""
    return BatonError("session_not_found", "There is no such session, or it has expired.", param="session_id")


def role_too_small(role: str, needed: str) -> BatonError:
    """The session is shared with the caller, in a role that may not do this."""
    return BatonError(
        "role_too_small", f"The session is shared with you as {role}; this takes the role {needed}.", param="session_id"
    )


def history_mismatch() -> BatonError:
    """Nothing of a resent conversation can be recognised."""
    return BatonError(
        "history_mismatch",
        "The first message is not the session's first: a window of the conversation, or another one. To store the "
        "messages as new ones, say X-Session-Input: delta.",
        param="messages",
    )


def prefix_changed(reasons: Sequence[str]) -> BatonError:
    """What comes before the new messages would be another than before, and the caller is strict about it."""
    if "refused" in reasons:
        problem = "Claude refused the signature of a stored thinking block; going on would leave thinking out"
    else:
        problem = f"Not the session's: {', '.join(reasons)}; going on would send another prefix, without its thinking"
    return BatonError("prefix_changed", f"{problem} (X-Session-Prefix: strict).", param="X-Session-Prefix")


def session_corrupt() -> BatonError:
    """Redis evicted a part of the session, which it must not be allowed to (``maxmemory-policy``)."""
    return BatonError("session_corrupt", "The store has lost a part of this session: delete it and begin anew.")


CLAUDE_BYTES_MAX: Final = 32 * 1_048_576
"""That Claude accepts in one request."""


def conversation_too_large(size_bytes: int) -> BatonError:
    """What is refused here, because Claude would refuse it once it had read all of it."""
    return BatonError(
        "request_too_large",
        f"The conversation with its attachments is larger than Claude accepts in one request: {size_bytes} bytes, and "
        f"{CLAUDE_BYTES_MAX} are the most.",
        param="messages",
    )


def store_unavailable(cause: StoreUnavailable) -> BatonError:
    """The store did not answer, or could not be asked; nothing was begun."""
    if isinstance(cause, StoreBusy):
        message = "All connections of this replica to the session store are in use."
        return BatonError("overloaded", message, retry_after_s=1)
    return BatonError("store_unavailable", "The session store is not available.", retry_after_s=1)
