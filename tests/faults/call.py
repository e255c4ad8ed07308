"""One request as its caller sees it, byte by byte: how far an answer came, and whether it said that it was over.

HTTP is read by hand, because an HTTP library hides what matters here: where a stream was cut, and what stood before
the cut. A caller can also stop reading, with buffers so small that the replica soon cannot write any more.
"""

import asyncio
import json
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

CALL_TIMEOUT_S = 12.0
_READ_BYTES = 65_536
# What a caller takes before it reads: the segment size also keeps the kernel's buffer of the sender small.
_NARROW_BYTES = 4_096
_NARROW_SEGMENT_BYTES = 536


@dataclass(frozen=True, slots=True)
class Seen:
    """An answer as far as it came.

    Attributes:
        status: None if not even the head came.
        headers: by lower-case name.
        whole: the body ended as HTTP ends one, not by a broken connection.
        frames: the JSON objects of the body: one if it was no stream.
        done: a stream said ``[DONE]``.
    """

    status: int | None
    headers: dict[str, str]
    whole: bool
    frames: tuple[dict[str, Any], ...]
    done: bool

    @property
    def text(self) -> str:
        """The answer's text, as far as it was shown."""
        choices = [choice for frame in self.frames for choice in frame.get("choices", ())]
        return "".join((one.get("delta") or one["message"]).get("content") or "" for one in choices if _speaks(one))

    @property
    def finish(self) -> str | None:
        """The finish reason, None if none was told."""
        choices = [choice for frame in self.frames for choice in frame.get("choices", ())]
        return next((one["finish_reason"] for one in choices if one["finish_reason"] is not None), None)

    @property
    def error(self) -> str | None:
        """The code of the error that was told, as a body or as the last word of a stream."""
        return next((frame["error"]["code"] for frame in self.frames if "error" in frame), None)


def _speaks(choice: dict[str, Any]) -> bool:
    return bool(choice.get("delta")) or "message" in choice


class Call:
    """A POST of a chat completion under way; ``await call.ended()`` for all of it, ``call.seen()`` for what came."""

    def __init__(self, url: str, body: dict[str, Any], headers: dict[str, str], *, reads: bool = True) -> None:
        """Send it.

        Args:
            url: of the replica.
            body: sent as JSON.
            headers: besides those that HTTP asks for.
            reads: False to take nothing from the connection until ``read_on``.
        """
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._address = (parts.hostname, parts.port)
        payload = json.dumps(body).encode()
        lines = {
            "host": parts.netloc,
            "content-type": "application/json",
            "content-length": str(len(payload)),
            "connection": "close",
            **headers,
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._request = b"POST /v1/chat/completions HTTP/1.1\r\n" + head.encode() + b"\r\n" + payload
        self._narrow = not reads
        self._may_read = asyncio.Event()
        if reads:
            self._may_read.set()
        self._raw = bytearray()
        self._arrived = asyncio.Condition()
        self._task = asyncio.create_task(self._run())

    def read_on(self) -> None:
        """Take from now on what there is."""
        self._may_read.set()

    async def ended(self, timeout_s: float = CALL_TIMEOUT_S) -> Seen:
        """Wait until the connection is over; returns all that came."""
        async with asyncio.timeout(timeout_s):
            await asyncio.shield(self._task)
        return self.seen()

    async def shows(self, text: str) -> None:
        """Wait until the answer's text, as far as it was shown, is ``text``."""
        async with asyncio.timeout(CALL_TIMEOUT_S), self._arrived:
            await self._arrived.wait_for(lambda: self.seen().text == text or self._task.done())
        assert self.seen().text == text

    async def _run(self) -> None:
        with socket.socket() as connection:
            connection.setblocking(False)
            if self._narrow:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _NARROW_BYTES)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _NARROW_SEGMENT_BYTES)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(connection, self._address)
            await loop.sock_sendall(connection, self._request)
            await self._may_read.wait()
            try:
                while data := await loop.sock_recv(connection, _READ_BYTES):
                    await self._take(data)
            except ConnectionError:
                pass  # how a killed replica's connection ends, too
        await self._take(b"")

    async def _take(self, data: bytes) -> None:
        async with self._arrived:
            self._raw += data
            self._arrived.notify_all()

    def seen(self) -> Seen:
        """What came so far."""
        head, split, rest = bytes(self._raw).partition(b"\r\n\r\n")
        if not split:
            return Seen(None, {}, False, (), False)
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if headers.get("transfer-encoding") == "chunked":
            body, whole = _unchunked(rest)
        else:
            body, whole = rest, len(rest) == int(headers.get("content-length", "-1"))
        if headers.get("content-type", "").startswith("text/event-stream"):
            *events, _ = body.split(b"\n\n")
            lines_of = [event.partition(b"\n")[2] if event.startswith(b"id: ") else event for event in events]
            said = [event.removeprefix(b"data: ") for event in lines_of if event.startswith(b"data: ")]
        else:
            said = [body] if whole else []
        frames = tuple(json.loads(one) for one in said if one != b"[DONE]")
        return Seen(int(first.split()[1]), headers, whole, frames, b"[DONE]" in said)


def _unchunked(wire: bytes) -> tuple[bytes, bool]:
    """The body without its chunk framing, as far as it came, and whether its last chunk came too."""
    body = bytearray()
    while True:
        size_line, split, rest = wire.partition(b"\r\n")
        if not split:
            return bytes(body), False
        size = int(size_line, 16)
        if size == 0:
            return bytes(body), rest == b"\r\n"
        body += rest[:size]
        wire = rest[size + 2 :]


def assert_complete(seen: Seen, text: str) -> None:
    """The caller was told all of ``text``, and that it is all."""
    assert (seen.status, seen.error, seen.text) == (200, None, text)
    assert seen.finish == "stop"
    assert seen.whole
    assert seen.done == seen.headers["content-type"].startswith("text/event-stream")


def assert_lost(seen: Seen) -> None:
    """The caller was told nothing; its connection broke."""
    assert seen.status is None


def assert_cut(seen: Seen, text: str) -> None:
    """The caller was shown ``text``; its stream broke without an end."""
    assert (seen.status, seen.text) == (200, text)
    assert (seen.whole, seen.done, seen.finish, seen.error) == (False, False, None, None)


def assert_told(seen: Seen, code: str, status: int) -> None:
    """The caller was told this error, by the status or as the last word of its stream, and no success."""
    assert seen.error == code
    assert seen.status in (200, status)
    assert (seen.done, seen.finish) == (False, None)
    assert seen.whole
    assert "choices" not in seen.frames[-1]
    if seen.status == 200:
        assert seen.headers["content-type"].startswith("text/event-stream")
