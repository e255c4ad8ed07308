"""Where transcripts are kept."""

from pathlib import Path

from tests.golden.scenarios import SCENARIOS, Scenario

_HERE = Path(__file__).parent


def path_of(scenario: Scenario) -> Path:
    """The file of a scenario."""
    return _HERE / scenario.dialect / f"{scenario.name}.txt"


def unknown() -> set[Path]:
    """Files that no scenario has."""
    return set(_HERE.glob("*/*.txt")) - {path_of(one) for one in SCENARIOS}
