"""The rules on `tools` and `tool_choice`, and on what messages with calls in them need of both.

Anthropic's own tools each have a schema of their own, which means nothing to the stand-in: they are accepted by their
type alone, a name and a date. Whether a model lets itself be forced to call something shows only in what it refuses; it
is in the table of models.
"""

import re
from typing import Any

from service.simulator.cache import check_control
from service.simulator.errors import invalid
from service.simulator.models import Model

NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
OWN_TYPE = re.compile(r"[a-z_]+_\d{8}")
FIELDS: dict[str, type] = {
    "name": str,
    "input_schema": dict,
    "description": str,
    "strict": bool,
    "cache_control": dict,
    "type": str,
    "input_examples": list,
    "defer_loading": bool,
    "eager_input_streaming": bool,
    "allowed_callers": list,
}
NULLABLE = frozenset({"cache_control", "type", "eager_input_streaming"})
TYPE_NAMES: dict[type, str] = {str: "string", dict: "dictionary", bool: "boolean", list: "list"}
CHOICES: dict[str, frozenset[str]] = {
    "auto": frozenset({"type", "disable_parallel_tool_use"}),
    "any": frozenset({"type", "disable_parallel_tool_use"}),
    "tool": frozenset({"type", "name", "disable_parallel_tool_use"}),
    "none": frozenset({"type"}),
}


def check_tools(body: dict[str, Any], model: Model) -> None:
    """Judge `tools` and `tool_choice` of a request.

    Raises:
        ApiError: 400 naming what is wrong.
    """
    _check_definitions(body.get("tools"))
    _check_choice(body.get("tool_choice"), body.get("tools") or [], model)
    choice, thinking = body.get("tool_choice") or {}, body.get("thinking") or {}
    if choice.get("type") in ("any", "tool") and thinking.get("type") in ("adaptive", "enabled"):
        raise invalid("Thinking may not be enabled when tool_choice forces tool use.")


def check_history(body: dict[str, Any]) -> None:
    """Judge whether the tools are there that the messages, already judged, have used.

    Raises:
        ApiError: 400.
    """
    if not body.get("tools") and any(_is_of_tools(message["content"]) for message in body["messages"]):
        raise invalid("Requests which include `tool_use` or `tool_result` blocks must define tools.")


def _is_of_tools(content: Any) -> bool:
    return isinstance(content, list) and any(block["type"] in ("tool_use", "tool_result") for block in content)


def _check_definitions(value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, list):
        raise invalid("tools: Input should be a valid list")
    names: set[str] = set()
    for index, tool in enumerate(value):
        if not isinstance(tool, dict):
            raise invalid(f"tools.{index}: Input should be an object")
        check_control(tool.get("cache_control"), f"tools.{index}.cache_control")
        kind = tool.get("type")
        if isinstance(kind, str) and OWN_TYPE.fullmatch(kind) is not None:
            continue
        if kind not in (None, "custom"):
            raise invalid(f"tools.{index}: Input tag {kind!r} does not match any of the expected tags")
        _check_custom(tool, f"tools.{index}.custom")
        if tool["name"] in names:
            raise invalid("tools: Tool names must be unique.")
        names.add(tool["name"])


def _check_custom(tool: dict[str, Any], path: str) -> None:
    for name in ("name", "input_schema"):
        if name not in tool:
            raise invalid(f"{path}.{name}: Field required")
    for name, value in tool.items():
        if name not in FIELDS:
            raise invalid(f"{path}.{name}: Extra inputs are not permitted")
        if not isinstance(value, FIELDS[name]) and not (value is None and name in NULLABLE):
            raise invalid(f"{path}.{name}: Input should be a valid {TYPE_NAMES[FIELDS[name]]}")
    if NAME.fullmatch(tool["name"]) is None:
        raise invalid(f"{path}.name: String should match pattern '^{NAME.pattern}$'")
    if tool["input_schema"].get("type") != "object":
        raise invalid(f"{path}.input_schema.type: Input should be 'object'")


def _check_choice(value: Any, tools: list[dict[str, Any]], model: Model) -> None:
    if value is None:
        return
    if not isinstance(value, dict):
        raise invalid("tool_choice: Input should be an object")
    kind = value.get("type")
    if not isinstance(kind, str) or kind not in CHOICES:
        raise invalid(f"tool_choice.type: Input tag {kind!r} does not match any of the expected tags")
    for name in value:
        if name not in CHOICES[kind]:
            raise invalid(f"tool_choice.{kind}.{name}: Extra inputs are not permitted")
    if not isinstance(value.get("disable_parallel_tool_use", False), bool):
        raise invalid(f"tool_choice.{kind}.disable_parallel_tool_use: Input should be a valid boolean")
    if not tools:
        raise invalid(f"tool_choice.{kind} may only be specified while providing tools")
    if kind == "tool" and not isinstance(value.get("name"), str):
        raise invalid("tool_choice.tool.name: Field required")
    if kind == "tool" and value["name"] not in [tool.get("name") for tool in tools]:
        raise invalid(f"Tool '{value['name']}' not found in provided tools")
    if kind in ("any", "tool") and not model.forced_tools:
        raise invalid('tool_choice: type "tool" and "any" are not supported for this model.')
