"""Backup, restore and rotation as docs/operations.md tells them, on a real Valkey and real replicas."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
import redis.asyncio

from storage.embedded import EmbeddedValkey, _binary
from tests.e2e.caller import Caller, eventually
from tests.instruments.ports import reserved_port
from tests.instruments.processes import Fleet, Replica

pytestmark = pytest.mark.anyio


async def carries_on(fleet: Fleet, http: aiohttp.ClientSession, url: str, name: str) -> None:
    """A replica on this store knows what was said before the backup, and only that."""
    replica = await fleet.add_replica(env={"BATON_REDIS_URL": url})
    caller = Caller(http, replica.url)
    assert (await caller.chat("What is my name?", name)).text == "Your name is Ada."
    assert len(await caller.messages(name)) == 4
    replica.destroy()


async def test_a_copied_append_only_file_is_a_backup(
    fleet: Fleet, http: aiohttp.ClientSession, one: Caller, name: str, tmp_path: Path
) -> None:
    await one.chat("My name is Ada.", name)
    source = fleet.valkey.directory
    async with redis.asyncio.Redis.from_url(fleet.valkey.url) as client:
        await client.config_set("auto-aof-rewrite-percentage", 0)
        shutil.copytree(source / "appendonlydir", tmp_path / "appendonlydir")
        await client.config_set("auto-aof-rewrite-percentage", 100)
    await one.chat("My name is Bob.", name)
    with EmbeddedValkey.start(tmp_path) as restored:
        await carries_on(fleet, http, restored.url, name)


@contextmanager
def served(directory: Path, port: int) -> Iterator[None]:
    """A Valkey without an append-only file, on what the directory holds."""
    command: list[str | Path] = [
        _binary(),
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--dir",
        directory,
        "--save",
        "",
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        server.terminate()
        server.wait()


async def test_a_snapshot_is_a_backup(
    fleet: Fleet, http: aiohttp.ClientSession, one: Caller, name: str, tmp_path: Path
) -> None:
    """It must be loaded by a server without an append-only file, which is then made from memory."""
    await one.chat("My name is Ada.", name)
    async with redis.asyncio.Redis.from_url(fleet.valkey.url) as client:
        await client.save()
    shutil.copy(fleet.valkey.directory / "dump.rdb", tmp_path)
    await one.chat("My name is Bob.", name)
    with reserved_port() as port, served(tmp_path, port):
        url = f"redis://127.0.0.1:{port}/0"
        async with redis.asyncio.Redis.from_url(url) as client:

            async def answers() -> bool:
                try:
                    return bool(await client.ping())
                except redis.exceptions.ConnectionError:
                    return False

            await eventually(answers, "the restored server")
            await client.config_set("appendonly", "yes")
        await carries_on(fleet, http, url, name)
        assert list((tmp_path / "appendonlydir").glob("*.base.rdb"))


async def test_a_password_of_redis_is_rotated_by_restarting_replicas(
    http: aiohttp.ClientSession, fleet: Fleet, name: str
) -> None:
    """A user may have two passwords for the time in between; Claude's key goes the same way, in the same restart."""

    def env(password: str, key: str) -> dict[str, str]:
        address = fleet.valkey.url.rpartition("@")[2]
        return {
            "BATON_REDIS_URL": f"redis://{name}:{password}@{address}",
            "ANTHROPIC_API_KEY": key,
            "BATON_DRAIN_NOTICE_S": "0",
        }

    async def asked(replica: Replica, said: str) -> str:
        return (await Caller(http, replica.url).chat(said, name)).text

    async with redis.asyncio.Redis.from_url(fleet.valkey.url) as client:
        await cast(Any, client).execute_command("ACL", "SETUSER", name, "on", ">old", "~*", "&*", "+@all")
        before = await fleet.add_replica(env=env("old", "sk-ant-old"))
        await asked(before, "My name is Ada.")
        await cast(Any, client).execute_command("ACL", "SETUSER", name, ">new")
        after = await fleet.add_replica(env=env("new", "sk-ant-new"))
        assert await asked(before, "Count to 2") == "1 2"  # both serve
        assert await asked(after, "What is my name?") == "Your name is Ada."
        before.terminate()
        assert await before.wait() == 0
        await cast(Any, client).execute_command("ACL", "SETUSER", name, "<old")
        assert await asked(after, "Count to 3") == "1 2 3"
        after.terminate()
        assert await after.wait() == 0
        await cast(Any, client).execute_command("ACL", "DELUSER", name)
