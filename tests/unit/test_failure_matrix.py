"""The failure matrix names tests that exist and where they are played, and every test of faults is in it."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

FAULTS = Path(__file__).resolve().parents[1] / "faults"
_TOPOLOGIES = ("standalone", "sentinel", "cluster")
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
    for what, promised, *_, proven in rows():
        named = _NAMED.findall(proven)
        assert what and promised and named, what
        assert _NAMED.sub("", proven).strip(", ") == "", f"{what}: {proven}"
        for file, test in named:
            assert file in there, f"{what}: there is no {file}"
            assert not test or test in there[file], f"{what}: {file} has no {test}"


def test_every_file_of_faults_is_in_the_matrix_and_those_named_by_test_have_all_their_tests_there() -> None:
    named = [one for row in rows() for one in _NAMED.findall(row[-1])]
    whole = {file for file, test in named if not test}
    single = set(named)
    for file, names in by_file().items():
        if file in whole or file == "test_silent_store.py":  # its own table tells the rest
            continue
        missing = {name for name in names if (file, name) not in single}
        assert missing == set(), f"{file}: {missing}"


def played() -> dict[tuple[str, str], set[str]]:
    """Where each test is played, as tests/faults/conftest.py reads its marks; all of a file under the empty name."""
    where = defaultdict[tuple[str, str], set[str]](set)
    for path in FAULTS.glob("test_*.py"):
        module = ast.parse(path.read_text("utf-8"))
        everywhere = {arg.arg for arg in ast.walk(module) if isinstance(arg, ast.arg)} & {"topology", "ground_store"}
        of_module = set(_TOPOLOGIES) if everywhere else {"standalone"}
        for one in module.body:
            if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == "pytestmark":
                of_module &= _only([one.value])
        for one in module.body:
            if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) and one.name.startswith("test_"):
                where[path.name, one.name] = of_module & _only(
                    mark for mark in one.decorator_list if "parametrize" not in ast.unparse(mark)
                )
                where[path.name, ""] |= where[path.name, one.name]
    return where


def _only(marked: Iterable[ast.expr]) -> set[str]:
    """The topologies that all marks ``only`` in these expressions leave."""
    left = set(_TOPOLOGIES)
    for one in marked:
        for call in ast.walk(one):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.only":
                left &= {ast.literal_eval(argument) for argument in call.args}
    return left


def test_every_row_says_where_it_is_played_and_why_not_elsewhere() -> None:
    where, text = played(), (FAULTS / "README.md").read_text("utf-8")
    for what, _, *cells, proven in rows():
        really = set().union(*(where[file, test] for file, test in _NAMED.findall(proven)))
        told = {topology for topology, cell in zip(_TOPOLOGIES, cells, strict=True) if cell == "yes"}
        if "(the same test)" in what:
            assert told < really, what
        else:
            assert told == really, what
        for cell in cells:
            note = re.fullmatch(r"\((\d)\)", cell)
            assert cell == "yes" or (note and f"\n{note[1]}. " in text), f"{what}: no reason {cell}"
