"""Sessions that are shared: who may do what, what a stranger is told, and what is left of a share when it ends."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from storage import shares
from storage.keys import SessionRef, new_nonce, new_turn_id
from storage.log import Tail
from storage.results import (
    Begun,
    Cancelling,
    Denied,
    Fate,
    Gone,
    IsOwner,
    Patched,
    Renewed,
    Settled,
    Shared,
    SharesFull,
)
from storage.sessions import Snapshot
from storage.shares import ROLES, Role
from tests.store.harness import PLAIN, Store, elements, frames, shown

pytestmark = pytest.mark.anyio
on_valkey = pytest.mark.parametrize("server_url", ["valkey"], indirect=True)
on_real_servers = pytest.mark.parametrize("server_url", ["valkey", "cluster", "six"], indirect=True)

RANK = {"": 0, "viewer": 1, "writer": 2, "admin": 3}


def of(store: Store, ref: SessionRef, principal: str) -> SessionRef:
    """The same session as another principal addresses it, on a replica that does not know whose it is."""
    store.keyspace.foreign.clear()
    return store.keyspace.session(ref.id, principal)


async def append(store: Store, ref: SessionRef, head: str) -> Any:
    fixed: dict[str, Any] = {"record": b"{}", "turns_max": 99, "request": PLAIN, "elements": elements(1)}
    return await store.turns.append(ref, new_turn_id(), head=head, **fixed)


def attempts(store: Store, head: str, running: str) -> dict[str, tuple[str, Callable[[SessionRef], Awaitable[Any]]]]:
    """Everything that can be tried with a session, and the role that it takes."""
    return {
        "get": ("viewer", store.sessions.get),
        "touch": ("viewer", store.sessions.touch),
        "own share": ("viewer", lambda ref: store.shares.of(ref, ref.principal)),
        "begin": ("writer", lambda ref: store.begin(ref, new_turn_id())),
        "append": ("writer", lambda ref: append(store, ref, head)),
        "cancel": ("writer", lambda ref: store.turns.cancel(ref, running)),
        "patch": ("admin", lambda ref: store.sessions.patch(ref, {"title": "x"}, expected_revision=None)),
        "share": ("admin", lambda ref: store.shares.share(ref, "carol", "viewer")),
        "unshare": ("admin", lambda ref: store.shares.unshare(ref, "dave")),
        "shares": ("admin", store.shares.of),
        "delete": ("admin", store.sessions.delete),
    }


@on_real_servers
@pytest.mark.parametrize("role", ["", *ROLES])
async def test_a_role_may_do_what_it_takes_and_nothing_else(store: Store, role: Any) -> None:
    ref = await store.created()
    running, begun = await store.begun(ref)
    await store.shares.share(ref, "dave", "viewer")
    if role:
        await store.shares.share(ref, "bob", role)
    for name, (needed, attempt) in attempts(store, begun.head, running).items():
        before = await store.everything()
        told = await attempt(of(store, ref, "bob"))
        if RANK[role] >= RANK[needed]:
            assert not isinstance(told, Gone | Denied), name
        else:
            assert told == (Denied(role) if role else False if name in ("touch", "delete") else Gone()), name
            assert await store.everything() == before, name
    if role != "admin":
        await store.assert_consistent(ref)


@on_valkey
async def test_a_session_of_another_and_none_are_the_same_work(store: Store) -> None:
    """The same replies to the same commands; what is unknown to the replica is asked for once, by either."""
    ref = await store.created()
    running, begun = await store.begun(ref)
    for name, (_, attempt) in attempts(store, begun.head, running).items():
        seen = []
        for asked in (of(store, ref, "mallory"), of(store, store.ref(), "mallory")):
            await attempt(asked)  # the server may not know the script yet
            async with commands(store) as words:
                told = await attempt(asked)
            seen.append((told, words))
        assert seen[0] == seen[1], name
        assert seen[0][1].count("evalsha") == 1, name


@asynccontextmanager
async def commands(store: Store) -> AsyncIterator[list[str]]:
    """The names of all commands that are executed meanwhile."""
    found: list[str] = []
    async with store.redis.monitor() as monitor:
        yield found
        marker = new_nonce()
        await store.redis.echo(marker)
        while marker not in (line := await monitor.next_command())["command"]:
            name = line["command"].split(" ")[0].lower()
            found += [name] if name not in ("hello", "client", "select") else []


async def test_an_owner_is_asked_once_and_a_grantee_twice_the_first_time(store: Store) -> None:
    ref = await store.created()
    await store.shares.share(ref, "bob", "writer")
    ran: list[str] = []
    scripts: Any = store.sessions._scripts
    run = scripts.run

    async def counted(verb: str, *args: Any, **more: Any) -> Any:
        ran.append(verb)
        return await run(verb, *args, **more)

    scripts.run = counted
    store.keyspace.foreign.clear()
    assert await store.sessions.touch(store.keyspace.session(ref.id, "alice"))
    assert ran == ["touch"]
    assert await store.sessions.touch(store.keyspace.session(ref.id, "bob"))
    assert ran == ["touch"] * 3, "told whose it is, and asked again"
    assert await store.sessions.touch(store.keyspace.session(ref.id, "bob"))
    assert ran == ["touch"] * 4, "which the replica knows from now on"


async def test_a_turn_of_a_grantee_counts_as_the_owners(store: Store) -> None:
    ref = await store.created()
    await store.shares.share(ref, "bob", "writer")
    theirs = of(store, ref, "bob")
    await store.committed(theirs, elements(2))
    await store.assert_consistent(ref)
    assert (await store.index.counts("alice")).messages == 2
    assert await store.index.counts("bob") == await store.index.counts("nobody")


async def test_a_snapshot_tells_a_grantee_its_role_and_not_the_owners_name(store: Store) -> None:
    ref = await store.created(name="mine")
    await store.shares.share(ref, "bob", "viewer")
    own, theirs = await store.sessions.snapshots([ref, of(store, ref, "bob")])
    assert own is not None
    assert theirs is not None
    assert (own.role, own.name, own.owner) == ("owner", "mine", "alice")
    assert (theirs.role, theirs.name, theirs.owner) == ("viewer", "", "alice")
    assert await store.sessions.get(of(store, ref, "bob")) == theirs
    assert await store.sessions.snapshots([of(store, ref, "mallory")]) == [None]


async def test_shares_are_given_changed_and_taken_away(store: Store) -> None:
    ref = await store.created()
    assert await store.shares.share(ref, "bob", "viewer") == Shared(new=True)
    assert await store.shares.share(ref, "bob", "admin") == Shared(new=False)
    theirs = of(store, ref, "bob")
    assert await store.shares.share(theirs, "carol", "viewer") == Shared(new=True)
    assert await store.shares.share(theirs, "alice", "viewer") == IsOwner()
    assert await store.shares.unshare(theirs, "alice") == IsOwner()
    assert await store.shares.of(ref) == {"bob": "admin", "carol": "viewer"}
    assert await store.shares.unshare(of(store, ref, "carol"), "bob") == Denied("viewer")
    assert await store.shares.unshare(of(store, ref, "carol"), "carol") is True, "one may give up one's own"
    assert await store.shares.unshare(ref, "carol") is False
    assert await store.shares.of(ref, "carol") == {}
    assert await store.sessions.get(of(store, ref, "carol")) == Gone()


async def test_bounds_of_shares(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "GRANTEES_MAX", 2)
    monkeypatch.setattr(shares, "SHARED_WITH_ONE_MAX", 2)
    refs = [await store.created() for _ in range(3)]
    assert [await store.shares.share(refs[0], who, "viewer") for who in "abc"] == [
        Shared(new=True),
        Shared(new=True),
        SharesFull("session"),
    ]
    assert await store.shares.share(refs[0], "a", "writer") == Shared(new=False), "whoever is in may be changed"
    await store.shares.share(refs[1], "a", "viewer")
    full = await store.shares.share(refs[2], "a", "viewer")
    assert full == (SharesFull("principal") if store.keyspace.buckets == 1 else Shared(new=True))


async def test_lists_are_by_last_access_whoever_accessed(store: Store) -> None:
    """A grantee's list holds its own sessions and what is shared with it; their times are those of the sessions."""
    first, second = await store.created(), await store.created()
    own = store.ref("bob")
    await store.create(own)
    for ref in (first, second):
        await store.shares.share(ref, "bob", "viewer")
    for ref in (second, own, first):
        await asyncio.sleep(0.003)
        await store.sessions.touch(ref)
    page = await store.index.page("bob", None, 10)
    assert [one.session_id for one in page] == [first.id, own.id, second.id]
    paged = [one for size in (1, 2) for one in await store.index.page("bob", page[0] if size == 2 else None, size)]
    assert paged == page
    assert await store.index.shared_active("bob") == 2
    assert [one.session_id for one in await store.index.page("alice", None, 10)] == [first.id, second.id]
    assert (await store.index.counts("bob")).total == 1


@pytest.mark.parametrize("end", ["delete", "delete by an admin", "sweep", "evict", "unshare"])
async def test_no_end_of_a_session_leaves_a_share(store: Store, end: str) -> None:
    ref = await store.created()
    grantees: dict[str, Role] = {"bob": "admin", "carol": "viewer"}
    for grantee, role in grantees.items():
        await store.shares.share(ref, grantee, role)
    match end:
        case "delete":
            assert await store.sessions.delete(ref) is True
        case "delete by an admin":
            assert await store.sessions.delete(of(store, ref, "bob")) is True
        case "sweep":
            await store.redis.hset(ref.keys[0], "ttl", "1")
            await store.sessions.touch(ref)
            await store.until_expired(ref)
            assert await store.sessions.get(of(store, ref, "bob")) == Gone()
            assert await store.index.shared_active("bob") == 0
            assert await store.capacity.sweep(ref) is True
        case "evict":
            await store.capped(per_owner_max=1).created()
            assert store.ends == [] or store.ends == ["evicted"]
        case "unshare":
            for grantee in grantees:
                assert await store.shares.unshare(ref, grantee) is True
    left = [key for key in await store.everything() if "}:w:" in key or "}:g:" in key]
    assert left == []
    assert await store.index.page("bob", None, 10) == []


async def test_a_session_made_again_is_shared_with_nobody(store: Store) -> None:
    ref = await store.created()
    await store.shares.share(ref, "bob", "admin")
    await store.redis.hset(ref.keys[0], "ttl", "1")
    await store.sessions.touch(ref)
    await store.until_expired(ref)
    await store.create(ref)
    assert await store.shares.of(ref) == {}
    assert await store.sessions.get(of(store, ref, "bob")) == Gone()
    assert await store.index.page("bob", None, 10) == []


async def test_grantees_that_change_under_a_removal_are_read_again(store: Store) -> None:
    ref = await store.created()
    await store.shares.share(ref, "bob", "viewer")
    scripts: Any = store.sessions._scripts
    run, ran = scripts.run, []

    async def raced(verb: str, keys: Any, args: Any, **more: Any) -> Any:
        ran.append(len(keys) - 17)
        if len(ran) == 2:  # between the look at the grantees and the removal
            await store.shares.share(ref, "carol", "viewer")
        return await run(verb, keys, args, **more)

    scripts.run = raced
    assert await store.sessions.delete(ref) is True
    assert ran == [0, 1, 2]
    assert await store.index.page("carol", None, 10) == []


async def test_a_turn_ends_with_its_callers_role(store: Store) -> None:
    """Neither renewed nor committed; only ended, by whoever runs it. Nobody else is kept waiting."""
    ref = await store.created()
    await store.shares.share(ref, "bob", "writer")
    theirs = of(store, ref, "bob")
    turn, begun = await store.begun(theirs, streamed=True)
    assert await store.renew(theirs, turn) == Renewed(cancel=False)
    await store.shares.share(ref, "bob", "viewer")
    assert await store.renew(theirs, turn) == Denied("viewer")
    await store.shares.unshare(ref, "bob")
    assert await store.renew(theirs, turn) == Denied("")
    assert await store.commit(theirs, turn, begun.head, elements(2)) == Denied("")
    assert await store.abort(theirs, turn) == Settled("aborted", 1)
    assert await store.abort(theirs, new_turn_id()) == Gone(), "of no other turn may it say anything"
    assert isinstance(await store.begin(ref, new_turn_id()), Begun)
    await store.assert_consistent(ref)


async def test_a_turn_that_was_stored_before_is_told_so_whoever_asks(store: Store) -> None:
    ref = await store.created()
    await store.shares.share(ref, "bob", "writer")
    theirs = of(store, ref, "bob")
    turn, begun = await store.begun(theirs)
    assert await store.commit(theirs, turn, begun.head, elements(2)) == Settled("committed", 1)
    await store.shares.unshare(ref, "bob")
    assert await store.commit(theirs, turn, begun.head, elements(2)) == Settled("committed", 1)


async def test_who_follows_sees_nothing_from_the_moment_the_share_ends(store: Store) -> None:
    ref = await store.created()
    await store.shares.share(ref, "bob", "viewer")
    theirs = of(store, ref, "bob")
    turn, _ = await store.begun(ref, streamed=True)
    await store.renew(ref, turn, shown(1, 2))
    assert await store.log.tail(theirs, turn, 1, 0) == Tail(None, frames(1, 2), 2, None)
    await store.renew(ref, turn, shown(3, 4))
    await store.shares.unshare(ref, "bob")
    assert await store.log.tail(theirs, turn, 1, 2) == Tail(None, b"", 2, "hidden")
    assert await store.log.tail(of(store, ref, "mallory"), turn, 1, 0) == Tail(None, b"", 0, "hidden")
    assert (await store.log.tail(ref, turn, 1, 0)).frames == frames(1, 4)


async def test_an_abort_of_a_stranger_changes_nothing(store: Store) -> None:
    """As after a begin that was not answered, of a session that is not the caller's."""
    ref = await store.created()
    turn, _ = await store.begun(ref)
    before = await store.everything()
    assert await store.abort(of(store, ref, "mallory"), new_turn_id()) == Gone()
    assert await store.abort(of(store, ref, "mallory"), turn, "finder") == Gone()
    assert await store.everything() == before
    assert await store.turns.fates(ref, [turn]) == [None]


async def test_a_session_that_is_shared_stays_when_its_creating_turn_is_aborted(store: Store) -> None:
    creating = new_turn_id()
    ref = await store.created(creating_turn_id=creating)
    await store.begun(ref, creating)
    await store.shares.share(ref, "bob", "viewer")
    assert await store.abort(ref, creating) == Settled("aborted", 1)
    assert isinstance(await store.sessions.get(of(store, ref, "bob")), Snapshot)
    assert await store.turns.fates(ref, [creating]) == [Fate("aborted", 1, delivered=False)]


async def test_a_grantee_writes_no_index_of_its_own(store: Store) -> None:
    """Whatever it does, the indexes that change are the owner's: its own keys do not exist."""
    ref = await store.created()
    await store.shares.share(ref, "bob", "admin")
    theirs = of(store, ref, "bob")
    turn, _ = await store.begun(theirs)
    assert await store.turns.cancel(theirs, turn) == Cancelling(1)
    await store.abort(of(store, ref, "bob"), turn)
    assert await store.sessions.patch(of(store, ref, "bob"), {"ttl": 5_000}, expected_revision=None) == Patched(2)
    await append(store, of(store, ref, "bob"), await store.field(ref, "head"))
    tag = store.keyspace.owner_tag("bob")
    assert [key for key in await store.everything() if key.endswith(tag) and "}:w:" not in key] == []
    await store.assert_consistent(ref)
