"""Who asks, and what they may do: scopes, what each operation needs, and what a request was granted; pure.

Every request to an operation that is not open to everybody passes the gate (gate.py), which leaves a `Grant` in its
scope: the principal that it acts as, the scopes that it has, and the key that it came with. A key names a principal,
which outlives it, and has one or more of these scopes:

    chat            turns in every dialect, in sessions or without, counting, models, cancelling
    sessions:read   sessions, their lists and numbers, messages, turns, and following a turn
    sessions:write  making, changing and deleting sessions, appending messages
    admin           /v1/admin: the keys of everybody; with sessions:read the numbers of everybody's sessions, too
    act-for         acting for an end user whom ``X-Baton-User`` names: the principal is then ``<key's>/<user>``

No scope implies another. Neither a principal nor a user has a slash in it, so what is put together is nobody else's.
Without keys (open mode) everybody is the principal ``open`` and may do everything but ``admin``.

`NEEDED` is the one table of who may call what; a route that is not in it keeps the service from starting.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from starlette.types import Scope

OPEN_PRINCIPAL: Final = "open"
ADMIN_PRINCIPAL: Final = "admin"
"""Of whoever comes with BATON_ADMIN_KEY."""
PRINCIPAL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,99}")
USER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+|=-]{0,127}")
ANY_PRINCIPAL: Final = re.compile(f"{PRINCIPAL.pattern}(/{USER.pattern})?")
"""That of a key, or that of an end user for whom a key acts."""

SCOPES: Final = ("chat", "sessions:read", "sessions:write", "admin", "act-for")
ALL_SCOPES: Final = frozenset(SCOPES)
OPEN_SCOPES: Final = ALL_SCOPES - {"admin"}

NEEDED: Final[Mapping[str, str]] = {
    "POST /v1/chat/completions": "chat",
    "POST /v1/messages": "chat",
    "POST /v1/messages/count_tokens": "chat",
    "POST /v1/sessions": "sessions:write",
    "GET /v1/sessions": "sessions:read",
    "GET /v1/sessions/stats": "sessions:read",
    "GET /v1/sessions/{session}": "sessions:read",
    "PATCH /v1/sessions/{session}": "sessions:write",
    "DELETE /v1/sessions/{session}": "sessions:write",
    "POST /v1/sessions/import": "sessions:write",
    "POST /v1/sessions/{session}/fork": "sessions:write",
    "POST /v1/sessions/{session}/compact": "chat",
    "GET /v1/sessions/{session}/export": "sessions:read",
    "GET /v1/sessions/{session}/messages": "sessions:read",
    "POST /v1/sessions/{session}/messages": "sessions:write",
    "GET /v1/sessions/{session}/shares": "sessions:read",
    "GET /v1/sessions/{session}/shares/{principal}": "sessions:read",
    "PUT /v1/sessions/{session}/shares/{principal}": "sessions:write",
    "DELETE /v1/sessions/{session}/shares/{principal}": "sessions:write",
    "GET /v1/sessions/{session}/turns": "sessions:read",
    "GET /v1/sessions/{session}/turns/{turn}": "sessions:read",
    "POST /v1/sessions/{session}/turns/{turn}/cancel": "chat",
    "GET /v1/sessions/{session}/turns/{turn}/events": "sessions:read",
    "GET /v1/models": "chat",
    "GET /v1/models/{model}": "chat",
    "GET /v1/admin/keys": "admin",
    "POST /v1/admin/keys": "admin",
    "GET /v1/admin/keys/{key}": "admin",
    "PATCH /v1/admin/keys/{key}": "admin",
    "DELETE /v1/admin/keys/{key}": "admin",
    "POST /v1/admin/keys/{key}/rotate": "admin",
    "GET /": "",
    "GET /health": "",
    "GET /livez": "",
    "GET /readyz": "",
    "GET /metrics": "",
    "GET /version": "",
    "GET /openapi.json": "",
}
"""The scope of every operation, by method and path; "" is open to everybody, with a key or without."""


def needed(method: str, path: str) -> str:
    """The scope that an operation needs; "" for none.

    Raises:
        KeyError: nobody has said; the route must not be served.
    """
    return NEEDED[f"{'GET' if method == 'HEAD' else method} {path}"]


End = Callable[[], None]
Held = dict[object, tuple["Grant", End]]
"""What runs by right of a grant, and how it is ended."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a request may do, and why.

    Attributes:
        principal: as whom it acts.
        scopes: what its key may do.
        key_id: of its key; "" without one (open mode, or BATON_ADMIN_KEY).
        digest: of the text of the key that was shown.
        used: the scopes that it had to have.
        held: where it is noted what runs by it.
    """

    principal: str
    scopes: frozenset[str]
    key_id: str = ""
    digest: bytes = b""
    used: frozenset[str] = frozenset()
    held: Held = field(default_factory=dict, repr=False, compare=False)

    @property
    def authenticated(self) -> bool:
        """Whether the principal has shown a credential."""
        return bool(self.key_id) or "admin" in self.scopes

    @property
    def everybodys(self) -> bool:
        """Whether the numbers of everybody are its to see: an administrator's, unless it acts for somebody."""
        return "admin" in self.scopes and "act-for" not in self.used

    @property
    def by(self) -> str:
        """The key by its name for an audit; never its text."""
        return self.key_id or ("BATON_ADMIN_KEY" if "admin" in self.scopes else "none")


def grant(scope: Scope) -> Grant:
    """What the gate has granted this request."""
    found: Grant = scope["grant"]
    return found


def principal(scope: Scope) -> str:
    """The principal of a request; owns the sessions that it creates."""
    return grant(scope).principal


def hold(scope: Scope, end: End) -> Callable[[], None]:
    """Notes what runs by right of a request's grant; ``end`` is called once that right is lost.

    Returns:
        What is to be called when it has ended by itself; harmless the second time.
    """
    granted, token = grant(scope), object()
    granted.held[token] = (granted, end)
    return lambda: granted.held.pop(token, None) and None
