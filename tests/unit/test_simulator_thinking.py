"""The stand-in's thinking: which model takes which form of it, and what its blocks are bound to."""

import base64
import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.simulator import rules
from service.simulator.errors import ApiError
from service.simulator.models import MODELS
from tests.unit.simulated import LOOK, Json, assistant, message_to, read_events, reply_to, request, stream_text, user

BOUND = "claude-sonnet-5-5"
ALWAYS = "claude-opus-5-5"
UNBOUND = "claude-sonnet-5"
BUDGETED = "claude-haiku-4-5"
SHOWN: Json = {"type": "adaptive", "display": "summarized"}
BUDGET: Json = {"type": "enabled", "budget_tokens": 1024}
EVERY = sorted(MODELS)


def kinds(body: Json) -> list[str]:
    return [block["type"] for block in message_to(body)["content"]]


def refused(body: Json) -> str:
    with pytest.raises(ApiError) as caught:
        rules.check_create(body)
    assert (caught.value.status, caught.value.kind) == (400, "invalid_request_error")
    return caught.value.message


def carried_on(body: Json, *texts: str) -> Json:
    """The request that holds the answer to a request, and so on for each text."""
    for text in texts:
        content = message_to(body)["content"]
        answered = [block["id"] for block in content if block["type"] == "tool_use"]
        results = [{"type": "tool_result", "tool_use_id": call, "content": "seen"} for call in answered]
        turn = [*results, {"type": "text", "text": text}]
        body = {**body, "messages": [*body["messages"], assistant(content), user(turn)]}
    return body


def conversation(model: str = BOUND, thinking: Json | None = SHOWN) -> Json:
    """Three thoughtful answers, the second with calls, and one more question."""
    first = request(user("one"), model=model, tools=[LOOK], system="Be kind.", thinking=thinking)
    return carried_on(first, "call look and call look", "two", "three")


# --- which forms -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", EVERY)
@pytest.mark.parametrize("kind", ["adaptive", "between_tools", "disabled", "enabled"])
def test_a_model_takes_the_forms_it_lists_and_no_other(model: str, kind: str) -> None:
    config = BUDGET if kind == "enabled" else {"type": kind}
    body = request(model=model, max_tokens=2000, thinking=config)
    listed = MODELS[model].info()["capabilities"]["thinking"]["types"][kind]["supported"]
    if listed:
        thinks = kinds(body)[0] == "thinking"
        assert thinks == (kind in ("adaptive", "enabled"))
    else:
        assert refused(body).startswith(f'thinking.type: "{kind}" is not supported on this model')


@pytest.mark.parametrize("model", EVERY)
def test_some_models_think_unasked_and_do_not_show_it(model: str) -> None:
    always = MODELS[model].thinking == {"adaptive"}
    content = message_to(request(model=model))["content"]
    assert [block["type"] for block in content] == (["thinking", "text"] if always else ["text"])
    if always:
        assert content[0]["thinking"] == "" and content[0]["signature"]


@pytest.mark.parametrize(
    ("model", "config", "shown"),
    [
        (BUDGETED, BUDGET, True),
        (BUDGETED, {**BUDGET, "display": "omitted"}, False),
        ("claude-opus-4-6", {"type": "adaptive"}, True),
        ("claude-opus-4-7", {"type": "adaptive"}, False),
        (BOUND, {"type": "adaptive"}, False),
        (BOUND, SHOWN, True),
        (ALWAYS, SHOWN, True),
    ],
)
def test_display(model: str, config: Json, shown: bool) -> None:
    reply = reply_to(request(model=model, max_tokens=2000, thinking=config))
    deltas = [e["delta"]["type"] for e in read_events(stream_text(reply)) if e["type"] == "content_block_delta"]
    assert deltas.count("signature_delta") == 1
    assert deltas[: deltas.index("signature_delta")] == ["thinking_delta"] * (11 if shown else 0)
    assert len(reply.thoughts[0].pieces) == 11
    assert reply.output_tokens == 11 + len(reply.text)


FORMS: list[tuple[str, Any, str]] = [
    (BUDGETED, {"type": "enabled"}, "thinking.enabled.budget_tokens: Field required"),
    (BUDGETED, {**BUDGET, "budget_tokens": 1023}, "thinking.enabled.budget_tokens: Input should be greater"),
    (BUDGETED, {**BUDGET, "budget_tokens": "1024"}, "thinking.enabled.budget_tokens: Input should be a valid integer"),
    (BUDGETED, {**BUDGET, "budget_tokens": True}, "thinking.enabled.budget_tokens: Input should be a valid integer"),
    (BUDGETED, {**BUDGET, "budget_tokens": 2000}, "`max_tokens` must be greater than `thinking.budget_tokens`"),
    (BUDGETED, {**BUDGET, "effort": "high"}, "thinking.enabled.effort: Extra inputs"),
    (BOUND, {"type": "adaptive", "budget_tokens": 1024}, "thinking.adaptive.budget_tokens: Extra inputs"),
    (BOUND, {"type": "adaptive", "display": "updates"}, "thinking.display: "),
    (BOUND, {"type": "adaptive", "block_binding": {}}, "thinking.adaptive.block_binding: Extra inputs"),
    (BOUND, {"type": "between_tools", "display": "omitted"}, "thinking.between_tools.display: Extra inputs"),
    (BOUND, {"type": []}, "thinking.type: "),
    (BOUND, "adaptive", "thinking: Input should be an object"),
]


@pytest.mark.parametrize(("model", "config", "message"), FORMS)
def test_a_wrong_form_is_refused(model: str, config: Any, message: str) -> None:
    assert refused(request(model=model, max_tokens=2000, thinking=config)).startswith(message)


def test_thinking_and_a_forced_call_do_not_go_together() -> None:
    body = request(model=UNBOUND, tools=[LOOK], tool_choice={"type": "any"}, thinking={"type": "adaptive"})
    assert refused(body) == "Thinking may not be enabled when tool_choice forces tool use."
    assert kinds({**body, "thinking": {"type": "disabled"}}) == ["tool_use"]


def test_thinking_between_tools_is_for_their_results() -> None:
    body = request(user("call look"), model=BOUND, tools=[LOOK], thinking={"type": "between_tools"})
    assert kinds(body) == ["tool_use"]
    assert kinds(carried_on(body, "and?")) == ["thinking", "text"]
    assert kinds(carried_on(body, "and?", "well?")) == ["text"]


def test_thinking_counts_against_max_tokens() -> None:
    reply = reply_to(request(max_tokens=5, thinking=SHOWN))
    assert (len(reply.thoughts[0].pieces), reply.text, reply.stop_reason) == (5, (), "max_tokens")


def test_phrases_command_redacted_blocks_and_blocks_between() -> None:
    said = "Count to 2, think between, call look and call look"
    body = request(user(said), model=ALWAYS, tools=[LOOK])
    assert kinds(body) == ["thinking", "text", "thinking", "tool_use", "thinking", "tool_use"]
    secret = request(user(f"{said}. Think in secret!"), model=ALWAYS, tools=[LOOK])
    assert kinds(secret) == [kind.replace("thinking", "redacted_thinking") for kind in kinds(body)]
    without = request(user(said), model=UNBOUND, tools=[LOOK])
    assert kinds(without) == ["text", "tool_use", "tool_use"]


# --- what the blocks are bound to ------------------------------------------------------------------------------


def thoughts(body: Json) -> list[tuple[Json, int]]:
    """Each thinking block with the content list it is in."""
    return [
        (message, index)
        for message in body["messages"]
        if message["role"] == "assistant"
        for index, block in enumerate(message["content"])
        if "thinking" in block["type"]
    ]


def drop(body: Json, *which: int) -> None:
    for message, index in [thoughts(body)[number] for number in which]:
        message["content"][index] = None
    for message in body["messages"]:
        if isinstance(message["content"], list):
            message["content"] = [block for block in message["content"] if block is not None]


@pytest.mark.parametrize("model", EVERY)
@pytest.mark.parametrize("phrases", ["", "Think in secret.", "Think between.", "Think between, think in secret."])
def test_what_comes_back_as_it_was_is_accepted(model: str, phrases: str) -> None:
    config = BUDGET if "enabled" in MODELS[model].thinking else {"type": "adaptive"}
    first = request(user(f"one {phrases}"), model=model, max_tokens=2000, tools=[LOOK], thinking=config)
    body = carried_on(first, f"count to 2, call look and call look {phrases}", "two", "three")
    assert len(thoughts(body)) >= 3
    assert rules.check_create(body).prompt.tokens > 0


UNCHANGED: list[tuple[str, Callable[[Json], object]]] = [
    ("a marker in the system", lambda b: b.update(system=[{"type": "text", "text": "Be kind."}])),
    (
        "markers everywhere",
        lambda b: [
            b.update(cache_control={"type": "ephemeral"}),
            b["tools"].__setitem__(0, {**LOOK, "cache_control": {"type": "ephemeral"}}),
            b["messages"][2]["content"][0].update(cache_control={"type": "ephemeral"}),
        ],
    ),
    ("a string as a block", lambda b: b["messages"][0].update(content=[{"type": "text", "text": "one"}])),
    ("fields that are null", lambda b: b["messages"][1]["content"][1].update(citations=None)),
    (
        "fields in another order",
        lambda b: b["messages"][1]["content"].__setitem__(1, dict(reversed(b["messages"][1]["content"][1].items()))),
    ),
    (
        "an answer in two messages",
        lambda b: b["messages"].__setitem__(slice(1, 2), [assistant([block]) for block in b["messages"][1]["content"]]),
    ),
    ("other limits", lambda b: b.update(max_tokens=7, thinking={"type": "adaptive"}, tool_choice={"type": "none"})),
    ("more behind", lambda b: b["messages"].append(user("more"))),
    ("no thinking at all", lambda b: drop(b, 0, 1, 2)),
    ("only the last", lambda b: drop(b, 0, 1)),
    ("not the oldest", lambda b: drop(b, 0)),
    ("not the newest", lambda b: drop(b, 2)),
]


@pytest.mark.parametrize("change", [pytest.param(c, id=i) for i, c in UNCHANGED])
def test_what_claude_reads_the_same_is_no_change(change: Callable[[Json], object]) -> None:
    body = conversation()
    change(body)
    rules.check_create(body)


CHANGED: list[tuple[str, Callable[[Json], object], str]] = [
    ("another system", lambda b: b.update(system="Be kind!"), "messages.1.content.0"),
    ("no system", lambda b: b.pop("system"), "messages.1.content.0"),
    ("another tool more", lambda b: b["tools"].append({**LOOK, "name": "add"}), "messages.1.content.0"),
    ("another description", lambda b: b.update(tools=[{**LOOK, "description": "x"}]), "messages.1.content.0"),
    (
        "the system said by the user",
        lambda b: b["messages"][0].update(
            content=[{"type": "text", "text": said} for said in (b.pop("system"), "one")]
        ),
        "messages.1.content.0",
    ),
    ("an earlier text", lambda b: b["messages"][0].update(content="One"), "messages.1.content.0"),
    ("an earlier turn gone", lambda b: b["messages"].__delitem__(slice(2)), "messages.1.content.0"),
    (
        "an earlier answer",
        lambda b: b["messages"][1]["content"][1].update(text="Never mind."),
        "messages.3.content.0",
    ),
    ("a result", lambda b: b["messages"][4]["content"][1].update(content="unseen"), "messages.5.content.0"),
    (
        "results in another order",
        lambda b: b["messages"][4].update(content=[b["messages"][4]["content"][i] for i in (1, 0, 2)]),
        "messages.5.content.0",
    ),
    ("one between others gone", lambda b: drop(b, 1), "messages.5.content.0"),
    ("behind its text", lambda b: b["messages"][1]["content"].reverse(), "messages.1.content.1"),
]


@pytest.mark.parametrize(("change", "path"), [pytest.param(c, p, id=i) for i, c, p in CHANGED])
def test_a_block_behind_another_prefix_is_refused(change: Callable[[Json], object], path: str) -> None:
    body = conversation()
    change(body)
    message = refused(body)
    assert message.startswith(f"{path}: Invalid `signature` in `thinking` block. The block is bound to a different")


def test_blocks_that_changed_places_are_refused() -> None:
    body = carried_on(request(user("count to 2, call look. Think between."), model=ALWAYS, tools=[LOOK]), "and?")
    content = body["messages"][1]["content"]
    assert [block["type"] for block in content] == ["thinking", "text", "thinking", "tool_use"]
    content[0], content[2] = content[2], content[0]
    assert "bound to a different conversation" in refused(body)


def test_a_block_between_others_of_one_message_may_not_go() -> None:
    first = request(user("count to 2, call look and call look. Think between."), model=ALWAYS, tools=[LOOK])
    body = carried_on(first, "and?")
    drop(body, 1)
    assert refused(body).startswith("messages.1.content.3: Invalid `signature` in `thinking` block. The block is bound")


@pytest.mark.parametrize("model", [UNBOUND, BUDGETED])
@pytest.mark.parametrize("change", [pytest.param(c, id=i) for i, c, _ in CHANGED])
def test_without_preserved_thinking_the_prefix_does_not_matter(model: str, change: Callable[[Json], object]) -> None:
    first = request(user("one"), model=model, max_tokens=2000, tools=[LOOK], system="Be kind.")
    first["thinking"] = SHOWN if model == UNBOUND else BUDGET
    body = carried_on(first, "call look and call look", "two", "three")
    change(body)
    rules.check_create(body)


def test_anothers_signature_is_refused() -> None:
    body = conversation()
    body["messages"][1]["content"][0]["signature"] = body["messages"][3]["content"][0]["signature"]
    assert refused(body) == "messages.1.content.0: Invalid `signature` in `thinking` block."


@pytest.mark.parametrize("model", [BOUND, UNBOUND, ALWAYS])
@pytest.mark.parametrize(
    "changes",
    [
        {"thinking": "Something else."},
        {"thinking": ""},
        {"signature": ""},
        {"signature": "c2lnbmVk"},
        {"signature": "no base64"},
        {"signature": base64.b64encode(bytes(200)).decode()},
    ],
    ids=str,
)
def test_a_changed_block_is_refused(model: str, changes: Json) -> None:
    body = conversation(model)
    body["messages"][1]["content"][0].update(changes)
    assert refused(body) == "messages.1.content.0: Invalid `signature` in `thinking` block."


def test_withheld_text_comes_back_empty_or_not_at_all() -> None:
    body = conversation(ALWAYS, None)
    rules.check_create(body)
    body["messages"][1]["content"][0]["thinking"] = "The caller sent 1 messages; the answer follows from the last."
    assert refused(body) == "messages.1.content.0: Invalid `signature` in `thinking` block."


@pytest.mark.parametrize("text", ["Hi.", "Hi. Think in secret."])
def test_seals_count_no_tokens(text: str) -> None:
    body = carried_on(request(user(text), model=ALWAYS), "and?")
    bare = copy.deepcopy(body)
    drop(bare, 0)
    assert rules.check_create(body).prompt.tokens == rules.check_create(bare).prompt.tokens


def test_redacted_data_is_bound_as_well() -> None:
    body = carried_on(request(user("Think in secret."), model=ALWAYS), "and?")
    changed = copy.deepcopy(body)
    changed["messages"][0]["content"] = "Think in secret!"
    message = "messages.1.content.0: Invalid `data` in `redacted_thinking` block."
    assert refused(changed).startswith(f"{message} The block is bound to a different conversation")
    data = body["messages"][1]["content"][0]["data"]
    body["messages"][1]["content"][0]["data"] = data[:-4] + "AAA="
    assert refused(body) == message
    body["messages"][1]["content"][0] = {"type": "thinking", "thinking": "", "signature": data}
    assert refused(body) == "messages.1.content.0: Invalid `signature` in `thinking` block."


def test_what_another_model_thought_is_dropped_in_silence() -> None:
    body = conversation(ALWAYS, SHOWN)
    others = {**body, "model": BOUND, "system": "Another."}
    bare = copy.deepcopy(others)
    drop(bare, 0, 1, 2)
    texts = [[part.block for part in rules.check_create(one).prompt.parts] for one in (others, bare)]
    assert texts[0] == texts[1]
    back = {**carried_on({**body, "model": BOUND}, "four"), "model": ALWAYS}
    assert len(thoughts(back)) == 4
    rules.check_create(back)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(st.lists(st.sampled_from(["one", "call look", "think between, call look", "think in secret"]), max_size=5))
def test_a_block_may_go_from_the_ends_and_never_from_between(texts: list[str]) -> None:
    body = carried_on(request(user("hello"), model=ALWAYS, tools=[LOOK]), *texts, "well?")
    total = len(thoughts(body))
    for number in range(total):
        changed = copy.deepcopy(body)
        drop(changed, number)
        if number in (0, total - 1):
            rules.check_create(changed)
        else:
            assert "is bound to a different conversation" in refused(changed)
