"""The URL of a store, read. Four kinds of Redis can be named; a fifth, `embedded`, is started by us and has a URL then.

    redis[s]://[user:password@]host[:port][/database]
    redis[s]+sentinel://[user:password@]host[:port],host[:port],…/service[/database]
    redis[s]+cluster://[user:password@]host[:port],host[:port],…

``rediss`` is TLS, for every connection that the URL leads to. User and password are those of the data nodes. What is
not understood is refused, and never passed over: another database than meant would be found out too late.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import unquote

Kind = Literal["standalone", "sentinel", "cluster"]

BUCKETS: Final[dict[Kind, int]] = {"standalone": 1, "sentinel": 1, "cluster": 64}
"""How many buckets a namespace has unless it is told: one is exact and cheapest, but all of it is on one node."""

_SCHEMES: Final[dict[str, tuple[Kind, bool]]] = {
    "redis": ("standalone", False),
    "rediss": ("standalone", True),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
_EXAMPLES: Final[dict[Kind, str]] = {
    "standalone": "redis://:password@host:6379/0",
    "sentinel": "redis+sentinel://:password@host1:26379,host2:26379/service/0",
    "cluster": "redis+cluster://:password@host1:6379,host2:6379",
}
_PORTS: Final[dict[Kind, int]] = {"standalone": 6379, "sentinel": 26379, "cluster": 6379}
_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[^\s:\[\]@/,]+))(?::(?P<port>\d{1,5}))?")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a store is.

    Attributes:
        kind: what is behind the hosts.
        tls: whether every connection is encrypted.
        username, password: of the data nodes; None for none.
        hosts: host and port: of the server, of Sentinels, or of some nodes of the cluster.
        database: its number.
        service: what Sentinel calls the primary; "" for other kinds.
    """

    kind: Kind
    tls: bool
    username: str | None
    password: str | None
    hosts: tuple[tuple[str, int], ...]
    database: int = 0
    service: str = ""


def read(url: str) -> Address:
    """Reads a URL.

    Raises:
        ValueError: a sentence that says what is wrong, without the URL, which holds a password.
    """
    if any(not "!" <= char <= "~" for char in url):
        raise ValueError("it holds white space or other characters that a URL cannot have; percent-encode them.")
    scheme, _, rest = url.partition("://")
    if scheme not in _SCHEMES:
        raise ValueError("it must begin with redis:// or rediss://, or with redis+sentinel:// or redis+cluster://.")
    if "?" in url or "#" in url:
        raise ValueError(
            "it cannot have options (?…) or a fragment (#…); percent-encode these characters in a password."
        )
    kind, tls = _SCHEMES[scheme]
    authority, _, path = rest.partition("/")
    credentials, at, hosts = authority.rpartition("@")
    username, colon, password = credentials.partition(":")
    if at and not colon:
        username, password = "", username  # as redis-cli reads it: a lone word is the password
    database, service = _path(kind, path)
    return Address(
        kind, tls, unquote(username) or None, unquote(password) or None, _hosts(kind, hosts), database, service
    )


def _hosts(kind: Kind, text: str) -> tuple[tuple[str, int], ...]:
    found = []
    for part in text.split(","):
        match = _HOST.fullmatch(part)
        port = int(match["port"] or _PORTS[kind]) if match else 0
        if match is None or not 1 <= port <= 65535:
            if "@" in part or ":" in part.partition(":")[2]:
                raise ValueError("its host or port cannot be read; percent-encode special characters of a password.")
            raise ValueError(f"it must name a host, and its port is 1 to 65535: {_EXAMPLES[kind]}")
        found.append((match["v6"] or match["name"], port))
    if kind == "standalone" and len(found) > 1:
        raise ValueError("it names several hosts: write redis+sentinel:// or redis+cluster:// to say what they are.")
    return tuple(found)


def _path(kind: Kind, path: str) -> tuple[int, str]:
    """The number of the database and the service."""
    service = ""
    if kind == "sentinel":
        service, _, path = path.partition("/")
        service = unquote(service)
        if not service:
            raise ValueError(f"its path must begin with the name of Sentinel's service: {_EXAMPLES[kind]}")
    if not (path == "" or (path.isdecimal() and len(path) < 6)):
        raise ValueError(f"its path must be the number of a database: {_EXAMPLES[kind]}")
    database = int(path or 0)
    if kind == "cluster" and database:
        raise ValueError("a cluster has database 0 only.")
    return database, service
