"""The one turn endpoint: parse → exchange → JSON or events.

Written for chat completions; everything dialect-specific is behind `dialects/chat.py` and `dialects/chat_out.py`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.types import Receive, Scope, Send

from service import access, addressing, idempotency, sse
from service.addressing import Address
from service.asgi import header, parse_json, read_body, send_json
from service.claude import Claude
from service.conflict import ON_CONFLICT
from service.delivery import Deliveries, connection_of
from service.dialects import chat, chat_out
from service.errors import BatonError, chosen
from service.exchange import ON_DISCONNECT, Exchange, Exchanges, OnDisconnect
from service.models import Models
from service.opening import Rules, Wish
from service.prefix import stateless
from service.settings import Settings
from service.store_watch import StoreWatch
from service.turn import Store, Turn


@dataclass(frozen=True, slots=True)
class Parts:
    """What the endpoints of one replica share."""

    settings: Settings
    claude: Claude
    models: Models
    store: Store
    rules: Rules
    exchanges: Exchanges
    watch: StoreWatch
    deliveries: Deliveries


class ChatCompletions:
    """``POST /v1/chat/completions``, with and without a session."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        self._parts.exchanges.admit()
        settings = self._parts.settings
        raw = await read_body(scope, receive, bytes_max=settings.body_bytes_max, wait_s=settings.body_wait_s)
        body = parse_json(raw)
        request = chat.parse(
            body,
            default_model=settings.default_model,
            aliases=settings.model_aliases,
            max_tokens_default=lambda model: self._parts.models.of(model).answer_tokens(settings.max_tokens_default),
        )
        key = idempotency.key_of(scope)
        address = addressing.of_request(
            self._parts.store.sessions.keyspace,
            access.principal(),
            in_body=request.session,
            in_header=header(scope, b"x-session-id"),
            mode=header(scope, b"x-session-mode"),
            idempotency_key=key,
        )
        exchange = self._exchange(scope, request, address, body, key)
        # Without a session nothing is kept that could be told again.
        unkept = ["Idempotency-Key"] if key is not None and address is None else []
        if ignored := unkept + request.ignored:
            exchange.headers["x-baton-ignored"] = ", ".join(ignored)
        self._parts.exchanges.start(exchange)
        try:
            async with sse.watching(receive, exchange.hang_up):
                await (self._stream if request.stream else _whole)(send, exchange)
                if address is not None and exchange.error is None:
                    self._parts.deliveries.sent(scope, address.ref, exchange.id)
        finally:
            exchange.hang_up()  # nothing after a whole answer; else nobody is left who could be told

    def _exchange(
        self, scope: Scope, request: chat.ChatRequest, address: Address | None, body: Any, key: str | None
    ) -> Exchange:
        parts = self._parts
        expected = addressing.expected_turn(header(scope, b"x-expect-turn"))
        if expected and (address is None or address.mode == "create"):
            raise BatonError("invalid_value", "X-Expect-Turn needs a session that exists.", param="X-Expect-Turn")
        given = header(scope, b"x-session-on-conflict")
        on_conflict = chosen("X-Session-On-Conflict", given, ON_CONFLICT, parts.settings.on_conflict)
        given = header(scope, b"x-session-on-disconnect")
        # Who gives a request a key means to come back for its answer.
        default: OnDisconnect = parts.settings.on_disconnect if key is None else "continue"
        on_disconnect = chosen("X-Session-On-Disconnect", given, ON_DISCONNECT, default)
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
        parts.watch.require()
        same = idempotency.request_of(
            scope, key, principal=access.principal(), dialect="chat", session_id=address.ref.id, body=body
        )
        return Turn(
            parts.claude,
            parts.store,
            parts.rules,
            wish=Wish(
                address,
                same,
                on_conflict,
                expected,
                connection_of(scope) if idempotency.comes_again(scope, key) else lambda: True,
            ),
            ask=request.ask,
            dialect="chat",
            framing=chat_out.framing(include_usage=request.include_usage) if request.stream else None,
            render=render,
            resent=_is_resent(scope, request),
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
