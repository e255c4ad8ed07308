"""One request to a message endpoint, from its body to its last byte.

Plain ASGI rather than a framework's response, because the faults need what a response hides: to stop in the
middle of a body, to end a stream that is not over, to answer nothing. Two tasks share a request: one answers,
the other waits for the client to leave and then stops the first wherever it is, asleep between two deltas or
hanging on purpose. Whatever happens, the journal's entry is finished once, with the text that was sent.

How a cut works: the application returns without having ended its response, upon which the server closes the
connection. What was written before still goes out; the end of the chunked body, or the rest of the announced
length, never does.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from service.simulator import answers, calls, events, schema
from service.simulator.cache import Cache
from service.simulator.diagnosis import Diagnoses
from service.simulator.errors import ApiError, error_object, new_request_id
from service.simulator.faults import Fault, FaultQueue, Pace
from service.simulator.headers import Terms, check_headers
from service.simulator.journal import Entry, Journal
from service.simulator.rules import BODY_BYTES_MAX, Accepted, check_count, check_create, parse_body
from service.simulator.thinking import think

_EARLY_S = 0.001  # a timer of the event loop may be early by the resolution of its clock
BATCH_BYTES = 32 * 1024
GARBAGE = b"<html><head><title>502 Bad Gateway</title></head><body>Bad Gateway</body></html>\n"


@dataclass(slots=True)
class Desk:
    """What the requests of one simulator share."""

    journal: Journal
    pace: Pace
    faults: FaultQueue = field(default_factory=FaultQueue)
    cache: Cache = field(default_factory=Cache)
    diagnoses: Diagnoses = field(default_factory=Diagnoses)


@dataclass(slots=True)
class Call:
    """One request while it is answered."""

    desk: Desk
    headers: dict[str, str]
    raw: bytes
    entry: Entry
    send: Send
    request_id: str

    def read(self) -> tuple[dict[str, Any], Terms]:
        """Judge the headers and parse the body; the journal sees the body even if the headers are refused.

        Raises:
            ApiError: 401 or 400.
        """
        with contextlib.suppress(ApiError):
            self.entry.read(self.raw, parse_body(self.raw))
        terms = check_headers(self.headers)
        return self.entry.parsed or parse_body(self.raw), terms

    async def start(self, content_type: str, headers: dict[str, str]) -> None:
        """Send the head of a response; every other status than 200 is an `ApiError`."""
        named = {"content-type": content_type, "request-id": self.request_id, **headers}
        pairs = [(name.encode(), value.encode()) for name, value in named.items()]
        await self.send({"type": "http.response.start", "status": 200, "headers": pairs})

    async def write(self, data: bytes) -> None:
        """Send a piece of the body that is not the last."""
        await self.send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes, outcome: str) -> None:
        """Send the last piece of the body, after the journal has been told: who sees the end finds it there."""
        self.desk.journal.finish(self.entry, outcome)
        await self.send({"type": "http.response.body", "body": data, "more_body": False})

    async def whole(self, body: bytes, outcome: str, content_type: str = "application/json") -> None:
        """Send a complete response."""
        await self.start(content_type, {"content-length": str(len(body))})
        await self.end(body, outcome)


Act = Callable[[Call], Coroutine[Any, Any, None]]
"""Answers a call and tells the journal its outcome, or raises the error to be shown."""


class Endpoint:
    """An ASGI application for one path: reads the body, lets `act` answer it, keeps the journal."""

    def __init__(self, desk: Desk, act: Act) -> None:
        self._desk = desk
        self._act = act

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            ApiError: what the request is refused with; nothing has been sent then, and the application shows it.
        """
        headers = _headers(scope)
        entry = self._desk.journal.begin(scope["path"], headers)
        outcome = "error"
        try:
            raw = await _read_body(receive)
            call = Call(self._desk, headers, raw or b"", entry, send, new_request_id())
            if raw is None or not await _until_gone(self._act(call), receive):
                outcome = "disconnected"
        finally:
            self._desk.journal.finish(entry, outcome)  # does nothing where `act` has reached the end


async def count(call: Call) -> None:
    """Answer `/v1/messages/count_tokens`.

    Raises:
        ApiError: what the rules refuse.
    """
    tokens = check_count(*call.read())
    await call.whole(orjson.dumps({"input_tokens": tokens}), "complete")


async def create(call: Call) -> None:
    """Answer `/v1/messages`: the rules, then a fault if one waits, then the answer.

    Raises:
        ApiError: what the rules refuse, or what a fault asks for.
    """
    accepted = check_create(*call.read())
    fault = call.desk.faults.take(accepted.body) or Fault("none")
    if (failure := fault.error()) is not None:
        raise failure
    if fault.kind == "hang":
        await asyncio.Event().wait()  # ended by whoever notices that the client has left
    pace = call.desk.pace
    if fault.kind == "slow_first_byte":
        pace = Pace(fault.delay_ms, pace.delta_ms)
    elif fault.kind == "slow_deltas":
        pace = Pace(pace.first_byte_ms, fault.delay_ms)
    if fault.kind == "garbage":
        return await call.whole(GARBAGE, "error", "text/html")
    reply = reply_to(accepted, call.desk.cache, call.desk.diagnoses, refused=fault.kind == "refusal")
    if accepted.body.get("stream"):
        return await _stream(call, reply, fault, pace)
    return await _json(call, reply, fault, pace)


def reply_to(accepted: Accepted, cache: Cache, diagnoses: Diagnoses, *, refused: bool = False) -> events.Reply:
    """Compose the answer to a request; only now is its prompt read, and cached."""
    body = accepted.body
    usage = cache.use(accepted.prompt, accepted.markers, accepted.model)
    message_id = f"msg_{secrets.token_hex(12)}"
    diagnostics = diagnoses.of(body, accepted.prompt, message_id)
    if refused:
        return events.refuse(body, message_id=message_id, usage=usage, diagnostics=diagnostics)
    made = calls.decide(body)
    return events.compose(
        body,
        _words(body, called=bool(made)),
        message_id=message_id,
        usage=usage,
        diagnostics=diagnostics,
        prompt=accepted.prompt,
        thinking=think(body, accepted.model),
        calls=made,
    )


def _words(body: dict[str, Any], *, called: bool) -> str:
    """What is said: ahead of tool calls, as JSON where that is asked for, or else as it is."""
    conversation = answers.read(body)
    wanted = (body.get("output_config") or {}).get("format")
    if called:
        return "" if wanted else answers.aside(conversation)
    said = answers.answer(conversation)
    return orjson.dumps(schema.instance(wanted["schema"], said)).decode() if wanted else said


async def _json(call: Call, reply: events.Reply, fault: Fault, pace: Pace) -> None:
    """Send a reply as one JSON body, when a stream of the same pace would have ended."""
    await _sleep(pace.first_byte_ms + pace.delta_ms * reply.delta_count)
    if fault.kind == "error_mid_stream":
        raise ApiError(fault.error_type, _fault_message(fault))
    body = orjson.dumps(events.message(reply))
    half = body[: len(body) // 2]
    if fault.kind == "clean_end":
        return await call.whole(half, "cut")
    if fault.kind == "cut":
        await call.start("application/json", {"content-length": str(len(body))})
        return await _break_off(call, half)
    call.entry.sent.extend(reply.text)
    await call.whole(body, "complete")


async def _stream(call: Call, reply: events.Reply, fault: Fault, pace: Pace) -> None:
    """Send a reply as events: at once in large pieces, or one delta at a time if there is a pace."""
    await _sleep(pace.first_byte_ms)
    await call.start("text/event-stream; charset=utf-8", {"cache-control": "no-cache"})
    batch = bytearray()
    passed = 0
    for frame in events.frames(reply):
        if fault.interrupts and (frame.is_end or (frame.is_delta and passed == fault.after_deltas)):
            break
        passed += frame.is_delta
        if frame.is_delta and pace.delta_ms:
            await _flush(call, batch)
            await _sleep(pace.delta_ms)
        batch += frame.payload
        if frame.text:
            call.entry.sent.append(frame.text)
        if len(batch) >= BATCH_BYTES or (frame.is_delta and pace.delta_ms):
            await _flush(call, batch)
    if fault.kind == "cut":
        return await _break_off(call, bytes(batch))
    if fault.kind == "error_mid_stream":
        batch += events.sse(error_object(fault.error_type, _fault_message(fault), call.request_id))
    await call.end(bytes(batch), {"error_mid_stream": "error", "clean_end": "cut"}.get(fault.kind, "complete"))


async def _break_off(call: Call, data: bytes) -> None:
    """Send a piece of the body as if more were to come, and return: the server then closes the connection."""
    call.desk.journal.finish(call.entry, "cut")
    await call.write(data)


async def _flush(call: Call, batch: bytearray) -> None:
    """Send what has gathered, and give the other requests of the process their turn."""
    if batch:
        await call.write(bytes(batch))
        batch.clear()
        await asyncio.sleep(0)


def _fault_message(fault: Fault) -> str:
    return "Overloaded" if fault.error_type == "overloaded_error" else "The simulator was told to fail here."


async def _sleep(duration_ms: float) -> None:
    if duration_ms:
        await asyncio.sleep(duration_ms / 1000 + _EARLY_S)


def _headers(scope: Scope) -> dict[str, str]:
    """Return the request's headers with lower-case names; a repeated one is joined by commas, as HTTP allows."""
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers


async def _read_body(receive: Receive) -> bytes | None:
    """Read the request body; `None` if the client left before its end.

    A body over the limit is read to its end and dropped, because a client in the middle of sending would see a
    broken connection instead of the answer.

    Raises:
        ApiError: 413 `request_too_large`.
    """
    pieces: list[bytes] = []
    size = 0
    more = True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            return None
        piece = event.get("body", b"")
        size += len(piece)
        if size <= BODY_BYTES_MAX:
            pieces.append(piece)
        else:
            pieces.clear()
        more = event.get("more_body", False)
    if size > BODY_BYTES_MAX:
        raise ApiError("request_too_large", f"Request exceeds the maximum size of {BODY_BYTES_MAX} bytes")
    return b"".join(pieces)


async def _until_gone(work: Coroutine[Any, Any, None], receive: Receive) -> bool:
    """Run `work`; `False` if the client left first, after which `work` has been stopped.

    Raises:
        Exception: whatever `work` raises.

    Cancellation: stops both tasks and waits for them.
    """
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        return working.done()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
