"""The command line: parse, call, print. Nothing heavy is imported before a verb needs it."""

from harness.cli import measure, money, reports, results
from harness.cli.app import app, main

__all__ = ["app", "main", "measure", "money", "reports", "results"]
