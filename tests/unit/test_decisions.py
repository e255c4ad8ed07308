"""Each decision has a number of its own, in its name and in its title, and whatever is referred to is there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DECISIONS = sorted((ROOT / "docs" / "decisions").iterdir())


def test_decisions_are_numbered_one_after_the_other() -> None:
    numbers = [path.name.partition("-")[0] for path in DECISIONS]
    assert numbers == [f"{number:04}" for number in range(1, len(DECISIONS) + 1)]
    for path, number in zip(DECISIONS, numbers, strict=True):
        assert path.read_text("utf-8").startswith(f"# {number}: "), path.name


def test_decisions_that_pages_refer_to_are_there() -> None:
    for page in (ROOT / "docs" / "operations.md", *DECISIONS):
        referred = re.findall(r"\[(?:decision )?(\d{4})\]\((?:decisions/)?([^)]*)\)", page.read_text("utf-8"))
        for number, target in referred:
            assert target in {path.name for path in DECISIONS}, f"{page.name}: {target}"
            assert target.startswith(number), f"{page.name}: {number} is not {target}"
