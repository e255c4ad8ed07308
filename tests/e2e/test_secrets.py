"""What callers say and keys are nowhere in logs, metrics or error bodies, whatever goes wrong, in either form of log.

The one level below tells what the other does, and more; that a level leaves lines out is in tests/unit/test_metrics.py.

Everything that a caller can choose holds one mark, and so do Baton's own key and secret. Claude says it all again in
its errors (tests/instruments/echoing_claude.py), stored data is made unreadable, and at last Redis dies.
"""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from redis.asyncio import Redis

from tests.e2e.caller import Answer, Caller, eventually
from tests.instruments.echoing_claude import echoing_claude
from tests.instruments.ports import reserved_port
from tests.instruments.processes import Fleet, Replica, Valkey

pytestmark = pytest.mark.anyio

MARK = "mArKeD-s3cret"
FAILURES = ("400", "401", "404", "429", "500", "html", "event", "form", "end", "json")
FORMS = {"json": "debug", "console": "info"}
TOLD_BY_CLAUDE = {"upstream_invalid_request", "model_not_found"}
"""What is wrong with a request is told in Claude's words, to whoever sent it; on Anthropic's surface more is."""


@pytest.fixture(scope="module")
async def replicas(
    anyio_backend: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Valkey, dict[str, Replica]]]:
    """A store, and a replica of each form of log on it."""
    folder = tmp_path_factory.mktemp("secrets")
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(echoing_claude())
        valkey = stack.enter_context(Valkey(folder / "valkey"))
        started = {}
        for log_format, level in FORMS.items():
            port = stack.enter_context(reserved_port())
            env = {
                "ANTHROPIC_API_KEY": f"sk-{MARK}",
                "ANTHROPIC_BASE_URL": url,
                "BATON_LISTEN": f"127.0.0.1:{port}",
                "BATON_REDIS_URL": valkey.url,
                "BATON_SECRET": f"{MARK}-of-the-namespace",
                "BATON_BODY_BYTES_MAX": "100000",
                "BATON_STORE_SETTLE_S": "1",
                "BATON_LOG_LEVEL": level,
                "BATON_LOG_FORMAT": log_format,
            }
            started[log_format] = await stack.enter_async_context(Replica(log_format, folder, env))
            started[log_format].url = f"http://127.0.0.1:{port}"  # a console does not tell it as JSON
        http = await stack.enter_async_context(aiohttp.ClientSession())
        for replica in started.values():
            await eventually(partial(_is_ready, http, replica), "a replica", timeout_s=40)
        yield valkey, started


async def _is_ready(http: aiohttp.ClientSession, replica: Replica) -> bool | None:
    with suppress(aiohttp.ClientError):
        async with http.get(f"{replica.url}/readyz") as response:
            return response.status == 200 or None
    return None


async def _sees_it_down(caller: Caller) -> bool | None:
    return (await caller.get("/readyz")).json["store"] == "down" or None


Asked = tuple[str, str, dict[str, Any]]


def failing() -> list[Asked]:
    """Requests that Claude fails, each in its own way; some are sent to it three times."""
    said = [{"messages": [{"role": "user", "content": f"{MARK} fail {kind}"}]} for kind in FAILURES]
    claudes = {"model": "claude-sonnet-5-5", "max_tokens": 9, "system": MARK}
    return [
        *(
            ("POST", "/v1/chat/completions", {"json": {**one, "stream": at % 2 == 1, "session_id": f"{MARK}-{at}"}})
            for at, one in enumerate(said)
        ),
        *(("POST", "/v1/messages", {"json": {**claudes, **one, "stream": at % 2 == 0}}) for at, one in enumerate(said)),
    ]


def bodies() -> list[Asked]:
    """Requests that go well and that go wrong: method, path, options."""
    said = {"role": "user", "content": f"I say {MARK}"}
    tool = {"name": MARK, "description": MARK, "parameters": {"type": "object", "properties": {MARK: {}}}}
    chat, messages, sessions = "/v1/chat/completions", "/v1/messages", "/v1/sessions"
    turn = {"messages": [{"role": "system", "content": MARK}, said], "user": MARK}
    claudes = {"model": "claude-sonnet-5-5", "max_tokens": 9, "messages": [said], "system": MARK}
    whole = [said, {"role": "assistant", "content": MARK}, said]
    return [
        ("POST", chat, {"json": turn}),
        ("POST", chat, {"json": {**turn, "session_id": MARK, "model": MARK}}),
        (
            "POST",
            chat,
            {"json": {**turn, "session_id": MARK, "stream": True, "tools": [{"type": "function", "function": tool}]}},
        ),
        ("POST", chat, {"json": {"messages": whole, "session_id": MARK, "model": MARK}}),
        ("POST", messages, {"json": claudes, "headers": {"X-Session-Id": MARK, "anthropic-beta": MARK}}),
        (
            "POST",
            sessions,
            {
                "json": {
                    "model": MARK,
                    "name": f"{MARK}.2",
                    "title": MARK,
                    "metadata": {MARK: MARK},
                    "system_prompt": MARK,
                }
            },
        ),
        ("POST", sessions, {"json": {"model": MARK, "name": f"{MARK}.2"}}),
        ("POST", sessions, {"json": {"name": f"/{MARK}/"}}),
        ("POST", sessions, {"json": {"metadata": MARK, "ttl_seconds": MARK}}),
        ("PATCH", f"{sessions}/{MARK}", {"json": {"title": MARK}, "headers": {"If-Match": f'"{MARK}"'}}),
        ("GET", f"{sessions}/{MARK}", {}),
        ("GET", f"{sessions}/{MARK}/turns", {}),
        ("GET", f"{sessions}/{MARK}/turns/{MARK}/events", {"headers": {"Last-Event-ID": MARK}}),
        ("GET", f"{sessions}?cursor={MARK}&title_prefix={MARK}&metadata[{MARK}]={MARK}", {}),
        ("POST", f"{sessions}/{MARK}/messages", {"json": {"messages": [{"role": MARK, "content": MARK}]}}),
        ("GET", f"/{MARK}", {}),
        ("GET", f"/v1/models/{MARK}", {}),
        ("PUT", f"{sessions}/{MARK}", {}),
        ("POST", chat, {"data": f'{{"messages": "{MARK}'.encode()}),
        ("POST", chat, {"data": f'{{"messages": "{MARK}\xff"}}'.encode("latin-1")}),
        ("POST", chat, {"json": {**turn, "n": MARK, "temperature": MARK}}),
        ("POST", chat, {"json": {**turn, "messages": [{"role": MARK, "content": MARK}]}}),
        ("POST", chat, {"json": {**turn, "session_id": f"{MARK}{{}}"}}),
        ("POST", chat, {"json": turn, "headers": {"X-Session-On-Conflict": MARK, "X-Session-Id": MARK}}),
        ("POST", chat, {"json": turn, "headers": {"X-Expect-Turn": MARK, "X-Session-Id": MARK}}),
        ("POST", messages, {"json": {**claudes, "max_tokens": MARK}, "headers": {"X-Session-Id": MARK}}),
        ("POST", chat, {"data": (MARK * 9000).encode()}),
    ]


async def ask(caller: Caller) -> list[Answer]:
    """All of it, each with keys and headers of its own; what Claude fails all at once, for that takes its time."""
    keys = itertools.count()

    async def told(method: str, path: str, options: dict[str, Any]) -> Answer:
        said = {
            "Authorization": f"Bearer {MARK}",
            "x-api-key": MARK,
            "User-Agent": MARK,
            "X-Request-Id": f"{MARK} no id",
        }
        idempotency = {"Idempotency-Key": f"{MARK}{next(keys)}"} if method == "POST" else {}
        return await caller.request(
            method, path, **{**options, "headers": said | idempotency | options.get("headers", {})}
        )

    failed = await asyncio.gather(*(told(*asked) for asked in failing()))
    return [*failed, *[await told(*asked) for asked in bodies()]]


async def raw(url: str, request: bytes) -> bytes:
    """What is answered to these bytes."""
    at = urlsplit(url)
    assert at.hostname and at.port
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    writer.write(request)
    try:
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.close()


async def spoil(valkey: Valkey) -> None:
    """Makes all that is stored of messages and turns unreadable."""
    redis = Redis.from_url(valkey.url)
    try:
        async for key in redis.scan_iter("*"):
            if await redis.type(key) == b"list":
                for at in range(await redis.llen(key)):
                    await redis.lset(key, at, "\x00" * 9 + f'{{"{MARK}')
    finally:
        await redis.aclose()


def errors_of(answer: Answer) -> Iterator[dict[str, Any]]:
    """What an answer tells that went wrong, also in a stream."""
    if answer.status >= 400:
        yield answer.json
    for line in answer.body.splitlines() if answer.json is None else ():
        with suppress(ValueError):
            event = json.loads(line.removeprefix(b"data: "))
            if isinstance(event, dict) and "error" in event:
                yield event


def quotes(answer: Answer) -> bool:
    """Whether an error of it quotes what was asked, and is not Claude's own."""
    for said in errors_of(answer):
        error = said["error"]
        code = error.get("code") or error.get("details", {}).get("error_code")  # Claude's own errors have none
        if MARK in str(said) and code and code not in TOLD_BY_CLAUDE:
            return True
    return False


async def test_nothing_that_callers_say_comes_out(
    replicas: tuple[Valkey, dict[str, Replica]], http: aiohttp.ClientSession
) -> None:
    valkey, started = replicas
    callers = [Caller(http, replica.url) for replica in started.values()]
    answers = [answer for told in await asyncio.gather(*map(ask, callers)) for answer in told]
    assert {200, 201, 400, 404, 405, 409, 413, 502, 503} <= {answer.status for answer in answers}
    for answer in answers:
        assert not quotes(answer), answer.body[:2000]
    malformed = [f"GET /{MARK} {MARK}\r\n\r\n", f"GET / HTTP/1.1\r\n{MARK} {MARK}\r\n\r\n", f"{MARK}\n" * 5]
    for caller, request in itertools.product(callers, malformed):
        assert MARK.encode() not in await raw(caller.url, request.encode())

    await spoil(valkey)
    broken = []
    for caller in callers:
        broken += [await caller.get(f"/v1/sessions/{MARK}/turns"), await caller.get(f"/v1/sessions/{MARK}/turns/1")]
        broken += [await caller.request("POST", "/v1/chat/completions", json=bodies()[3][2]["json"])]
    assert 500 in {answer.status for answer in broken}
    password = urlsplit(valkey.url).password
    assert password
    valkey.kill9()
    for caller in callers:
        broken += [await caller.chat(MARK, MARK), await caller.get(f"/v1/sessions/{MARK}"), await caller.chat(MARK)]
        await eventually(partial(_sees_it_down, caller), "the loss of the store", timeout_s=20)
    assert 503 in {answer.status for answer in broken}
    assert not any(map(quotes, broken))

    scraped = [(await caller.get("/metrics")).body.decode() for caller in callers]
    for replica in started.values():
        replica.terminate()
        await replica.wait()
    for told in (*scraped, *(replica.log() for replica in started.values())):
        assert MARK.lower() not in told.lower()
        assert password not in told
    events = {record["event"] for record in started["json"].events()}
    assert {"turn", "request", "upstream_failed", "claude_refused", "internal_error", "store_down", "stopped"} <= events
    assert "JSONDecodeError" in started["console"].log()


async def test_a_finished_turn_is_one_line_with_ids_and_numbers(
    fleet: Fleet, http: aiohttp.ClientSession, name: str
) -> None:
    replica = fleet.replicas[0]
    caller = Caller(http, replica.url)
    answer = await caller.chat("Hello", name, headers={"X-Request-Id": f"req-{name}"})
    [line] = [one for one in replica.events("turn") if one["request_id"] == f"req-{name}"]
    assert line["turn"] == answer.headers["x-turn-id"] and line["session"] == answer.headers["x-session-id"]
    assert (line["outcome"], line["dialect"], line["streamed"], line["replayed"]) == ("complete", "chat", False, False)
    assert line["model"] == answer.json["model"] and line["level"] == "info"
    assert line["input_tokens"] + line["output_tokens"] > 0
    assert 0 < line["first_event_ms"] <= line["answer_ms"] <= line["duration_ms"]
    assert name not in json.dumps({**line, "request_id": ""})


@pytest.mark.parametrize("given", ["a b", "a\tb", 'a"b', "{}", "x" * 129, "é", "a%0ab"])
async def test_a_request_id_that_is_none_is_not_taken(one: Caller, given: str) -> None:
    answer = await one.request("GET", "/livez", headers={"X-Request-Id": given})
    assert answer.headers["x-request-id"].startswith("req_")
