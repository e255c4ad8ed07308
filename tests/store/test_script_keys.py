"""A script touches no key that it does not declare: asked of the server, which tells every command that it executes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from storage.api_keys import ApiKeys
from storage.checkpoints import Cost
from storage.keys import SessionRef, new_nonce, new_turn_id
from storage.results import Answered, Cancelling, Claimed, Created, Removed, Renewed, Running, Settled, Shared
from storage.scripts import SCRIPTS, VERBS, ScriptRunner
from storage.turns import Request, Rewind
from tests.store.harness import OWNER, PLAIN, Store, attached, elements, shown
from tests.store.test_transfer import fork_of, restored_from

pytestmark = pytest.mark.anyio

KEYED = Request("print", "key")
VERB_OF = {script.sha: verb for verb, script in SCRIPTS.items()}
NO_KEYS = ("TIME",)
KEYS_ONLY = ("UNLINK", "DEL")
TWO_KEYS = ("COPY",)  # all others that scripts use take one key, first


@dataclass
class Run:
    """One execution of a script: the keys that it declared, and the commands that it executed, as words."""

    verb: str
    declared: set[str]
    commands: list[list[str]] = field(default_factory=list)

    def touched(self) -> set[str]:
        found: set[str] = set()
        for name, *arguments in self.commands:
            if name.upper() not in NO_KEYS:
                count = len(arguments) if name.upper() in KEYS_ONLY else 2 if name.upper() in TWO_KEYS else 1
                found.update(arguments[:count])
        return found


@asynccontextmanager
async def recorded(store: Store) -> AsyncIterator[list[Run]]:
    """Every script that is executed meanwhile; the server tells a script's call before its commands."""
    for script in SCRIPTS.values():
        await store.redis.script_load(script.source)
    runs: list[Run] = []
    async with store.redis.monitor() as monitor:
        yield runs
        marker = new_nonce()
        await store.redis.echo(marker)
        while marker not in (line := await monitor.next_command())["command"]:
            name, *arguments = line["command"].split(" ")
            if line["client_type"] == "lua":
                runs[-1].commands.append([name, *arguments])
            elif name.upper() == "EVALSHA":
                sha, count = arguments[:2]
                runs.append(Run(VERB_OF[sha], set(arguments[2 : 2 + int(count)])))


async def streamed_turns(store: Store, ref: SessionRef) -> None:
    """Begun, followed, cancelled and ended in every way, with a key and without."""
    dead, _ = await store.begun(ref, streamed=True, request=KEYED, lease_ms=1)
    await store.renew(ref, dead, shown(1, 2), lease_ms=1)
    await store.until_lease_is_over(ref)
    turn, begun = await store.begun(ref, streamed=True, request=KEYED)
    assert begun.dead_turn_id == dead
    assert await store.begin(ref, new_turn_id(), request=KEYED) == Running(turn, 2)
    await store.renew(ref, turn, shown(1, 2))
    assert await store.turns.cancel(ref, turn) == Cancelling(2)
    assert await store.renew(ref, turn) == Renewed(cancel=True)
    assert await store.commit(ref, turn, begun.head, elements(2), system_json=b"x", end=shown(3, 4)) == Settled(
        "committed", 2
    )
    assert await store.turns.delivered(ref, turn) is True
    assert await store.begin(ref, new_turn_id(), request=KEYED) == Answered(turn, 2)
    aborted, _ = await store.begun(ref, streamed=True)
    assert await store.abort(ref, aborted, end=shown(1, 1)) == Settled("aborted", 3)
    await store.settled(ref, "dead")


async def a_life(store: Store) -> SessionRef:
    """A session from its creation to its end, by way of every verb that changes or reads one."""
    ref = await store.created()
    await streamed_turns(store, ref)
    await store.sessions.get(ref)
    assert await store.shares.share(ref, "bob", "viewer") == Shared(new=True)
    assert await store.shares.of(ref) == {"bob": "viewer"}
    assert await store.shares.unshare(ref, "bob") is True
    await store.shares.share(ref, "carol", "writer")
    await store.sessions.touch(ref)
    await store.sessions.patch(ref, {"title": "T", "ttl": 500_000, "model": "m"}, expected_revision=None)
    await store.begun(ref, streamed=True, lease_ms=1)
    await store.until_lease_is_over(ref)
    head, request = await store.field(ref, "head"), Request("append", "another")
    appended = await store.turns.append(
        ref, new_turn_id(), head=head, record=b"r", turns_max=99, request=request, elements=elements(2)
    )
    assert isinstance(appended, Settled)
    rewinding, begun = await store.begun(ref)
    claimed = await store.checkpoints.claim(ref, "nonce", head=begun.head, covers=3, claim_ms=60_000)
    assert isinstance(claimed, Claimed)
    assert await store.checkpoints.store(ref, claimed, b"summary", Cost(1, 2, 3)) == 1
    big = attached("x" * 70_000)
    await store.commit(ref, rewinding, begun.head, [big], rewind=Rewind(2, sum(map(len, elements(2))), 0))
    await store.capacity.sweep(ref)
    await store.redis.unlink(*ref.keys[:8])
    assert await store.capacity.sweep(ref) is True
    return ref


async def moves(store: Store) -> None:
    """A session forked, and put back under an id of its own."""
    source = await store.created()
    await store.settled(source, "committed", PLAIN, [*elements(2), attached("x" * 70_000)])
    forked = store.keyspace.session(store.keyspace.issue(0), OWNER)
    assert await store.transfer.fork(source, forked, await fork_of(store, source, messages=1)) == Created()
    restored = store.ref()
    assert await store.transfer.restore(restored, await restored_from(store, source), {"bob": "viewer"}) == Created()


async def early_ends(store: Store) -> None:
    """Sessions that end by an abort, by hand and for want of room, with a log each."""
    creating = new_turn_id()
    removed = await store.created(creating_turn_id=creating)
    await store.begun(removed, creating, streamed=True)
    await store.renew(removed, creating, shown(1, 2))
    assert await store.abort(removed, creating) == Removed()
    deleted, evicted = await store.created(), await store.created()
    await store.shares.share(deleted, "bob", "admin")
    assert await store.sessions.delete(deleted) is True
    args = (evicted.id, evicted.owner_tag, await store.field(evicted, "la"))
    assert await ScriptRunner(store.redis).run("evict", evicted.keys, args, budget_s=5) == [b"EVICTED"]
    assert await store.capacity.sweep_bucket(0, interval_ms=60_000) is not None


async def a_key(store: Store) -> None:
    """A caller's key, from its creation to its end."""
    keys = ApiKeys(store.redis, store.keyspace, budget_s=5)
    key_id = store.keyspace.issue_key_id("ada")
    await keys.create(key_id, b"1", principal="ada", scopes=("chat",), expires_ms=0, labels_json=b"{}")
    assert await keys.patch(key_id, disabled=True)
    assert await keys.rotate(key_id, b"2", overlap_ms=1)
    assert await keys.delete(key_id)


@pytest.mark.parametrize("server_url", ["valkey"], indirect=True)
async def test_scripts_touch_no_key_but_the_declared_ones(store: Store) -> None:
    async with recorded(store) as runs:
        ref = await a_life(store)
        await early_ends(store)
        await moves(store)
        await a_key(store)
    assert {run.verb for run in runs} == set(VERBS), "every script was executed"
    for run in runs:
        assert run.commands, f"{run.verb} executed something"
        assert run.touched() <= run.declared, run.verb
    assert set(ref.keys) <= set[str]().union(*(run.touched() for run in runs)), "and every key of a session is used"
