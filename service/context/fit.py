"""Whether a session's next request fits the model's window, and what is done where it does not.

The size is estimated (size.py). Where estimate and margin stay inside the window nothing more happens, which is nearly
always. Else Claude is asked to count, and what it counts decides. If it cannot be asked, what may fit is sent: Claude
refuses it for nothing if it does not, and what was left out of a view would not come back.

What does not fit is refused, or made to fit: with the policy `truncate` the oldest exchanges leave the view (view.py),
with `clear_tool_results` results of old tool calls go before these (clearing.py). The bytes that Claude takes in one
request are a bound as its window is, but for being known without asking.

The window is what the Models API tells. While it tells none every request goes to Claude as it is: it may be one of a
model that takes more than any number that could be assumed here.
"""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import orjson

from service import epoch, telemetry
from service.claude import Claude
from service.context import clearing, word
from service.context.compacted import summary_message
from service.context.size import Media, Size, estimated, media_of, rate, size_of
from service.context.view import KEPT_SHARE, SHORTENING, Policy, View, standing
from service.context.word import UNKNOWN, Context
from service.epoch import CHECKPOINT
from service.errors import CLAUDE_BYTES_MAX, BatonError, conversation_too_large
from service.model_table import Model
from service.prefix import Prepared
from storage.results import Begun
from storage.turns import History, Usage

_COUNT_PATH: Final = "/v1/messages/count_tokens"
_COUNT_WAIT_S: Final = 10.0  # for all attempts: the caller waits for the answer, not for its size
_ANSWER_SHARE: Final = 0.05  # of the window, at most, that a shortened conversation leaves to the answer


@dataclass(frozen=True, slots=True)
class Asking:
    """How a turn's request can be made and counted.

    Attributes:
        claude: who counts.
        headers: for Claude.
        model: that is asked.
        policy: of the session, or the deployment's.
        answer_tokens: that the answer may have.
        prepare: makes the request of what is in view.
        count: makes the one that asks for its size.
    """

    claude: Claude
    headers: Mapping[str, str]
    model: Model
    policy: Policy
    answer_tokens: int
    prepare: Callable[[View], Prepared]
    count: Callable[[View], bytes]

    @property
    def limit_tokens(self) -> int:
        """The largest request. Where it may be made smaller there is to be room for an answer, too."""
        window = self.model.window_tokens
        reserve = min(self.answer_tokens, int(window * _ANSWER_SHARE))
        return window if self.policy == "error" else window - reserve


@dataclass(frozen=True, slots=True)
class Fitted:
    """A request that fits, as far as anybody can tell.

    Attributes:
        prepared: the request.
        size: of it.
        tokens: that it takes of the window, estimated or counted.
        asked: messages of the history up to its end.
        view: what of them is sent.
    """

    prepared: Prepared
    size: Size
    tokens: int
    asked: int
    view: View

    def instead(self, prepared: Prepared) -> "Fitted":
        """Another request of the same turn, which is not larger."""
        return replace(self, prepared=prepared, size=size_of(prepared.body, self.size.media))

    def left(self, usage: Usage, reply: Sequence[bytes], message_id: str | None, *, whole: bool = True) -> Context:
        """What the turn leaves when it is committed.

        Args:
            usage: as Claude counted it; nothing, where a gateway does not tell.
            reply: the answer as it is stored, one element or none.
            message_id: of the answer.
            whole: whether the answer came to its end; Claude counts it only there, and else it is new to the next turn.
        """
        tokens = usage.input + usage.cache_read + usage.cache_written
        output, counted = (usage.output, reply) if whole else (0, ())
        return Context(
            asked=self.asked,
            messages=self.asked + len(reply),
            begins=self.view.begins,
            cleared=self.view.cleared,
            tokens=tokens + output if tokens else 0,
            text_bytes=self.size.text_bytes + sum(map(len, counted)),
            media_bytes=self.size.media.size_bytes,
            media_tokens=self.size.media.tokens,
            message_id=word.sound_id(message_id),
        )


class TooLong(BatonError):
    """A request that its model's window is too small for.

    Args:
        tokens: of the request.
        window: of the model.
        size: of the request.

    Attributes:
        rate: tokens that a byte of its text takes.
    """

    def __init__(self, tokens: int, window: int, size: Size) -> None:
        # Claude's words, that clients look for.
        message = f"prompt is too long: {tokens} tokens > {window} maximum"
        super().__init__("context_length_exceeded", message, param="messages")
        self.rate = rate(tokens, size)


def known(begun: Begun, model: str) -> Context:
    """What the last turn left for one that asks this model; what another model has counted says nothing."""
    before = word.behind_cut(word.unpacked(begun.context), begun.messages, begun.epoch_start)
    return before if epoch.is_of(begun.epoch_hash, model) else before._replace(tokens=0)


async def fitted(asking: Asking, before: Context, history: History) -> Fitted:
    """The request of a session's next turn.

    Args:
        asking: how it is made.
        before: what the last turn left.
        history: the messages before it.

    Raises:
        TooLong: for the model's window.
        BatonError: request_too_large, if Claude takes no body of its size; as
            `prefix.continued`.
    """
    knows = asking.model.input_tokens_max is not None
    limit = asking.limit_tokens if knows else math.inf
    request = _measured(asking, standing(before), before, history)
    estimate = estimated(request.size, before, anew=bool(request.prepared.epoch.reasons))
    too_large = len(request.prepared.body) > CLAUDE_BYTES_MAX
    shortens = asking.policy in SHORTENING
    if estimate.tokens + estimate.margin <= limit and not (too_large and shortens):
        return replace(request, tokens=estimate.tokens)
    if too_large and not shortens:
        raise conversation_too_large(len(request.prepared.body))
    counted = None if too_large else await _counted(asking, request.view)
    tokens = estimate.tokens if counted is None else counted
    least = estimate.tokens - estimate.margin if counted is None else counted
    if shortens and (too_large or least > limit):
        a_byte = rate(tokens, request.size)
        view = _narrowed(asking, request, history, a_byte, limit)
        if view.moved:
            request = _measured(asking, view, UNKNOWN, history)
        if len(request.prepared.body) > CLAUDE_BYTES_MAX:
            raise conversation_too_large(len(request.prepared.body))
        if view.moved:
            tokens = least = request.size.media.tokens + int(a_byte * request.size.text_bytes)
            if tokens > KEPT_SHARE * limit:  # there was no place that leaves so little
                counted = await _counted(asking, view)
                tokens = least = tokens if counted is None else counted
    if knows and least > asking.model.window_tokens:
        raise TooLong(tokens, asking.model.window_tokens, request.size)
    return replace(request, tokens=tokens)


def _measured(asking: Asking, view: View, before: Context, history: History) -> Fitted:
    """The request of what is in view, its tokens still to be told."""
    prepared = asking.prepare(view)
    asked = len(history.elements) + len(prepared.elements)
    return Fitted(prepared, size_of(prepared.body, _media(before, history, prepared, view)), 0, asked, view)


def _media(before: Context, history: History, prepared: Prepared, view: View) -> Media:
    """The media of a request: known of what the last turn has measured, unless that was rewound or summarized since."""
    known = 0 < before.messages <= len(history.elements) and CHECKPOINT not in prepared.epoch.reasons
    measured = Media(before.media_bytes, before.media_tokens) if known else Media()
    start = before.messages if known else max(view.begins, _covers(history))
    old = clearing.as_sent(history.elements, start, view.cleared)
    return measured + media_of(old) + media_of(prepared.elements)


def _covers(history: History) -> int:
    """For how many of its messages a summary is sent."""
    return history.checkpoint.covers if history.checkpoint is not None else 0


def _narrowed(asking: Asking, request: Fitted, history: History, rate: float, limit: float) -> View:
    """What is sent in the place of a request that is too large; the same view, if nothing can be done."""
    prepared, view = request.prepared, request.view
    head_bytes = sum(map(len, prepared.epoch.preamble))
    head_bytes += len(summary_message(history.checkpoint)) if history.checkpoint is not None else 0
    return clearing.narrowed(
        history.elements,
        prepared.elements,
        view,
        clearing.room(limit, rate, CLAUDE_BYTES_MAX),
        size=request.size,
        head_bytes=head_bytes,
        covers=_covers(history),
        clears=asking.policy == "clear_tool_results",
    )


async def _counted(asking: Asking, view: View) -> int | None:
    """What Claude counts; None if it cannot be asked, or who answers in its place does not say."""
    try:
        async with asyncio.timeout(_COUNT_WAIT_S):
            answer = await asking.claude.whole(_COUNT_PATH, asking.count(view), asking.headers)
    except TimeoutError:
        telemetry.log.warning("tokens_not_counted", code="upstream_timeout")
        return None
    except BatonError as error:
        telemetry.log.warning("tokens_not_counted", code=error.code)
        return None
    try:
        said = orjson.loads(answer)
    except orjson.JSONDecodeError:
        said = None
    counted = said.get("input_tokens") if isinstance(said, dict) else None
    if type(counted) is int:
        return counted
    telemetry.log.warning("tokens_not_counted", code="upstream_nonsense")
    return None
