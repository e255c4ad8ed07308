"""The stand-in for Claude over the socket: its headers, its streams and its faults, seen with the real SDK and raw.

One simulator process serves the whole file; each test that queues faults clears them first.
"""

import json
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import anthropic
import httpx2
import pytest
from anthropic import AsyncAnthropic, AsyncStream

from service.simulator import rules
from service.simulator.journal import KEPT
from service.simulator.models import MODELS
from tests.unit.simulated import MODEL, read_events, request, user

T = TypeVar("T")

DEADLINE_S = 10.0
HEADERS = {"authorization": "Bearer sk-ant-simulated", "anthropic-version": "2026-10-21"}
SERVE = """
import sys
from pathlib import Path
from service.simulator.app import Options, run
run("127.0.0.1:0", Options(log_path=Path(sys.argv[1])))
"""


def start(log_path: Path) -> tuple[subprocess.Popen[str], str]:
    """Start a simulator and return it with its URL, which its first line tells."""
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(log_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("simulator listening on http://127.0.0.1:")
    return process, line.split()[-1]


def stop(process: subprocess.Popen[str]) -> int:
    """Ask a simulator to stop and return its exit code; kill it if it does not."""
    process.terminate()
    try:
        return process.wait(DEADLINE_S)
    finally:
        process.kill()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture(scope="module")
def log_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("simulator") / "requests.jsonl"


@pytest.fixture(scope="module")
def url(log_path: Path) -> Iterator[str]:
    process, address = start(log_path)
    yield address
    assert stop(process) == 0


@pytest.fixture(scope="module")
def raw_client(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, headers=HEADERS, timeout=DEADLINE_S) as client:
        yield client


@pytest.fixture
def http(raw_client: httpx2.Client) -> httpx2.Client:
    """A raw client with good headers, and a simulator without faults and at full speed."""
    raw_client.delete("/simulator/faults").raise_for_status()
    raw_client.post("/simulator/pace", json={"first_byte_ms": 0, "delta_ms": 0}).raise_for_status()
    return raw_client


@pytest.fixture
async def claude(url: str, http: httpx2.Client) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(api_key="sk-ant-simulated", base_url=url, max_retries=0, timeout=DEADLINE_S) as client:
        yield client


def queue(http: httpx2.Client, kind: str, **fields: Any) -> None:
    http.post("/simulator/faults", json={"kind": kind, **fields}).raise_for_status()


def last_request(http: httpx2.Client) -> dict[str, Any]:
    entry: dict[str, Any] = http.get("/simulator/requests", params={"limit": 1}).json()["requests"][0]
    return entry


def until(probe: Callable[[], T], accept: Callable[[T], bool]) -> T:
    """Look again until what is seen is accepted; fail at the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not accept(seen := probe()):
        assert time.monotonic() < deadline, seen
        time.sleep(0.01)
    return seen


def text_of(parsed: list[dict[str, Any]]) -> str:
    return "".join(e["delta"].get("text", "") for e in parsed if e["type"] == "content_block_delta")


# --- over the socket: headers, errors, routes ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status", "kind"),
    [
        ({"authorization": ""}, 401, "authentication_error"),
        ({"authorization": "Bearer"}, 401, "authentication_error"),
        ({"authorization": "Basic abc"}, 401, "authentication_error"),
        ({"authorization": "Bearer sk-ant-invalid"}, 401, "authentication_error"),
        ({"authorization": "", "x-api-key": "sk-ant-invalid"}, 401, "authentication_error"),
        ({"anthropic-version": "2023-01-01"}, 400, "invalid_request_error"),
        ({"anthropic-version": ""}, 400, "invalid_request_error"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens", "/v1/models", f"/v1/models/{MODEL}"])
def test_headers_are_required(http: httpx2.Client, path: str, headers: dict[str, str], status: int, kind: str) -> None:
    method = "GET" if path.startswith("/v1/models") else "POST"
    answer = http.request(method, path, headers=headers, json=request() if method == "POST" else None)
    body = answer.json()
    assert (answer.status_code, body["type"], body["error"]["type"]) == (status, "error", kind)
    assert body["request_id"] == answer.headers["request-id"]


def test_the_version_header_must_be_there(url: str) -> None:
    answer = httpx2.post(f"{url}/v1/messages", headers={"x-api-key": "k"}, json=request())
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("anthropic-version: ")


def test_an_api_key_header_will_do(url: str) -> None:
    headers = {"x-api-key": "k", "anthropic-version": "2026-10-21"}
    assert httpx2.post(f"{url}/v1/messages", headers=headers, json=request()).status_code == 200


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'"x"', b'{"model": "\xff"}', b'{"max_tokens": NaN}'])
def test_a_body_that_is_no_json_object_is_refused(http: httpx2.Client, raw: bytes) -> None:
    answer = http.post("/v1/messages", content=raw)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    entry = last_request(http)
    assert (entry["outcome"], entry["body"]) == ("error", None)


def test_a_body_over_32_mb_is_too_large(http: httpx2.Client) -> None:
    answer = http.post("/v1/messages", content=b" " * (rules.BODY_BYTES_MAX + 1))
    assert (answer.status_code, answer.json()["error"]["type"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/v1/complete", 404, "not_found_error"),
        ("POST", "/v1/messages/", 404, "not_found_error"),
        ("GET", "/v1/messages", 405, "invalid_request_error"),
        ("DELETE", "/v1/models", 405, "invalid_request_error"),
        ("GET", "/v1/models/claude-2", 404, "not_found_error"),
        ("GET", "/v1/models?limit=0", 400, "invalid_request_error"),
        ("GET", "/v1/models?after_id=claude-2", 400, "invalid_request_error"),
        ("GET", "/v1/models?lifecycle=new", 400, "invalid_request_error"),
    ],
)
def test_other_requests_fail_in_anthropics_shape(
    http: httpx2.Client, method: str, path: str, status: int, kind: str
) -> None:
    answer = http.request(method, path)
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)
    assert answer.headers["request-id"] == answer.json()["request_id"]


def test_the_control_surface_refuses_in_plain_text(http: httpx2.Client) -> None:
    for path, raw in (
        ("faults", b'{"kind":"fire"}'),
        ("faults", b"{"),
        ("faults", b'{"kind":"cut","color":"red"}'),
        ("pace", b'{"delta_ms":-1}'),
    ):
        answer = http.post(f"/simulator/{path}", content=raw)
        assert (answer.status_code, answer.headers["content-type"]) == (400, "text/plain; charset=utf-8")
    for limit in ("0", "x", str(KEPT + 1), "9" * 5000):
        assert http.get("/simulator/requests", params={"limit": limit}).status_code == 400


# --- over the socket: the real SDK -----------------------------------------------------------------------------


@pytest.mark.anyio
async def test_create_with_the_sdk(claude: AsyncAnthropic, http: httpx2.Client) -> None:
    answer = await claude.messages.create(model=MODEL, max_tokens=50, messages=[{"role": "user", "content": "hello"}])
    assert [block.to_dict() for block in answer.content] == [
        {"type": "text", "text": 'You said: "hello". I received 1 message.'}
    ]
    assert (answer.stop_reason, answer.usage.input_tokens, answer.usage.output_tokens) == ("end_turn", 2, 7)
    assert answer._request_id is not None and answer._request_id.startswith("req_")
    entry = last_request(http)
    assert entry["body"] == {"model": MODEL, "max_tokens": 50, "messages": [user("hello")]}
    assert (entry["path"], entry["outcome"]) == ("/v1/messages", "complete")
    assert entry["answer"] == 'You said: "hello". I received 1 message.'
    assert entry["headers"]["anthropic-version"] == "2026-10-21"
    assert not {"authorization", "x-api-key"} & entry["headers"].keys()


@pytest.mark.anyio
async def test_stream_with_the_sdk_says_the_same_as_create(claude: AsyncAnthropic) -> None:
    fields: dict[str, Any] = {**request(user("count to 300")), "thinking": {"type": "adaptive"}}
    created = await claude.messages.create(**fields)
    async with claude.messages.stream(**fields) as stream:
        streamed = await stream.get_final_message()
    for one, other in ((created.content, streamed.content), (created.stop_reason, streamed.stop_reason)):
        assert one == other or [b.to_dict() for b in one] == [b.to_dict() for b in other]  # type: ignore[union-attr]
    assert [block.type for block in streamed.content] == ["thinking", "text"]
    assert streamed.usage.output_tokens == created.usage.output_tokens == 311
    assert streamed.usage.output_tokens_details is not None
    assert streamed.usage.output_tokens_details.thinking_tokens == 11


@pytest.mark.anyio
async def test_raw_events_with_the_sdk(claude: AsyncAnthropic) -> None:
    kinds = []
    async with claude.messages.with_streaming_response.create(
        model=MODEL, max_tokens=10, messages=[{"role": "user", "content": "count to 2"}], stream=True
    ) as response:
        async for event in AsyncStream.raw_events(response.http_response):
            assert event.event == event.json()["type"]
            kinds.append(event.event)
    assert (kinds[:3], kinds[-2:]) == (
        ["message_start", "ping", "content_block_start"],
        ["message_delta", "message_stop"],
    )


@pytest.mark.anyio
async def test_count_tokens_and_models_with_the_sdk(claude: AsyncAnthropic) -> None:
    counted = await claude.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": "x" * 9}])
    assert counted.input_tokens == 3
    assert [model.id async for model in claude.models.list(limit=3)] == list(MODELS)
    model = await claude.models.retrieve(MODEL)
    assert (model.line, model.lifecycle, model.max_tokens) == ("sonnet", "active", 128_000)


@pytest.mark.anyio
async def test_thinking_goes_back_to_any_simulator_as_the_sdk_has_it(claude: AsyncAnthropic, tmp_path: Path) -> None:
    fields: dict[str, Any] = {**request(user("Count to 3, think between.")), "model": "claude-opus-5-5"}
    async with claude.messages.stream(**fields) as stream:
        answer = await stream.get_final_message()
    assert [block.type for block in answer.content] == ["thinking", "text"]
    fields["messages"] += [{"role": "assistant", "content": answer.content}, user("how many messages?")]
    process, url = start(tmp_path / "log")
    try:
        async with AsyncAnthropic(api_key="k", base_url=url, max_retries=0, timeout=DEADLINE_S) as other:
            again = await other.messages.create(**fields)
            fields["messages"][0] = user("Count to 4, think between.")
            with pytest.raises(anthropic.BadRequestError, match="Invalid `signature` in `thinking` block"):
                await other.messages.create(**fields)
    finally:
        stop(process)
    assert again.content[1].to_dict() == {"type": "text", "text": "This conversation holds 3 messages."}


@pytest.mark.anyio
async def test_the_cache_shows_in_the_sdks_usage_whole_streamed_and_counted(claude: AsyncAnthropic) -> None:
    fields: dict[str, Any] = request(user(f"[mark:{uuid.uuid4()}] {'x' * 8000}"), cache_control={"type": "ephemeral"})
    created = await claude.messages.create(**fields)
    async with claude.messages.stream(**fields) as stream:
        streamed = await stream.get_final_message()
    written, read = created.usage.cache_creation_input_tokens, streamed.usage.cache_read_input_tokens
    assert written is not None
    assert read == written > 0
    assert (created.usage.cache_read_input_tokens, streamed.usage.cache_creation_input_tokens) == (0, 0)
    counted = await claude.messages.count_tokens(model=MODEL, messages=fields["messages"])
    assert counted.input_tokens == created.usage.input_tokens + written == streamed.usage.input_tokens + written


@pytest.mark.anyio
async def test_a_refused_or_failed_request_caches_nothing(claude: AsyncAnthropic, http: httpx2.Client) -> None:
    fields: dict[str, Any] = request(user(f"[mark:{uuid.uuid4()}] {'x' * 8000}"), cache_control={"type": "ephemeral"})
    queue(http, "overloaded")
    for body in (fields, {**fields, "max_tokens": -1}):
        with pytest.raises(anthropic.APIStatusError):
            await claude.messages.create(**body)
    warmed = await claude.messages.create(**{**fields, "max_tokens": 0})
    assert (warmed.content, warmed.usage.cache_read_input_tokens) == ([], 0)
    assert warmed.usage.cache_creation_input_tokens
    after = await claude.messages.create(**fields)
    assert after.usage.cache_read_input_tokens == warmed.usage.cache_creation_input_tokens


def test_a_beta_header_is_kept_in_the_journal(http: httpx2.Client) -> None:
    body = request(context_management={"edits": []})
    assert http.post("/v1/messages", json=body).status_code == 400
    headers = {"anthropic-beta": "context-management-2025-06-27"}
    for path, fields in (("/v1/messages", body), ("/v1/messages/count_tokens", body)):
        sent = {name: value for name, value in fields.items() if path == "/v1/messages" or name != "max_tokens"}
        assert http.post(path, json=sent, headers=headers).status_code == 200
        assert last_request(http)["headers"]["anthropic-beta"] == "context-management-2025-06-27"


@pytest.mark.anyio
async def test_the_sdk_sees_a_refused_request(claude: AsyncAnthropic) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        await claude.messages.create(model=MODEL, max_tokens=5, messages=[])
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id


# --- over the socket: faults -----------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("kind", "status", "error_type"),
    [("rate_limit", 429, "rate_limit_error"), ("overloaded", 529, "overloaded_error"), ("error", 500, "api_error")],
)
async def test_fault_status(
    claude: AsyncAnthropic, http: httpx2.Client, kind: str, status: int, error_type: str, stream: bool
) -> None:
    queue(http, kind)
    with pytest.raises(anthropic.APIStatusError) as caught:
        await claude.messages.create(**request(), stream=stream)
    assert (caught.value.status_code, caught.value.type) == (status, error_type)
    assert last_request(http)["outcome"] == "error"
    await claude.messages.create(**request())


def test_rate_limit_says_when_to_come_back(http: httpx2.Client) -> None:
    queue(http, "rate_limit", retry_after_s=2)
    queue(http, "rate_limit")
    assert http.post("/v1/messages", json=request()).headers["retry-after"] == "2"
    assert "retry-after" not in http.post("/v1/messages", json=request()).headers


def test_a_refused_request_takes_no_fault(http: httpx2.Client) -> None:
    queue(http, "overloaded")
    assert http.post("/v1/messages", json=request(top_k=1)).status_code == 400
    assert http.post("/v1/messages", json=request()).status_code == 529
    assert http.post("/v1/messages", json=request()).status_code == 200


def test_a_matching_fault_and_clearing(http: httpx2.Client) -> None:
    queue(http, "overloaded", match="needle", times=2)
    assert http.post("/v1/messages", json=request()).status_code == 200
    assert http.post("/v1/messages", json=request(user("a needle"))).status_code == 529
    http.delete("/simulator/faults")
    assert http.post("/v1/messages", json=request(user("a needle"))).status_code == 200


@pytest.mark.anyio
async def test_fault_error_mid_stream(claude: AsyncAnthropic, http: httpx2.Client) -> None:
    queue(http, "error_mid_stream", after_deltas=2, error_type="api_error")
    seen = []
    with pytest.raises(anthropic.APIStatusError) as caught:
        async for event in await claude.messages.create(**request(user("count to 9")), stream=True):
            seen.append(event.type)  # noqa: PERF401  (the error comes after some)
    assert (caught.value.status_code, caught.value.type) == (200, "api_error")
    assert seen.count("content_block_delta") == 2
    entry = last_request(http)
    assert (entry["outcome"], entry["answer"]) == ("error", "1 2")


def test_fault_error_mid_stream_without_a_stream(http: httpx2.Client) -> None:
    queue(http, "error_mid_stream")
    answer = http.post("/v1/messages", json=request())
    assert (answer.status_code, answer.json()["error"]["type"]) == (529, "overloaded_error")


@pytest.mark.parametrize("after_deltas", [0, 3, 1000])
def test_fault_cut_breaks_the_stream(http: httpx2.Client, after_deltas: int) -> None:
    queue(http, "cut", after_deltas=after_deltas)
    received = b""
    with (
        pytest.raises(httpx2.RemoteProtocolError),
        http.stream("POST", "/v1/messages", json=request(user("count to 9"), stream=True)) as answer,
    ):
        for piece in answer.iter_raw():
            received += piece
    parsed = read_events(received.decode())
    said = "1 2 3 4 5 6 7 8 9"[: max(0, 2 * after_deltas - 1)]
    assert text_of(parsed) == said
    assert parsed[-1]["type"] not in ("message_delta", "message_stop")
    entry = last_request(http)
    assert (entry["outcome"], entry["answer"]) == ("cut", said)


def test_fault_cut_breaks_a_json_body(http: httpx2.Client) -> None:
    queue(http, "cut")
    with pytest.raises(httpx2.RemoteProtocolError):
        http.post("/v1/messages", json=request())
    assert last_request(http)["outcome"] == "cut"


def test_fault_clean_end_of_a_stream(http: httpx2.Client) -> None:
    queue(http, "clean_end", after_deltas=2)
    parsed = read_events(http.post("/v1/messages", json=request(user("count to 9"), stream=True)).text)
    assert text_of(parsed) == "1 2"
    assert parsed[-1]["type"] == "content_block_delta"
    assert last_request(http)["outcome"] == "cut"


def test_fault_clean_end_of_a_json_body(http: httpx2.Client) -> None:
    queue(http, "clean_end")
    answer = http.post("/v1/messages", json=request())
    assert answer.status_code == 200
    with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
        answer.json()


@pytest.mark.parametrize("stream", [False, True])
def test_fault_slow_first_byte(http: httpx2.Client, stream: bool) -> None:
    queue(http, "slow_first_byte", delay_ms=150)
    begun = time.monotonic()
    with http.stream("POST", "/v1/messages", json=request(stream=stream)) as answer:
        assert time.monotonic() - begun >= 0.15
        answer.read()
    assert last_request(http)["outcome"] == "complete"


@pytest.mark.parametrize("stream", [False, True])
def test_fault_slow_deltas(http: httpx2.Client, stream: bool) -> None:
    queue(http, "slow_deltas", delay_ms=50)
    begun = time.monotonic()
    with http.stream("POST", "/v1/messages", json=request(user("count to 10"), stream=stream)) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        outcome_at_first = last_request(http)["outcome"]
        more = list(pieces)
    assert time.monotonic() - begun >= 0.5
    assert outcome_at_first == ("running" if stream else "complete")
    assert len(more) >= (5 if stream else 0)


def test_pace_holds_until_it_is_changed(http: httpx2.Client) -> None:
    assert http.post("/simulator/pace", json={"delta_ms": 40}).json() == {"first_byte_ms": 0, "delta_ms": 40}
    begun = time.monotonic()
    http.post("/v1/messages", json=request(user("count to 3"), stream=True))
    assert time.monotonic() - begun >= 0.12


@pytest.mark.anyio
async def test_fault_refusal(claude: AsyncAnthropic, http: httpx2.Client) -> None:
    queue(http, "refusal", times=2)
    created = await claude.messages.create(**request())
    async with claude.messages.stream(**request()) as stream:
        streamed = await stream.get_final_message()
    for answer in (created, streamed):
        assert (answer.stop_reason, answer.content) == ("refusal", [])
        assert answer.stop_details is not None
        assert answer.stop_details.category == "general_harms"


def test_fault_garbage(http: httpx2.Client) -> None:
    queue(http, "garbage")
    answer = http.post("/v1/messages", json=request(stream=True))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html")
    assert answer.text.startswith("<html>")


def test_fault_hang_lasts_until_the_client_leaves(http: httpx2.Client) -> None:
    queue(http, "hang")
    with pytest.raises(httpx2.ReadTimeout):
        http.post("/v1/messages", json=request(), timeout=0.1)
    until(lambda: last_request(http)["outcome"], lambda outcome: outcome == "disconnected")
    assert http.get("/simulator/stats").json()["running"] == 0


def test_a_client_that_leaves_a_stream_stops_it(http: httpx2.Client, log_path: Path) -> None:
    http.post("/simulator/pace", json={"delta_ms": 20})
    with http.stream("POST", "/v1/messages", json=request(user("count to 5000"), stream=True)) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        assert http.get("/simulator/stats").json()["running"] == 1
        assert last_request(http)["outcome"] == "running"
    entry = until(lambda: last_request(http), lambda seen: seen["outcome"] == "disconnected")
    assert len(entry["answer"].split()) < 1000
    assert http.get("/simulator/stats").json()["running"] == 0
    logged = json.loads(log_path.read_text().splitlines()[-1])
    assert (logged["n"], logged["outcome"], logged["answer"]) == (entry["n"], "disconnected", entry["answer"])


def test_a_client_that_leaves_while_sending(http: httpx2.Client, url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as connection:
        connection.sendall(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{")
        until(lambda: last_request(http)["outcome"], lambda outcome: outcome == "running")
    until(lambda: last_request(http)["outcome"], lambda outcome: outcome == "disconnected")


def test_who_sees_the_end_finds_it_in_the_log(http: httpx2.Client, log_path: Path) -> None:
    for number in range(50):
        http.post("/v1/messages", json=request(user(f"[mark:{number}]"), stream=bool(number % 2)))
        logged = json.loads(log_path.read_text().splitlines()[-1])
        assert logged["messages"] == [user(f"[mark:{number}]")]
        assert logged["answer"].endswith(f"[seen:{number}] [after:none]")
        assert logged["outcome"] == "complete"


# --- the process -----------------------------------------------------------------------------------------------


def test_sigterm_ends_open_streams_and_the_process_at_once(tmp_path: Path) -> None:
    process, url = start(tmp_path / "log")
    try:
        with httpx2.Client(base_url=url, headers=HEADERS, timeout=DEADLINE_S) as client:
            client.post("/simulator/pace", json={"delta_ms": 50})
            with (
                pytest.raises(httpx2.TransportError),
                client.stream("POST", "/v1/messages", json=request(user("count to 5000"), stream=True)) as answer,
            ):
                pieces = answer.iter_raw()
                next(pieces)
                begun = time.monotonic()
                process.terminate()
                for _ in pieces:
                    pass
        assert process.wait(DEADLINE_S) == 0
        assert time.monotonic() - begun < 3
        assert json.loads((tmp_path / "log").read_text())["outcome"] == "disconnected"
    finally:
        stop(process)
