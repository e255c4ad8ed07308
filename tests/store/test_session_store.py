"""Sessions: created once, looked at whole, gone all at once, and counted to the last byte throughout."""

import re

import pytest

from storage.keys import SessionRef, new_turn_id
from storage.results import Begun, Created, Exists, Gone, Stale, StoreUnavailable
from storage.scripts import ScriptRunner
from storage.sessions import Snapshot
from tests.store.harness import LEASE_MS, OWNER, TTL_MS, Store, elements

pytestmark = pytest.mark.anyio

SERVICE_EPOCH_S = 1_767_225_600


async def expired(store: Store, *, messages: int = 0) -> SessionRef:
    """A session that the server has let go and nobody has swept."""
    ref = await store.created(ttl_ms=TTL_MS)
    if messages:
        await store.committed(ref, elements(messages))
    await store.redis.hset(ref.keys[0], "ttl", "1")
    assert await store.sessions.touch(ref)
    await store.until_expired(ref)
    return ref


async def test_a_created_session_is_empty_and_indexed(store: Store) -> None:
    before = await store.now_ms()
    ref = await store.created(nonce="head_1", model="claude-x", system_json=b'"be brief"', title="T", name="chat")
    snapshot = await store.sessions.get(ref)
    assert isinstance(snapshot, Snapshot)
    assert before <= snapshot.created_ms <= await store.now_ms()
    assert snapshot == Snapshot(
        role="owner",
        name="chat",
        owner=OWNER,
        created_ms=snapshot.created_ms,
        accessed_ms=snapshot.created_ms,
        expires_ms=snapshot.created_ms + TTL_MS,
        absolute_end_ms=0,
        ttl_ms=TTL_MS,
        running_turn_id="",
        lease_remaining_ms=0,
        head="head_1",
        messages=0,
        size_bytes=0,
        turns=0,
        max_turns=0,
        model="claude-x",
        epoch_hash="",
        epoch_start=0,
        revision=1,
        input_tokens=0,
        output_tokens=0,
        cache_read_tokens=0,
        cache_written_tokens=0,
        system_json=b'"be brief"',
        title="T",
        metadata_json=b"{}",
    )
    await store.assert_consistent(ref)
    age_s = snapshot.created_ms // 1_000 - SERVICE_EPOCH_S
    assert await store.redis.hget(ref.keys[13], ref.id) == f"{ref.owner_tag} 0 0 {age_s}".encode()
    assert await store.counters(ref) == {"age_s": age_s}


async def test_a_repeated_create_of_one_nonce_writes_nothing(store: Store) -> None:
    ref = await store.created(nonce="head_1", title="first")
    before = await store.everything()
    assert await store.create(ref, "head_1", title="second") == Created(repeated=True)
    assert await store.everything() == before


async def test_another_create_of_the_same_id_is_refused(store: Store) -> None:
    ref = await store.created(nonce="head_1")
    before = await store.everything()
    assert await store.create(ref, "head_2") == Exists()
    assert await store.create(store.keyspace.session(ref.id, "bob"), "head_1") == Exists()
    assert await store.everything() == before


async def test_an_expired_session_is_swept_before_its_id_is_used_again(store: Store) -> None:
    ref = await expired(store, messages=3)
    raw = await ScriptRunner(store.redis).run(
        "create",
        ref.keys,
        [ref.id, OWNER, ref.owner_tag, "head_2", 1, 0, "", "", "", 0, "", "", "{}", 9, 9],
        budget_s=5,
    )
    assert raw == [b"STALE"]
    assert await store.create(ref) == Created()
    await store.assert_consistent(ref)
    assert await store.redis.llen(ref.keys[1]) == 0
    created_s = int(await store.field(ref, "cr")) // 1_000 - SERVICE_EPOCH_S
    assert await store.counters(ref) == {"age_s": created_s, "expired": 1}


async def test_create_gives_up_on_an_id_that_cannot_be_swept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.sessions.read_create", lambda _reply: Stale())
    with pytest.raises(StoreUnavailable) as caught:
        await store.create(store.ref())
    assert caught.value.outcome_unknown is False


async def test_get_changes_nothing_and_tells_the_running_turn(store: Store) -> None:
    ref = await store.created()
    turn, _ = await store.begun(ref)
    before = await store.everything()
    snapshot = await store.sessions.get(ref)
    assert isinstance(snapshot, Snapshot)
    assert snapshot.running_turn_id == turn
    assert 0 < snapshot.lease_remaining_ms <= LEASE_MS
    assert snapshot.expires_ms == await store.redis.pexpiretime(ref.keys[0])
    assert await store.everything() == before


async def test_a_turn_whose_lease_is_over_is_not_shown_as_running(store: Store) -> None:
    ref = await store.created()
    await store.begun(ref, lease_ms=1)
    await store.until_lease_is_over(ref)
    snapshot = await store.sessions.get(ref)
    assert isinstance(snapshot, Snapshot)
    assert (snapshot.running_turn_id, snapshot.lease_remaining_ms) == ("", 0)


async def test_a_lease_end_beyond_the_longest_lease_counts_as_over(store: Store) -> None:
    ref = await store.created()
    turn, _ = await store.begun(ref)
    await store.redis.hset(ref.keys[0], "lx", str(await store.now_ms() + 400_000))
    snapshot = await store.sessions.get(ref)
    assert isinstance(snapshot, Snapshot)
    assert snapshot.running_turn_id == ""
    begun = await store.begin(ref, new_turn_id())
    assert isinstance(begun, Begun)
    assert begun.dead_turn_id == turn


async def test_unknown_and_foreign_sessions_look_alike(store: Store) -> None:
    ref = await store.created()
    foreign = store.keyspace.session(ref.id, "bob")
    before = await store.everything()
    for absent in (foreign, store.ref()):
        assert await store.sessions.get(absent) == Gone()
        assert await store.sessions.touch(absent) is False
        assert await store.begin(absent, new_turn_id()) == Gone()
    assert await store.everything() == before


async def test_touch_starts_the_ttl_anew(store: Store) -> None:
    ref = await store.created()
    created_ms = int(await store.field(ref, "cr"))
    await store.until_ms(created_ms + 1)
    assert await store.sessions.touch(ref) is True
    assert await store.redis.pexpiretime(ref.keys[0]) > created_ms + TTL_MS
    assert int(await store.field(ref, "la")) > created_ms
    await store.assert_consistent(ref)


async def test_touch_does_not_cut_a_running_turn_short_nor_pass_the_absolute_end(store: Store) -> None:
    running = await store.created(ttl_ms=10_000)
    await store.begun(running)
    assert await store.sessions.touch(running) is True
    assert await store.redis.pttl(running.keys[0]) > LEASE_MS
    end_ms = await store.now_ms() + 5_000
    ending = await store.created(absolute_end_ms=end_ms)
    assert await store.sessions.touch(ending) is True
    assert await store.redis.pexpiretime(ending.keys[0]) == end_ms


async def test_messages_are_read_in_slices_oldest_first(store: Store) -> None:
    ref = await store.created()
    stored = elements(7)
    await store.committed(ref, stored)
    assert await store.sessions.messages(ref, 0, 3) == stored[:3]
    assert await store.sessions.messages(ref, 5, 10) == stored[5:]
    assert await store.sessions.messages(ref, 7, 1) == []


async def test_a_swept_session_leaves_only_the_count_of_its_end(store: Store) -> None:
    ref = await expired(store, messages=3)
    assert (await store.counters(ref))["messages"] == 3
    assert await store.capacity.sweep(ref) is True
    assert await store.counters(ref) == {"expired": 1}
    left = await store.everything()
    assert sorted(left) == sorted(ref.keys[14:16])
    assert await store.capacity.sweep(ref) is True
    assert await store.everything() == left


async def test_sweep_spares_a_session_that_lives_and_repairs_its_scores(store: Store) -> None:
    ref = await store.created()
    before = await store.everything()
    for index in (ref.keys[9], ref.keys[12]):
        await store.redis.zadd(index, {ref.id: 1})
    assert await store.capacity.sweep(ref) is False
    assert await store.everything() == before


async def test_sweep_with_another_owner_than_recorded_writes_nothing(store: Store) -> None:
    ref = await expired(store)
    before = await store.everything()
    assert await store.capacity.sweep(store.keyspace.session(ref.id, "bob")) is False
    assert await store.everything() == before


async def test_sweep_takes_its_counts_from_the_record_of_each_session(store: Store) -> None:
    """Two sessions of one owner in one bucket: the end of one leaves exactly the other's."""
    gone = await expired(store, messages=2)
    tag = gone.id[5:7]
    kept = store.keyspace.session(re.sub("^sess_..", f"sess_{tag}", store.keyspace.issue()), OWNER)
    assert await store.create(kept) == Created()
    await store.committed(kept, elements(5))
    assert await store.capacity.sweep(gone) is True
    created_s = int(await store.field(kept, "cr")) // 1_000 - SERVICE_EPOCH_S
    size = sum(map(len, elements(5)))
    assert await store.counters(kept) == {"messages": 5, "bytes": size, "age_s": created_s, "expired": 1}
