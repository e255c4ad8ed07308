"""Who the primaries are, as Sentinels or the nodes of a cluster tell.

What is known is used until a call finds that it does not hold for some primary. Then everybody is asked at once, by one
look-up for all who need this primary, and at most every 50 ms; calls to other primaries go on meanwhile. A tenth of a
second after the first answer, or when the deadline is over, who has not answered is done without: some of the addresses
that were given may be dead, and some may hang. Addresses that were given are asked as well as those that were learned:
either may all have changed. If nobody can tell, the last primary known is asked all the same.

Of several answers, that of the latest failover counts (Sentinel's epoch), or what most nodes of a cluster say. Whoever
is named must then show that it is a primary: to Sentinel's clients by ROLE, on every new connection, to a cluster's by
not saying MOVED.
"""

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable
from contextvars import Context
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoPermissionError, RedisError

from storage.failures import Unreached

SLOTS: Final = 16384
_ASK_AGAIN_S: Final = 0.05
_GRACE_S: Final = 0.1
_NO_NAME: Final = (None, b"", b"?")

Host = tuple[str, int]
Open = Callable[[Host], Redis]
"""Makes the client of one server; opens no connection yet."""


class Topology(ABC):
    """What was told last, and the clients of those who were named.

    The idle connections to a node that is no primary any more are closed; once no call is on it, it is forgotten.
    """

    ASK_ANYWAY_S = float("inf")
    """Who the primaries are is asked so often while calls are made, though nothing says that it does not hold."""

    def __init__(self, hosts: Iterable[Host], open_node: Open, deadline_s: float) -> None:
        self._given = tuple(hosts)
        self._open = open_node
        self._deadline_s = deadline_s
        self._nodes: dict[Host, Redis] = {}
        self._doubted: set[Redis] = set()
        self._asked_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    def node(self, host: str, port: int) -> Redis:
        """The client of a node."""
        if (host, port) not in self._nodes:
            self._nodes[host, port] = self._open((host, port))
        return self._nodes[host, port]

    async def primary(self, slot: int) -> Redis:
        """Who answers for a slot; looked up if that is not known, or in doubt.

        If nobody can tell, the last one known is as good as any: it must show that it is a primary, like all others.

        Raises:
            Unreached: nobody could tell, and none is known.
        """
        known = self._known(slot)
        if asyncio.get_running_loop().time() - self._asked_at > self.ASK_ANYWAY_S:
            self._look_up_task()
        if known is None or known in self._doubted:
            try:
                await self._looked_up()
            except Unreached:
                if known is None:
                    raise
            known = self._known(slot)
            if known is None:
                raise Unreached(f"No node answers for slot {slot}.")
        return known

    async def primaries(self) -> list[Redis]:
        """All of them, in the order of their slots."""
        known = self._all_known()
        if not known or self._doubted.intersection(known):
            try:
                await self._looked_up()
            except Unreached:
                if not known:
                    raise
        return self._all_known()

    def last_known(self, slot: int) -> Redis | None:
        """The primary of a slot that was told last, without asking; None if it has none."""
        return self._known(slot)

    def known(self) -> list[Redis]:
        """The primaries that were told last, without asking."""
        return self._all_known()

    def doubt(self, primary: Redis) -> None:
        """This one did not answer as the primary that it was said to be."""
        self._doubted.add(primary)

    @abstractmethod
    def moved(self, slot: int, host: str, port: int) -> None:
        """A node says that another one answers for a slot now."""

    async def _looked_up(self) -> None:
        """Waits for the look-up that is under way, or for a new one, whatever comes of it: one serves all who wait."""
        await asyncio.shield(self._look_up_task())

    def _look_up_task(self) -> asyncio.Task[None]:
        """The look-up that is under way, or a new one."""
        if self._asking is None or self._asking.done():
            # In a context of its own: it goes on, whatever becomes of who asked for it (pool.CALL).
            self._asking = asyncio.create_task(self._ask(), context=Context())
            self._asking.add_done_callback(lambda asked: asked.cancelled() or asked.exception())
        return self._asking

    async def _ask(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._asked_at + _ASK_AGAIN_S - loop.time())
        self._asked_at = loop.time()
        doubted = set(self._doubted)
        await self._look_up()
        self._doubted -= doubted  # but not who came to be doubted meanwhile
        kept = self._all_known()
        for host, node in list(self._nodes.items()):
            if node in kept:
                continue
            with contextlib.suppress(RedisError, OSError, TimeoutError):  # it may be as dead as it is old
                await node.connection_pool.disconnect(inuse_connections=False)
            if host not in self._given and not node.connection_pool._in_use_connections:
                self._nodes.pop(host, None)
                self._doubted.discard(node)

    @abstractmethod
    def _known(self, slot: int) -> Redis | None: ...

    @abstractmethod
    def _all_known(self) -> list[Redis]: ...

    @abstractmethod
    async def _look_up(self) -> None: ...

    async def aclose(self) -> None:
        """Closes every connection."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])
        for node in self._nodes.values():
            await node.aclose()


class SentinelTopology(Topology):
    """One primary, which Sentinels choose.

    They are asked every few seconds, too: a primary that is cut off from them is replaced and goes on taking writes,
    which are lost when it comes back, and nothing that it says would tell.

    Args:
        hosts: of the Sentinels.
        service: what they call the primary.
        open_sentinel: for a Sentinel, with a credential of its own.
        open_node: for a data node; its connections must be made with `require_primary`.
        deadline_s: for everything that is asked at once.
    """

    ASK_ANYWAY_S = 3.0

    def __init__(
        self, hosts: Iterable[Host], service: str, *, open_sentinel: Open, open_node: Open, deadline_s: float
    ) -> None:
        super().__init__(hosts, open_node, deadline_s)
        self._service = service
        self._sentinels = [open_sentinel(host) for host in self._given]
        self._primary: Redis | None = None

    def moved(self, slot: int, host: str, port: int) -> None:
        """Only a cluster says so: first contact will refuse it, it is not Sentinel's to fail over."""

    def _known(self, slot: int) -> Redis | None:
        return self._primary

    def _all_known(self) -> list[Redis]:
        return [self._primary] if self._primary else []

    async def _look_up(self) -> None:
        asked = (_asked(sentinel, "SENTINEL MASTER", self._service) for sentinel in self._sentinels)
        try:
            answers = await _answers(asked, self._deadline_s, f"No Sentinel names a primary {self._service!r}")
        finally:  # they are asked seldom: by then a connection that was kept may lead nowhere, and cost the deadline
            for sentinel in self._sentinels:
                await sentinel.connection_pool.disconnect(inuse_connections=False)
        latest = max(answers, key=lambda answer: int(answer["config-epoch"]))
        self._primary = self.node(str(latest["ip"]), int(latest["port"]))

    async def aclose(self) -> None:
        """Closes every connection."""
        await super().aclose()
        for sentinel in self._sentinels:
            await sentinel.aclose()


async def require_primary(connection: AbstractConnection) -> None:
    """Makes a connection only if it leads to a primary: a replica would answer reads with what was once true."""
    await connection.on_connect()
    await connection.send_command("ROLE")
    role, *_ = await connection.read_response()
    if role != b"master":
        raise Unreached("It is no primary any more.")


class ClusterTopology(Topology):
    """The primaries of a cluster, by slot.

    Args:
        hosts: some of its nodes.
        open_node: for a node.
        deadline_s: for everything that is asked at once.
    """

    def __init__(self, hosts: Iterable[Host], *, open_node: Open, deadline_s: float) -> None:
        super().__init__(hosts, open_node, deadline_s)
        self._slots: list[Redis | None] = [None] * SLOTS

    def moved(self, slot: int, host: str, port: int) -> None:
        """Takes its word for this slot."""
        self._slots[slot] = self.node(host, port)

    def _known(self, slot: int) -> Redis | None:
        return self._slots[slot]

    def _all_known(self) -> list[Redis]:
        return list(dict.fromkeys(node for node in self._slots if node is not None))

    async def _look_up(self) -> None:
        known = self._all_known()
        asked = dict.fromkeys([*self._given, *(host for host, node in self._nodes.items() if node in known)])
        asking = (self._table(host) for host in asked)
        tables = await _answers(asking, self._deadline_s, "No node of the cluster tells its slots")
        slots: list[Redis | None] = [None] * SLOTS
        # After a failover some hear of it later than others; who knows of no slots was not told of the cluster yet.
        for first, last, host in max(tables, key=lambda table: (table != [], tables.count(table))):
            slots[first : last + 1] = [self.node(*host)] * (last - first + 1)
        self._slots = slots

    async def _table(self, host: Host) -> list[tuple[int, int, Host]]:
        """The ranges of slots with their primaries, as one node sees them."""
        ranges = await _asked(self.node(*host), "CLUSTER SLOTS")
        # Where a node's address or host name is not known to it, it leaves that to us: where it was asked at.
        return sorted(
            (int(first), int(last), (host[0] if name in _NO_NAME else name.decode(), int(port)))
            for first, last, (name, port, *_), *_ in ranges
        )


async def _asked(server: Any, *command: str) -> Any:
    return await server.execute_command(*command)


async def _answers(asked: Iterable[Coroutine[Any, Any, Any]], deadline_s: float, nobody: str) -> list[Any]:
    """What came in time.

    Raises:
        NoPermissionError: nobody answered, and one because we have no right to ask.
        Unreached: nobody answered: ``nobody``, and why.
    """
    tasks = [asyncio.ensure_future(one) for one in asked]
    pending, loop = set(tasks), asyncio.get_running_loop()
    until = loop.time() + deadline_s
    answers: list[Any] = []
    errors: list[RedisError] = []
    try:
        while pending and (wait_s := until - loop.time()) > 0:
            done, pending = await asyncio.wait(pending, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = task.exception()
                if error is None:
                    answers.append(task.result())
                    until = min(until, loop.time() + _GRACE_S)
                elif isinstance(error, RedisError):
                    errors.append(error)
                else:
                    raise error
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if not answers:
        for denied in errors:
            if isinstance(denied, NoPermissionError):
                raise denied
        raise Unreached(f"{nobody}: {errors[-1] if errors else 'no answer in time'}")
    return answers
