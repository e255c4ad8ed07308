"""Ids and key names. No other module builds either.

A session id is ``sess_`` + BB + 26 characters of base32 (128 bits). BB, two hex digits, is the bucket, so any
replica computes every key of a session from the id alone. Issued ids are random; the id of a session that the
caller named is a keyed hash of (owner, name), so names need no table and two owners never meet under one name.

All keys of a session, and the indexes that must change with it, carry the hash tag ``{namespace:BB}``: one slot
of a cluster, hence one script a mutation. The number of buckets and the secret are permanent for a namespace.

The id of a caller's key is ``key_`` + the tag of its principal + 10 random characters, so that its id alone tells the
slot ``{namespace:L:tag}``, which it shares with all other keys of the principal.
"""

import base64
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

BUCKETS_MAX = 256
_FOREIGN_MAX = 10_000
NAMESPACE = re.compile(r"[a-z0-9_-]+")
SESSION_ID = re.compile(r"sess_[0-9a-f]{2}[a-z2-7]{26}")
TURN_ID = re.compile(r"turn_[a-z2-7]{26}")
KEY_ID = re.compile(r"key_[a-z2-7]{26}")


class SessionRef:
    """A session as a principal addresses it.

    It is taken for the principal's own until a script says whose it is: some of its keys are named by owner.

    Attributes:
        id: of the session.
        principal: who acts; "" for sweeping and making room.
        owner_tag: stands for the owner, as far as it is known.
        keys: the seventeen that every script of a session declares.
    """

    __slots__ = ("_keyspace", "id", "keys", "owner_tag", "principal")

    def __init__(self, keyspace: "Keyspace", session_id: str, principal: str, owner_tag: str) -> None:
        self._keyspace = keyspace
        self.id = session_id
        self.principal = principal
        self.owner_tag = owner_tag
        self.keys = keyspace.session_keys(session_id, owner_tag)

    def __eq__(self, other: object) -> bool:
        """The same session for the same principal, whatever is known of its owner."""
        return isinstance(other, SessionRef) and (self.id, self.principal) == (other.id, other.principal)

    def __hash__(self) -> int:
        return hash((self.id, self.principal))

    @property
    def taken_for_own(self) -> bool:
        """Whether the principal is the owner, as far as it is known."""
        return self.owner_tag == self._keyspace.owner_tag(self.principal)

    def belongs_to(self, owner_tag: str) -> None:
        """Notes whose session it is, here and for later refs to it: the owner of an id never changes."""
        self.owner_tag = owner_tag
        self.keys = self._keyspace.session_keys(self.id, owner_tag)
        foreign = self._keyspace.foreign
        if len(foreign) >= _FOREIGN_MAX:
            foreign.clear()
        foreign[self.id] = owner_tag

    def shared_with(self, principals: Iterable[str]) -> tuple[str, ...]:
        """For each of the principals, the list of what is shared with it in this session's bucket."""
        tag, bucket = self._keyspace.owner_tag, int(self.id[5:7], 16)
        return tuple(self._keyspace.index(bucket, tag(principal)).shared for principal in principals)


class IndexRef(NamedTuple):
    """Where one bucket keeps what it knows of all its sessions, and of one owner's."""

    by_expiry: str
    by_access: str
    owner_by_access: str
    owner_by_expiry: str
    sizes: str
    counters: str
    owner_counters: str
    sweep_lock: str
    shared: str

    @property
    def keys(self) -> tuple[str, ...]:
        """Those that every script of a session declares, in its order."""
        return self[:7]


def _base32(raw: bytes) -> str:
    return base64.b32encode(raw).decode("ascii").rstrip("=").lower()


def new_turn_id() -> str:
    """A turn id: ``turn_`` and 128 random bits."""
    return "turn_" + _base32(secrets.token_bytes(16))


def new_nonce() -> str:
    """The first head of a session: random, so that two creations of one id are never taken for each other."""
    return "head_" + _base32(secrets.token_bytes(16))


@dataclass(frozen=True)
class Keyspace:
    """One namespace of sessions.

    Args:
        namespace: first part of every key; ``[a-z0-9_-]+``.
        buckets: 1…256, permanent once used.
        secret: at least 16 bytes; keys the hashes of names and owners, permanent once used.

    Attributes:
        foreign: whose some sessions are that were asked for by others than their owners: id → owner tag.
    """

    namespace: str
    buckets: int
    secret: bytes
    foreign: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if NAMESPACE.fullmatch(self.namespace) is None:
            raise ValueError(f"the namespace must match {NAMESPACE.pattern}, not {self.namespace!r}")
        if not 1 <= self.buckets <= BUCKETS_MAX:
            raise ValueError(f"buckets must be 1…{BUCKETS_MAX}, not {self.buckets}")
        if len(self.secret) < 16:
            raise ValueError("the secret must have at least 16 bytes")

    def _hash(self, use: bytes, *parts: str, size: int = 16) -> bytes:
        # blake2b takes keys of at most 64 bytes; a longer secret is hashed down first.
        key = self.secret if len(self.secret) <= 64 else blake2b(self.secret).digest()
        digest = blake2b(key=key, person=use, digest_size=size)
        for part in parts:
            encoded = part.encode()
            digest.update(len(encoded).to_bytes(4, "big") + encoded)
        return digest.digest()

    def issue(self, bucket: int | None = None) -> str:
        """A new random session id, in this bucket or a random one."""
        bucket = secrets.randbelow(self.buckets) if bucket is None else bucket
        return f"sess_{bucket:02x}{_base32(secrets.token_bytes(16))}"

    def named(self, owner: str, name: str) -> str:
        """The session id of the owner's own name for a session."""
        return self._derived(b"baton-name", owner, name)

    def keyed(self, owner: str, use: str, key: str, bucket: int | None = None) -> str:
        """The session id that a creation under an idempotency key gets, so that its repetition finds the session.

        Args:
            owner: who creates.
            use: what kind of request; the same key of two kinds makes two sessions.
            key: the owner's own.
            bucket: where the session must be, if that is fixed.
        """
        return self._derived(b"baton-key", owner, use, key, bucket=bucket)

    def _derived(self, use: bytes, *parts: str, bucket: int | None = None) -> str:
        digest = self._hash(use, *parts, size=24)
        bucket = int.from_bytes(digest[:8], "big") % self.buckets if bucket is None else bucket
        return f"sess_{bucket:02x}{_base32(digest[8:])}"

    def owner_tag(self, owner: str) -> str:
        """16 characters that stand for an owner in key names, so that no key shows who owns it."""
        return _owner_tag(self, owner)

    def fingerprint(self) -> str:
        """Tells two secrets apart without telling either."""
        return _base32(self._hash(b"baton-print", size=10))

    def is_session_id(self, text: str) -> bool:
        """Whether the text has the form of an issued id, in a bucket that exists."""
        return SESSION_ID.fullmatch(text) is not None and int(text[5:7], 16) < self.buckets

    @staticmethod
    def bucket_of(session_id: str) -> int:
        """The bucket of a session."""
        return int(session_id[5:7], 16)

    def session(self, session_id: str, principal: str) -> SessionRef:
        """A session as a principal addresses it: its own, unless it is known to be another's."""
        return SessionRef(self, session_id, principal, self.foreign.get(session_id) or self.owner_tag(principal))

    def of_tag(self, session_id: str, owner_tag: str) -> SessionRef:
        """A session whose owner is known by tag only, for evict and sweep."""
        return SessionRef(self, session_id, "", owner_tag)

    def session_keys(self, session_id: str, owner_tag: str) -> tuple[str, ...]:
        """The keys that every script of a session declares.

        Order of the keys (named in scripts/shared/keys.lua): s session, m messages, t turns, v verdicts, j texts,
        x cuts, i idempotency ring, b attachments, e log; xx expiry index, xu access index, o owner's access index, ox
        owner's expiry index; sz size records, cnt counters, oc owner's counters; g shares. The first eight live and die
        with the session, the log has a life of its own, the shares stay until it is removed. All are in one slot.
        """
        bucket = self.bucket_of(session_id)
        tag = self._tag(bucket)
        own = [f"{tag}{kind}:{session_id}" for kind in ("s", "m", "t", "v", "j", "x", "i", "b", "e")]
        index = self.index(bucket, owner_tag)
        return (*own, *index.keys, f"{tag}g:{session_id}")

    def index(self, bucket: int, owner_tag: str) -> IndexRef:
        """The indexes and counters of one bucket, and one owner's part of them."""
        tag = self._tag(bucket)
        return IndexRef(
            by_expiry=f"{tag}xx",
            by_access=f"{tag}xu",
            owner_by_access=f"{tag}o:{owner_tag}",
            owner_by_expiry=f"{tag}ox:{owner_tag}",
            sizes=f"{tag}sz",
            counters=f"{tag}cnt",
            owner_counters=f"{tag}oc:{owner_tag}",
            sweep_lock=f"{tag}swl",
            shared=f"{tag}w:{owner_tag}",
        )

    def _tag(self, bucket: int) -> str:
        return f"{{{self.namespace}:{bucket:02x}}}:"

    def issue_key_id(self, principal: str) -> str:
        """The id of a new key of a principal."""
        return f"key_{self.owner_tag(principal)}{_base32(secrets.token_bytes(7))[:10]}"

    def key_ids_of(self, principal: str) -> tuple[str, str]:
        """Between which two texts the ids of a principal's keys are."""
        tag = self.owner_tag(principal)
        return f"key_{tag}", f"key_{tag}~"

    def key_digest(self, text: str) -> bytes:
        """What is stored of a key's text: 32 bytes. A fast keyed hash will do, because the text is 160 random bits."""
        return self._hash(b"baton-api-key", text, size=32)

    def api_key(self, key_id: str) -> str:
        """Where a key is kept."""
        return f"{{{self.namespace}:L:{key_id[4:20]}}}:k:{key_id}"

    def api_key_list(self) -> tuple[str, str]:
        """The list of all keys, and the count of their changes; in one slot."""
        return f"{{{self.namespace}:L}}:ids", f"{{{self.namespace}:L}}:now"

    def probe(self, bucket: int) -> str:
        """What is written to see whether the bucket's server takes writes."""
        return f"{self._tag(bucket)}p"

    def config(self) -> str:
        """The namespace's record: number of buckets and the fingerprint of the secret, set once."""
        return "{" + self.namespace + "}:cfg"


@lru_cache(maxsize=4096)
def _owner_tag(keyspace: Keyspace, owner: str) -> str:
    return _base32(keyspace._hash(b"baton-owner", owner, size=10))
