"""The life of a replica (service/life.py), clause by clause; what turns themselves meet is in test_drain.py."""

import asyncio
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from service.life import MARGIN_S
from tests.e2e.caller import CHAT, Caller, Stream, chunks_of, eventually, text_of
from tests.e2e.test_drain import REJECT, ended_in_error, held_at_its_end, is_draining, waiting_on
from tests.instruments.balancer import Balancer
from tests.instruments.child import Child
from tests.instruments.processes import Fleet, Replica, Simulator

pytestmark = pytest.mark.anyio

AT_ONCE = {"BATON_DRAIN_NOTICE_S": "0"}
AT_ONCE_S = 10.0  # on a busy machine; what it would have waited for takes longer
STORE_S = 5.0  # an embedded store has this long to end
HURRIED_S = 4.5  # and half a second for a busy machine
CONTINUE = {"X-Session-On-Disconnect": "continue"}
TURN = b'{"messages":[{"role":"user","content":"Count to 2"}]}'


def head_of(request: str, size_bytes: int) -> bytes:
    told = f"Host: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {size_bytes}"
    return f"{request} HTTP/1.1\r\n{told}\r\n\r\n".encode()


class Raw:
    """One connection to a replica, and what comes on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, method: str, path: str, body: bytes = b"", length_bytes: int | None = None) -> None:
        size_bytes = len(body) if length_bytes is None else length_bytes
        self.writer.write(head_of(f"{method} {path}", size_bytes) + body)

    async def answer(self) -> tuple[bytes, bytes]:
        """Head and body."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        size = re.search(rb"content-length: (\d+)", head)
        assert size, head
        return head, await self.reader.readexactly(int(size[1]))


@asynccontextmanager
async def connected(replica: Replica) -> AsyncIterator[Raw]:
    parts = urlsplit(replica.url)
    async with asyncio.timeout(20):
        raw = Raw(*await asyncio.open_connection(parts.hostname, parts.port))
        try:
            yield raw
        finally:
            raw.writer.close()


async def test_after_the_signal_it_serves_on_until_balancers_have_noticed(
    fleet: Fleet, http: aiohttp.ClientSession
) -> None:
    replica = await fleet.add_replica(env={"BATON_DRAIN_NOTICE_S": "1.5"})
    async with connected(replica) as idle, connected(replica) as used:
        for raw in (idle, used):
            raw.send("GET", "/readyz")
            head, _ = await raw.answer()
            assert head.startswith(b"HTTP/1.1 200 ") and b"connection: close" not in head
        started = time.monotonic()
        replica.terminate()
        await is_draining(Caller(http, replica.url))
        assert (await Caller(http, replica.url).get("/livez")).status == 200
        assert b"\nbaton_draining 1.0\n" in (await Caller(http, replica.url).get("/metrics")).body
        used.send("POST", CHAT, TURN)  # as a balancer would that has not noticed
        head, body = await used.answer()
        assert head.startswith(b"HTTP/1.1 200 ") and b"connection: close" in head
        assert json.loads(body)["choices"][0]["message"]["content"] == "1 2"
        assert await used.reader.read() == b""
        assert await idle.reader.read() == b""  # its end, which is not before that of the notice
        assert time.monotonic() - started > 1.4
    assert await replica.wait() == 0


async def test_an_answer_that_begins_after_the_signal_closes_its_connection(
    fleet: Fleet, http: aiohttp.ClientSession
) -> None:
    replica = await fleet.add_replica(http_stall=True, env=AT_ONCE)
    held = held_at_its_end(replica)
    async with connected(replica) as raw:
        raw.send("POST", CHAT, TURN)
        await held.reached()
        replica.terminate()
        await is_draining(Caller(http, replica.url))
        held.release()
        head, _ = await raw.answer()
        assert head.startswith(b"HTTP/1.1 200 ") and b"connection: close" in head
        assert await raw.reader.read() == b""
    assert await replica.wait() == 0


async def test_who_is_refused_while_sending_can_read_why(fleet: Fleet, http: aiohttp.ClientSession, name: str) -> None:
    replica = await fleet.add_replica(http_stall=True, env=AT_ONCE)
    leaving = Caller(http, replica.url)
    held = held_at_its_end(replica)
    async with leaving.stream(f"Count to 60 {name}", name) as stream, connected(replica) as early:
        early.send("POST", CHAT, b"{", length_bytes=4_000_000)
        await stream.words(2)
        replica.terminate()
        await is_draining(leaving)
        async with connected(replica) as late:
            late.send("POST", CHAT, b"{", length_bytes=4_000_000)
            for raw in (early, late):
                for _ in range(8):  # a client that reads only once it has sent all
                    raw.writer.write(b" " * 400_000)
                    await raw.writer.drain()
                    await asyncio.sleep(0.02)
                head, body = await raw.answer()
                assert head.startswith(b"HTTP/1.1 503 ") and b"connection: close" in head
                assert json.loads(body)["error"]["code"] == "draining"
        held.release()
        assert (await stream.rest())[-1] == b"data: [DONE]"
    assert await replica.wait() == 0


async def test_messages_are_not_appended_any_more_nor_waited_for(
    fleet: Fleet, http: aiohttp.ClientSession, simulator: Simulator, name: str
) -> None:
    replica = await fleet.add_replica(env=AT_ONCE)
    leaving = Caller(http, replica.url)
    await simulator.fault("slow_deltas", delay_ms=50, match=name)
    body = {"messages": [{"role": "user", "content": "By hand"}]}
    async with leaving.stream(f"Count to 400 {name}", name) as stream:
        await stream.words(2)
        path = f"/v1/sessions/{name}/messages"
        waiting = asyncio.create_task(leaving.request("POST", path, json=body))
        await eventually(lambda: waiting_on(leaving), "the append that waits")
        started = time.monotonic()
        replica.terminate()
        await is_draining(leaving)
        for refused in (await waiting, await leaving.request("POST", path, json=body)):
            assert (refused.status, refused.code) == (503, "draining")
            assert refused.headers["retry-after"] == "1"
            assert refused.headers["x-should-retry"] == "true"
        assert time.monotonic() - started < AT_ONCE_S
        stream.hang_up()
    assert await replica.wait() == 0


@pytest.mark.parametrize("drain_s", ["30", "0.3"])
async def test_a_turn_whose_caller_has_gone_ends_like_any_other(
    fleet: Fleet, http: aiohttp.ClientSession, one: Caller, simulator: Simulator, name: str, drain_s: str
) -> None:
    replica = await fleet.add_replica(env={**AT_ONCE, "BATON_DRAIN_S": drain_s, "BATON_LEASE_MS": "60000"})
    await simulator.fault("slow_deltas", delay_ms=30, match=name)
    last = "40" if drain_s == "30" else "400"
    async with Caller(http, replica.url).stream(f"Count to {last} {name}", name, headers=CONTINUE) as stream:
        shown = await stream.words(5)
        stream.hang_up()
    replica.terminate()
    assert await replica.wait() == 0
    after = await one.chat("How many messages?", name, headers=REJECT)  # at once: its lease is free
    assert after.text == "This conversation holds 3 messages."
    said = (await one.messages(name))[1]["content"][0]["text"]
    turn = (await one.get(f"/v1/sessions/{name}/turns/1")).json
    if drain_s == "30":
        assert said.split()[-1] == last and turn["verdict"] == "committed"
    else:
        assert said.startswith(shown) and said.split()[-1] != last and turn["verdict"] == "incomplete"


async def test_a_follower_is_sent_elsewhere_and_misses_nothing(
    fleet: Fleet, http: aiohttp.ClientSession, one: Caller, two: Caller, simulator: Simulator, name: str
) -> None:
    replica = await fleet.add_replica(env=AT_ONCE)
    await simulator.fault("slow_deltas", delay_ms=60, match=name)
    async with one.stream(f"Count to 40 {name}", name) as stream:
        await stream.words(2)
        path = f"/v1/sessions/{name}/turns/{stream.headers['x-turn-id']}/events"
        async with http.get(replica.url + path) as response:
            follower = Stream(response)
            await follower.words(2)
            replica.terminate()
            error = ended_in_error(await follower.rest())
        assert error["code"] == "draining"
        assert await replica.wait() == 0
        seen = follower.last_id - 1  # the last one told of the end
        async with http.get(two.url + path, headers={"Last-Event-ID": str(seen)}) as response:
            rest = Stream(response, seen)
            await rest.rest()
        shown = await stream.rest()
    assert text_of(follower.frames[:-1]) + text_of(rest.frames) == text_of(shown)
    assert rest.frames[-1] == b"data: [DONE]"


@pytest.mark.parametrize("hurried", [True, False])
async def test_a_slow_reader_is_not_waited_for(fleet: Fleet, simulator: Simulator, name: str, hurried: bool) -> None:
    replica = await fleet.add_replica(env={**AT_ONCE, "BATON_DRAIN_S": "3600" if hurried else "0.2"})
    parts = urlsplit(replica.url)
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect((parts.hostname, parts.port))
        body = json.dumps({"stream": True, "messages": [{"role": "user", "content": f"Count to 400000 {name}"}]})
        slow.sendall(head_of(f"POST {CHAT}", len(body)) + body.encode())
        await eventually(lambda: simulator.asked(name), "the question")
        await asyncio.sleep(1.0)  # until all that may wait waits
        started = time.monotonic()
        replica.terminate()
        if hurried:
            await asyncio.sleep(0.1)
            replica.terminate()
        assert await replica.wait(MARGIN_S) == 0
        assert time.monotonic() - started < (HURRIED_S if hurried else 0.2 + MARGIN_S)
    assert "Traceback" not in replica.log()


@pytest.mark.parametrize(
    ("env", "second", "within_s"),
    [
        ({"BATON_DRAIN_S": "3600"}, True, HURRIED_S),
        pytest.param({"BATON_DRAIN_S": "0.5"}, False, 0.5 + MARGIN_S, marks=pytest.mark.at_length),
    ],
)
async def test_a_silent_store_does_not_keep_it(
    tmp_path: Path, name: str, env: dict[str, str], second: bool, within_s: float
) -> None:
    async with Fleet(tmp_path, replicas=1) as fleet, aiohttp.ClientSession() as http:
        replica = await fleet.add_replica(env={**AT_ONCE, "BATON_LEASE_MS": "1500", **env})
        await fleet.simulator.fault("slow_deltas", delay_ms=30, match=name)
        async with Caller(http, replica.url).stream(f"Count to 500 {name}", name) as stream:
            await stream.words(2)
            fleet.valkey.freeze()
            started = time.monotonic()
            replica.terminate()
            if second:
                await asyncio.sleep(0.2)
                os.kill(replica.pid, signal.SIGINT)
            error = ended_in_error(await stream.rest())
        assert error["code"] == "session_save_unknown"
        assert await replica.wait(MARGIN_S) == 0
        assert time.monotonic() - started < within_s
        assert "Traceback" not in replica.log()
        fleet.valkey.thaw()
        other = Caller(http, fleet.replicas[0].url)
        await eventually(lambda: is_up(other), "the store")
        assert (await other.chat("How many messages?", name)).text.startswith("This conversation holds ")


async def is_up(caller: Caller) -> bool:
    return bool((await caller.get("/readyz")).json["store"] == "up")


def handles(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal; Linux tells."""
    found = re.search(r"^SigCgt:\s*([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> (number - 1) & 1)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to see the handler")
async def test_a_signal_while_it_is_loading(tmp_path: Path) -> None:
    replica = Replica("loading", tmp_path, {"ANTHROPIC_API_KEY": "unused"})
    async with replica:

        async def handles_it() -> bool:
            return handles(replica.pid, signal.SIGTERM)

        await eventually(handles_it, "the handler")
        replica.terminate()
        assert await replica.wait() == 0
        assert "listening" not in replica.log()


async def test_a_signal_while_the_store_is_contacted_for_the_first_time(fleet: Fleet) -> None:
    asked = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as store:
        port = store.sockets[0].getsockname()[1]
        launched = asyncio.create_task(fleet.add_replica(env={"BATON_REDIS_URL": f"redis://127.0.0.1:{port}/0"}))
        await asyncio.wait_for(asked.wait(), 20)
        replica = fleet.replicas[-1]
        started = time.monotonic()
        replica.terminate()
        assert await replica.wait() == 0
        assert time.monotonic() - started < HURRIED_S
        launched.cancel()
        await asyncio.wait([launched])
        fleet.replicas.remove(replica)


async def test_an_embedded_store_ends_after_everything_is_stored(
    fleet: Fleet, http: aiohttp.ClientSession, simulator: Simulator, name: str, tmp_path: Path
) -> None:
    env = {**AT_ONCE, "BATON_REDIS_URL": "embedded", "BATON_DATA_DIR": str(tmp_path), "BATON_DRAIN_S": "0.2"}
    replica = await fleet.add_replica(env=env)
    await simulator.fault("slow_deltas", delay_ms=30, match=name)
    async with Caller(http, replica.url).stream(f"Count to 500 {name}", name) as stream:
        await stream.words(2)
        replica.terminate()
        assert ended_in_error(await stream.rest())["code"] == "turn_interrupted"
    assert await replica.wait(MARGIN_S + STORE_S) == 0
    again = Caller(http, (await fleet.add_replica(env=env)).url)
    assert (await again.messages(name))[1]["content"][0]["text"] == text_of(stream.frames)
    assert (await again.chat("How many messages?", name, headers=REJECT)).text.endswith("holds 3 messages.")


class Load:
    """Callers who ask turn after turn through a balancer and never ask twice."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.turns = 0
        self.failed: list[Any] = []
        self.over = False

    async def ask(self, session: str, stream: bool) -> None:
        connector = aiohttp.TCPConnector(limit=1)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(20)) as http:
            caller = Caller(http, self.url)
            while not self.over:
                try:
                    await self._turn(caller, session, stream)
                    self.turns += 1
                    await asyncio.sleep(0.1)
                except (aiohttp.ClientError, AssertionError) as failure:
                    self.failed.append(failure)

    async def _turn(self, caller: Caller, session: str, stream: bool) -> None:
        if stream:
            async with caller.stream("Count to 20", session) as answer:
                assert (await answer.rest())[-1] == b"data: [DONE]", answer.frames
                assert len(chunks_of(answer.frames)) > 20
        else:
            assert (await caller.chat("Count to 2", session)).text == "1 2"


async def is_ready(url: str) -> bool:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(2)) as http:
        try:
            async with http.get(url + "/readyz") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False


@pytest.mark.at_length
@pytest.mark.timeout(240)
async def test_a_rolling_restart_under_load_fails_no_turn(tmp_path: Path, name: str) -> None:
    """No caller ever asks again, and the balancer looks at the readiness every 200 ms.

    At length, because tests/deployment/test_rolling_restart.py does the same behind the balancer that is shipped.
    """
    async with Fleet(tmp_path, replicas=3, env={"BATON_DRAIN_NOTICE_S": "1"}) as fleet:
        await fleet.simulator.pace(delta_ms=20)
        targets = {replica.url for replica in fleet.replicas}

        async def look() -> None:
            while True:
                urls = [replica.url for replica in fleet.replicas if replica.url and replica.returncode is None]
                ready = await asyncio.gather(*map(is_ready, urls))
                targets.clear()
                targets.update(url for url, is_so in zip(urls, ready, strict=True) if is_so)
                await asyncio.sleep(0.2)

        looking = asyncio.create_task(look())
        async with Balancer(lambda: [urlsplit(url).port or 0 for url in sorted(targets)]) as balancer:
            load = Load(f"http://127.0.0.1:{balancer.port}")
            callers = [asyncio.create_task(load.ask(f"{name}-{n}", n % 2 == 0)) for n in range(6)]
            old: list[Child] = list(fleet.replicas)
            for replica in old:
                await asyncio.sleep(0.3)
                new = await fleet.add_replica()
                await eventually(lambda url=new.url: is_in(targets, url), "the new replica")  # type: ignore[misc]
                replica.terminate()
                assert await replica.wait() == 0
            load.over = True
            await asyncio.gather(*callers)
        looking.cancel()
        await asyncio.wait([looking])
    assert load.failed == []
    assert load.turns > 20


async def is_in(targets: set[str], url: str) -> bool:
    return url in targets
