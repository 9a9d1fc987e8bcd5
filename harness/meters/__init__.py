"""Meters: power, energy and a server's own metrics, read by a separate process."""
