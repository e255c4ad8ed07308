"""All replicas are replaced, one after the other, under load and behind the balancer that is shipped.

Clients do not retry. No turn fails and every stream is complete. That takes both: a replica that goes on taking work
until the balancer has seen that it stops, and a balancer that never sends a request into a connection that is about to
close.
"""

import asyncio
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.deployment.crowd import crowd
from tests.deployment.haproxy import PROGRAM, haproxy
from tests.instruments.ports import reserved_port
from tests.instruments.processes import Fleet

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(PROGRAM is None, reason="there is no haproxy on this machine (apt install haproxy)"),
]

USERS = 6
TURNS_BETWEEN = 10
REPLACED_S = 30.0


@pytest.mark.timeout(120)
async def test_no_turn_fails_while_every_replica_is_replaced(tmp_path: Path) -> None:
    with ExitStack() as stack:
        ports = [stack.enter_context(reserved_port()) for _ in range(3)]
        async with Fleet(tmp_path, replicas=0, simulator_args=["--delta-ms", "20"]) as fleet:
            await asyncio.gather(*(fleet.add_replica(env={"BATON_LISTEN": f"127.0.0.1:{port}"}) for port in ports))
            async with haproxy(tmp_path, ports) as url:
                async with crowd(url, USERS) as users:
                    await users.more(TURNS_BETWEEN, REPLACED_S)
                    for port, replica in zip(ports, list(fleet.replicas), strict=True):
                        replica.terminate()
                        assert await replica.wait(REPLACED_S) == 0
                        await fleet.add_replica(env={"BATON_LISTEN": f"127.0.0.1:{port}"})
                        await users.more(TURNS_BETWEEN, REPLACED_S)
                assert users.failures == []
                await users.assert_kept()
