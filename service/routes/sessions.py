"""``/v1/sessions/{id}`` and its messages, to be read."""

from datetime import UTC, datetime
from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import Response

from service import access, addressing
from service.asgi import json_response, query_number
from service.errors import BatonError
from service.store_watch import StoreWatch
from storage import elements
from storage.keys import SessionRef
from storage.results import Gone, StoreUnavailable
from storage.sessions import Sessions, Snapshot

_PAGE_MESSAGES_MAX: Final = 100


def _iso(ms: int) -> str | None:
    if not ms:
        return None
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def session_object(session_id: str, snapshot: Snapshot) -> dict[str, Any]:
    """A session as callers see it; times are ISO 8601 UTC with milliseconds."""
    return {
        "id": session_id,
        "name": snapshot.name or None,
        "session_id": snapshot.name or session_id,
        "object": "session",
        "created_at": _iso(snapshot.created_ms),
        "last_accessed_at": _iso(snapshot.accessed_ms),
        "expires_at": _iso(snapshot.expires_ms),
        "absolute_expires_at": _iso(snapshot.absolute_end_ms),
        "status": "busy" if snapshot.running_turn_id else "active",
        "message_count": snapshot.messages,
        "turn_count": snapshot.turns,
        "model": snapshot.model or None,
        "system_prompt": _system_prompt(snapshot.system_json),
        "max_turns": snapshot.max_turns or None,
        "title": snapshot.title or None,
        "metadata": orjson.loads(snapshot.metadata_json),
        "owner": snapshot.owner,
        "ttl_seconds": snapshot.ttl_ms // 1000,
        "usage": {
            "input_tokens": snapshot.input_tokens,
            "output_tokens": snapshot.output_tokens,
            "cache_read_input_tokens": snapshot.cache_read_tokens,
            "cache_creation_input_tokens": snapshot.cache_written_tokens,
        },
        "checkpoint": None,
    }


def _system_prompt(system_json: bytes) -> str | None:
    if not system_json:
        return None
    system = orjson.loads(system_json)
    return system if isinstance(system, str) else "\n\n".join(block["text"] for block in system)


class SessionRoutes:
    """The endpoints; each is an ASGI application."""

    def __init__(self, sessions: Sessions, store: StoreWatch) -> None:
        self._sessions = sessions
        self._store = store

    async def get(self, request: Request) -> Response:
        """``GET /v1/sessions/{id}``: the session; starts its TTL anew."""
        ref, snapshot = await self._looked_at(request)
        return json_response(session_object(ref.id, snapshot))

    async def messages(self, request: Request) -> Response:
        """``GET /v1/sessions/{id}/messages?offset&limit``: stored messages as they are, oldest first."""
        offset = query_number(request, "offset", default=0, low=0, high=10_000_000)
        limit = query_number(request, "limit", default=20, low=1, high=_PAGE_MESSAGES_MAX)
        ref, snapshot = await self._looked_at(request)
        stored = await self._page(ref, offset, limit)
        page = [orjson.Fragment(element[elements.HEADER_BYTES :]) for element in stored]
        body = {
            "object": "list",
            "session_id": snapshot.name or ref.id,
            "messages": page,
            "total": snapshot.messages,
            "has_more": offset + len(page) < snapshot.messages,
        }
        return json_response(body)

    async def _looked_at(self, request: Request) -> tuple[SessionRef, Snapshot]:
        self._store.require()
        named = request.path_params["session"]
        ref = addressing.resolve(self._sessions.keyspace, access.principal(), named).ref
        try:
            snapshot = await self._sessions.get(ref) if await self._sessions.touch(ref) else Gone()
        except StoreUnavailable as error:
            raise _unavailable() from error
        if isinstance(snapshot, Gone):
            raise BatonError("session_not_found", "There is no such session, or it has expired.", param="session_id")
        return ref, snapshot

    async def _page(self, ref: SessionRef, offset: int, limit: int) -> list[bytes]:
        try:
            return await self._sessions.messages(ref, offset, limit)
        except StoreUnavailable as error:
            raise _unavailable() from error


def _unavailable() -> BatonError:
    return BatonError("store_unavailable", "The session store is not available.", retry_after_s=1)
