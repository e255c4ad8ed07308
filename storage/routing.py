"""A client for a Redis that is several servers: every command goes to the primary that answers for its key.

It offers what the store uses of redis-py's client, and every server has a client of its own with its own bounded pool
and deadlines (connect.py), so that a call means the same on every kind of Redis. redis-py's own cluster client is not
used: docs/decisions/0006.

Which primary that is, is known from what a `Topology` was told last. It is asked anew when something says that this
does not hold any more: MOVED, READONLY, CLUSTERDOWN, a connection that broke, no answer. What was surely not executed
is then sent again from here: to another primary at once, and what only reads also to one that refuses, every few
milliseconds for a second at most. Anything else is told to the caller, who knows whether it may be sent twice.

A node that let a call wait in vain and answered no other meanwhile is *silent* until it answers any call, most likely
a PING, which it is sent again and again. Calls to it are refused at once meanwhile: a shard that stands still costs its
sessions one deadline, and those of others nothing. But it may have been one connection only that led nowhere: so they
wait for the answer to the first PING, for half a second since it was sent, before they begin to be refused. A PING that
was swallowed itself takes its time to be given up; so whoever hears from all primaries on other connections says so
(`Routed.trust`), and from then on nobody is refused for what was.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import Context
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar, cast

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.connection import Connection
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    ConnectionError,
    MovedError,
    RedisError,
    ResponseError,
    TimeoutError,
)

from storage.failures import Unreached, never_sent, of_our_own, refused_for_now, silent, without_command
from storage.pool import Pool, refused_call
from storage.topology import Topology
from storage.tracebacks import let_go

_T = TypeVar("_T")

_HOPS_MAX: Final = 5
_REFUSED_FOR_S: Final = 1.0
_REFUSED_WAIT_S: Final = 0.02
_SCRIPTS: Final = ("EVAL", "EVALSHA")
_KEY_AT: Final = {"EVAL": 3, "EVALSHA": 3}  # of all others behind the name
_KEYLESS: Final = ("TIME", "INFO", "PING")
_PING_EVERY_S: Final = 0.1
_PINGED_WITHIN_S: Final = 0.5


def _slot(command: Sequence[Any]) -> int:
    """Of a command's key, its first if it has several: these are in one slot."""
    key = command[_KEY_AT.get(str(command[0]).upper(), 1)]
    return key_slot(key if isinstance(key, bytes) else str(key).encode())


def _host(node: Redis) -> str:
    """Where a node was reached: it leaves the host out of MOVED and ASK where that is the same."""
    return str(node.connection_pool.connection_kwargs["host"])


def _heard_at(node: Redis) -> float:
    """When a node last answered anything, by the monotonic clock."""
    return cast(Pool, node.connection_pool).answered_at


class _Silence(NamedTuple):
    """Since when a node is silent, by the monotonic clock, and who asks it again and again whether it still is."""

    since: float
    asking: asyncio.Task[None]


class _Nowhere(Connection):
    """A routed client has no connections of its own."""

    async def connect(self) -> None:
        raise NotImplementedError("ask one of the primaries")


class Routed(Redis):
    """The client.

    Args:
        topology: who the primaries are.
    """

    def __init__(self, topology: Topology) -> None:
        super().__init__(connection_pool=ConnectionPool(connection_class=_Nowhere))
        self.topology = topology
        self._silent: dict[Redis, _Silence] = {}
        self._trusted_at = float("-inf")

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Sends a command to the primary of its key."""

        async def send(node: Any) -> Any:
            return await node.execute_command(*args, **options)

        async def send_asking(node: Redis) -> Any:
            return (await _sent_asking([(args, options)], node))[0]

        if str(args[0]).upper() in _KEYLESS:
            return await self._of_any(send)
        # Who runs scripts waits for itself: it has to know at any time whether one is on its way.
        patience_s = 0.0 if str(args[0]).upper() in _SCRIPTS else _REFUSED_FOR_S
        return await self.routed(_slot(args), send, send_asking, patience_s)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> "RoutedPipeline":
        """Commands that are sent together, to each primary its own; in a transaction all are in one slot."""
        return RoutedPipeline(self, transaction)

    async def primaries(self) -> list[Redis]:
        """A client for each primary."""
        return await self.topology.primaries()

    async def _of_any(self, send: Callable[[Redis], Awaitable[_T]]) -> _T:
        """What any primary may tell; always the first that answers, so that all replicas read one clock."""
        nodes = await self.topology.primaries()
        failed: RedisError = Unreached("No primary answers.")
        for node in sorted(nodes, key=self._silent.__contains__):  # who is silent may answer any moment, but last
            if await self._is_silent(node):
                continue
            asked_at = time.monotonic()
            try:
                return await send(node)
            except (ConnectionError, TimeoutError) as error:
                self.note(node, error, asked_at)
                if of_our_own(error):
                    raise
                failed = error
        raise failed

    async def primary(self, slot: int) -> Redis:
        """Who answers for a slot.

        Raises:
            Unreached: nobody is known, or it does not answer just now: whoever waited in vain tells the others.
        """
        node = await self.topology.primary(slot)
        if await self._is_silent(node):
            self.topology.doubt(node)
            node = await self.topology.primary(slot)
            if await self._is_silent(node):
                raise Unreached("The primary does not answer.")
        return node

    async def _is_silent(self, node: Redis) -> bool:
        """Whether a node is silent; where that is known for a moment only, its first PING's answer is waited for."""
        if (silence := self._silent.get(node)) is None:
            return False
        wait_s = silence.since + _PINGED_WITHIN_S - time.monotonic()
        if wait_s > 0 and _heard_at(node) <= silence.since:
            await asyncio.wait([silence.asking], timeout=wait_s)
        if self._silent.get(node) is silence and _heard_at(node) > silence.since:
            self._hear(node)
        return node in self._silent

    def _hear(self, node: Redis) -> None:
        """A silent node is silent no more."""
        self._silent.pop(node).asking.cancel()

    def trust(self, since: float) -> None:
        """All primaries have answered on other connections since then: nobody is silent whom older calls say to be."""
        self._trusted_at = max(self._trusted_at, since)
        for node in list(self._silent):
            self._hear(node)

    async def _until_it_answers(self, node: Redis) -> None:
        # What is idle may lead nowhere, and would cost the first PING its deadline.
        await cast(Pool, node.connection_pool).close_idle()
        while True:
            try:
                await node.ping()
            except ResponseError:  # an answer
                break
            except (RedisError, OSError):
                if node not in self.topology.known():
                    break
                await asyncio.sleep(_PING_EVERY_S)
            else:
                break
        silence = self._silent.get(node)
        if silence is not None and silence.asking is asyncio.current_task():
            del self._silent[node]

    async def one_of_each_primary(self, keys: Sequence[str]) -> list[str]:
        """The first of these keys at each primary that has any.

        Raises:
            Unreached: nobody knows who the primaries are.
        """
        await self.topology.primaries()
        first: dict[Redis | None, str] = {}
        for key in keys:
            first.setdefault(self.topology.last_known(key_slot(key.encode())), key)
        return list(first.values())

    async def routed(
        self,
        slot: int,
        send: Callable[[Redis], Awaitable[_T]],
        send_asking: Callable[[Redis], Awaitable[_T]] | None,
        patience_s: float,
    ) -> _T:
        """Does something at the primary of a slot, and elsewhere or again if it is refused.

        Args:
            slot: whose primary.
            send: what is done there. What it sends must be refused as a whole or not at all, or change nothing.
            send_asking: the same at a node that is about to become the slot's primary; None if that cannot be done.
            patience_s: how long one that refuses is asked again.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + patience_s
        asked: Redis | None = None
        for hops in range(10_000):
            node = await self.primary(slot)
            again = node is asked or hops >= _HOPS_MAX
            try:
                return await self._at(node, slot, send, send_asking)
            except (ConnectionError, TimeoutError) as error:
                # What was never sent goes to whoever has taken over, if that is known by now.
                if again or of_our_own(error) or not never_sent(error):
                    raise
                let_go(error)
            except RedisError as error:
                refused_call()
                # A cluster that says that it is down is so for longer than anybody should be kept waiting.
                patient = not isinstance(error, ClusterDownError) and loop.time() < until
                if not refused_for_now(error) or (again and not patient):
                    raise
                let_go(error)
                if again:
                    await asyncio.sleep(_REFUSED_WAIT_S)
            asked = node
        raise AssertionError("patience ends before the attempts do")

    async def _at(
        self,
        node: Redis,
        slot: int,
        send: Callable[[Redis], Awaitable[_T]],
        send_asking: Callable[[Redis], Awaitable[_T]] | None,
    ) -> _T:
        """Does something at one node, and notes what its answer says about the topology."""
        asked_at = time.monotonic()
        try:
            return await send(node)
        except MovedError as error:
            self.topology.moved(slot, error.host or _host(node), error.port)
            self.topology.doubt(node)
            raise
        except AskError as error:
            if send_asking is None:
                raise
            return await send_asking(self.topology.node(error.host or _host(node), error.port))
        except RedisError as error:
            self.note(node, error, asked_at)
            raise

    def note(self, node: Redis, error: RedisError, asked_at: float) -> None:
        """Doubts a node that does not answer, or not as a primary, what it was asked then, by the monotonic clock."""
        lost = isinstance(error, ConnectionError | TimeoutError) and not of_our_own(error)
        if lost or refused_for_now(error):
            self.topology.doubt(node)
        heard_at = max(self._trusted_at, _heard_at(node))
        if silent(error) and heard_at < asked_at and node not in self._silent:
            # In a context of its own: it is not a part of this call.
            asking = asyncio.create_task(self._until_it_answers(node), context=Context())
            self._silent[node] = _Silence(time.monotonic(), asking)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Closes the connections to all nodes."""
        asking = [silence.asking for silence in self._silent.values()]
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await self.topology.aclose()


class RoutedPipeline(Pipeline):
    """Commands for several primaries; see `Routed.pipeline`. Not a transaction, it must change nothing."""

    def __init__(self, routed: Routed, transaction: bool) -> None:
        super().__init__(routed.connection_pool, routed.response_callbacks, transaction, None)
        self._routed = routed

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Sends everything, to all primaries at once; the replies are in the order of the commands."""
        stack, self.command_stack = self.command_stack, []
        by_primary: dict[int, list[int]] = {}
        slots = [_slot(command) for command, _ in stack]
        assert not self.is_transaction or len(set(slots)) == 1, "a transaction in several slots"
        for at, slot in enumerate(slots):
            by_primary.setdefault(id(await self._routed.topology.primary(slot)), []).append(at)
        replies: list[Any] = [None] * len(stack)

        async def part(places: list[int]) -> None:
            answers = await self._part([slots[at] for at in places], [stack[at] for at in places])
            for place, answer in zip(places, answers, strict=True):
                replies[place] = answer

        await _all(part(places) for places in by_primary.values())
        return replies

    async def _part(self, slots: list[int], commands: list[Any]) -> list[Any]:
        """What one primary is asked; slot by slot if it does not answer for all of them."""
        if len(set(slots)) == 1:
            asking = None if self.is_transaction else partial(_sent_asking, commands)
            return await self._routed.routed(slots[0], partial(self._sent, commands), asking, _REFUSED_FOR_S)
        node = await self._routed.primary(slots[0])
        asked_at = time.monotonic()
        try:
            return await self._sent(commands, node)
        except RedisError as error:
            self._routed.note(node, error, asked_at)
            if of_our_own(error) or not (refused_for_now(error) or never_sent(error)):
                raise
        by_slot = [[at for at, one in enumerate(slots) if one == slot] for slot in dict.fromkeys(slots)]
        answers = await _all(
            self._part([slots[at] for at in places], [commands[at] for at in places]) for places in by_slot
        )
        replies: list[Any] = [None] * len(commands)
        for places, answer in zip(by_slot, answers, strict=True):
            for place, reply in zip(places, answer, strict=True):
                replies[place] = reply
        return replies

    async def _sent(self, commands: list[Any], node: Redis) -> list[Any]:
        async with node.pipeline(self.is_transaction) as batch:
            batch.command_stack = commands
            try:
                return await batch.execute()
            except RedisError as error:
                raise without_command(error) from error.__cause__


async def _sent_asking(commands: list[Any], node: Redis) -> list[Any]:
    """On one connection: a node answers for a slot that it does not own yet only who has just said ASKING."""
    async with node.pipeline(transaction=False) as batch:
        asking: Any = (("ASKING",), {})
        batch.command_stack = [one for command in commands for one in (asking, command)]
        try:
            return (await batch.execute())[1::2]
        except RedisError as error:
            raise without_command(error) from error.__cause__


async def _all(calls: Iterable[Awaitable[_T]]) -> list[_T]:
    """Waits for all, even if one fails; each has its deadline."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]
