"""``baton sessions export`` and ``import``: a backup, and the way from one deployment to another."""

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import orjson
import pytest
from click.testing import CliRunner

from service import cli
from storage.embedded import EmbeddedValkey
from tests.e2e.by_hand import append, create, unused, user
from tests.e2e.caller import Caller
from tests.e2e.test_epochs import bodies, turn
from tests.e2e.test_transfer import a_conversation
from tests.instruments.processes import SECRET, Fleet, Simulator
from tests.instruments.redis_servers import Cluster

pytestmark = pytest.mark.anyio

Env = Mapping[str, str]
OTHER_SECRET = "another secret of 16 and more"


def run(env: Env, *args: str) -> tuple[int, bytes, list[str]]:
    """``baton sessions``: exit code, what it wrote, and what it told."""
    clean = {name: None for name in os.environ if name.startswith(("BATON_", "ANTHROPIC_"))}
    done = CliRunner().invoke(cli.main, ["sessions", *args], env={**clean, **env})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout_bytes, done.stderr.splitlines()


async def baton(env: Env, *args: str) -> tuple[int, bytes, list[str]]:
    return await asyncio.to_thread(run, env, *args)


@contextmanager
def other_deployment(kind: str, directory: Path) -> Iterator[Env]:
    """Another store, with another namespace, secret and number of buckets."""
    fixed = {"BATON_NAMESPACE": "moved", "BATON_SECRET": OTHER_SECRET}
    if kind == "standalone":
        with EmbeddedValkey.start(directory) as server:
            yield {**fixed, "BATON_REDIS_URL": server.url, "BATON_BUCKETS": "64"}
    else:
        with Cluster(directory, primaries=1, replicas=0) as cluster:
            yield {**fixed, "BATON_REDIS_URL": cluster.url}


def store_of(fleet: Fleet) -> Env:
    return {"BATON_REDIS_URL": fleet.store_url, "BATON_SECRET": SECRET}


@pytest.mark.parametrize("kind", ["standalone", "cluster"])
async def test_conversations_carry_on_in_another_deployment(
    fleet: Fleet,
    http: aiohttp.ClientSession,
    one: Caller,
    two: Caller,
    simulator: Simulator,
    name: str,
    tmp_path: Path,
    kind: str,
) -> None:
    await a_conversation(one, two, name)
    issued = (await one.chat("My name is Bob.", "new")).headers["x-session-id"]
    await one.request("PUT", f"/v1/sessions/{name}/shares/ann", json={"role": "viewer"})
    output = tmp_path / "sessions.jsonl"
    named = (await one.session(name))["id"]
    code, _, said = await baton(store_of(fleet), "export", named, issued, "--output", str(output))
    assert (code, said) == (0, ["2 sessions exported, 0 passed over, 0 not exported."])
    assert output.stat().st_mode & 0o777 == 0o600
    with other_deployment(kind, tmp_path / "store") as env:
        code, _, said = await baton(env, "import", str(output))
        assert code == 0, said
        old, _, moved = said[0].partition(" → ")
        assert old == named != moved
        assert said[1:] == ["2 sessions imported, 0 passed over, 0 not imported."]
        replica = await fleet.add_replica(env=env)
        there = Caller(http, replica.url)
        assert (await there.session(name))["id"] == moved
        assert (await there.chat("What is my name?", issued)).text == "Your name is Bob."
        shares = (await there.get(f"/v1/sessions/{name}/shares")).json["shares"]
        assert [(share["principal"], share["role"]) for share in shares] == [("ann", "viewer")]
        for caller in (one, there):
            assert (await turn(caller, name, "And now?")).status == 200
        original, copy = await bodies(http, simulator, 2)
        assert original == copy
        before = await there.messages(name)
        code, _, said = await baton(env, "import", str(output))
        assert code == 0
        assert said[-1] == "0 sessions imported, 2 passed over, 0 not imported."
        assert await there.messages(name) == before, "what is there is not changed"
        replica.destroy()


def test_ids_of_buckets_that_are_not_there_become_others_and_stay_the_same(tmp_path: Path) -> None:
    """From 64 buckets to one, in two runs, the first of which was cut off; of an embedded store that nobody runs."""
    source = {"BATON_DATA_DIR": str(tmp_path / "source"), "BATON_BUCKETS": "64"}
    target = {"BATON_DATA_DIR": str(tmp_path / "target")}
    lines = [line for number in range(3) for line in session(number, f"sess_{number:02x}" + "a" * 26)]
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    whole.write_bytes(b"".join(lines))
    cut.write_bytes(b"".join(lines[:4]))
    assert (run(source, "import", str(whole)))[0] == 0
    code, exported, said = run(source, "export", "--all")
    assert (code, said[-1]) == (0, "3 sessions exported, 0 passed over, 0 not exported.")
    assert sorted(exported.splitlines(keepends=True)) == sorted(lines), "and it is what was put in"
    code, _, said = run(target, "import", str(cut))
    assert code == 1
    assert "cut short" in said[-1]
    code, _, said = run(target, "import", str(whole))
    assert (code, said[-1]) == (0, "2 sessions imported, 1 passed over, 0 not imported.")
    moved = [line.partition(" → ") for line in said if " → " in line]
    assert [old[5:7] for old, _, _ in moved] == ["01", "02"]
    again = run(target, "import", str(whole))
    assert (again[0], again[2][-1]) == (0, "0 sessions imported, 3 passed over, 0 not imported.")
    assert all(new in "".join(again[2]) for _, _, new in moved)


def session(number: int, session_id: str, **changes: object) -> list[bytes]:
    """The lines of a session of one message, as an export has them."""
    head = {
        **{"type": "session", "format": 1, "id": session_id, "name": None, "owner": f"team/{number}"},
        **{"nonce": f"head_{'abc'[number]}", "head": f"head_{'abc'[number]}", "created_ms": 1_780_000_000_000},
        **{"ttl_ms": 600_000, "absolute_end_ms": None, "model": "m", "max_turns": None, "epoch_hash": ""},
        **{"epoch_start": 0, "context": "", "usage": {"input": 1, "output": 2, "cache_read": 3, "cache_written": 4}},
        **{"title": "", "metadata": {}, "system": None, "preamble": "", "cuts": []},
        **{"checkpoints": {"version": 0, "input_tokens": 0, "output_tokens": 0}},
        **{
            "context_tokens_target": None,
            "compact_instructions": "",
            "context_policy": None,
            "shares": {},
            "turns": 0,
            "messages": 1,
            **changes,
        },
    }
    message = {"type": "message", "message": {"role": "user", "content": f"Message {number}"}}
    return [orjson.dumps(line) + b"\n" for line in (head, message, {"type": "end"})]


def test_what_is_not_imported_is_told(tmp_path: Path) -> None:
    env = {"BATON_DATA_DIR": str(tmp_path / "store"), "BATON_SESSIONS_PER_OWNER_MAX": "1"}
    code, _, said = run(env, "export", "--all")
    assert (code, "There is no store in" in said[-1]) == (78, True), (
        "an export of a store that is not there is no backup"
    )
    ids = ["sess_00" + letter * 26 for letter in "abc"]
    first, file = session(0, ids[0], owner="ada"), tmp_path / "file"
    file.write_bytes(b"".join(first))
    assert (run(env, "import", str(file)))[0] == 0
    others = [
        *session(1, ids[0], owner="ada"),  # another session in its place
        *session(1, ids[1], owner="ada"),  # one too many
        *session(2, ids[2], absolute_end_ms=1),
        *session(2, ids[2], owner="eve"),
    ]
    file.write_bytes(b"".join(others))
    code, _, said = run(env, "import", str(file))
    assert code == 1
    assert said[:3] == [
        f"{ids[0]}: not imported: another session is in its place.",
        f"{ids[1]}: not imported: there is no room (BATON_SESSIONS_PER_OWNER_MAX).",
        f"{ids[2]}: has expired meanwhile: its absolute end is over.",
    ]
    assert said[3:] == ["1 sessions imported, 1 passed over, 2 not imported."]
    code, exported, _ = run(env, "export", "--all", "--owner", "ada")
    assert (code, exported) == (0, b"".join(first)), "nothing was evicted or changed"
    file.write_bytes(b"".join(session(1, ids[0], owner="ada")))
    assert (run(env, "import", "--skip-existing", str(file)))[0] == 0
    file.write_bytes(b"".join(session(1, ids[1], name="chat")))
    assert (run(env, "import", "--owner", "bob", str(file)))[0] == 0
    code, exported, _ = run(env, "export", "chat", "--owner", "bob")
    assert (code, orjson.loads(exported.splitlines()[0])["owner"]) == (0, "bob")
    code, exported, said = run(env, "export", ids[1], "other", "--owner", "bob")
    assert (code, exported) == (1, b"")
    assert said[-1] == "0 sessions exported, 0 passed over, 2 not exported."
    assert [line.partition(":")[2] for line in said[:2]] == [" is not there: it has expired or was deleted."] * 2


async def test_what_cannot_be_done_is_told(fleet: Fleet, tmp_path: Path) -> None:
    env, file = store_of(fleet), tmp_path / "file"
    file.write_bytes(b'{"type":"session"}\n')
    code, _, said = await baton(env, "import", str(file))
    assert (code, "format" in said[-1]) == (1, True)
    assert (await baton(env, "export"))[0] == 2
    assert (await baton(env, "export", "--all", "x"))[0] == 2
    assert (await baton(env, "export", "--all", "--output", str(file)))[0] == 2
    assert (await baton(env, "export", "a-name"))[0] == 1
    assert (await baton(env, "export", "--all", "--output", str(tmp_path / "no" / "file")))[0] == 1
    assert (await baton({**env, "BATON_SECRET": OTHER_SECRET}, "export", "--all"))[0] == 78
    assert (await baton({**env, "BATON_REDIS_URL": "redis://127.0.0.1:1/0"}, "import", str(file)))[0] == 69
    for one in ("export", "import"):
        assert (await baton({}, one, "--help"))[0] == 0


async def test_an_export_beside_running_turns_is_of_whole_sessions(
    fleet: Fleet, one: Caller, two: Caller, tmp_path: Path
) -> None:
    """Sessions are appended to, made and deleted meanwhile; each that stood is there once, whole."""
    owner, names = "open", [unused() for _ in range(12)]
    made = [(await create(one, name=name))["id"] for name in names]
    for name in names:
        await append(one, name, user("One"))
    stop = asyncio.Event()

    async def bustle() -> None:
        while not stop.is_set():
            for name in names[:6]:
                await append(two, name, user("More"))
            gone = unused()
            await create(two, name=gone)
            await two.request("DELETE", f"/v1/sessions/{gone}")

    running = asyncio.create_task(bustle())
    try:
        code, exported, said = await baton(store_of(fleet), "export", "--all", "--owner", owner)
    finally:
        stop.set()
        await running
    assert code == 0, said
    heads = [orjson.loads(line) for line in exported.splitlines() if line.startswith(b'{"type":"session"')]
    assert exported.count(b'{"type":"end"}\n') == len(heads)
    ids = [head["id"] for head in heads]
    assert sorted(set(made) & set(ids)) == sorted(made)
    assert len(set(ids)) == len(ids)
    file = tmp_path / "file"
    file.write_bytes(exported)
    with EmbeddedValkey.start(tmp_path / "target") as server:
        code, _, said = await baton({"BATON_REDIS_URL": server.url, "BATON_SECRET": SECRET}, "import", str(file))
    assert (code, said[-1]) == (0, f"{len(heads)} sessions imported, 0 passed over, 0 not imported.")
