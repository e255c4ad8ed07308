"""From a URL to a client that can be trusted with a turn, and the checks at first contact.

Every call of the client has a deadline: for a connection, for a place in the pool, for the reply. redis-py would send a
timed-out command again by itself, up to ten times and unseen; that is switched off, and `scripts.ScriptRunner` does it
within a budget. A full pool is waited for, then told apart from a dead server (pool.py). Its notifications of
maintenance are off too: they stretch deadlines, and with them on a connection that the server closed while it was idle
is not noticed before a command has been lost on it.

First contact reads INFO (managed services refuse CONFIG) and the namespace's record:

* ``maxmemory-policy`` must be ``noeviction``: any other tears sessions apart when memory runs out.
* the server must be Redis 7.0 or newer (any Valkey is).
* the record ``{namespace}:cfg`` holds the number of buckets and a fingerprint of the secret, written once by whoever
  comes first. Another number or secret would not find the sessions that are there.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, BusyLoadingError, ConnectionError, RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig

from storage.keys import Keyspace
from storage.pool import Pool
from storage.results import StoreUnavailable

Client = Redis
"""What `connect` gives, and every part of the store is built on."""

SERVER_VERSION_MIN = (7, 0)


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long one call may take, in seconds; the budgets of turns.py are above these."""

    connect_s: float = 1.0
    command_s: float = 2.0
    pool_wait_s: float = 2.0


class StoreRefused(Exception):
    """The server answers but must not be used like this; ``problems`` are sentences for the operator."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(" ".join(problems))
        self.problems = problems


def check_url(url: str) -> str | None:
    """What is wrong with a URL for `connect`: a sentence without the URL, which holds a password; None if it is sound.

    redis-py passes over what it does not understand (another database than meant, for one), and takes options from a
    URL that would go before the deadlines here.
    """
    if any(not "!" <= char <= "~" for char in url):
        return "it holds white space or other characters that a URL cannot have; percent-encode them."
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "its host or port cannot be read; percent-encode special characters of a password."
    if parts.scheme not in ("redis", "rediss"):
        return "it must begin with redis:// or rediss://."
    if "?" in url or "#" in url:
        return "it cannot have options (?…) or a fragment (#…); percent-encode these characters in a password."
    if not parts.hostname or port == 0:
        return "it must name a host, and its port is 1 to 65535: redis://:password@host:6379/0"
    number = parts.path.removeprefix("/")
    if parts.path not in ("", "/") and not (number.isdecimal() and len(number) < 6):
        return "its path must be the number of a database: redis://:password@host:6379/0"
    return None


def connect(
    url: str, *, connections_max: int, deadlines: Deadlines, on_busy: Callable[[], object] = lambda: None
) -> Redis:
    """A client for ``redis://`` or ``rediss://``; connects lazily, closes with ``aclose()``. `Pool` has ``on_busy``."""
    pool = Pool.from_url(
        url,
        on_busy=on_busy,
        max_connections=connections_max,
        timeout=deadlines.pool_wait_s,
        socket_connect_timeout=deadlines.connect_s,
        socket_timeout=deadlines.command_s,
        retry=Retry(NoBackoff(), 0),
        retry_on_error=[],
        health_check_interval=0,
        socket_keepalive=True,
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
    )
    return Redis.from_pool(pool)


async def first_contact(redis: Redis, keyspace: Keyspace, *, eviction_allowed: bool, deadline_s: float) -> list[str]:
    """Checks the server and claims the namespace.

    Returns:
        Warnings: sentences about what works but is not durable.

    Raises:
        StoreUnavailable: no answer within the deadline; ask again later.
        StoreRefused: the server must not be used like this.
    """
    try:
        async with asyncio.timeout(deadline_s):
            problems = _server_problems(info := await redis.info(), eviction_allowed)
            claimed = {"buckets": str(keyspace.buckets), "secret": keyspace.fingerprint()}
            async with redis.pipeline(transaction=True) as batch:
                # A replica that is refused claims nothing: its number and secret may be as wrong as the server.
                for field, value in claimed.items() if not problems else ():
                    batch.hsetnx(keyspace.config(), field, value)
                batch.hgetall(keyspace.config())
                recorded = {k.decode(): v.decode() for k, v in (await batch.execute())[-1].items()}
    except (RedisError, TimeoutError) as error:
        raise StoreUnavailable(type(error).__name__, outcome_unknown=False) from error
    problems += _namespace_problems(keyspace, claimed | recorded)
    if problems:
        raise StoreRefused(problems)
    if int(info.get("aof_enabled", 0)) == 0:
        return ["Redis has no append-only file: what it acknowledges is lost if it restarts."]
    return []


def _server_problems(info: dict[str, Any], eviction_allowed: bool) -> list[str]:
    problems = []
    version = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
    if version < SERVER_VERSION_MIN:
        problems.append(f"Redis {info['redis_version']} is too old: 7.0 or newer, or Valkey, is needed.")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and not eviction_allowed:
        problems.append(
            f"Redis evicts by {policy}: it would tear conversations apart when memory runs out. "
            "Set maxmemory-policy noeviction, or BATON_REDIS_EVICTION_ALLOWED=true to accept that."
        )
    return problems


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


Health = Literal["up", "refusing", "away"]
"""Of the store: it takes writes; it answers, but takes none (it is full, or a replica); it does not answer."""


async def health(redis: Redis, keyspace: Keyspace, *, deadline_s: float) -> Health:
    """How the store is now, by a write: a full or read-only Redis would still answer PING.

    A connection that turns out to be broken is told from a store that is away by asking once more, on another one.
    """
    try:
        async with asyncio.timeout(deadline_s):
            try:
                await _write(redis, keyspace)
            except ConnectionError:
                await _write(redis, keyspace)
    except (ResponseError, BusyLoadingError, AuthenticationError):
        return "refusing"
    except (RedisError, TimeoutError):
        return "away"
    return "up"


async def _write(redis: Redis, keyspace: Keyspace) -> None:
    await cast("Awaitable[Any]", redis.hset(keyspace.config(), "probed", "1"))
