"""Room for sessions: pages and counts are exact at every step, caps hold, and only those go that may."""

import asyncio

import pytest

from storage.index import Counts, Listed
from storage.keys import SessionRef
from storage.results import Created, Full, Gone, StoreUnavailable
from storage.scripts import ScriptRunner
from storage.sessions import Snapshot
from tests.store.harness import OWNER, Store, elements

pytestmark = pytest.mark.anyio


async def aged(store: Store, count: int, owner: str = OWNER) -> list[SessionRef]:
    """Sessions with different times of access, the oldest first."""
    refs = []
    for _ in range(count):
        ref = store.ref(owner)
        assert await store.create(ref) == Created()
        await store.until_ms(int(await store.field(ref, "la")) + 1)
        refs.append(ref)
    return refs


async def there(store: Store, refs: list[SessionRef]) -> list[bool]:
    return [isinstance(await store.sessions.get(ref), Snapshot) for ref in refs]


async def let_go(store: Store, ref: SessionRef) -> None:
    """The server lets the session expire now; nobody sweeps it."""
    await store.redis.hset(ref.keys[0], "ttl", "1")
    await store.sessions.touch(ref)
    await store.until_expired(ref)


async def counts(store: Store, owner: str | None = OWNER) -> Counts:
    """The counts, after checking the sums against what the buckets hold."""
    found = await store.index.counts(owner)
    seconds = (await store.now_ms()) // 1_000
    everything = await store.everything()
    sizes = [
        record.split()
        for key, (held, _) in everything.items()
        if key.endswith(":sz")
        for record in held.values()
        if owner is None or record.split()[0].decode() == store.keyspace.owner_tag(owner)
    ]
    assert found.total == len(sizes)
    assert found.size_bytes == sum(int(size[1]) for size in sizes)
    assert found.messages == sum(int(size[2]) for size in sizes)
    ages = sum(seconds - 1_767_225_600 - int(size[3]) for size in sizes)
    assert abs(found.age_s - ages) <= len(sizes)
    return found


# pages and counts


async def test_pages_show_every_session_once_last_accessed_first(store: Store) -> None:
    refs = await aged(store, 5)
    await aged(store, 2, "bob")
    await store.sessions.touch(refs[1])
    expected = [ref.id for ref in (refs[1], refs[4], refs[3], refs[2], refs[0])]
    shown: list[Listed] = []
    while page := await store.index.page(OWNER, shown[-1] if shown else None, 2):
        shown += page
    assert [one.session_id for one in shown] == expected
    assert await store.index.page("carol", None, 10) == []


async def test_pages_go_on_within_one_millisecond(store: Store) -> None:
    refs = await aged(store, 7)
    for ref in refs:
        await store.redis.zadd(ref.keys[11], {ref.id: 1_000})
    shown: list[Listed] = []
    while page := await store.index.page(OWNER, shown[-1] if shown else None, 2):
        shown += page
    assert [one.session_id for one in shown] == sorted((ref.id for ref in refs), reverse=True)


async def test_counts_are_exact_at_every_step(store: Store) -> None:
    assert (await counts(store)).total == 0
    name = store.keyspace.session(store.keyspace.named(OWNER, "chat"), OWNER)
    await store.create(name)
    other, foreign = await store.created(), store.ref("bob")
    await store.create(foreign)
    await store.committed(name, elements(4))
    await store.committed(foreign, elements(2))
    found = await counts(store)
    assert (found.total, found.expired_unswept, found.messages) == (2, 0, 4)
    assert (await counts(store, None)).messages == 6

    await let_go(store, name)
    found = await counts(store)
    assert (found.total, found.expired_unswept, found.messages, found.expired) == (2, 1, 4, 0)
    await store.create(name)  # of the same name, before anybody swept
    found = await counts(store)
    assert (found.total, found.expired_unswept, found.messages, found.expired) == (2, 0, 0, 1)
    await store.sessions.delete(other)
    found = await counts(store)
    assert (found.total, found.deleted, found.expired, found.evicted) == (1, 1, 1, 0)
    found = await counts(store, None)
    assert (found.total, found.deleted, found.expired, found.messages) == (2, 1, 1, 2)
    assert store.ends == ["expired"]


async def test_snapshots_and_labels_of_many_sessions(store: Store) -> None:
    there_, busy, gone = await store.created(title="T"), await store.created(), await store.created(ttl_ms=1)
    foreign = store.keyspace.session(there_.id, "bob")
    turn, _ = await store.begun(busy)
    await store.until_expired(gone)
    found = await store.sessions.snapshots([there_, busy, gone, foreign, store.ref()])
    assert found[0] == await store.sessions.get(there_)
    assert found[1] is not None
    assert found[1].running_turn_id == turn
    assert found[2:] == [None, None, None]
    assert await store.sessions.labels([there_, gone]) == [("T", b"{}"), ("", b"")]
    assert await store.sessions.snapshots([]) == []


# evict


async def evict(store: Store, ref: SessionRef, score: int | None = None) -> list[bytes]:
    accessed = int(await store.redis.zscore(ref.keys[10], ref.id)) if score is None else score
    runner = ScriptRunner(store.redis)
    return await runner.run("evict", ref.keys, (ref.id, ref.owner_tag, accessed), budget_s=5)


async def test_evict_takes_only_what_the_caller_saw(store: Store) -> None:
    ref = await store.created()
    accessed = int(await store.field(ref, "la"))
    busy = await store.created()
    await store.begun(busy)
    before = await store.everything()
    assert await evict(store, ref, accessed - 1) == [b"SKIP"]
    assert await evict(store, store.ref(), accessed) == [b"SKIP"]
    assert await evict(store, busy) == [b"BUSY"]
    assert await evict(store, store.keyspace.session(ref.id, "bob"), accessed) == [b"RETRY"]
    assert await store.everything() == before
    assert await evict(store, ref, accessed) == [b"EVICTED"]
    assert await store.sessions.get(ref) == Gone()
    assert (await counts(store)).evicted == 1


async def test_a_session_with_an_abandoned_turn_may_be_evicted(store: Store) -> None:
    ref = await store.created()
    await store.begun(ref, lease_ms=1)
    await store.until_lease_is_over(ref)
    assert await evict(store, ref) == [b"EVICTED"]


async def test_what_expired_unswept_counts_as_expired_even_if_evicted(store: Store) -> None:
    ref = await store.created()
    await let_go(store, ref)
    assert await evict(store, ref) == [b"EXPIRED"]
    found = await counts(store)
    assert (found.total, found.expired, found.evicted) == (0, 1, 0)


# caps


async def test_at_the_owners_cap_the_owners_oldest_goes(store: Store) -> None:
    foreign = (await aged(store, 1, "bob"))[0]
    refs = await aged(store, 3)
    await store.sessions.touch(refs[0])
    capped = store.capped(per_owner_max=3)
    new = await capped.created()
    assert await there(store, [*refs, new, foreign]) == [True, False, True, True, True]
    found = await counts(store)
    assert (found.total, found.evicted) == (3, 1)
    assert capped.ends == ["evicted"]


async def test_what_expired_goes_before_what_lives(store: Store) -> None:
    refs = await aged(store, 3)
    await let_go(store, refs[2])
    capped = store.capped(per_owner_max=3)
    await capped.created()
    assert await there(store, refs) == [True, True, False]
    assert capped.ends == ["expired"]
    found = await counts(store)
    assert (found.total, found.expired, found.evicted) == (3, 1, 0)


async def test_at_the_global_cap_the_creators_own_goes_first(store: Store) -> None:
    foreign = await aged(store, 2, "bob")
    own = await aged(store, 1)
    capped = store.capped(total_max=3)
    await capped.created()
    assert await there(store, [*foreign, *own]) == [True, True, False]


async def test_at_the_global_cap_a_creator_without_any_takes_the_oldest_of_all(store: Store) -> None:
    refs = await aged(store, 2, "bob") + await aged(store, 1, "carol")
    await store.sessions.touch(refs[0])
    await store.capped(total_max=3).created()
    assert await there(store, refs) == [True, False, True]
    found = await counts(store, None)
    assert (found.total, found.evicted) == (3, 1)


async def test_a_session_with_a_running_turn_is_never_taken(store: Store) -> None:
    refs = await aged(store, 6)
    for ref in refs[:5]:
        await store.begun(ref)
        await store.redis.zadd(ref.keys[11], {ref.id: 1})  # as if begun long ago
        await store.redis.zadd(ref.keys[10], {ref.id: 1})
    capped = store.capped(per_owner_max=6)
    new = await capped.created()
    assert await there(store, [*refs, new]) == [True] * 5 + [False, True]
    await store.begun(new)
    before = await store.everything()
    assert await store.capped(per_owner_max=6).create(store.ref()) == Full("owner")
    assert await store.everything() == before


async def test_all_victims_busy_is_full_even_if_others_could_go(store: Store) -> None:
    await aged(store, 2, "bob")
    own = await store.created()
    await store.begun(own)
    assert await store.capped(total_max=3).create(store.ref()) == Full("all")


async def test_a_name_created_again_at_the_cap_takes_nobodys_place(store: Store) -> None:
    refs = await aged(store, 2)
    name = store.keyspace.session(store.keyspace.named(OWNER, "chat"), OWNER)
    await store.create(name)
    await let_go(store, name)
    capped = store.capped(per_owner_max=3)
    assert await capped.create(name) == Created()
    assert await there(store, [*refs, name]) == [True, True, True]
    assert (await counts(store)).evicted == 0


async def test_creations_side_by_side_stay_within_the_caps(store: Store) -> None:
    capped = store.capped(per_owner_max=5, total_max=8)
    owners = ["alice", "bob", "carol"]
    refs = [store.ref(owners[number % 3]) for number in range(30)]
    made = await asyncio.gather(*(capped.create(ref) for ref in refs))
    assert set(made) <= {Created(), Full("owner"), Full("all")}
    found = await counts(store, None)
    if store.keyspace.buckets == 1:
        assert found.total <= 8
        for owner in owners:
            assert (await counts(store, owner)).total <= 5
    # With more buckets, what was created within a second may be over; the next creations make room again.
    assert found.total <= 30
    assert found.total + found.evicted == made.count(Created())


async def test_an_overshoot_does_not_last(store: Store) -> None:
    await aged(store, 6)
    capped = store.capped(per_owner_max=3)
    new = await capped.created()
    assert (await counts(store)).total <= 4
    assert await there(store, [new]) == [True]


async def test_sums_a_second_old_cost_nobody_their_session(store: Store) -> None:
    refs = await aged(store, 3)
    capped = store.capped(per_owner_max=4)
    last = await capped.created()
    for ref in (refs[0], refs[1]):
        await store.sessions.delete(ref)
    await capped.created()
    assert await there(store, [refs[2], last]) == [True, True]
    assert capped.ends == []


# sweep


async def test_a_bucket_is_swept_by_one_an_interval(store: Store) -> None:
    refs = await aged(store, 3)
    kept = refs.pop()
    for ref in refs:
        await let_go(store, ref)
    swept = [await store.capacity.sweep_bucket(bucket, interval_ms=60_000) for bucket in range(store.keyspace.buckets)]
    assert sum(count or 0 for count in swept) == 2
    assert None not in swept
    for bucket in range(store.keyspace.buckets):
        assert await store.capped().capacity.sweep_bucket(bucket, interval_ms=60_000) is None
    assert await there(store, [kept]) == [True]
    found = await counts(store)
    assert (found.total, found.expired_unswept, found.expired) == (1, 0, 2)
    assert found.sweeps == store.keyspace.buckets


async def test_the_right_to_sweep_comes_back_with_the_next_interval(store: Store) -> None:
    lock = store.keyspace.index(0, "").sweep_lock
    assert await store.capacity.sweep_bucket(0, interval_ms=60_000) == 0
    assert 0 < await store.redis.pttl(lock) <= 60_000
    await store.redis.pexpire(lock, 1)
    await store.until_ms(await store.now_ms() + 5)
    assert await store.capacity.sweep_bucket(0, interval_ms=60_000) == 0


async def test_a_right_to_sweep_that_would_last_longer_than_an_interval_is_over(store: Store) -> None:
    lock = store.keyspace.index(0, "").sweep_lock
    assert await store.capacity.sweep_bucket(0, interval_ms=60_000) == 0
    await store.redis.pexpire(lock, 61_000)
    assert await store.capacity.sweep_bucket(0, interval_ms=60_000) == 0
    assert await store.capacity.sweep_bucket(0, interval_ms=60_000) is None


async def test_a_sweep_that_was_cut_short_is_finished_by_the_next(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = await aged(store, 4)
    for ref in refs:
        await let_go(store, ref)
    whole = store.capacity.sweep
    seen: list[SessionRef] = []

    async def dies(ref: SessionRef) -> bool:
        seen.append(ref)
        if len(seen) == 3:
            raise StoreUnavailable("gone", outcome_unknown=True)
        return await whole(ref)

    with monkeypatch.context() as patched:
        patched.setattr(store.capacity, "sweep", dies)
        with pytest.raises(StoreUnavailable):
            for bucket in range(store.keyspace.buckets):
                await store.capacity.sweep_bucket(bucket, interval_ms=1)
    assert (await counts(store)).total == 2
    await store.until_ms(await store.now_ms() + 5)
    for bucket in range(store.keyspace.buckets):
        await store.capacity.sweep_bucket(bucket, interval_ms=1)
    found = await counts(store)
    assert (found.total, found.expired) == (0, 4)


async def test_a_sweep_takes_more_than_one_batch_and_repairs_what_lives(store: Store) -> None:
    alive = await store.created()
    for key in (alive.keys[9], alive.keys[12]):
        await store.redis.zadd(key, {alive.id: 1})
    refs = [await store.created(ttl_ms=1) for _ in range(110)]
    await store.until_expired(refs[-1])
    for bucket in range(store.keyspace.buckets):
        await store.capacity.sweep_bucket(bucket, interval_ms=60_000)
    await store.assert_consistent(alive)
    found = await counts(store)
    assert (found.total, found.expired) == (1, 110)
