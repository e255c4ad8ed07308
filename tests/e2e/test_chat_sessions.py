"""Conversations over real HTTP: two replicas, one Valkey, the stand-in for Claude."""

import asyncio
import re
from itertools import pairwise
from typing import Any

import orjson
import pytest
import redis.asyncio
from openai import AsyncOpenAI

from storage.keys import Keyspace
from tests.e2e.caller import CHAT, Answer, Caller, chunks_of, eventually, text_of
from tests.e2e.unchanged import unchanged
from tests.instruments.processes import SECRET, Fleet, Simulator

pytestmark = pytest.mark.anyio

ISSUED = re.compile(r"sess_[0-9a-f]{2}[a-z2-7]{26}")
TURN = re.compile(r"turn_[a-z2-7]{26}")
UNKNOWN = "sess_00" + "a" * 26
REJECT = {"X-Session-On-Conflict": "reject"}
MODEL = "claude-sonnet-5-5"


async def turn_records(fleet: Fleet, session_id: str) -> list[dict[str, Any]]:
    """The stored records of a session's turns."""
    keys = Keyspace("baton", 1, SECRET.encode()).session(session_id, "open").keys
    async with redis.asyncio.from_url(fleet.valkey.url) as store:
        return [orjson.loads(record) for record in await store.lrange(keys[2], 0, -1)]


async def ended_upstream(simulator: Simulator, mark: str) -> dict[str, Any]:
    """The one request with the mark, once it is over."""

    async def look() -> dict[str, Any] | None:
        found = await simulator.asked(mark)
        return found[0] if found and found[0]["outcome"] != "running" else None

    return await eventually(look, "the end of the request to Claude")


# Which session.


async def test_new_issues_an_id_that_continues_on_the_other_replica(one: Caller, two: Caller) -> None:
    first = await one.chat("My name is Ada.", "new")
    issued = first.headers["x-session-id"]
    assert ISSUED.fullmatch(issued)
    assert first.json["session_id"] == issued
    second = await two.chat("What is my name?", issued)
    assert second.text == "Your name is Ada."
    assert second.headers["x-session-id"] == second.json["session_id"] == issued
    assert (first.headers["x-session-state"], second.headers["x-session-state"]) == ("new", "continued")


async def test_a_name_is_a_session_from_its_first_use_and_its_issued_id_reaches_it(
    one: Caller, two: Caller, name: str
) -> None:
    first = await one.chat("My name is Ada.", name)
    issued = first.headers["x-session-id"]
    assert ISSUED.fullmatch(issued)
    assert first.json["session_id"] == name
    second = await two.chat("What is my name?", headers={"X-Session-Id": issued})
    assert second.text == "Your name is Ada."
    assert second.json["session_id"] == issued
    found = await two.session(name)
    assert found == {**await one.session(issued), "last_accessed_at": found["last_accessed_at"]} | {
        key: found[key] for key in ("expires_at",)
    }
    assert (found["id"], found["name"], found["session_id"]) == (issued, name, name)


async def test_body_and_header_may_agree(one: Caller, name: str) -> None:
    answer = await one.chat("Hi", name, headers={"X-Session-Id": name})
    assert answer.json["session_id"] == name


@pytest.mark.parametrize(
    ("in_body", "headers", "status", "code"),
    [
        ("a", {"X-Session-Id": "b"}, 400, "session_id_conflict"),
        ("", {}, 400, "invalid_session_id"),
        (None, {"X-Session-Id": ""}, 400, "invalid_session_id"),
        (5, {}, 400, "invalid_session_id"),
        ("a b", {}, 400, "invalid_session_id"),
        ("a" * 201, {}, 400, "invalid_session_id"),
        ("stats", {}, 400, "invalid_session_id"),
        ("import", {}, 400, "invalid_session_id"),
        (UNKNOWN, {}, 404, "session_not_found"),
        ("sess_of-mine", {}, 404, "session_not_found"),
        ("a", {"X-Session-Mode": "maybe"}, 400, "invalid_value"),
        (None, {"X-Session-Mode": "create"}, 400, "invalid_value"),
        ("new", {"X-Session-Mode": "continue"}, 400, "invalid_value"),
        (UNKNOWN, {"X-Session-Mode": "create"}, 400, "invalid_value"),
        ("a", {"X-Session-On-Conflict": "fight"}, 400, "invalid_value"),
        ("a", {"X-Session-On-Disconnect": "weep"}, 400, "invalid_value"),
        ("a", {"X-Session-Input": "most"}, 400, "invalid_value"),
        ("a", {"X-Expect-Turn": "turn_x"}, 400, "invalid_value"),
        (None, {"X-Expect-Turn": "turn_" + 26 * "a"}, 400, "invalid_value"),
        ("new", {"X-Expect-Turn": "turn_" + 26 * "a"}, 400, "invalid_value"),
        ("a", {"Idempotency-Key": ""}, 400, "invalid_value"),
        ("a", {"Idempotency-Key": 256 * "k"}, 400, "invalid_value"),
    ],
)
async def test_sessions_that_cannot_be(
    fleet: Fleet, one: Caller, in_body: Any, headers: dict[str, str], status: int, code: str
) -> None:
    async with unchanged(fleet):
        for stream in (False, True):
            answer = await one.chat("Hi", in_body, headers=headers, stream=stream)
            assert (answer.status, answer.code) == (status, code)
            assert answer.headers["x-should-retry"] == "false"


async def test_what_is_no_models_name_leaves_nothing_behind(fleet: Fleet, one: Caller, name: str) -> None:
    await one.chat("My name is Ada.", name)
    before = await one.session(name)
    async with unchanged(fleet):
        for model in ("m" * 201, "m" * 500_000, "", "a b"):
            body = {"messages": [{"role": "user", "content": "Hi"}], "session_id": name, "model": model}
            answer = await one.request("POST", CHAT, json=body)
            assert (answer.status, answer.code, answer.json["error"]["param"]) == (400, "invalid_value", "model")
        found = await one.session(name)
    assert found == before | {key: found[key] for key in ("last_accessed_at", "expires_at")}


async def test_null_is_absent(fleet: Fleet, one: Caller) -> None:
    async with unchanged(fleet, claude=False):
        answer = await one.request(
            "POST", CHAT, json={"messages": [{"role": "user", "content": "Hi"}], "session_id": None}
        )
        assert answer.status == 200


async def test_without_a_session_nothing_is_stored_and_nothing_said_about_one(fleet: Fleet, one: Caller) -> None:
    async with unchanged(fleet, claude=False):
        answer = await one.chat("Hi")
        assert "session_id" not in answer.json
        async with one.stream("Hi") as stream:
            chunks = chunks_of(await stream.rest())
        assert not any("session_id" in chunk for chunk in chunks)
        for headers in (answer.headers, stream.headers):
            assert "x-request-id" in headers
            assert not {"x-session-id", "x-session-state", "x-turn-id"} & {key.lower() for key in headers}
    (request,) = await fleet.simulator.requests(limit=1)
    assert "cache_control" not in request["body"]


async def test_a_whole_history_may_be_sent_without_a_session(one: Caller) -> None:
    history = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": "Hello Ada."},
        {"role": "user", "content": "What is my name?"},
    ]
    assert (await one.chat("", messages=history)).text == "Your name is Ada."


async def test_a_new_session_takes_a_whole_history_as_it_is(one: Caller, name: str) -> None:
    history = [
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": "Hello Ada."},
        {"role": "user", "content": "What is my name?"},
    ]
    for at, way in enumerate((None, "delta", "full")):
        answer = await one.chat("", f"{name}-{at}", messages=history, session_input=way)
        assert answer.text == "Your name is Ada."
        assert (await one.session(f"{name}-{at}"))["message_count"] == 4


async def test_modes(one: Caller, two: Caller, name: str) -> None:
    missing = await one.chat("Hi", name, headers={"X-Session-Mode": "continue"})
    assert (missing.status, missing.code) == (404, "session_not_found")
    created = await one.chat("Hi", name, headers={"X-Session-Mode": "create"})
    assert created.headers["x-session-state"] == "new"
    again = await two.chat("Hi", name, headers={"X-Session-Mode": "create"})
    assert (again.status, again.code) == (409, "session_exists")
    continued = await two.chat("Hi", name, headers={"X-Session-Mode": "continue"})
    assert continued.headers["x-session-state"] == "continued"
    assert (await one.session(name))["message_count"] == 4


async def test_ids_in_headers(one: Caller, name: str) -> None:
    answer = await one.chat("Hi", name, headers={"X-Request-Id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert TURN.fullmatch(answer.headers["x-turn-id"])
    other = await one.chat("Hi", name)
    assert other.headers["x-request-id"].startswith("req_")
    assert other.headers["x-turn-id"] != answer.headers["x-turn-id"]
    assert other.json["id"] == "chatcmpl-" + other.headers["x-turn-id"].removeprefix("turn_")


async def test_what_is_ignored_is_told(one: Caller, name: str) -> None:
    answer = await one.chat("Hi", temperature=0.3, top_p=1, headers={"Idempotency-Key": "k"})
    assert answer.headers["x-baton-ignored"] == "Idempotency-Key, temperature"
    assert "x-session-id" not in answer.headers
    async with one.stream("Hi", name, seed=7) as stream:
        await stream.rest()
    assert stream.headers["x-baton-ignored"] == "seed"


# A conversation.


def sdk(caller: Caller) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{caller.url}/v1", api_key="unused", max_retries=0)


async def test_the_openai_sdk_carries_one_conversation_over_two_replicas(one: Caller, two: Caller, name: str) -> None:
    async with sdk(one) as first, sdk(two) as second:
        told = await first.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "My name is Ada."}],
            extra_body={"session_id": name},
        )
        assert told.choices[0].finish_reason == "stop"
        stream = await second.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "What is my name?"}],
            stream=True,
            stream_options={"include_usage": True},
            extra_headers={"X-Session-Id": name},
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Your name is Ada."
        assert {(chunk.model_extra or {})["session_id"] for chunk in chunks} == {name}
        assert len({chunk.id for chunk in chunks}) == 1
        assert chunks[-1].usage is not None
        counted = await first.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "How many messages?"}],
            extra_body={"session_id": name},
        )
        assert counted.choices[0].message.content == "This conversation holds 5 messages."
        assert counted.usage is not None
        assert counted.usage.total_tokens == counted.usage.prompt_tokens + counted.usage.completion_tokens
        assert chunks[-1].usage.prompt_tokens < counted.usage.prompt_tokens


async def test_a_stream_is_framed_as_openai_frames_it(one: Caller, name: str) -> None:
    async with one.stream("Repeat after me: é 🙂\n\nnew line", name) as stream:
        frames = await stream.rest()
    assert stream.status == 200
    assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert stream.headers["x-accel-buffering"] == "no"
    assert "no-cache" in stream.headers["cache-control"]
    assert "content-length" not in stream.headers
    assert stream.headers["x-session-state"] == "new"
    assert TURN.fullmatch(stream.headers["x-turn-id"])
    assert frames[-1] == b"data: [DONE]"
    assert text_of(frames) == "é 🙂\n\nnew line"
    chunks = chunks_of(frames)
    assert {chunk["session_id"] for chunk in chunks} == {name}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "stop"


async def test_usage_is_claudes_and_adds_up_in_the_session(fleet: Fleet, one: Caller, two: Caller, name: str) -> None:
    answers = [await caller.chat(f"Count to {n}", name) for caller, n in ((one, 3), (two, 7))]
    requests = await fleet.simulator.requests(limit=2)
    assert [a.json["usage"]["completion_tokens"] for a in answers] == [3, 7]
    used = (await one.session(name))["usage"]
    assert used["input_tokens"] == sum(a.json["usage"]["prompt_tokens"] for a in answers) > 0
    assert used["output_tokens"] == 10
    assert [len(r["body"]["messages"]) for r in requests] == [1, 3]


async def test_limits_and_stops_of_the_caller_reach_claude(one: Caller, name: str) -> None:
    cut = await one.chat("Count to 10", name, max_completion_tokens=4)
    assert (cut.text, cut.json["choices"][0]["finish_reason"]) == ("1 2 3 4", "length")
    stopped = await one.chat("Count to 10", name, stop=["7"])
    assert (stopped.text.strip(), stopped.json["choices"][0]["finish_reason"]) == ("1 2 3 4 5 6", "stop")


async def test_an_alias_and_a_model_that_there_is_not(impatient: Caller, simulator: Simulator, name: str) -> None:
    answer = await impatient.chat("Hi", name, model="gpt-4o")
    assert answer.json["model"] == "claude-opus-5-5"
    unknown = await impatient.chat("Hi", name, model="gpt-5")
    assert (unknown.status, unknown.code) == (404, "model_not_found")
    assert unknown.json["error"]["param"] == "model"


async def test_the_system_prompt_is_kept_and_can_be_changed(one: Caller, two: Caller, name: str) -> None:
    def with_system(text: str, said: str) -> list[dict[str, str]]:
        return [{"role": "system", "content": text}, {"role": "user", "content": said}]

    await one.chat("", name, messages=with_system("Be brief.", "Hi"))
    assert (await two.chat("What are your instructions?", name)).text == 'My instructions are: "Be brief."'
    changed = await one.chat("", name, messages=with_system("Be long.", "What are your instructions?"))
    assert changed.text == 'My instructions are: "Be long."'
    assert (await two.chat("What are your instructions?", name)).text == 'My instructions are: "Be long."'
    found = await two.session(name)
    assert (found["system_prompt"], found["message_count"]) == ("Be long.", 8)


async def test_each_request_to_claude_continues_the_bytes_of_the_one_before(
    fleet: Fleet, one: Caller, two: Caller, name: str
) -> None:
    for caller in (one, two, one):
        await caller.chat("Hi", name)
    bodies = [request["body"] for request in await fleet.simulator.requests(limit=3)]
    for before, after in pairwise(bodies):
        assert after["messages"][: len(before["messages"])] == before["messages"]
        assert after["cache_control"] == {"type": "ephemeral"}


async def test_messages_are_stored_as_claude_has_them(one: Caller, two: Caller, name: str) -> None:
    await one.chat("Count to 2", name)
    async with two.stream("Count to 3", name) as stream:
        await stream.rest()
    assert await one.messages(name) == [
        {"role": "user", "content": "Count to 2"},
        {"role": "assistant", "content": [{"type": "text", "text": "1 2"}]},
        {"role": "user", "content": "Count to 3"},
        {"role": "assistant", "content": [{"type": "text", "text": "1 2 3"}]},
    ]
    found = await two.session(name)
    assert (found["message_count"], found["turn_count"], found["status"]) == (4, 2, "active")
    assert found["model"] == MODEL


async def test_pages_of_messages(one: Caller, name: str) -> None:
    for n in range(1, 4):
        await one.chat(f"Count to {n}", name)
    path = f"/v1/sessions/{name}/messages"
    page = (await one.get(f"{path}?offset=2&limit=3")).json
    assert [message["role"] for message in page["messages"]] == ["user", "assistant", "user"]
    assert page["messages"][0]["content"] == "Count to 2"
    assert (page["object"], page["session_id"], page["total"], page["has_more"]) == ("list", name, 6, True)
    last = (await one.get(f"{path}?offset=3")).json
    assert (len(last["messages"]), last["has_more"]) == (3, False)
    beyond = (await one.get(f"{path}?offset=99")).json
    assert (beyond["messages"], beyond["has_more"], beyond["total"]) == ([], False, 6)
    for query in (
        "limit=0",
        "limit=101",
        "limit=-1",
        "limit=x",
        "limit=",
        "limit=1.5",
        "offset=-1",
        "offset=1e3",
        "offset=10000001",
        "limit=" + "9" * 5000,
        "limit=%D9%A1",
    ):
        refused = await one.get(f"{path}?{query}")
        assert (refused.status, refused.code) == (400, "invalid_value"), query
        assert refused.json["error"]["param"] == query.partition("=")[0]


async def test_sessions_are_looked_at_by_either_name(one: Caller, name: str) -> None:
    for path in (f"/v1/sessions/{name}", f"/v1/sessions/{name}/messages", f"/v1/sessions/{UNKNOWN}"):
        missing = await one.get(path)
        assert (missing.status, missing.code) == (404, "session_not_found")
    for path in ("/v1/sessions/new", "/v1/sessions/a%20b", "/v1/sessions/import/messages"):
        refused = await one.get(path)
        assert (refused.status, refused.code) == (400, "invalid_session_id")
    odd = f"{name}:a@b+c"
    await one.chat("Hi", odd)
    found = await one.session(odd.replace("@", "%40").replace(":", "%3A").replace("+", "%2B"))
    assert found["name"] == odd
    for field in ("created_at", "last_accessed_at", "expires_at"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found[field])


async def test_three_sessions_in_parallel_stay_apart(one: Caller, two: Caller, name: str) -> None:
    people = ["Ada", "Grace", "Edsger"]

    async def talk(person: str) -> Answer:
        await one.chat(f"My name is {person}.", f"{name}-{person}")
        return await two.chat("What is my name?", f"{name}-{person}")

    answers = await asyncio.gather(*map(talk, people))
    assert [answer.text for answer in answers] == [f"Your name is {person}." for person in people]
    assert [len(await one.messages(f"{name}-{person}")) for person in people] == [4, 4, 4]


# Two turns at once.


async def test_a_second_turn_waits_for_the_first(one: Caller, two: Caller, simulator: Simulator, name: str) -> None:
    await simulator.fault("slow_deltas", delay_ms=40, match=f"[mark:a-{name}]")
    async with one.stream(f"Count to 30 [mark:a-{name}]", name) as first:
        await first.words(1)
        assert (await two.session(name))["status"] == "busy"
        second = asyncio.create_task(two.chat(f"Hi [mark:b-{name}]", name))
        assert text_of(await first.rest()).startswith("1 2 3")
    assert f"[after:a-{name}]" in (await second).text
    assert [message["role"] for message in await one.messages(name)] == ["user", "assistant"] * 2
    assert (await one.session(name))["status"] == "active"


async def test_many_turns_at_once_are_stored_one_after_the_other(one: Caller, two: Caller, name: str) -> None:
    answers = await asyncio.gather(*(caller.chat(f"[mark:{i}]", name) for i in range(4) for caller in (one, two)))
    assert all(answer.status == 200 for answer in answers)
    stored = await one.messages(name)
    assert [message["role"] for message in stored] == ["user", "assistant"] * 8
    before = "none"
    for asked, answered in zip(stored[::2], stored[1::2], strict=True):
        assert f"[after:{before}]" in answered["content"][0]["text"]
        before = asked["content"][6:-1]


async def test_a_second_turn_may_be_refused(one: Caller, two: Caller, simulator: Simulator, name: str) -> None:
    await simulator.fault("slow_deltas", delay_ms=40, match=name)
    async with one.stream(f"Count to 30 {name}", name) as first:
        await first.words(1)
        for stream in (False, True):
            refused = await two.chat("Hi", name, headers=REJECT, stream=stream)
            assert (refused.status, refused.code) == (409, "turn_in_progress")
            assert refused.headers["x-turn-id"] == first.headers["x-turn-id"]
            assert first.headers["x-turn-id"] in refused.json["error"]["message"]
            assert 1 <= int(refused.headers["retry-after"]) <= 5
            assert refused.headers["x-should-retry"] == "true"
        await first.rest()
    assert (await two.chat("Hi", name, headers=REJECT)).status == 200
    assert len(await one.messages(name)) == 4


# Claude fails.

# Each for all attempts that Baton makes: one that fails in the read that it began in has shown nothing, and is retried.
FAILURES: list[tuple[str, dict[str, Any], int, str]] = [
    ("overloaded", {"times": 3}, 503, "upstream_overloaded"),
    ("error", {"times": 3}, 503, "upstream_unavailable"),
    ("garbage", {"times": 3}, 502, "upstream_nonsense"),
    ("rate_limit", {"retry_after_s": 30}, 429, "upstream_rate_limited"),
    ("error_mid_stream", {"times": 3, "after_deltas": 2}, 503, "upstream_overloaded"),
    (
        "error_mid_stream",
        {"times": 3, "after_deltas": 2, "error_type": "invalid_request_error"},
        400,
        "upstream_invalid_request",
    ),
    ("clean_end", {"times": 3, "after_deltas": 2}, 502, "upstream_nonsense"),
    ("cut", {"times": 3, "after_deltas": 2}, 503, "upstream_unavailable"),
]


async def test_a_turn_that_claude_fails_leaves_the_history_as_it_was(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    await simulator.pace(delta_ms=2)

    async def fail(index: int) -> None:
        kind, fields, status, code = FAILURES[index]
        session = f"{name}-{index}"
        await one.chat("My name is Ada.", session)
        before = await two.session(session)
        await simulator.fault(kind, match=f"fail {session}.", **fields)
        failed = await one.chat(f"Count to 9. fail {session}.", session)
        assert (kind, failed.status, failed.code) == (kind, status, code)
        assert failed.headers["x-should-retry"] == ("false" if status == 400 else "true")
        assert failed.headers["x-turn-id"]
        assert failed.headers.get("retry-after") == ("30" if kind == "rate_limit" else None)
        after = await two.session(session)
        assert {key for key in after if after[key] != before[key]} <= {"last_accessed_at", "expires_at"}
        assert len(await two.messages(session)) == 2
        assert (await two.chat("What is my name?", session, headers=REJECT)).text == "Your name is Ada."

    await asyncio.gather(*(fail(index) for index in range(len(FAILURES))))


async def test_a_session_whose_first_turn_fails_is_gone(one: Caller, simulator: Simulator, name: str) -> None:
    await simulator.fault("rate_limit", retry_after_s=30, match=name)
    assert (await one.chat(f"Hi {name}", name)).status == 429
    assert (await one.get(f"/v1/sessions/{name}")).status == 404


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("error_mid_stream", "upstream_overloaded"),
        ("clean_end", "upstream_nonsense"),
        ("cut", "upstream_unavailable"),
    ],
)
async def test_a_stream_that_claude_breaks_off_ends_with_an_error_and_is_not_stored(
    one: Caller, simulator: Simulator, name: str, kind: str, code: str
) -> None:
    await one.chat("Hi", name)
    await simulator.pace(delta_ms=50)  # or the error comes with the beginning, and it is asked again
    await simulator.fault(kind, after_deltas=4, match=f"fail {name}.")
    async with one.stream(f"Count to 9. fail {name}.", name) as stream:
        frames = await stream.rest()
    assert stream.status == 200
    assert text_of(frames) in ("1", "1 2", "1 2 3", "1 2 3 4")  # what came together with the error may be left out
    assert chunks_of(frames)[-1]["error"]["code"] == code
    assert b"[DONE]" not in b"".join(frames)
    assert not any(c.get("finish_reason") for chunk in chunks_of(frames) for c in chunk.get("choices", ()))
    assert len(await one.messages(name)) == 2
    assert (await one.chat("Hi", name, headers=REJECT)).status == 200


async def test_a_stream_that_fails_early_keeps_its_status(one: Caller, simulator: Simulator, name: str) -> None:
    await simulator.fault("rate_limit", retry_after_s=30, match=name)
    failed = await one.chat(f"Hi {name}", name, stream=True)
    assert (failed.status, failed.code, failed.headers["retry-after"]) == (429, "upstream_rate_limited", "30")


async def test_one_overload_is_not_seen_by_the_caller(one: Caller, simulator: Simulator, name: str) -> None:
    for kind in ("overloaded", "rate_limit"):
        await simulator.fault(kind, match=f"{name}.")
    answer = await one.chat(f"Count to 2 {name}.", name)
    assert answer.text.startswith("1 2")
    assert len(await simulator.asked(name)) == 3
    assert (await one.session(name))["message_count"] == 2


async def test_a_refusal_moves_the_head_and_stores_no_messages(
    fleet: Fleet, one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    await one.chat("My name is Ada.", name)
    await simulator.fault("refusal", match=f"no {name}", times=2)
    refused = await one.chat(f"Hi no {name}", name)
    choice = refused.json["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("content_filter", None)
    assert choice["message"]["refusal"] == "The simulator was told to refuse this request."
    async with two.stream(f"Hi no {name}", name) as stream:
        frames = await stream.rest()
    assert frames[-1] == b"data: [DONE]"
    assert chunks_of(frames)[-1]["choices"][0]["finish_reason"] == "content_filter"
    found = await two.session(name)
    assert (found["message_count"], found["turn_count"]) == (2, 3)
    records = await turn_records(fleet, found["id"])
    assert [record["state"] for record in records] == ["complete", "refused", "refused"]
    assert (await two.chat("What is my name?", name)).text == "Your name is Ada."


async def test_a_session_that_began_with_a_refusal_is_continued(one: Caller, simulator: Simulator, name: str) -> None:
    await simulator.fault("refusal", match=name)
    assert (await one.chat(f"Hi {name}", name)).headers["x-session-state"] == "new"
    assert (await one.chat("Hi", name)).headers["x-session-state"] == "continued"


async def test_a_slow_claude_is_bridged_by_keep_alives(impatient: Caller, simulator: Simulator, name: str) -> None:
    await simulator.fault("slow_first_byte", delay_ms=1200, match=name)
    async with impatient.stream(f"Count to 2 {name}", name) as stream:
        assert await stream.frame() == b": keep-alive"
        running = await simulator.asked(name)
        assert [request["outcome"] for request in running] == ["running"]
        frames = await stream.rest()
    assert stream.headers["x-session-state"] == "new"
    assert frames[:2] == [b": keep-alive"] * 2
    assert text_of(frames).startswith("1 2")
    assert frames[-1] == b"data: [DONE]"


async def test_a_failure_after_the_status_line_is_told_in_the_stream(
    impatient: Caller, simulator: Simulator, name: str
) -> None:
    await simulator.fault("overloaded", times=3, match=name)
    async with impatient.stream(f"Hi {name}", name) as stream:
        frames = await stream.rest()
    assert stream.status == 200
    assert chunks_of(frames) == [
        {
            "error": {
                "message": "Claude is overloaded.",
                "type": "server_error",
                "param": None,
                "code": "upstream_overloaded",
            }
        }
    ]
    assert b"[DONE]" not in b"".join(frames)


# The caller hangs up.


async def test_hanging_up_stops_claude_and_keeps_what_was_shown(
    fleet: Fleet, one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    await simulator.fault("slow_deltas", delay_ms=30, match=name)
    async with one.stream(f"Count to 500 {name}", name) as stream:
        shown = await stream.words(3)
        stream.hang_up()
    assert (await ended_upstream(simulator, name))["outcome"] == "disconnected"

    async def stored() -> list[Any] | None:
        answer = await two.get(f"/v1/sessions/{name}/messages")
        return answer.json["messages"] if answer.status == 200 and answer.json["total"] else None

    asked, answered = await eventually(stored, "the incomplete turn")
    assert asked["content"] == f"Count to 500 {name}"
    kept = answered["content"][0]["text"]
    assert kept.startswith(shown)
    assert " ".join(str(n) for n in range(1, 501)).startswith(kept)
    (record,) = await turn_records(fleet, stream.headers["x-session-id"])
    assert (record["state"], record["id"], record["stop_reason"]) == ("incomplete", stream.headers["x-turn-id"], None)
    read = sum(record["usage"].get(f"{kind}input_tokens") or 0 for kind in ("", "cache_read_", "cache_creation_"))
    assert (await two.session(name))["context_tokens"] == read, "Claude has not counted what it said"
    again = await two.chat("How many messages?", name, headers=REJECT)
    assert again.text == "This conversation holds 3 messages."


@pytest.mark.parametrize("streamed", [True, False])
async def test_hanging_up_before_the_first_byte_stops_claude_and_stores_nothing(
    one: Caller, two: Caller, simulator: Simulator, name: str, streamed: bool
) -> None:
    await one.chat("My name is Ada.", name)
    await simulator.fault("hang", match=f"hang {name}")
    waiting = asyncio.create_task(one.chat(f"hang {name}", name, stream=streamed))
    await eventually(lambda: simulator.asked(f"hang {name}"), "the request to Claude")
    waiting.cancel()
    assert (await ended_upstream(simulator, f"hang {name}"))["outcome"] == "disconnected"
    assert (await two.chat("What is my name?", name)).text == "Your name is Ada."
    assert len(await two.messages(name)) == 4


async def test_hanging_up_on_an_answer_that_is_not_streamed_stores_nothing_of_it(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    await simulator.fault("slow_deltas", delay_ms=20, match=name)
    waiting = asyncio.create_task(one.chat(f"Count to 500 {name}", name))

    async def answering() -> bool:
        return any(len(request["answer"]) > 10 for request in await simulator.asked(name))

    await eventually(answering, "the answer under way")
    waiting.cancel()
    assert (await ended_upstream(simulator, name))["outcome"] == "disconnected"

    async def gone() -> bool:
        return (await two.get(f"/v1/sessions/{name}")).status == 404

    await eventually(gone, "the end of the session that the turn had created")


async def test_hanging_up_without_a_session_stops_claude_too(one: Caller, simulator: Simulator, name: str) -> None:
    await simulator.fault("slow_deltas", delay_ms=20, match=name)
    async with one.stream(f"Count to 500 {name}") as stream:
        await stream.words(2)
        stream.hang_up()
    assert (await ended_upstream(simulator, name))["outcome"] == "disconnected"


async def test_hanging_up_in_the_queue_gives_the_place_up(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    await simulator.fault("slow_deltas", delay_ms=40, match=f"first {name}")
    async with one.stream(f"Count to 20. first {name}", name) as first:
        await first.words(1)
        queued = asyncio.create_task(two.chat(f"second {name}", name))

        async def waiting() -> bool:
            metrics = (await two.get("/metrics")).body
            return b"\nbaton_turns_waiting 1.0" in metrics

        await eventually(waiting, "the queued turn")
        queued.cancel()
        await first.rest()
    await one.chat("How many messages?", name)
    assert len(await one.messages(name)) == 4
    assert await simulator.asked(f"second {name}") == []


@pytest.mark.parametrize("streamed", [True, False])
async def test_continue_finishes_the_turn_of_a_caller_who_has_gone(
    one: Caller, two: Caller, simulator: Simulator, name: str, streamed: bool
) -> None:
    await simulator.fault("slow_deltas", delay_ms=10, match=name)
    headers = {"X-Session-On-Disconnect": "continue"}
    waiting = asyncio.create_task(one.chat(f"Count to 30 {name}", name, stream=streamed, headers=headers))

    async def answering() -> bool:
        return any(request["answer"] for request in await simulator.asked(name))

    await eventually(answering, "the answer under way")
    waiting.cancel()
    assert (await ended_upstream(simulator, name))["outcome"] == "complete"
    next_turn = await two.chat("How many messages?", name)
    assert next_turn.text == "This conversation holds 3 messages."
    stored = (await two.messages(name))[1]["content"][0]["text"]
    assert stored == " ".join(map(str, range(1, 31)))
