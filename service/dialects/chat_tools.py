"""OpenAI's tools in a request: what they are, which may be used, and calls and results among the messages; pure.

Source: OpenAI API reference, "Chat"; what Claude takes is stricter in places, and is checked here so that the caller
learns the place. Tools that are no functions are refused, and so is choosing among a part of them: the tools are a part
of the prefix, which must not change from turn to turn.

A request without tools means those of the session. An empty list, like the choice ``none``, means that none is used
this time: the tools stay where they are, and Claude is told not to use them.
"""

from typing import Any, Final, cast

import orjson

from service.dialects import chat_fields
from service.errors import BatonError, invalid_value
from service.tool_calls import CALL_ID, TOOL_NAME
from service.transcript import is_input

TOOLS_MAX: Final = 128
_NAME_PROBLEM: Final = "must be 1 to 128 letters, digits, `_` or `-`"
_CALL_ID_PROBLEM: Final = "must be 1 to 256 letters, digits, `_` or `-`"
_CHOICES: Final = {"none": "none", "auto": "auto", "required": "any"}
_NO_PARAMETERS: Final = {"type": "object", "properties": {}}


def definitions(given: Any, ignored: set[str]) -> list[dict[str, Any]] | None:
    """``tools`` as Claude's; None if they are absent. Adds to what is ignored."""
    if given is None:
        return None
    if not isinstance(given, list) or len(given) > TOOLS_MAX:
        raise invalid_value("tools", f"must be a list of at most {TOOLS_MAX} tools")
    tools = [_definition(tool, f"tools.{index}", ignored) for index, tool in enumerate(given)]
    names: set[str] = set()
    for index, tool in enumerate(tools):
        if tool["name"] in names:
            raise invalid_value(f"tools.{index}.function.name", "must be another than that of the tools before")
        names.add(tool["name"])
    return tools


def _definition(tool: Any, where: str, ignored: set[str]) -> dict[str, Any]:
    function = _function(tool, "tools", where, ignored)
    defined: dict[str, Any] = {"name": _name(function.get("name"), f"{where}.function.name")}
    if (description := function.get("description")) is not None:
        if not isinstance(description, str):
            raise invalid_value(f"{where}.function.description", "must be a string")
        defined["description"] = description
    defined["input_schema"] = _schema(function.get("parameters"), f"{where}.function.parameters")
    if (strict := function.get("strict")) is not None:
        if not isinstance(strict, bool):
            raise invalid_value(f"{where}.function.strict", "must be true or false")
        defined["strict"] = strict
    return defined


def _schema(parameters: Any, where: str) -> dict[str, Any]:
    if parameters is None:
        return _NO_PARAMETERS
    if not is_input(parameters) or parameters.get("type", "object") != "object":
        raise invalid_value(where, "must be a JSON schema of type `object` that nests less than 240 levels")
    return parameters if "type" in parameters else {"type": "object", **parameters}


def choice(given: Any, parallel: Any, tools: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    """``tool_choice`` and ``parallel_tool_calls`` as Claude's; None if they ask for nothing.

    Args:
        given: ``tool_choice``.
        parallel: ``parallel_tool_calls``.
        tools: the request's, as `definitions` made them.
    """
    if parallel is not None and not isinstance(parallel, bool):
        raise invalid_value("parallel_tool_calls", "must be true or false")
    chosen = _chosen(given)
    if tools is not None:
        names = [tool["name"] for tool in tools]
        if chosen["type"] == "any" and not names:
            raise invalid_value("tool_choice", "asks for a call, and there are no tools")
        if chosen["type"] == "tool" and chosen["name"] not in names:
            raise invalid_value("tool_choice", "must name one of the tools")
        if not names:
            return {"type": "none"}
    if parallel is False and chosen["type"] != "none":
        return {**chosen, "disable_parallel_tool_use": True}
    return None if chosen["type"] == "auto" else chosen


def _chosen(given: Any) -> dict[str, Any]:
    if given is None:
        return {"type": "auto"}
    if isinstance(given, str) and given in _CHOICES:
        return {"type": _CHOICES[given]}
    if isinstance(given, dict) and given.get("type") in ("custom", "allowed_tools"):
        raise BatonError(
            "unsupported", f"`tool_choice` of type `{given['type']}` is not supported.", param="tool_choice"
        )
    if not isinstance(given, dict) or given.get("type") != "function" or given.keys() != {"type", "function"}:
        raise invalid_value("tool_choice", "must be none, auto, required or {type: function, function: {name}}")
    if not isinstance(given["function"], dict) or given["function"].keys() != {"name"}:
        raise invalid_value("tool_choice.function", "must be {name}")
    return {"type": "tool", "name": _name(given["function"]["name"], "tool_choice.function.name")}


class Pairing:
    """The calls of a request's messages, and which of them may have a result where; fed message by message.

    Results at the beginning answer calls of the stored history, which is not known here: any id will do.
    """

    def __init__(self) -> None:
        self._open: set[str] | None = None
        self._answered: set[str] = set()

    def said(self, calls: list[dict[str, Any]]) -> None:
        """A message that is no result, and the calls that it makes."""
        self._open = {call["id"] for call in calls}
        self._answered = set()

    def result(self, message: dict[str, Any], content: Any, where: str) -> dict[str, Any]:
        """A tool message as Claude's block.

        Args:
            message: as the caller sent it.
            content: text or blocks, as Claude takes them.
            where: its place.
        """
        call = message.get("tool_call_id")
        if not isinstance(call, str) or CALL_ID.fullmatch(call) is None:
            raise invalid_value(f"{where}.tool_call_id", _CALL_ID_PROBLEM)
        if self._open is not None and call not in self._open:
            raise invalid_value(f"{where}.tool_call_id", "must name a call of the assistant's message right before")
        if call in self._answered:
            raise invalid_value(f"{where}.tool_call_id", "must name a call that has no result yet")
        self._answered.add(call)
        block = {"type": "tool_result", "tool_use_id": call}
        return {**block, "content": content} if content else block


def calls(given: Any, where: str, ignored: set[str]) -> list[dict[str, Any]]:
    """``tool_calls`` of an assistant's message as Claude's blocks; none if they are absent. Adds to what is ignored."""
    if given is None:
        return []
    if not isinstance(given, list):
        raise invalid_value(where, "must be a list")
    made = [_call(call, f"{where}.{index}", ignored) for index, call in enumerate(given)]
    if len({call["id"] for call in made}) < len(made):
        raise invalid_value(where, "must have different ids")
    return made


def _call(call: Any, where: str, ignored: set[str]) -> dict[str, Any]:
    function = _function(call, "messages.tool_calls", where, ignored)
    if not isinstance(call.get("id"), str) or CALL_ID.fullmatch(call["id"]) is None:
        raise invalid_value(f"{where}.id", _CALL_ID_PROBLEM)
    return {
        "type": "tool_use",
        "id": call["id"],
        "name": _name(function.get("name"), f"{where}.function.name"),
        "input": _arguments(function.get("arguments"), f"{where}.function.arguments"),
    }


def _arguments(given: Any, where: str) -> dict[str, Any]:
    try:
        arguments = orjson.loads(given) if isinstance(given, str) else None
    except orjson.JSONDecodeError:
        arguments = None
    if not is_input(arguments):
        raise invalid_value(where, "must be a string that holds a JSON object, nesting less than 240 levels")
    return cast("dict[str, Any]", arguments)


def _function(holder: Any, place: str, where: str, ignored: set[str]) -> dict[str, Any]:
    """What a tool or a call of type ``function`` holds; ``place`` is its name in the tables of chat_fields.py."""
    if not isinstance(holder, dict):
        raise invalid_value(where, "must be an object")
    kind = holder.get("type")
    if kind != "function":
        if not isinstance(kind, str):
            raise invalid_value(f"{where}.type", "must be `function`")
        raise BatonError("unsupported", f"{where}: type `{kind[:64]}` is not supported.", param=f"{where}.type")
    chat_fields.sort_out(holder, place, where, ignored)
    if not isinstance(holder.get("function"), dict):
        raise invalid_value(f"{where}.function", "must be an object")
    function: dict[str, Any] = holder["function"]
    chat_fields.sort_out(function, f"{place}.function", f"{where}.function", ignored)
    return function


def _name(value: Any, where: str) -> str:
    if not isinstance(value, str) or TOOL_NAME.fullmatch(value) is None:
        raise invalid_value(where, _NAME_PROBLEM)
    return value
