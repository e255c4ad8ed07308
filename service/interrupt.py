"""What stops a request to Claude from outside, and what the caller is told then."""

from enum import Enum
from typing import Final

from service.errors import BatonError


class Interrupt(Enum):
    """Why an exchange was stopped from outside."""

    DEADLINE = "deadline"
    HUNG_UP = "hung_up"
    CANCELLED = "cancelled"
    DRAINING = "draining"
    LEASE_LOST = "lease_lost"
    SESSION_GONE = "session_gone"
    ROLE_LOST = "role_lost"
    REPLICA_LOST = "replica_lost"
    REVOKED = "revoked"

    def told(self) -> BatonError:
        """The error for a caller who still listens."""
        code, message = _TOLD[self]
        return BatonError(code, message)


_TOLD: Final = {
    Interrupt.DEADLINE: ("turn_timeout", "The turn took longer than it may."),
    Interrupt.HUNG_UP: ("turn_interrupted", "The connection was closed before the answer's end."),
    Interrupt.CANCELLED: ("turn_interrupted", "The turn was cancelled."),
    Interrupt.DRAINING: ("turn_interrupted", "This replica is shutting down."),
    Interrupt.SESSION_GONE: ("session_not_found", "The session was deleted or has expired."),
    Interrupt.ROLE_LOST: (
        "session_not_found",
        "The session is not shared with you any more so that you may write; this turn was not stored.",
    ),
    Interrupt.REPLICA_LOST: (
        "turn_interrupted",
        "The replica that ran this turn has vanished; nothing of it is stored.",
    ),
    Interrupt.REVOKED: (
        "revoked_api_key",
        "The key of this request was disabled, deleted or changed, or has expired, while it ran.",
    ),
    Interrupt.LEASE_LOST: ("turn_superseded", "Another turn of this session went ahead; this one was not stored."),
}


def draining() -> BatonError:
    """What a request is told that this replica does not begin to serve any more."""
    return BatonError(
        "draining",
        "This replica is shutting down; send the request again.",
        retry_after_s=1,
    )
