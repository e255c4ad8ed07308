"""The one turn endpoint: read → exchange → JSON or events. Which dialect it speaks is the dialect's business.

A request without a session is an exchange that stores nothing. On Anthropic's surface it is not even translated: see
`MessagesEndpoint` and passage.py.
"""

from dataclasses import dataclass
from typing import Any, Final

from starlette.types import Receive, Scope, Send

from service import access, addressing, idempotency, sse, telemetry
from service.addressing import Address
from service.asgi import send_json
from service.bodies import keep_body, read_body
from service.claude import Claude
from service.conflict import ON_CONFLICT, OnConflict
from service.context.checkpoint import Compaction
from service.delivery import Deliveries, connection_of
from service.dialect import Asked, Dialect, betas
from service.dialects import messages
from service.errors import BatonError, chosen
from service.exchange import ON_DISCONNECT, Exchange, Exchanges, OnDisconnect
from service.headers import header, present
from service.interrupt import Interrupt
from service.models import Models
from service.opening import Rules, Wish
from service.parsing import parse_json
from service.passage import Passage, with_model
from service.prefix import PREFIXES, stateless, with_length
from service.resend import ends_with_answer
from service.settings import Settings
from service.store_watch import StoreWatch
from service.turn import Store, Turn

NOT_FORWARDED: Final = ("anthropic-user-profile-id", "anthropic-workspace-id")
"""Headers of Claude's API that say for whom it works: that is this service's to say."""

# They mean nothing without a session: nothing is kept that could be told again, waited for or compared.
_OF_SESSIONS: Final = (
    *("Idempotency-Key", "X-Session-Input", "X-Session-On-Conflict", "X-Session-On-Disconnect"),
    "X-Session-Prefix",
)


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
    compaction: Compaction


@dataclass(frozen=True, slots=True)
class _Prepared:
    """An exchange that may start, and where its answer goes."""

    exchange: Exchange
    stream: bool
    address: Address | None


@dataclass(frozen=True, slots=True)
class _Told:
    """What the headers of a request say of its turn.

    Attributes:
        expected: the turn that is taken for the session's last; "" for any.
        on_conflict, on_disconnect: what is to be done then.
        strict: whether the prefix must stay.
    """

    expected: str
    on_conflict: OnConflict
    on_disconnect: OnDisconnect
    strict: bool


class TurnEndpoint:
    """``POST`` of one dialect, with and without a session.

    Args:
        parts: of the replica.
        dialect: that it speaks.
    """

    def __init__(self, parts: Parts, dialect: Dialect) -> None:
        self._parts = parts
        self._dialect = dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        self._parts.exchanges.admit()
        prepared = await self._prepared(scope, receive)
        if prepared.address is not None:
            await self._parts.watch.require()
        exchange = prepared.exchange
        release = access.hold(scope, lambda: exchange.interrupt(Interrupt.REVOKED))
        uncount = keep_body(scope)  # the exchange may outlive its request, and holds what that has brought

        def ended() -> None:
            release()
            uncount()

        try:
            self._parts.exchanges.start(exchange, on_end=ended)
        except BatonError:
            ended()
            raise
        try:
            async with sse.watching(receive, exchange.hang_up):
                await (self._stream if prepared.stream else _whole)(send, exchange)
                if exchange.error is not None:
                    telemetry.error_told(scope, exchange.error.code)  # told in the stream
                elif prepared.address is not None:
                    self._parts.deliveries.sent(scope, prepared.address.ref, exchange.id)
        finally:
            exchange.hang_up()  # nothing after a whole answer; else nobody is left who could be told

    async def _prepared(self, scope: Scope, receive: Receive) -> _Prepared:
        """What is to be done about a request, which is read; what it brought is held by the exchange only.

        Raises:
            BatonError: 400, 404, 408 or 413; nothing is begun.
        """
        return self._translated(scope, parse_json(await self._read(scope, receive)))

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        return await read_body(scope, receive, self._parts.settings)

    def _translated(self, scope: Scope, body: Any) -> _Prepared:
        """A request that Baton reads, as an exchange."""
        asked = self._dialect.read(scope, body)
        key = idempotency.key_of(scope)
        address = self._address(scope, asked.session, key)
        exchange = self._exchange(scope, asked, address, body, key)
        _tell_ignored(scope, exchange, address, asked.ignored)
        return _Prepared(exchange, asked.stream, address)

    def _address(self, scope: Scope, in_body: str | None, key: str | None) -> Address | None:
        return addressing.of_request(
            self._parts.store.sessions.keyspace,
            access.principal(scope),
            in_body=in_body,
            in_header=header(scope, b"x-session-id"),
            mode=header(scope, b"x-session-mode"),
            idempotency_key=key,
        )

    def _exchange(self, scope: Scope, asked: Asked, address: Address | None, body: Any, key: str | None) -> Exchange:
        parts = self._parts
        told = _told(scope, address, key, parts.settings)
        resent = is_resent(scope, asked)
        render = asked.render(address.public if address else None)
        if address is None:
            model = parts.rules.model_of(asked.ask.model)
            ask = with_length(asked.ask, model.answer_tokens(parts.rules.max_tokens_default))
            return Exchange(
                parts.claude,
                stateless(ask, model.traits),
                asked.claude_headers,
                render=render,
                streamed=asked.stream,
                on_disconnect="cancel",
                deadline_s=parts.rules.deadline_s,
            )
        same = idempotency.request_of(
            scope,
            key,
            principal=access.principal(scope),
            dialect=self._dialect.name,
            session_id=address.ref.id,
            body=body,
        )
        return Turn(
            parts.claude,
            parts.store,
            parts.compaction,
            parts.rules,
            wish=Wish(
                address,
                same,
                told.on_conflict,
                told.expected,
                connection_of(scope) if idempotency.comes_again(scope, key) else lambda: True,
                told.strict,
            ),
            ask=asked.ask,
            dialect=self._dialect.name,
            framing=asked.framing if asked.stream else None,
            render=render,
            claude_headers=asked.claude_headers,
            resent=resent,
            on_disconnect=told.on_disconnect,
        )

    async def _stream(self, send: Send, exchange: Exchange) -> None:
        stream = sse.EventStream(
            send,
            lambda: exchange.headers,
            exchange.opened,
            status_wait_s=self._parts.settings.status_wait_s,
            keepalive=self._dialect.keepalive,
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


class MessagesEndpoint(TurnEndpoint):
    """``POST /v1/messages``."""

    async def _prepared(self, scope: Scope, receive: Receive) -> _Prepared:
        raw = await self._read(scope, receive)
        body = parse_json(raw)
        key = idempotency.key_of(scope)
        if self._address(scope, None, key) is None:
            return self._passed_on(scope, raw, body, key)
        del raw  # before it is made into something else that is as large
        return self._translated(scope, body)

    def _passed_on(self, scope: Scope, raw: bytes, body: Any, key: str | None) -> _Prepared:
        if not isinstance(body, dict):
            raise BatonError("invalid_value", "The body must be a JSON object.")
        _told(scope, None, key, self._parts.settings)
        session_input(scope)
        stream = messages.is_streamed(body)
        exchange = Passage(
            self._parts.claude,
            "/v1/messages",
            unaliased(self._parts.settings, raw, body),
            passed_headers(scope),
            streamed=stream,
            deadline_s=self._parts.rules.deadline_s,
        )
        _tell_ignored(scope, exchange, None, [])
        return _Prepared(exchange, stream, None)


def _told(scope: Scope, address: Address | None, key: str | None, settings: Settings) -> _Told:
    """What the headers say; a request without a session, where most of it means nothing, may not say nonsense either.

    Raises:
        BatonError: invalid_value.
    """
    expected = addressing.expected_turn(header(scope, b"x-expect-turn"))
    if expected and (address is None or address.mode == "create"):
        raise BatonError("invalid_value", "X-Expect-Turn needs a session that exists.", param="X-Expect-Turn")
    given = header(scope, b"x-session-on-conflict")
    on_conflict = chosen("X-Session-On-Conflict", given, ON_CONFLICT, settings.on_conflict)
    given = header(scope, b"x-session-on-disconnect")
    # Who gives a request a key means to come back for its answer.
    default: OnDisconnect = settings.on_disconnect if key is None else "continue"
    on_disconnect = chosen("X-Session-On-Disconnect", given, ON_DISCONNECT, default)
    given = header(scope, b"x-session-prefix")
    strict = chosen("X-Session-Prefix", given, PREFIXES, settings.prefix) == "strict"
    return _Told(expected, on_conflict, on_disconnect, strict)


def unaliased(settings: Settings, raw: bytes, body: dict[str, Any]) -> bytes:
    """A body that is passed on, with the model that its alias stands for."""
    aliases, model = settings.model_aliases, body.get("model")
    return with_model(raw, aliases[model]) if isinstance(model, str) and model in aliases else raw


def passed_headers(scope: Scope) -> dict[str, str]:
    """What of a stateless request's headers Claude should see.

    Raises:
        BatonError: invalid_value.
    """
    version = header(scope, b"anthropic-version")
    if version is not None and not (version.isascii() and version.isprintable()):
        raise BatonError("invalid_value", "anthropic-version is a date.", param="anthropic-version")
    return betas(scope) if version is None else {"anthropic-version": version, **betas(scope)}


async def _whole(send: Send, exchange: Exchange) -> None:
    await exchange.end()
    if exchange.error is not None:
        raise exchange.error
    await send_json(send, exchange.whole(), headers=exchange.headers)


def _tell_ignored(scope: Scope, exchange: Exchange, address: Address | None, ignored: list[str]) -> None:
    meaningless = NOT_FORWARDED if address is not None else (*NOT_FORWARDED, *_OF_SESSIONS)
    if left_out := present(scope, meaningless) + ignored:
        exchange.headers["x-baton-ignored"] = ", ".join(left_out)


def is_resent(scope: Scope, asked: Asked) -> bool:
    """Whether the request holds the whole conversation; without a word about it, if it holds an answer."""
    in_header = session_input(scope)
    if in_header is not None and asked.session_input not in (None, in_header):
        raise BatonError("invalid_value", "The body's session_input and X-Session-Input differ.", param="session_input")
    match in_header or asked.session_input:
        case None:
            return any(message["role"] == "assistant" for message in asked.ask.messages)
        case "delta":
            if asked.ask.messages[-1]["role"] == "assistant":
                raise ends_with_answer()
            return False
    return True


def session_input(scope: Scope) -> str | None:
    """What the header says of the messages; None without it.

    Raises:
        BatonError: invalid_value.
    """
    given = header(scope, b"x-session-input")
    return None if given is None else chosen("X-Session-Input", given, ("delta", "full"), "full")
