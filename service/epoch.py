"""What of a session's requests stays the same from turn to turn, and what becomes of a change; pure.

In front of its messages a request has a *preamble*: system prompt, tools and thinking rules. Claude's prompt cache
works on a prefix that is the same byte by byte, and models that preserve thinking refuse a thinking block whose prefix
is another. So preamble and model are kept for a span of turns, the *epoch*, and a change is met in one of two ways:

    another system prompt   is told in a message of role ``system`` behind the new messages, where the model takes that;
                            the epoch goes on, and so does its top-level system prompt
    anything else           begins a new epoch: the new preamble is sent, thinking of older epochs and system prompts
                            that were told in them are left out; what is stored stays. With a model that does not
                            bind its thinking to the prefix only another model does; the preamble changes all the same

Absent in a request means as in the session: its system prompt (which may have been patched) and its tools, and, while
the model is the same, its thinking rules. What means the same is not changed, and is sent as it is stored.

A checkpoint changes what stands before every message behind it: a new one, or one that is there no more, begins a new
epoch with every model.

Where Claude refuses a signature all the same, a new epoch begins there for good. Stored with the session are the
preamble and a hash of each of its parts and of the model, and the checkpoint's version, in one word; the message that
tells another system prompt is marked in its element, so that a rewind takes it back with the rest of its turn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, NamedTuple, Protocol

import orjson

from service.model_table import Traits
from storage import elements
from storage.checkpoints import Checkpoint
from storage.turns import History

NOTHING: Final = (b"", b'""', b"[]")
"""System prompts that say nothing; one of them is asked for to have none."""
CHECKPOINT: Final = "checkpoint"
"""The reason of an epoch that began with another checkpoint, or none any more."""
PARTS: Final = ("model", "system", "tools", "thinking", CHECKPOINT)
"""What an epoch depends on, in the order of its hash."""
REFUSED: Final = "refused"
"""The reason of an epoch that began because Claude refused a signature."""
CONTEXT: Final = "context"
"""The reason of one that began because the oldest messages are left out from then on."""


class Standing(Protocol):
    """What a session knows of its epoch."""

    @property
    def messages(self) -> int:
        """How many it holds."""

    @property
    def epoch_hash(self) -> str:
        """Of the last turn; empty before the first."""

    @property
    def epoch_start(self) -> int:
        """Index of the epoch's first message."""


class Preamble(NamedTuple):
    """System prompt, tools and thinking rules as JSON; empty for none."""

    system: bytes
    tools: bytes
    thinking: bytes

    def packed(self) -> bytes:
        """As it is stored: the lengths of the first two, and then all three."""
        return b"%d %d\n" % (len(self.system), len(self.tools)) + b"".join(self)


def unpacked(stored: bytes) -> Preamble:
    """The preamble of a session; an empty one before its first turn."""
    if not stored:
        return Preamble(b"", b"", b"")
    lengths, _, rest = stored.partition(b"\n")
    system, tools = map(int, lengths.split())
    return Preamble(rest[:system], rest[system : system + tools], rest[system + tools :])


def is_of(epoch_hash: str, model: str) -> bool:
    """Whether the epoch of this hash is one of this model's; a session's own model may have been changed since."""
    return epoch_hash.split(".")[0] == _hash(model.encode())


@dataclass(frozen=True, slots=True)
class Epoch:
    """The epoch that a turn belongs to.

    Attributes:
        preamble: sent with it.
        hash: of model and preamble.
        start: index of the epoch's first message; thinking before it is left out.
        reasons: of `PARTS` those that changed, or `REFUSED`, or `CONTEXT`; none in the first epoch.
        system: that the session has from now on.
        told: the message that tells another system prompt; empty if there is nothing to tell.
    """

    preamble: Preamble
    hash: str
    start: int
    reasons: tuple[str, ...]
    system: bytes
    told: bytes


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request says of the preamble; empty where it says nothing."""

    model: str
    system: bytes
    tools: bytes
    thinking: bytes


def decide(
    wanted: Wanted,
    standing: Standing,
    history: History,
    traits: Traits,
    checkpoint: Checkpoint | None = None,
    *,
    because: str = "",
) -> Epoch:
    """The epoch of a session's next turn.

    Args:
        wanted: by its request.
        standing: the session.
        history: its messages and what is stored with them.
        traits: of the model.
        checkpoint: in effect.
        because: `REFUSED` or `CONTEXT`, if the epoch cannot go on whatever is wanted.
    """
    stored = unpacked(history.preamble)
    before = (standing.epoch_hash.split(".") + [""] * len(PARTS))[: len(PARTS)]
    model = _hash(wanted.model.encode())
    system = _kept(wanted.system, history.system_json)
    tools = _kept(wanted.tools, stored.tools)
    thinking = _kept(wanted.thinking, stored.thinking if before[0] == model else b"")
    asked = Preamble(system, tools, thinking)
    version = str(checkpoint.version) if checkpoint is not None else ""
    if not standing.epoch_hash or not standing.messages:
        return Epoch(asked, _hashes(model, asked, stored, before, version), 0, (), system, b"")
    told_before = _last_told(history.elements[standing.epoch_start :])
    in_effect = _meaning(stored.system if told_before is None else told_before)
    is_new = _meaning(system) != in_effect
    tellable = traits.system_messages and _meaning(system) != b""
    changed = [] if before[0] == model else ["model"]
    changed += ["tools"] if tools != stored.tools else []
    changed += ["thinking"] if before[0] == model and not _is_same(thinking, stored.thinking) else []
    changed += ["system"] if is_new and not tellable else []
    changed += [CHECKPOINT] if before[-1] != version else []
    # A model that does not bind its thinking to the prefix keeps it, unless what was told would contradict the top.
    keeps = not traits.preserved_thinking and not {"model", CHECKPOINT} & {*changed}
    keeps = keeps and not ("system" in changed and told_before is not None)
    if because or (changed and not keeps):
        reasons = (because,) if because else tuple(changed)
        hashes = _hashes(model, asked, stored, before, version)
        return Epoch(asked, hashes, standing.messages, reasons, system, b"")
    preamble = asked if "system" in changed else asked._replace(system=stored.system)
    told = b'{"role":"system","content":%b}' % _unmarked(system) if is_new and tellable else b""
    hashes = _hashes(model, preamble, stored, before, version)
    return Epoch(preamble, hashes, standing.epoch_start, tuple(changed), system, told)


def _kept(wanted: bytes, stored: bytes) -> bytes:
    """What is stored, unless something else is wanted: the bytes stay as long as they mean the same."""
    return stored if not wanted or _is_same(wanted, stored) else wanted


def _is_same(one: bytes, other: bytes) -> bool:
    return one == other or _meaning(one) == _meaning(other)


def _meaning(part: bytes) -> bytes:
    """A part of a preamble in one form, whatever the order of fields; empty if it says nothing.

    A text and one block that holds it mean the same to Claude; markers for the prompt cache, and how thinking is
    displayed, mean nothing.
    """
    if part in NOTHING:
        return b""
    value = orjson.loads(part)
    if isinstance(value, str):
        value = [{"type": "text", "text": value}]
    values = [value] if isinstance(value, dict) else value
    plain = [{name: one[name] for name in one if name not in ("cache_control", "display")} for one in values]
    return orjson.dumps(plain, option=orjson.OPT_SORT_KEYS)


def _hashes(model: str, preamble: Preamble, stored: Preamble, before: Sequence[str], version: str) -> str:
    """The epoch's hash. Of a part that is stored already it is known."""
    parts = zip(preamble, stored, before[1 : 1 + len(preamble)], strict=True)
    hashed = (old if part == was and old else _hash(_meaning(part)) for part, was, old in parts)
    return ".".join([model, *hashed, *([version] if version else ())])


def _hash(part: bytes) -> str:
    return blake2b(part, digest_size=6).hexdigest()


def _last_told(epoch: Sequence[bytes]) -> bytes | None:
    """The system prompt that was told last in an epoch; None if none was."""
    told = next((element for element in reversed(epoch) if elements.tells_system(element)), None)
    return None if told is None else orjson.dumps(orjson.loads(told[elements.HEADER_BYTES :])["content"])


def _unmarked(system: bytes) -> bytes:
    """A system prompt without markers for the prompt cache: told, they would become a part of the history."""
    if b'"cache_control"' not in system:
        return system
    blocks = orjson.loads(system)
    if isinstance(blocks, str):
        return system
    return orjson.dumps([{name: block[name] for name in block if name != "cache_control"} for block in blocks])
