"""HTTP/1.1 on one connection: uvicorn's protocol, with an end to everything that a client may leave unfinished.

    silent     nothing has come since the connection or the last answer; closed after ``timeout_keep_alive``
    head       a request line and headers are coming; at most ``head_bytes_max`` of them and for ``head_wait_s``
    answering  the application has the request (bodies.py limits its body); the next one may wait behind it
    refused    told what was wrong with its HTTP; what still comes is dropped for a moment, so that the client reads
               the answer before the connection is reset

In every state, bytes that wait to be written must become fewer within ``write_wait_s``; else the connection is aborted,
and the application sees that its caller has gone.

An offer to upgrade is ignored (RFC 9110, section 7.8). The parser takes what follows such a head for another protocol,
so the connection goes on with a fresh one that is told the same framing.
"""

import asyncio
import select
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service import logs, telemetry
from service.asgi import new_request_id
from service.delivery import CONNECTION
from service.dialects.errors import anthropic_error, is_anthropic, openai_error
from service.errors import BatonError

_LINGER_S: Final = 1.0  # a refused client has this long to read why
_HANG_UP: Final[int] = getattr(select, "POLLRDHUP", 0)  # Linux has it; elsewhere the event is waited for
_FRAMING: Final = (b"content-length", b"transfer-encoding")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may ask of one connection; see the module's docstring."""

    head_bytes_max: int
    head_wait_s: float
    write_wait_s: float


def http_protocol(limits: Limits) -> type["HttpProtocol"]:
    """The class to give to `uvicorn.Config`, which makes one instance a connection."""
    return type("LimitedHttpProtocol", (HttpProtocol,), {"limits": limits})


class HttpProtocol(HttpToolsProtocol):
    """See the module's docstring; made by `http_protocol`."""

    limits: Limits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = False
        self._head_timed = False
        self._head_bytes = 0  # of the lines that are complete
        self._unfinished_bytes = 0  # of reads that began and ended within the head
        self._resuming = False
        self._refused = False
        self._problem: BatonError | None = None
        self._unwritten_bytes = 0
        self._write_timer: asyncio.TimerHandle | None = None

    # Reading.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A silent connection is an idle one from the start."""
        super().connection_made(transport)
        self._time(self.timeout_keep_alive)

    def data_received(self, data: bytes) -> None:
        """Parses what came, whatever it offers."""
        if self._refused:
            return
        if self._idle() and not self._head_timed:
            self._time_head()
        was_in_head = self._in_head
        try:
            self._feed(data)
            if was_in_head and self._in_head:
                self._unfinished_bytes += len(data)
                self._check_head(self._unfinished_bytes)
        except (httptools.HttpParserError, BatonError):
            self._refuse(self._problem or _invalid_http())

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                data = data[offer.args[0] :]
                self._ignore_offer()

    def _ignore_offer(self) -> None:
        framing = [b"%b: %b\r\n" % pair for pair in self.headers if pair[0] in _FRAMING]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        self._resuming = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(framing))
        self._resuming = False

    def on_message_begin(self) -> None:
        """A head begins."""
        if not self._resuming:
            self._in_head = True
            self._head_bytes = self._unfinished_bytes = 0
            super().on_message_begin()
            self.scope["extensions"] = {CONNECTION: {"is_open": self._is_open}}

    def _is_open(self) -> bool:
        """Whether the client still holds its end; asked of the kernel, for the event may be on its way."""
        if self.transport.is_closing():
            return False
        if not _HANG_UP:
            return True
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), _HANG_UP)
        return not poll.poll(0)

    def on_url(self, url: bytes) -> None:
        """A part of the request's target."""
        if not self._resuming:
            super().on_url(url)
            self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A whole header."""
        if not self._resuming:
            self._count(len(name) + len(value) + 4)
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole: the application gets the request."""
        if not self._resuming:
            self._in_head = self._head_timed = False
            self._unset_keepalive_if_required()
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is whole; where an upgrade was offered, only its head is."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _count(self, size_bytes: int) -> None:
        self._head_bytes += size_bytes
        self._check_head(self._head_bytes)

    def _check_head(self, size_bytes: int) -> None:
        if size_bytes > self.limits.head_bytes_max:
            message = f"Request line and headers may have {self.limits.head_bytes_max} bytes (BATON_HEADER_BYTES_MAX)."
            self._problem = BatonError("headers_too_large", message)
            raise self._problem

    # Time.

    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _time(self, wait_s: float) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(wait_s, self.timeout_keep_alive_handler)

    def _time_head(self) -> None:
        self._head_timed = True
        self._time(self.limits.head_wait_s)

    def timeout_keep_alive_handler(self) -> None:
        """Ends a connection that is silent, or too slow with a head."""
        if self._in_head and not self._refused:
            late = f"The headers did not arrive within {self.limits.head_wait_s:g} s (BATON_BODY_WAIT_S)."
            self._refuse(BatonError("body_timeout", late))
        else:
            self.transport.close()
            self._watch_writing()

    def on_response_complete(self) -> None:
        """The connection is silent again, unless the next request has begun to come."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_writing()
        elif self._in_head and self._idle():
            self._time_head()

    # Refusing.

    def _refuse(self, error: BatonError) -> None:
        """Answers for itself; or, while an earlier request is being answered, lets that be the last."""
        self._refused = True
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if self.pipeline or cycle.response_started or not cycle.more_body:
                cycle.keep_alive = False
                return
            cycle.disconnected = True  # its body will not be whole
            cycle.message_event.set()
        request_id = new_request_id()
        with logs.of_request(request_id):
            telemetry.error_told({}, error.code)
            telemetry.request_done({}, error.status, 0.0)
        self.transport.write(_response(error, request_id, self._speaks_anthropics()))
        self.transport.write_eof()
        self._time(_LINGER_S)

    def _speaks_anthropics(self) -> bool:
        """Whether the request whose head is coming is Anthropic's, as far as it has come."""
        path = unquote(self.url.partition(b"?")[0].decode("latin-1")) if self._in_head else ""
        return is_anthropic({"path": path, "headers": self.headers})

    # Writing.

    def pause_writing(self) -> None:
        """The client does not take what it asked for, for now."""
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        self._unwatch_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is left to wait for."""
        self._unwatch_writing()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def _watch_writing(self) -> None:
        self._unwatch_writing()
        self._unwritten_bytes = self.transport.get_write_buffer_size()
        if self._unwritten_bytes:
            self._write_timer = self.loop.call_later(self.limits.write_wait_s, self._look_at_writing)

    def _unwatch_writing(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _look_at_writing(self) -> None:
        if self.transport.get_write_buffer_size() < self._unwritten_bytes:
            self._watch_writing()
        else:
            telemetry.CLIENTS_STALLED.inc()
            telemetry.log.info("client_stalled", unwritten_bytes=self._unwritten_bytes)
            self.transport.abort()

    def let_go(self) -> None:
        """No other request should come here: closes a silent connection now, another after its answer."""
        if not self._idle():
            self.cycle.keep_alive = False
        elif not self._in_head and not self._refused:
            self.transport.close()

    def cut_off(self) -> None:
        """The server ends: whatever of an answer was not taken is lost, and the application sees its caller gone."""
        if self.cycle is not None and self.cycle.response_started:
            self.transport.abort()


def _invalid_http() -> BatonError:
    return BatonError("invalid_http", "This is not a valid HTTP/1.1 request.")


def _response(error: BatonError, request_id: str, anthropic: bool) -> bytes:
    body = anthropic_error(error, request_id) if anthropic else openai_error(error)
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "x-request-id": request_id,
        **({"request-id": request_id} if anthropic else {}),
        "connection": "close",
        **error.response_headers(),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return STATUS_LINE[error.status] + lines.encode("ascii") + b"\r\n" + body
