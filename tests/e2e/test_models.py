"""``/v1/models`` in the shapes of both APIs, read by the SDKs of both; and what a replica makes of what it learns."""

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import anthropic
import openai
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from tests.e2e.caller import Answer, Caller, eventually
from tests.instruments.processes import Fleet, Replica, Simulator

pytestmark = pytest.mark.anyio

VERSION = {"anthropic-version": "2026-10-21"}
ALIAS, MODEL = "gpt-4o", "claude-opus-5-5"  # as the hasty replica has them


@pytest.fixture
async def claudes(simulator: Simulator, impatient: Caller) -> list[Any]:
    """The models as Claude's API tells them."""
    headers = {**VERSION, "x-api-key": "unused"}
    told = await Caller(impatient.http, simulator.url).request("GET", "/v1/models?limit=1000", headers=headers)
    models: list[Any] = told.json["data"]
    assert len(models) > 4
    return models


@pytest.fixture
async def anthropics(hasty: Replica) -> AsyncIterator[AsyncAnthropic]:
    """Anthropic's SDK as installed."""
    async with AsyncAnthropic(base_url=hasty.url, api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
async def openais(hasty: Replica) -> AsyncIterator[AsyncOpenAI]:
    """OpenAI's SDK as installed."""
    async with AsyncOpenAI(base_url=f"{hasty.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


async def ask(caller: Caller, query: str) -> Answer:
    return await caller.request("GET", f"/v1/models{query}", headers=VERSION)


def aliased(claudes: list[Any]) -> Any:
    (model,) = (one for one in claudes if one["id"] == MODEL)
    return {**model, "id": ALIAS}


async def test_anthropics_shape_is_that_of_claude_and_an_alias_is_a_copy(impatient: Caller, claudes: list[Any]) -> None:
    everything = [*claudes, aliased(claudes)]
    answer = await ask(impatient, "?limit=1000")
    assert (answer.status, answer.headers["request-id"]) == (200, answer.headers["x-request-id"])
    assert answer.json == {"data": everything, "has_more": False, "first_id": claudes[0]["id"], "last_id": ALIAS}
    assert (await ask(impatient, "")).json == answer.json
    for model in everything:
        assert (await ask(impatient, f"/{model['id']}")).json == model


async def test_anthropics_sdk_reads_them(anthropics: AsyncAnthropic, claudes: list[Any]) -> None:
    ids = [*(model["id"] for model in claudes), ALIAS]
    assert [model.id async for model in anthropics.models.list()] == ids
    for limit in (1, 3, 4, len(ids), 1000):
        assert [model.id async for model in anthropics.models.list(limit=limit)] == ids
    behind = anthropics.models.list(limit=2, after_id=ids[1])
    assert [model.id async for model in behind] == ids[2:]
    page = await anthropics.models.list(limit=2, before_id=ids[5])
    assert ([model.id for model in page.data], page.has_more) == (ids[3:5], True)
    page = await page.get_next_page()
    assert ([model.id for model in page.data], page.has_more) == (ids[1:3], True)

    alias = await anthropics.models.retrieve(ALIAS)
    model = await anthropics.models.retrieve(MODEL)
    assert alias.to_dict() == {**model.to_dict(), "id": ALIAS}
    assert alias.display_name == model.display_name == aliased(claudes)["display_name"]
    assert model.capabilities is not None
    assert model.capabilities.thinking.types.adaptive.supported


async def test_openais_sdk_reads_them(openais: AsyncOpenAI, claudes: list[Any]) -> None:
    models = [model.to_dict() async for model in openais.models.list()]
    rest = {"object": "model", "created": 0, "owned_by": "anthropic"}
    assert models == [{"id": name, **rest} for name in [*(model["id"] for model in claudes), ALIAS]]
    assert (await openais.models.retrieve(ALIAS)).to_dict() == {"id": ALIAS, **rest}


@pytest.mark.parametrize(
    "name", ["claude-0", "meta/llama", "a/../b", "models", "ü ß", "a\0b\x7f", "%", "?x=1", "x" * 300]
)
async def test_a_model_that_there_is_not_is_told_in_the_dialect_of_the_question(
    impatient: Caller, anthropics: AsyncAnthropic, openais: AsyncOpenAI, name: str
) -> None:
    with pytest.raises(openai.NotFoundError) as in_openais:
        await openais.models.retrieve(name)
    assert (in_openais.value.code, in_openais.value.param) == ("model_not_found", "model")
    with pytest.raises(anthropic.NotFoundError) as in_anthropics:
        await anthropics.models.retrieve(name)
    error = in_anthropics.value
    assert isinstance(error.body, dict)
    assert (error.type, error.body["request_id"]) == ("not_found_error", error.request_id)

    quoted = quote(name, safe="")
    plain = await impatient.get(f"/v1/models/{quoted}")
    assert (plain.status, plain.code) == (404, "model_not_found")
    assert "request-id" not in plain.headers


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("after_id=claude-0", "after_id"),
        ("before_id=", "before_id"),
        (f"after_id={MODEL}&before_id={MODEL}", "before_id"),
        ("lifecycle=active", "lifecycle"),
        ("lifecycle[]=retired", "lifecycle"),
    ],
)
async def test_a_page_that_cannot_be_is_refused_in_anthropics_shape(impatient: Caller, query: str, param: str) -> None:
    answer = await ask(impatient, f"?{query}")
    assert (answer.status, answer.json["type"], answer.json["error"]["type"]) == (400, "error", "invalid_request_error")
    assert answer.json["error"]["message"].startswith(f"`{param}`")
    assert answer.json["request_id"] == answer.headers["request-id"]
    assert answer.headers["x-should-retry"] == "false"


async def test_the_ends_of_the_list(impatient: Caller, claudes: list[Any]) -> None:
    empty = {"data": [], "has_more": False, "first_id": None, "last_id": None}
    assert (await ask(impatient, f"?after_id={ALIAS}")).json == empty
    assert (await ask(impatient, f"?before_id={claudes[0]['id']}")).json == empty
    assert (await ask(impatient, f"?limit=2&before_id={claudes[2]['id']}")).json["has_more"] is False


async def test_a_wrong_method_is_told_in_the_dialect_too(impatient: Caller) -> None:
    answer = await impatient.request("POST", "/v1/models", headers=VERSION)
    assert (answer.status, answer.json["type"]) == (405, "error")
    assert (await impatient.request("POST", "/v1/models")).code == "method_not_allowed"


async def test_a_replica_asks_for_the_models_when_it_starts_and_no_answer_is_longer_than_its_model_can_make_it(
    fleet: Fleet, impatient: Caller, simulator: Simulator, name: str
) -> None:
    replica = await fleet.add_replica(http_stall=True, env={"BATON_MAX_TOKENS_DEFAULT": "128000"})
    stall = replica.http_stall
    assert stall is not None

    async def asked() -> bool:
        return bool(stall.requests)

    await eventually(asked, "the question for the models")
    caller = Caller(impatient.http, replica.url)
    assert (await caller.get("/v1/models")).status == 200  # waits for the answer to that one
    assert [(one.method, one.target) for one in stall.requests] == [("GET", "/v1/models?limit=1000")]

    for model, length in (("claude-haiku-4-5", 64_000), (MODEL, 128_000)):
        assert (await caller.chat(f"Hello {name}.", model=model)).status == 200
        (sent,) = await simulator.requests(limit=1)
        assert (sent["body"]["model"], sent["body"]["max_tokens"]) == (model, length)


async def test_a_claude_that_does_not_tell_its_models_keeps_no_replica_from_starting(
    fleet: Fleet, impatient: Caller
) -> None:
    replica = await fleet.add_replica(env={"ANTHROPIC_BASE_URL": "http://127.0.0.1:1"})
    caller = Caller(impatient.http, replica.url)

    async def logged() -> bool:
        return bool(replica.events("models_not_listed"))

    await eventually(logged, "the failure in the log")
    assert (await caller.get("/livez")).status == 200
    assert (await caller.get("/v1/models")).code == "upstream_unavailable"
    refused = await ask(caller, "")
    assert (refused.status, refused.json["error"]["type"]) == (503, "overloaded_error")
