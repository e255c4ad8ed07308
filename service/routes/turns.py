"""``/v1/sessions/{id}/turns``: what was asked of Claude in a session, and what became of it; also while it runs."""

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service import access, sse, telemetry
from service.asgi import json_response, query_number
from service.dialect import Dialect
from service.errors import BatonError, events_not_found, role_too_small, session_not_found
from service.exchange import Exchanges
from service.following import Following
from service.headers import header
from service.routes.visible import looked_at
from service.session_view import turn_object
from service.stored import stored
from storage import elements
from storage.keys import SessionRef
from storage.log import Log
from storage.results import Cancelling, Denied, Gone, Live, Over, UnknownTurn
from storage.sessions import Sessions
from storage.turns import Turns

_PAGE_TURNS_MAX: Final = 100
_NUMBER_MAX: Final = 999_999_999_999


@dataclass(frozen=True, slots=True)
class TurnRoutes:
    """The endpoints.

    Attributes:
        sessions, turns, log: the store.
        dialects: by name: a turn is followed in its own.
        exchanges: of this replica; while it drains nobody is followed.
        followers_max: at once.
        followers: who there is.
        status_wait_s: how long a stream's status line waits for the first event.
    """

    sessions: Sessions
    turns: Turns
    log: Log
    dialects: Mapping[str, Dialect]
    exchanges: Exchanges
    followers_max: int
    status_wait_s: float
    followers: set[Following] = field(default_factory=set)

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
        turn = await self._turn(ref, request)
        messages: list[orjson.Fragment] = []
        if turn["message_range"] is not None:
            first, end = turn["message_range"]["from"], turn["message_range"]["to"]
            packed = await stored(self.sessions.messages(ref, first, end - first)) if end > first else []
            messages = [orjson.Fragment(element[elements.HEADER_BYTES :]) for element in packed]
        return json_response({**turn, "session_id": snapshot.name or ref.id, "messages": messages})

    async def cancel(self, request: Request) -> Response:
        """``POST …/turns/{turn}/cancel``: 202 if the turn runs and was asked to stop, else 200; the turn either way.

        Its replica learns of it within a quarter of a second while the answer streams, else within a third of a lease.
        """
        ref, _ = await looked_at(request, self.sessions)
        turn = await self._turn(ref, request)
        result = await stored(self.turns.cancel(ref, turn["id"]))
        if isinstance(result, Over):  # nobody is left who could stop it: it ends here
            ended = await stored(self.turns.abort(ref, turn["id"], "finder"))
            # Or its replica was only frozen, and has just gone on.
            result = await stored(self.turns.cancel(ref, turn["id"])) if isinstance(ended, Live) else result
        if isinstance(result, Denied):
            raise role_too_small(result.role, "writer")
        if isinstance(result, Gone):
            raise session_not_found()
        if isinstance(result, UnknownTurn):
            raise _turn_not_found()
        if isinstance(result, Cancelling):
            telemetry.CANCELS.inc()
            return json_response({**turn, "cancel_requested": True}, status=202)
        return json_response({**await self._turn(ref, request), "cancel_requested": False})

    async def events(self, request: Request) -> Response:
        """``GET …/turns/{turn}/events``: the events of a streamed turn, from the first or after ``Last-Event-ID``.

        They are those that the turn's caller is shown, with the same ids, up to the end; it makes no difference which
        replica runs the turn. Kept until five minutes after its end.
        """
        after = _last_event_id(request)
        ref, _ = await looked_at(request, self.sessions)
        turn = await self._turn(ref, request)
        if not turn["streamed"]:
            raise events_not_found()
        self.exchanges.admit()
        if len(self.followers) >= self.followers_max:
            telemetry.REFUSALS["followers"].inc()
            raise BatonError("overloaded", "This replica has all the followers it may; try again.", retry_after_s=1)
        following = Following(
            self.log,
            self.turns,
            ref,
            turn["id"],
            turn["number"],
            after=after,
            stopping=lambda: self.exchanges.draining,
        )
        headers = {"x-session-id": ref.id, "x-turn-id": turn["id"]}
        return _Events(following, self.dialects[turn["dialect"]], self.followers, headers, self.status_wait_s)

    async def _turn(self, ref: SessionRef, request: Request) -> dict[str, Any]:
        """The turn of the path.

        Raises:
            BatonError: turn_not_found.
        """
        number = await self._number(ref, request.path_params["turn"])
        found = await self._turns(ref, number, number) if number else []
        if not found:
            raise _turn_not_found()
        return found[0]

    async def _number(self, ref: SessionRef, turn: str) -> int | None:
        if turn.isascii() and turn.isdecimal():
            return int(turn) if len(turn) <= len(str(_NUMBER_MAX)) else None
        return await stored(self.turns.number(ref, turn))

    async def _turns(self, ref: SessionRef, first: int, last: int) -> list[dict[str, Any]]:
        """Turns ``first`` … ``last``, as far as there are such."""
        records = [orjson.loads(record) for record in await stored(self.turns.records(ref, first, last))]
        fates = await stored(self.turns.fates(ref, [record["id"] for record in records]))
        cuts = await stored(self.turns.cuts(ref))
        for at, (record, fate) in enumerate(zip(records, fates, strict=True)):
            if fate and fate.verdict == "committed" and record["state"] == "pending":  # it was, a moment ago
                records[at] = orjson.loads((await stored(self.turns.records(ref, first + at, first + at)))[0])
        return [
            turn_object(number, record, fate, cuts)
            for number, (record, fate) in enumerate(zip(records, fates, strict=True), start=first)
        ]


class _Events(Response):
    """A followed turn as a stream of server-sent events."""

    def __init__(
        self,
        following: Following,
        dialect: Dialect,
        followers: set[Following],
        told: Mapping[str, str],
        status_wait_s: float,
    ) -> None:
        super().__init__()
        self._following = following
        self._dialect = dialect
        self._followers = followers
        self._told = told
        self._status_wait_s = status_wait_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        self._followers.add(self._following)
        release = access.hold(scope, self._revoke)
        relay = asyncio.create_task(self._stream(send))
        try:
            with telemetry.FOLLOWERS.track_inprogress():
                async with sse.watching(receive, relay.cancel):
                    await asyncio.wait([relay])
        finally:
            release()
            self._followers.discard(self._following)
            relay.cancel()
        if not relay.cancelled():
            relay.result()

    def _revoke(self) -> None:
        self._following.revoked = True

    async def _stream(self, send: Send) -> None:
        ready = asyncio.Event()
        ready.set()
        stream = sse.EventStream(
            send, lambda: self._told, ready, status_wait_s=self._status_wait_s, keepalive=self._dialect.keepalive
        )
        async with stream:
            await self._relay(stream)

    async def _relay(self, stream: sse.EventStream) -> None:
        try:
            async with aclosing(self._following.frames()) as follow:
                async for frames in follow:
                    await stream.write(frames)
        except BatonError as error:
            if not stream.begun:
                raise
            await stream.end(b"id: %d\n%b" % (self._following.ordinal + 1, self._dialect.failed(error)))
        else:
            await stream.end()


def _last_event_id(request: Request) -> int:
    given = header(request.scope, b"last-event-id")
    if given is None or given == "":
        return 0
    if not given.isascii() or not given.isdecimal() or len(given) > 15:
        raise BatonError("invalid_value", "Last-Event-ID is the id of an event of this turn.", param="Last-Event-ID")
    return int(given)


def _turn_not_found() -> BatonError:
    return BatonError("turn_not_found", "The session has no such turn.", param="turn")
