"""Callers who take nothing, tasks that are cancelled, and what libraries log."""

import asyncio
import json
import logging
import socket

import pytest
import uvicorn
from starlette.types import Message, Receive, Scope, Send

from service import logs
from service.asgi import Edge
from service.bodies import Bodies
from service.cors import Cors
from service.http_protocol import Limits, http_protocol

pytestmark = pytest.mark.anyio

TIMEOUT_S = 10.0
LIMITS = Limits(head_bytes_max=65536, head_wait_s=TIMEOUT_S, write_wait_s=0.2)


async def test_a_caller_who_takes_nothing_is_gone_after_the_write_deadline() -> None:
    gone = asyncio.Event()

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await receive()
        sending = asyncio.create_task(forever(send))
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()
        sending.cancel()

    async def forever(send: Send) -> None:
        while True:
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            await asyncio.sleep(0)

    config = uvicorn.Config(endless, http=http_protocol(LIMITS), lifespan="off", log_config=None)
    config.load()
    state = uvicorn.Server(config).server_state
    loop = asyncio.get_running_loop()
    made = http_protocol(LIMITS)
    server = await loop.create_server(lambda: made(config, state, {}), "127.0.0.1", 0)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            with socket.create_connection(server.sockets[0].getsockname()) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                await gone.wait()
            await asyncio.gather(*state.tasks)
            assert not state.connections
    finally:
        server.close()


@pytest.mark.parametrize(("method", "code"), [("GET", "draining"), ("POST", "session_save_unknown")])
async def test_a_request_that_is_cut_short_by_the_end_is_told_what_is_known(method: str, code: str) -> None:
    begun, sent = asyncio.Event(), list[Message]()

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def receive() -> Message:
        raise AssertionError("nobody asks")

    async def send(message: Message) -> None:
        sent.append(message)

    edge = Edge(endless, lambda: True, Bodies(1024), Cors(frozenset()))
    task = asyncio.ensure_future(edge({"type": "http", "method": method, "path": "/", "headers": []}, receive, send))
    await begun.wait()
    task.cancel()
    await task
    assert sent[0]["status"] == 503
    assert json.loads(sent[1]["body"])["error"]["code"] == code


def test_what_libraries_log_is_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[int, str, object]] = []

    class Log:
        def log(self, level: int, event: str, **fields: object) -> None:
            heard.append((level, event, fields))

    monkeypatch.setattr(logs, "log", Log())
    handler = logs.Libraries()
    handler.handle(logging.LogRecord("uvicorn.error", logging.ERROR, "h.py", 7, "It is %s.", ("late",), None))
    assert heard == [(logging.ERROR, "library", {"logger": "uvicorn.error", "where": "h.py:7"})]
