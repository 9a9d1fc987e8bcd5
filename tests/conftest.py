"""Fixtures that several test modules use."""

import os
import signal

import pytest
from commands import harness
from fake_nvml.library import fake_nvml
from hypothesis import settings

for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) == signal.SIG_IGN:  # as in the background, or under nohup: children would inherit it
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)

__all__ = ["fake_nvml", "harness"]

# In CI the same examples in each run: a failure there is due to the change. Elsewhere new ones are tried.
settings.register_profile("busy machine", deadline=None, derandomize=os.environ.get("CI") == "true")
settings.load_profile("busy machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz", default="0:40", help="SEED:COUNT of tests/store/test_fuzz.py")
