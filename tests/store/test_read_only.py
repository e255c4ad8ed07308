"""A server that takes no writes for a while: what begins is refused at once, what settles a turn waits for it."""

import asyncio
import time

import pytest

from storage.connect import Deadlines, connect
from storage.embedded import EmbeddedValkey
from storage.keys import new_turn_id
from storage.results import Settled, StoreUnavailable
from tests.store.harness import Store

pytestmark = pytest.mark.anyio


async def test_an_abort_that_tells_what_became_of_a_commit_waits_for_it(own_valkey: EmbeddedValkey) -> None:
    redis = connect(own_valkey.url, connections_max=4, deadlines=Deadlines())
    store = Store.of(redis, "readonly")
    ref = await store.created()
    turn, begun = await store.begun(ref)
    await redis.replicaof("127.0.0.1", "1")
    started = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        await store.begin(ref, new_turn_id())
    assert time.monotonic() - started < 1.0
    assert caught.value.outcome_unknown is False
    aborting = asyncio.create_task(store.abort(ref, turn))
    await asyncio.sleep(0.3)
    assert not aborting.done()
    await redis.replicaof("NO", "ONE")
    assert await aborting == Settled("aborted", begun.number)
    await redis.aclose()
