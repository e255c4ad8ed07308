"""Short lives of sessions: made, changed, spoken to in both dialects, appended to, forgotten; against a model of them.

The values are the document's own. Each answer is as it says, and what a session then is follows from what was accepted.
"""

import json
from copy import deepcopy
from itertools import count
from typing import Any

from hypothesis import seed
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from service.openapi.schemas import ref
from tests.fuzz.conftest import SEED, bounded
from tests.fuzz.judge import Judge, code_of
from tests.fuzz.test_operations import REQUESTS
from tests.fuzz.values import TEXTS
from tests.instruments.wire import Got, Sent, Wire

_names = count()

creations = REQUESTS.bodies("/v1/sessions", ref("NewSession"))
changes = REQUESTS.bodies("/v1/sessions/{session}", ref("SessionChanges"))
texts = TEXTS.filter(lambda text: text.strip() != "")
labels = ("title", "metadata", "system_prompt", "max_turns")


class Lives(RuleBasedStateMachine):
    """One session at a time, by a name that nobody used before."""

    def __init__(self, wire: Wire, judge: Judge) -> None:
        super().__init__()
        self.wire, self.judge = wire, judge
        self.known: dict[str, Any] = {}
        self.messages = 0
        self.turns = 0

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Got:
        pairs = tuple((name.replace("_", "-").encode(), value.encode()) for name, value in headers.items())
        sent = Sent(method.encode(), path.encode(), pairs, None if body is None else json.dumps(body).encode())
        got = self.wire.ask(sent)
        assert self.judge.problems(sent, got) == [], (got.status, got.body[:1000])
        return got

    @initialize(body=creations)
    def begin(self, body: dict[str, Any]) -> None:
        """A new session; it lives long enough to be asked about, and names a model that there is."""
        self.name = f"life-{next(_names)}"
        fixed = {"name": self.name, "model": "claude-sonnet-5-5", "ttl_seconds": 600, "absolute_expires_at": None}
        made = self.ask("POST", "/v1/sessions", body | fixed)
        assert made.status == 201, made.body
        self.known = {label: deepcopy(body[label]) for label in labels if body.get(label) is not None}
        self.messages = self.turns = 0

    @property
    def path(self) -> str:
        return f"/v1/sessions/{self.name}"

    @rule(body=changes)
    def change(self, body: dict[str, Any]) -> None:
        body = {**body, "model": "claude-opus-5-5", "ttl_seconds": 600}
        assert self.ask("PATCH", self.path, body).status == 200
        for label in labels:
            if label in body:
                self.known[label] = deepcopy(body[label])

    @rule(text=texts, dialect=st.sampled_from(["chat", "messages"]), stream=st.booleans())
    def speak(self, text: str, dialect: str, stream: bool) -> None:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 20, "stream": stream}
        path = "/v1/chat/completions" if dialect == "chat" else "/v1/messages"
        got = self.ask("POST", path, body, X_Session_Id=self.name)
        if self.known.get("max_turns") is not None and self.turns >= self.known["max_turns"]:
            assert code_of(got) == "max_turns_reached"
            return
        assert got.status == 200, got.body
        self.turns += 1
        self.messages += 2
        if stream:
            number = self.ask("GET", f"{self.path}/turns?limit=1").json["turns"][0]["number"]
            followed = self.ask("GET", f"{self.path}/turns/{number}/events")
            assert followed.events()[-1] == got.events()[-1]

    @rule(said=st.lists(texts, max_size=2))
    def append(self, said: list[str]) -> None:
        pairs = [[{"role": "user", "content": text}, {"role": "assistant", "content": "noted"}] for text in said]
        messages = [message for pair in pairs for message in pair]
        assert self.ask("POST", f"{self.path}/messages", {"messages": messages}).status == 200
        self.messages += len(messages)

    @rule(body=creations)
    def forget(self, body: dict[str, Any]) -> None:
        assert self.ask("DELETE", self.path).status == 200
        assert self.ask("GET", self.path).status == 404
        self.begin(body)

    @invariant()
    def it_is_as_it_was_made(self) -> None:
        if not hasattr(self, "name"):
            return
        session = self.ask("GET", self.path).json
        assert {label: session[label] or None for label in labels} == {
            label: self.known.get(label) or None for label in labels
        }
        shown = self.ask("GET", f"{self.path}/messages?limit=100").json
        told = [message for message in shown["messages"] if message["role"] != "system"]
        assert session["turn_count"] == self.turns
        assert len(told) == min(self.messages, 100)


def test_sessions_are_what_was_accepted(wire: Wire, judge: Judge) -> None:
    @seed(SEED)
    class Here(Lives):
        def __init__(self) -> None:
            super().__init__(wire, judge)

    run_state_machine_as_test(Here, settings=bounded(12, steps=12))
