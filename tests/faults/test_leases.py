"""A turn under way keeps what it stands on: its lease is renewed, and its session does not expire under it."""

from collections.abc import AsyncIterator

import pytest

from tests.faults.call import assert_complete, assert_told
from tests.faults.places import Place
from tests.faults.stage import LEASE_MS, Stage, answer, stage

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

FIFTH_WORD = 8
TTL_MS = 1_000


@pytest.fixture(scope="module")
async def short_lived(
    anyio_backend: str, tmp_path_factory: pytest.TempPathFactory, ground_store: Place
) -> AsyncIterator[Stage]:
    """A stage whose victim makes sessions that live for a second."""
    async with stage(tmp_path_factory.mktemp("stage"), ground_store) as one:
        await one.victim(BATON_SESSION_TTL_S=str(TTL_MS // 1_000))
        yield one


async def test_a_slow_turn_keeps_its_lease(short_lived: Stage) -> None:
    scene, victim = await short_lived.scene(), await short_lived.victim()
    trap = scene.at_claude(victim, FIFTH_WORD)
    call = scene.ask(victim, "victim")
    await trap.reached()
    begun = await scene.books()
    refused = 0
    while await short_lived.now_ms() < begun.lease_ends_ms + 2 * LEASE_MS:
        seen = await scene.ask(short_lived.survivor, "other", X_Session_On_Conflict="reject").ended()
        assert_told(seen, "turn_in_progress", 409)
        assert (seen.status, seen.headers["x-turn-id"]) == (409, begun.holder)
        assert int(seen.headers["retry-after"]) >= 1
        refused += 1
    assert refused > 3
    trap.release()
    assert_complete(await call.ended(), answer("victim", "first"))
    await scene.told(short_lived.survivor, "next", after="victim")
    books = await scene.books()
    books.assert_holds("first", "victim", "next")
    assert books.story == "CCC"


async def test_a_session_does_not_expire_under_a_turn_even_if_nobody_renews_it(short_lived: Stage) -> None:
    scene, victim = short_lived.empty_scene(), await short_lived.victim()
    trap = scene.at_claude(victim, FIFTH_WORD)
    call = scene.ask(victim, "victim")
    await trap.reached()
    victim.freeze()
    await short_lived.until_ms(await short_lived.now_ms() + 2 * TTL_MS)
    assert (await scene.books()).story == "."
    trap.release()
    victim.thaw()
    assert_complete(await call.ended(), answer("victim", "none"))
    (await scene.books()).assert_holds("victim")
    assert await short_lived.store.pexpiretime(scene.ref.keys[0]) <= await short_lived.now_ms() + TTL_MS
    await scene.until(lambda books: books.records == ())  # its own life goes on, and ends
