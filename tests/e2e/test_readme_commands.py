"""What the README tells to type works, typed as it stands, in a fresh copy of the repository.

Blocks are found by the comment before them, `<!-- runs: NAME -->`. Two things are other than for a reader: the copy's
`.venv` borrows what is installed already, and the ports are free ones.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.instruments.ports import reserved_port

ROOT = Path(__file__).resolve().parents[2]
NOT_COPIED = (
    ".git",
    ".venv",
    ".baton",
    ".clients",
    ".*_cache",
    ".hypothesis",
    "__pycache__",
    "build",
    "dist",
    "*.egg-info",
)
READY_S = 30.0


def blocks() -> dict[str, str]:
    """The marked blocks by name."""
    readme = (ROOT / "README.md").read_text("utf-8")
    return dict(re.findall(r"<!-- runs: (\w+) -->\n```\w+\n(.*?)```\n", readme, re.DOTALL))


class Reader:
    """Somebody who follows the README, in a copy of the repository.

    Args:
        directory: for the copy, and home.
        baton, claude: the ports for 8000 and 9000.
    """

    def __init__(self, directory: Path, baton: int, claude: int) -> None:
        self.copy = directory / "baton"
        shutil.copytree(ROOT, self.copy, ignore=shutil.ignore_patterns(*NOT_COPIED))
        (self.copy / ".venv").mkdir()
        for entry in Path(sys.prefix).iterdir():
            if entry.name != ".installed":
                (self.copy / ".venv" / entry.name).symlink_to(entry)
        (self.copy / ".venv" / ".installed").touch()  # newer than what it is made from: make installs nothing
        self._blocks = blocks()
        self._baton, self._claude = baton, claude
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "TMPDIR": str(directory),
            "PYTHONPATH": str(self.copy),
            "BATON_LISTEN": f"127.0.0.1:{self._baton}",
        }

    def runs(self, name: str, *, timeout_s: float) -> str:
        """Runs a block to its end; returns what it printed."""
        done = subprocess.run(
            self._command(name),
            cwd=self.copy,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextlib.contextmanager
    def leaves_running(self, name: str, ready: str) -> Iterator[None]:
        """Runs a block in a terminal of its own: begun when it has printed `ready`, ended with Ctrl-C."""
        log = self.copy.parent / f"{name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                self._command(name),
                cwd=self.copy,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        try:
            deadline = time.monotonic() + READY_S
            while ready not in log.read_text("utf-8"):
                assert process.poll() is None, log.read_text("utf-8")
                assert time.monotonic() < deadline, log.read_text("utf-8")
                time.sleep(0.02)
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(10)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _command(self, name: str) -> list[str]:
        text = self._blocks[name].replace("127.0.0.1:8000", f"127.0.0.1:{self._baton}")
        text = text.replace("127.0.0.1:9000", f"127.0.0.1:{self._claude}")
        return [".venv/bin/python", "-c", text] if name in ("sdk", "anthropic") else ["bash", "-euc", text]


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    with reserved_port() as baton, reserved_port() as claude:
        yield Reader(tmp_path, baton, claude)


def answers(printed: str) -> list[str]:
    """The answers of curls that print one JSON object after the other."""
    decoder, found = json.JSONDecoder(), []
    while printed := printed.lstrip():
        body, end = decoder.raw_decode(printed)
        found.append(body["choices"][0]["message"]["content"])
        printed = printed[end:]
    return found


def test_every_block_that_is_marked_is_known() -> None:
    assert blocks().keys() == {"demo", "simulate", "serve", "curl", "sdk", "anthropic"}


@pytest.mark.timeout(120)
def test_the_demo_as_the_readme_starts_it(reader: Reader) -> None:
    said = reader.runs("demo", timeout_s=100)
    proof = said.partition("What this proves")[2]
    assert proof.count("✓") == 9, said
    assert "✗" not in proof
    assert "\x1b" not in said, "colours without a terminal"


@pytest.mark.timeout(120)
def test_a_conversation_without_a_key_as_the_readme_tells_it(reader: Reader) -> None:
    with reader.leaves_running("simulate", "simulator listening"), reader.leaves_running("serve", '"listening"'):
        assert answers(reader.runs("curl", timeout_s=20))[1] == "Your name is Ada."
        assert reader.runs("sdk", timeout_s=20) == "Your name is Ada.\n"
        assert reader.runs("anthropic", timeout_s=20) == 'You first said: "My name is Ada."\n'
