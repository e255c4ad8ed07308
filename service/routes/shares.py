"""``/v1/sessions/{id}/shares``: who else may look at a session, write in it, or administer it.

A share is given to a principal, which need not be known: any well-formed one may be named, for end users exist from
their first request. Whoever has a share addresses the session by its issued id; the owner's name for it stays the
owner's. What is taken away is gone with the next request, and for streams that are being followed.
"""

from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from service import access
from service.asgi import json_response
from service.bodies import read_json
from service.errors import BatonError, invalid_value, role_too_small, session_not_found
from service.routes.visible import named_by
from service.settings import Settings
from service.stored import stored
from storage.keys import SessionRef
from storage.results import Denied, Gone, IsOwner, Shared, SharesFull
from storage.sessions import Sessions
from storage.shares import ROLES, Role, Shares


@dataclass(frozen=True, slots=True)
class ShareRoutes:
    """The endpoints.

    Attributes:
        settings: of this replica.
        sessions, shares: the store.
    """

    settings: Settings
    sessions: Sessions
    shares: Shares

    async def listed(self, request: Request) -> Response:
        """``GET /v1/sessions/{id}/shares``: all shares, by principal; for the owner and admins."""
        ref = named_by(request, self.sessions)
        found = _permitted(await stored(self.shares.of(ref)))
        shares = [_share(ref, principal, found[principal]) for principal in sorted(found)]
        return json_response({"object": "list", "session_id": ref.id, "shares": shares})

    async def get(self, request: Request) -> Response:
        """``GET …/shares/{principal}``: one share; anybody may ask for its own."""
        ref, principal = named_by(request, self.sessions), _principal(request)
        found = _permitted(await stored(self.shares.of(ref, principal)))
        if not found:
            raise _share_not_found()
        return json_response(_share(ref, principal, found[principal]))

    async def put(self, request: Request) -> Response:
        """``PUT …/shares/{principal}``: shares the session, 201, or changes the role, 200; for the owner and admins."""
        ref, principal = named_by(request, self.sessions), _principal(request)
        role = _role(await read_json(request, self.settings))
        if principal == access.principal(request.scope):
            raise invalid_value("principal", "is you: nobody gives a share to itself")
        match await stored(self.shares.share(ref, principal, role)):
            case Shared(new):
                return json_response(_share(ref, principal, role), status=201 if new else 200)
            case IsOwner():
                raise _is_owner()
            case SharesFull("session"):
                raise BatonError("shares_full", "The session is shared with as many principals as it may be.")
            case SharesFull():
                raise BatonError("shares_full", "As many sessions are shared with this principal as may be.")
            case refused:
                raise _refusal(refused)

    async def delete(self, request: Request) -> Response:
        """``DELETE …/shares/{principal}``: for the owner and admins; anybody may give up its own."""
        ref, principal = named_by(request, self.sessions), _principal(request)
        match await stored(self.shares.unshare(ref, principal)):
            case IsOwner():
                raise _is_owner()
            case bool() as was_shared:
                if not was_shared:
                    raise _share_not_found()
            case refused:
                raise _refusal(refused)
        return json_response(
            {"object": "session.share.deleted", "session_id": ref.id, "principal": principal, "deleted": True}
        )


def _principal(request: Request) -> str:
    """Of the path.

    Raises:
        BatonError: invalid_value.
    """
    principal: str = request.path_params["principal"]
    if not access.ANY_PRINCIPAL.fullmatch(principal):
        raise invalid_value(
            "principal", "must be a principal: a name like that of a key, or with the user behind a slash"
        )
    return principal


def _role(body: Any) -> Role:
    """Of the body.

    Raises:
        BatonError: invalid_value, missing_value or unknown_field.
    """
    if not isinstance(body, dict):
        raise BatonError("invalid_value", "The body must be a JSON object.")
    for name in body:
        if name != "role":
            raise BatonError("unknown_field", f"There is no field `{name[:64]}`.", param=name[:64])
    if body.get("role") is None:
        raise BatonError("missing_value", "`role` is required.", param="role")
    for role in ROLES:
        if role == body["role"]:
            return role
    raise invalid_value("role", f"must be one of {', '.join(ROLES)}")


def _permitted(found: dict[str, str] | Denied | Gone) -> dict[str, str]:
    if isinstance(found, Denied | Gone):
        raise _refusal(found)
    return found


def _refusal(refused: Denied | Gone) -> BatonError:
    return role_too_small(refused.role, "admin") if isinstance(refused, Denied) else session_not_found()


def _share(ref: SessionRef, principal: str, role: str) -> dict[str, Any]:
    return {"object": "session.share", "session_id": ref.id, "principal": principal, "role": role}


def _is_owner() -> BatonError:
    return invalid_value("principal", "is the session's owner, whose rights cannot be changed")


def _share_not_found() -> BatonError:
    return BatonError("share_not_found", "The session is not shared with that principal.", param="principal")
