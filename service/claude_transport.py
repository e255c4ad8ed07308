"""The short way to Claude: the SDK asks, this module carries.

`DirectTransport` is a *middleware* of the SDK, its public way to stand between a call and the network. A request whose
body is already bytes and whose answer is a stream is sent over one aiohttp session, and the stream is handed back as it
is; any other call goes the SDK's own way. Why: the SDK's HTTP stack and aiohttp below it do the same work twice, at the
price of a quarter of a turn; docs/decisions/0001-upstream-transport.md has the numbers.

Kept from the SDK: base URL, credential, version and client headers, and the typed errors: an answer with an error
status goes back to it as a response of its own, a connection that fails as its own exception. Kept from its HTTP
client: the certificates it trusts, and an HTTP proxy of the environment. Given up: redirects are not followed (Claude's
API has none, and a conversation is not sent on to somebody else), and no compressed answer is asked for.

A `Stream` holds one connection. Closed early, the connection is closed with it, which is how Claude learns that nobody
listens; read to its end, the connection is used again.
"""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, cast

import aiohttp
import anthropic
import httpx2

_CONNECT_S: Final = 5.0
_SILENCE_S: Final = 600.0  # between two events Claude sends pings; ten minutes of nothing is a dead connection
_IDLE_S: Final = 15.0
_END_S: Final = 1.0  # for the end of HTTP's framing, once the answer itself is whole
_BUFFER_BYTES: Final = 256 * 1024
_ERROR_BYTES_MAX: Final = 1024 * 1024
# What of an error's headers is no longer true of its body as read.
_OF_THE_WIRE: Final = frozenset({"content-encoding", "content-length", "transfer-encoding"})


class DirectTransport(anthropic.Middleware):
    """Streams over a pool of connections of its own. Belongs to one SDK client: see `bind`.

    Args:
        connections_max: at once; one more waits as long as connecting may take.
        proxy: URL of the HTTP proxy to go through.
        certificates: which servers are trusted.
    """

    def __init__(self, *, connections_max: int, proxy: str | None, certificates: ssl.SSLContext) -> None:
        self._connections_max = connections_max
        self._sdk: anthropic.AsyncAnthropic | None = None
        self._session: aiohttp.ClientSession | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._base_url = ""
        self._proxy = proxy
        self._certificates = certificates

    def bind(self, sdk: anthropic.AsyncAnthropic) -> None:
        """Tells whose headers and base URL to use: once, before the first request."""
        self._sdk = sdk
        self._base_url = str(sdk.base_url).rstrip("/")

    async def aclose(self) -> None:
        """Closes all connections, those of unfinished streams too."""
        if self._session is not None:
            await self._session.close()

    async def handle_async(
        self, request: anthropic.APIRequest, call_next: anthropic.AsyncCallNext
    ) -> anthropic.AsyncAPIResponse[Any]:
        """Called by the SDK for every attempt.

        Returns:
            A `Stream` where the SDK has nothing left to do with the answer, else a response that it deals with.
        """
        if not request.stream or not isinstance(request.options.content, bytes) or request.query_params:
            return await call_next(request)
        assert self._sdk is not None, "not bound"
        if self._session is None:
            self._session = self._open(self._sdk)
        url = self._base_url + request.url
        headers = {name: value for name, value in request.headers.items() if isinstance(value, str)}
        with _as_sdk_errors(url):
            response = await self._session.post(
                url,
                data=request.options.content,
                headers=headers or None,
                allow_redirects=False,
                proxy=self._proxy,
            )
            if response.status < 300:
                # The SDK hands anything that is not its own response on to its caller, untouched and unlooked at.
                return cast("anthropic.AsyncAPIResponse[Any]", Stream(response, url, self._ending))
            return await _refused(self._sdk, request, response, url)

    def _open(self, sdk: anthropic.AsyncAnthropic) -> aiohttp.ClientSession:
        """The session; made at the first request, because it belongs to the running loop."""
        own = {name.lower(): value for name, value in sdk.default_headers.items() if isinstance(value, str)}
        connector = aiohttp.TCPConnector(
            limit=self._connections_max,
            keepalive_timeout=_IDLE_S,
            ssl=self._certificates,
        )
        return aiohttp.ClientSession(
            connector=connector,
            headers={**own, "accept": "text/event-stream", "accept-encoding": "identity"},
            timeout=aiohttp.ClientTimeout(connect=_CONNECT_S, sock_connect=_CONNECT_S, sock_read=_SILENCE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            raise_for_status=False,
            trust_env=False,
            read_bufsize=_BUFFER_BYTES,
        )


class Stream:
    """The body of a successful answer, taken once.

    Attributes:
        content_type: of the answer, without parameters.
    """

    def __init__(self, response: aiohttp.ClientResponse, url: str, ending: set[asyncio.Task[None]]) -> None:
        self._response = response
        self._url = url
        self._ending = ending
        self._finished = False
        self.content_type = response.content_type

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body; all that arrived together is one chunk.

        Raises:
            anthropic.APITimeoutError: silence.
            anthropic.APIConnectionError: the connection broke.
        """
        with _as_sdk_errors(self._url):
            async for chunk in self._response.content.iter_any():
                yield chunk

    def finish(self) -> None:
        """The part that mattered was read. HTTP's own end, if it is still on its way, is waited for aside."""
        self._finished = True
        if not self._response.content.at_eof():
            task = asyncio.create_task(self._read_end())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _read_end(self) -> None:
        with suppress(aiohttp.ClientError, OSError):
            async with asyncio.timeout(_END_S):
                while not self._response.content.at_eof():
                    await self._response.content.readany()
        self._response.release()

    def close(self) -> None:
        """Closes the connection, unless the end of the body was read or `finish` was called."""
        if not self._finished:
            self._response.release()


@contextmanager
def _as_sdk_errors(url: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise anthropic.APITimeoutError(request=httpx2.Request("POST", url)) from error
    except (aiohttp.ClientError, OSError) as error:
        raise anthropic.APIConnectionError(request=httpx2.Request("POST", url)) from error


async def _refused(
    sdk: anthropic.AsyncAnthropic, request: anthropic.APIRequest, response: aiohttp.ClientResponse, url: str
) -> anthropic.AsyncAPIResponse[Any]:
    """An answer with an error status, read to its end, as the SDK's own: it raises the error that belongs to it."""
    try:
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > _ERROR_BYTES_MAX:
                break
    finally:
        response.release()
    raw = httpx2.Response(
        response.status,
        headers=[(name, value) for name, value in response.headers.items() if name.lower() not in _OF_THE_WIRE],
        content=bytes(body),
        request=httpx2.Request("POST", url),
    )
    return anthropic.AsyncAPIResponse(
        raw=raw,
        cast_to=request.cast_to,
        client=sdk,
        stream=False,
        stream_cls=None,
        options=request.options,
        retries_taken=request.retries_taken,
    )
