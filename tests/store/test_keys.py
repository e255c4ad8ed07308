"""Ids and key names: what is permanent stays the same, what must not meet stays apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.keys import SESSION_ID, TURN_ID, Keyspace, new_turn_id

SECRET = b"0123456789abcdef"
KEYSPACE = Keyspace("baton", 64, SECRET)


def test_one_name_of_two_owners_is_two_sessions() -> None:
    assert KEYSPACE.named("alice", "chat") != KEYSPACE.named("bob", "chat")
    assert KEYSPACE.named("a", "bc") != KEYSPACE.named("ab", "c")


def test_a_named_id_never_changes() -> None:
    """Literal on purpose: with any other answer, deployed replicas would lose every named session."""
    assert Keyspace("baton", 64, SECRET).named("alice", "chat") == KEYSPACE.named("alice", "chat")
    assert KEYSPACE.named("alice", "chat") == "sess_36d3shfm6dpph6ndwgkvk4y42lqi"
    assert KEYSPACE.owner_tag("alice") == "zurnzjvvnovu2ab5"
    assert KEYSPACE.fingerprint() == "boopdq4tovmb4jpe"


def test_a_creation_under_a_key_has_an_id_of_its_own_that_never_changes() -> None:
    """Literal on purpose: a repetition that reaches a newer replica must find the session."""
    assert KEYSPACE.keyed("alice", "turn", "k") == "sess_37qtnsmphzriay33d2fcnagpa4o4"
    ids = [
        KEYSPACE.keyed("alice", "turn", "k"),
        KEYSPACE.keyed("alice", "session", "k"),
        KEYSPACE.keyed("alice", "turn", "other"),
        KEYSPACE.keyed("bob", "turn", "k"),
        KEYSPACE.keyed("alic", "eturn", "k"),
        KEYSPACE.keyed("alice", "tur", "nk"),
        KEYSPACE.named("alice", "k"),
        Keyspace("baton", 64, b"another secret 16").keyed("alice", "turn", "k"),
    ]
    assert len(set(ids)) == len(ids)
    assert all(KEYSPACE.is_session_id(session_id) for session_id in ids)


def test_another_secret_gives_other_ids_and_another_fingerprint() -> None:
    for secret in (b"another secret 16", b"x" * 100, b"x" * 101):
        other = Keyspace("baton", 64, secret)
        assert other.named("alice", "chat") != KEYSPACE.named("alice", "chat")
        assert other.owner_tag("alice") != KEYSPACE.owner_tag("alice")
        assert other.fingerprint() != KEYSPACE.fingerprint()


@given(owner=st.text("aZ\0é𝄞"), name=st.text("aZ\0é𝄞", min_size=1), buckets=st.integers(1, 256))
def test_ids_are_well_formed_and_in_a_bucket_that_exists(owner: str, name: str, buckets: int) -> None:
    keyspace = Keyspace("baton", buckets, SECRET)
    for session_id in (keyspace.named(owner, name), keyspace.issue()):
        assert SESSION_ID.fullmatch(session_id)
        assert int(session_id[5:7], 16) < buckets
        assert keyspace.is_session_id(session_id)
    assert len(keyspace.owner_tag(owner)) == 16


@pytest.mark.parametrize(
    "text",
    [
        "",
        "chat",
        "sess_",
        "sess_00" + "a" * 25,
        "sess_00" + "a" * 27,
        "sess_00" + "A" * 26,
        "sess_00" + "1" * 26,
        "sess_0G" + "a" * 26,
        "sess_40" + "a" * 26,
        "sess_00" + "a" * 26 + "\n",
    ],
)
def test_other_texts_are_not_session_ids(text: str) -> None:
    assert not KEYSPACE.is_session_id(text)


def test_every_key_of_a_session_is_in_its_buckets_slot() -> None:
    session_id = "sess_3f" + "a" * 26
    ref = KEYSPACE.session(session_id, "alice")
    tag = "{baton:3f}:"
    owner = KEYSPACE.owner_tag("alice")
    assert ref.owner_tag == owner
    assert [key.removeprefix(tag) for key in ref.keys] == [
        *(f"{kind}:{session_id}" for kind in "smtvjxibe"),
        "xx",
        "xu",
        f"o:{owner}",
        f"ox:{owner}",
        "sz",
        "cnt",
        f"oc:{owner}",
        f"g:{session_id}",
    ]
    assert all(key.startswith(tag) for key in ref.keys)


def test_no_key_shows_its_owner() -> None:
    assert not any("alice" in key for key in KEYSPACE.session(KEYSPACE.issue(), "alice").keys)


def test_turn_ids_are_random() -> None:
    ids = {new_turn_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(TURN_ID.fullmatch(turn_id) for turn_id in ids)


@pytest.mark.parametrize(
    ("namespace", "buckets", "secret"),
    [("baton", 0, SECRET), ("baton", 257, SECRET), ("baton", 1, b"short"), ("", 1, SECRET), ("a}b", 1, SECRET)],
)
def test_a_keyspace_that_could_not_work_is_refused(namespace: str, buckets: int, secret: bytes) -> None:
    with pytest.raises(ValueError, match="must"):
        Keyspace(namespace, buckets, secret)
