"""From a URL to a client that can be trusted with a turn, whichever of the kinds of Redis it names (address.py).

Every call of the client has a deadline: for a connection, for a place in the pool, for the reply. redis-py would send a
timed-out command again by itself, up to ten times and unseen; that is switched off, and `scripts.ScriptRunner` does it
within a budget. A full pool is waited for, then told apart from a dead server (pool.py). Its notifications of
maintenance are off too: they stretch deadlines, and with them on a connection that the server closed while it was idle
is not noticed before a command has been lost on it. It does not tell servers its name either, which users with few
rights may not.

Behind Sentinel and in a cluster every server has such a client of its own, with its own pool, and the one that is given
out finds the right one for each call (routing.py, topology.py). Only primaries are asked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Connection, Redis, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from storage import address
from storage.pool import Pool
from storage.routing import Routed
from storage.tls import Tls
from storage.topology import ClusterTopology, Host, SentinelTopology, require_primary

Client = Redis
"""What `connect` gives, and every part of the store is built on."""

_SENTINEL_CONNECTIONS_MAX = 2


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long one call may take, in seconds; the budgets of turns.py are above these."""

    connect_s: float = 1.0
    command_s: float = 2.0
    pool_wait_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Credential:
    """A user and a password; None for none."""

    username: str | None = None
    password: str | None = None


def connect(
    url: str,
    *,
    connections_max: int,
    deadlines: Deadlines,
    tls: Tls | None = None,
    sentinel: Credential | None = None,
    on_busy: Callable[[], object] = lambda: None,
) -> Client:
    """A client for a store; connects lazily, closes with ``aclose()``.

    Args:
        url: see address.py.
        connections_max: to each server.
        deadlines: of every call.
        tls: for a URL that asks for it.
        sentinel: who we are for Sentinels; the URL's credential is for the data nodes only.
        on_busy: see pool.py.

    Raises:
        ValueError: the URL is none of a store, see `address.read`.
    """
    at = address.read(url)
    tls_options = (tls or Tls()).options() if at.tls else None

    def node(host: Host, **more: Any) -> Redis:
        credential = Credential(at.username, at.password)
        return _server(host, credential, connections_max, deadlines, tls_options, on_busy, db=at.database, **more)

    def sentinel_node(host: Host) -> Redis:
        return _server(host, sentinel or Credential(), _SENTINEL_CONNECTIONS_MAX, deadlines, tls_options, on_busy)

    match at.kind:
        case "standalone":
            return node(at.hosts[0])
        case "sentinel":
            return Routed(
                SentinelTopology(
                    at.hosts,
                    at.service,
                    open_sentinel=sentinel_node,
                    open_node=lambda host: node(host, redis_connect_func=require_primary),
                    deadline_s=deadlines.connect_s,
                )
            )
        case "cluster":
            return Routed(ClusterTopology(at.hosts, open_node=node, deadline_s=deadlines.connect_s))


def _server(
    host: Host,
    credential: Credential,
    connections_max: int,
    deadlines: Deadlines,
    tls_options: dict[str, Any] | None,
    on_busy: Callable[[], object],
    **options: Any,
) -> Redis:
    """The client of one server."""
    pool = Pool(
        connection_class=Connection if tls_options is None else SSLConnection,
        on_busy=on_busy,
        max_connections=connections_max,
        timeout=deadlines.pool_wait_s,
        host=host[0],
        port=host[1],
        username=credential.username,
        password=credential.password,
        socket_connect_timeout=deadlines.connect_s,
        socket_timeout=deadlines.command_s,
        retry=Retry(NoBackoff(), 0),
        retry_on_error=[],
        health_check_interval=0,
        socket_keepalive=True,
        driver_info=None,
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
        **(tls_options or {}),
        **options,
    )
    return Redis.from_pool(pool)
