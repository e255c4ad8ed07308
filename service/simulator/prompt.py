"""Pure: a request → the blocks of its prompt in the order Claude reads them, their digests and their size.

The order is tools, system, messages. Whatever does not change what Claude reads does not change a digest: a string and
one text block that holds it are the same, neighbouring messages of one role are one, a field that is `null` is absent,
the order of a block's own fields is nothing, and `cache_control` is taken off. Inside a tool's schema or a call's input
everything counts, the order of the keys too.

The size is an estimate: a token per four bytes of text, rounded up for the whole prompt. Counted are the strings
without field names and without the values of `type`, `role`, `signature` and `cache_control`, so that a string and a
text block holding it count the same. An image counts 1,500 tokens and a document that is not given as text 3,000,
whatever is in them; redacted thinking counts nothing.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from service.simulator.errors import invalid

BYTES_PER_TOKEN = 4
IMAGE_BYTES = 1500 * BYTES_PER_TOKEN
DOCUMENT_BYTES = 3000 * BYTES_PER_TOKEN
DIGEST_BYTES = 16
UNCOUNTED = frozenset({"type", "role", "signature", "cache_control"})
OPAQUE_SOURCES = ("base64", "url", "file")


@dataclass(frozen=True, slots=True)
class Part:
    """One block of a prompt.

    Attributes:
        path: where it stands in the request.
        role: `tools`, `system`, `user` or `assistant`; of messages of the role `system`, `system_message`.
        block: as received; a string is a text block.
        size: its share of the estimate, in bytes.
    """

    path: str
    role: str
    block: dict[str, Any]
    size: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """All a model is given to read.

    Attributes:
        model: the id of the model.
        parts: in the order they are read.
    """

    model: str
    parts: tuple[Part, ...]

    @property
    def tokens(self) -> int:
        """The estimate of the input tokens."""
        return math.ceil(sum(part.size for part in self.parts) / BYTES_PER_TOKEN)


class Chain:
    """A digest of everything added so far: equal if and only if the same blocks were added in the same order.

    Args:
        model: what the model reads is nothing to any other.
    """

    def __init__(self, model: str) -> None:
        self.digest = _digest(model.encode())

    def add(self, role: str, block: dict[str, Any]) -> bytes:
        """Add a block and return the new digest.

        Raises:
            ApiError: 400, for a block nested deeper than any JSON library of the trade goes.
        """
        self.digest = _digest(b"".join((self.digest, role.encode(), _canonical(block))))
        return self.digest


def read(body: dict[str, Any]) -> Prompt:
    """Take a request that the rules on fields and messages accepted apart."""
    return Prompt(body["model"], tuple(Part(path, role, block, size(block)) for path, role, block in _blocks(body)))


def _blocks(body: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for index, tool in enumerate(body.get("tools") or ()):
        yield f"tools.{index}", "tools", tool
    if system := body.get("system"):
        yield from _content(system, "system", "system")
    for index, message in enumerate(body["messages"]):
        role = "system_message" if message["role"] == "system" else message["role"]
        yield from _content(message["content"], f"messages.{index}.content", role)


def _content(content: Any, path: str, role: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    if isinstance(content, str):
        yield path, role, {"type": "text", "text": content}
    else:
        for index, block in enumerate(content):
            yield f"{path}.{index}", role, block


def size(value: Any) -> int:
    """Estimate the size of a block, or of anything in it, in bytes of text.

    Cost: linear, and iterative: how deep a block nests is the caller's choice.
    """
    total = 0
    pending: list[Any] = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            total += len(value) if value.isascii() else len(value.encode())
        elif isinstance(value, list):
            pending.extend(value)
        elif isinstance(value, dict):
            kind, source = value.get("type"), value.get("source")
            if kind == "redacted_thinking":
                continue
            opaque = isinstance(source, dict) and source.get("type") in OPAQUE_SOURCES
            if opaque and kind in ("image", "document"):
                total += IMAGE_BYTES if kind == "image" else DOCUMENT_BYTES
            pending.extend(v for k, v in value.items() if k not in UNCOUNTED and not (opaque and k == "source"))
    return total


def _canonical(block: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps({name: _unmarked(block[name]) for name in sorted(block) if _counts(name, block[name])})
    except TypeError as exc:
        raise invalid("The request body is nested too deeply") from exc


def _counts(name: str, value: Any) -> bool:
    return name != "cache_control" and value is not None


def _unmarked(value: Any) -> Any:
    """The blocks inside a block (of a tool's result, of a document) are canonical, too."""
    if not isinstance(value, list):
        return value
    return [
        {name: item[name] for name in sorted(item) if _counts(name, item[name])} if _is_block(item) else item
        for item in value
    ]


def _is_block(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("type"), str)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()
