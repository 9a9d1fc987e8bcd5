"""Fixtures that several test modules use."""

from fake_nvml.library import fake_nvml

__all__ = ["fake_nvml"]
