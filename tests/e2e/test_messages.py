"""Anthropic's messages, driven by the anthropic SDK over two replicas: in sessions and without."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from anthropic import AsyncAnthropic

from tests.e2e.caller import Caller
from tests.instruments.processes import Simulator

pytestmark = pytest.mark.anyio

Json = dict[str, Any]
MODEL = "claude-sonnet-5-5"
THINKS = "claude-opus-5-5"


@pytest.fixture
async def sdks(one: Caller, two: Caller) -> AsyncIterator[list[AsyncAnthropic]]:
    """An SDK for each replica."""
    first, second = (AsyncAnthropic(base_url=each.url, api_key="unused", max_retries=0) for each in (one, two))
    async with first, second:
        yield [first, second]


def new_name() -> str:
    return f"messages-{uuid.uuid4().hex}"


def said(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def in_session(name: str, **more: str) -> Json:
    return {"extra_headers": {"X-Session-Id": name, **more}}


async def test_a_session_goes_on_at_another_replica_and_takes_only_what_is_new(sdks: list[AsyncAnthropic]) -> None:
    name = new_name()
    first = await sdks[0].messages.create(
        model=MODEL, max_tokens=100, messages=said("My name is Ada."), **in_session(name)
    )
    assert (first.type, first.role, first.model, first.stop_reason) == ("message", "assistant", MODEL, "end_turn")
    assert first.usage.output_tokens > 0
    async with sdks[1].messages.stream(
        model=MODEL, max_tokens=100, messages=said("What is my name?"), **in_session(name)
    ) as stream:
        streamed = await stream.get_final_message()
    assert text_of(streamed) == "Your name is Ada."
    assert streamed.stop_reason == "end_turn"


async def test_a_stateless_body_reaches_claude_byte_by_byte_and_its_answer_comes_back_as_it_was(
    one: Caller, simulator: Simulator
) -> None:
    raw = b'{ "max_tokens":100,  "messages" : [{"content":"Hi \\u00e9", "role":"user"}],"model":"%b" }' % MODEL.encode()
    headers = {"content-type": "application/json", "anthropic-beta": "future-2026-11-01", "x-api-key": "caller's own"}
    answer = await one.request("POST", "/v1/messages", data=raw, headers=headers)
    assert answer.status == 200
    assert answer.json["content"][0]["text"].startswith("You said")
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
    assert "x-session-id" not in answer.headers
    (request,) = await simulator.requests(1)
    assert request["body"] == orjson.loads(raw)
    assert request["headers"]["content-length"] == str(len(raw))
    assert request["headers"]["anthropic-beta"] == "future-2026-11-01"
    assert "caller's own" not in str(request)
