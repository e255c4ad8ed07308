"""TLS on every kind of connection, and a user with no right too many: the one of docs/operations.md."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from storage.connect import Credential, Deadlines, connect
from storage.first_contact import READ_COMMANDS, StoreRefused, first_contact, script_commands
from storage.health import health
from storage.results import StoreUnavailable
from storage.tls import Tls
from storage.turns import Rewind
from tests.instruments.redis_servers import Cluster, SentinelSet, Server, redis_server
from tests.instruments.tls import Certificates
from tests.store.harness import Store, elements
from tests.store.test_script_keys import a_life, early_ends, moves

pytestmark = pytest.mark.anyio

DOCS = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
PASSWORD = "s3cret:@/#"
QUOTED = "s3cret%3A%40%2F%23"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[Server]:
    """It speaks TLS only and wants to see a certificate."""
    made = Server("tls", tmp_path_factory.mktemp("tls"), ["--requirepass", PASSWORD], tls=certificates)
    made.answers(password=PASSWORD)
    yield made
    made.close()


@asynccontextmanager
async def opened(
    url: str, tls: Tls | None = None, *, sentinel: Credential | None = None, buckets: int = 1
) -> AsyncIterator[Store]:
    redis = connect(url, connections_max=4, deadlines=Deadlines(connect_s=5.0), tls=tls, sentinel=sentinel)
    try:
        yield Store.of(redis, "baton", buckets=buckets)
    finally:
        await redis.aclose()


async def meet(store: Store) -> list[str]:
    return await first_contact(store.redis, store.keyspace, eviction_allowed=False, deadline_s=5.0)


def all_files(certificates: Certificates) -> Tls:
    return Tls(certificates["ca.crt"], certificates["client.crt"], certificates["client.key"])


# TLS


async def test_a_server_that_shows_the_right_certificate_and_is_shown_ours(
    server: Server, certificates: Certificates
) -> None:
    for host in ("127.0.0.1", "localhost"):
        async with opened(f"rediss://:{QUOTED}@{host}:{server.announced_port}/0", all_files(certificates)) as store:
            await meet(store)
            await store.committed(await store.created(), elements(2))


@pytest.mark.parametrize(
    ("ca", "client", "words"),
    [
        ("other-ca.crt", "client", "certificate verify failed"),
        (None, "client", "certificate verify failed"),
        ("ca.crt", None, "No connection to Redis"),
    ],
)
async def test_a_connection_that_cannot_be_trusted_is_not_made(
    server: Server, certificates: Certificates, ca: str | None, client: str | None, words: str
) -> None:
    of_client = (certificates[f"{client}.crt"], certificates[f"{client}.key"]) if client else (None, None)
    tls = Tls(certificates[ca] if ca else None, *of_client)
    async with opened(f"rediss://:{QUOTED}@127.0.0.1:{server.announced_port}/0", tls) as store:
        with pytest.raises(StoreUnavailable, match=words) as caught:
            await meet(store)
        assert "s3cret" not in str(caught.value)


async def test_the_name_in_the_certificate_is_checked_unless_told_not_to(
    certificates: Certificates, tmp_path: Path
) -> None:
    other = Server("elsewhere", tmp_path, tls=certificates, certificate="elsewhere")
    try:
        other.answers()
        url = f"rediss://{other.address}/0"
        tls = all_files(certificates)
        unchecked = Tls(tls.ca_file, tls.cert_file, tls.key_file, check_hostname=False)
        async with opened(url, unchecked) as store:
            await store.created()
        async with opened(url, tls) as store:
            with pytest.raises(StoreUnavailable, match="certificate is not valid for"):
                await meet(store)
    finally:
        other.close()


async def test_plain_text_to_a_server_of_tls_is_told(server: Server) -> None:
    async with opened(f"redis://:{QUOTED}@127.0.0.1:{server.announced_port}/0") as store:
        with pytest.raises(StoreUnavailable, match="No connection to Redis") as caught:
            await meet(store)
        assert "s3cret" not in str(caught.value)


async def test_a_cluster_of_tls(certificates: Certificates, tmp_path: Path) -> None:
    """Also to the nodes that were learned and not given."""
    with Cluster(tmp_path, replicas=0, tls=certificates) as cluster:
        url = f"rediss+cluster://{cluster.nodes[0].address}"
        async with opened(url, all_files(certificates), buckets=64) as store:
            await meet(store)
            for _ in range(10):
                await store.committed(await store.created(), elements(1))
            assert len(await store.redis.primaries()) == 3


async def test_sentinels_of_tls(certificates: Certificates, tmp_path: Path) -> None:
    with SentinelSet(tmp_path, replicas=0, tls=certificates) as sentinels:
        async with opened(sentinels.url, all_files(certificates)) as store:
            await meet(store)
            await store.committed(await store.created(), elements(1))


def test_files_that_will_not_do_are_told(certificates: Certificates, tmp_path: Path) -> None:
    crt, key = certificates["client.crt"], certificates["client.key"]
    assert Tls().problems() == Tls(certificates["ca.crt"], crt, key).problems() == []
    (line,) = Tls(ca_file=tmp_path / "none").problems()
    assert line.endswith("cannot be read: No such file or directory.")
    (line,) = Tls(cert_file=crt).problems()
    assert "both" in line
    for wrong in (Tls(ca_file=key), Tls(None, crt, certificates["server.key"]), Tls(None, key, key)):
        (line,) = wrong.problems()
        assert "PEM" in line


# Rights


def acl_line(number: int) -> list[str]:
    """A line of the documentation, as words."""
    lines = re.findall(r"^ACL SETUSER .*$", DOCS.read_text("utf-8"), re.MULTILINE)
    return [word.replace(">PASSWORD", f">{PASSWORD}") for word in lines[number].split()]


@pytest.fixture(params=["", *([binary] if (binary := redis_server()) else [])], ids=lambda path: Path(path).name)
def restricted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """Where the user of the documentation is the only one but the default; on a Redis too, if there is one."""
    made = Server("rights", tmp_path, binary=request.param)
    made.answers()
    made.command(*acl_line(0))
    yield made
    made.close()


def url_of(server: Server) -> str:
    return f"redis://baton:{QUOTED}@{server.address}/0"


async def test_the_documented_user_may_do_all_that_is_done(restricted: Server) -> None:
    async with opened(url_of(restricted)) as store:
        await meet(store)
        assert await health(store.redis, store.keyspace, deadline_s=5.0) == "up"
        await a_life(store)
        await early_ends(store)
        await moves(store)
        ref = await store.created()
        turn = await store.committed(ref, elements(2))
        await store.committed(ref, elements(1), rewind=Rewind(0, 0, 1))
        await store.turns.number(ref, turn)
        await store.turns.records(ref, 1, 1)
        await store.turns.count(ref)
        await store.turns.fates(ref, [turn])
        await store.turns.cuts(ref)
        await store.turns.ledger(ref)
        await store.turns.history(ref, 1)
        await store.log.tail(ref, turn, 1, 0)
        await store.sessions.messages(ref, 0, 1)
        await store.sessions.snapshots([ref])
        await store.sessions.labels([ref])
        await store.shares.share(ref, "bob", "viewer")
        await store.index.page("bob", None, 10)
        await store.index.shared_active("alice")
        await store.index.counts(None)
        await store.index.expired(10)
        await store.index.oldest(None, 10)
    assert restricted.command("ACL LOG") == []
    executed = {name.removeprefix("cmdstat_").upper() for name in restricted.client().info("commandstats")}
    assert READ_COMMANDS | script_commands() <= executed, "and all that is asked for is needed"


def test_the_documented_user_has_no_right_too_many() -> None:
    given = {word[1:].upper() for word in acl_line(0) if word.startswith("+")}
    keyless = {"EVAL", "EVALSHA", "MULTI", "EXEC", "TIME", "INFO", "ROLE", "SELECT", "CLUSTER|SLOTS"}
    assert given == keyless | READ_COMMANDS | script_commands()


@pytest.mark.parametrize("command", ["multi", "zadd", "xadd", "lrange", "hsetnx", "xrevrange"])
async def test_a_missing_right_is_named(restricted: Server, command: str) -> None:
    restricted.command("ACL", "SETUSER", "baton", f"-{command}")
    async with opened(url_of(restricted)) as store:
        with pytest.raises(StoreRefused, match=f": {command.upper()} .docs/operations.md") as caught:
            await meet(store)
        assert "s3cret" not in str(caught.value)
        assert restricted.client().exists("{baton}:cfg") == 0


@pytest.mark.parametrize("command", ["eval", "evalsha", "info", "time"])
async def test_a_missing_right_to_what_has_no_key_is_named(restricted: Server, command: str) -> None:
    restricted.command("ACL", "SETUSER", "baton", f"-{command}")
    async with opened(url_of(restricted)) as store:
        with pytest.raises(StoreRefused, match=f"'{command}'"):
            await meet(store)


async def test_keys_of_another_namespace_are_told(restricted: Server) -> None:
    async with opened(url_of(restricted)) as store:
        other = Store.of(store.redis, "other")
        with pytest.raises(StoreRefused, match=r"not on the namespace's keys: COPY .* ZSCORE"):
            await meet(other)


async def test_a_wrong_password_is_told_and_not_shown(restricted: Server) -> None:
    async with opened(url_of(restricted).replace("s3", "S3")) as store:
        with pytest.raises(StoreUnavailable, match="refuses the user name or the password") as caught:
            await meet(store)
        assert "3cret" not in str(caught.value)


async def test_the_documented_users_of_a_cluster(tmp_path: Path) -> None:
    with Cluster(tmp_path, replicas=0) as cluster:
        for node in cluster.nodes:
            node.command(*acl_line(0))
        async with opened(cluster.url.replace("//", f"//baton:{QUOTED}@"), buckets=64) as store:
            await meet(store)
            for _ in range(10):
                await store.committed(await store.created(), elements(1))
            cluster.nodes[2].command("ACL", "SETUSER", "baton", "-zadd")
            with pytest.raises(StoreRefused, match=f"^{cluster.nodes[2].address}: .* ZADD ") as caught:
                await meet(store)
            assert len(caught.value.problems) == 1
        assert [entry for node in cluster.nodes for entry in node.command("ACL LOG")] == []


async def test_the_documented_users_behind_sentinel(tmp_path: Path) -> None:
    peers: Any = (
        "user peer on >peer allcommands allchannels",
        "sentinel sentinel-user peer",
        "sentinel sentinel-pass peer",
    )
    _, _, name, *rules = acl_line(1)
    lines = [f"user {name} {' '.join(rules)}", "user default off", *peers]
    with SentinelSet(tmp_path, replicas=0, sentinel_lines=lines) as sentinels:
        sentinels.servers[0].command(*acl_line(0))
        url = sentinels.url.replace("//", f"//baton:{QUOTED}@")
        async with opened(url, sentinel=Credential("baton", PASSWORD)) as store:
            await meet(store)
            await store.committed(await store.created(), elements(1))
        assert sentinels.servers[0].command("ACL LOG") == []
