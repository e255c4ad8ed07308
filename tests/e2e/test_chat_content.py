"""What else a chat may hold, with the openai SDK as it is, in sessions over two replicas: parts, formats, orders.

What reached Claude is read from the journal of the stand-in. A conversation is sent whole each time, as most clients
do, one turn to the one replica and the next to the other: what was stored must be recognised.
"""

import base64
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError
from openai.types.chat import ChatCompletion, ChatCompletionMessage

from tests.e2e.by_hand import user
from tests.e2e.caller import CHAT, Caller
from tests.e2e.unchanged import unchanged
from tests.instruments.processes import Fleet, Simulator

pytestmark = pytest.mark.anyio

Json = dict[str, Any]

MODEL = "claude-opus-5"
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40).decode()
PDF = base64.b64encode(b"%PDF-1.7 " + bytes(99)).decode()
PARTS: list[Json] = [
    {"type": "text", "text": "Look:"},
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "high"}},
    {"type": "image_url", "image_url": {"url": "https://example.org/a.webp"}},
    {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{PDF}", "filename": "a.pdf"}},
    {"type": "file", "file": {"file_data": "data:text/csv;base64,YSxiCg==", "filename": "é.csv"}},
    {"type": "text", "text": "What is it?"},
]
BLOCKS: list[Json] = [
    {"type": "text", "text": "Look:"},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
    {"type": "image", "source": {"type": "url", "url": "https://example.org/a.webp"}},
    {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": PDF}, "title": "a.pdf"},
    {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "a,b\n"}, "title": "é.csv"},
    {"type": "text", "text": "What is it?"},
]
PLACE: Json = {"type": "object", "properties": {"city": {"type": "string"}}, "additionalProperties": False}
FORMAT: Json = {"type": "json_schema", "json_schema": {"name": "place", "schema": PLACE, "strict": True}}
SHOWN: Json = {"type": "adaptive", "display": "summarized"}


class Chat:
    """A client that keeps a conversation and sends all of it each time, in turns to each of the SDKs."""

    def __init__(self, sdks: list[AsyncOpenAI], session: str) -> None:
        self.sdks = sdks
        self.session = session
        self.transcript: list[Any] = []
        self.turns = 0

    async def say(self, *messages: Json, stream: bool = False, **fields: Any) -> ChatCompletionMessage:
        self.transcript += messages
        sdk = self.sdks[self.turns % len(self.sdks)]
        self.turns += 1
        extra = {"session_id": self.session, **fields.pop("extra_body", {})}
        request: Json = {"model": MODEL, "messages": self.transcript, "extra_body": extra, **fields}
        if stream:
            async with sdk.chat.completions.stream(**request) as events:
                async for _ in events:
                    pass
                completion: ChatCompletion = await events.get_final_completion()
        else:
            completion = await sdk.chat.completions.create(**request)
        (choice,) = completion.choices
        message = choice.message
        self.transcript.append(message)
        return message


@pytest.fixture
def chat(sdks: list[AsyncOpenAI], name: str) -> Chat:
    return Chat(sdks, name)


async def last_request(simulator: Simulator) -> Json:
    (request,) = await simulator.requests(limit=1)
    body: Json = request["body"]
    return body


@pytest.mark.parametrize("stream", [False, True])
async def test_parts_reach_claude_and_stay(chat: Chat, one: Caller, simulator: Simulator, stream: bool) -> None:
    await chat.say({"role": "user", "content": PARTS}, stream=stream)
    first = await last_request(simulator)
    assert first["messages"] == [{"role": "user", "content": BLOCKS}]
    await chat.say(user("My name is Ada."), stream=stream)
    second = await last_request(simulator)
    assert second["messages"][:1] == first["messages"]
    assert (await chat.say(user("What is my name?"), stream=stream)).content == "Your name is Ada."
    stored = await one.messages(chat.session)
    assert stored[0] == {"role": "user", "content": BLOCKS}
    assert len(stored) == 6


async def test_a_part_that_differs_is_an_edit(chat: Chat, one: Caller) -> None:
    await chat.say(user("My name is Ada."))
    await chat.say({"role": "user", "content": PARTS})
    other = {"type": "image_url", "image_url": {"url": "https://example.org/b.webp"}}
    chat.transcript = [*chat.transcript[:2], {"role": "user", "content": [*PARTS[:2], other]}]
    await chat.say()
    stored = await one.messages(chat.session)
    assert [block.get("type") for block in stored[2]["content"]] == ["text", "image", "image"]
    assert len(stored) == 4


@pytest.mark.parametrize("stream", [False, True])
async def test_instructions_in_the_middle_stay_where_they_were_put(
    chat: Chat, one: Caller, simulator: Simulator, stream: bool
) -> None:
    be_kind, be_brief = {"role": "system", "content": "Be kind."}, {"role": "developer", "content": "Be brief."}
    await chat.say(be_kind, user("My name is Ada."), stream=stream)
    await chat.say(be_brief, user("Hello"), stream=stream)
    second = await last_request(simulator)
    assert second["system"] == "Be kind."
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user", "system"]
    assert second["messages"][3] == {"role": "system", "content": "Be brief."}
    assert (await chat.say(user("What is my name?"), be_kind, stream=stream)).content == "Your name is Ada."
    third = await last_request(simulator)
    assert (third["system"], third["messages"][:4]) == (second["system"], second["messages"])
    assert third["messages"][-1] == {"role": "system", "content": "Be kind."}
    stored = await one.messages(chat.session)
    assert [message["role"] for message in stored] == [
        "user",
        "assistant",
        "user",
        "system",
        "assistant",
        "user",
        "system",
        "assistant",
    ]
    turns = (await one.get(f"/v1/sessions/{chat.session}/turns")).json["turns"]
    assert len({turn["sent"]["epoch"] for turn in turns}) == 1


async def test_a_model_without_such_instructions_is_told_them_otherwise(chat: Chat, simulator: Simulator) -> None:
    await chat.say(user("My name is Ada."), model="claude-sonnet-5-5")
    be_brief = {"role": "system", "content": "Be brief."}
    answer = await chat.say(be_brief, user("What is my name?"), model="claude-sonnet-5-5")
    assert answer.content is not None
    sent = (await last_request(simulator))["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "user", "user"]
    assert "Be brief." in str(sent[3])


async def test_an_answer_wanted_anew_keeps_the_instruction_in_front_of_it(
    chat: Chat, one: Caller, simulator: Simulator
) -> None:
    await chat.say(user("My name is Ada."))
    await chat.say({"role": "system", "content": "Be brief."}, user("What is my name?"))
    asked = await last_request(simulator)
    chat.transcript.pop()
    await chat.say()
    assert (await last_request(simulator))["messages"] == asked["messages"]
    assert (await one.session(chat.session))["message_count"] == 5


async def test_a_refusal_that_is_sent_back_is_recognised(chat: Chat, one: Caller, simulator: Simulator) -> None:
    await chat.say(user("My name is Ada."))
    await simulator.fault("refusal", match=f"how to {chat.session}")
    refused = await chat.say(user(f"how to {chat.session}"))
    assert (refused.content, bool(refused.refusal)) == (None, True)
    assert (await chat.say(user("What is my name?"))).content == "Your name is Ada."
    assert (await one.session(chat.session))["message_count"] == 4


async def test_a_refusal_of_a_chat_that_is_not_stored_is_text(one: Caller, simulator: Simulator) -> None:
    refused = {"role": "assistant", "content": None, "refusal": "I must not."}
    answer = await one.chat("", messages=[user("How to?"), refused, user("How many messages?")])
    assert answer.text == "This conversation holds 3 messages."
    said = (await last_request(simulator))["messages"][1]
    assert said == {"role": "assistant", "content": [{"type": "text", "text": "I must not."}]}


async def test_options_reach_claude_in_its_own_words(chat: Chat, one: Caller, simulator: Simulator) -> None:
    await chat.say(
        user("Hello"),
        response_format=FORMAT,
        reasoning_effort="minimal",
        service_tier="default",
        safety_identifier="ada@example.org",
    )
    body = await last_request(simulator)
    schema = {"title": "place", **PLACE}
    assert body["output_config"] == {"effort": "low", "format": {"type": "json_schema", "schema": schema}}
    assert body["service_tier"] == "standard_only"
    assert set(body["metadata"]) == {"user_id"}
    assert "ada" not in body["metadata"]["user_id"]
    (turn,) = (await one.get(f"/v1/sessions/{chat.session}/turns")).json["turns"]
    assert turn["sent"]["effort"] == "low"
    assert not {"metadata", "output_config"} & turn["sent"].keys()
    await chat.say(user("Hello"), reasoning_effort="none")
    body = await last_request(simulator)
    assert (body["thinking"], "output_config" in body) == ({"type": "disabled"}, False)


@pytest.mark.parametrize("stream", [False, True])
async def test_thinking_is_shown_to_whom_asks_for_it(
    chat: Chat, one: Caller, simulator: Simulator, stream: bool
) -> None:
    shown = await chat.say(user("My name is Ada."), stream=stream, extra_body={"thinking": SHOWN})
    thinking = (shown.model_extra or {})["reasoning_content"]
    assert "the answer follows" in thinking
    stored = await one.messages(chat.session)
    assert stored[1]["content"][0]["thinking"] == thinking
    hidden = await chat.say(
        user("What is my name?"), stream=stream, extra_body={"thinking": {"type": "adaptive", "display": "omitted"}}
    )
    assert hidden.content == "Your name is Ada."
    assert "reasoning_content" not in (hidden.model_extra or {})
    # Sent back with the message, it was recognised and not taken for an edit; Claude got its own original.
    assert (await last_request(simulator))["messages"][1]["content"] == stored[1]["content"]


async def test_a_replay_shows_thinking_as_the_first_time(one: Caller, two: Caller, name: str) -> None:
    headers = {"Idempotency-Key": f"key-{name}"}
    first = await one.chat("Hello", name, headers=headers, thinking=SHOWN, model=MODEL)
    again = await two.chat("Hello", name, headers=headers, thinking=SHOWN, model=MODEL)
    assert first.json["choices"][0]["message"]["reasoning_content"]
    assert again.json == first.json


async def test_the_tier_is_told(sdks: list[AsyncOpenAI]) -> None:
    request: Json = {"model": MODEL, "messages": [user("Hello")]}
    assert (await sdks[0].chat.completions.create(**request)).service_tier == "default"
    stream = await sdks[1].chat.completions.create(**request, stream=True)
    assert {chunk.service_tier async for chunk in stream} == {"default"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]}, "file.file_id"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
            "image_url.url",
        ),
        ({"reasoning_effort": "none", "extra_body": {"thinking": SHOWN}}, "reasoning_effort"),
    ],
    ids=str,
)
async def test_what_cannot_be_had_costs_nothing(fleet: Fleet, chat: Chat, fields: Json, param: str) -> None:
    async with unchanged(fleet):
        for stream in (False, True):
            with pytest.raises(BadRequestError) as caught:
                await chat.say(user("Hello"), stream=stream, **fields)
            assert str(caught.value.param).endswith(param)


async def test_a_large_attachment(one: Caller, two: Caller, simulator: Simulator, name: str) -> None:
    data = base64.b64encode(bytes(600_000)).decode()
    image = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}
    content = [{"type": "text", "text": "My name is Ada."}, image]
    body = {"model": MODEL, "session_id": name, "messages": [{"role": "user", "content": content}]}
    assert (await one.request("POST", CHAT, json=body)).status == 200
    answer = await two.chat("What is my name?", name, model=MODEL)
    assert answer.text == "Your name is Ada."
    assert (await two.messages(name))[0]["content"][1]["source"]["data"] == data
