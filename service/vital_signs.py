"""What metrics tell that nobody counts: how late the event loop is, and how the store is. One task for each.

The loop's lag is measured by a timer that fires every 250 ms: what it is late by, every reader and writer waits too.
The store is asked every 15 s, on the connections of everybody, and only once first contact has found it fit.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from service import telemetry
from storage.results import StoreUnavailable
from storage.vitals import Vitals

_TICK_S: Final = 0.25
_STORE_EVERY_S: Final = 15.0


async def watch_loop() -> None:
    """Observes the lag of the event loop, until cancelled."""
    now = asyncio.get_running_loop().time
    while True:
        due = now() + _TICK_S
        await asyncio.sleep(_TICK_S)
        telemetry.LOOP_LAG_SECONDS.observe(max(0.0, now() - due))


async def watch_store(ask: Callable[[], Awaitable[Vitals]], ready: Callable[[], bool]) -> None:
    """Tells how the store is, until cancelled; what it said last stands while it does not answer.

    Args:
        ask: it.
        ready: whether it was found fit for use.
    """
    while True:
        if ready():
            try:
                tell(await ask())
            except StoreUnavailable:
                pass  # store_watch.py tells that
            except Exception as error:  # a task that nobody awaits must not die of a surprise
                telemetry.log.error("store_vitals_failed", exc_info=error)
        await asyncio.sleep(_STORE_EVERY_S if ready() else 1.0)


def tell(vitals: Vitals) -> None:
    """Sets the metrics."""
    telemetry.STORE_MEMORY_BYTES.set(vitals.memory_bytes)
    telemetry.STORE_MEMORY_MAX_BYTES.set(vitals.memory_max_bytes)
    telemetry.STORE_APPEND_ONLY.set(vitals.append_only)
    telemetry.STORE_REPLICAS.set(vitals.replicas)
    telemetry.STORE_REPLICAS_BEHIND.set(vitals.replicas_behind)
    telemetry.STORE_CLOCK_AHEAD_SECONDS.set(vitals.clock_ahead_s)
