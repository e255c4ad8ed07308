"""The fuzzer's own values: they fit where they should, and what they are bent to is seen everywhere."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.conftest import bounded
from tests.fuzz.test_operations import INTERFACE, REQUESTS, WITH_BODY
from tests.fuzz.values import Fitting, each_confused, mutated
from tests.instruments.json_schema import Checker, UnknownKeyword

CHECKER = Checker(INTERFACE.document)


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
def test_values_of_a_schema_fit_it_and_can_be_written(method: str, path: str) -> None:
    schema = INTERFACE.operations()[method, path]["requestBody"]["content"]["application/json"]["schema"]
    values = Fitting(INTERFACE.document).values(schema)

    @bounded(40)
    @given(values, REQUESTS.bodies(path, schema), mutated(values))
    def drawn(fitting: Any, likely: Any, bent: Any) -> None:
        assert CHECKER.problems(fitting, schema) == []
        assert CHECKER.problems(likely, schema) == []
        assert json.loads(json.dumps(bent)) == bent

    drawn()


def test_a_keyword_that_is_not_understood_is_an_error() -> None:
    @bounded(1)
    @given(st.data())
    def drawn(data: st.DataObject) -> None:
        with pytest.raises(UnknownKeyword):
            data.draw(Fitting({}).values({"type": "integer", "multipleOf": 2}))

    drawn()


def test_each_place_is_confused_once() -> None:
    seen: set[str] = set()
    value = {"a": 1, "b": [{"type": "x", "c": "d"}, {"type": "x", "c": "e"}]}
    found = list(each_confused(value, seen))
    assert len(found) == 5 * 6  # the whole, a, b, one item, its type and its c
    assert {"a": [], "b": value["b"]} in found
    assert {"a": 1, "b": [{"type": "x", "c": {}}, {"type": "x", "c": "e"}]} in found
    assert value == {"a": 1, "b": [{"type": "x", "c": "d"}, {"type": "x", "c": "e"}]}
    assert list(each_confused(value, seen)) == []
