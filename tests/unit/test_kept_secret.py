"""The secret of an embedded store: made once, whole, for nobody else's eyes."""

import os
from pathlib import Path

import pytest

from service.kept_secret import kept_secret


def test_it_is_made_once_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    made = kept_secret(tmp_path)
    assert len(made) == 64
    assert kept_secret(tmp_path) == made
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["secret"]


@pytest.mark.parametrize("left", ["", "\n"])
def test_an_empty_file_is_none(tmp_path: Path, left: str) -> None:
    (tmp_path / "secret").write_text(left)
    made = kept_secret(tmp_path)
    assert len(made) == 64
    assert kept_secret(tmp_path) == made


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("an older secret, by hand\n")
    assert kept_secret(tmp_path) == "an older secret, by hand"


def test_a_failure_while_it_is_written_leaves_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "fsync", full)
        kept_secret(tmp_path)
    assert not (tmp_path / "secret").exists()
    assert len(kept_secret(tmp_path)) == 64
    assert os.listdir(tmp_path) == ["secret"]
