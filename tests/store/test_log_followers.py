"""Whoever follows a turn by its log sees every frame once and in order, however the log was written and is read."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.keys import SessionRef
from storage.log import End, Tail
from storage.results import Fate, Renewed
from tests.store.harness import Store, frames, real_redis, shown

_namespaces = itertools.count()


@dataclass
class Follower:
    """Somebody who reads from where he was cut off."""

    begins_after: int
    ordinal: int = 0
    seen: bytes = b""
    end: End | None = None

    async def poll(self, store: Store, ref: SessionRef, turn: str) -> None:
        found = await store.log.tail(ref, turn, 1, self.ordinal)
        self.seen += found.frames
        self.ordinal, self.end = found.ordinal, found.end


class OneByOne:
    """A pipeline as a busy server may execute it: one command after the other, and somebody else's in between.

    Args:
        redis: the client.
        meanwhile: is called once.
        before: index of the command that it comes before.
    """

    def __init__(self, redis: Any, meanwhile: Callable[[], Awaitable[object]], before: int) -> None:
        self._redis = redis
        self._meanwhile = meanwhile
        self._before = before
        self._commands: list[Callable[[], Awaitable[Any]]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def __getattr__(self, command: str) -> Callable[..., None]:
        def queue(*args: Any, **options: Any) -> None:
            self._commands.append(partial(getattr(self._redis, command), *args, **options))

        return queue

    async def execute(self) -> list[Any]:
        replies = []
        for index, command in enumerate(self._commands):
            if index == self._before:
                await self._meanwhile()
            replies.append(await command())
        return replies


@pytest.mark.anyio
@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("logged", [0, 3])
async def test_a_turn_that_ends_while_its_log_is_read_is_read_to_its_end(
    store: Store, monkeypatch: pytest.MonkeyPatch, before: int, logged: int
) -> None:
    ref = await store.created()
    turn, begun = await store.begun(ref, streamed=True)
    follower = Follower(0)
    if logged:
        await store.renew(ref, turn, shown(1, logged))
        await follower.poll(store, ref, turn)

    async def commit() -> None:
        await store.commit(ref, turn, begun.head, [], end=shown(logged + 1, 6))

    with monkeypatch.context() as patched:
        patched.setattr(store.redis, "pipeline", lambda transaction: OneByOne(store.redis, commit, before))
        await follower.poll(store, ref, turn)
    assert (follower.end, follower.seen) in ((None, frames(1, logged)), ("told", frames(1, 6)))
    if follower.end is None:
        await follower.poll(store, ref, turn)
    assert (follower.end, follower.seen) == ("told", frames(1, 6))


@pytest.mark.anyio
async def test_a_log_with_a_gap_is_never_read_as_if_it_were_whole(store: Store) -> None:
    """A server that restarted has lost the renewal that brought 4 and 5; its replica had the reply and goes on."""
    ref = await store.created()
    turn, begun = await store.begun(ref, streamed=True)
    await store.renew(ref, turn, shown(1, 3))
    await store.renew(ref, turn, shown(6, 7))
    await store.commit(ref, turn, begun.head, [], end=shown(8, 8))
    fate = Fate("committed", 1, delivered=False)
    assert await store.log.tail(ref, turn, 1, 0) == Tail(fate, frames(1, 3), 3, None)
    assert await store.log.tail(ref, turn, 1, 3) == Tail(fate, b"", 3, "overflow")
    assert await store.log.tail(ref, turn, 1, 4) == Tail(fate, b"", 4, "overflow")
    assert await store.log.tail(ref, turn, 1, 5) == Tail(fate, frames(6, 8), 8, "told"), "who has them misses nothing"


async def written_and_read(store: Store, data: st.DataObject) -> None:
    """One turn. A renewal leaves no gap behind what is logged; it may repeat any of that, and may come late."""
    ref = await store.created()
    turn, begun = await store.begun(ref, streamed=True)
    followers = [Follower(after, after) for after in data.draw(st.lists(st.integers(0, 20), max_size=4))]
    followers.append(Follower(0))
    last = 0
    for _ in range(data.draw(st.integers(0, 12))):
        if data.draw(st.booleans()):
            await data.draw(st.sampled_from(followers)).poll(store, ref, turn)
        else:
            first = data.draw(st.integers(1, last + 1))
            until = data.draw(st.integers(first, last + 4))
            assert await store.renew(ref, turn, shown(first, until)) == Renewed(cancel=False)
            last = max(last, until)
    how: End = data.draw(st.sampled_from(["told", "dead"]))
    if how == "dead":
        await store.renew(ref, turn, lease_ms=1)
        await store.until_lease_is_over(ref)
        await store.abort(ref, turn, "finder")
    else:
        end = shown(data.draw(st.integers(1, last + 1)), last + data.draw(st.integers(0, 3)))
        last = end.ordinal
        committed = data.draw(st.booleans())
        await (store.commit(ref, turn, begun.head, [], end=end) if committed else store.abort(ref, turn, end=end))
    for follower in followers:
        await follower.poll(store, ref, turn)
        assert follower.end == how
        assert follower.seen == frames(follower.begins_after + 1, last)


@settings(max_examples=100)
@given(data=st.data())
def test_whatever_the_batches_and_the_polls_every_frame_is_read_once_and_in_order(
    valkey_url: str, data: st.DataObject
) -> None:
    async def example() -> None:
        redis = real_redis(valkey_url)
        try:
            await written_and_read(Store.of(redis, f"log{next(_namespaces)}"), data)
        finally:
            await redis.aclose()

    asyncio.run(example())
