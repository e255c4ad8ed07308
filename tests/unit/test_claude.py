"""The way to Claude, against a server that answers bytes: errors, retries, connections kept and closed."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

import orjson
import pytest

from service.claude import Claude
from service.errors import BatonError

pytestmark = pytest.mark.anyio

WAIT_S = 5.0


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(int(WAIT_S * 1000)):
        if holds():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not come to hold")


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(data: bytes) -> bytes:
    return chunk(b"event: x\ndata: " + data + b"\n\n")


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
START = event(b'{"type":"message_start","message":{"id":"msg_1","usage":{}}}')
STOP = event(b'{"type":"message_stop"}')
END = b"0\r\n\r\n"


class Server:
    """Answers each request with the next answer; the last one again and again."""

    def __init__(self, answers: list[bytes | Answer]) -> None:
        self.answers = answers
        self.requests: list[bytes] = []
        self.connections = 0
        self.open = 0
        self.closed = asyncio.Event()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
                self.requests.append(head + await reader.readexactly(length))
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                if isinstance(answer, bytes):
                    writer.write(answer)
                else:
                    await answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self.closed.set()
            self.open -= 1


@asynccontextmanager
async def reaching(*answers: bytes | Answer) -> AsyncIterator[tuple[Claude, Server]]:
    server = Server(list(answers))
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    claude = Claude("sk-ant-test", server.url, connections_max=4)
    try:
        yield claude, server
    finally:
        await claude.aclose()
        listener.close()
        await until(lambda: not server.open)


async def types(claude: Claude) -> list[str]:
    async with asyncio.timeout(WAIT_S), aclosing(claude.stream(b'{"stream":true}')) as batches:
        return [e.type async for batch in batches for e in batch]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)


def status(line: bytes, body: bytes = b"{}", *headers: bytes) -> bytes:
    head = b"".join(header + b"\r\n" for header in (b"Content-Type: application/json", *headers))
    return b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (line, head, len(body), body)


async def test_a_request_carries_what_the_sdk_sets_and_asks_for_events() -> None:
    async with reaching(HEAD + START + STOP + END) as (claude, server):
        assert await types(claude) == ["message_start", "message_stop"]
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
        lines = {line.partition(b": ")[0].lower(): line.partition(b": ")[2] for line in head.split(b"\r\n")}
        assert head.startswith(b"POST /v1/messages HTTP/1.1")
        assert body == b'{"stream":true}'
        assert lines[b"authorization"] == b"Bearer sk-ant-test"
        assert lines[b"anthropic-version"]
        assert lines[b"user-agent"].startswith(b"AsyncAnthropic/")
        assert lines[b"content-type"] == b"application/json"
        assert lines[b"accept"] == b"text/event-stream"
        assert lines[b"accept-encoding"] == b"identity"


async def test_events_that_arrive_together_are_one_batch() -> None:
    async with reaching(HEAD + START * 50 + STOP + END) as (claude, _), aclosing(claude.stream(b"{}")) as batches:
        assert [len(batch) async for batch in batches] == [51]


async def test_a_connection_is_used_again() -> None:
    async with reaching(HEAD + START + STOP + END) as (claude, server):
        for _ in range(3):
            await types(claude)
        assert server.connections == 1


async def test_a_connection_is_used_again_though_its_end_comes_late() -> None:
    ended = asyncio.Event()

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + START + STOP)
        await ended.wait()
        writer.write(END)

    async with reaching(late) as (claude, server):
        await types(claude)
        ended.set()
        await until(lambda: not claude._transport._ending)
        await types(claude)
        assert server.connections == 1


async def test_hanging_up_closes_the_connection() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + START)
        await reader.readexactly(1)

    async with reaching(silent) as (claude, server):
        async with aclosing(claude.stream(b"{}")) as batches:
            async for _ in batches:
                break
        async with asyncio.timeout(WAIT_S):
            await server.closed.wait()


async def test_cancelling_closes_the_connection_before_an_answer() -> None:
    asked = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.readexactly(1)

    async with reaching(silent) as (claude, server):
        task = asyncio.create_task(types(claude))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(WAIT_S):
            await server.closed.wait()


def told(error: bytes) -> bytes:
    """An error body of Claude's API."""
    return b'{"type":"error","error":%b}' % error


@pytest.mark.parametrize(
    ("answer", "code", "requests"),
    [
        (status(b"429 Too Many", b'{"error":{"message":"slow"}}', b"Retry-After: 30"), "upstream_rate_limited", 1),
        (status(b"529 Overloaded"), "upstream_overloaded", 3),
        (status(b"500 Oops", b"not json"), "upstream_unavailable", 3),
        (status(b"401 No"), "upstream_refused", 1),
        (status(b"404 No", told(b'{"message":"model: x"}')), "model_not_found", 1),
        (status(b"307 Elsewhere", b"", b"Location: http://127.0.0.1:1/"), "upstream_nonsense", 1),
        (status(b"400 Bad", b"<html>Bad Request</html>"), "upstream_nonsense", 1),
        (status(b"413 Large", b"<html>Too Large</html>"), "request_too_large", 1),
        (status(b"409 Conflict", told(b'{"type":"conflict_error"}')), "upstream_unavailable", 3),
        (status(b"422 No", told(b'{"type":"invalid_request_error"}')), "upstream_invalid_request", 1),
        (status(b"400 Bad", told(b'{"message":"Your credit balance is too low to go on"}')), "upstream_refused", 1),
        *(
            (status(line, told(b'{"details":{"error_code":"%b"}}' % code)), "upstream_refused", 1)
            for line, code in (
                (b"400 Bad", b"organization_on_hold"),
                (b"429 Too Many", b"enforced_spend_limit_reached"),
            )
        ),
        (status(b"400 Bad", told(b'{"message":"Invalid `signature` in `thinking` block."}')), "thinking_refused", 1),
        (status(b"400 Bad", told(b'{"message":"prompt is too long: 9 > 8"}')), "context_length_exceeded", 1),
        (
            status(b"400 Bad", gzip.compress(told(b'{"message":"prompt is too long"}')), b"Content-Encoding: gzip"),
            "context_length_exceeded",
            1,
        ),
        (status(b"200 OK"), "upstream_nonsense", 3),
        (HEAD + START + END, "upstream_nonsense", 1),
        (HEAD + b"zz\r\n", "upstream_unavailable", 3),
        (b"HTTP/1.1 nonsense\r\n\r\n", "upstream_unavailable", 3),
        *(
            (HEAD + event(b'{"type":"error","error":%s}' % error) + END, code, requests)
            for error, code, requests in (
                (b'{"type":"overloaded_error"}', "upstream_overloaded", 3),
                (b'{"type":"rate_limit_error"}', "upstream_rate_limited", 3),
                (b'{"type":"api_error"}', "upstream_unavailable", 3),
                (b'{"type":"invalid_request_error","message":"no"}', "upstream_invalid_request", 1),
                (b'{"type":"invalid_request_error","message":"prompt is too long"}', "context_length_exceeded", 1),
                (b'{"type":"authentication_error"}', "upstream_refused", 1),
                (b'{"type":"not_found_error"}', "model_not_found", 1),
                (b'{"type":["odd"],"message":null}', "upstream_unavailable", 3),
                (b'"odd"', "upstream_unavailable", 3),
            )
        ),
        (
            HEAD + START + event(b'{"type":"error","error":{"type":"overloaded_error"}}') + STOP + END,
            "upstream_overloaded",
            3,
        ),
    ],
)
async def test_what_goes_wrong_is_told_by_its_code(answer: bytes, code: str, requests: int) -> None:
    async with reaching(answer) as (claude, server):
        with pytest.raises(BatonError) as caught:
            await types(claude)
        assert caught.value.code == code
        assert len(server.requests) == requests
        if b"Retry-After" in answer:
            assert caught.value.retry_after_s == 30


@pytest.mark.parametrize(
    "behind",
    [
        event(b'{"type":"from_the_future"}'),
        event(b'{"type":"error","error":{"type":"overloaded_error"}}'),
        event(b'{"type":"content_block_delta","index":7,"delta":{}}') + STOP,
    ],
)
async def test_what_comes_behind_the_end_does_not_spoil_the_answer(behind: bytes) -> None:
    async with reaching(HEAD + START + STOP + behind + END) as (claude, server):
        assert await types(claude) == ["message_start", "message_stop"]
        assert len(server.requests) == 1


async def test_a_connection_that_breaks_in_mid_answer() -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + START)
        await writer.drain()
        raise ConnectionError

    async with reaching(cut) as (claude, server):
        with pytest.raises(BatonError) as caught:
            await types(claude)
        assert caught.value.code == "upstream_unavailable"
        assert len(server.requests) == 1


async def test_a_retry_succeeds() -> None:
    async with reaching(status(b"529 Overloaded"), HEAD + START + STOP + END) as (claude, server):
        assert await types(claude) == ["message_start", "message_stop"]
        assert len(server.requests) == 2


async def test_nobody_there() -> None:
    async with reaching(b"") as (claude, server):
        pass
    claude = Claude("k", server.url, connections_max=4)
    with pytest.raises(BatonError) as caught:
        await types(claude)
    assert caught.value.code == "upstream_unavailable"
    await claude.aclose()


async def test_proxies_that_are_not_for_claude_are_not_even_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    async with reaching(HEAD + START + STOP + END) as (claude, _):
        assert await types(claude) == ["message_start", "message_stop"]


async def test_a_proxy_is_used_for_streams_and_models_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    async with reaching(HEAD + START + STOP + END, status(b"200 OK", b'{"data":[]}')) as (_, server):
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("http_proxy", server.url.removeprefix("http://"))
        claude = Claude("k", "http://claude.example", connections_max=4)
        assert await types(claude) == ["message_start", "message_stop"]
        assert await claude.models() == []
        await claude.aclose()
        assert [request.split()[1] for request in server.requests] == [
            b"http://claude.example/v1/messages",
            b"http://claude.example/v1/models?limit=1000",
        ]


async def test_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + START)
        await reader.readexactly(1)

    monkeypatch.setattr("service.claude_transport._SILENCE_S", 0.2)
    async with reaching(silent) as (claude, _):
        with pytest.raises(BatonError) as caught:
            await types(claude)
        assert caught.value.code == "upstream_timeout"


async def test_the_models_are_listed_as_claude_tells_them() -> None:
    told = b'[{"id":"claude-x","created_at":"2026-01-01T00:00:00.50Z","new":{"of":[1.0]}},{"id":"claude-y"}]'
    async with reaching(status(b"200 OK", b'{"data":%s,"has_more":false}' % told)) as (claude, _):
        assert await claude.models() == orjson.loads(told)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"{}", b"null", b'{"data":null}', b'{"data":[1]}', b'{"data":[{}]}', b'{"data":[{"id":1}]}'],
)
async def test_what_is_no_list_of_models_is_nonsense(body: bytes) -> None:
    async with reaching(status(b"200 OK", body)) as (claude, _):
        with pytest.raises(BatonError) as caught:
            await claude.models()
        assert caught.value.code == "upstream_nonsense"
