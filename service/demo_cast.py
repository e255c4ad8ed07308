"""The demo's processes: started side by side, watched through their logs, never left behind.

Each part is a process of its own, in a session of its own, so that Ctrl-C in a terminal reaches none of them: an
embedded Valkey, the stand-in for Claude (``baton simulate``), three replicas (``baton serve``) and the front that
balances per request (``baton demo-front``). They are stopped by their ids. A demo that is killed has no last word, so
the kernel kills its children (Linux; elsewhere they would stay).
"""

import contextlib
import ctypes
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from storage.embedded import EmbeddedRefused, EmbeddedValkey

REPLICAS: Final = 3
LEASE_MS: Final = 3000
# What a program needs to run at all; none of the caller's settings, keys or HTTP proxies reaches a child.
INHERITED: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH")

_START_S: Final = 30.0
_STOP_S: Final = 5.0
_POLL_S: Final = 0.02
_LAST_LINES: Final = 8

_PR_SET_PDEATHSIG: Final = 1
# Looked up before any fork: loading a library in a fork may deadlock.
_prctl: Any = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


class DemoFailed(Exception):
    """The demo cannot go on; the message is for whoever watches."""


class Child:
    """A process of the demo; what it prints goes to a file, which is also how it says that it is ready.

    Args:
        name: also names its log.
        args: of the command ``baton``.
        directory: where it runs and logs.
        environment: all of it.
    """

    def __init__(self, name: str, args: Sequence[str], directory: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        self.killed = False
        with self.log.open("ab") as log:
            self._told_before = log.tell()  # a replica that is started anew goes on in the same file
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-m", "service.cli", *args],
                cwd=directory,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()) if _prctl else None,
            )
        self.pid = self._process.pid

    def first(self, find: Callable[[str], str | None], within_s: float) -> str:
        """Waits until `find` finds something in a line of the log.

        Raises:
            DemoFailed: the process has ended, or stays silent for `within_s`.
        """
        deadline = time.monotonic() + within_s
        while True:
            ended = self.ended
            for line in self.lines():
                if (found := find(line)) is not None:
                    return found
            if ended:
                raise DemoFailed(f"{self.name} ended before it was ready (exit code {self._process.returncode}).")
            if time.monotonic() > deadline:
                raise DemoFailed(f"{self.name} was not ready within {within_s:g} s.")
            time.sleep(_POLL_S)

    def lines(self) -> list[str]:
        """What this process has printed so far."""
        with self.log.open("rb") as log:
            log.seek(self._told_before)
            return log.read().decode(errors="replace").splitlines()

    def logged(self, event: str) -> bool:
        """Whether its log has an event of that name."""
        return any(_field(line, event, "event") == event for line in self.lines())

    @property
    def ended(self) -> bool:
        """Whether it runs no more."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """SIGKILL, as an out-of-memory killer would; returns when it is gone."""
        self.killed = True
        self._process.kill()
        self._process.wait()

    def terminate(self) -> None:
        """SIGINT, if it runs; does not wait. It is Ctrl-C for a replica too: nobody has to be given notice."""
        self._process.send_signal(signal.SIGINT)

    def bury(self, deadline: float) -> None:
        """Waits for its end; by force after `deadline`."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@dataclass
class Cast:
    """All processes of the demo.

    Attributes:
        directory: of logs and data.
        inherited: environment of every process.
        replicas, urls: of the replicas; number n has index n - 1.
    """

    directory: Path
    inherited: dict[str, str]
    valkey: EmbeddedValkey | None = None
    replicas: list[Child] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    simulator_url: str = ""
    front_url: str = ""
    _all: list[Child] = field(default_factory=list)
    _settings: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        """Starts everything, as much as possible side by side.

        Raises:
            DemoFailed: something does not start.
        """
        simulator = self._spawn("simulator", ["simulate", "--listen", "127.0.0.1:0"])
        try:
            self.valkey = EmbeddedValkey.start(self.directory / "valkey")
        except EmbeddedRefused as error:
            raise DemoFailed(str(error)) from error
        self.simulator_url = simulator.first(_after("simulator listening on "), _START_S)
        self._settings = {
            "ANTHROPIC_API_KEY": "sk-ant-simulated",
            "ANTHROPIC_BASE_URL": self.simulator_url,
            "BATON_REDIS_URL": self.valkey.url,
            "BATON_SECRET": secrets.token_hex(32),
            "BATON_LEASE_MS": str(LEASE_MS),
            "BATON_LOG_FORMAT": "json",
        }
        self.replicas = [self._replica(number, "127.0.0.1:0") for number in range(1, REPLICAS + 1)]
        self.urls = [replica.first(_listening, _START_S) for replica in self.replicas]
        each = [part for url in self.urls for part in ("--replica", url)]
        front = self._spawn("front", ["demo-front", "--listen", "127.0.0.1:0", *each])
        self.front_url = front.first(_after("front listening on "), _START_S)

    def start_anew(self, number: int) -> None:
        """Starts a killed replica again, where it was."""
        address = urlsplit(self.urls[number - 1]).netloc
        self.replicas[number - 1] = self._replica(number, address)
        self.replicas[number - 1].first(_listening, _START_S)

    def stop(self) -> None:
        """Stops everything; the store last, for replicas still write to it while they end."""
        for child in reversed(self._all):
            child.terminate()
        deadline = time.monotonic() + _STOP_S
        for child in reversed(self._all):
            child.bury(deadline)
        if self.valkey is not None:
            self.valkey.stop()

    def last_words(self) -> list[str]:
        """Last lines of whatever ended by itself; to be asked for before `stop`."""
        found = []
        for child in self._all:
            if child.ended and not child.killed:
                found += [f"{child.name} ended; {child.log} ends with:"]
                found += [f"  {line}" for line in child.lines()[-_LAST_LINES:]]
        return found

    def _replica(self, number: int, listen: str) -> Child:
        name = f"replica-{number}"
        return self._spawn(name, ["serve"], {**self._settings, "BATON_LISTEN": listen, "BATON_REPLICA": name})

    def _spawn(self, name: str, args: Sequence[str], settings: Mapping[str, str] | None = None) -> Child:
        child = Child(name, args, self.directory, {**self.inherited, **(settings or {})})
        self._all.append(child)
        return child


def _die_with(owner: int) -> Callable[[], None]:
    """What a forked child does before it becomes a process of the demo: asks to be killed at the death of its owner."""

    def die_with_owner() -> None:
        if _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0 or os.getppid() != owner:
            os._exit(1)

    return die_with_owner


def _after(prefix: str) -> Callable[[str], str | None]:
    return lambda line: line.removeprefix(prefix).strip() if line.startswith(prefix) else None


def _listening(line: str) -> str | None:
    return _field(line, "listening", "url")


def _field(line: str, event: str, name: str) -> str | None:
    """A field of a log line, if that is the event."""
    with contextlib.suppress(ValueError):
        record = json.loads(line)
        if isinstance(record, dict) and record.get("event") == event and name in record:
            return str(record[name])
    return None
