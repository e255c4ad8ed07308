"""A replica as a process: uvicorn, and how it ends (life.py tells what that means for whoever is served).

uvicorn's own shutdown is not used: it closes idle connections first of all, and waits for the others without knowing
what runs behind them.
"""

import asyncio
import contextlib
import gc
import signal
import socket
import sys
from collections.abc import Iterator
from typing import cast

import uvicorn

from service import logs, telemetry
from service.app import Application, build
from service.http_protocol import HttpProtocol, Limits, http_protocol
from service.kept_secret import kept_secret
from service.life import CLOSE_HURRIED_S, CLOSE_S, REST_S, SETTLE_HURRIED_S, SETTLE_S
from service.settings import EX_CONFIG, Settings
from service.settling import unanswered_aborts
from storage.embedded import EmbeddedRefused, EmbeddedValkey
from storage.first_contact import StoreRefused

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _Server(uvicorn.Server):
    """uvicorn with an end of our own."""

    def __init__(self, config: uvicorn.Config, application: Application, notice_s: float, drain_s: float) -> None:
        super().__init__(config)
        self._application = application
        self._life = application.life
        self._notice_s = notice_s
        self._drain_s = drain_s

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Takes SIGTERM and SIGINT for as long as the server runs."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._signalled, number)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)  # what is left takes a moment, and must not be left halfway

    def _signalled(self, number: int) -> None:
        if number == signal.SIGINT or not self.started:
            self._notice_s = 0.0
        self._life.told_to_end()
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts and says where."""
        await super().startup(sockets)
        for server in self.servers:
            for listener in server.sockets:
                host, port = listener.getsockname()[:2]
                shown = f"[{host}]" if ":" in host else host
                telemetry.log.info("listening", url=f"http://{shown}:{port}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Everything from the first signal on."""
        life, exchanges = self._life, self._application.exchanges
        life.leaving = True
        telemetry.log.info("draining", notice_s=self._notice_s, drain_s=self._drain_s)
        await life.wait(self._notice_s)
        self._application.drain()
        for connection in self._connections():
            connection.let_go()
        await life.wait(self._drain_s, self._is_quiet)
        exchanges.interrupt()
        await life.wait(SETTLE_S, lambda: exchanges.running == 0, hurried_s=SETTLE_HURRIED_S)
        exchanges.leave()
        await self._close(sockets or [])
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.lifespan.shutdown(), 2 * REST_S)
        telemetry.log.info("stopped")

    def _connections(self) -> list[HttpProtocol]:
        return cast("list[HttpProtocol]", list(self.server_state.connections))

    def _is_quiet(self) -> bool:
        """Nothing runs, no checkpoint is made, nothing is being answered, and no verdict is outstanding."""
        application = self._application
        return not (
            application.exchanges.running
            or application.compaction.running
            or self.server_state.tasks
            or unanswered_aborts()
        )

    async def _close(self, listening: list[socket.socket]) -> None:
        """Takes no more connections; those that are left may take their last bytes, and then are cut off."""
        state = self.server_state
        for server in self.servers:
            server.close()
        for listener in listening:
            listener.close()
        for connection in self._connections():
            connection.shutdown()
        await self._life.wait(CLOSE_S, lambda: not (state.connections or state.tasks), hurried_s=CLOSE_HURRIED_S)
        for connection in self._connections():
            connection.cut_off()
        await asyncio.sleep(0)  # what waited for one of these ends by itself
        for task in list(state.tasks):
            task.cancel()
        if state.tasks:
            await asyncio.wait(list(state.tasks), timeout=REST_S)


def serve(settings: Settings) -> int:
    """Runs one replica until it is told to stop; returns the exit code. Call it from the main thread."""
    logs.configure(settings.log_format, settings.log_level)
    try:
        listening = _bound(settings.host.strip("[]"), settings.port)
    except OSError as error:
        print(f"BATON_LISTEN={settings.listen} cannot be listened on: {error.strerror}.", file=sys.stderr)  # noqa: T201
        return 1
    url, embedded = settings.store_url(), None
    secret = settings.secret.get_secret_value() if settings.secret else ""
    if url == "embedded":
        try:
            embedded = EmbeddedValkey.start(settings.data_dir)
        except EmbeddedRefused as error:
            print(error, file=sys.stderr)  # noqa: T201 - for whoever started it, before there is a service
            return EX_CONFIG
        url, secret = embedded.url, secret or kept_secret(settings.data_dir)
    try:
        return _run(settings, url, secret, listening)
    finally:
        if embedded is not None:
            embedded.stop()


def _bound(host: str, port: int) -> list[socket.socket]:
    """Sockets of all addresses of a host, not listening yet.

    Raises:
        OSError: an address is taken, or is none of this machine's.
    """
    bound: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            bound.append(socket.socket(family, kind, protocol))
            bound[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                bound[-1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound[-1].bind(address)
    except OSError:
        for taken in bound:
            taken.close()
        raise
    return bound


def _tune_collector() -> None:
    """Keeps the garbage collector away from what lives for ever: the modules, most of the heap."""
    gc.collect()
    gc.freeze()


def _run(settings: Settings, url: str, secret: str, listening: list[socket.socket]) -> int:
    refused: list[str] = []

    def on_refused(error: StoreRefused) -> None:
        refused.extend(error.problems)
        server.should_exit = True

    application: Application = build(settings, url, secret, on_refused=on_refused)
    limits = Limits(settings.header_bytes_max, settings.body_wait_s, settings.write_wait_s)
    config = uvicorn.Config(
        application.asgi,
        loop="uvloop",
        http=http_protocol(limits),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=settings.keepalive_s,
        backlog=2048,
    )
    server = _Server(config, application, settings.drain_notice_s, settings.drain_s)
    _tune_collector()
    server.run(sockets=listening)
    for problem in refused:
        telemetry.log.error("store_refused", problem=problem)
    if refused:
        return EX_CONFIG
    return 0 if server.started else 1
