"""The embedded server: what outlives whom, and who may read what. Real servers, real kills."""

import fcntl
import json
import os
import platform
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from storage import embedded
from storage.embedded import EmbeddedRefused, EmbeddedValkey, probe
from tests.instruments.ports import reserved_port

OWNER = Path(__file__).with_name("embedded_owner.py")
Reply = dict[str, Any]


@contextmanager
def client_of(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2) as client:
        yield client


@contextmanager
def owner_process(directory: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], Reply]]:
    """Another process that starts a server; killed at the latest on the way out."""
    with subprocess.Popen(
        [sys.executable, OWNER, directory, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        try:
            assert owner.stdout is not None
            yield owner, json.loads(owner.stdout.readline())
        finally:
            owner.kill()


def poll(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


def server_is_gone(directory: Path) -> bool:
    """True once no process holds the lock that every server inherits."""
    with open(directory / "server.lock", "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# What survives


def test_data_and_address_survive_a_restart(tmp_path: Path) -> None:
    with reserved_port() as port:
        with EmbeddedValkey.start(tmp_path, port=port) as first, client_of(first.url) as client:
            client.set("k", "kept")
        assert server_is_gone(tmp_path)
        with EmbeddedValkey.start(tmp_path) as second, client_of(second.url) as client:
            assert client.get("k") == b"kept"
            assert (second.url, second.pid == first.pid) == (first.url, False)


def test_data_survives_kill_9_of_the_server(tmp_path: Path) -> None:
    with EmbeddedValkey.start(tmp_path, appendfsync="always") as server, client_of(server.url) as client:
        client.set("k", "kept")
        os.kill(server.pid, signal.SIGKILL)
        poll(lambda: server_is_gone(tmp_path))
    with EmbeddedValkey.start(tmp_path) as server, client_of(server.url) as client:
        assert client.get("k") == b"kept"


def test_a_file_cut_in_the_middle_of_a_command_is_loaded_up_to_there(tmp_path: Path) -> None:
    with EmbeddedValkey.start(tmp_path) as server, client_of(server.url) as client:
        client.set("k", "kept")
        client.set("last", "torn")
    [increment] = (tmp_path / "appendonlydir").glob("*.incr.aof")
    os.truncate(increment, increment.stat().st_size - 5)
    with EmbeddedValkey.start(tmp_path) as server, client_of(server.url) as client:
        assert (client.get("k"), client.get("last")) == (b"kept", None)


def test_the_server_is_set_up_to_keep_what_it_is_told(tmp_path: Path) -> None:
    with EmbeddedValkey.start(tmp_path) as server, client_of(server.url) as client:
        settings = client.config_get("*")
    expected = {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "bind": "127.0.0.1",
        "protected-mode": "yes",
    }
    assert {name: settings[name] for name in expected} == expected


# Who dies with whom


def leave(owner: subprocess.Popen[str]) -> None:
    assert owner.stdin is not None
    owner.stdin.close()


@pytest.mark.parametrize("options", [[], ["--watchdog"]], ids=["kernel", "watchdog"])
@pytest.mark.parametrize(
    "end",
    [leave, subprocess.Popen.terminate, subprocess.Popen.kill],
    ids=["leaves without stopping it", "SIGTERM", "SIGKILL"],
)
def test_the_server_ends_when_its_owner(
    tmp_path: Path, end: Callable[[subprocess.Popen[str]], None], options: list[str]
) -> None:
    with owner_process(tmp_path, *options) as (owner, server):
        assert not server_is_gone(tmp_path)
        end(owner)
        owner.wait(5)
        poll(lambda: server_is_gone(tmp_path))
        with client_of(server["url"]) as client, pytest.raises(redis.ConnectionError):
            client.ping()


def test_start_right_after_the_owner_was_killed_finds_every_acknowledged_write(tmp_path: Path) -> None:
    with owner_process(tmp_path) as (owner, server):
        with client_of(server["url"]) as client:
            for n in range(2000):
                client.rpush("k", n)
        owner.kill()
        with EmbeddedValkey.start(tmp_path) as successor, client_of(successor.url) as client:
            assert client.llen("k") == 2000
            assert successor.pid != server["pid"]


def test_start_waits_for_a_server_that_is_still_ending_and_then_refuses(tmp_path: Path) -> None:
    with owner_process(tmp_path) as (owner, server):
        os.kill(server["pid"], signal.SIGSTOP)  # SIGTERM stays pending: a server that takes its time
        try:
            owner.kill()
            owner.wait(5)
            with pytest.raises(EmbeddedRefused, match=r"earlier run has not let go of .*server\.lock"):
                EmbeddedValkey.start(tmp_path, start_timeout_s=0.2)
            awake = threading.Timer(0.3, os.kill, (server["pid"], signal.SIGCONT))
            awake.start()
            EmbeddedValkey.start(tmp_path).stop()
            awake.join()
        finally:
            if not server_is_gone(tmp_path):
                os.kill(server["pid"], signal.SIGKILL)


def test_ctrl_c_in_the_terminal_does_not_reach_the_server(tmp_path: Path) -> None:
    with EmbeddedValkey.start(tmp_path) as server:
        assert os.getsid(server.pid) != os.getsid(0)
        assert os.getpgid(server.pid) != os.getpgid(0)


def test_stop_is_idempotent_and_gives_the_directory_back(tmp_path: Path) -> None:
    server = EmbeddedValkey.start(tmp_path)
    server.stop()
    server.stop()
    assert server_is_gone(tmp_path)
    EmbeddedValkey.start(tmp_path).stop()


def test_stop_ends_a_server_that_does_not_listen_to_it(tmp_path: Path) -> None:
    server = EmbeddedValkey.start(tmp_path)
    os.kill(server.pid, signal.SIGSTOP)
    server.stop(timeout_s=0.1)
    assert server_is_gone(tmp_path)


# One owner


def refusal_here(directory: Path) -> str:
    with pytest.raises(EmbeddedRefused) as refused:
        EmbeddedValkey.start(directory)
    return str(refused.value)


def refusal_in_another_process(directory: Path) -> str:
    with owner_process(directory) as (_, reply):
        return str(reply["refused"])


@pytest.mark.parametrize("refusal", [refusal_here, refusal_in_another_process])
def test_a_second_owner_is_refused_and_told_the_address_to_use(tmp_path: Path, refusal: Callable[[Path], str]) -> None:
    with EmbeddedValkey.start(tmp_path) as server, client_of(server.url) as client:
        message = refusal(tmp_path)
        assert f"BATON_REDIS_URL_FILE={tmp_path / 'valkey.url'}" in message
        assert (tmp_path / "valkey.url").read_text().strip() == server.url
        assert client.ping()  # the first one is none the worse


def test_only_the_main_thread_may_start_it(tmp_path: Path) -> None:
    raised: list[BaseException] = []

    def start() -> None:
        try:
            EmbeddedValkey.start(tmp_path)
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join(5)
    assert "main thread" in str(raised[0])


# Ports


@contextmanager
def squatter(answer: bytes = b"") -> Iterator[int]:
    """A stranger listening on 127.0.0.1 who says the same to everybody; yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1024)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)


def test_a_port_lost_to_a_race_is_replaced_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with squatter(b"+OK\r\n+PONG\r\n") as taken, reserved_port() as free:  # even one who claims to be the server
        ports = iter([taken, taken, free])
        monkeypatch.setattr(embedded, "_free_port", lambda: next(ports))
        with EmbeddedValkey.start(tmp_path) as server, client_of(server.url) as client:
            assert f":{taken}/" not in server.url
            assert client.info("server")["process_id"] == server.pid


def test_losing_every_race_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with squatter() as taken:
        monkeypatch.setattr(embedded, "_free_port", lambda: taken)
        with pytest.raises(EmbeddedRefused, match=f"no free port .*{taken}"):
            EmbeddedValkey.start(tmp_path)
    assert server_is_gone(tmp_path)


def test_a_port_asked_for_is_taken_or_refused(tmp_path: Path) -> None:
    with reserved_port() as port, EmbeddedValkey.start(tmp_path, port=port) as server:
        assert server.url.endswith(f"@127.0.0.1:{port}/0")
    with squatter() as taken, pytest.raises(EmbeddedRefused, match=f"no free port .*{taken}"):
        EmbeddedValkey.start(tmp_path, port=taken)


def test_when_the_last_port_is_gone_the_password_changes_with_it(tmp_path: Path) -> None:
    with squatter() as taken:
        password = "x" * 43
        (tmp_path / "valkey.url").write_text(f"redis://:{password}@127.0.0.1:{taken}/0\n")
        with EmbeddedValkey.start(tmp_path) as server:
            assert password not in server.url
            assert (tmp_path / "valkey.url").read_text() == server.url + "\n"


# Secrets


def test_the_password_is_required(tmp_path: Path) -> None:
    with EmbeddedValkey.start(tmp_path) as server:
        _, address = server.url.split("@")
        with client_of(f"redis://{address}") as client, pytest.raises(redis.AuthenticationError):
            client.ping()
        with client_of(f"redis://:guess@{address}") as client, pytest.raises(redis.AuthenticationError):
            client.ping()


def test_everything_in_the_directory_is_for_this_user_alone(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with EmbeddedValkey.start(directory) as server, client_of(server.url) as client:
        client.set("k", "v")
        assert mode(directory) == 0o700
        entries = {path.name: mode(path) for path in directory.rglob("*")}
    assert {"lock", "server.lock", "valkey.conf", "valkey.url", "valkey.log"} <= set(entries)
    assert {name: bits for name, bits in entries.items() if bits & 0o077} == {}
    assert entries["valkey.conf"] == entries["valkey.url"] == 0o600


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_neither_the_process_list_nor_the_log_shows_the_password(tmp_path: Path) -> None:
    with EmbeddedValkey.start(tmp_path) as server:
        password = server.url.split("@")[0].removeprefix("redis://:").encode()
        assert password not in Path("/proc", str(server.pid), "cmdline").read_bytes()
    assert password not in (tmp_path / "valkey.log").read_bytes()
    assert password.decode() not in repr(server)


def test_the_server_does_not_inherit_our_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tell = tmp_path / "tell-environment"
    tell.write_text("#!/bin/sh\n/usr/bin/env\n")
    tell.chmod(0o700)
    monkeypatch.setattr(embedded, "_binary", lambda: tell)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-not-for-the-server")
    with pytest.raises(EmbeddedRefused, match="ended at start"):
        EmbeddedValkey.start(tmp_path / "data")
    told = (tmp_path / "data" / "valkey.log").read_text()
    assert "PWD=" in told
    assert "sk-ant" not in told


@pytest.mark.skipif(platform.libc_ver() < ("glibc", "2.33"), reason="this C library does not list what it can tune")
def test_the_servers_malloc_is_tuned(tmp_path: Path) -> None:
    """What is misspelt is passed over in silence, so the server's own loader is asked what it understood."""
    with EmbeddedValkey.start(tmp_path) as server:
        process = Path("/proc", str(server.pid))
        environment = dict(
            setting.split("=", 1) for setting in (process / "environ").read_text().split("\0") if setting
        )
        loader = re.search(r"/\S+/ld-\S+", (process / "maps").read_text())
    assert loader is not None
    told = subprocess.run([loader[0], "--list-tunables"], env=environment, capture_output=True, text=True, check=True)
    assert "glibc.malloc.tcache_count: 0x200 " in told.stdout


# Starts that fail, and slow ones


def test_a_server_that_ends_at_start_is_refused_with_its_last_words(tmp_path: Path) -> None:
    with EmbeddedValkey.start(tmp_path) as server, client_of(server.url) as client:
        client.set("k", "kept")
    [increment] = (tmp_path / "appendonlydir").glob("*.incr.aof")
    intact = increment.read_bytes()
    increment.write_bytes(b"nonsense" + intact)
    with pytest.raises(EmbeddedRefused, match=r"(?s)exit code 1.*Bad file format") as refused:
        EmbeddedValkey.start(tmp_path)
    assert server.url.split("@")[0] not in str(refused.value)
    increment.write_bytes(intact)  # nothing is left that would keep a repaired directory from starting
    with EmbeddedValkey.start(tmp_path) as server, client_of(server.url) as client:
        assert client.get("k") == b"kept"


def test_without_a_binary_for_this_platform_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.files", lambda _: None)
    with pytest.raises(EmbeddedRefused, match="set BATON_REDIS_URL"):
        EmbeddedValkey.start(tmp_path)


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedRefused, match=r"cannot use .*file"):
        EmbeddedValkey.start(tmp_path / "file")


def test_a_large_log_is_emptied_at_start(tmp_path: Path) -> None:
    log = tmp_path / "valkey.log"
    log.write_bytes(b"x" * (embedded.LOG_BYTES_MAX + 1))
    EmbeddedValkey.start(tmp_path).stop()
    assert 0 < log.stat().st_size < 10_000


@pytest.mark.parametrize(
    ("answer", "meaning"),
    [
        (b"+OK\r\n+PONG\r\n", "ready"),
        (b"+OK\r\n-LOADING Valkey is loading the dataset in memory\r\n", "loading"),
        (b"-WRONGPASS invalid username-password pair or user is disabled.\r\n-NOAUTH ...\r\n", "silent"),
        (b"-ERR AUTH <password> called without any password configured\r\n+PONG\r\n", "silent"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "silent"),
        (b"", "silent"),
    ],
)
def test_probe_believes_only_a_server_that_knows_the_password(answer: bytes, meaning: str) -> None:
    with squatter(answer) as port:
        assert probe(port, "secret") == meaning


def test_loading_may_take_longer_than_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with reserved_port() as port:
        with EmbeddedValkey.start(tmp_path, port=port) as server:
            pass
        answers = iter(["silent", *["loading"] * 30])
        monkeypatch.setattr(embedded, "probe", lambda *address: next(answers, None) or probe(*address))
        with EmbeddedValkey.start(tmp_path, start_timeout_s=0.1) as again:
            assert again.url == server.url
