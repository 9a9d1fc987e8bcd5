"""The command line: parse, call, print. Nothing heavy is imported before a verb needs it."""

from harness.cli import lists, measure, money, reports, results, sweep
from harness.cli.app import app, main

__all__ = ["app", "lists", "main", "measure", "money", "reports", "results", "sweep"]
