"""What cannot be served is refused in the dialect of its path, stores nothing and asks Claude nothing."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.e2e.caller import CHAT, Caller
from tests.e2e.unchanged import unchanged
from tests.instruments.processes import Fleet, Replica

pytestmark = pytest.mark.anyio

HELLO = [{"role": "user", "content": "Hi"}]
TIMEOUT_S = 10.0


@pytest.fixture(autouse=True)
async def nothing_happens(fleet: Fleet, hasty: Replica) -> AsyncIterator[None]:
    """No test of this file stores anything or asks Claude anything."""
    async with unchanged(fleet):
        yield


async def raw(url: str, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Sends bytes and reads one response; headers in lower case, values as latin-1."""
    parts = urlsplit(url)
    async with asyncio.timeout(TIMEOUT_S):
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            writer.write(request)
            head, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines if line)}
            body = await reader.readexactly(int(headers["content-length"]))
            return int(head.split()[1]), headers, body
        finally:
            writer.close()
            await writer.wait_closed()


def post(body: bytes, *headers: bytes, path: str = CHAT) -> bytes:
    """A request as bytes."""
    lines = [b"POST %b HTTP/1.1" % path.encode(), b"Host: localhost", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def code_of(body: bytes) -> str:
    error = json.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return str(error["code"])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"messages": [}',
        b'{"messages": NaN}',
        b"{'messages': []}",
        b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b'{"a":' * 5000,
    ],
    ids=lambda body: repr(body[:24]),
)
async def test_what_is_not_json(one: Caller, body: bytes) -> None:
    answer = await one.request("POST", CHAT, data=body)
    assert (answer.status, answer.code) == (400, "invalid_json")
    assert answer.headers["x-request-id"]
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ([], "invalid_value", None),
        ("text", "invalid_value", None),
        (None, "invalid_value", None),
        ({}, "missing_value", "messages"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": "Hi"}, "invalid_value", "messages"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, "invalid_value", "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "invalid_value", "messages.0.content"),
        ({"messages": HELLO, "stream": "yes"}, "invalid_value", "stream"),
        ({"messages": HELLO, "model": 5}, "invalid_value", "model"),
        ({"messages": HELLO, "max_tokens": 10**30}, "invalid_value", "max_tokens"),
        ({"messages": HELLO, "temperature": 3}, "invalid_value", "temperature"),
        ({"messages": HELLO, "n": 2}, "unsupported", "n"),
        ({"messages": HELLO, "tools": [{"type": "function"}]}, "invalid_value", "tools.0.function"),
        ({"messages": HELLO, "tools": [{"type": "custom"}]}, "unsupported", "tools.0.type"),
        ({"messages": HELLO, "tools": [], "tool_choice": "required"}, "invalid_value", "tool_choice"),
        (
            {"messages": [*HELLO, {"role": "tool", "tool_call_id": "a", "content": "x"}]},
            "invalid_value",
            "messages.1.tool_call_id",
        ),
        ({"messages": HELLO, "sesion_id": "x"}, "unknown_field", "sesion_id"),
        ({"messages": HELLO, "é\r\nx-evil: 1": 1}, "unknown_field", "é\r\nx-evil: 1"),
    ],
    ids=str,
)
async def test_what_is_not_a_chat(one: Caller, name: str, body: Any, code: str, param: str | None) -> None:
    in_session = {**body, "session_id": name} if isinstance(body, dict) else body
    for sent in (body, in_session):
        answer = await one.request("POST", CHAT, data=json.dumps(sent).encode())
        assert (answer.status, answer.code, answer.json["error"]["param"]) == (400, code, param)
        assert answer.json["error"]["type"] == "invalid_request_error"


async def test_the_content_type_does_not_matter(one: Caller) -> None:
    answer = await one.request("POST", CHAT, data=b"{}", headers={"content-type": "text/plain"})
    assert answer.code == "missing_value"


async def test_a_body_that_says_it_is_too_large_is_not_waited_for(hasty: Replica) -> None:
    request = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4097\r\n\r\n" % CHAT.encode()
    status, headers, body = await raw(hasty.url, request)
    assert (status, code_of(body)) == (413, "request_too_large")
    assert headers["x-should-retry"] == "false"


async def test_a_chunked_body_that_becomes_too_large_is_not_waited_for(hasty: Replica) -> None:
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" % CHAT.encode()
    chunk = b"800\r\n" + b"x" * 0x800 + b"\r\n"
    status, _, body = await raw(hasty.url, head + 3 * chunk)
    assert (status, code_of(body)) == (413, "request_too_large")


async def test_a_body_of_just_the_limit_is_read(impatient: Caller) -> None:
    body = b'{"messages": []' + b" " * (4096 - 16) + b"}"
    assert len(body) == 4096
    assert (await impatient.request("POST", CHAT, data=body)).code == "invalid_value"


@pytest.mark.parametrize("sent", [b"", b'{"messages": '], ids=["nothing", "half"])
async def test_a_body_that_never_arrives(hasty: Replica, sent: bytes) -> None:
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n" % CHAT.encode()
    status, headers, body = await raw(hasty.url, head + sent)
    assert (status, code_of(body)) == (408, "body_timeout")
    assert headers["x-should-retry"] == "true"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "route_not_found"),
        ("POST", "/v1/chat/completions/", 404, "route_not_found"),
        ("POST", "/v1/completions", 404, "route_not_found"),
        ("GET", "/v1/sessions/", 404, "route_not_found"),
        ("GET", "//", 404, "route_not_found"),
        ("GET", "/v1/sessions/a/messages/b", 404, "route_not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("PUT", CHAT, 405, "method_not_allowed"),
        ("OPTIONS", CHAT, 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("DELETE", "/", 405, "method_not_allowed"),
    ],
)
async def test_unknown_routes_and_methods(one: Caller, method: str, path: str, status: int, code: str) -> None:
    answer = await one.request(method, path)
    assert (answer.status, answer.code) == (status, code)
    assert answer.headers["x-request-id"]
    if status == 405:
        allowed = {name.strip() for name in answer.headers["allow"].split(",")}
        assert allowed
        assert method not in allowed


@pytest.mark.parametrize(
    ("path", "status"), [("/nowhere", 404), (CHAT, 405), ("/livez", 200), ("/", 200), ("/v1/messages", 405)]
)
async def test_head_is_answered_without_a_body(one: Caller, path: str, status: int) -> None:
    answer = await one.request("HEAD", path)
    assert (answer.status, answer.body) == (status, b"")
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("method", ["POST", "GET", "OPTIONS"])
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens", "/v1/messages/nowhere"])
async def test_anthropics_paths_speak_anthropics_dialect(one: Caller, method: str, path: str) -> None:
    answer = await one.request(method, path, headers={"X-Request-Id": "mine"})
    assert answer.status == (404 if path.endswith("nowhere") else 400 if method == "POST" else 405)
    assert answer.json.keys() == {"type", "error", "request_id"}
    assert answer.json["type"] == "error"
    assert answer.json["error"].keys() == {"type", "message", "details"}
    assert answer.json["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"] == "mine"
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("value", [b"caf\xe9", "café🙂".encode(), b"\xff", b"a\tb", b"a b"])
async def test_session_ids_of_strange_bytes(one: Caller, value: bytes) -> None:
    status, _, body = await raw(
        one.url, post(b'{"messages":[{"role":"user","content":"Hi"}]}', b"X-Session-Id: " + value)
    )
    assert (status, code_of(body)) == (400, "invalid_session_id")


@pytest.mark.parametrize("value", [b"caf\xe9", "é🙂".encode(), b"a b", b"", b"x" * 129, b'"><script>'])
async def test_request_ids_of_strange_bytes_are_replaced(one: Caller, value: bytes) -> None:
    status, headers, body = await raw(one.url, post(b"{}", b"X-Request-Id: " + value))
    assert (status, code_of(body)) == (400, "missing_value")
    assert headers["x-request-id"].startswith("req_")


async def test_strange_bytes_in_other_headers(one: Caller) -> None:
    for header in (b"X-Session-Mode", b"X-Session-On-Conflict", b"X-Session-On-Disconnect"):
        line = header + b": caf\xe9"
        status, _, body = await raw(one.url, post(b'{"messages":[{"role":"user","content":"Hi"}]}', line))
        assert (status, code_of(body)) == (400, "invalid_value")


async def test_headers_of_a_session_make_sense_without_one_too(one: Caller) -> None:
    body = {"model": "claude-sonnet-5-5", "max_tokens": 9, "messages": HELLO}
    for header in ("X-Session-Input", "X-Session-Prefix", "X-Session-On-Conflict", "X-Session-On-Disconnect"):
        refused = await one.request("POST", CHAT, json=body, headers={header: "nonsense"})
        assert (refused.status, refused.code, refused.json["error"]["param"]) == (400, "invalid_value", header)
        refused = await one.request("POST", "/v1/messages", json=body, headers={header: "nonsense"})
        assert (refused.status, refused.json["error"]["details"]) == (400, {"error_code": "invalid_value"})
    del body["max_tokens"]
    counted = await one.request("POST", "/v1/messages/count_tokens", json=body, headers={"X-Session-Input": "nonsense"})
    assert (counted.status, counted.json["error"]["details"]) == (400, {"error_code": "invalid_value"})


async def test_a_page_for_people_trusts_no_header(one: Caller) -> None:
    status, _, body = await raw(one.url, b'GET / HTTP/1.1\r\nHost: x"><script>\r\n\r\n')
    assert status == 200
    assert b"<script>" not in body


async def test_paths_of_strange_bytes(one: Caller) -> None:
    for path in (
        b"/v1/sessions/%ff",
        b"/v1/sessions/caf\xc3\xa9",
        b"/v1/sessions/%00",
        b"/v1/sessions/%F0%9F%99%82/messages",
    ):
        status, _, body = await raw(one.url, b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path)
        assert status == 400, path
        if path.isascii():
            assert code_of(body) == "invalid_session_id"
    status, _, body = await raw(one.url, b"GET /v1/sessions/a%2Fb HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (status, code_of(body)) == (404, "route_not_found")
