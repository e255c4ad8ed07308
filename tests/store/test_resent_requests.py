"""A request that was sent before is the turn that it was then: known by its key, or by itself if a library resends."""

import asyncio
import random
from typing import Literal

import pytest

from storage.keys import SessionRef, new_turn_id
from storage.results import (
    Answered,
    AppendResult,
    BeginResult,
    Begun,
    Busy,
    Fate,
    Fenced,
    KeyReused,
    Moved,
    Running,
    Settled,
    TurnsFull,
)
from storage.turns import Request
from tests.store.harness import PLAIN, Store, elements

pytestmark = pytest.mark.anyio

KEYED = Request("print", "key")
OTHER_OF_KEY = Request("other", "key")
RETRY = Request("print", retried=True)
KEYED_TURNS = 128
UNKEYED_TURNS = 16

Failure = Literal["aborted", "dead"]


async def asked(store: Store, ref: SessionRef, request: Request, expected: str = "") -> BeginResult:
    """What a request is told that is no turn of its own; nothing may be written then."""
    before = await store.everything()
    result = await store.begin(ref, new_turn_id(), request=request, expected=expected)
    assert not isinstance(result, Begun)
    assert await store.everything() == before
    return result


async def append(store: Store, ref: SessionRef, request: Request, head: str = "", turn: str = "") -> AppendResult:
    return await store.turns.append(
        ref,
        turn or new_turn_id(),
        head=head or await store.field(ref, "head"),
        record=b"record",
        turns_max=1_000,
        request=request,
        elements=elements(1),
    )


# with a key


async def test_a_keyed_request_sent_again_is_its_turn_while_that_runs_and_once_it_is_committed(store: Store) -> None:
    ref = await store.created()
    turn, begun = await store.begun(ref, request=KEYED)
    assert await asked(store, ref, KEYED) == Running(turn, 1)
    await store.commit(ref, turn, begun.head, elements(2))
    assert await asked(store, ref, KEYED) == Answered(turn, 1)
    assert await store.turns.delivered(ref, turn) is True
    assert await asked(store, ref, KEYED) == Answered(turn, 1), "whoever chose a key means that turn, delivered or not"
    await store.settled(ref, "committed", PLAIN)
    assert await asked(store, ref, KEYED) == Answered(turn, 1), "nor need it be the last"


async def test_a_key_of_another_request_is_refused(store: Store) -> None:
    ref = await store.created()
    turn, begun = await store.begun(ref, request=KEYED)
    assert await asked(store, ref, OTHER_OF_KEY) == KeyReused(turn)
    await store.commit(ref, turn, begun.head, elements(2))
    assert await asked(store, ref, OTHER_OF_KEY) == KeyReused(turn)


async def test_the_same_turn_sent_again_under_its_key_is_not_taken_for_a_repetition(store: Store) -> None:
    ref = await store.created()
    turn, begun = await store.begun(ref, request=KEYED)
    assert await store.begin(ref, turn, request=KEYED) == begun


async def test_of_requests_with_one_key_that_come_together_one_begins(store: Store) -> None:
    ref = await store.created()
    turns = [new_turn_id() for _ in range(5)]
    told = await asyncio.gather(*(store.begin(ref, turn, request=KEYED) for turn in turns))
    began = [turn for turn, result in zip(turns, told, strict=True) if isinstance(result, Begun)]
    assert len(began) == 1
    assert [result for result in told if not isinstance(result, Begun)] == [Running(began[0], 1)] * 4


@pytest.mark.parametrize("how", ["aborted", "dead"])
@pytest.mark.parametrize("request_again", [KEYED, OTHER_OF_KEY])
async def test_a_failed_turn_frees_its_key(store: Store, how: Failure, request_again: Request) -> None:
    ref = await store.created()
    await store.settled(ref, how, KEYED)
    second, begun = await store.begun(ref, request=request_again)
    assert begun.number == 2
    assert await asked(store, ref, request_again) == Running(second, 2)
    await store.commit(ref, second, begun.head, elements(2))
    assert await asked(store, ref, request_again) == Answered(second, 2)


async def test_a_turn_whose_lease_is_found_over_by_its_own_request_is_dead(store: Store) -> None:
    ref = await store.created()
    first, _ = await store.begun(ref, request=KEYED, lease_ms=1)
    await store.until_lease_is_over(ref)
    second, begun = await store.begun(ref, request=KEYED)
    assert (begun.number, begun.dead_turn_id) == (2, first)
    assert await store.begin(ref, first) == Settled("dead", 1)
    assert await asked(store, ref, KEYED) == Running(second, 2)


async def test_a_key_is_known_for_128_turns(store: Store) -> None:
    ref = await store.created()
    turn, _ = await store.settled(ref, "committed", KEYED)
    for _ in range(KEYED_TURNS - 1):
        await store.settled(ref, "aborted", PLAIN)
    assert await asked(store, ref, KEYED) == Answered(turn, 1)
    await store.settled(ref, "aborted", PLAIN)
    _, begun = await store.begun(ref, request=OTHER_OF_KEY)
    assert begun.number == KEYED_TURNS + 2


async def test_the_ring_holds_the_last_128_keys_and_no_more(store: Store) -> None:
    """300 turns of keys that repeat, against what a dictionary knows of them."""
    ref, chance = await store.created(), random.Random(1)
    known: dict[str, tuple[int, str, bool]] = {}
    begun_turns = 0
    while begun_turns < 300:
        key, turn = f"k{chance.randrange(200)}", new_turn_id()
        number, earlier, committed = known.get(key, (-KEYED_TURNS, "", False))
        result = await store.begin(ref, turn, request=Request("print", key))
        if committed and number > begun_turns - KEYED_TURNS:
            assert result == Answered(earlier, number)
            continue
        begun_turns += 1
        assert isinstance(result, Begun)
        assert result.number == begun_turns
        committed = chance.random() < 0.5
        known[key] = (begun_turns, turn, committed)
        if committed:
            await store.commit(ref, turn, result.head, [])
        else:
            await store.abort(ref, turn)
        assert await store.redis.hlen(ref.keys[6]) <= 2 * KEYED_TURNS
    held = {field.decode() for field in await store.redis.hkeys(ref.keys[6])}
    recent = {key for key, (number, _, _) in known.items() if number > begun_turns - KEYED_TURNS}
    assert held == recent | {f"#{slot}" for slot in range(KEYED_TURNS)}


async def test_of_requests_without_a_key_the_ring_holds_the_last_16(store: Store) -> None:
    ref = await store.created()
    for n in range(40):
        await store.settled(ref, "aborted", Request(f"print{n}"))
    held = {field.decode() for field in await store.redis.hkeys(ref.keys[6])}
    assert held == {f"~print{n}" for n in range(40 - UNKEYED_TURNS, 40)} | {f"~{slot}" for slot in range(UNKEYED_TURNS)}


async def test_the_ring_ends_with_its_session(store: Store) -> None:
    ref = await store.created()
    await store.settled(ref, "committed", KEYED)
    assert await store.redis.pexpiretime(ref.keys[6]) == await store.redis.pexpiretime(ref.keys[0])
    await store.assert_consistent(ref)
    await store.redis.hset(ref.keys[0], "ttl", "1")
    await store.sessions.touch(ref)
    await store.until_expired(ref)
    await store.create(ref)
    _, begun = await store.begun(ref, request=OTHER_OF_KEY)
    assert begun.number == 1


# sent again by a library, without a key


async def test_a_retry_is_the_turn_of_the_same_request_while_its_answer_is_not_delivered(store: Store) -> None:
    ref = await store.created()
    turn, begun = await store.begun(ref, request=PLAIN)
    assert await asked(store, ref, RETRY) == Running(turn, 1)
    await store.commit(ref, turn, begun.head, elements(2))
    assert await asked(store, ref, RETRY) == Answered(turn, 1)
    await store.turns.delivered(ref, turn)
    second, begun = await store.begun(ref, request=RETRY)
    assert begun.number == 2
    assert await asked(store, ref, RETRY) == Running(second, 2), "a retry may be retried"


async def test_what_was_not_sent_before_or_is_another_request_is_a_turn_of_its_own(store: Store) -> None:
    ref = await store.created()
    turn, begun = await store.begun(ref, request=PLAIN)
    for request in (PLAIN, Request("other", retried=True)):
        busy = await asked(store, ref, request)
        assert isinstance(busy, Busy)
        assert busy.turn_id == turn
    await store.commit(ref, turn, begun.head, elements(2))
    for number, request in enumerate((PLAIN, Request("other", retried=True)), start=2):
        turn, begun = await store.begun(ref, request=request)
        assert begun.number == number
        await store.abort(ref, turn)


@pytest.mark.parametrize("how", ["aborted", "dead"])
async def test_a_retry_of_a_failed_turn_is_a_turn_of_its_own(store: Store, how: Failure) -> None:
    ref = await store.created()
    await store.settled(ref, how, PLAIN)
    _, begun = await store.begun(ref, request=RETRY)
    assert begun.number == 2


async def test_a_retry_is_recognised_among_the_last_16_turns_of_any_kind(store: Store) -> None:
    ref = await store.created()
    turn, _ = await store.settled(ref, "committed", PLAIN)
    assert await append(store, ref, Request("append")) == Settled("committed", 2)
    await store.settled(ref, "committed", Request("print", "key"))
    for n in range(UNKEYED_TURNS - 3):
        await store.settled(ref, "aborted", Request(f"other{n}"))
    assert await asked(store, ref, RETRY) == Answered(turn, 1)
    await store.settled(ref, "aborted", Request("other"))
    _, begun = await store.begun(ref, request=RETRY)
    assert begun.number == UNKEYED_TURNS + 2


async def test_of_two_turns_of_one_request_a_retry_means_the_later(store: Store) -> None:
    ref = await store.created()
    await store.settled(ref, "committed", PLAIN)
    second, _ = await store.settled(ref, "committed", PLAIN)
    assert await asked(store, ref, RETRY) == Answered(second, 2)
    await store.turns.delivered(ref, second)
    assert isinstance(await store.begin(ref, new_turn_id(), request=RETRY), Begun)


async def test_a_retry_comes_within_ten_minutes(store: Store) -> None:
    ref = await store.created()
    turn, _ = await store.settled(ref, "committed", PLAIN)
    number, began, *rest = (await store.redis.hget(ref.keys[6], "~print")).decode().split(" ")
    now_s = await store.now_ms() / 1_000
    assert now_s - 60 < int(began) <= now_s
    for ago_s in (590, 601):
        await store.redis.hset(ref.keys[6], "~print", " ".join([number, str(int(now_s) - ago_s), *rest]))
        result = await store.begin(ref, new_turn_id(), request=RETRY)
        assert result == Answered(turn, 1) if ago_s < 600 else isinstance(result, Begun)


async def test_a_key_and_its_absence_are_two_requests(store: Store) -> None:
    ref = await store.created()
    turn, begun = await store.begun(ref, request=KEYED)
    assert isinstance(await asked(store, ref, RETRY), Busy)
    await store.commit(ref, turn, begun.head, [])
    plain, _ = await store.settled(ref, "committed", PLAIN)
    assert await asked(store, ref, RETRY) == Answered(plain, 2)
    assert await asked(store, ref, KEYED) == Answered(turn, 1)


@pytest.mark.parametrize(("first", "again"), [(KEYED, KEYED), (PLAIN, RETRY)])
async def test_a_turn_whose_place_is_taken_is_not_recognised_any_more(
    store: Store, first: Request, again: Request
) -> None:
    ref = await store.created()
    replaced, _ = await store.settled(ref, "committed", first)
    another = Request(again.fingerprint, again.key, retried=again.retried, replaces=new_turn_id())
    assert await asked(store, ref, another) == Answered(replaced, 1), "it replaces that turn and no other"
    replacing = Request(again.fingerprint, again.key, retried=again.retried, replaces=replaced)
    turn, _ = await store.begun(ref, request=replacing)
    assert await asked(store, ref, again) == Running(turn, 2)
    assert await asked(store, ref, replacing) == Running(turn, 2)


# an expected head


async def test_a_turn_begins_on_the_expected_head_only(store: Store) -> None:
    ref = await store.created(nonce="head_1")
    assert await asked(store, ref, PLAIN, expected="turn_x") == Moved("head_1")
    turn, _ = await store.settled(ref, "committed", PLAIN)
    assert await asked(store, ref, PLAIN, expected="head_1") == Moved(turn)
    running, begun = await store.begun(ref, expected=turn)
    assert begun.head == turn
    assert isinstance(await asked(store, ref, PLAIN, expected=turn), Busy)
    assert await asked(store, ref, PLAIN, expected="head_1") == Moved(turn), "waiting would not bring that head back"
    assert await store.begin(ref, running, expected="head_1") == begun, "what has begun is not asked again"


async def test_a_session_is_unused_while_only_the_turn_that_made_it_was_there(store: Store) -> None:
    by_hand = await store.created(nonce="head_1")
    assert await asked(store, by_hand, PLAIN, expected="unused") == Moved("head_1")
    creating = new_turn_id()
    ref = await store.created(creating_turn_id=creating)
    await store.begun(ref, creating, lease_ms=1, expected="unused")
    await store.until_lease_is_over(ref)
    second, begun = await store.begun(ref, expected="unused")
    assert begun.dead_turn_id == creating
    assert isinstance(await asked(store, ref, PLAIN, expected="unused"), Busy)
    await store.commit(ref, second, begun.head, [])
    assert await asked(store, ref, PLAIN, expected="unused") == Moved(second)


async def test_a_session_that_was_appended_to_is_used(store: Store) -> None:
    ref, appended = await store.created(creating_turn_id=new_turn_id()), new_turn_id()
    assert await append(store, ref, Request("append"), turn=appended) == Settled("committed", 1)
    assert await asked(store, ref, PLAIN, expected="unused") == Moved(appended)


async def test_a_request_is_recognised_whatever_head_it_expects(store: Store) -> None:
    ref = await store.created()
    turn, begun = await store.begun(ref, request=KEYED)
    for committed in (False, True):
        if committed:
            await store.commit(ref, turn, begun.head, [])
        for expected in ("turn_x", "unused"):
            assert await asked(store, ref, KEYED, expected) == (Answered if committed else Running)(turn, 1)
            assert await asked(store, ref, OTHER_OF_KEY, expected) == KeyReused(turn)


# append


async def test_an_append_sent_again_under_its_key_is_answered(store: Store) -> None:
    ref, turn = await store.created(), new_turn_id()
    assert await append(store, ref, KEYED, turn=turn) == Settled("committed", 1)
    before = await store.everything()
    assert await append(store, ref, KEYED) == Answered(turn, 1)
    assert await append(store, ref, KEYED, head="head_x") == Answered(turn, 1), "before the head is looked at"
    assert await append(store, ref, OTHER_OF_KEY) == KeyReused(turn)
    assert await append(store, ref, KEYED, turn=turn) == Settled("committed", 1)
    assert await store.everything() == before
    assert await asked(store, ref, KEYED) == Answered(turn, 1)
    assert await asked(store, ref, OTHER_OF_KEY) == KeyReused(turn)


async def test_an_append_that_was_refused_takes_no_key(store: Store) -> None:
    ref = await store.created()
    before = await store.everything()
    assert await append(store, ref, KEYED, head="head_x") == Fenced()
    assert await store.everything() == before
    assert await append(store, ref, OTHER_OF_KEY) == Settled("committed", 1)


async def test_an_append_meets_the_key_of_a_turn(store: Store) -> None:
    ref = await store.created()
    turn, begun = await store.begun(ref, request=KEYED)
    before = await store.everything()
    assert await append(store, ref, OTHER_OF_KEY) == KeyReused(turn)
    assert await store.everything() == before
    await store.commit(ref, turn, begun.head, [])
    assert await append(store, ref, OTHER_OF_KEY) == KeyReused(turn)
    assert await append(store, ref, KEYED) == Answered(turn, 1)
    aborted, second = Request("print", "second"), new_turn_id()
    await store.settled(ref, "aborted", aborted)
    assert await append(store, ref, Request("append", "second"), turn=second) == Settled("committed", 3)
    assert await append(store, ref, Request("append", "second")) == Answered(second, 3)


async def test_an_append_that_finds_the_lease_of_its_keys_turn_over_gets_the_key(store: Store) -> None:
    ref = await store.created()
    first, _ = await store.begun(ref, request=OTHER_OF_KEY, lease_ms=1)
    await store.until_lease_is_over(ref)
    second = new_turn_id()
    assert await append(store, ref, KEYED, turn=second) == Settled("committed", 2)
    assert await store.turns.fates(ref, [first]) == [Fate("dead", 1, delivered=False)]
    assert await append(store, ref, KEYED) == Answered(second, 2)


async def test_an_append_never_takes_a_running_turn_for_an_answer(store: Store) -> None:
    ref = await store.created()
    turn, _ = await store.begun(ref, request=KEYED)
    before = await store.everything()
    busy = await append(store, ref, KEYED)
    assert isinstance(busy, Busy)
    assert busy.turn_id == turn
    assert await store.everything() == before


async def test_a_turn_may_be_replaced_where_no_further_one_may_come(store: Store) -> None:
    ref = await store.created(max_turns=1)
    only = await store.committed(ref, elements(2))
    assert await store.begin(ref, new_turn_id()) == TurnsFull()
    replacing = Request("print", replaces=only)
    assert isinstance(await store.begin(ref, new_turn_id(), request=replacing, expected=only), Begun)
