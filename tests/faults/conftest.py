"""The assertions of shared modules tell as much as those of the tests themselves."""

import pytest

pytest.register_assert_rewrite("tests.faults.call", "tests.faults.stage", "tests.faults.traffic")
