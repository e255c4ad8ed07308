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


async def send(caller: Caller, path: str, body: Any, headers: dict[str, str] | None = None) -> Answer:
    """As a file: aiohttp warns of what is large and is not one."""
    return await caller.request("POST", path, data=io.BytesIO(orjson.dumps(body)), headers=headers)


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


async def test_a_conversation_of_more_bytes_than_claude_takes_goes_on_without_its_oldest(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    """Six turns with 12 MiB of pictures are more than a replica reads of a session; a view has room for one of them."""
    made = await one.request(
        "POST", "/v1/sessions", json={"name": name, "model": "claude-haiku-4-5", "context_policy": "truncate"}
    )
    assert made.status == 201
    told, shown_all = [], []
    for number in range(6):  # three to a message, for none is larger than 5 MB
        shown = [looked_at("ABC"[at] + chr(ord("a") + number) * (4 * MIB - 1))[0]["content"][0] for at in range(3)]
        shown.append({"type": "text", "text": f"My name is Ada{number}."})
        shown_all.append(shown)
        answer = await turn((one, two)[number % 2], name, shown)
        assert answer.status == 200, answer.body
        told.append(answer.headers.get("x-baton-context"))
    assert told == [None, None, *["truncate; left_out=4"] * 2, *["truncate; left_out=8"] * 2]
    answer = await turn(two, name, "what did i say first")
    assert answer.headers["x-baton-context"] == "truncate; left_out=8"
    assert "My name is Ada4." in answer.json["content"][0]["text"]
    count = {"model": "claude-haiku-4-5", "messages": [user("And then?")]}
    counted = await one.request("POST", "/v1/messages/count_tokens", json=count, headers={"x-session-id": name})
    assert 9_000 < counted.json["input_tokens"] < 9_500, "six pictures"
    assert (await append(one, name, user("A note."), assistant("Noted."))).status == 200
    by_hand = await send(one, f"/v1/sessions/{name}/messages", {"messages": looked_at("Z" * 9 * MIB)})
    assert (by_hand.status, by_hand.code) == (413, "request_too_large")
    compacted = await one.request("POST", f"/v1/sessions/{name}/compact")
    assert compacted.status == 202, "what images show is no part of a summary"
    # All of it can be taken out; a fork of what was left out is sent what is its own.
    lines = (await one.request("GET", f"/v1/sessions/{name}/export")).body.splitlines()
    stored = [orjson.loads(line)["message"]["content"] for line in lines if line.startswith(b'{"type":"message"')]
    assert stored[:12:2] == shown_all
    fork = (await two.request("POST", f"/v1/sessions/{name}/fork", json={"message_count": 4})).json["id"]
    answer = await turn(one, fork, "what did i say first")
    assert "x-baton-context" not in answer.headers
    assert "My name is Ada0." in answer.json["content"][0]["text"]
    # So can a rewind by a caller who sends the beginning again.
    first = [{"role": "user", "content": stored[0]}, {"role": "assistant", "content": stored[1]}]
    resent = {"model": "claude-haiku-4-5", "max_tokens": 100, "messages": [*first, user("what is my name?")]}
    back = await send(two, "/v1/messages", resent, {"x-session-id": name})
    assert (back.headers["x-session-state"], back.json["content"][0]["text"]) == ("rewound", "Your name is Ada0.")
    sent = (await simulator.requests())[-1]["body"]
    assert "left out: 125" in sent, "with the picture"


async def turn(caller: Caller, name: str, said: Any) -> Answer:
    body = {"model": "claude-haiku-4-5", "max_tokens": 100, "messages": [{"role": "user", "content": said}]}
    return await send(caller, "/v1/messages", body, {"x-session-id": name})


async def test_a_request_without_a_session_is_refused_too(one: Caller, simulator: Simulator) -> None:
    """Ours is just small enough; with what Claude must be told besides it is too large."""
    asked = await simulator.total()
    refused = await send(one, CHAT, {"messages": [user("a" * (CLAUDE_BYTES_MAX - 50))]})
    assert (refused.status, refused.code) == (413, "request_too_large")
    assert refused.json["error"]["message"].startswith("The conversation with its attachments is larger than Claude")
    assert await simulator.total() == asked
