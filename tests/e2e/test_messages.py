"""Anthropic's messages, driven by the anthropic SDK over two replicas, in a session and without one."""

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import pytest
from anthropic import APIStatusError, AsyncAnthropic, BadRequestError, NotFoundError, RateLimitError, beta_async_tool

from tests.e2e.caller import Answer, Caller, Stream
from tests.e2e.unchanged import unchanged
from tests.instruments.processes import Fleet, Simulator

pytestmark = pytest.mark.anyio

Json = dict[str, Any]
MODEL = "claude-sonnet-5-5"
PATH = "/v1/messages"


@pytest.fixture
async def claudes(one: Caller, two: Caller) -> AsyncIterator[list[AsyncAnthropic]]:
    """Anthropic's SDK as installed, pointed at the first and at the second replica; it does not retry."""
    first, second = (AsyncAnthropic(base_url=each.url, api_key="unused", max_retries=0) for each in (one, two))
    async with first, second:
        yield [first, second]


def asked(text: Any, session: str | None = None, **fields: Any) -> Json:
    """Arguments of the SDK."""
    request: Json = {"model": MODEL, "max_tokens": 200, "messages": [{"role": "user", "content": text}], **fields}
    return request if session is None else {**request, "extra_headers": {"X-Session-Id": session}}


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


async def post(caller: Caller, body: Json, session: str | None = None, **headers: str) -> Answer:
    named = headers if session is None else {"x-session-id": session, **headers}
    return await caller.request("POST", PATH, json=body, headers=named)


def error_of(answer: Answer) -> tuple[int, str, str]:
    """Status, type and code of an error in Anthropic's shape."""
    assert answer.json.keys() == {"type", "error", "request_id"}
    assert answer.json["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]
    assert answer.headers["x-should-retry"] in ("true", "false")
    return answer.status, answer.json["error"]["type"], answer.json["error"]["details"]["error_code"]


async def test_a_session_goes_on_at_another_replica_and_takes_only_what_is_new(
    claudes: list[AsyncAnthropic], name: str
) -> None:
    first = await claudes[0].messages.create(**asked("My name is Ada.", name))
    assert (first.type, first.role, first.model, first.stop_reason) == ("message", "assistant", MODEL, "end_turn")
    assert first.id.startswith("msg_") and first.usage.output_tokens > 0
    async with claudes[1].messages.stream(**asked("What is my name?", name)) as stream:
        streamed = await stream.get_final_message()
    assert (text_of(streamed), streamed.stop_reason) == ("Your name is Ada.", "end_turn")
    assert streamed.usage.output_tokens > 0


async def test_a_conversation_that_is_sent_again_is_recognised(claudes: list[AsyncAnthropic], name: str) -> None:
    first = await claudes[0].messages.create(**asked("My name is Ada.", name))
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "My name is Ada."}]},
        {"role": "assistant", "content": [block.model_dump() for block in first.content]},
        {"role": "user", "content": "What is my name?"},
    ]
    raw = await claudes[1].messages.with_raw_response.create(**{**asked("", name), "messages": messages})
    assert raw.headers["x-session-state"] == "continued"
    assert text_of(await raw.parse()) == "Your name is Ada."
    again = await claudes[0].messages.with_raw_response.create(**{**asked("", name), "messages": messages[:1]})
    assert again.headers["x-session-state"] == "continued"  # a single message is taken for a new one


async def test_a_stateless_body_reaches_claude_byte_by_byte(one: Caller, simulator: Simulator) -> None:
    raw = b'{ "max_tokens":100,  "messages" : [{"content":"Hi \\u00e9", "role":"user"}],"model":"%b" }' % MODEL.encode()
    headers = {"content-type": "application/json", "anthropic-beta": "future-2026-11-01", "x-api-key": "caller's own"}
    answer = await one.request("POST", PATH, data=raw, headers=headers)
    assert (answer.status, answer.json["stop_reason"]) == (200, "end_turn")
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
    assert "x-session-id" not in answer.headers
    assert await body_received(one.http, simulator) == raw
    (request,) = await simulator.requests(1)
    assert request["headers"]["anthropic-beta"] == "future-2026-11-01"
    assert request["headers"]["anthropic-version"] == "2026-10-21"
    assert "caller's own" not in str(request)


async def test_a_stateless_alias_is_all_that_is_replaced(
    impatient: Caller, http: aiohttp.ClientSession, simulator: Simulator
) -> None:
    raw = (
        b'{"metadata":{"user_id":"gpt-4o"}, "max_tokens":9,"model" : "%b","messages":[{"role":"user","content":"Hi"}]}'
    )
    assert (await impatient.request("POST", PATH, data=raw % b"gpt-4o")).status == 200
    assert await body_received(http, simulator) == raw.replace(b'"%b"', b'"claude-opus-5-5"')


async def body_received(http: aiohttp.ClientSession, simulator: Simulator) -> bytes:
    """The last request's body, as the stand-in for Claude received it."""
    async with http.get(f"{simulator.url}/simulator/requests?limit=1") as response:
        raw = await response.read()
    return raw.partition(b'"body":')[2].partition(b',"outcome":')[0]


async def test_a_stateless_stream_is_claudes_own(
    one: Caller, http: aiohttp.ClientSession, simulator: Simulator
) -> None:
    body = asked("count to 5", stream=True)
    headers = {"authorization": "Bearer x", "anthropic-version": "2026-10-21"}
    async with http.post(one.url + PATH, json=body) as response:
        through = await Stream(response).rest()
        assert response.headers["content-type"].startswith("text/event-stream")
    async with http.post(simulator.url + PATH, json=body, headers=headers) as response:
        direct = [frame for frame in await Stream(response).rest() if not frame.startswith(b"event: ping")]
    ids = [orjson.loads(frames[0].partition(b"data: ")[2])["message"]["id"].encode() for frames in (through, direct)]
    assert [frame.replace(ids[0], b"msg") for frame in through] == [frame.replace(ids[1], b"msg") for frame in direct]


async def test_a_stream_of_a_session_carries_ids_and_can_be_followed(one: Caller, two: Caller, name: str) -> None:
    async with one.http.post(
        one.url + PATH, json=asked("count to 5", stream=True), headers={"x-session-id": name}
    ) as response:
        stream = Stream(response)
        frames = await stream.rest()
        turn = response.headers["x-turn-id"]
    assert stream.last_id == len(frames)
    assert frames[-1] == b'event: message_stop\ndata: {"type":"message_stop"}'
    path = f"{two.url}/v1/sessions/{name}/turns/{turn}/events"
    async with two.http.get(path, headers={"Last-Event-ID": "2"}) as response:
        assert await Stream(response, last_id=2).rest() == frames[2:]


async def test_claudes_refusals_are_told_as_claude_tells_them(
    claudes: list[AsyncAnthropic], simulator: Simulator, name: str
) -> None:
    for session in (None, name):
        await simulator.fault("rate_limit", retry_after_s=30)
        with pytest.raises(RateLimitError) as limited:
            await claudes[0].messages.create(**asked("a", session))
        assert (limited.value.type, limited.value.response.headers["retry-after"]) == ("rate_limit_error", "30")
        await simulator.fault("overloaded", times=3)
        with pytest.raises(APIStatusError) as overloaded:
            await claudes[0].messages.create(**asked("a", session))
        assert (overloaded.value.status_code, overloaded.value.type) == (529, "overloaded_error")
        with pytest.raises(NotFoundError) as unknown:
            await claudes[0].messages.create(**asked("a", session, model="claude-none"))
        assert unknown.value.api_message == "model: claude-none"
        with pytest.raises(BadRequestError, match="max_tokens"):
            await claudes[0].messages.create(**asked("a", session, max_tokens=-1))


async def test_a_stream_that_breaks_ends_in_an_error_event(one: Caller, simulator: Simulator, name: str) -> None:
    await simulator.pace(delta_ms=100)  # or the error comes with the beginning, and it is asked again
    for session in ({}, {"x-session-id": name}):
        for fault, kind in (("error_mid_stream", "overloaded_error"), ("clean_end", "api_error")):
            await simulator.fault(fault, after_deltas=2)
            async with one.http.post(
                one.url + PATH, json=asked("count to 9", stream=True), headers=session
            ) as response:
                frames = await Stream(response).rest()
            assert frames[-1].startswith(b"event: error\n")
            assert orjson.loads(frames[-1].partition(b"data: ")[2])["error"]["type"] == kind
            assert not any(frame.startswith(b"event: message_stop") for frame in frames)


async def test_half_an_answer_is_not_passed_off_as_whole(one: Caller, simulator: Simulator) -> None:
    for fault in ("clean_end", "garbage"):
        await simulator.fault(fault, times=3)
        answer = await post(one, asked("count to 9"))
        assert error_of(answer) == (502, "api_error", "upstream_nonsense")


async def test_what_claude_alone_can_judge_is_left_to_claude(one: Caller, simulator: Simulator, name: str) -> None:
    odds: list[Json] = [
        {"output_config": "low"},
        {"output_config": ["low"]},
        {"stop_sequences": "x"},
        {"max_tokens": {}},
    ]
    for odd in odds:
        answer = await post(one, asked("a", **odd), name)
        assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request_error")
        assert "details" not in answer.json["error"]
    image = {"role": "system", "content": [{"type": "image", "source": {}}]}
    answer = await post(one, {**asked("a"), "messages": [*asked("a")["messages"], image]}, name)
    assert (answer.status, "details" in answer.json["error"]) == (400, False)


async def test_headers_that_mean_nothing_are_told(one: Caller, name: str) -> None:
    said = {"x-session-prefix": "strict", "x-session-input": "full", "idempotency-key": "k"}
    answer = await post(one, asked("a"), **said, **{"anthropic-workspace-id": "w"})
    told = "anthropic-workspace-id, Idempotency-Key, X-Session-Input, X-Session-Prefix"
    assert (answer.status, answer.headers["x-baton-ignored"]) == (200, told)
    counted = {"model": MODEL, "messages": asked("a")["messages"]}
    headers = {"x-session-id": name, "x-expect-turn": "turn_" + "a" * 26, "anthropic-user-profile-id": "u"}
    answer = await one.request("POST", f"{PATH}/count_tokens", json=counted, headers=headers)
    assert (answer.status, answer.headers["x-baton-ignored"]) == (200, "anthropic-user-profile-id, X-Expect-Turn")


async def test_a_turn_record_says_what_was_sent_in_numbers_and_words_only(one: Caller, name: str) -> None:
    asking = asked("a", stop_sequences=["a secret of the caller's"], output_config={"effort": "low"}, speed="standard")
    assert (await post(one, asking, name)).status == 200
    (turn,) = (await one.get(f"/v1/sessions/{name}/turns")).json["turns"]
    sent = {name: turn["sent"][name] for name in ("stop_sequences", "effort", "speed", "max_tokens")}
    assert sent == {"stop_sequences": 1, "effort": "low", "speed": "standard", "max_tokens": 200}
    assert "secret" not in str(turn)


async def test_silence_is_broken_by_pings(impatient: Caller, simulator: Simulator, name: str) -> None:
    for session in ({}, {"x-session-id": name}):
        await simulator.fault("slow_first_byte", delay_ms=700)
        async with impatient.http.post(impatient.url + PATH, json=asked("a", stream=True), headers=session) as response:
            frames = await Stream(response).rest()
        assert frames[0] == b'event: ping\ndata: {"type": "ping"}'
        assert frames[-1].startswith(b"event: message_stop")


async def test_the_older_version_is_understood_and_its_sampling_told(
    one: Caller, simulator: Simulator, name: str
) -> None:
    body = asked("a", temperature=1, top_p=0.5, top_k=5)
    answer = await post(one, body, name, **{"anthropic-version": "2023-06-01"})
    assert (answer.status, answer.headers["x-baton-ignored"]) == (200, "temperature, top_k, top_p")
    (request,) = await simulator.requests(1)
    assert request["headers"]["anthropic-version"] == "2026-10-21"
    assert not request["body"].keys() & {"temperature", "top_k", "top_p"}
    assert "sampling parameters" in (await post(one, body, name)).json["error"]["message"]
    refused = await post(one, asked("a"), name, **{"anthropic-version": "2099-01-01"})
    assert error_of(refused) == (400, "invalid_request_error", "invalid_value")
    # Without a session it is Claude who judges the version.
    await post(one, asked("a"), **{"anthropic-version": "2099-01-01"})
    (request,) = await simulator.requests(1)
    assert request["headers"]["anthropic-version"] == "2099-01-01"


async def test_every_field_goes_to_claude_and_markers_in_messages_are_told(
    one: Caller, simulator: Simulator, name: str
) -> None:
    marked = [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]
    fields: Json = {
        "metadata": {"user_id": "u"},
        "stop_sequences": ["END"],
        "service_tier": "standard_only",
        "inference_geo": "us",
        "cache_control": {"type": "ephemeral", "ttl": "1h"},
        "output_config": {"effort": "low"},
    }
    answer = await post(one, asked(marked, system=[{"type": "text", "text": "S"}], **fields), name)
    assert (answer.status, answer.headers["x-baton-ignored"]) == (200, "messages.content.cache_control")
    (request,) = await simulator.requests(1)
    assert request["body"].items() >= fields.items()
    assert request["body"]["messages"] == [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    assert (await one.messages(name))[0]["content"] == [{"type": "text", "text": "Hi"}]
    refused = await post(one, asked("a", future_field=1), name)
    assert "future_field" in refused.json["error"]["message"]


async def test_tokens_are_counted_for_what_is_asked_and_for_a_sessions_next_turn(
    claudes: list[AsyncAnthropic], fleet: Fleet, one: Caller, name: str
) -> None:
    question: list[Any] = [{"role": "user", "content": "one two three four"}]
    alone = await claudes[0].messages.count_tokens(model=MODEL, messages=question)
    session: Any = {"X-Session-Id": name}
    fresh = await claudes[0].messages.count_tokens(model=MODEL, messages=question, extra_headers=session)
    assert alone.input_tokens == fresh.input_tokens > 0
    assert (await one.get(f"/v1/sessions/{name}")).status == 404, "counting has made a session"
    await claudes[0].messages.create(**asked("My name is Ada.", name, system="Be brief."))
    async with unchanged(fleet, claude=False):
        within = await claudes[1].messages.count_tokens(model=MODEL, messages=question, extra_headers=session)
    answer = await claudes[1].messages.create(**{**asked("", name), "messages": question})
    counted = answer.usage
    total = counted.input_tokens + (counted.cache_read_input_tokens or 0) + (counted.cache_creation_input_tokens or 0)
    assert within.input_tokens == total > alone.input_tokens
    refused = await one.request(
        "POST",
        "/v1/messages/count_tokens",
        json={"model": MODEL, "messages": question},
        headers={"x-session-id": "sess_00" + "a" * 26},
    )
    assert error_of(refused) == (404, "not_found_error", "session_not_found")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "invalid_json"),
        (b"[]", "invalid_value"),
        (b"{}", "missing_value"),
        (b'{"messages":[]}', "invalid_value"),
        (b'{"messages":["a"]}', "invalid_value"),
        (b'{"messages":[{"role":"tool","content":"a"}]}', "invalid_value"),
        (b'{"messages":[{"role":"user","content":[]}]}', "invalid_value"),
        (b'{"messages":[{"role":"user","content":[{"text":"a"}]}]}', "invalid_value"),
        (b'{"messages":[{"role":"user","content":[{"type":"text","text":1}]}]}', "invalid_value"),
        (b'{"messages":[{"role":"user","content":[{"type":"tool_result","tool_use_id":"a b"}]}]}', "invalid_value"),
        (b'{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}', "invalid_value"),
        (b'{"messages":[{"role":"user","content":"a"}],"model":"a b"}', "invalid_value"),
        (b'{"messages":[{"role":"user","content":"a"}],"stream":"yes"}', "invalid_value"),
        (b'{"messages":[{"role":"user","content":"a"}],"tools":[1]}', "invalid_value"),
        (b'{"messages":[{"role":"user","content":"a"}],"tool_choice":"auto"}', "invalid_value"),
        (b'{"messages":[{"role":"user","content":"a"}],"system":{}}', "invalid_value"),
        (b'{"messages":[{"role":"user","content":"a"}],"thread":{"type":"create"}}', "thread_unsupported_request"),
        (b'{"messages":[{"role":"user","content":"a"}],"thinking":["display"]}', "invalid_value"),
        (b'{"messages":[{"role":"user","content":"a"}],"tools":[],"tool_choice":{"type":"any"}}', "invalid_value"),
        (b'{"messages":[{"role":"user","content":"a"}],"odd":' + b"[" * 900 + b"]" * 900 + b"}", "invalid_value"),
        (b'{"messages":[{"role":"user","content":' + b"[" * 2000 + b"]" * 2000 + b"}]}", "invalid_json"),
    ],
)
async def test_bad_input_is_refused_by_name_and_nothing_is_stored(
    one: Caller, name: str, body: bytes, code: str
) -> None:
    for path in (PATH, f"{PATH}/count_tokens"):
        answer = await one.request("POST", path, data=body, headers={"x-session-id": name})
        assert error_of(answer)[2] == code
    assert (await one.get(f"/v1/sessions/{name}")).status == 404


async def test_the_sdks_tool_runner_goes_on_without_the_thread_that_it_begins_with(
    claudes: list[AsyncAnthropic], one: Caller, simulator: Simulator, name: str
) -> None:
    @beta_async_tool
    async def weather(city: str) -> str:
        """The weather in a city."""
        return f"18 degrees in {city}"

    runner = claudes[0].beta.messages.tool_runner(**asked('call weather with {"city": "Paris"}', name), tools=[weather])
    assert text_of(await runner.until_done()) == 'You said: "18 degrees in Paris". I received 3 messages.'
    assert [len(each["body"]["messages"]) for each in await simulator.requests(2)] == [1, 3]
    assert (await one.get(f"/v1/sessions/{name}")).json["message_count"] == 4


async def test_a_session_is_addressed_by_header_only_and_errors_are_anthropics(one: Caller, name: str) -> None:
    refused = await post(one, asked("a"), name, **{"x-session-mode": "continue"})
    assert error_of(refused) == (404, "not_found_error", "session_not_found")
    assert error_of(await one.request("GET", PATH)) == (405, "invalid_request_error", "method_not_allowed")
    assert error_of(await one.request("POST", f"{PATH}/none")) == (404, "not_found_error", "route_not_found")
    refused = await post(one, asked("a"), **{"x-expect-turn": "turn_" + "a" * 26})
    assert error_of(refused) == (400, "invalid_request_error", "invalid_value")
    made = await post(one, asked("a"), "new")
    assert made.headers["x-session-id"].startswith("sess_")
    assert made.headers["x-session-state"] == "new"
