"""A caller of a replica over HTTP that looks at bytes, and waiting for what others see."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp

DEADLINE_S = 10.0
POLL_S = 0.02
CHAT = "/v1/chat/completions"

T = TypeVar("T")


async def eventually(look: Callable[[], Awaitable[T | None]], what: str, timeout_s: float = DEADLINE_S) -> T:
    """Looks again and again until there is something to see."""
    deadline = time.monotonic() + timeout_s
    while not (found := await look()):
        assert time.monotonic() < deadline, f"never seen: {what}"
        await asyncio.sleep(POLL_S)
    return found


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response; ``json`` is None if the body is none."""

    status: int
    headers: Any
    body: bytes
    json: Any

    @property
    def text(self) -> str:
        """What a completion says."""
        assert self.status == 200, self.body
        return str(self.json["choices"][0]["message"]["content"])

    @property
    def code(self) -> str:
        """The code of an error in OpenAI's shape."""
        assert self.status >= 400, self.body
        assert self.json["error"].keys() == {"message", "type", "param", "code"}
        assert self.headers["x-should-retry"] in ("true", "false")
        return str(self.json["error"]["code"])


class Stream:
    """A streamed response while it is read, frame by frame; ids are taken off and must leave no gap.

    Attributes:
        frames: all so far, without their ids.
        last_id: of the last event that had one; 0 before.
    """

    def __init__(self, response: aiohttp.ClientResponse, last_id: int = 0) -> None:
        self._response = response
        self._rest = b""
        self.status = response.status
        self.headers = response.headers
        self.frames: list[bytes] = []
        self.last_id = last_id

    async def frame(self) -> bytes | None:
        """The next frame without its blank line; None at the end of the response."""
        while b"\n\n" not in self._rest:
            chunk = await self._response.content.readany()
            if not chunk:
                assert self._rest == b"", "the stream ended in the middle of a frame"
                return None
            self._rest += chunk
        frame, _, self._rest = self._rest.partition(b"\n\n")
        if frame.startswith(b"id: "):
            ordinal, _, frame = frame.removeprefix(b"id: ").partition(b"\n")
            assert int(ordinal) == self.last_id + 1, (self.last_id, ordinal)
            self.last_id += 1
        self.frames.append(frame)
        return frame

    async def words(self, count: int) -> str:
        """Reads until so many chunks with text have come; returns the text."""
        said: list[str] = []
        while len(said) < count:
            frame = await self.frame()
            assert frame is not None, self.frames
            if text := text_of([frame]):
                said.append(text)
        return "".join(said)

    async def rest(self) -> list[bytes]:
        """Reads to the end; returns all frames from the first."""
        while await self.frame() is not None:
            pass
        return self.frames

    def hang_up(self) -> None:
        """Closes the connection."""
        self._response.close()


def chunks_of(frames: list[bytes]) -> list[Any]:
    """The JSON of the ``data:`` frames but for ``[DONE]``."""
    return [json.loads(frame[6:]) for frame in frames if frame.startswith(b"data: {")]


def text_of(frames: list[bytes]) -> str:
    chunks = chunks_of(frames)
    return "".join(c["delta"].get("content") or "" for chunk in chunks for c in chunk.get("choices", ()))


class Caller:
    """Asks one replica.

    Args:
        http: the connections.
        url: of the replica.
    """

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self.http = http
        self.url = url

    async def request(self, method: str, path: str, **options: Any) -> Answer:
        async with self.http.request(method, self.url + path, **options) as response:
            body = await response.read()
            parsed = json.loads(body) if response.content_type == "application/json" and body else None
            return Answer(response.status, response.headers, body, parsed)

    async def get(self, path: str) -> Answer:
        return await self.request("GET", path)

    async def chat(
        self, said: str, session: str | None = None, *, headers: dict[str, str] | None = None, **fields: Any
    ) -> Answer:
        """One turn, not streamed."""
        return await self.request("POST", CHAT, json=body_of(said, session, fields), headers=headers)

    @asynccontextmanager
    async def stream(
        self, said: str, session: str | None = None, *, headers: dict[str, str] | None = None, **fields: Any
    ) -> AsyncIterator[Stream]:
        """One turn, streamed."""
        body = body_of(said, session, {"stream": True, **fields})
        async with self.http.post(self.url + CHAT, json=body, headers=headers) as response:
            yield Stream(response)

    async def session(self, name: str) -> Any:
        """The session object."""
        answer = await self.get(f"/v1/sessions/{name}")
        assert answer.status == 200, answer.body
        return answer.json

    async def messages(self, name: str) -> list[Any]:
        """The first 100 stored messages."""
        answer = await self.get(f"/v1/sessions/{name}/messages?limit=100")
        assert answer.status == 200, answer.body
        found: list[Any] = answer.json["messages"]
        return found


def body_of(said: str, session: str | None, fields: dict[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": said}], **fields}
    return body if session is None else {**body, "session_id": session}
