"""What the store answers: one type per outcome, and the errors.

An outcome is expected and is returned; callers match on its type. Errors are raised:

    StoreUnavailable        Redis did not answer, or refused; nothing can be said beyond ``outcome_unknown``
    StoreBusy               one of these: Redis answers, but this replica has too few connections to it
    SessionTorn             a part of what is read is not there; AttachmentLost, if it is an attachment
    HistoryTooLarge         a replica does not read so much for one turn

What the scripts reply is made into these in replies.py.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Verdict = Literal["committed", "aborted", "dead"]


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


BeginResult = Begun | Running | Answered | KeyReused | Busy | Moved | Settled | TurnsFull | Denied | Gone | Corrupt


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


AppendResult = Settled | Answered | KeyReused | Busy | Fenced | TurnsFull | Corrupt | Denied | Gone
