"""The sweep, as every replica does it: each interval each bucket is tried, and the store decides whose turn it is.

A bucket's lock lives one interval and is never released, so it is the schedule too: whoever comes first after its end
sweeps. A replica comes back a little later than one interval, so that its own lock is over by then; replicas differ by
chance, so they do not all come at once. One that dies in the middle leaves the rest to the next interval.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable

from service import telemetry
from storage.capacity import Capacity
from storage.index import Index
from storage.results import StoreUnavailable


class Sweeper:
    """Sweeps a namespace in a task of its own.

    Args:
        capacity: sweeps one bucket.
        index: counts what there is.
        buckets: of the namespace.
        interval_s: each bucket is swept so often, whoever does it.
        ready: whether the store was found fit for use; nothing is touched before.
    """

    def __init__(
        self, capacity: Capacity, index: Index, *, buckets: int, interval_s: float, ready: Callable[[], bool]
    ) -> None:
        self._capacity = capacity
        self._index = index
        self._buckets = buckets
        self._interval_s = interval_s
        self._ready = ready

    async def run(self) -> None:
        """Until cancelled."""
        telemetry.SWEEP_INTERVAL_SECONDS.set(self._interval_s)
        telemetry.SWEPT_TIMESTAMP_SECONDS.set_to_current_time()
        wait_s = self._interval_s * random.uniform(0, 1)  # noqa: S311 - jitter
        while True:
            await asyncio.sleep(wait_s)
            if self._ready():
                await self._sweep()
            wait_s = self._interval_s * random.uniform(1.01, 1.1)  # noqa: S311 - jitter

    async def _sweep(self) -> None:
        for bucket in range(self._buckets):
            await self._tried(self._sweep_bucket(bucket))  # of a cluster one part may be away
        await self._tried(self._count())

    async def _sweep_bucket(self, bucket: int) -> None:
        swept = await self._capacity.sweep_bucket(bucket, interval_ms=int(self._interval_s * 1000))
        if swept is not None:
            telemetry.BUCKETS_SWEPT.inc()
            telemetry.SWEPT_TIMESTAMP_SECONDS.set_to_current_time()
        if swept:
            telemetry.log.info("swept", bucket=bucket, sessions=swept)

    async def _count(self) -> None:
        telemetry.SESSIONS_INDEXED.set((await self._index.counts(None)).total)

    @staticmethod
    async def _tried(step: Awaitable[None]) -> None:
        try:
            await step
        except StoreUnavailable as error:
            telemetry.log.warning("sweep_cut_short", cause=str(error))
        except Exception as error:  # the sweep must go on, whatever happened to a part of it
            telemetry.log.error("sweep_failed", exc_info=error)
