"""The options of a chat: how long, in what form, after how much thinking, for whom; pure.

Sources: OpenAI API reference, "Chat"; Anthropic API reference, "Messages". ``thinking`` is not OpenAI's: it is Claude's
own field, for callers who want more than ``reasoning_effort`` says.
"""

import re
from hashlib import sha256
from typing import Any, Final, cast

from service.dialects import chat_fields
from service.dialects.chat_fields import unsupported
from service.errors import BatonError, invalid_value
from service.model_table import Model
from service.transcript import is_input

EFFORTS: Final = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "max"}
"""Claude's word for each of OpenAI's; ``none`` has none, it turns thinking off."""
TIERS: Final = {"auto": "auto", "default": "standard_only"}
"""Claude's word for each of OpenAI's service tiers that there is."""
TIERS_REFUSED: Final = ("flex", "scale", "priority", "fast")
THINKING: Final = {
    "adaptive": ("type", "display"),
    "enabled": ("type", "budget_tokens", "display"),
    "disabled": ("type",),
    "between_tools": ("type",),
}
"""The fields of each type of ``thinking``."""
DISPLAYS: Final = ("summarized", "omitted")
BUDGET_TOKENS_MIN: Final = 1024
STOPS_MAX: Final = 4
FORMAT_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def params(fields: dict[str, Any], model: Model, ignored: set[str]) -> dict[str, Any]:
    """Those fields of the Messages request that the options ask for. Adds to what is ignored.

    Args:
        fields: of the request, without those that are null.
        model: that is asked.
        ignored: added to.

    Raises:
        BatonError: 400 naming the parameter.
    """
    max_tokens = _max_tokens(fields)
    asked: dict[str, Any] = {
        "max_tokens": max_tokens,
        "stop_sequences": _stop(fields),
        "thinking": _thinking(fields, max_tokens, model, ignored),
        "output_config": _output(fields, ignored),
        "service_tier": _tier(fields.get("service_tier")),
        "metadata": _user(fields),
    }
    return {name: value for name, value in asked.items() if value}


def _max_tokens(fields: dict[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = fields.get(name)
        if value is not None:
            if not _is_whole(value) or value < 1:
                raise invalid_value(name, "must be a positive whole number")
            return cast("int", value)
    return None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _stop(fields: dict[str, Any]) -> list[str]:
    given = fields.get("stop", [])
    stops = [given] if isinstance(given, str) else given
    if not isinstance(stops, list) or len(stops) > STOPS_MAX:
        raise invalid_value("stop", f"must be a string or a list of at most {STOPS_MAX} strings")
    if any(not isinstance(stop, str) or not stop.strip() for stop in stops):
        raise invalid_value("stop", "must hold something other than white space")
    return stops


def _thinking(fields: dict[str, Any], max_tokens: int | None, model: Model, ignored: set[str]) -> dict[str, Any] | None:
    given, off = fields.get("thinking"), fields.get("reasoning_effort") == "none"
    if given is None:
        return _without_thinking(model) if off else None
    if off:
        raise invalid_value("reasoning_effort", "must not be `none` where `thinking` is given")
    if not isinstance(given, dict) or given.get("type") not in tuple(THINKING):
        raise invalid_value("thinking", f"must be an object of type {', '.join(THINKING)}")
    chat_fields.sort_out(given, "thinking", "thinking", ignored, own=THINKING[given["type"]])
    if given.get("display") not in (None, *DISPLAYS):
        raise invalid_value("thinking.display", f"must be {' or '.join(DISPLAYS)}")
    budget: Any = given.get("budget_tokens")
    if given["type"] == "enabled":
        most = "" if max_tokens is None else f", and less than the answer's {max_tokens} tokens"
        if not _is_whole(budget) or budget < BUDGET_TOKENS_MIN or (max_tokens is not None and budget >= max_tokens):
            problem = f"must be a whole number of at least {BUDGET_TOKENS_MIN}{most}"
            raise invalid_value("thinking.budget_tokens", problem)
    return {name: value for name, value in given.items() if value is not None}


def _without_thinking(model: Model) -> dict[str, Any]:
    """``thinking`` of a model that is to do without, as far as it can. What is not known of it, Claude tells."""
    if model.traits.thinking_always:
        raise BatonError("unsupported", "`reasoning_effort`: this model always thinks.", param="reasoning_effort")
    between = model.thinking_types is not None and not {"disabled"} & model.thinking_types
    return {"type": "between_tools" if between else "disabled"}


def _output(fields: dict[str, Any], ignored: set[str]) -> dict[str, Any]:
    """``output_config``: effort and format."""
    config: dict[str, Any] = {}
    effort = fields.get("reasoning_effort")
    if effort is not None and effort != "none":
        if not isinstance(effort, str) or effort not in EFFORTS:
            raise invalid_value("reasoning_effort", f"must be one of none, {', '.join(EFFORTS)}")
        config["effort"] = EFFORTS[effort]
    if (schema := _schema(fields.get("response_format"), ignored)) is not None:
        config["format"] = {"type": "json_schema", "schema": schema}
    return config


def _schema(given: Any, ignored: set[str]) -> dict[str, Any] | None:
    """The schema that ``response_format`` asks the answer to keep to; None if it asks for text."""
    if given is None:
        return None
    where = "response_format"
    kind = given.get("type") if isinstance(given, dict) else None
    if kind == "json_object":
        raise unsupported(where, " as `json_object`: Claude's JSON has a schema, so send `json_schema`")
    if kind not in ("text", "json_schema"):
        raise invalid_value(where, "must be an object of type `text` or `json_schema`")
    chat_fields.sort_out(given, where, where, ignored, own=("type",) if kind == "text" else ("type", kind))
    if kind == "text":
        return None
    where = f"{where}.{kind}"
    described = given.get(kind)
    if not isinstance(described, dict):
        raise invalid_value(where, "must be an object")
    chat_fields.sort_out(described, where, where, ignored)
    name, text, strict = (described.get(field) for field in ("name", "description", "strict"))
    if not isinstance(name, str) or FORMAT_NAME.fullmatch(name) is None:
        raise invalid_value(f"{where}.name", "must be 1 to 64 letters, digits, `_` or `-`")
    if text is not None and not isinstance(text, str):
        raise invalid_value(f"{where}.description", "must be a string")
    if strict is not None and not isinstance(strict, bool):
        raise invalid_value(f"{where}.strict", "must be true or false")
    schema = described.get("schema")
    if schema is None:
        raise BatonError("missing_value", f"`{where}.schema` is required.", param=f"{where}.schema")
    if not is_input(schema):
        raise invalid_value(f"{where}.schema", "must be a JSON schema that nests less than 240 levels")
    # A schema's own words go first: they were written beside what they describe.
    return {"title": name, **({"description": text} if text else {}), **schema}


def _tier(given: Any) -> str | None:
    if given is None:
        return None
    if given in TIERS_REFUSED:
        raise unsupported("service_tier", f" as `{given}`: send `auto` or `default`")
    if not isinstance(given, str) or given not in TIERS:
        raise invalid_value("service_tier", "must be `auto` or `default`")
    return TIERS[given]


def _user(fields: dict[str, Any]) -> dict[str, str] | None:
    """Who is asking, for Claude to find abuse by; hashed, because it may be a name or an address."""
    for name in ("safety_identifier", "user"):
        if not isinstance(fields.get(name, ""), str):
            raise invalid_value(name, "must be a string")
    given = fields.get("safety_identifier") or fields.get("user")
    return {"user_id": sha256(given.encode()).hexdigest()} if given else None
