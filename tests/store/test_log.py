"""The log of a streamed turn: what is written to it and by whom, how it ends, how long it lives."""

from typing import Any

import pytest

from storage.keys import SessionRef, new_turn_id
from storage.log import End, Tail
from storage.results import Begun, Fate, Removed, Renewed, Settled
from storage.scripts import ScriptRunner
from storage.turns import Request, Shown
from tests.store.harness import Store, elements, frames, shown

pytestmark = pytest.mark.anyio

LOG_LIFE_MS = 300_000
MIB = 1024 * 1024

on_valkey = pytest.mark.parametrize("server_url", ["valkey"], indirect=True)


async def streaming(store: Store, ref: SessionRef, turn: str = "", **asked: Any) -> tuple[str, Begun]:
    return await store.begun(ref, turn, streamed=True, **asked)


async def logged(store: Store, ref: SessionRef) -> list[str]:
    """Ids of the entries of the session's log."""
    return [entry_id.decode() for entry_id, _ in await store.redis.xrange(ref.keys[8])]


async def assert_log_lives_on(store: Store, ref: SessionRef) -> None:
    """The log has its five minutes before it, give or take a second that the test may take."""
    assert LOG_LIFE_MS - 5_000 < await store.redis.pttl(ref.keys[8]) <= LOG_LIFE_MS


async def let_go(store: Store, ref: SessionRef) -> None:
    """The server lets the session expire now."""
    await store.redis.hset(ref.keys[0], "ttl", "1")
    await store.sessions.touch(ref)
    await store.until_expired(ref)


def large(ordinal: int) -> Shown:
    """One frame of 1 MiB."""
    return Shown(ordinal, (b"id: %d\ndata: " % ordinal).ljust(MIB - 2, b"x") + b"\n\n")


def tail(fate: Fate | None, first: int, last: int, end: End | None = None) -> Tail:
    """What a log holds from one frame to another."""
    return Tail(fate, frames(first, last), last, end)


COMMITTED, ABORTED, DEAD = (Fate(verdict, 1, delivered=False) for verdict in ("committed", "aborted", "dead"))


# renew


async def test_a_renewal_logs_what_was_shown_once(store: Store) -> None:
    ref = await store.created()
    turn, _ = await streaming(store, ref)
    assert await store.log.tail(ref, turn, 1, 0) == Tail(None, b"", 0, None)
    for first, last in ((1, 3), (1, 3), (1, 2), (4, 4)):
        assert await store.renew(ref, turn, shown(first, last)) == Renewed(cancel=False)
    assert await logged(store, ref) == ["1-3", "1-4"]
    assert await store.log.tail(ref, turn, 1, 0) == tail(None, 1, 4)
    await store.assert_consistent(ref)


async def test_frames_that_were_logged_twice_are_read_once(store: Store) -> None:
    """The reply to a renewal was lost, so its frames were sent again with more behind them."""
    ref = await store.created()
    turn, _ = await streaming(store, ref)
    await store.renew(ref, turn, shown(1, 5))
    await store.renew(ref, turn, shown(1, 7))
    await store.renew(ref, turn, shown(6, 9))
    for after in range(9):
        assert await store.log.tail(ref, turn, 1, after) == tail(None, after + 1, 9)


async def test_a_tail_beyond_the_log_waits(store: Store) -> None:
    ref = await store.created()
    turn, begun = await streaming(store, ref)
    await store.renew(ref, turn, shown(1, 3))
    for after in (3, 4, 100):
        assert await store.log.tail(ref, turn, 1, after) == Tail(None, b"", after, None)
    await store.commit(ref, turn, begun.head, [], end=shown(4, 5))
    for after in (5, 6, 100):
        assert await store.log.tail(ref, turn, 1, after) == Tail(COMMITTED, b"", after, "told")
    assert await store.log.tail(ref, turn, 1, 4) == tail(COMMITTED, 5, 5, "told")


async def test_a_long_log_is_read_in_parts_and_ends_with_the_last(store: Store) -> None:
    ref = await store.created()
    turn, begun = await streaming(store, ref)
    for ordinal in range(1, 130):
        await store.renew(ref, turn, shown(ordinal, ordinal))
    await store.commit(ref, turn, begun.head, [], end=shown(130, 130))
    parts = [await store.log.tail(ref, turn, 1, after) for after in (0, 64, 128)]
    assert parts == [tail(COMMITTED, 1, 64), tail(COMMITTED, 65, 128), tail(COMMITTED, 129, 130, "told")]


async def test_a_turn_that_is_not_streamed_has_no_log(store: Store) -> None:
    ref = await store.created()
    await store.settled(ref, "committed")
    turn, begun = await store.begun(ref)
    await store.renew(ref, turn, shown(1, 3))
    await store.commit(ref, turn, begun.head, [], end=shown(4, 5))
    await store.settled(ref, "dead")
    await store.begun(ref)
    assert await store.redis.exists(ref.keys[8]) == 0


# the end of a turn


async def test_the_end_of_a_committed_turn_comes_with_its_verdict(store: Store) -> None:
    ref = await store.created()
    turn, begun = await streaming(store, ref)
    await store.renew(ref, turn, shown(1, 3))
    assert await store.commit(ref, turn, begun.head, elements(2), end=shown(2, 6)) == Settled("committed", 1)
    for after in range(6):
        assert await store.log.tail(ref, turn, 1, after) == tail(COMMITTED, after + 1, 6, "told")
    before = await store.everything()
    assert await store.commit(ref, turn, begun.head, elements(2), end=shown(2, 6)) == Settled("committed", 1)
    assert await store.renew(ref, turn, shown(7, 9)) == Settled("committed", 1)
    assert await store.everything() == before


async def test_an_answer_may_be_logged_with_the_commit_alone(store: Store) -> None:
    ref = await store.created()
    turn, begun = await streaming(store, ref)
    await store.commit(ref, turn, begun.head, [], end=shown(1, 4))
    assert await store.log.tail(ref, turn, 1, 0) == tail(COMMITTED, 1, 4, "told")
    await assert_log_lives_on(store, ref)


async def test_what_the_caller_of_an_aborted_turn_was_told_is_the_end_of_its_log(store: Store) -> None:
    ref = await store.created()
    turn, _ = await streaming(store, ref)
    await store.renew(ref, turn, shown(1, 3))
    assert await store.abort(ref, turn, end=shown(4, 4)) == Settled("aborted", 1)
    assert await store.log.tail(ref, turn, 1, 2) == tail(ABORTED, 3, 4, "told")


async def test_an_end_that_brings_nothing_new_is_an_end_all_the_same(store: Store) -> None:
    ref = await store.created()
    turn, begun = await streaming(store, ref)
    await store.renew(ref, turn, shown(1, 5))
    await store.commit(ref, turn, begun.head, [], end=shown(4, 5))
    for after in range(6):
        assert await store.log.tail(ref, turn, 1, after) == tail(COMMITTED, after + 1, 5, "told")
    assert await logged(store, ref) == ["1-5", "1-6"]


@pytest.mark.parametrize("finder", ["abort", "begin", "append"])
async def test_whoever_finds_a_turn_dead_ends_its_log(store: Store, finder: str) -> None:
    ref = await store.created()
    turn, _ = await streaming(store, ref)
    await store.renew(ref, turn, shown(1, 3), lease_ms=1)
    await store.until_lease_is_over(ref)
    match finder:
        case "abort":
            await store.abort(ref, turn, "finder")
        case "begin":
            await streaming(store, ref)
        case "append":
            head, request = await store.field(ref, "head"), Request("append")
            await store.turns.append(
                ref, new_turn_id(), head=head, record=b"", turns_max=9, request=request, elements=elements(1)
            )
    assert await store.log.tail(ref, turn, 1, 1) == tail(DEAD, 2, 3, "dead")
    assert await store.log.tail(ref, turn, 1, 3) == Tail(DEAD, b"", 3, "dead")
    assert await logged(store, ref) == ["1-3", "1-4"]
    await assert_log_lives_on(store, ref)


async def test_a_turn_that_died_before_it_showed_anything_has_an_end(store: Store) -> None:
    ref = await store.created()
    turn, _ = await streaming(store, ref, lease_ms=1)
    await store.until_lease_is_over(ref)
    await store.abort(ref, turn, "finder")
    assert await store.log.tail(ref, turn, 1, 0) == Tail(DEAD, b"", 0, "dead")


async def test_aborting_another_turn_does_not_end_the_log_of_the_running_one(store: Store) -> None:
    ref = await store.created()
    turn, _ = await streaming(store, ref)
    await store.renew(ref, turn, shown(1, 3))
    await store.abort(ref, new_turn_id(), end=shown(1, 1))
    assert await logged(store, ref) == ["1-3"]
    await store.renew(ref, turn, shown(4, 4))
    assert await store.log.tail(ref, turn, 1, 3) == tail(None, 4, 4)


@on_valkey
async def test_of_one_turn_8_mib_are_logged(store: Store) -> None:
    ref = await store.created()
    turn, begun = await streaming(store, ref)
    for ordinal in range(1, 9):
        await store.renew(ref, turn, large(ordinal))
    assert await store.log.tail(ref, turn, 1, 7) == Tail(None, large(8).frames, 8, None)
    await store.turns.cancel(ref, turn)
    for ordinal in (9, 10):
        assert await store.renew(ref, turn, shown(9, ordinal)) == Renewed(cancel=True)
        assert await store.log.tail(ref, turn, 1, 8) == Tail(None, b"", 8, "overflow")
    before = await logged(store, ref)
    assert await store.commit(ref, turn, begun.head, [], end=shown(10, 11)) == Settled("committed", 1)
    assert await logged(store, ref) == before
    whole = b"".join(large(ordinal).frames for ordinal in range(1, 9))
    assert await store.log.tail(ref, turn, 1, 0) == Tail(COMMITTED, whole, 8, "overflow")
    turn, _ = await streaming(store, ref)
    await store.renew(ref, turn, shown(1, 1))
    assert await store.log.tail(ref, turn, 2, 0) == tail(None, 1, 1), "the next turn has room of its own"


@on_valkey
@pytest.mark.parametrize("verdict", ["committed", "aborted"])
async def test_an_end_beyond_8_mib_is_not_logged(store: Store, verdict: str) -> None:
    """What renewals could not bring comes with the verdict, and is bounded as they are."""
    ref = await store.created()
    turn, begun = await streaming(store, ref)
    for ordinal in range(1, 9):
        await store.renew(ref, turn, large(ordinal))
    if verdict == "committed":
        await store.commit(ref, turn, begun.head, [], end=shown(9, 9))
    else:
        await store.abort(ref, turn, end=shown(9, 9))
    fate = COMMITTED if verdict == "committed" else ABORTED
    assert await store.log.tail(ref, turn, 1, 7) == Tail(fate, large(8).frames, 8, "overflow")
    assert await store.log.tail(ref, turn, 1, 8) == Tail(fate, b"", 8, "overflow")


# life


async def test_a_turn_trims_what_is_older_than_the_turn_before(store: Store) -> None:
    ref = await store.created()
    turns = []
    for number in (1, 2, 3):
        turn, begun = await streaming(store, ref)
        await store.renew(ref, turn, shown(1, 2))
        await store.commit(ref, turn, begun.head, [], end=shown(3, 3))
        turns.append(turn)
        assert {entry_id.split("-")[0] for entry_id in await logged(store, ref)} == {
            str(number),
            str(max(1, number - 1)),
        }
    assert await store.log.tail(ref, turns[0], 1, 0) == Tail(COMMITTED, b"", 0, None)
    assert (await store.log.tail(ref, turns[1], 2, 0)).frames == frames(1, 3)
    await store.begun(ref)
    assert await logged(store, ref) == ["3-2", "3-3"], "a turn that is not streamed trims, too"


async def test_the_same_turn_begun_again_goes_on_with_its_log(store: Store) -> None:
    ref = await store.created()
    turn, begun = await streaming(store, ref)
    await store.renew(ref, turn, shown(1, 3))
    assert await store.begin(ref, turn, streamed=True) == begun
    await store.renew(ref, turn, shown(3, 4))
    assert await store.log.tail(ref, turn, 1, 0) == tail(None, 1, 4)


async def test_a_log_lives_five_minutes_from_its_last_write_or_renewal(store: Store) -> None:
    ref = await store.created(ttl_ms=10_000)
    turn, begun = await streaming(store, ref)
    for write in (shown(1, 3), shown(1, 3), Shown()):
        await store.renew(ref, turn, write)
        await assert_log_lives_on(store, ref)
        await store.redis.pexpire(ref.keys[8], 30_000)
    await store.commit(ref, turn, begun.head, [], end=shown(4, 4))
    await assert_log_lives_on(store, ref)
    await store.redis.pexpire(ref.keys[8], 30_000)
    await store.sessions.touch(ref)
    await store.turns.delivered(ref, turn)
    await store.begun(ref)
    assert await store.redis.pttl(ref.keys[8]) <= 30_000, "nobody else prolongs it"


async def test_a_renewal_without_frames_makes_no_log(store: Store) -> None:
    ref = await store.created()
    turn, _ = await streaming(store, ref)
    await store.renew(ref, turn)
    assert await store.redis.exists(ref.keys[8]) == 0


async def test_a_log_that_has_expired_is_told_by_the_verdict_without_an_end(store: Store) -> None:
    ref = await store.created()
    turn, begun = await streaming(store, ref)
    await store.commit(ref, turn, begun.head, [], end=shown(1, 4))
    await store.redis.unlink(ref.keys[8])
    assert await store.log.tail(ref, turn, 1, 0) == Tail(COMMITTED, b"", 0, None)


async def left_by_an_expired_session(store: Store) -> SessionRef:
    ref = await store.created()
    turn, begun = await streaming(store, ref)
    await store.commit(ref, turn, begun.head, elements(2), end=shown(1, 4))
    await let_go(store, ref)
    assert await store.log.tail(ref, turn, 1, 0) == tail(None, 1, 4, "told")
    await assert_log_lives_on(store, ref)
    return ref


@pytest.mark.parametrize("swept_first", [True, False])
async def test_a_log_outlives_its_session_but_not_the_next_one_of_its_id(store: Store, swept_first: bool) -> None:
    ref = await left_by_an_expired_session(store)
    if not swept_first:
        await store.redis.hdel(ref.keys[13], ref.id)  # then nothing says that there is anything to sweep
    await store.create(ref)
    assert await store.redis.exists(ref.keys[8]) == 0
    turn, _ = await streaming(store, ref)
    await store.renew(ref, turn, shown(1, 1))
    assert await store.log.tail(ref, turn, 1, 0) == tail(None, 1, 1)


async def test_a_follower_is_not_shown_the_turn_of_a_session_that_was_made_anew(store: Store) -> None:
    creating = new_turn_id()
    ref = await store.created(creating_turn_id=creating)
    await streaming(store, ref, creating)
    await store.renew(ref, creating, shown(1, 5))
    assert await store.abort(ref, creating) == Removed()
    await store.create(ref)
    other, _ = await streaming(store, ref)
    await store.renew(ref, other, shown(1, 8))
    assert await store.log.tail(ref, creating, 1, 5) == Tail(None, b"", 5, "gone")
    assert await store.log.tail(ref, other, 1, 5) == tail(None, 6, 8)


async def test_a_sweep_takes_the_log_along(store: Store) -> None:
    ref = await left_by_an_expired_session(store)
    assert await store.capacity.sweep(ref) is True
    assert await store.redis.exists(ref.keys[8]) == 0


@pytest.mark.parametrize("end", ["delete", "evict", "abort"])
async def test_whatever_ends_a_session_takes_its_log_along(store: Store, end: str) -> None:
    creating = new_turn_id()
    ref = await store.created(creating_turn_id=creating)
    await streaming(store, ref, creating)
    await store.renew(ref, creating, shown(1, 3))
    match end:
        case "delete":
            assert await store.sessions.delete(ref) is True
        case "evict":
            await store.redis.hset(ref.keys[0], "lx", "1")
            args = (ref.id, ref.owner_tag, await store.field(ref, "la"))
            assert await ScriptRunner(store.redis).run("evict", ref.keys, args, budget_s=5) == [b"EVICTED"]
        case "abort":
            assert await store.abort(ref, creating, end=shown(4, 4)) == Removed()
    assert sorted(await store.everything()) == sorted(ref.keys[14:16])
