"""The connections of one replica, and how a busy pool is told from a dead store.

A call that finds all of them in use waits for one. If it waits in vain, the others tell why: where the server answered
one of them meanwhile, there are too few connections for the work; where it answered none, it is the store that is away.
"""

import time
from collections.abc import Callable
from typing import Any, cast

from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError

_WAITED_IN_VAIN = "No connection available."  # how redis-py says it; it has no type for that


class NoConnection(ConnectionError):
    """All connections were in use for the whole wait; nothing was sent.

    Attributes:
        server_answers: to others it did, meanwhile.
    """

    def __init__(self, *, server_answers: bool) -> None:
        super().__init__("all connections are in use" + ("" if server_answers else ", and none is answered"))
        self.server_answers = server_answers


class Pool(BlockingConnectionPool):
    """A pool that knows when the server last answered.

    Args:
        on_busy: called when a call has waited in vain though the server answers.
        options: of redis-py's pool.
    """

    def __init__(self, *, on_busy: Callable[[], object] = lambda: None, **options: Any) -> None:
        super().__init__(**options)
        self._on_busy = on_busy
        self._answered_at = float("-inf")

    async def get_connection(self, *args: Any, **options: Any) -> AbstractConnection:
        """A connection that can be written to.

        Raises:
            NoConnection: none within the pool's wait.
        """
        asked_at = time.monotonic()
        try:
            return cast(AbstractConnection, await super().get_connection(*args, **options))  # type: ignore[no-untyped-call]
        except ConnectionError as error:
            if str(error) != _WAITED_IN_VAIN:
                raise
        busy = self._answered_at >= asked_at
        if busy:
            self._on_busy()
        raise NoConnection(server_answers=busy)

    async def release(self, connection: AbstractConnection) -> None:
        """Takes a connection back; one that was not answered comes back closed."""
        if connection.is_connected:
            self._answered_at = time.monotonic()
        await super().release(connection)
