"""Whether a session's next request fits the model's window, and what is done where it does not.

The size is estimated (size.py). Where estimate and margin stay inside the window nothing more happens, which is nearly
always. Else Claude is asked to count, and what it counts decides. If it cannot be asked, the estimate stands.

The window is what the Models API tells. While it tells none, a cautious one is assumed, and a request that is larger
goes to Claude all the same: it may be one of a model that takes more.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import orjson

from service import telemetry
from service.claude import Claude
from service.context import word
from service.context.size import Estimate, Media, Size, estimated, media_of, size_of
from service.context.word import Context
from service.errors import BatonError
from service.model_table import Model
from service.prefix import Prepared
from storage.results import Begun
from storage.turns import History, Usage

_COUNT_PATH: Final = "/v1/messages/count_tokens"


@dataclass(frozen=True, slots=True)
class Asking:
    """How a turn's request can be made and counted.

    Attributes:
        claude: who counts.
        headers: for Claude.
        model: that is asked.
        prepare: makes the request.
        count: makes the one that asks for its size.
    """

    claude: Claude
    headers: Mapping[str, str]
    model: Model
    prepare: Callable[[], Prepared]
    count: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A request that fits, as far as anybody can tell.

    Attributes:
        prepared: the request.
        size: of it.
        tokens: that it takes of the window, estimated or counted.
        asked: messages of the history up to its end.
    """

    prepared: Prepared
    size: Size
    tokens: int
    asked: int

    def instead(self, prepared: Prepared) -> "Fitted":
        """Another request of the same turn, which is not larger."""
        return replace(self, prepared=prepared, size=size_of(prepared.body, self.size.media))

    def left(self, usage: Usage, reply: Sequence[bytes], message_id: str | None) -> Context:
        """What the turn leaves when it is committed.

        Args:
            usage: as Claude counted it; nothing, where a gateway does not tell.
            reply: the answer as it is stored, one element or none.
            message_id: of the answer.
        """
        tokens = usage.input + usage.cache_read + usage.cache_written
        return Context(
            asked=self.asked,
            messages=self.asked + len(reply),
            tokens=tokens + usage.output if tokens else 0,
            text_bytes=self.size.text_bytes + sum(map(len, reply)),
            media_bytes=self.size.media.size_bytes,
            media_tokens=self.size.media.tokens,
            message_id=word.sound_id(message_id),
        )


def known(begun: Begun, model: str) -> Context:
    """What the last turn left for one that asks this model; what another model has counted says nothing."""
    before = word.unpacked(begun.context)
    return before if begun.model == model else before._replace(tokens=0)


async def fitted(asking: Asking, before: Context, history: History) -> Fitted:
    """The request of a session's next turn.

    Args:
        asking: how it is made.
        before: what the last turn left.
        history: the messages before it.

    Raises:
        BatonError: context_length_exceeded; as `prefix.continued`.
    """
    prepared = asking.prepare()
    asked = len(history.elements) + len(prepared.elements)
    measured = size_of(prepared.body, _media(before, history, prepared))
    estimate = estimated(measured, before)
    window = asking.model.window_tokens
    if estimate.tokens + estimate.margin <= window:
        return Fitted(prepared, measured, estimate.tokens, asked)
    tokens = await _counted(asking, estimate)
    if tokens > window and asking.model.input_tokens_max is not None:
        raise BatonError(
            "context_length_exceeded",
            f"prompt is too long: {tokens} tokens > {window} maximum",  # Claude's words, that clients look for
            param="messages",
        )
    return Fitted(prepared, measured, tokens, asked)


def _media(before: Context, history: History, prepared: Prepared) -> Media:
    """The media of a request: of what the last turn has measured it is known, unless some of that was rewound."""
    known = 0 < before.messages <= len(history.elements)
    measured = Media(before.media_bytes, before.media_tokens) if known else Media()
    old = history.elements[before.messages if known else 0 :]
    return measured + media_of(old) + media_of(prepared.elements)


async def _counted(asking: Asking, estimate: Estimate) -> int:
    try:
        answer = await asking.claude.whole(_COUNT_PATH, asking.count(), asking.headers)
    except BatonError as error:
        telemetry.log.warning("tokens_not_counted", code=error.code)
        return estimate.tokens
    counted = orjson.loads(answer)["input_tokens"]
    return counted if type(counted) is int else estimate.tokens
