"""The ground both stalling proxies stand on: traps, links, switches and weather for all traffic. No protocol.

A proxy listens on a free port of 127.0.0.1 in the event loop of the test. Every client connection becomes a link
with a connection of its own to the server, and two pumps, one for each direction; a pump that stands in a trap
stops reading, so nothing overtakes what is held. The end of either side is passed on only after everything before
it, so what a client sent before it died is still delivered when its trap is released, as a network would.

The weather holds for all links, old and new, in both directions, until it changes: fine; slow (every piece comes late);
a trickle (a few bytes at a time); a black hole (whatever is sent is lost, and nobody is told). Beside it, `freeze`
holds everything and loses nothing, `reset` breaks every connection that there is, `forget` makes each of them lead
nowhere without telling anybody, and `refuse` takes the whole server away.
"""

import asyncio
import contextlib
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Generic, Literal, Self, TypeVar

from tests.instruments.ports import LOOPBACK, reserved_port

REACHED_TIMEOUT_S = 10.0
_LINE_BYTES_MAX = 1_048_576

Action = Literal["hold", "cut"]
S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Weather:
    """What happens to each piece on its way: a command, a reply, or a part of a body.

    Attributes:
        delay_s: it comes so much later.
        trickle: bytes at once, and the pause after them, s; None for all at once.
        lost: it never comes.
    """

    delay_s: float = 0.0
    trickle: tuple[int, float] | None = None
    lost: bool = False


FINE = Weather()
BLACK_HOLE = Weather(lost=True)


class LinkEnded(Exception):
    """Internal: this connection is over; leaves the pumps of both directions."""


class Trap(Generic[S]):
    """One armed stop; ``S`` is what its predicate looks at.

    States: armed → reached → released or dropped. The decision may be taken before the trap is reached.
    """

    def __init__(self, match: Callable[[S], bool], nth: int, at: str, action: Action) -> None:
        if nth < 1:
            raise ValueError("nth counts from 1")
        self.match, self.nth, self.at, self.action = match, nth, at, action
        self.seen = 0
        self._reached = asyncio.Event()
        self._decided = asyncio.Event()
        self._dropped = False

    @property
    def is_reached(self) -> bool:
        """Whether a request stands, or stood, in this trap."""
        return self._reached.is_set()

    async def reached(self, timeout_s: float = REACHED_TIMEOUT_S) -> None:
        """Wait until a request stands here; with ``action="cut"``, until the connection has been cut.

        Raises:
            TimeoutError: nothing came within ``timeout_s`` seconds; says how many requests matched.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._reached.wait()
        except TimeoutError:
            seen = f"{self.seen} of {self.nth} matches seen"
            if self.seen >= self.nth:
                seen += "; its response has not come to that point"
            raise TimeoutError(f"trap at {self.at!r} not reached in {timeout_s} s: {seen}") from None

    def release(self) -> None:
        """Pass on what is held, and everything after it."""
        self._decided.set()

    def drop(self) -> None:
        """End both sides of the connection; what is held is never passed on."""
        self._dropped = True
        self._decided.set()

    async def spring(self, link: "Link") -> None:
        """Called by the proxy: stand here until the test decides.

        Raises:
            LinkEnded: the connection was cut or dropped.
        """
        if self.action == "cut":
            link.abort()
            self._reached.set()
            raise LinkEnded
        self._reached.set()
        await self._decided.wait()
        if self._dropped:
            link.abort()
            raise LinkEnded


@dataclass(eq=False, slots=True)
class Link:
    """A client's connection and the connection to the server that it stands for."""

    number: int
    from_client: asyncio.StreamReader
    to_client: asyncio.StreamWriter
    from_server: asyncio.StreamReader
    to_server: asyncio.StreamWriter

    def abort(self) -> None:
        """End both connections at once, without flushing."""
        self.to_client.transport.abort()
        self.to_server.transport.abort()

    def reset(self) -> None:
        """Break both connections as a host does that does not know them: RST instead of an orderly end."""
        for writer in (self.to_client, self.to_server):
            sock = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):  # it has ended already, and its link is about to
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.abort()

    async def ended(self) -> None:
        """Leave nothing open: abort, and wait until the loop has let go of both sockets."""
        self.abort()
        for writer in (self.to_client, self.to_server):
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def client_ended(self) -> None:
        """The client will send no more: say so to the server, which may still answer what it has."""
        with contextlib.suppress(OSError):
            self.to_server.write_eof()

    async def server_ended(self) -> None:
        """The server will send no more: flush to the client and end the link."""
        self.to_client.close()
        with contextlib.suppress(OSError):
            await self.to_client.wait_closed()
        raise LinkEnded


class StallProxy(ABC, Generic[S]):
    """What both proxies share: listening, links, traps and the switches for all traffic.

    Use as ``async with RedisStall(port) as proxy``. Before several servers it is still one proxy, with a port for each.

    Attributes:
        ports: its own, by the server's.
    """

    def __init__(self, *upstream_ports: int) -> None:
        self.ports = dict.fromkeys(upstream_ports, 0)
        self._reservation = contextlib.ExitStack()
        self._servers: list[asyncio.Server] | None = None
        self._links: set[asyncio.Task[None]] = set()
        self._links_made = 0
        self._traps: list[Trap[S]] = []
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._live: set[Link] = set()
        self._nowhere: set[asyncio.StreamWriter] = set()
        self.weather = FINE
        self._misread: list[Exception] = []

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def port(self) -> int:
        """Where it listens, before the first server or the only one."""
        return next(iter(self.ports.values()))

    async def accept(self) -> None:
        """Listen: on free ports at first, on the same ports again after ``refuse``."""
        if self._servers is None:
            self._servers = []
            for upstream, port in self.ports.items():
                self.ports[upstream] = port or self._reservation.enter_context(reserved_port())
                connected = partial(self._connected, upstream)
                own = self.ports[upstream]
                self._servers.append(await asyncio.start_server(connected, LOOPBACK, own, limit=_LINE_BYTES_MAX))

    async def refuse(self) -> None:
        """Stop listening and end every connection: the servers are gone, as far as clients can tell."""
        servers, self._servers = self._servers or [], None
        for server in servers:
            server.close()
        links = list(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)
        for server in servers:
            await server.wait_closed()

    async def stop(self) -> None:
        """End everything and give the port back.

        Raises:
            ExceptionGroup: the proxy misread its protocol on the way, so the test proved nothing.
        """
        await self.refuse()
        self._reservation.close()
        if self._misread:
            raise ExceptionGroup(f"{type(self).__name__} misread its protocol", self._misread)

    def freeze(self) -> None:
        """Hold all traffic, both ways; connections stay open and new ones are accepted."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Let all traffic go on."""
        self._flowing.set()

    def reset(self) -> None:
        """Break every connection that there is; new ones can be made."""
        for link in self._live:
            link.reset()

    def forget(self) -> None:
        """From now on nothing arrives any more on the connections that there are; new ones are fine."""
        for link in self._live:
            self._nowhere |= {link.to_client, link.to_server}

    def _add(self, trap: Trap[S]) -> Trap[S]:
        self._traps.append(trap)
        return trap

    def _claim(self, subject: S) -> Trap[S] | None:
        """Let every armed trap count ``subject``; the first one due takes it and is armed no more."""
        due = None
        for trap in self._traps:
            if trap.match(subject):
                trap.seen += 1
                if due is None and trap.seen >= trap.nth:
                    due = trap
        if due is not None:
            self._traps.remove(due)
        return due

    async def _pass(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        await self._flowing.wait()
        weather = self.weather
        if weather.lost or writer in self._nowhere:
            return
        if weather.delay_s:
            await asyncio.sleep(weather.delay_s)
        size, pause_s = weather.trickle or (len(data), 0.0)
        for at in range(0, len(data), size):
            writer.write(data[at : at + size])
            await writer.drain()
            if pause_s:
                await asyncio.sleep(pause_s)

    def _connected(self, upstream: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.get_running_loop().create_task(self._serve(upstream, reader, writer))
        self._links.add(link)
        link.add_done_callback(self._links.discard)
        link.add_done_callback(lambda _: writer.transport.abort())  # also if it was cancelled before it began

    async def _serve(self, upstream: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._servers is None:
                raise LinkEnded  # accepted just before ``refuse``
            server = await asyncio.open_connection(LOOPBACK, upstream, limit=_LINE_BYTES_MAX)
            self._links_made += 1
            link = Link(self._links_made, reader, writer, *server)
            self._live.add(link)
            try:
                await self._relay(link)
            finally:
                self._live.discard(link)
                self._nowhere -= {link.to_client, link.to_server}
                await link.ended()
        except* (LinkEnded, OSError):
            pass
        except* Exception as group:
            self._misread.append(group)

    @abstractmethod
    async def _relay(self, link: Link) -> None:
        """Carry both directions of one link until it ends."""
