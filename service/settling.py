"""One verdict for a turn, and what its caller is told of it.

If the store does not answer: a begin is tried within its budget, then aborted so that it cannot take effect later, and
nothing was asked of Claude. A commit of unknown outcome is sent again; then the turn is aborted. An answered abort says
for sure what became of the turn; without an answer the caller is told that it is not known, with the turn's id.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Final, Literal

from service import telemetry
from service.errors import BatonError, session_corrupt, session_not_found
from service.interrupt import Interrupt
from storage.keys import SessionRef
from storage.results import Corrupt, Denied, Fenced, Gone, Removed, Settled, StoreUnavailable
from storage.turns import Commit, Shown, Turns

_ABORT_WAIT_S: Final = 1.5
_ABORTING: Final[set[asyncio.Task[None]]] = set()  # what goes on after its exchange; a lost one costs one lease

Status = Literal["complete", "incomplete", "refused"]
Told = Callable[[BatonError], Shown]
"""How a streamed turn ends for its caller, given the error that it is told. Asked for once the error is known."""


class Settlement:
    """The settling of one turn.

    Args:
        turns: the store.
        ref: the session.
        turn_id: the turn.
        abort_later_s: an abort that is not answered is tried so long behind the caller's back.
    """

    def __init__(
        self,
        turns: Turns,
        ref: SessionRef,
        turn_id: str,
        *,
        abort_later_s: float,
    ) -> None:
        self._turns = turns
        self._ref = ref
        self._turn_id = turn_id
        self._abort_later_s = abort_later_s

    async def commit(self, commit: Commit, status: Status, told: Told) -> BatonError | None:
        """None if the turn is stored, else what became of it."""
        started = time.perf_counter()
        try:
            result = await self._turns.commit(self._ref, self._turn_id, commit)
        except StoreUnavailable as error:
            return await self._unsaved(error, status, told)
        finally:
            telemetry.PHASE_SECONDS["commit"].observe(time.perf_counter() - started)
        match result:
            case Settled("committed"):
                count(status)
                return None
            case Fenced():
                await self.abort(Interrupt.LEASE_LOST.told(), told)
                count("superseded")
                return Interrupt.LEASE_LOST.told()
            case Settled():
                count("superseded")
                return Interrupt.LEASE_LOST.told()
            case Corrupt():
                await self.abort(session_corrupt(), told)
                telemetry.log.error("session_corrupt", session=self._ref.id)
                return session_corrupt()
            case Denied():
                await self.abort(Interrupt.ROLE_LOST.told(), told)
                return Interrupt.ROLE_LOST.told()
            case Gone():
                count("session_gone")
                return session_not_found()

    async def _unsaved(self, cause: StoreUnavailable, status: Status, told: Told) -> BatonError | None:
        """The commit was not answered: an answered abort tells what became of the turn."""
        telemetry.log.warning(
            "commit_unanswered", session=self._ref.id, turn=self._turn_id, unknown=cause.outcome_unknown
        )
        not_saved = BatonError("session_not_saved", "The answer could not be stored; the session is as it was before.")
        try:
            result = await self._turns.abort(self._ref, self._turn_id, "holder", end=told(not_saved))
        except StoreUnavailable:
            if cause.outcome_unknown:
                count("unknown")
                return BatonError("session_save_unknown", f"Whether turn {self._turn_id} was stored is not known.")
        else:
            match result:
                case Settled("committed"):
                    count(status)
                    return None
                case Settled("dead"):
                    count("superseded")
                    return Interrupt.LEASE_LOST.told()
                case Gone():
                    count("session_gone")
                    return session_not_found()
        count("not_saved")
        return not_saved

    async def abort(self, failure: BatonError, told: Told) -> None:
        """Tries to settle the turn before its caller is told; if the store is silent, goes on trying behind its back.

        A silent store must not keep the caller waiting: nothing was promised, and the lease is the last resort.
        """
        end = told(failure)
        started = time.perf_counter()
        try:
            result = await self._turns.abort(self._ref, self._turn_id, "holder", end=end, budget_s=_ABORT_WAIT_S)
        except StoreUnavailable:
            telemetry.log.warning("abort_unanswered", session=self._ref.id, turn=self._turn_id)
            task = asyncio.create_task(self._abort_later(end))
            _ABORTING.add(task)
            task.add_done_callback(_ABORTING.discard)
        else:
            count("removed" if isinstance(result, Removed) else "aborted")
        finally:
            telemetry.PHASE_SECONDS["abort"].observe(time.perf_counter() - started)

    async def _abort_later(self, end: Shown) -> None:
        with contextlib.suppress(StoreUnavailable):
            await self._turns.abort(self._ref, self._turn_id, "holder", end=end, budget_s=self._abort_later_s)
            telemetry.log.info("aborted_late", session=self._ref.id, turn=self._turn_id)


def unanswered_aborts() -> int:
    """How many aborts are still tried behind their callers' backs."""
    return len(_ABORTING)


def count(outcome: telemetry.Outcome) -> None:
    """Counts a settled turn."""
    telemetry.TURNS[outcome].inc()
