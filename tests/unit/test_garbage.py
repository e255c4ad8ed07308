"""What a request held is free once it is answered, without the garbage collector: that looks at numbers, not at bytes.

A refused body of 28 MiB is one object: it does not bring a full collection any nearer.
"""

import gc
import json
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from service.app import build
from service.settings import Settings
from storage.results import Corrupt, Gone, Settled
from tests.unit.test_turn_settling import ABORTED, COMMITTED, Outcome, StoreOfOneTurn, settled

pytestmark = pytest.mark.anyio

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("path", "asked", "status"),
    [
        (CHAT, {"messages": [{"role": "nobody", "content": "x"}]}, 400),
        (CHAT, {"messages": [{"role": "user", "content": "x"}], "session_id": "one"}, 503),
        (MESSAGES, [], 400),
    ],
    ids=["wrong", "the store is away", "no request"],
)
async def test_a_refused_body_is_not_kept(uncollected: None, path: str, asked: Any, status: int) -> None:
    given = {"anthropic_base_url": "http://127.0.0.1:1", "secret": "x" * 16, "auth": "open"}
    settings = Settings.model_validate(given)
    application = build(settings, "redis://127.0.0.1:1/0", "x" * 16, on_refused=lambda error: None)
    body = json.dumps(asked).encode()
    others = sys.getrefcount(body)
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await application.asgi({**scope, "headers": []}, receive, send)
    assert sent[0]["status"] == status
    assert sys.getrefcount(body) == others


@pytest.mark.parametrize("commit", [COMMITTED, Settled("dead", 1), Gone(), Corrupt()], ids=str)
async def test_a_turn_is_not_kept(uncollected: None, commit: Outcome) -> None:
    turn = weakref.ref(await settled(StoreOfOneTurn(commit, ABORTED)))
    assert turn() is None
