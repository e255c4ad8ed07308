"""From the lease to the request: whatever the history and the policy, Claude takes what is sent, or nothing is."""

import gc
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from service.context.view import POLICIES, Policy
from service.errors import BatonError
from service.simulator import rules
from service.simulator.errors import ApiError
from tests.unit.narrow import LONG, Narrow
from tests.unit.test_context_compacted import STEPS, THINKING, TOLD, one_step

Json = dict[str, Any]
PICTURE: Json = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk" * 100}}
CONTENTS: dict[str, Any] = {
    "long": LONG,
    "short": "seen",
    "picture": [PICTURE],
    "blocks": [{"type": "text", "text": LONG}, PICTURE],
}


class Checked(Narrow):
    """The same, and what must hold of every turn."""

    sent: tuple[Json, ...] = ()

    def turn(self, said: str | list[Json], *, system: str | None = None, cut_short: bool = False) -> Json:
        held = self.history.elements
        body = super().turn(said, system=system, cut_short=cut_short)
        assert self.composed is not None
        kept = self.composed.begun.messages
        assert self.history.elements[:kept] == held[:kept], "what is stored stays"
        assert rules.check_create(body).prompt.tokens <= self.window
        if not self.composed.fitted.prepared.epoch.reasons and self.composed.rewind is None:
            assert tuple(body["messages"][: len(self.sent)]) == self.sent, "the same bytes from turn to turn"
        self.sent = tuple(body["messages"])
        return body


@pytest.mark.parametrize("policy", POLICIES)
@settings(deadline=None, max_examples=6, phases=[Phase.reuse, Phase.generate])  # to shrink one takes minutes
@given(
    model=st.sampled_from(sorted(THINKING)),
    summarizing=st.sampled_from([2_000, 200_000]),
    content=st.sampled_from(["long", "long", "short", "picture", "blocks"]),
    steps=st.lists(st.one_of(STEPS, *[st.just("look")] * 3), min_size=20, max_size=40),
    data=st.data(),
)
def test_whatever_the_history_claude_takes_what_is_sent(
    policy: Policy, model: str, summarizing: int, content: str, steps: list[str], data: st.DataObject
) -> None:
    talk = Checked(model, policy, 6_000, summarizing)
    talk.content = CONTENTS[content]
    talk.turn(TOLD)
    for step in steps:
        try:
            for part in ("calls", "results") if step == "look" else (step,):
                one_step(talk, part, data)
        except ApiError as error:
            pytest.fail(f"Claude refused {step}: {error.message}")
        except BatonError as error:
            assert (error.code, policy) == ("context_length_exceeded", "error")


def grown(policy: Policy, window: int = 6_000, **more: Any) -> Narrow:
    """A session that has nearly come to its window."""
    talk = Narrow("claude-sonnet-5-5", policy, window, **more)
    talk.turn(TOLD)
    while talk.context_tokens() < 0.8 * window:
        talk.turn(LONG)
    return talk


def test_a_summary_is_made_once_and_what_is_left_is_known() -> None:
    talk = grown("compact")
    talk.turn(LONG * 6)
    assert talk.claude.summaries == 1
    assert talk.composed is not None and talk.history.checkpoint is not None
    covers = f"covers={talk.history.checkpoint.covers}"
    assert talk.composed.context == talk.told[0] == f"compact; {covers}"
    talk.claude.asked.clear()
    body = talk.turn("What is my name?")
    assert talk.composed.context == f"checkpoint; {covers}"
    assert talk.claude.asked == [], "the estimate is right, and far from the window"
    assert talk.composed.fitted.tokens == pytest.approx(rules.check_create(body).prompt.tokens, rel=0.03)


def test_with_a_small_summarizing_model_it_takes_more_of_them() -> None:
    talk = grown("compact", summarizing=2_000)
    talk.turn(LONG * 18)
    assert talk.claude.summaries > 1
    assert talk.composed is not None
    covers = [int(one.partition("=")[2]) for one in talk.told]
    assert covers == sorted(set(covers)), "each covers more"
    assert talk.composed.context == f"compact; covers={covers[-1]}"


def test_pictures_that_take_the_window_are_covered_at_once() -> None:
    """Their text is less than what is kept of an end otherwise."""
    talk = Narrow("claude-sonnet-5-5", "compact", 12_000)
    while talk.context_tokens() < 10_000:
        talk.turn([PICTURE])
    talk.turn([PICTURE] * 3)
    assert talk.claude.summaries == 1


def test_a_turn_that_rewinds_into_what_is_covered_has_less_summarized() -> None:
    talk = grown("compact")
    talk.turn(LONG * 6)
    for _ in range(2):
        talk.turn(LONG * 6)
    covered = talk.history.checkpoint
    assert covered is not None
    kept = covered.covers - 2
    talk.rewind(kept)
    talk.turn(LONG * 10)
    anew = talk.history.checkpoint
    assert anew is not None and anew.covers <= kept
    assert talk.composed is not None and talk.composed.context == f"compact; covers={anew.covers}"


def test_what_a_strict_caller_would_not_have_costs_no_summary() -> None:
    talk = grown("compact")
    talk.strict = True
    with pytest.raises(BatonError) as refused:
        talk.turn(LONG * 6, system="Be brief.")
    assert (refused.value.code, talk.claude.summaries) == ("prefix_changed", 0)
    talk.turn(LONG * 6)
    assert talk.claude.summaries == 1, "a checkpoint is not the caller's doing"


def test_no_request_is_held_while_a_summary_is_waited_for() -> None:
    talk = grown("compact")
    talk.composed = None
    gc.collect()
    talk.turn(LONG * 6)
    assert talk.claude.requests == [0]
