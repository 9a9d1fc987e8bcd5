"""Fixtures that several test modules use."""

from commands import harness
from fake_nvml.library import fake_nvml

__all__ = ["fake_nvml", "harness"]
