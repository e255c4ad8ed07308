"""The processes under measurement: started, asked for their cost in /proc, always ended."""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import orjson

_START_S: Final = 20.0
_STOP_S: Final = 10.0
_ORDER_S: Final = 60.0
_POLL_S: Final = 0.02
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_LISTENING: Final = re.compile(rb"^(?=.*listening).*http://127\.0\.0\.1:(\d+)", re.MULTILINE)


class Process:
    """A running server on a port of loopback."""

    def __init__(self, pid: int, port: int) -> None:
        self.pid = pid
        self.port = port

    def cpu_s(self) -> float:
        """User and system time so far, with children that ended. Counted in ticks, 10 ms mostly."""
        fields = Path(f"/proc/{self.pid}/stat").read_text("ascii").rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / _TICKS_PER_S

    def resident_mb(self) -> float:
        """Memory that is resident now."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text("ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@asynccontextmanager
async def running(
    argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> AsyncIterator[Process]:
    """A server, from when its log says where it listens until the block ends."""
    with log.open("wb") as out:
        child = await asyncio.create_subprocess_exec(*argv, stdout=out, stderr=out, env=env, cwd=cwd)
    try:
        yield Process(child.pid, await _port(child, log))
    finally:
        await _end(child)


async def _port(child: asyncio.subprocess.Process, log: Path) -> int:
    async with asyncio.timeout(_START_S):
        while (port := _port_told(log)) is None:
            if child.returncode is not None:
                raise RuntimeError(f"ended with {child.returncode}: {_last_words(log)}")
            await asyncio.sleep(_POLL_S)
    return port


def _port_told(log: Path) -> int | None:
    found = _LISTENING.search(log.read_bytes())
    return int(found[1]) if found else None


def _last_words(log: Path) -> str:
    return log.read_text("utf-8")[-2000:]


async def _end(child: asyncio.subprocess.Process) -> None:
    if child.returncode is None:
        child.terminate()
    try:
        await asyncio.wait_for(child.wait(), _STOP_S)
    except TimeoutError:
        child.kill()
        await child.wait()


class Load:
    """The load generator (load.py)."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self._child = child

    async def run(self, order: dict[str, Any]) -> None:
        """Has the order carried out."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(orjson.dumps(order) + b"\n")
        reply = orjson.loads(await asyncio.wait_for(self._child.stdout.readline(), _ORDER_S))
        if "error" in reply:
            raise RuntimeError(reply["error"])


@asynccontextmanager
async def load(argv: Sequence[str]) -> AsyncIterator[Load]:
    """The load generator, until the block ends."""
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe)
    try:
        yield Load(child)
    finally:
        await _end(child)
