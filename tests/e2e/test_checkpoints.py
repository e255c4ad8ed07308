"""Conversations that outgrow their target: summarized beside their turns, and nobody forgets anything."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.caller import Answer, Caller, eventually
from tests.instruments.processes import Fleet, Simulator

pytestmark = pytest.mark.anyio

TARGET = 1_000
PADDING = "And what else was said is of no importance. " * 14  # 154 tokens
TOLD = "My name is Ada. Remember: the door code is 4711. [mark:first]"


async def begun(caller: Caller, name: str, **fields: Any) -> None:
    """A session with a target, in which something was told."""
    body = {"name": name, "model": "claude-sonnet-5-5", "context_tokens_target": TARGET, **fields}
    assert (await caller.request("POST", "/v1/sessions", json=body)).status == 201
    assert (await caller.chat(TOLD, name)).status == 200


async def compacted(caller: Caller, name: str) -> Answer:
    return await caller.request("POST", f"/v1/sessions/{name}/compact")


async def checkpoint(caller: Caller, name: str, version: int) -> dict[str, Any]:
    """The session's checkpoint, once it is of this version or a later one."""

    async def look() -> dict[str, Any] | None:
        found: dict[str, Any] | None = (await caller.session(name))["checkpoint"]
        return found if found and found["version"] >= version else None

    return await eventually(look, f"checkpoint {version}")


async def asked_last(simulator: Simulator) -> dict[str, Any]:
    """The last turn that Claude was asked for; a summary asks for itself."""
    requests = [one for one in await simulator.asked("") if "transcript" not in str(one["body"]["messages"][-1])]
    body: dict[str, Any] = requests[-1]["body"]
    return body


async def test_what_was_told_first_is_known_after_five_checkpoints(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    await begun(one, name)
    for number, caller in zip(range(60), itertools.cycle((two, one)), strict=False):
        said = await caller.chat(f"{PADDING} [mark:m{number}]", name)
        before = "first" if number == 0 else f"m{number - 1}"
        assert said.text.endswith(f"[seen:m{number}] [after:{before}]")
        made = (await caller.session(name))["checkpoint"]
        if made and made["version"] >= 5:
            break
    else:
        pytest.fail("there were never five checkpoints")
    for caller in (one, two):
        assert (await caller.chat("What is my name?", name)).text == "Your name is Ada."
        remembered = await caller.chat("What should you remember?", name)
        assert remembered.text == "I remember:\nthe door code is 4711."
    marks = (await two.chat("List the marks.", name)).text
    assert marks == " ".join(f"[mark:{mark}]" for mark in ("first", *(f"m{at}" for at in range(number + 1))))
    whole = await one.session(name)
    told = remembered.headers["x-baton-context"]
    assert told.startswith("checkpoint; covers=")
    covers = int(told.rpartition("=")[2])
    sent = (await asked_last(simulator))["messages"]
    assert len(sent) < whole["message_count"] - covers + 2
    assert "conversation_summary" in sent[0]["content"][0]["text"]
    page = (await one.get(f"/v1/sessions/{name}/messages?limit=1")).json
    assert page["total"] == whole["message_count"] == 2 * (number + 1 + 6)
    assert page["messages"][0]["content"] == TOLD
    assert page["covered"] >= covers
    usage = whole["usage"]
    assert usage["checkpoint_input_tokens"] > usage["checkpoint_output_tokens"] > 0


async def test_a_checkpoint_begins_a_new_epoch_and_the_turns_behind_it_go_on_in_it(
    one: Caller, two: Caller, name: str
) -> None:
    await begun(one, name)
    for number in range(3):
        await one.chat(f"Turn {number}.", name)
    assert (await compacted(two, name)).status == 202
    made = await checkpoint(one, name, 1)
    assert made["covers"] == 4, "all but two turns"
    for caller in (one, two):
        said = await caller.chat("Go on.", name, headers={"x-session-prefix": "strict"})
        assert said.headers["x-baton-context"] == "checkpoint; covers=4"
    turns = (await one.get(f"/v1/sessions/{name}/turns?limit=2")).json["turns"]
    assert [turn["sent"]["epoch_began"] for turn in turns] == [[], ["checkpoint"]]
    assert {turn["sent"]["messages"] for turn in turns} == {1 + 4 + 1, 1 + 6 + 1}


async def test_compacting_on_demand_may_be_asked_for_again(one: Caller, two: Caller, name: str) -> None:
    await begun(one, name)
    for _ in range(2):
        assert (await compacted(one, name)).json == {
            "object": "session.compaction",
            "session_id": name,
            "status": "done",
            "checkpoint": None,
        }, "two turns are always kept"
        await one.chat("Turn.", name) if _ == 0 else None
    await one.chat("Another.", name)
    assert (await compacted(one, name)).status == 202
    made = await checkpoint(one, name, 1)
    again = await compacted(two, name)
    assert (again.status, again.json["status"], again.json["checkpoint"]) == (200, "done", made)
    assert (await one.session(name))["checkpoint"] == made, "nothing was summarized again"
    assert (await one.request("POST", f"/v1/sessions/{name}-unknown/compact")).code == "session_not_found"


async def test_a_rewind_into_what_is_covered_sends_the_messages_again(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    await begun(one, name)
    for number in range(3):
        await one.chat(f"Turn {number}.", name)
    await compacted(one, name)
    await checkpoint(one, name, 1)
    history = (await one.get(f"/v1/sessions/{name}/messages")).json["messages"]
    resent = [*history[:2], {"role": "user", "content": "Another turn."}]
    body = {"model": "claude-sonnet-5-5", "max_tokens": 99, "messages": resent}
    edited = await two.request("POST", "/v1/messages", json=body, headers={"x-session-id": name})
    assert edited.headers["x-session-state"] == "rewound"
    assert "x-baton-context" not in edited.headers
    assert (await asked_last(simulator))["messages"][0]["content"] == TOLD
    assert (await one.session(name))["checkpoint"] is None
    assert (await one.chat("What is my name?", name)).text == "Your name is Ada."


async def test_a_picture_that_is_covered_is_whole_again_behind_a_rewind(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    assert (await one.request("POST", "/v1/sessions", json={"name": name, "model": "claude-sonnet-5-5"})).status == 201
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk" * 40_000}}
    model = {"model": "claude-sonnet-5-5", "max_tokens": 99}
    shown = {"role": "user", "content": [picture, {"type": "text", "text": "Look at this."}]}
    headers = {"x-session-id": name}
    body = {**model, "messages": [shown]}
    assert (await one.request("POST", "/v1/messages", json=body, headers=headers)).status == 200
    for number in range(3):
        await one.chat(f"Turn {number}.", name)
    await compacted(one, name)
    await checkpoint(one, name, 1)
    await one.chat("Turn 3.", name)
    assert "aGkaGk" not in str(await asked_last(simulator))
    history = (await one.get(f"/v1/sessions/{name}/messages")).json["messages"]
    resent = {**model, "messages": [*history[:2], {"role": "user", "content": "Another turn."}]}
    answer = {field: history[1][field] for field in ("role", "content")}
    whole = {"model": model["model"], "messages": [shown, answer, {"role": "user", "content": "Another turn."}]}
    path = "/v1/messages/count_tokens"
    counted = [
        (await two.request("POST", path, json=resent, headers=headers)).json["input_tokens"],
        (await two.request("POST", path, json=whole)).json["input_tokens"],
    ]
    assert counted[0] == counted[1]
    edited = await two.request("POST", "/v1/messages", json=resent, headers=headers)
    assert edited.headers["x-session-state"] == "rewound"
    assert (await asked_last(simulator))["messages"][0]["content"][0] == picture


async def test_instructions_of_the_session_reach_whoever_summarizes(
    one: Caller, simulator: Simulator, name: str
) -> None:
    await begun(one, name, compact_instructions="Keep every colour that is named.")
    for number in range(3):
        await one.chat(f"Turn {number}.", name)
    await compacted(one, name)
    await checkpoint(one, name, 1)
    summary = (await simulator.asked("transcript"))[-1]
    assert summary["body"]["model"] == "claude-haiku-5-5"
    assert summary["body"]["system"].endswith("Keep every colour that is named.")
    assert "[user]\n" + TOLD in summary["body"]["messages"][0]["content"][0]["text"]


async def test_a_session_that_was_exported_goes_on_from_its_checkpoint(
    one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    await begun(one, name)
    for number in range(3):
        await one.chat(f"Turn {number}.", name)
    await compacted(one, name)
    made = await checkpoint(one, name, 1)
    lines = (await one.get(f"/v1/sessions/{name}/export")).body
    headers = {"content-type": "application/x-ndjson"}
    url = f"/v1/sessions/import?name={name}-copy"
    assert (await two.request("POST", url, data=lines, headers=headers)).status == 201
    assert (await two.session(f"{name}-copy"))["checkpoint"] == made
    sent = []
    for session in (name, f"{name}-copy"):
        await two.chat("What is my name?", session)
        sent.append((await asked_last(simulator))["messages"])
    assert sent[0] == sent[1]


# A window of its own, and replicas that die.


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Fleet]:
    """Two replicas whose Claude has a small window; a claim holds for 1.25 s."""
    env = {"BATON_COMPACT_DEADLINE_S": "1", "BATON_LEASE_MS": "1000"}
    windows = ["--window-tokens", "claude-sonnet-5-5=1500"]
    async with Fleet(tmp_path, replicas=2, env=env, simulator_args=windows) as fleet:
        yield fleet


async def killed_in_mid_checkpoint(
    fleet: Fleet, http: aiohttp.ClientSession, name: str, turns: int, deaths: int
) -> Callable[[], Caller]:
    """A conversation, each turn on the next replica; now and then one is killed while it makes a checkpoint.

    Returns:
        What tells the next replica that lives.
    """
    alive = itertools.cycle(range(2))

    def caller() -> Caller:
        return Caller(http, fleet.replicas[-2:][next(alive)].url)

    await caller().get("/v1/models")
    await caller().get("/v1/models")
    body = {"name": name, "model": "claude-sonnet-5-5"}
    assert (await caller().request("POST", "/v1/sessions", json=body)).status == 201
    assert (await caller().chat(TOLD, name)).status == 200
    before = "first"
    for number in range(1, turns):
        mark = f"m{number % 10}"  # the stand-in's summaries keep every mark there is: not too many of them
        said = await caller().chat(f"{PADDING} [mark:{mark}]", name, max_tokens=100)
        assert said.text.endswith(f"[seen:{mark}] [after:{before}]")
        before = mark
        # The conversation leaves the time that a summary takes: it has no other way to fit.
        await asyncio.sleep(0.05)
        if number % (turns // (deaths + 1)) == 0 and number > 4:
            await kill_in_mid_checkpoint(fleet, http, name)
            before = "none"
    return caller


async def kill_in_mid_checkpoint(fleet: Fleet, http: aiohttp.ClientSession, name: str) -> None:
    victim = fleet.replicas[-2]
    for _ in range(3):  # so that there is something to cover
        await Caller(http, victim.url).chat("Go on.", name, max_tokens=100)

    async def idle() -> bool:
        return int((await fleet.simulator.stats())["running"]) == 0

    await eventually(idle, "no checkpoint is being made")
    before = (await Caller(http, victim.url).session(name))["checkpoint"]
    await fleet.simulator.pace(first_byte_ms=60_000)
    asked = await compacted(Caller(http, victim.url), name)
    assert asked.status == 202

    async def running() -> bool:
        return int((await fleet.simulator.stats())["running"]) > 0

    await eventually(running, "the summary is asked for")
    victim.kill9()
    await fleet.simulator.pace(first_byte_ms=0)
    other = Caller(http, fleet.replicas[-1].url)
    assert (await compacted(other, name)).status == 202, "its claim still holds"
    assert (await other.session(name))["checkpoint"] == before
    await fleet.add_replica()
    await asyncio.sleep(1.3)  # until the claim is over


async def proves(caller: Callable[[], Caller], name: str, checkpoints: int) -> None:
    for _ in range(2):
        assert (await caller().chat("What is my name?", name)).text == "Your name is Ada."
        assert (await caller().chat("What should you remember?", name)).text == "I remember:\nthe door code is 4711."
    assert (await checkpoint(caller(), name, checkpoints))["version"] >= checkpoints


async def test_a_replica_that_dies_while_it_summarizes_is_stood_in_for(
    small: Fleet, http: aiohttp.ClientSession, name: str
) -> None:
    caller = await killed_in_mid_checkpoint(small, http, name, turns=30, deaths=1)
    await proves(caller, name, checkpoints=5)


@pytest.mark.at_length
async def test_turn_400_knows_what_turn_1_was_told(small: Fleet, http: aiohttp.ClientSession, name: str) -> None:
    caller = await killed_in_mid_checkpoint(small, http, name, turns=396, deaths=5)
    await proves(caller, name, checkpoints=50)


async def test_a_replica_that_drains_finishes_the_checkpoint(
    small: Fleet, http: aiohttp.ClientSession, name: str
) -> None:
    leaving, staying = (Caller(http, replica.url) for replica in small.replicas)
    await begun(leaving, name)
    for number in range(3):
        await leaving.chat(f"Turn {number}.", name)
    await small.simulator.pace(first_byte_ms=700)
    assert (await compacted(leaving, name)).status == 202
    small.replicas[0].terminate()
    assert (await checkpoint(staying, name, 1))["covers"] == 4
