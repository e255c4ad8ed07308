"""A conversation that outgrows the model's window: known before Claude is asked, in every dialect."""

from typing import Any

import pytest

from tests.e2e.caller import Answer, Caller
from tests.instruments.processes import Fleet, Simulator

pytestmark = pytest.mark.anyio

MODEL = "claude-haiku-4-5"  # which has the smallest window, 200,000 tokens
HALF = "What was said before is only read again. " * 10_000  # 102,500 tokens


async def say(caller: Caller, name: str, said: str) -> Answer:
    body = {"model": MODEL, "max_tokens": 500, "messages": [{"role": "user", "content": said}]}
    return await caller.request("POST", "/v1/messages", json=body, headers={"x-session-id": name})


async def paths(simulator: Simulator, behind: int) -> list[str]:
    """Of the requests behind that many."""
    return [request["path"] for request in await simulator.requests() if request["n"] > behind]


async def test_a_turn_that_would_not_fit_is_refused_before_claude_is_asked(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    await one.get("/v1/models")  # a replica that has just begun may not know the window yet
    await two.get("/v1/models")
    assert (await say(one, name, HALF)).status == 200
    before = await one.session(name)
    assert before["context_tokens"] > 100_000
    asked = await simulator.total()
    refused = await say(two, name, HALF)
    assert refused.status == 400
    error = refused.json["error"]
    assert error["details"]["error_code"] == "context_length_exceeded"
    assert error["message"].startswith("prompt is too long: 205")
    assert error["message"].endswith("tokens > 200000 maximum")
    chat = await one.chat(HALF, name, model=MODEL)
    assert chat.code == "context_length_exceeded"
    assert await paths(simulator, asked) == ["/v1/messages/count_tokens"] * 2
    after = await one.session(name)
    assert after["message_count"] == before["message_count"] == 2
    assert (await say(two, name, "Well.")).status == 200, "the session is as it was"
    assert (await paths(simulator, asked))[-1] == "/v1/messages"


async def test_a_turn_tells_the_size_that_was_expected(one: Caller, two: Caller, name: str) -> None:
    assert (await say(one, name, HALF[:20_000])).status == 200
    usage = (await say(two, name, HALF[:4_000])).json["usage"]
    sent = sum(usage[f"{kind}input_tokens"] for kind in ("", "cache_read_", "cache_creation_"))
    turn = (await one.get(f"/v1/sessions/{name}/turns?limit=1")).json["turns"][0]
    assert turn["sent"]["context_tokens"] == pytest.approx(sent, rel=0.03)
    assert (await one.session(name))["context_tokens"] == sent + usage["output_tokens"]


async def test_the_oldest_exchanges_leave_what_is_sent_and_never_the_store(
    fleet: Fleet, one: Caller, simulator: Simulator, name: str
) -> None:
    replica = await fleet.add_replica(env={"BATON_CONTEXT_POLICY": "truncate"})
    caller = Caller(one.http, replica.url)
    await caller.get("/v1/models")
    part = HALF[:180_000]  # 45,000 tokens, of which two and no three are 60 % of the window
    for number in range(4):
        answer = await say(caller, name, f"{number} My name is Ada. {part}")
        assert (answer.status, "x-baton-context" in answer.headers) == (200, False)
    moved = await say(caller, name, f"4 {part} what did i say first")
    assert (moved.status, moved.headers["x-baton-context"]) == (200, "truncate; left_out=6")
    assert moved.json["content"][0]["text"].startswith('You first said: "3 My name is Ada.')
    turn = (await one.get(f"/v1/sessions/{name}/turns?limit=1")).json["turns"][0]
    assert (turn["sent"]["left_out"], turn["sent"]["messages"], turn["sent"]["epoch_began"]) == (6, 3, ["context"])
    # It stays there, on any replica, and what was moved is in the cache by now.
    stays = await say(one, name, "And then?")
    assert stays.headers["x-baton-context"] == "truncate; left_out=6"
    usage = stays.json["usage"]
    assert usage["cache_read_input_tokens"] > 90_000 > usage["cache_creation_input_tokens"] + usage["input_tokens"]
    counted = {"model": MODEL, "messages": [{"role": "user", "content": "And then?"}]}
    count = await one.request("POST", "/v1/messages/count_tokens", json=counted, headers={"x-session-id": name})
    assert count.json["input_tokens"] < 150_000
    session = await one.session(name)
    assert session["message_count"] == 12
    assert (await one.messages(name))[0]["content"].startswith("0 My name is Ada.")
    # A fork sends what its source would have sent there; from before the move on, all that there was.
    for kept, left_out in ((10, "truncate; left_out=6"), (4, None)):
        fork = (await one.request("POST", f"/v1/sessions/{name}/fork", json={"message_count": kept})).json["id"]
        assert (await say(one, fork, "And then?")).headers.get("x-baton-context") == left_out
        turn = (await one.get(f"/v1/sessions/{fork}/turns?limit=1")).json["turns"][0]
        assert turn["sent"]["epoch_began"] == []
    # What does not fit alone does not fit at all.
    whole = await say(caller, name, HALF * 2)
    assert whole.json["error"]["details"]["error_code"] == "context_length_exceeded"


async def look(caller: Caller, name: str, said: str, seen: str = "") -> Answer:
    """A turn of a loop of calls: the result of the last one, and what is to be done next."""
    if seen:
        last = (await caller.messages(name))[-1]["content"]
        call = next(block["id"] for block in last if block["type"] == "tool_use")
        content: list[Any] = [{"type": "tool_result", "tool_use_id": call, "content": seen}]
    else:
        content = []
    content.append({"type": "text", "text": said})
    tools = [{"name": "look", "input_schema": {"type": "object"}}]
    body = {"model": MODEL, "max_tokens": 500, "tools": tools, "messages": [{"role": "user", "content": content}]}
    return await caller.request("POST", "/v1/messages", json=body, headers={"x-session-id": name})


async def test_results_of_old_calls_are_cleared_and_stay_in_the_store(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    for caller in (one, two):
        await caller.get("/v1/models")
    policy = "clear_tool_results"
    made = await one.request("POST", "/v1/sessions", json={"model": MODEL, "name": name, "context_policy": policy})
    assert made.json["context_policy"] == policy
    results = [f"[mark:{number}] {HALF[:180_000]}" for number in range(5)]  # 45,000 tokens each, of which four fit
    assert (await look(one, name, "My name is Ada. call look")).status == 200
    for number, result in enumerate(results[:4]):
        answer = await look((one, two)[number % 2], name, "call look", result)
        assert (answer.status, "x-baton-context" in answer.headers) == (200, False)
    moved = await look(one, name, "What is my name?", results[4])
    told = "clear_tool_results; cleared=5"
    assert (moved.status, moved.headers["x-baton-context"]) == (200, told)
    assert "Ada" in moved.json["content"][0]["text"]
    turn = (await one.get(f"/v1/sessions/{name}/turns?limit=1")).json["turns"][0]
    sent = turn["sent"]
    assert (sent["cleared"], sent["left_out"], sent["messages"], sent["epoch_began"]) == (5, 0, 11, ["context"])
    body = (await simulator.requests())[-1]["body"]
    contents = [body["messages"][at]["content"][0]["content"] for at in (2, 4, 6, 8, 10)]
    note = contents[0]
    assert (len(note) < 100, contents) == (True, [note, note, *results[2:]])
    assert [(await one.messages(name))[at]["content"][0]["content"] for at in (2, 4)] == results[:2]
    # The next turn, on another replica, has the same bytes in front of it, and finds them in the cache.
    stays = await say(two, name, "list the marks")
    assert (stays.headers["x-baton-context"], stays.json["content"][0]["text"]) == (told, "[mark:2] [mark:3] [mark:4]")
    assert stays.json["usage"]["cache_read_input_tokens"] > 130_000
    count = {"model": MODEL, "messages": [{"role": "user", "content": "And then?"}]}
    counted = await one.request("POST", "/v1/messages/count_tokens", json=count, headers={"x-session-id": name})
    assert 130_000 < counted.json["input_tokens"] < 140_000
    # So it is in a fork and in a copy; from before the step on, all that there was is sent.
    lines = (await one.request("GET", f"/v1/sessions/{name}/export")).body
    jsonl = {"content-type": "application/x-ndjson"}
    copy = (await two.request("POST", "/v1/sessions/import?name=", data=lines, headers=jsonl)).json["id"]
    assert (await say(two, copy, "And then?")).headers["x-baton-context"] == told
    copied = (await simulator.requests())[-1]["body"]["messages"]
    assert (await say(one, name, "And then?")).headers["x-baton-context"] == told
    assert (await simulator.requests())[-1]["body"]["messages"] == copied
    for kept, header in ((12, told), (10, None)):
        fork = (await one.request("POST", f"/v1/sessions/{name}/fork", json={"message_count": kept})).json["id"]
        assert (await say(one, fork, "list the marks")).headers.get("x-baton-context") == header
    first, answered = (await one.messages(name))[:2]
    resent = {"model": MODEL, "max_tokens": 500, "messages": [first, answered, {"role": "user", "content": "Stop."}]}
    rewound = await one.request("POST", "/v1/messages", json=resent, headers={"x-session-id": name})
    assert (rewound.headers["x-session-state"], "x-baton-context" in rewound.headers) == ("rewound", False)


async def test_strict_callers_are_not_sent_another_prefix(fleet: Fleet, one: Caller, name: str) -> None:
    replica = await fleet.add_replica(env={"BATON_CONTEXT_POLICY": "truncate"})
    caller = Caller(one.http, replica.url)
    await caller.get("/v1/models")
    assert (await say(caller, name, HALF)).status == 200
    body = {"model": MODEL, "max_tokens": 500, "messages": [{"role": "user", "content": HALF}]}
    headers = {"x-session-id": name, "x-session-prefix": "strict"}
    refused = await caller.request("POST", "/v1/messages", json=body, headers=headers)
    assert (refused.status, refused.json["error"]["details"]["error_code"]) == (409, "prefix_changed")


async def test_a_session_has_a_policy_of_its_own(one: Caller, two: Caller, name: str) -> None:
    for caller in (one, two):
        await caller.get("/v1/models")
    made = await one.request("POST", "/v1/sessions", json={"model": MODEL, "name": name, "context_policy": "truncate"})
    assert (made.status, made.json["context_policy"]) == (201, "truncate")
    assert (await say(one, name, HALF)).status == 200
    lines = (await one.request("GET", f"/v1/sessions/{name}/export")).body
    jsonl = {"content-type": "application/x-ndjson"}
    copy = await two.request("POST", "/v1/sessions/import?name=", data=lines, headers=jsonl)
    fork = await two.request("POST", f"/v1/sessions/{name}/fork", json={})
    for other in (copy, fork):
        assert (other.status, other.json["context_policy"]) == (201, "truncate")
    patched = await two.request("PATCH", f"/v1/sessions/{name}", json={"context_policy": None})
    assert (patched.status, patched.json["context_policy"]) == (200, None)
    assert (await say(two, name, HALF)).json["error"]["details"]["error_code"] == "context_length_exceeded"
    for other in (copy, fork):
        assert (await say(one, other.json["id"], HALF)).headers["x-baton-context"] == "truncate; left_out=2"
    again = await one.request("PATCH", f"/v1/sessions/{name}", json={"context_policy": "truncate"})
    assert again.status == 200
    assert (await say(one, name, HALF)).headers["x-baton-context"] == "truncate; left_out=2"
    assert (await one.request("PATCH", f"/v1/sessions/{name}", json={"context_policy": "x"})).status == 400
