"""storage/README.md, where the data model is described, names what there is."""

import re
from pathlib import Path

import pytest

import storage
from storage.keys import Keyspace, new_turn_id
from storage.results import Settled
from storage.scripts import VERBS
from storage.turns import Request, Rewind
from tests.store.harness import OWNER, SECRET, Store, attached, elements, shown

PAGE = (Path(storage.__file__).parent / "README.md").read_text("utf-8")
READING = ("get", "shares")


def keys_of_a_session() -> list[tuple[str, str, str]]:
    """Number, key and type in the table of keys, of those that every script of a session declares."""
    return re.findall(r"^\| (\d+) \| `(T:\S+)` \| (\w+) \|", PAGE, re.MULTILINE)


def test_the_keys_are_those_that_every_script_declares_in_their_order() -> None:
    ref = Keyspace("baton", 1, SECRET).session("sess_00" + "a" * 26, OWNER)
    named = {"{baton:00}:": "T:", ref.id: "<id>", ref.owner_tag: "<otag>"}
    declared = [re.sub("|".join(map(re.escape, named)), lambda part: named[part[0]], key) for key in ref.keys]
    assert [(number, key) for number, key, _ in keys_of_a_session()] == [
        (str(number), key) for number, key in enumerate(declared, start=1)
    ]


def test_every_verb_that_writes_is_among_the_writers() -> None:
    tables = re.findall(r"^Writers:\n\n(.+?)\n\n", PAGE, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| ([^|]+) \|", "\n".join(tables), re.MULTILINE)
    assert set(VERBS) - set(READING) <= set(re.findall(r"\w+", " ".join(rows)))


@pytest.mark.anyio
@pytest.mark.parametrize("server_url", ["valkey"], indirect=True)
async def test_keys_have_the_types_and_the_session_the_fields_that_are_described(store: Store) -> None:
    ref = await store.created()
    await store.settled(ref, "committed", Request("print", "key"), elements(2))
    await store.shares.share(ref, "bob", "viewer")
    turn, begun = await store.begun(ref, new_turn_id(), streamed=True)
    await store.renew(ref, turn, shown(1, 2))
    rewind = Rewind(0, sum(map(len, elements(2))), 1)
    rewound = await store.commit(ref, turn, begun.head, [attached("x" * 70_000)], rewind=rewind)
    assert rewound == Settled("committed", 2)
    types = [(await store.redis.type(key)).decode() for key in ref.keys]
    assert types == [type_ for _, _, type_ in keys_of_a_session()]
    paragraph = re.search(r"^Fields of `T:s:<id>`.*?:\n(.+?)\n\n", PAGE, re.MULTILINE | re.DOTALL)
    assert paragraph is not None
    fields = [re.match(r"`\w+`(, `\w+`)*", described) for described in re.split(r"\s·\s", paragraph[1])]
    described = [name for names in fields if names for name in re.findall(r"\w+", names[0])]
    assert sorted(described) == sorted(field.decode() for field in await store.redis.hkeys(ref.keys[0]))
