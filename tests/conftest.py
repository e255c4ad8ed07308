"""What every test shares: async tests run on asyncio, the loop the service itself runs on."""

import pytest
from hypothesis import settings

# Machines are shared: how long one example took says nothing about the code.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
