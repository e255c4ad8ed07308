"""The lease's renewals: how soon they come, and that a store which refuses is left alone."""

import asyncio
from typing import Any, cast

import pytest

from service.lease import _BATCH_BYTES, _STORE_WAIT_S, Lease
from storage.keys import Keyspace, SessionRef
from storage.results import Renewed, StoreUnavailable
from storage.turns import Shown, Turns, Usage

pytestmark = pytest.mark.anyio

KEYSPACE = Keyspace("test", 1, b"sixteen bytes or more")


class Renewals:
    """Notes what each renewal logs; refuses the first ``refusals`` at once, as a server does that takes no writes."""

    def __init__(self, refusals: int = 0) -> None:
        self.refusals = refusals
        self.logged: list[Shown] = []
        self.at: list[float] = []
        self._asked: asyncio.Queue[None] = asyncio.Queue()

    async def renew(self, _: SessionRef, __: str, *, shown: Shown, **___: Any) -> Renewed:
        self.at.append(asyncio.get_running_loop().time())
        self.logged.append(shown)
        self._asked.put_nowait(None)
        if len(self.logged) <= self.refusals:
            raise StoreUnavailable("ReadOnlyError", outcome_unknown=False)
        return Renewed(cancel=False)

    async def next(self) -> None:
        """Waits for one more renewal."""
        async with asyncio.timeout(10):
            await self._asked.get()


def lease_on(store: Renewals) -> Lease:
    ref = KEYSPACE.session(KEYSPACE.issue(), "ada")
    return Lease(cast(Turns, store), ref, "turn_x", lease_ms=60_000, usage=Usage, interrupt=lambda _: None)


async def test_a_store_that_refuses_is_asked_again_after_a_pause_and_nothing_is_lost() -> None:
    store = Renewals(refusals=1)
    lease = lease_on(store)
    lease.keep()
    frames = b"x" * _BATCH_BYTES  # so much that a renewal is due at once
    lease.shown(frames, 1)
    await store.next()
    lease.shown(frames, 2)
    await store.next()
    lease.stop()
    assert store.at[1] - store.at[0] >= _STORE_WAIT_S
    assert store.logged == [Shown(1, frames), Shown(2, frames + frames)]


async def test_what_is_due_at_once_may_come_again_before_it_has_happened() -> None:
    store = Renewals()
    lease = lease_on(store)
    lease.keep()
    frames = b"x" * _BATCH_BYTES
    for ordinal in (1, 2, 3):
        lease.shown(frames, ordinal)
    await store.next()
    lease.stop()
    assert store.logged == [Shown(3, 3 * frames)]


async def test_what_is_not_logged_goes_with_the_verdict() -> None:
    store = Renewals()
    lease = lease_on(store)
    lease.keep()
    lease.shown(b"one ", 1)
    assert lease.unlogged(b"end", 2) == Shown(2, b"one end")
    await asyncio.sleep(0)
    lease.stop()
    assert store.logged == []
