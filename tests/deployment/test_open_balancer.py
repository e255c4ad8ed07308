"""The shipped balancer, where callers need no key: a page of another site reaches nothing under its own name."""

from pathlib import Path

import aiohttp
import pytest

from tests.deployment.haproxy import PROGRAM, haproxy
from tests.e2e.caller import Caller
from tests.instruments.processes import Fleet

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(PROGRAM is None, reason="there is no haproxy on this machine (apt install haproxy)"),
]


async def test_what_is_addressed_to_another_name_is_refused_unless_keys_are_asked_for(tmp_path: Path) -> None:
    async with Fleet(tmp_path, replicas=1, env={"BATON_AUTH": "open"}) as fleet, aiohttp.ClientSession() as http:
        port = int(fleet.replicas[0].url.rpartition(":")[2])
        statuses: dict[str, list[int]] = {}
        for auth in ("open", "keys"):
            (tmp_path / auth).mkdir()
            async with haproxy(tmp_path / auth, [port] * 3, auth=auth) as url:
                caller = Caller(http, url)
                hosts = (
                    "localhost",
                    "LOCALHOST:80",
                    "127.0.0.1:8000",
                    "[::1]:8000",
                    "evil.example",
                    "127.0.0.1.evil.example",
                )
                got = [await caller.request("GET", "/v1/sessions", headers={"host": host}) for host in hosts]
                statuses[auth] = [answer.status for answer in got]
                if auth == "open":
                    assert got[-1].json["error"]["code"] == "origin_refused"
        assert statuses == {"open": [200] * 4 + [403] * 2, "keys": [200] * 6}
