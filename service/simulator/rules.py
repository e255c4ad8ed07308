"""A request's body: accepted, or refused in the words of the Messages API.

Order of judgement, as the real service appears to do it: credential, API version (headers.py), body, fields, model,
thinking, tools, conversation, seals on thinking, cache markers, size. The first fault found is the one reported. Each
message begins with the path of what is wrong (`messages.0.role: …`), because that is what callers of the real API rely
on when they search their logs.
"""

from dataclasses import dataclass
from typing import Any

import orjson

from service.simulator import prompt, seals
from service.simulator.cache import Marker, markers
from service.simulator.conversation import check_messages, check_text_blocks
from service.simulator.errors import invalid
from service.simulator.fields import (
    COUNT_FIELDS,
    CREATE_FIELDS,
    check_create_fields,
    check_names,
    check_shared_fields,
)
from service.simulator.headers import PRESENT, Terms
from service.simulator.models import Model
from service.simulator.prompt import Prompt
from service.simulator.thinking import check_thinking
from service.simulator.tools import check_history, check_tools

BODY_BYTES_MAX = 32 * 1024 * 1024
MESSAGES_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request that is answered.

    Attributes:
        prompt: what of it the model reads.
        markers: where prefixes of the prompt end that are to be cached.
    """

    body: dict[str, Any]
    model: Model
    prompt: Prompt
    markers: list[Marker]


def parse_body(raw: bytes) -> dict[str, Any]:
    """Parse the request body.

    Raises:
        ApiError: 400 when it is not UTF-8 JSON or not an object.
    """
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        raise invalid(f"The request body is not valid JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise invalid("The request body must be a JSON object")
    return body


def check_create(body: dict[str, Any], terms: Terms = PRESENT) -> Accepted:
    """Judge a request to `/v1/messages`.

    Raises:
        ApiError: 400, or 404 for a model that does not exist.
    """
    model = check_names(body, CREATE_FIELDS, terms)
    check_create_fields(body, model)
    accepted = _check_shared(body, model, terms)
    tokens = accepted.prompt.tokens
    if tokens > model.input_tokens_max:
        raise invalid(f"prompt is too long: {tokens} tokens > {model.input_tokens_max} maximum")
    return accepted


def check_count(body: dict[str, Any], terms: Terms = PRESENT) -> int:
    """Judge a request to `/v1/messages/count_tokens`; it takes fewer fields than a message.

    Returns:
        The estimate of its input tokens: what the three input fields of a message's usage add up to.

    Raises:
        ApiError: 400, or 404 for a model that does not exist.
    """
    return _check_shared(body, check_names(body, COUNT_FIELDS, terms), terms).prompt.tokens


def _check_shared(body: dict[str, Any], model: Model, terms: Terms) -> Accepted:
    """Judge what `/v1/messages` and `count_tokens` have in common."""
    check_shared_fields(body, model, terms)
    check_thinking(body, model, terms)
    check_tools(body, model)
    system = body.get("system")
    if system is not None and not isinstance(system, str):
        check_text_blocks(system, "system")
    if "messages" not in body:
        raise invalid("messages: Field required")
    messages = body["messages"]
    if not isinstance(messages, list):
        raise invalid("messages: Input should be a valid list")
    if not messages:
        raise invalid("messages: at least one message is required")
    if len(messages) > MESSAGES_MAX:
        raise invalid(f"messages: List should have at most {MESSAGES_MAX} items, not {len(messages)}")
    check_messages(messages, model, terms)
    check_history(body)
    read = seals.verify(prompt.read(body), model)
    return Accepted(body, model, read, markers(read, body.get("cache_control")))
