"""``python -m tests.golden [word …]``: plays the scenarios, or those whose name holds a word, and writes them down."""

import asyncio
import sys
import tempfile
from pathlib import Path

from tests.golden.files import path_of, unknown
from tests.golden.scenarios import SCENARIOS
from tests.golden.stage import set_up


async def write(words: list[str]) -> None:
    """Plays and writes."""
    with tempfile.TemporaryDirectory(prefix="baton-golden-") as folder:
        async with set_up(Path(folder)) as stage:
            for one in SCENARIOS:
                if not words or any(word in one.name for word in words):
                    text = await asyncio.to_thread(stage.play, one.dialect, one.title, one.play)
                    path_of(one).parent.mkdir(exist_ok=True)
                    path_of(one).write_text(text, "utf-8")
    for path in unknown():
        path.unlink()


if __name__ == "__main__":
    asyncio.run(write(sys.argv[1:]))
