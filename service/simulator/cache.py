"""The prompt cache: the rules on `cache_control`, and what of a prompt is read from the cache and written to it.

A marker on a block (of tools, system, messages, results) ends a prefix that is to be kept; `cache_control` of the
request itself stands for one on the last block that can have it. Rules: four markers in all; `ttl` is `5m` or `1h`;
what is kept for an hour stands ahead of what is kept for five minutes. A marker inside a tool's result counts as one on
the result.

A prefix is known by its chain of digests (prompt.py), which is of one model's. Each marker looks for the longest kept
prefix that ends at it or at most 19 blocks ahead of it; the longest of all is read, and its life begins anew. What is
between it and the last marker is written, each piece for the life its marker asks for. A prefix shorter than the
model's minimum is neither read nor written, and nothing says so. Unlike Claude's, this cache looks at no other field of
the request (`tool_choice`, `thinking`), and does not tell accounts apart.

The cache lives in the process and forgets what was used longest ago when it is full.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from service.simulator.errors import invalid
from service.simulator.models import Model
from service.simulator.prompt import BYTES_PER_TOKEN, Chain, Part, Prompt

MARKERS_MAX = 4
LOOKBACK_BLOCKS = 20
ENTRIES_MAX = 10_000
LIFE_S = {"5m": 300.0, "1h": 3600.0}
UNMARKABLE = ("thinking", "redacted_thinking")


@dataclass(frozen=True, slots=True)
class Marker:
    """One end of a prefix to be kept: the index of its part, and `5m` or `1h`."""

    index: int
    ttl: str


@dataclass(frozen=True, slots=True)
class InputUsage:
    """The input side of a usage object.

    Attributes:
        uncached: what was neither read from the cache nor written to it.
        read: from the cache.
        written_5m: to the cache, for five minutes.
        written_1h: the same for an hour.
    """

    uncached: int
    read: int = 0
    written_5m: int = 0
    written_1h: int = 0


def check_control(value: Any, path: str) -> None:
    """Judge one `cache_control`, wherever it stands.

    Raises:
        ApiError: 400 naming what is wrong.
    """
    if value is None:
        return
    if not isinstance(value, dict):
        raise invalid(f"{path}: Input should be an object")
    if value.get("type") != "ephemeral":
        raise invalid(f"{path}.type: Input should be 'ephemeral'")
    if not isinstance(ttl := value.get("ttl", "5m"), str) or ttl not in LIFE_S:
        raise invalid(f"{path}.ttl: Input should be '5m' or '1h'")
    for name in value:
        if name not in ("type", "ttl"):
            raise invalid(f"{path}.{name}: Extra inputs are not permitted")


def markers(prompt: Prompt, automatic: dict[str, Any] | None) -> list[Marker]:
    """Find and judge the markers of an accepted request.

    Args:
        prompt: its blocks.
        automatic: `cache_control` of the request itself.

    Returns:
        The markers, first to last; one per block at most.

    Raises:
        ApiError: 400: too many, or in an order that cannot be kept.
    """
    found = [(index, *mark) for index, part in enumerate(prompt.parts) for mark in _marks(part)]
    if automatic is not None:
        found.extend(_automatic(prompt, found, automatic))
    if len(found) > MARKERS_MAX:
        raise invalid(f"A maximum of {MARKERS_MAX} blocks with cache_control may be provided. Found {len(found)}.")
    found.sort(key=lambda mark: mark[0])
    for (_, _, before), (_, path, ttl) in pairwise(found):
        if (before, ttl) == ("5m", "1h"):
            raise invalid(
                f"{path}.cache_control.ttl: a ttl='1h' cache_control block must not come after a ttl='5m' "
                "cache_control block. Note that blocks are processed in the following order: `tools`, `system`, "
                "`messages`."
            )
    return list({index: Marker(index, ttl) for index, _, ttl in found}.values())


def _marks(part: Part) -> Iterator[tuple[str, str]]:
    """Yield path and ttl of each marker on a block and on the blocks of a result."""
    if control := part.block.get("cache_control"):
        yield part.path, control.get("ttl", "5m")
    if part.block.get("type") == "tool_result" and isinstance(part.block.get("content"), list):
        for index, inner in enumerate(part.block["content"]):
            if control := inner.get("cache_control"):
                yield f"{part.path}.content.{index}", control.get("ttl", "5m")


def _automatic(
    prompt: Prompt, found: list[tuple[int, str, str]], control: dict[str, Any]
) -> Iterator[tuple[int, str, str]]:
    """Yield the automatic marker, unless its block has one of its own that says the same."""
    ttl = control.get("ttl", "5m")
    index = max(
        (index for index, part in enumerate(prompt.parts) if part.block.get("type") not in UNMARKABLE), default=None
    )
    if index is None:
        return
    own = next((mark for mark in found if mark[0] == index), None)
    if own is None:
        yield index, prompt.parts[index].path, ttl
    elif own[2] != ttl:
        raise invalid(f"cache_control.ttl: the last block asks for another ttl by itself ('{own[2]}', not '{ttl}')")


class Cache:
    """The prefixes that are kept.

    Args:
        clock: seconds that only go forward.
        entries_max: how many prefixes are kept.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, entries_max: int = ENTRIES_MAX) -> None:
        self._clock = clock
        self._entries_max = entries_max
        self._entries: OrderedDict[bytes, tuple[float, float]] = OrderedDict()  # digest → end and length of its life

    def __len__(self) -> int:
        return len(self._entries)

    def use(self, prompt: Prompt, marks: list[Marker], model: Model) -> InputUsage:
        """Read what is kept of a prompt, write what its markers ask for, and say what that was.

        Args:
            prompt: as the rules returned it.
            marks: its markers, first to last.
            model: decides from which size a prefix is kept.
        """
        total = prompt.tokens
        if not marks or total < model.cache_tokens_min:
            return InputUsage(total)
        digests, tokens = _prefixes(prompt, marks[-1].index)
        marks = [mark for mark in marks if tokens[mark.index] >= model.cache_tokens_min]
        hit = max((index for mark in marks if (index := self._find(digests, mark.index)) is not None), default=None)
        done = read = tokens[hit] if hit is not None else 0
        written = dict.fromkeys(LIFE_S, 0)
        for mark in marks:
            written[mark.ttl] += max(0, tokens[mark.index] - done)
            done = max(done, tokens[mark.index])
            self._keep(digests[mark.index], LIFE_S[mark.ttl])
        if hit is not None:
            self._keep(digests[hit], 0)
        return InputUsage(total - done, read, written["5m"], written["1h"])

    def _find(self, digests: list[bytes], end: int) -> int | None:
        """The last of the blocks a marker looks at where a prefix ends that is kept."""
        now = self._clock()
        for index in range(end, max(-1, end - LOOKBACK_BLOCKS), -1):
            entry = self._entries.get(digests[index])
            if entry is not None and now < entry[0]:
                return index
        return None

    def _keep(self, digest: bytes, life_s: float) -> None:
        """Write a prefix, or begin its life anew; one that is kept for longer already stays so."""
        now = self._clock()
        end, length = self._entries.pop(digest, (now, 0.0))
        life_s = max(life_s, length) if now < end else life_s
        if life_s:
            self._entries[digest] = (now + life_s, life_s)
        while len(self._entries) > self._entries_max:
            self._entries.popitem(last=False)


def _prefixes(prompt: Prompt, last: int) -> tuple[list[bytes], list[int]]:
    """Digest and tokens of each prefix up to a part."""
    chain = Chain(prompt.model)
    digests, tokens, seen = [], [], 0
    for part in prompt.parts[: last + 1]:
        seen += part.size
        digests.append(chain.add(part.role, part.block))
        tokens.append(seen // BYTES_PER_TOKEN)
    return digests, tokens
