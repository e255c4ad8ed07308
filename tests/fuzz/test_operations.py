"""Every operation of the document, asked in every way, in a calm fleet.

Whatever is asked: no answer tells a fault, every answer is as the document says, the service and the document agree
about which requests there are, and what was refused has changed nothing.
"""

import json
from operator import le
from typing import Any

import pytest
from hypothesis import given, seed

from service.openapi.document import document
from tests.fuzz.conftest import EXAMPLES, SEED, bounded
from tests.fuzz.judge import Judge
from tests.fuzz.requests import FRIEND, SEEDED, SEEDED_KEY, Requests
from tests.fuzz.values import Values, each_confused
from tests.instruments.interface import Interface
from tests.instruments.json_schema import resolve
from tests.instruments.wire import Got, Sent, Wire

INTERFACE = Interface(document())
REQUESTS = Requests(INTERFACE)
OPERATIONS = sorted(INTERFACE.operations())
WITH_BODY = [one for one in OPERATIONS if "requestBody" in INTERFACE.operations()[one]]


def post(wire: Wire, path: str, body: Any, *headers: tuple[bytes, bytes]) -> Got:
    return wire.ask(Sent(b"POST", path.encode(), headers, json.dumps(body).encode()))


def counts(wire: Wire) -> tuple[int, int]:
    """Sessions and messages that are stored, as the replica tells it."""
    got = wire.ask(Sent(b"GET", b"/v1/sessions/stats"))
    assert got.status == 200, got
    return got.json["total_sessions"], got.json["total_messages"]


def seed_session(wire: Wire) -> None:
    """Makes the session that requests ask about, unless it is there."""
    if wire.ask(Sent(b"GET", f"/v1/sessions/{SEEDED}".encode())).status == 404:
        said = {"model": "claude-sonnet-5-5", "max_tokens": 50, "messages": [{"role": "user", "content": "Hi"}]}
        session = (b"X-Session-Id", SEEDED.encode())
        for path in ("/v1/chat/completions", "/v1/messages"):
            for stream in (False, True):
                assert post(wire, path, {**said, "stream": stream}, session).status == 200
    share = Sent(b"PUT", f"/v1/sessions/{SEEDED}/shares/{FRIEND}".encode(), body=b'{"role":"viewer"}')
    assert wire.ask(share).status in (200, 201)


def test_the_document_is_the_one_that_is_served(wire: Wire) -> None:
    assert wire.ask(Sent(b"GET", b"/openapi.json")).json == INTERFACE.document


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_an_operation_answers_as_the_document_says(wire: Wire, judge: Judge, method: str, path: str) -> None:
    if EXAMPLES:
        print(f"\n{method} {path}: FUZZ_SEED={SEED}")
    told: set[int] = set()

    @seed(SEED)
    @bounded(60 if (method, path) in WITH_BODY else 40)
    @given(REQUESTS.of(method, path))
    def asked(sent: Sent) -> None:
        seed_session(wire)
        before = counts(wire)
        got = wire.ask(sent)
        after = counts(wire)
        told.add(got.status)
        assert judge.problems(sent, got) == [], (got.status, got.body[:1000])
        if got.status >= 400:
            assert all(map(le, after, before)), "a refused request has stored something"

    asked()
    assert min(told) < 300 <= 400 <= max(told), "all were refused, or none was"


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
def test_any_field_may_be_mistaken(wire: Wire, judge: Judge, method: str, path: str) -> None:
    """Every place of a body that the document knows, with a value of every type; in a session, where it is read."""
    operation = INTERFACE.operations()[method, path]
    bodies = REQUESTS.bodies(path, operation["requestBody"]["content"]["application/json"]["schema"])
    target = path.format(session=SEEDED, principal=FRIEND, key=SEEDED_KEY).encode()
    headers = ((b"X-Session-Id", SEEDED.encode()),) if "{session}" not in path and path != "/v1/sessions" else ()
    seen: set[str] = set()
    for body in some(bodies, 40):
        seed_session(wire)
        for confused in each_confused(body, seen):
            sent = Sent(method.encode(), target, headers, json.dumps(confused).encode())
            got = wire.ask(sent)
            assert judge.problems(sent, got) == [], (confused, got.status, got.body[:1000])
    fields = resolve(INTERFACE.document, operation["requestBody"]["content"]["application/json"]["schema"]["$ref"])
    assert len(seen) > min(5, len(fields["properties"])), "hardly any field was seen"


def some(values: Values, count: int) -> list[Any]:
    """So many of the values."""
    found: list[Any] = []

    @seed(SEED)
    @bounded(count)
    @given(values)
    def drawn(value: Any) -> None:
        found.append(value)

    drawn()
    return found
