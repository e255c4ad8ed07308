"""One replica with small bodies, in calm: its store and the stand-in for Claude are well, and nobody else asks."""

import os
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, settings

from service.openapi.document import document
from tests.fuzz.judge import Judge
from tests.fuzz.requests import SEEDED, SEEDED_KEY
from tests.instruments.interface import Interface
from tests.instruments.processes import Fleet
from tests.instruments.wire import Got, Sent, Wire

ADMIN_KEY = b"admin-key-of-the-tests-0123456789"
BODY_BYTES_MAX = 262_144
ENV = {
    "BATON_BODY_BYTES_MAX": str(BODY_BYTES_MAX),
    "BATON_ADMIN_KEY": ADMIN_KEY.decode(),  # nobody may call everything without one
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


class KeyedWire(Wire):
    """Shows a key that may do everything, unless the request shows another, and keeps a key that is asked about."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._key_id = b""

    def ask(self, sent: Sent) -> Got:
        shows = any(name.lower() in (b"authorization", b"x-api-key") for name, _ in sent.headers)
        headers = sent.headers if shows else (*sent.headers, (b"x-api-key", ADMIN_KEY))
        target, seeded = sent.target, SEEDED_KEY.encode()
        if seeded in target:
            if not self._key_id:
                made = self.ask(Sent(b"POST", b"/v1/admin/keys", (), b'{"principal":"seeded"}'))
                self._key_id = made.json["id"].encode()
            target = target.replace(seeded, self._key_id)
        got = super().ask(replace(sent, target=target, headers=headers))
        if sent.method == b"DELETE" and target != sent.target and got.status == 200:
            self._key_id = b""
        return got


@pytest.fixture(scope="session")
def judge() -> Judge:
    return Judge(Interface(document()))


@pytest.fixture(scope="session")
async def fleet(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    async with Fleet(tmp_path_factory.mktemp("fuzz"), replicas=1, env=ENV) as fleet:
        yield fleet


@pytest.fixture
def wire(fleet: Fleet) -> Iterator[Wire]:
    wire = KeyedWire(fleet.replicas[0].url)
    wire.ask(Sent(b"DELETE", f"/v1/sessions/{SEEDED}".encode()))  # what another test has made of it
    yield wire
    wire.close()
