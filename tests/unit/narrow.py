"""A session whose model has a small window, in process: its turns go through `Composing`, to the strict stand-in.

The store and Claude are played, the first by the rules of storage/scripts, the second by those of the stand-in. So what
is sent is what a replica sends, with its summaries, and what Claude would refuse is refused.
"""

import asyncio
import gc
from collections.abc import AsyncGenerator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, cast

import orjson

from service.claude import Claude
from service.composing import Composed, Composing
from service.context import checkpoint, word
from service.context.checkpoint import Compaction
from service.context.view import Policy
from service.events import Event
from service.model_table import Model, ModelTable
from service.opening import Rules
from service.prefix import Ask, Prepared
from service.replay import Stored
from service.simulator import rules
from service.transcript import pack
from storage.checkpoints import Checkpoint, Checkpoints, Cost
from storage.keys import Keyspace
from storage.results import Claimed, Covered, Moved
from storage.turns import History, Rewind, Turns, Usage
from tests.unit.claude_events import as_events
from tests.unit.simulated import message_to, read_events, reply_to, stream_text
from tests.unit.test_context_compacted import LOOK, THINKING, Talk
from tests.unit.test_context_size import Counting
from tests.unit.test_prefix import user

Json = dict[str, Any]
LONG = "a line of what was read. " * 40
SUMMARIZER = "claude-haiku-5-5"


@dataclass
class Summarizing(Counting):
    """Claude, who counts and summarizes as the stand-in does.

    Attributes:
        summaries: how many it was asked for.
        requests: how many requests of turns were held, each time that it was.
    """

    summaries: int = 0
    requests: list[int] = field(default_factory=list)

    async def stream(self, body: bytes, headers: Mapping[str, str] = {}) -> AsyncGenerator[list[Event], None]:
        self.summaries += 1
        self.requests.append(sum(isinstance(one, Prepared) for one in gc.get_objects()))
        asked = orjson.loads(body)
        del asked["stream"]
        yield as_events(read_events(stream_text(reply_to(asked))))


class Narrow(Talk):
    """The session.

    Args:
        model: that is asked.
        policy: of the deployment.
        window: of the model, tokens.
        summarizing: the window of the one that summarizes.

    Attributes:
        content: of every result.
        claude: who answers all but its turns.
        composed: the last request.
        strict: whether its callers want no new epoch.
        told: what callers were told while they waited for a summary.
    """

    def __init__(self, model: str, policy: Policy, window: int, summarizing: int = 200_000) -> None:
        super().__init__(model)
        self.policy: Policy = policy
        self.window = window
        self.content: Any = LONG
        self.composed: Composed | None = None
        self.strict = False
        self.told: list[str] = []
        self.claude = Summarizing()
        self._windows = {model: window, SUMMARIZER: summarizing}
        self._ref = Keyspace("baton", 1, bytes(16)).session("0" * 26, "ada")
        self._rewinds_to: int | None = None
        self._claim: tuple[str, int] | None = None

    # What `Composing` asks: of the store, and for its rules.

    def model_of(self, name: str) -> Model:
        """As the Models API tells it."""
        return Model(ModelTable().traits(name), input_tokens_max=self._windows[name])

    async def read(self, _: Any, messages: int, *, begins: int = 0) -> History:
        """As `Turns.history`, with all attachments."""
        assert begins <= len(self.history.elements)
        stored = self.history.elements
        return replace(self.history, elements=stored[:messages], sizes=list(map(len, stored[:messages])))

    async def claim(self, _: Any, nonce: str, *, head: str, covers: int, claim_ms: int, kept: int) -> Any:
        """As claim.lua."""
        before = self.history.checkpoint.covers if self.history.checkpoint is not None else 0
        if head != self.begun.head:
            return Moved(self.begun.head)
        if covers > len(self.history.elements) or covers <= (before if before <= kept else 0):
            return Covered()
        self._claim = nonce, covers
        return Claimed(nonce, self.version, 1)

    async def store(self, _: Any, claimed: Claimed, text: bytes, cost: Cost) -> int:
        """As checkpoint.lua."""
        assert self._claim is not None and self._claim[0] == claimed.nonce
        assert cost.input_tokens
        self.version = claimed.version + 1
        self.history = replace(self.history, checkpoint=Checkpoint(self.version, self._claim[1], text))
        self._claim = None
        return self.version

    # Its turns.

    def rewind(self, kept: int) -> None:
        """The next turn keeps so many messages."""
        self._rewinds_to = kept

    def turn(self, said: str | list[Json], *, system: str | None = None, cut_short: bool = False) -> Json:
        """One turn, with longer results; what was sent.

        Raises:
            BatonError: as `Composing.compose`; the session is as it was.
        """
        if not isinstance(said, str):
            said = [{**block, "content": self.content} if block["type"] == "tool_result" else block for block in said]
        params = {"max_tokens": 4_000, "thinking": THINKING[self.model]}
        ask = Ask(self.model, [user(said)], system, params, tools=[LOOK])
        kept, self._rewinds_to = self._rewinds_to, None
        composed = self.composed = asyncio.run(self._compose(ask, kept))
        assert (composed.rewind is not None) is (kept is not None)
        prepared = composed.fitted.prepared
        body: Json = orjson.loads(prepared.body)
        del body["stream"]
        answer = message_to(body)
        content = answer["content"]
        if cut_short and content[-1]["type"] == "text":
            content[-1]["text"] = content[-1]["text"].split()[0]
        reply = pack([{"role": "assistant", "content": content}], prepared.digest)
        self._commit(composed, reply, answer["usage"]["output_tokens"], body, cut_short=cut_short)
        return body

    def context_tokens(self) -> int:
        """As Claude counted them of the last turn."""
        return word.unpacked(self.begun.context).tokens

    def waiting(self) -> list[str]:
        """The calls of the last answer that the next turn goes on from."""
        return super().waiting() if self._rewinds_to is None else []

    async def _compose(self, ask: Ask, kept: int | None) -> Composed:
        claude = cast(Claude, self.claude)
        compaction = Compaction(
            claude,
            cast(Checkpoints, self),
            checkpoint.Rules(SUMMARIZER, 60.0, 1, automatic=self.policy == "compact", model_of=self.model_of),
        )
        deployment = Rules("r", 1_000, 100_000, 1, 1.0, 60.0, 4_000, "auto", True, self.policy, self.model_of)
        replaced = None if kept is None else Stored({"from": kept}, [])
        composing = Composing(
            claude,
            {},
            cast(Turns, _Reading(self)),
            compaction,
            deployment,
            self._ref,
            strict=self.strict,
            announce=self._announced,
        )
        return await composing.compose(self.begun, ask, resent=False, replaced=replaced)

    def _announced(self, _: Rewind | None, context: str) -> None:
        self.told.append(context)

    def _commit(self, composed: Composed, reply: list[bytes], output: int, sent: Json, *, cut_short: bool) -> None:
        """As commit.lua."""
        prepared, kept = composed.fitted.prepared, composed.begun.messages
        checkpoint = self.history.checkpoint
        self.history = replace(
            self.history,
            system_json=prepared.system_json or self.history.system_json,
            preamble=prepared.preamble or self.history.preamble,
            checkpoint=checkpoint if checkpoint is not None and checkpoint.covers <= kept else None,
        )
        self.goes_on_with([*self.history.elements[:kept], *prepared.elements, *reply])
        read = rules.check_create(sent).prompt.tokens
        left = composed.fitted.left(Usage(input=read, output=output), reply, "msg_1", whole=not cut_short)
        epoch = prepared.epoch
        self.begun = replace(self.begun, epoch_hash=epoch.hash, epoch_start=epoch.start, context=left.packed())


class _Reading:
    """`Turns`, as far as a request needs them."""

    def __init__(self, narrow: Narrow) -> None:
        self.history = narrow.read
        self.running = nullcontext
