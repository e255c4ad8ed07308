"""One replica with small bodies, in calm: its store and the stand-in for Claude are well, and nobody else asks."""

import os
import secrets
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings

from service.openapi.document import document
from tests.fuzz.judge import Judge
from tests.fuzz.requests import SEEDED
from tests.instruments.interface import Interface
from tests.instruments.processes import Fleet
from tests.instruments.wire import Sent, Wire

BODY_BYTES_MAX = 262_144
ENV = {
    "BATON_BODY_BYTES_MAX": str(BODY_BYTES_MAX),
    "BATON_SWEEP_INTERVAL_S": "86400",  # what is counted changes by what was asked for alone
}
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES") or 0)
SEED = int(os.environ.get("FUZZ_SEED") or (secrets.randbelow(10**9) if EXAMPLES else 1))


def bounded(examples: int, steps: int = 50) -> settings:
    """How often a test tries; with FUZZ_EXAMPLES so often, and what fails is then made as small as possible."""
    return settings(
        deadline=None,
        database=None,
        max_examples=EXAMPLES or examples,
        stateful_step_count=steps,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink] if EXAMPLES else [Phase.generate],
    )


@pytest.fixture(scope="session")
def judge() -> Judge:
    return Judge(Interface(document()))


@pytest.fixture(scope="session")
async def fleet(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    async with Fleet(tmp_path_factory.mktemp("fuzz"), replicas=1, env=ENV) as fleet:
        yield fleet


@pytest.fixture
def wire(fleet: Fleet) -> Iterator[Wire]:
    wire = Wire(fleet.replicas[0].url)
    wire.ask(Sent(b"DELETE", f"/v1/sessions/{SEEDED}".encode()))  # what another test has made of it
    yield wire
    wire.close()
