"""A session that is busy: wait a bounded time for its running turn, or refuse at once."""

import asyncio
import random
import time
from typing import Final, Literal, get_args

from service import telemetry
from service.errors import BatonError
from storage.results import Busy

_POLL_S: Final = (0.05, 0.1, 0.2, 0.25)

OnConflict = Literal["queue", "reject"]
ON_CONFLICT: Final[tuple[OnConflict, ...]] = get_args(OnConflict)


class Patience:
    """How long one request waits for the turns of others.

    Args:
        policy: ``reject`` does not wait at all.
        wait_s: from now on.
    """

    def __init__(self, policy: OnConflict, wait_s: float) -> None:
        self._policy = policy
        self._give_up = time.monotonic() + (wait_s if policy == "queue" else 0)
        self._polls = 0

    async def wait(self, busy: Busy) -> None:
        """Waits a little; then ask the store again.

        Raises:
            BatonError: turn_in_progress, once the patience is used up.
        """
        if self._polls == 0:
            telemetry.CONFLICTS[self._policy].inc()
        wait_s = _POLL_S[min(self._polls, len(_POLL_S) - 1)] * random.uniform(0.8, 1.2)  # noqa: S311 - jitter
        self._polls += 1
        if time.monotonic() + wait_s > self._give_up:
            raise BatonError(
                "turn_in_progress",
                f"Turn {busy.turn_id} of this session is running; wait for it, or send X-Session-On-Conflict: queue.",
                retry_after_s=min(busy.remaining_ms / 1000, 5),
                headers={"x-turn-id": busy.turn_id},
            )
        with telemetry.TURNS_WAITING.track_inprogress():
            await asyncio.sleep(wait_s)
