"""The demo: one conversation over three replicas, one of which is killed while it answers.

The processes are in ``demo_cast``; this one is the client: the openai SDK as it is published, which sends one new
message a turn and never the history. The story proves something only because the stand-in for Claude cannot cheat: it
has no memory and can tell the name if, and only if, the request that it was sent holds the message that told it.

At the end, at Ctrl-C and SIGTERM and when the demo itself fails, all processes are stopped, and the directory of logs
and data is removed; after a failure it stays.
"""

import http.client
import importlib.util
import json
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import click

from service.demo_cast import INHERITED, LEASE_MS, REPLICAS, Cast, DemoFailed

EX_UNAVAILABLE: Final = 69
SESSION: Final = "the-demo"
MODEL: Final = "claude-sonnet-5-5"

_TURN_S: Final = 20.0
_COUNT_TO: Final = 400
_KILL_AT: Final = 60
_DELTA_MS: Final = 15


@dataclass
class Told:
    """A turn as the client saw it.

    Attributes:
        replica: the number of who served it.
        duration_s: until the last byte.
        finish_reason: None if the answer did not come to its end.
        raised: what the SDK raised in the middle of the stream, "" if nothing.
    """

    number: int
    question: str
    streamed: bool
    replica: int = 0
    answer: str = ""
    duration_s: float = 0.0
    finish_reason: str | None = None
    raised: str = ""


class Story:
    """The conversation and what it proves.

    Args:
        cast: started.
    """

    def __init__(self, cast: Cast) -> None:
        from openai import DefaultHttpxClient, OpenAI  # an extra, and a second of importing

        self._cast = cast
        self._client = OpenAI(
            base_url=f"{cast.front_url}/v1",
            api_key="not-needed",
            max_retries=0,
            timeout=_TURN_S,
            http_client=DefaultHttpxClient(trust_env=False),  # everything here is on this machine: no proxy
        )
        self._turns: list[Told] = []
        self.checks: list[tuple[bool, str]] = []

    def tell(self) -> bool:
        """Tells the whole story; True if every check holds.

        Raises:
            DemoFailed: something went wrong that is not part of it.
        """
        self._begin()
        cut = self._kill_in_the_middle()
        self._carry_on(cut)
        self._start_anew(cut.replica)
        self._look_at_the_history()
        _say("\nWhat this proves\n")
        for holds, sentence in self.checks:
            _say(f"  {_mark(holds)} {sentence}")
        return all(holds for holds, _ in self.checks)

    def _begin(self) -> None:
        _say(f'The client is the openai SDK. A turn is one new message and session_id="{SESSION}", no history.\n')
        self._turn("My name is Ada.")
        name = self._turn("What is my name?")
        first = self._turn("What did I say first?")
        self._turn("How many messages are there?")
        served = {turn.replica for turn in self._turns}
        self._check(served == set(range(1, REPLICAS + 1)), f"All {REPLICAS} replicas served turns of one session.")
        known = "Ada" in name.answer and "My name is Ada." in first.answer
        self._check(known, "Each knew what was said to the others.")

    def _kill_in_the_middle(self) -> Told:
        before = self._stored()
        _fetch("POST", f"{self._cast.simulator_url}/simulator/pace", {"delta_ms": _DELTA_MS})
        cut = self._turn(f"Please count to {_COUNT_TO}.", streamed=True, kill_at=_KILL_AT)
        _fetch("POST", f"{self._cast.simulator_url}/simulator/pace", {"delta_ms": 0})
        got = len(cut.answer.split())
        saw = f"the SDK raised {cut.raised}" if cut.raised else "the stream just ended"
        _note(f"The client got {got} of {_COUNT_TO} numbers, no finish_reason and no [DONE]: {saw}.")
        _note("The SDK's retries are off (max_retries=0), so nothing is mended out of sight. The front does not send")
        _note("a request twice, either: it cannot know whether Claude was asked already. The client asks again.")
        broken = cut.finish_reason is None and _KILL_AT <= got < _COUNT_TO
        self._check(broken, f"Replica {cut.replica} was killed in mid-answer; the client saw it: {saw}.")
        self._check(self._stored() == before, "The interrupted turn is not in the history.")
        return cut

    def _carry_on(self, cut: Told) -> None:
        asked = self._turn("What is my name?")
        _note(f"It waited for the lease of the dead turn: {LEASE_MS / 1000:g} s from its last renewal. Until then the")
        _note("replica might have been slow and not dead. Then the turn was declared dead and this one began.")
        found = self._cast.replicas[asked.replica - 1].logged("dead_turn_found")
        self._check(asked.replica != cut.replica, f"The next turn was served by another one, replica {asked.replica}.")
        in_time = asked.duration_s < LEASE_MS / 1000 + 2
        self._check(found and in_time, f"It waited {asked.duration_s:.1f} s for the dead turn's lease, no longer.")
        self._check("Ada" in asked.answer, f"It still knew turn 1: {asked.answer}")
        self._turn("How many messages are there?")

    def _start_anew(self, number: int) -> None:
        began = time.monotonic()
        self._cast.start_anew(number)
        _note(f"Replica {number} was started anew, {time.monotonic() - began:.1f} s.")
        for _ in range(REPLICAS):
            asked = self._turn("What is my name?")
            if asked.replica == number:
                break
        known = asked.replica == number and "Ada" in asked.answer
        self._check(known, f"Replica {number}, started anew, carries the conversation on: {asked.answer}")

    def _look_at_the_history(self) -> None:
        whole = [turn for turn in self._turns if turn.finish_reason == "stop"]
        asked_and_answered = [text for turn in whole for text in (turn.question, turn.answer)]
        self._check(
            self._stored() == asked_and_answered and len(whole) == len(self._turns) - 1,
            f"The session holds the {len(whole)} complete turns, in order, word for word, and nothing else.",
        )

    def _stored(self) -> list[str]:
        """The texts of the session's messages, read from any replica."""
        page = _fetch("GET", f"{self._cast.front_url}/v1/sessions/{SESSION}/messages?limit=100")
        contents = [message["content"] for message in page["messages"]]
        return [text if isinstance(text, str) else "".join(block["text"] for block in text) for text in contents]

    def _turn(self, question: str, *, streamed: bool | None = None, kill_at: int = 0) -> Told:
        """One turn, told when it is over; streamed and whole ones alternate unless said otherwise."""
        from openai import APIConnectionError, OpenAIError

        number = len(self._turns) + 1
        told = Told(number, question, number % 2 == 1 if streamed is None else streamed)
        self._turns.append(told)
        began = time.monotonic()
        try:
            if told.streamed:
                self._ask_streamed(told, kill_at)
            else:
                self._ask(told)
        except APIConnectionError as error:
            if not kill_at:
                raise DemoFailed(f"Turn {number} failed: {error!r}") from error
            told.raised = type(error).__name__
        except OpenAIError as error:
            raise DemoFailed(f"Turn {number} failed: {error!r}") from error
        told.duration_s = time.monotonic() - began
        _show(told)
        return told

    def _ask(self, told: Told) -> None:
        raw = self._client.chat.completions.with_raw_response.create(
            model=MODEL, messages=[{"role": "user", "content": told.question}], extra_body={"session_id": SESSION}
        )
        told.replica = int(raw.headers["x-demo-replica"])
        choice = raw.parse().choices[0]
        told.answer, told.finish_reason = choice.message.content or "", choice.finish_reason

    def _ask_streamed(self, told: Told, kill_at: int) -> None:
        """With `kill_at`, kills whoever is answering once that many words are there."""
        deadline = time.monotonic() + _TURN_S
        raw = self._client.chat.completions.with_raw_response.create(
            model=MODEL,
            messages=[{"role": "user", "content": told.question}],
            extra_body={"session_id": SESSION},
            stream=True,
        )
        told.replica = int(raw.headers["x-demo-replica"])
        with raw.parse() as stream:
            for chunk in stream:
                if time.monotonic() > deadline:
                    raise DemoFailed(f"Turn {told.number} was not over within {_TURN_S:g} s.")
                for choice in chunk.choices:
                    told.answer += choice.delta.content or ""
                    told.finish_reason = choice.finish_reason or told.finish_reason
                if kill_at and len(told.answer.split()) >= kill_at:
                    kill_at = 0
                    self._kill(told.replica)

    def _kill(self, number: int) -> None:
        child = self._cast.replicas[number - 1]
        child.kill()
        at = datetime.now().astimezone().strftime("%H:%M:%S.%f")[:-3]
        _say(click.style(f"     {at}  kill -9 {child.pid}: replica {number}, in the middle of an answer", fg="red"))

    def _check(self, holds: bool, sentence: str) -> None:
        self.checks.append((holds, sentence))


def _fetch(method: str, url: str, body: object = None) -> Any:
    """A request that is not a turn; its answer's JSON."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_TURN_S)
    try:
        connection.request(method, f"{parts.path}?{parts.query}", None if body is None else json.dumps(body))
        response = connection.getresponse()
        text = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise DemoFailed(f"{method} {url}: {error!r}") from error
    finally:
        connection.close()
    if response.status != 200:
        raise DemoFailed(f"{method} {url}: {response.status} {text[:300]!r}")
    return json.loads(text)


def _say(text: str) -> None:
    click.echo(text)  # takes the colours off where there is no terminal


def _note(text: str) -> None:
    _say(click.style(f"     {text}", dim=True))


def _mark(holds: bool) -> str:
    return click.style("✓", fg="green") if holds else click.style("✗", fg="red")


def _show(turn: Told) -> None:
    answer = turn.answer if len(turn.answer) <= 52 else f"{turn.answer[:24]} … {turn.answer[-24:]}"
    if turn.finish_reason is None:
        answer += click.style("  ✗ cut", fg="red")
    kind = "streamed" if turn.streamed else "at once"
    who = click.style(f"replica {turn.replica}", fg=("cyan", "magenta", "yellow")[(turn.replica - 1) % 3])
    _say(f"{turn.number:>3}  {who}  {kind:8}  {turn.duration_s:5.2f} s  {turn.question:28}  → {answer}")


def _stay(cast: Cast) -> None:
    """Leaves everything running for whoever wants to try."""

    def curl(text: str) -> str:
        body = json.dumps({"session_id": "my-chat", "messages": [{"role": "user", "content": text}]})
        return (
            f"  curl -si {cast.front_url}/v1/chat/completions -H 'content-type: application/json' \\\n"
            f"    -d {shlex.quote(body)}"
        )

    _say("\nAll of it is still running. Try it; the header x-demo-replica tells who answered:\n")
    _say(f"{curl('My name is Grace.')}\n{curl('What is my name?')}\n")
    pids = ", ".join(f"{number} is {child.pid}" for number, child in enumerate(cast.replicas, 1))
    _say(f"Kill a replica if you like ({pids}). Logs: {cast.directory}. Ctrl-C ends everything.")
    while True:
        signal.pause()


def run(environment: Mapping[str, str], *, once: bool) -> int:
    """Runs the demo; returns the exit code. Call it from the main thread.

    Args:
        environment: of the caller; children get what any program needs, nothing more.
        once: end after the story, else stay until Ctrl-C.

    Returns:
        0 if every check holds, 1 if one does not or something failed, 69 without the openai SDK, 130 after Ctrl-C in
        the middle of the story.
    """
    if importlib.util.find_spec("openai") is None:
        click.echo("The demo's client is the openai SDK, which is not installed here. Install it with:", err=True)
        click.echo(f"  {shlex.quote(sys.executable)} -m pip install 'baton-sessions[demo]'", err=True)
        return EX_UNAVAILABLE
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # Ctrl-C, even where a shell made us ignore it
    directory = Path(tempfile.mkdtemp(prefix="baton-demo-")).resolve()
    cast = Cast(directory, {name: environment[name] for name in INHERITED if name in environment})
    code = 1
    try:
        code = _play(cast, once=once)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # what follows takes seconds at most and should not be left halfway
        words = cast.last_words() if code == 1 else []
        cast.stop()
        if code == 1:
            _say("\n".join([*words, f"Logs of all processes: {directory}"]))
        else:
            shutil.rmtree(directory, ignore_errors=True)
    return code


def _play(cast: Cast, *, once: bool) -> int:
    told = False
    try:
        _say(f"Starting Valkey, a stand-in for Claude, {REPLICAS} replicas, and a front that takes turns…")
        began = time.monotonic()
        cast.start()
        _say(f"Ready in {time.monotonic() - began:.1f} s: {cast.front_url}\n")
        if not Story(cast).tell():
            return 1
        told = True
        if not once:
            _stay(cast)
    except DemoFailed as error:
        _say(f"{_mark(False)} {error}")
        return 1
    except KeyboardInterrupt:
        _say("\nStopping…")
        return 0 if told else 130
    return 0
