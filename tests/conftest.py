"""Fixtures that several test modules use."""

from commands import harness
from fake_nvml.library import fake_nvml
from hypothesis import settings

__all__ = ["fake_nvml", "harness"]

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")
