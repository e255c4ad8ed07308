"""A real haproxy with the shipped configuration, in front of processes on this machine."""

import asyncio
import re
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import aiohttp

from tests.instruments.child import Child
from tests.instruments.ports import reserved_port

CONFIG = Path(__file__).resolve().parents[2] / "deploy" / "haproxy.cfg"
PROGRAM = shutil.which("haproxy")
READY_S = 20.0


def rendered(callers: int, operators: int, replicas: Sequence[int]) -> str:
    """The shipped configuration with other addresses; nothing else is changed."""
    text = CONFIG.read_text("utf-8")
    addresses = {":8080": callers, ":8405": operators}
    addresses |= {f"baton-{number}:8000": port for number, port in enumerate(replicas, 1)}
    for shipped, port in addresses.items():
        text, found = re.subn(rf"(?<=\s){re.escape(shipped)}$", f"127.0.0.1:{port}", text, flags=re.MULTILINE)
        assert found == 1, shipped
    return text


@asynccontextmanager
async def haproxy(directory: Path, replicas: Sequence[int], *, auth: str = "open") -> AsyncIterator[str]:
    """haproxy in front of the replicas on these ports; yields its URL once a replica takes work."""
    assert PROGRAM is not None
    with ExitStack() as stack:
        callers, operators = (stack.enter_context(reserved_port()) for _ in range(2))
        config = directory / "haproxy.cfg"
        config.write_text(rendered(callers, operators, replicas), "utf-8")
        async with Child("haproxy", [PROGRAM, "-db", "-f", str(config)], directory, env={"BATON_AUTH": auth}) as child:
            await _ready(f"http://127.0.0.1:{operators}/ready", child)
            yield f"http://127.0.0.1:{callers}"


async def _ready(url: str, child: Child) -> None:
    deadline = time.monotonic() + READY_S
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(2)) as http:
        while True:
            assert child.returncode is None, child.log()
            assert time.monotonic() < deadline, child.log()
            try:
                async with http.get(url) as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)
