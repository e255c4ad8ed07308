"""The instruments that start processes: a child is clean, watched, and never left behind."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis.asyncio

from tests.instruments.child import POLL_INTERVAL_S, Child, ChildFailed, clean_environment
from tests.instruments.ports import LOOPBACK, reserved_port
from tests.instruments.processes import Valkey, with_port

pytestmark = pytest.mark.anyio

SLEEPER = (sys.executable, "-c", "import time; print('up'); time.sleep(60)")


async def up(child: Child) -> None:
    await child.first(lambda: "up" if "up" in child.log() else None, "greeting", 10.0)


def is_running(pid: int) -> bool:
    """Whether a process of this id exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


async def test_a_child_sees_nothing_of_the_callers_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BATON_LISTEN", "ANTHROPIC_API_KEY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "the caller's")
    script = "import os; print(sorted(os.environ))"
    async with Child("names", (sys.executable, "-c", script), tmp_path, {"BATON_LEASE_MS": "1"}) as child:
        assert await child.wait() == 0
    assert "BATON_LEASE_MS" in child.log()
    assert "PATH" in clean_environment()
    for name in ("BATON_LISTEN", "ANTHROPIC_API_KEY", "HTTPS_PROXY"):
        assert name not in child.log()


async def test_a_child_that_ends_early_is_reported_with_its_last_words(tmp_path: Path) -> None:
    async with Child("loser", (sys.executable, "-c", "raise SystemExit('no such luck')"), tmp_path) as child:
        with pytest.raises(ChildFailed, match="no such luck"):
            await child.first(lambda: None, "greeting", 10.0)


async def test_a_silent_child_is_reported_after_the_deadline(tmp_path: Path) -> None:
    async with Child("mute", SLEEPER, tmp_path) as child:
        with pytest.raises(ChildFailed, match="is silent"):
            await child.first(lambda: None, "greeting", 0.05)


async def test_log_lines_that_are_json_are_events(tmp_path: Path) -> None:
    script = (
        """print('hello'); print('{"event": "listening", "url": "u"}'); print('{"event": "other"}'); print('[1]')"""
    )
    async with Child("talker", (sys.executable, "-c", script), tmp_path) as child:
        await child.wait()
    assert [record["event"] for record in child.events()] == ["listening", "other"]
    assert child.events("listening") == [{"event": "listening", "url": "u"}]


async def test_a_frozen_child_stands_still_until_thawed(tmp_path: Path) -> None:
    async with Child("sleeper", SLEEPER, tmp_path) as child:
        await up(child)
        child.freeze()
        child.thaw()
        child.freeze()
        child.terminate()
        with pytest.raises(TimeoutError):
            await child.wait(0.1)
        child.thaw()
        assert await child.wait() == -signal.SIGTERM


async def test_kill9_takes_the_grandchildren_too(tmp_path: Path) -> None:
    script = """
import subprocess, time
print("up", subprocess.Popen(["sleep", "60"]).pid)
time.sleep(60)
"""
    async with Child("parent", (sys.executable, "-c", script), tmp_path) as child:
        await up(child)
        grandchild = int(child.log().split()[-1])
        assert is_running(grandchild)
        child.kill9()
        assert child.returncode == -signal.SIGKILL
        await gone(grandchild)


async def gone(pid: int) -> None:
    deadline = time.monotonic() + 10.0
    while is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} was left behind"
        await asyncio.sleep(POLL_INTERVAL_S)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux sends a death signal")
async def test_a_child_dies_with_a_killed_test_run(tmp_path: Path) -> None:
    script = f"""
import pathlib, sys, time
from tests.instruments.child import Child
print(Child("sleeper", {SLEEPER!r}, pathlib.Path({str(tmp_path)!r})).pid, flush=True)
time.sleep(60)
"""
    env = clean_environment()
    run = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=subprocess.PIPE, env=env)
    assert run.stdout is not None
    pid = int(await run.stdout.readline())
    assert is_running(pid)
    run.kill()
    await run.wait()
    await gone(pid)


async def test_a_killed_valkey_comes_back_at_its_address_with_its_data(tmp_path: Path) -> None:
    with Valkey(tmp_path / "valkey") as valkey:
        async with redis.asyncio.from_url(valkey.url) as client:
            await client.set("k", "v")
        first = valkey.pid
        valkey.kill9()
        assert not is_running(first)
        valkey.start()
        async with redis.asyncio.from_url(valkey.url) as client:
            assert await client.get("k") == b"v"


def test_a_frozen_valkey_can_be_stopped(tmp_path: Path) -> None:
    with Valkey(tmp_path / "valkey") as valkey:
        valkey.freeze()
    with pytest.raises(ProcessLookupError):
        os.kill(valkey.pid, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a port that is reserved cannot be used either")
def test_a_reserved_port_is_refused_to_others_while_nobody_listens_there() -> None:
    with reserved_port() as port:
        for _ in range(2):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((LOOPBACK, port))
            with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
                stranger.bind((LOOPBACK, port))
            with socket.create_server((LOOPBACK, port)), socket.create_connection((LOOPBACK, port)):
                pass


def test_a_url_keeps_its_password_on_another_port() -> None:
    assert with_port("redis://:pass@127.0.0.1:1/0", 2) == "redis://:pass@127.0.0.1:2/0"
    assert with_port("http://127.0.0.1:1", 2) == "http://127.0.0.1:2"
