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
import builtins
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, Final, cast

from redis.asyncio import BlockingConnectionPool, ConnectionPool
from redis.asyncio.connection import AbstractConnection, Connection
from redis.exceptions import AuthenticationError, BusyLoadingError, ConnectionError, TimeoutError


class Call:
    """A call on its way to its connection.

    Args:
        wanted: whether somebody still wants it.
        goes_first: before all others that wait for a connection.

    Attributes:
        sent: it may have been, and was not refused since.
        crowded_out: it waited for a connection in vain, or is given up while it waits, and the server answered others.
        crowded_s: how long it has waited for connections while the server answered others, with or without success.
    """

    def __init__(self, wanted: Callable[[], bool] = lambda: True, *, goes_first: bool = False) -> None:
        self.wanted = wanted
        self.goes_first = goes_first
        self.sent = False
        self.crowded_out = False
        self.crowded_s = 0.0


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


_TOLD_AS_IT_IS: Final = (NoConnection, Unwanted, AuthenticationError, BusyLoadingError)
"""Of what redis-py counts among errors of connections: our own, and answers."""


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
        connection = await self._made()
        if (call := CALL.get()) is not None:
            call.sent = False  # but for what made the connection
            if not call.wanted():  # as below, but there it costs the connection
                await self._put_back(connection)
                raise Unwanted("nobody wants it any more")
        return connection

    async def _made(self) -> AbstractConnection:
        try:
            try:
                return await self._connected()
            except _TOLD_AS_IT_IS:
                raise
            except ConnectionError:
                return await self._connected()
        except _TOLD_AS_IT_IS:
            raise
        except (ConnectionError, TimeoutError) as error:
            raise NoConnection(str(error)) from error

    async def _connected(self) -> AbstractConnection:
        connection = await self._place()
        try:
            await self.ensure_connection(connection)
        except BaseException:
            await self._put_back(connection)
            raise
        return connection

    async def _place(self) -> AbstractConnection:
        """A connection that is this call's, as it is; most often one that was made before."""
        call, who, asked_at = CALL.get(), asyncio.current_task(), time.monotonic()
        first, granted = call is not None and call.goes_first, False
        async with self._condition:
            self._waiting[who] = first
            self._first += first
            try:
                async with asyncio.timeout(self.timeout):
                    await self._condition.wait_for(self.can_get_connection)
                granted = True
                return cast(AbstractConnection, ConnectionPool.get_available_connection(self))  # type: ignore[no-untyped-call]
            except builtins.TimeoutError:
                if self.answered_at >= asked_at:
                    self._on_busy()
                raise NoConnection("All connections are in use.", pool_is_full=True) from None
            finally:
                del self._waiting[who]
                self._first -= first
                if call is not None and self.answered_at >= asked_at:
                    call.crowded_out = not granted
                    call.crowded_s += time.monotonic() - asked_at
                if first or not granted:  # others were told to wait for it, or it was woken in the place of another
                    self._condition.notify_all()

    def can_get_connection(self) -> bool:
        """Whether who asks may have one now."""
        allowed = not self._first or self._waiting.get(asyncio.current_task(), False)
        return allowed and bool(super().can_get_connection())

    async def release(self, connection: AbstractConnection) -> None:
        """Takes a connection back; one that was not answered comes back closed."""
        if connection.is_connected:
            self.answered_at = time.monotonic()
        await self._put_back(connection)

    async def _put_back(self, connection: AbstractConnection) -> None:
        # Who is cancelled here has given it back all the same: redis-py would keep its place for ever if that waited
        # for the condition, which who is woken holds for a moment.
        try:
            await ConnectionPool.release(self, connection)
        finally:
            if self._waiting:
                await asyncio.shield(self._wake())

    async def _wake(self) -> None:
        async with self._condition:  # where some go first, whoever is woken alone may be the wrong one
            self._condition.notify(len(self._waiting) if self._first else 1)
