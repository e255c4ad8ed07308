"""The connections of one replica, and how a busy pool is told from a dead store.

A call that finds all of them in use waits for one. If it waits in vain, the others tell why: where the server answered
one of them meanwhile, there are too few connections for the work; where it answered none, it is the store that is away.

A call may have to wait for its connection until nobody wants it any more. Who wants it is asked when there is one, and
once more before the first byte (`CALL`): redis-py writes in a task of its own, and a process may be stopped before it.

A connection that was reset while it was idle is told as what it is. redis-py writes to it all the same, and event loops
answer that with errors of their own: RuntimeError (uvloop), TypeError, AttributeError (redis-py issue 4287).
"""

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

    Attributes:
        sent: it may have been, and was not refused since.
    """

    def __init__(self, wanted: Callable[[], bool] = lambda: True) -> None:
        self.wanted = wanted
        self.sent = False


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
        server_answers: and it answered others meanwhile.
    """

    def __init__(self, why: str, *, pool_is_full: bool = False, server_answers: bool = False) -> None:
        super().__init__(why)
        self.pool_is_full = pool_is_full
        self.server_answers = server_answers


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
        self._answered_at = float("-inf")

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
            busy = full and self._answered_at >= asked_at
            if busy:
                self._on_busy()
            raise NoConnection(str(error), pool_is_full=full, server_answers=busy) from error

    async def _connection(self, *args: Any, **options: Any) -> AbstractConnection:
        return cast(AbstractConnection, await super().get_connection(*args, **options))  # type: ignore[no-untyped-call]

    async def release(self, connection: AbstractConnection) -> None:
        """Takes a connection back; one that was not answered comes back closed."""
        if connection.is_connected:
            self._answered_at = time.monotonic()
        await super().release(connection)
