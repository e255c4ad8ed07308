"""Two replicas with a namespace of their own, for tests that count what there is."""

import uuid
from typing import Any

import redis.asyncio

from tests.e2e.caller import Answer, Caller
from tests.instruments.processes import Fleet

NAMESPACE = "apart"
ENV = {"BATON_NAMESPACE": NAMESPACE, "BATON_LEASE_MS": "900", "BATON_SWEEP_INTERVAL_S": "0.3"}


async def emptied(fleet: Fleet, namespace: str) -> None:
    """Nothing is left in a namespace but its number of buckets."""
    async with redis.asyncio.from_url(fleet.valkey.url) as client:
        async for key in client.scan_iter(match="{" + namespace + ":*", count=1_000):
            await client.delete(key)


async def create(caller: Caller, **fields: Any) -> Any:
    """A session that has just been created."""
    answer = await caller.request("POST", "/v1/sessions", json={"model": "claude-sonnet-5-5", **fields})
    assert answer.status == 201, answer.body
    return answer.json


async def append(caller: Caller, session: str, *messages: dict[str, Any], **options: Any) -> Answer:
    body = {"messages": list(messages)}
    return await caller.request("POST", f"/v1/sessions/{session}/messages", json=body, **options)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def unused() -> str:
    return f"t-{uuid.uuid4().hex[:12]}"
