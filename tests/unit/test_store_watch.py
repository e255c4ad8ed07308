"""The breaker: what a look finds, who waits for it and how long; on a clock that leaps."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from service import telemetry
from service.errors import BatonError
from service.store_watch import _LOOK_EVERY_S, _LOOK_GAP_S, _LOOK_WAIT_S, StoreWatch
from storage.health import Health
from storage.results import StoreUnavailable

COMMAND_S = 2.0


class Store:
    """A store that is as it is told to be; notes when it is looked at, and how many look at once."""

    def __init__(self) -> None:
        self.health: Health = "up"
        self.frozen = False
        self.looks: list[float] = []
        self.looking = 0
        self._thawed = asyncio.Event()

    def thaw(self) -> None:
        self.frozen, self.health = False, "up"
        self._thawed.set()

    async def contact(self) -> list[str]:
        if await self.probe() == "away":
            raise StoreUnavailable("ConnectionError", outcome_unknown=False)
        return []

    async def probe(self) -> Health:
        assert self.looking == 0, "one look at a time"
        self.looks.append(asyncio.get_running_loop().time())
        self.looking += 1
        if self.frozen:
            self._thawed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(COMMAND_S):
                    await self._thawed.wait()
        self.looking -= 1
        return "away" if self.frozen else self.health


@asynccontextmanager
async def watched(store: Store) -> AsyncIterator[StoreWatch]:
    watch = StoreWatch(store.contact, store.probe, lambda refused: None)
    task = asyncio.create_task(watch.run())
    try:
        yield watch
    finally:
        task.cancel()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # on the leaping clock
            await asyncio.sleep(0.01)


async def refused(watch: StoreWatch) -> float:
    """Asks for admission, which is refused; how long that took."""
    loop = asyncio.get_running_loop()
    asked = loop.time()
    with pytest.raises(BatonError) as caught:
        await watch.require()
    assert (caught.value.code, caught.value.retry_after_s) == ("store_unavailable", 1)
    return loop.time() - asked


@pytest.mark.leaping
async def test_a_store_that_is_there_costs_a_request_nothing() -> None:
    store = Store()
    async with watched(store) as watch:
        await watch.looked(1.0)
        before = asyncio.get_running_loop().time()
        for _ in range(100):
            await watch.require()
        assert asyncio.get_running_loop().time() == before
        assert len(store.looks) == 1


@pytest.mark.leaping
@pytest.mark.parametrize("frozen", [True, False], ids=["silent", "refused connections"])
async def test_while_it_is_away_requests_fail_fast_and_the_first_after_its_return_is_served(frozen: bool) -> None:
    store = Store()
    openings = telemetry.BREAKER_OPENINGS._value.get()
    async with watched(store) as watch:
        await watch.looked(1.0)
        store.health, store.frozen = "away", frozen
        await until(lambda: watch.health == "away")
        assert asyncio.get_running_loop().time() <= _LOOK_EVERY_S + COMMAND_S + 0.1
        assert telemetry.BREAKER_OPEN._value.get() == 1
        for _ in range(20):
            assert await refused(watch) <= _LOOK_WAIT_S
        store.thaw()
        await watch.require()
        assert (watch.health, telemetry.BREAKER_OPEN._value.get()) == ("up", 0)
    assert telemetry.BREAKER_OPENINGS._value.get() == openings + 1


@pytest.mark.leaping
async def test_however_many_ask_there_is_one_look_at_a_time_and_few_in_all() -> None:
    store = Store()
    async with watched(store) as watch:
        await watch.looked(1.0)
        store.health = "away"
        await until(lambda: watch.health == "away")
        before = len(store.looks)
        loop = asyncio.get_running_loop()
        end = loop.time() + 1.0
        while loop.time() < end:
            assert max(await asyncio.gather(*(refused(watch) for _ in range(50)))) <= _LOOK_WAIT_S
        gaps = [b - a for a, b in zip(store.looks[before:], store.looks[before + 1 :], strict=False)]
        assert len(gaps) >= 2
        assert min(gaps) >= _LOOK_GAP_S * 0.999


@pytest.mark.leaping
async def test_a_store_that_takes_no_writes_is_asked_all_the_same() -> None:
    store = Store()
    async with watched(store) as watch:
        await watch.looked(1.0)
        store.health = "refusing"
        await until(lambda: watch.health == "refusing")
        await watch.require()
        assert (telemetry.STORE_UP._value.get(), telemetry.BREAKER_OPEN._value.get()) == (0, 0)


@pytest.mark.leaping
async def test_before_first_contact_nothing_is_begun() -> None:
    store = Store()
    store.health = "away"
    async with watched(store) as watch:
        await watch.looked(1.0)
        await refused(watch)
        assert not watch.reached
        store.thaw()
        await watch.require()
        assert watch.reached
