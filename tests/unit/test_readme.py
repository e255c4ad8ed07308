"""The README's table of settings is the one in the code. `python -m tests.unit.test_readme` writes it anew."""

from pathlib import Path, PurePath
from typing import Any

from pydantic import SecretStr

from service.settings import Settings, variable

README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN, END = "<!-- settings: begin -->\n", "<!-- settings: end -->\n"


def shown(default: Any) -> str:
    """A default as it would be written into the environment."""
    match default:
        case None | "" | {} | frozenset():
            return "–"
        case SecretStr():
            return f"`{default.get_secret_value()}`"
        case bool():
            return f"`{str(default).lower()}`"
        case float():
            return f"`{default:g}`"
        case int() | str() | PurePath():
            return f"`{default}`"
    raise AssertionError(f"how is {default!r} written?")


def table() -> str:
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, info in Settings.model_fields.items():
        default = info.get_default(call_default_factory=True, validated_data={})
        meaning = str(info.description).replace("|", "\\|")
        rows.append(f"| `{variable(name)}` | {shown(default)} | {meaning} |")
    return "\n".join(rows) + "\n"


def renewed(readme: str) -> str:
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, "the markers are gone"
    return before + begin + table() + end + after


def test_the_readme_lists_the_settings_as_they_are() -> None:
    readme = README.read_text("utf-8")
    assert renewed(readme) == readme, "run: python -m tests.unit.test_readme"


if __name__ == "__main__":
    README.write_text(renewed(README.read_text("utf-8")), "utf-8")
