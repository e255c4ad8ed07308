"""Whether the store is there: first contact with its checks, then a write probe now and then.

A replica starts without its store and serves what needs none; it waits a moment for it before it listens, so that a
store which is there is never missed. First contact is tried until it succeeds; a store that
answers but must not be used (evicting, too old, another namespace) ends the process with exit code 78, because nothing
that it would store could be trusted.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

from service import telemetry
from service.errors import BatonError
from storage.first_contact import StoreRefused
from storage.results import StoreUnavailable

_PROBE_EVERY_S: Final = 5.0
_RETRY_EVERY_S: Final = 1.0


class StoreWatch:
    """Watches one store in a task of its own.

    Args:
        contact: the checks of first contact (storage/first_contact.py); returns warnings.
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
        self._tried = asyncio.Event()
        self.reached = False
        self.up = False

    async def tried(self, wait_s: float) -> None:
        """Waits for the end of the first attempt, whatever came of it; no longer than ``wait_s``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._tried.wait()

    def require(self) -> None:
        """Refuses whatever needs the store before first contact: its checks may yet say that it must not be used.

        Raises:
            BatonError: store_unavailable.
        """
        if not self.reached:
            message = "The session store was not reached yet; Claude was not asked."
            raise BatonError("store_unavailable", message, retry_after_s=1)

    async def run(self) -> None:
        """Until cancelled, or until the store is refused."""
        while True:
            try:
                await self._watch()
                return
            except Exception as error:  # a task that nobody awaits must not die of a surprise
                telemetry.log.error("store_watch_failed", exc_info=error)
                await asyncio.sleep(_RETRY_EVERY_S)

    async def _watch(self) -> None:
        while not self.reached:
            try:
                warnings = await self._contact()
            except StoreUnavailable as error:
                telemetry.log.warning("store_unreachable", cause=str(error))
                self._tried.set()
                await asyncio.sleep(_RETRY_EVERY_S)
                continue
            except StoreRefused as error:
                self._on_refused(error)
                self._tried.set()
                return
            for warning in warnings:
                telemetry.log.warning("store_warning", warning=warning)
            self.reached = True
            self._tell(up=True)
            self._tried.set()
        while True:
            await asyncio.sleep(_PROBE_EVERY_S if self.up else _RETRY_EVERY_S)
            self._tell(up=await self._probe())

    def _tell(self, *, up: bool) -> None:
        if up != self.up:
            telemetry.log.info("store_up") if up else telemetry.log.error("store_down")
        self.up = up
        telemetry.STORE_UP.set(1 if up else 0)
