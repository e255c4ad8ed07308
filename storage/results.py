"""What the store answers: one type per outcome, and the errors.

An outcome is expected and is returned; callers match on its type. Errors are raised:

    StoreUnavailable        Redis did not answer, or refused; nothing can be said beyond ``outcome_unknown``
    StoreBusy               one of these: Redis answers, but this replica has too few connections to it
    SessionTorn             a part of what is read is not there; AttachmentLost, if it is an attachment
    HistoryTooLarge         a replica does not read so much for one turn

Every reply word of every script is read here and nowhere else. Adding a word to a script? Add it to its ``read_*``
below and to the header of the script; a test compares the two.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Verdict = Literal["committed", "aborted", "dead"]
_VERDICTS: dict[bytes, Verdict] = {b"C": "committed", b"A": "aborted", b"D": "dead"}

Reply = list[bytes]

LEASE_MS_MAX = 300_000
"""No lease may be longer: an end further away than this counts as over (scripts/shared/lease.lua)."""


class StoreUnavailable(Exception):
    """The store could not be asked, or refused.

    Attributes:
        outcome_unknown: True if the command may have been executed all the same; False if it surely was not.
    """

    def __init__(self, reason: str, *, outcome_unknown: bool) -> None:
        super().__init__(reason)
        self.outcome_unknown = outcome_unknown


class SessionTorn(Exception):
    """A part of a session is not there: Redis evicted it, as `Corrupt` says. The session is corrupt."""


class AttachmentLost(SessionTorn):
    """An attachment that a message names is not there."""


class HistoryTooLarge(Exception):
    """The messages of a session with all their attachments, ``size_bytes``, are more than any turn could send."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(f"{size_bytes} bytes")
        self.size_bytes = size_bytes


class StoreBusy(StoreUnavailable):
    """The store answers, but all connections of this replica to it were in use for as long as they are waited for."""


class UnknownReply(Exception):
    """A script answered a word that this version does not know: a caller's bug or a mix of versions."""


@dataclass(frozen=True, slots=True)
class Gone:
    """Unknown, expired, or another owner's session that is not shared with who acts: they look alike."""


@dataclass(frozen=True, slots=True)
class Denied:
    """The session is shared with who acts, in this role, which is too small; "" if it is not shared any more."""

    role: str


@dataclass(frozen=True, slots=True)
class Retry:
    """What is declared from a prior read is not so any more; read it again."""


@dataclass(frozen=True, slots=True)
class Shared:
    """The session is shared so; ``new`` if it was not shared with that principal before."""

    new: bool


@dataclass(frozen=True, slots=True)
class IsOwner:
    """The principal owns the session: it has no share."""


@dataclass(frozen=True, slots=True)
class SharesFull:
    """A bound of shares is reached: the session's, or that of what is shared with the principal."""

    of: Literal["session", "principal"]


@dataclass(frozen=True, slots=True)
class Corrupt:
    """Redis evicted a part of the session (``maxmemory-policy`` is not ``noeviction``): it cannot be continued."""


@dataclass(frozen=True, slots=True)
class Created:
    """The session exists now.

    Attributes:
        repeated: a create with the same nonce had been executed before.
        not_shared: with whom it could not be shared again, of one that was put back.
    """

    repeated: bool = False
    not_shared: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Exists:
    """Another creation of this id was first."""


@dataclass(frozen=True, slots=True)
class Stale:
    """An expired session of this id was not swept yet."""


@dataclass(frozen=True, slots=True)
class Full:
    """A cap is reached: the owner's own, or everybody's together."""

    cap: Literal["owner", "all"]


@dataclass(frozen=True, slots=True)
class Patched:
    """The session has changed; this is its revision now."""

    revision: int


@dataclass(frozen=True, slots=True)
class RevisionConflict:
    """Somebody else changed it first; this is its revision now."""

    revision: int


@dataclass(frozen=True, slots=True)
class Begun:
    """The lease is ours.

    Attributes:
        number: of the turn in its session, from 1.
        head: what commit must present.
        messages, size_bytes, turns: of the history as it stands.
        model: last effective model, "" before the first turn unless one was set.
        epoch_hash: of the last turn's model, system prompt, tools and thinking rules, opaque; "" before the first.
        epoch_start: index of the epoch's first message.
        revision: of the session's own fields; tells commit whether a patch came in between.
        dead_turn_id: a turn that was declared dead on the way, or "".
        context: what the last commit left about it, opaque; "" before the first.
        idle_ms: since the last commit; None before the first.
    """

    number: int
    head: str
    messages: int
    size_bytes: int
    turns: int
    model: str
    epoch_hash: str
    epoch_start: int
    revision: int
    dead_turn_id: str
    context: str = ""
    idle_ms: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Busy:
    """Another turn holds the lease for another ``remaining_ms`` at most, unless renewed."""

    turn_id: str
    remaining_ms: int


@dataclass(frozen=True, slots=True)
class Running:
    """The request is an earlier one sent again: that turn runs."""

    turn_id: str
    number: int


@dataclass(frozen=True, slots=True)
class Answered:
    """The request is an earlier one sent again: that turn is committed."""

    turn_id: str
    number: int


@dataclass(frozen=True, slots=True)
class KeyReused:
    """The idempotency key belongs to this turn, which another request asked for."""

    turn_id: str


@dataclass(frozen=True, slots=True)
class Moved:
    """The head is not the one that was expected, but this."""

    head: str


@dataclass(frozen=True, slots=True)
class Cancelling:
    """The turn runs and was asked to stop."""

    number: int


@dataclass(frozen=True, slots=True)
class Over:
    """The turn's lease is over: nobody is left who could be asked."""


@dataclass(frozen=True, slots=True)
class TurnsFull:
    """The session may have no further turn."""


@dataclass(frozen=True, slots=True)
class Settled:
    """The turn has its verdict. ``number`` is 0 if it never began."""

    verdict: Verdict
    number: int


@dataclass(frozen=True, slots=True)
class Renewed:
    """The lease goes on; ``cancel`` is set once somebody asked to cancel the turn."""

    cancel: bool


@dataclass(frozen=True, slots=True)
class Lost:
    """The session knows neither a lease nor a verdict of this turn (a failover lost them)."""


@dataclass(frozen=True, slots=True)
class Fenced:
    """The head is not what begin answered: another history, nothing was written."""


@dataclass(frozen=True, slots=True)
class Removed:
    """The aborted turn had created the session; both are gone."""


@dataclass(frozen=True, slots=True)
class Live:
    """A finder came too early: the lease holds for ``remaining_ms``."""

    remaining_ms: int


@dataclass(frozen=True, slots=True)
class UnknownTurn:
    """A finder asked for a turn that is neither running nor settled."""


class Fate(NamedTuple):
    """What the hash of verdicts holds of a turn: verdict, number, and whether its answer has reached its caller."""

    verdict: Verdict
    number: int
    delivered: bool


def read_fate(value: bytes) -> Fate:
    """A value of the hash of verdicts: letter, number, and ``d`` if delivered."""
    return Fate(_VERDICTS[value[:1]], int(value[1:].removesuffix(b"d")), value.endswith(b"d"))


def _settled(value: bytes) -> Settled:
    return Settled(*read_fate(value)[:2])


def read_create(reply: Reply) -> Created | Exists | Stale | Full:
    """Reply of create.lua and restore.lua."""
    match reply:
        case [b"FULL", b"owner"]:
            return Full("owner")
        case [b"FULL", b"all"]:
            return Full("all")
        case [b"CREATED", *not_shared]:
            return Created(not_shared=tuple(principal.decode() for principal in not_shared))
        case [b"DUPLICATE"]:
            return Created(repeated=True)
        case [b"EXISTS"]:
            return Exists()
        case [b"STALE"]:
            return Stale()
    raise UnknownReply(reply)


def read_fork(reply: Reply) -> Created | Exists | Stale | Full | Gone | Moved | TurnsFull | Corrupt:
    """Reply of fork.lua."""
    match reply:
        case [b"MOVED", head]:
            return Moved(head.decode())
        case [b"TURNS_FULL"]:
            return TurnsFull()
        case [b"GONE"]:
            return Gone()
        case [b"CORRUPT"]:
            return Corrupt()
    return read_create(reply)


def elsewhere(reply: Reply) -> str | None:
    """The tag of the session's owner, if a script was given the keys of another (shared/declared.lua)."""
    return reply[1].decode() if reply[0] == b"ELSEWHERE" else None


def has_other_grantees(reply: Reply) -> bool:
    """Whether a script that removes a session was given other grantees than there are (shared/grantees.lua)."""
    return reply[0] == b"RETRY"


BeginResult = Begun | Running | Answered | KeyReused | Busy | Moved | Settled | TurnsFull | Denied | Gone | Corrupt


def read_begin(reply: Reply) -> BeginResult:
    """Reply of begin.lua."""
    match reply:
        case [b"BEGUN", number, head, messages, size, turns, model, epoch, start, revision, dead, context, idle]:
            return Begun(
                int(number),
                head.decode(),
                int(messages),
                int(size),
                int(turns),
                model.decode(),
                epoch.decode(),
                int(start),
                int(revision),
                dead.decode(),
                context.decode(),
                int(idle) if idle else None,
            )
        case [b"RUNNING", turn_id, number]:
            return Running(turn_id.decode(), int(number))
        case [b"ANSWERED", turn_id, number]:
            return Answered(turn_id.decode(), int(number))
        case [b"REUSED", turn_id]:
            return KeyReused(turn_id.decode())
        case [b"BUSY", turn_id, remaining]:
            return Busy(turn_id.decode(), int(remaining))
        case [b"MOVED", head]:
            return Moved(head.decode())
        case [b"SETTLED", verdict]:
            return _settled(verdict)
        case [b"TURNS_FULL"]:
            return TurnsFull()
        case [b"DENIED", role]:
            return Denied(role.decode())
        case [b"GONE"]:
            return Gone()
        case [b"CORRUPT"]:
            return Corrupt()
    raise UnknownReply(reply)


def read_cancel(reply: Reply) -> Cancelling | Over | Settled | UnknownTurn | Denied | Gone:
    """Reply of cancel.lua."""
    match reply:
        case [b"CANCELLING", number]:
            return Cancelling(int(number))
        case [b"OVER"]:
            return Over()
        case [b"SETTLED", verdict]:
            return _settled(verdict)
        case [b"UNKNOWN"]:
            return UnknownTurn()
        case [b"DENIED", role]:
            return Denied(role.decode())
        case [b"GONE"]:
            return Gone()
    raise UnknownReply(reply)


@dataclass(frozen=True, slots=True)
class Claimed:
    """The next checkpoint is ours to make. It is stored if the session still has this claim, version and generation."""

    nonce: str
    version: int
    generation: int


@dataclass(frozen=True, slots=True)
class Held:
    """Somebody else makes the next checkpoint, for another ``remaining_ms`` at most."""

    remaining_ms: int


@dataclass(frozen=True, slots=True)
class Covered:
    """The checkpoint covers these messages already, or they are not there any more."""


def read_claim(reply: Reply) -> Claimed | Held | Covered | Moved | Denied | Gone:
    """Reply of claim.lua."""
    match reply:
        case [b"CLAIMED", nonce, version, generation]:
            return Claimed(nonce.decode(), int(version), int(generation))
        case [b"HELD", remaining]:
            return Held(int(remaining))
        case [b"COVERED"]:
            return Covered()
        case [b"MOVED", head]:
            return Moved(head.decode())
        case [b"DENIED", role]:
            return Denied(role.decode())
        case [b"GONE"]:
            return Gone()
    raise UnknownReply(reply)


def read_checkpoint(reply: Reply) -> int | None:
    """Reply of checkpoint.lua: the version that it is stored as; None if what it was to stand for has changed."""
    match reply:
        case [b"STORED", version]:
            return int(version)
        case [b"STALE"] | [b"GONE"]:
            return None
    raise UnknownReply(reply)


def read_delivered(reply: Reply) -> bool:
    """Reply of delivered.lua: whether there is such a committed turn."""
    match reply:
        case [b"MARKED"]:
            return True
        case [b"GONE"]:
            return False
    raise UnknownReply(reply)


def read_renew(reply: Reply) -> Renewed | Settled | Lost | Denied | Gone:
    """Reply of renew.lua."""
    match reply:
        case [b"RENEWED", cancel]:
            return Renewed(cancel != b"0")
        case [b"SETTLED", verdict]:
            return _settled(verdict)
        case [b"LOST"]:
            return Lost()
        case [b"DENIED", role]:
            return Denied(role.decode())
        case [b"GONE"]:
            return Gone()
    raise UnknownReply(reply)


def read_commit(reply: Reply) -> Settled | Fenced | Corrupt | Denied | Gone:
    """Reply of commit.lua; a commit that succeeded is ``Settled("committed", number)``, repeated or not."""
    match reply:
        case [b"COMMITTED", number]:
            return Settled("committed", int(number))
        case [b"SETTLED", verdict]:
            return _settled(verdict)
        case [b"FENCED"]:
            return Fenced()
        case [b"CORRUPT"]:
            return Corrupt()
        case [b"DENIED", role]:
            return Denied(role.decode())
        case [b"GONE"]:
            return Gone()
    raise UnknownReply(reply)


def read_abort(reply: Reply) -> Settled | Removed | Live | UnknownTurn | Gone:
    """Reply of abort.lua; an abort that succeeded is ``Settled`` with the verdict it wrote."""
    match reply:
        case [b"ABORTED" | b"SETTLED", verdict]:
            return _settled(verdict)
        case [b"REMOVED"]:
            return Removed()
        case [b"LIVE", remaining]:
            return Live(int(remaining))
        case [b"UNKNOWN"]:
            return UnknownTurn()
        case [b"GONE"]:
            return Gone()
    raise UnknownReply(reply)


def read_touch(reply: Reply) -> bool:
    """Reply of touch.lua: whether the session is there; no role is too small to look at it."""
    match reply:
        case [b"TOUCHED"]:
            return True
        case [b"GONE"] | [b"DENIED", _]:
            return False
    raise UnknownReply(reply)


def read_sweep(reply: Reply) -> Literal["swept", "none", "live"]:
    """Reply of sweep.lua: it was swept, there was nothing, or it lives (or has others by now who must be declared)."""
    match reply:
        case [b"SWEPT"]:
            return "swept"
        case [b"NONE"]:
            return "none"
        case [b"LIVE" | b"RETRY"]:
            return "live"
    raise UnknownReply(reply)


def read_delete(reply: Reply) -> bool | Retry | Denied:
    """Reply of delete.lua: whether there was such a session."""
    match reply:
        case [b"DELETED"]:
            return True
        case [b"GONE"]:
            return False
        case [b"RETRY"]:
            return Retry()
        case [b"DENIED", role]:
            return Denied(role.decode())
    raise UnknownReply(reply)


def read_evict(reply: Reply) -> Literal["evicted", "expired"] | None:
    """Reply of evict.lua: how the session made room; None if it is busy, was looked at since, or changed hands."""
    match reply:
        case [b"EVICTED"]:
            return "evicted"
        case [b"EXPIRED"]:
            return "expired"
        case [b"BUSY" | b"SKIP" | b"RETRY"]:
            return None
    raise UnknownReply(reply)


def read_share(reply: Reply) -> Shared | IsOwner | SharesFull | Denied | Gone:
    """Reply of share.lua."""
    match reply:
        case [b"SHARED", new]:
            return Shared(new == b"1")
        case [b"OWNER"]:
            return IsOwner()
        case [b"FULL", b"session"]:
            return SharesFull("session")
        case [b"FULL", b"principal"]:
            return SharesFull("principal")
        case [b"DENIED", role]:
            return Denied(role.decode())
        case [b"GONE"]:
            return Gone()
    raise UnknownReply(reply)


def read_unshare(reply: Reply) -> bool | IsOwner | Denied | Gone:
    """Reply of unshare.lua; whether there was such a share."""
    match reply:
        case [b"UNSHARED"]:
            return True
        case [b"NONE"]:
            return False
        case [b"OWNER"]:
            return IsOwner()
        case [b"DENIED", role]:
            return Denied(role.decode())
        case [b"GONE"]:
            return Gone()
    raise UnknownReply(reply)


def read_shares(reply: Any) -> dict[str, str] | Denied | Gone:
    """Reply of shares.lua: role by principal."""
    match reply:
        case [b"SHARES", flat]:
            texts = [text.decode() for text in flat]
            return dict(zip(texts[::2], texts[1::2], strict=True))
        case [b"DENIED", role]:
            return Denied(role.decode())
        case [b"GONE"]:
            return Gone()
    raise UnknownReply(reply)


def read_patch(reply: Reply) -> Patched | RevisionConflict | Denied | Gone:
    """Reply of patch.lua."""
    match reply:
        case [b"PATCHED", revision]:
            return Patched(int(revision))
        case [b"CONFLICT", revision]:
            return RevisionConflict(int(revision))
        case [b"DENIED", role]:
            return Denied(role.decode())
        case [b"GONE"]:
            return Gone()
    raise UnknownReply(reply)


AppendResult = Settled | Answered | KeyReused | Busy | Fenced | TurnsFull | Corrupt | Denied | Gone


def read_append(reply: Reply) -> AppendResult:
    """Reply of append.lua; an append that succeeded is ``Settled("committed", number)``, repeated or not."""
    match reply:
        case [b"ANSWERED", turn_id, number]:
            return Answered(turn_id.decode(), int(number))
        case [b"REUSED", turn_id]:
            return KeyReused(turn_id.decode())
        case [b"BUSY", turn_id, remaining]:
            return Busy(turn_id.decode(), int(remaining))
        case [b"TURNS_FULL"]:
            return TurnsFull()
        case [b"COMMITTED" | b"SETTLED" | b"FENCED" | b"CORRUPT" | b"DENIED" | b"GONE", *_]:
            return read_commit(reply)
    raise UnknownReply(reply)


def read_sweep_lock(reply: Reply) -> bool:
    """Reply of sweep_lock.lua: whether this bucket is ours to sweep."""
    match reply:
        case [b"LOCKED"]:
            return True
        case [b"HELD"]:
            return False
    raise UnknownReply(reply)


def read_create_key(reply: Reply) -> bool:
    """Reply of create_key.lua: whether it is there now; else another of its id is."""
    match reply:
        case [b"CREATED"]:
            return True
        case [b"EXISTS"]:
            return False
    raise UnknownReply(reply)


def read_patch_key(reply: Reply) -> bool:
    """Reply of patch_key.lua: whether there is such a key."""
    match reply:
        case [b"PATCHED"]:
            return True
        case [b"GONE"]:
            return False
    raise UnknownReply(reply)


def read_rotate_key(reply: Reply) -> bool:
    """Reply of rotate_key.lua: whether there is such a key."""
    match reply:
        case [b"ROTATED"]:
            return True
        case [b"GONE"]:
            return False
    raise UnknownReply(reply)


def read_delete_key(reply: Reply) -> bool:
    """Reply of delete_key.lua: whether there was such a key."""
    match reply:
        case [b"DELETED"]:
            return True
        case [b"GONE"]:
            return False
    raise UnknownReply(reply)


def read_note_key(reply: Reply) -> None:
    """Reply of note_key.lua."""
    match reply:
        case [b"NOTED"]:
            return
    raise UnknownReply(reply)
