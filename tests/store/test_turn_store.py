"""Turns: one at a time, one verdict each, and history only through the head that begin answered."""

from typing import Any, Literal

import pytest

from storage.keys import new_turn_id
from storage.results import (
    Begun,
    Busy,
    Corrupt,
    Fenced,
    Gone,
    Live,
    Lost,
    Patched,
    Removed,
    Renewed,
    Settled,
    StoreUnavailable,
    TurnsFull,
    UnknownTurn,
)
from storage.sessions import Snapshot
from storage.turns import History, Usage
from tests.store.harness import LEASE_MS, TTL_MS, Store, elements

pytestmark = pytest.mark.anyio

GRACE_MS = 60_000


# begin


async def test_the_first_turn_gets_number_one_and_the_head_of_creation(store: Store) -> None:
    ref = await store.created(nonce="head_1", model="claude-x")
    accessed_ms = int(await store.field(ref, "la"))
    await store.until_ms(accessed_ms + 1)
    turn, begun = await store.begun(ref)
    assert int(await store.field(ref, "la")) > accessed_ms
    assert begun == Begun(
        number=1,
        head="head_1",
        messages=0,
        size_bytes=0,
        turns=0,
        model="claude-x",
        epoch_hash="",
        epoch_start=0,
        revision=1,
        dead_turn_id="",
    )
    assert await store.redis.lrange(ref.keys[2], 0, -1) == [f"pending {turn}".encode()]
    assert await store.field(ref, "lr") == "r1"
    await store.assert_consistent(ref)


async def test_the_same_turn_again_gets_the_same_answer(store: Store) -> None:
    ref = await store.created()
    turn, begun = await store.begun(ref, lease_ms=1_000)
    await store.redis.hset(ref.keys[0], "cx", "1")
    assert await store.begin(ref, turn, lease_ms=LEASE_MS) == begun
    assert await store.redis.llen(ref.keys[2]) == 1
    snapshot = await store.sessions.get(ref)
    assert isinstance(snapshot, Snapshot)
    assert snapshot.lease_remaining_ms > 1_000
    assert await store.renew(ref, turn) == Renewed(cancel=True), "a request to cancel survives the repetition"


async def test_another_turn_is_told_who_is_running_and_for_how_long(store: Store) -> None:
    ref = await store.created()
    turn, _ = await store.begun(ref)
    before = await store.everything()
    busy = await store.begin(ref, new_turn_id())
    assert isinstance(busy, Busy)
    assert busy.turn_id == turn
    assert 0 < busy.remaining_ms <= LEASE_MS
    assert await store.everything() == before


async def test_a_lease_found_over_is_taken_and_its_turn_is_dead(store: Store) -> None:
    ref = await store.created()
    first, _ = await store.begun(ref, lease_ms=1)
    await store.renew(ref, first, lease_ms=1)
    await store.redis.hset(ref.keys[0], "cx", "1")
    await store.until_lease_is_over(ref)
    second, begun = await store.begun(ref)
    assert (begun.number, begun.dead_turn_id) == (2, first)
    assert await store.begin(ref, first) == Settled("dead", 1)
    assert await store.commit(ref, first, begun.head, elements(1)) == Settled("dead", 1)
    assert await store.field(ref, "us") == "", "usage of the dead turn is not shown as the next one's"
    assert await store.renew(ref, second) == Renewed(cancel=False), "nor is a request to cancel it"
    assert await store.commit(ref, second, begun.head, elements(1)) == Settled("committed", 2)
    await store.assert_consistent(ref)


@pytest.mark.parametrize("verdict", ["committed", "aborted", "dead"])
async def test_every_verb_tells_a_settled_turn_its_verdict_and_writes_nothing(
    store: Store, verdict: Literal["committed", "aborted", "dead"]
) -> None:
    ref = await store.created()
    turn, begun = await store.settled(ref, verdict, messages=elements(2))
    before = await store.everything()
    settled = Settled(verdict, 1)
    assert await store.begin(ref, turn) == settled
    assert await store.renew(ref, turn) == settled
    assert await store.commit(ref, turn, begun.head, elements(1)) == settled
    assert await store.abort(ref, turn, "holder") == settled
    assert await store.abort(ref, turn, "finder") == settled
    assert await store.everything() == before


async def test_no_turn_begins_past_the_absolute_end(store: Store) -> None:
    ref = await store.created()
    first, _ = await store.begun(ref, lease_ms=1)
    await store.redis.hset(ref.keys[0], "ax", str(await store.now_ms()))
    await store.until_lease_is_over(ref)
    before = await store.everything()
    assert await store.begin(ref, new_turn_id()) == Gone()
    assert await store.everything() == before
    assert isinstance(await store.begin(ref, first), Begun), "the running turn keeps its answer"


async def test_the_session_ends_with_the_turn_that_commits_past_the_absolute_end(store: Store) -> None:
    ref = await store.created()
    turn, begun = await store.begun(ref)
    await store.redis.hset(ref.keys[0], "ax", str(await store.now_ms()))
    assert await store.commit(ref, turn, begun.head, elements(1)) == Settled("committed", 1)
    assert await store.sessions.get(ref) == Gone()
    assert await store.capacity.sweep(ref) is True
    assert await store.counters(ref) == {"expired": 1}


async def test_the_servers_bound_on_turns_counts_failed_ones(store: Store) -> None:
    ref = await store.created()
    for _ in range(2):
        turn, _ = await store.begun(ref)
        await store.abort(ref, turn)
    before = await store.everything()
    assert await store.begin(ref, new_turn_id(), turns_max=2) == TurnsFull()
    assert await store.everything() == before
    assert isinstance(await store.begin(ref, new_turn_id(), turns_max=3), Begun)


async def test_the_sessions_own_bound_on_turns_counts_committed_ones(store: Store) -> None:
    ref = await store.created(max_turns=1)
    turn, _ = await store.begun(ref)
    await store.abort(ref, turn)
    await store.committed(ref, elements(2))
    before = await store.everything()
    assert await store.begin(ref, new_turn_id()) == TurnsFull()
    assert await store.everything() == before


@pytest.mark.parametrize("lost", [1, 2, 3, 4])
async def test_no_turn_begins_on_a_history_with_a_part_missing(store: Store, lost: int) -> None:
    ref = await store.created()
    await store.committed(ref, elements(2))
    await store.redis.delete(ref.keys[lost])
    before = await store.everything()
    assert await store.begin(ref, new_turn_id()) == Corrupt()
    assert await store.everything() == before


async def test_history_is_the_messages_asked_for_and_the_system_prompt(store: Store) -> None:
    ref = await store.created()
    assert await store.turns.history(ref, 0) == History([], b"", b"")
    stored = elements(3)
    await store.committed(ref, stored, system_json=b'"be brief"')
    assert await store.turns.history(ref, 3) == History(stored, b'"be brief"', b"")
    assert await store.turns.history(ref, 2) == History(stored[:2], b'"be brief"', b"")


# renew


async def test_renew_extends_the_lease_and_keeps_the_usage_so_far(store: Store) -> None:
    ref = await store.created()
    turn, _ = await store.begun(ref, lease_ms=1_000)
    first_end = int(await store.field(ref, "lx"))
    assert await store.renew(ref, turn) == Renewed(cancel=False)
    assert int(await store.field(ref, "lx")) >= first_end + LEASE_MS - 1_000
    assert await store.field(ref, "us") == "0 1 0 0"
    await store.assert_consistent(ref)


async def test_renew_tells_that_somebody_asked_to_cancel(store: Store) -> None:
    ref = await store.created()
    turn, _ = await store.begun(ref)
    await store.redis.hset(ref.keys[0], "cx", "1")
    assert await store.renew(ref, turn) == Renewed(cancel=True)
    await store.abort(ref, turn)
    turn, _ = await store.begun(ref)
    assert await store.renew(ref, turn) == Renewed(cancel=False), "the next turn is not cancelled too"


async def test_renew_by_anybody_but_the_holder_is_lost(store: Store) -> None:
    ref = await store.created()
    assert await store.renew(ref, new_turn_id()) == Lost()
    await store.begun(ref)
    before = await store.everything()
    assert await store.renew(ref, new_turn_id()) == Lost()
    assert await store.renew(store.ref(), new_turn_id()) == Gone()
    assert await store.everything() == before


async def test_renew_takes_up_a_lease_that_is_over_but_unclaimed(store: Store) -> None:
    ref = await store.created()
    turn, _ = await store.begun(ref, lease_ms=1)
    await store.until_lease_is_over(ref)
    assert await store.renew(ref, turn) == Renewed(cancel=False)
    assert isinstance(await store.begin(ref, new_turn_id()), Busy)


async def test_a_session_cannot_expire_under_a_running_turn(store: Store) -> None:
    ref = await store.created(ttl_ms=10_000)
    turn, begun = await store.begun(ref, lease_ms=2_000)
    assert GRACE_MS < await store.redis.pttl(ref.keys[0]) <= GRACE_MS + 2_000
    await store.renew(ref, turn, lease_ms=LEASE_MS)
    assert GRACE_MS + 2_000 < await store.redis.pttl(ref.keys[0]) <= GRACE_MS + LEASE_MS
    await store.assert_consistent(ref)
    await store.commit(ref, turn, begun.head, elements(1))
    assert 0 < await store.redis.pttl(ref.keys[0]) <= 10_000
    await store.assert_consistent(ref)


# commit


async def test_a_commit_stores_all_of_a_turn(store: Store) -> None:
    ref = await store.created()
    before = await store.counters(ref)
    first = await store.committed(ref, elements(2, "a"), usage=Usage(10, 20, 30, 40))
    failed, _ = await store.begun(ref)
    await store.abort(ref, failed)
    turn, begun = await store.begun(ref)
    assert (begun.number, begun.head, begun.messages, begun.turns) == (3, first, 2, 1)
    assert (begun.epoch_hash, begun.size_bytes) == ("e1", sum(map(len, elements(2, "a"))))
    settled = await store.commit(
        ref,
        turn,
        begun.head,
        elements(3, "b"),
        record=b"the record",
        model="claude-y",
        epoch_hash="e2",
        epoch_start=2,
        revision=begun.revision,
        system_json=b'"new"',
        usage=Usage(1, 2, 3, 4),
    )
    assert settled == Settled("committed", 3)

    stored = elements(2, "a") + elements(3, "b")
    assert await store.turns.history(ref, 5) == History(stored, b'"new"', b"")
    records = [f"record {first}".encode(), f"pending {failed}".encode(), b"the record"]
    assert await store.redis.lrange(ref.keys[2], 0, -1) == records
    verdicts = {first.encode(): b"C1", failed.encode(): b"A2", turn.encode(): b"C3"}
    assert await store.redis.hgetall(ref.keys[3]) == verdicts
    snapshot = await store.sessions.get(ref)
    assert isinstance(snapshot, Snapshot)
    assert (snapshot.head, snapshot.messages, snapshot.turns, snapshot.model) == (turn, 5, 2, "claude-y")
    assert (snapshot.running_turn_id, snapshot.size_bytes) == ("", sum(map(len, stored)))
    assert (snapshot.input_tokens, snapshot.output_tokens) == (11, 22)
    assert (snapshot.cache_read_tokens, snapshot.cache_written_tokens) == (33, 44)
    grown = {"messages": 5, "bytes": sum(map(len, stored))}
    assert await store.counters(ref) == before | grown
    assert snapshot.expires_ms == snapshot.accessed_ms + TTL_MS
    await store.assert_consistent(ref)
    _, begun = await store.begun(ref)
    assert (begun.epoch_hash, begun.epoch_start, begun.model) == ("e2", 2, "claude-y")


async def test_a_commit_without_a_system_prompt_keeps_the_stored_one(store: Store) -> None:
    ref = await store.created(system_json=b'"old"')
    await store.committed(ref, elements(1))
    assert (await store.turns.history(ref, 1)).system_json == b'"old"'


async def test_a_commit_without_a_preamble_keeps_the_stored_one(store: Store) -> None:
    ref = await store.created()
    assert (await store.turns.history(ref, 0)).preamble == b""
    await store.committed(ref, elements(1), preamble=b"[1]")
    await store.committed(ref, elements(1), system_json=b'"new"')
    assert await store.turns.history(ref, 0) == History([], b'"new"', b"[1]")
    await store.committed(ref, elements(1), preamble=b"[2]")
    assert await store.turns.history(ref, 0) == History([], b'"new"', b"[2]")
    await store.assert_consistent(ref)


async def test_a_preamble_is_stored_whatever_was_patched_meanwhile_and_is_no_revision(store: Store) -> None:
    ref = await store.created(model="claude-x")
    turn, begun = await store.begun(ref)
    assert await store.sessions.patch(ref, {"title": "N"}, expected_revision=None) == Patched(2)
    await store.commit(ref, turn, begun.head, elements(1), preamble=b"[1]", revision=begun.revision)
    assert (await store.turns.history(ref, 0)).preamble == b"[1]"
    snapshot = await store.sessions.get(ref)
    assert isinstance(snapshot, Snapshot)
    assert snapshot.revision == 2


async def test_a_commit_on_another_head_is_fenced(store: Store) -> None:
    ref = await store.created(nonce="head_1")
    await store.committed(ref, elements(1))
    turn, _ = await store.begun(ref)
    before = await store.everything()
    assert await store.commit(ref, turn, "head_1", elements(1)) == Fenced()
    assert await store.everything() == before


async def test_a_commit_without_the_lease_is_fenced(store: Store) -> None:
    ref = await store.created(nonce="head_1")
    assert await store.commit(ref, new_turn_id(), "head_1", elements(1)) == Fenced()
    await store.begun(ref)
    before = await store.everything()
    assert await store.commit(ref, new_turn_id(), "head_1", elements(1)) == Fenced()
    assert await store.commit(store.ref(), new_turn_id(), "head_1", elements(1)) == Gone()
    assert await store.everything() == before


async def test_a_lease_that_is_over_but_unclaimed_still_commits(store: Store) -> None:
    ref = await store.created()
    turn, begun = await store.begun(ref, lease_ms=1)
    await store.until_lease_is_over(ref)
    assert await store.commit(ref, turn, begun.head, elements(1)) == Settled("committed", 1)


async def test_a_turn_without_messages_moves_the_head(store: Store) -> None:
    ref = await store.created()
    turn = await store.committed(ref, [])
    _, begun = await store.begun(ref)
    assert (begun.head, begun.messages, begun.turns) == (turn, 0, 1)
    await store.assert_consistent(ref)


@pytest.mark.parametrize("count", [500, 501, 8_500])
async def test_a_commit_may_hold_any_number_of_messages(store: Store, count: int) -> None:
    ref = await store.created()
    await store.committed(ref, elements(1))
    await store.committed(ref, elements(count))
    assert (await store.turns.history(ref, count + 1)).elements == elements(1) + elements(count)
    await store.assert_consistent(ref)


@pytest.mark.parametrize("lost", [1, 2])
async def test_a_commit_on_a_history_with_a_part_missing_writes_nothing(store: Store, lost: int) -> None:
    ref = await store.created()
    await store.committed(ref, elements(2))
    turn, begun = await store.begun(ref)
    await store.redis.delete(ref.keys[lost])
    before = await store.everything()
    assert await store.commit(ref, turn, begun.head, elements(1)) == Corrupt()
    assert await store.everything() == before


@pytest.mark.parametrize("record", [None, "tag 1 2 -3"])
async def test_a_commit_without_a_readable_size_record_writes_nothing(store: Store, record: str | None) -> None:
    ref = await store.created()
    turn, begun = await store.begun(ref)
    if record is None:
        await store.redis.hdel(ref.keys[13], ref.id)
    else:
        await store.redis.hset(ref.keys[13], ref.id, record)
    before = await store.everything()
    assert await store.commit(ref, turn, begun.head, elements(1)) == Corrupt()
    assert await store.everything() == before


async def test_a_commit_with_a_count_that_is_no_number_writes_nothing(store: Store) -> None:
    """A script that fails is not rolled back, so it must fail before its first write."""
    ref = await store.created()
    turn, begun = await store.begun(ref)
    before = await store.everything()
    wrong: Any = "many"
    for usage in (Usage(wrong), Usage(0, wrong), Usage(0, 0, wrong), Usage(0, 0, 0, wrong)):
        with pytest.raises(StoreUnavailable) as caught:
            await store.commit(ref, turn, begun.head, elements(1), usage=usage)
        assert caught.value.outcome_unknown is False
    assert await store.everything() == before


# abort


async def test_the_holder_aborts_at_any_time(store: Store) -> None:
    ref = await store.created()
    for number, lease_ms in ((1, LEASE_MS), (2, 1)):
        turn, _ = await store.begun(ref, lease_ms=lease_ms)
        await store.renew(ref, turn, lease_ms=lease_ms)
        assert await store.abort(ref, turn) == Settled("aborted", number)
        assert [await store.field(ref, name) for name in ("lt", "lx", "us")] == ["", "0", ""]
        await store.assert_consistent(ref)
    turn, begun = await store.begun(ref)
    assert (begun.number, begun.turns, begun.dead_turn_id) == (3, 0, "")


async def test_a_begin_that_arrives_after_its_abort_is_refused(store: Store) -> None:
    ref = await store.created()
    late = new_turn_id()
    assert await store.abort(ref, late) == Settled("aborted", 0)
    assert await store.begin(ref, late) == Settled("aborted", 0)
    await store.assert_consistent(ref)


async def test_aborting_an_unknown_turn_leaves_the_running_one_alone(store: Store) -> None:
    ref = await store.created(ttl_ms=10_000)
    turn, begun = await store.begun(ref)
    assert await store.abort(ref, new_turn_id()) == Settled("aborted", 0)
    assert await store.redis.pttl(ref.keys[0]) > GRACE_MS
    assert await store.commit(ref, turn, begun.head, elements(1)) == Settled("committed", 1)


async def test_a_finder_waits_for_the_end_of_the_lease(store: Store) -> None:
    ref = await store.created()
    turn, _ = await store.begun(ref)
    before = await store.everything()
    live = await store.abort(ref, turn, "finder")
    assert isinstance(live, Live)
    assert 0 < live.remaining_ms <= LEASE_MS
    assert await store.abort(ref, new_turn_id(), "finder") == UnknownTurn()
    assert await store.everything() == before


async def test_a_finder_declares_a_turn_dead_once_its_lease_is_over(store: Store) -> None:
    ref = await store.created()
    turn, begun = await store.settled(ref, "dead")
    assert await store.commit(ref, turn, begun.head, elements(1)) == Settled("dead", 1)
    await store.assert_consistent(ref)
    _, begun = await store.begun(ref)
    assert (begun.number, begun.dead_turn_id) == (2, "")


@pytest.mark.parametrize("began", [True, False])
async def test_aborting_the_creating_turn_takes_the_session_along(store: Store, began: bool) -> None:
    assert await store.everything() == {}
    turn = new_turn_id()
    ref = await store.created(creating_turn_id=turn)
    if began:
        await store.begun(ref, turn)
    assert await store.abort(ref, turn) == Removed()
    assert await store.counters(ref) == {}
    assert sorted(await store.everything()) == sorted(ref.keys[14:16])
    assert await store.begin(ref, turn) == Gone()
    assert await store.abort(ref, turn) == Gone()


async def test_aborting_the_creating_turn_keeps_what_another_turn_stored(store: Store) -> None:
    for messages in (elements(1), []):
        creating = new_turn_id()
        ref = await store.created(creating_turn_id=creating)
        await store.committed(ref, messages)
        assert await store.abort(ref, creating) == Settled("aborted", 0)
        await store.assert_consistent(ref)


async def test_aborting_the_creating_turn_keeps_a_session_in_which_another_runs(store: Store) -> None:
    creating = new_turn_id()
    ref = await store.created(creating_turn_id=creating)
    turn, begun = await store.begun(ref)
    assert await store.abort(ref, creating) == Settled("aborted", 0)
    assert await store.commit(ref, turn, begun.head, elements(1)) == Settled("committed", 1)


async def test_a_finder_does_not_take_the_session_along(store: Store) -> None:
    creating = new_turn_id()
    ref = await store.created(creating_turn_id=creating)
    await store.begun(ref, creating, lease_ms=1)
    await store.until_lease_is_over(ref)
    assert await store.abort(ref, creating, "finder") == Settled("dead", 1)
    await store.assert_consistent(ref)


async def test_aborting_in_a_session_that_is_gone(store: Store) -> None:
    for mode in ("holder", "finder"):
        assert await store.turns.abort(store.ref(), new_turn_id(), mode) == Gone()
    assert await store.everything() == {}


# the context


async def test_begin_answers_the_context_that_the_last_commit_left(store: Store) -> None:
    ref = await store.created()
    turn, begun = await store.begun(ref)
    assert (begun.context, begun.idle_ms) == ("", None)
    assert await store.abort(ref, turn) == Settled("aborted", 1)
    await store.committed(ref, elements(1), context="1 2 msg_1")
    committed_ms = int(await store.field(ref, "ca"))
    await store.until_ms(committed_ms + 20)
    assert await store.sessions.touch(ref)  # access alone is no turn
    turn, begun = await store.begun(ref)
    assert begun.context == "1 2 msg_1"
    assert begun.idle_ms is not None
    assert 20 <= begun.idle_ms < 60_000
    # The clock of a server that took over may be behind.
    await store.redis.hset(ref.keys[0], "ca", str(committed_ms + 3_600_000))
    assert (await store.begin(ref, turn)).idle_ms == 0  # type: ignore[union-attr]


async def test_a_session_from_before_there_were_contexts_has_none(store: Store) -> None:
    ref = await store.created()
    await store.committed(ref, elements(1), context="1 2 msg_1")
    await store.redis.hdel(ref.keys[0], "ctx", "ca")
    _, begun = await store.begun(ref)
    assert (begun.context, begun.idle_ms) == ("", None)
