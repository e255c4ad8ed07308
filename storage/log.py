"""The log of a session's streamed turns, as it is read; renew.lua, commit.lua and whoever ends a turn write it.

An entry holds frames as the turn's caller was shown them, each beginning with its ordinal (``id: 7``), and its own id
tells the turn's number and the ordinal of its last frame. Entries may overlap, where a renewal was sent again with
more: whoever reads cuts off what it has. The last entry of a turn says how it ended, and was written by the script that
gave the turn its verdict. So a verdict without an end in the log means that the log has expired; both are read at one
instant.

A log can have a gap: a Redis that restarts, or fails over, may have lost the last entries that it acknowledged, and the
turn goes on behind them. Whoever reads up to a gap is told that the rest is not there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from redis.asyncio import Redis

from storage.keys import SessionRef
from storage.replies import read_fate
from storage.results import Fate
from storage.scripts import answered

End = Literal["told", "dead", "overflow", "gone", "hidden"]
_ENTRIES: Final = 64  # read at once
_ORDINAL_MAX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Tail:
    """What the log holds of a turn after some frame.

    Attributes:
        fate: of the turn, None while it is open.
        frames: those after that frame, as far as they were read; may be none.
        ordinal: of the last of them, or the one asked for.
        end: how the turn ended, if this is the end of the log: the frames say it (told), its replica vanished (dead),
            what comes is not in the log (overflow), the session does not know the turn any more (gone), or is shared no
            more with who follows (hidden, without frames).
    """

    fate: Fate | None
    frames: bytes
    ordinal: int
    end: End | None


class Log:
    """The logs of one namespace.

    Args:
        redis: see connect.py.
        budget_s: how long one read may take in all.
    """

    def __init__(self, redis: Redis, *, budget_s: float) -> None:
        self._redis = redis
        self._budget_s = budget_s

    async def tail(self, ref: SessionRef, turn_id: str, number: int, after: int) -> Tail:
        """What comes after the frame of ordinal ``after`` (0: all of it). Ask `Sessions.get` for permission first.

        Whether the session is still shared with the ref's principal is read at the same instant.

        Cost: one round trip, up to 64 entries, all of one instant; there may be more behind them.
        """
        key, last = ref.keys[8], f"{number}-{_ORDINAL_MAX}"

        async def ask() -> list[Any]:
            async with self._redis.pipeline(transaction=True) as batch:
                batch.hmget(ref.keys[0], ["own", "lt"])
                batch.hget(ref.keys[16], ref.principal)
                batch.hget(ref.keys[3], turn_id)
                batch.xrange(key, f"({number}-{after}", last, count=_ENTRIES)
                batch.xrevrange(key, last, f"{number}-0", count=1)
                return await batch.execute()

        (own, running), share, fate, entries, newest = await answered(ask, budget_s=self._budget_s)
        # Where the session has expired under its follower, its owner is who was taken for that.
        is_own = own == ref.principal.encode() if own else ref.taken_for_own
        if not (is_own or share):
            return Tail(None, b"", after, "hidden")
        if not fate and running not in (None, turn_id.encode()):
            # Removed and made anew: the log's numbers are those of other turns. (One that expired left its log behind.)
            return Tail(None, b"", after, "gone")
        frames, ordinal, gap = _frames(entries, after)
        # There may be more entries than are read at once: then the newest is not the end of these.
        read_to = _ordinal(entries[-1]) if entries else after
        end: End | None = None
        if gap:
            end = "overflow" if not frames else None
        elif newest and b"e" in newest[0][1] and _ordinal(newest[0]) <= read_to:
            end = newest[0][1][b"e"].decode()
        return Tail(read_fate(fate) if fate else None, frames, ordinal, end)


def _ordinal(entry: Any) -> int:
    """Of the last frame in an entry."""
    return int(entry[0].partition(b"-")[2])


def _frames(entries: Sequence[Any], after: int) -> tuple[bytes, int, bool]:
    """The frames of entries that come after an ordinal, the ordinal of the last, and whether a gap follows it."""
    found: list[bytes] = []
    for entry in entries:
        frames: bytes = entry[1].get(b"f", b"")
        if frames:
            new = _cut(frames, after)
            if new is None:
                return b"".join(found), after, True
            found.append(new)
            after = _ordinal(entry)
    return b"".join(found), after, False


def _cut(frames: bytes, after: int) -> bytes | None:
    """Without those up to an ordinal; None if the one behind it is missing.

    A line break within a frame is never followed by ``id:``; JSON has none.
    """
    next_frame = b"id: %d\n" % (after + 1)
    if frames.startswith(next_frame):
        return frames
    at = frames.find(b"\n\n" + next_frame)
    return frames[at + 2 :] if at >= 0 else None
