"""The table of traits: how a model is found, what an operator may change, and that no known model is forgotten."""

from dataclasses import fields
from typing import get_args

import pytest
from anthropic.types import Model

from service.model_table import NEWEST, TABLE, ModelTable, Trait, Traits

KNOWN = get_args(get_args(Model)[0])
"""The ids in the type of the SDK that is installed."""

TAKEN_FOR_NEWEST = {"claude-mythos-preview"}  # not documented when it ended, in June 2026


@pytest.mark.parametrize("model", TABLE)
def test_a_model_is_found_by_its_id_with_or_without_a_date(model: str) -> None:
    table = ModelTable()
    assert table.traits(model) == TABLE[model]
    assert table.traits(f"{model}-20261020") == TABLE[model]


@pytest.mark.parametrize(
    "model",
    [
        "claude-opus-6",
        "claude-opus-5-6",  # not a kind of claude-opus-5
        "claude-opus-5-latest",
        "claude-opus-5-2026102",
        "claude-opus-5-202610200",
        "claude-opus-5-2026102x",
        "claude-opus-5-２０２６１０２０",
        "claude-opus-5-",
        "claude-opus",
        "xclaude-opus-5",
        "CLAUDE-OPUS-5",
        "-20261020",
        "20261020",
        "",
    ],
)
def test_any_other_is_taken_for_the_newest(model: str) -> None:
    assert ModelTable().traits(model) == NEWEST


def test_the_newest_is_the_strict_side() -> None:
    """Of the thinking that cannot be turned off the Models API tells, by its types."""
    assert not NEWEST.forced_tools
    assert not NEWEST.system_messages
    assert NEWEST.preserved_thinking


def test_what_the_operator_knows_better_goes_over_the_table() -> None:
    table = ModelTable(
        {
            "claude-opus-5": {"forced_tools": False},
            "claude-opus-6": {"system_messages": True, "preserved_thinking": False},
            "claude-sonnet-4-5-20250929": {"system_messages": True},
            "claude-haiku-5-5": {},
        }
    )
    opus_5 = Traits(forced_tools=False, system_messages=True, preserved_thinking=False, thinking_always=False)
    assert table.traits("claude-opus-5") == table.traits("claude-opus-5-20261020") == opus_5
    opus_6 = Traits(forced_tools=False, system_messages=True, preserved_thinking=False, thinking_always=False)
    assert table.traits("claude-opus-6") == table.traits("claude-opus-6-20270101") == opus_6
    dated = Traits(forced_tools=True, system_messages=True, preserved_thinking=False, thinking_always=False)
    assert table.traits("claude-sonnet-4-5-20250929") == dated
    for untouched in ("claude-opus-5-5", "claude-sonnet-4-5", "claude-haiku-5-5"):
        assert table.traits(untouched) == TABLE[untouched]


def test_every_model_that_the_sdk_knows_is_in_the_table_or_left_out_on_purpose() -> None:
    assert "claude-opus-5-5" in KNOWN
    assert {model for model in KNOWN if not (model in TABLE or model[: -len("-20261020")] in TABLE)} == TAKEN_FOR_NEWEST
    assert {model for model in TABLE if model not in KNOWN} == set()


def test_every_trait_can_be_named() -> None:
    assert get_args(Trait) == tuple(field.name for field in fields(Traits))
