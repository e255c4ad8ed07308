"""A session as JSON lines, to be kept, moved, and put back as it was; pure.

One line each, in this order, every one an object with a ``type``:

    session   everything but turns and messages, and how many of these follow
    turn      by number: what became of it and its record (turn_record.py); ``null`` for one that was still running
    message   oldest first, as Claude's API has it; ``by_baton`` marks what no caller has seen
    end       nothing is missing: a file without it was cut short, or the session was rewound while it was read

What is sent to Claude from a session that was put back is what would have been sent from the original, byte for byte:
messages, system prompt and preamble are written by one and the same encoder, so reading them and writing them again
changes nothing. Digests are made anew. Not kept are what only lives for minutes: the lease, the log of events, the ring
of requests by which a retry is recognised.

Whoever puts a session back may have written the file by hand, so every value is checked as if a caller had sent it:
what is stored afterwards is read by code that relies on its form. Messages are packed as their lines come, so a reader
holds about as much as it has read of one session, and never more than `SESSION_BYTES_MAX`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import orjson

from service import restoring
from service.errors import BatonError, invalid_value
from service.parsing import parse_json
from service.restoring import Messages
from storage import elements
from storage.shares import OWNER, Role
from storage.transfer import Restored, Whole

MEDIA_TYPE: Final = "application/x-ndjson"
FORMAT: Final = 1
TURNS_MAX: Final = 1_000_000
SESSION_BYTES_MAX: Final = 256 * 1_048_576
"""Of all lines of one session: many times what Claude takes in a request."""

Line = dict[str, Any]


def first_lines(session_id: str, whole: Whole) -> Iterator[bytes]:
    """The session and its turns, a line each."""
    one = whole.snapshot
    usage = (one.input_tokens, one.output_tokens, one.cache_read_tokens, one.cache_written_tokens)
    yield _line(
        {
            "type": "session",
            "format": FORMAT,
            "id": session_id,
            "name": one.name or None,
            "owner": one.owner,
            "nonce": whole.nonce,
            "head": one.head,
            "created_ms": one.created_ms,
            "ttl_ms": one.ttl_ms,
            "absolute_end_ms": one.absolute_end_ms or None,
            "model": one.model or None,
            "max_turns": one.max_turns or None,
            "epoch_hash": one.epoch_hash,
            "epoch_start": one.epoch_start,
            "context": one.context,
            "usage": dict(zip(("input", "output", "cache_read", "cache_written"), usage, strict=True)),
            "title": one.title,
            "metadata": orjson.Fragment(one.metadata_json),
            "system": orjson.Fragment(one.system_json) if one.system_json else None,
            "preamble": whole.preamble.decode(),
            "cuts": [list(cut) for cut in whole.cuts],
            "checkpoints": _checkpoints(whole),
            "context_tokens_target": one.wishes.tokens_target or None,
            "compact_instructions": one.wishes.instructions,
            "context_policy": one.wishes.context_policy or None,
            "shares": whole.shares if one.role in (OWNER, "admin") else {},
            "turns": len(whole.turns),
            "messages": one.messages,
        }
    )
    for told in whole.turns:
        fate = told.fate
        yield _line(
            {
                "type": "turn",
                "verdict": fate.verdict if fate else None,
                "delivered": bool(fate and fate.delivered),
                "record": orjson.Fragment(told.record),
            }
        )


def _checkpoints(whole: Whole) -> Line:
    """What summaries have cost, and the one that stands for messages, if one does."""
    account, checkpoint = whole.snapshot.account, whole.checkpoint
    line: Line = {name: getattr(account, name) for name in ("version", "input_tokens", "output_tokens")}
    if checkpoint is not None:
        line |= {"covers": checkpoint.covers, "created_ms": account.created_ms, "tokens": account.tokens}
        line |= {"summary": checkpoint.summary.decode()}
    return line


def message_line(element: bytes) -> bytes:
    """A message, as it is stored."""
    unpacked = elements.unpack(element)
    marked = {"by_baton": True} if unpacked.synthetic else {}
    return _line({"type": "message", **marked, "message": orjson.Fragment(unpacked.json)})


END_LINE: Final = b'{"type":"end"}\n'


def _line(value: Line) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)


@dataclass(frozen=True, slots=True)
class Archived:
    """A session as it was read from its lines.

    Attributes:
        session_id, owner: of the original.
        restored: what is to be put back, under the original's name and nonce.
        shares: role by principal.
    """

    session_id: str
    owner: str
    restored: Restored
    shares: dict[str, Role]


class Reader:
    """Reads sessions line by line; several may follow one another."""

    def __init__(self) -> None:
        self._line = 0
        self._session: Line | None = None
        self._bytes = 0
        self._turns: list[Line] = []
        self._messages = Messages()

    def feed(self, raw: bytes) -> Archived | None:
        """Takes the next line; the session whose end it is, if it is one.

        Raises:
            BatonError: invalid_json or invalid_value, naming line and field.
        """
        self._line += 1
        self._bytes += len(raw)
        if self._bytes > SESSION_BYTES_MAX:
            raise self._wrong("type", f"must be `end` by now: a session has at most {SESSION_BYTES_MAX} bytes")
        line = parse_json(raw, f"Line {self._line}")
        if not isinstance(line, dict):
            raise self._wrong("type", "must be an object")
        if (self._session is None) != (line.get("type") == "session"):
            raise self._wrong("type", "must be `session`, and of that only the first line of one")
        match line.get("type"):
            case "session":
                if line.get("format") != FORMAT:
                    raise self._wrong("format", f"must be {FORMAT}: other forms this version of Baton does not know")
                self._session, self._bytes, self._turns, self._messages = line, len(raw), [], Messages()
            case "turn" if not self._messages.packed and len(self._turns) < TURNS_MAX:
                self._turns.append(line)
            case "message" if len(self._messages.packed) < restoring.MESSAGES_MAX:
                self._messages.add(line)
            case "end":
                try:
                    return self._ended()
                finally:
                    self._session, self._bytes, self._turns, self._messages = None, 0, [], Messages()
            case _:
                raise self._wrong("type", "must be turn, message or end, in this order")
        return None

    def close(self) -> None:
        """Nothing comes any more.

        Raises:
            BatonError: invalid_value, if a session has not come to its end.
        """
        if self._session is not None or not self._line:
            raise self._wrong("type", "must be `end` in the last line: the file was cut short")

    def _wrong(self, field: str, problem: str) -> BatonError:
        return invalid_value(f"line {self._line}.{field}", problem)

    def _ended(self) -> Archived:
        given = self._session or {}
        for name, count in (("turns", len(self._turns)), ("messages", len(self._messages.packed))):
            if given.get(name) != count:
                raise self._wrong(name, f"must be as many as the first line says; {count} are here")
        packed = self._messages.whole()
        turns = [restoring.turn(line, number) for number, line in enumerate(self._turns, start=1)]
        if len({turn_id for turn_id, _, _ in turns}) < len(turns):
            raise invalid_value("turns", "must have ids of their own")
        return Archived(
            restoring.word(given.get("id"), "id"),
            restoring.word(given.get("owner"), "owner"),
            restoring.restored(given, packed, turns),
            restoring.shares({} if given.get("shares") is None else given["shares"]),
        )
