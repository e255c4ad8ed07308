"""The connections of one replica, and how a busy pool is told from a dead store.

A call that finds all of them in use waits for one. What ends a turn goes first: it was paid for. If a call waits in
vain, the others tell why: where the server answered one of them meanwhile, there are too few connections for the work;
where it answered none, it is the store that is away.

A call may have to wait for its connection until nobody wants it any more. Who wants it is asked when there is one, and
once more before the first byte (`CALL`): redis-py writes in a task of its own, and a process may be stopped before it.

A connection that was reset while it was idle is told as what it is. redis-py writes to it all the same, and event loops
answer that with errors of their own: RuntimeError (uvloop), TypeError, AttributeError (redis-py issue 4287).
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, Final, cast

from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import AbstractConnection, Connection
from redis.exceptions import AuthenticationError, BusyLoadingError, ConnectionError, TimeoutError

_ANSWERS = (AuthenticationError, BusyLoadingError)  # which redis-py counts among errors of connections
_WAITED_IN_VAIN = "No connection available."  # how redis-py says it; it has no type for that


class Call:
    """A call on its way to its connection.

    Args:
        wanted: whether somebody still wants it.
        goes_first: before all others that wait for a connection.

    Attributes:
        sent: it may have been, and was not refused since.
        crowded_out: it waited for a connection in vain, or is given up while it waits, and the server answered others.
    """

    def __init__(self, wanted: Callable[[], bool] = lambda: True, *, goes_first: bool = False) -> None:
        self.wanted = wanted
        self.goes_first = goes_first
        self.sent = False
        self.crowded_out = False


CALL: Final[ContextVar[Call | None]] = ContextVar("call", default=None)
"""The call that is made here. In a context variable, since redis-py lies between those who make it (scripts.py) and the
place where it counts: behind every wait, before the first byte."""


def refused_call() -> None:
    """Notes that what was sent was refused: until it is sent again it has surely not been executed."""
    if (call := CALL.get()) is not None:
        call.sent = False


class Unwanted(ConnectionError):
    """By the time it could be sent nobody wanted it any more; so it was not."""


class NoConnection(ConnectionError):
    """There was no connection to be had, so nothing was sent.

    Attributes:
        pool_is_full: all were in use for the whole wait; that alone says nothing about the server.
    """

    def __init__(self, why: str, *, pool_is_full: bool = False) -> None:
        super().__init__(why)
        self.pool_is_full = pool_is_full


class _LooksFirst(AbstractConnection):
    """Looks whether it is still there, and who wants it used; between that and the write nothing else can happen."""

    async def _send_packed_command(self, command: Iterable[bytes]) -> None:
        if (call := CALL.get()) is not None:
            if not call.wanted():
                raise Unwanted("nobody wants it any more")
            call.sent = True
        if self._writer is None or self._writer.transport.is_closing():
            raise ConnectionError("the connection was closed while it was idle")
        await super()._send_packed_command(command)


class Pool(BlockingConnectionPool):
    """A pool that knows when the server last answered.

    Args:
        connection_class: of redis-py.
        on_busy: called when a call has waited in vain though the server answers.
        options: of redis-py's pool.

    Attributes:
        answered_at: when the server last answered anything, by the monotonic clock.
    """

    def __init__(
        self,
        *,
        connection_class: type[AbstractConnection] = Connection,
        on_busy: Callable[[], object] = lambda: None,
        **options: Any,
    ) -> None:
        looks_first = type(connection_class.__name__, (_LooksFirst, connection_class), {})
        super().__init__(connection_class=looks_first, **options)
        self._on_busy = on_busy
        self._waiting: dict[asyncio.Task[Any] | None, bool] = {}  # for a place; and whether it goes first
        self._first = 0  # of these
        self.answered_at = float("-inf")

    async def get_connection(self, *args: Any, **options: Any) -> AbstractConnection:
        """A connection that can be written to; one that breaks while it is made is made once more.

        Raises:
            NoConnection: none within the pool's wait, or none can be made.
            Unwanted: there is one, and nobody who wants to use it.
        """
        connection = await self._made(*args, **options)
        if (call := CALL.get()) is not None:
            call.sent = False  # but for what made the connection
            if not call.wanted():  # as below, but there it costs the connection
                await super().release(connection)
                raise Unwanted("nobody wants it any more")
        return connection

    async def _made(self, *args: Any, **options: Any) -> AbstractConnection:
        asked_at = time.monotonic()
        try:
            try:
                return await self._connection(*args, **options)
            except ConnectionError as error:
                if str(error) == _WAITED_IN_VAIN or isinstance(error, _ANSWERS):
                    raise
                return await self._connection(*args, **options)
        except _ANSWERS:
            raise
        except (ConnectionError, TimeoutError) as error:
            full = str(error) == _WAITED_IN_VAIN
            if full and self.answered_at >= asked_at:
                self._on_busy()
            raise NoConnection(str(error), pool_is_full=full) from error

    async def _connection(self, *args: Any, **options: Any) -> AbstractConnection:
        call, who, asked_at = CALL.get(), asyncio.current_task(), time.monotonic()
        first = call is not None and call.goes_first
        self._waiting[who] = first
        self._first += first
        try:
            return cast(AbstractConnection, await super().get_connection(*args, **options))  # type: ignore[no-untyped-call]
        finally:
            if self._waiting.pop(who, None) is not None:  # in vain
                if call is not None:
                    call.crowded_out = self.answered_at >= asked_at
                if first:
                    self._first -= 1
                    async with self._condition:
                        self._condition.notify_all()

    def can_get_connection(self) -> bool:
        """Whether who asks may have one now."""
        allowed = not self._first or self._waiting.get(asyncio.current_task(), False)
        return allowed and bool(super().can_get_connection())

    def get_available_connection(self) -> AbstractConnection:
        """The place of who asks; `_condition` is held."""
        connection = cast(AbstractConnection, super().get_available_connection())  # type: ignore[no-untyped-call]
        if self._waiting.pop(asyncio.current_task(), False):
            self._first -= 1
            self._condition.notify_all()  # there may be more places, and the others were told that they have to wait
        return connection

    async def release(self, connection: AbstractConnection) -> None:
        """Takes a connection back; one that was not answered comes back closed."""
        if connection.is_connected:
            self.answered_at = time.monotonic()
        async with self._condition:
            await super(BlockingConnectionPool, self).release(
                connection
            )  # which would wake but one, perhaps the wrong one
            self._condition.notify(len(self._waiting) if self._first else 1)
