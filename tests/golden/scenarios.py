"""The scenarios: a function each, which does what a client does. Add one, run ``make golden``, read the diff."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from tests.golden.stage import Dialect, Json, Talk


class Scenario(NamedTuple):
    """One scenario in one dialect; its transcript is ``<dialect>/<name>.txt``."""

    dialect: Dialect
    name: str
    title: str
    play: Callable[[Talk], None]


SCENARIOS: Final[list[Scenario]] = []

Play = Callable[[Talk], None]


def scenario(title: str, *dialects: Dialect) -> Callable[[Play], Play]:
    """Makes a function a scenario of both dialects, or of those that are named."""

    def add(play: Play) -> Play:
        name = play.__name__.replace("_", "-")
        SCENARIOS.extend(Scenario(dialect, name, title, play) for dialect in dialects or ("chat", "messages"))
        return play

    return add


_WEATHER: Final[Json] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}


_PIXEL: Final = "data:image/gif;base64,R0lGODlhAQABAAAAACw="


def tools_of(talk: Talk) -> list[Json]:
    """One tool, in the form of the dialect."""
    if talk.dialect == "messages":
        return [{"name": "weather", "description": "The weather of a city.", "input_schema": _WEATHER}]
    function = {"name": "weather", "description": "The weather of a city.", "parameters": _WEATHER}
    return [{"type": "function", "function": function}]


def calls_of(talk: Talk, answer: Any) -> list[str]:
    """The ids of an answer's calls."""
    if talk.dialect == "messages":
        return [block["id"] for block in answer["content"] if block["type"] == "tool_use"]
    return [call["id"] for call in answer["choices"][0]["message"]["tool_calls"]]


def results_of(talk: Talk, **said: str) -> list[Json]:
    """What the calls came to, as messages."""
    if talk.dialect == "chat":
        return [{"role": "tool", "tool_call_id": call, "content": text} for call, text in said.items()]
    blocks = [{"type": "tool_result", "tool_use_id": call, "content": text} for call, text in said.items()]
    return [{"role": "user", "content": blocks}]


def message_of(talk: Talk, answer: Any) -> Json:
    """An answer as it is sent back."""
    if talk.dialect == "chat":
        message: Json = answer["choices"][0]["message"]
        return message
    return {"role": "assistant", "content": answer["content"]}


def user(text: str) -> Json:
    return {"role": "user", "content": text}


def with_system(talk: Talk, prompt: str, said: str, session: str, **fields: Any) -> None:
    """A turn with a system prompt."""
    if talk.dialect == "messages":
        talk.turn(said, session, system=prompt, **fields)
    else:
        talk.turn([{"role": "system", "content": prompt}, user(said)], session, **fields)


@scenario("a turn without a session")
def stateless_turn(talk: Talk) -> None:
    talk.turn("My name is Ada.")


@scenario("a streamed turn without a session")
def stateless_stream(talk: Talk) -> None:
    talk.turn("count to 3", stream=True)


@scenario("a turn that begins a session, and a second one, of which only what is new is sent")
def session(talk: Talk) -> None:
    name = f"golden-{talk.dialect}"
    with_system(talk, "Be brief.", "My name is Ada.", name)
    talk.turn("What is my name?", name)


@scenario("a streamed turn of a session, and its events followed")
def session_stream(talk: Talk) -> None:
    usage = {"stream_options": {"include_usage": True}} if talk.dialect == "chat" else {}
    talk.turn("count to 3", "golden-stream-" + talk.dialect, stream=True, **usage)
    talk.ask("GET", f"/v1/sessions/golden-stream-{talk.dialect}/turns/1/events", headers={"last-event-id": "3"})


@scenario("a tool loop: the call, and its result")
def tool_loop(talk: Talk) -> None:
    name = f"golden-tools-{talk.dialect}"
    called = talk.turn('call weather with {"city": "Paris"}', name, tools=tools_of(talk))
    (call,) = calls_of(talk, called.json)
    talk.turn(results_of(talk, **{call: "18 °C"}), name)


@scenario("two calls at once, streamed, and their results")
def parallel_calls(talk: Talk) -> None:
    name = f"golden-parallel-{talk.dialect}"
    said = 'call weather with {"city": "Paris"} and call weather with {"city": "Rome"}'
    talk.turn(said, name, tools=tools_of(talk), stream=True)
    stored = talk.ask("GET", f"/v1/sessions/{name}/messages?offset=1").json["messages"][0]
    ids = [block["id"] for block in stored["content"] if block["type"] == "tool_use"]
    talk.turn(results_of(talk, **dict(zip(ids, ("18 °C", "25 °C"), strict=True))), name)


@scenario("Claude declines, whole and streamed")
def refusal(talk: Talk) -> None:
    for stream in (False, True):
        talk.fault("refusal")
        talk.turn("Say it.", f"golden-refusal-{talk.dialect}", stream=stream)


@scenario("an answer that is cut by its limit, whole and streamed")
def max_tokens(talk: Talk) -> None:
    for stream in (False, True):
        talk.turn("count to 9", f"golden-limit-{talk.dialect}", max_tokens=2, stream=stream)


@scenario("Claude refuses before anything was shown, which is not the caller's fault")
def error_before(talk: Talk) -> None:
    talk.fault("rate_limit", retry_after_s=30)
    talk.turn("Hello.", f"golden-before-{talk.dialect}")
    talk.fault("rate_limit", retry_after_s=30)
    talk.turn("Hello.", f"golden-before-{talk.dialect}", stream=True)


@scenario("Claude refuses the request itself")
def error_of_the_request(talk: Talk) -> None:
    talk.turn("Hello.", f"golden-request-{talk.dialect}", max_tokens=999_999_999)


@scenario("Claude fails before anything was shown, and is asked again")
def error_unseen(talk: Talk) -> None:
    talk.fault("error_mid_stream", after_deltas=0)
    talk.turn("count to 3", f"golden-unseen-{talk.dialect}", stream=True)


@scenario("Claude fails in mid-stream, and the session is as it was before")
def error_in_mid_stream(talk: Talk) -> None:
    name = f"golden-mid-{talk.dialect}"
    talk.turn("Hello.", name)
    talk.pace(delta_ms=150)
    talk.fault("error_mid_stream", after_deltas=2)
    talk.turn("count to 5", name, stream=True)
    talk.pace(delta_ms=0)
    talk.ask("GET", f"/v1/sessions/{name}/messages")


@scenario("what Baton refuses itself")
def error_of_batons(talk: Talk) -> None:
    talk.turn("Hello.", "sess_00" + "a" * 26)
    talk.turn([], f"golden-own-{talk.dialect}")


@scenario("a conversation that is sent again: continued, and with its last turn said otherwise")
def resent_history(talk: Talk) -> None:
    name = f"golden-resent-{talk.dialect}"
    first = talk.turn("My name is Ada.", name)
    history = [user("My name is Ada."), message_of(talk, first.json)]
    talk.turn([*history, user("What is my name?")], name)
    talk.turn([*history, user("How many messages?")], name)


def _systems(talk: Talk, model: str) -> None:
    name = f"golden-{model}-{talk.dialect}"
    for prompt, said in (("Be brief.", "My name is Ada."), ("Be kind.", "What is my name?")):
        with_system(talk, prompt, said, name, model=model)


@scenario("another system prompt, where the model takes a system message")
def changed_system_told(talk: Talk) -> None:
    _systems(talk, "claude-opus-5-5")


@scenario("another system prompt, where it begins a new epoch")
def changed_system_new_epoch(talk: Talk) -> None:
    _systems(talk, "claude-sonnet-5-5")


@scenario("thinking, streamed, and the turn after it")
def thinking(talk: Talk) -> None:
    name = f"golden-thinking-{talk.dialect}"
    config = {"type": "adaptive", "display": "summarized"}
    talk.turn("My name is Ada.", name, thinking=config, stream=True)
    talk.turn("What is my name?", name)


@scenario("an image, and an answer in a form that is asked for", "chat")
def image_and_response_format(talk: Talk) -> None:
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": _PIXEL}}]
    schema = {"name": "thing", "schema": {"type": "object", "properties": {"name": {"type": "string"}}}, "strict": True}
    asked: Json = {"response_format": {"type": "json_schema", "json_schema": schema}, "reasoning_effort": "low"}
    talk.turn([{"role": "user", "content": parts}], "golden-image", **asked)


@scenario("how many tokens: without a session, and the next turn of one", "messages")
def count_tokens(talk: Talk) -> None:
    body = {"model": "claude-sonnet-5-5", "messages": [user("My name is Ada.")]}
    talk.ask("POST", "/v1/messages/count_tokens", body)
    talk.turn("My name is Ada.", "golden-count")
    talk.ask("POST", "/v1/messages/count_tokens", {"messages": [user("Who am I?")]}, {"x-session-id": "golden-count"})


@scenario("the models")
def models(talk: Talk) -> None:
    headers = {"anthropic-version": "2026-10-21"} if talk.dialect == "messages" else {}
    talk.ask("GET", "/v1/models/claude-sonnet-5-5", headers=headers)
    talk.ask("GET", "/v1/models/none", headers=headers)
    talk.ask("GET", "/v1/models?limit=2", headers=headers)
