"""The demo's balancer: every request goes to the next replica, so that no replica can keep a conversation to itself.

It is a process of its own and knows nothing of sessions. It balances per request, not per connection: two requests on
one kept-alive connection go to two replicas. Bodies pass through as they come, in both directions. Every answer has a
header ``X-Demo-Replica: 1`` (or 2, 3, in the order of ``--replica``) that names who served it.

What it does when a replica is gone:

| the replica                                 | the client                                                     |
|---------------------------------------------|----------------------------------------------------------------|
| refuses the connection                      | notices nothing: the next replica is asked; this one again at  |
|                                             | its next turn, so it is back as soon as it listens             |
| all of them refuse                          | 503                                                            |
| is cut off before its answer has begun      | 502: it may have read the request, so no other gets to see it  |
| is cut off in the middle of its answer      | its connection is cut too: the body stays incomplete           |

A client that hangs up closes the replica's connection. A balancer for production does the same and much more; this one
has no TLS, no health checks and no pool of connections.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Final
from urllib.parse import urlsplit

import click
import httptools
import uvicorn
from starlette.types import Receive, Scope, Send

_CONNECT_S: Final = 2.0
# Replicas break their silence every few seconds while they stream, and a turn may wait for another one.
_SILENCE_S: Final = 120.0
_READ_BYTES: Final = 65_536
_KEEPALIVE_S: Final = 600  # a client that reuses a connection just as it is closed would take that for a fault

# Headers about one connection; the next connection has its own. `expect` is answered by uvicorn.
_OF_ONE_HOP: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade"}
)
_NOT_SENT_ON: Final = _OF_ONE_HOP | {b"expect"}

Headers = list[tuple[bytes, bytes]]


class Cut(Exception):
    """The replica's connection ended before its answer did."""


class _Answer:
    """A replica's answer as far as it has arrived; `httptools` calls the methods named ``on_…``."""

    def __init__(self, method: str) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._bodiless = method == "HEAD"  # its headers speak of a body that does not come
        self._headers: Headers = []
        self._pieces: list[bytes] = []
        self.begun = False
        self.whole = False

    def feed(self, data: bytes) -> bytes:
        """Takes what was read; returns the part of the body that was in it."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise Cut from error
        body = b"".join(self._pieces)
        self._pieces.clear()
        return body

    def start(self, replica: int) -> dict[str, object]:
        """The ASGI message that begins the answer; to be asked for once ``begun``."""
        headers = [(name, value) for name, value in self._headers if name not in _OF_ONE_HOP]
        headers.append((b"x-demo-replica", str(replica).encode()))
        return {"type": "http.response.start", "status": self._parser.get_status_code(), "headers": headers}

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.begun = True
        self.whole = self._bodiless

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        self.whole = True


class Front:
    """The balancer, an ASGI application.

    Args:
        replicas: their addresses, host and port, in the order of their numbers.
    """

    def __init__(self, replicas: Sequence[tuple[str, int]]) -> None:
        self._replicas = list(replicas)
        self._next = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        connected = await self._connect()
        if connected is None:
            await _refuse(send, 503, "No replica takes connections.")
            return
        replica, reader, writer = connected
        answer = _Answer(scope["method"])
        upload = asyncio.create_task(_send_on(scope, receive, writer))
        try:
            await _pass_back(reader, answer, replica, send)
        except Cut:
            # Returning without an end is how an ASGI application has its client's connection cut.
            if not answer.begun:
                await _refuse(send, 502, f"Replica {replica} was lost; whether it has read the request is not known.")
        finally:
            upload.cancel()
            writer.transport.abort()
            await asyncio.wait([upload])

    async def _connect(self) -> tuple[int, asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection to the next replica that takes one, and its number; None if none does."""
        first = self._next
        for offset in range(len(self._replicas)):
            index = (first + offset) % len(self._replicas)
            # Before anything is awaited, so that requests which arrive together go to different replicas.
            self._next = (index + 1) % len(self._replicas)
            with contextlib.suppress(OSError):  # refused; TimeoutError is one, too
                async with asyncio.timeout(_CONNECT_S):
                    reader, writer = await asyncio.open_connection(*self._replicas[index])
                return index + 1, reader, writer
        return None


async def _send_on(scope: Scope, receive: Receive, writer: asyncio.StreamWriter) -> None:
    """Sends the request, its body as it arrives; then waits for the client to hang up, and hangs up, too."""
    headers: Headers = [(name, value) for name, value in scope["headers"] if name not in _NOT_SENT_ON]
    chunked = any(name == b"transfer-encoding" for name, _ in scope["headers"])
    headers.append((b"connection", b"close"))
    if chunked:
        headers.append((b"transfer-encoding", b"chunked"))
    target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
    lines = [b"%s %s HTTP/1.1" % (scope["method"].encode(), target), *(b"%s: %s" % pair for pair in headers)]
    writer.write(b"\r\n".join(lines) + b"\r\n\r\n")
    with contextlib.suppress(ConnectionError):  # whoever reads the answer sees it, too
        while (message := await receive())["type"] == "http.request":
            if body := message.get("body", b""):
                writer.write(b"%x\r\n%s\r\n" % (len(body), body) if chunked else body)
            if chunked and not message.get("more_body", False):
                writer.write(b"0\r\n\r\n")
            await writer.drain()
        writer.transport.abort()


async def _pass_back(reader: asyncio.StreamReader, answer: _Answer, replica: int, send: Send) -> None:
    """Sends the answer to the client as it arrives.

    Raises:
        Cut: the replica's connection ended, or was silent for too long, before the answer was whole.
    """
    started = False
    while not answer.whole:
        try:
            async with asyncio.timeout(_SILENCE_S):
                data = await reader.read(_READ_BYTES)
        except OSError as error:
            raise Cut from error
        if not data:
            raise Cut
        body = answer.feed(data)
        if answer.begun and not started:
            started = True
            await send(answer.start(replica))
        if body:
            await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _refuse(send: Send, status: int, message: str) -> None:
    """Answers in the front's own name, in the shape of OpenAI's errors."""
    body = b'{"error":{"message":"%s","type":"server_error","param":null,"code":"demo_front"}}' % message.encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def run(listen: tuple[str, int], replicas: Sequence[tuple[str, int]]) -> None:
    """Serves until SIGTERM or SIGINT; the first line on stdout says where.

    Args:
        listen: host and port; port 0 takes a free one.
        replicas: see `Front`.

    Raises:
        OSError: the address cannot be bound.
    """
    listener = socket.create_server(listen)
    config = uvicorn.Config(
        Front(replicas),
        http="httptools",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=_KEEPALIVE_S,
        timeout_graceful_shutdown=1,
    )
    logging.getLogger("uvicorn.error").addFilter(_is_no_cut)
    # uvicorn raises the signal again once it has stopped; whoever asked for a stop got one, so that is a success.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    click.echo(f"front listening on http://{listen[0]}:{listener.getsockname()[1]}")
    sys.stdout.flush()
    uvicorn.Server(config).run(sockets=[listener])


def address(text: str) -> tuple[str, int]:
    """Host and port of ``host:port`` or ``http://host:port``.

    Raises:
        ValueError: it is neither.
    """
    parts = urlsplit(text if "//" in text else f"//{text}")
    if parts.scheme not in ("", "http") or not parts.hostname or parts.port is None:
        raise ValueError(f"not host:port: {text!r}")
    return parts.hostname, parts.port


def _exit(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def _is_no_cut(record: logging.LogRecord) -> bool:
    """Keeps the server's complaint about unfinished answers out of the log: they are unfinished on purpose."""
    return record.msg != "ASGI callable returned without completing response."
