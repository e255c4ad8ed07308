"""The checker of JSON Schema finds what is wrong, and nothing else."""

from typing import Any

import pytest

from tests.instruments.json_schema import Checker, UnknownKeyword, unknown_keywords

DOCUMENT: dict[str, Any] = {
    "components": {
        "schemas": {
            "Point": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
            "Tree": {
                "type": "object",
                "properties": {"of": {"type": "array", "items": {"$ref": "#/components/schemas/Tree"}}},
            },
        }
    }
}
POINT = {"$ref": "#/components/schemas/Point"}
TREE = {"$ref": "#/components/schemas/Tree"}


@pytest.mark.parametrize(
    ("schema", "fits", "fails"),
    [
        ({}, [None, 1, {}], []),
        ({"type": "integer"}, [0, -1, 2.0], [True, 1.5, "1", None]),
        ({"type": "number"}, [0, 1.5], [False, "1"]),
        ({"type": "boolean"}, [True], [1, 0, None]),
        ({"type": ["string", "null"]}, ["", None], [0, []]),
        ({"enum": [1, None, [], {}]}, [1, 1.0, None, [], {}], [True, 0, False, "", [0]]),
        ({"const": True}, [True], [1, "true"]),
        ({"minimum": 1, "maximum": 3}, [1, 3, "x", None], [0, 4, 0.9]),
        ({"minLength": 1, "maxLength": 2}, ["a", "üü", 7], ["", "abc"]),
        ({"pattern": "^a$"}, ["a", 7], ["a\n", "b", ""]),
        ({"pattern": r"\S"}, [" a"], [" ", ""]),
        ({"format": "date-time"}, ["2026-01-31T12:00:00.123Z", "2026-01-31T12:00:00+01:00", 5], ["2026-01-31", "x"]),
        ({"format": "date-time"}, [], ["2026-01-31T12:00:00"]),
        ({"items": {"type": "string"}, "minItems": 1, "maxItems": 2}, [["a"], "x"], [[], [1], ["a", "b", "c"]]),
        ({"required": ["a"]}, [{"a": None}, []], [{}]),
        ({"properties": {"a": {"type": "null"}}}, [{}, {"a": None}, {"b": 1}], [{"a": 1}]),
        ({"properties": {"a": {}}, "additionalProperties": False}, [{"a": 1}], [{"b": 1}]),
        ({"properties": {"a": {}}, "additionalProperties": {"type": "null"}}, [{"a": 1, "b": None}], [{"b": 1}]),
        ({"propertyNames": {"maxLength": 1}, "minProperties": 1, "maxProperties": 1}, [{"a": 1}], [{}, {"ab": 1}]),
        ({"maxProperties": 1}, [{}], [{"a": 1, "b": 2}]),
        ({"anyOf": [{"type": "string"}, {"minimum": 5}]}, ["a", 5], [4]),
        ({"oneOf": [{"minimum": 1}, {"maximum": 3}]}, [0, 4], [2]),
        ({"allOf": [{"minimum": 1}, {"maximum": 3}]}, [2], [0, 4]),
        ({"not": {"const": 1}}, [2, True], [1]),
        (POINT, [{"x": 1}, {"x": 1, "y": 2}], [{}, {"x": "1"}]),
        (TREE, [{"of": [{}, {"of": []}]}], [{"of": [{"of": [1]}]}]),
        ({"description": "any", "default": 1, "x-events": {}}, [2], []),
    ],
    ids=str,
)
def test_what_fits_and_what_does_not(schema: dict[str, Any], fits: list[Any], fails: list[Any]) -> None:
    checker = Checker(DOCUMENT)
    assert {str(value): checker.problems(value, schema) for value in fits} == {str(value): [] for value in fits}
    assert [value for value in fails if not checker.problems(value, schema)] == []


@pytest.mark.parametrize(
    ("schema", "value", "fits"),
    [
        (POINT, {"x": 1}, True),
        (POINT, {"x": 1, "y": 2}, False),
        ({"items": POINT}, [{"x": 1, "y": 2}], False),
        ({"allOf": [POINT, {"properties": {"y": {}}}]}, {"x": 1, "y": 2}, True),
        ({"allOf": [POINT, {"properties": {"y": {}}}]}, {"x": 1, "z": 2}, False),
        ({"anyOf": [POINT, {"type": "null"}]}, {"x": 1, "y": 2}, False),
        ({"anyOf": [{"type": "null"}, {"properties": {"y": {}}}]}, {"y": 2}, True),
        ({"properties": {"x": {}}, "additionalProperties": True}, {"y": 2}, True),
        ({"properties": {}}, {"y": 2}, False),
        ({}, {"y": 2}, True),
    ],
    ids=str,
)
def test_a_closed_checker_knows_all_properties(schema: dict[str, Any], value: Any, fits: bool) -> None:
    assert (Checker(DOCUMENT, closed=True).problems(value, schema) == []) is fits


def test_a_problem_says_where_it_is() -> None:
    assert Checker(DOCUMENT).problems({"of": [{"of": 1}]}, TREE) == ["$.of[0].of: 1 is not ['array']"]


@pytest.mark.parametrize("schema", [{"typo": 1}, {"items": {"uniqueItems": True}}, {"format": "email"}], ids=str)
def test_a_keyword_that_is_not_known_is_an_error(schema: dict[str, Any]) -> None:
    with pytest.raises(UnknownKeyword):
        Checker(DOCUMENT).problems(["x"], schema)


def test_keywords_that_are_not_known_are_found_wherever_they_are() -> None:
    assert unknown_keywords({"a": 1, "items": {"b": 1}, "properties": {"p": {"c": 1}}, "anyOf": [{"d": 1}]}) == {
        *"abcd"
    }
    assert unknown_keywords(DOCUMENT["components"]["schemas"]["Tree"]) == set()
