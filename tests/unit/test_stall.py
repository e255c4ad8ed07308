"""The stalling proxies stop exactly where a test asks them to, and are invisible otherwise."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest
import redis.asyncio
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from tests.instruments.ports import LOOPBACK, reserved_port
from tests.instruments.processes import Valkey
from tests.instruments.proxy import BLACK_HOLE, FINE, Weather
from tests.instruments.resp import Argv, PendingReplies, ProtocolError, Reply, read_command, read_reply
from tests.instruments.stall import HttpStall, RedisStall, _EventTrap, _Exchange

pytestmark = pytest.mark.anyio

Client = redis.asyncio.Redis


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with Valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
async def direct(valkey: Valkey) -> AsyncIterator[Client]:
    async with redis.asyncio.from_url(valkey.url) as client:
        await client.flushall()
        yield client


@pytest.fixture
async def proxy(valkey: Valkey, direct: Client) -> AsyncIterator[RedisStall]:
    """Before an empty store."""
    async with RedisStall(valkey.port) as proxy:
        yield proxy


@pytest.fixture(params=[2, 3])
async def client(request: pytest.FixtureRequest, valkey: Valkey, proxy: RedisStall) -> AsyncIterator[Client]:
    url = proxy.url_through(valkey.url)
    async with redis.asyncio.from_url(url, protocol=request.param, retry=None, socket_timeout=10) as client:
        yield client


def named(*head: bytes) -> Callable[[Argv], bool]:
    """Commands that begin with these items."""
    return lambda argv: argv[: len(head)] == head


async def run(client: Client, *argv: str) -> Any:
    """One command as spelled here: redis-py turns INCR into INCRBY."""
    return await client.execute_command(*argv)  # type: ignore[no-untyped-call]


async def until(happened: Callable[[], Awaitable[bool]]) -> None:
    """Poll, for at most ten seconds."""
    deadline = time.monotonic() + 10.0
    while not await happened():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


# --- framing


def stream(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


REPLIES = [
    b"+OK\r\n",
    b"-ERR no\r\n",
    b":42\r\n",
    b"$5\r\na\r\nbc\r\n",
    b"$0\r\n\r\n",
    b"$-1\r\n",
    b"*-1\r\n",
    b"*0\r\n",
    b"*2\r\n$1\r\na\r\n*1\r\n:1\r\n",
    b"%2\r\n+k\r\n:1\r\n+l\r\n*2\r\n:1\r\n_\r\n",
    b"~2\r\n:1\r\n#t\r\n",
    b",1.5\r\n",
    b"(123456789012345678901234567890\r\n",
    b"=7\r\ntxt:abc\r\n",
    b"!5\r\nERR x\r\n",
    b"_\r\n",
    b"|1\r\n+ttl\r\n:9\r\n*2\r\n:1\r\n|1\r\n+a\r\n+b\r\n:2\r\n",
    b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n",
]


@given(st.lists(st.sampled_from(REPLIES)))
async def test_replies_of_every_type_are_told_apart(replies: list[bytes]) -> None:
    reader = stream(b"".join(replies))
    for wire in replies:
        reply = await read_reply(reader)
        assert reply is not None
        assert reply.wire == wire
        assert reply.push == wire.startswith(b">")
    assert await read_reply(reader) is None


@given(st.lists(st.lists(st.binary(max_size=30), min_size=1, max_size=5)))
async def test_commands_are_told_apart_whatever_bytes_they_hold(commands: list[list[bytes]]) -> None:
    wires = [
        b"*%d\r\n" % len(argv) + b"".join(b"$%d\r\n%s\r\n" % (len(item), item) for item in argv) for argv in commands
    ]
    reader = stream(b"".join(wires))
    for argv, wire in zip(commands, wires, strict=True):
        command = await read_command(reader)
        assert command is not None
        assert (list(command.argv), command.wire) == (argv, wire)
    assert await read_command(reader) is None


@pytest.mark.parametrize("beginning", [b"*1\r\n$4\r\nPI", b"*1\r\n", b"*1"])
async def test_half_a_command_is_no_command(beginning: bytes) -> None:
    assert await read_command(stream(beginning)) is None


async def test_bytes_that_are_no_resp_are_refused() -> None:
    with pytest.raises(ProtocolError):
        await read_reply(stream(b"HTTP/1.1 400 Bad Request\r\n"))
    with pytest.raises(ProtocolError):
        await read_command(stream(b"*1\r\n:1\r\n"))


async def test_messages_and_pushes_answer_no_command() -> None:
    async def answers(pending: PendingReplies[str], *wires: bytes) -> list[str | None]:
        replies = [await read_reply(stream(wire)) for wire in wires]
        return [pending.answered(reply) for reply in replies if isinstance(reply, Reply)]

    for kind in (b"*", b">"):  # RESP2 confirms in arrays, RESP3 in pushes
        pending: PendingReplies[str] = PendingReplies()
        pending.sent((b"SUBSCRIBE", b"a", b"b"), "subscribe")
        pending.sent((b"PING",), "ping")
        confirmation = kind + b"3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"
        message = kind + b"3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n"
        found = await answers(pending, confirmation, message, confirmation, message, b"+PONG\r\n")
        assert found == [None, None, "subscribe", None, "ping"]
    refused: PendingReplies[str] = PendingReplies()
    refused.sent((b"SUBSCRIBE", b"a", b"b"), "subscribe")
    refused.sent((), "an empty line has no reply")
    assert await answers(refused, b"-NOPERM\r\n", b"-ERR bye\r\n") == ["subscribe", None]


# --- in front of Valkey


async def test_commands_and_replies_pass_unchanged(client: Client, proxy: RedisStall) -> None:
    large = bytes(range(256)) * 40_000
    await client.set("large", large)
    assert await client.get("large") == large
    async with client.pipeline(transaction=True) as pipe:
        pipe.hset("h", mapping={"a": "1", "b": "2"})
        pipe.hgetall("h")
        pipe.zadd("z", {"m": 1.5})
        pipe.zscore("z", "m")
        pipe.get("none")
        assert await pipe.execute() == [2, {b"a": b"1", b"b": b"2"}, 1, 1.5, None]
    assert proxy.count(named(b"HGETALL")) == 1
    assert max(len(item) for command in proxy.commands for item in command.argv) == 64


async def test_pubsub_passes_and_does_not_confuse_the_counting(client: Client, proxy: RedisStall) -> None:
    async with client.pubsub() as pubsub:
        await pubsub.subscribe("a", "b")
        trap = proxy.arm(named(b"PING"), at="reply")
        while (message := await pubsub.get_message(timeout=5)) is not None and message["data"] != 2:
            pass
        await client.publish("a", "hello")
        message = await pubsub.get_message(timeout=5)
        assert message is not None
        assert message["data"] == b"hello"
        await pubsub.ping()
        await trap.reached()
        trap.release()
        message = await pubsub.get_message(timeout=5)
        assert message is not None
        assert message["type"] == "pong"


async def test_a_held_request_has_not_reached_the_server(client: Client, direct: Client, proxy: RedisStall) -> None:
    trap = proxy.arm(named(b"SET", b"k"))
    writing = asyncio.create_task(run(client, "SET", "k", "v"))
    await trap.reached()
    assert await direct.get("k") is None
    trap.release()
    assert await writing
    assert await direct.get("k") == b"v"


async def test_a_held_reply_means_that_the_server_has_executed(
    client: Client, direct: Client, proxy: RedisStall
) -> None:
    trap = proxy.arm(named(b"INCR"), at="reply")
    counting = asyncio.create_task(run(client, "INCR", "n"))
    await trap.reached()
    assert await direct.get("n") == b"1"
    assert not counting.done()
    trap.release()
    assert await counting == 1


async def test_only_the_nth_match_is_held(client: Client, direct: Client, proxy: RedisStall) -> None:
    trap = proxy.arm(named(b"INCR"), nth=3, at="reply")
    assert [await run(client, "INCR", "n"), await run(client, "INCR", "n")] == [1, 2]
    third = asyncio.create_task(run(client, "INCR", "n"))
    await trap.reached()
    trap.release()
    assert [await third, await run(client, "INCR", "n")] == [3, 4]


async def test_inside_a_pipeline_only_what_is_behind_the_trap_waits(
    client: Client, direct: Client, proxy: RedisStall
) -> None:
    trap = proxy.arm(named(b"INCR"), nth=2)
    async with client.pipeline(transaction=False) as pipe:
        for _ in range(3):
            pipe.execute_command("INCR", "n")
        counting = asyncio.create_task(pipe.execute())
        await trap.reached()
        assert await direct.get("n") == b"1"
        trap.release()
        assert await counting == [1, 2, 3]


async def test_other_connections_go_on(client: Client, proxy: RedisStall) -> None:
    trap = proxy.arm(named(b"SET"), at="reply")
    writing = asyncio.create_task(run(client, "SET", "k", "v"))
    await trap.reached()
    assert await client.get("k") == b"v"  # the pool opens a second connection
    assert len({command.connection for command in proxy.commands}) == 2
    trap.release()
    await writing


Point = Literal["request", "reply"]


@pytest.mark.parametrize(("at", "stored"), [("request", None), ("reply", b"v")])
@pytest.mark.parametrize("by", ["cut", "drop"])
async def test_a_cut_connection_is_an_error_for_the_client_whatever_the_server_did(
    client: Client, direct: Client, proxy: RedisStall, at: Point, stored: bytes | None, by: str
) -> None:
    await client.ping()
    trap = proxy.arm(named(b"SET"), at=at, action="cut" if by == "cut" else "hold")
    if by == "drop":
        trap.drop()  # decided ahead
    with pytest.raises(RedisConnectionError):
        await client.set("k", "v")
    await trap.reached()
    assert await direct.get("k") == stored
    assert await client.get("k") == stored


async def test_what_a_dead_client_sent_is_delivered_late(valkey: Valkey, direct: Client, proxy: RedisStall) -> None:
    trap = proxy.arm(named(b"SET"))
    client = redis.asyncio.from_url(proxy.url_through(valkey.url), retry=None)
    writing = asyncio.create_task(run(client, "SET", "k", "late"))
    await trap.reached()
    writing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await writing
    await client.aclose()

    async def delivered() -> bool:
        return bool(await direct.get("k") == b"late")

    assert not await delivered()
    assert await direct.get("k") is None
    trap.release()
    await until(delivered)


async def test_a_trap_that_nothing_falls_into_says_so(client: Client, proxy: RedisStall) -> None:
    trap = proxy.arm(named(b"INCR"), nth=2)
    await run(client, "INCR", "n")
    with pytest.raises(TimeoutError, match="1 of 2"):
        await trap.reached(timeout_s=0.01)
    assert not trap.is_reached


async def test_slow_traffic_comes_late_and_whole(client: Client, proxy: RedisStall) -> None:
    await client.ping()
    started = time.monotonic()
    proxy.weather = Weather(delay_s=0.1)
    await client.set("key", "value")
    assert time.monotonic() - started >= 0.2
    started, proxy.weather = time.monotonic(), Weather(trickle=(10, 0.02))
    assert await client.get("key") == b"value"
    assert time.monotonic() - started >= 0.06
    proxy.weather = FINE
    assert await client.get("key") == b"value"


async def test_what_falls_into_a_black_hole_never_comes(client: Client, direct: Client, proxy: RedisStall) -> None:
    await client.ping()
    proxy.weather = BLACK_HOLE
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await client.incr("n")
    proxy.weather = FINE
    assert await client.incr("n") == 1
    assert await direct.get("n") == b"1"


async def test_a_reset_breaks_every_connection_and_new_ones_are_fine(client: Client, proxy: RedisStall) -> None:
    trap = proxy.arm(match=named(b"INCRBY"), at="reply")
    counting = asyncio.create_task(run(client, "INCRBY", "n", "1"))
    await trap.reached()
    proxy.reset()
    with pytest.raises(RedisConnectionError, match=r"reset by peer|closed by server"):
        await counting
    trap.drop()
    assert await client.incr("n") == 2


class Transport:
    """Of a connection that was accepted."""

    aborted = False

    def abort(self) -> None:
        self.aborted = True


async def test_a_connection_that_was_accepted_as_the_proxy_ended_is_closed() -> None:
    accepted: Any = type("Writer", (), {"transport": Transport()})()
    async with RedisStall(1) as proxy:
        proxy._connected(1, stream(b""), accepted)
    assert accepted.transport.aborted


async def test_forgotten_connections_lead_nowhere_and_new_ones_are_fine(
    client: Client, direct: Client, proxy: RedisStall
) -> None:
    await client.ping()
    proxy.forget()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await client.incr("n")
    assert await client.incr("n") == 1
    assert await direct.get("n") == b"1"


async def test_frozen_traffic_goes_on_after_the_thaw(client: Client, direct: Client, proxy: RedisStall) -> None:
    await client.ping()
    proxy.freeze()
    writing = asyncio.create_task(run(client, "SET", "k", "v"))

    async def arrived() -> bool:
        return proxy.count(named(b"SET")) == 1

    await until(arrived)
    assert await direct.get("k") is None
    proxy.thaw()
    assert await writing


async def test_a_refusing_proxy_looks_like_a_server_that_is_gone(client: Client, proxy: RedisStall) -> None:
    await client.ping()
    port = proxy.port
    await proxy.refuse()
    with pytest.raises(RedisError):
        await client.ping()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(LOOPBACK, port)
    await proxy.accept()
    assert proxy.port == port
    assert await client.ping()


async def test_a_client_of_a_dead_server_is_disconnected(valkey: Valkey) -> None:
    with reserved_port() as port:
        async with (
            await asyncio.start_server(lambda reader, writer: writer.close(), LOOPBACK, port),
            RedisStall(port) as proxy,
        ):
            reader, writer = await asyncio.open_connection(LOOPBACK, proxy.port)
            assert await reader.read() == b""
            writer.close()
        async with RedisStall(port) as proxy:
            reader, writer = await asyncio.open_connection(LOOPBACK, proxy.port)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()


async def test_a_command_arriving_byte_by_byte_is_one_command(valkey: Valkey, proxy: RedisStall) -> None:
    reader, writer = await asyncio.open_connection(LOOPBACK, proxy.port)
    for byte in b"*1\r\n$4\r\nPING\r\n":
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0)
    assert (await reader.readline()).startswith(b"-NOAUTH")
    writer.close()
    await writer.wait_closed()
    assert [command.argv for command in proxy.commands] == [(b"PING",)]


async def test_a_misread_protocol_fails_the_test_at_the_end(valkey: Valkey) -> None:
    proxy = RedisStall(valkey.port)
    await proxy.accept()
    reader, writer = await asyncio.open_connection(LOOPBACK, proxy.port)
    writer.write(b"*1\r\n:1\r\n")
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()
    with pytest.raises(ExceptionGroup, match="misread"):
        await proxy.stop()


# --- in front of an HTTP server

EVENTS = [
    b'event: message_start\ndata: {"type":"message_start"}\n\n',
    b'event: content_block_delta\ndata: {"text":"event: message_stop"}\n\n',
    b'event: content_block_delta\ndata: {"text":"b"}\n\n',
    b'event: message_delta\ndata: {"type":"message_delta"}\n\n',
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
]


class TinyServer:
    """Answers every request with the events, in chunks of one event each, and remembers what it was asked."""

    def __init__(self) -> None:
        self.port = 0
        self.asked: list[bytes] = []
        self.hung_up = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or b"0")
                self.asked.append(await reader.readexactly(length))
                writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                for event in EVENTS:
                    writer.write(b"%x\r\n%s\r\n" % (len(event), event))
                    await writer.drain()
                    await asyncio.sleep(0)
                writer.write(b"0\r\n\r\n")
        self.hung_up.set()
        writer.close()


class Exchange:
    """A raw client: what has come back so far, as text."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.received = b""

    def ask(self, body: bytes) -> None:
        self.received = b""
        self.writer.write(b"POST /v1/messages HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))

    async def read_until(self, text: bytes) -> None:
        async with asyncio.timeout(10):
            while text not in self.received:
                data = await self.reader.read(65536)
                assert data, f"ended after {self.received!r}"
                self.received += data

    async def is_silent(self) -> bool:
        """Nothing more comes in a moment. Too short a moment can only miss a fault, not report a false one."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                self.received += await self.reader.read(65536)
                return False
        return True


@pytest.fixture
async def upstream() -> AsyncIterator[TinyServer]:
    upstream = TinyServer()
    server = await asyncio.start_server(upstream.serve, LOOPBACK, 0)
    upstream.port = server.sockets[0].getsockname()[1]
    yield upstream
    server.close()
    await server.wait_closed()


@pytest.fixture
async def http(upstream: TinyServer) -> AsyncIterator[HttpStall]:
    async with HttpStall(upstream.port) as proxy:
        yield proxy


@asynccontextmanager
async def connected(proxy: HttpStall) -> AsyncIterator[Exchange]:
    reader, writer = await asyncio.open_connection(LOOPBACK, proxy.port)
    try:
        yield Exchange(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


END = b"0\r\n\r\n"


async def test_responses_pass_unchanged_on_a_kept_connection(http: HttpStall, upstream: TinyServer) -> None:
    async with connected(http) as exchange:
        for body in (b"one", b"two"):
            exchange.ask(body)
            await exchange.read_until(END)
            for event in EVENTS:
                assert event in exchange.received
    assert upstream.asked == [b"one", b"two"]
    assert [(logged.method, logged.target) for logged in http.requests] == [("POST", "/v1/messages")] * 2


async def test_a_held_http_request_has_not_reached_the_server(http: HttpStall, upstream: TinyServer) -> None:
    trap = http.arm(lambda request: b"second" in request.body)
    async with connected(http) as exchange:
        exchange.ask(b"first")
        await exchange.read_until(END)
        exchange.ask(b"the second")
        await trap.reached()
        assert upstream.asked == [b"first"]
        trap.release()
        await exchange.read_until(END)


async def test_a_held_head_hides_even_the_status(http: HttpStall, upstream: TinyServer) -> None:
    trap = http.arm(at="head")
    async with connected(http) as exchange:
        exchange.ask(b"x")
        await trap.reached()
        assert upstream.asked == [b"x"]
        assert await exchange.is_silent()
        trap.release()
        await exchange.read_until(END)
        assert exchange.received.startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize(
    ("event", "index"), [(1, 0), (3, 2), ("content_block_delta", 1), ("message_delta", 3), ("message_stop", 4)]
)
async def test_everything_before_the_wanted_event_passes_and_nothing_after(
    http: HttpStall, event: int | str, index: int
) -> None:
    trap = http.arm(at="event", event=event)
    async with connected(http) as exchange:
        exchange.ask(b"x")
        await trap.reached()
        if index:
            await exchange.read_until(EVENTS[index - 1])
        while not await exchange.is_silent():
            pass  # the event's chunk header may come on its own
        assert b"".join(EVENTS[:index]).count(b"\n\n") == exchange.received.count(b"\n\n")
        trap.release()
        await exchange.read_until(END)
        assert all(event in exchange.received for event in EVENTS)
        exchange.ask(b"the trap is spent")
        await exchange.read_until(END)


async def test_a_response_can_be_cut_at_an_event(http: HttpStall, upstream: TinyServer) -> None:
    trap = http.arm(at="event", event="message_stop", action="cut")
    async with connected(http) as exchange:
        exchange.ask(b"x")
        with pytest.raises((AssertionError, ConnectionError)):
            await exchange.read_until(END)
        await trap.reached()
        assert b"event: message_stop\n" not in exchange.received


async def test_the_server_learns_that_the_client_hung_up(http: HttpStall, upstream: TinyServer) -> None:
    async with connected(http) as exchange:
        exchange.ask(b"x")
        await exchange.read_until(END)
    await asyncio.wait_for(upstream.hung_up.wait(), 10)


async def test_a_chunked_request_is_seen_whole_and_passed_as_it_came(http: HttpStall) -> None:
    seen: list[bytes] = []

    def remember(body: bytes) -> bool:
        seen.append(body)
        return False

    http.arm(lambda request: remember(request.body))
    async with connected(http) as exchange:
        head = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
        exchange.writer.write(head + b"3;x=y\r\nabc\r\n2\r\n\r\n\r\n0\r\ntrailer: t\r\n\r\n")
        await exchange.read_until(END)
    assert seen == [b"abc\r\n"]


def test_an_event_is_named_exactly_when_stopping_at_one() -> None:
    with pytest.raises(ValueError, match="event"):
        HttpStall(0).arm(at="event")
    with pytest.raises(ValueError, match="event"):
        HttpStall(0).arm(at="head", event=1)
    with pytest.raises(ValueError, match="nth"):
        HttpStall(0).arm(nth=0)


@given(st.lists(st.integers(1, 400)), st.integers(0, len(EVENTS) - 1))
def test_the_event_is_found_however_the_bytes_are_split(cuts: list[int], index: int) -> None:
    body = b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in EVENTS)
    exchange = _Exchange(_EventTrap(lambda request: True, 1, "event", "hold", index + 1))
    passed = b""
    bounds = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    for start, end in itertools.pairwise(bounds):
        ready, trap = exchange.split(body[start:end])
        passed += ready
        if trap is not None:
            break
        assert passed.endswith(b"\n\n") or not body[:end].endswith(b"\n\n"), "a finished event was kept back"
    else:
        raise AssertionError("the event was missed")
    before = body.index(EVENTS[index])
    assert passed == body[:before]
    assert passed + exchange.rest() == body[:end]
