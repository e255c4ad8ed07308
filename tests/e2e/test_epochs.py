"""The prefix from turn to turn, as Claude receives it: the same bytes, or a new epoch that is told of."""

from itertools import pairwise
from typing import Any

import aiohttp
import orjson
import pytest

from tests.e2e.caller import Answer, Caller
from tests.instruments.processes import Simulator

pytestmark = pytest.mark.anyio

Json = dict[str, Any]
TAKES_SYSTEM = "claude-opus-5-5"
TAKES_NONE = "claude-sonnet-5-5"
TOOL: Json = {"name": "look", "input_schema": {"type": "object"}}


async def turn(caller: Caller, name: str, text: str, **fields: Any) -> Answer:
    headers = {"x-session-id": name, **fields.pop("headers", {})}
    body = {"model": TAKES_SYSTEM, "max_tokens": 500, "messages": [{"role": "user", "content": text}], **fields}
    return await caller.request("POST", "/v1/messages", json=body, headers=headers)


async def bodies(http: aiohttp.ClientSession, simulator: Simulator, count: int) -> list[bytes]:
    """The last requests' bodies, byte by byte."""
    async with http.get(f"{simulator.url}/simulator/requests?limit={count}") as response:
        raw = await response.read()
    return [part.partition(b',"outcome":')[0] for part in raw.split(b'"body":')[1:]]


def messages_of(body: bytes) -> bytes:
    return body.partition(b'"messages":[')[2].removesuffix(b"]}")


async def test_the_history_is_the_same_bytes_from_turn_to_turn(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    thinking = {"type": "adaptive"}
    assert (
        await turn(one, name, "Hello é \u2028 😀.", thinking=thinking, tools=[TOOL], system="Be brief.")
    ).status == 200
    called = await turn(two, name, "call look")
    result = [{"type": "tool_result", "tool_use_id": called.json["content"][-1]["id"], "content": "A tree."}]
    assert (await turn(one, name, "", messages=[{"role": "user", "content": result}])).status == 200
    chat = await two.chat("And now?", name, model=TAKES_SYSTEM)
    assert chat.status == 200
    sent = await bodies(one.http, simulator, 4)
    for before, after in pairwise(sent):
        assert messages_of(after).startswith(messages_of(before) + b",")
        heads = [body.partition(b'"system":')[2].partition(b'"messages":')[0] for body in (before, after)]
        assert heads[0] == heads[1] != b""
    assert sent[-1].count(b'"type":"thinking"') == 3


async def test_another_system_prompt_is_told_or_begins_an_epoch(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    for model, roles in (
        (TAKES_SYSTEM, ["user", "assistant", "user", "system"]),
        (TAKES_NONE, ["user", "assistant", "user"]),
    ):
        session = f"{name}-{model}"
        await turn(one, session, "a", model=model, system="One.", thinking={"type": "adaptive"})
        changed = await turn(two, session, "What are your instructions?", model=model, system="Two.")
        assert "Two." in changed.json["content"][-1]["text"]
        body = orjson.loads((await bodies(one.http, simulator, 1))[0])
        assert [message["role"] for message in body["messages"]] == roles
        assert body["system"] == ("One." if model == TAKES_SYSTEM else "Two.")
        assert (b'"thinking"' in orjson.dumps(body["messages"])) == (model == TAKES_SYSTEM)
        assert (await one.session(session))["system_prompt"] == "Two."
        (record,) = (await one.get(f"/v1/sessions/{session}/turns?limit=1")).json["turns"]
        assert record["sent"]["epoch_began"] == ([] if model == TAKES_SYSTEM else ["system"])
        # No caller has seen what told it: a resent conversation is recognised all the same.
        stored = [m for m in await one.messages(session) if m["role"] != "system"]
        again = [{"role": m["role"], "content": m["content"]} for m in stored] + [{"role": "user", "content": "And?"}]
        resent = await turn(one, session, "", model=model, messages=again)
        assert (resent.status, resent.headers["x-session-state"]) == (200, "continued")


async def test_a_refusal_leaves_the_epoch_as_it_was(one: Caller, two: Caller, simulator: Simulator, name: str) -> None:
    """Even where the turn would have rewound the history and begun an epoch in the middle of it."""
    thinking = {"type": "adaptive"}
    first = await turn(one, name, "a", tools=[TOOL], thinking=thinking)
    for said in ("b", "c"):
        await turn(two, name, said)
    before = orjson.loads((await bodies(one.http, simulator, 1))[0])
    edited = [{"role": "user", "content": "a"}, {"role": "assistant", "content": first.json["content"]}]
    edited.append({"role": "user", "content": "edited"})
    await simulator.fault("refusal")
    other = {"name": "other", "input_schema": {"type": "object"}}
    refused = await turn(one, name, "", messages=edited, tools=[other])
    assert (refused.json["stop_reason"], refused.headers["x-session-state"]) == ("refusal", "continued")
    assert (await turn(two, name, "d", headers={"x-session-prefix": "strict"})).status == 200
    after = orjson.loads((await bodies(one.http, simulator, 1))[0])
    assert after["tools"] == before["tools"] == [TOOL]
    assert after["messages"][: len(before["messages"])] == before["messages"]


async def test_a_prompt_that_was_told_without_an_answer_is_passed_over(one: Caller, name: str) -> None:
    first = await turn(one, name, "a", system="One.")
    assert (await turn(one, name, "b", system="Two.", max_tokens=0)).json["content"] == []
    again = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": first.json["content"]},
        {"role": "user", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    resent = await turn(one, name, "", messages=again)
    assert (resent.status, resent.headers["x-session-state"]) == (200, "continued")
    assert len(await one.messages(name)) == 6


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ({"model": "claude-opus-5"}, ["model"]),
        ({"tools": [TOOL]}, ["tools"]),
        ({"thinking": {"type": "adaptive"}, "system": ""}, ["thinking", "system"]),
    ],
)
async def test_strict_refuses_what_would_begin_an_epoch_and_names_it(
    one: Caller, two: Caller, name: str, change: Json, reasons: list[str]
) -> None:
    await turn(one, name, "a", system="One.")
    strict = {"x-session-prefix": "strict"}
    before = await one.session(name)
    refused = await turn(two, name, "b", headers=strict, **change)
    assert (refused.status, refused.json["error"]["details"]["error_code"]) == (409, "prefix_changed")
    assert ", ".join(reasons) in refused.json["error"]["message"]
    after = await one.session(name)
    assert (after["message_count"], after["turn_count"]) == (before["message_count"], before["turn_count"])
    assert (await turn(two, name, "b", headers=strict)).status == 200
    assert (await turn(two, name, "c", headers=strict, system="Told, not changed.")).status == 200
    assert (await turn(one, name, "d", **change)).status == 200
    (record,) = (await one.get(f"/v1/sessions/{name}/turns?limit=1")).json["turns"]
    assert record["sent"]["epoch_began"] == reasons
