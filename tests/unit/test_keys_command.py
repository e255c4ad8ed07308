"""``baton keys`` by itself, on an embedded store that nobody runs."""

from pathlib import Path
from typing import Any

import orjson

from tests.e2e.test_open_mode import baton_keys


def audit_of(told: str) -> Any:
    """The line about a change, among what was told on stderr."""
    (line,) = (line for line in told.splitlines() if line.startswith("{"))
    return orjson.loads(line)


def test_keys_are_made_in_an_embedded_store_that_nobody_runs(tmp_path: Path) -> None:
    env = {"BATON_DATA_DIR": str(tmp_path / "data")}
    code, made, told = baton_keys(env, "create", "--principal", "ada", "--scope", "admin", "--json")
    assert code == 0, told
    assert f"warning: there was no store in {tmp_path / 'data'}" in told
    assert orjson.loads(made)["scopes"] == ["admin"]
    code, listed, heard = baton_keys(env, "list")
    assert (code, len(listed.splitlines()), heard) == (0, 1, "")
    key_id = orjson.loads(made)["id"]
    assert (baton_keys(env, "disable", key_id)[0], baton_keys(env, "delete", f"{key_id}\naudit")[0]) == (0, 1)
    _, _, told_of_disable = baton_keys(env, "disable", key_id)
    code, _, told_of_delete = baton_keys(env, "delete", "key_" + "a" * 26)
    assert code == 1
    lines = [audit_of(one) for one in (told, told_of_disable, told_of_delete)]
    assert [(line["action"], line["outcome"], line.get("key")) for line in lines] == [
        ("create_key", "done", key_id),
        ("patch_key", "done", key_id),
        ("delete_key", "key_not_found", "key_" + "a" * 26),
    ]
    assert lines[1]["changed"] == "disabled"
    assert {line["by_key"] for line in lines} == {"baton keys"}
    assert all(line["by"] for line in lines)
    assert orjson.loads(made)["key"] not in told
    assert (baton_keys(env, "create", "--principal", "a/b"))[0] == 2
    assert (baton_keys(env, "create", "--principal", "a", "--label", "ci"))[0] == 2
    code, _, told = baton_keys({**env, "BATON_REDIS_URL": "redis://127.0.0.1:1/0", "BATON_SECRET": "s" * 16}, "list")
    assert code == 69, told
    for one in ("create", "list", "show", "rotate", "disable", "enable", "delete"):
        assert baton_keys(env, one, "--help")[0] == 0
