"""A conversation that outgrows the model's window: known before Claude is asked, in every dialect."""

import pytest

from tests.e2e.caller import Answer, Caller
from tests.instruments.processes import Simulator

pytestmark = pytest.mark.anyio

MODEL = "claude-haiku-4-5"  # which has the smallest window, 200,000 tokens
HALF = "What was said before is only read again. " * 10_000  # 102,500 tokens


async def say(caller: Caller, name: str, said: str) -> Answer:
    body = {"model": MODEL, "max_tokens": 500, "messages": [{"role": "user", "content": said}]}
    return await caller.request("POST", "/v1/messages", json=body, headers={"x-session-id": name})


async def paths(simulator: Simulator) -> list[str]:
    return [request["path"] for request in await simulator.requests()]


async def test_a_turn_that_would_not_fit_is_refused_before_claude_is_asked(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    await one.get("/v1/models")  # a replica that has just begun may not know the window yet
    await two.get("/v1/models")
    assert (await say(one, name, HALF)).status == 200
    before = await one.session(name)
    assert before["context_tokens"] > 100_000
    asked = len(await paths(simulator))
    refused = await say(two, name, HALF)
    assert refused.status == 400
    error = refused.json["error"]
    assert error["details"]["error_code"] == "context_length_exceeded"
    assert error["message"].startswith("prompt is too long: 205")
    assert error["message"].endswith("tokens > 200000 maximum")
    chat = await one.chat(HALF, name, model=MODEL)
    assert chat.code == "context_length_exceeded"
    assert (await paths(simulator))[asked:] == ["/v1/messages/count_tokens"] * 2
    after = await one.session(name)
    assert after["message_count"] == before["message_count"] == 2
    assert (await say(two, name, "Well.")).status == 200, "the session is as it was"
    assert (await paths(simulator))[-1] == "/v1/messages"


async def test_a_turn_tells_the_size_that_was_expected(one: Caller, two: Caller, name: str) -> None:
    assert (await say(one, name, HALF[:20_000])).status == 200
    usage = (await say(two, name, HALF[:4_000])).json["usage"]
    sent = sum(usage[f"{kind}input_tokens"] for kind in ("", "cache_read_", "cache_creation_"))
    turn = (await one.get(f"/v1/sessions/{name}/turns?limit=1")).json["turns"][0]
    assert turn["sent"]["context_tokens"] == pytest.approx(sent, rel=0.03)
    assert (await one.session(name))["context_tokens"] == sent + usage["output_tokens"]
