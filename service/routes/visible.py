"""What every endpoint of one session begins with: which session, is it there, and the store's silence as an error."""

from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import Request

from service import access, addressing
from service.errors import session_corrupt, session_not_found, store_unavailable
from storage.keys import SessionRef
from storage.results import AttachmentLost, Gone, StoreUnavailable
from storage.sessions import Sessions, Snapshot

T = TypeVar("T")


async def stored(asking: Awaitable[T]) -> T:
    """What the store answers.

    Raises:
        BatonError: store_unavailable or session_corrupt.
    """
    try:
        return await asking
    except StoreUnavailable as error:
        raise store_unavailable() from error
    except AttachmentLost as error:
        raise session_corrupt() from error


def named_by(request: Request, sessions: Sessions) -> SessionRef:
    """The session of the path, there or not.

    Raises:
        BatonError: invalid_session_id or session_not_found.
    """
    return addressing.resolve(sessions.keyspace, access.principal(), request.path_params["session"]).ref


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
