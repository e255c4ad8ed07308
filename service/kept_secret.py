"""The secret of an embedded store: made once, kept beside its data."""

import os
from pathlib import Path
from secrets import token_hex


def kept_secret(data_dir: Path) -> str:
    """The secret of an embedded store: made once, kept beside its data.

    It appears whole or not at all. An empty file (of a disk that was full, say) keyed nothing yet and counts as none.
    """
    path = data_dir / "secret"
    kept = path.read_text("ascii").strip() if path.exists() else ""
    if kept:
        return kept
    made, fresh = token_hex(32), data_dir / "secret.new"
    fresh.unlink(missing_ok=True)
    fresh.touch(mode=0o600, exist_ok=False)
    with fresh.open("w", encoding="ascii") as file:
        file.write(made)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    return made
