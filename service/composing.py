"""From the lease to the request: what of a session Claude is sent for a turn.

    read       the history, as far as it will be sent (reading.py)
    rewind     where a resent conversation parts from it, or an incomplete turn is replaced, it ends earlier
    new        this turn's messages, with open tool calls closed
    fit        what of it all is sent (context/fit.py)
    compact    with the policy ``compact``, where it does not fit: a checkpoint is made now, and it is fitted once more

Nothing is written but, in the last step, a checkpoint: it is the session's, whatever becomes of the turn. Who waits for
one is told so at once: the header `X-Baton-Context` names it, and the response may begin, since a summary takes longer
than most are ready to wait for a status line.

What a crash of this replica leaves is in turn.py's line 3, and of the checkpoint in context/checkpoint.py.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from service import reading, resend, telemetry, tool_calls
from service.claude import Claude
from service.context import caching, compacted, fit, view
from service.context.checkpoint import Compaction, Occasion
from service.context.fit import Asking, Fitted, TooLong
from service.context.size import rate_of, size_of_messages
from service.epoch import CHECKPOINT
from service.errors import CLAUDE_BYTES_MAX, BatonError, prefix_changed
from service.model_table import Model
from service.opening import Rules
from service.prefix import Ask, Prepared, continued, counted, last_digest, with_length
from service.replay import Stored
from service.stored import stored
from storage.checkpoints import Checkpoint
from storage.keys import SessionRef
from storage.results import Begun
from storage.tracebacks import let_go
from storage.turns import History, Rewind, Turns

_TOO_LARGE: Final = ("context_length_exceeded", "request_too_large")
_SURE: Final = 0.75
"""Of an estimate of tokens: so much there is in any case."""
_KEPT_SHARE: Final = 0.3
"""Of the window, that the turns may have which a checkpoint in the request's way leaves as they are."""


@dataclass(frozen=True, slots=True)
class Composed:
    """A turn's request, and what committing its answer must know.

    Attributes:
        begun: the session as the turn goes on from it: without what it rewinds.
        rewind: what it rewinds.
        history: the messages that it goes on from.
        ask: as it is asked: with a model and a length, without messages, which are elements by now.
        fitted: the request.
        again: makes it once more (`prefix.continued`, with its keywords).
        context: what is told of it in `X-Baton-Context`; empty if all is sent.
    """

    begun: Begun
    rewind: Rewind | None
    history: History
    ask: Ask
    fitted: Fitted
    again: Callable[..., Prepared]
    context: str

    def instead(self, prepared: Prepared) -> "Composed":
        """Another request of the same turn, which is not larger."""
        return replace(self, fitted=self.fitted.instead(prepared))


class Composing:
    """Makes the requests of a session's turns.

    Args:
        claude: who counts tokens.
        claude_headers: for Claude.
        turns: where the history is.
        compaction: makes checkpoints.
        rules: of this replica.
        ref: the session.
        strict: see `permitted`.
        announce: told what will be rewound, and what `X-Baton-Context` will say, before a summary is waited for.
    """

    def __init__(
        self,
        claude: Claude,
        claude_headers: Mapping[str, str],
        turns: Turns,
        compaction: Compaction,
        rules: Rules,
        ref: SessionRef,
        *,
        strict: bool,
        announce: Callable[[Rewind | None, str], None],
    ) -> None:
        self._claude = claude
        self._claude_headers = claude_headers
        self._turns = turns
        self._compaction = compaction
        self._rules = rules
        self._ref = ref
        self._strict = strict
        self._announce = announce

    async def compose(self, begun: Begun, ask: Ask, *, resent: bool, replaced: Stored | None) -> Composed:
        """The request of a turn that has the lease.

        Args:
            begun: the session as it stands.
            ask: what the caller asks.
            resent: it holds the whole conversation.
            replaced: an earlier turn, incomplete, that this one stands for.

        Raises:
            BatonError: what makes the turn fail; nothing of it is stored.
        """
        if not ask.model_named and begun.model:
            ask = replace(ask, model=begun.model)
        begun, history, ask, rewind = await self._gone_on_from(begun, ask, resent=resent, replaced=replaced)
        new = tool_calls.pack(history.elements, ask.messages, last_digest(history))
        model = self._rules.model_of(ask.model)
        # Its messages are in the elements now, and a turn may take long.
        ask = replace(with_length(ask, model.answer_tokens(self._rules.max_tokens_default)), messages=[])
        before = fit.known(begun, ask.model)
        use = caching.next_use(
            self._rules.cache_life, begun.idle_ms, before, begun.messages, diagnosed=self._rules.cache_diagnosed
        )
        policy = view.policy(history.wishes.context_policy, self._rules.context_policy)
        made = False
        while True:
            arguments = (ask, begun, history, new, model.traits)
            asking = Asking(
                self._claude,
                self._claude_headers,
                model,
                policy,
                ask.answer_tokens,
                prepare=partial(self._prepared, *arguments, use),
                count=partial(counted, *arguments),
            )
            try:
                fitted = await fit.fitted(asking, before, history)
                break
            except BatonError as error:
                if error.code not in _TOO_LARGE or policy != "compact":
                    raise
                refusal = error
            let_go(refusal)  # and with it of the request, which is not held while a summary is waited for
            rate = refusal.rate if isinstance(refusal, TooLong) else rate_of(before)
            checkpoint = await self._compacted(begun, rewind, history, new, model, rate)
            if checkpoint is None:
                raise refusal
            history, made = replace(history, checkpoint=checkpoint), True
        told = _told(history.checkpoint, made=made) + fitted.view.told(_covers(history.checkpoint))
        return Composed(
            begun, rewind, history, ask, fitted, partial(continued, *arguments, use, fitted.view), ", ".join(told)
        )

    def _prepared(self, *arguments: Any) -> Prepared:
        """As `prefix.continued`, with its arguments; what a strict caller would not have is refused before it costs."""
        return permitted(continued(*arguments), strict=self._strict)

    async def _gone_on_from(
        self, begun: Begun, ask: Ask, *, resent: bool, replaced: Stored | None
    ) -> tuple[Begun, History, Ask, Rewind | None]:
        """The session and its messages as the turn goes on from them, and of what is asked that which is new."""
        read = time.perf_counter()
        rewind = None
        with self._turns.running():
            history = await reading.read(self._turns, self._ref, begun.messages, begun.context, begun.epoch_start)
            if resent:
                plan, rewind = await stored(resend.recognise(self._turns, self._ref, history, ask.messages))
                ask = replace(ask, messages=plan.new)
        if replaced is not None and not resent:
            rewind = resend.back_to(replaced.record["from"], history, turns_dropped=1)
        telemetry.PHASE_SECONDS["history"].observe(time.perf_counter() - read)
        if rewind is not None:
            kept, start = rewind.messages, min(begun.epoch_start, rewind.messages)
            history = await reading.up_to(self._turns, self._ref, history, kept, begun.context, start)
            begun = replace(begun, messages=kept, epoch_start=start)
        in_effect = compacted.in_effect(history.checkpoint, len(history.elements))
        return begun, replace(history, checkpoint=in_effect), ask, rewind

    async def _compacted(
        self, begun: Begun, rewind: Rewind | None, history: History, new: Sequence[bytes], model: Model, rate: float
    ) -> Checkpoint | None:
        """A checkpoint that covers more; None if none would help, or there is nothing more that one could cover.

        Args:
            begun: the session.
            rewind: what the turn rewinds.
            history: that it goes on from.
            new: its messages.
            model: that is asked.
            rate: tokens a byte of text.

        Raises:
            BatonError: as `Compaction.in_turn`.
        """
        if not _can_fit(history, new, model, rate):
            return None
        occasion = Occasion(self._ref, begun.head, history.elements, history.checkpoint, history.wishes)
        # Of the end so much is kept; where there is no more than that, it is not what can be kept.
        keep_bytes = round(_KEPT_SHARE * model.window_tokens / rate)
        behind_bytes = compacted.text_bytes(history.elements[occasion.covered :])
        plan = await self._compaction.plan_for_turn(occasion, keep_bytes if behind_bytes > keep_bytes else 0)
        if plan is None:
            return None
        self._announce(rewind, _compact(plan.covers))

        async def read() -> Checkpoint | None:
            with self._turns.running():
                found = (await self._turns.history(self._ref, 0)).checkpoint
            return compacted.in_effect(found, len(history.elements))

        return await stored(self._compaction.in_turn(occasion, plan, read))


def permitted(prepared: Prepared, *, strict: bool) -> Prepared:
    """The same.

    Args:
        prepared: a turn's request.
        strict: its caller wants no new epoch, but for one that a checkpoint begins.

    Raises:
        BatonError: prefix_changed.
    """
    if strict and (changed := [reason for reason in prepared.epoch.reasons if reason != CHECKPOINT]):
        raise prefix_changed(changed)
    return prepared


def _can_fit(history: History, new: Sequence[bytes], model: Model, rate: float) -> bool:
    """Whether a turn that does not fit may do so with another checkpoint: with what none can cover, that is."""
    cut = compacted.last_cut(history.elements, _covers(history.checkpoint))
    if cut is None:
        return False
    size = size_of_messages([*history.elements[cut:], *new])
    tokens = _SURE * (rate * size.text_bytes + size.media.tokens)
    return tokens < model.window_tokens and size.text_bytes + size.media.size_bytes < CLAUDE_BYTES_MAX


def _covers(checkpoint: Checkpoint | None) -> int:
    return checkpoint.covers if checkpoint is not None else 0


def _compact(covers: int) -> str:
    return f"compact; covers={covers}"


def _told(checkpoint: Checkpoint | None, *, made: bool) -> list[str]:
    if checkpoint is None:
        return []
    return [_compact(checkpoint.covers) if made else f"checkpoint; covers={checkpoint.covers}"]
