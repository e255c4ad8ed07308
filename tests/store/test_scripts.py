"""What every script promises by its form, what it executes, and what a call that failed is worth."""

import asyncio
import contextlib
import inspect
import itertools
import os
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

import storage
import storage.replies
from storage.connect import Deadlines, connect
from storage.embedded import EmbeddedValkey
from storage.keys import new_nonce, new_turn_id
from storage.log import Tail
from storage.results import (
    LEASE_MS_MAX,
    Begun,
    Cancelling,
    Created,
    Fate,
    Removed,
    Renewed,
    Settled,
    StoreBusy,
    StoreUnavailable,
)
from storage.scripts import _RESEND_WAIT_S, SCRIPTS, VERBS, ScriptRunner, answered, load
from storage.sessions import Sessions, Snapshot
from storage.turns import Request
from tests.instruments.child import freeze_process
from tests.instruments.stall import RedisStall
from tests.store.harness import Store, elements, frames, real_redis, shown, until

PACKAGE = Path(storage.__file__).parent
FREEING = (
    "abort",
    "cancel",
    "commit",
    "delete",
    "delivered",
    "evict",
    "renew",
    "sweep",
    "sweep_lock",
    "touch",
    "delete_key",
    "note_key",
    "patch_key",
    "rotate_key",
    "unshare",
)
FLAGS = dict.fromkeys(VERBS, "") | dict.fromkeys(FREEING, "allow-oom") | {"get": "no-writes", "shares": "no-writes"}
READERS = {"fork": ["read_fork", "read_create"], "restore": ["read_create"]}
OF_OWNERS = ("abort", "append", "begin", "claim", "commit", "delete", "patch", "renew", "touch")
"""What whoever has a role may do, by the owner's keys."""
SECTIONS = ["Guarantees", "KEYS", "ARGV", "Replies", "Complexity", "Caller"]
WORD = r"\b[A-Z][A-Z_]+\b"
IMPATIENT = Deadlines(connect_s=0.2, command_s=0.2, pool_wait_s=0.2)

on_valkey = pytest.mark.parametrize("server_url", ["valkey"], indirect=True)
each_script = pytest.mark.parametrize("verb", VERBS)


# Form


def header(verb: str) -> dict[str, str]:
    """The sections of the comment that a script opens with, in their order, one line each."""
    lines = (PACKAGE / "scripts" / f"{verb}.lua").read_text("utf-8").splitlines()[1:]
    comment = [
        line.removeprefix("--").strip()
        for line in itertools.takewhile(lambda line: line.startswith("--") and "@include" not in line, lines)
    ]
    parts = re.split(r"(?:^| )(Guarantees|KEYS(?= 1-17|: 1 )|ARGV|Replies|Complexity|Caller):? ", " ".join(comment))
    return {"Purpose": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))


def documented_arguments(verb: str) -> list[int]:
    return [int(number) for number in re.findall(r"(?:^|, )(\d+)…? ", header(verb)["ARGV"])]


def test_every_script_is_loaded() -> None:
    assert sorted(file.stem for file in (PACKAGE / "scripts").glob("*.lua")) == sorted(VERBS)


@each_script
def test_the_first_line_has_the_flags_that_a_full_store_needs(verb: str) -> None:
    flags = f" flags={FLAGS[verb]}" if FLAGS[verb] else ""
    assert SCRIPTS[verb].source.splitlines()[0] == "#!lua" + flags


@each_script
def test_the_header_is_complete_and_in_order(verb: str) -> None:
    assert list(header(verb)) == ["Purpose", *SECTIONS]
    assert header(verb)["Purpose"].startswith(f"{verb}: ")
    assert re.search(r"storage/\w+\.py\.$", header(verb)["Caller"])


@each_script
def test_every_argument_is_documented(verb: str) -> None:
    source = SCRIPTS[verb].source
    used = {int(index) for index in re.findall(r"ARGV\[(\d+)\]", source)}
    variadic = re.search(r"local .*first = .*, (\d+)$", source, re.MULTILINE)
    if variadic:
        used.add(int(variadic[1]))
    documented = documented_arguments(verb)
    assert documented == list(range(1, max(used, default=0) + 1))


@each_script
def test_reply_words_are_the_same_in_header_script_and_python(verb: str) -> None:
    readers = READERS.get(verb, [f"read_{verb}"])
    if verb in OF_OWNERS:  # answered to the caller of the script alone
        readers = [*readers, "elsewhere"]
    sources = [inspect.getsource(getattr(storage.replies, reader, Sessions.get)) for reader in readers]
    known = set(re.findall(r'b"([A-Z_]+)"', " ".join(sources)))
    returned = set(re.findall(r"return \{ '([A-Z_]+)'", SCRIPTS[verb].source))
    assert set(re.findall(WORD, header(verb)["Replies"])) == returned == known


@each_script
def test_includes_are_resolved_and_locals_only(verb: str) -> None:
    source = SCRIPTS[verb].source
    assert "@include" not in source
    assert not re.search(r"^function ", source, re.MULTILINE), "a global would be refused by the server"
    assert "cjson" not in source, "it turns [] into {}"
    assert load(verb) == SCRIPTS[verb] or not source.startswith("#!lua")


def test_shared_parts_say_what_they_are_for() -> None:
    for part in (PACKAGE / "scripts" / "shared").glob("*.lua"):
        assert part.read_text("utf-8").startswith("-- Purpose: "), part.name


def test_lua_and_python_know_the_same_longest_lease() -> None:
    lease = (PACKAGE / "scripts" / "shared" / "lease.lua").read_text("utf-8")
    assert f"local LEASE_MS_MAX = {LEASE_MS_MAX}\n" in lease


def test_no_python_of_the_package_holds_lua() -> None:
    for module in PACKAGE.rglob("*.py"):
        assert "redis.call" not in module.read_text("utf-8"), module.name


# What the server executes


@asynccontextmanager
async def executed(store: Store) -> AsyncIterator[list[list[str]]]:
    """Every command that scripts execute meanwhile, as words."""
    commands: list[list[str]] = []
    async with store.redis.monitor() as monitor:
        yield commands
        marker = new_nonce()
        await store.redis.echo(marker)
        while marker not in (line := await monitor.next_command())["command"]:
            if line["client_type"] == "lua":
                commands.append(line["command"].split(" "))


@on_valkey
@pytest.mark.anyio
async def test_what_a_turn_executes_does_not_grow_with_the_history(store: Store) -> None:
    seen = []
    for stored in (10, 10_000):
        ref = await store.created()
        await store.committed(ref, elements(stored))
        turn = new_turn_id()
        async with executed(store) as begin:
            begun = await store.begin(ref, turn)
        assert isinstance(begun, Begun)
        async with executed(store) as commit:
            await store.commit(ref, turn, begun.head, elements(2))
        seen.append(([words[0] for words in begin], [words[0] for words in commit]))
    assert seen[0] == seen[1]
    assert all(seen[0])


@on_valkey
@pytest.mark.anyio
async def test_a_clock_before_the_service_epoch_leaves_a_size_record_that_can_be_read(store: Store) -> None:
    shared = PACKAGE / "scripts" / "shared"
    parts = "".join((shared / f"{part}.lua").read_text("utf-8") for part in ("clock", "size"))
    assert await store.redis.eval(parts + "return text(seconds_of_service(0))", 0) == b"0"
    assert await store.redis.eval(parts + "return text(seconds_of_service(1767225661999))", 0) == b"61"


# Calls that fail


@pytest.mark.anyio
async def test_a_server_that_forgot_the_scripts_is_sent_them_again(store: Store) -> None:
    async def forget() -> None:
        for server in await store.primaries():
            await server.script_flush()

    ref = store.ref()
    turn = new_turn_id()
    await forget()
    assert await store.create(ref) == Created()
    await forget()
    begun = await store.begin(ref, turn)
    assert isinstance(begun, Begun)
    await forget()
    assert await store.commit(ref, turn, begun.head, elements(1)) == Settled("committed", 1)


@pytest.mark.anyio
async def test_a_call_on_keys_of_two_slots_is_a_bug(store: Store) -> None:
    keys = (*store.ref().keys[:14], "{elsewhere}:oc")
    with pytest.raises(AssertionError, match="several slots"):
        await ScriptRunner(store.redis).run("get", keys, ["s", "o"], budget_s=1)


@pytest.fixture
async def own_store(own_valkey: EmbeddedValkey) -> AsyncIterator[Store]:
    """On a server of its own."""
    redis = real_redis(own_valkey.url)
    yield Store.of(redis, "own")
    await redis.aclose()


@pytest.fixture
async def hasty_store(own_valkey: EmbeddedValkey) -> AsyncIterator[Store]:
    """The same with short deadlines, for what shall fail; connected, which may take longer on a busy machine."""
    redis = real_redis(own_valkey.url, IMPATIENT)

    async def connected() -> bool:
        try:
            return bool(await redis.ping())
        except RedisError:
            return False

    await until(connected)
    yield Store.of(redis, "own", budget_s=0.6)
    await redis.aclose()


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    freeze_process(pid)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.anyio
async def test_a_frozen_server_is_given_up_within_the_budget(
    own_store: Store, hasty_store: Store, own_valkey: EmbeddedValkey
) -> None:
    ref = await own_store.created()
    turn, begun = await own_store.begun(ref)
    with frozen(own_valkey.pid):
        started = time.monotonic()
        with pytest.raises(StoreUnavailable) as caught:
            await hasty_store.commit(ref, turn, begun.head, elements(1))
        assert 0.5 < time.monotonic() - started < 3.0
        assert caught.value.outcome_unknown is True
        with pytest.raises(StoreUnavailable):
            await hasty_store.turns.history(ref, 1)
        with pytest.raises(StoreUnavailable):
            await hasty_store.sessions.messages(ref, 0, 1)
    # The commit that was sent before may have been executed at the thaw; either way this is its only effect.
    assert await own_store.commit(ref, turn, begun.head, elements(1)) == Settled("committed", 1)
    assert await own_store.redis.llen(ref.keys[1]) == 1


@pytest.mark.anyio
async def test_a_server_that_is_gone_was_surely_not_asked(own_store: Store, own_valkey: EmbeddedValkey) -> None:
    ref = await own_store.created()
    own_valkey.stop()
    await own_store.redis.connection_pool.disconnect()
    started = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        await own_store.begin(ref, new_turn_id())
    assert time.monotonic() - started < 2.5
    assert caught.value.outcome_unknown is False


@pytest.mark.anyio
async def test_a_server_that_went_away_after_it_was_asked_may_have_executed(
    own_store: Store, hasty_store: Store, own_valkey: EmbeddedValkey
) -> None:
    ref = await own_store.created()
    with frozen(own_valkey.pid):
        beginning = asyncio.create_task(hasty_store.begin(ref, new_turn_id()))
        await asyncio.wait({beginning}, timeout=1.5 * IMPATIENT.command_s)
        os.kill(own_valkey.pid, signal.SIGKILL)
        with pytest.raises(StoreUnavailable) as caught:
            await beginning
    assert caught.value.outcome_unknown is True


@pytest.mark.anyio
async def test_a_commit_waits_for_a_server_that_restarts(
    own_store: Store, hasty_store: Store, own_valkey: EmbeddedValkey, tmp_path: Path
) -> None:
    ref = await own_store.created()
    turn, begun = await own_store.begun(ref)
    own_valkey.stop()
    waiting = Store.of(hasty_store.redis, "own", budget_s=10.0)
    committing = asyncio.create_task(waiting.commit(ref, turn, begun.head, elements(1)))
    finished, _ = await asyncio.wait({committing}, timeout=0.2)
    assert not finished
    with EmbeddedValkey.start(tmp_path / "valkey"):
        assert await committing == Settled("committed", 1)
        assert (await own_store.turns.history(ref, 1)).elements == elements(1)


@pytest.mark.anyio
@pytest.mark.parametrize("error", ["NOREPLICAS", "READONLY"])
async def test_what_is_refused_for_now_is_sent_again_within_the_budget(
    own_store: Store, own_valkey: EmbeddedValkey, error: str
) -> None:
    """A primary that has lost its replicas, and one that has stepped down."""

    async def refuse(refuses: bool) -> None:
        if error == "NOREPLICAS":
            await own_store.redis.config_set("min-replicas-to-write", int(refuses))
        elif refuses:
            await own_store.redis.replicaof("127.0.0.1", 1)
        else:
            await own_store.redis.replicaof("NO", "ONE")

    ref = await own_store.created()
    turn, begun = await own_store.begun(ref)
    await refuse(True)
    # It ends in the middle of the longest pause between two attempts: an attempt that is on its way would be unknown.
    brief = Store.of(own_store.redis, "own", budget_s=sum(_RESEND_WAIT_S) - _RESEND_WAIT_S[-1] / 2)
    with pytest.raises(StoreUnavailable) as caught:
        await brief.commit(ref, turn, begun.head, elements(1))
    assert caught.value.outcome_unknown is False
    committing = asyncio.create_task(own_store.commit(ref, turn, begun.head, elements(1)))
    finished, _ = await asyncio.wait({committing}, timeout=0.2)
    assert not finished
    await refuse(False)
    assert await committing == Settled("committed", 1)


@pytest.mark.anyio
async def test_a_commit_that_never_found_a_server_was_surely_not_executed(
    own_store: Store, own_valkey: EmbeddedValkey
) -> None:
    ref = await own_store.created()
    turn, begun = await own_store.begun(ref)
    own_valkey.stop()
    await own_store.redis.connection_pool.disconnect()
    started = time.monotonic()
    brief = Store.of(own_store.redis, "own", budget_s=0.6)
    with pytest.raises(StoreUnavailable) as caught:
        await brief.commit(ref, turn, begun.head, elements(1))
    assert 0.5 < time.monotonic() - started < 3.0
    assert caught.value.outcome_unknown is False


@pytest.mark.anyio
async def test_a_full_pool_was_surely_not_asked(own_valkey: EmbeddedValkey) -> None:
    redis = real_redis(own_valkey.url, Deadlines(pool_wait_s=0.2))
    pool: Any = redis.connection_pool
    taken = [await pool.get_connection() for _ in range(pool.max_connections)]
    with pytest.raises(StoreUnavailable) as caught:
        await Store.of(redis, "own").created()
    assert caught.value.outcome_unknown is False
    for connection in taken:
        await pool.release(connection)
    await Store.of(redis, "own").created()
    await redis.aclose()


@pytest.mark.anyio
async def test_a_pool_that_is_busy_is_told_from_a_server_that_is_silent(own_valkey: EmbeddedValkey) -> None:
    told: list[str] = []
    redis = connect(
        own_valkey.url,
        connections_max=2,
        deadlines=Deadlines(pool_wait_s=0.2),
        on_busy=lambda: told.append("busy"),
    )
    pool: Any = redis.connection_pool
    taken = [await pool.get_connection() for _ in range(2)]
    with pytest.raises(StoreUnavailable) as caught:
        await Store.of(redis, "own").created()
    assert (type(caught.value), told) == (StoreUnavailable, []), "nobody was answered meanwhile"

    ahead = asyncio.create_task(pool.get_connection())
    waiting = asyncio.create_task(Store.of(redis, "own").created())
    await until(lambda: _are_waiting(pool, 2))
    await pool.release(taken.pop())
    with pytest.raises(StoreBusy) as caught:
        await waiting
    assert (caught.value.outcome_unknown, told) == (False, ["busy"])
    for connection in (await ahead, *taken):
        await pool.release(connection)
    await Store.of(redis, "own").created()
    await redis.aclose()


@pytest.mark.anyio
async def test_a_budget_that_ends_in_the_wait_for_a_connection_is_told_as_busy(own_valkey: EmbeddedValkey) -> None:
    redis = connect(own_valkey.url, connections_max=2, deadlines=Deadlines())
    pool: Any = redis.connection_pool
    store = Store.of(redis, "own", budget_s=0.3)
    taken = [await pool.get_connection() for _ in range(2)]
    with pytest.raises(StoreUnavailable) as caught:
        await store.created()
    assert type(caught.value) is StoreUnavailable, "nobody was answered meanwhile"
    ahead = asyncio.create_task(pool.get_connection())
    waiting = asyncio.create_task(store.created())
    await until(lambda: _are_waiting(pool, 2))
    await pool.release(taken.pop())
    with pytest.raises(StoreBusy) as caught:
        await waiting
    assert caught.value.outcome_unknown is False
    for connection in (await ahead, *taken):
        await pool.release(connection)
    assert not pool._waiting
    await store.created()
    await redis.aclose()


@pytest.mark.anyio
async def test_a_silent_server_is_not_told_as_busy_because_a_connection_was_waited_for(
    own_valkey: EmbeddedValkey,
) -> None:
    """The wait was short, and others were answered in it; but it is the server that let the call down."""
    redis = connect(own_valkey.url, connections_max=1, deadlines=Deadlines())
    pool: Any = redis.connection_pool
    store = Store.of(redis, "own", budget_s=0.5)
    taken = await pool.get_connection()
    waiting = asyncio.create_task(store.created())
    await until(lambda: _are_waiting(pool, 1))
    with frozen(own_valkey.pid):
        await pool.release(taken)
        with pytest.raises(StoreUnavailable) as caught:
            await waiting
    assert (type(caught.value), caught.value.outcome_unknown) == (StoreUnavailable, True)
    await redis.aclose()


@pytest.mark.anyio
async def test_a_wait_for_a_connection_that_left_no_time_for_the_call_is_told_as_busy(
    own_valkey: EmbeddedValkey,
) -> None:
    redis = connect(own_valkey.url, connections_max=1, deadlines=Deadlines())
    pool: Any = redis.connection_pool
    store = Store.of(redis, "own", budget_s=0.9)
    taken = await pool.get_connection()
    waiting = asyncio.create_task(store.created())
    await asyncio.sleep(0.65)
    with frozen(own_valkey.pid):
        await pool.release(taken)
        with pytest.raises(StoreBusy) as caught:
            await waiting
    assert caught.value.outcome_unknown is True
    await redis.aclose()


@pytest.mark.anyio
async def test_what_goes_first_keeps_nobody_waiting_once_it_has_its_place() -> None:
    """Though making its connection takes long, as with a server that is silent, and there are other places."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:  # connections are made, and nothing is ever said on them
        redis = connect(
            f"redis://:secret@127.0.0.1:{nobody.getsockname()[1]}", connections_max=2, deadlines=Deadlines()
        )
        pool: Any = redis.connection_pool
        store = Store.of(redis, "own")
        ending = asyncio.create_task(store.abort(store.ref(), new_turn_id()))
        await until(lambda: _in_use(pool, 1))
        other = asyncio.ensure_future(redis.ping())
        await until(lambda: _in_use(pool, 2))
        for task in (ending, other):
            task.cancel()
        await asyncio.gather(ending, other, return_exceptions=True)
        await redis.aclose()


@pytest.mark.anyio
async def test_who_is_cancelled_as_it_gives_a_connection_back_has_given_it_back(own_valkey: EmbeddedValkey) -> None:
    redis = connect(own_valkey.url, connections_max=1, deadlines=Deadlines())
    pool: Any = redis.connection_pool
    connection = await pool.get_connection()
    next_one = asyncio.ensure_future(redis.ping())
    await until(lambda: _are_waiting(pool, 1))
    async with pool._lock:  # redis-py's, of what is free and what is in use
        giving_back = asyncio.create_task(pool.release(connection))
        await asyncio.sleep(0)
        giving_back.cancel()
        await asyncio.gather(giving_back, return_exceptions=True)
    assert await asyncio.wait_for(next_one, 5.0)
    assert not pool._in_use_connections
    await redis.aclose()


@pytest.mark.anyio
async def test_one_connection_that_leads_nowhere_is_enough(own_valkey: EmbeddedValkey) -> None:
    """A firewall has forgotten all that were idle; the server answers on new ones. Only the first call pays for it."""
    async with RedisStall(int(own_valkey.url.rpartition(":")[2].partition("/")[0])) as line:
        redis = connect(line.url_through(own_valkey.url), connections_max=8, deadlines=Deadlines(command_s=1.0))
        pool: Any = redis.connection_pool
        ref = await Store.of(redis, "own").created()
        idle = [await pool.get_connection() for _ in range(4)]
        for connection in idle:
            await pool.release(connection)
        line.forget()
        assert await Store.of(redis, "own", budget_s=3.0).sessions.touch(ref)
        prompt = Store.of(redis, "own", budget_s=0.9).sessions
        assert await asyncio.gather(*(prompt.touch(ref) for _ in range(4))) == [True] * 4
        await redis.aclose()


@pytest.mark.anyio
async def test_who_finds_that_a_session_is_anothers_has_one_budget_for_both_calls(own_valkey: EmbeddedValkey) -> None:
    async with RedisStall(int(own_valkey.url.rpartition(":")[2].partition("/")[0])) as line:
        redis = connect(line.url_through(own_valkey.url), connections_max=2, deadlines=Deadlines())
        store = Store.of(redis, "own", budget_s=2.0)
        ref = await store.created()
        await store.shares.share(ref, "bob", "writer")
        touch = SCRIPTS["touch"].sha.encode()
        await store.sessions.touch(ref)
        told_late = line.arm(lambda argv: argv[1:2] == (touch,), at="reply")
        store.keyspace.foreign.clear()  # nobody knows whose it is
        started = time.monotonic()
        touching = asyncio.create_task(store.sessions.touch(store.keyspace.session(ref.id, "bob")))
        await told_late.reached()
        held = line.arm(lambda argv: argv[1:2] == (touch,), at="reply")
        await asyncio.sleep(1.4)
        told_late.release()
        with pytest.raises(StoreUnavailable):
            await touching
        assert time.monotonic() - started < 3.0
        await held.reached()
        await redis.aclose()


async def _are_waiting(pool: Any, count: int) -> bool:
    return len(pool._waiting) == count


async def _in_use(pool: Any, count: int) -> bool:
    return len(pool._in_use_connections) == count


@pytest.mark.anyio
async def test_what_ends_a_turn_goes_first_where_connections_are_waited_for(own_valkey: EmbeddedValkey) -> None:
    redis = connect(own_valkey.url, connections_max=1, deadlines=Deadlines())
    pool: Any = redis.connection_pool
    store = Store.of(redis, "own")
    ref = await store.created()
    turn, begun = await store.begun(ref)
    connection = await pool.get_connection()
    ended: list[str] = []

    async def noting(name: str, call: Awaitable[object]) -> None:
        await call
        ended.append(name)

    async def other(number: int) -> None:
        await noting(f"other {number}", store.sessions.get(ref))

    given_up = asyncio.create_task(store.abort(ref, new_turn_id()))
    others = [asyncio.create_task(other(number)) for number in range(5)]
    await until(lambda: _are_waiting(pool, 6))
    last = asyncio.create_task(noting("commit", store.commit(ref, turn, begun.head, elements(1))))
    await until(lambda: _are_waiting(pool, 7))
    given_up.cancel()
    await pool.release(connection)
    await asyncio.gather(last, *others)
    assert (ended[0], sorted(ended[1:])) == ("commit", [f"other {number}" for number in range(5)])
    assert not pool._waiting
    await redis.aclose()


@pytest.mark.anyio
async def test_a_running_turn_goes_before_new_ones_and_the_oldest_operation_before_younger_ones(
    own_valkey: EmbeddedValkey,
) -> None:
    """So with too few connections some turns end, where else each would get half of the way."""
    redis = connect(own_valkey.url, connections_max=1, deadlines=Deadlines())
    pool: Any = redis.connection_pool
    store = Store.of(redis, "own")
    ref = await store.created()
    turn, _ = await store.begun(ref)
    connection = await pool.get_connection()
    ended: list[str] = []

    async def noting(name: str, call: Awaitable[object]) -> None:
        await call
        ended.append(name)

    async def of_two_calls(name: str) -> None:
        with store.turns.beginning():
            await noting(f"{name}, first", store.sessions.get(ref))
            await noting(f"{name}, last", store.sessions.get(ref))

    async def history() -> None:
        with store.turns.running():
            await noting("history", store.turns.history(ref, 0))

    calls = [asyncio.create_task(of_two_calls(name)) for name in ("oldest", "older", "young")]
    calls.append(asyncio.create_task(history()))
    await until(lambda: _are_waiting(pool, 4))
    calls.append(asyncio.create_task(noting("renew", store.renew(ref, turn))))
    await until(lambda: _are_waiting(pool, 5))
    await pool.release(connection)
    await asyncio.gather(*calls)
    assert ended[:2] == ["history", "renew"]
    # What is free is given away before whoever had it can ask for it again.
    assert ended[2:6] == ["oldest, first", "older, first", "oldest, last", "older, last"]
    assert ended[6:] == ["young, first", "young, last"]
    await redis.aclose()


@pytest.mark.anyio
async def test_what_one_operation_asks_has_one_budget_and_a_wait_in_it_counts_for_all(
    own_valkey: EmbeddedValkey,
) -> None:
    redis = connect(own_valkey.url, connections_max=1, deadlines=Deadlines())
    pool: Any = redis.connection_pool
    store = Store.of(redis, "own", budget_s=0.6)
    ref = await store.created()
    taken = await pool.get_connection()
    started = time.monotonic()

    async def both() -> None:
        with store.turns.beginning():
            await store.sessions.touch(ref)
            with frozen(own_valkey.pid):
                await store.begin(ref, new_turn_id())

    beginning = asyncio.create_task(both())
    await asyncio.sleep(0.4)
    await pool.release(taken)
    with pytest.raises(StoreBusy):
        await beginning
    assert time.monotonic() - started < 0.9
    await redis.aclose()


@pytest.mark.leaping
async def test_a_budget_ends_also_where_its_end_was_swallowed() -> None:
    """As `asyncio.wait_for` of Python 3.11 does if what it waits for ends at that very moment."""

    async def ask() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(10)
        raise RedisTimeoutError("Timeout reading from socket")

    with pytest.raises(StoreUnavailable) as caught:
        await answered(ask, budget_s=3)
    assert caught.value.outcome_unknown is True
    assert asyncio.get_running_loop().time() == 3


@pytest.mark.anyio
async def test_a_commit_waits_for_a_server_that_takes_no_writes_for_now(own_store: Store) -> None:
    ref = await own_store.created()
    turn, begun = await own_store.begun(ref)
    await own_store.redis.config_set("min-replicas-to-write", "1")
    with pytest.raises(StoreUnavailable) as caught:
        await own_store.begin(ref, new_turn_id())
    assert caught.value.outcome_unknown is False
    committing = asyncio.create_task(own_store.commit(ref, turn, begun.head, elements(1)))
    refused, _ = await asyncio.wait({committing}, timeout=0.2)
    assert not refused
    await own_store.redis.config_set("min-replicas-to-write", "0")
    assert await committing == Settled("committed", 1)


@pytest.mark.anyio
async def test_a_full_server_takes_nothing_new_and_lets_everything_end(own_store: Store) -> None:
    running, ending, creating_turn = await own_store.created(), await own_store.created(), new_turn_id()
    created = await own_store.created(creating_turn_id=creating_turn)
    expired, deleted = await own_store.created(), await own_store.created()
    turn, begun = await own_store.begun(running, streamed=True)
    aborted, _ = await own_store.begun(ending, streamed=True)
    await own_store.redis.unlink(expired.keys[0])
    before = await own_store.everything()
    await own_store.redis.config_set("maxmemory", "1")

    head, request = await own_store.field(created, "head"), Request("print", "key")
    fixed: Any = {"head": head, "record": b"", "turns_max": 9, "request": request, "elements": elements(1)}
    for refused in (
        own_store.create(own_store.ref()),
        own_store.begin(created, creating_turn, streamed=True, request=request),
        own_store.turns.append(created, new_turn_id(), **fixed),
        own_store.sessions.patch(created, {"title": "T"}, expected_revision=None),
    ):
        with pytest.raises(StoreUnavailable) as caught:
            await refused
        assert caught.value.outcome_unknown is False
    assert await own_store.everything() == before

    assert await own_store.renew(running, turn, shown(1, 600)) == Renewed(cancel=False)
    assert await own_store.turns.cancel(running, turn) == Cancelling(1)
    assert await own_store.renew(running, turn) == Renewed(cancel=True)
    end = {"end": shown(601, 602)}
    assert await own_store.commit(running, turn, begun.head, elements(600), **end) == Settled("committed", 1)
    assert await own_store.turns.delivered(running, turn) is True
    fate = Fate("committed", 1, delivered=True)
    assert await own_store.log.tail(running, turn, 1, 0) == Tail(fate, frames(1, 602), 602, "told")
    assert await own_store.abort(ending, aborted, end=shown(1, 2)) == Settled("aborted", 1)
    assert (await own_store.log.tail(ending, aborted, 1, 0)).frames == frames(1, 2)
    assert await own_store.abort(created, creating_turn) == Removed()
    assert await own_store.sessions.touch(running) is True
    assert await own_store.capacity.sweep(expired) is True
    assert await own_store.sessions.delete(deleted) is True
    assert isinstance(await own_store.sessions.get(running), Snapshot)
    await own_store.assert_consistent(running)
