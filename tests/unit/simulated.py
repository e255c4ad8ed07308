"""The stand-in without its process: requests to it, what it replies, and a strict reader of its streams."""

import json
from typing import Any

from service.simulator import events, exchange, rules
from service.simulator.cache import Cache, InputUsage
from service.simulator.diagnosis import Diagnoses
from service.simulator.headers import PRESENT, Terms
from service.simulator.prompt import Prompt

Json = dict[str, Any]

MODEL = "claude-sonnet-5-5"
SYSTEM_MODEL = "claude-opus-4-8"
PREFILL_MODEL = "claude-haiku-4-5"

CALL = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "seen"}
LOOK = {"name": "look", "input_schema": {"type": "object"}}
TEXT = {"type": "text", "text": "then"}
IMAGE = {"type": "image", "source": {"type": "url", "url": "https://example.com/ada.png"}}
DOCUMENT = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}


def user(content: Any) -> Json:
    return {"role": "user", "content": content}


def assistant(content: Any) -> Json:
    return {"role": "assistant", "content": content}


def system(content: Any) -> Json:
    return {"role": "system", "content": content}


def request(*messages: Any, **fields: Any) -> Json:
    return {"model": MODEL, "max_tokens": 1000, "messages": list(messages) or [user("hello")], **fields}


def without(name: str) -> Json:
    return {key: value for key, value in request().items() if key != name}


def compose(body: Json, said: str, **more: Any) -> events.Reply:
    """A reply that says this, to a request of 7 tokens that no rule has seen."""
    prompt = Prompt(body["model"], ())
    return events.compose(body, said, message_id="msg_1", usage=InputUsage(7), prompt=prompt, **more)


def reply_to(
    body: Json, cache: Cache | None = None, terms: Terms = PRESENT, diagnoses: Diagnoses | None = None
) -> events.Reply:
    """The reply to a request, by all the rules."""
    accepted = rules.check_create(body, terms)
    return exchange.reply_to(accepted, Cache() if cache is None else cache, diagnoses or Diagnoses())


def message_to(body: Json, cache: Cache | None = None, terms: Terms = PRESENT) -> Json:
    """The same as the message that is sent."""
    return events.message(reply_to(body, cache, terms))


def stream_text(reply: events.Reply) -> str:
    return b"".join(frame.payload for frame in events.frames(reply)).decode()


def read_events(text: str) -> list[Json]:
    """Parse a stream strictly: `event`, `data`, blank line, the two names equal."""
    assert text.endswith("\n\n")
    parsed = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        event_line, data_line = block.split("\n")
        data = json.loads(data_line.removeprefix("data: "))
        assert event_line == f"event: {data['type']}"
        parsed.append(data)
    return parsed
