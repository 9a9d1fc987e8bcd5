"""Meters: what reads power or energy while a run goes on."""
