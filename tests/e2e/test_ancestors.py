"""What callers of the two ancestors relied on, or stumbled over: the surface, and requests that are refused.

Each test names the idea that it takes over. All ideas are tried over real HTTP on two replicas of one store, with
bodies compared whole. Turns are in test_ancestors_turns.py, sessions in test_ancestors_sessions.py.
"""

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from service import __version__
from tests.e2e.caller import CHAT, Caller
from tests.e2e.test_bad_input import raw
from tests.e2e.unchanged import unchanged
from tests.instruments.processes import Fleet, Simulator

pytestmark = pytest.mark.anyio

MODEL = "claude-sonnet-5-5"  # what a replica as shipped asks if nobody says which
NO_SUCH_PATH = (
    "No such path; GET /openapi.json lists what there is. A base URL ends in /v1 for OpenAI's clients, "
    "and without it for Anthropic's."
)
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]


def error(message: str, param: str | None, code: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


# What there is.


async def test_health_and_version_say_who_answers(one: Caller, two: Caller) -> None:
    names = set()
    for caller in (one, two):
        health = (await caller.get("/health")).json
        names.add(health["replica"])
        assert health == {
            "status": "healthy",
            "store": "up",
            "replica": health["replica"],
            "service": "baton",
            "state": "ready",
            "auth": "open",
            "warnings": health["warnings"],
        }
        assert "not authenticated" in health["warnings"][0]
        assert (await caller.get("/version")).json == {"service": "baton", "version": __version__, "api_version": "v1"}
    assert len(names) == 2


async def test_the_sdk_lists_the_models_that_claude_has(
    sdks: list[AsyncOpenAI], one: Caller, simulator: Simulator
) -> None:
    asked = {"x-api-key": "unused", "anthropic-version": "2026-10-21"}
    claudes = await Caller(one.http, simulator.url).request("GET", "/v1/models?limit=1000", headers=asked)
    ids = [model["id"] for model in claudes.json["data"]]
    assert MODEL in ids
    for client in sdks:
        models = [model async for model in client.models.list()]
        assert [model.model_dump(exclude_unset=True) for model in models] == [
            {"id": id_, "object": "model", "created": 0, "owned_by": "anthropic"} for id_ in ids
        ]
        assert (await client.models.retrieve(MODEL)).id == MODEL
        with pytest.raises(openai.NotFoundError) as refused:
            await client.models.retrieve("gpt-4o")
        assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


async def test_what_the_ancestors_left_open_is_not_there_and_unknown_paths_answer_in_json(
    one: Caller, two: Caller
) -> None:
    """Their logs, their request echo, their own tools: some without any key, some with headers and bodies in them."""
    absent = (
        *(("GET", path) for path in ("/logs", "/docs", "/v1/auth/status", "/v1/tools", "/v1/mcp/servers")),
        *(("POST", path) for path in ("/logs/clear", "/v1/debug/request", "/v1/compatibility", "/v1/sessions/clear/")),
    )
    for caller in (one, two):
        for method, path in absent:
            answer = await caller.request(method, path, headers={"Authorization": "Bearer secret"})
            assert answer.status == 404, path
            assert answer.json == error(NO_SUCH_PATH, None, "route_not_found", "not_found_error")


async def test_a_request_id_is_echoed_or_made_whatever_the_answer(one: Caller, two: Caller, name: str) -> None:
    made = set()
    for caller in (one, two):
        for method, path, body, status in (
            ("GET", "/livez", None, 200),
            ("GET", "/nowhere", None, 404),
            ("PUT", CHAT, None, 405),
            ("POST", CHAT, {"messages": []}, 400),
            ("POST", CHAT, {"messages": HELLO, "session_id": name}, 200),
            ("GET", "/v1/sessions/sess_00" + "a" * 26, None, 404),
        ):
            given = await caller.request(method, path, json=body, headers={"X-Request-Id": "mine"})
            assert (given.status, given.headers["x-request-id"]) == (status, "mine")
            made.add((await caller.request(method, path, json=body)).headers["x-request-id"])
        for headers in ({"X-Request-Id": "mine"}, {}):
            async with caller.stream("Hi", name, headers=headers) as stream:
                await stream.rest()
            made.add(stream.headers["x-request-id"])
    assert made - {"mine"} == {id_ for id_ in made if id_.startswith("req_")}
    assert len(made) == 2 * 7 + 1


# What is refused, and that nothing comes of it.

NO_CONTENT: list[dict[str, Any]] = [{}, {"content": None}, {"content": {}}, {"content": []}, {"content": 7}]
PLACES: list[tuple[list[Any], str, list[Any]]] = [([], "user", []), (HELLO, "assistant", HELLO)]
NEITHER_ON_NOR_OFF: list[Any] = ["true", "false", 1, 0, []]

WRONG: list[tuple[dict[str, Any], str, str, str]] = [
    ({"messages": []}, "`messages` must be a list with at least one message.", "messages", "invalid_value"),
    ({"messages": None}, "`messages` is required.", "messages", "missing_value"),
    (
        {"messages": [{"role": "robot", "content": "Hi"}]},
        "`messages.0.role` must be one of system, developer, user, assistant, tool.",
        "messages.0.role",
        "invalid_value",
    ),
    *(
        (
            {"messages": [*before, {"role": role, **content}, *after]},
            f"`messages.{len(before)}.content` must be a string or a non-empty list of parts.",
            f"messages.{len(before)}.content",
            "invalid_value",
        )
        for content in NO_CONTENT
        for before, role, after in PLACES
    ),
    *(
        ({"stream": value}, "`stream` must be true or false.", "stream", "invalid_value")
        for value in NEITHER_ON_NOR_OFF
    ),
    *(
        ({name: value}, f"`{name}` must be a number between {low} and {high}.", name, "invalid_value")
        for name, low, high in (
            ("temperature", 0, 2),
            ("top_p", 0, 1),
            ("presence_penalty", -2, 2),
            ("frequency_penalty", -2, 2),
        )
        for value in (low - 0.01, high + 0.01, "1", True)
    ),
    *(({"n": value}, "`n` is not supported.", "n", "unsupported") for value in (2, 0, -1, 128)),
    *(
        ({name: value}, f"`{name}` must be a positive whole number.", name, "invalid_value")
        for name in ("max_tokens", "max_completion_tokens")
        for value in (0, -1, 1.5, "10")
    ),
    *(
        (
            {"model": value},
            "`model` must be 1 to 200 printable ASCII characters without spaces.",
            "model",
            "invalid_value",
        )
        for value in ("", "sonnet; touch owned", "sonnet\n", "m" * 201)
    ),
]


async def test_what_cannot_be_asked_is_refused_by_name_and_nothing_comes_of_it(
    fleet: Fleet, one: Caller, two: Caller, name: str
) -> None:
    """Messages missing, empty, of no role, without content; numbers out of range; a stream that is neither on nor off.

    With and without a session: an ancestor stored the request before it looked at it.
    """
    async with unchanged(fleet):
        for number, (fields, message, param, code) in enumerate(WRONG):
            caller = (one, two)[number % 2]
            for session in ({}, {"session_id": name}):
                body = {"messages": HELLO, **session, **fields}
                answer = await caller.request("POST", CHAT, json=body)
                assert (answer.status, answer.json) == (400, error(message, param, code)), fields


async def test_the_sdk_is_told_what_is_wrong(sdks: list[AsyncOpenAI]) -> None:
    for client in sdks:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as refused:
                await client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": "Hi"}], temperature=2.5, stream=stream
                )
            assert (refused.value.code, refused.value.param, refused.value.type) == (
                *("invalid_value", "temperature"),
                "invalid_request_error",
            )
            assert (
                refused.value.body
                == error("`temperature` must be a number between 0 and 2.", "temperature", "invalid_value")["error"]
            )


async def test_values_at_the_ends_of_their_ranges_are_taken(one: Caller, two: Caller) -> None:
    lowest: dict[str, Any] = {"temperature": 0, "top_p": 0, "presence_penalty": -2, "frequency_penalty": -2}
    highest: dict[str, Any] = {"temperature": 2, "top_p": 1, "presence_penalty": 2, "frequency_penalty": 2}
    for caller, fields in ((one, lowest), (two, highest | {"top_p": 0.999})):
        assert (await caller.chat("Count to 2", **highest)).text == "1 2"
        answer = await caller.chat("Count to 2", **fields, n=1)
        assert answer.text == "1 2"
        assert answer.headers["x-baton-ignored"] == "frequency_penalty, presence_penalty, temperature, top_p"


async def test_a_body_that_is_not_json_is_the_callers_fault(one: Caller, two: Caller) -> None:
    for caller in (one, two):
        answer = await caller.request("POST", CHAT, data=b'{"messages": [', headers={"content-type": "text/plain"})
        assert answer.status == 400
        assert answer.json == error("The body is not JSON: unexpected end of data (at 14).", None, "invalid_json")


async def test_a_body_over_the_limit_is_413_declared_or_not(one: Caller, two: Caller, fleet: Fleet) -> None:
    async with unchanged(fleet):
        limit = 33_554_432
        told = error(f"The body may have at most {limit} bytes (BATON_BODY_BYTES_MAX).", None, "request_too_large")
        declared = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {limit + 1}\r\n\r\n".encode()
        for caller in (one, two):
            status, _, body = await raw(caller.url, declared)
            assert (status, json.loads(body)) == (413, told)

            async def parts() -> AsyncIterator[bytes]:
                for _ in range(limit // 1_048_576 + 1):
                    yield b" " * 1_048_576

            undeclared = await caller.request("POST", CHAT, data=parts())
            assert (undeclared.status, undeclared.json) == (413, told)
