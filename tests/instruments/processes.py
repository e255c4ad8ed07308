"""Real processes for tests: Valkey, the simulator, replicas, and a fleet of them all.

How a child is started, watched and buried is in ``child``. The fleet starts everything side by side and tears it
down in reverse order whatever happens, so that no replica outlives its proxies or its backends.
"""

import asyncio
import itertools
import json
import os
import signal
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import urlsplit, urlunsplit

import aiohttp

from storage.embedded import EmbeddedValkey
from tests.instruments.child import STARTUP_TIMEOUT_S, Child, freeze_process
from tests.instruments.ports import reserved_port
from tests.instruments.stall import HttpStall, RedisStall

CONTROL_TIMEOUT_S = 10.0
SECRET = "5eed" * 16

_SERVICE = (sys.executable, "-m", "service.cli")


class Simulator(Child):
    """``baton simulate``: the stand-in for Claude, with the methods of its control surface.

    Attributes:
        url: where it listens; known after ``ready``.
        records_path: its request log, one JSON object per line.
    """

    def __init__(self, directory: Path, args: Sequence[str] = (), env: Mapping[str, str] | None = None) -> None:
        self.url = ""
        self.records_path = directory / "simulator-requests.jsonl"
        command = (*_SERVICE, "simulate", "--listen", "127.0.0.1:0", "--log", str(self.records_path), *args)
        super().__init__("simulator", command, directory, env)

    async def ready(self, timeout_s: float = STARTUP_TIMEOUT_S) -> Self:
        """Wait until it listens."""
        self.url = await self.first(self._printed_url, "address", timeout_s)
        return self

    async def requests(self, limit: int | None = None) -> list[dict[str, Any]]:
        """The requests it remembers (at most 256), newest last, with what became of each."""
        answer = await self._control("GET", f"requests?limit={limit}" if limit else "requests")
        requests: list[dict[str, Any]] = answer["requests"]
        return requests

    async def asked(self, mark: str) -> list[dict[str, Any]]:
        """Those of its requests for messages whose last message holds the mark, newest last.

        A body too long to be remembered is a note, not an object, and none at all is `null`: neither holds a mark.
        """
        kept = [request for request in await self.requests() if isinstance(request["body"], dict)]
        return [request for request in kept if mark in str(request["body"].get("messages", [""])[-1])]

    async def stats(self) -> dict[str, Any]:
        """``{"requests": N, "running": N}``."""
        return await self._control("GET", "stats")

    async def total(self) -> int:
        """How many requests it has had. (How many run is another matter: one that was given up ends a moment later.)"""
        return int((await self.stats())["requests"])

    async def fault(self, kind: str, **fields: object) -> None:
        """Queue a fault for the next message request, or the next ``times=`` of them."""
        await self._control("POST", "faults", {"kind": kind, **fields})

    async def clear_faults(self) -> None:
        """Forget the faults not used yet."""
        await self._control("DELETE", "faults")

    async def pace(self, **fields: object) -> None:
        """Set how fast it answers from now on."""
        await self._control("POST", "pace", fields)

    def records(self) -> list[dict[str, Any]]:
        """Its whole request log, oldest first; for runs longer than it remembers."""
        if not self.records_path.exists():
            return []
        return [json.loads(line) for line in self.records_path.read_text(encoding="utf-8").splitlines()]

    def _printed_url(self) -> str | None:
        for line in self.log().splitlines():
            before, marker, url = line.partition("simulator listening on ")
            if marker and not before:
                return url.strip()
        return None

    async def _control(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        url = f"{self.url}/simulator/{path}"
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(CONTROL_TIMEOUT_S)) as session,
            session.request(method, url, json=body) as response,
        ):
            text = await response.text()
            if response.status >= 400:
                raise AssertionError(f"{method} {url}: {response.status} {text[:500]}")
            answer = json.loads(text) if text else {}
            return answer if isinstance(answer, dict) else {}


class Replica(Child):
    """``baton serve``: one replica.

    Attributes:
        url: where it listens; known after ``ready``.
        redis_stall: the proxy between it and the store, if it has one of its own.
        http_stall: the proxy between it and the simulator, if it has one of its own.
    """

    def __init__(self, name: str, directory: Path, env: Mapping[str, str]) -> None:
        self.url = ""
        self.redis_stall: RedisStall | None = None
        self.http_stall: HttpStall | None = None
        super().__init__(name, (*_SERVICE, "serve"), directory, {"BATON_LISTEN": "127.0.0.1:0", **env})

    async def ready(self, timeout_s: float = STARTUP_TIMEOUT_S) -> Self:
        """Wait until its log says that it listens."""
        self.url = await self.first(self._logged_url, "address", timeout_s)
        return self

    def _logged_url(self) -> str | None:
        return next((str(record["url"]) for record in self.events("listening") if "url" in record), None)


class Valkey:
    """An embedded Valkey in a directory of its own; killed and started again it keeps data, port and password.

    Attributes:
        directory: its files.
        port: where it listens, and where nobody else does while it is down.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._frozen = False
        with ExitStack() as stack:  # a failed start is undone at once
            self.port = stack.enter_context(reserved_port())
            self._server = EmbeddedValkey.start(directory, port=self.port)
            self._reservation = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        self._reservation.close()

    @property
    def url(self) -> str:
        """``redis://:password@127.0.0.1:port/0``."""
        return self._server.url

    @property
    def pid(self) -> int:
        """Of the server process."""
        return self._server.pid

    @property
    def ports(self) -> tuple[int, ...]:
        """For a proxy before it."""
        return (self.port,)

    def kill9(self) -> None:
        """SIGKILL, and reap it. Not after it has ended: its id may be another's by then."""
        os.kill(self.pid, signal.SIGKILL)
        self._frozen = False
        self._server.stop()

    def freeze(self) -> None:
        """SIGSTOP, and wait until it stands still."""
        freeze_process(self.pid)
        self._frozen = True

    def thaw(self) -> None:
        """SIGCONT, if it is frozen."""
        if self._frozen:
            os.kill(self.pid, signal.SIGCONT)
            self._frozen = False

    def start(self) -> None:
        """Start it again on the same data after ``kill9`` or ``stop``; blocks until it answers."""
        address = self.url
        self._server = EmbeddedValkey.start(self.directory, port=self.port)
        assert self.url == address

    def logged_bytes(self) -> int:
        """How long its append-only file is."""
        return self._log_file().stat().st_size

    def cut(self, size_bytes: int) -> None:
        """While it is down: lose what the append-only file holds beyond so many bytes, as when the power fails."""
        os.truncate(self._log_file(), size_bytes)

    def _log_file(self) -> Path:
        return max((self.directory / "appendonlydir").glob("*.incr.aof"))

    def stop(self) -> None:
        """End it in order; harmless when it has ended."""
        self.thaw()  # a frozen server would not hear the request to end
        self._server.stop()


class Store(Protocol):
    """What a fleet must know of a store."""

    @property
    def url(self) -> str:
        """Its address."""

    @property
    def ports(self) -> Sequence[int]:
        """All on which its servers listen, whoever they are: a proxy stands before every one."""


class Fleet:
    """One store, one simulator and ``replicas`` replicas, started side by side and torn down whatever happens.

    Attributes, inside ``async with``:
        store, simulator: the two backends.
        replicas: in order of start; killed ones stay in the list.
    """

    store: Store
    simulator: Simulator

    def __init__(
        self,
        directory: Path,
        replicas: int = 3,
        *,
        store: Store | None = None,
        env: Mapping[str, str] | None = None,
        redis_stalls: Collection[int] = (),
        http_stalls: Collection[int] = (),
        simulator_args: Sequence[str] = (),
    ) -> None:
        """Plan a fleet.

        Args:
            directory: for all files, usually ``tmp_path``.
            replicas: how many to start at first; see also ``add_replica``.
            store: one that is there already and stays; else the fleet has a `Valkey` of its own.
            env: settings of every replica, over the fleet's own.
            redis_stalls: indexes of the replicas that reach the store through a ``RedisStall`` of their own.
            http_stalls: indexes of the replicas that reach the simulator through an ``HttpStall`` of their own.
            simulator_args: more arguments for ``baton simulate``.
        """
        self.replicas: list[Replica] = []
        self._numbers = itertools.count()  # a log is one replica's, also when others were taken off the list
        self._directory = directory
        self._given = store
        self._count = replicas
        self._env = dict(env or {})
        self._redis_stalls, self._http_stalls = redis_stalls, http_stalls
        self._simulator_args = simulator_args
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:  # a failed start is undone at once
            self._stack = stack
            self.simulator = await stack.enter_async_context(Simulator(self._directory, self._simulator_args))
            self.store = self._given or stack.enter_context(Valkey(self._directory / "valkey"))
            await self.simulator.ready()
            for index in range(self._count):
                await self._launch(index in self._redis_stalls, index in self._http_stalls, {})
            await asyncio.gather(*(replica.ready() for replica in self.replicas))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.__aexit__(kind, error, traceback)

    @property
    def valkey(self) -> Valkey:
        """The store of a fleet to which none was given."""
        assert isinstance(self.store, Valkey)
        return self.store

    @property
    def store_url(self) -> str:
        """Of the store that its replicas use: the fleet's, unless their settings name another."""
        return self._env.get("BATON_REDIS_URL") or self.store.url

    async def add_replica(
        self, *, redis_stall: bool = False, http_stall: bool = False, env: Mapping[str, str] | None = None
    ) -> Replica:
        """Start one more replica, for instance in the place of a killed one, and wait until it listens."""
        replica = await self._launch(redis_stall, http_stall, env or {})
        return await replica.ready()

    async def _launch(self, redis_stall: bool, http_stall: bool, env: Mapping[str, str]) -> Replica:
        """Start a replica behind its stalls; torn down in reverse order, so no replica outlives its proxies."""
        redis = http = None
        redis_url, claude_url = self.store.url, self.simulator.url
        if redis_stall:
            redis = await self._stack.enter_async_context(RedisStall(*self.store.ports))
            redis_url = redis.url_through(redis_url)
        if http_stall:
            port = urlsplit(self.simulator.url).port
            assert port is not None
            http = await self._stack.enter_async_context(HttpStall(port))
            claude_url = with_port(self.simulator.url, http.port)
        settings = {
            "ANTHROPIC_API_KEY": "sk-ant-simulated",
            "ANTHROPIC_BASE_URL": claude_url,
            "BATON_REDIS_URL": redis_url,
            "BATON_SECRET": SECRET,
            **self._env,
            **env,
        }
        replica = Replica(f"replica-{next(self._numbers)}", self._directory, settings)
        await self._stack.enter_async_context(replica)
        replica.redis_stall, replica.http_stall = redis, http
        self.replicas.append(replica)
        return replica


def with_port(url: str, port: int) -> str:
    """The same URL with another port."""
    parts = urlsplit(url)
    credentials, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{credentials}{at}{parts.hostname}:{port}"))
