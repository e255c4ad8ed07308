"""What a turn costs the store: three waits, and as many commands whatever the history's length.

Nothing fails here; counting needs the same view from outside.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from storage.keys import new_nonce
from storage.scripts import SCRIPTS
from tests.faults.call import Call, assert_complete
from tests.faults.places import Place
from tests.faults.stage import Scene, Stage, answer, stage, until
from tests.instruments.processes import Replica
from tests.instruments.resp import Argv

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

LEASE_MS = 20_000  # no turn here lasts long enough to be renewed
BESIDE = [SCRIPTS[verb].sha.encode() for verb in ("renew", "delivered")]
# How a replica sees who the primaries are, if they take writes, to whom it is connected, and whether keys were changed.
LOOKS = (b"SET", b"TIME", b"ROLE", b"HELLO", b"SENTINEL", b"CLUSTER")
LOOK = (b"HGET", b"{baton:L}:now", b"changes")


@pytest.fixture(scope="module")
async def calm(
    anyio_backend: str, tmp_path_factory: pytest.TempPathFactory, ground_store: Place
) -> AsyncIterator[Stage]:
    async with stage(tmp_path_factory.mktemp("stage"), ground_store, LEASE_MS) as one:
        yield one


def sent_since(replica: Replica, count: int) -> list[Argv]:
    """The commands a replica sent after its first ``count``, but for those that no turn waits for.

    Those are its probes of the store, its looks whether keys have changed, the log of what is shown, and the notes that
    earlier answers were delivered.
    """
    assert replica.redis_stall is not None
    sent = [command.argv for command in replica.redis_stall.commands]
    waited_for = [argv for argv in sent[count:] if argv[:3] != LOOK and argv[0] not in LOOKS]
    return [argv for argv in waited_for if argv[1] not in BESIDE]


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "json"])
async def test_a_turn_waits_for_the_store_three_times(calm: Stage, streamed: bool) -> None:
    scene, replica = await calm.scene(), await calm.victim()
    assert replica.redis_stall is not None
    before = len(replica.redis_stall.commands)
    trap = scene.at_history(replica)
    call = scene.ask(replica, "victim", streamed=streamed)
    await trap.reached()

    async def both_parts_sent() -> bool:  # the second without an answer to the first: one wait for both
        return [argv[0] for argv in sent_since(replica, before)] == [b"EVALSHA", b"LRANGE", b"HMGET"]

    await until(both_parts_sent)
    trap.release()
    assert_complete(await call.ended(), answer("victim", "first"))
    sent = sent_since(replica, before)
    assert [argv[0] for argv in sent] == [b"EVALSHA", b"LRANGE", b"HMGET", b"EVALSHA"]
    assert [sent[0][1], sent[3][1]] == [SCRIPTS[verb].sha.encode() for verb in ("begin", "commit")]


@pytest.mark.only("standalone")
async def test_what_a_turn_executes_does_not_grow_with_the_history(calm: Stage) -> None:
    replica = calm.survivor
    executed = []
    for stored in (10, 10_000):
        scene = calm.empty_scene()
        await fill(scene, replica, stored)
        async with executed_by_scripts(calm) as commands:
            assert (await scene.ask(replica, "next").ended()).finish == "stop"
        assert await calm.store.llen(scene.ref.keys[1]) == stored + 2
        executed.append(commands)
    assert executed[0] == executed[1]
    assert executed[0].count("RPUSH") == 2  # the pending record of begin, the messages of commit


async def fill(scene: Scene, replica: Replica, messages: int) -> None:
    """Stores so many messages in one turn: the caller brings a history, the answer is its last message."""
    roles = ("user", "assistant")
    given = [{"role": roles[n % 2], "content": f"message {n}"} for n in range(messages - 1)]
    body = {"model": "claude-sonnet-5-5", "messages": given, "session_id": scene.name}
    seen = await Call(replica.url, body, {"x-session-input": "delta"}).ended()
    assert (seen.status, seen.finish) == (200, "stop")


@asynccontextmanager
async def executed_by_scripts(calm: Stage) -> AsyncIterator[list[str]]:
    """The names of the commands that scripts execute meanwhile, in order."""
    names: list[str] = []
    async with calm.store.monitor() as monitor:
        yield names
        marker = new_nonce()
        await calm.store.echo(marker)
        while marker not in (line := await monitor.next_command())["command"]:
            if line["client_type"] == "lua":
                names.append(line["command"].partition(" ")[0])
