"""Turns for minutes on end, and what they leave behind: ``python -m bench.soak [--minutes 5]``, or ``make soak``.

Two replicas, a fake Claude and a Valkey. Callers ask in sessions that live for seconds: streamed and not, some hanging
up in the middle, some with a key and sent twice, some deleting their session. Every so often a line is printed: memory,
descriptors and connections of the replicas, keys and memory of the store. At the end the callers stop, the sessions
expire and are swept, and the run fails if anything is left that should not be: memory of a replica that grew between
the first third and the end, or of the empty store; descriptors and connections that are still open; a lease that nobody
holds any more; a key.
"""

import argparse
import asyncio
import os
import random
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import redis.asyncio

from bench.processes import Process, running
from storage.embedded import EmbeddedValkey

_CALLERS: Final = 12
_TTL_S: Final = 15
_SWEEP_S: Final = 3
_LEASE_MS: Final = 2000
_LINES: Final = 12
_GROWTH_MAX: Final = 1.1
_SETTLED_S: Final = 30.0
_SPARE_DESCRIPTORS: Final = 8  # kept-alive connections to Claude and to the store come and go
_STORE_GROWTH_MB_MAX: Final = 4.0  # what is reused of memory once freed differs from run to run
_CONNECTIONS_MAX: Final = 2 * _CALLERS  # of all replicas: no call holds one for longer than its answer takes


@dataclass(frozen=True, slots=True)
class Sample:
    """Of one instant; by replica, where it is a list."""

    turns: int
    resident_mb: list[float]
    descriptors: list[int]
    connections: int
    keys: int
    store_mb: float

    def line(self, at_s: float) -> str:
        """As it is printed."""
        memory = "  ".join(f"{mb:6.1f}" for mb in self.resident_mb)
        descriptors = "  ".join(f"{count:4d}" for count in self.descriptors)
        rest = f"{self.connections:6d}  {self.keys:7d}  {self.store_mb:7.1f}"
        return f"{at_s:6.0f}  {self.turns:8d}   {memory}   {descriptors}   {rest}"


class Soak:
    """One run.

    Attributes:
        outcomes: what callers were told, counted.
    """

    def __init__(self, replicas: list[Process], store: Any, http: aiohttp.ClientSession) -> None:
        self._replicas = replicas
        self._store = store
        self._http = http
        self._over = False
        self.outcomes: Counter[str] = Counter()

    async def sample(self) -> Sample:
        """How everything is now."""
        of_replicas = [client for client in await self._store.client_list() if not client["lib-name"]]  # but our own
        return Sample(
            self.outcomes.total(),
            [replica.resident_mb() for replica in self._replicas],
            [len(os.listdir(f"/proc/{replica.pid}/fd")) for replica in self._replicas],
            len(of_replicas),
            await self._store.dbsize(),
            (await self._store.info("memory"))["used_memory"] / 1e6,
        )

    async def run(self, minutes: float) -> list[Sample]:
        """Asks for so long, and prints; the samples."""
        callers = [asyncio.create_task(self._caller()) for _ in range(_CALLERS)]
        samples, started = [], time.monotonic()
        for number in range(1, _LINES + 1):
            await asyncio.sleep(max(0.0, started + minutes * 60 * number / _LINES - time.monotonic()))
            samples.append(await self.sample())
            print(samples[-1].line(time.monotonic() - started), flush=True)
        self._over = True
        await asyncio.gather(*callers)
        return samples

    async def _caller(self) -> None:
        while not self._over:
            self.outcomes[await self._turn()] += 1

    async def _turn(self) -> str:
        """One request, whatever it is; what came of it."""
        chance = random.random()
        base = f"http://127.0.0.1:{random.choice(self._replicas).port}"
        session = f"soak-{self.outcomes.total() // 40}-{random.randrange(8)}"
        if chance < 0.02:
            async with self._http.delete(f"{base}/v1/sessions/{session}") as deleted:
                return f"delete {deleted.status}"
        stream = chance < 0.6
        message = {"role": "user", "content": f"Something to talk about, {secrets.token_hex(40)}"}
        body = {"model": "bench-paced" if chance < 0.2 else "bench-plain", "stream": stream, "messages": [message]}
        headers = {"x-session-id": session}
        times = 1
        if chance > 0.95:
            headers["idempotency-key"], times = secrets.token_hex(8), 2
        for _ in range(times):
            async with self._http.post(f"{base}/v1/chat/completions", json=body, headers=headers) as answer:
                if stream and chance < 0.05:
                    await answer.content.readany()
                    answer.close()
                    return "hung up"
                await answer.read()
        return str(answer.status)

    async def settled(self) -> tuple[Counter[str], Sample]:
        """Waits until everything has expired; the kinds of keys that are left, and the last sample."""
        deadline = time.monotonic() + _TTL_S + _SETTLED_S
        while True:
            kinds = Counter([_kind(key) async for key in self._store.scan_iter(count=1000)])
            left = Counter({kind: count for kind, count in kinds.items() if kind not in _STAYS})
            sample = await self.sample()
            if not left or time.monotonic() > deadline:
                return left, sample
            await asyncio.sleep(1.0)

    async def leases(self) -> int:
        """Sessions with a holder, once nobody runs a turn any more and a lease's time has passed."""
        await asyncio.sleep(_LEASE_MS / 1000)
        held = 0
        async for key in self._store.scan_iter(match="*}:s:*", count=1000):
            held += bool(await self._store.hget(key, "lt"))
        return held


_STAYS: Final = {"swl", "cnt", "oc", "cfg"}
"""Kinds of keys that outlive sessions: the lock of the sweep, the counters, the configuration of the namespace."""


def _kind(key: bytes) -> str:
    """``{baton:00}:s:sess_…`` → ``s``; ``{baton}:cfg`` → ``cfg``."""
    return key.partition(b"}:")[2].split(b":")[0].decode()


def leaks(idle: Sample, samples: list[Sample], end: Sample, left: Counter[str], leases: int) -> list[str]:
    """What is left that should not be, in sentences."""
    found = []
    early = samples[len(samples) // 3]
    for number, (before_mb, after_mb) in enumerate(zip(early.resident_mb, samples[-1].resident_mb, strict=True)):
        if after_mb > before_mb * _GROWTH_MAX:
            found.append(f"replica {number} grew from {before_mb:.1f} to {after_mb:.1f} MB")
    open_now = zip(idle.descriptors, end.descriptors, strict=True)
    store_connections = end.connections - idle.connections
    for number, (before, after) in enumerate(open_now):
        if after > before + store_connections + _SPARE_DESCRIPTORS:
            found.append(f"replica {number} had {before} descriptors open before, and {after} after")
    if end.connections > idle.connections + _CONNECTIONS_MAX:
        found.append(f"there were {idle.connections} connections to the store before, and {end.connections} after")
    if end.store_mb > idle.store_mb + _STORE_GROWTH_MB_MAX:
        found.append(f"the empty store grew from {idle.store_mb:.1f} to {end.store_mb:.1f} MB")
    if leases:
        found.append(f"{leases} sessions have a holder, and no turn runs")
    if left:
        found.append(f"keys are left: {dict(left)}")
    return found


async def soak(valkey: EmbeddedValkey, folder: Path, minutes: float) -> int:
    """Everything, printed as it comes; the number of leaks."""
    secret = secrets.token_hex(16)
    async with AsyncExitStack() as stack:
        fake = await stack.enter_async_context(running([sys.executable, "-m", "bench.fake"], folder / "fake.log"))
        env = {
            "ANTHROPIC_API_KEY": "sk-ant-soak",
            "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{fake.port}",
            "BATON_LISTEN": "127.0.0.1:0",
            "BATON_REDIS_URL": valkey.url,
            "BATON_SECRET": secret,
            "BATON_SESSION_TTL_S": str(_TTL_S),
            "BATON_SWEEP_INTERVAL_S": str(_SWEEP_S),
            "BATON_LEASE_MS": str(_LEASE_MS),
        }
        serve = [sys.executable, "-m", "service.cli", "serve"]
        replicas = [
            await stack.enter_async_context(running(serve, folder / f"replica-{number}.log", env))
            for number in range(2)
        ]
        store: Any = await stack.enter_async_context(redis.asyncio.from_url(valkey.url))
        connector = aiohttp.TCPConnector(limit=0)
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        one = Soak(replicas, store, http)
        idle = await one.sample()
        print("     s     turns   resident, MB     descriptors   conns     keys  store MB")
        print(idle.line(0))
        samples = await one.run(minutes)
        await connector.close()
        leases = await one.leases()
        left, end = await one.settled()
        print(end.line(minutes * 60))
        print(f"told: {dict(one.outcomes)}")
        found = leaks(idle, samples, end, left, leases)
        print("\n".join(found) if found else "nothing is left")
        return len(found)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description="Turns for minutes, and what they leave.")
    parser.add_argument("--minutes", type=float, default=5.0)
    minutes = parser.parse_args(argv).minutes
    with (
        tempfile.TemporaryDirectory(prefix="baton-soak-") as folder,
        EmbeddedValkey.start(Path(folder) / "store") as valkey,
    ):
        sys.exit(min(1, asyncio.run(soak(valkey, Path(folder), minutes))))


if __name__ == "__main__":
    main()
