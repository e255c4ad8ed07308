"""What every endpoint of one session begins with: which session, and is it there."""

from starlette.requests import Request

from service import access, addressing
from service.errors import session_not_found
from service.stored import stored
from storage.keys import SessionRef
from storage.results import Gone
from storage.sessions import Sessions, Snapshot


def named_by(request: Request, sessions: Sessions) -> SessionRef:
    """The session of the path, there or not.

    Raises:
        BatonError: invalid_session_id or session_not_found.
    """
    return addressing.resolve(sessions.keyspace, access.principal(request.scope), request.path_params["session"]).ref


async def looked_at(request: Request, sessions: Sessions) -> tuple[SessionRef, Snapshot]:
    """The session of the path, whose TTL starts anew.

    Raises:
        BatonError: as `named_by` and `stored`.
    """
    ref = named_by(request, sessions)
    return ref, await snapshot_of(ref, sessions) if await stored(sessions.touch(ref)) else _gone()


async def snapshot_of(ref: SessionRef, sessions: Sessions) -> Snapshot:
    """The session as it is.

    Raises:
        BatonError: session_not_found or store_unavailable.
    """
    snapshot = await stored(sessions.get(ref))
    return _gone() if isinstance(snapshot, Gone) else snapshot


def _gone() -> Snapshot:
    raise session_not_found()
