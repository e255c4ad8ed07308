"""Attachments of a session: stored once, counted once, there as long as it is, and never missed unnoticed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import pytest

import storage.attachments
import storage.turns
from storage.attachments import INLINE_BYTES_MAX
from storage.checkpoints import Cost
from storage.elements import FIRST_DIGEST, pack
from storage.keys import SessionRef, new_turn_id
from storage.results import AttachmentLost, Begun, Claimed, Fenced, HistoryTooLarge, Settled
from storage.scripts import ScriptRunner
from storage.sessions import Snapshot
from storage.turns import Request, Rewind
from tests.store.harness import OWNER, PLAIN, Store, attached, elements

pytestmark = pytest.mark.anyio

BIG, OTHER = "x" * 200_000, "y" * 100_000
SAID = attached(BIG)


def name_of(data: str) -> bytes:
    return sha256(data.encode()).hexdigest().encode()


async def blobs(store: Store, ref: SessionRef) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = await store.redis.hgetall(ref.keys[7])
    return found


async def appended(store: Store, ref: SessionRef, messages: list[bytes], request: Request = PLAIN) -> str:
    """A turn without Claude; its id."""
    turn, head = new_turn_id(), await store.field(ref, "head")
    result = await store.turns.append(
        ref, turn, head=head, record=b"r", turns_max=99, request=request, elements=messages
    )
    assert isinstance(result, Settled)
    return turn


async def sent_bytes(store: Store) -> int:
    """What the server has received so far."""
    return int((await store.redis.info("stats"))["total_net_input_bytes"])


# Stored once, counted once


async def test_what_comes_twice_is_stored_and_counted_once(store: Store) -> None:
    ref = await store.created()
    await store.committed(ref, [SAID, *elements(1)])
    await store.assert_consistent(ref)
    once = int(await store.field(ref, "b"))
    assert len(BIG) < once < len(BIG) + 500
    await store.committed(ref, [SAID, attached(OTHER, BIG)])
    await appended(store, ref, [SAID])
    assert await blobs(store, ref) == {name_of(BIG): BIG.encode(), name_of(OTHER): OTHER.encode()}
    assert len(OTHER) < int(await store.field(ref, "b")) - once < len(OTHER) + 700
    assert (await store.counters(ref))["bytes"] == int(await store.field(ref, "b"))
    await store.assert_consistent(ref)


async def test_history_and_messages_are_whole(store: Store) -> None:
    ref = await store.created()
    said = [SAID, *elements(1), attached(OTHER, "small", BIG), attached(OTHER[:INLINE_BYTES_MAX])]
    await store.committed(ref, said)
    history = await store.turns.history(ref, 4)
    assert history.elements == said
    assert set(history.attachments) == {name_of(BIG).decode(), name_of(OTHER).decode()}
    assert history.sizes == [len(one) for one in await store.redis.lrange(ref.keys[1], 0, -1)]
    assert await store.sessions.messages(ref, 0, 9) == said
    assert await store.sessions.messages(ref, 2, 1) == said[2:3]
    assert await store.sessions.messages(ref, 0, 9, bytes_max=1_000) == said[:1]
    outlines = [attached(""), *elements(1), attached("", "small", ""), said[3]]
    assert await store.sessions.outlines(ref, 0, 9) == outlines


@pytest.mark.parametrize("server_url", ["valkey"], indirect=True)
async def test_what_a_replica_has_read_it_does_not_send_again(store: Store) -> None:
    ref = await store.created()
    await store.committed(ref, [SAID])
    known = (await store.turns.history(ref, 1)).attachments
    before = await sent_bytes(store)
    await store.committed(ref, [SAID, SAID], known=known)
    assert await sent_bytes(store) - before < 20_000
    assert (await store.turns.history(ref, 3)).elements == [SAID] * 3
    before = await sent_bytes(store)
    await store.committed(ref, [SAID])
    assert await sent_bytes(store) - before > len(BIG)
    await store.assert_consistent(ref)


async def test_a_turn_that_is_fenced_leaves_no_attachment(store: Store) -> None:
    ref = await store.created()
    turn, _ = await store.begun(ref)
    assert await store.commit(ref, turn, "head_x", [SAID]) == Fenced()
    assert await blobs(store, ref) == {}


async def test_a_commit_that_is_repeated_counts_no_second_time(store: Store) -> None:
    ref = await store.created()
    turn, begun = await store.begun(ref)
    for _ in range(2):
        assert await store.commit(ref, turn, begun.head, [SAID]) == Settled("committed", 1)
    await store.assert_consistent(ref)


# Reading


@asynccontextmanager
async def asked_for(store: Store) -> AsyncIterator[list[tuple[str, int]]]:
    """What is read meanwhile: commands, and of how many arguments."""
    read: list[tuple[str, int]] = []
    async with store.redis.monitor() as monitor:
        yield read
        await store.redis.echo("done")
        while "done" not in (line := await monitor.next_command())["command"]:
            name, *arguments = line["command"].split(" ")
            if name not in ("HELLO", "CLIENT"):  # of a connection that is made for it
                read.append((name, len(arguments)))


@pytest.mark.parametrize("server_url", ["valkey"], indirect=True)
async def test_only_gaps_cost_more_than_one_round_trip(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attachment is asked for once, as many together as a batch may hold, the largest alone."""
    monkeypatch.setattr(storage.attachments, "_BATCH_BYTES", 300_000)
    plain, ref = await store.created(), await store.created()
    await store.committed(plain, elements(9))
    await store.committed(ref, [SAID, attached(OTHER), SAID, attached(BIG * 2), attached(OTHER + "z"), SAID])
    async with asked_for(store) as read:
        await store.turns.history(plain, 9)
    assert read == [("LRANGE", 3), ("HMGET", 7)]
    async with asked_for(store) as read:
        await store.turns.history(ref, 6)
    assert read == [("LRANGE", 3), ("HMGET", 7), ("HMGET", 3), ("HMGET", 2), ("HMGET", 2)]


async def test_a_history_larger_than_any_request_is_not_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored once, an attachment may be named by many messages: they are counted as what they would be."""
    monkeypatch.setattr(storage.turns, "HISTORY_BYTES_MAX", 1_000_000)
    ref = await store.created()
    await store.committed(ref, [SAID] * 5)
    with pytest.raises(HistoryTooLarge) as caught:
        await store.turns.history(ref, 5)
    assert caught.value.size_bytes > 5 * len(BIG)
    assert len((await store.turns.history(ref, 4)).elements) == 4


@pytest.mark.parametrize("server_url", ["valkey"], indirect=True)
async def test_attachments_that_a_checkpoint_covers_are_not_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.turns, "HISTORY_BYTES_MAX", 500_000)
    ref = await store.created()
    await store.committed(ref, [SAID, SAID, SAID, attached(OTHER)])
    claimed = await store.checkpoints.claim(ref, "n", head=await store.field(ref, "head"), covers=3, claim_ms=60_000)
    assert isinstance(claimed, Claimed)
    assert await store.checkpoints.store(ref, claimed, b"three", Cost(1, 1, 1)) == 1
    async with asked_for(store) as read:
        history = await store.turns.history(ref, 4)
    assert read == [("LRANGE", 3), ("HMGET", 7), ("HMGET", 2)]
    assert history.elements == [*[attached("")] * 3, attached(OTHER)]
    assert set(history.attachments) == {name.decode() for name in (name_of(BIG), name_of(OTHER))}
    assert (await store.turns.history(ref, 2)).elements == [SAID, SAID], "not all that is covered is there"


@pytest.mark.parametrize("lost", ["one", "a part", "all"])
async def test_an_attachment_that_is_missing_is_noticed(store: Store, lost: str) -> None:
    ref = await store.created()
    await store.committed(ref, [SAID, attached(OTHER)])
    if lost == "one":
        await store.redis.hdel(ref.keys[7], name_of(OTHER))
    elif lost == "a part":
        await store.redis.hset(ref.keys[7], name_of(OTHER), OTHER[1:])
    else:
        await store.redis.unlink(ref.keys[7])
    with pytest.raises(AttachmentLost):
        await store.turns.history(ref, 2)
    with pytest.raises(AttachmentLost):
        await store.sessions.messages(ref, 1, 1)
    assert len(await store.sessions.outlines(ref, 0, 2)) == 2


# Life


async def test_a_rewind_leaves_attachments_and_counts_them(store: Store) -> None:
    ref = await store.created()
    await store.committed(ref, [SAID, *elements(1)])
    await store.committed(ref, [attached(OTHER), *elements(1)])
    history = await store.turns.history(ref, 4)
    for messages in (2, 0):
        turn, begun = await store.begun(ref)
        rewind = Rewind(messages, sum(history.sizes[messages:]), 1)
        settled = await store.commit(ref, turn, begun.head, [], rewind=rewind, known=history.attachments)
        assert settled == Settled("committed", begun.number)
        history = await store.turns.history(ref, messages)
        assert set(await blobs(store, ref)) == {name_of(BIG), name_of(OTHER)}
        await store.assert_consistent(ref)
    assert int(await store.field(ref, "b")) == len(BIG) + len(OTHER)
    await appended(store, ref, [attached(OTHER)])
    assert (await store.turns.history(ref, 1)).elements == [attached(OTHER)]
    await store.assert_consistent(ref)


async def touched(store: Store, ref: SessionRef) -> None:
    assert await store.sessions.touch(ref) is True


async def patched(store: Store, ref: SessionRef) -> None:
    await store.sessions.patch(ref, {"ttl": 900_000}, expected_revision=None)


async def begun(store: Store, ref: SessionRef) -> None:
    assert isinstance(await store.begin(ref, new_turn_id()), Begun)


async def asked_with(store: Store, ref: SessionRef) -> None:
    await store.committed(ref, [attached(OTHER)])


async def added(store: Store, ref: SessionRef) -> None:
    await appended(store, ref, [attached(OTHER)])


@pytest.mark.parametrize("doing", [touched, patched, begun, asked_with, added])
async def test_attachments_live_as_long_as_their_session(store: Store, doing: Any) -> None:
    ref = await store.created()
    await appended(store, ref, [SAID])
    before = await store.redis.pexpiretime(ref.keys[7])
    assert before == await store.redis.pexpiretime(ref.keys[0])
    await store.until_ms(await store.now_ms() + 2)
    await doing(store, ref)
    assert await store.redis.pexpiretime(ref.keys[7]) > before
    await store.assert_consistent(ref)


async def test_attachments_expire_with_their_session_and_are_swept_from_the_counters(store: Store) -> None:
    ref = await store.created()
    await store.committed(ref, [SAID])
    await store.redis.hset(ref.keys[0], "ttl", "1")
    await store.sessions.touch(ref)
    await store.until_expired(ref)
    assert (await store.counters(ref))["bytes"] > len(BIG), "counted until it is swept"
    assert await store.capacity.sweep(ref) is True
    assert await store.counters(ref) == {"expired": 1}
    await store.create(ref)
    assert await blobs(store, ref) == {}


async def test_attachments_are_deleted_with_their_session(store: Store) -> None:
    ref = await store.created()
    await store.committed(ref, [SAID])
    assert await store.sessions.delete(ref) is True
    assert await store.redis.exists(ref.keys[7]) == 0
    assert await store.counters(ref) == {"deleted": 1}


async def test_attachments_go_with_a_session_that_makes_room(store: Store) -> None:
    ref = await store.created()
    await store.committed(ref, [SAID])
    args = (ref.id, ref.owner_tag, await store.field(ref, "la"))
    assert await ScriptRunner(store.redis).run("evict", ref.keys, args, budget_s=5) == [b"EVICTED"]
    assert await store.redis.exists(ref.keys[7]) == 0
    assert await store.counters(ref) == {"evicted": 1}


async def test_two_sessions_share_nothing(store: Store) -> None:
    ref, other = await store.created(), store.ref()
    other = store.keyspace.session(other.id[:5] + ref.id[5:7] + other.id[7:], OWNER)  # in the same bucket
    await store.create(other)
    for session in (ref, other):
        await store.committed(session, [SAID])
    assert await store.sessions.delete(ref) is True
    assert (await store.turns.history(other, 1)).elements == [SAID]
    await store.assert_consistent(other)


async def test_more_messages_than_a_script_moves_at_once_may_have_attachments(store: Store) -> None:
    ref = await store.created()
    said = elements(1_100)
    for index in (0, 499, 1_099):
        said[index] = attached(BIG + str(index))
    await appended(store, ref, said)
    assert (await store.turns.history(ref, 1_100)).elements == said
    assert len(await blobs(store, ref)) == 3
    await store.assert_consistent(ref)


async def test_a_snapshot_tells_the_bytes_of_attachments_too(store: Store) -> None:
    ref = await store.created()
    await store.committed(ref, [SAID, pack(b"{}", FIRST_DIGEST)])
    snapshot = await store.sessions.get(ref)
    assert isinstance(snapshot, Snapshot)
    assert snapshot.size_bytes == int(await store.field(ref, "b")) > len(BIG)
    assert (await store.index.counts(OWNER)).size_bytes == snapshot.size_bytes
