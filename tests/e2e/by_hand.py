"""Sessions made by hand, for the tests of their interface."""

import uuid
from typing import Any

from tests.e2e.caller import Answer, Caller, eventually


async def create(caller: Caller, **fields: Any) -> Any:
    """A session that has just been created."""
    answer = await caller.request("POST", "/v1/sessions", json={"model": "claude-sonnet-5-5", **fields})
    assert answer.status == 201, answer.body
    return answer.json


async def append(caller: Caller, session: str, *messages: dict[str, Any], **options: Any) -> Answer:
    body = {"messages": list(messages)}
    return await caller.request("POST", f"/v1/sessions/{session}/messages", json=body, **options)


async def looked_at_after(instant: str, caller: Caller, session: str) -> Any:
    """The session, looked at in a later millisecond than that of an earlier access."""

    async def look() -> Any:
        seen = await caller.session(session)
        return seen if seen["last_accessed_at"] > instant else None

    return await eventually(look, "an access in a later millisecond")


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def unused() -> str:
    return f"t-{uuid.uuid4().hex[:12]}"
