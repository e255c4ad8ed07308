"""The connections of one replica, and how a busy pool is told from a dead store.

A call that finds all of them in use waits for one. What ends a turn goes first, for it was paid for; then what a turn
needs that runs, so that nothing more is begun before that goes on; then all the rest (`Rank`). Among equals the oldest
operation goes first, not the oldest call: else whoever needs several calls to begin would wait behind all others each
time, and with enough of them nobody would get to his last. If a call waits in vain, the others tell why: where the
server answered one of them meanwhile, there are too few connections for the work; where it answered none, it is the
store that is away.

A call may have to wait for its connection until nobody wants it any more. Who wants it is asked when there is one, and
once more before the first byte (`CALL`): redis-py writes in a task of its own, and a process may be stopped before it.

A connection that was reset while it was idle is told as what it is. redis-py writes to it all the same, and event loops
answer that with errors of their own: RuntimeError (uvloop), TypeError, AttributeError (redis-py issue 4287).
"""

import asyncio
import bisect
import builtins
import itertools
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from enum import IntEnum
from typing import Any, Final, NamedTuple, cast

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection, Connection
from redis.exceptions import AuthenticationError, BusyLoadingError, ConnectionError, TimeoutError


class Rank(IntEnum):
    """Who gets a connection before whom."""

    ENDS_A_TURN = 0
    RUNS_A_TURN = 1
    OTHER = 2


class Call:
    """A call on its way to its connection.

    Args:
        wanted: whether somebody still wants it.
        rank: among all that wait for a connection.
        since: when the operation of which it is a part began, by the loop's clock; None for now.
        crowded_s: as the attribute, of the calls of this operation before it.

    Attributes:
        sent: it may have been, and was not refused since.
        crowded_out: it waited for a connection in vain, or is given up while it waits, and the server answered others.
        crowded_s: how long it has waited for connections while the server answered others, with or without success.
    """

    def __init__(
        self,
        wanted: Callable[[], bool] = lambda: True,
        *,
        rank: Rank = Rank.OTHER,
        since: float | None = None,
        crowded_s: float = 0.0,
    ) -> None:
        self.wanted = wanted
        self.rank = rank
        self.since = asyncio.get_running_loop().time() if since is None else since
        self.sent = False
        self.crowded_out = False
        self.crowded_s = crowded_s


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


class _Place(NamedTuple):
    """Of a call in the queue for a connection; they sort as they are served. What it gets is put into ``given``."""

    rank: Rank
    since: float
    number: int
    given: "asyncio.Future[AbstractConnection]"


class Pool(ConnectionPool):
    """A pool whose connections are waited for in order, and that knows when the server last answered.

    A connection that comes back is given to the first who waits, at once: nobody can take it in between, so none is
    free while somebody waits.

    Args:
        connection_class: of redis-py.
        timeout: how long a call waits for a connection, s.
        on_busy: called when a call has waited in vain though the server answers.
        options: of redis-py's pool.

    Attributes:
        answered_at: when the server last answered anything, by the monotonic clock.
    """

    def __init__(
        self,
        *,
        connection_class: type[AbstractConnection] = Connection,
        timeout: float,
        on_busy: Callable[[], object] = lambda: None,
        **options: Any,
    ) -> None:
        looks_first = type(connection_class.__name__, (_LooksFirst, connection_class), {})
        super().__init__(connection_class=looks_first, **options)
        self._on_busy = on_busy
        self._timeout_s = timeout
        self._waiting: list[_Place] = []  # in order
        self._numbers = itertools.count()
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
        connection = await self._free_one()
        try:
            await self.ensure_connection(connection)
        except BaseException:
            await self._put_back(connection)
            raise
        return connection

    async def _free_one(self) -> AbstractConnection:
        """A connection that is this call's, as it is; most often one that was made before."""
        if self._is_one_free():
            return self._take()
        call = CALL.get() or Call()
        asked_at, given = time.monotonic(), asyncio.get_running_loop().create_future()
        place = _Place(call.rank, call.since, next(self._numbers), given)
        bisect.insort(self._waiting, place)
        try:
            async with asyncio.timeout(self._timeout_s):
                await given
        except builtins.TimeoutError:
            if given.cancelled():
                if self.answered_at >= asked_at:
                    self._on_busy()
                raise NoConnection("All connections are in use.", pool_is_full=True) from None
        except asyncio.CancelledError:
            if not given.cancelled():
                await self._put_back(given.result())
            raise
        finally:
            if given.cancelled() and place in self._waiting:
                self._waiting.remove(place)
            if self.answered_at >= asked_at:
                call.crowded_out = given.cancelled()
                call.crowded_s += time.monotonic() - asked_at
        return cast(AbstractConnection, given.result())

    def _is_one_free(self) -> bool:
        return bool(self.can_get_connection())

    def _take(self) -> AbstractConnection:
        return cast(AbstractConnection, self.get_available_connection())  # type: ignore[no-untyped-call]

    async def close_idle(self) -> None:
        """Closes the connections that nobody uses, which are made anew when somebody does.

        At once, without waiting for their ends: nobody takes one meanwhile.
        """
        for connection in [*self._available_connections]:
            if connection in self._available_connections:
                await connection.disconnect(nowait=True)

    async def release(self, connection: AbstractConnection) -> None:
        """Takes a connection back; one that was not answered comes back closed, and the idle ones are closed with it.

        What it led to may lead nowhere, as after a firewall has forgotten it, and so may they: one after the other they
        would cost a call all of its budget.
        """
        was_answered = connection.is_connected
        if was_answered:
            self.answered_at = time.monotonic()
        await self._put_back(connection)
        if not was_answered:
            await self.close_idle()

    async def _put_back(self, connection: AbstractConnection) -> None:
        # Who is cancelled here has given it back all the same. Only where the lock of redis-py is held, as while
        # it marks connections to be made anew, would that wait, and the place of this one be lost.
        returning = self._returned(connection)
        await (asyncio.shield(returning) if self._lock.locked() else returning)

    async def _returned(self, connection: AbstractConnection) -> None:
        try:
            await super().release(connection)
        finally:
            while self._waiting and self._is_one_free():
                place = self._waiting.pop(0)
                if not place.given.done():
                    place.given.set_result(self._take())
