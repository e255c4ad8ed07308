"""``POST /v1/messages/count_tokens``: how large a request would be; with a session, how large its next turn would be.

Counting begins nothing: it takes no lease, changes nothing of the session and does not prolong its life. A name that is
not there yet is a session without messages. A turn that is committed meanwhile is counted, or it is not.
"""

from dataclasses import dataclass, replace
from typing import Final

from starlette.types import Receive, Scope, Send

from service import access, addressing, idempotency, prefix, resend, sse, tool_calls
from service.addressing import Address
from service.asgi import send_json
from service.bodies import read_body
from service.context import word
from service.context.view import View
from service.context.word import UNKNOWN, Context
from service.dialect import Asked, Dialect
from service.endpoint import NOT_FORWARDED, Parts, is_resent, passed_headers, session_input, unaliased
from service.errors import BatonError, session_exists, session_not_found
from service.headers import header, present
from service.parsing import parse_json
from service.passage import Passage
from service.stored import stored
from storage.results import Gone
from storage.sessions import Snapshot
from storage.turns import History

_PATH: Final = "/v1/messages/count_tokens"
_OF_TURNS: Final = (
    *("Idempotency-Key", "X-Expect-Turn", "X-Session-On-Conflict", "X-Session-On-Disconnect", "X-Session-Prefix"),
)


@dataclass(frozen=True, slots=True)
class _Standing:
    """A session as it stands for the turn that is counted."""

    messages: int = 0
    epoch_hash: str = ""
    epoch_start: int = 0
    model: str = ""
    context: Context = UNKNOWN


class CountTokens:
    """The endpoint.

    Args:
        parts: of the replica.
        dialect: Anthropic's.
    """

    def __init__(self, parts: Parts, dialect: Dialect) -> None:
        self._parts = parts
        self._dialect = dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        parts = self._parts
        parts.exchanges.admit()
        exchange, ignored = await self._asked(scope, receive)
        parts.exchanges.start(exchange)
        async with sse.watching(receive, exchange.hang_up):
            await exchange.end()
        if exchange.error is not None:
            raise exchange.error
        left_out = present(scope, (*NOT_FORWARDED, *_OF_TURNS)) + ignored
        told = {"x-baton-ignored": ", ".join(left_out)} if left_out else {}
        await send_json(send, exchange.whole(), headers=told)

    async def _asked(self, scope: Scope, receive: Receive) -> tuple[Passage, list[str]]:
        """What Claude is to be asked, and what was left out; of what the request brought nothing else is held.

        Raises:
            BatonError: why nothing is asked.
        """
        parts, settings = self._parts, self._parts.settings
        raw = await read_body(scope, receive, settings)
        body = parse_json(raw)
        if not isinstance(body, dict):
            raise BatonError("invalid_value", "The body must be a JSON object.")
        address = addressing.of_request(
            parts.store.sessions.keyspace,
            access.principal(scope),
            in_body=None,
            in_header=header(scope, b"x-session-id"),
            mode=header(scope, b"x-session-mode"),
            idempotency_key=None,
        )
        ignored: list[str] = []
        if address is None:
            session_input(scope)
            asked, said = unaliased(settings, raw, body), passed_headers(scope)
        else:
            await parts.watch.require()
            idempotency.canonical(body)  # refuses what could not be written again
            read = self._dialect.read(scope, body)
            asked, said = await self._next_turn(address, read, resent=is_resent(scope, read)), dict(read.claude_headers)
            ignored = read.ignored
        exchange = Passage(parts.claude, _PATH, asked, said, streamed=False, deadline_s=parts.rules.deadline_s)
        return exchange, ignored

    async def _next_turn(self, address: Address, read: Asked, *, resent: bool) -> bytes:
        """The request that asks how large a session's next turn would be.

        Raises:
            BatonError: session_not_found, session_exists, history_mismatch, store_unavailable; as `prefix.counted`.
        """
        standing, history = await stored(self._standing(address))
        ask = read.ask
        if not ask.model_named and standing.model:
            ask = replace(ask, model=standing.model)
        if resent:
            turns = self._parts.store.turns
            plan, rewind = await stored(resend.recognise(turns, address.ref, history, ask.messages))
            ask = replace(ask, messages=plan.new)
            if rewind is not None:
                kept = rewind.messages
                standing = replace(standing, messages=kept, epoch_start=min(standing.epoch_start, kept))
                history = await stored(resend.cut(turns, address.ref, history, kept))
        new = tool_calls.pack(history.elements, ask.messages, prefix.last_digest(history))
        view = View(word.behind_cut(standing.context, standing.messages, standing.epoch_start).begins)
        return prefix.counted(ask, standing, history, new, self._parts.rules.model_of(ask.model).traits, view)

    async def _standing(self, address: Address) -> tuple[_Standing, History]:
        store = self._parts.store
        found: Snapshot | Gone = await store.sessions.get(address.ref)
        if isinstance(found, Gone):
            if address.mode == "continue":
                raise session_not_found()
            return _Standing(), History([], b"", b"")
        if address.mode == "create":
            raise session_exists()
        history = await store.turns.history(address.ref, found.messages)
        context = word.unpacked(found.context)
        return _Standing(len(history.elements), found.epoch_hash, found.epoch_start, found.model, context), history
