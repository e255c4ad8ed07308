"""The one turn endpoint: parse → exchange → JSON or events.

Written for chat completions; everything dialect-specific is behind `dialects/chat.py` and `dialects/chat_out.py`.
"""

from dataclasses import dataclass
from functools import partial

from starlette.types import Receive, Scope, Send

from service import access, addressing, sse
from service.addressing import Address
from service.asgi import header, parse_json, read_body, send_json
from service.claude import Claude
from service.conflict import ON_CONFLICT
from service.dialects import chat, chat_out
from service.errors import BatonError, chosen
from service.exchange import ON_DISCONNECT, Exchange, Exchanges
from service.prefix import stateless
from service.settings import Settings
from service.store_watch import StoreWatch
from service.turn import Rules, Turn
from storage.sessions import Sessions
from storage.turns import Turns


@dataclass(frozen=True, slots=True)
class Parts:
    """What the endpoints of one replica share."""

    settings: Settings
    claude: Claude
    sessions: Sessions
    turns: Turns
    rules: Rules
    exchanges: Exchanges
    store: StoreWatch


class ChatCompletions:
    """``POST /v1/chat/completions``, with and without a session."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        self._parts.exchanges.admit()
        settings = self._parts.settings
        body = await read_body(scope, receive, bytes_max=settings.body_bytes_max, wait_s=settings.body_wait_s)
        request = chat.parse(
            parse_json(body),
            default_model=settings.default_model,
            aliases=settings.model_aliases,
            max_tokens_default=settings.max_tokens_default,
        )
        address = addressing.of_request(
            self._parts.sessions.keyspace,
            access.principal(),
            in_body=request.session,
            in_header=header(scope, b"x-session-id"),
            mode=header(scope, b"x-session-mode"),
        )
        exchange = self._exchange(scope, request, address)
        if ignored := _ignored(scope, request):
            exchange.headers["x-baton-ignored"] = ", ".join(ignored)
        self._parts.exchanges.start(exchange)
        try:
            async with sse.watching(receive, exchange.hang_up):
                await (self._stream if request.stream else _whole)(send, exchange)
        finally:
            exchange.hang_up()  # nothing after a whole answer; else nobody is left who could be told

    def _exchange(self, scope: Scope, request: chat.ChatRequest, address: Address | None) -> Exchange:
        parts = self._parts
        given = header(scope, b"x-session-on-disconnect")
        on_disconnect = chosen("X-Session-On-Disconnect", given, ON_DISCONNECT, parts.settings.on_disconnect)
        given = header(scope, b"x-session-on-conflict")
        on_conflict = chosen("X-Session-On-Conflict", given, ON_CONFLICT, parts.settings.on_conflict)
        render = partial(
            chat_out.rendering, session=address.public if address else None, include_usage=request.include_usage
        )
        if address is None:
            return Exchange(
                parts.claude,
                stateless(request.ask),
                render=render,
                streamed=request.stream,
                on_disconnect="cancel",
                deadline_s=parts.rules.deadline_s,
            )
        parts.store.require()
        return Turn(
            parts.claude,
            parts.sessions,
            parts.turns,
            parts.rules,
            address=address,
            ask=request.ask,
            dialect="chat",
            render=render,
            resent=_is_resent(scope, request),
            on_conflict=on_conflict,
            streamed=request.stream,
            on_disconnect=on_disconnect,
        )

    async def _stream(self, send: Send, exchange: Exchange) -> None:
        stream = sse.EventStream(
            send,
            lambda: exchange.headers,
            exchange.opened,
            status_wait_s=self._parts.settings.status_wait_s,
            keepalive=sse.COMMENT_KEEPALIVE,
        )
        async with stream:
            while (frames := await exchange.frames()) is not None:
                await stream.write(frames)
            if exchange.error is None:
                await stream.end()
            elif stream.begun:
                await stream.end(exchange.failed(exchange.error))
            else:
                raise exchange.error


async def _whole(send: Send, exchange: Exchange) -> None:
    await exchange.end()
    if exchange.error is not None:
        raise exchange.error
    await send_json(send, exchange.whole(), headers=exchange.headers)


def _is_resent(scope: Scope, request: chat.ChatRequest) -> bool:
    """Whether the request holds the whole conversation; without a word about it, if it holds an answer."""
    if header(scope, b"x-expect-turn") is not None:
        raise BatonError("unsupported", "X-Expect-Turn is not supported.", param="X-Expect-Turn")
    in_header = header(scope, b"x-session-input")
    if in_header is not None and request.session_input not in (None, in_header):
        raise BatonError("invalid_value", "The body's session_input and X-Session-Input differ.", param="session_input")
    match in_header or request.session_input:
        case None:
            return any(message["role"] == "assistant" for message in request.ask.messages)
        case "full":
            return True
        case "delta":
            return False
    raise BatonError("invalid_value", "X-Session-Input is `delta` or `full`.", param="X-Session-Input")


def _ignored(scope: Scope, request: chat.ChatRequest) -> list[str]:
    """What was left out of the request and is worth telling."""
    key = ["Idempotency-Key"] if header(scope, b"idempotency-key") is not None else []
    return key + request.ignored
