"""Which topologies the matrix is played on: ``FAULTS_TOPOLOGY``, one of them or ``all``.

Unless it is set: the whole of it on one server, and on a cluster what is marked ``representative``.
"""

import os
from collections.abc import Iterator

import pytest

from tests.faults.places import Place, place
from tests.faults.stores import TOPOLOGIES, Topology

CHOSEN = os.environ.get("FAULTS_TOPOLOGY") or ""
PLAYED = [one for one in TOPOLOGIES if CHOSEN in (one, "all", "")]
assert PLAYED, f"FAULTS_TOPOLOGY is one of {', '.join(TOPOLOGIES)}, all; not {CHOSEN}"


@pytest.fixture(scope="module", params=PLAYED)
def topology(request: pytest.FixtureRequest) -> Topology:
    chosen: Topology = request.param
    return chosen


@pytest.fixture(scope="module")
def ground_store(topology: Topology, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The store that a module does harm to."""
    with place(topology, tmp_path_factory.mktemp("store")) as one:
        yield one


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What a topology has no part in, as its row says, is left out; what is long goes to `make test-faults`."""
    for item in list(items):
        callspec = getattr(item, "callspec", None)
        played = callspec.params.get("topology") if callspec else None
        if played is None:
            continue
        if not all(played in only.args for only in item.iter_markers("only")):
            items.remove(item)
            continue
        representative = played == "cluster" and item.get_closest_marker("representative") is not None
        if not CHOSEN and played != "standalone" and not representative:
            item.add_marker(pytest.mark.at_length)
