"""``/v1/sessions``: create, list, stats, one session, its messages."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import Response

from service import access, addressing, appended_messages, idempotency, session_fields, telemetry
from service.appending import Appending
from service.asgi import json_response, query_number
from service.bodies import read_json
from service.conflict import ON_CONFLICT
from service.cursor import Cursors
from service.errors import BatonError, chosen, role_too_small, session_exists, session_not_found, sessions_full
from service.headers import header
from service.routes import listing
from service.routes.visible import looked_at, named_by, snapshot_of
from service.session_view import session_object
from service.settings import Settings
from service.stored import stored
from storage import elements, turns
from storage.index import Index
from storage.keys import SessionRef, new_nonce
from storage.results import Created, Denied, Exists, Full, Gone, RevisionConflict
from storage.sessions import NewSession, Sessions, Snapshot

_PAGE_MESSAGES_MAX: Final = 100
_MIB: Final = 1_048_576
_PAGE_BYTES_MAX: Final = 8 * _MIB


@dataclass(frozen=True, slots=True)
class SessionRoutes:
    """The endpoints.

    Attributes:
        settings: of this replica.
        sessions, index: the store.
        appending: messages by hand.
        cursors: where lists go on.
    """

    settings: Settings
    sessions: Sessions
    index: Index
    appending: Appending
    cursors: Cursors

    async def create(self, request: Request) -> Response:
        """``POST /v1/sessions``: 201 and the session, 200 if the same Idempotency-Key made it before.

        409 session_exists if the name is taken.
        """
        body, key = await read_json(request, self.settings), idempotency.key_of(request.scope)
        asked = session_fields.creation(
            body,
            aliases=self.settings.model_aliases,
            ttl_default_s=self.settings.session_ttl_s,
            now_ms=int(time.time() * 1000),
        )
        owner, keyspace = access.principal(request.scope), self.sessions.keyspace
        if asked.name:
            ref = addressing.named(keyspace, owner, asked.name, param="name")
        else:
            session_id = keyspace.issue() if key is None else keyspace.keyed(owner, "session", key)
            ref = keyspace.session(session_id, owner)
        new = NewSession(
            nonce=new_nonce() if key is None else idempotency.nonce_of(owner, key, body),
            ttl_ms=asked.ttl_ms,
            absolute_end_ms=asked.absolute_end_ms,
            name=asked.name,
            model=asked.model,
            max_turns=asked.max_turns,
            system_json=asked.system_json,
            title=asked.title,
            metadata_json=asked.metadata_json,
            wishes=asked.wishes,
        )
        match await stored(self.sessions.create(ref, new)):
            case Full():
                raise sessions_full()
            case Exists() if asked.name:
                raise session_exists(param="name")
            case Exists():
                other = "This Idempotency-Key created another session."
                raise BatonError("idempotency_key_reused", other, param="Idempotency-Key")
            case Created(repeated):
                telemetry.SESSIONS_CREATED.inc(0 if repeated else 1)
        return _answer(ref, await snapshot_of(ref, self.sessions), status=200 if repeated else 201)

    async def listed(self, request: Request) -> Response:
        """``GET /v1/sessions?limit&cursor&title_prefix&metadata[key]``: the caller's, and what is shared with it.

        Last accessed first.
        """
        asked, owner, now_s = listing.query(request), access.principal(request.scope), int(time.time())
        after = None
        if asked.cursor is not None:
            after = self.cursors.read(asked.cursor, owner, asked.filters, now_s=now_s)
        page = await stored(listing.page(self.index, self.sessions, owner, asked, after))
        total = None
        if not asked.filters:
            counts = await stored(self.index.counts(owner))
            total = counts.total - counts.expired_unswept + await stored(self.index.shared_active(owner))
        last = self.cursors.issue(page.last, owner, asked.filters, now_s=now_s) if page.last else None
        sessions = [session_object(session_id, snapshot) for session_id, snapshot in page.sessions]
        return json_response(
            {"object": "list", "sessions": sessions, "has_more": bool(last), "next_cursor": last, "total": total}
        )

    async def stats(self, request: Request) -> Response:
        """``GET /v1/sessions/stats``: the caller's own sessions in numbers; for an administrator everybody's.

        Ends are counted once, when they happen: a session that expired counts as expired from that moment, and in
        ``total_sessions`` until it is swept.
        """
        granted = access.grant(request.scope)
        counts = await stored(self.index.counts(None if granted.everybodys else granted.principal))
        body = {
            "total_sessions": counts.total,
            "active_sessions": counts.total - counts.expired_unswept,
            "expired_sessions": counts.expired + counts.expired_unswept,
            "evicted_sessions": counts.evicted,
            "total_messages": counts.messages,
            "memory_usage_mb": round(counts.size_bytes / _MIB, 3),
            "cleanup_runs": counts.sweeps,
            "average_session_age_minutes": round(max(0, counts.age_s) / counts.total / 60, 2) if counts.total else 0,
            "cleanup_interval_minutes": round(self.settings.sweep_interval_s / 60, 3),
            "default_ttl_hours": round(self.settings.session_ttl_s / 3600, 3),
        }
        return json_response(body)

    async def get(self, request: Request) -> Response:
        """``GET /v1/sessions/{id}``: the session; starts its TTL anew."""
        return _answer(*await looked_at(request, self.sessions))

    async def patch(self, request: Request) -> Response:
        """``PATCH /v1/sessions/{id}``, with If-Match if it must be the session as seen; holds from the next turn."""
        ref = named_by(request, self.sessions)
        changes = session_fields.changes(await read_json(request, self.settings), aliases=self.settings.model_aliases)
        expected = _revision(header(request.scope, b"if-match"))
        match await stored(self.sessions.patch(ref, changes, expected_revision=expected)):
            case Denied(role):
                raise role_too_small(role, "admin")
            case Gone():
                raise session_not_found()
            case RevisionConflict(revision):
                raise BatonError(
                    "revision_conflict",
                    "The session was changed since; get it again, and decide again.",
                    param="If-Match",
                    headers={"etag": f'"{revision}"'},
                )
        return _answer(ref, await snapshot_of(ref, self.sessions))

    async def delete(self, request: Request) -> Response:
        """``DELETE /v1/sessions/{id}``: gone with all it held; a running turn of it ends."""
        ref = named_by(request, self.sessions)
        match await stored(self.sessions.delete(ref)):
            case Denied(role):
                raise role_too_small(role, "admin")
            case False:
                raise session_not_found()
        telemetry.SESSIONS_ENDED["deleted"].inc()
        return json_response({"id": ref.id, "object": "session.deleted", "deleted": True})

    async def messages(self, request: Request) -> Response:
        """``GET /v1/sessions/{id}/messages?offset&limit``: stored messages as they are, oldest first.

        A page ends early where it would grow beyond 8 MiB, though not before its first message. The first
        ``covered`` of the session are not sent to Claude any more: the checkpoint stands for them.
        """
        offset = query_number(request, "offset", default=0, low=0, high=10_000_000)
        limit = query_number(request, "limit", default=20, low=1, high=_PAGE_MESSAGES_MAX)
        ref, snapshot = await looked_at(request, self.sessions)
        found = await stored(self.sessions.messages(ref, offset, limit, bytes_max=_PAGE_BYTES_MAX))
        page = [orjson.Fragment(element[elements.HEADER_BYTES :]) for element in found]
        body = {
            "object": "list",
            "session_id": snapshot.name or ref.id,
            "messages": page,
            "total": snapshot.messages,
            "covered": snapshot.account.covers,
            "has_more": offset + len(page) < snapshot.messages,
        }
        return json_response(body)

    async def append(self, request: Request) -> Response:
        """``POST /v1/sessions/{id}/messages``: messages become history without asking Claude."""
        ref = named_by(request, self.sessions)
        given = header(request.scope, b"x-session-on-conflict")
        policy = chosen("X-Session-On-Conflict", given, ON_CONFLICT, self.settings.on_conflict)
        expected = addressing.expected_turn(header(request.scope, b"x-expect-turn"))
        messages, same = await self._appended(request, ref)
        lost = asyncio.Event()
        release = access.hold(request.scope, lost.set)
        try:
            appended = await self.appending.append(
                ref, messages, policy, request=same, expected=expected, revoked=lost.is_set
            )
        finally:
            release()
        body = {
            "session_id": appended.snapshot.name or ref.id,
            "message_count": appended.messages,
            "turn_id": appended.turn_id or None,
        }
        return json_response(body)

    async def _appended(self, request: Request, ref: SessionRef) -> tuple[list[dict[str, Any]], turns.Request]:
        """The messages of a request, and which request it is."""
        body = await read_json(request, self.settings)
        messages = appended_messages.parse(body)
        same = idempotency.request_of(
            request.scope,
            idempotency.key_of(request.scope),
            principal=access.principal(request.scope),
            dialect="append",
            session_id=ref.id,
            body=body,
        )
        return messages, same


def _answer(ref: SessionRef, snapshot: Snapshot, *, status: int = 200) -> Response:
    response = json_response(session_object(ref.id, snapshot), status=status)
    response.headers["etag"] = f'"{snapshot.revision}"'
    response.headers["x-session-id"] = ref.id
    return response


def _revision(if_match: str | None) -> int | None:
    """The revision that If-Match asks for; None if any will do."""
    if if_match is None or if_match == "*":
        return None
    number = if_match.removeprefix('"').removesuffix('"')
    if if_match != f'"{number}"' or not number.isascii() or not number.isdecimal() or len(number) > 15:
        raise BatonError(
            "invalid_value", 'If-Match is the ETag of the session as it was read, like "3".', param="If-Match"
        )
    return int(number)
