"""Checkpoints in the store: a summary that stands for a session's oldest messages.

The messages stay where they are; a checkpoint only says how many of the oldest ones need not be sent. Its life:

    none ──claim──> claimed ──checkpoint──> stored ──claim──> claimed ──…──> stored, next version
                       │                       │
                       ├─ its end comes: the next claim takes it over, by a generation of its own
                       └─ a rewind cuts into what it covers: the claim is void  │
                                               └─ a rewind cuts into it: none, and what was claimed of it is void

Storing is a compare-and-set on the claim, with (version, generation) as it was answered. The claim's end decides
nothing: it only keeps others from paying for the same summary. Whoever comes late stores if nobody has claimed since,
else nothing.

What a crash leaves: before the claim nothing; between claim and storing a claim that runs out; then a checkpoint.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from redis.asyncio import Redis

from storage.keys import SessionRef
from storage.replies import read_checkpoint, read_claim
from storage.results import Claimed, Covered, Denied, Gone, Held, Moved
from storage.scripts import OnCall, ScriptRunner, nobody

CLAIM_MS_MAX: Final = 900_000
"""No claim may be longer (scripts/shared/claimed.lua)."""
WISHES: Final = ("tokens_target", "instructions", "policy")
TEXTS: Final = ("checkpoint", *WISHES)
"""The texts of a session, key 5 of storage/README.md, that are about checkpoints; `WISHES` are what a caller says."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What stands for the oldest messages.

    Attributes:
        version: counts up with each that is stored in the session.
        covers: for so many messages.
        summary: opaque to the store.
    """

    version: int
    covers: int
    summary: bytes


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a session says about its context.

    Attributes:
        tokens_target: it is compacted when its context is larger; 0 for what the model's window says.
        instructions: what is to be kept, beside what is kept anyway; may be empty.
        context_policy: what is done where it does not fit, opaque; empty for what the deployment says.
    """

    tokens_target: int = 0
    instructions: str = ""
    context_policy: str = ""


UNSAID: Final = Wishes()
"""Nothing in particular."""


@dataclass(frozen=True, slots=True)
class Account:
    """What a session's hash tells of its checkpoint, and what all of them have cost.

    Attributes:
        version: of the last one, even if it is there no more; 0 before the first.
        covers: so many messages; 0 if there is none.
        created_ms: when it was stored; 0 if there is none.
        tokens: of its summary.
        input_tokens, output_tokens: that summaries of this session have cost in all.
    """

    version: int = 0
    covers: int = 0
    created_ms: int = 0
    tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


NO_ACCOUNT: Final = Account()
"""Before the first checkpoint."""
_ACCOUNT: Final = ("kv", "ku", "kc", "kt", "ki", "ko")


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a summary: how large it is, and what it took to make it, in tokens."""

    summary_tokens: int
    input_tokens: int
    output_tokens: int


def read_texts(texts: Sequence[bytes | None]) -> tuple[Checkpoint | None, Wishes]:
    """What the values of `TEXTS` say, in their order."""
    j = dict(zip(TEXTS, texts, strict=True))
    return read_checkpoint_text(j["checkpoint"] or b""), read_wishes(j)


def read_account(s: Mapping[str, bytes]) -> Account:
    """What the fields of a session say; a session may be older than they are."""
    return Account(*(int(s.get(name, b"0")) for name in _ACCOUNT))


def read_wishes(j: Mapping[str, bytes | None]) -> Wishes:
    """What the texts of a session say, by their names."""
    instructions, policy = ((j.get(name) or b"").decode() for name in ("instructions", "policy"))
    return Wishes(int(j.get("tokens_target") or b"0"), instructions, policy)


def read_checkpoint_text(packed: bytes) -> Checkpoint | None:
    """As checkpoint.lua wrote it: version and covered messages in the first line, then the summary; None if empty."""
    if not packed:
        return None
    numbers, _, summary = packed.partition(b"\n")
    version, covers = map(int, numbers.split())
    return Checkpoint(version, covers, summary)


class Checkpoints:
    """Claims and stores checkpoints.

    Args:
        redis: see connect.py.
        budget_s: how long one operation may take in all.
        on_call: see scripts.py.
    """

    def __init__(self, redis: Redis, *, budget_s: float, on_call: OnCall = nobody) -> None:
        self._scripts = ScriptRunner(redis, on_call=on_call)
        self._budget_s = budget_s

    async def claim(
        self, ref: SessionRef, nonce: str, *, head: str, covers: int, claim_ms: int
    ) -> Claimed | Held | Covered | Moved | Denied | Gone:
        """Takes the right to make the next checkpoint; see scripts/claim.lua.

        Args:
            ref: the session, as who acts addresses it.
            nonce: new; no white space.
            head: of the messages that were read.
            covers: how many of them the checkpoint will stand for.
            claim_ms: how long nobody else is to make one; at most `CLAIM_MS_MAX`.
        """
        args = (nonce, head, covers, claim_ms)
        return read_claim(await self._scripts.act("claim", ref, args, budget_s=self._budget_s))

    async def store(self, ref: SessionRef, claimed: Claimed, summary: bytes, cost: Cost) -> int | None:
        """Makes a summary the session's checkpoint; its version, None if its time has passed. See checkpoint.lua.

        Nobody's role is asked for: who has claimed may store.
        """
        tokens = (cost.summary_tokens, cost.input_tokens, cost.output_tokens)
        args = (ref.id, claimed.nonce, claimed.version, claimed.generation, summary, *tokens)
        return read_checkpoint(await self._scripts.run("checkpoint", ref.keys, args, budget_s=self._budget_s))
