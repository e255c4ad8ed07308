"""Keys of callers in the store: what each change leaves, that it may be sent again, and that it is counted."""

import pytest

from storage.api_keys import ApiKeys
from tests.store.harness import Store

pytestmark = pytest.mark.anyio

DIGEST, OTHER, THIRD = (bytes([n]) * 32 for n in (1, 2, 3))


def keys_of(store: Store) -> ApiKeys:
    return ApiKeys(store.redis, store.keyspace, budget_s=5)


async def made(keys: ApiKeys, principal: str = "ada", digest: bytes = DIGEST) -> str:
    key_id = keys.keyspace.issue_key_id(principal)
    assert await keys.create(
        key_id, digest, principal=principal, scopes=("chat", "admin"), expires_ms=0, labels_json=b"{}"
    )
    return key_id


async def test_a_key_is_stored_as_it_was_made(store: Store) -> None:
    keys = keys_of(store)
    key_id = await made(keys)
    (key,) = await keys.read([key_id])
    assert key is not None
    assert (key.principal, key.scopes, key.digest) == ("ada", frozenset({"chat", "admin"}), DIGEST)
    assert (key.disabled, key.expires_ms, key.rotated_ms, key.previous, key.labels_json) == (False, 0, 0, b"", b"{}")
    assert key.created_ms > 1_700_000_000_000
    assert await keys.read(["key_" + "a" * 26]) == [None]


async def test_a_creation_sent_again_is_the_same_and_another_key_is_not_written_over(store: Store) -> None:
    keys = keys_of(store)
    key_id = await made(keys)
    before = await keys.read([key_id])
    again = {"principal": "ada", "scopes": ("chat",), "expires_ms": 5, "labels_json": b"{}"}
    assert await keys.create(key_id, DIGEST, **again) is True  # type: ignore[arg-type]
    assert await keys.create(key_id, OTHER, **again) is False  # type: ignore[arg-type]
    assert await keys.read([key_id]) == before


async def test_a_patch_changes_what_is_named(store: Store) -> None:
    keys = keys_of(store)
    key_id = await made(keys)
    assert await keys.patch(key_id, disabled=True)
    (key,) = await keys.read([key_id])
    assert key is not None and key.disabled and key.scopes == {"chat", "admin"}
    assert await keys.patch(key_id, scopes=("chat",), expires_ms=7, disabled=False, labels_json=b'{"a":"b"}')
    (key,) = await keys.read([key_id])
    assert key is not None
    assert (key.disabled, key.scopes, key.expires_ms, key.labels_json) == (False, frozenset({"chat"}), 7, b'{"a":"b"}')
    assert await keys.patch(key_id, expires_ms=0)
    (key,) = await keys.read([key_id])
    assert key is not None and key.expires_ms == 0


async def test_a_rotation_sent_again_does_not_lose_the_text_before(store: Store) -> None:
    keys = keys_of(store)
    key_id = await made(keys)
    for _ in range(2):
        assert await keys.rotate(key_id, OTHER, overlap_ms=60_000)
        (key,) = await keys.read([key_id])
        assert key is not None
        assert (key.digest, key.previous) == (OTHER, DIGEST)
    assert key is not None
    assert key.previous_until_ms - key.rotated_ms == 60_000
    assert await keys.rotate(key_id, THIRD, overlap_ms=0)
    (key,) = await keys.read([key_id])
    assert key is not None and (key.digest, key.previous) == (THIRD, OTHER)


async def test_what_is_not_there_is_not_made_by_a_change(store: Store) -> None:
    keys = keys_of(store)
    key_id = keys.keyspace.issue_key_id("ada")
    assert not await keys.patch(key_id, disabled=True)
    assert not await keys.rotate(key_id, OTHER, overlap_ms=1)
    assert not await keys.delete(key_id)
    assert await keys.read([key_id]) == [None]


async def test_every_change_is_counted_and_the_count_outlives_the_last_key(store: Store) -> None:
    keys = keys_of(store)
    counts = [await keys.changes()]
    assert counts == [0]
    key_id = await made(keys)
    for change in (
        keys.patch(key_id, disabled=True),
        keys.rotate(key_id, OTHER, overlap_ms=1),
        keys.delete(key_id),
    ):
        counts.append(await keys.changes())
        await change
    counts.append(await keys.changes())
    assert counts == sorted(set(counts))
    assert await keys.page(after="", limit=10) == []


async def test_pages_hold_every_key_once_those_of_a_principal_together(store: Store) -> None:
    keys = keys_of(store)
    made_ids = {principal: {await made(keys, principal) for _ in range(3)} for principal in ("ada", "bob", "eve")}
    found: list[str] = []
    while page := await keys.page(after=found[-1] if found else "", limit=2):
        found += page
    assert sorted(found) == sorted(set.union(*made_ids.values()))
    for principal, ids in made_ids.items():
        assert set(await keys.page(after="", limit=10, principal=principal)) == ids
    first, second, third = await keys.page(after="", limit=10, principal="bob")
    assert await keys.page(after=first, limit=1, principal="bob") == [second]
    assert await keys.page(after=third, limit=1, principal="bob") == []


async def test_no_key_of_redis_shows_who_the_principal_is(store: Store) -> None:
    keys = keys_of(store)
    await made(keys, "ada-lovelace")
    for server in await store.primaries():
        assert not [name for name in await server.keys("*") if b"ada-lovelace" in name]
