"""What of a session's requests stays the same from turn to turn, and what becomes of a change; pure.

In front of its messages a request has a *preamble*: system prompt, tools and thinking rules. Claude's prompt cache
works on a prefix that is the same byte by byte, and models that preserve thinking refuse a thinking block whose prefix
is another. So preamble and model are kept for a span of turns, the *epoch*, and a change is met in one of two ways:

    another system prompt   is told in a message of role ``system`` behind the new messages, where the model takes that;
                            the epoch goes on, and so does its top-level system prompt
    anything else           begins a new epoch: the new preamble is sent, thinking of older epochs and system prompts
                            that were told in them are left out; what is stored stays

Absent in a request means as in the session: its system prompt (which may have been patched) and its tools, and, while
the model is the same, its thinking rules. How thinking is displayed makes no difference.

Where Claude refuses a signature all the same, a new epoch begins there for good. Stored with the session are the
preamble and a hash of each of its parts and of the model, in one word; the message that tells another system prompt is
marked in its element, so that a rewind takes it back with the rest of its turn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, NamedTuple, Protocol

import orjson

from service.model_table import Traits
from storage import elements
from storage.turns import History

NOTHING: Final = (b"", b'""', b"[]")
"""System prompts that say nothing; one of them is asked for to have none."""
PARTS: Final = ("model", "system", "tools", "thinking")
"""What an epoch depends on, in the order of its hash."""
REFUSED: Final = "refused"
"""The reason of an epoch that began because Claude refused a signature."""


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


@dataclass(frozen=True, slots=True)
class Epoch:
    """The epoch that a turn belongs to.

    Attributes:
        preamble: sent with it.
        hash: of model and preamble.
        start: index of the epoch's first message; thinking before it is left out.
        reasons: of `PARTS` those that began it with this turn, or `REFUSED`; none if it goes on, or is the first.
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


def decide(wanted: Wanted, standing: Standing, history: History, traits: Traits, *, refused: bool = False) -> Epoch:
    """The epoch of a session's next turn.

    Args:
        wanted: by its request.
        standing: the session.
        history: its messages and what is stored with them.
        traits: of the model.
        refused: Claude has refused a signature of the epoch as it would go on.
    """
    stored = unpacked(history.preamble)
    before = standing.epoch_hash.split(".") if standing.epoch_hash else []
    same_model = before[:1] == [_hash(wanted.model.encode())]
    system = wanted.system or history.system_json
    tools = wanted.tools or stored.tools
    thinking = wanted.thinking or (stored.thinking if same_model else b"")
    preamble = Preamble(system, tools, thinking)
    hashes = hashes_of(wanted.model, preamble)
    if not before or not standing.messages:
        return Epoch(preamble, ".".join(hashes), 0, (), system, b"")
    in_effect = _in_effect(history.elements[standing.epoch_start :], stored.system)
    new_system = _unmarked(system)
    changed = [part for part, old, new in zip(PARTS, before, hashes, strict=False) if old != new and part != "system"]
    if len(before) != len(PARTS):
        changed = list(PARTS)
    is_new = new_system != in_effect and not (new_system in NOTHING and in_effect in NOTHING)
    tellable = is_new and traits.system_messages and new_system not in NOTHING
    if refused or changed or (is_new and not tellable):
        reasons = [REFUSED] if refused else [*changed, *(["system"] if is_new and "system" not in changed else [])]
        return Epoch(preamble, ".".join(hashes), standing.messages, tuple(reasons), system, b"")
    kept = preamble._replace(system=stored.system)
    told = b'{"role":"system","content":%b}' % new_system if is_new else b""
    return Epoch(kept, ".".join(hashes_of(wanted.model, kept)), standing.epoch_start, (), system, told)


def hashes_of(model: str, preamble: Preamble) -> list[str]:
    """A short hash of each of `PARTS`."""
    thinking = _without_display(preamble.thinking)
    return [_hash(part) for part in (model.encode(), preamble.system, preamble.tools, thinking)]


def _hash(part: bytes) -> str:
    return blake2b(part, digest_size=6).hexdigest()


def _without_display(thinking: bytes) -> bytes:
    if b'"display"' not in thinking:
        return thinking
    rules: dict[str, Any] = orjson.loads(thinking)
    return orjson.dumps({name: value for name, value in rules.items() if name != "display"})


def _in_effect(epoch: Sequence[bytes], system: bytes) -> bytes:
    """The system prompt that Claude goes by: the last one told in the epoch, else the one on top."""
    told = next((element for element in reversed(epoch) if elements.tells_system(element)), None)
    if told is None:
        return _unmarked(system)
    return orjson.dumps(orjson.loads(told[elements.HEADER_BYTES :])["content"])


def _unmarked(system: bytes) -> bytes:
    """A system prompt without markers for the prompt cache: they are no part of what it says."""
    if b'"cache_control"' not in system:
        return system
    blocks = orjson.loads(system)
    if isinstance(blocks, str):
        return system
    return orjson.dumps([{name: block[name] for name in block if name != "cache_control"} for block in blocks])
