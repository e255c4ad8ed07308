"""Lines about what administrators do: at every level, in every form, and never more than is declared."""

import subprocess
import sys

import orjson
import pytest

from service import logs
from tests.instruments.child import clean_environment

SCRIPT = """
from service import logs
logs.configure({form!r}, "error")
logs.log.warning("not_told")
logs.audit("patch_key", outcome="done", by="ada", by_key="key_x", changed="labels\\nforged", secret="TOPSECRET")
"""


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_change_is_told_whatever_the_least_level_is(form: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(form=form)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    (line,) = done.stderr.splitlines()
    assert "patch_key" in line
    assert "TOPSECRET" not in line
    if form == "json":
        told = orjson.loads(line)
        assert (told["event"], told["by"], told["undeclared"]) == ("audit", "ada", "secret")
        assert told["changed"] == r"labels\nforged"


def test_a_line_for_who_has_no_log_is_the_same() -> None:
    told = orjson.loads(logs.audit_line("patch_key", outcome="done", by="ada\nforged", secret="TOPSECRET"))
    assert told.pop("timestamp").endswith("Z")
    assert told == {
        "event": "audit",
        "level": "info",
        "action": "patch_key",
        "outcome": "done",
        "by": r"ada\nforged",
        "undeclared": "secret",
    }
