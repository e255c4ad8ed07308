"""Errors as the Messages API shows them: one body shape, one status per type."""

import secrets
from typing import Any

import orjson

STATUS_BY_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


class ApiError(Exception):
    """A request that is answered with an error instead of a message.

    Args:
        kind: the error type, one of `STATUS_BY_TYPE`.
        message: shown to the caller; names the offending path first where there is one.
        status: the HTTP status where it is not the type's own (a wrong method is 405).
        headers: further response headers, such as `retry-after`.
    """

    def __init__(
        self, kind: str, message: str, *, status: int | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.status = status if status is not None else STATUS_BY_TYPE[kind]
        self.headers = headers or {}

    def body(self, request_id: str) -> bytes:
        """Render the JSON body; the same object is the data of a stream's `error` event."""
        return orjson.dumps(error_object(self.kind, self.message, request_id))


def error_object(kind: str, message: str, request_id: str) -> dict[str, Any]:
    """Build `{type: error, error: {type, message}, request_id}`."""
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}


def invalid(message: str) -> ApiError:
    """Make the commonest error: 400 `invalid_request_error`."""
    return ApiError("invalid_request_error", message)


def new_request_id() -> str:
    """Make the value of the `request-id` header that every answer carries."""
    return f"req_{secrets.token_hex(12)}"
