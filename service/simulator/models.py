"""The models the stand-in offers, and the Models API's view of them.

The Models API does not tell everything a caller must know: whether a model accepts an assistant prefill, a `system`
message inside the conversation or a forced tool call, whether it thinks unasked, whether its thinking is bound to what
was before it, and from which size a prompt is cached, shows only in what it does. These are fields of the table. Where
the documentation is silent the stand-in takes the strict side: Sonnet 5.5 and Haiku 5.5 refuse `system` messages, Haiku
5.5 refuses forced calls, and what has no documented cache minimum has 1,024 tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from service.simulator.errors import ApiError, invalid

LIFECYCLES = ("active", "deprecated", "retired")
# What the Models API itself says of a model whose release date it does not know.
RELEASE_UNKNOWN = "1970-01-01T00:00:00Z"
EFFORTS = ("low", "medium", "high", "xhigh", "max")


@dataclass(frozen=True, slots=True)
class Model:
    """One model: what it is called, how much it takes, which forms of a request it refuses.

    Attributes:
        thinking: the `thinking.type` values it lists as supported.
        input_tokens_max: the context window.
        output_tokens_max: the largest `max_tokens`.
        cache_tokens_min: a shorter prefix is not cached, and nothing says so.
        efforts: the values of `output_config.effort`; it refuses the field if there are none.
        prefill: whether a conversation may end with an assistant message.
        system_messages: whether `messages` may hold the role `system`.
        forced_tools: whether `tool_choice` may be `any` or `tool`.
        sampling: whether sampling parameters may differ from their defaults, under the API version that has them.
        thinks_always: whether it thinks unasked; it cannot be told not to, then.
        shows_thinking: whether the text of its thinking is in the answer where `display` is not given.
        preserved_thinking: whether its thinking is valid only behind exactly the prefix it was made with.
    """

    id: str
    display_name: str
    line: str
    thinking: frozenset[str]
    input_tokens_max: int = 1_000_000
    output_tokens_max: int = 128_000
    cache_tokens_min: int = 1024
    efforts: tuple[str, ...] = EFFORTS
    prefill: bool = False
    system_messages: bool = False
    forced_tools: bool = True
    sampling: bool = False
    thinks_always: bool = False
    shows_thinking: bool = False
    preserved_thinking: bool = False
    lifecycle: str = "active"

    def info(self) -> dict[str, Any]:
        """Render the Models API's object; every known capability is present, as its contract says."""
        return {
            "type": "model",
            "id": self.id,
            "display_name": self.display_name,
            "created_at": RELEASE_UNKNOWN,
            "lifecycle": self.lifecycle,
            "deprecated_at": None,
            "retires_at": None,
            "line": self.line,
            "max_input_tokens": self.input_tokens_max,
            "max_tokens": self.output_tokens_max,
            "capabilities": self._capabilities(),
        }

    def _capabilities(self) -> dict[str, Any]:
        adaptive = "adaptive" in self.thinking
        yes, no = {"supported": True}, {"supported": False}
        return {
            "batch": yes,
            "citations": yes,
            "code_execution": yes,
            "context_management": {
                "supported": True,
                "clear_thinking_20251015": yes,
                "clear_tool_uses_20250919": yes,
                "compact_20260112": yes if adaptive else no,
            },
            "effort": {"supported": bool(self.efforts)}
            | {level: {"supported": level in self.efforts} for level in EFFORTS},
            "image_input": yes,
            "pdf_input": yes,
            "server_tools": {"supported": True, "code_execution": yes, "web_search": yes},
            "structured_outputs": yes,
            "thinking": {
                "supported": True,
                "types": {
                    name: {"supported": name in self.thinking}
                    for name in ("adaptive", "between_tools", "disabled", "enabled")
                },
            },
        }


_ADAPTIVE = frozenset({"adaptive"})
_ADAPTIVE_OR_OFF = frozenset({"adaptive", "disabled"})
_ADAPTIVE_OR_BETWEEN = frozenset({"adaptive", "between_tools"})
_BUDGET = frozenset({"enabled", "disabled"})
_ANY_THINKING = _BUDGET | {"adaptive"}


def _newest(line: str, version: str, thinking: frozenset[str]) -> Model:
    """One of the generation that binds thinking to its prefix and does not let itself be forced to call a tool."""
    always = thinking == _ADAPTIVE
    return Model(
        f"claude-{line}-{version.replace('.', '-')}",
        f"Claude {line.title()} {version}",
        line,
        thinking,
        system_messages=always,
        forced_tools=False,
        thinks_always=always,
        preserved_thinking=True,
    )


def _middle(line: str, version: str, cache_tokens_min: int, *, system_messages: bool) -> Model:
    """One of the generation from 4.7 on: it thinks if asked to, and may be told which tool to call."""
    return Model(
        f"claude-{line}-{version.replace('.', '-')}",
        f"Claude {line.title()} {version}",
        line,
        _ADAPTIVE_OR_OFF,
        cache_tokens_min=cache_tokens_min,
        system_messages=system_messages,
    )


def _oldest(
    line: str,
    version: str,
    cache_tokens_min: int,
    *,
    thinking: frozenset[str] = _BUDGET,
    efforts: tuple[str, ...] = (),
    lifecycle: str = "active",
) -> Model:
    """One of the generation before 4.7, which took sampling parameters and had budgets for thinking."""
    new = "adaptive" in thinking
    return Model(
        f"claude-{line}-{version.replace('.', '-')}",
        f"Claude {line.title()} {version}",
        line,
        thinking,
        input_tokens_max=1_000_000 if new else 200_000,
        output_tokens_max=128_000 if new else 64_000,
        cache_tokens_min=cache_tokens_min,
        efforts=efforts,
        prefill=not new,
        sampling=True,
        shows_thinking=True,
        lifecycle=lifecycle,
    )


# Newest first, the order the Models API lists them in.
MODELS = {
    model.id: model
    for model in (
        _newest("fable", "5.2", _ADAPTIVE),
        _newest("mythos", "5.2", _ADAPTIVE),
        _newest("haiku", "5.5", _ADAPTIVE_OR_OFF),
        _newest("sonnet", "5.5", _ADAPTIVE_OR_BETWEEN),
        _newest("fable", "5.1", _ADAPTIVE),
        _newest("opus", "5.5", _ADAPTIVE),
        _newest("mythos", "5.1", _ADAPTIVE),
        _middle("sonnet", "5", 1024, system_messages=False),
        _middle("fable", "5", 512, system_messages=True),
        _middle("opus", "5", 512, system_messages=True),
        _middle("opus", "4.8", 1024, system_messages=True),
        _middle("opus", "4.7", 2048, system_messages=False),
        _oldest("opus", "4.6", 4096, thinking=_ANY_THINKING, efforts=("low", "medium", "high", "max")),
        _oldest("sonnet", "4.6", 1024, thinking=_ANY_THINKING, efforts=("low", "medium", "high", "max")),
        _oldest("haiku", "4.5", 4096),
        _oldest("opus", "4.5", 4096, efforts=("low", "medium", "high")),
        _oldest("sonnet", "4.5", 1024, lifecycle="deprecated"),
    )
}


def set_window(model_id: str, input_tokens_max: int) -> None:
    """Make a model's window another, for this process from now on; small ones are for tests of what grows.

    Raises:
        ValueError: there is no such model.
    """
    if model_id not in MODELS:
        raise ValueError(f"no model {model_id!r}")
    MODELS[model_id] = replace(MODELS[model_id], input_tokens_max=input_tokens_max)


def find_model(model_id: str) -> Model:
    """Look a model up.

    Raises:
        ApiError: 404 `not_found_error`; Claude's message is just the path and the name.
    """
    model = MODELS.get(model_id)
    if model is None:
        raise ApiError("not_found_error", f"model: {model_id}")
    return model


def list_models(
    *, limit: int, after_id: str | None, before_id: str | None, lifecycles: Iterable[str]
) -> dict[str, Any]:
    """Render one page of the model list.

    Args:
        limit: 1 to 1000 models.
        after_id: the page begins behind this model.
        before_id: the page ends ahead of this model.
        lifecycles: stages to show; empty means all but `retired`.

    Raises:
        ApiError: 400 for a cursor or a stage that does not exist.
    """
    wanted = set(lifecycles) or {"active", "deprecated"}
    if unknown := wanted.difference(LIFECYCLES):
        raise invalid(f"lifecycle: Input should be 'active', 'deprecated' or 'retired', not {min(unknown)!r}")
    models = [model for model in MODELS.values() if model.lifecycle in wanted]
    ids = [model.id for model in models]
    for name, cursor in (("after_id", after_id), ("before_id", before_id)):
        if cursor is not None and cursor not in ids:
            raise invalid(f"{name}: no model with the id {cursor!r}")
    if before_id is not None:
        candidates = models[: ids.index(before_id)]
        page = candidates[-limit:]
    else:
        candidates = models[ids.index(after_id) + 1 :] if after_id is not None else models
        page = candidates[:limit]
    return {
        "data": [model.info() for model in page],
        "has_more": len(candidates) > len(page),
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
    }
