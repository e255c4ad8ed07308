"""Servers whose wall clock steps when a test says so, by a library of ours that is compiled where it is needed.

See ``stepping_clock.c``. It needs Linux, a C compiler and a server that is linked dynamically; `library` says what is
missing.
"""

import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.instruments.redis_servers import Server

_SOURCE = Path(__file__).with_suffix(".c")
_OFFSET = "clock-offset"
_COMPILE_S = 60.0


class NoClock(Exception):
    """What this machine lacks, in a sentence."""


def library(directory: Path) -> Path:
    """Compiles it.

    Raises:
        NoClock: it cannot be made or used here.
    """
    compiler = shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        raise NoClock("A server's clock can be stepped from outside on Linux only, with a C compiler (cc).")
    made = directory / "stepping_clock.so"
    command = [
        compiler,
        "-Wall",
        "-Wextra",
        "-Werror",
        "-O2",
        "-shared",
        "-fPIC",
        "-o",
        str(made),
        str(_SOURCE),
        "-ldl",
    ]
    subprocess.run(command, check=True, timeout=_COMPILE_S)
    return made


def environment(made: Path) -> Mapping[str, str]:
    """Of servers that shall have such a clock: each has its own, in its directory."""
    return {"LD_PRELOAD": str(made), "CLOCK_OFFSET_FILE": _OFFSET}


def set_offset(server: Server, offset_s: int) -> None:
    """From now on its clock differs by so much from the machine's, and this is seen."""
    with (server.directory / _OFFSET).open("r+b") as file:
        file.write(struct.pack("q", offset_s * 1_000_000_000))
    asked = time.time()
    told = int(server.command("TIME")[0]) - offset_s
    assert asked - 1 <= told <= time.time(), "its clock has not stepped"


def step(server: Server, by_s: int) -> None:
    """Steps its clock, back or on."""
    set_offset(server, _offset_s(server) + by_s)


def _offset_s(server: Server) -> int:
    (offset_ns,) = struct.unpack("q", (server.directory / _OFFSET).read_bytes())
    return int(offset_ns) // 1_000_000_000
