"""The command line: parse, call, print. Each verb imports its heavy modules when it runs."""

from harness.cli import lists, measure, money, results, sweep
from harness.cli.app import app, main

__all__ = ["app", "lists", "main", "measure", "money", "results", "sweep"]
