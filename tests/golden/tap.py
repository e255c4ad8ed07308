"""A tap on the wire between a replica and Claude: passes every byte on, and keeps them for who reads along."""

import asyncio
import contextlib
import http.client
import io
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from tests.instruments.ports import LOOPBACK

_READ_BYTES: Final = 65_536


@dataclass(frozen=True, slots=True)
class Heard:
    """One half of an exchange: the first line, headers in lower case, the body without its framing."""

    line: str
    headers: dict[str, str]
    body: bytes


class Tap:
    """Listens for a replica; to be used while one exchange goes on at a time.

    Attributes:
        url: where it listens; known inside ``async with``.
        port: of the server behind it, on loopback; to be set before anybody comes.
    """

    url = ""
    port = 0

    def __init__(self) -> None:
        self._asked: dict[int, bytearray] = {}
        self._told: dict[int, bytearray] = {}
        self._links: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, LOOPBACK, 0)
        self.url = f"http://{LOOPBACK}:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    def take(self) -> list[tuple[Heard, Heard]]:
        """The exchanges since the last call, by connection; none of them may be running."""
        found = []
        for link, asked in self._asked.items():
            found += list(zip(_requests(asked), _answers(self._told[link]), strict=True))
            asked.clear()
            self._told[link].clear()
        return found

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.create_task(self._serve(reader, writer))
        self._links.add(link)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = len(self._asked)
        self._asked[link], self._told[link] = bytearray(), bytearray()
        from_server, to_server = await asyncio.open_connection(LOOPBACK, self.port)
        with contextlib.closing(writer), contextlib.closing(to_server), contextlib.suppress(ConnectionError):
            await asyncio.gather(
                _pump(reader, to_server, self._asked[link]), _pump(from_server, writer, self._told[link])
            )


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter, kept: bytearray) -> None:
    while data := await source.read(_READ_BYTES):
        kept += data
        target.write(data)
        await target.drain()
    target.write_eof()


def _requests(raw: bytearray) -> list[Heard]:
    stream, found = io.BytesIO(bytes(raw)), []
    while line := stream.readline():
        headers = {name.lower(): value for name, value in http.client.parse_headers(stream).items()}
        body = stream.read(int(headers.get("content-length", "0")))
        found.append(Heard(line.decode("latin-1").strip(), headers, body))
    return found


class _Socket:
    """As much of a socket as `http.client` reads a response from."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream

    def makefile(self, mode: str) -> io.BufferedReader:
        return self._stream


def _answers(raw: bytearray) -> list[Heard]:
    stream, found = _Kept(bytes(raw)), []
    while stream.tell() < len(raw):
        answer = http.client.HTTPResponse(_Socket(stream))  # type: ignore[arg-type]
        answer.begin()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        found.append(Heard(f"{answer.status}", headers, answer.read()))
    return found


class _Kept(io.BytesIO):
    """Outlives the responses that are read from it."""

    def close(self) -> None:
        pass
