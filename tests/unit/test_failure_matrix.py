"""The failure matrix names tests that exist, and every test of faults is in it."""

import ast
import re
from pathlib import Path

FAULTS = Path(__file__).resolve().parents[1] / "faults"
_NAMED = re.compile(r"`(test_\w+\.py)(?:::(test_\w+))?`")


def rows() -> list[list[str]]:
    lines = (FAULTS / "README.md").read_text("utf-8").splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return cells[1:]


def by_file() -> dict[str, set[str]]:
    """Tests by file."""
    found = {}
    for path in FAULTS.glob("test_*.py"):
        functions = ast.walk(ast.parse(path.read_text("utf-8")))
        found[path.name] = {
            one.name
            for one in functions
            if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) and one.name.startswith("test_")
        }
    return found


def test_every_row_is_proven_by_tests_that_exist() -> None:
    there = by_file()
    for what, promised, proven in rows():
        named = _NAMED.findall(proven)
        assert what and promised and named, what
        assert _NAMED.sub("", proven).strip(", ") == "", f"{what}: {proven}"
        for file, test in named:
            assert file in there, f"{what}: there is no {file}"
            assert not test or test in there[file], f"{what}: {file} has no {test}"


def test_every_file_of_faults_is_in_the_matrix_and_those_named_by_test_have_all_their_tests_there() -> None:
    named = [one for row in rows() for one in _NAMED.findall(row[2])]
    whole = {file for file, test in named if not test}
    single = set(named)
    for file, names in by_file().items():
        if file in whole or file == "test_silent_store.py":  # its own table tells the rest
            continue
        missing = {name for name in names if (file, name) not in single}
        assert missing == set(), f"{file}: {missing}"
