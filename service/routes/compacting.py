"""``/v1/sessions/{id}/compact``: a checkpoint on demand."""

from dataclasses import dataclass
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from service.asgi import json_response
from service.context import compacted
from service.context.checkpoint import Compaction, Occasion
from service.errors import role_too_small
from service.routes.visible import looked_at, snapshot_of
from service.session_view import checkpoint_object
from service.stored import stored
from storage.keys import SessionRef
from storage.sessions import Sessions, Snapshot
from storage.turns import Turns


@dataclass(frozen=True, slots=True)
class CompactRoutes:
    """The endpoint.

    Attributes:
        sessions, turns: the store.
        compaction: makes checkpoints.
    """

    sessions: Sessions
    turns: Turns
    compaction: Compaction

    async def compact(self, request: Request) -> Response:
        """``POST /v1/sessions/{id}/compact``: 202 while a checkpoint is made, 200 if it covers all that it may.

        Asking again changes nothing: there is one at a time, and what is covered is not summarized again.
        """
        ref, snapshot = await looked_at(request, self.sessions)
        if snapshot.role == "viewer":
            raise role_too_small(snapshot.role, "writer")
        running = await stored(self.compaction.on_demand(partial(self._read, ref, snapshot)))
        if not running:
            snapshot = await snapshot_of(ref, self.sessions)
        body = {
            "object": "session.compaction",
            "session_id": snapshot.name or ref.id,
            "status": "running" if running else "done",
            "checkpoint": checkpoint_object(snapshot),
        }
        response = json_response(body, status=202 if running else 200)
        response.headers["x-session-id"] = ref.id
        return response

    async def _read(self, ref: SessionRef, snapshot: Snapshot) -> Occasion:
        history = await self.turns.history(ref, snapshot.messages)
        return Occasion(
            ref=ref,
            head=snapshot.head,
            elements=history.elements,
            checkpoint=compacted.in_effect(history.checkpoint, len(history.elements)),
            wishes=history.wishes,
            tokens=0,
        )
