"""The wires carry what they carried when it was last looked at; after a change: ``make golden``, and read the diff."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.golden.files import path_of, unknown
from tests.golden.scenarios import SCENARIOS, Scenario
from tests.golden.stage import Stage, set_up

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def stage(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with set_up(tmp_path_factory.mktemp("golden")) as stage:
        yield stage


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: f"{one.dialect}/{one.name}")
async def test_a_scenario_is_as_it_was(stage: Stage, scenario: Scenario) -> None:
    text = await asyncio.to_thread(stage.play, scenario.dialect, scenario.title, scenario.play)
    assert text.split("\n") == path_of(scenario).read_text("utf-8").split("\n")


def test_every_transcript_has_a_scenario() -> None:
    assert unknown() == set()
