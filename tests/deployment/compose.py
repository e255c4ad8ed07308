"""Docker Compose with the shipped file, in a project of its own that is taken down whatever happens.

The engine is found as `docker` finds it: through PATH, DOCKER_HOST and DOCKER_CONFIG. Nothing of the caller's settings,
and no .env of the checkout, reaches the project: what runs is the demo, as somebody without a key gets it.
"""

import asyncio
import os
import shutil
import subprocess
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.instruments.child import clean_environment
from tests.instruments.ports import reserved_port

ROOT = Path(__file__).resolve().parents[2]
_LOOK_S = 20.0
_DOWN_S = 120.0
_WORDS_CHARS = 4000


def environment() -> dict[str, str]:
    """What the docker client gets: where the engine is, and nothing that the compose file reads."""
    found = {
        name: os.environ[name] for name in ("DOCKER_HOST", "DOCKER_CONFIG", "DOCKER_CONTEXT") if name in os.environ
    }
    return {**clean_environment(), **found, "BATON_IMAGE_TAG": "test"}


def compose_absent() -> str | None:
    """Why there is no Docker Compose on this machine, or None."""
    return _why_not("compose", "version")


def engine_absent() -> str | None:
    """Why there is no Docker engine with Compose on this machine, or None."""
    return compose_absent() or _why_not("version")


def _why_not(*arguments: str) -> str | None:
    docker = shutil.which("docker")
    if docker is None:
        return "there is no docker on this machine"
    asked = subprocess.run(
        [docker, *arguments], env=environment(), capture_output=True, text=True, timeout=_LOOK_S, check=False
    )
    said = (asked.stderr or asked.stdout).strip().splitlines()
    return (
        None if asked.returncode == 0 else f"`docker {' '.join(arguments)}`: {said[-1] if said else asked.returncode}"
    )


class CommandFailed(Exception):
    """A docker command that did not end with 0; says what it printed last."""


class Project:
    """One project of the shipped compose file.

    Attributes:
        port: of the balancer, as callers see it.
        url: likewise.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._name = f"baton-test-{uuid.uuid4().hex[:8]}"
        self._environment = {**environment(), "BALANCER_PORT": str(port)}

    async def compose(self, *arguments: str, timeout_s: float, profile: str = "demo") -> str:
        """Runs `docker compose`; returns all it printed.

        Raises:
            CommandFailed: it ended with something else than 0.
            TimeoutError: it had not ended in time; it is killed.
        """
        profiles = ["--profile", profile] if profile else []
        command = ["compose", "--project-name", self._name, "--env-file", os.devnull, *profiles, *arguments]
        return await self.docker(*command, timeout_s=timeout_s)

    async def docker(self, *arguments: str, timeout_s: float) -> str:
        """Runs `docker`, likewise."""
        process = await asyncio.create_subprocess_exec(
            "docker",
            *arguments,
            cwd=ROOT,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(timeout_s):
                printed, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        text = printed.decode(errors="replace")
        if process.returncode != 0:
            raise CommandFailed(f"docker {' '.join(arguments)}: {process.returncode}\n{text[-_WORDS_CHARS:]}")
        return text

    async def container(self, service: str) -> str:
        """The id of a service's container, running or not."""
        return (await self.compose("ps", "--all", "--quiet", service, timeout_s=_LOOK_S)).strip()

    async def inspected(self, service: str, template: str) -> str:
        """What `docker inspect` says of a service's container."""
        container = await self.container(service)
        return (await self.docker("inspect", "--format", template, container, timeout_s=_LOOK_S)).strip()

    async def down(self) -> None:
        """Takes everything down and away."""
        await self.compose("down", "--volumes", "--remove-orphans", "--timeout", "20", timeout_s=_DOWN_S)


@asynccontextmanager
async def project() -> AsyncIterator[Project]:
    """A project that is not up yet, on a port that is free."""
    with reserved_port() as port:
        made = Project(port)
        try:
            yield made
        finally:
            await made.down()
