"""A balancer of connections, as simple as one can be: each new connection goes to the next target that takes it.

It knows no HTTP and repeats nothing, so what a client sends again, it sends again by itself. A connection that its
target breaks is broken for the client too.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

LOOPBACK = "127.0.0.1"
_READ_BYTES = 65_536


class Balancer:
    """Listens on a free port inside ``async with``.

    Attributes:
        port: where it listens.
        connections: how many it has passed on.
    """

    def __init__(self, targets: Callable[[], Sequence[int]]) -> None:
        """Plan it.

        Args:
            targets: the ports to choose from, asked for at each connection.
        """
        self._targets = targets
        self._turn = itertools.count()
        self._links: set[asyncio.Task[None]] = set()
        self.port = 0
        self.connections = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, LOOPBACK, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        link.add_done_callback(self._links.discard)
        try:
            far_reader, far_writer = await self._connect()
        except ConnectionError:
            writer.transport.abort()
            return
        self.connections += 1
        there = asyncio.create_task(_pump(reader, far_writer))
        back = asyncio.create_task(_pump(far_reader, writer))
        try:
            # Either side's end is the end: HTTP has no use for half a connection.
            await asyncio.wait([there, back], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in (there, back):
                pump.cancel()
            for end in (writer, far_writer):
                end.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        ports = list(self._targets())
        for _ in ports:
            with contextlib.suppress(ConnectionError):
                return await asyncio.open_connection(LOOPBACK, ports[next(self._turn) % len(ports)])
        raise ConnectionRefusedError("no target takes connections")


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(_READ_BYTES):
            sink.write(data)
            await sink.drain()
