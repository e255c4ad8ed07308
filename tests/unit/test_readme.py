"""The README's table of settings is the one in the code. `python -m tests.unit.test_readme` writes it anew."""

from pathlib import Path, PurePath
from types import UnionType
from typing import Any, Literal, get_args, get_origin

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


def choices(annotation: Any) -> tuple[str, ...]:
    """The words that a setting may be, if it may be no others."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if get_origin(annotation) is UnionType:
        return sum((choices(part) for part in get_args(annotation)), ())
    return ()


def table() -> str:
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, info in Settings.model_fields.items():
        default = info.get_default(call_default_factory=True, validated_data={})
        meaning = str(info.description).replace("|", "\\|")
        if words := choices(info.annotation):
            meaning += f" One of {', '.join(f'`{word}`' for word in words)}."
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
