"""A turn that does not fit has the conversation summarized first, on whatever replica, and is answered."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.e2e.caller import Answer, Caller, eventually, text_of
from tests.instruments.processes import Fleet

pytestmark = pytest.mark.anyio

PADDING = "And what else was said is of no importance. " * 14  # 154 tokens
TOLD = "My name is Ada. Remember: the door code is 4711."
ENV = {
    "BATON_COMPACT_DEADLINE_S": "2",  # so a claim holds for 2.5 s
    "BATON_LEASE_MS": "1000",
    "BATON_STATUS_WAIT_S": "0.2",
}
SUMMARY = "transcript"  # what only the request for a summary says


@pytest.fixture(scope="module")
async def small(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """Two replicas whose Claude has a small window."""
    windows = ["--window-tokens", "claude-sonnet-5-5=1500"]
    async with Fleet(tmp_path_factory.mktemp("small"), replicas=2, env=ENV, simulator_args=windows) as fleet:
        yield fleet


@pytest.fixture
async def callers(small: Fleet, http: aiohttp.ClientSession) -> AsyncIterator[tuple[Caller, Caller]]:
    one, two = (Caller(http, replica.url) for replica in small.replicas[:2])
    for caller in (one, two):
        await caller.get("/v1/models")  # which tells the window
    yield one, two
    await small.simulator.clear_faults()
    await small.simulator.pace(first_byte_ms=0)


async def filled(caller: Caller, name: str) -> None:
    """A conversation just below where it would be summarized beside its turns."""
    for said in (TOLD, *[PADDING] * 4):
        assert (await caller.chat(said, name, max_tokens=50)).status == 200
    assert (await caller.session(name))["checkpoint"] is None


async def large(caller: Caller, name: str, **headers: str) -> Answer:
    """A turn that does not fit behind the others."""
    return await caller.chat(PADDING * 5 + "What is my name?", name, max_tokens=50, headers=headers)


async def summarizing(fleet: Fleet) -> None:
    async def running() -> bool:
        return any(request["outcome"] == "running" for request in await fleet.simulator.asked(SUMMARY))

    await eventually(running, "the request for a summary")


async def test_a_turn_that_does_not_fit_has_the_conversation_summarized(
    callers: tuple[Caller, Caller], name: str
) -> None:
    one, two = callers
    await filled(one, name)
    key = {"Idempotency-Key": uuid.uuid4().hex}
    said = await large(two, name, **key)
    assert (said.status, said.text) == (200, "Your name is Ada.")
    covers = int(said.headers["x-baton-context"].removeprefix("compact; covers="))
    assert (await one.session(name))["checkpoint"]["covers"] >= covers > 0, "it may be large enough for another by now"
    again = await large(one, name, **key)
    assert (again.body, again.headers["x-baton-context"]) == (said.body, said.headers["x-baton-context"])
    after = await one.chat("What should you remember?", name, max_tokens=50)
    assert after.text == "I remember:\nthe door code is 4711."
    assert after.headers["x-baton-context"].startswith("checkpoint; covers=")
    session = await two.session(name)
    assert session["message_count"] == 14
    assert session["usage"]["checkpoint_input_tokens"] > 0
    turns = (await two.get(f"/v1/sessions/{name}/turns")).json["turns"]
    assert said.headers["x-baton-context"] in [turn["sent"]["context"] for turn in turns]


async def test_an_edit_within_what_is_covered_has_less_of_it_summarized(
    callers: tuple[Caller, Caller], name: str
) -> None:
    one, two = callers
    await filled(one, name)
    assert (await large(one, name)).status == 200
    assert (await one.request("POST", f"/v1/sessions/{name}/compact")).status in (200, 202)

    async def covers_more() -> bool:
        return bool((await one.session(name))["checkpoint"]["covers"] == 8)

    await eventually(covers_more, "a checkpoint of all but two turns")
    kept = [{"role": said["role"], "content": said["content"]} for said in await one.messages(name)][:6]
    edited = [*kept, {"role": "user", "content": PADDING * 8 + "What is my name?"}]
    body = {"model": "claude-sonnet-5-5", "max_tokens": 50, "messages": edited}
    said = await two.request("POST", "/v1/messages", json=body, headers={"x-session-id": name})
    assert (said.status, said.json["content"][0]["text"]) == (200, "Your name is Ada.")
    assert said.headers["x-session-state"] == "rewound"
    anew = int(said.headers["x-baton-context"].removeprefix("compact; covers="))
    assert 0 < anew <= len(kept) == (await one.session(name))["message_count"] - 2


async def test_what_is_too_large_even_alone_costs_no_summary(
    small: Fleet, callers: tuple[Caller, Caller], name: str
) -> None:
    one, _ = callers
    await filled(one, name)
    before = len(await small.simulator.asked(SUMMARY))
    refused = await one.chat(PADDING * 20, name)
    assert (refused.status, refused.code) == (400, "context_length_exceeded")
    assert (await one.session(name))["checkpoint"] is None
    assert len(await small.simulator.asked(SUMMARY)) == before


async def test_where_a_replica_dies_another_waits_for_its_claim_and_goes_on(
    small: Fleet, callers: tuple[Caller, Caller], http: aiohttp.ClientSession, name: str
) -> None:
    one, two = callers
    await filled(one, name)
    dying = await small.add_replica(env=ENV)
    caller = Caller(http, dying.url)
    await caller.get("/v1/models")
    await small.simulator.pace(first_byte_ms=60_000)
    asking = asyncio.create_task(large(caller, name))
    await summarizing(small)
    dying.kill9()
    with pytest.raises(aiohttp.ClientError):
        await asking
    await small.simulator.pace(first_byte_ms=0)
    said = await large(two, name)
    assert (said.status, said.text) == (200, "Your name is Ada.")
    assert (await one.session(name))["message_count"] == 12


async def test_a_claim_of_another_replica_is_waited_for(
    small: Fleet, callers: tuple[Caller, Caller], name: str
) -> None:
    one, two = callers
    await filled(one, name)
    await small.simulator.pace(first_byte_ms=700)
    assert (await one.request("POST", f"/v1/sessions/{name}/compact")).status == 202
    await summarizing(small)
    said = await large(two, name)
    assert (said.status, said.text) == (200, "Your name is Ada.")
    assert (await one.session(name))["checkpoint"]["version"] == 1


async def test_a_stream_begins_meanwhile_and_who_hangs_up_loses_the_turn_not_the_summary(
    small: Fleet, callers: tuple[Caller, Caller], name: str
) -> None:
    one, two = callers
    await filled(one, name)
    await small.simulator.pace(first_byte_ms=1_500)
    async with two.stream(PADDING * 5 + "What is my name?", name, max_tokens=50) as stream:
        await summarizing(small)
        told = stream.headers["x-baton-context"]
        stream.hang_up()

    async def made() -> bool:
        return (await one.session(name))["checkpoint"] is not None

    await eventually(made, "the checkpoint")
    await small.simulator.pace(first_byte_ms=0)
    session = await one.session(name)
    assert (session["message_count"], session["status"]) == (10, "active")
    assert told == f"compact; covers={session['checkpoint']['covers']}"
    async with one.stream(PADDING * 5 + "What is my name?", name, max_tokens=50) as stream:
        assert text_of(await stream.rest()) == "Your name is Ada."
        assert stream.headers["x-baton-context"] == f"checkpoint; covers={session['checkpoint']['covers']}"


async def test_a_summary_that_fails_is_why_the_turn_does(
    small: Fleet, callers: tuple[Caller, Caller], name: str
) -> None:
    one, two = callers
    await filled(one, name)
    await small.simulator.fault("refusal", match=SUMMARY)
    failed = await large(two, name)
    assert (failed.status, failed.code) == (502, "upstream_nonsense")
    assert "x-baton-context" not in failed.headers, "Claude was sent nothing of the session"
    assert failed.json["error"]["message"].startswith("The conversation has outgrown the window, and summarizing")
    assert (await one.session(name))["message_count"] == 10
    said = await large(one, name)  # once the claim is over
    assert (said.status, said.text) == (200, "Your name is Ada.")
