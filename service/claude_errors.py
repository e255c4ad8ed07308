"""Claude's errors, as callers are told them; pure.

A caller of any dialect is told one of Baton's own codes. Who speaks Claude's language is told what Claude said itself
(`BatonError.claude_said`), unless it concerns this service's account: that is nobody else's business, and no caller
could mend it. What is not in the form of Claude's errors was said by somebody on the way.

Source: Anthropic API reference, "Errors".
"""

from typing import Any, Final

import orjson

from service.errors import BatonError
from service.events import Event

RETRIED: Final = frozenset({408, 409, 429, 500, 502, 503, 504, 529})
"""Statuses of which another attempt may do better."""

_OF_OUR_ACCOUNT: Final = frozenset(
    {
        *("organization_on_hold", "contract_spend_limit_reached", "enforced_spend_limit_reached"),
        "ramp_limit_exceeded",
    }
)
_BY_TYPE: Final = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}


def told(status: int, body: bytes) -> BatonError:
    """Claude's error, as callers of any dialect are told it; and itself, for those who speak Claude's language."""
    if status in (401, 402, 403):
        return _refused()
    error = _error_of(body)
    if error is None:
        # Not Claude's own words: somebody on the way has answered.
        if status >= 500 or status in (408, 413, 429):
            return _translated(status, "")
        return BatonError("upstream_nonsense", "Claude's answer is not one of Claude's API.")
    message = str(error.get("message") or "")
    if _is_ours(error, message):
        return _refused()
    translated = _translated(status, message)
    translated.claude_said = status, body
    return translated


def _error_of(body: bytes) -> dict[str, Any] | None:
    """What an error body of Claude's API tells; None if it is none."""
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    is_error = isinstance(said, dict) and said.get("type") == "error" and isinstance(said.get("error"), dict)
    return said["error"] if is_error else None


def _refused() -> BatonError:
    return BatonError("upstream_refused", "Claude refused this service's own credential or account.")


def _is_ours(error: dict[str, Any], message: str) -> bool:
    """Whether it concerns this service's own account."""
    details = error.get("details")
    code = details.get("error_code") if isinstance(details, dict) else None
    return str(code) in _OF_OUR_ACCOUNT or "credit balance is too low" in message


def _translated(status: int, message: str) -> BatonError:
    if status == 404:
        return BatonError("model_not_found", _no_such_model(message), param="model")
    if status == 413:
        return BatonError("request_too_large", "The conversation is larger than Claude accepts in one request (32 MB).")
    if status == 429:
        return BatonError("upstream_rate_limited", "Claude's rate limit is reached.")
    if status == 529:
        return BatonError("upstream_overloaded", "Claude is overloaded.")
    if status in (408, 504):
        return BatonError("upstream_timeout", "Claude did not answer in time.")
    if status == 409 or status >= 500:
        return BatonError("upstream_unavailable", "Claude failed to answer.")
    if "signature" in message and "thinking" in message:
        return BatonError("thinking_refused", f"Claude refused the request: {message}", param="messages")
    if "prompt is too long" in message:
        return BatonError("context_length_exceeded", message, param="messages")
    return BatonError("upstream_invalid_request", f"Claude refused the request: {message or status}")


def _no_such_model(message: str) -> str:
    said = f" ({message})" if message else ""
    return f"Claude knows no such model{said}. GET /v1/models lists those that there are."


def of_event(event: Event) -> tuple[int, BatonError]:
    """An ``error`` event as the status that it stands for, and what callers are told."""
    detail = event.data.get("error")
    status = _BY_TYPE.get(str(detail.get("type")), 500) if isinstance(detail, dict) else 500
    return status, told(status, event.raw)
