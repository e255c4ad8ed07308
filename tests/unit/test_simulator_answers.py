"""What the stand-in says: its answers, and the message or the events that they become."""

from typing import Any

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from service.simulator import answers, events
from service.simulator.cache import InputUsage
from tests.unit.simulated import (
    CALL,
    IMAGE,
    LOOK,
    RESULT,
    TEXT,
    assistant,
    compose,
    message_to,
    read_events,
    reply_to,
    request,
    stream_text,
    system,
    user,
)

SAID: list[tuple[str, dict[str, Any], str]] = [
    ("a name told before", request(user("Hi, my name is Ada."), assistant("Hi"), user("What is my name?")), "Ada"),
    ("a name of two words", request(user("I am called Ada Lovelace and I count. WHO AM I?")), "Ada Lovelace"),
    (
        "the latest name",
        request(user("my name is Ada"), user("no, my name is Bea, or rather my name is Cy"), user("who am i")),
        "Cy",
    ),
]


@pytest.mark.parametrize(("body", "name"), [pytest.param(b, n, id=i) for i, b, n in SAID])
def test_tells_the_name_it_was_told(body: dict[str, Any], name: str) -> None:
    assert answers.answer(answers.read(body)) == f"Your name is {name}."


ANSWERS: list[tuple[str, dict[str, Any], str]] = [
    (
        "no name: the assistant's words do not count",
        request(user("hi"), assistant("my name is Claude"), user("what's my name")),
        "You have not told me your name.",
    ),
    ("count", request(user("Please count to 4")), "1 2 3 4"),
    ("count too far", request(user("count to 5001")), 'You said: "count to 5001". I received 1 message.'),
    ("repeat", request(user("Repeat after me: what is\n my name [mark:1] ")), "what is\n my name [mark:1]"),
    (
        "first",
        request(user("one"), user("two"), assistant("x"), user("What did I say first?")),
        'You first said: "one"',
    ),
    ("messages", request(user("a"), user("b"), user("how many messages?")), "This conversation holds 3 messages."),
    (
        "marks",
        request(user("[mark:1] and [mark:2]"), assistant("[mark:9]"), user("[mark:3] list the marks")),
        "[mark:1] [mark:2] [mark:3]",
    ),
    ("no marks", request(user("List the marks")), "none"),
    (
        "instructions",
        request(user("What are your instructions?"), system("shout"), system="be kind"),
        'My instructions are: "be kind\n\nshout"',
    ),
    ("no instructions", request(user("what are your instructions?")), "I have no instructions."),
    (
        "anything else",
        request(user("a"), assistant("b"), user(f"one\n two {'x' * 100}")),
        f'You said: "one two {"x" * 71}…". I received 3 messages.',
    ),
    ("no text", request(user([IMAGE])), "You sent no text. I received 1 message. I received 1 image (url)."),
    (
        "a tool's result is the last text",
        request(user("x"), assistant([CALL]), user([{**RESULT, "content": [TEXT]}])),
        'You said: "then". I received 3 messages.',
    ),
    (
        "seen marks, after the turn before",
        request(user("[mark:a] [mark:b]"), assistant("x"), user("[mark:c]"), user("[mark:d]")),
        'You said: "[mark:c] [mark:d]". I received 4 messages. [seen:c] [seen:d] [after:b]',
    ),
    ("a first mark", request(user("count to 2 [mark:a]")), "1 2 [seen:a] [after:none]"),
    (
        "a turn before without marks",
        request(user("[mark:a]"), assistant("x"), user("y"), assistant("x"), user("[mark:b]")),
        'You said: "[mark:b]". I received 5 messages. [seen:b] [after:none]',
    ),
]


@pytest.mark.parametrize(("body", "said"), [pytest.param(b, s, id=i) for i, b, s in ANSWERS])
def test_answers_from_the_messages(body: dict[str, Any], said: str) -> None:
    assert answers.answer(answers.read(body)) == said


@pytest.mark.parametrize("text", ["one", "one two", " one\n two \n", "a  b", "ü … ö"])
def test_words_joined_are_the_text(text: str) -> None:
    assert "".join(answers.split_words(text)) == text


def test_max_tokens_cuts_at_a_word() -> None:
    reply = compose(request(max_tokens=2), "one two three")
    assert (reply.text, reply.stop_reason, reply.output_tokens) == (("one", " two"), "max_tokens", 2)


def test_an_answer_that_just_fits_ends_its_turn() -> None:
    assert compose(request(max_tokens=3), "one two three").stop_reason == "end_turn"


@pytest.mark.parametrize("fields", [{}, {"thinking": {"type": "adaptive"}}, {"stop_sequences": ["You"]}], ids=str)
def test_max_tokens_0_answers_nothing(fields: dict[str, Any]) -> None:
    body = message_to(request(max_tokens=0, **fields))
    assert (body["content"], body["stop_reason"], body["usage"]["output_tokens"]) == ([], "max_tokens", 0)


def test_the_first_stop_sequence_stops() -> None:
    reply = compose(request(stop_sequences=["four", "two", "two three"]), "one two three four")
    assert ("".join(reply.text), reply.stop_reason, reply.stop_sequence) == ("one ", "stop_sequence", "two three")


def test_a_stop_sequence_behind_max_tokens_is_not_reached() -> None:
    reply = compose(request(max_tokens=1, stop_sequences=["three"]), "one two three")
    assert (reply.stop_reason, reply.stop_sequence) == ("max_tokens", None)


def test_a_stop_sequence_at_the_start_leaves_no_block() -> None:
    assert events.message(compose(request(stop_sequences=["one"]), "one two"))["content"] == []


def test_events_come_in_the_documented_order() -> None:
    parsed = read_events(stream_text(reply_to(request(thinking={"type": "adaptive"}))))
    order = [parsed[0]["type"]]
    for event in parsed[1:]:
        if event["type"] != order[-1]:
            order.append(event["type"])
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert order == ["message_start", "ping", *block, *block, "message_delta", "message_stop"]
    assert [e["index"] for e in parsed if e["type"] == "content_block_start"] == [0, 1]
    assert parsed[0]["message"]["usage"]["input_tokens"] == parsed[-2]["usage"]["input_tokens"] == 2


KINDS = [
    request(),
    request(thinking={"type": "adaptive", "display": "summarized"}),
    request(user("Think in secret."), thinking={"type": "adaptive"}),
    request(user("Count to 3, then call look. Think between."), thinking={"type": "adaptive"}, tools=[LOOK]),
]


@pytest.mark.parametrize("body", KINDS)
def test_every_event_is_one_the_sdk_knows(body: dict[str, Any]) -> None:
    adapter: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)
    for event in read_events(stream_text(reply_to(body))):
        if event["type"] != "ping":  # which the SDK drops before it looks at types
            assert adapter.validate_python(event).to_dict(mode="json", exclude_unset=True) == event


def test_a_message_is_one_the_sdk_knows() -> None:
    for reply in (
        *map(reply_to, KINDS),
        events.refuse(request(), message_id="msg_1", usage=InputUsage(7)),
    ):
        body = events.message(reply)
        assert Message.model_validate(body).to_dict(mode="json", exclude_unset=True) == body
