"""Replies of the scripts, read: every word of every one of them, here and nowhere else.

Adding a word to a script? Add it to its ``read_*`` below and to the header of the script; a test compares the two.
"""

from typing import Any, Literal

from storage.results import (
    Answered,
    AppendResult,
    BeginResult,
    Begun,
    Busy,
    Cancelling,
    Claimed,
    Corrupt,
    Covered,
    Created,
    Denied,
    Exists,
    Fate,
    Fenced,
    Full,
    Gone,
    Held,
    IsOwner,
    KeyReused,
    Live,
    Lost,
    Moved,
    Over,
    Patched,
    Removed,
    Renewed,
    Retry,
    RevisionConflict,
    Running,
    Settled,
    Shared,
    SharesFull,
    Stale,
    TurnsFull,
    UnknownTurn,
    Verdict,
)

Reply = list[bytes]

_VERDICTS: dict[bytes, Verdict] = {b"C": "committed", b"A": "aborted", b"D": "dead"}


class UnknownReply(Exception):
    """A script answered a word that this version does not know: a caller's bug or a mix of versions."""


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
