"""The prefix from turn to turn, as Claude receives it: the same bytes, or a new epoch that is told of."""

from itertools import pairwise
from typing import Any

import aiohttp
import orjson
import pytest
import redis.asyncio

from storage.keys import Keyspace
from tests.e2e.caller import Answer, Caller
from tests.instruments.processes import SECRET, Fleet, Simulator

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


async def change_first_message(fleet: Fleet, caller: Caller, name: str) -> None:
    """As if another account had made the thinking behind it: the signatures no longer fit what they stand behind."""
    keys = Keyspace("baton", 1, SECRET.encode()).session((await caller.session(name))["id"], "open").keys
    store: Any
    async with redis.asyncio.from_url(fleet.valkey.url) as store:
        element = await store.lindex(keys[1], 0)
        assert element.count(b"Hello") == 1
        await store.lset(keys[1], 0, element.replace(b"Hello", b"Hullo"))


async def test_a_refused_signature_begins_an_epoch_for_good(
    one: Caller, two: Caller, fleet: Fleet, simulator: Simulator, name: str
) -> None:
    assert (await turn(one, name, "Hello.")).json["content"][0]["type"] == "thinking"
    await change_first_message(fleet, one, name)
    strict = await turn(two, name, "b", headers={"x-session-prefix": "strict"})
    assert (strict.status, strict.json["error"]["details"]["error_code"]) == (409, "prefix_changed")
    answer = await turn(two, name, "b")
    assert (answer.status, answer.json["content"][0]["type"]) == (200, "thinking")
    refused, accepted = (orjson.loads(body) for body in await bodies(one.http, simulator, 2))
    assert refused["messages"][1]["content"][0]["type"] == "thinking"
    assert [block["type"] for block in accepted["messages"][1]["content"]] == ["text"]
    (record,) = (await one.get(f"/v1/sessions/{name}/turns?limit=1")).json["turns"]
    assert record["sent"]["epoch_began"] == ["refused"]
    assert (await turn(one, name, "c", headers={"x-session-prefix": "strict"})).status == 200
    before, after = await bodies(one.http, simulator, 2)
    assert messages_of(after).startswith(messages_of(before) + b",")


async def test_secret_thinking_and_thinking_between_calls_are_sent_back_as_they_were(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    """The stand-in refuses any change of them, or of what is in front of them."""
    assert (await turn(one, name, "think in secret", tools=[TOOL])).json["content"][0]["type"] == "redacted_thinking"
    called = await turn(two, name, "think between, call look")
    use = called.json["content"][-1]
    assert [block["type"] for block in called.json["content"]].count("thinking") >= 1
    result = [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": use["id"], "content": "A tree."}]}]
    assert (await turn(one, name, "", messages=result)).status == 200
    chat = await two.chat("And now?", name, model=TAKES_SYSTEM)
    assert chat.status == 200
    sent = (await bodies(one.http, simulator, 1))[0]
    assert b'"type":"redacted_thinking"' in sent and b'"type":"thinking"' in sent
    turns = (await one.get(f"/v1/sessions/{name}/turns")).json["turns"]
    assert [record["sent"]["epoch_began"] for record in turns] == [[]] * 4


async def test_what_was_sent_before_is_read_from_the_cache(one: Caller, two: Caller, name: str) -> None:
    long = "word " * 1200
    first = await turn(one, name, long)
    second = await turn(two, name, "And?")
    told = await turn(one, name, "And now?", system="Be brief.")
    usages = [answer.json["usage"] for answer in (first, second, told)]
    assert usages[0]["cache_creation_input_tokens"] > 1000
    assert usages[1]["cache_read_input_tokens"] >= usages[0]["cache_creation_input_tokens"]
    assert usages[2]["cache_read_input_tokens"] >= usages[1]["cache_read_input_tokens"]
    session = await one.session(name)
    assert session["usage"]["cache_read_input_tokens"] == sum(usage["cache_read_input_tokens"] for usage in usages)
    chat = await two.chat("Again?", name, model=TAKES_SYSTEM)
    details = chat.json["usage"]["prompt_tokens_details"]
    assert details["cached_tokens"] >= usages[2]["cache_read_input_tokens"]
    assert details["cache_write_tokens"] > 0


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
