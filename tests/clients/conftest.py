"""Two replicas behind a balancer that gives each request to the next one, and the report of who talked to them."""

import sys
from collections.abc import AsyncIterator
from typing import Final

import pytest

from tests.instruments.child import STARTUP_TIMEOUT_S, Child
from tests.instruments.processes import Fleet

REPORTED: Final = ("client", "versions", "did")
_LISTENING: Final = "front listening on "


@pytest.fixture(scope="session")
async def fleet(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    async with Fleet(tmp_path_factory.mktemp("fleet"), replicas=2) as fleet:
        yield fleet


@pytest.fixture(scope="session")
async def baton(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The balancer's URL. It is the demo's: the clients keep their connections, so balancing those proves little."""
    replicas = [word for replica in fleet.replicas for word in ("--replica", replica.url)]
    command = (sys.executable, "-m", "service.cli", "demo-front", *replicas)
    async with Child("front", command, tmp_path_factory.mktemp("front")) as front:

        def address() -> str | None:
            return next((line.split()[-1] for line in front.log().splitlines() if line.startswith(_LISTENING)), None)

        yield await front.first(address, "address", STARTUP_TIMEOUT_S)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A line for each client: what it is, what it did, what came of it."""
    lines = []
    for result in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(result, ()):
            said = dict(getattr(report, "user_properties", ()))  # a module that cannot be read has none
            if "client" in said:
                crash = getattr(report.longrepr, "reprcrash", None)
                why = crash.message.splitlines()[:1] if crash else []
                lines.append([*(said[name] for name in REPORTED), said.get("result", ": ".join([result, *why]))])
    if not lines:
        return
    terminalreporter.section("clients")
    for line in sorted(lines):
        terminalreporter.write_line(" | ".join(line))
