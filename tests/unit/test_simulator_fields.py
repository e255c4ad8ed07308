"""The stand-in on everything around the conversation: versions, beta features, small fields."""

from collections.abc import Mapping

import pytest

from service.simulator import rules
from service.simulator.errors import ApiError
from service.simulator.headers import PRESENT, Terms, check_headers
from service.simulator.models import EFFORTS, MODELS
from tests.unit.simulated import (
    CALL,
    DOCUMENT,
    SYSTEM_MODEL,
    TEXT,
    Json,
    assistant,
    request,
    system,
    user,
)

OLD = Terms(old=True)
BETA = Terms(beta=True)


def refused(body: Json, terms: Terms = PRESENT) -> str:
    with pytest.raises(ApiError) as caught:
        rules.check_create(body, terms)
    assert (caught.value.status, caught.value.kind) == (400, "invalid_request_error")
    return caught.value.message


# --- versions and betas ----------------------------------------------------------------------------------------


def headers(**named: str) -> Mapping[str, str]:
    return {"x-api-key": "k", **{name.replace("_", "-"): value for name, value in named.items()}}


@pytest.mark.parametrize(
    ("version", "beta", "terms"),
    [
        ("2026-10-21", "", PRESENT),
        ("2026-10-21", " , ", PRESENT),
        ("2026-10-21", "context-management-2025-06-27, x", BETA),
        ("2023-06-01", "", OLD),
    ],
)
def test_headers_decide_which_rules_hold(version: str, beta: str, terms: Terms) -> None:
    assert check_headers(headers(anthropic_version=version, anthropic_beta=beta)) == terms


@pytest.mark.parametrize("version", ["", "2023-01-01", "2026-10-22", "latest"])
def test_any_other_version_is_refused(version: str) -> None:
    with pytest.raises(ApiError, match="anthropic-version: "):
        check_headers(headers(anthropic_version=version))


SAMPLING: list[tuple[str, Json, str]] = [
    ("claude-opus-4-6", {"temperature": 0.2, "top_k": 5}, ""),
    ("claude-haiku-4-5", {"top_p": 0.9}, ""),
    ("claude-haiku-4-5", {"temperature": 1.1}, "temperature: Input should be"),
    ("claude-haiku-4-5", {"temperature": "1"}, "temperature: Input should be"),
    ("claude-haiku-4-5", {"top_k": 0.5}, "top_k: Input should be"),
    ("claude-opus-4-7", {"temperature": 1.0, "top_p": 1, "top_k": None}, ""),
    ("claude-opus-4-7", {"temperature": 0.9}, "temperature: values other than the default"),
    ("claude-sonnet-5-5", {"top_p": 0.5}, "top_p: values other than the default"),
    ("claude-sonnet-5-5", {"top_k": 1}, "top_k: values other than the default"),
]


@pytest.mark.parametrize(("model", "fields", "message"), SAMPLING)
def test_sampling_parameters_are_of_the_old_version(model: str, fields: Json, message: str) -> None:
    body = request(model=model, **fields)
    assert "sampling parameters are not accepted as of API version 2026-10-21" in refused(body)
    if message:
        assert refused(body, OLD).startswith(message)
    else:
        rules.check_create(body, OLD)


def test_the_old_version_takes_documents_of_the_assistant_and_citations_of_the_user() -> None:
    cited = {**TEXT, "citations": [{"type": "char_location"}]}
    body = request(user([cited]), assistant([DOCUMENT]), user("x"))
    rules.check_create(body, OLD)
    assert refused(body) == "messages.0.content.0.text.citations: citations are not permitted in user messages"
    assert refused(request(user([CALL])), OLD).endswith("`tool_use` blocks are not permitted in user messages")
    body["messages"][0] = user("x")
    assert refused(body) == "messages.1.content.0.type: `document` blocks are not permitted in assistant messages"


BETA_FIELDS: list[tuple[str, Json]] = [
    *((name, request(**{name: {}})) for name in ("thread", "context_management", "compaction", "fallbacks")),
    *((name, request(**{name: []})) for name in ("mcp_servers", "billing_policy", "fallback_credit_token")),
    ("output_config.task_budget", request(output_config={"task_budget": {}})),
    ("thinking.adaptive.block_binding", request(thinking={"type": "adaptive", "block_binding": {}})),
    ("messages.1.clear_at", request(user("x"), {**system("y"), "clear_at": "x"}, model=SYSTEM_MODEL)),
]


@pytest.mark.parametrize(("name", "body"), BETA_FIELDS, ids=[name for name, _ in BETA_FIELDS])
def test_a_field_of_a_beta_feature_needs_a_beta_header(name: str, body: Json) -> None:
    assert refused(body) == f"{name}: Extra inputs are not permitted"
    rules.check_create(body, BETA)


def test_a_beta_header_does_not_make_every_field_known() -> None:
    assert refused(request(mood="good"), BETA) == "mood: Extra inputs are not permitted"


# --- small fields ----------------------------------------------------------------------------------------------

WRONG: list[tuple[Json, str]] = [
    ({"metadata": {"user_id": 5}}, "metadata.user_id: Input should be a valid string"),
    ({"metadata": {"user_id": "x" * 257}}, "metadata.user_id: String should have at most 256"),
    ({"metadata": {"email": "a"}}, "metadata.email: Extra inputs"),
    ({"container": 5}, "container: Input should be an object"),
    ({"container": {"id": 5}}, "container.id: Input should be a valid string"),
    ({"container": {"name": "x"}}, "container.name: Extra inputs"),
    ({"inference_geo": 5}, "inference_geo: Input should be a valid string"),
    ({"diagnostics": {"previous_message_id": 5}}, "diagnostics.previous_message_id: Input should be"),
    ({"service_tier": "priority"}, "service_tier: "),
    ({"speed": "slow"}, "speed: "),
    ({"output_config": []}, "output_config: Input should be an object"),
    ({"output_config": {"verbosity": "low"}}, "output_config.verbosity: Extra inputs"),
    ({"output_config": {"effort": "extreme"}}, "output_config.effort: Input should be 'low' or"),
    ({"output_config": {"effort": ["low"]}}, "output_config.effort: Input should be 'low' or"),
    ({"output_config": {"format": {"type": "json_object"}}}, "output_config.format.type: "),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema: Field required"),
    (
        {"output_config": {"format": {"type": "json_schema", "schema": {}, "name": "x"}}},
        "output_config.format.name: Extra inputs",
    ),
]


@pytest.mark.parametrize(("fields", "message"), WRONG)
def test_a_wrong_field_is_refused(fields: Json, message: str) -> None:
    assert refused(request(**fields)).startswith(message)


def test_right_fields_are_accepted() -> None:
    rules.check_create(
        request(
            metadata={"user_id": "u"},
            container={"id": "container_1", "skills": []},
            inference_geo="eu",
            diagnostics={"previous_message_id": None},
            service_tier="standard_only",
            speed="fast",
            output_config={"effort": "max"},
        )
    )


@pytest.mark.parametrize("model", sorted(MODELS))
def test_a_model_takes_the_efforts_it_lists(model: str) -> None:
    listed = MODELS[model].info()["capabilities"]["effort"]
    for effort in EFFORTS:
        body = request(model=model, output_config={"effort": effort})
        if listed["supported"] and listed[effort]["supported"]:
            rules.check_create(body)
        else:
            assert refused(body).startswith("output_config.effort: ")
