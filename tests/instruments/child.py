"""A child process of the test run: started clean, watched through its log, never left behind.

Every child runs in a session of its own, so its whole group can be killed by its leader's id, and is killed by the
kernel when the test run itself dies (Linux; elsewhere a killed test run may leave children). It gets a clean
environment: nothing of the caller's settings, keys or HTTP proxies reaches it.

What a child prints goes to one file per child in the test's directory: pipes would block a child nobody reads.
Waiting is polling with a deadline. Children must be started from the main thread, where tests run: Linux ties the
death signal to the thread that started the child.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

STARTUP_TIMEOUT_S = 40.0
EXIT_TIMEOUT_S = 10.0
POLL_INTERVAL_S = 0.01

_ROOT = Path(__file__).resolve().parents[2]
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
_LAST_WORDS_CHARS = 3000

# Becomes the real program after asking the kernel for SIGKILL at the death of the test run. In the child and not
# in a preexec_fn: that would run Python between fork and exec in a process that may have threads.
_LEASHED = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the test run is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class ChildFailed(Exception):
    """A child ended, or stayed silent, before it was ready; the message ends with its last words."""


class Child:
    """A process of ours, from start to burial. Also an async context manager that kills it on the way out.

    Attributes:
        name: for messages.
        pid: its process id, which is its process group's too.
        log_path: what it printed, stdout and stderr in one file.
    """

    def __init__(
        self, name: str, command: Sequence[str], directory: Path, env: Mapping[str, str] | None = None
    ) -> None:
        """Start it; returns before it is ready.

        Args:
            name: also names its log file.
            command: program and arguments.
            directory: where its log goes, and its working directory.
            env: its settings, added to a clean environment.
        """
        self.name = name
        self.log_path = directory / f"{name}.log"
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _LEASHED, str(os.getpid()), *command],
                cwd=directory,
                env={**clean_environment(), **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._process.pid

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.destroy()

    @property
    def returncode(self) -> int | None:
        """Its exit code, minus the signal that killed it, or None while it runs."""
        return self._process.poll()

    def log(self) -> str:
        """All it has printed so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def events(self, event: str | None = None) -> list[dict[str, Any]]:
        """The JSON objects among its log lines, oldest first; with ``event``, those of that name."""
        found = []
        for line in self.log().splitlines():
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and event in (None, record.get("event")):
                    found.append(record)
        return found

    def freeze(self) -> None:
        """SIGSTOP, and wait until it stands still: sockets stay open, nothing is answered, clocks run on."""
        if self._process.poll() is None:
            freeze_process(self.pid)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def terminate(self) -> None:
        """SIGTERM, the polite request; see ``wait``."""
        self._signal(signal.SIGTERM)

    def kill9(self) -> None:
        """SIGKILL to it and whatever it started, and reap it: when this returns, it is gone."""
        self.destroy()

    def destroy(self) -> None:
        """What ``kill9`` does; harmless when it has ended already."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()

    async def wait(self, timeout_s: float = EXIT_TIMEOUT_S) -> int:
        """Wait until it has ended by itself; returns its exit code.

        Raises:
            TimeoutError: it still runs after ``timeout_s`` seconds.
        """
        deadline = time.monotonic() + timeout_s
        while (code := self._process.poll()) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name} still runs after {timeout_s} s")
            await asyncio.sleep(POLL_INTERVAL_S)
        return code

    async def first(self, find: Callable[[], str | None], what: str, timeout_s: float) -> str:
        """Poll its log until ``find`` finds something in it; ``what`` names that in the error.

        Raises:
            ChildFailed: it ended, or ``timeout_s`` seconds passed.
        """
        deadline = time.monotonic() + timeout_s
        while (found := find()) is None:
            ended = self._process.poll()
            if ended is not None or time.monotonic() > deadline:
                state = "is silent" if ended is None else f"ended with {ended}"
                raise ChildFailed(f"{self.name} {state}, no {what}:\n{self.log()[-_LAST_WORDS_CHARS:]}")
            await asyncio.sleep(POLL_INTERVAL_S)
        return found

    def _signal(self, number: int) -> None:
        if self._process.poll() is None:  # polled by us alone, so the id cannot have been reused
            os.kill(self.pid, number)


def freeze_process(pid: int) -> None:
    """Stop a child of ours and return once it stands still.

    The signal alone is not enough: one sent right after it, a SIGTERM say, may be delivered first.
    """
    os.kill(pid, signal.SIGSTOP)
    if sys.platform == "linux":
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)  # an exit is left for its owner to reap
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG)  # this stop is told; the next freeze waits for its own


def clean_environment() -> dict[str, str]:
    """What a child inherits: enough to find programs and files, none of the caller's settings or keys."""
    inherited = os.environ  # no setting of ours is read here: it is passed on to a child
    return {
        **{name: inherited[name] for name in _INHERITED if name in inherited},
        "PYTHONPATH": str(_ROOT),
        "PYTHONUNBUFFERED": "1",
    }
