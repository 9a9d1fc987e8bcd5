"""The application, and what its verbs share: reading runs, and printing in any format."""

from __future__ import annotations

import importlib
import inspect
import io
import json
import os
import re
import signal
import sys
import threading
import typing
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import typer.core

from harness import errors
from harness.cli import misuse, on_signals
from harness.files import data_rows

Formats = Literal["text", "md", "csv", "latex", "html", "json", "parquet"]
EPILOG = """\b
examples:
  harness run smoke --engine simulated            try it out; nothing is needed
  harness run chat --url http://127.0.0.1:8000    measure a server that runs
  harness report latest --full                    every table of the last run
\b
exit codes: 0 success, 1 a gate failed, 2 wrong use, 3 the run is incomplete
"""
GROUPS = {
    "Measure": ("run", "sweep", "ab", "rerun", "doctor"),
    "Read": ("report", "check", "diff", "list", "export", "import", "schema"),
    "Cost": ("cost", "predict"),
    "Press": ("compare", "facts"),
}
"""The verbs as --help groups them, in the order of their use."""


class Grouped(typer.core.TyperGroup):
    """Prints the verbs in their groups, each with the first sentence of its help."""

    def format_commands(self, _: object, formatter: Any) -> None:
        for group, verbs in GROUPS.items():
            with formatter.section(group):
                formatter.write_dl([(verb, (self.commands[verb].help or "").partition("\n\n")[0]) for verb in verbs])


class Plain(typer.core.TyperCommand):
    """A verb whose --help has no types of Python beside the arguments."""

    def format_options(self, context: Any, formatter: Any) -> None:
        for kind in ("argument", "option"):
            records = [x.get_help_record(context) for x in self.get_params(context) if x.param_type_name == kind]
            if rows := [(re.sub(r" <(list\[)?\w+\]?>$", "", name), said) for name, said in filter(None, records)]:
                with formatter.section(f"{kind.title()}s"):
                    formatter.write_dl(rows)


app = typer.Typer(
    cls=Grouped,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


USAGE_ERROR: Any = typer.BadParameter.__mro__[1]
"""What the parser raises: UsageError of click, or of the copy of click in typer, which does not export it."""


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """Measure what it costs to serve an open model, and compare that with a large provider's reported spend."""
    if version:
        import harness

        typer.echo(f"harness {harness.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(errors.WRONG_USE)


SUFFIXES: Mapping[str, Formats] = {
    ".html": "html", ".md": "md", ".csv": "csv", ".tex": "latex", ".json": "json", ".parquet": "parquet", ".txt": "text"
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Output:
    """Where a verb prints, and in which format."""

    format: Formats = "text"
    file: Path | None = None


_output: ContextVar[Output] = ContextVar("output")
output = _output.get


def _options(format_: Formats | None = None, json: bool = False, to: Path | None = None) -> Output:
    """The options of every verb that prints figures. HarnessError for a file that cannot be written, or no format."""
    if to is not None and (to.is_dir() or not to.absolute().parent.is_dir()):
        raise errors.HarnessError(f"-o {to}: not a file in an existing directory", "name a file, such as r.html")
    if to is not None and to.suffix and not (format_ or json or to.suffix in SUFFIXES):
        fix = f"end it in one of {', '.join(SUFFIXES)}, or add --format"
        raise errors.HarnessError(f"-o {to}: the ending '{to.suffix}' names no format", fix)
    if json and format_ not in (None, "json"):
        raise errors.HarnessError(f"--json with --format {format_}", "name one of the two")
    named = SUFFIXES.get(to.suffix, "text") if to else "text"
    return Output("json" if json else format_ or named, to)


OPTIONS = {(row["verb"], row["field"]): row for row in data_rows("options.csv")}
"""Verb, or nothing for every verb, and field -> what --help says of the option."""


def _described(verb: str, of: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a function or class with what `OPTIONS` says of them; one with a parser says it itself."""
    found = dict(inspect.signature(of, eval_str=True).parameters)
    for field, each in found.items():
        if typing.get_origin(each.annotation) is Annotated:
            continue
        row = OPTIONS.get((verb, field)) or OPTIONS["", field]
        said: dict[str, Any] = {key: row[key] or None for key in ("metavar", "help")}
        said |= {key: json.loads(row[key]) for key in ("min", "max") if row[key]}
        names = row["options"].split()
        how = typer.Argument(**said) if names == ["ARGUMENT"] else typer.Option(*names, **said)
        found[field] = each.replace(annotation=Annotated[each.annotation, how])
    return found


class Verb:
    """A verb: its fields are the options, its docstring is the help.

    The function of its name in that module of this package does it, whose heavy imports are made only then. `prints`:
    with the options of `_options`, which `show` and `emit` follow.
    """

    def __init_subclass__(cls, module: str, prints: bool = True) -> None:
        made, name = dataclass(frozen=True)(cls), cls.__name__.lower()
        own, added = _described(name, made), _described(name, _options) if prints else {}

        def call(context: typer.Context, **given: Any) -> None:
            misuse.check(context)
            _output.set(_options(**{key: given.pop(key) for key in added}))
            root, file = given.get("root", given.get("out")), output().file
            if file and root and file.absolute() == root.absolute():
                what = f"-o {file} is the directory of the runs"
                raise errors.HarnessError(what, f"name a file, such as {file}.html")
            functions = vars(importlib.import_module(f"harness.cli.{module}"))
            functions[f"{name}_" if f"{name}_" in functions else name](made(**given))

        context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        called = {"context": context, **own, **added}
        call.__signature__ = inspect.Signature(list(called.values()))  # type: ignore[attr-defined]
        call.__annotations__ = {key: each.annotation for key, each in called.items()}
        app.command(name, cls=Plain, help=cls.__doc__)(call)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _interrupt_again(ignored: Any) -> None:
    """Raise an interrupt that Python ignored, since it came in a callback of the garbage collector, soon after it."""
    if isinstance(ignored.exc_value, KeyboardInterrupt):
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(ignored)


def main() -> None:
    """Do what the command line says. Wrong use, and what the system refused, exit with 2 without a traceback."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # closed by the caller; no file opened later may get its descriptor
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # quotes may have characters that the terminal's encoding lacks
    on_signals(_interrupt)
    sys.unraisablehook = _interrupt_again
    try:
        try:
            raise SystemExit(app(prog_name="harness", standalone_mode=False))
        finally:
            on_signals(signal.SIG_IGN)  # they could only spoil the exit
    except (errors.HarnessError, OSError, MemoryError, USAGE_ERROR) as mistake:
        typer.echo(f"error: {misuse.worded(mistake)}", err=True)
        raise SystemExit(errors.WRONG_USE) from None
    except BaseException as left:
        if not isinstance(left, SystemExit) and not _of_interrupt(left):
            raise
        if not isinstance(left, SystemExit) or left.code == errors.INTERRUPTED:
            exec("")  # Python forgets that an interrupt ended a nested exec, for which it would end by a signal
            typer.echo("interrupted: a run keeps what was measured until then; see `harness list runs`", err=True)
            raise SystemExit(errors.INTERRUPTED) from None
        raise


def _of_interrupt(error: BaseException | None) -> bool:
    """The error is a KeyboardInterrupt, or was raised while one was handled."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
