"""What most of these tests share: two replicas as shipped, and a hasty one with short waits and small bodies.

Nothing is cleaned up between tests: each has session names and marks of its own.
"""

import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import aiohttp
import pytest
from openai import AsyncOpenAI

from tests.e2e.caller import Caller
from tests.instruments.processes import Fleet, Replica, Simulator

HASTY = {
    "BATON_STATUS_WAIT_S": "0.2",
    "BATON_BODY_WAIT_S": "0.3",
    "BATON_BODY_BYTES_MAX": "4096",
    "BATON_MODEL_ALIASES": "gpt-4o=claude-opus-5-5",
}


@pytest.fixture(scope="session")
async def fleet(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    async with Fleet(tmp_path_factory.mktemp("fleet"), replicas=2) as fleet:
        yield fleet


@pytest.fixture(scope="session")
async def hasty(anyio_backend: str, fleet: Fleet) -> Replica:
    return await fleet.add_replica(env=HASTY)


@pytest.fixture
async def simulator(fleet: Fleet) -> AsyncIterator[Simulator]:
    """The stand-in for Claude, without what a failed test may have left in it."""
    yield fleet.simulator
    await fleet.simulator.clear_faults()
    await fleet.simulator.pace(first_byte_ms=0, delta_ms=0)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(20)) as session:
        yield session


@pytest.fixture
def one(fleet: Fleet, http: aiohttp.ClientSession) -> Caller:
    """Asks the first replica."""
    return Caller(http, fleet.replicas[0].url)


@pytest.fixture
def two(fleet: Fleet, http: aiohttp.ClientSession) -> Caller:
    """Asks the second replica."""
    return Caller(http, fleet.replicas[1].url)


@pytest.fixture
async def sdks(fleet: Fleet) -> AsyncIterator[list[AsyncOpenAI]]:
    """OpenAI's SDK as installed, pointed at the first and at the second replica; it does not retry."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(AsyncOpenAI(base_url=f"{replica.url}/v1", api_key="unused", max_retries=0))
            for replica in fleet.replicas[:2]
        ]


@pytest.fixture
def impatient(hasty: Replica, http: aiohttp.ClientSession) -> Caller:
    """Asks the hasty replica."""
    return Caller(http, hasty.url)


@pytest.fixture
def name() -> str:
    """A session name, or a mark, that no other test uses."""
    return f"t-{uuid.uuid4().hex[:12]}"
