"""Requests as bytes, over a socket: whatever a client library would refuse to send."""

import contextlib
import http.client
import json
import socket
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

_WAIT_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Sent:
    """A request: its target and headers as they are on the wire."""

    method: bytes
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes | None = None
    chunked: bool = False

    def raw(self) -> bytes:
        """The bytes."""
        lines = [b"%b %b HTTP/1.1" % (self.method, self.target), b"Host: localhost"]
        lines += [b"%b: %b" % pair for pair in self.headers]
        body = self.body or b""
        if self.chunked and body:
            lines.append(b"Transfer-Encoding: chunked")
            half = len(body) // 2 + 1
            body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:half], body[half:], b"") if part)
            body += b"0\r\n\r\n"
        elif self.body is not None:
            lines.append(b"Content-Length: %d" % len(body))
        return b"\r\n".join(lines) + b"\r\n\r\n" + body


@dataclass(frozen=True, slots=True)
class Got:
    """The answer; ``json`` is None if the body is none."""

    status: int
    headers: dict[str, str]
    body: bytes
    json: Any

    def events(self) -> list[Any]:
        """The data of a stream's events: JSON if it is such, else text. Comments and ids are no data."""
        found = []
        assert self.body == b"" or self.body.endswith(b"\n\n"), self.body[-200:]
        for frame in self.body.decode().split("\n\n")[:-1]:
            for line in frame.split("\n"):
                kind, _, data = line.partition(":")
                assert kind in ("", "id", "event", "data"), frame
                if kind == "data":
                    found.append(json.loads(data) if data.strip().startswith("{") else data.strip())
        return found


class Wire:
    """One kept-alive connection to a replica, made anew when it was closed.

    Args:
        url: of the replica.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 0)
        self._socket: socket.socket | None = None

    def close(self) -> None:
        """Ends the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ask(self, sent: Sent) -> Got:
        """Sends a request and reads its answer to the end."""
        if self._socket is None:
            self._socket = socket.create_connection(self._address, timeout=_WAIT_S)
        answer = None
        try:
            # Who hears no more has answered what came so far.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._socket.sendall(sent.raw())
            answer = http.client.HTTPResponse(self._socket, method=sent.method.decode("latin-1"))
            answer.begin()
            body = answer.read()
        except BaseException:
            self.close()
            raise
        headers: dict[str, str] = {}
        for name, value in answer.getheaders():
            assert name.lower() not in headers, f"{name} is there twice"
            headers[name.lower()] = value
        if answer.will_close:
            self.close()
        answer.close()
        is_json = headers.get("content-type", "").startswith("application/json")
        return Got(answer.status, headers, body, json.loads(body) if is_json and body else None)
