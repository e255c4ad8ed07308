"""The demo as its first user meets it, and its balancer alone."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest

from service import demo
from tests.instruments.child import Child
from tests.instruments.ports import reserved_port

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 10.0
DEMO = (sys.executable, "-m", "service.cli", "demo")
FRONT = (sys.executable, "-m", "service.cli", "demo-front", "--listen", "127.0.0.1:0")

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


# The demo.


def scrubbed(directory: Path) -> dict[str, str]:
    """Next to no environment but where Baton is; everything the demo makes is made below `directory`."""
    return {"PATH": os.environ["PATH"], "HOME": str(directory), "TMPDIR": str(directory), "PYTHONPATH": str(ROOT)}


def working_below(directory: Path) -> set[int]:
    """Every process whose working directory is `directory` or below it, even if that is deleted by now."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and Path(os.readlink(entry / "cwd")).is_relative_to(directory):
                found.add(int(entry.name))
    return found


@pytest.mark.timeout(120)
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends the children of a killed parent on Linux")
def test_a_killed_demo_takes_everything_with_it(tmp_path: Path) -> None:
    with (tmp_path / "told").open("wb") as told:
        running = subprocess.Popen(DEMO, cwd=tmp_path, env=scrubbed(tmp_path), stdout=told, stderr=told)
    try:
        deadline = time.monotonic() + 60
        # Turn 1 has been told: Valkey, the simulator, three replicas and the front are up.
        while b"replica 1" not in (tmp_path / "told").read_bytes():
            assert running.poll() is None, (tmp_path / "told").read_text()
            assert time.monotonic() < deadline, (tmp_path / "told").read_text()
            time.sleep(0.02)
        assert len(working_below(tmp_path)) == 7
    finally:
        running.kill()
        running.wait()
    deadline = time.monotonic() + DEADLINE_S
    while left := working_below(tmp_path):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


@pytest.mark.timeout(120)
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_without_once_it_stays_and_its_curls_work_until_ctrl_c(tmp_path: Path) -> None:
    running = subprocess.Popen(
        ["bash", "-c", 'trap "" INT; exec "$@"', "as-a-background-job", *DEMO],
        cwd=tmp_path,
        env=scrubbed(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert running.stdout is not None
        printed = []
        for line in running.stdout:
            printed.append(line)
            if "Ctrl-C" in line:
                break
        curls = "".join(line for line in printed if line.startswith(("  curl ", "    -d ")))
        done = subprocess.run(["bash", "-euc", curls], capture_output=True, text=True, timeout=DEADLINE_S, check=True)
        assert "Your name is Grace." in done.stdout, "".join(printed)
        assert len(set(re.findall(r"x-demo-replica: (\d)", done.stdout))) == 2
        running.send_signal(signal.SIGINT)
        assert running.wait(DEADLINE_S) == 0
    finally:
        running.kill()
        running.communicate()
    assert working_below(tmp_path) == set()
    assert list(tmp_path.iterdir()) == []


def test_without_the_openai_sdk_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    assert demo.run({}, once=True) == demo.EX_UNAVAILABLE
    assert "-m pip install 'baton-sessions[demo]'" in capsys.readouterr().err


# The front.


@contextlib.asynccontextmanager
async def upstream(handler: Handler, port: int = 0) -> AsyncIterator[int]:
    """A replica's stand-in that takes raw connections, one request each; yields its port."""
    serving: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await handler(reader, writer)
        with contextlib.suppress(ConnectionError):
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    async with server:
        yield server.sockets[0].getsockname()[1]
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*(task for task in serving if task))


@contextlib.asynccontextmanager
async def front(tmp_path: Path, *ports: int) -> AsyncIterator[aiohttp.ClientSession]:
    """The front before replicas on these ports, and a client with one kept-alive connection to it."""
    replicas = [word for port in ports for word in ("--replica", f"http://127.0.0.1:{port}")]
    async with Child("front", (*FRONT, *replicas), tmp_path) as child:
        url = await child.first(
            lambda: next((line.split()[-1] for line in child.log().splitlines() if "listening on" in line), None),
            "address",
            DEADLINE_S,
        )
        timeout = aiohttp.ClientTimeout(total=DEADLINE_S)
        one = aiohttp.TCPConnector(limit=1)
        async with aiohttp.ClientSession(url, timeout=timeout, connector=one) as client:
            yield client


async def head_of(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def saying(text: bytes) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(text), text))

    return handler


async def ask(client: aiohttp.ClientSession) -> tuple[str, str]:
    async with client.get("/") as response:
        return response.headers["x-demo-replica"], await response.text()


async def test_requests_of_one_connection_go_to_the_replicas_in_turn(tmp_path: Path) -> None:
    async with (
        upstream(saying(b"one")) as first,
        upstream(saying(b"two")) as second,
        upstream(saying(b"three")) as third,
        front(tmp_path, first, second, third) as client,
    ):
        answers = [await ask(client) for _ in range(6)]
    assert answers == [("1", "one"), ("2", "two"), ("3", "three")] * 2


async def test_a_replica_that_refuses_is_skipped_and_comes_back(tmp_path: Path) -> None:
    with reserved_port() as second:
        async with upstream(saying(b"one")) as first, front(tmp_path, first, second) as client:
            assert [await ask(client) for _ in range(3)] == [("1", "one")] * 3
            async with upstream(saying(b"two"), second):
                assert ("2", "two") in [await ask(client) for _ in range(2)]


async def test_without_any_replica_the_answer_is_503(tmp_path: Path) -> None:
    with reserved_port() as port:
        async with front(tmp_path, port) as client, client.get("/") as response:
            assert response.status == 503


@pytest.mark.parametrize(
    "framing", [b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", b"content-length: 9\r\n\r\nhello"]
)
async def test_a_cut_in_mid_answer_is_a_cut_for_the_client(tmp_path: Path, framing: bytes) -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n" + framing)
        await writer.drain()

    async with upstream(cut) as first, upstream(saying(b"two")) as second, front(tmp_path, first, second) as client:
        async with client.get("/") as response:
            assert response.status == 200
            got = b""
            with pytest.raises(aiohttp.ClientPayloadError):
                async for piece in response.content.iter_any():
                    got += piece
        assert got == b"hello"


async def test_a_post_that_a_replica_may_have_read_is_not_sent_to_another(tmp_path: Path) -> None:
    seen: list[str] = []

    def counting(name: str, answers: bool) -> Handler:
        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(name)
            await (saying(name.encode())(reader, writer) if answers else head_of(reader))

        return handler

    async with (
        upstream(counting("one", answers=False)) as first,
        upstream(counting("two", answers=True)) as second,
        front(tmp_path, first, second) as client,
    ):
        async with client.post("/", data=b"once") as response:
            assert response.status == 502
        assert seen == ["one"]


async def test_an_answer_is_not_buffered(tmp_path: Path) -> None:
    got_first = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        await got_first.wait()  # the second piece is not sent before the first has arrived
        writer.write(b"3\r\ntwo\r\n0\r\n\r\n")

    async with upstream(slow) as port, front(tmp_path, port) as client, client.get("/") as response:
        assert await response.content.readany() == b"one"
        got_first.set()
        assert await response.content.read() == b"two"


async def test_a_request_body_is_not_buffered(tmp_path: Path) -> None:
    got_first = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        await got_first.wait()
        yield b"two"

    async def reading(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert b"transfer-encoding: chunked" in (await head_of(reader)).lower()
        assert await reader.readexactly(8) == b"3\r\none\r\n"
        got_first.set()
        assert await reader.readexactly(13) == b"3\r\ntwo\r\n0\r\n\r\n"
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with (
        upstream(reading) as port,
        front(tmp_path, port) as client,
        client.post("/", data=pieces()) as response,
    ):
        assert response.status == 204


async def test_a_client_that_hangs_up_closes_the_replicas_connection(tmp_path: Path) -> None:
    closed = asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        closed.set()

    async with upstream(endless) as port, front(tmp_path, port) as client:
        async with client.get("/") as response:
            assert await response.content.readany() == b"one"
            response.close()
        await asyncio.wait_for(closed.wait(), DEADLINE_S)


async def test_head_and_query_pass_through(tmp_path: Path) -> None:
    targets: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        targets.append((await head_of(reader)).split(b"\r\n")[0])
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")

    async with (
        upstream(handler) as port,
        front(tmp_path, port) as client,
        client.head("/a%20b?c=%26&d=e") as response,
    ):
        assert response.status == 200
        assert response.headers["content-length"] == "5"
    assert targets == [b"HEAD /a%20b?c=%26&d=e HTTP/1.1"]
