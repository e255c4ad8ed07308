"""Stalling TCP proxies: hold or cut exactly one request or reply, and let everything else through.

A proxy stands between a client and its server on 127.0.0.1, runs in the test's own event loop and understands
just enough of the protocol to stop at a boundary that a test can name:

    at="request"  the whole request has arrived and is not forwarded: the server knows nothing of it
    at="reply"    (Redis) the server has executed the command; its reply is not passed on
    at="head"     (HTTP) the server has begun to answer; not even its status line is passed on
    at="event"    (HTTP) everything before an SSE event is passed on; it and everything later are not

A test arms a trap, waits until a request has fallen into it, does its mischief and decides:

    trap = proxy.arm(match=lambda argv: argv[0] == b"EVALSHA", at="reply")
    await trap.reached()
    replica.kill9()
    trap.release()                  # or trap.drop(): both sides see their connection end

``action="cut"`` is a trap that drops by itself. A trap springs once, on the ``nth`` match since it was armed, and
only its own connection stands still. What a client sent before it died is still delivered when its trap is
released, as a network would: that is how a test makes a late write.

Within a connection the order of bytes never changes. A proxy that misread its protocol raises when it is stopped.
"""

import asyncio
import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tests.instruments.proxy import Action, Link, StallProxy, Trap
from tests.instruments.resp import Argv, PendingReplies, read_command, read_reply

LOG_ENTRIES_MAX = 50_000
ARG_HEAD_BYTES_MAX = 64
_READ_BYTES = 65_536
_TELL_ADDRESSES = ((b"CLUSTER", b"SLOTS"), (b"SENTINEL", b"MASTER"))


@dataclass(frozen=True, slots=True)
class LoggedCommand:
    """One command as the proxy read it (before any trap); each item cut to its first 64 bytes."""

    connection: int
    argv: Argv


class RedisStall(StallProxy[Argv]):
    """Stands before a Redis or Valkey and stops at whole commands or whole replies.

    Replies are matched to commands by counting, so pipelines, transactions, RESP3 pushes and pub/sub are fine; the
    commands inside a MULTI are seen one by one, each with its own ``+QUEUED``.

    Before the nodes of a cluster, or Sentinels and the servers they watch, it stands before all of them: where a reply
    tells an address (``CLUSTER SLOTS``, ``SENTINEL MASTER``, a redirection), it tells the proxy's own in its place, so
    that a client never finds a way round it.
    """

    def __init__(self, *upstream_ports: int) -> None:
        super().__init__(*upstream_ports)
        self.commands: deque[LoggedCommand] = deque(maxlen=LOG_ENTRIES_MAX)

    def arm(
        self,
        match: Callable[[Argv], bool] = lambda argv: True,
        nth: int = 1,
        at: Literal["request", "reply"] = "request",
        action: Action = "hold",
    ) -> Trap[Argv]:
        """Arm a trap for the ``nth`` command from now on whose whole argument vector satisfies ``match``.

        Command names come in the client's spelling (redis-py sends upper case). Every connection counts.
        """
        return self._add(Trap(match, nth, at, action))

    def count(self, match: Callable[[Argv], bool]) -> int:
        """How many logged commands satisfy ``match``, which sees items of at most 64 bytes."""
        return sum(1 for command in self.commands if match(command.argv))

    def url_through(self, url: str) -> str:
        """The address of the servers as seen through the proxy."""
        return re.sub(r"(?<=:)\d+(?=[,/]|$)", lambda port: str(self.ports[int(port[0])]), url)

    def _told(self, argv: Argv, wire: bytes) -> bytes:
        """A reply with the proxy's ports in place of the servers'."""
        if wire.startswith((b"-MOVED ", b"-ASK ")):
            where, _, port = wire.rpartition(b":")
            return b"%b:%d\r\n" % (where, self.ports[int(port)])
        if argv not in _TELL_ADDRESSES:
            return wire
        for upstream, own in self.ports.items():
            wire = wire.replace(b":%d\r\n" % upstream, b":%d\r\n" % own)
            wire = wire.replace(_bulk(upstream), _bulk(own))
        return wire

    async def _relay(self, link: Link) -> None:
        pending: PendingReplies[_Sent | None] = PendingReplies()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._carry_commands(link, pending))
            group.create_task(self._carry_replies(link, pending))

    async def _carry_commands(self, link: Link, pending: "PendingReplies[_Sent | None]") -> None:
        while (command := await read_command(link.from_client)) is not None:
            heads = tuple(item[:ARG_HEAD_BYTES_MAX] for item in command.argv)
            self.commands.append(LoggedCommand(link.number, heads))
            trap = self._claim(command.argv) if command.argv else None
            if trap is not None and trap.at == "request":
                await trap.spring(link)
                trap = None
            pending.sent(command.argv, _Sent(command.argv[:2], trap))
            await self._pass(link.to_server, command.wire)
        link.client_ended()

    async def _carry_replies(self, link: Link, pending: "PendingReplies[_Sent | None]") -> None:
        while (reply := await read_reply(link.from_server)) is not None:
            sent = pending.answered(reply)
            if sent is not None and sent.trap is not None:
                await sent.trap.spring(link)
            await self._pass(link.to_client, self._told(sent.argv if sent else (), reply.wire))
        await link.server_ended()


@dataclass(frozen=True, slots=True)
class _Sent:
    """A command whose reply is awaited: its first words, and the trap that its reply falls into."""

    argv: Argv
    trap: Trap[Argv] | None


def _bulk(port: int) -> bytes:
    return b"$%d\r\n%d\r\n" % (len(str(port)), port)


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One whole request: ``headers`` by lower-case name, ``body`` without chunk framing."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """One request as the proxy read it, before any trap."""

    connection: int
    method: str
    target: str


class HttpStall(StallProxy[HttpRequest]):
    """Stands before an HTTP/1.1 server and stops at a request, at a response's head or at one of its SSE events.

    Clients must not pipeline (none in use does): everything a server sends after a request was forwarded belongs
    to that request. A response that ends before the wanted event uses the trap up without reaching it.
    """

    def __init__(self, upstream_port: int) -> None:
        super().__init__(upstream_port)
        self.requests: deque[LoggedRequest] = deque(maxlen=LOG_ENTRIES_MAX)

    def arm(
        self,
        match: Callable[[HttpRequest], bool] = lambda request: True,
        nth: int = 1,
        at: Literal["request", "head", "event"] = "request",
        event: int | str | None = None,
        action: Action = "hold",
    ) -> Trap[HttpRequest]:
        """Arm a trap for the ``nth`` request from now on that satisfies ``match``.

        Args:
            match: sees the whole request, body included.
            nth: counts matching requests, not events.
            at: where to stop.
            event: with ``at="event"`` only: the ordinal of the event in its response, from 1, or the first event
                of this name, such as ``"message_delta"``.
            action: ``hold`` until the test decides, or ``cut``.
        """
        if (at == "event") != (event is not None):
            raise ValueError('event goes with at="event"')
        return self._add(_EventTrap(match, nth, at, action, event))

    async def _relay(self, link: Link) -> None:
        exchanges: deque[_Exchange] = deque([_Exchange(None)], maxlen=1)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._carry_requests(link, exchanges))
            group.create_task(self._carry_responses(link, exchanges))

    async def _carry_requests(self, link: Link, exchanges: "deque[_Exchange]") -> None:
        while (read := await _read_request(link.from_client)) is not None:
            request, wire = read
            self.requests.append(LoggedRequest(link.number, request.method, request.target))
            trap = self._claim(request)
            if trap is not None and trap.at == "request":
                await trap.spring(link)
                trap = None
            exchanges.append(_Exchange(trap))
            await self._pass(link.to_server, wire)
        link.client_ended()

    async def _carry_responses(self, link: Link, exchanges: "deque[_Exchange]") -> None:
        while data := await _read_some(link.from_server):
            exchange = exchanges[-1]
            ready, trap = exchange.split(data)
            if ready:
                await self._pass(link.to_client, ready)
            if trap is not None:
                await trap.spring(link)
                await self._pass(link.to_client, exchange.rest())
        if rest := exchanges[-1].rest():
            await self._pass(link.to_client, rest)
        await link.server_ended()


class _EventTrap(Trap[HttpRequest]):
    def __init__(
        self,
        match: Callable[[HttpRequest], bool],
        nth: int,
        at: str,
        action: Action,
        event: int | str | None,
    ) -> None:
        super().__init__(match, nth, at, action)
        self.event = event

    def wants(self, ordinal: int, name: str) -> bool:
        return self.event in (ordinal, name)


class _Exchange:
    """A response on its way: finds the byte at which its trap stops it.

    Events are found by their ``event:`` lines in the raw bytes. Chunk framing stands on lines of its own, so it
    cannot be mistaken for one, and JSON data holds no raw line ends. Only an unfinished line that may become an
    event's is kept back; a finished event is passed on at once.
    """

    _EVENT_LINE = b"event:"

    def __init__(self, trap: Trap[HttpRequest] | None) -> None:
        self._trap = trap
        self._kept = b""
        self._at_line_start = True
        self._events = 0

    def split(self, data: bytes) -> tuple[bytes, Trap[HttpRequest] | None]:
        """What may pass now, and the trap if the response stops after it (the remainder is in ``rest``)."""
        if self._trap is None:
            return data, None
        data = self._kept + data
        stop, found = (0, True) if self._trap.at == "head" else self._scan(data)
        self._kept = data[stop:]
        trap = None
        if found:
            trap, self._trap = self._trap, None
        return data[:stop], trap

    def rest(self) -> bytes:
        """What was kept back."""
        rest, self._kept = self._kept, b""
        return rest

    def _scan(self, data: bytes) -> tuple[int, bool]:
        """Where to stop in ``data``, and whether the wanted event begins there."""
        assert isinstance(self._trap, _EventTrap)
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            line = data[start:end]
            if self._at_line_start and line.startswith(self._EVENT_LINE):
                self._events += 1
                if self._trap.wants(self._events, line[len(self._EVENT_LINE) :].strip().decode()):
                    return start, True
            self._at_line_start = True
            start = end + 1
        unfinished = data[start:]
        if self._at_line_start and _may_begin_with(unfinished, self._EVENT_LINE):
            return start, False
        self._at_line_start = not unfinished
        return len(data), False


def _may_begin_with(beginning: bytes, wanted: bytes) -> bool:
    return beginning[: len(wanted)] == wanted[: len(beginning)]


async def _read_some(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(_READ_BYTES)
    except ConnectionError:
        return b""


async def _read_request(reader: asyncio.StreamReader) -> tuple[HttpRequest, bytes] | None:
    """One whole request and its bytes on the wire; None when the connection ended, even within a request."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (one.partition(":") for one in lines)}
        if "chunked" in headers.get("transfer-encoding", "").lower():
            pieces, body = await _read_chunks(reader)
        else:
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            pieces = [body]
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return HttpRequest(method, target, headers, body), b"".join((head, *pieces))


async def _read_chunks(reader: asyncio.StreamReader) -> tuple[Sequence[bytes], bytes]:
    """A chunked body: its pieces on the wire, trailers included, and the body itself."""
    pieces: list[bytes] = []
    body: list[bytes] = []
    while True:
        size_line = await reader.readuntil(b"\r\n")
        size = int(size_line.split(b";", 1)[0], 16)
        pieces.append(size_line)
        if size == 0:
            break
        chunk = await reader.readexactly(size + 2)
        pieces.append(chunk)
        body.append(chunk[:-2])
    while pieces[-1] != b"\r\n":
        pieces.append(await reader.readuntil(b"\r\n"))
    return pieces, b"".join(body)
