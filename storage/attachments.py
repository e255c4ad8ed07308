"""Attachments: what is big in a message is stored once a session, named by its hash.

Claude's API has what an image or a document is made of, base64 or text, in a string named ``data``. Of an element that
is larger than 64 KiB each such string of more than 64 KiB is *taken out*: the characters between the quotes, as they
stand in the JSON, are kept under their SHA-256 in a hash of the session (``T:b:<id>``), and the element has a *gap*:

    format byte with the bit 0x40, 8 bytes digest       as any element, see elements.py
    number of gaps, 2 bytes                             all numbers big-endian
    each gap: place 4, size 4, SHA-256 32 bytes         in order; the place is one in the JSON as it lies here
    the JSON without what was taken out                 still JSON: the strings are empty

*Filling* puts the bytes back where they were. Neither parses anything: bytes are moved and no text of a caller's can be
mistaken for a mark, so what is filled is byte for byte what was taken out, whatever it is.

Only the store knows of gaps. What it takes and gives has none.
"""

import re
from collections import defaultdict
from collections.abc import Awaitable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import sha256
from itertools import accumulate
from struct import Struct
from typing import Final, NamedTuple, cast

from redis.asyncio import Redis

from storage.elements import HAS_GAPS, HEADER_BYTES
from storage.results import AttachmentLost
from storage.scripts import answered

INLINE_BYTES_MAX: Final = 65_536
"""What is not larger stays in its message. See docs/decisions/0004-attachments.md."""
_BATCH_BYTES: Final = 8 * 1_048_576  # asked for at once, so that one reply keeps its deadline
_NAME: Final = b'"data":"'
_OF_USERS: Final = b'{"role":"user"'
_INSIDE: Final = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_COUNT: Final = Struct(">H")
_GAP: Final = Struct(">II32s")


class Gap(NamedTuple):
    """Where an attachment was taken out; ``place`` counts from the first byte of the JSON."""

    place: int
    size_bytes: int
    sha256: bytes

    @property
    def name(self) -> str:
        """Of the attachment, in the session's hash."""
        return self.sha256.hex()


def take_out(element: bytes) -> tuple[bytes, dict[str, memoryview]]:
    """The element with gaps, and what was taken out by name; the element itself if there is nothing big in it."""
    if len(element) <= INLINE_BYTES_MAX:
        return element, {}
    whole, done, place = memoryview(element), HEADER_BYTES, 0
    table: list[bytes] = []
    json: list[memoryview] = []
    taken: dict[str, memoryview] = {}
    for start, end in _big_strings(element):
        place += start - done
        gap = Gap(place, end - start, sha256(whole[start:end]).digest())
        table.append(_GAP.pack(*gap))
        json.append(whole[done:start])
        taken[gap.name] = whole[start:end]
        done = end
    if not taken:
        return element, {}
    head = bytes((element[0] | HAS_GAPS,)) + element[1:HEADER_BYTES] + _COUNT.pack(len(table))
    return b"".join((head, *table, *json, whole[done:])), taken


def _big_strings(element: bytes) -> Iterator[tuple[int, int]]:
    """Where the strings to take out begin and end, without their quotes.

    An unescaped quote follows the name, so it is none inside of a string; and what is not JSON may be taken out too.
    """
    at = element.find(_NAME, HEADER_BYTES)
    while at >= 0:
        start = at + len(_NAME)
        end = element.find(b'"', start)
        if end > start and element[end - 1 : end] == b"\\":  # not its end, perhaps: text with escapes
            end = cast("re.Match[bytes]", _INSIDE.match(element, start)).end()
        if end - start > INLINE_BYTES_MAX:
            yield start, end
        at = element.find(_NAME, max(start, end))


def take_out_all(elements: Iterable[bytes], known: Collection[str]) -> tuple[list[bytes], dict[str, memoryview]]:
    """Elements with gaps, and what was taken out of them by name, but for what the session is known to hold."""
    stored: list[bytes] = []
    taken: dict[str, memoryview] = {}
    for element in elements:
        with_gaps, of_element = take_out(element)
        stored.append(with_gaps)
        taken |= of_element
    return stored, {name: taken[name] for name in taken if name not in known}


def gaps(element: bytes) -> list[Gap]:
    """The gaps of a stored element."""
    if not element[0] & HAS_GAPS:
        return []
    (count,) = _COUNT.unpack_from(element, HEADER_BYTES)
    first = HEADER_BYTES + _COUNT.size
    return [Gap(*_GAP.unpack_from(element, first + index * _GAP.size)) for index in range(count)]


def fill(element: bytes, attachments: Mapping[str, bytes]) -> bytes:
    """The element as it was before anything was taken out. Cost: one copy of it all."""
    found = gaps(element)
    if not found:
        return element
    json = at = HEADER_BYTES + _COUNT.size + len(found) * _GAP.size
    stored = memoryview(element)
    parts: list[bytes | memoryview] = [bytes((element[0] & ~HAS_GAPS,)), stored[1:HEADER_BYTES]]
    for gap in found:
        parts += (stored[at : json + gap.place], attachments[gap.name])
        at = json + gap.place
    return b"".join((*parts, stored[at:]))


def outline(element: bytes) -> bytes:
    """A stored element with empty strings where its attachments were: for who looks at its form."""
    return fill(element, defaultdict(bytes))


def outline_of_users(element: bytes) -> bytes:
    """The same of a stored element that is a user's, as its JSON begins; any other as it is."""
    if not element[0] & HAS_GAPS:
        return element
    json = HEADER_BYTES + _COUNT.size + len(gaps(element)) * _GAP.size
    return outline(element) if element.startswith(_OF_USERS, json) else element


def sizes(stored: Sequence[bytes]) -> dict[str, int]:
    """The attachments that these elements name, each once, with its size."""
    if not any(element[0] & HAS_GAPS for element in stored):  # hardly any conversation has some
        return {}
    return {gap.name: gap.size_bytes for element in stored for gap in gaps(element)}


def filled_bytes(element: bytes) -> int:
    """How large a stored element is about to be once it is filled."""
    return len(element) + sum(gap.size_bytes for gap in gaps(element))


def read_bytes(stored: Sequence[bytes], whole_from: int) -> int:
    """How large stored elements are about to be, from one on, with what of those in front of it has to be filled."""
    ahead = (element for element in stored[:whole_from] if element[0] & HAS_GAPS)
    return sum(map(filled_bytes, ahead)) + sum(map(filled_bytes, stored[whole_from:]))


def fitting(stored: Sequence[bytes], bytes_max: int) -> int:
    """How many stored elements, from the first, are together at most so large once filled; the first in any case."""
    ends = accumulate(map(filled_bytes, stored))
    return max(1, sum(end <= bytes_max for end in ends))


async def filled(redis: Redis, key: str, stored: list[bytes], *, budget_s: float) -> list[bytes]:
    """Stored elements, filled. Cost: nothing without gaps, else one round trip for each 8 MiB.

    Args:
        redis: the server.
        key: of the session's attachments.
        stored: as they were read.
        budget_s: for one round trip.

    Raises:
        AttachmentLost: one is not there.
        StoreUnavailable: they could not be read.
    """
    wanted = sizes(stored)
    if not wanted:
        return stored
    attachments: dict[str, bytes] = {}
    for names in _batches(wanted):
        found = await answered(partial(_ask, redis, key, names), budget_s=budget_s)
        for name, attachment in zip(names, found, strict=True):
            if attachment is None or len(attachment) != wanted[name]:
                raise AttachmentLost(name)
            attachments[name] = attachment
    return [fill(element, attachments) for element in stored]


async def _ask(redis: Redis, key: str, names: list[str]) -> list[bytes | None]:
    return await cast("Awaitable[list[bytes | None]]", redis.hmget(key, names))


def _batches(wanted: Mapping[str, int]) -> Iterator[list[str]]:
    """Names of attachments that are together not larger than a batch, or of one that is."""
    batch: list[str] = []
    total = 0
    for name, size_bytes in wanted.items():
        if batch and total + size_bytes > _BATCH_BYTES:
            yield batch
            batch, total = [], 0
        batch.append(name)
        total += size_bytes
    yield batch
