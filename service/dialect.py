"""What the one turn endpoint knows of a dialect, and the dialects that it serves.

A dialect reads a request into an `Ask` and says how the answer is to be shown; between the two nothing knows which
dialect it is. How each is translated is in `dialects/`, a module or two for each.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from starlette.types import Scope

from service.dialects import chat, chat_out, messages, messages_out
from service.errors import BatonError
from service.exchange import Render
from service.headers import header, header_list
from service.models import Models
from service.prefix import Ask
from service.settings import Settings
from service.sse import COMMENT_KEEPALIVE


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as its dialect read it.

    Attributes:
        ask: in Anthropic's terms.
        stream: whether the answer is wanted as it comes.
        session, session_input: what the body itself says of the session and of the messages; None where nothing.
        ignored: what was left out.
        claude_headers: for Claude, in the place of the SDK's own.
        framing: how a stream of it is framed.
        render: makes the answer's rendering, given what the caller calls the session (None without one).
    """

    ask: Ask
    stream: bool
    session: str | None
    session_input: str | None
    ignored: list[str]
    claude_headers: Mapping[str, str]
    framing: str
    render: Callable[[str | None], Render]


class Dialect(Protocol):
    """A wire protocol that callers may speak."""

    @property
    def name(self) -> str:
        """For turn records, and for telling requests apart."""

    @property
    def keepalive(self) -> bytes:
        """A frame that means nothing."""

    def failed(self, error: BatonError) -> bytes:
        """The last server-sent event of a stream that fails."""

    def read(self, scope: Scope, body: Any) -> Asked:
        """A request body that was JSON.

        Raises:
            BatonError: 400 naming the parameter.
        """


class Chat:
    """OpenAI's chat completions."""

    name: Final = "chat"
    keepalive: Final = COMMENT_KEEPALIVE

    def __init__(self, settings: Settings, models: Models) -> None:
        self._settings = settings
        self._models = models

    def failed(self, error: BatonError) -> bytes:
        """As `Dialect`."""
        return chat_out.failed(error)

    def read(self, scope: Scope, body: Any) -> Asked:
        """As `Dialect`."""
        request = chat.parse(
            body,
            default_model=self._settings.default_model,
            aliases=self._settings.model_aliases,
            model_of=self._models.of,
        )
        return Asked(
            request.ask,
            request.stream,
            request.session,
            request.session_input,
            request.ignored,
            claude_headers={},
            framing=chat_out.framing(include_usage=request.include_usage, reasoning=request.reasoning),
            render=lambda session: partial(
                chat_out.rendering,
                session=session,
                include_usage=request.include_usage,
                reasoning=request.reasoning,
            ),
        )


class Messages:
    """Anthropic's messages, where they belong to a session."""

    name: Final = "messages"
    keepalive: Final = messages_out.KEEPALIVE

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def failed(self, error: BatonError) -> bytes:
        """As `Dialect`."""
        return messages_out.failed(error)

    def read(self, scope: Scope, body: Any) -> Asked:
        """As `Dialect`."""
        request = messages.parse(
            body,
            version=header(scope, b"anthropic-version"),
            default_model=self._settings.default_model,
            aliases=self._settings.model_aliases,
        )
        return Asked(
            request.ask,
            request.stream,
            session=None,
            session_input=None,
            ignored=request.ignored,
            claude_headers=betas(scope),
            framing=messages_out.FRAMING,
            render=lambda session: messages_out.rendering,
        )


def offered(settings: Settings, models: Models) -> dict[str, Dialect]:
    """All dialects, by name."""
    return {dialect.name: dialect for dialect in (Chat(settings, models), Messages(settings))}


def betas(scope: Scope) -> dict[str, str]:
    """The betas of Claude's API that a caller asks for: each header of that name, in one.

    Raises:
        BatonError: invalid_value, for more than a header can be.
    """
    named = header_list(scope, b"anthropic-beta")
    if named is not None and not (named.isascii() and named.isprintable()):
        raise BatonError("invalid_value", "anthropic-beta is a list of names.", param="anthropic-beta")
    return {"anthropic-beta": named} if named else {}
