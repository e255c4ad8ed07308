"""What callers of the two ancestors relied on, or stumbled over: turns, whole and streamed, good and failed.

Each test names the idea that it takes over; see test_ancestors.py. What reaches Claude is read from its stand-in.
"""

import asyncio
import json
import time
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from openai import AsyncOpenAI

from tests.e2e.by_hand import create
from tests.e2e.caller import CHAT, Caller, eventually, text_of
from tests.e2e.test_bad_input import TIMEOUT_S, post
from tests.instruments.processes import Simulator

pytestmark = pytest.mark.anyio

MODEL = "claude-sonnet-5-5"  # what a replica as shipped asks if nobody says which
OTHER_MODEL = "claude-opus-5-5"
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]


async def sent(simulator: Simulator) -> Any:
    """The body of the last request to Claude."""
    (request,) = await simulator.requests(limit=1)
    return request["body"]


# What reaches Claude.


async def test_without_a_model_the_default_is_asked_or_that_of_the_session(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    await create(one, name=name, model=OTHER_MODEL)
    for fields, model in (({}, MODEL), ({"session_id": name}, OTHER_MODEL)):
        for caller in (two, one):
            answer = await caller.request("POST", CHAT, json={"messages": HELLO, **fields})
            assert (answer.json["model"], (await sent(simulator))["model"]) == (model, model)


@pytest.mark.parametrize("way", ["stateless", "session"])
async def test_a_history_of_mixed_roles_keeps_its_order_and_its_roles(
    one: Caller, two: Caller, simulator: Simulator, name: str, way: str
) -> None:
    """The ancestors sent it as one text without roles."""
    history = [
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": "Hello Ada."},
        {"role": "user", "content": "I like tea."},
        {"role": "user", "content": [{"type": "text", "text": "And tarts."}]},
        {"role": "assistant", "content": [{"type": "text", "text": "So"}, {"type": "text", "text": " do I."}]},
        {"role": "user", "content": "What is my name?"},
    ]
    for number, caller in enumerate((one, two)):
        session = f"{name}-{number}" if way == "session" else None
        assert (await caller.chat("", session, messages=history)).text == "Your name is Ada."
        assert (await sent(simulator))["messages"] == history
    if way == "session":
        assert (await one.messages(f"{name}-1"))[:-1] == (await two.messages(f"{name}-0"))[:-1] == history


@pytest.mark.parametrize(
    ("prompts", "system"),
    [
        ([("system", "Be brief.")], "Be brief."),
        ([("developer", "Be brief.")], "Be brief."),
        (
            [("system", "Be brief."), ("developer", "Be kind."), ("system", "Be 🎈.")],
            [{"type": "text", "text": text} for text in ("Be brief.", "Be kind.", "Be 🎈.")],
        ),
    ],
)
async def test_system_messages_are_claudes_system_prompt_all_of_them_in_order(
    one: Caller, two: Caller, simulator: Simulator, name: str, prompts: list[tuple[str, str]], system: Any
) -> None:
    """Of one ancestor the last one won, wherever it stood."""
    messages = [*({"role": role, "content": text} for role, text in prompts), *HELLO]
    await one.chat("", messages=messages)
    assert ((await sent(simulator))["system"], (await sent(simulator))["messages"]) == (system, HELLO)
    await two.chat("", name, messages=messages)
    assert ((await sent(simulator))["system"], (await sent(simulator))["messages"]) == (system, HELLO)
    await one.chat("Hi", name)
    assert (await sent(simulator))["system"] == system
    assert (await two.session(name))["system_prompt"] == "\n\n".join(text for _, text in prompts)
    assert [message["role"] for message in await two.messages(name)] == ["user", "assistant"] * 2


async def test_parts_of_text_reach_claude_as_parts(one: Caller, two: Caller, simulator: Simulator, name: str) -> None:
    """Of one ancestor they became "[object Object]"."""
    parts = [{"type": "text", "text": "My name is"}, {"type": "text", "text": "Ada.\n🎈"}]
    for caller, session in ((one, None), (two, name), (one, name)):
        await caller.chat("", session, messages=[{"role": "user", "content": parts}])
        assert (await sent(simulator))["messages"][-1] == {"role": "user", "content": parts}
    assert [message["content"] for message in (await two.messages(name))[::2]] == [parts, parts]


async def test_long_content_goes_there_and_back(one: Caller, two: Caller, simulator: Simulator, name: str) -> None:
    """One ancestor answered 500 above 100 kB."""
    long = " ".join(f"{n}é🙂" for n in range(4_000)) + " " + "x" * 150_000
    said = f"Repeat after me: {long}"
    assert (await one.chat(said, name)).text == long
    assert (await sent(simulator))["messages"] == [{"role": "user", "content": said}]
    stored = await two.messages(name)
    assert [message["content"] for message in stored] == [said, [{"type": "text", "text": long}]]
    await two.chat("Hi", name)
    assert (await sent(simulator))["messages"] == [*stored, *HELLO]


async def test_max_completion_tokens_goes_before_max_tokens(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    for caller, session in ((one, None), (two, name)):
        answer = await caller.chat("Count to 9", session, max_tokens=7, max_completion_tokens=4)
        assert (answer.text, answer.json["choices"][0]["finish_reason"]) == ("1 2 3 4", "length")
        assert (await sent(simulator))["max_tokens"] == 4
        assert (await caller.chat("Count to 9", session, max_tokens=5)).text == "1 2 3 4 5"


@pytest.mark.parametrize("stop", ["7", ["12", "7"]], ids=["text", "list"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_stop_sequences_are_honoured(
    sdks: list[AsyncOpenAI], one: Caller, simulator: Simulator, name: str, stop: Any, streamed: bool
) -> None:
    for number, client in enumerate(sdks):
        asked = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Count to 20"}],
            stop=stop,
            stream=streamed,
            extra_body={"session_id": f"{name}-{number}"},
        )
        text, finish = await said_and_finish(await asked)
        assert (text.strip(), finish) == ("1 2 3 4 5 6", "stop")
        assert (await sent(simulator))["stop_sequences"] == (stop if isinstance(stop, list) else [stop])
        assert (await one.messages(f"{name}-{number}"))[1]["content"][0]["text"] == text
        (turn,) = (await one.get(f"/v1/sessions/{name}-{number}/turns")).json["turns"]
        assert turn["stop_reason"] == "stop_sequence"


async def said_and_finish(answer: Any) -> tuple[str, str]:
    """What the SDK's object says, whole or streamed, and why it ends."""
    if not isinstance(answer, openai.AsyncStream):
        return answer.choices[0].message.content, answer.choices[0].finish_reason
    choices = [chunk.choices[0] async for chunk in answer]
    return "".join(choice.delta.content or "" for choice in choices), choices[-1].finish_reason


# What comes back.

USAGE = {
    "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0},
}


def usage(prompt: int, completion: int) -> dict[str, Any]:
    """As OpenAI counts it; the stand-in counts a token for four bytes of input, and one for each word it says."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion, **USAGE}


async def test_a_completion_is_what_openai_documents(one: Caller, two: Caller, name: str) -> None:
    """The ancestors made its usage up."""
    for caller, session, prompt in ((one, None, 3), (two, None, 3), (one, name, 3), (two, name, 7)):
        before_s = int(time.time())
        answer = await caller.chat("Count to 3", session)
        assert before_s <= answer.json["created"] <= time.time()
        assert answer.json["id"].startswith("chatcmpl-")
        assert answer.json == {
            "id": answer.json["id"],
            "object": "chat.completion",
            "created": answer.json["created"],
            "model": MODEL,
            "service_tier": "default",
            **({"session_id": session} if session else {}),
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "1 2 3", "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": usage(prompt, 3),
        }


@pytest.mark.parametrize("with_usage", [True, False, None])
async def test_a_stream_is_role_then_text_then_the_reason_then_usage_then_done(
    one: Caller, two: Caller, name: str, with_usage: bool | None
) -> None:
    """With one id throughout. An ancestor put the usage into the chunk of the reason."""
    options = {} if with_usage is None else {"stream_options": {"include_usage": with_usage}}
    for caller, session, prompt in ((one, None, 3), (two, name, 3), (one, name, 7)):
        async with caller.stream("Count to 3", session, headers={"X-Request-Id": "mine"}, **options) as stream:
            frames = await stream.rest()
        *chunks, last = frames
        first = json.loads(chunks[0].removeprefix(b"data: "))
        envelope = {
            "id": first["id"],
            "object": "chat.completion.chunk",
            "created": first["created"],
            "model": MODEL,
            "service_tier": "default",
            **({"session_id": session} if session else {}),
        }
        none = {"usage": None} if with_usage else {}
        deltas: list[dict[str, Any]] = [
            {"role": "assistant", "content": "", "refusal": None},
            *({"content": text} for text in ("1", " 2", " 3")),
        ]
        expected = [
            {**envelope, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}], **none}
            for delta in deltas
        ]
        ended = [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
        expected.append({**envelope, "choices": ended, **none})
        if with_usage:
            expected.append({**envelope, "choices": [], "usage": usage(prompt, 3)})
        assert [json.loads(chunk.removeprefix(b"data: ")) for chunk in chunks] == expected
        assert last == b"data: [DONE]"
        assert {key.lower(): value for key, value in stream.headers.items() if not key.lower().startswith("x-s")} == {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache, no-transform",
            "x-accel-buffering": "no",
            "transfer-encoding": "chunked",
            "x-request-id": "mine",
            **({"x-turn-id": stream.headers["x-turn-id"]} if session else {}),
        }


async def test_a_long_answer_that_comes_at_once_is_streamed_whole(one: Caller, two: Caller, name: str) -> None:
    words = " ".join(f"{n}é🙂" + "x" * 100 for n in range(3_000))
    for number, caller in enumerate((one, two) * 3):
        async with caller.stream(f"Repeat after me: {words}", f"{name}-{number}") as stream:
            frames = await stream.rest()
        assert text_of(frames) == words
        assert frames[-1] == b"data: [DONE]"
        answered = (await two.messages(f"{name}-{number}"))[-1]
        assert answered == {"role": "assistant", "content": [{"type": "text", "text": words}]}


async def test_after_done_the_response_ends_and_the_connection_is_free_or_closed_as_asked(
    one: Caller, two: Caller, name: str
) -> None:
    """One ancestor never ended it: callers hung for ever."""
    body = json.dumps({"messages": HELLO, "stream": True, "session_id": name}).encode()
    for caller in (one, two):
        parts = urlsplit(caller.url)
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            try:
                for last in (False, False, True):
                    writer.write(post(body, *([b"Connection: close"] if last else [])))
                    streamed = await reader.readuntil(b"\r\n0\r\n\r\n")
                    assert streamed.startswith(b"HTTP/1.1 200 ")
                    assert streamed.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
                assert await reader.read() == b""
            finally:
                writer.close()
    assert len(await one.messages(name)) == 12


# What goes wrong.


@pytest.mark.parametrize(
    ("kind", "fields", "status", "message", "code"),
    [
        ("rate_limit", {"retry_after_s": 30}, 429, "Claude's rate limit is reached.", "upstream_rate_limited"),
        ("overloaded", {"times": 3}, 503, "Claude is overloaded.", "upstream_overloaded"),
        ("error", {"times": 3}, 503, "Claude failed to answer.", "upstream_unavailable"),
        ("garbage", {"times": 3}, 502, "Claude's answer is not an event stream.", "upstream_nonsense"),
    ],
)
async def test_a_failure_of_claudes_is_an_error_with_its_status_and_never_an_answer(
    sdks: list[AsyncOpenAI],
    one: Caller,
    simulator: Simulator,
    name: str,
    kind: str,
    fields: dict[str, Any],
    status: int,
    message: str,
    code: str,
) -> None:
    """One ancestor made an answer up and ended the stream well. The history stays as it was, too."""
    told = {
        "message": message,
        "type": "rate_limit_error" if status == 429 else "server_error",
        "param": None,
        "code": code,
    }

    async def fail(client: AsyncOpenAI, session: str, streamed: bool) -> None:
        await one.chat("My name is Ada.", session)
        before = await one.messages(session)
        await simulator.fault(kind, match=f"Count to 9 {session}.", **fields)
        with pytest.raises(openai.APIStatusError) as failed:
            await client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": f"Count to 9 {session}."}],
                stream=streamed,
                extra_body={"session_id": session},
            )
        assert (failed.value.status_code, failed.value.body) == (status, told)
        assert await one.messages(session) == before

    ways = enumerate((client, streamed) for client in sdks for streamed in (False, True))
    await asyncio.gather(*(fail(client, f"{name}-{number}", streamed) for number, (client, streamed) in ways))


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("error_mid_stream", "upstream_overloaded"),
        ("clean_end", "upstream_nonsense"),
        ("cut", "upstream_unavailable"),
    ],
)
async def test_a_stream_that_breaks_off_raises_in_the_sdk_and_is_not_stored(
    sdks: list[AsyncOpenAI], one: Caller, simulator: Simulator, name: str, kind: str, code: str
) -> None:
    await simulator.pace(delta_ms=50)  # or the error comes with the beginning, and it is asked again
    for number, client in enumerate(sdks):
        session = f"{name}-{number}"
        await one.chat("My name is Ada.", session)
        await simulator.fault(kind, after_deltas=4, match=f"Count to 9 {session}")
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": f"Count to 9 {session}"}],
            stream=True,
            extra_body={"session_id": session},
        )
        chunks = []
        with pytest.raises(openai.APIError) as failed:
            async for chunk in stream:
                chunks.append(chunk)  # noqa: PERF401  # what came before the error counts
        assert (failed.value.code, failed.value.type) == (code, "server_error")
        assert [choice.finish_reason for chunk in chunks for choice in chunk.choices] == [None] * len(chunks)
        assert "1 2 3 4 5".startswith("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
        assert len(await one.messages(session)) == 2


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_sdk_tries_again_by_itself_and_the_turn_is_stored_once(
    one: Caller, two: Caller, simulator: Simulator, name: str, streamed: bool
) -> None:
    """Of one ancestor the question stayed when the answer failed, and each retry stored it again."""

    async def ask(caller: Caller, session: str) -> None:
        await one.chat("My name is Ada.", session)
        await simulator.fault("overloaded", times=4, match=f"Count to 3 {session}")
        async with AsyncOpenAI(base_url=f"{caller.url}/v1", api_key="unused") as client:
            answer = await client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": f"Count to 3 {session}"}],
                stream=streamed,
                extra_body={"session_id": session},
            )
            assert await said_and_finish(answer) == ("1 2 3", "stop")
        assert [message["role"] for message in await one.messages(session)] == ["user", "assistant"] * 2
        turns = (await one.get(f"/v1/sessions/{session}/turns")).json["turns"]
        assert [turn["verdict"] for turn in turns] == ["committed", "aborted", "committed"]

    await asyncio.gather(ask(one, f"{name}-1"), ask(two, f"{name}-2"))


async def test_leaving_a_stream_of_the_sdk_stops_claude_and_leaves_a_sound_session(
    sdks: list[AsyncOpenAI], one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    """One ancestor went on asking, and kept the question without an answer."""
    for number, (client, other) in enumerate(zip(sdks, (two, one), strict=True)):
        session = f"{name}-{number}"
        await simulator.fault("slow_deltas", delay_ms=20, match=session)
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": f"Count to 900 {session}"}],
            stream=True,
            extra_body={"session_id": session},
        )
        shown = ""
        async with stream:
            async for chunk in stream:
                shown += chunk.choices[0].delta.content or ""
                if shown.count(" ") == 5:
                    break

        async def stopped(mark: str = session) -> bool:
            return [request["outcome"] for request in await simulator.asked(mark)] == ["disconnected"]

        await eventually(stopped, "the end of the request to Claude")
        after = await other.chat("How many messages?", session)
        assert after.text == "This conversation holds 3 messages."
        asked, answered, *_ = await other.messages(session)
        assert asked["content"] == f"Count to 900 {session}"
        assert answered["content"][0]["text"].startswith(shown)
