"""The command line: parse, call, print. Each verb imports its heavy modules when it runs."""

from harness.cli import verbs
from harness.cli.app import app, main

__all__ = ["app", "main", "verbs"]
