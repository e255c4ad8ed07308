"""What a request brought is let go of with its answer, whatever that is: nothing of it waits for the garbage collector.

The replica runs in the test's own process, on a real socket, with the collector switched off: what is there after an
answer is held by something that lives on, or by itself (an error whose traceback holds the frame that holds the error).
Counted are the bytes that Python has allocated, while the connection is still open.
"""

import asyncio
import contextlib
import gc
import json
import socket
import tracemalloc
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import pytest
import uvicorn
from redis.asyncio import Redis

from service.app import build
from service.bodies import Bodies
from service.http_protocol import Limits, http_protocol
from service.settings import Settings
from tests.instruments.ports import reserved_port
from tests.instruments.processes import SECRET, Fleet

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore:Sending a large body directly")]

_TEXT_BYTES: Final = 524_288
_BODY_BYTES_MAX: Final = 4 * _TEXT_BYTES
_BLOCKS: Final = 1000
_KEPT_BYTES_MAX: Final = 400_000  # what else goes on may leave some: looks at the store, connections
_CHAT: Final = "/v1/chat/completions"
_MESSAGES: Final = "/v1/messages"
_COUNT: Final = "/v1/messages/count_tokens"
_APPEND: Final = "/v1/sessions/let-go-by-hand/messages"
_IMPORT: Final = "/v1/sessions/import"
_IN_SESSION: Final = {"x-session-id": "new"}
_UNKNOWN: Final = {"x-session-id": "sess_" + 26 * "a"}

Fields = dict[str, Any]


def asking(mark: str = "y", **fields: Any) -> Fields:
    """A request with a large text and many small ones, the last of which is the mark."""
    small = [*((_BLOCKS - 1) * ["y"]), mark]
    blocks = [{"type": "text", "text": _TEXT_BYTES * "x"}, *({"type": "text", "text": text} for text in small)]
    message = {"role": "user", "content": blocks}
    return {"model": "claude-sonnet-5-5", "max_tokens": 9, "messages": [message], **fields}


def appending(**fields: Any) -> Fields:
    """Messages by hand, as large."""
    return {"messages": asking()["messages"], **fields}


@dataclass(frozen=True)
class Case:
    """A request and how it is answered.

    Attributes:
        fault: what Claude does.
        short: the body does not come to its end.
        patience_s: after this the caller leaves without its answer; None if it stays.
    """

    path: str
    status: int
    body: Fields | bytes
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "POST"
    fault: Fields | None = None
    short: bool = False
    patience_s: float | None = None


def refused_by_claude(path: str, headers: dict[str, str], *, stream: bool) -> Case:
    return Case(path, 429, asking(stream=stream), headers, fault={"kind": "rate_limit", "retry_after_s": 60})


def broken_off(path: str, headers: dict[str, str]) -> Case:
    return Case(path, 200, asking(stream=True), headers, fault={"kind": "error_mid_stream", "after_deltas": 1})


def left(path: str, headers: dict[str, str], *, stream: bool, short: bool = False) -> Case:
    mark = uuid.uuid4().hex  # it may leave before Claude is asked: no other request is to hang in its place
    fault = None if short else {"kind": "hang", "match": mark}
    return Case(path, 0, asking(mark, stream=stream), headers, fault=fault, short=short, patience_s=0.1)


NOT_JSON: Final = json.dumps(asking()).encode() + b"]"
CASES: Final = {
    **{
        f"not JSON, {path}": Case(path, 400, NOT_JSON)
        for path in (_CHAT, _MESSAGES, _COUNT, "/v1/sessions", _APPEND, _IMPORT)
    },
    "not JSON, PATCH": Case("/v1/sessions/let-go", 400, NOT_JSON, method="PATCH"),
    "bad value, chat": Case(_CHAT, 400, asking(n=2)),
    "bad value, messages": Case(_MESSAGES, 400, asking(stream=1)),
    "bad value, messages in a session": Case(_MESSAGES, 400, asking(tools=1), _IN_SESSION),
    "bad value, count": Case(_COUNT, 400, asking(tools=1), _IN_SESSION),
    "bad value, append": Case(_APPEND, 400, appending(x=1)),
    "bad value, create": Case("/v1/sessions", 400, {"title": _TEXT_BYTES * "x"}),
    "bad value, PATCH": Case("/v1/sessions/let-go", 400, {"title": _TEXT_BYTES * "x"}, method="PATCH"),
    "unknown session, chat": Case(_CHAT, 404, asking(), _UNKNOWN),
    "unknown session, chat, streamed": Case(_CHAT, 404, asking(stream=True), _UNKNOWN),
    "unknown session, messages": Case(_MESSAGES, 404, asking(), _UNKNOWN),
    "unknown session, count": Case(_COUNT, 404, asking(), {**_UNKNOWN, "x-session-mode": "continue"}),
    "unknown session, append": Case("/v1/sessions/nobody/messages", 404, appending()),
    "too large": Case(_CHAT, 413, _BODY_BYTES_MAX * b" " + b"x"),
    "chat": Case(_CHAT, 200, asking()),
    "chat, streamed": Case(_CHAT, 200, asking(stream=True)),
    "chat in a session": Case(_CHAT, 200, asking(), _IN_SESSION),
    "chat in a session, streamed": Case(_CHAT, 200, asking(stream=True), _IN_SESSION),
    "messages": Case(_MESSAGES, 200, asking()),
    "messages, streamed": Case(_MESSAGES, 200, asking(stream=True)),
    "messages in a session": Case(_MESSAGES, 200, asking(), _IN_SESSION),
    "messages in a session, streamed": Case(_MESSAGES, 200, asking(stream=True), _IN_SESSION),
    "count": Case(_COUNT, 200, {name: value for name, value in asking().items() if name != "max_tokens"}),
    "count in a session": Case(_COUNT, 200, asking(), _IN_SESSION),
    "bad value, import": Case(_IMPORT, 400, appending(x=1)),
    "bad value, fork": Case("/v1/sessions/let-go-by-hand/fork", 400, {"title": _TEXT_BYTES * "x"}),
    "import": Case(_IMPORT, 201, appending(model="claude-sonnet-5-5")),
    "append": Case(_APPEND, 200, appending()),
    "body that stops": Case(_CHAT, 408, asking(), short=True),
    "caller who leaves before the end of the body": left(_CHAT, {}, stream=False, short=True),
    **{
        f"{what}, {path}, {headers}": case
        for path in (_CHAT, _MESSAGES)
        for headers in ({}, _IN_SESSION)
        for what, case in {
            "refused by Claude": refused_by_claude(path, headers, stream=False),
            "refused by Claude, streamed": refused_by_claude(path, headers, stream=True),
            "broken off by Claude": broken_off(path, headers),
            "caller who leaves": left(path, headers, stream=False),
            "caller who leaves, streamed": left(path, headers, stream=True),
        }.items()
    },
}


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the test runner's."""
        yield


@contextlib.asynccontextmanager
async def replica(fleet: Fleet, store_url: str) -> AsyncIterator[tuple[int, Bodies]]:
    """A replica in this process: its port, and what it counts of bodies."""
    given: dict[str, Any] = {
        "ANTHROPIC_API_KEY": "sk-ant-simulated",
        "ANTHROPIC_BASE_URL": fleet.simulator.url,
        "redis_url": store_url,
        "secret": SECRET,
        "body_bytes_max": _BODY_BYTES_MAX,
        "body_wait_s": 0.4,
    }
    settings = Settings(**given)
    application = build(settings, store_url, SECRET, on_refused=lambda refused: None)
    limits = Limits(settings.header_bytes_max, settings.body_wait_s, settings.write_wait_s)
    config = uvicorn.Config(
        application.asgi,
        http=http_protocol(limits),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=10,  # a test that has failed ends, whatever still runs
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server, port = _Server(config), int(listener.getsockname()[1])
        serving = asyncio.create_task(server.serve([listener]))
        try:
            async with aiohttp.ClientSession() as http:
                (await http.get(f"http://127.0.0.1:{port}/livez")).close()
            yield port, application.bodies
        finally:
            server.should_exit = True
            await serving


@contextlib.asynccontextmanager
async def answered(port: int, case: Case) -> AsyncIterator[int]:
    """The status of an answer that was read to its end, 0 without one; the connection is open meanwhile."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = case.body if isinstance(case.body, bytes) else json.dumps(case.body).encode()
    told = "".join(f"{name}: {value}\r\n" for name, value in case.headers.items())
    head = f"{case.method} {case.path} HTTP/1.1\r\nhost: 127.0.0.1\r\ntransfer-encoding: chunked\r\n{told}\r\n"
    writer.write(head.encode())
    for at in range(0, len(body), 65_536):
        part = body[at : at + 65_536]
        writer.write(b"%x\r\n%b\r\n" % (len(part), part))
        await writer.drain()
    writer.write(b"" if case.short else b"0\r\n\r\n")
    del body, part
    try:
        if case.patience_s is not None:
            await asyncio.sleep(case.patience_s)
            writer.close()
            yield 0
            return
        said = await reader.readuntil(b"\r\n\r\n")
        length = said.partition(b"content-length: ")[2].partition(b"\r\n")[0]
        await (reader.readexactly(int(length)) if length else reader.readuntil(b"\r\n0\r\n\r\n"))
        yield int(said.split()[1])
    finally:
        writer.close()


async def kept_bytes(fleet: Fleet, port: int, case: Case) -> int:
    """How much more is allocated after an answer than before the request; a moment is left for the last steps."""
    if case.fault is not None:
        await fleet.simulator.fault(**case.fault)
    before = tracemalloc.get_traced_memory()[0]
    async with asyncio.timeout(20), answered(port, case) as status:
        assert status == case.status
        for _ in range(50):
            if (kept := tracemalloc.get_traced_memory()[0] - before) < _KEPT_BYTES_MAX:
                break
            await asyncio.sleep(0.01)
    return kept


async def until_uncounted(bodies: Bodies) -> None:
    """Waits for the end of turns whose callers have left."""
    for _ in range(500):
        if not bodies.held_bytes:
            break
        await asyncio.sleep(0.02)
    assert bodies.held_bytes == 0


@contextlib.contextmanager
def counting() -> Iterator[None]:
    """Counts what is allocated, with the garbage collector switched off."""
    gc.disable()
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()
        gc.enable()


async def test_nothing_of_a_body_waits_for_the_collector(fleet: Fleet) -> None:
    kept: dict[str, int] = {}
    by_hand = {"model": "claude-sonnet-5-5", "name": "let-go-by-hand"}
    async with replica(fleet, fleet.valkey.url) as (port, bodies):
        with counting():
            for case in (Case("/v1/sessions", 201, by_hand), *list(CASES.values())[-6:-4]):
                await kept_bytes(fleet, port, case)  # what is made once only
            async with Redis.from_url(fleet.valkey.url) as redis:
                await redis.script_flush()  # so that scripts are sent again, with all that they are told
            for name, case in CASES.items():
                kept[name] = await kept_bytes(fleet, port, case)
        await until_uncounted(bodies)
    assert {name: size_bytes for name, size_bytes in kept.items() if size_bytes >= _KEPT_BYTES_MAX} == {}


async def test_nothing_of_a_body_waits_for_the_collector_while_the_store_is_away(fleet: Fleet) -> None:
    kept: dict[str, int] = {}
    with reserved_port() as nobody:
        async with replica(fleet, f"redis://127.0.0.1:{nobody}/0") as (port, _):
            with counting():
                for path, body, headers in (
                    (_CHAT, asking(), _IN_SESSION),
                    (_MESSAGES, asking(), _IN_SESSION),
                    (_COUNT, asking(), _IN_SESSION),
                    (_APPEND, appending(), {}),
                    ("/v1/sessions", {"title": _TEXT_BYTES * "x"}, {}),
                ):
                    kept[path] = await kept_bytes(fleet, port, Case(path, 503, body, headers))
    assert {path: size_bytes for path, size_bytes in kept.items() if size_bytes >= _KEPT_BYTES_MAX} == {}


async def test_a_body_counts_as_long_as_the_turn_that_goes_on_without_its_caller(fleet: Fleet) -> None:
    headers = {**_IN_SESSION, "x-session-on-disconnect": "continue"}
    slow: Fields = {"kind": "slow_first_byte", "delay_ms": 1_500}
    case = Case(_CHAT, 0, asking(), headers, fault=slow, patience_s=0.1)
    async with replica(fleet, fleet.valkey.url) as (port, bodies):
        await fleet.simulator.fault(**slow)
        async with answered(port, case):
            pass
        await asyncio.sleep(0.1)  # the replica has seen it leave
        assert bodies.held_bytes > _TEXT_BYTES
        await until_uncounted(bodies)
