"""How each dialect says an error, as a whole body or as the last word of a stream; and who speaks which."""

from typing import Final

import orjson
from starlette.types import Scope

from service.errors import BatonError

_OPENAI_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}
ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    502: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""By status; ``invalid_request_error`` is that of any other."""


def openai_error(error: BatonError) -> bytes:
    """``{"error": {message, type, param, code}}`` (OpenAI API reference, "Error codes")."""
    kind = _OPENAI_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    body = {"message": error.message, "type": kind, "param": error.param, "code": error.code}
    return orjson.dumps({"error": body})


def anthropic_error(error: BatonError, request_id: str | None = None) -> bytes:
    """``{"type": "error", "error": {type, message}, "request_id"}`` (Anthropic API reference, "Errors").

    What Claude itself said is told as it said it.
    """
    if error.claude_said is not None:
        return error.claude_said[1]
    kind = ANTHROPIC_TYPES.get(error.status, "invalid_request_error")
    body = {"type": kind, "message": error.message, "details": {"error_code": error.code}}
    return orjson.dumps({"type": "error", "error": body, "request_id": request_id})


def anthropic_status(error: BatonError) -> int:
    """Claude's own status where it was Claude who refused: its 529 has no other meaning to its clients."""
    return error.status if error.claude_said is None else error.claude_said[0]


def is_anthropic(scope: Scope) -> bool:
    """Whether a request speaks Anthropic's dialect, and is told errors in its shape; everybody else speaks OpenAI's.

    It shows in the path; on the paths that both APIs have, in the header that Anthropic's demands.
    """
    path: str = scope["path"]
    if path == "/v1/models" or path.startswith("/v1/models/"):
        return any(name == b"anthropic-version" for name, _ in scope["headers"])
    return path == "/v1/messages" or path.startswith("/v1/messages/")
