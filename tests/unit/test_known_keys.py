"""What a replica remembers of keys: how much, for how long, and what it does not forget; on a clock that is set."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from service import known_keys
from service.errors import BatonError
from service.known_keys import HONOURED_S, READ_EVERY_S, KnownKeys
from storage.api_keys import ApiKey
from storage.results import StoreBusy, StoreUnavailable

pytestmark = pytest.mark.anyio


def key_of(key_id: str, *, disabled: bool = False) -> ApiKey:
    return ApiKey(key_id, "ada", frozenset({"chat"}), 0, disabled, b"{}", 1, 0, b"d" * 32, b"", 0)


class Store:
    """Keys by id; counts what it is asked, and is away or slow when it is told to be."""

    def __init__(self) -> None:
        self.keys: dict[str, ApiKey] = {}
        self.count, self.away = 1, False
        self.reads: list[list[str]] = []
        self.reading = self.reading_most = 0
        self.slow: asyncio.Event | None = None

    async def changes(self) -> int:
        self._answer()
        return self.count

    async def read(self, key_ids: Sequence[str]) -> list[ApiKey | None]:
        self._answer()
        self.reads.append(list(key_ids))
        self.reading += 1
        self.reading_most = max(self.reading, self.reading_most)
        try:
            if self.slow is not None:
                await self.slow.wait()
        finally:
            self.reading -= 1
        return [self.keys.get(one) for one in key_ids]

    def add(self, *key_ids: str, disabled: bool = False) -> None:
        self.keys |= {one: key_of(one, disabled=disabled) for one in key_ids}
        self.count += 1

    def _answer(self) -> None:
        if self.away:
            raise StoreUnavailable("ConnectionError", outcome_unknown=False)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(known_keys, "time", clock)
    return clock


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def known(store: Store, clock: Clock) -> AsyncIterator[KnownKeys]:
    async def require() -> None:
        if store.away:
            raise BatonError("store_unavailable", "The session store is away; nothing was begun.")

    made: Any = store
    yield KnownKeys(made, require)


async def test_a_key_is_asked_for_once_however_many_wait_for_it(store: Store, known: KnownKeys) -> None:
    store.add("a")
    found = await asyncio.gather(*(known.find("a") for _ in range(50)), *(known.find("b") for _ in range(50)))
    assert found == [store.keys["a"]] * 50 + [None] * 50
    assert store.reads == [["a"], ["b"]]
    await known.look()
    store.reads.clear()
    assert (await known.find("a"), await known.find("b")) == (store.keys["a"], None)
    assert await known.find("b") is None
    assert store.reads == [["b"]], "that it is unknown was forgotten with the first look, and is remembered since"


async def test_what_was_seen_is_honoured_for_fifteen_minutes_and_no_longer(
    store: Store, known: KnownKeys, clock: Clock
) -> None:
    store.add("a")
    await known.look()
    await known.find("a")
    store.away = True
    clock.now += HONOURED_S - 1
    assert await known.find("a") == store.keys["a"]
    with pytest.raises(BatonError) as caught:
        await known.find("b")
    assert caught.value.code == "store_unavailable"
    clock.now += 2
    with pytest.raises(BatonError) as caught:
        await known.find("a")
    assert caught.value.code == "store_unavailable"
    with pytest.raises(StoreUnavailable):
        await known.look()
    store.away = False
    assert await known.find("a") == store.keys["a"]


async def test_a_store_that_confirms_keeps_a_key_known(store: Store, known: KnownKeys, clock: Clock) -> None:
    store.add("a")
    await known.find("a")
    for _ in range(20):
        clock.now += HONOURED_S / 10
        await known.find("a")
        await known.look()
    store.reads.clear()
    assert await known.find("a") == store.keys["a"]
    assert store.reads == []


async def test_a_change_is_read_at_the_next_look_and_a_lost_count_within_half_a_minute(
    store: Store, known: KnownKeys, clock: Clock
) -> None:
    store.add("a")
    await known.find("a")
    await known.look()
    store.add("a", disabled=True)
    await known.look()
    assert known.as_last_seen("a") == [store.keys["a"]]
    store.keys["a"] = key_of("a")  # and nobody counted it
    clock.now += READ_EVERY_S - 1
    await known.look()
    assert known.as_last_seen("a") == [key_of("a", disabled=True)]
    clock.now += 1
    await known.look()
    assert known.as_last_seen("a") == [key_of("a")]


async def test_a_look_that_breaks_off_confirms_nothing(store: Store, known: KnownKeys, clock: Clock) -> None:
    store.add("a")
    await known.find("a")
    await known.look()
    store.add("a", disabled=True)
    read = store.read

    async def broken(key_ids: Sequence[str]) -> list[ApiKey | None]:
        raise StoreUnavailable("TimeoutError", outcome_unknown=False)

    store.read = broken  # type: ignore[method-assign]
    clock.now += 10
    with pytest.raises(StoreUnavailable):
        await known.look()
    assert [known.fresh] == [False]
    store.read = read  # type: ignore[method-assign]
    await known.look()
    assert [known.fresh] == [True]
    assert known.as_last_seen("a") == [store.keys["a"]]


async def test_memory_is_bounded_and_what_was_not_used_for_longest_goes(
    store: Store, known: KnownKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_keys, "KNOWN_MAX", 3)
    monkeypatch.setattr(known_keys, "UNKNOWN_MAX", 3)
    store.add(*"abcd")
    await known.look()
    for one in "abcad":
        await known.find(one)
    assert [bool(known.as_last_seen(one)) for one in "abcd"] == [True, False, True, True]
    for number in range(100):
        await known.find(f"made-up-{number}")
    assert len(known._unknown) == 3
    assert [bool(known.as_last_seen(one)) for one in "acd"] == [True] * 3, "made-up keys push none out"
    assert known._asking == {}


async def test_a_key_that_something_runs_by_is_never_forgotten(
    store: Store, known: KnownKeys, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for others, nor after a turn longer than what is not used is kept: who is not watched is not stopped."""
    monkeypatch.setattr(known_keys, "KNOWN_MAX", 2)
    store.add(*"abcd")
    await known.find("a")
    known.in_use = lambda: {"a"}
    for one in "bcd":
        await known.find(one)
    assert known.as_last_seen("a") == [store.keys["a"]]
    for _ in range(3):
        clock.now += HONOURED_S / 2
        await known.look()
    assert known.as_last_seen("b") == known.as_last_seen("c") == []
    store.add("a", disabled=True)
    await known.look()
    assert known.as_last_seen("a") == [store.keys["a"]]
    del known._seen["a"]  # between the gate and the hold others came
    store.count += 1
    await known.look()
    assert known.as_last_seen("a") == [store.keys["a"]]


async def test_made_up_keys_take_sixteen_look_ups_at_most_and_wait_for_so_long(
    store: Store, known: KnownKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_keys, "_LOOKUP_WAIT_S", 0.05)
    store.slow = asyncio.Event()
    found = await asyncio.gather(*(known.find(f"made-up-{one}") for one in range(40)), return_exceptions=True)
    assert {type(one) for one in found} == {StoreBusy}
    assert store.reading_most == 16
    store.slow.set()
