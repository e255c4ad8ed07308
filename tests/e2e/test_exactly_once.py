"""A request that is sent twice is one turn: by Idempotency-Key, and by what the SDKs tell of their own retries.

Two replicas; a request and its repetition go to different ones. How often Claude was asked is read from the
simulator, what became of it from the session.
"""

import asyncio
from typing import Any

import aiohttp
import openai
import pytest

from tests.e2e.by_hand import append, assistant, create, unused, user
from tests.e2e.caller import CHAT, Answer, Caller, chunks_of, eventually, text_of
from tests.instruments.processes import Simulator

pytestmark = pytest.mark.anyio

MODEL = "claude-sonnet-5-5"


def keyed(key: str, **more: str) -> dict[str, str]:
    return {"Idempotency-Key": key, **{name.replace("_", "-"): value for name, value in more.items()}}


def retry(count: int = 1, **more: str) -> dict[str, str]:
    """What the SDKs say of a request that they send again by themselves."""
    return {"X-Stainless-Retry-Count": str(count), **{name.replace("_", "-"): value for name, value in more.items()}}


async def asked(simulator: Simulator, mark: str) -> int:
    """How many requests Claude received whose last message holds the mark."""
    return len(await simulator.asked(mark))


async def turn_of(caller: Caller, session: str, turn: str) -> Any:
    answer = await caller.get(f"/v1/sessions/{session}/turns/{turn}")
    assert answer.status == 200, answer.body
    return answer.json


async def turns_of(caller: Caller, session: str) -> list[str]:
    """What became of the session's turns, oldest first."""
    return [turn["verdict"] for turn in (await caller.get(f"/v1/sessions/{session}/turns")).json["turns"]][::-1]


# By key.


async def test_the_same_key_is_the_same_turn(one: Caller, two: Caller, simulator: Simulator, name: str) -> None:
    first = await one.chat(f"Hi {name}", name, headers=keyed("k"))
    again = await two.chat(f"Hi {name}", name, headers=keyed("k"))
    assert (again.status, again.body) == (200, first.body)
    assert again.headers["x-turn-id"] == first.headers["x-turn-id"]
    assert again.headers["x-session-id"] == first.headers["x-session-id"]
    assert await asked(simulator, name) == 1
    assert (await one.session(name))["message_count"] == 2
    other = await two.chat(f"Hi {name}", name, headers=keyed("l"))
    assert other.headers["x-turn-id"] != first.headers["x-turn-id"]
    assert await turns_of(one, name) == ["committed", "committed"]


async def test_the_order_of_fields_and_streaming_make_no_difference(one: Caller, two: Caller, name: str) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    body = {"session_id": name, "messages": messages, "stop": ["xyz"]}
    first = await one.request("POST", CHAT, json=body, headers=keyed("k"))
    other_order = {"stop": ["xyz"], "messages": messages, "stream": False, "session_id": name}
    assert (await two.request("POST", CHAT, json=other_order, headers=keyed("k"))).body == first.body
    async with two.stream(
        "Hi", name, stop=["xyz"], stream_options={"include_usage": True}, headers=keyed("k")
    ) as stream:
        frames = await stream.rest()
    assert text_of(frames) == first.text
    assert frames[-1] == b"data: [DONE]"
    chunks = chunks_of(frames)
    assert {chunk["id"] for chunk in chunks} == {first.json["id"]}
    assert {chunk["created"] for chunk in chunks} == {first.json["created"]}
    assert chunks[-1]["usage"] == first.json["usage"]
    assert stream.headers["x-turn-id"] == first.headers["x-turn-id"]


async def test_a_stream_is_told_again_as_json_and_as_a_stream(one: Caller, two: Caller, name: str) -> None:
    async with one.stream("count to 30", name, headers=keyed("k")) as stream:
        text = text_of(await stream.rest())
    whole = await two.chat("count to 30", name, headers=keyed("k"))
    assert (whole.text, whole.headers["x-turn-id"]) == (text, stream.headers["x-turn-id"])
    async with two.stream("count to 30", name, headers=keyed("k")) as again:
        assert text_of(await again.rest()) == text
    assert again.headers["x-turn-id"] == stream.headers["x-turn-id"]


async def test_another_request_under_the_same_key_is_refused(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    first = await one.chat("Hi", name, headers=keyed("k"))
    other = await two.chat(f"Bye {name}", name, headers=keyed("k"))
    assert (other.status, other.code, other.headers["x-should-retry"]) == (422, "idempotency_key_reused", "false")
    assert other.json["error"]["param"] == "Idempotency-Key"
    assert other.headers["x-turn-id"] == first.headers["x-turn-id"]
    assert await asked(simulator, name) == 0
    assert (await one.session(name))["message_count"] == 2
    elsewhere = unused()
    assert (await two.chat(f"Bye {name}", elsewhere, headers=keyed("k"))).status == 200


async def test_a_repetition_waits_for_the_turn_that_runs(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    await simulator.fault("slow_deltas", delay_ms=30, match=name)
    running = asyncio.create_task(one.chat(f"count to 20 {name}", name, headers=keyed("k")))
    await eventually(lambda: is_busy(two, name), "a running turn")
    again = await two.chat(f"count to 20 {name}", name, headers=keyed("k", X_Session_On_Conflict="reject"))
    first = await running
    assert (again.status, again.body) == (200, first.body)
    assert await asked(simulator, name) == 1
    assert await turns_of(one, name) == ["committed"]


async def is_busy(caller: Caller, name: str) -> bool:
    answer = await caller.get(f"/v1/sessions/{name}")
    return answer.status == 200 and answer.json["status"] == "busy"


async def test_a_repetition_of_a_stream_follows_it_while_it_runs(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    await simulator.fault("slow_deltas", delay_ms=40, match=name)
    async with one.stream(f"count to 40 {name}", name, headers=keyed("k")) as first:
        await first.words(2)
        async with two.stream(f"count to 40 {name}", name, headers=keyed("k")) as again:
            await again.words(2)
            assert await is_busy(one, name), "it is shown before it is over"
            assert await again.rest() == await first.rest()
    assert again.headers["x-turn-id"] == first.headers["x-turn-id"]
    assert (again.last_id, again.frames[-1]) == (first.last_id, b"data: [DONE]")
    assert await asked(simulator, name) == 1


async def test_a_stream_in_another_form_is_told_when_the_turn_is_over(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    await simulator.fault("slow_deltas", delay_ms=20, match=name)
    async with one.stream(f"count to 20 {name}", name, headers=keyed("k")) as first:
        await first.words(2)
        usage = {"include_usage": True}
        async with two.stream(f"count to 20 {name}", name, headers=keyed("k"), stream_options=usage) as again:
            assert text_of(await again.rest()) == text_of(await first.rest())
    assert chunks_of(again.frames)[-1]["usage"]["completion_tokens"] > 0
    assert await asked(simulator, name) == 1


async def test_a_failed_turn_frees_its_key(one: Caller, two: Caller, simulator: Simulator, name: str) -> None:
    await one.chat("Hi", name)
    await simulator.fault("error", match=f"again {name}", times=3)
    failed = await one.chat(f"again {name}", name, headers=keyed("k"))
    assert (failed.status, failed.code) == (503, "upstream_unavailable")
    answered = await two.chat(f"again {name}", name, headers=keyed("k"))
    assert answered.status == 200
    assert answered.headers["x-turn-id"] != failed.headers["x-turn-id"]
    assert await turns_of(one, name) == ["committed", "aborted", "committed"]
    assert (await two.chat(f"again {name}", name, headers=keyed("k"))).body == answered.body
    other = await two.chat("something else", name, headers=keyed("k"))
    assert other.code == "idempotency_key_reused"


async def test_an_incomplete_turn_is_replaced(one: Caller, two: Caller, simulator: Simulator, name: str) -> None:
    await one.chat("My name is Ada.", name)
    await simulator.fault("slow_deltas", delay_ms=30, match=name)
    headers = keyed("k", X_Session_On_Disconnect="cancel")
    async with one.stream(f"count to 200 {name}", name, headers=headers) as stream:
        await stream.words(3)
        stream.hang_up()
    await eventually(lambda: has_turns(two, name, ["committed", "incomplete"]), "an incomplete turn")
    again = await two.chat(f"count to 200 {name}", name, headers=headers)
    assert (again.status, again.headers["x-session-state"]) == (200, "rewound")
    assert again.text.startswith(" ".join(map(str, range(1, 201))))
    assert (await one.session(name))["message_count"] == 4
    assert (await one.session(name))["turn_count"] == 2
    stored = await one.messages(name)
    assert [message["role"] for message in stored] == ["user", "assistant"] * 2
    replaced = await turn_of(one, name, stream.headers["x-turn-id"])
    assert (replaced["verdict"], replaced["rewound"]) == ("incomplete", True)
    assert (await one.chat(f"count to 200 {name}", name, headers=headers)).body == again.body


async def has_turns(caller: Caller, name: str, verdicts: list[str]) -> bool:
    return await turns_of(caller, name) == verdicts


async def test_an_incomplete_turn_that_others_stand_on_is_not_rewound(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    await simulator.fault("slow_deltas", delay_ms=30, match=name)
    headers = keyed("k", X_Session_On_Disconnect="cancel")
    async with one.stream(f"count to 200 {name}", name, headers=headers) as stream:
        await stream.words(3)
        stream.hang_up()
    await eventually(lambda: has_turns(two, name, ["incomplete"]), "an incomplete turn")
    await two.chat("My name is Ada.", name)
    again = await one.chat(f"count to 200 {name}", name, headers=headers)
    assert (again.status, again.code, again.headers["x-should-retry"]) == (409, "turn_cut_short", "false")
    assert again.headers["x-turn-id"] == stream.headers["x-turn-id"]
    assert (await one.session(name))["message_count"] == 4
    assert (await one.chat(f"count to 3 {name}", name)).status == 200


async def test_who_gives_a_key_may_leave_and_come_back(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    await simulator.fault("slow_deltas", delay_ms=20, match=name)
    async with one.stream(f"count to 50 {name}", name, headers=keyed("k")) as stream:
        await stream.words(3)
        stream.hang_up()
    again = await two.chat(f"count to 50 {name}", name, headers=keyed("k"))
    assert again.text.startswith(" ".join(map(str, range(1, 51))))
    assert again.headers["x-turn-id"] == stream.headers["x-turn-id"]
    assert await asked(simulator, name) == 1
    assert await turns_of(one, name) == ["committed"]


async def test_a_new_session_under_a_key_is_made_once(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    first = await one.chat(f"Hi {name}", "new", headers=keyed(name))
    again = await two.chat(f"Hi {name}", "new", headers=keyed(name))
    assert (again.status, again.body) == (200, first.body)
    assert again.headers["x-session-id"] == first.headers["x-session-id"]
    assert await asked(simulator, name) == 1
    other = await two.chat("something else", "new", headers=keyed(name))
    assert (other.status, other.code) == (422, "idempotency_key_reused")
    assert (await one.chat(f"Hi {name}", "new")).headers["x-session-id"] != first.headers["x-session-id"]
    failing = unused()
    await simulator.fault("error", match=failing, times=3)
    assert (await one.chat(failing, "new", headers=keyed(failing))).status == 503
    made = await two.chat(failing, "new", headers=keyed(failing))
    assert (made.status, made.headers["x-session-state"]) == (200, "new")


async def test_the_same_request_at_the_same_time_makes_one_session(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    await simulator.fault("slow_deltas", delay_ms=20, match=name)
    both = [caller.chat(f"count to 9 {name}", "new", headers=keyed(name)) for caller in (one, two, one, two)]
    first, *others = await asyncio.gather(*both)
    assert (first.status, {other.body for other in others}) == (200, {first.body})
    assert await asked(simulator, name) == 1


async def test_a_repetition_makes_the_session_anew_if_the_first_attempt_took_it_along(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    headers = keyed("k", X_Session_Mode="create", X_Session_On_Disconnect="cancel")
    await simulator.fault("hang", match=name)
    first = asyncio.create_task(one.chat(f"Hi {name}", name, headers=headers))
    await eventually(lambda: simulator.asked(name), "the question")
    waiting = asyncio.create_task(two.chat(f"Hi {name}", name, headers=headers))
    await asyncio.sleep(0.2)  # so that it waits; should it come too late for that, the rest holds as well
    first.cancel()  # its caller hangs up
    answer = await waiting
    assert (answer.status, answer.headers["x-session-state"]) == (200, "new"), answer.body
    assert (await one.session(name))["message_count"] == 2
    assert await asked(simulator, name) == 2


async def test_a_named_session_is_created_once_under_a_key(one: Caller, two: Caller, name: str) -> None:
    headers = keyed("k", X_Session_Mode="create")
    first = await one.chat("Hi", name, headers=headers)
    assert (await two.chat("Hi", name, headers=headers)).body == first.body
    other = await two.chat("Hi", name, headers=keyed("l", X_Session_Mode="create"))
    assert (other.status, other.code) == (409, "session_exists")
    by_hand = (await create(one, name=unused()))["name"]
    refused = await two.chat("Hi", by_hand, headers=headers)
    assert (refused.status, refused.code) == (409, "session_exists")


async def test_a_refusal_is_told_again(one: Caller, two: Caller, simulator: Simulator, name: str) -> None:
    await simulator.fault("refusal", match=name)
    first = await one.chat(f"Hi {name}", name, headers=keyed("k"))
    again = await two.chat(f"Hi {name}", name, headers=keyed("k"))
    assert first.json["choices"][0]["finish_reason"] == "content_filter"
    assert again.body == first.body
    assert await asked(simulator, name) == 1


async def test_a_turn_that_was_rewound_is_gone(one: Caller, two: Caller, name: str) -> None:
    await one.chat("My name is Ada.", name)
    await one.chat("Hi", name, headers=keyed("k"))
    await two.chat("", name, messages=[user("My name is Ada.")], headers={"X-Session-Input": "full"})
    again = await two.chat("Hi", name, headers=keyed("k"))
    assert (again.status, again.code) == (410, "turn_rewound")


async def test_a_request_deeper_than_json_can_be_written_is_refused(one: Caller, name: str) -> None:
    deep: Any = {}
    for _ in range(300):
        deep = {"a": deep}
    answer = await one.chat("Hi", name, metadata=deep)
    assert (answer.status, answer.code) == (400, "invalid_value")


# Sessions and messages by hand.


async def test_a_session_is_created_once_under_a_key(one: Caller, two: Caller, name: str) -> None:
    body = {"model": MODEL, "title": "Plan"}
    made = await one.request("POST", "/v1/sessions", json=body, headers=keyed(name))
    again = await two.request("POST", "/v1/sessions", json=body, headers=keyed(name))
    assert (made.status, again.status) == (201, 200)
    assert again.json == made.json
    other = await two.request("POST", "/v1/sessions", json={"model": MODEL}, headers=keyed(name))
    assert (other.status, other.code) == (422, "idempotency_key_reused")
    named = {**body, "name": name}
    assert (await one.request("POST", "/v1/sessions", json=named, headers=keyed("k"))).status == 201
    assert (await two.request("POST", "/v1/sessions", json=named, headers=keyed("k"))).status == 200
    taken = await two.request("POST", "/v1/sessions", json=named, headers=keyed("l"))
    assert (taken.status, taken.code) == (409, "session_exists")


async def test_messages_are_appended_once_under_a_key(one: Caller, two: Caller, name: str) -> None:
    await create(one, name=name)
    first = await append(one, name, user("Hi"), assistant("Hello"), headers=keyed("k"))
    again = await append(two, name, user("Hi"), assistant("Hello"), headers=keyed("k"))
    assert (first.status, again.body) == (200, first.body)
    await append(two, name, user("More"), assistant("Yes"))
    assert (await append(two, name, user("Hi"), assistant("Hello"), headers=keyed("k"))).body == first.body
    assert (await one.session(name))["message_count"] == 4
    other = await append(two, name, user("Other"), headers=keyed("k"))
    assert (other.status, other.code) == (422, "idempotency_key_reused")


async def test_a_result_is_appended_once_under_a_key(one: Caller, two: Caller, name: str) -> None:
    await create(one, name=name)
    call = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}
    await append(one, name, user("Look"), {"role": "assistant", "content": [call]})
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "blue"}]}
    first = await append(one, name, result, assistant("It is blue."), headers=keyed("k"))
    again = await append(two, name, result, assistant("It is blue."), headers=keyed("k"))
    assert (first.status, again.status, again.body) == (200, 200, first.body)
    late = await append(two, name, result, headers=keyed("l"))
    assert (late.status, late.code) == (409, "tool_call_closed")


# The expected turn.


async def test_a_turn_runs_only_behind_the_expected_one(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    first = (await one.chat("My name is Ada.", name)).headers["x-turn-id"]
    second = await two.chat("What is my name?", name, headers={"X-Expect-Turn": first})
    assert second.text == "Your name is Ada."
    moved = await one.chat(f"Late {name}", name, headers={"X-Expect-Turn": first})
    assert (moved.status, moved.code, moved.headers["x-should-retry"]) == (409, "history_moved", "false")
    assert moved.headers["x-turn-id"] == second.headers["x-turn-id"]
    assert await asked(simulator, name) == 0
    assert (await one.session(name))["message_count"] == 4
    unknown = await one.chat("Hi", unused(), headers={"X-Expect-Turn": first})
    assert (unknown.status, unknown.code) == (404, "session_not_found")
    moved = await append(two, name, user("Hi"), headers={"X-Expect-Turn": first})
    assert (moved.status, moved.code) == (409, "history_moved")
    last = second.headers["x-turn-id"]
    assert (await append(two, name, user("Hi"), assistant("Ho"), headers={"X-Expect-Turn": last})).status == 200


async def test_a_repetition_is_recognised_though_its_own_turn_moved_the_head(
    one: Caller, two: Caller, name: str
) -> None:
    first = (await one.chat("My name is Ada.", name)).headers["x-turn-id"]
    headers = keyed("k", X_Expect_Turn=first)
    answer = await one.chat("What is my name?", name, headers=headers)
    assert (await two.chat("What is my name?", name, headers=headers)).body == answer.body


# Blind retries.


async def test_a_retry_of_what_was_not_delivered_gets_the_same_turn(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    first = await lost_answer(one, f"Hi {name}", name)
    again = await two.chat(f"Hi {name}", name, headers=retry())
    assert (again.status, again.headers["x-turn-id"]) == (200, first)
    assert await asked(simulator, name) == 1
    assert await turns_of(one, name) == ["committed"]


async def lost_answer(caller: Caller, said: str, session: str, **fields: Any) -> str:
    """A turn whose caller closes its connection as soon as the answer is there; its id."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http:
        answer = await Caller(http, caller.url).chat(said, session, **fields)
        assert answer.status == 200
        return str(answer.headers["x-turn-id"])


async def test_a_retry_of_a_client_that_stood_still_gets_the_same_turn(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    """Its machine let it run again after two seconds only: it finds its patience over before it finds the answer."""
    first = (await one.chat(f"Hi {name}", name)).headers["x-turn-id"]  # the connection stays open meanwhile
    await asyncio.sleep(2)
    again = await two.chat(f"Hi {name}", name, headers=retry())
    assert (again.status, again.headers["x-turn-id"]) == (200, first)
    assert await asked(simulator, name) == 1


async def test_a_retry_of_what_was_delivered_is_a_new_turn(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    first = await one.chat(f"Hi {name}", name)
    turn = first.headers["x-turn-id"]

    async def delivered() -> bool:
        return bool((await turn_of(two, name, turn))["delivered"])

    await eventually(delivered, "a delivered answer")
    again = await two.chat(f"Hi {name}", name, headers=retry())
    assert again.headers["x-turn-id"] != turn
    assert await asked(simulator, name) == 2
    assert await turns_of(one, name) == ["committed", "committed"]


async def test_what_is_sent_for_the_first_time_is_a_new_turn(one: Caller, two: Caller, name: str) -> None:
    first = await lost_answer(one, "Hi", name)
    answer = await two.chat("Hi", name, headers=retry(0))
    assert answer.headers["x-turn-id"] != first
    assert await turns_of(one, name) == ["committed"] * 2


async def test_a_retry_is_recognised_though_others_came_in_between(one: Caller, two: Caller, name: str) -> None:
    first = await lost_answer(one, "Hi", name)
    other = await lost_answer(one, "Hi again", name)
    assert (await two.chat("Hi", name, headers=retry())).headers["x-turn-id"] == first
    assert (await two.chat("Hi again", name, headers=retry(2))).headers["x-turn-id"] == other
    assert await turns_of(one, name) == ["committed"] * 2


async def test_a_retry_waits_for_its_own_turn(one: Caller, two: Caller, simulator: Simulator, name: str) -> None:
    await simulator.fault("slow_deltas", delay_ms=30, match=name)
    running = asyncio.create_task(one.chat(f"count to 20 {name}", name))
    await eventually(lambda: is_busy(two, name), "a running turn")
    again = await two.chat(f"count to 20 {name}", name, headers=retry(X_Session_On_Conflict="reject"))
    assert again.body == (await running).body
    assert await asked(simulator, name) == 1


async def test_a_retry_replaces_the_incomplete_turn_of_the_caller_who_left(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    await simulator.fault("slow_deltas", delay_ms=30, match=name)
    async with one.stream(f"count to 60 {name}", name) as stream:
        await stream.words(3)
        stream.hang_up()
    async with two.stream(f"count to 60 {name}", name, headers=retry()) as again:
        assert text_of(await again.rest()).startswith(" ".join(map(str, range(1, 61))))
    assert (await one.session(name))["message_count"] == 2
    assert await turns_of(one, name) == ["incomplete", "committed"]


async def test_a_retry_in_full_is_recognised_too(one: Caller, two: Caller, simulator: Simulator, name: str) -> None:
    first = await one.chat("My name is Ada.", name)
    transcript = [user("My name is Ada."), assistant(first.text), user(f"What is my name? {name}")]
    turn = await lost_answer(one, "", name, messages=transcript)
    again = await two.chat("", name, messages=transcript, headers=retry())
    assert again.headers["x-turn-id"] == turn
    assert await asked(simulator, f"What is my name? {name}") == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_an_impatient_sdk_gets_its_answer_and_asks_claude_once(
    one: Caller, simulator: Simulator, name: str, stream: bool
) -> None:
    """The stock client with its default retries: three attempts, each half a second long, for an answer of a second."""
    await simulator.fault("slow_first_byte", delay_ms=1100, match=name)
    async with openai.AsyncOpenAI(base_url=f"{one.url}/v1", api_key="none", timeout=0.5) as client:
        create_ = client.chat.completions.create
        said: Any = [{"role": "user", "content": f"count to 5 {name}"}]
        options: Any = {"extra_body": {"session_id": name}}
        headers = {"X-Session-On-Disconnect": "continue"}
        if stream:
            chunks = [
                chunk
                async for chunk in await create_(
                    model=MODEL, messages=said, stream=True, extra_headers=headers, **options
                )
            ]
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        else:
            whole = await create_(model=MODEL, messages=said, extra_headers=headers, **options)
            text = whole.choices[0].message.content or ""
    assert text.startswith("1 2 3 4 5")
    assert await asked(simulator, name) == 1
    assert await turns_of(one, name) == ["committed"]


async def test_every_error_says_whether_to_retry(one: Caller, simulator: Simulator, name: str) -> None:
    answers: list[Answer] = [
        await one.get("/nowhere"),
        await one.request("PUT", "/v1/sessions"),
        await one.chat("", name),
        await one.chat("Hi", "sess_00" + 26 * "a"),
        await one.request("POST", CHAT, data=b"{"),
    ]
    await simulator.fault("overloaded", match=name, times=3)
    answers.append(await one.chat(f"Hi {name}", name))
    told = [(answer.status, answer.headers["x-should-retry"]) for answer in answers]
    assert told == [(404, "false"), (405, "false"), (400, "false"), (404, "false"), (400, "false"), (503, "true")]
