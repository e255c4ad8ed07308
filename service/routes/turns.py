"""``/v1/sessions/{id}/turns``: what was asked of Claude in a session, and what became of it."""

from dataclasses import dataclass
from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import Response

from service.asgi import json_response, query_number
from service.errors import BatonError
from service.routes.visible import looked_at, stored
from service.session_view import turn_object
from storage import elements
from storage.keys import SessionRef
from storage.sessions import Sessions
from storage.turns import Turns

_PAGE_TURNS_MAX: Final = 100
_NUMBER_MAX: Final = 999_999_999_999


@dataclass(frozen=True, slots=True)
class TurnRoutes:
    """The endpoints. ``sessions`` and ``turns`` are the store."""

    sessions: Sessions
    turns: Turns

    async def listed(self, request: Request) -> Response:
        """``GET /v1/sessions/{id}/turns?limit&before``: newest first; ``before`` is a turn's number."""
        limit = query_number(request, "limit", default=20, low=1, high=_PAGE_TURNS_MAX)
        before = query_number(request, "before", default=_NUMBER_MAX, low=1, high=_NUMBER_MAX)
        ref, snapshot = await looked_at(request, self.sessions)
        total = await stored(self.turns.count(ref))
        last = min(total, before - 1)
        first = max(1, last - limit + 1)
        page = await self._turns(ref, first, last)
        body = {
            "object": "list",
            "session_id": snapshot.name or ref.id,
            "turns": page[::-1],
            "total": total,
            "has_more": first > 1 and last >= 1,
        }
        return json_response(body)

    async def get(self, request: Request) -> Response:
        """``GET /v1/sessions/{id}/turns/{turn}``: one turn by id or number, with its messages as stored."""
        ref, snapshot = await looked_at(request, self.sessions)
        number = await self._number(ref, request.path_params["turn"])
        found = await self._turns(ref, number, number) if number else []
        if not found:
            raise BatonError("turn_not_found", "The session has no such turn.", param="turn")
        turn = found[0]
        messages: list[orjson.Fragment] = []
        if turn["message_range"] is not None:
            first, end = turn["message_range"]["from"], turn["message_range"]["to"]
            packed = await stored(self.sessions.messages(ref, first, end - first)) if end > first else []
            messages = [orjson.Fragment(element[elements.HEADER_BYTES :]) for element in packed]
        return json_response({**turn, "session_id": snapshot.name or ref.id, "messages": messages})

    async def _number(self, ref: SessionRef, turn: str) -> int | None:
        if turn.isascii() and turn.isdecimal():
            return int(turn) if len(turn) <= len(str(_NUMBER_MAX)) else None
        return await stored(self.turns.number(ref, turn))

    async def _turns(self, ref: SessionRef, first: int, last: int) -> list[dict[str, Any]]:
        """Turns ``first`` … ``last``, as far as there are such."""
        records = [orjson.loads(record) for record in await stored(self.turns.records(ref, first, last))]
        verdicts = await stored(self.turns.verdicts(ref, [record["id"] for record in records]))
        cuts = await stored(self.turns.cuts(ref))
        return [
            turn_object(number, record, verdict, cuts)
            for number, (record, verdict) in enumerate(zip(records, verdicts, strict=True), start=first)
        ]
