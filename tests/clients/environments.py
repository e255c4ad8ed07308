"""Where the clients are installed: isolated from Baton and from what does not go together with them.

Everything is in ``.clients`` at the root of the checkout. An environment is made when it is first asked for, from the
pins that the repository holds, and made anew when they have changed. Installing takes what the package clients of this
machine are set up with: an environment that cannot be made fails the tests that need it, with the installer's words.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / ".clients"
JAVASCRIPT = "javascript"
INSTALL_TIMEOUT_S = 900.0

_LAST_WORDS_CHARS = 2000


class NotInstalled(Exception):
    """An environment could not be made; the message begins with the installer's very last words."""


def pins(environment: str) -> dict[str, str]:
    """The version of every package that an environment is asked to have."""
    if environment == JAVASCRIPT:
        wanted: dict[str, str] = json.loads((HERE / JAVASCRIPT / "package.json").read_text("utf-8"))["dependencies"]
        return wanted
    text = (HERE / "requirements" / f"{environment}.txt").read_text("utf-8")
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE))


def programs(environment: str) -> Path:
    """The directory of an environment's programs; the environment is made if it is not there as it should be.

    Raises:
        NotInstalled: it could not be made.
    """
    return _javascript() if environment == JAVASCRIPT else _python(environment)


def _javascript() -> Path:
    home, source = CACHE / JAVASCRIPT, HERE / JAVASCRIPT
    npm = shutil.which("npm")
    if npm is None:
        raise NotInstalled("there is no npm on this machine")
    lock = (source / "package-lock.json").read_text("utf-8")
    if _is_new(home, lock):
        for name in ("package.json", "package-lock.json"):
            shutil.copy(source / name, home)
        _install([npm, "ci", "--no-audit", "--no-fund"], home)
        _is_made(home, lock)
    for program in source.glob("*.mjs"):  # beside node_modules, where node looks for what they import
        shutil.copy(program, home)
    return home / "node_modules" / ".bin"


def _python(environment: str) -> Path:
    home = CACHE / environment
    requirements = HERE / "requirements" / f"{environment}.txt"
    made_from = f"{sys.version}\n{requirements.read_text('utf-8')}"
    if _is_new(home, made_from):
        _install([sys.executable, "-m", "venv", str(home)], home)
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _install([*pip, "--no-deps", "--requirement", str(requirements)], home)
        _is_made(home, made_from)
    return home / "bin"


def _is_new(home: Path, made_from: str) -> bool:
    """Whether it must be made; then nothing is left of what was there before."""
    stamp = home / ".made-from"
    if stamp.exists() and stamp.read_text("utf-8") == made_from:
        return False
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    return True


def _is_made(home: Path, made_from: str) -> None:
    (home / ".made-from").write_text(made_from, "utf-8")


def _install(command: Sequence[str], home: Path) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise NotInstalled(f"{command[0]} has not ended after {INSTALL_TIMEOUT_S:g} s") from error
    if done.returncode != 0:
        said = (done.stdout + done.stderr)[-_LAST_WORDS_CHARS:].strip()
        raise NotInstalled(f"{said.splitlines()[-1] if said else done.returncode}\n{' '.join(command)}:\n{said}")
