"""``/v1/sessions/{id}/fork``, ``…/export``, ``/v1/sessions/import``: sessions that branch, leave and come."""

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from service import (
    access,
    addressing,
    appended_messages,
    archive,
    exporting,
    forking,
    idempotency,
    session_fields,
    telemetry,
    tool_calls,
    turn_record,
)
from service.archive import Archived
from service.asgi import json_response
from service.bodies import read_body, read_json
from service.dialects import chat_messages
from service.errors import BatonError, chosen, invalid_value, session_exists, session_not_found, sessions_full
from service.forking import Forking
from service.headers import header
from service.parsing import parse_json
from service.routes.visible import looked_at, snapshot_of
from service.session_view import session_object
from service.settings import Settings
from service.stored import stored
from storage import elements
from storage.keys import SessionRef, new_nonce, new_turn_id
from storage.results import Created, Exists, Fate, Full, Gone
from storage.sessions import Sessions
from storage.shares import Role
from storage.transfer import Restored, Transfer
from storage.turns import Usage

_DIALECTS: Final = ("chat", "messages")
_MESSAGES_FIELDS: Final = ("messages", "dialect")


@dataclass(frozen=True, slots=True)
class TransferRoutes:
    """The endpoints.

    Attributes:
        settings: of this replica.
        sessions, transfer: the store.
        forking: makes forks.
        replica: for the turn record of what is imported.
    """

    settings: Settings
    sessions: Sessions
    transfer: Transfer
    forking: Forking
    replica: str

    async def fork(self, request: Request) -> Response:
        """``POST /v1/sessions/{id}/fork``: 201 and the new session; 200 if the same Idempotency-Key made it before."""
        body, key = await read_json(request, self.settings, if_empty=b"{}"), idempotency.key_of(request.scope)
        asked = forking.asked(body)
        expected = addressing.expected_turn(header(request.scope, b"x-expect-turn"))
        source, _ = await looked_at(request, self.sessions)
        owner, keyspace = access.principal(request.scope), self.sessions.keyspace
        bucket = keyspace.bucket_of(source.id)
        use = f"fork {source.id}"
        target_id = keyspace.issue(bucket) if key is None else keyspace.keyed(owner, use, key, bucket)
        target = keyspace.session(target_id, owner)
        nonce = new_nonce() if key is None else idempotency.nonce_of(owner, key, body)
        created = await self.forking.fork(source, target, nonce, asked, expected)
        return await self._created(target, created)

    async def export(self, request: Request) -> Response:
        """``GET /v1/sessions/{id}/export``: the session as JSON lines (archive.py), as it is at this instant."""
        ref, _ = await looked_at(request, self.sessions)
        whole = await stored(self.transfer.read(ref))
        if isinstance(whole, Gone):
            raise session_not_found()
        return StreamingResponse(
            exporting.lines(self.sessions, self.transfer, ref, whole, partial(access.hold, request.scope)),
            media_type=archive.MEDIA_TYPE,
            headers={"x-session-id": ref.id},
        )

    async def imported(self, request: Request) -> Response:
        """``POST /v1/sessions/import``: an exported session, or a list of messages, becomes a new session."""
        raw, key = await read_body(request.scope, request.receive, self.settings), idempotency.key_of(request.scope)
        lines = (header(request.scope, b"content-type") or "").partition(";")[0].strip().lower() == archive.MEDIA_TYPE
        ignored: set[str] = set()
        shares: dict[str, Role] = {}
        if lines:
            # In a thread, for it may take a second, and others' streams go on meanwhile.
            archived = await asyncio.to_thread(self._archived, raw)
            restored, shares = archived.restored, archived.shares
        else:
            restored = self._listed(parse_json(raw), ignored)
        name = request.query_params.get("name", restored.name)
        owner, keyspace = access.principal(request.scope), self.sessions.keyspace
        body = {"body": sha256(raw).hexdigest(), "name": name}
        nonce = new_nonce() if key is None else idempotency.nonce_of(owner, key, body)
        del raw  # the session is made of it, and as large
        if name:
            ref = addressing.named(keyspace, owner, name, param="name")
        else:
            ref = keyspace.session(keyspace.issue() if key is None else keyspace.keyed(owner, "import", key), owner)
        match await stored(self.transfer.restore(ref, _as_new(restored, name, nonce), shares)):
            case Full():
                raise sessions_full()
            case Exists() if name:
                raise session_exists(param="name")
            case Exists():
                other = "This Idempotency-Key imported another session."
                raise BatonError("idempotency_key_reused", other, param="Idempotency-Key")
            case Created() as created:
                ignored |= {f"shares.{grantee}" for grantee in created.not_shared}
                return await self._created(ref, created, ignored)

    def _archived(self, raw: bytes) -> Archived:
        reader, found = archive.Reader(), None
        for line in raw.splitlines():
            if found is not None:
                raise BatonError("invalid_value", "The body must hold one session only.", param="body")
            found = reader.feed(line)
        reader.close()
        assert found is not None
        return found

    def _listed(self, body: Any, ignored: set[str]) -> Restored:
        """A session of one turn, which nobody asked of Claude: the messages."""
        if not isinstance(body, dict):
            raise BatonError("invalid_value", "The body must be a JSON object.")
        dialect = chosen("dialect", body.get("dialect"), _DIALECTS, "chat")
        about = {name: value for name, value in body.items() if name not in _MESSAGES_FIELDS}
        made = session_fields.creation(
            about,
            aliases=self.settings.model_aliases,
            ttl_default_s=self.settings.session_ttl_s,
            now_ms=int(time.time() * 1000),
        )
        system_json, given = made.system_json, {"messages": body.get("messages")}
        if dialect == "chat":
            said = chat_messages.translated(given["messages"], ignored, asks=False)
            messages = said.messages
            system_json = orjson.dumps(said.system) if said.system is not None else system_json
        else:
            messages = appended_messages.parse(given)
        if not messages:
            raise invalid_value("messages", "must be a list with at least one message")
        if messages[0]["role"] != "user":
            raise BatonError("invalid_value", "The first message must be a user's.", param="messages.0.role")
        packed = tool_calls.pack((), messages, elements.FIRST_DIGEST)
        turn_id = new_turn_id()
        record = turn_record.without_claude(
            turn_id, "import", self.replica, (0, len(packed)), started=datetime.now(UTC)
        )
        return Restored(
            nonce="",
            ttl_ms=made.ttl_ms,
            absolute_end_ms=made.absolute_end_ms,
            name=made.name,
            created_ms=0,
            head=turn_id,
            model=made.model,
            max_turns=made.max_turns,
            turn_count=0,
            epoch_hash="",
            epoch_start=0,
            context="",
            usage=Usage(),
            system_json=system_json,
            title=made.title,
            metadata_json=made.metadata_json,
            preamble=b"",
            cuts=(),
            turns=[(turn_id, record, Fate("committed", 1, delivered=False))],
            elements=packed,
            wishes=made.wishes,
        )

    async def _created(self, ref: SessionRef, created: Created, ignored: Collection[str] = ()) -> Response:
        telemetry.SESSIONS_CREATED.inc(0 if created.repeated else 1)
        snapshot = await snapshot_of(ref, self.sessions)
        response = json_response(session_object(ref.id, snapshot), status=200 if created.repeated else 201)
        response.headers["etag"] = f'"{snapshot.revision}"'
        response.headers["x-session-id"] = ref.id
        if ignored:
            response.headers["x-baton-ignored"] = ", ".join(sorted(ignored))
        return response


def _as_new(restored: Restored, name: str, nonce: str) -> Restored:
    """The same session under another name and nonce; an absolute end that is over ends nothing any more."""
    absolute_end_ms = restored.absolute_end_ms if restored.absolute_end_ms > time.time() * 1000 else 0
    return replace(restored, name=name, nonce=nonce, absolute_end_ms=absolute_end_ms)
