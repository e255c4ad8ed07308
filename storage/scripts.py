"""Lua scripts: loading, EVALSHA, and what a failed call means.

A script is ``scripts/<verb>.lua``; a line ``-- @include <name>`` stands for ``scripts/shared/<name>.lua``. Scripts are
addressed by content (EVALSHA), so replicas of two versions can share one server; a server that does not know a script
yet is sent its source once (EVAL), at the price of one more round trip a script and a server restart.

Every script may be sent twice: it is repeatable by turn id or nonce (see its header). So a call whose reply was lost is
sent again until its budget is used up, and only then reported as unknown. So is one that the server refuses for now,
because a primary steps down or slots move. redis-py's own retries are off: they would hide the time that this takes.
"""

import asyncio
import builtins
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import ConnectionError, NoScriptError, RedisError, TimeoutError

from storage.failures import refused_for_now, surely_not_executed
from storage.results import Reply, StoreUnavailable

_INCLUDE = re.compile(r"^-- @include (\w+)$", re.MULTILINE)
_RESEND_WAIT_S = (0.02, 0.05, 0.1, 0.2, 0.5)


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
    "commit",
    "create",
    "delete",
    "delivered",
    "evict",
    "get",
    "patch",
    "renew",
    "sweep",
    "sweep_lock",
    "touch",
)
SCRIPTS = {verb: load(verb) for verb in VERBS}


def _same_slot(keys: Sequence[str]) -> bool:
    tag = keys[0].partition("}")[0] + "}"
    return all(key.startswith(tag) for key in keys)


class ScriptRunner:
    """Runs scripts on one server.

    Args:
        redis: a client whose every call has a deadline and which does not retry by itself (see connect.py).
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def run(
        self,
        verb: str,
        keys: Sequence[str],
        args: Sequence[Any],
        *,
        budget_s: float,
        wait_for_server: bool = False,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Reply:
        """Runs a script, sending it again while its outcome is unknown and ``budget_s`` is not used up.

        Args:
            verb: the script's name.
            keys: as its header says, all in one slot.
            args: as its header says.
            budget_s: for everything together.
            wait_for_server: send it again also while no connection can be made or Redis is still loading its data;
                otherwise that is reported at once. What a running server refuses for now is sent again in any case.
            wanted: asked before it is sent again; what nobody wants any more is not.

        Raises:
            StoreUnavailable: not answered within the budget, or refused.
        """
        assert _same_slot(keys), f"{verb}: keys of several slots"
        script = SCRIPTS[verb]
        unknown = False
        try:
            async with asyncio.timeout(budget_s):
                for attempt in range(10_000):
                    before, unknown = unknown, True  # until this attempt tells
                    try:
                        return await self._send(script, keys, args)
                    except RedisError as error:
                        unknown = before or not surely_not_executed(error)
                        passing = isinstance(error, ConnectionError | TimeoutError) and (unknown or wait_for_server)
                        if not passing and not refused_for_now(error):
                            raise
                        await asyncio.sleep(_RESEND_WAIT_S[min(attempt, len(_RESEND_WAIT_S) - 1)])
                        if not wanted():
                            raise
        except (RedisError, builtins.TimeoutError) as error:
            raise StoreUnavailable(type(error).__name__, outcome_unknown=unknown) from error
        raise AssertionError("the budget ends before the attempts do")

    async def _send(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Reply:
        try:
            reply = await self._redis.evalsha(script.sha, len(keys), *keys, *args)
        except NoScriptError:
            reply = await self._redis.eval(script.source, len(keys), *keys, *args)
        return cast(Reply, reply)
