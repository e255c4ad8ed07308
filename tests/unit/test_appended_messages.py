"""Messages that are appended by hand: kept as they are, or refused by their place."""

from typing import Any

import pytest

from service.appended_messages import APPENDED_MAX, parse
from service.errors import BatonError


def problem(body: Any) -> tuple[str, str | None]:
    with pytest.raises(BatonError) as caught:
        parse(body)
    assert caught.value.status == 400
    return caught.value.code, caught.value.param


def test_messages_are_kept_as_they_are() -> None:
    given = [
        {"role": "user", "content": " hi "},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    assert parse({"messages": given}) == given
    assert parse({"messages": []}) == []


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
    assert parse({"messages": given}) == given


@pytest.mark.parametrize("nothing", ["", [], None])
def test_a_result_may_say_nothing(nothing: Any) -> None:
    given = [{"role": "user", "content": [{**RESULT, "content": nothing}]}]
    assert parse({"messages": given}) == [{"role": "user", "content": [RESULT]}]


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
    assert problem({"messages": given}) == ("invalid_value", f"messages.0.content.1{place}")


@pytest.mark.parametrize("more", [{"citations": None}, {"citations": []}, {"cache_control": None}], ids=str)
def test_a_text_block_as_claude_has_it_is_taken_for_its_text(more: dict[str, Any]) -> None:
    block = {"type": "text", "text": "a"}
    given = [{"role": "assistant", "content": [{**more, **block}]}]
    assert parse({"messages": given}) == [{"role": "assistant", "content": [block]}]


def test_no_more_is_appended_at_once_than_claude_reads() -> None:
    message: dict[str, Any] = {"role": "user", "content": "x"}
    assert len(parse({"messages": [message] * APPENDED_MAX})) == APPENDED_MAX
    assert problem({"messages": [message] * (APPENDED_MAX + 1)}) == ("invalid_value", "messages")
    half = {"role": "user", "content": [{"type": "text", "text": "x"}] * (APPENDED_MAX // 2)}
    assert len(parse({"messages": [half] * 2})) == 2
    assert problem({"messages": [half, half, {**half, "content": half["content"][:1]}]}) == (
        "invalid_value",
        "messages",
    )


def test_a_body_is_an_object_that_holds_messages_and_nothing_else() -> None:
    bodies: list[Any] = [[], "x", 7, None]
    for body in bodies:
        assert problem(body) == ("invalid_value", None)
    assert problem({"messages": [], "n": 1}) == ("unknown_field", "n")


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
        ([{"role": "user", "content": [{"type": "video"}]}], "invalid_value", "messages.0.content.0"),
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
    assert problem({"messages": given}) == (code, param)


PICTURE: dict[str, Any] = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
PDF: dict[str, Any] = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}
TEXT: dict[str, Any] = {"type": "text", "media_type": "text/plain", "data": "a"}
WEB: dict[str, Any] = {"type": "url", "url": "https://example.com/a"}


def test_images_and_documents_of_a_user_are_kept_as_they_are() -> None:
    blocks: list[dict[str, Any]] = [
        *({"type": "image", "source": source} for source in (PICTURE, WEB)),
        *({"type": "document", "source": source} for source in (PDF, TEXT, WEB)),
        {"type": "document", "source": TEXT, "title": "a.txt"},
    ]
    given = [{"role": "user", "content": blocks}]
    assert parse({"messages": given}) == given
    said = [{**block, "cache_control": None} for block in blocks]
    assert parse({"messages": [{"role": "user", "content": said}]}) == given


@pytest.mark.parametrize(
    ("block", "code", "place"),
    [
        ({"type": "image"}, "invalid_value", ".source"),
        ({"type": "image", "source": TEXT}, "invalid_value", ".source"),
        ({"type": "image", "source": {**WEB, "type": []}}, "invalid_value", ".source"),
        ({"type": "image", "source": PDF}, "invalid_value", ".source.media_type"),
        ({"type": "image", "source": {**PICTURE, "data": "abc"}}, "invalid_value", ".source.data"),
        ({"type": "image", "source": {**PICTURE, "data": ""}}, "invalid_value", ".source.data"),
        ({"type": "image", "source": {**PICTURE, "data": "ab\ncd==="}}, "invalid_value", ".source.data"),
        ({"type": "image", "source": {**PICTURE, "more": 1}}, "unsupported", ".source.more"),
        ({"type": "image", "source": {**WEB, "url": "file:///a"}}, "invalid_value", ".source.url"),
        ({"type": "image", "source": {"type": "file", "file_id": "f"}}, "invalid_value", ".source"),
        ({"type": "image", "source": PICTURE, "title": "t"}, "unsupported", ".title"),
        ({"type": "document", "source": PICTURE}, "invalid_value", ".source.media_type"),
        ({"type": "document", "source": {**TEXT, "data": " "}}, "invalid_value", ".source.data"),
        ({"type": "document", "source": PDF, "title": ""}, "invalid_value", ".title"),
        ({"type": "document", "source": PDF, "citations": {"enabled": True}}, "unsupported", ".citations"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_images_and_documents_are_checked_by_place(block: dict[str, Any], code: str, place: str) -> None:
    assert problem({"messages": [{"role": "user", "content": [block]}]}) == (code, f"messages.0.content.0{place}")
    assert problem({"messages": [{"role": "assistant", "content": [block]}]})[1] == "messages.0.content.0"
