"""What a client may do to a connection: offers, nonsense, heads without an end."""

import asyncio
import json
from urllib.parse import urlsplit

import openai
import pytest
from openai import AsyncOpenAI

from tests.e2e.caller import Caller
from tests.e2e.test_bad_input import TIMEOUT_S, code_of, post, raw
from tests.instruments.child import ChildFailed
from tests.instruments.processes import Fleet, Replica

pytestmark = pytest.mark.anyio

OFFERS = [(b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings"), (b"Upgrade: websocket", b"Connection: Upgrade")]
REFUSED = b'{"messages": []}'


async def everything(url: str, request: bytes) -> bytes:
    """Sends bytes and reads until the replica closes the connection."""
    parts = urlsplit(url)
    async with asyncio.timeout(TIMEOUT_S):
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            writer.write(request)
            return await reader.read()
        finally:
            writer.close()


@pytest.mark.parametrize("offer", OFFERS, ids=["h2c", "websocket"])
async def test_an_offer_to_upgrade_is_ignored_and_the_body_is_read(one: Caller, offer: tuple[bytes, ...]) -> None:
    status, _, body = await raw(one.url, post(REFUSED, *offer))
    assert (status, json.loads(body)["error"]["param"]) == (400, "messages")
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n%b\r\n" % b"\r\n".join(offer)
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n10\r\n" + REFUSED + b"\r\n0\r\n\r\n"
    last = b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answers = await everything(
        one.url, post(REFUSED, *offer) + chunked + head.replace(b"POST", b"GET") + b"\r\n" + last
    )
    assert [answers.count(code) for code in (b'"param":"messages"', b"method_not_allowed", b"route_not_found")] == [
        2,
        1,
        1,
    ]


@pytest.mark.parametrize(
    "request_",
    [b"nonsense\r\n\r\n", b"BREW / HTTP/1.1\r\n\r\n", b"GET /caf\xc3\xa9 HTTP/1.1\r\nHost: localhost\r\n\r\n"],
    ids=repr,
)
async def test_what_is_not_http_is_told_so_in_json(one: Caller, request_: bytes) -> None:
    status, headers, body = await raw(one.url, request_)
    assert (status, code_of(body), headers["connection"]) == (400, "invalid_http", "close")
    assert headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    "head",
    [b"X: " + b"x" * 65536 + b"\r\n\r\n", b"A: b\r\n" * 20000 + b"\r\n", b"X: " + b"x" * 1_000_000],
    ids=["value", "count", "endless"],
)
async def test_headers_have_a_limit(one: Caller, head: bytes) -> None:
    status, headers, body = await raw(one.url, b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + head)
    assert (status, code_of(body), headers["connection"]) == (431, "headers_too_large", "close")


@pytest.mark.parametrize("line", [b"X: " + b"x" * 65536, b"X\x00: y"], ids=["too large", "not HTTP"])
async def test_a_bad_head_is_told_in_the_dialect_of_its_path(one: Caller, line: bytes) -> None:
    head = b"POST /v1/%%6dessages?beta=true HTTP/1.1\r\nHost: localhost\r\n%b\r\n\r\n" % line
    status, headers, body = await raw(one.url, head)
    told = json.loads(body)
    assert told["error"].keys() == {"type", "message", "details"}
    assert status == (400 if b"\x00" in line else 431)
    assert told["request_id"] == headers["request-id"] == headers["x-request-id"]


async def test_headers_below_the_limit_are_read(one: Caller) -> None:
    assert (await raw(one.url, b"GET /livez HTTP/1.1\r\nX: " + b"x" * 65000 + b"\r\n\r\n"))[0] == 200


async def test_a_head_that_never_ends_is_not_waited_for(hasty: Replica) -> None:
    answer = await everything(hasty.url, b"POST /v1/chat/completions HTTP/1.1\r\nX-Slow: ")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"body_timeout" in answer


async def test_a_silent_connection_is_closed(fleet: Fleet) -> None:
    replica = await fleet.add_replica(env={"BATON_KEEPALIVE_S": "1"})
    assert await everything(replica.url, b"") == b""


async def test_bodies_in_flight_are_limited(fleet: Fleet) -> None:
    replica = await fleet.add_replica(env={"BATON_BODIES_BYTES_MAX": "1024"})
    status, headers, body = await raw(replica.url, post(b" " * 1025))
    assert (status, code_of(body), headers["retry-after"]) == (503, "overloaded", "1")
    assert (await raw(replica.url, post(REFUSED)))[0] == 400


@pytest.mark.parametrize("size_bytes", [4_097, 500_000, 40_000_000])
async def test_who_sends_all_before_reading_reads_why_it_was_refused(hasty: Replica, size_bytes: int) -> None:
    async with AsyncOpenAI(base_url=f"{hasty.url}/v1", api_key="unused", max_retries=0) as client:
        with pytest.raises(openai.APIStatusError) as refused:
            await client.chat.completions.create(
                model="claude-sonnet-5-5", messages=[{"role": "user", "content": "x" * size_bytes}]
            )
    assert (refused.value.status_code, refused.value.response.json()["error"]["code"]) == (413, "request_too_large")


async def test_a_refused_sender_who_falls_silent_is_not_waited_for(hasty: Replica) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4097\r\n\r\n"
    answer = await everything(hasty.url, head + b"x")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.count(b"HTTP/1.1") == 1


async def test_a_body_that_is_still_coming_ends_with_the_drain(fleet: Fleet) -> None:
    replica = await fleet.add_replica()
    parts = urlsplit(replica.url)
    async with asyncio.timeout(TIMEOUT_S):
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(post(b"")[:-4].replace(b"Length: 0", b"Length: 9") + b"\r\nExpect: 100-continue\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        replica.terminate()
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b'"draining"' in answer
    assert b"connection: close" in answer and b"retry-after: 1" in answer
    assert await replica.wait() == 0
    assert "Traceback" not in replica.log()


async def test_an_address_in_use_ends_in_one_sentence(fleet: Fleet, one: Caller) -> None:
    address = urlsplit(one.url).netloc
    with pytest.raises(
        ChildFailed, match=f"ended with 1, .*:\nBATON_LISTEN={address} cannot be listened on: [^\n]+\n?$"
    ):
        await fleet.add_replica(env={"BATON_LISTEN": address})
