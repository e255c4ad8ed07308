"""Values for the schemas of the document, as Hypothesis strategies: those that fit, and those that hardly do.

Only the part of JSON Schema that `tests.instruments.json_schema` checks is understood; a keyword that is not is an
error, so that a schema which says more than its values show is noticed.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, Final

from hypothesis import strategies as st

from tests.instruments.json_schema import ANNOTATIONS, Checker, Schema, UnknownKeyword, resolve

Values = st.SearchStrategy[Any]

_LIST_MAX: Final = 3  # items drawn beyond the least that a schema wants; more of them shows nothing new
_LONG: Final = 20_000  # characters of a long text
_BRANCHES: Final = ("anyOf", "oneOf")

_PRINTABLE: Final = st.text(st.characters(codec="utf-8"), max_size=12)
_STRANGE: Final = st.sampled_from(
    [
        *("", " ", "\x00", "\n", "a\r\nx-evil: 1", "\x7f", "\u2028", "\ufeff", "\u202eabc", "e\u0301", "🙂" * 3),
        *("null", "true", "0", "-1", "1e400", "NaN", "new", "stats", "import", "sess_", "../..", "%2e%2e", "{}", "[]"),
        *("'; --", "<script>", "${jndi:x}", "{0}", "%s", "__proto__", "a" * 300),
    ]
)
TEXTS: Final = st.integers(0, 29).flatmap(
    lambda kind: st.just("long" + "x" * _LONG) if kind == 29 else _STRANGE if kind > 18 else _PRINTABLE
)
_NUMBERS: Final = (
    st.integers(-3, 300)
    | st.sampled_from([2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30, -0.0, 1.0, 1.5, 1e300, 5e-324])
    | st.floats(allow_nan=False, allow_infinity=False)
)
ANYTHING: Final[Values] = st.recursive(
    st.none() | st.booleans() | _NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
"""Any JSON, without regard to a schema."""


class Fitting:
    """Strategies for values that fit schemas.

    Args:
        document: where references point into.
    """

    def __init__(self, document: Any) -> None:
        self._document = document
        self._checker = Checker(document)
        self._made: dict[str, Values] = {}

    def values(self, schema: Schema) -> Values:
        """Values that fit a schema."""
        key = repr(schema)
        if key not in self._made:
            self._made[key] = st.deferred(lambda: self._values(schema))
        return self._made[key]

    def _values(self, schema: Schema) -> Values:
        for keyword in schema:
            if keyword not in _KNOWN:
                raise UnknownKeyword(keyword)
        if "$ref" in schema:
            return self.values(resolve(self._document, schema["$ref"]))
        for keyword in _BRANCHES:
            if keyword in schema:
                rest = {name: value for name, value in schema.items() if name != keyword}
                return st.one_of([self.values(rest | branch) for branch in schema[keyword]])
        if "const" in schema:
            return st.just(schema["const"])
        if "enum" in schema:
            return st.sampled_from(schema["enum"]).map(deepcopy)
        kinds = schema.get("type")
        if kinds is None:
            return ANYTHING
        made = st.one_of([self._of_type(kind, schema) for kind in ([kinds] if isinstance(kinds, str) else kinds)])
        return made.filter(lambda value: not self._checker.problems(value, schema)) if "not" in schema else made

    def _of_type(self, kind: str, schema: Schema) -> Values:
        makers: dict[str, Callable[[Schema], Values]] = {
            "null": lambda _: st.none(),
            "boolean": lambda _: st.booleans(),
            "integer": _integers,
            "number": _numbers,
            "string": _strings,
            "array": self._lists,
            "object": self._objects,
        }
        return makers[kind](schema)

    def _lists(self, schema: Schema) -> Values:
        least = schema.get("minItems", 0)
        most = min(schema.get("maxItems", least + _LIST_MAX), least + _LIST_MAX)
        return st.lists(self.values(schema.get("items", {})), min_size=least, max_size=most)

    def _objects(self, schema: Schema) -> Values:
        named = schema.get("properties", {})
        required = {name: self.values(inner) for name, inner in named.items() if name in schema.get("required", ())}
        optional = {name: self.values(inner) for name, inner in named.items() if name not in required}
        known = st.fixed_dictionaries(required, optional=optional) if not optional else _some(required, optional)
        others = schema.get("additionalProperties", True)
        if others is False or (others is True and named):
            return known  # of what may have any other fields, those of `mutated` are enough
        names = _strings(schema.get("propertyNames", {}))
        free = st.dictionaries(names, self.values({} if others is True else others), max_size=_LIST_MAX)
        return st.tuples(free, known).map(lambda both: both[0] | both[1])


_KNOWN: Final = frozenset(
    {
        *ANNOTATIONS,
        *("$ref", *_BRANCHES, "const", "enum", "type", "not"),
        *("minimum", "maximum", "minLength", "maxLength", "pattern", "format"),
        *("items", "minItems", "maxItems"),
        *("properties", "required", "additionalProperties", "propertyNames", "maxProperties"),
    }
)


@st.composite
def _some(draw: st.DrawFn, required: dict[str, Values], optional: dict[str, Values]) -> Any:
    """An object with few of its optional fields: with all of them there, one that is refused would hide the others."""
    names = draw(st.lists(st.sampled_from(sorted(optional)), max_size=4, unique=True))
    return {name: draw(inner) for name, inner in (required | {name: optional[name] for name in names}).items()}


def _integers(schema: Schema) -> Values:
    low, high = schema.get("minimum", -(2**62)), schema.get("maximum", 2**62)
    return st.integers(low, high) | st.sampled_from([low, high]) | st.integers(max(low, -9), min(high, max(low, 0) + 9))


def _numbers(schema: Schema) -> Values:
    low, high = schema.get("minimum"), schema.get("maximum")
    return st.floats(low, high, allow_nan=False, allow_infinity=False) | st.sampled_from(
        [one for one in (low, high, 0) if one is not None and (low or 0) <= one <= (high or 0)] or [1]
    )


def _strings(schema: Schema) -> Values:
    if schema.get("format") == "date-time":
        return st.datetimes().map(lambda instant: instant.isoformat(timespec="milliseconds") + "Z")
    least, most = schema.get("minLength", 0), schema.get("maxLength", 10**9)
    fits = st.just("")
    if "pattern" not in schema:
        fits = TEXTS
    elif schema["pattern"] == r"\S":
        fits = TEXTS.filter(lambda text: text.strip() != "")
    else:
        pattern = schema["pattern"].replace("$", r"\Z") if schema["pattern"].endswith("$") else schema["pattern"]
        fits = st.from_regex(pattern, alphabet=st.characters(codec="ascii"))
    return fits.filter(lambda text: least <= len(text) <= most)


CONFUSED: Final[list[Any]] = [None, [], {}, "", 0, True, -1, 1.5, 2**70, " ", "x", [[]], ["x"], {"type": []}]
"""What anything may be mistaken for; the first ones are one of each type."""
_FIELDS: Final = st.sampled_from(
    ["model", "messages", "role", "content", "type", "text", "id", "name", "stream", "tools", "metadata", "system"]
)


@st.composite
def mutated(draw: st.DrawFn, values: Values) -> Any:
    """Such a value with something in it changed, however deep, one to three times; it may fit even so."""
    root = [deepcopy(draw(values))]
    for _ in range(draw(st.integers(1, 3))):
        holder, at = draw(st.sampled_from([(holder, at) for _, holder, at in _paths(root, "")]))
        _mutate(draw, holder, at)
    return root[0]


def each_confused(value: Any, seen: set[str]) -> Iterator[Any]:
    """The value with each of its places confused in turn, but for places that were seen before, which are alike.

    Places in lists are alike, unless what is in them is of another type.
    """
    root = [deepcopy(value)]
    for path, holder, at in list(_paths(root, "")):
        if path not in seen:
            seen.add(path)
            kept = holder[at]
            for confused in CONFUSED[:5]:
                holder[at] = confused
                yield deepcopy(root[0])
            holder[at] = kept


def _paths(holder: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    kind = holder.get("type", holder.get("role", "")) if isinstance(holder, dict) else ""
    for at in list(holder) if isinstance(holder, dict) else range(len(holder)):
        name = f"{path}.{kind}.{at}" if isinstance(holder, dict) else f"{path}[]"
        yield name, holder, at
        if isinstance(holder[at], dict | list):
            yield from _paths(holder[at], name)


def _mutate(draw: st.DrawFn, holder: Any, at: Any) -> None:
    match draw(st.sampled_from(["confuse", "confuse", "confuse", "replace", "add", "remove", "repeat"])):
        case "remove" if isinstance(holder, dict):
            del holder[at]
        case "add" if isinstance(holder[at], dict):
            name: str = draw(TEXTS | _FIELDS)
            holder[at][name] = draw(ANYTHING)
        case "repeat" if isinstance(holder[at], list):
            holder[at] = [*holder[at], *deepcopy(holder[at])]
        case "replace":
            holder[at] = draw(ANYTHING)
        case _:
            holder[at] = deepcopy(draw(st.sampled_from(CONFUSED)))
