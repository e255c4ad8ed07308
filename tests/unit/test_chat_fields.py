"""The tables of a chat's parameters, and whether they know every field of the openai SDK's own request type."""

import typing
from collections.abc import Iterator
from typing import Any

import pytest
from openai.types.chat import completion_create_params
from typing_extensions import is_typeddict

from service.dialects import chat_content, chat_fields, chat_messages, chat_options
from service.dialects.chat_fields import MAPPED, PASSED_OVER, REFUSED, TOLD
from service.errors import BatonError

OURS = {"session_id", "session_input", "thinking", "messages.content.cache_control", "messages.annotations"}
"""What OpenAI's request does not have; the last two are a habit of callers who know Claude, and part of an answer."""


def fields_of(kind: Any, name: str) -> Iterator[str]:
    """The paths of all fields within a type, places in lists and the members of unions left out."""
    if is_typeddict(kind):
        for field, inner in typing.get_type_hints(kind).items():
            path = f"{name}.{field}" if name else field
            yield path
            yield from fields_of(inner, path)
    elif typing.get_origin(kind) is not dict:
        for inner in typing.get_args(kind):
            yield from fields_of(inner, name)


REQUEST = {
    name
    for kind in (
        completion_create_params.CompletionCreateParamsNonStreaming,
        completion_create_params.CompletionCreateParamsStreaming,
    )
    for name in fields_of(kind, "")
}


def settled(name: str) -> bool:
    """Whether the tables say what becomes of a field, or of the one that it is in, as a whole."""
    if name in MAPPED or name in PASSED_OVER:
        return True
    while name:
        if name in TOLD or name in REFUSED:
            return True
        name = name.rpartition(".")[0]
    return False


def test_every_field_of_the_sdk_has_its_fate() -> None:
    assert len(REQUEST) > 100
    assert {name for name in REQUEST if not settled(name)} == set()


def test_a_field_that_the_sdk_does_not_have_is_our_own() -> None:
    known = {*MAPPED, *TOLD, *REFUSED}
    assert {name for name in known - REQUEST if not name.startswith("thinking.")} == OURS


def test_no_field_has_two_fates() -> None:
    tables = (MAPPED, TOLD, REFUSED, PASSED_OVER)
    assert len({name for table in tables for name in table}) == sum(map(len, tables))


def test_the_parts_and_fields_of_roles_are_in_the_tables() -> None:
    kinds = {kind for kinds in chat_content.PART_TYPES.values() for kind in kinds}
    assert {f"messages.content.{kind}" for kind in (*kinds, "type")} == {
        f"messages.content.{field}" for field in chat_fields.inside(MAPPED, "messages.content")
    }
    own = {f"messages.{field}" for fields in chat_messages._FIELDS.values() for field in fields}
    passing = chat_fields.inside((*MAPPED, *PASSED_OVER), "messages")
    assert own == set(passing.values())
    thinking = {field for fields in chat_options.THINKING.values() for field in fields}
    assert thinking == chat_fields.inside(MAPPED, "thinking").keys()


def test_efforts_and_tiers_are_those_of_the_sdk() -> None:
    hints = typing.get_type_hints(completion_create_params.CompletionCreateParamsBase)
    assert words_of(hints["reasoning_effort"]) == {"none", *chat_options.EFFORTS}
    assert words_of(hints["service_tier"]) == {*chat_options.TIERS, *chat_options.TIERS_REFUSED}


def words_of(kind: Any) -> set[str]:
    """The literals of a type."""
    if typing.get_origin(kind) is typing.Literal:
        return set(typing.get_args(kind))
    return set().union(*map(words_of, typing.get_args(kind)))


@pytest.mark.parametrize("name", sorted(name for name in REFUSED if "." in name))
def test_nested_fields_that_are_refused_are_named(name: str) -> None:
    place, _, field = name.rpartition(".")
    with pytest.raises(BatonError) as caught:
        chat_fields.sort_out({field: {"a": 1}}, place, "here", set())
    assert (caught.value.code, caught.value.param) == ("unsupported", f"here.{field}")
