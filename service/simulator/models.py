"""The models the stand-in offers, and the Models API's view of them.

The Models API does not tell everything a caller must know: whether a model accepts an assistant prefill, a `system`
message inside the conversation or a forced tool call shows only in what it refuses. These are fields of the table.
Sonnet 5.5 and Haiku 5.5 are undocumented on the second, Haiku 5.5 on the third; the stand-in takes the strict side and
refuses.
"""

from collections.abc import Iterable
from dataclasses import dataclass
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
        input_tokens_max: the context window.
        output_tokens_max: the largest `max_tokens`.
        thinking: the `thinking.type` values it lists as supported.
        prefill: whether a conversation may end with an assistant message.
        system_messages: whether `messages` may hold the role `system`.
        forced_tools: whether `tool_choice` may be `any` or `tool`.
    """

    id: str
    display_name: str
    line: str
    thinking: frozenset[str]
    input_tokens_max: int = 1_000_000
    output_tokens_max: int = 128_000
    prefill: bool = False
    system_messages: bool = False
    forced_tools: bool = True
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
            # Effort arrived with adaptive thinking.
            "effort": {"supported": adaptive} | {level: {"supported": adaptive} for level in EFFORTS},
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

# Newest first, the order the Models API lists them in.
MODELS = {
    model.id: model
    for model in (
        Model("claude-haiku-5-5", "Claude Haiku 5.5", "haiku", _ADAPTIVE_OR_OFF, forced_tools=False),
        Model("claude-sonnet-5-5", "Claude Sonnet 5.5", "sonnet", _ADAPTIVE_OR_BETWEEN, forced_tools=False),
        Model("claude-fable-5-1", "Claude Fable 5.1", "fable", _ADAPTIVE, system_messages=True, forced_tools=False),
        Model("claude-opus-5-5", "Claude Opus 5.5", "opus", _ADAPTIVE, system_messages=True, forced_tools=False),
        Model("claude-sonnet-5", "Claude Sonnet 5", "sonnet", _ADAPTIVE_OR_OFF),
        Model("claude-opus-5", "Claude Opus 5", "opus", _ADAPTIVE_OR_OFF, system_messages=True),
        Model("claude-opus-4-8", "Claude Opus 4.8", "opus", _ADAPTIVE_OR_OFF, system_messages=True),
        Model(
            "claude-haiku-4-5",
            "Claude Haiku 4.5",
            "haiku",
            _BUDGET,
            input_tokens_max=200_000,
            output_tokens_max=64_000,
            prefill=True,
        ),
    )
}


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
