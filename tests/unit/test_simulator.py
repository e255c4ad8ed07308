"""The stand-in for Claude: its rules, its answers, its streams and its faults, seen with the real SDK and raw.

One simulator process serves the whole file; each test that queues faults clears them first.
"""

import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import anthropic
import httpx2
import pytest
from anthropic import AsyncAnthropic, AsyncStream
from anthropic.types import Message, ModelInfo, RawMessageStreamEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from service.simulator import answers, calls, events, rules
from service.simulator.errors import ApiError
from service.simulator.faults import Fault, FaultQueue, Pace, parse_fault, parse_pace
from service.simulator.journal import BODY_BYTES_KEPT_MAX, KEPT, Journal
from service.simulator.models import MODELS, list_models

T = TypeVar("T")

DEADLINE_S = 10.0
MODEL = "claude-sonnet-5-5"
SYSTEM_MODEL = "claude-opus-5-5"
PREFILL_MODEL = "claude-haiku-4-5"
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


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


def request(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 1000, "messages": list(messages) or [user("hello")], **fields}


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in request().items() if key != name}


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


def read_events(text: str) -> list[dict[str, Any]]:
    """Parse a stream strictly: `event`, `data`, blank line, the two names equal."""
    assert text.endswith("\n\n")
    parsed = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        event_line, data_line = block.split("\n")
        data = json.loads(data_line.removeprefix("data: "))
        assert event_line == f"event: {data['type']}"
        parsed.append(data)
    return parsed


def text_of(parsed: list[dict[str, Any]]) -> str:
    return "".join(e["delta"].get("text", "") for e in parsed if e["type"] == "content_block_delta")


# --- the rules -------------------------------------------------------------------------------------------------

CALL = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "seen"}
LOOK = {"name": "look", "input_schema": {"type": "object"}}
TEXT = {"type": "text", "text": "then"}
DOCUMENT = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}
CITED = {"type": "text", "text": "x", "citations": [{"type": "char_location"}]}

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("unknown field", request(mood="good"), "mood: Extra inputs are not permitted"),
    ("beta field", request(context_management={}), "context_management: Extra inputs are not permitted"),
    ("temperature", request(temperature=1.0), "temperature: "),
    ("top_p", request(top_p=1), "top_p: "),
    ("top_k", request(top_k=1), "top_k: "),
    ("no model", without("model"), "model: Field required"),
    ("model of a wrong type", request(model=5), "model: Input should be a valid string"),
    ("no max_tokens", without("max_tokens"), "max_tokens: Field required"),
    ("max_tokens as a string", request(max_tokens="5"), "max_tokens: Input should be a valid integer"),
    ("max_tokens as a truth value", request(max_tokens=True), "max_tokens: Input should be a valid integer"),
    ("max_tokens below 0", request(max_tokens=-1), "max_tokens: Input should be greater"),
    ("max_tokens above the model's", request(max_tokens=128_001), "max_tokens: 128001 > 128000"),
    ("stream as a string", request(stream="yes"), "stream: "),
    ("stop_sequences as a string", request(stop_sequences="x"), "stop_sequences: "),
    ("a stop sequence of a wrong type", request(stop_sequences=["x", 1]), "stop_sequences.1: "),
    ("a blank stop sequence", request(stop_sequences=[" \n"]), "stop_sequences.0: "),
    ("service_tier", request(service_tier="best"), "service_tier: "),
    ("speed", request(speed="ludicrous"), "speed: "),
    ("metadata", request(metadata="me"), "metadata: "),
    ("thinking", request(thinking={"type": "deep"}), "thinking.type: "),
    ("thinking display", request(thinking={"type": "adaptive", "display": "all"}), "thinking.display: "),
    ("tools", request(tools={}), "tools: "),
    ("a tool of a wrong type", request(tools=["look"]), "tools.0: "),
    ("a tool without schema", request(tools=[{"name": "look"}]), "tools.0.custom.input_schema: "),
    ("two tools of a name", request(tools=[LOOK, LOOK]), "tools: Tool names"),
    ("system", request(system=5), "system: "),
    ("an empty system block", request(system=[{"type": "text", "text": ""}]), "system.0.text: "),
    ("an image as system", request(system=[{"type": "image", "source": {}}]), "system.0.type: "),
    ("no messages", without("messages"), "messages: Field required"),
    ("messages of a wrong type", request(messages="hello"), "messages: Input should be a valid list"),
    ("no message", request(messages=[]), "messages: at least one message is required"),
    ("a message of a wrong type", request("hello"), "messages.0: "),
    ("a message without role", request({"content": "x"}), "messages.0.role: Field required"),
    ("a message without content", request({"role": "user"}), "messages.0.content: Field required"),
    ("a field too many in a message", request({**user("x"), "id": "m"}), "messages.0.id: Extra inputs"),
    ("an unknown role", request(user("x"), {"role": "tool", "content": "x"}), "messages.1.role: Input should be"),
    ("assistant first", request(assistant("x"), user("x")), "messages.0.role: first message must"),
    ("system first", request(system("x"), user("x"), model=SYSTEM_MODEL), "messages.0.role: first message must"),
    ("system on other models", request(user("x"), system("y")), "messages.1.role: role 'system' is not supported"),
    (
        "system behind an answer",
        request(user("x"), assistant("y"), system("z"), user("x"), model=SYSTEM_MODEL),
        "messages.2.role: a system message must follow",
    ),
    (
        "system ahead of the user",
        request(user("x"), system("z"), user("x"), model=SYSTEM_MODEL),
        "messages.1.role: a system message must be last",
    ),
    (
        "a block other than text in a system message",
        request(user("x"), system([{"type": "image", "source": {}}]), model=SYSTEM_MODEL),
        "messages.1.content.0.type: ",
    ),
    ("a prefill", request(user("x"), assistant("I")), "messages.1.role: This model does not support assistant"),
    (
        "a prefill with space at its end",
        request(user("x"), assistant("I "), model=PREFILL_MODEL),
        "messages.1: final assistant content",
    ),
    ("an empty text", request(user("")), "messages.0.content: text content blocks must be non-empty"),
    ("a blank text", request(user(" \n")), "messages.0.content: text content blocks must contain"),
    ("no blocks", request(user([])), "messages.0.content: all messages"),
    ("content of a wrong type", request(user(5)), "messages.0.content: Input should be"),
    ("an empty text block", request(user([{"type": "text", "text": ""}])), "messages.0.content.0.text: "),
    ("a blank text block", request(user([TEXT, {"type": "text", "text": "\t"}])), "messages.0.content.1.text: "),
    ("a block of a wrong type", request(user(["x"])), "messages.0.content.0: "),
    ("an unknown block", request(user([{"type": "input_text", "text": "x"}])), "messages.0.content.0.type: "),
    ("a text block without text", request(user([{"type": "text"}])), "messages.0.content.0.text.text: Field"),
    ("a number as text", request(user([{"type": "text", "text": 1}])), "messages.0.content.0.text.text: Input"),
    ("a field too many in a block", request(user([{**TEXT, "id": 1}])), "messages.0.content.0.text.id: Extra"),
    ("citations of the user", request(user([CITED])), "messages.0.content.0.text.citations: "),
    ("a document of the assistant", request(user("x"), assistant([DOCUMENT])), "messages.1.content.0.type: "),
    ("a call of the user", request(user([CALL])), "messages.0.content.0.type: `tool_use` blocks"),
    (
        "tool input of a wrong type",
        request(user("x"), assistant([{**CALL, "input": "{}"}]), user([RESULT])),
        "messages.1.content.0.tool_use.input: ",
    ),
    ("a call without result", request(user("x"), assistant([CALL]), user("y")), "messages.1.content.0: `tool_use`"),
    ("a late result", request(user("x"), assistant([CALL]), user([TEXT, RESULT])), "messages.1.content.0: `tool_use`"),
    ("a result without call", request(user([RESULT])), "messages.0.content.0: unexpected `tool_use_id`"),
    (
        "a result twice",
        request(user("x"), assistant([CALL]), user([RESULT, RESULT])),
        "messages.2.content.1: unexpected `tool_use_id`",
    ),
    (
        "one id for two calls",
        request(user("x"), assistant([CALL, CALL]), user([RESULT])),
        "messages.1.content.1: `tool_use` ids must be unique",
    ),
    ("a result of a wrong type", request(user([{**RESULT, "content": 5}])), "messages.0.content.0.tool_result.content"),
    (
        "an empty text in a result",
        request(user("x"), assistant([CALL]), user([{**RESULT, "content": [{"type": "text", "text": ""}]}])),
        "messages.2.content.0.tool_result.content.0.text: ",
    ),
    (
        "a result's block of a wrong type",
        request(user("x"), assistant([CALL]), user([{**RESULT, "content": [{"type": []}]}])),
        "messages.2.content.0.tool_result.content.0.type: ",
    ),
    ("too long a prompt", request(user("x" * 800_001), model=PREFILL_MODEL), "prompt is too long: 200001 tokens"),
]


@pytest.mark.parametrize(("body", "message"), [pytest.param(b, m, id=i) for i, b, m in REFUSED])
def test_refuses(body: dict[str, Any], message: str) -> None:
    with pytest.raises(ApiError) as caught:
        rules.check_create(body)
    assert caught.value.kind == "invalid_request_error"
    assert caught.value.status == 400
    assert caught.value.message.startswith(message)


ACCEPTED: list[tuple[str, dict[str, Any]]] = [
    ("neighbours of one role", request(user("x"), user("y"), assistant("a"), assistant("b"), user("z"))),
    ("system behind the user", request(user("x"), system("s"), assistant("y"), user("z"), model=SYSTEM_MODEL)),
    ("system at the end", request(user("x"), system([TEXT]), system("t"), model="claude-opus-4-8")),
    (
        "system behind Anthropic's own tool",
        request(
            user("x"),
            assistant([{"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}]),
            system("s"),
            model=SYSTEM_MODEL,
        ),
    ),
    ("a prefill on an old model", request(user("x"), assistant("I"), model=PREFILL_MODEL)),
    (
        "calls and results",
        request(
            user("x"),
            assistant([{"type": "thinking", "thinking": "", "signature": "s"}, TEXT, {**CALL, "caller": None}]),
            user([{**RESULT, "content": [TEXT]}, TEXT]),
            tools=[LOOK, {"type": "web_search_20260101"}],
        ),
    ),
    ("results in two messages", request(user("x"), assistant([CALL]), user([RESULT]), user("y"), tools=[LOOK])),
    ("an answer with citations null", request(user("x"), assistant([{**TEXT, "citations": None}]), user("y"))),
    ("a document", request(user([DOCUMENT, {"type": "image", "source": {}}, TEXT]))),
    ("max_tokens 0", request(max_tokens=0)),
    ("nulls", request(stream=None, stop_sequences=None, system=None, cache_control=None, thinking=None)),
    ("a container's id", request(container="container_1", metadata={"user_id": "u"}, system=[TEXT])),
]


@pytest.mark.parametrize("body", [pytest.param(b, id=i) for i, b in ACCEPTED])
def test_accepts(body: dict[str, Any]) -> None:
    assert rules.check_create(body) > 0


def test_an_unknown_model_is_not_found() -> None:
    with pytest.raises(ApiError, match="model: claude-2") as caught:
        rules.check_create(request(model="claude-2"))
    assert (caught.value.status, caught.value.kind) == (404, "not_found_error")


def test_count_tokens_takes_fewer_fields() -> None:
    assert rules.check_count({"model": MODEL, "messages": [user("x" * 9)]}) == 3
    with pytest.raises(ApiError, match="max_tokens: Extra inputs"):
        rules.check_count(request())


def test_input_tokens_do_not_depend_on_the_form_of_the_text() -> None:
    as_string = rules.input_tokens(request(user("é" * 10), system="s" * 4))
    as_blocks = rules.input_tokens(request(user([{"type": "text", "text": "é" * 10}]), system=[{"text": "s" * 4}]))
    assert as_string == as_blocks == 6


def test_input_tokens_survives_deep_nesting() -> None:
    deep: Any = "xxxx"
    for _ in range(5000):
        deep = {"a": [deep]}
    assert rules.input_tokens({"messages": [deep]}) == 1


SCALARS = st.sampled_from([None, True, 0, 1, 1.5, "", " ", "text", "user", "assistant", "system", MODEL, PREFILL_MODEL])
NAMES = st.sampled_from(["type", "text", "content", "role", "id", "tool_use_id", "input", "name", "thinking", "data"])
ANY_JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3))
BLOCK_LIKE = st.builds(
    lambda kind, fields: {**fields, "type": kind},
    st.sampled_from(["text", "tool_use", "tool_result", "thinking", "image", "document", "server_tool_use", None, []]),
    st.dictionaries(NAMES, ANY_JSON, max_size=4),
)
MESSAGE_LIKE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", None, []]), "content": st.lists(BLOCK_LIKE) | ANY_JSON}
)
REQUEST_LIKE = st.builds(
    lambda fields, messages, model: {**request(), **fields, "messages": messages, "model": model},
    st.dictionaries(st.sampled_from(sorted(rules.CREATE_FIELDS - {"messages", "model"})), ANY_JSON, max_size=2),
    st.lists(MESSAGE_LIKE | st.just(user("x")), max_size=4) | ANY_JSON,
    st.sampled_from([MODEL, SYSTEM_MODEL, PREFILL_MODEL]),
)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(REQUEST_LIKE)
def test_whatever_is_sent_is_refused_or_answered(body: dict[str, Any]) -> None:
    try:
        tokens = rules.check_create(body)
    except ApiError as error:
        assert error.status in (400, 404)
        return
    said, made = answers.answer(answers.read(body)), calls.decide(body)
    reply = events.compose(body, said, message_id="msg_1", input_tokens=tokens, calls=made)
    assert said and events.message(reply) and read_events(stream_text(reply))


# --- the answers -----------------------------------------------------------------------------------------------

SAID: list[tuple[str, dict[str, Any], str]] = [
    ("a name told before", request(user("Hi, my name is Ada."), assistant("Hi"), user("What is my name?")), "Ada"),
    ("a name of two words", request(user("I am called Ada Lovelace and I count. WHO AM I?")), "Ada Lovelace"),
    (
        "the latest name",
        request(user("my name is Ada"), user("no, my name is Bea, or rather my name is Cy"), user("who am i")),
        "Cy",
    ),
]


@pytest.mark.parametrize(("body", "name"), [pytest.param(b, n, id=i) for i, b, n in SAID])
def test_tells_the_name_it_was_told(body: dict[str, Any], name: str) -> None:
    assert answers.answer(answers.read(body)) == f"Your name is {name}."


ANSWERS: list[tuple[str, dict[str, Any], str]] = [
    (
        "no name: the assistant's words do not count",
        request(user("hi"), assistant("my name is Claude"), user("what's my name")),
        "You have not told me your name.",
    ),
    ("count", request(user("Please count to 4")), "1 2 3 4"),
    ("count too far", request(user("count to 5001")), 'You said: "count to 5001". I received 1 message.'),
    ("repeat", request(user("Repeat after me: what is\n my name [mark:1] ")), "what is\n my name [mark:1]"),
    (
        "first",
        request(user("one"), user("two"), assistant("x"), user("What did I say first?")),
        'You first said: "one"',
    ),
    ("messages", request(user("a"), user("b"), user("how many messages?")), "This conversation holds 3 messages."),
    (
        "marks",
        request(user("[mark:1] and [mark:2]"), assistant("[mark:9]"), user("[mark:3] list the marks")),
        "[mark:1] [mark:2] [mark:3]",
    ),
    ("no marks", request(user("List the marks")), "none"),
    (
        "instructions",
        request(user("What are your instructions?"), system("shout"), system="be kind"),
        'My instructions are: "be kind\n\nshout"',
    ),
    ("no instructions", request(user("what are your instructions?")), "I have no instructions."),
    (
        "anything else",
        request(user("a"), assistant("b"), user(f"one\n two {'x' * 100}")),
        f'You said: "one two {"x" * 71}…". I received 3 messages.',
    ),
    ("no text", request(user([{"type": "image", "source": {}}])), "You sent no text. I received 1 message."),
    (
        "a tool's result is the last text",
        request(user("x"), assistant([CALL]), user([{**RESULT, "content": [TEXT]}])),
        'You said: "then". I received 3 messages.',
    ),
    (
        "seen marks, after the turn before",
        request(user("[mark:a] [mark:b]"), assistant("x"), user("[mark:c]"), user("[mark:d]")),
        'You said: "[mark:c] [mark:d]". I received 4 messages. [seen:c] [seen:d] [after:b]',
    ),
    ("a first mark", request(user("count to 2 [mark:a]")), "1 2 [seen:a] [after:none]"),
    (
        "a turn before without marks",
        request(user("[mark:a]"), assistant("x"), user("y"), assistant("x"), user("[mark:b]")),
        'You said: "[mark:b]". I received 5 messages. [seen:b] [after:none]',
    ),
]


@pytest.mark.parametrize(("body", "said"), [pytest.param(b, s, id=i) for i, b, s in ANSWERS])
def test_answers_from_the_messages(body: dict[str, Any], said: str) -> None:
    assert answers.answer(answers.read(body)) == said


@pytest.mark.parametrize("text", ["one", "one two", " one\n two \n", "a  b", "ü … ö"])
def test_words_joined_are_the_text(text: str) -> None:
    assert "".join(answers.split_words(text)) == text


# --- replies and their events ----------------------------------------------------------------------------------


def compose(body: dict[str, Any], said: str) -> events.Reply:
    return events.compose(body, said, message_id="msg_1", input_tokens=7)


def test_max_tokens_cuts_at_a_word() -> None:
    reply = compose(request(max_tokens=2), "one two three")
    assert (reply.text, reply.stop_reason, reply.output_tokens) == (("one", " two"), "max_tokens", 2)


def test_an_answer_that_just_fits_ends_its_turn() -> None:
    assert compose(request(max_tokens=3), "one two three").stop_reason == "end_turn"


def test_max_tokens_0_answers_nothing() -> None:
    body = events.message(compose(request(max_tokens=0, thinking={"type": "adaptive"}), "one"))
    assert (body["content"], body["stop_reason"], body["usage"]["output_tokens"]) == ([], "max_tokens", 0)


def test_the_first_stop_sequence_stops() -> None:
    reply = compose(request(stop_sequences=["four", "two", "two three"]), "one two three four")
    assert ("".join(reply.text), reply.stop_reason, reply.stop_sequence) == ("one ", "stop_sequence", "two three")


def test_a_stop_sequence_behind_max_tokens_is_not_reached() -> None:
    reply = compose(request(max_tokens=1, stop_sequences=["three"]), "one two three")
    assert (reply.stop_reason, reply.stop_sequence) == ("max_tokens", None)


def test_a_stop_sequence_at_the_start_leaves_no_block() -> None:
    assert events.message(compose(request(stop_sequences=["one"]), "one two"))["content"] == []


def test_thinking_counts_against_max_tokens() -> None:
    reply = compose(request(max_tokens=5, thinking={"type": "enabled", "budget_tokens": 1024}), "one")
    assert (len(reply.thinking or ()), reply.text, reply.thinking_tokens) == (5, (), 5)


@pytest.mark.parametrize("kind", ["disabled", "between_tools"])
def test_thinking_that_is_off_has_no_block(kind: str) -> None:
    assert compose(request(thinking={"type": kind}), "one").thinking is None


def test_withheld_thinking_keeps_its_signature() -> None:
    reply = compose(request(thinking={"type": "adaptive", "display": "omitted"}), "one")
    block = events.message(reply)["content"][0]
    assert block["thinking"] == "" and block["signature"]
    kinds = [e["delta"]["type"] for e in read_events(stream_text(reply)) if e["type"] == "content_block_delta"]
    assert kinds == ["signature_delta", "text_delta"]
    assert reply.thinking_tokens > 0


def test_a_signature_depends_on_what_was_said() -> None:
    body = request(thinking={"type": "adaptive"})
    assert compose(body, "one").signature == compose(body, "one").signature != compose(body, "two").signature


def stream_text(reply: events.Reply) -> str:
    return b"".join(frame.payload for frame in events.frames(reply)).decode()


def test_events_come_in_the_documented_order() -> None:
    parsed = read_events(stream_text(compose(request(thinking={"type": "adaptive"}), "one two")))
    order = [parsed[0]["type"]]
    for event in parsed[1:]:
        if event["type"] != order[-1]:
            order.append(event["type"])
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert order == ["message_start", "ping", *block, *block, "message_delta", "message_stop"]
    assert [e["index"] for e in parsed if e["type"] == "content_block_start"] == [0, 1]
    assert parsed[0]["message"]["usage"]["input_tokens"] == parsed[-2]["usage"]["input_tokens"] == 7


@pytest.mark.parametrize("thinking", [None, {"type": "adaptive"}])
def test_every_event_is_one_the_sdk_knows(thinking: dict[str, str] | None) -> None:
    adapter: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)
    for event in read_events(stream_text(compose(request(thinking=thinking), "one two"))):
        if event["type"] != "ping":  # which the SDK drops before it looks at types
            assert adapter.validate_python(event).to_dict(mode="json", exclude_unset=True) == event


def test_a_message_is_one_the_sdk_knows() -> None:
    for reply in (
        compose(request(thinking={"type": "adaptive"}), "one"),
        events.refuse(request(), message_id="msg_1", input_tokens=7),
    ):
        body = events.message(reply)
        assert Message.model_validate(body).to_dict(mode="json", exclude_unset=True) == body


# --- the faults' queue, the journal, the models ----------------------------------------------------------------


def test_faults_are_taken_in_order_and_as_often_as_asked() -> None:
    waiting = FaultQueue()
    waiting.push(Fault("error", times=2))
    waiting.push(Fault("hang"))
    taken = [waiting.take(request()) for _ in range(4)]
    assert [fault and fault.kind for fault in taken] == ["error", "error", "hang", None]


def test_a_fault_waits_for_the_request_it_matches() -> None:
    waiting = FaultQueue()
    waiting.push(Fault("hang", match='say "hé"\n'))
    waiting.push(Fault("error"))
    other, meant = waiting.take(request()), waiting.take(request(user('say "hé"\nplease')))
    assert other is not None and other.kind == "error"
    assert meant is not None and meant.kind == "hang"
    waiting.push(Fault("cut", match='"stream":true'))
    assert waiting.take(request()) is None
    assert waiting.take(request(stream=True)) is not None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([], "a fault is a JSON object"),
        ({"times": 1}, "unknown kind None"),
        ({"kind": "fire"}, "unknown kind 'fire'"),
        ({"kind": "hang", "delay_ms": 1}, "hang takes no field 'delay_ms'"),
        ({"kind": "cut", "times": 0}, "times must be"),
        ({"kind": "cut", "times": 10_001}, "times must be"),
        ({"kind": "cut", "times": True}, "times must be"),
        ({"kind": "cut", "after_deltas": -1}, "after_deltas must be"),
        ({"kind": "cut", "match": ""}, "match must be"),
        ({"kind": "slow_deltas", "delay_ms": "1"}, "delay_ms must be"),
        ({"kind": "rate_limit", "retry_after_s": -1}, "retry_after_s must be"),
        ({"kind": "error_mid_stream", "error_type": []}, "unknown error_type"),
        ({"kind": "error_mid_stream", "error_type": "oops"}, "unknown error_type 'oops'"),
    ],
)
def test_a_wrong_fault_is_refused(fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_fault(fields)


@pytest.mark.parametrize("fields", [[], {"delta": 1}, {"delta_ms": -1}, {"first_byte_ms": True}])
def test_a_wrong_pace_is_refused(fields: Any) -> None:
    with pytest.raises(ValueError, match=r"pace|unknown field|must be"):
        parse_pace(fields, Pace())


def test_a_pace_changes_what_it_names() -> None:
    assert parse_pace({"delta_ms": 5}, Pace(3, 4)) == Pace(3, 5)


def test_the_journal_is_bounded() -> None:
    journal = Journal(None)
    for _ in range(KEPT + 2):
        entry = journal.begin("/v1/messages", {"x-api-key": "secret", "a": "b"})
        entry.read(b'"' + b"x" * BODY_BYTES_KEPT_MAX + b'"', {})
        journal.finish(entry, "complete")
        journal.finish(entry, "error")
    kept = journal.last(KEPT)
    assert (journal.total, journal.running, len(kept)) == (KEPT + 2, 0, KEPT)
    assert (kept[-1]["n"], kept[-1]["outcome"], kept[-1]["headers"]) == (KEPT + 2, "complete", {"a": "b"})
    assert len(entry.body) < 100


def test_the_log_is_of_messages_only(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log")
    journal.finish(journal.begin("/v1/messages/count_tokens", {}), "complete")
    entry = journal.begin("/v1/messages", {})
    entry.read(b"{}", request())
    entry.sent += ["a", " b"]
    journal.finish(entry, "cut")
    line = {"n": 2, "model": MODEL, "messages": [user("hello")], "answer": "a b", "outcome": "cut"}
    assert [json.loads(text) for text in (tmp_path / "log").read_text().splitlines()] == [line]


@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
def test_a_model_is_one_the_sdk_knows(model: Any) -> None:
    info = model.info()
    assert ModelInfo.model_validate(info).to_dict(mode="json", exclude_unset=True) == info


def test_models_come_in_pages() -> None:
    ids = list(MODELS)
    page = list_models(limit=2, after_id=ids[0], before_id=None, lifecycles=())
    assert [model["id"] for model in page["data"]] == ids[1:3]
    assert (page["has_more"], page["first_id"], page["last_id"]) == (True, ids[1], ids[2])
    back = list_models(limit=2, after_id=None, before_id=ids[3], lifecycles=())
    assert ([model["id"] for model in back["data"]], back["has_more"]) == (ids[1:3], True)
    none = list_models(limit=2, after_id=None, before_id=None, lifecycles=["retired"])
    assert (none["data"], none["has_more"], none["first_id"]) == ([], False, None)


# --- over the socket: headers, errors, routes ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status", "kind"),
    [
        ({"authorization": ""}, 401, "authentication_error"),
        ({"authorization": "Bearer"}, 401, "authentication_error"),
        ({"authorization": "Basic abc"}, 401, "authentication_error"),
        ({"authorization": "Bearer sk-ant-invalid"}, 401, "authentication_error"),
        ({"authorization": "", "x-api-key": "sk-ant-invalid"}, 401, "authentication_error"),
        ({"anthropic-version": "2023-06-01"}, 400, "invalid_request_error"),
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
