"""Sessions on their way out of a store that is in use: all of them, each whole or told."""

import io
from collections import Counter
from typing import Any

import orjson
import pytest

from service import archive, exporting, moving
from service.errors import BatonError
from service.moving import Moved, Stores
from storage.keys import SessionRef
from storage.sessions import Sessions
from storage.transfer import Whole
from storage.turns import Rewind
from tests.store.harness import Store, elements

pytestmark = pytest.mark.anyio
on_valkey = pytest.mark.parametrize("server_url", ["valkey"], indirect=True)
on_real_servers = pytest.mark.parametrize("server_url", ["valkey", "cluster", "sixteen", "six"], indirect=True)


@on_real_servers
async def test_a_walk_leaves_out_nobody_who_is_there_all_the_while(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though many have one time of access, some are accessed, some made and some deleted meanwhile."""
    monkeypatch.setattr("storage.index._WALKED_AT_ONCE", 3)
    refs = [store.ref(owner) for owner in ("ada", "bob") for _ in range(12)]
    for ref in refs:
        await store.create(ref)
        await store.redis.zadd(ref.keys[10], {ref.id: 5})
    there, gone = refs[:-2], refs[-2:]
    found: Counter[str] = Counter()
    for bucket in range(store.keyspace.buckets):
        async for page in store.index.walk(bucket, None):
            found.update(page)
            if gone and sum(found.values()) >= 3:
                await store.sessions.touch(there[0])
                await store.created()
                while gone:
                    await store.sessions.delete(gone.pop())
    assert {ref.id for ref in there} <= found.keys()
    assert max(found.values()) <= 2
    of_bob = [one async for one in moving.everything(stores_of(store), "bob")]
    assert sorted(one for one, _ in of_bob) == sorted(ref.id for ref in there if ref.principal == "bob")
    assert {ref.principal for _, ref in of_bob if ref} == {"bob"}


def stores_of(store: Store, sessions: Sessions | None = None) -> Stores:
    return Stores(store.keyspace, store.index, sessions or store.sessions, store.transfer)


class Meddling(Sessions):
    """Sessions one of which is rewound whenever its messages have been read, so many times."""

    def __init__(self, store: Store, times: int) -> None:
        super().__init__(store.redis, store.keyspace, store.capacity, budget_s=5.0)
        self.store, self.times = store, times

    async def messages(self, ref: SessionRef, start: int, count: int, **bound: Any) -> list[bytes]:
        read = await super().messages(ref, start, count, **bound)
        if self.times:
            self.times -= 1
            turn, begun = await self.store.begun(ref)
            back = Rewind(0, int(await self.store.field(ref, "b")), int(await self.store.field(ref, "tn")))
            await self.store.commit(
                ref, turn, begun.head, elements(2, "new"), rewind=back, record=b'{"turn":1}', revision=begun.revision
            )
        return read


async def exported(store: Store, sessions: Sessions, ref: SessionRef) -> tuple[list[Any], list[str], Moved]:
    out, told = io.BytesIO(), Moved()
    said: list[str] = []

    async def wanted() -> Any:
        yield ref.id, ref

    await moving.export(stores_of(store, sessions), wanted(), out, said.append, told)
    return [orjson.loads(line) for line in out.getvalue().splitlines()], said, told


@on_valkey
async def test_what_is_rewound_meanwhile_is_read_anew_or_told(store: Store) -> None:
    ref = await store.created()
    await store.committed(ref, elements(2), record=b'{"turn":0}')
    lines, said, told = await exported(store, Meddling(store, 2), ref)
    assert [line["type"] for line in lines] == ["session", "turn", "turn", "turn", "message", "message", "end"]
    assert [line["message"]["content"] for line in lines[4:6]] == ["new0", "new1"]
    assert (said, told) == ([], Moved(done=1))
    lines, said, told = await exported(store, Meddling(store, 100), ref)
    assert (lines, told) == ([], Moved(failed=1))
    assert said == [
        f"{ref.id}: not exported: While it was exported the session was rewound or deleted, or shared no more; "
        "export it again."
    ]


@on_valkey
async def test_what_has_lost_a_part_or_is_gone_is_told(store: Store) -> None:
    ref = await store.created()
    await store.committed(ref, elements(2), record=b"{}")
    whole = await store.transfer.read(ref)
    assert isinstance(whole, Whole)
    await store.redis.rpop(ref.keys[1])
    lines, said, told = await exported(store, store.sessions, ref)
    assert (lines, told, len(said)) == ([], Moved(failed=1), 1)
    with pytest.raises(BatonError) as caught:
        async for some in exporting.lines(store.sessions, store.transfer, ref, whole):
            assert archive.END_LINE not in some
    assert caught.value.code == "session_corrupt"
    await store.redis.rpop(ref.keys[2])
    assert (await exported(store, store.sessions, ref))[2] == Moved(failed=1)
    await store.sessions.delete(ref)
    assert (await exported(store, store.sessions, ref))[2] == Moved(passed_over=1)
