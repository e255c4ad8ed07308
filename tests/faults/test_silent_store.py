"""A store that does not answer: what is sent again, what is given up, and what the caller is told.

Two replicas behind proxies of their own: a patient one with the settings as they come, and an impatient one that gives
up after a second, before its commands do (two seconds): what it gave up is still on its way.

What a caller is told of a commit that was not acknowledged:

    an abort was answered: aborted      session_not_saved     and a commit that arrives later writes nothing
    an abort was answered: committed    the end of the answer
    nothing ever reached the store      session_not_saved     the lease runs out
    else                                session_save_unknown  stored or not, but one of the two
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from storage.connect import Deadlines
from tests.faults.call import assert_complete, assert_told
from tests.faults.places import Place
from tests.faults.stage import Books, Scene, Stage, answer, stage, until
from tests.instruments.processes import Replica
from tests.instruments.stall import RedisStall

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

BUDGET_S = "1"
ALL = answer("victim", "first")
either_way = pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "json"])


@dataclass(frozen=True, slots=True)
class Cast:
    """Who plays: `survivor` of the stage, and these two."""

    stage: Stage
    patient: Replica
    impatient: Replica


@pytest.fixture(scope="module")
async def cast(
    anyio_backend: str, tmp_path_factory: pytest.TempPathFactory, ground_store: Place
) -> AsyncIterator[Cast]:
    async with stage(tmp_path_factory.mktemp("stage"), ground_store) as one:
        patient, impatient = await asyncio.gather(
            one.victim(), one.victim(BATON_STORE_BEGIN_S=BUDGET_S, BATON_STORE_SETTLE_S=BUDGET_S)
        )
        yield Cast(one, patient, impatient)


def stall(replica: Replica) -> RedisStall:
    """The proxy between a replica and the store."""
    assert replica.redis_stall is not None
    return replica.redis_stall


async def assert_works(scene: Scene, *stored: str) -> Books:
    """The survivor goes on with this history."""
    await scene.told(scene.stage.survivor, "next", after=stored[-1])
    books = await scene.books()
    books.assert_holds(*stored, "next")
    return books


@contextmanager
def frozen(cast: Cast) -> Iterator[None]:
    """The store stands still meanwhile; connections to it can be made and get no word."""
    with cast.stage.place.frozen():
        yield


# Lost on the way: sent again.


@either_way
@pytest.mark.parametrize("lost", ["request", "reply"])
@pytest.mark.parametrize("verb", ["begin", "commit"])
async def test_a_lost_packet_is_sent_again_and_counts_once(cast: Cast, verb: str, lost: str, streamed: bool) -> None:
    scene, proxy = await cast.stage.scene(), stall(cast.patient)
    trap = scene.at_request(cast.patient, verb) if lost == "request" else scene.at_reply(cast.patient, verb)
    call = scene.ask(cast.patient, "victim", streamed=streamed)
    await trap.reached()
    trap.drop()
    assert_complete(await call.ended(), ALL)
    assert proxy.count(scene.is_script(verb)) == 2
    assert (await assert_works(scene, "first", "victim")).story == "CCC"


async def test_a_history_that_was_lost_on_the_way_is_read_again(cast: Cast) -> None:
    scene = await cast.stage.scene()
    trap = scene.at_history(cast.patient)
    call = scene.ask(cast.patient, "victim")
    await trap.reached()
    trap.drop()
    assert_complete(await call.ended(), ALL)
    assert (await assert_works(scene, "first", "victim")).story == "CCC"


@either_way
async def test_a_store_that_is_silent_for_longer_than_a_command_delays_a_commit(cast: Cast, streamed: bool) -> None:
    scene, proxy = await cast.stage.scene(), stall(cast.patient)
    trap = scene.at_request(cast.patient, "commit")
    call = scene.ask(cast.patient, "victim", streamed=streamed)
    await trap.reached()
    with frozen(cast):
        connections = proxy.commands[-1].connection
        silent_until = time.monotonic() + Deadlines().command_s
        trap.release()

        async def given_up_once() -> bool:
            """The command's deadline has passed, and another connection was made for the next attempt."""
            return time.monotonic() > silent_until and proxy.commands[-1].connection > connections

        await until(given_up_once)
        assert call.seen().finish is None
    assert_complete(await call.ended(), ALL)
    assert proxy.count(scene.is_script("commit")) == 2
    assert (await assert_works(scene, "first", "victim")).story == "CCC"


# Given up: a begin.


@either_way
async def test_a_begin_that_was_given_up_is_refused_when_it_arrives(cast: Cast, streamed: bool) -> None:
    scene = await cast.stage.scene()
    trap = scene.at_request(cast.impatient, "begin")
    seen = await scene.ask(cast.impatient, "victim", streamed=streamed).ended()
    assert_told(seen, "store_unavailable", 503)
    assert (seen.status, seen.headers["x-should-retry"]) == (503, "true")
    settled = await scene.books()
    assert settled.verdicts[seen.headers["x-turn-id"]] == "A0"
    async with cast.stage.script_executed():
        trap.release()
    assert await scene.books() == settled
    assert (settled.holder, settled.story) == ("", "C")
    assert (await assert_works(scene, "first")).story == "CC"


async def test_a_begin_whose_answer_came_too_late_is_taken_back(cast: Cast) -> None:
    scene = await cast.stage.scene()
    trap = scene.at_reply(cast.impatient, "begin")
    seen = await scene.ask(cast.impatient, "victim").ended()
    trap.release()
    assert_told(seen, "store_unavailable", 503)
    books = await scene.books()
    assert (books.holder, books.story) == ("", "CA")
    assert (await assert_works(scene, "first")).story == "CAC"


async def test_without_a_store_nothing_is_begun_and_claude_is_not_asked(cast: Cast) -> None:
    scene, proxy = await cast.stage.scene(), stall(cast.impatient)
    asked = await cast.stage.fleet.simulator.total()
    await proxy.refuse()
    seen = await scene.ask(cast.impatient, "victim").ended()
    await proxy.accept()
    assert_told(seen, "store_unavailable", 503)
    assert seen.status == 503
    assert await cast.stage.fleet.simulator.total() == asked
    assert (await assert_works(scene, "first")).story == "CC"


async def test_a_turn_whose_history_cannot_be_read_is_aborted(cast: Cast) -> None:
    scene = await cast.stage.scene()
    trap = scene.at_history(cast.impatient)
    call = scene.ask(cast.impatient, "victim")
    await trap.reached()
    seen = await call.ended()
    trap.drop()
    assert_told(seen, "store_unavailable", 503)
    assert seen.status == 503
    assert (await assert_works(scene, "first")).story == "CAC"


# Given up: a commit.


@either_way
async def test_a_commit_that_was_aborted_writes_nothing_when_it_arrives(cast: Cast, streamed: bool) -> None:
    scene = await cast.stage.scene()
    trap = scene.at_request(cast.impatient, "commit")
    seen = await scene.ask(cast.impatient, "victim", streamed=streamed).ended()
    assert_told(seen, "session_not_saved", 503)
    assert seen.status == (200 if streamed else 503)
    settled = await scene.books()
    assert settled.story == "CA"
    async with cast.stage.script_executed():
        trap.release()
    assert await scene.books() == settled
    assert (await assert_works(scene, "first")).story == "CAC"


@either_way
async def test_a_commit_that_an_abort_finds_done_is_told_as_done(cast: Cast, streamed: bool) -> None:
    scene = await cast.stage.scene()
    trap = scene.at_reply(cast.impatient, "commit")
    seen = await scene.ask(cast.impatient, "victim", streamed=streamed).ended()
    trap.drop()
    assert_complete(seen, ALL)
    assert (await assert_works(scene, "first", "victim")).story == "CCC"


@either_way
async def test_a_commit_that_never_reached_the_store_is_not_saved(cast: Cast, streamed: bool) -> None:
    scene, proxy = await cast.stage.scene(), stall(cast.impatient)
    trap = scene.at_claude(cast.impatient, "message_delta")
    call = scene.ask(cast.impatient, "victim", streamed=streamed)
    await trap.reached()
    await proxy.refuse()
    trap.release()
    seen = await call.ended()
    await proxy.accept()
    assert_told(seen, "session_not_saved", 503)
    assert (await scene.books()).story == "C."
    assert (await assert_works(scene, "first")).story == "CDC"


@either_way
async def test_a_commit_whose_answer_is_lost_with_the_store_is_unknown(cast: Cast, streamed: bool) -> None:
    scene, proxy = await cast.stage.scene(), stall(cast.impatient)
    trap = scene.at_reply(cast.impatient, "commit")
    call = scene.ask(cast.impatient, "victim", streamed=streamed)
    await trap.reached()
    await proxy.refuse()
    seen = await call.ended()
    await proxy.accept()
    assert_told(seen, "session_save_unknown", 503)
    turn_id = seen.headers["x-turn-id"]
    assert turn_id in seen.frames[-1]["error"]["message"]
    if not streamed:
        assert (seen.status, seen.headers["x-should-retry"]) == (503, "false")
    books = await assert_works(scene, "first", "victim")
    assert books.verdicts[turn_id] == "C2"


async def test_a_store_that_is_silent_for_longer_than_anybody_waits_is_unknown(cast: Cast) -> None:
    scene = await cast.stage.scene()
    trap = scene.at_request(cast.impatient, "commit")
    call = scene.ask(cast.impatient, "victim")
    await trap.reached()
    with frozen(cast):
        trap.release()
        seen = await call.ended()
    assert_told(seen, "session_save_unknown", 503)
    books = await scene.until(lambda books: books.story != "C.")  # commit and abort have arrived, in whichever order
    stored = {"CC": ("first", "victim"), "CA": ("first",)}[books.story]
    assert (await assert_works(scene, *stored)).story == books.story + "C"


# The store comes back.


async def test_connections_that_were_closed_while_idle_cost_no_turn(cast: Cast) -> None:
    scenes, proxy = [await cast.stage.scene() for _ in range(6)], stall(cast.patient)

    async def all_at_once(mark: str, before: str) -> None:
        calls = [scene.ask(cast.patient, mark) for scene in scenes]
        for call in calls:
            assert_complete(await call.ended(), answer(mark, before))

    await all_at_once("victim", "first")
    await proxy.refuse()
    await proxy.accept()
    await all_at_once("other", "victim")
    for scene in scenes:
        assert proxy.count(scene.is_script("begin")) == 2
        await assert_works(scene, "first", "victim", "other")
