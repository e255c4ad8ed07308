"""Redis itself: killed, cut back, full, read-only, standing still.

The history checker judges where traffic goes on; where one turn matters, a stage stops it at the line in question.
"""

import os
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import aiohttp
import pytest

from tests.faults.call import assert_complete, assert_told
from tests.faults.places import Place
from tests.faults.stage import Scene, Stage, answer, stage, until
from tests.faults.traffic import COMPLETE, ENV, TURNS, Traffic, traffic
from tests.instruments.history import TurnRecord
from tests.instruments.processes import Replica
from tests.instruments.redis_servers import Server

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

SEED = int(os.environ.get("FAULTS_SEED") or secrets.randbelow(10**9))
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
async def ground(
    anyio_backend: str, tmp_path_factory: pytest.TempPathFactory, ground_store: Place
) -> AsyncIterator[Stage]:
    async with stage(tmp_path_factory.mktemp("stage"), ground_store, env=ENV) as one:
        await one.victim()
        await one.fleet.simulator.pace(delta_ms=3)
        yield one


@pytest.fixture
async def clients(ground: Stage) -> AsyncIterator[Traffic]:
    async with traffic(ground.fleet, ground.survivor, await ground.victim()) as one:
        assert one.outcomes(await one.turns(6)) == COMPLETE
        yield one


@pytest.fixture
async def server(ground: Stage) -> AsyncIterator[Server]:
    """Who is harmed; as it was, after the test."""
    yield ground.server
    await ground.place.mended()


async def restart(ground: Stage, cut_to: Callable[[int], int] = lambda length: length) -> None:
    """Kills the server and starts it again, with what is left of its file."""
    await ground.place.restart(ground.server, cut_to)
    await ground.connect()


def logged_bytes(ground: Stage) -> int:
    return ground.server.log_file.stat().st_size


def used_bytes(server: Server) -> int:
    return int(server.command("INFO", "memory")["used_memory"])


async def nothing_is_held_back(server: Server) -> bool:
    """With `everysec` it answers up to two seconds before it writes, while a flush to the disk is under way."""
    persistence = server.command("INFO", "persistence")
    return not persistence["aof_buffer_length"] and not persistence["aof_pending_bio_fsync"]


# Killed.


@pytest.fixture(scope="module")
async def patient(ground: Stage) -> list[Replica]:
    """Replicas whose leases outlast a restart, as they do by default; those of the others do not on a cluster.

    There a node takes no writes in the first two seconds after it was started.
    """
    return [await ground.fleet.add_replica(env={"BATON_LEASE_MS": "10000"}) for _ in range(2)]


@pytest.fixture
async def patients(ground: Stage, patient: list[Replica]) -> AsyncIterator[Traffic]:
    """Clients of theirs."""
    async with traffic(ground.fleet, *patient) as one:
        assert one.outcomes(await one.turns(6)) == COMPLETE
        yield one


@pytest.mark.parametrize("fsync", ["always", "everysec"])
async def test_a_killed_server_loses_nothing_that_was_acknowledged(
    ground: Stage, patients: Traffic, server: Server, fsync: str
) -> None:
    await _killed_under(patients, ground, server, fsync)
    assert await _superseded(patients) == []
    assert {code for _, code in patients.outcomes()} <= {None, "store_unavailable", "session_not_saved"}


async def test_a_turn_whose_lease_ended_while_the_server_was_killed_is_stored_or_told_who_went_ahead(
    ground: Stage, clients: Traffic, server: Server
) -> None:
    """Its commit and the next begin of the session race for the server that comes back; the first of them counts."""
    await _killed_under(clients, ground, server, "always")
    codes = {code for _, code in clients.outcomes()}
    assert codes <= {None, "store_unavailable", "session_not_saved", "turn_superseded"}
    for own, last in await _superseded(clients):
        assert own is not None
        assert own.state == "dead", "which only who finds its lease over declares, and then it begins itself"
        assert own is not last


async def _superseded(clients: Traffic) -> list[tuple[TurnRecord | None, TurnRecord]]:
    """The records of those that were told so, None if the store knows of none, and the last ones of their sessions."""
    records = (await clients.stored()).records
    return [
        (
            next((record for record in records[one.turn.session] if record.turn_id == one.turn_id), None),
            max(records[one.turn.session], key=lambda record: record.number),
        )
        for one in clients.told
        if one.code == "turn_superseded"
    ]


async def _killed_under(clients: Traffic, ground: Stage, server: Server, fsync: str) -> None:
    """The server is killed again and again meanwhile, and everything acknowledged is kept."""
    async with clients.flowing():
        for _ in range(max(2, TURNS // 12)):
            server.command("CONFIG", "SET", "appendfsync", fsync)
            await clients.until_told(4)
            if fsync == "everysec":
                await until(partial(nothing_is_held_back, server))
            await restart(ground)
        await clients.until_told(4)
    await clients.assert_kept()
    assert len(clients.told) >= TURNS // 2
    assert ("unknown", "internal_error") not in clients.outcomes()


@pytest.mark.parametrize("fsync", ["always", "everysec"])
async def test_a_file_that_is_cut_anywhere_is_an_exact_prefix(
    ground: Stage, clients: Traffic, server: Server, fsync: str
) -> None:
    """As a power failure leaves it. Sessions are whole, and nothing survives that was sent after what is lost."""
    print(f"\nFAULTS_SEED={SEED}")
    chance, lost = random.Random(f"{SEED}/{fsync}"), set[str]()
    for _ in range(max(3, TURNS // 8)):
        server.command("CONFIG", "SET", "appendfsync", fsync)
        from_bytes = logged_bytes(ground)
        await clients.turns(6)
        before = await clients.stored()
        await restart(ground, partial(_anywhere, chance, from_bytes))
        after = await clients.stored()
        assert after.broken == []
        assert set(after.messages) == set(before.messages), "these are older than what was cut"
        for name, messages in after.messages.items():
            assert messages == before.messages[name][: len(messages)]
            assert len(messages) % 2 == 0
        stored = {message.text for messages in after.messages.values() for message in messages}
        asked = {one.turn.mark: one.turn for one in clients.told if one.turn.outcome == "complete"}
        kept = {mark for mark in asked if any(f"[mark:{mark}]" in text for text in stored)}
        cut_off = set(asked) - kept - lost
        for mark in cut_off:
            later = [one for one in kept if asked[one].sent_at > (asked[mark].finished_at or 0.0)]
            assert later == [], f"{mark} is lost, and these were sent after it was acknowledged"
        lost |= cut_off
        await clients.assert_kept(lost=sorted(lost))
    assert lost, "no cut took anything"
    assert clients.outcomes(await clients.turns(6)) == COMPLETE
    await clients.assert_kept(lost=sorted(lost))


def _anywhere(chance: random.Random, from_bytes: int, length: int) -> int:
    return chance.randint(from_bytes, length - 1)


async def test_a_loss_is_noticed_by_who_expects_a_turn_and_by_a_turn_that_runs(ground: Stage) -> None:
    scene, victim = await ground.scene(), await ground.victim()
    kept = logged_bytes(ground)
    acknowledged = await scene.told(ground.survivor, "other", after="first")
    trap = scene.at_claude(victim, "message_delta")
    running = scene.ask(victim, "victim")
    await trap.reached()
    await restart(ground, lambda _: kept)
    trap.release()
    assert_told(await running.ended(), "turn_superseded", 409)
    expecting = scene.ask(ground.survivor, "next", x_expect_turn=acknowledged.headers["x-turn-id"])
    assert_told(refused := await expecting.ended(), "history_moved", 409)
    assert refused.status == 409
    (await scene.books()).assert_holds("first")
    await scene.told(ground.survivor, "next", after="first")
    (await scene.books()).assert_holds("first", "next")


# It answers, and takes nothing.


async def claude_asked(ground: Stage) -> int:
    return await ground.fleet.simulator.total()


@asynccontextmanager
async def a_turn_at_its_end(ground: Stage) -> AsyncIterator[tuple[Scene, Replica, Callable[[], Awaitable[None]]]]:
    """A turn that runs meanwhile, stands before its end, and can be let on."""
    scene, victim = await ground.scene(), await ground.victim()
    trap = scene.at_claude(victim, "message_delta")
    running = scene.ask(victim, "victim")
    await trap.reached()

    async def ends() -> None:
        assert_complete(await running.ended(), answer("victim", "first"))
        (await scene.books()).assert_holds("first", "victim")

    try:
        yield scene, victim, ends
    finally:
        trap.release()


async def assert_nothing_is_begun(ground: Stage, scene: Scene) -> None:
    asked = await claude_asked(ground)
    for place in (await _settled(scene), ground.empty_scene()):
        seen = await place.ask(ground.survivor, "next").ended()
        assert_told(seen, "store_unavailable", 503)
        assert (seen.status, seen.headers["retry-after"]) == (503, "1")
    assert await claude_asked(ground) == asked, "refused before Claude was asked"


async def _settled(scene: Scene) -> Scene:
    """The session once nobody holds it."""
    await scene.until(lambda books: not books.holder)
    return scene


async def health(replica: Replica) -> str:
    async with aiohttp.ClientSession() as http, http.get(f"{replica.url}/readyz") as ready:
        assert ready.status == 200
        return str((await ready.json())["store"])


async def test_a_full_server_begins_nothing_stores_what_runs_and_can_be_emptied(ground: Stage, server: Server) -> None:
    other, name = await ground.scene(), ground.empty_scene().name
    async with aiohttp.ClientSession() as http:
        big = f"{ground.survivor.url}/v1/sessions/{name}"
        text = {"messages": [{"role": "user", "content": "x" * (MEGABYTE - 1000)}]}
        async with http.post(
            f"{ground.survivor.url}/v1/sessions", json={"name": name, "model": "claude-sonnet-5-5"}
        ) as made:
            assert made.status == 201, await made.text()
        for _ in range(8):
            async with http.post(f"{big}/messages", json=text) as appended:
                assert appended.status < 300, await appended.text()
        async with a_turn_at_its_end(ground) as (scene, _, ends):
            full = used_bytes(server) - 2 * MEGABYTE
            server.command("CONFIG", "SET", "maxmemory", full)
            await assert_nothing_is_begun(ground, other)
            await until(lambda: _is(ground.survivor, "refusing"))
            await assert_nothing_is_begun(ground, other)
            async with http.get(f"{ground.survivor.url}/v1/sessions/{other.name}/messages") as read:
                assert read.status == 200
        await ends()
        async with http.delete(big) as deleted:
            assert deleted.status < 300
    await until(lambda: _has_room(server, full))
    await scene.told(ground.survivor, "next", after="victim")
    await ground.empty_scene().told(ground.survivor, "first", after="none")
    await until(lambda: _is(ground.survivor, "up"))


async def _has_room(server: Server, full: int) -> bool:
    return used_bytes(server) < full


async def _is(replica: Replica, wanted: str) -> bool:
    return await health(replica) == wanted


READ_ONLY = {
    "a replica": (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
    "without replicas": (
        ("CONFIG", "SET", "min-replicas-to-write", "9"),
        ("CONFIG", "SET", "min-replicas-to-write", "0"),
    ),
}


# A node of a cluster becomes a replica by failovers alone.
@pytest.mark.parametrize(
    "how", [pytest.param("a replica", marks=pytest.mark.only("standalone", "sentinel")), "without replicas"]
)
async def test_a_server_that_takes_no_writes_begins_nothing_and_what_runs_waits_for_it(
    ground: Stage, server: Server, how: str
) -> None:
    other, (turned, back) = await ground.scene(), READ_ONLY[how]
    async with a_turn_at_its_end(ground) as (scene, victim, ends):
        server.command(*turned)
        await assert_nothing_is_begun(ground, other)
        await until(lambda: _is(ground.survivor, "refusing"))
    stall, is_commit = victim.redis_stall, scene.is_script("commit")
    assert stall is not None

    async def tried_again() -> bool:
        # Sentinel's clients ask a server for its role on every new connection, and send what has none no commit.
        return stall.count(is_commit) >= 1 and stall.count(lambda argv: is_commit(argv) or argv[:1] == (b"ROLE",)) >= 3

    await until(tried_again)
    assert (await scene.books()).story == "C."
    server.command(*back)
    await ends()
    await scene.told(ground.survivor, "next", after="victim")
    await other.told(ground.survivor, "next", after="first")
