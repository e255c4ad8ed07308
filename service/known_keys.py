"""The keys that this replica has seen, kept so that a request need not ask the store for its own.

A key that is seen for the first time is asked for once, however many requests come with it. From then on nobody waits:
every second one command asks the store how many changes of keys there were ever, and if the number moved, or thirty
seconds have passed, all keys that are held here are read again. So a change is known everywhere within a second or two,
and a change whose count was lost (its writer died in between) within half a minute.

A store that does not answer confirms nothing. What it said last is honoured for 15 minutes; a key that was not seen
before cannot be judged, and whoever comes with one is told that the store is away, never that the key is unknown.
That a key is unknown is remembered too, as long as the count is known not to have moved.

Both memories are bounded; what was not used for longest goes first, but never a key by whose right something runs, for
who is not watched cannot be stopped. At most 16 look-ups are under way at once, so that made-up keys cannot take the
connections that turns need; who waits too long for one of them is told that the store is busy.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Set
from dataclasses import dataclass
from typing import Final

from service import telemetry
from storage.api_keys import ApiKey, ApiKeys
from storage.results import StoreBusy, StoreUnavailable

HONOURED_S: Final = 900.0
LOOK_EVERY_S: Final = 1.0
READ_EVERY_S: Final = 30.0
FRESH_S: Final = 3.0
KNOWN_MAX: Final = 8192
UNKNOWN_MAX: Final = 1024
_LOOKUPS_MAX: Final = 16
_LOOKUP_WAIT_S: Final = 5.0  # longer than one of them may take
_BATCH: Final = 256


@dataclass(slots=True)
class _Seen:
    """A key as it was read; None once it is gone."""

    key: ApiKey | None
    read_at: float
    used_at: float


class KnownKeys:
    """What is known of keys; looks at the store in a task of its own.

    Args:
        store: the keys.
        require: raises if the store is known to be away, before it is asked.
        on_look: called after every look, whatever came of it.
        in_use: ids of the keys by whose right something runs; they are kept.

    Attributes:
        fresh: the store has just confirmed what is known.
        any: whether there was ever a key; None until the store has told.
    """

    def __init__(
        self,
        store: ApiKeys,
        require: Callable[[], Awaitable[None]],
        on_look: Callable[[], None] = lambda: None,
        in_use: Callable[[], Set[str]] = frozenset,
    ) -> None:
        self._store = store
        self._require = require
        self.on_look = on_look
        self.in_use = in_use
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._unknown: OrderedDict[str, None] = OrderedDict()
        self._asking: dict[str, asyncio.Task[ApiKey | None]] = {}
        self._lookups = asyncio.Semaphore(_LOOKUPS_MAX)
        self._changes: int | None = None
        self._confirmed_at = float("-inf")
        self._read_at = float("-inf")
        self._readings = 0

    @property
    def any(self) -> bool | None:
        """Whether there was ever a key; None until the store has told."""
        return None if self._changes is None else self._changes > 0

    @property
    def fresh(self) -> bool:
        """Whether the store has just confirmed what is known."""
        return time.monotonic() - self._confirmed_at <= FRESH_S

    async def find(self, key_id: str) -> ApiKey | None:
        """A key; None if there is none. Asks nobody if it is known.

        Raises:
            StoreUnavailable: it is not known, and the store does not answer.
            BatonError: the same, and the store is known to be away.
        """
        now, seen = time.monotonic(), self._seen.get(key_id)
        if seen is not None and now - max(seen.read_at, self._confirmed_at) <= HONOURED_S:
            seen.used_at = now
            self._seen.move_to_end(key_id)
            return seen.key
        if key_id in self._unknown and self.fresh:
            return None
        return await self._asked(key_id)

    async def again(self, key_id: str) -> ApiKey | None:
        """The same, asked anew: what is known does not fit what was shown, which may be newer.

        Raises: as `find`.
        """
        return await self._asked(key_id)

    def as_last_seen(self, key_id: str) -> list[ApiKey | None]:
        """A key as it is known, None if it is gone; nothing if it is not known any more."""
        seen = self._seen.get(key_id)
        return [] if seen is None else [seen.key]

    async def look(self) -> None:
        """Asks for the count, and reads everything again if it moved.

        Raises:
            StoreUnavailable: nothing is confirmed.
        """
        now = time.monotonic()
        changes = await self._store.changes()
        if changes != self._changes or now - self._read_at >= READ_EVERY_S:
            await self._read_again(now)
        self._changes, self._confirmed_at = changes, now

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self.look()
            except StoreUnavailable:
                pass  # told by the watch of the store
            except Exception as error:  # a task that nobody awaits must not die of a surprise
                telemetry.log.error("keys_look_failed", exc_info=error)
            self.on_look()

    async def _read_again(self, now: float) -> None:
        self._readings += 1  # what was asked before this is older, whenever it arrives
        self._unknown.clear()
        running = self.in_use()
        for key_id, seen in list(self._seen.items()):
            if key_id not in running and now - seen.used_at > HONOURED_S:
                del self._seen[key_id]
        ids = list(self._seen.keys() | running)
        for start in range(0, len(ids), _BATCH):
            batch = ids[start : start + _BATCH]
            for key_id, key in zip(batch, await self._store.read(batch), strict=True):
                if key_id in running:
                    self._seen[key_id] = _Seen(key, now, now)
                elif key_id in self._seen:
                    self._seen[key_id].key, self._seen[key_id].read_at = key, now
        self._read_at = now

    async def _asked(self, key_id: str) -> ApiKey | None:
        """What the store says; one question serves all who wait for it."""
        await self._require()
        task = self._asking.get(key_id)
        if task is None:
            task = self._asking[key_id] = asyncio.create_task(self._ask(key_id))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            task.add_done_callback(lambda _: self._asking.pop(key_id, None))
        try:
            async with asyncio.timeout(_LOOKUP_WAIT_S):
                return await asyncio.shield(task)
        except TimeoutError:
            raise StoreBusy("many keys are looked up", outcome_unknown=False) from None

    async def _ask(self, key_id: str) -> ApiKey | None:
        async with self._lookups:
            readings = -1
            while readings != self._readings:  # else a change may have been missed while the answer was on its way
                readings, now = self._readings, time.monotonic()
                (key,) = await self._store.read([key_id])
        if key is None and key_id not in self._seen:
            self._unknown[key_id] = None
            if len(self._unknown) > UNKNOWN_MAX:
                self._unknown.popitem(last=False)
            return None
        self._seen[key_id] = _Seen(key, now, now)
        self._seen.move_to_end(key_id)
        if len(self._seen) > KNOWN_MAX:
            running = self.in_use()
            del self._seen[next(one for one in self._seen if one not in running or one == key_id)]
        return key
