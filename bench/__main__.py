"""What Baton costs: ``python -m bench [--quick]``, or ``make bench``.

Two numbers per kind of work, measured in the same run, in short slices A B A B, so that whatever else the machine does
hits both: *baton*, a real ``baton serve``, and the *floor* (floor.py), the least that the same turn can cost. CPU time
of the process only, user and system, per turn or per streamed event (the turn's own work shared out over its events);
medians over the rounds. Requests per second would measure the machine's other tenants.

What translation costs: the same turns of Baton's in both dialects, in a session and without one, beside those of
`/v1/messages` without a session, whose bytes pass through.

Also: a turn at 200 stored messages beside one at 2, resident memory before and after, the server time of the two
scripts of a turn at 10 and at 10,000 stored messages, and what the operations on sessions cost with 1,000 and with
100,000 sessions in the store (capacity.py).
"""

import argparse
import asyncio
import contextlib
import os
import platform
import secrets
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bench import capacity
from bench.fake import BURST_DELTAS, PACED_DELTAS
from bench.processes import Load, Process, load, running
from bench.store import Store
from service.access import OPEN_PRINCIPAL
from storage.embedded import EmbeddedValkey

_NAMESPACE: Final = "bench"
_TURNS_PER_SESSION: Final = 4
_WARM_UP_TURNS: Final = 200
_LENGTHS: Final = [10, 10_000]
_KEYED: Final = "keyed"
_FEW: Final = 1_000
_MANY: Final = 100_000
_MANY_QUICK: Final = 10_000


@dataclass(frozen=True)
class Cell:
    """One kind of work.

    Attributes:
        name: in the table.
        model: which tells the fake what to do.
        stored: messages that a session holds when it is first used.
        lanes: connections at once.
        turns: of one lane in one slice.
        units: what the cost is divided by, per turn.
        dialect: of the caller.
        in_session: whether the turns belong to sessions.
    """

    name: str
    model: str
    stored: int
    lanes: int
    turns: int
    units: int
    dialect: str = "chat"
    in_session: bool = True

    @property
    def streamed(self) -> bool:
        return self.units > 1


_CELLS: Final = [
    Cell("plain turn, from 2 stored messages", "bench-plain", 2, 4, 100, 1),
    Cell("plain turn, from 200 stored messages", "bench-plain", 200, 4, 100, 1),
    Cell(f"streamed event, burst of {BURST_DELTAS}", "bench-burst", 2, 4, 16, BURST_DELTAS),
    Cell("streamed event, one per 5 ms", "bench-paced", 2, 16, 1, PACED_DELTAS),
]


_PASSED: Final = "messages, no session: bytes pass"
_WAYS: Final = {
    _PASSED: ("messages", False),
    "messages, in a session": ("messages", True),
    "chat, no session": ("chat", False),
    "chat, in a session": ("chat", True),
}


class Bench:
    """The processes of a run, and the numbers."""

    def __init__(self, store: Store, generator: Load, targets: dict[str, Process], key: str = "") -> None:
        self._key = key
        self._store = store
        self._generator = generator
        self._targets = targets
        self.turns = dict.fromkeys(targets, 0)

    async def slice(self, name: str, cell: Cell) -> float:
        """One slice; CPU microseconds of the target per unit."""
        per_lane = -(-cell.turns // _TURNS_PER_SESSION)
        lanes = []
        for _ in range(cell.lanes):
            sessions = [await self._session(cell) for _ in range(per_lane)]
            lanes.append([session for session in sessions for _ in range(_TURNS_PER_SESSION)][: cell.turns])
        target = self._targets[name]
        before = target.cpu_s()
        order = {"port": target.port, "dialect": cell.dialect, "model": cell.model, "stream": cell.streamed}
        await self._generator.run({**order, "key": self._key if name == _KEYED else "", "lanes": lanes})
        turns = cell.lanes * cell.turns
        self.turns[name] += turns
        return (target.cpu_s() - before) / turns / cell.units * 1e6

    async def _session(self, cell: Cell) -> str | None:
        return (await self._store.session(cell.stored)).id if cell.in_session else None

    async def rounds(
        self, cells: Sequence[Cell], repeats: int, targets: Sequence[str] = ("floor", "baton")
    ) -> dict[tuple[str, Cell], list[float]]:
        """Every target at every kind of work, again and again: the slices, by target and cell, round by round."""
        samples: dict[tuple[str, Cell], list[float]] = {(name, cell): [] for cell in cells for name in targets}
        for _ in range(repeats):
            for (name, cell), of in samples.items():
                of.append(await self.slice(name, cell))
        return samples


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the rounds' ratios: what disturbs a round disturbs both sides of it."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


@contextlib.asynccontextmanager
async def processes(valkey_url: str, secret: str, folder: Path) -> AsyncIterator[tuple[Load, dict[str, Process]]]:
    """The fake, the floor, Baton and the load generator."""
    async with contextlib.AsyncExitStack() as stack:
        fake = await stack.enter_async_context(running([sys.executable, "-m", "bench.fake"], folder / "fake.log"))
        floor_argv = [
            sys.executable,
            "-m",
            "bench.floor",
            valkey_url,
            _NAMESPACE,
            secret,
            str(fake.port),
            OPEN_PRINCIPAL,
        ]
        floor = await stack.enter_async_context(running(floor_argv, folder / "floor.log"))
        baton = await stack.enter_async_context(baton_serve(valkey_url, secret, fake.port, folder / "baton.log"))
        asking = baton_serve(valkey_url, secret, fake.port, folder / "keyed.log", auth="keys")
        keyed = await stack.enter_async_context(asking)
        generator = await stack.enter_async_context(load([sys.executable, "-m", "bench.load"]))
        yield generator, {"floor": floor, "baton": baton, _KEYED: keyed}


def baton_serve(
    valkey_url: str, secret: str, fake_port: int, log: Path, cwd: Path | None = None, *, auth: str = "open"
) -> contextlib.AbstractAsyncContextManager[Process]:
    """A replica, with every setting at its default but where things are and who may call."""
    env = {
        "ANTHROPIC_API_KEY": "sk-ant-bench",
        "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{fake_port}",
        "BATON_AUTH": auth,
        "BATON_LISTEN": "127.0.0.1:0",
        "BATON_NAMESPACE": _NAMESPACE,
        "BATON_REDIS_URL": valkey_url,
        "BATON_SECRET": secret,
    }
    return running([sys.executable, "-m", "service.cli", "serve"], log, env, cwd)


async def measure(valkey_url: str, folder: Path, *, quick: bool) -> None:
    """Everything, printed as it comes."""
    secret = secrets.token_hex(16)
    store = Store(valkey_url, _NAMESPACE, secret, OPEN_PRINCIPAL)
    await store.open()
    async with contextlib.aclosing(store), processes(valkey_url, secret, folder) as (generator, targets):
        bench = Bench(store, generator, targets, await store.key())
        await bench.rounds([Cell("", "bench-plain", 2, 4, _WARM_UP_TURNS // 4, 1)], 1, list(targets))
        resident_mb = targets["baton"].resident_mb()
        samples = await bench.rounds(_CELLS, 2 if quick else 5)
        print(f"\n{'CPU of the process, µs per':<40}{'floor':>9}{'baton':>9}{'ratio':>8}")
        for cell in _CELLS:
            floor, baton = samples["floor", cell], samples["baton", cell]
            medians = f"{statistics.median(floor):>9.1f}{statistics.median(baton):>9.1f}"
            print(f"{cell.name:<40}{medians}{ratio(baton, floor):>8.2f}")
        growth = ratio(samples["baton", _CELLS[1]], samples["baton", _CELLS[0]])
        print(f"{'baton, 200 stored messages / 2':<40}{growth:>26.2f}")
        await _print_authentication(bench, 2 if quick else 5)
        await _print_translation(bench, 2 if quick else 5)
        now_mb = targets["baton"].resident_mb()
        print(f"\nbaton resident: {resident_mb:.0f} MB after {_WARM_UP_TURNS} turns, ", end="")
        print(f"{now_mb:.0f} MB after {bench.turns['baton']}; floor: {targets['floor'].resident_mb():.0f} MB")
    await _print_server_times(valkey_url, secret, quick=quick)


async def _print_authentication(bench: Bench, repeats: int) -> None:
    """A plain turn where callers are not asked for a key and where they show one, round by round in turn."""
    cell = _CELLS[0]
    samples = await bench.rounds([cell], repeats, ["baton", _KEYED])
    without, shown = (samples[name, cell] for name in ("baton", _KEYED))
    more = statistics.median(b - a for a, b in zip(without, shown, strict=True))
    print(
        f"{'plain turn, with a key / open':<40}{statistics.median(without):>9.1f}{statistics.median(shown):>9.1f}",
        end="",
    )
    print(f"{ratio(shown, without):>8.2f}   {more:+.1f} µs")


async def _print_translation(bench: Bench, repeats: int) -> None:
    """Each way of asking at each kind of work, and what it costs beyond the bytes that pass; medians of the rounds."""
    kinds = [replace(_CELLS[0], turns=50), _CELLS[2]]
    cells = {
        (way, kind.name): replace(kind, dialect=dialect, in_session=in_session)
        for kind in kinds
        for way, (dialect, in_session) in _WAYS.items()
    }
    samples = await bench.rounds(list(cells.values()), repeats, ["baton"])
    print(f"\n{'CPU of baton, µs per':<36}{'turn':>9}{'more':>9}{'event':>9}{'more':>9}")
    for way in _WAYS:
        print(f"{way:<36}", end="")
        for kind in kinds:
            this, passed = (samples["baton", cells[one, kind.name]] for one in (way, _PASSED))
            more = statistics.median(a - b for a, b in zip(this, passed, strict=True))
            print(f"{statistics.median(this):>9.1f}{more:>9.1f}", end="")
        print()


async def _print_server_times(valkey_url: str, secret: str, *, quick: bool) -> None:
    store = Store(valkey_url, _NAMESPACE, secret, OPEN_PRINCIPAL)
    async with contextlib.aclosing(store):
        times = await store.server_times(_LENGTHS, sessions=4 if quick else 10, rounds=10 if quick else 25)
    short, long = (times[length] for length in _LENGTHS)
    print(f"\n{'server time, µs a call':<24}{'10 stored':>16}{'10,000 stored':>16}{'ratio':>10}")
    for verb in ("begin", "commit"):
        print(f"{verb:<24}{short[verb]:>16.1f}{long[verb]:>16.1f}{long[verb] / short[verb]:>10.2f}")


async def measure_capacity(sizes: Mapping[str, int], *, quick: bool) -> None:
    """What sessions cost in a small and in a large store, printed; ``sizes`` by the servers' addresses."""
    async with contextlib.AsyncExitStack() as stack:
        stores = [capacity.FilledStore(url, size) for url, size in sizes.items()]
        for store in stores:
            await stack.enter_async_context(contextlib.aclosing(store))
            await store.fill()
        samples = await capacity.measured(stores, rounds=5 if quick else 20)
    print(f"\n{'µs, by sessions in the store':<34}{'server time':>27}{'CPU of the client':>27}")
    print(" " * 34 + f"{stores[0].size:>10,}{stores[1].size:>10,}{'ratio':>7}" * 2)
    for name, (small, large) in samples.items():
        server = _columns([cost.server_us for cost in small], [cost.server_us for cost in large])
        client = _columns([cost.client_us for cost in small], [cost.client_us for cost in large])
        print(f"{name:<34}{server}{client}")
    memory = (f"{store.bytes_per_session:.0f} bytes at {store.size:,}" for store in stores)
    print(f"\nmemory of the server for an empty session: {', '.join(memory)}")


def _columns(small: Sequence[float], large: Sequence[float]) -> str:
    return f"{statistics.median(small):>10.1f}{statistics.median(large):>10.1f}{ratio(large, small):>7.2f}"


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="CPU per turn and per streamed event.")
    parser.add_argument("--quick", action="store_true", help="two rounds instead of five")
    quick = parser.parse_args(argv).quick
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
    with tempfile.TemporaryDirectory(prefix="baton-bench-") as folder:
        with EmbeddedValkey.start(Path(folder) / "store") as valkey:
            asyncio.run(measure(valkey.url, Path(folder), quick=quick))
        with EmbeddedValkey.start(Path(folder) / "few") as few, EmbeddedValkey.start(Path(folder) / "many") as many:
            sizes = {few.url: _FEW, many.url: _MANY_QUICK if quick else _MANY}
            asyncio.run(measure_capacity(sizes, quick=quick))


if __name__ == "__main__":
    main()
