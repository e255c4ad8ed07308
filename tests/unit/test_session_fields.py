"""What callers may say about a session: every field in its bounds, every problem by name."""

import itertools
from typing import Any

import orjson
import pytest

from service.errors import BatonError
from service.session_fields import APPENDED_MAX, Creation, changes, creation, messages

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
    for call in (patched, messages):
        assert problem(call, body) == ("invalid_value", None)


def test_an_unknown_field_is_refused_by_name() -> None:
    assert problem(created, colour="red") == ("unknown_field", "colour")
    assert problem(created, id="sess_x") == ("unknown_field", "id")
    assert problem(patched, {"colour": "red"}) == ("unknown_field", "colour")
    assert problem(messages, {"messages": [], "n": 1}) == ("unknown_field", "n")


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


def test_messages_are_kept_as_they_are() -> None:
    given = [
        {"role": "user", "content": " hi "},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    assert messages({"messages": given}) == given
    assert messages({"messages": []}) == []


CALL: dict[str, Any] = {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": [1]}}
RESULT: dict[str, Any] = {"type": "tool_result", "tool_use_id": "toolu_1"}


def test_tool_calls_and_results_are_kept_as_they_are() -> None:
    text = {"type": "text", "text": "a"}
    given = [
        {"role": "assistant", "content": [text, CALL, {**CALL, "id": "toolu_2", "input": {}}]},
        {
            "role": "user",
            "content": [{**RESULT, "content": "x"}, {**RESULT, "content": [text], "is_error": True}, text],
        },
        {"role": "user", "content": [RESULT, {**RESULT, "is_error": False}]},
    ]
    assert messages({"messages": given}) == given


@pytest.mark.parametrize("nothing", ["", [], None])
def test_a_result_may_say_nothing(nothing: Any) -> None:
    given = [{"role": "user", "content": [{**RESULT, "content": nothing}]}]
    assert messages({"messages": given}) == [{"role": "user", "content": [RESULT]}]


def without(block: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in block.items() if key != name}


NO_YES_OR_NO: list[Any] = [None, 0, "no"]
DEEP: list[Any] = []
for _ in range(300):
    DEEP = [DEEP]


NO_INPUT: list[Any] = [None, [], "{}", {"a": DEEP}]


@pytest.mark.parametrize(
    ("role", "block", "place"),
    [
        ("user", CALL, ""),
        ("assistant", RESULT, ""),
        ("assistant", {**CALL, "cache_control": None}, ""),
        *(("assistant", without(CALL, name), "") for name in ("id", "name", "input")),
        *(("assistant", {**CALL, "id": value}, ".id") for value in ("", "a b", "a.b", 5, None, "a" * 257)),
        *(("assistant", {**CALL, "name": value}, ".name") for value in ("", "a b", 5, "a" * 129)),
        *(("assistant", {**CALL, "input": value}, ".input") for value in NO_INPUT),
        ("user", without(RESULT, "tool_use_id"), ""),
        ("user", {**RESULT, "id": "x"}, ""),
        ("user", {**RESULT, "tool_use_id": "a b"}, ".tool_use_id"),
        ("user", {**RESULT, "content": 5}, ".content"),
        ("user", {**RESULT, "content": " "}, ".content"),
        ("user", {**RESULT, "content": ["x"]}, ".content.0"),
        ("user", {**RESULT, "content": [{"type": "image"}]}, ".content.0"),
        ("user", {**RESULT, "content": [{"type": "text", "text": ""}]}, ".content.0.text"),
        *(("user", {**RESULT, "is_error": value}, ".is_error") for value in NO_YES_OR_NO),
    ],
    ids=lambda value: str(value)[:60],
)
def test_blocks_of_tools_are_checked_by_place(role: str, block: dict[str, Any], place: str) -> None:
    given = [{"role": role, "content": [{"type": "text", "text": "a"}, block]}]
    assert problem(messages, {"messages": given}) == ("invalid_value", f"messages.0.content.1{place}")


@pytest.mark.parametrize("more", [{"citations": None}, {"citations": []}, {"cache_control": None}], ids=str)
def test_a_text_block_as_claude_has_it_is_taken_for_its_text(more: dict[str, Any]) -> None:
    block = {"type": "text", "text": "a"}
    given = [{"role": "assistant", "content": [{**more, **block}]}]
    assert messages({"messages": given}) == [{"role": "assistant", "content": [block]}]


def test_no_more_is_appended_at_once_than_claude_reads() -> None:
    message: dict[str, Any] = {"role": "user", "content": "x"}
    assert len(messages({"messages": [message] * APPENDED_MAX})) == APPENDED_MAX
    assert problem(messages, {"messages": [message] * (APPENDED_MAX + 1)}) == ("invalid_value", "messages")
    half = {"role": "user", "content": [{"type": "text", "text": "x"}] * (APPENDED_MAX // 2)}
    assert len(messages({"messages": [half] * 2})) == 2
    assert problem(messages, {"messages": [half, half, {**half, "content": half["content"][:1]}]}) == (
        "invalid_value",
        "messages",
    )


@pytest.mark.parametrize(
    ("given", "code", "param"),
    [
        (None, "missing_value", "messages"),
        ({}, "invalid_value", "messages"),
        (["hi"], "invalid_value", "messages.0"),
        ([{"role": "system", "content": "x"}], "invalid_value", "messages.0.role"),
        ([{"content": "x"}], "invalid_value", "messages.0.role"),
        ([{"role": "user"}], "missing_value", "messages.0.content"),
        ([{"role": "user", "content": None}], "missing_value", "messages.0.content"),
        ([{"role": "user", "content": ""}], "invalid_value", "messages.0.content"),
        ([{"role": "user", "content": []}], "invalid_value", "messages.0.content"),
        ([{"role": "user", "content": 7}], "invalid_value", "messages.0.content"),
        ([{"role": "user", "content": "x"}, {"role": "user", "content": [7]}], "invalid_value", "messages.1.content.0"),
        ([{"role": "user", "content": [{"type": "text", "text": " "}]}], "invalid_value", "messages.0.content.0.text"),
        ([{"role": "user", "content": [{"type": "image"}]}], "invalid_value", "messages.0.content.0"),
        ([{"role": "user", "content": [{"type": "text"}]}], "invalid_value", "messages.0.content.0.text"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]}],
            "unsupported",
            "messages.0.content.0.cache_control",
        ),
        (
            [{"role": "assistant", "content": [{"type": "text", "text": "x", "citations": [{}]}]}],
            "unsupported",
            "messages.0.content.0.citations",
        ),
        ([{"role": "user", "content": "x", "name": "n"}], "unknown_field", "messages.0.name"),
    ],
)
def test_messages_that_cannot_be_history_are_refused_by_place(given: Any, code: str, param: str) -> None:
    assert problem(messages, {"messages": given}) == (code, param)
