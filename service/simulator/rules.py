"""A request's headers and top-level fields: accepted, or refused in the words of the Messages API.

Order of judgement, as the real service appears to do it: credential, API version, body, fields, model,
conversation, size. The first fault found is the one reported. Each message begins with the path of what is
wrong (`messages.0.role: …`), because that is what callers of the real API rely on when they search their logs.

Beta features are not imitated, so their fields count as unknown: an honest 400 instead of being ignored.
"""

import math
from collections.abc import Mapping
from typing import Any

import orjson

from service.simulator.conversation import check_messages, check_text_blocks
from service.simulator.errors import ApiError, invalid
from service.simulator.models import Model, find_model
from service.simulator.tools import check_history, check_tools

API_VERSION = "2026-10-21"
BODY_BYTES_MAX = 32 * 1024 * 1024
MESSAGES_MAX = 100_000
INVALID_KEY = "sk-ant-invalid"
BYTES_PER_TOKEN = 4

SAMPLING_FIELDS = ("temperature", "top_p", "top_k")
COUNT_FIELDS = frozenset(
    {
        "cache_control",
        "messages",
        "model",
        "output_config",
        "speed",
        "system",
        "thinking",
        "tool_choice",
        "tools",
    }
)
CREATE_FIELDS = COUNT_FIELDS | {
    "container",
    "diagnostics",
    "inference_geo",
    "max_tokens",
    "metadata",
    "service_tier",
    "stop_sequences",
    "stream",
}
THINKING_TYPES = ("adaptive", "between_tools", "disabled", "enabled")


def check_headers(headers: Mapping[str, str]) -> None:
    """Check credential, then version: what every endpoint of the API asks for first.

    Args:
        headers: names in lower case.

    Raises:
        ApiError: 401 or 400.
    """
    _check_credential(headers)
    _check_version(headers)


def _check_credential(headers: Mapping[str, str]) -> None:
    """Require a key as `Authorization: Bearer` or `x-api-key`; one key stands for a bad one."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    key = bearer or headers.get("x-api-key", "").strip()
    if not key:
        raise ApiError("authentication_error", "x-api-key header is required")
    if key == INVALID_KEY:
        raise ApiError("authentication_error", "invalid x-api-key")


def _check_version(headers: Mapping[str, str]) -> None:
    version = headers.get("anthropic-version")
    if version is None:
        raise invalid("anthropic-version: header is required")
    if version != API_VERSION:
        raise invalid(f'anthropic-version: "{version}" is not a valid version; this service speaks {API_VERSION}')


def parse_body(raw: bytes) -> dict[str, Any]:
    """Parse the request body.

    Raises:
        ApiError: 400 when it is not UTF-8 JSON or not an object.
    """
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        raise invalid(f"The request body is not valid JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise invalid("The request body must be a JSON object")
    return body


def check_create(body: dict[str, Any]) -> int:
    """Judge a request to `/v1/messages`.

    Returns:
        The estimate of its input tokens.

    Raises:
        ApiError: 400, or 404 for a model that does not exist.
    """
    model = _check_fields(body, CREATE_FIELDS)
    _check_max_tokens(body, model)
    _check_stop_sequences(body.get("stop_sequences"))
    if (stream := body.get("stream")) is not None and not isinstance(stream, bool):
        raise invalid("stream: Input should be a valid boolean")
    if body.get("service_tier", "auto") not in ("auto", "standard_only"):
        raise invalid("service_tier: Input should be 'auto' or 'standard_only'")
    _check_shared(body, model)
    tokens = input_tokens(body)
    if tokens > model.input_tokens_max:
        raise invalid(f"prompt is too long: {tokens} tokens > {model.input_tokens_max} maximum")
    return tokens


def check_count(body: dict[str, Any]) -> int:
    """Judge a request to `/v1/messages/count_tokens`; it takes fewer fields than a message.

    Returns:
        The estimate of its input tokens.

    Raises:
        ApiError: 400, or 404 for a model that does not exist.
    """
    _check_shared(body, _check_fields(body, COUNT_FIELDS))
    return input_tokens(body)


def _check_fields(body: dict[str, Any], allowed: frozenset[str]) -> Model:
    """Known names only, then the model: what else is legal depends on it."""
    for name in SAMPLING_FIELDS:
        if name in body:
            raise invalid(f"{name}: sampling parameters are not accepted as of API version {API_VERSION}")
    for name in body:
        if name not in allowed:
            raise invalid(f"{name}: Extra inputs are not permitted")
    if "model" not in body:
        raise invalid("model: Field required")
    if not isinstance(body["model"], str) or not body["model"]:
        raise invalid("model: Input should be a valid string with at least 1 character")
    return find_model(body["model"])


def _check_max_tokens(body: dict[str, Any], model: Model) -> None:
    if "max_tokens" not in body:
        raise invalid("max_tokens: Field required")
    value = body["max_tokens"]
    if isinstance(value, bool) or not isinstance(value, int):
        raise invalid("max_tokens: Input should be a valid integer")
    if value < 0:
        raise invalid("max_tokens: Input should be greater than or equal to 0")
    if value > model.output_tokens_max:
        raise invalid(
            f"max_tokens: {value} > {model.output_tokens_max}, "
            f"which is the maximum allowed number of output tokens for {model.id}"
        )


def _check_stop_sequences(value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, list):
        raise invalid("stop_sequences: Input should be a valid list")
    for index, item in enumerate(value):
        if not isinstance(item, str):
            raise invalid(f"stop_sequences.{index}: Input should be a valid string")
        if not item.strip():
            raise invalid(f"stop_sequences.{index}: each stop sequence must contain non-whitespace")


def _check_shared(body: dict[str, Any], model: Model) -> None:
    """Judge what `/v1/messages` and `count_tokens` have in common."""
    if body.get("speed") not in (None, "standard", "fast"):
        raise invalid("speed: Input should be 'standard' or 'fast'")
    for name in ("cache_control", "container", "diagnostics", "metadata", "output_config"):
        value = body.get(name)
        # A container may also be named by its id.
        if value is not None and not isinstance(value, dict) and not (name == "container" and isinstance(value, str)):
            raise invalid(f"{name}: Input should be an object")
    _check_thinking(body.get("thinking"))
    check_tools(body, model)
    system = body.get("system")
    if system is not None and not isinstance(system, str):
        check_text_blocks(system, "system")
    if "messages" not in body:
        raise invalid("messages: Field required")
    messages = body["messages"]
    if not isinstance(messages, list):
        raise invalid("messages: Input should be a valid list")
    if not messages:
        raise invalid("messages: at least one message is required")
    if len(messages) > MESSAGES_MAX:
        raise invalid(f"messages: List should have at most {MESSAGES_MAX} items, not {len(messages)}")
    check_messages(messages, model)
    check_history(body)


def _check_thinking(value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, dict) or value.get("type") not in THINKING_TYPES:
        raise invalid(f"thinking.type: Input should be one of {', '.join(THINKING_TYPES)}")
    if value.get("display") not in (None, "summarized", "omitted"):
        raise invalid("thinking.display: Input should be 'summarized' or 'omitted'")


def input_tokens(body: dict[str, Any]) -> int:
    """Estimate the input tokens of a request: a token per four bytes of text, rounded up.

    Counted are the strings in system, tools and messages without field names and the values of `type` and
    `role`, so a string and a text block holding it count the same, whatever the order of fields.

    Cost: linear in the body, and iterative: how deep a body nests is the caller's choice.
    """
    total = 0
    pending: list[Any] = [body.get("system"), body.get("tools"), body["messages"]]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            total += len(value) if value.isascii() else len(value.encode())
        elif isinstance(value, list):
            pending.extend(value)
        elif isinstance(value, dict):
            pending.extend(item for name, item in value.items() if name not in ("type", "role"))
    return math.ceil(total / BYTES_PER_TOKEN)
