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
what is stored afterwards is read by code that relies on its form.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import orjson

from service import access, epoch, model_name, session_fields, tool_calls, transcript
from service.context import compacted
from service.errors import BatonError, invalid_value
from service.resend import live
from storage import elements
from storage.checkpoints import NO_ACCOUNT, Account
from storage.keys import TURN_ID
from storage.results import Fate, Verdict
from storage.shares import GRANTEES_MAX, OWNER, ROLES, Role
from storage.transfer import Restored, Whole
from storage.turns import Cut, Ledger, Usage

MEDIA_TYPE: Final = "application/x-ndjson"
FORMAT: Final = 1
MESSAGES_MAX: Final = 1_000_000
TURNS_MAX: Final = 1_000_000
_RECORD_BYTES_MAX: Final = 65_536
_NONCE: Final = re.compile(r"head_[a-z2-7]{1,64}")
_EPOCH: Final = re.compile(r"[0-9a-f.]{0,128}")
_VERDICTS: Final[tuple[Verdict, ...]] = ("committed", "aborted", "dead")
_STATES: Final = ("pending", "complete", "incomplete", "refused")
_INSTANT_MS_MAX: Final = 253_402_300_799_999  # the last of the year 9999
_COUNT_MAX: Final = 2**53 - 1
_TEXTS_OF: Final = {"text": ("text",), "thinking": ("thinking", "signature"), "redacted_thinking": ("data",)}
_ROLES: Final = ("user", "assistant", "system")
_WORD_CHARS_MAX: Final = 512

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
            "usage": dict(zip(("input", "output", "cache_read", "cache_written"), usage, strict=True)),
            "title": one.title,
            "metadata": orjson.Fragment(one.metadata_json),
            "system": orjson.Fragment(one.system_json) if one.system_json else None,
            "preamble": whole.preamble.decode(),
            "cuts": [list(cut) for cut in whole.cuts],
            "checkpoints": _checkpoints(whole),
            "context_tokens_target": one.wishes.tokens_target or None,
            "compact_instructions": one.wishes.instructions,
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
        self._turns: list[Line] = []
        self._messages: list[Line] = []

    def feed(self, raw: bytes) -> Archived | None:
        """Takes the next line; the session whose end it is, if it is one.

        Raises:
            BatonError: invalid_json or invalid_value, naming line and field.
        """
        self._line += 1
        try:
            line = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise BatonError("invalid_json", f"Line {self._line} is not JSON: {error.msg}.") from None
        if not isinstance(line, dict):
            raise self._wrong("type", "must be an object")
        if (self._session is None) != (line.get("type") == "session"):
            raise self._wrong("type", "must be `session`, and of that only the first line of one")
        match line["type"]:
            case "session":
                self._session, self._turns, self._messages = line, [], []
            case "turn" if not self._messages and len(self._turns) < TURNS_MAX:
                self._turns.append(line)
            case "message" if len(self._messages) < MESSAGES_MAX:
                self._messages.append(line)
            case "end":
                try:
                    return self._ended()
                finally:
                    self._session = None
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
        for name, lines in (("turns", self._turns), ("messages", self._messages)):
            if given.get(name) != len(lines):
                raise self._wrong(name, f"of the session say {given.get(name)!r}, and {len(lines)} are here")
        packed = _packed(self._messages)
        turns = [_turn(line, number) for number, line in enumerate(self._turns, start=1)]
        if len({turn_id for turn_id, _, _ in turns}) < len(turns):
            raise invalid_value("turns", "must have ids of their own")
        return Archived(
            _word(given.get("id"), "id"),
            _word(given.get("owner"), "owner"),
            _restored(given, packed, turns),
            _shares(given.get("shares") or {}),
        )


def _restored(given: Line, packed: Sequence[bytes], turns: Sequence[tuple[str, bytes, Fate]]) -> Restored:
    cuts = _cuts(given.get("cuts"), len(turns))
    ledger = Ledger([record for _, record, _ in turns], {one: fate.verdict for one, _, fate in turns}, cuts)
    spans = live(ledger)
    if any(span.end > len(packed) for span in spans):
        raise invalid_value("turns", "must not end behind the last message, unless they were rewound")
    head = given.get("head")
    committed = {turn_id for turn_id, _, fate in turns if fate.verdict == "committed"}
    usage = given.get("usage")
    if not isinstance(usage, dict):
        raise invalid_value("usage", "must be an object")
    counts = [_whole(usage, name, 0, _COUNT_MAX) for name in ("input", "output", "cache_read", "cache_written")]
    return Restored(
        nonce=_matching(given, "nonce", _NONCE),
        ttl_ms=_whole(given, "ttl_ms", 1, 1000 * session_fields.TTL_S_MAX),
        absolute_end_ms=_whole(given, "absolute_end_ms", 0, _INSTANT_MS_MAX),
        name=_word(given.get("name"), "name"),
        created_ms=_whole(given, "created_ms", 0, _INSTANT_MS_MAX),
        head=head if isinstance(head, str) and head in committed else "",
        model=_model(given.get("model")),
        max_turns=_whole(given, "max_turns", 0, session_fields.TURNS_MAX),
        turn_count=sum(not span.by_hand for span in spans),
        epoch_hash=_matching(given, "epoch_hash", _EPOCH),
        epoch_start=_whole(given, "epoch_start", 0, len(packed)),
        usage=Usage(*counts),
        system_json=_system(given.get("system")),
        title=session_fields.title(given.get("title")),
        metadata_json=session_fields.metadata(given.get("metadata")),
        preamble=_preamble(given.get("preamble")),
        cuts=cuts,
        turns=turns,
        elements=packed,
        account=_account(given.get("checkpoints"), packed),
        summary=(given.get("checkpoints") or {}).get("summary", "").encode(),
        wishes=session_fields.wishes(given.get("context_tokens_target"), given.get("compact_instructions")),
    )


def _account(given: Any, packed: Sequence[bytes]) -> Account:
    """Of the session's checkpoints; a file may be older than these are."""
    if given is None:
        return NO_ACCOUNT
    if not isinstance(given, dict) or not isinstance(given.get("summary", ""), str):
        raise invalid_value("checkpoints", "must be an object, with a summary that is a string")
    numbers = ("version", "covers", "created_ms", "tokens", "input_tokens", "output_tokens")
    account = Account(*(_whole(given, name, 0, _COUNT_MAX) for name in numbers))
    if bool(account.covers) != bool(given.get("summary")):
        raise invalid_value("checkpoints", "must have a summary if and only if it covers messages")
    if account.covers and not (account.version and compacted.may_cut(packed, account.covers)):
        raise invalid_value("checkpoints.covers", "must end where a turn does, and have a version")
    return account


def _packed(lines: Sequence[Line]) -> list[bytes]:
    """Messages as elements, their digests made anew."""
    digest = elements.FIRST_DIGEST
    messages: list[Line] = []
    packed: list[bytes] = []
    for at, line in enumerate(lines):
        message = _message(line.get("message"), f"messages.{at}")
        messages.append(message)
        if line.get("by_baton"):
            system = message["role"] == "system"
            packed.append(elements.pack(orjson.dumps(message), digest, synthetic=True, system=system))
        else:
            packed += transcript.pack([message], digest)
        digest = packed[-1][1 : elements.HEADER_BYTES]
    if messages and messages[0]["role"] != "user":
        raise invalid_value("messages.0.role", "must be user")
    tool_calls.check_whole(messages)
    return packed


def _message(message: Any, where: str) -> Line:
    """A message, if it has the form on which all that reads stored messages relies; the rest is Claude's to judge."""
    if not isinstance(message, dict) or message.keys() != {"role", "content"} or message["role"] not in _ROLES:
        raise invalid_value(where, f"must be an object of role ({', '.join(_ROLES)}) and content")
    content = message["content"]
    if isinstance(content, str) and content:
        return message
    if not isinstance(content, list) or not content:
        raise invalid_value(f"{where}.content", "must be a non-empty string or list of blocks")
    for at, block in enumerate(content):
        _check_block(block, f"{where}.content.{at}")
    if not transcript.is_input({"content": content}):
        raise invalid_value(f"{where}.content", "nests too deeply")
    return message


def _check_block(block: Any, where: str) -> None:
    if not isinstance(block, dict) or not isinstance(block.get("type"), str):
        raise invalid_value(where, "must be an object with a type")
    kind = block["type"]
    texts = _TEXTS_OF.get(kind, ())
    if kind == "tool_use":
        texts = ("id", "name")
        if not transcript.is_input(block.get("input")):
            raise invalid_value(f"{where}.input", "must be an object")
    if kind == "tool_result":
        texts = ("tool_use_id",)
        content = block.get("content", "")
        parts = content if isinstance(content, list) else [] if isinstance(content, str) else [None]
        for at, part in enumerate(parts):
            _check_block(part, f"{where}.content.{at}")
    for name in texts:
        if not isinstance(block.get(name), str):
            raise invalid_value(f"{where}.{name}", "must be a string")


def _turn(line: Line, number: int) -> tuple[str, bytes, Fate]:
    """Id, record and fate of a turn; one that was running when it was read was never answered: it is aborted."""
    where = f"turns.{number}"
    record, verdict = line.get("record"), line.get("verdict") or "aborted"
    if verdict not in _VERDICTS:
        raise invalid_value(f"{where}.verdict", f"must be null or one of {', '.join(_VERDICTS)}")
    if not isinstance(record, dict) or not transcript.is_input(record):
        raise invalid_value(f"{where}.record", "must be an object")
    for name in ("id", "state", "dialect", "replica", "started_at"):
        _word(record.get(name), f"{where}.record.{name}", required=True)
    for name in ("framing", "model", "ended_at", "stop_reason", "message_id", "answered_by"):
        _word(record.get(name), f"{where}.record.{name}")
    if TURN_ID.fullmatch(record["id"]) is None or record["state"] not in _STATES:
        raise invalid_value(f"{where}.record", f"must have an id of a turn and a state of {', '.join(_STATES)}")
    for name in ("started_at", "ended_at"):
        _check_instant(record.get(name), f"{where}.record.{name}")
    if verdict == "committed":
        _check_span(record, where)
    raw = orjson.dumps(record)
    if len(raw) > _RECORD_BYTES_MAX:
        raise invalid_value(f"{where}.record", f"may have at most {_RECORD_BYTES_MAX} bytes")
    return record["id"], raw, Fate(verdict, number, line.get("delivered") is True and verdict == "committed")


def _check_span(record: Line, where: str) -> None:
    """What a committed turn says of its place in the history, as it was when it was committed."""
    if record["state"] == "pending":
        raise invalid_value(f"{where}.record.state", "cannot be pending of a committed turn")
    first = _whole(record, "from", 0, MESSAGES_MAX)
    _whole(record, "to", first, MESSAGES_MAX)
    refused = record.get("refused", [])
    if not isinstance(refused, list) or not all(isinstance(one, str) and _is_digest(one) for one in refused):
        raise invalid_value(f"{where}.record.refused", "must be a list of digests")
    if not isinstance(record.get("usage", {}), dict):
        raise invalid_value(f"{where}.record.usage", "must be an object")


def _is_digest(text: str) -> bool:
    return re.fullmatch(rf"[0-9a-f]{{{2 * elements.DIGEST_BYTES}}}", text) is not None


def _check_instant(value: Any, where: str) -> None:
    try:
        sound = value is None or datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        sound = False
    if not sound:
        raise invalid_value(where, "must be an ISO 8601 instant with its zone")


def _cuts(given: Any, turns: int) -> list[Cut]:
    if not isinstance(given, list) or len(given) > turns:
        raise invalid_value("cuts", "must be a list, one for each turn at most")
    for cut in given:
        sound = isinstance(cut, list) and len(cut) == 2 and all(type(number) is int for number in cut)
        if not sound or not 1 <= cut[0] <= turns or not 0 <= cut[1] <= MESSAGES_MAX:
            raise invalid_value("cuts", "must be pairs: number of a turn, messages that it kept")
    return [Cut(*cut) for cut in given]


def _shares(given: Any) -> dict[str, Role]:
    if not isinstance(given, dict) or len(given) > GRANTEES_MAX:
        raise invalid_value("shares", f"must be an object of at most {GRANTEES_MAX} principals")
    for principal, role in given.items():
        if not access.ANY_PRINCIPAL.fullmatch(principal) or role not in ROLES:
            raise invalid_value("shares", f"must have principals and for each one of {', '.join(ROLES)}")
    return given


def _preamble(given: Any) -> bytes:
    packed = given.encode() if isinstance(given, str) else b"-"
    try:
        parts = epoch.unpacked(packed)
        for part in filter(None, parts):
            orjson.loads(part)
        sound = packed in (b"", parts.packed())
    except ValueError:
        sound = False
    if not sound:
        raise invalid_value("preamble", "must be as it was exported")
    return packed


def _system(given: Any) -> bytes:
    """A system prompt: text, or blocks of text."""
    if given is None:
        return b""
    blocks = [{"type": "text", "text": given}] if isinstance(given, str) else given
    if not isinstance(blocks, list):
        raise invalid_value("system", "must be a string or a list of text blocks")
    for at, block in enumerate(blocks):
        _check_block(block, f"system.{at}")
        if block["type"] != "text":
            raise invalid_value(f"system.{at}.type", "must be text")
    return orjson.dumps(given)


def _model(given: Any) -> str:
    if given is None:
        return ""
    if not model_name.sound(given):
        raise invalid_value("model", model_name.PROBLEM)
    return given


def _word(given: Any, where: str, *, required: bool = False) -> str:
    if given is None and not required:
        return ""
    if not isinstance(given, str) or len(given) > _WORD_CHARS_MAX:
        raise invalid_value(where, f"must be a string of at most {_WORD_CHARS_MAX} characters")
    return given


def _matching(given: Line, name: str, pattern: re.Pattern[str]) -> str:
    value = given.get(name)
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise invalid_value(name, f"must match {pattern.pattern}")
    return value


def _whole(given: Line, name: str, low: int, high: int) -> int:
    value = given.get(name)
    value = 0 if value is None else value
    if type(value) is not int or not low <= value <= high:
        raise invalid_value(name, f"must be a whole number from {low} to {high}")
    return value
