"""Whether the store is there: first contact with its checks, then a look every second; and the breaker that follows.

A replica starts without its store and serves what needs none; it waits a moment for it before it listens, so that a
store which is there is never missed. First contact is tried until it succeeds; a store that
answers but must not be used (evicting, too old, another namespace) ends the process with exit code 78, because nothing
that it would store could be trusted.

**The breaker.** A look is a write on a connection of its own, so that a busy pool is never taken for a dead store; it
may take as long as any command may. Once a look finds the store away, whatever would begin something is refused.
Such a request asks for the next look and waits a moment for its end: the first request after the store's return is
served. One look at a time serves all who wait, and there are at most ten a second. Nothing else of the breaker is kept.

A store that answers but takes no writes (full, or a replica) is no reason to refuse anything: it says so itself, as
fast, and must still be asked to delete. What runs already never comes by here: commits and aborts are sent again within
their own budgets, whatever the breaker says.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

from service import telemetry
from service.errors import BatonError
from storage.first_contact import StoreRefused
from storage.health import Health
from storage.results import StoreUnavailable

_LOOK_EVERY_S: Final = 1.0
_LOOK_GAP_S: Final = 0.1  # between two looks, however many requests ask for one
_LOOK_WAIT_S: Final = 0.25  # a request waits no longer than this for the end of a look


class StoreWatch:
    """Watches one store in a task of its own.

    Args:
        contact: the checks of first contact (storage/first_contact.py); returns warnings.
        probe: how the store is now.
        on_refused: called once if the store must not be used.

    Attributes:
        reached: first contact succeeded.
        health: what the last look found.
    """

    def __init__(
        self,
        contact: Callable[[], Awaitable[list[str]]],
        probe: Callable[[], Awaitable[Health]],
        on_refused: Callable[[StoreRefused], None],
    ) -> None:
        self._contact = contact
        self._probe = probe
        self._on_refused = on_refused
        self._looked = asyncio.Event()  # at the end of the look under way, or of the next one
        self._asked_for = asyncio.Event()
        self.reached = False
        self.health: Health = "away"

    async def looked(self, wait_s: float) -> None:
        """Waits for the end of the look under way, or of the next one; no longer than ``wait_s``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._looked.wait()

    async def require(self) -> None:
        """Refuses whatever would begin something while the store is away, or not known to be fit for use.

        Raises:
            BatonError: store_unavailable.
        """
        if self.health != "away":
            return
        self._asked_for.set()
        await self.looked(_LOOK_WAIT_S)
        if self.health == "away":
            away = "is away" if self.reached else "was not reached yet"
            raise BatonError("store_unavailable", f"The session store {away}; nothing was begun.", retry_after_s=1)

    async def run(self) -> None:
        """Until cancelled, or until the store is refused."""
        refused = False
        while not refused:
            try:
                refused = not await self._look()
            except Exception as error:  # a task that nobody awaits must not die of a surprise
                telemetry.log.error("store_watch_failed", exc_info=error)
            done, self._looked = self._looked, asyncio.Event()
            done.set()
            if self.health != "away":
                await asyncio.sleep(_LOOK_EVERY_S)
                self._asked_for.clear()
                continue
            await asyncio.sleep(_LOOK_GAP_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_EVERY_S - _LOOK_GAP_S):
                    await self._asked_for.wait()
            self._asked_for.clear()

    async def _look(self) -> bool:
        """One look; False if the store must not be used."""
        if self.reached:
            self._tell(await self._probe())
            return True
        try:
            warnings = await self._contact()
        except StoreUnavailable as error:
            telemetry.log.warning("store_unreachable", cause=str(error))
            return True
        except StoreRefused as error:
            self._on_refused(error)
            return False
        for warning in warnings:
            telemetry.log.warning("store_warning", warning=warning)
        self.reached = True
        self._tell("up")
        return True

    def _tell(self, health: Health) -> None:
        if health != self.health:
            telemetry.log.info("store_up") if health == "up" else telemetry.log.error("store_down", health=health)
            if health == "away":
                telemetry.BREAKER_OPENINGS.inc()
        self.health = health
        telemetry.STORE_UP.set(health == "up")
        telemetry.BREAKER_OPEN.set(health == "away")
