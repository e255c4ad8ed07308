"""What a model takes that the Models API does not tell; pure.

Claude's Models API lists limits and capabilities. Four things show only in what a model refuses, or does by itself, and
they stand here, from Anthropic's documentation. A model is found by its id, or by the longest id of the table that its
own begins with (``claude-opus-5-5-20261020`` is ``claude-opus-5-5``). One that is not listed is taken for the newest
kind: the strict side of each, so that what works today works with it too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Traits:
    """How a model behaves.

    Attributes:
        forced_tools: ``tool_choice`` may be ``any`` or ``tool``.
        system_messages: ``messages`` may hold the role ``system``.
        preserved_thinking: a thinking block is only valid behind exactly the prefix that it was made with.
        thinking_always: it thinks whether asked to or not, and cannot be told not to.
    """

    forced_tools: bool
    system_messages: bool
    preserved_thinking: bool
    thinking_always: bool


NEWEST: Final = Traits(forced_tools=False, system_messages=False, preserved_thinking=True, thinking_always=False)
"""What is assumed of a model that is not in the table."""

_OLD: Final = Traits(forced_tools=True, system_messages=False, preserved_thinking=False, thinking_always=False)
_OPUS_5: Final = Traits(forced_tools=True, system_messages=True, preserved_thinking=False, thinking_always=False)
_ALWAYS: Final = Traits(forced_tools=False, system_messages=True, preserved_thinking=True, thinking_always=True)

TABLE: Final[Mapping[str, Traits]] = {
    "claude-fable-5": _OPUS_5,
    "claude-fable-5-1": _ALWAYS,
    "claude-fable-5-2": _ALWAYS,
    "claude-haiku-4": _OLD,
    "claude-haiku-5-5": NEWEST,
    "claude-mythos-5": _OPUS_5,
    "claude-mythos-5-1": _ALWAYS,
    "claude-mythos-5-2": _ALWAYS,
    "claude-opus-4": _OLD,
    "claude-opus-4-8": _OPUS_5,
    "claude-opus-5": _OPUS_5,
    "claude-opus-5-5": _ALWAYS,
    "claude-sonnet-4": _OLD,
    "claude-sonnet-5": _OLD,
    "claude-sonnet-5-5": NEWEST,
}


def traits(model: str, table: Mapping[str, Traits] = TABLE) -> Traits:
    """Those of a model, by its id after aliases."""
    named = max((listed for listed in table if model == listed or model.startswith(f"{listed}-")), key=len, default="")
    return table[named] if named else NEWEST
