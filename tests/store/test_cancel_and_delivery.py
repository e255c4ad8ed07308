"""What is noted on a turn by others than its holder: that it should stop, and that its answer has arrived."""

import pytest

from storage.keys import new_turn_id
from storage.results import Cancelling, Fate, Gone, Over, Renewed, Settled, UnknownTurn
from tests.store.harness import Store, elements

pytestmark = pytest.mark.anyio


# cancel


async def test_the_holder_of_a_cancelled_turn_is_told_at_its_next_renewal(store: Store) -> None:
    ref = await store.created()
    turn, begun = await store.begun(ref)
    for _ in range(2):
        assert await store.turns.cancel(ref, turn) == Cancelling(1)
        assert await store.renew(ref, turn) == Renewed(cancel=True)
    assert await store.commit(ref, turn, begun.head, elements(1)) == Settled("committed", 1), "too late is too late"
    turn, _ = await store.begun(ref)
    assert await store.renew(ref, turn) == Renewed(cancel=False)


async def test_a_turn_that_does_not_run_is_not_cancelled(store: Store) -> None:
    ref, never = await store.created(), new_turn_id()
    committed, _ = await store.settled(ref, "committed")
    aborted, _ = await store.settled(ref, "aborted")
    dead, _ = await store.settled(ref, "dead")
    await store.abort(ref, never)
    running, _ = await store.begun(ref)
    before = await store.everything()
    assert await store.turns.cancel(ref, committed) == Settled("committed", 1)
    assert await store.turns.cancel(ref, aborted) == Settled("aborted", 2)
    assert await store.turns.cancel(ref, dead) == Settled("dead", 3)
    assert await store.turns.cancel(ref, never) == Settled("aborted", 0)
    assert await store.turns.cancel(ref, new_turn_id()) == UnknownTurn()
    assert await store.turns.cancel(store.keyspace.session(ref.id, "bob"), running) == Gone()
    assert await store.turns.cancel(store.ref(), running) == Gone()
    assert await store.everything() == before


async def test_a_turn_whose_lease_is_over_cannot_be_asked_to_stop(store: Store) -> None:
    ref = await store.created()
    turn, _ = await store.begun(ref, lease_ms=1)
    await store.until_lease_is_over(ref)
    before = await store.everything()
    assert await store.turns.cancel(ref, turn) == Over()
    assert await store.everything() == before


# delivered


async def test_delivery_is_a_mark_on_the_verdict_and_no_other_verdict(store: Store) -> None:
    ref = await store.created()
    turn, begun = await store.settled(ref, "committed", messages=elements(1))
    assert await store.turns.fates(ref, [turn]) == [Fate("committed", 1, delivered=False)]
    assert await store.turns.delivered(ref, turn) is True
    before = await store.everything()
    assert await store.turns.delivered(ref, turn) is True
    assert await store.turns.fates(ref, [turn]) == [Fate("committed", 1, delivered=True)]
    assert await store.turns.number(ref, turn) == 1
    assert (await store.turns.ledger(ref)).verdicts == {turn: "committed"}
    settled = Settled("committed", 1)
    assert await store.begin(ref, turn) == settled
    assert await store.renew(ref, turn) == settled
    assert await store.commit(ref, turn, begun.head, elements(1)) == settled
    assert await store.abort(ref, turn) == settled
    assert await store.turns.cancel(ref, turn) == settled
    assert await store.everything() == before
    await store.assert_consistent(ref)


async def test_only_a_committed_turn_is_delivered(store: Store) -> None:
    ref, never = await store.created(), new_turn_id()
    aborted, _ = await store.settled(ref, "aborted")
    dead, _ = await store.settled(ref, "dead")
    await store.abort(ref, never)
    running, _ = await store.begun(ref)
    before = await store.everything()
    for turn in (aborted, dead, never, running, new_turn_id()):
        assert await store.turns.delivered(ref, turn) is False
    assert await store.turns.delivered(store.ref(), running) is False
    assert await store.everything() == before
