"""Two owners of one deployment, who use the same names; each asks for everything with ids of the other's.

Every operation of the document is asked in every way that the fuzzer knows, by either owner, with the other's sessions,
turns and cursors in the path, the headers and the body, while both also talk in sessions of their own. Whatever is
asked: what the other owner has does not change and is not counted, no answer holds a word of its content, and of its
issued ids one learns nothing but 404. What Claude was sent for one owner never holds a word of the other's.
"""

import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import pytest
from hypothesis import given, seed
from hypothesis import strategies as st

from service.openapi.document import document
from tests.fuzz.conftest import ENV, EXAMPLES, SEED, bounded
from tests.fuzz.judge import code_of
from tests.fuzz.requests import Requests
from tests.instruments.interface import Interface
from tests.instruments.processes import Fleet
from tests.instruments.wire import Got, Sent, Wire

ADMIN: Final = "admin-key-of-the-tests-0123456789"
WORDS: Final = {"ada": "plover7263", "bob": "magpie9151"}
"""In everything that is an owner's: said, told, named in metadata, titles and system prompts."""
NAMES: Final = ("diary", "my-chat")
INTERFACE: Final = Interface(document())
REQUESTS: Final = Requests(INTERFACE)
OPERATIONS: Final = sorted(one for one in INTERFACE.operations() if "/admin/" not in one[1])
OPEN_TO_ALL: Final = {
    (method, path) for method, path in OPERATIONS if not INTERFACE.operations()[method, path]["security"]
}


class Owner:
    """One owner: its key, its sessions, and all that can be seen of them."""

    def __init__(self, wire: Wire, who: str) -> None:
        self.wire, self.who, self.word = wire, who, WORDS[who]
        body = json.dumps({"principal": who}).encode()
        made = wire.ask(Sent(b"POST", b"/v1/admin/keys", ((b"Authorization", b"Bearer " + ADMIN.encode()),), body))
        assert made.status == 201, made.body
        self.auth = (b"Authorization", b"Bearer " + made.json["key"].encode())
        self.ids = [self._session(name) for name in NAMES]
        listed = self.get("/v1/sessions?limit=1")
        self.cursor = listed["next_cursor"]
        self.turns = [one["id"] for one in self.get(f"/v1/sessions/{NAMES[0]}/turns")["turns"]]

    def ask(self, method: str, path: str, body: Any = None, *headers: tuple[bytes, bytes]) -> Got:
        raw = None if body is None else json.dumps(body).encode()
        return self.wire.ask(Sent(method.encode(), path.encode(), (self.auth, *headers), raw))

    def get(self, path: str) -> Any:
        got = self.ask("GET", path)
        assert got.status == 200, got.body
        return got.json

    def _session(self, name: str) -> str:
        labels = {"title": self.word, "metadata": {"m": self.word}, "system_prompt": f"Say {self.word}."}
        made = self.ask(
            "POST", "/v1/sessions", {"name": name, "model": "claude-sonnet-5-5", "ttl_seconds": 3600, **labels}
        )
        assert made.status == 201, made.body
        for stream in (False, True):
            self.talk(name, stream=stream)
        return str(made.json["id"])

    def talk(self, name: str, *, stream: bool = False) -> None:
        """A turn in a session of its own."""
        said = {"messages": [{"role": "user", "content": f"My word is {self.word}."}], "stream": stream}
        got = self.ask("POST", "/v1/chat/completions", {**said, "session_id": name})
        assert got.status == 200, got.body

    def everything(self) -> list[Any]:
        """What it has, as far as that can be told without touching it."""
        listed = self.get("/v1/sessions?limit=100")
        del listed["next_cursor"]  # holds the time
        stats = self.get("/v1/sessions/stats")
        del stats["average_session_age_minutes"]
        return [listed, stats]

    def histories(self) -> list[Any]:
        """Messages and turns of its sessions."""
        return [self.get(f"/v1/sessions/{name}/{part}?limit=100") for name in NAMES for part in ("messages", "turns")]


@pytest.fixture(scope="module")
async def keyed(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    env = ENV | {"BATON_ADMIN_KEY": ADMIN}
    async with Fleet(tmp_path_factory.mktemp("owners"), replicas=2, env=env) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def owners(keyed: Fleet) -> Iterator[tuple[Owner, Owner]]:
    """Each on a replica of its own."""
    ada, bob = (Owner(Wire(replica.url), who) for replica, who in zip(keyed.replicas, WORDS, strict=True))
    yield ada, bob
    for owner in (ada, bob):
        owner.wire.close()


def aimed(sent: Sent, draw: st.DataObject, owner: Owner) -> tuple[Sent, bool]:
    """The request with ids of this owner's wherever it has any; and whether it can only be about its session."""
    session = draw.draw(st.sampled_from(owner.ids)).encode()
    turn = draw.draw(st.sampled_from([b"1", b"2", *map(str.encode, owner.turns)]))
    target = re.sub(rb"^/v1/sessions/(?!stats\b)[^/?]+", b"/v1/sessions/" + session, sent.target)
    target = re.sub(rb"/turns/[^/?]+", b"/turns/" + turn, target)
    target = re.sub(rb"cursor=[^&]*", b"cursor=" + owner.cursor.encode(), target)
    headers = [
        pair for pair in sent.headers if pair[0].lower() not in (b"authorization", b"x-api-key", b"x-session-id")
    ]
    in_path = target.startswith(b"/v1/sessions/" + session)
    if not in_path and draw.draw(st.integers(0, 3)):
        headers.append((b"X-Session-Id", session))
    body = sent.body
    if body and body.startswith(b"{") and draw.draw(st.booleans()):
        body = re.sub(rb'("session_id": *)"[^"]*"', rb'\1"' + session + b'"', body)
    return Sent(sent.method, target, tuple(headers), body, sent.chunked), in_path


ATTACKS: Final = [
    pytest.param(attacker, *operation, id=f"{list(WORDS)[attacker]}-{'-'.join(operation)}")
    for number, operation in enumerate(OPERATIONS)
    for attacker in ([0, 1] if EXAMPLES else [number % 2])
]
"""Each operation by one of them, in turn; at length by both. They differ in nothing but their words and replicas."""


@pytest.mark.parametrize(("attacker", "method", "path"), ATTACKS)
def test_nobody_reads_changes_or_counts_what_is_anothers(
    owners: tuple[Owner, Owner], method: str, path: str, attacker: int
) -> None:
    if EXAMPLES:
        print(f"\n{method} {path}: FUZZ_SEED={SEED}")
    one, other = owners[attacker], owners[1 - attacker]
    before, held = other.everything(), []

    @seed(SEED)
    @bounded(8)
    @given(REQUESTS.of(method, path), st.data())
    def asked(sent: Sent, draw: st.DataObject) -> None:
        sent, in_path = aimed(sent, draw, other)
        got = one.wire.ask(Sent(sent.method, sent.target, (one.auth, *sent.headers), sent.body, sent.chunked))
        assert got.status < 500, (sent, got.body)
        assert other.word.encode() not in got.body, (sent, got.body[:1000])
        assert other.word not in str(got.headers), sent
        if in_path:
            assert got.status >= 400, (sent, got.body[:1000])
            assert code_of(got) not in ("role_too_small", "turn_not_found", "share_not_found"), (sent, got.body)
        assert other.everything() == before, sent
        held.append(got.status)

    asked()
    assert held
    if (method, path) not in OPEN_TO_ALL:
        one.talk(NAMES[0], stream=True)  # in a session of the same name
        assert other.everything() == before


def test_what_was_said_for_one_owner_was_never_sent_for_another(keyed: Fleet, owners: tuple[Owner, Owner]) -> None:
    """After all of the above; both still have their own, and only that."""
    for owner, other in (owners, owners[::-1]):
        told = json.dumps(owner.histories())
        assert owner.word in told
        assert other.word not in told
    records = keyed.simulator.records()
    sent = [json.dumps(record) for record in records]
    by = {word: sum(word in one for one in sent) for word in WORDS.values()}
    assert min(by.values()) >= 4, by
    assert not [one for one in sent if all(word in one for word in WORDS.values())]
