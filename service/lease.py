"""The lease of a running turn, and its log: renewed every third of the lease's length, from begin to the verdict.

A renewal carries what the caller was shown since the last one into the session's log, and asks how the turn stands:
whether somebody wants it cancelled, whether it was declared dead meanwhile, whether its session is still there, and
still shared with its caller so that it may write.
While an answer streams it comes sooner: with the first frame, then once 8 KiB wait or 250 ms have passed. A store that
does not answer is no reason to stop: the lease may run out, but commit decides by the session's head. What could not be
logged is tried again with what came since, and at last goes with the commit.

A renewal under way is never cancelled: that would cost its connection to the store.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from service.interrupt import Interrupt
from storage.keys import SessionRef
from storage.results import Denied, Gone, Lost, Renewed, Settled, StoreUnavailable
from storage.turns import Shown, Turns, Usage

_BATCH_BYTES: Final = 8 * 1024
_BATCH_S: Final = 0.25
_STORE_WAIT_S: Final = 1.0
_LOG_BYTES_MAX: Final = 8 * 1024 * 1024  # as in scripts/shared/log.lua; what comes behind is not kept here either
_RENEWING: Final[set[asyncio.Task[None]]] = set()  # so that one which is the last of its turn is not lost


def _nobody(why: Interrupt) -> None:
    """Interrupts nobody: what has its verdict is not stopped any more."""


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
        self._not_before = 0.0  # a store that does not answer is left alone for a moment
        self._due = 0.0  # kept beside it: uvloop's handles of what is due at once do not tell
        self._renewing: asyncio.Task[None] | None = None
        self._stopped = False
        self._handed_on = False  # what is not logged goes with the verdict
        self._unlogged: list[bytes] = []
        self._unlogged_bytes = 0
        self._shown_bytes = 0
        self._ordinal = 0  # of the last frame shown

    def keep(self) -> None:
        """Begins to renew; the lease was just granted."""
        self._renew_within(self._lease_ms / 3000)

    def stop(self) -> None:
        """Renews no more, and lets go of the turn that is to be interrupted: it holds this lease."""
        self._stopped = True
        self._interrupt = _nobody
        if self._timer is not None:
            self._timer.cancel()

    def shown(self, frames: bytes, ordinal: int) -> None:
        """Notes frames that the caller is shown, for the log; ``ordinal`` is the last one's."""
        first = self._ordinal == 0
        self._ordinal = ordinal
        if self._shown_bytes > _LOG_BYTES_MAX:
            return
        self._shown_bytes += len(frames)
        self._unlogged.append(frames)
        self._unlogged_bytes += len(frames)
        self._renew_within(0 if first else self._due_s())

    def unlogged(self, frames: bytes, ordinal: int) -> Shown:
        """What the log does not have yet and the last frames of all, to go with the verdict; the lease goes on."""
        self._handed_on = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._renew_within(self._due_s())
        return Shown(ordinal, b"".join((*self._unlogged, frames)))

    def _due_s(self) -> float:
        """How long the next renewal may wait."""
        if self._handed_on or not self._unlogged:
            return self._lease_ms / 3000
        return 0 if self._unlogged_bytes >= _BATCH_BYTES else _BATCH_S

    def _renew_within(self, wait_s: float) -> None:
        """Renews after so long, or earlier if that was planned; while a renewal is under way, its end decides."""
        if self._stopped or self._renewing is not None:
            return
        loop = asyncio.get_running_loop()
        due = max(loop.time() + wait_s, self._not_before)
        if self._timer is not None:
            if self._due <= due:
                return
            self._timer.cancel()
        self._due = due
        self._timer = loop.call_at(due, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._renewing = asyncio.create_task(self._renew())
        _RENEWING.add(self._renewing)
        self._renewing.add_done_callback(_RENEWING.discard)

    async def _renew(self) -> None:
        batch = 0 if self._handed_on else len(self._unlogged)
        shown = Shown(self._ordinal, b"".join(self._unlogged[:batch])) if batch else Shown()
        result: Renewed | Settled | Lost | Denied | Gone | None
        try:
            result = await self._turns.renew(
                self._ref, self._turn_id, lease_ms=self._lease_ms, usage=self._usage(), shown=shown
            )
        except StoreUnavailable:
            result = None
            self._not_before = asyncio.get_running_loop().time() + _STORE_WAIT_S
        else:
            del self._unlogged[:batch]
            self._unlogged_bytes -= len(shown.frames)
        self._renewing = None
        match result:
            case Gone():
                self._interrupt(Interrupt.SESSION_GONE)
            case Denied():
                self._interrupt(Interrupt.ROLE_LOST)
            case Settled() | Lost():
                self._interrupt(Interrupt.LEASE_LOST)
            case _:
                if isinstance(result, Renewed) and result.cancel:
                    self._interrupt(Interrupt.CANCELLED)
                self._renew_within(self._due_s())
