"""A request's headers and top-level fields: accepted, or refused in the words of the Messages API.

Order of judgement, as the real service appears to do it: credential, API version, body, fields, model,
conversation, size. The first fault found is the one reported. Each message begins with the path of what is
wrong (`messages.0.role: …`), because that is what callers of the real API rely on when they search their logs.

Beta features are not imitated, so their fields count as unknown: an honest 400 instead of being ignored.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from service.simulator.conversation import check_messages, check_text_blocks
from service.simulator.errors import ApiError, invalid
from service.simulator.models import Model, find_model

API_VERSION = "2026-10-21"
BODY_BYTES_MAX = 32 * 1024 * 1024
MESSAGES_MAX = 100_000
INVALID_KEY = "sk-ant-invalid"
BYTES_PER_TOKEN = 4

SAMPLING_FIELDS = ("temperature", "top_p", "top_k")
COUNT_FIELDS = frozenset(
    "messages model cache_control output_config speed system thinking tool_choice tools".split()
)
CREATE_FIELDS = COUNT_FIELDS | frozenset(
    "max_tokens container diagnostics inference_geo metadata service_tier stop_sequences stream".split()
)
THINKING_TYPES = ("adaptive", "between_tools", "disabled", "enabled")


def check_credential(headers: Mapping[str, str]) -> None:
    """Require a key, as `Authorization: Bearer` or `x-api-key`.

    Raises:
        ApiError: 401 `authentication_error` when there is none or it is the one that stands for a bad key.
    """
    scheme, _, token = headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    key = bearer or headers.get("x-api-key", "").strip()
    if not key:
        raise ApiError("authentication_error", "x-api-key header is required")
    if key == INVALID_KEY:
        raise ApiError("authentication_error", "invalid x-api-key")


def check_version(headers: Mapping[str, str]) -> None:
    """Require the one API version this stand-in speaks.

    Raises:
        ApiError: 400 when `anthropic-version` is absent or another.
    """
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


def check_create(body: dict[str, Any], body_bytes: int) -> Model:
    """Judge a request to `/v1/messages`.

    Args:
        body: the parsed body.
        body_bytes: its size as received, for the estimate of the context it fills.

    Returns:
        The model it names.

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
    if (tokens := math.ceil(body_bytes / BYTES_PER_TOKEN)) > model.input_tokens_max:
        raise invalid(f"prompt is too long: {tokens} tokens > {model.input_tokens_max} maximum")
    return model


def check_count(body: dict[str, Any]) -> Model:
    """Judge a request to `/v1/messages/count_tokens`; it takes fewer fields than a message.

    Raises:
        ApiError: 400, or 404 for a model that does not exist.
    """
    model = _check_fields(body, COUNT_FIELDS)
    _check_shared(body, model)
    return model


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
    for name in ("cache_control", "container", "diagnostics", "metadata", "output_config", "tool_choice"):
        value = body.get(name)
        # A container may also be named by its id.
        if value is not None and not isinstance(value, dict) and not (name == "container" and isinstance(value, str)):
            raise invalid(f"{name}: Input should be an object")
    _check_thinking(body.get("thinking"))
    _check_tools(body.get("tools"))
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


def _check_thinking(value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, dict) or value.get("type") not in THINKING_TYPES:
        raise invalid(f"thinking.type: Input should be one of {', '.join(THINKING_TYPES)}")
    if value.get("display") not in (None, "summarized", "omitted"):
        raise invalid("thinking.display: Input should be 'summarized' or 'omitted'")


def _check_tools(value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, list):
        raise invalid("tools: Input should be a valid list")
    names: set[str] = set()
    for index, tool in enumerate(value):
        if not isinstance(tool, dict):
            raise invalid(f"tools.{index}: Input should be an object")
        if tool.get("type") not in (None, "custom"):
            continue  # Anthropic's own tools each have a schema of their own
        for name, kind in (("name", str), ("input_schema", dict)):
            if not isinstance(tool.get(name), kind):
                raise invalid(f"tools.{index}.custom.{name}: Field required")
        if tool["name"] in names:
            raise invalid("tools: Tool names must be unique.")
        names.add(tool["name"])


def bearing(headers: Mapping[str, str]) -> None:
    """Check credential, then version: what every endpoint of the API asks for first."""
    steps: tuple[Callable[[Mapping[str, str]], None], ...] = (check_credential, check_version)
    for step in steps:
        step(headers)


def count_tokens(value: Any) -> int:
    """Estimate the tokens of the text in a JSON value: a token per four bytes, rounded up.

    Counted are all strings but field names and the `type` and `role` markers, so the estimate is the same for a
    string and for a text block holding it, and does not change with the order of fields.

    Cost: linear in the value; no recursion deeper than the JSON parser allowed.
    """
    return math.ceil(_text_bytes(value) / BYTES_PER_TOKEN)


def _text_bytes(value: Any) -> int:
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode())
    if isinstance(value, list):
        return sum(map(_text_bytes, value))
    if isinstance(value, dict):
        return sum(_text_bytes(item) for name, item in value.items() if name not in ("type", "role"))
    return 0
