"""The least that a turn can cost in Python with the same store: what Baton is measured against.

Raw ASGI under the same uvicorn, a raw HTTP client over an asyncio protocol, no SDK, no framework, no checks, no errors,
no metrics, no deadlines but the store's. The Redis work is the same, by the same code: begin, history and commit of
`storage.turns`, with records and messages of the same size. Answers are the same bytes a caller of Baton's would need.

``python -m bench.floor REDIS_URL NAMESPACE SECRET FAKE_PORT OWNER`` prints its address and serves until terminated.
"""

import asyncio
import socket
import sys
from typing import Any, Final, cast

import httptools
import orjson
import uvicorn

from storage import elements
from storage.connect import Deadlines, connect
from storage.keys import Keyspace, new_turn_id
from storage.results import Begun, Settled
from storage.turns import Commit, Request, Turns, Usage

_LEASE_MS: Final = 20_000
_TURNS_MAX: Final = 10_000
_REQUEST: Final = Request("a-fingerprint-of-24-chars")
_PENDING: Final = {
    "state": "pending",
    "started_at": "2026-01-01T00:00:00.000+00:00",
    "dialect": "chat",
    "replica": "a-replica-of-some-name-12345",
    "model": "bench-plain",
}
_JSON_HEAD: Final = (b"content-type", b"application/json")
_EVENTS_HEAD: Final = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


class Upstream(asyncio.Protocol):
    """One connection to Claude: a request, then the bodies that arrived together until the answer's end."""

    def __init__(self) -> None:
        self._bodies: list[bytes] = []
        self._arrived = asyncio.Event()
        self._complete = False
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)
        self._arrived.set()

    def on_body(self, body: bytes) -> None:  # called by the parser, as the next
        self._bodies.append(body)

    def on_message_complete(self) -> None:
        self._complete = True

    def ask(self, request: bytes) -> None:
        assert self._transport is not None
        self._complete = False
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(request)

    async def take(self) -> bytes:
        """What arrived since; empty at the end."""
        while not self._bodies and not self._complete:
            self._arrived.clear()
            await self._arrived.wait()
        taken = b"".join(self._bodies)
        self._bodies.clear()
        return taken


class Floor:
    """The ASGI application."""

    def __init__(self, redis_url: str, namespace: str, secret: str, fake_port: int, owner: str) -> None:
        redis = connect(redis_url, connections_max=64, deadlines=Deadlines())
        self._turns = Turns(redis, begin_budget_s=3.0, settle_budget_s=15.0)
        self._keyspace = Keyspace(namespace, 1, secret.encode())
        self._owner = owner
        self._fake_port = fake_port
        self._idle: list[Upstream] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        asked = orjson.loads(body)
        ref = self._keyspace.session(asked["session_id"], self._owner)
        turn_id = new_turn_id()
        begun = await self._turns.begin(
            ref,
            turn_id,
            replica="a-replica-of-some-name-12345",
            lease_ms=_LEASE_MS,
            record=orjson.dumps({"id": turn_id, **_PENDING}),
            turns_max=_TURNS_MAX,
            request=_REQUEST,
        )
        assert isinstance(begun, Begun), begun
        history = await self._turns.history(ref, begun.messages)
        new = orjson.dumps(asked["messages"][0])
        request = _request(asked["model"], [*(element[9:] for element in history.elements), new])
        if asked.get("stream"):
            await send({"type": "http.response.start", "status": 200, "headers": _EVENTS_HEAD})
        text = await self._relay(request, turn_id, send if asked.get("stream") else None)
        committed = await self._turns.commit(ref, turn_id, _commit(begun, turn_id, new, text))
        assert isinstance(committed, Settled), committed
        if asked.get("stream"):
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
            return
        whole = orjson.dumps(_completion(turn_id, asked["session_id"], text))
        head = [_JSON_HEAD, (b"content-length", b"%d" % len(whole))]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": whole})

    async def _relay(self, request: bytes, turn_id: str, send: Any) -> str:
        """Claude's answer to the caller, if it streams; returns the text."""
        if self._idle:
            upstream = self._idle.pop()
        else:
            loop = asyncio.get_running_loop()
            _, upstream = await loop.create_connection(Upstream, "127.0.0.1", self._fake_port)
        upstream.ask(request)
        before = b'data: {"id":"chatcmpl-%s","object":"chat.completion.chunk","created":1,"model":"claude-bench",'
        before = before % turn_id.encode() + b'"choices":[{"index":0,"delta":{"content":'
        after = b'},"logprobs":null,"finish_reason":null}]}\n\n'
        texts: list[str] = []
        rest = b""
        while taken := await upstream.take():
            *events, rest = (rest + taken).split(b"\n\n")
            shown: list[bytes] = []
            for event in events:
                data = orjson.loads(event[event.index(b"\ndata: ") + 7 :])
                if data["type"] == "content_block_delta":
                    text = data["delta"]["text"]
                    texts.append(text)
                    shown.append(before + orjson.dumps(text) + after)
            if send is not None and shown:
                await send({"type": "http.response.body", "body": b"".join(shown), "more_body": True})
        self._idle.append(upstream)
        return "".join(texts)


def _request(model: str, messages: list[bytes]) -> bytes:
    body = b'{"model":"%s","max_tokens":32000,"stream":true,"messages":[%s]}' % (model.encode(), b",".join(messages))
    head = (
        b"POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer sk-ant-bench\r\n"
        b"anthropic-version: 2023-06-01\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    )
    return head % len(body) + body


def _commit(begun: Begun, turn_id: str, new: bytes, text: str) -> Commit:
    answer = orjson.dumps({"role": "assistant", "content": [{"type": "text", "text": text}]})
    record = {
        "id": turn_id,
        **_PENDING,
        "state": "complete",
        "ended_at": "2026-01-01T00:00:00.000+00:00",
        "message_id": "msg_bench",
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 25, "output_tokens": 60},
        "from": begun.messages,
        "to": begun.messages + 2,
    }
    return Commit(
        head=begun.head,
        record=orjson.dumps(record),
        model="bench",
        epoch_hash="0123456789abcdef",
        epoch_start=0,
        revision=begun.revision,
        system_json=b"",
        preamble=b"",
        usage=Usage(input=25, output=60),
        elements=[elements.pack(json, elements.FIRST_DIGEST) for json in (new, answer)],
    )


def _completion(turn_id: str, session: str, text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    usage = {"prompt_tokens": 25, "completion_tokens": 60, "total_tokens": 85}
    head = {"id": turn_id, "object": "chat.completion", "created": 1, "model": "claude-bench", "session_id": session}
    return {**head, "choices": [choice], "usage": usage}


def main() -> None:
    redis_url, namespace, secret, fake_port, owner = sys.argv[1:]
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(
        Floor(redis_url, namespace, secret, int(fake_port), owner),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=75,
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
