"""The clients that people use already, each installed and run as its own users would write it, against Baton.

Two replicas are behind a balancer that gives each request to the next one. The programs are in ``python``,
``javascript`` and ``shell``; they are told Baton's address and the name of a session, and know nothing else of it.
Judged is what they saw, what Claude received, and what Baton tells of the session's turns.

Not a part of `make test`: `make test-clients` installs the clients, which takes package indexes.
"""

import asyncio
import os
import shutil
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from tests.clients import environments
from tests.clients.table import AIDER, CLAUDE_CODE, CODEX, HEARD, KNOWN, LLM, TALKERS, Client
from tests.instruments.child import Child
from tests.instruments.processes import Fleet

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.clients,
    pytest.mark.timeout(environments.INSTALL_TIMEOUT_S + 120),
]

RUN_TIMEOUT_S: Final = 90.0
HERE: Final = Path(__file__).resolve().parent
INTERPRETERS: Final = {".mjs": "node", ".py": "python", ".sh": "bash"}

Json = dict[str, Any]


class Run:
    """What came of a client's program.

    Attributes:
        code: its exit code.
        log: all that it printed.
        session: the name that it was given.
        received: the bodies that Claude got, in order.
    """

    def __init__(self, child: Child, code: int, session: str, received: list[Json]) -> None:
        self.code, self.session, self.received = code, session, received
        self.log = child.log()
        self._printed = child.events()

    @property
    def lines(self) -> list[str]:
        """What it printed, line by line."""
        return self.log.splitlines()

    def saw(self) -> Json:
        """The JSON that it printed last."""
        assert self.code == 0 and self._printed, self.log
        return self._printed[-1]

    def lengths(self) -> list[int]:
        """How many messages Claude got each time."""
        return [len(body["messages"]) for body in self.received]


Runs = Callable[[Client], Awaitable[Run]]


@pytest.fixture
def run(fleet: Fleet, baton: str, tmp_path: Path, record_property: Callable[[str, object], None]) -> Runs:
    """Installs a client if that was not done yet, and runs its program to its end."""

    async def runs(client: Client) -> Run:
        for name, value in (("client", client.name), ("versions", client.versions), ("did", client.did)):
            record_property(name, value)
        programs = await asyncio.to_thread(environments.programs, client.environment)
        path = os.pathsep.join([str(programs), os.environ["PATH"]])
        program = HERE / client.program
        if program.suffix == ".mjs":
            program = programs.parents[1] / program.name  # where node finds what it imports
        interpreter = shutil.which(INTERPRETERS[program.suffix], path=path)
        assert interpreter is not None, f"there is no {INTERPRETERS[program.suffix]} on this machine"
        session = f"c-{uuid.uuid4().hex[:12]}"
        settings = {
            "BATON": baton,
            "SESSION": session,
            "PATH": path,
            "HOME": str(tmp_path),
            "PYTHONPATH": "",  # the clients' own packages, not Baton's
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it fetches a list of prices when it is imported
        }
        before = await fleet.simulator.total()
        async with Child("client", _in_order(interpreter, program), tmp_path, settings) as child:
            code = await child.wait(RUN_TIMEOUT_S)
            count = await fleet.simulator.total() - before
            answered = await fleet.simulator.requests(count) if count else []
            return Run(child, code, session, [each["body"] for each in answered if each["outcome"] == "complete"])

    return runs


def _in_order(interpreter: str, program: Path) -> list[str]:
    """The command; a shell ends at the first of its commands that fails."""
    return [interpreter, *(["-eu"] if program.suffix == ".sh" else []), str(program)]


async def turns_of(url: str, session: str) -> list[Json]:
    """The turns of a session that became history, oldest first."""
    async with aiohttp.ClientSession() as http, http.get(f"{url}/v1/sessions/{session}/turns") as answer:
        turns: list[Json] = (await answer.json())["turns"]
    return [turn for turn in reversed(turns) if turn["verdict"] == "committed"]


@pytest.mark.parametrize("client", TALKERS, ids=lambda client: Path(client.program).stem)
async def test_a_library_talks_over_two_replicas(run: Runs, baton: str, client: Client) -> None:
    told = await run(client)
    assert told.saw() == client.saw
    assert told.lengths() == client.received
    turns = await turns_of(baton, told.session)
    assert {turn["dialect"] for turn in turns} == {client.dialect}
    assert {turn["streamed"] for turn in turns} == client.streamed
    assert len({turn["replica"] for turn in turns}) == 2
    assert not any(turn["rewound"] for turn in turns)


async def test_llm_makes_a_conversation_of_single_prompts(run: Runs, baton: str) -> None:
    told = await run(LLM)
    assert told.code == 0, told.log
    said = [line for line in told.lines if line.startswith("Y")]
    weather = [f'You said: "18 degrees in {city}". I received {n} messages.' for city, n in (("Paris", 3), ("Oslo", 7))]
    assert said == [HEARD, KNOWN, *weather]
    assert told.lengths() == LLM.received
    turns = await turns_of(baton, told.session)
    assert [turn["streamed"] for turn in turns] == [True, False]
    assert len({turn["replica"] for turn in turns}) == 2


async def test_aider_edits_a_file_and_commits_it(run: Runs) -> None:
    told = await run(AIDER)
    assert told.code == 0, told.log
    assert told.lines[-3:] == ["2", "def greet():", '    return "Hello, Ada"']  # the commits, and the file
    assert told.lengths() == AIDER.received


async def test_claude_code_goes_on_where_it_was_and_uses_its_tools(run: Runs, baton: str) -> None:
    told = await run(CLAUDE_CODE)
    assert told.code == 0, told.log
    assert told.lines[-2:] == [KNOWN, 'You said: "1 It rains in Paris. 2". I received 7 messages.']
    assert told.lengths() == CLAUDE_CODE.received
    turns = await turns_of(baton, told.session)
    assert [turn["stop_reason"] for turn in turns] == ["end_turn", "end_turn", "tool_use", "end_turn"]
    assert not any(turn["rewound"] for turn in turns)


async def test_codex_asks_for_an_api_that_is_not_there_yet(
    run: Runs, record_property: Callable[[str, object], None]
) -> None:
    told = await run(CODEX)
    assert told.code != 0
    refusals = [line for line in told.lines if line.startswith("ERROR: ")]
    assert refusals and all("404 Not Found" in line and "/v1/responses" in line for line in refusals)
    assert told.received == []
    record_property("result", "cannot talk to Baton: it speaks /v1/responses only, which is not there yet")
