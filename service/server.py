"""A replica as a process: uvicorn, and how it ends.

SIGTERM or SIGINT: readiness turns red and new turns are refused, while the listener stays open so that a balancer can
see it; queued turns are refused; running ones have ``drain_s``, then they end incomplete with their lease released.
A second signal ends that wait at once. Then uvicorn closes idle connections and the process exits with 0.
"""

import asyncio
import contextlib
import gc
import signal
import socket
import sys
from collections.abc import Iterator

import uvicorn

from service import telemetry
from service.app import Application, build
from service.http_protocol import Limits, http_protocol
from service.kept_secret import kept_secret
from service.settings import EX_CONFIG, Settings
from storage.embedded import EmbeddedRefused, EmbeddedValkey
from storage.first_contact import StoreRefused

_CLOSE_S = 5  # connections get this long to take the last bytes, after the drain


class _Server(uvicorn.Server):
    """uvicorn with a drain before its own shutdown, and signals that do not kill it afterwards."""

    def __init__(self, config: uvicorn.Config, application: Application, drain_s: float) -> None:
        super().__init__(config)
        self._application = application
        self._drain_s = drain_s
        self._hurry = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Takes SIGTERM and SIGINT for as long as the server runs."""
        loop = asyncio.get_running_loop()
        handled = (signal.SIGTERM, signal.SIGINT)
        for number in handled:
            loop.add_signal_handler(number, self._signalled)
        try:
            yield
        finally:
            for number in handled:
                loop.remove_signal_handler(number)

    def _signalled(self) -> None:
        if self.should_exit:
            self._hurry.set()
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
        """Drains, then shuts down."""
        telemetry.log.info("draining")
        self._application.bodies.drain()
        await self._application.exchanges.drain(self._drain_s, self._hurry)
        await super().shutdown(sockets)
        telemetry.log.info("stopped")


def serve(settings: Settings) -> int:
    """Runs one replica until it is told to stop; returns the exit code. Call it from the main thread."""
    telemetry.configure(settings.log_format, settings.log_level)
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
        timeout_graceful_shutdown=_CLOSE_S,
        backlog=2048,
    )
    server = _Server(config, application, settings.drain_s)
    _tune_collector()
    server.run(sockets=listening)
    for problem in refused:
        telemetry.log.error("store_refused", problem=problem)
    if refused:
        return EX_CONFIG
    return 0 if server.started else 1
