"""The rules on `thinking`, and pure: whether and how a request is thought about.

    no `thinking`     the models that always think do, others do not
    adaptive          it thinks
    enabled           it thinks; `budget_tokens` is at least 1,024 and less than `max_tokens`
    disabled          it does not
    between_tools     it thinks only where the last turn brings results of tools

Which of them a model takes is in the table of models. The text is in the answer with `display: summarized`, and
withheld with `omitted`; without `display` the models before 4.7 show it and the later ones withhold it.

Two phrases in the last user turn's own words command more, where there is thinking at all (case does not matter):

    think in secret   `redacted_thinking` blocks in place of `thinking` blocks
    think between     a thinking block ahead of the words and ahead of each call, not only ahead of all
"""

from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from service.simulator.answers import split_words
from service.simulator.calls import own_words
from service.simulator.errors import invalid
from service.simulator.headers import Terms
from service.simulator.models import Model

FIELDS: dict[str, frozenset[str]] = {
    "adaptive": frozenset({"type", "display"}),
    "between_tools": frozenset({"type"}),
    "disabled": frozenset({"type"}),
    "enabled": frozenset({"type", "budget_tokens", "display"}),
}
BETA_FIELDS = frozenset({"block_binding"})
DISPLAYS = ("summarized", "omitted")
BUDGET_TOKENS_MIN = 1024


@dataclass(frozen=True, slots=True)
class Thinking:
    """How one request is thought about.

    Attributes:
        words: one thinking block's text, as deltas.
        withheld: whether the text is left out of the answer.
        redacted: whether whole blocks are.
        between: whether there is a block ahead of each other block.
    """

    words: tuple[str, ...]
    withheld: bool
    redacted: bool
    between: bool


def check_thinking(body: dict[str, Any], model: Model, terms: Terms) -> None:
    """Judge `thinking` of a request.

    Raises:
        ApiError: 400 naming what is wrong.
    """
    config = body.get("thinking")
    if config is None:
        return
    if not isinstance(config, dict):
        raise invalid("thinking: Input should be an object")
    kind = config.get("type")
    if not isinstance(kind, str) or kind not in FIELDS:
        raise invalid(f"thinking.type: Input should be one of {', '.join(FIELDS)}")
    if kind not in model.thinking:
        raise invalid(f'thinking.type: "{kind}" is not supported on this model; it takes {_listed(model)}')
    for name in config:
        if name not in FIELDS[kind] and not (terms.beta and name in BETA_FIELDS):
            raise invalid(f"thinking.{kind}.{name}: Extra inputs are not permitted")
    displays = (*DISPLAYS, "updates") if terms.beta else DISPLAYS
    if config.get("display") not in (None, *displays):
        raise invalid("thinking.display: Input should be 'summarized' or 'omitted'")
    if kind == "enabled":
        _check_budget(config, body.get("max_tokens"))


def _listed(model: Model) -> str:
    return " or ".join(f'"{kind}"' for kind in sorted(model.thinking))


def _check_budget(config: dict[str, Any], max_tokens: int | None) -> None:
    """A budget leaves room for an answer; a request to count has no `max_tokens`."""
    path = "thinking.enabled.budget_tokens"
    if "budget_tokens" not in config:
        raise invalid(f"{path}: Field required")
    budget = config["budget_tokens"]
    if isinstance(budget, bool) or not isinstance(budget, int):
        raise invalid(f"{path}: Input should be a valid integer")
    if budget < BUDGET_TOKENS_MIN:
        raise invalid(f"{path}: Input should be greater than or equal to {BUDGET_TOKENS_MIN}")
    if max_tokens is not None and max_tokens <= budget:
        raise invalid("`max_tokens` must be greater than `thinking.budget_tokens`.")


def think(body: dict[str, Any], model: Model) -> Thinking | None:
    """Say how an accepted request is thought about; `None` if it is not."""
    config = body.get("thinking") or {}
    if not _thinks(config.get("type"), body["messages"], model):
        return None
    words = own_words(body["messages"]).lower()
    display = config.get("display") or ("summarized" if model.shows_thinking else "omitted")
    return Thinking(
        words=split_words(f"The caller sent {len(body['messages'])} messages; the answer follows from the last."),
        withheld=display == "omitted",
        redacted="think in secret" in words,
        between="think between" in words,
    )


def _thinks(kind: str | None, messages: list[dict[str, Any]], model: Model) -> bool:
    if kind == "between_tools":
        turn = takewhile(lambda message: message["role"] == "user", reversed(messages))
        return any(_has_result(message["content"]) for message in turn)
    return model.thinks_always if kind is None else kind != "disabled"


def _has_result(content: Any) -> bool:
    return isinstance(content, list) and any(block["type"] == "tool_result" for block in content)
