"""Framing of the Redis protocol, RESP2 and RESP3: where one command or one reply ends.

Only framing: values stay the bytes that were on the wire. Every reader returns whole units together with those
bytes, so that a proxy can hold a unit back and later pass it on unchanged.

Not understood, because nothing under test uses them: ``MONITOR`` and ``CLIENT REPLY`` (replies that answer no
command, commands without a reply) and streamed aggregates (``$?``, ``*?``; no server sends them).
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Argv = tuple[bytes, ...]
T = TypeVar("T")

_SCALARS = b"+-:_,#("
_BLOBS = b"$=!"
_AGGREGATES = b"*~>%|"

_SUBSCRIPTIONS = frozenset(
    {b"subscribe", b"psubscribe", b"ssubscribe", b"unsubscribe", b"punsubscribe", b"sunsubscribe"}
)
_MESSAGES = frozenset({b"message", b"pmessage", b"smessage"})


class ProtocolError(ValueError):
    """The bytes are no RESP; the proxy, not the code under test, is likely wrong."""


@dataclass(frozen=True, slots=True)
class Command:
    """One request as sent; ``wire`` is what to forward."""

    argv: Argv
    wire: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """One whole reply, nested ones included; ``wire`` is what to forward.

    ``push`` is RESP3's out-of-band type; ``word`` is the first string of an aggregate in lower case (that tells
    the kinds of pub/sub messages apart), empty for everything else.
    """

    wire: bytes
    push: bool
    word: bytes


async def read_command(reader: asyncio.StreamReader) -> Command | None:
    """Read one command: an array of bulk strings, or an inline line of words.

    Returns:
        The command, or None when the connection ended, even in the middle of one: a server drops a half command.

    Raises:
        ProtocolError: an array that holds anything but bulk strings.
    """
    try:
        line = await _line(reader)
        if line[:1] != b"*":
            return Command(tuple(line.split()), line)
        pieces, argv = [line], []
        for _ in range(int(line[1:])):
            header = await _line(reader)
            if header[:1] != b"$":
                raise ProtocolError(f"a command holds {header[:16]!r}, not a bulk string")
            body = await reader.readexactly(int(header[1:]) + 2)
            pieces += (header, body)
            argv.append(body[:-2])
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return Command(tuple(argv), b"".join(pieces))


async def read_reply(reader: asyncio.StreamReader) -> Reply | None:
    """Read one reply of any type and depth, attributes before it included.

    Returns:
        The reply, or None when the connection ended, even in the middle of one.

    Raises:
        ProtocolError: an unknown type byte.
    """
    pieces: list[bytes] = []
    first, word = b"", b""
    missing = 1  # units still to come; an aggregate adds its own, so nesting needs no recursion
    try:
        while missing:
            line = await _line(reader)
            kind = line[:1]
            pieces.append(line)
            missing -= 1
            if kind in _AGGREGATES:
                missing += _aggregate_units(line)
            elif kind in _BLOBS:
                size = int(line[1:])
                if size >= 0:
                    pieces.append(await reader.readexactly(size + 2))
            elif kind not in _SCALARS:
                raise ProtocolError(f"a reply holds {line[:16]!r}")
            if kind != b"|" and not first:
                first = kind
            elif len(pieces) == 3 and kind == b"$":
                word = pieces[2][:-2].lower()
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return Reply(b"".join(pieces), push=first == b">", word=word)


def _aggregate_units(line: bytes) -> int:
    """How many units follow the header of an array, set, push, map or attribute; null arrays have none."""
    count = max(int(line[1:]), 0)
    if line[:1] == b"%":
        return 2 * count
    if line[:1] == b"|":
        return 2 * count + 1  # an attribute stands before a reply and is none itself
    return count


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n")
    except asyncio.LimitOverrunError as error:
        raise ProtocolError("a line without an end") from error


@dataclass(slots=True)
class _Awaited(Generic[T]):
    tag: T
    subscription: bool
    confirmations: int


class PendingReplies(Generic[T]):
    """Which command a reply answers, on one connection: in order, but for pub/sub, whose messages answer none.

    ``SUBSCRIBE a b`` is answered by one confirmation per channel: pushes in RESP3, plain arrays in RESP2.
    """

    def __init__(self) -> None:
        self._awaited: deque[_Awaited[T]] = deque()
        self._subscribed = False

    def sent(self, argv: Sequence[bytes], tag: T) -> None:
        """Note a command about to be forwarded; ``tag`` comes back with its (last) reply."""
        if not argv:
            return  # servers skip empty lines and empty arrays without a reply
        subscription = argv[0].lower() in _SUBSCRIPTIONS
        self._subscribed |= subscription
        self._awaited.append(_Awaited(tag, subscription, max(1, len(argv) - 1)))

    def answered(self, reply: Reply) -> T | None:
        """The tag of the command that this reply completes; None if it completes none."""
        head = self._awaited[0] if self._awaited else None
        confirms = head is not None and head.subscription and reply.word in _SUBSCRIPTIONS
        if reply.push and not confirms:
            return None
        if self._subscribed and reply.word in _MESSAGES:
            return None
        if head is None:
            return None  # a last word before closing, such as "-ERR max number of clients reached"
        if confirms and head.confirmations > 1:
            head.confirmations -= 1
            return None
        return self._awaited.popleft().tag
