"""A Claude that costs next to nothing: rendered once, written as it is; nothing here is read as a conversation.

``python -m bench.fake`` prints its address and serves the Messages API on loopback until it is terminated. The model
that a request names chooses how its answer comes, one HTTP chunk an event as Claude does it:

    bench-plain    20 deltas in one write
    bench-burst    500 deltas in one write
    bench-paced    200 deltas, one write every 5 ms
    bench-slow     60 deltas, one write every 250 ms, as long answers come

Who does not ask for a stream gets what bench-plain says as one JSON body.
"""

import asyncio
import re
from typing import Final, cast

PLAIN_DELTAS: Final = 20
BURST_DELTAS: Final = 500
PACED_DELTAS: Final = 200
SLOW_DELTAS: Final = 60
SLOW_PACE_S: Final = 0.25
_PACE_S: Final = 0.005

_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
    b"request-id: req_bench\r\nTransfer-Encoding: chunked\r\n\r\n"
)
_USAGE: Final = b'"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":'
_START: Final = (
    b"message_start",
    b'{"type":"message_start","message":{"id":"msg_bench","type":"message","role":"assistant","model":"claude-bench",'
    b'"content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":25,' + _USAGE + b"1}}}",
)
_BLOCK_START: Final = (
    b"content_block_start",
    b'{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}',
)
_BLOCK_STOP: Final = (b"content_block_stop", b'{"type":"content_block_stop","index":0}')
_END: Final = (
    b"message_delta",
    b'{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{' + _USAGE + b"60}}",
)
_STOP: Final = (b"message_stop", b'{"type":"message_stop"}')


def _chunk(event: tuple[bytes, bytes]) -> bytes:
    name, data = event
    frame = b"event: " + name + b"\ndata: " + data + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(frame), frame)


def _delta(number: int) -> bytes:
    data = b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"word %04d "}}' % number
    return _chunk((b"content_block_delta", data))


def _answer(deltas: int) -> list[bytes]:
    """Head and start, each delta, the end: to be written together or one by one."""
    start = _HEAD + _chunk(_START) + _chunk(_BLOCK_START)
    end = _chunk(_BLOCK_STOP) + _chunk(_END) + _chunk(_STOP) + b"0\r\n\r\n"
    return [start, *map(_delta, range(deltas)), end]


_WHOLE: Final = (
    b'{"id":"msg_bench","type":"message","role":"assistant","model":"claude-bench","content":[{"type":"text","text":"'
    + b"".join(b"word %04d " % number for number in range(PLAIN_DELTAS))
    + b'"}],"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":25,'
    + _USAGE
    + b"60}}"
)
_WHOLE_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nrequest-id: req_bench\r\nContent-Length: %d\r\n\r\n"
)
_AT_ONCE: Final = {b"plain": b"".join(_answer(PLAIN_DELTAS)), b"burst": b"".join(_answer(BURST_DELTAS))} | {
    b"whole": _WHOLE_HEAD % len(_WHOLE) + _WHOLE
}
_PACED: Final = {b"paced": (_answer(PACED_DELTAS), _PACE_S), b"slow": (_answer(SLOW_DELTAS), SLOW_PACE_S)}
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_STREAMED: Final = b'"stream":true'
_MODEL: Final = re.compile(rb'"model":"bench-(plain|burst|paced|slow)"')


class _Connection(asyncio.Protocol):
    """One kept-alive connection; one request at a time."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._received += data
        head_end = self._received.find(b"\r\n\r\n")
        if head_end < 0:
            return
        length = _LENGTH.search(self._received, 0, head_end)
        size = head_end + 4 + (int(length[1]) if length else 0)
        if len(self._received) < size:
            return
        model = _MODEL.search(self._received, head_end, size)
        way = bytes(model[1]) if model else b"plain"
        if self._received.find(_STREAMED, head_end, size) < 0:
            way = b"whole"
        del self._received[:size]
        self._answer(way)

    def _answer(self, way: bytes) -> None:
        if way in _PACED:
            self._write_paced(*_PACED[way], 0)
        elif self._transport is not None:
            self._transport.write(_AT_ONCE[way])

    def _write_paced(self, pieces: list[bytes], pace_s: float, number: int) -> None:
        if self._transport is None:
            return
        self._transport.write(pieces[number])
        if number + 1 < len(pieces):
            asyncio.get_running_loop().call_later(pace_s, self._write_paced, pieces, pace_s, number + 1)


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", 0)
    print(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    uvloop.run(_serve())
