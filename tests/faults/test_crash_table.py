"""The crash table of ``service/turn.py``, cell by cell, from outside.

Nine lines, each one a place where the victim stands still because a proxy holds a command, a reply, a request or an
event; line 4 has two such places. Each is played three ways: the victim is killed; it is frozen beyond its lease while
another turn of the session goes ahead, then thawed; it is frozen beyond its lease, nobody takes over, then thawed.

In every cell: what is in the store, what the caller saw, and that the survivor's next turn finds the right history.
At the end: what a killed replica had sent and the network delivers late.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest

from tests.faults.call import Call, Seen, assert_complete, assert_cut, assert_lost, assert_told
from tests.faults.places import Place
from tests.faults.stage import Books, Scene, Stage, answer, metric, stage, until
from tests.instruments.processes import Replica
from tests.instruments.proxy import Trap

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

# Claude's events: message_start, ping, content_block_start, then one for each word.
FIFTH_WORD = 8
TURNS_COMPLETE = 'baton_turns_total{outcome="complete"}'

Left = Literal["nothing", "pending", "committed", "aborted"]


@dataclass(frozen=True, slots=True)
class Stopped:
    """The victim's turn, standing still: ``go_on`` lets it move, ``lose`` loses for good what is held."""

    call: Call
    go_on: Callable[[], None]
    lose: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table.

    Attributes:
        arm: sets the trap that stops the victim's turn at this line; None for line 8, where nothing is under way.
        left: what a crash here leaves of the turn in the store.
        shown: the answer's text that the caller has seen by then.
        mark: of the victim's turn.
    """

    arm: Callable[[Scene, Replica], Trap[Any]] | None
    left: Left
    shown: str = ""
    mark: str = "victim"

    async def stop(self, scene: Scene, victim: Replica, *, streamed: bool = True) -> Stopped:
        """Plays the victim's turn up to this line."""
        if self.arm is None:
            return await _stopped_at_the_end(scene, victim, self.mark)
        if self.left == "aborted":  # Claude asks for more patience than anybody has
            await scene.stage.fleet.simulator.fault("rate_limit", retry_after_s=60, match=f"[mark:{self.mark}]")
        trap = self.arm(scene, victim)
        call = scene.ask(victim, self.mark, streamed=streamed)
        await trap.reached()
        if streamed:
            await call.shows(self.shown)
        return Stopped(call, trap.release, trap.drop)


async def _stopped_at_the_end(scene: Scene, victim: Replica, mark: str) -> Stopped:
    """A caller who does not read: the replica knows of the commit, by its own count, and cannot write the end."""
    before = await metric(victim, TURNS_COMPLETE)
    call = scene.ask(victim, mark, reads=False)

    async def counted() -> bool:
        return await metric(victim, TURNS_COMPLETE) == before + 1

    await until(counted)
    return Stopped(call, call.read_on, call.read_on)


ALL = answer("victim", "first")
LINES = {
    "1-begin-not-yet-sent": Line(lambda scene, victim: scene.at_request(victim, "begin"), "nothing"),
    "2-begin-executed": Line(lambda scene, victim: scene.at_reply(victim, "begin"), "pending"),
    "3-history-read": Line(lambda scene, victim: scene.at_history(victim), "pending"),
    "4-claude-being-asked": Line(lambda scene, victim: scene.at_claude(victim), "pending"),
    "4-claude-asked": Line(lambda scene, victim: scene.at_claude(victim, head=True), "pending"),
    "5-partly-shown": Line(lambda scene, victim: scene.at_claude(victim, FIFTH_WORD), "pending", "1 2 3 4"),
    "6-commit-not-sent": Line(lambda scene, victim: scene.at_request(victim, "commit"), "pending", ALL),
    "7-commit-executed": Line(lambda scene, victim: scene.at_reply(victim, "commit"), "committed", ALL),
    "8-commit-known": Line(None, "committed", mark="long"),
    "9-abort-executed": Line(lambda scene, victim: scene.at_reply(victim, "abort"), "aborted"),
}
every_line = pytest.mark.parametrize("line", LINES.values(), ids=LINES)


@pytest.fixture(scope="module")
async def crowded(
    anyio_backend: str, tmp_path_factory: pytest.TempPathFactory, ground_store: Place
) -> AsyncIterator[Stage]:
    """One stage for all cells: every cell has a session of its own, and a victim that lives."""
    async with stage(tmp_path_factory.mktemp("stage"), ground_store) as one:
        yield one


@pytest.fixture(scope="module")
async def killed(crowded: Stage) -> dict[str, tuple[Scene, Seen, Books]]:
    """One victim that stood at every line at once, in a session each: what its callers saw and what it left."""
    victim = await crowded.victim()
    scenes = {name: await crowded.scene() for name in LINES}
    # Whatever waits for the store gives up after some seconds, so these come last.
    order = sorted(LINES, key=lambda name: name[0] not in "458")
    stops = {name: await LINES[name].stop(scenes[name], victim) for name in order}
    victim.kill9()
    for stopped in stops.values():
        stopped.lose()
    return {name: (scene, await stops[name].call.ended(), await scene.books()) for name, scene in scenes.items()}


@pytest.mark.representative
@pytest.mark.parametrize("name", LINES)
async def test_killed(crowded: Stage, killed: dict[str, tuple[Scene, Seen, Books]], name: str) -> None:
    line, (scene, seen, left) = LINES[name], killed[name]
    assert_broken(seen, line)
    assert_left(left, line)

    stored = ["first", line.mark] if line.left == "committed" else ["first"]
    await scene.told(crowded.survivor, "next", after=stored[-1])
    books = await scene.books()
    books.assert_holds(*stored, "next")
    assert books.story == {"nothing": "CC", "pending": "CDC", "committed": "CCC", "aborted": "CAC"}[line.left]
    assert crowded.deaths_told(books.records[1]["id"]) == (line.left == "pending")


@every_line
async def test_frozen_while_another_turn_goes_ahead(crowded: Stage, line: Line) -> None:
    scene, victim = await crowded.scene(), await crowded.victim()
    stopped = await line.stop(scene, victim)
    victim.freeze()
    await scene.lease_over()
    assert_left(await scene.books(), line)
    stored = ["first", line.mark] if line.left == "committed" else ["first"]
    await scene.told(crowded.survivor, "other", after=stored[-1])
    stored.append("other")
    taken_over = await scene.books()

    stopped.go_on()
    victim.thaw()
    seen = await stopped.call.ended()
    if line.left == "nothing":  # it has not begun before the other one ended: a turn like any other, but late
        assert_complete(seen, answer(line.mark, "other"))
        stored.append(line.mark)
    elif line.left == "pending":
        assert_told(seen, "turn_superseded", 409)
        assert answer(line.mark, "first").startswith(seen.text)
        assert seen.text.startswith(line.shown)
    elif line.left == "committed":
        assert_complete(seen, answer(line.mark, "first"))
    else:
        assert_told(seen, "upstream_rate_limited", 429)
    if line.left != "nothing":
        assert await scene.books() == taken_over

    await scene.told(crowded.survivor, "next", after=stored[-1])
    books = await scene.books()
    books.assert_holds(*stored, "next")
    assert books.story == {"nothing": "CCCC", "pending": "CDCC", "committed": "CCCC", "aborted": "CACC"}[line.left]
    assert crowded.deaths_told(books.records[1]["id"]) == (line.left == "pending")


@every_line
async def test_frozen_and_nobody_takes_over(crowded: Stage, line: Line) -> None:
    scene, victim = await crowded.scene(), await crowded.victim()
    stopped = await line.stop(scene, victim)
    victim.freeze()
    await scene.lease_over()
    assert_left(await scene.books(), line)

    stopped.go_on()
    victim.thaw()
    seen = await stopped.call.ended()
    if line.left == "aborted":
        assert_told(seen, "upstream_rate_limited", 429)
        stored = ["first"]
    else:  # a lease that is over and that nobody has claimed can still be committed
        assert_complete(seen, answer(line.mark, "first"))
        stored = ["first", line.mark]
    await scene.told(crowded.survivor, "next", after=stored[-1])
    books = await scene.books()
    books.assert_holds(*stored, "next")
    assert books.story == ("CAC" if line.left == "aborted" else "CCC")


def assert_left(books: Books, line: Line) -> None:
    """What the table says about the store: the turn in question is the session's second."""
    assert books.story == {"nothing": "C", "pending": "C.", "committed": "CC", "aborted": "CA"}[line.left]
    if line.left == "pending":
        assert books.holder == books.records[1]["id"]
        assert books.lease_ends_ms > 0
    else:
        assert (books.holder, books.lease_ends_ms) == ("", 0)
    books.assert_holds("first", *([line.mark] if line.left == "committed" else []))


def assert_broken(seen: Seen, line: Line) -> None:
    """What the table says about the caller: a lost connection, or a stream without an end."""
    if line.mark == "long":
        assert answer("long", "first").startswith(seen.text)
        assert_cut(seen, seen.text)
    elif line.shown:
        assert_cut(seen, line.shown)
    else:
        assert_lost(seen)


JSON_LINES = {name: LINES[name] for name in ("4-claude-asked", "6-commit-not-sent", "7-commit-executed")}


async def test_a_frozen_turn_without_a_stream_is_told_by_its_status(crowded: Stage) -> None:
    victim = await crowded.victim()
    scenes = {name: await crowded.scene() for name in JSON_LINES}
    stops = {name: await line.stop(scenes[name], victim, streamed=False) for name, line in JSON_LINES.items()}
    victim.freeze()
    for name, scene in scenes.items():
        await scene.told(crowded.survivor, "other", after="victim" if JSON_LINES[name].left == "committed" else "first")
        stops[name].go_on()
    victim.thaw()
    for name, scene in scenes.items():
        seen = await stops[name].call.ended()
        if JSON_LINES[name].left == "committed":
            assert_complete(seen, answer("victim", "first"))
            (await scene.books()).assert_holds("first", "victim", "other")
        else:
            assert_told(seen, "turn_superseded", 409)
            assert seen.status == 409
            (await scene.books()).assert_holds("first", "other")


# More of the killed: callers without a stream, sessions just made, and what the network delivers late.


@pytest.fixture(scope="module")
async def last_words(crowded: Stage) -> dict[str, tuple[Scene, Stopped]]:
    """Another victim, killed; what it had sent, or was to be sent, is still held."""
    victim = await crowded.victim()
    scenes = {name: await crowded.scene() for name in (*JSON_LINES, "begin", "commit-1", "commit-2", "commit-3")}
    scenes["made"] = crowded.empty_scene()
    stops = {"made": await LINES["5-partly-shown"].stop(scenes["made"], victim)}
    for name, line in JSON_LINES.items():
        stops[name] = await line.stop(scenes[name], victim, streamed=False)
    for name in ("commit-1", "commit-2", "commit-3"):
        stops[name] = await LINES["6-commit-not-sent"].stop(scenes[name], victim)
    stops["begin"] = await LINES["1-begin-not-yet-sent"].stop(scenes["begin"], victim)
    victim.kill9()
    return {name: (scene, stops[name]) for name, scene in scenes.items()}


@pytest.mark.parametrize("name", JSON_LINES)
async def test_killed_without_a_stream(last_words: dict[str, tuple[Scene, Stopped]], name: str) -> None:
    scene, stopped = last_words[name]
    stopped.lose()
    assert_lost(await stopped.call.ended())
    assert_left(await scene.books(), LINES[name])


async def test_a_killed_turn_that_made_its_session_leaves_one_that_works(
    crowded: Stage, last_words: dict[str, tuple[Scene, Stopped]]
) -> None:
    scene, stopped = last_words["made"]
    stopped.lose()
    assert_cut(await stopped.call.ended(), "1 2 3 4")
    assert (await scene.books()).story == "."
    await scene.told(crowded.survivor, "first", after="none")
    books = await scene.books()
    books.assert_holds("first")
    assert books.story == "DC"


async def test_a_late_begin_holds_the_session_for_one_lease(
    crowded: Stage, last_words: dict[str, tuple[Scene, Stopped]]
) -> None:
    scene, stopped = last_words["begin"]
    stopped.go_on()
    assert_lost(await stopped.call.ended())
    late = await scene.until(lambda books: books.story == "C.")
    await scene.told(crowded.survivor, "next", after="first")
    books = await scene.books()
    books.assert_holds("first", "next")
    assert books.story == "CDC"
    assert crowded.deaths_told(late.holder) == 1


async def test_a_late_commit_counts_while_nobody_took_over(
    crowded: Stage, last_words: dict[str, tuple[Scene, Stopped]]
) -> None:
    scene, stopped = last_words["commit-1"]
    await scene.lease_over()
    stopped.go_on()
    assert_cut(await stopped.call.ended(), ALL)
    await scene.until(lambda books: books.story == "CC")
    await scene.told(crowded.survivor, "next", after="victim")
    (await scene.books()).assert_holds("first", "victim", "next")


async def test_a_late_commit_writes_nothing_after_another_turn(
    crowded: Stage, last_words: dict[str, tuple[Scene, Stopped]]
) -> None:
    scene, stopped = last_words["commit-2"]
    await scene.told(crowded.survivor, "other", after="first")
    before = await scene.books()
    async with crowded.script_executed():
        stopped.go_on()
    assert await scene.books() == before
    before.assert_holds("first", "other")


async def test_a_late_commit_writes_nothing_while_another_turn_runs(
    crowded: Stage, last_words: dict[str, tuple[Scene, Stopped]]
) -> None:
    """The head is still what the dead turn knew: its verdict alone keeps it out."""
    scene, stopped = last_words["commit-3"]
    dead = (await scene.books()).holder
    await crowded.fleet.simulator.fault("slow_first_byte", delay_ms=500, match="[mark:other]")
    other = scene.ask(crowded.survivor, "other")
    before = await scene.until(lambda books: books.verdicts.get(dead) == "D2")
    async with crowded.script_executed():
        stopped.go_on()
    after = await scene.books()
    assert replace(after, lease_ends_ms=before.lease_ends_ms) == before  # the running turn may have renewed its own
    assert_complete(await other.ended(), answer("other", "first"))
    (await scene.books()).assert_holds("first", "other")
