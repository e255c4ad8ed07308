"""Where scenarios are played: a replica, a store, the stand-in for Claude, and a tap between it and the replica."""

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from tests.golden.tap import Tap
from tests.golden.transcript import Transcript
from tests.instruments.processes import Fleet
from tests.instruments.wire import Got, Sent, Wire

Dialect = Literal["chat", "messages"]
Json = dict[str, Any]

PATHS: Final[dict[Dialect, str]] = {"chat": "/v1/chat/completions", "messages": "/v1/messages"}
_ASKED_OF_CLAUDE: Final = "POST /v1/messages"


class Talk:
    """One scenario: what a client of one dialect does, written down as it happens.

    Args:
        stage: where.
        dialect: of the client.
        title: of the transcript.
    """

    def __init__(self, stage: "Stage", dialect: Dialect, title: str) -> None:
        self._stage = stage
        self.dialect = dialect
        self.transcript = Transcript(f"{dialect}: {title}")

    def turn(
        self, said: str | list[Json], session: str | None = None, *, headers: Json | None = None, **fields: Any
    ) -> Got:
        """A turn, with a user's text or with messages; ``fields`` over what a body has at least."""
        messages = [{"role": "user", "content": said}] if isinstance(said, str) else said
        body: Json = {"model": "claude-sonnet-5-5", "messages": messages}
        if self.dialect == "messages":
            body["max_tokens"] = 100
        named = {} if session is None else {"x-session-id": session}
        return self.ask("POST", PATHS[self.dialect], {**body, **fields}, {**named, **(headers or {})})

    def ask(self, method: str, path: str, body: Json | None = None, headers: Json | None = None) -> Got:
        """Any request."""
        raw = b"" if body is None else json.dumps(body).encode()
        named = {} if headers is None else headers
        pairs = tuple((name.encode(), value.encode()) for name, value in named.items())
        self._stage.tap.take()
        got = self._stage.wire.ask(Sent(method.encode(), path.encode(), pairs, None if body is None else raw))
        self.transcript.asked("client → baton", f"{method} {path}", named, raw)
        for asked, told in self._stage.tap.take():
            if asked.line.startswith(_ASKED_OF_CLAUDE):
                self.transcript.asked("baton → claude", asked.line.removesuffix(" HTTP/1.1"), asked.headers, asked.body)
                self.transcript.told("claude → baton", told.line, told.headers, told.body)
        self.transcript.told("baton → client", str(got.status), got.headers, got.body)
        return got

    def fault(self, kind: str, **fields: Any) -> None:
        """The next answer of Claude's goes wrong."""
        self._control("faults", {"kind": kind, **fields})

    def pace(self, **fields: int) -> None:
        """Claude takes its time from now on, in all scenarios: whoever changes it changes it back."""
        self._control("pace", fields)

    def _control(self, what: str, body: Json) -> None:
        sent = Sent(b"POST", f"/simulator/{what}".encode(), body=json.dumps(body).encode())
        assert self._stage.control.ask(sent).status == 200
        self.transcript.note(f"Claude is told its {what}: {json.dumps(body)}")


@dataclass(frozen=True, slots=True)
class Stage:
    """The wires of a fleet that scenarios are played on."""

    tap: Tap
    wire: Wire
    control: Wire

    def play(self, dialect: Dialect, title: str, scenario: Callable[[Talk], None]) -> str:
        """The transcript of a scenario. Blocks; the loop that the tap runs on must go on meanwhile."""
        talk = Talk(self, dialect, title)
        scenario(talk)
        return talk.transcript.text()


@contextlib.asynccontextmanager
async def set_up(directory: Path) -> AsyncIterator[Stage]:
    """A stage, until the block ends."""
    async with Tap() as tap, Fleet(directory, replicas=0) as fleet:
        tap.port = urlsplit(fleet.simulator.url).port or 0
        replica = await fleet.add_replica(env={"ANTHROPIC_BASE_URL": tap.url})
        with contextlib.closing(Wire(replica.url)) as wire, contextlib.closing(Wire(fleet.simulator.url)) as control:
            yield Stage(tap, wire, control)
