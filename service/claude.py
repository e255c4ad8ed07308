"""Claude, as Baton sees it: one call that streams, and the retries. `claude_transport` carries it.

One call streams: the request goes out as bytes, the answer comes back as batches of raw events, parsed once and kept
whole. Answers of turns are assembled from the same events, whether their callers stream or not. A request that is only
passed on, and asks for no stream, gets its answer as the bytes that Claude sent.

Retries are ours, the SDK's are off: the SDK would wait as long as a ``retry-after`` says and hide it. A request is sent
again only while nothing of its answer was shown, at most ``ATTEMPTS`` times, within the exchange's deadline, and only
where Claude did not begin to answer or said so itself (408, 409, 429, 5xx, a connection that failed, an answer that is
none). Claude has no idempotency key: a request whose connection broke may have been billed.

A stream counts as whole when ``message_stop`` came, and not before; its end alone proves nothing. What comes behind it
is no part of the answer. An ``error`` event after the 200 is told by its ``type``, which is all that identifies it: it
stands for a status, and is sent again where that status would be.
"""

import asyncio
import random
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from types import MappingProxyType
from typing import Any, Final, TypeVar, cast

import anthropic
import httpx2
import orjson

from service import claude_errors, telemetry
from service.claude_transport import DirectTransport, Stream
from service.errors import CLAUDE_BYTES_MAX, BatonError, conversation_too_large
from service.events import Event, EventReader
from service.settings import CLAUDE_URL, proxy_for

ATTEMPTS: Final = 3
_RETRY_WAIT_S_MAX: Final = 5.0
_LAST: Final = ("message_stop", "error")
_ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
_NONE: Final[Mapping[str, str]] = MappingProxyType({})
_CLAUDES_ID: Final = re.compile(r"req_[A-Za-z0-9]{1,64}")
_Part = TypeVar("_Part")


class Claude:
    """A pool of connections to Claude.

    Args:
        api_key, base_url: as the SDK reads them; at least one is set (settings.py).
        connections_max: requests at once.
    """

    def __init__(self, api_key: str | None, base_url: str | None, *, connections_max: int) -> None:
        base_url = base_url or CLAUDE_URL
        proxy = proxy_for(base_url)
        # The SDK's own HTTP client serves what is not a turn: the list of models.
        limits = httpx2.Limits(max_connections=8, max_keepalive_connections=1)
        timeout = httpx2.Timeout(connect=5.0, read=60.0, write=60.0, pool=5.0)
        certificates = httpx2.create_ssl_context()
        self._transport = DirectTransport(connections_max=connections_max, proxy=proxy, certificates=certificates)
        self._sdk = anthropic.AsyncAnthropic(
            api_key=api_key or "none",
            base_url=base_url,
            max_retries=0,
            timeout=timeout,
            # Not the SDK's default client: that one sets up every proxy of the environment, and fails on SOCKS.
            http_client=httpx2.AsyncClient(
                limits=limits, timeout=timeout, proxy=proxy, verify=certificates, trust_env=False
            ),
            middleware=[self._transport],
        )
        self._transport.bind(self._sdk)

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._transport.aclose()
        await self._sdk.close()

    async def stream(self, body: bytes, headers: Mapping[str, str] = _NONE) -> AsyncGenerator[list[Event], None]:
        """Sends a Messages request (JSON with ``"stream": true``) and yields its events as they arrive together.

        Args:
            body: the request.
            headers: in the place of the SDK's own.

        Yields:
            Non-empty batches; never a ``ping``. The last event of all is ``message_stop``. A batch is the taker's: once
            cleared it takes no memory any more.

        Raises:
            BatonError: upstream_*, model_not_found, context_length_exceeded, thinking_refused or request_too_large.
                Nothing was yielded before an error that was retried.

        Cancellation: closes the connection, which makes Claude stop.
        """
        async with aclosing(_tried(lambda: self._events(body, headers))) as batches:
            async for batch in batches:
                yield batch

    async def whole(self, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
        """Sends a request and returns the JSON that answers it, as it came.

        Args:
            path: of the API.
            body: the request, which asks for no stream.
            headers: in the place of the SDK's own.

        Raises:
            BatonError: as `stream`.
        """
        asked = {"accept": "application/json", **headers}
        async with aclosing(_tried(lambda: self._json(path, body, asked))) as answers:
            [answer] = [part async for part in answers]
            return answer

    async def _send(self, path: str, body: bytes, headers: Mapping[str, str]) -> Stream:
        """The answer's beginning. Raises `_Failure` only."""
        if len(body) > CLAUDE_BYTES_MAX:
            raise _Failure(conversation_too_large(len(body)), retry=False)
        try:
            response = await self._sdk.post(
                path,
                cast_to=object,
                content=body,
                options={"headers": dict(headers)},
                stream=True,
                stream_cls=anthropic.AsyncStream[Any],
            )
        except anthropic.AnthropicError as error:
            raise _failure(error) from error
        return cast(Stream, response)

    async def _events(self, body: bytes, headers: Mapping[str, str]) -> AsyncGenerator[list[Event], None]:
        """One request for a stream. Raises `_Failure` only."""
        stream = await self._send("/v1/messages", body, headers)
        reader = EventReader()
        begun = False
        with _broken(stream):
            if stream.content_type != "text/event-stream":
                raise BatonError("upstream_nonsense", "Claude's answer is not an event stream.")
            async with aclosing(stream.chunks()) as chunks:
                async for chunk in chunks:
                    batch = [event for event in reader.feed(chunk) if event.type != "ping"]
                    last = next((at for at, event in enumerate(batch) if event.type in _LAST), None)
                    failed = batch[last] if last is not None and batch[last].type == "error" else None
                    if failed is not None and not begun:
                        raise _stream_failure(failed)  # nothing was shown: it may be tried again
                    if last is not None:
                        del batch[last + (failed is None) :]
                    if batch:
                        begun = True
                        yield batch
                    if failed is not None:
                        raise _stream_failure(failed)
                    if last is not None:
                        stream.finish()
                        return
            raise BatonError("upstream_nonsense", "Claude's answer stopped before its end.")

    async def _json(self, path: str, body: bytes, headers: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        """One request for a JSON body. Raises `_Failure` only."""
        stream = await self._send(path, body, headers)
        with _broken(stream):
            if stream.content_type != "application/json":
                raise BatonError("upstream_nonsense", "Claude's answer is not JSON.")
            answer = bytearray()
            async with aclosing(stream.chunks()) as chunks:
                async for chunk in chunks:
                    answer += chunk
                    if len(answer) > _ANSWER_BYTES_MAX:
                        raise BatonError("upstream_nonsense", "Claude's answer has no end.")
            if not _is_whole(path, answer):
                raise BatonError("upstream_nonsense", "Claude's answer stopped before its end.")
            yield bytes(answer)

    async def models(self) -> list[dict[str, Any]]:
        """What the Models API lists, newest first, as it answers it; each has an ``id``.

        Raises:
            BatonError: upstream_*.
        """
        try:
            response = await self._sdk.models.with_raw_response.list(limit=1000)
        except anthropic.AnthropicError as error:
            raise _failure(error).error from error
        try:
            models: list[dict[str, Any]] = orjson.loads(await response.read())["data"]
            sound = all(isinstance(model["id"], str) for model in models)
        except (orjson.JSONDecodeError, LookupError, TypeError):
            sound = False
        if not sound:
            raise BatonError("upstream_nonsense", "Claude's answer is not a list of models.")
        return models


async def _tried(attempt: Callable[[], AsyncGenerator[_Part, None]]) -> AsyncGenerator[_Part, None]:
    """What an attempt yields; another one is made while nothing was, and where that makes sense."""
    for number in range(1, ATTEMPTS + 1):
        shown, outcome = False, "given_up"
        sent = time.perf_counter()
        try:
            async with aclosing(attempt()) as parts:
                async for part in parts:
                    if not shown:
                        telemetry.UPSTREAM_FIRST_BYTE_SECONDS.observe(time.perf_counter() - sent)
                    shown = True
                    yield part
            outcome = "answered"
            return
        except _Failure as failure:
            outcome = telemetry.upstream_outcome(failure.error.code)
            if shown or not failure.retry or number == ATTEMPTS or failure.wait_s(number) > _RETRY_WAIT_S_MAX:
                if telemetry.fault_of(failure.error.code) == "claude":
                    telemetry.log.warning("upstream_failed", attempt=number, code=failure.error.code)
                raise failure.error from failure.__cause__
            telemetry.UPSTREAM_RETRIES.inc()
            telemetry.log.info("upstream_retry", attempt=number, code=failure.error.code)
            wait_s = failure.wait_s(number)
        finally:
            telemetry.UPSTREAM_REQUESTS[outcome].inc()
        await asyncio.sleep(wait_s)


@contextmanager
def _broken(stream: Stream) -> Iterator[None]:
    """Reading an answer: what goes wrong is a `_Failure`, and the connection is closed unless the end was read."""
    try:
        yield
    except BatonError as error:
        raise _Failure(error, retry=True) from error.__cause__
    except anthropic.APITimeoutError as error:
        raise _Failure(BatonError("upstream_timeout", "Claude fell silent."), retry=False) from error
    except anthropic.APIConnectionError as error:
        broke = BatonError("upstream_unavailable", "The connection to Claude broke before the answer's end.")
        raise _Failure(broke, retry=True) from error
    finally:
        stream.close()


class _Failure(Exception):
    """An attempt that failed: the error for the caller, and whether another attempt makes sense."""

    def __init__(self, error: BatonError, *, retry: bool) -> None:
        super().__init__(error.code)
        self.error = error
        self.retry = retry

    def wait_s(self, attempt: int) -> float:
        """What Claude asked for, else 0.5 s doubling, less up to a quarter."""
        if self.error.retry_after_s is not None:
            return self.error.retry_after_s
        return float(0.5 * 2 ** (attempt - 1) * random.uniform(0.75, 1.0))  # noqa: S311 - jitter


def _retry_after_s(headers: httpx2.Headers) -> float | None:
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name, "")
        if value.replace(".", "", 1).isdigit():
            return float(value) / unit
    return None


def _failure(error: anthropic.AnthropicError) -> _Failure:
    """Claude's answer with an error status, or none at all, as the caller is told."""
    if isinstance(error, anthropic.APITimeoutError):
        return _Failure(BatonError("upstream_timeout", "Claude did not answer in time."), retry=True)
    if not isinstance(error, anthropic.APIStatusError):
        return _Failure(BatonError("upstream_unavailable", "Claude could not be reached."), retry=True)
    status = error.status_code
    headers = error.response.headers
    said_id = headers.get("request-id", "")
    known = said_id if _CLAUDES_ID.fullmatch(said_id) else None  # another may be anything, of the request too
    telemetry.log.info("claude_refused", status=status, claude_request_id=known)
    told = claude_errors.told(status, error.response.content)
    told.retry_after_s = _retry_after_s(headers)
    return _Failure(told, retry=_may_succeed(status, told))


def _is_whole(path: str, answer: bytearray) -> bool:
    """Whether it is all of the JSON that the API answers there."""
    try:
        said = orjson.loads(answer)
    except orjson.JSONDecodeError:
        return False
    end = "stop_reason" if path == "/v1/messages" else "input_tokens"
    return isinstance(said, dict) and said.get(end) is not None


def _stream_failure(event: Event) -> _Failure:
    status, error = claude_errors.of_event(event)
    return _Failure(error, retry=_may_succeed(status, error))


def _may_succeed(status: int, error: BatonError) -> bool:
    return status in claude_errors.RETRIED and error.code != "upstream_refused"
