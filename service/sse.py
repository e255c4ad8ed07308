"""Server-sent events on their way to a caller: headers, keep-alive, hang-up. Knows no dialect.

The status line is held back until there is something to say, so that an early failure keeps its status; but not for
longer than ``status_wait_s`` after ``ready``, and from then on silence is broken by a keep-alive as often. No frame is
split over two writes. The WHATWG HTML standard, "Server-sent events", is the format.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping

from starlette.types import Receive, Send

from service import telemetry

HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",
}
COMMENT_KEEPALIVE = b": keep-alive\n\n"


def data(payload: bytes) -> bytes:
    """One event without a type; the payload has no line breaks (JSON never does)."""
    return b"data: " + payload + b"\n\n"


async def wait_for_hang_up(receive: Receive) -> None:
    """Returns when the caller has closed the connection; the request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


@contextlib.asynccontextmanager
async def watching(receive: Receive, on_hang_up: Callable[[], object]) -> AsyncIterator[None]:
    """Calls ``on_hang_up`` if the caller closes the connection while the block runs."""

    async def watch() -> None:
        await wait_for_hang_up(receive)
        on_hang_up()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher


class EventStream:
    """A response of server-sent events that begins late and never stays silent.

    Args:
        send: ASGI.
        headers: read once, when the response begins.
        ready: set when the wait for the status line starts to count.
        status_wait_s: as in the module's docstring.
        keepalive: a frame that means nothing, in the caller's dialect.
    """

    def __init__(
        self,
        send: Send,
        headers: Callable[[], Mapping[str, str]],
        ready: asyncio.Event,
        *,
        status_wait_s: float,
        keepalive: bytes,
    ) -> None:
        self._send = send
        self._headers = headers
        self._ready = ready
        self._silence_s = status_wait_s
        self._keepalive = keepalive
        self._writing = asyncio.Lock()
        self._now = asyncio.get_running_loop().time
        self._spoke_at = 0.0
        self._keeper: asyncio.Task[None] | None = None
        self.begun = False

    async def __aenter__(self) -> "EventStream":
        """Starts to keep the connection alive."""
        telemetry.STREAMS_RUNNING.inc()
        self._keeper = asyncio.create_task(self._keep_alive())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stops; does not end the response."""
        telemetry.STREAMS_RUNNING.dec()
        assert self._keeper is not None
        self._keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._keeper

    async def _keep_alive(self) -> None:
        await self._ready.wait()
        self._spoke_at = self._now()
        while True:
            silent_s = self._now() - self._spoke_at
            if silent_s >= self._silence_s:
                telemetry.KEEPALIVES.inc()
                await self.write(self._keepalive)
            else:
                await asyncio.sleep(self._silence_s - silent_s)

    async def write(self, frames: bytes) -> None:
        """Sends whole frames in one write, beginning the response if need be."""
        await self._write(frames, more=True)

    async def end(self, frames: bytes = b"") -> None:
        """Sends the last frames, if any, and ends the response."""
        if frames:
            await self._write(frames, more=True)
        await self._write(b"", more=False)

    async def _write(self, frames: bytes, *, more: bool) -> None:
        self._spoke_at = self._now()
        async with self._writing:
            if not self.begun:
                self.begun = True
                pairs = [(k.encode(), v.encode("latin-1")) for k, v in {**HEADERS, **self._headers()}.items()]
                await self._send({"type": "http.response.start", "status": 200, "headers": pairs})
            await self._send({"type": "http.response.body", "body": frames, "more_body": more})
