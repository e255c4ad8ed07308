"""When a checkpoint is made, when not, and what of a summary is kept; the store and Claude are played."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from service.claude import Claude
from service.context import checkpoint, compacted, summary
from service.context.checkpoint import Compaction, Occasion, Rules
from service.errors import BatonError
from service.events import Event
from service.model_table import NEWEST, Model
from service.transcript import pack
from storage import elements
from storage.checkpoints import Checkpoint, Checkpoints, Cost, Wishes
from storage.keys import Keyspace
from storage.results import Claimed, Covered, Denied, Gone, Held, Moved
from tests.unit.claude_events import as_events, message_start, stop_events, text_block

pytestmark = pytest.mark.anyio

KEYSPACE = Keyspace("baton", 1, b"0123456789abcdef")
WINDOW = 1_000
TURN: list[dict[str, Any]] = [
    {"role": "user", "content": "x" * 100},
    {"role": "assistant", "content": [{"type": "text", "text": "y" * 100}]},
]


class Played:
    """Claude and the store: what they are asked, and what they answer."""

    def __init__(self, claim: Any = None, stop_reason: str = "end_turn", said: str = " It was said. ") -> None:
        self.answer = Claimed("n", 3, 5) if claim is None else claim
        self.events = as_events([message_start(), *text_block(0, said), *stop_events(stop_reason)])
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.claims: list[int] = []
        self.asked = 0
        self.stored: list[tuple[Claimed, bytes, Cost]] = []

    async def claim(self, _: Any, nonce: str, *, head: str, covers: int, claim_ms: int, kept: int) -> Any:
        assert (head, claim_ms) == ("turn_1", 2_500)
        assert kept >= covers
        await asyncio.sleep(0.01)  # the store is asked
        self.claims.append(covers)
        return self.answer

    async def store(self, _: Any, claimed: Claimed, summary: bytes, cost: Cost) -> int:
        self.stored.append((claimed, summary, cost))
        return claimed.version + 1

    async def stream(self, body: bytes, headers: Mapping[str, str] = {}) -> AsyncGenerator[list[Event], None]:
        self.asked += 1
        await self.go_on.wait()
        yield self.events

    def compaction(
        self, *, running_max: int = 2, window: int | None = WINDOW, automatic: bool = True, summarizing: int = 1_000_000
    ) -> Compaction:
        windows = {"m": window, "small": summarizing}

        def model_of(name: str) -> Model:
            return Model(NEWEST, input_tokens_max=windows[name])

        rules = Rules("small", 2.0, running_max, automatic=automatic, model_of=model_of)
        return Compaction(cast(Claude, self), cast(Checkpoints, self), rules)


def occasion(tokens: int = 0, *, turns: int = 8, target: int = 0) -> Occasion:
    ref = KEYSPACE.session(KEYSPACE.issue(), "ada")
    stored = pack(TURN * turns, elements.FIRST_DIGEST)
    return Occasion(ref, "turn_1", stored, None, Wishes(target), tokens, tokens / compacted.text_bytes(stored))


def there(**fields: Any) -> Callable[[], Awaitable[Occasion]]:
    """A session that is read."""

    async def read() -> Occasion:
        return occasion(**fields)

    return read


async def never() -> Occasion:
    raise AssertionError("it is read")


async def settled(compaction: Compaction) -> None:
    async with asyncio.timeout(5):
        while compaction.running:  # noqa: ASYNC110  # nothing tells it
            await asyncio.sleep(0.005)


async def test_a_session_over_its_threshold_gets_a_checkpoint() -> None:
    played = Played()
    compaction = played.compaction()
    compaction.after_commit(occasion(801), "m")
    await settled(compaction)
    assert played.stored == [(Claimed("n", 3, 5), b"It was said.", Cost(2, 3, 2))]
    assert played.claims == [12], "of eight turns two are left in a third of the threshold"


@pytest.mark.parametrize(
    ("tokens", "target", "window", "made"),
    [
        (800, 0, WINDOW, False),
        (801, 0, WINDOW, True),
        (401, 400, WINDOW, True),
        (400, 400, WINDOW, False),
        (801, 5_000, WINDOW, True),
        (10**9, 0, None, False),
        (401, 400, None, True),
    ],
)
async def test_the_threshold_is_the_lesser_of_window_and_target(
    tokens: int, target: int, window: int | None, made: bool
) -> None:
    played = Played()
    compaction = played.compaction(window=window)
    compaction.after_commit(occasion(tokens, target=target), "m")
    await settled(compaction)
    assert bool(played.stored) is made


@pytest.mark.parametrize(("target", "made"), [(0, False), (400, True)])
async def test_with_another_policy_only_the_session_s_own_target_counts(target: int, made: bool) -> None:
    played = Played()
    compaction = played.compaction(automatic=False)
    compaction.after_commit(occasion(900, target=target), "m")
    await settled(compaction)
    assert bool(played.stored) is made


@pytest.mark.parametrize(
    ("policy", "automatic", "made"),
    [("compact", False, True), ("truncate", True, False), ("error", True, False), ("", True, True), ("", False, False)],
)
async def test_the_sessions_own_policy_goes_first(policy: str, automatic: bool, made: bool) -> None:
    played = Played()
    compaction = played.compaction(automatic=automatic)
    compaction.after_commit(replace(occasion(900), wishes=Wishes(context_policy=policy)), "m")
    await settled(compaction)
    assert bool(played.stored) is made


async def test_what_gains_too_little_is_left_alone() -> None:
    played = Played()
    compaction = played.compaction()
    small = pack(TURN[:1] + TURN[1:], elements.FIRST_DIGEST)
    large = pack([{"role": "user", "content": "z" * 9_000}, TURN[1]] * 2, small[-1][1:9])
    crowded = occasion(900)
    compaction.after_commit(
        replace(crowded, elements=[*small, *large], rate=crowded.tokens / compacted.text_bytes([*small, *large])), "m"
    )
    await settled(compaction)
    assert (played.claims, played.asked) == ([], 0)


@pytest.mark.parametrize("answer", [Held(9), Moved("turn_2"), Gone(), Denied("viewer")])
async def test_nobody_pays_without_a_claim(answer: Any) -> None:
    played = Played(answer)
    compaction = played.compaction()
    compaction.after_commit(occasion(900), "m")
    await settled(compaction)
    assert (len(played.claims), played.asked) == (1, 0)


@pytest.mark.parametrize("fields", [{"stop_reason": "max_tokens"}, {"stop_reason": "refusal"}, {"said": " "}])
async def test_half_a_summary_is_none(fields: dict[str, str]) -> None:
    played = Played(**fields)
    compaction = played.compaction()
    large = occasion(900)
    with capture_logs() as logs:
        compaction.after_commit(large, "m")
        await settled(compaction)
    assert (played.asked, played.stored) == (1, [])
    assert [(one["event"], one["session"]) for one in logs] == [("checkpoint_failed", large.ref.id)]
    assert "It was said" not in str(logs)


async def test_there_is_a_bound_on_how_many_are_made_at_once_and_no_queue() -> None:
    played = Played()
    played.go_on.clear()
    compaction = played.compaction()
    for _ in range(4):
        compaction.after_commit(occasion(900), "m")
    assert compaction.running == 2
    with pytest.raises(BatonError) as refused:
        await compaction.on_demand(never)
    assert refused.value.code == "overloaded"
    played.go_on.set()
    await settled(compaction)
    assert len(played.stored) == 2


async def test_who_asks_at_the_same_time_is_bounded_too() -> None:
    played = Played()
    played.go_on.clear()
    compaction = played.compaction()
    answers = await asyncio.gather(*(compaction.on_demand(there()) for _ in range(6)), return_exceptions=True)
    assert compaction.running == 2
    assert answers.count(True) == 2
    assert [one.code for one in answers if isinstance(one, BatonError)] == ["overloaded"] * 4
    played.go_on.set()
    await settled(compaction)
    assert await compaction.on_demand(there()) is True, "there is room again"
    await settled(compaction)


@pytest.mark.parametrize("answer", [Moved("turn_2"), Held(9)])
async def test_who_was_refused_takes_no_place(answer: Any) -> None:
    compaction = Played(answer).compaction(running_max=1)
    for _ in range(3):
        await asyncio.gather(compaction.on_demand(there()), return_exceptions=True)
        assert compaction.running == 0


async def test_a_model_with_a_smaller_window_summarizes_as_much_as_it_takes() -> None:
    played = Played()
    compaction = played.compaction(summarizing=2_000)
    compaction.after_commit(occasion(80_100, turns=400, target=80_000), "m")
    await settled(compaction)
    assert len(played.stored) == 1
    [covers] = played.claims
    assert 0 < compacted.text_bytes(occasion(turns=400).elements[:covers]) <= 2_000


async def test_a_summary_that_nobody_could_send_again_is_none() -> None:
    played = Played(said="x" * (summary.BYTES_MAX + 1))
    compaction = played.compaction()
    compaction.after_commit(occasion(900), "m")
    await settled(compaction)
    assert (played.asked, played.stored) == (1, [])


async def test_a_replica_that_drains_finishes_what_it_makes_and_begins_nothing() -> None:
    played = Played()
    played.go_on.clear()
    compaction = played.compaction()
    compaction.after_commit(occasion(900), "m")
    await asyncio.sleep(0.05)
    compaction.drain()
    compaction.after_commit(occasion(900), "m")
    assert compaction.running == 1
    played.go_on.set()
    await settled(compaction)
    assert len(played.stored) == 1


async def test_what_the_end_cuts_short_stores_nothing() -> None:
    played = Played()
    played.go_on.clear()
    compaction = played.compaction()
    compaction.after_commit(occasion(900), "m")
    await asyncio.sleep(0.05)
    await compaction.aclose()
    assert (compaction.running, played.asked, played.stored) == (0, 1, [])


async def test_on_demand_all_but_two_turns_are_covered() -> None:
    played = Played()
    compaction = played.compaction()
    assert await compaction.on_demand(there(turns=8)) is True
    await settled(compaction)
    assert played.claims == [12]
    assert await compaction.on_demand(there(turns=2)) is False


@pytest.mark.parametrize(
    ("answer", "code"),
    [(Moved("turn_2"), "turn_in_progress"), (Gone(), "session_not_found"), (Denied("viewer"), "role_too_small")],
)
async def test_on_demand_it_is_said_why_not(answer: Any, code: str) -> None:
    with pytest.raises(BatonError) as refused:
        await Played(answer).compaction().on_demand(there())
    assert refused.value.code == code


async def test_on_demand_another_s_claim_is_as_good_as_one_s_own() -> None:
    played = Played(Held(9))
    assert await played.compaction().on_demand(there()) is True
    assert played.asked == 0


async def test_what_no_summary_can_make_smaller_is_not_summarized_at_every_turn() -> None:
    """Of 6,000 tokens 5,000 are system prompt and tools: more than the target, whatever is covered."""
    made = []
    covered = 0
    for turns in range(3, 23):
        played = Played()
        compaction = played.compaction(window=1_000_000)
        before = Checkpoint(1, covered, b"It was said.") if covered else None
        large = replace(occasion(turns=turns, target=1_000), checkpoint=before)
        rate = 0.25
        tokens = 5_000 + round(rate * compacted.text_bytes(large.elements[covered:]))
        compaction.after_commit(replace(large, tokens=tokens, rate=rate), "m")
        await settled(compaction)
        if played.claims:
            [covered] = played.claims
            made.append(turns)
    assert len(made) == 2, made


async def test_pictures_that_would_be_covered_count_as_what_they_cost() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "aGk"}
    shown = {"role": "user", "content": [{"type": "image", "source": source}]}
    stored = pack([shown, TURN[1]] * 8, elements.FIRST_DIGEST)
    played = Played()
    compaction = played.compaction(window=20_000)
    tokens = 8 * 1_600 + 5_000
    compaction.after_commit(replace(occasion(), elements=stored, tokens=tokens, rate=0.25), "m")
    await settled(compaction)
    assert played.claims == [12]


def in_turn(compaction: Compaction, found: list[Checkpoint | None]) -> asyncio.Task[Checkpoint | None]:
    """A turn that waits for a checkpoint, and what it reads one after the other."""

    async def read() -> Checkpoint | None:
        return found.pop(0) if len(found) > 1 else found[0]

    async def wait() -> Checkpoint | None:
        large = occasion(900)
        plan = await compaction.plan_for_turn(large, 0)
        assert plan is not None
        return await compaction.in_turn(large, plan, read)

    return asyncio.create_task(wait())


MADE = Checkpoint(4, 12, b"It was said.")


async def test_a_turn_waits_for_what_this_replica_makes_for_its_session_already() -> None:
    """And needs no place for that; there is but one."""
    played = Played()
    played.go_on.clear()
    compaction = played.compaction(running_max=1)
    large = occasion(900)
    compaction.after_commit(large, "m")
    await asyncio.sleep(0.05)
    plan = await compaction.plan_for_turn(large, 0)
    assert plan is not None

    async def read() -> Checkpoint | None:
        return MADE if played.stored else None

    waiting = asyncio.create_task(compaction.in_turn(large, plan, read))
    await asyncio.sleep(0.05)
    played.go_on.set()
    assert await waiting == MADE
    assert (played.asked, len(played.claims)) == (1, 1)


async def test_where_all_places_are_taken_by_others_a_turn_is_refused() -> None:
    played = Played()
    played.go_on.clear()
    compaction = played.compaction(running_max=1)
    compaction.after_commit(occasion(900), "m")
    with pytest.raises(BatonError) as refused:
        await in_turn(compaction, [None])
    assert refused.value.code == "overloaded"
    compaction.drain()
    with pytest.raises(BatonError) as refused:
        await in_turn(compaction, [None])
    assert refused.value.code == "draining"
    played.go_on.set()
    await settled(compaction)


async def test_a_turn_looks_for_another_s_checkpoint_and_claims_once_their_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint, "_POLL_S", 0.01)
    played = Played(Held(10_000))
    assert await in_turn(played.compaction(), [None, None, MADE]) == MADE
    assert (len(played.claims), played.asked) == (1, 0), "who only looks claims nothing"
    played = Played(Held(30))
    waiting = in_turn(played.compaction(), [None])
    await asyncio.sleep(0.1)
    played.answer = Claimed("n", 3, 5)
    async with asyncio.timeout(5):
        assert await waiting == Checkpoint(4, 14, b"It was said.")


@pytest.mark.parametrize(
    ("answer", "code"),
    [(Moved("turn_2"), "turn_superseded"), (Gone(), "session_not_found"), (Denied("viewer"), "role_too_small")],
)
async def test_within_a_turn_it_is_said_why_there_is_none(answer: Any, code: str) -> None:
    with pytest.raises(BatonError) as refused:
        await in_turn(Played(answer).compaction(), [None])
    assert refused.value.code == code


async def test_what_was_covered_meanwhile_is_gone_on_with() -> None:
    assert await in_turn(Played(Covered()).compaction(), [MADE]) == MADE
    assert await in_turn(Played(Covered()).compaction(), [None]) is None


async def test_a_turn_that_goes_while_it_claims_leaves_no_claim_without_a_summary() -> None:
    played = Played()
    compaction = played.compaction()
    waiting = in_turn(compaction, [None])
    while not compaction.running:  # noqa: ASYNC110  # nothing tells it
        await asyncio.sleep(0)
    assert played.claims == [], "the store is being asked"
    waiting.cancel()
    await settled(compaction)
    assert (len(played.claims), len(played.stored)) == (1, 1)
