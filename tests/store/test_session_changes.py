"""Delete, patch, append: what changes a session without Claude."""

import asyncio
from typing import Any

import pytest

from storage.keys import SessionRef, new_turn_id
from storage.results import (
    Begun,
    Busy,
    Corrupt,
    Fate,
    Fenced,
    Gone,
    Lost,
    Patched,
    RevisionConflict,
    Settled,
    TurnsFull,
)
from storage.sessions import Snapshot
from storage.turns import History, Request
from tests.store.harness import TTL_MS, Store, elements

pytestmark = pytest.mark.anyio


async def snapshot(store: Store, ref: SessionRef) -> Snapshot:
    found = await store.sessions.get(ref)
    assert isinstance(found, Snapshot)
    return found


async def append(store: Store, ref: SessionRef, messages: list[bytes], **changes: Any) -> Any:
    fields: dict[str, Any] = {"turn_id": new_turn_id(), "turns_max": 1_000, "request": Request("append")} | changes
    if "head" not in fields:
        fields["head"] = await store.field(ref, "head")
    turn_id = fields.pop("turn_id")
    return await store.turns.append(ref, turn_id, record=f"record {turn_id}".encode(), elements=messages, **fields)


# delete


async def test_a_deleted_session_leaves_only_the_count_of_its_end(store: Store) -> None:
    ref = await store.created(title="T")
    await store.committed(ref, elements(3))
    assert await store.sessions.delete(ref) is True
    assert await store.sessions.get(ref) == Gone()
    assert await store.sessions.delete(ref) is False
    assert await store.counters(ref) == {"deleted": 1}
    assert sorted(await store.everything()) == sorted(ref.keys[14:16])


async def test_unknown_expired_and_foreign_sessions_cannot_be_changed(store: Store) -> None:
    ref = await store.created()
    expired = await store.created(ttl_ms=1)
    await store.until_expired(expired)
    before = await store.everything()
    for absent in (store.keyspace.session(ref.id, "bob"), store.ref(), expired):
        assert await store.sessions.delete(absent) is False
        assert await store.sessions.patch(absent, {"title": "mine"}, expected_revision=None) == Gone()
        assert await append(store, absent, elements(1), head="head_1") == Gone()
    assert await store.everything() == before


async def test_a_running_turn_of_a_deleted_session_finds_it_gone(store: Store) -> None:
    ref = await store.created()
    turn, begun = await store.begun(ref)
    assert await store.sessions.delete(ref) is True
    assert await store.renew(ref, turn) == Gone()
    assert await store.commit(ref, turn, begun.head, elements(1)) == Gone()
    assert await store.abort(ref, turn) == Gone()
    assert await store.counters(ref) == {"deleted": 1}


async def test_a_running_turn_stores_nothing_in_the_next_session_of_the_same_id(store: Store) -> None:
    ref = await store.created()
    turn, begun = await store.begun(ref)
    await store.sessions.delete(ref)
    await store.create(ref)
    assert await store.renew(ref, turn) == Lost()
    assert await store.commit(ref, turn, begun.head, elements(1)) == Fenced()
    await store.assert_consistent(ref)
    assert (await snapshot(store, ref)).messages == 0


async def test_a_session_is_deleted_once_however_many_try(store: Store) -> None:
    ref = await store.created()
    deleted = await asyncio.gather(*(store.sessions.delete(ref) for _ in range(5)))
    assert [deleted.count(True), deleted.count(False)] == [1, 4]
    assert await store.counters(ref) == {"deleted": 1}


# patch


async def test_a_patch_changes_what_it_names_and_keeps_the_rest(store: Store) -> None:
    ref = await store.created(model="claude-x", title="T", system_json=b'"old"', max_turns=5)
    await store.committed(ref, elements(2))
    before = await snapshot(store, ref)
    await store.until_ms(before.accessed_ms + 1)
    assert await store.sessions.patch(ref, {"title": "é"}, expected_revision=before.revision) == Patched(2)
    after = await snapshot(store, ref)
    assert (after.title, after.revision) == ("é", 2)
    assert after.accessed_ms > before.accessed_ms
    assert (after.model, after.system_json, after.max_turns) == ("claude-x", b'"old"', 5)
    assert (after.messages, after.turns, after.head) == (before.messages, before.turns, before.head)
    await store.assert_consistent(ref)


async def test_a_patch_may_change_everything_it_may_change_at_once(store: Store) -> None:
    ref = await store.created()
    changes = {
        "model": "claude-y",
        "max_turns": 7,
        "ttl": 1_000_000,
        "system": b'"new"',
        "title": "N",
        "metadata": b'{"a":"b"}',
    }
    assert await store.sessions.patch(ref, changes, expected_revision=None) == Patched(2)
    after = await snapshot(store, ref)
    assert (after.model, after.max_turns, after.ttl_ms) == ("claude-y", 7, 1_000_000)
    assert (after.system_json, after.title, after.metadata_json) == (b'"new"', "N", b'{"a":"b"}')
    assert after.expires_ms == after.accessed_ms + 1_000_000
    await store.assert_consistent(ref)


async def test_a_patch_of_another_revision_changes_nothing(store: Store) -> None:
    ref = await store.created()
    assert await store.sessions.patch(ref, {"title": "first"}, expected_revision=1) == Patched(2)
    before = await store.everything()
    assert await store.sessions.patch(ref, {"title": "late"}, expected_revision=1) == RevisionConflict(2)
    assert await store.everything() == before
    won = await asyncio.gather(*(store.sessions.patch(ref, {"title": str(n)}, expected_revision=2) for n in range(5)))
    assert sorted(won, key=repr) == [Patched(3)] + [RevisionConflict(3)] * 4


async def test_a_patch_of_nothing_writes_nothing(store: Store) -> None:
    ref = await store.created()
    before = await store.everything()
    assert await store.sessions.patch(ref, {}, expected_revision=1) == Patched(1)
    assert await store.sessions.patch(ref, {}, expected_revision=9) == RevisionConflict(1)
    assert await store.everything() == before


async def test_a_patch_during_a_turn_survives_its_commit(store: Store) -> None:
    ref = await store.created(model="claude-x")
    turn, begun = await store.begun(ref)
    changes = {"model": "claude-y", "system": b'"patched"'}
    assert await store.sessions.patch(ref, changes, expected_revision=None) == Patched(2)
    settled = await store.commit(
        ref, turn, begun.head, elements(2), model="claude-z", system_json=b'"the turn\'s"', revision=begun.revision
    )
    assert settled == Settled("committed", 1)
    after = await snapshot(store, ref)
    assert (after.model, after.system_json, after.revision) == ("claude-y", b'"patched"', 2)
    assert after.messages == 2


async def test_a_turn_that_changes_model_or_system_prompt_moves_the_revision(store: Store) -> None:
    ref = await store.created(model="claude-x", system_json=b'"old"')
    await store.committed(ref, elements(1), model="claude-x")
    assert (await snapshot(store, ref)).revision == 1
    await store.committed(ref, elements(1), model="claude-y")
    assert (await snapshot(store, ref)).revision == 2
    await store.committed(ref, elements(1), model="claude-y", system_json=b'"new"')
    assert (await snapshot(store, ref)).revision == 3
    assert await store.sessions.patch(ref, {"system": b'"lost"'}, expected_revision=2) == RevisionConflict(3)


async def test_a_patched_ttl_does_not_cut_a_running_turn_short(store: Store) -> None:
    ref = await store.created()
    await store.begun(ref)
    await store.sessions.patch(ref, {"ttl": 1_000}, expected_revision=None)
    assert await store.redis.pttl(ref.keys[0]) > 60_000
    await store.assert_consistent(ref)


# append


async def test_appended_messages_are_history_and_no_turn_of_the_callers(store: Store) -> None:
    ref = await store.created(max_turns=1)
    first = await store.committed(ref, elements(2, "a"))
    turn = new_turn_id()
    assert await append(store, ref, elements(3, "b"), turn_id=turn, head=first) == Settled("committed", 2)
    assert await store.turns.history(ref, 5) == History(elements(2, "a") + elements(3, "b"), b"", b"")
    after = await snapshot(store, ref)
    assert (after.messages, after.turns, after.head) == (5, 1, turn)
    counted = await store.counters(ref)
    assert (counted["messages"], counted["bytes"]) == (5, after.size_bytes)
    assert await store.turns.records(ref, 1, 2) == [f"record {first}".encode(), f"record {turn}".encode()]
    assert await store.turns.fates(ref, [first, turn, "turn_x"]) == [
        Fate("committed", 1, delivered=False),
        Fate("committed", 2, delivered=False),
        None,
    ]
    await store.assert_consistent(ref)


async def test_an_append_that_is_sent_again_is_told_its_verdict(store: Store) -> None:
    ref = await store.created()
    turn, head = new_turn_id(), await store.field(ref, "head")
    assert await append(store, ref, elements(2), turn_id=turn, head=head) == Settled("committed", 1)
    before = await store.everything()
    assert await append(store, ref, elements(2), turn_id=turn, head=head) == Settled("committed", 1)
    assert await store.everything() == before
    assert await store.abort(ref, turn) == Settled("committed", 1)


async def test_an_append_on_another_head_or_into_a_running_turn_writes_nothing(store: Store) -> None:
    ref = await store.created()
    before = await store.everything()
    assert await append(store, ref, elements(1), head="head_of_another") == Fenced()
    assert await store.everything() == before
    turn, _ = await store.begun(ref)
    before = await store.everything()
    busy = await append(store, ref, elements(1))
    assert isinstance(busy, Busy)
    assert busy.turn_id == turn
    assert await store.everything() == before


async def test_an_append_finds_a_dead_turn(store: Store) -> None:
    ref = await store.created()
    dead, begun = await store.begun(ref, lease_ms=1)
    await store.until_lease_is_over(ref)
    assert await append(store, ref, elements(1)) == Settled("committed", 2)
    assert await store.commit(ref, dead, begun.head, elements(1)) == Settled("dead", 1)
    assert (await snapshot(store, ref)).messages == 1
    await store.assert_consistent(ref)


async def test_an_aborted_append_is_refused_when_it_arrives(store: Store) -> None:
    ref = await store.created()
    turn = new_turn_id()
    assert await store.abort(ref, turn) == Settled("aborted", 0)
    assert await append(store, ref, elements(1), turn_id=turn) == Settled("aborted", 0)
    assert (await snapshot(store, ref)).messages == 0


async def test_appends_are_bounded_like_turns(store: Store) -> None:
    ref = await store.created()
    await append(store, ref, elements(1))
    before = await store.everything()
    assert await append(store, ref, elements(1), turns_max=1) == TurnsFull()
    await store.redis.hset(ref.keys[0], "ax", str(await store.now_ms()))
    assert await append(store, ref, elements(1)) == Gone()
    await store.redis.hset(ref.keys[0], "ax", "0")
    assert await store.everything() == before


async def test_nothing_is_appended_to_a_history_with_a_part_missing(store: Store) -> None:
    ref = await store.created()
    await store.committed(ref, elements(2))
    await store.redis.delete(ref.keys[1])
    before = await store.everything()
    assert await append(store, ref, elements(1)) == Corrupt()
    assert await store.everything() == before


async def test_the_creating_turn_cannot_take_what_was_appended(store: Store) -> None:
    creating = new_turn_id()
    ref = await store.created(creating_turn_id=creating)
    await append(store, ref, elements(1))
    assert await store.abort(ref, creating) == Settled("aborted", 0)
    assert (await snapshot(store, ref)).messages == 1


async def test_many_messages_are_appended_at_once_and_count_exactly(store: Store) -> None:
    ref = await store.created()
    await append(store, ref, elements(1_201))
    assert (await snapshot(store, ref)).messages == 1_201
    await store.assert_consistent(ref)


# turns


async def test_turns_are_found_by_number_and_by_id(store: Store) -> None:
    ref = await store.created()
    done = await store.committed(ref, elements(1))
    failed, _ = await store.begun(ref)
    await store.abort(ref, failed)
    never = new_turn_id()
    await store.abort(ref, never)
    running, begun = await store.begun(ref)
    assert isinstance(begun, Begun)
    assert await store.turns.count(ref) == 3
    assert [await store.turns.number(ref, turn) for turn in (done, failed, running)] == [1, 2, 3]
    assert [await store.turns.number(ref, turn) for turn in (never, "turn_x", "")] == [None] * 3
    assert await store.turns.fates(ref, [done, failed, running]) == [
        Fate("committed", 1, delivered=False),
        Fate("aborted", 2, delivered=False),
        None,
    ]
    assert await store.turns.records(ref, 2, 3) == [f"pending {failed}".encode(), f"pending {running}".encode()]
    assert await store.turns.records(ref, 3, 2) == []
    assert await store.turns.fates(ref, []) == []
    assert (await snapshot(store, ref)).ttl_ms == TTL_MS
