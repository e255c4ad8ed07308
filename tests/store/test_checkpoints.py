"""Checkpoints: one claim at a time, a compare-and-set, and what a rewind leaves of them."""

from typing import Any

import pytest

from storage.checkpoints import Account, Checkpoint, Cost, Wishes
from storage.keys import SessionRef, new_nonce
from storage.results import Claimed, Covered, Created, Denied, Gone, Held, Moved, Shared
from storage.sessions import Snapshot
from storage.turns import Rewind
from tests.store.harness import OWNER, Store, elements
from tests.store.test_transfer import beside, fork_of, restored_from

pytestmark = pytest.mark.anyio
on_real_servers = pytest.mark.parametrize("server_url", ["valkey", "cluster", "sixteen", "six"], indirect=True)
on_valkey = pytest.mark.parametrize("server_url", ["valkey"], indirect=True)

COST = Cost(7, 100, 7)
MESSAGES = elements(10)


async def grown(store: Store) -> SessionRef:
    """A session of ten messages."""
    ref = await store.created()
    await store.committed(ref, MESSAGES)
    return ref


async def claim(store: Store, ref: SessionRef, covers: int, **changes: Any) -> Any:
    fields: dict[str, Any] = {"head": await store.field(ref, "head"), "claim_ms": 60_000} | changes
    nonce = fields.pop("nonce", new_nonce())
    return await store.checkpoints.claim(ref, nonce, covers=covers, **fields)


async def covered(store: Store, ref: SessionRef, covers: int, summary: bytes = b"all") -> Claimed:
    """A checkpoint that has just been stored."""
    claimed = await claim(store, ref, covers)
    assert isinstance(claimed, Claimed)
    assert await store.checkpoints.store(ref, claimed, summary, COST) == claimed.version + 1
    return claimed


async def in_effect(store: Store, ref: SessionRef) -> Checkpoint | None:
    return (await store.turns.history(ref, int(await store.field(ref, "n")))).checkpoint


async def account(store: Store, ref: SessionRef) -> Account:
    snapshot = await store.sessions.get(ref)
    assert isinstance(snapshot, Snapshot)
    assert [snapshot] == await store.sessions.snapshots([ref])
    return snapshot.account


async def rewound(store: Store, ref: SessionRef, kept: int) -> None:
    """A turn that keeps so many of the ten messages and adds one."""
    dropped = sum(map(len, MESSAGES[kept:]))
    await store.committed(ref, elements(1, "again"), rewind=Rewind(kept, dropped, 0))


@on_real_servers
async def test_a_claim_is_one_s_alone_until_it_is_stored(store: Store) -> None:
    ref = await grown(store)
    first = await claim(store, ref, 4, nonce="n1")
    assert first == Claimed("n1", 0, 1)
    assert await claim(store, ref, 4, nonce="n1") == first, "sent again"
    held = await claim(store, ref, 6)
    assert isinstance(held, Held)
    assert 0 < held.remaining_ms <= 60_000
    assert await store.checkpoints.store(ref, first, b"four", COST) == 1
    assert await in_effect(store, ref) == Checkpoint(1, 4, b"four")
    assert await claim(store, ref, 4) == Covered()
    assert await claim(store, ref, 11) == Covered(), "more than there are"
    assert await claim(store, ref, 6, nonce="n2") == Claimed("n2", 1, 2)


@on_real_servers
async def test_a_checkpoint_sent_again_is_told_the_same_and_counted_once(store: Store) -> None:
    ref = await grown(store)
    claimed = await covered(store, ref, 4)
    before = await store.everything()
    assert await store.checkpoints.store(ref, claimed, b"another", COST) == 1
    assert await store.everything() == before
    told = await account(store, ref)
    assert told == Account(1, 4, told.created_ms, 7, 100, 7)
    assert abs(told.created_ms - await store.now_ms()) < 5_000
    await covered(store, ref, 6, b"six")
    assert (await account(store, ref)).input_tokens == 200
    await store.assert_consistent(ref)


@on_real_servers
async def test_a_claim_that_is_over_is_taken_over_and_its_holder_comes_too_late(store: Store) -> None:
    ref = await grown(store)
    slow = await claim(store, ref, 8, claim_ms=1)
    await store.until_ms(await store.now_ms() + 3)
    quick = await claim(store, ref, 4, nonce="n2")
    assert quick == Claimed("n2", 0, 2)
    assert await store.checkpoints.store(ref, slow, b"eight", COST) is None
    assert await in_effect(store, ref) is None
    assert await store.checkpoints.store(ref, quick, b"four", COST) == 1
    assert await store.checkpoints.store(ref, slow, b"eight", COST) is None
    assert await in_effect(store, ref) == Checkpoint(1, 4, b"four")


@on_valkey
async def test_a_claim_that_is_over_may_be_stored_as_long_as_nobody_has_taken_it(store: Store) -> None:
    ref = await grown(store)
    slow = await claim(store, ref, 8, claim_ms=1)
    await store.until_ms(await store.now_ms() + 3)
    assert await store.checkpoints.store(ref, slow, b"eight", COST) == 1


@on_valkey
async def test_a_claim_is_of_the_head_that_was_read(store: Store) -> None:
    ref = await grown(store)
    head = await store.field(ref, "head")
    await store.committed(ref, elements(1))
    moved = await claim(store, ref, 4, head=head)
    assert moved == Moved(await store.field(ref, "head"))


@on_valkey
async def test_a_clock_that_was_ahead_leaves_no_claim_for_ever(store: Store) -> None:
    ref = await grown(store)
    await claim(store, ref, 4)
    ahead = await store.now_ms() + 1_000_000
    await store.redis.hset(ref.keys[0], "kl", f"n1 {ahead} 4")
    assert isinstance(await claim(store, ref, 4), Claimed)


@on_real_servers
async def test_turns_go_on_under_a_claim(store: Store) -> None:
    ref = await grown(store)
    claimed = await claim(store, ref, 4)
    await store.committed(ref, elements(2, "new"))
    turn, begun = await store.begun(ref)
    assert await store.checkpoints.store(ref, claimed, b"four", COST) == 1
    await store.commit(ref, turn, begun.head, elements(2, "newer"), revision=begun.revision)
    assert await in_effect(store, ref) == Checkpoint(1, 4, b"four")


@on_real_servers
@pytest.mark.parametrize(("kept", "checkpoint", "stored"), [(3, False, False), (4, True, False), (5, True, False)])
async def test_a_rewind_takes_what_it_cuts_into(store: Store, kept: int, checkpoint: bool, stored: bool) -> None:
    ref = await grown(store)
    await covered(store, ref, 4, b"four")
    claimed = await claim(store, ref, 8)
    await rewound(store, ref, kept)
    assert (await in_effect(store, ref) is not None) is checkpoint
    told = await account(store, ref)
    assert (told.version, told.covers) == (1, 4 if checkpoint else 0)
    assert (await store.checkpoints.store(ref, claimed, b"eight", COST) is not None) is stored
    assert (await in_effect(store, ref) is not None) is checkpoint


@on_valkey
async def test_a_rewind_behind_what_is_covered_and_claimed_leaves_both(store: Store) -> None:
    ref = await grown(store)
    await covered(store, ref, 4, b"four")
    claimed = await claim(store, ref, 8)
    await rewound(store, ref, 8)
    assert await store.checkpoints.store(ref, claimed, b"eight", COST) == 2
    assert await in_effect(store, ref) == Checkpoint(2, 8, b"eight")


@on_valkey
async def test_the_version_counts_on_behind_a_rewind(store: Store) -> None:
    """An epoch that was begun with version 1 is another than one with what is stored later."""
    ref = await grown(store)
    await covered(store, ref, 4)
    await rewound(store, ref, 3)
    await covered(store, ref, 2, b"two")
    assert await in_effect(store, ref) == Checkpoint(2, 2, b"two")


@on_real_servers
async def test_it_takes_the_role_writer_to_claim(store: Store) -> None:
    ref = await grown(store)
    head = await store.field(ref, "head")
    for role, told in (("viewer", Denied("viewer")), ("writer", Claimed("n1", 0, 1))):
        assert isinstance(await store.shares.share(ref, "bob", role), Shared)  # type: ignore[arg-type]
        bob = store.keyspace.session(ref.id, "bob")
        assert await store.checkpoints.claim(bob, "n1", head=head, covers=4, claim_ms=9_000) == told
    carol = store.keyspace.session(ref.id, "carol")
    assert await store.checkpoints.claim(carol, "n2", head=head, covers=4, claim_ms=9_000) == Gone()


@on_valkey
async def test_what_is_deleted_takes_its_checkpoint_along(store: Store) -> None:
    ref = await grown(store)
    await covered(store, ref, 4)
    claimed = await claim(store, ref, 8)
    assert await store.sessions.delete(ref) is True
    assert await store.checkpoints.store(ref, claimed, b"eight", COST) is None
    assert await store.create(ref) == Created()
    assert await account(store, ref) == Account()
    assert await in_effect(store, ref) is None


@on_valkey
async def test_a_claim_is_not_that_of_a_later_session_of_the_same_name(store: Store) -> None:
    ref = await grown(store)
    late = await claim(store, ref, 8)
    await store.sessions.delete(ref)
    await store.create(ref)
    await store.committed(ref, MESSAGES)
    current = await claim(store, ref, 4)
    assert (current.version, current.generation) == (late.version, late.generation)
    assert await store.checkpoints.store(ref, late, b"of another conversation", COST) is None
    assert await store.checkpoints.store(ref, current, b"four", COST) == 1


@on_real_servers
@pytest.mark.parametrize("kept", [3, 4])
async def test_a_fork_has_the_checkpoint_if_it_has_all_that_is_covered(store: Store, kept: int) -> None:
    ref = await grown(store)
    await covered(store, ref, 4, b"four")
    await claim(store, ref, 8)
    forked = beside(store, ref, OWNER)
    assert await store.transfer.fork(ref, forked, await fork_of(store, ref, messages=kept)) == Created()
    there = kept == 4
    assert await in_effect(store, forked) == (Checkpoint(1, 4, b"four") if there else None)
    told = await account(store, forked)
    assert (told.version, told.covers, told.input_tokens) == (1, 4 if there else 0, 0)
    assert await store.field(forked, "kl") == "", "a claim is of the source"
    assert (await account(store, ref)).covers == 4


@on_real_servers
async def test_a_session_is_put_back_with_its_checkpoint(store: Store) -> None:
    ref = await store.created(wishes=Wishes(5_000, "keep names"))
    await store.committed(ref, MESSAGES)
    await covered(store, ref, 4, b"four")
    target = store.ref()
    assert await store.transfer.restore(target, await restored_from(store, ref), {}) == Created()
    assert await in_effect(store, target) == await in_effect(store, ref)
    assert await account(store, target) == await account(store, ref)
    copy = await store.sessions.get(target)
    assert isinstance(copy, Snapshot)
    assert copy.wishes == Wishes(5_000, "keep names")


@on_valkey
async def test_what_a_server_has_evicted_is_not_made_again_by_a_checkpoint(store: Store) -> None:
    ref = await grown(store)
    claimed = await claim(store, ref, 4)
    await store.redis.delete(ref.keys[4])
    assert await store.checkpoints.store(ref, claimed, b"four", COST) is None
    assert await store.redis.exists(ref.keys[4]) == 0, "it would have no end of life, and be a later session's"
    assert await store.field(ref, "ku") == "0"


@on_valkey
async def test_a_session_that_is_older_than_checkpoints_is_as_one_without(store: Store) -> None:
    ref = await grown(store)
    await store.redis.hdel(ref.keys[0], "kv", "ku", "kg", "kl", "kc", "kt", "ki", "ko")
    await store.redis.hdel(ref.keys[4], "tokens_target", "instructions")
    assert await account(store, ref) == Account()
    await rewound(store, ref, 9)
    await covered(store, ref, 4)
    assert (await account(store, ref)).covers == 4


@on_valkey
async def test_wishes_are_patched(store: Store) -> None:
    ref = await store.created()
    await store.sessions.patch(ref, {"tokens_target": 2_000, "instructions": "names"}, expected_revision=None)
    assert (await store.turns.history(ref, 0)).wishes == Wishes(2_000, "names")
