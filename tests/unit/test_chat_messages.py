"""Chat completions, the request: who said what, and where instructions in the middle go."""

from typing import Any

import pytest
from openai.types.chat import ChatCompletionMessage

from service.dialects import chat
from service.dialects.chat import ChatRequest
from service.model_table import ModelTable

Json = dict[str, Any]


def parse(messages: list[Any]) -> ChatRequest:
    body = {"messages": messages}
    return chat.parse(body, default_model="claude-default", aliases={}, model_of=ModelTable().model)


def said(letters: str) -> list[Json]:
    """``S`` a system, ``D`` a developer, ``U`` a user, ``A`` an assistant message, ``-`` an empty answer; numbered."""
    roles = {"S": "system", "D": "developer", "U": "user", "A": "assistant"}
    return [
        {"role": "assistant", "content": ""} if letter == "-" else {"role": roles[letter], "content": f"{letter}{n}"}
        for n, letter in enumerate(letters)
    ]


def order(request: ChatRequest) -> str:
    """System prompt, colon, then the messages; instructions that became one message are joined by ``+``."""

    def words(content: Any) -> str:
        return content if isinstance(content, str) else "+".join(block["text"] for block in content)

    prompt = "" if request.ask.system is None else words(request.ask.system)
    return prompt + ": " + " ".join(words(message["content"]) for message in request.ask.messages)


@pytest.mark.parametrize(
    ("letters", "expected"),
    [
        ("U", ": U0"),
        ("SU", "S0: U1"),
        ("SDU", "S0+D1: U2"),
        ("US", ": U0 S1"),
        ("UD", ": U0 D1"),
        ("SUSDS", "S0: U1 S2+D3+S4"),
        ("USU", ": U0 U2 S1"),
        ("USUS", ": U0 U2 S1+S3"),
        ("UASU", ": U0 A1 U3 S2"),
        ("UASUS", ": U0 A1 U3 S2+S4"),
        ("UASUASU", ": U0 A1 U3 S2 A4 U6 S5"),
        ("USAU", ": U0 S1 A2 U3"),
        ("UUSUAU", ": U0 U1 U3 S2 A4 U5"),
        ("UASAU", ": U0 A1 A3 U4 S2"),
        ("UA-U", ": U0 A1 U3"),
        ("-U", ": U1"),
        ("US-U", ": U0 U3 S1"),
    ],
)
def test_later_instructions_stand_behind_what_the_user_says_around_them(letters: str, expected: str) -> None:
    request = parse(said(letters))
    assert order(request) == expected
    roles = [message["role"] for message in request.ask.messages]
    for number, role in enumerate(roles):
        if role == "system":
            assert roles[number - 1] == "user"
            assert roles[number + 1 : number + 2] in ([], ["assistant"])


def test_instructions_among_results_stand_behind_them() -> None:
    calls = [{"id": i, "type": "function", "function": {"name": "f", "arguments": "{}"}} for i in ("a", "b")]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "x"} for call in calls]
    hello, later = {"role": "user", "content": "Hello"}, {"role": "system", "content": "Be brief."}
    asked = {"role": "assistant", "content": None, "tool_calls": calls}
    messages = parse([hello, asked, later, results[0], later, results[1]]).ask.messages
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "system"]
    assert [block["tool_use_id"] for block in messages[2]["content"]] == ["a", "b"]
    assert messages[3]["content"] == [{"type": "text", "text": "Be brief."}] * 2


def test_the_parts_of_a_later_instruction_are_joined() -> None:
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    messages = parse([*said("U"), {"role": "system", "content": parts}]).ask.messages
    assert messages[1] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(("letters", "expected"), [("-U", "full"), ("U-U", "full"), ("UA-U", None), ("U", None)])
def test_an_answer_that_is_left_out_still_shows_that_this_is_the_whole_conversation(
    letters: str, expected: str | None
) -> None:
    assert parse(said(letters)).session_input == expected


@pytest.mark.parametrize("content", ["", " \n"])
def test_an_empty_answer_is_left_out(content: Any) -> None:
    request = parse([*said("U"), {"role": "assistant", "content": content, "refusal": ""}, *said("U")])
    assert [message["role"] for message in request.ask.messages] == ["user", "user"]
    assert request.ignored == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"content": None, "refusal": "no"}, [{"type": "text", "text": "no"}]),
        ({"refusal": "no"}, [{"type": "text", "text": "no"}]),
        ({"content": "So", "refusal": "no"}, [{"type": "text", "text": "So"}, {"type": "text", "text": "no"}]),
        ({"content": "So", "refusal": ""}, "So"),
    ],
    ids=str,
)
def test_a_refusal_is_text(fields: Json, expected: Any) -> None:
    request = parse([*said("U"), {"role": "assistant", **fields}, *said("U")])
    assert request.ask.messages[1] == {"role": "assistant", "content": expected}


def test_what_answers_and_sdks_leave_in_a_message_is_passed_over_and_citations_are_told() -> None:
    cited = {"type": "url_citation", "url_citation": {"start_index": 0, "end_index": 2, "url": "u", "title": "t"}}
    answered = ChatCompletionMessage.model_validate(
        {"role": "assistant", "content": "Hi", "annotations": [cited], "reasoning_content": "Hm.", "parsed": {"a": 1}}
    )
    request = parse([*said("U"), answered.model_dump(), *said("U")])
    assert request.ask.messages[1] == {"role": "assistant", "content": "Hi"}
    assert request.ignored == ["messages.annotations"]
