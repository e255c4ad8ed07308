"""What every test shares: async tests run on asyncio, the loop the service itself runs on, or on one that leaps."""

import asyncio
import inspect

import pytest
from hypothesis import settings

from tests.instruments.clock import LeapingLoop

# The assertions of shared modules tell as much as those of the tests themselves.
pytest.register_assert_rewrite("tests.faults.call", "tests.faults.stage", "tests.faults.traffic")

# Machines are shared: how long one example took says nothing about the code.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs what is marked ``leaping`` on a loop of its own, beside the one that fixtures of the whole run live in."""
    test = pyfuncitem.obj
    if pyfuncitem.get_closest_marker("leaping") is None or not inspect.iscoroutinefunction(test):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(test).parameters}
    with asyncio.Runner(loop_factory=LeapingLoop) as runner:
        runner.run(test(**arguments))
    return True
