"""Fork, read, restore: sessions that branch, leave and come back."""

from dataclasses import replace
from typing import Any

import pytest

from storage.keys import SessionRef, new_nonce, new_turn_id
from storage.replies import read_fate
from storage.results import Corrupt, Created, Exists, Fate, Full, Gone, Moved, SessionTorn, Settled, TurnsFull
from storage.transfer import Fork, Restored, Whole
from storage.turns import Cut, Rewind, Usage
from tests.store.harness import OWNER, TTL_MS, Store, attached, elements

pytestmark = pytest.mark.anyio
on_valkey = pytest.mark.parametrize("server_url", ["valkey"], indirect=True)
on_real_servers = pytest.mark.parametrize("server_url", ["valkey", "cluster", "sixteen", "six"], indirect=True)


async def fork_of(store: Store, source: SessionRef, **changes: Any) -> Fork:
    """A fork of all messages of a session as it is now."""
    fields: dict[str, Any] = {
        "nonce": new_nonce(),
        "ttl_ms": TTL_MS,
        "absolute_end_ms": 0,
        "head": await store.field(source, "head"),
        "messages": int(await store.field(source, "n")),
        "turns": int(await store.field(source, "tn")),
        "turn_id": new_turn_id(),
        "record": b"forked",
        "turns_max": 1_000,
    }
    return Fork(**(fields | changes))


def beside(store: Store, source: SessionRef, owner: str = OWNER) -> SessionRef:
    """A new id in the same bucket."""
    return store.keyspace.session(store.keyspace.issue(store.keyspace.bucket_of(source.id)), owner)


async def read(store: Store, ref: SessionRef) -> Whole:
    whole = await store.transfer.read(ref)
    assert isinstance(whole, Whole)
    return whole


async def restored_from(store: Store, source: SessionRef, **changes: Any) -> Restored:
    """A session as it would be put back, with ids of the harness's turns."""
    whole = await read(store, source)
    one = whole.snapshot
    ids = {fate.number: turn_id for turn_id, fate in (await fates(store, source)).items()}
    return replace(
        Restored(
            nonce=whole.nonce,
            ttl_ms=one.ttl_ms,
            absolute_end_ms=one.absolute_end_ms,
            name=one.name,
            created_ms=one.created_ms,
            head=one.head if one.turns else "",
            model=one.model,
            max_turns=one.max_turns,
            turn_count=one.turns,
            epoch_hash=one.epoch_hash,
            epoch_start=one.epoch_start,
            context=one.context,
            usage=Usage(one.input_tokens, one.output_tokens, one.cache_read_tokens, one.cache_written_tokens),
            system_json=one.system_json,
            title=one.title,
            metadata_json=one.metadata_json,
            preamble=whole.preamble,
            cuts=whole.cuts,
            turns=[
                (ids[number], told.record, told.fate) for number, told in enumerate(whole.turns, start=1) if told.fate
            ],
            elements=await store.sessions.messages(source, 0, one.messages),
            account=one.account,
            summary=whole.checkpoint.summary if whole.checkpoint else b"",
            wishes=one.wishes,
        ),
        **changes,
    )


def timeless(whole: Whole) -> Whole:
    """The same, without what tells when it was read and put back."""
    return replace(whole, snapshot=replace(whole.snapshot, accessed_ms=0, expires_ms=0, revision=0))


async def fates(store: Store, ref: SessionRef) -> dict[str, Fate]:
    return {name.decode(): read_fate(value) for name, value in (await store.redis.hgetall(ref.keys[3])).items()}


async def a_source(store: Store) -> SessionRef:
    """Two turns, one of them with an attachment, and an aborted one."""
    source = await store.created(title="T", metadata_json=b'{"k":"v"}', model="m", system_json=b'"be brief"')
    big = attached("x" * 70_000)
    await store.committed(source, [*elements(2), big], preamble=b"0 0\n", usage=Usage(1, 2, 3, 4), epoch_hash="e")
    await store.settled(source, "aborted")
    await store.committed(source, elements(2, "more"), usage=Usage(1, 2, 3, 4), epoch_start=3, epoch_hash="e")
    return source


@on_real_servers
async def test_a_fork_has_the_first_messages_and_goes_on_by_itself(store: Store) -> None:
    source = await a_source(store)
    before = [await store.redis.dump(key) for key in source.keys[:8]]
    fork, target = await fork_of(store, source, messages=3, turns=1, context="1 w"), beside(store, source)
    assert await store.transfer.fork(source, target, fork) == Created()
    assert [await store.redis.dump(key) for key in source.keys[:8]] == before, "the source is not changed"
    assert await store.sessions.messages(target, 0, 9) == await store.sessions.messages(source, 0, 3)
    copy, original = await read(store, target), await read(store, source)
    assert [told.record for told in copy.turns] == [*(told.record for told in original.turns), b"forked"]
    assert copy.cuts == [Cut(4, 3)]
    one = copy.snapshot
    assert (one.head, one.turns, one.model, one.title, one.metadata_json) == (
        fork.turn_id,
        1,
        "claude-x",
        "T",
        b'{"k":"v"}',
    )
    assert (one.epoch_hash, one.epoch_start, copy.preamble, one.context) == ("e", 3, b"0 0\n", "1 w")
    assert (one.input_tokens, one.output_tokens, one.cache_read_tokens, one.cache_written_tokens) == (0, 0, 0, 0)
    await store.assert_consistent(target)
    await store.committed(target, elements(1, "else"), epoch_hash="e")
    await store.assert_consistent(target)
    assert await read(store, source) == original


@on_real_servers
async def test_what_forks_and_their_sources_count_is_taken_back_with_them(store: Store) -> None:
    source = await a_source(store)
    target = beside(store, source)
    assert await store.transfer.fork(source, target, await fork_of(store, source, messages=1, turns=0)) == Created()
    assert await store.sessions.delete(source) is True
    assert await store.sessions.messages(target, 0, 9) == elements(1), "it stands alone"
    await store.assert_consistent(target)
    assert await store.sessions.delete(target) is True
    assert await store.counters(target) == {"deleted": 2}
    assert sorted(await store.everything()) == sorted(target.keys[14:16])


@on_valkey
async def test_a_fork_sent_again_makes_one_session(store: Store) -> None:
    source = await a_source(store)
    fork, target = await fork_of(store, source), beside(store, source)
    assert await store.transfer.fork(source, target, fork) == Created()
    await store.committed(source, elements(1))
    before = await store.everything()
    assert await store.transfer.fork(source, target, fork) == Created(repeated=True)
    assert await store.transfer.fork(source, target, replace(fork, nonce=new_nonce())) == Exists()
    assert await store.everything() == before


@on_valkey
async def test_a_fork_is_of_the_head_that_was_seen_and_of_ones_own_session(store: Store) -> None:
    source = await a_source(store)
    fork = await fork_of(store, source)
    head = await store.committed(source, elements(1))
    before = await store.everything()
    target = beside(store, source)
    assert await store.transfer.fork(source, target, fork) == Moved(head)
    foreign = store.keyspace.session(source.id, "mallory")
    theirs = beside(store, source, "mallory")
    assert await store.transfer.fork(foreign, theirs, replace(fork, head=head)) == Gone()
    assert await store.transfer.fork(beside(store, source), target, replace(fork, head=head)) == Gone()
    full = replace(fork, head=head, turns_max=4)
    assert await store.transfer.fork(source, target, full) == TurnsFull()
    assert await store.everything() == before


@on_valkey
async def test_a_running_turn_is_aborted_in_the_copy_only(store: Store) -> None:
    source = await a_source(store)
    turn, begun = await store.begun(source)
    target = beside(store, source)
    assert await store.transfer.fork(source, target, await fork_of(store, source)) == Created()
    assert (await fates(store, target))[turn] == Fate("aborted", begun.number, delivered=False)
    assert await store.commit(source, turn, begun.head, elements(1)) == Settled("committed", begun.number)
    await store.committed(target, elements(1))


@on_valkey
async def test_forks_keep_to_the_caps(store: Store) -> None:
    source = await a_source(store)
    capped = store.capped(per_owner_max=1)
    await store.begun(source)  # it may not be evicted
    assert await capped.transfer.fork(source, beside(store, source), await fork_of(store, source)) == Full("owner")


@on_valkey
async def test_a_torn_source_is_not_copied(store: Store) -> None:
    source = await a_source(store)
    fork = await fork_of(store, source)
    await store.redis.rpop(source.keys[1])
    assert await store.transfer.fork(source, beside(store, source), fork) == Corrupt()
    await store.redis.rpop(source.keys[2])
    with pytest.raises(SessionTorn):
        await store.transfer.read(source)


@on_real_servers
async def test_a_session_that_is_put_back_is_what_it_was(store: Store) -> None:
    source = await a_source(store)
    turn, begun = await store.begun(source)
    size = sum(map(len, elements(2, "more")))
    rewound = await store.commit(
        source, turn, begun.head, elements(1, "b"), rewind=Rewind(3, size, 1), revision=begun.revision
    )
    assert rewound == Settled("committed", 4)
    await store.turns.delivered(source, turn)
    restored, target = await restored_from(store, source), store.ref()
    assert await store.transfer.restore(target, restored, {}) == Created()
    await store.assert_consistent(target)
    copy, original = await read(store, target), await read(store, source)
    assert timeless(copy) == timeless(original)
    assert await store.sessions.messages(target, 0, 9) == await store.sessions.messages(source, 0, 9)
    for key in (3, 5, 7):
        assert await store.redis.type(target.keys[key]) == await store.redis.type(source.keys[key])
    before = await store.everything()
    assert await store.transfer.restore(target, restored, {}) == Created(repeated=True)
    assert await store.transfer.restore(target, replace(restored, nonce=new_nonce()), {}) == Exists()
    assert await store.everything() == before
    await store.committed(target, elements(1))


@on_valkey
async def test_an_empty_session_can_be_put_back_and_forked(store: Store) -> None:
    source = await store.created()
    target = store.ref()
    assert await store.transfer.restore(target, await restored_from(store, source), {}) == Created()
    await store.assert_consistent(target)
    forked = beside(store, target)
    assert await store.transfer.fork(target, forked, await fork_of(store, target)) == Created()
    await store.assert_consistent(forked)
    await store.committed(forked, elements(1))


@on_valkey
async def test_who_reads_learns_of_a_rewind_or_an_end_meanwhile(store: Store) -> None:
    source = await a_source(store)
    whole = await read(store, source)
    await store.committed(source, elements(1))
    assert await store.transfer.unchanged(source, whole)
    turn, begun = await store.begun(source)
    await store.commit(
        source, turn, begun.head, elements(1), rewind=Rewind(0, int(await store.field(source, "b")) - 70_000, 3)
    )
    assert not await store.transfer.unchanged(source, whole)
    whole = await read(store, source)
    await store.sessions.delete(source)
    assert not await store.transfer.unchanged(source, whole)


@on_real_servers
async def test_shares_are_put_back_with_the_session_and_go_with_it(store: Store) -> None:
    source = await a_source(store)
    shares = {"bob": "writer", "team/ann": "viewer", OWNER: "admin"}
    target, restored = store.ref(), await restored_from(store, source)
    assert await store.transfer.restore(target, restored, shares) == Created()
    assert await store.shares.of(target) == {"bob": "writer", "team/ann": "viewer"}
    assert [listed.session_id for listed in await store.index.page("bob", None, 9)] == [target.id]
    assert await store.shares.unshare(target, "bob") is True
    assert await store.transfer.restore(target, restored, shares) == Created(repeated=True)
    assert await store.shares.of(target) == {"team/ann": "viewer"}, "sent again, it undoes nothing"
    assert await store.sessions.delete(target) is True
    assert await store.index.page("team/ann", None, 9) == []


@on_valkey
async def test_who_has_enough_shared_with_it_is_left_out_and_told(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = await a_source(store)
    await store.shares.share(source, "bob", "viewer")
    monkeypatch.setattr("storage.transfer.SHARED_WITH_ONE_MAX", 1)
    target = store.ref()
    restored = await restored_from(store, source)
    made = await store.transfer.restore(target, restored, {"bob": "viewer", "cat": "writer"})
    assert made == Created(not_shared=("bob",))
    assert await store.shares.of(target) == {"cat": "writer"}
    assert [listed.session_id for listed in await store.index.page("bob", None, 9)] == [source.id]


@on_real_servers
async def test_grantees_read_and_fork_into_their_own_until_they_may_no_more(store: Store) -> None:
    source = await a_source(store)
    await store.shares.share(source, "bob", "viewer")
    theirs = store.keyspace.session(source.id, "bob")
    whole = await read(store, theirs)
    assert (whole.snapshot.role, whole.snapshot.name) == ("viewer", "")
    assert await store.transfer.unchanged(theirs, whole)
    target = beside(store, source, "bob")
    assert await store.transfer.fork(theirs, target, await fork_of(store, source)) == Created()
    await store.assert_consistent(target)
    assert (await read(store, target)).snapshot.owner == "bob"
    assert await store.shares.of(target) == {}, "a copy is nobody else's"
    await store.shares.unshare(source, "bob")
    assert not await store.transfer.unchanged(theirs, whole)
    assert await store.transfer.read(theirs) == Gone()
