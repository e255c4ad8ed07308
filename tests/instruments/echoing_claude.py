"""A Claude that says everything again: what it was asked stands in its answers, its errors and its headers.

For tests of what must not come through. A request says in its text how it is to be answered: ``fail 500`` with an error
of that status, ``fail html`` and the like with one of the kinds below, anything else with an answer.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from aiohttp import web

_KIND = re.compile(r"fail (\w+)")
_TYPES = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


@asynccontextmanager
async def echoing_claude() -> AsyncIterator[str]:
    """Its URL, on a free port of this machine."""
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_post("/v1/messages", _messages)
    app.router.add_get("/v1/models", _models)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def _models(request: web.Request) -> web.Response:
    return web.json_response({"data": [], "has_more": False})


async def _messages(request: web.Request) -> web.Response:
    asked = await request.text()
    # Nothing is tried again after such a wait.
    headers = {"request-id": re.sub(r"[^ -~]", "", asked[-200:]), "retry-after": "60"}
    found = _KIND.search(asked[asked.rindex('"user"') :] if '"user"' in asked else asked)
    kind = found[1] if found else ""
    if kind.isdecimal():
        error = {"type": _TYPES.get(int(kind), "api_error"), "message": asked}
        return web.json_response({"type": "error", "error": error}, status=int(kind), headers=headers)
    if kind == "html":
        return web.Response(text=f"<html>{asked}</html>", content_type="text/html", headers=headers)
    start = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": orjson.loads(asked)["model"],
        "content": [],
        "usage": {},
    }
    events: list[tuple[str, dict[str, Any]]] = [
        ("message_start", {"message": {**start, "usage": {"input_tokens": 1, "output_tokens": 1}}}),
        ("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}),
        ("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": asked}}),
    ]
    match kind:
        case "event":
            events.append(("error", {"error": {"type": "overloaded_error", "message": asked}}))
        case "form":
            events.append(("content_block_delta", {"index": asked, "delta": {"type": asked}}))
        case "end":
            pass
        case _:
            stop = {"stop_reason": "end_turn", "stop_sequence": None}
            events += [
                ("content_block_stop", {"index": 0}),
                ("message_delta", {"delta": stop, "usage": {"output_tokens": 2}}),
                ("message_stop", {}),
            ]
    frames = [
        b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps({"type": name, **data})) for name, data in events
    ]
    if kind == "json":
        frames.append(b"event: content_block_delta\ndata: {" + asked.encode() + b"\n\n")
    return web.Response(body=b"".join(frames), content_type="text/event-stream", headers=headers)
