"""Lua scripts: loading, EVALSHA, and what a failed call means.

A script is ``scripts/<verb>.lua``; a line ``-- @include <name>`` stands for ``scripts/shared/<name>.lua``. Scripts are
addressed by content (EVALSHA), so replicas of two versions can share one server; a server that does not know a script
yet is sent its source once (EVAL), at the price of one more round trip a script and a server restart.

Every script may be sent twice: it is repeatable by turn id or nonce (see its header); what only reads may be, too. So a
call whose reply was lost is sent again until its budget is used up, and only then reported as unknown. So is one that
the server refuses for now, because slots move or a primary steps down. redis-py's own retries are off: they would hide
the time that this takes.
"""

import asyncio
import builtins
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files
from typing import Any, Final, TypeVar, cast

from redis.asyncio import Redis
from redis.exceptions import ConnectionError, NoScriptError, RedisError, TimeoutError

from storage.failures import moving, surely_not_executed, takes_no_writes
from storage.keys import SessionRef
from storage.pool import CALL, Call, Rank, refused_call
from storage.replies import Reply, elsewhere
from storage.results import StoreBusy, StoreUnavailable
from storage.tracebacks import let_go

_INCLUDE = re.compile(r"^-- @include (\w+)$", re.MULTILINE)
_RESEND_WAIT_S = (0.02, 0.05, 0.1, 0.2, 0.5)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Script:
    """A script as the server gets it."""

    verb: str
    source: str
    sha: str


def load(verb: str) -> Script:
    """Reads ``scripts/<verb>.lua`` with its includes resolved."""
    folder = files("storage") / "scripts"

    def include(match: re.Match[str]) -> str:
        return (folder / "shared" / f"{match[1]}.lua").read_text("utf-8")

    source = _INCLUDE.sub(include, (folder / f"{verb}.lua").read_text("utf-8"))
    return Script(verb, source, sha1(source.encode(), usedforsecurity=False).hexdigest())


VERBS = (
    "abort",
    "append",
    "begin",
    "cancel",
    "checkpoint",
    "claim",
    "commit",
    "create",
    "create_key",
    "delete",
    "delete_key",
    "delivered",
    "evict",
    "fork",
    "get",
    "note_key",
    "patch",
    "patch_key",
    "renew",
    "restore",
    "rotate_key",
    "share",
    "shares",
    "sweep",
    "sweep_lock",
    "touch",
    "unshare",
)
SCRIPTS = {verb: load(verb) for verb in VERBS}
READ = "read"
"""Stands for the verb of what takes no script."""

OnCall = Callable[[str, float, StoreUnavailable | None], object]
"""Is told of each call: its verb, how long it took in seconds with all that was sent again, why it failed."""


def nobody(verb: str, duration_s: float, failure: StoreUnavailable | None) -> None:
    """Is told of calls and keeps nothing."""


class _Operation:
    """Calls that have one budget together, ``budget_s``, and a rank.

    Attributes:
        since, until: when it began, and when its budget is used up, by the loop's clock.
        crowded_s: how long they have waited for connections while the server answered others.
    """

    def __init__(self, budget_s: float, rank: Rank) -> None:
        self.budget_s = budget_s
        self.rank = rank
        self.since = asyncio.get_running_loop().time()
        self.until = self.since + budget_s
        self.crowded_s = 0.0


_OPERATION: Final[ContextVar[_Operation | None]] = ContextVar("operation", default=None)


@contextmanager
def together(budget_s: float, rank: Rank = Rank.OTHER) -> Iterator[None]:
    """All calls made inside are one operation: they take no longer than this together, and each no longer than it may.

    In a context variable, since others stand between who knows this and who makes the calls (capacity.py). What is
    part of another operation already stays so.

    Args:
        budget_s: for all of them.
        rank: that each of them has at least.
    """
    if _OPERATION.get() is not None:
        yield
        return
    outer = _OPERATION.set(_Operation(budget_s, rank))
    try:
        yield
    finally:
        _OPERATION.reset(outer)


async def answered(
    ask: Callable[[], Awaitable[_T]],
    *,
    budget_s: float,
    wait_for_server: bool = False,
    wait_for_writes: bool = False,
    wanted: Callable[[], bool] = lambda: True,
    rank: Rank = Rank.OTHER,
) -> _T:
    """What the store answers; it is asked again while it may have been asked in vain and ``budget_s`` is not used up.

    Args:
        ask: may be called again, whatever came of it before.
        budget_s: for everything, with what was asked before in the same operation (`together`).
        wait_for_server: ask again also while no connection can be made or Redis cannot take writes for now; otherwise
            that is reported at once. While slots move it is asked again in any case.
        wait_for_writes: ask again while Redis cannot take writes for now.
        wanted: asked each time before anything is sent, behind every wait for a connection or for who is the primary;
            what nobody wants any more is not sent.
        rank: among those who wait for a connection.

    Raises:
        StoreBusy: all connections were in use for as long as they are waited for, or for most of the budget.
        StoreUnavailable: not answered within the budget, or refused.
    """
    unknown = False
    waits = wait_for_server or wait_for_writes
    operation = _OPERATION.get() or _Operation(budget_s, rank)
    budget_s = min(budget_s, operation.budget_s)
    call = Call(wanted, rank=min(rank, operation.rank), since=operation.since, crowded_s=operation.crowded_s)
    outer = CALL.set(call)
    try:
        async with asyncio.timeout_at(min(operation.until, asyncio.get_running_loop().time() + budget_s)) as budget:
            for attempt in range(10_000):
                before, call.sent, call.crowded_out = unknown, False, False
                try:
                    return await ask()
                except asyncio.CancelledError:  # that is how the budget ends
                    unknown = before or call.sent
                    raise
                except RedisError as error:
                    unknown = before or not surely_not_executed(error)
                    lost = isinstance(error, ConnectionError | TimeoutError) and (unknown or wait_for_server)
                    if not lost and not moving(error) and not (waits and takes_no_writes(error)):
                        raise
                    if budget.expired():  # asyncio.wait_for of Python 3.11, which redis-py uses, may swallow that
                        raise
                    let_go(error)
                    await asyncio.sleep(_RESEND_WAIT_S[min(attempt, len(_RESEND_WAIT_S) - 1)])
                    if not wanted():
                        raise
    except (RedisError, builtins.TimeoutError) as error:
        let_go(error)
        crowded = call.crowded_out or call.crowded_s > budget_s / 2
        failed = StoreBusy if crowded else StoreUnavailable
        raise failed(type(error).__name__, outcome_unknown=unknown) from error
    finally:
        operation.crowded_s = call.crowded_s
        CALL.reset(outer)
    raise AssertionError("the budget ends before the attempts do")


def _same_slot(keys: Sequence[str]) -> bool:
    tag = keys[0].partition("}")[0] + "}"
    return all(key.startswith(tag) for key in keys)


class ScriptRunner:
    """Runs scripts on one server.

    Args:
        redis: a client whose every call has a deadline and which does not retry by itself (see connect.py).
        on_call: is told of every call.
    """

    def __init__(self, redis: Redis, *, on_call: OnCall = nobody) -> None:
        self._redis = redis
        self._on_call = on_call

    async def run(
        self,
        verb: str,
        keys: Sequence[str],
        args: Sequence[Any],
        *,
        budget_s: float,
        wait_for_server: bool = False,
        wait_for_writes: bool = False,
        wanted: Callable[[], bool] = lambda: True,
        rank: Rank = Rank.OTHER,
    ) -> Reply:
        """Runs a script with the keys, all in one slot, and arguments that its header names; else as `answered`."""
        assert _same_slot(keys), f"{verb}: keys of several slots"
        script = SCRIPTS[verb]
        return await self._told(
            verb,
            answered(
                lambda: self._send(script, keys, args),
                budget_s=budget_s,
                wait_for_server=wait_for_server,
                wait_for_writes=wait_for_writes,
                wanted=wanted,
                rank=rank,
            ),
        )

    async def read(self, ask: Callable[[], Awaitable[_T]], *, budget_s: float) -> _T:
        """What takes no script; as `answered`."""
        return await self._told(READ, answered(ask, budget_s=budget_s))

    async def _told(self, verb: str, call: Awaitable[_T]) -> _T:
        started = time.perf_counter()
        failure: StoreUnavailable | None = None
        try:
            return await call
        except StoreUnavailable as error:
            failure = error
            raise
        finally:
            self._on_call(verb, time.perf_counter() - started, failure)

    async def act(
        self,
        verb: str,
        ref: SessionRef,
        args: Sequence[Any],
        *,
        budget_s: float,
        more_keys: Sequence[str] = (),
        **waiting: Any,
    ) -> Reply:
        """Runs a script on a session for its ref's principal; ``args`` come behind these two; else as `run`.

        A session of another's is asked for with the wrong keys once: the ref, and all later ones of it, then know its
        owner. Cost: one round trip, for such a session the first time two, within one budget.
        """
        with together(budget_s):
            for _ in range(2):
                keys, said = (*ref.keys, *more_keys), (ref.id, ref.principal, *args)
                reply = await self.run(verb, keys, said, budget_s=budget_s, **waiting)
                if (owner_tag := elsewhere(reply)) is None:
                    break
                ref.belongs_to(owner_tag)
        return reply

    async def _send(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Reply:
        try:
            return cast(Reply, await self._redis.evalsha(script.sha, len(keys), *keys, *args))
        except NoScriptError as error:
            let_go(error)
            refused_call()
        return cast(Reply, await self._redis.eval(script.source, len(keys), *keys, *args))
