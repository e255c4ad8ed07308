"""What a few lines know of sessions: the model that the store is compared with."""

from dataclasses import dataclass, field

import orjson

from storage.elements import HEADER_BYTES
from storage.keys import SessionRef
from storage.log import End
from storage.results import Answered, Fate, KeyReused, Running, Settled
from storage.turns import Request
from tests.store.harness import frames

KEYED_TURNS = 128
UNKEYED_TURNS = 16

Session = tuple[str, str]  # owner, name


def attachments_of(element: bytes) -> list[str]:
    """What of an element is kept for itself."""
    content = orjson.loads(element[HEADER_BYTES:])["content"]
    sources = [block["source"]["data"] for block in content] if isinstance(content, list) else []
    return [data for data in sources if len(data) > 65_536]


def stored_bytes(element: bytes) -> int:
    """Of an element without its attachments: each leaves 40 bytes, and the first two more."""
    found = attachments_of(element)
    return len(element) - sum(map(len, found)) + (2 + 40 * len(found) if found else 0)


@dataclass
class Logged:
    """What the log has of a streamed turn: its frames from the first to this one."""

    number: int
    ordinal: int = 0
    end: End | None = None

    def goes_on(self, ordinal: int) -> None:
        self.ordinal = max(self.ordinal, ordinal)

    def after(self, ordinal: int) -> tuple[bytes, int]:
        return frames(ordinal + 1, self.ordinal), max(ordinal, self.ordinal)


@dataclass
class Known:
    """What the model knows of one session. A turn is open until the model knows its verdict."""

    head: str
    revision: int = 1
    title: str = ""
    turns: int = 0
    numbers: int = 0
    messages: list[bytes] = field(default_factory=list)
    attachments: set[str] = field(default_factory=set)  # all that ever came, rewound or not
    ends: list[int] = field(default_factory=list)  # how many messages there were after each committed turn
    running: str = ""
    lease_over: bool = False
    cancelled: bool = False
    verdicts: dict[str, Settled] = field(default_factory=dict)
    delivered: set[str] = field(default_factory=set)
    version: int = 0
    covered: int = 0
    generation: int = 0
    claim: tuple[str, int] | None = None  # nonce and messages that it covers
    claim_over: bool = False
    summary: bytes = b""
    asked: dict[str, tuple[int, str, str]] = field(default_factory=dict)  # number, fingerprint and id of a turn
    logs: dict[str, Logged] = field(default_factory=dict)  # by turn id

    @property
    def runs(self) -> bool:
        return bool(self.running) and not self.lease_over

    def earlier(self, request: Request) -> Running | Answered | KeyReused | None:
        """What is told of a request that was sent before; None if it is to become a turn."""
        if not (request.key or request.retried):
            return None
        number, fingerprint, turn = self.asked.get(request.key or "~" + request.fingerprint, (-KEYED_TURNS, "", ""))
        if number <= self.numbers - (KEYED_TURNS if request.key else UNKEYED_TURNS):
            return None
        running = self.runs and self.running == turn
        answered = turn in self.verdicts and self.verdicts[turn].verdict == "committed"
        answered = answered and (bool(request.key) or turn not in self.delivered)
        if not (running or answered):
            return None
        if fingerprint != request.fingerprint:
            return KeyReused(turn)
        return Running(turn, number) if running else Answered(turn, number)

    def begins(self, turn: str, request: Request, *, streamed: bool) -> None:
        self.dies()
        self.numbers += 1
        self.running, self.lease_over, self.cancelled = turn, False, False
        self.asked[request.key or "~" + request.fingerprint] = (self.numbers, request.fingerprint, turn)
        self.logs = {one: logged for one, logged in self.logs.items() if logged.number >= self.numbers - 1}
        if streamed:
            self.logs[turn] = Logged(self.numbers)

    def appends(self, turn: str, request: Request, new: list[bytes]) -> None:
        self.dies()
        self.numbers += 1
        self.holds(new)
        self.head = turn
        self.verdicts[turn] = Settled("committed", self.numbers)
        if request.key:
            self.asked[request.key] = (self.numbers, request.fingerprint, turn)

    def holds(self, new: list[bytes]) -> None:
        self.messages += new
        self.attachments.update(*map(attachments_of, new))

    def rewinds(self, kept: int) -> None:
        """Only so many messages stay."""
        if kept < max(self.covered, self.claim[1] if self.claim else 0):
            self.generation += 1
            self.claim = None
        if kept < self.covered:
            self.covered = 0

    @property
    def size_bytes(self) -> int:
        return sum(map(stored_bytes, self.messages)) + sum(map(len, self.attachments))

    def dies(self) -> None:
        """The running turn, if there is one, is found dead."""
        if self.running:
            self.verdicts[self.running] = Settled("dead", self.numbers)
            self.ends_log(0, "dead")
            self.running = ""

    def ends_log(self, ordinal: int, how: End) -> None:
        """The log of the running turn, if it has one, has its last entry."""
        if logged := self.logs.get(self.running):
            logged.goes_on(ordinal)
            logged.end = how

    def fate(self, turn: str) -> Fate | None:
        settled = self.verdicts.get(turn)
        return Fate(settled.verdict, settled.number, turn in self.delivered) if settled else None


@dataclass(frozen=True)
class Begin:
    """A turn that began in a session, which may be gone by now."""

    session: Session
    ref: SessionRef
    turn: str
    number: int
    head: str
    known: Known
