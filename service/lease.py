"""The lease of a running turn: renewed every third of its length, from begin to the verdict.

A renewal also asks how the turn stands: whether somebody wants it cancelled, whether it was declared dead meanwhile,
and whether its session is still there. A store that does not answer is no reason to stop: the lease may run out, but
commit decides by the session's head.
"""

import asyncio
from collections.abc import Callable

from service.exchange import Interrupt
from storage.keys import SessionRef
from storage.results import Gone, Lost, Renewed, Settled, StoreUnavailable
from storage.turns import Turns, Usage


class Lease:
    """The lease of one turn.

    Args:
        turns: the store.
        ref: the session.
        turn_id: who holds it.
        lease_ms: its length.
        usage: Claude's usage so far, asked for at each renewal.
        interrupt: called with the reason why the turn should stop.
    """

    def __init__(
        self,
        turns: Turns,
        ref: SessionRef,
        turn_id: str,
        *,
        lease_ms: int,
        usage: Callable[[], Usage],
        interrupt: Callable[[Interrupt], None],
    ) -> None:
        self._turns = turns
        self._ref = ref
        self._turn_id = turn_id
        self._lease_ms = lease_ms
        self._usage = usage
        self._interrupt = interrupt
        # A timer, and a task only when it fires: most turns end before the first renewal.
        self._timer: asyncio.TimerHandle | None = None
        self._renewing: asyncio.Task[None] | None = None

    def keep(self) -> None:
        """Begins to renew; the lease was just granted."""
        self._timer = asyncio.get_running_loop().call_later(self._lease_ms / 3000, self._fire)

    async def stop(self) -> None:
        """Renews no more."""
        if self._renewing is not None and not self._renewing.done():
            self._renewing.cancel()
            await asyncio.wait([self._renewing])
        if self._timer is not None:
            self._timer.cancel()

    def _fire(self) -> None:
        self._renewing = asyncio.create_task(self._renew())

    async def _renew(self) -> None:
        result: Renewed | Settled | Lost | Gone | None
        try:
            result = await self._turns.renew(self._ref, self._turn_id, lease_ms=self._lease_ms, usage=self._usage())
        except StoreUnavailable:
            result = None
        match result:
            case Gone():
                self._interrupt(Interrupt.SESSION_GONE)
            case Settled() | Lost():
                self._interrupt(Interrupt.LEASE_LOST)
            case _:
                if isinstance(result, Renewed) and result.cancel:
                    self._interrupt(Interrupt.CANCELLED)
                self.keep()
