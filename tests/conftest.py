"""Fixtures that several test modules use."""

import pytest
from commands import harness
from fake_nvml.library import fake_nvml
from hypothesis import settings

__all__ = ["fake_nvml", "harness"]

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz", default="0:40", help="SEED:COUNT of tests/store/test_fuzz.py")
