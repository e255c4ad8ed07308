"""The Redis of development: its start script is run with a real Valkey, and has the rights that the docs tell."""

import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError

from tests.instruments.child import Child
from tests.instruments.ports import LOOPBACK, reserved_port
from tests.instruments.redis_servers import valkey_server
from tests.k8s.manifests import K8S, ROOT, kustomizations, sources

pytestmark = pytest.mark.anyio

COMPONENT = K8S / "components" / "redis"
PASSWORD = "0f5c1b"


def test_its_user_has_the_rights_of_the_docs() -> None:
    (told,) = re.findall(
        r"^ACL SETUSER baton on >PASSWORD (.*~.*)$", (ROOT / "docs/operations.md").read_text("utf-8"), re.M
    )
    (given,) = re.findall(r"^rights='(.*)'$", (COMPONENT / "start.sh").read_text("utf-8"), re.M)
    assert given == told


def test_the_script_is_started_where_it_is_mounted() -> None:
    (container,) = sources().one("StatefulSet", "baton-redis")["spec"]["template"]["spec"]["containers"]
    (mounted,) = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "config"]
    (data,) = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "data"]
    assert container["command"] == ["sh", f"{mounted}/start.sh", "--dir", data]
    (made,) = kustomizations()["components/redis"]["configMapGenerator"]
    assert made["files"] == ["valkey.conf", "start.sh"]


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[int]:
    """A server that was started by the script, and its port."""
    command = ["/bin/sh", str(COMPONENT / "start.sh"), "--dir", str(tmp_path)]
    env = {
        "PATH": f"{Path(valkey_server()).parent}:/usr/bin:/bin",
        "REDIS_PASSWORD": PASSWORD,
        "TMPDIR": str(tmp_path),
    }
    with reserved_port() as number:
        listening = ["--bind", LOOPBACK, "--port", str(number)]
        async with Child("valkey", [*command, *listening], tmp_path, env) as child:
            await child.first(lambda: "ready" if "Ready to accept" in child.log() else None, "ready", 20.0)
            yield number


async def test_a_replica_takes_it_without_a_warning(port: int, tmp_path: Path) -> None:
    env = {
        "ANTHROPIC_API_KEY": "none",
        "BATON_SECRET": "s" * 32,
        "BATON_REDIS_URL": f"redis://baton:{PASSWORD}@{LOOPBACK}:{port}/0",
    }
    async with Child("check", (sys.executable, "-m", "service.cli", "check"), tmp_path, env) as child:
        assert await child.wait(30.0) == 0, child.log()
        said = child.log().splitlines()
    assert said == ["ok: the settings can be used.", "ok: the store can be used; namespace 'baton' has 1 bucket."]


async def test_nobody_else_gets_in_and_the_password_is_nowhere(port: int, tmp_path: Path) -> None:
    with Redis(LOOPBACK, port) as nobody, pytest.raises(AuthenticationError):
        nobody.get("{baton}:cfg")
    with Redis(LOOPBACK, port, username="baton", password="wrong") as wrong, pytest.raises(AuthenticationError):
        wrong.time()
    with Redis(LOOPBACK, port, username="baton", password=PASSWORD) as baton:
        with pytest.raises(NoPermissionError):
            baton.config_get("*")
        told = baton.info("persistence") | baton.info("memory")
    assert (told["aof_enabled"], told["maxmemory_policy"], told["maxmemory"]) == (1, "noeviction", 256 * 2**20)
    users = tmp_path / "users.acl"
    assert users.stat().st_mode & 0o777 == 0o600
    assert PASSWORD not in users.read_text("ascii")
