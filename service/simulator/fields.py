"""The rules on a request's fields that neither tools nor messages are: names, types, bounds."""

from typing import Any

from service.simulator.cache import check_control
from service.simulator.errors import invalid
from service.simulator.headers import API_VERSION, Terms
from service.simulator.models import Model, find_model
from service.simulator.schema import check_schema

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
BETA_FIELDS = frozenset(
    {
        "billing_policy",
        "compaction",
        "context_management",
        "fallback_credit_token",
        "fallbacks",
        "mcp_servers",
        "thread",
    }
)
BETA_OUTPUT_FIELDS = frozenset({"task_budget"})
OBJECTS: dict[str, frozenset[str]] = {
    "container": frozenset({"id", "skills"}),
    "diagnostics": frozenset({"previous_message_id"}),
    "metadata": frozenset({"user_id"}),
    "output_config": frozenset({"effort", "format"}),
}
USER_ID_CHARS_MAX = 256


def check_names(body: dict[str, Any], allowed: frozenset[str], terms: Terms) -> Model:
    """Judge which fields a request has, and return the model it names: what else is legal depends on it.

    Raises:
        ApiError: 400, or 404 for a model that does not exist.
    """
    for name in body:
        if name in SAMPLING_FIELDS and not terms.old:
            raise invalid(f"{name}: sampling parameters are not accepted as of API version {API_VERSION}")
        sampling = name in SAMPLING_FIELDS and "max_tokens" in allowed
        if name not in allowed and not sampling and not (terms.beta and name in BETA_FIELDS):
            raise invalid(f"{name}: Extra inputs are not permitted")
    if "model" not in body:
        raise invalid("model: Field required")
    if not isinstance(body["model"], str) or not body["model"]:
        raise invalid("model: Input should be a valid string with at least 1 character")
    return find_model(body["model"])


def check_create_fields(body: dict[str, Any], model: Model) -> None:
    """Judge the fields that only a request for a message has.

    Raises:
        ApiError: 400 naming what is wrong.
    """
    _check_max_tokens(body, model)
    _check_stop_sequences(body.get("stop_sequences"))
    for name in SAMPLING_FIELDS:
        if body.get(name) is not None:
            _check_sampling(name, body[name], model)
    if (stream := body.get("stream")) is not None and not isinstance(stream, bool):
        raise invalid("stream: Input should be a valid boolean")
    if body.get("service_tier", "auto") not in ("auto", "standard_only"):
        raise invalid("service_tier: Input should be 'auto' or 'standard_only'")
    _check_string(body, "inference_geo")
    # A container may also be named by its id.
    if not isinstance(body.get("container"), str):
        _check_string(_object(body, "container"), "id", "container.id")
    _check_string(_object(body, "diagnostics"), "previous_message_id", "diagnostics.previous_message_id")
    metadata = _object(body, "metadata")
    _check_string(metadata, "user_id", "metadata.user_id")
    if len(metadata.get("user_id") or "") > USER_ID_CHARS_MAX:
        raise invalid(f"metadata.user_id: String should have at most {USER_ID_CHARS_MAX} characters")


def check_shared_fields(body: dict[str, Any], model: Model, terms: Terms) -> None:
    """Judge the fields that a request to count has, too.

    Raises:
        ApiError: 400 naming what is wrong.
    """
    if body.get("speed") not in (None, "standard", "fast"):
        raise invalid("speed: Input should be 'standard' or 'fast'")
    check_control(body.get("cache_control"), "cache_control")
    config = _object(body, "output_config", BETA_OUTPUT_FIELDS if terms.beta else frozenset())
    _check_effort(config.get("effort"), model)
    _check_format(config.get("format"))


def _object(body: dict[str, Any], name: str, more: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The object under a name, empty if there is none; it has no fields but those known."""
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid(f"{name}: Input should be an object")
    for field in value:
        if field not in OBJECTS[name] and field not in more:
            raise invalid(f"{name}.{field}: Extra inputs are not permitted")
    return value


def _check_string(fields: dict[str, Any], name: str, path: str = "") -> None:
    if fields.get(name) is not None and not isinstance(fields[name], str):
        raise invalid(f"{path or name}: Input should be a valid string")


def _check_effort(value: Any, model: Model) -> None:
    if value is None:
        return
    if not model.efforts:
        raise invalid("output_config.effort: This model does not support the effort parameter.")
    if value not in model.efforts:
        raise invalid(f"output_config.effort: Input should be {' or '.join(map(repr, model.efforts))} on this model")


def _check_format(value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, dict) or value.get("type") != "json_schema":
        raise invalid("output_config.format.type: Input should be 'json_schema'")
    if "schema" not in value:
        raise invalid("output_config.format.schema: Field required")
    for name in value:
        if name not in ("type", "schema"):
            raise invalid(f"output_config.format.{name}: Extra inputs are not permitted")
    check_schema(value["schema"])


def _check_sampling(name: str, value: Any, model: Model) -> None:
    """The parameters of old: within their bounds, and on later models at their defaults."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid(f"{name}: Input should be a valid number")
    if name == "top_k" and (not isinstance(value, int) or value < 0):
        raise invalid("top_k: Input should be an integer greater than or equal to 0")
    if name != "top_k" and not 0 <= value <= 1:
        raise invalid(f"{name}: Input should be from 0 to 1")
    if not model.sampling and (name == "top_k" or value != 1):
        raise invalid(f"{name}: values other than the default are not supported on this model")


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
