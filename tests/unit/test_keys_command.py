"""``baton keys`` by itself, on an embedded store that nobody runs."""

from pathlib import Path

import orjson

from tests.e2e.test_open_mode import baton_keys


def test_keys_are_made_in_an_embedded_store_that_nobody_runs(tmp_path: Path) -> None:
    env = {"BATON_DATA_DIR": str(tmp_path / "data")}
    code, made, told = baton_keys(env, "create", "--principal", "ada", "--scope", "admin", "--json")
    assert code == 0, told
    assert orjson.loads(made)["scopes"] == ["admin"]
    code, listed, _ = baton_keys(env, "list")
    assert (code, len(listed.splitlines())) == (0, 1)
    assert (baton_keys(env, "create", "--principal", "a/b"))[0] == 2
    code, _, told = baton_keys({**env, "BATON_REDIS_URL": "redis://127.0.0.1:1/0", "BATON_SECRET": "s" * 16}, "list")
    assert code == 69, told
    for one in ("create", "list", "show", "rotate", "disable", "enable", "delete"):
        assert baton_keys(env, one, "--help")[0] == 0
