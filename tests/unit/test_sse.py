"""Events on their way to a caller: the late status line, the keep-alive, whole frames, the end, the hang-up."""

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any

import pytest
from starlette.types import Message

from service import sse
from service.sse import COMMENT_KEEPALIVE, EventStream

pytestmark = pytest.mark.leaping

WAIT_S = 10.0
LONG_S = 60.0
DEADLINE_S = 1_000.0


class Caller:
    """What ASGI would have sent, with the loop's time of each message."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.times: list[float] = []
        self.changed = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def send(self, message: Message) -> None:
        await self.may_go_on.wait()
        self.sent.append(message)
        self.times.append(asyncio.get_running_loop().time())
        self.changed.set()

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.sent if message["type"] == "http.response.body"]

    @property
    def head(self) -> dict[str, str]:
        assert self.sent[0]["type"] == "http.response.start"
        assert [message["type"] for message in self.sent].count("http.response.start") == 1
        return {name.decode(): value.decode("latin-1") for name, value in self.sent[0]["headers"]}

    async def until(self, count: int) -> None:
        """Waits until so many messages were sent."""
        async with asyncio.timeout(DEADLINE_S):
            while len(self.sent) < count:
                self.changed.clear()
                await self.changed.wait()


def stream_to(
    caller: Caller, ready: asyncio.Event, wait_s: float = LONG_S, headers: Mapping[str, str] | None = None
) -> EventStream:
    told = headers or {}
    return EventStream(caller.send, lambda: told, ready, status_wait_s=wait_s, keepalive=COMMENT_KEEPALIVE)


def is_set(event: asyncio.Event | None = None) -> asyncio.Event:
    event = event or asyncio.Event()
    event.set()
    return event


async def soon(what: Awaitable[Any]) -> Any:
    async with asyncio.timeout(DEADLINE_S):
        return await what


def test_a_frame() -> None:
    assert sse.data(b'{"a":1}') == b'data: {"a":1}\n\n'


async def test_nothing_is_sent_before_there_is_something_to_say() -> None:
    caller = Caller()
    async with stream_to(caller, is_set()) as stream:
        await asyncio.sleep(0)
        assert not stream.begun
        assert caller.sent == []
    assert caller.sent == []


async def test_the_first_frames_bring_the_status_line_and_the_headers_of_that_moment() -> None:
    caller = Caller()
    headers = {"x-session-state": "not known yet"}
    async with stream_to(caller, is_set(), headers=headers) as stream:
        headers["x-session-state"] = "new"
        await stream.write(b"data: 1\n\ndata: 2\n\n")
        await stream.end(b"data: 3\n\n")
    assert caller.sent[0]["status"] == 200
    assert caller.head == {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache, no-transform",
        "x-accel-buffering": "no",
        "x-session-state": "new",
    }
    assert caller.bodies == [b"data: 1\n\ndata: 2\n\n", b"data: 3\n\n", b""]
    assert [message.get("more_body") for message in caller.sent[1:]] == [True, True, False]


async def test_an_end_without_frames() -> None:
    caller = Caller()
    async with stream_to(caller, is_set()) as stream:
        await stream.write(b"data: 1\n\n")
        await stream.end()
    assert caller.bodies == [b"data: 1\n\n", b""]


async def test_silence_after_ready_brings_the_status_line_and_then_keep_alives() -> None:
    caller = Caller()
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    async with stream_to(caller, ready, WAIT_S) as stream:
        started = loop.time()
        ready.set()
        await caller.until(4)
        assert stream.begun
        await stream.end(b"data: 1\n\n")
    assert caller.bodies[:3] == [COMMENT_KEEPALIVE] * 3
    assert caller.times[:4] == pytest.approx([started + WAIT_S * count for count in (1, 1, 2, 3)])
    assert caller.bodies[-2:] == [b"data: 1\n\n", b""]


async def test_before_ready_silence_is_not_broken() -> None:
    caller = Caller()
    ready = asyncio.Event()
    async with stream_to(caller, ready, WAIT_S):
        await asyncio.sleep(20 * WAIT_S)  # and nothing may come of it
        assert caller.sent == []
        ready.set()
        await caller.until(2)


async def test_whoever_speaks_is_not_kept_alive() -> None:
    caller = Caller()
    async with stream_to(caller, is_set(), WAIT_S) as stream:
        for _ in range(30):
            await stream.write(b"data: 1\n\n")
            await asyncio.sleep(0.9 * WAIT_S)
        await stream.end()
    assert COMMENT_KEEPALIVE not in caller.bodies


async def test_after_the_block_silence_stays() -> None:
    caller = Caller()
    async with stream_to(caller, is_set(), WAIT_S) as stream:
        await stream.end(b"data: 1\n\n")
    count = len(caller.sent)
    await asyncio.sleep(10 * WAIT_S)
    assert len(caller.sent) == count


async def test_frames_and_keep_alives_never_mix_while_a_slow_caller_takes_them() -> None:
    caller = Caller()
    caller.may_go_on.clear()
    async with stream_to(caller, is_set(), WAIT_S) as stream:
        writing = asyncio.create_task(stream.write(b"data: long\n\n"))
        await asyncio.sleep(6 * WAIT_S)
        ending = asyncio.create_task(stream.end(b"data: last\n\n"))
        await asyncio.sleep(0)
        assert caller.sent == []
        caller.may_go_on.set()
        await soon(writing)
        await soon(ending)
    whole = {b"data: long\n\n", b"data: last\n\n", COMMENT_KEEPALIVE, b""}
    assert set(caller.bodies) <= whole
    assert caller.head
    assert caller.bodies[-1] == b""
    assert [body for body in caller.bodies if body.startswith(b"data")] == [b"data: long\n\n", b"data: last\n\n"]


async def test_an_error_that_comes_before_the_first_frame_finds_nothing_sent() -> None:
    caller = Caller()
    with pytest.raises(ZeroDivisionError):
        async with stream_to(caller, is_set()):
            raise ZeroDivisionError
    assert caller.sent == []


async def test_a_hang_up_is_noticed_once() -> None:
    messages: asyncio.Queue[Message] = asyncio.Queue()
    hung_up = asyncio.Event()
    async with sse.watching(messages.get, hung_up.set):
        messages.put_nowait({"type": "http.request", "body": b"", "more_body": False})
        await asyncio.sleep(0)
        assert not hung_up.is_set()
        messages.put_nowait({"type": "http.disconnect"})
        await soon(hung_up.wait())


async def test_a_caller_who_stays_is_not_watched_any_longer_than_needed() -> None:
    messages: asyncio.Queue[Message] = asyncio.Queue()
    hung_up = asyncio.Event()
    async with sse.watching(messages.get, hung_up.set):
        await asyncio.sleep(0)
    messages.put_nowait({"type": "http.disconnect"})
    await asyncio.sleep(0)
    assert not hung_up.is_set()
    assert messages.qsize() == 1
