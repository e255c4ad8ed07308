"""Tool loops, driven by the openai SDK over two replicas: what is new or everything, streamed and not."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import redis.asyncio
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessage

from storage.keys import Keyspace
from tests.e2e.by_hand import append, assistant, user
from tests.e2e.caller import Caller, chunks_of, eventually
from tests.instruments.processes import SECRET, Fleet, Simulator

pytestmark = pytest.mark.anyio

Json = dict[str, Any]

MODEL = "claude-sonnet-5-5"
FORCEABLE = "claude-sonnet-5"
PLACE = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": PLACE}}
CLOCK = {"type": "function", "function": {"name": "clock", "strict": True}}
AS_CLAUDE_HAS_THEM = [
    {"name": "weather", "description": "Tells it.", "input_schema": PLACE},
    {"name": "clock", "input_schema": {"type": "object", "properties": {}}, "strict": True},
]
TOOLS: Any = [WEATHER, CLOCK]
ASK = 'What is it like? call weather with {"city": "Zürich"}, call weather with {"city": "Bern"}'


@pytest.fixture
async def sdks(one: Caller, two: Caller) -> AsyncIterator[list[AsyncOpenAI]]:
    """An SDK for each replica."""
    first, second = (AsyncOpenAI(base_url=f"{each.url}/v1", api_key="unused", max_retries=0) for each in (one, two))
    async with first, second:
        yield [first, second]


Turn = Callable[[AsyncOpenAI, Json], Awaitable[ChatCompletionMessage]]


async def whole(sdk: AsyncOpenAI, request: Json) -> ChatCompletionMessage:
    answer = await sdk.chat.completions.create(**request)
    (choice,) = answer.choices
    assert choice.finish_reason == ("tool_calls" if choice.message.tool_calls else "stop")
    return choice.message


async def streamed(sdk: AsyncOpenAI, request: Json) -> ChatCompletionMessage:
    """What the SDK's own helper puts together from the chunks."""
    async with sdk.chat.completions.stream(**request) as stream:
        async for _ in stream:
            pass
        (choice,) = (await stream.get_final_completion()).choices
    assert choice.finish_reason == ("tool_calls" if choice.message.tool_calls else "stop")
    return choice.message


def carry_out(message: ChatCompletionMessage) -> list[Json]:
    """The results of an answer's calls."""
    results = []
    for call in message.tool_calls or ():
        assert call.type == "function"
        said = f"{call.function.name} {json.loads(call.function.arguments)}"
        results.append({"role": "tool", "tool_call_id": call.id, "content": said})
    return results


async def loop(sdks: list[AsyncOpenAI], turn: Turn, session: str, *, resend: bool) -> list[Any]:
    """Asks, and answers calls until there are none; each request goes to the next replica."""
    transcript: list[Any] = [user(ASK)]
    new = list(transcript)
    for number in range(3):
        request: Json = {"model": MODEL, "messages": transcript if resend else new}
        request["extra_body"] = {"session_id": session}
        if number == 0:
            request["tools"] = TOOLS
        message = await turn(sdks[number % 2], request)
        new = carry_out(message)
        transcript += [message, *new]
        if not new:
            return transcript
    raise AssertionError("the loop has no end")


STORED = [
    user(ASK),
    ("weather", {"city": "Zürich"}),
    ("weather", {"city": "Bern"}),
    ["weather {'city': 'Zürich'}", "weather {'city': 'Bern'}"],
]


async def is_stored_once(caller: Caller, session: str) -> None:
    """The loop as Claude has it: four messages, and the calls and results belong together."""
    asked, called, answered, said = await caller.messages(session)
    assert asked == STORED[0]
    assert [(block["name"], block["input"]) for block in called["content"]] == STORED[1:3]
    assert [block["type"] for block in answered["content"]] == ["tool_result"] * 2
    assert [block["content"] for block in answered["content"]] == STORED[3]
    assert [block["tool_use_id"] for block in answered["content"]] == [block["id"] for block in called["content"]]
    assert (answered["role"], said["role"]) == ("user", "assistant")
    assert (await caller.session(session))["turn_count"] == 2


@pytest.mark.parametrize("resend", [False, True], ids=["what-is-new", "everything"])
@pytest.mark.parametrize("turn", [whole, streamed])
async def test_a_loop_with_two_calls_at_once(
    sdks: list[AsyncOpenAI], one: Caller, simulator: Simulator, name: str, turn: Turn, resend: bool
) -> None:
    transcript = await loop(sdks, turn, name, resend=resend)
    _, called, first, second, last = transcript
    assert not called.content
    assert [first["content"], second["content"]] == STORED[3]
    assert "weather {'city': 'Zürich'} weather {'city': 'Bern'}" in last.content
    await is_stored_once(one, name)
    asked = [request["body"] for request in await simulator.requests(limit=2)]
    assert [len(body["messages"]) for body in asked] == [1, 3]
    assert [body["tools"] for body in asked] == [AS_CLAUDE_HAS_THEM] * 2
    assert asked[1]["messages"][:1] == asked[0]["messages"]
    # The conversation goes on, from the other side and in the other way.
    more = [*transcript, user("How many messages?")] if not resend else [user("How many messages?")]
    request = {"model": MODEL, "messages": more, "extra_body": {"session_id": name}}
    assert (await whole(sdks[1], request)).content == "This conversation holds 5 messages."
    assert (await one.session(name))["message_count"] == 6


async def test_words_and_calls_come_together(sdks: list[AsyncOpenAI], one: Caller, name: str) -> None:
    for number, turn in enumerate((whole, streamed)):
        request: Json = {"model": MODEL, "tools": TOOLS, "extra_body": {"session_id": f"{name}-{number}"}}
        request["messages"] = [user("count to 3, then call clock")]
        message = await turn(sdks[0], request)
        assert message.content == "1 2 3"
        assert message.tool_calls is not None
        (call,) = message.tool_calls
        assert call.type == "function"
        assert (call.function.name, call.function.arguments) == ("clock", "{}")
        request["messages"] += [message, *carry_out(message)]
        await turn(sdks[1], request)
        stored = await one.messages(f"{name}-{number}")
        assert [block["type"] for block in stored[1]["content"]] == ["text", "tool_use"]
        assert len(stored) == 4


async def test_a_stateless_loop_stores_nothing(sdks: list[AsyncOpenAI], one: Caller) -> None:
    transcript: list[Any] = [user("call clock")]
    for turn in (whole, streamed):
        message = await turn(sdks[0], {"model": MODEL, "messages": transcript, "tools": TOOLS})
        transcript += [message, *carry_out(message)]
    assert "clock {}" in transcript[-1].content
    refused = await one.chat("", messages=[user("call clock"), calling("a"), user("well?")], tools=TOOLS)
    assert (refused.status, refused.code) == (400, "invalid_value")
    assert "`a`" in refused.json["error"]["message"]


def calling(*ids: str) -> Json:
    calls = [{"id": call, "type": "function", "function": {"name": "clock", "arguments": "{}"}} for call in ids]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def result(call: str, said: str = "noon") -> Json:
    return {"role": "tool", "tool_call_id": call, "content": said}


async def asks_for_two(caller: Caller, session: str) -> list[str]:
    """A turn that ends in two calls; their ids."""
    answer = await caller.chat("call clock, call weather", session, tools=TOOLS)
    message = answer.json["choices"][0]["message"]
    assert (answer.json["choices"][0]["finish_reason"], message["content"]) == ("tool_calls", None)
    return [call["id"] for call in message["tool_calls"]]


# Tools, and the choice among them.


NO_TOOLS_THIS_TIME: list[Json] = [{"tools": []}, {"tool_choice": "none"}]


async def test_tools_are_kept_and_can_be_changed(one: Caller, two: Caller, simulator: Simulator, name: str) -> None:
    async def sent() -> Json:
        (request,) = await simulator.requests(limit=1)
        body: Json = request["body"]
        return body

    await one.chat("Hi", name, tools=TOOLS)
    assert (await sent())["tools"] == AS_CLAUDE_HAS_THEM
    await two.chat("Hi", name)
    assert (await sent())["tools"] == AS_CLAUDE_HAS_THEM
    for nothing in NO_TOOLS_THIS_TIME:
        answer = await one.chat("call clock", name, **nothing)
        assert answer.json["choices"][0]["finish_reason"] == "stop"
        assert (await sent())["tools"] == AS_CLAUDE_HAS_THEM
        assert (await sent())["tool_choice"] == {"type": "none"}
    await two.chat("Hi", name, tools=[CLOCK])
    assert (await sent())["tools"] == AS_CLAUDE_HAS_THEM[1:]
    await one.chat("Hi", name)
    assert (await sent())["tools"] == AS_CLAUDE_HAS_THEM[1:]
    assert (await one.session(name))["message_count"] == 12


async def test_other_tools_begin_an_epoch(fleet: Fleet, one: Caller, two: Caller, name: str) -> None:
    async def epoch(caller: Caller, **fields: Any) -> tuple[str, int]:
        answer = await caller.chat("Hi", name, **fields)
        keys = Keyspace("baton", 1, SECRET.encode()).session(answer.headers["x-session-id"], "open").keys
        async with redis.asyncio.from_url(fleet.valkey.url) as store:
            found: list[Any] = await store.hmget(keys[0], ["eh", "es"])
        return found[0].decode(), int(found[1])

    first, start = await epoch(one, tools=TOOLS)
    assert start == 0
    assert await epoch(two) == (first, 0)
    assert await epoch(one, tools=TOOLS, tool_choice="none", parallel_tool_calls=False) == (first, 0)
    second, start = await epoch(two, tools=[CLOCK])
    assert (second != first, start) == (True, 6)
    assert await epoch(one) == (second, 6)


@pytest.mark.parametrize(
    ("choice", "called"),
    [
        ({"tool_choice": "auto"}, ["clock", "weather"]),
        ({"tool_choice": "none"}, []),
        ({"tool_choice": "required"}, ["clock", "weather"]),
        ({"tool_choice": {"type": "function", "function": {"name": "weather"}}}, ["weather"]),
        ({"parallel_tool_calls": False}, ["clock"]),
        ({"tool_choice": "required", "parallel_tool_calls": False}, ["clock"]),
    ],
    ids=str,
)
async def test_the_choice_reaches_claude(sdks: list[AsyncOpenAI], name: str, choice: Json, called: list[str]) -> None:
    request = {"messages": [user("call clock, call weather")], "extra_body": {"session_id": name}}
    for turn in (whole, streamed):
        message = await turn(sdks[0], {"model": FORCEABLE, "tools": TOOLS, **request, **choice})
        made = [call.function.name for call in message.tool_calls or () if call.type == "function"]
        assert made == called
        request["messages"] = [*carry_out(message), user("call clock, call weather")]


async def test_a_choice_among_no_tools_costs_nothing(one: Caller, simulator: Simulator, name: str) -> None:
    asked = await simulator.total()
    for session in (name, None):
        refused = await one.chat("Hi", session, tool_choice="required")
        assert (refused.status, refused.code) == (400, "invalid_value")
        assert refused.json["error"]["param"] == "tool_choice"
    assert await simulator.total() == asked
    assert (await one.get(f"/v1/sessions/{name}")).status == 404


async def test_a_model_that_cannot_be_forced_is_not_asked(one: Caller, simulator: Simulator, name: str) -> None:
    asked = await simulator.total()
    for session in (name, None):
        refused = await one.chat("Hi", session, tools=TOOLS, tool_choice="required", model=MODEL)
        assert (refused.status, refused.code) == (400, "unsupported")
        assert refused.json["error"]["param"] == "tool_choice"
        assert MODEL in refused.json["error"]["message"]
    assert await simulator.total() == asked
    assert (await one.get(f"/v1/sessions/{name}")).status == 404


async def test_a_model_that_is_not_named_says_itself_that_it_cannot_be_forced(one: Caller, name: str) -> None:
    refused = await one.chat("Hi", name, tools=TOOLS, tool_choice="required")
    assert (refused.status, refused.code) == (400, "upstream_invalid_request")
    assert "not supported for this model" in refused.json["error"]["message"]


# Calls without results, results without calls.


async def test_calls_that_are_left_without_a_result_are_closed(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    first, second = await asks_for_two(one, name)
    answer = await two.chat("", name, messages=[result(second), user("How many messages?")])
    assert answer.text == "This conversation holds 5 messages."
    (request,) = await simulator.requests(limit=1)
    closed, answered, asked = request["body"]["messages"][2:]
    assert [(block["tool_use_id"], block["is_error"]) for block in closed["content"]] == [(first, True)]
    assert answered["content"] == [{"type": "tool_result", "tool_use_id": second, "content": "noon"}]
    assert asked == user("How many messages?")
    late = await one.chat("", name, messages=[result(first)])
    assert (late.status, late.code) == (409, "tool_call_closed")
    assert late.headers["x-should-retry"] == "false"
    again = await two.chat("", name, messages=[result(second)])
    assert (again.status, again.code) == (409, "tool_call_closed")
    assert (await one.session(name))["message_count"] == 6
    assert (await one.chat("What is my name?", name)).status == 200


async def test_a_result_of_an_unknown_call_is_refused_and_leaves_everything_as_it_was(
    one: Caller, two: Caller, name: str
) -> None:
    first, second = await asks_for_two(one, name)
    before = await one.messages(name)
    for messages in ([result("toolu_x")], [result(first), result("toolu_x"), result(second)]):
        refused = await two.chat("", name, messages=messages)
        assert (refused.status, refused.code) == (400, "invalid_value")
        assert "toolu_x" in refused.json["error"]["message"]
    assert await one.messages(name) == before
    nowhere = await two.chat("", f"{name}-new", messages=[result(first)])
    assert (nowhere.status, nowhere.code) == (400, "invalid_value")
    assert (await one.get(f"/v1/sessions/{name}-new")).status == 404
    answered = await two.chat("", name, messages=[result(first), result(second)])
    assert answered.text.startswith('You said: "noon noon"')


async def test_a_refused_question_leaves_the_calls_open(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    first, second = await asks_for_two(one, name)
    await simulator.fault("refusal", match=f"how to {name}")
    refused = await one.chat(f"how to {name}", name)
    assert refused.json["choices"][0]["finish_reason"] == "content_filter"
    answered = await two.chat("", name, messages=[result(first), result(second)])
    assert answered.status == 200
    assert len(await one.messages(name)) == 4


async def test_a_refused_question_behind_open_calls_is_passed_over_when_it_is_sent_again(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    asked = await one.chat("call clock", name, tools=TOOLS)
    transcript = [user("call clock"), asked.json["choices"][0]["message"]]
    await simulator.fault("refusal", match=f"how to {name}")
    await two.chat(f"how to {name}", name)
    transcript += [user(f"how to {name}"), assistant("I cannot."), user("How many messages?")]
    answer = await one.chat("", name, messages=transcript)
    assert answer.text == "This conversation holds 4 messages."
    assert answer.headers["x-session-state"] == "continued"


# An answer that is cut short.


async def interrupted(caller: Caller, simulator: Simulator, session: str, said: str) -> list[Any]:
    """A streamed turn whose caller leaves once the second of two calls has begun; what it saw of the calls."""
    await simulator.fault("slow_deltas", delay_ms=40, match=session)
    deltas: list[Any] = []
    async with caller.stream(said, session, tools=TOOLS) as stream:
        while not any(delta["index"] == 1 for delta in deltas):
            frame = await stream.frame()
            assert frame is not None
            for chunk in chunks_of([frame]):
                deltas += chunk["choices"][0]["delta"].get("tool_calls", [])
        stream.hang_up()

    async def settled() -> bool:
        answer = await caller.get(f"/v1/sessions/{session}")
        return answer.status == 200 and answer.json["status"] == "active" and answer.json["message_count"] > 0

    await eventually(settled, "the incomplete turn")
    return deltas


async def test_a_whole_call_of_an_interrupted_answer_is_closed_by_the_next_question(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    said = f'count to 2, call clock, call weather with {{"city": "{"x" * 400}"}} {name}'
    seen = await interrupted(one, simulator, name, said)
    _, kept = await two.messages(name)
    assert [(block["type"], block.get("name")) for block in kept["content"]] == [("text", None), ("tool_use", "clock")]
    assert kept["content"][1]["id"] == seen[0]["id"]
    turns = (await two.get(f"/v1/sessions/{name}/turns")).json["turns"]
    assert [turn["verdict"] for turn in turns] == ["incomplete"]
    assert (await two.chat("How many messages?", name)).text == "This conversation holds 4 messages."
    closed = (await one.messages(name))[2]
    assert closed["role"] == "user"
    assert [(block["tool_use_id"], block["is_error"]) for block in closed["content"]] == [(seen[0]["id"], True)]
    late = await one.chat("", name, messages=[result(seen[0]["id"])])
    assert (late.status, late.code) == (409, "tool_call_closed")


async def test_a_whole_call_of_an_interrupted_answer_may_still_be_answered(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    said = f'call clock, call weather with {{"city": "{"x" * 400}"}} {name}'
    seen = await interrupted(one, simulator, name, said)
    answer = await two.chat("", name, messages=[result(seen[0]["id"])])
    assert answer.text.startswith('You said: "noon"')
    assert [message["role"] for message in await one.messages(name)] == ["user", "assistant", "user", "assistant"]


async def test_a_client_that_resends_everything_goes_on_after_an_interruption(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    said = f'count to 2, call clock, call weather with {{"city": "{"x" * 400}"}} {name}'
    await interrupted(one, simulator, name, said)
    # It shows the text it saw, and drops calls that it cannot be sure of.
    transcript = [user(said), assistant("1 2"), user("How many messages?")]
    answer = await two.chat("", name, messages=transcript)
    assert answer.text == "This conversation holds 4 messages."
    assert answer.headers["x-session-state"] == "continued"
    transcript += [assistant(answer.text), user("How many messages?")]
    answer = await one.chat("", name, messages=transcript)
    assert answer.text == "This conversation holds 6 messages."
    assert answer.headers["x-session-state"] == "continued"


# Everything sent again, otherwise than before.


async def test_an_answer_to_results_can_be_asked_for_anew(
    sdks: list[AsyncOpenAI], one: Caller, two: Caller, name: str
) -> None:
    transcript = await loop(sdks, whole, name, resend=True)
    plain = [message if isinstance(message, dict) else message.to_dict() for message in transcript]
    again = await two.chat("", name, messages=plain[:-1])
    assert again.headers["x-session-state"] == "rewound"
    await is_stored_once(one, name)
    other = [*plain[:2], result(plain[2]["tool_call_id"], "hail"), plain[3]]
    changed = await one.chat("", name, messages=other)
    assert changed.headers["x-session-state"] == "rewound"
    assert changed.text.startswith('You said: "hail weather')
    without = await two.chat("", name, messages=[*plain[:2], user("How many messages?")])
    assert without.headers["x-session-state"] == "rewound"
    assert without.text == "This conversation holds 4 messages."
    assert (await one.session(name))["turn_count"] == 2


# By hand.


async def test_calls_and_results_are_appended_in_claudes_form(one: Caller, two: Caller, name: str) -> None:
    await one.chat("Hi", name, tools=TOOLS)
    call = {"type": "tool_use", "id": "toolu_1", "name": "clock", "input": {}}
    noon = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "noon"}
    asked = await append(one, name, user("What time is it?"), {"role": "assistant", "content": [call]})
    assert (asked.status, asked.json["message_count"]) == (200, 4)
    refused = await append(two, name, {"role": "user", "content": [{**noon, "tool_use_id": "toolu_2"}]})
    assert (refused.status, refused.code) == (400, "invalid_value")
    answered = await append(two, name, {"role": "user", "content": [noon]}, assistant("Noon."))
    assert (answered.status, answered.json["message_count"]) == (200, 6)
    late = await append(one, name, {"role": "user", "content": [noon]})
    assert (late.status, late.code) == (409, "tool_call_closed")
    assert (await two.chat("How many messages?", name)).text == "This conversation holds 7 messages."


async def test_a_call_made_by_hand_is_answered_in_a_turn(one: Caller, two: Caller, name: str) -> None:
    call = {"type": "tool_use", "id": "toolu_1", "name": "clock", "input": {}}
    await one.chat("Hi", name, tools=TOOLS)
    await append(one, name, user("What time is it?"), {"role": "assistant", "content": [call]})
    answers = await asyncio.gather(
        two.chat("", name, messages=[result("toolu_1")]), one.chat("", name, messages=[result("toolu_1")])
    )
    assert sorted(answer.status for answer in answers) == [200, 409]
    assert len(await one.messages(name)) == 6
