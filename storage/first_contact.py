"""The checks of first contact: whether a store may be trusted with conversations.

INFO is read of every primary (managed services refuse CONFIG), and the namespace's record:

* ``maxmemory-policy`` must be ``noeviction``: any other tears sessions apart when memory runs out.
* the server must be Redis 7.0 or newer (any Valkey is).
* it must be what the URL says: a node of a cluster is asked as a cluster, or half of all keys are somewhere else.
* our user must have every right that is used sooner or later: rights.lua asks the server, executing nothing.
* the record ``{namespace}:cfg`` holds the number of buckets and a fingerprint of the secret, written once by whoever
  comes first. Another number or secret would not find the sessions that are there.

What works and is not durable is warned about: no append-only file, replicas that are not in step, a primary that needs
no replica to take writes, clocks that differ. Some primaries of a cluster may be away: whoever starts meanwhile serves
the sessions of the others.
"""

import asyncio
import re
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ConnectionError,
    NoPermissionError,
    RedisError,
)
from redis.exceptions import TimeoutError as NoAnswer

from storage.failures import Unreached, in_words
from storage.keys import Keyspace
from storage.results import StoreUnavailable
from storage.routing import Routed
from storage.scripts import SCRIPTS, load
from storage.topology import ClusterTopology
from storage.vitals import clock_ahead_s, primaries, replicas_of

SERVER_VERSION_MIN: Final = (7, 0)
CLOCKS_APART_MAX_S: Final = 5.0
_NO_CLUSTER: Final = "cluster support disabled"

RIGHTS: Final = load("boot/rights")
READ_COMMANDS: Final = frozenset(
    {"HGET", "HGETALL", "HMGET", "HSETNX", "LLEN", "LRANGE", "PEXPIRETIME", "XRANGE", "XREVRANGE"}
    | {"SET", "ZCARD", "ZCOUNT", "ZMSCORE", "ZRANGE"}
)
"""What is sent without a script, with a key; EVAL, EVALSHA, INFO and TIME are sent here anyway."""
TRANSACTION: Final = frozenset({"MULTI", "EXEC"})


class StoreRefused(Exception):
    """The server answers but must not be used like this; ``problems`` are sentences for the operator."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(" ".join(problems))
        self.problems = problems


def script_commands() -> frozenset[str]:
    """What the scripts execute."""
    calls = re.compile(r"redis\.p?call\('(\w+)'")
    return frozenset(name.upper() for script in SCRIPTS.values() for name in calls.findall(script.source))


async def first_contact(
    redis: Redis, keyspace: Keyspace, *, eviction_allowed: bool, deadline_s: float, claim: bool = True
) -> list[str]:
    """Checks the store and claims the namespace.

    Args:
        redis: of `connect`.
        keyspace: the namespace.
        eviction_allowed: whether a server that evicts is accepted.
        deadline_s: for everything.
        claim: whether the namespace's record is written if there is none.

    Returns:
        Warnings: sentences about what works but is not as it should be.

    Raises:
        StoreUnavailable: no answer within the deadline; ask again later.
        StoreRefused: the server must not be used like this.
    """
    try:
        async with asyncio.timeout(deadline_s):
            found = await primaries(redis)
            servers, lost = await _looks(found, keyspace, deadline_s / 2)
            problems = [problem for look in servers for problem in _server_problems(redis, look, eviction_allowed)]
            if any(look.denied for look in servers):
                raise StoreRefused(list(dict.fromkeys(problems)))
            claimed = {"buckets": str(keyspace.buckets), "secret": keyspace.fingerprint()}
            async with redis.pipeline(transaction=True) as batch:
                # A replica that is refused claims nothing: its number and secret may be as wrong as the server.
                for field, value in claimed.items() if claim and not problems else ():
                    batch.hsetnx(keyspace.config(), field, value)
                batch.hgetall(keyspace.config())
                recorded = {k.decode(): v.decode() for k, v in (await batch.execute())[-1].items()}
    except Unreached as error:
        if _NO_CLUSTER in str(error):
            raise StoreRefused(["This is no cluster, as the URL says: write redis:// instead."]) from error
        raise StoreUnavailable(in_words(error), outcome_unknown=False) from error
    except NoPermissionError as error:
        raise StoreRefused([f"{in_words(error)} (docs/operations.md lists the rights that are needed)."]) from error
    except (RedisError, TimeoutError) as error:
        raise StoreUnavailable(in_words(error), outcome_unknown=False) from error
    problems += _namespace_problems(keyspace, claimed | recorded)
    if problems:
        raise StoreRefused(list(dict.fromkeys(problems)))
    told = [warning for look in servers for warning in _warnings(redis, look)]
    away = "does not answer: its sessions are not served until it does, and it was not checked."
    return list(dict.fromkeys(told)) + [f"{_name(one)} {away}" for one in lost]


async def _looks(found: list[Redis], keyspace: Keyspace, wait_s: float) -> tuple[list["_Look"], list[Redis]]:
    """What the primaries tell, and who of several did not answer; raises why, if that is all of them."""
    looking = [asyncio.ensure_future(_look(one, keyspace, alone=len(found) == 1)) for one in found]
    await asyncio.wait(looking, timeout=None if len(found) == 1 else wait_s)
    for one in looking:
        one.cancel()
    told = await asyncio.gather(*looking, return_exceptions=True)
    looks = [look for look in told if isinstance(look, _Look)]
    for error in told:
        if isinstance(error, BaseException) and not (looks and _is_away(error)):
            raise Unreached("No primary answers.") if isinstance(error, asyncio.CancelledError) else error
    return looks, [primary for primary, look in zip(found, told, strict=True) if isinstance(look, BaseException)]


def _is_away(error: BaseException) -> bool:
    refused = isinstance(error, AuthenticationError | AuthorizationError)
    return isinstance(error, asyncio.CancelledError | ConnectionError | NoAnswer) and not refused


def _name(server: Redis) -> str:
    at = server.connection_pool.connection_kwargs
    return f"{at['host']}:{at['port']}"


@dataclass(frozen=True, slots=True)
class _Look:
    """What one primary told.

    Attributes:
        name: how its sentences begin; "" where there is only one.
        info: INFO.
        denied: commands that our user may not use, and that will be used.
        clock_s: how far its clock is before ours, seconds.
    """

    name: str
    info: dict[str, Any]
    denied: list[str]
    clock_s: float


async def _look(server: Redis, keyspace: Keyspace, *, alone: bool) -> _Look:
    info = await server.info()
    clock_s = await clock_ahead_s(server)
    names = sorted(READ_COMMANDS | TRANSACTION | script_commands())
    # Both ways to run a script are tried; the key stands for all.
    key = keyspace.session(keyspace.issue(), "").keys[0]
    await server.eval(RIGHTS.source, 0, key)
    denied: Any = await server.evalsha(RIGHTS.sha, 0, key, *names)
    name = "" if alone else f"{_name(server)}: "
    return _Look(name, info, [word.decode() for word in denied], clock_s)


def _server_problems(redis: Redis, look: _Look, eviction_allowed: bool) -> list[str]:
    problems = []
    info = look.info
    version = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
    if version < SERVER_VERSION_MIN:
        problems.append(f"Redis {info['redis_version']} is too old: 7.0 or newer, or Valkey, is needed.")
    clustered = isinstance(redis, Routed) and isinstance(redis.topology, ClusterTopology)
    if info.get("cluster_enabled") == 1 and not clustered:
        problems.append("This is a node of a cluster: write redis+cluster:// in the URL.")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and not eviction_allowed:
        problems.append(
            f"Redis evicts by {policy}: it would tear conversations apart when memory runs out. "
            "Set maxmemory-policy noeviction, or BATON_REDIS_EVICTION_ALLOWED=true to accept that."
        )
    if look.denied:
        problems.append(
            f"Our user may not use these commands, or not on the namespace's keys: {' '.join(look.denied)} "
            "(docs/operations.md lists the rights that are needed)."
        )
    return [look.name + problem for problem in problems]


def _warnings(redis: Redis, look: _Look) -> list[str]:
    warnings = []
    info = look.info
    if int(info.get("aof_enabled", 0)) == 0:
        warnings.append("Redis has no append-only file: what it acknowledges is lost if it restarts.")
    replicas = replicas_of(info)
    if behind := [f"{one['ip']}:{one['port']} ({one['state']})" for one in replicas if one["state"] != "online"]:
        warnings.append(
            f"A replica has not finished its first copy: {', '.join(behind)}. Promoted now, it would be empty."
        )
    # INFO has it only if it is set, and managed services deny CONFIG.
    if isinstance(redis, Routed) and replicas and "min_slaves_good_slaves" not in info:
        warnings.append(
            "min-replicas-to-write is 0: a primary that is cut off from its replicas goes on taking turns, and all "
            "of them are lost when it returns. Set it to 1, and min-replicas-max-lag to 10."
        )
    if abs(look.clock_s) > CLOCKS_APART_MAX_S:
        warnings.append(
            f"Redis's clock is {abs(look.clock_s):.0f} s {'before' if look.clock_s > 0 else 'behind'} ours: times in "
            "answers are Redis's, and after a failover leases and ends of life would shift by as much."
        )
    return [look.name + warning for warning in warnings]


def _namespace_problems(keyspace: Keyspace, recorded: dict[str, str]) -> list[str]:
    problems = []
    if recorded["buckets"] != str(keyspace.buckets):
        problems.append(
            f"Namespace {keyspace.namespace!r} was made with BATON_BUCKETS={recorded['buckets']}, "
            f"this replica has {keyspace.buckets}; the number is permanent."
        )
    if recorded["secret"] != keyspace.fingerprint():
        problems.append(
            f"Namespace {keyspace.namespace!r} was made with another BATON_SECRET; the secret is permanent."
        )
    return problems
