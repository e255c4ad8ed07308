"""What callers may say about a session: every field in its bounds, every problem by name."""

import itertools
from typing import Any

import orjson
import pytest

from service.errors import BatonError
from service.session_fields import Creation, changes, creation

NOW_MS = 1_800_000_000_000
ALIASES = {"gpt-4o": "claude-x"}


def created(**fields: Any) -> Creation:
    return creation({"model": "claude-x", **fields}, aliases=ALIASES, ttl_default_s=3600, now_ms=NOW_MS)


def problem(call: Any, *args: Any, **fields: Any) -> tuple[str, str | None]:
    with pytest.raises(BatonError) as caught:
        call(*args, **fields)
    assert caught.value.status == 400
    return caught.value.code, caught.value.param


def patched(body: Any) -> dict[str, Any]:
    return changes(body, aliases=ALIASES)


def test_a_creation_needs_a_model_and_nothing_else() -> None:
    minimal = Creation(
        name="",
        model="claude-x",
        system_json=b"",
        max_turns=0,
        ttl_ms=3_600_000,
        absolute_end_ms=0,
        title="",
        metadata_json=b"{}",
    )
    assert created() == minimal
    assert (
        created(name=None, system_prompt=None, max_turns=None, title=None, metadata=None, ttl_seconds=None) == minimal
    )
    assert created(model="gpt-4o") == minimal
    for body in ({}, {"model": None}):
        assert problem(creation, body, aliases={}, ttl_default_s=1, now_ms=0) == ("missing_value", "model")


def test_a_creation_may_say_everything() -> None:
    assert created(
        name="chat",
        system_prompt='Be "brief".',
        max_turns=3,
        ttl_seconds=60,
        absolute_expires_at="2030-01-31T13:00:00.5+01:00",
        title="é",
        metadata={"a": "b"},
    ) == Creation("chat", "claude-x", b'"Be \\"brief\\"."', 3, 60_000, 1_896_091_200_500, "é", b'{"a":"b"}')


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *itertools.product(["model"], [7, "", "  ", "m" * 201, "a b", "m\n", "modèle"]),
        *itertools.product(["name"], [7, "", []]),
        *itertools.product(["system_prompt"], [7, "", "\n", []]),
        *itertools.product(["max_turns"], [0, -1, 1.5, "3", True, 1_000_001]),
        *itertools.product(["ttl_seconds"], [0, 31_536_001, "60", False, 1e3]),
        *itertools.product(["absolute_expires_at"], [7, "", "soon", "2030-01-31T12:00:00", "2020-01-31T12:00:00Z"]),
        ("absolute_expires_at", "9999-12-31T23:59:59-23:59"),
        *itertools.product(["title"], [7, "t" * 513]),
        *itertools.product(["context_policy"], ["", "Error", 7, []]),
        *itertools.product(["metadata"], [[], "a", {str(n): "" for n in range(17)}]),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name(name: str, value: Any) -> None:
    assert problem(created, **{name: value}) == ("invalid_value", name)


@pytest.mark.parametrize(
    ("pair", "param"),
    [
        ({"k": 7}, "metadata.k"),
        ({"k": None}, "metadata.k"),
        ({"k": "v" * 513}, "metadata.k"),
        ({"": "v"}, "metadata."),
        ({"k" * 65: "v"}, "metadata." + "k" * 64),
    ],
)
def test_metadata_is_short_strings(pair: dict[str, Any], param: str) -> None:
    assert problem(created, metadata=pair) == ("invalid_value", param)
    assert problem(patched, {"metadata": pair}) == ("invalid_value", param)


def test_metadata_at_its_bounds() -> None:
    largest = {f"{n:064}": "é" * 512 for n in range(16)}
    assert orjson.loads(created(metadata=largest).metadata_json) == largest


@pytest.mark.parametrize("body", [[], "x", 7, None])
def test_a_body_that_is_no_object_is_refused(body: Any) -> None:
    assert problem(patched, body) == ("invalid_value", None)


def test_an_unknown_field_is_refused_by_name() -> None:
    assert problem(created, colour="red") == ("unknown_field", "colour")
    assert problem(created, id="sess_x") == ("unknown_field", "id")
    assert problem(patched, {"colour": "red"}) == ("unknown_field", "colour")


def test_a_patch_holds_what_it_names() -> None:
    assert patched({}) == {}
    assert patched({"title": "N"}) == {"title": "N"}
    assert patched({"model": "gpt-4o", "max_turns": 2, "ttl_seconds": 5, "system_prompt": "s", "metadata": {}}) == {
        "model": "claude-x",
        "max_turns": 2,
        "ttl": 5_000,
        "system": b'"s"',
        "metadata": b"{}",
    }


def test_null_clears_in_a_patch_what_a_session_can_do_without() -> None:
    names = ("system_prompt", "model", "max_turns", "title", "metadata")
    assert patched(dict.fromkeys(names)) == {
        "system": b"",
        "model": "",
        "max_turns": 0,
        "title": "",
        "metadata": b"{}",
    }
    assert problem(patched, {"ttl_seconds": None}) == ("invalid_value", "ttl_seconds")


@pytest.mark.parametrize("model", [7, "", "m" * 201, "a b"])
def test_a_patch_cannot_set_what_is_no_models_name(model: Any) -> None:
    assert problem(patched, {"model": model}) == ("invalid_value", "model")


@pytest.mark.parametrize("name", ["id", "name", "created_at", "absolute_expires_at", "message_count", "owner", "usage"])
def test_read_only_fields_cannot_be_patched(name: str) -> None:
    assert problem(patched, {"title": "N", name: "x"}) == ("invalid_value", name)
