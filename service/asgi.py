"""The ASGI edge: request id, CORS, the one error boundary, one log line a request; and the form of routes and answers.

Everything behind it may raise `BatonError`; anything else is a fault of ours and becomes ``internal_error`` with the
cause in the log only. Once a response has begun it cannot become another one: what fails after that is the business of
whoever streams (sse.py ends the stream in its dialect), and the edge only closes the connection.
"""

import asyncio
import functools
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs, telemetry
from service.bodies import SHARE, Bodies, BodyUnread, ClientGone
from service.cors import Cors
from service.dialects.errors import anthropic_error, anthropic_status, is_anthropic, openai_error
from service.errors import BatonError, internal_error
from service.interrupt import draining
from storage.tracebacks import let_go

_CLOSE = (b"connection", b"close")
_NO_SUCH_PATH: Final = (
    "No such path; GET /openapi.json lists what there is. A base URL ends in /v1 for OpenAI's clients, "
    "and without it for Anthropic's."
)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}")


def new_request_id() -> str:
    """For a request that brought none of its own."""
    return "req_" + secrets.token_hex(12)


def _request_id(scope: Scope) -> str:
    given = next((str(value, "latin-1") for key, value in scope["headers"] if key == b"x-request-id"), None)
    return given if given and _REQUEST_ID.fullmatch(given) else new_request_id()


async def send_json(
    send: Send, body: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None, is_end: bool = True
) -> None:
    """Sends a rendered JSON body as the whole response; if it is not the end, the connection is not closed yet."""
    pairs = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    pairs += [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body, "more_body": not is_end})


def json_response(value: Any, *, status: int = 200) -> Response:
    """A native endpoint's answer."""
    return Response(orjson.dumps(value), status_code=status, media_type="application/json")


def query_number(request: Request, name: str, *, default: int, low: int, high: int) -> int:
    """A whole number of the query string.

    Raises:
        BatonError: invalid_value.
    """
    given = request.query_params.get(name)
    if given is None:
        return default
    if not given.isascii() or not given.isdecimal() or len(given) > 12 or not low <= int(given) <= high:
        raise BatonError("invalid_value", f"`{name}` must be a whole number from {low} to {high}.", param=name)
    return int(given)


Handler = Callable[[Request], Awaitable[Response]]


def resource(path: str, admit: Callable[[], Awaitable[None]], **handlers: Handler) -> list[Route]:
    """The routes of one path: a handler a method (``GET`` answers HEAD too), and 405 with all of them for any other.

    Args:
        path: with its parameters in braces.
        admit: asked before any handler; raises what refuses the request.
        handlers: by method.
    """

    def admitted(handler: Handler) -> Handler:
        @functools.wraps(handler)
        async def handle(request: Request) -> Response:
            await admit()
            return await handler(request)

        return handle

    allowed = sorted({*handlers, *(("HEAD",) if "GET" in handlers else ())})

    async def refused(scope: Scope, receive: Receive, send: Send) -> None:
        raise HTTPException(405, headers={"allow": ", ".join(allowed)})

    routes = [Route(path, admitted(handler), methods=[method]) for method, handler in handlers.items()]
    return [*routes, Route(path, _AsApp(refused))]


class _AsApp:
    """Starlette takes a bare function for a handler of GET; an object it calls as an application, for all methods."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


class Edge:
    """Wraps the application; see the module's docstring.

    Args:
        app: what it wraps.
        leaving: while true, every response closes its connection, so that clients find another replica.
        bodies: of all requests.
        cors: what pages of other origins may.
    """

    def __init__(self, app: ASGIApp, leaving: Callable[[], bool], bodies: Bodies, cors: Cors) -> None:
        self._app = app
        self._leaving = leaving
        self._bodies = bodies
        self._cors = cors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope["app"] = self  # the router then raises for an unknown path or method instead of answering by itself
        own = [(b"x-request-id", request_id.encode())]
        if is_anthropic(scope):
            own.append((b"request-id", request_id.encode()))
        own += self._cors.told(scope)
        status = 0

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *own, *_unshared(scope, message)]
                if self._leaving() and _CLOSE not in message["headers"]:
                    message["headers"].append(_CLOSE)
            await send(message)

        started = time.perf_counter()
        unread = False
        running = telemetry.REQUESTS_RUNNING.track_inprogress()
        with logs.of_request(request_id), running, self._bodies.counted(receive) as body:
            scope[SHARE] = body.share
            try:
                await self._serve(scope, body.receive, tell)
            except ClientGone:
                status = 499
            except asyncio.CancelledError:  # by the server, which has no more time for it
                if status:
                    raise
                cut_short = _cut_short(scope)
                telemetry.error_told(scope, cut_short.code)
                await _answer(scope, tell, cut_short, request_id)
            except Exception as error:
                told = _told(error)
                telemetry.error_told(scope, told.code)
                let_go(error)  # the answer may take long, and is no reason to hold the body
                if status == 0:
                    unread = not body.whole and (self._leaving() or isinstance(told, BodyUnread))
                    await _answer(scope, tell, told, request_id, is_end=not unread)
            finally:
                telemetry.request_done(scope, status, time.perf_counter() - started)
        if unread:
            await body.drop()
            await send({"type": "http.response.body"})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        preflight = self._cors.preflight(scope)
        if preflight is None:
            await self._app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 204, "headers": preflight})
        await send({"type": "http.response.body", "body": b""})


def _unshared(scope: Scope, message: Message) -> list[tuple[bytes, bytes]]:
    """What keeps caches between here and the caller from telling another caller what this one was told."""
    if "grant" not in scope or not scope["grant"].authenticated:
        return []
    if any(name == b"cache-control" for name, _ in message["headers"]):
        return []
    return [(b"cache-control", b"no-store")]


def _cut_short(scope: Scope) -> BatonError:
    """What is told about a request that was not through when the replica had to end."""
    if scope["method"] in ("GET", "HEAD"):
        return draining()
    return BatonError("session_save_unknown", "This replica had to end; whether it did what was asked is not known.")


def _told(error: Exception) -> BatonError:
    """What the caller is told; the log is told the cause of a fault of ours."""
    told = _as_told(error)
    if told.code == "internal_error":
        telemetry.log.error("internal_error", exc_info=error)
    return told


def _as_told(error: Exception) -> BatonError:
    if isinstance(error, BatonError):
        return error
    if isinstance(error, HTTPException) and error.status_code == 405:
        allowed = dict(error.headers or {})
        return BatonError("method_not_allowed", "The path exists, but not with this method.", headers=allowed)
    if isinstance(error, HTTPException) and error.status_code == 404:
        return BatonError("route_not_found", _NO_SUCH_PATH)
    return internal_error()


async def _answer(scope: Scope, send: Send, error: BatonError, request_id: str, *, is_end: bool = True) -> None:
    anthropic = is_anthropic(scope)
    body = anthropic_error(error, request_id) if anthropic else openai_error(error)
    status = anthropic_status(error) if anthropic else error.status
    await send_json(send, body, status=status, headers=error.response_headers(), is_end=is_end)
