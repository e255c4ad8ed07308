"""One session, both dialects: begun with one SDK, continued with the other, over two replicas."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from tests.e2e.caller import Caller
from tests.instruments.processes import Simulator

pytestmark = pytest.mark.anyio

Json = dict[str, Any]
THINKS = "claude-opus-5-5"
PLACE = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: Json = {"name": "weather", "description": "Tells it.", "input_schema": PLACE}
WEATHER_FUNCTION: Json = {
    "type": "function",
    "function": {"name": "weather", "description": "Tells it.", "parameters": PLACE},
}
ASK = 'What is it like? call weather with {"city": "Bern"}'


@pytest.fixture
async def claude(two: Caller) -> AsyncIterator[AsyncAnthropic]:
    """Anthropic's SDK as installed, pointed at the second replica."""
    async with AsyncAnthropic(base_url=two.url, api_key="unused", max_retries=0) as sdk:
        yield sdk


@pytest.fixture
async def gpt(one: Caller) -> AsyncIterator[AsyncOpenAI]:
    """OpenAI's SDK as installed, pointed at the first replica."""
    async with AsyncOpenAI(base_url=f"{one.url}/v1", api_key="unused", max_retries=0) as sdk:
        yield sdk


def by_messages(name: str, content: Any, **fields: Any) -> Json:
    said = [{"role": "user", "content": content}]
    return {
        "model": THINKS,
        "max_tokens": 500,
        "messages": said,
        "extra_headers": {"X-Session-Id": name},
        **fields,
    }


def by_chat(name: str, *messages: Json, **fields: Any) -> Json:
    return {"model": THINKS, "messages": list(messages), "extra_body": {"session_id": name}, **fields}


def user(text: str) -> Json:
    return {"role": "user", "content": text}


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


async def sent_to_claude(simulator: Simulator, count: int) -> list[Json]:
    """The bodies of the last requests."""
    return [request["body"] for request in await simulator.requests(count)]


async def test_each_dialect_goes_on_where_the_other_stopped(
    claude: AsyncAnthropic, gpt: AsyncOpenAI, name: str
) -> None:
    await gpt.chat.completions.create(**by_chat(name, user("My name is Ada.")))
    told = await claude.messages.create(**by_messages(name, "What is my name?"))
    assert text_of(told) == "Your name is Ada."
    again = await gpt.chat.completions.create(**by_chat(name, user("What did I say first?")))
    assert again.choices[0].message.content == 'You first said: "My name is Ada."'


async def test_a_tool_loop_changes_dialects_in_the_middle(
    claude: AsyncAnthropic, gpt: AsyncOpenAI, simulator: Simulator, name: str
) -> None:
    called = await gpt.chat.completions.create(**by_chat(name, user(ASK), tools=[WEATHER_FUNCTION]))
    (call,) = called.choices[0].message.tool_calls or []
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Sunny."}
    answered = await claude.messages.create(**by_messages(name, [result]))
    assert answered.stop_reason == "end_turn"

    second = await claude.messages.create(**by_messages(name, ASK))
    (use,) = [block for block in second.content if block.type == "tool_use"]
    assert use.input == {"city": "Bern"}
    tool = {"role": "tool", "tool_call_id": use.id, "content": "Still sunny."}
    last = await gpt.chat.completions.create(**by_chat(name, tool))
    assert last.choices[0].finish_reason == "stop"
    (body,) = await sent_to_claude(simulator, 1)
    assert body["tools"] == [WEATHER]
    assert [message["role"] for message in body["messages"]] == ["user", "assistant"] * 3 + ["user"]


async def test_thinking_survives_a_client_that_cannot_carry_it(
    gpt: AsyncOpenAI, claude: AsyncAnthropic, simulator: Simulator, name: str
) -> None:
    """A tool loop driven by the openai SDK on a model that thinks, resent whole each time, as chat clients do."""
    begun = by_messages(name, "Hello.", thinking={"type": "adaptive"}, tools=[WEATHER])
    first = await claude.messages.create(**begun)
    assert first.content[0].type == "thinking"
    transcript: list[Any] = [user("Hello."), {"role": "assistant", "content": text_of(first)}, user(ASK)]
    for _ in range(2):
        answer = await gpt.chat.completions.create(**by_chat(name, *transcript, tools=[WEATHER_FUNCTION]))
        message = answer.choices[0].message
        assert "thinking" not in message.model_dump_json()
        transcript.append(message.model_dump(exclude_none=True))
        transcript += [
            {"role": "tool", "tool_call_id": call.id, "content": json.dumps({"call": call.id})}
            for call in message.tool_calls or ()
        ]
    assert answer.choices[0].finish_reason == "stop"
    first_body, second_body, third_body = await sent_to_claude(simulator, 3)
    assert second_body["messages"][: len(first_body["messages"])] == first_body["messages"]
    assert third_body["messages"][: len(second_body["messages"])] == second_body["messages"]
    kinds = [
        [block["type"] for block in one["content"]] for one in third_body["messages"] if one["role"] == "assistant"
    ]
    assert kinds == [["thinking", "text"], ["thinking", "tool_use"]]
    assert third_body["thinking"] == {"type": "adaptive"}


async def test_an_image_of_one_dialect_is_seen_by_the_other(
    claude: AsyncAnthropic, gpt: AsyncOpenAI, simulator: Simulator, name: str
) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
    image = {"type": "image", "source": source}
    await claude.messages.create(**by_messages(name, [image, {"type": "text", "text": "See."}]))
    await gpt.chat.completions.create(**by_chat(name, user("And?")))
    (body,) = await sent_to_claude(simulator, 1)
    assert body["messages"][0]["content"][0] == image


PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


async def test_a_turn_is_replayed_in_its_own_dialect_as_it_was(one: Caller, two: Caller, name: str) -> None:
    body = {"model": THINKS, "max_tokens": 500, "messages": [user(ASK)], "tools": [WEATHER]}
    headers = {"x-session-id": name, "idempotency-key": name}
    first = await one.request("POST", "/v1/messages", json=body, headers=headers)
    again = await two.request("POST", "/v1/messages", json=body, headers=headers)
    assert (first.status, again.json) == (200, first.json)
    chat = await one.chat("Hi", name, headers={"idempotency-key": name}, model=THINKS)
    assert (chat.status, chat.code) == (422, "idempotency_key_reused")
