"""Bodies of requests: bounded in bytes and time, one by one and all together, and let go as soon as they can be.

What comes of a body is counted as it arrives (`Bodies`), for as long as anybody holds it or what was made of it. A
caller who is refused while it still sends is answered at once, and what it goes on sending is dropped (`Body.drop`).
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final

from starlette.requests import Request
from starlette.types import Message, Receive, Scope

from service import telemetry
from service.errors import BatonError
from service.headers import header
from service.interrupt import draining
from service.parsing import parse_json
from service.settings import Settings

SHARE: Final = "baton.body"
"""In a scope: what its body counts for."""
_DROP_WAIT_S = 30.0  # what comes of a body after its answer is dropped for so long at most,
_DROP_SILENCE_S = 1.0  # and as long as it keeps coming


class ClientGone(Exception):
    """The caller hung up before there was anything to answer."""


class BodyUnread(BatonError):
    """Told while the body may still be coming. The connection ends with it, lest the rest be taken for a request."""

    def __init__(self, code: str, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(code, message, retry_after_s=retry_after_s, headers={"connection": "close"})


def _too_large(bytes_max: int) -> BatonError:
    telemetry.BODIES_REFUSED["too_large"].inc()
    return BodyUnread("request_too_large", f"The body may have at most {bytes_max} bytes (BATON_BODY_BYTES_MAX).")


async def read_body(scope: Scope, receive: Receive, settings: Settings) -> bytes:
    """The whole request body.

    Raises:
        BatonError: request_too_large, by its declared or its real length; body_timeout.
    """
    bytes_max, wait_s = settings.body_bytes_max, settings.body_wait_s
    declared = header(scope, b"content-length")
    if declared and declared.isdecimal() and int(declared) > bytes_max:
        raise _too_large(bytes_max)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(wait_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > bytes_max:
                    raise _too_large(bytes_max)
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    except TimeoutError:
        telemetry.BODIES_REFUSED["late"].inc()
        late = f"The body did not arrive within {wait_s:g} s (BATON_BODY_WAIT_S)."
        raise BodyUnread("body_timeout", late) from None


async def read_json(request: Request, settings: Settings, *, if_empty: bytes = b"") -> Any:
    """The body of a native route.

    Args:
        request: of a caller.
        settings: bound its bytes and the time that they may take.
        if_empty: is taken for a body of no bytes; JSON.

    Raises:
        BatonError: as `read_body` and `parse_json`.
    """
    return parse_json(await read_body(request.scope, request.receive, settings) or if_empty)


class Bodies:
    """The request bodies that this replica holds: how many bytes in all, and no more waiting once it drains.

    Args:
        bytes_max: of the bodies of all requests that are being answered.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._held_bytes = 0
        self._arriving: set[asyncio.Timeout] = set()
        self._draining = False

    @property
    def held_bytes(self) -> int:
        """Of all bodies at this moment."""
        return self._held_bytes

    def drain(self) -> None:
        """From now on a body is either there or refused."""
        self._draining = True
        for scope in self._arriving:
            scope.reschedule(asyncio.get_running_loop().time())

    @contextlib.contextmanager
    def counted(self, receive: Receive) -> Iterator["Body"]:
        """The body of one request, which counts until the block ends, and as long as `keep_body` says."""
        body = Body(self, receive)
        try:
            yield body
        finally:
            body.share.release()

    def hold(self, size_bytes: int) -> None:
        """Counts what has come.

        Raises:
            BatonError: overloaded.
        """
        if self._held_bytes + size_bytes > self._bytes_max:
            telemetry.BODIES_REFUSED["full"].inc()
            raise BodyUnread(
                "overloaded", "This replica holds all the request bodies it may; try again.", retry_after_s=1
            )
        self._held_bytes += size_bytes

    def release(self, size_bytes: int) -> None:
        """Counts it no more."""
        self._held_bytes -= size_bytes

    async def arrived(self, receive: Receive) -> Message:
        """The next piece of a body.

        Raises:
            BatonError: draining.
        """
        scope = asyncio.timeout(0 if self._draining else None)
        try:
            async with scope:
                self._arriving.add(scope)
                return await receive()
        except TimeoutError:
            raise draining() from None
        finally:
            self._arriving.discard(scope)


class _Share:
    """What one request's body counts for, as long as anybody holds it, or what was made of it."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._size_bytes = 0
        self._holders = 1

    def add(self, size_bytes: int) -> None:
        """More has come; raises as `Bodies.hold`."""
        self._bodies.hold(size_bytes)
        self._size_bytes += size_bytes

    def keep(self) -> None:
        """There is one more who holds it."""
        self._holders += 1

    def release(self) -> None:
        """One holds it no more."""
        self._holders -= 1
        if not self._holders:
            self._bodies.release(self._size_bytes)


def keep_body(scope: Scope) -> Callable[[], None]:
    """Counts a request's body also when the request is over, until what is returned is called; once."""
    share: _Share | None = scope.get(SHARE)
    if share is None:
        return lambda: None
    share.keep()
    return share.release


class Body:
    """One request's body while it is read.

    Attributes:
        whole: nothing more will come.
        share: what came, counted.
    """

    def __init__(self, bodies: Bodies, receive: Receive) -> None:
        self._bodies = bodies
        self._receive = receive
        self.whole = False
        self.share = _Share(bodies)

    async def receive(self) -> Message:
        """ASGI.

        Raises:
            BatonError: draining or overloaded.
        """
        if self.whole:
            return await self._receive()
        message = await self._bodies.arrived(self._receive)
        self.whole = not message.get("more_body", False)
        self.share.add(len(message.get("body", b"")))
        return message

    async def drop(self) -> None:
        """Lets the rest of a request pass whose answer has been sent; most senders read it only when they are through.

        Closed at once, the connection would be reset, and they would see that instead of their answer.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DROP_WAIT_S):
                while not self.whole:
                    async with asyncio.timeout(_DROP_SILENCE_S):
                        self.whole = not (await self._receive()).get("more_body", False)
