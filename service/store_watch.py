"""Whether the store is there: first contact with its checks, then a write probe now and then.

A replica starts without its store and serves what needs none. First contact is tried until it succeeds; a store that
answers but must not be used (evicting, too old, another namespace) ends the process with exit code 78, because nothing
that it would store could be trusted.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from service import telemetry
from storage.connect import StoreRefused
from storage.results import StoreUnavailable

_PROBE_EVERY_S: Final = 5.0
_RETRY_EVERY_S: Final = 1.0


class StoreWatch:
    """Watches one store in a task of its own.

    Args:
        contact: the checks of first contact (storage/connect.py); returns warnings.
        probe: whether the store takes writes now.
        on_refused: called once if the store must not be used.

    Attributes:
        reached: first contact succeeded.
        up: the last probe did.
    """

    def __init__(
        self,
        contact: Callable[[], Awaitable[list[str]]],
        probe: Callable[[], Awaitable[bool]],
        on_refused: Callable[[StoreRefused], None],
    ) -> None:
        self._contact = contact
        self._probe = probe
        self._on_refused = on_refused
        self.reached = False
        self.up = False

    async def run(self) -> None:
        """Until cancelled."""
        while not self.reached:
            try:
                warnings = await self._contact()
            except StoreUnavailable as error:
                telemetry.log.warning("store_unreachable", cause=str(error))
                await asyncio.sleep(_RETRY_EVERY_S)
                continue
            except StoreRefused as error:
                self._on_refused(error)
                return
            for warning in warnings:
                telemetry.log.warning("store_warning", warning=warning)
            self.reached = True
            self._tell(up=True)
        while True:
            await asyncio.sleep(_PROBE_EVERY_S if self.up else _RETRY_EVERY_S)
            self._tell(up=await self._probe())

    def _tell(self, *, up: bool) -> None:
        if up != self.up:
            telemetry.log.info("store_up") if up else telemetry.log.error("store_down")
        self.up = up
        telemetry.STORE_UP.set(1 if up else 0)
