"""TLS for servers that know none: certificates made by `openssl`, and a front that takes TLS off.

The Valkey of the wheel is built without TLS. What is tested is our side of it: which certificates a client trusts,
whose name it checks, what it shows.
"""

import asyncio
import contextlib
import socket
import ssl
import subprocess
import threading
from pathlib import Path

from tests.instruments.ports import LOOPBACK

_TLS_HANDSHAKE = b"\x16"


class Certificates:
    """A private authority, and what it has signed.

    `server` is for 127.0.0.1 and localhost, `elsewhere` for another host, `client` for whoever shows it; the authority
    `other-ca` has signed nothing. Of each there are NAME.crt and NAME.key.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        for authority in ("ca", "other-ca"):
            usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")  # Python 3.13 checks that it is said
            self._openssl("req", "-x509", *self._fresh(authority), *usage, "-days", "2", "-out", f"{authority}.crt")
        names = {"server": "IP:127.0.0.1,DNS:localhost", "client": "DNS:client", "elsewhere": "DNS:elsewhere.example"}
        for name, of in names.items():
            (directory / "names").write_text(f"subjectAltName={of}\n")
            self._openssl("req", *self._fresh(name), "-out", f"{name}.csr")
            signing = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
            self._openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", *signing)

    @staticmethod
    def _fresh(name: str) -> tuple[str, ...]:
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key")
        return (*key, "-subj", f"/CN={name} of the tests")

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self._directory, check=True, capture_output=True)

    def __getitem__(self, file: str) -> Path:
        return self._directory / file

    def context(self, name: str) -> ssl.SSLContext:
        """Of a server that shows this one and wants to see a client's."""
        made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self["ca.crt"]))
        made.verify_mode = ssl.CERT_REQUIRED
        made.load_cert_chain(self[f"{name}.crt"], self[f"{name}.key"])
        return made


class TlsFront:
    """Passes on to a server what comes by TLS, from a thread of its own; what comes in plain text, only if told to.

    Attributes:
        port: where it listens.
    """

    def __init__(self, context: ssl.SSLContext, target_port: int, *, also_plain: bool = False) -> None:
        self._context = context
        self._target_port = target_port
        self._also_plain = also_plain
        self._listener = socket.create_server((LOOPBACK, 0))
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        """Ends every connection."""
        self._loop.call_soon_threadsafe(self._serving.cancel)
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        self._serving = self._loop.create_task(self._serve())
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._serving)
        self._loop.close()

    async def _serve(self) -> None:
        connections: set[asyncio.Task[None]] = set()
        try:
            while True:
                accepted, _ = await self._loop.sock_accept(self._listener)
                task = self._loop.create_task(self._connection(accepted))
                connections.add(task)
                task.add_done_callback(connections.discard)
        finally:
            for task in connections:
                task.cancel()
            await asyncio.gather(*connections, return_exceptions=True)
            for _ in range(5):  # what was aborted closes its sockets in the loop's next turns
                await asyncio.sleep(0)

    async def _connection(self, accepted: socket.socket) -> None:
        """One connection, until either side ends it."""
        with accepted:
            accepted.setblocking(False)
            readable = asyncio.Event()
            self._loop.add_reader(accepted, readable.set)
            try:
                await readable.wait()
                begins_with = accepted.recv(1, socket.MSG_PEEK)
            except OSError:
                return
            finally:
                self._loop.remove_reader(accepted)
            secured = begins_with == _TLS_HANDSHAKE
            if not (secured or (self._also_plain and begins_with)):
                return
            reader = asyncio.StreamReader()
            protocol = asyncio.StreamReaderProtocol(reader)
            with contextlib.suppress(OSError):
                transport, _ = await self._loop.connect_accepted_socket(
                    lambda: protocol, accepted, ssl=self._context if secured else None
                )
                await self._pass_on(reader, asyncio.StreamWriter(transport, protocol, reader, self._loop))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            target_reader, target_writer = await asyncio.open_connection(LOOPBACK, self._target_port)
        except OSError:
            writer.close()
            return
        try:
            ways = [_pump(reader, target_writer), _pump(target_reader, writer)]
            tasks = [asyncio.ensure_future(way) for way in ways]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for end in (writer, target_writer):
                end.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(65_536):
            writer.write(chunk)
            await writer.drain()
