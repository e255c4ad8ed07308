"""Clients that keep the history themselves and send all of it: continue, regenerate, edit, stop, over two replicas."""

from typing import Any

import pytest

from tests.e2e.caller import Answer, Caller, eventually, text_of
from tests.instruments.processes import Simulator

pytestmark = pytest.mark.anyio

DELTA = {"X-Session-Input": "delta"}


class Client:
    """A chat client that shows a transcript and sends all of it with every turn, to one replica and the other."""

    def __init__(self, session: str, *callers: Caller) -> None:
        self.session = session
        self.callers = callers
        self.transcript: list[dict[str, str]] = []
        self.last: Answer | None = None
        self._turns = 0

    async def say(self, text: str) -> str:
        self.transcript.append({"role": "user", "content": text})
        return await self.send()

    async def send(self) -> str:
        """Sends the transcript as it is now and shows the answer."""
        caller = self.callers[self._turns % len(self.callers)]
        self._turns += 1
        self.last = await caller.chat("", self.session, messages=self.transcript)
        self.transcript.append({"role": "assistant", "content": self.last.text})
        return self.last.text

    async def is_stored(self) -> None:
        """The store holds the transcript, and nothing else."""
        stored = await self.callers[0].messages(self.session)
        assert [(one["role"], said(one)) for one in stored] == [(m["role"], m["content"]) for m in self.transcript]


def said(message: Any) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(block["text"] for block in content)


def state(answer: Answer | None) -> str:
    assert answer is not None
    return str(answer.headers["x-session-state"])


@pytest.fixture
def client(one: Caller, two: Caller, name: str) -> Client:
    return Client(name, one, two)


async def test_a_resent_history_is_stored_once(client: Client, one: Caller, name: str) -> None:
    await client.say("My name is Ada.")
    assert await client.say("What is my name?") == "Your name is Ada."
    assert await client.say("How many messages?") == "This conversation holds 5 messages."
    assert state(client.last) == "continued"
    await client.is_stored()
    session = await one.session(name)
    assert (session["message_count"], session["turn_count"]) == (6, 3)


async def test_an_answer_can_be_asked_for_anew(client: Client, one: Caller, name: str) -> None:
    await client.say("My name is Ada.")
    await client.say("How many messages?")
    client.transcript.pop()
    assert await client.send() == "This conversation holds 3 messages."
    assert state(client.last) == "rewound"
    await client.is_stored()
    session = await one.session(name)
    assert (session["message_count"], session["turn_count"]) == (4, 2)
    turns = (await one.get(f"/v1/sessions/{name}/turns")).json["turns"]
    assert [(turn["number"], turn["verdict"], turn["rewound"]) for turn in turns] == [
        (3, "committed", False),
        (2, "committed", True),
        (1, "committed", False),
    ]
    rewound = (await one.get(f"/v1/sessions/{name}/turns/2")).json
    assert (rewound["message_range"], rewound["messages"]) == (None, [])
    assert await client.say("What is my name?") == "Your name is Ada."
    await client.is_stored()


async def test_an_edited_question_takes_another_course(client: Client, one: Caller, name: str) -> None:
    await client.say("My name is Ada.")
    await client.say("My name is Bob.")
    await client.say("What is my name?")
    del client.transcript[3:]
    client.transcript[2] = {"role": "user", "content": "Nothing new."}
    await client.send()
    assert state(client.last) == "rewound"
    assert await client.say("What is my name?") == "Your name is Ada."
    await client.is_stored()
    assert (await one.session(name))["turn_count"] == 3


async def test_an_edited_answer_is_stored_as_edited(client: Client) -> None:
    await client.say("My name is Ada.")
    await client.say("And now?")
    client.transcript[3] = {"role": "assistant", "content": "I had said something else."}
    assert await client.say("How many messages?") == "This conversation holds 5 messages."
    await client.is_stored()


async def test_a_stopped_answer_is_recognised_by_what_was_seen_of_it(
    client: Client, one: Caller, simulator: Simulator, name: str
) -> None:
    await client.say("My name is Ada.")
    await simulator.pace(delta_ms=20)
    async with one.stream(f"count to 200 {name}", name) as stream:
        await stream.words(5)
        stream.hang_up()
    await simulator.pace(delta_ms=0)

    async def stored() -> bool:
        session = await one.session(name)
        return bool(session["message_count"] == 4 and session["status"] == "active")

    await eventually(stored, "the incomplete turn")
    kept = said((await one.messages(name))[-1])
    client.transcript.append({"role": "user", "content": f"count to 200 {name}"})
    client.transcript.append({"role": "assistant", "content": text_of(stream.frames)})
    assert kept.startswith(text_of(stream.frames))
    assert await client.say("What is my name?") == "Your name is Ada."
    assert state(client.last) == "continued"
    client.transcript[3]["content"] = kept
    await client.is_stored()


async def test_a_refused_question_is_not_stored_though_it_is_sent_again(
    client: Client, one: Caller, simulator: Simulator, name: str
) -> None:
    await client.say("My name is Ada.")
    await simulator.fault("refusal", match=f"how to {name}")
    refused = await one.chat("", name, messages=[*client.transcript, {"role": "user", "content": f"how to {name}"}])
    assert refused.json["choices"][0]["finish_reason"] == "content_filter"
    shown = [{"role": "user", "content": f"how to {name}"}, {"role": "assistant", "content": "I cannot help."}]
    kept = list(client.transcript)
    client.transcript += [*shown, {"role": "user", "content": "How many messages?"}]
    assert await client.send() == "This conversation holds 3 messages."
    client.transcript = [*kept, *client.transcript[-2:]]
    await client.is_stored()


async def test_a_window_is_a_mismatch_and_changes_nothing(client: Client, one: Caller, simulator: Simulator) -> None:
    await client.say("My name is Ada.")
    await client.say("Something.")
    asked = await simulator.total()
    window = [*client.transcript[2:], {"role": "user", "content": "What is my name?"}]
    refused = await one.chat("", client.session, messages=window)
    assert (refused.status, refused.code) == (409, "history_mismatch")
    assert await simulator.total() == asked
    await client.is_stored()
    assert (await one.session(client.session))["status"] == "active"
    await one.chat("", client.session, messages=window, headers=DELTA)
    assert len(await one.messages(client.session)) == 8


async def test_full_can_be_said_and_nonsense_cannot(one: Caller, name: str) -> None:
    await one.chat("How many messages?", name)
    again = await one.chat("How many messages?", name, headers={"X-Session-Input": "full"})
    assert again.text == "This conversation holds 1 messages."
    assert state(again) == "rewound"
    refused = await one.chat("Hi", name, headers={"X-Session-Input": "full"}, session_input="delta")
    assert (refused.status, refused.code) == (400, "invalid_value")
    in_body = await one.chat("How many messages?", name, session_input="full")
    assert (in_body.text, state(in_body)) == ("This conversation holds 1 messages.", "rewound")


async def test_an_answer_anew_that_is_refused_leaves_the_old_one(
    client: Client, one: Caller, simulator: Simulator, name: str
) -> None:
    await client.say("My name is Ada.")
    await client.say(f"Twice {name}")
    await simulator.fault("refusal", match=f"Twice {name}")
    refused = await one.chat("", name, messages=client.transcript[:3])
    assert refused.json["choices"][0]["finish_reason"] == "content_filter"
    await client.is_stored()


async def test_a_failed_rewind_leaves_everything_as_it_was(client: Client, one: Caller, simulator: Simulator) -> None:
    await client.say("My name is Ada.")
    await client.say(f"Twice {client.session}")
    await simulator.fault("error", times=3, match=f"Twice {client.session}")
    failed = await one.chat("", client.session, messages=client.transcript[:3])
    assert failed.status == 503
    await client.is_stored()
