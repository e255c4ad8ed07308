"""The size of a session's next request: estimated, and counted only where the window is near."""

import asyncio
import base64
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import orjson
import pytest

from service.claude import Claude
from service.context import fit, size, word
from service.context.caching import PLAINLY
from service.context.fit import Asking, Fitted
from service.context.size import Media
from service.context.view import WHOLE, Policy
from service.context.word import UNKNOWN, Context
from service.errors import BatonError
from service.model_table import NEWEST, WINDOW_TOKENS, Model
from service.prefix import continued, counted, last_digest
from service.simulator import rules
from service.transcript import pack
from storage.checkpoints import Checkpoint
from storage.turns import Usage
from tests.unit.test_prefix import Session, asking, assistant, text, user

pytestmark = pytest.mark.anyio

Json = dict[str, Any]
MODEL = "claude-sonnet-5-5"
WORDS = "What was said before is only read again. "
PICTURE: Json = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk" * 100_000}}
PDF = base64.b64encode(b"%PDF-1.7" + bytes(40_000)).decode()
PAGES: Json = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": PDF}}
NOTE: Json = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": WORDS * 10}}


@dataclass
class Counting:
    """Claude, who counts as the stand-in does; or fails, or says something else."""

    fails: bool = False
    hangs: bool = False
    says: bytes = b""
    asked: list[bytes] = field(default_factory=list)

    async def whole(self, path: str, body: bytes, _: Mapping[str, str]) -> bytes:
        assert path == "/v1/messages/count_tokens"
        self.asked.append(body)
        if self.fails:
            raise BatonError("upstream_overloaded", "no")
        if self.hangs:
            await asyncio.Event().wait()
        if self.says:
            return self.says
        return orjson.dumps({"input_tokens": rules.check_count(orjson.loads(body))})


class Measured(Session):
    """A session that knows its size; each turn's answer is 40 words."""

    def __init__(self, window: int | None = 1_000_000, policy: Policy = "error") -> None:
        super().__init__()
        self.claude = Counting()
        self.policy = policy
        self.model = Model(NEWEST, input_tokens_max=window)
        self.before = UNKNOWN

    async def fit(self, said: Any, **fields: Any) -> Fitted:
        ask = asking("", model=MODEL, **fields)
        ask.messages[0] = user(said)
        new = pack(ask.messages, last_digest(self.history))
        arguments = (ask, self.begun, self.history, new, NEWEST)
        asking_it = Asking(
            cast(Claude, self.claude),
            {},
            self.model,
            self.policy,
            1_000,
            partial(continued, *arguments, PLAINLY),
            partial(counted, *arguments),
        )
        return await fit.fitted(asking_it, self.before, self.history)

    async def say(self, said: Any, **fields: Any) -> tuple[int, int]:
        """A turn; tokens as they were thought, and as they are."""
        fitted = await self.fit(said, **fields)
        tokens = rules.check_create(orjson.loads(fitted.prepared.body)).prompt.tokens
        ask = asking("", model=MODEL, **fields)
        ask.messages[0] = user(said)
        answer = text("word " * 40)
        self.turn(ask, answer)
        reply = pack([assistant(answer)], fitted.prepared.digest)
        left = fitted.left(Usage(input=tokens, output=50), reply, "msg_1")
        assert left.messages == len(self.history.elements)
        self.before = word.unpacked(left.packed())
        return fitted.tokens, tokens


async def test_an_estimate_is_calibrated_by_the_session() -> None:
    session = Measured()
    thought, is_so = await session.say(WORDS * 50)
    assert thought > 1.2 * is_so, "nothing known, and not cautious"
    for number in range(1, 8):
        thought, is_so = await session.say(WORDS * 30 * number)
        assert thought == pytest.approx(is_so, rel=0.06)
    assert session.claude.asked == []


async def test_another_language_has_a_rate_of_its_own() -> None:
    dense = Context(tokens=9_000, text_bytes=10_000, messages=2)
    sparse = dense._replace(tokens=2_000)
    measured = size.Size(12_000, Media())
    assert size.estimated(measured, dense).tokens == 10_800
    assert size.estimated(measured, sparse).tokens == 2_400
    assert size.estimated(measured, dense._replace(tokens=0)).tokens == 4_800
    assert size.estimated(measured, dense).margin < size.estimated(measured, dense, anew=True).margin == 2_700
    assert size.rate_of(Context(tokens=999, text_bytes=999)) == size.rate_of(UNKNOWN)
    assert size.rate_of(Context(tokens=10**6, text_bytes=1000)) == 1.0


@pytest.mark.parametrize(
    "block", [PICTURE, {"type": "image", "source": {"type": "url", "url": "https://e.com/a"}}, PAGES, NOTE]
)
async def test_media_do_not_cost_by_their_bytes(block: Json) -> None:
    session = Measured()
    await session.say(WORDS * 100)
    for _ in range(2):
        thought, is_so = await session.say([block, text("What is this?")])
        assert thought == pytest.approx(is_so, rel=0.15)
    thought, is_so = await session.say(WORDS * 50)
    assert thought == pytest.approx(is_so, rel=0.08)


def test_media_are_found_in_results_too_and_nowhere_else() -> None:
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [PICTURE, text("seen")]}
    code = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"source": {"type": "base64", "data": "x"}}}
    picture = Media(len(PICTURE["source"]["data"]), 1_600)
    assert size.media_of(pack([user([result])], bytes(8))) == picture
    assert size.media_of(pack([assistant(code), user('"source"')], bytes(8))) == Media()
    assert size.media_of(pack([user([PICTURE, PICTURE])], bytes(8))) == picture + picture
    three_pages = {**PAGES, "source": {**PAGES["source"], "data": "x" * 170_000}}
    assert size.media_of(pack([user([three_pages])], bytes(8))) == Media(170_000, 9_000)


async def test_after_a_rewind_the_media_that_went_are_forgotten() -> None:
    session = Measured()
    await session.say(WORDS * 100)
    kept = session.history
    await session.say([PICTURE, text("What is this?")])
    before_the_cut = await session.fit("And now?")
    session.history, session.begun = kept, replace(session.begun, messages=2)
    fitted = await session.fit("And now?")
    tokens = rules.check_create(orjson.loads(fitted.prepared.body)).prompt.tokens
    assert fitted.size.media == Media()
    assert fitted.tokens == pytest.approx(tokens, abs=200)
    assert before_the_cut.tokens > tokens + 1_400


async def test_media_that_a_checkpoint_covers_are_not_sent_and_not_counted() -> None:
    session = Measured()
    for _ in range(2):
        await session.say([PICTURE, text("What is this?")])
    await session.say(WORDS * 800)
    session.history = replace(session.history, checkpoint=Checkpoint(1, 4, b"There were pictures."))
    thought, is_so = await session.say(WORDS * 50)
    assert session.before.media_bytes == 0
    assert thought == pytest.approx(is_so, rel=0.15)
    for _ in range(2):
        thought, is_so = await session.say(WORDS * 400)
        assert thought == pytest.approx(is_so, rel=0.08)
    await session.say([PICTURE, text("What is this?")])
    assert session.before.media_bytes == len(PICTURE["source"]["data"])


async def test_a_summary_counts_in_what_a_view_that_moves_may_take() -> None:
    session = Measured(window=10_000, policy="truncate")
    for _ in range(12):
        await session.say(WORDS * 40)
    session.history = replace(session.history, checkpoint=Checkpoint(1, 2, b"It was said. " * 500))
    fitted = await session.fit(WORDS * 350)
    assert fitted.view.moved
    assert rules.check_create(orjson.loads(fitted.prepared.body)).prompt.tokens <= 6_000


async def test_claude_counts_only_where_the_window_is_near() -> None:
    session = Measured(window=10_000)
    await session.say(WORDS * 800)  # 8,200 tokens
    session.claude.asked.clear()
    assert (await session.fit("Hi")).tokens < 9_000
    assert session.claude.asked == []
    near = await session.fit(WORDS * 150)
    [body] = session.claude.asked
    assert near.tokens == rules.check_count(orjson.loads(body)) <= 10_000
    assert near.tokens == rules.check_create(orjson.loads(near.prepared.body)).prompt.tokens


async def test_what_does_not_fit_is_refused_in_claudes_words() -> None:
    session = Measured(window=10_000)
    await session.say(WORDS * 800)
    with pytest.raises(BatonError) as caught:
        await session.fit(WORDS * 400)
    assert caught.value.code == "context_length_exceeded"
    tokens = rules.check_count(orjson.loads(session.claude.asked[-1]))
    assert caught.value.message == f"prompt is too long: {tokens} tokens > 10000 maximum"


async def test_where_nobody_counts_only_what_cannot_fit_is_refused() -> None:
    session = Measured(window=10_000)
    await session.say(WORDS * 800)
    session.claude.fails = True
    assert (await session.fit(WORDS * 100)).tokens < 10_000
    assert 10_000 < (await session.fit(WORDS * 190)).tokens < 10_500, "it may fit: that is for Claude to say"
    with pytest.raises(BatonError):
        await session.fit(WORDS * 400)


@pytest.mark.parametrize("says", [b"<html>", b"[]", b"{}", b'{"input_tokens":"many"}'])
async def test_a_gateway_that_counts_in_other_words_is_as_one_that_does_not(says: bytes) -> None:
    session = Measured(window=10_000)
    await session.say(WORDS * 800)
    session.claude.says = says
    assert (await session.fit(WORDS * 150)).tokens < 10_000
    assert session.claude.asked


async def test_a_count_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "_COUNT_WAIT_S", 0.01)
    session = Measured(window=10_000)
    await session.say(WORDS * 800)
    session.claude.hangs = True
    async with asyncio.timeout(5):
        assert (await session.fit(WORDS * 150)).tokens < 10_000


@pytest.mark.parametrize("policy", ["error", "truncate"])
async def test_a_window_that_nobody_told_refuses_nothing_and_leaves_nothing_out(policy: Policy) -> None:
    session = Measured(window=None, policy=policy)
    for _ in range(2):
        await session.say(WORDS * 12_000)
    fitted = await session.fit(WORDS)
    assert fitted.tokens > WINDOW_TOKENS
    assert fitted.view == WHOLE
    assert session.claude.asked == []


def test_what_another_model_counted_is_no_help() -> None:
    session = Session()
    session.turn(asking("Hi", model="a"), text("Hello."))
    left = Context(1, 2, 0, 0, 100, 400, 8, 1_600, "msg_1")
    begun = replace(session.begun, model="b", context=left.packed())  # patched since
    assert fit.known(begun, "a") == left
    assert fit.known(begun, "b") == left._replace(tokens=0)


@pytest.mark.parametrize(
    ("messages", "epoch_start", "begins"),
    [(10, 8, 6), (9, 8, 6), (8, 8, 0), (7, 7, 0), (6, 6, 0), (2, 2, 0), (0, 0, 0)],
)
def test_behind_the_move_of_a_view_a_rewind_brings_all_back(messages: int, epoch_start: int, begins: int) -> None:
    """At message 8 the view moved to 6. What is cut off there says nothing of how much fits now."""
    left = Context(9, 10, 6, 0, 100, 400)
    begun = replace(Session().begun, messages=messages, epoch_start=epoch_start, context=left.packed())
    assert fit.known(begun, MODEL).begins == begins


def test_a_turn_whose_gateway_counts_nothing_leaves_no_tokens() -> None:
    fitted = Fitted(Session().prepare(asking("Hi")), size.Size(100, Media()), 40, 1, WHOLE)
    assert fitted.left(Usage(), [b"12345"], None) == Context(1, 2, 0, 0, 0, 105, 0, 0, "")
    assert fitted.left(Usage(input=1, output=2, cache_read=3, cache_written=4), [], "msg_1").tokens == 10


def test_an_answer_that_was_cut_short_was_not_counted_and_is_estimated() -> None:
    """Claude said one token when it began, and what it wrote is sent again."""
    fitted = Fitted(Session().prepare(asking("Hi")), size.Size(4_000, Media()), 1_000, 1, WHOLE)
    cut = fitted.left(Usage(input=1_000, output=1), [b"x" * 40_000], "msg_1", whole=False)
    assert (cut.messages, cut.tokens, cut.text_bytes) == (2, 1_000, 4_000)
    assert size.estimated(size.Size(44_400, Media()), cut).tokens == 11_100


def test_what_a_turn_leaves_is_read_by_the_next() -> None:
    left = Context(3, 4, 2, 1, 5, 6, 7, 8, "msg_1")
    for one in (left, left._replace(message_id=""), UNKNOWN):
        assert word.unpacked(one.packed()) == one
    for other in (
        "",
        "1 3 4 2 5 6 7 8 msg_1",  # of an older version
        "1 3 4 2 1 5 6 7 8 msg_1",
        "2 x 4 2 1 5 6 7 8 msg_1",
        "2 3 4 2 5 6 7 8 msg_1",
        f"2 {'9' * 5_000} 4 2 1 5 6 7 8 x",
    ):
        assert word.unpacked(other) == UNKNOWN
    assert [word.sound_id(id) for id in ("msg_01Ab-c", "a b", "x" * 101, None, "")] == ["msg_01Ab-c", "", "", "", ""]
