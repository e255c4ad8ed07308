"""Pure: the seal on a thinking block, made and verified. It is the block's `signature`, or a redacted block's `data`.

A seal tells which model made the block, a digest of the text that was returned with it, a digest of all the model had
read and written before (prompt.py), without thinking, and which thinking block was the last before. A keyed digest over
these makes it one that nobody else can make. The key is a constant, so any simulator verifies what any other made, and
none has to remember anything.

What is verified, in a conversation sent to the model that made the block:

- it is a seal of a simulator's, and the text is the one that was returned with it (empty, where it was withheld);
- on models with preserved thinking: system, tools and every earlier block are the same as then;
- on these also: of the thinking blocks, those that are sent are neighbours, as they were made: the oldest may be left
  out, or all, but none between two others.

What another model made is dropped in silence, as Claude does.
"""

import base64
import binascii
import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from service.simulator.errors import invalid
from service.simulator.models import Model
from service.simulator.prompt import DIGEST_BYTES, Chain, Part, Prompt

KEY = b"the simulator's thinking, known to everybody"
NOTHING = bytes(DIGEST_BYTES)
THINKING = ("thinking", "redacted_thinking")
FIELD = {"thinking": "signature", "redacted_thinking": "data"}
# Redacted or not, before, last, text; behind them the model's id, then the keyed digest.
FORM = struct.Struct(f"?{DIGEST_BYTES}s{DIGEST_BYTES}s{DIGEST_BYTES}s")


@dataclass(frozen=True, slots=True)
class Seal:
    """What a seal tells.

    Attributes:
        redacted: whether it is a redacted block's.
        before: the digest of what was read and written before the block.
        last: the proof of the thinking block before it; zeros if it was the first.
        text: the digest of the block's text.
        proof: the keyed digest; it stands for the block in the next one's `last`.
    """

    model: str
    redacted: bool
    before: bytes
    last: bytes
    text: bytes
    proof: bytes = b""

    def sealed(self) -> "Seal":
        """The same with its proof."""
        return replace(self, proof=_digest(self._plain(), KEY))

    def render(self) -> str:
        """Return the seal as it travels."""
        return base64.b64encode(self._plain() + self.proof).decode()

    def _plain(self) -> bytes:
        return FORM.pack(self.redacted, self.before, self.last, self.text) + self.model.encode()


class Sealer:
    """Seals the thinking blocks of one answer, in order.

    Args:
        prompt: what the answer is to.
    """

    def __init__(self, prompt: Prompt) -> None:
        self._model = prompt.model
        self._chain = Chain(prompt.model)
        self._last = NOTHING
        for part in prompt.parts:
            if _thinks(part):
                self._last = _read(part.block).proof  # the rules have read it before
            else:
                self._chain.add(part.role, part.block)

    def seal(self, text: str, *, redacted: bool) -> str:
        """Return the seal of the next thinking block.

        Args:
            text: as it is returned: empty where it is withheld or redacted.
            redacted: whether it is a `redacted_thinking` block.
        """
        seal = Seal(self._model, redacted, self._chain.digest, self._last, _digest(text.encode())).sealed()
        self._last = seal.proof
        return seal.render()

    def pass_over(self, block: dict[str, Any]) -> None:
        """Note a block of the answer that is no thinking: what follows is bound to it."""
        self._chain.add("assistant", block)


def _thinks(part: Part) -> bool:
    return part.role == "assistant" and part.block["type"] in THINKING


def verify(prompt: Prompt, model: Model) -> Prompt:
    """Judge the thinking blocks of a conversation.

    Returns:
        The prompt without what other models made.

    Raises:
        ApiError: 400 naming the block whose seal does not hold.
    """
    if not any(map(_thinks, prompt.parts)):
        return prompt
    parts = tuple(_own(prompt.parts, model))
    if model.preserved_thinking:
        _verify_order(parts, model)
    return replace(prompt, parts=parts)


def _own(parts: Iterable[Part], model: Model) -> Iterator[Part]:
    """Pass on all but the thinking of other models, having looked at each seal by itself."""
    for part in parts:
        if _thinks(part):
            seal = _read_or_refuse(part)
            if seal.model != model.id:
                continue
            redacted, text = part.block["type"] == "redacted_thinking", part.block.get("thinking", "")
            if (seal.redacted, seal.text) != (redacted, _digest(text.encode())):
                _refuse(part)
        yield part


def _verify_order(parts: tuple[Part, ...], model: Model) -> None:
    chain = Chain(model.id)
    last: bytes | None = None
    for part in parts:
        if not _thinks(part):
            chain.add(part.role, part.block)
            continue
        seal = _read(part.block)
        if seal.before != chain.digest or last not in (None, seal.last):
            _refuse(part, bound=True)
        last = seal.proof


def _read_or_refuse(part: Part) -> Seal:
    try:
        return _read(part.block)
    except ValueError:
        _refuse(part)


def _read(block: dict[str, Any]) -> Seal:
    """Take a seal apart.

    Raises:
        ValueError: it is none of a simulator's.
    """
    try:
        raw = base64.b64decode(block[FIELD[block["type"]]], validate=True)
        redacted, before, last, text = FORM.unpack_from(raw)
        model = raw[FORM.size : -DIGEST_BYTES].decode()
    except (binascii.Error, struct.error, UnicodeError) as exc:
        raise ValueError("not a seal") from exc
    seal = Seal(model, redacted, before, last, text).sealed()
    if seal.proof != raw[-DIGEST_BYTES:]:
        raise ValueError("not a seal")
    return seal


def _refuse(part: Part, *, bound: bool = False) -> NoReturn:
    kind = part.block["type"]
    message = f"{part.path}: Invalid `{FIELD[kind]}` in `{kind}` block."
    if bound:
        message += (
            " The block is bound to a different conversation: the system prompt, the tools, an earlier message or an "
            "earlier thinking block is not what it was when the block was made."
        )
    raise invalid(message)


def _digest(data: bytes, key: bytes = b"") -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES, key=key).digest()
