"""Anthropic's Messages API, the answer: Claude's events as they came, or put together to a message; pure.

Source: Anthropic API reference, "Messages" and "Streaming Messages". Nothing is re-modelled: an event is shown with the
JSON that Claude sent, and a message holds whatever Claude's events told of it.
"""

from collections.abc import Sequence
from typing import Any, Final

import orjson

from service.dialects.errors import anthropic_error
from service.errors import BatonError
from service.events import Event
from service.transcript import Answer

FRAMING: Final = "messages"
"""How a stream is framed: whoever follows one must want the same."""
KEEPALIVE: Final = b'event: ping\ndata: {"type": "ping"}\n\n'


def frame(event: Event) -> bytes:
    """One of Claude's events as a server-sent event."""
    return b"event: %b\ndata: %b\n\n" % (event.type.encode(), event.raw)


def failed(error: BatonError) -> bytes:
    """The last event of a stream that fails: without ``message_stop``, nobody may take it for complete."""
    return b"event: error\ndata: %b\n\n" % anthropic_error(error)


def rendering(turn_id: str, created_s: int, answer: Answer) -> "MessagesAnswer":
    """The answer of a turn; its id and times are not told, Claude's own message has its own."""
    return MessagesAnswer(answer)


class MessagesAnswer:
    """One answer as Claude gave it.

    Args:
        answer: what Claude said, as far as it came.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def whole(self) -> bytes:
        """The whole answer as one JSON body."""
        answer = self._answer
        message: dict[str, Any] = {**answer.message, "content": answer.content(), **answer.delta, **answer.beside}
        return orjson.dumps({**message, "usage": answer.usage})

    def frames(self, events: Sequence[Event]) -> list[bytes]:
        """These events, each a whole server-sent event."""
        return [frame(event) for event in events]

    def failed(self, error: BatonError) -> bytes:
        """The last event of a stream that fails."""
        return failed(error)
