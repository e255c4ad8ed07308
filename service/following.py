"""An answer as its first caller is shown it, for somebody who comes back or late: read from the session's log.

The log is polled. Its last entry is written by the script that gives the turn its verdict, so its end is the turn's. A
turn whose replica has vanished writes no end by itself: every two seconds of silence the follower asks as a finder
does, which the store answers with nothing while the lease holds, and with the verdict `dead` after it. Only that is
told. Nobody concludes death from a clock.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from typing import Final

from service.errors import events_not_found, session_not_found, store_unavailable
from service.interrupt import Interrupt, draining
from storage.keys import SessionRef
from storage.log import Log, Tail
from storage.results import Gone, StoreUnavailable, UnknownTurn
from storage.turns import Turns

_POLL_S: Final = (0.02, 0.05, 0.1, 0.2, 0.25)
_SILENCE_S: Final = 2.0  # then it is asked whether anybody still runs the turn
_STORE_WAIT_S: Final = 15.0  # a store that is away for so long ends the following


class Following:
    """One follower of one turn.

    Args:
        log, turns: the store.
        ref: the session; the caller may see it.
        turn_id, number: the turn, one whose answer is logged.
        after: ordinal of the last frame that the caller has; 0 for none.
        stopping: whether this replica has to end soon.

    Attributes:
        ordinal: of the last frame that was yielded.
        settled: the turn has its verdict.
        revoked: set by whoever learns that the follower may not follow any more.
    """

    def __init__(
        self,
        log: Log,
        turns: Turns,
        ref: SessionRef,
        turn_id: str,
        number: int,
        *,
        after: int = 0,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._log = log
        self._turns = turns
        self._ref = ref
        self._turn_id = turn_id
        self._number = number
        self._stopping = stopping
        self._heard_at = time.monotonic()
        self.ordinal = after
        self.settled = False
        self.revoked = False

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """Frames after the ones that the caller has, as they come; the last ones say how the turn ended.

        Raises:
            BatonError: revoked_api_key, turn_interrupted if its replica vanished, events_not_found, session_not_found,
                store_unavailable, draining.
        """
        polls = 0
        while True:
            if self.revoked:
                raise Interrupt.REVOKED.told()
            tail = await self._tail()
            self.settled = tail.fate is not None
            if tail.frames:
                self.ordinal = tail.ordinal
                self._heard_at, polls = time.monotonic(), 0
                yield tail.frames
            match tail.end:
                case "told":
                    return
                case "dead":
                    raise Interrupt.REPLICA_LOST.told()
                case "overflow":
                    raise events_not_found()
                case "gone" | "hidden":
                    raise session_not_found()
            if tail.fate is not None and not tail.frames:
                raise events_not_found()
            if not tail.frames:
                if self._stopping():
                    raise draining()
                await self._find()
                await asyncio.sleep(_POLL_S[min(polls, len(_POLL_S) - 1)])
                polls += 1

    async def _tail(self) -> Tail:
        """What the log holds behind the last frame; a store that is away for a moment is waited for."""
        while True:
            try:
                return await self._log.tail(self._ref, self._turn_id, self._number, self.ordinal)
            except StoreUnavailable as error:
                if time.monotonic() - self._heard_at > _STORE_WAIT_S:
                    raise store_unavailable(error) from error
                if self._stopping():
                    raise draining() from error
                await asyncio.sleep(_POLL_S[-1])

    async def _find(self) -> None:
        """After a silence: the verdict dead, if nobody runs the turn any more; the next look at the log tells."""
        if time.monotonic() - self._heard_at < _SILENCE_S:
            return
        self._heard_at = time.monotonic()
        try:
            found = await self._turns.abort(self._ref, self._turn_id, "finder")
        except StoreUnavailable:
            return
        if isinstance(found, Gone):
            raise session_not_found()
        if isinstance(found, UnknownTurn):
            raise Interrupt.REPLICA_LOST.told()
