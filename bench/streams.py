"""A thousand streams at once on one core: ``python -m bench.streams [--streams 1000]``, or ``make bench-streams``.

A replica with every setting at its default gets a core for itself; the callers, the fake Claude and Valkey share
another. Each caller has a session of its own and asks for one answer of 60 deltas, one every 250 ms; they come one by
one over the first seconds. Printed: how long after its predecessor an event came at its caller, CPU and memory of the
replica, and whether every answer was whole. A stall is a gap of more than ten times the pace. It
fails if there was one, or if an answer was not whole.

With ``--callers PORT N`` this is the process of the callers; it prints its gaps as JSON.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from bench.fake import SLOW_DELTAS, SLOW_PACE_S
from bench.processes import running
from storage.embedded import EmbeddedValkey

_RAMP_S: Final = 5.0
_STALL: Final = 10
_ANSWER_S: Final = 120.0
_CODE: Final = re.compile(rb'"code":"(\w+)"')
_WORDS: Final = "A question of ordinary length, as people ask them. " * 4


class Caller:
    """One answer, and when each part of it came."""

    def __init__(self) -> None:
        self.gaps_s: list[float] = []
        self.whole = False
        self.refused = ""

    async def ask(self, port: int, number: int) -> None:
        """Asks once; what goes wrong leaves ``whole`` false."""
        body = {"model": "bench-slow", "stream": True, "session_id": f"stream-{number}"}
        payload = orjson.dumps({**body, "messages": [{"role": "user", "content": _WORDS}]})
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_ANSWER_S):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
                await self._read(reader)
                writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        last, tail = 0.0, b""
        while data := await reader.read(65_536):
            now = time.perf_counter()
            if b"data: " in data:
                if last:
                    self.gaps_s.append(now - last)
                last = now
            tail = (tail + data)[-64:]
            if code := _CODE.search(data):
                self.refused = code[1].decode()
                return
            if tail.endswith(b"0\r\n\r\n"):
                self.whole = b"data: [DONE]" in tail
                return


async def call(port: int, streams: int) -> dict[str, Any]:
    """All callers, and their gaps together."""
    callers = [Caller() for _ in range(streams)]

    async def come(number: int) -> None:
        await asyncio.sleep(_RAMP_S * number / streams)
        await callers[number].ask(port, number)

    await asyncio.gather(*map(come, range(streams)))
    gaps = sorted(gap for caller in callers for gap in caller.gaps_s)
    at = {f"p{share}": gaps[min(len(gaps) - 1, len(gaps) * share // 100)] for share in (50, 99)} if gaps else {}
    stalls = sum(gap > _STALL * SLOW_PACE_S for gap in gaps)
    whole = sum(caller.whole for caller in callers)
    refused = Counter(caller.refused for caller in callers if not caller.whole)
    longest = gaps[-1] if gaps else 0.0
    return {**at, "max": longest, "stalls": stalls, "whole": whole, "events": len(gaps), "refused": refused}


async def measure(valkey: EmbeddedValkey, folder: Path, streams: int) -> bool:
    """Starts everything on its core, and prints what came of it; whether it `held`."""
    cores = sorted(os.sched_getaffinity(0))
    own, others = {cores[0]}, set(cores[1:]) or {cores[0]}
    os.sched_setaffinity(valkey.pid, others)
    async with running([sys.executable, "-m", "bench.fake"], folder / "fake.log") as fake:
        os.sched_setaffinity(fake.pid, others)
        env = {
            "ANTHROPIC_API_KEY": "sk-ant-bench",
            "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{fake.port}",
            "BATON_LISTEN": "127.0.0.1:0",
            "BATON_REDIS_URL": valkey.url,
            "BATON_SECRET": secrets.token_hex(16),
        }
        async with running([sys.executable, "-m", "service.cli", "serve"], folder / "baton.log", env) as baton:
            for thread in os.listdir(f"/proc/{baton.pid}/task"):
                os.sched_setaffinity(int(thread), own)
            before_s, started = baton.cpu_s(), time.perf_counter()
            order = [sys.executable, "-m", "bench.streams", "--callers", str(baton.port), str(streams)]
            callers = await asyncio.create_subprocess_exec(*order, stdout=asyncio.subprocess.PIPE)
            os.sched_setaffinity(callers.pid, others)
            told, _ = await callers.communicate()
            took_s, cpu_s = time.perf_counter() - started, baton.cpu_s() - before_s
            found = json.loads(told)
            print(f"{streams} streams of {SLOW_DELTAS} deltas, one every {SLOW_PACE_S * 1000:.0f} ms: ", end="")
            print(
                f"{found['whole']} whole, {found['events']} events after another; told: {found['refused'] or 'nothing'}"
            )
            gaps = (found.get("p50", 0.0), found.get("p99", 0.0), found["max"])
            print(
                "gap between events, ms: median {:.0f}, p99 {:.0f}, longest {:.0f}; ".format(*(g * 1e3 for g in gaps)),
                end="",
            )
            print(f"{found['stalls']} longer than {_STALL} times the pace")
            print(
                f"replica: {cpu_s / took_s:.0%} of its core, {cpu_s / streams / SLOW_DELTAS * 1e6:.0f} µs an event, ",
                end="",
            )
            print(f"{baton.resident_mb():.0f} MB resident")
            return held(found, streams)


def held(found: dict[str, Any], streams: int) -> bool:
    """Whether all of them came whole, and none stood still."""
    return bool(found["whole"] == streams and found["stalls"] == 0)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.streams", description="Paced streams at once on one core.")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--callers", type=int, nargs=2, metavar=("PORT", "N"), help=argparse.SUPPRESS)
    told = parser.parse_args(argv)
    if told.callers:
        import uvloop

        print(json.dumps(uvloop.run(call(*told.callers))))
        return
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
    with (
        tempfile.TemporaryDirectory(prefix="baton-streams-") as folder,
        EmbeddedValkey.start(Path(folder) / "store") as valkey,
    ):
        sys.exit(not asyncio.run(measure(valkey, Path(folder), told.streams)))


if __name__ == "__main__":
    main()
