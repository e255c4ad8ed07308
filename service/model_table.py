"""What a model takes that the Models API does not tell; pure.

Claude's Models API lists limits and capabilities. Four things show only in what a model refuses, or does by itself, and
they stand here, from Anthropic's documentation. A model is found by its id, with or without a date behind it
(``claude-opus-5-5-20261020`` is ``claude-opus-5-5``). Of one that is not listed as little as possible is assumed: no
forced calls, no system messages, thinking bound to its prefix; whether it always thinks it tells by its refusal.
Nothing else of an id counts: ``claude-opus-5-6`` will not be a kind of ``claude-opus-5``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeVar

T = TypeVar("T")


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


Trait = Literal["forced_tools", "system_messages", "preserved_thinking", "thinking_always"]
"""The name of one."""

NEWEST: Final = Traits(forced_tools=False, system_messages=False, preserved_thinking=True, thinking_always=False)
"""What is assumed of a model that is not in the table."""

_OLD: Final = Traits(forced_tools=True, system_messages=False, preserved_thinking=False, thinking_always=False)
_OPUS_5: Final = Traits(forced_tools=True, system_messages=True, preserved_thinking=False, thinking_always=False)
_ALWAYS: Final = Traits(forced_tools=False, system_messages=True, preserved_thinking=True, thinking_always=True)

TABLE: Final[Mapping[str, Traits]] = {
    "claude-fable-5": _OPUS_5,
    "claude-fable-5-1": _ALWAYS,
    "claude-fable-5-2": _ALWAYS,
    "claude-haiku-4-5": _OLD,
    "claude-haiku-5-5": NEWEST,
    "claude-mythos-5": _OPUS_5,
    "claude-mythos-5-1": _ALWAYS,
    "claude-mythos-5-2": _ALWAYS,
    "claude-opus-4-5": _OLD,
    "claude-opus-4-6": _OLD,
    "claude-opus-4-7": _OLD,
    "claude-opus-4-8": _OPUS_5,
    "claude-opus-5": _OPUS_5,
    "claude-opus-5-5": _ALWAYS,
    "claude-sonnet-4-5": _OLD,
    "claude-sonnet-4-6": _OLD,
    "claude-sonnet-5": _OLD,
    "claude-sonnet-5-5": NEWEST,
}

WINDOW_TOKENS: Final = 200_000
"""The smallest window of the models there are."""
WINDOW_TOKENS_MIN: Final = 1_000
WINDOW_TOKENS_MAX: Final = 100_000_000
"""What a window may be said to have."""

_DATED: Final = re.compile(r"(.+)-[0-9]{8}")


@dataclass(frozen=True, slots=True)
class Model:
    """What is known of a model; None is what the Models API does not tell, or has not told yet.

    Attributes:
        traits: what it takes, from the table.
        output_tokens_max: the largest ``max_tokens``.
        input_tokens_max: its window.
        thinking_types: what ``thinking.type`` may be.
    """

    traits: Traits
    output_tokens_max: int | None = None
    input_tokens_max: int | None = None
    thinking_types: frozenset[str] | None = None

    @property
    def window_tokens(self) -> int:
        """The largest request; while nobody tells it, what every model takes."""
        return WINDOW_TOKENS if self.input_tokens_max is None else self.input_tokens_max

    def answer_tokens(self, default: int) -> int:
        """The length of an answer where none is asked for."""
        return default if self.output_tokens_max is None else min(default, self.output_tokens_max)


class ModelTable:
    """The table as a deployment has it.

    Args:
        overrides: by model, what the operator knows better. A model that is not in the table gets a row by it.
        windows: tokens by model, for where the Models API tells none.
    """

    def __init__(
        self,
        overrides: Mapping[str, Mapping[Trait, bool]] | None = None,
        windows: Mapping[str, int] | None = None,
    ) -> None:
        self._rows = dict(TABLE)
        self._windows = dict(windows or {})
        for model, given in (overrides or {}).items():
            self._rows[model] = replace(_row(TABLE, model), **{str(name): is_so for name, is_so in given.items()})

    def traits(self, model: str) -> Traits:
        """Those of a model, by its id after aliases."""
        return _row(self._rows, model)

    def model(self, model: str) -> Model:
        """What is known of a model as long as Claude tells nothing."""
        return Model(self.traits(model), input_tokens_max=_of(self._windows, model))


def _row(rows: Mapping[str, Traits], model: str) -> Traits:
    return _of(rows, model) or NEWEST


def _of(rows: Mapping[str, T], model: str) -> T | None:
    """What there is for a model by its id, or by that without its date."""
    if model not in rows and (dated := _DATED.fullmatch(model)):
        model = dated[1]
    return rows.get(model)
