"""Every header of ours, said once, and how a request's headers are read.

The documents of the API, and whoever must list them, take them from here.
Ours is what Baton reads in a request or says in a response beyond plain HTTP (content type, length, connection, …).
A header that means different things in different places has a row for each; no two rows have the same name and place.
Names are as documents write them; on the wire their case does not matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from starlette.types import Scope

from service.errors import BatonError

Place = Literal["request", "answer", "error"]


@dataclass(frozen=True, slots=True)
class Header:
    """A header: where it is found, and what it means there, as half a sentence."""

    name: str
    on: tuple[Place, ...]
    meaning: str


HEADERS: Final = (
    Header(
        "X-Session-Id",
        ("request",),
        "the session, as the body's `session_id`; both, and different, is an error",
    ),
    Header("X-Session-Mode", ("request",), "`continue`: it must exist; `create`: it must not"),
    Header("X-Session-On-Conflict", ("request",), "`queue` or `reject` while another turn of the session runs"),
    Header("X-Session-On-Disconnect", ("request",), "`cancel` or `continue` when the caller hangs up"),
    Header(
        "X-Session-Input",
        ("request",),
        "as the body's `session_input`; `delta`: the messages are new; `full`: they are the whole conversation. "
        "Default: `full` if there is an assistant message among them",
    ),
    Header(
        "X-Session-Prefix",
        ("request",),
        "`strict`: refuse the turn rather than send another prefix (model, system prompt, tools or thinking rules that "
        "are not the session's); `adapt`: begin a new epoch",
    ),
    Header("If-Match", ("request",), "the `ETag` of the session as it was read; `*`: whatever it is by now"),
    Header(
        "Idempotency-Key",
        ("request",),
        "the caller's name for this request: sent again with it, it is the same turn, or makes the same session",
    ),
    Header(
        "X-Stainless-Retry-Count",
        ("request",),
        "how often an SDK has sent this before; without a key, that is how its retry is recognised",
    ),
    Header("X-Expect-Turn", ("request",), "the turn that the caller takes for the session's last; another is an error"),
    Header("Last-Event-ID", ("request",), "the `id` of the last event that the caller has; those after it are sent"),
    Header(
        "anthropic-version",
        ("request",),
        "the version of Anthropic's API: a stateless message's is passed on to Claude, a session's is understood; with "
        "any, models are told as that API tells them, and so are errors",
    ),
    Header(
        "X-Baton-User",
        ("request",),
        "the end user for whom the request is, who then owns what it makes; needs a key with the scope `act-for`",
    ),
    Header("X-Request-Id", ("request", "answer", "error"), "echoed if it has a harmless form, else made"),
    Header("anthropic-beta", ("request",), "passed on to Claude"),
    Header("request-id", ("answer", "error"), "the same, where Anthropic's shapes are spoken"),
    Header("X-Session-Id", ("answer", "error"), "the issued id; absent when stateless"),
    Header("X-Session-State", ("answer", "error"), "`new`, `continued` or `rewound`"),
    Header("X-Turn-Id", ("answer", "error"), "the turn; on `turn_in_progress` the one that is running"),
    Header(
        "X-Baton-Context",
        ("answer", "error"),
        "what Claude was sent of the session, if not all: `checkpoint; covers=N`: a summary for the first N messages; "
        "`compact; covers=N`: the same, made for this turn; `clear_tool_results; cleared=N`: of results of tool calls "
        "in the first N only a note; `truncate; left_out=N`: nothing for the first N, for all would not fit; more than "
        "one of them, with a comma between",
    ),
    Header("X-Baton-Ignored", ("answer", "error"), "what of the request was left out"),
    Header(
        "ETag", ("answer", "error"), "the session's revision, for `If-Match`; on `revision_conflict` the present one"
    ),
    Header("WWW-Authenticate", ("error",), "with 401 and 403: what is wrong with the key, or which scope it needs"),
    Header("Retry-After", ("error",), "after how many seconds the same request may succeed"),
    Header("x-should-retry", ("error",), "whether it may: `true` or `false`, as the SDKs read it"),
)


def at(*places: Place) -> dict[str, Header]:
    """The headers that are found at one of the places, by name."""
    return {one.name: one for one in HEADERS if any(place in one.on for place in places)}


def header(scope: Scope, name: bytes) -> str | None:
    """A header's value, or None. Bytes beyond ASCII are kept as latin-1, as ASGI hands them over.

    Raises:
        BatonError: invalid_value, if it is there twice with different values.
    """
    values = {value for key, value in scope["headers"] if key == name}
    if len(values) > 1:
        shown = name.decode("latin-1")
        raise BatonError("invalid_value", f"The header {shown} is there twice with different values.", param=shown)
    return str(values.pop(), "latin-1") if values else None


def present(scope: Scope, names: Sequence[str]) -> list[str]:
    """Those of the named headers that the request has."""
    found = {name for name, _ in scope["headers"]}
    return [name for name in names if name.lower().encode() in found]


def header_list(scope: Scope, name: bytes) -> str | None:
    """A header that is a list: its values, of however many lines, as one; None without any."""
    lines = [value for key, value in scope["headers"] if key == name]
    return str(b",".join(lines), "latin-1") if lines else None
