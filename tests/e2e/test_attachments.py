"""What is big: stored once, whole for whoever asks, and refused where it is more than Claude takes."""

import io
from hashlib import sha256
from typing import Any

import orjson
import pytest
import redis.asyncio

from storage.keys import Keyspace
from tests.e2e.by_hand import append, assistant, user
from tests.e2e.caller import CHAT, Answer, Caller
from tests.e2e.unchanged import unchanged
from tests.instruments.processes import SECRET, Fleet, Simulator

pytestmark = pytest.mark.anyio

MIB = 1_048_576
CLAUDE_BYTES_MAX = 33_554_432
PICTURE = "iVBORw0KGgo" * 18_600  # 200 KB


def looked_at(data: str) -> list[dict[str, Any]]:
    """Something big that was shown, and what was seen."""
    source = {"type": "base64", "media_type": "image/png", "data": data}
    shown = [{"type": "image", "source": source}, {"type": "text", "text": "Look at this."}]
    return [{"role": "user", "content": shown}, assistant("A cat.")]


async def send(caller: Caller, path: str, body: Any) -> Answer:
    """As a file: aiohttp warns of what is large and is not one."""
    return await caller.request("POST", path, data=io.BytesIO(orjson.dumps(body)))


async def keys_of(caller: Caller, name: str) -> tuple[str, ...]:
    return Keyspace("baton", 1, SECRET.encode()).session((await caller.session(name))["id"], "open").keys


async def test_a_picture_in_two_turns_is_stored_once_and_sent_to_claude_twice(
    one: Caller, two: Caller, fleet: Fleet, simulator: Simulator, name: str
) -> None:
    history = [user("Look at this."), *looked_at(PICTURE), *looked_at(PICTURE)]
    assert (await one.chat("My name is Ada.", name)).status == 200
    assert (await append(one, name, *history[:3])).status == 200
    assert (await append(two, name, *history[3:])).status == 200
    assert (await two.chat(f"{name}: what is my name?", name)).text == "Your name is Ada."
    (sent,) = [r for r in await simulator.requests() if name in str(r["body"])]
    assert sent["body"]["messages"][2:7] == history
    assert (await one.messages(name))[2:7] == history
    assert (await one.get(f"/v1/sessions/{name}/turns/2")).json["messages"] == history[:3]
    keys = await keys_of(one, name)
    async with redis.asyncio.from_url(fleet.valkey.url) as store:
        assert await store.hgetall(keys[7]) == {sha256(PICTURE.encode()).hexdigest().encode(): PICTURE.encode()}
        assert sum(map(len, await store.lrange(keys[1], 0, -1))) < 5_000


async def test_a_lost_attachment_makes_the_session_corrupt(
    one: Caller, fleet: Fleet, simulator: Simulator, name: str
) -> None:
    assert (await one.chat("Hello.", name)).status == 200
    assert (await append(one, name, user("Look."), *looked_at(PICTURE))).status == 200
    keys = await keys_of(one, name)
    async with redis.asyncio.from_url(fleet.valkey.url) as store:
        await store.unlink(keys[7])
    asked = await one.chat(f"{name}: and now?", name)
    read = await one.get(f"/v1/sessions/{name}/messages")
    told = await one.get(f"/v1/sessions/{name}/turns/2")
    assert [(answer.status, answer.code) for answer in (asked, read, told)] == [(409, "session_corrupt")] * 3
    assert not [r for r in await simulator.requests() if name in str(r["body"])]
    # As it is told to do; and an export of everything, in another file of this folder, would tell of it.
    assert (await one.request("DELETE", f"/v1/sessions/{name}")).status == 200


async def test_a_conversation_too_large_for_claude_is_refused_before_it_is_sent(
    one: Caller, two: Caller, fleet: Fleet, simulator: Simulator, name: str
) -> None:
    """By hand nothing is stored that no turn could be asked with; a turn that is too large changes nothing."""
    first = await one.chat("My name is Ada.", name)
    shown = {"messages": looked_at("A" * 20 * MIB)}
    path = f"/v1/sessions/{name}/messages"
    assert (await send(one, path, shown)).status == 200
    asked = await simulator.total()
    async with unchanged(fleet):
        by_hand = await send(two, path, shown)
        by_turn = await send(two, CHAT, {"session_id": name, "messages": [user("b" * 13 * MIB)]})
    for refused, least in ((by_hand, 40 * MIB), (by_turn, 33 * MIB)):
        assert (refused.status, refused.code) == (413, "request_too_large")
        message = refused.json["error"]["message"]
        assert "conversation with its attachments is larger than Claude accepts in one request" in message
        assert f"{CLAUDE_BYTES_MAX} are the most" in message
        (size_bytes,) = [int(word) for word in message.split() if word.isdecimal() and word != str(CLAUDE_BYTES_MAX)]
        assert least < size_bytes < least + 4_000
    assert await simulator.total() == asked
    assert (await one.session(name))["message_count"] == 4
    resent = [user("My name is Ada."), assistant(first.text), user("What is my name?")]
    back = await two.request("POST", CHAT, json={"session_id": name, "messages": resent})
    assert (back.text, back.headers["x-session-state"]) == ("Your name is Ada.", "rewound")
    keys = await keys_of(one, name)
    async with redis.asyncio.from_url(fleet.valkey.url) as store:
        left = await store.lrange(keys[1], 0, -1) + await store.hvals(keys[7])
        assert await store.hget(keys[0], "b") == str(sum(map(len, left))).encode()


async def test_a_request_without_a_session_is_refused_too(one: Caller, simulator: Simulator) -> None:
    """Ours is just small enough; with what Claude must be told besides it is too large."""
    asked = await simulator.total()
    refused = await send(one, CHAT, {"messages": [user("a" * (CLAUDE_BYTES_MAX - 50))]})
    assert (refused.status, refused.code) == (413, "request_too_large")
    assert refused.json["error"]["message"].startswith("The conversation with its attachments is larger than Claude")
    assert await simulator.total() == asked
