"""Which session a request belongs to."""

import pytest

from service.addressing import Address, of_request, resolve
from service.errors import BatonError
from storage.keys import Keyspace

KEYSPACE = Keyspace("test", 4, b"sixteen bytes or more")
OWNER = "ada"


def addressed(
    in_body: str | None = None,
    in_header: str | None = None,
    mode: str | None = None,
    owner: str = OWNER,
    key: str | None = None,
) -> Address | None:
    return of_request(KEYSPACE, owner, in_body=in_body, in_header=in_header, mode=mode, idempotency_key=key)


def session(in_body: str, mode: str | None = None, owner: str = OWNER) -> Address:
    address = addressed(in_body, mode=mode, owner=owner)
    assert address is not None
    return address


def code_of(
    in_body: str | None = None, in_header: str | None = None, mode: str | None = None
) -> tuple[str, str | None]:
    with pytest.raises(BatonError) as caught:
        addressed(in_body, in_header, mode)
    return caught.value.code, caught.value.param


def test_absent_is_stateless() -> None:
    assert addressed() is None


def test_body_and_header_say_the_same() -> None:
    assert addressed("my-chat") == addressed(in_header="my-chat") == addressed("my-chat", "my-chat")


def test_body_and_header_disagree() -> None:
    assert code_of("a", "b") == ("session_id_conflict", "session_id")
    assert code_of("a", "") == ("session_id_conflict", "session_id")


def test_new_is_another_session_each_time() -> None:
    one, two = session("new"), session("new")
    assert one.ref.id != two.ref.id
    assert KEYSPACE.is_session_id(one.ref.id)
    assert (one.name, one.mode, one.public) == ("", "create", one.ref.id)


def test_new_under_a_key_is_the_same_session_each_time() -> None:
    one, two = addressed("new", key="k"), addressed("new", key="k")
    assert one is not None
    assert one == two
    assert KEYSPACE.is_session_id(one.ref.id)
    assert (one.name, one.mode, one.public) == ("", "create", one.ref.id)
    others = [addressed("new", key="l"), addressed("new", key="k", owner="eve"), addressed("k")]
    assert len({one.ref.id, *(other.ref.id for other in others if other)}) == 4


def test_a_name_belongs_to_its_owner_and_is_always_the_same_session() -> None:
    mine = session("my-chat")
    assert mine == session("my-chat")
    assert (mine.name, mine.mode, mine.public) == ("my-chat", "any", "my-chat")
    assert mine.ref.id != session("my-chat", owner="eve").ref.id
    assert mine.ref.id != session("My-chat").ref.id


def test_the_issued_id_of_a_named_session_reaches_it_too() -> None:
    mine = session("my-chat")
    by_id = session(mine.ref.id)
    assert by_id.ref == mine.ref
    assert (by_id.name, by_id.mode, by_id.public) == ("", "continue", mine.ref.id)


@pytest.mark.parametrize("name", ["a", "0", "A.b_c:d@e+f-g", "a" * 200, "sess", "news", "stats2", "imports", "NEW"])
def test_permitted_names(name: str) -> None:
    assert session(name).name == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "a b",
        "-a",
        ".a",
        "_a",
        "@a",
        "a/b",
        "a\n",
        "a" * 201,
        "é",
        "caf\xe9",
        "a\x00",
        "{a}",
        "*",
        "stats",
        "import",
    ],
)
def test_forbidden_and_reserved_names(name: str) -> None:
    assert code_of(name) == ("invalid_session_id", "session_id")


@pytest.mark.parametrize(
    "text",
    [
        "sess_",
        "sess_x",
        "sess_00",
        "sess_00" + "a" * 25,
        "sess_00" + "A" * 26,
        "sess_04" + "a" * 26,
        "sess_zz" + "a" * 26,
    ],
)
def test_what_looks_issued_and_cannot_be_is_not_found(text: str) -> None:
    assert code_of(text) == ("session_not_found", "session_id")


def test_modes() -> None:
    assert session("my-chat", "continue").mode == "continue"
    assert session("my-chat", "create").mode == "create"
    assert session("new", "create").mode == "create"
    issued = "sess_00" + "a" * 26
    assert session(issued).mode == session(issued, "continue").mode == "continue"


@pytest.mark.parametrize(
    ("in_body", "mode"),
    [
        ("new", "continue"),
        ("sess_00" + "a" * 26, "create"),
        (None, "continue"),
        (None, "create"),
        ("a", ""),
        ("a", "any"),
        ("a", "CREATE"),
    ],
)
def test_modes_that_make_no_sense(in_body: str | None, mode: str) -> None:
    assert code_of(in_body, mode=mode) == ("invalid_value", "X-Session-Mode")


def test_new_is_no_session_to_look_at() -> None:
    with pytest.raises(BatonError):
        resolve(KEYSPACE, OWNER, "new")
