"""The simulator's routes, its control surface, and the process around them.

Claude's API: `POST /v1/messages`, `POST /v1/messages/count_tokens`, `GET /v1/models[/{id}]`. Beside it, for
tests and the demo, a control surface that needs no key and is not part of any real API:

    GET    /simulator/requests?limit=N   the last requests (256 are kept), newest last
    GET    /simulator/stats              {"requests": N, "running": N}
    POST   /simulator/faults             queue a fault → {"waiting": entries in the queue}
    DELETE /simulator/faults             forget those that wait
    POST   /simulator/pace               change the pace → the pace; what is not named stays

What the control surface refuses, it refuses with 400 and a sentence in plain text.
"""

import logging
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import click
import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from service.simulator.errors import ApiError, invalid, new_request_id
from service.simulator.exchange import Desk, Endpoint, count, create
from service.simulator.faults import Pace, parse_fault, parse_pace
from service.simulator.headers import check_headers
from service.simulator.journal import KEPT, Journal
from service.simulator.models import find_model, list_models

# Clients hold idle connections open and reuse them; one that the server closed just then would look like a fault.
KEEPALIVE_S = 600
MODELS_PAGE_MAX = 1000


@dataclass(frozen=True, slots=True)
class Options:
    """How a simulator behaves from its start.

    Attributes:
        first_byte_ms: wait ahead of the first byte of each answer.
        delta_ms: wait ahead of each delta; 0 sends an answer in one burst.
        log_path: file to which each finished request is appended as a line of JSON.
    """

    first_byte_ms: float = 0
    delta_ms: float = 0
    log_path: Path | None = None


def build(options: Options) -> Starlette:
    """Compose the application; everything it remembers lives in it."""
    desk = Desk(Journal(options.log_path), Pace(options.first_byte_ms, options.delta_ms))
    control = Control(desk)
    app = Starlette(
        routes=[
            Route("/v1/messages", Endpoint(desk, create), methods=["POST"]),
            Route("/v1/messages/count_tokens", Endpoint(desk, count), methods=["POST"]),
            Route("/v1/models", models_page),
            Route("/v1/models/{model_id}", one_model),
            Route("/simulator/requests", control.requests),
            Route("/simulator/stats", control.stats),
            Route("/simulator/faults", control.push_fault, methods=["POST"]),
            Route("/simulator/faults", control.clear_faults, methods=["DELETE"]),
            Route("/simulator/pace", control.set_pace, methods=["POST"]),
        ],
        exception_handlers={ApiError: _show_error, HTTPException: _show_error, Exception: _show_error},
    )
    app.router.redirect_slashes = False
    return app


def _answer(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers, "application/json")


def _limit(request: Request, default: int, most: int) -> int | None:
    """Read the page size of a request; `None` if it is not a number from 1 to `most`."""
    text = request.query_params.get("limit", str(default))
    if not text.isdecimal() or len(text) > len(str(most)) or not 1 <= int(text) <= most:
        return None
    return int(text)


async def _show_error(_: Request, exc: Exception) -> Response:
    """Render any error in Anthropic's shape; of one nobody foresaw the text stays in the log."""
    if isinstance(exc, HTTPException):
        kind = "not_found_error" if exc.status_code == 404 else "invalid_request_error"
        exc = ApiError(kind, exc.detail, status=exc.status_code, headers=dict(exc.headers or {}))
    elif not isinstance(exc, ApiError):
        exc = ApiError("api_error", "Internal server error")
    request_id = new_request_id()
    headers = {"request-id": request_id, **exc.headers}
    return Response(exc.body(request_id), exc.status, headers, "application/json")


async def models_page(request: Request) -> Response:
    """Answer `GET /v1/models`."""
    check_headers(request.headers)
    query = request.query_params
    limit = _limit(request, 20, MODELS_PAGE_MAX)
    if limit is None:
        raise invalid(f"limit: Input should be an integer from 1 to {MODELS_PAGE_MAX}")
    page = list_models(
        limit=limit,
        after_id=query.get("after_id"),
        before_id=query.get("before_id"),
        lifecycles=query.getlist("lifecycle") + query.getlist("lifecycle[]"),
    )
    return _answer(page, headers={"request-id": new_request_id()})


async def one_model(request: Request) -> Response:
    """Answer `GET /v1/models/{id}`."""
    check_headers(request.headers)
    model = find_model(request.path_params["model_id"])
    return _answer(model.info(), headers={"request-id": new_request_id()})


class Control:
    """The control surface: looks at and changes what the requests share."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def requests(self, request: Request) -> Response:
        """Answer `GET /simulator/requests`."""
        limit = _limit(request, KEPT, KEPT)
        if limit is None:
            return PlainTextResponse(f"limit must be a whole number from 1 to {KEPT}", 400)
        return _answer({"requests": self._desk.journal.last(limit)})

    async def stats(self, _: Request) -> Response:
        """Answer `GET /simulator/stats`."""
        return _answer({"requests": self._desk.journal.total, "running": self._desk.journal.running})

    async def push_fault(self, request: Request) -> Response:
        """Answer `POST /simulator/faults`."""
        try:
            self._desk.faults.push(parse_fault(orjson.loads(await request.body())))
        except ValueError as exc:  # malformed JSON is one, too
            return PlainTextResponse(str(exc), 400)
        return _answer({"waiting": len(self._desk.faults)})

    async def clear_faults(self, _: Request) -> Response:
        """Answer `DELETE /simulator/faults`."""
        self._desk.faults.clear()
        return _answer({"waiting": 0})

    async def set_pace(self, request: Request) -> Response:
        """Answer `POST /simulator/pace`; answers that have begun keep the pace they began with."""
        try:
            pace = parse_pace(orjson.loads(await request.body()), self._desk.pace)
        except ValueError as exc:
            return PlainTextResponse(str(exc), 400)
        self._desk.pace = pace
        return _answer({"first_byte_ms": pace.first_byte_ms, "delta_ms": pace.delta_ms})


class SimulatorServer(uvicorn.Server):
    """A server that stops at once: its clients are there to cope with that."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Break all connections off, so that every open answer ends now, then stop as usual."""
        for connection in list(self.server_state.connections):
            transport = connection.transport
            if transport is not None:
                transport.abort()
        await super().shutdown(sockets)


def run(listen: str, options: Options) -> None:
    """Serve until SIGTERM or SIGINT; the first line on stdout says where.

    Args:
        listen: `host:port`; port 0 takes a free one.
        options: see `Options`.

    Raises:
        ValueError: `listen` is not `host:port`.
        OSError: the address cannot be bound.
    """
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"not host:port: {listen!r}")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, int(port)), family=family)
    config = uvicorn.Config(
        build(options),
        http="httptools",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEPALIVE_S,
    )
    logging.getLogger("uvicorn.error").addFilter(_is_no_cut)
    # uvicorn raises the signal again once it has stopped; whoever asked for a stop got one, so that is a success.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    shown_host = f"[{host}]" if family == socket.AF_INET6 else host
    click.echo(f"simulator listening on http://{shown_host}:{listener.getsockname()[1]}")
    sys.stdout.flush()
    SimulatorServer(config).run(sockets=[listener])


def _exit(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def _is_no_cut(record: logging.LogRecord) -> bool:
    """Keep the server's complaint about unfinished responses out of the log: a cut is one on purpose."""
    return record.msg != "ASGI callable returned without completing response."
