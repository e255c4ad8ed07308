"""Whether an answer has reached its caller, noted on its turn.

A client library that lost the connection sends its request again. Was the answer delivered, that is a new turn; was it
not, it is the same one (scripts/begin.lua). Bytes that were written to an open connection may still never be read: a
client that gave up a moment ago closes its end, and that is seen a moment later: as late as its machine lets it run
again. So an answer counts as delivered if its connection is still open five seconds after the last byte. Where that is
doubtful (the client closed it, because it was done or because it had given up) nothing is noted: a retry then gets the
same answer again, which is never wrong.

Off the path of the answer; what is not noted when the replica ends stays undelivered.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from starlette.types import Scope

from service import telemetry
from storage.keys import SessionRef
from storage.results import StoreUnavailable
from storage.turns import Turns

_GRACE_S: Final = 5.0  # clients of a busy machine were seen to stand still for two
_WAITING_MAX: Final = 10_000  # more are forgotten, oldest first

CONNECTION: Final = "baton.connection"
"""The ASGI extension whose ``is_open`` tells whether the client still holds its connection (http_protocol.py)."""


def connection_of(scope: Scope) -> Callable[[], bool]:
    """Whether the client of a request is still there; where the server does not tell, it is taken to be."""
    is_open: Callable[[], bool] = scope.get("extensions", {}).get(CONNECTION, {}).get("is_open", lambda: True)
    return is_open


class _Answer(NamedTuple):
    due: float
    is_open: Callable[[], bool]
    ref: SessionRef
    turn_id: str


class Deliveries:
    """The answers of one replica that were just sent. ``turns`` is the store."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._waiting: deque[_Answer] = deque(maxlen=_WAITING_MAX)
        self._timer: asyncio.TimerHandle | None = None
        self._noting: asyncio.Task[None] | None = None

    def sent(self, scope: Scope, ref: SessionRef, turn_id: str) -> None:
        """The whole answer of a turn was written."""
        is_open = connection_of(scope)
        if not is_open():
            return
        loop = asyncio.get_running_loop()
        self._waiting.append(_Answer(loop.time() + _GRACE_S, is_open, ref, turn_id))
        if self._timer is None:
            self._timer = loop.call_later(_GRACE_S, self._look)

    @property
    def waiting(self) -> int:
        """How many answers are not noted yet."""
        return len(self._waiting)

    def _look(self) -> None:
        self._timer = None
        if self._noting is None or self._noting.done():
            self._noting = asyncio.create_task(self._note())
        else:
            self._timer = asyncio.get_running_loop().call_later(_GRACE_S, self._look)

    async def _note(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting and self._waiting[0].due <= loop.time():
            answer = self._waiting.popleft()
            if answer.is_open():
                try:
                    await self._turns.delivered(answer.ref, answer.turn_id)
                except StoreUnavailable as error:
                    telemetry.log.info("delivery_not_noted", turn=answer.turn_id, cause=str(error))
        if self._waiting and self._timer is None:
            self._timer = loop.call_at(self._waiting[0].due, self._look)

    async def aclose(self) -> None:
        """Notes nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._noting is not None and not self._noting.done():
            self._noting.cancel()
            await asyncio.wait([self._noting])
