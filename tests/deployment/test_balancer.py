"""What the shipped balancer lets through, in front of replicas that answer everything."""

import asyncio
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.deployment.haproxy import PROGRAM, haproxy
from tests.instruments.ports import LOOPBACK, reserved_port

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(PROGRAM is None, reason="there is no haproxy on this machine (apt install haproxy)"),
]


async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    writer.close()


async def status(url: str, target: str) -> int:
    """Of a GET of exactly this target; clients of HTTP would tidy it up."""
    at = urlsplit(url)
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    async with asyncio.timeout(10):
        writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        told = await reader.readline()
    writer.close()
    return int(told.split()[1])


async def test_what_each_replica_has_of_its_own_stays_inside(tmp_path: Path) -> None:
    with ExitStack() as stack:
        ports = [stack.enter_context(reserved_port()) for _ in range(3)]
        async with (
            await asyncio.start_server(answers, LOOPBACK, ports[0]),
            haproxy(tmp_path, ports, auth="keys") as url,
        ):
            assert await status(url, "/v1/models") == 200
            for path in ("/metrics", "/readyz", "/livez", "/%6detrics", "/metrics?x=1", "http://x/metrics"):
                assert await status(url, path) == 404, path
