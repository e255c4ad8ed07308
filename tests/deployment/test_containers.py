"""The image and the compose file for real: `make test-compose`, where there is a Docker engine.

The tests share one deployment and go on in it, in this order.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import aiohttp
import pytest

from tests.deployment.compose import CommandFailed, Project, engine_absent, project
from tests.deployment.crowd import MODEL, AnthropicUser, OpenAiUser, crowd
from tests.e2e.caller import Caller, eventually

pytestmark = [pytest.mark.anyio, pytest.mark.compose, pytest.mark.timeout(420)]

REPLICAS = ("baton-1", "baton-2", "baton-3")
BUILD_S, UP_S, REPLACED_S, COMMAND_S = 300.0, 180.0, 120.0, 30.0
STREAMS = 6
USERS = 8
TURNS_BETWEEN = 20
BEGIN_S, ABORT_S, SLACK_S = 3.0, 1.5, 2.0  # docs/operations.md, "When Redis fails"; and a busy machine


@pytest.fixture(scope="module")
async def deployment(anyio_backend: str) -> AsyncIterator[Project]:
    if reason := engine_absent():
        pytest.skip(reason)
    async with project() as made:
        started = time.monotonic()
        await made.compose("build", timeout_s=BUILD_S)
        built = time.monotonic()
        await made.compose("up", "--detach", "--wait", timeout_s=UP_S)
        print(f"\nbuild {built - started:.1f} s, up and healthy {time.monotonic() - built:.1f} s")
        yield made
        started = time.monotonic()
    left = await made.docker("ps", "--all", "--quiet", "--filter", f"publish={made.port}", timeout_s=COMMAND_S)
    assert left == "", "down leaves nothing"
    print(f"\ndown {time.monotonic() - started:.1f} s")


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30)) as session:
        yield session


async def test_a_conversation_goes_over_the_balancer_in_both_dialects(deployment: Project) -> None:
    async with (
        OpenAiUser(deployment.url, "ada") as openai,
        AnthropicUser(deployment.url, "ada") as anthropic,
    ):
        await openai.ask("My name is Ada.", stream=False)
        for stream in (False, True):
            assert await anthropic.ask("What is my name?", stream=stream) == "Your name is Ada."
            assert await openai.ask("What is my name?", stream=stream) == "Your name is Ada."
    async with aiohttp.ClientSession() as http:
        answers = [await Caller(http, deployment.url).chat("How many messages?", "ada") for _ in range(3)]
        assert [answer.text for answer in answers] == [f"This conversation holds {n} messages." for n in (11, 13, 15)]
        assert (await Caller(http, deployment.url).get("/metrics")).status == 404


@pytest.mark.parametrize("service", [*REPLICAS, "simulator"])
async def test_a_replica_has_no_rights_and_no_tools(deployment: Project, service: str) -> None:
    program = (
        "import os, importlib.util as u\n"
        "status = dict(l.split(':\\t', 1) for l in open('/proc/1/status').read().splitlines() if ':\\t' in l)\n"
        "try: open('/opt/x', 'w')\n"
        "except OSError as error: print(os.getuid(), error.errno, end=' ')\n"
        "print(int(status['CapEff'], 16), status['NoNewPrivs'], u.find_spec('pytest'), u.find_spec('pip'))"
    )
    said = await deployment.compose("exec", "-T", service, "python", "-c", program, timeout_s=COMMAND_S)
    assert said == "10001 30 0 1 None None\n"


async def test_streams_of_a_replica_that_is_stopped_are_finished(
    deployment: Project, http: aiohttp.ClientSession
) -> None:
    caller = Caller(http, deployment.url)
    async with AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(caller.stream("Count to 300", f"stopped-{number}", model=MODEL))
            for number in range(STREAMS)
        ]
        await asyncio.gather(*(stream.words(2) for stream in streams))
        started = time.monotonic()
        stopping = asyncio.create_task(deployment.compose("stop", "baton-2", timeout_s=REPLACED_S))
        frames = await asyncio.gather(*(stream.rest() for stream in streams))
        await stopping
        took_s = time.monotonic() - started
    assert [each[-1] for each in frames] == [b"data: [DONE]"] * STREAMS
    assert await deployment.inspected("baton-2", "{{.State.ExitCode}} {{.State.OOMKilled}}") == "0 false"
    for number in range(STREAMS):
        assert (await caller.chat("How many messages?", f"stopped-{number}")).text.endswith("holds 3 messages.")
    print(f"\ndocker stop with {STREAMS} open streams: all complete, ended by itself after {took_s:.1f} s")
    await deployment.compose("up", "--detach", "--no-deps", "--wait", "baton-2", timeout_s=UP_S)


async def test_a_store_that_is_paused_is_told_in_time_and_recovered_from(
    deployment: Project, http: aiohttp.ClientSession
) -> None:
    caller = Caller(http, deployment.url)
    assert (await caller.chat("Hi", "paused", model=MODEL)).status == 200
    await deployment.compose("pause", "valkey", timeout_s=COMMAND_S)
    waits_s = []
    try:
        for _ in range(6):
            started = time.monotonic()
            refused = await caller.chat("Hi", "paused", model=MODEL)
            waits_s.append(time.monotonic() - started)
            assert (refused.status, refused.code) == (503, "store_unavailable")
            assert refused.headers["retry-after"]
        assert (await caller.chat("Hi", model=MODEL)).status == 200, "without a session nothing is stored"
    finally:
        await deployment.compose("unpause", "valkey", timeout_s=COMMAND_S)
    started = time.monotonic()

    async def recovered() -> bool:
        return (await caller.chat("Hi", "paused", model=MODEL)).status == 200

    await eventually(recovered, "a stored turn")
    back_s = time.monotonic() - started
    assert max(waits_s) < BEGIN_S + ABORT_S + SLACK_S
    print(f"\nstore paused: 503 after at most {max(waits_s):.2f} s, back {back_s:.2f} s after it returned")


async def test_no_turn_fails_while_every_replica_is_replaced(deployment: Project) -> None:
    async with crowd(deployment.url, USERS) as users:
        await users.more(TURNS_BETWEEN, REPLACED_S)
        for replica in REPLICAS:
            before = await deployment.container(replica)
            replace = ("up", "--detach", "--no-deps", "--force-recreate", "--wait", replica)
            await deployment.compose(*replace, timeout_s=REPLACED_S)
            assert await deployment.container(replica) != before
            await users.more(TURNS_BETWEEN, REPLACED_S)
    assert users.failures == []
    await users.assert_kept()
    print(f"\nrolling restart of {len(REPLICAS)} replicas under {USERS} users: {users.turns} turns, 0 failed")


async def test_nothing_went_wrong_unseen(deployment: Project) -> None:
    logs = await deployment.compose("logs", "--no-color", timeout_s=COMMAND_S)
    assert "Traceback" not in logs
    for service in (*REPLICAS, "balancer", "valkey", "simulator"):
        assert await deployment.inspected(service, "{{.RestartCount}} {{.State.OOMKilled}}") == "0 false"


async def test_without_a_key_and_without_the_demo_nothing_starts(deployment: Project) -> None:
    async with project() as real:
        with pytest.raises(CommandFailed, match="ANTHROPIC_API_KEY is required"):
            await real.compose("run", "--rm", "--no-deps", "preflight", timeout_s=COMMAND_S, profile="")
