"""Callers: a process that sends turns over kept-alive connections as fast as they are answered.

``python -m bench.load`` reads orders from stdin, one JSON a line, and answers each with one line when it is done:

    {"port": 8000, "dialect": "chat", "model": "bench-plain", "stream": false, "key": "", "lanes": [["sess_…", …], …]}
    →  {"turns": 120}

A key is shown with every request unless it is empty. A lane is one connection; its turns go one after the other, each
to the session named, or to none if that is null. Any answer but 200, or a stream without its end, is an error:
{"error": "…"}.
"""

import asyncio
import re
import sys
from typing import Any, Final, cast

import orjson

_WORDS: Final = "What a caller asks is about as long as this: two hundred bytes of plain text, no more, no less. " * 2
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_ANSWER_S: Final = 30.0
_PATHS: Final = {"chat": b"/v1/chat/completions", "messages": b"/v1/messages"}
_ENDS: Final = {"chat": b"data: [DONE]", "messages": b"event: message_stop"}


class _Caller(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._answer = bytearray()
        self._done: asyncio.Future[bytes] | None = None
        self._transport: asyncio.Transport | None = None
        self._streamed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionError("the connection was closed before the answer's end"))

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if self._done is not None and not self._done.done() and self._whole():
            self._done.set_result(bytes(self._answer))

    def _whole(self) -> bool:
        if self._streamed and self._answer.startswith(b"HTTP/1.1 200"):
            return self._answer.endswith(b"0\r\n\r\n")
        head_end = self._answer.find(b"\r\n\r\n")
        length = _LENGTH.search(self._answer, 0, head_end) if head_end >= 0 else None
        return length is not None and len(self._answer) >= head_end + 4 + int(length[1])

    async def turn(self, request: bytes, *, streamed: bool) -> bytes:
        assert self._transport is not None
        self._answer.clear()
        self._streamed = streamed
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        async with asyncio.timeout(_ANSWER_S):
            return await self._done

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _request(order: dict[str, Any], session: str | None) -> bytes:
    message = {"role": "user", "content": _WORDS}
    body = {"model": order["model"], "max_tokens": 1000, "messages": [message], "stream": order["stream"]}
    named = b""
    if session is not None and order["dialect"] == "chat":
        body["session_id"] = session
    elif session is not None:
        named = b"X-Session-Id: %s\r\n" % session.encode()
    json = orjson.dumps(body)
    head = b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n" % _PATHS[order["dialect"]]
    if order["key"]:
        named += b"Authorization: Bearer %s\r\n" % order["key"].encode()
    return head + named + b"Content-Length: %d\r\n\r\n" % len(json) + json


async def _lane(order: dict[str, Any], sessions: list[str | None]) -> int:
    _, caller = await asyncio.get_running_loop().create_connection(_Caller, "127.0.0.1", order["port"])
    try:
        for session in sessions:
            answer = await caller.turn(_request(order, session), streamed=order["stream"])
            if not answer.startswith(b"HTTP/1.1 200") or (
                order["stream"] and _ENDS[order["dialect"]] not in answer[-200:]
            ):
                raise ConnectionError(f"not a whole answer: {answer[:300]!r} … {answer[-300:]!r}")
    finally:
        caller.close()
    return len(sessions)


async def _obey(line: bytes) -> dict[str, Any]:
    order = orjson.loads(line)
    try:
        return {"turns": sum(await asyncio.gather(*(_lane(order, lane) for lane in order["lanes"])))}
    except (OSError, TimeoutError) as error:
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for line in sys.stdin.buffer:
            print(orjson.dumps(runner.run(_obey(line))).decode(), flush=True)


if __name__ == "__main__":
    main()
