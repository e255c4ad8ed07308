"""What an archive's lines must be before they are put back; pure.

Every value is checked as if a caller had sent it, for the file may have been written by hand: messages as a turn's,
texts and labels as a session's, records and preamble as far as Baton reads them again.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import orjson

from service import access, epoch, model_name, session_fields, tool_calls, transcript
from service.context import compacted
from service.context import word as context_word
from service.context.summary import BYTES_MAX
from service.context.view import can_begin
from service.dialects.messages import check_block, unmarked
from service.errors import BatonError, invalid_value
from service.resend import live
from storage import elements
from storage.checkpoints import NO_ACCOUNT, Account
from storage.keys import TURN_ID
from storage.results import Fate, Verdict
from storage.shares import GRANTEES_MAX, ROLES, Role
from storage.transfer import Restored
from storage.turns import Cut, Ledger, Usage

MESSAGES_MAX: Final = 1_000_000
_RECORD_BYTES_MAX: Final = 1_048_576
_NONCE: Final = re.compile(r"head_[a-z2-7]{1,64}")
_EPOCH: Final = re.compile(r"[0-9a-f.]{0,128}")
_VERDICTS: Final[tuple[Verdict, ...]] = ("committed", "aborted", "dead")
_STATES: Final = ("pending", "complete", "incomplete", "refused")
_INSTANT_MS_MAX: Final = 253_402_300_799_999  # the last of the year 9999
_COUNT_MAX: Final = 2**53 - 1
_ROLES: Final = ("user", "assistant", "system")
_WORD_CHARS_MAX: Final = 512

Line = dict[str, Any]


def restored(given: Line, packed: Sequence[bytes], turns: Sequence[tuple[str, bytes, Fate]]) -> Restored:
    """A session.

    Args:
        given: its first line.
        packed: its messages.
        turns: its turns, as `turn` tells them.

    Raises:
        BatonError: invalid_value, naming the field.
    """
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
        name=word(given.get("name"), "name"),
        created_ms=_whole(given, "created_ms", 0, _INSTANT_MS_MAX),
        head=head if isinstance(head, str) and head in committed else "",
        model=_model(given.get("model")),
        max_turns=_whole(given, "max_turns", 0, session_fields.TURNS_MAX),
        turn_count=sum(not span.by_hand for span in spans),
        epoch_hash=_matching(given, "epoch_hash", _EPOCH),
        epoch_start=_whole(given, "epoch_start", 0, len(packed)),
        context=_context(given.get("context"), packed),
        usage=Usage(*counts),
        system_json=_system(given.get("system")),
        title=session_fields.title(given.get("title")),
        metadata_json=session_fields.metadata(given.get("metadata")),
        preamble=_preamble(given.get("preamble")),
        cuts=cuts,
        turns=turns,
        elements=packed,
        account=_account(given.get("checkpoints"), packed),
        summary=_summary(given.get("checkpoints")),
        wishes=session_fields.wishes(given),
    )


def _summary(checkpoints: Any) -> bytes:
    summary = checkpoints.get("summary") if isinstance(checkpoints, dict) else None
    if summary is not None and not isinstance(summary, str):
        raise invalid_value("checkpoints.summary", "must be a string")
    told = (summary or "").encode()
    if len(told) > BYTES_MAX:
        raise invalid_value("checkpoints.summary", f"must have at most {BYTES_MAX} bytes")
    return told


def _account(given: Any, packed: Sequence[bytes]) -> Account:
    """Of the session's checkpoints; a file may be older than these are."""
    if given is None:
        return NO_ACCOUNT
    if not isinstance(given, dict):
        raise invalid_value("checkpoints", "must be an object")
    numbers = ("version", "covers", "created_ms", "tokens", "input_tokens", "output_tokens")
    account = Account(*(_whole(given, name, 0, _COUNT_MAX) for name in numbers))
    if bool(account.covers) != bool(given.get("summary")):
        raise invalid_value("checkpoints", "must have a summary if and only if it covers messages")
    if account.covers and not (account.version and compacted.may_cut(packed, account.covers)):
        raise invalid_value("checkpoints.covers", "must end where a turn does, and have a version")
    return account


def _context(given: Any, packed: Sequence[bytes]) -> str:
    """What is known of the context, if it can be of this history; nothing depends on it, so it may be left out.

    In a fork that has not gone on it may be of more messages than there are.
    """
    known = context_word.unpacked(given) if isinstance(given, str) else context_word.UNKNOWN
    numbers_max = max(known.messages, known.tokens, known.text_bytes, known.media_bytes, known.media_tokens)
    sound = known.begins <= known.asked <= known.messages and numbers_max <= _COUNT_MAX
    sound = sound and known.message_id == context_word.sound_id(known.message_id) and can_begin(packed, known.begins)
    return known.packed() if sound and known != context_word.UNKNOWN else ""


class Messages:
    """Messages as elements, their digests made anew, and what must be known of each until all are there."""

    def __init__(self) -> None:
        self.packed: list[bytes] = []
        self._digest = elements.FIRST_DIGEST
        self._calls: list[Line] = []

    def add(self, line: Line) -> None:
        """The next one.

        Raises:
            BatonError: it has not the form on which all that reads stored messages relies.
        """
        message = _message(line.get("message"), f"messages.{len(self.packed)}")
        if line.get("by_baton"):
            if message["role"] == "assistant":
                raise invalid_value(f"messages.{len(self.packed)}.by_baton", "cannot be of an answer")
            system = message["role"] == "system"
            self.packed.append(elements.pack(orjson.dumps(message), self._digest, synthetic=True, system=system))
        else:
            self.packed += transcript.pack([message], self._digest)
        self._digest = self.packed[-1][1 : elements.HEADER_BYTES]
        self._calls.append({"role": message["role"], "content": _calls_of(message["content"])})

    def whole(self) -> list[bytes]:
        """All of them.

        Raises:
            BatonError: they are no conversation.
        """
        if self._calls and self._calls[0]["role"] != "user":
            raise invalid_value("messages.0.role", "must be user")
        tool_calls.check_whole(self._calls)
        return self.packed


def _calls_of(content: Any) -> Any:
    """Which blocks are calls and results, and of which calls: what `tool_calls.check_whole` looks at."""
    if isinstance(content, str):
        return ""
    return [{name: block[name] for name in ("type", "id", "tool_use_id") if name in block} for block in content]


def _message(message: Any, where: str) -> Line:
    """A message, if it has the form that one of a turn must have; the rest is Claude's to judge."""
    if not isinstance(message, dict) or not message.keys() >= {"role", "content"} or message["role"] not in _ROLES:
        raise invalid_value(where, f"must be an object of role ({', '.join(_ROLES)}) and content")
    if not transcript.is_input(message):
        raise invalid_value(where, "nests too deeply")
    content = message["content"]
    if isinstance(content, str) and content:
        return message
    if not isinstance(content, list) or not content:
        raise invalid_value(f"{where}.content", "must be a non-empty string or list of blocks")
    for at, block in enumerate(content):
        check_block(block, f"{where}.content.{at}")
        if block["type"] == "text":
            _check_citations(block.get("citations"), f"{where}.content.{at}.citations")
    return unmarked(message)  # no session keeps any, and more than four would be refused at every turn


def _check_citations(given: Any, where: str) -> None:
    """What of citations is shown."""
    citations = [] if given is None else given
    if isinstance(citations, dict):  # in a document's place: whether it wants any
        return
    if not isinstance(citations, list) or not all(isinstance(one, dict) for one in citations):
        raise invalid_value(where, "must be a list of objects")
    for at, citation in enumerate(citations):
        for name in ("url", "title"):
            if not isinstance(citation.get(name, ""), str | None):
                raise invalid_value(f"{where}.{at}.{name}", "must be a string")


def turn(line: Line, number: int) -> tuple[str, bytes, Fate]:
    """Id, record and fate of a turn; one that was running when it was read was never answered: it is aborted.

    Raises:
        BatonError: invalid_value, naming the field.
    """
    where = f"turns.{number}"
    record, verdict = line.get("record"), line.get("verdict") or "aborted"
    if verdict not in _VERDICTS:
        raise invalid_value(f"{where}.verdict", f"must be null or one of {', '.join(_VERDICTS)}")
    if not isinstance(record, dict) or not transcript.is_input(record):
        raise invalid_value(f"{where}.record", "must be an object")
    for name in ("id", "state", "dialect", "replica", "started_at"):
        word(record.get(name), f"{where}.record.{name}", required=True)
    for name in ("framing", "model", "ended_at", "stop_reason", "message_id", "answered_by"):
        word(record.get(name), f"{where}.record.{name}")
    if "model" not in record:
        raise invalid_value(f"{where}.record.model", "must be there, or null")
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
    for name in ("from", "to"):
        if record.get(name) is None:
            raise invalid_value(f"{where}.record.{name}", "must be there in a committed turn")
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


def shares(given: Any) -> dict[str, Role]:
    """Role by principal.

    Raises:
        BatonError: invalid_value.
    """
    if not isinstance(given, dict) or len(given) > GRANTEES_MAX:
        raise invalid_value("shares", f"must be an object of at most {GRANTEES_MAX} principals")
    for principal, role in given.items():
        if not access.ANY_PRINCIPAL.fullmatch(principal) or role not in ROLES:
            raise invalid_value("shares", f"must have principals and for each one of {', '.join(ROLES)}")
    return given


def _preamble(given: Any) -> bytes:
    """The preamble as it is stored. Its parts are sent as they stand, so they are checked and not written anew."""
    packed = given.encode() if isinstance(given, str) else b"-"
    try:
        stored = epoch.unpacked(packed)
        system, tools, thinking = (orjson.loads(part) if part else None for part in stored)
    except ValueError:
        raise _no_preamble() from None
    _system(system)
    tools = [] if tools is None else tools
    thinking = {} if thinking is None else thinking
    sound = isinstance(tools, list) and all(map(transcript.is_input, tools)) and transcript.is_input(thinking)
    if not sound or packed not in (b"", stored.packed()):
        raise _no_preamble()
    return packed


def _no_preamble() -> BatonError:
    return invalid_value("preamble", "must be as it was exported")


def _system(given: Any) -> bytes:
    """A system prompt: text, or blocks of text."""
    if given is None:
        return b""
    blocks = [{"type": "text", "text": given}] if isinstance(given, str) else given
    if not isinstance(blocks, list):
        raise invalid_value("system", "must be a string or a list of text blocks")
    for at, block in enumerate(blocks):
        check_block(block, f"system.{at}")
        if block["type"] != "text" or not transcript.is_input(block):
            raise invalid_value(f"system.{at}", "must be a text block, and not nest too deeply")
    return orjson.dumps(given)


def _model(given: Any) -> str:
    if given is None:
        return ""
    if not model_name.sound(given):
        raise invalid_value("model", model_name.PROBLEM)
    return given


def word(given: Any, where: str, *, required: bool = False) -> str:
    """A short text; empty for none.

    Raises:
        BatonError: invalid_value.
    """
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
