"""Which session a request belongs to.

Absent: stateless, nothing is stored. ``new``: a session with an issued id. ``sess_…``: an issued id. Anything else of
the permitted form: a name of the caller's own, which exists from its first use. ``X-Session-Mode: continue`` wants it
to exist already, ``create`` wants it not to.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal

from service.errors import BatonError, chosen, session_not_found
from storage.keys import TURN_ID, Keyspace, SessionRef

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,199}")
RESERVED: Final = frozenset({"new", "stats", "import"})

Mode = Literal["any", "continue", "create"]
MODES: Final[tuple[Mode, ...]] = ("continue", "create")


@dataclass(frozen=True, slots=True)
class Address:
    """A session as a request names it.

    Attributes:
        ref: the session.
        name: the caller's own name for it, "" if it goes by its issued id.
        mode: what must be true of it.
    """

    ref: SessionRef
    name: str
    mode: Mode

    @property
    def public(self) -> str:
        """What its owner calls it: the name, else the issued id."""
        return self.name or self.ref.id


def resolve(keyspace: Keyspace, owner: str, session: str, mode: Mode = "any") -> Address:
    """An id or name as given, never ``new``.

    Raises:
        BatonError: invalid_session_id, or session_not_found for an id that cannot have been issued.
    """
    if session.startswith("sess_"):
        if not keyspace.is_session_id(session):
            raise session_not_found()
        return Address(keyspace.session(session, owner), "", "continue" if mode == "any" else mode)
    return Address(named(keyspace, owner, session, param="session_id"), session, mode)


def named(keyspace: Keyspace, owner: str, name: str, *, param: str) -> SessionRef:
    """The session of a name of the caller's own.

    Raises:
        BatonError: invalid_session_id, if it may not be one; ``param`` says where it came from.
    """
    if not NAME.fullmatch(name) or name in RESERVED or name.startswith("sess_"):
        raise BatonError(
            "invalid_session_id",
            "A session is named by its issued id (sess_…), by `new`, or by a name of your own: 1-200 characters out of "
            "letters, digits and . _ : @ + -, beginning with a letter or digit; `stats` and `import` are reserved.",
            param=param,
        )
    return keyspace.session(keyspace.named(owner, name), owner)


def of_request(
    keyspace: Keyspace,
    owner: str,
    *,
    in_body: str | None,
    in_header: str | None,
    mode: str | None,
    idempotency_key: str | None,
) -> Address | None:
    """The session of a turn; None for a stateless one.

    ``new`` under an idempotency key gets an id that is derived from the key, so that the same request finds it again.

    Raises:
        BatonError: session_id_conflict, invalid_session_id, invalid_value or session_not_found.
    """
    if in_body is not None and in_header is not None and in_body != in_header:
        raise BatonError(
            "session_id_conflict", "The body's session_id and the header X-Session-Id differ.", param="session_id"
        )
    session = in_body if in_body is not None else in_header
    wanted = chosen("X-Session-Mode", mode, MODES, "any")
    if session is None:
        if mode is not None:
            raise BatonError("invalid_value", "X-Session-Mode needs a session.", param="X-Session-Mode")
        return None
    if session == "new":
        if wanted == "continue":
            raise BatonError("invalid_value", "`new` cannot be continued.", param="X-Session-Mode")
        key = idempotency_key
        session_id = keyspace.issue() if key is None else keyspace.keyed(owner, "turn", key)
        return Address(keyspace.session(session_id, owner), "", "create")
    address = resolve(keyspace, owner, session, wanted)
    if wanted == "create" and not address.name:
        raise BatonError(
            "invalid_value", "An issued id cannot be created; use `new` or a name.", param="X-Session-Mode"
        )
    return address


def expected_turn(given: str | None) -> str:
    """The turn that ``X-Expect-Turn`` names; "" without one.

    Raises:
        BatonError: invalid_value.
    """
    if given is not None and not TURN_ID.fullmatch(given):
        raise BatonError("invalid_value", "X-Expect-Turn is the id of a turn, turn_….", param="X-Expect-Turn")
    return given or ""
