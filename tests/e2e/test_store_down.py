"""The store is away, comes back, or must not be used; and settings that cannot be."""

import socket
import time
from pathlib import Path

import aiohttp
import pytest
import redis.asyncio

from tests.e2e.caller import Caller, chunks_of, eventually, text_of
from tests.instruments.processes import SECRET, Fleet, Replica

pytestmark = pytest.mark.anyio

EX_CONFIG = 78
FAST_S = 2.0


async def is_refused(caller: Caller, fleet: Fleet, session: str) -> None:
    """Session requests fail fast, and Claude is not asked for them; those without a session are served."""
    asked = await fleet.simulator.total()
    for stream in (False, True):
        for named in (session, "new"):
            started = time.monotonic()
            refused = await caller.chat("Hi", named, stream=stream)
            assert (refused.status, refused.code) == (503, "store_unavailable")
            assert refused.headers["x-should-retry"] == "true"
            assert int(refused.headers["retry-after"]) >= 1
            assert time.monotonic() - started < FAST_S
    for path in (f"/v1/sessions/{session}", f"/v1/sessions/{session}/messages"):
        looked = await caller.get(path)
        assert (looked.status, looked.code) == (503, "store_unavailable")
    assert await fleet.simulator.total() == asked
    assert (await caller.chat("Count to 2")).text == "1 2"
    async with caller.stream("Count to 2") as stateless:
        assert text_of(await stateless.rest()) == "1 2"
    assert (await caller.get("/livez")).status == 200


async def state(caller: Caller) -> tuple[int, str, str]:
    ready = await caller.get("/readyz")
    return ready.status, ready.json["status"], ready.json["store"]


async def until(caller: Caller, wanted: tuple[int, str, str]) -> None:
    async def look() -> bool:
        return await state(caller) == wanted

    await eventually(look, f"readiness {wanted}")


async def test_a_store_that_is_away_at_the_start_and_once_more_later(tmp_path: Path, name: str) -> None:
    env = {"BATON_AUTH": "open"}  # else nobody could tell without the store whether callers need a key
    async with Fleet(tmp_path, replicas=0, env=env) as fleet, aiohttp.ClientSession() as http:
        fleet.valkey.stop()
        replica = await fleet.add_replica()
        caller = Caller(http, replica.url)
        assert await state(caller) == (503, "starting", "down")
        health = await caller.get("/health")
        assert (health.status, health.json["status"]) == (200, "degraded")
        await is_refused(caller, fleet, name)
        assert "store <strong>down" in (await caller.get("/")).body.decode().lower().replace(":", "")

        fleet.valkey.start()
        await until(caller, (200, "ready", "up"))
        assert (await caller.chat("My name is Ada.", name)).status == 200
        assert (await caller.get("/health")).json["status"] == "healthy"

        fleet.valkey.kill9()
        await is_refused(caller, fleet, name)
        await until(caller, (200, "ready", "down"))
        fleet.valkey.start()
        assert (await caller.chat("What is my name?", name)).text == "Your name is Ada."
        await until(caller, (200, "ready", "up"))


async def test_a_silent_store_is_told_soon_and_leaves_no_session_busy(tmp_path: Path, name: str) -> None:
    """The begin may have arrived: it is aborted behind the caller's back as soon as the store answers."""
    env = {"BATON_STORE_BEGIN_S": "2.5", "BATON_LEASE_MS": "20000"}
    async with Fleet(tmp_path, replicas=1, env=env) as fleet, aiohttp.ClientSession() as http:
        caller = Caller(http, fleet.replicas[0].url)
        assert (await caller.chat("My name is Ada.", name)).status == 200
        fleet.valkey.freeze()
        started = time.monotonic()
        refused = await caller.chat("Count to 2", name)
        assert (refused.status, refused.code) == (503, "store_unavailable")
        assert time.monotonic() - started < 5
        fleet.valkey.thaw()
        started = time.monotonic()
        assert (await caller.chat("What is my name?", name)).text == "Your name is Ada."
        assert time.monotonic() - started < 8  # well below the lease, which would have had to run out


async def test_a_store_that_goes_during_a_turn(tmp_path: Path, name: str) -> None:
    env = {"BATON_STORE_SETTLE_S": "2"}
    async with Fleet(tmp_path, replicas=1, env=env) as fleet, aiohttp.ClientSession() as http:
        caller = Caller(http, fleet.replicas[0].url)
        await caller.chat("My name is Ada.", name)
        await fleet.simulator.pace(delta_ms=10)

        async with caller.stream("Count to 20", name) as stream:
            await stream.words(2)
            fleet.valkey.kill9()
            fleet.valkey.start()
            frames = await stream.rest()
        assert frames[-1] == b"data: [DONE]"
        assert len(await caller.messages(name)) == 4

        await fleet.simulator.pace(delta_ms=100)  # so that the store goes first also on a busy machine
        async with caller.stream("Count to 20", name) as stream:
            await stream.words(2)
            fleet.valkey.kill9()
            frames = await stream.rest()
        assert b"[DONE]" not in b"".join(frames)
        error = chunks_of(frames)[-1]["error"]
        assert error["code"] in ("session_not_saved", "session_save_unknown")
        fleet.valkey.start()
        assert len(await caller.messages(name)) == 4


def words_of(replica: Replica) -> str:
    return " ".join(str(event["problem"]) for event in replica.events("store_refused"))


async def test_a_store_that_must_not_be_used_ends_the_replica(tmp_path: Path) -> None:
    accepted = {"BATON_REDIS_EVICTION_ALLOWED": "true"}
    async with Fleet(tmp_path, replicas=0) as fleet, aiohttp.ClientSession() as http:
        async with redis.asyncio.from_url(fleet.valkey.url) as store:
            await store.config_set("maxmemory-policy", "volatile-lru")
        first = await fleet.add_replica(env=accepted)
        await until(Caller(http, first.url), (200, "ready", "up"))  # from now on the namespace is claimed
        env = {
            "ANTHROPIC_BASE_URL": fleet.simulator.url,
            "BATON_REDIS_URL": fleet.valkey.url,
            "BATON_SECRET": SECRET,
        }
        other_secret = {**env, **accepted, "BATON_SECRET": "another secret of enough length"}
        async with (
            Replica("other-secret", tmp_path, other_secret) as secret,
            Replica("other-buckets", tmp_path, {**env, **accepted, "BATON_BUCKETS": "7"}) as buckets,
            Replica("evicting", tmp_path, {**env, "BATON_NAMESPACE": "other"}) as evicting,
        ):
            assert await secret.wait(30.0) == EX_CONFIG
            assert await buckets.wait(30.0) == EX_CONFIG
            assert await evicting.wait(30.0) == EX_CONFIG
        assert "BATON_SECRET" in words_of(secret)
        assert "another secret" not in secret.log()
        assert "BATON_BUCKETS=1" in words_of(buckets)
        assert "volatile-lru" in words_of(evicting)
        assert "maxmemory-policy noeviction" in words_of(evicting)
        async with redis.asyncio.from_url(fleet.valkey.url) as store:
            assert not await store.exists("{other}:cfg"), "a replica that is refused claims nothing"


async def test_settings_that_cannot_be_are_told_together(tmp_path: Path) -> None:
    sound = {"ANTHROPIC_API_KEY": "sk-ant-TOPSECRET", "BATON_REDIS_URL": "redis://:TOPSECRET@127.0.0.1:1/0"}
    broken = {"BATON_LEASE_MS": "soon", "BATON_QUEUE_WAIT_S": "-1", "BATON_LISTN": "x"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with (
            Replica("broken", tmp_path, {**sound, **broken, "BATON_LISTEN": "127.0.0.1:99999"}) as all_wrong,
            Replica("keyless", tmp_path, {"BATON_PORT": "tcp://10.0.0.1:80"}) as keyless,
            Replica("taken", tmp_path, {**sound, "BATON_SECRET": SECRET, "BATON_LISTEN": address}) as no_port,
        ):
            codes = await all_wrong.wait(30.0), await keyless.wait(30.0), await no_port.wait(30.0)
    assert codes[:2] == (EX_CONFIG, EX_CONFIG)
    said = all_wrong.log()
    for variable in ("BATON_LEASE_MS", "BATON_QUEUE_WAIT_S", "BATON_LISTEN", "BATON_SECRET", "BATON_LISTN"):
        assert variable in said
    assert "ANTHROPIC_API_KEY is not set" in keyless.log()
    assert "baton simulate" in keyless.log()
    assert "BATON_PORT" not in keyless.log()
    assert codes[2] not in (0, EX_CONFIG)
    assert "cannot be listened on: Address already in use" in no_port.log()
    for child in (all_wrong, keyless, no_port):
        assert "TOPSECRET" not in child.log()
        assert "Traceback" not in child.log()
